// SPDX-License-Identifier: BSD-2-Clause
//! Thousands of requests that wait: no workers, and every way to leave them.

use crate::cases::allow;
use crate::harness::{Op, Outcome, Stop, Test, same};
use crate::thousands::{self, ALL, Waiting};
use crate::{cases, check};
use guest::println;
use guest::sysctl::{self, Setting};

cases! { "pipe":
    thousands_wait_without_a_worker breaks "exit waits for them",
    thousands_are_left_by_exit breaks "exit waits for them",
    thousands_are_cancelled breaks "exit waits for them",
    thousands_complete breaks "they have no worker",
}

/// A third of them writes.
fn writes(pipe: usize) -> bool {
    pipe.is_multiple_of(3)
}

fn allow_many(test: &Test) -> Result<(Setting, [Setting; 2]), Stop> {
    Ok((allow(test)?, thousands::allow(test)?))
}

fn thousands_wait_without_a_worker(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    let most = sysctl::get("vfs.aio.target_aio_procs").unwrap_or(0);
    let before = sysctl::get("vfs.aio.rs.num_procs").unwrap_or(0);
    let waiting = Waiting::new(test, writes)?;
    // Every lane has been tried by then: a request on a file is behind them all.
    let fd = test.file("behind", 16)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(16));
    same(test.perform(Op::Write, cb)?, Ok(16), "a write to a file")?;
    let after = sysctl::get("vfs.aio.rs.num_procs").unwrap_or(0);
    println!("workers: {before} before, {after} with {ALL} waiting");
    check!(after <= before.max(most + 2), "{after} workers, {before} before");
    waiting.waits()
}

fn thousands_are_left_by_exit(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    thousands::are_left_by_exit(test, writes)
}

fn thousands_are_cancelled(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    thousands::are_cancelled(test, writes)
}

fn thousands_complete(test: &Test) -> Outcome {
    let _limits = allow_many(test)?;
    thousands::complete(test, writes)
}
