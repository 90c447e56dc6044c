// SPDX-License-Identifier: BSD-2-Clause
//! Faults by plan: a kernel call that may fail does so at its n-th occurrence, once or from then on.
//!
//! `hostkern faults` runs a program once to count, and then once for each call and occurrence. What
//! fails how is in the table of functions (`imports.rs`); disks and files have theirs here.

use std::collections::BTreeMap;

use crate::sched;
use crate::state::Held;

/// Which call fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    name: String,
    nth: u64,
    always: bool,
}

impl Plan {
    pub fn new(name: &str, nth: u64, always: bool) -> Plan {
        Plan { name: name.to_owned(), nth, always }
    }

    /// Reads `NAME:N` or `NAME:N:always`.
    pub fn parse(text: &str) -> Option<Plan> {
        let mut words = text.split(':');
        let (name, nth) = (words.next()?, words.next()?.parse().ok()?);
        let always = match words.next() {
            None => false,
            Some("always") => true,
            Some(_) => return None,
        };
        words.next().is_none().then(|| Plan::new(name, nth, always))
    }

    pub fn text(&self) -> String {
        format!("{}:{}{}", self.name, self.nth, if self.always { ":always" } else { "" })
    }
}

struct Faults {
    plan: Option<Plan>,
    counts: BTreeMap<&'static str, u64>,
    struck: u64,
}

static FAULTS: Held<Faults> = Held::new(Faults { plan: None, counts: BTreeMap::new(), struck: 0 });

/// Sets the plan, before anything runs.
pub fn plan(plan: Option<Plan>) {
    FAULTS.with(|faults| faults.plan = plan);
}

/// Whether this call of that name is to fail.
pub fn strikes(name: &'static str) -> bool {
    let strikes = FAULTS.with(|faults| {
        let count = faults.counts.entry(name).or_insert(0);
        *count += 1;
        let strikes = faults.plan.as_ref().is_some_and(|plan| {
            plan.name == name && (plan.nth == *count || plan.always && plan.nth <= *count)
        });
        faults.struck += u64::from(strikes);
        strikes
    });
    if strikes {
        sched::note("fails by plan", 0, None);
    }
    strikes
}

/// How often each call was made that may fail.
pub fn counts() -> Vec<(&'static str, u64)> {
    FAULTS.with(|faults| faults.counts.iter().map(|(&name, &count)| (name, count)).collect())
}

/// How often one failed.
pub fn struck() -> u64 {
    FAULTS.with(|faults| faults.struck)
}
