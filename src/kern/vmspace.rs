// SPDX-License-Identifier: BSD-2-Clause
//! Address spaces: an owned reference, and a worker living in one.

use core::marker::PhantomData;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::kproc::Worker;
use super::proc::LiveProc;

/// An owned reference to an address space. Dropping the last one frees it, which may sleep.
pub struct Vmspace(NonNull<sys::vmspace>);

// SAFETY: address spaces are counted and lock themselves.
unsafe impl Send for Vmspace {}

impl Vmspace {
    /// Takes a reference to a live process's address space. Does not sleep.
    ///
    /// `None` while the process is between two address spaces, which for a process that has not
    /// come to its exit or exec event means never.
    pub fn of(p: &LiveProc) -> Option<Vmspace> {
        // SAFETY: the process is live: LiveProc's invariant.
        NonNull::new(unsafe { sys::vmspace_acquire_ref(p.as_ptr()) }).map(Vmspace)
    }

    /// Whether this is still the process's address space.
    pub fn is_of(&self, p: &LiveProc) -> bool {
        // SAFETY: the process is live; the word is read once.
        let now = unsafe { (&raw const (*p.as_ptr()).p_vmspace).read_volatile() };
        now == self.0.as_ptr()
    }

    /// Takes a reference to the current process's address space.
    fn of_worker(worker: &Worker) -> Vmspace {
        // SAFETY: the current process is live.
        let vm = unsafe { sys::vmspace_acquire_ref((*worker.thread().as_ptr()).td_proc) };
        let Some(vm) = NonNull::new(vm) else { panic!("a running process without address space") };
        Vmspace(vm)
    }

    fn switch(&self) {
        // SAFETY: the current process is a worker, alone in it (a Home is made of a Worker and
        // not Send), and the reference keeps the address space.
        unsafe { sys::vmspace_switch_aio(self.0.as_ptr()) }
    }
}

impl Drop for Vmspace {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { sys::vmspace_free(self.0.as_ptr()) }
    }
}

/// A worker's own address space, to which it returns; made once at the worker's start.
pub struct Home {
    own: Vmspace,
    _not_send: PhantomData<*mut ()>,
}

impl Home {
    /// Remembers where the worker lives.
    pub fn new(worker: &Worker) -> Home {
        Home { own: Vmspace::of_worker(worker), _not_send: PhantomData }
    }

    /// Moves the worker into `vm`, until the visit ends. May sleep.
    pub fn visit(&self, vm: &Vmspace) -> Visit<'_> {
        vm.switch();
        Visit { home: self, vm: vm.0 }
    }
}

/// A worker's stay in a user's address space, which the kernel's switch keeps referenced; the
/// worker goes home when this is dropped, which may sleep.
pub struct Visit<'a> {
    home: &'a Home,
    vm: NonNull<sys::vmspace>,
}

impl Visit<'_> {
    /// Whether this is where the worker is.
    pub fn is_in(&self, vm: &Vmspace) -> bool {
        self.vm == vm.0
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.home.own.switch();
    }
}
