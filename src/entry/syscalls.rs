// SPDX-License-Identifier: BSD-2-Clause
//! The system calls of the native ABI, as the gate calls them.
//!
//! Every handler gets the engine, the current thread and the call's argument structure of
//! <sys/sysproto.h>. Engine and arguments are valid for the call: the gate counts the thread.

use alloc::vec;
use core::ffi::{c_int, c_void};

use sys_bindings as sys;
use sys_bindings::gate::{PASS, SLOTS, Slot, SyscallFn};

use crate::aio::{Engine, Operation, Patience, Served};
use crate::kern::proc::Curthread;
use crate::kern::sleep::{Deadline, Span};
use crate::kern::user::{UserAiocb, UserPtr};
use crate::model::Errno;

/// Encodes a handler's result for the gate.
fn encode(result: Result<Served, Errno>) -> c_int {
    match result {
        Ok(Served::Here) => 0,
        Ok(Served::Pass) => PASS,
        Err(error) => error.code(),
    }
}

/// Declares a handler, `name(engine, thread, arguments: type) { body }`: what C calls, around a
/// safe body.
macro_rules! handler {
    ($name:ident($engine:ident, $td:ident, $uap:ident: $args:ty) $body:block) => {
        unsafe extern "C" fn $name(
            ctx: *mut c_void,
            td: *mut sys::thread,
            uap: *mut c_void,
        ) -> c_int {
            fn body($engine: &Engine, $td: Curthread, $uap: &$args) -> Result<Served, Errno> $body
            // SAFETY: ctx is what attach was given: the engine, which outlives every counted call.
            let engine: &Engine = unsafe { &*ctx.cast() };
            // SAFETY: the kernel calls handlers with the current thread.
            let td = unsafe { Curthread::new(td) };
            // SAFETY: the kernel's argument structure of this call, valid while it lasts.
            let uap: &$args = unsafe { &*uap.cast() };
            encode(body(engine, td, uap))
        }
    };
}

/// A user pointer of any type.
fn pointer<T>(pointer: *const T) -> UserPtr {
    UserPtr::new(pointer.addr() as u64)
}

fn aiocb(pointer: *const sys::aiocb) -> UserAiocb {
    UserAiocb::at(pointer.addr() as u64)
}

/// How long a call with this time limit waits.
fn patience(limit: Option<sys::timespec>) -> Result<Patience, Errno> {
    let Some(limit) = limit else { return Ok(Patience::Forever) };
    let span = Span::from_timespec(limit.tv_sec, limit.tv_nsec)?;
    Ok(if span.is_zero() { Patience::Poll } else { Patience::Until(Deadline::after(span)) })
}

handler!(aio_read(engine, td, uap: sys::aio_read_args) {
    engine.submit(td, aiocb(uap.aiocbp), Operation::Read)
});

handler!(aio_write(engine, td, uap: sys::aio_write_args) {
    engine.submit(td, aiocb(uap.aiocbp), Operation::Write)
});

handler!(aio_readv(engine, td, uap: sys::aio_readv_args) {
    engine.submit(td, aiocb(uap.aiocbp), Operation::Readv)
});

handler!(aio_writev(engine, td, uap: sys::aio_writev_args) {
    engine.submit(td, aiocb(uap.aiocbp), Operation::Writev)
});

handler!(aio_error(engine, td, uap: sys::aio_error_args) {
    engine.error(td, aiocb(uap.aiocbp))
});

handler!(aio_return(engine, td, uap: sys::aio_return_args) {
    engine.reap(td, aiocb(uap.aiocbp))
});

handler!(aio_suspend(engine, td, uap: sys::aio_suspend_args) {
    if engine.passes(td) {
        return Ok(Served::Pass);
    }
    let count = usize::try_from(uap.nent).map_err(|_| Errno::EINVAL)?;
    if count > engine.list_max() {
        return Err(Errno::EINVAL);
    }
    let limit = pointer(uap.timeout);
    let limit: Option<sys::timespec> =
        if limit.is_null() { None } else { Some(limit.copyin()?) };
    let mut addresses = vec![0u64; count];
    pointer(uap.aiocbp).copyin_slice(&mut addresses)?;
    engine.suspend(td, &addresses, patience(limit)?)
});

handler!(aio_waitcomplete(engine, td, uap: sys::aio_waitcomplete_args) {
    if engine.is_builtin(td) {
        return Ok(Served::Pass);
    }
    let limit = pointer(uap.timeout);
    let limit: Option<sys::timespec> =
        if limit.is_null() { None } else { Some(limit.copyin()?) };
    let which = pointer(uap.aiocbp);
    // The built-in ignores a fault here too; the result's own store tells.
    let _ = which.suword(0);
    engine.wait_complete(td, which, patience(limit)?)
});

handler!(aio_cancel(engine, td, uap: sys::aio_cancel_args) {
    let user = if uap.aiocbp.is_null() { None } else { Some(aiocb(uap.aiocbp)) };
    engine.cancel(td, uap.fd, user)
});

handler!(lio_listio(engine, td, _uap: sys::lio_listio_args) {
    engine.unserved_call(td, None, "lio_listio")
});

handler!(aio_fsync(engine, td, uap: sys::aio_fsync_args) {
    // Before anything is stored.
    let operation = match uap.op.cast_unsigned() {
        sys::O_SYNC => Operation::Sync,
        sys::O_DSYNC => Operation::DataSync,
        _ => return Err(Errno::EINVAL),
    };
    engine.submit(td, aiocb(uap.aiocbp), operation)
});

handler!(aio_mlock(engine, td, uap: sys::aio_mlock_args) {
    engine.unserved_call(td, Some(aiocb(uap.aiocbp)), "aio_mlock")
});

handler!(freebsd6(engine, td, _uap: c_int) {
    engine.unserved_call(td, None, "a FreeBSD 6 call")
});

/// The handlers in the gate's order.
pub const HANDLERS: [SyscallFn; SLOTS] = {
    let mut handlers: [SyscallFn; SLOTS] = [freebsd6; SLOTS];
    handlers[Slot::Read as usize] = aio_read;
    handlers[Slot::Write as usize] = aio_write;
    handlers[Slot::Listio as usize] = lio_listio;
    handlers[Slot::Return as usize] = aio_return;
    handlers[Slot::Suspend as usize] = aio_suspend;
    handlers[Slot::Cancel as usize] = aio_cancel;
    handlers[Slot::Error as usize] = aio_error;
    handlers[Slot::Waitcomplete as usize] = aio_waitcomplete;
    handlers[Slot::Fsync as usize] = aio_fsync;
    handlers[Slot::Mlock as usize] = aio_mlock;
    handlers[Slot::Writev as usize] = aio_writev;
    handlers[Slot::Readv as usize] = aio_readv;
    handlers
};

const _: () = {
    use crate::aio::Answer;
    assert!(Answer::Canceled as u32 == sys::AIO_CANCELED);
    assert!(Answer::NotCanceled as u32 == sys::AIO_NOTCANCELED);
    assert!(Answer::AllDone as u32 == sys::AIO_ALLDONE);
};
