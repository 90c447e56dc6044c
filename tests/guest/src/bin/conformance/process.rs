// SPDX-License-Identifier: BSD-2-Clause
//! Requests and the life of a process: fork, exec, exit, SIGKILL, close, capability mode.

use crate::harness::{Must, OPS, Op, Outcome, Test, fail, pattern, refused, same, skip};
use crate::{cases, check};
use core::ffi::c_char;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::aio::{self, Cb};
use guest::errno::{EAGAIN, EINPROGRESS, EINVAL, ENOSYS, ENOTCAPABLE};
use guest::mem::Region;
use guest::sys::{self, Ended, Timespec};
use guest::time::{ms_since, now, sleep_ms};
use guest::{sysctl, thread};

cases! { "process":
    close_does_not_disturb,
    an_unlinked_file_is_written_to_its_end,
    u10_a_fork_child_sees_nothing,
    a_fork_child_may_use_the_same_block,
    a_fork_childs_end_does_not_disturb,
    exit_cancels_what_has_not_started,
    exit_with_requests_in_flight_leaves_nothing,
    exit_with_threads_waiting_leaves_nothing,
    after_exit_nothing_is_written,
    no_exit_takes_a_second
        differs "its exit looks once a second whether a request still runs",
    exit_does_not_wait_for_what_may_take_for_ever
        differs "it waits until the request is done, and cannot be killed",
    f03_exit_with_results_uncollected_leaves_nothing,
    f03_shared_memory_is_detached_when_wait_reports_the_process,
    a_killed_waiter_is_gone_soon,
    a_killed_submitter_is_gone_soon,
    f21_exec_leaves_nothing,
    exec_with_a_thread_waiting_leaves_nothing,
    rights_are_looked_at_when_submitting,
    rights_taken_away_later_do_not_matter,
    capability_mode_allows_the_calls,
}

fn close_does_not_disturb(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let other = test.file("other", 100)?;
    let hold = test.hold()?;
    let buffer = test.buffer(50);
    buffer.fill(0x5a);
    let cb = test.request(Op::Write, fd, 200, &buffer);
    test.submit(Op::Write, cb)?;
    sys::close(fd).must("close")?;
    // The number now means another file.
    sys::dup2(other, fd).must("dup2")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(50), "the request")?;
    let file = test.open("file", sys::O_RDONLY)?;
    same(sys::fstat(file).map(|stat| stat.size), Ok(250), "the file's size")?;
    same(sys::fstat(other).map(|stat| stat.size), Ok(100), "the other file's size")
}

fn an_unlinked_file_is_written_to_its_end(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(5000));
    test.submit(Op::Write, cb)?;
    sys::unlink(c"file").must("unlink")?;
    sys::close(fd).must("close")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(5000), "the request")
}

/// What a process that never used AIO gets to see; 0 if it is that.
fn sees_nothing(cb: usize, fd: i32) -> i32 {
    if aio::error(cb) != Ok(EINVAL.0) {
        return 10;
    }
    if aio::return_(cb) != Err(EINVAL) {
        return 11;
    }
    if aio::suspend(&[cb], None) != Err(EAGAIN) {
        return 12;
    }
    if aio::cancel(fd, 0) != Ok(aio::AIO_ALLDONE) {
        return 13;
    }
    let none = aio::waitcomplete(Some(Timespec::default()));
    if none != (aio::Completed { cb: 0, result: Err(EAGAIN) }) {
        return 14;
    }
    0
}

fn u10_a_fork_child_sees_nothing(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let done = test.request(Op::Read, fd, 0, &test.buffer(10));
    let held = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, held)?;
    test.in_child(
        "a child (10 aio_error, 11 aio_return, 12 aio_suspend, 13 aio_cancel, 14 aio_waitcomplete)",
        |_| sees_nothing(held.addr(), fd),
    )?;
    hold.release()?;
    same(test.collect(held)?, Ok(10), "the request")?;
    // The same for a request that is done.
    test.submit(Op::Read, done)?;
    same(test.done(done)?, 0, "aio_error")?;
    test.in_child("a second child", |_| sees_nothing(done.addr(), fd))?;
    same(aio::return_(done.addr()), Ok(10), "the finished request")
}

fn a_fork_child_may_use_the_same_block(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    let child = test.child(|test| {
        test.prepare(cb, Op::Write, fd, 50, &test.buffer(20));
        i32::from(!matches!(test.perform(Op::Write, cb), Ok(Ok(20))))
    })?;
    sleep_ms(100);
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the parent's request")?;
    hold.release()?;
    test.child_ended(child, "the child", Ended::Exit(0))?;
    same(test.collect(cb)?, Ok(10), "the parent's request")
}

fn a_fork_childs_end_does_not_disturb(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
    test.submit(Op::Write, cb)?;
    for _ in 0..3 {
        test.in_child("a child", |_| 0)?;
    }
    same(aio::error(cb.addr()), Ok(EINPROGRESS.0), "the request")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(10), "the request")
}

/// Runs a child that leaves requests behind, and checks that nothing is left of them.
fn leaves_nothing(
    test: &Test,
    what: &str,
    wanted: Ended,
    run: impl FnOnce(&Test) -> i32,
) -> Outcome {
    let before = sysctl::get("vfs.aio.num_queue_count");
    let pid = test.child(run)?;
    if wanted == Ended::Signal(sys::SIGKILL) {
        sleep_ms(150);
        sys::kill(pid, sys::SIGKILL).must("kill")?;
    }
    let start = now();
    test.child_ended(pid, what, wanted)?;
    check!(ms_since(start) < 30_000, "{what} took {} ms to end", ms_since(start));
    same(sysctl::get("vfs.aio.num_queue_count"), before, "requests queued afterwards")
}

fn exit_cancels_what_has_not_started(test: &Test) -> Outcome {
    let fd = test.file("file", 5000)?;
    let hold = test.hold()?;
    leaves_nothing(test, "a child", Ended::Exit(0), |test| {
        for index in 0..50 {
            let cb = test.request(Op::Write, fd, index * 100, &test.buffer(100));
            if Op::Write.submit(cb.addr()).is_err() {
                return 1;
            }
        }
        0
    })?;
    hold.release()?;
    for offset in (0..5000).step_by(100) {
        let mut byte = [0];
        same(sys::pread(fd, &mut byte, offset), Ok(1), "pread")?;
        same(byte[0], pattern(offset as usize), "a byte of the file")?;
    }
    Ok(())
}

fn exit_with_requests_in_flight_leaves_nothing(test: &Test) -> Outcome {
    const LEN: usize = 30_000;
    let fd = test.file("file", 0)?;
    for _ in 0..3 {
        leaves_nothing(test, "a child", Ended::Exit(0), |test| {
            let buffer = test.buffer(LEN);
            buffer.fill(0x5a);
            for index in 0..200 {
                let cb = test.request(OPS[1 + 2 * (index % 2)], fd, (index * LEN) as i64, &buffer);
                if OPS[1 + 2 * (index % 2)].submit(cb.addr()).is_err() {
                    return 1;
                }
            }
            0
        })?;
    }
    // Each write was done whole or not at all.
    let mut bytes = [0u8; LEN];
    for index in 0..200 {
        let count = sys::pread(fd, &mut bytes, (index * LEN) as i64).must("pread")?;
        let whole = bytes[..count].iter().all(|&byte| byte == bytes[0]);
        check!(count == 0 || (whole && count == LEN), "write {index} was done in part");
    }
    Ok(())
}

fn after_exit_nothing_is_written(test: &Test) -> Outcome {
    const LEN: usize = 2000;
    let fd = test.file("file", 0)?;
    for round in 0..20 {
        sys::ftruncate(fd, 0).must("ftruncate")?;
        let pid = test.child(|test| {
            let buffer = test.buffer(LEN);
            let submitted = (0..8).all(|index| {
                let cb = test.request(Op::Write, fd, (index * LEN) as i64, &buffer);
                Op::Write.submit(cb.addr()).is_ok()
            });
            // Some have begun then.
            (0..round).for_each(|_| sys::sched_yield());
            i32::from(!submitted)
        })?;
        // Not by looking now and then: what is late would be done by then.
        let ended = sys::wait(pid, 0).must("wait")?;
        let size = || sys::fstat(fd).map(|stat| stat.size);
        let at_once = size();
        same(ended, Some((pid, Ended::Exit(0))), "the child")?;
        sleep_ms(10);
        same(size(), at_once, "the file's size a moment later")?;
    }
    Ok(())
}

fn no_exit_takes_a_second(test: &Test) -> Outcome {
    const EXITS: usize = 100;
    let fd = test.file("file", 1 << 20)?;
    let buffer = test.buffer(1 << 18);
    let mut slow = 0;
    for round in 0..EXITS {
        let pid = test.child(|test| {
            for index in 0..=round as i64 % 8 {
                let cb = test.request(Op::Write, fd, index << 18, &buffer);
                if Op::Write.submit(cb.addr()).is_err() {
                    return 1;
                }
            }
            // Some requests have begun by then, and not ended.
            for _ in 0..round % 3 {
                sys::sched_yield();
            }
            0
        })?;
        let start = now();
        test.child_ended(pid, "a child", Ended::Exit(0))?;
        slow += u32::from(ms_since(start) >= 1000);
    }
    // What is counted is not how long an exit takes, but how many slept for the clock; one may be
    // the machine's.
    check!(slow <= 1, "{slow} of {EXITS} exits took a second or more");
    Ok(())
}

fn exit_does_not_wait_for_what_may_take_for_ever(test: &Test) -> Outcome {
    let _unsafe_files = test.setting("vfs.aio.enable_unsafe", 1)?;
    for killed in [false, true] {
        let (from, to) = sys::pipe().must("pipe")?;
        let pid = test.child(|test| {
            let cb = test.request(Op::Write, to, 0, &test.buffer(1 << 20));
            let started = sys::close(from).and_then(|()| Op::Write.submit(cb.addr()));
            sleep_ms(100);
            while killed {
                sleep_ms(1000);
            }
            i32::from(started.is_err())
        })?;
        check!(sys::poll_in(from, 30_000) == Ok(true), "the write does not start");
        let wanted = if killed { Ended::Signal(sys::SIGKILL) } else { Ended::Exit(0) };
        if killed {
            sleep_ms(200);
            sys::kill(pid, sys::SIGKILL).must("kill")?;
        }
        let start = now();
        let mut ended = None;
        while ended.is_none() && ms_since(start) < 10_000 {
            ended = sys::wait(pid, sys::WNOHANG).must("wait")?.map(|(_, ended)| ended);
            sleep_ms(5);
        }
        // The request goes on, or has been forgotten: nobody reads what it writes.
        sys::close(from).must("close")?;
        sys::close(to).must("close")?;
        match ended {
            Some(ended) => same(ended, wanted, "the child")?,
            None => {
                test.child_ended(pid, "the child, with its request done", wanted)?;
                return fail(format_args!("an exit waits for a pipe"));
            }
        }
    }
    Ok(())
}

fn exit_with_threads_waiting_leaves_nothing(test: &Test) -> Outcome {
    fn waits(_: usize) {
        let _ = aio::waitcomplete(None);
    }
    fn suspends(cb: usize) {
        let _ = aio::suspend(&[cb], None);
    }
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    leaves_nothing(test, "a child", Ended::Exit(0), |test| {
        let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
        let started = Op::Write.submit(cb.addr()).is_ok()
            && thread::spawn(waits, 0).is_ok()
            && thread::spawn(suspends, cb.addr()).is_ok();
        sleep_ms(100);
        i32::from(!started)
    })?;
    hold.release()
}

fn f03_exit_with_results_uncollected_leaves_nothing(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    leaves_nothing(test, "a child", Ended::Exit(0), |test| {
        for _ in 0..100 {
            let cb = test.request(Op::Read, fd, 0, &test.buffer(10));
            if !matches!(test.submit(Op::Read, cb).and_then(|()| test.done(cb)), Ok(0)) {
                return 1;
            }
        }
        0
    })
}

/// System V shared memory, by the calls' numbers.
mod shm {
    use guest::{Result, sys};

    const SHMAT: u64 = 228;
    const SHMGET: u64 = 231;
    const SHMCTL: u64 = 512;
    const IPC_RMID: usize = 0;
    const IPC_STAT: usize = 2;
    /// IPC_CREAT, and the owner's rights.
    const CREATE: usize = 0o1600;
    /// Where shm_nattch is in struct shmid_ds, in words of 32 bits.
    const ATTACHED: usize = if size_of::<usize>() == 8 { 12 } else { 9 };

    /// A segment of its own, removed when dropped.
    pub struct Segment(usize);

    impl Segment {
        pub fn new(size: usize) -> Result<Segment> {
            sys::call(SHMGET, [0, size, CREATE, 0, 0, 0]).map(Segment)
        }

        pub fn attach(&self) -> Result<usize> {
            sys::call(SHMAT, [self.0, 0, 0, 0, 0, 0])
        }

        /// How often it is attached.
        pub fn attached(&self) -> Result<u32> {
            let mut state = [0u32; 64];
            sys::call(SHMCTL, [self.0, IPC_STAT, state.as_mut_ptr().addr(), 0, 0, 0])?;
            Ok(state[ATTACHED])
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            let _ = sys::call(SHMCTL, [self.0, IPC_RMID, 0, 0, 0, 0]);
        }
    }
}

fn f03_shared_memory_is_detached_when_wait_reports_the_process(test: &Test) -> Outcome {
    if sysctl::get("kern.ipc.shmmax").is_none() {
        return skip(format_args!("no System V shared memory here"));
    }
    let fd = test.file("file", 100)?;
    let segment = shm::Segment::new(4096).must("shmget")?;
    same(segment.attached(), Ok(0), "attachments of a new segment")?;
    for _ in 0..5 {
        let pid = test.child(|test| {
            let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
            let done = segment.attach().is_ok()
                && segment.attached() == Ok(1)
                && matches!(test.submit(Op::Write, cb).and_then(|()| test.done(cb)), Ok(0));
            // Whoever performed it has gone to sleep by then.
            sleep_ms(50);
            i32::from(!done)
        })?;
        test.child_ended(pid, "a child", Ended::Exit(0))?;
        same(segment.attached(), Ok(0), "attachments when the child has ended")?;
    }
    Ok(())
}

fn a_killed_waiter_is_gone_soon(test: &Test) -> Outcome {
    let fd = test.file("file", 100)?;
    let hold = test.hold()?;
    for way in 0..4 {
        leaves_nothing(test, "a child", Ended::Signal(sys::SIGKILL), |test| {
            let cb = test.request(Op::Write, fd, 0, &test.buffer(10));
            let _ = Op::Write.submit(cb.addr());
            let hour = Some(Timespec::from_ms(3_600_000));
            match way {
                0 => drop(aio::suspend(&[cb.addr()], None)),
                1 => drop(aio::suspend(&[cb.addr()], hour)),
                2 => drop(aio::waitcomplete(None).result),
                _ => drop(aio::waitcomplete(hour).result),
            }
            1
        })?;
    }
    hold.release()
}

fn a_killed_submitter_is_gone_soon(test: &Test) -> Outcome {
    let fd = test.file("file", 1 << 20)?;
    for _ in 0..4 {
        leaves_nothing(test, "a child", Ended::Signal(sys::SIGKILL), |test| {
            let buffer = test.buffer(100_000);
            let blocks = [(); 100].map(|()| test.request(Op::Write, fd, 0, &buffer));
            loop {
                for cb in blocks {
                    let _ = Op::Write.submit(cb.addr());
                }
                while aio::waitcomplete(None).cb == 0 {}
            }
        })?;
    }
    Ok(())
}

/// Memory that the program has at the same address after an exec of itself: requests of before
/// must not write here.
static ARENA: [AtomicU64; 32768] = [const { AtomicU64::new(0) }; 32768];
const MARK: u64 = 0x6d61_726b_6d61_726b;

/// Starts many reads into the arena, of which only two may run at a time, and becomes another
/// program: this one, with `--after-exec`.
fn exec_with_requests(test: &Test, waiting: bool) -> Outcome {
    fn waits(_: usize) {
        let _ = aio::waitcomplete(Some(Timespec::from_ms(3_600_000)));
        sleep_ms(3_600_000);
    }
    let fd = test.file("file", 1 << 20)?;
    let own = sys::own_path().must("kern.proc.pathname")?;
    let few = test.setting("vfs.aio.max_aio_per_proc", 2)?;
    let held = if waiting { Some(test.hold()?) } else { None };
    let arena = Region::shared_at(ARENA.as_ptr() as usize, size_of_val(&ARENA));
    leaves_nothing(test, "the program after exec", Ended::Exit(0), |test| {
        for index in 0..200 {
            let cb = test.request(OPS[2 * (index % 2)], fd, index as i64 * 4096, &arena);
            if OPS[2 * (index % 2)].submit(cb.addr()).is_err() {
                return 2;
            }
        }
        if waiting && thread::spawn(waits, 0).is_err() {
            return 3;
        }
        sleep_ms(if waiting { 100 } else { 0 });
        let argv: [*const c_char; 3] =
            [own.as_cstr().as_ptr(), c"--after-exec".as_ptr(), core::ptr::null()];
        let _ = sys::execve(own.as_cstr(), &argv);
        4
    })?;
    drop(few);
    match held {
        Some(hold) => hold.release(),
        None => Ok(()),
    }
}

/// The program after the exec: sees nothing of the requests, and they do not touch its memory.
pub fn after_exec() -> i32 {
    for word in &ARENA {
        word.store(MARK, Ordering::Relaxed);
    }
    let Ok(memory) = Region::map(1 << 16) else { return 20 };
    let cb = Cb::at(&memory, 0);
    let Ok(fd) = sys::open(c"file", sys::O_RDONLY, 0) else { return 21 };
    let seen = sees_nothing(cb.addr(), fd);
    if seen != 0 {
        return seen;
    }
    sleep_ms(200);
    if ARENA.iter().any(|word| word.load(Ordering::Relaxed) != MARK) {
        return 22;
    }
    // The limits may still be such that nothing starts; a request is accepted nevertheless.
    cb.set(aio::request(fd, 0, memory.at(4096), 100));
    i32::from(aio::read(cb.addr()).is_err()) * 23
}

fn f21_exec_leaves_nothing(test: &Test) -> Outcome {
    for _ in 0..5 {
        exec_with_requests(test, false)?;
    }
    Ok(())
}

fn exec_with_a_thread_waiting_leaves_nothing(test: &Test) -> Outcome {
    exec_with_requests(test, true)
}

/// A descriptor of the test file with these Capsicum rights only.
fn limited(test: &Test, flags: i32, rights: u64) -> Result<i32, crate::harness::Stop> {
    let fd = test.open("file", flags)?;
    match sys::cap_rights_limit(fd, rights) {
        Ok(()) => Ok(fd),
        Err(ENOSYS) => skip(format_args!("no capabilities in this kernel")),
        Err(error) => fail(format_args!("cap_rights_limit: {error}")),
    }
}

fn rights_are_looked_at_when_submitting(test: &Test) -> Outcome {
    test.file("file", 1000)?;
    let all = sys::CAP_PREAD | sys::CAP_PWRITE;
    // Reading at an offset needs the right to seek too.
    for rights in
        [0, sys::CAP_FSTAT, sys::CAP_READ, sys::CAP_WRITE, sys::CAP_PREAD, sys::CAP_PWRITE, all]
    {
        let fd = limited(test, sys::O_RDWR, rights)?;
        for op in OPS {
            let needed = if op.writes() { sys::CAP_PWRITE } else { sys::CAP_PREAD };
            let cb = test.request(op, fd, 0, &test.buffer(100));
            if rights & needed == needed {
                same(test.perform(op, cb)?, Ok(100), "with the right")?;
            } else {
                refused(op.submit(cb.addr()), ENOTCAPABLE, "without the right")?;
                let stored = (-1, i64::from(ENOTCAPABLE.0), -1);
                same(cb.private(), stored, "status, error and kernelinfo")?;
            }
        }
        // No right is needed to cancel.
        same(aio::cancel(fd, 0), Ok(aio::AIO_ALLDONE), "aio_cancel")?;
        let _ = sys::close(fd);
    }
    Ok(())
}

fn rights_taken_away_later_do_not_matter(test: &Test) -> Outcome {
    test.file("file", 1000)?;
    let fd = limited(test, sys::O_RDWR, sys::CAP_PWRITE)?;
    let hold = test.hold()?;
    let cb = test.request(Op::Write, fd, 0, &test.buffer(100));
    test.submit(Op::Write, cb)?;
    sys::cap_rights_limit(fd, 0).must("cap_rights_limit")?;
    hold.release()?;
    same(test.collect(cb)?, Ok(100), "the request")
}

fn capability_mode_allows_the_calls(test: &Test) -> Outcome {
    let fd = test.file("file", 1000)?;
    match sys::cap_enter() {
        Ok(()) => {}
        Err(ENOSYS) => return skip(format_args!("no capability mode in this kernel")),
        Err(error) => return fail(format_args!("cap_enter: {error}")),
    }
    for op in OPS {
        let cb = test.request(op, fd, 0, &test.buffer(100));
        same(test.perform(op, cb)?, Ok(100), "a request")?;
        test.submit(op, cb)?;
        same(aio::waitcomplete(None).result, Ok(100), "aio_waitcomplete")?;
    }
    same(aio::cancel(fd, 0), Ok(aio::AIO_ALLDONE), "aio_cancel")
}
