/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A module with one planted defect, chosen by PLANTED, that the host kernel must find.  Which message
 * it must give stands in tests/hostkern/tests/planted.rs.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/bio.h>
#include <sys/counter.h>
#include <sys/eventhandler.h>
#include <sys/kernel.h>
#include <sys/kthread.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/proc.h>
#include <sys/protosw.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/sysctl.h>
#include <sys/ucred.h>
#include <sys/uio.h>
#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_extern.h>
#include <vm/vm_page.h>
#include <geom/geom.h>

enum {
	NOTHING,
	USER_ACCESS,
	SLEEP_WITH_MUTEX,
	RECURSION,
	LOCK_ORDER,
	OVERRUN,
	USE_AFTER_FREE,
	LEAK,
	DOUBLE_FREE,
	DEADLOCK,
	UNINITIALISED_MUTEX,
	NULL_POINTER,
	KEEPS_MUTEX,
	CREDENTIAL_LEAK,
	CREDENTIAL_OVERFREE,
	WRONG_TYPE,
	DESTROY_HELD,
	FOREIGN_UNLOCK,
	SLEEP_WITHOUT_INTERLOCK,
	WAKEUP_IS_NOT_LOST,
	TIMEOUT_IS_ON_TIME,
	DOUBLE_FETCH,
	FOREIGN_CREDENTIAL,
	FOREIGN_VMSPACE,
	BIO_LEAK,
	BIO_DOUBLE_FREE,
	UNHELD_PAGE,
	KVA_LEAK,
	COUNTER_LEAK,
	WAY_TO_A_PANIC,
	NO_SOCKET,
	NO_PROCESS_LOCK,
	FOREIGN_UIO,
	HANDLER_TWICE,
	COMES_BACK,
	SYSCTL_STAYS,
	LOST_UPDATE,
	NO_LOST_UPDATE,
};

MALLOC_DEFINE(M_ONE, "planted one", "test");
MALLOC_DEFINE(M_TWO, "planted two", "test");

static struct mtx first, second;
static int stays;

#if PLANTED >= 36
/*
 * Two processes that count at once, without a kernel call in between: with LOST_UPDATE by loads and
 * stores, with NO_LOST_UPDATE by locked instructions.
 */
#define	COUNTS	200
static volatile u_int counted, ended;

static void
count_up(void *argument)
{
	u_int before;
	int i;

	for (i = 0; i < COUNTS; i++) {
		if (PLANTED == NO_LOST_UPDATE) {
			atomic_add_int(&counted, 1);
			continue;
		}
		before = counted;
		/* Or the compiler makes one instruction of it. */
		__asm volatile("" : "+r" (before));
		counted = before + 1;
	}
	mtx_lock(&first);
	ended++;
	wakeup(&first);
	mtx_unlock(&first);
	kproc_exit(0);
}

static void
count(void)
{
	struct proc *p;

	kproc_create(count_up, NULL, &p, 0, 0, "one");
	kproc_create(count_up, NULL, &p, 0, 0, "other");
	mtx_lock(&first);
	while (ended < 2)
		msleep(&first, &first, 0, "count", 0);
	mtx_unlock(&first);
	/* Until both have left the module. */
	pause_sbt("gone", SBT_1S, 0, 0);
	if (counted != 2 * COUNTS)
		panic("an update is lost");
}
#endif

#if PLANTED == 34
/* Sleeps until the module is gone, and returns to it. */
static void
come_back(void *argument)
{

	pause_sbt("back", SBT_1S / 10, 0, 0);
	kproc_exit(0);
}
#endif

static void
handler(void *argument, struct proc *p)
{
}

static void
plant(void)
{
	volatile char *memory;
	struct mtx unready;
	struct bio *bp;
	vm_page_t page;
	eventhandler_tag tag;
	struct iovec iov;
	struct uio uio;
#if PLANTED == 34
	struct proc *p;
#endif
	uint32_t words[2];
	int error;

	switch (PLANTED) {
	case NOTHING:
		free(malloc(10, M_ONE, M_WAITOK), M_ONE);
		break;
	case USER_ACCESS:
		memory = (volatile char *)0x300000;
		(void)*memory;
		break;
	case SLEEP_WITH_MUTEX:
		mtx_lock(&first);
		free(malloc(10, M_ONE, M_WAITOK), M_ONE);
		mtx_unlock(&first);
		break;
	case RECURSION:
		mtx_lock(&first);
		mtx_lock(&first);
		break;
	case LOCK_ORDER:
		mtx_lock(&first);
		mtx_lock(&second);
		mtx_unlock(&second);
		mtx_unlock(&first);
		mtx_lock(&second);
		mtx_lock(&first);
		break;
	case OVERRUN:
		memory = malloc(10, M_ONE, M_WAITOK);
		memory[10] = 1;
		free(__DEVOLATILE(char *, memory), M_ONE);
		break;
	case USE_AFTER_FREE:
		memory = malloc(10, M_ONE, M_WAITOK);
		free(__DEVOLATILE(char *, memory), M_ONE);
		memory[3] = 1;
		break;
	case LEAK:
		(void)malloc(10, M_ONE, M_WAITOK);
		break;
	case DOUBLE_FREE:
		memory = malloc(10, M_ONE, M_WAITOK);
		free(__DEVOLATILE(char *, memory), M_ONE);
		free(__DEVOLATILE(char *, memory), M_ONE);
		break;
	case DEADLOCK:
		mtx_lock(&first);
		msleep(&first, &first, 0, "forever", 0);
		mtx_unlock(&first);
		break;
	case UNINITIALISED_MUTEX:
		bzero(&unready, sizeof(unready));
		mtx_lock(&unready);
		break;
	case NULL_POINTER:
		memory = NULL;
		__asm volatile("" : "+r" (memory));
		(void)*memory;
		break;
	case KEEPS_MUTEX:
		mtx_lock(&first);
		break;
	case CREDENTIAL_LEAK:
		(void)crhold(curthread->td_ucred);
		break;
	case CREDENTIAL_OVERFREE:
		for (error = 0; error < 100; error++)
			crfree(curthread->td_ucred);
		break;
	case WRONG_TYPE:
		free(malloc(10, M_ONE, M_WAITOK), M_TWO);
		break;
	case DESTROY_HELD:
		mtx_lock(&first);
		mtx_destroy(&first);
		break;
	case FOREIGN_UNLOCK:
		mtx_unlock(&first);
		break;
	case SLEEP_WITHOUT_INTERLOCK:
		msleep_sbt(&first, &first, 0, "bare", SBT_1S, 0, 0);
		break;
	case WAKEUP_IS_NOT_LOST:
		/* Nobody sleeps: it must not be remembered either. */
		wakeup(&first);
		mtx_lock(&first);
		error = msleep_sbt(&first, &first, 0, "short", SBT_1S / 10, 0, 0);
		mtx_unlock(&first);
		printf("planted: msleep %d\n", error);
		break;
	case TIMEOUT_IS_ON_TIME: {
		sbintime_t before, after;

		before = sbinuptime();
		mtx_lock(&first);
		(void)msleep_sbt(&first, &first, PDROP, "half", SBT_1S / 2, 0, 0);
		after = sbinuptime();
		printf("planted: %d owned %d ms\n", mtx_owned(&first),
		    (int)((after - before) * 1000 / SBT_1S));
		break;
	}
	case DOUBLE_FETCH:
		/* Nothing is there; that it was asked for is enough. */
		(void)copyin((const void *)0x300000, &words, sizeof(words));
		(void)fuword32((const void *)0x300004);
		break;
	case FOREIGN_CREDENTIAL:
		curthread->td_ucred = (struct ucred *)&words;
		tsleep_sbt(&first, 0, "other", SBT_1S, 0, 0);
		break;
	case FOREIGN_VMSPACE:
		curproc->p_vmspace = (struct vmspace *)&words;
		tsleep_sbt(&first, 0, "other", SBT_1S, 0, 0);
		break;
	case BIO_LEAK:
		(void)g_alloc_bio();
		break;
	case BIO_DOUBLE_FREE:
		bp = g_alloc_bio();
		g_destroy_bio(bp);
		g_destroy_bio(bp);
		break;
	case UNHELD_PAGE:
		page = (vm_page_t)&words;
		vm_page_unhold_pages(&page, 1);
		break;
	case KVA_LEAK:
		(void)kva_alloc(PAGE_SIZE);
		break;
	case COUNTER_LEAK:
		(void)counter_u64_alloc(M_WAITOK);
		break;
	case WAY_TO_A_PANIC:
		panic("planted");
	case NO_SOCKET:
		sorele_locked((struct socket *)&first);
		break;
#if PLANTED >= 36
	case LOST_UPDATE:
	case NO_LOST_UPDATE:
		count();
		break;
#endif
	case NO_PROCESS_LOCK:
		(void)p_cansee(curthread, curproc);
		break;
	case FOREIGN_UIO:
		memset(&uio, 0, sizeof(uio));
		iov.iov_base = (void *)0x300000;
		iov.iov_len = uio.uio_resid = sizeof(words);
		uio.uio_iov = &iov;
		uio.uio_iovcnt = 1;
		uio.uio_segflg = UIO_USERSPACE;
		(void)uiomove(words, sizeof(words), &uio);
		break;
	case HANDLER_TWICE:
		tag = EVENTHANDLER_REGISTER(process_exit, handler, NULL, EVENTHANDLER_PRI_ANY);
		EVENTHANDLER_DEREGISTER(process_exit, tag);
		EVENTHANDLER_DEREGISTER(process_exit, tag);
		break;
#if PLANTED == 34
	case COMES_BACK:
		kproc_create(come_back, NULL, &p, 0, 0, "back");
		break;
#endif
	case SYSCTL_STAYS:
		SYSCTL_ADD_INT(NULL, SYSCTL_STATIC_CHILDREN(_vfs), OID_AUTO, "planted",
		    CTLFLAG_RD, &stays, 0, "");
		break;
	}
}

static int
planted_modevent(module_t module, int event, void *argument)
{

	switch (event) {
	case MOD_LOAD:
		mtx_init(&first, "planted first", NULL, MTX_DEF);
		mtx_init(&second, "planted second", NULL, MTX_DEF);
		plant();
		return (0);
	case MOD_UNLOAD:
		mtx_destroy(&first);
		mtx_destroy(&second);
		return (0);
	case MOD_QUIESCE:
	case MOD_SHUTDOWN:
		return (0);
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t planted_mod = { "planted", planted_modevent, NULL };
DECLARE_MODULE_TIED(planted, planted_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(planted, 1);
