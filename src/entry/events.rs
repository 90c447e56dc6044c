// SPDX-License-Identifier: BSD-2-Clause
//! Process events and worker entries, as the gate calls them.

use core::ffi::{c_int, c_void};

use sys_bindings as sys;
use sys_bindings::gate::PASS;

use crate::aio::Engine;
use crate::kern::bio;
use crate::kern::kproc::Worker;
use crate::kern::pipe;
use crate::kern::proc::{Curthread, Leaving};
use crate::kern::socket::{Ended, Task};

/// A process exits, or replaces its image: both end its AIO.
///
/// # Safety
/// As the gate calls it: `ctx` is the engine, `p` the current process in that event.
pub unsafe extern "C" fn process_leaves(ctx: *mut c_void, p: *mut sys::proc_) {
    // SAFETY: ctx is what attach was given; it outlives every counted call.
    let engine: &Engine = unsafe { &*ctx.cast() };
    // SAFETY: the event's contract.
    let leaving = unsafe { Leaving::new(p) };
    engine.rundown(&leaving);
}

/// A socket's direction may have become ready.
///
/// # Safety
/// As the gate calls it: `ctx` is the engine, the current thread is a worker of the kernel's in the
/// task of this socket and direction.
pub unsafe extern "C" fn socket_task(
    ctx: *mut c_void,
    so: *mut sys::socket,
    which: c_int,
) -> c_int {
    // SAFETY: ctx is what attach was given; it outlives every counted call.
    let engine: &Engine = unsafe { &*ctx.cast() };
    // SAFETY: the kernel's workers for sockets are processes of one thread.
    let worker = unsafe { Worker::soaiod(Curthread::current()) };
    // SAFETY: the gate's word.
    let task = unsafe { Task::new(so, which) };
    match engine.run_socket(&worker, task) {
        Ended::Here => 0,
        Ended::Kernel => PASS,
    }
}

/// A worker begins.
///
/// # Safety
/// As the gate calls it: `ctx` is the engine, the current process was made by `kproc::create` and
/// has no other thread, `argument` is what was passed there.
pub unsafe extern "C" fn worker(ctx: *mut c_void, argument: *mut c_void) {
    // SAFETY: ctx is what attach was given; it outlives every counted call.
    let engine: &Engine = unsafe { &*ctx.cast() };
    // SAFETY: a kernel process's main function runs as its own thread.
    let worker = unsafe { Worker::new(Curthread::current()) };
    engine.run_worker(&worker, argument.addr());
}

/// A bio of ours is done. Nothing here may sleep.
///
/// # Safety
/// As the gate calls it: `ctx` is the engine, `bp` a bio the engine launched that is done.
pub unsafe extern "C" fn bio_done(ctx: *mut c_void, bp: *mut sys::bio) {
    // SAFETY: ctx is what attach was given; it outlives every counted call.
    let engine: &Engine = unsafe { &*ctx.cast() };
    // SAFETY: the engine launches flights of this type only, and each bio is done once.
    if let Some(landed) = unsafe { bio::done(bp) } {
        engine.landed(landed);
    }
}

/// A pipe has changed where requests are parked. Nothing here may sleep.
///
/// # Safety
/// As the gate calls it: `ctx` is the engine, `kn` a watch's knote, attached, and the mutex of its
/// pipe is held.
pub unsafe extern "C" fn pipe_event(ctx: *mut c_void, kn: *mut sys::knote) {
    // SAFETY: ctx is what attach was given; it outlives every counted call.
    let engine: &Engine = unsafe { &*ctx.cast() };
    // SAFETY: the gate's word.
    if let Some(name) = unsafe { pipe::event(kn) } {
        engine.pipe_event(name);
    }
}
