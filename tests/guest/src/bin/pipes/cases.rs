// SPDX-License-Identifier: BSD-2-Clause
//! Small cases: one or two pipes, few requests.

use crate::ends::{
    self, Ends, LARGE, cancelled, fill_up, patterned, read, set_blocking, settle, take, take_from,
    waits, write,
};
use crate::harness::{Must, Op, Outcome, Stop, Test, fail, holds_pattern, refused, same, skip};
use crate::{cases, check, on_ends};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, AIO_NOTCANCELED};
use guest::errno::{EAGAIN, EFAULT, EINPROGRESS, EOPNOTSUPP, EPIPE};
use guest::mem::Region;
use guest::sys::{self, Ended};
use guest::sysctl::{self, Setting};
use guest::thread;
use guest::time::{now, sleep_ms};

cases! { "pipe":
    is_refused_by_default,
    a_read_gets_what_is_there,
    a_read_waits_for_data,
    a_read_of_nothing_takes_nothing breaks "it may wait in a worker for ever",
    the_end_gives_0,
    a_writer_may_come_back,
    a_blocking_write_sends_everything,
    a_vectored_blocking_write_sends_everything,
    a_nonblocking_write_may_be_short,
    a_nonblocking_read_waits_all_the_same differs "EAGAIN, as read(2)",
    an_open_files_flags_stay,
    a_small_write_is_whole,
    vectored_both_ways,
    a_list_of_pipes,
    reads_are_served_in_order breaks "several workers wait, and exit for them",
    writes_are_served_in_order breaks "several workers wait, and exit for them",
    a_parked_request_is_cancelled breaks "the worker waits, and exit for it",
    one_of_many_is_cancelled breaks "workers wait, and exit for them",
    all_of_a_descriptor_are_cancelled breaks "workers wait, and exit for them",
    both_directions_are_cancelled_together breaks "workers wait, and exit for them",
    what_waits_behind_a_cancelled_request_goes_on breaks "the worker waits, and exit for it",
    a_smaller_write_behind_a_cancelled_one_goes breaks "the worker waits, and exit for it",
    a_cancelled_write_that_began_is_short breaks "the worker waits, and exit for it",
    a_write_without_a_reader_signals differs "no SIGPIPE",
    a_write_that_waits_learns_that_the_reader_goes differs "no SIGPIPE",
    a_write_in_part_before_the_reader_goes_is_short,
    close_leaves_requests,
    both_ends_of_an_exited_process_go,
    a_worker_waits_for_nobody breaks "all workers wait, and exit for them",
    another_reader_wins breaks "the worker waits, and exit for it",
    another_writers_pages_are_waited_for_without_a_worker
        breaks "the worker waits, and exit for it",
    many_large_writers_do_not_catch_a_worker breaks "workers wait, and exit for them",
    two_processes_share_a_pipe breaks "several workers wait, and exit for them",
    memory_that_is_gone_is_efault,
    park_wins_over_unsafe breaks "it has no such switch",
    a_switch_that_goes_leaves_what_waits breaks "it has no such switch",
    a_terminal_is_refused breaks "it has no such switch",
    a_sync_is_refused,
}

/// Allows requests on pipes: parked by our engine, and by a worker that waits by the kernel's own.
pub fn allow(test: &Test) -> Result<Setting, Stop> {
    if sysctl::served().is_some() {
        test.setting("vfs.aio.rs.park", 1)
    } else {
        test.setting("vfs.aio.enable_unsafe", 1)
    }
}

/// Runs a check on a pipe, and on a FIFO.
fn each(test: &Test, check: impl Fn(&Test, Ends) -> Outcome) -> Outcome {
    let _allowed = allow(test)?;
    check(test, sys::pipe().must("pipe")?)?;
    check(test, fifo(test, c"fifo")?)
}

/// What other requests of a case, that are to go through, are made on.
pub fn of_own() -> Result<Ends, Stop> {
    sys::pipe().must("pipe")
}

on_ends! { each }

fn all_of_a_descriptor_are_cancelled(test: &Test) -> Outcome {
    let _allowed = allow(test)?;
    let ((one, _a), (other, _b)) = (sys::pipe().must("pipe")?, fifo(test, c"fifo")?);
    ends::all_of_one_are_cancelled(test, one, other)
}

/// A FIFO opened for both has both directions; so has each end of a pipe, of which the other end is
/// full then.
fn both_directions_are_cancelled_together(test: &Test) -> Outcome {
    let _allowed = allow(test)?;
    let (one, _two) = sys::pipe().must("pipe")?;
    ends::both_ways_of_one_are_cancelled(test, one)
}

fn fifo(test: &Test, path: &core::ffi::CStr) -> Result<Ends, Stop> {
    let _ = sys::unlink(path);
    sys::mkfifo(path, 0o600).must("mkfifo")?;
    let from = sys::open(path, sys::O_RDONLY | sys::O_NONBLOCK, 0).must("open for reading")?;
    set_blocking(from)?;
    let to = sys::open(path, sys::O_WRONLY, 0).must("open for writing")?;
    let _ = test;
    Ok((from, to))
}

fn flags(fd: i32) -> Result<usize, Stop> {
    // fcntl(2), F_GETFL.
    sys::call(92, [fd as usize, 3, 0, 0, 0, 0]).must("fcntl")
}

/// Reads so many bytes away.
fn drain(fd: i32, mut len: usize) -> Outcome {
    let mut bytes = [0u8; 4096];
    while len > 0 {
        let wanted = len.min(bytes.len());
        let count = sys::read(fd, &mut bytes[..wanted]).must("read")?;
        check!(count > 0, "the end {len} bytes early");
        len -= count;
    }
    Ok(())
}

fn is_refused_by_default(test: &Test) -> Outcome {
    let (from, to) = sys::pipe().must("pipe")?;
    let ends = [(from, to), fifo(test, c"fifo")?];
    for (from, to) in ends {
        let reader = test.request(Op::Read, from, 0, &test.buffer(10));
        refused(Op::Read.submit(reader.addr()), EOPNOTSUPP, "aio_read")?;
        let writer = test.request(Op::Write, to, 0, &test.buffer(10));
        refused(Op::Write.submit(writer.addr()), EOPNOTSUPP, "aio_write")?;
    }
    Ok(())
}

fn a_read_of_nothing_takes_nothing(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let (cb, _) = read(test, from, 0)?;
        same(test.collect(cb)?, Ok(0), "a read of 0 bytes from an empty pipe")?;
        sys::write(to, b"hello").must("write")?;
        let (cb, _) = read(test, from, 0)?;
        same(test.collect(cb)?, Ok(0), "a read of 0 bytes")?;
        let (cb, _) = read(test, from, 100)?;
        same(test.collect(cb)?, Ok(5), "a read")
    })
}

fn a_writer_may_come_back(test: &Test) -> Outcome {
    let _allowed = allow(test)?;
    let (from, to) = fifo(test, c"fifo")?;
    for _ in 0..3 {
        let (cb, _) = read(test, from, 10)?;
        same(sys::write(to, b"abc"), Ok(3), "write")?;
        same(test.collect(cb)?, Ok(3), "a read")?;
    }
    sys::close(to).must("close")?;
    let (cb, _) = read(test, from, 10)?;
    same(test.collect(cb)?, Ok(0), "a read at the end")?;
    let to = sys::open(c"fifo", sys::O_WRONLY, 0).must("open again")?;
    let (cb, _) = read(test, from, 10)?;
    waits(test, cb, "a read without data")?;
    same(sys::write(to, b"defg"), Ok(4), "write")?;
    same(test.collect(cb)?, Ok(4), "a read after the end")
}

fn an_open_files_flags_stay(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let before = (flags(from)?, flags(to)?);
        let (reader, _) = read(test, from, LARGE)?;
        let writer = write(test, to, &patterned(test, LARGE, 0))?;
        while aio::error(writer.addr()) == Ok(EINPROGRESS.0) {
            same((flags(from)?, flags(to)?), before, "flags meanwhile")?;
            if sys::poll_in(from, 1) == Ok(true) {
                let _ = sys::read(from, &mut [0; 4096]);
            }
        }
        same(test.collect(writer)?, Ok(LARGE as i64), "the write")?;
        // We may have taken all of it.
        if aio::error(reader.addr()) == Ok(EINPROGRESS.0) {
            same(sys::write(to, b"x"), Ok(1), "write")?;
        }
        check!(matches!(test.collect(reader)?, Ok(1..)), "the read got nothing");
        same((flags(from)?, flags(to)?), before, "flags afterwards")
    })
}

fn a_small_write_is_whole(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let full = fill_up(to)?;
        drain(from, 100)?;
        // There is room for a part of it.
        let cb = write(test, to, &patterned(test, 512, 0))?;
        waits(test, cb, "a write without room for all of it")?;
        drain(from, full - 100)?;
        same(test.collect(cb)?, Ok(512), "the write")?;
        take(from, 512)
    })
}

fn vectored_both_ways(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let buffers = [test.buffer(3), test.buffer(0), test.buffer(7)];
        let reader = test.vectored(from, 0, &buffers);
        test.submit(Op::Readv, reader)?;
        settle(test)?;
        let all = patterned(test, 10, 0);
        let writer = test.vectored(to, 0, &[all.part(0, 6), all.part(6, 4)]);
        same(test.perform(Op::Writev, writer)?, Ok(10), "aio_writev")?;
        same(test.collect(reader)?, Ok(10), "aio_readv")?;
        holds_pattern(&buffers[0], 3, 0)?;
        holds_pattern(&buffers[2], 7, 3)
    })
}

fn a_list_of_pipes(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        const COUNT: usize = 8;
        let list = test.buffer(2 * COUNT * 8);
        let mut blocks = [None; 2 * COUNT];
        for (index, slot) in blocks.iter_mut().enumerate() {
            let (op, fd) = if index % 2 == 0 { (Op::Read, from) } else { (Op::Write, to) };
            let buffer = patterned(test, 16, 0);
            let cb = test.request(op, fd, 0, &buffer);
            let mut block = cb.get();
            block.opcode = op.opcode();
            cb.set(block);
            list.set_word(index * 8, cb.addr() as u64);
            *slot = Some(cb);
        }
        aio::listio(aio::LIO_WAIT, list.addr(), 2 * COUNT as i32, 0).must("lio_listio")?;
        let mut total = 0;
        for (index, cb) in blocks.iter().flatten().enumerate() {
            match aio::return_(cb.addr()) {
                Ok(16) if index % 2 == 1 => {}
                Ok(count @ 1..) if index % 2 == 0 => total += count,
                other => return fail(format_args!("entry {index}: {other:?}")),
            }
        }
        same(total, 16 * COUNT as i64, "bytes that were read")
    })
}

fn a_parked_request_is_cancelled(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        for round in 0..3 {
            let (cb, _) = read(test, from, 10)?;
            if round > 0 {
                waits(test, cb, "a read without data")?;
            }
            same(aio::cancel(from, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
            cancelled(cb)?;
            same(aio::cancel(from, cb.addr()), Ok(AIO_ALLDONE), "aio_cancel again")?;
        }
        let full = fill_up(to)?;
        let cb = write(test, to, &test.buffer(10))?;
        waits(test, cb, "a write without room")?;
        same(aio::cancel(to, cb.addr()), Ok(AIO_CANCELED), "aio_cancel of a write")?;
        cancelled(cb)?;
        drain(from, full)?;
        sys::write(to, b"x").must("write")?;
        let (cb, _) = read(test, from, 10)?;
        same(test.collect(cb)?, Ok(1), "a read afterwards")
    })
}

fn a_smaller_write_behind_a_cancelled_one_goes(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let full = fill_up(to)?;
        drain(from, 200)?;
        let large = write(test, to, &patterned(test, 500, 0))?;
        let small = write(test, to, &patterned(test, 100, 0))?;
        waits(test, small, "a write behind another")?;
        same(aio::cancel(to, large.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        cancelled(large)?;
        // There has been room for it all the time.
        same(test.collect(small)?, Ok(100), "the small one")?;
        drain(from, full - 200)?;
        take(from, 100)
    })
}

fn a_cancelled_write_that_began_is_short(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let cb = write(test, to, &patterned(test, LARGE, 0))?;
        take(from, 1)?;
        // It has begun, and cannot be over.
        same(aio::cancel(to, cb.addr()), Ok(AIO_NOTCANCELED), "aio_cancel")?;
        let done = match test.collect(cb)? {
            Ok(done @ 1..) => done as usize,
            other => return fail(format_args!("the write: {other:?}")),
        };
        check!(done < LARGE, "it was not short");
        take_from(from, 1, done - 1)?;
        sys::set_nonblocking(from).must("fcntl")?;
        refused(sys::read(from, &mut [0; 10]), EAGAIN, "a read of more")
    })
}

fn a_write_without_a_reader_signals(test: &Test) -> Outcome {
    sys::count_signals(13, sys::SA_RESTART).must("sigaction")?;
    let mut before = 0;
    each(test, |test, (from, to)| {
        let _ = from;
        sys::close(from).must("close")?;
        let cb = write(test, to, &test.buffer(10))?;
        same(test.collect(cb)?, Err(EPIPE), "a write")
    })?;
    before += 2;
    same(sys::signals(), before, "SIGPIPE")
}

fn a_write_that_waits_learns_that_the_reader_goes(test: &Test) -> Outcome {
    sys::count_signals(13, sys::SA_RESTART).must("sigaction")?;
    each(test, |test, (from, to)| {
        let _ = fill_up(to)?;
        let first = write(test, to, &test.buffer(10))?;
        let second = write(test, to, &test.buffer(LARGE))?;
        waits(test, first, "a write without room")?;
        sys::close(from).must("close")?;
        same(test.collect(first)?, Err(EPIPE), "a write that waited")?;
        same(test.collect(second)?, Err(EPIPE), "another")
    })?;
    // One that is pending when the next is posted is one with it: a pipe's two may be.
    check!((2..=4).contains(&sys::signals()), "{} of SIGPIPE", sys::signals());
    Ok(())
}

fn a_write_in_part_before_the_reader_goes_is_short(test: &Test) -> Outcome {
    sys::count_signals(13, sys::SA_RESTART).must("sigaction")?;
    each(test, |test, (from, to)| {
        // Not as many bytes as would be lent, which counts them as not written.
        let all = test.buffer(LARGE);
        let mut pieces = [all.part(0, 0); 512];
        for (index, piece) in pieces.iter_mut().enumerate() {
            *piece = all.part(index * 2048, 2048);
        }
        let cb = test.vectored(to, 0, &pieces);
        test.submit(Op::Writev, cb)?;
        drain(from, 4096)?;
        settle(test)?;
        sys::close(from).must("close")?;
        match test.collect(cb)? {
            Ok(done) if (4096..LARGE as i64).contains(&done) => Ok(()),
            other => fail(format_args!("a write: {other:?}")),
        }
    })?;
    same(sys::signals(), 0, "SIGPIPE")
}

fn close_leaves_requests(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let (cb, buffer) = read(test, from, 10)?;
        settle(test)?;
        sys::close(from).must("close")?;
        same(sys::write(to, b"still"), Ok(5), "write")?;
        same(test.collect(cb)?, Ok(5), "the read")?;
        let mut bytes = [0; 5];
        buffer.read(0, &mut bytes);
        same(&bytes, b"still", "what was read")?;
        // Nothing reads it any more.
        sys::signal(13, sys::SIG_IGN, 0).must("ignore SIGPIPE")?;
        refused(sys::write(to, b"x"), EPIPE, "a write afterwards")
    })
}

fn both_ends_of_an_exited_process_go(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let pid = test.child(|test| {
            let reads = read(test, from, 10).is_ok();
            // For ours it still waits when the process exits; the kernel's own would wait for it.
            let ours = sysctl::served().is_some();
            if !reads || (!ours && sys::write(to, b"x") != Ok(1)) {
                return 1;
            }
            0
        })?;
        sys::close(to).must("close")?;
        test.child_ended(pid, "a child with a read", Ended::Exit(0))?;
        settle(test)?;
        // The child's request kept no end open.
        let count = sys::read(from, &mut [0; 10]).must("read")?;
        check!(count <= 1, "{count} bytes");
        same(sys::read(from, &mut [0; 10]), Ok(0), "the end")
    })
}

fn a_worker_waits_for_nobody(test: &Test) -> Outcome {
    let _one_worker =
        [test.setting("vfs.aio.max_aio_procs", 1)?, test.setting("vfs.aio.target_aio_procs", 1)?];
    each(test, |test, (from, to)| {
        let full = fill_up(to)?;
        let writer = write(test, to, &test.buffer(LARGE))?;
        let (other, _kept) = sys::pipe().must("pipe")?;
        let (reader, _) = read(test, other, 10)?;
        // Each of these needs a worker.
        let fd = test.file("beside", 16)?;
        for _ in 0..20 {
            let cb = test.request(Op::Write, fd, 0, &test.buffer(16));
            same(test.perform(Op::Write, cb)?, Ok(16), "a write to a file")?;
        }
        waits(test, reader, "a read without data")?;
        same(aio::cancel(other, 0), Ok(AIO_CANCELED), "aio_cancel of the read")?;
        same(aio::cancel(to, 0), Ok(AIO_CANCELED), "aio_cancel of the write")?;
        let _ = (aio::return_(reader.addr()), aio::return_(writer.addr()));
        drain(from, full)
    })
}

/// A descriptor and a count, for a thread.
static SHARED: [core::sync::atomic::AtomicUsize; 3] =
    [const { core::sync::atomic::AtomicUsize::new(0) }; 3];

fn another_reader_wins(test: &Test) -> Outcome {
    use core::sync::atomic::Ordering::SeqCst;
    fn reader(fd: usize) {
        let mut bytes = [0u8; 16];
        while let Ok(count @ 1..) = sys::read(fd as i32, &mut bytes) {
            SHARED[0].fetch_add(count, SeqCst);
            if bytes[..count].contains(&0xff) {
                return;
            }
        }
    }
    each(test, |test, (from, to)| {
        const ROUNDS: usize = 500;
        SHARED[0].store(0, SeqCst);
        let rivals = [
            thread::spawn(reader, from as usize).must("a thread")?,
            thread::spawn(reader, from as usize).must("a thread")?,
        ];
        let (mut cb, _) = read(test, from, 4)?;
        let mut ours = 0;
        for _ in 0..ROUNDS {
            same(sys::write(to, &[1]), Ok(1), "write")?;
            if aio::error(cb.addr()) != Ok(EINPROGRESS.0) {
                ours += aio::return_(cb.addr()).must("aio_return")? as usize;
                (cb, _) = read(test, from, 4)?;
            }
        }
        // What is left is had by somebody; then ours still waits, and can be cancelled at once.
        let start = now();
        while SHARED[0].load(SeqCst) + ours < ROUNDS {
            if aio::error(cb.addr()) != Ok(EINPROGRESS.0) {
                ours += aio::return_(cb.addr()).must("aio_return")? as usize;
                (cb, _) = read(test, from, 4)?;
            }
            check!(guest::time::ms_since(start) < 60_000, "bytes are lost");
            sleep_ms(1);
        }
        waits(test, cb, "a read without data")?;
        same(aio::cancel(from, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        cancelled(cb)?;
        same(SHARED[0].load(SeqCst) + ours, ROUNDS, "bytes")?;
        for _ in &rivals {
            same(sys::write(to, &[0xff]), Ok(1), "write")?;
            let start = now();
            while SHARED[0].load(SeqCst) + ours == ROUNDS {
                check!(guest::time::ms_since(start) < 60_000, "a reader is stuck");
                sleep_ms(1);
            }
        }
        for rival in rivals {
            rival.join();
        }
        Ok(())
    })
}

/// Writes as much as SHARED says, in one call that may lend its pages.
fn lender(fd: usize) {
    use core::sync::atomic::Ordering::SeqCst;
    let len = SHARED[1].load(SeqCst);
    let Ok(memory) = Region::map(len) else { return };
    memory.fill(7);
    let _ = sys::call(4, [fd, memory.addr(), len, 0, 0, 0]);
    SHARED[2].fetch_add(1, SeqCst);
    let _ = memory.unmap();
}

fn another_writers_pages_are_waited_for_without_a_worker(test: &Test) -> Outcome {
    use core::sync::atomic::Ordering::SeqCst;
    const LENT: usize = 60_000;
    let _one_worker =
        [test.setting("vfs.aio.max_aio_procs", 1)?, test.setting("vfs.aio.target_aio_procs", 1)?];
    each(test, |test, (from, to)| {
        SHARED[1].store(LENT, SeqCst);
        SHARED[2].store(0, SeqCst);
        let rival = thread::spawn(lender, to as usize).must("a thread")?;
        same(sys::poll_in(from, 30_000), Ok(true), "the other's write")?;
        let first = write(test, to, &test.buffer(100))?;
        let second = write(test, to, &patterned(test, LARGE, 0))?;
        waits(test, first, "a write behind lent pages")?;
        same(aio::cancel(to, first.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        cancelled(first)?;
        waits(test, second, "another")?;
        drain(from, LENT)?;
        rival.join();
        take(from, LARGE)?;
        same(test.collect(second)?, Ok(LARGE as i64), "the second")
    })
}

fn many_large_writers_do_not_catch_a_worker(test: &Test) -> Outcome {
    use core::sync::atomic::Ordering::SeqCst;
    const ROUNDS: usize = 150;
    const LENT: usize = 20_000;
    const OURS: usize = 3000;
    let _one_worker =
        [test.setting("vfs.aio.max_aio_procs", 1)?, test.setting("vfs.aio.target_aio_procs", 1)?];
    fn writers(fd: usize) {
        for _ in 0..ROUNDS {
            lender(fd);
        }
    }
    each(test, |test, (from, to)| {
        SHARED[1].store(LENT, SeqCst);
        SHARED[2].store(0, SeqCst);
        let rivals = [
            thread::spawn(writers, to as usize).must("a thread")?,
            thread::spawn(writers, to as usize).must("a thread")?,
        ];
        let buffer = test.buffer(OURS);
        let cb = test.request(Op::Write, to, 0, &buffer);
        test.submit(Op::Write, cb)?;
        let (mut left, mut sent) = (2 * ROUNDS * LENT + OURS, 1);
        let mut bytes = [0u8; 4096];
        while left > 0 {
            let count = sys::read(from, &mut bytes).must("read")?;
            check!(count > 0, "the end");
            left -= count;
            // Where ours always comes first, the rivals wait until there is no more of it.
            if aio::error(cb.addr()) != Ok(EINPROGRESS.0)
                && SHARED[2].load(SeqCst) < 2 * ROUNDS
                && sent < 10 * ROUNDS
            {
                same(aio::return_(cb.addr()), Ok(OURS as i64), "a write of ours")?;
                test.prepare(cb, Op::Write, to, 0, &buffer);
                test.submit(Op::Write, cb)?;
                sent += 1;
                left += OURS;
            }
        }
        for rival in rivals {
            rival.join();
        }
        same(test.collect(cb)?, Ok(OURS as i64), "the last write of ours")?;
        check!(sent > 1, "ours never came in between");
        settle(test)
    })
}

fn two_processes_share_a_pipe(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        const EACH: usize = 50;
        let pid = test.child(|test| {
            for _ in 0..EACH {
                if read(test, from, 8).is_err() {
                    return 1;
                }
            }
            // They are the oldest; the other's come after.
            if sys::write(to, b"go").is_err() {
                return 2;
            }
            for _ in 0..EACH {
                match aio::waitcomplete(None).result {
                    Ok(1..) => {}
                    _ => return 3,
                }
            }
            0
        })?;
        let start = now();
        let mut sent = 2;
        loop {
            match sys::wait(pid, sys::WNOHANG).must("wait")? {
                Some((_, ended)) => {
                    same(ended, Ended::Exit(0), "the other process")?;
                    break;
                }
                None => {
                    check!(guest::time::ms_since(start) < 60_000, "the other process does not end");
                    sys::write(to, &[1; 8]).must("write")?;
                    sent += 8;
                    sleep_ms(1);
                }
            }
        }
        check!(sent > EACH, "fewer bytes than reads");
        Ok(())
    })
}

fn memory_that_is_gone_is_efault(test: &Test) -> Outcome {
    each(test, |test, (from, to)| {
        let buffer = Region::map(4096).must("mmap")?;
        let reader = test.request(Op::Read, from, 0, &buffer);
        test.submit(Op::Read, reader)?;
        buffer.unmap().must("munmap")?;
        sys::write(to, b"hello").must("write")?;
        same(test.collect(reader)?, Err(EFAULT), "a read")?;
        // Nothing is lost by it.
        let (cb, _) = read(test, from, 10)?;
        same(test.collect(cb)?, Ok(5), "a read afterwards")?;
        let buffer = Region::map(4096).must("mmap")?;
        let writer = test.request(Op::Write, to, 0, &buffer);
        buffer.unmap().must("munmap")?;
        test.submit(Op::Write, writer)?;
        same(test.collect(writer)?, Err(EFAULT), "a write")
    })
}

fn park_wins_over_unsafe(test: &Test) -> Outcome {
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    a_parked_request_is_cancelled(test)?;
    a_worker_waits_for_nobody(test)
}

fn a_switch_that_goes_leaves_what_waits(test: &Test) -> Outcome {
    let (from, to) = sys::pipe().must("pipe")?;
    let allowed = allow(test)?;
    let (cb, _) = read(test, from, 10)?;
    waits(test, cb, "a read without data")?;
    drop(allowed);
    let next = test.request(Op::Read, from, 0, &test.buffer(10));
    refused(Op::Read.submit(next.addr()), EOPNOTSUPP, "aio_read")?;
    sys::write(to, b"xy").must("write")?;
    same(test.collect(cb)?, Ok(2), "the read")
}

fn a_terminal_is_refused(test: &Test) -> Outcome {
    let _allowed = allow(test)?;
    // posix_openpt(2), O_RDWR.
    let Ok(fd) = sys::call(504, [2, 0, 0, 0, 0, 0]) else {
        return skip(format_args!("no terminal to be had"));
    };
    for op in [Op::Read, Op::Write] {
        let cb = test.request(op, fd as i32, 0, &test.buffer(10));
        refused(op.submit(cb.addr()), EOPNOTSUPP, "a request on a terminal")?;
    }
    Ok(())
}

fn a_sync_is_refused(test: &Test) -> Outcome {
    let _allowed =
        if sysctl::served().is_some() { Some(test.setting("vfs.aio.rs.park", 1)?) } else { None };
    let (from, _to) = fifo(test, c"fifo")?;
    let cb = test.request(Op::Read, from, 0, &test.buffer(10));
    refused(aio::fsync(sys::O_SYNC, cb.addr()), EOPNOTSUPP, "aio_fsync")
}
