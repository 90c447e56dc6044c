// SPDX-License-Identifier: BSD-2-Clause
//! What the guest's runner reports: the blocks on the report disk, and the lines in them.

use std::collections::BTreeMap;

const BLOCK: usize = 4096;
const HEADER: usize = 16;

/// The text in a report disk's blocks, as far as they follow each other.
pub fn text_of_disk(disk: &[u8]) -> String {
    let mut text = Vec::new();
    for (index, block) in disk.chunks_exact(BLOCK).enumerate() {
        let number = u32::from_le_bytes([block[8], block[9], block[10], block[11]]) as usize;
        let len = u32::from_le_bytes([block[12], block[13], block[14], block[15]]) as usize;
        if block[..8] != *b"VMREPORT" || number != index || len > BLOCK - HEADER {
            break;
        }
        text.extend_from_slice(&block[HEADER..HEADER + len]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// One program that the runner ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Its name in the plan.
    pub name: String,
    /// Exit status; -1 when a signal ended it.
    pub exit: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// Whether its time was up.
    pub timeout: bool,
    /// How long it ran.
    pub ms: u64,
    /// Requests that our engine completed meanwhile; `None` when it was not loaded.
    pub served: Option<u64>,
    /// Its output.
    pub out: Vec<String>,
    /// Whether it ended at all.
    pub ended: bool,
}

impl Run {
    /// Whether it exited with status 0 in its time.
    pub fn good(&self) -> bool {
        self.ended && self.exit == 0 && !self.timeout
    }

    /// Why it is not good, in a few words.
    pub fn why(&self) -> String {
        let last = self.out.iter().rev().find(|line| !line.trim().is_empty());
        let what = match self {
            Self { ended: false, .. } => "did not end".to_owned(),
            Self { timeout: true, .. } => format!("time-out after {} s", self.ms / 1000),
            Self { signal, .. } if *signal != 0 => format!("signal {signal}"),
            Self { exit, .. } => format!("exit status {exit}"),
        };
        last.map_or_else(|| what.clone(), |last| format!("{what}: {last}"))
    }
}

/// How a case went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did what it promises.
    Passed,
    /// It did not.
    Failed,
    /// It was not run, and says why.
    Skipped,
    /// It failed as its authors declared it would.
    Expected,
    /// It failed on the built-in, which is declared not to keep the promise.
    Differs,
}

/// One case of a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The suite.
    pub suite: String,
    /// The case.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// Why, where it did not pass.
    pub reason: String,
    /// Requests that our engine completed in it.
    pub served: Option<u64>,
    /// Requests that were accepted in it, where the case counts them.
    pub accepted: Option<u64>,
    /// How long it took.
    pub ms: u64,
}

/// All that was reported.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The programs, in order.
    pub runs: Vec<Run>,
    /// The cases of ATF programs and of our conformance program.
    pub cases: Vec<Case>,
    /// Counters, by tag and name.
    pub values: BTreeMap<(String, String), Option<u64>>,
    /// The step that ended the plan early.
    pub aborted: Option<String>,
    /// What the runner itself complained of.
    pub errors: Vec<String>,
    /// Whether the plan came to its end.
    pub done: bool,
}

impl Report {
    /// Reads the runner's lines; others are passed over.
    pub fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let line = line.trim_end();
            let Some(line) = line.strip_prefix('@') else { continue };
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            report.line(word, rest);
        }
        report
    }

    /// The last program of a name.
    pub fn run(&self, name: &str) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.name == name)
    }

    /// A counter.
    pub fn value(&self, tag: &str, name: &str) -> Option<u64> {
        self.values.get(&(tag.to_owned(), name.to_owned())).copied().flatten()
    }

    /// What was running when the report ends, if it ends too early.
    pub fn unfinished(&self) -> Option<&str> {
        self.runs.iter().rev().find(|run| !run.ended).map(|run| run.name.as_str())
    }

    fn line(&mut self, word: &str, rest: &str) {
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "begin" => self.runs.push(Run { name: name.to_owned(), ..Run::default() }),
            "out" => {
                if let Some(run) = self.runs.iter_mut().rev().find(|run| run.name == name) {
                    run.out.push(rest.to_owned());
                }
                if let Some(case) = conformance_case(name, rest) {
                    self.cases.push(case);
                }
            }
            "end" => {
                let fields = fields(rest);
                let number = |key: &str| fields.get(key).and_then(|text| text.parse::<i64>().ok());
                if let Some(run) = self.runs.iter_mut().rev().find(|run| run.name == name) {
                    run.exit = number("exit").unwrap_or(-1) as i32;
                    run.signal = number("signal").unwrap_or(-1) as i32;
                    run.timeout = number("timeout") == Some(1);
                    run.ms = number("ms").unwrap_or(0) as u64;
                    run.served = number("served").map(|served| served as u64);
                    run.ended = true;
                }
            }
            "case" => self.atf_case(name, rest),
            "value" => {
                let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                self.values.insert((name.to_owned(), key.to_owned()), value.parse().ok());
            }
            "abort" => self.aborted = Some(name.to_owned()),
            "error" => self.errors.push(format!("{name} {rest}").trim_end().to_owned()),
            "done" => self.done = true,
            _ => {}
        }
    }

    fn atf_case(&mut self, name: &str, rest: &str) {
        let (suite, case) = name.split_once('/').unwrap_or(("", name));
        let fields = fields(rest);
        // The reason follows the three fields.
        let reason = rest.splitn(4, ' ').nth(3).unwrap_or("").to_owned();
        let result = fields.get("result").copied().unwrap_or("broken");
        let out = match self.runs.iter().rposition(|run| run.name == name) {
            Some(at) => self.runs.remove(at).out,
            None => Vec::new(),
        };
        let verdict = match result {
            "passed" => Verdict::Passed,
            "skipped" => Verdict::Skipped,
            "expected_failure" => Verdict::Expected,
            _ => Verdict::Failed,
        };
        let mut why = match verdict {
            Verdict::Passed => String::new(),
            Verdict::Failed if reason.is_empty() => result.to_owned(),
            _ => reason,
        };
        if verdict == Verdict::Failed
            && let Some(last) = out.iter().rev().find(|line| !line.trim().is_empty())
            && !why.contains(last.as_str())
        {
            why = format!("{why}; {last}");
        }
        self.cases.push(Case {
            suite: suite.to_owned(),
            name: case.to_owned(),
            verdict,
            reason: why,
            served: fields.get("served").and_then(|text| text.parse().ok()),
            accepted: None,
            ms: fields.get("ms").and_then(|text| text.parse().ok()).unwrap_or(0),
        });
    }
}

fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.split(' ').filter_map(|word| word.split_once('=')).collect()
}

/// How the names of runs of the programs with cases begin.
const CASE_PROGRAMS: [&str; 5] = ["conformance", "disks", "pipes", "policy", "sockets"];

/// A line of our conformance program: `ok NAME ...`, or `FAIL`, `skip` or `differs NAME: why ...`,
/// ending in `served=N accepted=N ms=N`.
fn conformance_case(run: &str, line: &str) -> Option<Case> {
    if !CASE_PROGRAMS.iter().any(|program| run.starts_with(program)) {
        return None;
    }
    let (word, rest) = line.split_once(' ')?;
    let verdict = match word {
        "ok" => Verdict::Passed,
        "FAIL" => Verdict::Failed,
        "skip" => Verdict::Skipped,
        "differs" => Verdict::Differs,
        _ => return None,
    };
    let (text, counts) = match rest.rfind(" served=") {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let (name, reason) = text.split_once(": ").unwrap_or((text, ""));
    let counts = fields(counts);
    let number = |key: &str| counts.get(key).and_then(|text| text.parse().ok());
    Some(Case {
        suite: run.to_owned(),
        name: name.to_owned(),
        verdict,
        reason: reason.to_owned(),
        served: number("served"),
        accepted: number("accepted"),
        ms: number("ms").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u32, text: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..8].copy_from_slice(b"VMREPORT");
        block[8..12].copy_from_slice(&number.to_le_bytes());
        block[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        block[16..16 + text.len()].copy_from_slice(text.as_bytes());
        block
    }

    #[test]
    fn blocks_join_until_one_is_missing() {
        let mut disk = block(0, "a\n");
        disk.extend(block(1, "b\n"));
        disk.extend(block(3, "d\n"));
        assert_eq!(text_of_disk(&disk), "a\nb\n");
        assert_eq!(text_of_disk(&vec![0; BLOCK]), "");
        assert_eq!(text_of_disk(&block(1, "late\n")), "");
    }

    #[test]
    fn runs_and_values() {
        let report = Report::parse(
            "noise\n@begin demo\n@out demo hello world\n@end demo exit=0 signal=0 timeout=0 ms=12 served=7\n\
             @value before kern.openfiles 51\n@value before vfs.aio.rs.served -\n@begin next\n@out next x\n",
        );
        let demo = report.run("demo").unwrap();
        assert!(demo.good());
        assert_eq!(demo.served, Some(7));
        assert_eq!(demo.out, ["hello world"]);
        assert_eq!(report.value("before", "kern.openfiles"), Some(51));
        assert_eq!(report.value("before", "vfs.aio.rs.served"), None);
        assert_eq!(report.unfinished(), Some("next"));
        assert!(!report.done);
        assert!(report.run("next").unwrap().why().contains("did not end"));
    }

    #[test]
    fn failures_say_why() {
        let report = Report::parse(
            "@begin x\n@out x kldload: can't load\n@end x exit=1 signal=0 timeout=0 ms=3 served=-\n@abort x\n@done\n",
        );
        assert_eq!(report.run("x").unwrap().why(), "exit status 1: kldload: can't load");
        assert_eq!(report.aborted.as_deref(), Some("x"));
        assert!(report.done);
    }

    #[test]
    fn atf_results() {
        let report = Report::parse(
            "@begin aio/file_poll\n@case aio/file_poll result=passed ms=30 served=4 passed\n\
             @begin aio/md_kq\n@out aio/md_kq bad luck\n@case aio/md_kq result=failed ms=5 served=0 failed: aio_test.c:1: no\n\
             @begin aio/zvol\n@case aio/zvol result=skipped ms=5 served=- skipped: Required kernel module zfs\n\
             @begin lio/x\n@case lio/x result=expected_failure ms=5 served=0 expected_timeout: Bug 251515\n\
             @begin lio/y\n@case lio/y result=broken ms=5 served=0 \n",
        );
        let verdicts: Vec<_> = report.cases.iter().map(|case| case.verdict).collect();
        use Verdict::{Expected, Failed, Passed, Skipped};
        assert_eq!(verdicts, [Passed, Failed, Skipped, Expected, Failed]);
        assert_eq!(report.cases[0].served, Some(4));
        assert_eq!(report.cases[1].reason, "failed: aio_test.c:1: no; bad luck");
        assert_eq!(report.cases[2].reason, "skipped: Required kernel module zfs");
        assert_eq!(report.cases[4].reason, "broken");
        assert!(report.runs.is_empty());
    }

    #[test]
    fn conformance_lines() {
        let report = Report::parse(
            "@begin conformance-ufs\n@out conformance-ufs ok read_whole served=3 accepted=3 ms=4\n\
             @out conformance-ufs FAIL cancel_queued: got EINVAL served=0 accepted=1 ms=5\n\
             @out conformance-ufs skip capsicum: no capability mode served=- accepted=0 ms=0\n\
             @out conformance-ufs differs f1: it leaks: got 5 served=- accepted=0 ms=0\n\
             @out conformance-ufs conformance: 1 ok, 1 failed\n\
             @begin sockets\n@out sockets ok socket_x served=3 accepted=3 ms=4\n\
             @begin storm\n@out storm ok storm_x served=3 accepted=3 ms=4\n",
        );
        assert_eq!(report.cases.len(), 5);
        assert_eq!(report.cases[4].suite, "sockets");
        assert_eq!(report.cases[3].verdict, Verdict::Differs);
        assert_eq!(report.cases[3].reason, "it leaks: got 5");
        assert_eq!(report.cases[0].name, "read_whole");
        assert_eq!(report.cases[0].accepted, Some(3));
        assert_eq!(report.cases[1].reason, "got EINVAL");
        assert_eq!(report.cases[2].served, None);
    }
}
