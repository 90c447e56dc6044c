// SPDX-License-Identifier: BSD-2-Clause
//! The current thread, its process, and what the kernel keeps in them for us.

use core::ffi::c_int;
use core::marker::PhantomData;
use core::ptr::NonNull;

use sys_bindings as sys;

use super::sysctl::IntVar;
use crate::model::table::Usage;

/// The thread that runs. Not Send, and no older than the entry that made it.
#[derive(Clone, Copy)]
pub struct Curthread<'a> {
    td: NonNull<sys::thread>,
    _entry: PhantomData<(&'a (), *mut ())>,
}

impl<'a> Curthread<'a> {
    /// Takes the kernel's word for it.
    ///
    /// # Safety
    /// `td` is the current thread, for as long as `'a`.
    pub unsafe fn new(td: *mut sys::thread) -> Curthread<'a> {
        let Some(td) = NonNull::new(td) else { panic!("entered without a thread") };
        Curthread { td, _entry: PhantomData }
    }

    /// The thread that runs this.
    ///
    /// # Safety
    /// `'a` must not outlive the kernel entry this is called in.
    pub unsafe fn current() -> Curthread<'a> {
        // SAFETY: it is the current thread; the caller bounds the lifetime.
        unsafe { Curthread::new(curthread()) }
    }

    pub(super) fn as_ptr(self) -> *mut sys::thread {
        self.td.as_ptr()
    }

    pub(super) fn proc_ptr(self) -> *mut sys::proc_ {
        // SAFETY: a thread's process does not change.
        unsafe { (*self.as_ptr()).td_proc }
    }

    /// Names the process; unique among live ones.
    pub fn proc_id(self) -> ProcId {
        ProcId(self.proc_ptr() as usize)
    }

    /// Whether the process uses the kernel's built-in AIO since its last exec.
    pub fn has_builtin_aio(self) -> bool {
        // SAFETY: our own process; the built-in sets the word once under the process lock and
        // clears it in exit and exec, when no other thread is left.
        !unsafe { (&raw const (*self.proc_ptr()).p_aioinfo).read_volatile() }.is_null()
    }

    /// Sets the value the system call returns when it succeeds.
    pub fn set_retval(self, value: i64) {
        // SAFETY: a thread's own return value; the union's member for native system calls.
        unsafe { (*self.as_ptr()).td_uretoff.tdu_retval[0] = value }
    }

    /// The thread's own resource counts, of which differences matter.
    pub fn usage(self) -> Usage {
        // SAFETY: a thread's own counts, which only it changes.
        let ru = unsafe { &(*self.as_ptr()).td_ru };
        Usage {
            inblock: ru.ru_inblock as u32,
            oublock: ru.ru_oublock as u32,
            msgsnd: ru.ru_msgsnd as u32,
            msgrcv: ru.ru_msgrcv as u32,
        }
    }

    /// Charges the thread for I/O done on its behalf (getrusage(2)).
    pub fn charge(self, usage: Usage) {
        if usage.is_none() {
            return;
        }
        // SAFETY: as in usage.
        let ru = unsafe { &mut (*self.as_ptr()).td_ru };
        ru.ru_inblock = ru.ru_inblock.wrapping_add(i64::from(usage.inblock));
        ru.ru_oublock = ru.ru_oublock.wrapping_add(i64::from(usage.oublock));
        ru.ru_msgsnd = ru.ru_msgsnd.wrapping_add(i64::from(usage.msgsnd));
        ru.ru_msgrcv = ru.ru_msgrcv.wrapping_add(i64::from(usage.msgrcv));
    }

    /// Takes back what the thread was charged for messages that whoever collects is to be charged.
    pub fn discharge(self, usage: Usage) {
        // SAFETY: as in usage.
        let ru = unsafe { &mut (*self.as_ptr()).td_ru };
        ru.ru_msgsnd = ru.ru_msgsnd.wrapping_sub(i64::from(usage.msgsnd));
        ru.ru_msgrcv = ru.ru_msgrcv.wrapping_sub(i64::from(usage.msgrcv));
    }

    /// Masks all signals for this thread. Takes the process lock.
    pub(super) fn mask_signals(self) {
        let p = self.proc_ptr();
        // SAFETY: our own thread and process; the process lock protects the mask.
        unsafe {
            sys::aio_rs_proc_lock(p);
            (*self.as_ptr()).td_sigmask.__bits = [u32::MAX; 4];
            sys::aio_rs_proc_unlock(p);
        }
    }

    /// Whether this thread may be told about another process's requests: its own process, or any
    /// that it can see if it is root's. Takes the process lock.
    pub fn may_inspect(self, live: &LiveProc) -> bool {
        if live.id() == self.proc_id() {
            return true;
        }
        // SAFETY: the current thread, and a live process, locked as p_cansee wants it.
        unsafe {
            if sys::priv_check(self.as_ptr(), sys::PRIV_SEEOTHERUIDS as c_int) != 0 {
                return false;
            }
            sys::aio_rs_proc_lock(live.as_ptr());
            let code = sys::p_cansee(self.as_ptr(), live.as_ptr());
            sys::aio_rs_proc_unlock(live.as_ptr());
            code == 0
        }
    }

    /// Logs that the process did something discouraged, while `budget` lasts.
    pub fn counted_warning(self, budget: IntVar, message: &'static core::ffi::CStr) {
        // SAFETY: the kernel's own counter, changed by compare-and-set, and a constant text.
        unsafe { sys::counted_warning(budget.as_ptr().cast(), message.as_ptr()) }
    }
}

/// A process's identity: comparable, never followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProcId(usize);

impl ProcId {
    pub(super) fn address(self) -> usize {
        self.0
    }
}

/// A process that has not come to its exit or exec event yet.
///
/// [`super::procmap::ProcMap`] gives one out per entry and takes it back for the entry's removal;
/// the entry handlers make sure that removal happens in those events, so the process is there as
/// long as this is.
pub struct LiveProc(NonNull<sys::proc_>);

// SAFETY: only used for calls that lock what they touch.
unsafe impl Send for LiveProc {}

impl LiveProc {
    pub(super) fn of(td: Curthread) -> LiveProc {
        let Some(p) = NonNull::new(td.proc_ptr()) else { panic!("a thread without process") };
        LiveProc(p)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::proc_ {
        self.0.as_ptr()
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        // SAFETY: the process is live; its number does not change.
        unsafe { (*self.as_ptr()).p_pid }
    }

    pub(super) fn pointer(&self) -> NonNull<sys::proc_> {
        self.0
    }

    pub(super) fn id(&self) -> ProcId {
        ProcId(self.0.as_ptr() as usize)
    }

    /// Sends the process what a write of its own would have sent. Takes the process lock.
    pub fn signal(&self, what: WriteSignal) {
        let number = match what {
            WriteSignal::BrokenPipe => sys::SIGPIPE,
            WriteSignal::FileSize => sys::SIGXFSZ,
        };
        // SAFETY: the process is live.
        unsafe {
            sys::aio_rs_proc_lock(self.as_ptr());
            sys::kern_psignal(self.as_ptr(), number as c_int);
            sys::aio_rs_proc_unlock(self.as_ptr());
        }
    }
}

/// What a failed write tells its process besides the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSignal {
    /// SIGPIPE.
    BrokenPipe,
    /// SIGXFSZ.
    FileSize,
}

/// A process that will not be gone before the request that holds this: one that exit and exec wait
/// for.
pub struct WaitedProc(NonNull<sys::proc_>);

// SAFETY: only used for calls that lock what they touch.
unsafe impl Send for WaitedProc {}

impl WaitedProc {
    /// The current process, to be put into a request it waits for.
    pub fn of(td: Curthread) -> WaitedProc {
        let Some(p) = NonNull::new(td.proc_ptr()) else { panic!("a thread without process") };
        WaitedProc(p)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::proc_ {
        self.0.as_ptr()
    }
}

/// A process in its exit or exec event: alone in its address space, with no other thread left.
pub struct Leaving(ProcId);

impl Leaving {
    /// Takes the kernel's word for it.
    ///
    /// # Safety
    /// `p` is the current process, in its process_exit or process_exec event.
    pub unsafe fn new(p: *mut sys::proc_) -> Leaving {
        Leaving(ProcId(p as usize))
    }

    /// Which process.
    pub fn id(&self) -> ProcId {
        self.0
    }
}

/// The current thread, for calls that want it and keep nothing of it.
pub(super) fn curthread() -> *mut sys::thread {
    let td;
    // SAFETY: in the kernel %gs points to this CPU's struct pcpu, whose first word is the thread
    // that runs on it; whichever CPU that is, the answer is the same.
    unsafe {
        core::arch::asm!(
            "mov {td}, gs:[0]",
            td = out(reg) td,
            options(nostack, readonly, preserves_flags),
        );
    }
    td
}
