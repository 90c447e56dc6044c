// SPDX-License-Identifier: BSD-2-Clause
//! Compiles the gate's C half; see `kmod/cbuild.rs`.

include!("../cbuild.rs");

fn main() {
    compile_kernel_c("aio_rs_gate_c", &["gate.c"]);
}
