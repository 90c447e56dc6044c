// SPDX-License-Identifier: BSD-2-Clause
//! Copies a directory tree with aio_read(2) and aio_write(2), many requests in flight, collected
//! with aio_waitcomplete(2), and compares the copy with pread(2) afterwards.
//!
//! `aio_copytree SRC DST [--inflight N] [--make-mb MIB] [--seed S]`: with `--make-mb` SRC is made
//! first, of files of many sizes in directories of several levels, with contents that the seed
//! determines. DST must not exist. It prints files, bytes, requests, workers, errors and the
//! counters of vfs.aio before and after, and exits 1 when the copy differs, a request failed, or
//! a gauge did not come back.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINTR};
use guest::mem::Region;
use guest::out::Text;
use guest::path::Path;
use guest::rng::Rng;
use guest::sysctl::{self, Maybe, served};
use guest::time::{ms_since, now};
use guest::{Args, Errno, println, sys};

/// How much one request moves.
const CHUNK: usize = 64 << 10;
/// The most requests in flight; the kernel allows 256 for a process.
const MOST: usize = 240;
/// Bytes between control blocks.
const STRIDE: usize = 192;
/// Gauges that must come back, and the number of the built-in's workers, which may grow.
const GAUGES: [&str; 3] =
    ["vfs.aio.num_queue_count", "vfs.aio.num_buf_aio", "vfs.aio.num_unmapped_aio"];

type Failure = Text<300>;
type Outcome<T = ()> = Result<T, Failure>;

guest::program!(run);

fn failed(what: &str, path: &Path, error: Errno) -> Failure {
    Failure::of(format_args!("{what} {path}: {error}"))
}

fn run(args: Args) -> i32 {
    let mut plain = args.plain(&[c"--inflight", c"--make-mb", c"--seed"]);
    let (Some(from), Some(to)) = (plain.next(), plain.next()) else {
        guest::eprintln!("usage: aio_copytree SRC DST [--inflight N] [--make-mb MIB] [--seed S]");
        return 2;
    };
    let (from, to) = (Path::new(from.to_bytes()), Path::new(to.to_bytes()));
    let in_flight = (args.number(c"--inflight", 64) as usize).clamp(1, MOST);
    let outcome = (|| {
        if args.has(c"--make-mb") {
            let bytes = args.number(c"--make-mb", 64) << 20;
            make(&from, bytes, &mut Rng::new(args.number(c"--seed", 1)))?;
        }
        copy_and_compare(from, to, in_flight)
    })();
    match outcome {
        Ok(()) => {
            println!("aio_copytree: ok");
            0
        }
        Err(why) => {
            println!("aio_copytree: FAILED: {}", why.as_str());
            1
        }
    }
}

fn copy_and_compare(from: Path, to: Path, in_flight: usize) -> Outcome {
    let before = GAUGES.map(sysctl::get);
    let built_in = sysctl::get("vfs.aio.num_aio_procs");
    let (served_before, unserved) = (served(), || sysctl::get("vfs.aio.rs.unserved"));
    let unserved_before = unserved();
    let start = now();
    let mut copier = Copier::new(in_flight)?;
    let (mut source, mut target) = (from, to);
    copier.tree(&mut source, &mut target)?;
    copier.drain()?;
    let ms = ms_since(start);
    let counts = &copier.counts;
    let served_after = served();
    println!(
        "aio_copytree: files={} dirs={} others={} bytes={} requests={} in_flight={in_flight} errors={} again={} ms={ms}",
        counts.files,
        counts.dirs,
        counts.others,
        counts.bytes,
        counts.requests,
        counts.errors,
        counts.again,
    );
    println!(
        "aio_copytree: workers={} served before={} after={} unserved before={} after={}",
        Maybe(counts.workers),
        Maybe(served_before),
        Maybe(served_after),
        Maybe(unserved_before),
        Maybe(unserved()),
    );
    let after = GAUGES.map(sysctl::get);
    for ((name, before), after) in GAUGES.into_iter().zip(before).zip(after) {
        println!("aio_copytree: {name} before={} after={}", Maybe(before), Maybe(after));
    }
    println!(
        "aio_copytree: vfs.aio.num_aio_procs before={} after={}",
        Maybe(built_in),
        Maybe(sysctl::get("vfs.aio.num_aio_procs")),
    );
    if counts.errors > 0 {
        return Err(Failure::of(format_args!("{} requests failed", counts.errors)));
    }
    if before != after {
        return Err(Failure::of(format_args!("a gauge did not come back")));
    }
    let rise = served_before.zip(served_after).map(|(before, after)| after.wrapping_sub(before));
    if rise.is_some_and(|rise| rise != 0 && rise < counts.requests) {
        return Err(Failure::of(format_args!("only {} requests were served", Maybe(rise))));
    }
    let (files, bytes) = (counts.files, counts.bytes);
    let (mut source, mut target) = (from, to);
    let (mut seen, mut compared) = (0, 0);
    compare(&mut source, &mut target, &copier.memory, &mut seen, &mut compared)?;
    println!("aio_copytree: compared files={seen} bytes={compared}");
    if (seen, compared) != (files, bytes) {
        return Err(Failure::of(format_args!("{files} files of {bytes} bytes were copied")));
    }
    Ok(())
}

/// Makes a tree of about so many bytes: every directory gets files of each size, then
/// subdirectories.
fn make(root: &Path, bytes: u64, rng: &mut Rng) -> Outcome {
    const SIZES: [u64; 14] = [
        0,
        1,
        511,
        4095,
        4096,
        4097,
        10_000,
        65_535,
        65_536,
        65_537,
        200_003,
        700_000,
        1 << 20,
        3_000_001,
    ];
    let mut left = bytes;
    let mut number = 0;
    sys::mkdir(root.as_cstr(), 0o755).map_err(|error| failed("mkdir", root, error))?;
    while left > 0 {
        let mut path = *root;
        // Up to three levels below the root, so that some directories hold only directories.
        for _ in 0..rng.below(4) {
            path.push(Text::<16>::of(format_args!("d{}", rng.below(3))).as_bytes());
            match sys::mkdir(path.as_cstr(), 0o755) {
                Ok(()) | Err(guest::errno::EEXIST) => {}
                Err(error) => return Err(failed("mkdir", &path, error)),
            }
        }
        path.push(Text::<16>::of(format_args!("f{number}")).as_bytes());
        number += 1;
        let size = SIZES[rng.below(SIZES.len() as u64) as usize].min(left);
        fill(&path, size, rng)?;
        left -= size;
    }
    let mut empty = *root;
    empty.push(b"empty");
    sys::mkdir(empty.as_cstr(), 0o755).map_err(|error| failed("mkdir", &empty, error))
}

fn fill(path: &Path, size: u64, rng: &mut Rng) -> Outcome {
    let flags = sys::O_WRONLY | sys::O_CREAT | sys::O_EXCL;
    let fd =
        sys::open(path.as_cstr(), flags, 0o644).map_err(|error| failed("create", path, error))?;
    let mut bytes = [0u8; 16384];
    let mut left = size as usize;
    while left > 0 {
        let count = left.min(bytes.len());
        rng.fill(&mut bytes[..count]);
        let written =
            sys::write(fd, &bytes[..count]).map_err(|error| failed("write", path, error))?;
        if written != count {
            return Err(Failure::of(format_args!("write {path}: {written} of {count} bytes")));
        }
        left -= count;
    }
    sys::close(fd).map_err(|error| failed("close", path, error))
}

#[derive(Default)]
struct Counts {
    files: u64,
    dirs: u64,
    others: u64,
    bytes: u64,
    requests: u64,
    errors: u64,
    again: u64,
    workers: Option<u64>,
}

/// What a slot is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Reading,
    Writing,
}

#[derive(Clone, Copy)]
struct Slot {
    phase: Phase,
    file: usize,
    offset: i64,
    len: usize,
}

/// A file that is being copied; closed when its last request is done.
#[derive(Clone, Copy)]
struct File {
    from: i32,
    to: i32,
    pending: usize,
    /// All of its requests were made.
    submitted: bool,
    used: bool,
}

struct Copier {
    memory: Region,
    in_flight: usize,
    live: usize,
    slots: [Slot; MOST],
    /// One more than the slots: the one whose requests are being made may have none yet.
    files: [File; MOST + 1],
    counts: Counts,
}

impl Copier {
    fn new(in_flight: usize) -> Outcome<Self> {
        let len = (in_flight * STRIDE).next_multiple_of(4096) + in_flight.max(2) * CHUNK;
        let memory =
            Region::map(len).map_err(|error| Failure::of(format_args!("mmap: {error}")))?;
        Ok(Self {
            memory,
            in_flight,
            live: 0,
            slots: [Slot { phase: Phase::Free, file: 0, offset: 0, len: 0 }; MOST],
            files: [File { from: -1, to: -1, pending: 0, submitted: false, used: false }; MOST + 1],
            counts: Counts::default(),
        })
    }

    fn cb(&self, slot: usize) -> Cb {
        Cb::at(&self.memory, slot * STRIDE)
    }

    fn buffer(&self, slot: usize) -> Region {
        let start = (self.in_flight * STRIDE).next_multiple_of(4096);
        self.memory.part(start + slot * CHUNK, CHUNK)
    }

    fn tree(&mut self, from: &mut Path, to: &mut Path) -> Outcome {
        sys::mkdir(to.as_cstr(), 0o755).map_err(|error| failed("mkdir", to, error))?;
        self.counts.dirs += 1;
        each_entry(from, &mut |from, kind, name| {
            let (from_len, to_len) = (from.push(name), to.push(name));
            let outcome = match kind {
                sys::DT_DIR => self.tree(from, to),
                sys::DT_REG => self.file(from, to),
                _ => {
                    self.counts.others += 1;
                    Ok(())
                }
            };
            from.truncate(from_len);
            to.truncate(to_len);
            outcome
        })
    }

    fn file(&mut self, from: &Path, to: &Path) -> Outcome {
        let source = sys::open(from.as_cstr(), sys::O_RDONLY, 0)
            .map_err(|error| failed("open", from, error))?;
        let flags = sys::O_RDWR | sys::O_CREAT | sys::O_EXCL;
        let target =
            sys::open(to.as_cstr(), flags, 0o644).map_err(|error| failed("create", to, error))?;
        let size = sys::fstat(source).map_err(|error| failed("fstat", from, error))?.size;
        self.counts.files += 1;
        self.counts.bytes += size as u64;
        let free = |file: &File| !file.used;
        let index = self
            .files
            .iter()
            .position(free)
            .ok_or_else(|| Failure::of(format_args!("no file slot")))?;
        self.files[index] =
            File { from: source, to: target, pending: 0, submitted: false, used: true };
        let mut offset = 0;
        while offset < size {
            while self.live == self.in_flight {
                self.reap()?;
            }
            let free = |slot: &Slot| slot.phase == Phase::Free;
            let slot = self.slots.iter().position(free).unwrap_or(0);
            let len = (size - offset).min(CHUNK as i64) as usize;
            self.slots[slot] = Slot { phase: Phase::Reading, file: index, offset, len };
            self.files[index].pending += 1;
            self.live += 1;
            self.submit(slot)?;
            offset += len as i64;
        }
        self.files[index].submitted = true;
        self.close_if_done(index);
        Ok(())
    }

    fn close_if_done(&mut self, index: usize) {
        let file = &mut self.files[index];
        if file.submitted && file.pending == 0 {
            let _ = sys::close(file.from);
            let _ = sys::close(file.to);
            file.used = false;
        }
    }

    /// Makes a slot's next request; while the kernel has no room, collects others.
    fn submit(&mut self, slot: usize) -> Outcome {
        let Slot { phase, file, offset, len } = self.slots[slot];
        let cb = self.cb(slot);
        let file = self.files[file];
        let fd = if phase == Phase::Reading { file.from } else { file.to };
        loop {
            cb.set(aio::request(fd, offset, self.buffer(slot).addr(), len));
            let result =
                if phase == Phase::Reading { aio::read(cb.addr()) } else { aio::write(cb.addr()) };
            match result {
                Ok(()) => break,
                Err(EAGAIN) => {
                    self.counts.again += 1;
                    if self.live > 1 {
                        self.reap()?;
                    } else {
                        sys::sched_yield();
                    }
                }
                Err(error) => return Err(Failure::of(format_args!("submit at {offset}: {error}"))),
            }
        }
        self.counts.requests += 1;
        if self.counts.requests.is_multiple_of(64) {
            self.counts.workers = self.counts.workers.max(sysctl::get("vfs.aio.rs.num_procs"));
        }
        Ok(())
    }

    /// Collects one request and makes the one that follows it.
    fn reap(&mut self) -> Outcome {
        let done = loop {
            let done = aio::waitcomplete(None);
            if done.cb != 0 || done.result != Err(EINTR) {
                break done;
            }
        };
        let slot = done.cb.wrapping_sub(self.memory.addr()) / STRIDE;
        if done.cb == 0 || slot >= self.in_flight || self.slots[slot].phase == Phase::Free {
            return Err(Failure::of(format_args!("aio_waitcomplete: {done:?}")));
        }
        let Slot { phase, file, offset, len } = self.slots[slot];
        if done.result != Ok(len as i64) {
            self.counts.errors += 1;
            if self.counts.errors <= 5 {
                let what = if phase == Phase::Reading { "aio_read" } else { "aio_write" };
                println!("aio_copytree: {what} of {len} bytes at {offset}: {:?}", done.result);
            }
        } else if phase == Phase::Reading {
            self.slots[slot].phase = Phase::Writing;
            return self.submit(slot);
        }
        self.slots[slot].phase = Phase::Free;
        self.live -= 1;
        self.files[file].pending -= 1;
        self.close_if_done(file);
        Ok(())
    }

    fn drain(&mut self) -> Outcome {
        while self.live > 0 {
            self.reap()?;
        }
        Ok(())
    }
}

/// Hands each entry of a directory to a function, with the path of the directory.
fn each_entry(dir: &mut Path, take: &mut dyn FnMut(&mut Path, u8, &[u8]) -> Outcome) -> Outcome {
    let fd = sys::open(dir.as_cstr(), sys::O_RDONLY | sys::O_DIRECTORY, 0)
        .map_err(|error| failed("open", dir, error))?;
    let mut bytes = [0u8; 4096];
    loop {
        let count = sys::getdirentries(fd, &mut bytes)
            .map_err(|error| failed("getdirentries", dir, error))?;
        if count == 0 {
            break;
        }
        for (kind, name) in sys::dirents(&bytes[..count]) {
            take(dir, kind, name)?;
        }
    }
    sys::close(fd).map_err(|error| failed("close", dir, error))
}

/// Compares two trees; counts files and bytes.
fn compare(
    from: &mut Path,
    to: &mut Path,
    memory: &Region,
    files: &mut u64,
    bytes: &mut u64,
) -> Outcome {
    let mut entries = 0;
    each_entry(from, &mut |from, kind, name| {
        entries += 1;
        let (from_len, to_len) = (from.push(name), to.push(name));
        let outcome = match kind {
            sys::DT_DIR => compare(from, to, memory, files, bytes),
            sys::DT_REG => {
                *files += 1;
                compare_file(from, to, memory).map(|len| *bytes += len)
            }
            _ => {
                entries -= 1;
                Ok(())
            }
        };
        from.truncate(from_len);
        to.truncate(to_len);
        outcome
    })?;
    let mut copied = 0;
    each_entry(to, &mut |_, _, _| {
        copied += 1;
        Ok(())
    })?;
    if entries == copied {
        return Ok(());
    }
    Err(Failure::of(format_args!("{to} has {copied} entries, not {entries}")))
}

fn compare_file(from: &Path, to: &Path, memory: &Region) -> Outcome<u64> {
    let open = |path: &Path| {
        sys::open(path.as_cstr(), sys::O_RDONLY, 0).map_err(|error| failed("open", path, error))
    };
    let (source, copy) = (open(from)?, open(to)?);
    let (one, two) = (memory.part(0, CHUNK), memory.part(memory.len() - CHUNK, CHUNK));
    let mut offset = 0;
    loop {
        let read = |fd, buffer: &Region, path| {
            sys::pread_at(fd, buffer.addr(), CHUNK, offset)
                .map_err(|error| failed("pread", path, error))
        };
        let (count, other) = (read(source, &one, from)?, read(copy, &two, to)?);
        if count != other {
            return Err(Failure::of(format_args!("{to}: {other} bytes at {offset}, not {count}")));
        }
        if let Some(at) = one.part(0, count).first_difference(&two.part(0, count)) {
            return Err(Failure::of(format_args!("{to}: byte {} differs", offset + at as i64)));
        }
        if count == 0 {
            break;
        }
        offset += count as i64;
    }
    let _ = sys::close(source);
    let _ = sys::close(copy);
    Ok(offset as u64)
}
