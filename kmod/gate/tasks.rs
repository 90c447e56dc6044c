// SPDX-License-Identifier: BSD-2-Clause
//! The AIO tasks of socket buffers whose requests are the engine's.
//!
//! The engine points a task here under the buffer's lock, and back at the kernel's function when
//! nothing of its own is queued any more. A task that was on its way while the engine detached finds
//! no table. It then gives the task back itself: under the buffer's lock, because until then a newer
//! engine takes the task for one that will look at its queue.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::SeqCst;

use sys_bindings as sys;
use sys_bindings::gate::PASS;

use super::{OPS, counted};

unsafe extern "C" {
    fn aio_rs_gate_sobuf(so: *mut sys::socket, which: c_int) -> *mut sys::sockbuf;
    fn aio_rs_gate_sockbuf_lock(so: *mut sys::socket, which: c_int);
    fn aio_rs_gate_sockbuf_unlock(so: *mut sys::socket, which: c_int);
}

/// What no engine returns: there is none.
const ABSENT: c_int = PASS + 1;

type TaskFn = unsafe extern "C" fn(*mut c_void, c_int);

/// # Safety
/// `so` is a socket whose task for `which` runs as this call.
unsafe fn task(so: *mut c_void, pending: c_int, which: c_int, kernels: TaskFn) {
    loop {
        let so = so.cast();
        // SAFETY: the caller's promise is the engine's precondition.
        match counted(&OPS, ABSENT, |ops| unsafe { (ops.socket_task)(ops.ctx, so, which) }) {
            0 => return,
            PASS => break,
            _ => {}
        }
        // SAFETY: the task holds a reference to the socket, and is not queued while it runs, so its
        // function may be changed under the buffer's lock.
        let given_back = unsafe {
            aio_rs_gate_sockbuf_lock(so, which);
            let absent = OPS.load(SeqCst).is_null();
            if absent {
                (*aio_rs_gate_sobuf(so, which)).sb_aiotask.ta_func = Some(kernels);
            }
            aio_rs_gate_sockbuf_unlock(so, which);
            absent
        };
        if given_back {
            break;
        }
    }
    // SAFETY: the kernel's own function of this task gets what the kernel called us with.
    unsafe { kernels(so, pending) }
}

/// See [`sys::gate::aio_rs_gate_soaio_rcv`].
#[unsafe(no_mangle)]
unsafe extern "C" fn aio_rs_gate_soaio_rcv(so: *mut c_void, pending: c_int) {
    // SAFETY: as the kernel calls a task.
    unsafe { task(so, pending, sys::SO_RCV as c_int, sys::soaio_rcv) }
}

/// See [`sys::gate::aio_rs_gate_soaio_snd`].
#[unsafe(no_mangle)]
unsafe extern "C" fn aio_rs_gate_soaio_snd(so: *mut c_void, pending: c_int) {
    // SAFETY: as the kernel calls a task.
    unsafe { task(so, pending, sys::SO_SND as c_int, sys::soaio_snd) }
}
