// SPDX-License-Identifier: BSD-2-Clause
//! Faults that engines like this one had, each in a case that would have shown it. Those that
//! belong to one call are with that call, with the fault's number in front of their names; here
//! are those of several calls, and those that the built-in still has.

use crate::cases;
use crate::check;
use crate::harness::{Must, Op, Outcome, Test, accepted, fail, holds_pattern, refused, same, skip};
use crate::notify::{Queue, Signal};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, Cb, LIO_NOWAIT, Sigevent};
use guest::errno::{EAGAIN, ECANCELED, EFAULT, EINPROGRESS, EINVAL, EIO, EOPNOTSUPP};
use guest::kqueue::{EV_EOF, EV_ONESHOT, EVFILT_LIO};
use guest::mem::Region;
use guest::signal::SIGRTMIN;
use guest::sys::{self, Timespec};
use guest::{sysctl, thread};

cases! { "bug":
    f01_refused_submissions_hold_no_files,
    f02_cancelling_all_while_others_collect
        breaks "the walk over the requests may follow one that is gone",
    c2_no_kernel_address_is_told,
    f05_a_list_with_nothing_queued_can_send_its_event,
    f18_each_request_wakes_a_worker_that_has_no_clock,
    f28_an_address_used_again_is_the_new_memory,
    f33_a_childs_kqueue_has_no_event_of_the_parents_requests,
    l06_odd_numbers_of_workers_do_no_harm
        breaks "workers are started without end, or none is left",
    l02_a_sync_never_comes_before_an_earlier_write
        differs "a sync may be miscounted",
    l03_racing_threads_keep_the_limit
        differs "the limit is looked at without a lock",
    l04_second_submission_of_a_live_aiocb_loses_no_event
        differs "the second request has no event",
    l04_two_lists_at_one_address_lose_no_event
        differs "the second list has no event",
    u1_the_first_use_by_several_threads_at_once,
    x2_close_and_exit_at_once,
    x3_a_failed_request_keeps_its_place_until_collected,
    x1_a_list_may_be_collected_before_the_call_returns,
}

fn f01_refused_submissions_hold_no_files(test: &Test) -> Outcome {
    let before = sysctl::get("kern.openfiles");
    let kq = Queue::new()?;
    let buffer = test.buffer(10);
    for _ in 0..20 {
        let (from, to) = sys::pipe().must("pipe")?;
        let sig = Sigevent::kevent(kq.0, 1, 0);
        let cb = test.notified(Op::Read, from, &buffer, sig);
        for _ in 0..200 {
            refused(Op::Read.submit(cb.addr()), EOPNOTSUPP, "a pipe")?;
        }
        for fd in [from, to] {
            sys::close(fd).must("close")?;
        }
    }
    sys::close(kq.0).must("close")?;
    same(sysctl::get("kern.openfiles"), before, "open files")
}

/// What the helper of a case works on, and what it found.
static FD: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicUsize = AtomicUsize::new(0);

fn cancels_all(_: usize) {
    while STOP.load(SeqCst) == 0 {
        if !matches!(aio::cancel(FD.load(SeqCst) as i32, 0), Ok(1..=3)) {
            WRONG.fetch_add(1, SeqCst);
        }
    }
}

fn f02_cancelling_all_while_others_collect(test: &Test) -> Outcome {
    let fd = test.file("file", 4096)?;
    FD.store(fd as usize, SeqCst);
    let buffer = test.buffer(16);
    let memory = test.buffer(64 * 256);
    let helpers = [(); 2].map(|()| thread::spawn(cancels_all, 0));
    for _ in 0..200 {
        for index in 0..64 {
            let cb = Cb::at(&memory, index * 256);
            cb.set(aio::request(fd, index as i64, buffer.addr(), 16));
            test.submit(Op::Read, cb)?;
        }
        for index in 0..64 {
            match test.collect(Cb::at(&memory, index * 256))? {
                Ok(16) | Err(ECANCELED) => {}
                other => return fail(format_args!("a request: {other:?}")),
            }
        }
    }
    STOP.store(1, SeqCst);
    for helper in helpers {
        helper.must("thr_new")?.join();
    }
    same(WRONG.load(SeqCst), 0, "wrong answers of aio_cancel")
}

fn c2_no_kernel_address_is_told(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    for op in [Op::Read, Op::Write, Op::Readv, Op::Writev] {
        let cb = test.notified(op, fd, &test.buffer(10), Sigevent::kevent(kq.0, 5, 0));
        let own = cb.get();
        test.submit(op, cb)?;
        kq.expect(cb, 0, 5, 0)?;
        same(test.collect(cb)?, Ok(10), "a request")?;
        // The result, a number that fits an int, and nothing else.
        let number = cb.kernelinfo();
        check!((0..1 << 31).contains(&number), "kernelinfo is {number:#x}");
        same((cb.status(), cb.error()), (10, 0), "status and error")?;
        cb.set_private(77, 78, 79);
        let bytes = |block: aio::Aiocb| {
            let memory = test.buffer(aio::SIZE);
            memory.put(0, block);
            memory
        };
        let changed = bytes(cb.get()).first_difference(&bytes(own));
        same(changed, None, "the first byte of the block that changed")?;
    }
    Ok(())
}

fn f05_a_list_with_nothing_queued_can_send_its_event(test: &Test) -> Outcome {
    if sysctl::get("vfs.aio.rs.lio_empty_kevent").is_none() {
        return skip(format_args!("no vfs.aio.rs.lio_empty_kevent"));
    }
    let _setting = test.setting("vfs.aio.rs.lio_empty_kevent", 1)?;
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let nop = test.entry(Op::Read, fd, 0, &test.buffer(10));
    test.edit(nop, |block| block.opcode = aio::LIO_NOP);
    let bad = test.entry(Op::Read, -1, 0, &test.buffer(10));
    let lists = [
        (test.list_of(&[]), Ok(())),
        (test.list_of(&[0; 3]), Ok(())),
        (test.list([nop; 2]), Ok(())),
        (test.list([bad; 2]), Err(EIO)),
    ];
    for round in 0..3 {
        for (list, wanted) in &lists {
            let sent = list.submit_with(test, Sigevent::kevent(kq.0, round, 0));
            same(sent, *wanted, "lio_listio")?;
            let event = kq.some()?;
            same((event.ident, event.filter), (list.addr(), EVFILT_LIO), "ident and filter")?;
            same((event.flags, event.udata), (EV_EOF | EV_ONESHOT, round), "flags and udata")?;
            kq.none()?;
        }
    }
    Ok(())
}

fn f18_each_request_wakes_a_worker_that_has_no_clock(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    // No worker that falls asleep from here on wakes by itself.
    let _lifetime = test.setting("vfs.aio.aiod_lifetime", i32::MAX)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(16));
    for round in 0..300 {
        test.submit(Op::Write, cb)?;
        aio::suspend(&[cb.addr()], None).must("aio_suspend")?;
        same(aio::return_(cb.addr()), Ok(16), "aio_return")?;
        // The worker is about to sleep, or asleep.
        for _ in 0..round % 30 {
            sys::sched_yield();
        }
    }
    Ok(())
}

fn f28_an_address_used_again_is_the_new_memory(test: &Test) -> Outcome {
    let fd = test.file("file", 8192)?;
    let place = Region::map(4096).must("mmap")?;
    let renew =
        || sys::mmap_over(place.addr(), 4096, sys::PROT_READ | sys::PROT_WRITE).must("mmap");
    let cb = test.block();
    for round in 0..20 {
        cb.set(aio::request(fd, round, place.addr(), 4096));
        test.submit(Op::Read, cb)?;
        same(test.collect(cb)?, Ok(4096), "a read")?;
        holds_pattern(&place, 4096, round as usize)?;
        // Another page at the same address, which must stay as it is.
        renew()?;
        same((place.word(0), place.word(4088)), (0, 0), "the new memory")?;
        // What is done from here on is done to the page that is there then.
        let hold = test.hold()?;
        cb.set(aio::request(fd, round, place.addr(), 100));
        test.submit(Op::Write, cb)?;
        renew()?;
        place.fill(round as u8);
        hold.release()?;
        same(test.collect(cb)?, Ok(100), "a write")?;
        let mut bytes = [0xff; 100];
        same(sys::pread(fd, &mut bytes, round), Ok(100), "pread")?;
        check!(bytes == [round as u8; 100], "the file has what was in the old memory");
        sys::close(fd).must("close")?;
        same(test.file("file", 8192)?, fd, "the file's descriptor")?;
    }
    Ok(())
}

/// A new kqueue, one that fork(2) copies where the kernel knows that.
fn copied_kqueue() -> guest::Result<i32> {
    /// kqueuex(2) and its flag.
    const KQUEUEX: u64 = 583;
    const KQUEUE_CPONFORK: usize = 2;
    // A kernel without the call would end the process.
    sys::signal(sys::SIGSYS, sys::SIG_IGN, 0)?;
    sys::call(KQUEUEX, [KQUEUE_CPONFORK, 0, 0, 0, 0, 0])
        .map(|fd| fd as i32)
        .or_else(|_| sys::kqueue())
}

fn f33_a_childs_kqueue_has_no_event_of_the_parents_requests(test: &Test) -> Outcome {
    let kq = Queue(copied_kqueue().must("kqueue")?);
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.notified(Op::Write, fd, &test.buffer(10), Sigevent::kevent(kq.0, 5, 0));
    let entry = test.entry(Op::Write, fd, 0, &test.buffer(10));
    let list = test.list([entry]);
    list.submit_with(test, Sigevent::kevent(kq.0, 6, 0)).must("lio_listio")?;
    test.submit(Op::Write, cb)?;
    let shared = Region::map_shared(4096).must("mmap")?;
    let child = test.child(|_| {
        while shared.atomic(0).load(SeqCst) == 0 {
            sys::sched_yield();
        }
        // Nothing, or a descriptor that is none of the child's.
        match kq.next(Timespec::from_ms(100)) {
            Ok(Some(_)) => 1,
            Ok(None) | Err(_) => 0,
        }
    })?;
    hold.release()?;
    same((test.done(cb)?, test.done(entry)?), (0, 0), "the requests")?;
    shared.atomic(0).store(1, SeqCst);
    test.child_ended(child, "the child (1: it has an event)", sys::Ended::Exit(0))?;
    let mut told = [kq.some()?.udata, kq.some()?.udata];
    told.sort_unstable();
    same(told, [5, 6], "the parent's events")?;
    for cb in [cb, entry] {
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    kq.none()
}

fn l06_odd_numbers_of_workers_do_no_harm(test: &Test) -> Outcome {
    const NUMBERS: [&str; 3] =
        ["vfs.aio.max_aio_procs", "vfs.aio.target_aio_procs", "vfs.aio.aiod_lifetime"];
    let fd = test.file("file", 100)?;
    let blocks = [(); 8].map(|()| test.request(Op::Write, fd, 0, &test.buffer(16)));
    for name in NUMBERS {
        for value in [0, -1, i32::MIN, 1, i32::MAX, 0] {
            let _setting = test.setting(name, value)?;
            for _ in 0..3 {
                for cb in blocks {
                    test.submit(Op::Write, cb)?;
                }
                for cb in blocks {
                    same(test.collect(cb)?, Ok(16), "a request")?;
                }
            }
        }
    }
    // All of them at once, in both directions.
    for value in [0, -1] {
        let _settings = [
            test.setting(NUMBERS[0], value)?,
            test.setting(NUMBERS[1], value)?,
            test.setting(NUMBERS[2], value)?,
        ];
        for cb in blocks {
            same(test.perform(Op::Write, cb)?, Ok(16), "a request")?;
        }
    }
    let Some(workers) = sysctl::get("vfs.aio.rs.num_procs") else { return Ok(()) };
    check!((1..64).contains(&workers), "{workers} workers");
    Ok(())
}

/// Writes and waits for each, as fast as it goes; the words of its page say what is in flight.
fn writes(page: usize) {
    let page = Region::shared_at(page, 4096);
    let cb = Cb::at(&page, 64);
    while STOP.load(SeqCst) == 0 {
        cb.set(aio::request(FD.load(SeqCst) as i32, 0, page.at(1024), 2048));
        if aio::write(cb.addr()).is_err() {
            continue;
        }
        accepted();
        // Odd: submitted, and the call has returned.
        page.atomic(0).fetch_add(1, SeqCst);
        while aio::error(cb.addr()) == Ok(EINPROGRESS.0) {
            sys::sched_yield();
        }
        page.atomic(0).fetch_add(1, SeqCst);
        let _ = aio::return_(cb.addr());
    }
}

fn l02_a_sync_never_comes_before_an_earlier_write(test: &Test) -> Outcome {
    let fd = test.file("file", 4096)?;
    FD.store(fd as usize, SeqCst);
    let pages = [(); 4].map(|()| test.buffer(4096));
    let helpers = pages.map(|page| thread::spawn(writes, page.addr()));
    let sync = test.block();
    sync.set(aio::request(fd, 0, 0, 0));
    let mut early = 0;
    for _ in 0..150 {
        let before = pages.map(|page| page.atomic(0).load(SeqCst));
        aio::fsync(sys::O_SYNC, sync.addr()).must("aio_fsync")?;
        accepted();
        while aio::error(sync.addr()) == Ok(EINPROGRESS.0) {
            sys::sched_yield();
        }
        for (page, before) in pages.iter().zip(before) {
            // The same write as before, and it is not done.
            if before % 2 == 1
                && aio::error(page.at(64)) == Ok(EINPROGRESS.0)
                && page.atomic(0).load(SeqCst) == before
            {
                early += 1;
            }
        }
        same(aio::return_(sync.addr()), Ok(0), "aio_return of the sync")?;
    }
    STOP.store(1, SeqCst);
    for helper in helpers {
        helper.must("thr_new")?.join();
    }
    same(early, 0, "writes that a sync came before")
}

/// Submits until the limit says no, some times more.
fn submits(page: usize) {
    let page = Region::shared_at(page, 4096);
    while STOP.load(SeqCst) == 0 {
        sys::sched_yield();
    }
    for _ in 0..60 {
        let cb = Cb::at(&page, 64);
        cb.set(aio::request(FD.load(SeqCst) as i32, 0, page.at(1024), 16));
        if aio::write(cb.addr()).is_ok() {
            accepted();
            COUNT.fetch_add(1, SeqCst);
        }
    }
}

fn l03_racing_threads_keep_the_limit(test: &Test) -> Outcome {
    let fd = test.file("file", 4096)?;
    FD.store(fd as usize, SeqCst);
    let pages = [(); 8].map(|()| test.buffer(4096));
    for _ in 0..100 {
        let limit = test.setting("vfs.aio.max_aio_queue_per_proc", 20)?;
        let hold = test.hold()?;
        (STOP.store(0, SeqCst), COUNT.store(0, SeqCst));
        let helpers = pages.map(|page| thread::spawn(submits, page.addr()));
        STOP.store(1, SeqCst);
        for helper in helpers {
            helper.must("thr_new")?.join();
        }
        let count = COUNT.load(SeqCst);
        let _ = aio::cancel(fd, 0);
        while aio::waitcomplete(Some(Timespec::default())).cb != 0 {}
        same(count, 20, "requests accepted by threads at once")?;
        drop(limit);
        hold.release()?;
    }
    Ok(())
}

fn l04_second_submission_of_a_live_aiocb_loses_no_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.notified(Op::Write, fd, &test.buffer(10), Sigevent::kevent(kq.0, 5, 0));
    test.submit(Op::Write, cb)?;
    test.submit(Op::Write, cb)?;
    hold.release()?;
    for _ in 0..2 {
        same(test.done(cb)?, 0, "a request")?;
        let Some(event) = kq.next(Timespec::from_ms(2000))? else {
            return fail(format_args!("a request is done, and there is no event"));
        };
        same((event.ident, event.udata), (cb.addr(), 5), "ident and udata")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    kq.none()
}

fn l04_two_lists_at_one_address_lose_no_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let blocks = [(); 2].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let list = test.list([blocks[0]]);
    list.submit_with(test, Sigevent::kevent(kq.0, 5, 0)).must("lio_listio")?;
    list.replace(0, blocks[1]);
    list.submit_with(test, Sigevent::kevent(kq.0, 5, 0)).must("lio_listio")?;
    hold.release()?;
    for cb in blocks {
        same(test.done(cb)?, 0, "a request")?;
        let Some(event) = kq.next(Timespec::from_ms(2000))? else {
            return fail(format_args!("a list is done, and there is no event"));
        };
        same((event.ident, event.filter), (list.addr(), EVFILT_LIO), "ident and filter")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    kq.none()
}

/// Waits for the others, then makes a request and collects it.
fn first_use(page: usize) {
    let page = Region::shared_at(page, 4096);
    let cb = Cb::at(&page, 64);
    cb.set(aio::request(FD.load(SeqCst) as i32, 0, page.at(1024), 16));
    COUNT.fetch_add(1, SeqCst);
    while STOP.load(SeqCst) == 0 {
        sys::sched_yield();
    }
    if aio::read(cb.addr()).is_err() {
        WRONG.fetch_add(1, SeqCst);
        return;
    }
    while aio::error(cb.addr()) == Ok(EINPROGRESS.0) {
        sys::sched_yield();
    }
    if aio::return_(cb.addr()) != Ok(16) {
        WRONG.fetch_add(1, SeqCst);
    }
}

fn u1_the_first_use_by_several_threads_at_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    FD.store(fd as usize, SeqCst);
    let pages = [(); 4].map(|()| test.buffer(4096));
    for _ in 0..15 {
        test.in_child("a child (how many threads went wrong)", |_| {
            let helpers = pages.map(|page| thread::spawn(first_use, page.addr()));
            while COUNT.load(SeqCst) < 4 {
                sys::sched_yield();
            }
            STOP.store(1, SeqCst);
            for helper in helpers {
                match helper {
                    Ok(helper) => helper.join(),
                    Err(_) => return 50,
                }
            }
            accepted();
            WRONG.load(SeqCst) as i32
        })?;
    }
    Ok(())
}

fn collects(_: usize) {
    while STOP.load(SeqCst) == 0 {
        if aio::waitcomplete(Some(Timespec::from_ms(20))).cb != 0 {
            COUNT.fetch_add(1, SeqCst);
        }
    }
}

fn x1_a_list_may_be_collected_before_the_call_returns(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    let blocks = [(); 6].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    let ways = [
        0,
        test.sigevent(Sigevent::kevent(kq.0, 1, 0)),
        test.sigevent(Sigevent::signal(signal.0, 1)),
    ];
    let helper = thread::spawn(collects, 0).must("thr_new")?;
    for round in 0..150 {
        same(list.submit(LIO_NOWAIT, ways[round % 3]), Ok(()), "lio_listio")?;
        while COUNT.load(SeqCst) < 6 * (round + 1) {
            sys::sched_yield();
        }
        kq.empty()?;
        // A list whose requests were all collected during the call is told by the call.
        if signal.pending()? {
            signal.take()?;
        }
    }
    STOP.store(1, SeqCst);
    helper.join();
    let none = aio::waitcomplete(Some(Timespec::default()));
    same(none.result, Err(EAGAIN), "aio_waitcomplete")?;
    refused(aio::return_(blocks[0].addr()), EINVAL, "aio_return")
}

/// Closes the descriptors of the case over and over, while the process exits.
fn closes(first: usize) {
    loop {
        for fd in first..first + 8 {
            let _ = sys::close(fd as i32);
        }
    }
}

fn x2_close_and_exit_at_once(test: &Test) -> Outcome {
    let before = (sysctl::get("vfs.aio.num_queue_count"), sysctl::get("kern.openfiles"));
    for _ in 0..20 {
        test.in_child("a child", |test| {
            let Ok(first) = test.file("x2", 100_000) else { return 1 };
            let buffer = test.buffer(50_000);
            let Ok(helper) = thread::spawn(closes, first as usize) else { return 2 };
            for index in 0..30 {
                let Ok(fd) = test.open("x2", sys::O_RDWR) else { return 3 };
                let cb = test.request(Op::Write, fd, index * 100, &buffer);
                // The descriptor may be gone by then.
                let _ = Op::Write.submit(cb.addr());
            }
            core::mem::forget(helper);
            0
        })?;
    }
    let after = (sysctl::get("vfs.aio.num_queue_count"), sysctl::get("kern.openfiles"));
    same(after, before, "requests and open files afterwards")
}

fn x3_a_failed_request_keeps_its_place_until_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 4)?;
    for _ in 0..3 {
        let blocks = [(); 6].map(|()| test.request(Op::Write, fd, 0, &test.buffer(16)));
        for cb in blocks {
            test.edit(cb, |block| block.buf = guest::mem::HOLE);
        }
        // A batch of which the limit lets some in: each tells for itself.
        for (index, cb) in blocks.into_iter().enumerate() {
            match (index, Op::Write.submit(cb.addr())) {
                (..4, Ok(())) | (4.., Err(EAGAIN)) => {}
                other => return fail(format_args!("submit: {other:?}")),
            }
        }
        for cb in &blocks[..4] {
            same(test.done(*cb)?, EFAULT.0, "a request")?;
        }
        // Failed, and in the way until collected.
        refused(Op::Write.submit(blocks[4].addr()), EAGAIN, "one more")?;
        refused(aio::return_(blocks[0].addr()), EFAULT, "aio_return")?;
        test.submit(Op::Write, blocks[4])?;
        refused(Op::Write.submit(blocks[5].addr()), EAGAIN, "one more again")?;
        for cb in &blocks[1..5] {
            refused(test.collect(*cb)?, EFAULT, "aio_return")?;
        }
    }
    Ok(())
}
