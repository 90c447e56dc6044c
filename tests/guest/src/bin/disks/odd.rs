// SPDX-License-Identifier: BSD-2-Clause
//! Requests a disk does not take as they are, and bringing a disk's cache to its medium.

use crate::device::{Gauges, Md, Nop, only_ours, put_pattern};
use crate::harness::{Must, Op, Outcome, Stop, Test, holds_pattern, refused, same};
use crate::{cases, check};
use guest::aio;
use guest::errno::{EINPROGRESS, EINVAL, EOPNOTSUPP, EPERM};
use guest::mem::Region;
use guest::sys;
use guest::sysctl;

cases! { "odd":
    it_is_refused_at_once_by_default,
    unsafe_has_a_worker_do_it,
    split_serves_what_is_too_large,
    split_serves_too_many_pieces,
    split_copies_pieces_of_no_blocks,
    split_copies_pieces_smaller_than_a_sector,
    split_refuses_a_total_of_no_blocks,
    split_is_short_at_the_end,
    fsync_is_refused_by_default,
    flush_serves_fsync_after_what_came_before,
    flush_wants_a_descriptor_that_can_write,
}

const SIZE: usize = 8 << 20;
const O_SYNC: i32 = 0x80;
const O_DSYNC: i32 = 0x0100_0000;

fn largest() -> usize {
    sysctl::get("kern.maxphys").unwrap_or(1 << 20) as usize
}

/// Pieces of 256 bytes less and more than a block, of 8,192 in all.
fn uneven(region: &Region) -> [Region; 3] {
    [region.part(0, 4096), region.part(5000, 256), region.part(6000, 3840)]
}

/// As many pieces of a block as a device does not take.
fn many(region: &Region) -> [Region; 40] {
    core::array::from_fn(|index| region.part(index * 700, 512))
}

fn it_is_refused_at_once_by_default(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let buffer = test.buffer(4 << 20);
    let before = Gauges::now();
    let large = largest() + 512;
    let refusals = [
        (test.request(Op::Read, fd, 0, &buffer.part(0, 100)), Op::Read, "100 bytes"),
        (test.request(Op::Write, fd, 0, &buffer.part(0, 513)), Op::Write, "513 bytes"),
        (test.request(Op::Read, fd, 0, &buffer.part(0, large)), Op::Read, "more than maxphys"),
        (test.vectored(fd, 0, &uneven(&buffer)), Op::Writev, "uneven pieces"),
        (test.vectored(fd, 0, &many(&buffer)), Op::Readv, "40 pieces"),
        (
            test.vectored(fd, 0, &[buffer.part(0, large / 512 * 256), buffer.part(0, large)]),
            Op::Readv,
            "more than maxphys in all",
        ),
    ];
    for (cb, op, what) in refusals {
        refused(op.submit(cb.addr()), EOPNOTSUPP, what)?;
        same(cb.error(), i64::from(EOPNOTSUPP.0), what)?;
    }
    same(Gauges::now(), before, "gauges")
}

fn unsafe_has_a_worker_do_it(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    let buffer = test.buffer(4 << 20);
    let large = buffer.part(0, 3 << 20);
    let cb = test.request(Op::Read, fd, 512, &large);
    same(test.perform(Op::Read, cb)?, Ok(3 << 20), "3 MiB")?;
    holds_pattern(&large, 3 << 20, 512)?;
    let cb = test.vectored(fd, 0, &uneven(&buffer));
    refused(test.perform(Op::Readv, cb)?, EINVAL, "uneven pieces")
}

/// Writes pieces, reads them back, and reads them by one call too.
fn round_trip(test: &Test, fd: i32, pieces: &[Region], offset: usize) -> Outcome {
    let mut at = offset;
    for piece in pieces {
        put_pattern(piece, at);
        at += piece.len();
    }
    let total = at - offset;
    let cb = test.vectored(fd, offset as i64, pieces);
    same(test.perform(Op::Writev, cb)?, Ok(total as i64), "a writev")?;
    let back = test.buffer(total);
    same(sys::pread_at(fd, back.addr(), total, offset as i64), Ok(total), "a read back")?;
    holds_pattern(&back, total, offset)?;
    pieces.iter().for_each(|piece| piece.fill(0));
    same(test.perform(Op::Readv, cb)?, Ok(total as i64), "a readv")?;
    let mut at = offset;
    for piece in pieces {
        holds_pattern(piece, piece.len(), at)?;
        at += piece.len();
    }
    Ok(())
}

fn splitting(test: &Test) -> Result<(guest::sysctl::Setting, Md, i32), Stop> {
    only_ours(test)?;
    let setting = test.setting("vfs.aio.rs.split", 1)?;
    let md = Md::new(SIZE, 512)?;
    let fd = md.open(sys::O_RDWR)?;
    Ok((setting, md, fd))
}

fn split_serves_what_is_too_large(test: &Test) -> Outcome {
    let (_setting, _md, fd) = splitting(test)?;
    let buffer = test.buffer(3 << 20);
    round_trip(test, fd, &[buffer.part(100, (2 << 20) + 512)], 1024)
}

fn split_serves_too_many_pieces(test: &Test) -> Outcome {
    let (_setting, _md, fd) = splitting(test)?;
    let buffer = test.buffer(65536);
    round_trip(test, fd, &many(&buffer), 1024)
}

fn split_copies_pieces_of_no_blocks(test: &Test) -> Outcome {
    let (_setting, _md, fd) = splitting(test)?;
    let buffer = test.buffer(3 << 20);
    round_trip(test, fd, &uneven(&buffer), 1024)?;
    let large = [buffer.part(0, 100), buffer.part(256, 2 << 20), buffer.part((2 << 20) + 999, 412)];
    round_trip(test, fd, &large, 2048)
}

fn split_copies_pieces_smaller_than_a_sector(test: &Test) -> Outcome {
    only_ours(test)?;
    let _setting = test.setting("vfs.aio.rs.split", 1)?;
    let md = Md::new(SIZE, 4096)?;
    let fd = md.open(sys::O_RDWR)?;
    let buffer = test.buffer(16_384);
    let pieces = [buffer.part(0, 512), buffer.part(1024, 3584), buffer.part(8192, 4096)];
    round_trip(test, fd, &pieces, 8192)
}

fn split_refuses_a_total_of_no_blocks(test: &Test) -> Outcome {
    let (_setting, _md, fd) = splitting(test)?;
    let buffer = test.buffer(8192);
    let cb = test.request(Op::Read, fd, 0, &buffer.part(0, 600));
    refused(Op::Read.submit(cb.addr()), EOPNOTSUPP, "600 bytes")?;
    let cb = test.vectored(fd, 0, &[buffer.part(0, 512), buffer.part(600, 100)]);
    refused(Op::Readv.submit(cb.addr()), EOPNOTSUPP, "612 bytes")
}

fn split_is_short_at_the_end(test: &Test) -> Outcome {
    let (_setting, _md, fd) = splitting(test)?;
    crate::device::fill(fd, SIZE)?;
    let buffer = test.buffer(4 << 20);
    let at = SIZE - (2 << 20) - 512;
    for pieces in [&[buffer][..], &[buffer.part(0, 100), buffer.part(100, (4 << 20) - 100)][..]] {
        buffer.fill(0);
        let cb = test.vectored(fd, at as i64, pieces);
        same(test.perform(Op::Readv, cb)?, Ok((2 << 20) + 512), "4 MiB over the end")?;
        holds_pattern(&buffer, (2 << 20) + 512, at)?;
    }
    Ok(())
}

fn fsync_is_refused_by_default(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    let cb = test.block();
    cb.set(aio::request(fd, 0, 0, 0));
    refused(aio::fsync(O_SYNC, cb.addr()), EOPNOTSUPP, "aio_fsync of a disk")
}

fn flush_serves_fsync_after_what_came_before(test: &Test) -> Outcome {
    only_ours(test)?;
    let _setting = test.setting("vfs.aio.rs.flush", 1)?;
    let md = Md::new(65536, 512)?;
    let nop = Nop::before(&md)?;
    let fd = nop.open(sys::O_RDWR)?;
    for (round, op) in [O_SYNC, O_DSYNC, O_SYNC].into_iter().enumerate() {
        if round == 2 {
            nop.delay_ms(1000)?;
        }
        let write = test.request(Op::Write, fd, 0, &test.buffer(4096));
        let sync = test.block();
        sync.set(aio::request(fd, 0, 0, 0));
        test.submit(Op::Write, write)?;
        aio::fsync(op, sync.addr()).must("aio_fsync")?;
        same(test.collect(sync)?, Ok(0), "the flush")?;
        let state = aio::error(write.addr()).must("aio_error")?;
        check!(state != EINPROGRESS.0, "a flush ended before the write it was to follow");
        same(aio::return_(write.addr()), Ok(4096), "the write")?;
    }
    Ok(())
}

fn flush_wants_a_descriptor_that_can_write(test: &Test) -> Outcome {
    only_ours(test)?;
    let _setting = test.setting("vfs.aio.rs.flush", 1)?;
    let md = Md::new(65536, 512)?;
    let fd = md.open(sys::O_RDONLY)?;
    let cb = test.block();
    cb.set(aio::request(fd, 0, 0, 0));
    refused(aio::fsync(O_SYNC, cb.addr()), EPERM, "aio_fsync of a disk open for reading")
}
