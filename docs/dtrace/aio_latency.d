#!/usr/sbin/dtrace -s
/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * How long requests wait and take, by opcode, in microseconds.  Needs no sysctl: times are D's own.
 */
#pragma D option quiet

aio_rs:::queue
{
	queued[pid, arg0] = timestamp;
	owner[arg0] = pid;
}

/* A worker performs it: its own pid says nothing. */
aio_rs:::start
/queued[owner[arg0], arg0]/
{
	@wait[arg1] = quantize((timestamp - queued[owner[arg0], arg0]) / 1000);
	queued[owner[arg0], arg0] = 0;
	begun[arg0] = timestamp;
}

aio_rs:::done
/begun[arg0]/
{
	@take[arg1] = quantize((timestamp - begun[arg0]) / 1000);
	begun[arg0] = 0;
}

dtrace:::END
{
	printf("waiting, us, by opcode\n");
	printa(@wait);
	printf("taking, us, by opcode\n");
	printa(@take);
}
