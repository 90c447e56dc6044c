/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The gate's half that must be C: the module's declaration, and the list of the system calls it
 * takes over.  The kernel may lack the FreeBSD 6 calls, so those are weak: a null entry is a slot
 * to leave alone.  Their numbers have no name in <sys/syscall.h>.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/lock.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/proc.h>
#include <sys/protosw.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/syscall.h>
#include <sys/sysent.h>
#include <sys/sysproto.h>

#pragma weak freebsd6_aio_read
#pragma weak freebsd6_aio_write
#pragma weak freebsd6_lio_listio

/*
 * The 32-bit table and its handlers, which a kernel may lack too.  Their own headers are not
 * needed: only addresses are.
 */
extern struct sysent freebsd32_sysent[] __attribute__((weak));
#define	SLOT32(name)	extern int name(struct thread *, void *) __attribute__((weak))
SLOT32(freebsd32_aio_read);
SLOT32(freebsd32_aio_write);
SLOT32(freebsd32_lio_listio);
SLOT32(freebsd32_aio_return);
SLOT32(freebsd32_aio_suspend);
SLOT32(freebsd32_aio_error);
SLOT32(freebsd6_freebsd32_aio_read);
SLOT32(freebsd6_freebsd32_aio_write);
SLOT32(freebsd6_freebsd32_lio_listio);
SLOT32(freebsd32_aio_waitcomplete);
SLOT32(freebsd32_aio_fsync);
SLOT32(freebsd32_aio_mlock);
SLOT32(freebsd32_aio_writev);
SLOT32(freebsd32_aio_readv);
#undef SLOT32

extern struct sysent *const aio_rs_gate_tables[];
struct sysent *const aio_rs_gate_tables[] = { sysent, freebsd32_sysent };

/* Mirrored by kmod/gate/gate.rs; the order is that of sys-bindings/gate.rs, enum Slot. */
struct aio_rs_gate_slot {
	int		 number;
	const char	*name;
	sy_call_t	*expected[2];	/* In each of aio_rs_gate_tables. */
};

extern const struct aio_rs_gate_slot aio_rs_gate_slots[];
const struct aio_rs_gate_slot aio_rs_gate_slots[] = {
	{ SYS_aio_read, "aio_read",
	    { (sy_call_t *)sys_aio_read, freebsd32_aio_read } },
	{ SYS_aio_write, "aio_write",
	    { (sy_call_t *)sys_aio_write, freebsd32_aio_write } },
	{ SYS_lio_listio, "lio_listio",
	    { (sy_call_t *)sys_lio_listio, freebsd32_lio_listio } },
	{ SYS_aio_return, "aio_return",
	    { (sy_call_t *)sys_aio_return, freebsd32_aio_return } },
	{ SYS_aio_suspend, "aio_suspend",
	    { (sy_call_t *)sys_aio_suspend, freebsd32_aio_suspend } },
	{ SYS_aio_cancel, "aio_cancel",
	    { (sy_call_t *)sys_aio_cancel, (sy_call_t *)sys_aio_cancel } },
	{ SYS_aio_error, "aio_error",
	    { (sy_call_t *)sys_aio_error, freebsd32_aio_error } },
	{ 318, "freebsd6_aio_read",
	    { (sy_call_t *)freebsd6_aio_read, freebsd6_freebsd32_aio_read } },
	{ 319, "freebsd6_aio_write",
	    { (sy_call_t *)freebsd6_aio_write, freebsd6_freebsd32_aio_write } },
	{ 320, "freebsd6_lio_listio",
	    { (sy_call_t *)freebsd6_lio_listio, freebsd6_freebsd32_lio_listio } },
	{ SYS_aio_waitcomplete, "aio_waitcomplete",
	    { (sy_call_t *)sys_aio_waitcomplete, freebsd32_aio_waitcomplete } },
	{ SYS_aio_fsync, "aio_fsync",
	    { (sy_call_t *)sys_aio_fsync, freebsd32_aio_fsync } },
	{ SYS_aio_mlock, "aio_mlock",
	    { (sy_call_t *)sys_aio_mlock, freebsd32_aio_mlock } },
	{ SYS_aio_writev, "aio_writev",
	    { (sy_call_t *)sys_aio_writev, freebsd32_aio_writev } },
	{ SYS_aio_readv, "aio_readv",
	    { (sy_call_t *)sys_aio_readv, freebsd32_aio_readv } },
};
_Static_assert(nitems(aio_rs_gate_slots) == 15, "enum Slot has as many");

int aio_rs_gate_modevent(module_t, int, void *);

static moduledata_t aio_rs_gate_mod = {
	"aio_rs_gate",
	aio_rs_gate_modevent,
	NULL
};

DECLARE_MODULE_TIED(aio_rs_gate, aio_rs_gate_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(aio_rs_gate, 1);

/* Inline functions and macros that Rust cannot call; declared in kmod/gate/tasks.rs. */
struct sockbuf	*aio_rs_gate_sobuf(struct socket *, sb_which);
void		 aio_rs_gate_sockbuf_lock(struct socket *, sb_which);
void		 aio_rs_gate_sockbuf_unlock(struct socket *, sb_which);

struct sockbuf *
aio_rs_gate_sobuf(struct socket *so, sb_which which)
{
	return (sobuf(so, which));
}

void
aio_rs_gate_sockbuf_lock(struct socket *so, sb_which which)
{
	SOCK_BUF_LOCK(so, which);
}

void
aio_rs_gate_sockbuf_unlock(struct socket *so, sb_which which)
{
	SOCK_BUF_UNLOCK(so, which);
}
