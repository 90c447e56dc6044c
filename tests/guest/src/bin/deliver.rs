// SPDX-License-Identifier: BSD-2-Clause
//! Requests and lists that tell of their ends in every way at once, and an account of what was
//! told: none lost, none doubled, none after its request was collected.
//!
//! `deliver [--procs 3] [--threads 4] [--rounds 100] [--seed 1] [--beside]` works in the current
//! directory; with `--beside` the kernel's counts are not looked at, as others use AIO too.
//! In a round each thread submits requests, alone and in lists, some of which are refused, fail
//! or are cancelled; takes events from its kqueue, signals sent to it, and signals sent to the
//! process, which any thread may get; and collects, some as soon as they are done and the rest
//! when all is told. It prints counts, and exits 1 when an account does not come out, or when a
//! minute brings nothing.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, Cb, LIO_NOP, LIO_NOWAIT, LIO_READ, LIO_WAIT, LIO_WRITE, Sigevent};
use guest::errno::{EBADF, ECANCELED, EFAULT, EINPROGRESS, EINVAL, EIO};
use guest::kqueue::{self, EV_CLEAR, EV_DISPATCH, EV_ONESHOT, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::{HOLE, Region};
use guest::out::Text;
use guest::rng::Rng;
use guest::signal::{self, SI_ASYNCIO, SIGRTMIN, Set};
use guest::sys::{self, Ended, Fork, Timespec};
use guest::sysctl::{self, Maybe, served};
use guest::time::{ms_since, now};
use guest::{Args, Result, println, thread};

const THREADS: usize = 8;
/// Requests of a thread, and its lists, which are told of too.
const REQUESTS: usize = 32;
const LISTS: usize = 4;
const SLOTS: usize = REQUESTS + LISTS;
/// Nothing for so long is a hang.
const HANG_MS: u64 = 60_000;
/// To the thread, and to the process.
const TO_THREAD: i32 = SIGRTMIN;
const TO_PROCESS: i32 = SIGRTMIN + 1;

guest::program!(run);

// Counters that all processes share.
guest::counters! {
    Requests,
    Lists,
    Events,
    ThreadSignals,
    ProcessSignals,
    Canceled,
    Refused,
    Early,
    Bad,
}

fn bad(args: fmt::Arguments<'_>) {
    Counter::Bad.add(1);
    println!("deliver: BAD: pid {}: {}", sys::getpid(), Text::<300>::of(args).as_str());
}

/// How often each thread's slots were told of in this round, and which round it is: signals to
/// the process may be taken by any thread.
static TOLD: [[AtomicUsize; SLOTS]; THREADS] =
    [const { [const { AtomicUsize::new(0) }; SLOTS] }; THREADS];
static ROUND: [AtomicUsize; THREADS] = [const { AtomicUsize::new(0) }; THREADS];
static SEEDS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static ROUNDS: AtomicUsize = AtomicUsize::new(0);
static FILE: AtomicUsize = AtomicUsize::new(0);
static RUNNING: AtomicUsize = AtomicUsize::new(0);

fn run(args: Args) -> i32 {
    work(args).unwrap_or_else(|error| {
        println!("deliver: cannot go on: {error}");
        2
    })
}

fn work(args: Args) -> Result<i32> {
    let procs = args.number(c"--procs", 3).clamp(1, 16) as usize;
    let threads = args.number(c"--threads", 4).clamp(1, THREADS as u64) as usize;
    let rounds = args.number(c"--rounds", 100);
    let mut rng = Rng::new(args.number(c"--seed", 1));
    println!(
        "deliver: seed={} procs={procs} threads={threads} rounds={rounds}",
        args.number(c"--seed", 1)
    );
    COUNTERS.map()?;
    ROUNDS.store(rounds as usize, SeqCst);
    let fd = sys::open(c"deliver-file", sys::O_RDWR | sys::O_CREAT | sys::O_TRUNC, 0o600)?;
    sys::pwrite(fd, &[0x55; 8192], 0)?;
    FILE.store(fd as usize, SeqCst);
    let (start, served_before, queued) = (now(), served(), sysctl::get("vfs.aio.num_queue_count"));
    let mut children = [0; 16];
    for child in &mut children[..procs] {
        let mut rng = rng.fork(1);
        match sys::fork()? {
            Fork::Child => sys::exit(process(threads, &mut rng).unwrap_or(2)),
            Fork::Parent(pid) => *child = pid,
        }
    }
    for &child in &children[..procs] {
        let ended = sys::wait_for(child);
        if ended != Some(Ended::Exit(0)) {
            bad(format_args!("a process ended with {ended:?}"));
        }
    }
    sys::unlink(c"deliver-file")?;
    let after = sysctl::get("vfs.aio.num_queue_count");
    if after != queued && !args.has(c"--beside") {
        bad(format_args!("requests queued: {} before and {} after", Maybe(queued), Maybe(after)));
    }
    println!(
        "deliver: requests={} lists={} canceled={} refused={} early={}",
        Counter::Requests.get(),
        Counter::Lists.get(),
        Counter::Canceled.get(),
        Counter::Refused.get(),
        Counter::Early.get(),
    );
    let rise = served_before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
    println!(
        "deliver: events={} to-thread={} to-process={} bad={} served={} ms={}",
        Counter::Events.get(),
        Counter::ThreadSignals.get(),
        Counter::ProcessSignals.get(),
        Counter::Bad.get(),
        Maybe(rise),
        ms_since(start),
    );
    println!("deliver: {}", if Counter::Bad.get() == 0 { "ok" } else { "FAILED" });
    Ok(i32::from(Counter::Bad.get() > 0))
}

fn process(threads: usize, rng: &mut Rng) -> Result<i32> {
    signal::block(Set::of(TO_THREAD).with(TO_PROCESS))?;
    RUNNING.store(threads, SeqCst);
    let mut all = [const { None }; THREADS];
    for (index, thread) in all[..threads].iter_mut().enumerate() {
        SEEDS[index].store(rng.next(), SeqCst);
        *thread = Some(thread::spawn(worker, index)?);
    }
    all.into_iter().flatten().for_each(thread::Thread::join);
    let left = signal::pending()?;
    if left.has(TO_PROCESS) {
        bad(format_args!("a signal is left in the end"));
    }
    Ok(0)
}

fn worker(index: usize) {
    if let Err(error) = Worker::new(index).and_then(|mut worker| worker.rounds()) {
        bad(format_args!("a thread cannot go on: {error}"));
    }
    RUNNING.fetch_sub(1, SeqCst);
    // Signals of the others may come here as long as they are at work.
    while RUNNING.load(SeqCst) > 0 {
        take_signals(Set::of(TO_PROCESS), Timespec::from_ms(5));
    }
}

/// How a slot is to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Silent,
    Event(u16),
    ToThread,
    ToProcess,
}

/// What is known of a request or a list.
#[derive(Clone, Copy)]
struct Slot {
    way: Way,
    /// It was accepted, or is a list that must tell.
    live: bool,
    /// It was collected before all was told.
    early: bool,
    fault: bool,
    /// The slot of its list, 0 when it is alone.
    list: usize,
}

const EMPTY: Slot = Slot { way: Way::Silent, live: false, early: false, fault: false, list: 0 };

struct Worker {
    index: usize,
    rng: Rng,
    kq: i32,
    tid: i64,
    memory: Region,
    slots: [Slot; SLOTS],
}

/// Notes that a slot of a thread was told of; a value says which, and in which round.
fn told(value: usize) {
    let (slot, thread, round) = (value & 0xff, value >> 8 & 0xff, value >> 16);
    match TOLD.get(thread).and_then(|slots| slots.get(slot)) {
        Some(count) if ROUND[thread].load(SeqCst) & 0xff_ffff == round => {
            count.fetch_add(1, SeqCst);
        }
        Some(_) => bad(format_args!("slot {slot} of thread {thread} is told of too late")),
        None => bad(format_args!("a value of {value:#x}")),
    }
}

/// Takes signals until none is there; whether there was any.
fn take_signals(set: Set, mut timeout: Timespec) -> bool {
    let mut any = false;
    while let Ok(info) = signal::wait(set, timeout) {
        if info.code != SI_ASYNCIO {
            bad(format_args!("a signal of another kind: {info:?}"));
        }
        let to_thread = info.signo == TO_THREAD;
        if to_thread { Counter::ThreadSignals } else { Counter::ProcessSignals }.add(1);
        told(info.value);
        timeout = Timespec::default();
        any = true;
    }
    any
}

impl Worker {
    fn new(index: usize) -> Result<Self> {
        Ok(Self {
            index,
            rng: Rng::new(SEEDS[index].load(SeqCst)),
            kq: sys::kqueue()?,
            tid: sys::thr_self()?,
            memory: Region::map(SLOTS * 1024)?,
            slots: [EMPTY; SLOTS],
        })
    }

    fn block(&self, slot: usize) -> Cb {
        Cb::at(&self.memory, slot * 1024)
    }

    fn value(&self, slot: usize) -> usize {
        (ROUND[self.index].load(SeqCst) & 0xff_ffff) << 16 | self.index << 8 | slot
    }

    fn sigevent(&self, slot: usize, way: Way) -> Sigevent {
        let value = self.value(slot);
        match way {
            Way::Silent => Sigevent::default(),
            Way::Event(flags) => Sigevent::kevent(self.kq, value, flags),
            Way::ToThread => Sigevent::thread(TO_THREAD, value, self.tid),
            Way::ToProcess => Sigevent::signal(TO_PROCESS, value),
        }
    }

    fn any_way(&mut self) -> Way {
        match self.rng.below(9) {
            0 => Way::Silent,
            1..5 => {
                let flags = [0, EV_ONESHOT, EV_CLEAR, EV_DISPATCH];
                Way::Event(flags[self.rng.below(4) as usize])
            }
            5 | 6 => Way::ToThread,
            _ => Way::ToProcess,
        }
    }

    fn rounds(&mut self) -> Result<()> {
        for round in 0..ROUNDS.load(SeqCst) {
            ROUND[self.index].store(round, SeqCst);
            TOLD[self.index].iter().for_each(|told| told.store(0, SeqCst));
            self.slots = [EMPTY; SLOTS];
            self.submit();
            self.cancel_some();
            if !self.collect_early() || !self.wait_for_all() {
                return Ok(());
            }
            self.collect_rest();
            self.nothing_is_left();
            if Counter::Bad.get() > 0 {
                return Ok(());
            }
        }
        sys::close(self.kq)
    }

    /// Fills in a block; whether it is one that is accepted.
    fn fill(&mut self, slot: usize, list: usize) -> bool {
        let way = self.any_way();
        let fd = FILE.load(SeqCst) as i32;
        let buffer = self.memory.part(slot * 1024 + 512, 256);
        let mut block = aio::request(fd, slot as i64 * 64, buffer.addr(), 64);
        block.opcode = if self.rng.one_in(3) { LIO_WRITE } else { LIO_READ };
        block.sigevent = self.sigevent(slot, way);
        let fault = self.rng.one_in(8);
        if fault {
            block.buf = HOLE;
        }
        let (mut good, mut live) = (true, true);
        match self.rng.below(16) {
            0 => (good, live, block.fildes) = (false, false, -1),
            1 => (good, live, block.offset) = (false, false, -1),
            2 if list != 0 => (live, block.opcode) = (false, LIO_NOP),
            _ => {}
        }
        self.block(slot).set(block);
        self.slots[slot] = Slot { way, live, early: false, fault, list };
        good
    }

    fn submit(&mut self) {
        let lists = self.rng.below(LISTS as u64 + 1) as usize;
        let mut slot = 0;
        for list in 0..lists {
            let count = self.rng.below(7) as usize;
            self.submit_list(REQUESTS + list, slot..slot + count);
            slot += count;
        }
        while slot < REQUESTS && !self.rng.one_in(20) {
            let good = self.fill(slot, 0);
            let block = self.block(slot);
            let write = block.get().opcode == LIO_WRITE;
            let call = if write { aio::write } else { aio::read };
            // Told of from here on, maybe before the call returns.
            match call(block.addr()) {
                Ok(()) if good => Counter::Requests.add(1),
                Err(EBADF | EINVAL) if !good => Counter::Refused.add(1),
                other => bad(format_args!("a request ({good}): {other:?}")),
            }
            slot += 1;
        }
    }

    fn submit_list(&mut self, list: usize, members: core::ops::Range<usize>) {
        let entries = self.memory.part(list * 1024 + 512, 512);
        let (mut count, mut all_good, mut live) = (0, true, false);
        for slot in members {
            let good = self.fill(slot, list);
            all_good &= good;
            live |= self.slots[slot].live;
            let empty = if self.rng.one_in(5) { 1 } else { 0 };
            for entry in 0..=empty {
                let addr = if entry == 0 { self.block(slot).addr() } else { 0 };
                entries.put(count * size_of::<usize>(), addr);
                count += 1;
            }
            match (good, self.slots[slot].live) {
                (_, true) => Counter::Requests.add(1),
                (false, _) => Counter::Refused.add(1),
                _ => {}
            }
        }
        let mode = if self.rng.one_in(4) { LIO_WAIT } else { LIO_NOWAIT };
        let way = match self.any_way() {
            // Lists have no flags.
            Way::Event(_) => Way::Event(0),
            way => way,
        };
        // A list of which nothing is queued signals nevertheless, but sends no event.
        let tells = mode == LIO_NOWAIT && (live || !matches!(way, Way::Event(_)));
        self.slots[list] = Slot { way, live: tells, ..EMPTY };
        let sig = self.memory.part(list * 1024, size_of::<Sigevent>());
        sig.put(0, self.sigevent(list, way));
        Counter::Lists.add(1);
        let wanted = if all_good { Ok(()) } else { Err(EIO) };
        let result = aio::listio(mode, entries.addr(), count as i32, sig.addr());
        if result != wanted {
            bad(format_args!("a list of {count}: {result:?}, not {wanted:?}"));
        }
    }

    fn cancel_some(&mut self) {
        for slot in 0..REQUESTS {
            if self.slots[slot].live && self.rng.one_in(10) {
                let answer = aio::cancel(FILE.load(SeqCst) as i32, self.block(slot).addr());
                if !matches!(answer, Ok(aio::AIO_CANCELED..=aio::AIO_ALLDONE)) {
                    bad(format_args!("aio_cancel: {answer:?}"));
                }
            }
        }
    }

    fn collect(&mut self, slot: usize) {
        let fault = self.slots[slot].fault;
        match aio::return_(self.block(slot).addr()) {
            Ok(64) if !fault => {}
            Err(EFAULT) if fault => {}
            Err(ECANCELED) => Counter::Canceled.add(1),
            other => bad(format_args!("slot {slot}: aio_return: {other:?}")),
        }
    }

    /// Collects some as soon as they are done, told of or not; only such as tell this thread, as
    /// another could have taken a signal and not noted it yet.
    fn collect_early(&mut self) -> bool {
        let start = now();
        for slot in 0..REQUESTS {
            let Slot { way, live, list, .. } = self.slots[slot];
            let elsewhere =
                way == Way::ToProcess || list != 0 && self.slots[list].way == Way::ToProcess;
            if !live || elsewhere || !self.rng.one_in(5) {
                continue;
            }
            while aio::error(self.block(slot).addr()) == Ok(EINPROGRESS.0) {
                let _ = aio::suspend(&[self.block(slot).addr()], Some(Timespec::from_ms(100)));
                if ms_since(start) > HANG_MS {
                    bad(format_args!("slot {slot} is not done after a minute"));
                    return false;
                }
            }
            self.take_events(Timespec::default());
            take_signals(Set::of(TO_THREAD), Timespec::default());
            let before = TOLD[self.index][slot].load(SeqCst);
            self.collect(slot);
            self.take_events(Timespec::default());
            take_signals(Set::of(TO_THREAD), Timespec::default());
            if TOLD[self.index][slot].load(SeqCst) != before {
                bad(format_args!("slot {slot}, {way:?}, is told of after it was collected"));
            }
            self.slots[slot].early = true;
            Counter::Early.add(1);
        }
        true
    }

    fn take_events(&mut self, timeout: Timespec) {
        let mut events = [Kevent::default(); 6];
        let got = match kqueue::kevent(self.kq, &[], &mut events, Some(timeout)) {
            Ok(got) => got,
            Err(error) => return bad(format_args!("kevent: {error}")),
        };
        for event in &events[..got] {
            let slot = event.udata & 0xff;
            let (filter, ident) = if slot < REQUESTS {
                (EVFILT_AIO, self.block(slot).addr())
            } else {
                (EVFILT_LIO, self.memory.at(slot.min(SLOTS - 1) * 1024 + 512))
            };
            if event.filter != filter || event.ident != ident {
                bad(format_args!("an event of another: {event:?}"));
            }
            Counter::Events.add(1);
            told(event.udata);
        }
    }

    /// Waits until all that must be told was.
    fn wait_for_all(&mut self) -> bool {
        let start = now();
        loop {
            let missing = (0..SLOTS).find(|&slot| {
                let Slot { way, live, early, .. } = self.slots[slot];
                live && !early
                    && way != Way::Silent
                    && TOLD[self.index][slot].load(SeqCst) == 0
                    && !(slot >= REQUESTS && self.gone(slot))
            });
            let Some(slot) = missing else { return true };
            if ms_since(start) > HANG_MS {
                let way = self.slots[slot].way;
                bad(format_args!("slot {slot}, {way:?}, is not told of after a minute"));
                return false;
            }
            self.take_events(Timespec::from_ms(2));
            take_signals(Set::of(TO_THREAD).with(TO_PROCESS), Timespec::from_ms(1));
        }
    }

    /// Whether a list's telling may have gone with its last request: all were collected early.
    fn gone(&self, list: usize) -> bool {
        let mut live = self.slots[..REQUESTS].iter().filter(|slot| slot.list == list && slot.live);
        live.clone().next().is_some() && live.all(|slot| slot.early)
    }

    fn collect_rest(&mut self) {
        for slot in 0..REQUESTS {
            let Slot { live, early, .. } = self.slots[slot];
            if !live || early {
                continue;
            }
            while aio::error(self.block(slot).addr()) == Ok(EINPROGRESS.0) {
                let _ = aio::suspend(&[self.block(slot).addr()], Some(Timespec::from_ms(100)));
            }
            self.collect(slot);
        }
    }

    /// All is collected: nothing may come any more, and each was told of once.
    fn nothing_is_left(&mut self) {
        let before: [usize; SLOTS] =
            core::array::from_fn(|slot| TOLD[self.index][slot].load(SeqCst));
        self.take_events(Timespec::default());
        take_signals(Set::of(TO_THREAD), Timespec::default());
        for (slot, before) in before.into_iter().enumerate() {
            let count = TOLD[self.index][slot].load(SeqCst);
            let Slot { way, live, .. } = self.slots[slot];
            let once = !matches!(way, Way::Event(0));
            if count != before {
                bad(format_args!("slot {slot}, {way:?}, is told of when all is collected"));
            }
            if count > 1 && once || count > 0 && !live {
                bad(format_args!("slot {slot}, {way:?}, is told of {count} times (live {live})"));
            }
        }
    }
}
