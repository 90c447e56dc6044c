// SPDX-License-Identifier: BSD-2-Clause
//! Thousands of requests that wait: no workers, and every way to leave them.

use crate::cases::allow;
use crate::harness::{Must, Outcome, Stop, Test, fail, same};
use crate::{cases, check};
use guest::aio::{self, AIO_CANCELED, Cb};
use guest::errno::{ECANCELED, EINPROGRESS};
use guest::mem::Region;
use guest::println;
use guest::sys::{self, Ended};
use guest::sysctl::{self, Setting};

cases! { "pipe":
    thousands_wait_without_a_worker breaks "exit waits for them",
    thousands_are_left_by_exit breaks "exit waits for them",
    thousands_are_cancelled breaks "exit waits for them",
    thousands_complete breaks "they have no worker",
}

const PIPES: usize = 100;
const EACH: usize = 50;

/// Requests that wait on many pipes: reads of empty ones, and writes to full ones.
struct Waiting {
    blocks: Region,
    ends: [(i32, i32); PIPES],
}

impl Waiting {
    fn new(test: &Test) -> Result<Waiting, Stop> {
        let blocks = test.buffer(PIPES * EACH * aio::SIZE);
        let buffer = test.buffer(16);
        let mut ends = [(0, 0); PIPES];
        for (index, end) in ends.iter_mut().enumerate() {
            *end = sys::pipe().must("pipe")?;
            let writes = Waiting::writes(index);
            if writes {
                sys::set_nonblocking(end.1).must("fcntl")?;
                while sys::write(end.1, &[0; 512]).is_ok() {}
            }
            for each in 0..EACH {
                let cb = Cb::at(&blocks, (index * EACH + each) * aio::SIZE);
                let fd = if writes { end.1 } else { end.0 };
                cb.set(aio::request(fd, 0, buffer.addr(), 1));
                let submitted = if writes { aio::write(cb.addr()) } else { aio::read(cb.addr()) };
                submitted.must("submit")?;
            }
        }
        Ok(Waiting { blocks, ends })
    }

    fn writes(pipe: usize) -> bool {
        pipe.is_multiple_of(3)
    }

    fn block(&self, index: usize) -> Cb {
        Cb::at(&self.blocks, index * aio::SIZE)
    }

    fn fd(&self, pipe: usize) -> i32 {
        let (from, to) = self.ends[pipe];
        if Waiting::writes(pipe) { to } else { from }
    }
}

/// Allows that many requests.
fn allow_many(test: &Test) -> Result<[Setting; 3], Stop> {
    let most = (PIPES * EACH + 100) as i32;
    Ok([
        allow(test)?,
        test.setting("vfs.aio.max_aio_queue", 2 * most)?,
        test.setting("vfs.aio.max_aio_queue_per_proc", most)?,
    ])
}

fn thousands_wait_without_a_worker(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    let most = sysctl::get("vfs.aio.target_aio_procs").unwrap_or(0);
    let before = sysctl::get("vfs.aio.rs.num_procs").unwrap_or(0);
    let waiting = Waiting::new(test)?;
    // Every lane has been tried by then: a request on a file is behind them all.
    let fd = test.file("behind", 16)?;
    let cb = test.request(crate::harness::Op::Write, fd, 0, &test.buffer(16));
    same(test.perform(crate::harness::Op::Write, cb)?, Ok(16), "a write to a file")?;
    let after = sysctl::get("vfs.aio.rs.num_procs").unwrap_or(0);
    println!("workers: {before} before, {after} with {} waiting", PIPES * EACH);
    check!(after <= before.max(most + 2), "{after} workers, {before} before");
    for pipe in 0..PIPES {
        let cb = waiting.block(pipe * EACH);
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "a pipe's first")?;
    }
    Ok(())
}

fn thousands_are_left_by_exit(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    let before = sysctl::get("vfs.aio.num_queue_count");
    for round in 0..3 {
        let pid = test.child(|test| {
            if Waiting::new(test).is_err() {
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

fn thousands_are_cancelled(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    let waiting = Waiting::new(test)?;
    for pipe in 0..PIPES {
        let fd = waiting.fd(pipe);
        if pipe % 2 == 0 {
            same(aio::cancel(fd, 0), Ok(AIO_CANCELED), "aio_cancel of all")?;
            continue;
        }
        for each in (0..EACH).rev() {
            let cb = waiting.block(pipe * EACH + each);
            same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel of one")?;
        }
    }
    for index in 0..PIPES * EACH {
        same(aio::return_(waiting.block(index).addr()), Err(ECANCELED), "aio_return")?;
    }
    Ok(())
}

fn thousands_complete(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    let waiting = Waiting::new(test)?;
    let mut bytes = [0u8; 4096];
    for (pipe, end) in waiting.ends.iter().enumerate() {
        if Waiting::writes(pipe) {
            check!(matches!(sys::read(end.0, &mut bytes), Ok(1..)), "a full pipe has nothing");
        } else {
            same(sys::write(end.1, &[7; EACH]), Ok(EACH), "write")?;
        }
    }
    let mut done = 0;
    while done < PIPES * EACH {
        match aio::waitcomplete(None).result {
            Ok(1) => done += 1,
            other => return fail(format_args!("after {done}: {other:?}")),
        }
    }
    Ok(())
}
