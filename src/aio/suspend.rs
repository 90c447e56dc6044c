// SPDX-License-Identifier: BSD-2-Clause
//! aio_suspend(2): waiting until one of the named requests has finished.
//!
//! Differences from the built-in: the time limit is one deadline, not a fresh one after every
//! completion of the process; and a limit of zero does not sleep.

use super::engine::{Engine, Served, Who};
use crate::kern::proc::Curthread;
use crate::kern::sleep::Deadline;
use crate::model::Errno;
use crate::model::table::Suspend;

impl Engine {
    /// The longest list a call may name.
    pub fn list_max(&self) -> usize {
        self.config.queue_per_process_max()
    }

    /// Whether the process's calls go to the built-in.
    pub fn passes(&self, td: Curthread) -> bool {
        !matches!(self.who(td), Who::Ours(_))
    }

    /// Whether the process belongs to the built-in already.
    pub fn is_builtin(&self, td: Curthread) -> bool {
        matches!(self.who(td), Who::Builtin)
    }

    /// Sleeps until one of `addresses` has finished, the deadline or a signal. Returns at once when
    /// one has, or when none is known.
    ///
    /// # Context
    /// Sleeps; no locks.
    ///
    /// # Errors
    /// EAGAIN: the deadline. EINTR: a signal.
    pub fn suspend(
        &self,
        td: Curthread,
        addresses: &[u64],
        deadline: Option<Deadline>,
    ) -> Result<Served, Errno> {
        let Who::Ours(process) = self.who(td) else { return Ok(Served::Pass) };
        let mut inner = process.lock_with_room(false, Some(addresses.len()));
        if inner.retired {
            return Ok(Served::Pass);
        }
        let Suspend::Wait(waiter) = inner.table.suspend(addresses) else {
            return Ok(Served::Here);
        };
        let mut slept = Ok(());
        // A process with a live request does not retire.
        while !inner.table.has_fired(waiter) && slept.is_ok() {
            (inner, slept) = inner.msleep(process.channel(waiter), true, c"aiospn", deadline);
        }
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
