// SPDX-License-Identifier: BSD-2-Clause
//! Faults that engines like this one had, each in a case that would have shown it. Those that
//! belong to one call are with that call, with the fault's number in front of their names; here
//! are those of several calls, and those that the built-in still has.

use crate::cases;
use crate::harness::{Must, Op, Outcome, Test, accepted, fail, refused, same, skip};
use crate::notify::{Queue, Signal};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, Cb, LIO_NOWAIT, Sigevent};
use guest::errno::{EAGAIN, ECANCELED, EINPROGRESS, EINVAL, EOPNOTSUPP};
use guest::kqueue::{EV_EOF, EV_ONESHOT, EVFILT_LIO};
use guest::mem::Region;
use guest::signal::SIGRTMIN;
use guest::sys::{self, Timespec};
use guest::{sysctl, thread};

cases! { "bug":
    f01_refused_submissions_hold_no_files,
    f02_cancelling_all_while_others_collect
        breaks "the walk over the requests may follow one that is gone",
    f05_a_list_with_nothing_queued_can_send_its_event,
    l02_a_sync_never_comes_before_an_earlier_write
        differs "a sync may be miscounted",
    l03_racing_threads_keep_the_limit
        differs "the limit is looked at without a lock",
    l04_second_submission_of_a_live_aiocb_loses_no_event
        differs "the second request has no event",
    l04_two_lists_at_one_address_lose_no_event
        differs "the second list has no event",
    u1_the_first_use_by_several_threads_at_once,
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
    for _ in 0..500 {
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

fn f05_a_list_with_nothing_queued_can_send_its_event(test: &Test) -> Outcome {
    if sysctl::get("vfs.aio.rs.lio_empty_kevent").is_none() {
        return skip(format_args!("no vfs.aio.rs.lio_empty_kevent"));
    }
    let _setting = test.setting("vfs.aio.rs.lio_empty_kevent", 1)?;
    let kq = Queue::new()?;
    let list = test.list_of(&[0; 3]);
    for round in 0..3 {
        list.submit_with(test, Sigevent::kevent(kq.0, round, 0)).must("lio_listio")?;
        let event = kq.some()?;
        same((event.ident, event.filter), (list.addr(), EVFILT_LIO), "ident and filter")?;
        same((event.flags, event.udata), (EV_EOF | EV_ONESHOT, round), "flags and udata")?;
        kq.none()?;
    }
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
