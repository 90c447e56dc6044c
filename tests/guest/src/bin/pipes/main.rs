// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on pipes and FIFOs promises with `vfs.aio.rs.park` set, as cases named after
//! the promise, which print what `conformance` prints. On the kernel's own engine those that it can
//! pass run with `vfs.aio.enable_unsafe`.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod cases;
#[allow(dead_code)]
#[path = "../conformance/harness.rs"]
mod harness;
mod many;

use guest::Args;
use harness::{Case, Runner};

guest::program!(run);

fn run(args: Args) -> i32 {
    if args.has(c"--list") {
        all().for_each(|case| guest::println!("{}", case.name));
        return 0;
    }
    let mut runner = match Runner::new(args.has(c"--breaks")) {
        Ok(runner) => runner,
        Err(error) => {
            guest::println!("pipes: cannot start: {error}");
            return 2;
        }
    };
    let wanted = |case: &Case| {
        let mut words = args.plain(&[]).filter_map(|word| word.to_str().ok()).peekable();
        words.peek().is_none() || words.any(|word| case.name.contains(word))
    };
    for case in all().filter(wanted) {
        runner.run(&case);
    }
    runner.finish()
}

fn all() -> impl Iterator<Item = Case> {
    [cases::CASES, many::CASES].into_iter().flatten().copied()
}
