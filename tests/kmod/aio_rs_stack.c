/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A module that takes one AIO system call over, as a tracer or a security module might.  Loaded
 * before aio_rs it must make aio_rs refuse to load; loaded after, to unload.  The call it takes is
 * among the last the gate looks at, so a refusal has slots to give back.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/module.h>
#include <sys/proc.h>
#include <sys/syscall.h>
#include <sys/sysent.h>
#include <sys/sysproto.h>

static sy_call_t *below;

static int
stacked(struct thread *td, void *uap)
{
	return (below(td, uap));
}

static int
modevent(module_t mod __unused, int event, void *arg __unused)
{
	switch (event) {
	case MOD_LOAD:
		below = sysent[SYS_aio_writev].sy_call;
		sysent[SYS_aio_writev].sy_call = stacked;
		return (0);
	case MOD_UNLOAD:
		sysent[SYS_aio_writev].sy_call = below;
		return (0);
	case MOD_QUIESCE:
	case MOD_SHUTDOWN:
		return (0);
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t aio_rs_stack_mod = {
	"aio_rs_stack",
	modevent,
	NULL
};

DECLARE_MODULE_TIED(aio_rs_stack, aio_rs_stack_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(aio_rs_stack, 1);
