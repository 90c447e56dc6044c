// SPDX-License-Identifier: BSD-2-Clause
//! Disks that fail or go, and processes that leave while a disk works for them.

use crate::device::{Gauges, Md, Nop};
use crate::harness::{Must, Op, Outcome, Stop, Test, holds_pattern, refused, same};
use crate::{cases, check};
use guest::errno::{EIO, ENXIO};
use guest::sys::{self, Ended};

cases! { "trouble":
    an_error_is_the_requests,
    one_failed_piece_fails_the_vector,
    a_disk_may_go_with_requests_in_flight,
    a_memory_disk_may_go_with_requests_in_flight,
    exit_waits_and_leaves_the_disk_closed,
    a_killed_process_leaves_the_disk_closed,
    exec_waits_and_leaves_nothing,
    threads_may_close_the_descriptor_meanwhile,
}

const SIZE: usize = 4 << 20;

fn an_error_is_the_requests(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    nop.fail_percent(100, 100)?;
    for op in crate::harness::OPS {
        let cb = test.request(op, fd, 0, &test.buffer(8192));
        refused(test.perform(op, cb)?, EIO, "a request of a disk that fails")?;
    }
    same(Gauges::now(), before, "gauges")?;
    nop.fail_percent(0, 0)?;
    let buffer = test.buffer(8192);
    let cb = test.request(Op::Read, fd, 512, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(8192), "a read when it is well again")?;
    holds_pattern(&buffer, 8192, 512)
}

fn one_failed_piece_fails_the_vector(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    nop.fail_percent(30, 0)?;
    let buffer = test.buffer(16_384);
    let pieces = [0, 4096, 8192, 12_288].map(|start| buffer.part(start, 4096));
    let cb = test.vectored(fd, 0, &pieces);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..60 {
        buffer.fill(0);
        match test.perform(Op::Readv, cb)? {
            Ok(16_384) => {
                good += 1;
                holds_pattern(&buffer, 16_384, 0)?;
            }
            Err(EIO) => bad += 1,
            other => check!(false, "a readv with failing pieces: {other:?}"),
        }
    }
    check!(good > 0 && bad > 0, "{good} good and {bad} bad of 60");
    same(Gauges::now(), before, "gauges")
}

fn a_disk_may_go_with_requests_in_flight(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    nop.delay_ms(500)?;
    let cbs = [0; 8].map(|_| test.request(Op::Read, fd, 4096, &test.buffer(4096)));
    for cb in cbs {
        test.submit(Op::Read, cb)?;
    }
    check!(nop.destroy(true)?, "gnop destroy -f");
    for cb in cbs {
        let result = test.collect(cb)?;
        let known = matches!(result, Ok(4096) | Err(ENXIO | EIO));
        check!(known, "a request of a disk that went: {result:?}");
    }
    same(Gauges::now(), before, "gauges")?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(4096));
    let late = match Op::Read.submit(cb.addr()) {
        Ok(()) => test.collect(cb)?.map(|_| ()),
        Err(error) => Err(error),
    };
    check!(late.is_err(), "a read of a disk that is gone: {late:?}");
    same(Gauges::now(), before, "gauges after it")
}

fn a_memory_disk_may_go_with_requests_in_flight(test: &Test) -> Outcome {
    for _ in 0..5 {
        let (md, fd) = Md::patterned(SIZE)?;
        let before = Gauges::now();
        let buffer = test.buffer(512 << 10);
        // No more than have mapped buffers.
        let cbs = [0; 12].map(|_| test.request(Op::Read, fd, 0, &buffer));
        for cb in cbs {
            test.submit(Op::Read, cb)?;
        }
        md.detach(true).must("mdconfig -d -o force")?;
        for cb in cbs {
            let result = test.collect(cb)?;
            let known = matches!(result, Ok(0x80000) | Err(ENXIO | EIO));
            check!(known, "a request of a memory disk that went: {result:?}");
        }
        same(Gauges::now(), before, "gauges")?;
        // ENXIO, perhaps; it is closed all the same.
        let _ = sys::close(fd);
    }
    Ok(())
}

/// Submits reads of a slow disk that nobody collects.
fn leave_some(test: &Test, fd: i32) -> Result<(), Stop> {
    for index in 0..16 {
        let cb = test.request(Op::Read, fd, index * 4096, &test.buffer(4096));
        test.submit(Op::Read, cb)?;
    }
    Ok(())
}

fn code(outcome: Outcome) -> i32 {
    i32::from(outcome.is_err())
}

/// A disk nobody has open is destroyed without force; one that is open is not.
fn is_closed(nop: &Nop) -> Outcome {
    nop.no_delay()?;
    check!(nop.destroy(false)?, "the disk is still open");
    Ok(())
}

fn exit_waits_and_leaves_the_disk_closed(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    sys::close(fd).must("close")?;
    nop.delay_ms(300)?;
    test.in_child("a process that leaves requests behind", |test| {
        code(nop.open(sys::O_RDWR).and_then(|fd| leave_some(test, fd)))
    })?;
    same(Gauges::now(), before, "gauges")?;
    is_closed(&nop)
}

fn a_killed_process_leaves_the_disk_closed(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    sys::close(fd).must("close")?;
    nop.delay_ms(300)?;
    let (from, to) = sys::pipe().must("pipe")?;
    let pid = test.child(|test| {
        let left = nop.open(sys::O_RDWR).and_then(|fd| leave_some(test, fd));
        let _ = sys::write(to, &[code(left) as u8]);
        loop {
            guest::time::sleep_ms(1000);
        }
    })?;
    let mut byte = [9];
    same(sys::read(from, &mut byte), Ok(1), "the child's word")?;
    same(byte, [0], "the child's word")?;
    sys::kill(pid, sys::SIGKILL).must("kill")?;
    test.child_ended(pid, "the child", Ended::Signal(sys::SIGKILL))?;
    same(Gauges::now(), before, "gauges")?;
    is_closed(&nop)
}

fn exec_waits_and_leaves_nothing(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    let before = Gauges::now();
    sys::close(fd).must("close")?;
    nop.delay_ms(300)?;
    test.in_child("a process that becomes another program", |test| {
        let Ok(fd) = nop.open(sys::O_RDWR | sys::O_CLOEXEC) else { return 3 };
        if leave_some(test, fd).is_err() {
            return 4;
        }
        let words = [c"/bin/sh", c"-c", c"exit 0"];
        let _ = sys::exec_words(words.into_iter());
        5
    })?;
    same(Gauges::now(), before, "gauges")?;
    is_closed(&nop)
}

fn threads_may_close_the_descriptor_meanwhile(test: &Test) -> Outcome {
    let (_md, nop, fd) = Nop::patterned(SIZE)?;
    nop.delay_ms(200)?;
    for _ in 0..5 {
        let other = nop.open(sys::O_RDWR)?;
        let buffer = test.buffer(4096);
        let cb = test.request(Op::Read, other, 4096, &buffer);
        test.submit(Op::Read, cb)?;
        sys::close(other).must("close")?;
        // The request has the file: it is closed when the result is taken.
        same(test.collect(cb)?, Ok(4096), "a read of a closed descriptor")?;
        holds_pattern(&buffer, 4096, 4096)?;
    }
    sys::close(fd).must("close")?;
    is_closed(&nop)
}
