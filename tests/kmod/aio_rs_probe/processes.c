/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Processes: credentials, limits, address spaces, faults that are not to happen, exec and exit.
 */
#include "probe.h"

#include <sys/capsicum.h>
#include <sys/eventhandler.h>
#include <sys/file.h>
#include <sys/imgact.h>
#include <sys/kthread.h>
#include <sys/priv.h>
#include <sys/refcount.h>
#include <sys/resourcevar.h>
#include <sys/syscallsubr.h>
#include <sys/ucred.h>
#include <sys/uio.h>
#include <sys/unistd.h>
#include <sys/vnode.h>

#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_extern.h>
#include <vm/vm_map.h>

static void
holds_cred(struct helper *h)
{
	struct ucred *its = h->argument, *own = curthread->td_ucred;
	long before = its->cr_ref;

	FACT("the credential of a process of the kernel's", "the program's %d, user %d", own == its, own->cr_uid);
	FACT("crhold of another's", "the same %d", crhold(its) == its);
	FACT("its references", "%ld more", (long)(its->cr_ref - before));
	crfree(its);
	FACT("crfree of another's", "%ld more", (long)(its->cr_ref - before));
}

static void
credentials(void)
{
	struct helper h;
	struct plimit *limits = curthread->td_limit;
	u_int before = limits->pl_refcnt;

	FACT("crhold", "the same %d", crhold(curthread->td_ucred) == curthread->td_ucred);
	crfree(curthread->td_ucred);
	probe_start(&h, holds_cred, curthread->td_ucred);
	probe_join(&h);
	FACT("limits of thread and process", "the same %d", limits == curproc->p_limit);
	FACT("lim_hold", "the same %d, %u more references", lim_hold(limits) == limits, limits->pl_refcnt - before);
	lim_free(limits);
	FACT("lim_free", "%u more references", limits->pl_refcnt - before);
}

static void
visits_twice(struct helper *h)
{
	struct vmspace *its = h->argument, *own = curproc->p_vmspace;
	struct iovec iov;
	struct uio uio;
	u_int before = refcount_load(&its->vm_refcnt);
	uint32_t word = 0;
	int error;

	FACT("its own space", "copyin %d, fuword %ld", copyin(WRITABLE, &word, 4),
	    fuword(WRITABLE + 8));
	vmspace_switch_aio(its);
	FACT("the space it has switched to", "%u more references", refcount_load(&its->vm_refcnt) - before);
	vmspace_switch_aio(its);
	FACT("the space it has switched to again", "%u more references", refcount_load(&its->vm_refcnt) - before);
	probe_uio(&uio, &iov, WRITABLE + 4, sizeof(word), UIO_USERSPACE, UIO_WRITE);
	error = uiomove(&word, sizeof(word), &uio);
	FACT("uiomove there", "%d, %x", error, word);
	vmspace_switch_aio(own);
	FACT("the space it has left", "%u more references", refcount_load(&its->vm_refcnt) - before);
}

static void
names(struct helper *h)
{
	FACT("the name of a process of the kernel's", "%s, its thread's %s, threads %d", curproc->p_comm,
	    curthread->td_name, curproc->p_numthreads);
}

static void
nothing(struct helper *h)
{
}

static void
named(void *argument)
{
	struct helper *h = argument;

	names(h);
	mtx_lock(&probe_lock);
	h->done = 1;
	wakeup(h);
	mtx_unlock(&probe_lock);
	kproc_exit(0);
}

static void
spaces(void)
{
	struct helper h;
	struct vmspace *vm;
	u_int before = refcount_load(&curproc->p_vmspace->vm_refcnt);
	int error;

	vm = vmspace_acquire_ref(curproc);
	FACT("vmspace_acquire_ref", "%u more references", refcount_load(&vm->vm_refcnt) - before);
	probe_start(&h, visits_twice, vm);
	probe_join(&h);
	vmspace_free(vm);
	FACT("vmspace_free", "%u more references", refcount_load(&vm->vm_refcnt) - before);
	memset(&h, 0, sizeof(h));
	error = kproc_create(named, &h, NULL, 0, 0, "%s %d %s", "probe", 7, "of a long name");
	if (error == 0)
		probe_join(&h);
	FACT("kproc_create", "%d", error);
	probe_start(&h, nothing, NULL);
	FACT("the process kproc_create told of", "its flags %x", h.p->p_flag & (P_KPROC | P_SYSTEM));
	probe_join(&h);
}

/* A page that is there is found, if not at once. */
static int
found(const void *from)
{
	uint32_t word;
	int error, tries;

	for (tries = 0; tries < 100; tries++) {
		error = copyin(from, &word, sizeof(word));
		if (error == 0)
			break;
	}
	return (error);
}

static void
faults(void)
{
	int inner, save;

	save = vm_fault_disable_pagefaults();
	FACT("copyin without faults", "%d", found(BUFFER));
	FACT("copyin without faults from a page that nobody has touched", "%d", found(UNTOUCHED + PAGE_SIZE));
	FACT("fuword without faults from a page that nobody has touched", "%ld", fuword(UNTOUCHED + PAGE_SIZE));
	FACT("suword without faults to a page that nobody has touched", "%d", suword(UNTOUCHED + PAGE_SIZE, 1));
	FACT("copyin without faults from nowhere", "%d", found(NOTHING));
	inner = vm_fault_disable_pagefaults();
	vm_fault_enable_pagefaults(inner);
	FACT("the same, disabled twice and enabled once", "%d", found(UNTOUCHED + PAGE_SIZE));
	vm_fault_enable_pagefaults(save);
	FACT("the same, enabled twice", "%d, word %ld", found(UNTOUCHED + PAGE_SIZE),
	    fuword(UNTOUCHED + PAGE_SIZE));
	save = vm_fault_disable_pagefaults();
	FACT("copyin without faults once it was touched", "%d", found(UNTOUCHED + PAGE_SIZE));
	vm_fault_enable_pagefaults(save);
}

/* The program's limit is eight pages, one of which is locked. */
static void
wired(void)
{
	struct ucred *cred = curthread->td_ucred;
	int save;

	FACT("kern_mlock of more than the limit", "%d", kern_mlock(curproc, cred, (uintptr_t)BUFFER, 9 * PAGE_SIZE));
	FACT("kern_mlock of what is left of the limit and one", "%d",
	    kern_mlock(curproc, cred, (uintptr_t)BUFFER, 8 * PAGE_SIZE));
	FACT("kern_mlock over a page's border", "%d", kern_mlock(curproc, cred, (uintptr_t)BUFFER + PAGE_SIZE - 1, 2));
	FACT("kern_mlock of what is locked, within the limit", "%d",
	    kern_mlock(curproc, cred, (uintptr_t)BUFFER, 2 * PAGE_SIZE));
	FACT("kern_mlock of what is locked, counted again", "%d",
	    kern_mlock(curproc, cred, (uintptr_t)BUFFER, 6 * PAGE_SIZE));
	FACT("kern_mlock of what may be read", "%d", kern_mlock(curproc, cred, (uintptr_t)READABLE, 1));
	FACT("kern_mlock of what allows nothing", "%d", kern_mlock(curproc, cred, (uintptr_t)FORBIDDEN, 1));
	FACT("kern_mlock of a page and one that is not there", "%d",
	    kern_mlock(curproc, cred, (uintptr_t)READABLE, PAGE_SIZE + 1));
	FACT("kern_mlock of a page that nobody has touched", "%d",
	    kern_mlock(curproc, cred, (uintptr_t)UNTOUCHED + 2 * PAGE_SIZE, 1));
	save = vm_fault_disable_pagefaults();
	FACT("copyin from it without faults", "%d", found(UNTOUCHED + 2 * PAGE_SIZE));
	vm_fault_enable_pagefaults(save);
}

void
probe_processes(void)
{
	credentials();
	spaces();
	faults();
	wired();
}

/* What happens to the program's child, which the program starts when this module is loaded. */

static eventhandler_tag on_exec, on_exit;
/* The process that loads this module. */
static struct proc *loader;

static bool
is_the_programs(struct proc *p)
{
	return (strcmp(p->p_comm, "probe") == 0);
}

/* What is still there of a process. */
static void
state(const char *when, struct proc *p)
{
	struct file *fp;
	int error;

	error = fget(curthread, FD_READ, &cap_no_rights, &fp);
	if (error == 0)
		fdrop(fp, curthread);
	FACT("an event", "%s: of itself %d, locked %d, its memory %lx, a descriptor %d", when, p == curproc,
	    PROC_LOCKED(p), fuword(WRITABLE + 8), error);
	FACT("its flags", "exit %d, exec %d, credential the thread's %d", (p->p_flag & P_WEXIT) != 0,
	    (p->p_flag & P_INEXEC) != 0, p->p_ucred == curthread->td_ucred);
}

static void
execs(void *argument, struct proc *p, struct image_params *imgp)
{
	if (is_the_programs(p))
		state("process_exec", p);
}

/* Of a process of another user. */
static void
rights(void)
{
	int error;

	FACT("priv_check of another user", "%d", priv_check(curthread, PRIV_DRIVER));
	PROC_LOCK(loader);
	error = p_cansee(curthread, loader);
	PROC_UNLOCK(loader);
	FACT("p_cansee of another user", "%d", error);
	FACT("kern_mlock of another user", "%d",
	    kern_mlock(curproc, curthread->td_ucred, (uintptr_t)WRITABLE, 1));
}

static void
exits(void *argument, struct proc *p)
{
	if (!is_the_programs(p))
		return;
	state("process_exit", p);
	if (p->p_ucred->cr_uid != 0)
		rights();
}

void
probe_process_events(void)
{
	loader = curproc;
	on_exec = EVENTHANDLER_REGISTER(process_exec, execs, NULL, EVENTHANDLER_PRI_ANY);
	on_exit = EVENTHANDLER_REGISTER(process_exit, exits, NULL, EVENTHANDLER_PRI_ANY);
}

void
probe_process_events_end(void)
{
	EVENTHANDLER_DEREGISTER(process_exec, on_exec);
	EVENTHANDLER_DEREGISTER(process_exit, on_exit);
}
