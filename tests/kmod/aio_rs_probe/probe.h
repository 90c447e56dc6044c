/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the parts of the probe share: how a fact is told, what the program has made, and helpers.
 */
#ifndef AIO_RS_PROBE_H
#define	AIO_RS_PROBE_H

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/mutex.h>
#include <sys/proc.h>
#include <sys/signalvar.h>
#include <sys/uio.h>

/* What the program has made, as in tests/guest/src/bin/probe.rs. */
#define	WRITABLE	((char *)0x20000000)	/* a page: its bytes are their offset */
#define	READABLE	(WRITABLE + PAGE_SIZE)	/* the same, read only */
#define	NOTHING		(READABLE + PAGE_SIZE)	/* nothing is mapped here */
#define	VECTOR		(WRITABLE + 1024)	/* two iovecs, of 8 and 16 bytes of the page */
#define	NOTED		((char *)0x20010000)	/* what the program's handlers were told */
#define	UNTOUCHED	((char *)0x20020000)	/* three pages that nobody has touched */
#define	BUFFER		((char *)0x20030000)	/* sixteen pages of zeroes */
#define	FORBIDDEN	((char *)0x20050000)	/* a page that allows nothing */
#define	FD_READ		10
#define	FD_WRITE	11
#define	FD_PATH		12
#define	FD_CAP_READ	13
#define	FD_SOCKET	14
#define	FD_PEER		15
#define	FD_DATAGRAM	16
#define	FD_DATAGRAM_PEER	17
#define	FD_ENDED	18	/* a stream whose peer is closed */
#define	FD_LISTEN	19
#define	FD_DISK		20
#define	FD_PIPE_READ	21
#define	FD_PIPE_WRITE	22
#define	FD_ABSENT	99

/* The disk's size, and that of its sectors. */
#define	DISK_BYTES	65536
#define	SECTOR		512

#define	FACT(name, format, ...)						\
	printf("aio_rs_probe: " name ": " format "\n", ##__VA_ARGS__)

MALLOC_DECLARE(M_PROBE);

/* Protects what helpers and their starter share. */
extern struct mtx probe_lock;
extern int probe_steps;

/* A process of the kernel's that runs a function. */
struct helper {
	void		(*run)(struct helper *);
	struct proc	*p;
	void		*argument;
	int		 done, value;
};

int	probe_try_start(struct helper *, void (*)(struct helper *), void *);
void	probe_start(struct helper *, void (*)(struct helper *), void *);
void	probe_join(struct helper *);
void	probe_after_ms(int);
int	probe_signalled(void);
void	probe_siginfo(ksiginfo_t *, int);
void	probe_uio(struct uio *, struct iovec *, void *, size_t, enum uio_seg, enum uio_rw);

/* Subjects of their own. */
void	probe_calls(void);
void	probe_disks(void);
void	probe_disks_gone(void);
void	probe_files(void);
void	probe_pipes(void);
void	probe_processes(void);
void	probe_process_events(void);
void	probe_process_events_end(void);
void	probe_signals(void);
void	probe_signals_delivered(void);
void	probe_sockets(void);
void	probe_sysctls(void);

#endif
