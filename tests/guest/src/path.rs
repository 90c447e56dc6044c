// SPDX-License-Identifier: BSD-2-Clause
//! Path names in a buffer of fixed size, kept ending in NUL for the system calls.

use core::ffi::CStr;
use core::fmt::{self, Write};

const SIZE: usize = 1024;

/// A path name.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; SIZE],
    len: usize,
}

impl Path {
    /// Makes a path of the given text; a text of 1,023 bytes or more is cut.
    pub fn new(text: &[u8]) -> Self {
        let mut path = Self { bytes: [0; SIZE], len: 0 };
        path.append(text);
        path
    }

    /// Makes a path by formatting.
    pub fn of(args: fmt::Arguments<'_>) -> Self {
        let mut path = Self::new(b"");
        let _ = path.write_fmt(args);
        path
    }

    fn append(&mut self, text: &[u8]) {
        let count = text.len().min(SIZE - 1 - self.len);
        self.bytes[self.len..self.len + count].copy_from_slice(&text[..count]);
        self.len += count;
    }

    /// Adds a component and returns the length before, for [`Path::truncate`].
    pub fn push(&mut self, name: &[u8]) -> usize {
        let before = self.len;
        self.append(b"/");
        self.append(name);
        before
    }

    /// Goes back to a length that [`Path::push`] returned.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            self.len -= 1;
            self.bytes[self.len] = 0;
        }
    }

    /// The path for a system call.
    pub fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }

    /// The path for printing.
    pub fn as_str(&self) -> &str {
        self.as_cstr().to_str().unwrap_or("(not UTF-8)")
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes());
        Ok(())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_and_truncate() {
        let mut path = Path::new(b"/a");
        let before = path.push(b"bc");
        assert_eq!(path.as_cstr(), c"/a/bc");
        path.truncate(before);
        assert_eq!(path.as_cstr(), c"/a");
    }
}
