// SPDX-License-Identifier: BSD-2-Clause
//! Pipes and FIFOs: moving data without waiting, and learning that a direction may be ready.
//!
//! # Without waiting
//! The kernel's functions look at the open file for two things: which pipe it is, and whether it is
//! non-blocking. They are given a file of our own, for the one call, that names the same pipe and is
//! non-blocking; the user's is not touched.
//!
//! There is one place where even then a write would wait for a reader: while another process's large
//! write lends its pages to the pipe. The kernel tells the events of the pipe before it waits there,
//! under the lock it gives up by waiting, and so our event ([`event`]) runs in the thread that is
//! about to wait. It marks that thread (TDP_WAKEUP, a flag only the thread itself reads and writes),
//! and the wait, which takes signals, ends at once with EINTR. The lent pages are read some time, and
//! then there is an event.
//!
//! What remains is the pipe's I/O lock, held while another process copies its data: that may mean a
//! page fault of its, but never that it waits for a peer.
//!
//! # Events
//! A [`Watch`] is a knote on the pipe's own list that belongs to no kqueue of any process: its queue
//! is a structure of ours, of which the kernel only takes the lock, since the knote's event never says
//! that it is to be queued. The knote's functions are the gate's. The pipe's mutex protects list and
//! event, so that once a watch is off the list no thread is in its event.
//!
//! A pipe whose reader goes clears its list. The watch is then off it, and what it watches does not
//! change any more.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use sys_bindings as sys;

use super::file::File;
use super::kproc::Worker;
use super::mtx::{lock_raw, unlock_raw};
use super::proc::curthread;
use super::socket::Direction;
use super::uio::Buffer;
use crate::model::Errno;

/// One direction of a pipe or FIFO.
pub struct Watch {
    /// The pipe that has, or gets, the data.
    pipe: NonNull<sys::pipe>,
    direction: Direction,
    /// In a place of its own, which the kernel's list refers to.
    known: Box<Known>,
}

/// What the kernel, or the event, sees of a watch.
#[repr(C)]
struct Known {
    /// First, so that its address is the whole's.
    knote: UnsafeCell<sys::knote>,
    /// Only its lock is used.
    queue: UnsafeCell<sys::kqueue>,
    /// The thread that is in a write of this direction now, by us.
    writer: AtomicPtr<sys::thread>,
}

// SAFETY: the pipe is used under its own mutex, as is the knote; the queue is its lock.
unsafe impl Send for Watch {}
// SAFETY: as above.
unsafe impl Sync for Watch {}

impl Watch {
    /// Names the direction of a pipe; `None`: the file is none. The name is unique as long as there
    /// are open files of the pipe.
    pub fn name(file: &File, direction: Direction) -> Option<u64> {
        let pipe = find(file, direction)?;
        Some(name(pipe, direction))
    }

    /// Makes a watch that is not attached. May sleep.
    pub fn new(file: &File, direction: Direction) -> Option<Watch> {
        let pipe = find(file, direction)?;
        // SAFETY: integers, pointers, and unions of those; all zeros is what they begin with.
        let known: Box<Known> = unsafe { Box::new_zeroed().assume_init() };
        let (knote, queue) = (known.knote.get(), known.queue.get());
        // SAFETY: the memory is ours, zeroed, and stays where it is. The name is static.
        unsafe {
            sys::_mtx_init(
                (&raw mut (*queue).kq_lock.mtx_lock).cast(),
                c"aio_rs pipe event".as_ptr(),
                core::ptr::null(),
                sys::MTX_DEF as c_int,
            );
            (*knote).kn_kq = queue;
            (*knote).kn_status = sys::KN_DETACHED as c_int;
            (*knote).kn_fop = &raw const sys::gate::aio_rs_gate_pipe_filter;
            (*knote).kn_hook = pipe.as_ptr().cast();
            (*knote).kn_hookid = c_int::from(direction == Direction::Send);
        }
        Some(Watch { pipe, direction, known })
    }

    /// As [`Watch::name`].
    pub fn id(&self) -> u64 {
        name(self.pipe, self.direction)
    }

    fn knote(&self) -> *mut sys::knote {
        (&raw const *self.known).cast_mut().cast()
    }

    /// Calls `change` with the pipe's mutex held.
    fn locked(&self, change: impl FnOnce(*mut sys::pipe, *mut sys::knote)) {
        let pipe = self.pipe.as_ptr();
        // SAFETY: the callers' callers have the pipe open, and its pair, with the mutex, lives as
        // long as one of its ends is open.
        unsafe {
            let mutex = &raw mut (*(*pipe).pipe_pair).pp_mtx;
            lock_raw(mutex);
            change(pipe, self.knote());
            unlock_raw(mutex);
        }
    }

    /// Has the gate told of every event of the pipe from now on. Takes the pipe's mutex.
    ///
    /// The caller has a file of this pipe and direction open, as everybody has who calls a method of
    /// this type but [`Watch::id`].
    pub fn attach(&self) {
        self.locked(|pipe, knote| {
            // SAFETY: under the pipe's mutex, the knote is ours alone. An end that is gone has no
            // list any more.
            unsafe {
                if u32::from((*pipe).pipe_present) != sys::PIPE_ACTIVE {
                    return;
                }
                (*knote).kn_influx = 1;
                sys::knlist_add(&raw mut (*pipe).pipe_sel.si_note, knote, 1);
                (*knote).kn_influx = 0;
            }
        });
    }

    /// Ends it. Afterwards no thread is in the event. Takes the pipe's mutex.
    pub fn detach(&self) {
        self.locked(|pipe, knote| {
            // SAFETY: under the pipe's mutex, which whoever clears the list holds too.
            unsafe {
                if (*knote).kn_status & sys::KN_DETACHED as c_int != 0 {
                    return;
                }
                (*knote).kn_influx = 1;
                sys::knlist_remove(&raw mut (*pipe).pipe_sel.si_note, knote, 1);
                (*knote).kn_influx = 0;
            }
        });
    }

    /// Whether a request may make progress now, at a glance: whoever changes that afterwards finds the
    /// event attached.
    pub fn is_ready(&self) -> bool {
        // SAFETY: the caller has the pipe open.
        unsafe { Now::of(self.pipe) }.is_ready(self.direction)
    }

    /// Moves what can be moved now, as a worker in the submitter's address space. `file` is an open
    /// file of this pipe, for this direction. May sleep, but not for the peer.
    ///
    /// Returns the bytes moved, which the buffer leaves out from then on, and how it ended: EAGAIN
    /// where it would have had to wait for the rest.
    pub fn transfer(
        &self,
        worker: &Worker,
        file: &File,
        buffer: &mut Buffer,
    ) -> (usize, Result<(), Errno>) {
        let td = worker.thread().as_ptr();
        let fp = file.as_ptr();
        // SAFETY: integers and pointers; what is not copied below is not looked at.
        let mut own: sys::file = unsafe { core::mem::zeroed() };
        // SAFETY: the file is referenced; these fields are set before it is shared.
        unsafe {
            own.f_data = (*fp).f_data;
            own.f_ops = (*fp).f_ops;
            own.f_vnode = (*fp).f_vnode;
            own.f_cred = (*fp).f_cred;
            own.f_type = (*fp).f_type;
        }
        own.f_count = 1;
        own.f_flag = sys::FREAD | sys::FWRITE | sys::FNONBLOCK;
        let own = &raw mut own;
        let cred = file.cred();
        let (code, moved) = match self.direction {
            Direction::Receive => buffer.try_uio(false, td, |uio| {
                // SAFETY: the functions of pipes; the file of our own outlives the call, td is the
                // current thread.
                unsafe { sys::aio_rs_fo_read(own, uio, cred, 0, td) }
            }),
            Direction::Send => buffer.try_uio(true, td, |uio| {
                self.known.writer.store(td, Ordering::Relaxed);
                // SAFETY: as above. The flag is this thread's own.
                unsafe {
                    let code = sys::aio_rs_fo_write(own, uio, cred, 0, td);
                    self.known.writer.store(null_mut(), Ordering::Relaxed);
                    (*td).td_pflags &= !(sys::TDP_WAKEUP as c_int);
                    code
                }
            }),
        };
        buffer.advance(moved);
        // Nobody else interrupts a worker.
        let end = match Errno::check(code) {
            Err(Errno::EINTR | Errno::ERESTART) => Err(Errno::EAGAIN),
            end => end,
        };
        (moved, end)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the watch: it is off the list for good, which is what is
        // asserted, and the lock is free.
        unsafe {
            let status = (*self.knote()).kn_status;
            assert!(status & sys::KN_DETACHED as c_int != 0, "a pipe still knows its watch");
            sys::_mtx_destroy((&raw mut (*self.known.queue.get()).kq_lock.mtx_lock).cast());
        }
    }
}

/// The pipe that has the data a direction of a file moves; `None`: it is no pipe.
fn find(file: &File, direction: Direction) -> Option<NonNull<sys::pipe>> {
    let pipe = file.pipe()?;
    // SAFETY: the file keeps the pipe; both fields are set before there is a file.
    unsafe {
        let named = u32::from(pipe.as_ref().pipe_type) & sys::PIPE_TYPE_NAMED != 0;
        if named || direction == Direction::Receive {
            return Some(pipe);
        }
        NonNull::new(pipe.as_ref().pipe_peer)
    }
}

/// Pipes are aligned, so there are bits to spare.
fn name(pipe: NonNull<sys::pipe>, direction: Direction) -> u64 {
    pipe.addr().get() as u64 | u64::from(direction == Direction::Send)
}

/// What a knote of ours is told. Returns the name of the direction if it may make progress now.
///
/// # Safety
/// As the gate calls it: the knote is a watch's, attached, and the mutex of its pipe is held.
pub unsafe fn event(kn: *mut sys::knote) -> Option<u64> {
    // SAFETY: a watch that is attached is there, with its pipe, whose mutex is held.
    unsafe {
        let pipe = NonNull::new((*kn).kn_hook.cast::<sys::pipe>())?;
        let known: *const Known = kn.cast_const().cast();
        let now = Now::of(pipe);
        let direction = if (*kn).kn_hookid == 0 { Direction::Receive } else { Direction::Send };
        let td = curthread();
        if direction == Direction::Send && (*known).writer.load(Ordering::Relaxed) == td {
            if now.lent {
                (*td).td_pflags |= sys::TDP_WAKEUP as c_int;
            }
            // A write tells all of its own end too.
            return None;
        }
        now.is_ready(direction).then(|| name(pipe, direction))
    }
}

/// What a pipe looks like at one moment.
struct Now {
    /// A writer or reader has gone.
    over: bool,
    /// It has pages of a writer.
    lent: bool,
    filled: u32,
    size: u32,
}

impl Now {
    /// # Safety
    /// The pipe is there. Without its mutex the answer may be as of a moment ago.
    unsafe fn of(pipe: NonNull<sys::pipe>) -> Now {
        let pipe = pipe.as_ptr();
        // SAFETY: the caller's promise; the kernel reads these without the mutex too.
        unsafe {
            let state = (&raw const (*pipe).pipe_state).read_volatile();
            let present = (&raw const (*pipe).pipe_present).read_volatile();
            Now {
                over: u32::from(state) & sys::PIPE_EOF != 0
                    || u32::from(present) != sys::PIPE_ACTIVE,
                lent: (&raw const (*pipe).pipe_pages.cnt).read_volatile() != 0,
                filled: (&raw const (*pipe).pipe_buffer.cnt).read_volatile(),
                size: (&raw const (*pipe).pipe_buffer.size).read_volatile(),
            }
        }
    }

    /// Whether a request may make progress.
    fn is_ready(&self, direction: Direction) -> bool {
        self.over
            || match direction {
                Direction::Receive => self.lent || self.filled > 0,
                Direction::Send => !self.lent && self.filled < self.size,
            }
    }
}
