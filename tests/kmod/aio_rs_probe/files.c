/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Vnodes: locks, ranges, syncs, what is in the page cache.
 */
#include "probe.h"

#include <sys/buf.h>
#include <sys/capsicum.h>
#include <sys/fcntl.h>
#include <sys/file.h>
#include <sys/limits.h>
#include <sys/lockmgr.h>
#include <sys/mount.h>
#include <sys/rangelock.h>
#include <sys/uio.h>
#include <sys/unistd.h>
#include <sys/vnode.h>

#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/vm_extern.h>
#include <vm/vnode_pager.h>

#include "../../../kmod/include/vnode_ops.h"

static void
unlock(struct vnode *vp)
{
	struct aio_rs_vop_unlock_args args = {
		.a_gen.a_desc = &aio_rs_vop_unlock_desc,
		.a_vp = vp,
	};

	(void)aio_rs_VOP_UNLOCK_APV(vp->v_op, &args);
}

/* A file system may want to be asked again. */
static int
sync_file(struct vnode *vp)
{
	struct aio_rs_vop_fsync_args args = {
		.a_gen.a_desc = &aio_rs_vop_fsync_desc,
		.a_vp = vp,
		.a_waitfor = MNT_WAIT,
		.a_td = curthread,
	};
	int error;

	do
		error = aio_rs_VOP_FSYNC_APV(vp->v_op, &args);
	while (error == ERELOOKUP);
	return (error);
}

static int
sync_data(struct vnode *vp)
{
	struct aio_rs_vop_fdatasync_args args = {
		.a_gen.a_desc = &aio_rs_vop_fdatasync_desc,
		.a_vp = vp,
		.a_td = curthread,
	};
	int error;

	do
		error = aio_rs_VOP_FDATASYNC_APV(vp->v_op, &args);
	while (error == ERELOOKUP);
	return (error);
}

static void
locker(struct helper *h)
{
	struct vnode *vp = h->argument;

	h->value = vn_lock(vp, LK_EXCLUSIVE | LK_RETRY);
	if (h->value == 0)
		h->value = probe_steps;
	unlock(vp);
}

static void
locks(struct vnode *vp)
{
	struct helper h;
	struct mount *mp = NULL;
	int error;

	bwillwrite();
	error = vn_start_write(vp, &mp, V_WAIT);
	FACT("vn_start_write", "%d, the file's mount %d", error, mp == vp->v_mount);
	FACT("vn_lock", "%d", vn_lock(vp, LK_EXCLUSIVE | LK_RETRY));
	FACT("VOP_FSYNC", "%d", sync_file(vp));
	FACT("VOP_FDATASYNC", "%d", sync_data(vp));
	vnode_pager_clean_async(vp);
	probe_steps = 1;
	probe_start(&h, locker, vp);
	probe_after_ms(50);
	probe_steps = 2;
	unlock(vp);
	probe_join(&h);
	FACT("vn_lock of what another has locked", "it came at step %d", h.value);
	vn_finished_write(mp);
	vn_finished_write(NULL);
	mp = NULL;
	error = vn_start_write(vp, &mp, V_NOWAIT);
	FACT("vn_start_write without waiting", "%d, the file's mount %d", error, mp == vp->v_mount);
	vn_finished_write(mp);
}

static void
writer(struct helper *h)
{
	struct vnode *vp = h->argument;
	void *range;

	range = vn_rangelock_wlock(vp, 0, 100);
	h->value = probe_steps;
	probe_after_ms(50);
	probe_steps = 3;
	vn_rangelock_unlock(vp, range);
}

/* Locks a range to read, if that can be done at once, and unlocks it. */
static int
can_read(struct vnode *vp, off_t start, off_t end)
{
	void *range;

	range = vn_rangelock_tryrlock(vp, start, end);
	if (range != NULL)
		vn_rangelock_unlock(vp, range);
	return (range != NULL);
}

static void
ranges(struct vnode *vp)
{
	struct helper h;
	void *one, *two;
	int tries;

	one = vn_rangelock_wlock(vp, 100, 200);
	FACT("rangelock_tryrlock over a range that is written", "%d, beginning in it %d, in it %d",
	    can_read(vp, 0, 300), can_read(vp, 199, 300), can_read(vp, 120, 130));
	FACT("rangelock_tryrlock beside it", "before %d, behind %d", can_read(vp, 0, 100),
	    can_read(vp, 200, OFF_MAX));
	vn_rangelock_unlock(vp, one);
	FACT("rangelock_tryrlock when that is unlocked", "%d", can_read(vp, 0, 300));
	one = vn_rangelock_tryrlock(vp, 0, 100);
	two = vn_rangelock_tryrlock(vp, 0, 100);
	FACT("rangelock_tryrlock of the same range", "%d, another cookie %d", two != NULL, one != two);
	vn_rangelock_unlock(vp, one);
	probe_steps = 1;
	probe_start(&h, writer, vp);
	for (tries = 0; tries < 200 && can_read(vp, 0, 100); tries++)
		probe_after_ms(10);
	FACT("rangelock_tryrlock while a writer waits for readers", "of the range %d, beside it %d",
	    can_read(vp, 0, 100), can_read(vp, 100, 200));
	probe_steps = 2;
	vn_rangelock_unlock(vp, two);
	/* The writer has it, or has had it. */
	probe_join(&h);
	FACT("rangelock_unlock of the last reader", "the writer came at step %d", h.value);
	FACT("rangelock_tryrlock behind the writer", "%d, at step %d", can_read(vp, 0, 100), probe_steps);
}

/* Reads 20 bytes.  One try may find less in the cache than another, so it tries for what it is to be. */
static int
cached(struct vnode *vp, off_t offset, struct uio *uio, char *memory, int wanted)
{
	const size_t len = 20;
	static struct iovec iov;
	struct aio_rs_vop_read_pgcache_args args = {
		.a_gen.a_desc = &aio_rs_vop_read_pgcache_desc,
		.a_vp = vp,
		.a_uio = uio,
		.a_cred = curthread->td_ucred,
	};
	void *range;
	int error, save, tries;

	for (tries = 0; tries < 100; tries++) {
		probe_uio(uio, &iov, memory, len, UIO_USERSPACE, UIO_READ);
		uio->uio_offset = offset;
		range = vn_rangelock_tryrlock(vp, offset, offset + len);
		save = vm_fault_disable_pagefaults();
		error = aio_rs_VOP_READ_PGCACHE_APV(vp->v_op, &args);
		vm_fault_enable_pagefaults(save);
		vn_rangelock_unlock(vp, range);
		if (error == wanted)
			break;
	}
	return (error);
}

static void
page_cache(struct vnode *vp)
{
	struct uio uio;
	int error;

	/* Since the program has forked, its pages are copied when they are written to. */
	suword(BUFFER, 0);
	FACT("VIRF_PGREAD", "%d", (vn_irflag_read(vp) & VIRF_PGREAD) != 0);
	error = cached(vp, 10, &uio, BUFFER, 0);
	FACT("VOP_READ_PGCACHE", "%d, %zd bytes left, offset %jd, bytes %x", error, uio.uio_resid,
	    (intmax_t)uio.uio_offset, fuword32(BUFFER + 16));
	error = cached(vp, 90, &uio, BUFFER, EJUSTRETURN);
	FACT("VOP_READ_PGCACHE over the end", "%d, offset beyond it %d", error, uio.uio_offset > 100);
	error = cached(vp, 100, &uio, BUFFER, EJUSTRETURN);
	FACT("VOP_READ_PGCACHE from the end on", "%d, %zd bytes left", error, uio.uio_resid);
	error = cached(vp, 0, &uio, NOTHING, EFAULT);
	FACT("VOP_READ_PGCACHE to nowhere", "%d, %zd bytes left", error, uio.uio_resid);
}

void
probe_files(void)
{
	struct file *fp, *path;
	struct vnode *vp;

	if (fget(curthread, FD_PATH, &cap_no_rights, &path) != 0 ||
	    fget(curthread, FD_WRITE, &cap_no_rights, &fp) != 0) {
		FACT("files", "there are none");
		return;
	}
	vp = fp->f_vnode;
	FACT("path_fileops", "of O_PATH %d, of another %d, the vnode is the same %d",
	    path->f_ops == &path_fileops, fp->f_ops == &path_fileops, path->f_vnode == vp);
	FACT("FREAD and FWRITE", "of O_WRONLY %x, of O_PATH %x", fp->f_flag & (FREAD | FWRITE),
	    path->f_flag & (FREAD | FWRITE));
	locks(vp);
	ranges(vp);
	page_cache(vp);
	fdrop(fp, curthread);
	fdrop(path, curthread);
}
