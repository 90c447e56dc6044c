#!/usr/sbin/dtrace -s
/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Which programs sleep for requests, how often and how long, in microseconds.
 */
#pragma D option quiet

aio_rs:::park
{
	self->since = timestamp;
	@sleeps[execname] = count();
}

aio_rs:::wake
/self->since/
{
	@slept[execname] = quantize((timestamp - self->since) / 1000);
	self->since = 0;
}

aio_rs:::notify
{
	@told = count();
}

dtrace:::END
{
	printa("%-20s slept %@d times\n", @sleeps);
	printa(@slept);
	printa("%@d notifications\n", @told);
}
