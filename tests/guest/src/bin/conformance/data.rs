// SPDX-License-Identifier: BSD-2-Clause
//! The bytes: what requests read and write, where, and how much they say it was.

use crate::harness::{
    Must, OPS, Op, Outcome, Stop, Test, fail, holds_pattern, pattern, refused, same, skip,
};
use crate::{cases, check};
use guest::aio::{self, IOSIZE_MAX};
use guest::errno::{EAGAIN, EFAULT, EISDIR, EPIPE};
use guest::mem::{HOLE, PAGE, Region};
use guest::rng::Rng;
use guest::sys;

cases! { "data":
    a_read_gets_what_is_there,
    a_read_is_short_at_the_end_of_the_file,
    a_read_beyond_the_end_is_zero,
    a_read_of_iosize_max_gets_the_file,
    a_hole_reads_as_zeroes,
    a_write_puts_the_bytes_there,
    a_write_beyond_the_end_leaves_a_hole,
    readv_fills_the_pieces_in_order,
    writev_takes_the_pieces_in_order,
    a_thousand_pieces,
    no_bytes_are_read_as_zero_without_a_look_at_the_file,
    no_bytes_are_written_as_zero,
    no_pieces_are_zero,
    the_descriptors_position_stays,
    o_append_writes_at_the_end,
    o_append_writes_in_flight_all_land_whole,
    a_directory_can_be_submitted_but_not_read,
    an_unmapped_buffer_fails_later_with_efault,
    a_buffer_that_ends_too_early_fails_later_with_efault,
    a_read_into_read_only_memory_fails_later_with_efault,
    u2_the_block_and_the_pieces_are_read_once,
    requests_in_flight_do_not_mix,
    a_large_request_is_done_whole,
    a_write_is_seen_by_the_next_read,
    the_file_size_limit_is_the_submitters
        differs "the limit is that of a worker, which has none",
    a_write_at_the_largest_offset_does_as_pwrite,
    an_interruption_after_progress_is_a_short_success,
    a_broken_pipe_is_epipe_without_a_signal,
}

fn a_read_gets_what_is_there(test: &Test) -> Outcome {
    let size = 300_000;
    let fd = test.file("file", size)?;
    let mut rng = Rng::new(7);
    for round in 0..60 {
        let op = if round % 2 == 0 { Op::Read } else { Op::Readv };
        let offset = rng.below(size as u64 - 1) as usize;
        let len = (1 + rng.below(70_000) as usize).min(size - offset);
        // Buffers start anywhere in a page.
        let page = test.buffer(len + 256);
        let buffer = page.part(rng.below(256) as usize, len);
        page.fill(0xee);
        let cb = test.request(op, fd, offset as i64, &buffer);
        same(test.perform(op, cb)?, Ok(len as i64), "a read")?;
        holds_pattern(&buffer, len, offset)?;
        // Not a byte more.
        let (mut before, mut after) = ([0xee], [0xee]);
        if buffer.addr() > page.addr() {
            page.read(buffer.addr() - page.addr() - 1, &mut before);
        }
        if buffer.addr() + len < page.addr() + page.len() {
            page.read(buffer.addr() + len - page.addr(), &mut after);
        }
        same((before, after), ([0xee], [0xee]), "bytes around the buffer")?;
    }
    Ok(())
}

fn a_read_is_short_at_the_end_of_the_file(test: &Test) -> Outcome {
    let fd = test.file("file", 10_000)?;
    for op in [Op::Read, Op::Readv] {
        for offset in [0, 1, 4096, 9_999] {
            let buffer = test.buffer(20_000);
            buffer.fill(0xee);
            let cb = test.request(op, fd, offset, &buffer);
            let wanted = 10_000 - offset as usize;
            same(test.perform(op, cb)?, Ok(wanted as i64), "a read")?;
            holds_pattern(&buffer, wanted, offset as usize)?;
            let mut after = [0];
            buffer.read(wanted, &mut after);
            same(after, [0xee], "the byte after")?;
        }
    }
    Ok(())
}

fn a_read_beyond_the_end_is_zero(test: &Test) -> Outcome {
    let fd = test.file("file", 10_000)?;
    for op in [Op::Read, Op::Readv] {
        for offset in [10_000, 10_001, 1 << 40] {
            let cb = test.request(op, fd, offset, &test.buffer(100));
            same(test.perform(op, cb)?, Ok(0), "a read")?;
        }
    }
    Ok(())
}

fn a_read_of_iosize_max_gets_the_file(test: &Test) -> Outcome {
    let fd = test.file("file", 10_000)?;
    let buffer = test.buffer(20_000);
    let cb = test.block();
    cb.set(aio::request(fd, 0, buffer.addr(), IOSIZE_MAX));
    same(test.perform(Op::Read, cb)?, Ok(10_000), "a read")?;
    holds_pattern(&buffer, 10_000, 0)
}

fn a_hole_reads_as_zeroes(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    if sys::ftruncate(fd, 1 << 20).is_err() {
        return fail(format_args!("ftruncate"));
    }
    let (buffer, zeroes) = (test.buffer(5000), test.buffer(5000));
    buffer.fill(0xee);
    let cb = test.request(Op::Read, fd, 500_000, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(5000), "a read")?;
    check!(buffer.first_difference(&zeroes).is_none(), "not zeroes");
    Ok(())
}

/// Compares a file's bytes with a buffer.
fn file_holds(test: &Test, fd: i32, offset: i64, wanted: &Region) -> Outcome {
    let found = test.buffer(wanted.len());
    same(sys::pread_at(fd, found.addr(), found.len(), offset), Ok(wanted.len()), "pread")?;
    match found.first_difference(wanted) {
        Some(at) => fail(format_args!("byte {} of the file differs", offset + at as i64)),
        None => Ok(()),
    }
}

fn random(test: &Test, len: usize, seed: u64) -> Region {
    let buffer = test.buffer(len);
    let mut rng = Rng::new(seed);
    let mut bytes = [0u8; 512];
    for start in (0..len).step_by(512) {
        let count = (len - start).min(512);
        rng.fill(&mut bytes[..count]);
        buffer.write(start, &bytes[..count]);
    }
    buffer
}

fn a_write_puts_the_bytes_there(test: &Test) -> Outcome {
    let fd = test.file("file", 100_000)?;
    for (round, (offset, len)) in
        [(0, 1), (1, 4096), (5000, 33_333), (99_999, 10)].into_iter().enumerate()
    {
        for op in [Op::Write, Op::Writev] {
            let buffer = random(test, len, round as u64);
            let cb = test.request(op, fd, offset, &buffer);
            same(test.perform(op, cb)?, Ok(len as i64), "a write")?;
            file_holds(test, fd, offset, &buffer)?;
        }
    }
    // What no write touched is as it was.
    let buffer = test.buffer(100);
    same(sys::pread_at(fd, buffer.addr(), 100, 60_000), Ok(100), "pread")?;
    holds_pattern(&buffer, 100, 60_000)?;
    same(sys::fstat(fd).map(|stat| stat.size), Ok(100_009), "the file's size")
}

fn a_write_beyond_the_end_leaves_a_hole(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    let buffer = random(test, 100, 1);
    let cb = test.request(Op::Write, fd, 1_000_000, &buffer);
    same(test.perform(Op::Write, cb)?, Ok(100), "a write")?;
    file_holds(test, fd, 1_000_000, &buffer)?;
    file_holds(test, fd, 10, &test.buffer(1000))?;
    same(sys::fstat(fd).map(|stat| stat.size), Ok(1_000_100), "the file's size")
}

/// Pieces of odd lengths, some empty.
fn some_pieces(test: &Test) -> [Region; 7] {
    [3, 0, 4097, 1, 20_000, 0, 513].map(|len| {
        let buffer = test.buffer(len + 8);
        buffer.fill(0xee);
        buffer.part(5.min(buffer.len() - len), len)
    })
}

fn readv_fills_the_pieces_in_order(test: &Test) -> Outcome {
    let fd = test.file("file", 50_000)?;
    let pieces = some_pieces(test);
    let total: usize = pieces.iter().map(Region::len).sum();
    let cb = test.vectored(fd, 777, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(total as i64), "a read")?;
    let mut offset = 777;
    for piece in &pieces {
        holds_pattern(piece, piece.len(), offset)?;
        offset += piece.len();
    }
    // At the end of the file only the first pieces are filled.
    let pieces = some_pieces(test);
    let cb = test.vectored(fd, 50_000 - 103, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(103), "a short read")?;
    holds_pattern(&pieces[2], 100, 50_000 - 100)?;
    let mut next = [0];
    pieces[2].read(100, &mut next);
    same(next, [0xee], "the byte after")
}

fn writev_takes_the_pieces_in_order(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    let pieces = some_pieces(test);
    for (index, piece) in pieces.iter().enumerate() {
        piece.fill(index as u8 + 1);
    }
    let total: usize = pieces.iter().map(Region::len).sum();
    let cb = test.vectored(fd, 11, &pieces);
    same(test.perform(Op::Writev, cb)?, Ok(total as i64), "a write")?;
    let mut offset = 11;
    for piece in &pieces {
        if !piece.is_empty() {
            file_holds(test, fd, offset, piece)?;
        }
        offset += piece.len() as i64;
    }
    same(sys::fstat(fd).map(|stat| stat.size), Ok(offset), "the file's size")
}

fn a_thousand_pieces(test: &Test) -> Outcome {
    let fd = test.file("file", 20_000)?;
    let buffer = test.buffer(1024 * 17);
    let pieces: [Region; 1024] = core::array::from_fn(|index| buffer.part(index * 17, 17));
    let cb = test.vectored(fd, 3, &pieces);
    same(test.perform(Op::Readv, cb)?, Ok(1024 * 17), "a read")?;
    holds_pattern(&buffer, buffer.len(), 3)?;
    let cb = test.vectored(fd, 4, &pieces);
    same(test.perform(Op::Writev, cb)?, Ok(1024 * 17), "a write")?;
    file_holds(test, fd, 4, &buffer)
}

fn no_bytes_are_read_as_zero_without_a_look_at_the_file(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    // A directory could not be read, and the buffer is not there: neither is looked at.
    let directory = test.open(".", sys::O_RDONLY)?;
    for fd in [fd, directory] {
        let cb = test.block();
        cb.set(aio::request(fd, 0, HOLE, 0));
        same(test.perform(Op::Read, cb)?, Ok(0), "aio_read of no bytes")?;
        let empty = Region::shared_at(HOLE, 0);
        let cb = test.vectored(fd, 0, &[empty, empty]);
        same(test.perform(Op::Readv, cb)?, Ok(0), "aio_readv of empty pieces")?;
    }
    Ok(())
}

fn no_bytes_are_written_as_zero(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let cb = test.block();
    cb.set(aio::request(fd, 5000, HOLE, 0));
    same(test.perform(Op::Write, cb)?, Ok(0), "aio_write of no bytes")?;
    let empty = test.buffer(16).part(0, 0);
    let cb = test.vectored(fd, 5000, &[empty, empty]);
    same(test.perform(Op::Writev, cb)?, Ok(0), "aio_writev of empty pieces")?;
    same(sys::fstat(fd).map(|stat| stat.size), Ok(100), "the file's size")
}

fn no_pieces_are_zero(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in [Op::Readv, Op::Writev] {
        let cb = test.block();
        // With no pieces the list is not looked at either.
        cb.set(aio::request(fd, 0, HOLE, 0));
        same(test.perform(op, cb)?, Ok(0), "no pieces")?;
    }
    Ok(())
}

fn the_descriptors_position_stays(test: &Test) -> Outcome {
    let fd = test.file("file", 1000)?;
    same(sys::seek(fd, 123), Ok(123), "lseek")?;
    for op in OPS {
        let cb = test.request(op, fd, 500, &test.buffer(100));
        same(test.perform(op, cb)?, Ok(100), "a request")?;
        same(sys::tell(fd), Ok(123), "the position")?;
    }
    Ok(())
}

fn o_append_writes_at_the_end(test: &Test) -> Outcome {
    let fd = test.file("file", 1000)?;
    let append = test.open("file", sys::O_WRONLY | sys::O_APPEND)?;
    for (round, op) in [Op::Write, Op::Writev].into_iter().enumerate() {
        let buffer = random(test, 50, 9);
        let cb = test.request(op, append, 7, &buffer);
        same(test.perform(op, cb)?, Ok(50), "a write")?;
        file_holds(test, fd, 1000 + 50 * round as i64, &buffer)?;
    }
    let start = test.buffer(1000);
    same(sys::pread_at(fd, start.addr(), 1000, 0), Ok(1000), "pread")?;
    holds_pattern(&start, 1000, 0)
}

fn o_append_writes_in_flight_all_land_whole(test: &Test) -> Outcome {
    const COUNT: usize = 64;
    const LEN: usize = 3000;
    let fd = test.file("file", 0)?;
    let append = test.open("file", sys::O_WRONLY | sys::O_APPEND)?;
    let mut blocks = [None; COUNT];
    for (index, block) in blocks.iter_mut().enumerate() {
        let buffer = test.buffer(LEN);
        buffer.fill(index as u8 + 1);
        let cb = test.request(Op::Write, append, 0, &buffer);
        test.submit(Op::Write, cb)?;
        *block = Some(cb);
    }
    for cb in blocks.iter().flatten() {
        same(test.collect(*cb)?, Ok(LEN as i64), "a write")?;
    }
    let mut seen = [false; COUNT];
    let mut record = [0u8; LEN];
    for index in 0..COUNT {
        same(sys::pread(fd, &mut record, (index * LEN) as i64), Ok(LEN), "pread")?;
        check!(record.iter().all(|&byte| byte == record[0]), "record {index} is mixed");
        let of = usize::from(record[0]).wrapping_sub(1);
        check!(of < COUNT && !seen[of], "record {index} is of {of}");
        seen[of] = true;
    }
    Ok(())
}

fn a_directory_can_be_submitted_but_not_read(test: &Test) -> Outcome {
    let fd = test.open(".", sys::O_RDONLY)?;
    for op in [Op::Read, Op::Readv] {
        let cb = test.request(op, fd, 0, &test.buffer(4096));
        test.submit(op, cb)?;
        same(test.done(cb)?, EISDIR.0, "aio_error")?;
        refused(aio::return_(cb.addr()), EISDIR, "aio_return")?;
    }
    Ok(())
}

/// Submits a request that must fail with EFAULT when it is carried out.
fn faults(test: &Test, op: Op, fd: i32, addr: usize, len: usize) -> Outcome {
    let buffer = Region::shared_at(addr & !7, len);
    let cb = test.request(op, fd, 0, &buffer);
    test.submit(op, cb)?;
    same(test.done(cb)?, EFAULT.0, "aio_error")?;
    refused(aio::return_(cb.addr()), EFAULT, "aio_return")?;
    same((cb.status(), cb.error()), (-1, i64::from(EFAULT.0)), "status and error")
}

fn an_unmapped_buffer_fails_later_with_efault(test: &Test) -> Outcome {
    let fd = test.file("file", 10_000)?;
    for op in OPS {
        for addr in [0, HOLE, guest::mem::KERNEL] {
            faults(test, op, fd, addr, 1000)?;
        }
    }
    let buffer = test.buffer(10_000);
    same(sys::pread_at(fd, buffer.addr(), 10_000, 0), Ok(10_000), "pread")?;
    holds_pattern(&buffer, 10_000, 0)
}

fn a_buffer_that_ends_too_early_fails_later_with_efault(test: &Test) -> Outcome {
    let fd = test.file("file", 40_000)?;
    let Ok(pages) = Region::map(2 * PAGE) else { return fail(format_args!("mmap")) };
    let _ = pages.part(PAGE, PAGE).protect(0);
    for op in OPS {
        faults(test, op, fd, pages.addr(), 2 * PAGE)?;
    }
    Ok(())
}

fn a_read_into_read_only_memory_fails_later_with_efault(test: &Test) -> Outcome {
    let fd = test.file("file", 10_000)?;
    let Ok(page) = Region::map(PAGE) else { return fail(format_args!("mmap")) };
    let _ = page.protect(sys::PROT_READ);
    faults(test, Op::Read, fd, page.addr(), 100)?;
    faults(test, Op::Readv, fd, page.addr(), 100)
}

fn u2_the_block_and_the_pieces_are_read_once(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    let hold = test.hold()?;
    for (op, offset) in [(Op::Write, 100), (Op::Writev, 200)] {
        let buffer = random(test, 50, 3);
        let list = test.pieces(&[buffer]);
        let cb = test.block();
        let addr = if op.vectored() { list.addr() } else { buffer.addr() };
        let len = if op.vectored() { 1 } else { buffer.len() };
        cb.set(aio::request(fd, offset, addr, len));
        test.submit(op, cb)?;
        // From here on the program may do as it likes with all but the kernel's words.
        let mut block = cb.get();
        (block.fildes, block.offset, block.buf, block.nbytes) = (-1, -1, 1, 7);
        block.sigevent.notify = 99;
        cb.set(block);
        list.fill(0xff);
    }
    hold.release()?;
    for _ in 0..2 {
        same(aio::waitcomplete(None).result, Ok(50), "a write")?;
    }
    file_holds(test, fd, 100, &random(test, 50, 3))?;
    file_holds(test, fd, 200, &random(test, 50, 3))
}

fn requests_in_flight_do_not_mix(test: &Test) -> Outcome {
    const COUNT: usize = 128;
    let fd = test.file("file", 1 << 20)?;
    let other = test.file("other", 0)?;
    let buffers: [Region; COUNT] = core::array::from_fn(|_| test.buffer(8192));
    let mut blocks = [None; 2 * COUNT];
    for index in 0..COUNT {
        let op = if index % 2 == 0 { Op::Read } else { Op::Readv };
        let read = test.request(op, fd, (index * 7777) as i64, &buffers[index]);
        test.submit(op, read)?;
        let data = test.buffer(512);
        data.fill(index as u8);
        let op = if index % 3 == 0 { Op::Write } else { Op::Writev };
        let write = test.request(op, other, (index * 512) as i64, &data);
        test.submit(op, write)?;
        (blocks[2 * index], blocks[2 * index + 1]) = (Some(read), Some(write));
        // The limit of 256 is just not reached.
        if index == COUNT - 2 {
            break;
        }
    }
    for (index, cb) in blocks.iter().enumerate().rev() {
        let Some(cb) = cb else { continue };
        let wanted = if index % 2 == 0 { 8192 } else { 512 };
        same(test.collect(*cb)?, Ok(wanted), "a request")?;
    }
    let mut bytes = [0u8; 512];
    for (index, buffer) in buffers[..COUNT - 1].iter().enumerate() {
        holds_pattern(buffer, 8192, index * 7777)?;
        same(sys::pread(other, &mut bytes, (index * 512) as i64), Ok(512), "pread")?;
        check!(bytes.iter().all(|&byte| byte == index as u8), "write {index} is mixed");
    }
    Ok(())
}

fn a_large_request_is_done_whole(test: &Test) -> Outcome {
    const LEN: usize = 4 << 20;
    let fd = test.file("file", 0)?;
    let buffer = random(test, LEN, 11);
    let cb = test.request(Op::Write, fd, 1, &buffer);
    same(test.perform(Op::Write, cb)?, Ok(LEN as i64), "a write")?;
    let back = test.buffer(LEN);
    let cb = test.request(Op::Read, fd, 1, &back);
    same(test.perform(Op::Read, cb)?, Ok(LEN as i64), "a read")?;
    check!(buffer.first_difference(&back).is_none(), "not what was written");
    Ok(())
}

fn a_write_is_seen_by_the_next_read(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let buffer = test.buffer(100);
    for round in 0..100u8 {
        buffer.fill(round);
        let cb = test.request(Op::Write, fd, 0, &buffer);
        same(test.perform(Op::Write, cb)?, Ok(100), "a write")?;
        let back = test.buffer(100);
        let cb = test.request(Op::Read, fd, 0, &back);
        same(test.perform(Op::Read, cb)?, Ok(100), "a read")?;
        check!(buffer.first_difference(&back).is_none(), "round {round}: not what was written");
    }
    Ok(())
}

fn the_file_size_limit_is_the_submitters(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    if sys::set_soft_limit(sys::RLIMIT_FSIZE, 1000).is_err() {
        return fail(format_args!("setrlimit"));
    }
    let signal = crate::notify::Signal::new(sys::SIGXFSZ)?;
    for op in [Op::Write, Op::Writev] {
        let cb = test.request(op, fd, 2000, &test.buffer(10));
        refused(test.perform(op, cb)?, guest::errno::EFBIG, "a write beyond the limit")?;
        check!(signal.pending()?, "no SIGXFSZ");
        signal.take()?;
        let cb = test.request(op, fd, 900, &test.buffer(10));
        same(test.perform(op, cb)?, Ok(10), "a write below the limit")?;
        check!(!signal.pending()?, "SIGXFSZ for a write below the limit");
    }
    Ok(())
}

fn a_write_at_the_largest_offset_does_as_pwrite(test: &Test) -> Outcome {
    let fd = test.file("file", 10)?;
    // Some file systems take it, in part; others have no files of this size, and some say so by
    // SIGXFSZ besides. That goes to the worker, and the built-in's never gets rid of it: from then
    // on it cuts short whatever waits in that worker.
    sys::count_signals(sys::SIGXFSZ, 0).must("sigaction")?;
    let wanted = sys::pwrite(fd, &[0; 100], i64::MAX - 10).map(|count| count as i64);
    if sys::signals() > 0 {
        return skip(format_args!("{} would send SIGXFSZ to a worker", test.fs().as_str()));
    }
    let cb = test.request(Op::Write, fd, i64::MAX - 10, &test.buffer(100));
    same(test.perform(Op::Write, cb)?, wanted, "a write, beside pwrite")?;
    same(first_byte(fd)?, pattern(0), "the file")
}

fn first_byte(fd: i32) -> Result<u8, Stop> {
    let mut byte = [0];
    same(sys::pread(fd, &mut byte, 0), Ok(1), "pread")?;
    Ok(byte[0])
}

fn an_interruption_after_progress_is_a_short_success(test: &Test) -> Outcome {
    const LEN: usize = 1 << 20;
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    let (from, to) = sys::pipe().must("pipe")?;
    sys::set_nonblocking(to).must("fcntl")?;
    sys::set_nonblocking(from).must("fcntl")?;
    let cb = test.request(Op::Write, to, 0, &test.buffer(LEN));
    // As much as the pipe holds, and then EAGAIN, of which nothing is told.
    let moved = match test.perform(Op::Write, cb)? {
        Ok(moved) if (1..LEN as i64).contains(&moved) => moved as usize,
        other => return fail(format_args!("a write of more than the pipe holds: {other:?}")),
    };
    let cb = test.request(Op::Write, to, 0, &test.buffer(LEN));
    same(test.perform(Op::Write, cb)?, Err(EAGAIN), "a write to a full pipe")?;
    let mut bytes = [0u8; 4096];
    let mut left = moved;
    while left > 0 {
        left -= sys::read(from, &mut bytes).must("read")?.min(left);
    }
    same(sys::read(from, &mut bytes), Err(EAGAIN), "a read of the pipe when all is read")
}

fn a_broken_pipe_is_epipe_without_a_signal(test: &Test) -> Outcome {
    let signal = crate::notify::Signal::new(sys::SIGPIPE)?;
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    let (from, to) = sys::pipe().must("pipe")?;
    let cb = test.request(Op::Write, to, 0, &test.buffer(1 << 20));
    test.submit(Op::Write, cb)?;
    check!(sys::poll_in(from, 30_000) == Ok(true), "the write does not start");
    sys::close(from).must("close")?;
    // A pipe tells nothing of its end to who has written something.
    let moved = test.collect(cb)?;
    check!(matches!(moved, Ok(1..0x10_0000)), "the write: {moved:?}");
    for op in [Op::Write, Op::Writev] {
        let cb = test.request(op, to, 0, &test.buffer(10));
        same(test.perform(op, cb)?, Err(EPIPE), "a write to nobody")?;
        same((cb.status(), cb.error()), (-1, i64::from(EPIPE.0)), "status and error")?;
    }
    signal.none()
}
