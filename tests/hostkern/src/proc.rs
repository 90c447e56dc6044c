// SPDX-License-Identifier: BSD-2-Clause
//! Processes: credentials, threads, fork, exec, exit, wait and signals, in the order of events that
//! FreeBSD has: other threads are gone or held at the boundary to user mode before process_exit and
//! process_exec are told, descriptors and memory are there until after.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::errno::*;
use crate::sched::{Tid, Woken};
use crate::signal::{self, Action, Queue, SIGCHLD, SIGKILL, SIGNALS, interruption, post};
use crate::state::Held;
use crate::user::{self, Frame, Trap};
use crate::{file, imports, kqueue, limit, mem, oracle, report, sched, sys, syscalls, vm};

/// The most processes, as kern.maxproc.
pub const MAX_PROCS: usize = 200;

/// An open descriptor.
pub struct Descriptor {
    pub fp: *mut sys::file,
    /// Capsicum rights, unless all.
    pub rights: Option<[u64; 2]>,
    pub close_on_exec: bool,
}

/// A table of descriptors, which processes may share.
type Descriptors = Rc<RefCell<Vec<Option<Descriptor>>>>;

/// Why only one thread may go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Single {
    No,
    /// Others stop at the boundary to user mode.
    Boundary(Tid),
    /// Others end.
    Exit(Tid),
}

pub struct Proc {
    pub p: *mut sys::proc_,
    pub name: String,
    pub threads: Vec<Tid>,
    pub parent: i32,
    pub group: i32,
    files: Descriptors,
    pub cwd: PathBuf,
    pub exe: PathBuf,
    pub actions: [Action; SIGNALS],
    pub pending: Queue,
    pub zombie: Option<i32>,
    pub single: Single,
    pub in_capability_mode: bool,
    /// Interval of the real-time timer, when it runs.
    pub alarm: Option<i64>,
    pub kernel: bool,
}

/// A thread of a process.
pub struct Thread {
    pub pid: i32,
    pub number: i64,
    pub td: *mut sys::thread,
    pub pending: Queue,
    pub mask: u128,
    /// Signals it waits for in sigwaitinfo(2).
    pub waiting: u128,
    /// Contexts of interrupted code, for sigreturn(2).
    pub saved: Vec<(Frame, u128)>,
    stopped: bool,
}

pub struct Procs {
    pub table: BTreeMap<i32, Proc>,
    pub threads: BTreeMap<Tid, Thread>,
    next_pid: i32,
    next_thread: i64,
    /// struct procs are used again, the last one first.
    free: Vec<*mut sys::proc_>,
    creds: BTreeMap<usize, ()>,
    vmspace0: *mut sys::vmspace,
    cred0: *mut sys::ucred,
}

pub static PROCS: Held<Procs> = Held::new(Procs {
    table: BTreeMap::new(),
    threads: BTreeMap::new(),
    next_pid: 0,
    next_thread: 100_000,
    free: Vec::new(),
    creds: BTreeMap::new(),
    vmspace0: std::ptr::null_mut(),
    cred0: std::ptr::null_mut(),
});

/// Channels are odd, so that they are none of the modules'.
fn chan(what: u64, id: u64) -> u64 {
    what << 56 | id << 1 | 1
}

fn wait_chan(pid: i32) -> u64 {
    chan(1, pid as u64)
}

fn single_chan(pid: i32) -> u64 {
    chan(2, pid as u64)
}

fn stop_chan(pid: i32) -> u64 {
    chan(3, pid as u64)
}

/// Makes the kernel's own process 0 and init, process 1, which has no thread.
pub fn start() {
    let cred = new_cred(0);
    let vm = vm::new();
    PROCS.with(|procs| {
        procs.vmspace0 = vm;
        procs.cred0 = cred;
    });
    create(0, "kernel", vm::hold(vm), true).expect("the first process");
    create(0, "init", vm::hold(vm), true).expect("the second process");
}

/// crhold(9).
pub fn crhold(cred: *mut sys::ucred) -> *mut sys::ucred {
    // SAFETY: somebody has a reference.
    unsafe {
        if (*cred).cr_ref <= 0 || (*cred).cr_ref > 100_000 {
            report::panic(&format!(
                "a credential with {} references is referenced",
                (*cred).cr_ref
            ));
        }
        (*cred).cr_ref += 1;
    }
    cred
}

/// crfree(9).
pub fn crfree(cred: *mut sys::ucred) {
    // SAFETY: the reference is the caller's.
    let left = unsafe {
        if (*cred).cr_ref <= 0 {
            report::panic("a credential without references is released");
        }
        (*cred).cr_ref -= 1;
        (*cred).cr_ref
    };
    if left == 0 {
        PROCS.with(|procs| procs.creds.remove(&(cred as usize)));
        mem::free_object(cred);
    }
}

/// A credential with one reference.
fn new_cred(uid: u32) -> *mut sys::ucred {
    let cred: *mut sys::ucred = mem::new_object();
    // SAFETY: just made.
    unsafe {
        (*cred).cr_uid = uid;
        (*cred).cr_ruid = uid;
        (*cred).cr_ref = 1;
    }
    PROCS.with(|procs| procs.creds.insert(cred as usize, ()));
    cred
}

/// Gives the current process another user id, as setuid(2) of root does.
pub fn set_uid(uid: u32) {
    let cred = crhold(new_cred(uid));
    let td = sched::curthread();
    // SAFETY: the running thread and its process are there.
    let (old_thread, old_proc) = unsafe {
        let old = (*(*td).td_proc).p_ucred;
        (*(*td).td_proc).p_ucred = cred;
        (std::mem::replace(&mut (*td).td_ucred, cred), old)
    };
    crfree(old_thread);
    crfree(old_proc);
}

pub fn uid() -> u32 {
    // SAFETY: the running thread's credential.
    unsafe { (*(*sched::curthread()).td_ucred).cr_uid }
}

/// Makes a process without threads; takes over the reference to the address space.
fn create(parent: i32, name: &str, vm: *mut sys::vmspace, kernel: bool) -> Result<i32, Errno> {
    let full = PROCS.with(|procs| procs.table.len() >= MAX_PROCS);
    if full {
        vm::release(vm);
        return Err(EAGAIN);
    }
    let reused = PROCS.with(|procs| procs.free.pop());
    let p = reused.unwrap_or_else(mem::new_object);
    // SAFETY: a struct proc that belongs to nobody; zero is what a new one holds.
    unsafe {
        std::ptr::write_bytes(p, 0, 1);
        (*p).p_vmspace = vm;
    }
    // SAFETY: as above; the name is static.
    unsafe { sched::mtx_init(&raw mut (*p).p_mtx.mtx_lock, c"process lock".as_ptr()) };
    let inherited = PROCS.with(|procs| procs.table.get(&parent).map(|parent| parent.p));
    let cred0 = PROCS.with(|procs| procs.cred0);
    // SAFETY: the parent is there.
    let cred = match inherited.map(|parent| unsafe { (*parent).p_ucred }) {
        _ if kernel => crhold(cred0),
        Some(cred) if cred != cred0 => crhold(cred),
        // A program's is another than the workers', or one that is kept would not be seen.
        _ => new_cred(0),
    };
    let limits = match inherited {
        // SAFETY: the parent is there.
        Some(parent) => limit::hold(unsafe { (*parent).p_limit }),
        None => limit::unlimited(),
    };
    PROCS.with(|procs| {
        let pid = procs.next_pid;
        procs.next_pid += 1;
        // SAFETY: as above.
        unsafe {
            (*p).p_ucred = cred;
            (*p).p_limit = limits;
            (*p).p_pid = pid;
            set_name(&mut (*p).p_comm, name);
            if kernel {
                (*p).p_flag = (sys::P_KPROC | sys::P_SYSTEM) as i32;
            }
        }
        let new = Proc {
            p,
            name: name.to_owned(),
            threads: Vec::new(),
            parent,
            group: pid,
            files: Descriptors::default(),
            cwd: PathBuf::from("/"),
            exe: PathBuf::new(),
            actions: [Action::default(); SIGNALS],
            pending: Queue::default(),
            zombie: None,
            single: Single::No,
            in_capability_mode: false,
            alarm: None,
            kernel,
        };
        procs.table.insert(pid, new);
        Ok(pid)
    })
}

/// Writes p_comm or td_name, which is cut to 19 characters.
fn set_name(to: &mut [std::ffi::c_char; 20], name: &str) {
    to.fill(0);
    for (to, &from) in to.iter_mut().zip(name.as_bytes().iter().take(19)) {
        *to = from as _;
    }
}

/// Starts a thread of a process.
fn start_thread(pid: i32, body: impl FnOnce() + 'static) -> Result<(Tid, i64), Errno> {
    let td: *mut sys::thread = mem::new_object();
    let p = PROCS.with(|procs| procs.table[&pid].p);
    // SAFETY: just made; the process is there.
    let number = unsafe {
        (*td).td_proc = p;
        (*td).td_name = (*p).p_comm;
        (*p).p_numthreads += 1;
        (*td).td_ucred = crhold((*p).p_ucred);
        (*td).td_limit = limit::hold((*p).p_limit);
        let number = PROCS.with(|procs| {
            procs.next_thread += 1;
            procs.next_thread
        });
        (*td).td_tid = number as i32;
        number
    };
    let Some(tid) = sched::spawn(td, Box::new(body)) else {
        // SAFETY: the references just taken.
        unsafe {
            (*p).p_numthreads -= 1;
            crfree((*td).td_ucred);
            limit::release((*td).td_limit);
        }
        mem::free_object(td);
        return Err(EAGAIN);
    };
    PROCS.with(|procs| {
        let thread = Thread {
            pid,
            number,
            td,
            pending: Queue::default(),
            mask: 0,
            waiting: 0,
            saved: Vec::new(),
            stopped: false,
        };
        procs.threads.insert(tid, thread);
        procs.table.get_mut(&pid).expect("just seen").threads.push(tid);
    });
    Ok((tid, number))
}

/// The end of the running thread, as the last thing its body does.
fn end_thread() {
    let me = sched::current();
    imports::forget_fetches();
    let td = sched::curthread();
    let pid = PROCS.with(|procs| {
        let mut thread = procs.threads.remove(&me).expect("a thread ends once");
        thread.pending.flush();
        if let Some(its) = procs.table.get_mut(&thread.pid) {
            its.threads.retain(|&tid| tid != me);
        }
        thread.pid
    });
    sched::wakeup(single_chan(pid), false);
    // SAFETY: the thread's own references.
    unsafe {
        (*(*td).td_proc).p_numthreads -= 1;
        crfree((*td).td_ucred);
        limit::release((*td).td_limit);
    }
    mem::free_object(td);
}

/// The current thread's process id.
pub fn pid() -> i32 {
    let me = sched::current();
    PROCS.with(|procs| procs.threads[&me].pid)
}

/// The current thread's number.
pub fn thread_number() -> i64 {
    let me = sched::current();
    PROCS.with(|procs| procs.threads[&me].number)
}

/// The current process.
pub fn with<R>(action: impl FnOnce(&mut Proc) -> R) -> R {
    let me = sched::current();
    PROCS.with(|procs| {
        let pid = procs.threads[&me].pid;
        action(procs.table.get_mut(&pid).expect("a running thread's process"))
    })
}

/// The current process's descriptors.
pub fn with_files<R>(action: impl FnOnce(&mut Vec<Option<Descriptor>>) -> R) -> R {
    with(|its| action(&mut its.files.borrow_mut()))
}

/// Names the current process's table of descriptors.
pub fn descriptors() -> usize {
    with(|its| Rc::as_ptr(&its.files) as usize)
}

/// Gives up a table of descriptors: with the last one, what is in it is closed.
fn leave_files(files: Descriptors) {
    if Rc::strong_count(&files) > 1 {
        return;
    }
    let (owner, count) = (Rc::as_ptr(&files) as usize, files.borrow().len());
    for fd in 0..count {
        kqueue::descriptor_closed(owner, fd as i32);
    }
    let files = files.take();
    files.into_iter().flatten().for_each(|its| file::release(its.fp));
}

pub fn current_vm() -> *mut sys::vmspace {
    // SAFETY: the running thread's process.
    unsafe { (*(*sched::curthread()).td_proc).p_vmspace }
}

pub fn describe(td: *mut sys::thread) -> String {
    if td.is_null() {
        return "nobody".to_owned();
    }
    // SAFETY: threads in the scheduler's table are live.
    let pid = unsafe { (*(*td).td_proc).p_pid };
    let name = PROCS.try_with(|procs| procs.table.get(&pid).map(|its| its.name.clone()));
    format!("pid {pid} ({})", name.flatten().unwrap_or_default())
}

/// Starts the kernel's own thread, which loads modules and starts the program.
pub fn start_kernel(body: impl FnOnce() + 'static) -> Tid {
    start_thread(0, move || {
        body();
        end_thread();
    })
    .expect("the first thread")
    .0
}

/// Starts a thread of the kernel's own that never ends.
pub fn start_kernel_thread(body: impl FnOnce() + 'static) {
    start_thread(0, body).expect("a thread of the kernel");
}

/// kproc_create(9). `main` is called with `argument` in a process of its own.
pub fn kproc_create(
    main: *const c_void,
    argument: *mut c_void,
    name: &str,
) -> Result<*mut sys::proc_, Errno> {
    let me = sched::current();
    if let Some(errno) = interruption(me) {
        // fork(2)'s inside looks at the caller's signals.
        return Err(Errno(errno));
    }
    let argument = argument as usize;
    let main = main as usize;
    kernel_process(name, move || {
        // SAFETY: kproc_create's contract.
        sched::in_module(|| unsafe { user::call(main as *const c_void, argument as *mut c_void) });
        sched::left_module();
    })
}

/// A process of the kernel's own that runs `body`, as a child of process 0.
pub fn kernel_process(name: &str, body: impl FnOnce() + 'static) -> Result<*mut sys::proc_, Errno> {
    let vm = vm::hold(PROCS.with(|procs| procs.vmspace0));
    let pid = create(0, name, vm, true)?;
    let p = PROCS.with(|procs| procs.table[&pid].p);
    let started = start_thread(pid, move || {
        body();
        exit(0);
        end_thread();
    });
    if let Err(error) = started {
        forget(pid);
        return Err(error);
    }
    Ok(p)
}

/// What the running thread's process is, if it is the kernel's own: whether the thread has its own
/// credential, and the address space of another process that it is in.
fn away() -> Option<(bool, Option<*mut sys::vmspace>)> {
    let td = sched::curthread();
    let home = PROCS.with(|procs| procs.vmspace0);
    // SAFETY: the running thread and its process.
    unsafe {
        let p = (*td).td_proc;
        let own = (*p).p_flag as u32 & sys::P_KPROC != 0;
        let vm = (*p).p_vmspace;
        own.then_some(((*td).td_ucred == (*p).p_ucred, (vm != home).then_some(vm)))
    }
}

/// Checks that a process of the kernel has its own credential and address space again: it `does` what
/// must not happen in another's name.
pub fn assert_home(does: &str) {
    let Some((same_cred, elsewhere)) = away() else { return };
    if !same_cred {
        report::panic(&format!("a process of the kernel {does} with another's credential"));
    }
    if elsewhere.is_some() {
        report::panic(&format!("a process of the kernel {does} in another's address space"));
    }
}

/// Threads of the kernel's processes that sleep in an address space that is not theirs.
static LODGERS: Held<BTreeMap<usize, *mut sys::vmspace>> = Held::new(BTreeMap::new());

/// Runs `sleep`, a module's. A process of the kernel may sleep in the address space of a program, but
/// not longer than that has it.
pub fn lodging<R>(sleep: impl FnOnce() -> R) -> R {
    let Some((same_cred, elsewhere)) = away() else { return sleep() };
    if !same_cred {
        report::panic("a process of the kernel sleeps with another's credential");
    }
    let Some(vm) = elsewhere else { return sleep() };
    let me = sched::current();
    LODGERS.with(|lodgers| lodgers.insert(me, vm));
    assert_tenant(vm);
    let result = sleep();
    LODGERS.with(|lodgers| lodgers.remove(&me));
    result
}

/// Checks that no process of the kernel sleeps in an address space that no program has.
fn assert_tenant(vm: *mut sys::vmspace) {
    let lodges = LODGERS.with(|lodgers| lodgers.values().any(|&at| at == vm));
    // SAFETY: processes of the table.
    let has = |its: &Proc| unsafe {
        (*its.p).p_flag as u32 & sys::P_KPROC == 0 && (*its.p).p_vmspace == vm
    };
    if lodges && !PROCS.with(|procs| procs.table.values().any(has)) {
        report::panic("a process of the kernel sleeps in an address space that no program has");
    }
}

/// Removes a process that never ran, or was waited for.
fn forget(pid: i32) {
    let gone = PROCS.with(|procs| procs.table.remove(&pid)).expect("a process");
    // SAFETY: the process's own references; it has no thread.
    unsafe {
        if !(*gone.p).p_vmspace.is_null() {
            vm::release((*gone.p).p_vmspace);
        }
        crfree((*gone.p).p_ucred);
        limit::release((*gone.p).p_limit);
        sched::mtx_destroy(&raw mut (*gone.p).p_mtx.mtx_lock);
        // Whoever still follows a pointer to it finds nothing of what was there.
        std::ptr::write_bytes(gone.p.cast::<u8>(), 0x5a, size_of::<sys::proc_>());
    }
    PROCS.with(|procs| procs.free.push(gone.p));
}

/// Starts the first program, a child of init.
///
/// # Errors
/// The program cannot be started.
pub fn start_program(path: &Path, argv: &[String], cwd: &Path) -> Result<i32, Errno> {
    let vm = vm::new();
    let frame = match syscalls::load_program(
        vm,
        path,
        &argv.iter().map(|arg| arg.as_bytes().to_vec()).collect::<Vec<_>>(),
    ) {
        Ok(frame) => frame,
        Err(error) => {
            vm::release(vm);
            return Err(error);
        }
    };
    let pid = create(1, &name_of(path), vm, false)?;
    PROCS.with(|procs| {
        let its = procs.table.get_mut(&pid).expect("just made");
        its.cwd = cwd.to_owned();
        its.exe = path.to_owned();
    });
    for _ in 0..3 {
        let fp = file::console();
        let descriptor = Descriptor { fp, rights: None, close_on_exec: false };
        PROCS.with(|procs| {
            procs.table[&pid].files.borrow_mut().push(Some(descriptor));
        });
    }
    start_thread(pid, move || run(frame))?;
    Ok(pid)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A user thread's life.
fn run(mut frame: Frame) {
    while return_to_user(&mut frame) {
        vm::open_window(current_vm());
        match user::enter(&mut frame) {
            Trap::Syscall => {
                if !syscalls::dispatch(&mut frame) {
                    break;
                }
            }
            Trap::Fault(signal, address) => {
                let me = sched::current();
                if std::env::var_os("HOSTKERN_FAULTS").is_some() {
                    report::console(&format!(
                        "hostkern: {} faults at {:#x}: signal {signal}, address {address:#x}\n",
                        describe(sched::curthread()),
                        frame.rip
                    ));
                }
                let signal = match signal {
                    libc::SIGBUS => 10,
                    other => other,
                };
                PROCS.with(|procs| {
                    procs.threads.get_mut(&me).expect("running").pending.bits |= signal::bit(signal)
                });
            }
        }
    }
    end_thread();
}

/// thr_new(2).
pub fn new_thread(frame: Frame) -> Result<i64, Errno> {
    let me = sched::current();
    let (tid, number) = start_thread(pid(), move || run(frame))?;
    // It begins with its maker's mask.
    PROCS.with(|procs| {
        let mask = procs.threads[&me].mask;
        procs.threads.get_mut(&tid).expect("just made").mask = mask;
    });
    Ok(number)
}

/// A copy of descriptors, without kqueues.
fn copy_files(files: &Descriptors) -> Descriptors {
    let copies = files
        .borrow()
        .iter()
        .map(|slot| {
            slot.as_ref()
                .filter(|its| !file::is_kqueue(its.fp))
                .map(|its| Descriptor { fp: file::hold(its.fp), ..*its })
        })
        .collect();
    Rc::new(RefCell::new(copies))
}

/// fork(2): the child goes on with `frame`. With `shares_files`, as rfork(2) has it, both have one
/// table of descriptors.
pub fn fork(frame: Frame, shares_files: bool) -> Result<i32, Errno> {
    let parent = pid();
    let copy = vm::fork(current_vm());
    let child = create(parent, "", copy, false)?;
    let me = sched::current();
    PROCS.with(|procs| {
        let its = &procs.table[&parent];
        let files = if shares_files { its.files.clone() } else { copy_files(&its.files) };
        let (name, group) = (its.name.clone(), its.group);
        let (cwd, exe, actions) = (its.cwd.clone(), its.exe.clone(), its.actions);
        let capability = its.in_capability_mode;
        let new = procs.table.get_mut(&child).expect("just made");
        // SAFETY: the new process's own.
        unsafe { set_name(&mut (*new.p).p_comm, &name) };
        (new.files, new.name, new.group, new.cwd, new.exe) = (files, name, group, cwd, exe);
        (new.actions, new.in_capability_mode) = (actions, capability);
    });
    if shares_files {
        oracle::shares_files([parent, child]);
    }
    let mask = PROCS.with(|procs| procs.threads[&me].mask);
    match start_thread(child, move || run(frame)) {
        Ok((tid, _)) => {
            PROCS.with(|procs| procs.threads.get_mut(&tid).expect("just made").mask = mask);
            Ok(child)
        }
        Err(error) => {
            let files = PROCS.with(|procs| {
                std::mem::take(&mut procs.table.get_mut(&child).expect("ours").files)
            });
            // Of a copy nothing is a kqueue's.
            if Rc::strong_count(&files) == 1 {
                files.take().into_iter().flatten().for_each(|its| file::release(its.fp));
            }
            forget(child);
            Err(error)
        }
    }
}

/// Makes the running thread the only one that goes on; false when another is at it.
fn single(exits: bool) -> bool {
    let me = sched::current();
    let pid = pid();
    let others = PROCS.with(|procs| {
        let its = procs.table.get_mut(&pid).expect("running");
        let taken = match its.single {
            Single::No => false,
            Single::Boundary(tid) => tid != me,
            Single::Exit(tid) => tid != me,
        };
        if taken {
            return None;
        }
        its.single = if exits { Single::Exit(me) } else { Single::Boundary(me) };
        Some(its.threads.clone())
    });
    let Some(others) = others else { return false };
    for tid in others.into_iter().filter(|&tid| tid != me) {
        sched::interrupt(tid, if exits { EINTR.0 } else { ERESTART.0 });
    }
    sched::wakeup(stop_chan(pid), false);
    loop {
        let alone = PROCS.with(|procs| {
            let its = &procs.table[&pid];
            its.threads.iter().all(|&tid| tid == me || (!exits && procs.threads[&tid].stopped))
        });
        if alone {
            return true;
        }
        sched::sleep(single_chan(pid), false, "thrsgl", None, || ());
    }
}

/// Lets the others go on after a `single` that was not for ever.
fn multiple() {
    let pid = pid();
    with(|its| its.single = Single::No);
    sched::wakeup(stop_chan(pid), false);
}

/// The process ends with a wait(2) status. The caller ends its thread.
pub fn exit(status: i32) {
    if !single(true) {
        return;
    }
    let pid = pid();
    oracle::gone(pid);
    let p = with(|its| its.p);
    // SAFETY: the current process.
    unsafe { (*p).p_flag |= sys::P_WEXIT as i32 };
    sched::clear_timers(pid as u64);
    with(|its| its.alarm = None);
    imports::notify_exit(p);
    let files = with(|its| its.files.clone());
    // One reference is the process's own until here.
    with(|its| its.files = Descriptors::default());
    leave_files(files);
    // SAFETY: as above; a dead process has no address space.
    let vm = unsafe { std::mem::replace(&mut (*p).p_vmspace, std::ptr::null_mut()) };
    assert_tenant(vm);
    vm::release(vm);
    let (parent, orphans) = PROCS.with(|procs| {
        let mut orphans = Vec::new();
        for (&child, its) in &mut procs.table {
            if its.parent == pid && child != pid {
                its.parent = 1;
                if its.zombie.is_some() {
                    orphans.push(child);
                }
            }
        }
        let its = procs.table.get_mut(&pid).expect("running");
        its.zombie = Some(status);
        its.pending.flush();
        let parent = its.parent;
        // Nobody waits for children of the kernel and of init.
        if parent <= 1 {
            orphans.push(pid);
        }
        (parent, orphans)
    });
    orphans.into_iter().for_each(|child| {
        let status = PROCS.with(|procs| procs.table[&child].zombie);
        LAST.with(|last| last.insert(child, status.unwrap_or(0)));
        // Its own thread still runs a little.
        if child == pid {
            let me = sched::current();
            PROCS.with(|procs| procs.threads.get_mut(&me).expect("running").pid = child);
            REAPED.with(|reaped| reaped.push(child));
        } else {
            forget(child);
        }
    });
    sched::wakeup(wait_chan(parent), false);
    sched::wakeup(wait_chan(1), false);
    if parent > 1 {
        post(parent, SIGCHLD);
    }
}

/// How children of init ended.
static LAST: Held<BTreeMap<i32, i32>> = Held::new(BTreeMap::new());
/// Processes to forget once their last thread is gone.
static REAPED: Held<Vec<i32>> = Held::new(Vec::new());

/// Forgets ended processes of nobody; called by whoever has time.
fn sweep() {
    let all = REAPED.with(std::mem::take);
    for pid in all {
        if PROCS.with(|procs| procs.table[&pid].threads.is_empty()) {
            forget(pid);
        } else {
            REAPED.with(|reaped| reaped.push(pid));
        }
    }
}

/// Waits, as the kernel's thread, until a child of init has ended; its wait(2) status.
pub fn wait_for_program(pid: i32) -> i32 {
    loop {
        if let Some(status) = LAST.with(|last| last.get(&pid).copied()) {
            sweep();
            return status;
        }
        sched::sleep(wait_chan(1), false, "initwt", None, || ());
    }
}

/// Kills what is left of programs and waits for it; how many there were.
pub fn kill_everybody() -> usize {
    let mut killed = 0;
    loop {
        sweep();
        let (left, live): (usize, Vec<i32>) = PROCS.with(|procs| {
            let users = procs.table.iter().filter(|(_, its)| !its.kernel);
            let live = users.clone().filter(|(_, its)| its.zombie.is_none()).map(|(&pid, _)| pid);
            (users.count(), live.collect())
        });
        if left == 0 {
            return killed;
        }
        killed = killed.max(live.len());
        for pid in live {
            post(pid, SIGKILL);
        }
        let soon = sched::now() + sched::SECOND / 100;
        sched::sleep(wait_chan(1), false, "initwt", Some(soon), || ());
    }
}

/// wait4(2): pid and status of a child that ended.
pub fn wait(which: i32, no_hang: bool) -> Result<Option<(i32, i32)>, Errno> {
    let me = pid();
    loop {
        let group = with(|its| its.group);
        let found = PROCS.with(|procs| {
            let mut any = false;
            for (&pid, its) in &procs.table {
                let wanted = match which {
                    -1 => true,
                    0 => its.group == group,
                    which if which < -1 => its.group == -which,
                    which => pid == which,
                };
                if its.parent != me || !wanted {
                    continue;
                }
                any = true;
                if let Some(status) = its.zombie
                    && its.threads.is_empty()
                {
                    return Ok(Some((pid, status)));
                }
            }
            if any { Ok(None) } else { Err(ECHILD) }
        })?;
        if let Some((pid, status)) = found {
            forget(pid);
            return Ok(Some((pid, status)));
        }
        // A zombie whose thread is on its way is one of the next instants.
        if no_hang {
            return Ok(None);
        }
        let soon = sched::now() + sched::SECOND / 1000;
        let dying = PROCS
            .with(|procs| procs.table.values().any(|its| its.parent == me && its.zombie.is_some()));
        match sched::sleep(wait_chan(me), true, "wait", dying.then_some(soon), || ()) {
            Woken::Signal(errno) => return Err(Errno(errno)),
            _ => sweep(),
        }
    }
}

/// execve(2), after its arguments were read. On success the frame is the new program's.
pub fn exec(path: &Path, argv: &[Vec<u8>], frame: &mut Frame) -> Result<(), Errno> {
    if !single(false) {
        return Err(ERESTART);
    }
    let new = vm::new();
    let start = match syscalls::load_program(new, path, argv) {
        Ok(start) => start,
        Err(error) => {
            vm::release(new);
            multiple();
            return Err(error);
        }
    };
    let p = with(|its| its.p);
    oracle::gone(pid());
    // SAFETY: the current process.
    unsafe { (*p).p_flag |= sys::P_INEXEC as i32 };
    imports::notify_exec(p);
    // SAFETY: the current process, whose other threads are stopped at the boundary.
    let old = unsafe { std::mem::replace(&mut (*p).p_vmspace, new) };
    assert_tenant(old);
    vm::release(old);
    // The stopped threads see this when they wake, and end.
    single(true);
    let me = sched::current();
    // SAFETY: the current process, and its only thread.
    unsafe {
        (*p).p_flag &= !(sys::P_INEXEC as i32);
        set_name(&mut (*p).p_comm, &name_of(path));
        (*sched::curthread()).td_name = (*p).p_comm;
    }
    let files = with(|its| {
        its.single = Single::No;
        its.name = name_of(path);
        its.exe = path.to_owned();
        for action in &mut its.actions {
            if action.handler > 1 {
                *action = Action::default();
            }
        }
        // Others who share the table keep theirs.
        if Rc::strong_count(&its.files) > 1 {
            its.files = copy_files(&its.files);
        }
        let files = its.files.borrow();
        let closing =
            |slot: &Option<Descriptor>| slot.as_ref().is_some_and(|its| its.close_on_exec);
        (0..files.len()).filter(|&fd| closing(&files[fd])).collect::<Vec<_>>()
    });
    for fd in files {
        let _ = syscalls::close(fd as i32);
    }
    PROCS.with(|procs| procs.threads.get_mut(&me).expect("running").saved.clear());
    *frame = start;
    Ok(())
}

/// What a thread does before it goes on in user mode: stops, ends, takes signals. False: it ends.
fn return_to_user(frame: &mut Frame) -> bool {
    let me = sched::current();
    let pid = pid();
    loop {
        match with(|its| its.single) {
            Single::Exit(other) if other != me => return false,
            Single::Boundary(other) if other != me => {
                PROCS.with(|procs| procs.threads.get_mut(&me).expect("running").stopped = true);
                sched::wakeup(single_chan(pid), false);
                sched::sleep(stop_chan(pid), false, "thrstp", None, || ());
                PROCS.with(|procs| procs.threads.get_mut(&me).expect("running").stopped = false);
                continue;
            }
            _ => {}
        }
        if with(|its| its.zombie.is_some()) {
            return false;
        }
        match signal::deliver(frame) {
            signal::Delivery::Nothing => return true,
            signal::Delivery::Handler => {}
            signal::Delivery::Ends(signal) => {
                exit(signal & 0x7f);
                return false;
            }
        }
    }
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    sweep();
    PROCS.with(|procs| {
        let mut lines = Vec::new();
        for (pid, its) in procs.table.range(2..) {
            lines.push(format!("process {pid} ({}) is left", its.name));
        }
        if procs.creds.len() != 1 {
            lines.push(format!("{} credentials are left", procs.creds.len() - 1));
        }
        // SAFETY: credential 0 is never freed.
        let count = unsafe { (*procs.cred0).cr_ref };
        // The first reference, process 0 with its threads, and init.
        let wanted = 4 + crate::bio::enders() as i64;
        if count != wanted {
            lines.push(format!("the kernel's credential has {count} references, not {wanted}"));
        }
        if vm::count() != 1 {
            lines.push(format!("{} address spaces are left", vm::count() - 1));
        }
        // SAFETY: address space 0 is never freed.
        let count = unsafe { (*procs.vmspace0).vm_refcnt };
        if count != 3 {
            lines.push(format!("the kernel's address space has {count} references, not 3"));
        }
        lines
    })
}

/// The process that a struct proc is.
pub fn of(p: *mut sys::proc_) -> i32 {
    // SAFETY: the modules pass live processes; a dead one's number is none.
    unsafe { (*p).p_pid }
}
