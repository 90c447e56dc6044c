// SPDX-License-Identifier: BSD-2-Clause
//! uio(9): the user's buffers of one transfer.

use core::ffi::c_int;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::user::{Abi, UserPtr};
use crate::model::Errno;

/// Where a transfer's bytes are in the process.
pub enum Buffer {
    /// One range; not checked before the transfer.
    One { base: UserPtr, len: usize },
    /// A vector copied in with its array.
    Vector(Vector),
}

/// What copyinuio(9) made: a uio with its iovecs, in one allocation.
pub struct Vector(NonNull<sys::uio>);

// SAFETY: kernel memory that nothing else refers to.
unsafe impl Send for Vector {}

impl Buffer {
    /// Copies a vector in, in the ABI of `iov`. May sleep.
    ///
    /// # Errors
    /// EFAULT: the array is not readable. EINVAL: more than 1,024 elements, or lengths whose sum
    /// overflows.
    pub fn copyinuio(abi: Abi, iov: UserPtr, count: u32) -> Result<Buffer, Errno> {
        let mut uio = core::ptr::null_mut();
        let base: *const sys::iovec = core::ptr::without_provenance(iov.address() as usize);
        // SAFETY: both check the user's array and allocate the result. A kernel without the 32-bit
        // function has no 32-bit programs.
        let code = unsafe {
            if abi.is_32_bit() {
                sys::aio_rs_copyinuio32(base.cast_mut(), count, &mut uio)
            } else {
                sys::copyinuio(base, count, &mut uio)
            }
        };
        Errno::check(code)?;
        match NonNull::new(uio) {
            Some(uio) => Ok(Buffer::Vector(Vector(uio))),
            None => Err(Errno::EFAULT),
        }
    }

    /// The bytes to be moved.
    pub fn len(&self) -> usize {
        match self {
            Buffer::One { len, .. } => *len,
            // SAFETY: ours, and initialised by copyinuio.
            Buffer::Vector(vector) => unsafe { (*vector.0.as_ptr()).uio_resid }.unsigned_abs(),
        }
    }

    /// Its elements, in order: address and length in bytes.
    pub fn elements(&self) -> impl Iterator<Item = (UserPtr, usize)> + Clone + '_ {
        let one = match self {
            Buffer::One { base, len } => Some((*base, *len)),
            Buffer::Vector(_) => None,
        };
        let vector: &[sys::iovec] = match self {
            Buffer::One { .. } => &[],
            // SAFETY: copyinuio made an array of so many; only a transfer, which wants the buffer
            // exclusively, changes it.
            Buffer::Vector(vector) => unsafe {
                let uio = vector.0.as_ref();
                core::slice::from_raw_parts(uio.uio_iov, uio.uio_iovcnt.unsigned_abs() as usize)
            },
        };
        let vector =
            vector.iter().map(|iov| (UserPtr::new(iov.iov_base.addr() as u64), iov.iov_len));
        one.into_iter().chain(vector)
    }

    /// Calls `transfer` with a uio over the buffer, and returns its code, the bytes moved, and where
    /// in the file the rest would have ended.
    pub(super) fn with_uio(
        &mut self,
        write: bool,
        offset: i64,
        td: *mut sys::thread,
        transfer: impl FnOnce(*mut sys::uio) -> c_int,
    ) -> (c_int, usize, u64) {
        let total = self.len();
        let direction = if write { sys::UIO_WRITE } else { sys::UIO_READ };
        let mut iov = sys::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        let mut uio;
        let uio = match self {
            Buffer::One { base, len } => {
                iov.iov_base = core::ptr::without_provenance_mut(base.address() as usize);
                iov.iov_len = *len;
                uio = sys::uio {
                    uio_iov: &mut iov,
                    uio_iovcnt: 1,
                    uio_offset: offset,
                    uio_resid: len.cast_signed(),
                    uio_segflg: sys::UIO_USERSPACE,
                    uio_rw: direction,
                    uio_td: td,
                };
                &raw mut uio
            }
            Buffer::Vector(vector) => {
                let uio = vector.0.as_ptr();
                // SAFETY: ours alone; a transfer consumes it once.
                unsafe {
                    (*uio).uio_offset = offset;
                    (*uio).uio_segflg = sys::UIO_USERSPACE;
                    (*uio).uio_rw = direction;
                    (*uio).uio_td = td;
                }
                uio
            }
        };
        let code = transfer(uio);
        // SAFETY: the uio outlives the call above.
        let (left, at) = unsafe { ((*uio).uio_resid.unsigned_abs(), (*uio).uio_offset) };
        let end = at.cast_unsigned().saturating_add(left as u64);
        (code, total.saturating_sub(left), end)
    }
}

/// Calls `transfer` with a uio over memory of the kernel's, and returns the bytes moved and how it
/// ended.
pub(super) fn with_kernel_uio(
    data: &mut [u8],
    write: bool,
    offset: i64,
    td: *mut sys::thread,
    transfer: impl FnOnce(*mut sys::uio) -> c_int,
) -> (usize, Result<(), Errno>) {
    let total = data.len();
    let mut iov = sys::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: total };
    let mut uio = sys::uio {
        uio_iov: &mut iov,
        uio_iovcnt: 1,
        uio_offset: offset,
        uio_resid: total.cast_signed(),
        uio_segflg: sys::UIO_SYSSPACE,
        uio_rw: if write { sys::UIO_WRITE } else { sys::UIO_READ },
        uio_td: td,
    };
    let code = transfer(&mut uio);
    (total.saturating_sub(uio.uio_resid.unsigned_abs()), Errno::check(code))
}

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: copyinuio allocated it with this type; the transfer is over.
        unsafe { sys::free(self.0.as_ptr().cast(), (&raw mut sys::M_IOV).cast()) }
    }
}

/// The most bytes one transfer may have (SSIZE_MAX, or what `debug.iosize_max_clamp` says).
pub fn iosize_max() -> usize {
    // SAFETY: reads a variable.
    unsafe { sys::iosize_max() }
}
