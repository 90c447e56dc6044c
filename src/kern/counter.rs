// SPDX-License-Identifier: BSD-2-Clause
//! counter(9): a number many CPUs add to without sharing a cache line.

use sys_bindings as sys;

/// A per-CPU counter.
pub struct Counter(sys::counter_u64_t);

// SAFETY: counter_u64_add is a single instruction on this CPU's own word.
unsafe impl Sync for Counter {}
// SAFETY: the memory belongs to no thread.
unsafe impl Send for Counter {}

impl Counter {
    /// Makes a counter of 0. May sleep.
    pub fn new() -> Counter {
        // SAFETY: M_WAITOK does not fail.
        Counter(unsafe { sys::counter_u64_alloc(sys::M_WAITOK as i32) })
    }

    /// Adds 1. Context: any.
    pub fn increment(&self) {
        // SAFETY: allocated by new.
        unsafe { sys::aio_rs_counter_add(self.0, 1) }
    }

    /// Adds `count`. Context: any.
    pub fn add(&self, count: u32) {
        if count > 0 {
            // SAFETY: allocated by new.
            unsafe { sys::aio_rs_counter_add(self.0, i64::from(count)) }
        }
    }

    /// Adds `count`, however large. Context: any.
    pub fn add_wide(&self, count: u64) {
        // SAFETY: allocated by new.
        unsafe { sys::aio_rs_counter_add(self.0, count.cast_signed()) }
    }

    /// The sum over all CPUs. What is added meanwhile may be in it or not.
    pub fn fetch(&self) -> u64 {
        // SAFETY: allocated by new.
        unsafe { sys::counter_u64_fetch(self.0) }
    }

    /// Where the kernel's own pointer to the counter is kept, as its sysctl handler wants it.
    pub(super) fn as_ptr(&self) -> *const sys::counter_u64_t {
        &raw const self.0
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: allocated by new, and nobody adds any more.
        unsafe { sys::counter_u64_free(self.0) }
    }
}
