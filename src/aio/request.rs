// SPDX-License-Identifier: BSD-2-Clause
//! One request: what it owns while it lives, and how a worker performs it.

use crate::kern::cred::Cred;
use crate::kern::file::{Access, File, Kind};
use crate::kern::kproc::Worker;
use crate::kern::uio::Buffer;
use crate::kern::vmspace::Vmspace;
use crate::model::Errno;
use crate::model::table::{Outcome, Usage};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Readv,
    Writev,
    /// aio_fsync(2) with O_SYNC: data and metadata.
    Sync,
    /// aio_fsync(2) with O_DSYNC: data, and what is needed to read it back.
    DataSync,
}

impl Operation {
    /// Whether the buffer is an array of iovecs.
    pub fn is_vectored(self) -> bool {
        matches!(self, Operation::Readv | Operation::Writev)
    }

    /// Whether it brings the file to stable storage, after all requests before it.
    pub fn syncs(self) -> bool {
        matches!(self, Operation::Sync | Operation::DataSync)
    }

    /// What the descriptor must allow.
    pub fn access(self) -> Access {
        match self {
            Operation::Read | Operation::Readv => Access::Pread,
            Operation::Write | Operation::Writev => Access::Pwrite,
            Operation::Sync | Operation::DataSync => Access::Fsync,
        }
    }
}

/// A request's resources. Dropping it may sleep, for the file.
pub struct Request {
    pub file: File,
    pub kind: Kind,
    pub cred: Cred,
    /// The submitter's address space, until a worker is in it.
    pub vm: Option<Vmspace>,
    pub action: Action,
}

/// What a worker does.
pub enum Action {
    /// Moves data; `offset` in bytes from the file's start.
    Transfer { buffer: Buffer, writes: bool, offset: i64 },
    /// Brings the file to stable storage.
    Sync { data_only: bool },
}

/// A transfer's result, and whether its process earned a SIGPIPE.
pub struct Performed {
    pub outcome: Outcome,
    pub broken_pipe: bool,
}

impl Request {
    /// Whether exit and exec wait for it while it runs: its end is near.
    pub fn is_awaited(&self) -> bool {
        self.kind == Kind::Local
    }

    /// Does it, as a worker in the submitter's address space. Sleeps.
    ///
    /// Like the built-in: an interruption after progress is a short success; any other error
    /// forgets the progress; a broken pipe signals only after progress.
    pub fn perform(&mut self, worker: &Worker) -> Performed {
        let td = worker.thread();
        let before = td.usage();
        let Request { file, cred, action, .. } = self;
        let (moved, end) = cred.lend(worker, || match action {
            Action::Transfer { buffer, writes, offset } => {
                file.transfer(worker, buffer, *writes, *offset)
            }
            Action::Sync { data_only } => (0, file.sync(worker, *data_only)),
        });
        let writes = matches!(self.action, Action::Transfer { writes: true, .. });
        let after = td.usage();
        let error = match end {
            Ok(()) => None,
            Err(Errno::ERESTART | Errno::EINTR | Errno::EAGAIN) if moved > 0 => None,
            // There is no call to restart.
            Err(Errno::ERESTART) => Some(Errno::EINTR),
            Err(error) => Some(error),
        };
        Performed {
            broken_pipe: error == Some(Errno::EPIPE) && moved > 0 && writes,
            outcome: Outcome {
                status: if error.is_some() { -1 } else { moved as i64 },
                error,
                usage: Usage {
                    inblock: after.inblock.wrapping_sub(before.inblock),
                    oublock: after.oublock.wrapping_sub(before.oublock),
                    msgsnd: after.msgsnd.wrapping_sub(before.msgsnd),
                    msgrcv: after.msgrcv.wrapping_sub(before.msgrcv),
                },
            },
        }
    }
}
