// SPDX-License-Identifier: BSD-2-Clause
//! How many requests there may be: per process and in all, and what counts.

use crate::harness::{Must, OPS, Op, Outcome, Test, refused, same, skip};
use crate::{cases, check};
use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINPROGRESS, EINVAL};
use guest::mem::HOLE;
use guest::sys::{self, Timespec};
use guest::sysctl;

cases! { "limits":
    a_process_may_have_as_many_requests_as_the_limit_says,
    u9_finished_requests_count_until_collected,
    the_limit_is_looked_at_before_the_block,
    the_limit_in_all_is_kept,
    a_limit_that_is_raised_counts_at_once,
    num_queue_count_follows_the_requests,
    with_max_aio_per_proc_at_zero_nothing_starts,
    max_aio_per_proc_raised_from_zero_sets_what_waits_going,
    max_aio_per_proc_is_how_many_run_at_a_time,
    what_sysconf_tells_is_there,
    idle_workers_beyond_the_target_end,
    fewer_workers_are_kept_when_fewer_are_to_be,
}

fn limit() -> usize {
    sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as usize
}

/// Fills the process's share with requests; all are accepted.
fn fill(test: &Test, fd: i32, count: usize) -> Result<[Option<Cb>; 512], crate::harness::Stop> {
    let mut blocks = [None; 512];
    if count > blocks.len() {
        return skip(format_args!("max_aio_queue_per_proc is {count}"));
    }
    let buffer = test.buffer(16);
    for block in &mut blocks[..count] {
        let cb = test.block();
        cb.set(aio::request(fd, 0, buffer.addr(), 16));
        test.submit(Op::Write, cb)?;
        *block = Some(cb);
    }
    Ok(blocks)
}

fn a_process_may_have_as_many_requests_as_the_limit_says(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let blocks = fill(test, fd, limit())?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        refused(op.submit(cb.addr()), EAGAIN, "one more")?;
        same(cb.private(), (-1, i64::from(EAGAIN.0), -1), "status, error and kernelinfo")?;
        same(aio::error(cb.addr()), Ok(EAGAIN.0), "aio_error")?;
    }
    // The request that sets the others going needs a place.
    let Some(cb) = blocks[0] else { return Ok(()) };
    same(aio::cancel(fd, cb.addr()), Ok(aio::AIO_CANCELED), "aio_cancel")?;
    refused(aio::return_(cb.addr()), guest::errno::ECANCELED, "aio_return")?;
    hold.release()?;
    for cb in blocks.iter().flatten().skip(1) {
        same(test.collect(*cb)?, Ok(16), "a request")?;
    }
    Ok(())
}

fn u9_finished_requests_count_until_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let blocks = fill(test, fd, limit())?;
    for cb in blocks.iter().flatten() {
        same(test.done(*cb)?, 0, "a request")?;
    }
    let more = test.request(Op::Read, fd, 0, &test.buffer(16));
    refused(Op::Read.submit(more.addr()), EAGAIN, "one more")?;
    let mut blocks = blocks.iter().flatten();
    let Some(first) = blocks.next() else { return Ok(()) };
    same(aio::return_(first.addr()), Ok(16), "aio_return")?;
    same(test.perform(Op::Read, more)?, Ok(16), "after aio_return")?;
    test.submit(Op::Read, more)?;
    refused(Op::Read.submit(first.addr()), EAGAIN, "one more again")?;
    check!(aio::waitcomplete(None).result == Ok(16), "aio_waitcomplete");
    test.submit(Op::Read, *first)?;
    Ok(())
}

fn the_limit_is_looked_at_before_the_block(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 1)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(16));
    test.submit(Op::Read, cb)?;
    for op in OPS {
        refused(op.submit(0), EAGAIN, "no block")?;
        refused(op.submit(HOLE), EAGAIN, "an unmapped block")?;
        let bad = test.request(op, -1, -1, &test.buffer(16));
        refused(op.submit(bad.addr()), EAGAIN, "a bad descriptor")?;
    }
    same(test.collect(cb)?, Ok(16), "the one request")?;
    refused(Op::Read.submit(0), guest::errno::EFAULT, "no block, below the limit")
}

fn the_limit_in_all_is_kept(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let Some(now) = sysctl::get("vfs.aio.num_queue_count") else {
        return skip(format_args!("no vfs.aio.num_queue_count"));
    };
    let limit = test.setting("vfs.aio.max_aio_queue", now as i32 + 3)?;
    let blocks = fill(test, fd, 3)?;
    let more = test.request(Op::Write, fd, 0, &test.buffer(16));
    refused(Op::Write.submit(more.addr()), EAGAIN, "one more")?;
    // Another process has no share of its own.
    test.in_child("a child's request (1 is any other outcome than EAGAIN)", |_| {
        i32::from(Op::Write.submit(more.addr()) != Err(EAGAIN))
    })?;
    for cb in blocks.iter().flatten() {
        same(test.collect(*cb)?, Ok(16), "a request")?;
    }
    same(test.perform(Op::Write, more)?, Ok(16), "when there is room")?;
    drop(limit);
    Ok(())
}

fn a_limit_that_is_raised_counts_at_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let low = test.setting("vfs.aio.max_aio_queue_per_proc", 2)?;
    let blocks = fill(test, fd, 2)?;
    let more = test.request(Op::Read, fd, 0, &test.buffer(16));
    refused(Op::Read.submit(more.addr()), EAGAIN, "one more")?;
    drop(low);
    same(test.perform(Op::Read, more)?, Ok(16), "with the limit raised")?;
    for cb in blocks.iter().flatten() {
        same(test.collect(*cb)?, Ok(16), "a request")?;
    }
    Ok(())
}

fn num_queue_count_follows_the_requests(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let count = || sysctl::get("vfs.aio.num_queue_count");
    let Some(before) = count() else { return skip(format_args!("no vfs.aio.num_queue_count")) };
    let hold = test.hold()?;
    let blocks = fill(test, fd, 5)?;
    same(count(), Some(before + 5), "with five queued")?;
    hold.release()?;
    for cb in blocks.iter().flatten() {
        same(test.done(*cb)?, 0, "a request")?;
    }
    same(count(), Some(before + 5), "with five finished")?;
    for (index, cb) in blocks.iter().flatten().enumerate() {
        if index % 2 == 0 {
            same(aio::return_(cb.addr()), Ok(16), "aio_return")?;
        } else {
            let done = aio::waitcomplete(Some(Timespec::default()));
            same(done.result, Ok(16), "aio_waitcomplete")?;
        }
        if index == 0 {
            same(count(), Some(before + 4), "with one collected")?;
            // What is in the list twice is found once.
            refused(aio::return_(cb.addr()), EINVAL, "aio_return again")?;
        }
        if index == 1 {
            break;
        }
    }
    while aio::waitcomplete(Some(Timespec::default())).cb != 0 {}
    same(count(), Some(before), "with all collected")?;
    let _ = sys::close(fd);
    Ok(())
}

fn with_max_aio_per_proc_at_zero_nothing_starts(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 1000, &test.buffer(16));
    test.submit(Op::Write, cb)?;
    guest::time::sleep_ms(200);
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
    same(sys::fstat(fd).map(|stat| stat.size), Ok(100), "the file's size")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(16), "the request, with the limit put back")
}

fn max_aio_per_proc_raised_from_zero_sets_what_waits_going(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    // The built-in notices when a worker has been idle for so long.
    let _lifetime = test.setting("vfs.aio.aiod_lifetime", 20)?;
    let _limit = test.setting("vfs.aio.max_aio_per_proc", 0)?;
    let cb = test.request(Op::Write, fd, 1000, &test.buffer(16));
    test.submit(Op::Write, cb)?;
    // While the submitter sleeps, so that no call of its own can notice.
    let child = test.child(|_| {
        guest::time::sleep_ms(200);
        i32::from(sysctl::set("vfs.aio.max_aio_per_proc", 32).is_err())
    })?;
    let minute = Timespec { sec: 60, nsec: 0 };
    same(aio::suspend(&[cb.addr()], Some(minute)), Ok(()), "aio_suspend")?;
    same(aio::return_(cb.addr()), Ok(16), "the request")?;
    test.child_ended(child, "who raised the limit", sys::Ended::Exit(0))
}

fn max_aio_per_proc_is_how_many_run_at_a_time(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let running = test.running()?;
    let limit = test.setting("vfs.aio.max_aio_per_proc", 1)?;
    let cb = test.request(Op::Write, fd, 1000, &test.buffer(16));
    test.submit(Op::Write, cb)?;
    guest::time::sleep_ms(200);
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the second request")?;
    // Another process has a share of its own.
    test.in_child("a child", |test| {
        let cb = test.request(Op::Write, fd, 2000, &test.buffer(16));
        i32::from(!matches!(test.perform(Op::Write, cb), Ok(Ok(16))))
    })?;
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the second request")?;
    running.let_go()?;
    same(test.collect(cb)?, Ok(16), "the second request")?;
    drop(limit);
    same(test.collect(running.cb)?, Ok(crate::harness::Running::BYTES as i64), "the first request")
}

fn what_sysconf_tells_is_there(test: &Test) -> Outcome {
    let number = |name| match sysctl::get(name) {
        Some(number) => Ok(number),
        None => crate::harness::fail(format_args!("no {name}")),
    };
    test.use_aio()?;
    check!(number("p1003_1b.asynchronous_io")? >= 200_112, "no asynchronous I/O");
    same(number("kern.features.aio")?, 1, "kern.features.aio")?;
    same(number("p1003_1b.aio_listio_max")?, limit() as u64, "AIO_LISTIO_MAX")?;
    same(number("p1003_1b.aio_max")?, 1024, "AIO_MAX")?;
    same(number("p1003_1b.aio_prio_delta_max")?, 0, "AIO_PRIO_DELTA_MAX")?;
    // The length of a list follows the limit.
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 77)?;
    same(number("p1003_1b.aio_listio_max")?, 77, "AIO_LISTIO_MAX with another limit")
}

/// Workers that run, of either engine.
fn workers() -> u64 {
    let engine = ["vfs.aio.rs.num_procs", "vfs.aio.num_aio_procs"];
    engine.into_iter().find_map(sysctl::get).unwrap_or(0)
}

/// How many of them are kept.
fn kept() -> u64 {
    sysctl::get("vfs.aio.target_aio_procs").unwrap_or(4)
}

/// Has so many workers busy at once, and then idle.
fn occupy<const COUNT: usize>(test: &Test) -> Outcome {
    let unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    let buffer = test.buffer(1 << 20);
    let mut blocks = [None; COUNT];
    let mut started = 0;
    for block in &mut blocks {
        let (from, to) = sys::pipe().must("pipe")?;
        let cb = test.request(Op::Write, to, 0, &buffer);
        test.submit(Op::Write, cb)?;
        started += u64::from(sys::poll_in(from, 30_000) == Ok(true));
        *block = Some((cb, from));
    }
    // One may be counted after it has begun.
    let begun = guest::time::now();
    while workers() < COUNT as u64 && guest::time::ms_since(begun) < 10_000 {
        guest::time::sleep_ms(5);
    }
    let busy = workers();
    for (_, from) in blocks.into_iter().flatten() {
        // Whoever writes is told how much the pipe held.
        sys::close(from).must("close")?;
    }
    for (cb, _) in blocks.into_iter().flatten() {
        let result = test.collect(cb)?;
        check!(matches!(result, Ok(1..)), "a request: {result:?}");
    }
    check!(
        started == COUNT as u64 && busy >= COUNT as u64,
        "{started} of {COUNT} requests started, with {busy} workers"
    );
    drop(unsafe_files);
    Ok(())
}

/// Waits until no more than so many workers are left; aio_rs keeps exactly these.
fn shrink_to(target: u64) -> Outcome {
    // Those that were idle before may have the old lifetime, of 30 seconds, before them.
    let start = guest::time::now();
    while workers() > target {
        let ms = guest::time::ms_since(start);
        check!(ms < 60_000, "{} workers, not {target}, after a minute", workers());
        guest::time::sleep_ms(20);
    }
    guest::time::sleep_ms(100);
    match sysctl::get("vfs.aio.rs.num_procs") {
        Some(left) => same(left, target, "workers that are kept"),
        None => Ok(()),
    }
}

fn idle_workers_beyond_the_target_end(test: &Test) -> Outcome {
    let target = kept();
    let _lifetime = test.setting("vfs.aio.aiod_lifetime", 20)?;
    // More requests that block than workers are kept.
    occupy::<8>(test)?;
    shrink_to(target)
}

fn fewer_workers_are_kept_when_fewer_are_to_be(test: &Test) -> Outcome {
    let target = kept();
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(16));
    let _lifetime = test.setting("vfs.aio.aiod_lifetime", 20)?;
    occupy::<4>(test)?;
    shrink_to(target)?;
    let _target = test.setting("vfs.aio.target_aio_procs", 1)?;
    // With aio_rs the change is noticed when the next request has been served.
    same(test.perform(Op::Write, cb)?, Ok(16), "a request")?;
    shrink_to(1)?;
    same(test.perform(Op::Write, cb)?, Ok(16), "a request of the one")
}
