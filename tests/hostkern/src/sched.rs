// SPDX-License-Identifier: BSD-2-Clause
//! Threads, one at a time; virtual time; sleeping and mutexes.
//!
//! Every emulated thread is a host thread that waits for its turn. The one whose turn it is hands
//! over at a scheduling point: the beginning and end of every kernel call the modules make, every
//! system call, and wherever it sleeps or blocks. Who is next comes from the seed, so a run is a
//! function of its seed and its input. Time advances a little with every call, and jumps to the next
//! timeout when nobody can run.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::state::{Held, Rng};
use crate::{imports, mem, module, report, signal, sys, user, vm};

/// A thread's slot; its struct pcpu has the same index.
pub type Tid = usize;

/// The most threads there can be at once.
pub const MAX_THREADS: usize = 1024;

/// A second as sbintime_t.
pub const SECOND: i64 = 1 << 32;

/// What a kernel call takes, in virtual time: 100 ns.
const STEP: i64 = SECOND / 10_000_000;

/// How many calls a time slice has.
const SLICE: u64 = 5000;

/// Stacks of host threads. The kernel's own are 16 KiB; ours also hold the emulation's frames.
const STACK: usize = 512 << 10;

/// How a thread that slept came to run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    Wakeup,
    Timeout,
    /// With this errno: EINTR or ERESTART.
    Signal(i32),
}

enum State {
    Free,
    Ready,
    Asleep {
        chan: u64,
        catch: bool,
        until: Option<i64>,
        wmesg: String,
    },
    /// Waits for a mutex or a vnode lock.
    Blocked {
        on: u64,
    },
}

struct Thread {
    state: State,
    host: Option<Arc<Host>>,
    td: *mut sys::thread,
    /// Mutexes held: address and name.
    locks: Vec<(u64, String)>,
    /// Depth of calls into module code.
    in_module: u32,
    /// What it is in the middle of that may not sleep.
    sleepless: Option<&'static str>,
    woken: Woken,
    priority: u64,
}

/// How the next thread is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Threads run until they sleep, or their time slice is over.
    Block,
    /// Once in so many scheduling points somebody else goes on, anybody.
    Uniform { odds: u64 },
    /// Threads have random priorities, and once in so many points the running one gets the lowest.
    Priorities { odds: u64 },
}

pub struct Sched {
    threads: Vec<Thread>,
    current: Tid,
    pub now: i64,
    rng: Rng,
    policy: Policy,
    /// Once in so many points a sleeper wakes without reason.
    spurious: u64,
    pub hash: u64,
    pub calls: u64,
    pub syscalls: u64,
    pub switches: u64,
    /// Calls when the running thread's turn began.
    since: u64,
    timers: BTreeSet<(i64, u64)>,
    /// Pairs of lock names, the first held when the second was taken, with the place.
    order: BTreeMap<(String, String), String>,
    idle: Vec<Arc<Host>>,
    /// What happened last, for a report.
    events: VecDeque<Event>,
    /// How much of it is kept.
    keep: usize,
    mutexes: BTreeMap<u64, String>,
}

/// A kernel call, its first argument, and what it returned if it is over; or a system call.
#[derive(Clone, Copy)]
struct Event {
    at: i64,
    tid: Tid,
    td: usize,
    name: &'static str,
    argument: u64,
    result: Option<u64>,
}

static SCHED: Held<Sched> = Held::new(Sched {
    threads: Vec::new(),
    current: 0,
    now: 10 * SECOND,
    rng: Rng::new(0),
    policy: Policy::Block,
    spurious: 0,
    hash: 0xcbf2_9ce4_8422_2325,
    calls: 0,
    syscalls: 0,
    switches: 0,
    since: 0,
    timers: BTreeSet::new(),
    order: BTreeMap::new(),
    idle: Vec::new(),
    events: VecDeque::new(),
    keep: 40,
    mutexes: BTreeMap::new(),
});

thread_local! {
    static CURRENT: Cell<Tid> = const { Cell::new(usize::MAX) };
}

type Body = Box<dyn FnOnce()>;

/// A job's wrapper for its way to a host thread.
struct Job(Body);

// SAFETY: a job's captures are kernel state, which the token orders (see `state`).
unsafe impl Send for Job {}

/// A host thread: runs emulated threads one after the other.
struct Host {
    go: AtomicBool,
    job: Mutex<Option<(Tid, Job)>>,
    thread: Mutex<Option<std::thread::Thread>>,
}

impl Host {
    fn start() -> Arc<Host> {
        let host = Arc::new(Host {
            go: AtomicBool::new(false),
            job: Mutex::new(None),
            thread: Mutex::new(None),
        });
        let its = host.clone();
        let handle = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || its.life())
            .unwrap_or_else(|error| report::give_up(&format!("no host thread: {error}")));
        *host.thread.lock().expect("host") = Some(handle.thread().clone());
        host
    }

    fn life(self: Arc<Host>) {
        user::prepare_host_thread();
        loop {
            self.wait();
            let (tid, job) = self.job.lock().expect("host").take().expect("granted without a job");
            CURRENT.set(tid);
            user::set_gs(mem::pcpu(tid) as u64);
            (job.0)();
            leave(&self);
        }
    }

    fn grant(&self) {
        self.go.store(true, Ordering::Release);
        self.thread.lock().expect("host").as_ref().expect("started").unpark();
    }

    fn wait(&self) {
        while !self.go.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// The running thread.
pub fn current() -> Tid {
    CURRENT.get()
}

/// Its struct thread.
pub fn curthread() -> *mut sys::thread {
    SCHED.with(|s| s.threads[s.current].td)
}

pub fn now() -> i64 {
    SCHED.with(|s| s.now)
}

/// Sets the seed and the policy, before the first thread starts.
pub fn configure(seed: u64, policy: Option<Policy>, spurious: u64) {
    SCHED.with(|s| {
        s.rng = Rng::new(seed);
        s.policy = policy.unwrap_or_else(|| match s.rng.below(8) {
            0 => Policy::Block,
            1 => Policy::Uniform { odds: 2 },
            2..5 => Policy::Uniform { odds: 8 + s.rng.below(56) },
            _ => Policy::Priorities { odds: 20 + s.rng.below(400) },
        });
        s.spurious = spurious;
    });
}

/// Whether things may happen without reason.
pub fn is_odd() -> bool {
    SCHED.with(|s| s.spurious != 0)
}

/// A random number of the run's sequence.
pub fn random(limit: u64) -> u64 {
    SCHED.with(|s| s.rng.below(limit))
}

/// What a run came to, for its last line.
pub struct Totals {
    pub hash: u64,
    pub calls: u64,
    pub syscalls: u64,
    pub switches: u64,
    pub policy: Policy,
}

pub fn totals() -> Totals {
    SCHED.with(|s| Totals {
        hash: s.hash,
        calls: s.calls,
        syscalls: s.syscalls,
        switches: s.switches,
        policy: s.policy,
    })
}

/// Mixes what happened into the trace's hash.
pub fn trace(what: u64, value: u64) {
    SCHED.with(|s| {
        for word in [s.current as u64, what, value] {
            s.hash = (s.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    });
}

/// Remembers what happens, for a report.
pub fn note(name: &'static str, argument: u64, result: Option<u64>) {
    SCHED.with(|s| {
        let tid = s.current;
        let td = s.threads.get(tid).map_or(0, |thread| thread.td as usize);
        let event = Event { at: s.now, tid, td, name, argument, result };
        // A call during which nobody else ran is one line.
        if let Some(last) = s.events.back_mut()
            && (last.tid, last.name, last.argument) == (tid, name, argument)
            && last.result.is_none()
        {
            *last = event;
            return;
        }
        if s.events.len() >= s.keep {
            s.events.pop_front();
        }
        s.events.push_back(event);
    });
}

/// How much of what happened a report shows.
pub fn keep(events: usize) {
    SCHED.with(|s| s.keep = events.max(1));
}

/// What happened last, as a table: time, thread, call. `None` when it cannot be looked at.
pub fn recent() -> Option<Vec<String>> {
    SCHED.try_with(|s| {
        let line = |event: &Event| {
            let Event { at, tid, name, argument, result, .. } = event;
            let time = *at as f64 / SECOND as f64;
            let live = s.threads.get(*tid).is_some_and(|its| its.td as usize == event.td);
            let who = match live {
                true => module::proc_name(event.td as *mut sys::thread),
                false => "a thread that ended".to_owned(),
            };
            let on = match s.mutexes.get(argument) {
                Some(name) => format!("({name} {argument:#x})"),
                None if *name == "system call" => {
                    format!(" {argument} {}", imports::name_of(*argument))
                }
                None => format!("({argument:#x})"),
            };
            let end = match result {
                Some(result) => format!(" = {}", *result as i64),
                None => " ...".to_owned(),
            };
            format!("{time:12.7} {tid:3} {who:24} {name}{on}{end}")
        };
        s.events.iter().map(line).collect()
    })
}

/// Makes a thread that will run `body`; `None` when there are too many. It is ready at once.
pub fn spawn(td: *mut sys::thread, body: Body) -> Option<Tid> {
    let host = SCHED.with(|s| s.idle.pop()).unwrap_or_else(Host::start);
    let tid = SCHED.with(|s| {
        let free = s.threads.iter().position(|thread| matches!(thread.state, State::Free));
        let tid = free.unwrap_or(s.threads.len());
        if tid >= MAX_THREADS {
            return None;
        }
        let thread = Thread {
            state: State::Ready,
            host: Some(host.clone()),
            td,
            locks: Vec::new(),
            in_module: 0,
            sleepless: None,
            woken: Woken::Wakeup,
            priority: s.rng.next() | 1 << 63,
        };
        if tid == s.threads.len() {
            s.threads.push(thread);
        } else {
            s.threads[tid] = thread;
        }
        Some(tid)
    })?;
    mem::set_curthread(tid, td);
    *host.job.lock().expect("host") = Some((tid, Job(body)));
    Some(tid)
}

/// Gives the first thread its turn, from the main thread.
pub fn begin(tid: Tid) {
    let host = SCHED.with(|s| {
        s.current = tid;
        s.threads[tid].host.clone()
    });
    host.expect("spawned").grant();
}

/// The end of an emulated thread: its host waits for the next job.
fn leave(host: &Arc<Host>) {
    let me = current();
    SCHED.with(|s| {
        assert!(
            s.threads[me].locks.is_empty(),
            "a thread ends with a mutex: {:?}",
            s.threads[me].locks
        );
        s.threads[me].state = State::Free;
        s.threads[me].host = None;
        s.threads[me].td = std::ptr::null_mut();
        s.idle.push(host.clone());
    });
    let next = choose();
    let its = SCHED.with(|s| {
        s.current = next;
        s.switches += 1;
        s.since = s.calls;
        s.threads[next].host.clone()
    });
    its.expect("a ready thread has a host").grant();
}

/// A scheduling point: time passes, and somebody else may go on.
pub fn point() {
    let me = current();
    if SCHED.with(|s| s.calls % 16384 == 16383) {
        if report::is_late() {
            report::panic("the run does not come to an end");
        }
        let (calls, syscalls) = SCHED.with(|s| (s.calls, s.syscalls));
        report::progress(calls, syscalls);
    }
    let (next, spurious) = SCHED.with(|s| {
        assert!(s.current == me, "a thread runs that has no turn");
        s.calls += 1;
        s.now += STEP;
        let odds = s.spurious;
        let spurious = s.rng.one_in(odds);
        (s.preempt(), spurious)
    });
    if spurious {
        wake_somebody();
    }
    if next {
        dispatch();
    }
}

/// Lets others run, if there are any: for a thread that waits without sleeping.
pub fn yield_now() {
    SCHED.with(|s| {
        let me = s.current;
        s.now += STEP * 10;
        s.lowest(me);
        // Timeouts must come due although somebody is always ready.
        s.expire();
    });
    fire_timers();
    dispatch_other();
}

impl Sched {
    fn ready(&self) -> Vec<Tid> {
        let ready = |tid: &Tid| matches!(self.threads[*tid].state, State::Ready);
        (0..self.threads.len()).filter(ready).collect()
    }

    /// Whether the running thread is to hand over now.
    fn preempt(&mut self) -> bool {
        match self.policy {
            Policy::Block => self.calls - self.since >= SLICE,
            Policy::Uniform { odds } => self.rng.one_in(odds),
            Policy::Priorities { odds } => {
                let me = self.current;
                if self.rng.one_in(odds) {
                    self.lowest(me);
                }
                true
            }
        }
    }

    fn lowest(&mut self, tid: Tid) {
        let lowest = self.threads.iter().map(|thread| thread.priority).min().unwrap_or(1);
        self.threads[tid].priority = lowest.saturating_sub(1);
    }

    fn pick(&mut self, ready: &[Tid]) -> Tid {
        match self.policy {
            Policy::Priorities { .. } => {
                let best = ready.iter().max_by_key(|&&tid| (self.threads[tid].priority, tid));
                *best.expect("somebody is ready")
            }
            _ => ready[self.rng.below(ready.len() as u64) as usize],
        }
    }

    /// Wakes whose time is up.
    fn expire(&mut self) {
        let now = self.now;
        for thread in &mut self.threads {
            if let State::Asleep { until: Some(until), .. } = thread.state
                && until <= now
            {
                thread.state = State::Ready;
                thread.woken = Woken::Timeout;
            }
        }
    }

    /// When the next timeout is.
    fn next_event(&self) -> Option<i64> {
        let sleepers = self.threads.iter().filter_map(|thread| match thread.state {
            State::Asleep { until, .. } => until,
            _ => None,
        });
        sleepers.chain(self.timers.first().map(|&(at, _)| at)).min()
    }
}

fn fire_timers() {
    loop {
        let due = SCHED.with(|s| {
            let first = s.timers.first().copied().filter(|&(at, _)| at <= s.now);
            first.inspect(|first| {
                s.timers.remove(first);
            })
        });
        match due {
            Some((at, key)) => signal::timer_fired(key, at),
            None => return,
        }
    }
}

/// Sets off [`signal::timer_fired`] at a moment.
pub fn set_timer(at: i64, key: u64) {
    SCHED.with(|s| s.timers.insert((at, key)));
}

pub fn clear_timers(key: u64) {
    SCHED.with(|s| s.timers.retain(|&(_, its)| its != key));
}

/// Chooses who runs next; time passes if nobody can.
fn choose() -> Tid {
    loop {
        fire_timers();
        let found = SCHED.with(|s| {
            s.expire();
            let ready = s.ready();
            if !ready.is_empty() {
                return Some(Some(s.pick(&ready)));
            }
            match s.next_event() {
                Some(at) => {
                    s.now = s.now.max(at);
                    None
                }
                None => Some(None),
            }
        });
        match found {
            Some(Some(tid)) => return tid,
            None => {}
            Some(None) => report::panic("deadlock: no thread can run, and no timeout is due"),
        }
    }
}

fn dispatch() {
    hand_over(choose());
}

/// As `dispatch`, but not to the running thread if there is another.
fn dispatch_other() {
    let next = SCHED.with(|s| {
        let me = s.current;
        let mut ready = s.ready();
        ready.retain(|&tid| tid != me);
        if ready.is_empty() { me } else { s.pick(&ready) }
    });
    hand_over(next);
}

fn hand_over(next: Tid) {
    let me = current();
    if next != me {
        let (mine, its) = SCHED.with(|s| {
            s.current = next;
            s.switches += 1;
            s.since = s.calls;
            (s.threads[me].host.clone(), s.threads[next].host.clone())
        });
        its.expect("a ready thread has a host").grant();
        mine.expect("this thread has a host").wait();
    }
    let (in_module, cpu) = SCHED.with(|s| (s.threads[me].in_module > 0, s.rng.below(4)));
    mem::set_cpuid(me, cpu as u32);
    if in_module {
        vm::shut_window();
    }
}

/// Marks a call into module code; user memory is out of reach meanwhile.
pub fn in_module<R>(call: impl FnOnce() -> R) -> R {
    let me = current();
    SCHED.with(|s| s.threads[me].in_module += 1);
    vm::shut_window();
    let result = call();
    SCHED.with(|s| s.threads[me].in_module -= 1);
    result
}

/// Calls what may not sleep, whoever it is called by: an interrupt's handler and its like.
pub fn without_sleep<R>(what: &'static str, call: impl FnOnce() -> R) -> R {
    let me = current();
    let before = SCHED.with(|s| s.threads[me].sleepless.replace(what));
    let result = call();
    SCHED.with(|s| s.threads[me].sleepless = before);
    result
}

/// A kernel process's thread leaves module code for good, wherever it is.
pub fn left_module() {
    let me = current();
    SCHED.with(|s| s.threads[me].in_module = 0);
}

/// Sleeps on `chan`. `before` runs when the thread counts as asleep and nobody else has run: it gives
/// up the interlock. Returns why it woke.
pub fn sleep(
    chan: u64,
    catch: bool,
    wmesg: &str,
    until: Option<i64>,
    before: impl FnOnce(),
) -> Woken {
    let me = current();
    SCHED.with(|s| {
        if let Some(where_) = s.threads[me].sleepless {
            report::panic(&format!("sleeping on {wmesg} in {where_}"));
        }
    });
    if catch && let Some(errno) = signal::interruption(me) {
        before();
        point();
        return Woken::Signal(errno);
    }
    SCHED.with(|s| {
        if let Some((_, name)) = s.threads[me].locks.last()
            && s.threads[me].locks.len() > 1
        {
            report::panic(&format!("sleeping on {wmesg} with another mutex held ({name})"));
        }
        s.threads[me].woken = Woken::Wakeup;
        s.threads[me].state = State::Asleep { chan, catch, until, wmesg: wmesg.to_owned() };
    });
    before();
    SCHED.with(|s| {
        if let Some((_, name)) = s.threads[me].locks.last() {
            report::panic(&format!("sleeping on {wmesg} with a mutex held ({name})"));
        }
    });
    dispatch();
    SCHED.with(|s| s.threads[me].woken)
}

/// wakeup(9): everybody on the channel, or one of them.
pub fn wakeup(chan: u64, one: bool) {
    SCHED.with(|s| {
        let on = |thread: &Thread| matches!(thread.state, State::Asleep { chan: its, .. } if its == chan);
        let mut sleepers: Vec<Tid> = (0..s.threads.len()).filter(|&tid| on(&s.threads[tid])).collect();
        if one && sleepers.len() > 1 {
            let chosen = sleepers[s.rng.below(sleepers.len() as u64) as usize];
            sleepers = vec![chosen];
        }
        for tid in sleepers {
            s.threads[tid].state = State::Ready;
            s.threads[tid].woken = Woken::Wakeup;
        }
    });
}

/// Wakes a thread out of an interruptible sleep.
pub fn interrupt(tid: Tid, errno: i32) {
    SCHED.with(|s| {
        if matches!(s.threads[tid].state, State::Asleep { catch: true, .. }) {
            s.threads[tid].state = State::Ready;
            s.threads[tid].woken = Woken::Signal(errno);
        }
    });
}

/// A sleep of the modules' returns without reason, as sleep(9) allows.
fn wake_somebody() {
    SCHED.with(|s| {
        // Sleeps of ours have odd channels.
        let module =
            |thread: &Thread| matches!(thread.state, State::Asleep { chan, .. } if chan & 1 == 0);
        let sleepers: Vec<Tid> =
            (0..s.threads.len()).filter(|&tid| module(&s.threads[tid])).collect();
        if !sleepers.is_empty() {
            let tid = sleepers[s.rng.below(sleepers.len() as u64) as usize];
            s.threads[tid].state = State::Ready;
            s.threads[tid].woken = Woken::Wakeup;
        }
    });
}

/// Waits, not interruptibly, until [`unblock`] is called for `on`.
pub fn block(on: u64) {
    let me = current();
    SCHED.with(|s| s.threads[me].state = State::Blocked { on });
    dispatch();
}

pub fn unblock(on: u64) {
    SCHED.with(|s| {
        for thread in &mut s.threads {
            if matches!(thread.state, State::Blocked { on: its } if its == on) {
                thread.state = State::Ready;
            }
        }
    });
}

/// Fails the run when the thread holds a mutex: `what` may sleep.
pub fn may_sleep(what: &str) {
    SCHED.with(|s| {
        if let Some(where_) = s.threads[s.current].sleepless {
            report::panic(&format!("{what}, which may sleep, is called in {where_}"));
        }
        if let Some((_, name)) = s.threads[s.current].locks.last() {
            report::panic(&format!(
                "{what}, which may sleep, is called with a mutex held ({name})"
            ));
        }
    });
}

/// struct lock_object's flag of an initialised lock.
const LO_INITIALIZED: u32 = 0x1_0000;

/// The mutex that has this lock word: what mutex(9)'s functions are given.
fn mutex_of(word: *mut usize) -> *mut sys::mtx {
    word.wrapping_byte_sub(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

fn mutex_name(mutex: *mut sys::mtx) -> String {
    // SAFETY: an initialised mutex's name is a C string that outlives it.
    unsafe { CStr::from_ptr((*mutex).lock_object.lo_name) }.to_string_lossy().into_owned()
}

pub fn mtx_init(word: *mut usize, name: *const c_char) {
    let mutex = mutex_of(word);
    // SAFETY: the caller's memory for a mutex.
    unsafe {
        if (*mutex).lock_object.lo_flags & LO_INITIALIZED != 0 {
            report::panic("a mutex is initialised twice");
        }
        (*mutex).lock_object.lo_name = name;
        (*mutex).lock_object.lo_flags = LO_INITIALIZED;
        (*mutex).mtx_lock = sys::MTX_UNOWNED as usize;
    }
    SCHED.with(|s| s.mutexes.insert(word as u64, mutex_name(mutex)));
}

pub fn mtx_destroy(word: *mut usize) {
    let mutex = checked(word, "destroyed");
    // SAFETY: an initialised mutex, by `checked`.
    unsafe {
        if (*mutex).mtx_lock != sys::MTX_UNOWNED as usize {
            report::panic(&format!("mutex {} is destroyed while it is held", mutex_name(mutex)));
        }
        (*mutex).mtx_lock = sys::MTX_DESTROYED as usize;
        (*mutex).lock_object.lo_flags = 0;
    }
}

fn checked(word: *mut usize, what: &str) -> *mut sys::mtx {
    let mutex = mutex_of(word);
    // SAFETY: what the caller takes for a mutex is mapped: a fault would be reported as its fault.
    if unsafe { (*mutex).lock_object.lo_flags } & LO_INITIALIZED == 0 {
        report::panic(&format!("a mutex that is not initialised is {what} ({word:p})"));
    }
    mutex
}

/// mtx_lock(9), with the order of locks checked.
pub fn mtx_lock(word: *mut usize) {
    let mutex = checked(word, "locked");
    let name = mutex_name(mutex);
    let me = curthread() as usize;
    // SAFETY: an initialised mutex; only the running thread touches it.
    if unsafe { word.read_volatile() } == me {
        report::panic(&format!("mutex {name} is locked by its owner"));
    }
    check_order(&name);
    // SAFETY: as above.
    while unsafe { word.read_volatile() } != sys::MTX_UNOWNED as usize {
        block(word as u64);
        checked(word, "waited for");
    }
    // SAFETY: as above.
    unsafe { word.write_volatile(me) };
    SCHED.with(|s| {
        let me = s.current;
        s.threads[me].locks.push((word as u64, name));
    });
}

pub fn mtx_unlock(word: *mut usize) {
    let mutex = checked(word, "unlocked");
    // SAFETY: an initialised mutex.
    if unsafe { word.read_volatile() } != curthread() as usize {
        report::panic(&format!(
            "mutex {} is unlocked by a thread that does not hold it",
            mutex_name(mutex)
        ));
    }
    // SAFETY: as above.
    unsafe { word.write_volatile(sys::MTX_UNOWNED as usize) };
    SCHED.with(|s| {
        let me = s.current;
        s.threads[me].locks.retain(|(its, _)| *its != word as u64);
    });
    unblock(word as u64);
}

/// Whether the running thread holds the mutex.
pub fn mtx_owned(word: *mut usize) -> bool {
    SCHED.with(|s| s.threads[s.current].locks.iter().any(|(its, _)| *its == word as u64))
}

/// The lock word of the mutex that begins with this lock object.
pub fn word_of(lock: *mut sys::lock_object) -> *mut usize {
    lock.wrapping_byte_add(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

/// Remembers the order, and fails the run when the opposite was seen, however indirectly.
fn check_order(name: &str) {
    let bad = SCHED.with(|s| {
        let held: Vec<String> =
            s.threads[s.current].locks.iter().map(|(_, name)| name.clone()).collect();
        for first in held {
            let pair = (first, name.to_owned());
            if s.order.contains_key(&pair) {
                continue;
            }
            // Whether `first` was ever taken under what is taken now.
            let mut seen = BTreeSet::from([name.to_owned()]);
            let mut todo = vec![name.to_owned()];
            while let Some(at) = todo.pop() {
                for (from, to) in s.order.keys() {
                    if *from == at && seen.insert(to.clone()) {
                        todo.push(to.clone());
                    }
                }
            }
            if seen.contains(&pair.0) {
                return Some(pair.0);
            }
            s.order.insert(pair, String::new());
        }
        None
    });
    if let Some(first) = bad {
        report::panic(&format!(
            "lock order reversal: {name} is taken under {first}, and the other way round"
        ));
    }
}

/// The order of locks that was seen.
pub fn lock_order() -> Vec<String> {
    SCHED.with(|s| s.order.keys().map(|(from, to)| format!("{from} -> {to}")).collect())
}

/// Checks that the thread holds no mutex, at the end of a system call.
pub fn assert_no_locks(what: &str) {
    SCHED.with(|s| {
        if let Some((_, name)) = s.threads[s.current].locks.last() {
            report::panic(&format!("{what} returns with a mutex held ({name})"));
        }
    });
}

pub fn count_syscall() {
    SCHED.with(|s| s.syscalls += 1);
}

/// What every thread does, for a report. `None` when the state cannot be looked at.
pub fn table() -> Option<Vec<String>> {
    SCHED.try_with(|s| {
        let time = s.now as f64 / SECOND as f64;
        let mut lines = vec![format!("time {time:.6} s, {} kernel calls, {:?}", s.calls, s.policy)];
        for (tid, thread) in s.threads.iter().enumerate() {
            let state = match &thread.state {
                State::Free => continue,
                State::Ready if tid == s.current => "running".to_owned(),
                State::Ready => "ready".to_owned(),
                State::Asleep { chan, until, wmesg, catch } => {
                    let until = until.map_or(String::new(), |at| {
                        format!(" until {:.6} s", at as f64 / SECOND as f64)
                    });
                    let catch = if *catch { ", interruptible" } else { "" };
                    format!("asleep on {wmesg} ({chan:#x}{catch}){until}")
                }
                State::Blocked { on } => format!("blocked on {on:#x}"),
            };
            let locks: Vec<&str> = thread.locks.iter().map(|(_, name)| name.as_str()).collect();
            let locks = if locks.is_empty() { String::new() } else { format!(", holds {locks:?}") };
            lines.push(format!("thread {tid} of {}: {state}{locks}", module::proc_name(thread.td)));
        }
        lines
    })
}
