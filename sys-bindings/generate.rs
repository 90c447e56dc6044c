// SPDX-License-Identifier: BSD-2-Clause
// Reads `wrapper.h` with the kernel's own flags: for the build scripts here and of the host kernel,
// which see the same structures that way.

use std::env;
use std::path::PathBuf;

/// Writes `bindings.rs` into OUT_DIR: these names, and what they need. Ends the build with a line
/// when it cannot.
pub fn generate(functions: &[&str], variables: &[&str], types: &[&str]) {
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=AIO_RS_CFLAGS");
    let Ok(cflags) = env::var("AIO_RS_CFLAGS") else {
        eprintln!("AIO_RS_CFLAGS is not set: build with `make`, which finds the kernel's headers");
        std::process::exit(1);
    };
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(cflags.split_whitespace())
        .use_core()
        .generate_comments(false)
        .layout_tests(false)
        .derive_debug(false)
        .prepend_enum_name(false)
        .fit_macro_constants(false)
        // The same bytes on every machine: no formatter that may differ or be missing.
        .formatter(bindgen::Formatter::None);
    for name in functions {
        builder = builder.allowlist_function(name);
    }
    for name in variables {
        builder = builder.allowlist_var(name);
    }
    for name in types {
        builder = builder.allowlist_type(name);
    }
    let bindings = builder.generate().unwrap_or_else(|error| {
        eprintln!("bindgen: {error}");
        std::process::exit(1);
    });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");
}
