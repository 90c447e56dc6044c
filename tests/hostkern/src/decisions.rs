// SPDX-License-Identifier: BSD-2-Clause
//! The decisions that make a schedule, as a list that can be kept, repeated and made shorter.
//!
//! A list has only what differs from the ordinary course: a thread keeps its turn until it sleeps,
//! blocks or ends or its time slice is over, and then the one goes on that has waited for longest;
//! nobody is stopped between two instructions or woken without reason. Threads and places are named
//! by what stays the same when another decision is left out: a thread by who started it and as
//! which of its threads, a place by how many kernel calls the thread has begun and ended.

use std::collections::BTreeMap;

/// Where in its life a thread is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub thread: u64,
    /// Scheduling points it has passed.
    pub point: u64,
    /// How often since then it was asked who goes on.
    pub turn: u32,
}

/// What differs there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// This thread goes on.
    To(u64),
    /// The thread is stopped before it executes the instruction at `site`, and `to` goes on.
    Stop { site: u64, to: u64 },
    /// This thread is woken without reason.
    Wake(u64),
}

impl What {
    fn kind(&self) -> u8 {
        match self {
            What::Wake(_) => 0,
            What::To(_) => 1,
            What::Stop { .. } => 2,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub at: Place,
    pub what: What,
}

impl Decision {
    pub fn text(&self) -> String {
        let Place { thread, point, turn } = self.at;
        match self.what {
            What::To(to) => format!("{thread:016x} {point} {turn} to {to:016x}"),
            What::Stop { site, to } => {
                format!("{thread:016x} {point} {turn} stop {site:x} {to:016x}")
            }
            What::Wake(whom) => format!("{thread:016x} {point} {turn} wake {whom:016x}"),
        }
    }

    pub fn parse(line: &str) -> Option<Decision> {
        let mut words = line.split_whitespace();
        let hex = |word: &str| u64::from_str_radix(word, 16).ok();
        let thread = hex(words.next()?)?;
        let at =
            Place { thread, point: words.next()?.parse().ok()?, turn: words.next()?.parse().ok()? };
        let what = match words.next()? {
            "to" => What::To(hex(words.next()?)?),
            "wake" => What::Wake(hex(words.next()?)?),
            "stop" => What::Stop { site: hex(words.next()?)?, to: hex(words.next()?)? },
            _ => return None,
        };
        words.next().is_none().then_some(Decision { at, what })
    }
}

/// Reads a file of decisions.
///
/// # Errors
/// The number of the first line that is none.
pub fn parse(text: &str) -> Result<Vec<Decision>, usize> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines.map(|(index, line)| Decision::parse(line).ok_or(index + 1)).collect()
}

pub fn text(list: &[Decision]) -> String {
    list.iter().map(|decision| decision.text() + "\n").collect()
}

/// A list to be repeated, by place.
#[derive(Default)]
pub struct Script(BTreeMap<(Place, u8), What>);

impl Script {
    pub fn new(list: &[Decision]) -> Script {
        Script(list.iter().map(|its| ((its.at, its.what.kind()), its.what)).collect())
    }

    /// Who goes on.
    pub fn next(&self, at: Place) -> Option<u64> {
        match self.0.get(&(at, 1)) {
            Some(What::To(to)) => Some(*to),
            _ => None,
        }
    }

    /// Where the thread is stopped then, and for whom.
    pub fn stop(&self, at: Place) -> Option<(u64, u64)> {
        match self.0.get(&(at, 2)) {
            Some(What::Stop { site, to }) => Some((*site, *to)),
            _ => None,
        }
    }

    /// Who is woken.
    pub fn wake(&self, at: Place) -> Option<u64> {
        match self.0.get(&(at, 0)) {
            Some(What::Wake(whom)) => Some(*whom),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(point: u64, what: What) -> Decision {
        Decision { at: Place { thread: 0xabc, point, turn: 2 }, what }
    }

    #[test]
    fn a_list_is_read_as_it_is_written() {
        let list = vec![
            decision(1, What::To(5)),
            decision(1, What::Wake(u64::MAX)),
            decision(9, What::Stop { site: 0x4000_1234, to: 7 }),
        ];
        assert_eq!(parse(&text(&list)), Ok(list.clone()));
        assert_eq!(parse(&format!("# seed 7\n{}", text(&list))), Ok(list));
    }

    #[test]
    fn a_line_that_is_no_decision_is_named() {
        assert_eq!(parse("# x\n0abc 1 2 to 5\n0abc 1 to 5\n"), Err(3));
        for bad in ["", "0abc 1 2 to", "0abc 1 2 to 5 6", "0abc 1 2 stop 5", "0abc x 2 to 5"] {
            assert_eq!(Decision::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_place_may_have_one_of_each_kind() {
        let script = Script::new(&[
            decision(1, What::To(5)),
            decision(1, What::Wake(6)),
            decision(1, What::Stop { site: 8, to: 9 }),
        ]);
        let at = Place { thread: 0xabc, point: 1, turn: 2 };
        assert_eq!(script.next(at), Some(5));
        assert_eq!(script.wake(at), Some(6));
        assert_eq!(script.stop(at), Some((8, 9)));
        for other in [Place { point: 2, ..at }, Place { turn: 1, ..at }, Place { thread: 1, ..at }]
        {
            assert_eq!(script.next(other), None);
            assert_eq!(script.wake(other), None);
            assert_eq!(script.stop(other), None);
        }
    }
}
