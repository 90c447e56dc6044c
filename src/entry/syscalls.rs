// SPDX-License-Identifier: BSD-2-Clause
//! The system calls, as the gate calls them: native, of FreeBSD 6, and 32-bit.
//!
//! Every handler gets the engine, the current thread and the call's argument structure of
//! <sys/sysproto.h>. Engine and arguments are valid for the call: the gate counts the thread. The
//! structures of the other ABIs have the same members, each in a word of its own, so the native ones
//! stand for all; a 32-bit pointer arrives zero-extended.

use core::ffi::{c_int, c_void};

use sys_bindings as sys;
use sys_bindings::gate::{PASS, SLOTS, Slot, SyscallFn};

use crate::aio::{Engine, Mode, Operation, Patience, Served, Who};
use crate::kern::proc::Curthread;
use crate::kern::sleep::{Deadline, Span};
use crate::kern::user::{Abi, UserAiocb, UserPtr};
use crate::model::Errno;

/// Encodes a handler's result for the gate.
fn encode(result: Result<Served, Errno>) -> c_int {
    match result {
        Ok(Served::Here) => 0,
        Ok(Served::Pass) => PASS,
        Err(error) => error.code(),
    }
}

/// An ABI as a type, so that there is one handler for each.
trait Program {
    const ABI: Abi;
}

/// Declares an ABI's type.
macro_rules! program {
    ($name:ident) => {
        struct $name;

        impl Program for $name {
            const ABI: Abi = Abi::$name;
        }
    };
}

program!(Native);
program!(FreeBsd6);
program!(Bits32);
program!(FreeBsd6Bits32);

/// Declares a handler, `name(engine, thread, abi, arguments: type) { body }`: what C calls, around a
/// safe body, for each ABI.
macro_rules! handler {
    ($name:ident($engine:ident, $td:ident, $abi:ident, $uap:ident: $args:ty) $body:block) => {
        unsafe extern "C" fn $name<P: Program>(
            ctx: *mut c_void,
            td: *mut sys::thread,
            uap: *mut c_void,
        ) -> c_int {
            fn body(
                $engine: &Engine,
                $td: Curthread,
                $abi: Abi,
                $uap: &$args,
            ) -> Result<Served, Errno> $body
            // SAFETY: ctx is what attach was given: the engine, which outlives every counted call.
            let engine: &Engine = unsafe { &*ctx.cast() };
            // SAFETY: the kernel calls handlers with the current thread.
            let td = unsafe { Curthread::new(td) };
            // SAFETY: the kernel's argument structure of this call, valid while it lasts.
            let uap: &$args = unsafe { &*uap.cast() };
            encode(body(engine, td, P::ABI, uap))
        }
    };
}

/// A user pointer of any type.
fn pointer<T>(pointer: *const T) -> UserPtr {
    UserPtr::new(pointer.addr() as u64)
}

fn aiocb(abi: Abi, pointer: *const sys::aiocb) -> UserAiocb {
    UserAiocb::at(abi, pointer.addr() as u64)
}

/// Reads a call's time limit; `None` when it has none.
fn time_limit(abi: Abi, limit: UserPtr) -> Result<Option<(i64, i64)>, Errno> {
    if limit.is_null() { Ok(None) } else { abi.copyin_timespec(limit).map(Some) }
}

/// How long a call with this time limit waits.
fn patience(limit: Option<(i64, i64)>) -> Result<Patience, Errno> {
    let Some((seconds, nanoseconds)) = limit else { return Ok(Patience::Forever) };
    let span = Span::from_timespec(seconds, nanoseconds)?;
    Ok(if span.is_zero() { Patience::Poll } else { Patience::Until(Deadline::after(span)) })
}

/// The length of a list of a call.
fn list_length(engine: &Engine, count: c_int) -> Result<usize, Errno> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    if count > engine.list_max() { Err(Errno::EINVAL) } else { Ok(count) }
}

handler!(aio_read(engine, td, abi, uap: sys::aio_read_args) {
    engine.submit(td, aiocb(abi, uap.aiocbp.cast()), Operation::Read)
});

handler!(aio_write(engine, td, abi, uap: sys::aio_write_args) {
    engine.submit(td, aiocb(abi, uap.aiocbp.cast()), Operation::Write)
});

handler!(aio_readv(engine, td, abi, uap: sys::aio_readv_args) {
    engine.submit(td, aiocb(abi, uap.aiocbp), Operation::Readv)
});

handler!(aio_writev(engine, td, abi, uap: sys::aio_writev_args) {
    engine.submit(td, aiocb(abi, uap.aiocbp), Operation::Writev)
});

handler!(aio_error(engine, td, abi, uap: sys::aio_error_args) {
    engine.error(td, aiocb(abi, uap.aiocbp))
});

handler!(aio_return(engine, td, abi, uap: sys::aio_return_args) {
    engine.reap(td, aiocb(abi, uap.aiocbp))
});

handler!(aio_suspend(engine, td, abi, uap: sys::aio_suspend_args) {
    let Who::Ours(process) = engine.who(td) else { return Ok(Served::Pass) };
    let count = list_length(engine, uap.nent)?;
    let limit = time_limit(abi, pointer(uap.timeout))?;
    let mut few = [0; 8];
    let many;
    let addresses: &[u64] = if let Some(few) = few.get_mut(..count) {
        abi.copyin_pointers_to(pointer(uap.aiocbp), few)?;
        few
    } else {
        many = abi.copyin_pointers(pointer(uap.aiocbp), count)?;
        &many
    };
    engine.suspend(td, &process, addresses, patience(limit)?)
});

handler!(aio_waitcomplete(engine, td, abi, uap: sys::aio_waitcomplete_args) {
    let who = engine.who(td);
    if matches!(who, Who::Builtin) {
        return Ok(Served::Pass);
    }
    let limit = time_limit(abi, pointer(uap.timeout))?;
    let which = pointer(uap.aiocbp);
    // The built-in ignores a fault here too; the result's own store tells.
    let _ = abi.store_pointer(which, 0);
    engine.wait_complete(td, who, abi, which, patience(limit)?)
});

handler!(aio_cancel(engine, td, abi, uap: sys::aio_cancel_args) {
    let user = if uap.aiocbp.is_null() { None } else { Some(aiocb(abi, uap.aiocbp)) };
    engine.cancel(td, uap.fd, user)
});

handler!(lio_listio(engine, td, abi, uap: sys::lio_listio_args) {
    if matches!(engine.who(td), Who::Builtin) {
        return Ok(Served::Pass);
    }
    let mode = match uap.mode.cast_unsigned() {
        sys::LIO_WAIT => Mode::Wait,
        sys::LIO_NOWAIT => Mode::NoWait,
        _ => return Err(Errno::EINVAL),
    };
    let count = list_length(engine, uap.nent)?;
    let sigevent = pointer(uap.sig);
    // A call that waits does not even look at it.
    let sigevent = if sigevent.is_null() || mode == Mode::Wait {
        None
    } else {
        Some(abi.copyin_sigevent(sigevent)?)
    };
    let list = pointer(uap.acb_list);
    let entries = abi.copyin_pointers(list, count)?;
    engine.listio(td, abi, mode, list.address(), &entries, sigevent.as_ref())
});

handler!(aio_fsync(engine, td, abi, uap: sys::aio_fsync_args) {
    // Before anything is stored.
    let operation = match uap.op.cast_unsigned() {
        sys::O_SYNC => Operation::Sync,
        sys::O_DSYNC => Operation::DataSync,
        _ => return Err(Errno::EINVAL),
    };
    engine.submit(td, aiocb(abi, uap.aiocbp), operation)
});

handler!(aio_mlock(engine, td, abi, uap: sys::aio_mlock_args) {
    engine.submit(td, aiocb(abi, uap.aiocbp), Operation::Lock)
});

/// The handlers in the gate's order, for one kind of program and its ancestor.
const fn handlers<P: Program, Old: Program>() -> [SyscallFn; SLOTS] {
    let mut handlers: [SyscallFn; SLOTS] = [aio_read::<P>; SLOTS];
    handlers[Slot::Read as usize] = aio_read::<P>;
    handlers[Slot::Write as usize] = aio_write::<P>;
    handlers[Slot::Listio as usize] = lio_listio::<P>;
    handlers[Slot::Return as usize] = aio_return::<P>;
    handlers[Slot::Suspend as usize] = aio_suspend::<P>;
    handlers[Slot::Cancel as usize] = aio_cancel::<P>;
    handlers[Slot::Error as usize] = aio_error::<P>;
    handlers[Slot::Freebsd6Read as usize] = aio_read::<Old>;
    handlers[Slot::Freebsd6Write as usize] = aio_write::<Old>;
    handlers[Slot::Freebsd6Listio as usize] = lio_listio::<Old>;
    handlers[Slot::Waitcomplete as usize] = aio_waitcomplete::<P>;
    handlers[Slot::Fsync as usize] = aio_fsync::<P>;
    handlers[Slot::Mlock as usize] = aio_mlock::<P>;
    handlers[Slot::Writev as usize] = aio_writev::<P>;
    handlers[Slot::Readv as usize] = aio_readv::<P>;
    handlers
}

/// Of native programs.
pub const HANDLERS: [SyscallFn; SLOTS] = handlers::<Native, FreeBsd6>();

/// Of 32-bit programs.
pub const HANDLERS_32: [SyscallFn; SLOTS] = handlers::<Bits32, FreeBsd6Bits32>();

const _: () = {
    use crate::aio::Answer;
    assert!(Answer::Canceled as u32 == sys::AIO_CANCELED);
    assert!(Answer::NotCanceled as u32 == sys::AIO_NOTCANCELED);
    assert!(Answer::AllDone as u32 == sys::AIO_ALLDONE);
};
