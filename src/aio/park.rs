// SPDX-License-Identifier: BSD-2-Clause
//! Requests on pipes and FIFOs, with `vfs.aio.rs.park`: parked until their direction is ready, never a
//! blocked worker. The built-in refuses them, because a worker could wait for their peer for ever.
//!
//! A direction's lane (`lanes.rs`) is served by one of the pool's workers at a time. The pipe tells its
//! events to the lane's watch (`kern/pipe.rs`) as long as the lane is in the map, under locks that
//! allow no more than to queue the lane for a worker.
//!
//! A try that fails must not be repeated before something has happened, and what happens during it
//! must not be missed. So every event leaves a mark, which the worker takes away before it tries:
//!
//! ```text
//! worker                                 event (a reader or writer of the pipe)
//! lock, take the oldest, unmark, unlock
//! try: EAGAIN
//!                                        more room; lock, mark; the lane runs: nothing to queue
//! lock, put it back
//! marked: try on
//! ```
//!
//! # Locks
//! `aio_rs pipe`, one per lane: everything in [`State`]. It is taken after a process's mutex, or after
//! the pipe's own, and before the pool's.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;

use super::engine::Engine;
use super::lanes::{self, Arrival, Guest, Hand, Manners, Parked, Spot};
use super::pool::{Kick, Pool, Registration};
use super::process::{Process, Requests};
use super::statistics::By;
use crate::kern::file::File;
use crate::kern::kproc::Worker;
use crate::kern::mtx::{Guard, Mutex};
use crate::kern::pipe::Watch;
use crate::kern::socket::Direction;
use crate::kern::vmspace::Home;
use crate::model::lane::{Lane, Ticket};

/// A lane with its pipe.
pub struct Queue {
    watch: Watch,
    state: Mutex<State>,
    /// Goes when the pool's queue, which keeps what is in it, does not have the lane any more.
    _registration: Registration,
}

struct State {
    lane: Lane<Guest>,
    stage: Stage,
    /// The direction may have become ready since this was last taken away.
    marked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody looks; the oldest request, if there is one, waits for an event.
    Idle,
    /// In the pool's queue.
    Queued,
    /// A worker serves it.
    Running,
}

/// A direction of an open file that is a pipe.
pub struct Way<'a> {
    pool: &'a Pool,
    file: &'a File,
    direction: Direction,
    name: u64,
}

impl<'a> Way<'a> {
    /// `None`: the file is no pipe.
    pub fn new(pool: &'a Pool, file: &'a File, direction: Direction) -> Option<Way<'a>> {
        let name = Watch::name(file, direction)?;
        Some(Way { pool, file, direction, name })
    }
}

impl lanes::Way<Queue> for Way<'_> {
    fn key(&self) -> u64 {
        self.name
    }

    fn make(&self) -> Queue {
        let Some(watch) = Watch::new(self.file, self.direction) else {
            panic!("a pipe is none any more")
        };
        let state = State { lane: Lane::default(), stage: Stage::Idle, marked: false };
        Queue {
            watch,
            state: Mutex::new(c"aio_rs pipe", state),
            _registration: self.pool.registration(),
        }
    }
}

impl lanes::Queue for Queue {
    fn key(&self) -> u64 {
        self.watch.id()
    }

    fn with<R>(&self, look: impl FnOnce(&mut Lane<Guest>) -> R) -> R {
        look(&mut self.state.lock().lane)
    }

    fn spot(self: &Arc<Queue>, ticket: Ticket) -> Spot {
        Spot::Pipe(self.clone(), ticket)
    }

    type Left = ();

    fn open(&self) {
        self.watch.attach();
    }

    fn close(&self) {
        self.watch.detach();
    }
}

impl Engine {
    /// Has a worker look at a lane, which is not looked at in vain: nobody is kicked under its lock.
    fn poke(&self, lane: &Arc<Queue>, mut state: Guard<'_, State>) {
        let kick = match state.stage {
            Stage::Idle if !state.lane.is_empty() => {
                state.stage = Stage::Queued;
                self.pool.schedule_lane(&self.config, lane)
            }
            _ => {
                state.marked = true;
                Kick::NONE
            }
        };
        drop(state);
        kick.deliver();
    }

    /// As [`Engine::park`], at a pipe.
    pub(super) fn park_at_pipe(
        &self,
        process: &Arc<Process>,
        table: &mut Requests,
        arrival: Arrival,
    ) {
        let Some(lane) = arrival.request.part.as_ref().and_then(|part| part.pipe_lane()) else {
            panic!("only requests on pipes wait for one")
        };
        // The request, which keeps the lane, is about to go into it.
        let lane = lane.clone();
        let mut state = lane.state.lock();
        let first = state.lane.is_empty();
        let Arrival { submission, request, notice, group } = arrival;
        table.submit_parked(&submission, request, notice, group, |id, request| {
            let parked = Parked { process: process.clone(), id, request };
            Spot::Pipe(lane.clone(), state.lane.push(ManuallyDrop::new(parked)))
        });
        // An event from now on finds the request.
        if first && lane.watch.is_ready() {
            self.poke(&lane, state);
        }
    }

    /// Takes a parked request back from its lane, if no thread has it.
    pub(super) fn take_from_pipe(&self, lane: &Arc<Queue>, ticket: Ticket) -> Option<Guest> {
        let mut state = lane.state.lock();
        let (parked, oldest) = state.lane.take(ticket)?;
        // What kept the oldest waiting need not keep the next.
        if oldest && !state.lane.is_empty() && lane.watch.is_ready() {
            self.poke(lane, state);
        }
        Some(parked)
    }

    /// The direction of this name may have become ready.
    ///
    /// # Context
    /// The pipe's mutex is held, and the lock of one of its watches.
    pub fn pipe_event(&self, name: u64) {
        // Not its last reference: a lane that has left the map is kept until its watch, which takes the
        // pipe's mutex, is off the pipe.
        if let Some(lane) = self.pipes.find(name) {
            self.poke(&lane, lane.state.lock());
        }
    }

    /// Serves a lane out of the pool's queue, until it has to wait or others do.
    ///
    /// # Context
    /// Sleeps; no locks.
    pub(super) fn run_pipe(&self, worker: &Worker, home: &mut Home, lane: &Arc<Queue>) {
        let mut waits = false;
        let mut state = lane.state.lock();
        state.stage = Stage::Running;
        loop {
            if waits && !state.marked {
                state.stage = Stage::Idle;
                return;
            }
            let Some(parked) = state.lane.pop() else {
                state.stage = Stage::Idle;
                return;
            };
            state.marked = false;
            drop(state);
            waits = self.run_parked(By::Worker, lane, parked, |request| {
                if let Some(vm) = &request.vm {
                    home.lodge(vm);
                }
                let manners = |file: &File| Manners {
                    nonblocking: file.is_nonblocking(),
                    signals: true,
                    keeps_part: true,
                };
                lanes::attempt(
                    Hand::Worker(worker),
                    request,
                    |file, buffer| lane.watch.transfer(worker, file, buffer),
                    manners,
                )
            });
            state = lane.state.lock();
            if !waits && !state.lane.is_empty() && self.pool.is_contended() {
                state.stage = Stage::Queued;
                self.pool.requeue_lane(lane);
                return;
            }
        }
    }
}
