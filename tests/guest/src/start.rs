// SPDX-License-Identifier: BSD-2-Clause
//! Program start: the entry point, the ABI note, arguments and what happens on a panic.

use core::ffi::{CStr, c_char};

/// The arguments of the program.
#[derive(Clone, Copy)]
pub struct Args {
    argc: usize,
    argv: *const *const c_char,
}

impl Args {
    /// The argument at an index; 0 is the program's name.
    pub fn get(&self, index: usize) -> Option<&'static CStr> {
        if index >= self.argc {
            return None;
        }
        // SAFETY: execve(2) put argc pointers there, each to a string that ends in NUL, and they
        // stay until the process ends.
        unsafe { Some(CStr::from_ptr(*self.argv.add(index))) }
    }

    /// The arguments after the name.
    pub fn rest(self) -> impl Iterator<Item = &'static CStr> {
        (1..self.argc).filter_map(move |index| self.get(index))
    }

    /// The arguments that are neither `--name` nor the value after a name of `with_value`.
    pub fn plain(
        self,
        with_value: &'static [&'static CStr],
    ) -> impl Iterator<Item = &'static CStr> {
        (1..self.argc).filter_map(move |index| {
            let is_value =
                index > 1 && self.get(index - 1).is_some_and(|name| with_value.contains(&name));
            self.get(index).filter(|arg| !is_value && !arg.to_bytes().starts_with(b"--"))
        })
    }

    /// The value after `--name`.
    pub fn value(&self, name: &CStr) -> Option<&'static CStr> {
        let at = (1..self.argc).find(|&index| self.get(index) == Some(name))?;
        self.get(at + 1)
    }

    /// The number after `--name`, or `default`; anything that is no number ends the program.
    pub fn number(&self, name: &CStr, default: u64) -> u64 {
        let Some(text) = self.value(name) else { return default };
        match text.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(number) => number,
            None => {
                crate::eprintln!("{name:?} wants a number, not {text:?}");
                crate::sys::exit(2)
            }
        }
    }

    /// Whether `--name` is among the arguments.
    pub fn has(&self, name: &CStr) -> bool {
        self.rest().any(|arg| arg == name)
    }
}

/// Makes a function `fn(Args) -> i32` the program; its result is the exit status.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[cfg(target_os = "none")]
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(args: $crate::Args) -> i32 {
            $main(args)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            let _: fn($crate::Args) -> i32 = $main;
            ::std::eprintln!("this program runs on FreeBSD only");
            ::std::process::exit(2);
        }
    };
}

#[cfg(target_os = "none")]
mod entry {
    use super::*;

    // The kernel enters with the address of argc in rdi. The frame pointer is cleared so that a
    // back trace ends here.
    #[cfg(target_arch = "x86_64")]
    core::arch::global_asm!(
        ".globl _start",
        ".type _start,@function",
        "_start:",
        "xor ebp, ebp",
        "and rsp, -16",
        "call {start}",
        "ud2",
        start = sym start,
    );

    // In 32 bits argc is where the stack ends.
    #[cfg(target_arch = "x86")]
    core::arch::global_asm!(
        ".globl _start",
        ".type _start,@function",
        "_start:",
        "xor ebp, ebp",
        "mov eax, esp",
        "and esp, -16",
        "sub esp, 12",
        "push eax",
        "call {start}",
        "ud2",
        start = sym start,
    );

    unsafe extern "Rust" {
        fn guest_main(args: Args) -> i32;
    }

    unsafe extern "C" fn start(block: *const usize) -> ! {
        // SAFETY: the kernel put argc there, and the argv pointers after it.
        let args = unsafe { Args { argc: *block, argv: block.add(1).cast() } };
        // SAFETY: program! defines it with this type in every program.
        let status = unsafe { guest_main(args) };
        crate::sys::exit(status)
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        crate::eprintln!("{info}");
        crate::sys::exit(101)
    }

    #[repr(C, align(4))]
    struct Note {
        name_size: u32,
        desc_size: u32,
        kind: u32,
        name: [u8; 8],
        version: u32,
    }

    // Tells the kernel which system it was made for: without it, it gives us the behaviour of
    // FreeBSD before version notes.
    #[used]
    #[unsafe(link_section = ".note.tag")]
    static ABI_TAG: Note =
        Note { name_size: 8, desc_size: 4, kind: 1, name: *b"FreeBSD\0", version: 1_400_097 };
}
