// SPDX-License-Identifier: BSD-2-Clause
//! What is counted wherever it is, and which instructions do it.

/// What is counted wherever it is: atomic operations, those of them that compare and exchange (as
/// taking a lock does, and giving it up), and bytes that string instructions store without reading
/// any, as zeroing does. Each has the counter of an address that no code is at.
pub const KINDS: [(u64, &str); 3] = [(1, "atomic"), (2, "exchange"), (3, "stored")];
const ATOMIC: u64 = 1;
const EXCHANGE: u64 = 2;
const STORED: u64 = 3;

/// What an instruction does that is counted wherever it is, and how much of it, each time.
pub fn kinds(bytes: &[u8]) -> Vec<(u64, u64)> {
    let (mut locked, mut repeats, mut wide, mut at) = (false, false, false, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            0xf0 => locked = true,
            0xf2 | 0xf3 => repeats = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 => {}
            0x40..=0x4f => wide = byte & 8 != 0,
            _ => break,
        }
        at += 1;
    }
    let [first, second, ..] = [&bytes[at..], &[0, 0]].concat()[..] else { return Vec::new() };
    let in_memory = second < 0xc0;
    match first {
        0x0f if locked && matches!(second, 0xb0 | 0xb1 | 0xc7) => vec![(ATOMIC, 1), (EXCHANGE, 1)],
        _ if locked => vec![(ATOMIC, 1)],
        // An exchange with memory needs no prefix.
        0x86 | 0x87 if in_memory => vec![(ATOMIC, 1)],
        0xaa if repeats => vec![(STORED, 1)],
        0xab if repeats => vec![(STORED, if wide { 8 } else { 4 })],
        _ => Vec::new(),
    }
}
