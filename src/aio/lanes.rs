// SPDX-License-Identifier: BSD-2-Clause
//! Requests that wait for the other end of a socket or pipe, and cost no thread meanwhile.
//!
//! Each direction that has requests has a lane: a queue over all processes, in the order of
//! submission. Whatever says that the direction may be ready has a worker perform the oldest request,
//! without waiting, and so on until one cannot go on; that one goes back to the front. What says so,
//! and what protects a lane, differs: `socket.rs`, `park.rs`. Here is what both have in common: the map
//! from directions to lanes, and a request's stay in one.
//!
//! A lane is in the map as long as there is a request of its direction. One that has left it is kept
//! for the next direction that needs one.
//!
//! # Locks
//! The map has a mutex per part, `aio_rs lanes`, which is taken last.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use super::engine::Engine;
use super::notify::Notice;
use super::process::{Process, Requests};
use super::request::{Action, Performed, Request};
use super::socket::Turn;
use super::statistics::By;
use super::{park, socket};
use crate::kern::file::{File, Kind};
use crate::kern::kproc::Worker;
use crate::kern::mtx::Mutex;
use crate::kern::proc::{Curthread, WriteSignal};
use crate::kern::socket::Direction;
use crate::kern::uio::Buffer;
use crate::model::Errno;
use crate::model::hash::{Hash, Hashed};
use crate::model::lane::{Lane, Places, Ticket};
use crate::model::slab::{Growth, Id, NONE, Slab};
use crate::model::table::{Outcome, Submission, Usage};

/// A request in a lane. A lane is dropped empty, since every request in it keeps it; without telling
/// the compiler so, dropping a request would be recursive.
pub type Guest = ManuallyDrop<Parked>;

/// See [`Guest`].
pub struct Parked {
    pub process: Arc<Process>,
    pub id: Id,
    pub request: Box<Request>,
}

/// One direction with its lane.
pub trait Queue {
    /// Names the direction among those of its kind, as long as it is open.
    fn key(&self) -> u64;

    /// Looks at the lane, under its lock.
    fn with<R>(&self, look: impl FnOnce(&mut Lane<Guest>) -> R) -> R;

    /// Gives up the place of a request that has left for good.
    fn release(&self) {
        self.with(Lane::release);
    }

    /// Says where a request is, to its process's table.
    fn spot(self: &Arc<Self>, ticket: Ticket) -> Spot;

    /// It is about to come into the map. The direction is open. May sleep.
    fn open(&self) {}

    /// It has left the map, or did not get there. The direction is open. May sleep.
    fn close(&self) {}

    /// What a lane that is kept for another direction leaves behind; dropping it may sleep.
    type Left;

    /// It has left the map instead of being closed, and is empty. `None`: it is not for another
    /// direction.
    fn move_out(&mut self) -> Option<Self::Left> {
        None
    }
}

/// An open direction that needs a lane.
pub trait Way<Q> {
    /// Names it among those of its kind.
    fn key(&self) -> u64;

    /// Makes a lane for it. May sleep.
    fn make(&self) -> Q;

    /// Makes a lane its own that was another's, instead of [`Queue::open`]. Does not sleep.
    fn move_in(&self, _lane: &mut Q) {
        panic!("a lane that is for one direction only was kept");
    }
}

/// Where a parked request is, as its process's table knows it.
pub enum Spot {
    Socket(Arc<socket::Queue>, Ticket),
    Pipe(Arc<park::Queue>, Ticket),
}

/// What a request that waits in a lane has besides. Dropping it may sleep; the request's file is to be
/// there still.
pub struct Part {
    place: Where,
    /// Bytes moved so far.
    moved: usize,
    /// What has been charged so far.
    usage: Usage,
}

enum Where {
    Socket(Place<socket::Queue>),
    Pipe(Place<park::Queue>),
}

/// A right to be queued in a lane, which keeps the lane.
struct Place<Q: Queue> {
    lanes: Arc<Lanes<Q>>,
    /// Present until it is dropped.
    lane: Option<Arc<Q>>,
    entry: Id,
}

/// The map from directions to lanes.
pub struct Lanes<Q> {
    parts: Box<[Mutex<LanesPart<Q>>]>,
}

/// How many parts the map has.
const PARTS: usize = 16;

/// How many lanes a part keeps for later.
const SPARE: usize = 8;

struct LanesPart<Q> {
    entries: Slab<Entry<Q>>,
    hash: Hash,
    /// Lanes that moved out and nobody else has: where requests come one at a time, each needs one. It
    /// never has more than it has room for.
    spare: Vec<Arc<Q>>,
}

struct Entry<Q> {
    key: u64,
    chain: Id,
    /// Places in the lane.
    places: usize,
    lane: Arc<Q>,
}

impl<Q> Hashed for Entry<Q> {
    fn key(&self) -> u64 {
        self.key
    }
    fn chain(&mut self) -> &mut Id {
        &mut self.chain
    }
}

impl<Q: Queue> Lanes<Q> {
    /// Makes an empty map. May sleep.
    pub fn new() -> Lanes<Q> {
        let empty = || LanesPart {
            entries: Slab::default(),
            hash: Hash::default(),
            spare: Vec::with_capacity(SPARE),
        };
        let part = |_| Mutex::new(c"aio_rs lanes", empty());
        Lanes { parts: (0..PARTS).map(part).collect() }
    }

    fn part(&self, key: u64) -> &Mutex<LanesPart<Q>> {
        // Sockets are about 1 KiB apart, pipes more.
        &self.parts[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PARTS]
    }

    /// The lane of a direction, if there is one.
    pub fn find(&self, key: u64) -> Option<Arc<Q>> {
        let mut part = self.part(key).lock();
        let LanesPart { entries, hash, .. } = &mut *part;
        let id = hash.find(entries, key, |_| true)?;
        Some(entries[id].lane.clone())
    }

    /// Takes a place in the lane of a direction, which is made if there is none. May sleep.
    #[inline(never)]
    fn enter(self: &Arc<Lanes<Q>>, way: &impl Way<Q>) -> Place<Q> {
        let (lane, entry) = self.find_or_make(way);
        let mut places: Option<Places<Guest>> = None;
        loop {
            let reserved = lane.with(|lane| {
                if let Some(places) = &mut places {
                    lane.grow(places);
                }
                lane.reserve()
            });
            // What is left over must not be freed under the lock.
            drop(places.take());
            match reserved {
                Ok(()) => break,
                Err(lack) => places = Some(Places::new(lack)),
            }
        }
        Place { lanes: self.clone(), lane: Some(lane), entry }
    }

    fn find_or_make(&self, way: &impl Way<Q>) -> (Arc<Q>, Id) {
        let key = way.key();
        let mut part = self.part(key).lock();
        if let Some(found) = part.share(key) {
            return found;
        }
        if part.entries.has_room()
            && part.hash.lacks().is_none()
            && let Some(mut lane) = part.spare.pop()
        {
            let Some(empty) = Arc::get_mut(&mut lane) else { panic!("a spare lane is in use") };
            way.move_in(empty);
            return part.insert(key, lane);
        }
        drop(part);
        self.make(way)
    }

    #[inline(never)]
    fn make(&self, way: &impl Way<Q>) -> (Arc<Q>, Id) {
        let key = way.key();
        let lane = Arc::new(way.make());
        lane.open();
        let mut growth: Option<Growth<Entry<Q>>> = None;
        let mut buckets: Option<Vec<Id>> = None;
        loop {
            let mut part = self.part(key).lock();
            if let Some(found) = part.share(key) {
                drop(part);
                lane.close();
                return found;
            }
            if let Some(growth) = &mut growth {
                part.entries.grow(growth);
            }
            let left = (growth.take(), buckets.take().map(|buckets| part.hash.grow(buckets)));
            let (lack, size) = (part.entries.lacks(1), part.hash.lacks());
            if lack.is_none() && size.is_none() {
                let made = part.insert(key, lane);
                drop(part);
                drop(left);
                return made;
            }
            drop(part);
            // What is left over must not be freed under the lock.
            drop(left);
            growth = lack.map(Growth::new);
            buckets = size.map(Hash::allocate);
        }
    }
}

impl<Q> LanesPart<Q> {
    /// Takes a place in the lane of a direction, if there is one.
    fn share(&mut self, key: u64) -> Option<(Arc<Q>, Id)> {
        let LanesPart { entries, hash, .. } = self;
        let id = hash.find(entries, key, |_| true)?;
        let entry = &mut entries[id];
        entry.places += 1;
        Some((entry.lane.clone(), id))
    }

    /// Adds a lane that has one place, where there is room for it.
    fn insert(&mut self, key: u64, lane: Arc<Q>) -> (Arc<Q>, Id) {
        let LanesPart { entries, hash, .. } = self;
        let entry = Entry { key, chain: NONE, places: 1, lane: lane.clone() };
        let Ok(id) = entries.insert(entry) else { panic!("a lane without room") };
        hash.insert(entries, id);
        (lane, id)
    }
}

impl<Q: Queue> Drop for Place<Q> {
    fn drop(&mut self) {
        let Some(mut lane) = self.lane.take() else { return };
        lane.release();
        let mut part = self.lanes.part(lane.key()).lock();
        let LanesPart { entries, hash, spare } = &mut *part;
        let entry = &mut entries[self.entry];
        entry.places -= 1;
        if entry.places > 0 {
            return;
        }
        hash.remove(entries, self.entry);
        // Not its last reference: ours.
        drop(entries.remove(self.entry));
        let left = match Arc::get_mut(&mut lane) {
            Some(lane) if spare.len() < spare.capacity() => lane.move_out(),
            // Whoever serves it looks at it once more; or there are enough.
            _ => None,
        };
        if left.is_some() {
            spare.push(lane);
            drop(part);
        } else {
            drop(part);
            lane.close();
        }
    }
}

impl Part {
    /// The lane, of a request on a socket.
    pub fn socket_lane(&self) -> Option<&Arc<socket::Queue>> {
        match &self.place {
            Where::Socket(place) => place.lane.as_ref(),
            Where::Pipe(_) => None,
        }
    }

    /// The lane, of a request on a pipe.
    pub fn pipe_lane(&self) -> Option<&Arc<park::Queue>> {
        match &self.place {
            Where::Pipe(place) => place.lane.as_ref(),
            Where::Socket(_) => None,
        }
    }

    /// How the request ends that is taken back.
    fn cut_short(&self) -> Outcome {
        match self.moved {
            0 => Outcome::CANCELED,
            moved => Outcome { status: moved as i64, error: None, usage: self.usage },
        }
    }
}

/// Why a request was not parked.
pub enum Refused {
    /// The socket accepts connections.
    Listening,
    /// The built-in serves the socket right now.
    Busy,
}

/// What is to be parked.
pub struct Arrival {
    pub submission: Submission,
    pub request: Box<Request>,
    pub notice: Option<Notice>,
    pub group: Option<Id>,
}

/// What became of a try.
pub enum Tried {
    Finished(Performed),
    /// It would have had to wait.
    Again,
}

/// What of a request's end depends on its file.
#[derive(Clone, Copy)]
pub struct Manners {
    /// A write that was done in part is over.
    pub nonblocking: bool,
    /// A write without a reader signals.
    pub signals: bool,
    /// A write that was done in part before its reader went succeeds.
    pub keeps_part: bool,
}

/// Who tries a request.
#[derive(Clone, Copy)]
pub enum Hand<'a, 'b> {
    /// A worker, in the submitter's address space.
    Worker(&'a Worker<'b>),
    /// The thread that submits it.
    Submitter(Curthread<'b>),
}

impl<'b> Hand<'_, 'b> {
    /// Its thread.
    pub fn thread(self) -> Curthread<'b> {
        match self {
            Hand::Worker(worker) => worker.thread(),
            Hand::Submitter(td) => td,
        }
    }
}

/// Tries a request: `transfer` moves what can be moved now, and says EAGAIN where it would have had to
/// wait for the rest. Sleeps, but not for the peer.
pub fn attempt(
    hand: Hand,
    request: &mut Request,
    transfer: impl FnOnce(&File, &mut Buffer) -> (usize, Result<(), Errno>),
    manners: impl FnOnce(&File) -> Manners,
) -> Tried {
    let Request { file: Some(file), part: Some(part), cred, action, .. } = request else {
        panic!("a request without a lane waits in one");
    };
    let (buffer, sends) = match action {
        Action::Read { buffer, .. } => (buffer, false),
        Action::Write { buffer, .. } => (buffer, true),
        _ => panic!("a request in a lane neither reads nor writes"),
    };
    let td = hand.thread();
    let before = td.usage();
    let (moved, end) = match hand {
        Hand::Worker(worker) => cred.lend(worker, || transfer(file, buffer)),
        Hand::Submitter(_) => transfer(file, buffer),
    };
    let after = td.usage();
    if matches!(hand, Hand::Submitter(_)) {
        td.discharge(Usage {
            msgsnd: after.msgsnd.wrapping_sub(before.msgsnd),
            msgrcv: after.msgrcv.wrapping_sub(before.msgrcv),
            ..Usage::default()
        });
    }
    part.moved += moved;
    // However often it was tried, it counts as one message.
    part.usage.msgsnd |= u32::from(after.msgsnd != before.msgsnd);
    part.usage.msgrcv |= u32::from(after.msgrcv != before.msgrcv);
    let begun = part.moved > 0;
    let manners = manners(file);
    let error = match end {
        Ok(()) => None,
        // Some protocols say so after they have taken all.
        Err(Errno::EAGAIN) if begun && (buffer.len() == 0 || manners.nonblocking) => None,
        Err(Errno::EAGAIN) => return Tried::Again,
        Err(Errno::ERESTART | Errno::EINTR) if begun => None,
        Err(Errno::EPIPE) if begun && manners.keeps_part => None,
        // There is no call to restart.
        Err(Errno::ERESTART) => Some(Errno::EINTR),
        Err(error) => Some(error),
    };
    let broken = sends && error == Some(Errno::EPIPE) && manners.signals;
    Tried::Finished(Performed {
        signal: broken.then_some(WriteSignal::BrokenPipe),
        outcome: Outcome {
            status: if error.is_some() { -1 } else { part.moved as i64 },
            error,
            usage: part.usage,
        },
    })
}

impl Engine {
    /// Takes a place for a request of `file`, if its kind has lanes. May sleep.
    #[inline(never)]
    pub(super) fn part(&self, file: &File, kind: Kind, direction: Direction) -> Option<Part> {
        let place = match kind {
            Kind::Socket => Where::Socket(self.sockets.enter(&socket::Way::new(file, direction)?)),
            Kind::Pipe => {
                Where::Pipe(self.pipes.enter(&park::Way::new(&self.pool, file, direction)?))
            }
            _ => return None,
        };
        Some(Part { place, moved: 0, usage: Usage::default() })
    }

    /// Makes a request the process's own and queues it in its lane; the process's mutex is held. What is
    /// returned is to be run without it, and is not counted yet.
    ///
    /// # Errors
    /// Why not, and the request, which is untouched.
    #[inline(never)]
    pub(super) fn park(
        &self,
        process: &Arc<Process>,
        table: &mut Requests,
        arrival: Arrival,
    ) -> Result<Option<Turn>, (Refused, Arrival)> {
        match &arrival.request.part {
            Some(Part { place: Where::Socket(_), .. }) => {
                socket::park(process, table, arrival, self.config.completes_inline())
            }
            Some(Part { place: Where::Pipe(_), .. }) => {
                self.park_at_pipe(process, table, arrival);
                Ok(None)
            }
            None => panic!("a request without a place is to be parked"),
        }
    }

    /// Takes a parked request back from its lane, if no thread has it; the process's mutex is held.
    /// Also says how it ends.
    pub(super) fn withdraw(&self, spot: &Spot) -> Option<(Box<Request>, Outcome)> {
        let parked = match spot {
            Spot::Socket(lane, ticket) => socket::take(lane, *ticket),
            Spot::Pipe(lane, ticket) => self.take_from_pipe(lane, *ticket),
        };
        let Parked { request, .. } = ManuallyDrop::into_inner(parked?);
        let outcome = request.part.as_ref().map_or(Outcome::CANCELED, Part::cut_short);
        Some((request, outcome))
    }

    /// Tries one request, by `attempt`; true when it waits again.
    pub(super) fn run_parked<Q: Queue>(
        &self,
        mut by: By,
        lane: &Arc<Q>,
        parked: Guest,
        attempt: impl FnOnce(&mut Request) -> Tried,
    ) -> bool {
        let Parked { process, id, mut request } = ManuallyDrop::into_inner(parked);
        self.statistics.begun(&mut request);
        let tried = attempt(&mut request);
        if by == By::Submitter && matches!(tried, Tried::Again) {
            self.statistics.waits(&request.record);
            by = By::Worker;
        }
        let mut inner = process.lock();
        let Performed { outcome, signal } = match tried {
            Tried::Finished(performed) => performed,
            Tried::Again if inner.table.may_park(id) => {
                let parked = Parked { process: process.clone(), id, request };
                let ticket = lane.with(|lane| lane.push_front(ManuallyDrop::new(parked)));
                inner.table.park_again(id, lane.spot(ticket));
                drop(inner);
                return true;
            }
            Tried::Again => Performed {
                outcome: request.part.as_ref().map_or(Outcome::CANCELED, Part::cut_short),
                signal: None,
            },
        };
        if let (Some(signal), Some(live)) = (signal, inner.live.as_ref()) {
            live.signal(signal);
        }
        self.statistics.performed(by, &request.record, &outcome);
        let finished = inner.finish(id, request, outcome);
        process.unlock_and_wake(inner);
        self.finished(&process, finished);
        false
    }
}
