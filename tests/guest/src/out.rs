// SPDX-License-Identifier: BSD-2-Clause
//! Printing. A line is built whole and written with one call, so that lines of several processes
//! do not mix.

use crate::sys;
use core::fmt::{self, Write};

/// Text in a buffer of fixed size; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// Makes an empty text.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Formats into a new text.
    pub fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // Writing to a Text never fails; a formatter that does leaves what came before.
        let _ = text.write_fmt(args);
        text
    }

    /// The bytes written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The text, up to the first byte that is not UTF-8 (a cut may split a character).
    pub fn as_str(&self) -> &str {
        match core::str::from_utf8(self.as_bytes()) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let count = text.len().min(N - self.len);
        self.bytes[self.len..self.len + count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        Ok(())
    }
}

/// Writes one line to a descriptor; errors are ignored, there is nowhere to report them.
pub fn line(fd: i32, args: fmt::Arguments<'_>) {
    let mut text = Text::<1024>::new();
    let _ = text.write_fmt(args);
    // The newline must survive a cut.
    text.len = text.len.min(1023);
    let _ = text.write_str("\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match sys::write(fd, rest) {
            Ok(count) if count > 0 => rest = &rest[count.min(rest.len())..],
            Err(crate::errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Prints a line to standard output.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::out::line(1, ::core::format_args!($($arg)*)) };
}

/// Prints a line to standard error.
#[macro_export]
macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::out::line(2, ::core::format_args!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_not_lost() {
        let text = Text::<8>::of(format_args!("{}-{}", 12345, 6789));
        assert_eq!(text.as_str(), "12345-67");
    }

    #[test]
    fn a_split_character_is_dropped() {
        let text = Text::<3>::of(format_args!("ab\u{e9}"));
        assert_eq!(text.as_str(), "ab");
    }
}
