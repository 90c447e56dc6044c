// SPDX-License-Identifier: BSD-2-Clause
//! Safe wrappers of the kernel, one file per facility. C names are kept where the thing is the
//! same; what a type holds it releases.
//!
//! This is one of the three places where `unsafe` may stand. Nothing here knows what AIO is.
#![allow(unsafe_code)]

mod alloc;
pub mod bio;
pub mod clock;
pub mod counter;
pub mod cred;
pub mod disk;
pub mod errno;
pub mod file;
pub mod knote;
pub mod kproc;
pub mod limit;
pub mod mtx;
pub mod panic;
pub mod pipe;
pub mod printf;
pub mod probe;
pub mod proc;
pub mod procmap;
mod racct;
mod resident;
pub mod signal;
pub mod sleep;
pub mod socket;
pub mod sysctl;
pub mod uio;
pub mod user;
pub mod vmspace;
