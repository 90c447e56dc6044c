// SPDX-License-Identifier: BSD-2-Clause
//! All requests of one process, and the threads that wait for them.
//!
//! The table is what the process's mutex protects. It never sleeps, allocates or frees: memory is
//! prepared outside the lock ([`Memory`]), and whatever is to be dropped is handed out. A request
//! is in the hash from acceptance to reap, and in exactly one of the three lists by its state.
//!
//! Payloads (`P`) own what a request holds: file, credential, buffers. A worker gets the payload by
//! value and gives it back with the result; it stays with the request until it is reaped, because
//! dropping it may sleep.

use alloc::vec::Vec;

use super::Errno;
use super::hash::{Hash, Hashed};
use super::job::{Event, JobState, Step};
use super::list::{Linked, Links, List};
use super::slab::{Growth, Id, Lack, NONE, Slab};

/// What I/O cost, to be charged to the thread that reaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub inblock: i64,
    pub oublock: i64,
    pub msgsnd: i64,
    pub msgrcv: i64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes moved, or -1 with an error.
    pub status: i64,
    pub error: Option<Errno>,
    pub usage: Usage,
}

impl Outcome {
    /// A request that did not begin.
    pub const CANCELED: Outcome = Outcome {
        status: -1,
        error: Some(Errno::ECANCELED),
        usage: Usage { inblock: 0, oublock: 0, msgsnd: 0, msgrcv: 0 },
    };
}

struct Job<P> {
    state: JobState,
    links: Links,
    chain: Id,
    /// The aiocb's address in the process.
    address: u64,
    fd: i32,
    /// Whether exit and exec wait for it while it runs.
    awaited: bool,
    /// Completion order, to tell requests of one address apart.
    finished: u64,
    /// The waits for it.
    waits: List,
    outcome: Outcome,
    /// Absent while a worker has it.
    payload: Option<P>,
}

impl<P> Linked for Job<P> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl<P> Hashed for Job<P> {
    fn key(&self) -> u64 {
        self.address
    }
    fn chain(&mut self) -> &mut Id {
        &mut self.chain
    }
}

impl<P> Job<P> {
    /// Applies `event`, which the caller knows to be possible here.
    fn step(&mut self, event: Event) -> Step {
        let state = self.state;
        let Some(step) = state.step(event) else { panic!("{event:?} of a {state:?} request") };
        if let Step::To(next) = step {
            self.state = next;
        }
        step
    }
}

/// One thread's interest in one request.
struct Wait {
    links: Links,
    job: Id,
    waiter: Id,
    /// The waiter's next wait.
    next: Id,
}

impl Linked for Wait {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    No,
    Any,
    Fired,
}

/// A thread that sleeps until one of its requests has finished.
struct Waiter {
    links: Links,
    queue: Queue,
    fired: bool,
    waits: Id,
}

impl Linked for Waiter {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// See the file's text.
pub struct Table<P> {
    jobs: Slab<Job<P>>,
    hash: Hash,
    pending: List,
    active: List,
    done: List,
    /// Requests counted against the process's limit: all but orphans.
    count: usize,
    orphans: usize,
    orphans_awaited: usize,
    finished: u64,
    waits: Slab<Wait>,
    waiters: Slab<Waiter>,
    /// Threads that wait for whatever comes first, oldest first.
    any: List,
    /// Threads to be woken.
    fired: List,
}

impl<P> Default for Table<P> {
    fn default() -> Self {
        Table {
            jobs: Slab::default(),
            hash: Hash::default(),
            pending: List::default(),
            active: List::default(),
            done: List::default(),
            count: 0,
            orphans: 0,
            orphans_awaited: 0,
            finished: 0,
            waits: Slab::default(),
            waiters: Slab::default(),
            any: List::default(),
            fired: List::default(),
        }
    }
}

/// What a table lacks for an operation.
#[derive(Clone, Copy)]
pub struct Need {
    jobs: Option<Lack>,
    buckets: Option<usize>,
    waits: Option<Lack>,
    waiters: Option<Lack>,
}

/// Memory for a table; what is left of it is dropped where freeing is allowed.
pub struct Memory<P> {
    jobs: Option<Growth<Job<P>>>,
    buckets: Option<Vec<Id>>,
    waits: Option<Growth<Wait>>,
    waiters: Option<Growth<Waiter>>,
}

impl<P> Memory<P> {
    /// Allocates what `need` asks for. May sleep.
    pub fn new(need: Need) -> Memory<P> {
        Memory {
            jobs: need.jobs.map(Growth::new),
            buckets: need.buckets.map(Hash::allocate),
            waits: need.waits.map(Growth::new),
            waiters: need.waiters.map(Growth::new),
        }
    }
}

/// A request that has been taken out; dropping the payload may sleep.
pub struct Reaped<P> {
    pub address: u64,
    pub outcome: Outcome,
    pub payload: P,
}

/// What aio_error(2) wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Running,
    Finished(Option<Errno>),
}

/// What became of requests that were to be cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Cancelled now.
    pub cancelled: usize,
    /// Too late for these.
    pub running: usize,
}

/// Whether a thread has to sleep for the requests it named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspend {
    /// One has finished, or there is none to wait for.
    Ready,
    /// The thread is registered under this number.
    Wait(Id),
    /// As [`Suspend::Wait`], but for some of the requests there was no room: the thread is to
    /// leave, make more and try again.
    NoRoom(Id),
}

/// What a worker's result led to.
pub enum Finished<P> {
    /// The request waits to be reaped.
    Done,
    /// Its process is gone. `last`: exit or exec waited for nothing but this.
    Gone { payload: P, last: bool },
}

impl<P> Table<P> {
    /// Requests that count against the process's limit: all that are not reaped.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Requests no worker has begun.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Requests workers perform now, orphans included.
    pub fn running(&self) -> usize {
        self.active.len() + self.orphans
    }

    /// Whether a thread sleeps here.
    pub fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Says what memory a submission, or a thread that waits for `waits` requests, needs first.
    pub fn lacks(&self, submission: bool, waits: Option<usize>) -> Option<Need> {
        let need = Need {
            jobs: submission.then(|| self.jobs.lacks(1)).flatten(),
            buckets: submission.then(|| self.hash.lacks()).flatten(),
            waits: waits.and_then(|count| self.waits.lacks(count)),
            waiters: waits.and_then(|_| self.waiters.lacks(1)),
        };
        let nothing = need.jobs.is_none()
            && need.buckets.is_none()
            && need.waits.is_none()
            && need.waiters.is_none();
        (!nothing).then_some(need)
    }

    /// Adds memory. Returns what is left over.
    pub fn grow(&mut self, memory: Memory<P>) -> Memory<P> {
        Memory {
            jobs: memory.jobs.map(|growth| self.jobs.grow(growth)),
            buckets: memory.buckets.map(|buckets| self.hash.grow(buckets)),
            waits: memory.waits.map(|growth| self.waits.grow(growth)),
            waiters: memory.waiters.map(|growth| self.waiters.grow(growth)),
        }
    }

    /// Accepts a request. [`Table::lacks`] said that there is room; the returned memory is to be
    /// dropped where freeing is allowed.
    pub fn submit(&mut self, address: u64, fd: i32, awaited: bool, payload: P) -> Vec<Id> {
        let job = Job {
            state: JobState::Pending,
            links: Links::UNLINKED,
            chain: NONE,
            address,
            fd,
            awaited,
            finished: 0,
            waits: List::default(),
            outcome: Outcome::CANCELED,
            payload: Some(payload),
        };
        let Ok(id) = self.jobs.insert(job) else { panic!("submission without room") };
        let garbage = self.hash.insert(&mut self.jobs, id);
        self.pending.push(&mut self.jobs, id);
        self.count += 1;
        garbage
    }

    /// Hands the oldest request that has not begun to a worker.
    pub fn start(&mut self) -> Option<(Id, P)> {
        let id = self.pending.pop(&mut self.jobs)?;
        self.active.push(&mut self.jobs, id);
        let job = &mut self.jobs[id];
        job.step(Event::Start);
        let Some(payload) = job.payload.take() else { panic!("a pending request has no payload") };
        Some((id, payload))
    }

    /// Takes a worker's result.
    pub fn finish(&mut self, id: Id, payload: P, outcome: Outcome) -> Finished<P> {
        match self.jobs[id].step(Event::Finish) {
            Step::Gone => {
                let job = self.jobs.remove(id);
                self.orphans -= 1;
                self.orphans_awaited -= usize::from(job.awaited);
                Finished::Gone { payload, last: job.awaited && self.orphans_awaited == 0 }
            }
            _ => {
                self.active.remove(&mut self.jobs, id);
                self.jobs[id].payload = Some(payload);
                self.settle(id, outcome);
                Finished::Done
            }
        }
    }

    /// Records the result of a request that is in no list, and fires who waits for it.
    fn settle(&mut self, id: Id, outcome: Outcome) {
        self.finished += 1;
        let job = &mut self.jobs[id];
        job.outcome = outcome;
        job.finished = self.finished;
        self.done.push(&mut self.jobs, id);
        while let Some(wait) = self.jobs[id].waits.first() {
            self.detach(wait);
            self.fire(self.waits[wait].waiter);
        }
        if let Some(waiter) = self.any.first() {
            self.fire(waiter);
        }
    }

    /// Takes a wait off its request.
    fn detach(&mut self, wait: Id) {
        let job = self.waits[wait].job;
        self.jobs[job].waits.remove(&mut self.waits, wait);
        self.waits[wait].job = NONE;
    }

    fn fire(&mut self, waiter: Id) {
        match self.waiters[waiter].queue {
            Queue::Fired => return,
            Queue::Any => self.any.remove(&mut self.waiters, waiter),
            Queue::No => {}
        }
        self.fired.push(&mut self.waiters, waiter);
        self.waiters[waiter].queue = Queue::Fired;
        self.waiters[waiter].fired = true;
    }

    /// Returns the next thread to wake; the caller asks until there is none.
    pub fn next_fired(&mut self) -> Option<Id> {
        let waiter = self.fired.pop(&mut self.waiters)?;
        self.waiters[waiter].queue = Queue::No;
        Some(waiter)
    }

    /// The state of the oldest request of this address.
    pub fn progress(&mut self, address: u64) -> Option<Progress> {
        let id = self.hash.find(&mut self.jobs, address, |_| true)?;
        let job = &self.jobs[id];
        Some(match job.state {
            JobState::Done => Progress::Finished(job.outcome.error),
            _ => Progress::Running,
        })
    }

    /// Takes out the request of this address that finished first.
    pub fn reap(&mut self, address: u64) -> Option<Reaped<P>> {
        let mut first = u64::MAX;
        self.hash.find(&mut self.jobs, address, |job| {
            if job.state == JobState::Done {
                first = first.min(job.finished);
            }
            false
        });
        let id = self.hash.find(&mut self.jobs, address, |job| {
            job.state == JobState::Done && job.finished == first
        })?;
        Some(self.take_done(id))
    }

    /// Takes out the request that finished first.
    pub fn reap_oldest(&mut self) -> Option<Reaped<P>> {
        let id = self.done.first()?;
        Some(self.take_done(id))
    }

    fn take_done(&mut self, id: Id) -> Reaped<P> {
        let step = self.jobs[id].step(Event::Reap);
        assert!(step == Step::Gone, "a done request refused to be reaped");
        self.done.remove(&mut self.jobs, id);
        self.forget(id)
    }

    /// Removes a request that is in no list.
    fn forget(&mut self, id: Id) -> Reaped<P> {
        self.hash.remove(&mut self.jobs, id);
        self.count -= 1;
        let Job { address, outcome, payload, .. } = self.jobs.remove(id);
        let Some(payload) = payload else { panic!("a request was removed while a worker has it") };
        Reaped { address, outcome, payload }
    }

    /// Cancels the oldest unfinished request of this address and descriptor, if it has not begun.
    pub fn cancel_one(&mut self, fd: i32, address: u64) -> Cancelled {
        let unfinished = |job: &Job<P>| job.fd == fd && job.state != JobState::Done;
        match self.hash.find(&mut self.jobs, address, unfinished) {
            Some(id) => self.cancel_job(id),
            None => Cancelled::default(),
        }
    }

    /// Cancels the requests of `fd` that have not begun, at most `most` of them, and counts those
    /// that run. Fewer than `most` cancelled: that were all.
    pub fn cancel_all(&mut self, fd: i32, most: usize) -> Cancelled {
        let mut result = Cancelled::default();
        for (list, running) in [(self.pending.first(), false), (self.active.first(), true)] {
            let mut next = list;
            while let Some(id) = next {
                next = self.pending.after(&mut self.jobs, id);
                if self.jobs[id].fd != fd || (!running && result.cancelled == most) {
                    continue;
                }
                let one = self.cancel_job(id);
                result.cancelled += one.cancelled;
                result.running += one.running;
            }
        }
        result
    }

    fn cancel_job(&mut self, id: Id) -> Cancelled {
        match self.jobs[id].step(Event::Cancel) {
            Step::Refused => Cancelled { cancelled: 0, running: 1 },
            _ => {
                self.pending.remove(&mut self.jobs, id);
                self.settle(id, Outcome::CANCELED);
                Cancelled { cancelled: 1, running: 0 }
            }
        }
    }

    /// Registers a thread that waits for any of `addresses`, unless it need not sleep: because one
    /// has finished, or because none is known. [`Table::lacks`] said that there is room for a
    /// wait per address.
    pub fn suspend(&mut self, addresses: &[u64]) -> Suspend {
        let waiter = self.enter();
        for &address in addresses.iter().filter(|&&address| address != 0) {
            // Usually one; a program may have submitted an aiocb twice.
            let mut next = self.hash.find(&mut self.jobs, address, |_| true);
            while let Some(id) = next {
                if self.jobs[id].state == JobState::Done {
                    self.leave(waiter);
                    return Suspend::Ready;
                }
                let waits = self.waiters[waiter].waits;
                let wait = Wait { links: Links::UNLINKED, job: id, waiter, next: waits };
                let Ok(wait) = self.waits.insert(wait) else { return Suspend::NoRoom(waiter) };
                self.waiters[waiter].waits = wait;
                self.jobs[id].waits.push(&mut self.waits, wait);
                next = self.hash.find_after(&mut self.jobs, id);
            }
        }
        if self.waiters[waiter].waits == NONE {
            self.leave(waiter);
            return Suspend::Ready;
        }
        Suspend::Wait(waiter)
    }

    /// Registers a thread; [`Table::lacks`] said that there is room.
    pub fn enter(&mut self) -> Id {
        let waiter = Waiter { links: Links::UNLINKED, queue: Queue::No, fired: false, waits: NONE };
        let Ok(id) = self.waiters.insert(waiter) else { panic!("a waiter without room") };
        id
    }

    /// Has a thread woken by the next completion that no other thread waits for in this way.
    pub fn wait_any(&mut self, waiter: Id) {
        if self.waiters[waiter].queue == Queue::No {
            self.waiters[waiter].queue = Queue::Any;
            self.any.push(&mut self.waiters, waiter);
        }
    }

    /// Whether a request the thread waited for has finished.
    pub fn has_fired(&self, waiter: Id) -> bool {
        self.waiters[waiter].fired
    }

    /// Ends a thread's wait.
    pub fn leave(&mut self, waiter: Id) {
        match self.waiters[waiter].queue {
            Queue::Fired => self.fired.remove(&mut self.waiters, waiter),
            Queue::Any => self.any.remove(&mut self.waiters, waiter),
            Queue::No => {}
        }
        let mut wait = self.waiters.remove(waiter).waits;
        while wait != NONE {
            if self.waits[wait].job != NONE {
                self.detach(wait);
            }
            wait = self.waits.remove(wait).next;
        }
    }

    /// Removes one request, of a process that goes, that nobody performs: not begun, or done.
    pub fn rundown(&mut self) -> Option<Reaped<P>> {
        let id = match self.pending.pop(&mut self.jobs) {
            Some(id) => id,
            None => self.done.pop(&mut self.jobs)?,
        };
        let step = self.jobs[id].step(Event::Rundown);
        assert!(step == Step::Gone, "a request that nobody performs outlives its process");
        Some(self.forget(id))
    }

    /// Makes orphans of the requests that run, at most `most` of them. True when there are more.
    pub fn disown(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(id) = self.active.pop(&mut self.jobs) else { break };
            self.jobs[id].step(Event::Rundown);
            self.hash.remove(&mut self.jobs, id);
            self.count -= 1;
            self.orphans += 1;
            self.orphans_awaited += usize::from(self.jobs[id].awaited);
        }
        !self.active.is_empty()
    }

    /// Orphans that exit and exec wait for.
    pub fn orphans_awaited(&self) -> usize {
        self.orphans_awaited
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
