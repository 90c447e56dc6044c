// SPDX-License-Identifier: BSD-2-Clause
//! getrlimit(2): the limit of a file's size, which the kernel looks up in the thread that writes.

use core::ptr::NonNull;

use sys_bindings as sys;

use super::kproc::Worker;
use super::proc::Curthread;

/// A submitter's limits, kept because one of them is finite. Dropping does not sleep.
pub struct FileSize(NonNull<sys::plimit>);

// SAFETY: limits are counted, and never changed while shared.
unsafe impl Send for FileSize {}

impl FileSize {
    /// The thread's limits; `None` where the size of files has none, as for a worker.
    pub fn of(td: Curthread) -> Option<FileSize> {
        // SAFETY: a thread's own limits, which only it replaces.
        unsafe {
            let limits = (*td.as_ptr()).td_limit;
            if (*limits).pl_rlimit[sys::RLIMIT_FSIZE as usize].rlim_cur == sys::AIO_RS_RLIM_INFINITY
            {
                return None;
            }
            NonNull::new(sys::lim_hold(limits)).map(FileSize)
        }
    }

    /// Whether a file must not reach so far.
    pub fn is_exceeded(&self, reach: u64) -> bool {
        // SAFETY: the limits are referenced, and not changed while shared.
        let limit = unsafe { self.0.as_ref() }.pl_rlimit[sys::RLIMIT_FSIZE as usize].rlim_cur;
        reach > limit.cast_unsigned()
    }

    /// Runs `work` with these limits as the worker's own.
    pub fn lend<R>(&self, worker: &Worker, work: impl FnOnce() -> R) -> R {
        let td = worker.thread().as_ptr();
        // SAFETY: a thread's own limits, put back below; ours are held meanwhile, and a kernel
        // process never returns to user mode, where the kernel would exchange them.
        let own = unsafe { core::mem::replace(&mut (*td).td_limit, self.0.as_ptr()) };
        let result = work();
        // SAFETY: as above.
        unsafe { (*td).td_limit = own };
        result
    }
}

impl Drop for FileSize {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { sys::lim_free(self.0.as_ptr()) }
    }
}
