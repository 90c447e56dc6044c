/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The vnode operations we call, in our own words: their argument structures and entry points are
 * generated in a kernel build, and packaged header sets lack them.  Where the generated header is
 * at hand, a SYSDIR build compares the two.
 */
#ifndef AIO_RS_VNODE_OPS_H
#define	AIO_RS_VNODE_OPS_H

/* Common to all operations: which one it is. */
struct aio_rs_vop_generic_args {
	struct vnodeop_desc	*a_desc;
};

struct aio_rs_vop_fsync_args {
	struct aio_rs_vop_generic_args	 a_gen;
	struct vnode			*a_vp;
	int				 a_waitfor;
	struct thread			*a_td;
};

struct aio_rs_vop_fdatasync_args {
	struct aio_rs_vop_generic_args	 a_gen;
	struct vnode			*a_vp;
	struct thread			*a_td;
};

struct aio_rs_vop_unlock_args {
	struct aio_rs_vop_generic_args	 a_gen;
	struct vnode			*a_vp;
};

struct aio_rs_vop_read_pgcache_args {
	struct aio_rs_vop_generic_args	 a_gen;
	struct vnode			*a_vp;
	struct uio			*a_uio;
	int				 a_ioflag;
	struct ucred			*a_cred;
};

/* Each operation's descriptor and entry point, under the kernel's symbols. */
#define	AIO_RS_VOP(name, NAME)							\
	extern struct vnodeop_desc aio_rs_##name##_desc __asm(#name "_desc");	\
	int aio_rs_##NAME##_APV(const void *, struct aio_rs_##name##_args *)	\
	    __asm(#NAME "_APV")

AIO_RS_VOP(vop_fsync, VOP_FSYNC);
AIO_RS_VOP(vop_fdatasync, VOP_FDATASYNC);
AIO_RS_VOP(vop_unlock, VOP_UNLOCK);
AIO_RS_VOP(vop_read_pgcache, VOP_READ_PGCACHE);

#ifndef AIO_RS_PACKAGED_HEADERS
#define	AIO_RS_SAME(name, field)						\
	_Static_assert(__builtin_offsetof(struct name, field) ==		\
	    __builtin_offsetof(struct aio_rs_##name, field) &&			\
	    sizeof(((struct name *)0)->field) ==				\
	    sizeof(((struct aio_rs_##name *)0)->field), #name "." #field)
#define	AIO_RS_SAME_SIZE(name)							\
	_Static_assert(sizeof(struct name) == sizeof(struct aio_rs_##name), #name)

AIO_RS_SAME_SIZE(vop_generic_args);
AIO_RS_SAME(vop_generic_args, a_desc);
AIO_RS_SAME_SIZE(vop_fsync_args);
AIO_RS_SAME(vop_fsync_args, a_gen);
AIO_RS_SAME(vop_fsync_args, a_vp);
AIO_RS_SAME(vop_fsync_args, a_waitfor);
AIO_RS_SAME(vop_fsync_args, a_td);
AIO_RS_SAME_SIZE(vop_fdatasync_args);
AIO_RS_SAME(vop_fdatasync_args, a_gen);
AIO_RS_SAME(vop_fdatasync_args, a_vp);
AIO_RS_SAME(vop_fdatasync_args, a_td);
AIO_RS_SAME_SIZE(vop_unlock_args);
AIO_RS_SAME(vop_unlock_args, a_gen);
AIO_RS_SAME(vop_unlock_args, a_vp);
AIO_RS_SAME_SIZE(vop_read_pgcache_args);
AIO_RS_SAME(vop_read_pgcache_args, a_gen);
AIO_RS_SAME(vop_read_pgcache_args, a_vp);
AIO_RS_SAME(vop_read_pgcache_args, a_uio);
AIO_RS_SAME(vop_read_pgcache_args, a_ioflag);
AIO_RS_SAME(vop_read_pgcache_args, a_cred);
#endif

#endif
