// SPDX-License-Identifier: BSD-2-Clause
//! Breakpoints in the modules' text that vanish when they are met.
//!
//! The text has the file's bytes, but for the first byte of an instruction that somebody waits for.
//! One that is met is taken away, and the thread goes on at the same instruction: at once where it
//! only counts (coverage), or after another thread had its turn (a stop between two instructions).
//! Only the thread that has the turn executes module text or changes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;

use crate::coverage::{Block, Coverage};
use crate::state::{Held, Rng};
use crate::text::Text;
use crate::{report, sched};

const BREAK: u8 = 0xcc;
const PAGE: usize = 4096;

/// Breakpoints for stops that wait at once, at most: the oldest makes room.
const WAITING: usize = 64;

/// A module's text.
struct Loaded {
    file: String,
    start: usize,
    end: usize,
    text: Text,
}

#[derive(Clone, Copy)]
struct Planted {
    byte: u8,
    stops: bool,
    counts: bool,
}

struct Probes {
    loaded: Vec<Loaded>,
    planted: BTreeMap<usize, Planted>,
    /// Those for stops, in the order they were made.
    waiting: VecDeque<usize>,
    /// Where threads were stopped: a hint at what is executed at all.
    known: Vec<usize>,
    /// Blocks that were reached, by address; `None` where nobody wants to know.
    reached: Option<BTreeSet<usize>>,
    /// The blocks of modules that were unloaded.
    past: Coverage,
}

static PROBES: Held<Probes> = Held::new(Probes {
    loaded: Vec::new(),
    planted: BTreeMap::new(),
    waiting: VecDeque::new(),
    known: Vec::new(),
    reached: None,
    past: Coverage::new(),
});

/// Has the blocks counted of the modules that are loaded from here on.
pub fn count_blocks() {
    PROBES.with(|probes| probes.reached = Some(BTreeSet::new()));
}

/// Takes note of a module's text, which is in place and can be executed.
pub fn loaded(file: &str, start: usize, end: usize, text: Text) {
    PROBES.with(|probes| {
        if probes.reached.is_some() {
            for block in &text.blocks {
                probes.plant(block.start as usize, false);
            }
        }
        probes.loaded.push(Loaded { file: file.to_owned(), start, end, text });
    });
}

/// A module's text is about to go.
pub fn unloaded(start: usize) {
    PROBES.with(|probes| {
        let Some(index) = probes.loaded.iter().position(|its| its.start == start) else { return };
        let loaded = probes.loaded.swap_remove(index);
        let end = loaded.end;
        probes.account(&loaded);
        probes.planted.retain(|&at, _| !(start..end).contains(&at));
        probes.waiting.retain(|&at| !(start..end).contains(&at));
        probes.known.retain(|&at| !(start..end).contains(&at));
    });
}

/// Which blocks were reached so far; `None` if they are not counted, or cannot be looked at.
pub fn coverage() -> Option<Coverage> {
    PROBES
        .try_with(|probes| {
            probes.reached.as_ref()?;
            for loaded in std::mem::take(&mut probes.loaded) {
                probes.account(&loaded);
            }
            Some(std::mem::take(&mut probes.past))
        })
        .flatten()
}

impl Probes {
    /// Adds a module's blocks to those of the past.
    fn account(&mut self, loaded: &Loaded) {
        let Some(reached) = &self.reached else { return };
        for block in &loaded.text.blocks {
            let function = &loaded.text.functions[block.function];
            let offset = |at: u64| at - loaded.start as u64;
            let its = Block {
                reached: reached.contains(&(block.start as usize)),
                asserts: block.asserts,
                start: offset(function.start),
                function: function.name.clone(),
            };
            self.past.add(&loaded.file, offset(block.start), its);
        }
    }

    /// Writes a byte of text.
    fn write(at: usize, byte: u8) -> u8 {
        let page = (at & !(PAGE - 1)) as *mut c_void;
        let set = |prot: i32| {
            // SAFETY: a page of a module's text, which nobody executes: we have the turn.
            if unsafe { libc::mprotect(page, PAGE, prot) } != 0 {
                report::give_up("a module's text cannot be changed");
            }
        };
        set(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: as above; the processor notices changes of its own code.
        let old = unsafe { std::ptr::replace(at as *mut u8, byte) };
        set(libc::PROT_READ | libc::PROT_EXEC);
        old
    }

    fn plant(&mut self, at: usize, stops: bool) {
        match self.planted.get_mut(&at) {
            Some(planted) if stops => planted.stops = true,
            Some(planted) => planted.counts = true,
            None => {
                let byte = Probes::write(at, BREAK);
                self.planted.insert(at, Planted { byte, stops, counts: !stops });
            }
        }
    }

    /// Takes a stop away; what counts stays.
    fn withdraw(&mut self, at: usize) {
        let Some(planted) = self.planted.get_mut(&at) else { return };
        planted.stops = false;
        if !planted.counts {
            Probes::write(at, planted.byte);
            self.planted.remove(&at);
        }
    }
}

/// Has whoever comes there first stopped, at an instruction that chance chooses.
pub fn stop_somewhere(rng: &mut Rng) {
    PROBES.with(|probes| {
        let Some(at) = probes.choose(rng) else { return };
        if probes.planted.get(&at).is_some_and(|planted| planted.stops) {
            return;
        }
        if probes.waiting.len() >= WAITING
            && let Some(oldest) = probes.waiting.pop_front()
        {
            probes.withdraw(oldest);
        }
        probes.plant(at, true);
        probes.waiting.push_back(at);
    });
}

impl Probes {
    /// An instruction that others notice, or the one behind it, or any; often one where somebody was
    /// stopped before.
    fn choose(&self, rng: &mut Rng) -> Option<usize> {
        if !self.known.is_empty() && rng.below(2) == 0 {
            return Some(self.known[rng.below(self.known.len() as u64) as usize]);
        }
        // The gate is small, and much of it is shared.
        let count = self.loaded.len();
        let index = match rng.below(4) {
            0 => rng.below(count as u64) as usize,
            _ => count.wrapping_sub(1),
        };
        let text = &self.loaded.get(index)?.text;
        let all = text.instructions.len();
        let chosen = match rng.below(8) {
            kind @ 0..6 if !text.shared.is_empty() => {
                let shared = text.shared[rng.below(text.shared.len() as u64) as usize];
                (shared + usize::from(kind >= 3)).min(all - 1)
            }
            _ => rng.below(all as u64) as usize,
        };
        text.instructions.get(chosen).map(|&at| at as usize)
    }
}

/// Has whoever comes there first stopped.
pub fn stop_at(at: u64) {
    PROBES.with(|probes| {
        let known =
            probes.loaded.iter().any(|its| its.text.instructions.binary_search(&at).is_ok());
        if known {
            probes.plant(at as usize, true);
            probes.waiting.push_back(at as usize);
        }
    });
}

/// Takes all stops away that nobody came to.
pub fn withdraw_stops() {
    PROBES.with(|probes| {
        while let Some(at) = probes.waiting.pop_front() {
            probes.withdraw(at);
        }
    });
}

/// A breakpoint was met, by the running thread: takes it away. Whether the thread is to be stopped;
/// `None` when it is none of ours. Called by a signal handler that interrupts module code only.
pub fn met(at: usize) -> Option<bool> {
    PROBES.with(|probes| {
        let planted = probes.planted.remove(&at)?;
        Probes::write(at, planted.byte);
        if planted.stops {
            probes.waiting.retain(|&its| its != at);
            if !probes.known.contains(&at) {
                probes.known.push(at);
            }
        }
        if planted.counts
            && let Some(reached) = &mut probes.reached
        {
            reached.insert(at);
        }
        Some(planted.stops)
    })
}

/// What [`met`] has the thread call then, with where it is.
pub extern "C" fn stopped(at: u64) {
    sched::stop(at);
}
