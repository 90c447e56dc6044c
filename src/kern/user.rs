// SPDX-License-Identifier: BSD-2-Clause
//! User memory: an address is an allegation until copyin(9), copyout(9), fetch(9) or store(9) has
//! tried it.
//!
//! # Context
//! All of these may sleep (the page may have to be read in) and act on the address space of the
//! current process. None may be called with a mutex held.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use sys_bindings as sys;

use crate::model::Errno;

/// An address in the current process, as the process named it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserPtr(u64);

/// Types of which every bit pattern is a value.
///
/// # Safety
/// The type has no padding and no invalid value.
pub unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: two integers.
unsafe impl Plain for sys::timespec {}
// SAFETY: integers and raw pointers; sigevent's padding is never looked at.
unsafe impl Plain for sys::aiocb {}

impl UserPtr {
    /// Takes an address for what it may be.
    pub const fn new(address: u64) -> UserPtr {
        UserPtr(address)
    }

    /// The bare address.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// Whether the process passed NULL.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The address `bytes` further on; wraps, and then faults when used.
    pub const fn offset(self, bytes: usize) -> UserPtr {
        UserPtr(self.0.wrapping_add(bytes as u64))
    }

    fn as_ptr(self) -> *mut c_void {
        core::ptr::without_provenance_mut(self.0 as usize)
    }

    /// Reads a value. EFAULT when it is not all readable.
    pub fn copyin<T: Plain>(self) -> Result<T, Errno> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: copyin checks the user's side; the kernel's is ours and large enough.
        let code = unsafe { sys::copyin(self.as_ptr(), value.as_mut_ptr().cast(), size_of::<T>()) };
        Errno::check(code)?;
        // SAFETY: copyin filled all of it, and every pattern is a value.
        Ok(unsafe { value.assume_init() })
    }

    /// Reads into `values`. EFAULT when it is not all readable.
    pub fn copyin_slice<T: Plain>(self, values: &mut [T]) -> Result<(), Errno> {
        // SAFETY: as in copyin; a partly written slice of plain values is still one.
        let code =
            unsafe { sys::copyin(self.as_ptr(), values.as_mut_ptr().cast(), size_of_val(values)) };
        Errno::check(code)
    }

    /// Reads one word as fuword(9) does: -1 also for a fault.
    pub fn fuword(self) -> i64 {
        // SAFETY: fuword checks the address.
        unsafe { sys::fuword(self.as_ptr()) }
    }

    /// Writes one word. EFAULT when it is not writable.
    pub fn suword(self, word: i64) -> Result<(), Errno> {
        // SAFETY: suword checks the address.
        let code = unsafe { sys::suword(self.as_ptr(), word) };
        if code == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

/// A struct aiocb in the process: what may be stored in it and when is aio_read(2)'s contract.
///
/// Stores that fault are ignored where the result does not depend on them, as by the built-in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserAiocb(UserPtr);

/// What a request asks for, copied in once.
pub struct Aiocb {
    pub fd: i32,
    pub offset: i64,
    /// The buffer, or the array of iovecs.
    pub buffer: UserPtr,
    /// The buffer's length, or the number of iovecs.
    pub nbytes: usize,
    sigev_notify: u32,
    sigev_signo: i32,
}

/// How the end of a request is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    None,
    Signal,
    Kevent,
}

impl UserAiocb {
    /// Takes an address for what it may be.
    pub const fn at(address: u64) -> UserAiocb {
        UserAiocb(UserPtr::new(address))
    }

    /// The bare address, by which the request is known.
    pub const fn address(self) -> u64 {
        self.0.address()
    }

    const STATUS: usize = core::mem::offset_of!(sys::aiocb, _aiocb_private.status);
    const ERROR: usize = core::mem::offset_of!(sys::aiocb, _aiocb_private.error);
    /// The word after `error`: `kernelinfo`, called `spare` from FreeBSD 15 on.
    const KERNELINFO: usize = Self::ERROR + size_of::<i64>();

    /// Marks the aiocb as submitted and nothing known: the first thing every submission does.
    pub fn store_initial(self) {
        self.store_status(-1);
        self.store_error(0);
        if HAS_KERNELINFO {
            let _ = self.0.offset(Self::KERNELINFO).suword(-1);
        }
    }

    /// Stores the status word: bytes moved, or -1.
    pub fn store_status(self, status: i64) {
        let _ = self.0.offset(Self::STATUS).suword(status);
    }

    /// Stores the error word.
    pub fn store_error(self, error: i64) {
        let _ = self.0.offset(Self::ERROR).suword(error);
    }

    /// Stores the request's number, where the kernel's ABI has it.
    ///
    /// # Errors
    /// EINVAL: the aiocb is not writable. A request without this word could not be told from others
    /// by a debugger; the built-in refuses it so.
    pub fn store_kernelinfo(self, number: i64) -> Result<(), Errno> {
        if HAS_KERNELINFO {
            self.0.offset(Self::KERNELINFO).suword(number).map_err(|_| Errno::EINVAL)?;
        }
        Ok(())
    }

    /// Reads the status word back; -1 also when it cannot be read.
    pub fn fetch_status(self) -> i64 {
        self.0.offset(Self::STATUS).fuword()
    }

    /// Reads the error word back; -1 also when it cannot be read.
    pub fn fetch_error(self) -> i64 {
        self.0.offset(Self::ERROR).fuword()
    }

    /// Copies the aiocb in.
    ///
    /// # Errors
    /// EFAULT.
    pub fn copyin(self) -> Result<Aiocb, Errno> {
        let raw: sys::aiocb = self.0.copyin()?;
        Ok(Aiocb {
            fd: raw.aio_fildes,
            offset: raw.aio_offset,
            buffer: UserPtr::new(raw.aio_buf as u64),
            nbytes: raw.aio_nbytes,
            sigev_notify: raw.aio_sigevent.sigev_notify.cast_unsigned(),
            sigev_signo: raw.aio_sigevent.sigev_signo,
        })
    }
}

impl Aiocb {
    /// The number of iovecs, as the kernel's type for it has it.
    pub fn iovcnt(&self) -> u32 {
        self.nbytes as u32
    }

    /// How the end is to be told.
    ///
    /// # Errors
    /// EINVAL: an unknown way, or a signal number out of range.
    pub fn notify(&self) -> Result<Notify, Errno> {
        match self.sigev_notify {
            sys::SIGEV_NONE => Ok(Notify::None),
            sys::SIGEV_KEVENT => Ok(Notify::Kevent),
            sys::SIGEV_SIGNAL | sys::SIGEV_THREAD_ID => {
                // The kernel's signals are 1 to _SIG_MAXSIG.
                let valid = (1..=sys::_SIG_MAXSIG.cast_signed()).contains(&self.sigev_signo);
                if valid { Ok(Notify::Signal) } else { Err(Errno::EINVAL) }
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// FreeBSD 15 does not store a number any more.
const HAS_KERNELINFO: bool = sys::FREEBSD_VERSION < 1_500_000;
