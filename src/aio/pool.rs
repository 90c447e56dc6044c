// SPDX-License-Identifier: BSD-2-Clause
//! The workers, and the queue of processes that have something for them.
//!
//! The unit of the queue is the process, not the request: a worker takes a process, moves into its
//! address space once, and performs its requests until none is left or another process waits. A
//! process is in the queue at most once (`Inner::scheduled`), so the queue is as long as there are
//! processes and a submission to a process that is already scheduled does not come here at all.
//!
//! Differences from the built-in: one worker always stays, so that an accepted request never lacks
//! one; and the submitter starts workers itself, so that it learns when none can be had.
//!
//! # Lock
//! `aio_rs pool`: everything in [`Inner`]. Taken after a process's mutex or alone; nothing is
//! locked under it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::config::Config;
use super::engine::Engine;
use super::process::Process;
use crate::kern::kproc::{self, Worker};
use crate::kern::mtx::{Guard, Mutex};
use crate::kern::sleep::{Channel, Deadline, Span};
use crate::kern::vmspace::{Home, Visit, Vmspace};
use crate::model::Errno;

/// See the file's text.
pub struct Pool {
    inner: Mutex<Inner>,
    /// Workers that exist, for `vfs.aio.rs.num_procs` and a look without the lock.
    pub workers: AtomicI32,
    /// The queue's length, for a look without the lock.
    queued: AtomicUsize,
    /// Only its addresses are used; seats beyond it share them.
    seats: [u8; 256],
}

struct Inner {
    /// Has room for every process there is.
    queue: VecDeque<Arc<Process>>,
    processes: usize,
    /// Seats of idle workers, youngest last. Has room for every seat.
    idle: Vec<usize>,
    seats: Vec<Seat>,
    workers: usize,
    /// Workers that have been started and not yet looked at the queue.
    arriving: usize,
    /// A thread is starting a worker.
    starting: bool,
    /// Workers are to end.
    stopping: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Vacant,
    Busy,
    Idle,
}

impl Pool {
    /// Makes a pool without workers. May sleep.
    pub fn new() -> Pool {
        let inner = Inner {
            queue: VecDeque::new(),
            processes: 0,
            idle: Vec::new(),
            seats: Vec::new(),
            workers: 0,
            arriving: 0,
            starting: false,
            stopping: false,
        };
        Pool {
            inner: Mutex::new(c"aio_rs pool", inner),
            workers: AtomicI32::new(0),
            queued: AtomicUsize::new(0),
            seats: [0; 256],
        }
    }

    fn seat_channel(&self, seat: usize) -> Channel {
        Channel::of(&self.seats[seat % self.seats.len()])
    }

    /// Where threads wait for a worker's start or for the last one's end.
    fn count_channel(&self) -> Channel {
        Channel::of(&self.workers)
    }

    /// Makes room in the queue for one more process. May sleep.
    pub fn register(&self) {
        let mut larger = VecDeque::new();
        loop {
            let mut inner = self.inner.lock();
            if larger.capacity() > inner.queue.capacity() {
                larger.append(&mut inner.queue);
                core::mem::swap(&mut larger, &mut inner.queue);
            }
            if inner.processes < inner.queue.capacity() {
                inner.processes += 1;
                drop(inner);
                return;
            }
            let capacity = (inner.processes + 1).next_power_of_two().max(16);
            drop(inner);
            larger = VecDeque::with_capacity(capacity);
        }
    }

    /// Gives the room of a process back that was not needed after all.
    pub fn forget_registration(&self) {
        self.inner.lock().processes -= 1;
    }

    /// Gives the room back; the process is not in the queue and will not be.
    pub fn unregister(&self, process: &Arc<Process>) {
        let mut inner = self.inner.lock();
        let place = inner.queue.iter().position(|queued| Arc::ptr_eq(queued, process));
        let queued = place.and_then(|place| inner.queue.remove(place));
        self.queued.store(inner.queue.len(), Ordering::Relaxed);
        inner.processes -= 1;
        drop(inner);
        drop(queued);
    }

    /// Whether a process waits for a worker.
    fn is_contended(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Makes sure that there is a worker. Sleeps only when there is none.
    ///
    /// # Errors
    /// EAGAIN: there is none, and none can be started.
    pub fn ensure_worker(&self, config: &Config) -> Result<(), Errno> {
        if self.workers.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        while inner.workers == 0 {
            if inner.starting {
                (inner, _) = inner.msleep(self.count_channel(), false, c"aiostrt", None);
                continue;
            }
            drop(inner);
            if self.start_worker(1).is_err() {
                return Err(Errno::EAGAIN);
            }
            // The others as the administrator wants them; the first is all we need.
            while self.start_worker(config.workers_target()) == Ok(true) {}
            inner = self.inner.lock();
        }
        Ok(())
    }

    /// Queues a process whose `scheduled` the caller has just set, for a worker that is idle or,
    /// when there is none, for a new one. Sleeps only to start one.
    pub fn schedule(&self, config: &Config, process: Arc<Process>) {
        let mut inner = self.inner.lock();
        inner.queue.push_back(process);
        self.queued.store(inner.queue.len(), Ordering::Relaxed);
        match inner.idle.pop() {
            Some(seat) => {
                inner.seats[seat] = Seat::Busy;
                drop(inner);
                self.seat_channel(seat).wakeup();
            }
            None => {
                // A worker that is on its way will take it.
                let grow = inner.workers < config.workers_max()
                    && !inner.starting
                    && inner.arriving < inner.queue.len();
                drop(inner);
                if grow {
                    // Without another worker the present ones do it all.
                    let _ = self.start_worker(config.workers_max());
                }
            }
        }
    }

    /// Starts one worker if there are fewer than `most` and no other thread is starting one. Says
    /// whether it did. Sleeps.
    fn start_worker(&self, most: usize) -> Result<bool, Errno> {
        let mut room = (Vec::new(), Vec::new());
        let seat = loop {
            let mut inner = self.inner.lock();
            if inner.workers >= most || inner.starting || inner.stopping {
                drop(inner);
                return Ok(false);
            }
            if let Some(seat) = inner.seats.iter().position(|&seat| seat == Seat::Vacant) {
                inner.starting = true;
                break seat;
            }
            let seats = inner.seats.len();
            if room.0.capacity() > seats {
                let (larger, idle): &mut (Vec<Seat>, Vec<usize>) = &mut room;
                larger.extend_from_slice(&inner.seats);
                larger.resize(larger.capacity(), Seat::Vacant);
                idle.extend_from_slice(&inner.idle);
                core::mem::swap(larger, &mut inner.seats);
                core::mem::swap(idle, &mut inner.idle);
                continue;
            }
            drop(inner);
            let capacity = (seats + 1).next_power_of_two().max(8);
            room = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        };
        let number = u32::try_from(seat).unwrap_or(u32::MAX);
        let started = kproc::create(c"aiod%d", number, seat);
        let mut inner = self.inner.lock();
        inner.starting = false;
        if started.is_ok() {
            inner.seats[seat] = Seat::Busy;
            inner.workers += 1;
            inner.arriving += 1;
            self.workers.fetch_add(1, Ordering::Release);
        }
        drop(inner);
        drop(room);
        self.count_channel().wakeup();
        started.map(|()| true)
    }

    /// A worker's life. Returns when it is to end.
    pub fn run(&self, engine: &Engine, worker: &Worker, seat: usize) {
        let home = Home::new(worker);
        let mut stay: Option<Visit> = None;
        let mut inner = self.inner.lock();
        // Not before the thread that started us has counted us.
        while inner.starting {
            (inner, _) = inner.msleep(self.count_channel(), false, c"aiostrt", None);
        }
        inner.arriving -= 1;
        loop {
            if let Some(process) = inner.queue.pop_front() {
                self.queued.store(inner.queue.len(), Ordering::Relaxed);
                drop(inner);
                self.serve(engine, worker, &home, &mut stay, &process);
                drop(process);
                inner = self.inner.lock();
                continue;
            }
            if stay.is_some() {
                // Nobody's address space is kept while idle. Going home may sleep, so look again.
                drop(inner);
                stay = None;
                inner = self.inner.lock();
                continue;
            }
            if inner.stopping {
                break;
            }
            let leaves;
            (inner, leaves) = self.idle(engine, inner, seat);
            if leaves {
                break;
            }
        }
        inner.seats[seat] = Seat::Vacant;
        inner.workers -= 1;
        self.workers.fetch_sub(1, Ordering::Release);
        drop(inner);
        self.count_channel().wakeup();
    }

    /// Sleeps until there may be work. True: it was long enough for a worker too many to end.
    fn idle<'a>(
        &'a self,
        engine: &Engine,
        mut inner: Guard<'a, Inner>,
        seat: usize,
    ) -> (Guard<'a, Inner>, bool) {
        inner.seats[seat] = Seat::Idle;
        inner.idle.push(seat);
        let deadline = Deadline::after(Span::from_ticks(engine.config.worker_lifetime()));
        let ended;
        (inner, ended) = inner.msleep(self.seat_channel(seat), false, c"aiordy", Some(deadline));
        if inner.seats[seat] == Seat::Busy {
            // Taken off the stack by whoever has work.
            return (inner, false);
        }
        inner.seats[seat] = Seat::Busy;
        inner.idle.retain(|&idle| idle != seat);
        let leaves = ended.is_err()
            && inner.queue.is_empty()
            && inner.workers > engine.config.workers_target();
        (inner, leaves)
    }

    /// Performs requests of one process until there is none, or another process waits.
    fn serve<'h>(
        &self,
        engine: &Engine,
        worker: &Worker,
        home: &'h Home,
        stay: &mut Option<Visit<'h>>,
        process: &Arc<Process>,
    ) {
        let most = engine.config.running_per_process_max();
        let mut inner = process.lock();
        inner.scheduled = false;
        let Some(vm) = inner.live.as_ref().and_then(Vmspace::of) else { return };
        if inner.workers >= most {
            // As soon as one of them is done it looks for more.
            drop(inner);
            drop(vm);
            return;
        }
        let Some((mut id, mut request)) = inner.table.start() else {
            drop(inner);
            drop(vm);
            return;
        };
        inner.workers += 1;
        let mut help = inner.wants_worker(most);
        drop(inner);
        loop {
            if help {
                self.schedule(&engine.config, process.clone());
            }
            if stay.as_ref().is_none_or(|visit| !visit.is_in(&vm)) {
                *stay = None;
                *stay = Some(home.visit(&vm));
            }
            let performed = request.perform(worker);
            let mut inner = process.lock();
            if performed.broken_pipe
                && let Some(live) = inner.live.as_ref()
            {
                live.signal_pipe();
            }
            let finished = inner.table.finish(id, request, performed.outcome);
            // The address space may have been exchanged (rfork(2)): then somebody else goes on.
            let again = !self.is_contended()
                && inner.workers <= most
                && inner.live.as_ref().is_some_and(|live| vm.is_of(live));
            let next = if again { inner.table.start() } else { None };
            if next.is_none() {
                inner.workers -= 1;
            }
            help = inner.wants_worker(most);
            process.unlock_and_wake(inner);
            engine.finished(process, finished);
            match next {
                Some(next) => (id, request) = next,
                None => break,
            }
        }
        if help {
            self.schedule(&engine.config, process.clone());
        }
        drop(vm);
    }

    /// Has all workers end, and waits for it. No process has a request, and none will. Sleeps.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopping = true;
        while inner.workers > 0 || inner.starting {
            while let Some(seat) = inner.idle.pop() {
                inner.seats[seat] = Seat::Busy;
                self.seat_channel(seat).wakeup();
            }
            (inner, _) = inner.msleep(self.count_channel(), false, c"aiostop", None);
        }
    }

    /// Allows workers again, after [`Pool::stop`].
    pub fn resume(&self) {
        self.inner.lock().stopping = false;
    }
}
