// SPDX-License-Identifier: BSD-2-Clause
//! What sleep(9) needs besides a mutex: channels, deadlines and wakeup.

use core::ffi::c_void;

use sys_bindings as sys;

use crate::model::Errno;

/// An address to sleep on; never dereferenced.
#[derive(Clone, Copy)]
pub struct Channel(*const c_void);

// SAFETY: only compared by the kernel.
unsafe impl Send for Channel {}

impl Channel {
    /// The channel of an object. Whoever sleeps on it keeps the object's address from being used
    /// for something else meanwhile, or tolerates a wakeup too many.
    pub fn of<T>(object: &T) -> Channel {
        Channel(core::ptr::from_ref(object).cast())
    }

    pub(super) fn as_ptr(self) -> *const c_void {
        self.0
    }

    /// Wakes every thread that sleeps here.
    pub fn wakeup(self) {
        // SAFETY: any address will do.
        unsafe { sys::wakeup(self.0) }
    }
}

/// Sleeps for a clock tick, to look at something again. No lock may be held.
pub fn pause(wmesg: &'static core::ffi::CStr) {
    const MILLISECOND: i64 = (1 << 32) / 1000;
    // SAFETY: no lock is held.
    unsafe { sys::pause_sbt(wmesg.as_ptr(), MILLISECOND, 0, 0) };
}

/// A time span in the kernel's fixed-point seconds (32 bits of fraction).
#[derive(Clone, Copy)]
pub struct Span(i64);

impl Span {
    /// One second.
    pub const SECOND: Span = Span(1 << 32);

    /// Makes a span of a user's timespec.
    ///
    /// # Errors
    /// EINVAL: nanoseconds out of range or a negative time. A span beyond the clock is the longest.
    pub fn from_timespec(seconds: i64, nanoseconds: i64) -> Result<Span, Errno> {
        if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
            return Err(Errno::EINVAL);
        }
        if seconds > i64::from(i32::MAX) {
            return Ok(Span(i64::MAX));
        }
        Ok(Span((seconds << 32) + (nanoseconds << 32) / 1_000_000_000))
    }

    /// Whether the span is empty.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Makes a span of clock ticks.
    pub fn from_ticks(ticks: i32) -> Span {
        // SAFETY: hz is set at boot and constant.
        let hz = i64::from(unsafe { sys::hz }).max(1);
        Span((i64::from(ticks.max(1)) << 32) / hz)
    }
}

/// A moment on the monotonic clock, with the precision sleeping on it needs.
#[derive(Clone, Copy)]
pub struct Deadline {
    pub(super) at: i64,
    pub(super) precision: i64,
}

impl Deadline {
    /// The moment `span` from now.
    pub fn after(span: Span) -> Deadline {
        // SAFETY: reads the clock; no context is forbidden.
        let now = unsafe { sys::aio_rs_sbinuptime() };
        // SAFETY: a tunable the kernel sets at boot; as other system calls use it.
        let precision = unsafe { sys::tc_precexp };
        Deadline {
            at: now.checked_add(span.0).unwrap_or(i64::MAX),
            precision: span.0 >> precision.clamp(0, 63),
        }
    }

    /// Whether the moment has come.
    pub fn is_past(self) -> bool {
        // SAFETY: reads the clock; no context is forbidden.
        let now = unsafe { sys::aio_rs_sbinuptime() };
        now >= self.at
    }

    /// The one that comes first, if there is one.
    pub fn first(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if one.at <= other.at { one } else { other }),
            (one, other) => one.or(other),
        }
    }
}
