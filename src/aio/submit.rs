// SPDX-License-Identifier: BSD-2-Clause
//! Submission: aio_read(2), aio_write(2), aio_readv(2), aio_writev(2), aio_fsync(2), aio_mlock(2),
//! and each entry of lio_listio(2).
//!
//! The order of checks is the built-in's, because programs see it. Deliberate differences: the
//! limits are checked a second time where they are taken, so that threads racing for the last place
//! do not overshoot.
//!
//! A request is checked ([`Engine::check`]) before it is known whose the process is, made with all
//! it needs once the process is ours ([`Engine::prepare`]), and queued ([`Engine::enqueue`]). A read
//! that need not wait is performed instead ([`Engine::read_resident`]) and enters the table done.
//!
//! What is checked and what is made stay where the caller has them: they are too large to be moved
//! from step to step.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::slice;

use super::disk::{Flight, Runway, Way};
use super::engine::{Engine, Served, Who};
use super::lanes::{Arrival, Refused};
use super::notify::Notice;
use super::process::{Inner, Process};
use super::request::{Action, Operation, Request};
use super::socket::Turn;
use super::statistics::Took;
use crate::kern::bio::Batch;
use crate::kern::cred::Cred;
use crate::kern::file::{Access, File, Kind};
use crate::kern::knote::About;
use crate::kern::limit::FileSize;
use crate::kern::proc::{Curthread, WaitedProc};
use crate::kern::sleep;
use crate::kern::socket::Direction;
use crate::kern::uio::Buffer;
use crate::kern::user::{Aiocb, Notify, UserAiocb};
use crate::kern::vmspace::Vmspace;
use crate::model::Errno;
use crate::model::slab::Id;
use crate::model::table::{Outcome, Room, Submission};

/// A request in which nothing is wrong so far, before anything was made for it.
pub(super) struct Checked {
    user: UserAiocb,
    aiocb: Aiocb,
    operation: Operation,
    file: Option<File>,
    kind: Kind,
    /// The buffer's elements, of a vectored operation.
    vector: Option<Buffer>,
    notify: Notify,
    /// The file's own offset is to be used, as by read(2).
    at_file_offset: bool,
}

impl Checked {
    fn submission(&self) -> Submission {
        Submission {
            address: self.user.address(),
            fd: self.aiocb.fd,
            file: self.file.as_ref().map_or(0, File::id),
            syncs: self.operation.syncs(),
            awaited: true,
            changes: 0,
        }
    }

    /// What about it this engine cannot do yet.
    pub(super) fn unserved(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Queues => Some("a file type with queues of its own"),
            _ => None,
        }
    }
}

/// A request that is ready to be queued.
pub(super) struct Prepared {
    user: UserAiocb,
    submission: Submission,
    stage: Stage,
    notice: Option<Notice>,
}

impl Prepared {
    fn needs_worker(&self) -> bool {
        matches!(self.stage, Stage::Plain(Plain::ToDo(_)) | Stage::Lane(_))
    }
}

/// How far a request is when it is queued.
enum Stage {
    /// A place in the table is all it needs to be queued.
    Plain(Plain),
    /// It is to wait for its socket or pipe.
    Lane(Box<Request>),
}

/// See [`Stage::Plain`].
enum Plain {
    /// A worker is to perform it.
    ToDo(Box<Request>),
    /// The submitter has read so many bytes.
    Read(usize, Took),
    /// A disk's driver is to perform it.
    Fly(Box<Batch<Flight>>),
}

/// What is to be done, as far as the call says.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    This(Operation),
    /// Whatever the aiocb's opcode says.
    Listed,
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
            // Whether it retires is asked where the request is queued.
            Who::Ours(process) => Some(process),
            Who::Nobody => None,
        };
        user.store_initial();
        let mut slot = None;
        let checked =
            self.check(td, process.as_deref(), user, Wanted::This(operation), 0, &mut slot);
        let unserved = slot.as_ref().and_then(Checked::unserved);
        let process = match (process, unserved) {
            (Some(process), _) => process,
            (None, Some(_)) => match self.disclaim(td) {
                None => return Ok(Served::Pass),
                Some(process) => process,
            },
            (None, None) => match self.claim(td) {
                None => return Ok(Served::Pass),
                Some(process) => process,
            },
        };
        match (checked, unserved) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(what)) => self.unserved(td, &process, what),
            (Ok(()), None) => self.begin(td, &process, &mut slot),
        }
        .inspect_err(|error| {
            self.statistics.refused(*error);
            user.store_error(i64::from(error.code()));
        })
    }

    /// Performs or queues the checked request of a call of its own; takes it out of `slot`.
    fn begin(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        slot: &mut Option<Checked>,
    ) -> Result<Served, Errno> {
        // No call of its own is LIO_NOP.
        let checked = slot.as_mut().ok_or(Errno::EINVAL)?;
        let mut one = None;
        self.prepare(td, process, checked, &mut one)?;
        *slot = None;
        if let Some(Prepared { stage: Stage::Plain(_), .. }) = &one
            && let Some(Prepared { submission, stage: Stage::Plain(plain), notice, .. }) =
                one.take()
        {
            return self.enqueue_plain(td, process, submission, plain, notice);
        }
        let mut result = Ok(());
        let mut refuse = |_, error| result = Err(error);
        let one = slice::from_mut(&mut one);
        let queued = self.enqueue(td, process, None, true, one, &mut refuse);
        result?;
        if queued == Served::Here {
            td.set_retval(0);
        }
        Ok(queued)
    }

    /// Checks a request in the order users know; `more` requests are about to be queued before it.
    /// The result is put into `slot`, which stays empty when it asks for nothing (LIO_NOP).
    pub(super) fn check(
        &self,
        td: Curthread,
        process: Option<&Arc<Process>>,
        user: UserAiocb,
        wanted: Wanted,
        more: usize,
        slot: &mut Option<Checked>,
    ) -> Result<(), Errno> {
        let count = process.map_or(0, |process| process.glance.count());
        let all = usize::try_from(self.config.num_queue_count.get()).unwrap_or(0);
        if all + more >= usize::try_from(self.config.queue_max()).unwrap_or(0)
            || count + more >= self.config.queue_per_process_max()
        {
            return Err(Errno::EAGAIN);
        }
        let aiocb = user.copyin()?;
        let vectored = match wanted {
            Wanted::This(operation) => operation.is_vectored(),
            // The array is read by the opcode's bit, before the opcode is looked at.
            Wanted::Listed => aiocb.is_opcode_vectored(),
        };
        let vector = if vectored {
            Some(Buffer::copyinuio(user.abi(), aiocb.buffer, aiocb.iovcnt())?)
        } else {
            None
        };
        let sigevent = aiocb.sigevent?;
        if aiocb.nbytes > crate::kern::uio::iosize_max() {
            return Err(Errno::EINVAL);
        }
        let notify = sigevent.check()?;
        let operation = match wanted {
            Wanted::This(operation) => Some(operation),
            Wanted::Listed => Operation::listed(aiocb.listed()?),
        };
        let file = check_file(td, &aiocb, operation)?;
        user.store_kernelinfo(self.next_number())?;
        let Some(operation) = operation else { return Ok(()) };
        if let Notify::Kevent(event) = &notify {
            event.check_flags()?;
        }
        let kind = file.as_ref().map_or(Kind::Local, File::kind);
        let at_file_offset = matches!(wanted, Wanted::Listed) && aiocb.is_at_file_offset();
        *slot =
            Some(Checked { user, aiocb, operation, file, kind, vector, notify, at_file_offset });
        Ok(())
    }

    /// Reads at once what needs no waiting; `None` when it does.
    fn read_resident(
        &self,
        td: Curthread,
        process: &Process,
        checked: &Checked,
    ) -> Option<(usize, Took)> {
        if checked.operation != Operation::Read
            || checked.kind != Kind::Local
            || checked.at_file_offset
            || !self.config.completes_inline()
        {
            return None;
        }
        let file = checked.file.as_ref()?;
        if process.glance.any_change(file.vnode_id()) {
            return None;
        }
        let Aiocb { buffer, nbytes, offset, .. } = checked.aiocb;
        let since = self.statistics.now();
        let bytes = file.read_resident(td, buffer, nbytes, offset)?;
        Some((bytes, self.statistics.took(since)))
    }

    /// Makes a checked request ready to be queued, in `slot`: performed, if that needs no waiting.
    /// Takes out of `checked` what the request is to own. Sleeps.
    ///
    /// # Errors
    /// As [`Engine::make`]; EBADF, ENOTCAPABLE: the kqueue.
    pub(super) fn prepare(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        checked: &mut Checked,
        slot: &mut Option<Prepared>,
    ) -> Result<(), Errno> {
        let user = checked.user;
        let notice = Notice::prepare(td, process, About::Request, user.address(), &checked.notify)?;
        let mut submission = checked.submission();
        let stage = match self.read_resident(td, process, checked) {
            Some((bytes, took)) => Stage::Plain(Plain::Read(bytes, took)),
            None => self.make(td, process, checked, &mut submission)?,
        };
        user.store_error(i64::from(Errno::EINPROGRESS.code()));
        *slot = Some(Prepared { user, submission, stage, notice });
        Ok(())
    }

    /// Whether a request of a file that may block for ever is to wait for it without a worker.
    fn parks(&self, file: &File, kind: Kind, operation: Operation) -> bool {
        kind == Kind::Unsafe && operation.transfers() && self.config.parks() && file.is_pipe()
    }

    /// Takes all a request needs: file, credential, address space, a disk's bios. Sleeps.
    ///
    /// # Errors
    /// EOPNOTSUPP: I/O on the file may take for ever, or the request is not for the device. EPERM: a
    /// flush of a device that is not open for writing. EFAULT, EAGAIN, ENXIO: a disk request's
    /// buffer, the limits of buffers, the device is gone.
    // Out of line, or its frame would be the queueing's too.
    #[inline(never)]
    fn make(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        checked: &mut Checked,
        submission: &mut Submission,
    ) -> Result<Stage, Errno> {
        let Checked { user, aiocb, operation, file, kind, vector, at_file_offset, .. } = checked;
        let operation = *operation;
        let kind = match &*file {
            Some(file) if self.parks(file, *kind, operation) => Kind::Pipe,
            _ => *kind,
        };
        let (base, len) = (aiocb.buffer, aiocb.nbytes);
        let offset = (!*at_file_offset).then_some(aiocb.offset);
        let buffer = vector.take().unwrap_or(Buffer::One { base, len });
        // There is nothing to wait for with none.
        let empty = buffer.len() == 0;
        let file = file.take();
        let way = match &file {
            Some(file) if kind == Kind::Disk => self.way(file, operation, offset, &buffer)?,
            _ => Way::Worker,
        };
        let endless = matches!(kind, Kind::Disk | Kind::Unsafe) && matches!(way, Way::Worker);
        if endless && !self.config.unsafe_enabled() {
            td.counted_warning(
                self.config.unsafe_warningcnt,
                c"is attempting to use unsafe AIO requests",
            );
            return Err(Errno::EOPNOTSUPP);
        }
        let (action, cred) = (Action::Driver, Cred::of(td));
        let record = self.statistics.record(user.address(), aiocb.fd, operation, kind);
        let mut request =
            Box::new(Request { part: None, file, kind, cred, vm: None, action, record });
        submission.awaited = request.is_awaited();
        Ok(match way {
            Way::Direct(route) => {
                let offset = aiocb.offset;
                let flight = self.board(td, process, route, operation, offset, &buffer, request)?;
                Stage::Plain(Plain::Fly(flight))
            }
            way => {
                if operation.changes() {
                    submission.changes = request.file.as_ref().map_or(0, File::vnode_id);
                }
                request.action = match (operation, way) {
                    (_, Way::Bounce { chunk }) => {
                        let write = operation.writes();
                        Action::Bounce { buffer, write, offset: aiocb.offset, chunk }
                    }
                    (_, Way::Flush) => Action::Flush,
                    (Operation::Read | Operation::Readv, _) => Action::Read { buffer, offset },
                    (Operation::Write | Operation::Writev, _) => {
                        Action::Write { buffer, offset, limit: FileSize::of(td) }
                    }
                    (Operation::Sync, _) => Action::Sync { data_only: false },
                    (Operation::DataSync, _) => Action::Sync { data_only: true },
                    (Operation::Lock, _) => Action::Lock { process: WaitedProc::of(td), base, len },
                };
                request.vm = (!operation.syncs()).then(|| Vmspace::of(td));
                if (kind == Kind::Socket || kind == Kind::Pipe && !empty)
                    && let Some(file) = &request.file
                {
                    let direction =
                        if operation.writes() { Direction::Send } else { Direction::Receive };
                    request.part = self.part(file, kind, direction);
                }
                match request.part {
                    Some(_) => Stage::Lane(request),
                    None => Stage::Plain(Plain::ToDo(request)),
                }
            }
        })
    }

    /// As [`Engine::enqueue`], of one request of a call of its own that needs no lane: most are such.
    #[inline(never)]
    fn enqueue_plain(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        submission: Submission,
        plain: Plain,
        notice: Option<Notice>,
    ) -> Result<Served, Errno> {
        let works = matches!(plain, Plain::ToDo(_));
        if works {
            self.pool.ensure_worker()?;
        }
        let mut inner = process.lock_with_room(Room::Request);
        if self.is_retired(td, &mut inner) {
            return Ok(Served::Pass);
        }
        self.admit(&inner)?;
        let flight = self.place(&mut inner, &submission, plain, notice, None);
        inner.accepted = true;
        let kick = self.pool.schedule(&self.config, process, &mut inner);
        process.unlock_and_wake(inner);
        kick.deliver();
        self.statistics.depth(self.config.num_queue_count.get());
        if let Some(flight) = flight {
            self.launch(flight);
        }
        if works && self.pool.is_empty() {
            self.restart_workers();
        }
        td.set_retval(0);
        Ok(Served::Here)
    }

    /// Counts a request that is about to be queued.
    ///
    /// # Errors
    /// EAGAIN: a limit.
    #[inline]
    fn admit(&self, inner: &Inner) -> Result<(), Errno> {
        let config = &self.config;
        if inner.table.count() >= config.queue_per_process_max()
            || !config.num_queue_count.increment_below(config.queue_max())
        {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Puts a counted request into the table. Returns what is to be launched once no lock is held.
    #[inline(always)]
    fn place(
        &self,
        inner: &mut Inner,
        submission: &Submission,
        plain: Plain,
        notice: Option<Notice>,
        group: Option<Id>,
    ) -> Option<Box<Batch<Flight>>> {
        let (table, tell) = inner.parts();
        match plain {
            Plain::ToDo(request) => {
                self.statistics.queued(&request);
                table.submit(submission, request, notice, group);
            }
            Plain::Read(read, took) => {
                self.statistics.inline(submission, read, took);
                let told = |notice: &mut Notice, news| tell.tell(notice, news);
                table.submit_done(submission, Outcome::read(read), notice, group, told);
            }
            Plain::Fly(mut flight) => {
                self.statistics.queued(flight.owner.request());
                flight.owner.enter(table.submit_running(submission, notice, group));
                inner.flights += 1;
                return Some(flight);
            }
        }
        None
    }

    /// After an unload that failed took the workers away from requests that were queued meanwhile:
    /// these stay whatever comes of this; the manager goes on trying.
    #[cold]
    fn restart_workers(&self) {
        let _ = self.pool.ensure_worker();
    }

    /// Makes the requests of `items` the process's own, from the first to the last; each is taken out
    /// of its place. `refuse`, which is called without a lock, learns of each that found no place.
    ///
    /// [`Served::Pass`], and only with `may_pass`: nothing was queued, and the process has become the
    /// built-in's.
    #[inline(never)]
    pub(super) fn enqueue(
        &self,
        td: Curthread,
        process: &Arc<Process>,
        group: Option<Id>,
        may_pass: bool,
        items: &mut [Option<Prepared>],
        refuse: &mut dyn FnMut(UserAiocb, Errno),
    ) -> Served {
        // How often to look again for the end of the built-in's work on a socket both use.
        let mut patience = 1000u32;
        let mut taken = Taken::default();
        while let Some(first) = items.get(taken.count) {
            if !taken.worker && first.as_ref().is_some_and(Prepared::needs_worker) {
                if let Err(error) = self.pool.ensure_worker() {
                    refuse_all(&mut items[taken.count..], refuse, error);
                    break;
                }
                taken.worker = true;
            }
            let mut inner = process.lock_with_room(Room::Request);
            if self.is_retired(td, &mut inner) {
                drop(inner);
                if may_pass && !taken.accepted {
                    return Served::Pass;
                }
                // The first were served here, and so the call is.
                refuse_all(&mut items[taken.count..], refuse, Errno::EAGAIN);
                break;
            }
            let stopped = self.take(process, &mut inner, group, items, &mut taken);
            let kick = self.pool.schedule(&self.config, process, &mut inner);
            process.unlock_and_wake(inner);
            kick.deliver();
            self.statistics.depth(self.config.num_queue_count.get());
            taken.runway.launch(self);
            if let Some(turn) = taken.turn.take() {
                self.run_turn(td, turn);
            }
            let refused = match stopped {
                Stopped::Lock => None,
                Stopped::Busy if patience > 0 => {
                    patience -= 1;
                    sleep::pause(c"aiosobu");
                    None
                }
                Stopped::Busy => Some(Errno::EAGAIN),
                Stopped::Refused(error) => Some(error),
            };
            if let Some(error) = refused {
                refuse_all(&mut items[taken.count..=taken.count], refuse, error);
                taken.count += 1;
            }
        }
        if taken.worker && self.pool.is_empty() {
            self.restart_workers();
        }
        Served::Here
    }
}

/// How far the queueing of requests is.
#[derive(Default)]
struct Taken {
    /// There is a worker for requests that need one.
    worker: bool,
    /// How many have been taken or refused.
    count: usize,
    /// Whether the table took one.
    accepted: bool,
    /// Those that are to be launched without the lock.
    runway: Runway,
    /// What is to be tried without the lock.
    turn: Option<Turn>,
}

/// Why no more requests were taken under one lock.
enum Stopped {
    /// There is none, or what the next needs is done without the lock.
    Lock,
    /// The next has no place.
    Refused(Errno),
    /// The next is for a socket the built-in serves at this moment.
    Busy,
}

impl Engine {
    /// Puts requests into the process's table until one cannot be, or there is none, or something is
    /// to be done without the lock.
    fn take(
        &self,
        process: &Arc<Process>,
        inner: &mut Inner,
        group: Option<Id>,
        items: &mut [Option<Prepared>],
        taken: &mut Taken,
    ) -> Stopped {
        while let Some(item) = items.get_mut(taken.count) {
            let lacks_worker = !taken.worker && item.as_ref().is_some_and(Prepared::needs_worker);
            if lacks_worker
                || taken.turn.is_some()
                || taken.runway.is_full()
                || !inner.table.has_room(Room::Request)
            {
                return Stopped::Lock;
            }
            if let Err(error) = self.admit(inner) {
                return Stopped::Refused(error);
            }
            let Some(Prepared { user, submission, stage, notice }) = item.take() else {
                panic!("a request is queued twice")
            };
            match stage {
                Stage::Plain(plain) => {
                    let flight = self.place(inner, &submission, plain, notice, group);
                    if let Some(flight) = flight {
                        taken.runway.push(flight);
                    }
                }
                Stage::Lane(request) => {
                    let class = self.statistics.parking(&request);
                    let arrival = Arrival { submission, request, notice, group };
                    match self.park(process, &mut inner.table, arrival) {
                        Ok(None) => self.statistics.parked(class),
                        Ok(turn) => taken.turn = turn,
                        Err((why, arrival)) => {
                            self.config.num_queue_count.subtract(1);
                            let Arrival { submission, request, notice, .. } = arrival;
                            let stage = Stage::Lane(request);
                            *item = Some(Prepared { user, submission, stage, notice });
                            return match why {
                                Refused::Listening => Stopped::Refused(Errno::EINVAL),
                                Refused::Busy => Stopped::Busy,
                            };
                        }
                    }
                }
            }
            inner.accepted = true;
            taken.accepted = true;
            taken.count += 1;
        }
        Stopped::Lock
    }
}

/// Refuses all of `items`.
fn refuse_all(
    items: &mut [Option<Prepared>],
    refuse: &mut dyn FnMut(UserAiocb, Errno),
    error: Errno,
) {
    for prepared in items.iter_mut().filter_map(Option::take) {
        let user = prepared.user;
        drop(prepared);
        refuse(user, error);
    }
}

/// Looks the descriptor up and checks what depends on the file; LIO_NOP wants one that is open.
fn check_file(
    td: Curthread,
    aiocb: &Aiocb,
    operation: Option<Operation>,
) -> Result<Option<File>, Errno> {
    let access = match operation {
        None => Access::Any,
        Some(operation) => match operation.access() {
            None => return Ok(None),
            Some(access) => access,
        },
    };
    let file = File::get(td, aiocb.fd, access)?;
    if let Some(operation) = operation {
        if operation.syncs() && !file.has_vnode() {
            return Err(Errno::EINVAL);
        }
        if operation.transfers() && aiocb.offset < 0 && !file.is_character_device() {
            return Err(Errno::EINVAL);
        }
    }
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    Ok(Some(file))
}
