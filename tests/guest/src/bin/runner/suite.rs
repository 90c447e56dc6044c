// SPDX-License-Identifier: BSD-2-Clause
//! The base system's suite, case by case: with kyua(1) where the guest has it and the suite its
//! Kyuafile, else by the interface of the programs themselves.

use crate::{Job, Runner, Sink, Words, for_each_line};
use guest::kyua::{Reader, listed, verdict};
use guest::out::Text;
use guest::path::Path;
use guest::sys::{self, Ended};
use guest::sysctl::Maybe;

/// What kyua adds to a case's own time limit: it starts, writes its results, and is run again to
/// report them, on a slow machine.
const KYUA_MS: u64 = 120_000;
/// A case's limit where it names none, by kyua and by atf.
const DEFAULT_MS: u64 = 300_000;

/// The most cases that an ATF program may have.
const CASES: usize = 256;

/// One case as an ATF program lists it.
#[derive(Clone, Copy)]
struct Case {
    name: Text<64>,
    has_cleanup: bool,
    timeout_s: u64,
}

/// Runs every case of an ATF program by its own command line, each in a fresh directory, followed
/// by its cleanup part.
pub fn atf(runner: &mut Runner, suite: &str, limit_ms: u64, program: &str) {
    let mut list = Path::of(format_args!("{}", runner.work));
    list.push(b"cases.txt");
    let mut command = Words::empty();
    let listing = Path::of(format_args!("{program} -l > {list}"));
    ["/bin/sh", "-c", listing.as_str()].into_iter().for_each(|word| command.push(word));
    let name = Text::<80>::of(format_args!("{suite}/list"));
    let job = Job { name: name.as_str(), limit_ms: 60_000, lines: false, dir: None, result: None };
    if !runner.run(&job, &mut command).good() {
        return;
    }
    let mut cases = [Case { name: Text::new(), has_cleanup: false, timeout_s: 0 }; CASES];
    let mut count = 0;
    for_each_line(&list, |line| {
        let (key, value) = line.split_once(": ").unwrap_or((line, ""));
        if key == "ident" && count < CASES {
            cases[count].name = Text::of(format_args!("{value}"));
            count += 1;
        } else if count > 0 && key == "has.cleanup" {
            cases[count - 1].has_cleanup = value == "true";
        } else if count > 0 && key == "timeout" {
            cases[count - 1].timeout_s = value.parse().unwrap_or(0);
        }
    });
    let _ = sys::unlink(list.as_cstr());
    for case in &cases[..count] {
        atf_case(runner, suite, limit_ms, program, case);
    }
}

fn atf_case(runner: &mut Runner, suite: &str, limit_ms: u64, program: &str, case: &Case) {
    let case_name = case.name.as_str();
    let name = Text::<128>::of(format_args!("{suite}/{case_name}"));
    let source = program.rsplit_once('/').map_or(".", |(dir, _)| dir);
    let Some(mut dir) = runner.fresh_dir() else { return };
    // Outside the case's directory: cases may count what is in there.
    let mut result = runner.work;
    result.push(b"result");
    let _ = sys::unlink(result.as_cstr());
    let part = |part: &str| {
        Words::split(
            Path::of(format_args!("{program} -r {result} -s {source} {case_name}{part}")).as_str(),
        )
    };
    // Its own limit where it has one, but not below what an emulated machine needs.
    let limit_ms = limit_ms.max(case.timeout_s * 1000);
    runner.say(format_args!("@begin {}", name.as_str()));
    runner.flush();
    let job =
        Job { name: name.as_str(), limit_ms, lines: false, dir: Some(dir), result: Some(result) };
    let mut sink = Sink::new(false);
    let outcome = runner.execute(&job, &part(""), &mut sink);
    let mut text = Text::<400>::new();
    for_each_line(&result, |line| {
        if text.as_bytes().is_empty() {
            text = Text::of(format_args!("{line}"));
        }
    });
    if case.has_cleanup {
        let mut rest = Sink::new(false);
        let cleaned = runner.execute(&job, &part(":cleanup"), &mut rest);
        if !cleaned.good() {
            runner.say(format_args!("@out {} cleanup failed", name.as_str()));
            rest.finish(runner, name.as_str());
        }
    }
    let text = text.as_str();
    let word = text.split([':', '(']).next().unwrap_or("").trim();
    let expected_end = matches!(
        (word, outcome.ended, outcome.timed_out),
        ("expected_timeout", _, true)
            | ("expected_death", _, false)
            | ("expected_exit", Some(Ended::Exit(_)), false)
            | ("expected_signal", Some(Ended::Signal(_)), false)
    );
    let verdict = match word {
        _ if expected_end => "expected_failure",
        _ if outcome.timed_out => "timeout",
        "passed" | "skipped" | "expected_failure" if outcome.good() => word,
        "failed" => word,
        _ => "broken",
    };
    if !matches!(verdict, "passed" | "skipped" | "expected_failure") {
        sink.finish(runner, name.as_str());
    }
    runner.say(format_args!(
        "@case {} result={verdict} ms={} served={} {text}",
        name.as_str(),
        outcome.ms,
        Maybe(outcome.served),
    ));
    runner.flush();
    let _ = sys::unlink(result.as_cstr());
    let _ = sys::remove_tree(&mut dir);
}

/// Runs every case of a program with kyua, each by itself, so that what our engine served is known
/// case by case. Says whether kyua could be used at all.
pub fn kyua(runner: &mut Runner, suite: &str, limit_ms: u64, program: &str) -> bool {
    let Some((dir, name)) = program.rsplit_once('/') else { return false };
    let file = Path::of(format_args!("{dir}/Kyuafile"));
    let tool = [c"/usr/bin/kyua", c"/usr/local/bin/kyua"].into_iter().find(|&tool| exists(tool));
    let (Some(tool), true) = (tool.and_then(|tool| tool.to_str().ok()), exists(file.as_cstr()))
    else {
        return false;
    };
    let mut list = runner.work;
    list.push(b"cases.txt");
    let listing = Path::of(format_args!("{tool} list -k {file} {name} > {list}"));
    let step = Text::<80>::of(format_args!("{suite}/list"));
    let job = Job { name: step.as_str(), limit_ms: KYUA_MS, lines: false, dir: None, result: None };
    if !runner.run(&job, &mut Words::shell(listing.as_str())).good() {
        return true;
    }
    let mut cases = [const { Text::<64>::new() }; CASES];
    let mut count = 0;
    for_each_line(&list, |line| {
        if let Some(case) = listed(line, name)
            && count < CASES
        {
            cases[count] = Text::of(format_args!("{case}"));
            count += 1;
        }
    });
    let _ = sys::unlink(list.as_cstr());
    for case in &cases[..count] {
        let case = case.as_str();
        kyua_case(
            runner,
            suite,
            limit_ms.max(DEFAULT_MS) + KYUA_MS,
            &Kyua { tool, file, name, case },
        );
    }
    true
}

/// A case, as kyua is told of it.
struct Kyua<'a> {
    tool: &'a str,
    file: Path,
    name: &'a str,
    case: &'a str,
}

fn kyua_case(runner: &mut Runner, suite: &str, limit_ms: u64, kyua: &Kyua<'_>) {
    let Kyua { tool, file, name, case } = kyua;
    let step = Text::<128>::of(format_args!("{suite}/{case}"));
    let Some(mut dir) = runner.fresh_dir() else { return };
    let mut report = runner.work;
    report.push(b"result");
    let mut store = runner.work;
    store.push(b"kyua.db");
    let _ = sys::unlink(report.as_cstr());
    // kyua wants a fresh results file, and works in a directory of its own under TMPDIR.
    let command = Path::of(format_args!(
        "rm -f {store}; TMPDIR={dir} {tool} --logfile=/dev/null test -k {file} -r {store} {name}:{case}; \
         {tool} --logfile=/dev/null report -r {store} --verbose \
         --results-filter=passed,skipped,xfail,broken,failed > {report}"
    ));
    runner.say(format_args!("@begin {}", step.as_str()));
    runner.flush();
    let job = Job { name: step.as_str(), limit_ms, lines: false, dir: None, result: None };
    let mut sink = Sink::new(false);
    let outcome = runner.execute(&job, &Words::shell(command.as_str()), &mut sink);
    let mut result = Text::<400>::new();
    let mut reader = Reader::default();
    for_each_line(&report, |line| {
        if let Some(found) = reader.line(line, name, case) {
            result = Text::of(format_args!("{found}"));
        }
    });
    let word = if outcome.timed_out { "timeout" } else { verdict(result.as_str()) };
    if !matches!(word, "passed" | "skipped" | "expected_failure") {
        sink.finish(runner, step.as_str());
    }
    runner.say(format_args!(
        "@case {} result={word} ms={} served={} {}",
        step.as_str(),
        outcome.ms,
        Maybe(outcome.served),
        result.as_str(),
    ));
    runner.flush();
    let _ = sys::unlink(report.as_cstr());
    let _ = sys::unlink(store.as_cstr());
    let _ = sys::remove_tree(&mut dir);
}

fn exists(path: &core::ffi::CStr) -> bool {
    sys::open(path, sys::O_RDONLY, 0).map(sys::close).is_ok()
}
