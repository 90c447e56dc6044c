// SPDX-License-Identifier: BSD-2-Clause
//! The functions of a module: where they are, what they call, which registers they use.
//!
//! Functions are found in the symbol table, including labels of assembly that nobody gave a size,
//! and disassembled from start to end. Bytes of an executable section that belong to no symbol
//! must be padding, because nothing could be said about code there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic,
};
use object::elf;

use crate::elf::{Object, Reloc, Symbol, demangle};
use crate::report::Findings;
use crate::track::{self, Track};

/// A function, or a piece of assembly behind a label.
#[derive(Debug)]
pub struct Function {
    /// Demangled; one of its names, if it has several.
    pub name: String,
    /// Index of its section.
    pub section: usize,
    pub start: u64,
    pub end: u64,
}

/// How control goes from one function to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// A jump, or running into the next function, after the frame was given up.
    Jump,
    /// The same while the frame is, or may be, still on the stack.
    JumpInFrame,
    Call,
}

/// What was found in the body of one function.
#[derive(Debug)]
pub struct Body {
    /// Direct calls and jumps to functions of the module, by index.
    pub edges: BTreeSet<(usize, Transfer)>,
    pub indirect_calls: usize,
    pub indirect_jumps: usize,
    /// Bytes the function puts on the stack, without its return address; or why that is unknown.
    pub depth: Result<u64, String>,
}

/// All functions of a module, ordered by place; `bodies` has the same order.
#[derive(Debug)]
pub struct Code {
    pub functions: Vec<Function>,
    pub bodies: Vec<Body>,
}

impl Code {
    /// The function that starts at a place or, failing that, covers it.
    pub fn function_at(&self, section: usize, offset: u64) -> Option<usize> {
        function_at(&self.functions, section, offset)
    }
}

fn function_at(functions: &[Function], section: usize, offset: u64) -> Option<usize> {
    let key = |f: &Function| (f.section, f.start);
    functions.binary_search_by_key(&(section, offset), key).ok().or_else(|| {
        functions.iter().rposition(|f| f.section == section && (f.start..f.end).contains(&offset))
    })
}

pub fn analyse(object: &Object, findings: &mut Findings) -> Code {
    let functions = find_functions(object, findings);
    let mut tables: HashMap<usize, BTreeMap<u64, &Reloc>> = HashMap::new();
    for function in &functions {
        tables.entry(function.section).or_insert_with(|| {
            object.relocs_of(function.section).map(|reloc| (reloc.offset, reloc)).collect()
        });
    }
    let bodies = (0..functions.len())
        .map(|index| {
            let analysis = Analysis {
                object,
                functions: &functions,
                index,
                relocs: &tables[&functions[index].section],
            };
            analysis.run(findings)
        })
        .collect();
    Code { functions, bodies }
}

/// Whether a symbol marks code rather than data.
fn marks_code(symbol: &Symbol) -> bool {
    let label = symbol.kind == elf::STT_NOTYPE && !symbol.name.is_empty();
    label || matches!(symbol.kind, elf::STT_FUNC | elf::STT_GNU_IFUNC)
}

fn find_functions(object: &Object, findings: &mut Findings) -> Vec<Function> {
    let mut functions = Vec::new();
    for (index, section) in object.sections.iter().enumerate() {
        if !section.is_code() {
            continue;
        }
        let here: Vec<_> =
            object.symbols.iter().filter(|symbol| symbol.section() == Some(index)).collect();
        let found = functions_of(index, section.size, &here, findings);
        let data = here
            .iter()
            .filter(|symbol| symbol.kind == elf::STT_OBJECT)
            .map(|symbol| (symbol.value, symbol.value.saturating_add(symbol.size)));
        let covered = found.iter().map(|f| (f.start, f.end)).chain(data);
        for (start, end) in gaps(section.size, covered.collect()) {
            let bytes = section.data.get(start as usize..end as usize);
            if !bytes.is_some_and(is_padding) {
                findings.add(
                    "code",
                    &section.name,
                    format!("bytes {start:#x} to {end:#x} belong to no symbol"),
                );
            }
        }
        functions.extend(found);
    }
    functions
}

fn functions_of(
    section: usize,
    size: u64,
    symbols: &[&Symbol],
    findings: &mut Findings,
) -> Vec<Function> {
    let mut best: BTreeMap<u64, (&Symbol, u64)> = BTreeMap::new();
    let rank = |s: &Symbol| (s.kind == elf::STT_NOTYPE, s.bind == elf::STB_LOCAL);
    for &symbol in symbols.iter().filter(|s| marks_code(s)) {
        if symbol.value.saturating_add(symbol.size) > size {
            findings.add("code", &demangle(&symbol.name), "reaches past its section");
            continue;
        }
        best.entry(symbol.value)
            .and_modify(|(name, length)| {
                *length = symbol.size.max(*length);
                if (rank(symbol), &symbol.name) < (rank(name), &name.name) {
                    *name = symbol;
                }
            })
            .or_insert((symbol, symbol.size));
    }
    let sized: Vec<_> = best
        .iter()
        .filter(|(_, (_, length))| *length != 0)
        .map(|(start, (_, length))| (*start, start + length))
        .collect();
    let starts: BTreeSet<_> = symbols
        .iter()
        .filter(|s| marks_code(s) || s.kind == elf::STT_OBJECT)
        .map(|s| s.value)
        .collect();

    let mut functions = Vec::new();
    for (start, (symbol, length)) in best {
        let end = if length != 0 {
            start + length
        } else if sized.iter().any(|&(s, e)| s < start && start < e) {
            // A label inside a function.
            continue;
        } else {
            starts.range(start + 1..).next().map_or(size, |&next| next.min(size))
        };
        if end > start {
            functions.push(Function { name: demangle(&symbol.name), section, start, end });
        }
    }
    functions
}

/// The parts of `0..size` that none of the ranges covers.
fn gaps(size: u64, mut covered: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    covered.sort_unstable();
    covered.push((size, size));
    let mut gaps = Vec::new();
    let mut at = 0;
    for (start, end) in covered {
        if start > at {
            gaps.push((at, start));
        }
        at = at.max(end);
    }
    gaps
}

fn is_padding(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if *first == 0 {
            rest = tail;
            continue;
        }
        let i = Decoder::new(64, rest, DecoderOptions::NONE).decode();
        if !matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
            return false;
        }
        rest = &rest[i.len()..];
    }
    true
}

/// Where a direct call or jump goes.
enum Target {
    /// To an address in the same function.
    Inside(u64),
    /// To a function of the module.
    Function(usize),
    /// To another module or the kernel.
    Import,
    Nowhere(String),
}

/// The work on one function.
struct Analysis<'a> {
    object: &'a Object<'a>,
    functions: &'a [Function],
    index: usize,
    relocs: &'a BTreeMap<u64, &'a Reloc>,
}

impl Analysis<'_> {
    fn run(&self, findings: &mut Findings) -> Body {
        let function = &self.functions[self.index];
        let code = self.disassemble();
        self.check_registers(&code, findings);

        let mut edges = BTreeSet::new();
        let mut inside = HashMap::new();
        let mut leaving = Vec::new();
        let mut indirect_calls = 0;
        let mut indirect_jumps = 0;
        for i in code.values() {
            match i.flow_control() {
                FlowControl::IndirectCall => indirect_calls += 1,
                FlowControl::IndirectBranch => indirect_jumps += 1,
                FlowControl::Call
                | FlowControl::ConditionalBranch
                | FlowControl::UnconditionalBranch => {
                    let is_call = i.flow_control() == FlowControl::Call;
                    match self.target(i) {
                        Target::Inside(_) if is_call => {
                            edges.insert((self.index, Transfer::Call));
                        }
                        Target::Inside(to) => {
                            inside.insert(i.ip(), to);
                        }
                        Target::Function(to) if is_call => {
                            edges.insert((to, Transfer::Call));
                        }
                        Target::Function(to) => leaving.push((i.ip(), to)),
                        Target::Import => {}
                        Target::Nowhere(place) => findings.add(
                            "code",
                            &function.name,
                            format!("branch at {:#x} to {place}, in no function", i.ip()),
                        ),
                    }
                }
                _ => {}
            }
        }

        let track = track::follow(function.start, function.end, &code, &inside);
        for (from, to) in leaving {
            edges.insert((to, jump(track.states.get(&from), &track)));
        }
        if let Some(state) = &track.runs_out {
            match function_at(self.functions, function.section, function.end) {
                Some(next) => {
                    edges.insert((next, jump(Some(state), &track)));
                }
                None => findings.add("code", &function.name, "runs past its end"),
            }
        }
        if let Some(at) = track.red_zone {
            findings.add(
                "redzone",
                &function.name,
                format!("uses memory below the stack pointer at +{:#x}", at - function.start),
            );
        }
        Body { edges, indirect_calls, indirect_jumps, depth: track.depth }
    }

    fn disassemble(&self) -> BTreeMap<u64, Instruction> {
        let function = &self.functions[self.index];
        let range = function.start as usize..function.end as usize;
        let bytes = self.object.sections[function.section].data.get(range).unwrap_or_default();
        Decoder::with_ip(64, bytes, function.start, DecoderOptions::NONE)
            .iter()
            .filter(|i| !i.is_invalid())
            .map(|i| (i.ip(), i))
            .collect()
    }

    fn check_registers(&self, code: &BTreeMap<u64, Instruction>, findings: &mut Findings) {
        let function = &self.functions[self.index];
        let mut info = InstructionInfoFactory::new();
        let mut found = code.values().filter(|i| uses_fpu(i, &mut info));
        if let Some(first) = found.next() {
            let more = match found.count() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            findings.add(
                "simd",
                &function.name,
                format!(
                    "{:?} at +{:#x}{more}: x87, MMX, SSE or AVX state",
                    first.code(),
                    first.ip() - function.start,
                ),
            );
        }
    }

    fn target(&self, i: &Instruction) -> Target {
        let function = &self.functions[self.index];
        // The displacement of a near branch is its last field.
        let field = i.next_ip() - 4;
        let reloc = (i.len() > 4).then(|| self.relocs.get(&field)).flatten();
        let (section, offset) = match reloc {
            Some(reloc) => match self.object.place(reloc, 4) {
                Some(place) => place,
                None => return Target::Import,
            },
            None => (function.section, i.near_branch_target()),
        };
        let same = section == function.section;
        if same && (function.start..function.end).contains(&offset) {
            return Target::Inside(offset);
        }
        match function_at(self.functions, section, offset) {
            Some(index) => Target::Function(index),
            None => {
                let name = self.object.sections.get(section).map_or("?", |s| &s.name);
                Target::Nowhere(format!("{name}+{offset:#x}"))
            }
        }
    }
}

/// How a jump out of a function counts, given the stack before it.
fn jump(state: Option<&track::State>, track: &Track) -> Transfer {
    match state {
        Some(state) if track.depth.is_ok() && state.depth == 0 => Transfer::Jump,
        _ => Transfer::JumpInFrame,
    }
}

/// Whether an instruction uses floating point or vector state, which belongs to the user thread
/// while the kernel runs.
fn uses_fpu(i: &Instruction, info: &mut InstructionInfoFactory) -> bool {
    let by_register = info.info(i).used_registers().iter().any(|used| {
        let r = used.register();
        r.is_vector_register() || r.is_mm() || r.is_st() || r.is_k() || r.is_tmm()
    });
    let by_feature = i.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::FPU
                | CpuidFeature::FPU287
                | CpuidFeature::FPU387
                | CpuidFeature::MMX
                | CpuidFeature::FXSR
                | CpuidFeature::XSAVE
                | CpuidFeature::XSAVEC
                | CpuidFeature::XSAVEOPT
                | CpuidFeature::XSAVES
        )
    });
    let by_name = matches!(
        i.mnemonic(),
        Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Vstmxcsr
            | Mnemonic::Vzeroupper
            | Mnemonic::Vzeroall
            | Mnemonic::Wait
    );
    by_register || by_feature || by_name
}

#[cfg(test)]
mod tests {
    use super::{gaps, is_padding, uses_fpu};
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};

    fn fpu(bytes: &[u8]) -> bool {
        let i = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        assert_eq!(i.len(), bytes.len());
        uses_fpu(&i, &mut InstructionInfoFactory::new())
    }

    #[test]
    fn tells_vector_and_float_instructions() {
        assert!(fpu(&[0x0f, 0x28, 0xc1]), "movaps xmm0, xmm1");
        assert!(fpu(&[0x0f, 0x11, 0x07]), "movups [rdi], xmm0");
        assert!(fpu(&[0xc5, 0xf8, 0x77]), "vzeroupper");
        assert!(fpu(&[0xc5, 0xfc, 0x28, 0xc1]), "vmovaps ymm0, ymm1");
        assert!(fpu(&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1]), "vmovaps zmm0");
        assert!(fpu(&[0x0f, 0x6f, 0xc1]), "movq mm0, mm1");
        assert!(fpu(&[0x0f, 0x77]), "emms");
        assert!(fpu(&[0xd9, 0xee]), "fldz");
        assert!(fpu(&[0x9b]), "wait");
        assert!(fpu(&[0x0f, 0xae, 0x17]), "ldmxcsr [rdi]");
        assert!(fpu(&[0x0f, 0xae, 0x07]), "fxsave [rdi]");
    }

    #[test]
    fn leaves_integer_instructions_alone() {
        assert!(!fpu(&[0x0f, 0xae, 0xf0]), "mfence");
        assert!(!fpu(&[0x0f, 0xae, 0xf8]), "sfence");
        assert!(!fpu(&[0x0f, 0xc3, 0x07]), "movnti [rdi], eax");
        assert!(!fpu(&[0x0f, 0x18, 0x0f]), "prefetcht0 [rdi]");
        assert!(!fpu(&[0xf3, 0x90]), "pause");
        assert!(!fpu(&[0xf3, 0x48, 0xab]), "rep stosq");
        assert!(!fpu(&[0xc4, 0xe2, 0x70, 0xf2, 0xc2]), "andn eax, ecx, edx");
        assert!(!fpu(&[0xf3, 0x0f, 0x1e, 0xfa]), "endbr64");
    }

    #[test]
    fn finds_uncovered_ranges() {
        assert_eq!(gaps(10, vec![(2, 4), (3, 6), (8, 10)]), [(0, 2), (6, 8)]);
        assert_eq!(gaps(10, vec![(0, 10)]), []);
        assert_eq!(gaps(3, vec![]), [(0, 3)]);
    }

    #[test]
    fn knows_padding() {
        assert!(is_padding(&[0xcc, 0xcc, 0x66, 0x90, 0x0f, 0x1f, 0x40, 0, 0]));
        assert!(!is_padding(&[0xcc, 0xc3]));
    }
}
