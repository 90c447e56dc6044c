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
    /// It ends in an undefined instruction: an assertion that failed.
    pub asserts: bool,
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
        text.blocks.extend(
            blocks(&list, start, end, targets).into_iter().map(|(start, asserts)| Block {
                start,
                function,
                asserts,
            }),
        );
    }
    text
}

/// Where the blocks of one function begin, and whether they end in an undefined instruction.
fn blocks(list: &[Instruction], start: u64, end: u64, targets: &BTreeSet<u64>) -> Vec<(u64, bool)> {
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
            Some((leader, asserts))
        })
        .collect()
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

    #[test]
    fn a_table_of_jumps_leads_to_blocks() {
        // jmp rax; inc eax; ret; dec eax; ret
        let code = &[0xff, 0xe0, 0xff, 0xc0, 0xc3, 0xff, 0xc8, 0xc3];
        assert_eq!(starts(&text_of(code, &[])), [0]);
        assert_eq!(starts(&text_of(code, &[0x1002, 0x1005, 0x2000])), [0, 2, 5]);
    }
}
