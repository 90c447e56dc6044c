// SPDX-License-Identifier: BSD-2-Clause
//! Thousands of requests that wait, and what they cost: no workers, and no time that grows.

use crate::harness::{Must, Outcome, Stop, Test, fail, same, skip};
use crate::{cases, check};
use guest::aio::{self, AIO_CANCELED, Cb};
use guest::errno::ECANCELED;
use guest::mem::Region;
use guest::net::{self, SOCK_STREAM};
use guest::{println, sys, sysctl};

cases! { "socket":
    thousands_wait_without_a_worker,
    thousands_are_left_by_exit,
    thousands_are_cancelled,
    thousands_complete,
}

const SOCKETS: usize = 100;
const EACH: usize = 50;

/// Reads that wait on many sockets.
struct Waiting {
    blocks: Region,
    ends: [(i32, i32); SOCKETS],
}

impl Waiting {
    fn new(test: &Test) -> Result<Waiting, Stop> {
        let blocks = test.buffer(SOCKETS * EACH * aio::SIZE);
        let buffer = test.buffer(16);
        let mut ends = [(0, 0); SOCKETS];
        for (index, end) in ends.iter_mut().enumerate() {
            *end = net::pair(SOCK_STREAM).must("socketpair")?;
            for each in 0..EACH {
                let cb = Cb::at(&blocks, (index * EACH + each) * aio::SIZE);
                cb.set(aio::request(end.0, 0, buffer.addr(), 1));
                aio::read(cb.addr()).must("aio_read")?;
            }
        }
        Ok(Waiting { blocks, ends })
    }

    fn block(&self, index: usize) -> Cb {
        Cb::at(&self.blocks, index * aio::SIZE)
    }
}

/// Allows that many requests.
fn allow(test: &Test) -> Result<[sysctl::Setting; 2], Stop> {
    let most = (SOCKETS * EACH + 100) as i32;
    Ok([
        test.setting("vfs.aio.max_aio_queue", 2 * most)?,
        test.setting("vfs.aio.max_aio_queue_per_proc", most)?,
    ])
}

fn workers() -> Result<u64, Stop> {
    match sysctl::get("kern.ipc.aio.num_procs") {
        Some(count) => Ok(count),
        None => skip(format_args!("no kern.ipc.aio.num_procs")),
    }
}

fn thousands_wait_without_a_worker(test: &Test) -> Outcome {
    let _limits = allow(test)?;
    let target = sysctl::get("kern.ipc.aio.target_procs").unwrap_or(0);
    let before = workers()?;
    let waiting = Waiting::new(test)?;
    let after = workers()?;
    println!("workers for sockets: {before} before, {after} with {} waiting", SOCKETS * EACH);
    check!(after <= before.max(target), "{after} workers, {before} before");
    same(aio::error(waiting.block(0).addr()), Ok(guest::errno::EINPROGRESS.0), "the first")
}

fn thousands_are_left_by_exit(test: &Test) -> Outcome {
    let _limits = allow(test)?;
    let Some(before) = sysctl::get("vfs.aio.num_queue_count") else {
        return skip(format_args!("no vfs.aio.num_queue_count"));
    };
    for round in 0..2 {
        let pid = test.child(|test| match Waiting::new(test) {
            Ok(_) if round == 0 => 0,
            Ok(_) => {
                let _ = sys::kill(sys::getpid(), sys::SIGKILL);
                2
            }
            Err(_) => 1,
        })?;
        let ended = if round == 0 { sys::Ended::Exit(0) } else { sys::Ended::Signal(sys::SIGKILL) };
        test.child_ended(pid, "a child with thousands of requests", ended)?;
        same(sysctl::get("vfs.aio.num_queue_count"), Some(before), "requests queued")?;
    }
    Ok(())
}

fn thousands_are_cancelled(test: &Test) -> Outcome {
    let _limits = allow(test)?;
    let waiting = Waiting::new(test)?;
    for (index, end) in waiting.ends.iter().enumerate() {
        if index % 2 == 0 {
            same(aio::cancel(end.0, 0), Ok(AIO_CANCELED), "aio_cancel of all")?;
            continue;
        }
        for each in (0..EACH).rev() {
            let cb = waiting.block(index * EACH + each);
            same(aio::cancel(end.0, cb.addr()), Ok(AIO_CANCELED), "aio_cancel of one")?;
        }
    }
    for index in 0..SOCKETS * EACH {
        same(aio::return_(waiting.block(index).addr()), Err(ECANCELED), "aio_return")?;
    }
    Ok(())
}

fn thousands_complete(test: &Test) -> Outcome {
    let _limits = allow(test)?;
    let waiting = Waiting::new(test)?;
    for end in &waiting.ends {
        same(sys::write(end.1, &[7; EACH]), Ok(EACH), "write")?;
    }
    let mut done = 0;
    while done < SOCKETS * EACH {
        let completed = aio::waitcomplete(None);
        match completed.result {
            Ok(1) => done += 1,
            other => return fail(format_args!("after {done}: {other:?}")),
        }
    }
    Ok(())
}
