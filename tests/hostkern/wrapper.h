/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel headers whose structures the host kernel lays out as the modules see them.  build.rs
 * holds the allow-list.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/aio.h>
#include <sys/bio.h>
#include <sys/buf.h>
#include <sys/capsicum.h>
#include <sys/conf.h>
#include <sys/disk.h>
#include <sys/event.h>
#include <sys/selinfo.h>
#include <sys/eventvar.h>
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
#include <sys/pipe.h>
#include <sys/proc.h>
#include <sys/protosw.h>
#include <sys/resourcevar.h>
#include <sys/signalvar.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/syscall.h>
#include <sys/sysctl.h>
#include <sys/sysent.h>
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

#include "vnode_ops.h"

enum { HOSTKERN_FREEBSD_VERSION = __FreeBSD_version };

/* How far a request on a socket has come. */
enum { HOSTKERN_AIO_DONE = offsetof(struct kaiocb, backend3) };

/* What a disk device is asked for. */
static const u_long HOSTKERN_DIOCGFLUSH = DIOCGFLUSH;
static const u_long HOSTKERN_DIOCGSECTORSIZE = DIOCGSECTORSIZE;
