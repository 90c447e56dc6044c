// SPDX-License-Identifier: BSD-2-Clause
//! Results in rows: what each case came to on the built-in and on ours, what that makes, the
//! counts, and the forms in which they are written.

use crate::report::{Case, Verdict};
use std::fmt::Write;

/// What a row counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Passed,
    /// Not as it should be; the exit status tells.
    Failed,
    /// Not run, or nothing to learn from.
    Skipped,
    /// It went well, but our engine had no part in it.
    Builtin,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Builtin => "built-in",
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which machine.
    pub machine: String,
    /// The suite.
    pub suite: String,
    /// The case.
    pub name: String,
    /// On the built-in, where it ran there.
    pub builtin: Option<Verdict>,
    /// On ours, where it ran there.
    pub ours: Option<Verdict>,
    /// Requests that our engine completed.
    pub served: Option<u64>,
    /// What it counts as.
    pub mark: Mark,
    /// Why, where there is something to say.
    pub reason: String,
    /// How long it took, of the last run.
    pub ms: u64,
}

impl Row {
    /// A row for something that is no case of a suite, such as loading the module.
    pub fn step(machine: &str, name: &str, result: Result<String, String>) -> Self {
        let (mark, reason) = match result {
            Ok(note) => (Mark::Passed, note),
            Err(why) => (Mark::Failed, why),
        };
        Self::plain(machine, name, mark, reason)
    }

    /// A row that says that something was left out.
    pub fn skipped(machine: &str, name: &str, why: &str) -> Self {
        Self::plain(machine, name, Mark::Skipped, why.to_owned())
    }

    fn plain(machine: &str, name: &str, mark: Mark, reason: String) -> Self {
        Self {
            machine: machine.to_owned(),
            suite: "step".into(),
            name: name.to_owned(),
            builtin: None,
            ours: None,
            served: None,
            mark,
            reason,
            ms: 0,
        }
    }
}

/// Rows for the cases of two runs: those of the reference, and those with our module. With no
/// second run, the reference is what is judged.
pub fn compare(machine: &str, builtin: &[Case], ours: Option<&[Case]>) -> Vec<Row> {
    let same = |one: &Case, two: &Case| one.suite == two.suite && one.name == two.name;
    let row = |builtin: Option<&Case>, ours: Option<&Case>, module: bool| {
        let case = ours.or(builtin)?;
        let (mark, note) = if module { judge(builtin, ours) } else { judge_alone(case) };
        Some(Row {
            machine: machine.to_owned(),
            suite: case.suite.clone(),
            name: case.name.clone(),
            builtin: builtin.map(|case| case.verdict),
            ours: ours.map(|case| case.verdict),
            served: ours.and_then(|case| case.served),
            mark,
            reason: if note.is_empty() { case.reason.clone() } else { note },
            ms: case.ms,
        })
    };
    let mut rows = Vec::new();
    for case in builtin {
        let other = ours.and_then(|ours| ours.iter().find(|other| same(case, other)));
        rows.extend(row(Some(case), other, ours.is_some()));
    }
    for case in ours.unwrap_or(&[]) {
        if !builtin.iter().any(|other| same(case, other)) {
            rows.extend(row(None, Some(case), true));
        }
    }
    rows
}

/// Makes one case of those that ran more than once under a name: the worst time of it, with the
/// fewest requests served, and how many times were bad. A case of the base system's suite that
/// ran fewer than `times` times is bad too.
pub fn repeated(cases: Vec<Case>, times: u32) -> Vec<Case> {
    let mut all: Vec<(Case, u32, u32)> = Vec::new();
    for case in cases {
        let bad = u32::from(case.verdict == Verdict::Failed);
        let known = all
            .iter_mut()
            .find(|(known, ..)| (&known.suite, &known.name) == (&case.suite, &case.name));
        let Some((known, runs, failed)) = known else {
            all.push((case, 1, bad));
            continue;
        };
        (*runs, *failed) = (*runs + 1, *failed + bad);
        known.served = known.served.min(case.served);
        known.ms = known.ms.max(case.ms);
        if worse(case.verdict) > worse(known.verdict) {
            (known.verdict, known.reason) = (case.verdict, case.reason);
        }
    }
    let finish = |(case, runs, failed): (Case, u32, u32)| {
        let of_base = case.suite.starts_with("aio_") || case.suite.starts_with("lio_");
        let short = of_base && !case.suite.ends_with("-zfs") && runs < times;
        let reason = match (failed, runs) {
            _ if short => format!("ran {runs} of {times} times; {}", case.reason),
            (1.., 2..) => format!("{failed} of {runs} times: {}", case.reason),
            _ => case.reason,
        };
        let verdict = if short { Verdict::Failed } else { case.verdict };
        Case { verdict, reason, ..case }
    };
    all.into_iter().map(finish).collect()
}

/// How bad a verdict is beside others of the same case.
fn worse(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Passed => 0,
        Verdict::Expected => 1,
        Verdict::Differs => 2,
        Verdict::Skipped => 3,
        Verdict::Failed => 4,
    }
}

fn judge_alone(case: &Case) -> (Mark, String) {
    let mark = match case.verdict {
        Verdict::Passed | Verdict::Expected => Mark::Passed,
        Verdict::Failed => Mark::Failed,
        // The built-in is not expected to pass it; that is no pass.
        Verdict::Skipped | Verdict::Differs => Mark::Skipped,
    };
    (mark, String::new())
}

/// What a case comes to on ours, beside the built-in.
fn judge(builtin: Option<&Case>, ours: Option<&Case>) -> (Mark, String) {
    use Verdict::{Differs, Expected, Failed, Passed, Skipped};
    let Some(ours) = ours else {
        return (Mark::Failed, "not run with the module".into());
    };
    match (builtin.map(|case| case.verdict), ours.verdict) {
        (Some(Failed), Failed) => {
            (Mark::Skipped, format!("fails on the built-in too: {}", ours.reason))
        }
        // Only the built-in may differ; where it does, ours must pass.
        (_, Failed | Differs) => (Mark::Failed, String::new()),
        (Some(Passed | Expected | Differs), Skipped) => {
            (Mark::Failed, format!("runs on the built-in, but is skipped here: {}", ours.reason))
        }
        (_, Skipped) => (Mark::Skipped, String::new()),
        (_, Passed | Expected) => match (ours.served, ours.accepted) {
            // A case whose requests are all refused has none to serve.
            (Some(0) | None, Some(0)) => (Mark::Passed, String::new()),
            (Some(0) | None, _) => (Mark::Builtin, "our engine served none of it".into()),
            _ => (Mark::Passed, String::new()),
        },
    }
}

/// How many passed, failed and were skipped; what the built-in served is none of these and is
/// counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
    /// Served by the built-in.
    pub builtin: usize,
}

/// Counts rows.
pub fn count(rows: &[Row]) -> Counts {
    let of = |mark| rows.iter().filter(|row| row.mark == mark).count();
    Counts {
        passed: of(Mark::Passed),
        failed: of(Mark::Failed),
        skipped: of(Mark::Skipped),
        builtin: of(Mark::Builtin),
    }
}

/// The last line of every report, for programs to read. What the built-in served says nothing
/// of ours, so it counts as skipped.
pub fn summary(counts: Counts) -> String {
    let Counts { passed, failed, skipped, builtin } = counts;
    format!("vm: passed {passed} failed {failed} skipped {}", skipped + builtin)
}

fn verdict(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        None => "-",
        Some(Verdict::Passed) => "passed",
        Some(Verdict::Failed) => "FAILED",
        Some(Verdict::Skipped) => "skipped",
        Some(Verdict::Expected) => "expected",
        Some(Verdict::Differs) => "differs",
    }
}

/// The table, for people.
pub fn text(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.suite.len() + row.name.len() + 1).max().unwrap_or(10);
    let mut out = format!(
        "{:8} {:width$} {:8} {:8} {:>8}  result\n",
        "machine", "case", "built-in", "aio_rs", "served"
    );
    for row in rows {
        let name = format!("{}/{}", row.suite, row.name);
        let served = row.served.map_or("-".to_owned(), |served| served.to_string());
        let _ = writeln!(
            out,
            "{:8} {name:width$} {:8} {:8} {served:>8}  {}{}{}",
            row.machine,
            verdict(row.builtin),
            verdict(row.ours),
            row.mark.word(),
            if row.reason.is_empty() { "" } else { ": " },
            row.reason,
        );
    }
    out
}

/// The rows that failed, a line each: what to look for in a table of thousands.
pub fn failures(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows.iter().filter(|row| row.mark == Mark::Failed) {
        let _ = writeln!(out, "FAILED  {} {}/{}: {}", row.machine, row.suite, row.name, row.reason);
    }
    out
}

/// The rows as JUnit XML.
pub fn junit(rows: &[Row]) -> String {
    let counts = count(rows);
    let skipped = counts.skipped + counts.builtin;
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"vm\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\">\n",
        rows.len(),
        counts.failed,
    );
    for row in rows {
        let _ = write!(
            out,
            "<testcase classname=\"{}.{}\" name=\"{}\" time=\"{}.{:03}\">",
            escape(&row.machine),
            escape(&row.suite),
            escape(&row.name),
            row.ms / 1000,
            row.ms % 1000,
        );
        let reason = escape(&row.reason);
        let _ = match row.mark {
            Mark::Passed => Ok(()),
            Mark::Failed => write!(out, "<failure message=\"{reason}\"/>"),
            Mark::Skipped => write!(out, "<skipped message=\"{reason}\"/>"),
            Mark::Builtin => write!(out, "<skipped message=\"built-in: {reason}\"/>"),
        };
        if let Some(served) = row.served {
            let _ = write!(out, "<system-out>served={served}</system-out>");
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write other control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Differs, Expected, Failed, Passed, Skipped};

    fn case(verdict: Verdict, served: Option<u64>, accepted: Option<u64>) -> Case {
        Case {
            suite: "s".into(),
            name: "c".into(),
            verdict,
            reason: "why".into(),
            served,
            accepted,
            ms: 1500,
        }
    }

    fn mark(builtin: Verdict, ours: Verdict, served: Option<u64>, accepted: Option<u64>) -> Mark {
        compare("plain", &[case(builtin, None, accepted)], Some(&[case(ours, served, accepted)]))[0]
            .mark
    }

    #[test]
    fn worse_than_the_built_in_fails() {
        assert_eq!(mark(Passed, Passed, Some(3), None), Mark::Passed);
        assert_eq!(mark(Passed, Failed, Some(3), None), Mark::Failed);
        assert_eq!(mark(Passed, Skipped, Some(0), None), Mark::Failed);
        assert_eq!(mark(Expected, Expected, Some(1), None), Mark::Passed);
        assert_eq!(mark(Failed, Failed, Some(1), None), Mark::Skipped);
        assert_eq!(mark(Failed, Passed, Some(1), None), Mark::Passed);
        assert_eq!(mark(Skipped, Skipped, Some(0), None), Mark::Skipped);
        assert_eq!(mark(Differs, Passed, Some(1), None), Mark::Passed);
        assert_eq!(mark(Differs, Failed, Some(1), None), Mark::Failed);
        assert_eq!(mark(Differs, Skipped, Some(1), None), Mark::Failed);
        let gone = compare("plain", &[case(Passed, None, None)], Some(&[]));
        assert_eq!(gone[0].mark, Mark::Failed);
    }

    #[test]
    fn what_we_did_not_serve_is_not_ours() {
        assert_eq!(mark(Passed, Passed, Some(0), None), Mark::Builtin);
        assert_eq!(mark(Passed, Passed, None, None), Mark::Builtin);
        assert_eq!(mark(Passed, Passed, Some(0), Some(2)), Mark::Builtin);
        assert_eq!(mark(Passed, Passed, Some(0), Some(0)), Mark::Passed);
    }

    #[test]
    fn without_a_module_the_reference_is_judged() {
        let rows = compare("plain", &[case(Failed, None, None)], None);
        assert_eq!(rows[0].mark, Mark::Failed);
        let rows = compare("plain", &[case(Passed, None, None)], None);
        assert_eq!(rows[0].mark, Mark::Passed);
        let rows = compare("plain", &[case(Differs, None, None)], None);
        assert_eq!(rows[0].mark, Mark::Skipped);
    }

    #[test]
    fn a_case_only_ours_has_counts() {
        let rows = compare("plain", &[], Some(&[case(Failed, Some(1), None)]));
        assert_eq!(rows[0].mark, Mark::Failed);
    }

    #[test]
    fn a_case_that_fails_once_has_failed() {
        let named =
            |verdict, served| Case { suite: "aio_test".into(), ..case(verdict, served, None) };
        let runs = vec![named(Passed, Some(5)), named(Failed, Some(0)), named(Passed, Some(7))];
        let one = repeated(runs, 3);
        assert_eq!((one.len(), one[0].verdict, one[0].served), (1, Failed, Some(0)));
        assert_eq!(one[0].reason, "1 of 3 times: why");
        let good = repeated(vec![named(Passed, Some(5)), named(Passed, Some(4))], 2);
        assert_eq!((good[0].verdict, good[0].served), (Passed, Some(4)));
        let short = repeated(vec![named(Passed, Some(5))], 2);
        assert_eq!(short[0].verdict, Failed);
        assert!(short[0].reason.contains("ran 1 of 2 times"));
        // Ours run once whatever the number.
        let ours = Case { suite: "conformance-ufs".into(), ..case(Passed, Some(1), None) };
        assert_eq!(repeated(vec![ours], 2)[0].verdict, Passed);
    }

    #[test]
    fn counts_and_forms() {
        let rows = [
            Row::step("plain", "load", Ok(String::new())),
            Row::step("plain", "unload", Err("kldunload: <busy> & \"stuck\"".into())),
            Row::skipped("debug", "boot", "no machine"),
        ];
        let counts = count(&rows);
        assert_eq!(summary(counts), "vm: passed 1 failed 1 skipped 1");
        let xml = junit(&rows);
        assert!(xml.contains("tests=\"3\" failures=\"1\" skipped=\"1\""));
        assert!(xml.contains("&lt;busy&gt; &amp; &quot;stuck&quot;"));
        assert!(text(&rows).contains("step/unload"));
        let failed = "FAILED  plain step/unload: kldunload: <busy> & \"stuck\"\n";
        assert_eq!(failures(&rows), failed);
        assert_eq!(summary(Counts { builtin: 2, ..counts }), "vm: passed 1 failed 1 skipped 3");
    }
}
