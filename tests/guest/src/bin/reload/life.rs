// SPDX-License-Identifier: BSD-2-Clause
//! The life of a process: steps with a known result each, and an end.
//!
//! No request outlives its step, so between two steps the process is in nobody's way, and may go
//! from one engine to the other.

use crate::{Counter, bad};
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, Cb, LIO_NOWAIT, LIO_READ, LIO_WAIT, LIO_WRITE};
use guest::aio::{Aiocb, Sigevent};
use guest::errno::{EAGAIN, ECANCELED, EINPROGRESS, EINTR, EINVAL, ENOSYS};
use guest::kqueue::{self, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::out::Text;
use guest::path::Path;
use guest::rng::{Rng, mix};
use guest::signal::{self, SIGRTMIN, Set};
use guest::sys::{self, Timespec};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Errno, Result, thread};

/// Bytes of each disk that belong to a process.
pub const DISK_EACH: usize = MOST * BLOCK;

/// Requests of a step.
const MOST: usize = 8;
const BLOCK: usize = 4096;
/// What a wait that must not end by itself is given.
const LONG: u64 = 60_000;

/// Where requests go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    File,
    Disk,
    Raw,
}

/// How the end of a step's requests is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Suspend,
    Complete,
    Events,
    Signals,
    /// As one list.
    List,
    ListEvent,
}

struct Life {
    slot: usize,
    seed: u64,
    rng: Rng,
    file: i32,
    disks: [Option<&'static CStr>; 2],
    fds: [Option<i32>; 2],
    kqueue: i32,
    /// Control blocks and lists in the first page, then buffers.
    memory: Region,
}

/// What went wrong in a step.
type Failure = Text<200>;

macro_rules! fail {
    ($($what:tt)*) => { return Err(Failure::of(format_args!($($what)*))) };
}

/// Puts the name of a call before its error.
fn called<T>(what: &str, result: Result<T>) -> core::result::Result<T, Failure> {
    result.map_err(|error| Failure::of(format_args!("{what}: {error}")))
}

/// Lives; the process's exit status.
pub fn live(
    slot: usize,
    seed: u64,
    disks: [Option<&'static CStr>; 2],
    reborn: bool,
) -> Result<i32> {
    let mut life = Life {
        slot,
        seed,
        rng: Rng::new(mix(seed ^ u64::from(reborn))),
        file: {
            let name = Path::of(format_args!("own{slot}"));
            sys::open(name.as_cstr(), sys::O_RDWR | sys::O_CREAT, 0o600)?
        },
        disks,
        fds: [None; 2],
        kqueue: sys::kqueue()?,
        memory: Region::map(BLOCK + 2 * MOST * BLOCK)?,
    };
    for (fd, disk) in life.fds.iter_mut().zip(disks) {
        *fd = disk.map(|disk| sys::open(disk, sys::O_RDWR, 0)).transpose()?;
    }
    signal::block(Set::of(SIGRTMIN))?;
    let steps = 2 + life.rng.below(8);
    for _ in 0..steps {
        while Counter::Calm.get() != 0 {
            sleep_ms(1);
        }
        if Counter::Stop.get() != 0 {
            return Ok(0);
        }
        if let Err(why) = life.step() {
            bad(format_args!("seed {seed:#x}: {}", why.as_str()));
            return Ok(1);
        }
        Counter::Steps.add(1);
        sleep_ms(life.rng.below(12));
    }
    if reborn {
        return Ok(0);
    }
    life.end()
}

/// The word of a pattern.
fn pattern(tag: u64, index: usize) -> u64 {
    mix(tag ^ (index as u64) << 32)
}

/// How long threads without requests wait.
static WAIT_MS: AtomicU64 = AtomicU64::new(0);

impl Life {
    fn step(&mut self) -> core::result::Result<(), Failure> {
        match self.rng.below(16) {
            0..4 => self.transfer(Target::File),
            4..6 => self.transfer(Target::Disk),
            6..8 => self.transfer(Target::Raw),
            8..10 => self.socket(),
            10 => self.cancelled(),
            11..13 => self.idle_waiter(),
            13 => self.collector(),
            14 => self.synced(),
            _ if self.rng.one_in(3) => {
                observe();
                Ok(())
            }
            _ => self.calls(),
        }
    }

    fn cb(&self, index: usize) -> Cb {
        Cb::at(&self.memory, index * 256)
    }

    fn buffer(&self, index: usize) -> Region {
        self.memory.part(BLOCK + index * BLOCK, BLOCK)
    }

    /// Writes blocks, reads them back, and compares.
    fn transfer(&mut self, target: Target) -> core::result::Result<(), Failure> {
        let (fd, base) = match target {
            Target::File => (self.file, 0),
            Target::Disk | Target::Raw => match self.fds[usize::from(target == Target::Raw)] {
                Some(fd) => (fd, self.slot * DISK_EACH),
                None => return Ok(()),
            },
        };
        let count = 1 + self.rng.below(MOST as u64) as usize;
        let tag = self.rng.next();
        for index in 0..count {
            for at in 0..BLOCK / 8 {
                self.buffer(index).set_word(at * 8, pattern(tag, index * BLOCK + at));
                self.buffer(MOST + index).set_word(at * 8, !0);
            }
        }
        for write in [true, false] {
            let wait = [
                Wait::Suspend,
                Wait::Complete,
                Wait::Events,
                Wait::Signals,
                Wait::List,
                Wait::ListEvent,
            ][self.rng.below(6) as usize];
            let place = |index: usize| (base + index * BLOCK) as i64;
            let block = |life: &Self, index: usize| {
                let buffer = life.buffer(if write { index } else { MOST + index });
                aio::request(fd, place(index), buffer.addr(), BLOCK)
            };
            self.submit_and_wait(count, wait, write, block)?;
        }
        for index in 0..count {
            for at in 0..BLOCK / 8 {
                let (got, wanted) =
                    (self.buffer(MOST + index).word(at * 8), pattern(tag, index * BLOCK + at));
                if got != wanted {
                    fail!("block {index} of {count}, word {at}: {got:#x}, not {wanted:#x}");
                }
            }
        }
        Ok(())
    }

    /// Makes `count` requests of a whole block each, waits for all, and collects them.
    fn submit_and_wait(
        &mut self,
        count: usize,
        wait: Wait,
        write: bool,
        block: impl Fn(&Self, usize) -> Aiocb,
    ) -> core::result::Result<(), Failure> {
        for index in 0..count {
            let mut request = block(self, index);
            request.opcode = if write { LIO_WRITE } else { LIO_READ };
            match wait {
                Wait::Events => request.sigevent = Sigevent::kevent(self.kqueue, index, 0),
                Wait::Signals => request.sigevent = Sigevent::signal(SIGRTMIN, index),
                _ => {}
            }
            self.cb(index).set(request);
        }
        if matches!(wait, Wait::List | Wait::ListEvent) {
            self.list(count, wait == Wait::List)?;
        } else {
            for index in 0..count {
                let cb = self.cb(index).addr();
                called("submit", retried(|| if write { aio::write(cb) } else { aio::read(cb) }))?;
            }
        }
        Counter::Requests.add(count as u64);
        match wait {
            Wait::Suspend | Wait::List | Wait::ListEvent => {}
            Wait::Complete => return self.complete(count),
            Wait::Events => self.events(count, EVFILT_AIO, |life, event| {
                event.ident == life.cb(event.udata).addr()
            })?,
            Wait::Signals => self.signals(count)?,
        }
        self.collect(count)
    }

    /// One call for all of them.
    fn list(&mut self, count: usize, waits: bool) -> core::result::Result<(), Failure> {
        let list = self.memory.part(MOST * 256, 512);
        for index in 0..count {
            list.set_word(index * 8, self.cb(index).addr() as u64);
        }
        let (mode, sig) = if waits {
            (LIO_WAIT, 0)
        } else {
            list.put(256, Sigevent::kevent(self.kqueue, 77, 0));
            (LIO_NOWAIT, list.at(256))
        };
        // A list that was refused for want of resources has begun in part.
        let submit = || aio::listio(mode, list.addr(), count as i32, sig);
        called("lio_listio", waited_for(submit, absent))?;
        if !waits {
            self.events(1, EVFILT_LIO, |_, event| event.udata == 77)?;
        }
        Ok(())
    }

    /// Takes `count` events, one at a time, each of which must be right.
    fn events(
        &mut self,
        count: usize,
        filter: i16,
        right: impl Fn(&Self, &Kevent) -> bool,
    ) -> core::result::Result<(), Failure> {
        let mut seen = [false; 128];
        for _ in 0..count {
            let mut one = [Kevent::default()];
            let start = now();
            while called("kevent", kqueue::kevent(self.kqueue, &[], &mut one, span(LONG)))? == 0 {
                if ms_since(start) >= LONG {
                    fail!("no event of {filter}");
                }
            }
            let [event] = one;
            if event.filter != filter
                || event.udata >= seen.len()
                || seen[event.udata]
                || !right(self, &event)
            {
                fail!("a wrong event, or one twice: {event:?}");
            }
            seen[event.udata] = true;
            // It is there until its request is collected, or the kqueue forgets it.
            called(
                "EV_DELETE",
                kqueue::change(self.kqueue, event.ident, filter, kqueue::EV_DELETE),
            )?;
        }
        Ok(())
    }

    fn signals(&mut self, count: usize) -> core::result::Result<(), Failure> {
        let mut seen = [false; MOST];
        for _ in 0..count {
            let info =
                called("a signal", signal::wait(Set::of(SIGRTMIN), Timespec::from_ms(LONG)))?;
            if info.value >= count || seen[info.value] {
                fail!("a wrong signal, or one twice: {info:?}");
            }
            seen[info.value] = true;
        }
        Ok(())
    }

    /// Waits for each request by aio_suspend, and collects it.
    fn collect(&mut self, count: usize) -> core::result::Result<(), Failure> {
        for index in 0..count {
            let cb = self.cb(index).addr();
            let state = self.wait_for(cb)?;
            if state != 0 {
                fail!("request {index} of {count}: aio_error gives {state}");
            }
            let moved = called("aio_return", aio::return_(cb))?;
            if moved != BLOCK as i64 {
                fail!("request {index} of {count} moved {moved} bytes");
            }
        }
        Ok(())
    }

    /// Waits until a request has finished; its error.
    fn wait_for(&mut self, cb: usize) -> core::result::Result<i32, Failure> {
        let start = now();
        loop {
            let state = called("aio_error", aio::error(cb))?;
            if state != EINPROGRESS.0 {
                return Ok(state);
            }
            let timeout = if self.rng.one_in(2) { None } else { span(5) };
            match aio::suspend(&[cb, 0], timeout) {
                Ok(()) | Err(EINTR) => {}
                Err(EAGAIN) if timeout.is_some() => {}
                other => fail!("aio_suspend: {other:?}"),
            }
            if ms_since(start) > LONG {
                fail!("a request that does not end");
            }
        }
    }

    /// Collects by aio_waitcomplete.
    fn complete(&mut self, count: usize) -> core::result::Result<(), Failure> {
        let mut seen = [false; MOST];
        for _ in 0..count {
            let timeout = if self.rng.one_in(2) { None } else { span(LONG) };
            let done = aio::waitcomplete(timeout);
            let index = (done.cb.wrapping_sub(self.memory.addr())) / 256;
            if done.result != Ok(BLOCK as i64) || index >= count || seen[index] {
                fail!("aio_waitcomplete: {done:?}");
            }
            seen[index] = true;
        }
        Ok(())
    }

    /// A read that waits for its data, and a write to the same socket.
    fn socket(&mut self) -> core::result::Result<(), Failure> {
        let (here, there) = called("socketpair", net::pair(SOCK_STREAM))?;
        let tag = self.rng.next();
        let (reader, writer) = (self.buffer(MOST), self.buffer(0));
        for at in 0..BLOCK / 8 {
            writer.set_word(at * 8, pattern(tag, at));
        }
        let (read, write) = (self.cb(0), self.cb(1));
        let mut came = 0;
        while came < BLOCK {
            read.set(aio::request(here, 0, reader.at(came), BLOCK - came));
            called("aio_read of a socket", retried(|| aio::read(read.addr())))?;
            if came == 0 {
                sleep_ms(self.rng.below(10));
                write.set(aio::request(there, 0, writer.addr(), BLOCK));
                called("aio_write to a socket", retried(|| aio::write(write.addr())))?;
                if self.wait_for(write.addr())? != 0 {
                    fail!("the write to a socket failed");
                }
                let moved = called("aio_return of a write", aio::return_(write.addr()))?;
                if moved != BLOCK as i64 {
                    fail!("a write to a socket moved {moved} bytes");
                }
            }
            let state = self.wait_for(read.addr())?;
            match aio::return_(read.addr()) {
                Ok(moved) if state == 0 && moved > 0 => came += moved as usize,
                other => fail!("a read of a socket: {state}, {other:?}"),
            }
        }
        Counter::Requests.add(2);
        for at in 0..BLOCK / 8 {
            if reader.word(at * 8) != pattern(tag, at) {
                fail!("word {at} from the socket is wrong");
            }
        }
        called("close", sys::close(here).and_then(|()| sys::close(there)))
    }

    /// A read of a socket that never comes, cancelled.
    fn cancelled(&mut self) -> core::result::Result<(), Failure> {
        let (here, there) = called("socketpair", net::pair(SOCK_STREAM))?;
        let cb = self.cb(0);
        cb.set(aio::request(here, 0, self.buffer(0).addr(), BLOCK));
        called("aio_read", retried(|| aio::read(cb.addr())))?;
        sleep_ms(self.rng.below(8));
        let which = if self.rng.one_in(2) { 0 } else { cb.addr() };
        match aio::cancel(here, which) {
            Ok(AIO_CANCELED) => {}
            other => fail!("aio_cancel: {other:?}"),
        }
        let (state, result) = (self.wait_for(cb.addr())?, aio::return_(cb.addr()));
        if state != ECANCELED.0 || result != Err(ECANCELED) {
            fail!("a cancelled read: {state}, {result:?}");
        }
        called("close", sys::close(here).and_then(|()| sys::close(there)))
    }

    /// Threads that wait without a request, while nobody makes one: each is told so in its time.
    fn idle_waiter(&mut self) -> core::result::Result<(), Failure> {
        fn waiter(_: usize) {
            let ms = WAIT_MS.load(SeqCst);
            let start = now();
            let done = aio::waitcomplete(span(ms));
            let slept = ms_since(start);
            // The built-in counts from the processor's last clock tick, which may be long ago in an
            // emulated machine.
            let early = slept + 1_000 < ms;
            let in_time = done.cb == 0 && done.result == Err(EAGAIN) && !early;
            if !in_time && !done.result.is_err_and(absent) {
                bad(format_args!("a waiter without requests: {done:?} after {slept} ms of {ms}"));
            }
            Counter::Waits.add(1);
        }
        let ms = if self.rng.one_in(16) { 1_500 } else { 5 + self.rng.below(100) };
        WAIT_MS.store(ms, SeqCst);
        let other = called("thr_new", thread::spawn(waiter, 0))?;
        waiter(1);
        other.join();
        Ok(())
    }

    /// A thread that collects what this one makes, and waits in between.
    fn collector(&mut self) -> core::result::Result<(), Failure> {
        static TO_COME: AtomicU64 = AtomicU64::new(0);
        fn collect(_: usize) {
            let start = now();
            while TO_COME.load(SeqCst) > 0 {
                let done = aio::waitcomplete(span(20));
                match (done.cb, done.result) {
                    (0, Err(EAGAIN)) => {}
                    (_, Err(error)) if absent(error) => sleep_ms(1),
                    (0, _) | (_, Err(_)) => return bad(format_args!("a collector: {done:?}")),
                    (_, Ok(moved)) if moved == BLOCK as i64 => {
                        TO_COME.fetch_sub(1, SeqCst);
                    }
                    _ => return bad(format_args!("a collector: {done:?}")),
                }
                if ms_since(start) > LONG {
                    return bad(format_args!("a collector has not got everything"));
                }
            }
        }
        let count = 1 + self.rng.below(MOST as u64);
        TO_COME.store(count, SeqCst);
        let other = called("thr_new", thread::spawn(collect, 0))?;
        for index in 0..count as usize {
            let cb = self.cb(index);
            let place = (index * BLOCK) as i64;
            cb.set(aio::request(self.file, place, self.buffer(index).addr(), BLOCK));
            called("aio_write", retried(|| aio::write(cb.addr())))?;
            sleep_ms(self.rng.below(6));
        }
        Counter::Requests.add(count);
        other.join();
        Ok(())
    }

    /// Writes and a sync, which ends after them.
    fn synced(&mut self) -> core::result::Result<(), Failure> {
        let count = 1 + self.rng.below(MOST as u64 - 1) as usize;
        for index in 0..=count {
            let cb = self.cb(index);
            let place = (index * BLOCK) as i64;
            cb.set(aio::request(self.file, place, self.buffer(index).addr(), BLOCK));
            let last = index == count;
            let submit =
                || if last { aio::fsync(sys::O_SYNC, cb.addr()) } else { aio::write(cb.addr()) };
            called("submit", retried(submit))?;
        }
        Counter::Requests.add(count as u64 + 1);
        let state = self.wait_for(self.cb(count).addr())?;
        for index in 0..count {
            let cb = self.cb(index).addr();
            match (aio::error(cb), aio::return_(cb)) {
                (Ok(0), Ok(moved)) if moved == BLOCK as i64 => {}
                other => fail!("after the sync, write {index}: {other:?}"),
            }
        }
        let result = aio::return_(self.cb(count).addr());
        if state != 0 || result != Ok(0) {
            fail!("a sync: {state}, {result:?}");
        }
        Ok(())
    }

    /// Calls that need no request, as fast as can be, from two threads.
    fn calls(&mut self) -> core::result::Result<(), Failure> {
        const CALLS: u64 = 300;
        fn make(fd: usize) {
            let Ok(page) = Region::map(BLOCK) else { return };
            let cb = Cb::at(&page, 0);
            for _ in 0..CALLS {
                let answers = (
                    aio::error(cb.addr()),
                    aio::return_(cb.addr()),
                    aio::cancel(fd as i32, cb.addr()),
                );
                let waited = aio::waitcomplete(span(0)).result;
                if answers != (Ok(EINVAL.0), Err(EINVAL), Ok(AIO_ALLDONE))
                    || waited != Err(EAGAIN) && !waited.is_err_and(absent)
                {
                    return bad(format_args!("calls without a request: {answers:?}, {waited:?}"));
                }
            }
            let _ = page.unmap();
        }
        let other = called("thr_new", thread::spawn(make, self.file as usize))?;
        make(self.file as usize);
        other.join();
        Ok(())
    }

    /// Ends the process in one of several ways.
    fn end(&mut self) -> Result<i32> {
        let way = self.rng.below(5);
        if way > 0 {
            self.leave_requests()?;
        }
        match way {
            1 => sys::kill(sys::getpid(), sys::SIGKILL)?,
            2 => self.exec()?,
            _ => {}
        }
        Ok(0)
    }

    /// Has requests in flight: reads that wait for data, transfers, and a thread that waits.
    fn leave_requests(&mut self) -> Result<()> {
        let (here, _there) = net::pair(SOCK_STREAM)?;
        let fds = [here, self.file, self.fds[0].unwrap_or(self.file)];
        for (index, fd) in fds.into_iter().enumerate() {
            let cb = self.cb(index);
            let place = (self.slot * DISK_EACH) as i64;
            cb.set(aio::request(fd, place, self.buffer(index).addr(), BLOCK));
            retried(|| if index == 0 { aio::read(cb.addr()) } else { aio::write(cb.addr()) })?;
        }
        if self.rng.one_in(2) {
            fn waiter(_: usize) {
                // A collector of whatever ends; the process will not wait for it.
                loop {
                    let _ = aio::waitcomplete(None);
                }
            }
            let _ = thread::spawn(waiter, 0)?;
            sleep_ms(self.rng.below(4));
        }
        Ok(())
    }

    /// Becomes this program again, for a few steps more.
    fn exec(&self) -> Result<()> {
        let own = sys::own_path()?;
        let (slot, seed) =
            (Path::of(format_args!("{}", self.slot)), Path::of(format_args!("{}", self.seed)));
        let mut words: [*const c_char; 12] = [core::ptr::null(); 12];
        let pairs = [(c"--disk", self.disks[0]), (c"--raw", self.disks[1])];
        let fixed = [own.as_cstr(), c"--slot", slot.as_cstr(), c"--life", seed.as_cstr()];
        let named = pairs.into_iter().filter_map(|(name, disk)| disk.map(|disk| [name, disk]));
        let all = fixed.into_iter().chain(named.flatten());
        words.iter_mut().zip(all).for_each(|(word, text)| *word = text.as_ptr());
        sys::execve(own.as_cstr(), &words)
    }
}

/// Reads what the engine works out when it is asked, whether it is there or not.
fn observe() {
    const LEAVES: [&str; 4] = [
        "vfs.aio.rs.processes",
        "vfs.aio.rs.queue.done",
        "vfs.aio.rs.workers.idle",
        "vfs.aio.rs.read.queue_us",
    ];
    for turn in 0..100 {
        let _ = sys::sysctlbyname(LEAVES[turn % LEAVES.len()], &mut [0; 1024], &[]);
    }
}

fn span(ms: u64) -> Option<Timespec> {
    Some(Timespec::from_ms(ms))
}

/// Makes a call until it is not refused for want of resources.
fn retried(call: impl Fn() -> Result<()>) -> Result<()> {
    waited_for(call, |error| error == EAGAIN || absent(error))
}

/// Makes a call until it does not fail with an error that passes.
fn waited_for(call: impl Fn() -> Result<()>, passes: fn(Errno) -> bool) -> Result<()> {
    let start = now();
    loop {
        match call() {
            Err(error) if passes(error) && ms_since(start) < LONG => sleep_ms(2),
            other => return other,
        }
    }
}

/// Whether an error says that no engine is there, on a kernel where that may be.
fn absent(error: Errno) -> bool {
    error == ENOSYS && Counter::Alone.get() != 0
}
