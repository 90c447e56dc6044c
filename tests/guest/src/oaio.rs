// SPDX-License-Identifier: BSD-2-Clause
//! The calls as FreeBSD 6 had them: another control block, without room for what came later. The
//! words of the kernel are where they are today, so the calls that came to stay work on both.

use crate::Result;
use crate::mem::Plain;
use crate::sys;

/// How to tell of a completion, as FreeBSD 6 had it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Osigevent {
    /// One of the SIGEV constants.
    pub notify: i32,
    /// The signal, or the kqueue.
    pub signo: i32,
    /// Handed on with an event.
    pub value: usize,
}

// SAFETY: numbers.
unsafe impl Plain for Osigevent {}

/// A request as FreeBSD 6 had it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Oaiocb {
    /// Descriptor.
    pub fildes: i32,
    /// Where in the file.
    pub offset: i64,
    /// Address of the buffer.
    pub buf: usize,
    /// Bytes.
    pub nbytes: usize,
    /// Notification.
    pub sigevent: Osigevent,
    /// Operation, for lio_listio.
    pub opcode: i32,
    /// Priority; ignored.
    pub reqprio: i32,
    /// The kernel's: the result after aio_return.
    pub status: isize,
    /// The kernel's: the error.
    pub error: isize,
    /// The kernel's: the job's number.
    pub kernelinfo: isize,
}

// SAFETY: numbers; the padding means nothing to the kernel.
unsafe impl Plain for Oaiocb {}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Oaiocb, opcode) == offset_of!(crate::aio::Aiocb, opcode));
    assert!(offset_of!(Oaiocb, status) == offset_of!(crate::aio::Aiocb, status));
};

/// aio_read of FreeBSD 6.
///
/// # Errors
/// Those of the call; ENOSYS, and SIGSYS, from a kernel without COMPAT_FREEBSD6.
pub fn read(cb: usize) -> Result<()> {
    sys::call(318, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// aio_write of FreeBSD 6.
///
/// # Errors
/// As [`read`].
pub fn write(cb: usize) -> Result<()> {
    sys::call(319, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// lio_listio of FreeBSD 6; `sig` is the address of an [`Osigevent`].
///
/// # Errors
/// As [`read`].
pub fn listio(mode: i32, list: usize, count: i32, sig: usize) -> Result<()> {
    sys::call(320, [mode as usize, list, count as usize, sig, 0, 0]).map(|_| ())
}
