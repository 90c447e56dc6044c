// SPDX-License-Identifier: BSD-2-Clause
//! The shortest schedule found that still fails: delta debugging over the decisions of a run.
//!
//! A seed's run is repeated with its decisions written down; then parts of the list are left out, as
//! long as what is left fails in the same way. Everything else in the run (its programs, what the
//! seed decides besides turns) stays.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::decisions::{self, Decision};

/// What [`shortest`] was able to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub list: Vec<T>,
    pub tries: usize,
    /// Whether nothing can be left out of it alone; else the tries were used up.
    pub minimal: bool,
}

/// Leaves out of a list that fails what can be left out, in at most `most` tries. `first_failing` is
/// given several lists and says which is the first that fails.
pub fn shortest<T: Clone>(
    mut list: Vec<T>,
    most: usize,
    mut first_failing: impl FnMut(&[Vec<T>]) -> Option<usize>,
) -> Found<T> {
    let mut tries = 1;
    if first_failing(&[Vec::new()]).is_some() {
        return Found { list: Vec::new(), tries, minimal: true };
    }
    let mut parts = 2;
    // Where to go on: after a part was left out the next one is as good a guess as any.
    let mut from = 0;
    while list.len() > 1 {
        parts = parts.min(list.len());
        let size = list.len().div_ceil(parts);
        let count = list.len().div_ceil(size);
        let order: Vec<usize> = (0..count).map(|index| (from + index) % count).collect();
        let without = |part: usize| {
            let (start, end) = (part * size, list.len().min((part + 1) * size));
            [&list[..start], &list[end..]].concat()
        };
        let mut left_out = None;
        // Some at a time, as many as can be tried at once.
        for some in order.chunks(AT_ONCE) {
            if tries + some.len() > most {
                return Found { list, tries, minimal: false };
            }
            tries += some.len();
            let lists: Vec<Vec<T>> = some.iter().map(|&part| without(part)).collect();
            if let Some(index) = first_failing(&lists) {
                left_out = Some((some[index], lists.into_iter().nth(index).expect("one of them")));
                break;
            }
        }
        match left_out {
            Some((part, shorter)) => {
                list = shorter;
                parts = (count - 1).max(2);
                from = part;
            }
            None if size == 1 => return Found { list, tries, minimal: true },
            None => {
                parts = (count * 2).min(list.len());
                from = 0;
            }
        }
    }
    Found { list, tries, minimal: true }
}

/// How many lists are tried at once.
pub const AT_ONCE: usize = 4;

/// How a run failed, without numbers: two runs that have the same failed in the same way. `None`
/// for one that did not.
pub fn kind(success: bool, log: &str) -> Option<String> {
    if success {
        return None;
    }
    let marks = ["PANIC: ", "BROKEN: ", "LEFT OVER: ", "BAD", "FAIL"];
    let line = log.lines().find(|line| marks.iter().any(|mark| line.contains(mark)));
    let mut kind = String::new();
    for word in line.unwrap_or("an exit status").split_whitespace() {
        let number = word.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        kind += if number.is_empty() { word } else { &word[..word.len() - number.len()] };
        kind.push(' ');
    }
    Some(kind)
}

/// A run to be made shorter.
pub struct Case {
    /// The command, but for what it decides: how it is to do so comes before its programs.
    pub command: Vec<String>,
    pub programs: Vec<String>,
    pub jobs: usize,
    /// Tries, at most.
    pub most: usize,
    /// Where the list is to be.
    pub result: PathBuf,
}

impl Case {
    /// Starts the run in a directory of its own.
    fn start(&self, dir: &Path, words: &[&str]) -> std::process::Child {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir.join("work")).expect("a temporary directory");
        let log = std::fs::File::create(dir.join("log")).expect("a log");
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(&self.command).args(words).args(&self.programs);
        command.current_dir(dir.join("work")).stdin(Stdio::null());
        command.stdout(log).stderr(Stdio::null()).spawn().expect("a run")
    }

    /// Waits for it; how it failed, and its output.
    fn wait(&self, dir: &Path, mut child: std::process::Child) -> (Option<String>, String) {
        let status = child.wait().expect("a child");
        let log = std::fs::read(dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        (kind(status.success(), &log), log)
    }
}

/// Makes the run, and shorter ones; says what came out.
pub fn run(case: &Case, again: &dyn Fn(&Path) -> String) -> ExitCode {
    let begun = Instant::now();
    let dir = std::env::temp_dir().join(format!("hostkern-{}", std::process::id()));
    let text = |path: &Path| path.display().to_string();
    let file = |index: usize| dir.join(format!("{index}.decisions"));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let whole = text(&file(0));
    let (wanted, log) =
        case.wait(&dir.join("0"), case.start(&dir.join("0"), &["--record", &whole]));
    let Some(wanted) = wanted else {
        println!("hostkern: the run does not fail");
        return ExitCode::FAILURE;
    };
    let list = std::fs::read_to_string(&whole).unwrap_or_default();
    let list: Vec<Decision> = decisions::parse(&list).unwrap_or_default();
    println!("hostkern: it fails with {} decisions: {wanted}", list.len());
    let mut shown = Instant::now();
    let mut tried = 0;
    let mut first_failing = |lists: &[Vec<Decision>]| -> Option<usize> {
        let mut first = None;
        for (group, some) in lists.chunks(case.jobs.max(1)).enumerate() {
            let children: Vec<_> = some
                .iter()
                .enumerate()
                .map(|(index, list)| {
                    let path = file(index + 1);
                    std::fs::write(&path, decisions::text(list)).expect("a list");
                    let its = dir.join(format!("{}", index + 1));
                    let child = case.start(&its, &["--replay", &text(&path)]);
                    (its, child)
                })
                .collect();
            for (index, (its, child)) in children.into_iter().enumerate() {
                let fails = case.wait(&its, child).0.as_ref() == Some(&wanted);
                if fails && first.is_none() {
                    first = Some(group * case.jobs.max(1) + index);
                }
            }
            tried += some.len();
            if first.is_some() {
                break;
            }
        }
        if shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            eprint!("\rhostkern: {tried} tries, {} decisions ", lists[0].len());
        }
        first
    };
    if first_failing(std::slice::from_ref(&list)).is_none() {
        println!("hostkern: its decisions alone do not repeat it\n{log}");
        return ExitCode::FAILURE;
    }
    let count = list.len();
    let found = shortest(list, case.most, first_failing);
    let mut text_of = format!("# {wanted}\n");
    text_of += &decisions::text(&found.list);
    std::fs::write(&case.result, text_of).expect("the list");
    let child = case.start(&dir.join("0"), &["--replay", &text(&case.result), "--trail", "60"]);
    let (kind, log) = case.wait(&dir.join("0"), child);
    let from = log.find("hostkern: PANIC").or_else(|| log.find("hostkern: LEFT OVER"));
    println!("{}", log[from.unwrap_or(0)..].trim_end());
    println!(
        "hostkern: {} decisions instead of {count}{}, {} tries, {} s, in {}",
        found.list.len(),
        if found.minimal { ", none of which can be left out" } else { "" },
        found.tries,
        begun.elapsed().as_secs(),
        case.result.display()
    );
    println!("hostkern: repeat with: {}", again(&case.result));
    let _ = std::fs::remove_dir_all(&dir);
    if kind.as_ref() == Some(&wanted) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure that wants all of these, in a list of so many.
    fn shrink(wanted: &[u32], count: u32, most: usize) -> Found<u32> {
        shortest((0..count).collect(), most, |lists| {
            lists.iter().position(|list| wanted.iter().all(|its| list.contains(its)))
        })
    }

    #[test]
    fn exactly_what_is_wanted_stays() {
        for wanted in [&[7][..], &[0, 999], &[3, 4, 500, 501, 998], &[]] {
            let found = shrink(wanted, 1000, usize::MAX);
            assert_eq!(found.list, wanted);
            assert!(found.minimal);
        }
    }

    #[test]
    fn few_of_many_are_found_in_few_tries() {
        let found = shrink(&[12_345, 12_346, 40_000], 50_000, usize::MAX);
        assert_eq!(found.list, [12_345, 12_346, 40_000]);
        assert!(found.tries < 400, "{}", found.tries);
    }

    #[test]
    fn a_bound_is_kept_and_what_was_found_until_then_fails() {
        let found = shrink(&[1, 100, 600, 900], 1000, 40);
        assert!(found.tries <= 40 && !found.minimal);
        assert!([1, 100, 600, 900].iter().all(|its| found.list.contains(its)));
        assert!(found.list.len() < 1000);
    }

    /// Either of two does, which a search by halves alone would not leave.
    #[test]
    fn nothing_of_the_result_can_be_left_out() {
        let fails = |list: &[u32]| {
            let has = |its: u32| list.contains(&its);
            has(10) && has(90) || has(20) && has(30) && has(40)
        };
        let found = shortest((0..100).collect(), usize::MAX, |lists| {
            lists.iter().position(|list| fails(list))
        });
        assert!(fails(&found.list));
        for index in 0..found.list.len() {
            let mut shorter = found.list.clone();
            shorter.remove(index);
            assert!(!fails(&shorter), "{:?}", found.list);
        }
    }

    #[test]
    fn failures_that_differ_in_numbers_are_the_same() {
        let of = |log: &str| kind(false, log).unwrap();
        let first =
            "hostkern: load: ok\nhostkern: PANIC: free of 0xf0012, which is not allocated\n";
        assert_eq!(of(first), of(&first.replace("f0012", "f99")));
        assert_ne!(of(first), of(&first.replace("free", "use")));
        assert_ne!(of(first), of("hostkern: LEFT OVER: 1 bios are left\n"));
        assert_eq!(of("stress: BAD: pid 12: byte 9"), of("stress: BAD: pid 7: byte 123"));
        assert_eq!(kind(true, first), None);
        assert!(kind(false, "").is_some());
    }
}
