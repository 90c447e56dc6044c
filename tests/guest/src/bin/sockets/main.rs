// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on sockets promises, as cases named after the promise; those that begin
//! with a letter and a number are the bugs of that name. They run on any engine, and print what
//! `conformance` prints.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod cases;
#[macro_use]
#[path = "../conformance/ends.rs"]
mod ends;
#[allow(dead_code)]
#[path = "../conformance/harness.rs"]
mod harness;
mod many;
#[path = "../conformance/thousands.rs"]
mod thousands;

use guest::Args;
use harness::Case;

guest::program!(run);

fn run(args: Args) -> i32 {
    harness::main("sockets", args, all())
}

fn all() -> impl Iterator<Item = Case> {
    [cases::CASES, many::CASES].into_iter().flatten().copied()
}
