// SPDX-License-Identifier: BSD-2-Clause
//! Submissions that are refused: with which errno, in which order, and what is left in the block.

use crate::harness::{OPS, Op, Outcome, Test, fail, refused, same};
use crate::{cases, check};
use guest::aio::{self, Cb, IOSIZE_MAX, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID};
use guest::errno::{EAGAIN, EBADF, EFAULT, EINVAL, EOPNOTSUPP};
use guest::mem::{HOLE, PAGE, Region};
use guest::sys;
use guest::{Errno, sysctl};

cases! { "submit":
    a_closed_descriptor_is_ebadf,
    a_descriptor_open_the_wrong_way_is_ebadf,
    f15_an_o_path_descriptor_is_ebadf,
    a_negative_offset_is_einval,
    a_negative_offset_is_einval_for_other_types_too,
    a_negative_offset_is_no_error_for_a_character_device,
    a_length_over_iosize_max_is_einval,
    too_many_pieces_are_einval,
    u4_pieces_of_too_many_bytes_are_einval,
    an_unmapped_list_of_pieces_is_efault,
    an_unknown_sigev_notify_is_einval,
    an_impossible_signal_is_einval,
    an_unmapped_aiocb_is_efault,
    an_aiocb_that_runs_into_an_unmapped_page_is_efault,
    f30_a_read_only_aiocb_is_einval,
    a_refusal_stores_minus_one_and_the_errno,
    a_refusal_before_the_job_number_leaves_kernelinfo_minus_one,
    faults_are_found_in_order,
    the_pieces_are_looked_at_before_the_rest,
    f22_an_unsafe_file_type_is_eopnotsupp,
    an_unsafe_file_type_is_the_last_thing_looked_at,
    unsafe_file_types_work_when_enabled,
    the_warning_for_unsafe_types_counts_down,
    a_refused_request_does_not_exist,
    the_other_fields_of_the_block_do_not_matter,
}

/// Submits and expects a refusal, which aio_error must tell of too.
fn refuses(test: &Test, op: Op, cb: Cb, wanted: Errno, what: &str) -> Outcome {
    let before = sysctl::get("vfs.aio.num_queue_count");
    refused(op.submit(cb.addr()), wanted, what)?;
    same(aio::error(cb.addr()), Ok(wanted.0), "aio_error after the refusal")?;
    refused(aio::return_(cb.addr()), EINVAL, "aio_return after the refusal")?;
    same(sysctl::get("vfs.aio.num_queue_count"), before, "requests queued after the refusal")?;
    let _ = test;
    Ok(())
}

fn a_closed_descriptor_is_ebadf(test: &Test) -> Outcome {
    let closed = test.file("file", 100)?;
    let _ = sys::close(closed);
    for op in OPS {
        for fd in [closed, -1, i32::MAX, i32::MIN] {
            let cb = test.request(op, fd, 0, &test.buffer(100));
            refuses(test, op, cb, EBADF, "submit")?;
        }
    }
    Ok(())
}

fn a_descriptor_open_the_wrong_way_is_ebadf(test: &Test) -> Outcome {
    test.file("file", 100)?;
    for op in OPS {
        let flags = if op.writes() { sys::O_RDONLY } else { sys::O_WRONLY };
        let cb = test.request(op, test.open("file", flags)?, 0, &test.buffer(100));
        refuses(test, op, cb, EBADF, "submit")?;
    }
    Ok(())
}

fn f15_an_o_path_descriptor_is_ebadf(test: &Test) -> Outcome {
    test.file("file", 100)?;
    let fd = test.open("file", sys::O_PATH)?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        refuses(test, op, cb, EBADF, "submit")?;
    }
    // A sync wants no right but the descriptor's own.
    let cb = test.request(Op::Read, fd, 0, &test.buffer(100));
    refused(aio::fsync(sys::O_SYNC, cb.addr()), EBADF, "aio_fsync")
}

fn a_negative_offset_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        for offset in [-1, i64::MIN] {
            let cb = test.request(op, fd, offset, &test.buffer(100));
            refuses(test, op, cb, EINVAL, "submit")?;
        }
    }
    // O_APPEND, where the offset is not used, makes no difference.
    let cb = test.request(
        Op::Write,
        test.open("file", sys::O_WRONLY | sys::O_APPEND)?,
        -1,
        &test.buffer(1),
    );
    refuses(test, Op::Write, cb, EINVAL, "append")
}

fn a_negative_offset_is_einval_for_other_types_too(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let cb = test.request(Op::Read, test.open(".", sys::O_RDONLY)?, -1, &test.buffer(100));
    refuses(test, Op::Read, cb, EINVAL, "a directory")?;
    let Ok((from, to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    let cb = test.request(Op::Read, from, -1, &test.buffer(100));
    refuses(test, Op::Read, cb, EINVAL, "a pipe")?;
    let cb = test.request(Op::Write, to, -1, &test.buffer(100));
    refuses(test, Op::Write, cb, EINVAL, "a pipe's other end")
}

fn a_negative_offset_is_no_error_for_a_character_device(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let cb = test.request(Op::Read, test.open("/dev/zero", sys::O_RDONLY)?, -1, &test.buffer(100));
    refuses(test, Op::Read, cb, EOPNOTSUPP, "/dev/zero")
}

fn a_length_over_iosize_max_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in [Op::Read, Op::Write] {
        for len in [IOSIZE_MAX + 1, usize::MAX] {
            let cb = test.block();
            cb.set(aio::request(fd, 0, test.buffer(100).addr(), len));
            refuses(test, op, cb, EINVAL, "submit")?;
        }
    }
    Ok(())
}

fn too_many_pieces_are_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let list = test.buffer(1025 * size_of::<sys::Iovec>());
    for op in [Op::Readv, Op::Writev] {
        for count in [1025, 0x7fff_ffff] {
            let cb = test.block();
            cb.set(aio::request(fd, 0, list.addr(), count));
            refuses(test, op, cb, EINVAL, "submit")?;
        }
        let cb = test.block();
        cb.set(aio::request(fd, 0, list.addr(), 1024));
        same(test.perform(op, cb)?, Ok(0), "1,024 empty pieces")?;
    }
    Ok(())
}

fn u4_pieces_of_too_many_bytes_are_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in [Op::Readv, Op::Writev] {
        for lens in [[IOSIZE_MAX, 1], [1, IOSIZE_MAX], [IOSIZE_MAX + 1, 0], [usize::MAX, 1]] {
            let list = test.buffer(32);
            for (index, len) in lens.into_iter().enumerate() {
                list.put(
                    index * size_of::<sys::Iovec>(),
                    sys::Iovec { base: test.buffer(100).addr(), len },
                );
            }
            let cb = test.block();
            cb.set(aio::request(fd, 0, list.addr(), 2));
            refuses(test, op, cb, EINVAL, "submit")?;
        }
    }
    Ok(())
}

fn an_unmapped_list_of_pieces_is_efault(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in [Op::Readv, Op::Writev] {
        for addr in [0, HOLE] {
            let cb = test.block();
            cb.set(aio::request(fd, 0, addr, 1));
            refuses(test, op, cb, EFAULT, "submit")?;
        }
    }
    Ok(())
}

fn an_unknown_sigev_notify_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        for notify in [SIGEV_THREAD, 5, -1, i32::MAX] {
            let cb = test.request(op, fd, 0, &test.buffer(100));
            let mut block = cb.get();
            block.sigevent.notify = notify;
            cb.set(block);
            refuses(test, op, cb, EINVAL, "submit")?;
        }
    }
    Ok(())
}

fn an_impossible_signal_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for notify in [SIGEV_SIGNAL, SIGEV_THREAD_ID] {
        for signo in [0, -1, 129, i32::MAX] {
            let cb = test.request(Op::Read, fd, 0, &test.buffer(100));
            let mut block = cb.get();
            (block.sigevent.notify, block.sigevent.signo) = (notify, signo);
            cb.set(block);
            refuses(test, Op::Read, cb, EINVAL, "submit")?;
        }
    }
    Ok(())
}

fn an_unmapped_aiocb_is_efault(_test: &Test) -> Outcome {
    // The last is not canonical, the one before it is the kernel's.
    let addresses = [0, 8, HOLE, guest::mem::KERNEL, usize::MAX - 7, 1 << (usize::BITS - 1)];
    for op in OPS {
        for addr in addresses {
            refused(op.submit(addr), EFAULT, "submit")?;
        }
    }
    Ok(())
}

fn an_aiocb_that_runs_into_an_unmapped_page_is_efault(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let Ok(pages) = Region::map(2 * PAGE) else { return fail(format_args!("mmap")) };
    let cb = Cb::at(&pages, PAGE - (aio::SIZE / 2 + 16));
    for op in OPS {
        test.prepare(cb, op, fd, 0, &test.buffer(100));
        let second = pages.part(PAGE, PAGE);
        if second.protect(0).is_err() {
            return fail(format_args!("mprotect"));
        }
        refused(op.submit(cb.addr()), EFAULT, "submit")?;
        let _ = second.protect(sys::PROT_READ | sys::PROT_WRITE);
        // The kernel's words were within reach: they are set as by any refusal.
        same(cb.private(), (-1, i64::from(EFAULT.0), -1), "status, error and kernelinfo")?;
    }
    Ok(())
}

fn f30_a_read_only_aiocb_is_einval(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        let Ok(page) = Region::map(PAGE) else { return fail(format_args!("mmap")) };
        let cb = Cb::at(&page, 0);
        test.prepare(cb, op, fd, 0, &test.buffer(100));
        let _ = page.protect(sys::PROT_READ);
        refused(op.submit(cb.addr()), EINVAL, "submit")?;
        same(cb.private(), (77, 78, 79), "status, error and kernelinfo")?;
        let _ = page.protect(sys::PROT_READ | sys::PROT_WRITE);
        same(test.perform(op, cb)?, Ok(100), "the same block, writable")?;
    }
    Ok(())
}

fn a_refusal_stores_minus_one_and_the_errno(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let fd = test.file("file", 100)?;
    let Ok((from, to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    let buffer = test.buffer(100);
    for op in OPS {
        let end = if op.writes() { to } else { from };
        for (fd, offset, wanted) in [(-1, 0, EBADF), (fd, -1, EINVAL), (end, 0, EOPNOTSUPP)] {
            let cb = test.request(op, fd, offset, &buffer);
            refused(op.submit(cb.addr()), wanted, "submit")?;
            let (status, error, _) = cb.private();
            same((status, error), (-1, i64::from(wanted.0)), "status and error")?;
        }
    }
    Ok(())
}

fn a_refusal_before_the_job_number_leaves_kernelinfo_minus_one(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        for (fd, offset) in [(-1, 0), (fd, -1)] {
            let cb = test.request(op, fd, offset, &test.buffer(100));
            check!(op.submit(cb.addr()).is_err(), "accepted");
            same(cb.kernelinfo(), -1, "kernelinfo")?;
        }
    }
    Ok(())
}

fn faults_are_found_in_order(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let fd = test.file("file", 100)?;
    let Ok((from, _to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    let buffer = test.buffer(100);
    let with = |fd, offset, nbytes, notify, signo| {
        let cb = test.block();
        let mut block = aio::request(fd, offset, buffer.addr(), nbytes);
        (block.sigevent.notify, block.sigevent.signo) = (notify, signo);
        cb.set(block);
        cb
    };
    let too_long = IOSIZE_MAX + 1;
    refused(
        Op::Read.submit(with(-1, 0, too_long, 0, 0).addr()),
        EINVAL,
        "length before descriptor",
    )?;
    refused(
        Op::Read.submit(with(-1, 0, 100, SIGEV_THREAD, 0).addr()),
        EINVAL,
        "notification before descriptor",
    )?;
    refused(
        Op::Read.submit(with(-1, 0, 100, SIGEV_SIGNAL, 0).addr()),
        EINVAL,
        "signal before descriptor",
    )?;
    refused(Op::Read.submit(with(-1, -1, 100, 0, 0).addr()), EBADF, "descriptor before offset")?;
    refused(Op::Read.submit(with(from, -1, 100, 0, 0).addr()), EINVAL, "offset before file type")?;
    // A read-only block is found after descriptor and offset, before the file type.
    let Ok(page) = Region::map(PAGE) else { return fail(format_args!("mmap")) };
    let cb = Cb::at(&page, 0);
    for (fd, wanted) in [(-1, EBADF), (from, EINVAL), (fd, EINVAL)] {
        test.prepare(cb, Op::Read, fd, 0, &buffer);
        let _ = page.protect(sys::PROT_READ);
        refused(Op::Read.submit(cb.addr()), wanted, "a read-only block")?;
        let _ = page.protect(sys::PROT_READ | sys::PROT_WRITE);
    }
    Ok(())
}

fn the_pieces_are_looked_at_before_the_rest(test: &Test) -> Outcome {
    for op in [Op::Readv, Op::Writev] {
        let cb = test.block();
        let mut block = aio::request(-1, -1, HOLE, 1);
        block.sigevent.notify = SIGEV_THREAD;
        cb.set(block);
        refused(op.submit(cb.addr()), EFAULT, "unmapped pieces with all else wrong too")?;
        block.nbytes = 1025;
        block.sigevent.notify = 0;
        cb.set(block);
        refused(op.submit(cb.addr()), EINVAL, "too many pieces with a bad descriptor")?;
    }
    Ok(())
}

/// Descriptors of types that are not safe: for reading and for writing.
fn unsafe_types(test: &Test) -> Result<[(&'static str, i32, i32); 4], crate::harness::Stop> {
    use crate::harness::Must;
    let (from, to) = sys::pipe().must("pipe")?;
    sys::mkfifo(c"fifo", 0o600).must("mkfifo")?;
    let reader = test.open("fifo", sys::O_RDONLY | sys::O_NONBLOCK)?;
    let writer = test.open("fifo", sys::O_WRONLY)?;
    let memory = sys::shm_anon().must("shm_open")?;
    sys::ftruncate(memory, 4096).must("ftruncate")?;
    let device = test.open("/dev/zero", sys::O_RDWR)?;
    Ok([
        ("pipe", from, to),
        ("fifo", reader, writer),
        ("shm", memory, memory),
        ("/dev/zero", device, device),
    ])
}

fn f22_an_unsafe_file_type_is_eopnotsupp(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    for (name, from, to) in unsafe_types(test)? {
        for op in OPS {
            let fd = if op.writes() { to } else { from };
            let cb = test.request(op, fd, 0, &test.buffer(100));
            refuses(test, op, cb, EOPNOTSUPP, name)?;
        }
    }
    Ok(())
}

fn an_unsafe_file_type_is_the_last_thing_looked_at(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let Ok((from, _to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    let cb = test.request(Op::Read, from, 0, &test.buffer(100));
    refuses(test, Op::Read, cb, EOPNOTSUPP, "a pipe")?;
    // By then the request had its number.
    check!(cb.kernelinfo() != -1, "kernelinfo is -1");
    Ok(())
}

fn unsafe_file_types_work_when_enabled(test: &Test) -> Outcome {
    let _unsafe = test.setting("vfs.aio.enable_unsafe", 1)?;
    for (name, from, to) in unsafe_types(test)? {
        let (out, back) = (test.buffer(100), test.buffer(100));
        out.fill(0x5a);
        let write = test.request(Op::Write, to, 0, &out);
        same(test.perform(Op::Write, write)?, Ok(100), name)?;
        let read = test.request(Op::Readv, from, 0, &back);
        same(test.perform(Op::Readv, read)?, Ok(100), name)?;
        if name == "/dev/zero" {
            out.fill(0);
        }
        check!(out.first_difference(&back).is_none(), "{name}: not what was written");
    }
    // Nothing there yet: the request waits for it.
    let Ok((from, to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    let cb = test.request(Op::Read, from, 0, &test.buffer(100));
    test.submit(Op::Read, cb)?;
    guest::time::sleep_ms(50);
    same(aio::error(cb.addr()), Ok(guest::errno::EINPROGRESS.0), "an empty pipe")?;
    same(sys::write(to, b"now"), Ok(3), "write")?;
    same(test.collect(cb)?, Ok(3), "the pipe's content")
}

fn the_warning_for_unsafe_types_counts_down(test: &Test) -> Outcome {
    let _safe = test.setting("vfs.aio.enable_unsafe", 0)?;
    let _count = test.setting("vfs.aio.unsafe_warningcnt", 2)?;
    let Ok((from, _to)) = sys::pipe() else { return fail(format_args!("pipe")) };
    for left in [1, 0, 0] {
        let cb = test.request(Op::Read, from, 0, &test.buffer(100));
        refused(Op::Read.submit(cb.addr()), EOPNOTSUPP, "a pipe")?;
        same(sysctl::get("vfs.aio.unsafe_warningcnt"), Some(left), "warnings left")?;
    }
    Ok(())
}

fn a_refused_request_does_not_exist(test: &Test) -> Outcome {
    test.use_aio()?;
    let fd = test.file("file", 100)?;
    let cb = test.request(Op::Read, fd, -1, &test.buffer(100));
    refused(Op::Read.submit(cb.addr()), EINVAL, "submit")?;
    same(aio::suspend(&[cb.addr()], None), Ok(()), "aio_suspend")?;
    same(aio::cancel(fd, cb.addr()), Ok(aio::AIO_ALLDONE), "aio_cancel")?;
    let none = aio::waitcomplete(Some(sys::Timespec::default()));
    same(none, aio::Completed { cb: 0, result: Err(EAGAIN) }, "aio_waitcomplete")
}

fn the_other_fields_of_the_block_do_not_matter(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        let mut block = cb.get();
        (block.opcode, block.reqprio) = (0x7777, -5);
        // With no notification asked for, the signal and the rest are not looked at.
        (block.sigevent.signo, block.sigevent.value) = (-1, usize::MAX);
        block.sigevent.more = [usize::MAX; 8];
        cb.set(block);
        same(test.perform(op, cb)?, Ok(100), "a request")?;
    }
    Ok(())
}
