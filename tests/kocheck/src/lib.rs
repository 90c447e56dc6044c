// SPDX-License-Identifier: BSD-2-Clause
//! What the checker consists of. The host kernel (tests/hostkern) reads modules with the same
//! parser and refuses what `loadable` refuses.

pub mod allow;
pub mod code;
pub mod elf;
pub mod loadable;
pub mod report;
pub mod stack;
pub mod track;
