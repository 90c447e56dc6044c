// SPDX-License-Identifier: BSD-2-Clause
//! One request: what it owns while it lives, and how a worker performs it.

use super::lanes::Part;
use super::statistics::Record;
use crate::kern::cred::Cred;
use crate::kern::file::{Access, File, Kind, Transferred};
use crate::kern::kproc::Worker;
use crate::kern::limit::FileSize;
use crate::kern::proc::{WaitedProc, WriteSignal};
use crate::kern::uio::Buffer;
use crate::kern::user::{Opcode, UserPtr};
use crate::kern::vmspace::{self, Vmspace};
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
    /// aio_mlock(2).
    Lock,
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

    /// What an entry of a list asks for; `None` when nothing.
    pub fn listed(opcode: Opcode) -> Option<Operation> {
        match opcode {
            Opcode::Nop => None,
            Opcode::Read => Some(Operation::Read),
            Opcode::Write => Some(Operation::Write),
            Opcode::Readv => Some(Operation::Readv),
            Opcode::Writev => Some(Operation::Writev),
        }
    }

    /// Whether it moves data.
    pub fn transfers(self) -> bool {
        !self.syncs() && self != Operation::Lock
    }

    /// Whether it moves data from the process.
    pub fn writes(self) -> bool {
        matches!(self, Operation::Write | Operation::Writev)
    }

    /// Whether what is read after it may differ.
    pub fn changes(self) -> bool {
        self.writes() || self.syncs()
    }

    /// What the descriptor must allow; `None` when none is needed.
    pub fn access(self) -> Option<Access> {
        match self {
            Operation::Read | Operation::Readv => Some(Access::Pread),
            Operation::Write | Operation::Writev => Some(Access::Pwrite),
            Operation::Sync | Operation::DataSync => Some(Access::Fsync),
            Operation::Lock => None,
        }
    }
}

/// A request's resources. Dropping it may sleep, for the file.
pub struct Request {
    /// Present on a socket, or a pipe that is parked at. It goes before the file, which it needs.
    pub part: Option<Part>,
    /// Absent for aio_mlock(2).
    pub file: Option<File>,
    pub kind: Kind,
    pub cred: Cred,
    /// The submitter's address space, until a worker is in it.
    pub vm: Option<Vmspace>,
    pub action: Action,
    pub record: Record,
}

/// What a worker does.
pub enum Action {
    /// Moves data from the file; `offset` in bytes from its start, or where the file is.
    Read { buffer: Buffer, offset: Option<i64> },
    /// Moves data to the file, as far as the submitter's limit goes, if it has one.
    Write { buffer: Buffer, offset: Option<i64>, limit: Option<FileSize> },
    /// Moves data between a disk device and the process by way of the kernel, `chunk` bytes at a
    /// time.
    Bounce { buffer: Buffer, write: bool, offset: i64, chunk: usize },
    /// The device's driver does it.
    Driver,
    /// Has a disk device write out what it caches.
    Flush,
    /// Brings the file to stable storage.
    Sync { data_only: bool },
    /// Keeps pages of the process in memory.
    Lock { process: WaitedProc, base: UserPtr, len: usize },
}

/// A request's result, and the signal its process earned by it.
pub struct Performed {
    pub outcome: Outcome,
    pub signal: Option<WriteSignal>,
}

impl Request {
    /// Whether exit and exec wait for it while it runs: it needs the process itself, or its end is
    /// near, or its file cannot be closed without the process.
    pub fn is_awaited(&self) -> bool {
        matches!(self.kind, Kind::Local | Kind::Disk)
            || self.file.as_ref().is_some_and(File::is_kqueue)
    }

    /// Does it, as a worker in the submitter's address space. Sleeps.
    ///
    /// Like the built-in: an interruption after progress is a short success; any other error
    /// forgets the progress; a broken pipe signals only after progress. Unlike it: the limit of a
    /// file's size is the submitter's.
    pub fn perform(&mut self, worker: &Worker) -> Performed {
        let td = worker.thread();
        let before = td.usage();
        let Request { file, cred, action, .. } = self;
        let nothing = |end| Transferred { moved: 0, end, reach: 0 };
        let done = cred.lend(worker, || match (&*file, &mut *action) {
            (_, Action::Lock { process, base, len }) => {
                nothing(vmspace::wire(worker, process, cred, *base, *len))
            }
            (Some(file), Action::Read { buffer, offset }) => {
                file.transfer(worker, buffer, false, *offset)
            }
            (Some(file), Action::Write { buffer, offset, limit: None }) => {
                file.transfer(worker, buffer, true, *offset)
            }
            (Some(file), Action::Write { buffer, offset, limit: Some(limit) }) => {
                limit.lend(worker, || file.transfer(worker, buffer, true, *offset))
            }
            (Some(file), Action::Sync { data_only }) => nothing(file.sync(worker, *data_only)),
            (Some(file), Action::Bounce { buffer, write, offset, chunk }) => {
                let (moved, end) = file.bounce(worker, buffer, *write, *offset, *chunk);
                Transferred { moved, end, reach: 0 }
            }
            (Some(file), Action::Flush) => nothing(file.flush(worker)),
            // No worker gets one.
            (Some(_), Action::Driver) => nothing(Err(Errno::ENXIO)),
            // Submission makes no such request.
            (None, _) => nothing(Err(Errno::EBADF)),
        });
        let Transferred { moved, end, reach } = done;
        let after = td.usage();
        let error = match end {
            Ok(()) => None,
            Err(Errno::ERESTART | Errno::EINTR | Errno::EAGAIN) if moved > 0 => None,
            // There is no call to restart.
            Err(Errno::ERESTART) => Some(Errno::EINTR),
            Err(error) => Some(error),
        };
        let signal = match (&self.action, error) {
            (Action::Write { .. }, Some(Errno::EPIPE)) if moved > 0 => {
                Some(WriteSignal::BrokenPipe)
            }
            (Action::Write { limit: Some(limit), .. }, Some(Errno::EFBIG))
                if limit.is_exceeded(reach) =>
            {
                Some(WriteSignal::FileSize)
            }
            _ => None,
        };
        Performed {
            signal,
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
