// SPDX-License-Identifier: BSD-2-Clause
//! lio_listio(2): many requests by one call, and one notice for all of them.
//!
//! Entries are checked one by one in the order given, and queued in batches: one lock, one look at
//! the workers.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::engine::{Engine, Served};
use super::notify::Notice;
use super::process::Process;
use super::submit::{Prepared, Wanted};
use super::trace::Parked;
use crate::kern::knote::About;
use crate::kern::proc::Curthread;
use crate::kern::user::{Abi, Notify, Sigevent, UserAiocb};
use crate::model::Errno;
use crate::model::slab::Id;
use crate::model::table::Room;

/// How many requests are queued under one lock, at most.
const BATCH: usize = 32;

/// Whether the call waits for its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// LIO_NOWAIT.
    NoWait,
    /// LIO_WAIT.
    Wait,
}

/// How many entries failed to be queued.
#[derive(Default)]
struct Failures {
    /// For lack of room.
    again: usize,
    /// For anything else.
    other: usize,
}

impl Failures {
    fn add(&mut self, user: UserAiocb, error: Errno) {
        // A signal kept the only thread that could from starting a worker.
        let error = match error {
            Errno::ERESTART | Errno::EINTR => Errno::EAGAIN,
            other => other,
        };
        user.store_error(i64::from(error.code()));
        match error {
            Errno::EAGAIN => self.again += 1,
            _ => self.other += 1,
        }
    }
}

impl Engine {
    /// Queues the requests at `entries`, read from the process's array at `list`; addresses of 0 are
    /// skipped.
    ///
    /// # Context
    /// Sleeps; no locks.
    ///
    /// # Errors
    /// EINVAL, EBADF, ENOTCAPABLE: `sigevent`; nothing was queued then. EIO: an entry could not be
    /// queued; EAGAIN: and that only for lack of room. EINTR: a signal ended the wait. The entries
    /// that could be queued are.
    pub fn listio(
        &self,
        td: Curthread,
        abi: Abi,
        mode: Mode,
        list: u64,
        entries: &[u64],
        sigevent: Option<&Sigevent>,
    ) -> Result<Served, Errno> {
        let Some(process) = self.settle(td, self.who(td)) else { return Ok(Served::Pass) };
        if self.is_retired(td, &mut process.lock()) {
            return Ok(Served::Pass);
        }
        let notify = match (mode, sigevent) {
            (Mode::NoWait, Some(sigevent)) => sigevent.check()?,
            _ => Notify::None,
        };
        let notify = match &notify {
            Notify::Kevent(event) => Notify::Kevent(event.without_flags()),
            other => *other,
        };
        let notice = Notice::prepare(td, &process, About::List, list, &notify)?;
        let group = process.lock_with_room(Room::Group).table.open_group(notice);
        let mut failures = Failures::default();
        let added = self.add_entries(td, &process, abi, group, entries, &mut failures);
        if added == Served::Pass {
            let notice = process.lock().table.abandon_group(group);
            drop(notice);
            return Ok(Served::Pass);
        }
        let waited = self.finish_list(&process, mode, group);
        match (failures, waited) {
            (Failures { other: 1.., .. }, _) => Err(Errno::EIO),
            (Failures { again: 1.., .. }, _) => Err(Errno::EAGAIN),
            (_, Err(error)) => Err(error),
            (_, Ok(())) => {
                td.set_retval(0);
                Ok(Served::Here)
            }
        }
    }

    /// Adds all entries to the list. [`Served::Pass`]: none was added, and the process has become
    /// the built-in's.
    fn add_entries(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        abi: Abi,
        group: Id,
        entries: &[u64],
        failures: &mut Failures,
    ) -> Served {
        let mut batch = Vec::with_capacity(entries.len().min(BATCH));
        let mut requests = 0;
        let mut queued = false;
        for (index, &address) in entries.iter().enumerate() {
            if address != 0 {
                let user = UserAiocb::at(abi, address);
                user.store_initial();
                let mut slot = None;
                match self.entry(td, process, user, batch.len(), &mut slot) {
                    Ok(Served::Here) if slot.is_some() => {
                        requests += 1;
                        batch.push(slot);
                    }
                    // LIO_NOP.
                    Ok(Served::Here) => {}
                    Ok(Served::Pass) if !queued => return Served::Pass,
                    Ok(Served::Pass) => self.refuse(failures, user, Errno::EAGAIN),
                    Err(error) => self.refuse(failures, user, error),
                }
            }
            if batch.is_empty() || (batch.len() < BATCH && index + 1 < entries.len()) {
                continue;
            }
            let mut refuse = |user, error| {
                requests -= 1;
                self.refuse(failures, user, error);
            };
            match self.enqueue(td, process, Some(group), !queued, &mut batch, &mut refuse) {
                Served::Pass => return Served::Pass,
                Served::Here => queued = true,
            }
            batch.clear();
        }
        self.statistics.list(requests);
        Served::Here
    }

    /// Counts an entry that could not be queued.
    fn refuse(&self, failures: &mut Failures, user: UserAiocb, error: Errno) {
        self.statistics.refused(error);
        failures.add(user, error);
    }

    /// Checks one entry and makes a request of it in `slot`, which stays empty if it asks for
    /// nothing. [`Served::Pass`]: the process is the built-in's now.
    #[inline(never)]
    fn entry(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        user: UserAiocb,
        more: usize,
        slot: &mut Option<Prepared>,
    ) -> Result<Served, Errno> {
        let mut checked = None;
        self.check(td, Some(process), user, Wanted::Listed, more, &mut checked)?;
        let Some(checked) = &mut checked else { return Ok(Served::Here) };
        if let Some(what) = checked.unserved() {
            return self.unserved(td, process, what);
        }
        self.prepare(td, process, checked, slot)?;
        Ok(Served::Here)
    }

    /// Ends the call's part in the list: waits for it if that was asked for.
    ///
    /// # Errors
    /// EINTR: a signal ended the wait.
    #[inline(never)]
    fn finish_list(&self, process: &Arc<Process>, mode: Mode, group: Id) -> Result<(), Errno> {
        let room = if mode == Mode::Wait { Some(Room::Waits(0)) } else { None };
        let mut inner = match room {
            Some(room) => process.lock_with_room(room),
            None => process.lock(),
        };
        let (table, tell) = inner.parts();
        let done = table.close_group(group, |notice: &mut Notice, news| tell.tell(notice, news));
        let mut slept = Ok(());
        if !done && mode == Mode::Wait {
            let waiter = inner.table.enter();
            inner.table.await_group(group, waiter);
            let parked = Parked::new(0, inner.table.count());
            while !inner.table.has_fired(waiter) && slept.is_ok() {
                (inner, slept) = inner.msleep(process.channel(waiter), true, c"aiospn", None);
            }
            parked.wake(&slept);
            if inner.table.has_fired(waiter) {
                slept = Ok(());
            }
            inner.table.leave(waiter);
        }
        let left = inner.table.leave_group(group);
        drop(inner);
        match left {
            // Nothing of the list is left to hold the event.
            Some(Notice::Event(event)) if self.config.empty_list_kevent() => event.leave_behind(),
            left => drop(left),
        }
        slept.map_err(|error| if error == Errno::ERESTART { Errno::EINTR } else { error })
    }
}
