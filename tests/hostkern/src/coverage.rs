// SPDX-License-Identifier: BSD-2-Clause
//! Which basic blocks of the modules were reached, in one run or many.
//!
//! A file of it has a line for each block: whether it was reached, whether it is an assertion that
//! failed, the module, where the block and its function begin in the module, and the function's name.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// What is known of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    pub reached: bool,
    pub asserts: bool,
    /// Where its function begins, and what that is called.
    pub start: u64,
    pub function: String,
}

/// Blocks by module and offset.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Coverage(BTreeMap<(String, u64), Block>);

impl Coverage {
    pub const fn new() -> Coverage {
        Coverage(BTreeMap::new())
    }

    /// Reads a file; lines that are none are left out.
    pub fn parse(text: &str) -> Coverage {
        let line = |line: &str| {
            let mut words = line.splitn(6, ' ');
            let reached = words.next()? == "1";
            let asserts = words.next()? == "1";
            let file = words.next()?.to_owned();
            let mut number = || u64::from_str_radix(words.next()?, 16).ok();
            let (at, start) = (number()?, number()?);
            let function = words.next()?.to_owned();
            Some(((file, at), Block { reached, asserts, start, function }))
        };
        Coverage(text.lines().filter_map(line).collect())
    }

    pub fn text(&self) -> String {
        let line = |((file, at), block): (&(String, u64), &Block)| {
            let Block { reached, asserts, start, function } = block;
            format!(
                "{} {} {file} {at:x} {start:x} {function}\n",
                u8::from(*reached),
                u8::from(*asserts)
            )
        };
        self.0.iter().map(line).collect()
    }

    pub fn add(&mut self, file: &str, at: u64, block: Block) {
        let entry = self.0.entry((file.to_owned(), at)).or_insert_with(|| block.clone());
        entry.reached |= block.reached;
    }

    /// Takes over what was reached in another one.
    pub fn merge(&mut self, other: Coverage) {
        for ((file, at), block) in other.0 {
            self.add(&file, at, block);
        }
    }

    /// Writes it to a file, with what that has already.
    ///
    /// # Errors
    /// What the host says.
    pub fn save(mut self, path: &Path) -> std::io::Result<()> {
        if let Ok(there) = std::fs::read_to_string(path) {
            self.merge(Coverage::parse(&there));
        }
        std::fs::write(path, self.text())
    }

    /// Blocks reached, and all, of one module or of every one; without assertions.
    pub fn counts(&self, file: Option<&str>) -> (usize, usize) {
        let counted = self.0.iter().filter(|((its, _), block)| {
            !block.asserts && file.is_none_or(|file| file == its.as_str())
        });
        counted.fold((0, 0), |(reached, all), (_, block)| {
            (reached + usize::from(block.reached), all + 1)
        })
    }

    fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.0.keys().map(|(file, _)| file.as_str()).collect();
        files.dedup();
        files
    }

    /// A line for each module and for all, then one for each function with blocks that were never
    /// reached, the most first, and one for each such block.
    pub fn report(&self, symbols: Option<&Path>) -> Vec<String> {
        let mut lines = Vec::new();
        let percent = |(reached, all): (usize, usize)| {
            format!(
                "{reached} of {all} blocks reached, {:.1} %",
                100.0 * reached as f64 / all.max(1) as f64
            )
        };
        for file in self.files() {
            let mut functions: BTreeMap<(u64, &str), (usize, Vec<u64>)> = BTreeMap::new();
            for ((its, at), block) in self.0.iter().filter(|(_, block)| !block.asserts) {
                if its == file {
                    let of = functions.entry((block.start, block.function.as_str())).or_default();
                    of.0 += 1;
                    if !block.reached {
                        of.1.push(*at);
                    }
                }
            }
            let whole = functions.values().filter(|(all, missed)| missed.len() == *all).count();
            let failed = self.0.iter().filter(|((its, _), block)| its == file && block.asserts);
            lines.push(format!(
                "{file}: {}; {} functions, {whole} never entered; {} assertions not counted",
                percent(self.counts(Some(file))),
                functions.len(),
                failed.count()
            ));
            let missed: Vec<u64> =
                functions.values().flat_map(|(_, missed)| missed.iter().copied()).collect();
            let places = symbols.map_or_else(BTreeMap::new, |dir| places(dir, file, &missed));
            let mut rows: Vec<_> =
                functions.into_iter().filter(|(_, (_, missed))| !missed.is_empty()).collect();
            rows.sort_by_key(|((start, _), (_, missed))| (std::cmp::Reverse(missed.len()), *start));
            for ((start, function), (all, missed)) in rows {
                lines.push(format!("  {file} {function}: {} of {all} not reached", missed.len()));
                for at in missed {
                    let place = places.get(&at).map_or("", String::as_str);
                    lines.push(format!("    +{:#x} {place}", at - start));
                }
            }
        }
        lines.push(format!("coverage: {}", percent(self.counts(None))));
        lines
    }
}

/// Source places of offsets in a module, by binutils' addr2line from the file with its debug
/// information: of the calls that were made one in line, the innermost two of ours. Empty where the
/// tool or the file is missing.
fn places(dir: &Path, file: &str, offsets: &[u64]) -> BTreeMap<u64, String> {
    let child = Command::new("addr2line")
        .args(["-a", "-i", "-j", ".text", "-e"])
        .arg(dir.join(file.replace(".ko", ".full")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return BTreeMap::new() };
    let mut input = child.stdin.take().expect("a pipe");
    let asked: String = offsets.iter().map(|at| format!("{at:#x}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(asked.as_bytes()));
    let output = child.wait_with_output().map(|output| output.stdout).unwrap_or_default();
    let _ = writer.join();
    read_places(&String::from_utf8_lossy(&output))
}

/// For each address a line with it, then one for each call.
fn read_places(text: &str) -> BTreeMap<u64, String> {
    let mut places: BTreeMap<u64, String> = BTreeMap::new();
    let (mut at, mut ours) = (0, 0);
    for line in text.lines() {
        if let Some(address) = line.strip_prefix("0x") {
            (at, ours) = (u64::from_str_radix(address, 16).unwrap_or(0), 0);
            places.insert(at, String::new());
        } else if let Some(place) = line.strip_prefix("./").filter(|_| ours < 2)
            && let Some(its) = places.get_mut(&at)
        {
            ours += 1;
            *its += &format!("{}{place}", if its.is_empty() { "" } else { " in " });
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(reached: bool, asserts: bool, start: u64, function: &str) -> Block {
        Block { reached, asserts, start, function: function.to_owned() }
    }

    fn some() -> Coverage {
        let mut coverage = Coverage::default();
        coverage.add("a.ko", 0x10, block(true, false, 0x10, "f"));
        coverage.add("a.ko", 0x18, block(false, false, 0x10, "f"));
        coverage.add("a.ko", 0x20, block(false, true, 0x10, "f"));
        coverage.add("b.ko", 0x10, block(false, false, 0x10, "<T as Trait>::g"));
        coverage
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        assert_eq!(Coverage::parse(&some().text()), some());
    }

    #[test]
    fn what_one_of_two_runs_reached_was_reached() {
        let (mut one, mut other) = (some(), Coverage::default());
        assert_eq!(one.counts(None), (1, 3));
        other.add("b.ko", 0x10, block(true, false, 0x10, "<T as Trait>::g"));
        other.add("a.ko", 0x10, block(false, false, 0x10, "f"));
        one.merge(other);
        assert_eq!(one.counts(None), (2, 3));
        assert_eq!(one.counts(Some("a.ko")), (1, 2));
    }

    #[test]
    fn places_are_those_of_our_files() {
        let places = read_places(
            "0x0000000000000010\n/rust/library/core/a.rs:1\n./src/b.rs:2\n./src/c.rs:3\n./src/d.rs:4\n\
             0x0000000000000020\n??:?\n",
        );
        assert_eq!(places[&0x10], "src/b.rs:2 in src/c.rs:3");
        assert_eq!(places[&0x20], "");
        assert_eq!(places.len(), 2);
    }

    #[test]
    fn the_report_names_what_was_not_reached() {
        let lines = some().report(None).join("\n");
        assert!(lines.contains("a.ko: 1 of 2 blocks reached, 50.0 %"), "{lines}");
        assert!(lines.contains("a.ko f: 1 of 2 not reached\n    +0x8"), "{lines}");
        assert!(lines.contains("<T as Trait>::g: 1 of 1 not reached"), "{lines}");
        assert!(lines.contains("1 functions, 1 never entered"), "{lines}");
        assert!(lines.ends_with("coverage: 1 of 3 blocks reached, 33.3 %"), "{lines}");
    }
}
