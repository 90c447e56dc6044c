// SPDX-License-Identifier: BSD-2-Clause
//! The engine comes and goes under programs that use it: `reload [OPTIONS] MODULE...`.
//!
//! `--procs 8` processes live one life after the other: some steps, each of which is a use of AIO
//! whose result is known, then exit, exec or SIGKILL, with requests in flight or without. Meanwhile
//! the modules, which are builds of one engine, are loaded and unloaded in turn, `--reloads 50` times
//! or for `--seconds 600`, whichever is first. Which engine serves a step is a matter of chance; its
//! result is not.
//!
//! An unload that is refused (EBUSY) is tried again; once it has been refused often, no new step
//! begins until it has happened. Every other answer is a failure, as is a step that does not come
//! out, a load during which nothing was served in most cases, or two minutes without a step.
//!
//! Works in the current directory, and on the disks named by `--disk` and `--raw`, of which it
//! overwrites the first [`life::DISK_EACH`] bytes per process. `--seed 1` chooses the steps. Run it
//! as root, with the gate loaded. An engine that is loaded goes first, and one is loaded in the end.
//!
//! A kernel may have no AIO but the engine's: it says ENOSYS while none is loaded. Then a step waits
//! for the engine, and a thread that waits without a request may be told so too.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod life;
mod loader;

use core::fmt;
use guest::out::Text;
use guest::rng::mix;
use guest::sys::{self, Ended, Fork};
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Result, println};

/// The most processes.
const PROCS: usize = 32;
/// Nothing happening for so long is a hang.
const HANG_MS: u64 = 120_000;
const IN_FILE: &core::ffi::CStr = c"counters";

guest::program!(run);

// What all processes count together, in a file so that it outlives an exec.
guest::counters! {
    /// Steps that were done, of either engine.
    Steps,
    Requests,
    /// Waits that nothing could end but their time.
    Waits,
    Execs,
    Bad,
    /// Everybody is to end.
    Stop,
    /// No new step is to begin.
    Calm,
    /// There is no built-in AIO: without the engine calls are ENOSYS.
    Alone,
    /// Unloads, and how many were refused.
    Reloads,
    Refused,
    /// Loads during which the engine served something, and how much in all.
    Used,
    Served,
    /// Changes from one build to another.
    Upgrades,
}

/// Reports something that must not happen.
fn bad(args: fmt::Arguments<'_>) {
    Counter::Bad.add(1);
    println!("reload: BAD: pid {}: {}", sys::getpid(), Text::<300>::of(args).as_str());
}

/// The options that have a value.
const WITH_VALUE: &[&core::ffi::CStr] =
    &[c"--procs", c"--reloads", c"--seconds", c"--seed", c"--disk", c"--raw", c"--slot", c"--life"];

fn run(args: Args) -> i32 {
    let outcome = if args.has(c"--life") { again(args) } else { supervise(args) };
    outcome.unwrap_or_else(|error| {
        println!("reload: cannot go on: {error}");
        2
    })
}

/// A life that begins by exec.
fn again(args: Args) -> Result<i32> {
    COUNTERS.map_file(IN_FILE, 0)?;
    Counter::Execs.add(1);
    let (slot, seed) = (args.number(c"--slot", 0), args.number(c"--life", 0));
    let disks = [args.value(c"--disk"), args.value(c"--raw")];
    life::live(slot as usize, seed, disks, true)
}

fn supervise(args: Args) -> Result<i32> {
    let procs = args.number(c"--procs", 8).clamp(1, PROCS as u64) as usize;
    let seed = args.number(c"--seed", 1);
    let disks = [args.value(c"--disk"), args.value(c"--raw")];
    if args.plain(WITH_VALUE).next().is_none() {
        guest::eprintln!("usage: reload [OPTIONS] MODULE...");
        return Ok(2);
    }
    COUNTERS.map_file(IN_FILE, sys::O_CREAT | sys::O_TRUNC)?;
    let start = now();
    let restore = loader::begin()?;
    let loader = start_loader(args, restore)?;
    let mut table = [0; PROCS];
    let (mut lives, mut killed, mut loads) = (0u64, 0u64, true);
    let (mut last, mut moved) = (0, now());
    loop {
        if !loads || Counter::Bad.get() > 0 {
            Counter::Stop.put(1);
            Counter::Calm.put(0);
        }
        let stop = Counter::Stop.get() != 0;
        for (slot, pid) in table[..procs].iter_mut().enumerate() {
            if *pid == 0 && !stop {
                lives += 1;
                let seed = mix(seed ^ mix((slot as u64) << 32 | lives));
                *pid = match sys::fork()? {
                    Fork::Child => sys::exit(life::live(slot, seed, disks, false).unwrap_or(2)),
                    Fork::Parent(pid) => pid,
                };
            }
        }
        while let Ok(Some((pid, how))) = sys::wait(-1, sys::WNOHANG) {
            if pid == loader {
                loads = false;
                if how != Ended::Exit(0) {
                    bad(format_args!("the loader ended with {how:?}"));
                }
                continue;
            }
            let Some(slot) = table.iter().position(|&one| one == pid) else { continue };
            table[slot] = 0;
            match how {
                Ended::Exit(0) => {}
                Ended::Signal(sys::SIGKILL) => killed += 1,
                how => bad(format_args!("a process ended with {how:?}")),
            }
        }
        if stop && !loads && table.iter().all(|&pid| pid == 0) {
            break;
        }
        let count = Counter::Steps.get() + Counter::Refused.get();
        if count != last {
            (last, moved) = (count, now());
        } else if ms_since(moved) > HANG_MS {
            bad(format_args!("nothing moved for {} s", HANG_MS / 1000));
            table.iter().filter(|&&pid| pid != 0).for_each(|pid| println!("reload: pid {pid}"));
            return Ok(1);
        }
        sleep_ms(2);
    }
    let _ = sys::unlink(IN_FILE);
    println!(
        "reload: reloads={} upgrades={} refused={} used={} served={} ms={}",
        Counter::Reloads.get(),
        Counter::Upgrades.get(),
        Counter::Refused.get(),
        Counter::Used.get(),
        Counter::Served.get(),
        ms_since(start),
    );
    println!(
        "reload: lives={lives} killed={killed} execs={} steps={} requests={} waits={} bad={}",
        Counter::Execs.get(),
        Counter::Steps.get(),
        Counter::Requests.get(),
        Counter::Waits.get(),
        Counter::Bad.get(),
    );
    // Or the load was none.
    if Counter::Used.get() * 2 < Counter::Reloads.get() {
        bad(format_args!("during most loads the engine served nothing"));
    }
    let good = Counter::Bad.get() == 0;
    println!("reload: {}", if good { "ok" } else { "FAILED" });
    Ok(i32::from(!good))
}

fn start_loader(args: Args, restore: bool) -> Result<i32> {
    match sys::fork()? {
        Fork::Child => sys::exit(loader::run(args, restore)),
        Fork::Parent(pid) => Ok(pid),
    }
}
