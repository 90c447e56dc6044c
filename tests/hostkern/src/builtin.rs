// SPDX-License-Identifier: BSD-2-Clause
//! What the kernel's own AIO needs besides what modules may import, to be run as an object of a kernel
//! build (`--builtin`): zones, a task queue of its own, semaphores, unit numbers, and its part in
//! sockets.
//!
//! The object is looked for where a test machine has it; nothing of it is here. It is what the
//! built-in's results on a real kernel are compared with, and it shows how far the host kernel can be
//! trusted: code that is known to be right must come out right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::socket::{self, So, Which};
use crate::state::Held;
use crate::{
    disk, imports, kqueue, mem, module, pages, proc, report, sched, socket_io, socket_tasks, sys,
};

static LOADED: AtomicBool = AtomicBool::new(false);

/// Whether the kernel's own AIO is here.
pub fn is_loaded() -> bool {
    LOADED.load(Ordering::Relaxed)
}

/// Links the object into the kernel, and has the system calls lead to it. May sleep.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn load(file: &[u8]) -> Result<(), String> {
    LOADED.store(true, Ordering::Relaxed);
    kqueue::without_stand_ins();
    module::load(module::KERNELS, file)?;
    imports::use_builtin();
    Ok(())
}

// Zones: uma(9). A zone is a type of memory.

static ZONES: Held<BTreeMap<usize, usize>> = Held::new(BTreeMap::new());

/// uma_zcreate.
pub fn zone_create(name: *const c_char, size: usize) -> *mut c_void {
    let kind: *mut sys::malloc_type = mem::new_object();
    // SAFETY: just made; the name is static.
    unsafe { (*kind).ks_shortdesc = name };
    mem::malloc_init(kind);
    ZONES.with(|zones| zones.insert(kind as usize, size));
    kind.cast()
}

/// The zone of struct bufs that map what a disk device cannot take as it is.
pub fn make_pbuf_zone(at: *mut u8) {
    // Behind it are its pages.
    let size = size_of::<sys::buf>() + pbuf_room() / crate::vm::PAGE as usize * 8;
    let zone = zone_create(c"pbuf".as_ptr(), size);
    // SAFETY: the object has room for a pointer.
    unsafe { at.cast::<*mut c_void>().write(zone) }
}

fn pbuf_zone() -> *mut c_void {
    // SAFETY: an object of the kernel's, made at start.
    unsafe { *(module::kernel_object("pbuf_zone") as *const *mut c_void) }
}

fn pbuf_room() -> usize {
    disk::MAXPHYS + crate::vm::PAGE as usize
}

/// uma_zalloc_arg.
pub fn zone_alloc(zone: *mut c_void, flags: u32) -> *mut c_void {
    if flags & sys::M_WAITOK != 0 {
        sched::may_sleep("uma_zalloc with M_WAITOK");
    }
    let size = ZONES.with(|zones| zones.get(&(zone as usize)).copied());
    let Some(size) = size else { report::panic("uma_zalloc of no zone") };
    let item = mem::malloc(size, zone.cast(), flags & sys::M_ZERO != 0);
    if zone == pbuf_zone() {
        // SAFETY: just made.
        unsafe { (*item.cast::<sys::buf>()).b_data = pages::alloc(pbuf_room()) as *mut c_char };
    }
    item
}

/// uma_zfree_arg.
pub fn zone_free(zone: *mut c_void, item: *mut c_void) {
    if zone == pbuf_zone() {
        // SAFETY: an item of the zone.
        pages::free(unsafe { (*item.cast::<sys::buf>()).b_data } as usize, pbuf_room());
    }
    mem::free(item, zone.cast());
}

// Task queues: taskqueue(9).

#[derive(Default)]
struct Queue {
    tasks: VecDeque<*mut sys::task>,
    running: BTreeSet<usize>,
}

static QUEUES: Held<BTreeMap<usize, Queue>> = Held::new(BTreeMap::new());

/// Channels are odd, so that they are none of the modules'.
fn chan(what: u64, id: usize) -> u64 {
    what << 56 | (id as u64) << 1 | 1
}

/// taskqueue_create.
pub fn queue_create() -> *mut c_void {
    let queue: *mut u64 = mem::new_object();
    QUEUES.with(|queues| queues.insert(queue as usize, Queue::default()));
    queue.cast()
}

fn with_queue<R>(id: usize, action: impl FnOnce(&mut Queue) -> R) -> R {
    QUEUES.with(|queues| match queues.get_mut(&id) {
        Some(queue) => action(queue),
        None => report::panic("a task queue that is none"),
    })
}

/// taskqueue_start_threads, of one thread.
pub fn queue_start(id: usize) {
    proc::start_kernel(move || {
        loop {
            let Some(task) = with_queue(id, |queue| queue.tasks.pop_front()) else {
                sched::sleep(chan(0x49, id), false, "-", None, || ());
                continue;
            };
            with_queue(id, |queue| queue.running.insert(task as usize));
            // SAFETY: a queued task lives until it was drained.
            unsafe {
                let pending = c_int::from(std::mem::take(&mut (*task).ta_pending));
                let function = (*task).ta_func.expect("a task has a function");
                let context = (*task).ta_context;
                sched::in_module(|| function(context, pending));
            }
            sched::assert_no_locks("a task");
            with_queue(id, |queue| queue.running.remove(&(task as usize)));
            sched::wakeup(chan(0x4a, id), false);
        }
    });
}

/// taskqueue_enqueue: one that is queued is counted.
pub fn queue_enqueue(id: usize, task: *mut sys::task) {
    // SAFETY: the caller's task.
    unsafe {
        if (*task).ta_pending > 0 {
            (*task).ta_pending += 1;
            return;
        }
        (*task).ta_pending = 1;
    }
    with_queue(id, |queue| queue.tasks.push_back(task));
    sched::wakeup(chan(0x49, id), false);
}

/// taskqueue_drain: waits until a task is neither queued nor runs.
pub fn queue_drain(id: usize, task: *mut sys::task) {
    sched::may_sleep("taskqueue_drain");
    // SAFETY: the caller's task.
    while unsafe { (*task).ta_pending } > 0
        || with_queue(id, |queue| queue.running.contains(&(task as usize)))
    {
        sched::sleep(chan(0x4a, id), false, "tq_drain", None, || ());
    }
}

// Semaphores: sema(9).

static SEMAS: Held<BTreeMap<usize, i32>> = Held::new(BTreeMap::new());

/// sema_init.
pub fn sema_init(sema: usize, value: c_int) {
    SEMAS.with(|semas| semas.insert(sema, value));
}

fn sema<R>(id: usize, action: impl FnOnce(&mut i32) -> R) -> R {
    SEMAS.with(|semas| match semas.get_mut(&id) {
        Some(value) => action(value),
        None => report::panic("a semaphore that is none"),
    })
}

/// sema_post.
pub fn sema_post(id: usize) {
    sema(id, |value| *value += 1);
    sched::wakeup(chan(0x4b, id), true);
}

/// sema_wait.
pub fn sema_wait(id: usize) {
    sched::may_sleep("sema_wait");
    while sema(id, |value| *value == 0) {
        sched::sleep(chan(0x4b, id), false, "sema", None, || ());
    }
    sema(id, |value| *value -= 1);
}

// Unit numbers: unr(9).

#[derive(Default)]
struct Units {
    low: c_int,
    taken: BTreeSet<c_int>,
}

static UNITS: Held<BTreeMap<usize, Units>> = Held::new(BTreeMap::new());

/// new_unrhdr.
pub fn units_create(low: c_int) -> *mut c_void {
    let units: *mut u64 = mem::new_object();
    let empty = Units { low, taken: BTreeSet::new() };
    UNITS.with(|all| all.insert(units as usize, empty));
    units.cast()
}

/// alloc_unr: the lowest that is free.
pub fn unit_alloc(id: usize) -> c_int {
    UNITS.with(|all| {
        let units = all.get_mut(&id).expect("of new_unrhdr");
        let free = (units.low..).find(|unit| !units.taken.contains(unit)).expect("a number");
        units.taken.insert(free);
        free
    })
}

/// free_unr.
pub fn unit_free(id: usize, unit: c_int) {
    if !UNITS.with(|all| all.get_mut(&id).expect("of new_unrhdr").taken.remove(&unit)) {
        report::panic("a unit number is freed that is not taken");
    }
}

// Times.

/// itimerfix: whether a span is one; less than a tick becomes one.
pub fn itimerfix(span: &mut sys::timeval) -> bool {
    let tick = 1_000_000 / i64::from(imports::HZ);
    if span.tv_sec < 0 || !(0..1_000_000).contains(&span.tv_usec) {
        return false;
    }
    if span.tv_sec == 0 && span.tv_usec != 0 && span.tv_usec < tick {
        span.tv_usec = tick;
    }
    true
}

/// tvtohz: ticks until a span is over for certain.
pub fn ticks(span: &sys::timeval) -> c_int {
    let tick = 1_000_000 / i64::from(imports::HZ);
    let ticks = i128::from(span.tv_sec) * i128::from(imports::HZ)
        + i128::from((span.tv_usec + tick - 1) / tick)
        + 1;
    ticks.clamp(1, i128::from(c_int::MAX)) as c_int
}

const SIGPIPE: i32 = 13;

// Its requests on sockets: the functions of vfs_aio(9)'s back ends are the object's.

/// Calls one of the object's functions for a request.
fn call(name: &str, job: *mut sys::kaiocb, second: usize, third: usize) -> usize {
    let Some(function) = module::global(name) else {
        report::panic(&format!("the kernel's own AIO has no {name}"));
    };
    // SAFETY: the functions of sys/aio.h take a request and up to two more words.
    unsafe {
        let function: unsafe extern "C" fn(*mut sys::kaiocb, usize, usize) -> usize =
            std::mem::transmute(function);
        sched::in_module(|| function(job, second, third))
    }
}

fn set_cancel(job: *mut sys::kaiocb) -> bool {
    call("aio_set_cancel_function", job, module::stub_of(cancel as *const ()), 0) as u8 != 0
}

fn complete(job: *mut sys::kaiocb, status: i64, error: c_int) {
    call("aio_complete", job, status as usize, error as usize);
}

fn which_of(job: *mut sys::kaiocb) -> Option<Which> {
    // SAFETY: a live request.
    match unsafe { (*job).uaiocb.aio_lio_opcode } & 3 {
        1 => Some(Which::Send),
        2 => Some(Which::Receive),
        _ => None,
    }
}

fn done_of(job: *mut sys::kaiocb) -> i64 {
    // SAFETY: a live request; it has the word there.
    unsafe { job.wrapping_byte_add(sys::HOSTKERN_AIO_DONE as usize).cast::<i64>().read() }
}

fn add_done(job: *mut sys::kaiocb, more: i64) {
    // SAFETY: as above.
    unsafe { *job.wrapping_byte_add(sys::HOSTKERN_AIO_DONE as usize).cast::<i64>() += more }
}

/// fo_aio_queue of a socket.
pub fn queue(fp: *mut sys::file, job: *mut sys::kaiocb) -> c_int {
    let so = socket::of(fp).expect("a socket's file");
    let Some(which) = which_of(job) else { return crate::errno::EINVAL.0 };
    socket::lock(so, which);
    if socket::is_listening(so) {
        socket::unlock(so, which);
        return crate::errno::EINVAL.0;
    }
    if !set_cancel(job) {
        report::panic("a new request was cancelled");
    }
    socket_tasks::append(so, which, job);
    if !socket::has_flag(so, which, sys::SB_AIO_RUNNING) {
        if socket_tasks::is_ready(so, which) {
            socket_tasks::wakeup(so, which);
        } else {
            socket::set_flag(so, which, sys::SB_AIO);
        }
    }
    socket::unlock(so, which);
    0
}

/// What cancels a request that waits.
unsafe extern "C" fn cancel(job: *mut sys::kaiocb) {
    // SAFETY: a request of a socket's, whose file it holds.
    let so = socket::of(unsafe { (*job).fd_file }).expect("a socket's file");
    let which = which_of(job).expect("checked when it was queued");
    socket::lock(so, which);
    if call("aio_cancel_cleared", job, 0, 0) as u8 == 0 {
        socket_tasks::take_off(so, which, job);
    }
    if socket_tasks::first_job(so, which).is_null() {
        socket::clear_flag(so, which, sys::SB_AIO);
    }
    socket::unlock(so, which);
    match done_of(job) {
        0 => _ = call("aio_cancel", job, 0, 0),
        done => complete(job, done, 0),
    }
}

/// A buffer's task: as long as it is ready, its oldest request. The buffer is locked.
pub fn serve(so: So, which: Which) {
    while !socket_tasks::first_job(so, which).is_null() && socket_tasks::is_ready(so, which) {
        let job = socket_tasks::first_job(so, which);
        socket_tasks::take_off(so, which, job);
        if call("aio_clear_cancel_function", job, 0, 0) as u8 != 0 {
            perform(so, which, job);
        }
    }
}

/// Tries a request, with its buffer unlocked meanwhile; it ends, or waits again.
fn perform(so: So, which: Which, job: *mut sys::kaiocb) {
    socket::unlock(so, which);
    call("aio_switch_vmspace", job, 0, 0);
    let td = sched::curthread();
    loop {
        // SAFETY: a request that nobody else has, and the running thread.
        let (result, moved) = unsafe {
            let usage = (*td).td_ru;
            let own = std::mem::replace(&mut (*td).td_ucred, (*job).cred);
            let uio = &mut *(*job).uiop;
            let before = uio.uio_resid;
            uio.uio_offset = 0;
            uio.uio_td = td;
            let result = match which {
                Which::Receive => socket_io::receive(so, uio, socket_io::Patience::Turn),
                Which::Send => socket_io::send(so, uio, socket_io::Patience::Turn),
            };
            (*td).td_ucred = own;
            if (*td).td_ru.ru_msgrcv != usage.ru_msgrcv {
                (*job).msgrcv = 1;
            }
            if (*td).td_ru.ru_msgsnd != usage.ru_msgsnd {
                (*job).msgsnd = 1;
            }
            (result, (before - uio.uio_resid) as i64)
        };
        add_done(job, moved);
        let done = done_of(job);
        use crate::errno::{EAGAIN, EINTR, EPIPE, ERESTART};
        if result == Err(EAGAIN) {
            socket::lock(so, which);
            let nonblocking = socket::state(so) & sys::SS_NBIO != 0;
            if done == 0 || !nonblocking {
                if socket_tasks::is_ready(so, which) {
                    socket::unlock(so, which);
                    sched::point();
                    continue;
                }
                if set_cancel(job) {
                    socket_tasks::prepend(so, which, job);
                } else {
                    socket::unlock(so, which);
                    match done {
                        0 => _ = call("aio_cancel", job, 0, 0),
                        done => complete(job, done, 0),
                    }
                    socket::lock(so, which);
                }
                return;
            }
            socket::unlock(so, which);
        }
        if result == Err(EPIPE) && which == Which::Send && !socket::has_no_sigpipe(so) {
            // SAFETY: the request's process is there as long as the request.
            unsafe {
                let p = (*job).userproc;
                sched::mtx_lock(&raw mut (*p).p_mtx.mtx_lock);
                crate::signal::post((*p).p_pid, SIGPIPE);
                sched::mtx_unlock(&raw mut (*p).p_mtx.mtx_lock);
            }
        }
        match result {
            Err(EAGAIN | EINTR | ERESTART) if done != 0 => complete(job, done, 0),
            Err(error) => complete(job, -1, error.0),
            Ok(_) => complete(job, done, 0),
        }
        socket::lock(so, which);
        return;
    }
}
