// SPDX-License-Identifier: BSD-2-Clause
//! The pure half of the engine: no kernel, no clock, no pointer. Everything here is tested by
//! `cargo test` on any machine.

pub mod errno;
pub mod glance;
pub mod hash;
pub mod job;
pub mod lane;
pub mod list;
pub mod slab;
pub mod statistics;
pub mod table;

pub use errno::Errno;
