// SPDX-License-Identifier: BSD-2-Clause
//! Compiles the engine's C half (`kmod/*.c`) when a kernel module is built. The bindings are made
//! by `sys-bindings/build.rs`, which runs first.

include!("kmod/cbuild.rs");

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A version of its own for a build that is to be told from another (kmod/build.sh, TAG).
    println!("cargo:rerun-if-env-changed=AIO_RS_TAG");
    let tag = std::env::var("AIO_RS_TAG").ok().filter(|tag| !tag.is_empty());
    let tag = tag.map_or(String::new(), |tag| format!("+{tag}"));
    println!("cargo:rustc-env=AIO_RS_VERSION={}{tag}", env!("CARGO_PKG_VERSION"));
    if std::env::var_os("CARGO_FEATURE_KERNEL").is_some() {
        compile_kernel_c("aio_rs_c", &["kmod/aio_rs.c", "kmod/probes.c", "kmod/shims.c"]);
    }
}
