// SPDX-License-Identifier: BSD-2-Clause
//! The contract between `aio_rs_gate.ko`, which stays resident, and `aio_rs.ko`, which comes and
//! goes: one versioned table, handed over at attach.
//!
//! A change that moves or retypes a field raises [`VERSION`]; a field added at the end only makes
//! [`Ops`] larger. A gate accepts a table of its own version that is at least as large as the one
//! it was built with, so a newer engine runs on an older gate as long as it does not need what
//! that gate lacks.

use core::ffi::{c_int, c_void};

use crate::{image_params, proc_, thread};

/// The layout of [`Ops`].
pub const VERSION: u32 = 1;

/// What an engine handler returns to have the kernel's own handler run with the same arguments.
///
/// No errno has this value, so it cannot be mistaken for one; the gate consumes it.
pub const PASS: c_int = c_int::MIN;

/// The system calls the gate takes over, in the order of [`Ops::syscall`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Slot {
    Read,
    Write,
    Listio,
    Return,
    Suspend,
    Cancel,
    Error,
    Freebsd6Read,
    Freebsd6Write,
    Freebsd6Listio,
    Waitcomplete,
    Fsync,
    Mlock,
    Writev,
    Readv,
}

/// How many slots there are.
pub const SLOTS: usize = Slot::Readv as usize + 1;

/// Serves one system call. Returns an errno, 0, or [`PASS`].
pub type SyscallFn = unsafe extern "C" fn(*mut c_void, *mut thread, *mut c_void) -> c_int;

/// Learns that a process exits, or replaces its image.
pub type ProcessFn = unsafe extern "C" fn(*mut c_void, *mut proc_);

/// Is a worker's life: returns when the worker is to end.
pub type WorkerFn = unsafe extern "C" fn(*mut c_void, *mut c_void);

/// The engine's side of every entry.
#[repr(C)]
pub struct Ops {
    /// [`VERSION`] of the build that filled the table in.
    pub version: u32,
    /// `size_of::<Ops>()` of that build, in bytes.
    pub size: u32,
    /// First argument of every function below.
    pub ctx: *mut c_void,
    pub syscall: [SyscallFn; SLOTS],
    pub process_exit: ProcessFn,
    pub process_exec: ProcessFn,
    pub worker: WorkerFn,
}

/// The exec event's third argument, which the gate ignores.
pub type ExecImage = image_params;

unsafe extern "C" {
    /// Takes the system calls over and opens the gate for `ops`.
    ///
    /// 0; EBUSY when an engine is attached; EPROGMISMATCH when the table is of another version or
    /// too small; EEXIST when a slot does not hold the kernel's function, named in one line in the
    /// message buffer. On an error everything is as before.
    ///
    /// # Safety
    /// `ops` and what it points to must stay valid until [`aio_rs_gate_detach`] returned 0.
    pub fn aio_rs_gate_attach(ops: *const Ops) -> c_int;

    /// Gives the system calls back and waits until no thread is in the engine.
    ///
    /// May sleep. 0: no thread is in the engine's text and none will enter it. EBUSY: a slot does
    /// not hold our trampoline any more (named in one line), or a thread did not come back in time;
    /// the engine is attached as before.
    pub fn aio_rs_gate_detach() -> c_int;

    /// The entry of a kernel process that is to run [`Ops::worker`] with `arg`.
    pub fn aio_rs_gate_worker(arg: *mut c_void);
}
