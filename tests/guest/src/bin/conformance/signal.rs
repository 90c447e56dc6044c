// SPDX-License-Identifier: BSD-2-Clause
//! Requests that tell of their end by a signal. Most cases hold the signal back and look at what
//! is pending; some have it handled.

use crate::harness::{Must, OPS, Op, Outcome, Test, refused, same};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use core::ffi::c_char;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use guest::aio::{self, AIO_CANCELED, Cb, Sigevent};
use guest::errno::{EAGAIN, ECANCELED, EFAULT};
use guest::mem::HOLE;
use guest::signal::{self, SI_ASYNCIO, SIG_MAX, SIGRTMIN, Set};
use guest::sys::{self, Ended, Timespec};
use guest::thread;
use guest::time::{ms_since, now, sleep_ms};

cases! { "signal":
    a_completion_is_a_signal,
    a_failed_request_signals,
    a_cancelled_request_signals,
    a_request_in_progress_does_not_signal,
    a_refused_request_does_not_signal,
    sigev_none_does_not_signal,
    every_signal_number_is_allowed,
    sigkill_kills,
    an_unhandled_signal_kills,
    an_ignored_signal_is_no_matter,
    a_handler_is_told_code_and_value,
    the_signal_is_there_when_the_request_is_done,
    none_of_many_is_lost,
    collecting_takes_the_signal_away,
    collecting_takes_only_its_own_signal_away,
    a_thread_may_be_told,
    only_that_thread_is_told,
    a_dead_threads_signal_is_dropped,
    f32_another_processes_thread_is_not_told,
    the_end_of_the_thread_does_not_disturb,
    a_fork_child_gets_no_signal,
    an_exec_takes_pending_signals_away,
    f21_exec_and_exit_tell_nobody,
    requests_of_all_kinds_at_once,
}

fn told(test: &Test, op: Op, sig: Sigevent) -> Result<(i32, Cb), crate::harness::Stop> {
    let fd = test.file("file", 100)?;
    Ok((fd, test.notified(op, fd, &test.buffer(10), sig)))
}

fn a_completion_is_a_signal(test: &Test) -> Outcome {
    for signo in [SIGRTMIN, sys::SIGUSR1, SIG_MAX] {
        let signal = Signal::new(signo)?;
        for (op, value) in OPS.into_iter().zip([0, 1, usize::MAX, 0x8000_0000]) {
            let (_, cb) = told(test, op, Sigevent::signal(signo, value))?;
            test.submit(op, cb)?;
            signal.expect(value)?;
            same(aio::error(cb.addr()), Ok(0), "aio_error")?;
            same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        }
        signal.none()?;
    }
    Ok(())
}

fn a_failed_request_signals(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let (_, cb) = told(test, Op::Read, Sigevent::signal(signal.0, 3))?;
    test.edit(cb, |block| block.buf = HOLE);
    test.submit(Op::Read, cb)?;
    signal.expect(3)?;
    refused(aio::return_(cb.addr()), EFAULT, "aio_return")
}

fn a_cancelled_request_signals(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let _hold = test.hold()?;
    let (fd, cb) = told(test, Op::Write, Sigevent::signal(signal.0, 3))?;
    test.submit(Op::Write, cb)?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    check!(signal.pending()?, "no signal when aio_cancel has returned");
    signal.expect(3)?;
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    signal.none()
}

fn a_request_in_progress_does_not_signal(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let hold = test.hold()?;
    let (_, cb) = told(test, Op::Write, Sigevent::signal(signal.0, 3))?;
    test.submit(Op::Write, cb)?;
    signal.none()?;
    hold.release()?;
    signal.expect(3)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn a_refused_request_does_not_signal(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let (from, _to) = sys::pipe().must("pipe")?;
    let sig = Sigevent::signal(signal.0, 3);
    for fd in [-1, from] {
        let cb = test.notified(Op::Read, fd, &test.buffer(10), sig);
        check!(Op::Read.submit(cb.addr()).is_err(), "descriptor {fd} was accepted");
    }
    signal.none()
}

fn sigev_none_does_not_signal(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let sig = Sigevent { notify: aio::SIGEV_NONE, ..Sigevent::signal(signal.0, 3) };
    let (_, cb) = told(test, Op::Read, sig)?;
    same(test.perform(Op::Read, cb)?, Ok(10), "the request")?;
    signal.none()
}

fn every_signal_number_is_allowed(test: &Test) -> Outcome {
    const SIGSTOP: i32 = 17;
    let others = |signo: &i32| *signo != sys::SIGKILL && *signo != SIGSTOP;
    for signo in (1..=SIG_MAX).filter(others) {
        let signal = Signal::new(signo)?;
        // One that is ignored by default would not even be pending.
        signal::handle(signo).must("sigaction")?;
        let (_, cb) = told(test, Op::Read, Sigevent::signal(signo, signo as usize))?;
        test.submit(Op::Read, cb)?;
        signal.expect(signo as usize)?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    // The two that cannot be held back are accepted; they do not come when the process ends first.
    for signo in [sys::SIGKILL, SIGSTOP] {
        let hold = test.hold()?;
        test.in_child("a child", |test| {
            let fd = test.file("file", 100).unwrap_or(-1);
            let sig = Sigevent::signal(signo, 1);
            let cb = test.notified(Op::Write, fd, &test.buffer(10), sig);
            i32::from(Op::Write.submit(cb.addr()).is_err())
        })?;
        hold.release()?;
    }
    Ok(())
}

/// A child whose request sends a signal that is neither held back nor handled.
fn ends_by(test: &Test, signo: i32) -> Outcome {
    let child = test.child(|test| {
        let Ok((_, cb)) = told(test, Op::Read, Sigevent::signal(signo, 1)) else { return 2 };
        if Op::Read.submit(cb.addr()).is_err() {
            return 3;
        }
        sleep_ms(60_000);
        4
    })?;
    test.child_ended(child, "the child", Ended::Signal(signo))
}

fn sigkill_kills(test: &Test) -> Outcome {
    ends_by(test, sys::SIGKILL)
}

fn an_unhandled_signal_kills(test: &Test) -> Outcome {
    ends_by(test, sys::SIGUSR1)?;
    ends_by(test, SIGRTMIN)
}

fn an_ignored_signal_is_no_matter(test: &Test) -> Outcome {
    sys::signal(sys::SIGUSR1, sys::SIG_IGN, 0).must("sigaction")?;
    let (_, cb) = told(test, Op::Read, Sigevent::signal(sys::SIGUSR1, 1))?;
    for _ in 0..10 {
        same(test.perform(Op::Read, cb)?, Ok(10), "the request")?;
    }
    check!(!signal::pending().must("sigpending")?.has(sys::SIGUSR1), "it is pending");
    Ok(())
}

fn a_handler_is_told_code_and_value(test: &Test) -> Outcome {
    for signo in [sys::SIGUSR1, SIGRTMIN + 3] {
        signal::handle(signo).must("sigaction")?;
        let (before, ..) = signal::noted();
        let value = 0x1234_0000 + signo as usize;
        let (_, cb) = told(test, Op::Read, Sigevent::signal(signo, value))?;
        test.submit(Op::Read, cb)?;
        let start = now();
        while signal::noted().0 == before {
            check!(ms_since(start) < 60_000, "the handler did not run in a minute");
            sleep_ms(2);
        }
        sleep_ms(50);
        same(signal::noted(), (before + 1, SI_ASYNCIO, value), "calls, code and value")?;
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    }
    Ok(())
}

fn the_signal_is_there_when_the_request_is_done(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let (_, cb) = told(test, Op::Read, Sigevent::signal(signal.0, 1))?;
    for _ in 0..200 {
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, 0, "aio_error")?;
        check!(signal.pending()?, "no signal although aio_error says it is done");
        same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
        check!(!signal.pending()?, "a signal although it was collected");
    }
    Ok(())
}

fn none_of_many_is_lost(test: &Test) -> Outcome {
    const COUNT: usize = 200;
    let fd = test.file("file", 4096)?;
    let buffer = test.buffer(16);
    let memory = test.buffer(COUNT * 256);
    // A signal of old, that kill(2) sends once however often, as well as a new one.
    for signo in [SIGRTMIN, sys::SIGUSR1] {
        let signal = Signal::new(signo)?;
        for index in 0..COUNT {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64, buffer.addr(), 16);
            block.sigevent = Sigevent::signal(signo, index);
            cb.set(block);
            test.submit(Op::Read, cb)?;
        }
        for index in 0..COUNT {
            same(test.done(Cb::at(&memory, index * 256))?, 0, "a request")?;
        }
        let mut seen = [false; COUNT];
        for count in 0..COUNT {
            let value = signal.value()?;
            check!(value < COUNT && !seen[value], "signal {count} is of request {value} again");
            seen[value] = true;
        }
        signal.none()?;
        for index in 0..COUNT {
            same(aio::return_(memory.addr() + index * 256), Ok(16), "aio_return")?;
        }
    }
    Ok(())
}

fn collecting_takes_the_signal_away(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let tid = sys::thr_self().must("thr_self")?;
    for sig in [Sigevent::signal(signal.0, 3), Sigevent::thread(signal.0, 4, tid)] {
        for way in 0..2 {
            let (_, cb) = told(test, Op::Read, sig)?;
            test.submit(Op::Read, cb)?;
            signal.wait_pending()?;
            if way == 0 {
                same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
            } else {
                same(aio::waitcomplete(None).result, Ok(10), "aio_waitcomplete")?;
            }
            check!(!signal.pending()?, "it is still pending");
        }
    }
    signal.none()
}

fn collecting_takes_only_its_own_signal_away(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let fd = test.file("file", 100)?;
    let blocks = [0usize, 1, 2, 3].map(|value| {
        test.notified(Op::Read, fd, &test.buffer(10), Sigevent::signal(signal.0, value))
    });
    for cb in blocks {
        test.submit(Op::Read, cb)?;
        same(test.done(cb)?, 0, "a request")?;
    }
    for which in [2, 0] {
        same(aio::return_(blocks[which].addr()), Ok(10), "aio_return")?;
    }
    let mut values = [signal.value()?, signal.value()?];
    values.sort_unstable();
    same(values, [1, 3], "the values of those not collected")?;
    // A signal that was delivered is not taken back.
    for which in [1, 3] {
        same(aio::return_(blocks[which].addr()), Ok(10), "aio_return")?;
    }
    signal.none()
}

/// What a waiting thread got: 0 nothing yet, 1 no signal in its time, else the value.
static GOT: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

fn waits_for_signal(index: usize) {
    let ms = if index == 0 { 60_000 } else { 1500 };
    let got = signal::wait(Set::of(SIGRTMIN), Timespec::from_ms(ms));
    GOT[index].store(got.map_or(1, |info| info.value), SeqCst);
}

fn a_thread_may_be_told(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    // The thread inherits that the signal is held back.
    let helper = thread::spawn(waits_for_signal, 0).must("thr_new")?;
    let (_, cb) = told(test, Op::Read, Sigevent::thread(signal.0, 77, helper.tid()))?;
    test.submit(Op::Read, cb)?;
    helper.join();
    same(GOT[0].load(SeqCst), 77, "the value the thread got")?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")?;
    check!(!signal.pending()?, "it is pending for this thread");
    // And this one.
    let own = sys::thr_self().must("thr_self")?;
    test.edit(cb, |block| block.sigevent = Sigevent::thread(signal.0, 78, own));
    test.submit(Op::Read, cb)?;
    signal.expect(78)?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn only_that_thread_is_told(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let told_one = thread::spawn(waits_for_signal, 0).must("thr_new")?;
    let others = [1, 2].map(|index| thread::spawn(waits_for_signal, index));
    let (_, cb) = told(test, Op::Read, Sigevent::thread(signal.0, 79, told_one.tid()))?;
    test.submit(Op::Read, cb)?;
    told_one.join();
    for other in others {
        other.must("thr_new")?.join();
    }
    let got = [0, 1, 2].map(|index| GOT[index].load(SeqCst));
    same(got, [79, 1, 1], "what the threads got")?;
    check!(!signal.pending()?, "it is pending for this thread");
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

fn nobody(_: usize) {}

fn a_dead_threads_signal_is_dropped(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let dead = thread::spawn(nobody, 0).must("thr_new")?;
    let tid = dead.tid();
    dead.join();
    for tid in [tid, 1, -1, i64::from(i32::MAX)] {
        let (_, cb) = told(test, Op::Read, Sigevent::thread(signal.0, 1, tid))?;
        same(test.perform(Op::Read, cb)?, Ok(10), "the request")?;
    }
    signal.none()
}

fn f32_another_processes_thread_is_not_told(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let ours = sys::thr_self().must("thr_self")?;
    test.in_child("a child", |test| {
        let good = told(test, Op::Read, Sigevent::thread(signal.0, 1, ours))
            .and_then(|(_, cb)| test.perform(Op::Read, cb));
        i32::from(!matches!(good, Ok(Ok(10))))
    })?;
    signal.none()
}

fn the_end_of_the_thread_does_not_disturb(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let hold = test.hold()?;
    GOT[1].store(0, SeqCst);
    let helper = thread::spawn(waits_for_signal, 1).must("thr_new")?;
    let (_, cb) = told(test, Op::Write, Sigevent::thread(signal.0, 1, helper.tid()))?;
    test.submit(Op::Write, cb)?;
    helper.join();
    same(GOT[1].load(SeqCst), 1, "what the thread got")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")?;
    signal.none()
}

fn a_fork_child_gets_no_signal(test: &Test) -> Outcome {
    let signal = Signal::new(SIGRTMIN)?;
    let hold = test.hold()?;
    let (_, cb) = told(test, Op::Write, Sigevent::signal(signal.0, 5))?;
    test.submit(Op::Write, cb)?;
    let child = test.child(|_| {
        let got = signal::wait(Set::of(SIGRTMIN), Timespec::from_ms(1000));
        i32::from(got.err() != Some(EAGAIN))
    })?;
    hold.release()?;
    signal.expect(5)?;
    test.child_ended(child, "the child", Ended::Exit(0))?;
    same(aio::return_(cb.addr()), Ok(10), "aio_return")
}

/// Becomes this program with `--after-exec-signals`.
fn exec() -> i32 {
    let Ok(own) = sys::own_path() else { return 30 };
    let argv: [*const c_char; 3] =
        [own.as_cstr().as_ptr(), c"--after-exec-signals".as_ptr(), core::ptr::null()];
    let _ = sys::execve(own.as_cstr(), &argv);
    31
}

/// The program after the exec: no signal is there or comes, nor an event of the kqueue that it
/// has as descriptor 200.
pub fn after_exec() -> i32 {
    let got = signal::wait(Set::of(SIGRTMIN), Timespec::from_ms(300));
    if got.err() != Some(EAGAIN) {
        return 32;
    }
    match Queue(200).next(Timespec::default()) {
        Ok(None) => 0,
        Ok(Some(_)) => 33,
        Err(_) => 34,
    }
}

fn an_exec_takes_pending_signals_away(test: &Test) -> Outcome {
    test.in_child(
        "the program after exec (32: a signal is there, 33: an event, 34: no kqueue)",
        |test| {
            let Ok(signal) = Signal::new(SIGRTMIN) else { return 2 };
            let Ok(kq) = Queue::new() else { return 3 };
            if sys::dup2(kq.0, 200).is_err() {
                return 4;
            }
            let Ok(fd) = test.file("file", 100) else { return 5 };
            let buffer = test.buffer(10);
            let one = test.notified(Op::Read, fd, &buffer, Sigevent::signal(signal.0, 1));
            let two = test.notified(Op::Read, fd, &buffer, Sigevent::kevent(kq.0, 1, 0));
            for cb in [one, two] {
                if !matches!(test.submit(Op::Read, cb).and_then(|()| test.done(cb)), Ok(0)) {
                    return 6;
                }
            }
            if !matches!(signal.pending(), Ok(true)) || kq.some().is_err() {
                return 7;
            }
            exec()
        },
    )
}

fn f21_exec_and_exit_tell_nobody(test: &Test) -> Outcome {
    for round in 0..6 {
        let hold = if round % 2 == 0 { Some(test.hold()?) } else { None };
        let many = |test: &Test| {
            let Ok(signal) = Signal::new(SIGRTMIN) else { return 2 };
            let Ok(kq) = Queue::new() else { return 3 };
            if sys::dup2(kq.0, 200).is_err() {
                return 4;
            }
            let Ok(fd) = test.file("file", 1 << 16) else { return 5 };
            let buffer = test.buffer(1 << 16);
            for index in 0..100 {
                let sig = match index % 3 {
                    0 => Sigevent::signal(signal.0, index),
                    1 => Sigevent::kevent(kq.0, index, 0),
                    _ => Sigevent::thread(signal.0, index, sys::thr_self().unwrap_or(0)),
                };
                let cb = test.notified(Op::Write, fd, &buffer, sig);
                if index % 10 == 9 {
                    let list = test.list([cb]);
                    let of_list =
                        if index % 20 == 9 { Sigevent::signal(signal.0, 1000) } else { sig };
                    if list.submit_with(test, of_list).is_err() {
                        return 6;
                    }
                } else if Op::Write.submit(cb.addr()).is_err() {
                    return 7;
                }
            }
            0
        };
        test.in_child(
            "the program after exec (32: a signal is there, 33: an event, 34: no kqueue)",
            |test| match many(test) {
                0 => exec(),
                other => other,
            },
        )?;
        test.in_child("a child that exits", many)?;
        if let Some(hold) = hold {
            hold.release()?;
        }
    }
    Ok(())
}

fn requests_of_all_kinds_at_once(test: &Test) -> Outcome {
    const COUNT: usize = 120;
    let fd = test.file("file", 4096)?;
    let kq = Queue::new()?;
    let [one, two] = [Signal::new(SIGRTMIN)?, Signal::new(SIGRTMIN + 1)?];
    let own = sys::thr_self().must("thr_self")?;
    let buffer = test.buffer(16);
    let memory = test.buffer(COUNT * 256);
    for _ in 0..5 {
        for index in 0..COUNT {
            let cb = Cb::at(&memory, index * 256);
            let mut block = aio::request(fd, index as i64, buffer.addr(), 16);
            block.sigevent = match index % 4 {
                0 => Sigevent::signal(one.0, index),
                1 => Sigevent::thread(two.0, index, own),
                2 => Sigevent::kevent(kq.0, index, guest::kqueue::EV_ONESHOT),
                _ => Sigevent::default(),
            };
            cb.set(block);
            test.submit(Op::Read, cb)?;
        }
        let mut seen = [0; COUNT];
        for _ in 0..COUNT / 4 {
            for index in [one.value()?, two.value()?, kq.some()?.udata] {
                check!(index < COUNT, "a value of {index}");
                seen[index] += 1;
            }
        }
        for (index, seen) in seen.into_iter().enumerate() {
            same(seen, i32::from(index % 4 != 3), "how often a request told")?;
            same(test.collect(Cb::at(&memory, index * 256))?, Ok(16), "a request")?;
        }
    }
    kq.none()?;
    one.none()?;
    two.none()
}
