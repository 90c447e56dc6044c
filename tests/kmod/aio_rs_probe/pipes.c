/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pipes: how their two ends hang together, transfers by an open file of our own that does not wait, and
 * a knote of ours on a pipe's list.
 */
#include "probe.h"

#include <sys/capsicum.h>
#include <sys/event.h>
#include <sys/fcntl.h>
#include <sys/file.h>
#include <sys/selinfo.h>
#include <sys/eventvar.h>
#include <sys/pipe.h>
#include <sys/uio.h>

static char bytes[65536];

/* What is left after a transfer. */
static ssize_t left;

/* Moves data between the pipe of an open file and our memory, without waiting. */
static int
transfer(struct file *fp, enum uio_rw way, size_t len)
{
	struct iovec iov;
	struct file own;
	struct uio uio;
	int error;

	memset(&own, 0, sizeof(own));
	own.f_data = fp->f_data;
	own.f_ops = fp->f_ops;
	own.f_vnode = fp->f_vnode;
	own.f_cred = fp->f_cred;
	own.f_type = fp->f_type;
	own.f_count = 1;
	own.f_flag = FREAD | FWRITE | FNONBLOCK;
	probe_uio(&uio, &iov, bytes, len, UIO_SYSSPACE, way);
	if (way == UIO_READ)
		error = fo_read(&own, &uio, curthread->td_ucred, 0, curthread);
	else
		error = fo_write(&own, &uio, curthread->td_ucred, 0, curthread);
	left = uio.uio_resid;
	return (error);
}

#define	TRANSFER(what, fp, way, len) do {					\
	int its = transfer(fp, way, len);					\
	FACT(what, "%d, %zd bytes left", its, left);				\
} while (0)

static int told;

static int
tell(struct knote *kn __unused, long hint __unused)
{
	told++;
	return (0);
}

static struct filterops ours = { .f_isfd = 1, .f_event = tell };

/* Whether the knote was told of something since the last time. */
static int
was_told(void)
{
	int was = told > 0;

	told = 0;
	return (was);
}

static void
knotes(struct pipe *pipe, struct file *reader, struct file *writer)
{
	struct kqueue *queue;
	struct knote *kn;
	int written, emptied;

	queue = malloc(sizeof(*queue), M_PROBE, M_WAITOK | M_ZERO);
	kn = malloc(sizeof(*kn), M_PROBE, M_WAITOK | M_ZERO);
	mtx_init(&queue->kq_lock, "aio_rs probe queue", NULL, MTX_DEF);
	kn->kn_kq = queue;
	kn->kn_status = KN_DETACHED;
	kn->kn_fop = &ours;

	mtx_lock(PIPE_MTX(pipe));
	kn->kn_influx = 1;
	knlist_add(&pipe->pipe_sel.si_note, kn, 1);
	kn->kn_influx = 0;
	mtx_unlock(PIPE_MTX(pipe));
	was_told();
	transfer(writer, UIO_WRITE, 100);
	written = was_told();
	transfer(reader, UIO_READ, 100);
	emptied = was_told();
	FACT("a knote on a pipe's reading end", "told of a write %d, of a read %d, attached %d", written,
	    emptied, (kn->kn_status & KN_DETACHED) == 0);
	mtx_lock(PIPE_MTX(pipe));
	kn->kn_influx = 1;
	knlist_remove(&pipe->pipe_sel.si_note, kn, 1);
	kn->kn_influx = 0;
	mtx_unlock(PIPE_MTX(pipe));
	transfer(writer, UIO_WRITE, 100);
	FACT("the same once it is off the list", "told %d, attached %d", was_told(),
	    (kn->kn_status & KN_DETACHED) == 0);
	transfer(reader, UIO_READ, 100);
	mtx_destroy(&queue->kq_lock);
	free(kn, M_PROBE);
	free(queue, M_PROBE);
}

static void
ends(struct file *reader, struct file *writer, struct file *plain)
{
	struct pipe *in = reader->f_data, *out = writer->f_data;
	size_t size;

	FACT("pipeops", "of the two ends of a pipe %d %d, of a file %d", reader->f_ops == &pipeops,
	    writer->f_ops == &pipeops, plain->f_ops == &pipeops);
	FACT("struct pipe", "peers %d %d, one mutex %d, named %d", in->pipe_peer == out,
	    out->pipe_peer == in, PIPE_MTX(in) == PIPE_MTX(out),
	    (in->pipe_type & PIPE_TYPE_NAMED) != 0);
	FACT("its ends", "active %d %d, ended %d %d", in->pipe_present == PIPE_ACTIVE,
	    out->pipe_present == PIPE_ACTIVE, (in->pipe_state & PIPE_EOF) != 0,
	    (out->pipe_state & PIPE_EOF) != 0);
	TRANSFER("fo_read of an empty pipe", reader, UIO_READ, 100);
	TRANSFER("fo_write of a pipe", writer, UIO_WRITE, 300);
	FACT("where it is then", "%u in the reading end, %u in the writing end", in->pipe_buffer.cnt,
	    out->pipe_buffer.cnt);
	TRANSFER("fo_read of part of it", reader, UIO_READ, 100);
	TRANSFER("fo_read of more than there is", reader, UIO_READ, 1000);
	TRANSFER("fo_write of nothing", writer, UIO_WRITE, 0);
	TRANSFER("fo_read of nothing", reader, UIO_READ, 0);
	transfer(writer, UIO_WRITE, sizeof(bytes));
	transfer(writer, UIO_WRITE, sizeof(bytes));
	size = in->pipe_buffer.size;
	FACT("a full pipe", "%d, lent pages %d", in->pipe_buffer.cnt == size, in->pipe_pages.cnt != 0);
	TRANSFER("fo_write of a full pipe", writer, UIO_WRITE, 1);
	transfer(reader, UIO_READ, 100);
	TRANSFER("fo_write of more than fits, to be whole", writer, UIO_WRITE, PIPE_BUF);
	TRANSFER("fo_write of more than fits", writer, UIO_WRITE, PIPE_BUF + 1);
	while (transfer(reader, UIO_READ, sizeof(bytes)) == 0)
		;
	FACT("a pipe that was emptied", "%u left", in->pipe_buffer.cnt);
	knotes(in, reader, writer);
}

void
probe_pipes(void)
{
	struct file *reader, *writer, *plain;

	if (fget(curthread, FD_PIPE_READ, &cap_no_rights, &reader) != 0 ||
	    fget(curthread, FD_PIPE_WRITE, &cap_no_rights, &writer) != 0 ||
	    fget(curthread, FD_READ, &cap_no_rights, &plain) != 0) {
		FACT("pipes", "there are none");
		return;
	}
	ends(reader, writer, plain);
	fdrop(plain, curthread);
	fdrop(writer, curthread);
	fdrop(reader, curthread);
}
