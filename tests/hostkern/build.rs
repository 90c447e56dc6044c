// SPDX-License-Identifier: BSD-2-Clause
//! Runs bindgen over `wrapper.h` with the flags the modules are compiled with (`AIO_RS_CFLAGS`, set
//! by kmod/build.sh), so that a host kernel belongs to one `__FreeBSD_version`, as the modules do.

use std::{env, path::PathBuf};

const TYPES: &[&str] = &[
    "aio_rs_vop_.*",
    "bintime",
    "bio",
    "cap_rights",
    "cdev",
    "cdevsw",
    "file",
    "fileops",
    "filterops",
    "iovec",
    "kaiocb",
    "kevent",
    "knlist",
    "knote",
    "ksiginfo",
    "lock_object",
    "malloc_type",
    "mod_depend",
    "mod_metadata",
    "mod_version",
    "modeventtype",
    "moduledata",
    "mount",
    "mtx",
    "pcpu",
    "plimit",
    "proc",
    "protosw",
    "sysctl_ctx_list",
    "sysctl_oid",
    "sysctl_req",
    "sysent",
    "sysinit",
    "sigevent",
    "sockbuf",
    "socket",
    "task",
    "thread",
    "timeval",
    "ucred",
    "uio",
    "vfsconf",
    "vmspace",
    "vnode",
];

const VARIABLES: &[&str] = &[
    "BIO_.*",
    "C_ABSOLUTE",
    "CTL.*",
    "D_DISK",
    "DTYPE_.*",
    "EV_.*",
    "EVFILT_.*",
    "FOF_OFFSET",
    "FREAD",
    "FWRITE",
    "KN_.*",
    "KNF_.*",
    "KSI_.*",
    "RLIMIT_.*",
    "SI_UNMAPPED",
    "SIGEV_.*",
    "HOSTKERN_.*",
    "LK_.*",
    "M_WAITOK",
    "M_ZERO",
    "MDT_.*",
    "MNT_LOCAL",
    "MOD_.*",
    "MTX_.*",
    "OID_AUTO",
    "PR_.*",
    "P_KPROC",
    "P_SYSTEM",
    "P_WEXIT",
    "PCATCH",
    "PDROP",
    "MSG_MORETOCOME",
    "MSG_NBIO",
    "SB_.*",
    "SBS_.*",
    "SO_.*",
    "SOCK_.*",
    "SS_.*",
    "SYS_.*",
    "UIO_.*",
    "VCHR",
    "VIRF_.*",
    "VDIR",
    "VFIFO",
    "VREG",
];

fn main() {
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
        .formatter(bindgen::Formatter::None);
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in VARIABLES {
        builder = builder.allowlist_var(name);
    }
    match builder.generate() {
        Ok(bindings) => {
            let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
            bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");
        }
        Err(error) => {
            eprintln!("bindgen: {error}");
            std::process::exit(1);
        }
    }
}
