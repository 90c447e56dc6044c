// SPDX-License-Identifier: BSD-2-Clause
//! What a request costs is charged to the process that made it (rctl(8)), where the kernel counts
//! at all: with `kern.racct.enable` 1, which is set for the boot.

use crate::cases;
use crate::check;
use crate::disk::Disk;
use crate::harness::{Must, Op, Outcome, Stop, Test, accepted, fail, refused, same, skip};
use guest::aio;
use guest::errno::{ENOMEM, ENOSYS};
use guest::mem::PAGE;
use guest::out::Text;
use guest::{sys, sysctl};

cases! { "racct":
    reads_of_a_disk_are_charged
        differs "what goes to the driver is charged to nobody",
    writes_to_a_disk_are_charged
        differs "what goes to the driver is charged to nobody",
    writes_of_a_worker_are_charged_to_the_submitter
        differs "they are charged to the worker",
    locked_memory_is_charged,
    locked_memory_stays_below_a_rule,
}

/// What this process has been charged of a resource.
fn charged(resource: &str) -> Result<u64, Stop> {
    if sysctl::get("kern.racct.enable") != Some(1) {
        return skip(format_args!("kern.racct.enable is not 1"));
    }
    let who = Text::<32>::of(format_args!("process:{}", sys::getpid()));
    let mut answer = [0u8; 1024];
    match sys::rctl_get_racct(who.as_str(), &mut answer) {
        Ok(()) => {}
        Err(ENOSYS) => return skip(format_args!("no rctl(4) in this kernel")),
        Err(error) => return fail(format_args!("rctl_get_racct: {error}")),
    }
    let end = answer.iter().position(|&byte| byte == 0).unwrap_or(0);
    let text = core::str::from_utf8(&answer[..end]).unwrap_or("");
    let amounts = text.split(',').filter_map(|word| word.split_once('='));
    for (name, amount) in amounts {
        if name == resource
            && let Ok(amount) = amount.parse()
        {
            return Ok(amount);
        }
    }
    fail(format_args!("no {resource} in {text}"))
}

/// Charges decay with the seconds, so a few tries may be needed to see one rise.
fn rises(bytes: &str, operations: &str, perform: impl Fn() -> Outcome) -> Outcome {
    let mut seen = [0; 4];
    for _ in 0..5 {
        let before = [charged(bytes)?, charged(operations)?];
        perform()?;
        let after = [charged(bytes)?, charged(operations)?];
        if before[0] < after[0] && before[1] < after[1] {
            return Ok(());
        }
        seen = [before[0], after[0], before[1], after[1]];
    }
    fail(format_args!("{bytes} and {operations} do not rise: {seen:?}"))
}

fn on_a_disk(test: &Test, op: Op, bytes: &str, operations: &str) -> Outcome {
    charged(bytes)?;
    let disk = Disk::new(c"malloc")?;
    let cb = test.request(op, disk.0, 0, &test.buffer(1 << 16));
    rises(bytes, operations, || {
        for _ in 0..16 {
            same(test.perform(op, cb)?, Ok(1 << 16), "a request")?;
        }
        Ok(())
    })
}

fn reads_of_a_disk_are_charged(test: &Test) -> Outcome {
    on_a_disk(test, Op::Read, "readbps", "readiops")
}

fn writes_to_a_disk_are_charged(test: &Test) -> Outcome {
    on_a_disk(test, Op::Write, "writebps", "writeiops")
}

fn writes_of_a_worker_are_charged_to_the_submitter(test: &Test) -> Outcome {
    charged("writebps")?;
    let fd = test.file("file", 0)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(1 << 20));
    let before = sys::thread_blocks().must("getrusage")?.1;
    same(test.perform(Op::Write, cb)?, Ok(1 << 20), "a write")?;
    if sys::thread_blocks().must("getrusage")?.1 == before {
        return skip(format_args!("writes to this file system cost nothing at once"));
    }
    rises("writebps", "writeiops", || {
        for _ in 0..4 {
            same(test.perform(Op::Write, cb)?, Ok(1 << 20), "a write")?;
        }
        Ok(())
    })
}

/// Locks memory that is there.
fn lock(test: &Test, pages: usize) -> Result<guest::Result<i64>, Stop> {
    let memory = test.buffer(pages * PAGE);
    memory.fill(1);
    let cb = test.block();
    cb.set(aio::request(-1, 0, memory.addr(), memory.len()));
    aio::mlock(cb.addr()).must("aio_mlock")?;
    accepted();
    test.collect(cb)
}

fn locked_memory_is_charged(test: &Test) -> Outcome {
    let before = charged("memorylocked")?;
    same(lock(test, 8)?, Ok(0), "aio_mlock")?;
    let after = charged("memorylocked")?;
    check!(after == before + 8 * PAGE as u64, "memory locked went from {before} to {after}");
    Ok(())
}

fn locked_memory_stays_below_a_rule(test: &Test) -> Outcome {
    let before = charged("memorylocked")?;
    let most = before + 10 * PAGE as u64;
    // It goes with the process.
    let rule = Text::<64>::of(format_args!("process:{}:memorylocked:deny={most}", sys::getpid()));
    sys::rctl_add_rule(rule.as_str()).must("rctl_add_rule")?;
    for (pages, left) in [(8, 8), (2, 10)] {
        refused(lock(test, 11)?, ENOMEM, "more than the rule allows")?;
        same(lock(test, pages)?, Ok(0), "no more than it allows")?;
        same(charged("memorylocked")?, before + left * PAGE as u64, "memory locked")?;
    }
    refused(lock(test, 1)?, ENOMEM, "another page")?;
    same(charged("memorylocked")?, most, "memory locked in the end")
}
