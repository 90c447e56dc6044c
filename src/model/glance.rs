// SPDX-License-Identifier: BSD-2-Clause
//! What can be seen of a table of requests without its lock: how many there are, and how many that
//! change a file are not finished, by file.
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
pub struct Glance {
    count: AtomicUsize,
    changes: [AtomicUsize; COUNTERS],
}

impl Glance {
    fn counter(&self, file: u64) -> &AtomicUsize {
        let mixed = file.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.changes[(mixed >> 32) as usize % COUNTERS]
    }

    /// Publishes the number of requests.
    #[inline]
    pub fn set_count(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Requests that are not reaped, about.
    #[inline]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts a change of the file that is about to be visible.
    pub fn begin_change(&self, file: u64) {
        self.counter(file).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts its end.
    pub fn end_change(&self, file: u64) {
        self.counter(file).fetch_sub(1, Ordering::Release);
    }

    /// Whether there may be one.
    pub fn any_change(&self, file: u64) -> bool {
        self.counter(file).load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_free_when_each_change_has_ended() {
        let unfinished = Glance::default();
        assert!(!unfinished.any_change(7));
        unfinished.begin_change(7);
        unfinished.begin_change(7);
        unfinished.end_change(7);
        assert!(unfinished.any_change(7));
        unfinished.end_change(7);
        assert!(!unfinished.any_change(7));
    }
}
