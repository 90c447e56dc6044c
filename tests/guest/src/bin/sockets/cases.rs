// SPDX-License-Identifier: BSD-2-Clause
//! Small cases: one or two sockets, few requests.

use crate::ends::{self, Ends, LARGE, cancelled, fill_up, patterned, read, take, waits, write};
use crate::harness::{
    Must, Op, Outcome, Stop, Test, accepted, fail, holds_pattern, pattern, refused, same, skip,
};
use crate::{cases, check, on_ends};
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::SeqCst;
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, AIO_NOTCANCELED, Cb};
use guest::errno::{
    EAGAIN, ECONNRESET, EINPROGRESS, EINVAL, ENOSYS, EPERM, EPIPE, EPROTONOSUPPORT,
};
use guest::mem::{PAGE, Region};
use guest::net::{self, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET};
use guest::sys::{self, Fork};
use guest::sysctl;
use guest::thread;
use guest::time::{ms_since, now, sleep_ms};

cases! { "socket":
    a_read_gets_what_is_there,
    a_read_waits_for_data,
    what_need_not_wait_is_done_in_the_call,
    a_read_is_not_larger_than_asked_for,
    a_read_of_nothing_takes_nothing,
    the_end_gives_0,
    shutdown_ends_reads,
    shutdown_ends_writes,
    a_blocking_write_sends_everything,
    a_vectored_blocking_write_sends_everything,
    a_nonblocking_write_may_be_short,
    a_nonblocking_read_waits_all_the_same,
    reads_are_served_in_order,
    writes_are_served_in_order,
    a_parked_request_is_cancelled,
    one_of_many_is_cancelled,
    all_of_a_descriptor_are_cancelled,
    both_directions_are_cancelled_together,
    what_waits_behind_a_cancelled_request_goes_on,
    a_cancelled_write_that_began_is_short,
    messages_keep_their_bounds,
    a_message_waits_for_room,
    a_small_message_behind_a_large_one_goes_when_that_is_cancelled,
    tcp_moves_both_ways,
    udp_is_read_and_written,
    sctp_is_read_and_written,
    a_reset_ends_requests,
    a_broken_connection_signals,
    a_broken_connection_without_sigpipe,
    close_leaves_requests,
    a_listening_socket_is_einval,
    listen_is_einval_while_a_request_waits,
    listen_is_fine_after_a_cancel,
    listen_is_fine_after_a_read,
    low_water_is_waited_for,
    a_socket_keeps_its_network_stack,
    a_jail_that_is_removed_leaves_nothing,
    a_jails_sockets_outlive_it,
    vectored_both_ways,
    a_list_of_sockets,
    two_processes_share_a_socket,
    a_processs_end_leaves_the_others_requests,
    memory_that_is_gone_is_efault,
    a_blocking_reader_beside_does_no_harm,
    reaping_and_submitting_in_turn_loses_nothing,
    what_two_threads_submit_at_once_is_done,
    f23_two_reads_one_byte_cancel_both,
    f24_a_large_write_is_complete,
    f25_listen_and_aio_race,
    f26_a_message_is_sent_whole_or_not,
    f27_a_splice_of_reads_and_writes_is_consistent,
}

/// A stream pair of the local domain.
fn pair() -> Result<Ends, Stop> {
    net::pair(SOCK_STREAM).must("socketpair")
}

/// A direction that is ready is served by the thread that submits, unless that is switched off.
fn what_need_not_wait_is_done_in_the_call(test: &Test) -> Outcome {
    const INLINE: &str = "vfs.aio.rs.inline";
    const COUNT: &str = "vfs.aio.rs.socket.inline";
    if sysctl::get(INLINE).is_none() {
        return skip(format_args!("the engine is not loaded"));
    }
    let (from, to) = pair()?;
    let bytes = patterned(test, 100, 0);
    for (inline, done) in [(1, 2u64), (0, 0)] {
        let _setting = test.setting(INLINE, inline)?;
        let before = sysctl::get(COUNT);
        let sent = write(test, to, &bytes)?;
        if inline == 1 {
            same(aio::error(sent.addr()), Ok(0), "aio_error of a write that has room")?;
        }
        same(test.collect(sent)?, Ok(100), "a write")?;
        let (got, buffer) = read(test, from, 200)?;
        if inline == 1 {
            same(aio::error(got.addr()), Ok(0), "aio_error of a read of what is there")?;
        }
        same(test.collect(got)?, Ok(100), "a read")?;
        holds_pattern(&buffer, 100, 0)?;
        let count = sysctl::get(COUNT).zip(before).map(|(after, before)| after - before);
        same(count, Some(done), "what is counted as done in the call")?;
    }
    Ok(())
}

/// What other requests of a case, that are to go through, are made on.
pub fn of_own() -> Result<Ends, Stop> {
    pair()
}

fn on_a_pair(test: &Test, check: impl Fn(&Test, Ends) -> Outcome) -> Outcome {
    check(test, pair()?)
}

on_ends! { on_a_pair }

fn all_of_a_descriptor_are_cancelled(test: &Test) -> Outcome {
    let ((one, _a), (other, _b)) = (pair()?, pair()?);
    ends::all_of_one_are_cancelled(test, one, other)
}

fn both_directions_are_cancelled_together(test: &Test) -> Outcome {
    let (one, _two) = pair()?;
    ends::both_ways_of_one_are_cancelled(test, one)
}

fn first_byte(buffer: &Region) -> u8 {
    let mut byte = [0];
    buffer.read(0, &mut byte);
    byte[0]
}

fn a_read_is_not_larger_than_asked_for(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    sys::write(two, b"hello").must("write")?;
    for wanted in [2, 2, 1] {
        let (cb, _) = read(test, one, wanted)?;
        same(test.collect(cb)?, Ok(wanted as i64), "a read")?;
    }
    Ok(())
}

fn a_read_of_nothing_takes_nothing(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    sys::write(two, b"hello").must("write")?;
    let (cb, _) = read(test, one, 0)?;
    same(test.collect(cb)?, Ok(0), "a read of 0 bytes")?;
    let (cb, _) = read(test, one, 100)?;
    same(test.collect(cb)?, Ok(5), "a read")
}

fn shutdown_ends_reads(test: &Test) -> Outcome {
    for how in [net::SHUT_RD, net::SHUT_RDWR] {
        let (one, _two) = pair()?;
        let (cb, _) = read(test, one, 10)?;
        net::shutdown(one, how).must("shutdown")?;
        same(test.collect(cb)?, Ok(0), "a read that waited")?;
    }
    Ok(())
}

fn shutdown_ends_writes(test: &Test) -> Outcome {
    sys::signal(13, sys::SIG_IGN, 0).must("ignore SIGPIPE")?;
    let (one, _two) = pair()?;
    fill_up(one)?;
    let cb = write(test, one, &test.buffer(100))?;
    waits(test, cb, "a write without room")?;
    net::shutdown(one, net::SHUT_WR).must("shutdown")?;
    same(test.collect(cb)?, Err(EPIPE), "a write that waited")
}

fn a_parked_request_is_cancelled(test: &Test) -> Outcome {
    for kind in [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET] {
        let (one, two) = net::pair(kind).must("socketpair")?;
        for _ in 0..3 {
            let (cb, _) = read(test, one, 10)?;
            same(aio::cancel(one, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
            cancelled(cb)?;
            same(aio::cancel(one, cb.addr()), Ok(AIO_ALLDONE), "aio_cancel again")?;
        }
        sys::write(two, b"x").must("write")?;
        let (cb, _) = read(test, one, 10)?;
        same(test.collect(cb)?, Ok(1), "a read afterwards")?;
    }
    Ok(())
}

fn a_cancelled_write_that_began_is_short(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let cb = write(test, one, &patterned(test, LARGE, 0))?;
    take(two, 1)?;
    // It has begun, and cannot be over.
    same(aio::cancel(one, cb.addr()), Ok(AIO_NOTCANCELED), "aio_cancel")?;
    let done = match test.collect(cb)? {
        Ok(done @ 1..) => done as usize,
        other => return fail(format_args!("the write: {other:?}")),
    };
    check!(done < LARGE, "it was not short");
    net::shutdown(one, net::SHUT_WR).must("shutdown")?;
    let (mut bytes, mut rest) = ([0u8; 4096], 0);
    loop {
        let count = sys::read(two, &mut bytes).must("read")?;
        if count == 0 {
            break;
        }
        for (index, &byte) in bytes[..count].iter().enumerate() {
            check!(byte == pattern(1 + rest + index), "byte {} is wrong", 1 + rest + index);
        }
        rest += count;
    }
    same(1 + rest, done, "bytes that came")
}

fn messages_keep_their_bounds(test: &Test) -> Outcome {
    for kind in [SOCK_DGRAM, SOCK_SEQPACKET] {
        let (one, two) = net::pair(kind).must("socketpair")?;
        let (first, _) = read(test, one, 100)?;
        let (second, _) = read(test, one, 3)?;
        let (third, _) = read(test, one, 100)?;
        for len in [10, 20, 30] {
            let cb = write(test, two, &test.buffer(len))?;
            same(test.collect(cb)?, Ok(len as i64), "a write")?;
        }
        same(test.collect(first)?, Ok(10), "the first message")?;
        same(test.collect(second)?, Ok(3), "a part of the second")?;
        // A sequenced packet's rest stays; a datagram's does not.
        let rest = if kind == SOCK_DGRAM { 30 } else { 17 };
        match test.collect(third)? {
            Ok(got) if got == rest || got == 30 => {}
            other => return fail(format_args!("the third read: {other:?}")),
        }
    }
    Ok(())
}

/// Two ends of which the second is full: how many messages of 1,000 bytes it took.
fn full(kind: i32) -> Result<(i32, i32, usize), Stop> {
    let (one, two) = net::pair(kind).must("socketpair")?;
    for fd in [one, two] {
        net::set(fd, SOL_SOCKET, net::SO_SNDBUF, 8192).must("SO_SNDBUF")?;
        net::set(fd, SOL_SOCKET, net::SO_RCVBUF, 8192).must("SO_RCVBUF")?;
    }
    sys::set_nonblocking(one).must("fcntl")?;
    let mut count = 0;
    while sys::write(one, &[0; 1000]).is_ok() {
        count += 1;
    }
    ends::set_blocking(one)?;
    Ok((one, two, count))
}

/// Reads so many messages of 1,000 bytes.
fn drain(fd: i32, count: usize) -> Outcome {
    let mut bytes = [0u8; 8192];
    for _ in 0..count {
        same(sys::read(fd, &mut bytes), Ok(1000), "a message")?;
    }
    Ok(())
}

fn a_message_waits_for_room(test: &Test) -> Outcome {
    let (one, two, count) = full(SOCK_SEQPACKET)?;
    let cb = write(test, one, &patterned(test, 6000, 0))?;
    waits(test, cb, "a message without room")?;
    drain(two, count)?;
    same(test.collect(cb)?, Ok(6000), "the message")?;
    same(sys::read(two, &mut [0u8; 8192]), Ok(6000), "the message")
}

fn a_small_message_behind_a_large_one_goes_when_that_is_cancelled(test: &Test) -> Outcome {
    let (one, two, count) = full(SOCK_SEQPACKET)?;
    let large = write(test, one, &patterned(test, 6000, 0))?;
    let small = write(test, one, &patterned(test, 100, 0))?;
    waits(test, small, "a message behind another")?;
    same(aio::cancel(one, large.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    cancelled(large)?;
    drain(two, count)?;
    same(test.collect(small)?, Ok(100), "the small one")?;
    same(sys::read(two, &mut [0u8; 8192]), Ok(100), "the small message")
}

fn both_ways(test: &Test, one: i32, two: i32) -> Outcome {
    const EACH: usize = 300_000;
    for (from, to) in [(one, two), (two, one)] {
        let writer = write(test, from, &patterned(test, EACH, 0))?;
        let mut done = 0;
        while done < EACH {
            let (cb, buffer) = read(test, to, 65_536)?;
            let count = match test.collect(cb)? {
                Ok(count @ 1..) => count as usize,
                other => return fail(format_args!("a read after {done} bytes: {other:?}")),
            };
            holds_pattern(&buffer, count, done)?;
            done += count;
        }
        same(test.collect(writer)?, Ok(EACH as i64), "the write")?;
    }
    sys::close(one).must("close")?;
    let (cb, _) = read(test, two, 10)?;
    same(test.collect(cb)?, Ok(0), "the end")
}

fn tcp_moves_both_ways(test: &Test) -> Outcome {
    let (one, two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    both_ways(test, one, two)
}

fn sctp_is_read_and_written(test: &Test) -> Outcome {
    let (one, two) = match net::connected(SOCK_STREAM, net::IPPROTO_SCTP) {
        Err(EPROTONOSUPPORT) => return skip(format_args!("no SCTP")),
        other => other.must("a connection")?,
    };
    // One association, messages small enough not to be cut.
    for len in [1, 100, 1000] {
        let (reader, buffer) = read(test, two, 4096)?;
        let writer = write(test, one, &patterned(test, len, 0))?;
        same(test.collect(writer)?, Ok(len as i64), "a write")?;
        same(test.collect(reader)?, Ok(len as i64), "a read")?;
        holds_pattern(&buffer, len, 0)?;
    }
    let (reader, _) = read(test, two, 10)?;
    same(aio::cancel(two, reader.addr()), Ok(AIO_CANCELED), "aio_cancel")
}

fn udp_is_read_and_written(test: &Test) -> Outcome {
    let (one, two) = net::udp_pair().must("two sockets")?;
    for len in [1, 100, 8000] {
        let (reader, buffer) = read(test, two, 9000)?;
        let writer = write(test, one, &patterned(test, len, 0))?;
        same(test.collect(writer)?, Ok(len as i64), "a write")?;
        same(test.collect(reader)?, Ok(len as i64), "a read")?;
        holds_pattern(&buffer, len, 0)?;
    }
    Ok(())
}

fn a_reset_ends_requests(test: &Test) -> Outcome {
    sys::signal(13, sys::SIG_IGN, 0).must("ignore SIGPIPE")?;
    let (one, two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    let (reader, _) = read(test, one, 10)?;
    fill_up(one)?;
    let writer = write(test, one, &test.buffer(LARGE))?;
    net::reset_on_close(two).must("SO_LINGER")?;
    sys::close(two).must("close")?;
    // Whichever comes first is told the error; the other finds the end.
    let reads = test.collect(reader)?;
    let writes = test.collect(writer)?;
    check!(matches!(reads, Ok(0) | Err(ECONNRESET)), "the read: {reads:?}");
    check!(matches!(writes, Err(EPIPE | ECONNRESET)), "the write: {writes:?}");
    check!(reads == Err(ECONNRESET) || writes == Err(ECONNRESET), "nobody was told of the reset");
    Ok(())
}

fn a_broken_connection_signals(test: &Test) -> Outcome {
    sys::count_signals(13, sys::SA_RESTART).must("sigaction")?;
    let (one, two) = pair()?;
    sys::close(two).must("close")?;
    let cb = write(test, one, &test.buffer(10))?;
    same(test.collect(cb)?, Err(EPIPE), "a write")?;
    same(sys::signals(), 1, "SIGPIPE")
}

fn a_broken_connection_without_sigpipe(test: &Test) -> Outcome {
    sys::count_signals(13, sys::SA_RESTART).must("sigaction")?;
    let (one, two) = pair()?;
    net::set(one, SOL_SOCKET, net::SO_NOSIGPIPE, 1).must("SO_NOSIGPIPE")?;
    sys::close(two).must("close")?;
    let cb = write(test, one, &test.buffer(10))?;
    same(test.collect(cb)?, Err(EPIPE), "a write")?;
    same(sys::signals(), 0, "SIGPIPE")
}

fn close_leaves_requests(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let (cb, buffer) = read(test, one, 10)?;
    sys::close(one).must("close")?;
    waits(test, cb, "a read of a closed descriptor")?;
    sys::write(two, b"late").must("write")?;
    same(test.collect(cb)?, Ok(4), "a read")?;
    let mut bytes = [0; 4];
    buffer.read(0, &mut bytes);
    same(&bytes, b"late", "what was read")
}

fn a_listening_socket_is_einval(test: &Test) -> Outcome {
    let (fd, _) = net::listener(SOCK_STREAM, 0, 5).must("a listener")?;
    for op in [Op::Read, Op::Write, Op::Readv, Op::Writev] {
        let cb = test.request(op, fd, 0, &test.buffer(10));
        refused(op.submit(cb.addr()), EINVAL, "a request")?;
        same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    }
    let (one, two) = pair()?;
    sys::write(two, b"x").must("write")?;
    let (cb, _) = read(test, one, 10)?;
    same(test.collect(cb)?, Ok(1), "a request on another socket")
}

/// A TCP socket that has a request, as it is bound but not connected.
fn bound_with_a_read(test: &Test) -> Result<(i32, Cb), Stop> {
    let fd = net::socket(net::AF_INET, SOCK_STREAM, 0).must("socket")?;
    net::bind(fd, &net::Inet::loopback(0)).must("bind")?;
    let (cb, _) = read(test, fd, 10)?;
    Ok((fd, cb))
}

fn listen_is_einval_while_a_request_waits(test: &Test) -> Outcome {
    let (fd, cb) = bound_with_a_read(test)?;
    refused(net::listen(fd, 5), EINVAL, "listen")?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    cancelled(cb)
}

fn listen_is_fine_after_a_cancel(test: &Test) -> Outcome {
    let (fd, cb) = bound_with_a_read(test)?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    cancelled(cb)?;
    same(net::listen(fd, 5), Ok(()), "listen")
}

fn listen_is_fine_after_a_read(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    sys::write(two, b"x").must("write")?;
    let (cb, _) = read(test, one, 10)?;
    same(test.collect(cb)?, Ok(1), "a read")?;
    let fd = net::socket(net::AF_INET, SOCK_STREAM, 0).must("socket")?;
    net::bind(fd, &net::Inet::loopback(0)).must("bind")?;
    same(net::listen(fd, 5), Ok(()), "listen")
}

fn low_water_is_waited_for(test: &Test) -> Outcome {
    let (one, two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    net::set(one, SOL_SOCKET, net::SO_RCVLOWAT, 100).must("SO_RCVLOWAT")?;
    let (cb, _) = read(test, one, 1000)?;
    sys::write(two, &[1; 60]).must("write")?;
    waits(test, cb, "a read below the mark")?;
    sys::write(two, &[2; 60]).must("write")?;
    same(test.collect(cb)?, Ok(120), "a read above the mark")
}

/// Moves the process into a jail with a network stack of its own; the jail's number.
fn own_stack() -> Result<i32, Stop> {
    match net::own_stack() {
        Err(EPERM | EINVAL | ENOSYS) => skip(format_args!("no network stack to be had")),
        other => other.must("a network stack"),
    }
}

/// Workers belong to the host's network stack.
fn a_socket_keeps_its_network_stack(test: &Test) -> Outcome {
    own_stack()?;
    let (one, two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    both_ways(test, one, two)?;
    udp_is_read_and_written(test)?;
    // One that waits when the stack goes with the process.
    let (one, _two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    let (cb, _) = read(test, one, 10)?;
    waits(test, cb, "a read without data")
}

/// What processes tell each other of a jail: its number, or that there is none, and two descriptors.
const NO_JAIL: u64 = 1 << 40;

/// Has the parent know the jail this process has moved into; whether it has.
fn told_jail(shared: &Region) -> bool {
    let told = own_stack().map_or(NO_JAIL, |jail| jail as u64);
    shared.atomic(0).store(told, SeqCst);
    told != NO_JAIL
}

fn a_jail_that_is_removed_leaves_nothing(test: &Test) -> Outcome {
    let before = sysctl::get("vfs.aio.num_queue_count");
    for _ in 0..3 {
        let shared = Region::map_shared(4096).must("mmap")?;
        let pid = test.child(|test| {
            if !told_jail(&shared) {
                return 1;
            }
            for _ in 0..20 {
                let Ok((one, two)) = net::connected(SOCK_STREAM, 0) else { return 2 };
                if fill_up(two).is_err() || write(test, two, &test.buffer(LARGE / 16)).is_err() {
                    return 3;
                }
                let (Ok((from, _to)), Ok(_)) = (net::udp_pair(), read(test, two, 10)) else {
                    return 4;
                };
                if read(test, from, 10).is_err() {
                    return 5;
                }
                let _ = one;
            }
            shared.atomic(8).store(1, SeqCst);
            loop {
                sleep_ms(1000);
            }
        })?;
        let start = now();
        while shared.atomic(8).load(SeqCst) == 0 && shared.atomic(0).load(SeqCst) != NO_JAIL {
            check!(ms_since(start) < 60_000, "the child does not get that far");
            sleep_ms(1);
        }
        let jail = shared.atomic(0).load(SeqCst);
        if jail == NO_JAIL {
            test.child_ended(pid, "a child without a jail", sys::Ended::Exit(1))?;
            return skip(format_args!("no network stack to be had"));
        }
        net::remove_jail(jail as i32).must("jail_remove")?;
        test.child_ended(pid, "the child in the jail", sys::Ended::Signal(sys::SIGKILL))?;
        same(sysctl::get("vfs.aio.num_queue_count"), before, "requests queued")?;
    }
    Ok(())
}

/// The jail is as good as gone when its last process is; its network stack stays with the sockets.
fn a_jails_sockets_outlive_it(test: &Test) -> Outcome {
    let shared = Region::map_shared(4096).must("mmap")?;
    let Some(pid) = sys::fork_with_descriptors_shared().must("rfork")? else {
        if !told_jail(&shared) {
            sys::exit(1);
        }
        let Ok((one, two)) = net::connected(SOCK_STREAM, 0) else { sys::exit(2) };
        shared.set_word(8, one as u64);
        shared.set_word(16, two as u64);
        // A request of a process of the jail, which goes with it.
        sys::exit(i32::from(read(test, one, 10).is_err()))
    };
    test.child_ended(pid, "the child in the jail", sys::Ended::Exit(0)).or_else(
        |stop| match shared.word(0) {
            NO_JAIL => skip(format_args!("no network stack to be had")),
            _ => Err(stop),
        },
    )?;
    let (one, two) = (shared.word(8) as i32, shared.word(16) as i32);
    let (cb, buffer) = read(test, one, 10)?;
    waits(test, cb, "a read without data")?;
    sys::write(two, b"x").must("write")?;
    same(test.collect(cb)?, Ok(1), "a read")?;
    same(first_byte(&buffer), b'x', "what was read")?;
    let (cb, _) = read(test, two, 10)?;
    same(aio::cancel(two, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    cancelled(cb)?;
    both_ways(test, one, two)?;
    // One that waits when the last socket, and the stack with it, goes.
    let (last, _) = read(test, two, 10)?;
    same(test.collect(last)?, Ok(0), "the end")?;
    sys::close(two).must("close")
}

fn vectored_both_ways(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let all = patterned(test, 3000, 0);
    let writer = test.vectored(two, 0, &[all.part(0, 1), all.part(1, 1999), all.part(2000, 1000)]);
    let to = test.buffer(3000);
    let reader = test.vectored(one, 0, &[to.part(0, 1500), to.part(1500, 0), to.part(1500, 1500)]);
    test.submit(Op::Readv, reader)?;
    test.submit(Op::Writev, writer)?;
    same(test.collect(writer)?, Ok(3000), "aio_writev")?;
    same(test.collect(reader)?, Ok(3000), "aio_readv")?;
    holds_pattern(&to, 3000, 0)
}

fn a_list_of_sockets(test: &Test) -> Outcome {
    const COUNT: usize = 40;
    let (one, two) = pair()?;
    let list = test.buffer(COUNT * 8);
    let mut blocks = [None; COUNT];
    for (index, slot) in blocks.iter_mut().enumerate() {
        // Reads first, then the writes that let them end.
        let reads = index < COUNT / 2;
        let op = if reads { Op::Read } else { Op::Write };
        let cb = test.request(op, if reads { one } else { two }, 0, &test.buffer(16));
        let mut block = cb.get();
        block.opcode = if reads { 2 } else { 1 };
        cb.set(block);
        list.set_word(index * 8, cb.addr() as u64);
        *slot = Some(cb);
    }
    // LIO_WAIT.
    same(aio::listio(1, list.addr(), COUNT as i32, 0), Ok(()), "lio_listio")?;
    for cb in blocks.iter().flatten() {
        same(aio::error(cb.addr()), Ok(0), "aio_error")?;
        same(aio::return_(cb.addr()), Ok(16), "aio_return")?;
    }
    Ok(())
}

fn two_processes_share_a_socket(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let (go, ready) = sys::pipe().must("pipe")?;
    let (first, _) = read(test, one, 1)?;
    let pid = test.child(|test| {
        let Ok((cb, buffer)) = read(test, one, 1) else { return 1 };
        if sys::write(ready, b"x").is_err() {
            return 2;
        }
        match test.collect(cb) {
            Ok(Ok(1)) if first_byte(&buffer) == b'b' => 0,
            _ => 3,
        }
    })?;
    let mut byte = [0];
    same(sys::read(go, &mut byte), Ok(1), "the child's word")?;
    sys::write(two, b"ab").must("write")?;
    same(test.collect(first)?, Ok(1), "our read, the first")?;
    test.child_ended(pid, "the child's read, the second", sys::Ended::Exit(0))
}

fn a_processs_end_leaves_the_others_requests(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let (first, _) = read(test, one, 1)?;
    for _ in 0..3 {
        test.in_child("a child with requests", |test| {
            for _ in 0..100 {
                if read(test, one, 1).is_err() {
                    return 1;
                }
            }
            0
        })?;
    }
    let (second, _) = read(test, one, 1)?;
    sys::write(two, b"ab").must("write")?;
    same(test.collect(first)?, Ok(1), "the first")?;
    same(test.collect(second)?, Ok(1), "the last")
}

fn memory_that_is_gone_is_efault(test: &Test) -> Outcome {
    use guest::errno::EFAULT;
    let (one, two) = pair()?;
    let gone = Region::map(8192).must("mmap")?;
    let cb = test.request(Op::Read, one, 0, &gone);
    test.submit(Op::Read, cb)?;
    gone.unmap().must("munmap")?;
    sys::write(two, b"hello").must("write")?;
    same(test.collect(cb)?, Err(EFAULT), "a read")
}

fn a_blocking_reader_beside_does_no_harm(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let pid = match sys::fork().must("fork")? {
        Fork::Child => {
            let mut byte = [0];
            while sys::read(one, &mut byte) == Ok(1) {}
            sys::exit(0)
        }
        Fork::Parent(pid) => pid,
    };
    for _ in 0..50 {
        let (cb, _) = read(test, one, 1)?;
        // The other may be first, any number of times.
        while aio::error(cb.addr()) == Ok(EINPROGRESS.0) {
            sys::write(two, b"a").must("write")?;
            sys::sched_yield();
        }
        same(test.collect(cb)?, Ok(1), "a read")?;
    }
    net::shutdown(two, net::SHUT_WR).must("shutdown")?;
    test.child_ended(pid, "the blocking reader", sys::Ended::Exit(0))
}

fn reaping_and_submitting_in_turn_loses_nothing(test: &Test) -> Outcome {
    let (one, two) = pair()?;
    let buffer = test.buffer(16).part(0, 1);
    let cb = test.block();
    for _ in 0..2000 {
        test.prepare(cb, Op::Read, one, 0, &buffer);
        test.submit(Op::Read, cb)?;
        sys::write(two, b"x").must("write")?;
        same(test.collect(cb)?, Ok(1), "a read")?;
    }
    Ok(())
}

fn what_two_threads_submit_at_once_is_done(test: &Test) -> Outcome {
    static SOCKET: AtomicI32 = AtomicI32::new(-1);
    fn reads(page: usize) {
        let page = Region::shared_at(page, PAGE);
        let cb = Cb::at(&page, 64);
        cb.set(aio::request(SOCKET.load(SeqCst), 0, page.at(1024), 1));
        // The collector sees what came of it.
        let _ = aio::read(cb.addr());
    }
    let (one, two) = pair()?;
    SOCKET.store(one, SeqCst);
    let pages = [(); 2].map(|()| test.buffer(PAGE));
    for _ in 0..100 {
        same(sys::write(two, b"ab"), Ok(2), "write")?;
        // Nothing happens on the socket besides: who reads second is not to wait for more.
        let threads = pages.each_ref().map(|page| thread::spawn(reads, page.addr()));
        for thread in threads {
            thread.must("thr_new")?.join();
        }
        for page in &pages {
            accepted();
            same(test.collect(Cb::at(page, 64))?, Ok(1), "a read")?;
        }
    }
    Ok(())
}

fn f23_two_reads_one_byte_cancel_both(test: &Test) -> Outcome {
    for _ in 0..50 {
        let (one, two) = pair()?;
        let (first, _) = read(test, one, 10)?;
        let (second, _) = read(test, one, 10)?;
        sys::write(two, b"x").must("write")?;
        same(test.collect(first)?, Ok(1), "the first")?;
        same(aio::cancel(one, first.addr()), Ok(AIO_ALLDONE), "aio_cancel of the first")?;
        same(aio::cancel(one, second.addr()), Ok(AIO_CANCELED), "aio_cancel of the second")?;
        cancelled(second)?;
        sys::close(one).must("close")?;
        sys::close(two).must("close")?;
    }
    Ok(())
}

fn f24_a_large_write_is_complete(test: &Test) -> Outcome {
    for size in [1, 2047, 2048, 8191, 8192, 8193, 65_537, 262_143] {
        let (one, two) = pair()?;
        net::set(one, SOL_SOCKET, net::SO_SNDBUF, 4096).must("SO_SNDBUF")?;
        net::set(two, SOL_SOCKET, net::SO_RCVBUF, 4096).must("SO_RCVBUF")?;
        let all = patterned(test, size, 0);
        let cb =
            test.vectored(one, 0, &[all.part(0, size / 3), all.part(size / 3, size - size / 3)]);
        test.submit(Op::Writev, cb)?;
        take(two, size)?;
        same(test.collect(cb)?, Ok(size as i64), "a write")?;
        sys::close(one).must("close")?;
        sys::close(two).must("close")?;
    }
    Ok(())
}

fn f25_listen_and_aio_race(test: &Test) -> Outcome {
    for round in 0..100 {
        let fd = net::socket(net::AF_INET, SOCK_STREAM, 0).must("socket")?;
        net::bind(fd, &net::Inet::loopback(0)).must("bind")?;
        let pid = match sys::fork().must("fork")? {
            Fork::Child => {
                let listened = net::listen(fd, 5);
                sys::exit(i32::from(!matches!(listened, Ok(()) | Err(EINVAL | EAGAIN))))
            }
            Fork::Parent(pid) => pid,
        };
        let op = if round % 2 == 0 { Op::Read } else { Op::Write };
        // Dropped by a failed write, as a socket without a peer does: no signal wanted.
        net::set(fd, SOL_SOCKET, net::SO_NOSIGPIPE, 1).must("SO_NOSIGPIPE")?;
        let cb = test.block();
        cb.set(aio::request(fd, 0, test.buffer(10).addr(), 10));
        match op.submit(cb.addr()) {
            Ok(()) => {
                let _ = aio::cancel(fd, cb.addr()).must("aio_cancel")?;
                let _ = test.collect(cb)?;
            }
            Err(EINVAL) => {}
            Err(error) => return fail(format_args!("a request: {error}")),
        }
        test.child_ended(pid, "listen", sys::Ended::Exit(0))?;
        sys::close(fd).must("close")?;
    }
    Ok(())
}

fn f26_a_message_is_sent_whole_or_not(test: &Test) -> Outcome {
    const COUNT: usize = 60;
    let (one, two) = net::pair(SOCK_SEQPACKET).must("socketpair")?;
    let mut writes = [None; COUNT];
    for (index, slot) in writes.iter_mut().enumerate() {
        *slot = Some(write(test, one, &patterned(test, 1 + index * 67, 0))?);
    }
    let mut bytes = [0u8; 8192];
    for index in 0..COUNT {
        same(sys::read(two, &mut bytes), Ok(1 + index * 67), "a message")?;
    }
    for (index, cb) in writes.iter().flatten().enumerate() {
        same(test.collect(*cb)?, Ok(1 + index as i64 * 67), "a write")?;
    }
    Ok(())
}

fn f27_a_splice_of_reads_and_writes_is_consistent(test: &Test) -> Outcome {
    const TOTAL: usize = 400_000;
    let (one, two) = net::connected(SOCK_STREAM, 0).must("a connection")?;
    let writer = write(test, two, &patterned(test, TOTAL, 0))?;
    let mut done = 0;
    let mut bytes = [0u8; 3000];
    while done < TOTAL {
        // By turns asynchronous and not.
        let (cb, buffer) = read(test, one, 5000)?;
        let count = match test.collect(cb)? {
            Ok(count @ 1..) => count as usize,
            other => return fail(format_args!("a read after {done} bytes: {other:?}")),
        };
        holds_pattern(&buffer, count, done)?;
        done += count;
        if done < TOTAL {
            let wanted = (TOTAL - done).min(bytes.len());
            let count = sys::read(one, &mut bytes[..wanted]).must("read")?;
            for (index, &byte) in bytes[..count].iter().enumerate() {
                check!(byte == pattern(done + index), "byte {} is wrong", done + index);
            }
            done += count;
        }
    }
    same(test.collect(writer)?, Ok(TOTAL as i64), "the write")
}
