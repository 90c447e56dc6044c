/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listens to the probes of SDT provider aio_rs, as dtrace(4) would, in a kernel that has no dtrace.
 * debug.aio_rs_listener says how often each fired and the sum of its fourth argument, which for the
 * probes of requests is bytes; reading it is all there is to do.  The engine must be loaded before,
 * and not be unloaded before this is.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/linker.h>
#include <sys/module.h>
#include <sys/proc.h>
#include <sys/sbuf.h>
#include <sys/sysctl.h>

#define	KDTRACE_HOOKS	1
#include <sys/sdt.h>

#include <machine/atomic.h>

#define	MOST	16

static struct {
	struct sdt_probe	*probe;
	volatile u_long		 times;
	volatile u_long		 bytes;
} heard[MOST];
static u_int count;
static sdt_probe_func_t before;

/* dtrace(4) is told the probe's number. */
static void
hear(uint32_t id, uintptr_t arg0, uintptr_t arg1, uintptr_t arg2, uintptr_t arg3, uintptr_t arg4)
{
	if (id == 0 || id > count)
		return;
	atomic_add_long(&heard[id - 1].times, 1);
	atomic_add_long(&heard[id - 1].bytes, arg3);
}

/* The files' list is locked: by number, a probe is the listener's. */
static int
look(linker_file_t file, void *arg __unused)
{
	struct sdt_probe **begin, **end, **at;

	if (linker_file_lookup_set(file, "sdt_probes_set", &begin, &end, NULL) != 0)
		return (0);
	for (at = begin; at < end; at++) {
		if (strcmp((*at)->prov->name, "aio_rs") != 0 || count == MOST)
			continue;
		heard[count].probe = *at;
		count++;
	}
	return (0);
}

static int
print(SYSCTL_HANDLER_ARGS)
{
	struct sbuf text;
	u_int i;
	int error;

	sbuf_new_for_sysctl(&text, NULL, 256, req);
	for (i = 0; i < count; i++)
		sbuf_printf(&text, "%s%s %lu %lu", i == 0 ? "" : "\n", heard[i].probe->name,
		    heard[i].times, heard[i].bytes);
	error = sbuf_finish(&text);
	sbuf_delete(&text);
	return (error);
}

SYSCTL_PROC(_debug, OID_AUTO, aio_rs_listener, CTLTYPE_STRING | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL,
    0, print, "A", "Probes of aio_rs: name, how often, sum of the fourth argument");

static int
event(module_t mod __unused, int what, void *arg __unused)
{
	u_int i;

	switch (what) {
	case MOD_LOAD:
		linker_file_foreach(look, NULL);
		if (count == 0) {
			printf("aio_rs_listener: no probes: is aio_rs loaded, and built with probes?\n");
			return (ENOENT);
		}
		before = sdt_probe_func;
		sdt_probe_func = hear;
		sdt_probes_enabled = true;
		for (i = 0; i < count; i++)
			heard[i].probe->id = i + 1;
		return (0);
	case MOD_UNLOAD:
		for (i = 0; i < count; i++)
			heard[i].probe->id = 0;
		sdt_probes_enabled = false;
		sdt_probe_func = before;
		/* Whoever has read a number before is through soon. */
		pause("aiolsn", hz);
		return (0);
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t data = { "aio_rs_listener", event, NULL };
DECLARE_MODULE(aio_rs_listener, data, SI_SUB_KLD, SI_ORDER_ANY);
