// SPDX-License-Identifier: BSD-2-Clause
//! Telling a process that a request or a list has finished: signals and kevents.
//!
//! Everything that can fail happens at submission: memory for the siginfo, the knote in its kqueue.
//! Telling happens under the process's mutex, in the context of the completion, and never sleeps.

use alloc::sync::Arc;

use super::process::Process;
use crate::kern::knote::{About, Event};
use crate::kern::probe::Probe;
use crate::kern::proc::{Curthread, LiveProc};
use crate::kern::signal::Signal;
use crate::kern::user::{KqueueEvent, Notify};
use crate::model::Errno;
use crate::model::table::News;

/// What tells an end. Dropping it takes an event or a signal that has not reached the process back,
/// and sleeps; once it has told, a thread of the process drops it.
pub enum Notice {
    Signal(Signal),
    Event(Event),
}

impl Notice {
    /// Prepares what `notify` asks for; `ident` names the request or list in a kevent. Sleeps.
    ///
    /// # Errors
    /// EBADF, ENOTCAPABLE, ENOMEM: the kqueue.
    #[inline]
    pub fn prepare(
        td: Curthread,
        process: &Arc<Process>,
        about: About,
        ident: u64,
        notify: &Notify,
    ) -> Result<Option<Notice>, Errno> {
        match notify {
            Notify::None => Ok(None),
            Notify::Signal(signal) => Ok(Some(Notice::Signal(Signal::new(signal, ident)))),
            Notify::Kevent(event) => Notice::register(td, process, about, ident, event),
        }
    }

    #[inline(never)]
    fn register(
        td: Curthread,
        process: &Arc<Process>,
        about: About,
        ident: u64,
        kevent: &KqueueEvent,
    ) -> Result<Option<Notice>, Errno> {
        let event = Event::register(td, process.mutex(), about, ident, kevent)?;
        Ok(Some(Notice::Event(event)))
    }
}

/// Tells ends, under the process's mutex.
pub struct Tell<'a>(Option<&'a LiveProc>);

impl<'a> Tell<'a> {
    /// For a live process; a process that exits or replaces its image is told nothing.
    pub fn new(live: Option<&'a LiveProc>) -> Tell<'a> {
        Tell(live)
    }

    /// Tells one.
    pub fn tell(&self, notice: &mut Notice, news: News) {
        let Some(live) = self.0 else { return };
        let (error, lasts) = match news {
            News::Request(error) => (error, true),
            News::Group { lasts } => (None, lasts),
        };
        if Probe::Notify.is_on() {
            let address = match notice {
                Notice::Signal(signal) => signal.about(),
                Notice::Event(event) => event.about(),
            };
            let error = error.map_or(0, Errno::code) as u64;
            Probe::Notify.fire([address, 0, 0, 0, error, 0]);
        }
        match notice {
            Notice::Signal(signal) => signal.send(live, lasts),
            Notice::Event(event) => event.tell(error),
        }
    }
}
