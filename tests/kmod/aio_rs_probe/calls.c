/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The table of system calls, the built-in AIO of a process that has none, handlers of sysctls, and
 * the rest.
 */
#include "probe.h"

#include <sys/capsicum.h>
#include <sys/counter.h>
#include <sys/file.h>
#include <sys/kthread.h>
#include <sys/limits.h>
#include <sys/syscall.h>
#include <sys/syscallsubr.h>
#include <sys/sysctl.h>
#include <sys/sysent.h>
#include <sys/time.h>
#include <sys/uio.h>

#include <machine/cpu.h>

/* In our own words: their arguments are words of the user's. */
int	sys_aio_cancel(struct thread *, void *);
int	sys_aio_error(struct thread *, void *);
int	sys_aio_return(struct thread *, void *);
int	sys_aio_suspend(struct thread *, void *);

static const struct {
	int		 number;
	const char	*name;
} calls[] = {
	{ SYS_aio_read, "aio_read" },
	{ SYS_aio_write, "aio_write" },
	{ SYS_lio_listio, "lio_listio" },
	{ SYS_aio_return, "aio_return" },
	{ SYS_aio_suspend, "aio_suspend" },
	{ SYS_aio_cancel, "aio_cancel" },
	{ SYS_aio_error, "aio_error" },
	{ 318, "freebsd6_aio_read" },
	{ 319, "freebsd6_aio_write" },
	{ 320, "freebsd6_lio_listio" },
	{ SYS_aio_waitcomplete, "aio_waitcomplete" },
	{ SYS_aio_fsync, "aio_fsync" },
	{ SYS_aio_mlock, "aio_mlock" },
	{ SYS_aio_writev, "aio_writev" },
	{ SYS_aio_readv, "aio_readv" },
};

static void
table(void)
{
	const struct sysent *entry;
	int i;

	for (i = 0; i < nitems(calls); i++) {
		entry = &sysent[calls[i].number];
		FACT("sysent", "%s: %d arguments, in capability mode %d", calls[i].name, entry->sy_narg,
		    (entry->sy_flags & SYF_CAPENABLED) != 0);
	}
	FACT("brwsection", "below the table %d", (uintptr_t)brwsection <= (uintptr_t)sysent);
}

#define	BUILTIN(what, function, ...) do {					\
	long words[] = { __VA_ARGS__ };						\
	int its;								\
										\
	curthread->td_retval[0] = -7;						\
	its = function(curthread, words);					\
	FACT(what, "%d, answer %d", its, (int)curthread->td_retval[0]);	\
	curthread->td_retval[0] = 0;						\
} while (0)

/* A process that has asked the built-in for nothing. */
static void
builtin(void)
{
	BUILTIN("sys_aio_error", sys_aio_error, (long)WRITABLE);
	BUILTIN("sys_aio_return", sys_aio_return, (long)WRITABLE);
	BUILTIN("sys_aio_cancel", sys_aio_cancel, FD_READ, 0);
	BUILTIN("sys_aio_cancel of one", sys_aio_cancel, FD_READ, (long)WRITABLE);
	BUILTIN("sys_aio_cancel of no descriptor", sys_aio_cancel, FD_ABSENT, 0);
	BUILTIN("sys_aio_suspend", sys_aio_suspend, (long)WRITABLE, 1, 0);
	BUILTIN("sys_aio_suspend of nothing", sys_aio_suspend, (long)WRITABLE, 0, 0);
	BUILTIN("sys_aio_suspend of less", sys_aio_suspend, (long)WRITABLE, -1, 0);
	BUILTIN("sys_aio_suspend of many", sys_aio_suspend, (long)WRITABLE, 257, 0);
	BUILTIN("sys_aio_suspend from nowhere", sys_aio_suspend, (long)NOTHING, 1, 0);
	BUILTIN("sys_aio_suspend for a time from nowhere", sys_aio_suspend, (long)WRITABLE, 1, (long)NOTHING);
	BUILTIN("sys_aio_suspend for a time that is none", sys_aio_suspend, (long)WRITABLE, 1, (long)WRITABLE);
}

static void
user_memory(void)
{
	struct uio *uio;
	u_long first = fuword(VECTOR + 8), second = fuword(VECTOR + 24);

	FACT("suword over a border", "%d, %lx before it", suword(READABLE - 4, -1),
	    (u_long)(uint32_t)fuword32(READABLE - 4));
	FACT("suword32 over a border", "%d, %x before it", suword32(READABLE - 2, -1),
	    fuword32(READABLE - 4));
	FACT("fuword over a border", "%lx", fuword(READABLE - 4));
	suword(VECTOR + 8, LONG_MAX);
	suword(VECTOR + 24, 1);
	FACT("copyinuio of more than may be", "%d", copyinuio((struct iovec *)VECTOR, 2, &uio));
	suword(VECTOR + 24, 0);
	if (copyinuio((struct iovec *)VECTOR, 2, &uio) == 0) {
		FACT("copyinuio of as much as may be", "%zd bytes", uio->uio_resid);
		free(uio, M_IOV);
	}
	suword(VECTOR + 8, -1);
	FACT("copyinuio of less than nothing", "%d", copyinuio((struct iovec *)VECTOR, 1, &uio));
	suword(VECTOR + 8, 0);
	suword(VECTOR + 24, 5);
	if (copyinuio((struct iovec *)VECTOR, 2, &uio) == 0) {
		uint32_t word = 0;
		int error;

		uio->uio_rw = UIO_WRITE;
		uio->uio_td = curthread;
		error = uiomove(&word, 3, uio);
		FACT("uiomove behind an element of nothing", "%d, word %x, %zd bytes left in %d elements", error,
		    word, uio->uio_resid, uio->uio_iovcnt);
		error = uiomove(&word, 0, uio);
		FACT("uiomove of nothing", "%d, %zd bytes left in %d elements", error, uio->uio_resid,
		    uio->uio_iovcnt);
		free(uio, M_IOV);
	}
	suword(VECTOR + 8, first);
	suword(VECTOR + 24, second);
}

static void
kernel_memory(void)
{
	char from[32], to[32];
	/* No constant, or the compiler would move them itself. */
	volatile size_t count = 20;
	int i;

	for (i = 0; i < sizeof(from); i++)
		from[i] = i;
	memcpy(to, from, sizeof(to));
	memmove(to + 1, to, count);
	FACT("memmove upwards", "%d %d %d", to[1], to[20], to[21]);
	memmove(to, to + 1, count);
	FACT("memmove downwards", "%d %d %d", to[0], to[19], to[20]);
}

static void
rates(void)
{
	static unsigned left = 2;
	struct timeval last;
	struct bintime before, after;
	sbintime_t before_it, behind_it, first_before = 0, first_behind = 0;
	int allowed, i, count = 0, wrong = 0;

	counted_warning(&left, "aio_rs_probe: a counted warning");
	FACT("counted_warning", "%u left", left);
	counted_warning(&left, "aio_rs_probe: the last counted warning");
	counted_warning(&left, "aio_rs_probe: one too many");
	FACT("counted_warning of none", "%u left", left);
	/* A second begins with its first event, whenever that is; a slow machine sleeps for longer. */
	memset(&last, 0, sizeof(last));
	for (i = 0; i < 6; i++) {
		probe_after_ms(600);
		before_it = sbinuptime();
		allowed = eventratecheck(&last, &count, 1);
		behind_it = sbinuptime();
		if (i > 0 && before_it - first_behind > SBT_1S + 2 * tick_sbt)
			wrong += !allowed || count != 1;
		else if (i > 0 && behind_it - first_before < SBT_1S - 2 * tick_sbt)
			wrong += allowed || count < 2;
		if (allowed) {
			first_before = before_it;
			first_behind = behind_it;
		}
	}
	FACT("eventratecheck of one a second, every 0.6 seconds", "%d answers are wrong", wrong);
	binuptime(&before);
	probe_after_ms(1);
	binuptime(&after);
	FACT("binuptime", "goes on %d", after.sec > before.sec ||
	    (after.sec == before.sec && after.frac > before.frac));
	FACT("tc_precexp", "%d", tc_precexp);
}

static void
descriptors(void)
{
	int error;

	FACT("kern_close of no descriptor", "%d", kern_close(curthread, FD_ABSENT));
	error = kern_kqueue(curthread, 0, NULL);
	FACT("kern_kqueue and kern_close", "%d, %d", error, kern_close(curthread, curthread->td_retval[0]));
	FACT("kern_close again", "%d", kern_close(curthread, curthread->td_retval[0]));
	curthread->td_retval[0] = 0;
}

void
probe_calls(void)
{
	table();
	builtin();
	user_memory();
	kernel_memory();
	rates();
	descriptors();
}

/* Handlers of sysctls, with requests of our own. */

static size_t told;
static const void *told_from;
static long told_value;
static int out_error, asked;

static int
out(struct sysctl_req *req, const void *from, size_t len)
{
	told += len;
	told_from = from;
	told_value = 0;
	if (from != NULL)
		memcpy(&told_value, from, MIN(len, sizeof(told_value)));
	return (out_error);
}

static int
in(struct sysctl_req *req, void *to, size_t len)
{
	asked++;
	if (req->newlen - req->newidx < len)
		return (EINVAL);
	memcpy(to, (const char *)req->newptr + req->newidx, len);
	req->newidx += len;
	return (0);
}

static int
handle(int (*handler)(SYSCTL_HANDLER_ARGS), void *arg1, intmax_t arg2, const void *new, size_t len, bool reads)
{
	struct sysctl_oid oid;
	struct sysctl_req req;
	char room[32];

	memset(&oid, 0, sizeof(oid));
	oid.oid_kind = CTLFLAG_RD;
	memset(&req, 0, sizeof(req));
	req.td = curthread;
	req.oldptr = reads ? room : NULL;
	req.oldlen = reads ? sizeof(room) : 0;
	req.oldfunc = out;
	req.newptr = new;
	req.newlen = len;
	req.newfunc = in;
	told = asked = 0;
	return (handler(&oid, arg1, arg2, &req));
}

static int
numbers_of(const char *name, int *numbers)
{
	int name2number[2] = { CTL_SYSCTL, CTL_SYSCTL_NAME2OID };
	size_t len = (CTL_MAXNAME - 1) * sizeof(int), got = 0;

	if (kernel_sysctl(curthread, name2number, 2, numbers, &len, __DECONST(char *, name), strlen(name), &got,
	    0) != 0)
		return (0);
	return (got / sizeof(int));
}

static void
finds(void)
{
	struct sysctl_oid *oid = NULL;
	int count, error, index = -1, numbers[CTL_MAXNAME];

	count = numbers_of("vfs.aio.max_aio_queue", numbers);
	sysctl_wlock();
	error = sysctl_find_oid(numbers, count, &oid, &index, NULL);
	FACT("sysctl_find_oid", "%d, %s, index %d, kind %x", error, oid->oid_name, index,
	    oid->oid_kind & CTLTYPE);
	error = sysctl_find_oid(numbers, count - 1, &oid, &index, NULL);
	FACT("sysctl_find_oid of a node", "%d, %s, index %d, kind %x", error, oid->oid_name, index,
	    oid->oid_kind & CTLTYPE);
	numbers[count] = 1;
	FACT("sysctl_find_oid below a leaf", "%d", sysctl_find_oid(numbers, count + 1, &oid, &index, NULL));
	numbers[count - 1] = 0x7fffffff;
	FACT("sysctl_find_oid beside it", "%d", sysctl_find_oid(numbers, count, &oid, &index, NULL));
	sysctl_wunlock();
}

void
probe_sysctls(void)
{
	struct sysctl_ctx_list ctx;
	struct sysctl_oid *leaf, *node, *twice;
	counter_u64_t counter;
	int error, value = 5, other = 6;
	char text[] = "text";

	finds();
	error = handle(sysctl_handle_int, &value, 0, NULL, 0, true);
	FACT("sysctl_handle_int", "%d, %zu bytes, %ld", error, told, told_value & 0xffffffff);
	error = handle(sysctl_handle_int, &value, 0, &other, sizeof(other), true);
	FACT("sysctl_handle_int with a new value", "%d, %zu bytes, %ld, then %d", error, told,
	    told_value & 0xffffffff, value);
	error = handle(sysctl_handle_int, &value, 0, &other, 2, true);
	FACT("sysctl_handle_int with half a value", "%d, then %d", error, value);
	error = handle(sysctl_handle_int, NULL, 9, NULL, 0, true);
	FACT("sysctl_handle_int of a constant", "%d, %zu bytes, %ld", error, told, told_value & 0xffffffff);
	error = handle(sysctl_handle_int, NULL, 9, &other, sizeof(other), true);
	FACT("sysctl_handle_int of a constant, with a new value", "%d, %zu bytes, asked %d", error, told, asked);
	out_error = ENOMEM;
	other = 7;
	error = handle(sysctl_handle_int, &value, 0, &other, sizeof(other), true);
	FACT("sysctl_handle_int that cannot tell", "%d, asked %d, then %d", error, asked, value);
	out_error = 0;
	error = handle(sysctl_handle_string, text, sizeof(text), NULL, 0, true);
	FACT("sysctl_handle_string", "%d, %zu bytes, %lx", error, told, told_value & 0xffffffff);
	error = handle(sysctl_handle_string, text, sizeof(text), NULL, 0, false);
	FACT("sysctl_handle_string without room", "%d, %zu bytes, from null %d", error, told, told_from == NULL);
	error = handle(sysctl_handle_string, text, sizeof(text), "new", 3, true);
	FACT("sysctl_handle_string with a short text", "%d, %zu bytes, then %s", error, told, text);
	error = handle(sysctl_handle_string, text, sizeof(text), "a long text", 11, true);
	FACT("sysctl_handle_string with a long text", "%d, then %s", error, text);
	counter = counter_u64_alloc(M_WAITOK);
	counter_u64_add(counter, 77);
	error = handle(sysctl_handle_counter_u64, &counter, 0, NULL, 0, true);
	FACT("sysctl_handle_counter_u64", "%d, %zu bytes, %ld", error, told, told_value);
	error = handle(sysctl_handle_counter_u64, &counter, 0, &other, 1, true);
	FACT("sysctl_handle_counter_u64 with a new value", "%d, %zu bytes, %ld, then %ld", error, told, told_value,
	    (long)counter_u64_fetch(counter));
	counter_u64_free(counter);

	sysctl_ctx_init(&ctx);
	node = SYSCTL_ADD_NODE(&ctx, SYSCTL_STATIC_CHILDREN(_vfs), OID_AUTO, "aio_rs_probe",
	    CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, "probe");
	leaf = SYSCTL_ADD_INT(&ctx, SYSCTL_CHILDREN(node), OID_AUTO, "leaf", CTLFLAG_RD | CTLFLAG_MPSAFE, &value, 0,
	    "probe");
	twice = SYSCTL_ADD_INT(&ctx, SYSCTL_CHILDREN(node), OID_AUTO, "leaf", CTLFLAG_RD | CTLFLAG_MPSAFE, &other, 0,
	    "probe");
	FACT("a leaf again", "null %d, the first is there %d", twice == NULL, leaf->oid_arg1 == &value);
	FACT("sysctl_ctx_free", "%d", sysctl_ctx_free(&ctx));
}
