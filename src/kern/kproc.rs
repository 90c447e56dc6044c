// SPDX-License-Identifier: BSD-2-Clause
//! kproc(9): worker processes. Their main function is the gate's, so that the engine's text can go
//! while the last of them is still in exit.

use core::ffi::{CStr, c_int, c_void};

use sys_bindings as sys;

use super::proc::Curthread;
use crate::model::Errno;

/// A worker: the only thread of a kernel process of ours.
pub struct Worker<'a>(Curthread<'a>);

impl<'a> Worker<'a> {
    /// Takes the caller's word for it, and masks all signals: one that the kernel sends to the
    /// thread that writes (SIGXFSZ) would otherwise stay and cut every interruptible sleep short.
    ///
    /// # Safety
    /// The current thread is the only one of a kernel process made by [`create`], for as long as
    /// `'a`.
    pub unsafe fn new(td: Curthread<'a>) -> Worker<'a> {
        td.mask_signals();
        Worker(td)
    }

    /// Takes the caller's word for it, of a worker of the kernel's own: it serves sockets, moves
    /// from address space to address space, and goes home by itself.
    ///
    /// # Safety
    /// The current thread is the only one of a kernel process that runs a socket's AIO task, for as
    /// long as `'a`.
    pub unsafe fn soaiod(td: Curthread<'a>) -> Worker<'a> {
        Worker(td)
    }

    /// The worker's thread.
    pub fn thread(&self) -> Curthread<'a> {
        self.0
    }
}

/// Starts a kernel process, named `name` and its number if it has one, that runs the gate's worker
/// entry with `argument`. Sleeps; must not be called with a mutex held. A signal pending for the
/// caller makes it fail.
///
/// # Errors
/// As fork(2): EAGAIN at the limit of processes.
pub fn create(name: &'static CStr, number: Option<u32>, argument: usize) -> Result<(), Errno> {
    let mut p = core::ptr::null_mut();
    let argument: *mut c_void = core::ptr::without_provenance_mut(argument);
    let format = if number.is_some() { c"%s%u" } else { c"%s" };
    // SAFETY: the main function is resident; both formats take what is passed, and ignore more.
    let code = unsafe {
        sys::kproc_create(
            Some(worker_main),
            argument,
            &mut p,
            sys::RFHIGHPID as c_int,
            0,
            format.as_ptr(),
            name.as_ptr(),
            number.unwrap_or(0),
        )
    };
    Errno::check(code)
}

use sys::gate::aio_rs_gate_worker as worker_main;
