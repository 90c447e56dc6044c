// SPDX-License-Identifier: BSD-2-Clause
//! The plugin's view of instructions. The rest of it needs the QEMU that loads it.

#[path = "../src/kinds.rs"]
mod kinds;

use kinds::kinds;

/// Atomic, and compares and exchanges; as kinds.rs numbers them.
const EXCHANGES: [(u64, u64); 2] = [(1, 1), (2, 1)];
const ATOMIC: [(u64, u64); 1] = [(1, 1)];

#[test]
fn all_kinds_have_names() {
    assert!(kinds::KINDS.iter().map(|(number, _)| *number).eq(1..=3));
}

#[test]
fn instructions_that_are_counted_everywhere() {
    // lock cmpxchg [rdi], rsi; lock xadd [rdi], eax; lock inc qword [rdi]; xchg [rdi], rax.
    assert_eq!(kinds(&[0xf0, 0x48, 0x0f, 0xb1, 0x37]), EXCHANGES);
    assert_eq!(kinds(&[0xf0, 0x0f, 0xc1, 0x07]), ATOMIC);
    assert_eq!(kinds(&[0xf0, 0x48, 0xff, 0x07]), ATOMIC);
    assert_eq!(kinds(&[0x48, 0x87, 0x07]), ATOMIC);
    // rep stosb; rep stosq.
    assert_eq!(kinds(&[0xf3, 0xaa]), [(3, 1)]);
    assert_eq!(kinds(&[0xf3, 0x48, 0xab]), [(3, 8)]);
    // rep movsb; xchg rax, rbx; nop; nothing.
    for other in [&[0xf3, 0xa4][..], &[0x48, 0x87, 0xc3], &[0x90], &[]] {
        assert_eq!(kinds(other), []);
    }
}
