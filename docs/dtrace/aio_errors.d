#!/usr/sbin/dtrace -s
/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * A line for each request that fails or is cancelled.
 */
#pragma D option quiet

dtrace:::BEGIN
{
	printf("%-10s %-18s %6s %5s %6s\n", "what", "aiocb", "opcode", "fd", "errno");
}

aio_rs:::done
/arg4 != 0/
{
	printf("%-10s %-18p %#6x %5d %6d\n", "failed", arg0, arg1, arg2, (int)arg4);
}

aio_rs:::cancel
{
	printf("%-10s %-18p %#6x %5d %6s\n", "cancelled", arg0, arg1, arg2, "-");
}
