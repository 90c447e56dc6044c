// SPDX-License-Identifier: BSD-2-Clause
//! Submission: aio_read(2), aio_write(2), aio_readv(2), aio_writev(2), aio_fsync(2).
//!
//! The order of checks is the built-in's, because programs see it. Deliberate differences: the
//! limits are checked a second time where they are taken, so that threads racing for the last place
//! do not overshoot.

use alloc::sync::Arc;

use super::engine::{Engine, Served, Who};
use super::process::Process;
use super::request::{Action, Operation, Request};
use crate::kern::cred::Cred;
use crate::kern::file::{Access, File, Kind};
use crate::kern::proc::Curthread;
use crate::kern::uio::Buffer;
use crate::kern::user::{Aiocb, Notify, UserAiocb};
use crate::kern::vmspace::Vmspace;
use crate::model::Errno;
use crate::model::table::{Room, Submission};

/// A request that passed every check.
struct Prepared {
    submission: Submission,
    request: Request,
}

/// Why a request is not ours to queue.
enum Refusal {
    /// It is wrong, or there is no room.
    Error(Errno),
    /// Nothing is wrong with it, but this engine cannot do it yet.
    Unserved(&'static str),
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Refusal {
        Refusal::Error(error)
    }
}

impl Engine {
    /// Queues one request.
    ///
    /// # Context
    /// May sleep; no locks.
    ///
    /// # Errors
    /// EAGAIN: a limit, or no worker. EFAULT, EINVAL, EBADF, EOPNOTSUPP, ENOTCAPABLE as aio_read(2)
    /// says. The error is also stored in the aiocb.
    pub fn submit(
        &self,
        td: Curthread,
        user: UserAiocb,
        operation: Operation,
    ) -> Result<Served, Errno> {
        let process = match self.who(td) {
            Who::Builtin => return Ok(Served::Pass),
            Who::Ours(process) => {
                if self.is_retired(td, &mut process.lock()) {
                    return Ok(Served::Pass);
                }
                Some(process)
            }
            Who::Nobody => None,
        };
        user.store_initial();
        let prepared = self.prepare(td, process.as_deref(), user, operation);
        let process = match (process, &prepared) {
            (Some(process), _) => process,
            (None, Err(Refusal::Unserved(_))) => match self.disclaim(td) {
                None => return Ok(Served::Pass),
                Some(process) => process,
            },
            (None, _) => match self.claim(td) {
                None => return Ok(Served::Pass),
                Some(process) => process,
            },
        };
        match prepared {
            Ok(prepared) => self.enqueue(td, &process, user, prepared),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::Unserved(what)) => self.unserved(td, &process, what),
        }
        .inspect_err(|error| user.store_error(i64::from(error.code())))
    }

    /// Checks a request in the order users know.
    fn prepare(
        &self,
        td: Curthread,
        process: Option<&Arc<Process>>,
        user: UserAiocb,
        operation: Operation,
    ) -> Result<Prepared, Refusal> {
        let count = process.map_or(0, |process| process.lock().table.count());
        if self.config.num_queue_count.get() >= self.config.queue_max()
            || count >= self.config.queue_per_process_max()
        {
            return Err(Errno::EAGAIN.into());
        }
        let aiocb = user.copyin()?;
        let buffer = if operation.is_vectored() {
            Buffer::copyinuio(aiocb.buffer, aiocb.iovcnt())?
        } else {
            Buffer::One { base: aiocb.buffer, len: aiocb.nbytes }
        };
        if aiocb.nbytes > crate::kern::uio::iosize_max() {
            return Err(Errno::EINVAL.into());
        }
        let notify = aiocb.notify()?;
        let file = check_file(td, &aiocb, operation)?;
        user.store_kernelinfo(self.next_number())?;
        let unserved = match notify {
            Notify::None => None,
            Notify::Signal => Some("notification by signal"),
            Notify::Kevent => Some("notification by kevent"),
        };
        if let Some(what) = unserved {
            return Err(Refusal::Unserved(what));
        }
        let kind = file.kind();
        match kind {
            Kind::Local => {}
            Kind::Queues => return Err(Refusal::Unserved("a socket")),
            Kind::Disk if !operation.syncs() => return Err(Refusal::Unserved("a disk device")),
            Kind::Disk | Kind::Unsafe if self.config.unsafe_enabled() => {}
            Kind::Disk | Kind::Unsafe => {
                td.counted_warning(
                    self.config.unsafe_warningcnt,
                    c"is attempting to use unsafe AIO requests",
                );
                return Err(Errno::EOPNOTSUPP.into());
            }
        }
        let action = if operation.syncs() {
            Action::Sync { data_only: operation == Operation::DataSync }
        } else {
            let writes = operation.access() == Access::Pwrite;
            Action::Transfer { buffer, writes, offset: aiocb.offset }
        };
        let vm = (!operation.syncs()).then(|| Vmspace::of(td));
        let request = Request { file, kind, cred: Cred::of(td), vm, action };
        let submission = Submission {
            address: user.address(),
            fd: aiocb.fd,
            file: request.file.id(),
            syncs: operation.syncs(),
            awaited: request.is_awaited(),
        };
        Ok(Prepared { submission, request })
    }

    /// Makes a checked request one of the process's.
    fn enqueue(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        user: UserAiocb,
        prepared: Prepared,
    ) -> Result<Served, Errno> {
        let Prepared { submission, request } = prepared;
        self.pool.ensure_worker()?;
        user.store_error(i64::from(Errno::EINPROGRESS.code()));
        let queue_count = self.config.num_queue_count;
        if !queue_count.increment_below(self.config.queue_max()) {
            return Err(Errno::EAGAIN);
        }
        let mut inner = process.lock_with_room(Room::Request);
        let refused = if self.is_retired(td, &mut inner) {
            Some(Ok(Served::Pass))
        } else if inner.table.count() >= self.config.queue_per_process_max() {
            Some(Err(Errno::EAGAIN))
        } else {
            None
        };
        if let Some(result) = refused {
            drop(inner);
            queue_count.subtract(1);
            return result;
        }
        let garbage = inner.table.submit(submission, request);
        inner.accepted = true;
        let kick = self.pool.schedule(&self.config, process, &mut inner);
        drop(inner);
        kick.deliver();
        drop(garbage);
        if self.pool.is_empty() {
            // An unload that failed has taken the workers away after we looked. The request stays
            // whatever comes of this; the manager goes on trying.
            let _ = self.pool.ensure_worker();
        }
        td.set_retval(0);
        Ok(Served::Here)
    }
}

/// Looks the descriptor up and checks what depends on the file.
fn check_file(td: Curthread, aiocb: &Aiocb, operation: Operation) -> Result<File, Errno> {
    let file = File::get(td, aiocb.fd, operation.access())?;
    if operation.syncs() && !file.has_vnode() {
        return Err(Errno::EINVAL);
    }
    if !operation.syncs() && aiocb.offset < 0 && !file.is_character_device() {
        return Err(Errno::EINVAL);
    }
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    Ok(file)
}
