// SPDX-License-Identifier: BSD-2-Clause
//! The host kernel: loads `aio_rs_gate.ko` and `aio_rs.ko`, as built for FreeBSD, into this Linux
//! process, and runs FreeBSD programs that use them. See docs/hostkern.md.

mod bio;
mod builtin;
mod coverage;
mod decisions;
mod disk;
mod errno;
mod fault;
mod file;
mod imports;
mod kqueue;
mod limit;
mod mem;
mod module;
mod oracle;
mod pages;
mod pipe;
mod probe;
mod proc;
mod report;
mod run;
mod sched;
mod shrink;
mod signal;
mod socket;
mod socket_calls;
mod socket_io;
mod socket_net;
mod socket_tasks;
mod state;
mod strategy;
mod syscalls;
mod sysctl;
mod taskqueue;
mod text;
mod tools;
mod user;
mod vm;

/// What bindgen read from the headers the modules are built with.
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
mod sys {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

fn main() -> std::process::ExitCode {
    run::main()
}
