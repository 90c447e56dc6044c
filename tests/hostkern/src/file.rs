// SPDX-License-Identifier: BSD-2-Clause
//! Open files: regular files and directories of the host, and what else has a descriptor; struct file,
//! fileops and struct vnode as the modules see them.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::errno::*;
use crate::socket::So;
use crate::state::Held;
use crate::{
    disk, imports, kqueue, limit, mem, pipe, report, sched, signal, socket, socket_io, sys, vm,
};

/// Open flags of FreeBSD that are looked at here.
pub const O_ACCMODE: i32 = 3;
pub const O_NONBLOCK: i32 = 4;
pub const O_APPEND: i32 = 8;
pub const O_CREAT: i32 = 0x200;
pub const O_TRUNC: i32 = 0x400;
pub const O_EXCL: i32 = 0x800;
pub const O_DIRECTORY: i32 = 0x2_0000;
pub const O_CLOEXEC: i32 = 0x10_0000;
pub const O_PATH: i32 = 0x40_0000;

/// What the host's files pretend to be on.
pub const FS_TYPE: &[u8] = b"ufs";

/// What is behind a struct file.
enum Body {
    Host {
        file: File,
        vnode: (u64, u64),
        entries: Vec<(u64, u8, Vec<u8>)>,
    },
    Console,
    Pipe(*mut sys::pipe),
    Socket(So),
    /// A named pipe: as a pipe while somebody has it open.
    Fifo {
        flag: i32,
        vnode: (u64, u64),
    },
    Kqueue,
    Memory(File),
    Disk {
        disk: u64,
        vnode: (u64, u64),
    },
    /// /dev/mdctl.
    DiskControl,
}

#[derive(Default)]
struct Files {
    bodies: BTreeMap<usize, Body>,
    /// By the host's device and inode: the vnode and how many files have it.
    vnodes: BTreeMap<(u64, u64), (usize, usize)>,
    ranges: Vec<Range>,
    next_range: usize,
    /// Who waits for a range, in order: the lock, and a number.
    range_waits: Vec<(usize, usize)>,
    /// Who has a vnode's lock.
    locked: BTreeMap<usize, usize>,
    writes_started: i64,
}

/// A locked range of a file: rangelock(9)'s kind.
struct Range {
    cookie: usize,
    lock: usize,
    start: i64,
    end: i64,
    writes: bool,
}

static FILES: Held<Files> = Held::new(Files {
    bodies: BTreeMap::new(),
    vnodes: BTreeMap::new(),
    ranges: Vec::new(),
    next_range: 1,
    range_waits: Vec::new(),
    locked: BTreeMap::new(),
    writes_started: 0,
});

/// The tables of operations and the one mount, made at start.
struct Tables {
    vnode: *mut sys::fileops,
    other: *mut sys::fileops,
    socket: *mut sys::fileops,
    mount: *mut sys::mount,
}

static TABLES: Held<Option<Tables>> = Held::new(None);

pub fn start() {
    let table = |queues: bool| {
        let ops: *mut sys::fileops = mem::new_object();
        // SAFETY: just made, all zeros, which is no operation at all.
        unsafe {
            (*ops).fo_read = imports::fo_read();
            (*ops).fo_write = imports::fo_write();
            if queues {
                (*ops).fo_aio_queue = imports::fo_aio_queue();
            }
            (*ops).fo_ioctl = disk::fo_ioctl();
        }
        ops
    };
    let mount: *mut sys::mount = mem::new_object();
    let conf: *mut sys::vfsconf = mem::new_object();
    // SAFETY: just made.
    unsafe {
        (*mount).mnt_flag = u64::from(sys::MNT_LOCAL);
        (*mount).mnt_vfc = conf;
        for (to, from) in (*conf).vfc_name.iter_mut().zip(FS_TYPE) {
            *to = *from as i8;
        }
    }
    let tables = Tables { vnode: table(false), other: table(false), socket: table(true), mount };
    TABLES.with(|its| *its = Some(tables));
}

fn tables<R>(action: impl FnOnce(&Tables) -> R) -> R {
    TABLES.with(|tables| action(tables.as_ref().expect("started")))
}

fn make(
    flag: i32,
    kind: u32,
    ops: *mut sys::fileops,
    vnode: *mut sys::vnode,
    body: Body,
) -> *mut sys::file {
    let fp: *mut sys::file = mem::new_object();
    let td = sched::curthread();
    // SAFETY: just made; the running thread has a credential.
    unsafe {
        (*fp).f_flag = flag as u32;
        (*fp).f_count = 1;
        (*fp).f_ops = ops;
        (*fp).f_vnode = vnode;
        (*fp).f_type = kind as i16;
        (*fp).f_cred = crate::proc::crhold((*td).td_ucred);
    }
    FILES.with(|files| files.bodies.insert(fp as usize, body));
    fp
}

/// FREAD and FWRITE of an open mode.
fn mode(flags: i32) -> i32 {
    (flags & !O_ACCMODE) | ((flags & O_ACCMODE) + 1)
}

/// open(2) of an absolute path.
pub fn open(path: &Path, flags: i32, permissions: u32) -> Result<*mut sys::file, Errno> {
    if let Some(fp) = open_disk(path, flags) {
        return Ok(fp);
    }
    let mut host = libc::O_CLOEXEC | libc::O_NOCTTY;
    host |= if flags & O_PATH != 0 { libc::O_PATH } else { flags & O_ACCMODE };
    for (its, hosts) in [
        (O_NONBLOCK, libc::O_NONBLOCK),
        (O_APPEND, libc::O_APPEND),
        (O_CREAT, libc::O_CREAT),
        (O_TRUNC, libc::O_TRUNC),
        (O_EXCL, libc::O_EXCL),
        (O_DIRECTORY, libc::O_DIRECTORY),
    ] {
        if flags & its != 0 {
            host |= hosts;
        }
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| ENOENT)?;
    // SAFETY: a C string, and room for the answer.
    let fifo = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let found = libc::stat(name.as_ptr(), &mut stat) == 0;
        (found && stat.st_mode & libc::S_IFMT == libc::S_IFIFO)
            .then_some((stat.st_dev, stat.st_ino))
    };
    if let Some(id) = fifo.filter(|_| flags & O_PATH == 0) {
        return open_fifo(id, flags);
    }
    // SAFETY: a C string.
    let fd = unsafe { libc::open(name.as_ptr(), host, permissions) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: just opened.
    let file = unsafe { File::from_raw_fd(fd) };
    let stat = host_stat(fd)?;
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => sys::VDIR,
        libc::S_IFREG => sys::VREG,
        libc::S_IFIFO => sys::VFIFO,
        _ => sys::VCHR,
    };
    let id = (stat.st_dev, stat.st_ino);
    let vnode = vnode(id, kind);
    let ops = if flags & O_PATH != 0 {
        crate::module::kernel_object("path_fileops") as *mut sys::fileops
    } else {
        tables(|tables| tables.vnode)
    };
    let dtype = if kind == sys::VFIFO { sys::DTYPE_FIFO } else { sys::DTYPE_VNODE };
    let flag = if flags & O_PATH != 0 { flags & !O_ACCMODE } else { mode(flags) };
    let body = Body::Host { file, vnode: id, entries: Vec::new() };
    Ok(make(flag, dtype, ops, vnode, body))
}

/// Opens a disk device, or what makes them, if that is what the path names.
fn open_disk(path: &Path, flags: i32) -> Option<*mut sys::file> {
    let flag = mode(flags);
    if path == Path::new("/dev/mdctl") {
        let ops = tables(|tables| tables.other);
        return Some(make(flag, sys::DTYPE_VNODE, ops, std::ptr::null_mut(), Body::DiskControl));
    }
    let disk = disk::open(path)?;
    // The host has no device of this number.
    let id = (u64::MAX, disk);
    let vp = vnode(id, sys::VCHR);
    disk::set_up(vp, disk);
    let ops = tables(|tables| tables.vnode);
    Some(make(flag, sys::DTYPE_VNODE, ops, vp, Body::Disk { disk, vnode: id }))
}

/// The disk device a file is.
pub fn disk_of(fp: *mut sys::file) -> Option<u64> {
    FILES.with(|files| match files.bodies.get(&(fp as usize)) {
        Some(Body::Disk { disk, .. }) => Some(*disk),
        _ => None,
    })
}

/// Whether it is /dev/mdctl.
pub fn controls_disks(fp: *mut sys::file) -> bool {
    FILES.with(|files| matches!(files.bodies.get(&(fp as usize)), Some(Body::DiskControl)))
}

/// Opens a named pipe; waits for the other end as open(2) says.
fn open_fifo(id: (u64, u64), flags: i32) -> Result<*mut sys::file, Errno> {
    if flags & O_DIRECTORY != 0 {
        return Err(ENOTDIR);
    }
    let flag = mode(flags);
    let (reads, writes) = (flag as u32 & sys::FREAD != 0, flag as u32 & sys::FWRITE != 0);
    let pipe = pipe::open_fifo(id, reads, writes, flags & O_NONBLOCK == 0)?;
    let vnode = vnode(id, sys::VFIFO);
    let body = Body::Fifo { flag, vnode: id };
    let fp = make(flag, sys::DTYPE_FIFO, pipe::ops(), vnode, body);
    // SAFETY: just made.
    unsafe { (*fp).f_data = pipe.cast() };
    Ok(fp)
}

fn vnode(id: (u64, u64), kind: sys::enum_vtype_uint8) -> *mut sys::vnode {
    let mount = tables(|tables| tables.mount);
    let at = FILES.with(|files| {
        let entry = files.vnodes.entry(id).or_insert_with(|| {
            let vp: *mut sys::vnode = mem::new_object();
            // SAFETY: just made.
            unsafe {
                (*vp).v_type = kind;
                if kind == sys::VREG {
                    (*vp).v_irflag = sys::VIRF_PGREAD as i16;
                }
                (*vp).v_mount = mount;
            }
            (vp as usize, 0)
        });
        entry.1 += 1;
        entry.0
    });
    at as *mut sys::vnode
}

/// The console, for standard input and output.
pub fn console() -> *mut sys::file {
    let ops = tables(|tables| tables.other);
    make(mode(2), sys::DTYPE_PTS, ops, std::ptr::null_mut(), Body::Console)
}

/// pipe2(2).
pub fn pipe() -> (*mut sys::file, *mut sys::file) {
    let [from, to] = pipe::pipe().map(|end| {
        let fp = make(mode(2), sys::DTYPE_PIPE, pipe::ops(), std::ptr::null_mut(), Body::Pipe(end));
        // SAFETY: just made.
        unsafe { (*fp).f_data = end.cast() };
        fp
    });
    (from, to)
}

/// A file of a socket; takes over the reference.
pub fn of_socket(so: So) -> *mut sys::file {
    let ops = tables(|tables| tables.socket);
    let fp = make(mode(2), sys::DTYPE_SOCKET, ops, std::ptr::null_mut(), Body::Socket(so));
    // SAFETY: just made.
    unsafe { (*fp).f_data = so.cast() };
    fp
}

pub fn kqueue() -> *mut sys::file {
    let ops = tables(|tables| tables.other);
    let fp = make(mode(2), sys::DTYPE_KQUEUE, ops, std::ptr::null_mut(), Body::Kqueue);
    kqueue::open(fp);
    fp
}

/// shm_open(2) of an object without a name.
pub fn memory() -> Result<*mut sys::file, Errno> {
    // SAFETY: makes a file without a name.
    let fd = unsafe { libc::memfd_create(c"shm".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: just made.
    let file = unsafe { File::from_raw_fd(fd) };
    let ops = tables(|tables| tables.other);
    Ok(make(mode(2), sys::DTYPE_SHM, ops, std::ptr::null_mut(), Body::Memory(file)))
}

/// Takes a reference.
pub fn hold(fp: *mut sys::file) -> *mut sys::file {
    // SAFETY: somebody has a reference.
    unsafe {
        let count = (*fp).f_count;
        if count == 0 || count > 100_000 {
            report::panic(&format!("a file with {count} references is referenced"));
        }
        (*fp).f_count += 1;
    }
    fp
}

/// fdrop of our own.
pub fn release(fp: *mut sys::file) {
    // SAFETY: the reference is the caller's.
    let left = unsafe {
        if (*fp).f_count == 0 {
            report::panic("a file without references is released");
        }
        (*fp).f_count -= 1;
        (*fp).f_count
    };
    if left == 0 {
        close(fp);
    }
}

/// _fdrop: the last reference is gone.
pub fn close(fp: *mut sys::file) {
    // SAFETY: nobody else has a reference.
    unsafe {
        if (*fp).f_count != 0 {
            report::panic(&format!("_fdrop of a file with {} references", (*fp).f_count));
        }
    }
    let Some(body) = FILES.with(|files| files.bodies.remove(&(fp as usize))) else {
        report::panic("_fdrop of a file that is closed");
    };
    match body {
        Body::Fifo { flag, vnode } => {
            let has = |mode: u32| flag as u32 & mode != 0;
            pipe::close_fifo(vnode, has(sys::FREAD), has(sys::FWRITE));
            release_vnode(vnode);
        }
        Body::Host { vnode, .. } => release_vnode(vnode),
        Body::Pipe(pipe) => pipe::close(pipe),
        Body::Socket(so) => socket::close(so),
        Body::Kqueue => kqueue::close(fp),
        Body::Disk { disk, vnode } => {
            release_vnode(vnode);
            disk::closed(disk);
        }
        Body::Console | Body::Memory(_) | Body::DiskControl => {}
    }
    // SAFETY: the file's own reference.
    crate::proc::crfree(unsafe { (*fp).f_cred });
    mem::free_object(fp);
}

fn release_vnode(vnode: (u64, u64)) {
    FILES.with(|files| {
        let entry = files.vnodes.get_mut(&vnode).expect("the file has it");
        entry.1 -= 1;
        if entry.1 == 0 {
            if files.locked.contains_key(&entry.0) {
                report::panic("the last file of a locked vnode is closed");
            }
            mem::free_object(entry.0 as *mut sys::vnode);
            files.vnodes.remove(&vnode);
        }
    });
}

/// The host's descriptor behind a file, and whether it is a vnode's.
pub fn host_fd(fp: *mut sys::file) -> Option<RawFd> {
    FILES.with(|files| match files.bodies.get(&(fp as usize)) {
        Some(Body::Host { file, .. } | Body::Memory(file)) => Some(file.as_raw_fd()),
        _ => None,
    })
}

/// Whether it is a kqueue.
pub fn is_kqueue(fp: *mut sys::file) -> bool {
    // SAFETY: the caller has a reference.
    unsafe { (*fp).f_type as u32 == sys::DTYPE_KQUEUE }
}

pub fn is_vnode(fp: *mut sys::file) -> bool {
    // SAFETY: the caller has a reference.
    unsafe { !(*fp).f_vnode.is_null() }
}

pub fn host_stat(fd: RawFd) -> Result<libc::stat, Errno> {
    // SAFETY: numbers; the descriptor is ours.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut stat) == 0 { Ok(stat) } else { Err(last()) }
    }
}

enum Way {
    Host(RawFd),
    Console,
    Socket(So),
    Disk(u64),
    Broken,
}

/// fo_read and fo_write: moves bytes between the file and the uio's ranges.
///
/// # Safety
/// `uio` is valid and its ranges are the current process's, or the kernel's with UIO_SYSSPACE.
pub unsafe fn transfer(
    fp: *mut sys::file,
    uio: *mut sys::uio,
    write: bool,
    flags: c_int,
) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    let uio = unsafe { &mut *uio };
    if let Some(pipe) = pipe::of(fp) {
        // SAFETY: the caller has a reference, or it is a file of its own.
        return pipe::transfer(pipe, unsafe { (*fp).f_flag }, uio, write);
    }
    let way = FILES.with(|files| match files.bodies.get(&(fp as usize)) {
        Some(Body::Host { file, .. } | Body::Memory(file)) => Way::Host(file.as_raw_fd()),
        Some(Body::Console) => Way::Console,
        Some(Body::Disk { disk, .. }) => Way::Disk(*disk),
        Some(Body::Socket(so)) => Way::Socket(*so),
        Some(_) => Way::Broken,
        None => report::panic("I/O on a file that is closed"),
    });
    let own_offset = flags as u32 & sys::FOF_OFFSET == 0;
    // SAFETY: the caller has a reference.
    let flag = unsafe { (*fp).f_flag } as i32;
    if own_offset {
        // SAFETY: as above.
        uio.uio_offset = unsafe { (*fp).f_offset };
    }
    let result = match way {
        Way::Host(fd) => {
            // SAFETY: as above; the vnode is the file's.
            let lock = unsafe {
                let vp = (*fp).f_vnode;
                let regular = !vp.is_null() && (*vp).v_type == sys::VREG;
                regular.then(|| &raw const (*vp).v_rl as usize)
            };
            let append = flag & O_APPEND != 0;
            let (start, end) = match append && write {
                true => (0, i64::MAX),
                false => (uio.uio_offset, uio.uio_offset.saturating_add(uio.uio_resid as i64)),
            };
            let cookie = lock.map(|lock| (lock, range(lock, start, end, write)));
            let before = uio.uio_resid;
            let result = host_transfer(fd, uio, write, append);
            if let Some((lock, cookie)) = cookie {
                unlock_range(lock, cookie);
                charge(write && before != uio.uio_resid);
            }
            result
        }
        Way::Console => move_bytes(uio, write, &mut |host, len, _| {
            if !write {
                return Ok(0);
            }
            // SAFETY: a run of mapped memory.
            let bytes = unsafe { std::slice::from_raw_parts(host, len) };
            report::console(&String::from_utf8_lossy(bytes));
            Ok(len)
        }),
        Way::Socket(so) if write => socket_io::send(so, uio, socket_io::Patience::Socket),
        Way::Socket(so) => socket_io::receive(so, uio, socket_io::Patience::Socket),
        Way::Disk(disk) => disk::transfer(disk, uio, write),
        Way::Broken => Err(EBADF),
    };
    if own_offset {
        // SAFETY: as above.
        unsafe { (*fp).f_offset = uio.uio_offset };
    }
    result
}

/// Blocks of output, which the writing thread pays for: one per write.
fn charge(wrote: bool) {
    if wrote {
        // SAFETY: the running thread's own counts.
        unsafe { (*sched::curthread()).td_ru.ru_oublock += 1 };
    }
}

/// Calls `action(memory, length, offset)` for runs of the uio's ranges until it uses less than it got.
pub fn move_bytes(
    uio: &mut sys::uio,
    write: bool,
    action: &mut dyn FnMut(*mut u8, usize, i64) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let mut index = 0;
    while uio.uio_resid > 0 && index < uio.uio_iovcnt as usize {
        // SAFETY: the uio has so many ranges.
        let iov = unsafe { &mut *uio.uio_iov.add(index) };
        let len = iov.iov_len.min(uio.uio_resid as usize);
        if len == 0 {
            index += 1;
            continue;
        }
        let offset = uio.uio_offset;
        let mut moved = 0;
        let mut short = false;
        let mut step = |host: *mut u8, count: usize| {
            let used = action(host, count, offset + moved)?;
            moved += used as i64;
            short |= used < count;
            Ok(used)
        };
        let (done, result) = if uio.uio_segflg == sys::UIO_SYSSPACE {
            match step(iov.iov_base.cast(), len) {
                Ok(used) => (used, Ok(())),
                Err(error) => (0, Err(error)),
            }
        } else {
            // What is written to the file is read from memory.
            vm::each_run(iov.iov_base as u64, len, !write, step)
        };
        // SAFETY: within the range.
        iov.iov_base = unsafe { iov.iov_base.byte_add(done) };
        iov.iov_len -= done;
        uio.uio_resid -= done as isize;
        uio.uio_offset += done as i64;
        result?;
        if short {
            return Ok(());
        }
    }
    Ok(())
}

/// uiomove(9): range by range, each whole or not at all.
pub fn uiomove(data: *mut u8, count: usize, uio: &mut sys::uio) -> Result<(), Errno> {
    let (mut data, mut left) = (data, count);
    let writes = uio.uio_rw == sys::UIO_WRITE;
    if uio.uio_segflg != sys::UIO_SYSSPACE && uio.uio_td != sched::curthread() {
        report::panic("uiomove of user memory for another thread");
    }
    while left > 0 && uio.uio_resid > 0 {
        // SAFETY: what is left is in the uio's ranges.
        let iov = unsafe { &mut *uio.uio_iov };
        let len = iov.iov_len.min(left);
        if len == 0 {
            // SAFETY: as above.
            uio.uio_iov = unsafe { uio.uio_iov.add(1) };
            uio.uio_iovcnt -= 1;
            continue;
        }
        let user = uio.uio_segflg != sys::UIO_SYSSPACE;
        match (user, writes) {
            (true, true) => vm::copyin(iov.iov_base as u64, data, len)?,
            (true, false) => vm::copyout(data, iov.iov_base as u64, len)?,
            // SAFETY: memory of the kernel's, as the caller says.
            (false, true) => unsafe {
                std::ptr::copy_nonoverlapping(iov.iov_base.cast(), data, len)
            },
            // SAFETY: as above.
            (false, false) => unsafe {
                std::ptr::copy_nonoverlapping(data, iov.iov_base.cast(), len)
            },
        }
        // SAFETY: within both.
        unsafe {
            iov.iov_base = iov.iov_base.byte_add(len);
            data = data.add(len);
        }
        iov.iov_len -= len;
        uio.uio_resid -= len as isize;
        uio.uio_offset += len as i64;
        left -= len;
    }
    Ok(())
}

/// What a transfer may move at once, before others may run.
const CHUNK: usize = 64 << 10;

fn host_transfer(fd: RawFd, uio: &mut sys::uio, write: bool, append: bool) -> Result<(), Errno> {
    if uio.uio_offset < 0 {
        return Err(EINVAL);
    }
    if write && uio.uio_offset.checked_add(uio.uio_resid as i64).is_none() {
        return Err(EFBIG);
    }
    // Up to the limit it is a short write; from there on an error and a signal.
    let limit = limit::current(sys::RLIMIT_FSIZE as usize);
    let end = uio.uio_offset.saturating_add(uio.uio_resid as i64);
    let mut beyond = 0;
    if write && end > limit {
        if uio.uio_offset >= limit {
            signal::post_current(25);
            return Err(EFBIG);
        }
        beyond = end - limit;
        uio.uio_resid -= beyond as isize;
    }
    let result = host_runs(fd, uio, write, append);
    uio.uio_resid += beyond as isize;
    result
}

fn host_runs(fd: RawFd, uio: &mut sys::uio, write: bool, append: bool) -> Result<(), Errno> {
    move_bytes(uio, write, &mut |host, len, offset| {
        let mut done = 0;
        while done < len {
            let count = (len - done).min(CHUNK);
            let at = offset + done as i64;
            // SAFETY: a run of mapped memory; the descriptor is ours.
            let moved = unsafe {
                let memory = host.add(done).cast();
                if !write {
                    libc::pread(fd, memory, count, at)
                } else if append {
                    libc::write(fd, memory, count)
                } else {
                    libc::pwrite(fd, memory, count, at)
                }
            };
            if moved < 0 {
                return if done > 0 { Ok(done) } else { Err(last()) };
            }
            done += moved as usize;
            if (moved as usize) < count {
                break;
            }
            if done < len {
                sched::point();
            }
        }
        Ok(done)
    })
}

/// Waits until a file can be read, at most until a moment; whether it can: poll(2) of one.
pub fn poll_in(fp: *mut sys::file, until: Option<i64>) -> Result<bool, Errno> {
    if let Some(so) = socket::of(fp) {
        return socket::poll_in(so, until);
    }
    if is_kqueue(fp) {
        return kqueue::poll(fp, until);
    }
    match pipe::of(fp) {
        Some(pipe) => pipe::poll_in(pipe, until),
        None => Ok(true),
    }
}

/// getdirentries(2): records from the file's offset on, which counts entries.
pub fn directory(fp: *mut sys::file, room: usize) -> Result<Vec<u8>, Errno> {
    // SAFETY: the caller has a reference.
    let start = unsafe { (*fp).f_offset } as usize;
    let entries = FILES.with(|files| match files.bodies.get_mut(&(fp as usize)) {
        Some(Body::Host { file, entries, .. }) => {
            if start == 0 {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let mut found = Vec::new();
                for entry in std::fs::read_dir(path).map_err(|error| of_host(&error))?.flatten() {
                    use std::os::unix::fs::DirEntryExt;
                    let kind = match entry.file_type() {
                        Ok(kind) if kind.is_dir() => 4,
                        Ok(kind) if kind.is_file() => 8,
                        Ok(kind) if kind.is_symlink() => 10,
                        _ => 0,
                    };
                    found.push((entry.ino(), kind, entry.file_name().as_bytes().to_vec()));
                }
                // The host's order may differ from run to run.
                found.sort_by(|a, b| a.2.cmp(&b.2));
                *entries = found;
            }
            Ok(entries.clone())
        }
        _ => Err(EINVAL),
    })?;
    let mut bytes = Vec::new();
    let mut index = start;
    for (number, kind, name) in entries.iter().skip(start) {
        let len = (24 + name.len() + 1).next_multiple_of(8);
        if bytes.len() + len > room {
            break;
        }
        index += 1;
        let at = bytes.len();
        bytes.resize(at + len, 0);
        let record = &mut bytes[at..];
        record[..8].copy_from_slice(&number.to_le_bytes());
        record[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        record[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        record[18] = *kind;
        record[20..22].copy_from_slice(&(name.len() as u16).to_le_bytes());
        record[24..24 + name.len()].copy_from_slice(name);
    }
    if bytes.is_empty() && start < entries.len() {
        return Err(EINVAL);
    }
    // SAFETY: as above.
    unsafe { (*fp).f_offset = index as i64 };
    Ok(bytes)
}

impl Files {
    /// Locks a range unless another that is locked is in the way; the cookie that unlocks it.
    fn lock_range(&mut self, lock: usize, start: i64, end: i64, writes: bool) -> Option<usize> {
        let meets = |its: &Range| {
            its.lock == lock && its.start < end && start < its.end && (writes || its.writes)
        };
        if self.ranges.iter().any(meets) {
            return None;
        }
        let cookie = self.next_range;
        self.next_range += 1;
        self.ranges.push(Range { cookie, lock, start, end, writes });
        Some(cookie)
    }

    /// Who is the first that waits for a range of a lock.
    fn first_waiter(&self, lock: usize) -> Option<usize> {
        self.range_waits.iter().find(|its| its.0 == lock).map(|its| its.1)
    }
}

/// Locks a range for reading or writing if it can be had at once. While somebody waits nobody else
/// can, whatever the range.
pub fn try_range(lock: usize, start: i64, end: i64, writes: bool) -> Option<usize> {
    FILES.with(|files| match files.first_waiter(lock) {
        Some(_) => None,
        None => files.lock_range(lock, start, end, writes),
    })
}

/// As `try_range`, but waits, behind all who do.
pub fn range(lock: usize, start: i64, end: i64, writes: bool) -> usize {
    let ticket = FILES.with(|files| {
        let ticket = files.next_range;
        files.next_range += 1;
        files.range_waits.push((lock, ticket));
        ticket
    });
    loop {
        let got = FILES.with(|files| {
            if files.first_waiter(lock) != Some(ticket) {
                return None;
            }
            let cookie = files.lock_range(lock, start, end, writes)?;
            files.range_waits.retain(|its| its.1 != ticket);
            Some((cookie, files.first_waiter(lock).is_some()))
        });
        match got {
            Some((cookie, more)) => {
                if more {
                    sched::unblock(lock as u64);
                }
                return cookie;
            }
            None => sched::block(lock as u64),
        }
    }
}

pub fn unlock_range(lock: usize, cookie: usize) {
    let found = FILES.with(|files| {
        let index = files.ranges.iter().position(|its| its.cookie == cookie && its.lock == lock);
        index.map(|index| files.ranges.remove(index))
    });
    if found.is_none() {
        report::panic("a range is unlocked that is not locked");
    }
    sched::unblock(lock as u64);
}

/// VOP_READ_PGCACHE: reads what is in the page cache, which the seed decides. The range is locked.
///
/// # Safety
/// As `transfer`.
pub unsafe fn read_cached(vp: *mut sys::vnode, uio: *mut sys::uio) -> Result<(), Errno> {
    // SAFETY: the caller's vnode and uio.
    let (lock, uio) = unsafe { (&raw const (*vp).v_rl as usize, &mut *uio) };
    let fd = FILES.with(|files| {
        if !files.ranges.iter().any(|its| its.lock == lock) {
            report::panic("VOP_READ_PGCACHE without a lock of the range");
        }
        let id = files.vnodes.iter().find(|(_, its)| its.0 == vp as usize).map(|(&id, _)| id);
        files.bodies.values().find_map(|body| match body {
            Body::Host { file, vnode, .. } if Some(*vnode) == id => Some(file.as_raw_fd()),
            _ => None,
        })
    });
    let Some(fd) = fd else { return Err(EJUSTRETURN) };
    // Nothing of it is there, or only its beginning.
    let missing = match sched::random(8) {
        0 => uio.uio_resid as usize,
        1 => sched::random(uio.uio_resid as u64 + 1) as usize,
        _ => 0,
    };
    uio.uio_resid -= missing as isize;
    let result = if uio.uio_resid > 0 { host_runs(fd, uio, false, false) } else { Ok(()) };
    uio.uio_resid += missing as isize;
    match result {
        Ok(()) if uio.uio_resid == 0 => Ok(()),
        Ok(()) | Err(EBADF) => Err(EJUSTRETURN),
        Err(error) => Err(error),
    }
}

/// vn_lock(9), exclusive.
pub fn vn_lock(vp: *mut sys::vnode) {
    let me = sched::curthread() as usize;
    loop {
        let owner = FILES.with(|files| match files.locked.get(&(vp as usize)) {
            Some(&owner) => Some(owner),
            None => {
                files.locked.insert(vp as usize, me);
                None
            }
        });
        match owner {
            None => return,
            Some(owner) if owner == me => report::panic("a vnode is locked by its owner"),
            Some(_) => sched::block(vp as u64),
        }
    }
}

pub fn vn_unlock(vp: *mut sys::vnode) {
    let me = sched::curthread() as usize;
    if FILES.with(|files| files.locked.remove(&(vp as usize))) != Some(me) {
        report::panic("a vnode is unlocked that is not locked by this thread");
    }
    sched::unblock(vp as u64);
}

pub fn assert_vn_locked(vp: *mut sys::vnode, what: &str) {
    let me = sched::curthread() as usize;
    if FILES.with(|files| files.locked.get(&(vp as usize)).copied()) != Some(me) {
        report::panic(&format!("{what} without the vnode's lock"));
    }
}

/// vn_start_write(9) and vn_finished_write(9) must pair.
pub fn start_write(vp: *mut sys::vnode) -> *mut sys::mount {
    FILES.with(|files| files.writes_started += 1);
    // SAFETY: the caller's vnode.
    unsafe { (*vp).v_mount }
}

pub fn finished_write(mount: *mut sys::mount) {
    if mount.is_null() {
        return;
    }
    let left = FILES.with(|files| {
        files.writes_started -= 1;
        files.writes_started
    });
    if left < 0 {
        report::panic("vn_finished_write without vn_start_write");
    }
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    FILES.with(|files| {
        let mut lines = Vec::new();
        if !files.bodies.is_empty() {
            lines.push(format!("{} files are open", files.bodies.len()));
        }
        if !files.vnodes.is_empty() {
            lines.push(format!("{} vnodes are referenced", files.vnodes.len()));
        }
        if !files.ranges.is_empty() {
            lines.push(format!("{} ranges of files are locked", files.ranges.len()));
        }
        if !files.locked.is_empty() {
            lines.push("a vnode is locked".to_owned());
        }
        if files.writes_started != 0 {
            lines.push("vn_start_write without vn_finished_write".to_owned());
        }
        lines
    })
}
