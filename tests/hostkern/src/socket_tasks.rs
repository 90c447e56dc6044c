// SPDX-License-Identifier: BSD-2-Clause
//! The workers that run the AIO tasks of socket buffers (soaiod), which the kernel's
//! task queue starts: what `kern.ipc.aio` limits.
//!
//! A buffer's task is queued at most once, and not while SB_AIO_RUNNING is set, so it is never
//! queued while it runs. A worker reads the task's function without the buffer's lock.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{c_int, c_void};

use crate::socket::{self, So, Which};
use crate::state::Held;
use crate::{builtin, imports, mem, module, proc, report, sched, sys, sysctl, taskqueue, vm};

struct Tasks {
    /// "soaio jobs", a mutex of the modules' kind.
    lock: *mut sys::mtx,
    jobs: VecDeque<*mut sys::task>,
    idle: usize,
    starting: usize,
    procs: i32,
    stopping: bool,
    /// Requests of the built-in's. Anything else in a buffer's queue is none.
    requests: BTreeSet<usize>,
}

static TASKS: Held<Tasks> = Held::new(Tasks {
    lock: std::ptr::null_mut(),
    jobs: VecDeque::new(),
    idle: 0,
    starting: 0,
    procs: 0,
    stopping: false,
    requests: BTreeSet::new(),
});

/// Where idle workers wait: odd, as all channels of ours.
const IDLE: u64 = 0x46 << 56 | 1;

fn word() -> *mut usize {
    let lock = TASKS.with(|tasks| tasks.lock);
    lock.wrapping_byte_add(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

/// Makes the lock.
pub fn start() {
    let lock: *mut sys::mtx = mem::new_object();
    TASKS.with(|tasks| tasks.lock = lock);
    sched::mtx_init(word(), c"soaio jobs".as_ptr());
}

/// Ends the workers, when no process is left. Whoever calls this waits a little afterwards.
pub fn stop() {
    TASKS.with(|tasks| tasks.stopping = true);
    sched::wakeup(IDLE, false);
}

/// Starts workers until there are enough, or as many as may be: a task of the kernel's.
pub fn start_workers() {
    sched::mtx_lock(word());
    loop {
        let target = sysctl::value("kern.ipc.aio.target_procs");
        let most = sysctl::value("kern.ipc.aio.max_procs");
        let go_on = TASKS.with(|tasks| {
            tasks.procs < target
                || tasks.procs < most && tasks.jobs.len() > tasks.idle + tasks.starting
        });
        if !go_on {
            break;
        }
        TASKS.with(|tasks| tasks.starting += 1);
        sched::mtx_unlock(word());
        sched::point();
        let made = proc::kernel_process("soaiod", worker);
        sched::mtx_lock(word());
        if made.is_err() {
            TASKS.with(|tasks| tasks.starting -= 1);
            break;
        }
        count(1);
    }
    sched::mtx_unlock(word());
}

fn count(change: i32) {
    let procs = TASKS.with(|tasks| {
        tasks.procs += change;
        tasks.procs
    });
    sysctl::set("kern.ipc.aio.num_procs", procs);
}

/// soaio_enqueue.
fn enqueue(task: *mut sys::task) {
    sched::mtx_lock(word());
    // SAFETY: the task of a socket that is referenced until it has run.
    unsafe {
        if (*task).ta_pending != 0 {
            report::panic("the task of a socket buffer is queued twice");
        }
        (*task).ta_pending = 1;
    }
    let most = sysctl::value("kern.ipc.aio.max_procs");
    let (wakes, wants) = TASKS.with(|tasks| {
        tasks.jobs.push_back(task);
        let wakes = tasks.jobs.len() <= tasks.idle;
        (wakes, !wakes && tasks.procs < most)
    });
    if wakes {
        sched::wakeup(IDLE, true);
    } else if wants {
        taskqueue::enqueue(taskqueue::Task::SocketWorkers);
    }
    sched::mtx_unlock(word());
}

/// sowakeup_aio: has the task run, unless it does already. The buffer is locked.
pub fn wakeup(so: So, which: Which) {
    if !socket::is_locked(so, which) {
        report::panic("sowakeup_aio without the buffer's lock");
    }
    socket::clear_flag(so, which, sys::SB_AIO);
    if socket::has_flag(so, which, sys::SB_AIO_RUNNING) {
        return;
    }
    socket::set_flag(so, which, sys::SB_AIO_RUNNING);
    socket::hold(so);
    enqueue(&raw mut socket::buf(so, which).sb_aiotask);
}

/// Gives the thread's process an address space: vmspace_switch_aio.
fn switch_vm(new: *mut sys::vmspace) {
    // SAFETY: the running thread's process, which is the kernel's.
    unsafe {
        let p = (*sched::curthread()).td_proc;
        if (*p).p_vmspace != new {
            vm::hold(new);
            let old = std::mem::replace(&mut (*p).p_vmspace, new);
            vm::release(old);
        }
    }
}

/// A worker's life.
fn worker() {
    let own = vm::hold(proc::current_vm());
    sched::mtx_lock(word());
    TASKS.with(|tasks| tasks.starting -= 1);
    loop {
        if let Some(task) = TASKS.with(|tasks| tasks.jobs.pop_front()) {
            // SAFETY: a queued task; its socket is referenced until it has run.
            let pending = unsafe { std::mem::take(&mut (*task).ta_pending) };
            sched::mtx_unlock(word());
            sched::point();
            run(task, c_int::from(pending));
            sched::mtx_lock(word());
            continue;
        }
        if proc::current_vm() != own {
            sched::mtx_unlock(word());
            switch_vm(own);
            sched::mtx_lock(word());
            continue;
        }
        if TASKS.with(|tasks| tasks.stopping) {
            break;
        }
        proc::assert_home("waits for a task");
        let lifetime = i64::from(sysctl::value("kern.ipc.aio.lifetime"));
        let until = sched::now() + lifetime * sched::SECOND / i64::from(imports::HZ);
        TASKS.with(|tasks| tasks.idle += 1);
        let woken = sched::sleep(IDLE, false, "-", Some(until), || sched::mtx_unlock(word()));
        sched::mtx_lock(word());
        let target = sysctl::value("kern.ipc.aio.target_procs");
        let ends = TASKS.with(|tasks| {
            tasks.idle -= 1;
            woken == sched::Woken::Timeout && tasks.jobs.is_empty() && tasks.procs > target
        });
        if ends {
            break;
        }
    }
    count(-1);
    sched::mtx_unlock(word());
    vm::release(own);
}

/// Runs a task as a worker.
fn run(task: *mut sys::task, pending: c_int) {
    // SAFETY: the task's function takes its context and the count; it is the kernel's or a module's.
    unsafe {
        let function = (&raw const (*task).ta_func).cast::<usize>().read();
        let context = (*task).ta_context;
        if function != module::kernel_object("soaio_rcv")
            && function != module::kernel_object("soaio_snd")
            && !module::contains(function)
        {
            report::panic(&format!("a socket buffer's task has no function: {function:#x}"));
        }
        let function: unsafe extern "C" fn(*mut c_void, c_int) = std::mem::transmute(function);
        sched::in_module(|| function(context, pending));
    }
    sched::assert_no_locks("a task");
    imports::assert_may_fault("a task");
}

/// The first request of the built-in's that waits for a half.
pub fn first_job(so: So, which: Which) -> *mut sys::kaiocb {
    socket::buf(so, which).sb_aiojobq.tqh_first
}

/// Takes a request off its half, which is locked.
pub fn take_off(so: So, which: Which, job: *mut sys::kaiocb) {
    // SAFETY: a job on the list, whose neighbours are too.
    unsafe {
        let (next, previous) = ((*job).list.tqe_next, (*job).list.tqe_prev);
        if next.is_null() {
            socket::buf(so, which).sb_aiojobq.tqh_last = previous;
        } else {
            (*next).list.tqe_prev = previous;
        }
        *previous = next;
    }
}

/// Puts a request behind all others of its half, which is locked.
pub fn append(so: So, which: Which, job: *mut sys::kaiocb) {
    let queue = &mut socket::buf(so, which).sb_aiojobq;
    // SAFETY: a job on no list; the list's last link is where it belongs.
    unsafe {
        (*job).list.tqe_next = std::ptr::null_mut();
        (*job).list.tqe_prev = queue.tqh_last;
        *queue.tqh_last = job;
        queue.tqh_last = &raw mut (*job).list.tqe_next;
    }
}

/// Puts a request before all others of its half, which is locked.
pub fn prepend(so: So, which: Which, job: *mut sys::kaiocb) {
    let queue = &mut socket::buf(so, which).sb_aiojobq;
    // SAFETY: a job on no list, and the first of the list, if there is one.
    unsafe {
        (*job).list.tqe_next = queue.tqh_first;
        (*job).list.tqe_prev = &raw mut queue.tqh_first;
        if queue.tqh_first.is_null() {
            queue.tqh_last = &raw mut (*job).list.tqe_next;
        } else {
            (*queue.tqh_first).list.tqe_prev = &raw mut (*job).list.tqe_next;
        }
        queue.tqh_first = job;
    }
}

/// Takes a neighbour's request off its half, which is locked, and forgets it.
fn remove_job(so: So, which: Which, job: *mut sys::kaiocb) {
    if !TASKS.with(|tasks| tasks.requests.remove(&(job as usize))) {
        report::panic("the kernel takes what is no request for one of the built-in's");
    }
    take_off(so, which, job);
    mem::free_object(job);
}

/// Whether a request on a half need not wait.
pub fn is_ready(so: So, which: Which) -> bool {
    match which {
        Which::Receive => socket::is_readable(so),
        Which::Send => socket::is_writable(so),
    }
}

/// soaio_rcv and soaio_snd: the built-in's function of a task, which ends what can.
pub fn builtin(so: So, which: Which) {
    sched::may_sleep("soaio_rcv or soaio_snd");
    socket::lock(so, which);
    if !socket::has_flag(so, which, sys::SB_AIO_RUNNING) {
        report::panic("the kernel's function of a task runs without SB_AIO_RUNNING");
    }
    if builtin::is_loaded() {
        builtin::serve(so, which);
    }
    while !builtin::is_loaded() && !first_job(so, which).is_null() && is_ready(so, which) {
        remove_job(so, which, first_job(so, which));
        socket::unlock(so, which);
        sched::point();
        socket::lock(so, which);
    }
    if !first_job(so, which).is_null() {
        socket::set_flag(so, which, sys::SB_AIO);
    }
    socket::clear_flag(so, which, sys::SB_AIO_RUNNING);
    socket::unlock(so, which);
    socket::release(so);
}

/// Now and then, where odd things may happen, a process that is the built-in's has a request of no
/// bytes on one half of a connection, or cancels one.
pub fn neighbour(so: So) {
    if builtin::is_loaded() || !sched::is_odd() || sched::random(32) != 0 {
        return;
    }
    let which = if sched::random(2) == 0 { Which::Receive } else { Which::Send };
    let cancels = sched::random(2) == 0;
    socket::lock(so, which);
    let connected = !socket::is_listening(so) && socket::state(so) & sys::SS_ISCONNECTED != 0;
    if cancels && connected {
        cancel_jobs(so, which);
    } else if connected && !socket::with(so, |inner| inner.closed) {
        queue_job(so, which);
    }
    socket::unlock(so, which);
}

/// soo_aio_queue. The half is locked.
fn queue_job(so: So, which: Which) {
    let job: *mut sys::kaiocb = mem::new_object();
    TASKS.with(|tasks| tasks.requests.insert(job as usize));
    append(so, which, job);
    if socket::has_flag(so, which, sys::SB_AIO_RUNNING) {
        return;
    }
    if is_ready(so, which) {
        wakeup(so, which);
    } else {
        socket::set_flag(so, which, sys::SB_AIO);
    }
}

/// Cancels all requests of the built-in's on a half, which is locked.
fn cancel_jobs(so: So, which: Which) {
    let mut job = first_job(so, which);
    while !job.is_null() {
        // SAFETY: on the list, which is locked.
        let next = unsafe { (*job).list.tqe_next };
        if TASKS.with(|tasks| tasks.requests.contains(&(job as usize))) {
            remove_job(so, which, job);
            // As the kernel does it, whoever else may wait.
            if first_job(so, which).is_null() {
                socket::clear_flag(so, which, sys::SB_AIO);
            }
        }
        job = next;
    }
}

/// The last file is going, and with it the neighbours' requests.
pub fn closes(so: So) {
    if builtin::is_loaded() {
        return;
    }
    for which in [Which::Receive, Which::Send] {
        socket::lock(so, which);
        if !socket::is_listening(so) {
            cancel_jobs(so, which);
        }
        socket::unlock(so, which);
    }
}
