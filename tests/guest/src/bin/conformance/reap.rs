// SPDX-License-Identifier: BSD-2-Clause
//! aio_error and aio_return, and what the kernel stores in the block when.

use crate::harness::{Must, OPS, Op, Outcome, Test, fail, holds_pattern, refused, same, skip};
use crate::{cases, check};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EBADF, EINPROGRESS, EINVAL, EISDIR};
use guest::mem::HOLE;
use guest::sys::{self, Timespec};
use guest::thread;

cases! { "reap":
    an_accepted_request_stores_einprogress_and_a_number,
    job_numbers_count_up,
    completion_stores_nothing,
    aio_return_stores_the_result,
    aio_return_of_a_failed_request_fails_with_its_error,
    aio_return_works_once,
    aio_return_of_an_unknown_block_is_einval,
    aio_return_of_a_request_in_progress_is_einval,
    aio_error_stays_the_same_until_collected,
    aio_error_of_a_failed_request_stays_after_it_is_collected,
    aio_error_of_a_good_request_is_einval_after_it_is_collected,
    l09_aio_error_of_an_unknown_block_is_what_the_block_says,
    aio_error_of_an_unmapped_block_is_minus_one,
    a_process_without_aio_knows_no_requests,
    u2_results_are_kept_whatever_happens_to_the_block,
    two_requests_may_share_a_block,
    c1_of_two_threads_that_return_a_request_one_wins,
    c1_of_aio_return_and_aio_waitcomplete_one_wins,
    requests_of_an_ended_thread_go_on,
    blocks_written_are_charged_to_who_collects,
    messages_are_charged_to_who_collects,
    many_requests_are_found_in_any_order,
}

fn an_accepted_request_stores_einprogress_and_a_number(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(50));
        test.submit(op, cb)?;
        let (status, error, number) = cb.private();
        same((status, error), (-1, i64::from(EINPROGRESS.0)), "status and error")?;
        check!(number > 0 && number <= i64::from(i32::MAX), "kernelinfo is {number}");
        // A read may be done at once where the file is in memory.
        if op.writes() {
            same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
        }
    }
    hold.release()
}

fn job_numbers_count_up(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let mut last = None;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(50));
        same(test.perform(op, cb)?, Ok(50), "a request")?;
        let number = cb.kernelinfo();
        if let Some(last) = last {
            same(number, last + 1, "the next number")?;
        }
        last = Some(number);
    }
    Ok(())
}

fn completion_stores_nothing(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(50));
        test.submit(op, cb)?;
        let stored = cb.private();
        same(test.done(cb)?, 0, "aio_error")?;
        same(cb.private(), stored, "status, error and kernelinfo after completion")?;
        same(stored.1, i64::from(EINPROGRESS.0), "error")?;
        same(aio::return_(cb.addr()), Ok(50), "aio_return")?;
    }
    Ok(())
}

fn aio_return_stores_the_result(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        let cb = test.request(op, fd, 30, &test.buffer(50));
        test.submit(op, cb)?;
        let number = cb.kernelinfo();
        same(test.collect(cb)?, Ok(50), "aio_return")?;
        same(cb.private(), (50, 0, number), "status, error and kernelinfo")?;
    }
    Ok(())
}

fn aio_return_of_a_failed_request_fails_with_its_error(test: &Test) -> Outcome {
    let directory = test.open(".", sys::O_RDONLY)?;
    let cb = test.request(Op::Read, directory, 0, &test.buffer(512));
    test.submit(Op::Read, cb)?;
    let number = cb.kernelinfo();
    same(test.done(cb)?, EISDIR.0, "aio_error")?;
    refused(aio::return_(cb.addr()), EISDIR, "aio_return")?;
    same(cb.private(), (-1, i64::from(EISDIR.0), number), "status, error and kernelinfo")?;
    refused(aio::return_(cb.addr()), EINVAL, "aio_return again")
}

fn aio_return_works_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(50));
    same(test.perform(Op::Read, cb)?, Ok(50), "a read")?;
    cb.set_private(1, 2, 3);
    for _ in 0..3 {
        refused(aio::return_(cb.addr()), EINVAL, "aio_return again")?;
    }
    same(cb.private(), (1, 2, 3), "status, error and kernelinfo")?;
    same(aio::waitcomplete(Some(Timespec::default())).result, Err(EAGAIN), "aio_waitcomplete")
}

fn aio_return_of_an_unknown_block_is_einval(test: &Test) -> Outcome {
    test.use_aio()?;
    let cb = test.block();
    cb.set_private(1, 2, 3);
    refused(aio::return_(cb.addr()), EINVAL, "an unknown block")?;
    same(cb.private(), (1, 2, 3), "status, error and kernelinfo")?;
    for addr in [0, HOLE, usize::MAX] {
        refused(aio::return_(addr), EINVAL, "an address that is no block")?;
    }
    Ok(())
}

fn aio_return_of_a_request_in_progress_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(50));
    test.submit(Op::Write, cb)?;
    let stored = cb.private();
    refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
    same(cb.private(), stored, "status, error and kernelinfo")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(50), "the request")
}

fn aio_error_stays_the_same_until_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let directory = test.open(".", sys::O_RDONLY)?;
    for (fd, wanted) in [(fd, 0), (directory, EISDIR.0)] {
        let cb = test.request(Op::Read, fd, 0, &test.buffer(50));
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, wanted, "aio_error")?;
        // What the block holds does not matter while the request is known.
        cb.set_private(-1, 5, 5);
        for _ in 0..3 {
            same(aio::error(cb.addr()), Ok(wanted), "aio_error")?;
        }
        let _ = aio::return_(cb.addr());
    }
    Ok(())
}

fn aio_error_of_a_failed_request_stays_after_it_is_collected(test: &Test) -> Outcome {
    let directory = test.open(".", sys::O_RDONLY)?;
    let cb = test.request(Op::Read, directory, 0, &test.buffer(50));
    refused(test.perform(Op::Read, cb)?, EISDIR, "a read")?;
    same(aio::error(cb.addr()), Ok(EISDIR.0), "aio_error")?;
    // The same by aio_waitcomplete.
    test.submit(Op::Read, cb)?;
    refused(aio::waitcomplete(None).result, EISDIR, "aio_waitcomplete")?;
    same(aio::error(cb.addr()), Ok(EISDIR.0), "aio_error")
}

fn aio_error_of_a_good_request_is_einval_after_it_is_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(50));
    same(test.perform(Op::Read, cb)?, Ok(50), "a read")?;
    same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")
}

fn l09_aio_error_of_an_unknown_block_is_what_the_block_says(test: &Test) -> Outcome {
    test.use_aio()?;
    let cb = test.block();
    for (status, error, wanted) in [
        (-1, 5, 5),
        (-1, 0, 0),
        (-1, 12345, 12345),
        (0, 5, EINVAL.0),
        (50, 0, EINVAL.0),
        (-2, 5, EINVAL.0),
    ] {
        cb.set_private(status, error, 0);
        same(aio::error(cb.addr()), Ok(wanted), "aio_error")?;
    }
    Ok(())
}

fn aio_error_of_an_unmapped_block_is_minus_one(test: &Test) -> Outcome {
    test.use_aio()?;
    for addr in [0, HOLE, guest::mem::KERNEL] {
        same(aio::error(addr), Ok(-1), "aio_error")?;
    }
    Ok(())
}

fn a_process_without_aio_knows_no_requests(test: &Test) -> Outcome {
    let cb = test.block();
    cb.set_private(-1, 5, 5);
    for addr in [cb.addr(), 0, HOLE] {
        same(aio::error(addr), Ok(EINVAL.0), "aio_error")?;
        refused(aio::return_(addr), EINVAL, "aio_return")?;
    }
    Ok(())
}

fn u2_results_are_kept_whatever_happens_to_the_block(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let page = guest::mem::Region::map(guest::mem::PAGE).must("mmap")?;
    let cb = Cb::at(&page, 0);
    test.prepare(cb, Op::Read, fd, 0, &test.buffer(50));
    test.submit(Op::Read, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    // The block goes away: the address is all that counts.
    page.unmap().must("munmap")?;
    same(aio::error(cb.addr()), Ok(0), "aio_error")?;
    same(aio::return_(cb.addr()), Ok(50), "aio_return")?;
    refused(aio::return_(cb.addr()), EINVAL, "aio_return again")
}

fn two_requests_may_share_a_block(test: &Test) -> Outcome {
    let fd = test.file("file", 1000)?;
    let buffer = test.buffer(300);
    let hold = test.hold()?;
    let cb = test.block();
    for len in [100, 200, 300] {
        cb.set(aio::request(fd, 0, buffer.addr(), len));
        test.submit(Op::Write, cb)?;
    }
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
    hold.release()?;
    let mut total = 0;
    for _ in 0..3 {
        // Any of them may be done first.
        loop {
            match aio::return_(cb.addr()) {
                Ok(count) => break total += count,
                Err(EINVAL) => {
                    // It may have been done since.
                    let state = aio::error(cb.addr());
                    let right = state == Ok(EINPROGRESS.0) || state == Ok(0);
                    check!(right, "neither done nor in progress: aio_error gives {state:?}");
                    guest::time::sleep_ms(1);
                }
                Err(error) => return fail(format_args!("aio_return: {error}")),
            }
        }
    }
    same(total, 600, "bytes of the three")?;
    refused(aio::return_(cb.addr()), EINVAL, "a fourth aio_return")
}

/// For the threads of the races below: whose turn it is, and what they got.
static TURN: AtomicU64 = AtomicU64::new(0);
static BLOCK: AtomicUsize = AtomicUsize::new(0);
static WINS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
const ROUNDS: u64 = 300;

/// Waits for its turn and runs; by spinning, so that both start at once.
fn racer(who: usize, go: impl Fn(usize) -> bool) {
    for round in 1..=ROUNDS {
        let mut spins = 0u32;
        // The upper half holds the marks of who has tried.
        while TURN.load(Ordering::Acquire) & 0xffff_ffff < round {
            spins += 1;
            if spins.is_multiple_of(1000) {
                sys::sched_yield();
            }
        }
        if go(BLOCK.load(Ordering::Relaxed)) {
            WINS[who].fetch_add(1, Ordering::Relaxed);
        }
        TURN.fetch_add(1 << 32, Ordering::AcqRel);
    }
}

/// One request per round is done; the other thread and this one go for it.
fn race(test: &Test, other: fn(usize), go: impl Fn(usize) -> bool) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(50));
    BLOCK.store(cb.addr(), Ordering::Relaxed);
    let thread = thread::spawn(other, 0).must("thr_new")?;
    for round in 1..=ROUNDS {
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, 0, "aio_error")?;
        let before = WINS[0].load(Ordering::Relaxed);
        TURN.store(round, Ordering::Release);
        let ours = go(cb.addr());
        // The other thread adds a mark in the upper half when it has tried.
        let start = guest::time::now();
        while TURN.load(Ordering::Acquire) >> 32 == 0 {
            check!(guest::time::ms_since(start) < 30_000, "the other thread does not answer");
            sys::sched_yield();
        }
        let theirs = WINS[0].load(Ordering::Relaxed) - before;
        same(theirs + u64::from(ours), 1, "how many got the request")?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return after both")?;
    }
    thread.join();
    Ok(())
}

fn c1_of_two_threads_that_return_a_request_one_wins(test: &Test) -> Outcome {
    fn other(_: usize) {
        racer(0, |cb| aio::return_(cb) == Ok(50));
    }
    race(test, other, |cb| aio::return_(cb) == Ok(50))
}

fn c1_of_aio_return_and_aio_waitcomplete_one_wins(test: &Test) -> Outcome {
    fn other(_: usize) {
        racer(0, |_| aio::waitcomplete(Some(Timespec::default())).result == Ok(50));
    }
    race(test, other, |cb| aio::return_(cb) == Ok(50))
}

fn requests_of_an_ended_thread_go_on(test: &Test) -> Outcome {
    fn submit(cb: usize) {
        let _ = Op::Write.submit(cb);
    }
    let fd = test.file("file", 100)?;
    let buffer = test.buffer(50);
    sys::pread_at(fd, buffer.addr(), 50, 10).must("pread")?;
    let cb = test.request(Op::Write, fd, 100, &buffer);
    let hold = test.hold()?;
    thread::spawn(submit, cb.addr()).must("thr_new")?.join();
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(50), "the request")?;
    sys::pread_at(fd, buffer.addr(), 50, 100).must("pread")?;
    holds_pattern(&buffer, 50, 10)
}

fn blocks_written_are_charged_to_who_collects(test: &Test) -> Outcome {
    if test.fs().as_str() != "ufs" {
        return skip(format_args!("{} has no blocks to count", test.fs().as_str()));
    }
    test.file("file", 100)?;
    let fd = test.open("file", sys::O_WRONLY | sys::O_SYNC)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(50_000));
    test.submit(Op::Write, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    let before = sys::thread_blocks().must("getrusage")?;
    same(aio::return_(cb.addr()), Ok(50_000), "aio_return")?;
    let after = sys::thread_blocks().must("getrusage")?;
    check!(after.1 > before.1, "blocks of output {} before and {} after", before.1, after.1);
    // The same by aio_waitcomplete.
    test.submit(Op::Write, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    let before = sys::thread_blocks().must("getrusage")?;
    same(aio::waitcomplete(None).result, Ok(50_000), "aio_waitcomplete")?;
    let after = sys::thread_blocks().must("getrusage")?;
    check!(after.1 > before.1, "blocks of output {} before and {} after", before.1, after.1);
    Ok(())
}

fn many_requests_are_found_in_any_order(test: &Test) -> Outcome {
    const COUNT: usize = 250;
    let fd = test.file("file", 100_000)?;
    let directory = test.open(".", sys::O_RDONLY)?;
    let buffer = test.buffer(4096);
    let mut blocks = [None; COUNT];
    for (index, block) in blocks.iter_mut().enumerate() {
        let cb = test.block();
        let fd = if index.is_multiple_of(5) { directory } else { fd };
        cb.set(aio::request(fd, 0, buffer.addr(), 1 + index));
        test.submit(Op::Read, cb)?;
        *block = Some(cb);
    }
    // 101 has no divisor in common with 250: every block comes once, in a mixed order.
    for step in 0..COUNT {
        let index = (step * 101) % COUNT;
        let Some(cb) = blocks[index] else { continue };
        let wanted = if index.is_multiple_of(5) { Err(EISDIR) } else { Ok(1 + index as i64) };
        same(test.collect(cb)?, wanted, "a request")?;
    }
    let again = blocks[0].map_or(Err(EBADF), |cb| aio::return_(cb.addr()));
    refused(again, EINVAL, "aio_return again")?;
    Ok(())
}

fn messages_are_charged_to_who_collects(test: &Test) -> Outcome {
    let (one, two) = sys::socketpair().must("socketpair")?;
    let write = test.request(Op::Write, one, 0, &test.buffer(10));
    let read = test.request(Op::Read, two, 0, &test.buffer(10));
    let charged = || sys::thread_messages().must("getrusage");
    let before = charged()?;
    test.submit(Op::Write, write)?;
    test.submit(Op::Read, read)?;
    same((test.done(write)?, test.done(read)?), (0, 0), "the requests")?;
    same(charged()?, before, "messages of this thread before it collects")?;
    same(aio::return_(write.addr()), Ok(10), "the write")?;
    same(charged()?, (before.0 + 1, before.1), "messages sent and received")?;
    same(aio::return_(read.addr()), Ok(10), "the read")?;
    same(charged()?, (before.0 + 1, before.1 + 1), "messages sent and received")
}
