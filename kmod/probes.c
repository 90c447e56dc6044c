/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The DTrace probes: SDT provider aio_rs.  What SDT(9) needs are macros that make data in linker
 * sets, so this is C.  A kernel without KDTRACE_HOOKS lacks the functions behind them: it is built
 * for with PROBES=0.
 *
 * A caller looks at a probe's word in aio_rs_probe_ids, which is 0 while nobody listens, before it
 * works out the arguments and calls.
 */
#ifdef AIO_RS_NO_PROBES
#undef KDTRACE_HOOKS
#elif !defined(KDTRACE_HOOKS)
#define	KDTRACE_HOOKS	1
#endif

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/sdt.h>

/* Probes of six arguments go through a pointer to a function of five, as <sys/sdt.h> has it. */
#pragma clang diagnostic ignored "-Wcast-function-type"

/* Later kernels have the probe itself where earlier ones have an array of one. */
#ifdef _SDT_TRACEPOINT_SET
#define	PROBE_ID(name)	(&sdt_aio_rs___##name.id)
#else
#define	PROBE_ID(name)	(&sdt_aio_rs___##name->id)
#endif

#ifdef KDTRACE_HOOKS
SDT_PROVIDER_DEFINE(aio_rs);
#define	PROBE(name, type3, type4, type5)					\
SDT_PROBE_DEFINE6(aio_rs, , , name, "uintptr_t", "int", "int", type3, type4,	\
    type5);									\
void aio_rs_probe_##name(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,	\
    uintptr_t);									\
void										\
aio_rs_probe_##name(uintptr_t arg0, uintptr_t arg1, uintptr_t arg2,		\
    uintptr_t arg3, uintptr_t arg4, uintptr_t arg5)				\
{										\
										\
	SDT_PROBE6(aio_rs, , , name, arg0, arg1, arg2, arg3, arg4, arg5);	\
}
#else
static id_t never;
#undef PROBE_ID
#define	PROBE_ID(name)	(&never)
#define	PROBE(name, type3, type4, type5)					\
void aio_rs_probe_##name(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,	\
    uintptr_t);									\
void										\
aio_rs_probe_##name(uintptr_t arg0, uintptr_t arg1, uintptr_t arg2,		\
    uintptr_t arg3, uintptr_t arg4, uintptr_t arg5)				\
{										\
}
#endif

/* aiocb, opcode, descriptor; then bytes, offset, nanoseconds, or as given. */
PROBE(queue, "size_t", "off_t", "uint64_t")
PROBE(start, "size_t", "off_t", "uint64_t")
PROBE(done, "ssize_t", "int", "uint64_t")		/* bytes, errno, nanoseconds */
PROBE(cancel, "size_t", "off_t", "uint64_t")
PROBE(notify, "int", "int", "int")			/* 0, errno, 0 */
PROBE(park, "size_t", "int", "uint64_t")		/* requests, 0, 0 */
PROBE(wake, "size_t", "int", "uint64_t")		/* requests, errno, nanoseconds */

/* Mirrored by src/kern/probe.rs, enum Probe. */
extern const volatile id_t *const aio_rs_probe_ids[];
const volatile id_t *const aio_rs_probe_ids[] = {
	PROBE_ID(queue),
	PROBE_ID(start),
	PROBE_ID(done),
	PROBE_ID(cancel),
	PROBE_ID(notify),
	PROBE_ID(park),
	PROBE_ID(wake),
};
_Static_assert(sizeof(id_t) == 8, "Rust reads it so");
