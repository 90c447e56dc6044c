// SPDX-License-Identifier: BSD-2-Clause
//! What asynchronous I/O on sockets promises, as cases named after the promise; those that begin
//! with a letter and a number are the bugs of that name. They run on any engine, and print what
//! `conformance` prints.
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
    let mut runner = match Runner::new(false) {
        Ok(runner) => runner,
        Err(error) => {
            guest::println!("sockets: cannot start: {error}");
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
