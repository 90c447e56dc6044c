// SPDX-License-Identifier: BSD-2-Clause
//! What the DTrace probes tell. Whoever fires one looks first whether somebody listens.

use super::request::{Action, Operation, Request};
use super::statistics::Record;
use crate::kern::clock::Moment;
use crate::kern::probe::Probe;
use crate::model::Errno;
use crate::model::table::{Outcome, Submission};

impl Record {
    /// The operation as <aio.h> has it.
    fn opcode(&self) -> u64 {
        opcode(self.operation)
    }

    /// Nanoseconds in the state that ends now; 0 while nobody measures.
    fn nanoseconds(&self) -> u64 {
        if self.since.is_some() { self.since.nanos_until(Moment::now()) } else { 0 }
    }

    /// The probe of a request's end.
    #[cold]
    #[inline(never)]
    pub fn tell_done(&self, outcome: &Outcome) {
        Probe::Done.fire([
            self.address,
            self.opcode(),
            self.fd as u64,
            outcome.status.cast_unsigned(),
            outcome.error.map_or(0, Errno::code) as u64,
            self.nanoseconds(),
        ]);
    }
}

impl Request {
    /// A probe that knows all about a request.
    #[cold]
    #[inline(never)]
    pub fn tell(&self, probe: Probe) {
        let (bytes, offset) = match &self.action {
            Action::Read { buffer, offset } | Action::Write { buffer, offset, .. } => {
                (buffer.len(), offset.unwrap_or(-1))
            }
            Action::Bounce { buffer, offset, .. } => (buffer.len(), *offset),
            // The driver has what it needs.
            Action::Driver => (0, -1),
            Action::Sync { .. } | Action::Flush => (0, 0),
            Action::Lock { len, .. } => (*len, 0),
        };
        let record = &self.record;
        probe.fire([
            record.address,
            record.opcode(),
            record.fd as u64,
            bytes as u64,
            offset.cast_unsigned(),
            record.nanoseconds(),
        ]);
    }
}

/// A thread's sleep for requests, for the probes: made when it begins, told when it ends.
pub struct Parked {
    address: u64,
    requests: u64,
    since: Moment,
}

impl Parked {
    /// The current thread is about to sleep for so many requests, of which it named one.
    pub fn new(address: u64, requests: usize) -> Parked {
        let requests = requests as u64;
        if Probe::Park.is_on() {
            Probe::Park.fire([address, 0, 0, requests, 0, 0]);
        }
        let since = if Probe::Wake.is_on() { Moment::now() } else { Moment::NONE };
        Parked { address, requests, since }
    }

    /// It is back.
    pub fn wake(&self, slept: &Result<(), Errno>) {
        if Probe::Wake.is_on() {
            let error = slept.err().map_or(0, Errno::code) as u64;
            let since = self.since;
            let slept = if since.is_some() { since.nanos_until(Moment::now()) } else { 0 };
            Probe::Wake.fire([self.address, 0, 0, self.requests, error, slept]);
        }
    }
}

/// An operation's number, as <aio.h> has it.
fn opcode(operation: Operation) -> u64 {
    match operation {
        Operation::Write => 0x01,
        Operation::Read => 0x02,
        Operation::Writev => 0x05,
        Operation::Readv => 0x06,
        Operation::Sync => 0x08,
        Operation::DataSync => 0x18,
        Operation::Lock => 0x20,
    }
}

/// The probe of the end of a read that its submitter performed.
#[cold]
#[inline(never)]
pub fn tell_inline(submission: &Submission, bytes: usize) {
    let opcode = opcode(Operation::Read);
    Probe::Done.fire([submission.address, opcode, submission.fd as u64, bytes as u64, 0, 0]);
}
