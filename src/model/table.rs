// SPDX-License-Identifier: BSD-2-Clause
//! All requests of one process, and the threads that wait for them.
//!
//! The table is what the process's mutex protects. It never sleeps, allocates or frees: memory is
//! prepared outside the lock ([`Memory`]), and whatever is to be dropped is handed out. A request
//! is in the hash from acceptance to reap, and in exactly one of the four lists by its state.
//!
//! Payloads (`P`) own what a request holds: file, credential, buffers. A worker gets the payload by
//! value and gives it back with the result; it stays with the request until it is reaped, because
//! dropping it may sleep.

use alloc::boxed::Box;
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
    /// The open file it works on, by its address.
    file: u64,
    /// It is to begin after the earlier requests of its file (aio_fsync(2)).
    syncs: bool,
    /// How many of those there are still.
    blockers: usize,
    /// Others wait for it in this way.
    blocks: bool,
    /// Submission order.
    sequence: u64,
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
    held: List,
    pending: List,
    active: List,
    done: List,
    /// Requests counted against the process's limit: all but orphans.
    count: usize,
    orphans: usize,
    orphans_awaited: usize,
    finished: u64,
    sequence: u64,
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
            held: List::default(),
            pending: List::default(),
            active: List::default(),
            done: List::default(),
            count: 0,
            orphans: 0,
            orphans_awaited: 0,
            finished: 0,
            sequence: 0,
            waits: Slab::default(),
            waiters: Slab::default(),
            any: List::default(),
            fired: List::default(),
        }
    }
}

/// An operation a table needs room for.
#[derive(Clone, Copy)]
pub enum Room {
    /// A submission.
    Request,
    /// A thread that waits for so many requests.
    Waits(usize),
}

/// What the table is to know about a request; the rest is the payload's.
#[derive(Clone, Copy)]
pub struct Submission {
    /// The aiocb's address in the process.
    pub address: u64,
    /// The descriptor it was submitted with.
    pub fd: i32,
    /// The open file, by its address.
    pub file: u64,
    /// It is to begin after the earlier requests of the file, other than of this kind.
    pub syncs: bool,
    /// Exit and exec wait for it while it runs.
    pub awaited: bool,
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
    pub fn new(need: Need) -> Box<Memory<P>> {
        Box::new(Memory {
            jobs: need.jobs.map(Growth::new),
            buckets: need.buckets.map(Hash::allocate),
            waits: need.waits.map(Growth::new),
            waiters: need.waiters.map(Growth::new),
        })
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

    /// Says what memory an operation needs first.
    pub fn lacks(&self, room: Room) -> Option<Need> {
        let mut need = Need { jobs: None, buckets: None, waits: None, waiters: None };
        match room {
            Room::Request => {
                need.jobs = self.jobs.lacks(1);
                need.buckets = self.hash.lacks();
            }
            Room::Waits(count) => {
                need.waits = self.waits.lacks(count);
                need.waiters = self.waiters.lacks(1);
            }
        }
        let nothing = need.jobs.is_none()
            && need.buckets.is_none()
            && need.waits.is_none()
            && need.waiters.is_none();
        (!nothing).then_some(need)
    }

    /// Adds memory; what is left over stays in `memory`.
    pub fn grow(&mut self, memory: &mut Memory<P>) {
        memory.jobs = memory.jobs.take().map(|growth| self.jobs.grow(growth));
        memory.buckets = memory.buckets.take().map(|buckets| self.hash.grow(buckets));
        memory.waits = memory.waits.take().map(|growth| self.waits.grow(growth));
        memory.waiters = memory.waiters.take().map(|growth| self.waiters.grow(growth));
    }

    /// Accepts a request. [`Table::lacks`] said that there is room; the returned memory is to be
    /// dropped where freeing is allowed.
    pub fn submit(&mut self, submission: Submission, payload: P) -> Vec<Id> {
        let Submission { address, fd, file, syncs, awaited } = submission;
        self.sequence += 1;
        let job = Job {
            state: JobState::Held,
            links: Links::UNLINKED,
            chain: NONE,
            address,
            fd,
            awaited,
            finished: 0,
            file,
            syncs,
            blockers: 0,
            blocks: false,
            sequence: self.sequence,
            waits: List::default(),
            outcome: Outcome::CANCELED,
            payload: Some(payload),
        };
        let Ok(id) = self.jobs.insert(job) else { panic!("submission without room") };
        let garbage = self.hash.insert(&mut self.jobs, id);
        self.count += 1;
        if syncs {
            self.jobs[id].blockers = self.block(file);
        }
        self.held.push(&mut self.jobs, id);
        if self.jobs[id].blockers == 0 {
            self.release(id);
        }
        garbage
    }

    /// Marks the unfinished requests of a file that a new sync waits for; returns how many there
    /// are. Costs the process's unfinished requests.
    fn block(&mut self, file: u64) -> usize {
        let mut count = 0;
        for first in [self.active.first(), self.pending.first()] {
            let mut next = first;
            while let Some(id) = next {
                next = self.pending.after(&mut self.jobs, id);
                let job = &mut self.jobs[id];
                if job.file == file && !job.syncs {
                    job.blocks = true;
                    count += 1;
                }
            }
        }
        count
    }

    /// Has a held request begin.
    fn release(&mut self, id: Id) {
        self.jobs[id].step(Event::Ready);
        self.held.remove(&mut self.jobs, id);
        self.pending.push(&mut self.jobs, id);
    }

    /// Tells the syncs that counted a request that it has finished: those of its file that were
    /// submitted after it. Costs the process's held syncs, and nothing when none counted it.
    fn unblock(&mut self, id: Id) {
        let Job { file, sequence, blocks, .. } = self.jobs[id];
        if !blocks {
            return;
        }
        let mut next = self.held.first();
        while let Some(id) = next {
            next = self.held.after(&mut self.jobs, id);
            let job = &mut self.jobs[id];
            if job.file == file && job.sequence > sequence {
                job.blockers -= 1;
                if job.blockers == 0 {
                    self.release(id);
                }
            }
        }
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
        self.unblock(id);
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
        // What waits for others goes first, or cancelling those would have it begin.
        let lists = [
            (self.active.first(), true),
            (self.held.first(), false),
            (self.pending.first(), false),
        ];
        for (list, running) in lists {
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
        let state = self.jobs[id].state;
        match self.jobs[id].step(Event::Cancel) {
            Step::Refused => Cancelled { cancelled: 0, running: 1 },
            _ => {
                self.unlist(id, state);
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
                // Named twice: this thread's wait is the youngest then, all under one lock.
                let youngest = self.jobs[id].waits.last();
                if youngest.is_some_and(|wait| self.waits[wait].waiter == waiter) {
                    next = self.hash.find_after(&mut self.jobs, id);
                    continue;
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

    /// Takes a request that has not begun out of its list.
    fn unlist(&mut self, id: Id, state: JobState) {
        if state == JobState::Held {
            self.held.remove(&mut self.jobs, id);
        } else {
            self.pending.remove(&mut self.jobs, id);
        }
    }

    /// Removes one request, of a process that goes, that nobody performs: not begun, or done.
    pub fn rundown(&mut self) -> Option<Reaped<P>> {
        let id = if let Some(id) = self.held.first().or(self.pending.first()) {
            self.unlist(id, self.jobs[id].state);
            id
        } else {
            self.done.pop(&mut self.jobs)?
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
