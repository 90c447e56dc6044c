// SPDX-License-Identifier: BSD-2-Clause
//! Credentials (ucred(9)): an owned reference, and borrowing one for the current thread.

use core::ptr::NonNull;

use sys_bindings as sys;

use super::kproc::Worker;
use super::proc::Curthread;

/// An owned reference to a credential.
pub struct Cred(NonNull<sys::ucred>);

// SAFETY: credentials are immutable once shared and counted by crhold/crfree from any thread.
unsafe impl Send for Cred {}

impl Cred {
    /// Takes a reference to the thread's credential.
    pub fn of(td: Curthread) -> Cred {
        // SAFETY: the current thread's credential is valid and referenced by it.
        let cred = unsafe { sys::crhold((*td.as_ptr()).td_ucred) };
        let Some(cred) = NonNull::new(cred) else { panic!("a thread without credential") };
        Cred(cred)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ucred {
        self.0.as_ptr()
    }
}

impl Drop for Cred {
    fn drop(&mut self) {
        // SAFETY: the reference is ours. crfree does not sleep.
        unsafe { sys::crfree(self.0.as_ptr()) }
    }
}

impl Cred {
    /// Calls `action` while the worker acts with this credential.
    pub fn lend<R>(&self, worker: &Worker, action: impl FnOnce() -> R) -> R {
        let td = worker.thread().as_ptr();
        // SAFETY: the thread is a worker of ours: nobody but itself reads or changes its
        // credential, and the loan ends before the reference does. The kernel's own AIO workers do
        // the same.
        let own = unsafe { core::mem::replace(&mut (*td).td_ucred, self.0.as_ptr()) };
        let result = action();
        // SAFETY: as above.
        unsafe { (*td).td_ucred = own };
        result
    }
}
