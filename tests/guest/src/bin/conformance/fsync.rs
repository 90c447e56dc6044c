// SPDX-License-Identifier: BSD-2-Clause
//! aio_fsync: what is refused, and what it comes after.

use crate::harness::{Must, OPS, Op, Outcome, Stop, Test, accepted, fail, refused, same};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use guest::aio::{self, AIO_CANCELED, AIO_NOTCANCELED, Cb, Sigevent};
use guest::errno::{EBADF, ECANCELED, EFAULT, EINPROGRESS, EINVAL, EOPNOTSUPP};
use guest::mem::HOLE;
use guest::signal::SIGRTMIN;
use guest::sys::{self, Timespec};

cases! { "fsync":
    it_syncs,
    a_bad_operation_leaves_the_block_alone,
    a_read_only_descriptor_will_do,
    only_descriptor_and_notification_matter,
    a_length_over_iosize_max_is_einval,
    a_bad_descriptor_is_ebadf,
    what_is_no_file_is_einval,
    what_is_an_unsafe_file_is_eopnotsupp,
    an_unmapped_aiocb_is_efault,
    it_comes_after_earlier_requests,
    it_comes_after_earlier_requests_of_a_duplicate,
    it_does_not_come_after_a_cancelled_request,
    it_tells_nothing_of_earlier_requests,
    two_of_them_do_not_wait_for_each_other,
    f04_it_is_cancelled_while_it_waits,
    it_tells_of_its_end,
    f16_a_file_system_that_wants_to_be_asked_again_is,
}

const O_DSYNC: i32 = 0x0100_0000;

fn request(test: &Test, fd: i32) -> Cb {
    let cb = test.block();
    let mut block = aio::request(fd, 0, 0, 0);
    (block.status, block.error, block.kernelinfo) = (77, 78, 79);
    cb.set(block);
    cb
}

fn submit(op: i32, cb: Cb) -> Outcome {
    aio::fsync(op, cb.addr()).must("aio_fsync")?;
    accepted();
    Ok(())
}

fn perform(test: &Test, op: i32, cb: Cb) -> Result<guest::Result<i64>, Stop> {
    submit(op, cb)?;
    test.collect(cb)
}

fn it_syncs(test: &Test) -> Outcome {
    let fd = test.file("file", 100_000)?;
    for op in [sys::O_SYNC, O_DSYNC] {
        let cb = request(test, fd);
        same(perform(test, op, cb)?, Ok(0), "aio_fsync")?;
        same((cb.status(), cb.error()), (0, 0), "status and error")?;
    }
    Ok(())
}

fn a_bad_operation_leaves_the_block_alone(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in [0, 1, -1, sys::O_SYNC | O_DSYNC, sys::O_SYNC | sys::O_RDWR, i32::MAX] {
        let cb = request(test, fd);
        refused(aio::fsync(op, cb.addr()), EINVAL, "a bad operation")?;
        same(cb.private(), (77, 78, 79), "status, error and kernelinfo")?;
        for cb in [0, HOLE] {
            refused(aio::fsync(op, cb), EINVAL, "and a bad block")?;
        }
    }
    Ok(())
}

fn a_read_only_descriptor_will_do(test: &Test) -> Outcome {
    test.file("file", 100)?;
    let fd = test.open("file", sys::O_RDONLY)?;
    same(perform(test, sys::O_SYNC, request(test, fd))?, Ok(0), "aio_fsync")?;
    let dir = test.open(".", sys::O_RDONLY)?;
    same(perform(test, sys::O_SYNC, request(test, dir))?, Ok(0), "aio_fsync of a directory")
}

fn only_descriptor_and_notification_matter(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = request(test, fd);
    test.edit(cb, |block| {
        (block.offset, block.buf, block.nbytes) = (-1, HOLE, aio::IOSIZE_MAX);
        (block.opcode, block.reqprio) = (-1, -1);
    });
    same(perform(test, sys::O_SYNC, cb)?, Ok(0), "aio_fsync")
}

fn a_length_over_iosize_max_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = request(test, fd);
    test.edit(cb, |block| block.nbytes = aio::IOSIZE_MAX + 1);
    refused(aio::fsync(sys::O_SYNC, cb.addr()), EINVAL, "aio_fsync")?;
    same(cb.private(), (-1, i64::from(EINVAL.0), -1), "status, error and kernelinfo")
}

fn a_bad_descriptor_is_ebadf(test: &Test) -> Outcome {
    test.file("file", 100)?;
    let path = test.open("file", sys::O_PATH)?;
    for fd in [-1, 9999, i32::MAX, path] {
        let cb = request(test, fd);
        refused(aio::fsync(sys::O_SYNC, cb.addr()), EBADF, "aio_fsync")?;
        same(aio::error(cb.addr()), Ok(EBADF.0), "aio_error")?;
    }
    Ok(())
}

fn what_is_no_file_is_einval(test: &Test) -> Outcome {
    let (from, to) = sys::pipe().must("pipe")?;
    let (one, _two) = sys::socketpair().must("socketpair")?;
    for fd in [from, to, one, Queue::new()?.0, sys::shm_anon().must("shm_open")?] {
        let cb = request(test, fd);
        refused(aio::fsync(sys::O_SYNC, cb.addr()), EINVAL, "aio_fsync")?;
    }
    Ok(())
}

fn what_is_an_unsafe_file_is_eopnotsupp(test: &Test) -> Outcome {
    sys::mkfifo(c"fifo", 0o600).must("mkfifo")?;
    let fifo = test.open("fifo", sys::O_RDWR)?;
    let null = test.open("/dev/null", sys::O_RDWR)?;
    for fd in [fifo, null] {
        let cb = request(test, fd);
        refused(aio::fsync(sys::O_SYNC, cb.addr()), EOPNOTSUPP, "aio_fsync")?;
        same(aio::error(cb.addr()), Ok(EOPNOTSUPP.0), "aio_error")?;
    }
    Ok(())
}

fn an_unmapped_aiocb_is_efault(_test: &Test) -> Outcome {
    for cb in [0, HOLE, usize::MAX - 7] {
        refused(aio::fsync(sys::O_SYNC, cb), EFAULT, "aio_fsync")?;
    }
    Ok(())
}

/// Writes, then a sync, then more writes; the sync must be collected after the first ones.
fn after_earlier(test: &Test, other: impl Fn(i32) -> Result<i32, Stop>) -> Outcome {
    let fd = test.file("file", 1 << 20)?;
    let fd_of_sync = other(fd)?;
    let buffer = test.buffer(60_000);
    let blocks = [(); 8].map(|()| test.block());
    for round in 0..30 {
        let hold = if round % 3 == 0 { Some(test.hold()?) } else { None };
        let mut earlier = [None; 8];
        for (index, block) in earlier.iter_mut().enumerate() {
            let op = OPS[index % 4];
            let cb = blocks[index];
            test.prepare(cb, op, fd, index as i64 * 60_000, &buffer);
            test.submit(op, cb)?;
            *block = Some(cb);
        }
        let sync = request(test, fd_of_sync);
        submit([sys::O_SYNC, O_DSYNC][round % 2], sync)?;
        let later = test.request(Op::Write, fd, 0, &buffer);
        test.submit(Op::Write, later)?;
        if let Some(hold) = hold {
            same(aio::error(sync.addr()), Ok(EINPROGRESS.0), "the sync, held")?;
            hold.release()?;
        }
        let mut done = 0;
        loop {
            let next = aio::waitcomplete(Some(Timespec::from_ms(60_000)));
            if next.cb == sync.addr() {
                same(next.result, Ok(0), "the sync")?;
                break;
            }
            let is_earlier = earlier.iter().flatten().any(|cb| cb.addr() == next.cb);
            done += usize::from(is_earlier);
            check!(is_earlier || next.cb == later.addr(), "collected {next:?}");
        }
        check!(done == earlier.len(), "the sync came after {done} of {}", earlier.len());
        if aio::error(later.addr()) != Ok(EINVAL.0) {
            same(test.collect(later)?, Ok(60_000), "the later write")?;
        }
    }
    Ok(())
}

fn it_comes_after_earlier_requests(test: &Test) -> Outcome {
    after_earlier(test, Ok)
}

fn it_comes_after_earlier_requests_of_a_duplicate(test: &Test) -> Outcome {
    after_earlier(test, |fd| sys::dup2(fd, 150).must("dup2"))
}

fn it_does_not_come_after_a_cancelled_request(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let write = test.request(Op::Write, fd, 0, &test.buffer(50));
    test.submit(Op::Write, write)?;
    let sync = request(test, fd);
    submit(sys::O_SYNC, sync)?;
    same(aio::cancel(fd, write.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    refused(aio::return_(write.addr()), ECANCELED, "the write")?;
    hold.release()?;
    same(test.collect(sync)?, Ok(0), "the sync")
}

fn it_tells_nothing_of_earlier_requests(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let bad = test.request(Op::Write, fd, 0, &test.buffer(50));
    test.edit(bad, |block| block.buf = HOLE);
    test.submit(Op::Write, bad)?;
    same(perform(test, sys::O_SYNC, request(test, fd))?, Ok(0), "the sync")?;
    refused(aio::return_(bad.addr()), EFAULT, "the write")
}

fn two_of_them_do_not_wait_for_each_other(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let write = test.request(Op::Write, fd, 0, &test.buffer(50));
    test.submit(Op::Write, write)?;
    let syncs = [(); 4].map(|()| request(test, fd));
    for cb in syncs {
        submit(sys::O_SYNC, cb)?;
    }
    // The first is taken away; the others go on.
    same(aio::cancel(fd, syncs[0].addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    hold.release()?;
    same(test.collect(write)?, Ok(50), "the write")?;
    refused(aio::return_(syncs[0].addr()), ECANCELED, "the cancelled one")?;
    for cb in &syncs[1..] {
        same(test.collect(*cb)?, Ok(0), "a sync")?;
    }
    Ok(())
}

fn f04_it_is_cancelled_while_it_waits(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let write = test.request(Op::Write, fd, 0, &test.buffer(50));
    test.submit(Op::Write, write)?;
    let sync = request(test, fd);
    test.edit(sync, |block| block.sigevent = Sigevent::kevent(kq.0, 3, 0));
    submit(sys::O_SYNC, sync)?;
    same(aio::cancel(fd, sync.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    kq.expect(sync, i64::from(ECANCELED.0), 3, 0)?;
    refused(aio::return_(sync.addr()), ECANCELED, "the sync")?;
    same(aio::error(write.addr()), Ok(EINPROGRESS.0), "the write")?;
    // All requests of the descriptor: the sync may be set going by the end of the write.
    submit(sys::O_SYNC, sync)?;
    let answer = aio::cancel(fd, 0).must("aio_cancel")?;
    refused(aio::return_(write.addr()), ECANCELED, "the write")?;
    hold.release()?;
    let result = test.collect(sync)?;
    match answer {
        AIO_CANCELED => refused(result, ECANCELED, "the sync, cancelled"),
        // Then it may go through, or still be taken back before it starts.
        AIO_NOTCANCELED if matches!(result, Ok(0) | Err(ECANCELED)) => Ok(()),
        other => fail(format_args!("aio_cancel: {other}, and the sync ended with {result:?}")),
    }
}

fn it_tells_of_its_end(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    let fd = test.file("file", 100)?;
    let cb = request(test, fd);
    test.edit(cb, |block| block.sigevent = Sigevent::kevent(kq.0, 7, 0));
    submit(sys::O_SYNC, cb)?;
    kq.expect(cb, 0, 7, 0)?;
    same(aio::return_(cb.addr()), Ok(0), "aio_return")?;
    test.edit(cb, |block| block.sigevent = Sigevent::signal(signal.0, 8));
    submit(sys::O_SYNC, cb)?;
    signal.expect(8)?;
    same(aio::return_(cb.addr()), Ok(0), "aio_return")
}

fn f16_a_file_system_that_wants_to_be_asked_again_is(test: &Test) -> Outcome {
    // UFS may want it for a file that was just made; the host kernel does now and then.
    for round in 0..60 {
        let fd = test.file("fresh", 4096)?;
        let cb = request(test, fd);
        submit(if round % 2 == 0 { sys::O_SYNC } else { O_DSYNC }, cb)?;
        same(test.collect(cb)?, Ok(0), "a sync")?;
        sys::unlink(c"fresh").must("unlink")?;
        sys::close(fd).must("close")?;
    }
    Ok(())
}
