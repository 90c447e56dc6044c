/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stands in for the engine, to try what the gate promises: that after a detach no thread is in the
 * engine's text, and none will be.  Its handlers are slow at their first and last instructions,
 * and some sleep; each notices when it runs after a detach.  Loading it attaches and detaches
 * aio_rs_gatetest.rounds times (kenv(1), 200) and fails if that was noticed, or if the gate took
 * a table it must not take.  Programs that use AIO are to run meanwhile; the built-in serves them.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/module.h>
#include <sys/proc.h>

#include <machine/atomic.h>

/* As in sys-bindings/gate.rs. */
#define	VERSION	2
#define	PASS	(-0x7fffffff - 1)
#define	SLOTS	15

struct ops {
	uint32_t	  version;
	uint32_t	  size;
	void		 *ctx;
	int		(*syscall[2][SLOTS])(void *, struct thread *, void *);
	void		(*process_exit)(void *, struct proc *);
	void		(*process_exec)(void *, struct proc *);
	void		(*worker)(void *, void *);
	int		(*socket_task)(void *, void *, int);
	void		(*bio_done)(void *, void *);
	void		(*pipe_event)(void *, void *);
};

int	aio_rs_gate_attach(const struct ops *);
int	aio_rs_gate_detach(void);

static struct ops ops;
/* Threads in a handler, calls of handlers, and those that ran when none may. */
static volatile u_int inside, calls, late;
static volatile u_int detached = 1;

static void
enter(void)
{
	u_int call;

	if (atomic_load_acq_int(&detached))
		atomic_add_int(&late, 1);
	atomic_add_int(&inside, 1);
	call = atomic_fetchadd_int(&calls, 1);
	DELAY(call % 64);
	if (call % 128 == 5)
		pause("gatetst", 1);
}

static void
leave(void)
{
	u_int call;

	call = atomic_load_acq_int(&calls);
	DELAY(call % 32);
	atomic_subtract_int(&inside, 1);
	if (atomic_load_acq_int(&detached))
		atomic_add_int(&late, 1);
}

static int
handler(void *ctx, struct thread *td, void *uap)
{
	enter();
	leave();
	return (PASS);
}

static void
event(void *ctx, struct proc *p)
{
	enter();
	leave();
}

static void
fill(void)
{
	int i;

	ops.version = VERSION;
	ops.size = sizeof(ops);
	for (i = 0; i < SLOTS; i++)
		ops.syscall[0][i] = ops.syscall[1][i] = handler;
	ops.process_exit = ops.process_exec = event;
	/* Without requests the others are not called. */
}

/* What the gate must refuse. */
static int
refusals(void)
{
	struct ops other;

	other = ops;
	other.version++;
	if (aio_rs_gate_attach(&other) != EPROGMISMATCH) {
		printf("aio_rs_gatetest: a table of another version was not refused\n");
		return (EINVAL);
	}
	other = ops;
	other.size -= sizeof(void *);
	if (aio_rs_gate_attach(&other) != EPROGMISMATCH) {
		printf("aio_rs_gatetest: a table too small was not refused\n");
		return (EINVAL);
	}
	return (0);
}

static int
try(int rounds)
{
	u_int left;
	int error, round;

	for (round = 0; round < rounds; round++) {
		atomic_store_rel_int(&detached, 0);
		error = aio_rs_gate_attach(&ops);
		if (error != 0) {
			printf("aio_rs_gatetest: attach: %d\n", error);
			return (error);
		}
		if (round == 0 && aio_rs_gate_attach(&ops) != EBUSY) {
			panic("aio_rs_gatetest: a second engine was not refused");
		}
		pause_sbt("gatetst", SBT_1MS * (round % 8), 0, 0);
		while ((error = aio_rs_gate_detach()) == EBUSY)
			;
		left = atomic_load_acq_int(&inside);
		atomic_store_rel_int(&detached, 1);
		if (error != 0)
			return (error);
		pause_sbt("gatetst", SBT_1MS * (round % 4), 0, 0);
		if (left != 0 || late != 0) {
			printf("aio_rs_gatetest: round %d: %u inside after a detach, %u late\n", round, left, late);
			return (EINVAL);
		}
	}
	printf("aio_rs_gatetest: ok rounds=%d calls=%u\n", rounds, calls);
	/* Without any the rounds tell nothing. */
	return (calls == 0 ? EINVAL : 0);
}

static int
modevent(module_t mod __unused, int event, void *arg __unused)
{
	int error, rounds = 200;

	switch (event) {
	case MOD_LOAD:
		TUNABLE_INT_FETCH("aio_rs_gatetest.rounds", &rounds);
		fill();
		error = refusals();
		return (error != 0 ? error : try(rounds));
	case MOD_UNLOAD:
	case MOD_QUIESCE:
	case MOD_SHUTDOWN:
		return (0);
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t aio_rs_gatetest_mod = {
	"aio_rs_gatetest",
	modevent,
	NULL
};

DECLARE_MODULE_TIED(aio_rs_gatetest, aio_rs_gatetest_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(aio_rs_gatetest, 1);
MODULE_DEPEND(aio_rs_gatetest, aio_rs_gate, 1, 1, 1);
