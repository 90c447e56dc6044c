// SPDX-License-Identifier: BSD-2-Clause
//! Reading what is in the page cache, without waiting for anything.

use core::ptr::NonNull;

use sys_bindings as sys;

use super::file::File;
use super::proc::Curthread;
use super::uio::Buffer;
use super::user::UserPtr;

/// The most bytes that are read in this way; what the file system takes at once.
const MOST: usize = 64 * 1024;

impl File {
    /// Reads `len` bytes from `offset` to `base` if all of it is in the page cache and in the user's resident
    /// memory; `None` when that is not so, whatever has been copied by then.
    ///
    /// Only for UFS: the operation is meant not to wait, but on tmpfs it may.
    ///
    /// # Context
    /// A thread of the process; no locks. Does not sleep for I/O or for another's lock.
    pub fn read_resident(
        &self,
        td: Curthread,
        base: UserPtr,
        len: usize,
        offset: i64,
    ) -> Option<usize> {
        let end = offset.checked_add(i64::try_from(len).ok()?)?;
        if len == 0 || len > MOST || offset < 0 || !self.is_cacheable() {
            return None;
        }
        let vp = self.vnode()?.as_ptr();
        let fp = self.as_ptr();
        // SAFETY: the file references the vnode. The range is unlocked below, by this thread.
        let cookie = unsafe { sys::aio_rs_rangelock_tryrlock(vp, offset, end) };
        if cookie.is_null() {
            return None;
        }
        let (code, ..) = Buffer::One { base, len }.with_uio(false, offset, td.as_ptr(), |uio| {
            // SAFETY: the file references the vnode and its credential. Page faults are off
            // meanwhile, so that the copy cannot wait for a page of the user's.
            unsafe {
                let faults = sys::vm_fault_disable_pagefaults();
                let code = sys::aio_rs_vop_read_pgcache(vp, uio, (*fp).f_cred);
                sys::vm_fault_enable_pagefaults(faults);
                code
            }
        });
        // SAFETY: locked above.
        unsafe { sys::aio_rs_rangelock_unlock(vp, cookie) };
        if code != 0 {
            return None;
        }
        // SAFETY: the next read's expected place, a hint that read(2) too stores without a lock.
        unsafe { (&raw mut (*fp).f_nextoff[0]).write_volatile(end) };
        Some(len)
    }

    /// Whether the file can be read from the page cache alone.
    fn is_cacheable(&self) -> bool {
        let Some(vp) = self.vnode() else { return false };
        let vp = vp.as_ptr();
        // SAFETY: the file references the vnode; the words are read once, as the kernel does. A
        // file system's type is constant, and the mount, while it can be seen here, is kept by the
        // open file. The flag, if there is one, is the kernel's.
        unsafe {
            let direct = (*self.as_ptr()).f_flag & sys::O_DIRECT != 0;
            let flags = (&raw const (*vp).v_irflag).read_volatile() as u32;
            let wanted = sys::VIRF_DOOMED | sys::VIRF_PGREAD;
            if direct
                || u32::from((*vp).v_type) != u32::from(sys::VREG)
                || flags & wanted != sys::VIRF_PGREAD
                || sys::aio_rs_mac_checks_reads().as_ref().is_some_and(|checks| *checks)
            {
                return false;
            }
            let Some(mount) = NonNull::new((&raw const (*vp).v_mount).read_volatile()) else {
                return false;
            };
            let name = &(*(*mount.as_ptr()).mnt_vfc).vfc_name;
            name.iter().zip(b"ufs\0").all(|(&a, &b)| a.cast_unsigned() == b)
        }
    }
}
