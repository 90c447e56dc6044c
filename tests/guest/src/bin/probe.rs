// SPDX-License-Identifier: BSD-2-Clause
//! Loads a module that tries the kernel's functions (`tests/kmod/aio_rs_probe.c`) and unloads it, with
//! memory and descriptors where it looks for them. What it finds, the kernel's console says.
//!
//! `probe FILE.ko`
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::mem::{PAGE, Region};
use guest::sys;
use guest::{Args, kld, net, println};

guest::program!(run);

/// Where the module looks for memory: a page to write to, one to read, and none.
const MEMORY: usize = 0x2000_0000;
/// Descriptors: a file to read, to write, as a path, with the right to read at no offset; a socket
/// and its peer.
const DESCRIPTORS: i32 = 10;

fn run(args: Args) -> i32 {
    let Some(file) = args.plain(&[]).next() else {
        println!("usage: probe FILE.ko");
        return 2;
    };
    match prepare().and_then(|()| kld::load(file)) {
        Ok(number) => match kld::unload(number, false) {
            Ok(()) => 0,
            Err(error) => {
                println!("probe: unload: {error}");
                1
            }
        },
        Err(error) => {
            println!("probe: {error}");
            1
        }
    }
}

fn prepare() -> guest::Result<()> {
    sys::mmap_over(MEMORY, 2 * PAGE, sys::PROT_READ | sys::PROT_WRITE)?;
    let memory = Region::shared_at(MEMORY, 2 * PAGE);
    for at in 0..2 * PAGE {
        memory.write(at, &[(at % PAGE) as u8]);
    }
    for (index, (offset, len)) in [(32, 8), (64, 16)].into_iter().enumerate() {
        memory.set_word(1024 + index * 16, (MEMORY + offset) as u64);
        memory.set_word(1024 + index * 16 + 8, len);
    }
    memory.part(PAGE, PAGE).protect(sys::PROT_READ)?;
    let name = c"probed";
    let first = sys::open(name, sys::O_RDWR | sys::O_CREAT, 0o644)?;
    sys::write(first, &[1; 100])?;
    let opened = [
        sys::open(name, sys::O_RDONLY, 0)?,
        sys::open(name, sys::O_WRONLY, 0)?,
        sys::open(name, sys::O_PATH, 0)?,
        first,
    ];
    let (socket, peer) = net::pair(net::SOCK_STREAM)?;
    for (index, fd) in opened.into_iter().chain([socket, peer]).enumerate() {
        sys::dup2(fd, DESCRIPTORS + index as i32)?;
    }
    sys::cap_rights_limit(DESCRIPTORS + 3, sys::CAP_READ)?;
    sys::unlink(name)
}
