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
}

impl Drop for Cred {
    fn drop(&mut self) {
        // SAFETY: the reference is ours. crfree does not sleep.
        unsafe { sys::crfree(self.0.as_ptr()) }
    }
}

/// The current thread acts with another credential until this is dropped.
pub struct Borrowed<'a> {
    td: Curthread<'a>,
    saved: *mut sys::ucred,
    _cred: &'a Cred,
}

impl<'a> Borrowed<'a> {
    /// Gives `cred` to a worker.
    pub fn new(worker: &Worker<'a>, cred: &'a Cred) -> Borrowed<'a> {
        let td = worker.thread();
        // SAFETY: a thread's own td_ucred is read by itself only; the reference in `cred` outlives
        // the loan by its lifetime. The kernel's own AIO workers do the same.
        let saved = unsafe { core::mem::replace(&mut (*td.as_ptr()).td_ucred, cred.0.as_ptr()) };
        Borrowed { td, saved, _cred: cred }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        // SAFETY: as in new; loans nest, so the saved one is what was there before.
        unsafe { (*self.td.as_ptr()).td_ucred = self.saved };
    }
}
