// SPDX-License-Identifier: BSD-2-Clause
//! One line for the message buffer (dmesg(8)), formatted without allocation.

use core::ffi::c_char;
use core::fmt;

use sys_bindings as sys;

/// Bytes of a line, with its final 0.
const LINE: usize = 200;

/// Text of less than [`LINE`] bytes; more is cut.
pub struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Line {
    /// Returns an empty line.
    pub fn new() -> Line {
        Line { bytes: [0; LINE], len: 0 }
    }

    /// The text as a C string: the last byte is always 0.
    pub fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte stays 0.
        for &byte in text.as_bytes() {
            if byte == 0 || self.len >= LINE - 1 {
                continue;
            }
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len = self.len.wrapping_add(1);
            }
        }
        Ok(())
    }
}

/// Prints one line. Context: any; no lock is needed.
#[inline(never)]
pub fn print(arguments: fmt::Arguments) {
    let mut line = Line::new();
    // Line cannot fail; a Display that does leaves what it wrote.
    let _ = fmt::Write::write_fmt(&mut line, arguments);
    // SAFETY: a constant format that takes one C string.
    unsafe { sys::printf(c"aio_rs: %s\n".as_ptr(), line.as_ptr()) };
}

/// Lets at most one line a second through.
pub struct RateLimit(super::mtx::Mutex<(sys::timeval, core::ffi::c_int)>);

impl RateLimit {
    /// Makes a limit. May sleep.
    pub fn new() -> RateLimit {
        let never = sys::timeval { tv_sec: 0, tv_usec: 0 };
        RateLimit(super::mtx::Mutex::new(c"aio_rs log", (never, 0)))
    }

    /// Whether a line may be printed now. Takes its own mutex.
    pub fn allows(&self) -> bool {
        let mut state = self.0.lock();
        let (last, count) = &mut *state;
        // SAFETY: both are ours, under the mutex.
        unsafe { sys::eventratecheck(last, count, 1) != 0 }
    }
}
