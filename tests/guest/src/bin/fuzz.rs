// SPDX-License-Identifier: BSD-2-Clause
//! Calls of asynchronous I/O with anything for arguments, by several threads at once: control
//! blocks and lists of random words, pointers that are right, null, unmapped, misaligned, the
//! kernel's, or taken away by another thread meanwhile, descriptors of every kind, notifications,
//! and an order that makes no sense.
//!
//! `fuzz [--calls 100000] [--threads 4] [--seed 1] [--old-lists] [--disk] [--park] [--beside]` works
//! in the current directory; with the last, others use AIO meanwhile. With `--park` requests on pipes
//! and FIFOs are accepted (`vfs.aio.rs.park`), else they are refused.
//! What each thread tries in which order depends on the seed only. It prints counts, and exits 1
//! when a call gave an errno that is not documented for it, when a request could not be collected
//! in the end, when an event was left of requests that were, when a count of the kernel is not
//! what it was, or when nothing moved for two minutes.
//!
//! A signal may be asked for, but none of those that end or stop a process: numbers that could
//! come to be one are kept out of all words. The lists of FreeBSD 6 are left to engines that
//! survive them: the built-in goes through a null pointer for a vectored operation. `--old-lists`
//! has them tried there too. A disk is among the descriptors with `--disk` only: with the built-in
//! a request of no pieces on a disk never ends, nor does its process.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, Aiocb, Cb, Sigevent};
use guest::errno::*;
use guest::kqueue::{self, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::{HOLE, PAGE, Region};
use guest::net;
use guest::oaio::{self, Oaiocb, Osigevent};
use guest::out::Text;
use guest::path::Path;
use guest::rng::{Rng, mix};
use guest::signal::{self, SIGRTMIN, Set};
use guest::sys::{self, Ended, Fork, Iovec, Timespec};
use guest::sysctl::{self, Maybe, Setting, served};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Errno, Result, println, thread};

const THREADS: usize = 16;
/// Nothing moving for so long is a hang.
const HANG_MS: u64 = 120_000;
/// With others at work: a request that has not ended for so long is not there.
const ALONE_MS: u64 = 2_000;

/// Control blocks, and the room each has: more than it needs, as some are used askew.
const BLOCKS: usize = 48;
const BLOCK: usize = 512;
const BUFFERS: usize = 256 << 10;
/// Lists of requests, of pieces, and notifications.
const LISTS: usize = 16;
const ENTRIES: usize = 32;
const PIECES: usize = 8;
const SIGS: usize = 16;
/// Memory that comes and goes.
const VICTIM: usize = 4 * PAGE;

/// Descriptors, from this number on.
const FIRST_FD: i32 = 100;
const FDS: usize = 32;
/// From this place on: pairs that the first places have none of.
const PAIRS: usize = 24;

guest::program!(run);

/// The calls, for the counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Read,
    Write,
    Readv,
    Writev,
    Fsync,
    Mlock,
    Listio,
    Error,
    Return,
    Suspend,
    Cancel,
    Waitcomplete,
    OldRead,
    OldWrite,
    OldListio,
    Kevent,
}

const CALLS: [Call; 16] = [
    Call::Read,
    Call::Write,
    Call::Readv,
    Call::Writev,
    Call::Fsync,
    Call::Mlock,
    Call::Listio,
    Call::Error,
    Call::Return,
    Call::Suspend,
    Call::Cancel,
    Call::Waitcomplete,
    Call::OldRead,
    Call::OldWrite,
    Call::OldListio,
    Call::Kevent,
];

/// Errnos that a request may end in, whatever it was on.
const OF_REQUESTS: &[Errno] = &[
    EFAULT,
    ECANCELED,
    EISDIR,
    EFBIG,
    ENOSPC,
    EPIPE,
    ENOMEM,
    EPERM,
    EIO,
    ENXIO,
    EINVAL,
    EBADF,
    ENOTCONN,
    EMSGSIZE,
    ENOBUFS,
    EOPNOTSUPP,
    ECONNRESET,
    EDESTADDRREQ,
    // A datagram came to nobody, and the sender was told.
    ECONNREFUSED,
];

impl Call {
    /// Errnos that are documented for the call.
    fn errnos(self) -> &'static [Errno] {
        match self {
            Self::Read
            | Self::Write
            | Self::Readv
            | Self::Writev
            | Self::Fsync
            | Self::OldRead
            | Self::OldWrite => &[EAGAIN, EFAULT, EINVAL, EBADF, EOPNOTSUPP, ENXIO, ENOMEM],
            Self::Mlock => &[EAGAIN, EFAULT, EINVAL, EBADF],
            Self::Listio | Self::OldListio => &[EAGAIN, EFAULT, EINVAL, EBADF, EIO, EINTR],
            Self::Error => &[],
            Self::Return => OF_REQUESTS,
            Self::Suspend => &[EAGAIN, EFAULT, EINVAL, EINTR],
            Self::Cancel => &[EBADF],
            Self::Waitcomplete => &[EAGAIN, EINTR],
            Self::Kevent => &[EBADF, EINTR, EINVAL, ENOENT, EPERM],
        }
    }

    fn allows(self, error: Errno) -> bool {
        // It gives the request's errno too.
        self.errnos().contains(&error) || self == Self::Waitcomplete && OF_REQUESTS.contains(&error)
    }
}

static GOOD: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];
static REFUSED: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];
static DONE: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);
static FORKS: AtomicU64 = AtomicU64::new(0);
static SEEDS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static TIDS: [AtomicI64; THREADS] = [const { AtomicI64::new(0) }; THREADS];
static OLD_LISTS: AtomicUsize = AtomicUsize::new(0);
/// Others use AIO meanwhile: counts of the kernel tell nothing.
static BESIDE: AtomicUsize = AtomicUsize::new(0);
/// How many FIFOs were made.
static FIFOS: AtomicU64 = AtomicU64::new(0);
static DISK: AtomicI32 = AtomicI32::new(-1);

fn bad(args: fmt::Arguments<'_>) {
    BAD.fetch_add(1, SeqCst);
    println!("fuzz: BAD: {}", Text::<300>::of(args).as_str());
}

/// Where everything is: parts of one mapping, with holes after those that a request may overrun.
static MEMORY: AtomicUsize = AtomicUsize::new(0);

const BLOCKS_AT: usize = PAGE;
const LISTS_AT: usize = BLOCKS_AT + BLOCKS * BLOCK;
const PIECES_AT: usize = LISTS_AT + LISTS * 512;
const SIGS_AT: usize = PIECES_AT + LISTS * 512;
const TIMES_AT: usize = SIGS_AT + SIGS * 256;
const OUT_AT: usize = TIMES_AT + PAGE;
const BUFFERS_AT: usize = (OUT_AT + 2 * PAGE).next_multiple_of(PAGE);
const VICTIM_AT: usize = BUFFERS_AT + BUFFERS + PAGE;
const ALL: usize = VICTIM_AT + VICTIM + PAGE;

fn memory() -> Region {
    Region::shared_at(MEMORY.load(SeqCst), ALL)
}

fn map_all() -> Result<()> {
    let all = Region::map(ALL)?;
    for hole in [0, BUFFERS_AT - PAGE, BUFFERS_AT + BUFFERS, VICTIM_AT + VICTIM] {
        // Taken, so that nothing else is ever put there.
        all.part(hole, PAGE).protect(0)?;
    }
    all.part(BUFFERS_AT, BUFFERS).fill(0x55);
    MEMORY.store(all.addr(), SeqCst);
    for (index, (sec, nsec)) in
        [(0, 0), (0, 1_000_000), (0, 5_000_000), (-1, 0), (0, -1), (0, 1_000_000_000), (3, 5)]
            .into_iter()
            .enumerate()
    {
        all.put(TIMES_AT + index * 64, Timespec { sec, nsec });
    }
    Ok(())
}

fn run(args: Args) -> i32 {
    let threads = args.number(c"--threads", 4).clamp(1, THREADS as u64) as usize;
    let calls = args.number(c"--calls", 100_000);
    let seed = args.number(c"--seed", 1);
    let old_lists = args.has(c"--old-lists") || served().is_some();
    OLD_LISTS.store(usize::from(old_lists), SeqCst);
    BESIDE.store(usize::from(args.has(c"--beside")), SeqCst);
    let park = args.has(c"--park");
    let _parked = match park.then(|| Setting::new("vfs.aio.rs.park", 1)).transpose() {
        Ok(parked) => parked,
        Err(error) => {
            println!("fuzz: cannot set vfs.aio.rs.park: {error}");
            return 2;
        }
    };
    println!("fuzz: seed={seed} calls={calls} threads={threads} old-lists={old_lists} park={park}");
    let disk = c"/dev/md32";
    let mdconfig = [c"/sbin/mdconfig", c"-a", c"-t", c"malloc", c"-s", c"1m", c"-u", c"32"];
    let has_disk = args.has(c"--disk") && sys::run_quietly(&mdconfig) == Ok(0);
    let before = gauges();
    let (start, served_before) = (now(), served());
    let outcome = match sys::fork() {
        Ok(Fork::Child) => {
            if has_disk {
                DISK.store(sys::open(disk, sys::O_RDWR, 0).unwrap_or(-1), SeqCst);
            }
            let outcome = child(threads, calls, seed);
            sys::exit(outcome.unwrap_or_else(|error| {
                println!("fuzz: cannot go on: {error}");
                2
            }))
        }
        Ok(Fork::Parent(pid)) => sys::wait_for(pid),
        Err(_) => None,
    };
    let mut good = outcome == Some(Ended::Exit(0));
    if !good {
        println!("fuzz: BAD: the process ended with {outcome:?}");
    }
    let after = if BESIDE.load(SeqCst) != 0 { before } else { settled(before) };
    if after != before {
        let show = |gauges: [Option<u64>; 4]| gauges.map(Maybe);
        let ([a, b, c, d], [e, f, g, h]) = (show(before), show(after));
        println!(
            "fuzz: BAD: requests, mapped, unmapped, open files: {a} {b} {c} {d} before and {e} {f} {g} {h} after"
        );
        good = false;
    }
    if has_disk {
        let _ = sys::run_quietly(&[c"/sbin/mdconfig", c"-d", c"-o", c"force", c"-u", c"32"]);
    }
    let rise = served_before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
    println!("fuzz: seed={seed} disk={has_disk} served={} ms={}", Maybe(rise), ms_since(start));
    println!("fuzz: {}", if good { "ok" } else { "FAILED" });
    i32::from(!good)
}

fn gauges() -> [Option<u64>; 4] {
    ["vfs.aio.num_queue_count", "vfs.aio.num_buf_aio", "vfs.aio.num_unmapped_aio", "kern.openfiles"]
        .map(sysctl::get)
}

/// The gauges when they are what they were, or after some seconds: files of a process that has
/// ended may be closed a little later.
fn settled(wanted: [Option<u64>; 4]) -> [Option<u64>; 4] {
    for _ in 0..100 {
        if gauges() == wanted {
            break;
        }
        sleep_ms(100);
    }
    gauges()
}

/// A FIFO of its own, with calls that wait.
fn fifo() -> Result<(i32, i32)> {
    let name = Path::of(format_args!("fuzz-fifo{}", FIFOS.fetch_add(1, SeqCst)));
    sys::mkfifo(name.as_cstr(), 0o600)?;
    let from = sys::open(name.as_cstr(), sys::O_RDONLY | sys::O_NONBLOCK, 0)?;
    let to = sys::open(name.as_cstr(), sys::O_WRONLY | sys::O_NONBLOCK, 0)?;
    sys::unlink(name.as_cstr())?;
    for fd in [from, to] {
        // fcntl(2), F_SETFL.
        sys::call(92, [fd as usize, 4, 0, 0, 0, 0])?;
    }
    Ok((from, to))
}

/// Puts both ends of a pair where they belong.
fn open_pair(place: usize) -> Result<i32> {
    let (one, two) = match (place - PAIRS) / 2 {
        0 => net::connected(net::SOCK_STREAM, 0)?,
        1 => net::udp_pair()?,
        2 => fifo()?,
        _ => net::pair(net::SOCK_SEQPACKET)?,
    };
    move_to(two, FIRST_FD + place as i32 + 1)?;
    move_to(one, FIRST_FD + place as i32)
}

/// Whether a place is filled together with the one before it.
fn is_second(place: usize) -> bool {
    if place < PAIRS { matches!(place % 12, 6 | 8) } else { place % 2 == 1 }
}

/// Kinds of descriptors, by place in the table.
fn open_one(place: usize) -> Result<i32> {
    if is_second(place) {
        return Ok(-1);
    }
    if place >= PAIRS {
        return open_pair(place);
    }
    let file = |flags| sys::open(c"fuzz-file", flags | sys::O_CREAT, 0o600);
    let kind = place % 12;
    let fd = match kind {
        0 | 1 => file(sys::O_RDWR)?,
        2 => file(sys::O_RDONLY)?,
        3 => file(if place < 12 { sys::O_WRONLY } else { sys::O_RDWR | sys::O_APPEND })?,
        4 if place < 12 => sys::open(c".", sys::O_RDONLY, 0)?,
        4 => file(sys::O_PATH)?,
        // The other end of a pair sits in the next place.
        5 | 7 => {
            let (one, two) = if kind == 5 { sys::socketpair()? } else { sys::pipe()? };
            move_to(two, FIRST_FD + place as i32 + 1)?;
            one
        }
        9 | 10 => sys::kqueue()?,
        _ if place < 12 => sys::open(c"/dev/null", sys::O_RDWR, 0)?,
        _ => match DISK.load(SeqCst) {
            -1 => sys::shm_anon()?,
            disk => sys::dup2(disk, FIRST_FD + FDS as i32)?,
        },
    };
    move_to(fd, FIRST_FD + place as i32)
}

/// Places of pipes and FIFOs.
const PIPES: [i32; 6] = [7, 8, 19, 20, 28, 29];

fn move_to(fd: i32, to: i32) -> Result<i32> {
    sys::dup2(fd, to)?;
    sys::close(fd)?;
    Ok(to)
}

fn child(threads: usize, calls: u64, seed: u64) -> Result<i32> {
    map_all()?;
    TARGET.store(calls, SeqCst);
    sys::set_soft_limit(sys::RLIMIT_MEMLOCK, 64 * PAGE as i64)?;
    sys::count_signals(sys::SIGALRM, 0)?;
    sys::signal(sys::SIGSYS, sys::SIG_IGN, 0)?;
    // All that can be held back is, but for the alarm that ends long waits.
    let others = (1..=signal::SIG_MAX).filter(|&signo| signo != sys::SIGALRM);
    signal::block(others.fold(Set::default(), Set::with))?;
    let fd = sys::open(c"fuzz-file", sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC, 0o600)?;
    for at in 0..64 {
        sys::pwrite(fd, &[0x55; 4096], at * 4096)?;
    }
    // Numbers that jobs have are seen in blocks: the low ones would be signals that end us.
    let cb = Cb::at(&memory(), BLOCKS_AT);
    for _ in 0..200 {
        cb.set(aio::request(fd, 0, memory().at(BUFFERS_AT), 16));
        aio::read(cb.addr())?;
        aio::waitcomplete(None).result?;
    }
    sys::close(fd)?;
    for place in 0..FDS {
        open_one(place)?;
    }
    let mut rng = Rng::new(seed);
    for seed in &SEEDS {
        seed.store(rng.next(), SeqCst);
    }
    let mut all = [const { None }; THREADS];
    for (index, thread) in all[..threads].iter_mut().enumerate() {
        *thread = Some(thread::spawn(worker, index)?);
    }
    let (mut last, mut moved, mut shown) = (0, now(), 0);
    while all[..threads].iter().flatten().any(|thread| !thread.ended()) {
        sleep_ms(20);
        // Whoever waits for what may never come waits no longer.
        for thread in all[..threads].iter().flatten().filter(|thread| !thread.ended()) {
            let _ = sys::thr_kill(thread.tid(), sys::SIGALRM);
        }
        let done = DONE.load(SeqCst);
        if done != last {
            (last, moved) = (done, now());
        } else if ms_since(moved) > HANG_MS {
            bad(format_args!("nothing moved for {} s, after {done} calls", HANG_MS / 1000));
            return Ok(1);
        }
        if done * 10 / calls.max(1) > shown {
            shown = done * 10 / calls.max(1);
            println!("fuzz: {done} of {calls} calls");
        }
    }
    all.into_iter().flatten().for_each(thread::Thread::join);
    let left = clean_up()?;
    for (index, call) in CALLS.into_iter().enumerate() {
        println!(
            "fuzz: {call:?} good={} refused={}",
            GOOD[index].load(SeqCst),
            REFUSED[index].load(SeqCst)
        );
    }
    println!(
        "fuzz: calls={} left={left} forks={} bad={}",
        DONE.load(SeqCst),
        FORKS.load(SeqCst),
        BAD.load(SeqCst)
    );
    Ok(i32::from(BAD.load(SeqCst) > 0))
}

/// Ends and collects all requests, and looks at the kqueues; how many requests were left.
fn clean_up() -> Result<u64> {
    let (start, mut last, mut left) = (now(), now(), 0);
    loop {
        for place in 0..FDS as i32 {
            let _ = aio::cancel(FIRST_FD + place, 0);
            move_data(FIRST_FD + place);
        }
        let done = aio::waitcomplete(Some(Timespec::from_ms(50)));
        match (done.cb, done.result) {
            (0, Err(EAGAIN)) => {}
            (0, Err(EINTR)) => continue,
            (0, other) => {
                bad(format_args!("aio_waitcomplete in the end: {other:?}"));
                break;
            }
            _ => {
                left += 1;
                last = now();
                continue;
            }
        }
        // None is done; is there any?
        let none = match BESIDE.load(SeqCst) {
            0 => sysctl::get("vfs.aio.num_queue_count") == Some(0),
            _ => ms_since(last) > ALONE_MS,
        };
        if none {
            break;
        }
        if ms_since(start) > HANG_MS / 4 {
            let count = sysctl::get("vfs.aio.num_queue_count");
            bad(format_args!("{} requests cannot be collected", Maybe(count)));
            for fd in 0..FIRST_FD + FDS as i32 + 1 {
                match aio::cancel(fd, 0) {
                    Err(EBADF) | Ok(aio::AIO_ALLDONE) => {}
                    other => println!("fuzz: aio_cancel of descriptor {fd}: {other:?}"),
                }
            }
            break;
        }
    }
    for place in 0..FDS as i32 {
        let mut events = [Kevent::default(); 8];
        let got = kqueue::kevent(FIRST_FD + place, &[], &mut events, Some(Timespec::default()));
        for event in &events[..got.unwrap_or(0)] {
            bad(format_args!("an event is left of what was collected: {event:?}"));
        }
    }
    Ok(left)
}

/// Takes what is there to read from a socket or gives it something.
fn move_data(fd: i32) {
    let mut bytes = [0x55u8; 4096];
    while matches!(sys::receive(fd, &mut bytes), Ok(1..)) {}
    let _ = sys::send(fd, &[0x55; 64]);
}

fn worker(index: usize) {
    TIDS[index].store(sys::thr_self().unwrap_or(0), SeqCst);
    let mut hand = Hand { rng: Rng::new(SEEDS[index].load(SeqCst)), index };
    while DONE.fetch_add(1, SeqCst) < TARGET.load(SeqCst) {
        hand.move_once();
    }
}

/// What one thread does.
struct Hand {
    rng: Rng,
    index: usize,
}

impl Hand {
    fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.rng.below(N as u64) as usize]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.one_in(n)
    }

    /// An address that is wrong in one way or another.
    fn wrong(&mut self) -> usize {
        self.pick([
            0,
            8,
            HOLE,
            memory().at(BUFFERS_AT + BUFFERS),
            memory().at(BUFFERS_AT - PAGE),
            usize::MAX - 7,
            usize::MAX / 2 + 1,
            // The middle of where the kernel is.
            usize::MAX - (usize::MAX >> 9),
        ])
    }

    /// The address of a control block.
    fn block(&mut self) -> usize {
        let slot = self.rng.below(BLOCKS as u64) as usize;
        let good = memory().at(BLOCKS_AT + slot * BLOCK);
        match self.rng.below(40) {
            0 => self.wrong(),
            1 => good + self.pick([1, 2, 4, 8]),
            2 | 3 => self.victim(size_of::<Aiocb>()),
            4 => memory().at(LISTS_AT + 512 * self.rng.below(LISTS as u64) as usize),
            5 => memory().at(SIGS_AT + 256 * self.rng.below(SIGS as u64) as usize),
            _ => good,
        }
    }

    /// An address in the memory that comes and goes, sometimes over its end.
    fn victim(&mut self, len: usize) -> usize {
        let at = self.rng.below(VICTIM as u64) as usize / 64 * 64;
        let at = if self.one_in(4) { VICTIM - len / 2 / 8 * 8 } else { at };
        memory().at(VICTIM_AT + at)
    }

    fn buffer(&mut self) -> (usize, usize) {
        let len = match self.rng.below(30) {
            0 => self.pick([usize::MAX, aio::IOSIZE_MAX, aio::IOSIZE_MAX + 1, usize::MAX / 2]),
            1 => 64 << 10,
            2..6 => 0,
            _ => self.pick([1, 100, 511, 512, 4096, 8192]),
        };
        let addr = match self.rng.below(12) {
            0 => self.wrong(),
            1 | 2 => self.victim(4096),
            _ => memory().at(BUFFERS_AT + self.rng.below(BUFFERS as u64) as usize / 8 * 8),
        };
        (addr, len)
    }

    fn fd(&mut self) -> i32 {
        match self.rng.below(24) {
            0 => self.pick([-1, i32::MAX, i32::MIN, 5000, FIRST_FD - 1]),
            // Files, mostly.
            1..12 => FIRST_FD + self.pick([0, 1, 2, 12, 13]),
            12..15 => FIRST_FD + self.pick([5, 6]),
            15..18 => FIRST_FD + self.pick(PIPES),
            _ => FIRST_FD + self.rng.below(FDS as u64) as i32,
        }
    }

    fn kqueue(&mut self) -> i32 {
        if self.one_in(10) { self.fd() } else { FIRST_FD + self.pick([9, 10, 21, 22]) }
    }

    fn sigevent(&mut self) -> Sigevent {
        let value = self.rng.next() as usize | 0x5500_0000;
        let signo = match self.rng.below(12) {
            0 => self.pick([0, -1, 129, i32::MAX, i32::MIN]),
            _ => SIGRTMIN + self.rng.below(6) as i32,
        };
        match self.rng.below(20) {
            0..8 => Sigevent::default(),
            8..11 => Sigevent::signal(signo, value),
            11..13 => {
                let other = self.rng.below(THREADS as u64) as usize;
                let tid = match self.rng.below(3) {
                    0 => TIDS[other].load(SeqCst),
                    1 => TIDS[self.index].load(SeqCst),
                    _ => self.pick([0, -1, 1, i64::from(i32::MAX)]),
                };
                Sigevent::thread(signo, value, tid)
            }
            13..18 => {
                use guest::kqueue::{EV_CLEAR, EV_DISPATCH, EV_ONESHOT};
                let flags = match self.rng.below(8) {
                    0 => self.rng.next() as u16,
                    1 => EV_CLEAR | EV_DISPATCH,
                    _ => self.pick([0, EV_ONESHOT, EV_CLEAR, EV_DISPATCH]),
                };
                Sigevent::kevent(self.kqueue(), value, flags)
            }
            _ => {
                let notify = self.pick([2, 5, -1, i32::MAX]);
                Sigevent { notify, ..Sigevent::signal(signo, value) }
            }
        }
    }

    fn opcode(&mut self) -> i32 {
        match self.rng.below(12) {
            0 => self.pick([3, 4, 7, 8, 0x18, 0x20, -1, i32::MAX, i32::MIN]),
            _ => self.pick([0, 1, 2, 5, 6]),
        }
    }

    fn offset(&mut self) -> i64 {
        match self.rng.below(16) {
            0 => self.pick([-1, i64::MIN, i64::MAX, i64::MAX - 4096, 1 << 40]),
            _ => self.rng.below(256) as i64 * 512,
        }
    }

    /// A list of pieces.
    fn pieces(&mut self) -> (usize, usize) {
        let slot = self.rng.below(LISTS as u64) as usize;
        for piece in 0..PIECES {
            if self.one_in(2) {
                let (base, len) = self.buffer();
                let at = PIECES_AT + slot * 512 + piece * size_of::<Iovec>();
                memory().put(at, Iovec { base, len });
            }
        }
        let count = match self.rng.below(20) {
            0 => self.pick([1024, 1025, usize::MAX, usize::MAX / 2]),
            _ => self.rng.below(PIECES as u64 + 1) as usize,
        };
        let addr = memory().at(PIECES_AT + slot * 512);
        (if self.one_in(30) { self.wrong() } else { addr }, count)
    }

    /// Fills in a block, old or new, all of it or a part, whether it is in use or not.
    fn fill(&mut self, old: bool) {
        let slot = self.rng.below(BLOCKS as u64) as usize;
        let at = BLOCKS_AT + slot * BLOCK;
        let opcode = self.opcode();
        let vectored = opcode & 4 != 0 || self.one_in(5);
        let (buf, nbytes) = if vectored { self.pieces() } else { self.buffer() };
        let (fildes, offset) = (self.fd(), self.offset());
        let sigevent = self.sigevent();
        if old {
            let Sigevent { notify, signo, value, .. } = sigevent;
            let sigevent = Osigevent { notify, signo, value };
            let block =
                Oaiocb { fildes, offset, buf, nbytes, sigevent, opcode, ..Oaiocb::default() };
            return memory().put(at, block);
        }
        let cb = Cb::at(&memory(), at);
        if self.one_in(4) {
            let mut block = cb.get();
            match self.rng.below(5) {
                0 => block.fildes = fildes,
                1 => block.offset = offset,
                2 => (block.buf, block.nbytes) = (buf, nbytes),
                3 => block.opcode = opcode,
                _ => block.sigevent = sigevent,
            }
            cb.set(block);
        } else {
            let mut block = aio::request(fildes, offset, buf, nbytes);
            (block.opcode, block.sigevent) = (opcode, sigevent);
            cb.set(block);
        }
    }

    /// A list of requests and how long it is said to be.
    fn list(&mut self) -> (usize, i32) {
        let slot = self.rng.below(LISTS as u64) as usize;
        let used = self.rng.below(ENTRIES as u64 / 2) as usize;
        for entry in 0..used {
            let block = if self.one_in(8) { 0 } else { self.block() };
            memory().put(LISTS_AT + slot * 512 + entry * size_of::<usize>(), block);
        }
        let count = match self.rng.below(20) {
            0 => self.pick([-1, 257, i32::MAX, i32::MIN, 256]),
            _ => self.rng.below(used as u64 + 1) as i32,
        };
        let addr = match self.rng.below(20) {
            0 => self.wrong(),
            1 => self.victim(256),
            _ => memory().at(LISTS_AT + slot * 512),
        };
        (addr, count)
    }

    fn sigevent_at(&mut self, old: bool) -> usize {
        let at = SIGS_AT + 256 * self.rng.below(SIGS as u64) as usize;
        let sig = self.sigevent();
        if old {
            let Sigevent { notify, signo, value, .. } = sig;
            memory().put(at, Osigevent { notify, signo, value });
        } else {
            memory().put(at, sig);
        }
        match self.rng.below(12) {
            0 => self.wrong(),
            1..4 => 0,
            _ => memory().at(at),
        }
    }

    fn time(&mut self) -> usize {
        match self.rng.below(16) {
            0 => self.wrong(),
            1 => 0,
            _ => memory().at(TIMES_AT + 64 * self.rng.below(7) as usize),
        }
    }

    fn count<T>(&self, call: Call, result: Result<T>) {
        match result {
            Ok(_) => GOOD[call as usize].fetch_add(1, SeqCst),
            Err(error) => {
                if !call.allows(error) {
                    bad(format_args!("{call:?} gives {error}"));
                }
                REFUSED[call as usize].fetch_add(1, SeqCst)
            }
        };
    }

    fn move_once(&mut self) {
        match self.rng.below(200) {
            0..40 => self.submit(),
            40..70 => self.submit_list(),
            70..74 => self.old(),
            74..100 => {
                let block = self.block();
                let answer = aio::error(block);
                self.count(Call::Error, answer);
            }
            100..125 => {
                let block = self.block();
                let answer = aio::return_(block);
                self.count(Call::Return, answer);
            }
            125..135 => {
                let ((list, count), time) = (self.list(), self.time());
                let answer = aio::suspend_raw(list, count, time);
                self.count(Call::Suspend, answer);
            }
            135..150 => self.cancel(),
            150..182 => self.wait_any(),
            182..190 => self.events(),
            190..193 => self.come_and_go(),
            193 | 194 => {
                move_data(FIRST_FD + self.pick([5, 6, 17, 18, 24, 25, 26, 27, 30, 31]));
            }
            195 => self.move_through_pipe(),
            196..198 => self.reopen(),
            198 => {
                let set = (0..6).fold(Set::default(), |set, signo| set.with(SIGRTMIN + signo));
                while signal::wait(set, Timespec::default()).is_ok() {}
            }
            _ if self.one_in(20) => self.fork(),
            _ => sys::sched_yield(),
        }
    }

    /// Takes what is there to read from a pipe, or gives it something. The alarm ends what waits.
    fn move_through_pipe(&mut self) {
        let fd = FIRST_FD + self.pick(PIPES);
        let mut bytes = [0x55u8; 4096];
        if sys::poll_in(fd, 0) == Ok(true) {
            let _ = sys::read(fd, &mut bytes);
        } else {
            let _ = sys::write(fd, &bytes[..64]);
        }
    }

    fn submit(&mut self) {
        if !self.one_in(6) {
            self.fill(false);
        }
        let block = self.block();
        let (call, result) = match self.rng.below(24) {
            0..6 => (Call::Read, aio::read(block)),
            6..11 => (Call::Write, aio::write(block)),
            11..15 => (Call::Readv, aio::readv(block)),
            15..19 => (Call::Writev, aio::writev(block)),
            19..22 => {
                let op = self.pick([sys::O_SYNC, 0x0100_0000, 0, -1, sys::O_RDWR]);
                (Call::Fsync, aio::fsync(op, block))
            }
            _ => (Call::Mlock, aio::mlock(block)),
        };
        self.count(call, result);
    }

    fn submit_list(&mut self) {
        for _ in 0..self.rng.below(6) {
            self.fill(false);
        }
        let (list, count) = self.list();
        let sig = self.sigevent_at(false);
        let mode = if self.one_in(30) { self.pick([2, -1]) } else { self.pick([0, 0, 1]) };
        let result = aio::listio(mode, list, count, sig);
        self.count(Call::Listio, result);
    }

    fn old(&mut self) {
        self.fill(true);
        let block = self.block();
        match self.rng.below(3) {
            0 => self.count(Call::OldRead, oaio::read(block)),
            1 => self.count(Call::OldWrite, oaio::write(block)),
            _ if OLD_LISTS.load(SeqCst) != 0 => {
                let (list, count) = self.list();
                let sig = self.sigevent_at(true);
                let mode = self.pick([0, 0, 1, 2]);
                let result = oaio::listio(mode, list, count, sig);
                self.count(Call::OldListio, result);
            }
            _ => {}
        }
    }

    fn cancel(&mut self) {
        let fd = self.fd();
        let block = if self.one_in(4) { 0 } else { self.block() };
        let result = aio::cancel(fd, block);
        if let Ok(answer) = result
            && !(aio::AIO_CANCELED..=aio::AIO_ALLDONE).contains(&answer)
        {
            bad(format_args!("aio_cancel answers {answer}"));
        }
        self.count(Call::Cancel, result);
    }

    fn wait_any(&mut self) {
        let slot = memory().at(OUT_AT + self.index * 64);
        let at = match self.rng.below(20) {
            0 => self.wrong(),
            1 => self.victim(8),
            _ => slot,
        };
        let result = aio::waitcomplete_raw(at, self.time());
        self.count(Call::Waitcomplete, result);
    }

    fn events(&mut self) {
        use guest::kqueue::{EV_ADD, EV_DELETE, EV_DISABLE, EV_ENABLE};
        let kq = self.kqueue();
        if self.one_in(2) {
            let change = Kevent {
                ident: if self.one_in(4) { self.list().0 } else { self.block() },
                filter: self.pick([EVFILT_AIO, EVFILT_LIO]),
                flags: self.pick([EV_ADD, EV_DELETE, EV_DISABLE, EV_ENABLE, EV_ADD | 0x2010]),
                data: self.rng.next() as i64,
                udata: 0x5555,
                ..Kevent::default()
            };
            let result = kqueue::kevent(kq, &[change], &mut [], None);
            self.count(Call::Kevent, result);
        }
        let mut events = [Kevent::default(); 8];
        let result = kqueue::kevent(kq, &[], &mut events, Some(Timespec::default()));
        if let Ok(got) = result {
            for event in &events[..got] {
                if event.filter != EVFILT_AIO && event.filter != EVFILT_LIO {
                    bad(format_args!("an event of nobody: {event:?}"));
                }
            }
        }
        self.count(Call::Kevent, result);
    }

    /// Takes pages away, brings them back, or makes them read-only.
    fn come_and_go(&mut self) {
        let page = self.rng.below(4) as usize * PAGE;
        let page = memory().part(VICTIM_AT + page, PAGE);
        let _ = match self.rng.below(4) {
            0 => page.unmap(),
            1 => page.protect(sys::PROT_READ),
            _ => sys::mmap_over(page.addr(), PAGE, sys::PROT_READ | sys::PROT_WRITE),
        };
    }

    /// Closes a descriptor, whoever uses it, and opens one of its kind in its place.
    fn reopen(&mut self) {
        let place = self.rng.below(FDS as u64) as usize;
        if is_second(place) {
            return;
        }
        let _ = sys::close(FIRST_FD + place as i32);
        if self.one_in(2) {
            sys::sched_yield();
        }
        // An alarm would leave a part of it.
        let alarm = Set::of(sys::SIGALRM);
        let opened = signal::block(alarm).and_then(|()| open_one(place));
        let _ = signal::unblock(alarm);
        if let Err(error) = opened
            && error != EBADF
        {
            bad(format_args!("open descriptor {place}: {error}"));
        }
        if self.one_in(3) {
            let fd = sys::open(c"fuzz-file", sys::O_WRONLY, 0);
            if let Ok(fd) = fd {
                let _ = sys::ftruncate(fd, 1 << 18);
                let _ = sys::close(fd);
            }
        }
    }

    /// A child with a share of its own, that ends with requests in flight.
    fn fork(&mut self) {
        FORKS.fetch_add(1, SeqCst);
        let seed = mix(self.rng.next());
        match sys::fork() {
            Ok(Fork::Child) => {
                BAD.store(0, SeqCst);
                let mut hand = Hand { rng: Rng::new(seed), index: self.index };
                for _ in 0..30 {
                    match hand.rng.below(3) {
                        0 => hand.submit_list_at_once(),
                        1 => hand.submit(),
                        _ => hand.cancel(),
                    }
                }
                sys::exit(i32::from(BAD.load(SeqCst) > 0))
            }
            Ok(Fork::Parent(pid)) => match sys::wait_for(pid) {
                Some(Ended::Exit(0)) => {}
                other => bad(format_args!("a child ended with {other:?}")),
            },
            Err(error) => bad(format_args!("fork: {error}")),
        }
    }

    /// A list that nobody waits for: a child has no one that ends its waits.
    fn submit_list_at_once(&mut self) {
        self.fill(false);
        let ((list, count), sig) = (self.list(), self.sigevent_at(false));
        let result = aio::listio(aio::LIO_NOWAIT, list, count, sig);
        self.count(Call::Listio, result);
    }
}
