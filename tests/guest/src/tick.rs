// SPDX-License-Identifier: BSD-2-Clause
//! The processor's time stamp counter, which counts instructions on a machine that is emulated
//! with QEMU's -icount, and a loop of known length that tells how many go to one tick.
//!
//! Also marks: instructions that do nothing, which a plugin of the emulator can look for.

/// The time stamp counter. What was started before it is done, by and large: the programs measure
/// spans of many system calls.
#[cfg(target_arch = "x86_64")]
pub fn now() -> u64 {
    // SAFETY: every amd64 processor has the instruction, and FreeBSD leaves it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes 2 * `rounds` instructions, and a handful around them.
#[cfg(target_arch = "x86_64")]
pub fn spin(rounds: u64) {
    // SAFETY: a loop over one register.
    unsafe {
        core::arch::asm!(
            "2:",
            "dec {left}",
            "jnz 2b",
            left = inout(reg) rounds.max(1) => _,
            options(nomem, nostack),
        );
    }
}

/// A mark, as the last two bytes of a long instruction that does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// What follows belongs to the next row.
    Row,
    /// What follows is measured.
    On,
    /// What follows is not.
    Off,
}

/// Executes a mark: `nop` with a displacement that no compiler chooses.
#[cfg(target_arch = "x86_64")]
pub fn mark(mark: Mark) {
    // SAFETY: each is one instruction that changes nothing.
    unsafe {
        match mark {
            Mark::Row => core::arch::asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00, 0x01, 0xa1, 0x0b, 0x10",
                options(nostack)
            ),
            Mark::On => core::arch::asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00, 0x02, 0xa1, 0x0b, 0x10",
                options(nostack)
            ),
            Mark::Off => core::arch::asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00, 0x03, 0xa1, 0x0b, 0x10",
                options(nostack)
            ),
        }
    }
}
