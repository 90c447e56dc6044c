// SPDX-License-Identifier: BSD-2-Clause
//! One request: what it owns while it lives, and how a worker performs it.

use crate::kern::cred::Cred;
use crate::kern::file::{File, Kind};
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
}

impl Operation {
    /// Whether data goes to the file.
    pub fn writes(self) -> bool {
        matches!(self, Operation::Write | Operation::Writev)
    }

    /// Whether the buffer is an array of iovecs.
    pub fn is_vectored(self) -> bool {
        matches!(self, Operation::Readv | Operation::Writev)
    }
}

/// A request's resources. Dropping it may sleep, for the file.
pub struct Request {
    pub file: File,
    pub kind: Kind,
    pub cred: Cred,
    /// The submitter's address space, until a worker is in it.
    pub vm: Option<Vmspace>,
    pub buffer: Buffer,
    pub writes: bool,
    /// Bytes from the file's start.
    pub offset: i64,
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

    /// Moves the data, as a worker in the submitter's address space. Sleeps.
    ///
    /// Like the built-in: an interruption after progress is a short success; any other error
    /// forgets the progress; a broken pipe signals only after progress.
    pub fn perform(&mut self, worker: &Worker) -> Performed {
        let td = worker.thread();
        let before = td.usage();
        let Request { file, cred, buffer, writes, offset, .. } = self;
        let (moved, end) = cred.lend(worker, || file.transfer(worker, buffer, *writes, *offset));
        let after = td.usage();
        let error = match end {
            Ok(()) => None,
            Err(Errno::ERESTART | Errno::EINTR | Errno::EAGAIN) if moved > 0 => None,
            // There is no call to restart.
            Err(Errno::ERESTART) => Some(Errno::EINTR),
            Err(error) => Some(error),
        };
        Performed {
            broken_pipe: error == Some(Errno::EPIPE) && moved > 0 && self.writes,
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
