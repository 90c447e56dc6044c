// SPDX-License-Identifier: BSD-2-Clause
//! Has the reference model judge what AIO calls answer to programs, as they make them.
//!
//! It is on in every run, whichever engine answers, but where it could not know what a call was given
//! or said: with `--overlaps`, where threads change what others pass, and with calls that fail by plan,
//! among them stores to the program's memory.

mod model;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::*;
use crate::state::Held;
use crate::{file, proc, report, sched, vm};
use model::{Answer, Call, Kind, Model, Wanted};

static MODEL: Held<Option<Model>> = Held::new(None);
static ON: AtomicBool = AtomicBool::new(false);

/// Has calls judged from now on.
pub fn start() {
    MODEL.with(|model| *model = Some(Model::default()));
    ON.store(true, Ordering::Relaxed);
}

/// Requests that were followed, and answers that were judged.
pub fn totals() -> (u64, u64) {
    MODEL.with(|model| model.as_ref().map_or((0, 0), |model| (model.requests, model.judged)))
}

/// A process ends, or becomes another program.
pub fn gone(pid: i32) {
    with(|model| model.gone(pid));
}

/// Two processes have their descriptors together.
pub fn shares_files(pids: [i32; 2]) {
    with(|model| pids.into_iter().for_each(|pid| model.shares_files(pid)));
}

fn with(action: impl FnOnce(&mut Model)) {
    if ON.load(Ordering::Relaxed) {
        MODEL.with(|model| model.as_mut().map(action));
    }
}

/// What is to be looked at when a call ends.
pub struct Watched {
    number: u64,
    args: [u64; 8],
    call: Call,
    /// Where aio_waitcomplete(2) puts the aiocb's address, and what was there.
    place: Option<(u64, Option<u64>)>,
}

/// The current thread makes a system call; `None` if it does not matter.
pub fn begin(number: u64, args: &[u64; 8]) -> Option<Watched> {
    if !ON.load(Ordering::Relaxed) {
        return None;
    }
    let call = decoded(number, args)?;
    let place = (call == Call::WaitComplete).then(|| (args[0], vm::read(args[0]).ok()));
    let begun = call.clone();
    with(|model| model.begin(sched::current() as u64, proc::pid(), begun));
    Some(Watched { number, args: *args, call, place })
}

/// The call has ended.
pub fn end(watched: Watched, result: Result<u64, Errno>) {
    let answer = answered(&watched, result);
    let mut verdict = Ok(());
    with(|model| verdict = model.end(sched::current() as u64, &answer));
    if let Err(why) = verdict {
        let call = &watched.call;
        report::panic(&format!("the reference model: {why}; the call is {call:x?}: {answer:x?}"));
    }
}

fn answered(watched: &Watched, result: Result<u64, Errno>) -> Answer {
    let plain = match result {
        Ok(value) => Answer::Value(value as i64),
        Err(error) => Answer::Failed(error.0),
    };
    match (&watched.call, watched.place, result) {
        (Call::Kevent, _, Ok(count)) => Answer::Events(events(watched.args[3], count)),
        // Another thread has changed the aiocb, or the descriptor.
        (Call::Submit(_) | Call::List { .. }, ..)
            if decoded(watched.number, &watched.args).as_ref() != Some(&watched.call) =>
        {
            Answer::Changed
        }
        (Call::WaitComplete, Some((at, before)), _) => {
            let after: Option<u64> = vm::read(at).ok();
            match (result, after) {
                (Ok(value), Some(address)) => Answer::Collected(address, Ok(value as i64)),
                (Ok(_), None) => Answer::Unknown,
                (Err(error), Some(address)) if address != 0 && after != before => {
                    Answer::Collected(address, Err(error.0))
                }
                // Where nothing was stored the error is the call's own.
                (Err(ERESTART | EINTR | EAGAIN | ENOSYS), _) | (Err(_), Some(0)) => plain,
                (Err(_), Some(address)) => Answer::Perhaps(address),
                (Err(_), None) => Answer::Unknown,
            }
        }
        _ => plain,
    }
}

/// The aiocbs of EVFILT_AIO's events.
fn events(at: u64, count: u64) -> Vec<u64> {
    const SIZE: u64 = 64;
    const EVFILT_AIO: i16 = -3;
    (0..count)
        .filter_map(|index| {
            let at = at + index * SIZE;
            let filter: i16 = vm::read(at + 8).ok()?;
            (filter == EVFILT_AIO).then(|| vm::read(at).ok())?
        })
        .collect()
}

/// The open file of a descriptor, as a number; 0 for none.
fn file_of(fd: i32) -> usize {
    proc::with_files(|files| {
        let slot = usize::try_from(fd).ok().and_then(|fd| files.get(fd));
        slot.and_then(Option::as_ref).map_or(0, |its| its.fp as usize)
    })
}

fn is_disk(fd: i32) -> bool {
    let file = file_of(fd) as *mut crate::sys::file;
    !file.is_null() && file::disk_of(file).is_some()
}

/// The calls that concern requests.
fn decoded(number: u64, args: &[u64; 8]) -> Option<Call> {
    let one = |kind, address, whole| wanted(address, kind, whole).map(Call::Submit);
    Some(match number {
        255 => one(Kind::Read, args[0], true)?,
        256 => one(Kind::Write, args[0], true)?,
        // An old aiocb says less; so does a vector.
        318 | 579 => one(Kind::Read, args[0], false)?,
        319 | 578 => one(Kind::Write, args[0], false)?,
        465 => one(Kind::Sync, args[1], false)?,
        543 => one(Kind::Lock, args[0], false)?,
        257 | 320 => Call::List {
            waits: args[0] as i32 == 1,
            entries: addresses(args[1], args[2]).into_iter().filter_map(listed).collect(),
        },
        314 => Call::Return(args[0]),
        315 => Call::Suspend(addresses(args[0], args[1])),
        316 => {
            let fd = args[0] as i32;
            let address = (args[1] != 0).then_some(args[1]);
            Call::Cancel { fd, file: file_of(fd), address, disk: is_disk(fd) }
        }
        317 => Call::Error(args[0]),
        359 => Call::WaitComplete,
        560 => Call::Kevent,
        _ => return None,
    })
}

/// A list of aiocbs, as far as it can be read; one that is too long is no list.
fn addresses(at: u64, count: u64) -> Vec<u64> {
    let count = usize::try_from(count as i32).unwrap_or(0);
    if count > 65536 {
        return Vec::new();
    }
    let Ok(bytes) = vm::read_bytes(at, count * 8) else { return Vec::new() };
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight"))).collect()
}

/// What an aiocb asks for, of whose words only some are `whole`.
fn wanted(address: u64, kind: Kind, whole: bool) -> Option<Wanted> {
    let fd: i32 = vm::read(address).ok()?;
    let bytes = if whole { vm::read(address + 24).ok()? } else { u64::MAX };
    let file = if kind == Kind::Lock { 0 } else { file_of(fd) };
    Some(Wanted { address, kind, bytes, fd, file })
}

/// An entry of a list, by its opcode.
fn listed(address: u64) -> Option<Wanted> {
    const VECTORED: i32 = 4;
    let opcode: i32 = if address == 0 { return None } else { vm::read(address + 48).ok()? };
    let whole = opcode & VECTORED == 0;
    match opcode & 3 {
        1 => wanted(address, Kind::Write, whole),
        2 => wanted(address, Kind::Read, whole),
        _ => None,
    }
}
