// SPDX-License-Identifier: BSD-2-Clause
//! Asynchronous I/O: the control block of <aio.h> and the calls.

use crate::Result;
use crate::mem::{Plain, Region};
use crate::sys::{self, Timespec};
use core::mem::offset_of;

/// No notification.
pub const SIGEV_NONE: i32 = 0;
/// A signal to the process.
pub const SIGEV_SIGNAL: i32 = 1;
/// A new thread; a matter of the C library, unknown to the kernel.
pub const SIGEV_THREAD: i32 = 2;
/// A kernel event.
pub const SIGEV_KEVENT: i32 = 3;
/// A signal to one thread.
pub const SIGEV_THREAD_ID: i32 = 4;

/// Answer of aio_cancel: what matched was cancelled.
pub const AIO_CANCELED: i32 = 1;
/// Answer of aio_cancel: something that matched runs on.
pub const AIO_NOTCANCELED: i32 = 2;
/// Answer of aio_cancel: all that matched was done, or nothing matched.
pub const AIO_ALLDONE: i32 = 3;

/// lio_listio: return at once.
pub const LIO_NOWAIT: i32 = 0;
/// lio_listio: wait until all is done.
pub const LIO_WAIT: i32 = 1;
/// Operation of a list: nothing.
pub const LIO_NOP: i32 = 0;
/// Operation of a list: write.
pub const LIO_WRITE: i32 = 1;
/// Operation of a list: read.
pub const LIO_READ: i32 = 2;
/// Operation of a list: write from pieces.
pub const LIO_WRITEV: i32 = 5;
/// Operation of a list: read into pieces.
pub const LIO_READV: i32 = 6;

/// The longest request, SSIZE_MAX.
pub const IOSIZE_MAX: usize = isize::MAX as usize;

/// How to tell of a completion, `struct sigevent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sigevent {
    /// One of the SIGEV constants.
    pub notify: i32,
    /// The signal, or the kqueue.
    pub signo: i32,
    /// Handed on with the notification.
    pub value: usize,
    /// Kevent flags or thread id in the first word, else spare.
    pub more: [usize; 8],
}

// SAFETY: numbers.
unsafe impl Plain for Sigevent {}

impl Sigevent {
    /// A signal to the process.
    pub fn signal(signo: i32, value: usize) -> Self {
        Self { notify: SIGEV_SIGNAL, signo, value, more: [0; 8] }
    }

    /// A signal to a thread.
    pub fn thread(signo: i32, value: usize, tid: i64) -> Self {
        Self {
            notify: SIGEV_THREAD_ID,
            more: Self::first(tid as usize),
            ..Self::signal(signo, value)
        }
    }

    /// An event on a kqueue, with these flags.
    pub fn kevent(kq: i32, value: usize, flags: u16) -> Self {
        Self { notify: SIGEV_KEVENT, signo: kq, value, more: Self::first(flags as usize) }
    }

    fn first(word: usize) -> [usize; 8] {
        [word, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// A request as the program writes it, `struct aiocb`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Aiocb {
    /// Descriptor.
    pub fildes: i32,
    /// Where in the file.
    pub offset: i64,
    /// Address of the buffer, or of the list of pieces.
    pub buf: usize,
    /// Bytes, or the number of pieces.
    pub nbytes: usize,
    spare: [i32; 2],
    spare2: usize,
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
    /// Notification.
    pub sigevent: Sigevent,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Sigevent>() == 80 && SIZE == 160);
    assert!(offset_of!(Aiocb, offset) == 8);
    assert!(offset_of!(Aiocb, buf) == 16);
    assert!(offset_of!(Aiocb, nbytes) == 24);
    assert!(offset_of!(Aiocb, opcode) == 48);
    assert!(STATUS == 56 && ERROR == 64 && KERNELINFO == 72);
    assert!(offset_of!(Aiocb, sigevent) == 80);
};

#[cfg(target_pointer_width = "32")]
const _: () = {
    assert!(size_of::<Sigevent>() == 44 && SIZE == 96);
    assert!(offset_of!(Aiocb, offset) == 4);
    assert!(offset_of!(Aiocb, buf) == 12);
    assert!(offset_of!(Aiocb, nbytes) == 16);
    assert!(offset_of!(Aiocb, opcode) == 32);
    assert!(STATUS == 40 && ERROR == 44 && KERNELINFO == 48);
    assert!(offset_of!(Aiocb, sigevent) == 52);
};

/// Bytes of a control block.
pub const SIZE: usize = size_of::<Aiocb>();
const STATUS: usize = offset_of!(Aiocb, status);
const ERROR: usize = offset_of!(Aiocb, error);
const KERNELINFO: usize = offset_of!(Aiocb, kernelinfo);

// SAFETY: numbers; the padding means nothing to the kernel.
unsafe impl Plain for Aiocb {}

/// A control block in memory that the kernel may write.
#[derive(Clone, Copy)]
pub struct Cb(Region);

impl Cb {
    /// The block at an offset of a region.
    ///
    /// # Panics
    /// When it is not inside or not aligned.
    pub fn at(region: &Region, offset: usize) -> Self {
        Self(region.part(offset, SIZE))
    }

    /// Its address, which is what the calls take.
    pub fn addr(&self) -> usize {
        self.0.addr()
    }

    /// Writes the whole block.
    pub fn set(&self, block: Aiocb) {
        self.0.put(0, block);
    }

    /// Reads the whole block.
    pub fn get(&self) -> Aiocb {
        self.0.get(0)
    }

    /// The result that the kernel stored.
    pub fn status(&self) -> i64 {
        self.0.get::<isize>(STATUS) as i64
    }

    /// The error that the kernel stored.
    pub fn error(&self) -> i64 {
        self.0.get::<isize>(ERROR) as i64
    }

    /// The job number that the kernel stored.
    pub fn kernelinfo(&self) -> i64 {
        self.0.get::<isize>(KERNELINFO) as i64
    }

    /// Overwrites the kernel's three words.
    pub fn set_private(&self, status: i64, error: i64, kernelinfo: i64) {
        self.0.put(STATUS, status as isize);
        self.0.put(ERROR, error as isize);
        self.0.put(KERNELINFO, kernelinfo as isize);
    }

    /// The kernel's three words: status, error, job number.
    pub fn private(&self) -> (i64, i64, i64) {
        (self.status(), self.error(), self.kernelinfo())
    }
}

/// A request without notification.
pub fn request(fd: i32, offset: i64, buf: usize, nbytes: usize) -> Aiocb {
    Aiocb { fildes: fd, offset, buf, nbytes, ..Aiocb::default() }
}

/// aio_read(2).
///
/// # Errors
/// Those of the call.
pub fn read(cb: usize) -> Result<()> {
    sys::call(255, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// aio_write(2).
///
/// # Errors
/// Those of the call.
pub fn write(cb: usize) -> Result<()> {
    sys::call(256, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// aio_readv(2).
///
/// # Errors
/// Those of the call.
pub fn readv(cb: usize) -> Result<()> {
    sys::call(579, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// aio_writev(2).
///
/// # Errors
/// Those of the call.
pub fn writev(cb: usize) -> Result<()> {
    sys::call(578, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// aio_fsync(2).
///
/// # Errors
/// Those of the call.
pub fn fsync(op: i32, cb: usize) -> Result<()> {
    sys::call(465, [op as usize, cb, 0, 0, 0, 0]).map(|_| ())
}

/// aio_mlock(2).
///
/// # Errors
/// Those of the call.
pub fn mlock(cb: usize) -> Result<()> {
    sys::call(543, [cb, 0, 0, 0, 0, 0]).map(|_| ())
}

/// lio_listio(2); `list` is the address of an array of addresses, `sig` that of a [`Sigevent`].
///
/// # Errors
/// Those of the call.
pub fn listio(mode: i32, list: usize, count: i32, sig: usize) -> Result<()> {
    sys::call(257, [mode as usize, list, count as usize, sig, 0, 0]).map(|_| ())
}

/// aio_error(2): the state of a request, as an errno, 0 when it went well. -1 for an address that
/// cannot be read.
///
/// # Errors
/// None is known.
pub fn error(cb: usize) -> Result<i32> {
    sys::call(317, [cb, 0, 0, 0, 0, 0]).map(|answer| answer as i32)
}

/// aio_return(2): the result of a finished request, which is then forgotten.
///
/// # Errors
/// The request's own, or EINVAL when it is not one that has finished.
pub fn return_(cb: usize) -> Result<i64> {
    sys::call(314, [cb, 0, 0, 0, 0, 0]).map(|answer| answer as i64)
}

/// aio_suspend(2) with everything given by address.
///
/// # Errors
/// Those of the call.
pub fn suspend_raw(list: usize, count: i32, timeout: usize) -> Result<()> {
    sys::call(315, [list, count as isize as usize, timeout, 0, 0, 0]).map(|_| ())
}

/// aio_suspend(2): waits until one of the requests has finished.
///
/// # Errors
/// EAGAIN after the time, EINTR after a signal.
pub fn suspend(list: &[usize], timeout: Option<Timespec>) -> Result<()> {
    let timeout_at = timeout.as_ref().map_or(0, |span| core::ptr::from_ref(span) as usize);
    suspend_raw(list.as_ptr() as usize, list.len() as i32, timeout_at)
}

/// aio_cancel(2); `cb` 0 for all requests of the descriptor.
///
/// # Errors
/// EBADF.
pub fn cancel(fd: i32, cb: usize) -> Result<i32> {
    sys::call(316, [fd as isize as usize, cb, 0, 0, 0, 0]).map(|answer| answer as i32)
}

/// aio_waitcomplete(2) with everything given by address.
///
/// # Errors
/// Those of the call, or of the request.
pub fn waitcomplete_raw(cbp: usize, timeout: usize) -> Result<i64> {
    sys::call(359, [cbp, timeout, 0, 0, 0, 0]).map(|answer| answer as i64)
}

/// What [`waitcomplete`] found: the address of the block, 0 if none, and the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completed {
    /// Address of the control block; 0 when the call itself failed.
    pub cb: usize,
    /// The request's result, or the call's error when `cb` is 0.
    pub result: Result<i64>,
}

/// aio_waitcomplete(2): the oldest finished request, which is then forgotten.
pub fn waitcomplete(timeout: Option<Timespec>) -> Completed {
    let mut cb = usize::MAX;
    let timeout_at = timeout.as_ref().map_or(0, |span| core::ptr::from_ref(span) as usize);
    let result = waitcomplete_raw(&raw mut cb as usize, timeout_at);
    Completed { cb, result }
}
