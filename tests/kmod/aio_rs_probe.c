/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tries the kernel's functions that aio_rs uses where their contracts are easily misread, and prints
 * one line per fact.  No line has what changes from run to run, so the lines of two kernels can be
 * compared: those of a real one are in tests/transcripts, and the host kernel must give the same.
 *
 * tests/guest's program probe loads it, with memory and descriptors at the places probe.h has.  Its
 * parts are in the folder of its name: a subject each.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/capsicum.h>
#include <sys/counter.h>
#include <sys/event.h>
#include <sys/eventhandler.h>
#include <sys/fcntl.h>
#include <sys/file.h>
#include <sys/filedesc.h>
#include <sys/kernel.h>
#include <sys/kthread.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/priv.h>
#include <sys/proc.h>
#include <sys/protosw.h>
#include <sys/rangelock.h>
#include <sys/resourcevar.h>
#include <sys/signalvar.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/syscallsubr.h>
#include <sys/sysctl.h>
#include <sys/ucred.h>
#include <sys/uio.h>
#include <sys/unistd.h>
#include <sys/vnode.h>

#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_extern.h>
#include <vm/vm_map.h>
#include <vm/vm_page.h>

#include "aio_rs_probe/probe.h"

#define	KERNEL		((char *)(uintptr_t)&probe_lock)

MALLOC_DEFINE(M_PROBE, "aio_rs_probe", "tries the kernel's functions");

struct mtx probe_lock;

static int chan, asleep;
int probe_steps;

static void
helper_main(void *argument)
{
	struct helper *h = argument;

	h->run(h);
	mtx_lock(&probe_lock);
	h->done = 1;
	wakeup(h);
	mtx_unlock(&probe_lock);
	kproc_exit(0);
}

static int
start_named(struct helper *h, void (*run)(struct helper *), void *argument, const char *name)
{
	memset(h, 0, sizeof(*h));
	h->run = run;
	h->argument = argument;
	return (kproc_create(helper_main, h, &h->p, 0, 0, "%s", name));
}

int
probe_try_start(struct helper *h, void (*run)(struct helper *), void *argument)
{
	return (start_named(h, run, argument, "aio_rs_probe"));
}

void
probe_start(struct helper *h, void (*run)(struct helper *), void *argument)
{
	int error;

	error = probe_try_start(h, run, argument);
	if (error != 0)
		panic("aio_rs_probe: kproc_create: %d", error);
}

void
probe_join(struct helper *h)
{
	mtx_lock(&probe_lock);
	while (!h->done)
		msleep(h, &probe_lock, 0, "join", 0);
	mtx_unlock(&probe_lock);
}

void
probe_after_ms(int ms)
{
	pause_sbt("probe", SBT_1MS * ms, 0, 0);
}

/* Sleeping and waking. */

static void
sleeper(struct helper *h)
{
	mtx_lock(&probe_lock);
	asleep++;
	wakeup(&asleep);
	h->value = msleep(&chan, &probe_lock, 0, "sleeper", 10 * hz);
	if (!mtx_owned(&probe_lock))
		h->value = 1000;
	asleep--;
	mtx_unlock(&probe_lock);
}

static void
wait_asleep(int count)
{
	mtx_lock(&probe_lock);
	while (asleep < count)
		msleep(&asleep, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
}

static void
waker(struct helper *h)
{
	probe_after_ms(20);
	mtx_lock(&probe_lock);
	wakeup(&chan);
	/* Whoever was woken waits for the mutex. */
	probe_steps = 1;
	mtx_unlock(&probe_lock);
}

static void
sleeping(void)
{
	struct helper helpers[3], h;
	sbintime_t begun;
	int error, i;

	mtx_lock(&probe_lock);
	begun = sbinuptime();
	error = msleep(&chan, &probe_lock, 0, "probe", hz / 10);
	FACT("msleep that times out", "%d, owned %d, too early %d", error, mtx_owned(&probe_lock),
	    sbinuptime() - begun < 90 * SBT_1MS);
	error = msleep(&chan, &probe_lock, PCATCH, "probe", 1);
	FACT("msleep PCATCH that times out", "%d, owned %d", error, mtx_owned(&probe_lock));
	error = msleep(&chan, &probe_lock, PDROP, "probe", 1);
	FACT("msleep PDROP that times out", "%d, owned %d", error, mtx_owned(&probe_lock));
	mtx_lock(&probe_lock);
	error = msleep_sbt(&chan, &probe_lock, 0, "probe", sbinuptime() - SBT_1MS, 0, C_ABSOLUTE);
	FACT("msleep_sbt until a time gone by", "%d", error);
	wakeup(&chan);
	error = msleep(&chan, &probe_lock, 0, "probe", 1);
	FACT("a wakeup before the sleep", "%d", error);
	mtx_unlock(&probe_lock);
	error = tsleep(&chan, 0, "probe", 1);
	FACT("tsleep that times out", "%d", error);
	error = pause_sbt("probe", SBT_1MS, 0, 0);
	FACT("pause_sbt", "%d", error);
	error = pause_sbt("probe", 0, 0, 0);
	FACT("pause_sbt of nothing", "%d", error);

	for (i = 0; i < 3; i++)
		probe_start(&helpers[i], sleeper, NULL);
	wait_asleep(3);
	wakeup(&probe_steps);
	probe_after_ms(20);
	FACT("asleep after a wakeup of another channel", "%d", asleep);
	wakeup_one(&chan);
	probe_after_ms(100);
	FACT("asleep after wakeup_one of three", "%d", asleep);
	wakeup(&chan);
	for (i = 0; i < 3; i++)
		probe_join(&helpers[i]);
	FACT("asleep after wakeup", "%d, values %d %d %d", asleep, helpers[0].value, helpers[1].value,
	    helpers[2].value);

	probe_steps = 0;
	probe_start(&h, waker, NULL);
	mtx_lock(&probe_lock);
	error = msleep(&chan, &probe_lock, 0, "probe", 10 * hz);
	FACT("a sleeper that is woken with the mutex held", "%d, step %d", error, probe_steps);
	mtx_unlock(&probe_lock);
	probe_join(&h);
}

/* Processes of the kernel's. */

static void
who(struct helper *h)
{
	struct proc *p = curproc;

	FACT("a process of the kernel's", "kproc %d, system %d", (p->p_flag & P_KPROC) != 0,
	    (p->p_flag & P_SYSTEM) != 0);
	FACT("its name", "%s", p->p_comm);
}

static void
visits(struct helper *h)
{
	struct vmspace *its = h->argument, *own = curproc->p_vmspace;
	uint32_t word = 0;
	int error;

	vmspace_switch_aio(its);
	FACT("vmspace_switch_aio", "there %d", curproc->p_vmspace == its);
	error = copyin(WRITABLE, &word, sizeof(word));
	FACT("copyin in another's space", "%d, %x", error, word);
	vmspace_switch_aio(its);
	FACT("vmspace_switch_aio to the same", "there %d", curproc->p_vmspace == its);
	vmspace_switch_aio(own);
	FACT("vmspace_switch_aio back", "there %d", curproc->p_vmspace == own);
}

static void
processes(void)
{
	struct helper h;
	struct vmspace *vm;
	int error;

	probe_start(&h, who, NULL);
	probe_join(&h);
	vm = vmspace_acquire_ref(curproc);
	FACT("vmspace_acquire_ref of the running process", "its own %d", vm == curproc->p_vmspace);
	probe_start(&h, visits, vm);
	probe_join(&h);
	vmspace_free(vm);
	FACT("priv_check of root", "%d", priv_check(curthread, PRIV_DRIVER));
	PROC_LOCK(curproc);
	error = p_cansee(curthread, curproc);
	PROC_UNLOCK(curproc);
	FACT("p_cansee of oneself", "%d", error);
}

/* Memory. */

static void
memory(void)
{
	counter_u64_t counter;
	char *at;
	size_t size;
	int i, odd = 0, dirty = 0;

	for (size = 16; size <= 4096; size *= 2) {
		at = malloc(size, M_PROBE, M_WAITOK | M_ZERO);
		odd += ((uintptr_t)at & (size - 1)) != 0;
		for (i = 0; i < size; i++)
			dirty += at[i] != 0;
		memset(at, 1, size);
		free(at, M_PROBE);
	}
	FACT("malloc of powers of two", "%d not aligned, %d bytes not zero", odd, dirty);
	at = malloc(0, M_PROBE, M_WAITOK);
	FACT("malloc of nothing", "null %d", at == NULL);
	free(at, M_PROBE);
	free(NULL, M_PROBE);
	at = malloc(1 << 20, M_PROBE, M_NOWAIT | M_ZERO);
	FACT("malloc of a megabyte", "null %d, in its page %d", at == NULL, (int)((uintptr_t)at & PAGE_MASK));
	free(at, M_PROBE);

	counter = counter_u64_alloc(M_WAITOK);
	i = counter_u64_fetch(counter);
	counter_u64_add(counter, 5);
	counter_u64_add(counter, -2);
	FACT("counter", "%d, then %d", i, (int)counter_u64_fetch(counter));
	counter_u64_free(counter);
}

/* The user's memory. */

static void
user_memory(void)
{
	struct iovec iov;
	struct uio *uio, *copy, local;
	char bytes[32];
	int error, i;

	memset(bytes, 0, sizeof(bytes));
	error = copyin(WRITABLE, bytes, 4);
	FACT("copyin", "%d, %d %d %d", error, bytes[1], bytes[2], bytes[3]);
	FACT("copyin of nothing, from nowhere", "%d", copyin(NOTHING, bytes, 0));
	FACT("copyin from nowhere", "%d", copyin(NOTHING, bytes, 4));
	FACT("copyin over an end", "%d", copyin(NOTHING - 4, bytes, 8));
	FACT("copyin from the kernel", "%d", copyin(KERNEL, bytes, 4));
	FACT("copyin from null", "%d", copyin(NULL, bytes, 4));
	FACT("copyin over the end of all", "%d", copyin((void *)-4ul, bytes, 8));

	FACT("fuword", "%lx", fuword(WRITABLE + 8));
	FACT("fuword not aligned", "%lx", fuword(WRITABLE + 9));
	FACT("fuword from nowhere", "%ld", fuword(NOTHING));
	FACT("fuword from the kernel", "%ld", fuword(KERNEL));
	FACT("fuword32", "%x", fuword32(WRITABLE + 12));
	FACT("fuword32 from nowhere", "%d", fuword32(NOTHING));
	FACT("suword", "%d", suword(WRITABLE + 512, 0x1122334455667788));
	FACT("suword, read again", "%lx", fuword(WRITABLE + 512));
	FACT("suword32", "%d", suword32(WRITABLE + 512, 1));
	FACT("suword32, read again", "%lx", fuword(WRITABLE + 512));
	FACT("suword where only reading is allowed", "%d", suword(READABLE, 1));
	FACT("suword32 where only reading is allowed", "%d", suword32(READABLE, 1));
	FACT("suword to nowhere", "%d", suword(NOTHING, 1));
	FACT("suword to the kernel", "%d", suword(KERNEL, 1));

	FACT("iosize_max", "%lx", iosize_max());
	error = copyinuio((struct iovec *)VECTOR, 2, &uio);
	FACT("copyinuio", "%d, %d elements, %zd bytes, user's %d, offset %jd", error, uio->uio_iovcnt,
	    uio->uio_resid, uio->uio_segflg == UIO_USERSPACE, (intmax_t)uio->uio_offset);
	copy = cloneuio(uio);
	FACT("cloneuio", "%d elements, %zd bytes, another vector %d", copy->uio_iovcnt, copy->uio_resid,
	    copy->uio_iov != uio->uio_iov);
	uio->uio_rw = UIO_WRITE;
	uio->uio_td = curthread;
	error = uiomove(bytes, 10, uio);
	FACT("uiomove", "%d, %zd bytes left in %d elements, byte %d", error, uio->uio_resid,
	    uio->uio_iovcnt, bytes[9]);
	FACT("uiomove, what it moved", "offset %jd", (intmax_t)uio->uio_offset);
	error = uiomove(bytes, 20, uio);
	FACT("uiomove of more than there is", "%d, %zd bytes left, offset %jd", error, uio->uio_resid,
	    (intmax_t)uio->uio_offset);
	FACT("the copy meanwhile", "%d elements, %zd bytes", copy->uio_iovcnt, copy->uio_resid);
	free(copy, M_IOV);
	free(uio, M_IOV);
	error = copyinuio((struct iovec *)VECTOR, 0, &uio);
	FACT("copyinuio of nothing", "%d", error);
	if (error == 0)
		free(uio, M_IOV);
	FACT("copyinuio of too many", "%d", copyinuio((struct iovec *)VECTOR, UIO_MAXIOV + 1, &uio));
	FACT("copyinuio from nowhere", "%d", copyinuio((struct iovec *)NOTHING, 1, &uio));

	for (i = 0; i < 2; i++) {
		probe_uio(&local, &iov, i == 0 ? READABLE : NOTHING - 4, 8, UIO_USERSPACE,
		    i == 0 ? UIO_READ : UIO_WRITE);
		error = uiomove(bytes, 8, &local);
		if (i == 0) {
			FACT("uiomove to where only reading is allowed", "%d, %zd bytes left, offset %jd", error,
			    local.uio_resid, (intmax_t)local.uio_offset);
		} else {
			FACT("uiomove over an end", "%d, %zd bytes left, offset %jd", error, local.uio_resid,
			    (intmax_t)local.uio_offset);
		}
	}
}

/* Pages that are held. */

static void
pages(void)
{
	vm_map_t map = &curproc->p_vmspace->vm_map;
	vm_page_t held[4];
	vm_offset_t at;
	int count;

	count = vm_fault_quick_hold_pages(map, (vm_offset_t)WRITABLE + 100, 200, VM_PROT_READ | VM_PROT_WRITE,
	    held, nitems(held));
	FACT("vm_fault_quick_hold_pages", "%d", count);
	at = kva_alloc(PAGE_SIZE);
	pmap_qenter(at, held, 1);
	pmap_qremove(at, 1);
	kva_free(at, PAGE_SIZE);
	vm_page_unhold_pages(held, count);
	count = vm_fault_quick_hold_pages(map, (vm_offset_t)READABLE - 1, 2, VM_PROT_READ, held, nitems(held));
	FACT("vm_fault_quick_hold_pages over a border", "%d", count);
	if (count > 0)
		vm_page_unhold_pages(held, count);
	FACT("vm_fault_quick_hold_pages of nothing", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)WRITABLE, 0, VM_PROT_READ, held, nitems(held)));
	FACT("vm_fault_quick_hold_pages to write where only reading is allowed", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)READABLE, 8, VM_PROT_READ | VM_PROT_WRITE, held, nitems(held)));
	FACT("vm_fault_quick_hold_pages over an end", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)NOTHING - 8, 16, VM_PROT_READ, held, nitems(held)));
	FACT("vm_fault_quick_hold_pages of the kernel's", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)KERNEL, 8, VM_PROT_READ, held, nitems(held)));
	FACT("kern_mlock", "%d", kern_mlock(curproc, curthread->td_ucred, (uintptr_t)WRITABLE, 8));
	FACT("kern_mlock of nothing", "%d", kern_mlock(curproc, curthread->td_ucred, (uintptr_t)WRITABLE, 0));
	FACT("kern_mlock of what is not mapped", "%d",
	    kern_mlock(curproc, curthread->td_ucred, (uintptr_t)NOTHING, 8));
	FACT("kern_mlock over the end of all", "%d",
	    kern_mlock(curproc, curthread->td_ucred, (uintptr_t)-8ul, 16));
}

/* Descriptors. */

#define	GET(how, fd, rights) do {						\
	fp = NULL;								\
	error = how(curthread, fd, rights, &fp);				\
	FACT(#how " of " #fd " for " #rights, "%d", error);			\
	if (error == 0)								\
		fdrop(fp, curthread);						\
} while (0)

static void
descriptors(void)
{
	struct file *fp, *again;
	struct vnode *vp;
	void *one, *two;
	u_int count;
	int error;

	GET(fget, FD_ABSENT, &cap_no_rights);
	GET(fget, -1, &cap_no_rights);
	GET(fget, FD_READ, &cap_no_rights);
	GET(fget_read, FD_READ, &cap_pread_rights);
	GET(fget_write, FD_READ, &cap_pwrite_rights);
	GET(fget_read, FD_WRITE, &cap_pread_rights);
	GET(fget_write, FD_WRITE, &cap_pwrite_rights);
	GET(fget, FD_WRITE, &cap_fsync_rights);
	GET(fget, FD_PATH, &cap_no_rights);
	GET(fget_read, FD_PATH, &cap_pread_rights);
	GET(fget, FD_CAP_READ, &cap_no_rights);
	GET(fget_read, FD_CAP_READ, &cap_pread_rights);
	GET(fget_write, FD_CAP_READ, &cap_pwrite_rights);
	GET(fget, FD_CAP_READ, &cap_fsync_rights);

	error = fget(curthread, FD_READ, &cap_no_rights, &fp);
	count = refcount_load(&fp->f_count);
	error = fget(curthread, FD_READ, &cap_no_rights, &again);
	FACT("fget again", "%d, the same %d, %u more references", error, fp == again,
	    refcount_load(&fp->f_count) - count);
	fdrop(again, curthread);
	FACT("fdrop", "%u more references", refcount_load(&fp->f_count) - count);
	vp = fp->f_vnode;
	FACT("a file's vnode", "type %d, is a disk %d", fp->f_type, vn_isdisk(vp));
	one = rangelock_tryrlock(&vp->v_rl, 0, 100, VI_MTX(vp));
	two = rangelock_tryrlock(&vp->v_rl, 50, 150, VI_MTX(vp));
	FACT("rangelock_tryrlock", "%d, over it %d", one != NULL, two != NULL);
	rangelock_unlock(&vp->v_rl, one, VI_MTX(vp));
	rangelock_unlock(&vp->v_rl, two, VI_MTX(vp));
	fdrop(fp, curthread);
}

/* Sockets. */

static void
sockets(void)
{
	char bytes[16] = "sixteen bytes..";
	struct iovec iov;
	struct file *files[2];
	struct uio uio;
	int error, flags, i;

	if (fget(curthread, FD_SOCKET, &cap_no_rights, &files[0]) != 0 ||
	    fget(curthread, FD_PEER, &cap_no_rights, &files[1]) != 0) {
		FACT("sockets", "there are none");
		return;
	}
	for (i = 0; i < 4; i++) {
		probe_uio(&uio, &iov, bytes, sizeof(bytes), UIO_SYSSPACE, i == 1 ? UIO_WRITE : UIO_READ);
		flags = MSG_NBIO;
		if (i == 1) {
			error = sosend(files[1]->f_data, NULL, &uio, NULL, NULL, flags, curthread);
			FACT("sosend", "%d, %zd bytes left", error, uio.uio_resid);
		} else {
			uio.uio_rw = UIO_READ;
			if (i == 2)
				iov.iov_len = uio.uio_resid = 4;
			error = soreceive(files[0]->f_data, NULL, &uio, NULL, NULL, &flags);
			FACT("soreceive", "%d, %zd bytes left, flags %x", error, uio.uio_resid, flags & MSG_EOR);
		}
	}
	fdrop(files[0], curthread);
	fdrop(files[1], curthread);
}

/* Signals: of the running process, to which they are never delivered. */

void
probe_siginfo(ksiginfo_t *ksi, int signo)
{
	ksiginfo_init(ksi);
	ksi->ksi_signo = signo;
	ksi->ksi_code = SI_ASYNCIO;
	ksi->ksi_flags |= KSI_EXT | KSI_INS;
}

/* Describes a transfer to or from so many bytes of memory, in one piece. */
void
probe_uio(struct uio *uio, struct iovec *iov, void *memory, size_t len, enum uio_seg space, enum uio_rw way)
{
	iov->iov_base = memory;
	iov->iov_len = len;
	memset(uio, 0, sizeof(*uio));
	uio->uio_iov = iov;
	uio->uio_iovcnt = 1;
	uio->uio_resid = len;
	uio->uio_segflg = space;
	uio->uio_rw = way;
	uio->uio_td = curthread;
}

/* Whether the running thread has a signal: a sleep that signals end says so. */
int
probe_signalled(void)
{
	int error;

	mtx_lock(&probe_lock);
	error = msleep(&chan, &probe_lock, PCATCH, "probe", 1);
	mtx_unlock(&probe_lock);
	return (error);
}

static void
interrupter(struct helper *h)
{
	struct {
		struct proc *p;
		ksiginfo_t *ksi;
	} *its = h->argument;

	probe_after_ms(20);
	PROC_LOCK(its->p);
	h->value = tdsendsignal(its->p, NULL, SIGUSR1, its->ksi);
	PROC_UNLOCK(its->p);
}

static void
signals(void)
{
	ksiginfo_t first, second;
	struct {
		struct proc *p;
		ksiginfo_t *ksi;
	} argument;
	struct helper h;
	struct proc *p = curproc;
	struct sigevent sev;
	struct thread *td;
	int error, queued;

	FACT("a sleep without a signal", "%d", probe_signalled());
	probe_siginfo(&first, SIGUSR1);
	probe_siginfo(&second, SIGUSR1);
	FACT("sigqueue_take of what is not queued", "queued %d", KSI_ONQ(&first) != 0);
	PROC_LOCK(p);
	sigqueue_take(&first);
	error = tdsendsignal(p, NULL, SIGUSR1, &first);
	queued = KSI_ONQ(&first) != 0;
	PROC_UNLOCK(p);
	FACT("tdsendsignal to the process", "%d, queued %d", error, queued);
	FACT("a sleep with a signal", "%d", probe_signalled());
	mtx_lock(&probe_lock);
	error = msleep(&chan, &probe_lock, 0, "probe", 1);
	mtx_unlock(&probe_lock);
	FACT("a sleep with a signal that does not catch it", "%d", error);
	PROC_LOCK(p);
	error = tdsendsignal(p, NULL, SIGUSR1, &second);
	sigqueue_take(&first);
	queued = KSI_ONQ(&first) != 0;
	PROC_UNLOCK(p);
	FACT("a second of the number, and the first taken back", "%d, queued %d and %d", error, queued,
	    KSI_ONQ(&second) != 0);
	FACT("a sleep with the second", "%d", probe_signalled());
	PROC_LOCK(p);
	sigqueue_take(&second);
	PROC_UNLOCK(p);
	FACT("a sleep with both taken back", "%d", probe_signalled());

	PROC_LOCK(p);
	error = tdsendsignal(p, curthread, SIGUSR1, &first);
	queued = KSI_ONQ(&first) != 0;
	PROC_UNLOCK(p);
	FACT("tdsendsignal to the thread", "%d, queued %d, a sleep %d", error, queued, probe_signalled());
	PROC_LOCK(p);
	sigqueue_take(&first);
	PROC_UNLOCK(p);
	FACT("a sleep when that is taken back", "%d", probe_signalled());

	probe_siginfo(&first, SIGURG);
	PROC_LOCK(p);
	error = tdsendsignal(p, NULL, SIGURG, &first);
	queued = KSI_ONQ(&first) != 0;
	sigqueue_take(&first);
	PROC_UNLOCK(p);
	FACT("tdsendsignal of what is ignored", "%d, queued %d", error, queued);

	probe_siginfo(&first, SIGUSR1);
	argument.p = p;
	argument.ksi = &first;
	probe_start(&h, interrupter, &argument);
	mtx_lock(&probe_lock);
	error = msleep(&chan, &probe_lock, PCATCH, "probe", 10 * hz);
	mtx_unlock(&probe_lock);
	probe_join(&h);
	PROC_LOCK(p);
	sigqueue_take(&first);
	PROC_UNLOCK(p);
	FACT("a sleep that a signal ends", "%d", error);

	memset(&sev, 0, sizeof(sev));
	sev.sigev_notify = SIGEV_SIGNAL;
	td = curthread;
	error = sigev_findtd(p, &sev, &td);
	FACT("sigev_findtd of a process", "%d, none %d, locked %d", error, td == NULL, PROC_LOCKED(p));
	if (error == 0)
		PROC_UNLOCK(p);
	sev.sigev_notify = SIGEV_THREAD_ID;
	sev.sigev_notify_thread_id = curthread->td_tid;
	error = sigev_findtd(p, &sev, &td);
	FACT("sigev_findtd of the thread", "%d, itself %d, locked %d", error, td == curthread,
	    PROC_LOCKED(p));
	if (error == 0)
		PROC_UNLOCK(p);
	sev.sigev_notify_thread_id = 1;
	error = sigev_findtd(p, &sev, &td);
	FACT("sigev_findtd of no thread", "%d, locked %d", error, PROC_LOCKED(p));
	if (error == 0)
		PROC_UNLOCK(p);
}

/* Kernel events, with a filter of our own. */

static struct knlist list;
static struct mtx list_lock;
static int active, slow;

static int
probe_attach(struct knote *kn)
{
	FACT("f_attach", "in flux %d, detached %d, data %d, flags %x", kn->kn_influx,
	    (kn->kn_status & KN_DETACHED) != 0, (int)kn->kn_sdata, kn->kn_flags);
	if (kn->kn_id == 666)
		return (EXDEV);
	knlist_add(&list, kn, 0);
	return (0);
}

static void
probe_detach(struct knote *kn)
{
	FACT("f_detach", "in flux %d, list locked %d, on a list %d", kn->kn_influx, mtx_owned(&list_lock),
	    kn->kn_knlist != NULL);
	if (slow) {
		mtx_lock(&probe_lock);
		probe_steps = 1;
		wakeup(&probe_steps);
		mtx_unlock(&probe_lock);
		probe_after_ms(50);
		probe_steps = 2;
	}
	if (kn->kn_knlist != NULL)
		knlist_remove(&list, kn, 0);
}

static int
probe_event(struct knote *kn, long hint)
{
	FACT("f_event", "hint %ld, list locked %d, in flux %d", hint, mtx_owned(&list_lock), kn->kn_influx);
	kn->kn_data = hint;
	return (active);
}

static struct filterops probe_filter = {
	.f_attach = probe_attach,
	.f_detach = probe_detach,
	.f_event = probe_event,
};

static int
change(int kq, uintptr_t ident, int flags, intptr_t data)
{
	struct kevent kev;

	EV_SET(&kev, ident, EVFILT_SENDFILE, flags, 0, data, NULL);
	return (kqfd_register(kq, &kev, curthread, M_WAITOK));
}

static void
tell(long hint)
{
	mtx_lock(&list_lock);
	KNOTE_LOCKED(&list, hint);
	mtx_unlock(&list_lock);
}

static struct knote *
first_note(void)
{
	return (SLIST_FIRST(&list.kl_list));
}

static void
note_state(const char *when)
{
	struct knote *kn = first_note();

	if (kn == NULL) {
		FACT("the list", "%s: empty", when);
		return;
	}
	FACT("the list", "%s: status %x, flags %x, in flux %d", when, kn->kn_status, kn->kn_flags,
	    kn->kn_influx);
}

/* Takes all notes off while one of them is on its way out. */
static void
clearer(struct helper *h)
{
	mtx_lock(&probe_lock);
	while (probe_steps < 1)
		msleep(&probe_steps, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
	/* A note that is in flux is not told. */
	tell(77);
	knlist_cleardel(&list, curthread, 0, 1);
	h->value = probe_steps;
}

static void
kevents(void)
{
	struct helper h;
	int error, kq;

	error = kern_kqueue(curthread, 0, NULL);
	kq = curthread->td_retval[0];
	curthread->td_retval[0] = 0;
	FACT("kern_kqueue", "%d", error);
	mtx_init(&list_lock, "aio_rs_probe list", NULL, MTX_DEF);
	knlist_init_mtx(&list, &list_lock);
	FACT("a filter that nobody has", "%d", change(kq, 1, EV_ADD, 0));
	FACT("kqueue_del_filteropts of it", "%d", kqueue_del_filteropts(EVFILT_SENDFILE));
	FACT("kqueue_add_filteropts", "%d", kqueue_add_filteropts(EVFILT_SENDFILE, &probe_filter));
	FACT("kqueue_add_filteropts again", "%d", kqueue_add_filteropts(EVFILT_SENDFILE, &probe_filter));
	FACT("kqueue_add_filteropts where there is one", "%d", kqueue_add_filteropts(EVFILT_READ, &probe_filter));
	FACT("kqueue_add_filteropts out of range", "%d", kqueue_add_filteropts(1, &probe_filter));
	FACT("kqfd_register of no descriptor", "%d", change(FD_ABSENT, 1, EV_ADD, 0));
	FACT("kqfd_register of a file", "%d", change(FD_READ, 1, EV_ADD, 0));
	FACT("kqfd_register without EV_ADD", "%d", change(kq, 1, EV_ENABLE, 0));
	FACT("EV_DELETE of nothing", "%d", change(kq, 1, EV_DELETE, 0));
	FACT("an attach that fails", "%d", change(kq, 666, EV_ADD, 1));
	note_state("then");

	FACT("EV_ADD", "%d", change(kq, 1, EV_ADD | EV_CLEAR | EV_FLAG1, 5));
	note_state("after EV_ADD");
	FACT("kqueue_del_filteropts with a note", "%d", kqueue_del_filteropts(EVFILT_SENDFILE));
	tell(11);
	note_state("after an event that is none");
	FACT("EV_ADD again", "%d", change(kq, 1, EV_ADD, 6));
	FACT("the note's data", "%d", (int)first_note()->kn_sdata);
	active = 1;
	tell(12);
	note_state("after an event");
	tell(13);
	FACT("EV_DISABLE", "%d", change(kq, 1, EV_DISABLE, 7));
	note_state("after EV_DISABLE");
	FACT("EV_ENABLE", "%d", change(kq, 1, EV_ENABLE, 8));
	note_state("after EV_ENABLE");
	FACT("both", "%d", change(kq, 1, EV_ENABLE | EV_DISABLE, 8));
	active = 0;
	FACT("EV_DELETE", "%d", change(kq, 1, EV_DELETE, 0));
	note_state("after EV_DELETE");

	FACT("EV_ADD, disabled", "%d", change(kq, 2, EV_ADD | EV_DISABLE, 0));
	note_state("then");
	active = 1;
	tell(21);
	note_state("after an event");
	FACT("EV_ENABLE of an active one", "%d", change(kq, 2, EV_ENABLE, 0));
	note_state("then");
	mtx_lock(&list_lock);
	knlist_cleardel(&list, curthread, 1, 1);
	mtx_unlock(&list_lock);
	note_state("after knlist_cleardel");
	FACT("EV_DELETE of what is gone", "%d", change(kq, 2, EV_DELETE, 0));

	FACT("EV_ADD of an active one", "%d", change(kq, 3, EV_ADD | EV_ONESHOT, 0));
	note_state("then");
	knlist_cleardel(&list, curthread, 0, 0);
	note_state("after knlist_clear");
	FACT("EV_ADD of what is off its list", "%d", change(kq, 3, EV_ADD, 0));
	FACT("EV_DELETE of it", "%d", change(kq, 3, EV_DELETE, 0));
	active = 0;

	FACT("EV_ADD, the fourth", "%d", change(kq, 4, EV_ADD, 0));
	FACT("EV_ADD, the fifth", "%d", change(kq, 5, EV_ADD, 0));
	FACT("first on the list", "%d", (int)first_note()->kn_id);
	slow = 1;
	probe_steps = 0;
	probe_start(&h, clearer, NULL);
	error = change(kq, 4, EV_DELETE, 0);
	slow = 0;
	probe_join(&h);
	FACT("EV_DELETE against knlist_cleardel", "%d, which ended at step %d", error, h.value);
	note_state("then");

	FACT("EV_ADD, the sixth", "%d", change(kq, 6, EV_ADD, 0));
	FACT("kern_close", "%d", kern_close(curthread, kq));
	note_state("after the kqueue's close");
	FACT("kqueue_del_filteropts", "%d", kqueue_del_filteropts(EVFILT_SENDFILE));
	FACT("kqueue_del_filteropts again", "%d", kqueue_del_filteropts(EVFILT_SENDFILE));
	knlist_destroy(&list);
	mtx_destroy(&list_lock);
}

/* Events of processes. */

static int order[4], called;

/* The name of the processes that are looked at. */
#define	EVENTFUL	"aio_rs_eventful"

static void
ended(void *argument, struct proc *p)
{
	/* Helpers of before may be on their way out. */
	if (strcmp(p->p_comm, EVENTFUL) != 0)
		return;
	mtx_lock(&probe_lock);
	if (called < nitems(order))
		order[called++] = (int)(uintptr_t)argument;
	wakeup(&called);
	mtx_unlock(&probe_lock);
}

static void
nothing(struct helper *h)
{
}

static void
events(void)
{
	eventhandler_tag late, early, same;
	struct helper h;

	late = EVENTHANDLER_REGISTER(process_exit, ended, (void *)1, 200);
	early = EVENTHANDLER_REGISTER(process_exit, ended, (void *)2, 100);
	same = EVENTHANDLER_REGISTER(process_exit, ended, (void *)3, 100);
	if (start_named(&h, nothing, NULL, EVENTFUL) != 0)
		panic("aio_rs_probe: no process");
	probe_join(&h);
	mtx_lock(&probe_lock);
	while (called < 3)
		msleep(&called, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
	FACT("process_exit of a process of the kernel's", "%d, %d, %d", order[0], order[1], order[2]);
	EVENTHANDLER_DEREGISTER(process_exit, early);
	called = 0;
	if (start_named(&h, nothing, NULL, EVENTFUL) != 0)
		panic("aio_rs_probe: no process");
	probe_join(&h);
	mtx_lock(&probe_lock);
	while (called < 2)
		msleep(&called, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
	FACT("with one deregistered", "%d, %d", order[0], order[1]);
	EVENTHANDLER_DEREGISTER(process_exit, late);
	EVENTHANDLER_DEREGISTER(process_exit, same);
}

/* Sysctls. */

static int
number_of(const char *name)
{
	int name2number[2] = { CTL_SYSCTL, CTL_SYSCTL_NAME2OID }, numbers[CTL_MAXNAME];
	size_t len = sizeof(numbers), got = 0;
	int error;

	error = kernel_sysctl(curthread, name2number, 2, numbers, &len, __DECONST(char *, name), strlen(name),
	    &got, 0);
	return (error != 0 ? -error : (int)(got / sizeof(int)));
}

static int constant = 7;

static void
sysctls(void)
{
	struct sysctl_ctx_list ctx, other;
	struct sysctl_oid *leaf, *node, *theirs, *twice;
	int name2number[2] = { CTL_SYSCTL, CTL_SYSCTL_NAME2OID }, numbers[CTL_MAXNAME], error;
	size_t len = sizeof(int), got = 0;

	FACT("sysctl_ctx_init", "%d", sysctl_ctx_init(&ctx));
	sysctl_ctx_init(&other);
	FACT("a name that is not there", "%d", number_of("vfs.nothing"));
	FACT("a name that is there", "%d", number_of("vfs.aio.max_aio_queue"));
	node = SYSCTL_ADD_NODE(&ctx, SYSCTL_STATIC_CHILDREN(_vfs), OID_AUTO, "aio_rs_probe", CTLFLAG_RD | CTLFLAG_MPSAFE,
	    NULL, "probe");
	leaf = SYSCTL_ADD_INT(&ctx, SYSCTL_CHILDREN(node), OID_AUTO, "leaf", CTLFLAG_RD | CTLFLAG_MPSAFE, &constant,
	    0, "probe");
	FACT("sysctl_add_oid", "node %d, leaf %d", node != NULL, leaf != NULL);
	FACT("their names", "%d, %d", number_of("vfs.aio_rs_probe"), number_of("vfs.aio_rs_probe.leaf"));
	twice = SYSCTL_ADD_NODE(&other, SYSCTL_STATIC_CHILDREN(_vfs), OID_AUTO, "aio_rs_probe", CTLFLAG_RD | CTLFLAG_MPSAFE,
	    NULL, "probe");
	FACT("a node again", "the same %d", twice == node);
	theirs = SYSCTL_ADD_INT(&other, SYSCTL_CHILDREN(node), OID_AUTO, "theirs", CTLFLAG_RD | CTLFLAG_MPSAFE,
	    &constant, 0, "probe");
	FACT("a leaf of another context", "%d", theirs != NULL);
	sysctl_wlock();
	error = sysctl_find_oid((int []){ 1, 0x7fffffff }, 2, &twice, NULL, NULL);
	sysctl_wunlock();
	FACT("sysctl_find_oid of nothing", "%d", error);
	error = kernel_sysctl(curthread, name2number, 2, numbers, &len, "vfs.aio.max_aio_queue",
	    strlen("vfs.aio.max_aio_queue"), &got, 0);
	FACT("kernel_sysctl without room", "%d", error);
	FACT("sysctl_ctx_free of the other", "%d", sysctl_ctx_free(&other));
	FACT("the names then", "%d, %d", number_of("vfs.aio_rs_probe.leaf"), number_of("vfs.aio_rs_probe.theirs"));
	sysctl_ctx_init(&other);
	theirs = SYSCTL_ADD_INT(&other, SYSCTL_CHILDREN(node), OID_AUTO, "theirs", CTLFLAG_RD | CTLFLAG_MPSAFE,
	    &constant, 0, "probe");
	FACT("a leaf of another context below it", "%d", theirs != NULL);
	FACT("sysctl_ctx_free above another's leaf", "%d", sysctl_ctx_free(&ctx));
	FACT("the names after that", "%d, %d, %d", number_of("vfs.aio_rs_probe"), number_of("vfs.aio_rs_probe.leaf"),
	    number_of("vfs.aio_rs_probe.theirs"));
	FACT("sysctl_ctx_free of the other's leaf", "%d", sysctl_ctx_free(&other));
	FACT("sysctl_ctx_free", "%d", sysctl_ctx_free(&ctx));
	FACT("the name of what is gone", "%d", number_of("vfs.aio_rs_probe"));
}

/* The rest. */

static void
rest(void)
{
	struct timeval last;
	struct mtx mutex;
	int a, b, c, count = 0;

	memset(&last, 0, sizeof(last));
	a = eventratecheck(&last, &count, 2);
	b = eventratecheck(&last, &count, 2);
	c = eventratecheck(&last, &count, 2);
	FACT("eventratecheck of two a second", "%d %d %d, count %d", a, b, c, count);
	FACT("eventratecheck without limit", "%d", eventratecheck(&last, &count, -1));
	FACT("eventratecheck of none", "%d", eventratecheck(&last, &count, 0));
	memset(&mutex, 0, sizeof(mutex));
	FACT("a mutex of zeroes", "initialised %d", mtx_initialized(&mutex) != 0);
	mtx_init(&mutex, "aio_rs_probe mutex", NULL, MTX_DEF);
	FACT("mtx_init", "initialised %d, owned %d, name %s", mtx_initialized(&mutex) != 0, mtx_owned(&mutex),
	    mutex.lock_object.lo_name);
	mtx_lock(&mutex);
	FACT("mtx_lock", "owned %d", mtx_owned(&mutex));
	mtx_unlock(&mutex);
	mtx_destroy(&mutex);
	FACT("mtx_destroy", "initialised %d", mtx_initialized(&mutex) != 0);
	FACT("printf", "%d %u %x %s", -1, 1u, 255, "text");
}

static int
modevent(module_t mod __unused, int event, void *arg __unused)
{
	switch (event) {
	case MOD_LOAD:
		mtx_init(&probe_lock, "aio_rs_probe", NULL, MTX_DEF);
		sleeping();
		processes();
		memory();
		user_memory();
		pages();
		descriptors();
		sockets();
		signals();
		kevents();
		events();
		sysctls();
		probe_sysctls();
		rest();
		probe_calls();
		probe_files();
		probe_disks();
		probe_processes();
		probe_sockets();
		probe_pipes();
		probe_signals();
		probe_process_events();
		return (0);
	case MOD_UNLOAD:
		/* The program did what it does in between. */
		probe_process_events_end();
		probe_signals_delivered();
		probe_disks_gone();
		/* Whoever said that it has ended is out of here. */
		probe_after_ms(200);
		mtx_destroy(&probe_lock);
		printf("aio_rs_probe: end\n");
		return (0);
	case MOD_QUIESCE:
	case MOD_SHUTDOWN:
		return (0);
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t aio_rs_probe_mod = {
	"aio_rs_probe",
	modevent,
	NULL
};

DECLARE_MODULE_TIED(aio_rs_probe, aio_rs_probe_mod, SI_SUB_EXEC, SI_ORDER_ANY);
MODULE_VERSION(aio_rs_probe, 1);
