// SPDX-License-Identifier: BSD-2-Clause
//! What a MAC policy that refuses makes of requests, as cases named after what is promised, which
//! print what `conformance` prints. The policy is tests/kmod/aio_rs_mac.c; without it all cases are
//! skipped.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod cases;
#[allow(dead_code, unused_macros)]
#[path = "../conformance/ends.rs"]
mod ends;
#[allow(dead_code)]
#[path = "../conformance/harness.rs"]
mod harness;

use guest::Args;

guest::program!(run);

fn run(args: Args) -> i32 {
    harness::main("policy", args, cases::CASES.iter().copied())
}
