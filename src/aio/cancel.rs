// SPDX-License-Identifier: BSD-2-Clause
//! aio_cancel(2): requests that have not begun end with ECANCELED; those that run go on.

use super::engine::{Engine, Served, Who};
use super::lanes::Spot;
use super::notify::Notice;
use crate::kern::file::{Access, File};
use crate::kern::proc::Curthread;
use crate::kern::user::UserAiocb;
use crate::model::Errno;
use crate::model::table::Cancelled;

/// How many requests are cancelled under one lock.
const CHUNK: usize = 64;

/// aio_cancel(2)'s answers, as <aio.h> has them; `entry` asserts the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Canceled = 1,
    NotCanceled = 2,
    AllDone = 3,
}

impl Engine {
    /// Cancels one request of a descriptor, or all of them, and returns what became of them as the
    /// system call's value.
    ///
    /// # Context
    /// May sleep; no locks.
    ///
    /// # Errors
    /// EBADF: the descriptor is not open.
    pub fn cancel(&self, td: Curthread, fd: i32, user: Option<UserAiocb>) -> Result<Served, Errno> {
        let Who::Ours(process) = self.who(td) else { return Ok(Served::Pass) };
        if self.is_retired(td, &mut process.lock()) {
            return Ok(Served::Pass);
        }
        let file = File::get(td, fd, Access::Any)?;
        if file.is_disk() {
            td.set_retval(Answer::NotCanceled as i64);
            return Ok(Served::Here);
        }
        let mut withdraw = |spot: &Spot| self.withdraw(spot);
        let (mut cancelled, mut running) = (0, 0);
        loop {
            let mut inner = process.lock();
            let (table, tell) = inner.parts();
            let told = |notice: &mut Notice, news| tell.tell(notice, news);
            let now: Cancelled = match user {
                Some(user) => {
                    table.cancel_one(fd, user.address(), &mut withdraw, told, &mut |it, outcome| {
                        self.statistics.withdrawn(it, outcome);
                    })
                }
                None => table.cancel_all(fd, CHUNK, &mut withdraw, told, &mut |it, outcome| {
                    self.statistics.withdrawn(it, outcome);
                }),
            };
            // Cancelling a write may have let a sync begin.
            let kick = self.pool.schedule(&self.config, &process, &mut inner);
            process.unlock_and_wake(inner);
            kick.deliver();
            cancelled += now.cancelled;
            running += now.running + now.short;
            if user.is_some() || now.cancelled + now.short < CHUNK {
                break;
            }
        }
        let answer = match (running, cancelled) {
            (0, 0) => Answer::AllDone,
            (0, _) => Answer::Canceled,
            (_, _) => Answer::NotCanceled,
        };
        td.set_retval(answer as i64);
        Ok(Served::Here)
    }
}
