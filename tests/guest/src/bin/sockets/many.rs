// SPDX-License-Identifier: BSD-2-Clause
//! Thousands of requests that wait, and what they cost: no workers, and no time that grows.

use crate::harness::{Outcome, Stop, Test, skip};
use crate::thousands::{self, ALL, Waiting};
use crate::{cases, check};
use guest::{println, sysctl};

cases! { "socket":
    thousands_wait_without_a_worker,
    thousands_are_left_by_exit,
    thousands_are_cancelled,
    thousands_complete,
}

/// All of them are reads.
fn writes(_: usize) -> bool {
    false
}

fn workers() -> Result<u64, Stop> {
    match sysctl::get("kern.ipc.aio.num_procs") {
        Some(count) => Ok(count),
        None => skip(format_args!("no kern.ipc.aio.num_procs")),
    }
}

fn thousands_wait_without_a_worker(test: &Test) -> Outcome {
    let _limits = thousands::allow(test)?;
    let target = sysctl::get("kern.ipc.aio.target_procs").unwrap_or(0);
    let before = workers()?;
    let waiting = Waiting::new(test, writes)?;
    let after = workers()?;
    println!("workers for sockets: {before} before, {after} with {ALL} waiting");
    check!(after <= before.max(target), "{after} workers, {before} before");
    waiting.waits()
}

fn thousands_are_left_by_exit(test: &Test) -> Outcome {
    let _limits = thousands::allow(test)?;
    thousands::are_left_by_exit(test, writes)
}

fn thousands_are_cancelled(test: &Test) -> Outcome {
    let _limits = thousands::allow(test)?;
    thousands::are_cancelled(test, writes)
}

fn thousands_complete(test: &Test) -> Outcome {
    let _limits = thousands::allow(test)?;
    thousands::complete(test, writes)
}
