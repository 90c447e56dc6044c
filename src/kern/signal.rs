// SPDX-License-Identifier: BSD-2-Clause
//! Signals that tell the end of a request, with a siginfo of their own that cannot be lost.

use alloc::boxed::Box;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::proc::LiveProc;
use super::user::SignalEvent;

/// A signal of the current process that is to be sent once.
///
/// The siginfo is queued itself, not a copy, so there is no limit to run into; it leaves the queue
/// when this is dropped, and with it a signal nobody has taken. Once sent, it is dropped by a
/// thread of its process; that takes the process lock.
pub struct Signal {
    /// On its own: while queued it is linked by its address.
    raw: Box<Queued>,
    sent: Option<NonNull<sys::proc_>>,
}

struct Queued {
    info: sys::ksiginfo_t,
    event: sys::sigevent,
    about: u64,
}

// SAFETY: reached through the process's mutex, and by the kernel under the process lock.
unsafe impl Send for Signal {}

impl Signal {
    /// Makes a signal about what is at an address of the process. May sleep.
    pub fn new(to: &SignalEvent, about: u64) -> Signal {
        // SAFETY: integers and pointers; zero is what ksiginfo_init(9) makes of it.
        let mut raw: Box<Queued> = Box::new(unsafe { core::mem::zeroed() });
        raw.event.sigev_notify = match to.thread {
            Some(_) => sys::SIGEV_THREAD_ID,
            None => sys::SIGEV_SIGNAL,
        }
        .cast_signed();
        raw.event.sigev_signo = to.number;
        raw.event.sigev_value.sival_ptr = core::ptr::without_provenance_mut(to.value as usize);
        raw.event._sigev_un._threadid = to.thread.unwrap_or(0);
        raw.about = about;
        raw.info.ksi_info.si_signo = to.number;
        raw.info.ksi_info.si_value = raw.event.sigev_value;
        raw.info.ksi_info.si_code = sys::SI_ASYNCIO.cast_signed();
        Signal { raw, sent: None }
    }

    /// What it is about.
    pub fn about(&self) -> u64 {
        self.raw.about
    }

    /// Sends it, if it has not been sent; a thread that is gone gets none. `lasts`: this stays for
    /// as long as the signal may be queued; else the kernel queues a copy, which may be lost where
    /// the process has too many. Takes the process lock.
    pub fn send(&mut self, to: &LiveProc, lasts: bool) {
        if self.sent.is_some() {
            return;
        }
        let p = to.as_ptr();
        let mut td = core::ptr::null_mut();
        let Queued { info, event, .. } = &mut *self.raw;
        // SAFETY: the process is live; sigev_findtd returns with its lock held, and a thread of it
        // if the event names one. A siginfo that is queued by itself is taken off in drop.
        unsafe {
            if sys::sigev_findtd(p, event, &mut td) != 0 {
                return;
            }
            if lasts {
                info.ksi_flags |= (sys::KSI_EXT | sys::KSI_INS).cast_signed();
                self.sent = Some(to.pointer());
            }
            sys::tdsendsignal(p, td, info.ksi_info.si_signo, info);
            sys::aio_rs_proc_unlock(p);
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        let Some(p) = self.sent else { return };
        // SAFETY: a signal that was sent is dropped by its own process, which therefore is there.
        unsafe {
            sys::aio_rs_proc_lock(p.as_ptr());
            sys::sigqueue_take(&mut self.raw.info);
            sys::aio_rs_proc_unlock(p.as_ptr());
        }
    }
}
