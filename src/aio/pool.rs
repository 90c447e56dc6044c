// SPDX-License-Identifier: BSD-2-Clause
//! The workers, and the queue of processes that have something for them.
//!
//! The unit of the queue is the process, not the request: a worker takes a process, moves into its
//! address space once, and performs its requests until none is left or another process waits. A
//! process is in the queue at most once (`scheduled`), so a submission to a process that is already
//! scheduled does not come here at all.
//!
//! Workers are started by one more kernel process, the manager, and never by a submitter: fork(2)'s
//! inside looks at the signals of whoever calls it, and sleeps half a second when it fails. A
//! submitter waits for the manager only while there is no worker at all, which is where it learns
//! that none can be had.
//!
//! An idle worker stays in the address space it was last in, until it gets other work or the process
//! goes: most often the next request is of the same process, and is spared two changes of the address
//! space and what they make the processor forget.
//!
//! No worker sets a clock when it sleeps. While there are more workers than are to be kept, the manager
//! does: it has as many end as were never needed in the time a worker may be idle. It has one too while
//! a process waits for `max_aio_per_proc`, of whose changes nobody tells.
//!
//! Difference from the built-in: one worker always stays, so that an accepted request never lacks
//! one.
//!
//! # Lock
//! `aio_rs pool`: everything in [`Inner`]. Taken after a process's mutex or alone; nothing is
//! locked under it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::config::Config;
use super::engine::Engine;
use super::park;
use super::process::{self, Process};
use super::statistics::By;
use crate::kern::kproc::{self, Worker};
use crate::kern::mtx::{Guard, Mutex};
use crate::kern::sleep::{Channel, Deadline, Span};
use crate::kern::vmspace::Home;
use crate::model::Errno;

/// How many sleep channels the workers have.
const SEATS: usize = 256;

/// How many of the workers that are to be kept are started before they are needed, at most: the
/// built-in's default of all workers. A target of millions does not take all of the process table.
const EAGER: usize = 32;

/// The seat of the manager, who is no worker.
const MANAGER: usize = usize::MAX;

/// See the file's text.
pub struct Pool {
    inner: Mutex<Inner>,
    /// Workers that run, for `vfs.aio.rs.num_procs` and a look without the lock.
    present: Arc<AtomicI32>,
    /// The queue's length, for a look without the lock.
    queued: AtomicUsize,
    /// How much can be in the queue; it grows under the lock.
    registered: Arc<AtomicUsize>,
    /// How many processes have gone; it grows under the lock.
    evictions: AtomicUsize,
    /// Only its addresses are used; seats beyond it share them.
    seats: Box<[u8]>,
}

struct Inner {
    /// Has room for everything that can be in it, and is dropped empty; without telling the compiler so,
    /// a larger one could not be put in its place with little stack.
    queue: VecDeque<ManuallyDrop<Work>>,
    /// Seats of idle workers, youngest last. Has room for every seat.
    idle: Vec<usize>,
    /// How long a worker may be idle, in clock ticks, if the manager sleeps no longer than that.
    watched: Option<i32>,
    /// The least number of idle workers since the manager set its clock.
    spare: usize,
    /// A process with requests was taken from the queue while `max_aio_per_proc` was 0. Nobody says when
    /// it is raised, so the manager queues such processes again after a while.
    held: bool,
    /// How many workers are to end: the next that find nothing to do.
    dismissed: usize,
    seats: Vec<Seat>,
    /// Workers that run, or are about to.
    workers: usize,
    /// Workers that have been started and not yet looked at the queue.
    arriving: usize,
    /// Workers that have been taken off the idle stack and not yet looked at the queue.
    waking: usize,
    /// Workers that count no more and are not yet out of here.
    leaving: usize,
    /// Attempts to start a worker that failed.
    failures: u32,
    /// An attempt is under way.
    attempting: bool,
    /// Somebody has used AIO, so workers that are to be kept are to be there.
    demanded: bool,
    manager: Manager,
    /// Workers and manager are to end.
    stopping: bool,
}

/// Room in the queue.
pub struct Registration(Arc<AtomicUsize>);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker takes out of the queue.
enum Work {
    /// A process with requests.
    Process(Arc<Process>),
    /// A pipe's direction with requests.
    Lane(Arc<park::Queue>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Vacant,
    Busy,
    /// Asleep, in the address space of a process if it lodges there.
    Idle(Option<Guest>),
    /// About to be woken, for work or to end, and not yet awake.
    Roused(Option<Guest>),
    /// About to be woken, to leave first where it lodges.
    Evicted(Guest),
}

impl Seat {
    /// Whether a worker sleeps in the address space of this process.
    fn lodges(self, guest: Guest) -> bool {
        matches!(self, Seat::Idle(Some(its)) | Seat::Roused(Some(its)) if its == guest)
    }
}

/// A process in whose address space a worker is, by the address of its state: only compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Guest(usize);

impl Guest {
    fn of(process: &Arc<Process>) -> Guest {
        Guest(Arc::as_ptr(process).addr())
    }
}

/// A worker's leave to stay, while idle, in the address space of a process that was seen live.
#[derive(Clone, Copy)]
struct Lodging {
    guest: Guest,
    /// [`Pool::evictions`] when the process was live.
    evictions: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Absent,
    Busy,
    /// Asleep until there is something to do.
    Idle,
}

/// Somebody to be woken, once no lock is held.
#[must_use]
pub struct Kick(Option<Channel>);

impl Kick {
    /// Nobody.
    pub const NONE: Kick = Kick(None);

    /// Wakes whom it is for.
    pub fn deliver(self) {
        if let Some(channel) = self.0 {
            channel.wakeup();
        }
    }
}

impl Inner {
    /// Takes a worker off the idle stack, to be woken.
    fn rouse(&mut self) -> Option<usize> {
        let seat = self.idle.pop()?;
        self.wake(seat);
        Some(seat)
    }

    /// A worker that leaves the idle stack is to be woken.
    fn wake(&mut self, seat: usize) {
        self.spare = self.spare.min(self.idle.len());
        let guest = if let Seat::Idle(guest) = self.seats[seat] { guest } else { None };
        self.seats[seat] = Seat::Roused(guest);
        self.waking += 1;
    }

    /// Whether another worker is to be started.
    fn lacks_worker(&self, config: &Config) -> bool {
        let coming = self.arriving + self.waking;
        let wanted = self.queue.len() > coming && self.idle.is_empty();
        (self.demanded && self.workers < config.workers_target().min(EAGER))
            || (wanted && self.workers < config.workers_max())
    }

    /// How long a worker may be idle, in clock ticks, if there are more than are kept.
    fn limit(&self, config: &Config) -> Option<i32> {
        (self.workers > config.workers_target()).then(|| config.worker_lifetime()).flatten()
    }

    /// Has those workers end that are more than are kept and were idle since the manager set its clock.
    fn dismiss(&mut self, config: &Config, wakeup: impl Fn(usize)) {
        let staying = config.workers_target() + self.dismissed;
        let count = self.workers.saturating_sub(staying).min(self.spare);
        self.dismissed += count;
        for place in 0..count {
            let seat = self.idle[place];
            self.wake(seat);
            wakeup(seat);
        }
        self.idle.drain(..count);
    }

    /// Whether a worker that has nothing to do is to end.
    fn dismisses(&mut self, config: &Config) -> bool {
        if self.dismissed == 0 {
            return false;
        }
        self.dismissed -= 1;
        self.workers > config.workers_target()
    }
}

impl Pool {
    /// Makes a pool without workers. May sleep.
    pub fn new() -> Pool {
        let inner = Inner {
            queue: VecDeque::new(),
            idle: Vec::new(),
            watched: None,
            spare: 0,
            held: false,
            dismissed: 0,
            seats: Vec::new(),
            workers: 0,
            arriving: 0,
            waking: 0,
            leaving: 0,
            failures: 0,
            attempting: false,
            demanded: false,
            manager: Manager::Absent,
            stopping: false,
        };
        Pool {
            inner: Mutex::new(c"aio_rs pool", inner),
            present: Arc::default(),
            queued: AtomicUsize::new(0),
            registered: Arc::default(),
            evictions: AtomicUsize::new(0),
            seats: vec![0; SEATS].into(),
        }
    }

    /// The number of workers, kept up to date.
    pub fn present(&self) -> &Arc<AtomicI32> {
        &self.present
    }

    /// How many workers wait for work, perform requests, and do not run yet.
    pub fn states(&self) -> [usize; 3] {
        let inner = self.inner.lock();
        let (idle, starting) = (inner.idle.len(), inner.arriving);
        [idle, inner.workers.saturating_sub(idle + starting), starting]
    }

    fn seat_channel(&self, seat: usize) -> Channel {
        Channel::of(&self.seats[seat % SEATS])
    }

    /// Where the manager sleeps.
    fn manager_channel(&self) -> Channel {
        Channel::of(&self.queued)
    }

    /// Where threads wait for a worker's start or failure, or for the last one's end.
    fn count_channel(&self) -> Channel {
        Channel::of(&self.inner)
    }

    /// Where exit and exec wait for workers that leave an address space.
    fn eviction_channel(&self) -> Channel {
        Channel::of(&self.evictions)
    }

    /// Makes room in the queue for one more process or lane. May sleep.
    pub fn register(&self) {
        let mut larger = VecDeque::new();
        loop {
            let mut inner = self.inner.lock();
            if larger.capacity() > inner.queue.capacity() {
                larger.append(&mut inner.queue);
                core::mem::swap(&mut larger, &mut inner.queue);
            }
            let registered = self.registered.load(Ordering::Relaxed);
            if registered < inner.queue.capacity() {
                self.registered.fetch_add(1, Ordering::Relaxed);
                drop(inner);
                return;
            }
            let capacity = (registered + 1).next_power_of_two().max(16);
            drop(inner);
            larger = VecDeque::with_capacity(capacity);
        }
    }

    /// As [`Pool::register`], for as long as what is returned lasts. May sleep.
    pub fn registration(&self) -> Registration {
        self.register();
        Registration(self.registered.clone())
    }

    /// Gives the room of a process back that was not needed after all.
    pub fn forget_registration(&self) {
        self.registered.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives the room back, and has the idle workers leave the process's address space, so that it
    /// ends with the process. The process is not live, so nobody will queue it again. Sleeps.
    pub fn unregister(&self, process: &Arc<Process>) {
        let mut inner = self.inner.lock();
        // A worker that saw it live and is not idle yet finds this changed.
        self.evictions.fetch_add(1, Ordering::Relaxed);
        let guest = Guest::of(process);
        while let Some(seat) = inner.seats.iter().position(|&seat| seat.lodges(guest)) {
            if let Seat::Idle(_) = inner.seats[seat] {
                inner.idle.retain(|&idle| idle != seat);
                inner.wake(seat);
            }
            inner.seats[seat] = Seat::Evicted(guest);
            drop(inner);
            self.seat_channel(seat).wakeup();
            inner = self.inner.lock();
        }
        while inner.seats.contains(&Seat::Evicted(guest)) {
            (inner, _) = inner.msleep(self.eviction_channel(), false, c"aioprn", None);
        }
        let place = inner.queue.iter().position(
            |queued| matches!(&**queued, Work::Process(queued) if Arc::ptr_eq(queued, process)),
        );
        let queued =
            place.and_then(|place| inner.queue.remove(place)).map(ManuallyDrop::into_inner);
        self.queued.store(inner.queue.len(), Ordering::Relaxed);
        self.registered.fetch_sub(1, Ordering::Relaxed);
        drop(inner);
        drop(queued);
    }

    /// Starts the manager, in a process context without a pending signal. May sleep.
    ///
    /// # Errors
    /// As fork(2).
    pub fn start(&self) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        if inner.manager != Manager::Absent || inner.stopping {
            return Ok(());
        }
        inner.manager = Manager::Busy;
        drop(inner);
        kproc::create(c"aiod_kick", None, MANAGER).inspect_err(|_| {
            let mut inner = self.inner.lock();
            inner.manager = Manager::Absent;
            drop(inner);
            self.count_channel().wakeup();
        })
    }

    /// Makes sure that there is a worker. Sleeps only while there is none, and then for a bounded
    /// time: the manager takes no signals.
    ///
    /// # Errors
    /// EAGAIN: there is none, and none can be started. ERESTART, EINTR: a signal kept this thread
    /// from starting the manager.
    #[inline]
    pub fn ensure_worker(&self) -> Result<(), Errno> {
        // Once there is one, one stays until unload, before which all processes retire.
        if !self.is_empty() {
            return Ok(());
        }
        self.await_worker()
    }

    #[cold]
    #[inline(never)]
    fn await_worker(&self) -> Result<(), Errno> {
        // The manager is there, but after an unload that failed.
        self.start().map_err(|error| match error {
            Errno::ERESTART | Errno::EINTR => error,
            _ => Errno::EAGAIN,
        })?;
        let mut inner = self.inner.lock();
        let before = inner.failures;
        // The failure of an attempt that had begun before says nothing of now.
        let old = u32::from(inner.attempting);
        inner.demanded = true;
        while self.is_empty() && !inner.stopping {
            let failed = inner.failures.wrapping_sub(before) > old;
            if failed || inner.manager == Manager::Absent {
                return Err(Errno::EAGAIN);
            }
            self.manager_channel().wakeup();
            (inner, _) = inner.msleep(self.count_channel(), false, c"aiostrt", None);
        }
        Ok(())
    }

    /// Queues a process that wants a worker, if it does: under its lock, so that it cannot leave in
    /// between. The kick is for after unlocking.
    #[inline]
    pub fn schedule(
        &self,
        config: &Config,
        process: &Arc<Process>,
        locked: &mut process::Inner,
    ) -> Kick {
        if !locked.wants_worker(config) {
            return Kick::NONE;
        }
        locked.scheduled = true;
        self.enqueue(config, Work::Process(process.clone()))
    }

    /// Queues a lane that is not queued, under its lock. The kick is for after unlocking.
    pub fn schedule_lane(&self, config: &Config, lane: &Arc<park::Queue>) -> Kick {
        self.enqueue(config, Work::Lane(lane.clone()))
    }

    /// As [`Pool::schedule_lane`], by a worker that is about to look at the queue itself.
    pub fn requeue_lane(&self, lane: &Arc<park::Queue>) {
        self.put(&mut self.inner.lock(), Work::Lane(lane.clone()));
    }

    fn put(&self, inner: &mut Inner, work: Work) {
        inner.queue.push_back(ManuallyDrop::new(work));
        self.queued.store(inner.queue.len(), Ordering::Relaxed);
    }

    /// Whether something waits for a worker.
    pub fn is_contended(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Puts into the queue what is not there.
    #[inline(never)]
    fn enqueue(&self, config: &Config, work: Work) -> Kick {
        let mut inner = self.inner.lock();
        self.put(&mut inner, work);
        if let Some(seat) = inner.rouse() {
            return Kick(Some(self.seat_channel(seat)));
        }
        // A manager that is busy looks again before it sleeps.
        let manage = inner.manager == Manager::Idle && inner.lacks_worker(config);
        Kick(manage.then(|| self.manager_channel()))
    }

    /// Begins the life of a worker, or the manager's, by its seat. Returns when it is to end.
    pub fn run(&self, engine: &Engine, worker: &Worker, seat: usize) {
        if seat == MANAGER {
            self.manage(engine);
        } else {
            self.work(engine, worker, seat);
        }
    }

    /// The manager's life: starts workers as long as some are lacking, and has those end that are too
    /// many.
    fn manage(&self, engine: &Engine) {
        let config = &engine.config;
        let mut look = None;
        let mut retry: Option<Deadline> = None;
        let mut inner = self.inner.lock();
        while !inner.stopping {
            if inner.held && retry.is_none() {
                retry = Some(Deadline::after(Span::SECOND));
            }
            if retry.is_some_and(Deadline::is_past) {
                retry = None;
                inner.held = false;
                drop(inner);
                self.release(engine);
                inner = self.inner.lock();
                continue;
            }
            if !inner.lacks_worker(config) {
                inner = self.watch(config, inner, &mut look, retry);
                continue;
            }
            let Some(seat) = inner.seats.iter().position(|&seat| seat == Seat::Vacant) else {
                inner = self.more_seats(inner);
                continue;
            };
            inner.seats[seat] = Seat::Busy;
            inner.workers += 1;
            inner.arriving += 1;
            inner.attempting = true;
            drop(inner);
            let number = u32::try_from(seat).unwrap_or(u32::MAX);
            let started = kproc::create(c"aiod", Some(number), seat);
            inner = self.inner.lock();
            inner.attempting = false;
            if started.is_err() {
                inner.seats[seat] = Seat::Vacant;
                inner.workers -= 1;
                inner.arriving -= 1;
                inner.failures = inner.failures.wrapping_add(1);
                self.count_channel().wakeup();
                // What is queued may still be waiting then.
                let pause = Some(Deadline::after(Span::SECOND));
                (inner, _) = inner.msleep(self.manager_channel(), false, c"aiofail", pause);
            }
        }
        inner.manager = Manager::Absent;
        drop(inner);
        self.count_channel().wakeup();
    }

    /// Sleeps until there may be something to start. When it is time for a `look`, has those workers end
    /// that are more than are kept, but no more than were idle all the while; wakes as many. Returns when
    /// it is time to `retry`.
    fn watch<'a>(
        &'a self,
        config: &Config,
        mut inner: Guard<'a, Inner>,
        look: &mut Option<Deadline>,
        retry: Option<Deadline>,
    ) -> Guard<'a, Inner> {
        let limit = inner.limit(config);
        if look.is_none() || limit != inner.watched {
            inner.watched = limit;
            inner.spare = inner.idle.len();
            *look = limit.map(|ticks| Deadline::after(Span::from_ticks(ticks)));
        }
        inner.manager = Manager::Idle;
        let until = Deadline::first(*look, retry);
        (inner, _) = inner.msleep(self.manager_channel(), false, c"aiokick", until);
        inner.manager = Manager::Busy;
        if look.is_some_and(Deadline::is_past) {
            *look = None;
            // The settings may have changed; then the next look counts.
            if inner.limit(config) == inner.watched {
                inner.dismiss(config, |seat| self.seat_channel(seat).wakeup());
            }
        }
        inner
    }

    /// Queues all processes that have requests and may have a worker, or another. May sleep.
    fn release(&self, engine: &Engine) {
        engine.procs.all(|process| {
            let mut inner = process.lock();
            let kick = self.schedule(&engine.config, process, &mut inner);
            drop(inner);
            kick.deliver();
            true
        });
    }

    /// Makes room for more workers. Only the manager does.
    fn more_seats<'a>(&'a self, inner: Guard<'a, Inner>) -> Guard<'a, Inner> {
        let count = (inner.seats.len() + 1).next_power_of_two().max(8);
        drop(inner);
        let mut seats = Vec::with_capacity(count);
        let mut idle = Vec::with_capacity(count);
        let mut inner = self.inner.lock();
        seats.extend_from_slice(&inner.seats);
        seats.resize(count, Seat::Vacant);
        idle.extend_from_slice(&inner.idle);
        core::mem::swap(&mut seats, &mut inner.seats);
        core::mem::swap(&mut idle, &mut inner.idle);
        // The old ones must not be freed under the lock.
        drop(inner);
        drop((seats, idle));
        self.inner.lock()
    }

    /// A worker's life.
    fn work(&self, engine: &Engine, worker: &Worker, seat: usize) {
        let mut home = Home::new(worker);
        let mut lodging = None;
        self.present.fetch_add(1, Ordering::Release);
        let mut inner = self.inner.lock();
        inner.arriving -= 1;
        self.count_channel().wakeup();
        loop {
            if let Some(work) = inner.queue.pop_front() {
                self.queued.store(inner.queue.len(), Ordering::Relaxed);
                drop(inner);
                let work = ManuallyDrop::into_inner(work);
                match &work {
                    Work::Process(process) => {
                        self.serve(engine, worker, &mut home, &mut lodging, process);
                    }
                    Work::Lane(lane) => {
                        lodging = None;
                        engine.run_pipe(worker, &mut home, lane);
                    }
                }
                drop(work);
                inner = self.inner.lock();
                continue;
            }
            if inner.stopping || inner.dismisses(&engine.config) {
                break;
            }
            let evictions = self.evictions.load(Ordering::Relaxed);
            lodging = lodging.filter(|lodging: &Lodging| lodging.evictions == evictions);
            if home.is_away() && lodging.is_none() {
                // Going home may sleep, so look again.
                drop(inner);
                home.go_back();
                inner = self.inner.lock();
                continue;
            }
            inner = self.idle(&engine.config, inner, seat, lodging.map(|lodging| lodging.guest));
            if let Seat::Evicted(_) = inner.seats[seat] {
                drop(inner);
                home.go_back();
                inner = self.inner.lock();
                inner.seats[seat] = Seat::Busy;
                self.eviction_channel().wakeup();
            }
        }
        // Counted out under the lock that decided it, so that not all leave at once.
        inner.seats[seat] = Seat::Vacant;
        inner.workers -= 1;
        inner.leaving += 1;
        self.present.fetch_sub(1, Ordering::Release);
        drop(inner);
        drop(home);
        let mut inner = self.inner.lock();
        inner.leaving -= 1;
        drop(inner);
        self.count_channel().wakeup();
        // Somebody may have been queued while this one was still counted.
        self.manager_channel().wakeup();
    }

    /// Sleeps until there may be work, or this worker is to leave.
    fn idle<'a>(
        &'a self,
        config: &Config,
        mut inner: Guard<'a, Inner>,
        seat: usize,
        guest: Option<Guest>,
    ) -> Guard<'a, Inner> {
        inner.seats[seat] = Seat::Idle(guest);
        inner.idle.push(seat);
        // Since the manager went to sleep, workers have ended or settings have changed.
        if inner.manager == Manager::Idle && inner.limit(config) != inner.watched {
            inner.manager = Manager::Busy;
            self.manager_channel().wakeup();
        }
        while let Seat::Idle(_) = inner.seats[seat] {
            (inner, _) = inner.msleep(self.seat_channel(seat), false, c"aiordy", None);
        }
        inner.waking -= 1;
        if let Seat::Roused(_) = inner.seats[seat] {
            inner.seats[seat] = Seat::Busy;
        }
        inner
    }

    /// Performs requests of one process until there is none, or another process waits.
    fn serve(
        &self,
        engine: &Engine,
        worker: &Worker,
        home: &mut Home,
        lodging: &mut Option<Lodging>,
        process: &Arc<Process>,
    ) {
        let config = &engine.config;
        let mut inner = process.lock();
        inner.scheduled = false;
        let most = config.running_per_process_max();
        if inner.live.is_none() || inner.workers >= most {
            // Gone; or as soon as one of its workers is done, that one looks for more.
            let held = most == 0 && inner.live.is_some() && inner.table.pending() > 0;
            drop(inner);
            if held && !core::mem::replace(&mut self.inner.lock().held, true) {
                self.manager_channel().wakeup();
            }
            return;
        }
        let Some((mut id, mut request)) = inner.table.start() else { return };
        let mut visited = false;
        inner.workers += 1;
        // Others may help, as long as there is more.
        let mut help = self.schedule(config, process, &mut inner);
        drop(inner);
        loop {
            help.deliver();
            if let Some(vm) = request.vm.take() {
                visited = true;
                *lodging = None;
                home.visit(vm);
            }
            engine.statistics.begun(&mut request);
            let performed = request.perform(worker);
            engine.statistics.performed(By::Worker, &request.record, &performed.outcome);
            let mut inner = process.lock();
            if let Some(live) = inner.live.as_ref() {
                if let Some(signal) = performed.signal {
                    live.signal(signal);
                }
                live.charge(&performed.outcome);
            }
            let finished = inner.finish(id, request, performed.outcome);
            // The process's own place in the queue is no reason to stop.
            let contended = self.queued.load(Ordering::Relaxed) > usize::from(inner.scheduled);
            let again = inner.live.is_some()
                && !contended
                && inner.workers <= config.running_per_process_max();
            let next = if again { inner.table.start() } else { None };
            if next.is_none() {
                inner.workers -= 1;
                if visited && inner.live.is_some() {
                    let evictions = self.evictions.load(Ordering::Relaxed);
                    *lodging = Some(Lodging { guest: Guest::of(process), evictions });
                }
            }
            help = self.schedule(config, process, &mut inner);
            process.unlock_and_wake(inner);
            engine.finished(process, finished);
            match next {
                Some(next) => (id, request) = next,
                None => break,
            }
        }
        help.deliver();
    }

    /// Has all workers and the manager end, and waits for it. No process has a request, and none
    /// will. Sleeps.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopping = true;
        while inner.workers + inner.leaving > 0 || inner.manager != Manager::Absent {
            while let Some(seat) = inner.rouse() {
                self.seat_channel(seat).wakeup();
            }
            self.manager_channel().wakeup();
            (inner, _) = inner.msleep(self.count_channel(), false, c"aiostop", None);
        }
        inner.demanded = false;
        inner.dismissed = 0;
        drop(inner);
        self.count_channel().wakeup();
    }

    /// Allows workers again, after [`Pool::stop`]. May sleep.
    pub fn resume(&self) {
        self.inner.lock().stopping = false;
        // If it cannot be had now, whoever needs it tries again.
        let _ = self.start();
    }

    /// Whether no worker runs.
    pub fn is_empty(&self) -> bool {
        self.present.load(Ordering::Acquire) == 0
    }
}
