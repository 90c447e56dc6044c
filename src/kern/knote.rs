// SPDX-License-Identifier: BSD-2-Clause
//! kqueue(9): events that tell the end of requests. What a knote reads lives here; the functions
//! that read it are the gate's.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ffi::c_int;
use core::ptr::NonNull;

use sys_bindings as sys;
use sys_bindings::gate::{NOTE_BUSY, NOTE_JOINED, NOTE_MARK, NOTE_NEW, Note};

use super::mtx::{Mutex, Raw};
use super::proc::{Curthread, curthread};
use super::user::KqueueEvent;
use crate::model::Errno;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// One request (EVFILT_AIO).
    Request,
    /// A list (EVFILT_LIO).
    List,
}

/// A request's or list's share of a knote.
///
/// Usually the only one. Requests that are alive at once with one aiocb and one kqueue share the
/// knote the kqueue has for that address, so that no event is lost. Dropping the last share removes
/// the knote; that sleeps.
pub struct Event {
    shared: NonNull<Shared>,
    told: bool,
}

#[repr(C)]
struct Shared {
    note: Note,
    /// The knotes' lock, which is somebody's mutex.
    lock: Arc<Raw>,
    ident: u64,
}

// SAFETY: the note is reached under its lock only.
unsafe impl Send for Event {}

/// How often a registration is tried that finds a knote about to go.
const TRIES: u32 = 200;

/// How long to wait in between: 5 ms.
const PAUSE: i64 = (1 << 32) / 200;

impl Event {
    /// Has a kqueue of the current process tell about the object `ident`. The knote uses `mutex` as
    /// its lock. Sleeps.
    ///
    /// # Errors
    /// EBADF: no kqueue. ENOTCAPABLE: the descriptor's rights. ENXIO: the filter is being exchanged
    /// this moment. ENOMEM. EAGAIN: another's knote for this address does not go.
    pub fn register<T>(
        td: Curthread,
        mutex: &Mutex<T>,
        about: About,
        ident: u64,
        to: &KqueueEvent,
    ) -> Result<Event, Errno> {
        for _ in 0..TRIES {
            let (event, state) = Event::try_register(td, mutex, about, ident, to)?;
            if state != NOTE_BUSY {
                return Ok(event);
            }
            drop(event);
            // SAFETY: may sleep.
            unsafe { sys::pause_sbt(c"aioknt".as_ptr(), PAUSE, 0, 0) };
        }
        Err(Errno::EAGAIN)
    }

    fn try_register<T>(
        td: Curthread,
        mutex: &Mutex<T>,
        about: About,
        ident: u64,
        to: &KqueueEvent,
    ) -> Result<(Event, u32), Errno> {
        let lock = mutex.raw().clone();
        let shared = Box::new(Shared {
            note: Note {
                // SAFETY: knlist_init_mtx fills it in below.
                list: unsafe { core::mem::zeroed() },
                state: NOTE_NEW,
                holders: 1,
                finished: 0,
                error: 0,
                joined: core::ptr::null_mut(),
            },
            lock,
            ident,
        });
        let shared = NonNull::from(Box::leak(shared));
        let event = Event { shared, told: false };
        let note = event.note();
        let filter = match about {
            About::Request => sys::EVFILT_AIO,
            About::List => sys::EVFILT_LIO,
        };
        // SAFETY: kevent is integers and pointers.
        let mut kev: sys::kevent = unsafe { core::mem::zeroed() };
        kev.ident = ident;
        kev.filter = filter as i16;
        kev.flags = (sys::EV_ADD | sys::EV_ENABLE | sys::EV_FLAG1) as u16 | to.flags;
        kev.fflags = NOTE_MARK;
        kev.data = note.expose_provenance() as i64;
        kev.udata = core::ptr::without_provenance_mut(to.udata as usize);
        // SAFETY: the note is ours alone until a knote has it; the knote's functions are the
        // gate's, which know what the mark says, and no lock is held.
        let code = unsafe {
            sys::knlist_init_mtx(&raw mut (*note).list, shared.as_ref().lock.as_ptr());
            sys::kqfd_register(to.kqueue, &mut kev, td.as_ptr(), sys::M_WAITOK as c_int)
        };
        Errno::check(code)?;
        // SAFETY: registration is over, and was this thread's.
        let (state, joined) = unsafe { ((*note).state, (*note).joined) };
        if state == NOTE_JOINED
            && let Some(joined) = NonNull::new(joined.cast::<Shared>())
        {
            // A note is the first part of what it was made in; one more holder was counted for us.
            drop(event);
            return Ok((Event { shared: joined, told: false }, state));
        }

        Ok((event, state))
    }

    fn note(&self) -> *mut Note {
        self.shared.as_ptr().cast()
    }

    /// What it is about, by its address in the process.
    pub fn about(&self) -> u64 {
        // SAFETY: a share keeps it, and the word does not change.
        unsafe { (*self.shared.as_ptr()).ident }
    }

    /// Tells that the request or list has finished. The caller holds the mutex it was registered
    /// with.
    pub fn tell(&mut self, error: Option<Errno>) {
        self.told = true;
        let note = self.note();
        // SAFETY: under the note's lock.
        unsafe {
            (*note).finished += 1;
            (*note).error = error.map_or(0, Errno::code);
            sys::knote(&raw mut (*note).list, 0, sys::KNF_LISTLOCKED as c_int);
        }
    }

    /// Lets go of a knote whose event is to reach the user although nothing will be left of what it
    /// was about; the event is then delivered once. Sleeps.
    pub fn leave_behind(self) {
        let note = self.note();
        let lock = self.lock();
        lock.lock();
        // SAFETY: under the note's lock, which is given up again. Without holders nobody joins it.
        let alone = unsafe {
            let alone = (*note).holders == 1;
            if alone {
                (*note).holders = 0;
            }
            lock.unlock();
            alone
        };
        if !alone {
            return;
        }
        let event = core::mem::ManuallyDrop::new(self);
        // SAFETY: nobody else holds the note; no lock is held. The knotes are taken off the list
        // and stay in their queue, and nothing of theirs leads here any more.
        unsafe {
            sys::knlist_cleardel(&raw mut (*note).list, curthread(), 0, 0);
            sys::knlist_destroy(&raw mut (*note).list);
            drop(Box::from_raw(event.shared.as_ptr()));
        }
    }

    fn lock(&self) -> Arc<Raw> {
        // SAFETY: the shared part lives as long as one of its holders.
        unsafe { self.shared.as_ref() }.lock.clone()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let note = self.note();
        let lock = self.lock();
        lock.lock();
        // SAFETY: under the note's lock, which is given up again.
        let last = unsafe {
            if self.told {
                (*note).finished -= 1;
            }
            (*note).holders -= 1;
            let last = (*note).holders == 0;
            lock.unlock();
            last
        };
        if !last {
            return;
        }
        // SAFETY: nobody else holds the note, and a registration that meets its knote leaves it
        // alone; no lock is held, and afterwards no knote has it.
        unsafe {
            sys::knlist_cleardel(&raw mut (*note).list, curthread(), 0, 1);
            sys::knlist_destroy(&raw mut (*note).list);
            drop(Box::from_raw(self.shared.as_ptr()));
        }
    }
}
