// SPDX-License-Identifier: BSD-2-Clause
//! The contract between `aio_rs_gate.ko`, which stays resident, and `aio_rs.ko`, which comes and
//! goes: one versioned table, handed over at attach.
//!
//! A change that moves or retypes a field raises [`VERSION`]; a field added at the end only makes
//! [`Ops`] larger. A gate accepts a table of its own version that is at least as large as the one
//! it was built with, so a newer engine runs on an older gate as long as it does not need what
//! that gate lacks.

use core::ffi::{c_int, c_void};

use crate::{bio, filterops, image_params, knlist, knote, proc_, socket, thread};

/// The layout of [`Ops`].
pub const VERSION: u32 = 2;

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

/// Serves the parked requests of a socket's receiving (0) or sending (1) direction, as the socket
/// buffer's AIO task. Returns 0, or [`PASS`] when it has given the task back to the kernel, whose
/// turn it is now.
pub type TaskFn = unsafe extern "C" fn(*mut c_void, *mut socket, c_int) -> c_int;

/// Learns that a bio of ours is done.
pub type BioFn = unsafe extern "C" fn(*mut c_void, *mut bio);

/// Learns that a pipe with a knote of ours has changed, under the pipe's mutex and the knote's.
pub type KnoteFn = unsafe extern "C" fn(*mut c_void, *mut knote);

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
    /// The same calls of 32-bit programs, where the kernel has them.
    pub syscall32: [SyscallFn; SLOTS],
    pub process_exit: ProcessFn,
    pub process_exec: ProcessFn,
    pub worker: WorkerFn,
    pub socket_task: TaskFn,
    pub bio_done: BioFn,
    pub pipe_event: KnoteFn,
}

/// What a knote of ours (EVFILT_AIO, EVFILT_LIO) watches: one request or list, or several that are
/// known by the same address. The gate's filter functions read it, so that no knote leads into the
/// engine's text; the engine makes it, registers it and removes it.
///
/// A registration names it in the kevent's data, with EV_FLAG1 in its flags and [`NOTE_MARK`] in its
/// filter flags: users cannot give the former, and the built-in does not give the latter.
#[repr(C)]
pub struct Note {
    /// Its knotes; its lock protects the whole structure.
    pub list: knlist,
    /// A `NOTE_*` state: what became of the registration.
    pub state: u32,
    /// How many requests or lists share it; 0: it is being removed.
    pub holders: u32,
    /// How many of them have finished and are not reaped.
    pub finished: u32,
    /// The error number of the one that finished last.
    pub error: i32,
    /// With [`NOTE_JOINED`]: the note that was there already, with one holder added.
    pub joined: *mut Note,
}

/// In a kevent's filter flags, which the kernel keeps to itself: the registration is ours.
pub const NOTE_MARK: u32 = 0x6169_6f52;

/// No knote has been found or made yet.
pub const NOTE_NEW: u32 = 0;
/// It has a knote.
pub const NOTE_ATTACHED: u32 = 1;
/// The queue had a knote for this address, whose note is to be used instead.
pub const NOTE_JOINED: u32 = 2;
/// The queue has a knote for this address that is about to go.
pub const NOTE_BUSY: u32 = 3;
/// The queue has a knote for this address that belongs to another process or engine.
pub const NOTE_FOREIGN: u32 = 4;

/// The exec event's third argument, which the gate ignores.
pub type ExecImage = image_params;

unsafe extern "C" {
    /// Takes the system calls and the two event filters over and opens the gate for `ops`. May sleep.
    ///
    /// 0; EBUSY when an engine is attached, or a kqueue holds an AIO event, for more than a second;
    /// EPROGMISMATCH when the table is of another version or
    /// too small; EEXIST when a slot does not hold the kernel's function, named in one line in the
    /// message buffer. On an error everything is as before.
    ///
    /// # Safety
    /// `ops` and what it points to must stay valid until [`aio_rs_gate_detach`] returned 0.
    pub fn aio_rs_gate_attach(ops: *const Ops) -> c_int;

    /// Gives the system calls back and waits until no thread is in the engine.
    ///
    /// May sleep. 0: no thread is in the engine's text and none will enter it. EBUSY: a slot does
    /// not hold our trampoline any more (named in one line), a thread did not come back in time, or
    /// a kqueue holds an AIO event; the engine is attached as before.
    pub fn aio_rs_gate_detach() -> c_int;

    /// What a socket buffer's AIO task calls while the direction is ours: [`Ops::socket_task`] for
    /// receiving, or the kernel's own function when no engine is attached.
    pub fn aio_rs_gate_soaio_rcv(so: *mut c_void, pending: c_int);
    /// The same for sending.
    pub fn aio_rs_gate_soaio_snd(so: *mut c_void, pending: c_int);

    /// The functions of knotes that are on pipes' own lists: their event is [`Ops::pipe_event`].
    pub static aio_rs_gate_pipe_filter: filterops;

    /// The entry of a kernel process that is to run [`Ops::worker`] with `arg`.
    pub fn aio_rs_gate_worker(arg: *mut c_void);

    /// The done routine of a bio that is to end in [`Ops::bio_done`].
    pub fn aio_rs_gate_bio_done(bp: *mut bio);
}
