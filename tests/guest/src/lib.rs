// SPDX-License-Identifier: BSD-2-Clause
//! What the guest programs share: program start, system calls, memory, threads, output and the
//! AIO calls, for FreeBSD on amd64 and i386 without libc, so that one static binary runs on any
//! FreeBSD 14 or 15 root, however small.
//!
//! Memory that a request may write at any time lives in a [`mem::Region`] and is read and written
//! through volatile accessors only; Rust never holds a reference to it while a request is live.
//! System calls take addresses as plain numbers: a test must be able to pass a bad one.
//!
//! On a host the library and its tests build too, but no program does anything there.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod aio;
pub mod errno;
pub mod handshake;
pub mod kld;
pub mod kqueue;
pub mod kyua;
pub mod mem;
pub mod net;
pub mod oaio;
pub mod out;
pub mod path;
pub mod rng;
pub mod seen;
#[cfg(test)]
mod semantics;
pub mod signal;
pub mod start;
pub mod sys;
pub mod sysctl;
pub mod thread;
pub mod tick;
pub mod time;

pub use errno::{Errno, Result};
pub use start::Args;
