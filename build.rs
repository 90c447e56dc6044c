// SPDX-License-Identifier: BSD-2-Clause
//! Compiles the engine's C half (`kmod/*.c`) when a kernel module is built. The bindings are made
//! by `sys-bindings/build.rs`, which runs first.

include!("kmod/cbuild.rs");

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_KERNEL").is_some() {
        compile_kernel_c("aio_rs_c", &["kmod/aio_rs.c", "kmod/probes.c", "kmod/shims.c"]);
    }
}
