// SPDX-License-Identifier: BSD-2-Clause
//! What the guest's bench program printed, over several boots of each engine, as a table and as
//! JSON. Nothing here judges: a row that our engine did not serve is named, never compared.
//!
//! On a machine that counts instructions the time stamp counter goes up by one for each, and by the
//! nanoseconds that the machine is idle, which are taken off again.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What one boot says of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Operations measured.
    pub ops: u64,
    /// Ticks of the time stamp counter.
    pub ticks: u64,
    /// Nanoseconds.
    pub ns: u64,
    /// Microseconds for which the processors were idle.
    pub idle_us: u64,
    /// Requests accepted.
    pub submitted: u64,
    /// Requests that our engine completed.
    pub served: Option<u64>,
    /// The call that failed and how.
    pub failed: Option<String>,
}

/// One boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Boot {
    /// Instructions to a tick, as the program's loop of known length found it.
    pub per_tick: f64,
    /// The rows, in order.
    pub rows: Vec<(String, Sample)>,
}

impl Boot {
    /// Reads what the program printed.
    pub fn parse(lines: &[String]) -> Self {
        let mut boot = Self::default();
        for line in lines {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let fields: BTreeMap<&str, &str> =
                rest.split(' ').filter_map(|field| field.split_once('=')).collect();
            let number = |key: &str| fields.get(key).and_then(|text| text.parse::<u64>().ok());
            if word == "calibration" {
                let both = number("instructions").zip(number("ticks").filter(|&ticks| ticks > 0));
                boot.per_tick = both.map_or(0.0, |(count, ticks)| count as f64 / ticks as f64);
            } else if word == "row" {
                let failed = fields
                    .get("failed")
                    .map(|call| format!("{call}: {}", fields.get("errno").unwrap_or(&"?")));
                let sample = Sample {
                    ops: number("ops").unwrap_or(0),
                    ticks: number("ticks").unwrap_or(0),
                    ns: number("ns").unwrap_or(0),
                    idle_us: number("idle_us").unwrap_or(0),
                    submitted: number("submitted").unwrap_or(0),
                    served: number("served"),
                    failed,
                };
                boot.rows.push((rest.split(' ').next().unwrap_or("").to_owned(), sample));
            }
        }
        boot
    }

    fn row(&self, name: &str) -> Option<&Sample> {
        self.rows.iter().find(|(found, _)| found == name).map(|(_, sample)| sample)
    }

    /// Whether the counter counted instructions: one or a power of two to a tick.
    pub fn counts(&self) -> bool {
        (0..=10).any(|shift| (self.per_tick * f64::from(1 << shift) - 1.0).abs() < 0.02)
    }
}

/// Who did the work of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The engine that was to do it.
    Asked,
    /// The built-in, though our engine was loaded.
    BuiltIn,
    /// Our engine in part: of so many accepted it completed so many.
    Partly(u64, u64),
    /// Nobody: the call that failed.
    Failed(String),
}

/// Minimum and median of some boots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) =
            (values.get((values.len().checked_sub(1)?) / 2)?, values.get(values.len() / 2)?);
        Some(Self { min: values[0], median: (low + high) / 2.0 })
    }
}

/// Some boots of one engine.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// They are to be served by our engine.
    pub module: bool,
    /// The boots.
    pub boots: Vec<Boot>,
}

impl Runs {
    /// Who did a row; `None` when no boot has it. The worst boot counts.
    pub fn who(&self, name: &str) -> Option<Who> {
        let samples: Vec<&Sample> = self.boots.iter().filter_map(|boot| boot.row(name)).collect();
        samples.first()?;
        if let Some(why) = samples.iter().find_map(|sample| sample.failed.clone()) {
            return Some(Who::Failed(why));
        }
        if !self.module {
            return Some(Who::Asked);
        }
        let short = samples.iter().find(|sample| sample.served.unwrap_or(0) < sample.submitted);
        Some(match short {
            None => Who::Asked,
            Some(sample) => match sample.served.unwrap_or(0) {
                0 => Who::BuiltIn,
                served => Who::Partly(sample.submitted, served),
            },
        })
    }

    fn spread(&self, name: &str, value: impl Fn(&Boot, &Sample) -> f64) -> Option<Spread> {
        let values = self.boots.iter().filter_map(|boot| {
            let sample =
                boot.row(name).filter(|sample| sample.ops > 0 && sample.failed.is_none())?;
            Some(value(boot, sample))
        });
        Spread::of(values.collect())
    }

    /// Instructions to an operation.
    pub fn instructions(&self, name: &str) -> Option<Spread> {
        self.spread(name, |boot, sample| {
            // A nanosecond is a tick where instructions are counted.
            let busy = sample.ticks.saturating_sub(sample.idle_us * 1000) as f64;
            busy * boot.per_tick / sample.ops as f64
        })
    }

    /// Nanoseconds to an operation.
    pub fn nanoseconds(&self, name: &str) -> Option<Spread> {
        self.spread(name, |_, sample| sample.ns as f64 / sample.ops as f64)
    }

    fn rows(&self) -> impl Iterator<Item = &str> {
        self.boots.iter().flat_map(|boot| boot.rows.iter().map(|(name, _)| name.as_str()))
    }
}

/// All that was measured.
#[derive(Clone, Debug, Default)]
pub struct Bench {
    /// What it was measured on, in a few words.
    pub machine: String,
    /// Counting instructions: the built-in and ours.
    pub counted: [Runs; 2],
    /// Against the clock: the built-in and ours.
    pub timed: [Runs; 2],
}

impl Bench {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.counted.iter().chain(&self.timed).flat_map(Runs::rows) {
            if !names.iter().any(|found| found == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Who did a row with our engine loaded.
    fn who(&self, name: &str) -> Who {
        let found = [&self.counted[1], &self.timed[1]].map(|runs| runs.who(name));
        let mut found = found.into_iter().flatten();
        let first = found.next().unwrap_or(Who::Failed("not run".into()));
        if first == Who::Asked { found.next().unwrap_or(first) } else { first }
    }

    /// The table that people read.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}", self.machine);
        let _ = writeln!(
            out,
            "{:<32} {:>21}  {:>21}  {:>6}  {:>9} {:>9}  {:>6}",
            "",
            "instructions built-in",
            "instructions aio_rs",
            "ratio",
            "us blt-in",
            "us aio_rs",
            "ratio"
        );
        let _ = writeln!(
            out,
            "{:<32} {:>10} {:>10}  {:>10} {:>10}  {:>6}",
            "row: call/place/bytes/requests", "min", "median", "min", "median", "median"
        );
        for name in self.names() {
            let who = self.who(&name);
            let counted = [0, 1].map(|engine| self.counted[engine].instructions(&name));
            let timed = [0, 1].map(|engine| self.timed[engine].nanoseconds(&name));
            let ours = who == Who::Asked;
            let show = |spread: Option<Spread>| {
                spread.map_or(format!("{:>10} {:>10}", "-", "-"), |spread| {
                    format!("{:>10.0} {:>10.0}", spread.min, spread.median)
                })
            };
            let micros = |spread: Option<Spread>| {
                spread.map_or("-".to_owned(), |spread| format!("{:.2}", spread.median / 1000.0))
            };
            let ratio = |pair: [Option<Spread>; 2]| match pair {
                [Some(builtin), Some(module)] if ours && builtin.median > 0.0 => {
                    format!("{:.2}", module.median / builtin.median)
                }
                _ => "-".to_owned(),
            };
            let mine = |text: String, width: usize| {
                if ours { text } else { format!("{:>width$}", "-") }
            };
            let note = match who {
                Who::Asked => String::new(),
                Who::BuiltIn => "  not served: the built-in did it".to_owned(),
                Who::Partly(of, served) => format!("  served in part: {served} of {of}"),
                Who::Failed(why) => format!("  not served: {why}"),
            };
            let _ = writeln!(
                out,
                "{name:<32} {}  {}  {:>6}  {:>9} {:>9}  {:>6}{note}",
                show(counted[0]),
                mine(show(counted[1]), 21),
                ratio(counted),
                micros(timed[0]),
                mine(micros(timed[1]), 9),
                ratio(timed),
            );
        }
        out
    }

    /// The same with every boot's figures, for programs.
    pub fn json(&self) -> String {
        let mut out = String::new();
        let _ = write!(out, "{{\n  \"machine\": {},\n  \"rows\": [", quoted(&self.machine));
        for (index, name) in self.names().iter().enumerate() {
            let _ = write!(
                out,
                "{}\n    {{ \"name\": {}",
                if index > 0 { "," } else { "" },
                quoted(name)
            );
            let who = match self.who(name) {
                Who::Asked => "aio_rs".to_owned(),
                Who::BuiltIn => "built-in".to_owned(),
                Who::Partly(of, served) => format!("aio_rs: {served} of {of}"),
                Who::Failed(why) => why,
            };
            let _ = write!(out, ", \"served_by\": {}", quoted(&who));
            for (group, runs) in [("counted", &self.counted), ("timed", &self.timed)] {
                for (engine, runs) in ["builtin", "aio_rs"].iter().zip(runs) {
                    let samples: Vec<String> = runs
                        .boots
                        .iter()
                        .filter_map(|boot| {
                            let sample = boot.row(name)?;
                            Some(format!(
                                "{{\"ops\": {}, \"ticks\": {}, \"ns\": {}, \"idle_us\": {}, \"instructions_per_tick\": {:.4}, \
                                 \"submitted\": {}, \"served\": {}, \"failed\": {}}}",
                                sample.ops,
                                sample.ticks,
                                sample.ns,
                                sample.idle_us,
                                boot.per_tick,
                                sample.submitted,
                                sample.served.map_or("null".to_owned(), |served| served.to_string()),
                                sample.failed.as_ref().map_or("null".to_owned(), |why| quoted(why)),
                            ))
                        })
                        .collect();
                    let _ = write!(out, ",\n      \"{group}_{engine}\": [{}]", samples.join(", "));
                }
            }
            out.push_str(" }");
        }
        out.push_str("\n  ]\n}\n");
        out
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(text: &str) -> Boot {
        Boot::parse(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    const BUILT_IN: &str = "\
calibration instructions=1000000 ticks=1000010
row null-call/-/0/1 ops=100 ticks=50000 ns=60000 idle_us=0 submitted=0 served=-
row read-suspend/ufs/4096/1 ops=10 ticks=300000 ns=300000 idle_us=100 submitted=12 served=-
bench: done";

    fn ours(served: &str) -> Boot {
        boot(&format!(
            "calibration instructions=1000000 ticks=1000010\n\
             row null-call/-/0/1 ops=100 ticks=50000 ns=60000 idle_us=0 submitted=0 served=0\n\
             row read-suspend/ufs/4096/1 ops=10 ticks=100000 ns=90000 idle_us=0 submitted=12 served={served}\n"
        ))
    }

    fn bench(ours: Boot) -> Bench {
        let runs = |module, boot: Boot| Runs { module, boots: vec![boot] };
        Bench {
            machine: "plain".into(),
            counted: [runs(false, boot(BUILT_IN)), runs(true, ours)],
            timed: Default::default(),
        }
    }

    #[test]
    fn instructions_without_idle_time() {
        let runs = Runs { module: false, boots: vec![boot(BUILT_IN)] };
        assert!(runs.boots[0].counts());
        let found = runs.instructions("read-suspend/ufs/4096/1").unwrap();
        assert!((found.median - 20_000.0).abs() < 1.0, "{found:?}");
        assert_eq!(runs.instructions("other"), None);
    }

    #[test]
    fn minimum_and_median() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { min: 1.0, median: 2.5 }));
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn what_the_built_in_did_is_not_ours() {
        let name = "read-suspend/ufs/4096/1";
        assert_eq!(bench(ours("12")).who(name), Who::Asked);
        assert_eq!(bench(ours("0")).who(name), Who::BuiltIn);
        assert_eq!(bench(ours("-")).who(name), Who::BuiltIn);
        assert_eq!(bench(ours("5")).who(name), Who::Partly(12, 5));
        let text = bench(ours("0")).text();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains("not served") && !line.contains("10000"), "{line}");
        assert!(bench(ours("12")).text().contains("0.50"));
        // A row without requests has nothing to serve.
        assert_eq!(bench(ours("0")).who("null-call/-/0/1"), Who::Asked);
    }

    #[test]
    fn a_row_that_failed() {
        let failed =
            boot("row x/ufs/1/1 failed=lio_listio errno=EOPNOTSUPP submitted=0 served=0\n");
        let bench = bench(failed);
        assert_eq!(bench.who("x/ufs/1/1"), Who::Failed("lio_listio: EOPNOTSUPP".into()));
        assert!(bench.json().contains("\"served_by\": \"lio_listio: EOPNOTSUPP\""));
    }

    #[test]
    fn a_clock_is_no_count() {
        assert!(!boot("calibration instructions=1000000 ticks=1250000").counts());
        assert!(boot("calibration instructions=1000000 ticks=8000100").counts());
        assert!(!boot("").counts());
    }
}
