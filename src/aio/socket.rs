// SPDX-License-Identifier: BSD-2-Clause
//! Requests on sockets: parked until their direction is ready, never a blocked worker.
//!
//! Each direction of a socket that has requests has a lane: a queue over all processes, in the
//! order of submission. The socket buffer's AIO task looks at it whenever the buffer has changed
//! (`kern/socket.rs`), in one of the kernel's own workers for sockets (soaiod), so that what limits
//! those (`kern.ipc.aio`) limits both engines together. It performs the oldest request, without
//! waiting, and so on until one cannot go on; that one goes back to the front.
//!
//! A try that fails although the buffer seemed ready (a message larger than the room there is, a
//! protocol with ideas of its own) must not be repeated before something has happened. So the
//! buffer is armed before the try: if it still is armed afterwards, no event has come meanwhile,
//! and the next one will start the task again.
//!
//! ```text
//! task (soaiod)                          event (the network)
//! lock, take the oldest, arm, unlock
//! try: EAGAIN                            lock, more room, armed: disarm; the task runs: nothing
//!                                        to start; unlock
//! lock, put it back
//! not armed: an event has come; try on
//! ```
//!
//! A lane is in the map as long as there is a request of its direction. So while a task runs, its lane
//! may go and another take its place; before the task ends it looks at the map, under the buffer's
//! lock.
//!
//! ```text
//! task (soaiod)                          the process
//! finish the last request
//!                                        reap it: the lane leaves the map
//!                                        submit: a new lane; the task runs: nothing to start
//! its lane is empty: the map has another
//! ```
//!
//! # Locks
//! A lane is protected by its socket buffer's own lock, which is taken after a process's mutex. The
//! map of lanes has a mutex per part, `aio_rs lanes`, which is taken last.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use super::engine::Engine;
use super::notify::Notice;
use super::process::{Process, Requests};
use super::request::{Action, Performed, Request};
use super::statistics::By;
use crate::kern::file::File;
use crate::kern::kproc::Worker;
use crate::kern::mtx::Mutex;
use crate::kern::proc::WriteSignal;
use crate::kern::socket::{Direction, Ended, Side, Socket, Task};
use crate::model::Errno;
use crate::model::hash::{Hash, Hashed};
use crate::model::lane::{Lane, Places, Ticket};
use crate::model::slab::{Growth, Id, NONE, Slab};
use crate::model::table::{Outcome, Submission, Usage};

/// A request in a lane.
pub struct Parked {
    process: Arc<Process>,
    id: Id,
    request: Box<Request>,
}

impl Parked {
    fn new(process: &Arc<Process>, id: Id, request: Box<Request>) -> ManuallyDrop<Parked> {
        ManuallyDrop::new(Parked { process: process.clone(), id, request })
    }
}

/// A lane with its socket. It is dropped empty, since every request in it keeps it; without telling
/// the compiler so, dropping a request would be recursive.
type Queue = Side<Lane<ManuallyDrop<Parked>>>;

/// Where a parked request is, as its process's table knows it.
pub struct Spot {
    lane: Arc<Queue>,
    ticket: Ticket,
}

/// What a request on a socket has besides. Dropping it may sleep.
pub struct Part {
    place: Place,
    /// Bytes moved so far.
    moved: usize,
    /// What has been charged so far.
    usage: Usage,
}

/// A right to be queued in a lane, which keeps the lane.
struct Place {
    lanes: Arc<Lanes>,
    lane: Arc<Queue>,
    entry: Id,
}

/// The map from sockets to lanes.
pub struct Lanes {
    parts: Box<[Mutex<LanesPart>]>,
}

/// How many parts the map has.
const PARTS: usize = 16;

#[derive(Default)]
struct LanesPart {
    entries: Slab<Entry>,
    hash: Hash,
}

struct Entry {
    key: u64,
    chain: Id,
    /// Places in the lane.
    places: usize,
    lane: Arc<Queue>,
}

impl Hashed for Entry {
    fn key(&self) -> u64 {
        self.key
    }
    fn chain(&mut self) -> &mut Id {
        &mut self.chain
    }
}

/// One number for a direction of a socket: sockets are aligned.
fn key(socket: u64, direction: Direction) -> u64 {
    socket | u64::from(direction == Direction::Send)
}

impl Lanes {
    /// Makes an empty map. May sleep.
    pub fn new() -> Lanes {
        let part = |_| Mutex::new(c"aio_rs lanes", LanesPart::default());
        Lanes { parts: (0..PARTS).map(part).collect() }
    }

    fn part(&self, key: u64) -> &Mutex<LanesPart> {
        // Sockets are about 1 KiB apart.
        &self.parts[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PARTS]
    }

    fn find(&self, key: u64) -> Option<Arc<Queue>> {
        let mut part = self.part(key).lock();
        let LanesPart { entries, hash } = &mut *part;
        let id = hash.find(entries, key, |_| true)?;
        Some(entries[id].lane.clone())
    }

    /// Takes a place in the lane of a direction, which is made if there is none. May sleep.
    #[inline(never)]
    fn enter(self: &Arc<Lanes>, socket: Socket, direction: Direction) -> Place {
        let key = key(socket.id(), direction);
        let mut socket = Some(socket);
        let mut fresh: Option<Arc<Queue>> = None;
        let mut growth: Option<Growth<Entry>> = None;
        let mut buckets: Option<Vec<Id>> = None;
        let (lane, entry) = loop {
            let mut part = self.part(key).lock();
            let LanesPart { entries, hash } = &mut *part;
            if let Some(id) = hash.find(entries, key, |_| true) {
                entries[id].places += 1;
                break (entries[id].lane.clone(), id);
            }
            if let Some(growth) = &mut growth {
                entries.grow(growth);
            }
            let left = (growth.take(), buckets.take().map(|buckets| hash.grow(buckets)));
            let (lack, size) = (entries.lacks(1), hash.lacks());
            if let (None, None, Some(lane)) = (lack, size, &fresh) {
                let entry = Entry { key, chain: NONE, places: 1, lane: lane.clone() };
                let Ok(id) = entries.insert(entry) else { panic!("a lane without room") };
                hash.insert(entries, id);
                let lane = lane.clone();
                drop(part);
                drop(left);
                break (lane, id);
            }
            drop(part);
            // What is left over must not be freed under the lock.
            drop(left);
            growth = lack.map(Growth::new);
            buckets = size.map(Hash::allocate);
            if let Some(socket) = socket.take() {
                fresh = Some(Arc::new(Side::new(socket, direction, Lane::default())));
            }
        };
        let mut places: Option<Places<ManuallyDrop<Parked>>> = None;
        loop {
            let mut queue = lane.lock();
            if let Some(places) = &mut places {
                queue.grow(places);
            }
            let reserved = queue.reserve();
            drop(queue);
            // What is left over must not be freed under the lock.
            drop(places.take());
            match reserved {
                Ok(()) => break,
                Err(lack) => places = Some(Places::new(lack)),
            }
        }
        Place { lanes: self.clone(), lane, entry }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lane.lock().release();
        let key = key(self.lane.socket().id(), self.lane.direction());
        let mut part = self.lanes.part(key).lock();
        let LanesPart { entries, hash } = &mut *part;
        let entry = &mut entries[self.entry];
        entry.places -= 1;
        if entry.places == 0 {
            hash.remove(entries, self.entry);
            let entry = entries.remove(self.entry);
            drop(part);
            // Perhaps the lane's last but ours.
            drop(entry);
        }
    }
}

impl Part {
    /// Prepares a request of `file`, if that is a socket. May sleep.
    pub fn new(lanes: &Arc<Lanes>, file: &File, direction: Direction) -> Option<Part> {
        let place = lanes.enter(Socket::of(file)?, direction);
        Some(Part { place, moved: 0, usage: Usage::default() })
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

/// What `park` is given.
pub struct Arrival {
    pub submission: Submission,
    pub request: Box<Request>,
    pub notice: Option<Notice>,
    pub group: Option<Id>,
}

/// Makes a request the process's own and queues it at its socket; the process's mutex is held.
///
/// # Errors
/// Why not, and the request, which is untouched.
#[inline(never)]
pub fn park(
    process: &Arc<Process>,
    table: &mut Requests,
    arrival: Arrival,
) -> Result<(), (Refused, Arrival)> {
    let Some(part) = &arrival.request.part else { panic!("only requests on sockets wait for one") };
    // The request, which keeps the lane, is about to go into it.
    let lane = part.place.lane.clone();
    let mut queue = lane.lock();
    if queue.buf().is_listening() {
        return Err((Refused::Listening, arrival));
    }
    if !queue.buf().adopt() {
        return Err((Refused::Busy, arrival));
    }
    let Arrival { submission, request, notice, group } = arrival;
    table.submit_parked(submission, request, notice, group, |id, request| {
        let ticket = queue.push(Parked::new(process, id, request));
        Spot { lane: lane.clone(), ticket }
    });
    queue.poke();
    Ok(())
}

/// Takes a parked request back from its lane, if no thread has it; the process's mutex is held.
/// Also says how it ends.
pub fn withdraw(spot: &Spot) -> Option<(Box<Request>, Outcome)> {
    let mut queue = spot.lane.lock();
    let (parked, oldest) = queue.take(spot.ticket)?;
    if queue.is_empty() {
        queue.nothing_waits();
    }
    if queue.buf().is_listening() {
        // Requests of the built-in went, and SB_AIO with them, while the kernel's function ran.
    } else if queue.is_empty() {
        queue.buf().give_back();
    } else if oldest {
        // What kept the oldest waiting need not keep the next.
        queue.poke();
    }
    drop(queue);
    let Parked { request, .. } = ManuallyDrop::into_inner(parked);
    let outcome = request.part.as_ref().map_or(Outcome::CANCELED, Part::cut_short);
    Some((request, outcome))
}

/// What became of a try.
enum Tried {
    Finished(Performed),
    /// It would have had to wait.
    Again,
}

/// Tries a request, in the submitter's address space. `more`: another waits behind it. Sleeps, but
/// not for the peer.
fn try_request(worker: &Worker, lane: &Queue, request: &mut Request, more: bool) -> Tried {
    let Request { file: Some(file), part: Some(part), cred, action, .. } = request else {
        panic!("a request that is none on a socket waits for one");
    };
    let (buffer, sends) = match action {
        Action::Read { buffer, .. } => (buffer, false),
        Action::Write { buffer, .. } => (buffer, true),
        _ => panic!("a request on a socket neither reads nor writes"),
    };
    let td = worker.thread();
    let before = td.usage();
    let socket = lane.socket();
    let (moved, end) =
        cred.lend(worker, || socket.transfer(worker, file, lane.direction(), buffer, more));
    let after = td.usage();
    part.moved += moved;
    // However often it was tried, it counts as one message.
    part.usage.msgsnd |= u32::from(after.msgsnd != before.msgsnd);
    part.usage.msgrcv |= u32::from(after.msgrcv != before.msgrcv);
    let error = match end {
        Ok(()) => None,
        // Some protocols say so after they have taken all.
        Err(Errno::EAGAIN) if part.moved > 0 && buffer.len() == 0 => None,
        Err(Errno::EAGAIN) if part.moved > 0 && socket.is_nonblocking() => None,
        Err(Errno::EAGAIN) => return Tried::Again,
        Err(Errno::ERESTART | Errno::EINTR) if part.moved > 0 => None,
        // There is no call to restart.
        Err(Errno::ERESTART) => Some(Errno::EINTR),
        Err(error) => Some(error),
    };
    let broken = sends && error == Some(Errno::EPIPE) && !socket.has_no_sigpipe();
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
    /// Serves a direction that may have become ready, as one of the kernel's workers.
    ///
    /// # Context
    /// Sleeps; no locks.
    pub fn run_socket(&self, worker: &Worker, task: Task) -> Ended {
        let key = key(task.socket_id(), task.direction());
        let (task, mut lane) = match task.begin(|| self.lanes.find(key)) {
            Ok(begun) => begun,
            Err(ended) => return ended,
        };
        let mut tried_in_vain = false;
        loop {
            let mut queue = lane.lock();
            if queue.is_empty() {
                // Its last request may be gone already, and with it the lane from the map.
                match self.lanes.find(key) {
                    Some(newer) if !Arc::ptr_eq(&newer, &lane) => {
                        drop(queue);
                        lane = newer;
                        continue;
                    }
                    _ => return task.end_empty(queue.into_buf()),
                }
            }
            if (tried_in_vain && queue.buf().is_armed()) || !queue.buf().is_ready() {
                if task.end_waiting(queue) {
                    self.look_again(key, lane);
                }
                return Ended::Here;
            }
            let Some(parked) = queue.pop() else { continue };
            let more = !queue.is_empty();
            if !more {
                queue.nothing_waits();
            }
            queue.buf().arm();
            drop(queue);
            tried_in_vain = self.run_parked(worker, &lane, parked, more);
        }
    }

    /// Looks whether something waits in a lane, or in what has taken its place, after the kernel's
    /// function ran: events went to that, and a request that came knew the task to run.
    fn look_again(&self, key: u64, mut lane: Arc<Queue>) {
        loop {
            let mut queue = lane.lock();
            match self.lanes.find(key) {
                Some(newer) if !Arc::ptr_eq(&newer, &lane) => {
                    drop(queue);
                    lane = newer;
                }
                _ if queue.buf().is_listening() => return,
                _ if queue.is_empty() => return queue.buf().give_back(),
                _ => return queue.poke(),
            }
        }
    }

    /// Tries one request; true when it waits again.
    fn run_parked(
        &self,
        worker: &Worker,
        lane: &Arc<Queue>,
        parked: ManuallyDrop<Parked>,
        more: bool,
    ) -> bool {
        let Parked { process, id, mut request } = ManuallyDrop::into_inner(parked);
        if let Some(vm) = &request.vm {
            vm.lend(worker);
        }
        self.statistics.begun(&mut request);
        let tried = try_request(worker, lane, &mut request, more);
        let mut inner = process.lock();
        let Performed { outcome, signal } = match tried {
            Tried::Finished(performed) => performed,
            Tried::Again if inner.table.may_park(id) => {
                let mut queue = lane.lock();
                let ticket = queue.push_front(Parked::new(&process, id, request));
                drop(queue);
                inner.table.park_again(id, Spot { lane: lane.clone(), ticket });
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
        let (table, tell) = inner.parts();
        let told = |notice: &mut Notice, news| tell.tell(notice, news);
        self.statistics.performed(By::Worker, &request.record, &outcome);
        let finished = table.finish(id, request, outcome, told);
        process.unlock_and_wake(inner);
        self.finished(&process, finished);
        false
    }
}
