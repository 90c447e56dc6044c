// SPDX-License-Identifier: BSD-2-Clause
//! Requests on disk devices: md(4) disks in memory that mdconfig(8) makes. They go to the device
//! without a worker.

use crate::harness::{Must, OPS, Op, Outcome, Stop, Test, fail, refused, same, skip};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use core::ffi::CStr;
use guest::aio::{self, AIO_NOTCANCELED, LIO_NOWAIT, LIO_WAIT, Sigevent};
use guest::errno::{EFAULT, EINVAL, EOPNOTSUPP};
use guest::mem::{HOLE, PAGE, Region};
use guest::signal::SIGRTMIN;
use guest::sys;

cases! { "disk":
    reads_and_writes_are_done,
    pieces_are_done,
    many_requests_are_done,
    an_odd_length_is_eopnotsupp,
    an_odd_length_works_when_enabled,
    a_bad_buffer_is_efault_at_once,
    a_request_at_the_end_ends_as_pread_does,
    a_disk_request_is_never_cancelled,
    a_sync_is_eopnotsupp,
    f11_pieces_at_any_address_are_done,
    f12_the_gauges_come_back,
    f13_a_bad_buffer_leaves_no_request,
    f20_a_list_of_disk_and_file_is_one_list,
    f28_an_address_used_again_is_the_new_memory,
    f31_oddly_placed_pieces_of_every_size_are_done,
    every_notification_works,
    no_bytes_are_zero,
    no_pieces_are_zero
        breaks "the request never ends, and the process cannot",
    l01_bad_buffers_use_up_no_quota
        differs "each bad buffer of a mapped disk takes from the quota for ever",
}

const SECTOR: usize = 512;
const UNIT: &CStr = c"31";
const PATH: &CStr = c"/dev/md31";

/// A disk of a megabyte, until it is dropped; its descriptor.
pub struct Disk(pub i32);

impl Disk {
    /// Makes one of a kind that mdconfig(8) knows.
    pub fn new(kind: &CStr) -> Result<Self, Stop> {
        // One that a killed case left behind.
        let _ = sys::run_quietly(&[c"/sbin/mdconfig", c"-d", c"-u", UNIT]);
        let words =
            [c"/sbin/mdconfig", c"-a", c"-t", kind, c"-s", c"1m", c"-S", c"512", c"-u", UNIT];
        match sys::run_quietly(&words).must("fork")? {
            0 => {}
            127 => return skip(format_args!("no /sbin/mdconfig here")),
            status => return skip(format_args!("mdconfig ends with {status}")),
        }
        // The device may come a little later.
        for _ in 0..5000 {
            if let Ok(fd) = sys::open(PATH, sys::O_RDWR, 0) {
                return Ok(Self(fd));
            }
            guest::time::sleep_ms(2);
        }
        fail(format_args!("no {PATH:?} after mdconfig"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = sys::close(self.0);
        let _ = sys::run_quietly(&[c"/sbin/mdconfig", c"-d", c"-o", c"force", c"-u", UNIT]);
    }
}

fn patterned(test: &Test, len: usize, tag: u64) -> Region {
    let buffer = test.buffer(len);
    for word in 0..len / 8 {
        buffer.set_word(word * 8, guest::rng::mix(tag << 32 | word as u64));
    }
    buffer
}

fn reads_and_writes_are_done(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    for (index, len) in [SECTOR, 8 * SECTOR, 64 * 1024, 128 * 1024].into_iter().enumerate() {
        let offset = (index * 128 * 1024) as i64;
        let from = patterned(test, len, index as u64);
        let cb = test.request(Op::Write, disk.0, offset, &from);
        same(test.perform(Op::Write, cb)?, Ok(len as i64), "a write")?;
        let to = test.buffer(len);
        let cb = test.request(Op::Read, disk.0, offset, &to);
        same(test.perform(Op::Read, cb)?, Ok(len as i64), "a read")?;
        same(to.first_difference(&from), None, "the first byte that differs")?;
    }
    Ok(())
}

fn pieces_are_done(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let from = patterned(test, 16 * SECTOR, 1);
    let cut = |of: &Region| {
        [of.part(0, SECTOR), of.part(SECTOR, 8 * SECTOR), of.part(9 * SECTOR, 7 * SECTOR)]
    };
    let cb = test.vectored(disk.0, 4096, &cut(&from));
    same(test.perform(Op::Writev, cb)?, Ok(16 * SECTOR as i64), "a write")?;
    let to = test.buffer(16 * SECTOR);
    let cb = test.vectored(disk.0, 4096, &cut(&to));
    same(test.perform(Op::Readv, cb)?, Ok(16 * SECTOR as i64), "a read")?;
    same(to.first_difference(&from), None, "the first byte that differs")
}

fn many_requests_are_done(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let from = patterned(test, 100 * SECTOR, 2);
    let to = test.buffer(100 * SECTOR);
    for (op, memory) in [(Op::Write, from), (Op::Read, to)] {
        let mut blocks = [None; 100];
        for (index, block) in blocks.iter_mut().enumerate() {
            let at = index * SECTOR;
            let cb = test.block();
            cb.set(aio::request(disk.0, at as i64, memory.at(at), SECTOR));
            test.submit(op, cb)?;
            *block = Some(cb);
        }
        for cb in blocks.into_iter().flatten() {
            same(test.collect(cb)?, Ok(SECTOR as i64), "a request")?;
        }
    }
    same(to.first_difference(&from), None, "the first byte that differs")
}

fn an_odd_length_is_eopnotsupp(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    for op in OPS {
        for len in [1, SECTOR - 1, SECTOR + 1] {
            let cb = test.request(op, disk.0, 0, &test.buffer(len));
            refused(op.submit(cb.addr()), EOPNOTSUPP, "submit")?;
            same(aio::error(cb.addr()), Ok(EOPNOTSUPP.0), "aio_error")?;
        }
    }
    Ok(())
}

fn an_odd_length_works_when_enabled(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    // The device itself says what it thinks of it.
    let buffer = test.buffer(SECTOR + 1);
    let wanted = sys::pread_at(disk.0, buffer.addr(), SECTOR + 1, 0).map(|count| count as i64);
    let cb = test.request(Op::Read, disk.0, 0, &buffer);
    same(test.perform(Op::Read, cb)?, wanted, "a read, as pread")
}

fn a_bad_buffer_is_efault_at_once(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let page = test.buffer(PAGE);
    page.protect(sys::PROT_READ).must("mprotect")?;
    for (op, addr) in [(Op::Read, HOLE), (Op::Write, HOLE), (Op::Read, page.addr())] {
        let cb = test.block();
        cb.set(aio::request(disk.0, 0, addr, SECTOR));
        refused(op.submit(cb.addr()), EFAULT, "submit")?;
        same(aio::error(cb.addr()), Ok(EFAULT.0), "aio_error")?;
        refused(aio::return_(cb.addr()), EINVAL, "aio_return")?;
    }
    let cb = test.request(Op::Write, disk.0, 0, &page.part(0, SECTOR));
    same(test.perform(Op::Write, cb)?, Ok(SECTOR as i64), "a write of what can be read")
}

fn a_request_at_the_end_ends_as_pread_does(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let buffer = test.buffer(2 * SECTOR);
    let end = 1 << 20;
    let cb = test.request(Op::Read, disk.0, end - 2 * SECTOR as i64, &buffer);
    same(test.perform(Op::Read, cb)?, Ok(2 * SECTOR as i64), "up to the end")?;
    // What goes over the end may be an error or be cut, but must come to an end.
    for offset in [end - SECTOR as i64, end, end + (1 << 30)] {
        let cb = test.request(Op::Read, disk.0, offset, &buffer);
        if Op::Read.submit(cb.addr()).is_ok() {
            let result = test.collect(cb)?;
            check!(
                !matches!(result, Ok(count) if count > SECTOR as i64),
                "a read at {offset}: {result:?}"
            );
        }
    }
    Ok(())
}

fn a_disk_request_is_never_cancelled(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let cb = test.request(Op::Read, disk.0, 0, &test.buffer(SECTOR));
    test.submit(Op::Read, cb)?;
    same(aio::cancel(disk.0, cb.addr()), Ok(AIO_NOTCANCELED), "aio_cancel")?;
    same(aio::cancel(disk.0, 0), Ok(AIO_NOTCANCELED), "aio_cancel of all")?;
    same(test.collect(cb)?, Ok(SECTOR as i64), "the read")?;
    same(aio::cancel(disk.0, cb.addr()), Ok(AIO_NOTCANCELED), "aio_cancel of nothing")
}

fn a_sync_is_eopnotsupp(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let cb = test.request(Op::Read, disk.0, 0, &test.buffer(SECTOR));
    refused(aio::fsync(sys::O_SYNC, cb.addr()), EOPNOTSUPP, "aio_fsync")
}

fn f11_pieces_at_any_address_are_done(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let len = 64 * 1024;
    let memory = test.buffer(len + PAGE);
    for shift in [1, 8, 511, 512, 2048, 4088, 4095] {
        for op in OPS {
            let buffer = memory.part(shift, len);
            if op.writes() {
                buffer.fill(shift as u8);
            }
            let cb = test.request(op, disk.0, 0, &buffer);
            same(test.perform(op, cb)?, Ok(len as i64), "a request")?;
        }
        let byte = memory.part(shift, 1);
        let mut got = [0u8];
        byte.read(0, &mut got);
        same(got[0], shift as u8, "the first byte")?;
    }
    Ok(())
}

fn gauges() -> [Option<u64>; 3] {
    ["vfs.aio.num_queue_count", "vfs.aio.num_buf_aio", "vfs.aio.num_unmapped_aio"]
        .map(guest::sysctl::get)
}

fn f12_the_gauges_come_back(test: &Test) -> Outcome {
    for kind in [c"malloc", c"null"] {
        let disk = Disk::new(kind)?;
        let before = gauges();
        let buffer = test.buffer(8 * SECTOR);
        for round in 0..30 {
            let cb = test.request(Op::Read, disk.0, 0, &buffer);
            if round % 5 == 4 {
                test.edit(cb, |block| block.buf = HOLE);
                check!(Op::Read.submit(cb.addr()).is_err(), "a bad buffer was accepted");
                continue;
            }
            same(test.perform(Op::Read, cb)?, Ok(8 * SECTOR as i64), "a read")?;
        }
        same(gauges(), before, "requests, mapped and unmapped transfers")?;
    }
    Ok(())
}

fn f13_a_bad_buffer_leaves_no_request(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let before = gauges();
    let (good, bad) = (test.buffer(SECTOR), HOLE);
    let pieces = test.pieces(&[good, Region::shared_at(bad, SECTOR), good]);
    for _ in 0..40 {
        let cb = test.block();
        cb.set(aio::request(disk.0, 0, pieces.addr(), 3));
        refused(Op::Readv.submit(cb.addr()), EFAULT, "submit")?;
    }
    same(gauges(), before, "requests, mapped and unmapped transfers")?;
    let none = aio::waitcomplete(Some(sys::Timespec::default()));
    refused(none.result, guest::errno::EAGAIN, "aio_waitcomplete")
}

fn f20_a_list_of_disk_and_file_is_one_list(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let fd = test.file("file", 5000)?;
    let kq = Queue::new()?;
    for round in 0..20 {
        let blocks = [
            test.entry(Op::Read, disk.0, 0, &test.buffer(SECTOR)),
            test.entry(Op::Read, fd, 0, &test.buffer(SECTOR)),
            test.entry(Op::Write, disk.0, 4096, &test.buffer(SECTOR)),
            test.entry(Op::Write, fd, 4096, &test.buffer(SECTOR)),
        ];
        let list = test.list(blocks);
        if round % 2 == 0 {
            same(list.submit(LIO_WAIT, 0), Ok(()), "lio_listio")?;
        } else {
            let sig = test.sigevent(Sigevent::kevent(kq.0, round, 0));
            same(list.submit(LIO_NOWAIT, sig), Ok(()), "lio_listio")?;
            kq.expect_list(&list, round)?;
        }
        for cb in blocks {
            same(aio::error(cb.addr()), Ok(0), "all is done")?;
            same(aio::return_(cb.addr()), Ok(SECTOR as i64), "an entry")?;
        }
        kq.empty()?;
    }
    kq.none()
}

fn every_notification_works(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    let buffer = test.buffer(SECTOR);
    for round in 0..50 {
        let cb = test.notified(Op::Read, disk.0, &buffer, Sigevent::kevent(kq.0, round, 0));
        test.submit(Op::Read, cb)?;
        kq.expect(cb, 0, round, 0)?;
        same(aio::return_(cb.addr()), Ok(SECTOR as i64), "aio_return")?;
        let cb = test.notified(Op::Read, disk.0, &buffer, Sigevent::signal(signal.0, round));
        test.submit(Op::Read, cb)?;
        signal.expect(round)?;
        same(aio::return_(cb.addr()), Ok(SECTOR as i64), "aio_return")?;
    }
    kq.none()?;
    signal.none()
}

fn no_bytes_are_zero(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    for op in [Op::Read, Op::Write] {
        let cb = test.request(op, disk.0, 0, &test.buffer(0));
        same(test.perform(op, cb)?, Ok(0), "a request of no bytes")?;
    }
    Ok(())
}

fn no_pieces_are_zero(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let before = guest::sysctl::served();
    let cb = test.request(Op::Read, disk.0, 0, &test.buffer(SECTOR));
    same(test.perform(Op::Read, cb)?, Ok(SECTOR as i64), "a read")?;
    if before.is_some() && guest::sysctl::served() == before {
        return skip(format_args!("the built-in serves this disk, and the process could not end"));
    }
    for op in [Op::Readv, Op::Writev] {
        let cb = test.vectored(disk.0, 0, &[]);
        same(test.perform(op, cb)?, Ok(0), "a request of no pieces")?;
    }
    Ok(())
}

fn l01_bad_buffers_use_up_no_quota(test: &Test) -> Outcome {
    if guest::sysctl::get("vfs.unmapped_buf_allowed") != Some(0) {
        // Only transfers that are mapped are counted.
        return skip(format_args!("the kernel was not started with vfs.unmapped_buf_allowed=0"));
    }
    let disk = Disk::new(c"malloc")?;
    let pieces = test.pieces(&[test.buffer(SECTOR), Region::shared_at(HOLE, SECTOR)]);
    for _ in 0..64 {
        let cb = test.block();
        cb.set(aio::request(disk.0, 0, pieces.addr(), 2));
        refused(Op::Readv.submit(cb.addr()), EFAULT, "a bad buffer")?;
    }
    let cb = test.request(Op::Read, disk.0, 0, &test.buffer(SECTOR));
    same(test.perform(Op::Read, cb)?, Ok(SECTOR as i64), "a good read")
}

fn f28_an_address_used_again_is_the_new_memory(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let place = Region::map(2 * PAGE).must("mmap")?;
    for round in 0..10 {
        let from = patterned(test, 2 * PAGE, round);
        let cb = test.request(Op::Write, disk.0, 0, &from);
        same(test.perform(Op::Write, cb)?, Ok(2 * PAGE as i64), "a write")?;
        let cb = test.request(Op::Read, disk.0, 0, &place);
        same(test.perform(Op::Read, cb)?, Ok(2 * PAGE as i64), "a read")?;
        same(place.first_difference(&from), None, "the first byte that differs")?;
        // Other pages at the same address.
        sys::mmap_over(place.addr(), 2 * PAGE, sys::PROT_READ | sys::PROT_WRITE).must("mmap")?;
        same(place.word(0), 0, "the new memory")?;
    }
    Ok(())
}

fn f31_oddly_placed_pieces_of_every_size_are_done(test: &Test) -> Outcome {
    let disk = Disk::new(c"malloc")?;
    let (from, to) = (patterned(test, 1 << 20, 31), test.buffer(1 << 20));
    let mut rng = guest::rng::Rng::new(31);
    for round in 0..40 {
        let count = 1 + rng.below(8) as usize;
        let mut pieces = [[from, to]; 8];
        let (mut at, mut total) = (0, 0);
        for piece in &mut pieces[..count] {
            let skip = rng.below(PAGE as u64) as usize;
            let len = SECTOR * (1 + rng.below(24) as usize);
            *piece = [from.part(at + skip, len), to.part(at + skip, len)];
            (at, total) = (at + skip + len, total + len);
        }
        let cb = test.vectored(disk.0, 0, &pieces.map(|piece| piece[0])[..count]);
        same(test.perform(Op::Writev, cb)?, Ok(total as i64), "a write")?;
        to.fill(0xee);
        let cb = test.vectored(disk.0, 0, &pieces.map(|piece| piece[1])[..count]);
        same(test.perform(Op::Readv, cb)?, Ok(total as i64), "a read")?;
        for [from, to] in &pieces[..count] {
            same(to.first_difference(from), None, "the first byte that differs")?;
        }
        if round % 10 == 0 {
            // The same bytes in one piece.
            let whole = test.buffer(total);
            let cb = test.request(Op::Read, disk.0, 0, &whole);
            same(test.perform(Op::Read, cb)?, Ok(total as i64), "a read of all")?;
            let first = pieces[0][0];
            let differs = whole.part(0, first.len()).first_difference(&first);
            same(differs, None, "the first byte that differs")?;
        }
    }
    Ok(())
}
