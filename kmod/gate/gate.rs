// SPDX-License-Identifier: BSD-2-Clause
//! `aio_rs_gate.ko`: the entry points of aio_rs, in text that is never freed.
//!
//! No kernel primitive proves that a thread is not at the first or last instruction of a system
//! call handler, so the handlers the kernel calls live here and the engine behind them can be
//! unloaded exactly. Every entry counts itself in, looks at the table, runs the engine, counts
//! itself out, and only then, uncounted, runs the kernel's own handler where the engine asked for
//! it: that one may sleep for ever.
//!
//! # The proof
//! [`COUNTS`] holds two numbers per line, entries and exits, that only grow. A thread adds to the
//! entries of the CPU it enters on, before it reads [`OPS`] or [`EVENT_OPS`], and to the exits of the CPU it leaves
//! on, after its last instruction in the engine; all of it sequentially consistent. Detach stores
//! null to both, then sums all exits, then sums all entries. An exit that was summed had its entry
//! earlier, and that entry is summed too, so `entries >= exits`; with equality, every entry made
//! before its line was summed has left. A thread that read a table from either made its entry before
//! the null was stored, so it was summed, so it has left; any later thread reads null. The engine's
//! text is then unreachable.
//!
//! # Filters
//! EVFILT_AIO and EVFILT_LIO are ours while an engine is attached (filters.rs). Their functions
//! are resident and read what a knote watches ([`sys::gate::Note`]) under its lock, so no knote and
//! no kqueue operation leads into the engine; they need no count. A registration that is not ours
//! is the built-in's, for a process of its own, and is attached by the built-in.
//!
//! # Lock
//! [`SWITCH`] serialises attach and detach; module events already are, by the kernel.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};

use sys_bindings as sys;
use sys_bindings::gate::{Ops, PASS, SLOTS, VERSION};

/// As `struct aio_rs_gate_slot` of gate.c.
#[repr(C)]
struct SlotDecl {
    number: c_int,
    name: *const c_char,
    expected: [*mut c_void; TABLES],
}

/// The tables of system calls: native and, where the kernel has it, 32-bit.
const TABLES: usize = 2;

/// A constant of C that holds addresses.
#[repr(transparent)]
struct Address<T>(*mut T);

// SAFETY: only read; what it points to belongs to the kernel.
unsafe impl<T> Sync for Address<T> {}

unsafe extern "C" {
    safe static aio_rs_gate_slots: [SlotDecl; SLOTS];
    safe static aio_rs_gate_tables: [Address<sys::sysent>; TABLES];
}

// SAFETY: the C table is const and holds pointers to constants and functions of the kernel.
unsafe impl Sync for SlotDecl {}

/// A power of two; CPUs beyond it share lines.
const LINES: usize = 64;

/// One cache line pair (the adjacent line is prefetched too) of [`COUNTS`].
#[repr(C, align(128))]
struct Line {
    entries: AtomicU64,
    exits: AtomicU64,
}

static COUNTS: [Line; LINES] =
    [const { Line { entries: AtomicU64::new(0), exits: AtomicU64::new(0) } }; LINES];

/// The attached engine, or null: what system calls look at.
static OPS: AtomicPtr<Ops> = AtomicPtr::new(ptr::null_mut());

/// The same for process events and workers. They are closed last, so that a detach that fails has
/// missed no exit and lost no worker.
static EVENT_OPS: AtomicPtr<Ops> = AtomicPtr::new(ptr::null_mut());

/// The table of the engine that is attached or detaching; only the holder of [`SWITCH`] looks.
static ATTACHED: AtomicPtr<Ops> = AtomicPtr::new(ptr::null_mut());

static SWITCH: AtomicBool = AtomicBool::new(false);

/// How long detach waits for threads inside the engine, in units of [`POLL`].
const POLLS: u32 = 10_000;

/// 1 ms as `sbintime_t` (a fixed-point second with 32 fraction bits).
const POLL: i64 = (1 << 32) / 1000;

/// Returns the line of the CPU this thread is on; it may be on another one already.
fn line() -> &'static Line {
    let cpu: u32;
    // SAFETY: in the kernel %gs points to this CPU's struct pcpu; the read has no side effect.
    unsafe {
        core::arch::asm!(
            "mov {cpu:e}, gs:[{offset}]",
            cpu = out(reg) cpu,
            offset = const core::mem::offset_of!(sys::pcpu, pc_cpuid),
            options(nostack, readonly, preserves_flags),
        );
    }
    &COUNTS[cpu as usize % LINES]
}

/// The thread that runs this.
fn curthread() -> *mut sys::thread {
    let td;
    // SAFETY: %gs points to this CPU's struct pcpu, whose first word is the thread that runs on it;
    // whichever CPU that is, the answer is the same.
    unsafe {
        core::arch::asm!(
            "mov {td}, gs:[{offset}]",
            td = out(reg) td,
            offset = const core::mem::offset_of!(sys::pcpu, pc_curthread),
            options(nostack, readonly, preserves_flags),
        );
    }
    td
}

/// A place where a thread may be preempted for long. In a build for tests it often stays there.
#[inline(always)]
fn window() {
    #[cfg(feature = "wide")]
    {
        // SAFETY: every amd64 has it, and the kernel may read it.
        let now = unsafe { core::arch::x86_64::_rdtsc() };
        for _ in 0..now >> 4 & 0x1fff {
            core::hint::spin_loop();
        }
    }
}

/// Runs `engine` with the table found in `table`, counted; returns `absent` when there is none.
#[inline(always)]
fn counted<R>(table: &AtomicPtr<Ops>, absent: R, engine: impl FnOnce(&Ops) -> R) -> R {
    line().entries.fetch_add(1, SeqCst);
    window();
    // SAFETY: a table that was read here stays valid until this thread has counted itself out:
    // attach's contract and the proof at the top of this file.
    let result = match unsafe { table.load(SeqCst).as_ref() } {
        Some(ops) => {
            window();
            engine(ops)
        }
        None => absent,
    };
    window();
    line().exits.fetch_add(1, SeqCst);
    result
}

/// What the kernel's tables point to while an engine is attached, one instance per table and slot.
unsafe extern "C" fn trampoline<const TABLE: usize, const SLOT: usize>(
    td: *mut sys::thread,
    uap: *mut c_void,
) -> c_int {
    let result = counted(&OPS, PASS, |ops| {
        let handlers = if TABLE == 0 { &ops.syscall } else { &ops.syscall32 };
        // SAFETY: the kernel calls a handler with the current thread and its arguments.
        unsafe { (handlers[SLOT])(ops.ctx, td, uap) }
    });
    if result != PASS {
        return result;
    }
    // SAFETY: the kernel's own handler of this slot, which attach found there, has this type.
    let original: unsafe extern "C" fn(*mut sys::thread, *mut c_void) -> c_int =
        unsafe { core::mem::transmute(aio_rs_gate_slots[SLOT].expected[TABLE]) };
    // SAFETY: it gets what the kernel called us with.
    unsafe { original(td, uap) }
}

type Trampoline = unsafe extern "C" fn(*mut sys::thread, *mut c_void) -> c_int;

/// One table's trampolines.
macro_rules! trampolines {
    ($table:literal: $($slot:literal)*) => { [$(trampoline::<$table, $slot>),*] };
}

static TRAMPOLINES: [[Trampoline; SLOTS]; TABLES] = [
    trampolines!(0: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    trampolines!(1: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
];

/// All entries there may be: every slot of every table.
fn places() -> impl Iterator<Item = Place> {
    (0..TABLES * SLOTS).map(|index| Place { table: index / SLOTS, slot: index % SLOTS })
}

/// One entry of one table.
#[derive(Clone, Copy)]
struct Place {
    table: usize,
    slot: usize,
}

impl Place {
    fn expected(self) -> *mut c_void {
        aio_rs_gate_slots[self.slot].expected[self.table]
    }

    fn ours(self) -> *mut c_void {
        TRAMPOLINES[self.table][self.slot] as *mut c_void
    }

    /// The word of the table the entry lives in, or `None` where this kernel has no such call.
    fn word(self) -> Option<&'static AtomicPtr<c_void>> {
        let table = aio_rs_gate_tables[self.table].0;
        if table.is_null() || self.expected().is_null() {
            return None;
        }
        let number = usize::try_from(aio_rs_gate_slots[self.slot].number).ok()?;
        // SAFETY: the number is one of <sys/syscall.h> of the kernel this file is built for and
        // tied to, so it lies inside the table. sy_call is an aligned word that lives as long as
        // the kernel and is read by it with single loads.
        unsafe {
            let entry = table.add(number);
            Some(AtomicPtr::from_ptr((&raw mut (*entry).sy_call).cast::<*mut c_void>()))
        }
    }

    /// Prints one line about the entry.
    fn complain(self, format: &CStr) {
        // SAFETY: both formats take one string, and the table's names are C strings.
        unsafe { sys::printf(format.as_ptr(), aio_rs_gate_slots[self.slot].name) };
    }
}

unsafe extern "C" fn process_exit(_arg: *mut c_void, p: *mut sys::proc_) {
    // SAFETY: the event's contract: p is the current, single-threaded process.
    counted(&EVENT_OPS, (), |ops| unsafe { (ops.process_exit)(ops.ctx, p) });
}

unsafe extern "C" fn process_exec(
    _arg: *mut c_void,
    p: *mut sys::proc_,
    _image: *mut sys::gate::ExecImage,
) {
    // SAFETY: the event's contract: p is the current, single-threaded process.
    counted(&EVENT_OPS, (), |ops| unsafe { (ops.process_exec)(ops.ctx, p) });
}

/// See [`sys::gate::aio_rs_gate_worker`].
#[unsafe(no_mangle)]
unsafe extern "C" fn aio_rs_gate_worker(arg: *mut c_void) {
    // By the events' table, which a detach that fails does not lose.
    // SAFETY: the engine started this process with an argument of its own.
    counted(&EVENT_OPS, (), |ops| unsafe { (ops.worker)(ops.ctx, arg) });
    // SAFETY: this is the main function of a kernel process; no engine text follows.
    unsafe { sys::kproc_exit(0) }
}

/// See [`sys::gate::aio_rs_gate_bio_done`].
#[unsafe(no_mangle)]
unsafe extern "C" fn aio_rs_gate_bio_done(bp: *mut sys::bio) {
    // By the events' table: a detach does not end before the request this is part of.
    // SAFETY: a bio of the engine, which is done.
    counted(&EVENT_OPS, (), |ops| unsafe { (ops.bio_done)(ops.ctx, bp) });
}

/// The event of a knote of the engine's on a pipe's list: never to be queued anywhere.
unsafe extern "C" fn event_pipe(kn: *mut sys::knote, _hint: c_long) -> c_int {
    // By the events' table: a detach does not end before the request this is for.
    // SAFETY: the engine's knote, on its pipe's list, under that list's lock.
    counted(&EVENT_OPS, (), |ops| unsafe { (ops.pipe_event)(ops.ctx, kn) });
    0
}

/// Puts the kernel's functions back into the first `count` places.
fn restore(count: usize) {
    for place in places().take(count) {
        if let Some(word) = place.word() {
            let _ = word.compare_exchange(place.ours(), place.expected(), SeqCst, SeqCst);
        }
    }
}

/// Swaps all places to the trampolines, or none.
fn take() -> Result<(), c_int> {
    for (index, place) in places().enumerate() {
        let Some(word) = place.word() else { continue };
        if word.compare_exchange(place.expected(), place.ours(), SeqCst, SeqCst).is_err() {
            place.complain(
                c"aio_rs: not loaded: another module has system call %s; unload that one first\n",
            );
            restore(index);
            return Err(sys::EEXIST as c_int);
        }
    }
    Ok(())
}

/// Waits until no thread is in the engine; false when one did not come back in time.
fn drain() -> bool {
    for _ in 0..POLLS {
        let exits: u64 =
            COUNTS.iter().fold(0, |sum, line| sum.wrapping_add(line.exits.load(SeqCst)));
        let entries: u64 =
            COUNTS.iter().fold(0, |sum, line| sum.wrapping_add(line.entries.load(SeqCst)));
        if entries == exits {
            return true;
        }
        // SAFETY: module events may sleep.
        unsafe { sys::pause_sbt(c"aiogate".as_ptr(), POLL, 0, 0) };
    }
    false
}

/// See [`sys::gate::aio_rs_gate_attach`].
#[unsafe(no_mangle)]
unsafe extern "C" fn aio_rs_gate_attach(ops: *const Ops) -> c_int {
    // SAFETY: the caller's table is valid; these two fields are in every version of it.
    let (version, size) = unsafe { ((*ops).version, (*ops).size) };
    if version != VERSION || (size as usize) < size_of::<Ops>() {
        return sys::EPROGMISMATCH as c_int;
    }
    if SWITCH.swap(true, SeqCst) {
        return sys::EBUSY as c_int;
    }
    let result = if ATTACHED.load(SeqCst).is_null() {
        // The trampolines pass everything on until the table is there, so a failure leaves nobody
        // inside.
        let taken = filters_take().and_then(|()| {
            take().inspect_err(|_| {
                // Whoever registers an event now does so with the built-in's or through ours.
                filters_give_back();
            })
        });
        match taken {
            Ok(()) => {
                ATTACHED.store(ops.cast_mut(), SeqCst);
                EVENT_OPS.store(ops.cast_mut(), SeqCst);
                OPS.store(ops.cast_mut(), SeqCst);
                0
            }
            Err(errno) => errno,
        }
    } else {
        sys::EBUSY as c_int
    };
    SWITCH.store(false, SeqCst);
    result
}

/// See [`sys::gate::aio_rs_gate_detach`].
#[unsafe(no_mangle)]
extern "C" fn aio_rs_gate_detach() -> c_int {
    if SWITCH.swap(true, SeqCst) {
        return sys::EBUSY as c_int;
    }
    // After a detach that could not be undone the kernel's own functions are back already.
    let passive = OPS.load(SeqCst).is_null();
    let stacked = places().find(|place| {
        place
            .word()
            .map(|word| word.load(SeqCst))
            .is_some_and(|now| now != place.ours() && !(passive && now == place.expected()))
    });
    let result = if let Some(place) = stacked {
        place.complain(
            c"aio_rs: not unloaded: another module has system call %s; unload that one first\n",
        );
        sys::EBUSY as c_int
    } else {
        restore(TABLES * SLOTS);
        OPS.store(ptr::null_mut(), SeqCst);
        // With nobody inside, nobody registers an event of ours.
        let obstacle = if !drain() {
            Some(
                c"a thread does not leave a call; continue or kill stopped processes and try again",
            )
        } else if !filters_give_back() {
            Some(c"a kqueue holds an AIO event, or another module has the filter; try again without it")
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            let ops = ATTACHED.load(SeqCst);
            // When somebody took a slot in between, or only one filter is ours any more, the engine
            // stays, but gets no calls.
            if filters_are_ours() && take().is_ok() {
                OPS.store(ops, SeqCst);
            }
            // SAFETY: the format takes one string. (Without any, the compiler would call puts.)
            unsafe { sys::printf(c"aio_rs: not unloaded: %s\n".as_ptr(), obstacle.as_ptr()) };
            sys::EBUSY as c_int
        } else {
            EVENT_OPS.store(ptr::null_mut(), SeqCst);
            // Only event handlers can be inside now, and with nothing to wait for.
            while !drain() {}
            ATTACHED.store(ptr::null_mut(), SeqCst);
            0
        }
    };
    SWITCH.store(false, SeqCst);
    result
}

#[path = "tasks.rs"]
mod tasks;

#[path = "filters.rs"]
mod filters;
use filters::{filters_are_ours, filters_give_back, filters_take};

/// The module event handler: loads once, never unloads.
#[unsafe(no_mangle)]
extern "C" fn aio_rs_gate_modevent(
    _module: sys::module_t,
    event: c_int,
    _arg: *mut c_void,
) -> c_int {
    match event as sys::modeventtype {
        sys::MOD_LOAD => {
            // SAFETY: the handlers have the types these two events call, and their text stays.
            unsafe {
                sys::eventhandler_register(
                    ptr::null_mut(),
                    c"process_exit".as_ptr(),
                    process_exit as *mut c_void,
                    ptr::null_mut(),
                    sys::EVENTHANDLER_PRI_ANY as c_int,
                );
            }
            // SAFETY: as above.
            unsafe {
                sys::eventhandler_register(
                    ptr::null_mut(),
                    c"process_exec".as_ptr(),
                    process_exec as *mut c_void,
                    ptr::null_mut(),
                    sys::EVENTHANDLER_PRI_ANY as c_int,
                );
            }
            0
        }
        // Its text may hold a thread that was preempted in a trampoline, so it stays for good.
        sys::MOD_QUIESCE | sys::MOD_UNLOAD => sys::EBUSY as c_int,
        sys::MOD_SHUTDOWN => 0,
        _ => sys::EOPNOTSUPP as c_int,
    }
}

#[panic_handler]
fn panicked(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: panic(9) with a constant message.
    unsafe { sys::panic(c"aio_rs_gate: a broken invariant".as_ptr()) }
}
