// SPDX-License-Identifier: BSD-2-Clause
//! Pins the layout of every structure we share with the kernel, at compile time.
//!
//! bindgen's reading of the headers is compared with numbers that do not come from it: for 1400507
//! from an object compiled with that kernel's own options and flags; for 14.3 (1403000) and 15.0
//! (1500068), of which there was no kernel at hand, from a C compiler's reading of the packaged
//! headers. A number holds from the first version that has it; other versions than these three are
//! not asserted.
//!
//! Between 1400507 and 14.3 none of these differs.

use crate::FREEBSD_VERSION;
use crate::raw::*;

/// The number for the version that is built for: `None` where we know none.
const fn expected(v1400507: usize, v1403000: usize, v1500068: usize) -> Option<usize> {
    match FREEBSD_VERSION {
        1_400_507 => Some(v1400507),
        1_403_000 => Some(v1403000),
        1_500_068 => Some(v1500068),
        _ => None,
    }
}

const fn same(actual: usize, expected: Option<usize>) -> bool {
    match expected {
        Some(expected) => actual == expected,
        None => true,
    }
}

macro_rules! layout {
    ($($name:ident: size($($size:literal)+) { $($field:ident $($offset:literal)+;)* })*) => {
        $(
            const _: () = assert!(
                same(size_of::<$name>(), layout!(@pick $($size)+)),
                concat!("the size of ", stringify!($name), " is not this kernel's"),
            );
            $(const _: () = assert!(
                same(core::mem::offset_of!($name, $field), layout!(@pick $($offset)+)),
                concat!("the offset of ", stringify!($field), " is not this kernel's"),
            );)*
        )*
    };
    (@pick $all:literal) => { expected($all, $all, $all) };
    (@pick $a:literal $b:literal $c:literal) => { expected($a, $b, $c) };
}

// Bytes: one number for all versions, or one each for 1400507, 1403000 and 1500068.
layout! {
    thread: size(1776 1776 1824) {
        td_proc 8;
        td_ucred 384 384 392;
        td_limit 392 392 400;
        td_ru 424 424 432;
        td_sigmask 960 960 1000;
        td_uretoff 1120 1120 1168;
    }
    proc_: size(1376 1376 1368) {
        p_vmspace 520;
        p_aioinfo 904;
    }
    bio: size(376) {
        bio_cmd 0;
        bio_flags 2;
        bio_dev 8;
        bio_offset 24;
        bio_bcount 32;
        bio_data 40;
        bio_ma 48;
        bio_ma_offset 56;
        bio_ma_n 60;
        bio_error 64;
        bio_resid 72;
        bio_done 80;
        bio_caller1 104;
        bio_length 288;
    }
    bufobj: size(152) {
        bo_bsize 148;
    }
    cdev: size(480) {
        si_flags 8;
        si_iosize_max 192;
    }
    cdevsw: size(184) {
        d_flags 4;
        d_strategy 80;
    }
    file: size(80) {
        f_flag 0;
        f_ops 16;
        f_vnode 24;
        f_cred 32;
        f_type 40;
    }
    fileops: size(224 224 232) {
        fo_read 0;
        fo_write 8;
        fo_ioctl 24;
        fo_aio_queue 112;
    }
    vnode: size(448 448 440) {
        v_type 0;
        v_mount 32;
        v_bufobj 224;
    }
    vmspace: size(616 616 584) {
        vm_map 0;
    }
    mount: size(2816) {
        mnt_flag 8;
    }
    mtx: size(32) {
        lock_object 0;
        mtx_lock 24;
    }
    uio: size(48) {
        uio_iov 0;
        uio_iovcnt 8;
        uio_offset 16;
        uio_resid 24;
        uio_segflg 32;
        uio_rw 36;
        uio_td 40;
    }
    iovec: size(16) {
        iov_base 0;
        iov_len 8;
    }
    aiocb: size(160) {
        aio_fildes 0;
        aio_offset 8;
        aio_buf 16;
        aio_nbytes 24;
        aio_lio_opcode 48;
        _aiocb_private 56;
        aio_sigevent 80;
    }
    kaiocb: size(552) {
        klist 112;
    }
    filterops: size(40 40 48) {
        f_attach 8;
        f_touch 32;
    }
    kevent: size(64) {
        filter 8;
        flags 10;
        fflags 12;
        data 16;
        udata 24;
    }
    knlist: size(48) {
        kl_list 0;
        kl_lock 8;
        kl_lockarg 32;
    }
    knote: size(160) {
        kn_knlist 16;
        kn_kevent 48;
        kn_sfflags 132;
        kn_sdata 136;
        kn_ptr 144;
        kn_fop 152;
    }
    ksiginfo: size(112) {
        ksi_info 16;
        ksi_flags 96;
        ksi_sigq 104;
    }
    plimit: size(248 264 264) {
        pl_rlimit 0;
    }
    sysent: size(32) {
        sy_call 0;
    }
    sysctl_oid: size(112) {
        oid_children 0;
        oid_kind 44;
        oid_arg1 48;
    }
    sysctl_ctx_list: size(16) {
    }
    pcpu: size(4096) {
        pc_curthread 0;
        pc_cpuid 60;
    }
    rusage: size(144) {
        ru_inblock 88;
        ru_oublock 96;
        ru_msgsnd 104;
        ru_msgrcv 112;
    }
    timespec: size(16) {
        tv_sec 0;
        tv_nsec 8;
    }
    timeval: size(16) {
        tv_sec 0;
        tv_usec 8;
    }
    aio_read_args: size(8) {
        aiocbp 0;
    }
    aio_write_args: size(8) {
        aiocbp 0;
    }
    aio_readv_args: size(8) {
        aiocbp 0;
    }
    aio_writev_args: size(8) {
        aiocbp 0;
    }
    aio_error_args: size(8) {
        aiocbp 0;
    }
    aio_return_args: size(8) {
        aiocbp 0;
    }
    aio_suspend_args: size(24) {
        aiocbp 0;
        nent 8;
        timeout 16;
    }
    aio_waitcomplete_args: size(16) {
        aiocbp 0;
        timeout 8;
    }
    aio_cancel_args: size(16) {
        fd 0;
        aiocbp 8;
    }
    lio_listio_args: size(32) {
        mode 0;
        acb_list 8;
        nent 16;
        sig 24;
    }
    aio_fsync_args: size(16) {
        op 0;
        aiocbp 8;
    }
    aio_mlock_args: size(8) {
        aiocbp 0;
    }
    __aiocb_private: size(24) {
        status 0;
        error 8;
    }
    sigevent: size(80) {
        sigev_notify 0;
        sigev_signo 4;
    }
}
