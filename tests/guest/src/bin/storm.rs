// SPDX-License-Identifier: BSD-2-Clause
//! Processes that read, write, cancel, shut down, close and end with requests in flight on many
//! sockets at once; what comes out of a stream is checked against what went in, to the byte.
//!
//! `storm [--pipes] [--procs 4] [--requests 200000] [--each 400] [--seed 1] [--own-stack]`: each
//! process has eight pairs of sockets of every kind to itself, 64 sockets for four processes, shares
//! two pairs with all others, and makes `--each` requests at least, five times as many at most. With
//! `--pipes` all are pipes, which have two directions too, `vfs.aio.rs.park` is set meanwhile, and two more processes
//! read and write the shared ones with calls that wait. With `--own-stack` all of it is in a jail with
//! a network stack of its own; where there are no such jails, the exit status is 77.
//! What a process tries depends on its seed only; what happens meanwhile does not. It exits 1 when
//! data was wrong, a request ended in an error without a cause, or nothing moved for two minutes.
//!
//! Every write sends one letter, as often as it is long. So a reader knows from the letters, and
//! from what the writes say they sent, whether anything was lost, doubled or out of order.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use core::fmt;
use guest::aio::{self, Cb};
use guest::errno::{
    EAGAIN, ECANCELED, ECONNRESET, EINVAL, ENOBUFS, ENOSYS, ENOTCONN, EPERM, EPIPE,
};
use guest::mem::Region;
use guest::net::{self, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
use guest::rng::Rng;
use guest::sys::{self, Ended, Fork, Iovec, Timespec};
use guest::sysctl::{Maybe, Setting, served};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Errno, Result, println};

guest::program!(run);

/// Requests a process may have in flight.
const SLOTS: usize = 192;
/// The longest request.
const LONGEST: usize = 16 << 10;
/// The longest message: what every kind of datagram takes.
const MESSAGE: usize = 1900;
/// Pairs of sockets of a process.
const PAIRS: usize = 8;
/// Pairs that all share.
const SHARED: usize = 2;
/// Nothing moving for so long is a hang.
const HANG_MS: u64 = 120_000;
const PROCS: usize = 16;

// Words that all processes share.
guest::counters! {
    Accepted,
    Done,
    Canceled,
    Short,
    Bytes,
    Again,
    Shutdowns,
    Ends,
    Bad,
}

fn bad(args: fmt::Arguments<'_>) {
    Counter::Bad.add(1);
    println!("storm: pid {}: {args}", sys::getpid());
}

/// What a pair of sockets is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Local,
    Tcp,
    LocalMessages,
    LocalPackets,
    Udp,
    Pipe,
}

const KINDS: [Kind; PAIRS] = [
    Kind::Local,
    Kind::Tcp,
    Kind::LocalMessages,
    Kind::Local,
    Kind::LocalPackets,
    Kind::Tcp,
    Kind::Udp,
    Kind::Local,
];

impl Kind {
    fn make(self) -> Result<(i32, i32)> {
        match self {
            Kind::Local => net::pair(SOCK_STREAM),
            Kind::Tcp => net::connected(SOCK_STREAM, 0),
            Kind::LocalMessages => net::pair(SOCK_DGRAM),
            Kind::LocalPackets => net::pair(SOCK_SEQPACKET),
            Kind::Udp => net::udp_pair(),
            Kind::Pipe => sys::pipe(),
        }
    }

    fn is_stream(self) -> bool {
        matches!(self, Kind::Local | Kind::Tcp | Kind::Pipe)
    }
}

#[derive(Clone, Copy)]
struct Pair {
    kind: Kind,
    ends: [i32; 2],
    /// Shut down: what is on its way may be lost.
    broken: bool,
}

/// One way through a pair: the order of what was submitted, by slot.
#[derive(Clone, Copy)]
struct Way {
    writes: Ring,
    reads: Ring,
}

#[derive(Clone, Copy)]
struct Ring {
    slots: [u8; SLOTS],
    first: usize,
    len: usize,
}

impl Ring {
    const EMPTY: Ring = Ring { slots: [0; SLOTS], first: 0, len: 0 };

    fn push(&mut self, slot: usize) {
        self.slots[(self.first + self.len) % SLOTS] = slot as u8;
        self.len += 1;
    }

    fn front(&self) -> Option<usize> {
        (self.len > 0).then(|| usize::from(self.slots[self.first]))
    }

    fn pop(&mut self) {
        self.first = (self.first + 1) % SLOTS;
        self.len -= 1;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Flying,
    /// Collected: so many bytes; it is kept until the bytes have been compared.
    Over(usize),
}

#[derive(Clone, Copy)]
struct Slot {
    state: State,
    fd: i32,
    /// The pair; shared ones come after the own ones.
    pair: usize,
    writes: bool,
    letter: u8,
    len: usize,
    /// Bytes of a write that a reader has seen.
    seen: usize,
}

const FREE: Slot =
    Slot { state: State::Free, fd: -1, pair: 0, writes: false, letter: 0, len: 0, seen: 0 };

/// A process's work.
struct Work {
    rng: Rng,
    pairs: [Pair; PAIRS + SHARED],
    ways: [[Way; 2]; PAIRS],
    slots: [Slot; SLOTS],
    blocks: Region,
    pieces: Region,
    data: Region,
    left: u64,
    letter: u8,
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Everything is taken out and compared.
    Drained,
    /// With requests in flight.
    Exit,
    /// Killed, with requests in flight.
    Killed,
    /// It becomes another program, with requests in flight.
    Exec,
}

impl Work {
    fn block(&self, slot: usize) -> Cb {
        Cb::at(&self.blocks, slot * aio::SIZE)
    }

    fn buffer(&self, slot: usize) -> Region {
        self.data.part(slot * LONGEST, LONGEST)
    }

    fn submit(&mut self, pair: usize, end: usize, writes: bool, most: usize) {
        let Some(slot) = self.slots.iter().position(|slot| slot.state == State::Free) else {
            return;
        };
        let kind = self.pairs[pair].kind;
        let most = if kind.is_stream() { most } else { most.min(MESSAGE) };
        let len = 1 + self.rng.below(most as u64) as usize;
        let fd = self.pairs[pair].ends[end];
        self.letter = self.letter.wrapping_add(1);
        let letter = self.letter;
        let buffer = self.buffer(slot).part(0, len);
        buffer.fill(if writes { letter } else { 0 });
        let cb = self.block(slot);
        let vectored = self.rng.one_in(4);
        if vectored {
            let cut = self.rng.below(len as u64 + 1) as usize;
            let list = self.pieces.part(slot * 48, 48);
            let pieces = [(0, cut), (cut, 0), (cut, len - cut)];
            for (index, (at, len)) in pieces.into_iter().enumerate() {
                list.put(index * 16, Iovec { base: buffer.addr() + at, len });
            }
            cb.set(aio::request(fd, 0, list.addr(), 3));
        } else {
            cb.set(aio::request(fd, 0, buffer.addr(), len));
        }
        let submitted = match (writes, vectored) {
            (false, false) => aio::read(cb.addr()),
            (false, true) => aio::readv(cb.addr()),
            (true, false) => aio::write(cb.addr()),
            (true, true) => aio::writev(cb.addr()),
        };
        match submitted {
            Ok(()) => {}
            Err(EAGAIN) => {
                Counter::Again.add(1);
                return self.reap_some();
            }
            Err(error) => return bad(format_args!("a request on {kind:?}: {error}")),
        }
        Counter::Accepted.add(1);
        self.left = self.left.saturating_sub(1);
        self.slots[slot] = Slot { state: State::Flying, fd, pair, writes, letter, len, seen: 0 };
        if pair < PAIRS && kind.is_stream() {
            // Named by the end that sends.
            let way = &mut self.ways[pair][if writes { end } else { 1 - end }];
            let ring = if writes { &mut way.writes } else { &mut way.reads };
            ring.push(slot);
        }
    }

    /// Takes what has finished, or waits a little for one.
    fn reap_some(&mut self) {
        let done = aio::waitcomplete(Some(Timespec::from_ms(2)));
        match done.cb {
            0 => {}
            cb => self.reaped((cb - self.blocks.addr()) / aio::SIZE, done.result),
        }
    }

    fn reaped(&mut self, slot: usize, result: Result<i64>) {
        let Slot { state, pair, writes, len, .. } = self.slots[slot];
        if state != State::Flying {
            return bad(format_args!("slot {slot} finished twice"));
        }
        Counter::Done.add(1);
        let count = match result {
            Ok(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Err(error) => {
                self.check_error(slot, error);
                0
            }
        };
        if count > len {
            bad(format_args!("{count} of {len} bytes"));
        }
        if count < len {
            Counter::Short.add(1);
        }
        Counter::Bytes.add(count as u64);
        let kind = self.pairs[pair].kind;
        if !writes {
            self.check_letters(slot, count);
        }
        if pair < PAIRS && kind.is_stream() {
            self.slots[slot].state = State::Over(count);
            self.compare(pair, 0);
            self.compare(pair, 1);
        } else {
            self.slots[slot].state = State::Free;
        }
    }

    fn check_error(&mut self, slot: usize, error: Errno) {
        let Slot { pair, writes, .. } = self.slots[slot];
        let Pair { kind, broken, .. } = self.pairs[pair];
        let fine = match error {
            ECANCELED => {
                Counter::Canceled.add(1);
                true
            }
            EPIPE | ENOTCONN | ECONNRESET => broken,
            // A datagram socket of the local domain does not wait for its peer.
            ENOBUFS => writes && !kind.is_stream(),
            _ => false,
        };
        if !fine {
            bad(format_args!("a request on {kind:?} (writes: {writes}): {error}"));
        }
    }

    /// A message has one letter, and what was not read is untouched.
    fn check_letters(&mut self, slot: usize, count: usize) {
        let Slot { pair, len, .. } = self.slots[slot];
        let mut bytes = [0u8; LONGEST];
        self.buffer(slot).read(0, &mut bytes[..len]);
        if bytes[count.min(len)..len].iter().any(|&byte| byte != 0) {
            bad(format_args!("bytes beyond the {count} that were read"));
        }
        let kind = self.pairs[pair].kind;
        if !kind.is_stream() && bytes[..count].iter().any(|&byte| byte != bytes[0]) {
            bad(format_args!("a message of two letters on {kind:?}"));
        }
    }

    /// Compares, as far as both are known, what came through with what was sent.
    fn compare(&mut self, pair: usize, way: usize) {
        while let Some(read) = self.ways[pair][way].reads.front() {
            let State::Over(count) = self.slots[read].state else { break };
            let mut bytes = [0u8; LONGEST];
            self.buffer(read).read(0, &mut bytes[..count]);
            for (at, &byte) in bytes[..count].iter().enumerate() {
                if !self.came(pair, way, byte) {
                    bad(format_args!(
                        "byte {at} of {count} on {:?} was not sent, or not yet",
                        self.pairs[pair].kind
                    ));
                    break;
                }
            }
            self.ways[pair][way].reads.pop();
            self.slots[read].state = State::Free;
        }
        self.forget_seen(pair, way);
    }

    /// Takes writes off of which everything has come.
    fn forget_seen(&mut self, pair: usize, way: usize) {
        while let Some(write) = self.ways[pair][way].writes.front() {
            let Slot { state: State::Over(sent), seen, .. } = self.slots[write] else { break };
            if seen > sent {
                bad(format_args!("{seen} bytes came of a write of {sent}"));
            } else if seen < sent && !self.pairs[pair].broken {
                break;
            }
            self.ways[pair][way].writes.pop();
            self.slots[write].state = State::Free;
        }
    }

    fn came(&mut self, pair: usize, way: usize, byte: u8) -> bool {
        if self.pairs[pair].broken {
            return true;
        }
        self.forget_seen(pair, way);
        let Some(write) = self.ways[pair][way].writes.front() else { return false };
        let slot = &mut self.slots[write];
        slot.seen += 1;
        slot.letter == byte && slot.seen <= slot.len
    }

    fn cancel_one(&mut self) {
        let slot = self.rng.below(SLOTS as u64) as usize;
        if self.slots[slot].state != State::Flying {
            return;
        }
        match aio::cancel(self.slots[slot].fd, self.block(slot).addr()) {
            Ok(1..=3) => {}
            other => bad(format_args!("aio_cancel: {other:?}")),
        }
    }

    fn step(&mut self) {
        let pair = self.rng.below((PAIRS + SHARED) as u64) as usize;
        let end = self.rng.below(2) as usize;
        match self.rng.below(100) {
            0..35 => self.submit(pair, end, false, LONGEST),
            35..66 => self.submit(pair, end, true, LONGEST),
            66..74 => self.cancel_one(),
            74 => {
                let fd = self.pairs[pair].ends[end];
                if let Err(error) = aio::cancel(fd, 0) {
                    bad(format_args!("aio_cancel of all: {error}"));
                }
            }
            75 if pair < PAIRS && self.rng.one_in(20) => self.replace(pair),
            // Reads that nobody would write for must not keep all slots.
            76..80 => self.submit(pair, end, true, 64),
            _ => self.reap_some(),
        }
        if self.slots.iter().all(|slot| slot.state != State::Free) {
            self.make_room();
        }
    }

    /// Every slot is taken by what waits: cancels what is left of a few.
    fn make_room(&mut self) {
        for _ in 0..8 {
            self.cancel_one();
        }
        self.reap_some();
        let full = self.slots.iter().all(|slot| slot.state != State::Free);
        if full {
            // Writes may be over of which the bytes have not been read: read them.
            let pair = self.rng.below(PAIRS as u64) as usize;
            if !self.slots.iter().any(|slot| slot.state == State::Flying) {
                self.replace(pair);
            }
        }
    }

    /// Shuts a pair down with what is in flight on it, waits for that, and makes a new one.
    fn replace(&mut self, pair: usize) {
        Counter::Shutdowns.add(1);
        self.pairs[pair].broken = true;
        for end in self.pairs[pair].ends {
            let _ = net::shutdown(end, net::SHUT_RDWR);
        }
        self.finish(pair);
        for end in self.pairs[pair].ends {
            let _ = sys::close(end);
        }
        match self.pairs[pair].kind.make() {
            Ok((one, two)) => {
                self.pairs[pair].ends = [one, two];
                self.pairs[pair].broken = false;
            }
            Err(error) => bad(format_args!("a new pair: {error}")),
        }
    }

    /// Ends all that is in flight on a pair.
    fn finish(&mut self, pair: usize) {
        // A datagram socket's requests do not end by a shutdown of the peer.
        for end in self.pairs[pair].ends {
            let _ = aio::cancel(end, 0);
        }
        while self.slots.iter().any(|slot| slot.state == State::Flying && slot.pair == pair) {
            self.reap_some();
        }
        for way in 0..2 {
            if pair < PAIRS {
                self.compare(pair, way);
            }
        }
    }

    /// Reads everything that was sent on a stream, and compares.
    fn drain(&mut self, pair: usize) {
        for end in 0..2 {
            loop {
                self.compare(pair, end);
                let Some(write) = self.ways[pair][end].writes.front() else { break };
                let before = (write, self.slots[write].seen);
                self.submit(pair, 1 - end, false, LONGEST);
                if self.ways[pair][end].reads.len == 0 {
                    // Other processes have all places.
                    sleep_ms(1);
                    continue;
                }
                while self.ways[pair][end].reads.len > 0 {
                    self.reap_some();
                }
                if self.ways[pair][end].writes.front().map(|now| (now, self.slots[now].seen))
                    == Some(before)
                {
                    return bad(format_args!(
                        "{:?}: {} of the bytes of a write do not come",
                        self.pairs[pair].kind, before.1
                    ));
                }
            }
        }
    }

    fn run(&mut self, end: End) -> i32 {
        while self.left > 0 {
            self.step();
        }
        Counter::Ends.add(1);
        match end {
            End::Exit => 0,
            End::Killed => {
                let _ = sys::kill(sys::getpid(), sys::SIGKILL);
                1
            }
            End::Exec => {
                let failed = sys::own_path()
                    .and_then(|own| sys::exec_words([own.as_cstr(), c"--after-exec"].into_iter()));
                bad(format_args!("exec: {failed:?}"));
                1
            }
            End::Drained => {
                for pair in 0..PAIRS {
                    if self.pairs[pair].kind.is_stream() {
                        // Reads first: what waits is served in order.
                        for end in 0..2 {
                            let _ = aio::cancel(self.pairs[pair].ends[end], 0);
                        }
                        while self
                            .slots
                            .iter()
                            .any(|slot| slot.state == State::Flying && slot.pair == pair)
                        {
                            self.reap_some();
                        }
                        self.drain(pair);
                    } else {
                        self.finish(pair);
                    }
                }
                for pair in PAIRS..PAIRS + SHARED {
                    self.finish(pair);
                }
                let lost = self.slots.iter().filter(|slot| slot.state != State::Free).count();
                if lost > 0 {
                    bad(format_args!("{lost} requests are left"));
                }
                0
            }
        }
    }
}

fn child(seed: u64, requests: u64, common: &[Pair; SHARED]) -> Result<i32> {
    let pipes = common[0].kind == Kind::Pipe;
    sys::signal(13, sys::SIG_IGN, 0)?;
    let mut rng = Rng::new(seed);
    let end = match rng.below(8) {
        0 => End::Exit,
        1 => End::Killed,
        2 => End::Exec,
        _ => End::Drained,
    };
    let mut pairs = [common[0]; PAIRS + SHARED];
    pairs[PAIRS..].copy_from_slice(common);
    for (index, pair) in pairs[..PAIRS].iter_mut().enumerate() {
        let kind = if pipes { Kind::Pipe } else { KINDS[index] };
        let (one, two) = kind.make()?;
        *pair = Pair { kind, ends: [one, two], broken: false };
    }
    let ring = Ring::EMPTY;
    let mut work = Work {
        rng,
        pairs,
        ways: [[Way { writes: ring, reads: ring }; 2]; PAIRS],
        slots: [FREE; SLOTS],
        blocks: Region::map(SLOTS * aio::SIZE)?,
        pieces: Region::map(SLOTS * 48)?,
        data: Region::map(SLOTS * LONGEST)?,
        left: requests,
        letter: 0,
    };
    Ok(work.run(end))
}

/// Starts a process that reads or writes the pairs all share, with calls that wait. What it writes is
/// long enough that the pipe has its pages for it.
fn rival(common: &[Pair; SHARED], writes: bool) -> Result<i32> {
    if let Fork::Parent(pid) = sys::fork()? {
        return Ok(pid);
    }
    let mut bytes = [b'r'; 20_000];
    for round in 0.. {
        let end = common[round % SHARED].ends[round / SHARED % 2];
        let ended = if writes { sys::write(end, &bytes) } else { sys::read(end, &mut bytes) };
        if ended.is_err() {
            break;
        }
        sleep_ms(1);
    }
    sys::exit(0)
}

fn run(args: Args) -> i32 {
    if args.has(c"--after-exec") {
        return 0;
    }
    match supervise(args) {
        Ok(status) => status,
        Err(error) => {
            println!("storm: {error}");
            2
        }
    }
}

fn supervise(args: Args) -> Result<i32> {
    let procs = (args.number(c"--procs", 4) as usize).clamp(1, PROCS);
    let requests = args.number(c"--requests", 200_000);
    let least = args.number(c"--each", 400).max(1);
    let seed = args.number(c"--seed", 1);
    if args.has(c"--own-stack")
        && let Err(error @ (EPERM | EINVAL | ENOSYS)) = net::own_stack()
    {
        println!("storm: no network stack to be had: {error}");
        return Ok(77);
    }
    COUNTERS.map()?;
    let pipes = args.has(c"--pipes");
    let _parked = if pipes { Some(Setting::new("vfs.aio.rs.park", 1)?) } else { None };
    let kind = if pipes { Kind::Pipe } else { Kind::Local };
    let mut common = [Pair { kind, ends: [0; 2], broken: false }; SHARED];
    for pair in &mut common {
        let (one, two) = pair.kind.make()?;
        pair.ends = [one, two];
    }
    let rivals = if pipes { [rival(&common, false)?, rival(&common, true)?] } else { [0; 2] };
    let before = served();
    let mut pids = [0; PROCS];
    let (mut number, mut moved, mut last) = (0, now(), 0);
    let start = now();
    loop {
        let more = Counter::Accepted.get() < requests;
        for pid in &mut pids[..procs] {
            if *pid == 0 && more {
                number += 1;
                *pid = match sys::fork()? {
                    Fork::Child => {
                        let each = least + (number * 7919) % (4 * least);
                        let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
                        let status = child(seed, each, &common).unwrap_or_else(|error| {
                            bad(format_args!("a process: {error}"));
                            2
                        });
                        sys::exit(status)
                    }
                    Fork::Parent(pid) => pid,
                };
            }
            if *pid != 0
                && let Some((_, ended)) = sys::wait(*pid, sys::WNOHANG)?
            {
                *pid = 0;
                if !matches!(ended, Ended::Exit(0) | Ended::Signal(sys::SIGKILL)) {
                    bad(format_args!("a process ended by {ended:?}"));
                }
            }
        }
        let total = Counter::Accepted.get() + Counter::Done.get() + Counter::Ends.get();
        if total != last {
            (last, moved) = (total, now());
        }
        let hangs = ms_since(moved) > HANG_MS;
        if hangs {
            bad(format_args!("nothing moves"));
        }
        if hangs || (!more && pids.iter().all(|&pid| pid == 0)) {
            for &pid in pids.iter().filter(|&&pid| pid != 0) {
                let _ = sys::kill(pid, sys::SIGKILL);
            }
            break;
        }
        sleep_ms(5);
    }
    for pid in rivals.into_iter().filter(|&pid| pid != 0) {
        let _ = sys::kill(pid, sys::SIGKILL);
        let _ = sys::wait_for(pid);
    }
    let served = served().zip(before).map(|(after, before)| after - before);
    println!(
        "storm: seed {seed} procs {procs} ends {number} accepted {} done {} cancelled {} short {} \
         bytes {} again {} shutdowns {} served {} bad {} ms {}",
        Counter::Accepted.get(),
        Counter::Done.get(),
        Counter::Canceled.get(),
        Counter::Short.get(),
        Counter::Bytes.get(),
        Counter::Again.get(),
        Counter::Shutdowns.get(),
        Maybe(served),
        Counter::Bad.get(),
        ms_since(start),
    );
    Ok(i32::from(Counter::Bad.get() > 0))
}
