// SPDX-License-Identifier: BSD-2-Clause
//! SDT(9): the DTrace probes of kmod/probes.c. One that nobody listens to costs a look at a word.

use sys_bindings as sys;

/// Which probe; the order is that of `aio_rs_probe_ids` in kmod/probes.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Queue,
    Start,
    Done,
    Cancel,
    Notify,
    Park,
    Wake,
}

impl Probe {
    /// Whether somebody listens.
    #[inline(always)]
    pub fn is_on(self) -> bool {
        // SAFETY: the table has a word for each probe, which SDT sets while others read it.
        unsafe { sys::aio_rs_probe_ids[self as usize].read_volatile() != 0 }
    }

    /// Tells who listens. Context: any.
    #[cold]
    pub fn fire(self, [a, b, c, d, e, f]: [u64; 6]) {
        let probe = match self {
            Probe::Queue => sys::aio_rs_probe_queue,
            Probe::Start => sys::aio_rs_probe_start,
            Probe::Done => sys::aio_rs_probe_done,
            Probe::Cancel => sys::aio_rs_probe_cancel,
            Probe::Notify => sys::aio_rs_probe_notify,
            Probe::Park => sys::aio_rs_probe_park,
            Probe::Wake => sys::aio_rs_probe_wake,
        };
        // SAFETY: numbers only; a probe may fire in any context.
        unsafe { probe(a, b, c, d, e, f) }
    }
}
