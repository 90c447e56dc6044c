// SPDX-License-Identifier: BSD-2-Clause
//! lio_listio: what is refused, what becomes of the entries, what the call waits for, and how the
//! end of the whole list is told.

use crate::harness::{
    Must, OPS, Op, Outcome, Running, Test, accepted, fail, holds_pattern, refused, same, skip,
};
use crate::notify::{List, Queue, Signal};
use crate::{cases, check};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_CANCELED, Cb, LIO_NOP, LIO_NOWAIT, LIO_WAIT, SIGEV_THREAD, Sigevent};
use guest::errno::{EAGAIN, EBADF, ECANCELED, EFAULT, EINPROGRESS, EINTR, EINVAL, EIO};
use guest::kqueue::{self, EVFILT_AIO, EVFILT_LIO};
use guest::mem::{HOLE, PAGE, Region};
use guest::signal::SIGRTMIN;
use guest::sys::{self, Timespec};
use guest::time::sleep_ms;
use guest::{Errno, sysctl, thread};

cases! { "lio":
    a_bad_mode_is_einval,
    the_count_has_limits,
    an_unmapped_list_is_efault,
    an_unmapped_sigevent_is_efault,
    the_list_is_copied_before_the_sigevent_is_judged,
    an_unknown_sigevent_is_einval,
    an_impossible_signal_is_einval,
    a_bad_kqueue_is_ebadf,
    wait_does_not_look_at_the_sigevent,
    all_operations_of_a_list_are_done,
    as_many_entries_as_the_limit_says,
    nowait_returns_at_once,
    wait_returns_when_all_is_done,
    wait_waits_for_its_own_list_only,
    x1_a_wait_ends_when_another_thread_collects,
    errors_after_queueing_do_not_fail_the_call,
    a_refused_entry_is_eio_and_the_others_go_on,
    f10_every_refused_entry_tells_its_own_errno,
    f09_an_entry_over_the_limit_is_eagain,
    f09_eio_comes_before_eagain,
    a_signal_ends_a_wait_with_eintr,
    a_signal_ends_a_wait_despite_sa_restart,
    eio_and_eagain_come_before_eintr,
    empty_entries_are_passed_over,
    an_unknown_operation_is_einval_for_its_entry,
    a_nop_is_nothing_but_needs_a_descriptor,
    a_nop_does_not_count,
    a_nop_never_tells,
    a_nop_is_looked_at_like_the_others,
    f05_an_empty_list_signals_at_once,
    f05_a_list_of_nothing_but_nops_signals_at_once,
    f05_a_list_whose_entries_are_all_refused_signals_at_once,
    f05_a_list_with_nothing_queued_sends_no_kevent,
    an_empty_list_that_tells_nobody_is_no_error,
    the_list_signal_comes_once_after_the_last,
    the_list_signal_comes_though_an_entry_was_refused,
    the_list_signal_goes_to_a_thread,
    the_list_signal_comes_when_all_is_cancelled,
    collecting_the_last_takes_the_list_signal_away,
    the_list_event_comes_after_the_last,
    the_list_event_stays_until_the_last_is_collected,
    the_list_event_may_be_deleted,
    the_list_event_has_no_flags_to_choose,
    f06_a_list_without_sigevent_tells_nobody,
    entries_tell_of_their_own_ends,
    lists_of_several_threads_do_not_mix,
    a_list_that_another_thread_unmaps_meanwhile_does_no_harm,
}

/// A list of a good read, for calls that are refused; its entry must stay as it was.
fn untouched(test: &Test) -> Result<(Cb, List), crate::harness::Stop> {
    let fd = test.file("file", 100)?;
    let cb = test.entry(Op::Read, fd, 0, &test.buffer(50));
    Ok((cb, test.list([cb])))
}

fn nothing_happened(cb: Cb) -> Outcome {
    same(cb.private(), (77, 78, 79), "status, error and kernelinfo")?;
    let none = aio::waitcomplete(Some(Timespec::default()));
    same(none, aio::Completed { cb: 0, result: Err(EAGAIN) }, "aio_waitcomplete")
}

fn a_bad_mode_is_einval(test: &Test) -> Outcome {
    let (cb, list) = untouched(test)?;
    for mode in [2, -1, 3, i32::MAX] {
        refused(list.submit(mode, 0), EINVAL, "a good list")?;
        for (addr, count) in [(0, 0), (0, 1), (HOLE, 1), (list.addr(), -1)] {
            refused(aio::listio(mode, addr, count, HOLE), EINVAL, "a bad one")?;
        }
    }
    nothing_happened(cb)
}

fn the_count_has_limits(test: &Test) -> Outcome {
    let limit = sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as i32;
    let (cb, list) = untouched(test)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        for count in [-1, i32::MIN, limit + 1, i32::MAX] {
            for addr in [list.addr(), 0, HOLE] {
                refused(aio::listio(mode, addr, count, HOLE), EINVAL, "a bad count")?;
            }
        }
        // Nothing is read of a list of none.
        for addr in [list.addr(), 0, HOLE] {
            same(aio::listio(mode, addr, 0, 0), Ok(()), "no entries")?;
        }
        let empty = test.buffer(limit as usize * size_of::<usize>());
        same(aio::listio(mode, empty.addr(), limit, 0), Ok(()), "empty entries")?;
    }
    nothing_happened(cb)
}

fn an_unmapped_list_is_efault(test: &Test) -> Outcome {
    let (cb, list) = untouched(test)?;
    let page = test.buffer(guest::mem::PAGE);
    let end = page.at(guest::mem::PAGE - size_of::<usize>());
    test.buffer(guest::mem::PAGE).unmap().must("munmap")?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        for addr in [0, HOLE, usize::MAX - 7, end] {
            refused(aio::listio(mode, addr, 2, 0), EFAULT, "an unmapped list")?;
        }
        same(aio::listio(mode, end, 1, 0), Ok(()), "the last word of a page")?;
    }
    let _ = list;
    nothing_happened(cb)
}

fn an_unmapped_sigevent_is_efault(test: &Test) -> Outcome {
    let (cb, list) = untouched(test)?;
    for sig in [8, HOLE, usize::MAX - 15] {
        refused(list.submit(LIO_NOWAIT, sig), EFAULT, "an unmapped sigevent")?;
        refused(aio::listio(LIO_NOWAIT, 0, 0, sig), EFAULT, "with no entries")?;
    }
    nothing_happened(cb)
}

fn the_list_is_copied_before_the_sigevent_is_judged(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    for sig in [
        Sigevent { notify: SIGEV_THREAD, ..Sigevent::default() },
        Sigevent::signal(0, 0),
        Sigevent::kevent(-1, 0, 0),
        Sigevent::kevent(kq.0, 0, 0),
    ] {
        let at = test.sigevent(sig);
        // In 32 bits an unknown kind is seen when the structure is converted.
        let early = sig.notify == SIGEV_THREAD && cfg!(target_pointer_width = "32");
        let wanted = if early { EINVAL } else { EFAULT };
        refused(aio::listio(LIO_NOWAIT, HOLE, 1, at), wanted, "an unmapped list")?;
    }
    kq.empty()
}

fn bad_sigevent(test: &Test, sig: Sigevent, wanted: Errno) -> Outcome {
    let (cb, list) = untouched(test)?;
    refused(list.submit_with(test, sig), wanted, "with an entry")?;
    let at = test.sigevent(sig);
    refused(aio::listio(LIO_NOWAIT, 0, 0, at), wanted, "without entries")?;
    nothing_happened(cb)
}

fn an_unknown_sigevent_is_einval(test: &Test) -> Outcome {
    for notify in [SIGEV_THREAD, 5, -1, i32::MAX, i32::MIN] {
        let sig = Sigevent { notify, signo: SIGRTMIN, ..Sigevent::default() };
        bad_sigevent(test, sig, EINVAL)?;
    }
    Ok(())
}

fn an_impossible_signal_is_einval(test: &Test) -> Outcome {
    for signo in [0, -1, 129, i32::MAX, i32::MIN] {
        bad_sigevent(test, Sigevent::signal(signo, 1), EINVAL)?;
        bad_sigevent(test, Sigevent::thread(signo, 1, sys::thr_self().must("thr_self")?), EINVAL)?;
    }
    Ok(())
}

fn a_bad_kqueue_is_ebadf(test: &Test) -> Outcome {
    let file = test.file("no-kqueue", 10)?;
    let closed = Queue::new()?;
    sys::close(closed.0).must("close")?;
    for kq in [-1, i32::MAX, file, closed.0] {
        // Another descriptor may have the closed one's number by now; it is no kqueue either.
        bad_sigevent(test, Sigevent::kevent(kq, 1, 0), EBADF)?;
    }
    Ok(())
}

fn wait_does_not_look_at_the_sigevent(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let signal = Signal::new(SIGRTMIN)?;
    let kq = Queue::new()?;
    let good = [Sigevent::signal(signal.0, 1), Sigevent::kevent(kq.0, 1, 0)];
    let bad = [
        Sigevent { notify: 77, ..Sigevent::default() },
        Sigevent::signal(1000, 1),
        Sigevent::kevent(-1, 1, 0),
    ];
    let sigs = good.into_iter().chain(bad).map(|sig| test.sigevent(sig));
    for sig in [HOLE, 1].into_iter().chain(sigs) {
        let cb = test.entry(Op::Read, fd, 0, &test.buffer(50));
        same(test.list([cb]).submit(LIO_WAIT, sig), Ok(()), "lio_listio")?;
        same(aio::error(cb.addr()), Ok(0), "aio_error")?;
        kq.empty()?;
        check!(!signal.pending()?, "a signal came");
        same(aio::return_(cb.addr()), Ok(50), "aio_return")?;
    }
    kq.none()?;
    signal.none()
}

fn all_operations_of_a_list_are_done(test: &Test) -> Outcome {
    let fd = test.file("file", 5000)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let [read, readv] = [test.buffer(700), test.buffer(800)];
        let [write, writev] = [test.buffer(900), test.buffer(1000)];
        write.fill(0x11);
        writev.fill(0x22);
        let blocks = [
            test.entry(Op::Read, fd, 100, &read),
            test.entry(Op::Write, fd, 6000, &write),
            test.entry(Op::Readv, fd, 200, &readv),
            test.entry(Op::Writev, fd, 8000, &writev),
        ];
        let list = test.list(blocks);
        same(list.submit(mode, 0), Ok(()), "lio_listio")?;
        for (cb, wanted) in blocks.into_iter().zip([700, 900, 800, 1000]) {
            if mode == LIO_WAIT {
                same(aio::error(cb.addr()), Ok(0), "aio_error")?;
            }
            let (status, error, kernelinfo) = cb.private();
            same((status, error), (-1, i64::from(EINPROGRESS.0)), "status and error")?;
            check!(kernelinfo > 0, "the job number is {kernelinfo}");
            same(test.collect(cb)?, Ok(wanted), "the entry")?;
        }
        holds_pattern(&read, 700, 100)?;
        holds_pattern(&readv, 800, 200)?;
        let got = test.buffer(1000);
        for (wanted, offset) in [(&write, 6000), (&writev, 8000)] {
            same(
                sys::pread_at(fd, got.addr(), wanted.len(), offset),
                Ok(wanted.len()),
                "pread of what was written",
            )?;
            same(got.first_difference(wanted), None, "the first byte that differs")?;
        }
        sys::ftruncate(fd, 5000).must("ftruncate")?;
    }
    Ok(())
}

fn as_many_entries_as_the_limit_says(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let limit = sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as usize;
    check!(limit <= 256, "the limit is {limit}, more than the case is made for");
    let buffer = test.buffer(16);
    let memory = test.buffer(256 * 256);
    let mut entries = [0; 256];
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        for (index, entry) in entries[..limit].iter_mut().enumerate() {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64 % 50, buffer.addr(), 16);
            block.opcode = Op::Read.opcode();
            cb.set(block);
            *entry = cb.addr();
        }
        same(test.list_of(&entries[..limit]).submit(mode, 0), Ok(()), "lio_listio")?;
        for &entry in &entries[..limit] {
            let cb = Cb::at(&memory, entry - memory.addr());
            if mode == LIO_WAIT {
                same(aio::error(cb.addr()), Ok(0), "aio_error")?;
            }
            same(test.collect(cb)?, Ok(16), "an entry")?;
        }
    }
    Ok(())
}

fn nowait_returns_at_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    same(test.list(blocks).submit(LIO_NOWAIT, 0), Ok(()), "lio_listio")?;
    for cb in blocks {
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
    }
    hold.release()?;
    for cb in blocks {
        same(test.collect(cb)?, Ok(10), "an entry")?;
    }
    Ok(())
}

/// Cancels the requests of a descriptor one after the other, with time between.
fn cancel_slowly(list: usize) {
    let list = guest::mem::Region::shared_at(list, 64);
    let fd = list.get::<usize>(0) as i32;
    for index in 1..4 {
        sleep_ms(60);
        let _ = aio::cancel(fd, list.get::<usize>(index * size_of::<usize>()));
    }
}

fn wait_returns_when_all_is_done(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _hold = test.hold()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let [a, b, c] = blocks.map(|cb| cb.addr());
    let what = test.list_of(&[fd as usize, a, b, c]);
    let helper = thread::spawn(cancel_slowly, what.addr()).must("thr_new")?;
    same(test.list(blocks).submit(LIO_WAIT, 0), Ok(()), "lio_listio")?;
    for cb in blocks {
        same(aio::error(cb.addr()), Ok(ECANCELED.0), "aio_error")?;
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    helper.join();
    Ok(())
}

fn wait_waits_for_its_own_list_only(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let running = test.running()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
    same(test.list(blocks).submit(LIO_WAIT, 0), Ok(()), "lio_listio")?;
    for cb in blocks {
        same(aio::error(cb.addr()), Ok(0), "aio_error")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    same(aio::error(running.cb.addr()), Ok(EINPROGRESS.0), "the other request")?;
    running.let_go()?;
    same(test.collect(running.cb)?, Ok(Running::BYTES as i64), "the other request")
}

/// Requests that another thread collected.
static COLLECTED: AtomicUsize = AtomicUsize::new(0);

fn collector(count: usize) {
    for _ in 0..count {
        while aio::waitcomplete(Some(Timespec::from_ms(1000))).cb == 0 {}
        COLLECTED.fetch_add(1, SeqCst);
    }
}

fn x1_a_wait_ends_when_another_thread_collects(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    const ROUNDS: usize = 200;
    let blocks = [(); 4].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    let helper = thread::spawn(collector, 4 * ROUNDS).must("thr_new")?;
    for round in 0..ROUNDS {
        same(list.submit(LIO_WAIT, 0), Ok(()), "lio_listio")?;
        // The limit counts what is not collected yet.
        while COLLECTED.load(SeqCst) < 4 * round {
            sys::sched_yield();
        }
    }
    helper.join();
    Ok(())
}

fn errors_after_queueing_do_not_fail_the_call(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let good = test.entry(Op::Read, fd, 0, &test.buffer(10));
        let bad = test.entry(Op::Read, fd, 0, &test.buffer(10));
        test.edit(bad, |block| block.buf = HOLE);
        same(test.list([bad, good]).submit(mode, 0), Ok(()), "lio_listio")?;
        same(test.done(bad)?, EFAULT.0, "aio_error of the bad one")?;
        refused(aio::return_(bad.addr()), EFAULT, "aio_return of the bad one")?;
        same(test.collect(good)?, Ok(10), "the good one")?;
    }
    Ok(())
}

fn a_refused_entry_is_eio_and_the_others_go_on(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        for place in 0..3 {
            let blocks = [(); 3].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
            test.edit(blocks[place], |block| block.fildes = -1);
            refused(test.list(blocks).submit(mode, 0), EIO, "lio_listio")?;
            for (index, cb) in blocks.into_iter().enumerate() {
                if index == place {
                    same(cb.private(), (-1, i64::from(EBADF.0), -1), "status, error, kernelinfo")?;
                    same(aio::error(cb.addr()), Ok(EBADF.0), "aio_error of the bad one")?;
                    refused(aio::return_(cb.addr()), EINVAL, "aio_return of the bad one")?;
                } else {
                    if mode == LIO_WAIT {
                        same(aio::error(cb.addr()), Ok(0), "aio_error")?;
                    }
                    same(test.collect(cb)?, Ok(10), "a good one")?;
                }
            }
        }
        // An entry that cannot be read at all.
        let good = test.entry(Op::Read, fd, 0, &test.buffer(10));
        refused(test.list_of(&[HOLE]).submit_unread(mode), EIO, "an unmapped block")?;
        refused(test.list_of(&[good.addr(), HOLE]).submit_unread(mode), EIO, "the second")?;
        crate::harness::accepted();
        same(test.collect(good)?, Ok(10), "the first")?;
    }
    Ok(())
}

fn f10_every_refused_entry_tells_its_own_errno(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let read_only = test.open("file", sys::O_RDONLY)?;
    let (from, _to) = sys::pipe().must("pipe")?;
    let kq = Queue::new()?;
    type Change<'a> = &'a dyn Fn(&mut aio::Aiocb);
    let faults: [(Errno, Change); 9] = [
        (EBADF, &|block| block.fildes = 9999),
        (EBADF, &|block| (block.fildes, block.opcode) = (read_only, Op::Write.opcode())),
        (EINVAL, &|block| block.offset = -1),
        (EINVAL, &|block| block.nbytes = aio::IOSIZE_MAX + 1),
        (EINVAL, &|block| block.sigevent.notify = SIGEV_THREAD),
        (EINVAL, &|block| block.sigevent = Sigevent::signal(0, 0)),
        (EINVAL, &|block| block.sigevent = Sigevent::kevent(kq.0, 0, 1)),
        (EBADF, &|block| block.sigevent = Sigevent::kevent(fd, 0, 0)),
        (guest::errno::EOPNOTSUPP, &|block| block.fildes = from),
    ];
    let blocks = [(); 9].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
    for (cb, (_, change)) in blocks.into_iter().zip(faults) {
        test.edit(cb, change);
    }
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        refused(test.list(blocks).submit(mode, 0), EIO, "lio_listio")?;
        for (index, (cb, (wanted, _))) in blocks.into_iter().zip(faults).enumerate() {
            let what = guest::out::Text::<32>::of(format_args!("aio_error of entry {index}"));
            same(aio::error(cb.addr()), Ok(wanted.0), what.as_str())?;
            refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
        }
    }
    kq.none()
}

fn f09_an_entry_over_the_limit_is_eagain(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let blocks = [(); 5].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
        let list = test.list(blocks);
        // The limit is for the list's length too, so it is reached by requests of before.
        let limit = test.setting("vfs.aio.max_aio_queue_per_proc", 5)?;
        let earlier = [(); 2].map(|()| test.request(Op::Read, fd, 0, &test.buffer(10)));
        for cb in earlier {
            test.submit(Op::Read, cb)?;
        }
        refused(list.submit(mode, 0), EAGAIN, "lio_listio")?;
        for cb in &blocks[..3] {
            same(test.collect(*cb)?, Ok(10), "an entry that had a place")?;
        }
        for cb in &blocks[3..] {
            same(aio::error(cb.addr()), Ok(EAGAIN.0), "aio_error of one that had none")?;
            same(cb.private(), (-1, i64::from(EAGAIN.0), -1), "status, error, kernelinfo")?;
        }
        for cb in earlier {
            same(test.collect(cb)?, Ok(10), "an earlier request")?;
        }
        drop(limit);
    }
    Ok(())
}

fn f09_eio_comes_before_eagain(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 4)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let earlier = [(); 3].map(|()| test.request(Op::Read, fd, 0, &test.buffer(10)));
        for cb in earlier {
            test.submit(Op::Read, cb)?;
        }
        let blocks = [(); 3].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
        test.edit(blocks[0], |block| block.offset = -1);
        refused(test.list(blocks).submit(mode, 0), EIO, "lio_listio")?;
        same(aio::error(blocks[0].addr()), Ok(EINVAL.0), "the bad one")?;
        same(test.collect(blocks[1])?, Ok(10), "the good one")?;
        same(aio::error(blocks[2].addr()), Ok(EAGAIN.0), "the one over the limit")?;
        for cb in earlier {
            same(test.collect(cb)?, Ok(10), "an earlier request")?;
        }
    }
    Ok(())
}

/// Waits for a held list until an alarm; the extra entry may be one that is refused.
fn interrupted(test: &Test, flags: i32, extra: Option<Cb>, wanted: Errno) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let blocks = [(); 2].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let list = test.list_of(&[blocks[0].addr(), extra.map_or(0, |cb| cb.addr()), blocks[1].addr()]);
    sys::count_signals(sys::SIGALRM, flags).must("sigaction")?;
    let before = sys::signals();
    // Again and again: the first may come before the thread sleeps.
    sys::alarm_ms(200, 200).must("setitimer")?;
    let result = list.submit(LIO_WAIT, 0);
    sys::alarm_ms(0, 0).must("setitimer")?;
    check!(sys::signals() > before, "it ended before the signal: {result:?}");
    refused(result, wanted, "lio_listio")?;
    for cb in blocks {
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "an entry goes on")?;
    }
    hold.release()?;
    for cb in blocks {
        same(test.collect(cb)?, Ok(10), "an entry")?;
    }
    Ok(())
}

fn a_signal_ends_a_wait_with_eintr(test: &Test) -> Outcome {
    interrupted(test, 0, None, EINTR)
}

fn a_signal_ends_a_wait_despite_sa_restart(test: &Test) -> Outcome {
    interrupted(test, sys::SA_RESTART, None, EINTR)
}

fn eio_and_eagain_come_before_eintr(test: &Test) -> Outcome {
    let bad = test.entry(Op::Read, -1, 0, &test.buffer(10));
    interrupted(test, 0, Some(bad), EIO)?;
    // With room for two, and one for the request that lets the others go, the third is too many.
    let fd = test.file("other", 100)?;
    let limit = test.setting("vfs.aio.max_aio_queue_per_proc", 3)?;
    let earlier = test.request(Op::Read, fd, 0, &test.buffer(10));
    test.submit(Op::Read, earlier)?;
    same(test.done(earlier)?, 0, "an earlier request")?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let hold = test.hold()?;
    sys::alarm_ms(200, 200).must("setitimer")?;
    let result = test.list(blocks).submit(LIO_WAIT, 0);
    sys::alarm_ms(0, 0).must("setitimer")?;
    refused(result, EAGAIN, "lio_listio")?;
    for cb in &blocks[..2] {
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "an entry goes on")?;
    }
    drop(limit);
    hold.release()?;
    for cb in &blocks[..2] {
        same(test.collect(*cb)?, Ok(10), "an entry")?;
    }
    same(aio::return_(earlier.addr()), Ok(10), "the earlier request")
}

fn empty_entries_are_passed_over(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        same(test.list_of(&[0; 5]).submit(mode, 0), Ok(()), "nothing but empty entries")?;
        let blocks = [(); 2].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
        let list = test.list_of(&[0, blocks[0].addr(), 0, 0, blocks[1].addr(), 0]);
        same(list.submit(mode, 0), Ok(()), "lio_listio")?;
        for cb in blocks {
            same(test.collect(cb)?, Ok(10), "an entry")?;
        }
    }
    Ok(())
}

fn an_unknown_operation_is_einval_for_its_entry(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    // Those of aio_fsync and aio_mlock, those that are two at once, and those that are none. Some
    // are taken for vectored first, so the buffer is a list of pieces.
    for opcode in [3, 4, 7, 8, 9, 0x10, 0x18, 0x20, 0x40, i32::MAX, i32::MIN, -1] {
        // Later kernels know it: at the file's own offset (LIO_FOFFSET), here of nothing.
        if opcode == 0x40 && guest::sysctl::get("kern.osreldate") >= Some(1_401_000) {
            continue;
        }
        for mode in [LIO_WAIT, LIO_NOWAIT] {
            let good = test.entry(Op::Read, fd, 0, &test.buffer(10));
            let bad = test.entry(Op::Readv, fd, 0, &test.buffer(10));
            test.edit(bad, |block| block.opcode = opcode);
            refused(test.list([bad, good]).submit(mode, 0), EIO, "lio_listio")?;
            same(bad.private(), (-1, i64::from(EINVAL.0), -1), "status, error, kernelinfo")?;
            same(aio::error(bad.addr()), Ok(EINVAL.0), "aio_error")?;
            same(test.collect(good)?, Ok(10), "the other entry")?;
        }
    }
    Ok(())
}

/// A block that does nothing.
fn nop(test: &Test, fd: i32) -> Cb {
    let cb = test.entry(Op::Read, fd, 0, &test.buffer(10));
    test.edit(cb, |block| block.opcode = LIO_NOP);
    cb
}

fn a_nop_is_nothing_but_needs_a_descriptor(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let (from, _to) = sys::pipe().must("pipe")?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        for fd in [fd, from, Queue::new()?.0] {
            let cb = nop(test, fd);
            // What a request would be refused for.
            test.edit(cb, |block| (block.offset, block.buf) = (-5, HOLE));
            same(test.list([cb]).submit(mode, 0), Ok(()), "lio_listio")?;
            same((cb.status(), cb.error()), (-1, 0), "status and error")?;
            check!(cb.kernelinfo() > 0, "the job number is {}", cb.kernelinfo());
            same(aio::error(cb.addr()), Ok(0), "aio_error")?;
            refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
        }
        let bad = nop(test, 9999);
        refused(test.list([bad]).submit(mode, 0), EIO, "a bad descriptor")?;
        same(bad.private(), (-1, i64::from(EBADF.0), -1), "status, error and kernelinfo")?;
        same(aio::error(bad.addr()), Ok(EBADF.0), "aio_error")?;
    }
    let none = aio::waitcomplete(Some(Timespec::default()));
    same(none, aio::Completed { cb: 0, result: Err(EAGAIN) }, "aio_waitcomplete")
}

fn a_nop_does_not_count(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    test.use_aio()?;
    let count = || sysctl::get("vfs.aio.num_queue_count");
    let before = count();
    let nops = [(); 5].map(|()| nop(test, fd));
    same(test.list(nops).submit(LIO_NOWAIT, 0), Ok(()), "lio_listio")?;
    same(count(), before, "requests queued")?;
    // But the limit is looked at first of all.
    let read = test.request(Op::Read, fd, 0, &test.buffer(10));
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 1)?;
    test.submit(Op::Read, read)?;
    same(test.list([nop(test, fd)]).submit(LIO_NOWAIT, 0), Err(EAGAIN), "over the limit")?;
    same(test.collect(read)?, Ok(10), "the request")
}

fn a_nop_never_tells(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let signal = Signal::new(SIGRTMIN)?;
    let kq = Queue::new()?;
    for sig in [
        Sigevent::signal(signal.0, 1),
        Sigevent::thread(signal.0, 1, sys::thr_self().must("thr_self")?),
        Sigevent::kevent(kq.0, 1, 0),
        // It is not even looked at whether there is a kqueue.
        Sigevent::kevent(-1, 1, 0),
        Sigevent::kevent(kq.0, 1, 0xffff),
    ] {
        for mode in [LIO_WAIT, LIO_NOWAIT] {
            let cb = nop(test, fd);
            test.edit(cb, |block| block.sigevent = sig);
            same(test.list([cb]).submit(mode, 0), Ok(()), "lio_listio")?;
        }
    }
    kq.none()?;
    signal.none()
}

fn a_nop_is_looked_at_like_the_others(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    type Change<'a> = &'a dyn Fn(&mut aio::Aiocb);
    let changes: [Change; 3] = [
        &|block| block.sigevent.notify = SIGEV_THREAD,
        &|block| block.sigevent = Sigevent::signal(0, 0),
        &|block| block.nbytes = aio::IOSIZE_MAX + 1,
    ];
    for change in changes {
        let cb = nop(test, fd);
        test.edit(cb, change);
        refused(test.list([cb]).submit(LIO_NOWAIT, 0), EIO, "lio_listio")?;
        same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    }
    Ok(())
}

/// A list of which nothing is queued must signal once, there and then.
fn signals_at_once(test: &Test, list: &List, wanted: guest::Result<()>) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let tid = sys::thr_self().must("thr_self")?;
    for (value, sig) in [Sigevent::signal(signal.0, 41), Sigevent::thread(signal.0, 42, tid)]
        .into_iter()
        .enumerate()
    {
        same(list.submit_with(test, sig), wanted, "lio_listio")?;
        check!(signal.pending()?, "no signal when the call has returned");
        signal.expect(41 + value)?;
        signal.none()?;
    }
    Ok(())
}

fn f05_an_empty_list_signals_at_once(test: &Test) -> Outcome {
    signals_at_once(test, &test.list_of(&[]), Ok(()))?;
    signals_at_once(test, &test.list_of(&[0; 4]), Ok(()))
}

fn f05_a_list_of_nothing_but_nops_signals_at_once(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let nops = [(); 3].map(|()| nop(test, fd));
    signals_at_once(test, &test.list(nops), Ok(()))
}

fn f05_a_list_whose_entries_are_all_refused_signals_at_once(test: &Test) -> Outcome {
    let blocks = [(); 3].map(|()| test.entry(Op::Read, -1, 0, &test.buffer(10)));
    signals_at_once(test, &test.list(blocks), Err(EIO))
}

fn f05_a_list_with_nothing_queued_sends_no_kevent(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let bad = test.entry(Op::Read, -1, 0, &test.buffer(10));
    for (entry, wanted) in [(0, Ok(())), (nop(test, fd).addr(), Ok(())), (bad.addr(), Err(EIO))] {
        let list = test.list_of(&[entry; 2]);
        let sig = Sigevent::kevent(kq.0, 7, 0);
        same(list.submit_with(test, sig), wanted, "lio_listio")?;
        kq.none()?;
        let gone = kqueue::change(kq.0, list.addr(), EVFILT_LIO, kqueue::EV_DELETE);
        refused(gone, guest::errno::ENOENT, "EV_DELETE")?;
    }
    Ok(())
}

fn an_empty_list_that_tells_nobody_is_no_error(test: &Test) -> Outcome {
    let sig = Sigevent { signo: 1000, ..Sigevent::default() };
    same(test.list_of(&[0; 3]).submit_with(test, sig), Ok(()), "lio_listio")?;
    same(test.list_of(&[]).submit(LIO_NOWAIT, 0), Ok(()), "lio_listio")
}

/// A list that is held back is submitted; when it goes on, its signal comes once.
fn held_list_signals(test: &Test, sig: Sigevent, bad: bool) -> Outcome {
    let signal = Signal::new(sig.signo)?;
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    if bad {
        test.edit(blocks[1], |block| block.fildes = -1);
    }
    let wanted = if bad { Err(EIO) } else { Ok(()) };
    same(test.list(blocks).submit_with(test, sig), wanted, "lio_listio")?;
    // One is done, the others not.
    same(aio::cancel(fd, blocks[0].addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    signal.none()?;
    refused(aio::return_(blocks[0].addr()), ECANCELED, "aio_return")?;
    hold.release()?;
    signal.expect(sig.value)?;
    for (index, cb) in blocks.into_iter().enumerate().skip(1) {
        if !(bad && index == 1) {
            same(aio::error(cb.addr()), Ok(0), "all is done when the signal comes")?;
            same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        }
    }
    signal.none()
}

fn the_list_signal_comes_once_after_the_last(test: &Test) -> Outcome {
    held_list_signals(test, Sigevent::signal(SIGRTMIN, 0x1234_5678), false)?;
    held_list_signals(test, Sigevent::signal(sys::SIGUSR1, usize::MAX), false)
}

fn the_list_signal_comes_though_an_entry_was_refused(test: &Test) -> Outcome {
    held_list_signals(test, Sigevent::signal(SIGRTMIN, 5), true)
}

fn the_list_signal_goes_to_a_thread(test: &Test) -> Outcome {
    let tid = sys::thr_self().must("thr_self")?;
    held_list_signals(test, Sigevent::thread(SIGRTMIN, 6, tid), false)
}

fn the_list_signal_comes_when_all_is_cancelled(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let signal = Signal::new(SIGRTMIN)?;
    let _hold = test.hold()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    same(list.submit_with(test, Sigevent::signal(signal.0, 9)), Ok(()), "lio_listio")?;
    same(aio::cancel(fd, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    check!(signal.pending()?, "no signal when aio_cancel has returned");
    signal.expect(9)?;
    for cb in blocks {
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    signal.none()
}

fn collecting_the_last_takes_the_list_signal_away(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let signal = Signal::new(SIGRTMIN)?;
    for way in 0..2 {
        let blocks = [(); 3].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
        let list = test.list(blocks);
        same(list.submit_with(test, Sigevent::signal(signal.0, 9)), Ok(()), "lio_listio")?;
        signal.wait_pending()?;
        for (index, cb) in blocks.into_iter().enumerate() {
            check!(signal.pending()?, "the signal is gone after {index} of 3");
            if way == 0 {
                same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
            } else {
                same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
            }
        }
        check!(!signal.pending()?, "the signal is there after the last was collected");
    }
    signal.none()
}

fn the_list_event_comes_after_the_last(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    same(list.submit_with(test, Sigevent::kevent(kq.0, 0xabcdef, 0)), Ok(()), "lio_listio")?;
    kq.empty()?;
    same(aio::cancel(fd, blocks[0].addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    kq.none()?;
    hold.release()?;
    kq.expect_list(&list, 0xabcdef)?;
    for cb in &blocks[1..] {
        same(aio::error(cb.addr()), Ok(0), "all is done when the event comes")?;
    }
    refused(aio::return_(blocks[0].addr()), ECANCELED, "aio_return")?;
    for cb in &blocks[1..] {
        kq.expect_list(&list, 0xabcdef)?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    kq.none()
}

fn the_list_event_stays_until_the_last_is_collected(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let blocks = [(); 3].map(|()| test.entry(Op::Read, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    same(list.submit_with(test, Sigevent::kevent(kq.0, 1, 0)), Ok(()), "lio_listio")?;
    for _ in 0..3 {
        kq.expect_list(&list, 1)?;
    }
    for _ in 0..2 {
        same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
        kq.expect_list(&list, 1)?;
    }
    same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
    kq.none()?;
    let gone = kqueue::change(kq.0, list.addr(), EVFILT_LIO, kqueue::EV_DELETE);
    refused(gone, guest::errno::ENOENT, "EV_DELETE")
}

fn the_list_event_may_be_deleted(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let hold = test.hold()?;
    let blocks = [(); 2].map(|()| test.entry(Op::Write, fd, 0, &test.buffer(10)));
    let list = test.list(blocks);
    same(list.submit_with(test, Sigevent::kevent(kq.0, 1, 0)), Ok(()), "lio_listio")?;
    kqueue::change(kq.0, list.addr(), EVFILT_LIO, kqueue::EV_DELETE).must("EV_DELETE")?;
    hold.release()?;
    for cb in blocks {
        same(test.collect(cb)?, Ok(10), "an entry")?;
    }
    kq.none()
}

fn the_list_event_has_no_flags_to_choose(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    for flags in [kqueue::EV_ONESHOT, kqueue::EV_DELETE, 0xffff] {
        let cb = test.entry(Op::Read, fd, 0, &test.buffer(10));
        let list = test.list([cb]);
        same(list.submit_with(test, Sigevent::kevent(kq.0, 1, flags)), Ok(()), "lio_listio")?;
        for _ in 0..2 {
            kq.expect_list(&list, 1)?;
        }
        same(test.collect(cb)?, Ok(10), "the entry")?;
        kq.empty()?;
    }
    Ok(())
}

fn f06_a_list_without_sigevent_tells_nobody(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    // What an earlier list left must not be used again.
    for _ in 0..5 {
        for sig in [Sigevent::kevent(kq.0, 1, 0), Sigevent::signal(signal.0, 1)] {
            let cb = test.entry(Op::Read, fd, 0, &test.buffer(10));
            let list = test.list([cb]);
            same(list.submit_with(test, sig), Ok(()), "lio_listio")?;
            if sig.notify == aio::SIGEV_KEVENT {
                kq.expect_list(&list, 1)?;
            } else {
                signal.expect(1)?;
            }
            same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
            for sig in [0, test.sigevent(Sigevent::default())] {
                same(list.submit(LIO_NOWAIT, sig), Ok(()), "lio_listio")?;
                same(test.done(cb)?, 0, "the entry")?;
                kq.empty()?;
                check!(!signal.pending()?, "a signal came");
                same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
            }
        }
    }
    kq.none()?;
    signal.none()
}

fn entries_tell_of_their_own_ends(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let kq = Queue::new()?;
    let [own, of_list] = [Signal::new(SIGRTMIN)?, Signal::new(SIGRTMIN + 1)?];
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let buffer = test.buffer(10);
        let signals = test.notified(Op::Read, fd, &buffer, Sigevent::signal(own.0, 11));
        let event = test.notified(Op::Write, fd, &buffer, Sigevent::kevent(kq.0, 12, 0));
        let silent = test.entry(Op::Read, fd, 0, &buffer);
        let list = test.list([signals, event, silent]);
        same(
            list.submit(mode, test.sigevent(Sigevent::signal(of_list.0, 13))),
            Ok(()),
            "lio_listio",
        )?;
        own.expect(11)?;
        kq.expect(event, 0, 12, 0)?;
        if mode == LIO_NOWAIT {
            of_list.expect(13)?;
        }
        for cb in [signals, event, silent] {
            same(test.collect(cb)?, Ok(10), "an entry")?;
        }
        kq.none()?;
        own.none()?;
        of_list.none()?;
    }
    // An event of an entry and one of the list on one kqueue.
    let cb = test.notified(Op::Read, fd, &test.buffer(10), Sigevent::kevent(kq.0, 1, 0));
    let list = test.list([cb]);
    same(list.submit_with(test, Sigevent::kevent(kq.0, 2, 0)), Ok(()), "lio_listio")?;
    same(test.done(cb)?, 0, "the entry")?;
    let both = [kq.some()?, kq.some()?].map(|event| (event.filter, event.udata));
    if both != [(EVFILT_AIO, 1), (EVFILT_LIO, 2)] && both != [(EVFILT_LIO, 2), (EVFILT_AIO, 1)] {
        return fail(format_args!("filters and udata of two events: {both:?}"));
    }
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    kq.none()
}

fn lists_of_several_threads_do_not_mix(test: &Test) -> Outcome {
    /// Waits for lists of two reads, again and again; clears the first word when one is wrong.
    fn lists(at: usize) {
        let memory = guest::mem::Region::shared_at(at, 4096);
        let blocks = [Cb::at(&memory, 64), Cb::at(&memory, 256)];
        for _ in 0..200 {
            let waited = aio::listio(LIO_WAIT, memory.at(8), 2, 0);
            let results = blocks.map(|cb| (aio::error(cb.addr()), aio::return_(cb.addr())));
            if waited != Ok(()) || results != [(Ok(0), Ok(10)); 2] {
                memory.put(0, 0usize);
            }
        }
    }
    let fd = test.file("file", 100)?;
    if sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(0) < 8 {
        return skip(format_args!("too few requests are allowed"));
    }
    let pages = [(); 4].map(|()| test.buffer(4096));
    let mut threads = [const { None }; 4];
    for (page, thread) in pages.iter().zip(&mut threads) {
        for (index, offset) in [64, 256].into_iter().enumerate() {
            let cb = Cb::at(page, offset);
            let mut block = aio::request(fd, index as i64, page.at(1024), 10);
            block.opcode = OPS[0].opcode();
            cb.set(block);
            page.put(8 + index * size_of::<usize>(), cb.addr());
        }
        page.put(0, 1usize);
        *thread = Some(thread::spawn(lists, page.addr()).must("thr_new")?);
    }
    threads.into_iter().flatten().for_each(thread::Thread::join);
    for page in pages {
        same(page.get::<usize>(0), 1, "whether a thread's lists went well")?;
    }
    crate::harness::accepted();
    Ok(())
}

/// What the thread that unmaps works on, the list's page and the blocks' page behind it, until it is
/// 0; how often it did, and how many calls there have been.
static PAGES: AtomicUsize = AtomicUsize::new(0);
static UNMAPPED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Takes the pages away and puts empty ones there, which for a list are entries to pass over.
fn unmaps(_: usize) {
    let pages = PAGES.load(SeqCst);
    let mut rng = guest::rng::Rng::new(1);
    while PAGES.load(SeqCst) != 0 {
        for page in [pages, pages + PAGE] {
            // Time for a call, or for a part of one.
            let call = CALLS.load(SeqCst) + rng.below(3) as usize;
            while CALLS.load(SeqCst) < call && PAGES.load(SeqCst) != 0 {
                sys::sched_yield();
            }
            (0..rng.below(3000)).for_each(|_| core::hint::spin_loop());
            let _ = sys::munmap(page, PAGE);
            (0..rng.below(1000)).for_each(|_| core::hint::spin_loop());
            let _ = sys::mmap_over(page, PAGE, sys::PROT_READ | sys::PROT_WRITE);
            UNMAPPED.fetch_add(1, SeqCst);
        }
    }
}

fn a_list_that_another_thread_unmaps_meanwhile_does_no_harm(test: &Test) -> Outcome {
    const COUNT: usize = 8;
    let before = sysctl::get("vfs.aio.num_queue_count");
    let fd = test.file("file", 100)?;
    let pages = Region::map(2 * PAGE).must("mmap")?;
    // Both pages as they should be, in a file: a read puts them in place if they are there, where a
    // store would end the case if they are not.
    let whole = test.buffer(2 * PAGE);
    let block = test.entry(Op::Write, fd, 0, &test.buffer(16)).get();
    for index in 0..COUNT {
        whole.put(index * size_of::<usize>(), pages.at(PAGE + index * 256));
        Cb::at(&whole, PAGE + index * 256).set(block);
    }
    let copy = test.file("copy", 0)?;
    same(sys::pwrite_at(copy, whole.addr(), 2 * PAGE, 0), Ok(2 * PAGE), "pwrite")?;
    PAGES.store(pages.addr(), SeqCst);
    let helper = thread::spawn(unmaps, 0).must("thr_new")?;
    let (mut outcomes, mut done) = ([0u32; 4], 0);
    let met = |outcomes: [u32; 4]| {
        outcomes[0] > 0 && outcomes[1] + outcomes[2] > 0 && UNMAPPED.load(SeqCst) > 20
    };
    // How the threads meet is the scheduler's affair, and may take a while.
    let start = guest::time::now();
    for round in 0..15_000 {
        if round >= 600 && (met(outcomes) || guest::time::ms_since(start) > 20_000) {
            break;
        }
        for page in [0, PAGE] {
            let _ = sys::pread_at(copy, pages.at(page), PAGE, page as i64);
        }
        let mode = if round % 3 == 0 { LIO_WAIT } else { LIO_NOWAIT };
        CALLS.fetch_add(1, SeqCst);
        let kind = match aio::listio(mode, pages.addr(), COUNT as i32, 0) {
            Ok(()) => 0,
            Err(EFAULT) => 1,
            Err(EIO) => 2,
            Err(EAGAIN) => 3,
            Err(error) => return fail(format_args!("lio_listio: {error}")),
        };
        outcomes[kind] += 1;
        loop {
            match aio::waitcomplete(Some(Timespec::default())) {
                aio::Completed { result: Ok(16), .. } => {
                    accepted();
                    done += 1;
                }
                aio::Completed { cb: 0, result: Err(EAGAIN) } => break,
                other => return fail(format_args!("aio_waitcomplete: {other:?}")),
            }
        }
    }
    PAGES.store(0, SeqCst);
    helper.join();
    while aio::waitcomplete(Some(Timespec::from_ms(300))).result != Err(EAGAIN) {}
    same(sysctl::get("vfs.aio.num_queue_count"), before, "requests queued afterwards")?;
    if !met(outcomes) || done < 100 {
        return skip(format_args!("never met: outcomes {outcomes:?}, {done} requests done"));
    }
    Ok(())
}
