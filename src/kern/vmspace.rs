// SPDX-License-Identifier: BSD-2-Clause
//! Address spaces: an owned reference, and a worker living in one.

use core::marker::PhantomData;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::cred::Cred;
use super::kproc::Worker;
use super::proc::{Curthread, WaitedProc};
use super::user::UserPtr;
use crate::model::Errno;

/// An owned reference to an address space. Dropping the last one frees it, which may sleep.
pub struct Vmspace(NonNull<sys::vmspace>);

// SAFETY: address spaces are counted and lock themselves.
unsafe impl Send for Vmspace {}

impl Vmspace {
    /// Takes a reference to the current process's address space. Context: a thread of the process.
    pub fn of(td: Curthread) -> Vmspace {
        // SAFETY: the current process is there, and has an address space until its last thread
        // gives it up in exit.
        let vm = unsafe { sys::vmspace_acquire_ref((*td.as_ptr()).td_proc) };
        let Some(vm) = NonNull::new(vm) else { panic!("a running process without address space") };
        Vmspace(vm)
    }

    /// Moves a kernel's worker here, where it stays until its next task, or until it is idle.
    pub fn lend(&self, _soaiod: &Worker) {
        self.switch();
    }

    fn switch(&self) {
        // SAFETY: the current process is a worker, alone in it (whoever calls this has a Worker, or a
        // Home made of one, and neither is Send), and the reference keeps the address space.
        unsafe { sys::vmspace_switch_aio(self.0.as_ptr()) }
    }
}

impl Drop for Vmspace {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { sys::vmspace_free(self.0.as_ptr()) }
    }
}

/// Keeps pages of a process in memory (mlock(2)), as far as its limits and the submitter's credential
/// allow. Sleeps.
///
/// # Errors
/// EPERM, ENOMEM, EINVAL as mlock(2). ENOMEM too when the process has exchanged its address space
/// since (rfork(2)): the worker is in the old one, and holds only that.
pub fn wire(
    worker: &Worker,
    process: &WaitedProc,
    cred: &Cred,
    base: UserPtr,
    len: usize,
) -> Result<(), Errno> {
    // SAFETY: the process waits for the request this is done for; the credential is referenced. A
    // process's address space is read once, as the kernel does.
    Errno::check(unsafe {
        let here = (*(*worker.thread().as_ptr()).td_proc).p_vmspace;
        if (&raw const (*process.as_ptr()).p_vmspace).read_volatile() != here {
            return Err(Errno::ENOMEM);
        }
        sys::kern_mlock(process.as_ptr(), cred.as_ptr(), base.address() as usize, len)
    })
}

/// A worker's own address space, to which it returns; made once at the worker's start.
pub struct Home {
    own: Vmspace,
    away: Away,
    _not_send: PhantomData<*mut ()>,
}

/// Where a worker is.
enum Away {
    No,
    /// There; the kernel's switch holds a reference too.
    In(Vmspace),
    /// Somewhere; the only reference is the kernel's.
    Lent,
}

impl Home {
    /// Remembers where the worker lives.
    pub fn new(worker: &Worker) -> Home {
        Home { own: Vmspace::of(worker.thread()), away: Away::No, _not_send: PhantomData }
    }

    /// Moves the worker into `vm`, unless it is there. May sleep.
    pub fn visit(&mut self, vm: Vmspace) {
        if let Away::In(away) = &self.away
            && away.0 == vm.0
        {
            return;
        }
        vm.switch();
        self.away = Away::In(vm);
    }

    /// As [`Home::visit`], and `vm` stays the caller's.
    pub fn lodge(&mut self, vm: &Vmspace) {
        vm.switch();
        self.away = Away::Lent;
    }

    /// Whether the worker is in another address space than its own.
    pub fn is_away(&self) -> bool {
        !matches!(self.away, Away::No)
    }

    /// Moves the worker home. May sleep.
    pub fn go_back(&mut self) {
        if self.is_away() {
            self.own.switch();
            self.away = Away::No;
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.go_back();
    }
}
