// SPDX-License-Identifier: BSD-2-Clause
//! Address spaces of programs.
//!
//! A program sees its memory in the window, at low addresses, which holds one address space at a
//! time and none while module code runs: a module that follows a user pointer faults, as with SMAP.
//! The kernel's way to it is an alias elsewhere, and only through copyin(9) and its like, which look
//! every address up in the map.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::errno::{EFAULT, EINVAL, ENOMEM, Errno};
use crate::state::Held;
use crate::{mem, report, sched, sys};

pub const PAGE: u64 = 4096;
/// Where programs may have memory; the modules' text lies above.
pub const WINDOW_START: u64 = 0x20_0000;
pub const WINDOW_END: u64 = 0x4000_0000;
/// Where mmap(2) begins to look.
const MMAP_START: u64 = 0x1000_0000;

/// All private memory of programs, in one file of the host's memory.
const PHYSICAL: usize = 0x0d00_0000_0000;
const PHYSICAL_SIZE: u64 = 16 << 30;

pub const PROT_READ: i32 = 1;
pub const PROT_WRITE: i32 = 2;

static PHYSICAL_FILE: AtomicUsize = AtomicUsize::new(0);
/// Free runs of physical memory, by start, and where nothing was ever used.
static FREE: Mutex<(BTreeMap<u64, Vec<u64>>, u64)> = Mutex::new((BTreeMap::new(), 0));

/// Memory that mappings share.
pub enum Object {
    /// A run of the physical file.
    Physical { start: u64, len: u64 },
    /// A file of the host's.
    File { file: File, alias: usize, len: u64 },
}

impl Object {
    fn new(len: u64) -> Object {
        let mut free = FREE.lock().expect("physical memory");
        if let Some(start) = free.0.get_mut(&len).and_then(Vec::pop) {
            return Object::Physical { start, len };
        }
        let start = free.1;
        free.1 += len;
        if free.1 > PHYSICAL_SIZE {
            report::give_up("the programs use more memory than there is");
        }
        Object::Physical { start, len }
    }

    fn host(&self) -> usize {
        match self {
            Object::Physical { start, .. } => PHYSICAL + *start as usize,
            Object::File { alias, .. } => *alias,
        }
    }

    /// The host's descriptor, and where the object is in it.
    fn place(&self) -> (RawFd, u64) {
        match self {
            Object::Physical { start, .. } => (physical_fd(), *start),
            Object::File { file, .. } => (file.as_raw_fd(), 0),
        }
    }

    /// A copy of the first `len` bytes from `offset`, as fork(2) needs it.
    fn copy(&self, offset: u64, len: u64) -> Object {
        let copy = Object::new(len);
        let (fd, start) = self.place();
        let (from, end) = (start + offset, start + offset + len);
        let mut at = from;
        // Pages that were never written are holes, in the copy too.
        loop {
            // SAFETY: seeks in our own file; nobody uses its position otherwise.
            let data = unsafe { libc::lseek(fd, at as i64, libc::SEEK_DATA) };
            if data < 0 || data as u64 >= end {
                return copy;
            }
            // SAFETY: as above.
            let hole = unsafe { libc::lseek(fd, data, libc::SEEK_HOLE) };
            let (data, hole) = (data as u64, (hole as u64).min(end));
            let count = (hole - data) as usize;
            // SAFETY: both aliases are mapped for as long as the objects are.
            unsafe {
                let source = (self.host() + (data - start) as usize) as *const u8;
                let target = (copy.host() + (data - from) as usize) as *mut u8;
                std::ptr::copy_nonoverlapping(source, target, count);
            }
            at = hole;
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        match self {
            Object::Physical { start, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: nothing maps the run any more: the window is emptied before.
                unsafe { libc::fallocate(physical_fd(), mode, *start as i64, *len as i64) };
                FREE.lock().expect("physical memory").0.entry(*len).or_default().push(*start);
            }
            Object::File { alias, len, .. } => {
                // SAFETY: mapped by map_file, used by nobody any more.
                unsafe { libc::munmap(*alias as *mut c_void, *len as usize) };
            }
        }
    }
}

fn physical_fd() -> RawFd {
    PHYSICAL_FILE.load(Ordering::Relaxed) as RawFd
}

/// A mapping: its end, and where it begins in the object.
#[derive(Clone)]
struct Entry {
    end: u64,
    prot: i32,
    shared: bool,
    object: Arc<Object>,
    offset: u64,
}

#[derive(Default)]
struct Map {
    entries: BTreeMap<u64, Entry>,
    /// Pages that mlock(2) holds.
    wired: std::collections::BTreeSet<u64>,
    /// Changes with the entries.
    version: u64,
}

static MAPS: Held<BTreeMap<usize, Map>> = Held::new(BTreeMap::new());
static VERSIONS: AtomicU64 = AtomicU64::new(1);

/// What the window holds: version of the map, and whether it is open.
static WINDOW: Held<(u64, bool)> = Held::new((0, false));

/// Makes the physical memory and keeps the window for us.
pub fn start() {
    // SAFETY: makes a file without a name.
    let fd = unsafe { libc::memfd_create(c"hostkern".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the file is ours.
    if fd < 0 || unsafe { libc::ftruncate(fd, PHYSICAL_SIZE as i64) } != 0 {
        report::give_up("no memory for programs");
    }
    PHYSICAL_FILE.store(fd as usize, Ordering::Relaxed);
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got =
        unsafe { libc::mmap(PHYSICAL as *mut c_void, PHYSICAL_SIZE as usize, rw, flags, fd, 0) };
    if got as usize != PHYSICAL {
        report::give_up("no room for the programs' memory");
    }
    mem::map_fixed(WINDOW_START as usize, (WINDOW_END - WINDOW_START) as usize, libc::PROT_NONE);
}

fn version() -> u64 {
    VERSIONS.fetch_add(1, Ordering::Relaxed)
}

/// A new, empty address space with one reference.
pub fn new() -> *mut sys::vmspace {
    let vm: *mut sys::vmspace = mem::new_object();
    // SAFETY: just made.
    unsafe { (*vm).vm_refcnt = 1 };
    MAPS.with(|maps| maps.insert(vm as usize, Map { version: version(), ..Map::default() }));
    vm
}

/// Takes a reference.
pub fn hold(vm: *mut sys::vmspace) -> *mut sys::vmspace {
    // SAFETY: address spaces are objects of ours that somebody has a reference to.
    unsafe {
        if (*vm).vm_refcnt == 0 || (*vm).vm_refcnt > 100_000 {
            report::panic(&format!(
                "an address space with {} references is referenced",
                (*vm).vm_refcnt
            ));
        }
        (*vm).vm_refcnt += 1;
    }
    vm
}

/// Gives a reference up; the last one frees it.
pub fn release(vm: *mut sys::vmspace) {
    // SAFETY: as in hold.
    let left = unsafe {
        if (*vm).vm_refcnt == 0 {
            report::panic("an address space without references is freed");
        }
        (*vm).vm_refcnt -= 1;
        (*vm).vm_refcnt
    };
    if left == 0 {
        let map = MAPS.with(|maps| maps.remove(&(vm as usize)));
        clear_window();
        drop(map);
        mem::free_object(vm);
    }
}

/// How many address spaces there are.
pub fn count() -> usize {
    MAPS.with(|maps| maps.len())
}

/// The current process's.
fn current() -> usize {
    let td = sched::curthread();
    // SAFETY: the running thread has a process, which has an address space.
    unsafe { (*(*td).td_proc).p_vmspace as usize }
}

fn with_map<R>(vm: usize, action: impl FnOnce(&mut Map) -> R) -> R {
    MAPS.with(|maps| match maps.get_mut(&vm) {
        Some(map) => action(map),
        None => report::panic("an address space that was freed is used"),
    })
}

impl Map {
    fn entry_at(&self, at: u64) -> Option<(u64, &Entry)> {
        let (&start, entry) = self.entries.range(..=at).next_back()?;
        (at < entry.end).then_some((start, entry))
    }

    /// Removes what is in a range, cutting entries at its ends.
    fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, Entry)> {
        let mut out = Vec::new();
        self.wired.retain(|page| !(start..end).contains(page));
        let touched: Vec<u64> = self
            .entries
            .iter()
            .filter(|&(&at, entry)| at < end && entry.end > start)
            .map(|(&at, _)| at)
            .collect();
        for at in touched {
            let entry = self.entries.remove(&at).expect("just seen");
            if at < start {
                self.entries.insert(at, Entry { end: start, ..entry.clone() });
            }
            if entry.end > end {
                let offset = entry.offset + (end - at);
                self.entries.insert(end, Entry { offset, ..entry.clone() });
            }
            let first = at.max(start);
            let part =
                Entry { end: entry.end.min(end), offset: entry.offset + (first - at), ..entry };
            out.push((first, part));
        }
        self.version = version();
        out
    }

    fn find_room(&self, len: u64) -> Option<u64> {
        let mut at = MMAP_START;
        for (&start, entry) in self.entries.range(MMAP_START..) {
            if start >= at + len + PAGE {
                break;
            }
            // A page between mappings, so that running over an end shows.
            at = at.max(entry.end + PAGE);
        }
        (at + len <= WINDOW_END - PAGE).then_some(at)
    }
}

/// Adds a mapping at an address of the process's, or anywhere with 0. `file`: a file of the host's.
pub fn map(
    vm: *mut sys::vmspace,
    at: u64,
    len: u64,
    prot: i32,
    shared: bool,
    file: Option<RawFd>,
) -> Result<u64, Errno> {
    if len == 0 {
        return Err(EINVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(ENOMEM)?;
    let object = match file {
        None => Object::new(len),
        Some(fd) => map_file(fd, len, shared)?,
    };
    let removed = with_map(vm as usize, |map| {
        let at = if at == 0 { map.find_room(len).ok_or(ENOMEM)? } else { at };
        if !at.is_multiple_of(PAGE) || at < WINDOW_START || at + len > WINDOW_END {
            return Err(EINVAL);
        }
        let removed = map.cut(at, at + len);
        let object = Arc::new(object);
        map.entries.insert(at, Entry { end: at + len, prot, shared, object, offset: 0 });
        Ok((at, removed))
    });
    let (at, removed) = removed?;
    if !removed.is_empty() {
        clear_window();
    }
    Ok(at)
}

fn map_file(fd: RawFd, len: u64, shared: bool) -> Result<Object, Errno> {
    // SAFETY: a descriptor of ours that is open.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(ENOMEM);
    }
    // SAFETY: just made.
    let file = unsafe { File::from_raw_fd(own) };
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping anywhere.
    let alias =
        unsafe { libc::mmap(std::ptr::null_mut(), len as usize, rw, libc::MAP_SHARED, own, 0) };
    if alias == libc::MAP_FAILED {
        return Err(crate::errno::EACCES);
    }
    let object = Object::File { file, alias: alias as usize, len };
    Ok(if shared { object } else { object.copy(0, len) })
}

/// munmap(2).
pub fn unmap(vm: *mut sys::vmspace, at: u64, len: u64) -> Result<(), Errno> {
    let len = len.next_multiple_of(PAGE);
    if !at.is_multiple_of(PAGE)
        || len == 0
        || at.checked_add(len).is_none_or(|end| end > WINDOW_END)
    {
        return Err(EINVAL);
    }
    let removed = with_map(vm as usize, |map| map.cut(at, at + len));
    clear_window();
    drop(removed);
    Ok(())
}

/// mprotect(2).
pub fn protect(vm: *mut sys::vmspace, at: u64, len: u64, prot: i32) -> Result<(), Errno> {
    if !at.is_multiple_of(PAGE) || at.checked_add(len).is_none_or(|end| end > WINDOW_END) {
        return Err(EINVAL);
    }
    with_map(vm as usize, |map| {
        for (start, entry) in map.cut(at, at + len.next_multiple_of(PAGE)) {
            map.entries.insert(start, Entry { prot, ..entry });
        }
    });
    Ok(())
}

/// mlock(2), within a limit of bytes.
pub fn wire(vm: *mut sys::vmspace, at: u64, len: u64, limit: u64) -> Result<(), Errno> {
    let pages: Vec<u64> =
        (at / PAGE..(at + len).div_ceil(PAGE)).map(|page| page * PAGE).take(1 << 20).collect();
    with_map(vm as usize, |map| {
        if (map.wired.len() + pages.len()) as u64 * PAGE > limit {
            return Err(ENOMEM);
        }
        let allows =
            |page: u64| map.entry_at(page).is_some_and(|(_, its)| its.prot & !PROT_WRITE != 0);
        if pages.iter().any(|&page| !allows(page)) {
            return Err(ENOMEM);
        }
        for &page in &pages {
            if let Some((start, entry)) = map.entry_at(page) {
                let at = (entry.offset + (page - start)) as usize;
                touch((entry.object.host() + at) as *mut u8);
            }
        }
        map.wired.extend(&pages);
        Ok(())
    })
}

/// munlock(2).
pub fn unwire(vm: *mut sys::vmspace, at: u64, len: u64) {
    let (start, end) = (at & !(PAGE - 1), at.saturating_add(len));
    with_map(vm as usize, |map| map.wired.retain(|page| !(start..end).contains(page)));
}

/// Pages that mlock(2) holds, of all address spaces.
pub fn wired() -> usize {
    MAPS.with(|maps| maps.values().map(|map| map.wired.len()).sum())
}

/// A copy for fork(2): private memory is copied, shared memory is shared.
pub fn fork(vm: *mut sys::vmspace) -> *mut sys::vmspace {
    let copy = new();
    let entries: Vec<(u64, Entry)> = with_map(vm as usize, |map| {
        map.entries.iter().map(|(&at, entry)| (at, entry.clone())).collect()
    });
    for (at, entry) in entries {
        let entry = if entry.shared {
            entry
        } else {
            let object = Arc::new(entry.object.copy(entry.offset, entry.end - at));
            Entry { object, offset: 0, ..entry }
        };
        with_map(copy as usize, |map| map.entries.insert(at, entry));
    }
    copy
}

/// Shows the process's memory in the window, for a program that goes on.
pub fn open_window(vm: *mut sys::vmspace) {
    let wanted = with_map(vm as usize, |map| map.version);
    let (held, open) = WINDOW.with(|window| *window);
    if held == wanted && open {
        return;
    }
    if held != wanted {
        clear_window();
    }
    with_map(vm as usize, |map| {
        for (&at, entry) in &map.entries {
            let len = (entry.end - at) as usize;
            // FreeBSD's PROT_ bits are Linux's.
            let prot = entry.prot;
            // SAFETY: the window is ours, and mapped with nothing else now.
            let ok = unsafe {
                if held == wanted {
                    libc::mprotect(at as *mut c_void, len, prot) == 0
                } else {
                    let (fd, start) = entry.object.place();
                    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                    let offset = (start + entry.offset) as i64;
                    libc::mmap(at as *mut c_void, len, prot, flags, fd, offset) as u64 == at
                }
            };
            if !ok {
                report::give_up(&format!(
                    "the window cannot be filled: {}",
                    std::io::Error::last_os_error()
                ));
            }
        }
    });
    WINDOW.with(|window| *window = (wanted, true));
}

/// How many calls into modules there were.
static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// Puts the window out of reach, for module code: always at first, later once in a while, because it
/// is what a call of AIO costs most.
pub fn shut_window() {
    let entries = ENTRIES.fetch_add(1, Ordering::Relaxed);
    if entries < 2000 || entries.is_multiple_of(16) {
        close_window();
    }
}

fn close_window() {
    let (held, open) = WINDOW.with(|window| *window);
    if !open {
        return;
    }
    let len = (WINDOW_END - WINDOW_START) as usize;
    // SAFETY: the window is ours.
    if unsafe { libc::mprotect(WINDOW_START as *mut c_void, len, libc::PROT_NONE) } != 0 {
        report::give_up("the window cannot be closed");
    }
    WINDOW.with(|window| *window = (held, false));
}

fn clear_window() {
    let len = (WINDOW_END - WINDOW_START) as usize;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the window is ours.
    unsafe { libc::mmap(WINDOW_START as *mut c_void, len, libc::PROT_NONE, flags, -1, 0) };
    WINDOW.with(|window| *window = (0, false));
}

/// The host's address of user memory, and how many bytes from there lie together. `None`: a fault.
fn resolve(vm: usize, at: u64, write: bool) -> Option<(*mut u8, usize)> {
    with_map(vm, |map| {
        let (start, entry) = map.entry_at(at)?;
        let needed = if write { PROT_WRITE } else { PROT_READ };
        if entry.prot & needed == 0 {
            return None;
        }
        let host = entry.object.host() + (entry.offset + (at - start)) as usize;
        Some((host as *mut u8, (entry.end - at) as usize))
    })
}

/// How much of a run of memory from an address on was touched before: the rest a fault must find.
fn touched(host: *mut u8, room: usize) -> usize {
    let Some(at) = (host as usize).checked_sub(PHYSICAL).filter(|&at| at < PHYSICAL_SIZE as usize)
    else {
        return room;
    };
    let seek = |whence| {
        // SAFETY: seeks in our own file; nobody uses its position otherwise.
        unsafe { libc::lseek(physical_fd(), at as i64, whence) }
    };
    // Behind the last that was written there is no more data.
    let hole = if seek(libc::SEEK_DATA) == at as i64 { seek(libc::SEEK_HOLE) } else { at as i64 };
    room.min(hole as usize - at)
}

/// Has a page be there.
fn touch(host: *mut u8) {
    // SAFETY: a mapped address.
    unsafe { host.read_volatile() };
}

/// The page at an address of an address space: where the host has it, and what keeps it there.
/// `None`: a fault.
pub fn page(vm: usize, at: u64, write: bool) -> Option<(usize, Arc<Object>)> {
    let (host, _) = resolve(vm, at, write)?;
    touch(host);
    with_map(vm, |map| Some((host as usize, map.entry_at(at)?.1.object.clone())))
}

/// Writes to an address space that is being made, whatever its protection.
pub fn fill(vm: *mut sys::vmspace, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let (host, room) = resolve(vm as usize, at + done as u64, true).ok_or(EFAULT)?;
        let count = room.min(bytes.len() - done);
        // SAFETY: a run of mapped memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), host, count) };
        done += count;
    }
    Ok(())
}

/// Calls `action` with each run of host memory behind a range of the current process's memory. It
/// returns how much it used; less than the run ends it. Returns the bytes used.
pub fn each_run(
    at: u64,
    len: usize,
    write: bool,
    mut action: impl FnMut(*mut u8, usize) -> Result<usize, Errno>,
) -> (usize, Result<(), Errno>) {
    let vm = current();
    let mut done = 0;
    if crate::imports::page_is_missing() {
        return (0, Err(EFAULT));
    }
    while done < len {
        let Some((host, room)) = at.checked_add(done as u64).and_then(|at| resolve(vm, at, write))
        else {
            return (done, Err(EFAULT));
        };
        let there = if crate::imports::may_fault() { room } else { touched(host, room) };
        if there == 0 {
            return (done, Err(EFAULT));
        }
        let wanted = there.min(len - done);
        match action(host, wanted) {
            Ok(used) => {
                done += used;
                if used < wanted {
                    break;
                }
            }
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// copyin(9).
pub fn copyin(from: u64, to: *mut u8, len: usize) -> Result<(), Errno> {
    let mut target = to;
    each_run(from, len, false, |host, count| {
        // SAFETY: the run is mapped, the caller's buffer has `len` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(host, target, count);
            target = target.add(count);
        }
        Ok(count)
    })
    .1
}

/// copyout(9).
pub fn copyout(from: *const u8, to: u64, len: usize) -> Result<(), Errno> {
    let mut source = from;
    each_run(to, len, true, |host, count| {
        // SAFETY: as in copyin.
        unsafe {
            std::ptr::copy_nonoverlapping(source, host, count);
            source = source.add(count);
        }
        Ok(count)
    })
    .1
}

/// A plain value of the program's memory.
pub fn read<T: Copy + Default>(at: u64) -> Result<T, Errno> {
    let mut value = T::default();
    copyin(at, (&raw mut value).cast(), size_of::<T>())?;
    Ok(value)
}

pub fn write<T: Copy>(at: u64, value: T) -> Result<(), Errno> {
    copyout((&raw const value).cast(), at, size_of::<T>())
}

/// As `write`, but nothing is written where a part cannot be: suword(9) is one instruction.
pub fn write_word<T: Copy>(at: u64, value: T) -> Result<(), Errno> {
    let last = at.checked_add(size_of::<T>() as u64 - 1).ok_or(EFAULT)?;
    resolve(current(), last, true).ok_or(EFAULT)?;
    write(at, value)
}

/// Bytes of the program's memory.
pub fn read_bytes(at: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    copyin(at, bytes.as_mut_ptr(), len)?;
    Ok(bytes)
}

/// A C string of the program's.
pub fn read_string(at: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    loop {
        match read::<u8>(at.checked_add(bytes.len() as u64).ok_or(EFAULT)?)? {
            0 => return Ok(bytes),
            byte if bytes.len() < 1024 => bytes.push(byte),
            _ => return Err(crate::errno::ENAMETOOLONG),
        }
    }
}
