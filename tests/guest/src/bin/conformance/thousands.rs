// SPDX-License-Identifier: BSD-2-Clause
//! Thousands of requests that wait on many sockets or pipes, and every way to leave them.

use crate::check;
use crate::harness::{Must, Outcome, Stop, Test, fail, same};
use guest::aio::{self, AIO_CANCELED, Cb};
use guest::errno::{ECANCELED, EINPROGRESS};
use guest::mem::Region;
use guest::sys::{self, Ended};
use guest::sysctl::{self, Setting};

const PAIRS: usize = 100;
const EACH: usize = 50;
/// How many requests wait.
pub const ALL: usize = PAIRS * EACH;

/// Requests that wait on many pairs: reads of what is empty, and writes to what is full.
pub struct Waiting {
    blocks: Region,
    ends: [(i32, i32); PAIRS],
    writes: fn(usize) -> bool,
}

impl Waiting {
    /// Submits them; `writes` says which pairs' are writes.
    pub fn new(test: &Test, writes: fn(usize) -> bool) -> Result<Waiting, Stop> {
        let blocks = test.buffer(ALL * aio::SIZE);
        let buffer = test.buffer(16);
        let mut ends = [(0, 0); PAIRS];
        for (index, end) in ends.iter_mut().enumerate() {
            *end = crate::cases::of_own()?;
            if writes(index) {
                sys::set_nonblocking(end.1).must("fcntl")?;
                while sys::write(end.1, &[0; 512]).is_ok() {}
            }
            for each in 0..EACH {
                let cb = Cb::at(&blocks, (index * EACH + each) * aio::SIZE);
                let fd = if writes(index) { end.1 } else { end.0 };
                cb.set(aio::request(fd, 0, buffer.addr(), 1));
                if writes(index) { aio::write(cb.addr()) } else { aio::read(cb.addr()) }
                    .must("submit")?;
            }
        }
        Ok(Waiting { blocks, ends, writes })
    }

    fn block(&self, index: usize) -> Cb {
        Cb::at(&self.blocks, index * aio::SIZE)
    }

    fn fd(&self, pair: usize) -> i32 {
        let (from, to) = self.ends[pair];
        if (self.writes)(pair) { to } else { from }
    }

    /// Fails the case unless each pair's first request waits.
    pub fn waits(&self) -> Outcome {
        for pair in 0..PAIRS {
            let cb = self.block(pair * EACH);
            same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "a pair's first")?;
        }
        Ok(())
    }
}

/// Allows that many requests.
pub fn allow(test: &Test) -> Result<[Setting; 2], Stop> {
    let most = ALL as i32 + 100;
    Ok([
        test.setting("vfs.aio.max_aio_queue", 2 * most)?,
        test.setting("vfs.aio.max_aio_queue_per_proc", most)?,
    ])
}

/// A process that exits, is killed or becomes another program leaves them, and nothing stays.
pub fn are_left_by_exit(test: &Test, writes: fn(usize) -> bool) -> Outcome {
    let before = sysctl::get("vfs.aio.num_queue_count");
    for round in 0..3 {
        let pid = test.child(|test| {
            if Waiting::new(test, writes).is_err() {
                return 1;
            }
            match round {
                0 => 0,
                1 => {
                    let _ = sys::kill(sys::getpid(), sys::SIGKILL);
                    2
                }
                _ => {
                    let words = [c"/bin/sh", c"-c", c"exit 0"];
                    let _ = sys::exec_words(words.into_iter());
                    3
                }
            }
        })?;
        let ended = if round == 1 { Ended::Signal(sys::SIGKILL) } else { Ended::Exit(0) };
        test.child_ended(pid, "a child with thousands of requests", ended)?;
        same(sysctl::get("vfs.aio.num_queue_count"), before, "requests queued")?;
    }
    Ok(())
}

/// They are cancelled, all of a descriptor at once or one by one from the last to the first.
pub fn are_cancelled(test: &Test, writes: fn(usize) -> bool) -> Outcome {
    let waiting = Waiting::new(test, writes)?;
    for pair in 0..PAIRS {
        let fd = waiting.fd(pair);
        if pair % 2 == 0 {
            same(aio::cancel(fd, 0), Ok(AIO_CANCELED), "aio_cancel of all")?;
            continue;
        }
        for each in (0..EACH).rev() {
            let cb = waiting.block(pair * EACH + each);
            same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel of one")?;
        }
    }
    for index in 0..ALL {
        same(aio::return_(waiting.block(index).addr()), Err(ECANCELED), "aio_return")?;
    }
    Ok(())
}

/// They complete when there is data, or room.
pub fn complete(test: &Test, writes: fn(usize) -> bool) -> Outcome {
    let waiting = Waiting::new(test, writes)?;
    let mut bytes = [0u8; 4096];
    for (pair, end) in waiting.ends.iter().enumerate() {
        if writes(pair) {
            check!(matches!(sys::read(end.0, &mut bytes), Ok(1..)), "what is full has nothing");
        } else {
            same(sys::write(end.1, &[7; EACH]), Ok(EACH), "write")?;
        }
    }
    let mut done = 0;
    while done < ALL {
        match aio::waitcomplete(None).result {
            Ok(1) => done += 1,
            other => return fail(format_args!("after {done}: {other:?}")),
        }
    }
    Ok(())
}
