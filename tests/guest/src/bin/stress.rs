// SPDX-License-Identifier: BSD-2-Clause
//! Many processes of several threads that submit, wait, cancel, fork, become another program, end
//! with requests in flight and are killed, all at once; what is read is checked.
//!
//! `stress [--procs 8] [--threads 4] [--requests 100000] [--seed 1] [--life 900]
//! [--disk DEVICE] [--beside]` works in the current directory, and with `--disk` on a device too, whose
//! contents are lost and which may fail; with `--beside` the kernel's counts are not looked at, as
//! others use AIO too. What each thread of each process tries in which order depends on the seed only;
//! what happens meanwhile does not. It prints counts, and exits 1 when data was wrong, a request
//! was lost or ended in an error that it had no cause for, or nothing moved for two minutes.
//!
//! A process lives for a generation: some hundreds of requests (`--life` says how many), then it ends in one of the ways
//! of [`End`], and the supervisor starts the next. Reads are of a file that never changes, or of
//! blocks of the process's own file, or its own part of the device, whose contents it knows. What a dead process had in flight
//! must not show in the file of its successor, nor in its memory.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::ffi::{CStr, c_char};
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, Cb};
use guest::errno::{EAGAIN, EBADF, ECANCELED, EFAULT, EINPROGRESS, EINTR, EINVAL, EIO};
use guest::mem::{HOLE, Region};
use guest::out::Text;
use guest::path::Path;
use guest::rng::{Rng, mix};
use guest::sys::{self, Ended, Fork, Iovec, Timespec};
use guest::sysctl::{Maybe, served};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Result, eprintln, println, sysctl, thread};

/// The most threads of a process.
const THREADS: usize = 8;
/// Requests that a thread may have in flight.
const SLOTS: usize = 24;
/// The longest request.
const LONGEST: usize = 64 << 10;
/// The unchanging file.
const DATA: u64 = 4 << 20;
/// Blocks of its own file that a thread has to itself.
const BLOCKS: usize = 64;
const BLOCK: usize = 4096;
/// Nothing moving for so long is a hang.
const HANG_MS: u64 = 120_000;
/// The most processes.
const PROCS: usize = 64;

guest::program!(run);

// Counters that all processes share, in a file so that they outlive an exec.
guest::counters! {
    Accepted,
    Completed,
    Canceled,
    Faulted,
    Refused,
    Again,
    Forks,
    Execs,
    Bad,
    Stop,
    Seed,
}

/// Where the words of each process's requests of this generation begin, after those.
const PER_PROC: usize = 128;

/// Requests that a process made in its generation.
fn made(proc: usize) -> u64 {
    COUNTERS.get(PER_PROC + proc)
}

/// Reports something that must not happen.
fn bad(args: fmt::Arguments<'_>) {
    Counter::Bad.add(1);
    println!("stress: BAD: pid {}: {}", sys::getpid(), Text::<300>::of(args).as_str());
}

/// How a generation ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All is collected and looked at.
    Drain,
    /// exit with requests in flight and threads waiting.
    Exit,
    /// The same, and another program takes its place, which does one more generation.
    Exec,
    /// The supervisor kills it.
    Killed,
}

/// What a process is to do in a generation; it follows from the seed.
struct Generation {
    rng: Rng,
    budget: u64,
    end: End,
    /// All threads collect with aio_waitcomplete, instead of each its own with aio_return.
    any: bool,
}

impl Generation {
    fn new(seed: u64, proc: usize, number: u64, life: u64) -> Self {
        let mut rng = Rng::new(mix(seed ^ mix((proc as u64) << 32 | number)));
        let budget = life / 6 + rng.below(life);
        let end = match rng.below(8) {
            0..3 => End::Drain,
            3..5 => End::Exit,
            5..6 => End::Exec,
            _ => End::Killed,
        };
        Self { budget, end, any: rng.one_in(3), rng }
    }
}

fn run(args: Args) -> i32 {
    let outcome = if args.has(c"--again") { again(args) } else { supervise(args) };
    outcome.unwrap_or_else(|error| {
        println!("stress: cannot go on: {error}");
        2
    })
}

/// The byte of the unchanging file at an offset.
fn data_word(offset: u64) -> u64 {
    mix(offset / 8)
}

fn make_data() -> Result<()> {
    let fd = sys::open(c"data", sys::O_WRONLY | sys::O_CREAT | sys::O_TRUNC, 0o600)?;
    let mut bytes = [0u8; 4096];
    for start in (0..DATA).step_by(bytes.len()) {
        for (index, word) in bytes.chunks_mut(8).enumerate() {
            word.copy_from_slice(&data_word(start + index as u64 * 8).to_le_bytes());
        }
        sys::pwrite(fd, &bytes, start as i64)?;
    }
    sys::close(fd)
}

#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    number: u64,
    kill_at: Option<u64>,
}

fn supervise(args: Args) -> Result<i32> {
    let procs = args.number(c"--procs", 8).clamp(1, PROCS as u64) as usize;
    let threads = args.number(c"--threads", 4).clamp(1, THREADS as u64) as usize;
    let target = args.number(c"--requests", 100_000);
    let seed = args.number(c"--seed", 1);
    let disk = args.value(c"--disk");
    let life = args.number(c"--life", 900).max(1);
    COUNTERS.map_file(c"counters", sys::O_CREAT | sys::O_TRUNC)?;
    make_data()?;
    Counter::Seed.put(seed);
    println!("stress: seed={seed} procs={procs} threads={threads} requests={target}");
    let (queued, served_before, start) = (sysctl::get("vfs.aio.num_queue_count"), served(), now());
    let mut table: [Option<Process>; PROCS] = [None; PROCS];
    let mut next = [0u64; PROCS];
    let (mut generations, mut killed, mut ended) = (0u64, 0u64, 0u64);
    let (mut last, mut moved, mut shown) = (0, now(), 0);
    loop {
        let stop = Counter::Accepted.get() >= target || Counter::Bad.get() > 0;
        Counter::Stop.put(u64::from(stop));
        for proc in 0..procs {
            match table[proc] {
                None if !stop => {
                    let number = next[proc];
                    next[proc] += 1;
                    generations += 1;
                    table[proc] = Some(start_one(proc, threads, number, seed, life, disk)?);
                }
                Some(Process { pid, kill_at: Some(at), .. }) if made(proc) >= at || stop => {
                    let _ = sys::kill(pid, sys::SIGKILL);
                }
                _ => {}
            }
        }
        while let Ok(Some((pid, how))) = sys::wait(-1, sys::WNOHANG) {
            let of = |entry: &Option<Process>| entry.is_some_and(|process| process.pid == pid);
            let Some(proc) = table.iter().position(of) else { continue };
            let process = table[proc].take();
            match how {
                Ended::Exit(0) => ended += 1,
                Ended::Signal(sys::SIGKILL)
                    if process.is_some_and(|process| process.kill_at.is_some()) =>
                {
                    killed += 1
                }
                other => {
                    let number = process.map_or(0, |process| process.number);
                    bad(format_args!("process {proc} of generation {number} ended with {other:?}"));
                }
            }
        }
        if stop && table.iter().all(Option::is_none) {
            break;
        }
        // An ended process moves things too.
        let count = Counter::Accepted.get() + ended + killed;
        if count != last {
            (last, moved) = (count, now());
        } else if ms_since(moved) > HANG_MS {
            println!("stress: BAD: nothing moved for {} s", HANG_MS / 1000);
            table.iter().flatten().for_each(|process| {
                println!(
                    "stress: still there: pid {} of generation {}",
                    process.pid, process.number
                );
                let _ = sys::kill(process.pid, sys::SIGKILL);
            });
            return Ok(1);
        }
        let tenths = Counter::Accepted.get() * 10 / target.max(1);
        if tenths > shown {
            shown = tenths;
            println!("stress: {} of {target} requests", Counter::Accepted.get());
        }
        sleep_ms(5);
    }
    for proc in 0..procs {
        let _ = sys::unlink(own_file(proc).as_cstr());
    }
    let _ = sys::unlink(c"data");
    let _ = sys::unlink(c"counters");
    let rise = served_before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
    println!(
        "stress: requests={} completed={} canceled={} faulted={} refused={} again={}",
        Counter::Accepted.get(),
        Counter::Completed.get(),
        Counter::Canceled.get(),
        Counter::Faulted.get(),
        Counter::Refused.get(),
        Counter::Again.get(),
    );
    println!(
        "stress: generations={generations} ended={ended} killed={killed} execs={} forks={} bad={} served={} ms={}",
        Counter::Execs.get(),
        Counter::Forks.get(),
        Counter::Bad.get(),
        Maybe(rise),
        ms_since(start),
    );
    let after = sysctl::get("vfs.aio.num_queue_count");
    if after != queued && !args.has(c"--beside") {
        bad(format_args!("requests queued: {} before and {} after", Maybe(queued), Maybe(after)));
    }
    println!("stress: {}", if Counter::Bad.get() == 0 { "ok" } else { "FAILED" });
    Ok(i32::from(Counter::Bad.get() > 0))
}

fn start_one(
    proc: usize,
    threads: usize,
    number: u64,
    seed: u64,
    life: u64,
    disk: Option<&CStr>,
) -> Result<Process> {
    COUNTERS.put(PER_PROC + proc, 0);
    let generation = Generation::new(seed, proc, number, life);
    let kill_at = (generation.end == End::Killed).then_some(generation.budget);
    match sys::fork()? {
        Fork::Child => {
            sys::exit(generation_of(proc, threads, number, generation, disk).unwrap_or(2))
        }
        Fork::Parent(pid) => Ok(Process { pid, number, kill_at }),
    }
}

/// The program after an exec: one more generation, which is drained.
fn again(args: Args) -> Result<i32> {
    COUNTERS.map_file(c"counters", 0)?;
    let proc = args.number(c"--proc", 0) as usize;
    let number = args.number(c"--again", 0);
    Counter::Execs.add(1);
    let mut generation = Generation::new(Counter::Seed.get() ^ 0xec, proc, number, 1);
    generation.end = End::Drain;
    generation.budget = 100;
    COUNTERS.put(PER_PROC + proc, 0);
    let threads = args.number(c"--threads", 1) as usize;
    generation_of(proc, threads, number, generation, args.value(c"--disk"))
}

fn own_file(proc: usize) -> Path {
    Path::of(format_args!("own{proc}"))
}

/// What [`Common::base`] is for a file.
const FILE: usize = 1;

/// What the threads of a process share.
struct Common {
    proc: AtomicUsize,
    /// Control blocks, lists of pieces and buffers of all slots.
    memory: AtomicUsize,
    data: AtomicUsize,
    own: AtomicUsize,
    /// Where its own part of a device begins, or [`FILE`].
    base: AtomicUsize,
    any: AtomicUsize,
    budget: AtomicU64,
    seeds: [AtomicU64; THREADS],
    threads: AtomicUsize,
    leaving: AtomicUsize,
}

static COMMON: Common = Common {
    proc: AtomicUsize::new(0),
    memory: AtomicUsize::new(0),
    data: AtomicUsize::new(0),
    own: AtomicUsize::new(0),
    base: AtomicUsize::new(FILE),
    any: AtomicUsize::new(0),
    budget: AtomicU64::new(0),
    seeds: [const { AtomicU64::new(0) }; THREADS],
    threads: AtomicUsize::new(0),
    leaving: AtomicUsize::new(0),
};

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Kind {
    ReadData,
    ReadOwn,
    WriteOwn,
    Fault,
}

impl Kind {
    /// Whether it is of the process's own file.
    fn is_own(self) -> bool {
        matches!(self, Self::ReadOwn | Self::WriteOwn)
    }

    fn of(number: u64) -> Self {
        [Self::ReadData, Self::ReadOwn, Self::WriteOwn, Self::Fault][number as usize & 3]
    }
}

/// A place for a request. Whoever collects the request deals with it, so all is atomic.
struct Slot {
    /// 0 free, 1 being prepared or dealt with, 2 in flight.
    state: AtomicU64,
    kind: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    /// For the own file: the block, and the tag that is being written.
    block: AtomicUsize,
    tag: AtomicU64,
}

static SLOT: [Slot; THREADS * SLOTS] = [const {
    Slot {
        state: AtomicU64::new(0),
        kind: AtomicU64::new(0),
        offset: AtomicU64::new(0),
        len: AtomicU64::new(0),
        block: AtomicUsize::new(0),
        tag: AtomicU64::new(0),
    }
}; THREADS * SLOTS];

/// The tag that each block of the own file holds, and whether a request is at it.
static TAG: [AtomicU64; THREADS * BLOCKS] = [const { AtomicU64::new(0) }; THREADS * BLOCKS];
static BUSY: [AtomicU64; THREADS * BLOCKS] = [const { AtomicU64::new(0) }; THREADS * BLOCKS];

/// A slot's memory: a page with the control block and the pieces, then its buffer.
const SLOT_BYTES: usize = 4096 + LONGEST;

fn slot_memory(slot: usize) -> Region {
    Region::shared_at(COMMON.memory.load(SeqCst) + slot * SLOT_BYTES, SLOT_BYTES)
}

fn cb_of(slot: usize) -> Cb {
    Cb::at(&slot_memory(slot), 0)
}

fn buffer_of(slot: usize) -> Region {
    slot_memory(slot).part(4096, LONGEST)
}

fn block_word(tag: u64, block: usize, index: usize) -> u64 {
    mix(tag ^ ((block as u64) << 40) ^ ((index as u64) << 20))
}

fn generation_of(
    proc: usize,
    threads: usize,
    number: u64,
    mut generation: Generation,
    disk: Option<&CStr>,
) -> Result<i32> {
    let memory = Region::map_shared(threads * SLOTS * SLOT_BYTES)?;
    let fd = match disk {
        Some(disk) => {
            COMMON.base.store(proc * threads * BLOCKS * BLOCK, SeqCst);
            sys::open(disk, sys::O_RDWR, 0)?
        }
        None => {
            let flags = sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC;
            sys::open(own_file(proc).as_cstr(), flags, 0o600)?
        }
    };
    COMMON.proc.store(proc, SeqCst);
    COMMON.memory.store(memory.addr(), SeqCst);
    COMMON.data.store(sys::open(c"data", sys::O_RDONLY, 0)? as usize, SeqCst);
    COMMON.own.store(fd as usize, SeqCst);
    COMMON.any.store(usize::from(generation.any), SeqCst);
    COMMON
        .budget
        .store(if generation.end == End::Killed { u64::MAX } else { generation.budget }, SeqCst);
    COMMON.threads.store(threads, SeqCst);
    let first = mix((proc as u64) << 32 | number) | 1;
    for block in 0..threads * BLOCKS {
        write_block(fd, block, first.wrapping_add(block as u64))?;
        BUSY[block].store(0, SeqCst);
    }
    for seed in &COMMON.seeds[..threads] {
        seed.store(generation.rng.next(), SeqCst);
    }
    let mut others = [const { None }; THREADS];
    for (index, other) in others[..threads].iter_mut().enumerate().skip(1) {
        *other = Some(thread::spawn(worker, index)?);
    }
    worker(0);
    match generation.end {
        // A process that is to be killed gets here only when all is to stop.
        End::Drain | End::Killed => {
            COMMON.leaving.store(1, SeqCst);
            drain(0);
            others.into_iter().flatten().for_each(thread::Thread::join);
            look_at_all(fd, threads)?;
        }
        End::Exit => {}
        End::Exec if Counter::Stop.get() == 0 => exec(proc, threads, number, disk)?,
        End::Exec => {}
    }
    Ok(0)
}

/// Becomes this program again; whatever the threads do meanwhile.
fn exec(proc: usize, threads: usize, number: u64, disk: Option<&CStr>) -> Result<()> {
    let own = sys::own_path()?;
    let word = |value: u64| Path::of(format_args!("{value}"));
    let (proc, threads, number) = (word(proc as u64), word(threads as u64), word(number));
    let argv: [*const c_char; 10] = [
        own.as_cstr().as_ptr(),
        c"--again".as_ptr(),
        number.as_cstr().as_ptr(),
        c"--proc".as_ptr(),
        proc.as_cstr().as_ptr(),
        c"--threads".as_ptr(),
        threads.as_cstr().as_ptr(),
        disk.map_or(core::ptr::null(), |_| c"--disk".as_ptr()),
        disk.map_or(core::ptr::null(), CStr::as_ptr),
        core::ptr::null(),
    ];
    sys::execve(own.as_cstr(), &argv)
}

/// Where a block of a process's own is.
fn place(block: usize) -> usize {
    match COMMON.base.load(SeqCst) {
        FILE => block * BLOCK,
        base => base + block * BLOCK,
    }
}

/// Calls again what a device failed.
fn persist(mut call: impl FnMut() -> Result<usize>) -> Result<usize> {
    for _ in 0..1000 {
        match call() {
            Err(EIO) if COMMON.base.load(SeqCst) != FILE => {}
            other => return other,
        }
    }
    Err(EIO)
}

fn write_block(fd: i32, block: usize, tag: u64) -> Result<()> {
    let mut bytes = [0u8; BLOCK];
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&block_word(tag, block, index).to_le_bytes());
    }
    persist(|| sys::pwrite(fd, &bytes, place(block) as i64))?;
    TAG[block].store(tag, SeqCst);
    Ok(())
}

/// At the end of a generation: nothing is in flight, and the file is as it should be.
fn look_at_all(fd: i32, threads: usize) -> Result<()> {
    let left = aio::waitcomplete(Some(Timespec::default()));
    if left.cb != 0 || left.result != Err(EAGAIN) {
        bad(format_args!("after the last request aio_waitcomplete gives {left:?}"));
    }
    let mut bytes = [0u8; BLOCK];
    for (block, tag) in TAG.iter().enumerate().take(threads * BLOCKS) {
        if persist(|| sys::pread(fd, &mut bytes, place(block) as i64))? != BLOCK {
            bad(format_args!("block {block} is short"));
        }
        let tag = tag.load(SeqCst);
        let wrong = bytes
            .chunks(8)
            .enumerate()
            .position(|(index, word)| word != block_word(tag, block, index).to_le_bytes());
        if let Some(index) = wrong {
            bad(format_args!("block {block} of the file is wrong from word {index} on"));
        }
    }
    Ok(())
}

/// What a thread does until the process has made its requests.
fn worker(index: usize) {
    let mut rng = Rng::new(COMMON.seeds[index].load(SeqCst));
    let proc = COMMON.proc.load(SeqCst);
    while made(proc) < COMMON.budget.load(SeqCst) && Counter::Stop.get() == 0 {
        match rng.below(100) {
            0..58 => submit(index, &mut rng),
            58..78 => collect(index, &mut rng),
            78..86 => cancel(index, &mut rng),
            86..91 => refuse(&mut rng),
            91..96 => poll(index),
            96..99 => sys::sched_yield(),
            _ if index == 0 => fork(index, &mut rng),
            _ => sleep_ms(1),
        }
    }
    if index > 0 {
        // The first thread decides how it ends; when all is collected, the others collect too.
        while COMMON.leaving.load(SeqCst) == 0 {
            collect(index, &mut rng);
        }
        drain(index);
    }
}

fn slots_of(index: usize) -> core::ops::Range<usize> {
    index * SLOTS..(index + 1) * SLOTS
}

fn submit(index: usize, rng: &mut Rng) {
    let take = |slot: &usize| SLOT[*slot].state.compare_exchange(0, 1, SeqCst, SeqCst).is_ok();
    let Some(slot) = slots_of(index).find(take) else { return collect(index, rng) };
    let mut kind = Kind::of(rng.below(4));
    if kind == Kind::Fault && !rng.one_in(8) {
        kind = Kind::ReadData;
    }
    let block = index * BLOCKS + rng.below(BLOCKS as u64) as usize;
    if kind.is_own() && BUSY[block].compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
        kind = Kind::ReadData;
    }
    let (fd, offset, len) = match kind {
        Kind::ReadOwn | Kind::WriteOwn => (COMMON.own.load(SeqCst), place(block), BLOCK),
        Kind::ReadData | Kind::Fault => {
            let most = if rng.one_in(10) { LONGEST / 8 } else { 512 };
            let len = 8 + rng.below(most as u64) as usize * 8;
            let offset = rng.below((DATA - len as u64) / 8) as usize * 8;
            (COMMON.data.load(SeqCst), offset, len)
        }
    };
    let buffer = buffer_of(slot);
    let tag = rng.next();
    for word in 0..len / 8 {
        let value = if kind == Kind::WriteOwn { block_word(tag, block, word) } else { !0 };
        buffer.set_word(word * 8, value);
    }
    let entry = &SLOT[slot];
    entry.kind.store(kind as u64, SeqCst);
    entry.offset.store(offset as u64, SeqCst);
    entry.len.store(len as u64, SeqCst);
    entry.block.store(block, SeqCst);
    entry.tag.store(tag, SeqCst);
    let base = if kind == Kind::Fault { HOLE } else { buffer.addr() };
    let cb = cb_of(slot);
    let vectored = rng.one_in(3);
    if vectored {
        let list = slot_memory(slot).part(512, 64);
        let mut cut = rng.below(len as u64 + 1) as usize;
        if COMMON.base.load(SeqCst) != FILE && kind.is_own() {
            cut &= !511;
        }
        let pieces = [(base, cut), (base + cut, 0), (base + cut, len - cut)];
        for (index, (base, len)) in pieces.into_iter().enumerate() {
            list.put(index * size_of::<Iovec>(), Iovec { base, len });
        }
        cb.set(aio::request(fd as i32, offset as i64, list.addr(), pieces.len()));
    } else {
        cb.set(aio::request(fd as i32, offset as i64, base, len));
    }
    // In flight from here on: another thread may collect it before this call returns.
    entry.state.store(2, SeqCst);
    let result = match (kind == Kind::WriteOwn, vectored) {
        (false, false) => aio::read(cb.addr()),
        (false, true) => aio::readv(cb.addr()),
        (true, false) => aio::write(cb.addr()),
        (true, true) => aio::writev(cb.addr()),
    };
    match result {
        Ok(()) => {
            Counter::Accepted.add(1);
            COUNTERS.add(PER_PROC + COMMON.proc.load(SeqCst), 1);
        }
        Err(error) => {
            if error == EAGAIN {
                Counter::Again.add(1);
            } else {
                bad(format_args!("submit: {error}"));
            }
            free(slot);
            collect(index, rng);
        }
    }
}

fn free(slot: usize) {
    let entry = &SLOT[slot];
    if Kind::of(entry.kind.load(SeqCst)).is_own() {
        BUSY[entry.block.load(SeqCst)].store(0, SeqCst);
    }
    entry.state.store(0, SeqCst);
}

/// Deals with a request that was collected.
fn finish(slot: usize, result: Result<i64>) {
    let entry = &SLOT[slot];
    if entry.state.compare_exchange(2, 1, SeqCst, SeqCst).is_err() {
        return bad(format_args!("slot {slot} was collected, but was not in flight"));
    }
    let kind = Kind::of(entry.kind.load(SeqCst));
    let len = entry.len.load(SeqCst) as usize;
    match (kind, result) {
        (_, Err(ECANCELED)) => Counter::Canceled.add(1),
        (Kind::Fault, Err(EFAULT)) => Counter::Faulted.add(1),
        (Kind::ReadOwn | Kind::WriteOwn, Err(EIO)) if COMMON.base.load(SeqCst) != FILE => {
            Counter::Faulted.add(1);
            let block = entry.block.load(SeqCst);
            let own = COMMON.own.load(SeqCst) as i32;
            if kind == Kind::WriteOwn && write_block(own, block, entry.tag.load(SeqCst)).is_err() {
                bad(format_args!("block {block} cannot be written"));
            }
        }
        (Kind::ReadData | Kind::ReadOwn | Kind::WriteOwn, Ok(count)) if count == len as i64 => {
            Counter::Completed.add(1);
            if kind == Kind::WriteOwn {
                TAG[entry.block.load(SeqCst)].store(entry.tag.load(SeqCst), SeqCst);
            } else {
                check(slot, kind, len);
            }
        }
        (_, other) => bad(format_args!("a request of {len} bytes: {other:?}")),
    }
    free(slot);
}

fn check(slot: usize, kind: Kind, len: usize) {
    let entry = &SLOT[slot];
    let buffer = buffer_of(slot);
    let offset = entry.offset.load(SeqCst);
    let block = entry.block.load(SeqCst);
    let tag = TAG[block].load(SeqCst);
    for index in 0..len / 8 {
        let wanted = match kind {
            Kind::ReadData => data_word(offset + index as u64 * 8),
            _ => block_word(tag, block, index),
        };
        let got = buffer.word(index * 8);
        if got != wanted {
            return bad(format_args!(
                "read of {len} bytes at {offset}: word {index} is {got:#x}, not {wanted:#x}"
            ));
        }
    }
}

fn in_flight(index: usize) -> impl Iterator<Item = usize> {
    slots_of(index).filter(|&slot| SLOT[slot].state.load(SeqCst) == 2)
}

/// Waits, one way or another, and collects.
fn collect(index: usize, rng: &mut Rng) {
    let timeout =
        [Some(Timespec::default()), Some(Timespec::from_ms(1)), Some(Timespec::from_ms(20))]
            [rng.below(3) as usize];
    if COMMON.any.load(SeqCst) != 0 {
        let done = aio::waitcomplete(timeout);
        match done.cb.checked_sub(COMMON.memory.load(SeqCst)) {
            Some(offset) if done.cb != 0 => finish(offset / SLOT_BYTES, done.result),
            _ if matches!(done.result, Err(EAGAIN | EINTR)) => {}
            _ => bad(format_args!("aio_waitcomplete: {done:?}")),
        }
        return;
    }
    let mut list = [0; SLOTS];
    let mut count = 0;
    for slot in in_flight(index) {
        // Some wait for a part of them only, and some lists have empty entries.
        list[count] = if rng.one_in(6) { 0 } else { cb_of(slot).addr() };
        count += 1;
    }
    let forever = rng.one_in(4) && list[..count].iter().any(|&cb| cb != 0);
    let waited = aio::suspend(&list[..count], if forever { None } else { timeout });
    if !matches!(waited, Ok(()) | Err(EAGAIN | EINTR)) {
        bad(format_args!("aio_suspend: {waited:?}"));
    }
    poll(index);
}

/// Collects what aio_error says is done.
fn poll(index: usize) {
    if COMMON.any.load(SeqCst) != 0 {
        return;
    }
    for slot in in_flight(index) {
        let cb = cb_of(slot).addr();
        match aio::error(cb) {
            Ok(state) if state == EINPROGRESS.0 => {
                // Another may have finished it since; only a finished one may be returned.
                continue;
            }
            Ok(state) => {
                let result = aio::return_(cb);
                let same = match result {
                    Ok(_) => state == 0,
                    Err(error) => state == error.0,
                };
                if !same {
                    bad(format_args!("aio_error gives {state}, then aio_return {result:?}"));
                }
                finish(slot, result);
            }
            Err(error) => bad(format_args!("aio_error: {error}")),
        }
    }
}

fn cancel(index: usize, rng: &mut Rng) {
    let own = COMMON.own.load(SeqCst) as i32;
    let data = COMMON.data.load(SeqCst) as i32;
    let fd = if rng.one_in(2) { own } else { data };
    let which = if rng.one_in(6) {
        0
    } else {
        let skip = rng.below(SLOTS as u64) as usize;
        in_flight(index).nth(skip).map_or(0, |slot| cb_of(slot).addr())
    };
    match aio::cancel(fd, which) {
        Ok(AIO_CANCELED..=AIO_ALLDONE) => {}
        other => bad(format_args!("aio_cancel: {other:?}")),
    }
}

/// Submits what must be refused.
fn refuse(rng: &mut Rng) {
    let data = COMMON.data.load(SeqCst) as i32;
    let block = Region::map(4096);
    let Ok(page) = block else { return };
    let cb = Cb::at(&page, 0);
    let (request, addr, wanted) = match rng.below(5) {
        0 => (aio::request(data, -1, page.addr(), 10), cb.addr(), EINVAL),
        1 => (aio::request(-1, 0, page.addr(), 10), cb.addr(), EBADF),
        2 => (aio::request(data, 0, page.addr(), usize::MAX), cb.addr(), EINVAL),
        3 => (aio::request(data, 0, page.addr(), 10), HOLE, EFAULT),
        _ => (aio::request(data, 0, page.addr(), 10), 8, EFAULT),
    };
    cb.set(request);
    match aio::read(addr) {
        // The limit is looked at first.
        Err(error) if error == wanted || error == EAGAIN => Counter::Refused.add(1),
        other => bad(format_args!("a bad submission: {other:?}, not {wanted}")),
    }
    let _ = page.unmap();
}

/// A child with requests of its parent in flight: it sees nothing of them, and may have its own.
fn fork(index: usize, rng: &mut Rng) {
    if !rng.one_in(4) {
        return;
    }
    Counter::Forks.add(1);
    let pid = match sys::fork() {
        Ok(Fork::Parent(pid)) => pid,
        Ok(Fork::Child) => sys::exit(i32::from(!child_is_right(index))),
        Err(error) => return bad(format_args!("fork: {error}")),
    };
    let ended = sys::wait_for(pid);
    if ended != Some(Ended::Exit(0)) {
        bad(format_args!("the child ended with {ended:?}"));
    }
}

fn child_is_right(index: usize) -> bool {
    for slot in in_flight(index) {
        let cb = cb_of(slot).addr();
        if aio::error(cb) != Ok(EINVAL.0) || aio::return_(cb) != Err(EINVAL) {
            bad(format_args!("a fork child sees its parent's request"));
            return false;
        }
    }
    let Ok(memory) = Region::map(8192) else { return false };
    let cb = Cb::at(&memory, 0);
    cb.set(aio::request(COMMON.data.load(SeqCst) as i32, 0, memory.at(4096), 4096));
    match aio::read(cb.addr()) {
        Err(EAGAIN) => true,
        Ok(()) => {
            let done = aio::waitcomplete(None);
            let right = done.cb == cb.addr()
                && done.result == Ok(4096)
                && memory.word(4096) == data_word(0);
            if !right {
                bad(format_args!("a fork child's read: {done:?}"));
            }
            right
        }
        Err(error) => {
            bad(format_args!("a fork child's aio_read: {error}"));
            false
        }
    }
}

/// Collects all that a thread still has in flight.
fn drain(index: usize) {
    let start = now();
    let mut rng = Rng::new(9);
    while slots_of(index).any(|slot| SLOT[slot].state.load(SeqCst) != 0) {
        collect(index, &mut rng);
        if ms_since(start) > HANG_MS / 2 {
            eprintln!(
                "stress: pid {} cannot collect {} requests",
                sys::getpid(),
                in_flight(index).count()
            );
            return bad(format_args!("requests that never end"));
        }
    }
}
