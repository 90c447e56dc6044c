// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on disk devices promises, as cases named after the promise, and a storm of
//! requests whose data is checked.
//!
//! `disks [--list] [CASE...]` runs the cases as `conformance` does, each on a memory disk of its own
//! (md(4)), some behind one that is slow or fails (gnop(8)).
//!
//! `disks --storm DEVICE [--bytes N] [--requests 100000] [--depth 64] [--seed 1] [--faults] [--beside]
//! [--settings]` reads and writes DEVICE, whose contents are lost, at random and checks every byte read
//! against what was written. With `--faults` requests may fail; a write that does is written again. With
//! `--settings` somebody writes the settings meanwhile: EOPNOTSUPP is an answer as EAGAIN is.
//!
//! It must run as root.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod cases;
mod device;
#[allow(dead_code)]
#[path = "../conformance/harness.rs"]
mod harness;
mod odd;
mod storm;
mod trouble;

use guest::Args;
use harness::Case;

guest::program!(run);

fn run(args: Args) -> i32 {
    if let Some(path) = args.value(c"--storm") {
        return storm::run(path, args);
    }
    harness::main("disks", args, all())
}

fn all() -> impl Iterator<Item = Case> {
    [cases::CASES, odd::CASES, trouble::CASES].into_iter().flatten().copied()
}
