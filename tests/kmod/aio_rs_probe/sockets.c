/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets: what their buffers say, what transfers come to at the borders, and the tasks of buffers.
 */
#include "probe.h"

#include <sys/capsicum.h>
#include <sys/file.h>
#include <sys/protosw.h>
#include <sys/socket.h>
#include <sys/socketvar.h>
#include <sys/taskqueue.h>
#include <sys/uio.h>

#include <net/vnet.h>

static char bytes[16384];

/* What is left after a transfer that does not wait for the peer. */
static ssize_t left;

static int
transfer(struct socket *so, enum uio_rw way, size_t len)
{
	struct iovec iov;
	struct uio uio;
	int error, flags = MSG_NBIO;

	probe_uio(&uio, &iov, bytes, len, UIO_SYSSPACE, way);
	if (way == UIO_READ)
		error = soreceive(so, NULL, &uio, NULL, NULL, &flags);
	else
		error = sosend(so, NULL, &uio, NULL, NULL, flags, curthread);
	left = uio.uio_resid;
	return (error);
}

#define	TRANSFER(what, so, way, len) do {					\
	int its = transfer(so, way, len);					\
	FACT(what, "%d, %zd bytes left", its, left);				\
} while (0)

/* Whether it can be read and written. */
static int
ready(struct socket *so)
{
	int result;

	SOCK_RECVBUF_LOCK(so);
	result = soreadable(so) != 0;
	SOCK_RECVBUF_UNLOCK(so);
	SOCK_SENDBUF_LOCK(so);
	if (sowriteable(so))
		result += 2;
	SOCK_SENDBUF_UNLOCK(so);
	return (result);
}

static struct socket *
of(int fd, struct file **fp)
{
	if (fget(curthread, fd, &cap_no_rights, fp) != 0)
		return (NULL);
	return ((*fp)->f_data);
}

static void
streams(struct socket *so, struct socket *peer)
{
	FACT("a stream", "type %d, connected %d, protocol's flags %x", so->so_type,
	    (so->so_state & SS_ISCONNECTED) != 0,
	    so->so_proto->pr_flags & (PR_ATOMIC | PR_ADDR | PR_CONNREQUIRED | PR_WANTRCVD));
	FACT("its buffers", "receiving %u from %d on, sending %u from %d on", so->so_rcv.sb_hiwat,
	    so->so_rcv.sb_lowat, so->so_snd.sb_hiwat, so->so_snd.sb_lowat);
	FACT("soreadable and sowriteable", "%d, peer %d", ready(so), ready(peer));
	TRANSFER("soreceive of nothing, where nothing is", so, UIO_READ, 0);
	TRANSFER("sosend of nothing", peer, UIO_WRITE, 0);
	TRANSFER("sosend", peer, UIO_WRITE, 1);
	FACT("soreadable and sowriteable with a byte", "%d, peer %d, there are %u", ready(so), ready(peer),
	    sbavail(&so->so_rcv));
	TRANSFER("sosend of more than there is room for", peer, UIO_WRITE, sizeof(bytes));
	FACT("soreadable and sowriteable when it is full", "%d, peer %d, there are %u", ready(so), ready(peer),
	    sbavail(&so->so_rcv));
	TRANSFER("sosend when it is full", peer, UIO_WRITE, 1);
	TRANSFER("soreceive of a part", so, UIO_READ, 100);
	FACT("soreadable and sowriteable then", "%d, peer %d, there are %u", ready(so), ready(peer),
	    sbavail(&so->so_rcv));
	TRANSFER("soreceive of all", so, UIO_READ, sizeof(bytes));
	FACT("soreadable and sowriteable when it is empty", "%d, peer %d", ready(so), ready(peer));
}

static void
datagrams(struct socket *so, struct socket *peer)
{
	FACT("a datagram socket", "type %d, protocol's flags %x", so->so_type,
	    so->so_proto->pr_flags & (PR_ATOMIC | PR_ADDR | PR_CONNREQUIRED | PR_WANTRCVD));
	TRANSFER("sosend of a datagram", peer, UIO_WRITE, 16);
	TRANSFER("sosend of another", peer, UIO_WRITE, 8);
	TRANSFER("soreceive of a part of a datagram", so, UIO_READ, 4);
	TRANSFER("soreceive of the next", so, UIO_READ, 100);
	TRANSFER("soreceive of a third", so, UIO_READ, 100);
	TRANSFER("sosend of a datagram of nothing", peer, UIO_WRITE, 0);
	FACT("soreadable with a datagram of nothing", "%d", ready(so) & 1);
	TRANSFER("soreceive of a datagram of nothing", so, UIO_READ, 100);
	TRANSFER("sosend of a datagram that is too long", peer, UIO_WRITE, sizeof(bytes));
}

static void
ends(struct socket *ended, struct socket *listening)
{
	FACT("a stream whose peer is closed", "ready %d, connected %d", ready(ended),
	    (ended->so_state & SS_ISCONNECTED) != 0);
	TRANSFER("soreceive from it", ended, UIO_READ, 16);
	TRANSFER("sosend to it", ended, UIO_WRITE, 16);
	FACT("a sleep after that", "%d", probe_signalled());
	FACT("a socket that listens", "%d", SOLISTENING(listening) != 0);
	TRANSFER("soreceive from it", listening, UIO_READ, 16);
	TRANSFER("sosend to it", listening, UIO_WRITE, 16);
}

/* A buffer's task. */

static int ran;

static void
task(void *context, int pending)
{
	struct socket *so = context;

	SOCK_RECVBUF_LOCK(so);
	FACT("a buffer's task", "pending %d, flags %x, in soaiod %d, of the kernel %d", pending,
	    so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING), strncmp(curproc->p_comm, "soaiod", 6) == 0,
	    (curproc->p_flag & P_KPROC) != 0);
	/* Asked for again while it runs, it does not run again. */
	so->so_rcv.sb_flags |= SB_AIO;
	sowakeup_aio(so, SO_RCV);
	FACT("sowakeup_aio while it runs", "flags %x", so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING));
	SOCK_RECVBUF_UNLOCK(so);
	/* Which ends the task: it gives the flag and the reference back. */
	soaio_rcv(so, pending);
	mtx_lock(&probe_lock);
	ran++;
	wakeup(&ran);
	mtx_unlock(&probe_lock);
}

static void
wait_ran(int count)
{
	mtx_lock(&probe_lock);
	while (ran < count)
		msleep(&ran, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
}

static void
tasks(struct socket *so, struct socket *peer)
{
	task_fn_t *own;
	u_int before;
	int error, running = 0, tries;

	SOCK_LOCK(so);
	before = so->so_count;
	soref(so);
	FACT("soref", "%u more references", so->so_count - before);
	sorele_locked(so);
	FACT("sorele_locked", "%u more references, locked %d", so->so_count - before, mtx_owned(SOCK_MTX(so)));

	SOCK_RECVBUF_LOCK(so);
	own = so->so_rcv.sb_aiotask.ta_func;
	FACT("a new buffer's task", "the kernel's %d, its socket's %d, sending %d, flags %x", own == soaio_rcv,
	    so->so_rcv.sb_aiotask.ta_context == so, so->so_snd.sb_aiotask.ta_func == soaio_snd,
	    so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING));
	so->so_rcv.sb_aiotask.ta_func = task;
	so->so_rcv.sb_flags |= SB_AIO;
	sowakeup_aio(so, SO_RCV);
	FACT("sowakeup_aio", "flags %x, %u more references, pending %d",
	    so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING), so->so_count - before,
	    so->so_rcv.sb_aiotask.ta_pending <= 1);
	sowakeup_aio(so, SO_RCV);
	FACT("sowakeup_aio again", "%u more references", so->so_count - before);
	SOCK_RECVBUF_UNLOCK(so);
	wait_ran(1);
	probe_after_ms(20);
	SOCK_RECVBUF_LOCK(so);
	FACT("a task that ended", "it ran %d times, flags %x, %u more references", ran,
	    so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING), so->so_count - before);
	SOCK_RECVBUF_UNLOCK(so);
	/* Data runs it only where the buffer wants that. */
	TRANSFER("sosend to a buffer that wants no task", peer, UIO_WRITE, 1);
	probe_after_ms(50);
	FACT("a task that is not wanted", "it ran %d times", ran);
	SOCK_RECVBUF_LOCK(so);
	so->so_rcv.sb_flags |= SB_AIO;
	SOCK_RECVBUF_UNLOCK(so);
	/* The task says something itself. */
	error = transfer(peer, UIO_WRITE, 1);
	wait_ran(2);
	probe_after_ms(20);
	FACT("sosend to a buffer that wants its task", "%d, %zd bytes left", error, left);
	SOCK_RECVBUF_LOCK(so);
	FACT("a task that was wanted", "it ran %d times, flags %x, %u more references", ran,
	    so->so_rcv.sb_flags & (SB_AIO | SB_AIO_RUNNING), so->so_count - before);
	so->so_rcv.sb_aiotask.ta_func = own;
	SOCK_RECVBUF_UNLOCK(so);
	TRANSFER("soreceive of what came meanwhile", so, UIO_READ, 100);

	/* The kernel's own function of the other buffer, which has nothing to do. */
	SOCK_SENDBUF_LOCK(so);
	sowakeup_aio(so, SO_SND);
	SOCK_SENDBUF_UNLOCK(so);
	for (tries = 0; tries < 200; tries++) {
		probe_after_ms(10);
		SOCK_SENDBUF_LOCK(so);
		running = so->so_snd.sb_flags & (SB_AIO | SB_AIO_RUNNING);
		SOCK_SENDBUF_UNLOCK(so);
		if (running == 0)
			break;
	}
	/* It gives the reference back behind the flag. */
	probe_after_ms(50);
	FACT("the kernel's function of a task", "flags %x, %u more references", running, so->so_count - before);
}

void
probe_sockets(void)
{
	struct file *files[6];
	struct socket *so[6];
	static const int fds[6] = { FD_SOCKET, FD_PEER, FD_DATAGRAM, FD_DATAGRAM_PEER, FD_ENDED, FD_LISTEN };
	int i;

	for (i = 0; i < nitems(fds); i++) {
		so[i] = of(fds[i], &files[i]);
		if (so[i] == NULL)
			panic("aio_rs_probe: descriptor %d is no socket", fds[i]);
	}
	CURVNET_SET(so[0]->so_vnet);
	streams(so[0], so[1]);
	datagrams(so[2], so[3]);
	ends(so[4], so[5]);
	tasks(so[0], so[1]);
	CURVNET_RESTORE();
	for (i = 0; i < nitems(fds); i++)
		fdrop(files[i], curthread);
}
