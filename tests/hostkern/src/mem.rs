// SPDX-License-Identifier: BSD-2-Clause
//! Kernel memory: malloc(9) with guards, objects of the kernel's own, struct pcpu and counter(9).
//!
//! All of it is at fixed addresses, so that what depends on an address repeats. Allocations are
//! filled, followed by a red zone, and kept for a while after they are freed: a write after the end
//! or after the free is found, at the latest at the end of the run.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_void};

use crate::state::Held;
use crate::{report, sched, sys};

const PAGE: usize = 4096;

/// Where struct pcpu of thread 0 is; others follow, one page each, as counter(9) wants it.
const PCPU: usize = 0x0e00_0000_0000;
/// Per-CPU memory of counters, with the same stride.
const COUNTERS: usize = 0x0e10_0000_0000;
const PER_THREAD: usize = sched::MAX_THREADS * PAGE;

const ARENA: usize = 0x0f00_0000_0000;
const ARENA_SIZE: usize = 4 << 30;

const FRESH: u8 = 0xa5;
const FREED: u8 = 0xde;
const ZONE: u8 = 0xfd;
const ZONE_BYTES: usize = 16;
/// How many freed allocations are kept.
const KEPT: usize = 512;

/// Where malloc(9)'s types of the modules, or ours, are charged.
struct Block {
    size: usize,
    kind: usize,
    /// The type of an object of ours.
    object: &'static str,
}

struct Memory {
    next: usize,
    live: BTreeMap<usize, Block>,
    /// Free memory by the size of its class.
    free: BTreeMap<usize, Vec<usize>>,
    kept: VecDeque<(usize, usize)>,
    /// Types that malloc_init(9) has made known, with what they have: count and bytes.
    types: BTreeMap<usize, (String, usize, usize)>,
    counters: Vec<usize>,
    counters_made: usize,
}

static MEMORY: Held<Memory> = Held::new(Memory {
    next: ARENA,
    live: BTreeMap::new(),
    free: BTreeMap::new(),
    kept: VecDeque::new(),
    types: BTreeMap::new(),
    counters: Vec::new(),
    counters_made: 0,
});

/// The type of the host kernel's own objects.
const OURS: usize = 0;

/// Maps memory at a fixed address that must be free.
pub fn map_fixed(at: usize, len: usize, prot: i32) -> *mut u8 {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping replaces nothing.
    let got = unsafe { libc::mmap(at as *mut c_void, len, prot, flags, -1, 0) };
    if got as usize != at {
        report::give_up(&format!("no memory at {at:#x}: {}", std::io::Error::last_os_error()));
    }
    got.cast()
}

/// Makes the kernel's memory, before anything else.
pub fn start() {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    map_fixed(PCPU, PER_THREAD, rw);
    map_fixed(COUNTERS, PER_THREAD, rw);
    map_fixed(ARENA, ARENA_SIZE, rw);
}

/// The struct pcpu of a thread.
pub fn pcpu(tid: usize) -> *mut sys::pcpu {
    (PCPU + tid * PAGE) as *mut sys::pcpu
}

pub fn set_curthread(tid: usize, td: *mut sys::thread) {
    // SAFETY: mapped by start; only the running thread changes it.
    unsafe { (*pcpu(tid)).pc_curthread = td }
}

pub fn set_cpuid(tid: usize, cpu: u32) {
    // SAFETY: as above.
    unsafe { (*pcpu(tid)).pc_cpuid = cpu }
}

/// counter_u64_alloc(9): what is added to the %gs base gives the thread's own word.
pub fn counter_alloc() -> usize {
    let slot = MEMORY.with(|m| {
        m.counters.pop().unwrap_or_else(|| {
            m.counters_made += 1;
            m.counters_made - 1
        })
    });
    if slot >= PAGE / 8 {
        report::panic("too many counters");
    }
    let base = COUNTERS + slot * 8;
    for thread in 0..sched::MAX_THREADS {
        let word = (base + thread * PAGE) as *mut u64;
        // SAFETY: mapped by start. Only pages that are in use are written to.
        unsafe {
            if word.read() != 0 {
                word.write(0);
            }
        }
    }
    base - PCPU
}

pub fn counter_free(counter: usize) {
    MEMORY.with(|m| m.counters.push((counter + PCPU - COUNTERS) / 8));
}

/// counter_u64_fetch(9).
pub fn counter_fetch(counter: usize) -> u64 {
    let base = counter + PCPU;
    // SAFETY: mapped by start.
    let word = |thread: usize| unsafe { ((base + thread * PAGE) as *const u64).read() };
    (0..sched::MAX_THREADS).fold(0, |sum, thread| sum.wrapping_add(word(thread)))
}

/// counter_u64_zero(9).
pub fn counter_zero(counter: usize) {
    let base = counter + PCPU;
    for thread in 0..sched::MAX_THREADS {
        let word = (base + thread * PAGE) as *mut u64;
        // SAFETY: mapped by start. Only pages that are in use are written to.
        unsafe {
            if word.read() != 0 {
                word.write(0);
            }
        }
    }
}

fn class(size: usize) -> usize {
    let size = size + ZONE_BYTES;
    if size <= PAGE { size.next_power_of_two().max(32) } else { size.next_multiple_of(PAGE) }
}

fn fill(at: usize, byte: u8, len: usize) {
    // SAFETY: the callers pass blocks of the arena.
    unsafe { std::ptr::write_bytes(at as *mut u8, byte, len) }
}

fn is_filled(at: usize, byte: u8, len: usize) -> bool {
    // SAFETY: the callers pass blocks of the arena.
    unsafe { std::slice::from_raw_parts(at as *const u8, len) }.iter().all(|&its| its == byte)
}

fn allocate(size: usize, kind: usize, zero: bool, object: &'static str) -> usize {
    let room = class(size);
    let at = MEMORY.with(|m| {
        let at = m.free.get_mut(&room).and_then(Vec::pop).unwrap_or_else(|| {
            // Powers of two are aligned to themselves, as malloc(9) has them.
            let align = if room <= PAGE { room } else { PAGE };
            let at = m.next.next_multiple_of(align);
            m.next = at + room;
            at
        });
        m.live.insert(at, Block { size, kind, object });
        if let Some((_, count, bytes)) = m.types.get_mut(&kind) {
            *count += 1;
            *bytes += size;
        } else if kind != OURS {
            report::panic("malloc of a type that malloc_init has not seen");
        }
        at
    });
    if at + room > ARENA + ARENA_SIZE {
        report::panic("out of kernel memory");
    }
    fill(at, if zero { 0 } else { FRESH }, size);
    fill(at + size, ZONE, ZONE_BYTES);
    at
}

fn release(at: usize, kind: usize) {
    let size = MEMORY.with(|m| {
        let Some(block) = m.live.remove(&at) else {
            report::panic(&format!("free of {at:#x}, which is not allocated"));
        };
        if block.kind != kind {
            report::panic(&format!("free of {at:#x} with another type than it was allocated with"));
        }
        if let Some((_, count, bytes)) = m.types.get_mut(&kind) {
            *count -= 1;
            *bytes -= block.size;
        }
        block.size
    });
    if !is_filled(at + size, ZONE, ZONE_BYTES) {
        report::panic(&format!("{at:#x}, of {size} bytes, was written to after its end"));
    }
    fill(at, FREED, size);
    let old = MEMORY.with(|m| {
        m.kept.push_back((at, size));
        if m.kept.len() > KEPT { m.kept.pop_front() } else { None }
    });
    if let Some((at, size)) = old {
        check_freed(at, size);
        MEMORY.with(|m| m.free.entry(class(size)).or_default().push(at));
    }
}

fn check_freed(at: usize, size: usize) {
    if !is_filled(at, FREED, size) || !is_filled(at + size, ZONE, ZONE_BYTES) {
        report::panic(&format!("{at:#x}, of {size} bytes, was written to after it was freed"));
    }
}

/// malloc(9).
pub fn malloc(size: usize, kind: *mut sys::malloc_type, zero: bool) -> *mut c_void {
    allocate(size.max(1), kind as usize, zero, "") as *mut c_void
}

/// free(9).
pub fn free(at: *mut c_void, kind: *mut sys::malloc_type) {
    if !at.is_null() {
        release(at as usize, kind as usize);
    }
}

/// A kernel object of ours, all zeros.
pub fn new_object<T>() -> *mut T {
    allocate(size_of::<T>(), OURS, true, std::any::type_name::<T>()) as *mut T
}

/// How many objects of ours there are, by type, and counters.
pub fn objects() -> BTreeMap<&'static str, usize> {
    MEMORY.with(|m| {
        let mut counts = BTreeMap::new();
        for block in m.live.values().filter(|block| block.kind == OURS) {
            *counts.entry(block.object).or_insert(0) += 1;
        }
        counts.insert("counter", m.counters_made - m.counters.len());
        counts
    })
}

pub fn free_object<T>(object: *mut T) {
    release(object as usize, OURS);
}

/// malloc_init(9).
pub fn malloc_init(kind: *mut sys::malloc_type) {
    // SAFETY: a module's static type, whose description is a C string.
    let name = unsafe { CStr::from_ptr((*kind).ks_shortdesc) }.to_string_lossy().into_owned();
    MEMORY.with(|m| m.types.insert(kind as usize, (name, 0, 0)));
}

/// malloc_uninit(9): what is still allocated then is a leak.
pub fn malloc_uninit(kind: *mut sys::malloc_type) {
    let left = MEMORY.with(|m| m.types.remove(&(kind as usize)));
    match left {
        Some((_, 0, 0)) => {}
        Some((name, count, bytes)) => {
            report::panic(&format!("memory type {name} leaks {count} allocations of {bytes} bytes"))
        }
        None => report::panic("malloc_uninit of a type that malloc_init has not seen"),
    }
}

/// Checks all memory that was freed, and what is allocated, for writes out of bounds.
pub fn audit() {
    let (kept, live): (Vec<_>, Vec<_>) = MEMORY.with(|m| {
        let live = m.live.iter().map(|(&at, block)| (at, block.size)).collect();
        (m.kept.iter().copied().collect(), live)
    });
    kept.into_iter().for_each(|(at, size)| check_freed(at, size));
    for (at, size) in live {
        if !is_filled(at + size, ZONE, ZONE_BYTES) {
            report::panic(&format!("{at:#x}, of {size} bytes, was written to after its end"));
        }
    }
}
