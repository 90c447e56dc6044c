#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make mutants: each patch of tests/mutants plants a defect in a copy of the source, and the host
# kernel must find it.  A patch says in its head what the defect is, and on its line "Find:" where:
#
#   seeds SCENARIO      one of up to SEEDS (1000) seeds of a scenario (tests/common.sh)
#   seeds PROGRAM WORDS one of as many seeds of a guest program
#   faults CALL         the faults of one kernel call
#   run PROGRAM WORDS   the cases of a guest program; run-mapped: with every buffer mapped
#   compile CODE        the compiler refuses it, with this error
#
# `tests/mutants.sh [NAME...]` does so for the patches whose names begin so.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. tests/common.sh
seeds=${SEEDS:-1000} jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
copy=$top/build/mutants/tree
programs=$top/$programs
hk=$top/build/$(FREEBSD=14 SYSDIR= kmod/build.sh version)
work=$top/build/mutants/work
log=$top/build/mutants/log
out=$copy/build/$(basename "$hk")

mkdir -p "$copy"
[ -n "${BUILT:-}" ] || { FREEBSD=14 SYSDIR= kmod/build.sh hostkern && kmod/build.sh programs; } || exit 1

# The working tree, but what did not change keeps its time, so that little is built again.
git ls-files -z -- Cargo.toml Cargo.lock build.rs kmod src sys-bindings tests tools share |
    rsync -a --checksum --delete-missing-args --from0 --files-from=- "$top/" "$copy/" 2>/dev/null ||
    git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy"

build() {
	(cd "$copy" && UNCHECKED=1 FREEBSD=14 SYSDIR= kmod/build.sh modules) >"$log" 2>&1
}

# seeds OPTIONS...: runs until one fails.
some_seeds() {
	"$hk/hostkern" seeds --first 1 --count "$seeds" --jobs "$jobs" --recheck 0 --stop --limit 20 \
	    --spurious 3000 --modules "$out" "$@" >"$log" 2>/dev/null
}

# find HOW WORDS...: true when the run was clean.
find_it() {
	how=$1
	shift
	rm -rf "$work" && mkdir -p "$work" && cd "$work" || exit 1
	case $how in
	seeds)
		scenario=$1
		shift
		case $scenario in
		stress | disk | storm) with_scenario "$scenario" some_seeds ;;
		*)
			some_seeds -- "$programs/$scenario" "$@" ;;
		esac ;;
	faults)
		"$hk/hostkern" faults --policy block --limit 10 --stop --jobs "$jobs" --only "$1" \
		    --modules "$out" -- "$programs/steps" >"$log" 2>/dev/null ;;
	run | run-mapped)
		program=$1
		shift
		mapped=
		[ "$how" = run ] || mapped=--mapped
		"$hk/hostkern" run --seed 1 --limit 100 $mapped --modules "$out" -- "$programs/$program" "$@" \
		    >"$log" 2>/dev/null ;;
	esac
}

# What the log says was wrong, in a line.
why() {
	grep -a -m1 -E 'PANIC|BROKEN|LEFT OVER|(^|[^E])BAD|^FAIL |still running|FAILED' "$log" |
	    sed 's/^ *//; s/^hostkern: //' | cut -c1-150
}

passed=0 failed=0
for patch in tests/mutants/*.patch; do
	name=$(basename "$patch" .patch)
	if [ $# -gt 0 ]; then
		wanted=
		for word; do case $name in "$word"*) wanted=1 ;; esac; done
		[ -n "$wanted" ] || continue
	fi
	find=$(sed -n 's/^Find: //p' "$patch")
	if ! patch -s -p1 -d "$copy" <"$patch"; then
		echo "FAILED  $name: the patch does not apply"
		failed=$((failed + 1))
		continue
	fi
	verdict=
	# shellcheck disable=SC2086 # words
	set_find() { kind=$1; shift; words=$*; }
	set_find $find
	if [ "$kind" = compile ]; then
		if build; then
			verdict="FAILED  $name: it compiles"
		elif grep -q "error\[$words\]" "$log"; then
			verdict="ok      $name: does not compile: $(grep -m1 "error\[$words\]" "$log")"
		else
			verdict="FAILED  $name: another error: $(grep -m1 '^error' "$log")"
		fi
	elif ! build; then
		verdict="FAILED  $name: does not compile: $(grep -m1 '^error' "$log")"
	else
		# shellcheck disable=SC2086 # words
		if (find_it $find); then
			verdict="FAILED  $name: not found by $find"
		else
			runs=$(sed -n 's/^hostkern: .*: \([0-9]*\) runs, .*/\1/p; s/.* that may fail, \([0-9]*\) runs.*/\1/p' "$log" | tail -1)
			verdict="ok      $name: $find, ${runs:-1} runs: $(why)"
		fi
	fi
	echo "$verdict"
	case $verdict in ok*) passed=$((passed + 1)) ;; *) failed=$((failed + 1)) ;; esac
	patch -s -R -p1 -d "$copy" <"$patch"
done
echo "mutants: $passed found or impossible, $failed not"
[ "$failed" = 0 ]
