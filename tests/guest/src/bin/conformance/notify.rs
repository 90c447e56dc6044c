// SPDX-License-Identifier: BSD-2-Clause
//! What cases about notification share: a signal that is held back and looked at, a kqueue, and
//! lists of requests.

use crate::harness::{Must, Op, Outcome, Stop, Test, accepted, fail, same};
use guest::aio::{self, Cb, Sigevent};
use guest::errno::{EAGAIN, EINPROGRESS};
use guest::kqueue::{self, EV_EOF, EVFILT_AIO, EVFILT_LIO, Kevent};
use guest::mem::Region;
use guest::signal::{self, SI_ASYNCIO, Set};
use guest::sys::{self, Timespec};

/// How long something that must come may take.
const PATIENCE: Timespec = Timespec::from_ms(60_000);
/// How long to look for what must not come, when it could still be on its way.
const A_WHILE: Timespec = Timespec::from_ms(150);

/// A signal that this thread holds back.
#[derive(Clone, Copy)]
pub struct Signal(pub i32);

impl Signal {
    /// Holds it back.
    pub fn new(signo: i32) -> Result<Self, Stop> {
        signal::block(Set::of(signo)).must("sigprocmask")?;
        Ok(Self(signo))
    }

    /// Takes one away that must be pending, or become so; the value that came with it.
    pub fn value(&self) -> Result<usize, Stop> {
        let info = signal::wait(Set::of(self.0), PATIENCE).must("wait for the signal")?;
        same((info.signo, info.code), (self.0, SI_ASYNCIO), "signal and code")?;
        Ok(info.value)
    }

    /// Takes one away that must have come with this value.
    pub fn expect(&self, value: usize) -> Outcome {
        same(self.value()?, value, "the signal's value")
    }

    /// Takes one away that must be pending, whatever sent it.
    pub fn take(&self) -> Outcome {
        signal::wait(Set::of(self.0), Timespec::default()).must("take the signal").map(|_| ())
    }

    /// None must be pending, nor come.
    pub fn none(&self) -> Outcome {
        match signal::wait(Set::of(self.0), A_WHILE) {
            Err(EAGAIN) => Ok(()),
            Ok(info) => fail(format_args!("a signal that must not be: {info:?}")),
            Err(error) => fail(format_args!("sigtimedwait: {error}")),
        }
    }

    /// Whether it is pending.
    pub fn pending(&self) -> Result<bool, Stop> {
        Ok(signal::pending().must("sigpending")?.has(self.0))
    }

    /// Waits until it is pending, and leaves it so.
    pub fn wait_pending(&self) -> Outcome {
        for _ in 0..30_000 {
            if self.pending()? {
                return Ok(());
            }
            guest::time::sleep_ms(2);
        }
        fail(format_args!("the signal is not pending after a minute"))
    }
}

/// A kqueue.
#[derive(Clone, Copy)]
pub struct Queue(pub i32);

impl Queue {
    /// Makes one.
    pub fn new() -> Result<Self, Stop> {
        Ok(Self(sys::kqueue().must("kqueue")?))
    }

    /// The next event, if one is there or comes in a time.
    pub fn next(&self, timeout: Timespec) -> Result<Option<Kevent>, Stop> {
        let mut events = [Kevent::default(); 1];
        let count = kqueue::kevent(self.0, &[], &mut events, Some(timeout)).must("kevent")?;
        Ok((count == 1).then_some(events[0]))
    }

    /// The next event, which must come.
    pub fn some(&self) -> Result<Kevent, Stop> {
        match self.next(PATIENCE)? {
            Some(event) => Ok(event),
            None => fail(format_args!("no event after a minute")),
        }
    }

    /// The next event must be that of a request: its data, and the flags asked for.
    pub fn expect(&self, cb: Cb, data: i64, udata: usize, flags: u16) -> Outcome {
        let wanted = Kevent {
            ident: cb.addr(),
            filter: EVFILT_AIO,
            flags: EV_EOF | flags,
            data,
            udata,
            ..Kevent::default()
        };
        same(self.some()?, wanted, "the request's event")
    }

    /// The next event must be that of a list.
    pub fn expect_list(&self, list: &List, udata: usize) -> Outcome {
        let wanted = Kevent { ident: list.addr(), filter: EVFILT_LIO, udata, ..Kevent::default() };
        same(self.some()?, wanted, "the list's event")
    }

    /// There must be no event now.
    pub fn empty(&self) -> Outcome {
        self.none_within(Timespec::default())
    }

    /// There must be no event, nor come one.
    pub fn none(&self) -> Outcome {
        self.none_within(A_WHILE)
    }

    fn none_within(&self, span: Timespec) -> Outcome {
        match self.next(span)? {
            None => Ok(()),
            Some(event) => fail(format_args!("an event that must not be: {event:?}")),
        }
    }

    /// Changes the event of a request.
    pub fn change(&self, cb: Cb, flags: u16) -> guest::Result<()> {
        kqueue::change(self.0, cb.addr(), EVFILT_AIO, flags)
    }
}

/// A list of requests in the test's memory.
#[derive(Clone, Copy)]
pub struct List {
    memory: Region,
    count: usize,
}

impl List {
    /// Its address.
    pub fn addr(&self) -> usize {
        self.memory.addr()
    }

    /// Puts another block in an entry.
    pub fn replace(&self, index: usize, cb: Cb) {
        self.memory.put(index * size_of::<usize>(), cb.addr());
    }

    fn entry(&self, index: usize) -> usize {
        self.memory.get::<usize>(index * size_of::<usize>())
    }

    /// Submits it. What was accepted is counted.
    pub fn submit(&self, mode: i32, sig: usize) -> guest::Result<()> {
        let result = aio::listio(mode, self.addr(), self.count as i32, sig);
        for index in 0..self.count {
            let addr = self.entry(index);
            if addr == 0 {
                continue;
            }
            let cb = Cb::at(&Region::shared_at(addr, aio::SIZE), 0);
            if cb.get().opcode != aio::LIO_NOP && cb.error() == i64::from(EINPROGRESS.0) {
                accepted();
            }
        }
        result
    }

    /// Submits it without a look at the entries, which may not be readable.
    pub fn submit_unread(&self, mode: i32) -> guest::Result<()> {
        aio::listio(mode, self.addr(), self.count as i32, 0)
    }

    /// Submits it, to be told in a certain way when all is done.
    pub fn submit_with(&self, test: &Test, sig: Sigevent) -> guest::Result<()> {
        let at = test.sigevent(sig);
        self.submit(aio::LIO_NOWAIT, at)
    }
}

impl Test {
    /// A notification in memory.
    pub fn sigevent(&self, sig: Sigevent) -> usize {
        let memory = self.buffer(size_of::<Sigevent>());
        memory.put(0, sig);
        memory.addr()
    }

    /// A list of blocks, by address; 0 is an empty entry.
    pub fn list_of(&self, entries: &[usize]) -> List {
        let memory = self.buffer(entries.len().max(1) * size_of::<usize>());
        for (index, &entry) in entries.iter().enumerate() {
            memory.put(index * size_of::<usize>(), entry);
        }
        List { memory, count: entries.len() }
    }

    /// A list of blocks.
    pub fn list<const N: usize>(&self, blocks: [Cb; N]) -> List {
        self.list_of(&blocks.map(|cb| cb.addr()))
    }

    /// A block of a list, with its operation in it.
    pub fn entry(&self, op: Op, fd: i32, offset: i64, buffer: &Region) -> Cb {
        let cb = self.request(op, fd, offset, buffer);
        self.edit(cb, |block| block.opcode = op.opcode());
        cb
    }

    /// Changes fields of a block.
    pub fn edit(&self, cb: Cb, change: impl FnOnce(&mut aio::Aiocb)) {
        let mut block = cb.get();
        change(&mut block);
        cb.set(block);
    }

    /// A request that tells of its end.
    pub fn notified(&self, op: Op, fd: i32, buffer: &Region, sig: Sigevent) -> Cb {
        let cb = self.entry(op, fd, 0, buffer);
        self.edit(cb, |block| block.sigevent = sig);
        cb
    }
}
