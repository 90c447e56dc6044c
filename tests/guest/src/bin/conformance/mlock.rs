// SPDX-License-Identifier: BSD-2-Clause
//! aio_mlock: what it locks, and that whatever goes wrong with the memory is told later.

use crate::harness::{Hold, Must, Op, Outcome, Stop, Test, accepted, fail, refused, same, skip};
use crate::notify::{Queue, Signal};
use crate::{cases, check};
use guest::aio::{self, AIO_CANCELED, Cb, Sigevent};
use guest::errno::{
    EAGAIN, ECANCELED, ECAPMODE, EFAULT, EINPROGRESS, EINVAL, EIO, ENOMEM, ENOSYS, EPERM,
};
use guest::mem::{HOLE, PAGE, Region};
use guest::signal::SIGRTMIN;
use guest::{sys, sysctl};

cases! { "mlock":
    it_locks_memory,
    it_locks_whole_pages,
    f14_descriptor_and_offset_do_not_matter,
    no_bytes_are_locked_as_zero,
    unmapped_memory_fails_later_with_enomem,
    more_than_the_limit_fails_later_with_enomem,
    a_range_over_the_end_fails_later_with_einval,
    without_the_privilege_it_fails_later_with_eperm,
    u8_the_privilege_is_that_of_the_submission,
    a_length_over_iosize_max_is_einval,
    an_unmapped_aiocb_is_efault,
    an_unknown_notification_is_einval,
    the_limit_is_kept,
    a_queued_request_is_cancelled,
    every_notification_works,
    a_list_cannot_have_it,
    capability_mode_does_not_allow_it,
}

fn request(test: &Test, addr: usize, len: usize) -> Cb {
    let cb = test.block();
    cb.set(aio::request(-1, 0, addr, len));
    cb
}

fn submit(cb: Cb) -> Outcome {
    aio::mlock(cb.addr()).must("aio_mlock")?;
    accepted();
    Ok(())
}

fn perform(test: &Test, cb: Cb) -> Result<guest::Result<i64>, Stop> {
    submit(cb)?;
    test.collect(cb)
}

/// Pages that users have locked, in the whole system.
fn locked() -> Result<u64, Stop> {
    match sysctl::get("vm.stats.vm.v_user_wire_count") {
        Some(count) => Ok(count),
        None => skip(format_args!("no vm.stats.vm.v_user_wire_count")),
    }
}

fn it_locks_memory(test: &Test) -> Outcome {
    let before = locked()?;
    let buffer = test.buffer(20 * PAGE);
    let cb = request(test, buffer.addr(), buffer.len());
    submit(cb)?;
    same(test.done(cb)?, 0, "aio_error")?;
    same(locked()?, before + 20, "locked pages")?;
    same(aio::return_(cb.addr()), Ok(0), "aio_return")?;
    same((cb.status(), cb.error()), (0, 0), "status and error")?;
    same(locked()?, before + 20, "locked pages, collected")?;
    // Locking again is no error, and munlock(2) ends it.
    same(perform(test, cb)?, Ok(0), "aio_mlock again")?;
    sys::munlock(buffer.addr(), buffer.len()).must("munlock")?;
    same(locked()?, before, "locked pages in the end")
}

fn it_locks_whole_pages(test: &Test) -> Outcome {
    let before = locked()?;
    let buffer = test.buffer(4 * PAGE);
    // The last byte of a page, a whole one, and the first byte of the next.
    let cb = request(test, buffer.at(PAGE - 1), PAGE + 2);
    same(perform(test, cb)?, Ok(0), "aio_mlock")?;
    same(locked()?, before + 3, "locked pages")?;
    sys::munlock(buffer.addr(), buffer.len()).must("munlock")?;
    same(locked()?, before, "locked pages in the end")
}

fn f14_descriptor_and_offset_do_not_matter(test: &Test) -> Outcome {
    let (from, _to) = sys::pipe().must("pipe")?;
    for (fd, offset) in [(-1, -1), (i32::MAX, i64::MIN), (from, -5), (0, i64::MAX)] {
        let cb = request(test, test.buffer(PAGE).addr(), PAGE);
        test.edit(cb, |block| {
            (block.fildes, block.offset) = (fd, offset);
            (block.opcode, block.reqprio) = (-1, i32::MIN);
        });
        same(perform(test, cb)?, Ok(0), "aio_mlock")?;
    }
    Ok(())
}

fn no_bytes_are_locked_as_zero(test: &Test) -> Outcome {
    let before = locked()?;
    let cb = request(test, test.buffer(PAGE).addr(), 0);
    same(perform(test, cb)?, Ok(0), "aio_mlock")?;
    same(locked()?, before, "locked pages")
}

fn fails_later(test: &Test, cb: Cb, wanted: guest::Errno) -> Outcome {
    submit(cb)?;
    same(cb.status(), -1, "status")?;
    same(test.done(cb)?, wanted.0, "aio_error")?;
    refused(aio::return_(cb.addr()), wanted, "aio_return")?;
    same((cb.status(), cb.error()), (-1, i64::from(wanted.0)), "status and error")
}

fn unmapped_memory_fails_later_with_enomem(test: &Test) -> Outcome {
    let before = locked()?;
    fails_later(test, request(test, HOLE, PAGE), ENOMEM)?;
    let buffer = test.buffer(4 * PAGE);
    buffer.part(2 * PAGE, PAGE).unmap().must("munmap")?;
    fails_later(test, request(test, buffer.addr(), 4 * PAGE), ENOMEM)?;
    same(locked()?, before, "locked pages")
}

fn more_than_the_limit_fails_later_with_enomem(test: &Test) -> Outcome {
    sys::set_soft_limit(sys::RLIMIT_MEMLOCK, 4 * PAGE as i64).must("setrlimit")?;
    let buffer = test.buffer(8 * PAGE);
    fails_later(test, request(test, buffer.addr(), 5 * PAGE), ENOMEM)?;
    same(perform(test, request(test, buffer.addr(), 4 * PAGE))?, Ok(0), "as much as allowed")?;
    fails_later(test, request(test, buffer.at(4 * PAGE), PAGE), ENOMEM)
}

fn a_range_over_the_end_fails_later_with_einval(test: &Test) -> Outcome {
    // In 32 bits the sum does not overflow in the kernel, but nothing is mapped there.
    let wanted = if cfg!(target_pointer_width = "64") { EINVAL } else { ENOMEM };
    fails_later(test, request(test, usize::MAX - 10, 100), wanted)?;
    fails_later(test, request(test, usize::MAX - PAGE, aio::IOSIZE_MAX), wanted)
}

/// Has a child give root away and lock; it must end in an errno.
fn as_nobody(test: &Test, hold: Option<Hold<'_>>, wanted: guest::Result<i64>) -> Outcome {
    let before = hold.is_some();
    let ready = Region::map_shared(PAGE).must("mmap")?;
    let child = test.child(|test| {
        let cb = request(test, test.buffer(PAGE).addr(), PAGE);
        if before && submit(cb).is_err() {
            return 2;
        }
        if sys::setuid(65534).is_err() {
            return 3;
        }
        if !before && submit(cb).is_err() {
            return 4;
        }
        ready.atomic(0).store(1, core::sync::atomic::Ordering::SeqCst);
        match test.collect(cb) {
            Ok(result) if result == wanted => 0,
            Ok(Ok(_)) => 5,
            Ok(Err(error)) => 100 + error.0,
            Err(_) => 6,
        }
    })?;
    if let Some(hold) = hold {
        while ready.atomic(0).load(core::sync::atomic::Ordering::SeqCst) == 0 {
            guest::time::sleep_ms(2);
        }
        hold.release()?;
    }
    test.child_ended(child, "the child", guest::sys::Ended::Exit(0))
}

fn without_the_privilege_it_fails_later_with_eperm(test: &Test) -> Outcome {
    let _setting = test.setting("security.bsd.unprivileged_mlock", 0)?;
    as_nobody(test, None, Err(EPERM))
}

fn u8_the_privilege_is_that_of_the_submission(test: &Test) -> Outcome {
    let _setting = test.setting("security.bsd.unprivileged_mlock", 0)?;
    as_nobody(test, Some(test.hold()?), Ok(0))
}

fn a_length_over_iosize_max_is_einval(test: &Test) -> Outcome {
    for len in [aio::IOSIZE_MAX + 1, usize::MAX] {
        let cb = request(test, test.buffer(PAGE).addr(), len);
        refused(aio::mlock(cb.addr()), EINVAL, "aio_mlock")?;
        same(cb.private(), (-1, i64::from(EINVAL.0), -1), "status, error and kernelinfo")?;
        same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    }
    Ok(())
}

fn an_unmapped_aiocb_is_efault(_test: &Test) -> Outcome {
    for cb in [0, 8, HOLE, usize::MAX - 7] {
        refused(aio::mlock(cb), EFAULT, "aio_mlock")?;
    }
    Ok(())
}

fn an_unknown_notification_is_einval(test: &Test) -> Outcome {
    for sig in [
        Sigevent { notify: aio::SIGEV_THREAD, ..Sigevent::default() },
        Sigevent { notify: 17, ..Sigevent::default() },
        Sigevent::signal(0, 0),
        Sigevent::signal(129, 0),
    ] {
        let cb = request(test, test.buffer(PAGE).addr(), PAGE);
        test.edit(cb, |block| block.sigevent = sig);
        refused(aio::mlock(cb.addr()), EINVAL, "aio_mlock")?;
    }
    Ok(())
}

fn the_limit_is_kept(test: &Test) -> Outcome {
    let _limit = test.setting("vfs.aio.max_aio_queue_per_proc", 2)?;
    let cb = request(test, test.buffer(PAGE).addr(), PAGE);
    submit(cb)?;
    submit(cb)?;
    refused(aio::mlock(cb.addr()), EAGAIN, "one more")?;
    refused(aio::mlock(0), EAGAIN, "no block")?;
    for _ in 0..2 {
        same(aio::waitcomplete(None).result, Ok(0), "aio_waitcomplete")?;
    }
    same(perform(test, cb)?, Ok(0), "when there is room")
}

fn a_queued_request_is_cancelled(test: &Test) -> Outcome {
    let before = locked()?;
    let fd = test.file("file", 10)?;
    let hold = test.hold()?;
    for which in 0..2 {
        let cb = request(test, test.buffer(PAGE).addr(), PAGE);
        test.edit(cb, |block| block.fildes = fd);
        submit(cb)?;
        same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "aio_error")?;
        let addr = if which == 0 { cb.addr() } else { 0 };
        same(aio::cancel(fd, addr), Ok(AIO_CANCELED), "aio_cancel")?;
        refused(aio::return_(cb.addr()), ECANCELED, "aio_return")?;
    }
    hold.release()?;
    same(locked()?, before, "locked pages")
}

fn every_notification_works(test: &Test) -> Outcome {
    let kq = Queue::new()?;
    let signal = Signal::new(SIGRTMIN)?;
    let tid = sys::thr_self().must("thr_self")?;
    for (addr, error) in [(test.buffer(PAGE).addr(), 0), (HOLE, ENOMEM.0)] {
        let result = if error == 0 { Ok(0) } else { Err(guest::Errno(error)) };
        let cb = request(test, addr, PAGE);
        test.edit(cb, |block| block.sigevent = Sigevent::kevent(kq.0, 7, 0));
        submit(cb)?;
        kq.expect(cb, i64::from(error), 7, 0)?;
        same(aio::return_(cb.addr()), result, "aio_return")?;
        for sig in [Sigevent::signal(signal.0, 8), Sigevent::thread(signal.0, 8, tid)] {
            test.edit(cb, |block| block.sigevent = sig);
            submit(cb)?;
            signal.expect(8)?;
            same(aio::return_(cb.addr()), result, "aio_return")?;
        }
    }
    kq.none()
}

fn a_list_cannot_have_it(test: &Test) -> Outcome {
    let before = locked()?;
    let cb = request(test, test.buffer(PAGE).addr(), PAGE);
    test.edit(cb, |block| block.opcode = 0x20);
    refused(test.list([cb]).submit(aio::LIO_WAIT, 0), EIO, "lio_listio")?;
    same(aio::error(cb.addr()), Ok(EINVAL.0), "aio_error")?;
    same(locked()?, before, "locked pages")
}

fn capability_mode_does_not_allow_it(test: &Test) -> Outcome {
    let cb = request(test, test.buffer(PAGE).addr(), PAGE);
    match sys::cap_enter() {
        Ok(()) => {}
        Err(ENOSYS) => return skip(format_args!("no capability mode in this kernel")),
        Err(error) => return fail(format_args!("cap_enter: {error}")),
    }
    refused(aio::mlock(cb.addr()), ECAPMODE, "aio_mlock")?;
    let fd = test.request(Op::Read, 0, 0, &test.buffer(10));
    check!(aio::error(fd.addr()).is_ok(), "aio_error is not allowed");
    Ok(())
}
