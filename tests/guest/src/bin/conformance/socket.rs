// SPDX-License-Identifier: BSD-2-Clause
//! Requests on sockets: they wait without a worker until the socket is ready.

use crate::harness::{Must, OPS, Op, Outcome, Stop, Test, fail, refused, same};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use guest::aio::{self, AIO_CANCELED, AIO_NOTCANCELED, LIO_NOWAIT, LIO_WAIT, Sigevent};
use guest::errno::{EAGAIN, EBADF, ECANCELED, EINPROGRESS, EINVAL, EPIPE};
use guest::mem::Region;
use guest::signal::SIGRTMIN;
use guest::sys::{self, Ended, Timespec};
use guest::thread;

cases! { "socket":
    a_read_waits_for_data,
    a_read_gets_what_is_there,
    the_end_reads_as_zero,
    the_offset_does_not_matter,
    reads_are_done_in_order,
    writes_are_done_in_order,
    a_write_waits_for_room,
    a_write_to_a_nonblocking_socket_may_be_short,
    an_idle_request_is_cancelled,
    all_idle_requests_are_cancelled,
    a_partly_written_request_ends_short,
    f23_of_two_reads_for_one_byte_the_other_can_be_cancelled,
    f24_a_large_write_is_neither_cut_nor_doubled,
    a_datagram_is_read_whole,
    writing_to_nobody_is_epipe_and_sigpipe,
    so_nosigpipe_keeps_sigpipe_away,
    f25_a_listening_socket_is_refused,
    f25_listening_with_requests_is_refused,
    close_does_not_disturb,
    every_notification_works,
    a_list_of_sockets_and_files_is_one_list,
    exit_with_idle_requests_leaves_nothing,
    many_sockets_do_not_mix,
}

fn pair() -> Result<(i32, i32), Stop> {
    sys::socketpair().must("socketpair")
}

fn send(fd: i32, bytes: &[u8]) -> Outcome {
    same(sys::write(fd, bytes), Ok(bytes.len()), "write to the other end")
}

fn holds(buffer: &Region, wanted: &[u8]) -> Outcome {
    let mut bytes = [0u8; 64];
    buffer.read(0, &mut bytes[..wanted.len()]);
    same(&bytes[..wanted.len()], wanted, "what was read")
}

fn a_read_waits_for_data(test: &Test) -> Outcome {
    for op in [Op::Read, Op::Readv] {
        let (one, two) = pair()?;
        let buffer = test.buffer(50);
        let cb = test.request(op, one, 0, &buffer);
        test.submit(op, cb)?;
        guest::time::sleep_ms(50);
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
        send(two, b"now")?;
        same(test.collect(cb)?, Ok(3), "the read")?;
        holds(&buffer, b"now")?;
    }
    Ok(())
}

fn a_read_gets_what_is_there(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    send(two, b"seven b")?;
    let buffer = test.buffer(4);
    let cb = test.request(Op::Read, one, 0, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(4), "a read of less")?;
    holds(&buffer, b"seve")?;
    let cb = test.request(Op::Read, one, 0, &test.buffer(50));
    same(test.perform(Op::Read, cb)?, Ok(3), "a read of more")
}

fn the_end_reads_as_zero(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let cb = test.request(Op::Read, one, 0, &test.buffer(4));
    test.submit(Op::Read, cb)?;
    sys::close(two).must("close")?;
    same(test.collect(cb)?, Ok(0), "a read that waits")?;
    same(test.perform(Op::Read, cb)?, Ok(0), "a read after the end")
}

fn the_offset_does_not_matter(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    for offset in [1, 1 << 40, i64::MAX] {
        send(two, b"data")?;
        let cb = test.request(Op::Read, one, offset, &test.buffer(50));
        same(test.perform(Op::Read, cb)?, Ok(4), "a read")?;
    }
    for op in OPS {
        let cb = test.request(op, one, -1, &test.buffer(50));
        refused(op.submit(cb.addr()), EINVAL, "a negative offset")?;
    }
    Ok(())
}

fn reads_are_done_in_order(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let buffers = [(); 5].map(|()| test.buffer(4));
    let blocks = buffers.map(|buffer| test.request(Op::Read, one, 0, &buffer));
    for cb in blocks {
        test.submit(Op::Read, cb)?;
    }
    for index in 0..5 {
        send(two, &[b'a' + index as u8; 4])?;
        same(test.collect(blocks[index])?, Ok(4), "a read")?;
        holds(&buffers[index], &[b'a' + index as u8; 4])?;
        for cb in &blocks[index + 1..] {
            same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "a later read")?;
        }
    }
    Ok(())
}

fn writes_are_done_in_order(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let mut blocks = [None; 20];
    for (index, block) in blocks.iter_mut().enumerate() {
        let buffer = test.buffer(1000);
        buffer.fill(index as u8);
        let op = if index % 2 == 0 { Op::Write } else { Op::Writev };
        let cb = test.request(op, one, 0, &buffer);
        test.submit(op, cb)?;
        *block = Some(cb);
    }
    let mut at = 0;
    let mut bytes = [0u8; 3000];
    while at < 20_000 {
        let count = sys::read(two, &mut bytes).must("read")?;
        check!(count > 0, "the end after {at} bytes");
        for &byte in &bytes[..count] {
            check!(usize::from(byte) == at / 1000, "byte {at} is of write {byte}");
            at += 1;
        }
    }
    for cb in blocks.into_iter().flatten() {
        same(test.collect(cb)?, Ok(1000), "a write")?;
    }
    Ok(())
}

const LARGE: usize = 1 << 20;

/// Reads a number of bytes, each of which must be the pattern's.
fn read_pattern(fd: i32, len: usize) -> Outcome {
    let mut at = 0;
    let mut bytes = [0u8; 4096];
    while at < len {
        let count = sys::read(fd, &mut bytes).must("read")?;
        check!(count > 0, "the end after {at} bytes");
        for &byte in &bytes[..count] {
            check!(byte == crate::harness::pattern(at), "byte {at} is wrong");
            at += 1;
        }
    }
    check!(at == len, "{at} bytes came instead of {len}");
    Ok(())
}

fn patterned(test: &Test, len: usize) -> Region {
    let buffer = test.buffer(len);
    for word in 0..len / 8 {
        buffer.set_word(word * 8, guest::rng::mix(word as u64));
    }
    buffer
}

fn a_write_waits_for_room(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let cb = test.request(Op::Write, one, 0, &patterned(test, LARGE));
    test.submit(Op::Write, cb)?;
    guest::time::sleep_ms(50);
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
    read_pattern(two, LARGE)?;
    same(test.collect(cb)?, Ok(LARGE as i64), "the write")
}

fn a_write_to_a_nonblocking_socket_may_be_short(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    sys::set_nonblocking(one).must("fcntl")?;
    let cb = test.request(Op::Write, one, 0, &patterned(test, LARGE));
    let count = match test.perform(Op::Write, cb)? {
        Ok(count) if count > 0 && count <= LARGE as i64 => count as usize,
        other => return fail(format_args!("the write: {other:?}")),
    };
    sys::close(one).must("close")?;
    read_pattern(two, count)?;
    same(sys::read(two, &mut [0; 8]), Ok(0), "the end")
}

fn an_idle_request_is_cancelled(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    for op in [Op::Read, Op::Readv] {
        let cb = test.request(op, one, 0, &test.buffer(50));
        test.submit(op, cb)?;
        same(aio::cancel(one, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        same(aio::error(cb.addr()), Ok(ECANCELED.0), "aio_error")?;
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    // It took nothing.
    send(two, b"rest")?;
    let cb = test.request(Op::Read, one, 0, &test.buffer(50));
    same(test.perform(Op::Read, cb)?, Ok(4), "a read after it")
}

fn all_idle_requests_are_cancelled(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let blocks = [(); 5].map(|()| test.request(Op::Read, one, 0, &test.buffer(50)));
    for cb in blocks {
        test.submit(Op::Read, cb)?;
    }
    same(aio::cancel(two, 0), Ok(aio::AIO_ALLDONE), "of the other end")?;
    same(aio::cancel(one, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    for cb in blocks {
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    Ok(())
}

fn a_partly_written_request_ends_short(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let cb = test.request(Op::Write, one, 0, &patterned(test, LARGE));
    test.submit(Op::Write, cb)?;
    same(sys::poll_in(two, 60_000), Ok(true), "poll")?;
    // It has filled the socket when it waits again.
    guest::time::sleep_ms(100);
    same(aio::cancel(one, cb.addr()), Ok(AIO_NOTCANCELED), "aio_cancel")?;
    let count = match test.collect(cb)? {
        Ok(count) if count > 0 && count < LARGE as i64 => count as usize,
        other => return fail(format_args!("the write: {other:?}")),
    };
    sys::close(one).must("close")?;
    read_pattern(two, count)?;
    same(sys::read(two, &mut [0; 8]), Ok(0), "the end")
}

fn f23_of_two_reads_for_one_byte_the_other_can_be_cancelled(test: &Test) -> Outcome {
    for _ in 0..50 {
        let (one, two) = pair()?;
        let blocks = [(); 2].map(|()| test.request(Op::Read, one, 0, &test.buffer(1)));
        for cb in blocks {
            test.submit(Op::Read, cb)?;
        }
        send(two, b"x")?;
        same(test.collect(blocks[0])?, Ok(1), "the first read")?;
        same(aio::cancel(one, blocks[1].addr()), Ok(AIO_CANCELED), "aio_cancel")?;
        refused(aio::return_(blocks[1].addr()), ECANCELED, "the second read")?;
        for fd in [one, two] {
            sys::close(fd).must("close")?;
        }
    }
    Ok(())
}

fn f24_a_large_write_is_neither_cut_nor_doubled(test: &Test) -> Outcome {
    let data = patterned(test, LARGE);
    let pieces = [data.part(0, 1 << 17), data.part(1 << 17, 8), data.part((1 << 17) + 8, 0)];
    let rest = data.part((1 << 17) + 8, LARGE - (1 << 17) - 8);
    for vectored in [false, true] {
        let (one, two) = pair()?;
        let (op, cb) = if vectored {
            let pieces = [pieces[0], pieces[1], pieces[2], rest];
            (Op::Writev, test.vectored(one, 0, &pieces))
        } else {
            (Op::Write, test.request(Op::Write, one, 0, &data))
        };
        test.submit(op, cb)?;
        read_pattern(two, LARGE)?;
        same(test.collect(cb)?, Ok(LARGE as i64), "the write")?;
        sys::close(one).must("close")?;
        same(sys::read(two, &mut [0; 8]), Ok(0), "the end")?;
    }
    Ok(())
}

fn a_datagram_is_read_whole(test: &Test) -> Outcome {
    let (one, two) = sys::datagram_pair().must("socketpair")?;
    let buffers = [test.buffer(50), test.buffer(2)];
    let blocks = buffers.map(|buffer| test.request(Op::Read, one, 0, &buffer));
    for cb in blocks {
        test.submit(Op::Read, cb)?;
    }
    send(two, b"first")?;
    send(two, b"second")?;
    same(test.collect(blocks[0])?, Ok(5), "the first")?;
    same(test.collect(blocks[1])?, Ok(2), "the second, cut")?;
    holds(&buffers[0], b"first")?;
    holds(&buffers[1], b"se")?;
    let cb = test.request(Op::Write, two, 0, &buffers[0]);
    same(test.perform(Op::Write, cb)?, Ok(50), "a datagram written")?;
    same(sys::read(one, &mut [0; 64]), Ok(50), "read")
}

/// Writes to a socket that nobody reads; whether SIGPIPE is pending then.
fn to_nobody(test: &Test, nosigpipe: bool) -> Result<bool, Stop> {
    let signal = Signal::new(sys::SIGPIPE)?;
    let (one, two) = pair()?;
    if nosigpipe {
        sys::set_socket_option(one, sys::SO_NOSIGPIPE, 1).must("setsockopt")?;
    }
    sys::close(two).must("close")?;
    let cb = test.request(Op::Write, one, 0, &test.buffer(50));
    refused(test.perform(Op::Write, cb)?, EPIPE, "the write")?;
    signal.pending()
}

fn writing_to_nobody_is_epipe_and_sigpipe(test: &Test) -> Outcome {
    same(to_nobody(test, false)?, true, "whether SIGPIPE is pending")
}

fn so_nosigpipe_keeps_sigpipe_away(test: &Test) -> Outcome {
    same(to_nobody(test, true)?, false, "whether SIGPIPE is pending")
}

fn f25_a_listening_socket_is_refused(test: &Test) -> Outcome {
    let fd = sys::local_socket(1).must("socket")?;
    sys::bind_local(fd, c"name").must("bind")?;
    sys::listen(fd).must("listen")?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(50));
        refused(op.submit(cb.addr()), EINVAL, "submit")?;
        same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    }
    same(aio::cancel(fd, 0), Ok(aio::AIO_ALLDONE), "aio_cancel")
}

fn f25_listening_with_requests_is_refused(test: &Test) -> Outcome {
    let fd = sys::local_socket(1).must("socket")?;
    sys::bind_local(fd, c"name").must("bind")?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(50));
    test.submit(Op::Read, cb)?;
    // A read of a socket without a partner may end at once.
    if aio::error(cb.addr()) == Ok(EINPROGRESS.0) {
        refused(sys::listen(fd), EINVAL, "listen")?;
        same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    }
    let _ = aio::return_(cb.addr());
    sys::listen(fd).must("listen afterwards")
}

fn close_does_not_disturb(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let buffer = test.buffer(50);
    let cb = test.request(Op::Read, one, 0, &buffer);
    test.submit(Op::Read, cb)?;
    sys::close(one).must("close")?;
    refused(aio::cancel(one, cb.addr()), EBADF, "aio_cancel")?;
    send(two, b"late")?;
    same(test.collect(cb)?, Ok(4), "the read")?;
    holds(&buffer, b"late")?;
    // With the request collected nothing holds the socket any longer.
    sys::signal(sys::SIGPIPE, sys::SIG_IGN, 0).must("sigaction")?;
    same(sys::write(two, b"x"), Err(EPIPE), "write")
}

fn every_notification_works(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    let (one, two) = pair()?;
    let tid = sys::thr_self().must("thr_self")?;
    let buffer = test.buffer(50);
    for sig in [Sigevent::signal(signal.0, 8), Sigevent::thread(signal.0, 8, tid)] {
        let cb = test.notified(Op::Read, one, &buffer, sig);
        test.submit(Op::Read, cb)?;
        check!(!signal.pending()?, "a signal before there is data");
        send(two, b"data")?;
        signal.expect(8)?;
        same(aio::return_(cb.addr()), Ok(4), "aio_return")?;
    }
    let cb = test.notified(Op::Read, one, &buffer, Sigevent::kevent(kq.0, 9, 0));
    test.submit(Op::Read, cb)?;
    kq.empty()?;
    send(two, b"data")?;
    kq.expect(cb, 0, 9, 0)?;
    same(aio::return_(cb.addr()), Ok(4), "aio_return")?;
    test.submit(Op::Read, cb)?;
    same(aio::cancel(one, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    kq.expect(cb, i64::from(ECANCELED.0), 9, 0)?;
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    kq.none()
}

fn writes_soon(fd: usize) {
    guest::time::sleep_ms(100);
    let _ = sys::write(fd as i32, b"soon");
}

fn a_list_of_sockets_and_files_is_one_list(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let (one, two) = pair()?;
    let file = test.entry(Op::Read, fd, 0, &test.buffer(10));
    let socket = test.entry(Op::Read, one, 0, &test.buffer(10));
    let list = test.list([file, socket]);
    let helper = thread::spawn(writes_soon, two as usize).must("thr_new")?;
    same(list.submit(LIO_WAIT, 0), Ok(()), "lio_listio")?;
    helper.join();
    same(aio::return_(file.addr()), Ok(10), "the file")?;
    same(aio::return_(socket.addr()), Ok(4), "the socket")?;
    let sig = test.sigevent(Sigevent::kevent(kq.0, 5, 0));
    same(list.submit(LIO_NOWAIT, sig), Ok(()), "lio_listio")?;
    same(test.done(file)?, 0, "the file")?;
    kq.none()?;
    send(two, b"data")?;
    kq.expect_list(&list, 5)?;
    same(aio::return_(file.addr()), Ok(10), "the file")?;
    same(aio::return_(socket.addr()), Ok(4), "the socket")?;
    kq.none()
}

fn exit_with_idle_requests_leaves_nothing(test: &Test) -> Outcome {
    for how in 0..2 {
        let (one, two) = pair()?;
        let count = guest::sysctl::get("vfs.aio.num_queue_count");
        let wanted = if how == 0 { Ended::Exit(0) } else { Ended::Signal(sys::SIGKILL) };
        let child = test.child(|test| {
            for _ in 0..20 {
                let cb = test.request(Op::Read, one, 0, &test.buffer(50));
                if test.submit(Op::Read, cb).is_err() {
                    return 1;
                }
            }
            if how == 1 {
                let _ = sys::kill(sys::getpid(), sys::SIGKILL);
            }
            0
        })?;
        test.child_ended(child, "the child", wanted)?;
        same(guest::sysctl::get("vfs.aio.num_queue_count"), count, "requests queued")?;
        // What comes now is not taken by a request of the dead.
        send(two, b"data")?;
        let cb = test.request(Op::Read, one, 0, &test.buffer(50));
        same(test.perform(Op::Read, cb)?, Ok(4), "a read")?;
        for fd in [one, two] {
            sys::close(fd).must("close")?;
        }
    }
    Ok(())
}

fn many_sockets_do_not_mix(test: &Test) -> Outcome {
    let mut pairs = [(0, 0); 40];
    for pair_of in &mut pairs {
        *pair_of = pair()?;
    }
    let mut blocks = [None; 40];
    for (index, block) in blocks.iter_mut().enumerate() {
        let buffer = test.buffer(8);
        let cb = test.request(Op::Read, pairs[index].0, 0, &buffer);
        test.submit(Op::Read, cb)?;
        *block = Some((cb, buffer));
    }
    for step in 0..40 {
        let index = step * 7 % 40;
        send(pairs[index].1, &[index as u8; 8])?;
    }
    for _ in 0..40 {
        let done = aio::waitcomplete(Some(Timespec::from_ms(60_000)));
        let which = blocks.iter().flatten().position(|(cb, _)| cb.addr() == done.cb);
        let Some(index) = which else { return fail(format_args!("collected {done:?}")) };
        same(done.result, Ok(8), "a read")?;
        if let Some((_, buffer)) = blocks[index] {
            holds(&buffer, &[index as u8; 8])?;
        }
    }
    let none = aio::waitcomplete(Some(Timespec::default()));
    same(none.result, Err(EAGAIN), "aio_waitcomplete")
}
