// SPDX-License-Identifier: BSD-2-Clause
//! Requests on sockets: parked until their direction is ready, never a blocked worker.
//!
//! The socket buffer's AIO task looks at a direction's lane (`lanes.rs`) whenever the buffer has changed
//! (`kern/socket.rs`), in one of the kernel's own workers for sockets (soaiod), so that what limits
//! those (`kern.ipc.aio`) limits both engines together.
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
//! While a task runs, its lane may leave the map and another take its place; before the task ends it
//! looks at the map, under the buffer's lock.
//!
//! ```text
//! task (soaiod)                          the process
//! finish the last request
//!                                        reap it: the lane leaves the map
//!                                        submit: a new lane; the task runs: nothing to start
//! its lane is empty: the map has another
//! ```
//!
//! The same holds for a submitter that has tried its request, and for a task that finds it trying.
//!
//! A task that finds no lane in the map takes all that is in the kernel's queue for the built-in's. So
//! our mark is there only as long as the lane has a place, with which it is in the map: it goes with the
//! last one, even if a submitter still has the turn whose request another thread has collected.
//!
//! A request that finds its lane empty and the direction ready is tried by its submitter, without
//! waiting for anybody (`vfs.aio.rs.inline`). It has the lane's turn meanwhile: what comes later is
//! queued, a task that is started ends at once, and the submitter looks at the lane when it is done.
//! So what a write did not get rid of still goes before all that came later.
//!
//! # Locks
//! A lane is protected by its socket buffer's own lock, which is taken after a process's mutex, and
//! before the map's.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;

use super::engine::Engine;
use super::lanes::{self, Arrival, Guest, Hand, Manners, Parked, Refused, Spot, Tried};
use super::process::{Process, Requests};
use super::request::Request;
use super::statistics::By;
use crate::kern::file::File;
use crate::kern::kproc::Worker;
use crate::kern::proc::Curthread;
use crate::kern::socket::{Direction, Ended, Side, Socket, Task};
use crate::kern::uio::Buffer;
use crate::model::lane::{Lane, Ticket};

/// A lane with its socket.
pub struct Queue(Side<Lane<Guest>>);

/// One number for a direction of a socket: sockets are aligned.
fn key(socket: u64, direction: Direction) -> u64 {
    socket | u64::from(direction == Direction::Send)
}

/// A direction of an open file that is a socket.
pub struct Way<'a> {
    file: &'a File,
    direction: Direction,
}

impl<'a> Way<'a> {
    /// `None`: the file is no socket.
    pub fn new(file: &'a File, direction: Direction) -> Option<Way<'a>> {
        Socket::name(file).map(|_| Way { file, direction })
    }

    fn socket(&self) -> Socket {
        let Some(socket) = Socket::of(self.file) else { panic!("a socket is none any more") };
        socket
    }
}

impl lanes::Way<Queue> for Way<'_> {
    fn key(&self) -> u64 {
        key(Socket::name(self.file).unwrap_or(0), self.direction)
    }

    fn make(&self) -> Queue {
        Queue(Side::new(self.socket(), self.direction, Lane::default()))
    }

    fn move_in(&self, lane: &mut Queue) {
        lane.0.join(self.socket(), self.direction);
    }
}

impl Queue {
    /// Tries a request of this lane; `more` of it wait. Sleeps, but not for the peer.
    fn attempt(&self, hand: Hand, request: &mut Request, more: bool) -> Tried {
        let (socket, direction) = (self.0.socket(), self.0.direction());
        let (td, queues) = (hand.thread(), matches!(hand, Hand::Worker(_)));
        let transfer = |file: &File, buffer: &mut Buffer| {
            socket.transfer(td, file, direction, buffer, more, queues)
        };
        let manners = |_: &File| Manners {
            nonblocking: socket.is_nonblocking(),
            signals: !socket.has_no_sigpipe(),
            keeps_part: false,
        };
        lanes::attempt(hand, request, transfer, manners)
    }
}

impl lanes::Queue for Queue {
    fn key(&self) -> u64 {
        key(self.0.socket().id(), self.0.direction())
    }

    fn with<R>(&self, look: impl FnOnce(&mut Lane<Guest>) -> R) -> R {
        look(&mut self.0.lock())
    }

    fn release(&self) {
        let mut queue = self.0.lock();
        queue.release();
        if !queue.is_reserved() {
            queue.nothing_waits();
        }
    }

    fn spot(self: &Arc<Queue>, ticket: Ticket) -> Spot {
        Spot::Socket(self.clone(), ticket)
    }

    type Left = Socket;

    fn move_out(&mut self) -> Option<Socket> {
        self.0.part()
    }
}

/// A request that its submitter is to try, because nothing else waits and its direction seems to be
/// ready: [`Engine::run_turn`].
#[must_use]
pub struct Turn {
    lane: Arc<Queue>,
    parked: Guest,
}

/// As [`Engine::park`], at a socket; `tries`: the submitter is to try what can be done at once.
#[inline(never)]
pub fn park(
    process: &Arc<Process>,
    table: &mut Requests,
    arrival: Arrival,
    tries: bool,
) -> Result<Option<Turn>, (Refused, Arrival)> {
    let Some(lane) = arrival.request.part.as_ref().and_then(|part| part.socket_lane()) else {
        panic!("only requests on sockets wait for one")
    };
    // The request, which keeps the lane, is about to go into it.
    let lane = lane.clone();
    let mut queue = lane.0.lock();
    if queue.buf().is_listening() {
        return Err((Refused::Listening, arrival));
    }
    if !queue.buf().adopt() {
        return Err((Refused::Busy, arrival));
    }
    let Arrival { submission, request, notice, group } = arrival;
    table.submit_parked(&submission, request, notice, group, |id, request| {
        let parked = Parked { process: process.clone(), id, request };
        Spot::Socket(lane.clone(), queue.push(ManuallyDrop::new(parked)))
    });
    if queue.has_turn() {
        // Whoever has it looks afterwards.
        return Ok(None);
    }
    if tries
        && queue.is_single()
        && queue.begin_without_task()
        && let Some(parked) = queue.begin_turn()
    {
        drop(queue);
        return Ok(Some(Turn { lane, parked }));
    }
    queue.poke();
    Ok(None)
}

/// Takes a parked request back from its lane, if no thread has it.
pub fn take(lane: &Queue, ticket: Ticket) -> Option<Guest> {
    let mut queue = lane.0.lock();
    let (parked, oldest) = queue.take(ticket)?;
    if queue.has_turn() {
        return Some(parked);
    }
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
    Some(parked)
}

impl Engine {
    /// Serves a direction that may have become ready, as one of the kernel's workers.
    ///
    /// # Context
    /// Sleeps; no locks.
    pub fn run_socket(&self, worker: &Worker, task: Task) -> Ended {
        let key = key(task.socket_id(), task.direction());
        let (task, mut lane) = match task.begin(|| self.sockets.find(key)) {
            Ok(begun) => begun,
            Err(ended) => return ended,
        };
        let mut tried_in_vain = false;
        loop {
            let mut queue = lane.0.lock();
            if queue.is_empty() {
                // Its last request may be gone already, and with it the lane from the map.
                match self.sockets.find(key) {
                    Some(newer) if !Arc::ptr_eq(&newer, &lane) => {
                        drop(queue);
                        lane = newer;
                        continue;
                    }
                    _ if queue.has_turn() && queue.is_reserved() => {}
                    _ => return task.end_empty(queue.into_buf()),
                }
            }
            // Who has the turn looks afterwards.
            if queue.has_turn()
                || (tried_in_vain && queue.buf().is_armed())
                || !queue.buf().is_ready()
            {
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
            tried_in_vain = self.run_parked(By::Worker, &lane, parked, |request| {
                if let Some(vm) = &request.vm {
                    vm.lend(worker);
                }
                lane.attempt(Hand::Worker(worker), request, more)
            });
        }
    }

    /// Tries a request in its submitter, `td`, and has what came meanwhile looked at. May sleep, but
    /// not for the peer; no locks.
    #[inline(never)]
    pub(super) fn run_turn(&self, td: Curthread, turn: Turn) {
        let Turn { lane, parked } = turn;
        self.run_parked(By::Submitter, &lane, parked, |request| {
            lane.attempt(Hand::Submitter(td), request, false)
        });
        let mut queue = lane.0.lock();
        queue.end_turn();
        if queue.buf().is_listening() {
            return;
        }
        if !queue.is_empty() {
            return queue.poke();
        }
        queue.nothing_waits();
        // The request may be gone already, and with it the lane from the map.
        match self.sockets.find(lanes::Queue::key(&*lane)) {
            Some(newer) if !Arc::ptr_eq(&newer, &lane) => {}
            _ => queue.buf().give_back(),
        }
    }

    /// Looks whether something waits in a lane, or in what has taken its place, after the kernel's
    /// function ran: events went to that, and a request that came knew the task to run.
    fn look_again(&self, key: u64, mut lane: Arc<Queue>) {
        loop {
            let mut queue = lane.0.lock();
            match self.sockets.find(key) {
                Some(newer) if !Arc::ptr_eq(&newer, &lane) => {
                    drop(queue);
                    lane = newer;
                }
                _ if queue.buf().is_listening() => return,
                // Whoever has the turn looks afterwards.
                _ if queue.has_turn() => return,
                _ if queue.is_empty() => return queue.buf().give_back(),
                _ => return queue.poke(),
            }
        }
    }
}
