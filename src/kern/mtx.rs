// SPDX-License-Identifier: BSD-2-Clause
//! mutex(9): a lock that exists is initialised, owns its data, and gives it by guard.
//!
//! docs/locking.md holds the order. Guards are not Send: a mutex belongs to its thread. With a
//! guard alive a thread must not sleep, allocate or free; sleeping goes through [`Guard::msleep`],
//! which gives the lock up meanwhile, so that no reference into the data survives it.

use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use sys_bindings as sys;

use super::sleep::{Channel, Deadline};
use crate::model::Errno;

/// A default mutex (MTX_DEF) with the data it protects.
pub struct Mutex<T> {
    /// On its own: its address must not change, and waiters should not share the data's lines.
    raw: Arc<Raw>,
    data: UnsafeCell<T>,
}

/// The kernel's part of a mutex, which lives as long as anybody may lock it: the mutex itself, and
/// the knote lists that use it as theirs.
pub(super) struct Raw(UnsafeCell<sys::mtx>);

// SAFETY: the kernel's functions on it are made for several threads.
unsafe impl Sync for Raw {}
// SAFETY: an unlocked mutex may be destroyed by any thread.
unsafe impl Send for Raw {}

impl Raw {
    pub(super) fn as_ptr(&self) -> *mut sys::mtx {
        self.0.get()
    }

    /// Locks. May block.
    #[track_caller]
    pub(super) fn lock(&self) {
        // SAFETY: initialised by Mutex::new, and kept by self.
        unsafe { lock_raw(self.as_ptr()) };
    }

    /// Unlocks.
    ///
    /// # Safety
    /// This thread has locked it.
    #[track_caller]
    pub(super) unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { unlock_raw(self.as_ptr()) };
    }
}

/// Locks a mutex of whosoever. May block.
///
/// # Safety
/// It is an initialised default mutex, and stays until it is unlocked.
#[track_caller]
pub(super) unsafe fn lock_raw(mutex: *mut sys::mtx) {
    let place = Location::caller();
    // SAFETY: the caller's promise; the place's strings are static.
    unsafe {
        sys::__mtx_lock_flags(
            (&raw mut (*mutex).mtx_lock).cast(),
            0,
            place.file_as_c_str().as_ptr(),
            place.line() as c_int,
        );
    }
}

/// Unlocks what [`lock_raw`] locked.
///
/// # Safety
/// This thread has locked it.
#[track_caller]
pub(super) unsafe fn unlock_raw(mutex: *mut sys::mtx) {
    let place = Location::caller();
    // SAFETY: the caller's promise; the place's strings are static.
    unsafe {
        sys::__mtx_unlock_flags(
            (&raw mut (*mutex).mtx_lock).cast(),
            0,
            place.file_as_c_str().as_ptr(),
            place.line() as c_int,
        );
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: nobody holds or waits for it: dropping needs the only reference.
        unsafe { sys::_mtx_destroy((&raw mut (*self.as_ptr()).mtx_lock).cast()) }
    }
}

// SAFETY: the data is reached through the lock only, by one thread at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: an unlocked mutex may be handed to another thread with its data.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// Makes a mutex; `name` is what WITNESS and lock profiling call it. May sleep.
    pub fn new(name: &'static CStr, data: T) -> Mutex<T> {
        // SAFETY: struct mtx is integers and pointers; all zeros is what _mtx_init expects.
        let raw = Arc::new(Raw(UnsafeCell::new(unsafe { core::mem::zeroed::<sys::mtx>() })));
        // SAFETY: the memory is ours, zeroed and does not move; the name is static.
        unsafe {
            sys::_mtx_init(
                (&raw mut (*raw.as_ptr()).mtx_lock).cast(),
                name.as_ptr(),
                core::ptr::null(),
                sys::MTX_DEF as c_int,
            );
        }
        Mutex { raw, data: UnsafeCell::new(data) }
    }

    /// Locks. May block; must not be called with this mutex held.
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        self.raw.lock();
        Guard { mutex: self, _not_send: PhantomData }
    }
}

impl<T> Mutex<T> {
    /// The kernel's part, for a knote list that is to be protected by this mutex.
    pub(super) fn raw(&self) -> &Arc<Raw> {
        &self.raw
    }
}

/// The right to a mutex's data; unlocks when dropped.
#[must_use]
pub struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
    _not_send: PhantomData<*mut ()>,
}

impl<'a, T> Guard<'a, T> {
    /// Sleeps on `channel` with the mutex released, and takes it again.
    ///
    /// # Errors
    /// As sleep(9): EAGAIN (EWOULDBLOCK) at the deadline; with `catch`, EINTR or ERESTART for a
    /// signal. `Ok` may be spurious: the caller looks at its condition again.
    pub fn msleep(
        self,
        channel: Channel,
        catch: bool,
        wmesg: &'static CStr,
        deadline: Option<Deadline>,
    ) -> (Guard<'a, T>, Result<(), Errno>) {
        let priority = sys::PRIBIO as c_int | if catch { sys::PCATCH as c_int } else { 0 };
        let (at, precision, flags) = match deadline {
            Some(deadline) => (deadline.at, deadline.precision, sys::C_ABSOLUTE as c_int),
            None => (0, 0, 0),
        };
        // SAFETY: this thread holds the mutex, which _sleep gives up and takes again; no reference
        // into the data lives, since the guard was passed by value.
        let code = unsafe {
            sys::_sleep(
                channel.as_ptr(),
                &raw mut (*self.mutex.raw.as_ptr()).lock_object,
                priority,
                wmesg.as_ptr(),
                at,
                precision,
                flags,
            )
        };
        (self, Errno::check(code))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the mutex.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the mutex.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[track_caller]
    fn drop(&mut self) {
        // SAFETY: this thread holds the mutex: the guard is not Send and msleep takes it again.
        unsafe { self.mutex.raw.unlock() };
    }
}
