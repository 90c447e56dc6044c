// SPDX-License-Identifier: BSD-2-Clause
//! Exit and exec: a process leaves its requests behind.
//!
//! What has not begun is dropped, what is done is forgotten, and what runs becomes an orphan that
//! owns all it needs: file, credential, address space. Requests on local files are waited for, so
//! that a file is as the process left it when wait(2) reports the process; the worker that finishes
//! the last one wakes us. Requests a disk's driver has are waited for first, and never orphans. A
//! request that may take for ever (`vfs.aio.enable_unsafe`) is not waited for, so that the process
//! can always be killed. No notification is sent.

use core::sync::atomic::Ordering;

use super::engine::Engine;
use super::lanes::Spot;
use crate::kern::proc::Leaving;
use crate::model::table::Disowned;

/// How many requests become orphans under one lock.
const CHUNK: usize = 64;

impl Engine {
    /// Ends the AIO of a process that exits or replaces its image.
    ///
    /// # Context
    /// Sleeps; no locks; the process has no other thread.
    pub fn rundown(&self, leaving: &Leaving) {
        let Some(process) = self.procs.leaving(leaving) else {
            self.procs.remove(leaving, None);
            return;
        };
        let mut withdraw = |spot: &Spot| self.withdraw(spot);
        let mut inner = process.lock();
        // From here on nobody queues the process, and no worker begins a request of it.
        let live = inner.live.take();
        while inner.flights > 0 {
            (inner, _) = inner.msleep(process.rundown_channel(), false, c"aioprn", None);
        }
        loop {
            while let Some(reaped) = inner.table.rundown(&mut withdraw) {
                drop(inner);
                if let (true, Some(request)) = (reaped.unfinished, &reaped.payload) {
                    self.statistics.dropped(&request.record);
                }
                self.config.num_queue_count.subtract(1);
                drop(reaped);
                inner = process.lock();
            }
            let mut disowned = 0;
            let (none_runs, dropped) = loop {
                if disowned == CHUNK {
                    break (false, None);
                }
                match inner.table.disown() {
                    Disowned::Nothing => break (true, None),
                    Disowned::One { notice: None, group: None } => disowned += 1,
                    Disowned::One { notice, group } => {
                        disowned += 1;
                        break (false, Some((notice, group)));
                    }
                }
            };
            self.orphans.fetch_add(disowned, Ordering::AcqRel);
            self.config.num_queue_count.subtract(i32::try_from(disowned).unwrap_or(0));
            if none_runs {
                break;
            }
            // One that ran may be done when we are back.
            drop(inner);
            drop(dropped);
            inner = process.lock();
        }
        while inner.table.orphans_awaited() > 0 {
            (inner, _) = inner.msleep(process.rundown_channel(), false, c"aioprn", None);
        }
        drop(inner);
        self.procs.remove(leaving, live);
        self.pool.unregister(&process);
    }
}
