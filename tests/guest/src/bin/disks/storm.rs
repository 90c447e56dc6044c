// SPDX-License-Identifier: BSD-2-Clause
//! A storm of random requests at a fixed depth, checked against a model of the disk.
//!
//! Every sector's words follow from the sector's number and a tag, and the model knows the tag of
//! each. Requests that overlap are not in flight at once unless all of them read.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINTR, EOPNOTSUPP};
use guest::mem::Region;
use guest::rng::{Rng, mix};
use guest::sys::{self, Iovec};
use guest::time::{ms_since, now};
use guest::{Args, Errno, Result, println, sysctl};

const SECTOR: usize = 512;
/// The most sectors a disk may have here.
const SECTORS: usize = 65_536;
/// The most requests in flight.
const DEPTH: usize = 128;
/// The longest request.
const LONGEST: usize = 1 << 20;
/// The most pieces of a request.
const PIECES: usize = 16;
/// A control block and the list of pieces, then the buffer, with room for gaps.
const SLOT: usize = 4096 + LONGEST + PIECES * 4096 + 4096;

/// The tag a sector holds.
static TAGS: [AtomicU64; SECTORS] = [const { AtomicU64::new(0) }; SECTORS];
/// Readers in flight, or [`WRITER`].
static USERS: [AtomicU64; SECTORS] = [const { AtomicU64::new(0) }; SECTORS];
const WRITER: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    live: bool,
    writes: bool,
    first: usize,
    sectors: usize,
    tag: u64,
    pieces: [Piece; PIECES],
    count: usize,
}

const EMPTY: Slot = Slot {
    live: false,
    writes: false,
    first: 0,
    sectors: 0,
    tag: 0,
    pieces: [Piece { start: 0, len: 0 }; PIECES],
    count: 0,
};

enum Submitted {
    Accepted,
    /// Another request has its sectors.
    InTheWay,
    /// The process has all buffers it may have, or a setting forbids it for now.
    Refused,
}

struct Storm {
    fd: i32,
    memory: Region,
    slots: [Slot; DEPTH],
    rng: Rng,
    seed: u64,
    sectors: usize,
    faults: bool,
    settings: bool,
    tag: u64,
    moved: u64,
    failed: u64,
    again: u64,
    vectors: u64,
}

pub fn run(path: &CStr, args: Args) -> i32 {
    match storm(path, args) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            println!("storm: cannot go on: {error}");
            2
        }
    }
}

fn word(sector: usize, tag: u64, index: usize) -> u64 {
    mix(tag ^ ((sector as u64) << 24) ^ (index as u64) << 48)
}

fn storm(path: &CStr, args: Args) -> Result<bool> {
    let depth = args.number(c"--depth", 64).clamp(1, DEPTH as u64) as usize;
    let target = args.number(c"--requests", 100_000);
    let seed = args.number(c"--seed", 1);
    let bytes = args.number(c"--bytes", 8 << 20) as usize;
    let sectors = (bytes / SECTOR).clamp(2 * LONGEST / SECTOR, SECTORS);
    let fd = sys::open(path, sys::O_RDWR, 0)?;
    let memory = Region::map(SLOT * depth + LONGEST)?;
    let mut storm = Storm {
        fd,
        memory,
        slots: [EMPTY; DEPTH],
        rng: Rng::new(seed),
        seed,
        sectors,
        faults: args.has(c"--faults"),
        settings: args.has(c"--settings"),
        tag: 0,
        moved: 0,
        failed: 0,
        again: 0,
        vectors: 0,
    };
    let gauges = || {
        ["vfs.aio.num_buf_aio", "vfs.aio.num_unmapped_aio", "vfs.aio.num_queue_count"]
            .map(sysctl::get)
    };
    let (before, served, start) = (gauges(), sysctl::served(), now());
    println!("storm: seed={seed} depth={depth} requests={target} sectors={sectors}");
    storm.fill(depth)?;
    let (mut made, mut good) = (0, true);
    let mut shown = 0;
    while made < target && good {
        for index in 0..depth {
            if storm.slots[index].live || made == target {
                continue;
            }
            match storm.submit(index)? {
                Submitted::Accepted => made += 1,
                Submitted::InTheWay => {}
                Submitted::Refused => break,
            }
        }
        good &= storm.collect(depth)?;
        if made * 10 / target > shown {
            shown = made * 10 / target;
            println!("storm: {made} of {target}");
        }
    }
    while good && storm.slots.iter().any(|slot| slot.live) {
        good &= storm.collect(depth)?;
    }
    good &= storm.look_at_all(depth)?;
    let served = served.zip(sysctl::served()).map(|(before, now)| now.wrapping_sub(before));
    let after = gauges();
    if good && after != before && !args.has(c"--beside") {
        println!("storm: BAD: gauges {before:?} before and {after:?} after");
        good = false;
    }
    println!(
        "storm: requests={made} vectors={} bytes={} failed={} again={} served={} ms={} {}",
        storm.vectors,
        storm.moved,
        storm.failed,
        storm.again,
        sysctl::Maybe(served),
        ms_since(start),
        if good { "ok" } else { "FAILED" },
    );
    sys::close(fd)?;
    Ok(good)
}

impl Storm {
    fn slot_memory(&self, index: usize) -> Region {
        self.memory.part(index * SLOT, SLOT)
    }

    fn bad(&self, args: core::fmt::Arguments<'_>) {
        println!("storm: BAD (seed {}): {args}", self.seed);
    }

    /// Writes every sector with tag 0.
    fn fill(&mut self, depth: usize) -> Result<()> {
        let buffer = self.memory.part(SLOT * depth, LONGEST);
        let step = LONGEST / SECTOR;
        for first in (0..self.sectors).step_by(step) {
            let count = step.min(self.sectors - first);
            for sector in 0..count {
                for index in 0..SECTOR / 8 {
                    buffer.set_word(sector * SECTOR + index * 8, word(first + sector, 0, index));
                }
            }
            let at = (first * SECTOR) as i64;
            while sys::pwrite_at(self.fd, buffer.addr(), count * SECTOR, at).is_err() {
                if !self.faults {
                    return Err(guest::errno::EIO);
                }
            }
        }
        Ok(())
    }

    /// Takes a range for a request, if no other is in the way.
    fn claim(&self, first: usize, sectors: usize, writes: bool) -> bool {
        let users = &USERS[first..first + sectors];
        let free = |users: &AtomicU64| match users.load(Relaxed) {
            0 => true,
            WRITER => false,
            _ => !writes,
        };
        if !users.iter().all(free) {
            return false;
        }
        for one in users {
            one.store(if writes { WRITER } else { one.load(Relaxed) + 1 }, Relaxed);
        }
        true
    }

    fn release(&self, first: usize, sectors: usize, writes: bool) {
        for one in &USERS[first..first + sectors] {
            one.store(if writes { 0 } else { one.load(Relaxed) - 1 }, Relaxed);
        }
    }

    /// Makes a request, if it can be.
    fn submit(&mut self, index: usize) -> Result<Submitted> {
        let sectors = match self.rng.below(16) {
            0..8 => 1 + self.rng.below(16),
            8..14 => 1 + self.rng.below(128),
            14 => 1 + self.rng.below(512),
            _ => 1 + self.rng.below((LONGEST / SECTOR) as u64),
        } as usize;
        let first = self.rng.below((self.sectors - sectors + 1) as u64) as usize;
        let writes = self.rng.one_in(2);
        if !self.claim(first, sectors, writes) {
            return Ok(Submitted::InTheWay);
        }
        self.tag += 1;
        let mut slot = Slot { live: true, writes, first, sectors, tag: self.tag, ..EMPTY };
        slot.count = match self.rng.below(3) {
            0 => 1 + self.rng.below((sectors as u64).min(PIECES as u64)) as usize,
            _ => 1,
        };
        let vector = slot.count > 1 || self.rng.one_in(8);
        let memory = self.slot_memory(index);
        let (mut left, mut at) = (sectors, 4096);
        for piece in 0..slot.count {
            let rest = slot.count - 1 - piece;
            let take =
                if rest == 0 { left } else { 1 + self.rng.below((left - rest) as u64) as usize };
            // Anywhere in a page.
            let gap = if self.rng.one_in(2) { self.rng.below(4096) as usize } else { 0 };
            slot.pieces[piece] = Piece { start: at + gap, len: take * SECTOR };
            at += gap + take * SECTOR;
            left -= take;
        }
        if writes {
            self.put(&slot, &memory);
        }
        let cb = Cb::at(&memory, 0);
        let offset = (first * SECTOR) as i64;
        let result = if vector {
            self.vectors += 1;
            for (index, piece) in slot.pieces[..slot.count].iter().enumerate() {
                let iov = Iovec { base: memory.at(piece.start), len: piece.len };
                memory.put(1024 + index * 16, iov);
            }
            cb.set(aio::request(self.fd, offset, memory.at(1024), slot.count));
            if writes { aio::writev(cb.addr()) } else { aio::readv(cb.addr()) }
        } else {
            let piece = slot.pieces[0];
            cb.set(aio::request(self.fd, offset, memory.at(piece.start), piece.len));
            if writes { aio::write(cb.addr()) } else { aio::read(cb.addr()) }
        };
        match result {
            Ok(()) => {
                self.slots[index] = slot;
                Ok(Submitted::Accepted)
            }
            Err(error) if error == EAGAIN || self.settings && error == EOPNOTSUPP => {
                self.again += 1;
                self.release(first, sectors, writes);
                Ok(Submitted::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// The bytes of a piece's words, one by one: pieces begin anywhere.
    fn put(&self, slot: &Slot, memory: &Region) {
        let mut sector = slot.first;
        for piece in &slot.pieces[..slot.count] {
            for start in (0..piece.len).step_by(SECTOR) {
                let mut bytes = [0u8; SECTOR];
                for (index, chunk) in bytes.chunks_mut(8).enumerate() {
                    chunk.copy_from_slice(&word(sector, slot.tag, index).to_le_bytes());
                }
                memory.write(piece.start + start, &bytes);
                sector += 1;
            }
        }
    }

    /// Whether a sector's bytes are what the model has.
    fn check(&self, sector: usize, bytes: &[u8; SECTOR]) -> bool {
        let tag = TAGS[sector].load(Relaxed);
        let mut words = bytes.chunks(8).enumerate();
        words.all(|(index, chunk)| chunk == word(sector, tag, index).to_le_bytes())
    }

    fn look(&self, slot: &Slot, memory: &Region, what: &str) -> bool {
        let mut sector = slot.first;
        for piece in &slot.pieces[..slot.count] {
            for start in (0..piece.len).step_by(SECTOR) {
                let mut bytes = [0u8; SECTOR];
                memory.read(piece.start + start, &mut bytes);
                if !self.check(sector, &bytes) {
                    self.bad(format_args!("{what}: sector {sector} of {}", slot.first));
                    return false;
                }
                sector += 1;
            }
        }
        true
    }

    /// Waits for one request, and deals with it.
    fn collect(&mut self, depth: usize) -> Result<bool> {
        if !self.slots.iter().any(|slot| slot.live) {
            return Ok(true);
        }
        let done = aio::waitcomplete(None);
        if done.cb == 0 {
            return match done.result {
                Err(EINTR) => Ok(true),
                Err(error) => Err(error),
                Ok(_) => Err(Errno(0)),
            };
        }
        let index = (done.cb - self.memory.addr()) / SLOT;
        if index >= depth || !self.slots[index].live {
            self.bad(format_args!("an unknown request at {:#x}", done.cb));
            return Ok(false);
        }
        let slot = core::mem::replace(&mut self.slots[index], EMPTY);
        let memory = self.slot_memory(index);
        let good = match done.result {
            Ok(count) if count as usize == slot.sectors * SECTOR => {
                self.moved += count as u64;
                if slot.writes {
                    self.wrote(&slot);
                    true
                } else {
                    self.look(&slot, &memory, "a read")
                }
            }
            Err(_) if self.faults => {
                self.failed += 1;
                !slot.writes || self.mend(&slot, &memory)
            }
            other => {
                let Slot { first, sectors, writes, .. } = slot;
                self.bad(format_args!("{sectors} at {first}, writes {writes}: {other:?}"));
                false
            }
        };
        self.release(slot.first, slot.sectors, slot.writes);
        Ok(good)
    }

    /// Writes what a failed request was to write, piece by piece, until it is there.
    fn mend(&self, slot: &Slot, memory: &Region) -> bool {
        let mut at = slot.first * SECTOR;
        for piece in &slot.pieces[..slot.count] {
            let mut tries = 0;
            while sys::pwrite_at(self.fd, memory.at(piece.start), piece.len, at as i64)
                != Ok(piece.len)
            {
                tries += 1;
                if tries > 1000 {
                    self.bad(format_args!("a write fails for ever"));
                    return false;
                }
            }
            at += piece.len;
        }
        self.wrote(slot);
        true
    }

    fn wrote(&self, slot: &Slot) {
        for tag in &TAGS[slot.first..slot.first + slot.sectors] {
            tag.store(slot.tag, Relaxed);
        }
    }

    /// Reads all of the disk by pread(2).
    fn look_at_all(&self, depth: usize) -> Result<bool> {
        let buffer = self.memory.part(SLOT * depth, LONGEST);
        let step = LONGEST / SECTOR;
        for first in (0..self.sectors).step_by(step) {
            let sectors = step.min(self.sectors - first);
            let len = sectors * SECTOR;
            let mut tries = 0;
            while sys::pread_at(self.fd, buffer.addr(), len, (first * SECTOR) as i64) != Ok(len) {
                tries += 1;
                if !self.faults || tries > 1000 {
                    return Err(guest::errno::EIO);
                }
            }
            let mut slot = Slot { first, sectors, count: 1, ..EMPTY };
            slot.pieces[0] = Piece { start: 0, len };
            if !self.look(&slot, &buffer, "the disk at the end") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
