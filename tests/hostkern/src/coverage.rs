// SPDX-License-Identifier: BSD-2-Clause
//! Which basic blocks of the modules were reached, in one run or many.
//!
//! A file of it has a line for each block: whether it was reached, whether an assertion fails there,
//! the module, where the block and its function begin in the module, and the function's name.
//!
//! An edge is a line of the source that must have been reached: a rare thing that has a name.

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

    /// Whether the block with this code was reached; `None`: there is none that counts.
    fn reached(&self, file: &str, at: u64) -> Option<bool> {
        let key = (file.to_owned(), at);
        let ((its, _), block) = self.0.range(..=key).next_back()?;
        (its == file && !block.asserts).then_some(block.reached)
    }

    /// A line for each edge, and how many were not reached. `lines` has the code of a source line, by
    /// module.
    ///
    /// A row of the list is `NAME | any | FILE | AFTER | TEXT`: the edge is the first line with the text
    /// at or after the only one with AFTER, of which any block was reached, or, with `all`, every one.
    ///
    /// # Errors
    /// What is wrong with the list.
    pub fn edges(
        &self,
        list: &str,
        source: impl Fn(&str) -> Option<String>,
        lines: &BTreeMap<String, Lines>,
    ) -> Result<(Vec<String>, usize), String> {
        let mut edges = Vec::new();
        let mut missed = 0;
        for row in list.lines().filter(|row| !row.is_empty() && !row.starts_with('#')) {
            let fields: Vec<&str> = row.split(" | ").collect();
            let [name, which, path, after, text] = fields[..] else {
                return Err(format!("no edge: {row}"));
            };
            let whole = source(path).ok_or_else(|| format!("{path} cannot be read"))?;
            let numbered = || whole.lines().zip(1..).filter(|(line, _)| line.contains(after));
            let [from] = numbered().map(|(_, line)| line).collect::<Vec<usize>>()[..] else {
                return Err(format!("{path} has {} lines with: {after}", numbered().count()));
            };
            let line = whole.lines().zip(1..).skip(from - 1).find(|(line, _)| line.contains(text));
            let line =
                line.ok_or_else(|| format!("{path} has no such line after {from}: {text}"))?.1;
            let code = |file: &str, its: &Lines| -> Vec<bool> {
                let at = its.get(&(path.to_owned(), line));
                at.into_iter().flatten().filter_map(|&at| self.reached(file, at)).collect()
            };
            let blocks: Vec<bool> = lines.iter().flat_map(|(file, its)| code(file, its)).collect();
            let reached = match which {
                _ if blocks.is_empty() => {
                    return Err(format!("{path}:{line} has no code: {text}"));
                }
                "any" => blocks.contains(&true),
                "all" => !blocks.contains(&false),
                _ => return Err(format!("neither any nor all: {row}")),
            };
            missed += usize::from(!reached);
            let how = if reached { "reached" } else { "NOT REACHED" };
            edges.push(format!("  edge {how}: {name} ({path}:{line})"));
        }
        Ok((edges, missed))
    }

    /// The lines of the source each module has code of, from its file with debug information.
    pub fn lines(&self, dir: &Path) -> BTreeMap<String, Lines> {
        let of = |file: &str| {
            let output = Command::new("objdump")
                .arg("--dwarf=decodedline")
                .arg(dir.join(file.replace(".ko", ".full")))
                .stderr(Stdio::null())
                .output();
            let bytes = output.map(|output| output.stdout).unwrap_or_default();
            read_lines(&String::from_utf8_lossy(&bytes))
        };
        self.files().into_iter().map(|file| (file.to_owned(), of(file))).collect()
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
                "{file}: {}; {} functions, {whole} never entered; {} blocks of assertions that fail not counted",
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

/// Where the code of a line is, by path and line.
pub type Lines = BTreeMap<(String, usize), Vec<u64>>;

/// Reads binutils' table of lines: a path before what is of it, then a line for each piece of code.
fn read_lines(text: &str) -> Lines {
    let mut lines = Lines::new();
    let mut path = "";
    for line in text.lines() {
        if let Some(its) = line.strip_suffix(':') {
            path = its.strip_prefix("./").unwrap_or(its);
            continue;
        }
        let mut words = line.split_whitespace().skip(1);
        let number = words.next().and_then(|word| word.parse().ok());
        let at = words.next().and_then(|word| word.strip_prefix("0x"));
        let at = at.and_then(|word| u64::from_str_radix(word, 16).ok());
        if let (Some(number), Some(at)) = (number, at) {
            lines.entry((path.to_owned(), number)).or_default().push(at);
        }
    }
    lines
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
    fn code_is_found_by_its_line() {
        let lines = read_lines(
            "Contents of the .debug_line section:\n\n./src/b.rs:\nFile name  Line number  Starting address\n\
             b.rs   77   0x11   x\n\n/rust/src/b.rs:\nsrc/b.rs  77  0x20  1  x\n",
        );
        assert_eq!(lines[&("src/b.rs".to_owned(), 77)], [0x11]);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn edges_are_lines_that_were_reached() {
        let line = |line: usize, at: &[u64]| (("src/b.rs".to_owned(), line), at.to_vec());
        let lines = Lines::from([line(2, &[0x11]), line(3, &[0x1f]), line(5, &[0x11, 0x1f])]);
        let lines = BTreeMap::from([("a.ko".to_owned(), lines)]);
        let source = |_: &str| Some("f\nx one\ny two\nz\nboth\ntwo\n".to_owned());
        let edges = |list: &str| some().edges(list, source, &lines);
        let list = "# A list.\n\nA | any | src/b.rs | f | one\nB | any | src/b.rs | x | two\n";
        let (text, missed) = edges(list).unwrap();
        assert_eq!(text, ["  edge reached: A (src/b.rs:2)", "  edge NOT REACHED: B (src/b.rs:3)"]);
        assert_eq!(missed, 1);
        assert_eq!(edges("A | any | src/b.rs | f | both").unwrap().1, 0);
        assert_eq!(edges("A | all | src/b.rs | f | both").unwrap().1, 1);
        let wrong = |list: &str| edges(list).unwrap_err();
        assert_eq!(wrong("A | any | src/b.rs | two | two"), "src/b.rs has 2 lines with: two");
        assert_eq!(wrong("A | any | src/b.rs | z | one"), "src/b.rs has no such line after 4: one");
        assert_eq!(wrong("A | any | src/b.rs | f | z"), "src/b.rs:4 has no code: z");
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
