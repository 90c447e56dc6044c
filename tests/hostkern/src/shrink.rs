// SPDX-License-Identifier: BSD-2-Clause
//! The shortest schedule found that still fails: delta debugging over the decisions of a run.
//!
//! A seed's run is repeated with its decisions written down. Schedules with few decisions are tried
//! first, for one of them may fail in the same way. Then the end of the list is left out, and then
//! parts of it, the last first: what comes before a part that is missing happens as it did. Everything
//! else in the run (its programs, what the seed decides besides turns) stays.

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
    // A beginning that does.
    let mut too_short = 0;
    while list.len() - too_short > 1 && tries < most {
        let middle = too_short + (list.len() - too_short) / 2;
        tries += 1;
        match first_failing(&[list[..middle].to_vec()]) {
            Some(_) => list.truncate(middle),
            None => too_short = middle,
        }
    }
    // Parts, from the last to the first: after one was left out the one before it is next.
    let mut parts = 2;
    let mut from = 0;
    while list.len() > 1 {
        parts = parts.min(list.len());
        let size = list.len().div_ceil(parts);
        let count = list.len().div_ceil(size);
        let order: Vec<usize> = (0..count).map(|index| (from + index) % count).collect();
        let without = |part: usize| {
            let end = list.len() - part * size;
            [&list[..end.saturating_sub(size)], &list[end..]].concat()
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
    // What the kernel says comes before what a program does.
    let marks = ["PANIC: ", "BROKEN: ", "LEFT OVER: ", "BAD", "FAIL"];
    let line = marks.iter().find_map(|mark| log.lines().find(|line| line.contains(mark)));
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
    /// Once in so many points a breakpoint is made in the run as it is.
    pub stops: u64,
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

/// How seldom threads lose their turn in the schedules that are tried first, in scheduling points, and
/// how many of each are tried.
const SELDOM: [u64; 6] = [30_000, 10_000, 3_000, 1_000, 300, 100];
const SCHEDULES: u64 = 8;

/// The runs that are made.
struct Tries<'a> {
    case: &'a Case,
    dir: PathBuf,
    /// How they are to fail.
    wanted: String,
    made: usize,
    shown: Instant,
}

impl Tries<'_> {
    fn file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{index}.decisions"))
    }

    /// Makes several runs; the first of them that fails as it is to.
    fn first(&mut self, runs: &[Vec<String>]) -> Option<usize> {
        let jobs = self.case.jobs.max(1);
        for (group, some) in runs.chunks(jobs).enumerate() {
            let children: Vec<_> = some
                .iter()
                .enumerate()
                .map(|(index, words)| {
                    let its = self.dir.join(format!("{}", index + 1));
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    let child = self.case.start(&its, &words);
                    (its, child)
                })
                .collect();
            self.made += some.len();
            let mut first = None;
            for (index, (its, child)) in children.into_iter().enumerate() {
                let fails = self.case.wait(&its, child).0.as_ref() == Some(&self.wanted);
                if fails && first.is_none() {
                    first = Some(group * jobs + index);
                }
            }
            if first.is_some() {
                return first;
            }
        }
        None
    }

    /// The same for lists of decisions.
    fn first_list(&mut self, lists: &[Vec<Decision>]) -> Option<usize> {
        if self.shown.elapsed() > Duration::from_secs(5) {
            self.shown = Instant::now();
            eprint!("\rhostkern: {} tries, {} decisions ", self.made, lists[0].len());
        }
        let runs: Vec<Vec<String>> = lists
            .iter()
            .enumerate()
            .map(|(index, list)| {
                let path = self.file(index + 1);
                std::fs::write(&path, decisions::text(list)).expect("a list");
                vec!["--replay".to_owned(), path.display().to_string()]
            })
            .collect();
        self.first(&runs)
    }

    /// The decisions of a schedule that has few of them, and fails too.
    fn sparse(&mut self) -> Option<Vec<Decision>> {
        for odds in SELDOM {
            let words = |number: u64| {
                let mut words = vec!["--policy".to_owned(), format!("seldom:{odds}")];
                let stops = if number % 2 == 1 { 0 } else { self.case.stops * odds / 100 };
                words.extend(["--preempt".to_owned(), stops.to_string()]);
                words.extend(["--schedule".to_owned(), number.to_string()]);
                let path = self.file(number as usize);
                words.extend(["--record".to_owned(), path.display().to_string()]);
                words
            };
            let runs: Vec<Vec<String>> = (1..=SCHEDULES).map(words).collect();
            if let Some(index) = self.first(&runs) {
                let text = std::fs::read_to_string(self.file(index + 1)).unwrap_or_default();
                return decisions::parse(&text).ok();
            }
        }
        None
    }
}

/// Makes the run, and shorter ones; says what came out.
pub fn run(case: &Case, again: &dyn Fn(&Path) -> String) -> ExitCode {
    let begun = Instant::now();
    let dir = std::env::temp_dir().join(format!("hostkern-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let text = |path: &Path| path.display().to_string();
    let whole = text(&dir.join("whole.decisions"));
    let (wanted, log) =
        case.wait(&dir.join("0"), case.start(&dir.join("0"), &["--record", &whole]));
    let Some(wanted) = wanted else {
        println!("hostkern: the run does not fail");
        return ExitCode::FAILURE;
    };
    let list = std::fs::read_to_string(&whole).unwrap_or_default();
    let mut list: Vec<Decision> = decisions::parse(&list).unwrap_or_default();
    let count = list.len();
    println!("hostkern: it fails with {count} decisions: {wanted}");
    let mut tries =
        Tries { case, dir: dir.clone(), wanted: wanted.clone(), made: 0, shown: Instant::now() };
    if tries.first_list(std::slice::from_ref(&list)).is_none() {
        println!("hostkern: its decisions alone do not repeat it\n{log}");
        return ExitCode::FAILURE;
    }
    if let Some(few) = tries.sparse().filter(|few| few.len() < count) {
        println!("hostkern: so does a schedule with {} decisions", few.len());
        list = few;
    }
    let found = shortest(list, case.most, |lists| tries.first_list(lists));
    let mut words = format!("# {wanted}\n");
    words += &decisions::text(&found.list);
    std::fs::write(&case.result, words).expect("the list");
    let child = case.start(&dir.join("0"), &["--replay", &text(&case.result), "--trail", "60"]);
    let (kind, log) = case.wait(&dir.join("0"), child);
    let from = log.find("hostkern: PANIC").or_else(|| log.find("hostkern: LEFT OVER"));
    println!("{}", log[from.unwrap_or(0)..].trim_end());
    println!(
        "hostkern: {} decisions instead of {count}{}; {} tries, {} s; {}",
        found.list.len(),
        if found.minimal { ", none of which can be left out" } else { "" },
        tries.made,
        begun.elapsed().as_secs(),
        case.result.display()
    );
    println!("hostkern: repeat with: {}", again(&case.result));
    let _ = std::fs::remove_dir_all(&dir);
    if kind == Some(wanted) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
        assert_eq!(of(&format!("stress: BAD: no\n{first}")), of(first));
        assert_eq!(of("stress: BAD: pid 12: byte 9"), of("stress: BAD: pid 7: byte 123"));
        assert_eq!(kind(true, first), None);
        assert!(kind(false, "").is_some());
    }
}
