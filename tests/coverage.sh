#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make coverage: which basic blocks of the modules the host kernel's part of make test reaches, with
# SEEDS (40) seeds of each scenario.  The figures, and build/coverage.txt with every block that is not
# reached.  A run that fails is named, and counts; so does a rare edge (tests/edges.txt) that was not
# reached.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. tests/common.sh
seeds=${SEEDS:-40} jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)} faults=${FAULTS:-3}
programs=$top/$programs
blocks=$top/build/coverage.blocks

if [ -z "${BUILT:-}" ]; then
	{ FREEBSD=14 SYSDIR= kmod/build.sh modules && FREEBSD=14 SYSDIR= TAG=next kmod/build.sh modules &&
	    FREEBSD=14 SYSDIR= kmod/build.sh hostkern &&
	    kmod/build.sh programs; } || exit 1
fi
hk=$top/build/$(FREEBSD=14 SYSDIR= kmod/build.sh version)
rm -f "$blocks"
failed=0

# once SEED OPTIONS... -- PROGRAM ARGS...: one run.
once() {
	seed=$1
	shift
	work=$(mktemp -d)
	if ! (cd "$work" && "$hk/hostkern" run --seed "$seed" --spurious 2000 --limit 280 \
	    --coverage "$blocks" --modules "$hk" "$@") >build/attempt.log 2>&1; then
		failed=$((failed + 1))
		echo "FAILED  seed $seed: $*"
		tail -5 build/attempt.log
	fi
	rm -rf "$work"
}

# many KIND COUNT OPTIONS... -- PROGRAM ARGS...: seeds, or faults of each call.
many() {
	kind=$1 count=$2
	shift 2
	case $kind in
	seeds) set -- --first 1 --count "$count" --spurious 3000 --recheck 0 "$@" ;;
	faults) set -- --most "$count" --policy block "$@" ;;
	esac
	if ! "$hk/hostkern" "$kind" --jobs "$jobs" --coverage "$blocks" --modules "$hk" "$@" \
	    >build/attempt.log 2>/dev/null; then
		failed=$((failed + 1))
		echo "FAILED  $kind: $*"
		tail -5 build/attempt.log
	fi
}

once 1 -- "$programs/conformance"
once 9 -- "$programs/conformance"
once 1 -- "$programs/disks"
once 2 --mapped -- "$programs/disks"
once 1 -- "$programs/sockets"
once 9 -- "$programs/sockets"
once 1 -- "$programs/pipes"
once 9 -- "$programs/pipes"
once 1 -- "$programs/httpd" --mb 10 --connections 16
once 1 -- "$programs/deliver" --rounds 10
once 1 -- "$programs/parked" --most 5000 --sockets 100
for scenario in stress storm; do
	with_scenario $scenario many seeds "$seeds"
done
for scenario in disk storm-pipes churn reload; do
	with_scenario $scenario many seeds "$(((seeds + 3) / 4))"
done
many faults "$faults" -- "$programs/steps"
many faults "$faults" --mapped -- "$programs/steps"

"$hk/hostkern" coverage --symbols "$hk" --edges tests/edges.txt "$blocks" >build/coverage.txt
edges=$?
grep -E '^[^ ]|NOT REACHED' build/coverage.txt
[ "$edges" = 0 ] || failed=$((failed + 1))
echo "what was not reached: build/coverage.txt"
[ "$failed" = 0 ]
