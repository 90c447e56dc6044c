/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One function for each kernel macro or inline function that Rust cannot call.  A shim is one
 * kernel call without a branch; sys-bindings/shims.rs declares them.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/counter.h>
#include <sys/file.h>
#include <sys/lock.h>
#include <sys/lockmgr.h>
#include <sys/mount.h>
#include <sys/mutex.h>
#include <sys/proc.h>
#include <sys/protosw.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/rangelock.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/vnode.h>
#include <net/vnet.h>

#include "vnode_ops.h"

int
aio_rs_fdrop(struct file *fp, struct thread *td)
{
	return (fdrop(fp, td));
}

int
aio_rs_fo_read(struct file *fp, struct uio *uio, struct ucred *cred, int flags, struct thread *td)
{
	return (fo_read(fp, uio, cred, flags, td));
}

int
aio_rs_fo_write(struct file *fp, struct uio *uio, struct ucred *cred, int flags, struct thread *td)
{
	return (fo_write(fp, uio, cred, flags, td));
}

int
aio_rs_fo_ioctl(struct file *fp, u_long command, void *data, struct ucred *cred, struct thread *td)
{
	return (fo_ioctl(fp, command, data, cred, td));
}

int	freebsd32_copyinuio(struct iovec *, u_int, struct uio **) __attribute__((weak));

int
aio_rs_copyinuio32(struct iovec *iov, u_int count, struct uio **uio)
{
	return (freebsd32_copyinuio(iov, count, uio));
}

void
aio_rs_counter_add(counter_u64_t counter, int64_t count)
{
	counter_u64_add(counter, count);
}

sbintime_t
aio_rs_sbinuptime(void)
{
	return (sbinuptime());
}

void
aio_rs_proc_lock(struct proc *p)
{
	PROC_LOCK(p);
}

void
aio_rs_proc_unlock(struct proc *p)
{
	PROC_UNLOCK(p);
}

void
aio_rs_vn_lock(struct vnode *vp)
{
	(void)vn_lock(vp, LK_EXCLUSIVE | LK_RETRY);
}

void
aio_rs_vop_unlock(struct vnode *vp)
{
	struct aio_rs_vop_unlock_args args = {
		.a_gen.a_desc = &aio_rs_vop_unlock_desc,
		.a_vp = vp,
	};

	(void)aio_rs_VOP_UNLOCK_APV(vp->v_op, &args);
}

int
aio_rs_vop_read_pgcache(struct vnode *vp, struct uio *uio, struct ucred *cred)
{
	struct aio_rs_vop_read_pgcache_args args = {
		.a_gen.a_desc = &aio_rs_vop_read_pgcache_desc,
		.a_vp = vp,
		.a_uio = uio,
		.a_cred = cred,
	};

	return (aio_rs_VOP_READ_PGCACHE_APV(vp->v_op, &args));
}

/* Null when the range cannot be locked at once. */
void *
aio_rs_rangelock_tryrlock(struct vnode *vp, off_t start, off_t end)
{
	return (vn_rangelock_tryrlock(vp, start, end));
}

void
aio_rs_rangelock_unlock(struct vnode *vp, void *cookie)
{
	vn_rangelock_unlock(vp, cookie);
}

/* Whether a MAC policy checks reads; null in a kernel without MAC. */
extern bool mac_vnode_check_read_fp_flag __attribute__((weak));

const bool *
aio_rs_mac_checks_reads(void)
{
	return (&mac_vnode_check_read_fp_flag);
}

/* Whether resources are accounted; null in a kernel without RACCT. */
extern bool racct_enable __attribute__((weak));

const bool *
aio_rs_racct_enabled(void)
{
	return (&racct_enable);
}

void	racct_add_force(struct proc *, int, uint64_t) __attribute__((weak));

/* Only where they are. */
void
aio_rs_racct_add(struct proc *p, int resource, uint64_t amount)
{
	racct_add_force(p, resource, amount);
}

int
aio_rs_vop_fsync(struct vnode *vp, struct thread *td)
{
	struct aio_rs_vop_fsync_args args = {
		.a_gen.a_desc = &aio_rs_vop_fsync_desc,
		.a_vp = vp,
		.a_waitfor = MNT_WAIT,
		.a_td = td,
	};

	return (aio_rs_VOP_FSYNC_APV(vp->v_op, &args));
}

int
aio_rs_vop_fdatasync(struct vnode *vp, struct thread *td)
{
	struct aio_rs_vop_fdatasync_args args = {
		.a_gen.a_desc = &aio_rs_vop_fdatasync_desc,
		.a_vp = vp,
		.a_td = td,
	};

	return (aio_rs_VOP_FDATASYNC_APV(vp->v_op, &args));
}

void
aio_rs_soref(struct socket *so)
{
	soref(so);
}

/* The last reference may end the protocol's part, which wants to know its network stack. */
void
aio_rs_sorele(struct socket *so)
{
	CURVNET_SET(so->so_vnet);
	sorele(so);
	CURVNET_RESTORE();
}

/* The buffer is none, but its lock is one, of a socket that listens. */
struct sockbuf *
aio_rs_sockbuf_lock(struct socket *so, sb_which which)
{
	SOCK_BUF_LOCK(so, which);
	return (sobuf(so, which));
}

void
aio_rs_sockbuf_unlock(struct socket *so, sb_which which)
{
	SOCK_BUF_UNLOCK(so, which);
}

int
aio_rs_soreadable(struct socket *so)
{
	return (soreadable(so));
}

int
aio_rs_sowriteable(struct socket *so)
{
	return (sowriteable(so));
}

/*
 * A kernel without the MAC framework lacks its checks.  Their header is not among the installed
 * ones.
 */
int	mac_socket_check_receive(struct ucred *, struct socket *) __attribute__((weak));
int	mac_socket_check_send(struct ucred *, struct socket *) __attribute__((weak));

extern int (*const aio_rs_mac_socket_check[])(struct ucred *, struct socket *);
int (*const aio_rs_mac_socket_check[])(struct ucred *, struct socket *) = {
	mac_socket_check_receive, mac_socket_check_send,
};
