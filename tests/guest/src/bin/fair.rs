// SPDX-License-Identifier: BSD-2-Clause
//! How long a single request waits beside a process that has thousands queued: by how many of
//! those it is overtaken, not by the clock.
//!
//! `fair [--queued 2000] [--single 32] [--most N]`: a child queues so many writes of one byte to a file
//! that is opened for appending, and this process meanwhile makes single ones, one after the other.
//! The file says in which order they were performed. With `--most` it is a failure when more of the
//! child's than that came between a single request's submission and itself; and when the child's
//! queue was empty before, which proves nothing. It must run as root.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

use guest::aio::{self, Cb};
use guest::errno::EIO;
use guest::mem::Region;
use guest::path::Path;
use guest::sys::{self, Fork};
use guest::sysctl::{Maybe, Setting, get};
use guest::{Args, Result, println};

guest::program!(run);

const MOST: usize = 10_000;
const SINGLES: usize = 64;

/// Bytes from one control block to the next.
const APART: usize = 256;

fn run(args: Args) -> i32 {
    let queued = (args.number(c"--queued", 2000) as usize).clamp(1, MOST);
    let single = (args.number(c"--single", 32) as usize).clamp(1, SINGLES);
    let most = args.value(c"--most").map(|_| args.number(c"--most", 0) as usize);
    match fair(queued, single) {
        Ok(seen) => {
            println!(
                "fair: queued {queued} workers {} single {} beside a queue {} overtaken by {} at most",
                Maybe(get("vfs.aio.rs.num_procs")),
                single,
                seen.beside,
                seen.worst
            );
            let fails = most.is_some_and(|most| seen.worst > most || seen.beside == 0);
            i32::from(fails)
        }
        Err(error) => {
            println!("fair: FAILED: {error}");
            1
        }
    }
}

/// What was seen.
struct Seen {
    /// Single requests that were made while the child had some queued.
    beside: usize,
    /// The most of the child's that one of them had to let pass.
    worst: usize,
}

fn open(path: &Path) -> Result<i32> {
    sys::open(path.as_cstr(), sys::O_RDWR | sys::O_CREAT | sys::O_APPEND, 0o600)
}

fn fair(queued: usize, single: usize) -> Result<Seen> {
    let room = (queued + queued / 4 + SINGLES) as i32;
    let _all = Setting::new("vfs.aio.max_aio_queue", room)?;
    let _per_process = Setting::new("vfs.aio.max_aio_queue_per_proc", room)?;
    let path = Path::of(format_args!("fair.{}", sys::getpid()));
    let fd = open(&path)?;
    let ready = sys::pipe()?;
    let child = match sys::fork()? {
        Fork::Child => sys::exit(i32::from(queue(&path, queued, ready.1).is_err())),
        Fork::Parent(pid) => pid,
    };
    let result = singles(fd, ready.0, single).and_then(|before| {
        sys::wait_for(child);
        judge(fd, queued, &before[..single])
    });
    if result.is_err() {
        let _ = sys::kill(child, sys::SIGKILL);
        sys::wait_for(child);
    }
    let _ = sys::close(fd);
    sys::unlink(path.as_cstr())?;
    result
}

/// The child: queues all, says so when it is well under way, and takes the results.
fn queue(path: &Path, queued: usize, ready: i32) -> Result<()> {
    let fd = open(path)?;
    let memory = Region::map(queued * APART + 1)?;
    let byte = memory.part(queued * APART, 1);
    byte.fill(b'q');
    for index in 0..queued {
        let cb = Cb::at(&memory, index * APART);
        cb.set(aio::request(fd, 0, byte.addr(), 1));
        aio::write(cb.addr())?;
        // The others come while there is a queue, and while it grows.
        if index == queued / 8 {
            sys::write(ready, b"!")?;
        }
    }
    for index in 0..queued {
        let addr = Cb::at(&memory, index * APART).addr();
        aio::suspend(&[addr], None)?;
        aio::return_(addr)?;
    }
    Ok(())
}

/// Makes single requests; returns how many bytes the file had before each.
fn singles(fd: i32, ready: i32, single: usize) -> Result<[usize; SINGLES]> {
    let memory = Region::map(APART + 1)?;
    let byte = memory.part(APART, 1);
    byte.fill(b's');
    let cb = Cb::at(&memory, 0);
    let mut before = [0; SINGLES];
    sys::read(ready, &mut [0])?;
    for before in &mut before[..single] {
        cb.set(aio::request(fd, 0, byte.addr(), 1));
        *before = sys::fstat(fd)?.size as usize;
        aio::write(cb.addr())?;
        aio::suspend(&[cb.addr()], None)?;
        if aio::return_(cb.addr())? != 1 {
            return Err(EIO);
        }
    }
    Ok(before)
}

/// Reads off the file who came when.
fn judge(fd: i32, queued: usize, before: &[usize]) -> Result<Seen> {
    let mut bytes = [0; MOST + SINGLES];
    let bytes = &mut bytes[..queued + before.len()];
    if sys::pread(fd, bytes, 0)? != bytes.len() {
        return Err(EIO);
    }
    let mut seen = Seen { beside: 0, worst: 0 };
    let places = bytes.iter().enumerate().filter(|(_, byte)| **byte == b's');
    for (nth, ((place, _), &before)) in places.zip(before).enumerate() {
        // Those of the child that were performed by then, and all of it.
        if before - nth < queued {
            seen.beside += 1;
        }
        seen.worst = seen.worst.max(place.saturating_sub(before));
    }
    Ok(seen)
}
