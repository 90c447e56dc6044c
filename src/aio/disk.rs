// SPDX-License-Identifier: BSD-2-Clause
//! Disk devices: requests that go straight to the driver, and end where it says so.
//!
//! An eligible request has its pages held and its bios made by the thread that submits it, enters
//! the table as one that runs, and is launched once no lock is held. The driver's completion, in
//! whatever context, takes the result to the table ([`Engine::landed`]): no worker is involved, and
//! nothing there sleeps. Exit and exec wait until no request of the process flies, so the file of
//! such a request is always closed by a thread of its process.
//!
//! What is not eligible is the built-in's generic path, by a worker, where `vfs.aio.enable_unsafe`
//! allows it. With `vfs.aio.rs.split` a request that is too large or has too many elements becomes
//! more bios, or, if those are too many too, a worker's; and one of a total the device could take,
//! but of elements it could not, is copied by a worker.
//!
//! Differences from the built-in: of several errors the first in the request's order counts; a
//! vector that crosses the end of the medium is a short success, as with readv(2); mapped
//! buffers have addresses of their own, so nobody waits for one; none is lost when a request fails
//! (L1).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::engine::Engine;
use super::process::Process;
use super::request::{Operation, Request};
use super::statistics::By;
use crate::kern::bio::{Batch, Landed, Piece};
use crate::kern::disk::{Device, maxphys};
use crate::kern::file::File;
use crate::kern::proc::Curthread;
use crate::kern::sysctl::IntVar;
use crate::kern::uio::Buffer;
use crate::model::Errno;
use crate::model::slab::{Id, NONE};
use crate::model::table::{Finished, Outcome, Usage};

/// What the bios of one request belong to.
pub struct Flight {
    /// Set once the table has the request.
    id: Id,
    request: Box<Request>,
    write: bool,
    seats: Seats,
}

impl Flight {
    /// Says which request of its process's table it is.
    pub fn enter(&mut self, id: Id) {
        self.id = id;
    }

    /// Its request.
    pub fn request(&self) -> &Request {
        &self.request
    }
}

/// Bios of a process, counted where users can see it, and against its quota if they are mapped.
struct Seats {
    process: Arc<Process>,
    /// Taken from the process's quota.
    mapped: usize,
    counted: Option<(IntVar, i32)>,
}

impl Seats {
    /// Takes `count` mapped buffers of the process's quota of `most`.
    ///
    /// # Errors
    /// EAGAIN: there are fewer.
    fn of(process: &Arc<Process>, count: usize, most: usize) -> Result<Seats, Errno> {
        let more = |taken: usize| taken.checked_add(count).filter(|&taken| taken <= most);
        if count > 0
            && process.mapped.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_err()
        {
            return Err(Errno::EAGAIN);
        }
        Ok(Seats { process: process.clone(), mapped: count, counted: None })
    }

    fn count(&mut self, var: IntVar, bios: usize) {
        let bios = i32::try_from(bios).unwrap_or(0);
        var.add(bios);
        self.counted = Some((var, bios));
    }

    fn give_back(&mut self) {
        self.process.mapped.fetch_sub(core::mem::take(&mut self.mapped), Ordering::AcqRel);
        if let Some((var, bios)) = self.counted.take() {
            var.subtract(bios);
        }
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// How a disk request is to be served.
pub(super) enum Way {
    /// By the driver itself.
    Direct(Route),
    /// By a worker, as any file, if that is allowed.
    Worker,
    /// By a worker, whatever `vfs.aio.enable_unsafe` says: it ends in bounded time.
    Split,
    /// The same, through the kernel's memory, so many bytes at a time.
    Bounce { chunk: usize },
    /// By a worker: the device writes its cache out.
    Flush,
}

/// The device, and the most bytes a bio for it may have.
pub(super) struct Route {
    device: Device,
    most: usize,
}

/// The pieces of a buffer, of at most `most` bytes each.
fn pieces(buffer: &Buffer, most: usize) -> impl Iterator<Item = Piece> + Clone + '_ {
    buffer.elements().flat_map(move |(base, len)| {
        (0..len.div_ceil(most)).map(move |index| Piece {
            base: base.offset(index * most),
            len: most.min(len - index * most),
        })
    })
}

impl Engine {
    /// Decides how to serve a request of a disk device. May sleep.
    ///
    /// # Errors
    /// ENXIO: the device is gone. EPERM: a flush, and it is not open for writing.
    #[inline(never)]
    pub(super) fn way(
        &self,
        file: &File,
        operation: Operation,
        offset: Option<i64>,
        buffer: &Buffer,
    ) -> Result<Way, Errno> {
        if operation.syncs() && self.config.flushes() {
            return if file.is_writable() { Ok(Way::Flush) } else { Err(Errno::EPERM) };
        }
        if offset.is_none() || !operation.transfers() {
            return Ok(Way::Worker);
        }
        let device = Device::of(file)?;
        let (block, largest) = (device.block_size(), device.iosize_max());
        if block == 0 {
            return Ok(Way::Worker);
        }
        let (mut count, mut aligned, mut longest) = (0, true, 0);
        for (_, len) in buffer.elements() {
            count += 1;
            aligned &= len.is_multiple_of(block);
            longest = longest.max(len);
        }
        let total = buffer.len();
        let buffers = self.config.buffers_max();
        if aligned && longest <= maxphys() && total <= largest && count <= buffers {
            if !self.config.splits() || count < 2 {
                return Ok(Way::Direct(Route { device, most: maxphys() }));
            }
        } else if !self.config.splits() {
            return Ok(Way::Worker);
        }
        // From here on what counts is the device's own unit, which the block size need not be.
        let sector = file.sector_size().unwrap_or(block).max(1);
        if !total.is_multiple_of(sector) {
            return Ok(Way::Worker);
        }
        let most = maxphys().min(largest) / sector * sector;
        if most == 0 {
            return Ok(Way::Worker);
        }
        if buffer.elements().any(|(_, len)| !len.is_multiple_of(sector)) {
            return Ok(Way::Bounce { chunk: most });
        }
        let bios = buffer.elements().map(|(_, len)| len.div_ceil(most)).sum::<usize>();
        Ok(if bios <= buffers { Way::Direct(Route { device, most }) } else { Way::Split })
    }

    /// Makes a flight of a request. Sleeps.
    ///
    /// # Errors
    /// EFAULT: the buffer, at once. EAGAIN: `max_buf_aio`, or the kernel's buffers.
    #[allow(clippy::too_many_arguments)]
    #[inline(never)]
    pub(super) fn board(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        Route { device, most }: Route,
        operation: Operation,
        offset: i64,
        buffer: &Buffer,
        request: Box<Request>,
    ) -> Result<Box<Batch<Flight>>, Errno> {
        let write = operation.writes();
        let pieces = pieces(buffer, most);
        let count = pieces.clone().count();
        let mapped = if device.takes_unmapped() { 0 } else { count };
        let seats = Seats::of(process, mapped, self.config.buffers_max())?;
        let flight = Flight { id: NONE, request, write, seats };
        let mut batch = Batch::prepare(td, device, write, offset, pieces, flight)?;
        let (bios, mapped) = batch.bios();
        let gauge = if mapped { self.config.num_buf_aio } else { self.config.num_unmapped_aio };
        batch.owner.seats.count(gauge, bios);
        td.charge_transfer(write, buffer.len(), bios);
        Ok(batch)
    }

    /// Launches what the table has. Sleeps.
    pub(super) fn launch(&self, flight: Box<Batch<Flight>>) {
        if let Some(landed) = flight.launch() {
            self.landed(landed);
        }
    }

    /// Takes the result of a request to its process, in the driver's context: must not sleep.
    pub fn landed(&self, landed: Landed<Flight>) {
        let (flight, moved) = landed.finish();
        let Flight { id, request, write, mut seats } = flight;
        // Before the process learns of it.
        seats.give_back();
        // In the unit of the built-in: what DEV_BSIZE is.
        let blocks = (moved.total / 512) as u32;
        let outcome = Outcome {
            status: if moved.error.is_some() { -1 } else { moved.bytes as i64 },
            error: moved.error,
            usage: if write {
                Usage { oublock: blocks, ..Usage::default() }
            } else {
                Usage { inblock: blocks, ..Usage::default() }
            },
        };
        self.statistics.performed(By::Bio, &request.record, &outcome);
        let process = &seats.process;
        let mut inner = process.lock();
        let finished = inner.finish(id, request, outcome);
        inner.flights -= 1;
        let awaited = inner.flights == 0 && inner.live.is_none();
        // A sync may have waited for it.
        let kick = self.pool.schedule(&self.config, process, &mut inner);
        process.unlock_and_wake(inner);
        kick.deliver();
        if awaited {
            process.rundown_channel().wakeup();
        }
        let Finished::Done = finished else { panic!("a process left a disk request behind") };
    }
}

/// How many flights are launched after one lock was given up.
const RUNWAY: usize = 8;

/// Flights the table has and nobody has launched, for when no lock is held.
#[derive(Default)]
pub(super) struct Runway {
    flights: [Option<Box<Batch<Flight>>>; RUNWAY],
    count: usize,
}

impl Runway {
    /// Adds one, under the process's mutex; there must be room.
    pub fn push(&mut self, flight: Box<Batch<Flight>>) {
        self.flights[self.count] = Some(flight);
        self.count += 1;
    }

    /// Whether there is no room for another one.
    pub fn is_full(&self) -> bool {
        self.count == RUNWAY
    }

    /// Launches all, in the order they came. Sleeps.
    pub fn launch(&mut self, engine: &Engine) {
        let flights = &mut self.flights[..core::mem::take(&mut self.count)];
        for flight in flights.iter_mut().filter_map(Option::take) {
            engine.launch(flight);
        }
    }
}
