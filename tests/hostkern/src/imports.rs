// SPDX-License-Identifier: BSD-2-Clause
//! The kernel functions and objects that modules may use: exactly these, each with its contract from
//! the man page it is given with. A module that needs another one is refused, with its name.
//!
//! To add a function: one entry in the table below. Its body runs as the kernel, between two
//! scheduling points; it may sleep where its man page says so, after `sched::may_sleep`.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::*;
use crate::socket::Which;
use crate::state::Held;
use crate::{
    bio, builtin, disk, fault, file, kqueue, limit, mem, module, pages, proc, report, sched,
    signal, socket, socket_io, socket_tasks, sys, sysctl, vm,
};

/// A function modules may link to.
pub struct Import {
    pub name: &'static str,
    /// Where its contract is written.
    pub manual: &'static str,
    pub address: *const (),
}

/// An object modules may link to.
pub struct Object {
    pub name: &'static str,
    pub size: usize,
    pub init: fn(*mut u8),
}

/// Ticks per second.
pub const HZ: i32 = 1000;

/// What a function returns, for the trace.
trait Traced {
    fn word(&self) -> u64;
}

macro_rules! traced {
    ($($ty:ty)*) => { $(impl Traced for $ty { fn word(&self) -> u64 { *self as u64 } })* };
}

traced! { c_int c_uint i64 u64 usize bool }

impl Traced for () {
    fn word(&self) -> u64 {
        0
    }
}

impl<T> Traced for *mut T {
    fn word(&self) -> u64 {
        u64::from(self.is_null())
    }
}

/// A function's number in the trace: a hash of its name.
const fn number(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let (mut hash, mut index) = (0xcbf2_9ce4_8422_2325u64, 0);
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        index += 1;
    }
    hash
}

/// A function's first argument, for a report.
trait Argument {
    fn number(self) -> u64;
}

macro_rules! argument {
    ($($ty:ty)*) => { $(impl Argument for $ty { fn number(self) -> u64 { self as u64 } })* };
}

argument! { c_int c_uint i64 u64 usize bool }

impl<T> Argument for *mut T {
    fn number(self) -> u64 {
        self as u64
    }
}

impl<T> Argument for *const T {
    fn number(self) -> u64 {
        self as u64
    }
}

macro_rules! functions {
    (@first) => { 0 };
    (@first $first:ident $($rest:ident)*) => { Argument::number($first) };
    (@type) => { () };
    (@type $ret:ty) => { $ret };
    ($($manual:literal fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $(; or $failure:expr;)? $body:block)*) => {
        $(
            #[allow(clippy::too_many_arguments, non_snake_case, unreachable_code, unused_unsafe, clippy::diverging_sub_expression, unused_variables)]
            unsafe extern "C" fn $name($($arg: $ty),*) $(-> $ret)? {
                const NUMBER: u64 = number(stringify!($name));
                let argument: u64 = functions!(@first $($arg)*);
                sched::note(stringify!($name), argument, None);
                sched::point();
                $(
                    if fault::strikes(stringify!($name)) {
                        sched::trace(NUMBER, 1);
                        sched::note(stringify!($name), argument, Some(1));
                        return $failure;
                    }
                )?
                // SAFETY: the modules keep the function's contract, which its man page has; what can
                // be checked is checked.
                let result: functions!(@type $($ret)?) = unsafe { $body };
                sched::trace(NUMBER, Traced::word(&result));
                sched::note(stringify!($name), argument, Some(Traced::word(&result)));
                sched::point();
                result
            }
        )*

        const FUNCTIONS: &[(&str, &str, *const ())] =
            &[$((stringify!($name), $manual, $name as *const ())),*];
    };
}

functions! {
    // Memory.
    "malloc(9)" fn malloc(size: usize, kind: *mut sys::malloc_type, flags: c_int) -> *mut c_void {
        if flags as u32 & sys::M_WAITOK != 0 {
            sched::may_sleep("malloc with M_WAITOK");
        }
        mem::malloc(size, kind, flags as u32 & sys::M_ZERO != 0)
    }
    "malloc(9)" fn free(memory: *mut c_void, kind: *mut sys::malloc_type) {
        mem::free(memory, kind)
    }
    "malloc(9)" fn malloc_init(kind: *const c_void) {
        mem::malloc_init(kind.cast_mut().cast())
    }
    "malloc(9)" fn malloc_uninit(kind: *const c_void) {
        mem::malloc_uninit(kind.cast_mut().cast())
    }
    "counter(9)" fn counter_u64_alloc(_flags: c_int) -> usize {
        sched::may_sleep("counter_u64_alloc");
        mem::counter_alloc()
    }
    "counter(9)" fn counter_u64_fetch(counter: usize) -> u64 {
        mem::counter_fetch(counter)
    }
    "priv(9)" fn priv_check(_td: *mut sys::thread, _privilege: c_int) -> c_int {
        if crate::proc::uid() == 0 { 0 } else { EPERM.0 }
    }
    "p_candebug(9)" fn p_cansee(_td: *mut sys::thread, p: *mut sys::proc_) -> c_int {
        if !sched::mtx_owned(&raw mut (*p).p_mtx.mtx_lock) {
            report::panic("p_cansee without the process lock");
        }
        0
    }
    "counter(9)" fn counter_u64_free(counter: usize) {
        mem::counter_free(counter)
    }

    // Locks and sleeping.
    "mutex(9)" fn _mtx_init(lock: *mut usize, name: *const c_char, _kind: *const c_char, options: c_int) {
        match options as u32 {
            sys::MTX_DEF => {}
            // Of memory that may hold anything.
            sys::MTX_NEW => sched::forget_mutex(lock),
            _ => report::panic(&format!("mtx_init with options {options:#x} is not emulated")),
        }
        sched::mtx_init(lock, name)
    }
    "mutex(9)" fn _mtx_destroy(lock: *mut usize) {
        sched::mtx_destroy(lock)
    }
    "mutex(9)" fn __mtx_lock_flags(lock: *mut usize, _options: c_int, _file: *const c_char, _line: c_int) {
        sched::mtx_lock(lock)
    }
    "mutex(9)" fn __mtx_unlock_flags(lock: *mut usize, _options: c_int, _file: *const c_char, _line: c_int) {
        sched::mtx_unlock(lock)
    }
    "sleep(9)" fn _sleep(
        chan: *const c_void,
        lock: *mut sys::lock_object,
        priority: c_int,
        wmesg: *const c_char,
        timeout: i64,
        _precision: i64,
        flags: c_int,
    ) -> c_int {
        let word = (!lock.is_null()).then(|| sched::word_of(lock));
        if chan.is_null() {
            report::panic("a sleep on no channel");
        }
        if word.is_some_and(|word| !sched::mtx_owned(word)) {
            report::panic("a sleep without holding the mutex it names");
        }
        let until = match timeout {
            0 => None,
            at if flags as u32 & sys::C_ABSOLUTE != 0 => Some(at),
            span => Some(sched::now().saturating_add(span)),
        };
        let wmesg = CStr::from_ptr(wmesg).to_string_lossy();
        let catch = priority as u32 & sys::PCATCH != 0;
        let woken = proc::lodging(|| {
            sched::sleep(chan as u64, catch, &wmesg, until, || {
                if let Some(word) = word {
                    sched::mtx_unlock(word);
                }
            })
        });
        if let Some(word) = word && priority as u32 & sys::PDROP == 0 {
            sched::mtx_lock(word);
        }
        match woken {
            sched::Woken::Wakeup => 0,
            sched::Woken::Timeout => EAGAIN.0,
            sched::Woken::Signal(errno) => errno,
        }
    }
    "sleep(9)" fn wakeup(chan: *const c_void) {
        sched::wakeup(chan as u64, false)
    }
    "sleep(9)" fn wakeup_one(chan: *const c_void) {
        sched::wakeup(chan as u64, true)
    }
    "pause(9)" fn pause_sbt(wmesg: *const c_char, span: i64, _precision: i64, _flags: c_int) -> c_int {
        sched::may_sleep("pause_sbt");
        let wmesg = CStr::from_ptr(wmesg).to_string_lossy();
        let chan = 0x42 << 56 | (sched::current() as u64) << 1 | 1;
        sched::sleep(chan, false, &wmesg, Some(sched::now() + span.max(1)), || ());
        EAGAIN.0
    }
    "binuptime(9)" fn binuptime(time: *mut sys::bintime) {
        let now = sched::now();
        (*time).sec = now >> 32;
        (*time).frac = (now as u64) << 32;
    }

    // User memory.
    "copy(9)" fn copyin(from: u64, to: *mut u8, len: usize) -> c_int; or EFAULT.0; {
        sched::may_sleep("copyin");
        fetched(from, len);
        code(vm::copyin(from, to, len))
    }
    "copy(9)" fn copyout(from: *const u8, to: u64, len: usize) -> c_int {
        sched::may_sleep("copyout");
        code(vm::copyout(from, to, len))
    }
    "fetch(9)" fn fuword(at: u64) -> c_long; or -1; {
        sched::may_sleep("fuword");
        fetched(at, 8);
        vm::read::<i64>(at).unwrap_or(-1)
    }
    "fetch(9)" fn fuword32(at: u64) -> c_int; or -1; {
        sched::may_sleep("fuword32");
        fetched(at, 4);
        vm::read::<i32>(at).unwrap_or(-1)
    }
    "store(9)" fn suword32(at: u64, word: c_int) -> c_int; or -1; {
        sched::may_sleep("suword32");
        if vm::write_word(at, word).is_ok() { 0 } else { -1 }
    }
    "store(9)" fn suword(at: u64, word: c_long) -> c_int; or -1; {
        sched::may_sleep("suword");
        if vm::write_word(at, word).is_ok() { 0 } else { -1 }
    }
    "uio(9)" fn copyinuio(at: u64, count: c_uint, result: *mut *mut sys::uio) -> c_int; or EFAULT.0; {
        sched::may_sleep("copyinuio");
        if count > sys::UIO_MAXIOV {
            return_errno(EINVAL)
        } else {
            fetched(at, count as usize * 16);
            match read_vector(at, count as usize) {
                Ok(vector) => {
                    *result = make_uio(&vector);
                    0
                }
                Err(error) => error.0,
            }
        }
    }
    "uio(9)" fn iosize_max() -> usize {
        isize::MAX as usize
    }

    // Sockets.
    "uio(9)" fn cloneuio(uio: *mut sys::uio) -> *mut sys::uio {
        sched::may_sleep("cloneuio");
        clone_uio(uio)
    }
    "socket(9)" fn soreceive(so: *mut c_void, address: *mut c_void, uio: *mut sys::uio, top: *mut c_void, control: *mut c_void, flags: *mut c_int) -> c_int {
        if !address.is_null() || !top.is_null() || !control.is_null() {
            report::panic("soreceive of more than data is not emulated");
        }
        let patience = patience_of("soreceive", *flags as u32);
        code(socket_io::receive(socket::from_module(so), &mut *uio, patience))
    }
    "socket(9)" fn sosend(so: *mut c_void, address: *mut c_void, uio: *mut sys::uio, top: *mut c_void, control: *mut c_void, flags: c_int, td: *mut sys::thread) -> c_int {
        if !address.is_null() || !top.is_null() || !control.is_null() {
            report::panic("sosend of more than data is not emulated");
        }
        if td != sched::curthread() {
            report::panic("sosend for another thread");
        }
        let patience = patience_of("sosend", flags as u32);
        code(socket_io::send(socket::from_module(so), &mut *uio, patience))
    }
    "socket(9)" fn sorele_locked(so: *mut c_void) {
        socket::release_locked(socket::from_module(so))
    }
    "soaio_rcv (sys/socketvar.h)" fn soaio_rcv(so: *mut c_void, _pending: c_int) {
        socket_tasks::builtin(socket::from_module(so), Which::Receive)
    }
    "soaio_snd (sys/socketvar.h)" fn soaio_snd(so: *mut c_void, _pending: c_int) {
        socket_tasks::builtin(socket::from_module(so), Which::Send)
    }
    "sowakeup_aio (sys/socketvar.h)" fn sowakeup_aio(so: *mut c_void, which: c_int) {
        let which = if which == 0 { Which::Receive } else { Which::Send };
        socket_tasks::wakeup(socket::from_module(so), which)
    }

    // Disks.
    "g_bio(9)" fn g_alloc_bio() -> *mut sys::bio {
        sched::may_sleep("g_alloc_bio");
        bio::alloc()
    }
    "g_bio(9)" fn g_destroy_bio(bp: *mut sys::bio) {
        bio::destroy(bp)
    }
    "devvn_refthread (sys/conf.h)" fn devvn_refthread(vp: *mut sys::vnode, dev: *mut *mut sys::cdev, counted: *mut c_int) -> *mut sys::cdevsw; or std::ptr::null_mut(); {
        match disk::hold_thread(vp) {
            Some((switch, cdev)) => {
                *dev = cdev;
                *counted = 1;
                switch
            }
            None => std::ptr::null_mut(),
        }
    }
    "dev_relthread (sys/conf.h)" fn dev_relthread(dev: *mut sys::cdev, counted: c_int) {
        if counted != 0 {
            disk::release_thread(dev);
        }
    }
    "kva_alloc (vm/vm_extern.h)" fn kva_alloc(size: usize) -> usize; or 0; {
        pages::alloc(size)
    }
    "kva_alloc (vm/vm_extern.h)" fn kva_free(at: usize, size: usize) {
        pages::free(at, size)
    }
    "pmap_qenter(9)" fn pmap_qenter(at: usize, those: *mut usize, count: c_int) {
        pages::map(at, std::slice::from_raw_parts(those, count as usize))
    }
    "pmap_qenter(9)" fn pmap_qremove(at: usize, count: c_int) {
        pages::unmap(at, count as usize)
    }
    "vm_fault_quick_hold_pages (vm/vm_extern.h)" fn vm_fault_quick_hold_pages(map: *mut sys::vm_map, at: u64, len: usize, prot: u8, those: *mut usize, most: c_int) -> c_int; or -1; {
        sched::may_sleep("vm_fault_quick_hold_pages");
        let count = ((at % vm::PAGE) as usize + len).div_ceil(vm::PAGE as usize);
        if len > 0 && count > most as usize {
            report::panic(&format!("vm_fault_quick_hold_pages: {count} pages, room for {most}"));
        }
        match pages::hold(map as usize, at, len, i32::from(prot) & vm::PROT_WRITE != 0) {
            Some(held) => {
                std::ptr::copy_nonoverlapping(held.as_ptr(), those, held.len());
                held.len() as c_int
            }
            None => -1,
        }
    }
    "vm_page_unhold_pages (vm/vm_page.h)" fn vm_page_unhold_pages(those: *mut usize, count: c_int) {
        if count > 0 {
            std::slice::from_raw_parts(those, count as usize).iter().for_each(|&page| pages::unhold(page));
        }
    }
    "uio(9)" fn uiomove(data: *mut u8, count: c_int, uio: *mut sys::uio) -> c_int; or EFAULT.0; {
        sched::may_sleep("uiomove");
        code(file::uiomove(data, count as usize, &mut *uio))
    }

    // Credentials, address spaces, processes.
    "ucred(9)" fn crhold(cred: *mut sys::ucred) -> *mut sys::ucred {
        proc::crhold(cred)
    }
    "ucred(9)" fn crfree(cred: *mut sys::ucred) {
        proc::crfree(cred)
    }
    "vmspace_acquire_ref (vm/vm_map.h)" fn vmspace_acquire_ref(p: *mut sys::proc_) -> *mut sys::vmspace {
        let vm = (*p).p_vmspace;
        if vm.is_null() { vm } else { vm::hold(vm) }
    }
    "vmspace_free (vm/vm_map.h)" fn vmspace_free(vm: *mut sys::vmspace) {
        sched::may_sleep("vmspace_free");
        vm::release(vm)
    }
    "vmspace_switch_aio (vm/vm_map.h)" fn vmspace_switch_aio(vm: *mut sys::vmspace) {
        sched::may_sleep("vmspace_switch_aio");
        let p = (*sched::curthread()).td_proc;
        if (*p).p_flag as u32 & sys::P_SYSTEM == 0 {
            report::panic("vmspace_switch_aio by a process of a user");
        }
        if (*p).p_vmspace != vm {
            vm::hold(vm);
            let old = std::mem::replace(&mut (*p).p_vmspace, vm);
            vm::release(old);
        }
    }
    "kproc(9)" fn kproc_create(
        main: *const c_void,
        argument: *mut c_void,
        result: *mut *mut sys::proc_,
        _flags: c_int,
        _pages: c_int,
        format: *const c_char,
        a: u64, b: u64, c: u64, d: u64,
    ) -> c_int; or EAGAIN.0; {
        sched::may_sleep("kproc_create");
        let name = format_c(format, &[a, b, c, d]);
        match proc::kproc_create(main, argument, &name) {
            Ok(p) => {
                if !result.is_null() {
                    *result = p;
                }
                0
            }
            Err(error) => error.0,
        }
    }
    "kproc(9)" fn kproc_exit(_code: c_int) {
        proc::assert_home("ends");
        crate::user::abandon();
    }
    "racct(9)" fn racct_add_force(_p: *mut sys::proc_, _resource: c_int, _amount: u64) {
        report::panic("racct_add_force with kern.racct.enable 0");
    }
    "signal(9)" fn kern_psignal(p: *mut sys::proc_, signal: c_int) {
        if !sched::mtx_owned(&raw mut (*p).p_mtx.mtx_lock) {
            report::panic("kern_psignal without the process lock");
        }
        signal::post_by_kernel(p, signal)
    }

    "sigev_findtd (sys/signalvar.h)" fn sigev_findtd(p: *mut sys::proc_, event: *const sys::sigevent, result: *mut *mut sys::thread) -> c_int {
        let number = (*event)._sigev_un._threadid;
        let found = match (*event).sigev_notify as u32 == sys::SIGEV_THREAD_ID {
            // The thread may have ended.
            true if fault::strikes("sigev_findtd") => Err(ESRCH),
            true => signal::thread_of(p, i64::from(number)).ok_or(ESRCH),
            false => Ok(std::ptr::null_mut()),
        };
        match found {
            Ok(td) => {
                sched::mtx_lock(&raw mut (*p).p_mtx.mtx_lock);
                *result = td;
                0
            }
            Err(error) => error.0,
        }
    }
    "tdsendsignal (sys/signalvar.h)" fn tdsendsignal(p: *mut sys::proc_, td: *mut sys::thread, number: c_int, ksi: *mut sys::ksiginfo_t) -> c_int {
        if !sched::mtx_owned(&raw mut (*p).p_mtx.mtx_lock) {
            report::panic("tdsendsignal without the process lock");
        }
        signal::send(p, td, number, ksi);
        0
    }
    "sigqueue_take (sys/signalvar.h)" fn sigqueue_take(ksi: *mut sys::ksiginfo_t) {
        if !(*ksi).ksi_sigq.is_null() {
            let p = (*sched::curthread()).td_proc;
            if !sched::mtx_owned(&raw mut (*p).p_mtx.mtx_lock) {
                report::panic("sigqueue_take without the process lock");
            }
            signal::take_back(proc::of(p), ksi);
        }
    }
    "lim_hold (sys/resourcevar.h)" fn lim_hold(limits: *mut sys::plimit) -> *mut sys::plimit {
        limit::hold(limits)
    }
    "lim_free (sys/resourcevar.h)" fn lim_free(limits: *mut sys::plimit) {
        limit::release(limits)
    }
    "mlock(2)" fn kern_mlock(p: *mut sys::proc_, cred: *mut sys::ucred, at: usize, len: usize) -> c_int; or ENOMEM.0; {
        sched::may_sleep("kern_mlock");
        let end = (at as u64).checked_add(len as u64);
        let allowed = (*cred).cr_uid == 0 || sysctl::value("security.bsd.unprivileged_mlock") != 0;
        let most = (*(*p).p_limit).pl_rlimit[sys::RLIMIT_MEMLOCK as usize].rlim_cur;
        if !allowed {
            EPERM.0
        } else if end.is_none() {
            EINVAL.0
        } else {
            code(vm::wire((*p).p_vmspace, at as u64, len as u64, most as u64))
        }
    }

    // kqueue.
    "knlist_init_mtx (kqueue(9))" fn knlist_init_mtx(list: *mut sys::knlist, lock: *mut sys::mtx) {
        kqueue::list_init(list, lock)
    }
    "knlist_destroy (kqueue(9))" fn knlist_destroy(list: *mut sys::knlist) {
        if !(*list).kl_list.slh_first.is_null() {
            report::panic("knlist_destroy of a list with knotes");
        }
    }
    "knlist_add (kqueue(9))" fn knlist_add(list: *mut sys::knlist, kn: *mut sys::knote, is_locked: c_int) {
        kqueue::list_add(list, kn, is_locked != 0)
    }
    "knlist_remove (kqueue(9))" fn knlist_remove(list: *mut sys::knlist, kn: *mut sys::knote, is_locked: c_int) {
        kqueue::list_remove(list, kn, is_locked != 0)
    }
    "knlist_cleardel (kqueue(9))" fn knlist_cleardel(list: *mut sys::knlist, _td: *mut sys::thread, is_locked: c_int, kill: c_int) {
        if is_locked == 0 {
            sched::may_sleep("knlist_cleardel");
        }
        kqueue::list_clear(list, is_locked != 0, kill != 0)
    }
    "knote (kqueue(9))" fn knote(list: *mut sys::knlist, hint: c_long, flags: c_int) {
        kqueue::tell(list, hint, flags as u32)
    }
    "kqfd_register (kqueue(9))" fn kqfd_register(fd: c_int, kev: *mut sys::kevent, _td: *mut sys::thread, _flags: c_int) -> c_int; or ENOMEM.0; {
        sched::may_sleep("kqfd_register");
        // CAP_KQUEUE_CHANGE, of the second word.
        match crate::syscalls::get(fd, [0, 0x10_0000]) {
            Ok(fp) => {
                let result = kqueue::register(fp, &mut *kev);
                file::release(fp);
                code(result)
            }
            Err(error) => error.0,
        }
    }
    "kqueue_add_filteropts (kqueue(9))" fn kqueue_add_filteropts(filter: c_int, ops: *const sys::filterops) -> c_int {
        code(kqueue::add_filter(filter, ops))
    }
    "kqueue_del_filteropts (kqueue(9))" fn kqueue_del_filteropts(filter: c_int) -> c_int {
        code(kqueue::remove_filter(filter))
    }
    "kqueue(2)" fn kern_kqueue(td: *mut sys::thread, _flags: c_int, _caps: *mut c_void) -> c_int; or EMFILE.0; {
        sched::may_sleep("kern_kqueue");
        match crate::syscalls::add_fd(file::kqueue(), 0, false) {
            Ok(fd) => {
                set_retval(td, fd as i64);
                0
            }
            Err(error) => error.0,
        }
    }
    "close(2)" fn kern_close(_td: *mut sys::thread, fd: c_int) -> c_int {
        sched::may_sleep("kern_close");
        code(crate::syscalls::close(fd).map(|_| ()))
    }

    // Files.
    "fget (sys/file.h)" fn fget(td: *mut sys::thread, fd: c_int, rights: *const sys::cap_rights_t, result: *mut *mut sys::file) -> c_int; or EBADF.0; {
        get_file(td, fd, rights, result, 0)
    }
    "fget (sys/file.h)" fn fget_read(td: *mut sys::thread, fd: c_int, rights: *const sys::cap_rights_t, result: *mut *mut sys::file) -> c_int; or EBADF.0; {
        get_file(td, fd, rights, result, sys::FREAD)
    }
    "fget (sys/file.h)" fn fget_write(td: *mut sys::thread, fd: c_int, rights: *const sys::cap_rights_t, result: *mut *mut sys::file) -> c_int; or EBADF.0; {
        get_file(td, fd, rights, result, sys::FWRITE)
    }
    "fdrop (sys/file.h)" fn _fdrop(fp: *mut sys::file, _td: *mut sys::thread) -> c_int {
        sched::may_sleep("the last fdrop");
        file::close(fp);
        0
    }
    "bwillwrite (sys/buf.h)" fn bwillwrite() {
        sched::may_sleep("bwillwrite")
    }
    "vn_isdisk (sys/vnode.h)" fn vn_isdisk(vp: *mut sys::vnode) -> bool {
        disk::is_disk(vp)
    }
    "VFS(9)" fn vn_start_write(vp: *mut sys::vnode, mount: *mut *mut sys::mount, _flags: c_int) -> c_int {
        sched::may_sleep("vn_start_write");
        *mount = file::start_write(vp);
        0
    }
    "VFS(9)" fn vn_finished_write(mount: *mut sys::mount) {
        file::finished_write(mount)
    }
    "vn_lock(9)" fn _vn_lock(vp: *mut sys::vnode, flags: c_int, _file: *const c_char, _line: c_int) -> c_int {
        sched::may_sleep("vn_lock");
        if flags as u32 & sys::LK_EXCLUSIVE == 0 {
            report::panic("vn_lock that is not exclusive is not emulated");
        }
        file::vn_lock(vp);
        0
    }
    "vnode_pager_clean_async (vm/vnode_pager.h)" fn vnode_pager_clean_async(vp: *mut sys::vnode) {
        file::assert_vn_locked(vp, "vnode_pager_clean_async")
    }
    "VOP_LOCK(9)" fn VOP_UNLOCK_APV(_vector: *const c_void, args: *mut sys::aio_rs_vop_unlock_args) -> c_int {
        file::vn_unlock((*args).a_vp);
        0
    }
    "VOP_FSYNC(9)" fn VOP_FSYNC_APV(_vector: *const c_void, args: *mut sys::aio_rs_vop_fsync_args) -> c_int; or EIO.0; {
        file::assert_vn_locked((*args).a_vp, "VOP_FSYNC");
        sync_result()
    }
    "VOP_FSYNC(9)" fn VOP_FDATASYNC_APV(_vector: *const c_void, args: *mut sys::aio_rs_vop_fdatasync_args) -> c_int; or EIO.0; {
        file::assert_vn_locked((*args).a_vp, "VOP_FDATASYNC");
        sync_result()
    }

    "VOP_READ_PGCACHE (kern/vnode_if.src)" fn VOP_READ_PGCACHE_APV(_vector: *const c_void, args: *mut sys::aio_rs_vop_read_pgcache_args) -> c_int; or EJUSTRETURN.0; {
        if NO_FAULTS.with(|set| !set.contains(&sched::current())) {
            report::panic("VOP_READ_PGCACHE with page faults enabled");
        }
        code(file::read_cached((*args).a_vp, (*args).a_uio))
    }
    "rangelock (sys/rangelock.h)" fn rangelock_tryrlock(lock: *mut c_void, start: i64, end: i64, _interlock: *mut sys::mtx) -> *mut c_void; or std::ptr::null_mut(); {
        match file::try_range(lock as usize, start, end, false) {
            Some(cookie) => cookie as *mut c_void,
            None => std::ptr::null_mut(),
        }
    }
    "rangelock (sys/rangelock.h)" fn rangelock_wlock(lock: *mut c_void, start: i64, end: i64, _interlock: *mut sys::mtx) -> *mut c_void {
        sched::may_sleep("rangelock_wlock");
        file::range(lock as usize, start, end, true) as *mut c_void
    }
    "rangelock (sys/rangelock.h)" fn rangelock_unlock(lock: *mut c_void, cookie: *mut c_void, _interlock: *mut sys::mtx) {
        file::unlock_range(lock as usize, cookie as usize)
    }
    "vm_fault_disable_pagefaults (vm/vm_extern.h)" fn vm_fault_disable_pagefaults() -> c_int {
        // What it was before, for the other.
        let me = sched::current();
        NO_FAULTS.with(|set| c_int::from(!set.insert(me)))
    }
    "vm_fault_disable_pagefaults (vm/vm_extern.h)" fn vm_fault_enable_pagefaults(before: c_int) {
        let me = sched::current();
        if !NO_FAULTS.with(|set| set.contains(&me)) {
            report::panic("vm_fault_enable_pagefaults without vm_fault_disable_pagefaults");
        }
        if before == 0 {
            NO_FAULTS.with(|set| set.remove(&me));
        }
    }

    // sysctl.
    "sysctl(9)" fn sysctl_wlock() {
        sched::may_sleep("sysctl_wlock");
        sysctl::lock()
    }
    "sysctl(9)" fn sysctl_wunlock() {
        sysctl::unlock()
    }
    "sysctl_find_oid (sys/sysctl.h)" fn sysctl_find_oid(name: *const c_int, count: c_uint, result: *mut *mut sys::sysctl_oid, index: *mut c_int, _req: *mut sys::sysctl_req) -> c_int {
        match sysctl::find(std::slice::from_raw_parts(name, count as usize)) {
            Ok(oid) => {
                *result = oid;
                if !index.is_null() {
                    *index = count as c_int;
                }
                0
            }
            Err(error) => error.0,
        }
    }
    "kernel_sysctl (sys/sysctl.h)" fn kernel_sysctl(
        _td: *mut sys::thread, name: *const c_int, count: c_uint, old: *mut c_int, old_len: *mut usize,
        new: *const u8, new_len: usize, result: *mut usize, _flags: c_int,
    ) -> c_int; or ENOENT.0; {
        sched::may_sleep("kernel_sysctl");
        if std::slice::from_raw_parts(name, count as usize) != [0, 3] {
            report::panic("kernel_sysctl other than name to number is not emulated");
        }
        let name = std::slice::from_raw_parts(new, new_len);
        let name = String::from_utf8_lossy(name);
        match sysctl::numbers(name.trim_end_matches('\0')) {
            Ok(numbers) if numbers.len() * 4 <= *old_len => {
                std::ptr::copy_nonoverlapping(numbers.as_ptr(), old, numbers.len());
                *result = numbers.len() * 4;
                0
            }
            Ok(_) => ENOMEM.0,
            Err(error) => error.0,
        }
    }
    "sysctl_ctx_init(9)" fn sysctl_ctx_init(context: *mut sys::sysctl_ctx_list) -> c_int {
        std::ptr::write_bytes(context, 0, 1);
        0
    }
    "sysctl_ctx_init(9)" fn sysctl_ctx_free(context: *mut sys::sysctl_ctx_list) -> c_int {
        sched::may_sleep("sysctl_ctx_free");
        sysctl::free_context(context)
    }
    "sysctl_add_oid(9)" fn sysctl_add_oid(
        context: *mut sys::sysctl_ctx_list, parent: *mut sys::sysctl_oid_list, _number: c_int,
        name: *const c_char, kind: c_int, arg1: *mut c_void, arg2: i64, handler: sysctl::Handler,
        _format: *const c_char, _description: *const c_char, _label: *const c_char,
    ) -> *mut sys::sysctl_oid {
        sched::may_sleep("sysctl_add_oid");
        sysctl::add(context, parent, name, kind, arg1, arg2, handler)
    }
    "sysctl(9)" fn sysctl_handle_int(_oid: *mut sys::sysctl_oid, arg1: *mut c_void, arg2: i64, req: *mut sys::sysctl_req) -> c_int {
        let mut constant = arg2 as c_int;
        let from = if arg1.is_null() { (&raw mut constant).cast() } else { arg1 };
        match sysctl::tell(req, from, 4) {
            0 if (*req).newptr.is_null() => 0,
            0 if arg1.is_null() => EPERM.0,
            0 => sysctl::ask(req, arg1, 4),
            error => error,
        }
    }
    "sysctl(9)" fn sysctl_handle_string(oid: *mut sys::sysctl_oid, arg1: *mut c_void, arg2: i64, req: *mut sys::sysctl_req) -> c_int {
        sysctl::string(oid, arg1.cast(), arg2, req)
    }
    "counter(9)" fn sysctl_handle_counter_u64(_oid: *mut sys::sysctl_oid, arg1: *mut c_void, _arg2: i64, req: *mut sys::sysctl_req) -> c_int {
        let counter = *arg1.cast::<usize>();
        let mut value = mem::counter_fetch(counter);
        let code = sysctl::tell(req, (&raw mut value).cast(), 8);
        if code == 0 && !(*req).newptr.is_null() {
            // Whatever is written sets it to nothing.
            mem::counter_zero(counter);
        }
        code
    }

    // Modules, events, messages.
    "module(9)" fn module_register_init(data: *const c_void) {
        module::register_init(data.cast())
    }
    "EVENTHANDLER(9)" fn eventhandler_register(_list: *mut c_void, name: *const c_char, function: *mut c_void, argument: *mut c_void, priority: c_int) -> *mut c_void {
        sched::may_sleep("eventhandler_register");
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let tag = HANDLERS.with(|handlers| {
            handlers.registered += 1;
            let tag = handlers.registered;
            let handler = Handler { tag, name, function: function as usize, argument: argument as usize, priority };
            handlers.all.push(handler);
            // Of equal ones the first that was registered comes first.
            handlers.all.sort_by_key(|handler| handler.priority);
            tag
        });
        tag as *mut c_void
    }
    "EVENTHANDLER(9)" fn eventhandler_find_list(_name: *const c_char) -> *mut c_void {
        // There is one list; what it is, nobody looks at.
        (&raw const HANDLERS).cast_mut().cast()
    }
    "EVENTHANDLER(9)" fn eventhandler_deregister(_list: *mut c_void, tag: *mut c_void) {
        sched::may_sleep("eventhandler_deregister");
        let known = HANDLERS.with(|handlers| {
            let before = handlers.all.len();
            handlers.all.retain(|handler| handler.tag != tag as usize);
            handlers.all.len() < before
        });
        if !known {
            report::panic("an event handler is deregistered that is none");
        }
        // Who is calling handlers may still be in this one.
        while HANDLERS.with(|handlers| handlers.running > 0) {
            let soon = sched::now() + sched::SECOND / 10_000;
            sched::sleep(HANDLERS_CHAN, false, "evhrun", Some(soon), || ());
        }
    }
    "printf(9)" fn printf(format: *const c_char, a: u64, b: u64, c: u64, d: u64, e: u64) -> c_int {
        let text = format_c(format, &[a, b, c, d, e]);
        report::console(&text);
        text.len() as c_int
    }
    "panic(9)" fn panic(format: *const c_char, a: u64, b: u64, c: u64, d: u64, e: u64) {
        let text = format_c(format, &[a, b, c, d, e]);
        report::panic(&text);
    }
    "ratecheck(9)" fn eventratecheck(last: *mut sys::timeval, count: *mut c_int, most: c_int) -> c_int {
        // A second begins with the first event; the time is in ticks, and of 32 bits.
        let now = (sched::now() / (sched::SECOND / i64::from(HZ))) as c_int;
        let since = now.wrapping_sub((*last).tv_sec as c_int) as c_uint;
        if (*last).tv_sec == 0 || since >= HZ as c_uint {
            (*last).tv_sec = i64::from(now);
            *count = 0;
        }
        *count += 1;
        c_int::from(most < 0 || *count <= most)
    }
    "counted_warning (sys/systm.h)" fn counted_warning(counter: *mut c_uint, text: *const c_char) {
        if *counter > 0 {
            *counter -= 1;
            let text = CStr::from_ptr(text).to_string_lossy();
            let left = if *counter == 0 { " - not logging anymore" } else { "" };
            report::console(&format!("{} {text}{left}\n", proc::describe(sched::curthread())));
        }
    }

    // Only for the kernel's own AIO.
    "mutex(9)" fn __mtx_assert(lock: *mut usize, what: c_int, _file: *const c_char, _line: c_int) {
        let owned = sched::mtx_owned(lock);
        if what as u32 & sys::LA_XLOCKED != 0 && !owned {
            report::panic("mtx_assert: the mutex is not held");
        }
        if what as u32 & sys::LA_MASKASSERT == sys::LA_UNLOCKED && owned {
            report::panic("mtx_assert: the mutex is held");
        }
    }
    "sema(9)" fn sema_init(sema: *mut c_void, value: c_int, _description: *const c_char) {
        builtin::sema_init(sema as usize, value)
    }
    "sema(9)" fn _sema_post(sema: *mut c_void, _file: *const c_char, _line: c_int) {
        builtin::sema_post(sema as usize)
    }
    "sema(9)" fn _sema_wait(sema: *mut c_void, _file: *const c_char, _line: c_int) {
        builtin::sema_wait(sema as usize)
    }
    "unr(9)" fn new_unrhdr(low: c_int, _high: c_int, _lock: *mut c_void) -> *mut c_void {
        builtin::units_create(low)
    }
    "unr(9)" fn alloc_unr(units: *mut c_void) -> c_int {
        builtin::unit_alloc(units as usize)
    }
    "unr(9)" fn free_unr(units: *mut c_void, unit: c_uint) {
        builtin::unit_free(units as usize, unit as c_int)
    }
    "uma(9)" fn uma_zcreate(name: *const c_char, size: usize, ctor: usize, dtor: usize, init: usize, fini: usize, _align: c_int, _flags: c_uint) -> *mut c_void {
        if [ctor, dtor, init, fini] != [0; 4] {
            report::panic("a zone with functions is not emulated");
        }
        builtin::zone_create(name, size)
    }
    "uma(9)" fn uma_zalloc_arg(zone: *mut c_void, _argument: *mut c_void, flags: c_int) -> *mut c_void {
        builtin::zone_alloc(zone, flags as u32)
    }
    "uma(9)" fn uma_zfree_arg(zone: *mut c_void, item: *mut c_void, _argument: *mut c_void) {
        builtin::zone_free(zone, item)
    }
    "lockmgr_disown (sys/lockmgr.h)" fn _lockmgr_disown(_lock: *mut c_void, _file: *const c_char, _line: c_int) {}
    "taskqueue(9)" fn taskqueue_create(_name: *const c_char, _flags: c_int, _enqueue: *const c_void, _context: *mut c_void) -> *mut c_void {
        builtin::queue_create()
    }
    "taskqueue(9)" fn taskqueue_start_threads(queue: *mut *mut c_void, count: c_int, _priority: c_int, _name: *const c_char) -> c_int {
        (0..count).for_each(|_| builtin::queue_start(*queue as usize));
        0
    }
    "taskqueue(9)" fn taskqueue_enqueue(queue: *mut c_void, task: *mut sys::task) -> c_int {
        builtin::queue_enqueue(queue as usize, task);
        0
    }
    "taskqueue(9)" fn taskqueue_drain(queue: *mut c_void, task: *mut sys::task) {
        builtin::queue_drain(queue as usize, task)
    }
    "taskqueue(9)" fn taskqueue_thread_enqueue(_queue: *mut c_void) {
        report::panic("taskqueue_thread_enqueue is called by its queue only")
    }
    "itimerfix (sys/time.h)" fn itimerfix(span: *mut sys::timeval) -> c_int {
        if builtin::itimerfix(&mut *span) { 0 } else { EINVAL.0 }
    }
    "tvtohz(9)" fn tvtohz(span: *mut sys::timeval) -> c_int {
        builtin::ticks(&*span)
    }
    "knlist_empty (kqueue(9))" fn knlist_empty(list: *mut sys::knlist) -> c_int {
        c_int::from((*list).kl_list.slh_first.is_null())
    }
    "p31b_setcfg (posix4/posix4.h)" fn p31b_setcfg(_number: c_int, _value: c_int) {}

    // The built-in AIO, for processes that have no state there: all there is of it.
    "aio_read(2)" fn sys_aio_read(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_read") }
    "aio_write(2)" fn sys_aio_write(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_write") }
    "aio_read(2)" fn sys_aio_readv(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_readv") }
    "aio_write(2)" fn sys_aio_writev(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_writev") }
    "lio_listio(2)" fn sys_lio_listio(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("lio_listio") }
    "aio_fsync(2)" fn sys_aio_fsync(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_fsync") }
    "aio_mlock(2)" fn sys_aio_mlock(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_mlock") }
    "aio_waitcomplete(2)" fn sys_aio_waitcomplete(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("aio_waitcomplete") }
    "aio_read(2)" fn freebsd6_aio_read(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("freebsd6_aio_read") }
    "aio_write(2)" fn freebsd6_aio_write(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("freebsd6_aio_write") }
    "lio_listio(2)" fn freebsd6_lio_listio(_td: *mut sys::thread, _uap: *const u64) -> c_int { absent("freebsd6_lio_listio") }
    "aio_return(2)" fn sys_aio_return(_td: *mut sys::thread, _uap: *const u64) -> c_int { EINVAL.0 }
    "aio_suspend(2)" fn sys_aio_suspend(_td: *mut sys::thread, uap: *const u64) -> c_int { builtin_suspend(uap) }
    "aio_cancel(2)" fn sys_aio_cancel(td: *mut sys::thread, uap: *const u64) -> c_int {
        match crate::syscalls::get(*uap as c_int, [0, 0]) {
            Ok(fp) => {
                file::release(fp);
                set_retval(td, 3);
                0
            }
            Err(error) => error.0,
        }
    }
    "aio_error(2)" fn sys_aio_error(td: *mut sys::thread, _uap: *const u64) -> c_int {
        set_retval(td, i64::from(EINVAL.0));
        0
    }
}

/// Functions of the compiler's: no scheduling points.
const PLAIN: &[(&str, &str, *const ())] = &[
    ("memcpy", "memcpy(3)", libc::memcpy as *const ()),
    ("memmove", "memmove(3)", libc::memmove as *const ()),
    ("memset", "memset(3)", libc::memset as *const ()),
    ("strcmp", "strcmp(3)", libc::strcmp as *const ()),
    ("strlen", "strlen(3)", libc::strlen as *const ()),
    ("strncmp", "strcmp(3)", libc::strncmp as *const ()),
];

/// All functions.
pub fn functions() -> impl Iterator<Item = Import> {
    let all = FUNCTIONS.iter().chain(PLAIN);
    all.map(|&(name, manual, address)| Import { name, manual, address })
}

fn int(at: *mut u8, value: c_int) {
    // SAFETY: the object has room for an int.
    unsafe { at.cast::<c_int>().write(value) }
}

fn long(at: *mut u8, value: usize) {
    // SAFETY: the object has room for a long.
    unsafe { at.cast::<usize>().write(value) }
}

fn memory_type(at: *mut u8, name: &'static CStr) {
    let kind: *mut sys::malloc_type = at.cast();
    // SAFETY: the object is a malloc_type.
    unsafe { (*kind).ks_shortdesc = name.as_ptr() };
    mem::malloc_init(kind);
}

/// A cap_rights_t of version 0 with rights of the first word.
fn rights(at: *mut u8, first: u64) {
    // SAFETY: the object has room for two words.
    unsafe { at.cast::<[u64; 2]>().write([1 << 57 | first, 1 << 58]) }
}

/// System calls of AIO: number, arguments, the kernel's function.
const CALLS: [(u64, u8, &str); 15] = [
    (255, 1, "sys_aio_read"),
    (256, 1, "sys_aio_write"),
    (257, 4, "sys_lio_listio"),
    (314, 1, "sys_aio_return"),
    (315, 3, "sys_aio_suspend"),
    (316, 2, "sys_aio_cancel"),
    (317, 1, "sys_aio_error"),
    (318, 1, "freebsd6_aio_read"),
    (319, 1, "freebsd6_aio_write"),
    (320, 4, "freebsd6_lio_listio"),
    (359, 2, "sys_aio_waitcomplete"),
    (465, 2, "sys_aio_fsync"),
    (543, 1, "sys_aio_mlock"),
    (578, 1, "sys_aio_writev"),
    (579, 1, "sys_aio_readv"),
];

/// struct malloc_type's version word; nobody here looks at it.
const OBJECTS: &[Object] = &[
    Object { name: "hz", size: 4, init: |at| int(at, HZ) },
    Object { name: "tick_sbt", size: 8, init: |at| long(at, sched::SECOND as usize / HZ as usize) },
    // Filled in by sysctl::start.
    Object { name: "sysctl___kern_features", size: size_of::<sys::sysctl_oid>(), init: |_| () },
    Object { name: "sysctl___p1003_1b", size: size_of::<sys::sysctl_oid>(), init: |_| () },
    Object { name: "pbuf_zone", size: 8, init: builtin::make_pbuf_zone },
    Object {
        name: "M_TEMP",
        size: size_of::<sys::malloc_type>(),
        init: |at| memory_type(at, c"temp"),
    },
    Object { name: "sysctl___vfs", size: size_of::<sys::sysctl_oid>(), init: |_| () },
    // Five in a hundred (kern.timecounter.alloweddeviation).
    Object { name: "tc_precexp", size: 4, init: |at| int(at, 4) },
    Object { name: "cap_no_rights", size: 16, init: |at| rights(at, 0) },
    Object { name: "cap_pread_rights", size: 16, init: |at| rights(at, 0x0d) },
    Object { name: "cap_pwrite_rights", size: 16, init: |at| rights(at, 0x0e) },
    Object { name: "cap_fsync_rights", size: 16, init: |at| rights(at, 0x100) },
    Object { name: "path_fileops", size: size_of::<sys::fileops>(), init: |_| () },
    // Filled in by pipe::start.
    Object { name: "pipeops", size: size_of::<sys::fileops>(), init: |_| () },
    Object {
        name: "M_IOV",
        size: size_of::<sys::malloc_type>(),
        init: |at| memory_type(at, c"iov"),
    },
    // Only their addresses are used.
    Object { name: "vop_fsync_desc", size: 64, init: |_| () },
    Object { name: "vop_fdatasync_desc", size: 64, init: |_| () },
    Object { name: "vop_read_pgcache_desc", size: 64, init: |_| () },
    // Called only through probes that are on; none is.
    Object { name: "sdt_probe_func", size: 8, init: |_| () },
    Object { name: "maxphys", size: 8, init: |at| long(at, disk::MAXPHYS) },
    // An address that nobody may follow.
    Object { name: "unmapped_buf", size: 8, init: |at| long(at, 8) },
    Object {
        name: "unmapped_buf_allowed",
        size: 4,
        init: |at| int(at, c_int::from(unmapped_allowed())),
    },
    // No policy checks reads.
    Object { name: "mac_vnode_check_read_fp_flag", size: 1, init: |_| () },
    // Resources are not accounted.
    Object { name: "racct_enable", size: 1, init: |_| () },
    // Below all that can be written, which here is everything.
    Object { name: "brwsection", size: 1, init: |_| () },
    Object { name: "vop_unlock_desc", size: 64, init: |_| () },
    Object {
        name: "sysent",
        size: sys::SYS_MAXSYSCALL as usize * size_of::<sys::sysent>(),
        init: |at| {
            for (number, arguments, name) in CALLS {
                let function = module::kernel_object(name);
                // SAFETY: the table has an entry for every number.
                unsafe {
                    let entry = &mut *at.cast::<sys::sysent>().add(number as usize);
                    (&raw mut entry.sy_call).cast::<usize>().write(function);
                    entry.sy_narg = arguments;
                    if number != FORBIDDEN {
                        entry.sy_flags |= sys::SYF_CAPENABLED as u8;
                    }
                }
            }
        },
    },
];

/// Whether the kernel was started with vfs.unmapped_buf_allowed=0.
static MAPPED: AtomicBool = AtomicBool::new(false);

/// Has every device want its buffers mapped, before the machine is made.
pub fn map_all_buffers() {
    MAPPED.store(true, Ordering::Relaxed);
}

pub fn unmapped_allowed() -> bool {
    !MAPPED.load(Ordering::Relaxed)
}

/// All objects, in the order they are made.
pub fn objects() -> impl Iterator<Item = &'static Object> {
    OBJECTS.iter()
}

pub fn is_aio(number: u64) -> bool {
    CALLS.iter().any(|&(its, ..)| its == number)
}

/// Calls that capability mode forbids: their entry of sysent[] lacks the flag.
pub const FORBIDDEN: u64 = 543;

/// Makes a system call of AIO, through whatever sysent[] holds.
pub fn aio_call(number: u64, args: &mut [u64; 8]) -> Result<u64, Errno> {
    let td = sched::curthread();
    set_retval(td, 0);
    let table = module::kernel_object("sysent") as *const sys::sysent;
    // SAFETY: the entry is inside the table; what is there takes a thread and the arguments.
    let code = unsafe {
        forget_fetches();
        MAY_REPEAT.with(|set| match name_of(number).ends_with("lio_listio") {
            true => set.insert(sched::current()),
            false => set.remove(&sched::current()),
        });
        let function = (*table.add(number as usize)).sy_call;
        let function = function.expect("made at start");
        sched::in_module(|| function(td, args.as_mut_ptr().cast()))
    };
    match code {
        // SAFETY: the running thread's own.
        0 => Ok(unsafe { (*td).td_uretoff.tdu_retval[0] } as u64),
        code => Err(Errno(code)),
    }
}

/// Has the system calls lead to the kernel's own AIO, which was just loaded.
pub fn use_builtin() {
    let table = module::kernel_object("sysent") as *mut sys::sysent;
    for (number, _, name) in CALLS {
        if let Some(function) = module::global(name) {
            // SAFETY: the table has an entry for every number.
            unsafe {
                (&raw mut (*table.add(number as usize)).sy_call).cast::<usize>().write(function);
            }
        }
    }
}

fn set_retval(td: *mut sys::thread, value: i64) {
    // SAFETY: the running thread's own.
    unsafe { (*td).td_uretoff.tdu_retval[0] = value }
}

fn return_errno(error: Errno) -> c_int {
    error.0
}

/// A request that our engine left to the built-in, of which there is none here.
fn absent(what: &str) -> c_int {
    PASSED.with(|passed| {
        *passed.entry(what.to_owned()).or_insert(0) += 1;
    });
    ENOSYS.0
}

/// Calls that were passed on to the built-in, by name.
static PASSED: Held<std::collections::BTreeMap<String, u64>> =
    Held::new(std::collections::BTreeMap::new());

pub fn passed_on() -> Vec<(String, u64)> {
    PASSED.with(|passed| passed.iter().map(|(name, &count)| (name.clone(), count)).collect())
}

/// aio_suspend(2) of a process without requests.
fn builtin_suspend(uap: *const u64) -> c_int {
    // SAFETY: the arguments: list, count, time limit.
    let (list, count, limit) = unsafe { (*uap, *uap.add(1) as c_int, *uap.add(2)) };
    if !(0..=sysctl::value("vfs.aio.max_aio_queue_per_proc")).contains(&count) {
        return EINVAL.0;
    }
    let time = if limit == 0 { Ok([0, 0]) } else { vm::read::<[i64; 2]>(limit) };
    let Ok([seconds, nanoseconds]) = time else { return EFAULT.0 };
    if vm::read_bytes(list, count as usize * 8).is_err() {
        return EFAULT.0;
    }
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return EINVAL.0;
    }
    EAGAIN.0
}

fn read_vector(at: u64, count: usize) -> Result<Vec<[u64; 2]>, Errno> {
    let mut vector = vec![[0u64; 2]; count];
    vm::copyin(at, vector.as_mut_ptr().cast(), count * 16)?;
    let mut total = 0u64;
    for [_, len] in &vector {
        total =
            total.checked_add(*len).filter(|&total| total <= isize::MAX as u64).ok_or(EINVAL)?;
    }
    Ok(vector)
}

/// A copy of a uio with its vector.
fn clone_uio(uio: *mut sys::uio) -> *mut sys::uio {
    // SAFETY: the caller's uio, with as many elements as it says.
    unsafe {
        let count = (*uio).uio_iovcnt as usize;
        let copy = make_uio(&vec![[0; 2]; count]);
        let vector = (*copy).uio_iov;
        std::ptr::copy_nonoverlapping((*uio).uio_iov, vector, count);
        copy.write(uio.read());
        (*copy).uio_iov = vector;
        copy
    }
}

/// Looks at flags of sosend(9) and soreceive(9): how long to wait, and that more is to come.
fn patience_of(what: &str, flags: u32) -> socket_io::Patience {
    if flags & !(sys::MSG_NBIO | sys::MSG_DONTWAIT | sys::MSG_MORETOCOME) != 0 {
        report::panic(&format!("{what} with flags {flags:#x} is not emulated"));
    }
    match flags {
        _ if flags & sys::MSG_DONTWAIT != 0 => socket_io::Patience::None,
        _ if flags & sys::MSG_NBIO != 0 => socket_io::Patience::Turn,
        _ => socket_io::Patience::Socket,
    }
}

/// A uio and its vector in one allocation of type M_IOV.
fn make_uio(vector: &[[u64; 2]]) -> *mut sys::uio {
    let kind = module::kernel_object("M_IOV") as *mut sys::malloc_type;
    let memory = mem::malloc(size_of::<sys::uio>() + vector.len() * 16, kind, true);
    let uio: *mut sys::uio = memory.cast();
    // SAFETY: room for the uio and the vector behind it.
    unsafe {
        let iov: *mut sys::iovec = uio.add(1).cast();
        for (index, &[base, len]) in vector.iter().enumerate() {
            iov.add(index)
                .write(sys::iovec { iov_base: base as *mut c_void, iov_len: len as usize });
        }
        (*uio).uio_iov = iov;
        (*uio).uio_iovcnt = vector.len() as c_int;
        (*uio).uio_segflg = sys::UIO_USERSPACE;
        (*uio).uio_offset = -1;
        (*uio).uio_resid = vector.iter().map(|[_, len]| *len as isize).sum();
    }
    uio
}

fn get_file(
    td: *mut sys::thread,
    fd: c_int,
    rights: *const sys::cap_rights_t,
    result: *mut *mut sys::file,
    flag: u32,
) -> c_int {
    if td != sched::curthread() {
        report::panic("fget for another thread");
    }
    // SAFETY: two words of rights; the result is the caller's.
    unsafe {
        let rights = rights.cast::<[u64; 2]>().read();
        match crate::syscalls::get(fd, rights) {
            Ok(fp) if flag != 0 && (*fp).f_flag & flag == 0 => {
                file::release(fp);
                EBADF.0
            }
            Ok(fp) => {
                *result = fp;
                0
            }
            Err(error) => error.0,
        }
    }
}

/// What a file system says to a sync: sometimes that it must be asked again.
fn sync_result() -> c_int {
    const ERELOOKUP: c_int = -5;
    if sched::random(8) == 0 { ERELOOKUP } else { 0 }
}

/// fo_read and fo_write of the files here.
unsafe extern "C" fn file_read(
    fp: *mut sys::file,
    uio: *mut sys::uio,
    _cred: *mut sys::ucred,
    flags: c_int,
    td: *mut sys::thread,
) -> c_int {
    // SAFETY: fo_read's contract.
    unsafe { file_transfer(fp, uio, flags, td, false) }
}

unsafe extern "C" fn file_write(
    fp: *mut sys::file,
    uio: *mut sys::uio,
    _cred: *mut sys::ucred,
    flags: c_int,
    td: *mut sys::thread,
) -> c_int {
    // SAFETY: fo_write's contract.
    unsafe { file_transfer(fp, uio, flags, td, true) }
}

unsafe fn file_transfer(
    fp: *mut sys::file,
    uio: *mut sys::uio,
    flags: c_int,
    td: *mut sys::thread,
    write: bool,
) -> c_int {
    sched::point();
    sched::may_sleep("fo_read or fo_write");
    if td != sched::curthread() {
        report::panic("I/O for another thread");
    }
    // SAFETY: the caller's file, referenced for the call.
    if unsafe { (*fp).f_count } == 0 {
        report::panic("I/O on a file without references");
    }
    let result = match fault::strikes(if write { "fo_write" } else { "fo_read" }) {
        true => EIO.0,
        // SAFETY: the caller's uio.
        false => code(unsafe { file::transfer(fp, uio, write, flags) }),
    };
    sched::trace(number(if write { "fo_write" } else { "fo_read" }), result as u64);
    sched::point();
    result
}

unsafe extern "C" fn socket_aio_queue(fp: *mut sys::file, job: *mut sys::kaiocb) -> c_int {
    if builtin::is_loaded() {
        return builtin::queue(fp, job);
    }
    report::panic("fo_aio_queue of a socket is not emulated")
}

pub fn fo_read() -> sys::fo_rdwr_t {
    // SAFETY: bindgen names C's function type; the signatures are the same.
    unsafe { std::mem::transmute(file_read as *const ()) }
}

pub fn fo_write() -> sys::fo_rdwr_t {
    // SAFETY: as above.
    unsafe { std::mem::transmute(file_write as *const ()) }
}

pub fn fo_aio_queue() -> sys::fo_aio_queue_t {
    // SAFETY: as above.
    unsafe { std::mem::transmute(socket_aio_queue as *const ()) }
}

pub fn sysctl_handle_int_handler() -> sysctl::Handler {
    Some(sysctl_handle_int)
}

/// The kernel's name of a system call of AIO.
pub fn name_of(number: u64) -> &'static str {
    CALLS.iter().find(|&&(its, ..)| its == number).map_or("", |its| its.2)
}

/// What a thread has fetched of its process's memory since its call began.
struct Fetch {
    start: u64,
    end: u64,
    /// Where the module did it.
    site: u64,
}

static FETCHES: Held<std::collections::BTreeMap<sched::Tid, Vec<Fetch>>> =
    Held::new(std::collections::BTreeMap::new());
/// Threads in a call whose arguments may name a place twice: lists.
static MAY_REPEAT: Held<std::collections::BTreeSet<sched::Tid>> =
    Held::new(std::collections::BTreeSet::new());

/// Threads that may fetch anything as often as they like: they load a module.
static REPEATS: Held<std::collections::BTreeSet<sched::Tid>> =
    Held::new(std::collections::BTreeSet::new());

/// Programs pass arguments that overlap, as random ones do: nobody can tell what is fetched twice.
pub static OVERLAPS: AtomicBool = AtomicBool::new(false);

/// Runs what may fetch user memory twice.
pub fn with_repeats<R>(action: impl FnOnce() -> R) -> R {
    let me = sched::current();
    REPEATS.with(|set| set.insert(me));
    let result = action();
    REPEATS.with(|set| set.remove(&me));
    result
}

/// A module fetches what a program may change meanwhile: it may do so once in a call. The entries of
/// a list may be the same, which one piece of code then fetches one after the other.
fn fetched(at: u64, len: usize) {
    let me = sched::current();
    if builtin::is_loaded()
        || OVERLAPS.load(Ordering::Relaxed)
        || REPEATS.with(|set| set.contains(&me))
    {
        return;
    }
    let (start, end) = (at, at.saturating_add(len as u64));
    let site = module::site();
    let listed = MAY_REPEAT.with(|set| set.contains(&me));
    let twice = FETCHES.with(|fetches| {
        let its = fetches.entry(me).or_default();
        let met = its
            .iter()
            .find(|its| its.start < end && start < its.end && !(listed && its.site == site))
            .map(|its| its.site);
        its.push(Fetch { start, end, site });
        met
    });
    if let Some(before) = twice {
        let before = module::symbol(before);
        report::panic(&format!(
            "user memory at {at:#x} is fetched twice in one call, before at {before}"
        ));
    }
}

/// A call begins, or a thread's number is another's from here on.
pub fn forget_fetches() {
    let me = sched::current();
    FETCHES.with(|fetches| fetches.remove(&me));
}

/// Threads that must not fault on user memory.
static NO_FAULTS: Held<std::collections::BTreeSet<sched::Tid>> =
    Held::new(std::collections::BTreeSet::new());

/// Whether a copy to the user's memory fails here because its page is not there, which the seed
/// decides for threads that must not fault.
pub fn page_is_missing() -> bool {
    let me = sched::current();
    NO_FAULTS.with(|set| set.contains(&me)) && sched::random(16) == 0
}

/// Whether the thread may fault on user memory.
pub fn may_fault() -> bool {
    let me = sched::current();
    NO_FAULTS.with(|set| !set.contains(&me))
}

/// Checks that the thread may fault again.
pub fn assert_may_fault(what: &str) {
    let me = sched::current();
    if NO_FAULTS.with(|set| set.contains(&me)) {
        report::panic(&format!("{what} returns with page faults disabled"));
    }
}

// Events.

struct Handler {
    tag: usize,
    name: String,
    function: usize,
    argument: usize,
    priority: c_int,
}

struct Handlers {
    all: Vec<Handler>,
    /// How many were ever registered.
    registered: usize,
    /// Threads that call handlers.
    running: usize,
}

static HANDLERS: Held<Handlers> =
    Held::new(Handlers { all: Vec::new(), registered: 0, running: 0 });

/// Where a thread waits until nobody calls handlers: odd, as all channels of ours.
const HANDLERS_CHAN: u64 = 0x47 << 56 | 1;

fn notify(event: &str, p: *mut sys::proc_) {
    // Another call into the modules than the last.
    forget_fetches();
    let handlers: Vec<(usize, usize)> = HANDLERS.with(|handlers| {
        handlers.running += 1;
        let ours = handlers.all.iter().filter(|handler| handler.name == event);
        ours.map(|handler| (handler.function, handler.argument)).collect()
    });
    for (function, argument) in handlers {
        // SAFETY: a handler of this event takes its argument, the process and, in exec, the image,
        // which is not there.
        unsafe {
            let function: unsafe extern "C" fn(*mut c_void, *mut sys::proc_, *mut c_void) =
                std::mem::transmute(function);
            sched::in_module(|| function(argument as *mut c_void, p, std::ptr::null_mut()));
        }
        sched::assert_no_locks(event);
    }
    HANDLERS.with(|handlers| handlers.running -= 1);
}

/// The process_exit event.
pub fn notify_exit(p: *mut sys::proc_) {
    notify("process_exit", p);
}

/// The process_exec event.
pub fn notify_exec(p: *mut sys::proc_) {
    notify("process_exec", p);
}

/// printf(9)'s formats, as far as modules use them.
fn format_c(format: *const c_char, args: &[u64]) -> String {
    // SAFETY: the caller's C string.
    let format = unsafe { CStr::from_ptr(format) }.to_string_lossy();
    let mut args = args.iter();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut long = false;
        for kind in chars.by_ref() {
            let mut next = || {
                args.next().copied().unwrap_or_else(|| report::panic("printf of too many values"))
            };
            match kind {
                'l' | 'z' | 'j' => {
                    long = true;
                    continue;
                }
                '0'..='9' | '-' | '#' | '.' => continue,
                '%' => out.push('%'),
                's' => {
                    let at = next() as *const c_char;
                    let text = if at.is_null() {
                        "(null)".into()
                    } else {
                        // SAFETY: what %s is given is a C string.
                        unsafe { CStr::from_ptr(at) }.to_string_lossy()
                    };
                    out.push_str(&text);
                }
                'd' | 'i' => {
                    let value = next() as i64;
                    out += &if long { value } else { i64::from(value as i32) }.to_string();
                }
                'u' => {
                    let value = next();
                    out += &if long { value } else { u64::from(value as u32) }.to_string();
                }
                'x' => out += &format!("{:x}", next()),
                'p' => out += &format!("{:#x}", next()),
                'c' => out.push(next() as u8 as char),
                other => report::panic(&format!("printf of %{other} is not emulated")),
            }
            break;
        }
    }
    out
}
