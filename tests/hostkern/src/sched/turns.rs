// SPDX-License-Identifier: BSD-2-Clause
//! Who goes on: as the strategy has it, or a list of decisions, or the ordinary course.

use std::sync::Arc;

use super::told::{FOLLOWED, STOPPED, WOKEN};
use super::{Host, Sched, State, Thread, Tid, Woken};
use crate::decisions::{Decision, Place, What};
use crate::probe;
use crate::state::Rng;
use crate::strategy::SLICE;

/// Why it is asked who goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The running thread may keep its turn.
    Point,
    /// It wants others to go on.
    Yield,
    /// It cannot go on.
    Gone,
}

impl Sched {
    pub(super) fn ready(&self) -> Vec<Tid> {
        let ready = |tid: &Tid| matches!(self.threads[*tid].state, State::Ready);
        (0..self.threads.len()).filter(ready).collect()
    }

    /// What is left to chance: the running thread's own, that another schedule changes nothing in it.
    pub(super) fn chance(&mut self) -> &mut Rng {
        match self.threads.get_mut(self.current) {
            Some(thread) => &mut thread.rng,
            None => &mut self.rng,
        }
    }

    pub(super) fn place(&self) -> Place {
        let me = &self.threads[self.current];
        Place { thread: me.id, point: me.point, turn: me.turn }
    }

    fn note_down(&mut self, what: What) {
        let at = self.place();
        if let Some(record) = &mut self.record {
            record.push(Decision { at, what });
        }
    }

    /// The slot of a thread that is ready.
    pub(super) fn ready_one(&self, id: u64) -> Option<Tid> {
        let is = |thread: &Thread| thread.id == id && matches!(thread.state, State::Ready);
        self.threads.iter().position(is)
    }

    /// Who goes on without a decision: the running thread as long as it may, then who has waited
    /// for longest.
    fn usual(&self, why: Why, ready: &[Tid]) -> Option<Tid> {
        let me = self.current;
        if why == Why::Point && self.calls - self.since < SLICE {
            return Some(me);
        }
        // One that slept may be the first to be ready again.
        let others = ready.iter().copied().filter(|&tid| why == Why::Gone || tid != me);
        let other = others.min_by_key(|&tid| (self.threads[tid].last, tid));
        other.or((why != Why::Gone).then_some(me))
    }

    /// Who goes on; `None` when nobody is ready.
    pub(super) fn decide(&mut self, why: Why) -> Option<Tid> {
        let (me, at) = (self.current, self.place());
        if self.awaited.take().is_some() {
            probe::withdraw_stops();
        }
        let ordinary = self.script.is_some() || self.deadline.is_some();
        // In the common case nobody is asked.
        let asked = why != Why::Point || !ordinary && self.strategy.passes(me);
        let mut ready = if asked { self.ready() } else { self.ready_if_late() };
        let listed = self.script.as_ref().and_then(|script| script.next(at));
        let next = if let Some(next) = listed.and_then(|id| self.ready_one(id)) {
            self.take_note(FOLLOWED, next as u64);
            next
        } else if ordinary || !asked {
            self.usual(why, &ready)?
        } else {
            if why == Why::Yield && ready.len() > 1 {
                ready.retain(|&tid| tid != me);
            }
            let usual = self.usual(why, &ready)?;
            if why == Why::Point && usual != me {
                self.strategy.lower(me);
                ready.retain(|&tid| tid != me);
            }
            let chosen = self.strategy.pick(&ready, (why != Why::Point).then_some(usual));
            if chosen != usual {
                self.note_down(What::To(self.threads[chosen].id));
            }
            chosen
        };
        self.threads[me].turn += 1;
        Some(next)
    }

    /// Those who are ready, if the running thread's time slice is over.
    fn ready_if_late(&self) -> Vec<Tid> {
        if self.calls - self.since < SLICE { Vec::new() } else { self.ready() }
    }

    /// Who goes on when the running thread is stopped between two instructions: `to`, or anybody.
    /// `None` when nobody else is ready.
    pub(super) fn decide_stop(&mut self, site: u64, to: Option<u64>) -> Option<Tid> {
        let me = self.current;
        let mut ready = self.ready();
        ready.retain(|&tid| tid != me);
        if ready.is_empty() || to.is_none() && self.deadline.is_some() {
            return None;
        }
        let listed = to.and_then(|id| self.ready_one(id)).filter(|&tid| tid != me);
        let next = match (listed, to) {
            (Some(next), _) => next,
            (None, Some(_)) => self.usual(Why::Yield, &ready)?,
            (None, None) => {
                self.strategy.lower(me);
                self.strategy.pick(&ready, None)
            }
        };
        if to.is_some() {
            self.take_note(STOPPED, site);
            self.take_note(FOLLOWED, next as u64);
        }
        self.note_down(What::Stop { site, to: self.threads[next].id });
        self.threads[me].turn += 1;
        Some(next)
    }

    /// Gives another thread the turn; its host.
    pub(super) fn give_turn(&mut self, next: Tid) -> Option<Arc<Host>> {
        let me = self.current;
        self.threads[me].last = self.switches;
        self.current = next;
        self.switches += 1;
        self.since = self.calls;
        self.threads[next].host.clone()
    }

    /// Now and then a sleep of the modules' returns without reason, as sleep(9) allows.
    pub(super) fn wake_without_reason(&mut self) {
        // Sleeps of ours have odd channels.
        let sleeps =
            |thread: &Thread| matches!(thread.state, State::Asleep { chan, .. } if chan & 1 == 0);
        let chosen = match &self.script {
            Some(script) => script.wake(self.place()).and_then(|id| {
                self.threads.iter().position(|thread| thread.id == id && sleeps(thread))
            }),
            None if self.deadline.is_some() => return,
            None => {
                let odds = self.spurious;
                if !self.strategy.rng().one_in(odds) {
                    return;
                }
                let sleepers: Vec<Tid> =
                    (0..self.threads.len()).filter(|&tid| sleeps(&self.threads[tid])).collect();
                (!sleepers.is_empty())
                    .then(|| sleepers[self.strategy.rng().below(sleepers.len() as u64) as usize])
            }
        };
        if let Some(tid) = chosen {
            self.note_down(What::Wake(self.threads[tid].id));
            if self.script.is_some() {
                self.take_note(WOKEN, tid as u64);
            }
            self.threads[tid].state = State::Ready;
            self.threads[tid].woken = Woken::Wakeup;
        }
    }

    /// Wakes whose time is up.
    pub(super) fn expire(&mut self) {
        let now = self.now;
        for thread in &mut self.threads {
            if let State::Asleep { until: Some(until), .. } = thread.state
                && until <= now
            {
                thread.state = State::Ready;
                thread.woken = Woken::Timeout;
            }
        }
        self.due = self.next_event().unwrap_or(i64::MAX);
    }

    /// When the next timeout is.
    pub(super) fn next_event(&self) -> Option<i64> {
        let sleepers = self.threads.iter().filter_map(|thread| match thread.state {
            State::Asleep { until, .. } => until,
            _ => None,
        });
        sleepers.chain(self.timers.first().map(|&(at, _)| at)).min()
    }
}
