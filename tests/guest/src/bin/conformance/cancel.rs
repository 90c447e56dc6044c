// SPDX-License-Identifier: BSD-2-Clause
//! aio_cancel: what it cancels, and what it answers.

use crate::harness::{
    Must, OPS, Op, Outcome, Running, Stop, Test, fail, holds_pattern, refused, same, skip,
};
use crate::notify::Queue;
use crate::{cases, check};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, AIO_NOTCANCELED, Sigevent};
use guest::errno::{EBADF, ECANCELED, EINPROGRESS, EINVAL};
use guest::sys::{self, Timespec};
use guest::{sysctl, thread};

cases! { "cancel":
    a_closed_descriptor_is_ebadf,
    without_aio_all_is_done,
    with_nothing_in_flight_all_is_done,
    a_finished_request_is_done,
    a_queued_request_is_cancelled,
    a_cancelled_request_must_be_collected,
    a_cancelled_request_has_no_effect,
    all_requests_of_a_descriptor_are_cancelled,
    requests_of_other_descriptors_stay,
    the_block_must_be_one_of_the_descriptor,
    the_number_counts_not_the_file,
    a_duplicate_descriptor_is_another,
    a_running_request_is_not_cancelled,
    a_running_request_among_queued_ones_is_told,
    cancelling_again_finds_it_done,
    of_two_requests_on_a_block_the_older_is_cancelled,
    a_disk_is_never_cancelled,
    cancelling_at_any_moment_is_consistent,
    a_file_request_is_queued_completed_and_cancelled_at_once,
    a_socket_request_is_queued_completed_and_cancelled_at_once,
    any_type_of_descriptor_may_be_asked,
}

fn a_closed_descriptor_is_ebadf(test: &Test) -> Outcome {
    let closed = test.file("file", 10)?;
    let _ = sys::close(closed);
    for _ in 0..2 {
        for fd in [closed, -1, i32::MAX] {
            refused(aio::cancel(fd, 0), EBADF, "all requests")?;
            refused(aio::cancel(fd, 8), EBADF, "one request")?;
        }
        test.use_aio()?;
        let _ = sys::close(closed);
    }
    Ok(())
}

fn without_aio_all_is_done(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    for cb in [0, test.block().addr(), 8] {
        same(aio::cancel(fd, cb), Ok(AIO_ALLDONE), "aio_cancel")?;
    }
    // It does not make the process one with AIO.
    refused(aio::suspend(&[], None), guest::errno::EAGAIN, "aio_suspend")
}

fn with_nothing_in_flight_all_is_done(test: &Test) -> Outcome {
    test.use_aio()?;
    without_requests(test)
}

fn without_requests(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    for cb in [0, test.block().addr(), 8] {
        same(aio::cancel(fd, cb), Ok(AIO_ALLDONE), "aio_cancel")?;
    }
    Ok(())
}

fn a_finished_request_is_done(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    for which in [0, cb.addr()] {
        same(aio::cancel(fd, which), Ok(AIO_ALLDONE), "finished")?;
    }
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_ALLDONE), "collected")
}

fn a_queued_request_is_cancelled(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    // Reads as well as writes may be held back; a read may also be done at once from memory.
    for op in [Op::Write, Op::Writev] {
        let cb = test.request(op, fd, 0, &test.buffer(10));
        test.submit(op, cb)?;
        same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        same(aio::error(cb.addr()), Ok(ECANCELED.0), "aio_error")?;
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
        same((cb.status(), cb.error()), (-1, i64::from(ECANCELED.0)), "status and error")?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return again")?;
    }
    hold.release()
}

fn a_cancelled_request_must_be_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let Some(before) = sysctl::get("vfs.aio.num_queue_count") else {
        return skip(format_args!("no vfs.aio.num_queue_count"));
    };
    let _hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    let stored = cb.private();
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    same(cb.private(), stored, "status, error and kernelinfo")?;
    same(sysctl::get("vfs.aio.num_queue_count"), Some(before + 1), "requests queued")?;
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    let done = aio::waitcomplete(Some(Timespec::default()));
    same(done, aio::Completed { cb: cb.addr(), result: Err(ECANCELED) }, "aio_waitcomplete")?;
    same(sysctl::get("vfs.aio.num_queue_count"), Some(before), "requests queued, collected")
}

fn a_cancelled_request_has_no_effect(test: &Test) -> Outcome {
    let fd = test.file("file", 5000)?;
    let hold = test.hold()?;
    let mut blocks = [None; 20];
    for (index, block) in blocks.iter_mut().enumerate() {
        let op = if index % 2 == 0 { Op::Write } else { Op::Writev };
        let cb = test.request(op, fd, index as i64 * 300, &test.buffer(250));
        test.submit(op, cb)?;
        *block = Some(cb);
    }
    for cb in blocks.iter().flatten() {
        same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    }
    hold.release()?;
    for cb in blocks.iter().flatten() {
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    let buffer = test.buffer(5000);
    same(sys::pread_at(fd, buffer.addr(), 5000, 0), Ok(5000), "pread")?;
    holds_pattern(&buffer, 5000, 0)?;
    same(sys::fstat(fd).map(|stat| stat.size), Ok(5000), "the file's size")
}

fn all_requests_of_a_descriptor_are_cancelled(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _hold = test.hold()?;
    let mut blocks = [None; 30];
    for block in &mut blocks {
        let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
        test.submit(Op::Write, cb)?;
        *block = Some(cb);
    }
    same(aio::cancel(fd, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    // They are done in the order in which they were queued.
    for cb in blocks.iter().flatten() {
        let wanted = aio::Completed { cb: cb.addr(), result: Err(ECANCELED) };
        same(aio::waitcomplete(Some(Timespec::default())), wanted, "aio_waitcomplete")?;
    }
    same(aio::cancel(fd, 0), Ok(AIO_ALLDONE), "aio_cancel again")
}

fn requests_of_other_descriptors_stay(test: &Test) -> Outcome {
    let (fd, other) = (test.file("file", 100)?, test.file("other", 100)?);
    let hold = test.hold()?;
    let stays = test.request(Op::Write, other, 0, &test.buffer(10));
    let goes = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, stays)?;
    test.submit(Op::Write, goes)?;
    same(aio::cancel(fd, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    same(aio::error(goes.addr()), Ok(ECANCELED.0), "the one")?;
    same(aio::error(stays.addr()), Ok(EINPROGRESS.0), "the other")?;
    hold.release()?;
    same(test.collect(stays)?, Ok(10), "the other")
}

fn the_block_must_be_one_of_the_descriptor(test: &Test) -> Outcome {
    let (fd, other) = (test.file("file", 100)?, test.file("other", 100)?);
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    same(aio::cancel(other, cb.addr()), Ok(AIO_ALLDONE), "another descriptor")?;
    same(aio::cancel(fd, cb.addr() + 8), Ok(AIO_ALLDONE), "another block")?;
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the request")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")
}

fn the_number_counts_not_the_file(test: &Test) -> Outcome {
    let (fd, other) = (test.file("file", 100)?, test.file("other", 100)?);
    let _hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    sys::close(fd).must("close")?;
    refused(aio::cancel(fd, cb.addr()), EBADF, "the closed descriptor")?;
    sys::dup2(other, fd).must("dup2")?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "the number used again")
}

fn a_duplicate_descriptor_is_another(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let twin = sys::dup2(fd, fd + 20).must("dup2")?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    same(aio::cancel(twin, cb.addr()), Ok(AIO_ALLDONE), "the duplicate, one request")?;
    same(aio::cancel(twin, 0), Ok(AIO_ALLDONE), "the duplicate, all requests")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")
}

fn a_running_request_is_not_cancelled(test: &Test) -> Outcome {
    let running = test.running()?;
    for _ in 0..3 {
        for which in [running.cb.addr(), 0] {
            same(aio::cancel(running.to, which), Ok(AIO_NOTCANCELED), "aio_cancel")?;
        }
    }
    same(aio::error(running.cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
    running.let_go()?;
    same(test.collect(running.cb)?, Ok(Running::BYTES as i64), "the request")
}

fn a_running_request_among_queued_ones_is_told(test: &Test) -> Outcome {
    let running = test.running()?;
    let one_at_a_time = test.setting("vfs.aio.max_aio_per_proc", 1)?;
    let queued = [(); 3].map(|()| test.request(Op::Write, running.to, 0, &test.buffer(10)));
    for cb in queued {
        test.submit(Op::Write, cb)?;
    }
    same(aio::cancel(running.to, queued[1].addr()), Ok(AIO_CANCELED), "a queued one")?;
    same(aio::cancel(running.to, 0), Ok(AIO_NOTCANCELED), "all")?;
    for cb in queued {
        same(aio::error(cb.addr()), Ok(ECANCELED.0), "a queued one")?;
        refused(aio::return_(cb.addr()), ECANCELED, "a queued one")?;
    }
    drop(one_at_a_time);
    running.let_go()?;
    same(test.collect(running.cb)?, Ok(Running::BYTES as i64), "the running request")
}

fn cancelling_again_finds_it_done(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_ALLDONE), "aio_cancel again")?;
    same(aio::cancel(fd, 0), Ok(AIO_ALLDONE), "all requests")?;
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")
}

fn of_two_requests_on_a_block_the_older_is_cancelled(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    test.prepare(cb, Op::Write, fd, 0, &test.buffer(20));
    test.submit(Op::Write, cb)?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    // The older one is found first, and it is done.
    same(aio::error(cb.addr()), Ok(ECANCELED.0), "aio_error")?;
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error of the younger")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(20), "the younger")
}

fn a_disk_is_never_cancelled(test: &Test) -> Outcome {
    let disk = [c"/dev/vtbd0", c"/dev/ada0", c"/dev/da0", c"/dev/nda0", c"/dev/md0"]
        .into_iter()
        .find_map(|path| sys::open(path, sys::O_RDONLY, 0).ok());
    let Some(disk) = disk else { return skip(format_args!("no disk here")) };
    same(aio::cancel(disk, 0), Ok(AIO_ALLDONE), "without AIO")?;
    test.use_aio()?;
    same(aio::cancel(disk, 0), Ok(AIO_NOTCANCELED), "all requests")?;
    same(aio::cancel(disk, 8), Ok(AIO_NOTCANCELED), "an unknown block")
}

fn cancelling_at_any_moment_is_consistent(test: &Test) -> Outcome {
    let fd = test.file("file", 200_000)?;
    let buffer = test.buffer(100_000);
    let mut counts = [0u32; 4];
    for round in 0..400 {
        let op = OPS[round % 4];
        let cb = test.block();
        test.prepare(cb, op, fd, 0, &buffer.part(0, 1 + (round * 997) % 100_000));
        test.submit(op, cb)?;
        for _ in 0..(round % 7) * 20 {
            core::hint::spin_loop();
        }
        let answer = aio::cancel(fd, cb.addr()).must("aio_cancel")?;
        let result = test.collect(cb)?;
        match (answer, result) {
            (AIO_CANCELED, Err(ECANCELED)) => {}
            (AIO_NOTCANCELED | AIO_ALLDONE, Ok(_)) => {}
            other => return fail(format_args!("aio_cancel and aio_return: {other:?}")),
        }
        counts[answer as usize & 3] += 1;
        if round % 4 == 3 {
            // Room for the next blocks: the memory of a case is bounded.
            same(aio::waitcomplete(Some(Timespec::default())).cb, 0, "anything left")?;
        }
    }
    check!(counts.iter().sum::<u32>() == 400, "answers {counts:?}");
    Ok(())
}

/// What three threads share: the descriptor that requests are made on, the block, the other end of a
/// socket or what is no descriptor, how far each has come, and how often the third was told that it
/// cancelled.
static FD: AtomicUsize = AtomicUsize::new(0);
static BLOCK: AtomicUsize = AtomicUsize::new(0);
static OTHER_END: AtomicUsize = AtomicUsize::new(0);
static ROUND: AtomicUsize = AtomicUsize::new(0);
static COMPLETED: AtomicUsize = AtomicUsize::new(0);
static CANCELLED: AtomicUsize = AtomicUsize::new(0);
static CLAIMED: AtomicUsize = AtomicUsize::new(0);
/// How many rounds there are.
const ROUNDS: usize = 400;

/// Waits for the first thread's next round, and a little more, differently each time.
fn next_round(round: usize, more: usize) {
    while ROUND.load(SeqCst) < round {
        sys::sched_yield();
    }
    for _ in 0..round % more {
        core::hint::spin_loop();
    }
}

/// Makes each round's request complete, where something has to be done for that.
fn completes(_: usize) {
    for round in 1..=ROUNDS {
        next_round(round, 5);
        let _ = sys::write(OTHER_END.load(SeqCst) as i32, &[round as u8]);
        // A file's request is looked for while it ends.
        let _ = aio::error(BLOCK.load(SeqCst));
        COMPLETED.store(round, SeqCst);
    }
}

/// Cancels each round's request, by its block or with all of the descriptor.
fn cancels(_: usize) {
    for round in 1..=ROUNDS {
        next_round(round, 7);
        let block = if round % 2 == 0 { BLOCK.load(SeqCst) } else { 0 };
        if aio::cancel(FD.load(SeqCst) as i32, block) == Ok(AIO_CANCELED) {
            CLAIMED.fetch_add(1, SeqCst);
        }
        CANCELLED.store(round, SeqCst);
    }
}

/// Makes a request in each round, which ends once, is told of once, and as the others were told.
/// Returns how many were not cancelled.
fn three_threads(test: &Test, op: Op, fd: i32, other_end: i32) -> Result<usize, Stop> {
    let kq = Queue::new()?;
    let cb = test.notified(op, fd, &test.buffer(1), Sigevent::kevent(kq.0, 5, 0));
    FD.store(fd as usize, SeqCst);
    BLOCK.store(cb.addr(), SeqCst);
    OTHER_END.store(other_end as usize, SeqCst);
    let helpers = [thread::spawn(completes, 0), thread::spawn(cancels, 0)];
    let (mut moved, mut canceled) = (0, 0);
    for round in 1..=ROUNDS {
        ROUND.store(round, SeqCst);
        test.submit(op, cb)?;
        while COMPLETED.load(SeqCst) < round || CANCELLED.load(SeqCst) < round {
            sys::sched_yield();
        }
        let state = test.done(cb)?;
        kq.expect(cb, i64::from(state), 5, 0)?;
        match aio::return_(cb.addr()) {
            Ok(1) if state == 0 => moved += 1,
            Err(ECANCELED) if state == ECANCELED.0 => canceled += 1,
            other => return fail(format_args!("aio_return: {other:?} after {state}")),
        }
        kq.empty()?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return again")?;
    }
    for helper in helpers {
        helper.must("thr_new")?.join();
    }
    same(CLAIMED.load(SeqCst), canceled, "answers that a request was cancelled")?;
    Ok(moved)
}

fn a_file_request_is_queued_completed_and_cancelled_at_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let moved = three_threads(test, Op::Write, fd, -1)?;
    check!(moved > 0, "all were cancelled");
    Ok(())
}

fn a_socket_request_is_queued_completed_and_cancelled_at_once(test: &Test) -> Outcome {
    let (one, two) = sys::socketpair().must("socketpair")?;
    sys::set_nonblocking(one).must("fcntl")?;
    let moved = three_threads(test, Op::Read, one, two)?;
    // Each byte was read by a request, or is there still.
    let mut rest = [0u8; ROUNDS];
    let left = sys::read(one, &mut rest).unwrap_or(0);
    same(moved + left, ROUNDS, "bytes")
}

fn any_type_of_descriptor_may_be_asked(test: &Test) -> Outcome {
    test.use_aio()?;
    let (from, to) = sys::pipe().must("pipe")?;
    let (one, two) = sys::socketpair().must("socketpair")?;
    let queue = sys::kqueue().must("kqueue")?;
    let directory = test.open(".", sys::O_RDONLY)?;
    let path = test.open(".", sys::O_PATH)?;
    for fd in [from, to, one, two, queue, directory, path] {
        same(aio::cancel(fd, 0), Ok(AIO_ALLDONE), "aio_cancel")?;
    }
    Ok(())
}
