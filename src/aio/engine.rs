// SPDX-License-Identifier: BSD-2-Clause
//! The engine as a whole: whose a process is, and coming and going.
//!
//! A process is ours or the built-in's from its first request to its exec or exit. Calls that
//! create state decide; the others follow. See `docs/architecture.md`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::config::{Config, Statistics};
use super::pool::Pool;
use super::process::Process;
use super::request::Request;
use crate::kern::kproc::Worker;
use crate::kern::printf::{RateLimit, print};
use crate::kern::proc::Curthread;
use crate::kern::procmap::{Decided, Held, Owner, ProcMap};
use crate::kern::sysctl::Tree;
use crate::model::Errno;
use crate::model::table::Finished;

/// See the file's text.
pub struct Engine {
    // Before what its leaves point to.
    _tree: Tree,
    pub(super) config: Config,
    pub(super) statistics: Box<Statistics>,
    pub(super) procs: ProcMap<Process>,
    pub(super) pool: Box<Pool>,
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
pub(super) enum Who<'a> {
    /// Undecided: calls that create state decide it.
    Nobody,
    Builtin,
    Ours(Held<'a, Process>),
}

impl Engine {
    /// Makes the engine; nothing is taken over yet. May sleep.
    ///
    /// # Errors
    /// The kernel lacks one of the variables of aio(4), or has our leaves already. One line is in
    /// the message buffer.
    pub fn new(td: Curthread) -> Result<Engine, Errno> {
        let config = Config::find(td)?;
        let statistics = Box::new(Statistics::new());
        let pool = Box::new(Pool::new());
        let tree = statistics.publish(td, &pool.workers).inspect_err(|error| {
            print(format_args!("vfs.aio.rs cannot be made (error {}); not loaded", error.code()));
        })?;
        Ok(Engine {
            _tree: tree,
            config,
            statistics,
            procs: ProcMap::new(),
            pool,
            orphans: AtomicUsize::new(0),
            unserved_log: RateLimit::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// A worker's main function.
    pub fn run_worker(&self, worker: &Worker, seat: usize) {
        self.pool.run(self, worker, seat);
    }

    /// Says whose the process is.
    pub(super) fn who<'a>(&'a self, td: Curthread<'a>) -> Who<'a> {
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
        match self.procs.decide(td, Some(Arc::new(Process::new()))) {
            Decided::New(process, live) => {
                let mut inner = process.lock();
                // Unload looks at all processes after it has set the flag: either it sees this one
                // or this thread sees the flag.
                inner.live = Some(live);
                inner.retired |= self.closing.load(Ordering::SeqCst);
                let retired = inner.retired;
                drop(inner);
                (!retired).then_some(process)
            }
            Decided::Before(owner) => {
                self.pool.forget_registration();
                match owner {
                    Owner::Ours(process) => Some(process),
                    _ => None,
                }
            }
        }
    }

    /// Leaves an undecided process to the built-in. If another thread has just made it ours,
    /// returns it. May sleep.
    pub(super) fn disclaim<'a>(&'a self, td: Curthread<'a>) -> Option<Held<'a, Process>> {
        match self.procs.decide(td, None) {
            Decided::Before(Owner::Ours(process)) => Some(process),
            _ => None,
        }
    }

    /// A process of ours wants what we do not serve yet.
    pub fn refuse(&self, what: &str) -> Errno {
        self.statistics.unserved.increment();
        if self.unserved_log.allows() {
            print(format_args!("{what} is not served yet; EOPNOTSUPP"));
        }
        Errno::EOPNOTSUPP
    }

    /// A call we do not serve at all yet, whoever makes it.
    pub fn unserved_call(&self, td: Curthread, what: &str) -> Result<Served, Errno> {
        match self.who(td) {
            Who::Ours(process) if !process.lock().retired => Err(self.refuse(what)),
            // The kernel's handler makes the process its own.
            Who::Nobody => match self.disclaim(td) {
                Some(_) => Err(self.refuse(what)),
                None => Ok(Served::Pass),
            },
            _ => Ok(Served::Pass),
        }
    }

    /// What remains to be done about a request that was performed, without a lock. May sleep.
    pub(super) fn finished(&self, process: &Process, finished: Finished<Request>) {
        self.statistics.served.increment();
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
            "busy: {requests} requests of {processes} processes and {orphans} of gone ones"
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
            let mut busy = 0;
            self.procs.all(|process| {
                let mut inner = process.lock();
                busy = inner.table.count();
                inner.retired |= busy == 0;
                drop(inner);
                process.wake_all();
                busy == 0
            });
            if busy == 0 { Ok(()) } else { self.idle().and(Err(Errno::EBUSY)) }
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
