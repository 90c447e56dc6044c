/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A MAC policy for tests: reading and writing files, sockets and pipes fails with EACCES for the user
 * in security.mac.aio_rs.uid, by the credential that the kernel gives the policy to judge.  0, the
 * default, is nobody.
 *
 * While it is loaded, a read of what is in the page cache has to take the way on which it is judged.
 */
#include <sys/param.h>
#include <sys/kernel.h>
#include <sys/module.h>
#include <sys/sysctl.h>
#include <sys/ucred.h>

#include <security/mac/mac_policy.h>

SYSCTL_DECL(_security_mac);

static SYSCTL_NODE(_security_mac, OID_AUTO, aio_rs, CTLFLAG_RW | CTLFLAG_MPSAFE, 0,
    "Policy for tests of aio_rs");

static int uid;
SYSCTL_INT(_security_mac_aio_rs, OID_AUTO, uid, CTLFLAG_RW, &uid, 0,
    "User whose files, sockets and pipes cannot be read or written");

static int
judge(struct ucred *cred)
{
	return (uid > 0 && cred->cr_uid == (uid_t)uid ? EACCES : 0);
}

static int
vnode_check(struct ucred *active, struct ucred *file, struct vnode *vp, struct label *label)
{
	return (judge(active));
}

static int
socket_check(struct ucred *cred, struct socket *so, struct label *label)
{
	return (judge(cred));
}

static int
pipe_check(struct ucred *cred, struct pipepair *pair, struct label *label)
{
	return (judge(cred));
}

static struct mac_policy_ops ops = {
	.mpo_pipe_check_read = pipe_check,
	.mpo_pipe_check_write = pipe_check,
	.mpo_socket_check_receive = socket_check,
	.mpo_socket_check_send = socket_check,
	.mpo_vnode_check_read = vnode_check,
	.mpo_vnode_check_write = vnode_check,
};

MAC_POLICY_SET(&ops, aio_rs_mac, "A policy for tests of aio_rs", MPC_LOADTIME_FLAG_UNLOADOK, NULL);
