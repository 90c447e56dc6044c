// SPDX-License-Identifier: BSD-2-Clause
//! What can be seen from outside: the leaves under `vfs.aio.rs`.
//!
//! Counters are per CPU (counter(9)): counting is one instruction on this CPU's own word, takes no
//! lock, and happens twice in a worker's request, once in one that its submitter performs. What
//! follows from other numbers is worked out when it is read. Times are taken only while
//! `vfs.aio.rs.latency` is on: a look at the kernel's clock costs more than all counters, and up to
//! a microsecond where the clock is not the TSC.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, Ordering};

use super::config::Config;
use super::pool::Pool;
use super::process::{Inner, Process};
use super::request::{Operation, Request};
use super::trace::tell_inline;
use crate::kern::clock::Moment;
use crate::kern::counter::Counter;
use crate::kern::file::Kind;
use crate::kern::probe::Probe;
use crate::kern::proc::Curthread;
use crate::kern::procmap::ProcMap;
use crate::kern::sysctl::{Computed, Tree};
use crate::model::Errno;
use crate::model::statistics::{BUCKETS, Class, Failure, bucket};
use crate::model::table::{Outcome, Submission};

/// Who performed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The submitting thread; the request was not queued.
    Submitter,
    /// A worker process.
    Worker,
    /// The disk's driver.
    Bio,
}

/// What a request is counted by, and when it got where it is.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub address: u64,
    pub fd: i32,
    pub operation: Operation,
    class: Class,
    /// When it was queued, then when it was begun; none while nobody measures.
    pub since: Moment,
    /// Which of the two it is. A socket's request may be tried more than once.
    begun: bool,
}

/// How long a submitter took for a read, in microseconds; [`Took::NONE`] while nobody measures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Took(u32);

impl Took {
    const NONE: Took = Took(u32::MAX);
}

impl Class {
    /// What an operation on a file of this kind counts as.
    pub fn of(operation: Operation, kind: Kind) -> Class {
        match (operation, kind) {
            (Operation::Sync | Operation::DataSync, _) => Class::Sync,
            (Operation::Lock, _) => Class::Mlock,
            (_, Kind::Socket | Kind::Queues) => Class::Socket,
            (_, Kind::Disk) => Class::Disk,
            (Operation::Readv | Operation::Writev, _) => Class::Vectored,
            (Operation::Read, _) => Class::Read,
            (Operation::Write, _) => Class::Write,
        }
    }
}

// Where a class's counters are, from its first.
const QUEUED: usize = 0;
const INLINE: usize = 1;
const WORKER: usize = 2;
const BIO: usize = 3;
const CANCELLED: usize = 4;
const DROPPED: usize = 5;
const FAILED: usize = 6;
const QUEUE_TIME: usize = FAILED + Failure::ALL.len();
const SERVICE_TIME: usize = QUEUE_TIME + BUCKETS + 1;
/// Counters per class. A histogram is followed by the sum of its times.
const PER_CLASS: usize = SERVICE_TIME + BUCKETS + 1;
/// Behind them: submissions that failed, by class of error.
const REFUSED: usize = PER_CLASS * Class::ALL.len();
/// Lists that lio_listio(2) took, and the requests in them.
const LISTS: usize = REFUSED + Failure::ALL.len();
const LISTED: usize = LISTS + 1;
const ALL: usize = LISTED + 1;

/// All counters of all classes.
struct Counters(Box<[Counter; ALL]>);

impl Counters {
    fn new() -> Counters {
        let all: Vec<Counter> = (0..ALL).map(|_| Counter::new()).collect();
        let Ok(all) = all.try_into() else { panic!("as many counters as were made") };
        Counters(all)
    }

    fn at(&self, class: Class, what: usize) -> &Counter {
        &self.0[class as usize * PER_CLASS + what]
    }

    fn fetch(&self, class: Class, what: usize) -> u64 {
        self.at(class, what).fetch()
    }

    fn sum(&self, class: Class, all: &[usize]) -> u64 {
        all.iter().map(|&what| self.fetch(class, what)).fold(0, u64::wrapping_add)
    }

    /// Adds a time to a histogram.
    #[cold]
    #[inline(never)]
    fn observe(&self, class: Class, histogram: usize, microseconds: u64) {
        self.at(class, histogram + bucket(microseconds)).increment();
        self.at(class, histogram + BUCKETS).add_wide(microseconds);
    }
}

/// See the file's text.
pub struct Statistics {
    counters: Arc<Counters>,
    /// Calls and requests of processes of ours that we refused because we do not serve them yet.
    pub unserved: Arc<Counter>,
    /// The most requests there were at once.
    peak: Arc<AtomicI32>,
    /// Whether times are taken.
    latency: Arc<AtomicI32>,
}

impl Statistics {
    /// Makes the counters. May sleep.
    // Out of line, or its frame would be its caller's too; so with those below.
    #[inline(never)]
    pub fn new() -> Statistics {
        Statistics {
            counters: Arc::new(Counters::new()),
            unserved: Arc::new(Counter::new()),
            peak: Arc::new(AtomicI32::new(0)),
            latency: Arc::new(AtomicI32::new(0)),
        }
    }

    /// The time, if somebody wants to know.
    pub fn now(&self) -> Moment {
        if self.latency.load(Ordering::Relaxed) != 0 { Moment::now() } else { Moment::NONE }
    }

    /// Begins a request's record.
    pub fn record(&self, address: u64, fd: i32, operation: Operation, kind: Kind) -> Record {
        let class = Class::of(operation, kind);
        Record { address, fd, operation, class, since: self.now(), begun: false }
    }

    /// How long a submitter took for a read that it began then.
    pub fn took(&self, since: Moment) -> Took {
        if !since.is_some() {
            return Took::NONE;
        }
        let took = since.micros_until(Moment::now());
        Took(u32::try_from(took).unwrap_or(u32::MAX - 1))
    }

    /// A read that its submitter performed was accepted.
    pub fn inline(&self, submission: &Submission, bytes: usize, took: Took) {
        if Probe::Done.is_on() {
            tell_inline(submission, bytes);
        }
        self.counters.at(Class::Read, INLINE).increment();
        if took != Took::NONE {
            self.counters.observe(Class::Read, SERVICE_TIME, u64::from(took.0));
        }
    }

    /// A request was queued.
    pub fn queued(&self, request: &Request) {
        if Probe::Queue.is_on() {
            request.tell(Probe::Queue);
        }
        self.counters.at(request.record.class, QUEUED).increment();
    }

    /// Somebody begins to perform a request.
    pub fn begun(&self, request: &mut Request) {
        if Probe::Start.is_on() && !request.record.begun {
            request.tell(Probe::Start);
        }
        let record = &mut request.record;
        if record.since.is_some() && !record.begun {
            record.begun = true;
            let now = Moment::now();
            self.counters.observe(record.class, QUEUE_TIME, record.since.micros_until(now));
            record.since = now;
        }
    }

    /// A request was performed.
    pub fn performed(&self, by: By, record: &Record, outcome: &Outcome) {
        if Probe::Done.is_on() {
            record.tell_done(outcome);
        }
        let by = match by {
            By::Submitter => INLINE,
            _ if outcome.error == Some(Errno::ECANCELED) => {
                self.counters.at(record.class, CANCELLED).increment();
                return;
            }
            By::Worker => WORKER,
            By::Bio => BIO,
        };
        self.counters.at(record.class, by).increment();
        if let Some(error) = outcome.error {
            self.counters.at(record.class, FAILED + Failure::of(error) as usize).increment();
        }
        if record.since.is_some() {
            let took = record.since.micros_until(Moment::now());
            self.counters.observe(record.class, SERVICE_TIME, took);
        }
    }

    /// aio_cancel(2) took a request before anybody performed it, or before it was through.
    pub fn withdrawn(&self, request: &Request, outcome: &Outcome) {
        if Probe::Cancel.is_on() {
            request.tell(Probe::Cancel);
        }
        self.performed(By::Worker, &request.record, outcome);
    }

    /// A request is about to be queued in its lane; returns what it counts as.
    #[inline(never)]
    pub fn parking(&self, request: &Request) -> Class {
        if Probe::Queue.is_on() {
            request.tell(Probe::Queue);
        }
        request.record.class
    }

    /// It was.
    pub fn parked(&self, class: Class) {
        self.counters.at(class, QUEUED).increment();
    }

    /// As [`Statistics::parked`], of a request that its submitter has tried.
    pub fn waits(&self, record: &Record) {
        self.parked(record.class);
    }

    /// A request's process was gone before anybody performed it.
    pub fn dropped(&self, record: &Record) {
        self.counters.at(record.class, DROPPED).increment();
    }

    /// A submission failed.
    pub fn refused(&self, error: Errno) {
        self.counters.0[REFUSED + Failure::of(error) as usize].increment();
    }

    /// A list of so many requests was taken.
    pub fn list(&self, requests: u32) {
        self.counters.0[LISTS].increment();
        self.counters.0[LISTED].add(requests);
    }

    /// There are so many requests now.
    pub fn depth(&self, requests: i32) {
        if requests > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(requests, Ordering::Relaxed);
        }
    }

    /// Adds our leaves to the tree. May sleep.
    #[inline(never)]
    pub fn publish(
        &self,
        td: Curthread,
        config: &Config,
        pool: &Arc<Pool>,
        procs: &Arc<ProcMap<Process>>,
    ) -> Result<Tree, Errno> {
        let mut tree = Tree::new(td, c"vfs.aio", c"rs", c"The engine of aio_rs")?;
        tree.string(c"version", VERSION, c"Version of aio_rs.ko")?;
        let counters = self.counters.clone();
        tree.computed(
            c"served",
            number(move || Class::ALL.iter().map(|&class| counters.sum(class, &SERVED)).sum()),
            c"Requests this engine has completed or cancelled",
        )?;
        tree.counter(
            c"unserved",
            &self.unserved,
            c"Requests refused because this engine does not serve their kind yet",
        )?;
        tree.int(c"num_procs", pool.present(), c"Worker processes of this engine")?;
        config.publish(&mut tree)?;
        tree.setting(c"latency", &self.latency, c"Measure how long requests wait and take")?;
        self.publish_requests(&mut tree)?;
        self.publish_now(&mut tree, pool, procs)?;
        Ok(tree)
    }

    /// The counters.
    #[inline(never)]
    fn publish_requests(&self, tree: &mut Tree) -> Result<(), Errno> {
        for (name, class, description) in CLASSES {
            tree.node(name, description, |tree| self.publish_class(tree, class))?;
        }
        tree.node(c"list", c"Lists of lio_listio(2)", |tree| {
            let one = |what: usize| {
                let counters = self.counters.clone();
                number(move || counters.0[what].fetch())
            };
            tree.computed(c"submitted", one(LISTS), c"Lists taken")?;
            tree.computed(c"requests", one(LISTED), c"Requests in them")
        })?;
        tree.node(c"refused", c"Submissions that failed, by error", |tree| {
            for (name, failure) in FAILURES {
                let counters = self.counters.clone();
                let value = number(move || counters.0[REFUSED + failure as usize].fetch());
                tree.computed(name, value, c"Submissions that failed with an error of this class")?;
            }
            Ok(())
        })
    }

    #[inline(never)]
    fn publish_class(&self, tree: &mut Tree, class: Class) -> Result<(), Errno> {
        let sum = |all: &'static [usize]| {
            let counters = self.counters.clone();
            number(move || counters.sum(class, all))
        };
        tree.computed(c"submitted", sum(&[QUEUED, INLINE]), c"Requests accepted")?;
        tree.computed(c"inline", sum(&[INLINE]), c"Completed by the submitting thread")?;
        tree.computed(c"worker", sum(&[WORKER]), c"Completed by a worker process")?;
        tree.computed(c"bio", sum(&[BIO]), c"Completed by the disk's driver")?;
        tree.computed(c"cancelled", sum(&[CANCELLED]), c"Cancelled before they began")?;
        tree.computed(c"dropped", sum(&[DROPPED]), c"Not begun when their process was gone")?;
        tree.node(c"failed", c"Completed with an error, by error", |tree| {
            for (name, failure) in FAILURES {
                let counters = self.counters.clone();
                let value = number(move || counters.fetch(class, FAILED + failure as usize));
                tree.computed(name, value, c"Requests that failed with an error of this class")?;
            }
            Ok(())
        })?;
        tree.computed(
            c"queue_us",
            self.histogram(class, QUEUE_TIME),
            c"Histogram of the time until they began, by power-of-two microseconds",
        )?;
        tree.computed(
            c"queue_us_total",
            sum(&[QUEUE_TIME + BUCKETS]),
            c"Sum of the time until they began, in microseconds",
        )?;
        tree.computed(
            c"service_us",
            self.histogram(class, SERVICE_TIME),
            c"Histogram of the time they took, by power-of-two microseconds",
        )?;
        tree.computed(
            c"service_us_total",
            sum(&[SERVICE_TIME + BUCKETS]),
            c"Sum of the time they took, in microseconds",
        )
    }

    fn histogram(&self, class: Class, first: usize) -> Computed {
        let counters = self.counters.clone();
        Computed::Numbers(Box::new(move || {
            (first..first + BUCKETS).map(|what| counters.fetch(class, what)).collect()
        }))
    }

    /// What there is now.
    #[inline(never)]
    fn publish_now(
        &self,
        tree: &mut Tree,
        pool: &Arc<Pool>,
        procs: &Arc<ProcMap<Process>>,
    ) -> Result<(), Errno> {
        let queue = |what: fn(&Inner) -> usize| {
            let procs = procs.clone();
            number(move || {
                let mut sum = 0;
                procs.all(|process| {
                    sum += what(&process.lock()) as u64;
                    true
                });
                sum
            })
        };
        tree.node(c"queue", c"Requests that are not reaped", |tree| {
            let waiting: fn(&Inner) -> usize = |inner| inner.table.waiting();
            let running: fn(&Inner) -> usize = |inner| inner.table.running();
            let done: fn(&Inner) -> usize = |inner| inner.table.done();
            tree.computed(c"waiting", queue(waiting), c"Requests that have not begun")?;
            tree.computed(c"running", queue(running), c"Requests that are being performed")?;
            tree.computed(c"done", queue(done), c"Finished requests that are not reaped")?;
            tree.setting(c"peak", &self.peak, c"The most requests at once; may be set to 0")
        })?;
        tree.node(c"workers", c"Worker processes by state", |tree| {
            let state = |index: usize| {
                let pool = pool.clone();
                number(move || pool.states()[index] as u64)
            };
            tree.computed(c"idle", state(0), c"Worker processes that wait for work")?;
            tree.computed(c"busy", state(1), c"Worker processes that perform requests")?;
            tree.computed(c"starting", state(2), c"Worker processes that do not run yet")
        })?;
        let procs = procs.clone();
        tree.computed(
            c"processes",
            Computed::Text(Box::new(move |td| processes(td, &procs))),
            c"Live requests per process: all for root, else one's own",
        )
    }
}

/// The lines of `vfs.aio.rs.processes`.
fn processes(td: Curthread, procs: &ProcMap<Process>) -> String {
    let mut text = String::from("pid waiting running done\n");
    procs.all(|process| {
        let inner = process.lock();
        let Some(live) = &inner.live else { return true };
        let table = &inner.table;
        let (waiting, running, done) = (table.waiting(), table.running(), table.done());
        let shown = table.count() > 0 && td.may_inspect(live);
        let pid = live.pid();
        drop(inner);
        if shown {
            text.push_str(&format!("{pid} {waiting} {running} {done}\n"));
        }
        true
    });
    text
}

fn number(value: impl Fn() -> u64 + Send + Sync + 'static) -> Computed {
    Computed::Number(Box::new(value))
}

/// What the engine has dealt with.
const SERVED: [usize; 4] = [INLINE, WORKER, BIO, CANCELLED];

const CLASSES: [(&CStr, Class, &CStr); Class::ALL.len()] = [
    (c"read", Class::Read, c"aio_read(2)"),
    (c"write", Class::Write, c"aio_write(2)"),
    (c"vectored", Class::Vectored, c"aio_readv(2) and aio_writev(2)"),
    (c"sync", Class::Sync, c"aio_fsync(2)"),
    (c"mlock", Class::Mlock, c"aio_mlock(2)"),
    (c"socket", Class::Socket, c"Transfers from and to sockets"),
    (c"disk", Class::Disk, c"Transfers from and to disk devices"),
];

const FAILURES: [(&CStr, Failure); Failure::ALL.len()] = [
    (c"again", Failure::Again),
    (c"device", Failure::Device),
    (c"space", Failure::Space),
    (c"memory", Failure::Memory),
    (c"access", Failure::Access),
    (c"argument", Failure::Argument),
    (c"peer", Failure::Peer),
    (c"interrupted", Failure::Interrupted),
    (c"other", Failure::Other),
];

/// The package's version, and what the builder may have added to it, for C.
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("AIO_RS_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version holds no NUL"),
    };
