// SPDX-License-Identifier: BSD-2-Clause
//! Pipes and FIFOs: struct pipe in pairs, with the mutex, the counters, the flags and the list of knotes
//! that modules look at; the bytes are kept elsewhere.
//!
//! Each end of a pair reads what is in it, and writes into its peer; a FIFO does both in one end. Who
//! moves data has the pipe's I/O lock (PIPE_LOCKFL), and copies without the mutex. A large write that
//! may wait lends its pages instead, until they are read.

use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;

use crate::errno::*;
use crate::sched::{self, Woken};
use crate::state::Held;
use crate::{file, kqueue, mem, module, pages, report, sys};

/// From so many bytes on a write that may wait lends its pages (PIPE_MINDIRECT).
const LENDS: usize = 8192;
/// What a pipe holds at first, and at most (PIPE_SIZE, BIG_PIPE_SIZE).
const SIZE: usize = 16 << 10;
const MOST: usize = 64 << 10;
/// What is written whole or not at all (PIPE_BUF).
const ATOMIC: usize = 512;

type Pipe = *mut sys::pipe;

/// What a pipe has.
#[derive(Default)]
struct Contents {
    data: VecDeque<u8>,
    /// Pages of a writer, and where in them what is left begins.
    lent: Vec<usize>,
    from: usize,
}

/// Who has a FIFO open.
struct Fifo {
    pipe: usize,
    readers: u32,
    writers: u32,
    /// How often one was opened.
    readers_ever: u32,
    writers_ever: u32,
}

#[derive(Default)]
struct Pipes {
    contents: BTreeMap<usize, Contents>,
    /// By the host's device and inode.
    fifos: BTreeMap<(u64, u64), Fifo>,
}

static PIPES: Held<Pipes> = Held::new(Pipes { contents: BTreeMap::new(), fifos: BTreeMap::new() });

/// Gives the kernel's table of a pipe's operations the two there are.
pub fn start() {
    // SAFETY: an object of that type, made before.
    unsafe {
        (*ops()).fo_read = crate::imports::fo_read();
        (*ops()).fo_write = crate::imports::fo_write();
    }
}

/// The operations of pipes and FIFOs.
pub fn ops() -> *mut sys::fileops {
    module::kernel_object("pipeops") as *mut sys::fileops
}

/// The pipe an open file is, if it is one.
pub fn of(fp: *mut sys::file) -> Option<Pipe> {
    // SAFETY: the caller has a reference, or the file is its own.
    unsafe { ((*fp).f_ops == ops()).then(|| (*fp).f_data.cast()) }
}

// Channels are odd, so that they are none of the modules'.

/// For data and room; for the I/O lock; for poll(2).
fn chan(what: u64, pipe: Pipe) -> u64 {
    what << 56 | (pipe as u64) << 1 | 1
}

const MOVED: u64 = 0x4d;
const LOCKED: u64 = 0x4e;
const POLLED: u64 = 0x4f;

fn pair(pipe: Pipe) -> *mut sys::pipepair {
    // SAFETY: set when the pair was made.
    unsafe { (*pipe).pipe_pair }
}

fn mutex(pipe: Pipe) -> *mut usize {
    let mutex = pair(pipe).wrapping_byte_add(offset_of!(sys::pipepair, pp_mtx));
    mutex.wrapping_byte_add(offset_of!(sys::mtx, mtx_lock)).cast()
}

fn lock(pipe: Pipe) {
    sched::point();
    sched::mtx_lock(mutex(pipe));
}

fn unlock(pipe: Pipe) {
    sched::mtx_unlock(mutex(pipe));
    sched::point();
}

/// Whether flags of a pipe are set; under its mutex.
fn has(pipe: Pipe, flags: u32) -> bool {
    // SAFETY: the caller has the pipe open.
    unsafe { u32::from((*pipe).pipe_state) & flags != 0 }
}

fn set(pipe: Pipe, flags: u32) {
    // SAFETY: as above.
    unsafe { (*pipe).pipe_state |= flags as u16 }
}

fn clear(pipe: Pipe, flags: u32) {
    // SAFETY: as above.
    unsafe { (*pipe).pipe_state &= !(flags as u16) }
}

fn filled(pipe: Pipe) -> usize {
    // SAFETY: as above.
    unsafe { (*pipe).pipe_buffer.cnt as usize }
}

fn lent(pipe: Pipe) -> usize {
    // SAFETY: as above.
    unsafe { (*pipe).pipe_pages.cnt as usize }
}

fn size(pipe: Pipe) -> usize {
    // SAFETY: as above.
    unsafe { (*pipe).pipe_buffer.size as usize }
}

fn is_active(pipe: Pipe) -> bool {
    // SAFETY: the pair lives as long as one of its ends is open.
    unsafe { u32::from((*pipe).pipe_present) == sys::PIPE_ACTIVE }
}

fn with<R>(pipe: Pipe, action: impl FnOnce(&mut Contents) -> R) -> R {
    PIPES.with(|pipes| action(pipes.contents.get_mut(&(pipe as usize)).expect("an open pipe")))
}

/// Takes the number of bytes over into the struct.
fn refresh(pipe: Pipe) {
    let count = with(pipe, |its| its.data.len());
    // SAFETY: under the mutex.
    unsafe { (*pipe).pipe_buffer.cnt = count as u32 }
}

/// Waits with the mutex given up meanwhile.
fn sleep(pipe: Pipe, what: u64, catch: bool, wmesg: &str) -> Result<(), Errno> {
    let td = sched::curthread();
    // SAFETY: the running thread's own flags.
    let roused = unsafe {
        let roused = catch && (*td).td_pflags & sys::TDP_WAKEUP as i32 != 0;
        if roused {
            (*td).td_pflags &= !(sys::TDP_WAKEUP as i32);
        }
        roused
    };
    if roused {
        // What a thread has been told before it sleeps.
        unlock(pipe);
        lock(pipe);
        return Err(EINTR);
    }
    let woken = sched::sleep(chan(what, pipe), catch, wmesg, None, || {
        sched::mtx_unlock(mutex(pipe));
    });
    lock(pipe);
    match woken {
        Woken::Signal(errno) => Err(Errno(errno)),
        _ => Ok(()),
    }
}

/// Takes the right to move data.
fn begin(pipe: Pipe, catch: bool) -> Result<(), Errno> {
    while has(pipe, sys::PIPE_LOCKFL) {
        sleep(pipe, LOCKED, catch, "pipelk")?;
    }
    set(pipe, sys::PIPE_LOCKFL);
    Ok(())
}

fn end(pipe: Pipe) {
    if !has(pipe, sys::PIPE_LOCKFL) {
        report::panic("a pipe's I/O lock is given up that nobody has");
    }
    clear(pipe, sys::PIPE_LOCKFL);
    sched::wakeup(chan(LOCKED, pipe), true);
}

/// Waits for the other side, without the right to move data meanwhile.
fn wait(pipe: Pipe, wants: u32, wmesg: &str) -> Result<(), Errno> {
    set(pipe, wants);
    end(pipe);
    let result = sleep(pipe, MOVED, true, wmesg);
    begin(pipe, false)?;
    result
}

/// Wakes those that wait for something, if there are.
fn wake(pipe: Pipe, waits: u32) {
    if has(pipe, waits) {
        clear(pipe, waits);
        sched::wakeup(chan(MOVED, pipe), false);
    }
}

/// pipeselwakeup: tells whoever watches; under the mutex.
fn tell(pipe: Pipe) {
    sched::wakeup(chan(POLLED, pipe), false);
    kqueue::tell(notes(pipe), 0, sys::KNF_LISTLOCKED);
}

fn notes(pipe: Pipe) -> *mut sys::knlist {
    // SAFETY: the pair lives as long as one of its ends is open.
    unsafe { &raw mut (*pipe).pipe_sel.si_note }
}

/// Makes a pair.
fn make(named: bool) -> *mut sys::pipepair {
    let pair: *mut sys::pipepair = mem::new_object();
    // SAFETY: just made, all zeros.
    let ends = unsafe { [&raw mut (*pair).pp_rpipe, &raw mut (*pair).pp_wpipe] };
    for (pipe, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        // SAFETY: as above.
        unsafe {
            (*pipe).pipe_pair = pair;
            (*pipe).pipe_peer = peer;
            (*pipe).pipe_present = sys::PIPE_ACTIVE as u8;
            (*pipe).pipe_buffer.size = SIZE as u32;
        }
        PIPES.with(|pipes| pipes.contents.insert(pipe as usize, Contents::default()));
    }
    if named {
        // SAFETY: as above.
        unsafe { (*ends[0]).pipe_type = sys::PIPE_TYPE_NAMED as u8 };
    }
    sched::mtx_init(mutex(ends[0]), c"pipe mutex".as_ptr());
    for pipe in ends {
        // SAFETY: as above.
        kqueue::list_init(notes(pipe), unsafe { &raw mut (*pair).pp_mtx });
    }
    pair
}

/// pipe2(2): both ends.
pub fn pipe() -> [Pipe; 2] {
    let pair = make(false);
    // SAFETY: just made.
    unsafe { [&raw mut (*pair).pp_rpipe, &raw mut (*pair).pp_wpipe] }
}

/// Whether somebody reads or writes; the pair is locked.
fn is_busy(pipe: Pipe) -> bool {
    // SAFETY: under the mutex.
    unsafe { (*pipe).pipe_busy > 0 }
}

/// Closes an end: pipeclose.
pub fn close(pipe: Pipe) {
    lock(pipe);
    let _ = begin(pipe, false);
    set(pipe, sys::PIPE_EOF);
    while is_busy(pipe) {
        sched::wakeup(chan(MOVED, pipe), false);
        set(pipe, sys::PIPE_WANT);
        end(pipe);
        let _ = sleep(pipe, MOVED, false, "pipecl");
        let _ = begin(pipe, false);
    }
    tell(pipe);
    // SAFETY: set when the pair was made.
    let other = unsafe { (*pipe).pipe_peer };
    if is_active(other) {
        set(other, sys::PIPE_EOF);
        sched::wakeup(chan(MOVED, other), false);
        tell(other);
    }
    unlock(pipe);
    lock(pipe);
    // SAFETY: under the mutex.
    unsafe { (*pipe).pipe_present = sys::PIPE_CLOSING as u8 };
    end(pipe);
    kqueue::list_clear(notes(pipe), true, false);
    if !with(pipe, |its| its.lent.is_empty()) {
        report::panic("a pipe is closed with pages of a writer");
    }
    // SAFETY: under the mutex; whoever finalises the second end frees the pair.
    let last = unsafe {
        (*pipe).pipe_present = sys::PIPE_FINALIZED as u8;
        u32::from((*other).pipe_present) == sys::PIPE_FINALIZED
    };
    sched::mtx_unlock(mutex(pipe));
    PIPES.with(|pipes| pipes.contents.remove(&(pipe as usize)));
    if last {
        let pair = pair(pipe);
        sched::mtx_destroy(mutex(pipe));
        mem::free_object(pair);
    }
    sched::point();
}

/// fo_read and fo_write of a pipe.
pub fn transfer(pipe: Pipe, flag: u32, uio: &mut sys::uio, write: bool) -> Result<(), Errno> {
    let nonblocking = flag & file::O_NONBLOCK as u32 != 0;
    let before = uio.uio_resid;
    let result = match write {
        false => read(pipe, uio, nonblocking),
        true => write_to(peer(pipe), uio, nonblocking),
    };
    if uio.uio_resid != before {
        // SAFETY: the running thread's own counts.
        unsafe {
            let usage = &mut (*sched::curthread()).td_ru;
            if write {
                usage.ru_msgsnd += 1;
            } else {
                usage.ru_msgrcv += 1;
            }
        }
    }
    result
}

/// Where what is written to an end can be read.
fn peer(pipe: Pipe) -> Pipe {
    // SAFETY: set when the pair was made.
    unsafe {
        match u32::from((*pipe).pipe_type) & sys::PIPE_TYPE_NAMED {
            0 => (*pipe).pipe_peer,
            _ => pipe,
        }
    }
}

fn read(pipe: Pipe, uio: &mut sys::uio, nonblocking: bool) -> Result<(), Errno> {
    if nonblocking {
        if uio.uio_resid == 0 {
            return Ok(());
        }
        // A look without the mutex.
        if !has(pipe, sys::PIPE_EOF) && filled(pipe) == 0 && lent(pipe) == 0 {
            return Err(EAGAIN);
        }
    }
    lock(pipe);
    // SAFETY: under the mutex.
    unsafe { (*pipe).pipe_busy += 1 };
    let mut moved = 0;
    let result = begin(pipe, true).and_then(|()| {
        let result = read_locked(pipe, uio, nonblocking, &mut moved);
        if !matches!(result, Err(Stopped::Unlocked(_))) {
            end(pipe);
        }
        result.map_err(|stopped| match stopped {
            Stopped::Locked(error) | Stopped::Unlocked(error) => error,
        })
    });
    // SAFETY: as above.
    let busy = unsafe {
        (*pipe).pipe_busy -= 1;
        (*pipe).pipe_busy
    };
    if busy == 0 && has(pipe, sys::PIPE_WANT) {
        clear(pipe, sys::PIPE_WANT | sys::PIPE_WANTW);
        sched::wakeup(chan(MOVED, pipe), false);
    } else if filled(pipe) < SIZE / 3 {
        wake(pipe, sys::PIPE_WANTW);
    }
    if moved > 0 && size(pipe) - filled(pipe) >= ATOMIC {
        tell(pipe);
    }
    unlock(pipe);
    result
}

/// How a read ended early: with or without the right to move data.
enum Stopped {
    Locked(Errno),
    Unlocked(Errno),
}

fn read_locked(
    pipe: Pipe,
    uio: &mut sys::uio,
    nonblocking: bool,
    moved: &mut usize,
) -> Result<(), Stopped> {
    while uio.uio_resid > 0 {
        let wanted = uio.uio_resid as usize;
        if filled(pipe) > 0 {
            // What the buffer has in one piece.
            let piece = 1 + sched::random(filled(pipe) as u64) as usize;
            let count = if sched::random(8) == 0 { piece } else { filled(pipe) }.min(wanted);
            let mut bytes: Vec<u8> =
                with(pipe, |its| its.data.iter().take(count).copied().collect());
            unlock(pipe);
            let result = file::uiomove(bytes.as_mut_ptr(), count, uio);
            lock(pipe);
            result.map_err(Stopped::Locked)?;
            with(pipe, |its| drop(its.data.drain(..count)));
            refresh(pipe);
            *moved += count;
        } else if lent(pipe) > 0 {
            let count = lent(pipe).min(wanted);
            let mut bytes = from_pages(pipe, count);
            unlock(pipe);
            let result = file::uiomove(bytes.as_mut_ptr(), count, uio);
            lock(pipe);
            result.map_err(Stopped::Locked)?;
            *moved += count;
            with(pipe, |its| its.from += count);
            // SAFETY: under the mutex. A writer that was killed meanwhile has taken its pages back.
            let left = unsafe {
                let pages = &mut (*pipe).pipe_pages;
                pages.cnt -= count as u32;
                pages.pos += count as u32;
                pages.cnt
            };
            if left == 0 {
                clear(pipe, sys::PIPE_WANTW);
                sched::wakeup(chan(MOVED, pipe), false);
            }
        } else {
            if has(pipe, sys::PIPE_EOF) {
                break;
            }
            wake(pipe, sys::PIPE_WANTW);
            if *moved > 0 {
                break;
            }
            end(pipe);
            if nonblocking {
                return Err(Stopped::Unlocked(EAGAIN));
            }
            set(pipe, sys::PIPE_WANTR);
            sleep(pipe, MOVED, true, "piperd")
                .and_then(|()| begin(pipe, true))
                .map_err(Stopped::Unlocked)?;
        }
    }
    Ok(())
}

/// The next bytes of the pages that are lent.
fn from_pages(pipe: Pipe, count: usize) -> Vec<u8> {
    const PAGE: usize = crate::vm::PAGE as usize;
    with(pipe, |its| {
        let byte = |at: usize| {
            let page = pages::memory(its.lent[at / PAGE]);
            // SAFETY: a page that is held.
            unsafe { page.add(at % PAGE).read() }
        };
        (its.from..its.from + count).map(byte).collect()
    })
}

fn write_to(pipe: Pipe, uio: &mut sys::uio, nonblocking: bool) -> Result<(), Errno> {
    lock(pipe);
    if let Err(error) = begin(pipe, true) {
        unlock(pipe);
        return Err(error);
    }
    if !is_active(pipe) || has(pipe, sys::PIPE_EOF) {
        end(pipe);
        unlock(pipe);
        return Err(EPIPE);
    }
    let whole = uio.uio_resid;
    let mut room = size(pipe).max(crate::vm::PAGE as usize);
    while room < filled(pipe) + whole as usize && room < MOST {
        room *= 2;
    }
    // SAFETY: under the mutex.
    unsafe {
        (*pipe).pipe_busy += 1;
        if !has(pipe, sys::PIPE_DIRECTW) {
            (*pipe).pipe_buffer.size = room as u32;
        }
    }
    let mut result = write_locked(pipe, uio, nonblocking);
    // SAFETY: as above.
    let busy = unsafe {
        (*pipe).pipe_busy -= 1;
        (*pipe).pipe_busy
    };
    if busy == 0 && has(pipe, sys::PIPE_WANT) {
        clear(pipe, sys::PIPE_WANT | sys::PIPE_WANTR);
        sched::wakeup(chan(MOVED, pipe), false);
    } else if filled(pipe) > 0 {
        wake(pipe, sys::PIPE_WANTR);
    }
    if result == Err(EPIPE) && uio.uio_resid != whole {
        result = Ok(());
    }
    if filled(pipe) > 0 {
        tell(pipe);
    }
    end(pipe);
    unlock(pipe);
    result
}

fn write_locked(pipe: Pipe, uio: &mut sys::uio, nonblocking: bool) -> Result<(), Errno> {
    let whole = uio.uio_resid as usize;
    while uio.uio_resid > 0 {
        if has(pipe, sys::PIPE_EOF) {
            return Err(EPIPE);
        }
        // SAFETY: the uio has ranges for what is left.
        let next = unsafe { (*uio.uio_iov).iov_len };
        if uio.uio_segflg == sys::UIO_USERSPACE
            && next >= LENDS
            && size(pipe) >= LENDS
            && !nonblocking
        {
            lend(pipe, uio)?;
            continue;
        }
        if lent(pipe) > 0 {
            wake(pipe, sys::PIPE_WANTR);
            tell(pipe);
            wait(pipe, sys::PIPE_WANTW, "pipbww")?;
            continue;
        }
        let room = size(pipe) - filled(pipe);
        let left = uio.uio_resid as usize;
        if room > 0 && (room >= left || whole > ATOMIC) {
            let count = room.min(left);
            let mut bytes = vec![0; count];
            unlock(pipe);
            let result = file::uiomove(bytes.as_mut_ptr(), count, uio);
            lock(pipe);
            result?;
            with(pipe, |its| its.data.extend(bytes));
            refresh(pipe);
            continue;
        }
        wake(pipe, sys::PIPE_WANTR);
        if nonblocking {
            return Err(EAGAIN);
        }
        tell(pipe);
        wait(pipe, sys::PIPE_WANTW, "pipewr")?;
    }
    Ok(())
}

/// A write of a range that lends its pages until they are read.
fn lend(pipe: Pipe, uio: &mut sys::uio) -> Result<(), Errno> {
    loop {
        if has(pipe, sys::PIPE_EOF) {
            sched::wakeup(chan(MOVED, pipe), false);
            return Err(EPIPE);
        }
        let other = has(pipe, sys::PIPE_DIRECTW);
        if !other && filled(pipe) == 0 {
            break;
        }
        wake(pipe, sys::PIPE_WANTR);
        tell(pipe);
        let wmesg = if other { "pipdww" } else { "pipdwc" };
        if let Err(error) = wait(pipe, sys::PIPE_WANTW, wmesg) {
            sched::wakeup(chan(MOVED, pipe), false);
            return Err(error);
        }
    }
    // SAFETY: the uio has a range.
    let iov = unsafe { &mut *uio.uio_iov };
    let (at, count) = (iov.iov_base as u64, iov.iov_len.min(size(pipe)));
    set(pipe, sys::PIPE_DIRECTW);
    unlock(pipe);
    let map = crate::proc::current_vm() as usize + offset_of!(sys::vmspace, vm_map);
    let held = pages::hold(map, at, count, false);
    lock(pipe);
    let Some(held) = held else {
        clear(pipe, sys::PIPE_DIRECTW);
        sched::wakeup(chan(MOVED, pipe), false);
        return Err(EFAULT);
    };
    let from = (at % crate::vm::PAGE) as usize;
    with(pipe, |its| (its.lent, its.from) = (held, from));
    // SAFETY: under the mutex; within the range.
    unsafe {
        (*pipe).pipe_pages.cnt = count as u32;
        (*pipe).pipe_pages.pos = from as u32;
        iov.iov_base = iov.iov_base.byte_add(count);
    }
    iov.iov_len -= count;
    if iov.iov_len == 0 {
        // SAFETY: the next one, or the end.
        uio.uio_iov = unsafe { uio.uio_iov.add(1) };
    }
    uio.uio_resid -= count as isize;
    uio.uio_offset += count as i64;
    let mut result = Ok(());
    while lent(pipe) > 0 && !has(pipe, sys::PIPE_EOF) && result.is_ok() {
        wake(pipe, sys::PIPE_WANTR);
        tell(pipe);
        result = wait(pipe, sys::PIPE_WANTW, "pipdwt");
    }
    let over = has(pipe, sys::PIPE_EOF);
    if over {
        result = Err(EPIPE);
    } else if result.is_err() {
        // What was not read stays when its pages go.
        let left = from_pages(pipe, lent(pipe));
        with(pipe, |its| its.data.extend(left));
        refresh(pipe);
    }
    // SAFETY: under the mutex.
    unsafe { (*pipe).pipe_pages.cnt = 0 };
    clear(pipe, sys::PIPE_DIRECTW);
    for page in with(pipe, |its| std::mem::take(&mut its.lent)) {
        pages::unhold(page);
    }
    if over {
        tell(pipe);
    }
    result
}

/// Waits until an end can be read, at most until a moment; whether it can.
///
/// # Errors
/// A signal's.
pub fn poll_in(pipe: Pipe, until: Option<i64>) -> Result<bool, Errno> {
    while filled(pipe) == 0 && lent(pipe) == 0 && !has(pipe, sys::PIPE_EOF) {
        match sched::sleep(chan(POLLED, pipe), true, "select", until, || ()) {
            Woken::Signal(errno) => return Err(Errno(errno)),
            Woken::Timeout => return Ok(false),
            Woken::Wakeup => {}
        }
    }
    Ok(true)
}

fn with_fifo<R>(id: (u64, u64), action: impl FnOnce(&mut Fifo) -> R) -> R {
    PIPES.with(|pipes| action(pipes.fifos.get_mut(&id).expect("an open FIFO")))
}

/// Opens a named pipe; waits for the other end as open(2) says.
///
/// # Errors
/// ENXIO: no reader. A signal's.
pub fn open_fifo(id: (u64, u64), reads: bool, writes: bool, waits: bool) -> Result<Pipe, Errno> {
    if !PIPES.with(|pipes| pipes.fifos.contains_key(&id)) {
        let pair = make(true);
        // SAFETY: just made.
        let pipe = unsafe { &raw mut (*pair).pp_rpipe } as usize;
        let fifo = Fifo { pipe, readers: 0, writers: 0, readers_ever: 0, writers_ever: 0 };
        PIPES.with(|pipes| pipes.fifos.insert(id, fifo));
    }
    let pipe = with_fifo(id, |fifo| fifo.pipe) as Pipe;
    sched::mtx_lock(mutex(pipe));
    let (no_reader, nobody) = with_fifo(id, |fifo| {
        let none = writes && !reads && !waits && fifo.readers == 0;
        if !none {
            fifo.readers += u32::from(reads);
            fifo.readers_ever += u32::from(reads);
            fifo.writers += u32::from(writes);
            fifo.writers_ever += u32::from(writes);
        }
        (none, none && fifo.writers == 0)
    });
    if no_reader {
        sched::mtx_unlock(mutex(pipe));
        if nobody {
            forget_fifo(id);
        }
        return Err(ENXIO);
    }
    let first = |fifo: &mut Fifo| reads && fifo.readers == 1 || writes && fifo.writers == 1;
    if with_fifo(id, first) {
        clear(pipe, sys::PIPE_EOF);
        sched::wakeup(chan(MOVED, pipe), false);
        tell(pipe);
    }
    // Another one may have come and gone meanwhile.
    let ever = |fifo: &Fifo| (fifo.readers_ever, fifo.writers_ever);
    let (seen_readers, seen_writers) = with_fifo(id, |fifo| ever(fifo));
    let alone = |fifo: &mut Fifo| {
        reads && fifo.writers == 0 && fifo.writers_ever == seen_writers
            || writes && fifo.readers == 0 && fifo.readers_ever == seen_readers
    };
    let mut result = Ok(());
    while waits && result.is_ok() && with_fifo(id, alone) {
        result = sleep(pipe, MOVED, true, "fifo");
    }
    unlock(pipe);
    if let Err(error) = result {
        close_fifo(id, reads, writes);
        return Err(error);
    }
    Ok(pipe)
}

/// One who had a named pipe open closes it.
pub fn close_fifo(id: (u64, u64), reads: bool, writes: bool) {
    let pipe = with_fifo(id, |fifo| fifo.pipe) as Pipe;
    lock(pipe);
    let (readers, writers) = with_fifo(id, |fifo| {
        fifo.readers -= u32::from(reads);
        fifo.writers -= u32::from(writes);
        (fifo.readers, fifo.writers)
    });
    if reads && readers == 0 || writes && writers == 0 {
        set(pipe, sys::PIPE_EOF);
        clear(pipe, sys::PIPE_WANTR | sys::PIPE_WANTW);
        sched::wakeup(chan(MOVED, pipe), false);
        tell(pipe);
    }
    unlock(pipe);
    if readers + writers == 0 {
        forget_fifo(id);
    }
}

/// Nobody has a named pipe open any more.
fn forget_fifo(id: (u64, u64)) {
    let unused = |pipes: &mut Pipes| {
        pipes.fifos.get(&id).is_some_and(|fifo| fifo.readers + fifo.writers == 0)
    };
    // Somebody may have opened it again.
    let Some(fifo) = PIPES.with(|pipes| unused(pipes).then(|| pipes.fifos.remove(&id)).flatten())
    else {
        return;
    };
    let pipe = fifo.pipe as Pipe;
    // SAFETY: set when the pair was made.
    let other = unsafe { (*pipe).pipe_peer };
    close(pipe);
    close(other);
}
