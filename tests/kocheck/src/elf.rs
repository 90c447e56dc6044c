// SPDX-License-Identifier: BSD-2-Clause
//! The parts of a relocatable object that the kernel's linker looks at, as plain data.
//!
//! Only what makes everything else meaningless (no section headers, not exactly one symbol table,
//! broken tables) is reported here; the object is then given up. The other checks are in
//! `loadable`.

use object::LittleEndian;
use object::elf;
use object::read::StringTable;
use object::read::elf::{FileHeader, Rela as _, SectionHeader as _, Sym as _};

use crate::report::Findings;

type Header = elf::FileHeader64<LittleEndian>;

const LE: LittleEndian = LittleEndian;

/// The size of an ELF64 section header, the only one the kernel takes.
const SECTION_HEADER_SIZE: u16 = 64;

/// One section, with its contents (empty for a section that has none in the file).
#[derive(Debug)]
pub struct Section<'data> {
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub size: u64,
    pub align: u64,
    pub data: &'data [u8],
}

impl Section<'_> {
    pub fn is_allocated(&self) -> bool {
        self.flags & u64::from(elf::SHF_ALLOC) != 0
    }

    /// Whether the kernel's linker puts this section into memory.
    pub fn is_loaded(&self) -> bool {
        let kind = matches!(
            self.kind,
            elf::SHT_PROGBITS
                | elf::SHT_NOBITS
                | elf::SHT_X86_64_UNWIND
                | elf::SHT_INIT_ARRAY
                | elf::SHT_FINI_ARRAY
        );
        kind && self.is_allocated() && self.size != 0
    }

    pub fn is_code(&self) -> bool {
        self.is_loaded()
            && self.kind == elf::SHT_PROGBITS
            && self.flags & u64::from(elf::SHF_EXECINSTR) != 0
    }
}

/// One entry of the symbol table.
#[derive(Debug)]
pub struct Symbol {
    pub name: String,
    pub value: u64,
    pub size: u64,
    pub bind: u8,
    pub kind: u8,
    pub shndx: u16,
}

impl Symbol {
    /// The index of the section that holds the symbol, if it is an ordinary one.
    pub fn section(&self) -> Option<usize> {
        let ordinary = self.shndx != elf::SHN_UNDEF && self.shndx < elf::SHN_LORESERVE;
        ordinary.then_some(usize::from(self.shndx))
    }
}

/// One relocation with addend.
#[derive(Debug, Clone, Copy)]
pub struct Reloc {
    pub offset: u64,
    pub kind: u32,
    pub symbol: u32,
    pub addend: i64,
}

/// The relocations of one section.
#[derive(Debug)]
pub struct RelocTable {
    /// Index of the section they apply to.
    pub target: usize,
    /// Sorted by offset.
    pub entries: Vec<Reloc>,
}

/// A relocatable object.
#[derive(Debug)]
pub struct Object<'data> {
    pub file_size: u64,
    pub sections: Vec<Section<'data>>,
    pub symbols: Vec<Symbol>,
    pub relocs: Vec<RelocTable>,
}

impl Object<'_> {
    /// The relocations that apply to a section, sorted by offset.
    pub fn relocs_of(&self, section: usize) -> impl Iterator<Item = &Reloc> {
        self.relocs
            .iter()
            .filter(move |table| table.target == section)
            .flat_map(|table| &table.entries)
    }

    /// The section and offset that symbol + addend stand for, if they are in this object.
    pub fn place(&self, reloc: &Reloc, adjust: i64) -> Option<(usize, u64)> {
        let symbol = self.symbols.get(reloc.symbol as usize)?;
        let offset = symbol.value.wrapping_add_signed(reloc.addend).wrapping_add_signed(adjust);
        Some((symbol.section()?, offset))
    }

    /// How to call a symbol in a message: section symbols have no name of their own.
    pub fn symbol_name(&self, index: u32) -> String {
        let Some(symbol) = self.symbols.get(index as usize) else {
            return format!("symbol {index}");
        };
        if symbol.kind == elf::STT_SECTION
            && let Some(section) = symbol.section().and_then(|i| self.sections.get(i))
        {
            return section.name.clone();
        }
        if symbol.name.is_empty() {
            return format!("symbol {index}");
        }
        demangle(&symbol.name)
    }
}

/// The readable form of a name the compilers made.
pub fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Reads an object. `None`, with a finding, when it is not one that can be checked any further.
pub fn parse<'data>(data: &'data [u8], findings: &mut Findings) -> Option<Object<'data>> {
    match read(data, findings) {
        Ok(object) => object,
        Err(error) => {
            findings.add("elf", "file", error.to_string());
            None
        }
    }
}

fn read<'data>(
    data: &'data [u8],
    findings: &mut Findings,
) -> Result<Option<Object<'data>>, object::Error> {
    let header = Header::parse(data)?;
    let endian_and_class =
        header.e_ident.class == elf::ELFCLASS64 && header.e_ident.data == elf::ELFDATA2LSB;
    if !endian_and_class
        || header.e_ident.version != elf::EV_CURRENT
        || header.e_version.get(LE) != u32::from(elf::EV_CURRENT)
    {
        findings.add("elf", "header", "not a little-endian ELF64 file");
        return Ok(None);
    }
    if header.e_machine.get(LE) != elf::EM_X86_64 {
        findings.add("elf", "header", "not for amd64");
        return Ok(None);
    }
    if header.e_type.get(LE) != elf::ET_REL {
        findings.add("elf", "header", "not a relocatable object (ET_REL)");
        return Ok(None);
    }
    if header.e_shoff.get(LE) == 0
        || header.e_shnum.get(LE) == 0
        || header.e_shentsize.get(LE) != SECTION_HEADER_SIZE
    {
        findings.add("elf", "header", "no section headers the linker can read");
        return Ok(None);
    }

    let headers = header.section_headers(LE, data)?;
    let names_index = usize::from(header.e_shstrndx.get(LE));
    let names = match headers.get(names_index) {
        Some(table) if names_index != 0 && table.sh_type(LE) == elf::SHT_STRTAB => {
            strings(table, data)
        }
        _ => {
            findings.add("elf", "header", "no table of section names");
            return Ok(None);
        }
    };

    let mut sections = Vec::with_capacity(headers.len());
    for header in headers {
        sections.push(Section {
            name: String::from_utf8_lossy(header.name(LE, names)?).into_owned(),
            kind: header.sh_type(LE),
            flags: header.sh_flags(LE),
            size: header.sh_size(LE),
            align: header.sh_addralign(LE),
            data: header.data(LE, data)?,
        });
    }

    let tables: Vec<_> = (0..headers.len())
        .filter(|&i| headers[i].sh_type(LE) == elf::SHT_SYMTAB && headers[i].sh_size(LE) != 0)
        .collect();
    let &[table] = tables.as_slice() else {
        findings.add(
            "symtab",
            "file",
            format!("{} symbol tables where one is needed", tables.len()),
        );
        return Ok(None);
    };
    let Some(string_table) = headers
        .get(headers[table].sh_link(LE) as usize)
        .filter(|header| header.sh_type(LE) == elf::SHT_STRTAB)
    else {
        findings.add("symtab", "file", "the symbol table has no string table");
        return Ok(None);
    };
    let names = strings(string_table, data);
    let mut symbols = Vec::new();
    for symbol in headers[table].data_as_array::<elf::Sym64<LittleEndian>, _>(LE, data)? {
        symbols.push(Symbol {
            name: String::from_utf8_lossy(symbol.name(LE, names)?).into_owned(),
            value: symbol.st_value(LE),
            size: symbol.st_size(LE),
            bind: symbol.st_bind(),
            kind: symbol.st_type(),
            shndx: symbol.st_shndx(LE),
        });
    }

    let mut relocs = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let kind = header.sh_type(LE);
        if kind != elf::SHT_RELA && kind != elf::SHT_REL {
            continue;
        }
        let name = &sections[index].name;
        let target = header.sh_info(LE) as usize;
        if target == 0 || target >= headers.len() {
            findings.add("reloc", name, "relocations for a section that is not there");
            continue;
        }
        if kind == elf::SHT_REL {
            if sections[target].is_allocated() {
                findings.add("reloc", name, "relocations without addends");
            }
            continue;
        }
        if header.sh_link(LE) as usize != table {
            findings.add("reloc", name, "relocations for another symbol table");
            continue;
        }
        let mut entries: Vec<_> = header
            .data_as_array::<elf::Rela64<LittleEndian>, _>(LE, data)?
            .iter()
            .map(|rela| Reloc {
                offset: rela.r_offset(LE),
                kind: rela.r_type(LE, false),
                symbol: rela.r_sym(LE, false),
                addend: rela.r_addend(LE),
            })
            .collect();
        entries.sort_by_key(|reloc| reloc.offset);
        relocs.push(RelocTable { target, entries });
    }

    Ok(Some(Object { file_size: data.len() as u64, sections, symbols, relocs }))
}

fn strings<'data>(
    header: &elf::SectionHeader64<LittleEndian>,
    data: &'data [u8],
) -> StringTable<'data> {
    let start = header.sh_offset(LE);
    StringTable::new(data, start, start.saturating_add(header.sh_size(LE)))
}
