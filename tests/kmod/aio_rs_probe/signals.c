/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Signals that have a handler, are held back or ignored by the program, and what its handlers are told.
 */
#include "probe.h"

#include <sys/kthread.h>

/* Those the program has made ready: with a handler, one that restarts calls, held back, ignored. */
#define	HANDLED		SIGUSR2
#define	RESTARTS	SIGHUP
#define	HELD		SIGALRM
#define	IGNORED		SIGTERM

static ksiginfo_t queued[3], copied;

static void
nothing(struct helper *h)
{
}

static int
sends(struct thread *td, int signo, ksiginfo_t *ksi)
{
	int error;

	probe_siginfo(ksi, signo);
	PROC_LOCK(curproc);
	error = tdsendsignal(curproc, td, signo, ksi);
	PROC_UNLOCK(curproc);
	return (error);
}

static void
takes(ksiginfo_t *ksi)
{
	PROC_LOCK(curproc);
	sigqueue_take(ksi);
	PROC_UNLOCK(curproc);
}

void
probe_signals(void)
{
	struct helper h;
	int error, i;

	error = sends(NULL, HANDLED, &queued[0]);
	FACT("a sleep with a signal that is handled", "%d, queued %d", probe_signalled(), KSI_ONQ(&queued[0]) != 0);
	takes(&queued[0]);
	error = sends(NULL, RESTARTS, &queued[0]);
	FACT("a sleep with a signal whose handler restarts calls", "%d", probe_signalled());
	FACT("pause_sbt with a signal", "%d", pause_sbt("probe", SBT_1MS, 0, 0));
	/* A process of the kernel's is made by a fork, which may look at signals. */
	error = probe_try_start(&h, nothing, NULL);
	FACT("kproc_create with a signal", "%d", error);
	if (error == 0)
		probe_join(&h);
	takes(&queued[0]);
	error = sends(NULL, HELD, &queued[0]);
	FACT("a signal that is held back", "%d, queued %d, a sleep %d", error, KSI_ONQ(&queued[0]) != 0,
	    probe_signalled());
	takes(&queued[0]);
	error = sends(NULL, IGNORED, &queued[0]);
	FACT("a signal that is ignored", "%d, queued %d, a sleep %d", error, KSI_ONQ(&queued[0]) != 0,
	    probe_signalled());
	error = sends(curthread, HELD, &queued[0]);
	FACT("a signal to the thread that is held back", "%d, queued %d, a sleep %d", error,
	    KSI_ONQ(&queued[0]) != 0, probe_signalled());
	takes(&queued[0]);
	sigqueue_take(&queued[0]);
	FACT("sigqueue_take twice", "queued %d", KSI_ONQ(&queued[0]) != 0);
	PROC_LOCK(curproc);
	kern_psignal(curproc, SIGURG);
	PROC_UNLOCK(curproc);
	FACT("kern_psignal of what is ignored", "a sleep %d", probe_signalled());

	/* These wait until the program goes on. */
	PROC_LOCK(curproc);
	kern_psignal(curproc, RESTARTS);
	kern_psignal(curproc, RESTARTS);
	PROC_UNLOCK(curproc);
	FACT("kern_psignal twice", "a sleep %d", probe_signalled());
	for (i = 0; i < nitems(queued); i++) {
		probe_siginfo(&queued[i], HANDLED);
		queued[i].ksi_info.si_value.sival_int = i + 1;
		PROC_LOCK(curproc);
		tdsendsignal(curproc, NULL, HANDLED, &queued[i]);
		PROC_UNLOCK(curproc);
	}
	/* The kernel has a copy of this. */
	ksiginfo_init(&copied);
	copied.ksi_signo = HANDLED;
	copied.ksi_code = SI_QUEUE;
	copied.ksi_info.si_value.sival_int = 9;
	PROC_LOCK(curproc);
	tdsendsignal(curproc, NULL, HANDLED, &copied);
	PROC_UNLOCK(curproc);
	FACT("four of a number", "queued %d %d %d, a copy %d", KSI_ONQ(&queued[0]) != 0,
	    KSI_ONQ(&queued[1]) != 0, KSI_ONQ(&queued[2]) != 0, KSI_ONQ(&copied) != 0);
	takes(&queued[1]);
	FACT("the second taken back", "queued %d %d %d", KSI_ONQ(&queued[0]) != 0, KSI_ONQ(&queued[1]) != 0,
	    KSI_ONQ(&queued[2]) != 0);
}

/* The program's handler has written down signal, code and value of each. */
void
probe_signals_delivered(void)
{
	int i, count;

	count = fuword32(NOTED);
	FACT("handlers", "%d were called", count);
	for (i = 0; i < count && i < 8; i++) {
		FACT("a handler was told", "signal %d, code %x, value %d", fuword32(NOTED + 16 + i * 16),
		    fuword32(NOTED + 20 + i * 16), fuword32(NOTED + 24 + i * 16));
	}
	FACT("queued after that", "%d %d", KSI_ONQ(&queued[0]) != 0, KSI_ONQ(&queued[2]) != 0);
}
