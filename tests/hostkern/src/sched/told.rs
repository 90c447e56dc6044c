// SPDX-License-Identifier: BSD-2-Clause
//! What happened, for a report.

use std::collections::BTreeMap;

use super::{SCHED, SECOND, Sched, State};
use crate::{imports, module, sys};

/// A kernel call, its first argument, and what it returned if it is over; or a system call, or a
/// change of turn.
#[derive(Clone, Copy)]
pub(super) struct Event {
    at: i64,
    tid: usize,
    td: usize,
    name: &'static str,
    argument: u64,
    result: Option<u64>,
}

/// What a report says of a thread that was stopped between two instructions.
pub(super) const STOPPED: &str = "loses its turn at";
/// Who has the turn next, as a list of decisions has it.
pub(super) const FOLLOWED: &str = "is followed by";
/// Whose sleep ends without reason.
pub(super) const WOKEN: &str = "wakes without reason";

/// Remembers what happens, for a report.
pub fn note(name: &'static str, argument: u64, result: Option<u64>) {
    SCHED.with(|s| {
        if let (Some(calls), None) = (&mut s.by_name, result) {
            *calls.entry(name).or_default() += 1;
        }
        let tid = s.current;
        let td = s.threads.get(tid).map_or(0, |thread| thread.td as usize);
        let event = Event { at: s.now, tid, td, name, argument, result };
        // A call during which nobody else ran is one line.
        if let Some(last) = s.events.back_mut()
            && (last.tid, last.name, last.argument) == (tid, name, argument)
            && last.result.is_none()
        {
            *last = event;
            return;
        }
        if s.events.len() >= s.keep {
            s.events.pop_front();
        }
        s.events.push_back(event);
    });
}

/// Counts calls by their names from now on.
pub fn count_calls() {
    SCHED.with(|s| s.by_name = Some(BTreeMap::new()));
}

/// How often each call was made since [`count_calls`].
pub fn calls() -> Vec<(&'static str, u64)> {
    SCHED.with(|s| s.by_name.iter().flatten().map(|(name, count)| (*name, *count)).collect())
}

/// How much of what happened a report shows.
pub fn keep(events: usize) {
    SCHED.with(|s| s.keep = events.max(1));
}

/// What happened last, as a table: time, thread, call. `None` when it cannot be looked at.
pub fn recent() -> Option<Vec<String>> {
    SCHED.try_with(|s| s.events.iter().map(|event| s.line(event)).collect())
}

/// What was decided by the list, as a table of the same kind.
pub fn taken() -> Vec<String> {
    let last = |s: &mut Sched| s.taken[s.taken.len().saturating_sub(200)..].to_vec();
    SCHED.try_with(last).unwrap_or_default()
}

impl Sched {
    /// Remembers something that happens to the running thread because the list has it.
    pub(super) fn take_note(&mut self, name: &'static str, argument: u64) {
        let (tid, td) = (self.current, self.threads[self.current].td as usize);
        let event = Event { at: self.now, tid, td, name, argument, result: None };
        let call = self.events.iter().rev().find(|its| its.tid == tid && its.td == td);
        let call = call.map_or("its beginning", |its| its.name);
        let line = format!("{}, last in {call}", self.line(&event));
        self.taken.push(line);
    }

    /// An event, for people.
    fn line(&self, event: &Event) -> String {
        let Event { at, tid, name, argument, result, .. } = event;
        let time = *at as f64 / SECOND as f64;
        let live = self.threads.get(*tid).is_some_and(|its| its.td as usize == event.td);
        let who = match live {
            true => module::proc_name(event.td as *mut sys::thread),
            false => "a thread that ended".to_owned(),
        };
        let on = match self.mutexes.get(argument) {
            Some(name) => format!("({name} {argument:#x})"),
            None if *name == STOPPED => {
                format!(" {}", module::symbolize(*argument).unwrap_or_default())
            }
            None if *name == FOLLOWED || *name == WOKEN => format!(" thread {argument}"),
            None if *name == "system call" => {
                format!(" {argument} {}", imports::name_of(*argument))
            }
            None => format!("({argument:#x})"),
        };
        let end = match result {
            Some(result) => format!(" = {}", *result as i64),
            None if [STOPPED, FOLLOWED, WOKEN].contains(name) => String::new(),
            None => " ...".to_owned(),
        };
        format!("{time:12.7} {tid:3} {who:24} {name}{on}{end}")
    }
}

/// What every thread does, for a report. `None` when the state cannot be looked at.
pub fn table() -> Option<Vec<String>> {
    SCHED.try_with(|s| {
        let time = s.now as f64 / SECOND as f64;
        let mut lines = vec![format!(
            "time {time:.6} s, {} kernel calls, {}",
            s.calls,
            s.strategy.policy().text()
        )];
        for (tid, thread) in s.threads.iter().enumerate() {
            let state = match &thread.state {
                State::Free => continue,
                State::Ready if tid == s.current => "running".to_owned(),
                State::Ready => "ready".to_owned(),
                State::Asleep { chan, until, wmesg, catch } => {
                    let until = until.map_or(String::new(), |at| {
                        format!(" until {:.6} s", at as f64 / SECOND as f64)
                    });
                    let catch = if *catch { ", interruptible" } else { "" };
                    format!("asleep on {wmesg} ({chan:#x}{catch}){until}")
                }
                State::Blocked { on } => format!("blocked on {on:#x}"),
            };
            let locks: Vec<&str> = thread.locks.iter().map(|(_, name)| name.as_str()).collect();
            let locks = if locks.is_empty() { String::new() } else { format!(", holds {locks:?}") };
            lines.push(format!("thread {tid} of {}: {state}{locks}", module::proc_name(thread.td)));
        }
        lines
    })
}
