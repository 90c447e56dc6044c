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
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::decisions::{Decision, Place, Script, What};
use crate::state::{Held, Rng};
use crate::strategy::{Policy, SLICE, Strategy};
use crate::{imports, mem, module, probe, report, signal, sys, user, vm};

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

/// Why it is asked who goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The running thread may keep its turn.
    Point,
    /// It wants others to go on.
    Yield,
    /// It cannot go on.
    Gone,
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
    seed: 0,
    rng: Rng::new(0),
    strategy: Strategy::new(Policy::Block, 0),
    spurious: 0,
    stops: 0,
    stopped: 0,
    script: None,
    awaited: None,
    record: None,
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
}

/// Sets the seed and the schedule, before the first thread starts.
pub fn configure(seed: u64, schedule: Schedule) {
    SCHED.with(|s| {
        s.seed = seed;
        s.rng = Rng::new(seed);
        s.strategy = Strategy::new(schedule.policy, seed ^ 0x7475_726e_73);
        s.spurious = schedule.spurious;
        s.stops = schedule.stops;
        s.script = schedule.script;
        s.record = schedule.record.then(Vec::new);
    });
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
                None if *name == STOPPED => {
                    format!(" {}", module::symbolize(*argument).unwrap_or_default())
                }
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
    let (due, stop) = SCHED.with(|s| {
        assert!(s.current == me, "a thread runs that has no turn");
        s.calls += 1;
        s.now += STEP;
        s.threads[me].point += 1;
        s.threads[me].turn = 0;
        s.wake_without_reason();
        let stop = s.script.is_none() && s.stops != 0 && {
            let odds = s.stops;
            s.strategy.rng().one_in(odds)
        };
        (s.now >= s.due, stop)
    });
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
        note(STOPPED, at, None);
        hand_over(next);
    }
}

/// What a report says of a thread that was stopped between two instructions.
const STOPPED: &str = "loses its turn at";

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

impl Sched {
    fn ready(&self) -> Vec<Tid> {
        let ready = |tid: &Tid| matches!(self.threads[*tid].state, State::Ready);
        (0..self.threads.len()).filter(ready).collect()
    }

    /// What is left to chance: the running thread's own, that another schedule changes nothing in it.
    fn chance(&mut self) -> &mut Rng {
        match self.threads.get_mut(self.current) {
            Some(thread) => &mut thread.rng,
            None => &mut self.rng,
        }
    }

    fn place(&self) -> Place {
        let me = &self.threads[self.current];
        Place { thread: me.id, point: me.point, turn: me.turn }
    }

    fn note_down(&mut self, what: What) {
        let at = self.place();
        if let Some(record) = &mut self.record {
            record.push(Decision { at, what });
        }
    }

    /// The slot of a thread that is ready.
    fn ready_one(&self, id: u64) -> Option<Tid> {
        let is = |thread: &Thread| thread.id == id && matches!(thread.state, State::Ready);
        self.threads.iter().position(is)
    }

    /// Who goes on without a decision: the running thread as long as it may, then who has waited
    /// for longest.
    fn usual(&self, why: Why, ready: &[Tid]) -> Option<Tid> {
        let me = self.current;
        if why == Why::Point && self.calls - self.since < SLICE {
            return Some(me);
        }
        let others = ready.iter().copied().filter(|&tid| tid != me);
        let other = others.min_by_key(|&tid| (self.threads[tid].last, tid));
        other.or((why != Why::Gone).then_some(me))
    }

    /// Who goes on; `None` when nobody is ready.
    fn decide(&mut self, why: Why) -> Option<Tid> {
        let (me, at) = (self.current, self.place());
        if self.awaited.take().is_some() {
            probe::withdraw_stops();
        }
        let ready = match why {
            // The common case: nobody asks.
            Why::Point if self.script.is_some() || !self.strategy.passes(me) => None,
            _ => Some(self.ready()),
        };
        let next = match (&self.script, ready) {
            (Some(script), ready) => {
                let listed = script.next(at).and_then(|id| self.ready_one(id));
                listed.or_else(|| self.usual(why, &ready.unwrap_or_else(|| self.ready())))
            }
            (None, None) => self.usual(why, &self.ready_if_late()),
            (None, Some(mut ready)) => {
                if why == Why::Yield && ready.len() > 1 {
                    ready.retain(|&tid| tid != me);
                }
                let usual = self.usual(why, &ready);
                let late = why == Why::Point && usual != Some(me);
                if late {
                    self.strategy.lower(me);
                    ready.retain(|&tid| tid != me);
                }
                let chosen = (!ready.is_empty()).then(|| self.strategy.pick(&ready));
                if let Some(chosen) = chosen.filter(|_| chosen != usual) {
                    self.note_down(What::To(self.threads[chosen].id));
                }
                chosen
            }
        }?;
        self.threads[me].turn += 1;
        Some(next)
    }

    /// Those who are ready, if the running thread's time slice is over.
    fn ready_if_late(&self) -> Vec<Tid> {
        if self.calls - self.since < SLICE { Vec::new() } else { self.ready() }
    }

    /// Who goes on when the running thread is stopped between two instructions: `to`, or anybody.
    /// `None` when nobody else is ready.
    fn decide_stop(&mut self, site: u64, to: Option<u64>) -> Option<Tid> {
        let me = self.current;
        let mut ready = self.ready();
        ready.retain(|&tid| tid != me);
        if ready.is_empty() {
            return None;
        }
        let listed = to.and_then(|id| self.ready_one(id)).filter(|&tid| tid != me);
        let next = match (listed, to) {
            (Some(next), _) => next,
            (None, Some(_)) => self.usual(Why::Yield, &ready)?,
            (None, None) => {
                self.strategy.lower(me);
                self.strategy.pick(&ready)
            }
        };
        self.note_down(What::Stop { site, to: self.threads[next].id });
        self.threads[me].turn += 1;
        Some(next)
    }

    /// Gives another thread the turn; its host.
    fn give_turn(&mut self, next: Tid) -> Option<Arc<Host>> {
        let me = self.current;
        self.threads[me].last = self.switches;
        self.current = next;
        self.switches += 1;
        self.since = self.calls;
        self.threads[next].host.clone()
    }

    /// Now and then a sleep of the modules' returns without reason, as sleep(9) allows.
    fn wake_without_reason(&mut self) {
        // Sleeps of ours have odd channels.
        let sleeps =
            |thread: &Thread| matches!(thread.state, State::Asleep { chan, .. } if chan & 1 == 0);
        let chosen = match &self.script {
            Some(script) => script.wake(self.place()).and_then(|id| {
                self.threads.iter().position(|thread| thread.id == id && sleeps(thread))
            }),
            None => {
                let odds = self.spurious;
                if !self.strategy.rng().one_in(odds) {
                    return;
                }
                let sleepers: Vec<Tid> =
                    (0..self.threads.len()).filter(|&tid| sleeps(&self.threads[tid])).collect();
                (!sleepers.is_empty())
                    .then(|| sleepers[self.strategy.rng().below(sleepers.len() as u64) as usize])
            }
        };
        if let Some(tid) = chosen {
            self.note_down(What::Wake(self.threads[tid].id));
            self.threads[tid].state = State::Ready;
            self.threads[tid].woken = Woken::Wakeup;
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
        self.due = self.next_event().unwrap_or(i64::MAX);
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

/// Takes what lies in memory for no mutex.
pub fn forget_mutex(word: *mut usize) {
    // SAFETY: the caller's memory for a mutex.
    unsafe { (*mutex_of(word)).lock_object.lo_flags = 0 }
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
        let mut lines = vec![format!(
            "time {time:.6} s, {} kernel calls, {}",
            s.calls,
            s.strategy.policy().text()
        )];
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
