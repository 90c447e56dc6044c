// SPDX-License-Identifier: BSD-2-Clause
//! A module's text, decoded where it was loaded: its instructions, which of them other processors
//! can notice, and its basic blocks.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// A function of the module's.
#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub start: u64,
}

/// A run of instructions that is entered at its beginning only. Calls do not end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub start: u64,
    /// The function's index.
    pub function: usize,
    /// An assertion failed, or has to from here on: it ends in an undefined instruction, or all that can
    /// follow does, or it is of a function that is called from such blocks only.
    pub asserts: bool,
}

/// A block, while it is not known which assert.
struct Found {
    start: u64,
    function: usize,
    asserts: bool,
    /// Where it may go on in its function; `None`: anywhere, or out of it.
    next: Option<Vec<u64>>,
    /// What of the text it calls, jumps to or takes the address of.
    names: Vec<u64>,
}

#[derive(Debug, Default)]
pub struct Text {
    pub functions: Vec<Function>,
    /// Addresses, in order.
    pub instructions: Vec<u64>,
    /// Indices of those that are atomic for other processors, or look at this one's struct pcpu.
    pub shared: Vec<usize>,
    pub blocks: Vec<Block>,
}

/// Whether it locks the bus, or reaches struct pcpu.
fn is_shared(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory);
    i.has_lock_prefix()
        || i.mnemonic() == Mnemonic::Xchg && memory
        || memory && i.segment_prefix() == Register::GS
}

/// Decodes functions, given as address, name and size. `bytes` has the memory at an address, and
/// `targets` what is pointed to by data: where tables of jumps lead.
pub fn decode<'a>(
    functions: &BTreeMap<usize, (String, u64)>,
    targets: &BTreeSet<u64>,
    bytes: impl Fn(usize, usize) -> &'a [u8],
) -> Text {
    let mut text = Text::default();
    let mut found = Vec::new();
    for (&start, (name, size)) in functions.iter().filter(|(_, (_, size))| *size > 0) {
        let (start, end) = (start as u64, start as u64 + size);
        let function = text.functions.len();
        text.functions.push(Function { name: name.clone(), start });
        let code = bytes(start as usize, *size as usize);
        let list: Vec<Instruction> =
            Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter().collect();
        for i in &list {
            if is_shared(i) {
                text.shared.push(text.instructions.len());
            }
            text.instructions.push(i.ip());
        }
        found.extend(blocks(&list, function, start, end, targets));
    }
    spread(&mut found, &text.functions, targets);
    text.blocks = found
        .into_iter()
        .map(|Found { start, function, asserts, .. }| Block { start, function, asserts })
        .collect();
    text
}

/// Finds the blocks from which an assertion has to fail.
fn spread(found: &mut [Found], functions: &[Function], targets: &BTreeSet<u64>) {
    let index: BTreeMap<u64, usize> =
        found.iter().enumerate().map(|(index, block)| (block.start, index)).collect();
    // Who names a function, by block.
    let mut named: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let starts: BTreeMap<u64, usize> =
        functions.iter().enumerate().map(|(index, its)| (its.start, index)).collect();
    for (at, block) in found.iter().enumerate() {
        for name in block.names.iter().filter(|name| starts.contains_key(name)) {
            let own = starts.get(name) == Some(&block.function);
            named.entry(*name).or_default().extend((!own).then_some(at));
        }
    }
    loop {
        let before = found.iter().filter(|block| block.asserts).count();
        for at in 0..found.len() {
            let doomed = found[at].next.as_ref().is_some_and(|next| {
                !next.is_empty()
                    && next.iter().all(|to| index.get(to).is_some_and(|&to| found[to].asserts))
            });
            found[at].asserts |= doomed;
        }
        let only_then: BTreeSet<usize> = named
            .iter()
            .filter(|(start, by)| !targets.contains(start) && !by.is_empty())
            .filter(|(_, by)| by.iter().all(|&at| found[at].asserts))
            .filter_map(|(start, _)| starts.get(start).copied())
            .collect();
        for block in found.iter_mut().filter(|block| only_then.contains(&block.function)) {
            block.asserts = true;
        }
        if found.iter().filter(|block| block.asserts).count() == before {
            return;
        }
    }
}

/// The blocks of one function.
fn blocks(
    list: &[Instruction],
    function: usize,
    start: u64,
    end: u64,
    targets: &BTreeSet<u64>,
) -> Vec<Found> {
    let mut leaders: BTreeSet<u64> = targets.range(start..end).copied().collect();
    leaders.insert(start);
    for i in list {
        match i.flow_control() {
            FlowControl::ConditionalBranch => {
                leaders.extend([i.near_branch_target(), i.next_ip()]);
            }
            FlowControl::UnconditionalBranch => {
                leaders.insert(i.near_branch_target());
            }
            _ => {}
        }
    }
    // What follows a jump, a return or an end is entered by a branch only, if it is no padding.
    let place = |at: u64| list.binary_search_by_key(&at, Instruction::ip).ok();
    leaders
        .iter()
        .filter_map(|&leader| {
            let first = place(leader)?;
            let mut last = first;
            while let Some(i) = list.get(last) {
                let goes_on = matches!(
                    i.flow_control(),
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall
                );
                if !goes_on || leaders.contains(&i.next_ip()) || i.mnemonic() == Mnemonic::Ud2 {
                    break;
                }
                last += 1;
            }
            let asserts = list.get(last).is_some_and(|i| i.mnemonic() == Mnemonic::Ud2);
            let all = &list[first..list.len().min(last + 1)];
            let next = all.last().and_then(|i| match i.flow_control() {
                FlowControl::ConditionalBranch => Some(vec![i.near_branch_target(), i.next_ip()]),
                FlowControl::UnconditionalBranch => Some(vec![i.near_branch_target()]),
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    Some(vec![i.next_ip()])
                }
                _ => None,
            });
            let names = all.iter().flat_map(named).collect();
            Some(Found { start: leader, function, asserts, next, names })
        })
        .collect()
}

/// The addresses an instruction has in it.
fn named(i: &Instruction) -> Vec<u64> {
    let mut names = Vec::new();
    for operand in 0..i.op_count() {
        match i.op_kind(operand) {
            OpKind::NearBranch64 => names.push(i.near_branch_target()),
            OpKind::Memory if i.is_ip_rel_memory_operand() => {
                names.push(i.ip_rel_memory_address());
            }
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                names.push(i.immediate(operand));
            }
            OpKind::Memory => names.push(i.memory_displacement64()),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(code: &'static [u8], targets: &[u64]) -> Text {
        let functions = BTreeMap::from([(0x1000, ("f".to_owned(), code.len() as u64))]);
        let targets = targets.iter().copied().collect();
        decode(&functions, &targets, |at, size| &code[at - 0x1000..at - 0x1000 + size])
    }

    fn starts(text: &Text) -> Vec<u64> {
        text.blocks.iter().map(|block| block.start - 0x1000).collect()
    }

    #[test]
    fn finds_what_others_notice() {
        let text = text_of(
            &[
                0xf0, 0x48, 0xff, 0x07, // lock inc qword [rdi]
                0x48, 0x87, 0x07, // xchg [rdi], rax
                0x48, 0x87, 0xc3, // xchg rbx, rax
                0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, // mov rax, gs:[0]
                0x48, 0x8b, 0x07, // mov rax, [rdi]
                0xc3, // ret
            ],
            &[],
        );
        assert_eq!(text.instructions.len(), 6);
        assert_eq!(text.shared, [0, 1, 3]);
    }

    #[test]
    fn blocks_begin_at_branches_targets_and_behind_conditions() {
        // test edi, edi; je +3; inc eax; ret; nop; dec eax; ret
        let text =
            text_of(&[0x85, 0xff, 0x74, 0x04, 0xff, 0xc0, 0xc3, 0x90, 0xff, 0xc8, 0xc3], &[]);
        assert_eq!(starts(&text), [0, 4, 8]);
        assert!(text.blocks.iter().all(|block| !block.asserts));
    }

    #[test]
    fn a_call_does_not_end_a_block_and_an_assertion_is_known() {
        // call +0; je +1; ret; call +0; ud2
        let text =
            text_of(&[0xe8, 0, 0, 0, 0, 0x74, 0x01, 0xc3, 0xe8, 0, 0, 0, 0, 0x0f, 0x0b], &[]);
        assert_eq!(starts(&text), [0, 7, 8]);
        let asserts: Vec<bool> = text.blocks.iter().map(|block| block.asserts).collect();
        assert_eq!(asserts, [false, false, true]);
    }

    /// Two functions, of so many bytes; the first calls the second.
    fn asserting(code: &'static [u8], first: usize, targets: &[u64]) -> Vec<bool> {
        let size = |from: usize, to: usize| (to - from) as u64;
        let functions = BTreeMap::from([
            (0x1000, ("f".to_owned(), size(0, first))),
            (0x1000 + first, ("g".to_owned(), size(first, code.len()))),
        ]);
        let targets = targets.iter().copied().collect();
        let text = decode(&functions, &targets, |at, size| &code[at - 0x1000..at - 0x1000 + size]);
        text.blocks.iter().map(|block| block.asserts).collect()
    }

    #[test]
    fn what_only_leads_to_an_assertion_asserts() {
        // test edi, edi; je +1; ret; test esi, esi; je +2; ud2; ud2
        let text = text_of(
            &[0x85, 0xff, 0x74, 0x01, 0xc3, 0x85, 0xf6, 0x74, 0x02, 0x0f, 0x0b, 0x0f, 0x0b],
            &[],
        );
        let asserts: Vec<bool> = text.blocks.iter().map(|block| block.asserts).collect();
        assert_eq!(asserts, [false, false, true, true, true]);
    }

    #[test]
    fn a_function_that_only_assertions_call_asserts() {
        // f: je +1; ret; call g; ud2.  g: ret
        const CODE: &[u8] = &[0x74, 0x01, 0xc3, 0xe8, 2, 0, 0, 0, 0x0f, 0x0b, 0xc3];
        assert_eq!(asserting(CODE, 10, &[]), [false, false, true, true]);
        // Somebody else may call it by its address.
        assert_eq!(asserting(CODE, 10, &[0x100a]), [false, false, true, false]);
        // f: je +1; ret; call g; ret.  g: ret
        const PLAIN: &[u8] = &[0x74, 0x01, 0xc3, 0xe8, 1, 0, 0, 0, 0xc3, 0xc3];
        assert_eq!(asserting(PLAIN, 9, &[]), [false, false, false, false]);
    }

    #[test]
    fn a_table_of_jumps_leads_to_blocks() {
        // jmp rax; inc eax; ret; dec eax; ret
        let code = &[0xff, 0xe0, 0xff, 0xc0, 0xc3, 0xff, 0xc8, 0xc3];
        assert_eq!(starts(&text_of(code, &[])), [0]);
        assert_eq!(starts(&text_of(code, &[0x1002, 0x1005, 0x2000])), [0, 2, 5]);
    }
}
