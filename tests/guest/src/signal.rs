// SPDX-License-Identifier: BSD-2-Clause
//! Signals that are waited for rather than handled, and a handler that notes what it was told.

use crate::Result;
use crate::mem::{PAGE, Region};
use crate::sys::{self, Timespec};
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Set by a request that completed.
pub const SI_ASYNCIO: i32 = 0x10004;
/// Sent by kill(2).
pub const SI_USER: i32 = 0x10001;
/// The first of the signals that mean nothing by themselves.
pub const SIGRTMIN: i32 = 65;
/// The highest signal there is.
pub const SIG_MAX: i32 = 128;

const SIG_BLOCK: i32 = 1;
const SIG_UNBLOCK: i32 = 2;
const SA_SIGINFO: i32 = 0x40;

/// A set of signals, `sigset_t`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Set([u32; 4]);

impl Set {
    /// The set of one signal.
    pub fn of(signal: i32) -> Self {
        Self::default().with(signal)
    }

    /// The set and one signal more.
    pub fn with(mut self, signal: i32) -> Self {
        let bit = (signal - 1) as usize;
        self.0[bit / 32] |= 1 << (bit % 32);
        self
    }

    /// Whether a signal is in it.
    pub fn has(&self, signal: i32) -> bool {
        let bit = (signal - 1) as usize;
        self.0[bit / 32] & 1 << (bit % 32) != 0
    }
}

/// What came with a signal, `siginfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Info {
    /// The signal.
    pub signo: i32,
    errno: i32,
    /// Why it was sent.
    pub code: i32,
    pid: i32,
    uid: u32,
    status: i32,
    addr: usize,
    /// What the sender handed on.
    pub value: usize,
    reason: [usize; 1],
    spare: [i32; 7],
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Info>() == 80);
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Info>() == 64);

fn mask(how: i32, set: Set) -> Result<()> {
    sys::call(340, [how as usize, &raw const set as usize, 0, 0, 0, 0]).map(|_| ())
}

/// Holds signals back from this thread; they stay pending.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block(set: Set) -> Result<()> {
    mask(SIG_BLOCK, set)
}

/// Lets signals through to this thread again.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn unblock(set: Set) -> Result<()> {
    mask(SIG_UNBLOCK, set)
}

/// The signals that are pending for this thread or its process.
///
/// # Errors
/// Those of sigpending(2).
pub fn pending() -> Result<Set> {
    let mut set = Set::default();
    sys::call(343, [&raw mut set as usize, 0, 0, 0, 0, 0])?;
    Ok(set)
}

/// sigtimedwait(2): takes a pending signal away and tells what came with it.
///
/// # Errors
/// EAGAIN after the time.
pub fn wait(set: Set, timeout: Timespec) -> Result<Info> {
    let mut info = Info::default();
    let (set_at, info_at) = (&raw const set as usize, &raw mut info as usize);
    sys::call(345, [set_at, info_at, &raw const timeout as usize, 0, 0, 0])?;
    Ok(info)
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static VALUE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note(_signal: i32, info: *const Info, _context: usize) {
    // SAFETY: with SA_SIGINFO the kernel hands the handler a siginfo_t, on its stack.
    let info = unsafe { info.read() };
    CODE.store(info.code, Ordering::SeqCst);
    VALUE.store(info.value, Ordering::SeqCst);
    CALLS.fetch_add(1, Ordering::SeqCst);
}

/// Has a signal handled by a handler that notes what came with it; see [`noted`].
///
/// # Errors
/// Those of sigaction(2).
pub fn handle(signal: i32) -> Result<()> {
    sys::signal(signal, note as *const () as usize, SA_SIGINFO)
}

/// How often the handler ran, and the last code and value.
pub fn noted() -> (usize, i32, usize) {
    let calls = CALLS.load(Ordering::SeqCst);
    (calls, CODE.load(Ordering::SeqCst), VALUE.load(Ordering::SeqCst))
}

/// Where [`record`]'s handler writes.
static RECORDS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn write_down(signal: i32, info: *const Info, _context: usize) {
    // SAFETY: with SA_SIGINFO the kernel hands the handler a siginfo_t, on its stack.
    let info = unsafe { info.read() };
    let page = Region::shared_at(RECORDS.load(Ordering::SeqCst), PAGE);
    let count: i32 = page.get(0);
    let at = 16 + count as usize * 16;
    if at + 16 <= PAGE {
        page.put(at, signal);
        page.put(at + 4, info.code);
        page.put(at + 8, info.value as i32);
        page.put(0, count + 1);
    }
}

/// Has a signal written down in the page at `into`: how many there were, as 32 bits, then from the
/// 16th byte on 16 for each: signal, code and value, as 32 bits. All signals share one page.
///
/// # Errors
/// Those of sigaction(2).
pub fn record(signal: i32, flags: i32, into: usize) -> Result<()> {
    RECORDS.store(into, Ordering::SeqCst);
    sys::signal(signal, write_down as *const () as usize, SA_SIGINFO | flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let set = Set::of(1).with(64).with(65).with(SIG_MAX);
        assert_eq!(set, Set([1, 1 << 31, 1, 1 << 31]));
        assert!(set.has(65) && !set.has(66));
    }
}
