// SPDX-License-Identifier: BSD-2-Clause
//! How much kernel stack the functions of a module use, alone and calling each other.
//!
//! The frame of a function is what its compiler wrote into `.stack_sizes` or what following its
//! instructions gives, whichever is more. A chain counts 8 bytes of return address and the whole
//! frame for each function on it; a jump to another function after the frame was given up replaces
//! the one that jumps. Calls through pointers and calls to the kernel end a chain. Functions that
//! reach themselves have no bound and are reported instead.

use std::collections::{BTreeMap, VecDeque};

use object::elf;

use crate::code::{Code, Transfer};
use crate::elf::Object;
use crate::report::Findings;

/// The section with frame sizes: pairs of a relocated address and a ULEB128 number.
const SIZES_SECTION: &str = ".stack_sizes";

const RETURN_ADDRESS: u64 = 8;

/// What a module may use, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub frame: u64,
    pub chain: u64,
}

/// Stack use of one function.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    pub by_compiler: Option<u64>,
    pub by_code: Option<u64>,
    /// With everything it calls, including the return addresses.
    pub chain: u64,
    /// The next function on the deepest chain.
    next: Option<(usize, Transfer)>,
}

impl Frame {
    /// The size to count, zero when it is unknown (which is a violation of its own).
    pub fn size(&self) -> u64 {
        self.by_compiler.max(self.by_code).unwrap_or(0)
    }
}

/// Stack use of a module; indices are those of `Code`.
#[derive(Debug)]
pub struct Usage {
    pub frames: Vec<Frame>,
    pub deepest_frame: Option<usize>,
    pub deepest_chain: Option<usize>,
}

impl Usage {
    /// The deepest chain from a function on, as names and frame sizes. `->` is a call, `=>` a jump
    /// that takes the caller's place.
    pub fn chain(&self, code: &Code, from: usize) -> String {
        let mut text = String::new();
        let mut at = Some((from, None));
        while let Some((index, transfer)) = at {
            text.push_str(match transfer {
                None => "",
                Some(Transfer::Jump) => " => ",
                Some(Transfer::Call | Transfer::JumpInFrame) => " -> ",
            });
            let frame = &self.frames[index];
            text.push_str(&format!("{} ({})", code.functions[index].name, frame.size()));
            at = frame.next.map(|(next, transfer)| (next, Some(transfer)));
        }
        text
    }
}

pub fn check(object: &Object, code: &Code, limits: &Limits, findings: &mut Findings) -> Usage {
    let mut frames = frames(object, code, findings);
    for (frame, function) in frames.iter().zip(&code.functions) {
        if frame.size() > limits.frame {
            findings.add(
                "frame",
                &function.name,
                format!("{} bytes, more than {}", frame.size(), limits.frame),
            );
        }
    }

    let edges: Vec<Vec<(usize, Transfer)>> =
        code.bodies.iter().map(|body| body.edges.iter().copied().collect()).collect();
    let components = components(&edges);
    let mut component_of = vec![0; edges.len()];
    for (number, members) in components.iter().enumerate() {
        for &member in members {
            component_of[member] = number;
        }
    }
    // Callees come before their callers.
    for members in &components {
        if let Some(cycle) = cycle(&edges, members, &component_of) {
            let names: Vec<_> = cycle.iter().map(|&i| &*code.functions[i].name).collect();
            findings.add("recursion", names[0], names.join(" -> "));
        }
        for &index in members {
            let size = frames[index].size();
            let mut best = (size, None);
            for &(callee, transfer) in &edges[index] {
                if component_of[callee] == component_of[index] {
                    continue;
                }
                let depth = frames[callee].chain;
                let depth = match transfer {
                    Transfer::Call => size + depth,
                    Transfer::JumpInFrame => size + depth - RETURN_ADDRESS,
                    Transfer::Jump => depth - RETURN_ADDRESS,
                };
                if depth > best.0 {
                    best = (depth, Some((callee, transfer)));
                }
            }
            frames[index].chain = best.0 + RETURN_ADDRESS;
            frames[index].next = best.1;
        }
    }

    let deepest_by = |key: fn(&Frame) -> u64| {
        (0..frames.len()).max_by_key(|&i| (key(&frames[i]), std::cmp::Reverse(i)))
    };
    let deepest_frame = deepest_by(Frame::size);
    let deepest_chain = deepest_by(|frame| frame.chain);
    let usage = Usage { frames, deepest_frame, deepest_chain };
    report_chains(&usage, code, &edges, limits, findings);
    usage
}

/// Reports each chain above the limit at its outermost function only.
fn report_chains(
    usage: &Usage,
    code: &Code,
    edges: &[Vec<(usize, Transfer)>],
    limits: &Limits,
    findings: &mut Findings,
) {
    let too_deep = |index: usize| usage.frames[index].chain > limits.chain;
    let mut has_deep_caller = vec![false; edges.len()];
    for (caller, callees) in edges.iter().enumerate() {
        for &(callee, _) in callees {
            has_deep_caller[callee] |= callee != caller && too_deep(caller);
        }
    }
    for index in (0..edges.len()).filter(|&i| too_deep(i)) {
        // Functions that call each other all have a caller: do not lose the deepest chain then.
        if !has_deep_caller[index] || usage.deepest_chain == Some(index) {
            findings.add(
                "chain",
                &code.functions[index].name,
                format!(
                    "{} bytes, more than {}: {}",
                    usage.frames[index].chain,
                    limits.chain,
                    usage.chain(code, index)
                ),
            );
        }
    }
}

fn frames(object: &Object, code: &Code, findings: &mut Findings) -> Vec<Frame> {
    let mut frames: Vec<_> = code
        .bodies
        .iter()
        .map(|body| Frame { by_code: body.depth.as_ref().ok().copied(), ..Frame::default() })
        .collect();
    for ((section, offset), size) in compiler_sizes(object, findings) {
        match code.function_at(section, offset) {
            Some(index) if code.functions[index].start == offset => {
                let known = &mut frames[index].by_compiler;
                *known = Some(known.unwrap_or(0).max(size));
            }
            _ => {
                let name = object.sections.get(section).map_or("?", |s| &s.name);
                findings.add(
                    "frame",
                    SIZES_SECTION,
                    format!("entry for {name}+{offset:#x}, where no function starts"),
                );
            }
        }
    }
    for ((frame, body), function) in frames.iter().zip(&code.bodies).zip(&code.functions) {
        if let (None, Err(reason)) = (frame.by_compiler, &body.depth) {
            findings.add(
                "frame",
                &function.name,
                format!("no entry in {SIZES_SECTION}, and {reason}"),
            );
        }
    }
    frames
}

/// The frame sizes the compilers wrote, by place.
fn compiler_sizes(object: &Object, findings: &mut Findings) -> BTreeMap<(usize, u64), u64> {
    let mut sizes = BTreeMap::new();
    for (index, section) in object.sections.iter().enumerate() {
        if section.name != SIZES_SECTION {
            continue;
        }
        let relocs: BTreeMap<_, _> = object.relocs_of(index).map(|r| (r.offset, r)).collect();
        let mut at = 0;
        while at < section.data.len() {
            let Some((size, length)) = section.data.get(at + 8..).and_then(uleb128) else {
                findings.add("frame", SIZES_SECTION, "ends in the middle of an entry");
                break;
            };
            let place = relocs
                .get(&(at as u64))
                .filter(|reloc| reloc.kind == elf::R_X86_64_64)
                .and_then(|reloc| object.place(reloc, 0));
            match place {
                Some(place) => {
                    let known = sizes.entry(place).or_insert(0);
                    *known = size.max(*known);
                }
                // The linker cleared the entry of a function it dropped.
                None if relocs
                    .get(&(at as u64))
                    .is_some_and(|reloc| reloc.kind == elf::R_X86_64_NONE) => {}
                None => findings.add(
                    "frame",
                    SIZES_SECTION,
                    format!("entry at {at:#x} without a relocation that names its function"),
                ),
            }
            at += 8 + length;
        }
    }
    sizes
}

/// A number and how many bytes it takes.
fn uleb128(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// The strongly connected components of the call graph (Tarjan), callees first.
fn components(edges: &[Vec<(usize, Transfer)>]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    let mut order = vec![UNSEEN; edges.len()];
    let mut low = vec![0; edges.len()];
    let mut on_stack = vec![false; edges.len()];
    let mut stack = Vec::new();
    let mut found = Vec::new();
    let mut clock = 0;
    for root in 0..edges.len() {
        if order[root] != UNSEEN {
            continue;
        }
        // Nodes being visited, each with the number of edges already followed.
        let mut visit = vec![(root, 0)];
        while let Some((node, edge)) = visit.last_mut() {
            let node = *node;
            if *edge == 0 && order[node] == UNSEEN {
                order[node] = clock;
                low[node] = clock;
                clock += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some(&(next, _)) = edges[node].get(*edge) {
                *edge += 1;
                if order[next] == UNSEEN {
                    visit.push((next, 0));
                } else if on_stack[next] {
                    low[node] = low[node].min(order[next]);
                }
                continue;
            }
            visit.pop();
            if let Some(&(parent, _)) = visit.last() {
                low[parent] = low[parent].min(low[node]);
            }
            if low[node] == order[node] {
                let start = stack.iter().rposition(|&n| n == node).unwrap_or(0);
                let mut members = stack.split_off(start);
                for &member in &members {
                    on_stack[member] = false;
                }
                members.sort_unstable();
                found.push(members);
            }
        }
    }
    found
}

/// The shortest way from the first function of a component back to itself, both ends included.
fn cycle(
    edges: &[Vec<(usize, Transfer)>],
    members: &[usize],
    component_of: &[usize],
) -> Option<Vec<usize>> {
    let first = *members.first()?;
    let mut from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([first]);
    while let Some(node) = queue.pop_front() {
        for &(next, _) in &edges[node] {
            if component_of[next] != component_of[first] || from.contains_key(&next) {
                continue;
            }
            from.insert(next, node);
            queue.push_back(next);
        }
    }
    let mut path = vec![first];
    let mut at = *from.get(&first)?;
    while at != first {
        path.push(at);
        at = from[&at];
    }
    path.push(first);
    path.reverse();
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::{Transfer, components, cycle, uleb128};

    fn graph(edges: &[&[usize]]) -> Vec<Vec<(usize, Transfer)>> {
        edges.iter().map(|to| to.iter().map(|&t| (t, Transfer::Call)).collect()).collect()
    }

    #[test]
    fn callees_come_first() {
        let edges = graph(&[&[1, 2], &[2], &[], &[0]]);
        assert_eq!(components(&edges), [vec![2], vec![1], vec![0], vec![3]]);
    }

    #[test]
    fn functions_that_call_each_other_are_together() {
        let edges = graph(&[&[1], &[2, 3], &[0], &[]]);
        assert_eq!(components(&edges), [vec![3], vec![0, 1, 2]]);
        assert_eq!(cycle(&edges, &[0, 1, 2], &[1, 1, 1, 0]), Some(vec![0, 1, 2, 0]));
    }

    #[test]
    fn one_function_is_a_cycle_only_when_it_calls_itself() {
        assert_eq!(cycle(&graph(&[&[0]]), &[0], &[0]), Some(vec![0, 0]));
        assert_eq!(cycle(&graph(&[&[1], &[]]), &[0], &[1, 0]), None);
    }

    #[test]
    fn reads_numbers() {
        assert_eq!(uleb128(&[0x08, 0xff]), Some((8, 1)));
        assert_eq!(uleb128(&[0x88, 0x08]), Some((1032, 2)));
        assert_eq!(uleb128(&[0x80]), None);
        assert_eq!(uleb128(&[]), None);
    }
}
