// SPDX-License-Identifier: BSD-2-Clause
//! The calls of FreeBSD 6: aio_read, aio_write and lio_listio with the control block and the
//! notification of then. A kernel without COMPAT_FREEBSD6 does not have them.

use crate::harness::{Must, Outcome, Stop, Test, accepted, holds_pattern, refused, same, skip};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use guest::aio::{
    self, LIO_NOP, LIO_NOWAIT, LIO_READ, LIO_READV, LIO_WAIT, LIO_WRITE, LIO_WRITEV, SIGEV_KEVENT,
    SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID,
};
use guest::errno::{EAGAIN, EBADF, EFAULT, EINVAL, EIO, ENOENT, ENOSYS, EOPNOTSUPP};
use guest::kqueue::{self, EV_DELETE, EV_EOF, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::{HOLE, PAGE, Region};
use guest::oaio::{self, Oaiocb, Osigevent};
use guest::signal::{SI_ASYNCIO, SIGRTMIN, Set};
use guest::sys::{self, Timespec};

cases! { "old":
    reads_and_writes_are_done,
    results_are_stored_where_they_are_today,
    the_block_ends_where_it_did,
    only_none_signal_and_kevent_are_known,
    an_impossible_signal_is_einval,
    a_signal_comes_with_its_value differs "the value is 0",
    an_event_comes_with_its_value,
    a_bad_kqueue_is_ebadf,
    faults_are_found_in_order,
    an_unmapped_block_is_efault,
    a_list_is_done,
    a_list_has_the_limits_of_today,
    only_none_signal_and_kevent_are_known_to_a_list,
    the_list_signal_comes_once,
    the_list_event_comes_once,
    an_empty_list_signals_at_once,
    errors_of_a_list_are_those_of_today,
    a_list_signal_comes_with_its_value
        differs "the value is what the kernel's stack held",
    vectored_operations_of_a_list_are_done_or_refused
        breaks "the kernel goes through a null pointer",
}

/// A block of FreeBSD 6 and its address.
#[derive(Clone, Copy)]
struct Old(Region);

impl Old {
    fn addr(&self) -> usize {
        self.0.addr()
    }

    fn edit(&self, change: impl FnOnce(&mut Oaiocb)) {
        let mut block: Oaiocb = self.0.get(0);
        change(&mut block);
        self.0.put(0, block);
    }

    fn private(&self) -> (isize, isize, isize) {
        let block: Oaiocb = self.0.get(0);
        (block.status, block.error, block.kernelinfo)
    }
}

fn block(test: &Test, opcode: i32, fd: i32, offset: i64, buffer: &Region) -> Old {
    let memory = test.buffer(size_of::<Oaiocb>());
    memory.put(
        0,
        Oaiocb {
            fildes: fd,
            offset,
            buf: buffer.addr(),
            nbytes: buffer.len(),
            opcode,
            status: 77,
            error: 78,
            kernelinfo: 79,
            ..Oaiocb::default()
        },
    );
    Old(memory)
}

fn sigevent(notify: i32, signo: i32, value: usize) -> Osigevent {
    Osigevent { notify, signo, value }
}

/// Skips the case where the kernel has no such calls.
fn needs_old_calls() -> Outcome {
    sys::signal(sys::SIGSYS, sys::SIG_IGN, 0).must("sigaction")?;
    match oaio::listio(LIO_WAIT, 0, 0, 0) {
        Err(ENOSYS) => skip(format_args!("no COMPAT_FREEBSD6 in this kernel")),
        other => same(other, Ok(()), "an empty list"),
    }
}

fn read(old: Old) -> Outcome {
    oaio::read(old.addr()).must("aio_read")?;
    accepted();
    Ok(())
}

fn write(old: Old) -> Outcome {
    oaio::write(old.addr()).must("aio_write")?;
    accepted();
    Ok(())
}

fn done(old: Old) -> Result<i32, Stop> {
    for _ in 0..60 {
        let _ = aio::suspend(&[old.addr()], Some(Timespec::from_ms(1000)));
        let state = aio::error(old.addr()).must("aio_error")?;
        if state != guest::errno::EINPROGRESS.0 {
            return Ok(state);
        }
    }
    crate::harness::fail(format_args!("the request is not done after a minute"))
}

fn collect(old: Old) -> Result<guest::Result<i64>, Stop> {
    done(old)?;
    Ok(aio::return_(old.addr()))
}

fn listio(mode: i32, blocks: &[Old], sig: Option<Osigevent>, test: &Test) -> guest::Result<usize> {
    let list = test.buffer(blocks.len().max(1) * size_of::<usize>());
    for (index, old) in blocks.iter().enumerate() {
        list.put(index * size_of::<usize>(), old.addr());
    }
    let at = sig.map_or(0, |sig| {
        let memory = test.buffer(size_of::<Osigevent>());
        memory.put(0, sig);
        memory.addr()
    });
    let result = oaio::listio(mode, list.addr(), blocks.len() as i32, at);
    for old in blocks {
        if old.private().1 == guest::errno::EINPROGRESS.0 as isize {
            accepted();
        }
    }
    result.map(|()| list.addr())
}

fn reads_and_writes_are_done(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 5000)?;
    let [to, from] = [test.buffer(700), test.buffer(800)];
    from.fill(0x77);
    let old = block(test, 0, fd, 100, &to);
    // What the opcode says does not matter.
    old.edit(|block| block.opcode = -1);
    read(old)?;
    same(collect(old)?, Ok(700), "a read")?;
    holds_pattern(&to, 700, 100)?;
    let old = block(test, LIO_READ, fd, 6000, &from);
    write(old)?;
    same(aio::waitcomplete(None).cb, old.addr(), "aio_waitcomplete")?;
    let got = test.buffer(800);
    same(sys::pread_at(fd, got.addr(), 800, 6000), Ok(800), "pread")?;
    same(got.first_difference(&from), None, "the first byte that differs")
}

fn results_are_stored_where_they_are_today(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    let old = block(test, 0, fd, 0, &test.buffer(50));
    read(old)?;
    let (status, error, number) = old.private();
    same((status, error), (-1, guest::errno::EINPROGRESS.0 as isize), "status and error")?;
    check!(number > 0, "the job number is {number}");
    same(collect(old)?, Ok(50), "the read")?;
    same(old.private(), (50, 0, number), "status, error and kernelinfo")?;
    let bad = block(test, 0, -1, 0, &test.buffer(50));
    refused(oaio::read(bad.addr()), EBADF, "a bad descriptor")?;
    same(bad.private(), (-1, EBADF.0 as isize, -1), "status, error and kernelinfo")?;
    same(aio::error(bad.addr()), Ok(EBADF.0), "aio_error")
}

fn the_block_ends_where_it_did(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    let page = test.buffer(PAGE);
    test.buffer(PAGE).unmap().must("munmap")?;
    let from = block(test, 0, fd, 0, &test.buffer(50));
    let at = PAGE - size_of::<Oaiocb>();
    let end = Old(page.part(at, size_of::<Oaiocb>()));
    end.0.put(0, from.0.get::<Oaiocb>(0));
    read(end)?;
    same(collect(end)?, Ok(50), "a block at the end of a page")?;
    // A word less is too little.
    refused(oaio::read(end.addr() + size_of::<usize>()), EFAULT, "a block over the end")
}

fn only_none_signal_and_kevent_are_known(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for notify in [SIGEV_THREAD, SIGEV_THREAD_ID, 5, -1, i32::MIN] {
        let old = block(test, 0, fd, 0, &test.buffer(50));
        old.edit(|block| block.sigevent = sigevent(notify, SIGRTMIN, 1));
        for call in [oaio::read, oaio::write] {
            refused(call(old.addr()), EINVAL, "an unknown notification")?;
            same(old.private(), (-1, EINVAL.0 as isize, -1), "status, error, kernelinfo")?;
        }
    }
    let old = block(test, 0, fd, 0, &test.buffer(50));
    old.edit(|block| block.sigevent = sigevent(SIGEV_NONE, -1, usize::MAX));
    read(old)?;
    same(collect(old)?, Ok(50), "no notification")
}

fn an_impossible_signal_is_einval(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for signo in [0, -1, 129, i32::MAX] {
        let old = block(test, 0, fd, 0, &test.buffer(50));
        old.edit(|block| block.sigevent = sigevent(SIGEV_SIGNAL, signo, 1));
        refused(oaio::read(old.addr()), EINVAL, "an impossible signal")?;
    }
    Ok(())
}

fn a_signal_comes_with_its_value(test: &Test) -> Outcome {
    needs_old_calls()?;
    let signal = Signal::new(SIGRTMIN)?;
    let fd = test.file("file", 100)?;
    let old = block(test, 0, fd, 0, &test.buffer(50));
    old.edit(|block| block.sigevent = sigevent(SIGEV_SIGNAL, signal.0, 55));
    read(old)?;
    signal.expect(55)?;
    same(collect(old)?, Ok(50), "the read")?;
    signal.none()
}

fn event_of(old: Old, udata: usize) -> Kevent {
    Kevent { ident: old.addr(), filter: EVFILT_AIO, flags: EV_EOF, udata, ..Kevent::default() }
}

fn an_event_comes_with_its_value(test: &Test) -> Outcome {
    needs_old_calls()?;
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let old = block(test, 0, fd, 0, &test.buffer(50));
    old.edit(|block| block.sigevent = sigevent(SIGEV_KEVENT, kq.0, usize::MAX - 5));
    write(old)?;
    for _ in 0..2 {
        same(kq.some()?, event_of(old, usize::MAX - 5), "the event")?;
    }
    same(aio::return_(old.addr()), Ok(50), "aio_return")?;
    kq.none()
}

fn a_bad_kqueue_is_ebadf(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for kq in [-1, 9999, fd] {
        let old = block(test, 0, fd, 0, &test.buffer(50));
        old.edit(|block| block.sigevent = sigevent(SIGEV_KEVENT, kq, 1));
        refused(oaio::read(old.addr()), EBADF, "a bad kqueue")?;
        same(aio::error(old.addr()), Ok(EBADF.0), "aio_error")?;
    }
    Ok(())
}

fn faults_are_found_in_order(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    let (from, _to) = sys::pipe().must("pipe")?;
    let old = block(test, 0, fd, 0, &test.buffer(50));
    let is = |wanted, what: &str| refused(oaio::read(old.addr()), wanted, what);
    // All at once, then one less at a time.
    old.edit(|block| {
        (block.fildes, block.offset, block.nbytes) = (-1, -1, aio::IOSIZE_MAX + 1);
        block.sigevent = sigevent(SIGEV_THREAD_ID, 0, 0);
    });
    is(EINVAL, "an unknown notification")?;
    old.edit(|block| block.sigevent = sigevent(SIGEV_KEVENT, -1, 0));
    is(EINVAL, "a long request")?;
    old.edit(|block| block.nbytes = 50);
    is(EBADF, "a bad descriptor")?;
    old.edit(|block| block.fildes = from);
    is(EINVAL, "a bad offset")?;
    old.edit(|block| block.offset = 0);
    is(EBADF, "a bad kqueue")?;
    old.edit(|block| block.sigevent = sigevent(SIGEV_NONE, 0, 0));
    is(EOPNOTSUPP, "a pipe")?;
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 0)?;
    refused(oaio::read(0), EAGAIN, "no block, over the limit")
}

fn an_unmapped_block_is_efault(_test: &Test) -> Outcome {
    needs_old_calls()?;
    for at in [0, 8, HOLE, usize::MAX - 7] {
        for call in [oaio::read, oaio::write] {
            refused(call(at), EFAULT, "an unmapped block")?;
        }
    }
    Ok(())
}

fn a_list_is_done(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 5000)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let [to, from] = [test.buffer(700), test.buffer(800)];
        from.fill(0x33);
        let blocks = [
            block(test, LIO_READ, fd, 100, &to),
            block(test, LIO_WRITE, fd, 6000, &from),
            block(test, LIO_NOP, fd, -1, &to),
        ];
        listio(mode, &blocks, None, test).must("lio_listio")?;
        if mode == LIO_WAIT {
            same(aio::error(blocks[1].addr()), Ok(0), "aio_error")?;
        }
        same(collect(blocks[0])?, Ok(700), "the read")?;
        same(collect(blocks[1])?, Ok(800), "the write")?;
        same(aio::error(blocks[2].addr()), Ok(0), "aio_error of the nop")?;
        refused(aio::return_(blocks[2].addr()), EINVAL, "aio_return of the nop")?;
        holds_pattern(&to, 700, 100)?;
        same(sys::fstat(fd).map(|stat| stat.size), Ok(6800), "the file's size")?;
        sys::ftruncate(fd, 5000).must("ftruncate")?;
    }
    Ok(())
}

fn a_list_has_the_limits_of_today(test: &Test) -> Outcome {
    needs_old_calls()?;
    let limit = guest::sysctl::get("vfs.aio.max_aio_queue_per_proc").unwrap_or(256) as i32;
    let list = test.buffer(limit as usize * size_of::<usize>());
    for (mode, addr, count, sig, wanted) in [
        (2, list.addr(), 1, 0, Err(EINVAL)),
        (-1, 0, 0, HOLE, Err(EINVAL)),
        (LIO_WAIT, list.addr(), -1, 0, Err(EINVAL)),
        (LIO_NOWAIT, HOLE, limit + 1, HOLE, Err(EINVAL)),
        (LIO_NOWAIT, list.addr(), 1, HOLE, Err(EFAULT)),
        (LIO_WAIT, HOLE, 1, 0, Err(EFAULT)),
        (LIO_NOWAIT, HOLE, 1, 0, Err(EFAULT)),
        (LIO_WAIT, list.addr(), limit, HOLE, Ok(())),
        (LIO_NOWAIT, 0, 0, 0, Ok(())),
    ] {
        let what = guest::out::Text::<64>::of(format_args!("mode {mode}, {count} entries"));
        same(oaio::listio(mode, addr, count, sig), wanted, what.as_str())?;
    }
    Ok(())
}

fn only_none_signal_and_kevent_are_known_to_a_list(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for (sig, wanted) in [
        (sigevent(SIGEV_THREAD, SIGRTMIN, 1), EINVAL),
        (sigevent(SIGEV_THREAD_ID, SIGRTMIN, 1), EINVAL),
        (sigevent(-1, SIGRTMIN, 1), EINVAL),
        (sigevent(SIGEV_SIGNAL, 0, 1), EINVAL),
        (sigevent(SIGEV_SIGNAL, 129, 1), EINVAL),
        (sigevent(SIGEV_KEVENT, -1, 1), EBADF),
        (sigevent(SIGEV_KEVENT, fd, 1), EBADF),
    ] {
        let old = block(test, LIO_READ, fd, 0, &test.buffer(50));
        refused(listio(LIO_NOWAIT, &[old], Some(sig), test), wanted, "lio_listio")?;
        same(old.private(), (77, 78, 79), "status, error and kernelinfo")?;
        // Waiting, it is not looked at.
        same(listio(LIO_WAIT, &[old], Some(sig), test).map(|_| ()), Ok(()), "LIO_WAIT")?;
        same(aio::return_(old.addr()), Ok(50), "aio_return")?;
    }
    Ok(())
}

fn the_list_signal_comes_once(test: &Test) -> Outcome {
    needs_old_calls()?;
    let signal = Signal::new(SIGRTMIN)?;
    let fd = test.file("file", 100)?;
    let blocks = [(); 3].map(|()| block(test, LIO_READ, fd, 0, &test.buffer(50)));
    let sig = sigevent(SIGEV_SIGNAL, signal.0, 5);
    listio(LIO_NOWAIT, &blocks, Some(sig), test).must("lio_listio")?;
    signal.value()?;
    for old in blocks {
        same(aio::error(old.addr()), Ok(0), "all is done when the signal comes")?;
        same(aio::return_(old.addr()), Ok(50), "aio_return")?;
    }
    signal.none()
}

fn the_list_event_comes_once(test: &Test) -> Outcome {
    needs_old_calls()?;
    let kq = Queue::new()?;
    let fd = test.file("file", 100)?;
    let blocks = [(); 3].map(|()| block(test, LIO_READ, fd, 0, &test.buffer(50)));
    let sig = sigevent(SIGEV_KEVENT, kq.0, 99);
    let list = listio(LIO_NOWAIT, &blocks, Some(sig), test).must("lio_listio")?;
    let wanted = Kevent { ident: list, filter: EVFILT_LIO, udata: 99, ..Kevent::default() };
    same(kq.some()?, wanted, "the event")?;
    for old in blocks {
        same(kq.some()?, wanted, "the event, until all is collected")?;
        same(aio::return_(old.addr()), Ok(50), "aio_return")?;
    }
    kq.none()?;
    refused(kqueue::change(kq.0, list, EVFILT_LIO, EV_DELETE), ENOENT, "EV_DELETE")
}

fn an_empty_list_signals_at_once(test: &Test) -> Outcome {
    needs_old_calls()?;
    let signal = Signal::new(SIGRTMIN)?;
    let sig = sigevent(SIGEV_SIGNAL, signal.0, 5);
    listio(LIO_NOWAIT, &[], Some(sig), test).must("lio_listio")?;
    check!(signal.pending()?, "no signal when the call has returned");
    signal.value()?;
    signal.none()
}

fn errors_of_a_list_are_those_of_today(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for mode in [LIO_WAIT, LIO_NOWAIT] {
        let good = block(test, LIO_READ, fd, 0, &test.buffer(50));
        let fault = block(test, LIO_READ, fd, 0, &test.buffer(50));
        fault.edit(|block| block.buf = HOLE);
        same(listio(mode, &[fault, good], None, test).map(|_| ()), Ok(()), "a fault")?;
        refused(collect(fault)?, EFAULT, "the one that faults")?;
        same(collect(good)?, Ok(50), "the good one")?;
        for (opcode, fd, wanted) in [(3, fd, EINVAL), (8, fd, EINVAL), (LIO_NOP, -1, EBADF)] {
            let bad = block(test, opcode, fd, 0, &test.buffer(50));
            refused(listio(mode, &[bad, good], None, test), EIO, "a refused entry")?;
            same(aio::error(bad.addr()), Ok(wanted.0), "aio_error")?;
            same(collect(good)?, Ok(50), "the good one")?;
        }
        let limit = test.setting("vfs.aio.max_aio_queue_per_proc", 2)?;
        let first = block(test, LIO_READ, fd, 0, &test.buffer(50));
        read(first)?;
        let late = block(test, LIO_READ, fd, 0, &test.buffer(50));
        refused(listio(mode, &[good, late], None, test), EAGAIN, "over the limit")?;
        same(aio::error(late.addr()), Ok(EAGAIN.0), "aio_error")?;
        for old in [first, good] {
            same(collect(old)?, Ok(50), "a good one")?;
        }
        drop(limit);
    }
    Ok(())
}

fn a_list_signal_comes_with_its_value(test: &Test) -> Outcome {
    needs_old_calls()?;
    let signal = Signal::new(SIGRTMIN)?;
    for _ in 0..20 {
        let sig = sigevent(SIGEV_SIGNAL, signal.0, 5);
        listio(LIO_NOWAIT, &[], Some(sig), test).must("lio_listio")?;
        let info = guest::signal::wait(Set::of(signal.0), Timespec::from_ms(60_000));
        let info = info.must("wait for the signal")?;
        same((info.code, info.value), (SI_ASYNCIO, 5), "code and value")?;
    }
    Ok(())
}

fn vectored_operations_of_a_list_are_done_or_refused(test: &Test) -> Outcome {
    needs_old_calls()?;
    let fd = test.file("file", 100)?;
    for opcode in [LIO_READV, LIO_WRITEV] {
        // FreeBSD 6 had none; what is made of them must be one or the other.
        let pieces = test.pieces(&[test.buffer(10), test.buffer(7)]);
        let old = block(test, opcode, fd, 0, &pieces);
        old.edit(|block| block.nbytes = 2);
        match listio(LIO_WAIT, &[old], None, test) {
            Ok(_) => same(aio::return_(old.addr()), Ok(17), "aio_return")?,
            Err(error) => {
                same(error, EIO, "lio_listio")?;
                same(aio::error(old.addr()), Ok(EINVAL.0), "aio_error")?;
            }
        }
    }
    Ok(())
}
