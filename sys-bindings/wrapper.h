/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What bindgen reads: the kernel headers that declare what aio_rs uses.  build.rs holds the
 * allow-list; nothing else of these headers reaches Rust.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/aio.h>
#include <sys/bio.h>
#include <sys/buf.h>
#include <sys/capsicum.h>
#include <sys/conf.h>
#include <sys/counter.h>
#include <sys/disk.h>
#include <sys/event.h>
#include <sys/eventhandler.h>
#include <sys/fcntl.h>
#include <sys/file.h>
#include <sys/filedesc.h>
#include <sys/kernel.h>
#include <sys/kthread.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/module.h>
#include <sys/mount.h>
#include <sys/mutex.h>
#include <sys/pcpu.h>
#include <sys/priv.h>
#include <sys/proc.h>
#include <sys/racct.h>
#include <sys/resourcevar.h>
#include <sys/selinfo.h>
#include <sys/protosw.h>
#include <sys/signalvar.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/syscall.h>
#include <sys/syscallsubr.h>
#include <sys/sysctl.h>
#include <sys/sysent.h>
#include <sys/sysproto.h>
#include <sys/time.h>
#include <sys/ucred.h>
#include <sys/uio.h>
#include <sys/unistd.h>
#include <sys/vnode.h>
#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_map.h>
#include <vm/vm_extern.h>
#include <vm/vm_page.h>
#include <vm/uma.h>
#include <vm/vnode_pager.h>
#include <geom/geom.h>

/* After <sys/selinfo.h>. */
#include <sys/eventvar.h>
#include <sys/pipe.h>

/* A macro given on the command line does not reach bindgen by itself. */
enum { AIO_RS_FREEBSD_VERSION = __FreeBSD_version };

/* Another that is an expression. */
static const rlim_t AIO_RS_RLIM_INFINITY = RLIM_INFINITY;

/* What pages are held for. */
static const vm_prot_t AIO_RS_VM_PROT_READ = VM_PROT_READ;
static const vm_prot_t AIO_RS_VM_PROT_WRITE = VM_PROT_WRITE;

/* What a disk device is asked for. */
static const u_long AIO_RS_DIOCGFLUSH = DIOCGFLUSH;
static const u_long AIO_RS_DIOCGSECTORSIZE = DIOCGSECTORSIZE;

/* The opcode bit of aio_read2(2), where the kernel has it. */
#ifdef LIO_FOFFSET
enum { AIO_RS_LIO_FOFFSET = LIO_FOFFSET };
#else
enum { AIO_RS_LIO_FOFFSET = 0 };
#endif
