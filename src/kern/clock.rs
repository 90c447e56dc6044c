// SPDX-License-Identifier: BSD-2-Clause
//! The time since boot, for measuring.

use sys_bindings as sys;

/// A moment on the monotonic clock, or none: when nobody asked for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(i64);

impl Moment {
    /// No moment.
    pub const NONE: Moment = Moment(0);

    /// This one. Context: any. Costs a look at the kernel's clock.
    pub fn now() -> Moment {
        // SAFETY: reads the clock; no context is forbidden.
        Moment(unsafe { sys::aio_rs_sbinuptime() })
    }

    /// Whether it is one.
    pub fn is_some(self) -> bool {
        self != Moment::NONE
    }

    /// Microseconds from `self` to `later`; 0 when that was before.
    pub fn micros_until(self, later: Moment) -> u64 {
        let span = later.0.saturating_sub(self.0).max(0).cast_unsigned();
        let (seconds, fraction) = (span >> 32, span & 0xffff_ffff);
        seconds * 1_000_000 + ((fraction * 1_000_000) >> 32)
    }

    /// Nanoseconds from `self` to `later`; 0 when that was before.
    pub fn nanos_until(self, later: Moment) -> u64 {
        let span = later.0.saturating_sub(self.0).max(0).cast_unsigned();
        let (seconds, fraction) = (span >> 32, span & 0xffff_ffff);
        seconds * 1_000_000_000 + ((fraction * 1_000_000_000) >> 32)
    }
}
