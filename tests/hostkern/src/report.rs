// SPDX-License-Identifier: BSD-2-Clause
//! The end of a run that went wrong: what happened, where everybody was, and how to see it again.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{decisions, module, probe, sched};

/// A kernel panic, or a rule of the kernel broken.
pub const PANIC: i32 = 9;
/// The host kernel itself cannot go on.
pub const BROKEN: i32 = 8;

/// The command that repeats this run.
static AGAIN: OnceLock<String> = OnceLock::new();

/// When the run is to have ended.
static DEADLINE: OnceLock<Instant> = OnceLock::new();

/// What repeats the run, and how long it may take.
pub fn set_again(command: String, limit: Duration) {
    let _ = AGAIN.set(command);
    let _ = DEADLINE.set(Instant::now() + limit);
}

/// Whether the run takes too long.
pub fn is_late() -> bool {
    DEADLINE.get().is_some_and(|deadline| Instant::now() > *deadline)
}

/// Milliseconds of the last progress line, or never.
static PROGRESS: AtomicU64 = AtomicU64::new(u64::MAX);

/// Has [`progress`] print.
pub fn show_progress() {
    PROGRESS.store(0, Ordering::Relaxed);
}

/// Now and then, one line that is overwritten by the next.
pub fn progress(calls: u64, syscalls: u64) {
    static START: OnceLock<Instant> = OnceLock::new();
    let last = PROGRESS.load(Ordering::Relaxed);
    if last == u64::MAX {
        return;
    }
    let now = START.get_or_init(Instant::now).elapsed().as_millis() as u64;
    let terminal = std::io::stderr().is_terminal();
    if now >= last + if terminal { 200 } else { 2000 } {
        PROGRESS.store(now, Ordering::Relaxed);
        let line = format!("hostkern: {syscalls} system calls, {calls} kernel calls");
        if terminal { eprint!("{line} \r") } else { eprintln!("{line}") }
    }
}

/// Writes to the console, past any buffer.
pub fn console(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// Where the run's decisions are written to.
static RECORD: OnceLock<PathBuf> = OnceLock::new();

/// Has the run's decisions written to a file when it ends, however it does.
pub fn record_to(path: PathBuf) {
    let _ = RECORD.set(path);
}

/// Where it is written to which blocks of the modules were reached.
static COVERAGE: OnceLock<PathBuf> = OnceLock::new();

/// Has what was reached added to a file when the run ends, however it does.
pub fn coverage_to(path: PathBuf) {
    let _ = COVERAGE.set(path);
}

/// Ends the process at once: other threads are in the middle of things.
pub fn end(status: i32) -> ! {
    if let Some(path) = RECORD.get()
        && let Some(list) = sched::recorded()
        && let Err(error) = std::fs::write(path, decisions::text(&list))
    {
        console(&format!("hostkern: {}: {error}\n", path.display()));
    }
    if let Some(path) = COVERAGE.get()
        && let Some(coverage) = probe::coverage()
        && let Err(error) = coverage.save(path)
    {
        console(&format!("hostkern: {}: {error}\n", path.display()));
    }
    if status != 0 {
        for line in sched::taken() {
            console(&format!("hostkern: by the list: {line}\n"));
        }
    }
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// The kernel panics: says why and where every thread is.
pub fn panic(why: &str) -> ! {
    panic_at(why, &module::way_names())
}

/// The same, with the calls that led there, from the innermost on.
pub fn panic_at(why: &str, way: &[String]) -> ! {
    let mut text = format!("hostkern: PANIC: {why}\n");
    for place in way {
        text += &format!("hostkern:     called from {place}\n");
    }
    text += "hostkern: what happened last:\n";
    for line in sched::recent().unwrap_or_default() {
        text += &format!("hostkern:   {line}\n");
    }
    text += &format!("hostkern: in thread {}\n", sched::current());
    for line in sched::table().unwrap_or_default() {
        text += &format!("hostkern:   {line}\n");
    }
    if let Some(again) = AGAIN.get() {
        text += &format!("hostkern: repeat with: {again}\n");
    }
    console(&text);
    end(PANIC)
}

/// The emulation cannot go on, which is nobody's fault but its own or the machine's.
pub fn give_up(why: &str) -> ! {
    console(&format!("hostkern: {why}\n"));
    end(BROKEN)
}

/// Makes a failed assertion of the emulation look like other failures.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        console(&format!("hostkern: BROKEN: {info}\n"));
        if let Some(again) = AGAIN.get() {
            console(&format!("hostkern: repeat with: {again}\n"));
        }
        end(BROKEN)
    }));
}
