// SPDX-License-Identifier: BSD-2-Clause
//! Violations as lines, the one-line summary of a good module, and the full report.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::allow::Import;
use crate::code::Code;
use crate::elf::Object;
use crate::loadable;
use crate::stack::{Frame, Usage};

/// The line for one violation.
pub fn line(ko: &str, check: &str, name: &str, text: &str) -> String {
    format!("{ko}: {check}: {name}: {text}")
}

/// The violations found in one module.
#[derive(Debug)]
pub struct Findings {
    ko: String,
    lines: Vec<String>,
}

impl Findings {
    pub fn new(ko: &str) -> Self {
        Findings { ko: ko.into(), lines: Vec::new() }
    }

    pub fn add(&mut self, check: &str, name: &str, text: impl AsRef<str>) {
        self.lines.push(line(&self.ko, check, name, text.as_ref()));
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// A section of the module as loaded.
#[derive(Debug)]
struct Placed {
    name: String,
    start: u64,
    size: u64,
}

/// What is worth knowing about a module. `Display` gives one line.
#[derive(Debug)]
pub struct Summary {
    file_size: u64,
    loaded_size: u64,
    text_size: u64,
    sections: Vec<Placed>,
    writable_code: Vec<String>,
    relocations: BTreeMap<String, usize>,
    imports: Vec<Import>,
    functions: Vec<(String, Frame)>,
    indirect_calls: usize,
    indirect_jumps: usize,
    deepest_frame: Option<usize>,
    deepest_chain: Option<(u64, String)>,
}

impl Summary {
    pub fn new(object: &Object, imports: Vec<Import>, code: &Code, usage: Usage) -> Self {
        let (places, loaded_size) = loadable::layout(object);
        let mut relocations = BTreeMap::new();
        for table in &object.relocs {
            if object.sections[table.target].is_loaded() {
                for reloc in &table.entries {
                    *relocations.entry(loadable::kind_name(reloc.kind)).or_insert(0) += 1;
                }
            }
        }
        let deepest_chain =
            usage.deepest_chain.map(|index| (usage.frames[index].chain, usage.chain(code, index)));
        Summary {
            file_size: object.file_size,
            loaded_size,
            text_size: object
                .sections
                .iter()
                .filter(|section| section.is_code())
                .map(|section| section.size)
                .sum(),
            sections: places
                .into_iter()
                .map(|(index, start)| Placed {
                    name: object.sections[index].name.clone(),
                    start,
                    size: object.sections[index].size,
                })
                .collect(),
            writable_code: loadable::writable_code(object),
            relocations,
            imports,
            indirect_calls: code.bodies.iter().map(|body| body.indirect_calls).sum(),
            indirect_jumps: code.bodies.iter().map(|body| body.indirect_jumps).sum(),
            deepest_frame: usage.deepest_frame,
            deepest_chain,
            functions: code
                .functions
                .iter()
                .map(|function| function.name.clone())
                .zip(usage.frames)
                .collect(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes, {} loaded, {} text, {} imports, {} functions, {} indirect calls",
            self.file_size,
            self.loaded_size,
            self.text_size,
            self.imports.len(),
            self.functions.len(),
            self.indirect_calls
        )?;
        if let Some((name, frame)) = self.deepest_frame.and_then(|i| self.functions.get(i)) {
            write!(f, ", deepest frame {} ({name})", frame.size())?;
        }
        if let Some((depth, chain)) = &self.deepest_chain {
            write!(f, ", deepest chain {depth}: {chain}")?;
        }
        Ok(())
    }
}

/// Everything about all modules of a run: name, summary if it could be read, whether it is clean.
pub fn full(modules: &[(String, Option<Summary>, bool)], violations: &[String]) -> String {
    let mut text = String::new();
    for (ko, summary, clean) in modules {
        text.push_str(&format!("{ko}: {}\n", if *clean { "good" } else { "refused" }));
        if let Some(summary) = summary {
            // Writing to a string cannot fail.
            let _ = details(&mut text, summary);
        }
        text.push('\n');
    }
    text.push_str(&format!("violations: {}\n", violations.len()));
    for line in violations {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn details(text: &mut String, summary: &Summary) -> fmt::Result {
    writeln!(text, "  {summary}")?;
    writeln!(text, "  sections (start, size, name):")?;
    for section in &summary.sections {
        writeln!(text, "    {:#8x} {:#8x} {}", section.start, section.size, section.name)?;
    }
    for name in &summary.writable_code {
        writeln!(text, "  note: {name} shares a page with writable data")?;
    }
    writeln!(text, "  relocations (count, type):")?;
    for (kind, count) in &summary.relocations {
        writeln!(text, "    {count:6} {kind}")?;
    }
    writeln!(text, "  imports:")?;
    for import in &summary.imports {
        let weak = if import.weak { "weak " } else { "" };
        writeln!(text, "    {weak}{}", import.name)?;
    }
    writeln!(
        text,
        "  not followed: {} indirect calls, {} indirect jumps",
        summary.indirect_calls, summary.indirect_jumps
    )?;
    writeln!(text, "  stack (frame by compiler, frame by code, chain, function):")?;
    let mut functions: Vec<_> = summary.functions.iter().collect();
    functions.sort_by_key(|(name, frame)| (std::cmp::Reverse(frame.chain), name));
    let number = |n: Option<u64>| n.map_or("-".to_string(), |n| n.to_string());
    for (name, frame) in functions {
        writeln!(
            text,
            "    {:>6} {:>6} {:>6} {name}",
            number(frame.by_compiler),
            number(frame.by_code),
            frame.chain
        )?;
    }
    Ok(())
}
