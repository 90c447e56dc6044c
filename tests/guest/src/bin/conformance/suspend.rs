// SPDX-License-Identifier: BSD-2-Clause
//! aio_suspend: waiting for one of several requests.

use crate::harness::{Hold, Must, Op, Outcome, Test, check_within, refused, same};
use crate::{cases, check};
use core::sync::atomic::{AtomicU64, Ordering};
use guest::aio;
use guest::errno::{EAGAIN, EFAULT, EINTR, EINVAL};
use guest::mem::HOLE;
use guest::sys::{self, SA_RESTART, SIGALRM, Timespec};
use guest::time::{ms_since, now, sleep_ms};
use guest::{sysctl, thread};

cases! { "suspend":
    the_count_is_looked_at_first,
    the_time_is_copied_before_the_list,
    the_list_is_copied_before_the_time_is_judged,
    an_impossible_time_is_einval,
    without_aio_it_is_eagain,
    an_empty_list_is_no_wait,
    unknown_blocks_are_no_wait,
    a_finished_request_is_no_wait,
    a_finished_request_among_others_is_no_wait,
    a_failed_request_counts_as_finished,
    it_ends_when_a_request_does,
    it_collects_nothing,
    it_times_out_with_eagain,
    no_time_at_all_is_short,
    a_long_time_is_allowed,
    a_signal_ends_it_with_eintr,
    a_signal_ends_it_with_eintr_despite_sa_restart,
    other_requests_do_not_end_it,
    one_deadline_is_kept_whatever_else_ends
        differs "each completion of the process starts the time again",
    several_threads_may_wait_for_one_request,
    f07_the_longest_list_is_allowed,
}

const BAD: usize = 8;

fn the_count_is_looked_at_first(test: &Test) -> Outcome {
    let limit = sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as i32;
    // Before the process has AIO and after.
    for _ in 0..2 {
        for count in [-1, i32::MIN, limit + 1, i32::MAX] {
            refused(aio::suspend_raw(BAD, count, BAD), EINVAL, "aio_suspend")?;
        }
        test.use_aio()?;
    }
    Ok(())
}

fn the_time_is_copied_before_the_list(test: &Test) -> Outcome {
    refused(aio::suspend_raw(0, 0, BAD), EFAULT, "without AIO")?;
    test.use_aio()?;
    refused(aio::suspend_raw(0, 0, BAD), EFAULT, "with an empty list")?;
    refused(aio::suspend_raw(BAD, 1, BAD), EFAULT, "with a bad list")
}

fn the_list_is_copied_before_the_time_is_judged(test: &Test) -> Outcome {
    let times = test.buffer(16);
    times.put(0, Timespec { sec: 0, nsec: -1 });
    refused(aio::suspend_raw(BAD, 1, times.addr()), EFAULT, "without AIO")?;
    test.use_aio()?;
    refused(aio::suspend_raw(BAD, 1, times.addr()), EFAULT, "with AIO")?;
    refused(aio::suspend_raw(BAD, 1, 0), EFAULT, "without a time")
}

fn an_impossible_time_is_einval(test: &Test) -> Outcome {
    let bad = [(0, -1), (0, 1_000_000_000), (0, isize::MAX), (-1, 0), (isize::MIN, 0)];
    // The time is judged before it is asked whether the process has AIO.
    for _ in 0..2 {
        for (sec, nsec) in bad {
            refused(aio::suspend(&[0], Some(Timespec { sec, nsec })), EINVAL, "aio_suspend")?;
            refused(aio::suspend(&[], Some(Timespec { sec, nsec })), EINVAL, "with an empty list")?;
        }
        test.use_aio()?;
    }
    Ok(())
}

fn without_aio_it_is_eagain(test: &Test) -> Outcome {
    let cb = test.block();
    refused(aio::suspend(&[cb.addr()], None), EAGAIN, "a block")?;
    refused(aio::suspend(&[], None), EAGAIN, "an empty list")?;
    refused(aio::suspend(&[0], Some(Timespec::default())), EAGAIN, "with a time")
}

fn an_empty_list_is_no_wait(test: &Test) -> Outcome {
    test.use_aio()?;
    same(aio::suspend(&[], None), Ok(()), "aio_suspend")?;
    same(aio::suspend_raw(BAD, 0, 0), Ok(()), "with a bad list of none")
}

fn unknown_blocks_are_no_wait(test: &Test) -> Outcome {
    test.use_aio()?;
    let cb = test.block();
    for list in [&[cb.addr()][..], &[0], &[0, 0, 0], &[HOLE, cb.addr(), 0]] {
        same(aio::suspend(list, None), Ok(()), "aio_suspend")?;
    }
    // Also while other requests are in progress.
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let held = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, held)?;
    same(aio::suspend(&[cb.addr(), 0], None), Ok(()), "with another in progress")?;
    hold.release()
}

fn a_finished_request_is_no_wait(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    for _ in 0..3 {
        same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    }
    Ok(())
}

fn a_finished_request_among_others_is_no_wait(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let done = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, done)?;
    same(test.done(done)?, 0, "aio_error")?;
    let hold = test.hold()?;
    let held = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, held)?;
    for list in [
        &[held.addr(), done.addr()][..],
        &[done.addr(), held.addr()],
        &[0, held.addr(), 0, done.addr()],
    ] {
        same(aio::suspend(list, None), Ok(()), "aio_suspend")?;
    }
    hold.release()
}

fn a_failed_request_counts_as_finished(test: &Test) -> Outcome {
    let directory = test.open(".", sys::O_RDONLY)?;
    let cb = test.request(Op::Read, directory, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    check!(aio::error(cb.addr()) == Ok(guest::errno::EISDIR.0), "not failed");
    Ok(())
}

/// Runs something in 200 ms in a thread: cancels the requests of a descriptor.
fn cancel_soon(fd: usize) {
    sleep_ms(200);
    let _ = aio::cancel(fd as i32, 0);
}

fn it_ends_when_a_request_does(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let other = test.file("other", 100)?;
    let _hold = test.hold()?;
    let (one, two) = (
        test.request(Op::Write, other, 0, &test.buffer(10)),
        test.request(Op::Write, fd, 0, &test.buffer(10)),
    );
    test.submit(Op::Write, one)?;
    test.submit(Op::Write, two)?;
    let start = now();
    let thread = thread::spawn(cancel_soon, fd as usize).must("thr_new")?;
    same(aio::suspend(&[one.addr(), two.addr()], None), Ok(()), "aio_suspend")?;
    check!(ms_since(start) >= 190, "it ended before the request did");
    thread.join();
    same(aio::error(one.addr()), Ok(guest::errno::EINPROGRESS.0), "the other")?;
    same(aio::error(two.addr()), Ok(guest::errno::ECANCELED.0), "the one")
}

fn it_collects_nothing(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    let stored = cb.private();
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    same(cb.private(), stored, "status, error and kernelinfo")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

/// A request that does not start, for a wait that is to end otherwise.
fn held(test: &Test) -> Result<(Hold<'_>, usize), crate::harness::Stop> {
    // One that is served, so that it shows whose process this is.
    test.use_aio()?;
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    Ok((hold, cb.addr()))
}

fn it_times_out_with_eagain(test: &Test) -> Outcome {
    let (_hold, cb) = held(test)?;
    for ms in [20, 150, 1000] {
        let start = now();
        refused(aio::suspend(&[cb], Some(Timespec::from_ms(ms))), EAGAIN, "aio_suspend")?;
        check_within(start, ms, 20_000)?;
    }
    Ok(())
}

fn no_time_at_all_is_short(test: &Test) -> Outcome {
    let (_hold, cb) = held(test)?;
    let start = now();
    for nsec in [0, 1, 999] {
        refused(aio::suspend(&[cb], Some(Timespec { sec: 0, nsec })), EAGAIN, "aio_suspend")?;
    }
    check_within(start, 0, 20_000)
}

fn a_long_time_is_allowed(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for sec in [100_000_001, i32::MAX as isize, isize::MAX] {
        let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
        test.submit(Op::Read, cb)?;
        let span = Timespec { sec, nsec: 999_999_999 };
        same(aio::suspend(&[cb.addr()], Some(span)), Ok(()), "aio_suspend")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    Ok(())
}

/// A signal comes while a wait goes on.
fn interrupted(test: &Test, flags: i32) -> Outcome {
    let (_hold, cb) = held(test)?;
    sys::count_signals(SIGALRM, flags).must("sigaction")?;
    for timeout in [None, Some(Timespec::from_ms(60_000))] {
        let before = sys::signals();
        sys::alarm_ms(100, 0).must("setitimer")?;
        refused(aio::suspend(&[cb], timeout), EINTR, "aio_suspend")?;
        same(sys::signals(), before + 1, "signals")?;
    }
    same(aio::error(cb), Ok(guest::errno::EINPROGRESS.0), "the request")
}

fn a_signal_ends_it_with_eintr(test: &Test) -> Outcome {
    interrupted(test, 0)
}

fn a_signal_ends_it_with_eintr_despite_sa_restart(test: &Test) -> Outcome {
    interrupted(test, SA_RESTART)
}

fn other_requests_do_not_end_it(test: &Test) -> Outcome {
    // The running request occupies one worker; reads go on beside it, and each of them wakes.
    let running = test.running()?;
    fn reads(cb: usize) {
        for _ in 0..20 {
            if Op::Read.submit(cb).is_ok() {
                let _ = aio::suspend(&[cb], None);
                let _ = aio::return_(cb);
            }
            sleep_ms(10);
        }
    }
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    let thread = thread::spawn(reads, cb.addr()).must("thr_new")?;
    let start = now();
    let waited = aio::suspend(&[running.cb.addr()], Some(Timespec::from_ms(400)));
    refused(waited, EAGAIN, "aio_suspend")?;
    check_within(start, 400, 60_000)?;
    thread.join();
    running.let_go()?;
    same(
        test.collect(running.cb)?,
        Ok(crate::harness::Running::BYTES as i64),
        "the running request",
    )
}

fn one_deadline_is_kept_whatever_else_ends(test: &Test) -> Outcome {
    /// For three seconds, a request every tenth of one.
    fn writes(cb: usize) {
        for _ in 0..30 {
            if Op::Write.submit(cb).is_ok() {
                let _ = aio::suspend(&[cb], None);
                let _ = aio::return_(cb);
            }
            sleep_ms(100);
        }
    }
    let running = test.running()?;
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    let thread = thread::spawn(writes, cb.addr()).must("thr_new")?;
    let start = now();
    let waited = aio::suspend(&[running.cb.addr()], Some(Timespec::from_ms(800)));
    let took = ms_since(start);
    thread.join();
    running.let_go()?;
    let bytes = crate::harness::Running::BYTES as i64;
    same(test.collect(running.cb)?, Ok(bytes), "the running request")?;
    refused(waited, EAGAIN, "aio_suspend")?;
    check!((798..2500).contains(&took), "a wait of 800 ms took {took} ms");
    Ok(())
}

static WOKEN: AtomicU64 = AtomicU64::new(0);

fn several_threads_may_wait_for_one_request(test: &Test) -> Outcome {
    fn waits(cb: usize) {
        if aio::suspend(&[cb], Some(Timespec::from_ms(60_000))) == Ok(()) {
            WOKEN.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (hold, cb) = held(test)?;
    let threads = [(); 5].map(|()| thread::spawn(waits, cb).ok());
    sleep_ms(200);
    hold.release()?;
    threads.into_iter().flatten().for_each(thread::Thread::join);
    same(WOKEN.load(Ordering::SeqCst), 5, "threads that woke")?;
    same(aio::return_(cb), Ok(10), "aio_return")
}

fn f07_the_longest_list_is_allowed(test: &Test) -> Outcome {
    let limit = sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as usize;
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    let list = test.buffer(limit * size_of::<usize>());
    list.put((limit - 1) * size_of::<usize>(), cb.addr());
    same(aio::suspend_raw(list.addr(), limit as i32, 0), Ok(()), "aio_suspend")?;
    same(test.collect(cb)?, Ok(10), "the request")
}
