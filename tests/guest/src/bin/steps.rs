// SPDX-License-Identifier: BSD-2-Clause
//! Every kind of request once, one after the other, for a kernel in which calls fail by plan.
//!
//! `steps [--verbose]` works in the current directory, and on a memory disk where it can make one.
//! Whatever fails, it must see only errors that the manual pages name, a request that was accepted
//! ends once and is told once, one that was refused leaves nothing, and all counts are at the end
//! what they were at the start. It exits 1 when that is not so.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use guest::aio::{self, Cb, Sigevent};
use guest::errno::*;
use guest::kqueue::{self, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::{HOLE, Region};
use guest::signal::{self, Set};
use guest::sys::{self, Ended, Fork, Iovec, Timespec};
use guest::time::sleep_ms;
use guest::{Args, Errno, Result, println, sysctl};

guest::program!(run);

const LEN: usize = 4096;
/// LIO_READ.
const READ: i32 = 2;
const WRITE: i32 = 1;

static BAD: AtomicUsize = AtomicUsize::new(0);
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Reports something that must not happen.
macro_rules! bad {
    ($($word:tt)*) => {{
        BAD.fetch_add(1, Relaxed);
        println!("steps: BAD: {}", format_args!($($word)*));
    }};
}

/// What a call that submits may fail with.
fn may_refuse(error: Errno) -> bool {
    [
        EAGAIN,
        EBADF,
        EFAULT,
        EINVAL,
        EIO,
        ENOMEM,
        ENOTCAPABLE,
        ENXIO,
        EOPNOTSUPP,
        ENOSYS,
        ESRCH,
        EINTR,
    ]
    .contains(&error)
}

/// What a request may end with.
fn may_end(error: Errno) -> bool {
    [EIO, EFAULT, ENOMEM, ENXIO, ENOENT, EAGAIN, EPERM, ECANCELED].contains(&error)
}

struct World {
    file: i32,
    disk: Option<i32>,
    kq: i32,
    memory: Region,
    /// Requests made so far: each has a place of its own.
    next: usize,
}

/// Where a place's buffer is, behind its control block and its pieces.
const BUFFER: usize = 1024;
const PLACE: usize = BUFFER + 2 * LEN;
const PLACES: usize = 64;

impl World {
    fn place(&mut self) -> Region {
        let at = self.next % PLACES;
        self.next += 1;
        let place = self.memory.part(at * PLACE, PLACE);
        place.fill(0);
        place
    }

    /// Submits one request of a kind of its own, unless it is refused.
    fn submit(
        &mut self,
        what: &str,
        fill: impl FnOnce(&Region, Cb),
        call: impl FnOnce(usize) -> Result<()>,
    ) -> Option<Cb> {
        let place = self.place();
        let cb = Cb::at(&place, 0);
        fill(&place, cb);
        match call(cb.addr()) {
            Ok(()) => Some(cb),
            Err(error) => {
                say(what, error);
                if !may_refuse(error) {
                    bad!("{what} is refused with {error}");
                }
                // What cannot be read may be any answer, but there is no request.
                if let Ok(value) = aio::return_(cb.addr()) {
                    bad!("{what} was refused, but aio_return gives {value}");
                }
                None
            }
        }
    }

    fn plain(&mut self, what: &str, fd: i32, writes: bool) -> Option<Cb> {
        let fill = |place: &Region, cb: Cb| {
            cb.set(aio::request(fd, 0, place.at(BUFFER), LEN));
        };
        self.submit(what, fill, if writes { aio::write } else { aio::read })
    }

    fn vectored(&mut self, what: &str, fd: i32, writes: bool, pieces: [(usize, usize); 3]) {
        let fill = |place: &Region, cb: Cb| {
            for (index, (start, len)) in pieces.into_iter().enumerate() {
                let iov = Iovec { base: place.at(BUFFER + start), len };
                place.put(256 + index * size_of::<Iovec>(), iov);
            }
            cb.set(aio::request(fd, 0, place.at(256), pieces.len()));
        };
        let cb = self.submit(what, fill, if writes { aio::writev } else { aio::readv });
        collect(what, cb, pieces.iter().map(|piece| piece.1 as i64).sum());
    }

    fn told(&mut self, what: &str, sig: Sigevent) -> Option<Cb> {
        let fd = self.file;
        let fill = |place: &Region, cb: Cb| {
            let mut block = aio::request(fd, 0, place.at(BUFFER), LEN);
            block.sigevent = sig;
            cb.set(block);
        };
        self.submit(what, fill, aio::write)
    }
}

fn say(what: &str, error: Errno) {
    if VERBOSE.load(Relaxed) {
        println!("steps: {what}: {error}");
    }
}

/// Waits for a request and takes its result.
fn collect(what: &str, cb: Option<Cb>, wanted: i64) {
    let Some(cb) = cb else { return };
    let mut known = false;
    for _ in 0..3000 {
        match aio::error(cb.addr()) {
            Ok(state) if state == EINPROGRESS.0 => {
                let waited = aio::suspend(&[cb.addr()], Some(Timespec::from_ms(20)));
                if !matches!(waited, Ok(()) | Err(EAGAIN | EINTR | EFAULT | ENOMEM)) {
                    bad!("aio_suspend for {what}: {waited:?}");
                }
                if waited.is_err() {
                    sleep_ms(1);
                }
            }
            _ => {
                known = true;
                break;
            }
        }
    }
    if !known {
        bad!("{what} does not end");
    }
    match aio::return_(cb.addr()) {
        Ok(count) if count == wanted => {}
        Ok(count) => bad!("{what} moved {count}, not {wanted}"),
        Err(error) => {
            say(what, error);
            if !may_end(error) {
                bad!("{what} ends with {error}");
            }
        }
    }
    if aio::return_(cb.addr()) != Err(EINVAL) {
        bad!("{what} is collected twice");
    }
}

/// Takes one signal and no more.
fn signalled(what: &str, set: Set) {
    if let Err(error) = signal::wait(set, Timespec::from_ms(2000)) {
        bad!("no signal of {what}: {error}");
    }
    if signal::wait(set, Timespec::from_ms(1)).is_ok() {
        bad!("two signals of {what}");
    }
}

fn event(what: &str, kq: i32, filter: i16, ident: usize) {
    let mut events = [Kevent::default(); 2];
    match kqueue::kevent(kq, &[], &mut events, Some(Timespec::from_ms(2000))) {
        Ok(1) if events[0].ident == ident && events[0].filter == filter => {}
        other => bad!("the event of {what}: {other:?} {:#x}", events[0].ident),
    }
}

/// A list of two requests of each file, and how it is to be told.
fn list(world: &mut World, what: &str, mode: i32, sig: Sigevent) -> Option<usize> {
    let place = world.place();
    let list = place.part(512, 64);
    let fds = [world.file, world.disk.unwrap_or(world.file)];
    let mut cbs = [0; 4];
    for (index, cb) in cbs.iter_mut().enumerate() {
        let entry = world.place();
        let mut block = aio::request(fds[index % 2], 0, entry.at(BUFFER), LEN);
        block.opcode = if index < 2 { WRITE } else { READ };
        Cb::at(&entry, 0).set(block);
        *cb = entry.addr();
        list.set_word(index * 8, entry.addr() as u64);
    }
    place.put(600, sig);
    let sig_at = if mode == aio::LIO_NOWAIT { place.at(600) } else { 0 };
    let result = aio::listio(mode, list.addr(), 4, sig_at);
    if let Err(error) = result {
        say(what, error);
        if !may_refuse(error) {
            bad!("{what} fails with {error}");
        }
    }
    let told = result.is_ok() && mode == aio::LIO_NOWAIT;
    if told && sig.notify == aio::SIGEV_KEVENT {
        event(what, world.kq, EVFILT_LIO, list.addr());
    } else if told {
        signalled(what, Set::of(sig.signo));
    }
    // Some of them may have been refused.
    for cb in cbs {
        for _ in 0..3000 {
            if aio::error(cb) != Ok(EINPROGRESS.0) {
                break;
            }
            sleep_ms(1);
        }
        match aio::return_(cb) {
            Ok(count) if count == LEN as i64 => {}
            Err(error) if may_end(error) || error == EINVAL => {}
            other => bad!("an entry of {what}: {other:?}"),
        }
    }
    // A list that failed may tell of what it had accepted.
    if result.is_err() {
        let _ = signal::wait(Set::of(sys::SIGUSR1), Timespec::default());
        let _ = kqueue::kevent(world.kq, &[], &mut [Kevent::default()], Some(Timespec::default()));
    }
    told.then_some(list.addr())
}

fn files(world: &mut World) {
    let file = world.file;
    let cb = world.plain("a write", file, true);
    collect("a write", cb, LEN as i64);
    let cb = world.plain("a read", file, false);
    collect("a read", cb, LEN as i64);
    world.vectored("a writev", file, true, [(0, 100), (200, 1000), (2000, 300)]);
    world.vectored("a readv", file, false, [(0, 100), (200, 1000), (2000, 300)]);
    for (what, op) in [("a sync", sys::O_SYNC), ("a data sync", 0x0100_0000)] {
        let write = world.plain("a write before a sync", file, true);
        let fill = |_: &Region, cb: Cb| cb.set(aio::request(file, 0, 0, 0));
        let cb = world.submit(what, fill, |at| aio::fsync(op, at));
        collect(what, cb, 0);
        collect("a write before a sync", write, LEN as i64);
    }
    let fill = |place: &Region, cb: Cb| cb.set(aio::request(-1, 0, place.at(BUFFER), LEN));
    let cb = world.submit("mlock", fill, aio::mlock);
    collect("mlock", cb, 0);
    let fill = |_: &Region, cb: Cb| cb.set(aio::request(file, 0, HOLE, LEN));
    if let Some(cb) = world.submit("a bad buffer", fill, aio::write) {
        collect("a bad buffer", Some(cb), -1);
    }
}

fn notified(world: &mut World) {
    let set = Set::of(sys::SIGUSR1);
    let tid = sys::thr_self().unwrap_or(0);
    let each = [
        ("a write with a signal", Sigevent::signal(sys::SIGUSR1, 7)),
        ("a write with a thread's signal", Sigevent::thread(sys::SIGUSR1, 7, tid)),
    ];
    for (what, sig) in each {
        let cb = world.told(what, sig);
        if cb.is_some() && sig.notify == aio::SIGEV_SIGNAL {
            signalled(what, set);
        }
        collect(what, cb, LEN as i64);
        // A thread may be found gone: then there is none.
        let _ = signal::wait(set, Timespec::default());
    }
    let cb = world.told("a write with an event", Sigevent::kevent(world.kq, 9, 0));
    if let Some(cb) = cb {
        event("a write with an event", world.kq, EVFILT_AIO, cb.addr());
    }
    collect("a write with an event", cb, LEN as i64);
    list(world, "a list that waits", aio::LIO_WAIT, Sigevent::default());
    list(world, "a list with a signal", aio::LIO_NOWAIT, Sigevent::signal(sys::SIGUSR1, 8));
    let sig = Sigevent::kevent(world.kq, 8, kqueue::EV_ONESHOT);
    list(world, "a list with an event", aio::LIO_NOWAIT, sig);
}

fn disks(world: &mut World) {
    let Some(disk) = world.disk else { return };
    let cb = world.plain("a disk write", disk, true);
    let other = world.plain("a disk read", disk, false);
    collect("a disk read", other, LEN as i64);
    collect("a disk write", cb, LEN as i64);
    world.vectored("a disk writev", disk, true, [(100, 512), (1000, 1024), (4096, 1024)]);
    world.vectored("a disk readv", disk, false, [(100, 512), (1000, 1024), (4096, 1024)]);
    let fill = |_: &Region, cb: Cb| cb.set(aio::request(disk, 0, HOLE, LEN));
    if world.submit("a bad disk buffer", fill, aio::write).is_some() {
        bad!("a bad disk buffer is accepted");
    }
    let split = sysctl::Setting::new("vfs.aio.rs.split", 1);
    let flush = sysctl::Setting::new("vfs.aio.rs.flush", 1);
    if split.is_ok() && flush.is_ok() {
        world.vectored("a bounced writev", disk, true, [(0, 100), (200, 412), (4096, 512)]);
        world.vectored("a bounced readv", disk, false, [(0, 100), (200, 412), (4096, 512)]);
        let fill = |_: &Region, cb: Cb| cb.set(aio::request(disk, 0, 0, 0));
        let cb = world.submit("a flush", fill, |at| aio::fsync(sys::O_SYNC, at));
        collect("a flush", cb, 0);
    }
}

fn sockets(world: &mut World) {
    let Ok((one, two)) = sys::socketpair() else { return };
    let read = world.plain("a socket read", one, false);
    let write = world.plain("a socket write", two, true);
    collect("a socket write", write, LEN as i64);
    if write.is_some() {
        collect("a socket read", read, LEN as i64);
    } else if read.is_some() {
        let cancelled = aio::cancel(one, 0);
        if cancelled.is_err() {
            // The end of the other side ends it too.
            let _ = sys::close(two);
        }
        collect("a socket read", read, 0);
        if cancelled.is_err() {
            let _ = sys::close(one);
            return;
        }
    }
    let idle = world.plain("an idle socket read", one, false);
    if let Some(cb) = idle {
        let _ = aio::cancel(one, cb.addr());
    }
    let _ = sys::close(two);
    // What no read took is still there.
    let left = if read.is_none() && write.is_some() { LEN as i64 } else { 0 };
    collect("an idle socket read", idle, left);
    let _ = sys::close(one);
}

/// A process that leaves with requests in flight, by exit or by becoming another program.
fn leaving(world: &mut World) {
    for replaced in [false, true] {
        match sys::fork() {
            Ok(Fork::Child) => {
                let (file, disk) = (world.file, world.disk);
                for _ in 0..3 {
                    let _ = world.plain("a write of a child", file, true);
                    if let Some(disk) = disk {
                        let _ = world.plain("a disk read of a child", disk, false);
                    }
                }
                let status = i32::from(BAD.load(Relaxed) > 0);
                if replaced && status == 0 {
                    let _ = sys::exec_words([c"/bin/sh", c"-c", c"exit 0"].into_iter());
                }
                sys::exit(status)
            }
            Ok(Fork::Parent(pid)) => {
                let ended = sys::wait_for(pid);
                if ended != Some(Ended::Exit(0)) {
                    bad!("the child ended with {ended:?}");
                }
            }
            Err(error) => bad!("fork: {error}"),
        }
    }
}

fn cancelled(world: &mut World) {
    let file = world.file;
    let mut cbs = [None; 6];
    for cb in &mut cbs {
        *cb = world.plain("a write to be cancelled", file, true);
    }
    if let Err(error) = aio::cancel(file, 0)
        && error != EBADF
        && error != ENOTCAPABLE
    {
        bad!("aio_cancel: {error}");
    }
    for cb in cbs {
        collect("a write to be cancelled", cb, LEN as i64);
    }
    // And one that anybody collects.
    if let Some(cb) = world.plain("a write for anybody", file, true) {
        let done = aio::waitcomplete(Some(Timespec::from_ms(2000)));
        if done.cb != cb.addr() && !matches!(done.result, Err(EFAULT | EAGAIN) | Ok(4096)) {
            bad!("aio_waitcomplete: {:?}", done.result);
        }
        // Where it could not say whom it found, or look for one, the request may still be there.
        for _ in 0..3000 {
            if aio::error(cb.addr()) != Ok(EINPROGRESS.0) {
                break;
            }
            sleep_ms(1);
        }
        let _ = aio::return_(cb.addr());
    }
}

fn gauges() -> [Option<u64>; 3] {
    ["vfs.aio.num_queue_count", "vfs.aio.num_buf_aio", "vfs.aio.num_unmapped_aio"].map(sysctl::get)
}

/// A memory disk, where mdconfig(8) makes one.
fn disk() -> Option<i32> {
    let words =
        [c"/sbin/mdconfig", c"-a", c"-t", c"malloc", c"-s", c"1m", c"-S", c"512", c"-u", c"7"];
    if sys::run_quietly(&words) != Ok(0) {
        return None;
    }
    sys::open(c"/dev/md7", sys::O_RDWR, 0).ok()
}

fn run(args: Args) -> i32 {
    VERBOSE.store(args.has(c"--verbose"), Relaxed);
    match all() {
        Ok(()) => {
            let bad = BAD.load(Relaxed);
            println!("steps: {}", if bad == 0 { "ok" } else { "FAILED" });
            i32::from(bad > 0)
        }
        Err(error) => {
            println!("steps: cannot go on: {error}");
            2
        }
    }
}

fn all() -> Result<()> {
    signal::block(Set::of(sys::SIGUSR1))?;
    let file = sys::open(c"steps.data", sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC, 0o600)?;
    sys::pwrite(file, &[0; LEN], 0)?;
    let memory = Region::map(PLACES * PLACE)?;
    let mut world = World { file, disk: disk(), kq: sys::kqueue()?, memory, next: 0 };
    let before = gauges();
    for step in [files, notified, disks, sockets, cancelled, leaving] {
        step(&mut world);
    }
    let mut left = 0;
    for _ in 0..100 {
        let done = aio::waitcomplete(Some(Timespec::default()));
        match done.result {
            // The limit cannot be read: nothing was asked.
            Err(EAGAIN | EFAULT) => break,
            _ => left += 1,
        }
    }
    if left == 100 {
        bad!("there is always one more request");
    }
    if gauges() != before {
        bad!("gauges: {before:?} before and {:?} after", gauges());
    }
    let _ = (sys::close(file), world.disk.map(sys::close));
    let _ = sys::run_quietly(&[c"/sbin/mdconfig", c"-d", c"-o", c"force", c"-u", c"7"]);
    sys::unlink(c"steps.data")
}
