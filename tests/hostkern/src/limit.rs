// SPDX-License-Identifier: BSD-2-Clause
//! struct plimit: limits that processes and threads share until one changes them.

use crate::{mem, report, sched, sys};

/// No limit, as the kernel has it.
pub const INFINITY: i64 = i64::MAX;

/// New limits, none of which limits, with one reference.
pub fn unlimited() -> *mut sys::plimit {
    let limits: *mut sys::plimit = mem::new_object();
    // SAFETY: just made.
    unsafe {
        for limit in &mut (*limits).pl_rlimit {
            (limit.rlim_cur, limit.rlim_max) = (INFINITY, INFINITY);
        }
        (*limits).pl_refcnt = 1;
    }
    limits
}

/// lim_hold.
pub fn hold(limits: *mut sys::plimit) -> *mut sys::plimit {
    // SAFETY: somebody has a reference.
    unsafe {
        if (*limits).pl_refcnt <= 0 {
            report::panic("limits without references are referenced");
        }
        (*limits).pl_refcnt += 1;
    }
    limits
}

/// lim_free.
pub fn release(limits: *mut sys::plimit) {
    // SAFETY: the reference is the caller's.
    let left = unsafe {
        if (*limits).pl_refcnt <= 0 {
            report::panic("limits without references are released");
        }
        (*limits).pl_refcnt -= 1;
        (*limits).pl_refcnt
    };
    if left == 0 {
        mem::free_object(limits);
    }
}

/// The running thread's soft limit, which may be lent.
pub fn current(which: usize) -> i64 {
    // SAFETY: a thread's own limits.
    unsafe { (*(*sched::curthread()).td_limit).pl_rlimit[which].rlim_cur }
}

/// setrlimit(2): the process gets limits of its own. The calling thread sees them at once, others,
/// as in the kernel, from their next system call on.
pub fn set(which: usize, soft: i64) {
    let td = sched::curthread();
    let limits = unlimited();
    // SAFETY: the running thread and its process.
    let (old, old_thread) = unsafe {
        let p = (*td).td_proc;
        (*limits).pl_rlimit = (*(*p).p_limit).pl_rlimit;
        (*limits).pl_rlimit[which].rlim_cur = soft;
        let old = std::mem::replace(&mut (*p).p_limit, limits);
        (old, std::mem::replace(&mut (*td).td_limit, hold(limits)))
    };
    release(old);
    release(old_thread);
}

/// What a thread does at the beginning of a system call.
pub fn refresh() {
    let td = sched::curthread();
    // SAFETY: the running thread and its process.
    unsafe {
        let limits = (*(*td).td_proc).p_limit;
        if (*td).td_limit != limits {
            let old = std::mem::replace(&mut (*td).td_limit, hold(limits));
            release(old);
        }
    }
}
