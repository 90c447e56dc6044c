// SPDX-License-Identifier: BSD-2-Clause
//! What sockets and pipes have in common: requests on two ends that are connected, and promises that
//! hold for both. `from` is read, `to` is written. The program that includes this says in
//! `cases::of_own` how a pair of its kind is made.

use crate::check;
use crate::harness::{Must, Op, Outcome, Stop, Test, fail, holds_pattern, pattern, refused, same};
use guest::aio::{self, AIO_ALLDONE, AIO_CANCELED, Cb};
use guest::errno::{ECANCELED, EINPROGRESS};
use guest::mem::Region;
use guest::sys;

/// A reading and a writing end.
pub type Ends = (i32, i32);

/// More than any of them takes at once.
pub const LARGE: usize = 1 << 20;

/// Makes cases of the promises here that every stream keeps: each is checked by a function that gives
/// it ends.
#[macro_export]
macro_rules! on_ends {
    ($give:ident) => {
        $crate::on_ends! { $give:
            a_read_gets_what_is_there,
            a_read_waits_for_data,
            the_end_gives_0,
            a_blocking_write_sends_everything,
            a_vectored_blocking_write_sends_everything,
            a_nonblocking_write_may_be_short,
            a_nonblocking_read_waits_all_the_same,
            reads_are_served_in_order,
            writes_are_served_in_order,
            one_of_many_is_cancelled,
            what_waits_behind_a_cancelled_request_goes_on
        }
    };
    ($give:ident: $($name:ident),*) => {
        $(fn $name(test: &Test) -> Outcome {
            $give(test, $crate::ends::$name)
        })*
    };
}

/// Has calls on a descriptor wait again.
pub fn set_blocking(fd: i32) -> Outcome {
    // fcntl(2), F_SETFL.
    sys::call(92, [fd as usize, 4, 0, 0, 0, 0]).must("fcntl")?;
    Ok(())
}

/// Submits a read.
pub fn read(test: &Test, fd: i32, len: usize) -> Result<(Cb, Region), Stop> {
    let buffer = test.buffer(len.max(1)).part(0, len);
    let cb = test.request(Op::Read, fd, 0, &buffer);
    test.submit(Op::Read, cb)?;
    Ok((cb, buffer))
}

/// Submits a write.
pub fn write(test: &Test, fd: i32, buffer: &Region) -> Result<Cb, Stop> {
    let cb = test.request(Op::Write, fd, 0, buffer);
    test.submit(Op::Write, cb)?;
    Ok(cb)
}

/// A buffer with the pattern of a file from an offset on.
pub fn patterned(test: &Test, len: usize, offset: usize) -> Region {
    let buffer = test.buffer(len);
    let mut bytes = [0u8; 512];
    for start in (0..len).step_by(512) {
        let count = (len - start).min(512);
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = pattern(offset + start + index);
        }
        buffer.write(start, &bytes[..count]);
    }
    buffer
}

/// Lets whatever is to happen happen: requests on ends of their own go through.
pub fn settle(test: &Test) -> Outcome {
    let (from, to) = crate::cases::of_own()?;
    for _ in 0..3 {
        let (cb, _) = read(test, from, 1)?;
        sys::write(to, b"x").must("write")?;
        same(test.collect(cb)?, Ok(1), "another request")?;
    }
    sys::close(from).must("close")?;
    sys::close(to).must("close")
}

/// Fails the case unless a request waits when all that was to happen has.
pub fn waits(test: &Test, cb: Cb, what: &str) -> Outcome {
    settle(test)?;
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), what)
}

/// Fails the case unless a request was cancelled, and collects it.
pub fn cancelled(cb: Cb) -> Outcome {
    same(aio::error(cb.addr()), Ok(ECANCELED.0), "aio_error")?;
    refused(aio::return_(cb.addr()), ECANCELED, "aio_return")
}

/// Reads so many bytes, which are the pattern from an offset on.
pub fn take_from(fd: i32, offset: usize, len: usize) -> Outcome {
    let mut bytes = [0u8; 4096];
    let mut done = 0;
    while done < len {
        let wanted = (len - done).min(bytes.len());
        let count = sys::read(fd, &mut bytes[..wanted]).must("read")?;
        check!(count > 0, "the end after {done} of {len} bytes");
        for (index, &byte) in bytes[..count].iter().enumerate() {
            let at = offset + done + index;
            check!(byte == pattern(at), "byte {at} is wrong");
        }
        done += count;
    }
    Ok(())
}

/// Reads so many bytes, which are the pattern from its start.
pub fn take(fd: i32, len: usize) -> Outcome {
    take_from(fd, 0, len)
}

/// Writes zeroes until there is no room; returns how many.
pub fn fill_up(fd: i32) -> Result<usize, Stop> {
    sys::set_nonblocking(fd).must("fcntl")?;
    let mut all = 0;
    for size in [4096, 512, 1] {
        while let Ok(count) = sys::write(fd, &[0; 4096][..size]) {
            all += count;
        }
    }
    set_blocking(fd)?;
    Ok(all)
}

/// A read gets what is there, however much it asks for.
pub fn a_read_gets_what_is_there(test: &Test, (from, to): Ends) -> Outcome {
    sys::write(to, b"hello").must("write")?;
    let (cb, buffer) = read(test, from, 100)?;
    same(test.collect(cb)?, Ok(5), "a read")?;
    let mut bytes = [0; 5];
    buffer.read(0, &mut bytes);
    same(&bytes, b"hello", "what was read")
}

/// A read waits for data.
pub fn a_read_waits_for_data(test: &Test, (from, to): Ends) -> Outcome {
    let (cb, buffer) = read(test, from, 100)?;
    waits(test, cb, "a read without data")?;
    sys::write(to, b"xy").must("write")?;
    same(test.collect(cb)?, Ok(2), "a read")?;
    let mut bytes = [0; 2];
    buffer.read(0, &mut bytes);
    same(&bytes, b"xy", "what was read")
}

/// Reads that wait, and later ones, get 0 when the writing end has gone.
pub fn the_end_gives_0(test: &Test, (from, to): Ends) -> Outcome {
    let (first, _) = read(test, from, 10)?;
    let (second, _) = read(test, from, 10)?;
    settle(test)?;
    sys::close(to).must("close")?;
    same(test.collect(first)?, Ok(0), "a read that waited")?;
    same(test.collect(second)?, Ok(0), "another")?;
    let (third, _) = read(test, from, 10)?;
    same(test.collect(third)?, Ok(0), "a read after the end")
}

/// A write ends when all of it was taken.
pub fn a_blocking_write_sends_everything(test: &Test, (from, to): Ends) -> Outcome {
    let cb = write(test, to, &patterned(test, LARGE, 0))?;
    take(from, LARGE)?;
    same(test.collect(cb)?, Ok(LARGE as i64), "a write")
}

/// So does one of pieces.
pub fn a_vectored_blocking_write_sends_everything(test: &Test, (from, to): Ends) -> Outcome {
    let all = patterned(test, LARGE, 0);
    // Pieces of odd lengths, some of them empty.
    let mut pieces = [all.part(0, 0); 64];
    let mut at = 0;
    for (index, piece) in pieces.iter_mut().enumerate() {
        let len = match index {
            63 => LARGE - at,
            _ if index % 7 == 3 => 0,
            _ => (index * 1013) % 30_011,
        };
        *piece = all.part(at, len);
        at += len;
    }
    let cb = test.vectored(to, 0, &pieces);
    test.submit(Op::Writev, cb)?;
    take(from, LARGE)?;
    same(test.collect(cb)?, Ok(LARGE as i64), "a write")
}

/// Where calls do not wait a write may be short.
pub fn a_nonblocking_write_may_be_short(test: &Test, (from, to): Ends) -> Outcome {
    sys::set_nonblocking(to).must("fcntl")?;
    let cb = write(test, to, &patterned(test, LARGE, 0))?;
    let done = match test.collect(cb)? {
        Ok(done @ 1..) => done as usize,
        other => return fail(format_args!("a write: {other:?}")),
    };
    check!(done < LARGE, "a write larger than the buffer was not short");
    take(from, done)
}

/// Where calls do not wait, requests do.
pub fn a_nonblocking_read_waits_all_the_same(test: &Test, (from, to): Ends) -> Outcome {
    sys::set_nonblocking(from).must("fcntl")?;
    let (cb, _) = read(test, from, 10)?;
    waits(test, cb, "a read without data")?;
    sys::write(to, b"xyz").must("write")?;
    same(test.collect(cb)?, Ok(3), "a read")
}

/// Reads get the bytes in the order the reads came.
pub fn reads_are_served_in_order(test: &Test, (from, to): Ends) -> Outcome {
    const COUNT: usize = 100;
    let mut reads = [None; COUNT];
    for slot in &mut reads {
        *slot = Some(read(test, from, 8)?);
    }
    let cb = write(test, to, &patterned(test, COUNT * 8, 0))?;
    for (index, (cb, buffer)) in reads.iter().flatten().enumerate() {
        same(test.collect(*cb)?, Ok(8), "a read")?;
        holds_pattern(buffer, 8, index * 8)?;
    }
    same(test.collect(cb)?, Ok(COUNT as i64 * 8), "the write")
}

/// Writes' bytes come in the order the writes came.
pub fn writes_are_served_in_order(test: &Test, (from, to): Ends) -> Outcome {
    const COUNT: usize = 60;
    const EACH: usize = 10_000;
    let mut writes = [None; COUNT];
    for (index, slot) in writes.iter_mut().enumerate() {
        *slot = Some(write(test, to, &patterned(test, EACH, index * EACH))?);
    }
    take(from, COUNT * EACH)?;
    for cb in writes.iter().flatten() {
        same(test.collect(*cb)?, Ok(EACH as i64), "a write")?;
    }
    Ok(())
}

/// Some of many that wait are cancelled; the others share the bytes.
pub fn one_of_many_is_cancelled(test: &Test, (from, to): Ends) -> Outcome {
    let mut reads = [None; 30];
    for slot in &mut reads {
        *slot = Some(read(test, from, 8)?);
    }
    settle(test)?;
    for (index, (cb, _)) in reads.iter().flatten().enumerate() {
        if index % 3 == 0 {
            same(aio::cancel(from, cb.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
            cancelled(*cb)?;
        }
    }
    let sender = write(test, to, &patterned(test, 20 * 8, 0))?;
    let left = reads.iter().flatten().enumerate().filter(|(index, _)| index % 3 != 0);
    for (at, (_, (cb, buffer))) in left.enumerate() {
        same(test.collect(*cb)?, Ok(8), "a read")?;
        holds_pattern(buffer, 8, at * 8)?;
    }
    same(test.collect(sender)?, Ok(160), "the write")
}

/// All requests of a descriptor are cancelled, and none of another's.
pub fn all_of_one_are_cancelled(test: &Test, one: i32, other: i32) -> Outcome {
    let mut reads = [None; 200];
    for (index, slot) in reads.iter_mut().enumerate() {
        let fd = if index % 2 == 0 { one } else { other };
        *slot = Some(read(test, fd, 8)?.0);
    }
    settle(test)?;
    same(aio::cancel(one, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    for (index, cb) in reads.iter().flatten().enumerate() {
        if index % 2 == 0 {
            cancelled(*cb)?;
        } else {
            same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the other descriptor's")?;
        }
    }
    same(aio::cancel(one, 0), Ok(AIO_ALLDONE), "aio_cancel again")?;
    same(aio::cancel(other, 0), Ok(AIO_CANCELED), "aio_cancel of the other")
}

/// A read and a write that wait on one descriptor are cancelled by one call.
pub fn both_ways_of_one_are_cancelled(test: &Test, one: i32) -> Outcome {
    fill_up(one)?;
    let (reader, _) = read(test, one, 8)?;
    let writer = write(test, one, &test.buffer(100))?;
    waits(test, writer, "a write without room")?;
    same(aio::cancel(one, 0), Ok(AIO_CANCELED), "aio_cancel")?;
    cancelled(reader)?;
    cancelled(writer)
}

/// What waited behind a cancelled request is the first then.
pub fn what_waits_behind_a_cancelled_request_goes_on(test: &Test, (from, to): Ends) -> Outcome {
    let (first, _) = read(test, from, 8)?;
    let (second, _) = read(test, from, 8)?;
    settle(test)?;
    same(aio::cancel(from, first.addr()), Ok(AIO_CANCELED), "aio_cancel")?;
    sys::write(to, b"xy").must("write")?;
    same(test.collect(second)?, Ok(2), "the second")
}
