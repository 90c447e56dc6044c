// SPDX-License-Identifier: BSD-2-Clause
//! The engine as a whole: whose a process is, and coming and going.
//!
//! A process is ours or the built-in's from its first request to its exec or exit. Calls that
//! create state decide; the others follow. See `docs/architecture.md`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use super::config::Config;
use super::lanes::Lanes;
use super::pool::Pool;
use super::process::{self, Process};
use super::request::Request;
use super::statistics::Statistics;
use super::{park, socket};
use crate::kern::kproc::Worker;
use crate::kern::printf::{RateLimit, print};
use crate::kern::proc::Curthread;
use crate::kern::procmap::{Decided, Held, Owner, ProcMap};
use crate::kern::sysctl::Tree;
use crate::model::Errno;
use crate::model::table::Finished;

/// See the file's text.
pub struct Engine {
    /// Goes first: it shows what is below.
    tree: Option<Tree>,
    pub(super) config: Config,
    pub(super) statistics: Statistics,
    pub(super) procs: Arc<ProcMap<Process>>,
    pub(super) pool: Arc<Pool>,
    pub(super) sockets: Arc<Lanes<socket::Queue>>,
    pub(super) pipes: Arc<Lanes<park::Queue>>,
    /// The next request's number.
    numbers: AtomicI32,
    /// Requests that run for processes that are gone.
    pub(super) orphans: AtomicUsize,
    unserved_log: RateLimit,
    /// No process may become ours.
    closing: AtomicBool,
}

/// How a system call ended for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// We answered; the thread's return value is set.
    Here,
    /// The kernel's own handler is to answer.
    Pass,
}

/// Whose the current process is, as a handler sees it.
pub enum Who<'a> {
    /// Undecided: calls that create state decide it.
    Nobody,
    Builtin,
    Ours(Held<'a, Process>),
}

impl Engine {
    /// Makes the engine; nothing is taken over yet. May sleep.
    ///
    /// # Errors
    /// The kernel lacks one of the variables of aio(4). One line is in the message buffer.
    // Out of line, or its frame would be the module event's too.
    #[inline(never)]
    pub fn new(td: Curthread) -> Result<Engine, Errno> {
        let config = Config::find(td)?;
        let statistics = Statistics::new();
        let pool = Arc::new(Pool::new());
        Ok(Engine {
            tree: None,
            config,
            statistics,
            procs: Arc::new(ProcMap::new()),
            pool,
            sockets: Arc::new(Lanes::new()),
            pipes: Arc::new(Lanes::new()),
            numbers: AtomicI32::new(1),
            orphans: AtomicUsize::new(0),
            unserved_log: RateLimit::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Makes our leaves under vfs.aio. May sleep.
    ///
    /// # Errors
    /// There are such leaves already. One line is in the message buffer.
    // A step of its own: with the making, its frames would be too many.
    #[inline(never)]
    pub fn publish(&mut self, td: Curthread) -> Result<(), Errno> {
        let Engine { config, pool, procs, .. } = self;
        let published = self.statistics.publish(td, config, pool, procs);
        self.tree = Some(published.inspect_err(|error| {
            print(format_args!(
                "not loaded: vfs.aio.rs cannot be made (error {}); is another copy loaded?",
                error.code()
            ));
        })?);
        Ok(())
    }

    /// Begins work: after the gate was opened. May sleep.
    ///
    /// # Errors
    /// The workers' manager cannot be started, as fork(2) says.
    pub fn start(&self) -> Result<(), Errno> {
        self.pool.start().inspect_err(|error| {
            print(format_args!(
                "not loaded: no kernel process can be started (error {}); see kern.maxproc",
                error.code()
            ));
        })
    }

    /// A worker's main function.
    pub fn run_worker(&self, worker: &Worker, seat: usize) {
        self.pool.run(self, worker, seat);
    }

    /// Says whose the process is. Context: any.
    pub fn who<'a>(&'a self, td: Curthread<'a>) -> Who<'a> {
        match self.procs.get(td) {
            Owner::Ours(process) => Who::Ours(process),
            Owner::Builtin => Who::Builtin,
            Owner::Nobody if td.has_builtin_aio() => Who::Builtin,
            Owner::Nobody => Who::Nobody,
        }
    }

    /// Makes an undecided process ours; `None` when it turns out to be the built-in's. May sleep.
    pub(super) fn claim<'a>(&'a self, td: Curthread<'a>) -> Option<Held<'a, Process>> {
        self.pool.register();
        let owner = match self.procs.claim(td, |live| Arc::new(Process::new(live))) {
            Decided::Now(owner) => owner,
            Decided::Before(owner) => {
                self.pool.forget_registration();
                owner
            }
        };
        match owner {
            Owner::Ours(process) => Some(process),
            Owner::Builtin | Owner::Nobody => None,
        }
    }

    /// The process as ours, for a call that creates state; `None` when it is the built-in's. May
    /// sleep.
    pub(super) fn settle<'a>(
        &'a self,
        td: Curthread<'a>,
        who: Who<'a>,
    ) -> Option<Held<'a, Process>> {
        match who {
            Who::Builtin => None,
            Who::Ours(process) => Some(process),
            Who::Nobody => self.claim(td),
        }
    }

    /// Leaves an undecided process to the built-in. If another thread has just made it ours,
    /// returns it. May sleep.
    pub(super) fn disclaim<'a>(&'a self, td: Curthread<'a>) -> Option<Held<'a, Process>> {
        match self.procs.disclaim(td) {
            Decided::Before(Owner::Ours(process)) => Some(process),
            _ => None,
        }
    }

    /// Whether the process's calls go to the built-in.
    ///
    /// A process that has had no request here is the built-in's when it has got state there
    /// meanwhile: by a call that was on its way while we were loaded or failed to unload.
    pub(super) fn is_retired(&self, td: Curthread, inner: &mut process::Inner) -> bool {
        if !inner.accepted && td.has_builtin_aio() {
            inner.retired = true;
        }
        self.retires(inner)
    }

    /// A process without a request retires when the engine closes: unload looks at all processes
    /// after it has set the flag, so either it sees the request of a thread that came by here
    /// before, or that thread sees the flag.
    fn retires(&self, inner: &mut process::Inner) -> bool {
        if inner.table.count() == 0 && self.closing.load(Ordering::SeqCst) {
            inner.retired = true;
        }
        inner.retired
    }

    /// The next request's number, for the aiocb's private part.
    pub(super) fn next_number(&self) -> i64 {
        i64::from(self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Answers a process of ours that wants what we do not serve yet. If no request of it was ever
    /// accepted it becomes the built-in's, with the threads that sleep here.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    pub(super) fn unserved(
        &self,
        td: Curthread,
        process: &Process,
        what: &str,
    ) -> Result<Served, Errno> {
        let mut inner = process.lock();
        if self.is_retired(td, &mut inner) {
            return Ok(Served::Pass);
        }
        if !inner.accepted {
            inner.retired = true;
            drop(inner);
            process.wake_all();
            return Ok(Served::Pass);
        }
        drop(inner);
        self.statistics.unserved.increment();
        if self.unserved_log.allows() {
            print(format_args!(
                "refused: {what} is not served yet (EOPNOTSUPP); unload aio_rs for such programs"
            ));
        }
        Err(Errno::EOPNOTSUPP)
    }

    /// What remains to be done about a request that was performed, without a lock. May sleep.
    pub(super) fn finished(&self, process: &Process, finished: Finished<Box<Request>>) {
        if let Finished::Gone { payload, last } = finished {
            drop(payload);
            self.orphans.fetch_sub(1, Ordering::AcqRel);
            if last {
                process.rundown_channel().wakeup();
            }
        }
    }

    /// Says whether nothing of any process is left with us; else why, in the message buffer. May
    /// sleep.
    ///
    /// # Errors
    /// EBUSY.
    pub fn idle(&self) -> Result<(), Errno> {
        let (mut requests, mut processes) = (0, 0);
        self.procs.all(|process| {
            let count = process.lock().table.count();
            requests += count;
            processes += usize::from(count > 0);
            true
        });
        let orphans = self.orphans.load(Ordering::Acquire);
        if requests + orphans == 0 {
            return Ok(());
        }
        print(format_args!(
            "not unloaded: {requests} requests of {processes} processes and {orphans} of gone ones; see vfs.aio.rs.processes"
        ));
        Err(Errno::EBUSY)
    }

    /// Stops: processes become the built-in's, sleeping threads are sent there, workers end. May
    /// sleep. After an error everything is as before, but for processes without requests that
    /// became the built-in's already.
    ///
    /// # Errors
    /// EBUSY: a process has a request, done or not. One line is in the message buffer.
    pub fn close(&self) -> Result<(), Errno> {
        self.closing.store(true, Ordering::SeqCst);
        let result = self.idle().and_then(|()| {
            let mut free = true;
            self.procs.all(|process| {
                let mut inner = process.lock();
                free = self.retires(&mut inner);
                drop(inner);
                // Threads that sleep without a request go to the built-in.
                process.wake_all();
                free
            });
            if !free {
                print(format_args!("not unloaded: a request came meanwhile; try again"));
                return Err(Errno::EBUSY);
            }
            Ok(())
        });
        match result {
            Ok(()) => self.pool.stop(),
            Err(_) => self.reopen(),
        }
        result
    }

    /// Undoes [`Engine::close`].
    pub fn reopen(&self) {
        self.pool.resume();
        self.closing.store(false, Ordering::SeqCst);
    }
}
