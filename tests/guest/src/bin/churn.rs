// SPDX-License-Identifier: BSD-2-Clause
//! What requests lean on goes away under them: kqueues, sockets and processes are replaced at random
//! by threads that know nothing of each other, and with `--settings` so are all limits and switches.
//!
//! `churn [--seconds 20] [--procs 4] [--threads 3] [--seed 1] [--disk DEVICE] [--settings] [--pipes]`
//! works in the current directory and overwrites the first 64 KiB of the disk. Descriptors have fixed
//! numbers, and dup2(2) closes what another thread uses. A process ends with requests in flight, by
//! exit, exec or SIGKILL. What the engine works out when it is asked is read meanwhile. Every setting
//! takes negative values, 0 and huge ones, and its own again in the end. With `--pipes`, for our engine,
//! half of the pairs are no sockets; `vfs.aio.enable_unsafe` stays as it is then, for a worker would
//! wait for a pipe for ever. It prints counts, and exits 1 when a read of the unchanging file was wrong, when an errno
//! came that the call does not have, or when two minutes brought nothing.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::ffi::{CStr, c_char};
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, Cb, Sigevent};
use guest::errno::{EAGAIN, EBADF, EINPROGRESS, EINTR, EINVAL, EOPNOTSUPP};
use guest::kqueue::{self, EV_CLEAR, EV_DELETE, EV_DISPATCH, EV_ONESHOT, EVFILT_AIO, Kevent};
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::out::Text;
use guest::path::Path;
use guest::rng::{Rng, mix};
use guest::signal::{self, SIGRTMIN, Set};
use guest::sys::{self, Ended, Fork, Timespec};
use guest::sysctl::{self, Maybe, served};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Errno, Result, println, thread};

const PROCS: usize = 16;
const THREADS: usize = 8;
/// Requests of a thread.
const SLOTS: usize = 16;
const BLOCK: usize = 4096;
/// A control block's page, then its buffer.
const SLOT: usize = 2 * BLOCK;
/// The unchanging file, in blocks.
const BLOCKS: u64 = 256;
const HANG_MS: u64 = 120_000;

/// Descriptors: kqueues, sockets in pairs, the unchanging file, one to write, the disk.
const KQUEUES: (i32, i32) = (40, 4);
const SOCKETS: (i32, i32) = (50, 8);
const DATA: i32 = 60;
const OWN: i32 = 61;
const DISK: i32 = 62;

/// All that may be set, of both engines; the first is [`UNSAFE`].
const SETTINGS: [&str; 16] = [
    "vfs.aio.enable_unsafe",
    "vfs.aio.unsafe_warningcnt",
    "vfs.aio.max_aio_procs",
    "vfs.aio.target_aio_procs",
    "vfs.aio.max_aio_queue",
    "vfs.aio.aiod_lifetime",
    "vfs.aio.max_aio_per_proc",
    "vfs.aio.max_aio_queue_per_proc",
    "vfs.aio.max_buf_aio",
    "vfs.aio.rs.inline",
    "vfs.aio.rs.park",
    "vfs.aio.rs.split",
    "vfs.aio.rs.flush",
    "vfs.aio.rs.lio_empty_kevent",
    "vfs.aio.rs.latency",
    "vfs.aio.rs.queue.peak",
];

const UNSAFE: usize = 0;

/// What the engine works out, or adds up, when it is asked.
const STATISTICS: [&str; 14] = [
    "vfs.aio.rs.processes",
    "vfs.aio.rs.served",
    "vfs.aio.rs.version",
    "vfs.aio.rs.num_procs",
    "vfs.aio.rs.queue.waiting",
    "vfs.aio.rs.queue.running",
    "vfs.aio.rs.queue.done",
    "vfs.aio.rs.queue.peak",
    "vfs.aio.rs.workers.idle",
    "vfs.aio.rs.workers.starting",
    "vfs.aio.rs.list.requests",
    "vfs.aio.rs.read.submitted",
    "vfs.aio.rs.read.queue_us",
    "vfs.aio.rs.socket_read.failed.canceled",
];

guest::program!(run);

// What all processes count together.
guest::counters! {
    Calls,
    Accepted,
    Refused,
    Collected,
    Checked,
    Events,
    Set,
    Read,
    Stop,
    Bad,
}

fn bad(args: fmt::Arguments<'_>) {
    Counter::Bad.add(1);
    println!("churn: BAD: pid {}: {}", sys::getpid(), Text::<300>::of(args).as_str());
}

fn run(args: Args) -> i32 {
    // What exec makes of a process: it has no requests, and may have one.
    if args.has(c"--brief") {
        let done = aio::waitcomplete(Some(Timespec::default()));
        return i32::from(done.cb != 0 || done.result != Err(EAGAIN));
    }
    supervise(args).unwrap_or_else(|error| {
        println!("churn: cannot go on: {error}");
        2
    })
}

fn word(block: u64, index: usize) -> u64 {
    mix(block << 32 | index as u64)
}

fn make_data() -> Result<()> {
    let fd = sys::open(c"data", sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC, 0o600)?;
    let mut bytes = [0u8; BLOCK];
    for block in 0..BLOCKS {
        for (index, to) in bytes.chunks_mut(8).enumerate() {
            to.copy_from_slice(&word(block, index).to_le_bytes());
        }
        sys::pwrite(fd, &bytes, (block as usize * BLOCK) as i64)?;
    }
    sys::close(fd)
}

fn supervise(args: Args) -> Result<i32> {
    let procs = args.number(c"--procs", 4).clamp(1, PROCS as u64) as usize;
    let threads = args.number(c"--threads", 3).clamp(1, THREADS as u64) as usize;
    let seed = args.number(c"--seed", 1);
    let limit = args.number(c"--seconds", 20) * 1000;
    COUNTERS.map()?;
    make_data()?;
    PIPES.store(usize::from(args.has(c"--pipes")), SeqCst);
    let (start, before) = (now(), served());
    let setter = match args.has(c"--settings") {
        true => Some(sys::fork()?),
        false => None,
    };
    let setter = match setter {
        Some(Fork::Child) => sys::exit(set_at_random(seed)),
        Some(Fork::Parent(pid)) => pid,
        None => 0,
    };
    let mut table = [0; PROCS];
    let (mut lives, mut last, mut moved) = (0u64, 0, now());
    loop {
        let stop = ms_since(start) > limit || Counter::Bad.get() > 0;
        if stop {
            Counter::Stop.put(1);
        }
        for (index, pid) in table[..procs].iter_mut().enumerate() {
            if *pid == 0 && !stop {
                lives += 1;
                let seed = mix(seed ^ mix((index as u64) << 32 | lives));
                let disk = args.value(c"--disk");
                *pid = match sys::fork()? {
                    Fork::Child => sys::exit(live(threads, index, seed, disk).unwrap_or(2)),
                    Fork::Parent(pid) => pid,
                };
            }
        }
        while let Ok(Some((pid, how))) = sys::wait(-1, sys::WNOHANG) {
            if let Some(place) = table.iter().position(|&one| one == pid) {
                table[place] = 0;
            }
            if !matches!(how, Ended::Exit(0) | Ended::Signal(sys::SIGKILL)) {
                bad(format_args!("pid {pid} ended with {how:?}"));
            }
            if pid == setter {
                moved = now();
            }
        }
        if stop && table.iter().all(|&pid| pid == 0) {
            break;
        }
        let count = Counter::Calls.get();
        if count != last {
            (last, moved) = (count, now());
        } else if ms_since(moved) > HANG_MS {
            bad(format_args!("nothing moved for {} s", HANG_MS / 1000));
            table.iter().filter(|&&pid| pid != 0).for_each(|pid| println!("churn: pid {pid}"));
            return Ok(1);
        }
        sleep_ms(5);
    }
    let _ = sys::unlink(c"data");
    let rise = before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
    println!(
        "churn: lives={lives} calls={} accepted={} refused={} collected={} checked={} events={} set={} read={} served={} bad={}",
        Counter::Calls.get(),
        Counter::Accepted.get(),
        Counter::Refused.get(),
        Counter::Collected.get(),
        Counter::Checked.get(),
        Counter::Events.get(),
        Counter::Set.get(),
        Counter::Read.get(),
        Maybe(rise),
        Counter::Bad.get(),
    );
    let good = Counter::Bad.get() == 0 && Counter::Checked.get() > 0;
    println!("churn: {}", if good { "ok" } else { "FAILED" });
    Ok(i32::from(!good))
}

/// Sets what can be set to anything, and back.
fn set_at_random(seed: u64) -> i32 {
    let mut rng = Rng::new(seed ^ 0x5e7);
    let mut own = [None; SETTINGS.len()];
    for (name, own) in SETTINGS.iter().zip(&mut own) {
        *own = sysctl::get(name).map(|value| value as u32 as i32);
    }
    let restore = || {
        for (name, own) in SETTINGS.iter().zip(own) {
            if let Some(value) = own
                && let Err(error) = sysctl::set(name, value)
            {
                bad(format_args!("{name} does not take its own value: {error}"));
            }
        }
    };
    while Counter::Stop.get() == 0 {
        let index = rng.below(SETTINGS.len() as u64) as usize;
        if index == UNSAFE && PIPES.load(SeqCst) != 0 {
            continue;
        }
        let values = [i32::MIN, -1, 0, 1, 2, i32::MAX, rng.next() as i32, own[index].unwrap_or(1)];
        // A limit below the least that makes sense may be refused.
        let _ = sysctl::set(SETTINGS[index], values[rng.below(values.len() as u64) as usize]);
        Counter::Set.add(1);
        sleep_ms(rng.below(4));
        if rng.one_in(20) {
            restore();
            sleep_ms(rng.below(40));
        }
    }
    restore();
    0
}

static MEMORY: AtomicUsize = AtomicUsize::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
static HAS_DISK: AtomicUsize = AtomicUsize::new(0);
/// Whether pairs may be pipes.
static PIPES: AtomicUsize = AtomicUsize::new(0);

/// For each slot: 0 free, 1 being dealt with, 2 in flight; and the block it reads, or !0.
static STATE: [AtomicU64; THREADS * SLOTS] = [const { AtomicU64::new(0) }; THREADS * SLOTS];
static READS: [AtomicU64; THREADS * SLOTS] = [const { AtomicU64::new(0) }; THREADS * SLOTS];

fn slot_memory(slot: usize) -> Region {
    Region::shared_at(MEMORY.load(SeqCst) + slot * SLOT, SLOT)
}

fn cb_of(slot: usize) -> Cb {
    Cb::at(&slot_memory(slot), 0)
}

/// Puts a new descriptor where an old one may be.
fn place(new: i32, at: i32) -> Result<()> {
    sys::dup2(new, at)?;
    sys::close(new)
}

fn new_kqueue(rng: &mut Rng) -> Result<()> {
    place(sys::kqueue()?, KQUEUES.0 + rng.below(KQUEUES.1 as u64) as i32)
}

fn new_pair(pair: i32, rng: &mut Rng) -> Result<()> {
    let (here, there) = match PIPES.load(SeqCst) != 0 && rng.one_in(2) {
        true => sys::pipe()?,
        false => net::pair(SOCK_STREAM)?,
    };
    sys::set_nonblocking(there)?;
    place(here, SOCKETS.0 + 2 * pair)?;
    place(there, SOCKETS.0 + 2 * pair + 1)
}

fn live(threads: usize, index: usize, seed: u64, disk: Option<&CStr>) -> Result<i32> {
    let mut rng = Rng::new(seed);
    MEMORY.store(Region::map(threads * SLOTS * SLOT)?.addr(), SeqCst);
    for kqueue in 0..KQUEUES.1 {
        place(sys::kqueue()?, KQUEUES.0 + kqueue)?;
    }
    for pair in 0..SOCKETS.1 / 2 {
        new_pair(pair, &mut rng)?;
    }
    place(sys::open(c"data", sys::O_RDONLY, 0)?, DATA)?;
    let own = Path::of(format_args!("own{index}"));
    place(sys::open(own.as_cstr(), sys::O_RDWR | sys::O_CREAT, 0o600)?, OWN)?;
    if let Some(disk) = disk {
        place(sys::open(disk, sys::O_RDWR, 0)?, DISK)?;
        HAS_DISK.store(1, SeqCst);
    }
    signal::block(Set::of(SIGRTMIN).with(sys::SIGPIPE))?;
    SEED.store(rng.next(), SeqCst);
    STEPS.store(100 + rng.below(1500), SeqCst);
    for thread in 1..threads {
        let _ = thread::spawn(work, thread)?;
    }
    work(0);
    match rng.below(4) {
        0 => sys::kill(sys::getpid(), sys::SIGKILL)?,
        1 => exec()?,
        _ => {}
    }
    Ok(0)
}

fn exec() -> Result<()> {
    let own = sys::own_path()?;
    let words: [*const c_char; 3] =
        [own.as_cstr().as_ptr(), c"--brief".as_ptr(), core::ptr::null()];
    sys::execve(own.as_cstr(), &words)
}

fn work(thread: usize) {
    let mut rng = Rng::new(mix(SEED.load(SeqCst) ^ thread as u64));
    for _ in 0..STEPS.load(SeqCst) {
        if Counter::Stop.get() != 0 {
            return;
        }
        Counter::Calls.add(1);
        let result = match rng.below(100) {
            0..36 => submit(thread, &mut rng),
            36..56 => collect(thread, &mut rng),
            56..66 => events(&mut rng),
            66..76 => cancel(thread, &mut rng),
            76..84 => new_kqueue(&mut rng),
            84..88 => new_pair(rng.below(SOCKETS.1 as u64 / 2) as i32, &mut rng),
            88..95 => move_bytes(&mut rng),
            // A setting may have filled the process table with workers.
            95..97 => match child(&mut rng) {
                Err(EAGAIN) => Ok(()),
                other => other,
            },
            97 => {
                let name = STATISTICS[rng.below(STATISTICS.len() as u64) as usize];
                // The built-in has none, and what is too long for the buffer is an error too.
                if sys::sysctlbyname(name, &mut [0; 512], &[]).is_ok() {
                    Counter::Read.add(1);
                }
                Ok(())
            }
            _ => {
                sleep_ms(1);
                Ok(())
            }
        };
        // Between the two steps of a replacement another thread may take the number away.
        if let Err(error) = result
            && error != EBADF
        {
            bad(format_args!("thread {thread}: {error}"));
        }
    }
}

fn socket(rng: &mut Rng) -> i32 {
    SOCKETS.0 + rng.below(SOCKETS.1 as u64) as i32
}

fn submit(thread: usize, rng: &mut Rng) -> Result<()> {
    let mut slots = thread * SLOTS..(thread + 1) * SLOTS;
    let free = |slot: &usize| STATE[*slot].compare_exchange(0, 1, SeqCst, SeqCst).is_ok();
    let Some(slot) = slots.find(free) else { return cancel(thread, rng) };
    let block = rng.below(BLOCKS);
    let mut reads = !0;
    let (fd, offset, write) = match rng.below(10) {
        0..4 => {
            reads = block;
            (DATA, block as i64 * BLOCK as i64, false)
        }
        4..6 => (OWN, (rng.below(16) as usize * BLOCK) as i64, rng.one_in(2)),
        6..7 if HAS_DISK.load(SeqCst) != 0 => {
            (DISK, (rng.below(16) as usize * BLOCK) as i64, rng.one_in(2))
        }
        _ => (socket(rng), 0, rng.one_in(4)),
    };
    let memory = slot_memory(slot);
    let mut request = aio::request(fd, offset, memory.at(BLOCK), BLOCK);
    let flags = [0, EV_ONESHOT, EV_CLEAR, EV_DISPATCH][rng.below(4) as usize];
    let kqueue = KQUEUES.0 + rng.below(KQUEUES.1 as u64) as i32;
    match rng.below(4) {
        0..2 => request.sigevent = Sigevent::kevent(kqueue, slot, flags),
        2 => request.sigevent = Sigevent::signal(SIGRTMIN, slot),
        _ => {}
    }
    let cb = cb_of(slot);
    cb.set(request);
    READS[slot].store(reads, SeqCst);
    STATE[slot].store(2, SeqCst);
    let sync = fd == OWN && rng.one_in(8);
    if sync {
        READS[slot].store(!0, SeqCst);
    }
    let submitted = match (sync, write) {
        (true, _) => aio::fsync(sys::O_SYNC, cb.addr()),
        (false, true) => aio::write(cb.addr()),
        (false, false) => aio::read(cb.addr()),
    };
    match submitted {
        Ok(()) => Counter::Accepted.add(1),
        Err(error) => {
            STATE[slot].store(0, SeqCst);
            Counter::Refused.add(1);
            if ![EAGAIN, EBADF, EINVAL, EOPNOTSUPP].contains(&error) {
                bad(format_args!("submit: {error}"));
            }
        }
    }
    Ok(())
}

/// Deals with a request that was collected.
fn collected(slot: usize, result: Result<i64>) {
    if STATE[slot].compare_exchange(2, 1, SeqCst, SeqCst).is_err() {
        return bad(format_args!("slot {slot} was collected, but was not in flight"));
    }
    Counter::Collected.add(1);
    let block = READS[slot].load(SeqCst);
    if block != !0 && result == Ok(BLOCK as i64) {
        Counter::Checked.add(1);
        let buffer = slot_memory(slot).part(BLOCK, BLOCK);
        let wrong = (0..BLOCK / 8).find(|&index| buffer.word(index * 8) != word(block, index));
        if let Some(index) = wrong {
            bad(format_args!("block {block}, word {index}: {:#x}", buffer.word(index * 8)));
        }
    }
    STATE[slot].store(0, SeqCst);
}

fn span(ms: u64) -> Option<Timespec> {
    Some(Timespec::from_ms(ms))
}

fn collect(thread: usize, rng: &mut Rng) -> Result<()> {
    if rng.one_in(2) {
        let done = aio::waitcomplete(span(rng.below(4)));
        if done.cb != 0 {
            collected((done.cb - MEMORY.load(SeqCst)) / SLOT, done.result);
        } else if !matches!(done.result, Err(EAGAIN | EINTR)) {
            bad(format_args!("aio_waitcomplete: {done:?}"));
        }
        return Ok(());
    }
    for slot in thread * SLOTS..(thread + 1) * SLOTS {
        let cb = cb_of(slot).addr();
        if STATE[slot].load(SeqCst) != 2 || aio::error(cb)? == EINPROGRESS.0 {
            continue;
        }
        // Another thread may have collected it meanwhile.
        match aio::return_(cb) {
            Err(EINVAL) => {}
            result => collected(slot, result),
        }
    }
    let mut list = [0; SLOTS];
    for (index, cb) in list.iter_mut().enumerate() {
        *cb = cb_of(thread * SLOTS + index).addr();
    }
    match aio::suspend(&list, span(rng.below(3))) {
        // The list may be longer than it may be now.
        Ok(()) | Err(EAGAIN | EINTR | EINVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

fn events(rng: &mut Rng) -> Result<()> {
    let kqueue = KQUEUES.0 + rng.below(KQUEUES.1 as u64) as i32;
    let mut found = [Kevent::default(); 8];
    let count = match kqueue::kevent(kqueue, &[], &mut found, span(rng.below(3))) {
        Err(EINTR) => return Ok(()),
        other => other?,
    };
    Counter::Events.add(count as u64);
    for event in &found[..count] {
        if event.filter != EVFILT_AIO {
            bad(format_args!("an event of another kind: {event:?}"));
        }
        if rng.one_in(3) {
            // It may be gone already, or be on another kqueue.
            let _ = kqueue::change(kqueue, event.ident, EVFILT_AIO, EV_DELETE);
        }
    }
    Ok(())
}

fn cancel(thread: usize, rng: &mut Rng) -> Result<()> {
    let fd = if rng.one_in(2) { socket(rng) } else { DATA + rng.below(2) as i32 };
    let slot = thread * SLOTS + rng.below(SLOTS as u64) as usize;
    let which = if rng.one_in(3) { 0 } else { cb_of(slot).addr() };
    match aio::cancel(fd, which)? {
        AIO_CANCELED..=AIO_ALLDONE => Ok(()),
        other => {
            bad(format_args!("aio_cancel gives {other}"));
            Ok(())
        }
    }
}

/// Has reads of a socket end, or writes.
fn move_bytes(rng: &mut Rng) -> Result<()> {
    let fd = SOCKETS.0 + 2 * rng.below(SOCKETS.1 as u64 / 2) as i32 + 1;
    let mut bytes = [0; 3000];
    let ended: Result<usize> = match rng.below(8) {
        0 => net::shutdown(fd, net::SHUT_RDWR).map(|()| 0),
        1..3 => sys::read(fd, &mut bytes),
        _ => sys::write(fd, &bytes),
    };
    // Full, empty, shut, or another socket meanwhile.
    match ended {
        Err(Errno(number)) if number == EBADF.0 => Err(EBADF),
        _ => Ok(()),
    }
}

/// A child: one with its parent's memory only, that ends or becomes another program; or one with
/// its parent's descriptors, that replaces some.
fn child(rng: &mut Rng) -> Result<()> {
    if rng.one_in(2) {
        let Some(pid) = sys::fork_with_descriptors_shared()? else {
            let _ = new_kqueue(rng).and_then(|()| new_pair(0, rng));
            sys::exit(0)
        };
        return reap(pid);
    }
    match sys::fork()? {
        Fork::Child => {
            if rng.one_in(2) {
                let _ = exec();
            }
            sys::exit(0)
        }
        Fork::Parent(pid) => reap(pid),
    }
}

fn reap(pid: i32) -> Result<()> {
    match sys::wait_for(pid) {
        Some(Ended::Exit(0)) => {}
        how => bad(format_args!("a child ended with {how:?}")),
    }
    Ok(())
}
