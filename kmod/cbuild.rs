// SPDX-License-Identifier: BSD-2-Clause
// Shared by the build scripts of the engine and the gate: compiles kernel C through the cc crate.

/// Compiles `sources` with the kernel's flags (`AIO_RS_CFLAGS`, set by kmod/build.sh) into the
/// archive that the final link takes whole.
fn compile_kernel_c(name: &str, sources: &[&str]) {
    println!("cargo:rerun-if-env-changed=AIO_RS_CFLAGS");
    let Ok(cflags) = std::env::var("AIO_RS_CFLAGS") else {
        eprintln!("AIO_RS_CFLAGS is not set: build with `make`, which finds the kernel's headers");
        std::process::exit(1);
    };
    let mut build = cc::Build::new();
    build
        .no_default_flags(true)
        .cargo_metadata(false)
        .warnings(true)
        .warnings_into_errors(true)
        .flag("-O2")
        // One section per function, so that every call keeps a relocation the build check can see.
        .flag("-ffunction-sections")
        .flag("-fstack-size-section");
    for flag in cflags.split_whitespace() {
        build.flag(flag);
    }
    for source in sources {
        println!("cargo:rerun-if-changed={source}");
        build.file(source);
    }
    build.compile(name);
    // Where kmod/build.sh looks for the archive.
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    if let Ok(dir) = std::env::var("AIO_RS_CLIBS") {
        let file = format!("lib{name}.a");
        std::fs::copy(format!("{out}/{file}"), format!("{dir}/{file}")).expect("AIO_RS_CLIBS is a directory");
    }
}
