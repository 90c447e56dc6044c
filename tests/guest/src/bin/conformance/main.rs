// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on files promises, as cases named after the promise. Every expectation
//! is what the kernel's built-in AIO does; the program runs on any engine.
//!
//! `conformance [--list] [--breaks] [CASE...]` runs the cases (all, or those whose names contain one of the
//! words), each in a process and a directory of its own below the current one, with a time limit,
//! and prints for each
//!
//! - `ok NAME served=N accepted=N ms=N`
//! - `FAIL NAME: why served=N accepted=N ms=N`
//! - `skip NAME: why served=N accepted=N ms=N`
//! - `differs NAME: what the built-in does instead: why ...`, on the built-in only
//!
//! After these comes `saw=`, with what the calls of AIO answered ([`guest::seen`]).
//!
//! `served` is how many requests our engine completed meanwhile (`-` when it is not loaded),
//! `accepted` how many requests the case got accepted. It exits 1 when a case failed. It must run
//! as root: cases set sysctls, which are put back. A case that breaks the built-in is skipped
//! there, unless `--breaks` is given; then the machine may not survive it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod bug;
mod cancel;
mod data;
mod disk;
mod fsync;
mod harness;
mod kevent;
mod limits;
mod lio;
mod mlock;
mod notify;
mod old;
mod process;
mod racct;
mod reap;
mod refuse;
mod signal;
mod socket;
mod suspend;
mod waitcomplete;

use guest::Args;
use harness::Case;

guest::program!(run);

fn run(args: Args) -> i32 {
    if args.has(c"--after-exec") {
        return process::after_exec();
    }
    if args.has(c"--after-exec-signals") {
        return signal::after_exec();
    }
    harness::main("conformance", args, all())
}

fn all() -> impl Iterator<Item = Case> {
    [
        refuse::CASES,
        limits::CASES,
        data::CASES,
        reap::CASES,
        suspend::CASES,
        waitcomplete::CASES,
        cancel::CASES,
        lio::CASES,
        kevent::CASES,
        signal::CASES,
        fsync::CASES,
        mlock::CASES,
        old::CASES,
        socket::CASES,
        disk::CASES,
        bug::CASES,
        process::CASES,
        racct::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
}
