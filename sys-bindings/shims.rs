// SPDX-License-Identifier: BSD-2-Clause
//! The functions and objects of `kmod/*.c`.

use core::ffi::{c_int, c_void};

use crate::raw::{
    counter_u64_t, file, iovec, malloc_type, off_t, proc_, sbintime_t, sockbuf, socket, thread,
    ucred, uio, vnode,
};

unsafe extern "C" {
    pub fn aio_rs_fdrop(fp: *mut file, td: *mut thread) -> c_int;
    pub fn aio_rs_fo_read(
        fp: *mut file,
        uio: *mut uio,
        cred: *mut ucred,
        flags: c_int,
        td: *mut thread,
    ) -> c_int;
    pub fn aio_rs_fo_write(
        fp: *mut file,
        uio: *mut uio,
        cred: *mut ucred,
        flags: c_int,
        td: *mut thread,
    ) -> c_int;
    pub fn aio_rs_fo_ioctl(
        fp: *mut file,
        command: core::ffi::c_ulong,
        data: *mut core::ffi::c_void,
        cred: *mut ucred,
        td: *mut thread,
    ) -> c_int;
    pub fn aio_rs_counter_add(counter: counter_u64_t, count: i64);
    pub fn aio_rs_sbinuptime() -> sbintime_t;
    pub fn aio_rs_proc_lock(p: *mut proc_);
    pub fn aio_rs_proc_unlock(p: *mut proc_);

    pub fn aio_rs_vop_read_pgcache(vp: *mut vnode, uio: *mut uio, cred: *mut ucred) -> c_int;
    pub fn aio_rs_rangelock_tryrlock(vp: *mut vnode, start: off_t, end: off_t) -> *mut c_void;
    pub fn aio_rs_rangelock_unlock(vp: *mut vnode, cookie: *mut c_void);
    pub fn aio_rs_mac_checks_reads() -> *const bool;
    pub fn aio_rs_racct_enabled() -> *const bool;
    pub fn aio_rs_racct_add(p: *mut proc_, resource: c_int, amount: u64);
    pub fn aio_rs_vn_lock(vp: *mut vnode);
    pub fn aio_rs_vop_unlock(vp: *mut vnode);
    pub fn aio_rs_vop_fsync(vp: *mut vnode, td: *mut thread) -> c_int;
    pub fn aio_rs_vop_fdatasync(vp: *mut vnode, td: *mut thread) -> c_int;

    /// Only for a 32-bit program: a kernel that has none lacks the function behind it.
    pub fn aio_rs_copyinuio32(
        iov: *mut iovec,
        count: core::ffi::c_uint,
        uio: *mut *mut uio,
    ) -> c_int;

    pub fn aio_rs_soref(so: *mut socket);
    pub fn aio_rs_sorele(so: *mut socket);
    pub fn aio_rs_sockbuf_lock(so: *mut socket, which: c_int) -> *mut sockbuf;
    pub fn aio_rs_sockbuf_unlock(so: *mut socket, which: c_int);
    pub fn aio_rs_soreadable(so: *mut socket) -> c_int;
    pub fn aio_rs_sowriteable(so: *mut socket) -> c_int;
    /// The checks of the MAC framework for receiving and sending, where the kernel has it.
    pub static aio_rs_mac_socket_check:
        [Option<unsafe extern "C" fn(*mut ucred, *mut socket) -> c_int>; 2];
    /// The probes of kmod/probes.c, and where each says whether somebody listens.
    pub static aio_rs_probe_ids: [*const i64; 7];
    pub fn aio_rs_probe_queue(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_start(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_done(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_cancel(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_notify(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_park(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);
    pub fn aio_rs_probe_wake(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64);

    /// `malloc_type M_AIO_RS[1]`.
    pub static mut M_AIO_RS: [malloc_type; 1];
    /// The kernel's type for what copyinuio(9) allocates.
    pub static mut M_IOV: [malloc_type; 1];
}
