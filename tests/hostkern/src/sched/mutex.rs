// SPDX-License-Identifier: BSD-2-Clause
//! mutex(9), and the order of locks.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};

use super::{SCHED, block, curthread, unblock};
use crate::{report, sys};

/// struct lock_object's flag of an initialised lock.
const LO_INITIALIZED: u32 = 0x1_0000;

/// The mutex that has this lock word: what mutex(9)'s functions are given.
fn mutex_of(word: *mut usize) -> *mut sys::mtx {
    word.wrapping_byte_sub(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

fn mutex_name(mutex: *mut sys::mtx) -> String {
    // SAFETY: an initialised mutex's name is a C string that outlives it.
    unsafe { CStr::from_ptr((*mutex).lock_object.lo_name) }.to_string_lossy().into_owned()
}

/// Takes what lies in memory for no mutex.
pub fn forget_mutex(word: *mut usize) {
    // SAFETY: the caller's memory for a mutex.
    unsafe { (*mutex_of(word)).lock_object.lo_flags = 0 }
}

pub fn mtx_init(word: *mut usize, name: *const c_char) {
    let mutex = mutex_of(word);
    // SAFETY: the caller's memory for a mutex.
    unsafe {
        if (*mutex).lock_object.lo_flags & LO_INITIALIZED != 0 {
            report::panic("a mutex is initialised twice");
        }
        (*mutex).lock_object.lo_name = name;
        (*mutex).lock_object.lo_flags = LO_INITIALIZED;
        (*mutex).mtx_lock = sys::MTX_UNOWNED as usize;
    }
    SCHED.with(|s| s.mutexes.insert(word as u64, mutex_name(mutex)));
}

pub fn mtx_destroy(word: *mut usize) {
    let mutex = checked(word, "destroyed");
    // SAFETY: an initialised mutex, by `checked`.
    unsafe {
        if (*mutex).mtx_lock != sys::MTX_UNOWNED as usize {
            report::panic(&format!("mutex {} is destroyed while it is held", mutex_name(mutex)));
        }
        (*mutex).mtx_lock = sys::MTX_DESTROYED as usize;
        (*mutex).lock_object.lo_flags = 0;
    }
}

fn checked(word: *mut usize, what: &str) -> *mut sys::mtx {
    let mutex = mutex_of(word);
    // SAFETY: what the caller takes for a mutex is mapped: a fault would be reported as its fault.
    if unsafe { (*mutex).lock_object.lo_flags } & LO_INITIALIZED == 0 {
        report::panic(&format!("a mutex that is not initialised is {what} ({word:p})"));
    }
    mutex
}

/// mtx_lock(9), with the order of locks checked.
pub fn mtx_lock(word: *mut usize) {
    let mutex = checked(word, "locked");
    let name = mutex_name(mutex);
    let me = curthread() as usize;
    // SAFETY: an initialised mutex; only the running thread touches it.
    if unsafe { word.read_volatile() } == me {
        report::panic(&format!("mutex {name} is locked by its owner"));
    }
    check_order(&name);
    // SAFETY: as above.
    while unsafe { word.read_volatile() } != sys::MTX_UNOWNED as usize {
        block(word as u64);
        checked(word, "waited for");
    }
    // SAFETY: as above.
    unsafe { word.write_volatile(me) };
    SCHED.with(|s| {
        let me = s.current;
        s.threads[me].locks.push((word as u64, name));
    });
}

pub fn mtx_unlock(word: *mut usize) {
    let mutex = checked(word, "unlocked");
    // SAFETY: an initialised mutex.
    if unsafe { word.read_volatile() } != curthread() as usize {
        report::panic(&format!(
            "mutex {} is unlocked by a thread that does not hold it",
            mutex_name(mutex)
        ));
    }
    // SAFETY: as above.
    unsafe { word.write_volatile(sys::MTX_UNOWNED as usize) };
    SCHED.with(|s| {
        let me = s.current;
        s.threads[me].locks.retain(|(its, _)| *its != word as u64);
    });
    unblock(word as u64);
}

/// Whether the running thread holds the mutex.
pub fn mtx_owned(word: *mut usize) -> bool {
    SCHED.with(|s| s.threads[s.current].locks.iter().any(|(its, _)| *its == word as u64))
}

/// The lock word of the mutex that begins with this lock object.
pub fn word_of(lock: *mut sys::lock_object) -> *mut usize {
    lock.wrapping_byte_add(std::mem::offset_of!(sys::mtx, mtx_lock)).cast()
}

/// Remembers the order, and fails the run when the opposite was seen, however indirectly.
fn check_order(name: &str) {
    let bad = SCHED.with(|s| {
        let held: Vec<String> =
            s.threads[s.current].locks.iter().map(|(_, name)| name.clone()).collect();
        for first in held {
            let pair = (first, name.to_owned());
            if s.order.contains_key(&pair) {
                continue;
            }
            // Whether `first` was ever taken under what is taken now.
            let mut seen = BTreeSet::from([name.to_owned()]);
            let mut todo = vec![name.to_owned()];
            while let Some(at) = todo.pop() {
                for (from, to) in s.order.keys() {
                    if *from == at && seen.insert(to.clone()) {
                        todo.push(to.clone());
                    }
                }
            }
            if seen.contains(&pair.0) {
                return Some(pair.0);
            }
            s.order.insert(pair, String::new());
        }
        None
    });
    if let Some(first) = bad {
        report::panic(&format!(
            "lock order reversal: {name} is taken under {first}, and the other way round"
        ));
    }
}

/// The order of locks that was seen.
pub fn lock_order() -> Vec<String> {
    SCHED.with(|s| s.order.keys().map(|(from, to)| format!("{from} -> {to}")).collect())
}
