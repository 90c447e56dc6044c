// SPDX-License-Identifier: BSD-2-Clause
//! The list of symbols each module may import, and its comparison with what they do import.
//!
//! The list names every kernel function the modules depend on, so that a new dependency shows up
//! in a review and not on a user's kernel. It is kept exact in both directions. Its format:
//!
//! ```text
//! # A comment, also after a symbol.
//! [common]            # for every module
//! malloc
//! [aio_rs]            # for aio_rs.ko
//! weak mac_vnode_check_read
//! ```
//!
//! `weak` marks a symbol that may be missing from the kernel; it must be weak in the module too.

use std::collections::{BTreeMap, BTreeSet};

use object::elf;

use crate::elf::Object;
use crate::report::{Findings, line};

/// The section of the list that holds for every module.
const COMMON: &str = "common";

/// An undefined symbol of a module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub name: String,
    pub weak: bool,
}

/// The symbols that a module expects from the kernel or from another module.
///
/// That is, the undefined symbols the kernel's linker looks up because a relocation needs them:
/// kernel headers also declare some that nothing refers to. Start and end markers of a linker set
/// that the module has are filled in by the linker itself.
pub fn imports(object: &Object) -> Vec<Import> {
    let own_set = |name: &str| {
        let set = name.strip_prefix("__start_").or_else(|| name.strip_prefix("__stop_"));
        set.is_some_and(|set| {
            object.sections.iter().any(|section| section.name == set && section.is_loaded())
        })
    };
    let referred: BTreeSet<_> = object
        .relocs
        .iter()
        .filter(|table| object.sections[table.target].is_loaded())
        .flat_map(|table| &table.entries)
        .map(|reloc| reloc.symbol)
        .collect();
    let found: BTreeSet<_> = referred
        .iter()
        .filter_map(|&index| object.symbols.get(index as usize))
        .filter(|s| s.shndx == elf::SHN_UNDEF && s.bind != elf::STB_LOCAL && !own_set(&s.name))
        .map(|s| Import { name: s.name.clone(), weak: s.bind == elf::STB_WEAK })
        .collect();
    found.into_iter().collect()
}

/// The imports of each module that another one has but keeps to itself, as lines to print. Up to
/// FreeBSD 14 the kernel's linker finds them all the same; later ones need not.
pub fn hidden(modules: &[(String, Names)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (ko, names) in modules {
        for name in &names.imports {
            let exported = modules.iter().any(|(_, other)| other.globals.contains(name));
            let keeper = modules.iter().find(|(_, other)| other.locals.contains(name));
            if let (false, Some((keeper, _))) = (exported, keeper) {
                lines.push(line(ko, "import", name, &format!("{keeper} does not export it")));
            }
        }
    }
    lines
}

/// The names of a module's symbols.
#[derive(Debug, Default)]
pub struct Names {
    imports: BTreeSet<String>,
    globals: BTreeSet<String>,
    locals: BTreeSet<String>,
}

impl Names {
    /// Collects them.
    pub fn of(object: &Object, imports: &[Import]) -> Names {
        let defined = |local: bool| {
            let symbols = object.symbols.iter().filter(move |symbol| {
                symbol.shndx != elf::SHN_UNDEF && (symbol.bind == elf::STB_LOCAL) == local
            });
            symbols.map(|symbol| symbol.name.clone()).collect()
        };
        let imports = imports.iter().map(|import| import.name.clone()).collect();
        Names { imports, globals: defined(false), locals: defined(true) }
    }
}

#[derive(Debug)]
struct Entry {
    weak: bool,
    used: bool,
}

/// The whole list.
#[derive(Debug, Default)]
pub struct AllowList {
    sections: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Modules checked in this run, without their suffix.
    seen: BTreeSet<String>,
}

impl AllowList {
    /// Adds the text of one file. The error starts with a line number.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let mut current = None;
        for (number, raw) in text.lines().enumerate() {
            let fail = |what: String| Err(format!("{}: {what}", number + 1));
            let content = raw.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            if let Some(name) = content.strip_prefix('[') {
                let Some(name) = name.strip_suffix(']').map(str::trim) else {
                    return fail(format!("{content} is not a section"));
                };
                self.sections.entry(name.to_string()).or_default();
                current = Some(name.to_string());
                continue;
            }
            let Some(section) = &current else {
                return fail(format!("{content} is in no section"));
            };
            let words: Vec<_> = content.split_whitespace().collect();
            let (name, weak) = match words.as_slice() {
                ["weak", name] => (*name, true),
                [name] => (*name, false),
                _ => return fail(format!("{content} is not one symbol")),
            };
            let twice = self.sections.iter().any(|(other, entries)| {
                let overlaps = other == section || other == COMMON || section == COMMON;
                overlaps && entries.contains_key(name)
            });
            if twice {
                return fail(format!("{name} is listed twice"));
            }
            let entry = Entry { weak, used: false };
            if let Some(section) = self.sections.get_mut(section) {
                section.insert(name.to_string(), entry);
            }
        }
        Ok(())
    }

    /// Reports the imports of a module that the list does not have, and notes those it has.
    pub fn check_imports(&mut self, ko: &str, imports: &[Import], findings: &mut Findings) {
        let module = ko.strip_suffix(".ko").unwrap_or(ko).to_string();
        if !self.sections.contains_key(&module) {
            findings.add("import", &module, format!("no section [{module}]"));
        }
        for import in imports {
            let entry = [module.as_str(), COMMON].iter().find_map(|section| {
                self.sections
                    .get(*section)
                    .and_then(|entries| entries.get(&import.name))
                    .map(|entry| (*section, entry.weak))
            });
            let Some((section, weak)) = entry else {
                findings.add("import", &import.name, "not in the allow-list");
                continue;
            };
            if weak != import.weak {
                let (is, says) =
                    if import.weak { ("weak", "without") } else { ("not weak", "with") };
                findings.add("import", &import.name, format!("is {is}, but listed {says} `weak`"));
            }
            if let Some(entry) =
                self.sections.get_mut(section).and_then(|entries| entries.get_mut(&import.name))
            {
                entry.used = true;
            }
        }
        self.seen.insert(module);
    }

    /// The entries that no module of this run imports, as lines to print. Sections of modules that
    /// were not part of the run are left out, and so is `common` when there are any such.
    pub fn stale(&self) -> Vec<String> {
        let complete = self.sections.keys().all(|name| name == COMMON || self.seen.contains(name));
        let mut lines = Vec::new();
        for (section, entries) in &self.sections {
            let due = if section == COMMON { complete } else { self.seen.contains(section) };
            for (name, _) in entries.iter().filter(|(_, entry)| due && !entry.used) {
                let ko =
                    if section == COMMON { COMMON.to_string() } else { format!("{section}.ko") };
                lines.push(line(
                    &ko,
                    "stale",
                    name,
                    &format!("in the allow-list ([{section}]), but not imported"),
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{AllowList, Import, Names, hidden};
    use crate::report::Findings;
    use std::collections::BTreeSet;

    fn import(name: &str, weak: bool) -> Import {
        Import { name: name.into(), weak }
    }

    fn list(text: &str) -> AllowList {
        let mut list = AllowList::default();
        list.add(text).unwrap();
        list
    }

    #[test]
    fn an_exact_list_passes() {
        let mut list = list("# all\n[common]\nmalloc # memory\n[a]\nweak mac\n[b]\nfree\n");
        let mut findings = Findings::new("a.ko");
        list.check_imports("a.ko", &[import("mac", true), import("malloc", false)], &mut findings);
        list.check_imports("b.ko", &[import("free", false)], &mut findings);
        assert_eq!(findings.into_lines(), Vec::<String>::new());
        assert_eq!(list.stale(), Vec::<String>::new());
    }

    #[test]
    fn a_symbol_of_another_module_does_not_count() {
        let mut list = list("[a]\nx\n[b]\ny\n");
        let mut findings = Findings::new("b.ko");
        list.check_imports("b.ko", &[import("x", false)], &mut findings);
        assert_eq!(findings.into_lines(), ["b.ko: import: x: not in the allow-list"]);
        // [a] was not part of the run.
        assert_eq!(list.stale(), ["b.ko: stale: y: in the allow-list ([b]), but not imported"]);
    }

    #[test]
    fn what_another_module_keeps_to_itself_is_no_import() {
        let set = |name: &str| BTreeSet::from([name.to_string()]);
        let keeper = Names { locals: set("x"), ..Names::default() };
        let exporter = Names { globals: set("x"), ..Names::default() };
        let modules = |other| {
            let user = Names { imports: set("x"), ..Names::default() };
            [("a.ko".to_string(), other), ("b.ko".to_string(), user)]
        };
        assert_eq!(hidden(&modules(keeper)), ["b.ko: import: x: a.ko does not export it"]);
        assert!(hidden(&modules(exporter)).is_empty());
        assert!(hidden(&modules(Names::default())).is_empty());
    }

    #[test]
    fn weakness_must_agree() {
        let mut list = list("[a]\nx\nweak y\n");
        let mut findings = Findings::new("a.ko");
        let imports = [import("x", true), import("y", false)];
        list.check_imports("a.ko", &imports, &mut findings);
        assert_eq!(
            findings.into_lines(),
            [
                "a.ko: import: x: is weak, but listed without `weak`",
                "a.ko: import: y: is not weak, but listed with `weak`"
            ]
        );
    }

    #[test]
    fn common_is_stale_only_when_every_module_was_seen() {
        let mut list = list("[common]\nx\n[a]\n[b]\n");
        let mut findings = Findings::new("a.ko");
        list.check_imports("a.ko", &[], &mut findings);
        assert!(list.stale().is_empty());
        list.check_imports("b.ko", &[], &mut findings);
        assert_eq!(
            list.stale(),
            ["common: stale: x: in the allow-list ([common]), but not imported"]
        );
    }

    #[test]
    fn malformed_lists_are_refused_with_their_line() {
        let add = |text: &str| AllowList::default().add(text);
        assert_eq!(add("x\n"), Err("1: x is in no section".into()));
        assert_eq!(add("[a]\nx y\n"), Err("2: x y is not one symbol".into()));
        assert_eq!(add("[a\n"), Err("1: [a is not a section".into()));
        assert_eq!(add("[a]\nx\n\nx\n"), Err("4: x is listed twice".into()));
        assert_eq!(add("[a]\nx\n[common]\nx\n"), Err("4: x is listed twice".into()));
        assert_eq!(add("[common]\nx\n[a]\nx\n"), Err("4: x is listed twice".into()));
    }
}
