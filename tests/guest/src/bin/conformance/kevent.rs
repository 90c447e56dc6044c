// SPDX-License-Identifier: BSD-2-Clause
//! Requests that tell of their end by a kernel event.

use crate::harness::{Must, OPS, Op, Outcome, Stop, Test, fail, refused, same, skip};
use crate::notify::Queue;
use crate::{cases, check};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_CANCELED, Cb, Sigevent};
use guest::errno::{EBADF, ECANCELED, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM};
use guest::kqueue::{
    self, EV_ADD, EV_CLEAR, EV_DELETE, EV_DISABLE, EV_DISPATCH, EV_ENABLE, EV_EOF, EV_FLAG1,
    EV_ONESHOT, EVFILT_AIO, EVFILT_LIO, EVFILT_READ, EVFILT_USER, Kevent,
};
use guest::mem::HOLE;
use guest::sys::{self, Ended, Timespec};
use guest::thread;

cases! { "kevent":
    f08_a_completion_is_an_event_of_known_words,
    the_data_is_the_error,
    a_request_in_progress_is_no_event,
    the_event_stays_until_collected,
    collecting_takes_an_undelivered_event_away,
    ev_oneshot_tells_once,
    ev_clear_tells_once,
    ev_dispatch_tells_once_and_can_be_enabled,
    flags_may_be_combined,
    other_flags_are_einval,
    only_sixteen_bits_of_flags_are_looked_at,
    a_bad_kqueue_is_ebadf,
    the_flags_are_looked_at_after_the_descriptor_and_before_the_kqueue,
    a_cancelled_request_is_an_event,
    a_refused_request_leaves_no_event,
    a_user_cannot_add_one,
    a_user_may_change_udata_but_not_the_request,
    a_user_may_disable_and_enable_it,
    a_user_may_delete_it,
    closing_the_kqueue_does_not_disturb,
    closing_a_duplicate_of_the_kqueue_changes_nothing,
    requests_tell_their_own_kqueue,
    two_requests_of_a_block_tell_two_kqueues,
    every_request_of_many_tells_once,
    f19_several_threads_get_each_event_once,
    a_waiting_thread_is_woken,
    a_kqueue_in_a_kqueue_is_ready,
    other_events_of_the_kqueue_stay,
    a_fork_child_does_not_disturb,
    another_process_with_the_same_descriptors_gets_the_event,
    a_kqueue_without_the_right_to_change_is_refused,
    u7_closing_the_kqueue_while_requests_end_is_consistent,
}

/// A file and a request on it that tells a kqueue.
fn told(test: &Test, kq: Queue, op: Op, udata: usize, flags: u16) -> Result<(i32, Cb), Stop> {
    let fd = test.file("file", 100)?;
    Ok((fd, test.notified(op, fd, &test.buffer(10), Sigevent::kevent(kq.0, udata, flags))))
}

fn f08_a_completion_is_an_event_of_known_words(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    for (op, udata) in OPS.into_iter().zip([0, 1, usize::MAX, 0x8000_0000]) {
        let (_, cb) = told(test, kq, op, udata, 0)?;
        test.submit(op, cb)?;
        kq.expect(cb, 0, udata, 0)?;
        same(aio::error(cb.addr()), Ok(0), "aio_error")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        kq.empty()?;
    }
    kq.none()
}

fn the_data_is_the_error(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, 0)?;
    test.edit(cb, |block| block.buf = HOLE);
    test.submit(Op::Read, cb)?;
    kq.expect(cb, i64::from(EFAULT.0), 5, 0)?;
    refused(aio::return_(cb.addr()), EFAULT, "aio_return")?;
    kq.none()
}

fn a_request_in_progress_is_no_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    kq.none()?;
    hold.release()?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn the_event_stays_until_collected(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    for way in 0..2 {
        let (_, cb) = told(test, kq, Op::Read, 5, 0)?;
        test.submit(Op::Read, cb)?;
        for _ in 0..4 {
            kq.expect(cb, 0, 5, 0)?;
        }
        if way == 0 {
            same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        } else {
            same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
        }
        kq.none()?;
    }
    Ok(())
}

fn collecting_takes_an_undelivered_event_away(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    for flags in [0, EV_ONESHOT, EV_CLEAR, EV_DISPATCH] {
        let (_, cb) = told(test, kq, Op::Read, 5, flags)?;
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, 0, "aio_error")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        kq.none()?;
        refused(kq.change(cb, EV_DELETE), ENOENT, "EV_DELETE")?;
    }
    Ok(())
}

fn ev_oneshot_tells_once(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, EV_ONESHOT)?;
    test.submit(Op::Read, cb)?;
    kq.expect(cb, 0, 5, EV_ONESHOT)?;
    kq.none()?;
    refused(kq.change(cb, EV_DELETE), ENOENT, "EV_DELETE")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn ev_clear_tells_once(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, EV_CLEAR)?;
    test.submit(Op::Read, cb)?;
    kq.expect(cb, 0, 5, EV_CLEAR)?;
    kq.none()?;
    // The event still exists, until the request is collected.
    same(kq.change(cb, EV_DISABLE), Ok(()), "EV_DISABLE")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    refused(kq.change(cb, EV_DELETE), ENOENT, "EV_DELETE")
}

fn ev_dispatch_tells_once_and_can_be_enabled(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, EV_DISPATCH)?;
    test.submit(Op::Read, cb)?;
    for _ in 0..3 {
        kq.expect(cb, 0, 5, EV_DISPATCH)?;
        kq.none()?;
        let again = Kevent {
            ident: cb.addr(),
            filter: EVFILT_AIO,
            flags: EV_ENABLE,
            udata: 5,
            ..Kevent::default()
        };
        kqueue::kevent(kq.0, &[again], &mut [], None).must("EV_ENABLE")?;
    }
    kq.expect(cb, 0, 5, EV_DISPATCH)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    refused(kq.change(cb, EV_ENABLE), ENOENT, "EV_ENABLE")
}

fn flags_may_be_combined(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    for flags in [
        EV_ONESHOT | EV_CLEAR,
        EV_ONESHOT | EV_DISPATCH,
        EV_CLEAR | EV_DISPATCH,
        EV_ONESHOT | EV_CLEAR | EV_DISPATCH,
    ] {
        let (_, cb) = told(test, kq, Op::Read, 5, flags)?;
        test.submit(Op::Read, cb)?;
        kq.expect(cb, 0, 5, flags)?;
        kq.none()?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    Ok(())
}

fn other_flags_are_einval(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    const GOOD: u16 = EV_ONESHOT | EV_CLEAR | EV_DISPATCH;
    for bit in (0..16).map(|bit| 1u16 << bit).filter(|bit| GOOD & bit == 0) {
        for flags in [bit, bit | GOOD] {
            let (_, cb) = told(test, kq, Op::Read, 5, flags)?;
            refused(Op::Read.submit(cb.addr()), EINVAL, "submit")?;
            same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
            refused(kq.change(cb, EV_DELETE), ENOENT, "EV_DELETE")?;
        }
    }
    kq.none()
}

fn only_sixteen_bits_of_flags_are_looked_at(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, EV_ONESHOT)?;
    test.edit(cb, |block| {
        block.sigevent.more[0] |= !0xffff;
        for word in &mut block.sigevent.more[1..] {
            *word = usize::MAX;
        }
    });
    test.submit(Op::Read, cb)?;
    kq.expect(cb, 0, 5, EV_ONESHOT)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn a_bad_kqueue_is_ebadf(test: &Test) -> Outcome {
    let (from, _to) = sys::pipe().must("pipe")?;
    let file = test.file("other", 10)?;
    for kq in [-1, 9999, i32::MAX, from, file] {
        let (_, cb) = told(test, Queue(kq), Op::Read, 5, 0)?;
        refused(Op::Read.submit(cb.addr()), EBADF, "submit")?;
        same((cb.status(), cb.error()), (-1, i64::from(EBADF.0)), "status and error")?;
        same(aio::error(cb.addr()), Ok(EBADF.0), "aio_error")?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
    }
    Ok(())
}

fn the_flags_are_looked_at_after_the_descriptor_and_before_the_kqueue(test: &Test) -> Outcome {
    let (_, cb) = told(test, Queue(-1), Op::Read, 5, 1)?;
    let fd = cb.get().fildes;
    refused(Op::Read.submit(cb.addr()), EINVAL, "bad flags and a bad kqueue")?;
    test.edit(cb, |block| block.offset = -1);
    refused(Op::Read.submit(cb.addr()), EINVAL, "and a bad offset")?;
    test.edit(cb, |block| (block.fildes, block.offset) = (-1, 0));
    refused(Op::Read.submit(cb.addr()), EBADF, "bad flags and a bad descriptor")?;
    test.edit(cb, |block| (block.fildes, block.sigevent.more[0]) = (fd, 0));
    refused(Op::Read.submit(cb.addr()), EBADF, "a bad kqueue")?;
    // The kqueue before the type of the file.
    let (from, _to) = sys::pipe().must("pipe")?;
    test.edit(cb, |block| block.fildes = from);
    refused(Op::Read.submit(cb.addr()), EBADF, "a bad kqueue and a pipe")
}

fn a_cancelled_request_is_an_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let _hold = test.hold()?;
    for flags in [0, EV_ONESHOT] {
        let (fd, cb) = told(test, kq, Op::Write, 5, flags)?;
        test.submit(Op::Write, cb)?;
        same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        kq.expect(cb, i64::from(ECANCELED.0), 5, flags)?;
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
        kq.none()?;
    }
    Ok(())
}

fn a_refused_request_leaves_no_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    // A pipe is refused after the event was made.
    let (from, _to) = sys::pipe().must("pipe")?;
    for _ in 0..50 {
        let sig = Sigevent::kevent(kq.0, 5, 0);
        let cb = test.notified(Op::Read, from, &test.buffer(10), sig);
        refused(Op::Read.submit(cb.addr()), guest::errno::EOPNOTSUPP, "submit")?;
        refused(kq.change(cb, EV_DELETE), ENOENT, "EV_DELETE")?;
    }
    kq.none()
}

fn a_user_cannot_add_one(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    let hold = test.hold()?;
    test.submit(Op::Write, cb)?;
    for filter in [EVFILT_AIO, EVFILT_LIO] {
        for ident in [0, 1, cb.addr(), HOLE, usize::MAX] {
            for flags in [EV_ADD, EV_ADD | EV_ENABLE | EV_ONESHOT, EV_ADD | EV_FLAG1] {
                for data in [0, 1, cb.addr() as i64, -1, i64::MIN | 0x1000] {
                    let change =
                        Kevent { ident, filter, flags, data, udata: 1, ..Kevent::default() };
                    let answer = kqueue::kevent(kq.0, &[change], &mut [], None);
                    refused(answer, EPERM, "EV_ADD")?;
                }
            }
            for flags in [0, EV_ENABLE, EV_DISABLE, EV_DELETE, EV_FLAG1] {
                refused(kqueue::change(kq.0, ident, filter, flags), ENOENT, "no EV_ADD")?;
            }
        }
    }
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")?;
    kq.none()
}

fn a_user_may_change_udata_but_not_the_request(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    for (udata, flags) in [(6, EV_ADD), (7, EV_ADD | EV_FLAG1), (8, EV_ENABLE)] {
        let change = Kevent {
            ident: cb.addr(),
            filter: EVFILT_AIO,
            flags,
            fflags: !0,
            data: -0x1234_5678,
            udata,
            ext: [!0; 4],
        };
        same(kqueue::kevent(kq.0, &[change], &mut [], None), Ok(0), "a change")?;
    }
    hold.release()?;
    let event = kq.some()?;
    same((event.ident, event.filter, event.udata), (cb.addr(), EVFILT_AIO, 8), "the event")?;
    same((event.flags & EV_EOF, event.data), (EV_EOF, 0), "end and error")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    kq.none()
}

fn a_user_may_disable_and_enable_it(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    kq.change(cb, EV_DISABLE).must("EV_DISABLE")?;
    hold.release()?;
    same(test.done(cb)?, 0, "aio_error")?;
    kq.none()?;
    kq.change(cb, EV_ENABLE).must("EV_ENABLE")?;
    // A change sets udata too, here to 0.
    kq.expect(cb, 0, 0, 0)?;
    kq.change(cb, EV_DISABLE).must("EV_DISABLE")?;
    kq.none()?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    refused(kq.change(cb, EV_ENABLE), ENOENT, "EV_ENABLE")
}

fn a_user_may_delete_it(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, early) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, early)?;
    kq.change(early, EV_DELETE).must("EV_DELETE")?;
    hold.release()?;
    same(test.done(early)?, 0, "aio_error")?;
    kq.none()?;
    // And of a finished request.
    let (_, late) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, late)?;
    kq.expect(late, 0, 5, 0)?;
    kq.change(late, EV_DELETE).must("EV_DELETE")?;
    kq.none()?;
    for cb in [early, late] {
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    Ok(())
}

fn closing_the_kqueue_does_not_disturb(test: &Test) -> Outcome {
    let hold = test.hold()?;
    let mut blocks = [None; 8];
    for (index, block) in blocks.iter_mut().enumerate() {
        let kq = Queue::new()?;
        let (_, cb) = told(test, kq, Op::Write, index, 0)?;
        test.submit(Op::Write, cb)?;
        sys::close(kq.0).must("close")?;
        *block = Some(cb);
    }
    let kq = Queue::new()?;
    hold.release()?;
    for cb in blocks.into_iter().flatten() {
        same(test.collect(cb)?, Ok(10), "a request")?;
    }
    kq.none()?;
    // With the request finished, and its event there.
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    kq.expect(cb, 0, 5, 0)?;
    sys::close(kq.0).must("close")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn closing_a_duplicate_of_the_kqueue_changes_nothing(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let other = Queue(sys::dup2(kq.0, 100).must("dup2")?);
    let hold = test.hold()?;
    let (_, cb) = told(test, other, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    sys::close(other.0).must("close")?;
    hold.release()?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    kq.none()
}

fn requests_tell_their_own_kqueue(test: &Test) -> Outcome {
    let queues = [Queue::new()?, Queue::new()?];
    let fd = test.file("file", 100)?;
    let buffer = test.buffer(10);
    for _ in 0..10 {
        let mut blocks = [None; 2];
        for (index, (kq, block)) in queues.iter().zip(&mut blocks).enumerate() {
            let cb = test.notified(Op::Read, fd, &buffer, Sigevent::kevent(kq.0, index, 0));
            test.submit(Op::Read, cb)?;
            *block = Some(cb);
        }
        for (index, (kq, cb)) in queues.iter().zip(blocks.into_iter().flatten()).enumerate() {
            kq.expect(cb, 0, index, 0)?;
            same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
            kq.empty()?;
        }
    }
    queues[0].none()?;
    queues[1].none()
}

fn two_requests_of_a_block_tell_two_kqueues(test: &Test) -> Outcome {
    let queues = [Queue::new()?, Queue::new()?];
    let hold = test.hold()?;
    let (_, cb) = told(test, queues[0], Op::Write, 10, 0)?;
    test.submit(Op::Write, cb)?;
    test.edit(cb, |block| {
        (block.sigevent, block.nbytes) = (Sigevent::kevent(queues[1].0, 11, 0), 5)
    });
    test.submit(Op::Write, cb)?;
    hold.release()?;
    queues[0].expect(cb, 0, 10, 0)?;
    queues[1].expect(cb, 0, 11, 0)?;
    // Which is told apart by nothing but age of completion.
    let results = [aio::return_(cb.addr()), aio::return_(cb.addr())];
    if results != [Ok(10), Ok(5)] && results != [Ok(5), Ok(10)] {
        return fail(format_args!("results {results:?}"));
    }
    queues[0].none()?;
    queues[1].none()
}

fn every_request_of_many_tells_once(test: &Test) -> Outcome {
    const COUNT: usize = 200;
    let fd = test.file("file", 4096)?;
    let buffer = test.buffer(16);
    let memory = test.buffer(COUNT * 256);
    for flags in [EV_ONESHOT, EV_CLEAR, EV_DISPATCH, 0] {
        let kq = Queue::new()?;
        for index in 0..COUNT {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64, buffer.addr(), 16);
            block.sigevent = Sigevent::kevent(kq.0, index, flags);
            cb.set(block);
            test.submit(Op::Read, cb)?;
        }
        let mut seen = [false; COUNT];
        for count in 0..COUNT {
            let event = kq.some()?;
            let index = event.udata;
            check!(index < COUNT && !seen[index], "event {count} is of request {index} again");
            seen[index] = true;
            let wanted = (memory.addr() + index * 256, EVFILT_AIO, EV_EOF | flags, 0, 0);
            let got = (event.ident, event.filter, event.flags, event.fflags, event.data);
            same(got, wanted, "ident, filter, flags, fflags, data")?;
            if flags == 0 {
                same(aio::return_(event.ident), Ok(16), "aio_return")?;
            }
        }
        kq.none()?;
        for index in (0..COUNT).filter(|_| flags != 0) {
            same(aio::return_(memory.addr() + index * 256), Ok(16), "aio_return")?;
        }
        kq.empty()?;
        sys::close(kq.0).must("close")?;
    }
    Ok(())
}

/// The kqueue of [`gets_events`], and how many events of each request there were.
static KQ: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicUsize = AtomicUsize::new(0);
static SEEN: [AtomicUsize; 200] = [const { AtomicUsize::new(0) }; 200];

fn gets_events(_: usize) {
    let kq = KQ.load(SeqCst) as i32;
    while STOP.load(SeqCst) == 0 {
        let mut events = [Kevent::default(); 3];
        let got = kqueue::kevent(kq, &[], &mut events, Some(Timespec::from_ms(20)));
        for event in &events[..got.unwrap_or(0)] {
            if let Some(seen) = SEEN.get(event.udata) {
                seen.fetch_add(1, SeqCst);
            }
        }
    }
}

fn f19_several_threads_get_each_event_once(test: &Test) -> Outcome {
    let fd = test.file("file", 4096)?;
    let buffer = test.buffer(16);
    let memory = test.buffer(SEEN.len() * 256);
    for flags in [EV_ONESHOT, EV_CLEAR, EV_DISPATCH] {
        let kq = Queue::new()?;
        KQ.store(kq.0 as usize, SeqCst);
        STOP.store(0, SeqCst);
        SEEN.iter().for_each(|seen| seen.store(0, SeqCst));
        let mut threads = [const { None }; 4];
        for thread in &mut threads {
            *thread = Some(thread::spawn(gets_events, 0).must("thr_new")?);
        }
        for index in 0..SEEN.len() {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64, buffer.addr(), 16);
            block.sigevent = Sigevent::kevent(kq.0, index, flags);
            cb.set(block);
            test.submit(Op::Read, cb)?;
        }
        let start = guest::time::now();
        while SEEN.iter().any(|seen| seen.load(SeqCst) == 0) {
            check!(guest::time::ms_since(start) < 60_000, "an event is missing after a minute");
            guest::time::sleep_ms(2);
        }
        guest::time::sleep_ms(100);
        STOP.store(1, SeqCst);
        threads.into_iter().flatten().for_each(thread::Thread::join);
        for (index, seen) in SEEN.iter().enumerate() {
            check!(
                seen.load(SeqCst) == 1,
                "{} events of request {index}, flags {flags:#x}",
                seen.load(SeqCst)
            );
            same(aio::return_(memory.addr() + index * 256), Ok(16), "aio_return")?;
        }
        sys::close(kq.0).must("close")?;
    }
    Ok(())
}

fn a_waiting_thread_is_woken(test: &Test) -> Outcome {
    fn cancels(fd: usize) {
        guest::time::sleep_ms(100);
        let _ = aio::cancel(fd as i32, 0);
    }
    let kq = Queue::new()?;
    let _hold = test.hold()?;
    let (fd, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    let helper = thread::spawn(cancels, fd as usize).must("thr_new")?;
    let mut events = [Kevent::default(); 2];
    same(kqueue::kevent(kq.0, &[], &mut events, None), Ok(1), "kevent")?;
    same((events[0].ident, events[0].data), (cb.addr(), i64::from(ECANCELED.0)), "the event")?;
    helper.join();
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")
}

fn a_kqueue_in_a_kqueue_is_ready(test: &Test) -> Outcome {
    let [kq, outer] = [Queue::new()?, Queue::new()?];
    kqueue::change(outer.0, kq.0 as usize, EVFILT_READ, EV_ADD).must("EV_ADD of a kqueue")?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    outer.none()?;
    same(sys::poll_in(kq.0, 0), Ok(false), "poll")?;
    hold.release()?;
    let event = outer.some()?;
    same((event.ident, event.filter), (kq.0 as usize, EVFILT_READ), "the outer event")?;
    same(sys::poll_in(kq.0, 60_000), Ok(true), "poll")?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    same(sys::poll_in(kq.0, 0), Ok(false), "poll")
}

fn other_events_of_the_kqueue_stay(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let (_, cb) = told(test, kq, Op::Read, 5, 0)?;
    // One of the program's own of the same ident.
    kqueue::change(kq.0, cb.addr(), EVFILT_USER, EV_ADD | EV_CLEAR).must("EV_ADD")?;
    test.submit(Op::Read, cb)?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    kq.none()?;
    same(kqueue::change(kq.0, cb.addr(), EVFILT_USER, EV_DELETE), Ok(()), "EV_DELETE")
}

fn a_fork_child_does_not_disturb(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    // A kqueue is not inherited.
    test.in_child("a child", |_| {
        i32::from(kqueue::kevent(kq.0, &[], &mut [Kevent::default()], None) != Err(EBADF))
    })?;
    hold.release()?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn another_process_with_the_same_descriptors_gets_the_event(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let (_, cb) = told(test, kq, Op::Write, 5, 0)?;
    test.submit(Op::Write, cb)?;
    let child = match sys::fork_with_descriptors_shared().must("rfork")? {
        Some(pid) => pid,
        None => {
            // The request is not its own: the block's words are all it has of it.
            let stranger = aio::return_(cb.addr()) == Err(EINVAL);
            let event = kq.some();
            let good = event.is_ok_and(|event| event.ident == cb.addr() && event.udata == 5);
            sys::exit(i32::from(!(good && stranger)))
        }
    };
    guest::time::sleep_ms(100);
    hold.release()?;
    test.child_ended(child, "the child", Ended::Exit(0))?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    kq.none()
}

fn a_kqueue_without_the_right_to_change_is_refused(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    match sys::cap_rights_limit_both(kq.0, 0, sys::CAP_KQUEUE_EVENT | sys::CAP_KQUEUE_CHANGE) {
        Ok(()) => {}
        Err(ENOSYS) => return skip(format_args!("no capabilities in this kernel")),
        Err(error) => return fail(format_args!("cap_rights_limit: {error}")),
    }
    let (_, cb) = told(test, kq, Op::Read, 5, 0)?;
    test.submit(Op::Read, cb)?;
    kq.expect(cb, 0, 5, 0)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    sys::cap_rights_limit_both(kq.0, 0, sys::CAP_KQUEUE_EVENT).must("cap_rights_limit")?;
    refused(Op::Read.submit(cb.addr()), guest::errno::ENOTCAPABLE, "submit")?;
    kq.none()
}

fn u7_closing_the_kqueue_while_requests_end_is_consistent(test: &Test) -> Outcome {
    let fd = test.file("file", 4096)?;
    let buffer = test.buffer(16);
    let memory = test.buffer(32 * 256);
    for round in 0..100 {
        let kq = Queue::new()?;
        for index in 0..32 {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64, buffer.addr(), 16);
            block.sigevent = Sigevent::kevent(kq.0, index, [0, EV_ONESHOT, EV_CLEAR][round % 3]);
            cb.set(block);
            test.submit(Op::Read, cb)?;
        }
        if round % 2 == 0 {
            let _ = kq.next(Timespec::default())?;
        }
        sys::close(kq.0).must("close")?;
        for index in 0..32 {
            same(test.collect(Cb::at(&memory, index * 256))?, Ok(16), "a request")?;
        }
    }
    Ok(())
}
