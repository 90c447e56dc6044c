// SPDX-License-Identifier: BSD-2-Clause
//! A request is judged whenever it is tried, by the credential its file was opened with: what that
//! user may not read or write ends with EACCES, and nothing is moved.

use crate::ends::{self, Ends, LARGE, patterned, read, settle, waits, write};
use crate::harness::{
    Must, OPS, Op, Outcome, Stop, Test, accepted, fail, holds_pattern, refused, same, skip,
};
use crate::{cases, check};
use guest::aio;
use guest::errno::{EACCES, EAGAIN, EINPROGRESS};
use guest::net::{self, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
use guest::sys;
use guest::sysctl::{self, Setting};

cases! { "policy":
    a_file_is_judged,
    a_resident_read_is_judged,
    who_opened_the_file_decides,
    a_socket_is_judged,
    a_parked_request_is_judged_when_it_is_tried,
    a_write_that_has_moved_bytes_is_judged_again,
    the_refused_of_a_list_tell_by_themselves,
    a_pipe_is_judged,
}

/// Who is refused.
const REFUSED: u32 = 54_321;
const SWITCH: &str = "security.mac.aio_rs.uid";

/// Leaves the case out where there is no policy.
fn need_policy() -> Outcome {
    match sysctl::get(SWITCH) {
        Some(_) => Ok(()),
        None => skip(format_args!("the policy aio_rs_mac is not loaded")),
    }
}

/// Does something as the user who may be refused, and is root again.
fn as_refused<T>(act: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
    need_policy()?;
    sys::seteuid(REFUSED).must("seteuid")?;
    let result = act();
    sys::seteuid(0).must("seteuid back")?;
    result
}

/// Has the policy refuse.
fn refuse(test: &Test) -> Result<Setting, Stop> {
    test.setting(SWITCH, REFUSED as i32)
}

/// What other requests of a case, that are to go through, are made on.
pub fn of_own() -> Result<Ends, Stop> {
    net::pair(SOCK_STREAM).must("socketpair")
}

type Make = fn() -> guest::Result<Ends>;

/// The ways to make two ends that are connected.
const KINDS: [(&str, Make); 5] = [
    ("a local stream", || net::pair(SOCK_STREAM)),
    ("local datagrams", || net::pair(SOCK_DGRAM)),
    ("local packets", || net::pair(SOCK_SEQPACKET)),
    ("TCP", || net::connected(SOCK_STREAM, 0)),
    ("UDP", net::udp_pair),
];

/// Two ends that may be refused; calls on them, which root makes, may not.
fn ends_of_refused(make: Make) -> Result<Ends, Stop> {
    as_refused(|| make().must("a pair"))
}

/// A new file of patterned bytes, opened by who may be refused.
fn file_of_refused(test: &Test) -> Result<i32, Stop> {
    need_policy()?;
    sys::close(test.file("theirs", 8192)?).must("close")?;
    // chmod(2).
    sys::call(15, [c"theirs".as_ptr() as usize, 0o666, 0, 0, 0, 0]).must("chmod")?;
    as_refused(|| test.open("theirs", sys::O_RDWR))
}

/// A request on a file, of every kind, must be refused and move nothing.
fn is_refused(test: &Test, fd: i32) -> Outcome {
    for op in OPS {
        let buffer = test.buffer(4096);
        buffer.fill(0xee);
        let cb = test.request(op, fd, 0, &buffer);
        refused(test.perform(op, cb)?, EACCES, "a request that is refused")?;
        let (mut bytes, untouched) = ([0; 4096], [0xee; 4096]);
        buffer.read(0, &mut bytes);
        check!(bytes == untouched, "{op:?} was refused, and has moved bytes");
    }
    Ok(())
}

/// Every read of a file must get its pattern.
fn is_read(test: &Test, fd: i32) -> Outcome {
    for op in [Op::Read, Op::Readv] {
        let buffer = test.buffer(4096);
        let cb = test.request(op, fd, 0, &buffer);
        same(test.perform(op, cb)?, Ok(4096), "a read that is allowed")?;
        holds_pattern(&buffer, 4096, 0)?;
    }
    Ok(())
}

fn a_file_is_judged(test: &Test) -> Outcome {
    let fd = file_of_refused(test)?;
    for _ in 0..2 {
        is_read(test, fd)?;
        let refusing = refuse(test)?;
        is_refused(test, fd)?;
        drop(refusing);
    }
    is_read(test, fd)
}

fn a_resident_read_is_judged(test: &Test) -> Outcome {
    let fd = file_of_refused(test)?;
    for inline in [1, 0] {
        let _inline = match sysctl::served() {
            Some(_) => Some(test.setting("vfs.aio.rs.inline", inline)?),
            None => None,
        };
        is_read(test, fd)?;
        let _refusing = refuse(test)?;
        for op in [Op::Read, Op::Readv] {
            let buffer = test.buffer(4096);
            let cb = test.request(op, fd, 0, &buffer);
            for _ in 0..10 {
                // In memory, as what comes from the cache alone goes nowhere else.
                buffer.fill(0);
                refused(test.perform(op, cb)?, EACCES, "a read of what is in the cache")?;
            }
        }
    }
    Ok(())
}

fn who_opened_the_file_decides(test: &Test) -> Outcome {
    let theirs = file_of_refused(test)?;
    let ours = test.file("ours", 8192)?;
    let (from, to) = net::pair(SOCK_STREAM).must("socketpair")?;
    let _refusing = refuse(test)?;
    let mut bytes = [0; 100];
    // A call is judged by who makes it.
    same(sys::pread(theirs, &mut bytes, 0), Ok(100), "pread by root")?;
    is_refused(test, theirs)?;
    as_refused(|| {
        refused(sys::pread(ours, &mut [0; 100], 0), EACCES, "pread by who is refused")?;
        is_read(test, ours)?;
        refused(sys::write(to, b"x"), EACCES, "write by who is refused")?;
        let cb = write(test, to, &patterned(test, 100, 0))?;
        same(test.collect(cb)?, Ok(100), "a write to root's socket")?;
        let (cb, _) = read(test, from, 100)?;
        same(test.collect(cb)?, Ok(100), "a read of root's socket")
    })
}

fn a_socket_is_judged(test: &Test) -> Outcome {
    for (kind, make) in KINDS {
        let (from, to) = ends_of_refused(make)?;
        same(sys::write(to, b"hello"), Ok(5), kind)?;
        let refusing = refuse(test)?;
        for fd in [from, to] {
            for op in OPS {
                // The end that is written to has nothing to be read.
                if fd == to && !op.writes() {
                    continue;
                }
                let cb = test.request(op, fd, 0, &test.buffer(100));
                refused(test.perform(op, cb)?, EACCES, kind)?;
            }
        }
        drop(refusing);
        let (cb, _) = read(test, from, 100)?;
        same(test.collect(cb)?, Ok(5), kind)?;
        for fd in [from, to] {
            settle(test)?;
            refused(sys::receive(fd, &mut [0; 10]), EAGAIN, kind)?;
        }
    }
    Ok(())
}

fn a_parked_request_is_judged_when_it_is_tried(test: &Test) -> Outcome {
    for (kind, make) in KINDS {
        let (from, to) = ends_of_refused(make)?;
        let refusing = refuse(test)?;
        let mut reads = [None; 3];
        for slot in &mut reads {
            *slot = Some(read(test, from, 10)?.0);
        }
        settle(test)?;
        for cb in reads.iter().flatten() {
            same(aio::error(cb.addr()), Ok(EINPROGRESS.0), kind)?;
        }
        // What is there lets each of them be tried, as none takes it.
        same(sys::write(to, b"xy"), Ok(2), kind)?;
        for cb in reads.into_iter().flatten() {
            refused(test.collect(cb)?, EACCES, kind)?;
        }
        let (late, _) = read(test, from, 10)?;
        refused(test.collect(late)?, EACCES, kind)?;
        drop(refusing);
        let (cb, _) = read(test, from, 10)?;
        same(test.collect(cb)?, Ok(2), kind)?;
        let (cb, _) = read(test, from, 10)?;
        waits(test, cb, kind)?;
        same(sys::write(to, b"z"), Ok(1), kind)?;
        same(test.collect(cb)?, Ok(1), kind)?;
    }
    Ok(())
}

fn a_write_that_has_moved_bytes_is_judged_again(test: &Test) -> Outcome {
    for make in [KINDS[0].1, KINDS[3].1] {
        let (from, to) = ends_of_refused(make)?;
        let cb = write(test, to, &patterned(test, LARGE, 0))?;
        ends::take(from, 1)?;
        waits(test, cb, "a write larger than the buffer")?;
        let _refusing = refuse(test)?;
        let mut taken = 1;
        let mut bytes = [0u8; 4096];
        while aio::error(cb.addr()) == Ok(EINPROGRESS.0) {
            if let Ok(count) = sys::receive(from, &mut bytes) {
                taken += count;
            }
            check!(taken < LARGE, "the write went on");
        }
        refused(aio::return_(cb.addr()), EACCES, "the rest of a write")?;
    }
    Ok(())
}

fn the_refused_of_a_list_tell_by_themselves(test: &Test) -> Outcome {
    let theirs = file_of_refused(test)?;
    let ours = test.file("ours", 8192)?;
    let (from, to) = ends_of_refused(KINDS[0].1)?;
    same(sys::write(to, b"hello"), Ok(5), "write")?;
    let _refusing = refuse(test)?;
    let list = test.buffer(4 * 8);
    let mut blocks = [None; 4];
    for (index, (op, fd)) in
        [(Op::Read, theirs), (Op::Read, ours), (Op::Read, from), (Op::Write, ours)]
            .into_iter()
            .enumerate()
    {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        let mut block = cb.get();
        block.opcode = op.opcode();
        cb.set(block);
        list.set_word(index * 8, cb.addr() as u64);
        blocks[index] = Some(cb);
    }
    // What goes wrong after queueing is told by each request alone.
    aio::listio(aio::LIO_WAIT, list.addr(), 4, 0).must("lio_listio")?;
    (0..4).for_each(|_| accepted());
    for (index, cb) in blocks.iter().flatten().enumerate() {
        match aio::return_(cb.addr()) {
            Err(EACCES) if index % 2 == 0 => {}
            Ok(100) if index % 2 == 1 => {}
            other => return fail(format_args!("entry {index}: {other:?}")),
        }
    }
    Ok(())
}

fn a_pipe_is_judged(test: &Test) -> Outcome {
    let _allowed = match sysctl::served() {
        Some(_) => test.setting("vfs.aio.rs.park", 1)?,
        None => test.setting("vfs.aio.enable_unsafe", 1)?,
    };
    let (from, to) = ends_of_refused(sys::pipe)?;
    same(sys::write(to, b"hello"), Ok(5), "write")?;
    let refusing = refuse(test)?;
    for (op, fd) in [(Op::Read, from), (Op::Readv, from), (Op::Write, to), (Op::Writev, to)] {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        refused(test.perform(op, cb)?, EACCES, "a request on a pipe")?;
    }
    drop(refusing);
    let (cb, _) = read(test, from, 100)?;
    same(test.collect(cb)?, Ok(5), "a read that is allowed")
}
