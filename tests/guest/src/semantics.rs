// SPDX-License-Identifier: BSD-2-Clause
//! Compares docs/semantics.md, which says what promise each case checks, with the cases there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

/// The faults of old that must have a case with their name in its own.
const FAULTS: &str = "F1-F16 F18-F28 F30-F33 L1-L6 L9-L9 C1-C2 X1-X3 U1-U2 U4-U4 U7-U10";

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in a file's `cases!`, as the program tells them; a missing comma or a name in quotes
/// is the compiler's business.
fn cases_of(source: &str) -> Vec<String> {
    let Some((_, list)) = source.split_once("\ncases! { \"") else { return Vec::new() };
    let list = &list[..list.find("\n}").expect("the end of cases!")];
    let (group, list) = list.split_once("\":").expect("a group");
    let unquoted: String = list.split('"').step_by(2).collect();
    let names = unquoted.split(',').filter_map(|entry| entry.split_whitespace().next());
    names.map(|name| std::format!("{group}_{name}")).collect()
}

/// The text of each file of the programs with cases.
fn sources() -> Vec<String> {
    let programs = top().join("tests/guest/src/bin");
    let folder = |program| fs::read_dir(programs.join(program)).expect("a program's folder");
    let files = ["conformance", "sockets", "pipes", "disks", "policy"].into_iter().flat_map(folder);
    files.map(|file| read(&file.expect("a file").path())).collect()
}

fn all_cases() -> BTreeSet<String> {
    sources().iter().flat_map(|source| cases_of(source)).collect()
}

/// Those that the built-in does not pass.
fn differing(source: &str) -> Vec<String> {
    let Some((_, list)) = source.split_once("\ncases! { \"") else { return Vec::new() };
    let list = &list[..list.find("\n}").expect("the end of cases!")];
    let (group, list) = list.split_once("\":").expect("a group");
    let parts: Vec<&str> = list.split('"').step_by(2).collect();
    // What is in front of each text in quotes ends in a name and a word.
    let before = &parts[..parts.len() - 1];
    let names = before.iter().filter_map(|part| part.split_whitespace().rev().nth(1));
    names.map(|name| std::format!("{group}_{name}")).collect()
}

/// The words in backquotes of a text that look like cases: those with a blank, a dot or a hyphen in
/// them, or no underscore, are something else.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split('`').skip(1).step_by(2);
    words.filter(|word| word.contains('_') && !word.contains([' ', '.', '-', '/']))
}

/// Rows of the tables that begin with a number or a fault, by that.
fn rows(doc: &str) -> Vec<(&str, Vec<&str>)> {
    let first = |line: &'_ str| {
        line.strip_prefix("| ").and_then(|line| line.split_once(" |")).map(|(first, _)| first.len())
    };
    let rows = doc.lines().filter_map(|line| first(line).map(|len| (&line[2..2 + len], line)));
    let numbered = |key: &str| {
        let digits = key.trim_start_matches(|c: char| c.is_ascii_uppercase());
        key.len() - digits.len() <= 1
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    rows.filter(|(key, _)| numbered(key))
        .map(|(key, line)| (key, names_in(line).collect()))
        .collect()
}

fn faults() -> Vec<String> {
    let mut all = Vec::new();
    for range in FAULTS.split(' ') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text[1..].parse::<u32>().expect("a number");
        let letter = &range[..1];
        all.extend((number(first)..=number(last)).map(|number| std::format!("{letter}{number}")));
    }
    all
}

#[test]
fn every_name_is_a_case() {
    let cases = all_cases();
    assert!(cases.len() > 400, "only {} cases were found", cases.len());
    let doc = read(&top().join("docs/semantics.md"));
    // A function of the kernel, which modules do not import.
    let names = names_in(&doc).filter(|&name| name != "uma_zcreate");
    let gone: Vec<&str> = names.filter(|&name| !cases.contains(name)).collect();
    assert!(gone.is_empty(), "docs/semantics.md names cases that are not there: {gone:?}");
    let differences = read(&top().join("docs/differences.md"));
    let gone: Vec<&str> = names_in(&differences)
        .filter(|name| name.split('_').next().is_some_and(|group| is_group(&cases, group)))
        .filter(|&name| !cases.contains(name))
        .collect();
    assert!(gone.is_empty(), "docs/differences.md names cases that are not there: {gone:?}");
}

#[test]
fn every_difference_is_told() {
    let doc = read(&top().join("docs/differences.md"));
    let told: BTreeSet<&str> = names_in(&doc).collect();
    let all: Vec<String> = sources().iter().flat_map(|source| differing(source)).collect();
    assert!(all.len() > 10, "only {} differences were found", all.len());
    let missing: Vec<&String> = all.iter().filter(|&name| !told.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/differences.md does not tell of {missing:?}");
}

/// Whether cases have this in front of their names; sysctls and functions have not.
fn is_group(cases: &BTreeSet<String>, word: &str) -> bool {
    cases.iter().any(|case| case.split('_').next() == Some(word))
}

#[test]
fn every_promise_has_a_case() {
    let doc = read(&top().join("docs/semantics.md"));
    let rows = rows(&doc);
    let numbers = (1..=84).map(|number: u32| number.to_string());
    let wanted: Vec<String> = numbers.chain(faults()).collect();
    for key in &wanted {
        let found: Vec<_> = rows.iter().filter(|(first, _)| first == key).collect();
        assert!(found.len() == 1, "docs/semantics.md has {} rows for {key}", found.len());
        assert!(!found[0].1.is_empty(), "docs/semantics.md has no case for {key}");
    }
    for (key, _) in &rows {
        assert!(wanted.iter().any(|wanted| wanted == key), "a row for {key}, which is nothing");
    }
}

#[test]
fn a_fault_is_in_the_name_of_its_case() {
    let doc = read(&top().join("docs/semantics.md"));
    for (key, names) in rows(&doc) {
        let Ok(number) = key[1..].parse::<u32>() else { continue };
        if !key.starts_with(|letter: char| letter.is_ascii_uppercase()) {
            continue;
        }
        let letter = key[..1].to_lowercase();
        let ids = [std::format!("{letter}{number}"), std::format!("{letter}{number:02}")];
        let named = |name: &&str| name.split('_').any(|part| ids.iter().any(|id| id == part));
        assert!(names.iter().all(named), "a case of {key} without its name: {names:?}");
    }
}

#[test]
fn every_case_with_a_faults_name_is_listed() {
    let doc = read(&top().join("docs/semantics.md"));
    let listed: BTreeSet<&str> = rows(&doc).into_iter().flat_map(|(_, names)| names).collect();
    let ids: Vec<String> = faults().iter().map(|id| id.to_lowercase()).collect();
    for case in all_cases() {
        let named = case.split('_').any(|part| {
            let short = std::format!(
                "{}{}",
                &part[..part.len().min(1)],
                part[part.len().min(1)..].trim_start_matches('0')
            );
            part.len() > 1 && ids.contains(&short)
        });
        assert!(!named || listed.contains(case.as_str()), "{case} is not in docs/semantics.md");
    }
}

#[test]
fn the_modules_make_no_zone() {
    let allowed = read(&top().join("kmod/imports.allow"));
    assert!(!allowed.contains("uma_zcreate"), "zones need a look at F17");
}
