// SPDX-License-Identifier: BSD-2-Clause
//! Kernel state that belongs to whichever thread runs.
//!
//! One emulated thread runs at a time (see `sched`); the right to run is the right to all state, so
//! there are no host locks. A borrow must end before the thread hands over: the `RefCell` notices
//! when it did not.

use std::cell::RefCell;

/// State of the running thread. `with` panics when called inside another `with` of the same state.
pub struct Held<T>(RefCell<T>);

// SAFETY: host threads of the emulation touch state only while they have the token that `sched`
// hands from one to the next, with the ordering of a host mutex; the main thread only before the
// first of them starts.
unsafe impl<T> Sync for Held<T> {}

impl<T> Held<T> {
    pub const fn new(value: T) -> Held<T> {
        Held(RefCell::new(value))
    }

    /// Runs `action` on the state; nothing in it may hand over.
    #[track_caller]
    pub fn with<R>(&self, action: impl FnOnce(&mut T) -> R) -> R {
        action(&mut self.0.borrow_mut())
    }

    /// The same for a report of what went wrong, which may be in the middle of a `with`.
    pub fn try_with<R>(&self, action: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.try_borrow_mut().ok().map(|mut state| action(&mut state))
    }
}

/// xorshift64* with a mixed seed: all choices of a run come from here.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Rng {
        let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Rng((x ^ (x >> 31)) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// True once in `odds` times; never with 0.
    pub fn one_in(&mut self, odds: u64) -> bool {
        odds != 0 && self.below(odds) == 0
    }
}
