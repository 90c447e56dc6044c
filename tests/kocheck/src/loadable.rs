// SPDX-License-Identifier: BSD-2-Clause
//! What the kernel's linker for relocatable objects (link_elf_obj) on amd64 can and cannot load.
//!
//! It handles a short list of relocation types, knows neither COMMON symbols nor thread-local
//! storage, loads only some kinds of sections and trusts what it reads: an alignment of zero, an
//! offset outside a section or a reference to a section that is not loaded is not noticed, and
//! writes to the wrong place in the kernel.

use std::collections::HashSet;

use object::elf;

use crate::elf::{Object, Reloc, Section};
use crate::report::Findings;

/// Sections start at page boundaries at best.
const PAGE: u64 = 4096;

/// Linker sets without which a module would be loaded and do nothing.
const NEEDED_SETS: [&str; 2] = ["set_modmetadata_set", "set_sysinit_set"];

/// Sections named like linker sets that hold data instead of pointers.
const DATA_SETS: [&str; 2] = ["set_pcpu", "set_vnet"];

/// Linker sets of structures instead of pointers: the words of one, and how many of them, from the
/// first, are addresses. SDT's tracepoints, since FreeBSD 15.
const RECORD_SETS: [(&str, u64, u64); 1] = [("set_sdt_tracepoint_set", 4, 3)];

pub fn check(object: &Object, findings: &mut Findings) {
    sections(object, findings);
    symbols(object, findings);
    relocations(object, findings);
    linker_sets(object, findings);
}

fn sections(object: &Object, findings: &mut Findings) {
    let loaded = object.sections.iter().filter(|s| s.is_loaded()).count();
    if loaded == 0 {
        findings.add("section", "file", "nothing to load");
    }
    for section in object.sections.iter().filter(|s| s.is_allocated()) {
        let name = &section.name;
        if section.flags & u64::from(elf::SHF_TLS) != 0 {
            findings.add("tls", name, "thread-local section");
        }
        if !section.align.is_power_of_two() {
            findings.add(
                "section",
                name,
                format!("alignment {} is not a power of two", section.align),
            );
        } else if section.align > PAGE {
            findings.add("section", name, format!("alignment {} is above one page", section.align));
        }
        if section.size != 0 && is_constructor_section(section) {
            findings.add("constructor", name, "constructors or destructors");
        }
    }
}

fn is_constructor_section(section: &Section) -> bool {
    let by_kind =
        matches!(section.kind, elf::SHT_INIT_ARRAY | elf::SHT_FINI_ARRAY | elf::SHT_PREINIT_ARRAY);
    let by_name = [".ctors", ".dtors", ".init_array", ".fini_array", ".preinit_array"]
        .iter()
        .filter_map(|base| section.name.strip_prefix(base))
        .any(|rest| rest.is_empty() || rest.starts_with('.'));
    by_kind || by_name
}

fn symbols(object: &Object, findings: &mut Findings) {
    for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
        let name = object.symbol_name(index as u32);
        if symbol.kind == elf::STT_TLS {
            findings.add("tls", &name, "thread-local symbol");
        }
        match symbol.shndx {
            elf::SHN_COMMON => findings.add(
                "common",
                &name,
                "COMMON symbol: its alignment would be taken for its address",
            ),
            elf::SHN_UNDEF | elf::SHN_ABS => {}
            shndx if shndx >= elf::SHN_LORESERVE => {
                findings.add("symbol", &name, format!("special section index {shndx:#x}"))
            }
            shndx if usize::from(shndx) >= object.sections.len() => {
                findings.add("symbol", &name, "in a section that is not there");
            }
            _ => {}
        }
    }
}

/// How many bytes a relocation of a type the linker handles writes; `None` for all other types.
fn width(kind: u32) -> Option<u64> {
    match kind {
        elf::R_X86_64_NONE => Some(0),
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 | elf::R_X86_64_32S => Some(4),
        elf::R_X86_64_64
        | elf::R_X86_64_GLOB_DAT
        | elf::R_X86_64_JUMP_SLOT
        | elf::R_X86_64_RELATIVE
        | elf::R_X86_64_IRELATIVE => Some(8),
        _ => None,
    }
}

/// Whether a relocation of this type looks its symbol up.
fn uses_symbol(kind: u32) -> bool {
    !matches!(kind, elf::R_X86_64_NONE | elf::R_X86_64_RELATIVE | elf::R_X86_64_IRELATIVE)
}

fn relocations(object: &Object, findings: &mut Findings) {
    for table in &object.relocs {
        let section = &object.sections[table.target];
        if !section.is_allocated() || table.entries.is_empty() {
            continue;
        }
        if !section.is_loaded() {
            findings.add(
                "unloaded",
                &section.name,
                format!(
                    "{} relocations for a section of a kind ({:#x}) that is not loaded",
                    table.entries.len(),
                    section.kind
                ),
            );
            continue;
        }
        let mut reported = HashSet::new();
        for reloc in &table.entries {
            if let Some((check, text)) = relocation_fault(object, section, reloc)
                && reported.insert((reloc.symbol, check, reloc.kind))
            {
                findings.add(
                    check,
                    &object.symbol_name(reloc.symbol),
                    format!("{text}, in section {} at {:#x}", section.name, reloc.offset),
                );
            }
        }
    }
}

/// What is wrong with one relocation of a loaded section.
fn relocation_fault(
    object: &Object,
    section: &Section,
    reloc: &Reloc,
) -> Option<(&'static str, String)> {
    let Some(width) = width(reloc.kind) else {
        let kind = kind_name(reloc.kind);
        return Some(("reloc", format!("relocation type {kind} is refused")));
    };
    if width != 0 {
        if section.kind == elf::SHT_NOBITS {
            return Some(("reloc", "relocation in a section without contents".into()));
        }
        let inside = reloc.offset.checked_add(width);
        if inside.is_none_or(|end| end > section.size) {
            return Some(("reloc", "relocation outside its section".into()));
        }
    }
    if !uses_symbol(reloc.kind) {
        return None;
    }
    let Some(symbol) = object.symbols.get(reloc.symbol as usize) else {
        return Some(("reloc", "relocation for a symbol that is not there".into()));
    };
    if symbol.shndx == elf::SHN_UNDEF && (symbol.bind == elf::STB_LOCAL || symbol.name.is_empty()) {
        return Some(("reloc", "relocation for an undefined local or nameless symbol".into()));
    }
    let home = object.sections.get(symbol.section()?)?;
    (!home.is_loaded())
        .then(|| ("unloaded", format!("refers to section {}, which is not loaded", home.name)))
}

/// The name of a relocation type that is likely to turn up, else its number.
pub fn kind_name(kind: u32) -> String {
    let name = match kind {
        elf::R_X86_64_NONE => "NONE",
        elf::R_X86_64_64 => "64",
        elf::R_X86_64_PC32 => "PC32",
        elf::R_X86_64_GOT32 => "GOT32",
        elf::R_X86_64_PLT32 => "PLT32",
        elf::R_X86_64_COPY => "COPY",
        elf::R_X86_64_GLOB_DAT => "GLOB_DAT",
        elf::R_X86_64_JUMP_SLOT => "JUMP_SLOT",
        elf::R_X86_64_RELATIVE => "RELATIVE",
        elf::R_X86_64_GOTPCREL => "GOTPCREL",
        elf::R_X86_64_32 => "32",
        elf::R_X86_64_32S => "32S",
        elf::R_X86_64_16 => "16",
        elf::R_X86_64_PC16 => "PC16",
        elf::R_X86_64_8 => "8",
        elf::R_X86_64_PC8 => "PC8",
        elf::R_X86_64_DTPOFF64 => "DTPOFF64",
        elf::R_X86_64_TPOFF64 => "TPOFF64",
        elf::R_X86_64_TLSGD => "TLSGD",
        elf::R_X86_64_TLSLD => "TLSLD",
        elf::R_X86_64_DTPOFF32 => "DTPOFF32",
        elf::R_X86_64_GOTTPOFF => "GOTTPOFF",
        elf::R_X86_64_TPOFF32 => "TPOFF32",
        elf::R_X86_64_PC64 => "PC64",
        elf::R_X86_64_GOTOFF64 => "GOTOFF64",
        elf::R_X86_64_GOTPC32 => "GOTPC32",
        elf::R_X86_64_SIZE32 => "SIZE32",
        elf::R_X86_64_SIZE64 => "SIZE64",
        elf::R_X86_64_IRELATIVE => "IRELATIVE",
        elf::R_X86_64_GOTPCRELX => "GOTPCRELX",
        elf::R_X86_64_REX_GOTPCRELX => "REX_GOTPCRELX",
        _ => return kind.to_string(),
    };
    format!("R_X86_64_{name}")
}

fn linker_sets(object: &Object, findings: &mut Findings) {
    for needed in NEEDED_SETS {
        let found =
            object.sections.iter().any(|section| section.name == needed && section.is_loaded());
        if !found {
            findings.add("set", needed, "missing: the module would do nothing");
        }
    }
    for (index, section) in object.sections.iter().enumerate() {
        let is_set = section.name.starts_with("set_") && !DATA_SETS.contains(&&*section.name);
        if !is_set || !section.is_loaded() {
            continue;
        }
        // The linker takes the first section of a name and looks no further.
        let first = object
            .sections
            .iter()
            .position(|other| other.name == section.name && other.is_loaded());
        if first != Some(index) {
            findings.add("set", &section.name, "more than one section of this name");
        }
        let filled: HashSet<_> = object
            .relocs_of(index)
            .filter(|reloc| reloc.kind == elf::R_X86_64_64)
            .map(|reloc| reloc.offset)
            .collect();
        let record = RECORD_SETS.iter().find(|record| record.0 == section.name);
        let (words, addresses) = record.map_or((1, 1), |&(_, words, addresses)| (words, addresses));
        let whole = section.size.is_multiple_of(8 * words);
        let empty = |at: u64| at / 8 % words < addresses && !filled.contains(&at);
        if !whole || (0..section.size).step_by(8).any(empty) {
            findings.add("set", &section.name, "not a table of pointers");
        }
    }
}

/// Where the linker puts each loaded section, from the start of the module, and how much memory
/// all of them take.
pub fn layout(object: &Object) -> (Vec<(usize, u64)>, u64) {
    let mut end = 0u64;
    let mut places = Vec::new();
    for (index, section) in object.sections.iter().enumerate() {
        if section.is_loaded() {
            end = end.next_multiple_of(section.align.max(1));
            places.push((index, end));
            end += section.size;
        }
    }
    (places, end)
}

/// The sections that are writable, or share a page with a writable one, and can be executed: the
/// linker gives a shared page the permissions of all its sections.
pub fn writable_code(object: &Object) -> Vec<String> {
    let (places, _) = layout(object);
    let pages = |&(index, start): &(usize, u64)| {
        let end = start + object.sections[index].size;
        (start / PAGE, end.div_ceil(PAGE))
    };
    let writable: Vec<_> = places
        .iter()
        .filter(|(index, _)| object.sections[*index].flags & u64::from(elf::SHF_WRITE) != 0)
        .map(pages)
        .collect();
    places
        .iter()
        .filter(|(index, _)| object.sections[*index].is_code())
        .filter(|place| {
            let (start, end) = pages(place);
            writable.iter().any(|&(s, e)| s < end && start < e)
        })
        .map(|(index, _)| object.sections[*index].name.clone())
        .collect()
}
