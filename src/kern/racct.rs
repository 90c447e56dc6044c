// SPDX-License-Identifier: BSD-2-Clause
//! racct(9): a process is charged for the I/O that others do for it, where the kernel accounts for
//! resources at all (`kern.racct.enable`). What it does itself the kernel charges.

use core::ffi::c_int;

use sys_bindings as sys;

use super::proc::{Curthread, LiveProc};
use crate::model::table::Outcome;

/// Whether the kernel accounts for resources.
fn is_enabled() -> bool {
    // SAFETY: the kernel's own switch, set at boot, in a kernel that has it.
    unsafe { sys::aio_rs_racct_enabled().as_ref().is_some_and(|enabled| *enabled) }
}

/// Bytes a second and operations a second, by the kernel's numbers.
const READING: [u32; 2] = [sys::RACCT_READBPS, sys::RACCT_READIOPS];
const WRITING: [u32; 2] = [sys::RACCT_WRITEBPS, sys::RACCT_WRITEIOPS];

/// Adds to what a process is charged; limits of these slow it down, and refuse nothing.
///
/// # Safety
/// The process is there, and the kernel accounts for resources.
unsafe fn charge(p: *mut sys::proc_, [bps, iops]: [u32; 2], bytes: u64, operations: u64) {
    // SAFETY: by the caller; the process lock is what the call wants.
    unsafe {
        sys::aio_rs_proc_lock(p);
        sys::aio_rs_racct_add(p, bps as c_int, bytes);
        sys::aio_rs_racct_add(p, iops as c_int, operations);
        sys::aio_rs_proc_unlock(p);
    }
}

impl LiveProc {
    /// Charges the process for a request that a worker performed: as many operations as the
    /// worker's thread counted, and the bytes the request moved, if there was any. (The kernel
    /// has charged the worker, with the size of each operation.)
    ///
    /// # Context
    /// Takes the process lock; does not sleep.
    #[inline]
    pub fn charge(&self, outcome: &Outcome) {
        let usage = &outcome.usage;
        if (usage.inblock | usage.oublock) != 0 && is_enabled() {
            self.charge_enabled(outcome);
        }
    }

    #[cold]
    #[inline(never)]
    fn charge_enabled(&self, outcome: &Outcome) {
        let usage = &outcome.usage;
        let bytes = u64::try_from(outcome.status).unwrap_or(0);
        let (read, written) = if usage.oublock > 0 { (0, bytes) } else { (bytes, 0) };
        // SAFETY: the process is live.
        unsafe {
            charge(self.as_ptr(), READING, read, u64::from(usage.inblock));
            charge(self.as_ptr(), WRITING, written, u64::from(usage.oublock));
        }
    }
}

impl Curthread<'_> {
    /// Charges the thread's process for a transfer of a disk that it is about to launch, in so
    /// many operations.
    ///
    /// # Context
    /// No mutex of ours is held, as it takes the process lock; does not sleep.
    #[inline(never)]
    pub fn charge_transfer(self, write: bool, bytes: usize, operations: usize) {
        if !is_enabled() {
            return;
        }
        let kinds = if write { WRITING } else { READING };
        // SAFETY: the thread's own process.
        unsafe { charge(self.proc_ptr(), kinds, bytes as u64, operations as u64) };
    }
}
