// SPDX-License-Identifier: BSD-2-Clause
//! aio_suspend(2): waiting until one of the named requests has finished.
//!
//! Differences from the built-in: the time limit is one deadline, not a fresh one after every
//! completion of the process; and a limit of zero does not sleep.

use alloc::sync::Arc;

use super::engine::{Engine, Served};
use super::process::Process;
use super::reap::Patience;
use super::trace::Parked;
use crate::kern::proc::Curthread;
use crate::model::Errno;
use crate::model::table::{Room, Suspend};

impl Engine {
    /// The longest list a call may name.
    pub fn list_max(&self) -> usize {
        self.config.queue_per_process_max()
    }

    /// Sleeps until one of `addresses` has finished, the deadline or a signal. Returns at once when
    /// one has, or when none is known. 0 is no address.
    ///
    /// # Context
    /// Sleeps; no locks.
    ///
    /// # Errors
    /// EAGAIN: the deadline. EINTR: a signal.
    pub fn suspend(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        addresses: &[u64],
        patience: Patience,
    ) -> Result<Served, Errno> {
        {
            let mut inner = process.lock();
            if self.is_retired(td, &mut inner) {
                return Ok(Served::Pass);
            }
            if inner.table.is_ready(addresses) {
                return Ok(Served::Here);
            }
        }
        let mut room = addresses.iter().filter(|&&address| address != 0).count();
        let (mut inner, waiter) = loop {
            let mut inner = process.lock_with_room(Room::Waits(room));
            if self.is_retired(td, &mut inner) {
                return Ok(Served::Pass);
            }
            match inner.table.suspend(addresses) {
                Suspend::Ready => return Ok(Served::Here),
                Suspend::Wait(waiter) => break (inner, waiter),
                // An aiocb stands for several requests.
                Suspend::NoRoom(waiter) => inner.table.leave(waiter),
            }
            // Each is waited for once, however often it is named.
            room = inner.table.count();
        };
        let deadline = match patience {
            Patience::Poll => {
                inner.table.leave(waiter);
                return Err(Errno::EAGAIN);
            }
            Patience::Until(deadline) => Some(deadline),
            Patience::Forever => None,
        };
        // The limit of requests that run may have been raised.
        self.pool.schedule(&self.config, process, &mut inner).deliver();
        let mut slept = Ok(());
        let parked = Parked::new(addresses.first().copied().unwrap_or(0), addresses.len());
        // A process with a live request does not retire.
        while !inner.table.has_fired(waiter) && slept.is_ok() {
            (inner, slept) = inner.msleep(process.channel(waiter), true, c"aiospn", deadline);
        }
        parked.wake(&slept);
        let fired = inner.table.has_fired(waiter);
        inner.table.leave(waiter);
        drop(inner);
        match slept {
            Err(error) if !fired => {
                Err(if error == Errno::ERESTART { Errno::EINTR } else { error })
            }
            _ => Ok(Served::Here),
        }
    }
}
