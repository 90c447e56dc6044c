// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on pipes and FIFOs promises with `vfs.aio.rs.park` set, as cases named after
//! the promise, which print what `conformance` prints. On the kernel's own engine those that it can
//! pass run with `vfs.aio.enable_unsafe`.
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
    harness::main("pipes", args, all())
}

fn all() -> impl Iterator<Item = Case> {
    [cases::CASES, many::CASES].into_iter().flatten().copied()
}
