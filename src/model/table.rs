// SPDX-License-Identifier: BSD-2-Clause
//! All requests of one process, and the threads that wait for them.
//!
//! The table is what the process's mutex protects. It never sleeps, allocates or frees: memory is
//! prepared outside the lock ([`Memory`]), and whatever is to be dropped is handed out. A request
//! is in the hash from acceptance to reap, and in exactly one of the five lists by its state.
//!
//! Payloads (`P`) own what a request holds: file, credential, buffers. A worker gets the payload by
//! value and gives it back with the result; it stays with the request until it is reaped, because
//! dropping it may sleep. While a request waits for its socket the payload is in that socket's queue,
//! and a ticket (`T`) says where. Notices (`N`) tell a process that a request, or a whole list of
//! lio_listio(2), has finished; they never leave the table while their request is in it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Errno;
use super::glance::Glance;
use super::hash::{Hash, Hashed};
use super::job::{Event, JobState, Step};
use super::list::{Linked, Links, List};
use super::slab::{Growth, Id, Lack, NONE, Slab};

/// What I/O cost, to be charged to the thread that reaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub inblock: u32,
    pub oublock: u32,
    pub msgsnd: u32,
    pub msgrcv: u32,
}

impl Usage {
    /// Whether it cost nothing.
    pub fn is_none(&self) -> bool {
        (self.inblock | self.oublock | self.msgsnd | self.msgrcv) == 0
    }
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
    /// A read of so many bytes that cost no I/O.
    pub fn read(bytes: usize) -> Outcome {
        Outcome { status: bytes as i64, error: None, usage: Usage::default() }
    }

    /// A request that did not begin.
    pub const CANCELED: Outcome = Outcome {
        status: -1,
        error: Some(Errno::ECANCELED),
        usage: Usage { inblock: 0, oublock: 0, msgsnd: 0, msgrcv: 0 },
    };
}

struct Job<P, N, T> {
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
    /// What it changes, while that is counted; else 0.
    changes: u64,
    /// Submission order.
    sequence: u64,
    /// The waits for it.
    waits: List,
    outcome: Outcome,
    /// Absent while a worker or a socket's queue has it.
    payload: Option<P>,
    /// Where a parked request was queued last.
    ticket: Option<T>,
    /// How its end is told, if at all.
    notice: Option<N>,
    /// The list it belongs to.
    group: Id,
}

impl<P, N, T> Linked for Job<P, N, T> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl<P, N, T> Hashed for Job<P, N, T> {
    fn key(&self) -> u64 {
        self.address
    }
    fn chain(&mut self) -> &mut Id {
        &mut self.chain
    }
}

impl<P, N, T> Job<P, N, T> {
    /// Applies `event`, which the caller knows to be possible here.
    fn step(&mut self, event: Event) -> Step {
        let Some(step) = self.state.step(event) else { impossible(self.state, event) };
        if let Step::To(next) = step {
            self.state = next;
        }
        step
    }
}

// By value and out of line: nothing is kept in memory for it where all is well.
#[cold]
#[inline(never)]
fn impossible(state: JobState, event: Event) -> ! {
    panic!("{event:?} of a {state:?} request")
}

/// A list of requests that were submitted by one lio_listio(2).
struct Group<N> {
    /// Its requests that are not reaped.
    members: usize,
    /// The call lasts.
    called: bool,
    /// Its requests that have not finished, and the call as long as it adds some.
    unfinished: usize,
    /// The thread that waits for all of them.
    waiter: Id,
    notice: Option<N>,
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

/// How many lists of parked requests a table has.
const PARKED_LISTS: usize = 64;

/// The list of those of a descriptor.
fn parked_list(fd: i32) -> usize {
    fd.unsigned_abs() as usize % PARKED_LISTS
}

/// See the file's text.
pub struct Table<P, N, T = ()> {
    jobs: Slab<Job<P, N, T>>,
    groups: Slab<Group<N>>,
    hash: Hash,
    held: List,
    pending: List,
    /// Those that wait for their socket or pipe, by descriptor, so that cancelling those of one does
    /// not cost the others.
    parked: Box<[List]>,
    parked_count: usize,
    active: List,
    done: List,
    /// Requests counted against the process's limit: all but orphans.
    count: usize,
    orphans: usize,
    orphans_awaited: usize,
    finished: u64,
    sequence: u64,
    glance: Arc<Glance>,
    waits: Slab<Wait>,
    waiters: Slab<Waiter>,
    /// Threads that wait for whatever comes first, oldest first.
    any: List,
    /// Threads to be woken.
    fired: List,
    /// Requests of other descriptors that cancelling looked at.
    #[cfg(test)]
    passed: usize,
}

impl<P, N, T> Default for Table<P, N, T> {
    fn default() -> Self {
        Table {
            jobs: Slab::default(),
            groups: Slab::default(),
            hash: Hash::default(),
            held: List::default(),
            pending: List::default(),
            parked: (0..PARKED_LISTS).map(|_| List::default()).collect(),
            parked_count: 0,
            active: List::default(),
            done: List::default(),
            count: 0,
            orphans: 0,
            orphans_awaited: 0,
            finished: 0,
            sequence: 0,
            glance: Arc::default(),
            waits: Slab::default(),
            waiters: Slab::default(),
            any: List::default(),
            fired: List::default(),
            #[cfg(test)]
            passed: 0,
        }
    }
}

/// An operation a table needs room for.
#[derive(Clone, Copy)]
pub enum Room {
    /// A submission.
    Request,
    /// A list.
    Group,
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
    /// The file it changes, named as in [`Glance`]; 0 for none.
    pub changes: u64,
}

/// What a table lacks for an operation.
#[derive(Clone, Copy)]
pub struct Need {
    jobs: Option<Lack>,
    groups: Option<Lack>,
    buckets: Option<usize>,
    waits: Option<Lack>,
    waiters: Option<Lack>,
}

/// Memory for a table; what is left of it is dropped where freeing is allowed.
pub struct Memory<P, N, T = ()> {
    jobs: Option<Growth<Job<P, N, T>>>,
    groups: Option<Growth<Group<N>>>,
    buckets: Option<Vec<Id>>,
    waits: Option<Growth<Wait>>,
    waiters: Option<Growth<Waiter>>,
}

impl<P, N, T> Memory<P, N, T> {
    /// Allocates what `need` asks for. May sleep.
    // Out of line, as what it needs of the stack is not needed with what its callers call later.
    #[inline(never)]
    pub fn new(need: Need) -> Box<Memory<P, N, T>> {
        Box::new(Memory {
            jobs: need.jobs.map(Growth::new),
            groups: need.groups.map(Growth::new),
            buckets: need.buckets.map(Hash::allocate),
            waits: need.waits.map(Growth::new),
            waiters: need.waiters.map(Growth::new),
        })
    }
}

/// A request that has been taken out; dropping what it owned may sleep.
pub struct Reaped<P, N> {
    pub address: u64,
    pub outcome: Outcome,
    /// Absent when the submitter performed it.
    pub payload: Option<P>,
    pub notice: Option<N>,
    /// The list's, when this was the last of it.
    pub group: Option<N>,
    /// It was neither performed nor cancelled.
    pub unfinished: bool,
}

/// An end that is to be told, under the table's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A request has finished, with this error.
    Request(Option<Errno>),
    /// All requests of a list have finished. `lasts`: the notice stays until one of them is reaped;
    /// else there is none, and the notice goes as soon as it was told.
    Group { lasts: bool },
}

/// What [`Table::disown`] did.
pub enum Disowned<N> {
    /// Nothing runs any more.
    Nothing,
    /// One request has become an orphan; what told its end, and its list's if it was the last, is to
    /// be dropped.
    One { notice: Option<N>, group: Option<N> },
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
    /// Ended now with what was done before; to the user these ran.
    pub short: usize,
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

impl<P, N, T> Table<P, N, T> {
    /// For a look without the lock.
    pub fn glance(&self) -> &Arc<Glance> {
        &self.glance
    }

    /// Requests that count against the process's limit: all that are not reaped.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Requests that have not begun, held ones included.
    pub fn waiting(&self) -> usize {
        self.held.len() + self.pending.len() + self.parked_count
    }

    /// Requests that have finished and are not reaped.
    pub fn done(&self) -> usize {
        self.done.len()
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

    /// Whether there is room for an operation: [`Table::lacks`] at a glance.
    #[inline]
    pub fn has_room(&self, room: Room) -> bool {
        match room {
            Room::Request => self.jobs.has_room() && self.hash.lacks().is_none(),
            Room::Group => self.groups.has_room(),
            Room::Waits(0) => self.waiters.has_room(),
            Room::Waits(count) => self.waiters.has_room() && (self.waits.lacks(count).is_none()),
        }
    }

    /// Whether a thread is to be woken.
    #[inline]
    pub fn has_news(&self) -> bool {
        !self.fired.is_empty()
    }

    /// Says what memory an operation needs first.
    pub fn lacks(&self, room: Room) -> Option<Need> {
        let mut need = Need { jobs: None, groups: None, buckets: None, waits: None, waiters: None };
        match room {
            Room::Request => {
                need.jobs = self.jobs.lacks(1);
                need.buckets = self.hash.lacks();
            }
            Room::Group => need.groups = self.groups.lacks(1),
            Room::Waits(count) => {
                need.waits = self.waits.lacks(count);
                need.waiters = self.waiters.lacks(1);
            }
        }
        let nothing = need.jobs.is_none()
            && need.groups.is_none()
            && need.buckets.is_none()
            && need.waits.is_none()
            && need.waiters.is_none();
        (!nothing).then_some(need)
    }

    /// Adds memory; what is left over stays in `memory`.
    #[inline(never)]
    pub fn grow(&mut self, memory: &mut Memory<P, N, T>) {
        if let Some(growth) = &mut memory.groups {
            self.groups.grow(growth);
        }
        if let Some(growth) = &mut memory.jobs {
            self.jobs.grow(growth);
        }
        memory.buckets = memory.buckets.take().map(|buckets| self.hash.grow(buckets));
        if let Some(growth) = &mut memory.waits {
            self.waits.grow(growth);
        }
        if let Some(growth) = &mut memory.waiters {
            self.waiters.grow(growth);
        }
    }

    /// Accepts a request. [`Table::lacks`] said that there is room.
    pub fn submit(
        &mut self,
        submission: &Submission,
        payload: P,
        notice: Option<N>,
        group: Option<Id>,
    ) {
        let Submission { file, syncs, changes, .. } = *submission;
        if changes != 0 {
            self.glance.begin_change(changes);
        }
        let blockers = if syncs { self.block(file) } else { 0 };
        let state = if blockers == 0 { JobState::Pending } else { JobState::Held };
        let id = self.add(submission, changes, state, Some(payload), notice, group);
        if blockers == 0 {
            self.pending.push(&mut self.jobs, id);
        } else {
            self.jobs[id].blockers = blockers;
            self.held.push(&mut self.jobs, id);
        }
    }

    /// As [`Table::submit`], of a request that is to wait for its socket: `park` queues it there.
    pub fn submit_parked(
        &mut self,
        submission: &Submission,
        payload: P,
        notice: Option<N>,
        group: Option<Id>,
        park: impl FnOnce(Id, P) -> T,
    ) {
        let id = self.add(submission, 0, JobState::Pending, None, notice, group);
        self.parked[parked_list(submission.fd)].push(&mut self.jobs, id);
        self.parked_count += 1;
        let job = &mut self.jobs[id];
        job.step(Event::Park);
        job.ticket = Some(park(id, payload));
    }

    /// Accepts a request that the submitter has performed already. As [`Table::submit`] otherwise;
    /// `tell` is called for each end this is.
    pub fn submit_done(
        &mut self,
        submission: &Submission,
        outcome: Outcome,
        notice: Option<N>,
        group: Option<Id>,
        tell: impl FnMut(&mut N, News),
    ) {
        let id = self.add(submission, 0, JobState::Done, None, notice, group);
        self.settle(id, outcome, tell);
    }

    fn set_count(&mut self, count: usize) {
        self.count = count;
        self.glance.set_count(count);
    }

    /// Accepts a request that no worker performs and that runs from now on; no sync. Whoever
    /// performs it has the payload, and ends it by [`Table::finish`]. Room as in [`Table::submit`].
    pub fn submit_running(
        &mut self,
        submission: &Submission,
        notice: Option<N>,
        group: Option<Id>,
    ) -> Id {
        assert!(!submission.syncs, "a sync runs before what it waits for");
        let id = self.add(submission, 0, JobState::Active, None, notice, group);
        self.active.push(&mut self.jobs, id);
        id
    }

    /// Makes an entry that is in no list, and of which only `changes` is counted. Not inline: an entry
    /// is large, and the caller's frame stays.
    #[inline(never)]
    fn add(
        &mut self,
        submission: &Submission,
        changes: u64,
        state: JobState,
        payload: Option<P>,
        notice: Option<N>,
        group: Option<Id>,
    ) -> Id {
        let Submission { address, fd, file, syncs, awaited, .. } = *submission;
        self.sequence += 1;
        let job = Job {
            state,
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
            changes,
            sequence: self.sequence,
            waits: List::default(),
            outcome: Outcome::CANCELED,
            payload,
            ticket: None,
            notice,
            group: group.unwrap_or(NONE),
        };
        if let Some(group) = group {
            let group = &mut self.groups[group];
            group.members += 1;
            group.unfinished += 1;
        }
        let id = self.jobs.put(job);
        self.hash.insert(&mut self.jobs, id);
        self.set_count(self.count + 1);
        id
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
    /// submitted after it. Costs the process's held syncs.
    fn unblock(&mut self, id: Id) {
        let Job { file, sequence, .. } = self.jobs[id];
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

    /// Begins a list; [`Table::lacks`] said that there is room. The caller holds it until
    /// [`Table::leave_group`].
    pub fn open_group(&mut self, notice: Option<N>) -> Id {
        let group = Group { members: 0, called: true, unfinished: 1, waiter: NONE, notice };
        self.groups.put(group)
    }

    /// Ends the adding to a list. True when all its requests have finished, which is told.
    pub fn close_group(&mut self, id: Id, tell: impl FnMut(&mut N, News)) -> bool {
        self.settle_group(id, tell);
        self.groups[id].unfinished == 0
    }

    /// Has `waiter` fired when all requests of a list have finished.
    pub fn await_group(&mut self, id: Id, waiter: Id) {
        self.groups[id].waiter = waiter;
    }

    /// Gives a list up to which nothing was added; nothing is told.
    pub fn abandon_group(&mut self, id: Id) -> Option<N> {
        let group = self.groups.remove(id);
        assert!(group.members == 0 && group.called, "a list that is in use was abandoned");
        group.notice
    }

    /// Gives the caller's hold on a list up, and its wait. Returns the notice if nobody holds it.
    pub fn leave_group(&mut self, id: Id) -> Option<N> {
        self.groups[id].waiter = NONE;
        self.groups[id].called = false;
        self.drop_group(id)
    }

    /// Counts one end of a list, and tells when it was the last.
    fn settle_group(&mut self, id: Id, mut tell: impl FnMut(&mut N, News)) {
        let group = &mut self.groups[id];
        group.unfinished -= 1;
        if group.unfinished > 0 {
            return;
        }
        let waiter = group.waiter;
        if let Some(notice) = &mut group.notice {
            tell(notice, News::Group { lasts: group.members > 0 });
        }
        if waiter != NONE {
            self.fire(waiter);
        }
    }

    /// Takes a request out of its list, if it has one. Returns the notice if nobody holds the list.
    fn leave_list(&mut self, id: Id) -> Option<N> {
        if id == NONE {
            return None;
        }
        self.groups[id].members -= 1;
        self.drop_group(id)
    }

    fn drop_group(&mut self, id: Id) -> Option<N> {
        let group = &self.groups[id];
        if group.called || group.members > 0 {
            return None;
        }
        self.groups.remove(id).notice
    }

    /// Takes a worker's result; `tell` is called, under the table's lock, for each end this is.
    pub fn finish(
        &mut self,
        id: Id,
        payload: P,
        outcome: Outcome,
        tell: impl FnMut(&mut N, News),
    ) -> Finished<P> {
        let job = &mut self.jobs[id];
        let state = job.state;
        match job.step(Event::Finish) {
            Step::Gone => {
                let job = self.jobs.remove(id);
                self.orphans -= 1;
                self.orphans_awaited -= usize::from(job.awaited);
                Finished::Gone { payload, last: job.awaited && self.orphans_awaited == 0 }
            }
            _ => {
                job.ticket = None;
                job.payload = Some(payload);
                if state == JobState::Parked {
                    self.unpark(id);
                } else {
                    self.active.remove(&mut self.jobs, id);
                }
                self.settle(id, outcome, tell);
                Finished::Done
            }
        }
    }

    /// Records the result of a request that is in no list, and fires who waits for it.
    fn settle(&mut self, id: Id, outcome: Outcome, mut tell: impl FnMut(&mut N, News)) {
        self.finished += 1;
        let job = &mut self.jobs[id];
        job.outcome = outcome;
        job.finished = self.finished;
        if job.changes != 0 {
            self.glance.end_change(core::mem::take(&mut job.changes));
        }
        if let Some(notice) = &mut job.notice {
            tell(notice, News::Request(outcome.error));
        }
        let (group, blocks, waited) = (job.group, job.blocks, !job.waits.is_empty());
        self.done.push(&mut self.jobs, id);
        if group != NONE {
            self.settle_group(group, tell);
        }
        if blocks {
            self.unblock(id);
        }
        if waited {
            while let Some(wait) = self.jobs[id].waits.first() {
                self.detach(wait);
                self.fire(self.waits[wait].waiter);
            }
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
    pub fn reap(&mut self, address: u64) -> Option<Reaped<P, N>> {
        let mut found: Option<(u64, Id)> = None;
        let mut next = self.hash.find(&mut self.jobs, address, |_| true);
        while let Some(id) = next {
            let job = &self.jobs[id];
            if job.state == JobState::Done && found.is_none_or(|(first, _)| job.finished < first) {
                found = Some((job.finished, id));
            }
            next = self.hash.find_after(&mut self.jobs, id);
        }
        let (_, id) = found?;
        Some(self.take_done(id))
    }

    /// Takes out the request that finished first.
    pub fn reap_oldest(&mut self) -> Option<Reaped<P, N>> {
        let id = self.done.first()?;
        Some(self.take_done(id))
    }

    fn take_done(&mut self, id: Id) -> Reaped<P, N> {
        let step = self.jobs[id].step(Event::Reap);
        assert!(step == Step::Gone, "a done request refused to be reaped");
        self.done.remove(&mut self.jobs, id);
        self.forget(id)
    }

    /// Removes a request that is in no list.
    fn forget(&mut self, id: Id) -> Reaped<P, N> {
        self.hash.remove(&mut self.jobs, id);
        self.set_count(self.count - 1);
        let glance = &self.glance;
        let (list, mut reaped) = self.jobs.discard(id, |job| {
            assert!(job.state != JobState::Active, "a request was removed while a worker has it");
            if job.changes != 0 {
                glance.end_change(job.changes);
            }
            let reaped = Reaped {
                address: job.address,
                outcome: job.outcome,
                payload: job.payload.take(),
                notice: job.notice.take(),
                group: None,
                unfinished: job.state != JobState::Done,
            };
            (job.group, reaped)
        });
        reaped.group = self.leave_list(list);
        reaped
    }

    /// Whether a request that a thread has tried in vain may be queued at its socket again: nobody
    /// has asked for its end meanwhile.
    pub fn may_park(&self, id: Id) -> bool {
        self.jobs[id].state == JobState::Parked
    }

    /// Records where such a request is queued again.
    pub fn park_again(&mut self, id: Id, ticket: T) {
        let job = &mut self.jobs[id];
        job.step(Event::Park);
        job.ticket = Some(ticket);
    }

    /// Takes a parked request out of its list.
    fn unpark(&mut self, id: Id) {
        let list = parked_list(self.jobs[id].fd);
        self.parked[list].remove(&mut self.jobs, id);
        self.parked_count -= 1;
    }

    /// Asks the socket's queue for a parked request, by `withdraw`. Given back, it is pending, and
    /// how it is to end is returned; else it is active.
    fn withdraw(
        &mut self,
        id: Id,
        withdraw: &mut dyn FnMut(&T) -> Option<(P, Outcome)>,
    ) -> Option<Outcome> {
        self.unpark(id);
        let job = &mut self.jobs[id];
        let ticket = job.ticket.take();
        match ticket.as_ref().and_then(withdraw) {
            Some((payload, outcome)) => {
                job.payload = Some(payload);
                job.step(Event::Withdraw);
                self.pending.push(&mut self.jobs, id);
                Some(outcome)
            }
            None => {
                job.step(Event::Start);
                self.active.push(&mut self.jobs, id);
                None
            }
        }
    }

    /// Cancels the oldest unfinished request of this address and descriptor, if it has not begun.
    /// `withdraw` takes a parked request from its socket's queue, and says how it is to end.
    /// `seen` is called with what is cancelled or cut short.
    pub fn cancel_one(
        &mut self,
        fd: i32,
        address: u64,
        withdraw: &mut dyn FnMut(&T) -> Option<(P, Outcome)>,
        mut tell: impl FnMut(&mut N, News),
        seen: &mut dyn FnMut(&P, &Outcome),
    ) -> Cancelled {
        let unfinished = |job: &Job<P, N, T>| job.fd == fd && job.state != JobState::Done;
        match self.hash.find(&mut self.jobs, address, unfinished) {
            Some(id) => self.cancel_job(id, withdraw, &mut tell, seen),
            None => Cancelled::default(),
        }
    }

    /// Cancels the requests of `fd` that have not begun, at most `most` of them, and counts those
    /// that run. Fewer than `most` cancelled: that were all.
    ///
    /// However many there are of other descriptors, each is looked at once or twice until all are
    /// cancelled, in whatever number of calls; of parked ones, a share only.
    pub fn cancel_all(
        &mut self,
        fd: i32,
        most: usize,
        withdraw: &mut dyn FnMut(&T) -> Option<(P, Outcome)>,
        mut tell: impl FnMut(&mut N, News),
        seen: &mut dyn FnMut(&P, &Outcome),
    ) -> Cancelled {
        let mut result = Cancelled::default();
        let mut cancel = |table: &mut Self, id: Id| {
            let one = table.cancel_job(id, withdraw, &mut tell, seen);
            result.cancelled += one.cancelled;
            result.short += one.short;
            result.running += one.running;
            result.cancelled + result.short
        };
        let mut next = self.active.first();
        while let Some(id) = next {
            next = self.active.after(&mut self.jobs, id);
            if self.jobs[id].fd == fd {
                cancel(self, id);
            }
        }
        let mut done = 0;
        // What waits for others goes first, or cancelling those would have it begin.
        for held in [true, false] {
            while done < most
                && let Some((mut id, count)) = self.last_of(held, fd, most - done)
            {
                for _ in 0..count {
                    let list = if held { &self.held } else { &self.pending };
                    let next = list.after(&mut self.jobs, id);
                    done = cancel(self, id);
                    id = next.unwrap_or(NONE);
                }
            }
        }
        let list = parked_list(fd);
        for _ in 0..self.parked[list].len() {
            let Some(id) = self.parked[list].first() else { break };
            if done == most {
                break;
            }
            if self.jobs[id].fd == fd {
                done = cancel(self, id);
            } else {
                // The next call is not to look at it again before the others.
                #[cfg(test)]
                (self.passed += 1);
                self.parked[list].rotate(&mut self.jobs, id);
            }
        }
        result
    }

    /// The last requests of `fd` in the list of those that are held, or pending: the oldest of them,
    /// and how many there are in a row, at most `most`. When the last is not of `fd`, all that are
    /// are made the last first.
    fn last_of(&mut self, held: bool, fd: i32, most: usize) -> Option<(Id, usize)> {
        let Self { held: waiting, pending, jobs, .. } = self;
        let list = if held { waiting } else { pending };
        let is_last = |list: &List, jobs: &Slab<Job<P, N, T>>| {
            list.last().is_some_and(|id| jobs[id].fd == fd)
        };
        if !is_last(list, jobs) {
            let mut next = list.first();
            for _ in 0..list.len() {
                let Some(id) = next else { break };
                next = list.after(jobs, id);
                #[cfg(test)]
                (self.passed += 1);
                if jobs[id].fd == fd {
                    list.rotate(jobs, id);
                }
            }
            if !is_last(list, jobs) {
                return None;
            }
        }
        let mut first = list.last()?;
        let mut count = 1;
        while count < most
            && let Some(id) = list.before(jobs, first)
            && jobs[id].fd == fd
        {
            (first, count) = (id, count + 1);
        }
        Some((first, count))
    }

    fn cancel_job(
        &mut self,
        id: Id,
        withdraw: &mut dyn FnMut(&T) -> Option<(P, Outcome)>,
        tell: &mut dyn FnMut(&mut N, News),
        seen: &mut dyn FnMut(&P, &Outcome),
    ) -> Cancelled {
        let mut outcome = Outcome::CANCELED;
        if self.jobs[id].state == JobState::Parked
            && let Some(end) = self.withdraw(id, withdraw)
        {
            outcome = end;
        }
        let state = self.jobs[id].state;
        match self.jobs[id].step(Event::Cancel) {
            Step::Refused => Cancelled { running: 1, ..Cancelled::default() },
            _ => {
                self.unlist(id, state);
                if let Some(payload) = &self.jobs[id].payload {
                    seen(payload, &outcome);
                }
                self.settle(id, outcome, tell);
                // What was in part done before is finished, not cancelled.
                let cancelled = usize::from(outcome.error == Some(Errno::ECANCELED));
                Cancelled { cancelled, short: 1 - cancelled, running: 0 }
            }
        }
    }

    /// Whether a thread that would wait for any of `addresses` need not: one has finished, or none is
    /// known.
    pub fn is_ready(&mut self, addresses: &[u64]) -> bool {
        let mut known = false;
        for &address in addresses.iter().filter(|&&address| address != 0) {
            let mut next = self.hash.find(&mut self.jobs, address, |_| true);
            while let Some(id) = next {
                if self.jobs[id].state == JobState::Done {
                    return true;
                }
                known = true;
                next = self.hash.find_after(&mut self.jobs, id);
            }
        }
        !known
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
    pub fn rundown(
        &mut self,
        withdraw: &mut dyn FnMut(&T) -> Option<(P, Outcome)>,
    ) -> Option<Reaped<P, N>> {
        while self.parked_count > 0
            && let Some(id) = self.parked.iter().find_map(List::first)
        {
            if self.withdraw(id, withdraw).is_some() {
                break;
            }
        }
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

    /// Makes an orphan of one request that runs.
    pub fn disown(&mut self) -> Disowned<N> {
        let Some(id) = self.active.pop(&mut self.jobs) else { return Disowned::Nothing };
        self.jobs[id].step(Event::Rundown);
        self.hash.remove(&mut self.jobs, id);
        self.set_count(self.count - 1);
        self.orphans += 1;
        let job = &mut self.jobs[id];
        self.orphans_awaited += usize::from(job.awaited);
        let notice = job.notice.take();
        let group = core::mem::replace(&mut job.group, NONE);
        Disowned::One { notice, group: self.leave_list(group) }
    }

    /// Orphans that exit and exec wait for.
    pub fn orphans_awaited(&self) -> usize {
        self.orphans_awaited
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
