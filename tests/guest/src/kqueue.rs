// SPDX-License-Identifier: BSD-2-Clause
//! Kernel events: the structure of <sys/event.h> and the call.

use crate::Result;
use crate::sys::{self, Timespec};

/// Readiness of a descriptor.
pub const EVFILT_READ: i16 = -1;
/// A request of asynchronous I/O.
pub const EVFILT_AIO: i16 = -3;
/// A list of lio_listio.
pub const EVFILT_LIO: i16 = -10;
/// An event of the program's own.
pub const EVFILT_USER: i16 = -11;

/// Add the event.
pub const EV_ADD: u16 = 0x1;
/// Delete it.
pub const EV_DELETE: u16 = 0x2;
/// Report it.
pub const EV_ENABLE: u16 = 0x4;
/// Keep it, but do not report it.
pub const EV_DISABLE: u16 = 0x8;
/// Report it once.
pub const EV_ONESHOT: u16 = 0x10;
/// Forget its state when it has been reported.
pub const EV_CLEAR: u16 = 0x20;
/// Answer with an event instead of an error.
pub const EV_RECEIPT: u16 = 0x40;
/// Disable it when it has been reported.
pub const EV_DISPATCH: u16 = 0x80;
/// The kernel's own mark of an event that it made.
pub const EV_FLAG1: u16 = 0x2000;
/// The end was reached; every event of a finished request has it.
pub const EV_EOF: u16 = 0x8000;

/// An event, `struct kevent`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Kevent {
    /// Of what: the address of a control block or of a list.
    pub ident: usize,
    /// Which filter.
    pub filter: i16,
    /// What to do, or what happened.
    pub flags: u16,
    /// The filter's own flags.
    pub fflags: u32,
    /// The filter's own number.
    pub data: i64,
    /// The program's own word.
    pub udata: usize,
    /// Spare words of the filter.
    pub ext: [u64; 4],
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Kevent>() == 64);
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Kevent>() == 56);

/// kevent(2): how many events were stored.
///
/// # Errors
/// Those of the call; with no room in `events`, those of a change too.
pub fn kevent(
    kq: i32,
    changes: &[Kevent],
    events: &mut [Kevent],
    timeout: Option<Timespec>,
) -> Result<usize> {
    let timeout_at = timeout.as_ref().map_or(0, |span| core::ptr::from_ref(span) as usize);
    sys::call(
        560,
        [
            kq as isize as usize,
            changes.as_ptr() as usize,
            changes.len(),
            events.as_mut_ptr() as usize,
            events.len(),
            timeout_at,
        ],
    )
}

/// Makes one change.
///
/// # Errors
/// That of the change.
pub fn change(kq: i32, ident: usize, filter: i16, flags: u16) -> Result<()> {
    let change = Kevent { ident, filter, flags, ..Kevent::default() };
    kevent(kq, &[change], &mut [], None).map(|_| ())
}
