// SPDX-License-Identifier: BSD-2-Clause
//! The module's own events: load, unload.
//!
//! MOD_QUIESCE answers whether unload would be refused now; MOD_UNLOAD, which alone counts under
//! `kldunload -f`, does everything and refuses too. Both run in a process context that may sleep.

use alloc::boxed::Box;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use sys_bindings as sys;
use sys_bindings::gate::{Ops, VERSION, aio_rs_gate_attach, aio_rs_gate_detach};

use super::{events, syscalls};
use crate::aio::Engine;
use crate::kern::printf::print;
use crate::kern::proc::Curthread;
use crate::model::Errno;

/// What lives from load to unload.
struct Loaded {
    ops: Ops,
    engine: Engine,
}

/// Null while not loaded. The kernel serialises module events.
static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(core::ptr::null_mut());

/// Makes the engine and its table.
// Out of line: what is made has its size as a frame.
#[inline(never)]
fn make(td: Curthread) -> Result<Box<Loaded>, Errno> {
    Ok(Box::new(Loaded {
        ops: Ops {
            version: VERSION,
            size: size_of::<Ops>() as u32,
            ctx: core::ptr::null_mut(),
            syscall: syscalls::HANDLERS,
            syscall32: syscalls::HANDLERS_32,
            process_exit: events::process_leaves,
            process_exec: events::process_leaves,
            worker: events::worker,
            socket_task: events::socket_task,
            bio_done: events::bio_done,
            pipe_event: events::pipe_event,
        },
        engine: Engine::new(td)?,
    }))
}

fn load(td: Curthread) -> Result<(), Errno> {
    let mut loaded = make(td)?;
    loaded.engine.publish(td)?;
    loaded.ops.ctx = (&raw mut loaded.engine).cast();
    let loaded = Box::into_raw(loaded);
    // SAFETY: the table and the engine live until detach has succeeded.
    let attached = Errno::check(unsafe { aio_rs_gate_attach(&raw const (*loaded).ops) });
    if let Err(error) = attached {
        if error == Errno::EPROGMISMATCH {
            print(format_args!(
                "not loaded: aio_rs_gate.ko is of another version; reboot to replace it"
            ));
        }
        // SAFETY: the gate did not keep it.
        drop(unsafe { Box::from_raw(loaded) });
        return Err(error);
    }
    LOADED.store(loaded, Ordering::Release);
    // SAFETY: just stored; only unload frees it.
    let started = unsafe { (*loaded).engine.start() };
    // Processes may be ours already. If one has a request there must be a worker: then we stay,
    // and the manager is tried again by whoever needs it.
    started.or_else(|error| unload().map_or(Ok(()), |()| Err(error)))
}

fn unload() -> Result<(), Errno> {
    let loaded = LOADED.load(Ordering::Acquire);
    // SAFETY: stored by load, and only freed below.
    let Some(current) = (unsafe { loaded.as_ref() }) else { return Ok(()) };
    current.engine.close()?;
    // SAFETY: no precondition.
    let detached = Errno::check(unsafe { aio_rs_gate_detach() });
    if let Err(error) = detached {
        current.engine.reopen();
        return Err(error);
    }
    LOADED.store(core::ptr::null_mut(), Ordering::Release);
    // SAFETY: detach proved that no thread is in the engine or will be.
    drop(unsafe { Box::from_raw(loaded) });
    Ok(())
}

fn quiesce() -> Result<(), Errno> {
    // SAFETY: stored by load; unload, which frees it, is serialised with this.
    match unsafe { LOADED.load(Ordering::Acquire).as_ref() } {
        Some(loaded) => loaded.engine.idle(),
        None => Ok(()),
    }
}

/// The handler kmod/aio_rs.c declares.
#[unsafe(no_mangle)]
extern "C" fn aio_rs_modevent(
    _module: sys::module_t,
    event: c_int,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: the kernel calls us in a thread.
    let td = unsafe { Curthread::current() };
    let result = match event as sys::modeventtype {
        sys::MOD_LOAD => load(td),
        sys::MOD_QUIESCE => quiesce(),
        sys::MOD_UNLOAD => unload(),
        sys::MOD_SHUTDOWN => Ok(()),
        _ => Err(Errno::EOPNOTSUPP),
    };
    result.map_or_else(Errno::code, |()| 0)
}
