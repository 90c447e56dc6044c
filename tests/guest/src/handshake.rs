// SPDX-License-Identifier: BSD-2-Clause
//! How a program and the script that started it wait for each other: by files.

use core::ffi::CStr;

use crate::errno::{EAGAIN, Result};
use crate::sys;
use crate::time::{ms_since, now, sleep_ms};

/// How long a program waits to be released, in milliseconds: longer than its script may take.
const PATIENCE_MS: u64 = 200_000;

/// The names of two files, neither of which is there in the beginning.
#[derive(Clone, Copy)]
pub struct Handshake<'a> {
    held: &'a CStr,
    release: &'a CStr,
}

impl<'a> Handshake<'a> {
    /// The next two words: the file that the program makes, and the one that it waits for.
    pub fn of(words: &mut impl Iterator<Item = &'a CStr>) -> Option<Self> {
        Some(Handshake { held: words.next()?, release: words.next()? })
    }

    /// Tells the script that it may go on.
    ///
    /// # Errors
    /// As open(2).
    pub fn announce(self) -> Result<()> {
        sys::open(self.held, sys::O_WRONLY | sys::O_CREAT, 0o666).and_then(sys::close)
    }

    /// Tells the script, and waits until it is done.
    ///
    /// # Errors
    /// As open(2); EAGAIN: it took minutes.
    pub fn pass(self) -> Result<()> {
        self.announce()?;
        let start = now();
        loop {
            if let Ok(fd) = sys::open(self.release, sys::O_RDONLY, 0) {
                return sys::close(fd);
            }
            if ms_since(start) > PATIENCE_MS {
                return Err(EAGAIN);
            }
            sleep_ms(20);
        }
    }
}
