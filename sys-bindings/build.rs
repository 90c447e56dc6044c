// SPDX-License-Identifier: BSD-2-Clause
//! Runs bindgen over `wrapper.h` with the flags the kernel's own C is compiled with.
//!
//! `AIO_RS_CFLAGS` holds those flags; kmod/build.sh sets it from the chosen headers. bindgen's
//! output goes to OUT_DIR and is never checked in: it belongs to one `__FreeBSD_version`.

use std::{env, path::PathBuf};

/// The kernel functions the engine and the gate may call. A name missing here does not reach Rust.
const FUNCTIONS: &[&str] = &[
    "__mtx_lock_flags",
    "__mtx_unlock_flags",
    "_mtx_init",
    "_mtx_destroy",
    "_sleep",
    "_fdrop",
    "bwillwrite",
    "copyin",
    "copyinuio",
    "copyout",
    "counter_u64_alloc",
    "counter_u64_free",
    "counter_u64_fetch",
    "crfree",
    "crhold",
    "dev_relthread",
    "devvn_refthread",
    "eventhandler_register",
    "fget",
    "fget_read",
    "fget_write",
    "free",
    "g_alloc_bio",
    "g_destroy_bio",
    "fuword",
    "fuword32",
    "iosize_max",
    "kern_psignal",
    "kern_close",
    "kern_kqueue",
    "kern_mlock",
    "kernel_sysctl",
    "knlist_.*",
    "knote",
    "kqfd_register",
    "kqueue_add_filteropts",
    "kqueue_del_filteropts",
    "lim_free",
    "lim_hold",
    "cloneuio",
    "sigev_findtd",
    "soaio_rcv",
    "soaio_snd",
    "soreceive",
    "sosend",
    "sowakeup_aio",
    "sigqueue_take",
    "tdsendsignal",
    "kva_alloc",
    "kva_free",
    "kproc_create",
    "kproc_exit",
    "malloc",
    "malloc_aligned",
    "p_cansee",
    "panic",
    "pause_sbt",
    "pmap_qenter",
    "pmap_qremove",
    "eventratecheck",
    "printf",
    "priv_check",
    "suword",
    "suword32",
    "sysctl_add_oid",
    "sysctl_ctx_free",
    "sysctl_ctx_init",
    "sysctl_find_oid",
    "sysctl_handle_64",
    "sysctl_handle_counter_u64",
    "counted_warning",
    "sysctl_handle_int",
    "sysctl_handle_string",
    "sysctl_wlock",
    "sysctl_wunlock",
    "uiomove",
    "vm_fault_quick_hold_pages",
    "vm_page_unhold_pages",
    "vmspace_acquire_ref",
    "vmspace_free",
    "vmspace_switch_aio",
    "vm_fault_disable_pagefaults",
    "vm_fault_enable_pagefaults",
    "vn_finished_write",
    "vn_isdisk",
    "vn_start_write",
    "vnode_pager_clean_async",
    "wakeup",
    "wakeup_one",
    "sys_aio_.*",
    "sys_lio_listio",
    "freebsd6_aio_read",
    "freebsd6_aio_write",
    "freebsd6_lio_listio",
];

const VARIABLES: &[&str] = &[
    "cap_fsync_rights",
    "cap_no_rights",
    "cap_pread_rights",
    "cap_pwrite_rights",
    "maxphys",
    "path_fileops",
    "unmapped_buf",
    "unmapped_buf_allowed",
    "sysent",
    "tc_precexp",
    "SYS_MAXSYSCALL",
    "SYS_aio_.*",
    "SYS_lio_listio",
    "SYS_freebsd6_.*",
    "AIO_.*",
    "LIO_.*",
    "SIGEV_.*",
    "E[A-Z0-9]+",
    "M_WAITOK",
    "M_NOWAIT",
    "M_ZERO",
    "MTX_DEF",
    "MTX_.*",
    "PCATCH",
    "PRIBIO",
    "PRIV_SEEOTHERUIDS",
    "PUSER",
    "C_ABSOLUTE",
    "DTYPE_SOCKET",
    "DTYPE_KQUEUE",
    "DTYPE_VNODE",
    "MSG_MORETOCOME",
    "MSG_NBIO",
    "PR_ATOMIC",
    "SB_AIO",
    "SB_AIO_RUNNING",
    "SO_ACCEPTCONN",
    "SO_NOSIGPIPE",
    "SS_NBIO",
    "EV_.*",
    "EVENT_.*",
    "EVFILT_.*",
    "KNF_LISTLOCKED",
    "KSI_.*",
    "RACCT_READBPS",
    "RACCT_READIOPS",
    "RACCT_WRITEBPS",
    "RACCT_WRITEIOPS",
    "RLIMIT_FSIZE",
    "AIO_RS_RLIM_INFINITY",
    "SI_ASYNCIO",
    "SIGXFSZ",
    "FREAD",
    "FWRITE",
    "FOF_OFFSET",
    "MNT_LOCAL",
    "SIGPIPE",
    "CTL.*",
    "_SIG_MAXSIG",
    "OID_AUTO",
    "EVENTHANDLER_PRI_.*",
    "RFHIGHPID",
    "UIO_MAXIOV",
    "SIGKILL",
    "hz",
    "VCHR",
    "VIRF_.*",
    "VREG",
    "O_DIRECT",
    "V_PCATCH",
    "V_WAIT",
    "O_D?SYNC",
    "AIO_RS_FREEBSD_VERSION",
    "AIO_RS_LIO_FOFFSET",
    "AIO_RS_DIOCG.*",
    "BIO_ERROR",
    "BIO_READ",
    "BIO_UNMAPPED",
    "BIO_WRITE",
    "SI_UNMAPPED",
    "AIO_RS_VM_PROT_.*",
];

const TYPES: &[&str] = &[
    "aiocb",
    "aio_.*_args",
    "bio",
    "bufobj",
    "cdev",
    "cdevsw",
    "lio_listio_args",
    "file",
    "fileops",
    "iovec",
    "uio",
    "filterops",
    "kaiocb",
    "kevent",
    "knlist",
    "knote",
    "ksiginfo_t",
    "ksiginfo",
    "plimit",
    "sigevent",
    "modeventtype",
    "module_t",
    "mount",
    "mtx",
    "pcpu",
    "proc",
    "protosw",
    "rusage",
    "sb_which",
    "sockbuf",
    "socket",
    "sysctl_ctx_list",
    "sysctl_oid",
    "sysctl_req",
    "sysent",
    "task",
    "thread",
    "timespec",
    "timeval",
    "ucred",
    "uio",
    "vmspace",
    "vnode",
    "vtype",
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
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
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in VARIABLES {
        builder = builder.allowlist_var(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    let bindings = match builder.generate() {
        Ok(bindings) => bindings,
        Err(error) => {
            eprintln!("bindgen: {error}");
            std::process::exit(1);
        }
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");
}
