// SPDX-License-Identifier: BSD-2-Clause
//! aio_waitcomplete: waiting for any request, and collecting it.

use crate::harness::{Must, Op, Outcome, Test, check_within, fail, refused, same};
use crate::{cases, check};
use core::sync::atomic::{AtomicU64, Ordering};
use guest::aio::{self, Completed};
use guest::errno::{EAGAIN, ECANCELED, EFAULT, EINTR, EINVAL, EISDIR};
use guest::mem::HOLE;
use guest::sys::{self, SA_RESTART, SIGALRM, Timespec};
use guest::thread;
use guest::time::{ms_since, now, sleep_ms};

cases! { "waitcomplete":
    it_collects_a_request,
    it_stores_the_result_in_the_block,
    a_failed_request_gives_its_error_and_its_block,
    the_oldest_completion_comes_first,
    with_nothing_there_it_stores_null,
    a_bad_time_stores_nothing,
    an_impossible_time_stores_null,
    l05_an_unwritable_result_pointer_is_no_error,
    no_time_is_a_poll,
    a_poll_finds_what_is_done,
    it_times_out_even_with_nothing_outstanding,
    it_makes_the_process_one_with_aio,
    it_ends_when_a_request_does,
    a_signal_ends_it_with_eintr,
    a_signal_ends_a_timed_wait_despite_sa_restart,
    a_signal_does_not_end_it_with_sa_restart,
    of_two_waiters_one_gets_the_request,
    every_waiter_gets_a_request_of_its_own,
    what_it_collected_is_gone,
}

/// What does not wait.
const POLL: Option<Timespec> = Some(Timespec { sec: 0, nsec: 0 });

fn nothing(error: guest::Errno) -> Completed {
    Completed { cb: 0, result: Err(error) }
}

fn it_collects_a_request(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for timeout in [None, Some(Timespec::from_ms(60_000))] {
        let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
        test.submit(Op::Read, cb)?;
        same(
            aio::waitcomplete(timeout),
            Completed { cb: cb.addr(), result: Ok(10) },
            "aio_waitcomplete",
        )?;
    }
    Ok(())
}

fn it_stores_the_result_in_the_block(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    let number = cb.kernelinfo();
    same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
    same(cb.private(), (10, 0, number), "status, error and kernelinfo")
}

fn a_failed_request_gives_its_error_and_its_block(test: &Test) -> Outcome {
    let directory = test.open(".", sys::O_RDONLY)?;
    let cb = test.request(Op::Read, directory, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    let failed = Completed { cb: cb.addr(), result: Err(EISDIR) };
    same(aio::waitcomplete(None), failed, "aio_waitcomplete")?;
    same((cb.status(), cb.error()), (-1, i64::from(EISDIR.0)), "status and error")
}

fn the_oldest_completion_comes_first(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let mut blocks = [None; 20];
    for (index, block) in blocks.iter_mut().enumerate() {
        let cb = test.request(Op::Read, fd, 0, &test.buffer(1 + index));
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, 0, "aio_error")?;
        *block = Some(cb);
    }
    // One collected out of order leaves the others in theirs.
    if let Some(cb) = blocks[7].take() {
        same(aio::return_(cb.addr()), Ok(8), "aio_return")?;
    }
    for (index, cb) in blocks.iter().enumerate() {
        let Some(cb) = cb else { continue };
        let wanted = Completed { cb: cb.addr(), result: Ok(1 + index as i64) };
        same(aio::waitcomplete(POLL), wanted, "the next")?;
    }
    same(aio::waitcomplete(POLL), nothing(EAGAIN), "after the last")
}

fn with_nothing_there_it_stores_null(_test: &Test) -> Outcome {
    for _ in 0..2 {
        same(aio::waitcomplete(POLL), nothing(EAGAIN), "a poll")?;
        same(aio::waitcomplete(Some(Timespec::from_ms(20))), nothing(EAGAIN), "a wait")?;
    }
    Ok(())
}

fn a_bad_time_stores_nothing(test: &Test) -> Outcome {
    let slot = test.buffer(8);
    slot.set_word(0, 55);
    for _ in 0..2 {
        refused(aio::waitcomplete_raw(slot.addr(), 8), EFAULT, "aio_waitcomplete")?;
        same(slot.word(0), 55, "the result pointer")?;
        test.use_aio()?;
    }
    Ok(())
}

fn an_impossible_time_stores_null(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    for (sec, nsec) in [(0, -1), (0, 1_000_000_000), (-1, 0), (isize::MIN, 0), (1, isize::MAX)] {
        same(aio::waitcomplete(Some(Timespec { sec, nsec })), nothing(EINVAL), "aio_waitcomplete")?;
    }
    same(aio::return_(cb.addr()), Ok(10), "the finished request")
}

fn l05_an_unwritable_result_pointer_is_no_error(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let time = test.buffer(16);
    for addr in [0, HOLE] {
        refused(aio::waitcomplete_raw(addr, time.addr()), EAGAIN, "a poll")?;
        let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
        test.submit(Op::Read, cb)?;
        same(aio::waitcomplete_raw(addr, 0), Ok(10), "a wait")?;
        refused(aio::return_(cb.addr()), EINVAL, "the request")?;
    }
    Ok(())
}

fn no_time_is_a_poll(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    let start = now();
    for _ in 0..100 {
        same(aio::waitcomplete(POLL), nothing(EAGAIN), "aio_waitcomplete")?;
    }
    check_within(start, 0, 20_000)?;
    hold.release()
}

fn a_poll_finds_what_is_done(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    same(aio::waitcomplete(POLL), Completed { cb: cb.addr(), result: Ok(10) }, "aio_waitcomplete")
}

fn it_times_out_even_with_nothing_outstanding(test: &Test) -> Outcome {
    for _ in 0..2 {
        let start = now();
        same(aio::waitcomplete(Some(Timespec::from_ms(150))), nothing(EAGAIN), "aio_waitcomplete")?;
        check_within(start, 150, 20_000)?;
        test.use_aio()?;
    }
    Ok(())
}

fn it_makes_the_process_one_with_aio(_test: &Test) -> Outcome {
    refused(aio::suspend(&[], None), EAGAIN, "aio_suspend before")?;
    same(aio::waitcomplete(POLL), nothing(EAGAIN), "aio_waitcomplete")?;
    same(aio::suspend(&[], None), Ok(()), "aio_suspend after")
}

fn it_ends_when_a_request_does(test: &Test) -> Outcome {
    fn cancel_soon(fd: usize) {
        sleep_ms(200);
        let _ = aio::cancel(fd as i32, 0);
    }
    let fd = test.file("file", 100)?;
    let _hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    let start = now();
    let thread = thread::spawn(cancel_soon, fd as usize).must("thr_new")?;
    let wanted = Completed { cb: cb.addr(), result: Err(ECANCELED) };
    same(aio::waitcomplete(None), wanted, "aio_waitcomplete")?;
    check_within(start, 190, 60_000)?;
    thread.join();
    Ok(())
}

/// A signal comes after 100 ms.
fn interrupted(flags: i32, timeout: Option<Timespec>) -> Outcome {
    sys::count_signals(SIGALRM, flags).must("sigaction")?;
    let before = sys::signals();
    sys::alarm_ms(100, 0).must("setitimer")?;
    same(aio::waitcomplete(timeout), nothing(EINTR), "aio_waitcomplete")?;
    same(sys::signals(), before + 1, "signals")
}

fn a_signal_ends_it_with_eintr(test: &Test) -> Outcome {
    interrupted(0, None)?;
    interrupted(0, Some(Timespec::from_ms(60_000)))?;
    // Also with a request in progress, which goes on.
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    interrupted(0, None)?;
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")
}

fn a_signal_ends_a_timed_wait_despite_sa_restart(_test: &Test) -> Outcome {
    interrupted(SA_RESTART, Some(Timespec::from_ms(60_000)))
}

fn a_signal_does_not_end_it_with_sa_restart(test: &Test) -> Outcome {
    fn cancel_later(fd: usize) {
        sleep_ms(600);
        let _ = aio::cancel(fd as i32, 0);
    }
    let fd = test.file("file", 100)?;
    let _hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    sys::count_signals(SIGALRM, SA_RESTART).must("sigaction")?;
    let start = now();
    let thread = thread::spawn(cancel_later, fd as usize).must("thr_new")?;
    sys::alarm_ms(50, 50).must("setitimer")?;
    let done = aio::waitcomplete(None);
    sys::alarm_ms(0, 0).must("setitimer")?;
    same(done, Completed { cb: cb.addr(), result: Err(ECANCELED) }, "aio_waitcomplete")?;
    check_within(start, 590, 60_000)?;
    check!(sys::signals() > 1, "only {} signals came", sys::signals());
    thread.join();
    Ok(())
}

static GOT: AtomicU64 = AtomicU64::new(0);
static TIMED_OUT: AtomicU64 = AtomicU64::new(0);

fn wait_a_second(ms: usize) {
    match aio::waitcomplete(Some(Timespec::from_ms(ms as u64))) {
        Completed { cb: 0, result: Err(EAGAIN) } => TIMED_OUT.fetch_add(1, Ordering::SeqCst),
        Completed { cb: 0, .. } => 0,
        Completed { .. } => GOT.fetch_add(1, Ordering::SeqCst),
    };
}

fn of_two_waiters_one_gets_the_request(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let threads = [(); 2].map(|()| thread::spawn(wait_a_second, 3000).ok());
    sleep_ms(200);
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    threads.into_iter().flatten().for_each(thread::Thread::join);
    let counts = (GOT.load(Ordering::SeqCst), TIMED_OUT.load(Ordering::SeqCst));
    same(counts, (1, 1), "threads that got it, and that timed out")
}

fn every_waiter_gets_a_request_of_its_own(test: &Test) -> Outcome {
    const COUNT: usize = 8;
    let fd = test.file("file", 100)?;
    let threads = [(); COUNT].map(|()| thread::spawn(wait_a_second, 60_000).ok());
    sleep_ms(100);
    for _ in 0..COUNT {
        let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
        test.submit(Op::Read, cb)?;
    }
    threads.into_iter().flatten().for_each(thread::Thread::join);
    same(GOT.load(Ordering::SeqCst), COUNT as u64, "threads that got one")?;
    same(aio::waitcomplete(POLL), nothing(EAGAIN), "after all")
}

fn what_it_collected_is_gone(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    let start = now();
    if aio::waitcomplete(None).result != Ok(10) {
        return fail(format_args!("aio_waitcomplete after {} ms", ms_since(start)));
    }
    refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
    same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    same(aio::cancel(fd, cb.addr()), Ok(aio::AIO_ALLDONE), "aio_cancel")
}
