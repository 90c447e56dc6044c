// SPDX-License-Identifier: BSD-2-Clause
//! Stand-ins for programs of FreeBSD's base system that tests run: mdconfig(8), gnop(8), and sh(1) as
//! far as `exit`. Each is a program of a few instructions, which asks us to do its work.

use std::path::Path;

use crate::errno::{ENOEXEC, Errno};
use crate::{disk, vm};

/// The system call they make; FreeBSD has none of this number.
pub const CALL: u64 = 0x1000;

const NAMES: [&str; 3] = ["/sbin/mdconfig", "/sbin/gnop", "/bin/sh"];

/// Whether a path is that of a program we stand in for.
pub fn is_one(path: &Path) -> bool {
    path.to_str().is_some_and(|path| NAMES.contains(&path))
}

/// The program: its header, one segment, and what it does with its stack's address in %rdi.
pub fn image() -> Vec<u8> {
    const AT: u64 = 0x40_0000;
    #[rustfmt::skip]
    const CODE: [u8; 21] = [
        0xb8, 0x00, 0x10, 0, 0, // mov eax, CALL
        0x0f, 0x05, // syscall
        0x89, 0xc7, // mov edi, eax
        0xb8, 0x01, 0, 0, 0, // mov eax, 1
        0x0f, 0x05, // syscall
        0x0f, 0x0b, 0, 0, 0, // ud2
    ];
    let mut image = Vec::new();
    let mut put = |len: usize, value: u64| image.extend_from_slice(&value.to_le_bytes()[..len]);
    put(8, u64::from_le_bytes(*b"\x7fELF\x02\x01\x01\x09"));
    put(8, 0);
    // An executable for amd64, its entry, one program header behind this one.
    for (len, value) in [(2, 2), (2, 62), (4, 1), (8, AT + 120), (8, 64), (8, 0), (4, 0)] {
        put(len, value);
    }
    for (len, value) in [(2, 64), (2, 56), (2, 1), (2, 0), (2, 0), (2, 0)] {
        put(len, value);
    }
    let size = 120 + CODE.len() as u64;
    for (len, value) in [(4, 1), (4, 5), (8, 0), (8, AT), (8, AT), (8, size), (8, size), (8, 4096)]
    {
        put(len, value);
    }
    image.extend_from_slice(&CODE);
    image
}

/// Does a stand-in's work; its exit status.
pub fn call(stack: u64) -> Result<u64, Errno> {
    let count: u64 = vm::read(stack)?;
    let mut words = Vec::new();
    for index in 0..count {
        let word = vm::read_string(vm::read(stack + 8 + index * 8)?)?;
        words.push(String::from_utf8(word).map_err(|_| ENOEXEC)?);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.first().copied() {
        Some("/sbin/mdconfig") => disk::mdconfig(&words),
        Some("/sbin/gnop") => disk::gnop(&words),
        Some("/bin/sh") => return Ok(shell(&words)),
        _ => None,
    };
    Ok(u64::from(done.is_none()))
}

/// `sh -c "exit N"`, and nothing else.
fn shell(words: &[&str]) -> u64 {
    let status = |text: &str| text.strip_prefix("exit ")?.parse().ok();
    match words {
        [_, "-c", text] => status(text).unwrap_or(127),
        _ => 127,
    }
}
