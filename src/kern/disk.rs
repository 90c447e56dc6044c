// SPDX-License-Identifier: BSD-2-Clause
//! Disk devices (cdevsw(9)): a reference for the time of a call into the driver, and what a driver
//! takes.

use core::ffi::c_int;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::file::File;
use super::kproc::Worker;
use super::uio::Buffer;
use crate::model::Errno;

/// A device that does not go while this is there. To be held for a bounded time: whoever removes
/// the device waits.
pub struct Device {
    dev: NonNull<sys::cdev>,
    switch: NonNull<sys::cdevsw>,
    counted: c_int,
    block: usize,
}

// SAFETY: a counted reference, of no thread's.
unsafe impl Send for Device {}

impl Device {
    /// The device behind an open disk device.
    ///
    /// # Errors
    /// ENXIO: it is gone.
    pub fn of(file: &File) -> Result<Device, Errno> {
        let vnode = file.vnode().ok_or(Errno::ENXIO)?.as_ptr();
        let mut dev = core::ptr::null_mut();
        let mut counted = 0;
        // SAFETY: the file references the vnode, and no lock is held.
        let switch = unsafe { sys::devvn_refthread(vnode, &mut dev, &mut counted) };
        // SAFETY: as above; the block size does not change.
        let block = unsafe { (*vnode).v_bufobj.bo_bsize };
        let (Some(switch), Some(dev)) = (NonNull::new(switch), NonNull::new(dev)) else {
            return Err(Errno::ENXIO);
        };
        Ok(Device { dev, switch, counted, block: usize::try_from(block).unwrap_or(0) })
    }

    /// The size in bytes a transfer is to be a multiple of; 0 when the device has no notion of it.
    pub fn block_size(&self) -> usize {
        self.block
    }

    /// The most bytes of one transfer.
    pub fn iosize_max(&self) -> usize {
        // SAFETY: the device is there; drivers set it when they make it.
        usize::try_from(unsafe { self.dev.as_ref().si_iosize_max }).unwrap_or(0)
    }

    /// Whether it takes buffers that are not mapped, and the kernel allows them.
    pub fn takes_unmapped(&self) -> bool {
        // SAFETY: as above; a tunable set at boot.
        unsafe {
            self.dev.as_ref().si_flags & sys::SI_UNMAPPED != 0 && sys::unmapped_buf_allowed != 0
        }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::cdev {
        self.dev.as_ptr()
    }

    /// Hands a bio to the driver. Sleeps, if the driver does; the bio may be done on return.
    ///
    /// # Safety
    /// A complete bio for this device that stays until it is done.
    pub(super) unsafe fn strategy(&self, bp: *mut sys::bio) {
        // SAFETY: the reference keeps the driver's table.
        let Some(strategy) = (unsafe { self.switch.as_ref().d_strategy }) else {
            panic!("a disk device without strategy routine")
        };
        // SAFETY: the caller's promise.
        unsafe { strategy(bp) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { sys::dev_relthread(self.dev.as_ptr(), self.counted) }
    }
}

/// The most bytes of one bio.
pub fn maxphys() -> usize {
    // SAFETY: set at boot.
    usize::try_from(unsafe { sys::maxphys }).unwrap_or(usize::MAX)
}

impl File {
    /// Asks the device for the size of its sectors. May sleep.
    ///
    /// # Errors
    /// What the driver says; ENXIO: the device is gone.
    pub fn sector_size(&self) -> Result<usize, Errno> {
        let mut size: u32 = 0;
        self.ioctl(sys::AIO_RS_DIOCGSECTORSIZE, (&raw mut size).cast())?;
        Ok(size as usize)
    }

    /// Has the device write out what it caches, as a worker. Sleeps.
    ///
    /// # Errors
    /// EPERM: nobody has it open for writing. Else what the driver says.
    pub fn flush(&self, _worker: &Worker) -> Result<(), Errno> {
        self.ioctl(sys::AIO_RS_DIOCGFLUSH, core::ptr::null_mut())
    }

    fn ioctl(&self, command: u64, data: *mut core::ffi::c_void) -> Result<(), Errno> {
        let fp = self.as_ptr();
        // SAFETY: the file is referenced, its credential with it; both callers pass what the
        // command wants.
        Errno::check(unsafe {
            sys::aio_rs_fo_ioctl(fp, command, data, (*fp).f_cred, super::proc::curthread())
        })
    }

    /// As [`File::transfer`], through a buffer of `chunk` bytes in the kernel, for a device that does
    /// not take the user's elements one by one.
    pub fn bounce(
        &self,
        worker: &Worker,
        buffer: &mut Buffer,
        write: bool,
        offset: i64,
        chunk: usize,
    ) -> (usize, Result<(), Errno>) {
        let td = worker.thread().as_ptr();
        let total = buffer.len();
        let mut memory = alloc::vec![0u8; chunk.min(total)];
        let mut moved = 0;
        let mut end = Ok(());
        buffer.with_uio(write, offset, td, |uio| {
            while moved < total && end.is_ok() {
                let len = memory.len().min(total - moved);
                let at = offset.wrapping_add_unsigned(moved as u64);
                let data = &mut memory[..len];
                if write {
                    end = uiomove(data, uio);
                    if end.is_err() {
                        break;
                    }
                }
                let (now, ended) = self.transfer_kernel(data, write, at, td);
                end = ended;
                if !write {
                    // What was read before an error is the process's too.
                    end = end.and(uiomove(&mut data[..now], uio));
                }
                moved += now;
                if now < len {
                    break;
                }
            }
            0
        });
        (moved, end)
    }
}

/// Moves bytes between the kernel and a uio, to the former if the uio is one that writes.
fn uiomove(data: &mut [u8], uio: *mut sys::uio) -> Result<(), Errno> {
    let Ok(len) = c_int::try_from(data.len()) else { return Err(Errno::EINVAL) };
    // SAFETY: the slice is valid for as many bytes; the uio is its transfer's.
    Errno::check(unsafe { sys::uiomove(data.as_mut_ptr().cast(), len, uio) })
}
