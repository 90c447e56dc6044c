// SPDX-License-Identifier: BSD-2-Clause
//! Measures what asynchronous requests cost: one row for each kind of call, file system, size and
//! number in flight (see [`rows::ROWS`]).
//!
//! `bench [--ufs DIR] [--tmpfs DIR] [--cold DIR] [--disk DEVICE] [--md DEVICE] [--only TEXT,...]
//! [--percent N]`: rows for what is given, with N percent of the usual number of operations. Each
//! row runs in a process of its own, because an engine keeps a process once it has it, and prints
//!
//! - `row NAME ops=N ticks=N ns=N idle_us=N|- submitted=N served=N|-`
//! - `row NAME failed=CALL errno=NAME submitted=N served=N|-`
//!
//! and first of all comes `calibration instructions=N ticks=N`: how far the time stamp counter goes
//! in a loop of known length. Whether ticks are instructions, nanoseconds or nothing useful is for
//! the reader to say.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod requests;
mod rows;

use core::ffi::CStr;
use guest::sys::{self, Ended, Fork};
use guest::sysctl::{Maybe, served};
use guest::tick::{self, Mark};
use guest::{Args, Errno, println, time};
use rows::{Place, ROWS, Row};

guest::program!(run);

/// The call that failed, and how.
type Failure = (&'static str, Errno);

/// What a row needs to know.
struct Bench {
    /// Where the files are, by place.
    places: [Option<&'static CStr>; 5],
    /// Percent of the usual number of operations.
    percent: u64,
    meter: Meter,
    /// Requests that were accepted.
    submitted: u64,
}

impl Bench {
    /// A number of operations, scaled.
    fn ops(&self, usual: u64) -> u64 {
        (usual * self.percent / 100).max(1)
    }
}

/// Adds up what the measured parts of a row take.
#[derive(Default)]
struct Meter {
    ops: u64,
    ticks: u64,
    ns: u64,
    idle_us: Option<u64>,
    idle_pid: Option<i32>,
}

impl Meter {
    /// Measures a part with so many operations in it.
    fn time<T>(&mut self, ops: u64, part: impl FnOnce() -> T) -> T {
        let idle = self.idle();
        let ns = time::now();
        tick::mark(Mark::On);
        let start = tick::now();
        let result = part();
        let end = tick::now();
        tick::mark(Mark::Off);
        self.ns += time::now().saturating_sub(ns);
        self.ticks += end.wrapping_sub(start);
        if let Some((before, after)) = idle.zip(self.idle()) {
            *self.idle_us.get_or_insert(0) += after.saturating_sub(before);
        }
        self.ops += ops;
        result
    }

    fn idle(&self) -> Option<u64> {
        self.idle_pid.and_then(sys::idle_us)
    }
}

fn run(args: Args) -> i32 {
    let places = [c"--ufs", c"--tmpfs", c"--cold", c"--disk", c"--md"].map(|name| args.value(name));
    let percent = args.number(c"--percent", 100);
    let only = args.value(c"--only").and_then(|text| text.to_str().ok()).unwrap_or("");
    let idle_pid = (1..30).find(|&pid| sys::idle_us(pid).is_some());
    calibrate();
    for row in ROWS {
        let name = row.name();
        let there = row.place == Place::None || places[row.place as usize - 1].is_some();
        if !there || !only.split(',').any(|text| name.as_str().contains(text)) {
            continue;
        }
        tick::mark(Mark::Row);
        let ended = match sys::fork() {
            Ok(Fork::Child) => {
                let meter = Meter { idle_pid, ..Meter::default() };
                measure(row, &mut Bench { places, percent, meter, submitted: 0 })
            }
            Ok(Fork::Parent(pid)) => sys::wait_for(pid),
            Err(error) => {
                println!("row {} failed=fork errno={error} submitted=0 served=-", name.as_str());
                continue;
            }
        };
        if ended != Some(Ended::Exit(0)) {
            println!("row {} failed=process errno=- submitted=0 served=-", name.as_str());
        }
    }
    // The end of the last row.
    tick::mark(Mark::Row);
    0
}

/// One row, in a process of its own.
fn measure(row: &Row, bench: &mut Bench) -> ! {
    let before = served();
    let result = rows::run(row, bench);
    // A worker may count the last request a little after it woke us.
    time::sleep_ms(20);
    let served = before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
    let name = row.name();
    match result {
        Ok(()) => println!(
            "row {} ops={} ticks={} ns={} idle_us={} submitted={} served={}",
            name.as_str(),
            bench.meter.ops,
            bench.meter.ticks,
            bench.meter.ns,
            Maybe(bench.meter.idle_us),
            bench.submitted,
            Maybe(served)
        ),
        Err((call, error)) => println!(
            "row {} failed={call} errno={error} submitted={} served={}",
            name.as_str(),
            bench.submitted,
            Maybe(served)
        ),
    }
    sys::exit(0)
}

/// A loop of known length: the least of several tries, without interruptions.
fn calibrate() {
    const ROUNDS: u64 = 500_000;
    let ticks = (0..20).map(|_| {
        let start = tick::now();
        tick::spin(ROUNDS);
        tick::now().wrapping_sub(start)
    });
    println!("calibration instructions={} ticks={}", 2 * ROUNDS, ticks.min().unwrap_or(0));
}
