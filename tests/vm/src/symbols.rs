// SPDX-License-Identifier: BSD-2-Clause
//! Names for addresses in a panic's back trace: from the symbol table of a kernel module and the
//! address kldstat(8) gave for it, or from the kernel's own.

use std::path::Path;

/// The functions of one loaded file.
#[derive(Clone, Debug)]
pub struct Symbols {
    start: u64,
    end: u64,
    /// Address and name, sorted by address.
    functions: Vec<(u64, String)>,
}

const SHF_ALLOC: u64 = 2;
const ET_REL: u16 = 1;
const STT_FUNC: u8 = 2;

struct Section {
    kind: u32,
    flags: u64,
    addr: u64,
    offset: usize,
    size: u64,
    link: usize,
    align: u64,
}

fn int(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut value = [0; 8];
    value[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    Some(u64::from_le_bytes(value))
}

impl Symbols {
    /// Reads a file's functions. A module, which is relocatable, lies at `base`; a kernel lies
    /// where it says itself.
    pub fn read(path: &Path, base: u64) -> Option<Self> {
        Self::parse(&std::fs::read(path).ok()?, base)
    }

    /// The same, of bytes.
    fn parse(elf: &[u8], base: u64) -> Option<Self> {
        if elf.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let relocatable = int(elf, 16, 2)? as u16 == ET_REL;
        let sections = sections(elf)?;
        // The kernel's linker puts the parts of a module one after the other in the order of
        // the section table, each aligned, and that is all.
        let mut places = vec![None; sections.len()];
        let (mut start, mut end) = if relocatable { (base, base) } else { (u64::MAX, 0) };
        for (place, section) in places.iter_mut().zip(&sections) {
            // Program data, zeroes, unwinding tables and initialisers are loaded, notes are not.
            let loaded = matches!(section.kind, 1 | 8 | 14 | 15 | 0x7000_0001);
            if !loaded || section.flags & SHF_ALLOC == 0 || section.size == 0 {
                continue;
            }
            if relocatable {
                let at = end.checked_next_multiple_of(section.align.max(1))?;
                *place = Some(at);
                end = at.checked_add(section.size)?;
            } else {
                *place = Some(0);
                start = start.min(section.addr);
                end = end.max(section.addr.checked_add(section.size)?);
            }
        }
        let table = sections.iter().find(|section| section.kind == 2)?;
        let names = sections.get(table.link)?;
        let mut functions = Vec::new();
        for index in 0..table.size as usize / 24 {
            let at = table.offset + index * 24;
            let info = int(elf, at + 4, 1)? as u8;
            let section = int(elf, at + 6, 2)? as usize;
            if info & 0xf != STT_FUNC {
                continue;
            }
            let Some(Some(place)) = places.get(section) else { continue };
            let name_at = names.offset + int(elf, at, 4)? as usize;
            let name = elf.get(name_at..)?.split(|&byte| byte == 0).next()?;
            let name = String::from_utf8_lossy(name).into_owned();
            functions.push((place.wrapping_add(int(elf, at + 8, 8)?), name));
        }
        functions.sort();
        Some(Self { start, end, functions })
    }

    fn at(&self, address: u64) -> Option<&(u64, String)> {
        if !(self.start..self.end).contains(&address) {
            return None;
        }
        let after = self.functions.partition_point(|(at, _)| *at <= address);
        self.functions.get(after.checked_sub(1)?)
    }

    /// The function at an address, as `name+0x12`.
    pub fn name(&self, address: u64) -> Option<String> {
        let (at, name) = self.at(address)?;
        Some(format!("{}+{:#x}", demangle(name), address - at))
    }

    /// The function at an address.
    pub fn function(&self, address: u64) -> Option<String> {
        self.at(address).map(|(_, name)| demangle(name))
    }
}

fn sections(elf: &[u8]) -> Option<Vec<Section>> {
    let table = int(elf, 40, 8)? as usize;
    let count = int(elf, 60, 2)? as usize;
    (0..count)
        .map(|index| {
            let at = table.checked_add(index * 64)?;
            Some(Section {
                kind: int(elf, at + 4, 4)? as u32,
                flags: int(elf, at + 8, 8)?,
                addr: int(elf, at + 16, 8)?,
                offset: int(elf, at + 24, 8)? as usize,
                size: int(elf, at + 32, 8)?,
                link: int(elf, at + 40, 4)? as usize,
                align: int(elf, at + 48, 8)?,
            })
        })
        .collect()
}

/// The path in a mangled Rust name: its identifiers, joined. Generic arguments appear in the same
/// row; other names are left as they are.
pub fn demangle(name: &str) -> String {
    let (rest, v0) = match (name.strip_prefix("_R"), name.strip_prefix("_ZN")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => return name.to_owned(),
    };
    let bytes = rest.as_bytes();
    let mut parts: Vec<&str> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        // Numbers that tell crates apart, and references back: a letter, digits, an underscore.
        if v0 && (bytes[at] == b's' || bytes[at] == b'B') {
            let len =
                bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            if bytes.get(at + 1 + len) == Some(&b'_') {
                at += len + 2;
                continue;
            }
        }
        let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            at += 1;
            continue;
        }
        let Ok(len) = rest[at..at + digits].parse::<usize>() else { break };
        at += digits;
        if v0 && bytes.get(at) == Some(&b'_') {
            at += 1;
        }
        let Some(part) = rest.get(at..at + len) else { break };
        at += len;
        // The old mangling ends in a hash.
        let hash = !v0 && len == 17 && part.starts_with('h');
        if !part.is_empty() && !hash {
            parts.push(part);
        }
    }
    if parts.is_empty() { name.to_owned() } else { parts.join("::") }
}

/// Names for what a text mentions: mangled names are made readable, and addresses that lie in one
/// of the files get the function's name behind them.
pub fn annotate(text: &str, files: &[Symbols]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        if word.starts_with("_R") || word.starts_with("_ZN") {
            out.push_str(&demangle(word));
        } else {
            out.push_str(word);
            let address = word.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let name = address.and_then(|at| files.iter().find_map(|file| file.name(at)));
            if let Some(name) = name {
                out.push_str(&format!(" <{name}>"));
            }
        }
        word.clear();
    };
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '.' {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}

/// The loaded files in what kldstat(8) prints: name and address.
pub fn kldstat(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next()?.parse::<u32>().ok()?;
            words.next()?.parse::<u32>().ok()?;
            let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            Some((words.nth(1)?.to_owned(), address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relocatable file with .text (0x30 bytes), .data (align 0x1000) and two functions, one
    /// in each.
    fn module() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[16] = 1;
        let names = b"\0first\0_RNvNtCs1aB_6aio_rs4pool3run\0";
        let names_at = elf.len();
        elf.extend(names);
        let symbols_at = elf.len();
        for (name, section, value) in [(0u32, 0u16, 0u64), (1, 1, 0x10), (7, 2, 0x8)] {
            elf.extend(name.to_le_bytes());
            elf.extend([if name == 0 { 0 } else { STT_FUNC }, 0]);
            elf.extend(section.to_le_bytes());
            elf.extend(value.to_le_bytes());
            elf.extend(0u64.to_le_bytes());
        }
        let table = elf.len();
        let mut section =
            |kind: u32, flags: u64, offset: usize, size: usize, link: u32, align: u64| {
                elf.extend(0u32.to_le_bytes());
                elf.extend(kind.to_le_bytes());
                elf.extend(flags.to_le_bytes());
                elf.extend(0u64.to_le_bytes());
                elf.extend((offset as u64).to_le_bytes());
                elf.extend((size as u64).to_le_bytes());
                elf.extend(link.to_le_bytes());
                elf.extend(0u32.to_le_bytes());
                elf.extend(align.to_le_bytes());
                elf.extend(24u64.to_le_bytes());
            };
        section(0, 0, 0, 0, 0, 0);
        section(1, 6, 64, 0x30, 0, 16);
        section(1, 3, 64, 0x100, 0, 0x1000);
        section(2, 0, symbols_at, 72, 4, 8);
        section(3, 0, names_at, names.len(), 0, 1);
        elf[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        elf[60..62].copy_from_slice(&5u16.to_le_bytes());
        elf
    }

    #[test]
    fn resolves_in_a_module() {
        let symbols = Symbols::parse(&module(), 0xffff_ffff_8200_0000).unwrap();
        assert_eq!(symbols.name(0xffff_ffff_8200_0014).as_deref(), Some("first+0x4"));
        assert_eq!(symbols.name(0xffff_ffff_8200_100a).as_deref(), Some("aio_rs::pool::run+0x2"));
        assert_eq!(symbols.name(0xffff_ffff_8200_0004), None);
        assert_eq!(symbols.name(0xffff_ffff_8300_0000), None);
    }

    #[test]
    fn annotates_a_back_trace() {
        let symbols = Symbols::parse(&module(), 0xffff_ffff_8200_0000).unwrap();
        let text = "#3 0xffffffff82000014 at ??+0\n_RNvNtCs1aB_6aio_rs4pool3run() at x";
        assert_eq!(
            annotate(text, &[symbols]),
            "#3 0xffffffff82000014 <first+0x4> at ??+0\naio_rs::pool::run() at x"
        );
    }

    #[test]
    fn junk_is_no_file() {
        assert!(Symbols::parse(b"\x7fELF\x02", 0).is_none());
        let mut cut = module();
        cut.truncate(200);
        assert!(Symbols::parse(&cut, 0).is_none());
    }

    #[test]
    fn demangles() {
        assert_eq!(demangle("_ZN6aio_rs4pool3run17h0123456789abcdefE"), "aio_rs::pool::run");
        assert_eq!(
            demangle("_RNvMs0_NtCsbmNqQUJIY6D_6aio_rs4poolNtB5_6Worker3run"),
            "aio_rs::pool::Worker::run"
        );
        assert_eq!(demangle("sys_aio_read"), "sys_aio_read");
        assert_eq!(demangle("_R"), "_R");
    }

    #[test]
    fn reads_kldstat() {
        let text = "Id Refs Address                Size Name\n 1    4 0xffffffff80200000  1f3c6e8 kernel\n 3    1 0xffffffff82a10000     c038 aio_rs.ko\n";
        let files = kldstat(text);
        assert_eq!(files[1], ("aio_rs.ko".to_owned(), 0xffff_ffff_82a1_0000));
        assert_eq!(files.len(), 2);
    }
}
