// SPDX-License-Identifier: BSD-2-Clause
//! bio(9): transfers of disks, and the context they end in.
//!
//! A bio ends inside the driver's strategy routine, or in one of two threads of the kernel's, as the
//! seed has it: at once, a little later, late, or when somebody next closes a file, cancels requests,
//! ends or becomes another program, during that call or after it. So it may find the file closed, the
//! process on its way out or the device gone. Either way what the bio calls when it is done may not sleep.

use std::collections::BTreeMap;
use std::ffi::c_void;

use crate::errno::{EINVAL, EIO, ENXIO, Errno};
use crate::sched::{self, SECOND};
use crate::state::Held;
use crate::{disk, mem, pages, proc, report, sys};

/// Threads that end bios.
const ENDERS: usize = 2;
/// Where they wait; odd, as all channels of ours.
const CHANNEL: u64 = 0x44 << 56 | 1;

/// A bio that the driver has.
struct Flight {
    bp: usize,
    disk: u64,
    due: i64,
    /// It waits for one of the calls of [`called`].
    waits: bool,
}

struct Bios {
    /// Those that were allocated, and whether the driver has them.
    live: BTreeMap<usize, bool>,
    flights: Vec<Flight>,
    enders: usize,
    done: u64,
    inline: u64,
}

static BIOS: Held<Bios> =
    Held::new(Bios { live: BTreeMap::new(), flights: Vec::new(), enders: 0, done: 0, inline: 0 });

/// g_alloc_bio(9).
pub fn alloc() -> *mut sys::bio {
    let bp: *mut sys::bio = mem::new_object();
    BIOS.with(|bios| bios.live.insert(bp as usize, false));
    bp
}

/// g_destroy_bio(9).
pub fn destroy(bp: *mut sys::bio) {
    match BIOS.with(|bios| bios.live.remove(&(bp as usize))) {
        Some(false) => mem::free_object(bp),
        Some(true) => report::panic("a bio is destroyed that the driver has"),
        None => report::panic("a bio is destroyed that is none"),
    }
}

/// Makes the threads that end bios, with the first disk.
pub fn start_enders() {
    let there = BIOS.with(|bios| std::mem::replace(&mut bios.enders, ENDERS));
    for index in there..ENDERS {
        proc::start_kernel_thread(move || end_bios(index));
    }
}

/// How many there are.
pub fn enders() -> usize {
    BIOS.with(|bios| bios.enders)
}

/// How many bios are with a disk.
pub fn of_disk(disk: u64) -> usize {
    BIOS.with(|bios| bios.flights.iter().filter(|its| its.disk == disk).count())
}

/// How many ended, and how many of them inside the strategy routine.
pub fn totals() -> (u64, u64) {
    BIOS.with(|bios| (bios.done, bios.inline))
}

/// Ends what a disk still has soon: it is gone.
pub fn hurry(disk: u64) {
    let now = sched::now();
    BIOS.with(|bios| {
        let its = bios.flights.iter_mut().filter(|its| its.disk == disk);
        its.for_each(|flight| flight.due = flight.due.min(now + SECOND / 10_000));
    });
    sched::wakeup(CHANNEL, false);
}

/// A program makes a system call: close(2), aio_cancel(2), exit(2) and execve(2) are what some bios
/// wait for.
pub fn called(number: u64) {
    if ![1, 6, 59, 316].contains(&number)
        || !BIOS.with(|bios| bios.flights.iter().any(|its| its.waits))
    {
        return;
    }
    let due = sched::now() + sched::random(SECOND as u64 / 20_000) as i64;
    BIOS.with(|bios| {
        for flight in bios.flights.iter_mut().filter(|its| its.waits) {
            (flight.waits, flight.due) = (false, due.min(flight.due));
        }
    });
    sched::wakeup(CHANNEL, false);
}

/// d_strategy of all disks.
pub unsafe extern "C" fn strategy(bp: *mut sys::bio) {
    sched::point();
    sched::may_sleep("d_strategy");
    match BIOS.with(|bios| bios.live.insert(bp as usize, true)) {
        Some(false) => {}
        Some(true) => report::panic("a bio is given to a driver twice"),
        None => report::panic("a driver is given a bio that is none"),
    }
    // SAFETY: a live bio, by the check above.
    let bio = unsafe { &*bp };
    if bio.bio_done.is_none() {
        report::panic("a bio without done routine");
    }
    let (disk, delay) = disk::take(bio.bio_dev);
    let mut waits = false;
    let delay = delay.unwrap_or_else(|| match sched::random(18) {
        0..5 => 0,
        5..8 => 1,
        8..12 => 1 + sched::random(SECOND as u64 / 50_000) as i64,
        12..15 => sched::random(SECOND as u64 / 500) as i64,
        15 => sched::random(SECOND as u64 / 5) as i64,
        _ => {
            waits = true;
            SECOND / 2
        }
    });
    if delay == 0 {
        BIOS.with(|bios| bios.inline += 1);
        end(bp, disk);
    } else {
        let due = sched::now() + delay;
        BIOS.with(|bios| bios.flights.push(Flight { bp: bp as usize, disk, due, waits }));
        sched::wakeup(CHANNEL, false);
    }
    sched::point();
}

/// The life of a thread that ends bios.
fn end_bios(index: usize) {
    loop {
        let now = sched::now();
        let due = BIOS.with(|bios| {
            let due = bios.flights.iter().enumerate().filter(|(_, its)| its.due <= now);
            due.map(|(index, _)| index).collect::<Vec<_>>()
        });
        if due.is_empty() {
            let next = BIOS.with(|bios| bios.flights.iter().map(|its| its.due).min());
            sched::sleep(CHANNEL, false, ["-", "*"][index % 2], next, || ());
            continue;
        }
        // In any order.
        let chosen = due[sched::random(due.len() as u64) as usize];
        let flight = BIOS.with(|bios| bios.flights.swap_remove(chosen));
        end(flight.bp as *mut sys::bio, flight.disk);
        disk::ended(flight.disk);
        sched::point();
    }
}

/// Moves the bytes, and calls the bio's done routine.
fn end(bp: *mut sys::bio, disk: u64) {
    // SAFETY: a live bio the driver has.
    let bio = unsafe { &mut *bp };
    let (moved, error) = transfer(bio, disk);
    bio.bio_resid = bio.bio_length - moved as i64;
    bio.bio_completed = moved as i64;
    if let Some(error) = error {
        bio.bio_error = error.0;
        bio.bio_flags |= sys::BIO_ERROR as u16;
    }
    let done = bio.bio_done.expect("checked before");
    BIOS.with(|bios| {
        bios.done += 1;
        bios.live.insert(bp as usize, false);
    });
    sched::trace(u64::from(bio.bio_cmd), moved as u64);
    sched::note("a bio ends", bp as u64, None);
    sched::point();
    sched::without_sleep("a bio's completion", || {
        // SAFETY: the done routine takes its bio, which is nobody else's now.
        sched::in_module(|| unsafe { done(bp) });
    });
    sched::assert_no_locks("a bio's completion");
    sched::point();
}

/// What the device makes of a bio: bytes moved, and an error.
fn transfer(bio: &sys::bio, disk: u64) -> (usize, Option<Errno>) {
    let writes = match u32::from(bio.bio_cmd) {
        sys::BIO_READ => false,
        sys::BIO_WRITE => true,
        other => report::panic(&format!("a bio of command {other}")),
    };
    if bio.bio_length != bio.bio_bcount || bio.bio_length < 0 {
        report::panic(&format!("a bio of {} and {} bytes", bio.bio_length, bio.bio_bcount));
    }
    let wanted = bio.bio_length as usize;
    let (unmapped, sector) = match disk::takes_unmapped(disk) {
        Some(answer) => answer,
        None => return (0, Some(ENXIO)),
    };
    if u32::from(bio.bio_flags) & sys::BIO_UNMAPPED != 0 && !unmapped {
        report::panic("a bio that is not mapped for a device that wants it so");
    }
    if !bio.bio_offset.unsigned_abs().is_multiple_of(sector as u64)
        || !wanted.is_multiple_of(sector)
    {
        return (0, Some(EINVAL));
    }
    if bio.bio_offset < 0 {
        return (0, Some(EIO));
    }
    let failure = disk::failure(disk, writes);
    let wanted = match failure {
        Some(_) => disk::part(disk, wanted, sector),
        None => wanted,
    };
    let mut moved = 0;
    while moved < wanted {
        let (memory, room) = memory_of(bio, moved);
        let count = room.min(wanted - moved);
        match disk::copy(disk, bio.bio_offset as u64 + moved as u64, memory, count, writes) {
            Ok(0) => break,
            Ok(done) => moved += done,
            Err(error) => return (moved, Some(error)),
        }
    }
    (moved, failure)
}

/// The memory behind a byte of a bio, and how much of it lies together.
fn memory_of(bio: &sys::bio, at: usize) -> (*mut u8, usize) {
    const PAGE: usize = crate::vm::PAGE as usize;
    let (page, offset) = if u32::from(bio.bio_flags) & sys::BIO_UNMAPPED != 0 {
        let place = bio.bio_ma_offset as usize + at;
        if place / PAGE >= bio.bio_ma_n as usize {
            report::panic("a bio is longer than its pages");
        }
        // SAFETY: the array has so many pages; a module that freed it has its own text in it.
        (unsafe { *bio.bio_ma.add(place / PAGE) } as usize, place % PAGE)
    } else {
        let address = bio.bio_data as usize + at;
        (pages::mapped_at(address), address % PAGE)
    };
    (pages::memory(page).wrapping_add(offset), PAGE - offset)
}

/// What must be nothing when no process is left.
pub fn leftovers() -> Vec<String> {
    BIOS.with(|bios| match bios.live.len() {
        0 => Vec::new(),
        count => vec![format!("{count} bios are left")],
    })
}

/// The type of a driver's routine, for a table.
pub fn strategy_pointer() -> *const c_void {
    strategy as *const c_void
}
