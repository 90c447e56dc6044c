// SPDX-License-Identifier: BSD-2-Clause
//! The limits and switches of aio(4), in the kernel's own variables, so that one sysctl serves both
//! engines; and our own switches, under `vfs.aio.rs`.

use alloc::sync::Arc;
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, Ordering};

use crate::kern::proc::Curthread;
use crate::kern::sysctl::{IntVar, Tree};
use crate::model::Errno;

/// What the administrator set, read at each use. Any value is tolerated: a limit below 0 is 0.
pub struct Config {
    max_aio_procs: IntVar,
    target_aio_procs: IntVar,
    max_aio_queue: IntVar,
    /// Requests of both engines that are not reaped.
    pub num_queue_count: IntVar,
    aiod_lifetime: IntVar,
    max_aio_per_proc: IntVar,
    max_aio_queue_per_proc: IntVar,
    max_buf_aio: IntVar,
    /// Bios with a mapped buffer, of both engines.
    pub num_buf_aio: IntVar,
    /// Bios without.
    pub num_unmapped_aio: IntVar,
    enable_unsafe: IntVar,
    pub unsafe_warningcnt: IntVar,
    /// Our own switches.
    switches: Switches,
}

/// The switches under `vfs.aio.rs`; 0 is off.
pub struct Switches {
    lio_empty_kevent: Arc<AtomicI32>,
    inline: Arc<AtomicI32>,
    split: Arc<AtomicI32>,
    flush: Arc<AtomicI32>,
    park: Arc<AtomicI32>,
}

impl Switches {
    fn new() -> Switches {
        let off = || Arc::new(AtomicI32::new(0));
        Switches {
            lio_empty_kevent: off(),
            inline: Arc::new(AtomicI32::new(1)),
            split: off(),
            flush: off(),
            park: off(),
        }
    }
}

impl Config {
    /// Finds the variables. May sleep.
    ///
    /// # Errors
    /// ENOENT: the kernel lacks one; the name is in the message buffer.
    pub fn find(td: Curthread) -> Result<Config, Errno> {
        let var = |name: &'static CStr| {
            IntVar::find(td, name).inspect_err(|error| {
                let name = name.to_str().unwrap_or("?");
                crate::kern::printf::print(format_args!(
                    "not loaded: this kernel has no {name} (error {}); build for this kernel",
                    error.code()
                ));
            })
        };
        Ok(Config {
            max_aio_procs: var(c"vfs.aio.max_aio_procs")?,
            target_aio_procs: var(c"vfs.aio.target_aio_procs")?,
            max_aio_queue: var(c"vfs.aio.max_aio_queue")?,
            num_queue_count: var(c"vfs.aio.num_queue_count")?,
            aiod_lifetime: var(c"vfs.aio.aiod_lifetime")?,
            max_aio_per_proc: var(c"vfs.aio.max_aio_per_proc")?,
            max_aio_queue_per_proc: var(c"vfs.aio.max_aio_queue_per_proc")?,
            max_buf_aio: var(c"vfs.aio.max_buf_aio")?,
            num_buf_aio: var(c"vfs.aio.num_buf_aio")?,
            num_unmapped_aio: var(c"vfs.aio.num_unmapped_aio")?,
            enable_unsafe: var(c"vfs.aio.enable_unsafe")?,
            unsafe_warningcnt: var(c"vfs.aio.unsafe_warningcnt")?,
            switches: Switches::new(),
        })
    }

    /// Adds our own switches to the tree.
    pub fn publish(&self, tree: &mut Tree) -> Result<(), Errno> {
        tree.setting(
            c"inline",
            &self.switches.inline,
            c"What need not wait completes in the submitting thread: cached reads, ready sockets",
        )?;
        tree.setting(
            c"lio_empty_kevent",
            &self.switches.lio_empty_kevent,
            c"A list with nothing left to wait for still sends its kevent",
        )?;
        tree.setting(
            c"split",
            &self.switches.split,
            c"Disk requests that are too large or oddly cut are split or copied",
        )?;
        tree.setting(
            c"flush",
            &self.switches.flush,
            c"aio_fsync(2) of a disk device flushes its write cache",
        )?;
        tree.setting(
            c"park",
            &self.switches.park,
            c"Requests on pipes and FIFOs wait for their peer without a worker",
        )
    }

    /// Workers at most. At least 1: without any, accepted requests would never run.
    pub fn workers_max(&self) -> usize {
        at_least_zero(self.max_aio_procs).max(1)
    }

    /// Workers kept when idle. At least 1, for the same reason.
    pub fn workers_target(&self) -> usize {
        at_least_zero(self.target_aio_procs).clamp(1, self.workers_max())
    }

    /// How long a worker beyond the target stays idle, in clock ticks; `None`: for ever, as the
    /// built-in's with 0.
    pub fn worker_lifetime(&self) -> Option<i32> {
        Some(self.aiod_lifetime.get()).filter(|&ticks| ticks > 0)
    }

    /// Requests in all, not reaped, at most.
    pub fn queue_max(&self) -> i32 {
        self.max_aio_queue.get()
    }

    /// Requests per process, not reaped, at most; also the length of a list.
    pub fn queue_per_process_max(&self) -> usize {
        at_least_zero(self.max_aio_queue_per_proc)
    }

    /// Requests per process that run at once, at most. With 0 none begins until it is raised.
    pub fn running_per_process_max(&self) -> usize {
        at_least_zero(self.max_aio_per_proc)
    }

    /// Elements of a disk request, and mapped buffers of a process, at most.
    pub fn buffers_max(&self) -> usize {
        at_least_zero(self.max_buf_aio)
    }

    /// Whether disk requests no single transfer can serve are split or copied.
    pub fn splits(&self) -> bool {
        self.switches.split.load(Ordering::Relaxed) != 0
    }

    /// Whether aio_fsync(2) has a disk device write its cache out.
    pub fn flushes(&self) -> bool {
        self.switches.flush.load(Ordering::Relaxed) != 0
    }

    /// Whether requests on pipes and FIFOs are parked until they are ready.
    pub fn parks(&self) -> bool {
        self.switches.park.load(Ordering::Relaxed) != 0
    }

    /// Whether a list of which nothing is left still sends its kevent (PR 251515).
    pub fn empty_list_kevent(&self) -> bool {
        self.switches.lio_empty_kevent.load(Ordering::Relaxed) != 0
    }

    /// Whether what need not wait is done by the submitter.
    pub fn completes_inline(&self) -> bool {
        self.switches.inline.load(Ordering::Relaxed) != 0
    }

    /// Whether files whose I/O may take for ever are allowed.
    pub fn unsafe_enabled(&self) -> bool {
        self.enable_unsafe.get() != 0
    }
}

fn at_least_zero(var: IntVar) -> usize {
    usize::try_from(var.get()).unwrap_or(0)
}
