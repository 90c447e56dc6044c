// SPDX-License-Identifier: BSD-2-Clause
//! FreeBSD's asynchronous I/O as a loadable kernel module.
//!
//! Imports point one way: `entry -> aio -> {model, kern} -> sys-bindings`. See
//! `docs/architecture.md`.

#![cfg_attr(not(test), no_std)]
#![deny(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc
)]

extern crate alloc;

pub mod model;

#[cfg(feature = "kernel")]
mod aio;
#[cfg(feature = "kernel")]
mod entry;
#[cfg(feature = "kernel")]
mod kern;
