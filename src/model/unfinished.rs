// SPDX-License-Identifier: BSD-2-Clause
//! How many requests that change a file are not finished, by file; asked without a lock.
//!
//! Files share counters by hash: a count of 0 says that there is none for this file, any other that
//! there may be one.
//!
//! # Order
//! A thread that submitted a change and then asks gets its own change counted, and one that learned
//! from another thread that a change was submitted does too. The end of a change is published after
//! its effect.

use core::sync::atomic::{AtomicUsize, Ordering};

const COUNTERS: usize = 32;

/// See the file's text.
#[derive(Default)]
pub struct Unfinished([AtomicUsize; COUNTERS]);

impl Unfinished {
    fn counter(&self, file: u64) -> &AtomicUsize {
        let mixed = file.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.0[(mixed >> 32) as usize % COUNTERS]
    }

    /// Counts a change of the file that is about to be visible.
    pub fn begin(&self, file: u64) {
        self.counter(file).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts its end.
    pub fn end(&self, file: u64) {
        self.counter(file).fetch_sub(1, Ordering::Release);
    }

    /// Whether there may be one.
    pub fn any(&self, file: u64) -> bool {
        self.counter(file).load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_free_when_each_change_has_ended() {
        let unfinished = Unfinished::default();
        assert!(!unfinished.any(7));
        unfinished.begin(7);
        unfinished.begin(7);
        unfinished.end(7);
        assert!(unfinished.any(7));
        unfinished.end(7);
        assert!(!unfinished.any(7));
    }
}
