// SPDX-License-Identifier: BSD-2-Clause
//! Sockets: owned references, the protocol by which a socket buffer tells us that it is ready, and
//! sending and receiving without waiting.
//!
//! A socket has two directions. Each has a buffer with a lock, an AIO task, and two flags:
//!
//! * SB_AIO: the next event of the buffer starts the task (sowakeup(9)) and clears the flag.
//! * SB_AIO_RUNNING: the task is queued or runs; it holds a reference to the socket. An event that
//!   finds it set only clears SB_AIO.
//!
//! The task's function is the kernel's until requests of ours wait, and then the gate's. It changes
//! under the buffer's lock, while the task does not run or by the task itself: a soaiod reads it
//! without that lock, but only between start and end. listen(2), which replaces the buffers by other
//! data in the same memory, is refused while a flag is set; so as long as requests of ours wait, one
//! of them is set.
//!
//! What waits for a direction is data of its [`Side`], protected by the buffer's own lock, so no
//! event can fall between a look at the queue and a look at the flags.
//!
//! Requests of processes of the built-in may wait for the same socket (`sb_aiojobq`). Our task then
//! ends by the kernel's function, which serves them. When the last of them is cancelled, the kernel
//! clears SB_AIO, whoever else waits. So while ours wait and the task does not run, a mark of ours is
//! in that queue, which therefore is not empty. The kernel looks at what is in it only in its own
//! function; before that is called, the mark is taken out.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::{NonNull, null_mut};

use sys_bindings as sys;

use super::file::File;
use super::proc::Curthread;
use super::uio::Buffer;
use crate::model::Errno;

/// One half of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Receive,
    Send,
}

type TaskFn = unsafe extern "C" fn(*mut core::ffi::c_void, c_int);

impl Direction {
    /// As the kernel numbers them.
    fn which(self) -> c_int {
        (match self {
            Direction::Receive => sys::SO_RCV,
            Direction::Send => sys::SO_SND,
        }) as c_int
    }

    fn ours(self) -> TaskFn {
        match self {
            Direction::Receive => sys::gate::aio_rs_gate_soaio_rcv,
            Direction::Send => sys::gate::aio_rs_gate_soaio_snd,
        }
    }

    fn kernels(self) -> TaskFn {
        match self {
            Direction::Receive => sys::soaio_rcv,
            Direction::Send => sys::soaio_snd,
        }
    }
}

/// An owned reference to a socket. Dropping the last one frees it, which may sleep.
pub struct Socket(NonNull<sys::socket>);

// SAFETY: sockets are counted and lock themselves.
unsafe impl Send for Socket {}
// SAFETY: as above.
unsafe impl Sync for Socket {}

impl Socket {
    /// The socket behind a file; `None` when it is none.
    pub fn of(file: &File) -> Option<Socket> {
        let so = file.socket()?;
        // SAFETY: the file holds a reference, so there is one to add to.
        unsafe { sys::aio_rs_soref(so.as_ptr()) };
        Some(Socket(so))
    }

    /// Names the socket behind a file; unique while the file is open.
    pub fn name(file: &File) -> Option<u64> {
        file.socket().map(|so| so.addr().get() as u64)
    }

    /// Names the socket; unique while there are references to it.
    pub fn id(&self) -> u64 {
        self.0.addr().get() as u64
    }

    /// Whether calls on it do not wait (O_NONBLOCK).
    pub fn is_nonblocking(&self) -> bool {
        // SAFETY: the reference is ours; the state is read without a lock as the kernel does.
        let state = unsafe { (&raw const (*self.0.as_ptr()).so_state).read_volatile() };
        u32::from(state.cast_unsigned()) & sys::SS_NBIO != 0
    }

    /// Whether a broken connection is to be told by no signal (SO_NOSIGPIPE).
    pub fn has_no_sigpipe(&self) -> bool {
        // SAFETY: as in is_nonblocking.
        let options = unsafe { (&raw const (*self.0.as_ptr()).so_options).read_volatile() };
        options.cast_unsigned() & sys::SO_NOSIGPIPE != 0
    }

    /// Whether each write is one message, sent as a whole or not at all.
    fn is_atomic(&self) -> bool {
        // SAFETY: the reference is ours; the protocol of a socket lives as long as the kernel.
        let flags = unsafe { (*(*self.0.as_ptr()).so_proto).pr_flags };
        u32::from(flags.cast_unsigned()) & sys::PR_ATOMIC != 0
    }

    /// Moves what can be moved now, in the submitter's address space and with its credential. `more`:
    /// another request of this direction waits. May sleep, but not for the peer; nor for who else
    /// receives or sends, unless `queues`.
    ///
    /// Returns the bytes moved, which the buffer leaves out from then on, and how it ended: EAGAIN
    /// where it would have had to wait for the rest.
    pub fn transfer(
        &self,
        td: Curthread,
        file: &File,
        direction: Direction,
        buffer: &mut Buffer,
        more: bool,
        queues: bool,
    ) -> (usize, Result<(), Errno>) {
        let td = td.as_ptr();
        let so = self.0.as_ptr();
        // SAFETY: a constant table of functions, whose place for this direction may be null.
        if let Some(check) = unsafe { sys::aio_rs_mac_socket_check[direction.which() as usize] } {
            // SAFETY: file and socket are referenced.
            if let Err(error) = Errno::check(unsafe { check(file.cred(), so) }) {
                return (0, Err(error));
            }
        }
        let mut flags = sys::MSG_NBIO as c_int;
        if !queues {
            flags |= sys::MSG_DONTWAIT as c_int;
        }
        let (code, mut moved) = match direction {
            Direction::Receive => buffer.try_uio(false, td, |uio| {
                // SAFETY: the socket is referenced, no lock is held, td is the current thread.
                unsafe { sys::soreceive(so, null_mut(), uio, null_mut(), null_mut(), &mut flags) }
            }),
            Direction::Send => {
                if more {
                    flags |= sys::MSG_MORETOCOME as c_int;
                }
                buffer.try_uio(true, td, |uio| {
                    // SAFETY: as above.
                    unsafe { sys::sosend(so, null_mut(), uio, null_mut(), null_mut(), flags, td) }
                })
            }
        };
        let end = Errno::check(code);
        if end == Err(Errno::EAGAIN) && direction == Direction::Send && self.is_atomic() {
            // Protocols differ in whether they have read the message before they found no room.
            moved = 0;
        }
        buffer.advance(moved);
        (moved, end)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { sys::aio_rs_sorele(self.0.as_ptr()) }
    }
}

/// One direction of a socket with the data `T` that its buffer's lock protects.
///
/// There may be several for one direction; each protects its own data.
pub struct Side<T> {
    /// Absent while it is kept for another.
    socket: Option<Socket>,
    direction: Direction,
    data: UnsafeCell<T>,
    mark: UnsafeCell<Mark>,
}

/// A member of the kernel's queue that is no request: only its links are ever looked at.
struct Mark {
    link: Link,
    queued: bool,
}

/// A kaiocb's links, with which it begins.
#[repr(C)]
struct Link {
    next: *mut sys::kaiocb,
    previous: *mut *mut sys::kaiocb,
}

const _: () = assert!(core::mem::offset_of!(sys::kaiocb, list) == 0);

// SAFETY: data and mark are reached under the buffer's lock only, by one thread at a time; the
// mark's pointers are to what that lock protects.
unsafe impl<T: Send> Sync for Side<T> {}
// SAFETY: as above; a side that nobody else has is not in the kernel's queue.
unsafe impl<T: Send> Send for Side<T> {}

impl<T> Side<T> {
    /// Joins data to a direction.
    pub fn new(socket: Socket, direction: Direction, data: T) -> Side<T> {
        let link = Link { next: null_mut(), previous: null_mut() };
        let mark = UnsafeCell::new(Mark { link, queued: false });
        Side { socket: Some(socket), direction, data: UnsafeCell::new(data), mark }
    }

    /// Lets go of the socket, so that the data can be joined to another by [`Side::join`].
    pub fn part(&mut self) -> Option<Socket> {
        assert!(!self.mark.get_mut().queued, "what waits for a socket is parted from it");
        self.socket.take()
    }

    /// Joins the data to another direction.
    pub fn join(&mut self, socket: Socket, direction: Direction) {
        assert!(self.socket.is_none(), "a side of two sockets");
        self.socket = Some(socket);
        self.direction = direction;
    }

    /// The socket.
    #[track_caller]
    pub fn socket(&self) -> &Socket {
        let Some(socket) = &self.socket else { panic!("a side without a socket") };
        socket
    }

    /// Which half.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Locks the socket's buffer, and with it the data. May block.
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: the reference outlives the guard.
        let buf = unsafe { Buf::lock(self.socket().0, self.direction) };
        Guard { buf, side: self }
    }
}

impl<T> Drop for Side<T> {
    fn drop(&mut self) {
        assert!(!self.mark.get_mut().queued, "what waits for a socket is dropped with its mark");
    }
}

/// The right to a side's data and its buffer's flags; unlocks when dropped.
#[must_use]
pub struct Guard<'a, T> {
    buf: Buf<'a>,
    side: &'a Side<T>,
}

impl<'a, T> Guard<'a, T> {
    /// The buffer's half.
    pub fn buf(&mut self) -> &mut Buf<'a> {
        &mut self.buf
    }

    /// Keeps the lock, without the data.
    pub fn into_buf(self) -> Buf<'a> {
        self.buf
    }

    fn mark(&mut self) -> &mut Mark {
        // SAFETY: this thread holds the lock.
        unsafe { &mut *self.side.mark.get() }
    }

    /// Sees to it that what waits is looked at: now, if there may be progress, or at the next event.
    #[inline(never)]
    pub fn poke(&mut self) {
        if self.buf.is_ready() {
            self.buf.start();
        } else {
            self.buf.set(sys::SB_AIO);
        }
        // A task that runs does this in its end.
        if !self.buf.has(sys::SB_AIO_RUNNING) {
            self.put_mark();
        }
    }

    /// Has something be tried by another than the task, if that does not run and there may be
    /// progress: true, and the next event is noticed.
    #[inline(never)]
    pub fn begin_without_task(&mut self) -> bool {
        if self.buf.has(sys::SB_AIO_RUNNING) || !self.buf.is_ready() {
            return false;
        }
        self.buf.set(sys::SB_AIO);
        self.put_mark();
        true
    }

    /// Says that nothing waits any more, or not now: what is tried does not wait.
    pub fn nothing_waits(&mut self) {
        if !self.mark().queued {
            return;
        }
        // SAFETY: under the buffer's lock; the mark is in its queue, so its links are of members.
        unsafe {
            let queue = &raw mut (*self.buf.raw()).sb_aiojobq;
            let Link { next, previous } = self.mark().link;
            if next.is_null() {
                (*queue).tqh_last = previous;
            } else {
                (*next).list.tqe_prev = previous;
            }
            *previous = next;
        }
        self.mark().queued = false;
    }

    /// Keeps the built-in from taking SB_AIO away from what waits.
    #[inline(never)]
    fn put_mark(&mut self) {
        if self.mark().queued {
            return;
        }
        let link = &raw mut self.mark().link;
        // SAFETY: under the buffer's lock; the mark stays where it is until it is taken out, which
        // is before what waits is gone.
        unsafe {
            let queue = &raw mut (*self.buf.raw()).sb_aiojobq;
            let first = (*queue).tqh_first;
            (*link).next = first;
            (*link).previous = &raw mut (*queue).tqh_first;
            if first.is_null() {
                (*queue).tqh_last = &raw mut (*link).next;
            } else {
                (*first).list.tqe_prev = &raw mut (*link).next;
            }
            (*queue).tqh_first = link.cast();
        }
        self.mark().queued = true;
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock.
        unsafe { &*self.side.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock.
        unsafe { &mut *self.side.data.get() }
    }
}

/// A locked socket buffer.
#[must_use]
pub struct Buf<'a> {
    so: NonNull<sys::socket>,
    /// Its buffer, if it does not listen.
    raw: *mut sys::sockbuf,
    direction: Direction,
    _not_send: PhantomData<(&'a (), *mut ())>,
}

impl Buf<'_> {
    /// # Safety
    /// The socket stays referenced as long as `'a`.
    unsafe fn lock<'a>(so: NonNull<sys::socket>, direction: Direction) -> Buf<'a> {
        // SAFETY: the lock is in the socket, also in a listening one.
        let raw = unsafe { sys::aio_rs_sockbuf_lock(so.as_ptr(), direction.which()) };
        Buf { so, raw, direction, _not_send: PhantomData }
    }

    /// Whether it accepts connections. It has no buffers then, and nothing else may be asked.
    pub fn is_listening(&self) -> bool {
        // SAFETY: the socket is referenced; listen(2) sets this with both buffers locked.
        let options = unsafe { (&raw const (*self.so.as_ptr()).so_options).read_volatile() };
        options.cast_unsigned() & sys::SO_ACCEPTCONN != 0
    }

    fn raw(&self) -> *mut sys::sockbuf {
        assert!(!self.is_listening(), "a listening socket has no buffers");
        self.raw
    }

    fn has(&self, flag: u32) -> bool {
        // SAFETY: under the buffer's lock.
        u32::from(unsafe { (*self.raw()).sb_flags }.cast_unsigned()) & flag != 0
    }

    fn set(&mut self, flag: u32) {
        // SAFETY: under the buffer's lock.
        unsafe { (*self.raw()).sb_flags |= flag as i16 }
    }

    fn clear(&mut self, flag: u32) {
        // SAFETY: under the buffer's lock.
        unsafe { (*self.raw()).sb_flags &= !(flag as i16) }
    }

    /// Whether a request of this direction can make progress, as far as the kernel says.
    pub fn is_ready(&self) -> bool {
        let so = self.so.as_ptr();
        // SAFETY: under the buffer's lock, and it is no listening socket: raw says so.
        unsafe {
            let _ = self.raw();
            match self.direction {
                Direction::Receive => sys::aio_rs_soreadable(so) != 0,
                Direction::Send => sys::aio_rs_sowriteable(so) != 0,
            }
        }
    }

    /// Whether a request of the built-in waits; no mark of ours does.
    fn has_builtins(&self) -> bool {
        // SAFETY: under the buffer's lock.
        unsafe { !(*self.raw()).sb_aiojobq.tqh_first.is_null() }
    }

    fn task_is(&self, function: TaskFn) -> bool {
        // SAFETY: under the buffer's lock.
        unsafe { (*self.raw()).sb_aiotask.ta_func }
            .is_some_and(|now| now as usize == function as usize)
    }

    /// Makes the task ours, for requests that are about to wait. False: the kernel's runs now, and
    /// will not look at ours.
    pub fn adopt(&mut self) -> bool {
        if self.task_is(self.direction.ours()) {
            return true;
        }
        if self.has(sys::SB_AIO_RUNNING) || !self.task_is(self.direction.kernels()) {
            return false;
        }
        // SAFETY: under the buffer's lock; the task is not queued.
        unsafe { (*self.raw()).sb_aiotask.ta_func = Some(self.direction.ours()) };
        true
    }

    /// Gives the task back to the kernel, because nothing of ours waits any more; unless it runs:
    /// then it does so itself.
    pub fn give_back(&mut self) {
        if !self.has(sys::SB_AIO_RUNNING) {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.has_builtins() {
            self.clear(sys::SB_AIO);
        }
        // SAFETY: under the buffer's lock; the task is not queued, or runs as the caller.
        unsafe { (*self.raw()).sb_aiotask.ta_func = Some(self.direction.kernels()) };
    }

    /// Starts the task, unless it runs.
    fn start(&mut self) {
        // SAFETY: under the buffer's lock. It takes the reference the task needs.
        unsafe { sys::sowakeup_aio(self.so.as_ptr(), self.direction.which() as sys::sb_which) };
    }

    /// Has the next event noticed: [`Buf::is_armed`] says whether none has come since.
    pub fn arm(&mut self) {
        self.set(sys::SB_AIO);
    }

    /// Whether no event has come since [`Buf::arm`].
    pub fn is_armed(&self) -> bool {
        self.has(sys::SB_AIO)
    }
}

impl Drop for Buf<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread holds the lock, and the socket is referenced.
        unsafe { sys::aio_rs_sockbuf_unlock(self.so.as_ptr(), self.direction.which()) }
    }
}

/// A direction's task that runs: it is not queued again before this ends, and it holds a reference
/// to the socket.
#[must_use = "a task is to be ended"]
pub struct Task {
    so: ManuallyDrop<Socket>,
    direction: Direction,
}

/// Who has the last word in a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nobody: it is over.
    Here,
    /// The kernel's own function, to be called with the same arguments.
    Kernel,
}

impl Task {
    /// Takes the kernel's word for it.
    ///
    /// # Safety
    /// The task of this socket and direction (`which`, as the kernel numbers them) runs as this
    /// call, by the gate's function, and has no other `Task`.
    pub unsafe fn new(so: *mut sys::socket, which: c_int) -> Task {
        let Some(so) = NonNull::new(so) else { panic!("a task without a socket") };
        let direction =
            if which == sys::SO_RCV as c_int { Direction::Receive } else { Direction::Send };
        Task { so: ManuallyDrop::new(Socket(so)), direction }
    }

    /// Names the socket.
    pub fn socket_id(&self) -> u64 {
        self.so.id()
    }

    /// Which half of it.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Begins: `find`, under the buffer's lock, says what waits. Nothing: the task ends.
    ///
    /// # Errors
    /// As [`Task::end_empty`].
    pub fn begin<R>(self, find: impl FnOnce() -> Option<R>) -> Result<(Task, R), Ended> {
        // SAFETY: the task's reference outlives the guard.
        let buf = unsafe { Buf::lock(self.so.0, self.direction) };
        match find() {
            Some(found) => {
                drop(buf);
                Ok((self, found))
            }
            None => Err(self.end_empty(buf)),
        }
    }

    /// Ends it, with nothing of ours left to wait. `buf` is its buffer. May sleep.
    pub fn end_empty(self, mut buf: Buf<'_>) -> Ended {
        assert!(buf.so == self.so.0, "another socket's buffer");
        buf.hand_over();
        if buf.has_builtins() {
            // The kernel's function needs the flag and the reference.
            return Ended::Kernel;
        }
        buf.clear(sys::SB_AIO_RUNNING);
        drop(buf);
        self.release();
        Ended::Here
    }

    /// Ends it, with something of ours left to wait for the next event. True: requests of the
    /// built-in were served meanwhile, so that an event may have been missed. May sleep.
    pub fn end_waiting<T>(self, mut side: Guard<'_, T>) -> bool {
        assert!(side.buf.so == self.so.0, "another socket's buffer");
        side.nothing_waits();
        side.buf.set(sys::SB_AIO);
        if !side.buf.has_builtins() {
            side.put_mark();
            side.buf.clear(sys::SB_AIO_RUNNING);
            drop(side);
            self.release();
            return false;
        }
        drop(side);
        let function = self.direction.kernels();
        // SAFETY: the task runs as this call; the function ends it and drops its reference.
        unsafe { function(self.so.0.as_ptr().cast(), 1) };
        true
    }

    /// Drops the task's reference.
    fn release(self) {
        drop(ManuallyDrop::into_inner(self.so));
    }
}
