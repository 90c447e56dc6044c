// SPDX-License-Identifier: BSD-2-Clause
//! Compares the counters under `vfs.aio.rs` with what this program did, exactly, and tries what
//! they let whom see. For root, with no other program that uses AIO.
//!
//! `counted` works on a file in the current directory. Prints a line per difference and exits 1
//! when there was one.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Aiocb, Cb};
use guest::errno::{EAGAIN, EBADF, ECANCELED, EFAULT, EINTR, EINVAL, EPERM};
use guest::mem::Region;
use guest::out::Text;
use guest::path::Path;
use guest::sys::{self, Ended, Fork};
use guest::sysctl::{self, Setting};
use guest::{Args, Result, println};

guest::program!(run);

/// Bytes of a request.
const LEN: usize = 4096;
/// Control blocks, buffers and lists.
const BLOCKS: usize = 16;

const OPS: [&str; 7] = ["read", "write", "vectored", "sync", "mlock", "socket", "disk"];
/// What a request of a kind may be counted as.
const ENDS: [&str; 6] = ["submitted", "inline", "worker", "bio", "cancelled", "dropped"];
const FAILURES: [&str; 9] =
    ["again", "device", "space", "memory", "access", "argument", "peer", "interrupted", "other"];
const CLASSES: usize = 24;

/// The counters of one kind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Op {
    ends: [u64; ENDS.len()],
    failed: [u64; FAILURES.len()],
    /// Sums over the histograms.
    queue: u64,
    service: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    ops: [Op; OPS.len()],
    refused: [u64; FAILURES.len()],
    lists: [u64; 2],
    served: u64,
}

/// Reads a number that must be there.
fn number(name: &str) -> Result<u64> {
    sysctl::get(name).ok_or_else(|| {
        println!("counted: no {name}");
        EINVAL
    })
}

fn sum_of_histogram(op: &str, which: &str) -> Result<u64> {
    let name = Text::<64>::of(format_args!("vfs.aio.rs.{op}.{which}_us"));
    let mut bytes = [0; 8 * CLASSES + 8];
    let len = sys::sysctlbyname(name.as_str(), &mut bytes, &[])?;
    if len != 8 * CLASSES {
        println!("counted: {} has {len} bytes", name.as_str());
        return Err(EINVAL);
    }
    let word = |word: &[u8]| word.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    Ok(bytes[..len].chunks(8).map(word).sum())
}

impl Counters {
    fn read() -> Result<Counters> {
        let mut counters = Counters::default();
        for (op, name) in counters.ops.iter_mut().zip(OPS) {
            for (count, end) in op.ends.iter_mut().zip(ENDS) {
                *count = number(Text::<64>::of(format_args!("vfs.aio.rs.{name}.{end}")).as_str())?;
            }
            for (count, class) in op.failed.iter_mut().zip(FAILURES) {
                let leaf = Text::<64>::of(format_args!("vfs.aio.rs.{name}.failed.{class}"));
                *count = number(leaf.as_str())?;
            }
            op.queue = sum_of_histogram(name, "queue")?;
            op.service = sum_of_histogram(name, "service")?;
        }
        for (count, class) in counters.refused.iter_mut().zip(FAILURES) {
            *count = number(Text::<64>::of(format_args!("vfs.aio.rs.refused.{class}")).as_str())?;
        }
        counters.lists =
            [number("vfs.aio.rs.list.submitted")?, number("vfs.aio.rs.list.requests")?];
        counters.served = number("vfs.aio.rs.served")?;
        Ok(counters)
    }
}

/// What differed so far, and the counters as they were.
struct Account {
    before: Counters,
    differences: u32,
}

impl Account {
    fn same(&mut self, what: &str, name: &str, got: u64, wanted: u64) {
        if got != wanted {
            println!("counted: {what}: {name} is {got}, not {wanted}");
            self.differences += 1;
        }
    }

    /// After `what` exactly these counters have risen, and the times of as many requests as were
    /// performed are there. `wanted` has what is to be added.
    fn check(&mut self, what: &str, wanted: impl FnOnce(&mut Counters)) -> Result<()> {
        let now = Counters::read()?;
        let mut then = self.before;
        wanted(&mut then);
        for (index, name) in OPS.into_iter().enumerate() {
            let (got, is) = (now.ops[index], then.ops[index]);
            let was = self.before.ops[index];
            for (end, title) in ENDS.into_iter().enumerate() {
                let title = Text::<64>::of(format_args!("{name}.{title}"));
                // Who performs a cached read is the file system's matter.
                if name == "read" && (end == INLINE || end == WORKER) {
                    continue;
                }
                self.same(what, title.as_str(), got.ends[end], is.ends[end]);
            }
            let performed = |op: &Op| op.ends[INLINE] + op.ends[WORKER] + op.ends[BIO];
            let title = Text::<64>::of(format_args!("{name} performed"));
            self.same(what, title.as_str(), performed(&got), performed(&is));
            for (class, title) in FAILURES.into_iter().enumerate() {
                let title = Text::<64>::of(format_args!("{name}.failed.{title}"));
                self.same(what, title.as_str(), got.failed[class], is.failed[class]);
            }
            let title = Text::<64>::of(format_args!("sum of {name}.service_us"));
            let done = performed(&got) - performed(&was);
            self.same(what, title.as_str(), got.service - was.service, done);
            let title = Text::<64>::of(format_args!("sum of {name}.queue_us"));
            let queued = done - (got.ends[INLINE] - was.ends[INLINE]);
            self.same(what, title.as_str(), got.queue - was.queue, queued);
        }
        for (class, title) in FAILURES.into_iter().enumerate() {
            let title = Text::<64>::of(format_args!("refused.{title}"));
            self.same(what, title.as_str(), now.refused[class], then.refused[class]);
        }
        self.same(what, "list.submitted", now.lists[0], then.lists[0]);
        self.same(what, "list.requests", now.lists[1], then.lists[1]);
        let served = |of: &Counters| -> u64 {
            of.ops.iter().map(|op| op.ends[INLINE..=CANCELLED].iter().sum::<u64>()).sum()
        };
        self.same(what, "served", now.served, served(&now));
        self.before = now;
        Ok(())
    }
}

const SUBMITTED: usize = 0;
const INLINE: usize = 1;
const WORKER: usize = 2;
const BIO: usize = 3;
const CANCELLED: usize = 4;
const DROPPED: usize = 5;

const READ: usize = 0;
const WRITE: usize = 1;
const VECTORED: usize = 2;
const SYNC: usize = 3;
const MLOCK: usize = 4;

/// So many requests of a kind, performed by workers.
fn performed(counters: &mut Counters, op: usize, count: u64) {
    counters.ops[op].ends[SUBMITTED] += count;
    counters.ops[op].ends[WORKER] += count;
}

struct Bench {
    memory: Region,
    fd: i32,
}

impl Bench {
    fn block(&self, index: usize) -> Cb {
        Cb::at(&self.memory, index * 256)
    }

    fn buffer(&self) -> usize {
        self.memory.at(BLOCKS * 256)
    }

    /// The address of an array with one iovec: the buffer.
    fn pieces(&self) -> usize {
        let list = self.memory.part(BLOCKS * 256 + LEN, 16);
        list.set_word(0, self.buffer() as u64);
        list.set_word(8, LEN as u64);
        list.addr()
    }

    fn request(&self) -> Aiocb {
        aio::request(self.fd, 0, self.buffer(), LEN)
    }

    /// A request that differs from the usual one.
    fn request_with(&self, change: impl FnOnce(&mut Aiocb)) -> Aiocb {
        let mut block = self.request();
        change(&mut block);
        block
    }

    /// Waits for a request and takes its result.
    fn collect(&self, cb: Cb) -> Result<i64> {
        loop {
            match aio::suspend(&[cb.addr()], None) {
                Err(EINTR) => {}
                Err(error) => return Err(error),
                Ok(()) => return aio::return_(cb.addr()),
            }
        }
    }

    /// One request after the other.
    fn each(&self, count: u32, block: Aiocb, call: impl Fn(usize) -> Result<()>) -> Result<()> {
        for _ in 0..count {
            let cb = self.block(0);
            cb.set(block);
            call(cb.addr())?;
            self.collect(cb)?;
        }
        Ok(())
    }
}

fn run(_args: Args) -> i32 {
    match check() {
        Ok(0) => {
            println!("counted: ok");
            0
        }
        Ok(differences) => {
            println!("counted: FAILED: {differences} differences");
            1
        }
        Err(error) => {
            println!("counted: FAILED: {error}");
            1
        }
    }
}

fn check() -> Result<u32> {
    let path = Path::new(b"counted.tmp");
    let fd = sys::open(path.as_cstr(), sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC, 0o666)?;
    let bench = Bench { memory: Region::map(BLOCKS * 256 + 2 * LEN)?, fd };
    let latency = Setting::new("vfs.aio.rs.latency", 1)?;
    let mut account = Account { before: Counters::read()?, differences: 0 };

    bench.each(5, bench.request(), aio::write)?;
    account.check("5 writes", |it| performed(it, WRITE, 5))?;

    let inline = Setting::new("vfs.aio.rs.inline", 0)?;
    bench.each(7, bench.request(), aio::read)?;
    let workers = account.before.ops[READ].ends[WORKER];
    account.check("7 reads by workers", |it| performed(it, READ, 7))?;
    let by_workers = account.before.ops[READ].ends[WORKER] - workers;
    account.same("7 reads with vfs.aio.rs.inline 0", "read.worker", by_workers, 7);
    drop(inline);
    bench.each(3, bench.request(), aio::read)?;
    account.check("3 reads", |it| performed(it, READ, 3))?;

    let vectored = bench.request_with(|it| (it.buf, it.nbytes) = (bench.pieces(), 1));
    bench.each(2, vectored, aio::readv)?;
    bench.each(1, vectored, aio::writev)?;
    account.check("2 readv, 1 writev", |it| performed(it, VECTORED, 3))?;

    let o_sync = 0x80;
    bench.each(2, bench.request(), |cb| aio::fsync(o_sync, cb))?;
    account.check("2 syncs", |it| performed(it, SYNC, 2))?;
    bench.each(1, bench.request(), aio::mlock)?;
    account.check("1 mlock", |it| performed(it, MLOCK, 1))?;

    lists(&bench, &mut account)?;
    failures(&bench, &mut account)?;
    {
        // Nothing begins any more.
        let _none = Setting::new("vfs.aio.max_aio_per_proc", 0)?;
        cancelled(&bench, &mut account)?;
        others(&bench, &mut account)?;
    }
    permissions(&mut account)?;

    // Without the switch no time is taken, and everything is counted all the same.
    drop(latency);
    let before = Counters::read()?;
    bench.each(2, bench.request(), aio::write)?;
    let after = Counters::read()?;
    let rise = |of: fn(&Op) -> u64| of(&after.ops[WRITE]) - of(&before.ops[WRITE]);
    account.same("no latency", "write.worker", rise(|op| op.ends[WORKER]), 2);
    account.same("no latency", "sum of write.service_us", rise(|op| op.service), 0);
    account.same("no latency", "sum of write.queue_us", rise(|op| op.queue), 0);
    let _ = sys::close(fd);
    let _ = sys::unlink(path.as_cstr());
    Ok(account.differences)
}

/// A list of 4 reads and a hole.
fn lists(bench: &Bench, account: &mut Account) -> Result<()> {
    let _inline = Setting::new("vfs.aio.rs.inline", 0)?;
    let list = bench.memory.part(BLOCKS * 256 + LEN + 256, 64);
    for index in 0..4 {
        bench.block(index).set(bench.request_with(|it| it.opcode = aio::LIO_READ));
        list.set_word(8 * index, bench.block(index).addr() as u64);
    }
    list.set_word(32, 0);
    aio::listio(aio::LIO_WAIT, list.addr(), 5, 0)?;
    for index in 0..4 {
        aio::return_(bench.block(index).addr())?;
    }
    account.check("a list of 4 reads", |it| {
        performed(it, READ, 4);
        it.lists[0] += 1;
        it.lists[1] += 4;
    })
}

fn failures(bench: &Bench, account: &mut Account) -> Result<()> {
    let cb = bench.block(0);
    cb.set(bench.request_with(|it| it.buf = 4096));
    aio::write(cb.addr())?;
    let ended = bench.collect(cb);
    account.same("a write from nowhere", "errno", errno(ended), EFAULT.0 as u64);
    account.check("a write from nowhere", |it| {
        performed(it, WRITE, 1);
        it.ops[WRITE].failed[3] += 1;
    })?;
    cb.set(bench.request_with(|it| it.fildes = -1));
    let refused = aio::read(cb.addr());
    account.same("a read of no file", "errno", errno(refused), EBADF.0 as u64);
    account.check("a read of no file", |it| it.refused[4] += 1)?;
    cb.set(bench.request_with(|it| it.offset = -1));
    let refused = aio::read(cb.addr());
    account.same("a read at -1", "errno", errno(refused), EINVAL.0 as u64);
    account.check("a read at -1", |it| it.refused[5] += 1)?;
    let _full = Setting::new("vfs.aio.max_aio_queue_per_proc", 0)?;
    cb.set(bench.request());
    let refused = aio::read(cb.addr());
    account.same("a read beyond the limit", "errno", errno(refused), EAGAIN.0 as u64);
    account.check("a read beyond the limit", |it| it.refused[0] += 1)
}

fn errno<T>(result: Result<T>) -> u64 {
    result.map_or_else(|error| error.0 as u64, |_| 0)
}

/// 3 writes that wait, and are cancelled.
fn cancelled(bench: &Bench, account: &mut Account) -> Result<()> {
    sysctl::set("vfs.aio.rs.queue.peak", 0)?;
    for index in 0..3 {
        bench.block(index).set(bench.request());
        aio::write(bench.block(index).addr())?;
    }
    account.same("3 waiting writes", "queue.waiting", number("vfs.aio.rs.queue.waiting")?, 3);
    account.same("3 waiting writes", "queue.running", number("vfs.aio.rs.queue.running")?, 0);
    account.same("3 waiting writes", "queue.peak", number("vfs.aio.rs.queue.peak")?, 3);
    account.check("3 waiting writes", |it| it.ops[WRITE].ends[SUBMITTED] += 3)?;
    let answer = aio::cancel(bench.fd, 0)?;
    account.same("3 writes are cancelled", "answer", answer as u64, aio::AIO_CANCELED as u64);
    account.check("3 writes are cancelled", |it| it.ops[WRITE].ends[CANCELLED] += 3)?;
    account.same("3 writes are cancelled", "queue.done", number("vfs.aio.rs.queue.done")?, 3);
    for index in 0..3 {
        let ended = bench.collect(bench.block(index));
        account.same("a cancelled write", "errno", errno(ended), ECANCELED.0 as u64);
    }
    account.same("all is reaped", "queue.done", number("vfs.aio.rs.queue.done")?, 0);
    account.check("all is reaped", |_| ())
}

/// `vfs.aio.rs.processes`, as this process sees it.
fn processes(to: &mut [u8; 4096]) -> Result<&str> {
    let len = sys::sysctlbyname("vfs.aio.rs.processes", to, &[])?;
    core::str::from_utf8(&to[..len.saturating_sub(1)]).map_err(|_| EINVAL)
}

/// A child without rights has 2 writes that never begin; this process has 1.
fn others(bench: &Bench, account: &mut Account) -> Result<()> {
    let cb = bench.block(8);
    cb.set(bench.request());
    aio::write(cb.addr())?;
    let mine = sys::getpid();
    let (ready, tell) = sys::pipe()?;
    let (wait, release) = sys::pipe()?;
    let child = match sys::fork()? {
        Fork::Parent(child) => child,
        Fork::Child => {
            let seen = child_sees(bench, tell, wait);
            sys::exit(if seen == Ok(true) { 0 } else { 1 });
        }
    };
    let _ = sys::close(tell);
    let _ = sys::close(wait);
    let mut byte = [0];
    account.same("the child has its requests", "bytes", sys::read(ready, &mut byte)? as u64, 1);
    let mut text = [0; 4096];
    let text = processes(&mut text)?;
    let line = |pid: i32, waiting: u32| {
        let line = Text::<64>::of(format_args!("{pid} {waiting} 0 0"));
        u64::from(text.lines().any(|its| its == line.as_str()))
    };
    account.same("what root sees", "lines of the child", line(child, 2), 1);
    account.same("what root sees", "lines of this process", line(mine, 1), 1);
    account.same("what root sees", "lines", text.lines().count() as u64, 3);
    let _ = sys::write(release, &[0]);
    let ended = sys::wait_for(child);
    account.same(
        "the child",
        "sees its own requests only",
        u64::from(ended == Some(Ended::Exit(0))),
        1,
    );
    let answer = aio::cancel(bench.fd, 0)?;
    account.same("a write is cancelled", "answer", answer as u64, aio::AIO_CANCELED as u64);
    let _ = bench.collect(cb);
    account.check("2 writes of a process that is gone, 1 cancelled", |it| {
        it.ops[WRITE].ends[SUBMITTED] += 3;
        it.ops[WRITE].ends[DROPPED] += 2;
        it.ops[WRITE].ends[CANCELLED] += 1;
    })
}

fn child_sees(bench: &Bench, tell: i32, wait: i32) -> Result<bool> {
    sys::setuid(65534)?;
    for index in 0..2 {
        bench.block(index).set(bench.request());
        aio::write(bench.block(index).addr())?;
    }
    let mut text = [0; 4096];
    let text = processes(&mut text)?;
    let wanted =
        Text::<64>::of(format_args!("pid waiting running done\n{} 2 0 0\n", sys::getpid()));
    let right = text == wanted.as_str();
    if !right {
        println!("counted: the child sees {text}");
    }
    let set = sysctl::set("vfs.aio.rs.latency", 0) == Err(EPERM);
    let _ = sys::write(tell, &[0]);
    let _ = sys::read(wait, &mut [0]);
    // Its requests go with it.
    Ok(right && set)
}

/// Nobody writes a counter.
fn permissions(account: &mut Account) -> Result<()> {
    for name in ["vfs.aio.rs.read.submitted", "vfs.aio.rs.served", "vfs.aio.rs.processes"] {
        let written = sys::sysctlbyname(name, &mut [], &[0; 8]);
        account.same("setting", name, errno(written), EPERM.0 as u64);
    }
    Ok(())
}
