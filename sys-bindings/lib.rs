// SPDX-License-Identifier: BSD-2-Clause
//! Raw bindings to the FreeBSD kernel: what bindgen read from the headers, the C shims of
//! `kmod/shims.c`, the gate's table, and compile-time asserts of every layout we share.
//!
//! No logic lives here. Only `src/kern`, `src/entry` and the gate use this crate.

#![no_std]

pub mod gate;
mod layout;
mod shims;

pub use shims::*;

#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unnecessary_transmutes,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod raw {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use raw::*;

/// `__FreeBSD_version` of the headers.
pub const FREEBSD_VERSION: u32 = AIO_RS_FREEBSD_VERSION;
