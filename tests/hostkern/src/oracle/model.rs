// SPDX-License-Identifier: BSD-2-Clause
//! The reference model: what a process knows of its requests, from the calls it has made.
//!
//! It sees when calls begin and end, and never looks inside. Of each request it keeps the span of time
//! in which it must have been accepted, must have ended, must have been collected; a call's answer
//! narrows them, and one that leaves no moment for it is wrong. Calls of several threads overlap, so
//! all spans go from one call's beginning to another's end.
//!
//! Where the history allows several explanations the model asks for nothing: an aiocb that is
//! submitted again before it was collected is out of its sight until the process is gone
//! (`blurred`), and a request that may or may not have been accepted (an entry of a list that
//! failed) need not be there (`sure`).

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

pub const EINVAL: i32 = 22;
pub const EAGAIN: i32 = 35;
pub const EINPROGRESS: i32 = 36;
pub const ENOSYS: i32 = 78;
pub const ECANCELED: i32 = 85;

/// What aio_cancel(2) returns.
pub const CANCELED: i64 = 1;
pub const NOTCANCELED: i64 = 2;
pub const ALLDONE: i64 = 3;

/// An address of an aiocb.
pub type Address = u64;
/// A moment: the number of a call's beginning or end.
type Time = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
    Lock,
}

/// A request that a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub address: Address,
    pub kind: Kind,
    /// What it moves at most.
    pub bytes: u64,
    pub fd: i32,
    /// Which open file that is, 0 if unknown.
    pub file: usize,
}

/// A call, as its arguments have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Submit(Wanted),
    List {
        waits: bool,
        entries: Vec<Wanted>,
    },
    Error(Address),
    Return(Address),
    WaitComplete,
    /// Of a disk's requests it always says that they cannot be cancelled.
    Cancel {
        fd: i32,
        file: usize,
        address: Option<Address>,
        disk: bool,
    },
    Suspend(Vec<Address>),
    Kevent,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(i64),
    Failed(i32),
    /// aio_waitcomplete(2) has collected a request: its result.
    Collected(Address, Result<i64, i32>),
    /// The same, or it has failed itself.
    Perhaps(Address),
    /// It may have collected one; nobody knows which.
    Unknown,
    /// What was asked for was changed while the call was on its way.
    Changed,
    /// kevent(2) has returned events of these.
    Events(Vec<Address>),
}

#[derive(Debug)]
struct Request {
    wanted: Wanted,
    /// The call that asks for it began then, and said yes then.
    asked: Time,
    accepted: Option<Time>,
    /// It was accepted, or will be.
    sure: bool,
    /// It was done at some moment before this one.
    done_before: Option<Time>,
    /// What its end was: 0 or an error number.
    outcome: Option<i32>,
    /// The call that collected it.
    collected: Option<(Time, Time)>,
    /// Somebody has asked for its cancellation.
    cancel: bool,
}

/// One of these was done before that moment.
struct Claim {
    time: Time,
    addresses: BTreeSet<Address>,
}

#[derive(Default)]
struct Process {
    requests: BTreeMap<Address, Request>,
    /// None of these is in `requests`.
    blurred: BTreeSet<Address>,
    claims: Vec<Claim>,
    /// Nothing is known of it any more.
    lost: bool,
    /// Events of others may come by it.
    shares: bool,
}

struct Begun {
    pid: i32,
    time: Time,
    call: Call,
}

/// See the file's text.
#[derive(Default)]
pub struct Model {
    clock: Time,
    processes: BTreeMap<i32, Process>,
    /// Calls that have not ended, by thread.
    begun: BTreeMap<u64, Begun>,
    /// Requests followed, and answers that were judged.
    pub requests: u64,
    pub judged: u64,
}

/// Why an answer is wrong.
pub type Verdict = Result<(), String>;

/// What a call that has ended saw, and when.
#[derive(Clone, Copy)]
struct Seen {
    begun: Time,
    ended: Time,
}

impl Request {
    fn new(wanted: Wanted, asked: Time) -> Request {
        Request {
            wanted,
            asked,
            accepted: None,
            sure: true,
            done_before: None,
            outcome: None,
            collected: None,
            cancel: false,
        }
    }

    fn name(&self) -> String {
        let Wanted { address, kind, fd, .. } = self.wanted;
        format!("{kind:?} of descriptor {fd}, aiocb {address:#x}")
    }

    /// It was there all the time a call took, unless somebody collected it meanwhile.
    fn is_present(&self, seen: Seen) -> bool {
        self.sure && self.accepted.is_some_and(|at| at <= seen.begun) && self.collected.is_none()
    }

    fn was_done_at(&self, time: Time) -> bool {
        self.done_before.is_some_and(|before| before <= time)
    }

    fn is_done(&mut self, seen: Seen, outcome: Option<i32>) -> Verdict {
        // Calls are judged in the order of their ends.
        self.done_before.get_or_insert(seen.ended);
        let Some(outcome) = outcome else { return Ok(()) };
        if outcome == ECANCELED && !self.cancel {
            return Err(format!("{} was cancelled, and nobody asked for it", self.name()));
        }
        match self.outcome {
            Some(before) if before != outcome => {
                Err(format!("{} ended with {before}, and then with {outcome}", self.name()))
            }
            _ => {
                self.outcome = Some(outcome);
                Ok(())
            }
        }
    }

    fn is_open(&self, seen: Seen) -> Verdict {
        if self.was_done_at(seen.begun) {
            return Err(format!("{} was done and is in progress again", self.name()));
        }
        Ok(())
    }

    fn is_collected(&mut self, seen: Seen, result: Result<i64, i32>) -> Verdict {
        let name = self.name();
        if self.collected.is_some() {
            return Err(format!("{name} was collected twice"));
        }
        self.is_done(seen, Some(result.err().unwrap_or(0)))?;
        self.collected = Some((seen.begun, seen.ended));
        let most = match self.wanted.kind {
            Kind::Read | Kind::Write => self.wanted.bytes,
            Kind::Sync | Kind::Lock => 0,
        };
        match result {
            Ok(bytes) if bytes < 0 || bytes as u64 > most => {
                Err(format!("{name} moved {bytes} bytes of {most}"))
            }
            _ => Ok(()),
        }
    }
}

impl Process {
    /// The request that a call may have seen under an address: nobody had collected it before.
    fn seen(&mut self, address: Address, seen: Seen) -> Option<&mut Request> {
        let request = self.requests.get_mut(&address)?;
        request.collected.is_none_or(|(_, ended)| ended > seen.begun).then_some(request)
    }

    /// The request that a call has asked for, unless it was collected and its aiocb used again since.
    fn asked(&mut self, address: Address, seen: Seen) -> Option<&mut Request> {
        self.requests.get_mut(&address).filter(|request| request.asked == seen.begun)
    }

    /// A cancellation begins, or goes on while requests are made.
    fn cancel(&mut self, fd: i32, file: usize, address: Option<Address>) {
        for request in self.requests.values_mut() {
            request.cancel |= covers(fd, file, address, &request.wanted);
        }
    }

    /// A request is done; a sync that came off has waited for what was before it.
    fn done(&mut self, address: Address, seen: Seen, outcome: Option<i32>) -> Verdict {
        let Some(request) = self.requests.get_mut(&address) else { return Ok(()) };
        request.is_done(seen, outcome)?;
        let Wanted { kind, file, .. } = request.wanted;
        let asked = request.asked;
        if kind != Kind::Sync || outcome != Some(0) || file == 0 {
            return Ok(());
        }
        for other in self.requests.values_mut() {
            let earlier = other.accepted.is_some_and(|at| at <= asked) && other.sure;
            let transfers = matches!(other.wanted.kind, Kind::Read | Kind::Write);
            if earlier && transfers && other.wanted.file == file {
                other.is_done(seen, None)?;
            }
        }
        Ok(())
    }

    /// A request is not done.
    fn open(&mut self, address: Address, seen: Seen) -> Verdict {
        let Some(request) = self.requests.get_mut(&address) else { return Ok(()) };
        request.is_open(seen)?;
        request.sure = true;
        for claim in &mut self.claims {
            if claim.time <= seen.begun
                && claim.addresses.remove(&address)
                && claim.addresses.is_empty()
            {
                return Err("aio_suspend returned, and all of its list were in progress".to_owned());
            }
        }
        Ok(())
    }

    fn collected(&mut self, address: Address, seen: Seen, result: Result<i64, i32>) -> Verdict {
        self.claims.retain(|claim| !claim.addresses.contains(&address));
        let Some(request) = self.requests.get_mut(&address) else { return Ok(()) };
        request.sure = true;
        request.is_collected(seen, result)?;
        self.done(address, seen, Some(result.err().unwrap_or(0)))
    }
}

impl Model {
    fn tick(&mut self) -> Time {
        self.clock += 1;
        self.clock
    }

    /// A thread of a process makes a call.
    pub fn begin(&mut self, thread: u64, pid: i32, call: Call) {
        let time = self.tick();
        let process = self.processes.entry(pid).or_default();
        match &call {
            Call::Submit(wanted) => self.requests += ask(process, *wanted, time),
            Call::List { entries, .. } => {
                for wanted in entries {
                    self.requests += ask(process, *wanted, time);
                }
            }
            Call::Cancel { fd, file, address, .. } => process.cancel(*fd, *file, *address),
            _ => {}
        }
        // Cancellations that run may reach what comes meanwhile.
        if matches!(call, Call::Submit(_) | Call::List { .. }) {
            for begun in self.begun.values().filter(|begun| begun.pid == pid) {
                if let Call::Cancel { fd, file, address, .. } = begun.call {
                    process.cancel(fd, file, address);
                }
            }
        }
        self.begun.insert(thread, Begun { pid, time, call });
    }

    /// The files of a process are another's too.
    pub fn shares_files(&mut self, pid: i32) {
        self.processes.entry(pid).or_default().shares = true;
    }

    /// A process has ended, or become another program.
    pub fn gone(&mut self, pid: i32) {
        self.processes.remove(&pid);
        self.begun.retain(|_, begun| begun.pid != pid);
    }

    /// A thread's call has ended.
    ///
    /// # Errors
    /// Why it cannot have ended so.
    pub fn end(&mut self, thread: u64, answer: &Answer) -> Verdict {
        let Some(Begun { pid, time, call }) = self.begun.remove(&thread) else { return Ok(()) };
        let seen = Seen { begun: time, ended: self.tick() };
        let others = self.begun.values().filter(|begun| begun.pid == pid);
        let others: Vec<&Call> = others.map(|begun| &begun.call).collect();
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        if process.lost || *answer == Answer::Failed(ENOSYS) {
            process.lost = true;
            return Ok(());
        }
        self.judged += 1;
        judge(process, seen, &call, answer, &others)
    }
}

/// Whether a cancellation may reach a request.
fn covers(fd: i32, file: usize, address: Option<Address>, wanted: &Wanted) -> bool {
    match address {
        Some(address) => wanted.address == address,
        None => wanted.fd == fd || wanted.file == file || file == 0 || wanted.file == 0,
    }
}

/// A call asks for a request: how many are followed.
fn ask(process: &mut Process, wanted: Wanted, time: Time) -> u64 {
    let address = wanted.address;
    if process.blurred.contains(&address) {
        return 0;
    }
    if process.requests.get(&address).is_some_and(|had| had.collected.is_none()) {
        process.blurred.insert(address);
        process.requests.remove(&address);
        return 0;
    }
    process.requests.insert(address, Request::new(wanted, time));
    1
}

fn judge(
    process: &mut Process,
    seen: Seen,
    call: &Call,
    answer: &Answer,
    others: &[&Call],
) -> Verdict {
    // Whether a call that has not ended may have collected a request.
    let collecting = |address: Address| {
        others.iter().any(|call| match call {
            Call::WaitComplete => true,
            Call::Return(other) => *other == address,
            _ => false,
        })
    };
    // Whether a call that says there is nothing has missed a request.
    let missed = |request: &&Request| {
        request.is_present(seen)
            && request.was_done_at(seen.begun)
            && !collecting(request.wanted.address)
    };
    match (call, answer) {
        (Call::Submit(wanted), Answer::Value(_)) => {
            if let Some(request) = process.asked(wanted.address, seen) {
                request.accepted = Some(seen.ended);
            }
            Ok(())
        }
        (Call::Submit(wanted), Answer::Failed(error)) => {
            let Some(request) = process.asked(wanted.address, seen) else { return Ok(()) };
            if request.collected.is_some() {
                return Err(format!("{} was refused ({error}), and collected", request.name()));
            }
            process.requests.remove(&wanted.address);
            Ok(())
        }
        (Call::Submit(wanted), Answer::Changed) => {
            if let Some(request) = process.asked(wanted.address, seen) {
                request.sure = false;
            }
            Ok(())
        }
        (Call::List { waits, entries }, answer) => {
            let ok = matches!(answer, Answer::Value(_));
            // EIO comes before EINTR, so it does not say that all have ended.
            for &Wanted { address, .. } in entries {
                let Some(request) = process.asked(address, seen) else { continue };
                request.accepted = Some(seen.ended);
                request.sure &= ok;
                if *waits && ok {
                    process.done(address, seen, None)?;
                }
            }
            Ok(())
        }
        (Call::Error(address), Answer::Value(value)) => {
            let Some(request) = process.seen(*address, seen) else { return Ok(()) };
            // What was submitted meanwhile may not have been there.
            if request.asked > seen.begun {
                return Ok(());
            }
            let (present, gone) = (request.is_present(seen), request.collected.is_some());
            match i32::try_from(*value).unwrap_or(-1) {
                // The words of an aiocb that is being collected still say so.
                EINPROGRESS if gone || collecting(*address) => Ok(()),
                EINPROGRESS => process.open(*address, seen),
                value if present && !collecting(*address) => {
                    process.done(*address, seen, Some(value))
                }
                _ => Ok(()),
            }
        }
        (Call::Return(address), Answer::Value(bytes)) => {
            if process.blurred.contains(address) {
                return Ok(());
            }
            if !process.requests.contains_key(address) {
                return Err(format!("aio_return({address:#x}) of what was never submitted"));
            }
            process.collected(*address, seen, Ok(*bytes))
        }
        (Call::Return(address), Answer::Failed(EINVAL)) => {
            let Some(request) = process.seen(*address, seen) else { return Ok(()) };
            if request.asked > seen.begun || request.collected.is_some() {
                return Ok(());
            }
            let done = request.was_done_at(seen.begun) && request.is_present(seen);
            match request.outcome {
                Some(EINVAL) => process.collected(*address, seen, Err(EINVAL)),
                _ if collecting(*address) => Ok(()),
                Some(_) if done => {
                    Err(format!("{} was done and cannot be collected", request.name()))
                }
                None if done => process.collected(*address, seen, Err(EINVAL)),
                // It runs, or it failed with EINVAL.
                _ => {
                    request.sure = false;
                    Ok(())
                }
            }
        }
        (Call::Return(address), Answer::Failed(error)) => {
            if process.blurred.contains(address) {
                return Ok(());
            }
            process.collected(*address, seen, Err(*error))
        }
        (Call::WaitComplete, Answer::Collected(address, result)) => {
            if process.blurred.contains(address) {
                return Ok(());
            }
            if !process.requests.contains_key(address) {
                return Err(format!("aio_waitcomplete gave {address:#x}, never submitted"));
            }
            process.collected(*address, seen, *result)
        }
        (Call::WaitComplete, Answer::Perhaps(address)) => {
            if let Some(request) = process.requests.get_mut(address) {
                request.sure = false;
            }
            Ok(())
        }
        (Call::WaitComplete, Answer::Unknown) => {
            process.lost = true;
            Ok(())
        }
        (Call::WaitComplete, Answer::Failed(EAGAIN)) => {
            process.requests.values().find(missed).map_or(Ok(()), |request| {
                Err(format!("aio_waitcomplete found nothing, and {} was done", request.name()))
            })
        }
        (Call::Cancel { fd, file, address: Some(address), disk }, Answer::Value(value)) => {
            let Some(request) = process.seen(*address, seen) else { return Ok(()) };
            if request.asked > seen.begun || !request.sure {
                return Ok(());
            }
            let gone = request.collected.is_some();
            let same = request.wanted.fd == *fd && request.wanted.file == *file;
            match *value {
                CANCELED => process.done(*address, seen, Some(ECANCELED)),
                NOTCANCELED if !gone && !disk => process.open(*address, seen),
                ALLDONE if same && request.is_present(seen) => process.done(*address, seen, None),
                _ => Ok(()),
            }
        }
        (Call::Cancel { address: None, fd, file, .. }, Answer::Value(ALLDONE)) => {
            let all = process.requests.values().filter(|request| {
                request.is_present(seen) && request.wanted.fd == *fd && request.wanted.file == *file
            });
            let all: Vec<Address> = all.map(|request| request.wanted.address).collect();
            for address in all {
                process.done(address, seen, None)?;
            }
            Ok(())
        }
        (Call::Suspend(list), Answer::Value(_)) => {
            let mut addresses = BTreeSet::new();
            for &address in list.iter().filter(|&&address| address != 0) {
                let request = process.requests.get(&address);
                if !request.is_some_and(|request| request.is_present(seen)) {
                    return Ok(());
                }
                addresses.insert(address);
            }
            match (addresses.len(), addresses.first().copied()) {
                (1, Some(only)) => process.done(only, seen, None),
                (0, _) => Ok(()),
                _ => {
                    process.claims.push(Claim { time: seen.ended, addresses });
                    Ok(())
                }
            }
        }
        (Call::Suspend(list), Answer::Failed(EAGAIN)) => {
            let mut listed = list.iter().filter_map(|address| process.requests.get(address));
            listed.find(missed).map_or(Ok(()), |request| {
                Err(format!("aio_suspend waited for {}, done before", request.name()))
            })
        }
        (Call::Kevent, Answer::Events(addresses)) if !process.shares => {
            for &address in addresses {
                let Some(request) = process.requests.get(&address) else { continue };
                match request.collected {
                    Some((_, ended)) if ended <= seen.begun && request.asked < seen.begun => {
                        return Err(format!("an event of {}, which was collected", request.name()));
                    }
                    None if request.asked < seen.begun => process.done(address, seen, None)?,
                    _ => {}
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
