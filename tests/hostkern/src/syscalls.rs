// SPDX-License-Identifier: BSD-2-Clause
//! The system calls of programs: those of AIO go through sysent[] into whatever is there, the others
//! are served here, as far as the guest programs use them.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::errno::*;
use crate::file::{self, O_CLOEXEC};
use crate::proc::{self, Descriptor};
use crate::sched::{self, SECOND, Woken};
use crate::state::Held;
use crate::user::Frame;
use crate::{
    bio, disk, imports, kqueue, limit, module, oracle, report, signal, socket, socket_calls, sys,
    sysctl, tools, vm,
};

type Result<T = u64> = std::result::Result<T, Errno>;

/// Where signal handlers return to: a page that every program has.
pub const TRAMPOLINE: u64 = vm::WINDOW_END - vm::PAGE;
const STACK_TOP: u64 = TRAMPOLINE - vm::PAGE;
const STACK_SIZE: u64 = 512 << 10;

/// mov eax, 417 (sigreturn); syscall; ud2.
const SIGRETURN: [u8; 9] = [0xb8, 0xa1, 0x01, 0, 0, 0x0f, 0x05, 0x0f, 0x0b];

/// Serves the call in the frame. False: the thread ends.
pub fn dispatch(frame: &mut Frame) -> bool {
    let (mut number, mut args) =
        (frame.rax, [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9, 0, 0]);
    // syscall(2) and __syscall(2).
    if number == 0 || number == 198 {
        number = args[0];
        args.rotate_left(1);
    }
    sched::count_syscall();
    bio::called(number);
    limit::refresh();
    sched::trace(number, 0);
    sched::note("system call", number, None);
    sched::point();
    let watched = oracle::begin(number, &args);
    let result = match number {
        1 => {
            proc::exit((args[0] as i32 & 0xff) << 8);
            return false;
        }
        431 => {
            thr_exit(args[0]);
            return false;
        }
        417 => {
            signal::sigreturn(frame);
            return true;
        }
        59 => match exec(&args, frame) {
            Ok(()) => return true,
            Err(error) => Err(error),
        },
        2 => {
            let mut child = frame.clone();
            child.rax = 0;
            child.rdx = 1;
            child.rflags &= !1;
            proc::fork(child, false).map(|pid| pid as u64)
        }
        251 => rfork(args[0] as u32, frame),
        imports::FORBIDDEN if proc::with(|its| its.in_capability_mode) => Err(ECAPMODE),
        number if imports::is_aio(number) => imports::aio_call(number, &mut args),
        number => call(number, &args),
    };
    if let Some(watched) = watched {
        oracle::end(watched, result);
    }
    sched::trace(
        number,
        result.map_or_else(|error| error.0 as u64, |value| if number == 5 { 0 } else { value }),
    );
    sched::note("system call", number, Some(result.unwrap_or_else(|error| error.0 as u64)));
    match result {
        Ok(value) => {
            frame.rax = value;
            frame.rflags &= !1;
        }
        Err(ERESTART) => {
            // Back to the instruction, which is two bytes.
            frame.rip -= 2;
        }
        Err(error) => {
            frame.rax = error.0 as u64;
            frame.rflags |= 1;
        }
    }
    sched::assert_no_locks("a system call");
    imports::assert_may_fault("a system call");
    true
}

fn call(number: u64, args: &[u64; 8]) -> Result {
    let a = |index: usize| args[index];
    let int = |index: usize| args[index] as i32;
    match number {
        3 | 475 => transfer(int(0), a(1), a(2), (number == 475).then_some(a(3) as i64), false),
        4 | 476 => transfer(int(0), a(1), a(2), (number == 476).then_some(a(3) as i64), true),
        5 => open(a(0), int(1), a(2) as u32),
        6 => close(int(0)),
        7 => wait4(int(0), a(1), int(2)),
        // SAFETY: a C string.
        10 => on_path(a(0), |path| unsafe { libc::unlink(path) }),
        12 => chdir(a(0)),
        20 => Ok(proc::pid() as u64),
        23 => setuid(a(0) as u32),
        24 => Ok(u64::from(proc::uid())),
        37 => signal::kill(int(0), int(1)).map(|()| 0),
        54 => ioctl(int(0), a(1), a(2)),
        73 => vm::unmap(proc::current_vm(), a(0), a(1)).map(|()| 0),
        74 => vm::protect(proc::current_vm(), a(0), a(1), int(2) & 7).map(|()| 0),
        82 => setpgid(int(0), int(1)),
        83 => setitimer(a(1)),
        90 => dup2(int(0), int(1)),
        92 => fcntl(int(0), int(1), int(2)),
        95 => with_fd(int(0), |_| Ok(0)),
        117 => getrusage(a(1)),
        // SAFETY: a C string.
        132 => on_path(a(0), |path| unsafe { libc::mkfifo(path, a(1) as u32) }),
        // SAFETY: a C string.
        136 => on_path(a(0), |path| unsafe { libc::mkdir(path, a(1) as u32) }),
        // SAFETY: a C string.
        137 => on_path(a(0), |path| unsafe { libc::rmdir(path) }),
        194 => getrlimit(int(0), a(1)),
        195 => setrlimit(int(0), a(1)),
        204 => {
            vm::unwire(proc::current_vm(), a(0), a(1));
            Ok(0)
        }
        202 => sysctl_numbers(a(0), a(1), a(2), a(3)),
        209 => poll(a(0), a(1), int(2)),
        232 => clock_gettime(a(1)),
        240 => nanosleep(a(0), a(1)),
        304 => kldload(a(0)),
        306 => module::number(&file_name(&path(a(0))?)).map(|number| number as u64).ok_or(ENOENT),
        444 => kldunload(int(0), int(1) == 1),
        331 => {
            sched::yield_now();
            Ok(0)
        }
        340 => sigprocmask(int(0), a(1), a(2)),
        343 => put_set(a(0), signal::pending()).map(|()| 0),
        345 => sigwait(a(0), a(1), Some(a(2))),
        346 => sigwait(a(0), a(1), None),
        362 => add_fd(file::kqueue(), 0, false),
        416 => sigaction(int(0), a(1), a(2)),
        432 => vm::write(a(0), proc::thread_number()).map(|()| 0),
        433 => signal::post_thread(a(0) as i64, int(1)).map(|()| 0),
        454 => umtx_op(a(0), int(1), a(2)),
        455 => thr_new(a(0)),
        477 => mmap(a(0), a(1), int(2), int(3), int(4)),
        478 => lseek(int(0), a(1) as i64, int(2)),
        480 => ftruncate(int(0), a(1) as i64),
        516 => {
            proc::with(|its| its.in_capability_mode = true);
            Ok(0)
        }
        533 => cap_rights_limit(int(0), a(1)),
        542 => pipe2(a(0), int(1)),
        551 => fstat(int(0), a(1)),
        554 => getdirentries(int(0), a(1), a(2) as usize),
        556 => fstatfs(int(0), a(1)),
        570 => sysctl_name(args),
        560 => kevent(args),
        571 => add_fd(file::memory()?, 0, false),
        tools::CALL => tools::call(a(0)),
        _ => match socket_calls::call(number, args) {
            Some(result) => result,
            None => {
                unserved(number);
                Err(ENOSYS)
            }
        },
    }
}

/// rfork(2) of a new process, with descriptors copied (RFFDG) or shared.
fn rfork(flags: u32, frame: &Frame) -> Result {
    const RFFDG: u32 = 4;
    const RFPROC: u32 = 16;
    if flags & !RFFDG != RFPROC {
        return Err(EINVAL);
    }
    let mut child = frame.clone();
    child.rax = 0;
    child.rdx = 1;
    child.rflags &= !1;
    proc::fork(child, flags & RFFDG == 0).map(|pid| pid as u64)
}

/// Calls nobody serves, once each.
fn unserved(number: u64) {
    static SEEN: Held<Vec<u64>> = Held::new(Vec::new());
    let first = SEEN.with(|seen| {
        let first = !seen.contains(&number);
        if first {
            seen.push(number);
        }
        first
    });
    if first {
        report::console(&format!("hostkern: system call {number} is not there (ENOSYS)\n"));
    }
}

// Descriptors.

/// The file of a descriptor, with the Capsicum rights asked for.
///
/// # Errors
/// EBADF, ENOTCAPABLE.
pub fn get(fd: i32, rights: [u64; 2]) -> Result<*mut sys::file> {
    proc::with_files(|files| {
        let slot = usize::try_from(fd).ok().and_then(|fd| files.get(fd));
        let descriptor = slot.and_then(Option::as_ref).ok_or(EBADF)?;
        if let Some(had) = descriptor.rights {
            // The top bits are the words' own.
            let lacks = |index: usize| rights[index] & !had[index] & ((1 << 57) - 1) != 0;
            if lacks(0) || lacks(1) {
                return Err(ENOTCAPABLE);
            }
        }
        Ok(file::hold(descriptor.fp))
    })
}

fn with_fd<R>(fd: i32, action: impl FnOnce(*mut sys::file) -> Result<R>) -> Result<R> {
    let fp = get(fd, [0, 0])?;
    let result = action(fp);
    file::release(fp);
    result
}

/// Gives a file a descriptor; takes over the reference.
///
/// # Errors
/// EMFILE.
pub fn add_fd(fp: *mut sys::file, from: usize, close_on_exec: bool) -> Result {
    let added = proc::with_files(|files| {
        let free = (from..files.len()).find(|&index| files[index].is_none());
        let index = free.unwrap_or(files.len().max(from));
        if index >= 4096 {
            return Err(EMFILE);
        }
        while files.len() <= index {
            files.push(None);
        }
        files[index] = Some(Descriptor { fp, rights: None, close_on_exec });
        Ok(index as u64)
    });
    if added.is_err() {
        file::release(fp);
    }
    added
}

/// close(2).
///
/// # Errors
/// EBADF.
pub fn close(fd: i32) -> Result {
    let gone = proc::with_files(|files| {
        let slot = usize::try_from(fd).ok().and_then(|fd| files.get_mut(fd));
        slot.and_then(Option::take).ok_or(EBADF)
    })?;
    kqueue::descriptor_closed(proc::descriptors(), fd);
    file::release(gone.fp);
    Ok(0)
}

fn dup2(from: i32, to: i32) -> Result {
    let fp = get(from, [0, 0])?;
    let Ok(index) = usize::try_from(to) else {
        file::release(fp);
        return Err(EBADF);
    };
    if from == to {
        file::release(fp);
        return Ok(to as u64);
    }
    let old = proc::with_files(|files| {
        while files.len() <= index {
            files.push(None);
        }
        let rights = files[from as usize].as_ref().and_then(|its| its.rights);
        files[index].replace(Descriptor { fp, rights, close_on_exec: false })
    });
    if let Some(old) = old {
        kqueue::descriptor_closed(proc::descriptors(), to);
        file::release(old.fp);
    }
    Ok(to as u64)
}

fn fcntl(fd: i32, command: i32, value: i32) -> Result {
    with_fd(fd, |fp| {
        // SAFETY: with_fd has a reference.
        let flag = unsafe { &mut (*fp).f_flag };
        match command {
            3 => Ok(u64::from(*flag) - 1),
            4 => {
                let settable = (file::O_NONBLOCK | file::O_APPEND) as u32;
                *flag = *flag & !settable | value as u32 & settable;
                if let Some(so) = socket::of(fp) {
                    socket::set_nonblocking(so, value & file::O_NONBLOCK != 0);
                }
                Ok(0)
            }
            _ => Err(EINVAL),
        }
    })
}

fn ioctl(fd: i32, command: u64, at: u64) -> Result {
    with_fd(fd, |fp| match file::controls_disks(fp) {
        true => disk::control(command, at).map(|()| 0),
        false => Err(ENOTTY),
    })
}

fn cap_rights_limit(fd: i32, at: u64) -> Result {
    let rights: [u64; 2] = vm::read(at)?;
    proc::with_files(|files| {
        let slot = usize::try_from(fd).ok().and_then(|fd| files.get_mut(fd));
        let descriptor = slot.and_then(Option::as_mut).ok_or(EBADF)?;
        descriptor.rights = Some(rights);
        Ok(0)
    })
}

fn transfer(fd: i32, at: u64, len: u64, offset: Option<i64>, write: bool) -> Result {
    let fp = get(fd, [0, 0])?;
    // SAFETY: the reference just taken.
    let flag = unsafe { (*fp).f_flag };
    let result = (|| {
        if flag & if write { sys::FWRITE } else { sys::FREAD } == 0 {
            return Err(EBADF);
        }
        if len > isize::MAX as u64 {
            return Err(EINVAL);
        }
        if offset.is_some_and(|offset| offset < 0) && file::disk_of(fp).is_none() {
            return Err(EINVAL);
        }
        if offset.is_some() && !file::is_vnode(fp) && file::host_fd(fp).is_none() {
            return Err(ESPIPE);
        }
        let mut iov = sys::iovec { iov_base: at as *mut _, iov_len: len as usize };
        let mut uio = sys::uio {
            uio_iov: &mut iov,
            uio_iovcnt: 1,
            uio_offset: offset.unwrap_or(0),
            uio_resid: len as isize,
            uio_segflg: sys::UIO_USERSPACE,
            uio_rw: if write { sys::UIO_WRITE } else { sys::UIO_READ },
            uio_td: sched::curthread(),
        };
        let flags = if offset.is_some() { sys::FOF_OFFSET as i32 } else { 0 };
        // SAFETY: the uio is ours, its range the current process's.
        let result = unsafe { file::transfer(fp, &mut uio, write, flags) };
        let moved = len - uio.uio_resid as u64;
        match result {
            Ok(()) => Ok(moved),
            Err(EINTR | ERESTART | EAGAIN) if moved > 0 => Ok(moved),
            Err(error) => {
                if error == EPIPE && write && !socket::of(fp).is_some_and(socket::has_no_sigpipe) {
                    signal::post_current(13);
                }
                Err(error)
            }
        }
    })();
    file::release(fp);
    result
}

fn pipe2(at: u64, flags: i32) -> Result {
    let (from, to) = file::pipe();
    let cloexec = flags & O_CLOEXEC != 0;
    let from = add_fd(from, 0, cloexec)?;
    let to = add_fd(to, 0, cloexec)?;
    vm::write(at, [from as i32, to as i32])?;
    Ok(0)
}

// Paths.

/// A path of the program's, made absolute.
fn path(at: u64) -> Result<PathBuf> {
    absolute(&vm::read_string(at)?)
}

/// A name of the program's, made absolute.
///
/// # Errors
/// ENOENT: it is empty. ECAPMODE: names mean nothing.
pub fn absolute(name: &[u8]) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(ENOENT);
    }
    proc::with(|its| {
        if its.in_capability_mode {
            return Err(ECAPMODE);
        }
        Ok(its.cwd.join(Path::new(std::ffi::OsStr::from_bytes(name))))
    })
}

fn on_path(at: u64, action: impl FnOnce(*const libc::c_char) -> i32) -> Result {
    let path = path(at)?;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| ENOENT)?;
    if action(name.as_ptr()) == 0 { Ok(0) } else { Err(last()) }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// kldload(2): the number of the file.
fn kldload(at: u64) -> Result {
    if proc::uid() != 0 {
        return Err(EPERM);
    }
    let path = path(at)?;
    let bytes = std::fs::read(&path).map_err(|error| of_host(&error))?;
    let name = file_name(&path);
    if module::number(&name).is_some() {
        return Err(EEXIST);
    }
    match imports::with_repeats(|| module::load(&name, &bytes)) {
        Ok(()) => Ok(module::number(&name).expect("just loaded") as u64),
        Err(why) => {
            report::console(&format!("kldload: {why}\n"));
            Err(ENOEXEC)
        }
    }
}

/// kldunloadf(2).
fn kldunload(number: i32, force: bool) -> Result {
    if proc::uid() != 0 {
        return Err(EPERM);
    }
    let name = module::name(number).ok_or(ENOENT)?;
    module::unload(&name, force).map(|()| 0).map_err(Errno)
}

fn open(at: u64, flags: i32, mode: u32) -> Result {
    let path = path(at)?;
    let fp = file::open(&path, flags, mode)?;
    add_fd(fp, 0, flags & O_CLOEXEC != 0)
}

fn chdir(at: u64) -> Result {
    let path = path(at)?;
    let canonical = path.canonicalize().map_err(|error| of_host(&error))?;
    if !canonical.is_dir() {
        return Err(ENOTDIR);
    }
    proc::with(|its| its.cwd = canonical);
    Ok(0)
}

fn host_fd(fp: *mut sys::file) -> Result<i32> {
    file::host_fd(fp).ok_or(EINVAL)
}

fn lseek(fd: i32, offset: i64, whence: i32) -> Result {
    with_fd(fd, |fp| {
        let host = file::host_fd(fp).ok_or(ESPIPE)?;
        // SAFETY: with_fd has a reference.
        let at = unsafe { &mut (*fp).f_offset };
        let new = match whence {
            0 => offset,
            1 => *at + offset,
            2 => file::host_stat(host)?.st_size + offset,
            _ => return Err(EINVAL),
        };
        if new < 0 {
            return Err(EINVAL);
        }
        *at = new;
        Ok(new as u64)
    })
}

fn ftruncate(fd: i32, len: i64) -> Result {
    with_fd(fd, |fp| {
        let host = host_fd(fp)?;
        // SAFETY: the file's own descriptor.
        if unsafe { libc::ftruncate(host, len) } == 0 { Ok(0) } else { Err(last()) }
    })
}

fn fstat(fd: i32, at: u64) -> Result {
    with_fd(fd, |fp| {
        let mut bytes = [0u8; 224];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match file::host_fd(fp) {
            Some(host) => {
                let stat = file::host_stat(host)?;
                put(0, &stat.st_dev.to_le_bytes());
                put(8, &stat.st_ino.to_le_bytes());
                put(16, &stat.st_nlink.to_le_bytes());
                put(24, &(stat.st_mode as u16).to_le_bytes());
                put(112, &stat.st_size.to_le_bytes());
                put(120, &stat.st_blocks.to_le_bytes());
                put(128, &(stat.st_blksize as i32).to_le_bytes());
            }
            None => put(24, &0o010_600u16.to_le_bytes()),
        }
        vm::copyout(bytes.as_ptr(), at, bytes.len())?;
        Ok(0)
    })
}

fn fstatfs(fd: i32, at: u64) -> Result {
    with_fd(fd, |_| {
        let mut bytes = [0u8; 2344];
        bytes[280..280 + file::FS_TYPE.len()].copy_from_slice(file::FS_TYPE);
        vm::copyout(bytes.as_ptr(), at, bytes.len())?;
        Ok(0)
    })
}

fn getdirentries(fd: i32, at: u64, room: usize) -> Result {
    with_fd(fd, |fp| {
        let bytes = file::directory(fp, room)?;
        vm::copyout(bytes.as_ptr(), at, bytes.len())?;
        Ok(bytes.len() as u64)
    })
}

// Memory.

fn mmap(at: u64, len: u64, prot: i32, flags: i32, fd: i32) -> Result {
    let shared = flags & 1 != 0;
    let at = if flags & 0x10 != 0 { at } else { 0 };
    if flags & 0x1000 != 0 {
        return vm::map(proc::current_vm(), at, len, prot & 7, shared, None);
    }
    with_fd(fd, |fp| vm::map(proc::current_vm(), at, len, prot & 7, shared, Some(host_fd(fp)?)))
}

// Processes.

fn setuid(uid: u32) -> Result {
    if proc::uid() != 0 && proc::uid() != uid {
        return Err(EPERM);
    }
    proc::set_uid(uid);
    Ok(0)
}

fn setpgid(pid: i32, group: i32) -> Result {
    let own = proc::pid();
    if pid != 0 && pid != own {
        return Err(ESRCH);
    }
    proc::with(|its| its.group = if group == 0 { own } else { group });
    Ok(0)
}

fn wait4(which: i32, status: u64, options: i32) -> Result {
    match proc::wait(which, options & 1 != 0)? {
        None => Ok(0),
        Some((pid, ended)) => {
            if status != 0 {
                vm::write(status, ended)?;
            }
            Ok(pid as u64)
        }
    }
}

fn exec(args: &[u64; 8], frame: &mut Frame) -> Result<()> {
    let path = path(args[0])?;
    let mut argv = Vec::new();
    for index in 0.. {
        match vm::read::<u64>(args[1] + index * 8)? {
            0 => break,
            at => argv.push(vm::read_string(at)?),
        }
    }
    if tools::is_one(&path) {
        return proc::exec(&path, &argv, frame);
    }
    let canonical = path.canonicalize().map_err(|error| of_host(&error))?;
    proc::exec(&canonical, &argv, frame)
}

fn sigaction(signal: i32, new: u64, old: u64) -> Result {
    if !(1..=128).contains(&signal) {
        return Err(EINVAL);
    }
    let previous = proc::with(|its| its.actions[signal as usize]);
    if new != 0 {
        if signal == signal::SIGKILL || signal == 17 {
            return Err(EINVAL);
        }
        let words: [u64; 4] = vm::read(new)?;
        // handler, then flags, then four words of mask whose bit 0 is signal 1.
        let low = words[1] >> 32 | words[2] << 32;
        let high = words[2] >> 32 | words[3] << 32;
        let mask = u128::from(high) << 64 | u128::from(low);
        let action = signal::Action { handler: words[0], flags: words[1] as i32, mask };
        proc::with(|its| its.actions[signal as usize] = action);
    }
    if old != 0 {
        vm::write(old, [previous.handler, u64::from(previous.flags as u32), 0, 0])?;
    }
    Ok(0)
}

/// A sigset_t of the program's; bit 0 is signal 1.
fn get_set(at: u64) -> Result<u128> {
    let [low, high]: [u64; 2] = vm::read(at)?;
    Ok(u128::from(high) << 64 | u128::from(low))
}

fn put_set(at: u64, set: u128) -> Result<()> {
    vm::write(at, [set as u64, (set >> 64) as u64])
}

fn sigprocmask(how: i32, new: u64, old: u64) -> Result {
    let set = if new == 0 { None } else { Some(get_set(new)?) };
    let previous = signal::set_mask(how, set)?;
    if old != 0 {
        put_set(old, previous)?;
    }
    Ok(0)
}

fn sigwait(set: u64, info_at: u64, limit: Option<u64>) -> Result {
    let set = get_set(set)?;
    let until = match limit {
        None | Some(0) => None,
        Some(at) => {
            let [seconds, nanoseconds]: [i64; 2] = vm::read(at)?;
            Some(sched::now() + span(seconds, nanoseconds)?)
        }
    };
    let (signal, info) = signal::wait_for(set, until)?;
    if info_at != 0 {
        vm::write(info_at, info)?;
    }
    Ok(signal as u64)
}

fn kevent(args: &[u64; 8]) -> Result {
    let [fd, changes, change_count, events, event_count, limit, ..] = *args;
    let until = match limit {
        0 => None,
        at => {
            let [seconds, nanoseconds]: [i64; 2] = vm::read(at)?;
            Some(sched::now() + span(seconds, nanoseconds)?)
        }
    };
    let poll = limit != 0 && vm::read::<[i64; 2]>(limit)? == [0, 0];
    let fp = get(fd as i32, [0, 0])?;
    let result =
        kqueue::kevent(fp, changes, change_count as i32, events, event_count as i32, until, poll);
    file::release(fp);
    result
}

fn getrusage(at: u64) -> Result {
    // SAFETY: the running thread's own counts.
    let usage = unsafe { (*sched::curthread()).td_ru };
    vm::write(at, usage)?;
    Ok(0)
}

fn getrlimit(which: i32, at: u64) -> Result {
    let which = usize::try_from(which).ok().filter(|&which| which < 15).ok_or(EINVAL)?;
    vm::write(at, [limit::current(which), limit::INFINITY])?;
    Ok(0)
}

fn setrlimit(which: i32, at: u64) -> Result {
    let which = usize::try_from(which).ok().filter(|&which| which < 15).ok_or(EINVAL)?;
    let [soft, _]: [i64; 2] = vm::read(at)?;
    limit::set(which, soft);
    Ok(0)
}

// Threads.

fn thr_new(at: u64) -> Result {
    // start, argument, stack, its size, tls and its size, where to store the number (child, parent).
    let param: [u64; 8] = vm::read(at)?;
    let mut frame = Frame { rip: param[0], rdi: param[1], ..Frame::default() };
    frame.rsp = ((param[2] + param[3]) & !15) - 8;
    let number = proc::new_thread(frame)?;
    for place in [param[6], param[7]] {
        if place != 0 {
            vm::write(place, number)?;
        }
    }
    Ok(0)
}

/// Where threads wait for a word of their process: odd, as all channels of ours.
fn umtx_chan(at: u64) -> u64 {
    0x40 << 56 | ((proc::current_vm() as u64) << 16 ^ at) << 1 | 1
}

fn thr_exit(state: u64) {
    if state != 0 {
        let _ = vm::write(state, 1u64);
        sched::wakeup(umtx_chan(state), false);
    }
}

fn umtx_op(at: u64, operation: i32, value: u64) -> Result {
    match operation {
        // UMTX_OP_WAIT.
        2 => {
            if vm::read::<u64>(at)? != value {
                return Ok(0);
            }
            match sched::sleep(umtx_chan(at), true, "umtx", None, || ()) {
                Woken::Signal(errno) => Err(Errno(errno)),
                _ => Ok(0),
            }
        }
        // UMTX_OP_WAKE.
        3 => {
            sched::wakeup(umtx_chan(at), false);
            Ok(0)
        }
        _ => Err(EOPNOTSUPP),
    }
}

// Time.

fn span(seconds: i64, nanoseconds: i64) -> Result<i64> {
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return Err(EINVAL);
    }
    Ok(seconds.min(1 << 30) * SECOND + ((nanoseconds as i128) << 32) as i64 / 1_000_000_000)
}

fn clock_gettime(at: u64) -> Result {
    let now = sched::now();
    let nanoseconds = (((now & 0xffff_ffff) as u64 * 1_000_000_000) >> 32) as i64;
    vm::write(at, [now >> 32, nanoseconds])?;
    Ok(0)
}

fn nanosleep(at: u64, left_at: u64) -> Result {
    let [seconds, nanoseconds]: [i64; 2] = vm::read(at)?;
    let until = sched::now() + span(seconds, nanoseconds)?;
    let chan = 0x41 << 56 | (sched::current() as u64) << 1 | 1;
    match sched::sleep(chan, true, "nanslp", Some(until), || ()) {
        // Restarting would sleep the whole span again.
        Woken::Signal(_) => {
            let _ = left_at;
            Err(EINTR)
        }
        _ => Ok(0),
    }
}

fn setitimer(at: u64) -> Result {
    // The interval, then the first expiry, in seconds and microseconds.
    let [every_s, every_us, first_s, first_us]: [i64; 4] = vm::read(at)?;
    signal::set_alarm(span(first_s, first_us * 1000)?, span(every_s, every_us * 1000)?);
    Ok(0)
}

fn poll(at: u64, count: u64, ms: i32) -> Result {
    if count != 1 {
        return Err(EINVAL);
    }
    let [fd, events]: [i32; 2] = vm::read(at)?;
    let until = (ms >= 0).then(|| sched::now() + i64::from(ms) * (SECOND / 1000));
    let ready = with_fd(fd, |fp| file::poll_in(fp, until))?;
    let answer = if ready { (events & 1) << 16 } else { 0 };
    vm::write(at, [fd, events & 0xffff | answer])?;
    Ok(u64::from(ready))
}

// sysctl.

fn sysctl_name(args: &[u64; 8]) -> Result {
    let [name, name_len, old, old_len, new, new_len, ..] = *args;
    let name = vm::read_bytes(name, (name_len as usize).min(256))?;
    let name = String::from_utf8(name).map_err(|_| ENOENT)?;
    let room = if old == 0 || old_len == 0 { 0 } else { vm::read::<u64>(old_len)? as usize };
    let value =
        if new == 0 { None } else { Some(vm::read_bytes(new, (new_len as usize).min(4096))?) };
    let root = proc::uid() == 0;
    let bytes = sysctl::access(&name, room.min(65536), value.as_deref(), root)?;
    if old != 0 {
        vm::copyout(bytes.as_ptr(), old, bytes.len())?;
    }
    if old_len != 0 {
        vm::write(old_len, bytes.len() as u64)?;
    }
    Ok(0)
}

fn sysctl_numbers(name: u64, count: u64, old: u64, old_len: u64) -> Result {
    let mut mib = [0i32; 4];
    if count != 4 {
        return Err(ENOENT);
    }
    vm::copyin(name, mib.as_mut_ptr().cast(), 16)?;
    // kern.proc.pathname of the calling process.
    if mib != [1, 14, 12, -1] {
        return Err(ENOENT);
    }
    let mut path = proc::with(|its| its.exe.clone()).into_os_string().into_vec();
    path.push(0);
    vm::copyout(path.as_ptr(), old, path.len())?;
    vm::write(old_len, path.len() as u64)?;
    Ok(0)
}

// Programs.

/// Loads a static program, with its stack, and returns its first registers.
pub fn load_program(vm: *mut sys::vmspace, path: &Path, argv: &[Vec<u8>]) -> Result<Frame> {
    let bytes = match tools::is_one(path) {
        true => tools::image(),
        false => std::fs::read(path).map_err(|error| of_host(&error))?,
    };
    let word = |at: usize, len: usize| -> Result<u64> {
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes.get(at..at + len).ok_or(ENOEXEC)?);
        Ok(u64::from_le_bytes(word))
    };
    // A 64-bit little-endian executable for amd64.
    if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1])
        || word(16, 2)? != 2
        || word(18, 2)? != 62
    {
        return Err(ENOEXEC);
    }
    let (entry, table) = (word(24, 8)?, word(32, 8)? as usize);
    let (size, count) = (word(54, 2)? as usize, word(56, 2)? as usize);
    for header in (0..count).map(|index| table + index * size) {
        if word(header, 4)? != 1 {
            continue;
        }
        let flags = word(header + 4, 4)?;
        let (offset, at) = (word(header + 8, 8)? as usize, word(header + 16, 8)?);
        let (in_file, in_memory) = (word(header + 32, 8)? as usize, word(header + 40, 8)?);
        let start = at & !(vm::PAGE - 1);
        let len = (at + in_memory).next_multiple_of(vm::PAGE) - start;
        // Execute is Linux's and FreeBSD's 4; in the header it is 1.
        let prot = (flags as i32 >> 2 & 1) | (flags as i32 & 2) | (flags as i32 & 1) << 2;
        vm::map(vm, start, len, 3, false, None)?;
        let data = bytes.get(offset..offset + in_file).ok_or(ENOEXEC)?;
        vm::fill(vm, at, data)?;
        vm::protect(vm, start, len, prot)?;
    }
    vm::map(vm, TRAMPOLINE, vm::PAGE, 3, false, None)?;
    vm::fill(vm, TRAMPOLINE, &SIGRETURN)?;
    vm::protect(vm, TRAMPOLINE, vm::PAGE, 5)?;
    vm::map(vm, STACK_TOP - STACK_SIZE, STACK_SIZE, 3, false, None)?;
    // argc, argv, an empty environment, an empty auxiliary vector, then the strings.
    let strings: usize = argv.iter().map(|arg| arg.len() + 1).sum();
    let words = 1 + argv.len() + 1 + 1 + 2;
    let base = (STACK_TOP - (strings + words * 8) as u64) & !15;
    let mut block = Vec::new();
    let mut text = Vec::new();
    block.extend((argv.len() as u64).to_le_bytes());
    for arg in argv {
        let at = base + (words * 8 + text.len()) as u64;
        block.extend(at.to_le_bytes());
        text.extend_from_slice(arg);
        text.push(0);
    }
    block.resize(words * 8, 0);
    block.extend(text);
    vm::fill(vm, base, &block)?;
    Ok(Frame { rip: entry, rdi: base, rsp: ((base - 8) & !15) + 8, ..Frame::default() })
}

/// How long a run takes in the program's time.
pub fn elapsed() -> Duration {
    let now = sched::now() - 10 * SECOND;
    Duration::from_nanos(((now as u128 * 1_000_000_000) >> 32) as u64)
}
