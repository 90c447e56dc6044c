// SPDX-License-Identifier: BSD-2-Clause
//! Strategies: who has the next turn, as far as chance decides it.
//!
//! A strategy knows threads by their slots only, and has random numbers of its own: what else is
//! left to chance in a run does not change with it.

use crate::state::Rng;

/// How many kernel calls a thread makes in one turn when others could run, at most.
pub const SLICE: u64 = 5000;

/// How the next thread is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Threads run until they sleep, or their time slice is over.
    Block,
    /// Once in so many scheduling points somebody else goes on, anybody.
    Uniform { odds: u64 },
    /// Threads have random priorities, and once in so many points the running one gets the lowest.
    Priorities { odds: u64 },
    /// Probabilistic concurrency testing: threads have random priorities, and at so many points out
    /// of each `length` the running one gets the lowest; then all get new ones.
    Pct { depth: u64, length: u64 },
    /// As block, but the one goes on that has waited for longest; once in so many points anybody.
    Seldom { odds: u64 },
    /// As uniform, but one thread runs only when nobody else can, for a while; then another one.
    Starve { odds: u64 },
}

impl Policy {
    /// The strategy of a seed: its remainder by 8 says which, its other bits how.
    pub fn of_seed(seed: u64) -> Policy {
        let mut rng = Rng::new(seed ^ 0x706f_6c69_6379);
        match seed % 8 {
            0 => Policy::Block,
            1 => Policy::Uniform { odds: 2 },
            2 | 6 => Policy::Uniform { odds: 8 + rng.below(56) },
            3 | 7 => Policy::Priorities { odds: 20 + rng.below(400) },
            4 => {
                let length = [1_000, 10_000, 100_000][rng.below(3) as usize];
                Policy::Pct { depth: 1 + rng.below(5), length }
            }
            _ => Policy::Starve { odds: 4 + rng.below(60) },
        }
    }

    /// Reads what [`Policy::text`] writes; numbers that are left out are ordinary ones.
    pub fn parse(text: &str) -> Option<Policy> {
        let mut words = text.split(':');
        let name = words.next()?;
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let number = |index: usize, ordinary: u64| numbers.get(index).copied().unwrap_or(ordinary);
        let (policy, most) = match name {
            "block" => (Policy::Block, 0),
            "uniform" => (Policy::Uniform { odds: number(0, 16) }, 1),
            "priorities" => (Policy::Priorities { odds: number(0, 100) }, 1),
            "pct" => (Policy::Pct { depth: number(0, 3), length: number(1, 10_000) }, 2),
            "seldom" => (Policy::Seldom { odds: number(0, 1000) }, 1),
            "starve" => (Policy::Starve { odds: number(0, 16) }, 1),
            _ => return None,
        };
        (numbers.len() <= most).then_some(policy)
    }

    pub fn text(&self) -> String {
        match self {
            Policy::Block => "block".to_owned(),
            Policy::Uniform { odds } => format!("uniform:{odds}"),
            Policy::Priorities { odds } => format!("priorities:{odds}"),
            Policy::Pct { depth, length } => format!("pct:{depth}:{length}"),
            Policy::Seldom { odds } => format!("seldom:{odds}"),
            Policy::Starve { odds } => format!("starve:{odds}"),
        }
    }
}

/// How often a seed has threads stopped between two instructions: once in so many scheduling points,
/// or 0 for never.
pub fn stops_of_seed(seed: u64) -> u64 {
    [0, 10, 50, 250][(seed / 8 % 4) as usize]
}

/// A policy at work.
pub struct Strategy {
    policy: Policy,
    rng: Rng,
    /// By slot; the highest runs.
    priorities: Vec<u64>,
    /// Points that were passed.
    points: u64,
    /// When priorities change next, the last first; then when a new round begins.
    changes: Vec<u64>,
    /// Who is starved, and until which point.
    starved: (usize, u64),
}

impl Strategy {
    pub const fn new(policy: Policy, seed: u64) -> Strategy {
        Strategy {
            policy,
            rng: Rng::new(seed),
            priorities: Vec::new(),
            points: 0,
            changes: Vec::new(),
            starved: (usize::MAX, 0),
        }
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Random numbers of the schedule's.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// A thread begins in a slot.
    pub fn started(&mut self, slot: usize) {
        if self.priorities.len() <= slot {
            self.priorities.resize(slot + 1, 0);
        }
        self.priorities[slot] = self.rng.next() | 1 << 63;
    }

    /// Gives a thread the lowest priority.
    pub fn lower(&mut self, slot: usize) {
        let lowest = self.priorities.iter().copied().min().unwrap_or(1);
        self.priorities[slot] = lowest.saturating_sub(1);
    }

    /// One scheduling point of `running` is passed: whether others are to be considered.
    pub fn passes(&mut self, running: usize) -> bool {
        self.points += 1;
        match self.policy {
            Policy::Block => false,
            Policy::Uniform { odds } | Policy::Seldom { odds } => self.rng.one_in(odds),
            Policy::Priorities { odds } => {
                if self.rng.one_in(odds) {
                    self.lower(running);
                }
                true
            }
            Policy::Pct { depth, length } => {
                while self.changes.last().is_some_and(|&at| at <= self.points) {
                    self.changes.pop();
                    if self.changes.is_empty() {
                        for priority in &mut self.priorities {
                            *priority = self.rng.next() | 1 << 63;
                        }
                    } else {
                        self.lower(running);
                    }
                }
                if self.changes.is_empty() {
                    let (from, length) = (self.points, length.max(1));
                    self.changes = (0..depth).map(|_| from + self.rng.below(length)).collect();
                    self.changes.push(from + length);
                    self.changes.sort_unstable_by_key(|&at| std::cmp::Reverse(at));
                }
                true
            }
            Policy::Starve { odds } => {
                if self.points >= self.starved.1 {
                    let threads = self.priorities.len().max(1) as u64;
                    let span = 500 + self.rng.below(20_000);
                    self.starved = (self.rng.below(threads) as usize, self.points + span);
                }
                running == self.starved.0 || self.rng.one_in(odds)
            }
        }
    }

    /// Chooses one of those that are ready, of whom there is at least one; `usual` goes on where a
    /// turn ends by itself.
    pub fn pick(&mut self, ready: &[usize], usual: Option<usize>) -> usize {
        match self.policy {
            Policy::Seldom { odds } if usual.is_some() && !self.rng.one_in(odds.min(16)) => {
                usual.expect("just seen")
            }
            Policy::Priorities { .. } | Policy::Pct { .. } => {
                let best = ready.iter().max_by_key(|&&slot| (self.priorities[slot], slot));
                *best.expect("somebody is ready")
            }
            Policy::Starve { .. } => {
                let others: Vec<usize> =
                    ready.iter().copied().filter(|&slot| slot != self.starved.0).collect();
                let from = if others.is_empty() { ready } else { &others };
                from[self.rng.below(from.len() as u64) as usize]
            }
            _ => ready[self.rng.below(ready.len() as u64) as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `threads` that never sleep pass so many points; who ran at each.
    fn run(policy: Policy, seed: u64, threads: usize, points: usize) -> Vec<usize> {
        let mut strategy = Strategy::new(policy, seed);
        (0..threads).for_each(|slot| strategy.started(slot));
        let all: Vec<usize> = (0..threads).collect();
        let mut running = strategy.pick(&all, None);
        (0..points)
            .map(|_| {
                if strategy.passes(running) {
                    running = strategy.pick(&all, None);
                }
                running
            })
            .collect()
    }

    fn switches(turns: &[usize]) -> usize {
        turns.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    const ALL: [Policy; 6] = [
        Policy::Block,
        Policy::Uniform { odds: 8 },
        Policy::Priorities { odds: 50 },
        Policy::Pct { depth: 3, length: 1000 },
        Policy::Seldom { odds: 100 },
        Policy::Starve { odds: 8 },
    ];

    #[test]
    fn a_seed_repeats_and_another_differs() {
        for policy in ALL {
            assert_eq!(run(policy, 7, 5, 5000), run(policy, 7, 5, 5000), "{policy:?}");
            assert_ne!(run(policy, 7, 5, 5000), run(policy, 8, 5, 5000), "{policy:?}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for policy in ALL {
            assert_eq!(Policy::parse(&policy.text()), Some(policy));
        }
        assert_eq!(Policy::parse("pct:2"), Some(Policy::Pct { depth: 2, length: 10_000 }));
        for bad in ["", "blocks", "block:1", "uniform:x", "uniform:", "pct:1:2:3"] {
            assert_eq!(Policy::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn seeds_rotate_through_all_strategies_with_and_without_stops() {
        for stops in [0, 10, 50, 250] {
            let mut seen: Vec<String> = (0..32)
                .filter(|&seed| stops_of_seed(seed) == stops)
                .map(|seed| Policy::of_seed(seed).text().split(':').next().unwrap().to_owned())
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, ["block", "pct", "priorities", "starve", "uniform"], "{stops}");
        }
    }

    #[test]
    fn block_lets_a_thread_go_on() {
        assert_eq!(switches(&run(Policy::Block, 1, 4, 10_000)), 0);
    }

    #[test]
    fn uniform_switches_as_often_as_it_says() {
        let count = switches(&run(Policy::Uniform { odds: 10 }, 3, 5, 50_000));
        // A fifth of the choices is the running thread.
        assert!((3600..4400).contains(&count), "{count}");
    }

    /// With `depth` changes to a round there are at most so many switches besides the one into the
    /// next round.
    #[test]
    fn pct_changes_priorities_so_many_times() {
        for (depth, seed) in [(1, 1), (2, 5), (3, 9)] {
            let turns = run(Policy::Pct { depth, length: 1000 }, seed, 6, 100_000);
            let count = switches(&turns) as u64;
            assert!(count <= 100 * (depth + 1), "{depth}: {count}");
            assert!(count >= 100 * depth / 2, "{depth}: {count}");
        }
    }

    /// In a round, a bug that wants one certain thread to be interrupted at one certain point is met
    /// at least as often as the theory has it: once in threads times points.
    #[test]
    fn pct_meets_a_bug_of_depth_two() {
        let (threads, length, seeds) = (3, 20, 6000);
        let met = (0..seeds)
            .filter(|&seed| {
                let turns = run(Policy::Pct { depth: 1, length }, seed, threads, 20);
                turns[6] == 0 && turns[7] != 0 && turns[..7].iter().all(|&its| its == 0)
            })
            .count();
        let theory = seeds as usize / (threads * length as usize);
        assert!(met >= theory * 8 / 10, "{met}");
    }

    #[test]
    fn starve_keeps_one_thread_waiting_for_a_while() {
        let turns = run(Policy::Starve { odds: 4 }, 11, 3, 60_000);
        let longest =
            |slot: usize| turns.split(|&its| its == slot).map(<[usize]>::len).max().unwrap_or(0);
        assert!((0..3).map(longest).max() > Some(500));
        // Nobody waits for ever.
        (0..3).for_each(|slot| assert!(turns.contains(&slot)));
    }

    #[test]
    fn a_starved_thread_runs_when_nobody_else_can() {
        let mut strategy = Strategy::new(Policy::Starve { odds: 4 }, 1);
        (0..3).for_each(|slot| strategy.started(slot));
        strategy.starved = (1, u64::MAX);
        assert!(strategy.passes(1));
        (0..100).for_each(|_| assert_ne!(strategy.pick(&[0, 1, 2], None), 1));
        assert_eq!(strategy.pick(&[1], None), 1);
    }

    #[test]
    fn seldom_is_mostly_as_usual() {
        let mut strategy = Strategy::new(Policy::Seldom { odds: 100 }, 2);
        (0..3).for_each(|slot| strategy.started(slot));
        let unusual = (0..1000).filter(|_| strategy.pick(&[0, 1, 2], Some(1)) != 1).count();
        assert!((20..80).contains(&unusual), "{unusual}");
    }

    #[test]
    fn the_lowered_thread_goes_last() {
        for policy in [Policy::Priorities { odds: 0 }, Policy::Pct { depth: 0, length: u64::MAX }] {
            let mut strategy = Strategy::new(policy, 4);
            (0..4).for_each(|slot| strategy.started(slot));
            let first = strategy.pick(&[0, 1, 2, 3], None);
            strategy.lower(first);
            let second = strategy.pick(&[0, 1, 2, 3], None);
            assert_ne!(first, second);
            strategy.lower(second);
            // Of two that were lowered the one before goes first.
            assert_eq!(strategy.pick(&[first, second], None), first);
        }
    }
}
