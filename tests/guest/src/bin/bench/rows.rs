// SPDX-License-Identifier: BSD-2-Clause
//! The rows, and how each is measured. What is not the thing itself, such as making requests that
//! are asked about later, is outside the measured parts; a first round that is not measured starts
//! workers and fills caches.

use crate::requests::{Requests, at, return_by_events, suspend};
use crate::{Bench, Failure};
use guest::aio;
use guest::mem::Region;
use guest::out::Text;
use guest::path::Path;
use guest::sys::{self, Fork};
use guest::sysctl::Setting;
use guest::thread;

/// Where a row works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    None = 0,
    /// A file on UFS, cached.
    Ufs,
    /// A file on tmpfs.
    Tmpfs,
    /// Files on UFS on a virtio disk that are not cached.
    Cold,
    /// A virtio disk.
    Disk,
    /// A memory disk.
    Md,
}

/// What a row does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// getpid.
    Null,
    /// pread.
    Pread,
    /// pwrite.
    Pwrite,
    /// aio_read, aio_suspend, aio_return, one at a time.
    ReadSuspend,
    /// aio_read, aio_waitcomplete.
    ReadWaitcomplete,
    /// aio_read with a kevent, kevent, aio_return.
    ReadKevent,
    /// aio_write, aio_suspend, aio_return.
    WriteSuspend,
    /// So many aio_read, then as many aio_waitcomplete.
    ReadDepth,
    /// So many aio_write, then as many aio_waitcomplete.
    WriteDepth,
    /// So many aio_read with kevents, then kevents and aio_return.
    KeventDepth,
    /// aio_error of the oldest of so many that are done.
    ErrorOldest,
    /// The same of the newest.
    ErrorNewest,
    /// aio_return of so many that are done, the oldest first.
    ReturnOldest,
    /// The same, the newest first.
    ReturnNewest,
    /// aio_suspend on one of so many that are done.
    SuspendOne,
    /// aio_suspend on all of so many that are done.
    SuspendAll,
    /// lio_listio, LIO_WAIT, then aio_return.
    LioWait,
    /// lio_listio, LIO_NOWAIT, then aio_waitcomplete.
    LioNowait,
    /// pread of blocks that are not cached.
    ColdPread,
    /// aio_read of such blocks, so many in flight.
    ColdRead,
    /// aio_read of a socket that has data; with the write that brings it.
    SocketReady,
    /// aio_read of a socket that gets data later; with the write that brings it.
    SocketParked,
    /// Four threads, each one at a time.
    Threads,
    /// So many processes, each with so many in flight.
    Processes(usize),
}

/// A row.
pub struct Row {
    what: What,
    /// Where.
    pub place: Place,
    size: usize,
    count: usize,
}

const fn row(what: What, place: Place, size: usize, count: usize) -> Row {
    Row { what, place, size, count }
}

const K4: usize = 4096;
const K64: usize = 65536;

/// All rows, in the order in which they run.
pub const ROWS: &[Row] = &[
    row(What::Null, Place::None, 0, 1),
    row(What::Pread, Place::Ufs, 512, 1),
    row(What::Pread, Place::Ufs, K4, 1),
    row(What::Pread, Place::Ufs, K64, 1),
    row(What::Pread, Place::Tmpfs, 512, 1),
    row(What::Pread, Place::Tmpfs, K4, 1),
    row(What::Pread, Place::Tmpfs, K64, 1),
    row(What::Pwrite, Place::Ufs, K4, 1),
    row(What::Pwrite, Place::Tmpfs, K4, 1),
    row(What::ReadSuspend, Place::Ufs, 512, 1),
    row(What::ReadSuspend, Place::Ufs, K4, 1),
    row(What::ReadSuspend, Place::Ufs, K64, 1),
    row(What::ReadSuspend, Place::Tmpfs, 512, 1),
    row(What::ReadSuspend, Place::Tmpfs, K4, 1),
    row(What::ReadSuspend, Place::Tmpfs, K64, 1),
    row(What::ReadWaitcomplete, Place::Ufs, K4, 1),
    row(What::ReadWaitcomplete, Place::Tmpfs, K4, 1),
    row(What::ReadKevent, Place::Ufs, K4, 1),
    row(What::WriteSuspend, Place::Ufs, K4, 1),
    row(What::WriteSuspend, Place::Tmpfs, K4, 1),
    row(What::ReadDepth, Place::Ufs, K4, 16),
    row(What::ReadDepth, Place::Ufs, K4, 64),
    row(What::ReadDepth, Place::Ufs, K4, 240),
    row(What::ReadDepth, Place::Ufs, K4, 1000),
    row(What::ReadDepth, Place::Ufs, K4, 10_000),
    row(What::ReadDepth, Place::Tmpfs, 512, 64),
    row(What::ReadDepth, Place::Tmpfs, K4, 64),
    row(What::ReadDepth, Place::Tmpfs, K64, 64),
    row(What::WriteDepth, Place::Ufs, K4, 64),
    row(What::KeventDepth, Place::Ufs, K4, 64),
    row(What::ErrorOldest, Place::Ufs, 512, 1),
    row(What::ErrorOldest, Place::Ufs, 512, 100),
    row(What::ErrorOldest, Place::Ufs, 512, 1000),
    row(What::ErrorOldest, Place::Ufs, 512, 10_000),
    row(What::ErrorNewest, Place::Ufs, 512, 100),
    row(What::ErrorNewest, Place::Ufs, 512, 1000),
    row(What::ErrorNewest, Place::Ufs, 512, 10_000),
    row(What::ReturnOldest, Place::Ufs, 512, 1),
    row(What::ReturnOldest, Place::Ufs, 512, 100),
    row(What::ReturnOldest, Place::Ufs, 512, 1000),
    row(What::ReturnOldest, Place::Ufs, 512, 10_000),
    row(What::ReturnNewest, Place::Ufs, 512, 100),
    row(What::ReturnNewest, Place::Ufs, 512, 1000),
    row(What::ReturnNewest, Place::Ufs, 512, 10_000),
    row(What::SuspendOne, Place::Ufs, 512, 1000),
    row(What::SuspendAll, Place::Ufs, 512, 1000),
    row(What::LioWait, Place::Ufs, K4, 64),
    row(What::LioWait, Place::Ufs, K4, 256),
    row(What::LioNowait, Place::Ufs, K4, 64),
    row(What::LioNowait, Place::Ufs, K4, 256),
    row(What::SocketReady, Place::None, 512, 1),
    row(What::SocketParked, Place::None, 512, 1),
    row(What::SocketParked, Place::None, 512, 64),
    row(What::Threads, Place::Ufs, K4, 4),
    row(What::Processes(1), Place::Ufs, K4, 16),
    row(What::Processes(2), Place::Ufs, K4, 16),
    row(What::Processes(4), Place::Ufs, K4, 16),
    row(What::Processes(1), Place::Tmpfs, K4, 16),
    row(What::Processes(2), Place::Tmpfs, K4, 16),
    row(What::Processes(4), Place::Tmpfs, K4, 16),
    row(What::ColdPread, Place::Cold, K4, 1),
    row(What::ColdRead, Place::Cold, K4, 1),
    row(What::ColdRead, Place::Cold, K4, 16),
    row(What::ReadDepth, Place::Disk, K4, 1),
    row(What::ReadDepth, Place::Disk, K4, 16),
    row(What::ReadDepth, Place::Disk, K4, 64),
    row(What::ReadDepth, Place::Md, K4, 1),
    row(What::ReadDepth, Place::Md, K4, 16),
    row(What::ReadDepth, Place::Md, K4, 64),
];

impl Row {
    /// The name: what, where, how many bytes, how many requests.
    pub fn name(&self) -> Text<64> {
        let what = match self.what {
            What::Null => "null-call",
            What::Pread => "pread",
            What::Pwrite => "pwrite",
            What::ReadSuspend => "read-suspend",
            What::ReadWaitcomplete => "read-waitcomplete",
            What::ReadKevent => "read-kevent",
            What::WriteSuspend => "write-suspend",
            What::ReadDepth => "read-depth",
            What::WriteDepth => "write-depth",
            What::KeventDepth => "kevent-depth",
            What::ErrorOldest => "error-oldest",
            What::ErrorNewest => "error-newest",
            What::ReturnOldest => "return-oldest-first",
            What::ReturnNewest => "return-newest-first",
            What::SuspendOne => "suspend-on-one",
            What::SuspendAll => "suspend-on-all",
            What::LioWait => "lio-wait",
            What::LioNowait => "lio-nowait",
            What::ColdPread => "cold-pread",
            What::ColdRead => "cold-read",
            What::SocketReady => "socket-ready",
            What::SocketParked => "socket-parked",
            What::Threads => "threads",
            What::Processes(1) => "one-process",
            What::Processes(2) => "two-processes",
            What::Processes(_) => "four-processes",
        };
        let place = match self.place {
            Place::None => "-",
            Place::Ufs => "ufs",
            Place::Tmpfs => "tmpfs",
            Place::Cold => "virtio-ufs",
            Place::Disk => "virtio",
            Place::Md => "md",
        };
        Text::of(format_args!("{what}/{place}/{}/{}", self.size, self.count))
    }
}

/// What is read and written of a file.
const SPAN: usize = 4 << 20;

/// Measures a row.
pub fn run(row: &Row, bench: &mut Bench) -> Result<(), Failure> {
    // As many as a row has live, and room for what the row before left for a moment.
    let raise = |name, usual: usize| {
        let wanted = row.count + row.count / 4;
        (wanted > usual)
            .then(|| Setting::new(name, wanted as i32))
            .transpose()
            .map_err(at("sysctl"))
    };
    let _per_process = raise("vfs.aio.max_aio_queue_per_proc", 256)?;
    let _all = raise("vfs.aio.max_aio_queue", 1024)?;
    let fd = open(row, bench)?;
    match row.what {
        What::Null => {
            let ops = bench.ops(5000);
            sys::getpid();
            bench.meter.time(ops, || {
                for _ in 0..ops {
                    sys::getpid();
                }
            });
            Ok(())
        }
        What::Pread | What::Pwrite => floor(row, bench, fd),
        What::ReadSuspend | What::ReadWaitcomplete | What::WriteSuspend | What::ReadKevent => {
            one_at_a_time(row, bench, fd)
        }
        What::ReadDepth | What::WriteDepth | What::KeventDepth => in_flight(row, bench, fd),
        What::ErrorOldest | What::ErrorNewest | What::SuspendOne | What::SuspendAll => {
            ask(row, bench, fd)
        }
        What::ReturnOldest | What::ReturnNewest => take(row, bench, fd),
        What::LioWait | What::LioNowait => lists(row, bench, fd),
        What::ColdPread | What::ColdRead => cold(row, bench, fd),
        What::SocketReady | What::SocketParked => sockets(row, bench),
        What::Threads => threads(row, bench, fd),
        What::Processes(count) => processes(row, bench, fd, count),
    }
}

/// Opens what the row works on; a file of ours is made if it is not there.
fn open(row: &Row, bench: &Bench) -> Result<i32, Failure> {
    let Some(place) = (row.place as usize).checked_sub(1).and_then(|at| bench.places[at]) else {
        return Ok(-1);
    };
    let place = place.to_str().unwrap_or("");
    let file = match (row.place, row.what) {
        (Place::Ufs | Place::Tmpfs, _) => Path::of(format_args!("{place}/bench")),
        // Each row has a file of its own: a block is cold once.
        (Place::Cold, What::ColdPread) => Path::of(format_args!("{place}/cold0")),
        (Place::Cold, _) => Path::of(format_args!("{place}/cold{}", row.count)),
        _ => {
            return sys::open(Path::of(format_args!("{place}")).as_cstr(), sys::O_RDONLY, 0)
                .map_err(at("open"));
        }
    };
    if row.place == Place::Cold {
        return sys::open(file.as_cstr(), sys::O_RDONLY, 0).map_err(at("open"));
    }
    let fd = sys::open(file.as_cstr(), sys::O_RDWR | sys::O_CREAT, 0o600).map_err(at("open"))?;
    let block = [0x5a; K4];
    if sys::fstat(fd).map_err(at("fstat"))?.size < SPAN as i64 {
        for offset in (0..SPAN).step_by(K4) {
            sys::pwrite(fd, &block, offset as i64).map_err(at("pwrite"))?;
        }
        sys::fsync(fd).map_err(at("fsync"))?;
    }
    let mut block = block;
    for offset in (0..SPAN).step_by(K4) {
        sys::pread(fd, &mut block, offset as i64).map_err(at("pread"))?;
    }
    Ok(fd)
}

/// One block by pread or pwrite: what a request cannot be cheaper than.
fn floor(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    let buffer = Region::map(row.size).map_err(at("mmap"))?;
    buffer.fill(0x5a);
    let ops = bench.ops(500);
    let round = |ops: u64| {
        for _ in 0..ops {
            let done = if row.what == What::Pread {
                sys::pread_at(fd, buffer.addr(), row.size, 0)
            } else {
                sys::pwrite_at(fd, buffer.addr(), row.size, 0)
            };
            if done != Ok(row.size) {
                return Err(("pread or pwrite", done.err().unwrap_or(guest::errno::EIO)));
            }
        }
        Ok(())
    };
    round(ops / 10 + 1)?;
    bench.meter.time(ops, || round(ops))
}

fn one_at_a_time(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    let requests = Requests::new(fd, 1, row.size, SPAN)?;
    let kq = if row.what == What::ReadKevent {
        let kq = sys::kqueue().map_err(at("kqueue"))?;
        requests.notify(kq);
        kq
    } else {
        -1
    };
    let ops = bench.ops(500);
    let mut submitted = 0;
    let mut round = |ops: u64| {
        for _ in 0..ops {
            if row.what == What::WriteSuspend {
                aio::write(requests.addr(0)).map_err(at("aio_write"))?;
            } else {
                requests.read(0)?;
            }
            submitted += 1;
            match row.what {
                What::ReadWaitcomplete => requests.collect(1)?,
                What::ReadKevent => {
                    return_by_events(kq, 1)?;
                }
                _ => requests.suspend_and_return(0)?,
            }
        }
        Ok(())
    };
    let result = round(ops / 10 + 1).and_then(|()| bench.meter.time(ops, || round(ops)));
    bench.submitted = submitted;
    result
}

fn in_flight(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    let requests = Requests::new(fd, row.count, row.size, SPAN)?;
    let kq = if row.what == What::KeventDepth {
        let kq = sys::kqueue().map_err(at("kqueue"))?;
        requests.notify(kq);
        kq
    } else {
        -1
    };
    let mut submitted = 0;
    let mut round = || {
        for index in 0..row.count {
            if row.what == What::WriteDepth {
                aio::write(requests.addr(index)).map_err(at("aio_write"))?;
            } else {
                requests.read(index)?;
            }
            submitted += 1;
        }
        if kq < 0 {
            return requests.collect(row.count);
        }
        let mut left = row.count;
        while left > 0 {
            left -= return_by_events(kq, left)?;
        }
        Ok(())
    };
    let rounds = (bench.ops(800) as usize).div_ceil(row.count);
    let mut result = round();
    for _ in 0..rounds {
        result = result.and_then(|()| bench.meter.time(row.count as u64, &mut round));
    }
    bench.submitted = submitted;
    result
}

/// Fills the process with requests that are done and not taken.
fn fill(row: &Row, bench: &mut Bench, requests: &Requests) -> Result<(), Failure> {
    for index in 0..row.count {
        requests.read(index)?;
        bench.submitted += 1;
    }
    requests.all_done()?;
    // The sync is one too.
    bench.submitted += 1;
    Ok(())
}

/// Asks about one of many.
fn ask(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    let requests = Requests::new(fd, row.count, row.size, SPAN)?;
    fill(row, bench, &requests)?;
    // The oldest and the newest ten, in turn: one alone would be a special case.
    let few = row.count.min(10);
    let usual = if row.count >= 10_000 { 100 } else { 600 };
    let ops = bench.ops(if row.what == What::SuspendAll { usual / 10 } else { usual });
    let mut all = [0; 1024];
    let all = &mut all[..row.count.min(1024)];
    all.iter_mut().enumerate().for_each(|(index, addr)| *addr = requests.addr(index));
    let round = |ops: u64| {
        for op in 0..ops as usize {
            let index = match row.what {
                What::ErrorOldest => op % few,
                _ => row.count - 1 - op % few,
            };
            match row.what {
                What::SuspendAll => suspend(all)?,
                What::SuspendOne => suspend(&[requests.addr(index)])?,
                _ => match aio::error(requests.addr(index)).map_err(at("aio_error"))? {
                    0 => {}
                    other => return Err(("aio_error", guest::Errno(other))),
                },
            }
        }
        Ok(())
    };
    round(ops / 10 + 1)?;
    bench.meter.time(ops, || round(ops))?;
    requests.collect(row.count)
}

/// Takes the results of many.
fn take(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    let requests = Requests::new(fd, row.count, row.size, SPAN)?;
    let count = row.count;
    let rounds = (bench.ops(300) as usize).div_ceil(count);
    // The first round is not measured.
    for round in 0..=rounds {
        fill(row, bench, &requests)?;
        let all = || {
            (0..count).try_for_each(|index| {
                let newest = row.what == What::ReturnNewest;
                requests.return_(if newest { count - 1 - index } else { index })
            })
        };
        if round == 0 {
            all()?;
        } else {
            bench.meter.time(count as u64, all)?;
        }
    }
    Ok(())
}

fn lists(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    const LIO_NOWAIT: i32 = 0;
    const LIO_WAIT: i32 = 1;
    const LIO_READ: i32 = 2;
    let requests = Requests::new(fd, row.count, row.size, SPAN)?;
    requests.opcode(LIO_READ);
    let wait = row.what == What::LioWait;
    let mode = if wait { LIO_WAIT } else { LIO_NOWAIT };
    let mut submitted = 0;
    let mut round = || {
        aio::listio(mode, requests.list(), row.count as i32, 0).map_err(at("lio_listio"))?;
        submitted += row.count as u64;
        if wait {
            (0..row.count).try_for_each(|index| requests.return_(index))
        } else {
            requests.collect(row.count)
        }
    };
    let rounds = (bench.ops(800) as usize).div_ceil(row.count);
    let mut result = round();
    for _ in 0..rounds {
        result = result.and_then(|()| bench.meter.time(row.count as u64, &mut round));
    }
    bench.submitted = submitted;
    result
}

/// Blocks far enough apart that reading ahead does not bring the next.
fn cold(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    const APART: usize = 128 * 1024;
    let size = sys::fstat(fd).map_err(at("fstat"))?.size as usize;
    let requests = Requests::new(fd, row.count, row.size, SPAN)?;
    let blocks = size / APART;
    let ops = (bench.ops(128) as usize).min(blocks) / row.count * row.count;
    let mut submitted = 0;
    let result = bench.meter.time(ops as u64, || {
        for first in (0..ops).step_by(row.count) {
            if row.what == What::ColdPread {
                let offset = (first * APART) as i64;
                sys::pread_at(fd, requests.buffer(0), row.size, offset).map_err(at("pread"))?;
                continue;
            }
            for index in 0..row.count {
                requests.move_to(index, ((first + index) * APART) as i64);
                requests.read(index)?;
                submitted += 1;
            }
            requests.collect(row.count)?;
        }
        Ok(())
    });
    bench.submitted = submitted;
    result
}

/// Reads of sockets, one of each pair.
fn sockets(row: &Row, bench: &mut Bench) -> Result<(), Failure> {
    const MOST: usize = 64;
    let mut ends = [(0, 0); MOST];
    let pairs = &mut ends[..row.count.min(MOST)];
    for pair in pairs.iter_mut() {
        *pair = sys::socketpair().map_err(at("socketpair"))?;
    }
    let bytes = [0x5a; 512];
    let pairs = &*pairs;
    let mut requests = [None; MOST];
    for (request, pair) in requests.iter_mut().zip(pairs) {
        *request = Some(Requests::new(pair.0, 1, row.size, 0)?);
    }
    let mut submitted = 0;
    let mut round = |rounds: u64| {
        for _ in 0..rounds {
            for parked in [row.what == What::SocketParked, row.what != What::SocketParked] {
                for (request, pair) in requests.iter().flatten().zip(pairs) {
                    if parked {
                        request.read(0)?;
                        submitted += 1;
                    } else {
                        sys::write(pair.1, &bytes[..row.size.min(512)]).map_err(at("write"))?;
                    }
                }
            }
            requests.iter().flatten().try_for_each(|request| request.suspend_and_return(0))?;
        }
        Ok(())
    };
    let rounds = bench.ops(320).div_ceil(row.count as u64);
    let ops = rounds * row.count as u64;
    let result = round(rounds / 10 + 1).and_then(|()| bench.meter.time(ops, || round(rounds)));
    bench.submitted = submitted;
    result
}

/// Words of the memory that threads and processes share: how many operations each is to do, how
/// many were done, how many failed; and from there on one descriptor.
const OPS: usize = 0;
const DONE: usize = 8;
const FAILED: usize = 16;
const FD: usize = 24;
const SIZE: usize = 32;

fn shared(row: &Row, ops: u64, fd: i32) -> Result<Region, Failure> {
    let shared = Region::map_shared(4096).map_err(at("mmap"))?;
    shared.set_word(OPS, ops);
    shared.set_word(FD, fd as u64);
    shared.set_word(SIZE, row.size as u64);
    Ok(shared)
}

fn threads(row: &Row, bench: &mut Bench, fd: i32) -> Result<(), Failure> {
    fn one(addr: usize) {
        use core::sync::atomic::Ordering::SeqCst;
        let shared = Region::shared_at(addr, 4096);
        let (fd, size) = (shared.word(FD) as i32, shared.word(SIZE) as usize);
        let work = || {
            let requests = Requests::new(fd, 1, size, SPAN)?;
            let result = (0..shared.word(OPS)).try_for_each(|_| {
                requests.read(0)?;
                shared.atomic(DONE).fetch_add(1, SeqCst);
                requests.suspend_and_return(0)
            });
            requests.unmap();
            result
        };
        if work().is_err() {
            shared.atomic(FAILED).fetch_add(1, SeqCst);
        }
    }
    let each = bench.ops(160);
    let shared = shared(row, each, fd)?;
    let round = || {
        let mut threads = [const { None }; 4];
        for slot in &mut threads {
            *slot = Some(thread::spawn(one, shared.addr()).map_err(at("thr_new"))?);
        }
        threads.into_iter().flatten().for_each(thread::Thread::join);
        match shared.word(FAILED) {
            0 => Ok(()),
            _ => Err(("thread", guest::errno::EIO)),
        }
    };
    let result = round().and_then(|()| bench.meter.time(each * 4, round));
    bench.submitted = shared.word(DONE);
    result
}

fn processes(row: &Row, bench: &mut Bench, fd: i32, count: usize) -> Result<(), Failure> {
    use core::sync::atomic::Ordering::SeqCst;
    let rounds = bench.ops(320).div_ceil(row.count as u64);
    let shared = shared(row, rounds, fd)?;
    let pipe = || sys::pipe().map_err(at("pipe"));
    let (go, ready, end) = (pipe()?, pipe()?, pipe()?);
    let child = || -> Result<(), Failure> {
        let requests = Requests::new(fd, row.count, row.size, SPAN)?;
        let mut byte = [0];
        // A round before the start, so that there are workers.
        for round in 0..=rounds {
            for index in 0..row.count {
                requests.read(index)?;
                shared.atomic(DONE).fetch_add(1, SeqCst);
            }
            requests.collect(row.count)?;
            if round == 0 {
                sys::write(ready.1, &byte).map_err(at("write"))?;
                sys::read(go.0, &mut byte).map_err(at("read"))?;
            }
        }
        sys::write(ready.1, &byte).map_err(at("write"))?;
        // Its end is not measured. Not the pipe from before: another may not have begun yet.
        sys::read(end.0, &mut byte).map_err(at("read"))?;
        Ok(())
    };
    const MOST: usize = 4;
    let mut pids = [0; MOST];
    let pids = &mut pids[..count.min(MOST)];
    for pid in pids.iter_mut() {
        match sys::fork().map_err(at("fork"))? {
            Fork::Child => sys::exit(i32::from(child().is_err())),
            Fork::Parent(new) => *pid = new,
        }
    }
    let all = || -> Result<(), Failure> {
        let mut byte = [0];
        for _ in 0..count {
            // A child that failed writes nothing.
            if sys::poll_in(ready.0, 60_000) != Ok(true) {
                return Err(("child", guest::errno::EIO));
            }
            sys::read(ready.0, &mut byte).map_err(at("read"))?;
        }
        Ok(())
    };
    let release = |(_, to)| sys::write(to, &[0; MOST][..count]).map_err(at("write"));
    let result = all().and_then(|()| {
        bench.meter.time(rounds * (count * row.count) as u64, || {
            release(go)?;
            all()
        })
    });
    let _ = release(end);
    for &mut pid in pids {
        if result.is_err() {
            let _ = sys::kill(pid, sys::SIGKILL);
        }
        sys::wait_for(pid);
    }
    bench.submitted = shared.word(DONE);
    result
}
