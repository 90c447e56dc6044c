// SPDX-License-Identifier: BSD-2-Clause
//! Requests a disk takes as they are: the bytes, where, how many, and what is told of it.

use crate::device::{Gauges, Md, Nop, only_ours, put_pattern};
use crate::harness::{Must, OPS, Op, Outcome, Stop, Test, holds_pattern, refused, same};
use crate::{cases, check};
use guest::aio::{self, AIO_NOTCANCELED, Sigevent};
use guest::errno::{EAGAIN, EFAULT, EINPROGRESS, EIO};
use guest::mem::{HOLE, PAGE, Region};
use guest::rng::Rng;
use guest::sys;
use guest::sysctl;

cases! { "disk":
    no_worker_is_needed,
    a_read_gets_what_is_there,
    a_write_puts_the_bytes_there,
    readv_fills_the_pieces_in_order,
    writev_takes_the_pieces_in_order,
    no_bytes_are_moved_as_zero,
    a_read_is_short_at_the_end,
    a_vector_over_the_end_is_short,
    a_negative_or_odd_offset_fails_later,
    a_bad_buffer_fails_at_once_and_takes_nothing,
    a_read_into_read_only_memory_fails_at_once,
    a_write_from_read_only_memory_is_fine,
    a_buffer_may_span_mappings,
    a_bad_piece_fails_the_whole_at_once,
    blocks_are_charged_to_who_collects,
    bios_are_counted_while_they_fly,
    mapped_buffers_have_a_quota_and_others_none,
    cancel_says_not_canceled,
    suspend_and_waitcomplete_wait_for_it,
    a_list_of_disk_and_file_requests_is_told_once_at_the_end_f20,
    a_list_that_waits_waits_for_both,
    the_buffer_may_be_unmapped_meanwhile,
    the_process_may_fork_meanwhile,
}

const SIZE: usize = 4 << 20;

/// Only what comes first after loading can tell.
fn no_worker_is_needed(test: &Test) -> Outcome {
    only_ours(test)?;
    let workers = sysctl::get("vfs.aio.rs.num_procs");
    let (_md, fd) = Md::patterned(SIZE)?;
    for op in OPS {
        let cb = test.request(op, fd, 8192, &test.buffer(4096));
        same(test.perform(op, cb)?, Ok(4096), "a request")?;
    }
    // Idle ones may end meanwhile.
    let now = sysctl::get("vfs.aio.rs.num_procs");
    check!(now.is_some() && now <= workers, "{now:?} workers, {workers:?} before");
    Ok(())
}

fn a_read_gets_what_is_there(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let mut rng = Rng::new(11);
    let area = test.buffer(300_000);
    for round in 0..60 {
        let op = if round % 2 == 0 { Op::Read } else { Op::Readv };
        let len = 512 * (1 + rng.below(256) as usize);
        let offset = 512 * rng.below(((SIZE - len) / 512) as u64) as usize;
        // Buffers start anywhere in a page.
        let start = 1 + rng.below(PAGE as u64) as usize;
        area.fill(0xee);
        let buffer = area.part(start, len);
        let cb = test.request(op, fd, offset as i64, &buffer);
        same(test.perform(op, cb)?, Ok(len as i64), "a read")?;
        holds_pattern(&buffer, len, offset)?;
        let (mut before, mut after) = ([0], [0]);
        area.read(start - 1, &mut before);
        area.read(start + len, &mut after);
        check!((before, after) == ([0xee], [0xee]), "a read of {len} wrote beyond its buffer");
    }
    Ok(())
}

fn a_write_puts_the_bytes_there(test: &Test) -> Outcome {
    let md = Md::new(SIZE, 512)?;
    let fd = md.open(sys::O_RDWR)?;
    let mut rng = Rng::new(12);
    let (area, back) = (test.buffer(300_000), test.buffer(300_000));
    for round in 0..40 {
        let op = if round % 2 == 0 { Op::Write } else { Op::Writev };
        let len = 512 * (1 + rng.below(256) as usize);
        let offset = 512 * rng.below(((SIZE - len) / 512) as u64) as usize;
        let buffer = area.part(rng.below(PAGE as u64) as usize, len);
        put_pattern(&buffer, offset);
        let cb = test.request(op, fd, offset as i64, &buffer);
        same(test.perform(op, cb)?, Ok(len as i64), "a write")?;
        same(sys::pread_at(fd, back.addr(), len, offset as i64), Ok(len), "a read back")?;
        holds_pattern(&back, len, offset)?;
    }
    Ok(())
}

/// Pieces of a region with gaps between them: starts and lengths in it.
const PIECES: [(usize, usize); 5] =
    [(0, 4096), (5000, 512), (8191, 8192), (20_000, 1024), (40_960, 65_536)];

fn cut(region: &Region) -> [Region; 5] {
    PIECES.map(|(start, len)| region.part(start, len))
}

fn readv_fills_the_pieces_in_order(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let pieces = cut(&test.buffer(120_000));
    let total: usize = PIECES.iter().map(|piece| piece.1).sum();
    let cb = test.vectored(fd, 1024, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(total as i64), "a readv")?;
    let mut at = 1024;
    for piece in &pieces {
        holds_pattern(piece, piece.len(), at)?;
        at += piece.len();
    }
    Ok(())
}

fn writev_takes_the_pieces_in_order(test: &Test) -> Outcome {
    let md = Md::new(SIZE, 512)?;
    let fd = md.open(sys::O_RDWR)?;
    let pieces = cut(&test.buffer(120_000));
    let mut at = 2048;
    for piece in &pieces {
        put_pattern(piece, at);
        at += piece.len();
    }
    let total = at - 2048;
    let cb = test.vectored(fd, 2048, &pieces);
    same(test.perform(Op::Writev, cb)?, Ok(total as i64), "a writev")?;
    let back = test.buffer(total);
    same(sys::pread_at(fd, back.addr(), total, 2048), Ok(total), "a read back")?;
    holds_pattern(&back, total, 2048)
}

fn no_bytes_are_moved_as_zero(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(512).part(0, 0));
        same(test.perform(op, cb)?, Ok(0), "nothing")?;
    }
    let buffer = test.buffer(1024);
    let pieces = [buffer.part(0, 512), buffer.part(512, 0), buffer.part(512, 512)];
    let cb = test.vectored(fd, 4096, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(1024), "a vector with an empty piece")?;
    holds_pattern(&buffer, 1024, 4096)
}

fn a_read_is_short_at_the_end(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let buffer = test.buffer(8192);
    let at = SIZE - 4096;
    let cb = test.request(Op::Read, fd, at as i64, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(4096), "a read over the end")?;
    holds_pattern(&buffer, 4096, at)?;
    let cb = test.request(Op::Read, fd, SIZE as i64, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(0), "a read at the end")?;
    let cb = test.request(Op::Write, fd, at as i64, &buffer);
    same(test.perform(Op::Write, cb)?, Ok(4096), "a write over the end")?;
    let cb = test.request(Op::Read, fd, SIZE as i64 + 512, &buffer);
    refused(test.perform(Op::Read, cb)?, EIO, "a read beyond the end")
}

fn a_vector_over_the_end_is_short(test: &Test) -> Outcome {
    only_ours(test)?;
    let (_md, fd) = Md::patterned(SIZE)?;
    let buffer = test.buffer(16_384);
    let pieces = [0, 4096, 8192, 12_288].map(|start| buffer.part(start, 4096));
    let at = SIZE - 6144;
    let cb = test.vectored(fd, at as i64, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(6144), "a vector over the end")?;
    holds_pattern(&buffer, 6144, at)
}

fn a_negative_or_odd_offset_fails_later(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    for offset in [-512, 511, i64::MAX - 511, i64::MIN] {
        let cb = test.request(Op::Read, fd, offset, &test.buffer(512));
        let result = test.perform(Op::Read, cb)?;
        check!(result.is_err(), "a read at {offset}: {result:?}");
    }
    Ok(())
}

fn a_bad_buffer_fails_at_once_and_takes_nothing(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    let before = Gauges::now();
    // More often than there are buffers: an engine that loses one each time runs out (L1).
    for round in 0..40 {
        let cb = test.block();
        cb.set(aio::request(fd, 0, HOLE, 4096));
        let op = if round % 2 == 0 { Op::Read } else { Op::Write };
        refused(op.submit(cb.addr()), EFAULT, "a hole")?;
        same(cb.error(), i64::from(EFAULT.0), "the error in the block")?;
        cb.set(aio::request(fd, 0, usize::MAX - 511, 4096));
        refused(op.submit(cb.addr()), EFAULT, "an address that wraps")?;
    }
    same(Gauges::now(), before, "gauges")?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(4096));
    same(test.perform(Op::Read, cb)?, Ok(4096), "a read after that")
}

fn a_read_into_read_only_memory_fails_at_once(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    let buffer = test.buffer(8192);
    buffer.fill(1);
    buffer.protect(sys::PROT_READ).must("mprotect")?;
    for op in [Op::Read, Op::Readv] {
        let cb = test.request(op, fd, 0, &buffer);
        refused(op.submit(cb.addr()), EFAULT, "read-only memory")?;
    }
    Ok(())
}

fn a_write_from_read_only_memory_is_fine(test: &Test) -> Outcome {
    let md = Md::new(65536, 512)?;
    let fd = md.open(sys::O_RDWR)?;
    let (buffer, back) = (test.buffer(8192), test.buffer(8192));
    put_pattern(&buffer, 0);
    buffer.protect(sys::PROT_READ).must("mprotect")?;
    let cb = test.request(Op::Write, fd, 0, &buffer);
    same(test.perform(Op::Write, cb)?, Ok(8192), "a write")?;
    same(sys::pread_at(fd, back.addr(), 8192, 0), Ok(8192), "a read back")?;
    holds_pattern(&back, 8192, 0)
}

fn a_buffer_may_span_mappings(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(SIZE)?;
    let whole = test.buffer(16 * PAGE);
    // A child's page beside one's own, and a page never touched.
    let middle = whole.part(4 * PAGE, 4 * PAGE);
    middle.protect(sys::PROT_READ).must("mprotect")?;
    middle.protect(sys::PROT_READ | sys::PROT_WRITE).must("mprotect")?;
    let buffer = whole.part(100, 15 * PAGE);
    let cb = test.request(Op::Read, fd, 4096, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(15 * PAGE as i64), "a read over mappings")?;
    holds_pattern(&buffer, 15 * PAGE, 4096)?;
    whole.part(8 * PAGE, PAGE).unmap().must("munmap")?;
    let cb = test.request(Op::Read, fd, 4096, &buffer);
    refused(Op::Read.submit(cb.addr()), EFAULT, "a hole within")
}

fn a_bad_piece_fails_the_whole_at_once(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    let before = Gauges::now();
    let buffer = test.buffer(8192);
    let hole = Region::shared_at(HOLE, 4096);
    for _ in 0..30 {
        let cb = test.vectored(fd, 0, &[buffer.part(0, 4096), buffer.part(4096, 4096), hole]);
        refused(Op::Readv.submit(cb.addr()), EFAULT, "a vector with a hole")?;
    }
    same(Gauges::now(), before, "gauges")
}

fn blocks_are_charged_to_who_collects(test: &Test) -> Outcome {
    let (_md, fd) = Md::patterned(65536)?;
    let buffer = test.buffer(16_384);
    let charged = |op: Op| {
        let cb = test.request(op, fd, 0, &buffer);
        test.submit(op, cb)?;
        test.done(cb)?;
        let before = sys::thread_blocks().must("getrusage")?;
        same(aio::return_(cb.addr()), Ok(16_384), "a request")?;
        let after = sys::thread_blocks().must("getrusage")?;
        Ok((after.0 - before.0, after.1 - before.1))
    };
    same(charged(Op::Read)?, (32, 0), "blocks of a read")?;
    same(charged(Op::Write)?, (0, 32), "blocks of a write")
}

/// A disk whose requests take so long that one is in flight when the next call is made.
fn slow(ms: u32) -> Result<(Md, Nop, i32), Stop> {
    let (md, nop, fd) = Nop::patterned(SIZE)?;
    nop.delay_ms(ms)?;
    Ok((md, nop, fd))
}

fn bios_are_counted_while_they_fly(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(1500)?;
    let before = Gauges::now();
    let one = test.request(Op::Read, fd, 0, &test.buffer(4096));
    let buffer = test.buffer(12_288);
    let three = [0, 4096, 8192].map(|start| buffer.part(start, 4096));
    let three = test.vectored(fd, 4096, &three);
    test.submit(Op::Read, one)?;
    test.submit(Op::Readv, three)?;
    let during = Gauges::now();
    let running = aio::error(three.addr()) == Ok(EINPROGRESS.0);
    if running && aio::error(one.addr()) == Ok(EINPROGRESS.0) {
        same(during.bios(), before.bios() + 4, "bios in flight")?;
    }
    test.done(one)?;
    test.done(three)?;
    // What is done has nothing in flight, though nobody has collected it.
    same(Gauges::now().bios(), before.bios(), "bios when done")?;
    same(aio::return_(one.addr()), Ok(4096), "one")?;
    same(aio::return_(three.addr()), Ok(12_288), "three")?;
    same(Gauges::now(), before, "gauges")
}

fn mapped_buffers_have_a_quota_and_others_none(test: &Test) -> Outcome {
    let Some(quota) = sysctl::get("vfs.aio.max_buf_aio") else {
        return crate::harness::skip(format_args!("no vfs.aio.max_buf_aio"));
    };
    let mut sorts = 0;
    for md in [Md::new(SIZE, 512)?, Md::null(SIZE)?] {
        let nop = Nop::before(&md)?;
        let fd = nop.open(sys::O_RDWR)?;
        nop.delay_ms(3000)?;
        let before = Gauges::now();
        let cbs = [0; 24].map(|_| test.request(Op::Read, fd, 0, &test.buffer(4096)));
        let mut accepted = 0;
        let mut last = Ok(());
        for cb in cbs {
            last = Op::Read.submit(cb.addr());
            if last.is_err() {
                break;
            }
            accepted += 1;
        }
        let during = Gauges::now();
        if during.mapped > before.mapped {
            same((accepted, last), (quota, Err(EAGAIN)), "requests that need a mapped buffer")?;
        } else {
            same((accepted, last), (24, Ok(())), "requests that need none")?;
        }
        sorts |= 1 << u32::from(during.mapped > before.mapped);
        for cb in &cbs[..accepted as usize] {
            same(test.collect(*cb)?, Ok(4096), "a request")?;
        }
        // There is room again. Whoever looks at the disk when it is closed is not to wait.
        nop.no_delay()?;
        same(test.perform(Op::Read, cbs[23])?, Ok(4096), "one more")?;
        same(Gauges::now(), before, "gauges")?;
        sys::close(fd).must("close")?;
    }
    if sorts & 2 == 0 {
        return crate::harness::skip(format_args!("no disk here wants mapped buffers"));
    }
    Ok(())
}

fn cancel_says_not_canceled(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(300)?;
    let buffer = test.buffer(4096);
    let cb = test.request(Op::Read, fd, 8192, &buffer);
    test.submit(Op::Read, cb)?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_NOTCANCELED), "cancel of one")?;
    same(aio::cancel(fd, 0), Ok(AIO_NOTCANCELED), "cancel of all")?;
    same(test.done(cb)?, 0, "the request")?;
    same(aio::cancel(fd, cb.addr()), Ok(AIO_NOTCANCELED), "cancel of a done one")?;
    same(aio::return_(cb.addr()), Ok(4096), "the request")?;
    holds_pattern(&buffer, 4096, 8192)
}

fn suspend_and_waitcomplete_wait_for_it(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(200)?;
    let cb = test.request(Op::Read, fd, 0, &test.buffer(4096));
    test.submit(Op::Read, cb)?;
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    same(aio::error(cb.addr()), Ok(0), "the state after it")?;
    same(aio::return_(cb.addr()), Ok(4096), "aio_return")?;
    test.submit(Op::Read, cb)?;
    let done = aio::waitcomplete(None);
    same(done.cb, cb.addr(), "whom aio_waitcomplete found")?;
    same(done.result, Ok(4096), "aio_waitcomplete")
}

/// A list's two entries for a slow disk, and two for a file.
fn mixed(test: &Test, fd: i32) -> Result<([aio::Cb; 4], Region), crate::harness::Stop> {
    let file = test.file("file", 65536)?;
    let list = test.buffer(4 * 8);
    let cbs = core::array::from_fn(|index| {
        let on_disk = index % 2 == 0;
        let fd = if on_disk { fd } else { file };
        let cb = test.block();
        let buffer = test.buffer(4096);
        let mut block = aio::request(fd, 4096 * index as i64, buffer.addr(), 4096);
        // LIO_READ
        block.opcode = 2;
        cb.set(block);
        list.set_word(index * 8, cb.addr() as u64);
        cb
    });
    Ok((cbs, list))
}

fn a_list_of_disk_and_file_requests_is_told_once_at_the_end_f20(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(200)?;
    sys::count_signals(sys::SIGUSR1, 0).must("sigaction")?;
    for round in 1..=10 {
        let (cbs, list) = mixed(test, fd)?;
        let sig = test.buffer(80);
        let event =
            Sigevent { notify: aio::SIGEV_SIGNAL, signo: sys::SIGUSR1, ..Default::default() };
        let bytes: [u64; 10] = [
            event.notify as u64 | (event.signo as u64) << 32,
            event.value as u64,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        for (index, word) in bytes.iter().enumerate() {
            sig.set_word(index * 8, *word);
        }
        // LIO_NOWAIT
        aio::listio(0, list.addr(), 4, sig.addr()).must("lio_listio")?;
        let start = guest::time::now();
        while sys::signals() < round {
            check!(guest::time::ms_since(start) < 60_000, "no signal for the list");
            guest::time::sleep_ms(1);
        }
        for cb in cbs {
            same(aio::error(cb.addr()), Ok(0), "an entry when the list's end is told")?;
            same(aio::return_(cb.addr()), Ok(4096), "an entry")?;
        }
    }
    guest::time::sleep_ms(50);
    same(sys::signals(), 10, "signals of ten lists")
}

fn a_list_that_waits_waits_for_both(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(100)?;
    for _ in 0..10 {
        let (cbs, list) = mixed(test, fd)?;
        // LIO_WAIT
        aio::listio(1, list.addr(), 4, 0).must("lio_listio")?;
        for cb in cbs {
            same(aio::error(cb.addr()), Ok(0), "an entry of a list that has waited")?;
            same(aio::return_(cb.addr()), Ok(4096), "an entry")?;
        }
    }
    Ok(())
}

fn the_buffer_may_be_unmapped_meanwhile(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(300)?;
    let before = Gauges::now();
    let (from, to) = (test.buffer(65536), test.buffer(65536));
    put_pattern(&from, 65536);
    let write = test.request(Op::Write, fd, 1 << 20, &from);
    let read = test.request(Op::Read, fd, 0, &to);
    test.submit(Op::Write, write)?;
    test.submit(Op::Read, read)?;
    from.unmap().must("munmap")?;
    to.unmap().must("munmap")?;
    same(test.collect(write)?, Ok(65536), "the write")?;
    same(test.collect(read)?, Ok(65536), "the read")?;
    let back = test.buffer(65536);
    same(sys::pread_at(fd, back.addr(), 65536, 1 << 20), Ok(65536), "a read back")?;
    holds_pattern(&back, 65536, 65536)?;
    same(Gauges::now(), before, "gauges")
}

fn the_process_may_fork_meanwhile(test: &Test) -> Outcome {
    let (_md, _nop, fd) = slow(300)?;
    let before = Gauges::now();
    let buffer = test.buffer(65536);
    put_pattern(&buffer, 0);
    let cb = test.request(Op::Write, fd, 0, &buffer);
    test.submit(Op::Write, cb)?;
    // The child's requests are its own: none.
    test.in_child("a child that asks for its parent's request", |_| {
        i32::from(aio::return_(cb.addr()).is_ok())
    })?;
    // Written to, and so copied: the request has the pages it began with.
    buffer.fill(0);
    same(test.collect(cb)?, Ok(65536), "the write")?;
    same(Gauges::now(), before, "gauges")
}
