// SPDX-License-Identifier: BSD-2-Clause
//! Follows the stack pointer through one function.
//!
//! Starting at the entry, every path is followed and each instruction gets the deepest stack with
//! which it can be reached. The frame pointer is known as long as it was copied from the stack
//! pointer. Anything else that changes the stack pointer by an amount not in the instruction
//! (alloca, stack switches) makes the answer unknown.

use std::collections::{BTreeMap, HashMap};

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

/// How often one instruction may be reached with a deeper stack before it counts as unbounded.
const MAX_VISITS: u32 = 64;

/// The stack at one instruction, in bytes below the return address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub depth: i64,
    /// Where the frame pointer points, if that is on this stack.
    frame: Option<i64>,
}

impl State {
    const ENTRY: State = State { depth: 0, frame: None };

    /// The state that covers both ways to reach an instruction.
    fn join(self, other: State) -> State {
        State {
            depth: self.depth.max(other.depth),
            frame: self.frame.filter(|_| self.frame == other.frame),
        }
    }
}

/// What following a function showed.
#[derive(Debug)]
pub struct Track {
    /// The deepest stack, or why it is unknown.
    pub depth: Result<u64, String>,
    /// The state before each instruction that was reached.
    pub states: HashMap<u64, State>,
    /// The state in which control runs into whatever follows the function.
    pub runs_out: Option<State>,
    /// The first instruction that uses memory below the stack pointer.
    pub red_zone: Option<u64>,
}

/// Follows the instructions of a function, keyed by address. `inside` holds the targets of those
/// branches that stay in the function; all other branches leave it.
pub fn follow(
    start: u64,
    end: u64,
    code: &BTreeMap<u64, Instruction>,
    inside: &HashMap<u64, u64>,
) -> Track {
    let mut walk = Walk {
        end,
        code,
        inside,
        info: InstructionInfoFactory::new(),
        states: HashMap::new(),
        visits: HashMap::new(),
        deepest: 0,
        runs_out: None,
        at_jump_table: None,
    };
    let mut result = walk.run(start, State::ENTRY);
    let runs_out = walk.runs_out;
    let red_zone = walk.red_zone();

    // What is left is reached through jump tables or not at all. A jump table leaves the stack as
    // it is; without one, assume the worst seen so far.
    while result.is_ok() {
        let Some(next) = walk.first_unreached() else {
            break;
        };
        let guess = walk.at_jump_table.unwrap_or(State { depth: walk.deepest, frame: None });
        result = walk.run(next, guess);
    }
    let depth = result.map(|()| walk.deepest.unsigned_abs());
    Track { depth, states: walk.states, runs_out, red_zone }
}

struct Walk<'a> {
    end: u64,
    code: &'a BTreeMap<u64, Instruction>,
    inside: &'a HashMap<u64, u64>,
    info: InstructionInfoFactory,
    states: HashMap<u64, State>,
    visits: HashMap<u64, u32>,
    deepest: i64,
    runs_out: Option<State>,
    at_jump_table: Option<State>,
}

impl Walk<'_> {
    fn run(&mut self, start: u64, state: State) -> Result<(), String> {
        let mut work = vec![(start, state)];
        while let Some((at, state)) = work.pop() {
            let state = match self.states.get(&at) {
                None => state,
                Some(&known) if known.join(state) == known => continue,
                Some(&known) => known.join(state),
            };
            let Some(instruction) = self.code.get(&at) else {
                return Err(format!("no instruction starts at {at:#x}"));
            };
            let visits = self.visits.entry(at).or_default();
            *visits += 1;
            if *visits > MAX_VISITS {
                return Err("the stack grows in a loop".into());
            }
            self.states.insert(at, state);

            let after = step(instruction, state, &mut self.info)?;
            if after.depth < 0 {
                return Err("takes more from the stack than it put there".into());
            }
            self.deepest = self.deepest.max(after.depth);

            let flow = instruction.flow_control();
            if let Some(&target) = self.inside.get(&at)
                && flow != FlowControl::Call
            {
                work.push((target, after));
            }
            let goes_on = match flow {
                FlowControl::Next
                | FlowControl::ConditionalBranch
                | FlowControl::Call
                | FlowControl::IndirectCall
                | FlowControl::XbeginXabortXend => true,
                FlowControl::Interrupt => instruction.mnemonic() != Mnemonic::Int3,
                FlowControl::IndirectBranch => {
                    let joined = self.at_jump_table.map_or(after, |old| old.join(after));
                    self.at_jump_table = Some(joined);
                    false
                }
                FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception => {
                    false
                }
            };
            let next = instruction.next_ip();
            if goes_on && next < self.end {
                work.push((next, after));
            } else if goes_on && !is_call(flow) {
                // A call at the very end is one that does not return.
                let joined = self.runs_out.map_or(after, |old| old.join(after));
                self.runs_out = Some(joined);
            }
        }
        Ok(())
    }

    /// The first instruction no path has reached, leaving out padding.
    fn first_unreached(&self) -> Option<u64> {
        self.code
            .values()
            .filter(|i| !self.states.contains_key(&i.ip()))
            .find(|i| !is_padding(i))
            .map(Instruction::ip)
    }

    fn red_zone(&self) -> Option<u64> {
        let below = |(at, state): (&u64, &State)| {
            let i = self.code.get(at)?;
            let displacement = i.memory_displacement64().cast_signed();
            let uses_memory = i.op_kinds().any(|kind| kind == OpKind::Memory);
            let address = match i.memory_base() {
                Register::RSP => displacement,
                Register::RBP => state.depth - state.frame? + displacement,
                _ => return None,
            };
            let hit = uses_memory
                && i.mnemonic() != Mnemonic::Lea
                && i.memory_index() == Register::None
                && address < 0;
            hit.then_some(*at)
        };
        self.states.iter().filter_map(below).min()
    }
}

fn is_call(flow: FlowControl) -> bool {
    matches!(flow, FlowControl::Call | FlowControl::IndirectCall)
}

/// Instructions that fill the space between functions, two zero bytes among them.
pub fn is_padding(i: &Instruction) -> bool {
    let zeros = i.mnemonic() == Mnemonic::Add
        && i.len() == 2
        && i.op0_kind() == OpKind::Memory
        && i.memory_base() == Register::RAX
        && i.op1_register() == Register::AL;
    zeros || matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}

/// The state after an instruction. Calls leave the stack as they found it.
fn step(i: &Instruction, state: State, info: &mut InstructionInfoFactory) -> Result<State, String> {
    let State { depth, frame } = state;
    let first = (i.op_count() > 0 && i.op0_kind() == OpKind::Register).then(|| i.op0_register());
    let second = (i.op_count() > 1 && i.op1_kind() == OpKind::Register).then(|| i.op1_register());
    let immediate = (i.op_count() == 2
        && matches!(i.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64))
    .then(|| i.immediate(1).cast_signed());
    let plain_address = i.memory_index() == Register::None;
    let displacement = i.memory_displacement64().cast_signed();
    let with_depth = |depth| Ok(State { depth, frame });
    let with_frame = |frame| Ok(State { depth, frame });

    if is_call(i.flow_control()) || i.flow_control() == FlowControl::Return {
        return Ok(state);
    }
    match (i.mnemonic(), first, second, immediate) {
        (Mnemonic::Sub, Some(Register::RSP), _, Some(n)) => return with_depth(depth + n),
        (Mnemonic::Add, Some(Register::RSP), _, Some(n)) => return with_depth(depth - n),
        // Aligning takes up to the alignment less the eight bytes every frame keeps to.
        (Mnemonic::And, Some(Register::RSP), _, Some(n)) if (i64::MIN + 1..0).contains(&n) => {
            return with_depth(depth + (-n - 8).max(0));
        }
        (Mnemonic::Mov, Some(Register::RBP), Some(Register::RSP), _) => {
            return with_frame(Some(depth));
        }
        (Mnemonic::Mov, Some(Register::RSP), Some(Register::RBP), _) => {
            if let Some(frame) = frame {
                return with_depth(frame);
            }
        }
        (Mnemonic::Lea, Some(Register::RSP | Register::RBP), _, _) if plain_address => {
            let base = match i.memory_base() {
                Register::RSP => Some(depth),
                Register::RBP => frame,
                _ => None,
            };
            let address = base.map(|base| base - displacement);
            match (first, address) {
                (Some(Register::RBP), address) => return with_frame(address),
                (_, Some(address)) => return with_depth(address),
                _ => {}
            }
        }
        (Mnemonic::Leave, ..) => {
            if let Some(frame) = frame {
                return Ok(State { depth: frame - 8, frame: None });
            }
        }
        (Mnemonic::Pop, Some(Register::RBP), ..) => {
            return Ok(State { depth: depth - 8, frame: None });
        }
        _ => {}
    }

    let moves = i64::from(i.stack_pointer_increment());
    let mut sp_written = false;
    let mut frame_written = false;
    for used in info.info(i).used_registers() {
        let written = matches!(
            used.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        sp_written |= written && used.register().full_register() == Register::RSP;
        frame_written |= written && used.register().full_register() == Register::RBP;
    }
    let pops_into_sp =
        first.is_some_and(|r| r.full_register() == Register::RSP) && i.mnemonic() == Mnemonic::Pop;
    if sp_written && (moves == 0 || pops_into_sp || i.mnemonic() == Mnemonic::Enter) {
        return Err(format!("the stack pointer changes by an unknown amount at {:#x}", i.ip()));
    }
    Ok(State { depth: depth - moves, frame: frame.filter(|_| !frame_written) })
}

#[cfg(test)]
mod tests {
    use super::{Track, follow};
    use iced_x86::{Decoder, DecoderOptions, FlowControl};
    use std::collections::{BTreeMap, HashMap};

    fn track(bytes: &[u8]) -> Track {
        let code: BTreeMap<_, _> = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE)
            .iter()
            .map(|i| (i.ip(), i))
            .collect();
        let end = bytes.len() as u64;
        let inside: HashMap<_, _> = code
            .values()
            .filter(|i| {
                matches!(
                    i.flow_control(),
                    FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
                )
            })
            .map(|i| (i.ip(), i.near_branch_target()))
            .filter(|(_, target)| *target < end)
            .collect();
        follow(0, end, &code, &inside)
    }

    #[test]
    fn adds_pushes_and_subtractions() {
        // push rbx; sub rsp, 0x40; add rsp, 0x40; pop rbx; ret
        let t = track(&[0x53, 0x48, 0x83, 0xec, 0x40, 0x48, 0x83, 0xc4, 0x40, 0x5b, 0xc3]);
        assert_eq!(t.depth, Ok(0x48));
        assert_eq!(t.states[&10].depth, 0);
        assert!(t.runs_out.is_none());
    }

    #[test]
    fn knows_frame_pointers() {
        // push rbp; mov rbp, rsp; and rsp, -64; sub rsp, 64; mov rsp, rbp; pop rbp; ret
        let t = track(&[
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xc0, 0x48, 0x83, 0xec, 0x40, 0x48, 0x89,
            0xec, 0x5d, 0xc3,
        ]);
        assert_eq!(t.depth, Ok(8 + 56 + 64));
        assert_eq!(t.states[&16].depth, 0);
    }

    #[test]
    fn gives_up_on_computed_amounts() {
        // sub rsp, rax; ret
        assert!(track(&[0x48, 0x29, 0xc4, 0xc3]).depth.is_err());
        // pop rsp; ret
        assert!(track(&[0x5c, 0xc3]).depth.is_err());
        // add rsp, 8; ret
        assert!(track(&[0x48, 0x83, 0xc4, 0x08, 0xc3]).depth.is_err());
    }

    #[test]
    fn gives_up_on_a_loop_that_pushes() {
        // push rax; jmp -3
        assert!(track(&[0x50, 0xeb, 0xfd]).depth.is_err());
    }

    #[test]
    fn takes_the_deeper_way() {
        // test edi, edi; je +1; push rax; ud2
        let t = track(&[0x85, 0xff, 0x74, 0x01, 0x50, 0x0f, 0x0b]);
        assert_eq!(t.depth, Ok(8));
        assert_eq!(t.states[&5].depth, 8);
    }

    #[test]
    fn sees_code_behind_a_jump_table() {
        // push rax; jmp [rdi*8]; push rbx; pop rbx; pop rax; ret
        let t = track(&[0x50, 0xff, 0x24, 0xfd, 0, 0, 0, 0, 0x53, 0x5b, 0x58, 0xc3]);
        assert_eq!(t.depth, Ok(16));
        assert_eq!(t.states[&11].depth, 0);
    }

    #[test]
    fn finds_the_red_zone() {
        // mov [rsp-8], rdi; ret
        assert_eq!(track(&[0x48, 0x89, 0x7c, 0x24, 0xf8, 0xc3]).red_zone, Some(0));
        // push rbp; mov rbp, rsp; mov [rbp-4], edi; pop rbp; ret
        let t = track(&[0x55, 0x48, 0x89, 0xe5, 0x89, 0x7d, 0xfc, 0x5d, 0xc3]);
        assert_eq!(t.red_zone, Some(4));
        // push rax; mov [rsp], rdi; pop rax; ret
        assert_eq!(track(&[0x50, 0x48, 0x89, 0x3c, 0x24, 0x58, 0xc3]).red_zone, None);
    }

    #[test]
    fn notices_code_that_runs_on() {
        // push rax; nop
        assert_eq!(track(&[0x50, 0x90]).runs_out.map(|s| s.depth), Some(8));
        // call 0 (does not return)
        assert!(track(&[0xe8, 0, 0, 0, 0]).runs_out.is_none());
    }
}
