// SPDX-License-Identifier: BSD-2-Clause
//! Asking for results and taking them: aio_error(2), aio_return(2), aio_waitcomplete(2).

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::engine::{Engine, Served, Who};
use super::notify::Notice;
use super::process::Process;
use super::request::Request;
use super::trace::Parked;
use crate::kern::proc::Curthread;
use crate::kern::sleep::Deadline;
use crate::kern::user::{Abi, UserAiocb, UserPtr};
use crate::model::Errno;
use crate::model::table::{Progress, Reaped, Room};

/// How long aio_waitcomplete(2) waits.
#[derive(Clone, Copy)]
pub enum Patience {
    /// Not at all.
    Poll,
    /// Until then.
    Until(Deadline),
    /// As long as it takes.
    Forever,
}

impl Engine {
    /// Returns a request's error number as the system call's value: EINPROGRESS while it runs.
    ///
    /// For a request that is not there, the aiocb's own words answer, as a failed submission or a
    /// failed aio_return(2) left them; EINVAL when they do not say that it failed.
    ///
    /// # Context
    /// May sleep; no locks.
    pub fn error(&self, td: Curthread, user: UserAiocb) -> Result<Served, Errno> {
        let Who::Ours(process) = self.who(td) else { return Ok(Served::Pass) };
        let mut inner = process.lock();
        if self.is_retired(td, &mut inner) {
            return Ok(Served::Pass);
        }
        let progress = inner.table.progress(user.address());
        // The limit of requests that run may have been raised while this one waited.
        let kick = self.pool.schedule(&self.config, &process, &mut inner);
        drop(inner);
        kick.deliver();
        td.set_retval(match progress {
            Some(Progress::Running) => i64::from(Errno::EINPROGRESS.code()),
            Some(Progress::Finished(error)) => i64::from(error.map_or(0, Errno::code)),
            None if user.fetch_status() == -1 => user.fetch_error(),
            None => i64::from(Errno::EINVAL.code()),
        });
        Ok(Served::Here)
    }

    /// Takes a finished request's result and forgets the request.
    ///
    /// # Context
    /// May sleep; no locks.
    ///
    /// # Errors
    /// EINVAL: no finished request has this aiocb. Else the request's own error.
    pub fn reap(&self, td: Curthread, user: UserAiocb) -> Result<Served, Errno> {
        let Who::Ours(process) = self.who(td) else { return Ok(Served::Pass) };
        let mut inner = process.lock();
        if self.is_retired(td, &mut inner) {
            return Ok(Served::Pass);
        }
        let mut reaped = inner.table.reap(user.address());
        drop(inner);
        self.deliver(td, user, reaped.as_mut().ok_or(Errno::EINVAL)?)
    }

    /// Gives a result to the user and lets the request go, where it is.
    fn deliver(
        &self,
        td: Curthread,
        user: UserAiocb,
        reaped: &mut Reaped<Box<Request>, Notice>,
    ) -> Result<Served, Errno> {
        let outcome = reaped.outcome;
        self.config.num_queue_count.subtract(1);
        td.charge(outcome.usage);
        td.set_retval(outcome.status);
        reaped.payload = None;
        reaped.notice = None;
        reaped.group = None;
        user.store_error(i64::from(outcome.error.map_or(0, Errno::code)));
        user.store_status(outcome.status);
        outcome.error.map_or(Ok(Served::Here), Err)
    }

    /// Waits for the request that finishes first, takes its result and stores its aiocb's address.
    ///
    /// # Context
    /// Sleeps; no locks.
    ///
    /// # Errors
    /// EAGAIN: none within the time. EINTR, or ERESTART when there is no limit of time: a signal.
    /// Else the request's own error.
    pub fn wait_complete(
        &self,
        td: Curthread,
        who: Who,
        abi: Abi,
        which: UserPtr,
        patience: Patience,
    ) -> Result<Served, Errno> {
        let Some(process) = self.settle(td, who) else { return Ok(Served::Pass) };
        let mut inner = process.lock();
        if self.is_retired(td, &mut inner) {
            return Ok(Served::Pass);
        }
        let mut reaped = inner.table.reap_oldest();
        drop(inner);
        if reaped.is_none() {
            let deadline = match patience {
                Patience::Poll => return Err(Errno::EAGAIN),
                Patience::Until(deadline) => Some(deadline),
                Patience::Forever => None,
            };
            reaped = self.wait_for_any(td, &process, deadline)?;
        }
        let Some(reaped) = &mut reaped else { return Ok(Served::Pass) };
        let user = UserAiocb::at(abi, reaped.address);
        // Failure to store loses only the name; the result is the caller's already.
        let _ = user.abi().store_pointer(which, user.address());
        self.deliver(td, user, reaped)
    }

    /// Takes the request that finishes first; `None` when the process retires.
    // Out of line: most calls find one.
    #[inline(never)]
    fn wait_for_any(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        deadline: Option<Deadline>,
    ) -> Result<Option<Reaped<Box<Request>, Notice>>, Errno> {
        let mut inner = process.lock_with_room(Room::Waits(0));
        let waiter = inner.table.enter();
        let mut slept = Ok(());
        loop {
            let result = if self.is_retired(td, &mut inner) {
                Ok(None)
            } else if let Some(reaped) = inner.table.reap_oldest() {
                Ok(Some(reaped))
            } else if let Err(error) = slept {
                Err(match error {
                    Errno::ERESTART if deadline.is_some() => Errno::EINTR,
                    other => other,
                })
            } else {
                inner.table.wait_any(waiter);
                // The limit of requests that run may have been raised.
                self.pool.schedule(&self.config, process, &mut inner).deliver();
                let parked = Parked::new(0, inner.table.count());
                (inner, slept) = inner.msleep(process.channel(waiter), true, c"aiowc", deadline);
                parked.wake(&slept);
                continue;
            };
            inner.table.leave(waiter);
            return result;
        }
    }
}
