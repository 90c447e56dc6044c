/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel options that change structures or inline functions we use, as GENERIC sets them.
 * A kernel without one of them is refused at load by its version tie or, for VIMAGE and MAC,
 * must be built for with its own opt_global.h (kmod/Makefile does that with KERNBUILDDIR).
 */
#define	SMP		1
#define	MAC		1
#define	VIMAGE		1
#define	KDTRACE_HOOKS	1
#define	COMPAT_FREEBSD6	1
#define	COMPAT_FREEBSD32 1
#define	DEV_ISA		1
#define	DEV_PCI		1
