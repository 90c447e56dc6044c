// SPDX-License-Identifier: BSD-2-Clause
//! Clocks and sleeping.

use crate::errno::EINTR;
use crate::sys;

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    sys::clock_gettime(sys::CLOCK_MONOTONIC).map_or(0, |ts| ts.as_nanos())
}

/// Milliseconds since an earlier [`now`].
pub fn ms_since(start: u64) -> u64 {
    now().saturating_sub(start) / 1_000_000
}

/// Sleeps, signals or not.
pub fn sleep_ms(ms: u64) {
    let end = now() + ms * 1_000_000;
    loop {
        let left = end.saturating_sub(now());
        if left == 0 {
            return;
        }
        if sys::nanosleep(&sys::Timespec::from_nanos(left)) != Err(EINTR) {
            return;
        }
    }
}
