// SPDX-License-Identifier: BSD-2-Clause
//! Where C calls us: system calls, process events, workers, module events. Each function decodes
//! its arguments, calls the safe body in `aio` and encodes the result; nothing is decided here.
#![allow(unsafe_code)]

mod events;
mod module;
mod syscalls;
