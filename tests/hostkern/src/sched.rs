// SPDX-License-Identifier: BSD-2-Clause
//! Threads, one at a time; virtual time; sleeping and mutexes.
//!
//! Every emulated thread is a host thread that waits for its turn. The one whose turn it is hands
//! over at a scheduling point: the beginning and end of every kernel call the modules make, every
//! system call, and wherever it sleeps or blocks; besides, it may be stopped between two instructions
//! of a module (`probe`). Who is next comes from the seed (`strategy`) or from a list (`decisions`), so
//! a run is a function of its seed and its input. Time advances a little with every call, and jumps to
//! the next timeout when nobody can run.

use std::cell::Cell;
mod mutex;
mod told;
mod turns;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub use mutex::{
    forget_mutex, lock_order, mtx_destroy, mtx_init, mtx_lock, mtx_owned, mtx_unlock, word_of,
};
use told::Event;
pub use told::{calls, count_calls, keep, note, recent, table, taken};
use turns::Why;

use crate::decisions::{Decision, Script};
use crate::state::{Held, Rng};
use crate::strategy::{Policy, Strategy};
use crate::{mem, probe, report, signal, sys, user, vm};

/// A thread's slot; its struct pcpu has the same index.
pub type Tid = usize;

/// The most threads there can be at once.
pub const MAX_THREADS: usize = 1024;

/// A second as sbintime_t.
pub const SECOND: i64 = 1 << 32;

/// What a kernel call takes, in virtual time: 100 ns.
const STEP: i64 = SECOND / 10_000_000;

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
    /// Who it is whatever the schedule: made from who started it, and as which of its threads.
    id: u64,
    /// Threads it has started.
    started: u64,
    /// Scheduling points it has passed, and how often since then it was asked who goes on.
    point: u64,
    turn: u32,
    /// The number of the turn it had last.
    last: u64,
    /// What is left to chance in what it does, whoever else runs.
    rng: Rng,
}

pub struct Sched {
    threads: Vec<Thread>,
    current: Tid,
    pub now: i64,
    seed: u64,
    /// What chance decides before there is a thread.
    rng: Rng,
    strategy: Strategy,
    /// Once in so many points a sleeper wakes without reason.
    spurious: u64,
    /// Once in so many points a breakpoint is made where a thread will be stopped.
    stops: u64,
    /// How often one was stopped.
    stopped: u64,
    /// The list that decides instead of the strategy.
    script: Option<Script>,
    /// The stop of the list that the running thread may come to: where it is, and who goes on.
    awaited: Option<(u64, u64)>,
    /// What was decided, if it is kept.
    record: Option<Vec<Decision>>,
    /// What was done as the list has it.
    taken: Vec<String>,
    /// Nothing happens without reason any more, and everything must have ended then.
    deadline: Option<i64>,
    /// After so many calls that begins by itself, and how long it may take.
    calm_at: (u64, i64),
    /// When timeouts and timers are to be looked at again.
    due: i64,
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
    /// How often each call was made, if somebody wants to know.
    by_name: Option<BTreeMap<&'static str, u64>>,
    mutexes: BTreeMap<u64, String>,
}

static SCHED: Held<Sched> = Held::new(Sched {
    threads: Vec::new(),
    current: 0,
    now: 10 * SECOND,
    seed: 0,
    rng: Rng::new(0),
    strategy: Strategy::new(Policy::Block, 0),
    spurious: 0,
    stops: 0,
    stopped: 0,
    script: None,
    awaited: None,
    record: None,
    taken: Vec::new(),
    deadline: None,
    calm_at: (u64::MAX, 0),
    due: i64::MAX,
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
    by_name: None,
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
            goes_on();
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

/// How turns are given.
pub struct Schedule {
    pub policy: Policy,
    /// Once in so many points a sleeper wakes without reason; 0: never.
    pub spurious: u64,
    /// Once in so many points a breakpoint is made where a thread is stopped; 0: never.
    pub stops: u64,
    /// Decides instead of all these.
    pub script: Option<Script>,
    /// Whether decisions are kept.
    pub record: bool,
    /// Another number, another schedule of the same kind.
    pub number: u64,
    /// After how many calls the run gets calm, and how much time it then has to end.
    pub calm: Option<(u64, i64)>,
}

/// Sets the seed and the schedule, before the first thread starts.
pub fn configure(seed: u64, schedule: Schedule) {
    SCHED.with(|s| {
        s.seed = seed;
        s.rng = Rng::new(seed);
        s.strategy = Strategy::new(
            schedule.policy,
            seed ^ 0x0074_7572_6e73 ^ schedule.number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        s.calm_at = schedule.calm.unwrap_or((u64::MAX, 0));
        s.spurious = schedule.spurious;
        s.stops = schedule.stops;
        s.script = schedule.script;
        s.record = schedule.record.then(Vec::new);
    });
}

/// From here on nobody is woken, stopped or starved without reason, turns are given in order, and
/// everything must have ended after so much time.
pub fn calm(span: i64) {
    SCHED.with(|s| {
        s.deadline = Some(s.now.saturating_add(span));
        s.calm_at = (u64::MAX, 0);
    });
    probe::withdraw_stops();
}

/// Fails the run when it should have ended.
fn is_over_time() -> bool {
    SCHED.with(|s| s.deadline.is_some_and(|deadline| s.now > deadline))
}

/// What was decided until here, if it is kept. `None` when it cannot be looked at.
pub fn recorded() -> Option<Vec<Decision>> {
    SCHED.try_with(|s| s.record.clone()).flatten()
}

/// Whether things may happen without reason.
pub fn is_odd() -> bool {
    SCHED.with(|s| s.spurious != 0)
}

/// A random number: the running thread's next.
pub fn random(limit: u64) -> u64 {
    SCHED.with(|s| s.chance().below(limit))
}

/// What a run came to, for its last line.
pub struct Totals {
    pub hash: u64,
    pub calls: u64,
    pub syscalls: u64,
    pub switches: u64,
    pub stops: u64,
    pub policy: Policy,
}

pub fn totals() -> Totals {
    SCHED.with(|s| Totals {
        hash: s.hash,
        calls: s.calls,
        syscalls: s.syscalls,
        switches: s.switches,
        stops: s.stopped,
        policy: s.strategy.policy(),
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

/// Makes a thread that will run `body`; `None` when there are too many. It is ready at once.
pub fn spawn(td: *mut sys::thread, body: Body) -> Option<Tid> {
    let host = SCHED.with(|s| s.idle.pop()).unwrap_or_else(Host::start);
    let tid = SCHED.with(|s| {
        let free = s.threads.iter().position(|thread| matches!(thread.state, State::Free));
        let tid = free.unwrap_or(s.threads.len());
        if tid >= MAX_THREADS {
            return None;
        }
        let starter = s.threads.get_mut(s.current).map_or((0, 0), |starter| {
            starter.started += 1;
            (starter.id, starter.started)
        });
        let id = Rng::new(starter.0 ^ starter.1.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next();
        let thread = Thread {
            state: State::Ready,
            host: Some(host.clone()),
            td,
            locks: Vec::new(),
            in_module: 0,
            sleepless: None,
            woken: Woken::Wakeup,
            id,
            started: 0,
            point: 0,
            turn: 0,
            last: s.switches,
            rng: Rng::new(s.seed ^ id),
        };
        s.strategy.started(tid);
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
    let next = choose(Why::Gone);
    let its = SCHED.with(|s| s.give_turn(next));
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
    let (due, stop, calms) = SCHED.with(|s| {
        assert!(s.current == me, "a thread runs that has no turn");
        s.calls += 1;
        s.now += STEP;
        s.threads[me].point += 1;
        s.threads[me].turn = 0;
        s.wake_without_reason();
        let stop = s.script.is_none() && s.deadline.is_none() && s.stops != 0 && {
            let odds = s.stops;
            s.strategy.rng().one_in(odds)
        };
        (s.now >= s.due, stop, s.calls >= s.calm_at.0)
    });
    if calms {
        let span = SCHED.with(|s| s.calm_at.1);
        calm(span);
    }
    if is_over_time() {
        report::panic("no progress: the run does not end although nothing disturbs it");
    }
    if due {
        look_at_the_clock();
    }
    if stop {
        let mut rng = SCHED.with(|s| s.strategy.rng().clone());
        probe::stop_somewhere(&mut rng);
        SCHED.with(|s| *s.strategy.rng() = rng);
    }
    let next = SCHED.with(|s| s.decide(Why::Point)).expect("the running thread is ready");
    hand_over(next);
}

/// The running thread, in module code, has come to where it is to be stopped: another one goes on.
pub fn stop(at: u64) {
    let next = SCHED.with(|s| {
        let to = match &s.script {
            None => None,
            Some(_) => match s.awaited.take() {
                Some((site, to)) if site == at => Some(to),
                _ => return None,
            },
        };
        let next = s.decide_stop(at, to)?;
        s.now += STEP;
        s.stopped += 1;
        Some(next)
    });
    if let Some(next) = next {
        trace(at, 1);
        note(told::STOPPED, at, None);
        hand_over(next);
    }
}

/// Lets others run, if there are any: for a thread that waits without sleeping.
pub fn yield_now() {
    SCHED.with(|s| {
        let me = s.current;
        s.now += STEP * 10;
        s.strategy.lower(me);
    });
    // Timeouts must come due although somebody is always ready.
    look_at_the_clock();
    let next = SCHED.with(|s| s.decide(Why::Yield)).expect("the running thread is ready");
    hand_over(next);
}

/// Fires the timers that are due, and wakes whose time is up.
fn look_at_the_clock() {
    loop {
        let due = SCHED.with(|s| {
            let first = s.timers.first().copied().filter(|&(at, _)| at <= s.now);
            first.inspect(|first| {
                s.timers.remove(first);
            })
        });
        match due {
            Some((at, key)) => signal::timer_fired(key, at),
            None => return SCHED.with(Sched::expire),
        }
    }
}

/// Sets off [`signal::timer_fired`] at a moment.
pub fn set_timer(at: i64, key: u64) {
    SCHED.with(|s| {
        s.timers.insert((at, key));
        s.due = s.due.min(at);
    });
}

pub fn clear_timers(key: u64) {
    SCHED.with(|s| s.timers.retain(|&(_, its)| its != key));
}

/// Chooses who runs next; time passes if nobody can.
fn choose(why: Why) -> Tid {
    loop {
        look_at_the_clock();
        let found = SCHED.with(|s| {
            if let Some(next) = s.decide(why) {
                return Some(Some(next));
            }
            match s.next_event() {
                Some(at) => {
                    s.now = s.now.max(at);
                    None
                }
                None => Some(None),
            }
        });
        if is_over_time() {
            report::panic("no progress: nobody can run but when a timeout is over");
        }
        match found {
            Some(Some(tid)) => return tid,
            None => {}
            Some(None) => report::panic("deadlock: no thread can run, and no timeout is due"),
        }
    }
}

/// Gives the turn away: the running thread sleeps or is blocked.
fn dispatch() {
    hand_over(choose(Why::Gone));
}

fn hand_over(next: Tid) {
    let me = current();
    if next != me {
        let (mine, its) = SCHED.with(|s| (s.threads[me].host.clone(), s.give_turn(next)));
        its.expect("a ready thread has a host").grant();
        mine.expect("this thread has a host").wait();
        // It goes on on any processor.
        let cpu = SCHED.with(|s| Rng::new(s.threads[me].id ^ s.now as u64).below(4));
        mem::set_cpuid(me, cpu as u32);
    }
    goes_on();
}

/// The running thread has its turn.
fn goes_on() {
    let (in_module, stop) = SCHED.with(|s| {
        let at = s.place();
        s.awaited = s.script.as_ref().and_then(|script| script.stop(at));
        (s.threads[s.current].in_module > 0, s.awaited)
    });
    if let Some((site, _)) = stop {
        probe::stop_at(site);
    }
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
        s.due = s.due.min(until.unwrap_or(i64::MAX));
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
            let chosen = sleepers[s.chance().below(sleepers.len() as u64) as usize];
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
