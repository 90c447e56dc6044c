// SPDX-License-Identifier: BSD-2-Clause
//! The engine: requests, the processes they belong to, the workers that perform them.
//!
//! One file per duty. No `unsafe` is allowed here; what the kernel wants is in `kern`.

mod cancel;
mod config;
mod disk;
mod engine;
mod lanes;
mod list;
mod notify;
mod park;
mod pool;
mod process;
mod reap;
mod request;
mod rundown;
mod socket;
mod statistics;
mod submit;
mod suspend;
mod trace;

pub use cancel::Answer;
pub use engine::{Engine, Served, Who};
pub use list::Mode;
pub use reap::Patience;
pub use request::Operation;
