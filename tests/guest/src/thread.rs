// SPDX-License-Identifier: BSD-2-Clause
//! Threads, of the barest kind: a function, a number, a stack, and waiting for the end.

use crate::Result;
use crate::errno::{EINTR, EINVAL};
use crate::mem::Region;
use crate::sys;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

const STACK: usize = 256 * 1024;
const MAX: usize = 64;

/// One thread's start block and end mark. They are static because the kernel writes the end mark
/// after the thread's last instruction.
struct Slot {
    used: AtomicUsize,
    entry: AtomicUsize,
    arg: AtomicUsize,
    /// 0 while it runs; thr_exit(2) stores 1 and wakes.
    ended: AtomicI64,
    tid: AtomicI64,
}

static SLOTS: [Slot; MAX] = [const {
    Slot {
        used: AtomicUsize::new(0),
        entry: AtomicUsize::new(0),
        arg: AtomicUsize::new(0),
        ended: AtomicI64::new(0),
        tid: AtomicI64::new(0),
    }
}; MAX];

/// A running thread. Dropping it without [`Thread::join`] lets it run; its slot stays used.
pub struct Thread {
    slot: &'static Slot,
    stack: Region,
}

extern "C" fn run(slot: usize) -> ! {
    let slot = &SLOTS[slot];
    let entry = slot.entry.load(Ordering::Acquire);
    // SAFETY: spawn stored a fn(usize) there before it started this thread.
    let entry: fn(usize) = unsafe { core::mem::transmute(entry) };
    entry(slot.arg.load(Ordering::Relaxed));
    sys::thr_exit(slot.ended.as_ptr() as usize)
}

/// Starts a thread.
///
/// # Errors
/// Those of thr_new(2) and mmap(2); EINVAL with 64 threads running.
pub fn spawn(entry: fn(usize), arg: usize) -> Result<Thread> {
    let free =
        |slot: &Slot| slot.used.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let index = SLOTS.iter().position(free).ok_or(EINVAL)?;
    let slot = &SLOTS[index];
    slot.entry.store(entry as usize, Ordering::Release);
    slot.arg.store(arg, Ordering::Relaxed);
    slot.ended.store(0, Ordering::Relaxed);
    let started = Region::map(STACK).and_then(|stack| {
        let tid = slot.tid.as_ptr() as usize;
        sys::thr_new(run as *const () as usize, index, stack.addr(), STACK, tid)?;
        Ok(stack)
    });
    match started {
        Ok(stack) => Ok(Thread { slot, stack }),
        Err(error) => {
            slot.used.store(0, Ordering::Release);
            Err(error)
        }
    }
}

impl Thread {
    /// The kernel's number of this thread.
    pub fn tid(&self) -> i64 {
        self.slot.tid.load(Ordering::Acquire)
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.slot.ended.load(Ordering::Acquire) != 0
    }

    /// Waits until it has ended.
    pub fn join(self) {
        while !self.ended() {
            match sys::umtx_wait(self.slot.ended.as_ptr() as usize, 0) {
                Ok(()) | Err(EINTR) => {}
                Err(_) => sys::sched_yield(),
            }
        }
        let _ = self.stack.unmap();
        self.slot.used.store(0, Ordering::Release);
    }
}

/// Forgets the threads of the parent: after fork(2) only the calling thread exists.
pub fn after_fork() {
    for slot in &SLOTS {
        slot.used.store(0, Ordering::Relaxed);
    }
}
