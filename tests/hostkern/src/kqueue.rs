// SPDX-License-Identifier: BSD-2-Clause
//! kqueue(2) and its knotes, as far as filters of modules see them: kqueue(9).
//!
//! Each kqueue has a mutex of the modules' kind, taken after the lock of a list of knotes, so that
//! the order of locks is checked. A knote that is being changed is in flux, and waited for.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_long, c_void};

use crate::errno::*;
use crate::socket::{self, So, Which};
use crate::state::Held;
use crate::{file, mem, module, proc, report, sched, sys, syscalls, taskqueue, vm};

/// Events of one kevent(2) that are copied at once.
const BATCH: usize = 8;

/// How many filters there are; their numbers are below 0.
const FILTERS: usize = sys::EVFILT_SYSCOUNT as usize;

struct Kqueue {
    lock: *mut sys::mtx,
    notes: Vec<*mut sys::knote>,
    /// Notes that are to be reported, as QUEUED in their status.
    queue: VecDeque<*mut sys::knote>,
    /// Threads in the middle of reporting; a second one waits.
    scanning: bool,
    /// The descriptor table it belongs to.
    owner: usize,
    /// Knotes of other kqueues that look at this one, and their lock.
    watchers: *mut sys::knlist,
    watchers_lock: *mut sys::mtx,
}

/// A filter's functions, and how many knotes and registrations use them.
#[derive(Clone, Copy)]
struct Filter {
    ops: *const sys::filterops,
    users: u32,
}

struct Kqueues {
    queues: BTreeMap<usize, Kqueue>,
    filters: [Filter; FILTERS],
    /// For lists without a lock of their own.
    lock: *mut sys::mtx,
}

static KQUEUES: Held<Kqueues> = Held::new(Kqueues {
    queues: BTreeMap::new(),
    filters: [Filter { ops: std::ptr::null(), users: 0 }; FILTERS],
    lock: std::ptr::null_mut(),
});

fn word(lock: *mut sys::mtx) -> *mut usize {
    lock.wrapping_byte_add(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

fn new_lock(name: &'static std::ffi::CStr) -> *mut sys::mtx {
    let lock: *mut sys::mtx = mem::new_object();
    sched::mtx_init(word(lock), name.as_ptr());
    lock
}

/// The built-in AIO's filters, whose attach asks what kqfd_register(9)'s callers promise.
pub fn start() {
    let filter = |attach: unsafe extern "C" fn(*mut sys::knote) -> c_int| {
        let ops: *mut sys::filterops = mem::new_object();
        // SAFETY: just made.
        unsafe {
            (*ops).f_attach = Some(attach);
            (*ops).f_detach = Some(builtin_detach);
            (*ops).f_event = Some(builtin_event);
        }
        Filter { ops, users: 0 }
    };
    // EVFILT_USER, as far as it needs no trigger.
    let user: *mut sys::filterops = mem::new_object();
    let lock = new_lock(c"knlist lock for lockless objects");
    // Of what a descriptor is: which functions these are, its attach finds out.
    let of_file = || {
        let ops: *mut sys::filterops = mem::new_object();
        // SAFETY: just made.
        unsafe {
            (*ops).f_isfd = 1;
            (*ops).f_attach = Some(attach_file);
            (*ops).f_detach = Some(detach_file);
            (*ops).f_event = Some(file_event);
        }
        Filter { ops, users: 0 }
    };
    KQUEUES.with(|all| {
        all.lock = lock;
        for filter in [sys::EVFILT_READ, sys::EVFILT_WRITE] {
            all.filters[index(filter).expect("a filter")] = of_file();
        }
        all.filters[index(sys::EVFILT_USER).expect("a filter")] = Filter { ops: user, users: 0 };
        all.filters[index(sys::EVFILT_AIO).expect("a filter")] = filter(builtin_attach_aio);
        all.filters[index(sys::EVFILT_LIO).expect("a filter")] = filter(builtin_attach_lio);
    });
}

/// Takes away what stands for the built-in's filters: it has its own.
pub fn without_stand_ins() {
    KQUEUES.with(|all| {
        for filter in [sys::EVFILT_AIO, sys::EVFILT_LIO] {
            all.filters[index(filter).expect("a filter")].ops = std::ptr::null();
        }
    });
}

/// Where the built-in's structure of a list has its knotes.
const LIO_KLIST: usize = 112;

unsafe extern "C" fn builtin_attach_aio(kn: *mut sys::knote) -> c_int {
    // SAFETY: a knote that is being attached.
    unsafe { builtin_attach(kn, std::mem::offset_of!(sys::kaiocb, klist)) }
}

unsafe extern "C" fn builtin_attach_lio(kn: *mut sys::knote) -> c_int {
    // SAFETY: as above.
    unsafe { builtin_attach(kn, LIO_KLIST) }
}

unsafe fn builtin_attach(kn: *mut sys::knote, offset: usize) -> c_int {
    // SAFETY: kn_sdata is the built-in's object where the kernel alone can say so.
    unsafe {
        if u32::from((*kn).kn_kevent.flags) & sys::EV_FLAG1 == 0 {
            return EPERM.0;
        }
        let object = (*kn).kn_sdata as usize;
        (*kn).kn_ptr.p_v = object as *mut c_void;
        (*kn).kn_kevent.flags &= !(sys::EV_FLAG1 as u16);
        list_add((object + offset) as *mut sys::knlist, kn, false);
    }
    0
}

unsafe extern "C" fn builtin_detach(kn: *mut sys::knote) {
    // SAFETY: an attached knote that is in flux.
    let list = unsafe { (*kn).kn_knlist };
    if !list.is_null() {
        list_remove(list, kn, false);
    }
}

unsafe extern "C" fn builtin_event(_kn: *mut sys::knote, _hint: c_long) -> c_int {
    0
}

fn index(filter: c_int) -> Result<usize, Errno> {
    let index = usize::try_from(!filter).map_err(|_| EINVAL)?;
    if filter < 0 && index < FILTERS { Ok(index) } else { Err(EINVAL) }
}

/// kqueue_add_filteropts.
pub fn add_filter(filter: c_int, ops: *const sys::filterops) -> Result<(), Errno> {
    let index = index(filter)?;
    KQUEUES.with(|all| {
        let its = &mut all.filters[index];
        if !its.ops.is_null() {
            return Err(EEXIST);
        }
        *its = Filter { ops, users: 0 };
        Ok(())
    })
}

/// kqueue_del_filteropts.
pub fn remove_filter(filter: c_int) -> Result<(), Errno> {
    let index = index(filter)?;
    KQUEUES.with(|all| {
        let its = &mut all.filters[index];
        match (its.ops.is_null(), its.users) {
            (true, _) => Err(EINVAL),
            (false, 0) => {
                its.ops = std::ptr::null();
                Ok(())
            }
            _ => Err(EBUSY),
        }
    })
}

fn release_filter(filter: c_int) {
    let index = index(filter).expect("it was used");
    KQUEUES.with(|all| {
        let its = &mut all.filters[index];
        if its.users == 0 {
            report::panic("a kqueue filter is released that nobody uses");
        }
        its.users -= 1;
    });
}

/// A new kqueue behind a file.
pub fn open(fp: *mut sys::file) {
    let lock = new_lock(c"kqueue");
    let watchers_lock = new_lock(c"knotes of a kqueue");
    let watchers: *mut sys::knlist = mem::new_object();
    list_init(watchers, watchers_lock);
    let queue = Kqueue {
        lock,
        notes: Vec::new(),
        queue: VecDeque::new(),
        scanning: false,
        owner: proc::descriptors(),
        watchers,
        watchers_lock,
    };
    KQUEUES.with(|all| all.queues.insert(fp as usize, queue));
}

/// Drops the events of a descriptor that is about to be closed: knote_fdclose.
pub fn descriptor_closed(owner: usize, fd: i32) {
    let ours = |all: &mut Kqueues| -> Vec<usize> {
        let its = all.queues.iter().filter(|(_, queue)| queue.owner == owner);
        its.map(|(&id, _)| id).collect()
    };
    for id in KQUEUES.with(ours) {
        if KQUEUES.with(|all| all.queues.contains_key(&id)) {
            drop_descriptor(id, fd);
        }
    }
}

fn drop_descriptor(id: usize, fd: i32) {
    loop {
        lock(id);
        // SAFETY: knotes live while they are in their kqueue.
        let same = |kn: &&*mut sys::knote| unsafe {
            (***kn).kn_kevent.ident == fd as u64 && (*(***kn).kn_fop).f_isfd != 0
        };
        let Some(kn) = with(id, |queue| queue.notes.iter().find(same).copied()) else { break };
        if in_flux(kn) {
            wait_flux(id);
            continue;
        }
        enter_flux(kn);
        unlock(id);
        drop_note(id, kn);
    }
    unlock(id);
}

fn file_of(kn: *mut sys::knote) -> *mut sys::file {
    // SAFETY: a knote of a descriptor, whose file is open as long as it is there.
    unsafe { (*kn).kn_ptr.p_fp }
}

fn which_of(kn: *mut sys::knote) -> Which {
    // SAFETY: knotes live while they are in their kqueue.
    let reads = unsafe { c_int::from((*kn).kn_kevent.filter) } == sys::EVFILT_READ;
    if reads { Which::Receive } else { Which::Send }
}

unsafe extern "C" fn attach_file(kn: *mut sys::knote) -> c_int {
    let fp = file_of(kn);
    if let Some(so) = socket::of(fp) {
        list_add(socket::notes(so, which_of(kn)), kn, false);
        0
    } else if file::is_kqueue(fp) && which_of(kn) == Which::Receive {
        list_add(with(fp as usize, |queue| queue.watchers), kn, false);
        0
    } else {
        EINVAL.0
    }
}

unsafe extern "C" fn detach_file(kn: *mut sys::knote) {
    let list = unsafe_list(kn);
    if !list.is_null() {
        list_remove(list, kn, false);
    }
}

unsafe extern "C" fn file_event(kn: *mut sys::knote, _hint: c_long) -> c_int {
    let fp = file_of(kn);
    let (ready, data, eof) = match socket::of(fp) {
        Some(so) => socket::event(so, which_of(kn)),
        None => {
            let count = with(fp as usize, |queue| queue.queue.len());
            (count > 0, count as i64, false)
        }
    };
    // SAFETY: a knote that is locked or in flux.
    unsafe {
        (*kn).kn_kevent.data = data;
        if eof {
            (*kn).kn_kevent.flags |= sys::EV_EOF as u16;
        } else {
            (*kn).kn_kevent.flags &= !(sys::EV_EOF as u16);
        }
    }
    c_int::from(ready)
}

/// Tells the kqueues that look at this one: a task of the kernel's.
pub fn tell_watchers(id: usize) {
    if let Some(list) = KQUEUES.with(|all| all.queues.get(&id).map(|queue| queue.watchers)) {
        tell(list, 0, 0);
    }
}

/// Waits until a kqueue has something to report, at most until a moment; whether it has.
///
/// # Errors
/// A signal's.
pub fn poll(fp: *mut sys::file, until: Option<i64>) -> Result<bool, Errno> {
    let id = fp as usize;
    while with(id, |queue| queue.queue.is_empty()) {
        match sched::sleep(event_chan(id), true, "select", until, || ()) {
            sched::Woken::Signal(errno) => return Err(Errno(errno)),
            sched::Woken::Timeout => return Ok(false),
            sched::Woken::Wakeup => {}
        }
    }
    Ok(true)
}

/// The last reference to a kqueue is gone.
pub fn close(fp: *mut sys::file) {
    let id = fp as usize;
    loop {
        lock(id);
        let Some(kn) = with(id, |queue| queue.notes.last().copied()) else {
            unlock(id);
            break;
        };
        if in_flux(kn) {
            wait_flux(id);
            continue;
        }
        enter_flux(kn);
        unlock(id);
        drop_note(id, kn);
    }
    // What looks at it goes with its last descriptor.
    let watchers = with(id, |queue| queue.watchers);
    list_clear(watchers, false, true);
    let queue = KQUEUES.with(|all| all.queues.remove(&id)).expect("open");
    for lock in [queue.lock, queue.watchers_lock] {
        sched::mtx_destroy(word(lock));
        mem::free_object(lock);
    }
    mem::free_object(queue.watchers);
}

fn with<R>(id: usize, action: impl FnOnce(&mut Kqueue) -> R) -> R {
    KQUEUES.with(|all| action(all.queues.get_mut(&id).expect("an open kqueue")))
}

/// A kqueue's lock. What a module's own knote has for one, which is never queued, is not known here.
fn lock_of(id: usize) -> *mut sys::mtx {
    let known = KQUEUES.with(|all| all.queues.get(&id).map(|queue| queue.lock));
    // SAFETY: only the address is taken.
    known.unwrap_or_else(|| unsafe { &raw mut (*(id as *mut sys::kqueue)).kq_lock })
}

fn lock(id: usize) {
    sched::mtx_lock(word(lock_of(id)));
}

fn unlock(id: usize) {
    sched::mtx_unlock(word(lock_of(id)));
}

/// Where threads wait for the flux, or for events: odd, as all channels of ours.
fn flux_chan(id: usize) -> u64 {
    0x44 << 56 | (id as u64) << 1 | 1
}

fn event_chan(id: usize) -> u64 {
    0x45 << 56 | (id as u64) << 1 | 1
}

/// Unlocks, waits until some knote has come out of flux.
fn wait_flux(id: usize) {
    let lock = lock_of(id);
    sched::sleep(flux_chan(id), false, "kqflxwt", None, || sched::mtx_unlock(word(lock)));
}

fn in_flux(kn: *mut sys::knote) -> bool {
    // SAFETY: knotes live while they are in their kqueue.
    unsafe { (*kn).kn_influx > 0 }
}

fn enter_flux(kn: *mut sys::knote) {
    // SAFETY: as above.
    unsafe { (*kn).kn_influx += 1 }
}

/// Needs the kqueue locked.
fn leave_flux(id: usize, kn: *mut sys::knote) {
    // SAFETY: as above.
    unsafe {
        if (*kn).kn_influx == 0 {
            report::panic("a knote leaves flux that is not in flux");
        }
        (*kn).kn_influx -= 1;
    }
    sched::wakeup(flux_chan(id), false);
}

fn status(kn: *mut sys::knote) -> u32 {
    // SAFETY: as above.
    unsafe { (*kn).kn_status as u32 }
}

fn set_status(kn: *mut sys::knote, set: u32, clear: u32) {
    // SAFETY: as above.
    unsafe { (*kn).kn_status = ((status(kn) | set) & !clear) as c_int }
}

/// Puts a knote into the queue of those to be reported. Needs the kqueue locked.
fn activate(id: usize, kn: *mut sys::knote) {
    set_status(kn, sys::KN_ACTIVE, 0);
    if status(kn) & (sys::KN_QUEUED | sys::KN_DISABLED) == 0 {
        set_status(kn, sys::KN_QUEUED, 0);
        let watchers = with(id, |queue| {
            queue.queue.push_back(kn);
            queue.watchers
        });
        sched::wakeup(event_chan(id), false);
        // SAFETY: the list lives as long as the kqueue.
        if unsafe { !(*watchers).kl_list.slh_first.is_null() } {
            taskqueue::enqueue(taskqueue::Task::Kqueue(id));
        }
    }
}

fn unqueue(id: usize, kn: *mut sys::knote) {
    set_status(kn, 0, sys::KN_QUEUED);
    with(id, |queue| queue.queue.retain(|&its| its != kn));
}

fn id_of(kn: *mut sys::knote) -> usize {
    // SAFETY: as above; the pointer is the kqueue's file.
    unsafe { (*kn).kn_kq as usize }
}

/// The list's lock, taken by its own function.
fn lock_list(list: *mut sys::knlist, take: bool) {
    // SAFETY: an initialised list.
    unsafe {
        let function = if take { (*list).kl_lock } else { (*list).kl_unlock };
        function.expect("initialised")((*list).kl_lockarg);
    }
}

unsafe extern "C" fn list_lock(argument: *mut c_void) {
    sched::mtx_lock(word(argument.cast()));
}

unsafe extern "C" fn list_unlock(argument: *mut c_void) {
    sched::mtx_unlock(word(argument.cast()));
}

unsafe extern "C" fn list_assert(argument: *mut c_void, _what: c_int) {
    if !sched::mtx_owned(word(argument.cast())) {
        report::panic("the lock of a list of knotes is not held");
    }
}

/// knlist_init_mtx.
pub fn list_init(list: *mut sys::knlist, lock: *mut sys::mtx) {
    let lock = if lock.is_null() { KQUEUES.with(|all| all.lock) } else { lock };
    // SAFETY: the caller's memory.
    unsafe {
        std::ptr::write_bytes(list, 0, 1);
        (*list).kl_lock = Some(list_lock);
        (*list).kl_unlock = Some(list_unlock);
        (*list).kl_assert_lock = Some(list_assert);
        (*list).kl_lockarg = lock.cast();
    }
}

/// The list of a socket's half, whose lock depends on whether the socket listens.
pub fn socket_list_init(list: *mut sys::knlist, so: So, which: Which) {
    // SAFETY: the socket's own memory.
    unsafe {
        std::ptr::write_bytes(list, 0, 1);
        (*list).kl_lock = Some(socket_list_lock);
        (*list).kl_unlock = Some(socket_list_unlock);
        // Sockets are aligned.
        (*list).kl_lockarg = (so as usize | which as usize) as *mut c_void;
    }
}

fn half(argument: *mut c_void) -> (So, Which) {
    let which = if argument as usize & 1 == 0 { Which::Receive } else { Which::Send };
    ((argument as usize & !1) as So, which)
}

unsafe extern "C" fn socket_list_lock(argument: *mut c_void) {
    let (so, which) = half(argument);
    socket::lock_notes(so, which, true);
}

unsafe extern "C" fn socket_list_unlock(argument: *mut c_void) {
    let (so, which) = half(argument);
    socket::lock_notes(so, which, false);
}

fn check_list(list: *mut sys::knlist, locked: bool, what: &str) {
    // SAFETY: an initialised list.
    let (function, argument) = unsafe { ((*list).kl_lock, (*list).kl_lockarg) };
    let is_sockets =
        function.is_some_and(|its| its as usize == socket_list_lock as *const () as usize);
    let held = if is_sockets {
        let (so, which) = half(argument);
        socket::are_notes_locked(so, which)
    } else {
        sched::mtx_owned(word(argument.cast()))
    };
    if held != locked {
        let is = if locked { "without" } else { "with" };
        report::panic(&format!("{what} {is} the list's lock"));
    }
}

/// knlist_add.
pub fn list_add(list: *mut sys::knlist, kn: *mut sys::knote, locked: bool) {
    check_list(list, locked, "knlist_add");
    if !in_flux(kn) || status(kn) & sys::KN_DETACHED == 0 {
        report::panic("knlist_add of a knote that is not new");
    }
    if !locked {
        lock_list(list, true);
    }
    // SAFETY: under the list's lock.
    unsafe {
        (*kn).kn_selnext.sle_next = (*list).kl_list.slh_first;
        (*list).kl_list.slh_first = kn;
    }
    if !locked {
        lock_list(list, false);
    }
    let id = id_of(kn);
    lock(id);
    // SAFETY: as above.
    unsafe { (*kn).kn_knlist = list };
    set_status(kn, 0, sys::KN_DETACHED);
    unlock(id);
}

/// Takes a knote off its list. Needs the list and the kqueue locked.
fn take_off(list: *mut sys::knlist, kn: *mut sys::knote) {
    // SAFETY: under the list's lock.
    unsafe {
        let mut link: *mut *mut sys::knote = &raw mut (*list).kl_list.slh_first;
        while *link != kn {
            if (*link).is_null() {
                report::panic("a knote is not on the list it is taken off");
            }
            link = &raw mut (**link).kn_selnext.sle_next;
        }
        *link = (*kn).kn_selnext.sle_next;
        (*kn).kn_knlist = std::ptr::null_mut();
    }
    set_status(kn, sys::KN_DETACHED, 0);
}

/// knlist_remove.
pub fn list_remove(list: *mut sys::knlist, kn: *mut sys::knote, locked: bool) {
    check_list(list, locked, "knlist_remove");
    if !in_flux(kn) || status(kn) & sys::KN_DETACHED != 0 {
        report::panic("knlist_remove of a knote that is not in flux, or detached already");
    }
    if !locked {
        lock_list(list, true);
    }
    let id = id_of(kn);
    lock(id);
    take_off(list, kn);
    unlock(id);
    if !locked {
        lock_list(list, false);
    }
}

/// knlist_cleardel: takes all knotes off, and with `kill` ends them; waits for those in flux.
pub fn list_clear(list: *mut sys::knlist, locked: bool, kill: bool) {
    check_list(list, locked, "knlist_cleardel");
    if !locked {
        lock_list(list, true);
    }
    loop {
        // SAFETY: under the list's lock.
        let mut at = unsafe { (*list).kl_list.slh_first };
        let mut fluxing = None;
        while !at.is_null() {
            let kn = at;
            // SAFETY: as above.
            at = unsafe { (*kn).kn_selnext.sle_next };
            let id = id_of(kn);
            lock(id);
            if in_flux(kn) {
                unlock(id);
                fluxing = Some(id);
                continue;
            }
            take_off(list, kn);
            if kill {
                enter_flux(kn);
                unlock(id);
                drop_detached(id, kn);
            } else {
                // SAFETY: under the kqueue's lock.
                unsafe { (*kn).kn_kevent.flags |= (sys::EV_EOF | sys::EV_ONESHOT) as u16 };
                unlock(id);
            }
        }
        let Some(id) = fluxing else { break };
        if locked {
            report::panic("knlist_cleardel would have to wait with the list locked");
        }
        lock(id);
        lock_list(list, false);
        wait_flux(id);
        lock_list(list, true);
    }
    if !locked {
        lock_list(list, false);
    }
}

/// Removes a knote that is in flux and, unless it is so already, detaches it.
fn drop_note(id: usize, kn: *mut sys::knote) {
    if status(kn) & sys::KN_DETACHED == 0 {
        // SAFETY: the filter's own function, for its knote in flux.
        unsafe {
            if let Some(detach) = (*(*kn).kn_fop).f_detach {
                sched::in_module(|| detach(kn));
            }
        }
    }
    drop_detached(id, kn);
}

fn drop_detached(id: usize, kn: *mut sys::knote) {
    if status(kn) & sys::KN_DETACHED == 0 && !unsafe_list(kn).is_null() {
        report::panic("a knote is dropped that is on a list");
    }
    lock(id);
    // Whoever else has it in flux lets go first.
    loop {
        // SAFETY: as for in_flux.
        if unsafe { (*kn).kn_influx } <= 1 {
            break;
        }
        wait_flux(id);
        lock(id);
    }
    if status(kn) & sys::KN_QUEUED != 0 {
        unqueue(id, kn);
    }
    with(id, |queue| queue.notes.retain(|&its| its != kn));
    leave_flux(id, kn);
    unlock(id);
    // SAFETY: nobody else has it any more.
    let filter = c_int::from(unsafe { (*kn).kn_kevent.filter });
    release_filter(filter);
    mem::free_object(kn);
}

fn unsafe_list(kn: *mut sys::knote) -> *mut sys::knlist {
    // SAFETY: as for in_flux.
    unsafe { (*kn).kn_knlist }
}

/// Calls f_event with the list's lock held, as the caller has it.
fn event(kn: *mut sys::knote, hint: c_long) -> bool {
    // SAFETY: the filter's own function, for its knote.
    unsafe {
        match (*(*kn).kn_fop).f_event {
            Some(function) => sched::in_module(|| function(kn, hint)) != 0,
            None => false,
        }
    }
}

/// The list a knote is on, locked; null when it is on none.
fn lock_its_list(kn: *mut sys::knote) -> *mut sys::knlist {
    let list = unsafe_list(kn);
    if !list.is_null() {
        lock_list(list, true);
    }
    list
}

fn unlock_its_list(list: *mut sys::knlist) {
    if !list.is_null() {
        lock_list(list, false);
    }
}

/// Whether the filter answers registrations and reports itself.
fn touch(
    ops: *const sys::filterops,
    kn: *mut sys::knote,
    kev: *mut sys::kevent,
    what: u32,
) -> bool {
    // SAFETY: the filter's own function, for its knote in flux.
    unsafe {
        match (*ops).f_touch {
            Some(function) if (*ops).f_isfd == 0 => {
                sched::in_module(|| function(kn, kev, u64::from(what)));
                true
            }
            _ => false,
        }
    }
}

const EVENT_REGISTER: u32 = 1;
const EVENT_PROCESS: u32 = 2;

/// Adds or changes an event: kqueue_register.
pub fn register(fp: *mut sys::file, kev: &mut sys::kevent) -> Result<(), Errno> {
    let id = fp as usize;
    if KQUEUES.with(|all| !all.queues.contains_key(&id)) {
        return Err(EBADF);
    }
    let flags = u32::from(kev.flags);
    if flags & sys::EV_ENABLE != 0 && flags & sys::EV_DISABLE != 0 {
        return Err(EINVAL);
    }
    let filter = c_int::from(kev.filter);
    let slot = index(filter)?;
    let ops = KQUEUES.with(|all| all.filters[slot].ops);
    if ops.is_null() {
        // A filter that is being exchanged, or that nobody has yet, attaches nothing.
        let known = [sys::EVFILT_AIO, sys::EVFILT_LIO, sys::EVFILT_SENDFILE].contains(&filter);
        return Err(if known { ENXIO } else { EINVAL });
    }
    // SAFETY: a filter's operations live as long as it has users.
    let of_descriptor = unsafe { (*ops).f_isfd } != 0;
    // What is told of is the file that is there now.
    let fd = c_int::try_from(kev.ident).unwrap_or(-1);
    let its = if of_descriptor { Some(syscalls::get(fd, [0, 0])?) } else { None };
    KQUEUES.with(|all| all.filters[slot].users += 1);
    let mut keeps_filter = false;
    let result = register_locked(id, kev, flags, ops, its, &mut keeps_filter);
    if !keeps_filter {
        release_filter(filter);
    }
    let Some(its) = its else { return result };
    // Another thread may have closed it meanwhile.
    let again = syscalls::get(fd, [0, 0]);
    let gone = again != Ok(its);
    if gone {
        drop_descriptor(id, fd);
    }
    if let Ok(again) = again {
        file::release(again);
    }
    file::release(its);
    if gone { Err(EBADF) } else { result }
}

fn register_locked(
    id: usize,
    kev: &mut sys::kevent,
    flags: u32,
    ops: *const sys::filterops,
    file: Option<*mut sys::file>,
    keeps_filter: &mut bool,
) -> Result<(), Errno> {
    let kn = loop {
        lock(id);
        // SAFETY: knotes live while they are in their kqueue.
        let same = |kn: &&*mut sys::knote| unsafe {
            (***kn).kn_kevent.ident == kev.ident && (***kn).kn_kevent.filter == kev.filter
        };
        match with(id, |queue| queue.notes.iter().find(same).copied()) {
            Some(kn) if in_flux(kn) => wait_flux(id),
            other => break other,
        }
    };
    let (kn, list) = match kn {
        None if flags & sys::EV_ADD == 0 => {
            unlock(id);
            return Err(ENOENT);
        }
        None => {
            let kn: *mut sys::knote = mem::new_object();
            // SAFETY: just made; from here on the knote holds the filter.
            let attach = unsafe {
                (*kn).kn_kq = id as *mut _;
                (*kn).kn_fop = ops;
                if let Some(fp) = file {
                    (*kn).kn_ptr.p_fp = fp;
                }
                (*kn).kn_sfflags = kev.fflags as c_int;
                (*kn).kn_sdata = kev.data;
                (kev.fflags, kev.data) = (0, 0);
                (*kn).kn_kevent = *kev;
                let once = sys::EV_ADD | sys::EV_DELETE | sys::EV_ENABLE | sys::EV_DISABLE;
                (*kn).kn_kevent.flags &= !((once | sys::EV_FORCEONESHOT) as u16);
                (*ops).f_attach
            };
            let disabled = if flags & sys::EV_DISABLE != 0 { sys::KN_DISABLED } else { 0 };
            set_status(kn, sys::KN_DETACHED | disabled, 0);
            enter_flux(kn);
            with(id, |queue| queue.notes.push(kn));
            unlock(id);
            *keeps_filter = true;
            let code = match attach {
                // SAFETY: the filter's own function, for a new knote.
                Some(attach) => sched::in_module(|| unsafe { attach(kn) }),
                None => 0,
            };
            if code != 0 {
                drop_detached(id, kn);
                return Err(Errno(code));
            }
            (kn, lock_its_list(kn))
        }
        Some(kn) if flags & sys::EV_DELETE != 0 => {
            enter_flux(kn);
            unlock(id);
            drop_note(id, kn);
            return Ok(());
        }
        Some(kn) => {
            if flags & sys::EV_FORCEONESHOT != 0 {
                // SAFETY: under the kqueue's lock.
                unsafe { (*kn).kn_kevent.flags |= sys::EV_ONESHOT as u16 };
                activate(id, kn);
            }
            if flags & sys::EV_ENABLE != 0 {
                set_status(kn, 0, sys::KN_DISABLED);
            } else if flags & sys::EV_DISABLE != 0 {
                set_status(kn, sys::KN_DISABLED, 0);
            }
            set_status(kn, sys::KN_SCAN, 0);
            enter_flux(kn);
            unlock(id);
            let list = lock_its_list(kn);
            if flags & sys::EV_KEEPUDATA == 0 {
                // SAFETY: in flux.
                unsafe { (*kn).kn_kevent.udata = kev.udata };
            }
            if !touch(ops, kn, kev, EVENT_REGISTER) {
                // SAFETY: in flux.
                unsafe {
                    (*kn).kn_sfflags = kev.fflags as c_int;
                    (*kn).kn_sdata = kev.data;
                }
            }
            (kn, list)
        }
    };
    let fires = status(kn) & sys::KN_DISABLED == 0 && event(kn, 0);
    lock(id);
    if fires || status(kn) & sys::KN_ACTIVE != 0 {
        activate(id, kn);
    }
    set_status(kn, 0, sys::KN_SCAN);
    leave_flux(id, kn);
    unlock(id);
    unlock_its_list(list);
    Ok(())
}

/// knote: tells the list's knotes that something happened.
pub fn tell(list: *mut sys::knlist, hint: c_long, flags: u32) {
    let locked = flags & sys::KNF_LISTLOCKED != 0;
    check_list(list, locked, "knote");
    if !locked {
        lock_list(list, true);
    }
    // SAFETY: under the list's lock.
    let mut at = unsafe { (*list).kl_list.slh_first };
    while !at.is_null() {
        let kn = at;
        // SAFETY: as above.
        at = unsafe { (*kn).kn_selnext.sle_next };
        let id = id_of(kn);
        lock(id);
        // One that is being registered or removed looks for itself, or is not to.
        if (!in_flux(kn) || status(kn) & sys::KN_SCAN != 0) && event(kn, hint) {
            activate(id, kn);
        }
        unlock(id);
    }
    if !locked {
        lock_list(list, false);
    }
}

/// kevent(2).
pub fn kevent(
    fp: *mut sys::file,
    changes: u64,
    change_count: c_int,
    events: u64,
    event_count: c_int,
    until: Option<i64>,
    poll: bool,
) -> Result<u64, Errno> {
    let id = fp as usize;
    if KQUEUES.with(|all| !all.queues.contains_key(&id)) {
        return Err(EBADF);
    }
    let (change_count, event_count) = (
        usize::try_from(change_count).map_err(|_| EINVAL)?,
        usize::try_from(event_count).map_err(|_| EINVAL)?,
    );
    const SIZE: usize = size_of::<sys::kevent>();
    let mut reported = 0;
    for number in 0..change_count {
        // SAFETY: integers and pointers.
        let mut kev: sys::kevent = unsafe { std::mem::zeroed() };
        vm::copyin(changes + (number * SIZE) as u64, (&raw mut kev).cast(), SIZE)?;
        // Flags of the system's are not the user's to set.
        kev.flags &= !(sys::EV_SYSFLAGS as u16);
        let receipt = u32::from(kev.flags) & sys::EV_RECEIPT != 0;
        let result = register(fp, &mut kev);
        if result.is_ok() && !receipt {
            continue;
        }
        if reported == event_count {
            return Err(result.err().unwrap_or(Errno(0)));
        }
        kev.flags = sys::EV_ERROR as u16;
        kev.data = i64::from(code(result));
        vm::copyout((&raw const kev).cast(), events + (reported * SIZE) as u64, SIZE)?;
        reported += 1;
    }
    if reported > 0 || event_count == 0 {
        return Ok(reported as u64);
    }
    loop {
        let found = scan(id, event_count);
        if !found.is_empty() {
            for (number, kev) in found.iter().enumerate() {
                let at = events + (number * SIZE) as u64;
                vm::copyout(std::ptr::from_ref(kev).cast(), at, SIZE)?;
            }
            return Ok(found.len() as u64);
        }
        if poll || until.is_some_and(|until| until <= sched::now()) {
            return Ok(0);
        }
        let empty = with(id, |queue| queue.queue.is_empty());
        if !empty {
            continue;
        }
        match sched::sleep(event_chan(id), true, "kqread", until, || ()) {
            sched::Woken::Signal(_) => return Err(EINTR),
            sched::Woken::Timeout => return Ok(0),
            sched::Woken::Wakeup => {}
        }
    }
}

/// Reports what is in the queue now, each knote at most once.
fn scan(id: usize, most: usize) -> Vec<sys::kevent> {
    let mut found = Vec::new();
    lock(id);
    while with(id, |queue| queue.scanning) {
        wait_flux(id);
        lock(id);
    }
    with(id, |queue| queue.scanning = true);
    let mut left = with(id, |queue| queue.queue.len());
    let mut again = Vec::new();
    while left > 0 && found.len() < most.min(BATCH * 1024) {
        left -= 1;
        let Some(kn) = with(id, |queue| queue.queue.pop_front()) else { break };
        if in_flux(kn) {
            with(id, |queue| queue.queue.push_front(kn));
            left += 1;
            wait_flux(id);
            lock(id);
            continue;
        }
        set_status(kn, 0, sys::KN_QUEUED);
        if status(kn) & sys::KN_DISABLED != 0 {
            continue;
        }
        // SAFETY: under the kqueue's lock.
        let flags = u32::from(unsafe { (*kn).kn_kevent.flags });
        if flags & sys::EV_ONESHOT != 0 {
            enter_flux(kn);
            unlock(id);
            // SAFETY: in flux.
            found.push(unsafe { (*kn).kn_kevent });
            drop_note(id, kn);
            lock(id);
            continue;
        }
        set_status(kn, sys::KN_SCAN, 0);
        enter_flux(kn);
        unlock(id);
        let list = lock_its_list(kn);
        let fires = event(kn, 0);
        if fires {
            // SAFETY: integers and pointers.
            let mut kev: sys::kevent = unsafe { std::mem::zeroed() };
            // SAFETY: in flux.
            let ops = unsafe { (*kn).kn_fop };
            if !touch(ops, kn, &mut kev, EVENT_PROCESS) {
                // SAFETY: in flux.
                kev = unsafe { (*kn).kn_kevent };
                if flags & sys::EV_CLEAR != 0 {
                    // SAFETY: in flux.
                    unsafe { ((*kn).kn_kevent.data, (*kn).kn_kevent.fflags) = (0, 0) };
                }
            }
            found.push(kev);
        }
        lock(id);
        if !fires || flags & (sys::EV_CLEAR | sys::EV_DISPATCH) != 0 {
            set_status(kn, 0, sys::KN_ACTIVE);
            if fires && flags & sys::EV_DISPATCH != 0 {
                set_status(kn, sys::KN_DISABLED, 0);
            }
        } else {
            again.push(kn);
        }
        set_status(kn, 0, sys::KN_SCAN);
        // Still in flux until it is back in the queue, so that it cannot go.
        if again.last() == Some(&kn) {
            set_status(kn, sys::KN_QUEUED, 0);
            with(id, |queue| queue.queue.push_back(kn));
            again.pop();
        }
        leave_flux(id, kn);
        unlock_its_list_of(list, id);
    }
    with(id, |queue| queue.scanning = false);
    sched::wakeup(flux_chan(id), false);
    unlock(id);
    found
}

/// The list's lock goes before the kqueue's does, as the order allows giving up in any order.
fn unlock_its_list_of(list: *mut sys::knlist, _id: usize) {
    unlock_its_list(list);
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    KQUEUES.with(|all| {
        let mut lines = Vec::new();
        if !all.queues.is_empty() {
            lines.push(format!("{} kqueues are left", all.queues.len()));
        }
        for (index, filter) in all.filters.iter().enumerate() {
            if filter.users > 0 {
                lines.push(format!("kqueue filter {} has {} users", !(index as i32), filter.users));
            }
            if !filter.ops.is_null() && module::contains(filter.ops as usize) {
                lines.push(format!("kqueue filter {} is a module's", !(index as i32)));
            }
        }
        lines
    })
}
