// SPDX-License-Identifier: BSD-2-Clause
//! What we keep about one process, from its first request to its exec or exit.
//!
//! # Lock
//! `aio_rs process`, one per process: everything in [`Inner`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, AtomicUsize};

use super::config::Config;
use super::lanes::Spot;
use super::notify::{Notice, Tell};
use super::request::Request;
use crate::kern::mtx::{Guard, Mutex};
use crate::kern::proc::LiveProc;
use crate::kern::sleep::Channel;
use crate::model::glance::Glance;
use crate::model::slab::Id;
use crate::model::table::{Finished, Memory, Outcome, Room, Table};

/// How many sleep channels a process has. More threads than these share some, and then look at
/// their condition once in vain.
const CHANNELS: usize = 64;

/// See the file's text.
pub struct Process {
    inner: Mutex<Inner>,
    /// What can be seen of the table without the lock.
    pub glance: Arc<Glance>,
    /// Mapped buffers of its disk requests.
    pub mapped: AtomicUsize,
    /// Never read: only its addresses are used.
    channels: [AtomicU8; CHANNELS],
}

/// The requests of a process.
pub type Requests = Table<Box<Request>, Notice, Spot>;

/// What the process's mutex protects.
pub struct Inner {
    pub table: Requests,
    /// The process itself; taken when it exits or replaces its image.
    pub live: Option<LiveProc>,
    /// The pool's queue holds the process, or a worker is about to look.
    pub scheduled: bool,
    /// Workers that perform requests of this process now.
    pub workers: usize,
    /// Requests a disk's driver has, or is about to get.
    pub flights: usize,
    /// A request of the process has been queued: it is ours until exec or exit.
    pub accepted: bool,
    /// The process has no request here and never will: its calls go to the built-in.
    pub retired: bool,
}

impl Inner {
    /// The table, and who tells the ends of what is in it.
    pub fn parts(&mut self) -> (&mut Requests, Tell<'_>) {
        (&mut self.table, Tell::new(self.live.as_ref()))
    }

    /// Takes the result of a request, and tells what ends by it.
    #[inline]
    pub fn finish(
        &mut self,
        id: Id,
        request: Box<Request>,
        outcome: Outcome,
    ) -> Finished<Box<Request>> {
        let (table, tell) = self.parts();
        table.finish(id, request, outcome, |notice, news| tell.tell(notice, news))
    }

    /// Whether the process must be put into the pool's queue. Where none of its requests may run, too:
    /// the worker that takes it from there has the pool remember that somebody waits for the setting.
    #[inline]
    pub fn wants_worker(&self, config: &Config) -> bool {
        self.table.pending() > 0
            && !self.scheduled
            && self.live.is_some()
            && self.workers < config.running_per_process_max().max(1)
    }
}

impl Process {
    /// The mutex, for knotes that are to use it as theirs.
    pub fn mutex(&self) -> &Mutex<Inner> {
        &self.inner
    }

    /// Makes the state of a process that has no request yet. May sleep.
    pub fn new(live: LiveProc) -> Process {
        let table = Table::default();
        Process {
            glance: table.glance().clone(),
            inner: Mutex::new(
                c"aio_rs process",
                Inner {
                    table,
                    live: Some(live),
                    scheduled: false,
                    workers: 0,
                    flights: 0,
                    accepted: false,
                    retired: false,
                },
            ),
            mapped: AtomicUsize::new(0),
            channels: [const { AtomicU8::new(0) }; CHANNELS],
        }
    }

    /// Locks the process's state.
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, Inner> {
        self.inner.lock()
    }

    /// Where a registered thread sleeps.
    pub fn channel(&self, waiter: Id) -> Channel {
        Channel::of(&self.channels[waiter as usize % CHANNELS])
    }

    /// Where exit and exec wait for requests that run.
    pub fn rundown_channel(&self) -> Channel {
        Channel::of(&self.inner)
    }

    /// Wakes every thread that sleeps here, whatever for.
    pub fn wake_all(&self) {
        for channel in &self.channels {
            Channel::of(channel).wakeup();
        }
    }

    /// Locks the state with room for an operation. May sleep.
    #[inline]
    pub fn lock_with_room(&self, room: Room) -> Guard<'_, Inner> {
        let inner = self.lock();
        if inner.table.has_room(room) {
            return inner;
        }
        drop(inner);
        self.make_room(room)
    }

    #[cold]
    #[inline(never)]
    fn make_room(&self, room: Room) -> Guard<'_, Inner> {
        let mut spare: Option<Box<Memory<Box<Request>, Notice, Spot>>> = None;
        loop {
            let mut inner = self.lock();
            if let Some(memory) = &mut spare {
                inner.table.grow(memory);
            }
            match inner.table.lacks(room) {
                None if spare.is_none() => return inner,
                need => {
                    drop(inner);
                    // What is left over must not be freed under the lock.
                    spare = need.map(Memory::new);
                }
            }
        }
    }

    /// Unlocks, and wakes the threads whose requests have finished: after unlocking, so that they
    /// do not run into the mutex, and in batches, so that no memory is needed.
    #[inline]
    pub fn unlock_and_wake<'a>(&'a self, inner: Guard<'a, Inner>) {
        if inner.table.has_news() {
            self.unlock_and_wake_some(inner);
        }
    }

    #[inline(never)]
    fn unlock_and_wake_some<'a>(&'a self, mut inner: Guard<'a, Inner>) {
        const BATCH: usize = 8;
        loop {
            let mut batch = [None; BATCH];
            let mut count = 0;
            while count < BATCH {
                let Some(waiter) = inner.table.next_fired() else { break };
                batch[count] = Some(waiter);
                count += 1;
            }
            drop(inner);
            for waiter in batch.iter().flatten() {
                self.channel(*waiter).wakeup();
            }
            if count < BATCH {
                return;
            }
            inner = self.lock();
        }
    }
}
