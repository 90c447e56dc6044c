// SPDX-License-Identifier: BSD-2-Clause
//! Signals: queues with siginfos, the sender's own among them, sending, waiting, handlers.

use crate::errno::*;
use crate::proc::{PROCS, Proc, Single, Thread, pid, with};
use crate::sched::{Tid, Woken};
use crate::user::Frame;
use crate::{report, sched, sys, syscalls, vm};

pub const SIGKILL: i32 = 9;
pub const SIGSEGV: i32 = 11;
const SIGALRM: i32 = 14;
pub const SIGCHLD: i32 = 20;
/// Signals whose default is to be ignored.
const IGNORED: [i32; 8] = [16, 19, 20, 23, 28, 29, 32, 33];
/// Sent by kill(2).
const SI_USER: i32 = 0x10001;
/// Sent by the kernel.
const SI_KERNEL: i32 = 0x10006;
const SA_RESTART: i32 = 2;
const SA_SIGINFO: i32 = 0x40;
/// One more than the highest number.
pub const SIGNALS: usize = 129;

/// A signal's bit in a set.
pub fn bit(signal: i32) -> u128 {
    1 << (signal - 1)
}

/// What a process does about a signal.
#[derive(Clone, Copy, Default)]
pub struct Action {
    /// 0: the default; 1: ignore; else the handler.
    pub handler: u64,
    pub flags: i32,
    pub mask: u128,
}

/// What comes with a queued signal.
pub enum Info {
    /// A siginfo of our own.
    Copy(SigInfo),
    /// The sender's, which is queued itself.
    Borrowed(*mut sys::ksiginfo_t),
}

/// A siginfo_t's bytes.
pub type SigInfo = [u8; 80];

/// Pending signals.
#[derive(Default)]
pub struct Queue {
    /// Without information.
    pub bits: u128,
    infos: Vec<(i32, Info)>,
}

impl Queue {
    fn set(&self) -> u128 {
        self.infos.iter().fold(self.bits, |set, (signal, _)| set | bit(*signal))
    }

    /// Takes one signal off, the oldest of its number.
    fn take(&mut self, signal: i32) -> Option<SigInfo> {
        if let Some(index) = self.infos.iter().position(|(its, _)| *its == signal) {
            return Some(match self.infos.remove(index).1 {
                Info::Copy(info) => info,
                Info::Borrowed(ksi) => borrowed(ksi),
            });
        }
        let had = self.bits & bit(signal) != 0;
        self.bits &= !bit(signal);
        had.then(|| plain_info(signal, SI_USER))
    }

    /// Forgets all.
    pub fn flush(&mut self) {
        self.bits = 0;
        for (_, info) in self.infos.drain(..) {
            if let Info::Borrowed(ksi) = info {
                borrowed(ksi);
            }
        }
    }
}

/// What a borrowed siginfo says; it is off its queue now.
fn borrowed(ksi: *mut sys::ksiginfo_t) -> SigInfo {
    // SAFETY: whoever queued it takes it off before it goes: sigqueue_take's contract.
    unsafe {
        if (*ksi).ksi_sigq.is_null() {
            report::panic("a queued siginfo has lost its queue");
        }
        (*ksi).ksi_sigq = std::ptr::null_mut();
        (&raw const (*ksi).ksi_info).cast::<SigInfo>().read()
    }
}

/// A siginfo with number and code.
fn plain_info(signal: i32, code: i32) -> SigInfo {
    let mut info = [0; 80];
    info[..4].copy_from_slice(&signal.to_le_bytes());
    info[8..12].copy_from_slice(&code.to_le_bytes());
    info
}

/// The most copied siginfos a process may have pending.
const MAX_PENDING: usize = 128;

/// Sends a signal to processes: kill(2).
pub fn kill(target: i32, signal: i32) -> Result<(), Errno> {
    let own = with(|its| its.group);
    let mine = pid();
    let targets: Vec<i32> = PROCS.with(|procs| {
        let wanted = |pid: i32, its: &Proc| match target {
            0 => its.group == own,
            -1 => pid != mine,
            target if target < 0 => its.group == -target,
            target => pid == target,
        };
        let users = procs.table.iter().filter(|(_, its)| !its.kernel);
        users.filter(|&(&pid, its)| wanted(pid, its)).map(|(&pid, _)| pid).collect()
    });
    if targets.is_empty() {
        return Err(ESRCH);
    }
    if signal != 0 {
        targets.into_iter().for_each(|pid| post(pid, signal));
    }
    Ok(())
}

/// Makes a signal pending for a process and wakes a thread for it.
pub fn post(pid: i32, signal: i32) {
    let p = PROCS.with(|procs| procs.table.get(&pid).map(|its| its.p));
    if let Some(p) = p {
        send(p, std::ptr::null_mut(), signal, std::ptr::null_mut());
    }
}

/// kern_psignal: tells a process of a signal from the kernel. The process is locked. Each is told of by
/// itself, also when one of its number is pending.
pub fn post_by_kernel(p: *mut sys::proc_, signal: i32) {
    // SAFETY: numbers and pointers.
    let mut ksi: sys::ksiginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the siginfo has so many bytes.
    unsafe { (&raw mut ksi.ksi_info).cast::<SigInfo>().write(plain_info(signal, SI_KERNEL)) };
    send(p, std::ptr::null_mut(), signal, &mut ksi);
}

/// Ends the interruptible sleeps that a new signal is for: all for SIGKILL, else one.
fn wake_for(threads: Vec<Tid>, signal: i32) {
    for tid in threads {
        if let Some(errno) = interruption(tid) {
            sched::interrupt(tid, errno);
            if signal != SIGKILL {
                break;
            }
        }
    }
}

/// Sends a signal to the current process.
pub fn post_current(signal: i32) {
    post(pid(), signal);
}

/// thr_kill(2) within the process.
pub fn post_thread(number: i64, signal: i32) -> Result<(), Errno> {
    let mine = pid();
    let tid = PROCS.with(|procs| {
        let found =
            procs.threads.iter_mut().find(|(_, its)| its.pid == mine && its.number == number);
        found.map(|(&tid, its)| {
            its.pending.bits |= bit(signal);
            tid
        })
    });
    let tid = tid.ok_or(ESRCH)?;
    if let Some(errno) = interruption(tid) {
        sched::interrupt(tid, errno);
    }
    Ok(())
}

/// setitimer(2) of real time: the first expiry and the interval, as sbintime_t; 0 is never.
pub fn set_alarm(first: i64, interval: i64) {
    let pid = pid();
    sched::clear_timers(pid as u64);
    with(|its| its.alarm = (first > 0).then_some(interval));
    if first > 0 {
        sched::set_timer(sched::now() + first, pid as u64);
    }
}

/// A process's timer has expired.
pub fn timer_fired(key: u64, at: i64) {
    let pid = key as i32;
    let interval = PROCS.with(|procs| procs.table.get(&pid).and_then(|its| its.alarm));
    if let Some(interval) = interval {
        if interval > 0 {
            sched::set_timer((at + interval).max(sched::now() + 1), key);
        }
        post(pid, SIGALRM);
    }
}

impl Proc {
    /// Pending signals that are not ignored.
    fn due(&self, thread: &Thread) -> u128 {
        let mut due = (self.pending.set() | thread.pending.set()) & !thread.mask;
        for signal in 1..SIGNALS {
            let action = self.actions[signal];
            if action.handler == 1 || (action.handler == 0 && IGNORED.contains(&(signal as i32))) {
                due &= !bit(signal as i32);
            }
        }
        due
    }
}

/// Whether an interruptible sleep of the thread ends now, and with which errno.
pub fn interruption(tid: Tid) -> Option<i32> {
    PROCS.with(|procs| {
        let thread = procs.threads.get(&tid)?;
        let its = procs.table.get(&thread.pid)?;
        match its.single {
            Single::Exit(other) if other != tid => return Some(EINTR.0),
            Single::Boundary(other) if other != tid => return Some(ERESTART.0),
            _ => {}
        }
        if its.kernel {
            return None;
        }
        let awaited = (its.pending.set() | thread.pending.set()) & thread.waiting;
        let due = its.due(thread) | awaited;
        (due != 0).then(|| {
            let action = its.actions[due.trailing_zeros() as usize + 1];
            if action.handler > 1 && action.flags & SA_RESTART == 0 { EINTR.0 } else { ERESTART.0 }
        })
    })
}

/// What came of looking for a signal before user mode.
pub enum Delivery {
    Nothing,
    /// The frame is a handler's now.
    Handler,
    /// The process is to end by this signal.
    Ends(i32),
}

/// Takes one signal that is due.
pub fn deliver(frame: &mut Frame) -> Delivery {
    let me = sched::current();
    let pid = pid();
    let taken = PROCS.with(|procs| {
        let thread = procs.threads.get_mut(&me).expect("running");
        let its = procs.table.get_mut(&pid).expect("running");
        let due = its.due(thread);
        (due != 0).then(|| {
            let signal = due.trailing_zeros() as i32 + 1;
            let info = thread.pending.take(signal).or_else(|| its.pending.take(signal));
            (signal, its.actions[signal as usize], info.expect("it is due"))
        })
    });
    let Some((signal, action, info)) = taken else { return Delivery::Nothing };
    if action.handler == 0 {
        return Delivery::Ends(signal);
    }
    // Past the red zone: the siginfo, then the return address where a call leaves it.
    let info_at = ((frame.rsp - 128) & !15) - 80;
    let stack = (info_at & !15) - 8;
    if vm::write(info_at, info).is_err() || vm::write(stack, syscalls::TRAMPOLINE).is_err() {
        return Delivery::Ends(SIGSEGV);
    }
    PROCS.with(|procs| {
        let thread = procs.threads.get_mut(&me).expect("running");
        thread.saved.push((frame.clone(), thread.mask));
        thread.mask |= action.mask | bit(signal);
    });
    frame.rsp = stack;
    frame.rdi = signal as u64;
    frame.rsi = if action.flags & SA_SIGINFO != 0 { info_at } else { 0 };
    frame.rdx = 0;
    frame.rip = action.handler;
    Delivery::Handler
}

/// sigreturn(2): goes on where the handler interrupted.
pub fn sigreturn(frame: &mut Frame) {
    let me = sched::current();
    let saved = PROCS.with(|procs| {
        let thread = procs.threads.get_mut(&me).expect("running");
        thread.saved.pop().inspect(|(_, mask)| thread.mask = *mask)
    });
    match saved {
        Some((saved, _)) => *frame = saved,
        None => post_current(SIGSEGV),
    }
}

/// sigprocmask(2); the old mask.
pub fn set_mask(how: i32, set: Option<u128>) -> Result<u128, Errno> {
    let me = sched::current();
    PROCS.with(|procs| {
        let thread = procs.threads.get_mut(&me).expect("running");
        let old = thread.mask;
        if let Some(set) = set {
            let set = set & !(bit(SIGKILL) | bit(17));
            thread.mask = match how {
                1 => old | set,
                2 => old & !set,
                3 => set,
                _ => return Err(EINVAL),
            };
        }
        Ok(old)
    })
}

/// Pending signals: sigpending(2).
pub fn pending() -> u128 {
    let me = sched::current();
    PROCS.with(|procs| {
        let thread = &procs.threads[&me];
        thread.pending.set() | procs.table[&thread.pid].pending.set()
    })
}

/// sigwaitinfo(2) and its like: takes a pending signal of the set, or waits for one.
pub fn wait_for(set: u128, until: Option<i64>) -> Result<(i32, SigInfo), Errno> {
    let me = sched::current();
    let pid = pid();
    let waiting = |set: u128| {
        PROCS.with(|procs| procs.threads.get_mut(&me).expect("running").waiting = set);
    };
    loop {
        let taken = PROCS.with(|procs| {
            let thread = procs.threads.get_mut(&me).expect("running");
            let its = procs.table.get_mut(&pid).expect("running");
            let there = (thread.pending.set() | its.pending.set()) & set;
            (there != 0).then(|| {
                let signal = there.trailing_zeros() as i32 + 1;
                let info = thread.pending.take(signal).or_else(|| its.pending.take(signal));
                (signal, info.expect("it is there"))
            })
        });
        if let Some(taken) = taken {
            return Ok(taken);
        }
        if until.is_some_and(|until| until <= sched::now()) {
            return Err(EAGAIN);
        }
        waiting(set);
        let chan = 0x43 << 56 | (me as u64) << 1 | 1;
        let woken = sched::sleep(chan, true, "sigwait", until, || ());
        waiting(0);
        if let Woken::Signal(errno) = woken
            && pending() & set == 0
        {
            return Err(if errno == ERESTART.0 { EINTR } else { Errno(errno) });
        }
    }
}

/// tdsendsignal: queues a signal for a thread of the process, or for the process, with the sender's
/// siginfo if there is one. The process is locked.
pub fn send(p: *mut sys::proc_, td: *mut sys::thread, signal: i32, ksi: *mut sys::ksiginfo_t) {
    let pid = crate::proc::of(p);
    let woken = PROCS.with(|procs| {
        let Some(its) = procs.table.get_mut(&pid) else { return Vec::new() };
        if its.kernel || its.zombie.is_some() {
            return Vec::new();
        }
        let action = its.actions[signal as usize];
        if action.handler == 1 || (action.handler == 0 && IGNORED.contains(&signal)) {
            return Vec::new();
        }
        let target = its.threads.iter().copied().find(|tid| procs.threads[tid].td == td);
        if !td.is_null() && target.is_none() {
            report::panic("tdsendsignal for a thread that is not of the process");
        }
        let copies =
            its.pending.infos.iter().filter(|(_, info)| matches!(info, Info::Copy(_))).count();
        // SAFETY: the caller's siginfo and process.
        let (info, queue_at) = unsafe {
            let queue_at = match td.is_null() {
                true => &raw mut (*p).p_sigqueue,
                false => &raw mut (*td).td_sigqueue,
            };
            let info = if ksi.is_null() {
                None
            } else if (*ksi).ksi_flags as u32 & sys::KSI_INS != 0 {
                if !(*ksi).ksi_sigq.is_null() {
                    report::panic("a siginfo that is queued is sent again");
                }
                Some(Info::Borrowed(ksi))
            } else if copies < MAX_PENDING {
                Some(Info::Copy((&raw const (*ksi).ksi_info).cast::<SigInfo>().read()))
            } else {
                None
            };
            (info, queue_at)
        };
        let queue = match target {
            Some(tid) => &mut procs.threads.get_mut(&tid).expect("just seen").pending,
            None => &mut its.pending,
        };
        match info {
            Some(info) => {
                if let Info::Borrowed(ksi) = &info {
                    // SAFETY: the caller's siginfo.
                    unsafe { (**ksi).ksi_sigq = queue_at };
                }
                queue.infos.push((signal, info));
            }
            None => queue.bits |= bit(signal),
        }
        target.map_or(its.threads.clone(), |tid| vec![tid])
    });
    wake_for(woken, signal);
}

/// sigqueue_take: a siginfo that may be queued is so no longer. The process is locked.
pub fn take_back(p: i32, ksi: *mut sys::ksiginfo_t) {
    // SAFETY: the caller's siginfo.
    if unsafe { (*ksi).ksi_sigq.is_null() } {
        return;
    }
    let found = PROCS.with(|procs| {
        let its = procs.table.get_mut(&p).expect("a live process");
        let is = |info: &Info| matches!(info, Info::Borrowed(other) if *other == ksi);
        let mut found = false;
        let mut clean = |queue: &mut Queue| {
            let before = queue.infos.len();
            queue.infos.retain(|(_, info)| !is(info));
            found |= queue.infos.len() < before;
        };
        clean(&mut its.pending);
        for tid in its.threads.clone() {
            clean(&mut procs.threads.get_mut(&tid).expect("a thread of it").pending);
        }
        found
    });
    if !found {
        report::panic("sigqueue_take of a siginfo that is on no queue of its process");
    }
    // SAFETY: as above.
    unsafe { (*ksi).ksi_sigq = std::ptr::null_mut() };
}

/// The thread of a process with a number.
pub fn thread_of(p: *mut sys::proc_, number: i64) -> Option<*mut sys::thread> {
    let pid = crate::proc::of(p);
    PROCS.with(|procs| {
        procs.threads.values().find(|its| its.pid == pid && its.number == number).map(|its| its.td)
    })
}
