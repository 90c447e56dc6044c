#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make bench where there is no test machine: what one request more costs in kernel calls, in the host
# kernel. Each row of the bench program runs twice, with some requests and with twice as many; the
# difference is what the others cost. Figures, no verdict.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. tests/common.sh

FREEBSD=14 SYSDIR='' kmod/build.sh modules && FREEBSD=14 SYSDIR='' kmod/build.sh hostkern &&
    kmod/build.sh programs || exit 1
hk=$top/build/$(FREEBSD=14 SYSDIR='' kmod/build.sh version)
rows=${ROWS:-"pread/ufs/4096/1 read-suspend/ufs/4096/1 read-waitcomplete/ufs/4096/1 read-kevent/ufs/4096/1
    write-suspend/ufs/4096/1 read-depth/ufs/4096/64 write-depth/ufs/4096/64 kevent-depth/ufs/4096/64
    error-newest/ufs/512/1000 return-newest-first/ufs/512/100 suspend-on-one/ufs/512/1000
    lio-wait/ufs/4096/64 lio-nowait/ufs/4096/64 socket-ready/-/512/1 socket-parked/-/512/64"}

# run ROW PERCENT: "what count" lines.
run() {
	work=$(mktemp -d)
	(cd "$work" && mkdir ufs && "$hk/hostkern" run --seed 1 --policy block --preempt 0 --limit 100 \
	    --calls --modules "$hk" -- "$top/$programs/bench" --ufs ufs --only "$1" --percent "$2") \
	    >build/attempt.log 2>&1 || cat build/attempt.log >&2
	rm -rf "$work"
	sed -n -e 's/^row [^ ]* ops=\([0-9]*\) .*/ops \1/p' \
	    -e 's/^hostkern: calls: \([0-9]*\) \(.*\)$/\2 \1/p' \
	    -e 's/^hostkern: seed=.* kernel_calls=\([0-9]*\) switches=\([0-9]*\) .*/all \1\nswitches \2/p' \
	    build/attempt.log
}

echo "One request in the host kernel: calls of the kernel's functions, by what they do."
printf '%-32s %8s %8s %8s %8s %8s %8s\n' row calls locks memory user wakeups switches
for row in $rows; do
	{ run "$row" 100; echo again; run "$row" 300; } | awk -v row="$row" '
	    $1 == "again" { again = 1; next }
	    { name = $1; count = $NF
	      if (name ~ /^(__mtx_lock_flags|_mtx_lock|aio_rs_sockbuf_lock|aio_rs_proc_lock)/) what = "locks"
	      else if (name ~ /^(malloc|free|uma_)/) what = "memory"
	      else if (name ~ /^(copyin|copyout|suword|fuword|aio_rs_[sf]uword|casuword)/) what = "user"
	      else if (name ~ /^wakeup/) what = "wakeups"
	      else what = name
	      sums[what] += again ? count : -count }
	    END { ops = sums["ops"]
	      if (ops <= 0) { print row ": no figures"; exit }
	      printf "%-32s", row
	      split("all locks memory user wakeups switches", names, " ")
	      for (i = 1; i <= 6; i++) printf " %8.1f", sums[names[i]] / ops
	      print "" }'
done
