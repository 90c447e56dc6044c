/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The engine's declarations that must be C: the module, its dependence on the gate, and its
 * malloc type.
 */
#include <sys/param.h>
#include <sys/kernel.h>
#include <sys/malloc.h>
#include <sys/module.h>

MALLOC_DEFINE(M_AIO_RS, "aio_rs", "aio_rs: requests, processes and workers");

int aio_rs_modevent(module_t, int, void *);

static moduledata_t aio_rs_mod = {
	"aio_rs",
	aio_rs_modevent,
	NULL
};

/* After the built-in (SI_SUB_VFS), whose variables we read, and before init(8). */
DECLARE_MODULE_TIED(aio_rs, aio_rs_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(aio_rs, 1);
MODULE_DEPEND(aio_rs, aio_rs_gate, 1, 1, 1);
