#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make test: unit tests, build checks, and the test machine where there is one.  Ends with what failed,
# and with counts; a skip says why, and is never counted as passed.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. tests/common.sh

passed=0 failed=0 skipped=0
log=build/test.log
# What failed, a line each, to be said again at the end.
failures=build/failures.txt
mkdir -p build
: >"$log"
: >"$failures"

pass() {
	passed=$((passed + 1))
	echo "ok      $*"
}
fail() {
	failed=$((failed + 1))
	echo "FAILED  $*" | tee -a "$failures"
}
# failed_cases NAME: those on standard input have failed in it.
failed_cases() {
	echo "FAILED  $1: $(tr '\n' ';')" >>"$failures"
}
skip() {
	skipped=$((skipped + 1))
	echo "SKIPPED $*"
}

# attempt NAME COMMAND...: one case that passes when the command does.
attempt() {
	name=$1
	shift
	if "$@" >build/attempt.log 2>&1; then
		pass "$name"
	else
		fail "$name"
		tail -25 build/attempt.log
	fi
	cat build/attempt.log >>"$log"
}

# cargo_tests NAME ARGS...: adds up what cargo's test programs report.
cargo_tests() {
	name=$1
	shift
	if [ "$1" = hostkern ]; then
		FREEBSD=14 SYSDIR= kmod/build.sh hostkern-test >build/attempt.log 2>&1
	else
		kmod/build.sh host test --locked "$@" -- --nocapture >build/attempt.log 2>&1
	fi
	status=$?
	cat build/attempt.log >>"$log"
	counts=$(awk '/^test result:/ { p += $4; f += $6; i += $8 }
	    END { print p + 0, f + 0, i + 0 }' build/attempt.log)
	# A test that found its tool missing says so, though cargo counts it as passed.
	missing=$(grep -c '^SKIPPED ' build/attempt.log)
	set -- $counts
	[ "$status" = 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1 "$3"
	echo "$name: $(($1 - missing)) passed, $2 failed, $(($3 + missing)) skipped"
	[ "$2" = 0 ] || {
		tail -40 build/attempt.log
		sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' build/attempt.log | failed_cases "$name"
	}
	passed=$((passed + $1 - missing))
	failed=$((failed + $2))
	skipped=$((skipped + $3 + missing))
}

# The same source, built in two directories, gives the same bytes: those in build/reproducible.
reproducible() {
	copy=$(mktemp -d)
	trap 'rm -rf "$copy"' EXIT
	trap 'exit 1' TERM
	git clone --quiet . "$copy/elsewhere" || return 1
	# What is tested is the working tree.
	git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy/elsewhere"
	FREEBSD=14 SYSDIR= "$copy/elsewhere/kmod/build.sh" modules
	version=$(FREEBSD=14 SYSDIR= kmod/build.sh version)
	for module in aio_rs_gate.ko aio_rs.ko; do
		cmp "build/reproducible/$module" "$copy/elsewhere/build/$version/$module" || return 1
	done
}

# cases NAME COMMAND...: a script that prints ok, FAILED or SKIPPED per case.
cases() {
	name=$1
	shift
	"$@" >build/attempt.log 2>&1
	status=$?
	cat build/attempt.log >>"$log"
	p=$(grep -c '^ok ' build/attempt.log)
	f=$(grep -c '^FAILED ' build/attempt.log)
	s=$(grep -c '^SKIPPED ' build/attempt.log)
	[ "$status" = 0 ] || [ "$f" -gt 0 ] || f=1
	[ "$p" -gt 0 ] || f=$((f + 1))
	echo "$name: $p passed, $f failed, $s skipped"
	[ "$f" = 0 ] || {
		tail -40 build/attempt.log
		sed -n 's/^FAILED  *//p' build/attempt.log | failed_cases "$name"
	}
	grep '^SKIPPED ' build/attempt.log
	passed=$((passed + p))
	failed=$((failed + f))
	skipped=$((skipped + s))
}

echo "== unit tests"
cargo_tests "model" -p aio_rs --lib
cargo_tests "build checker" --release -p kocheck
cargo_tests "VM driver" --release -p vm
cargo_tests "guest library" --release -p guest --lib
cargo_tests "instruction counter" --release -p aio_rs_profile --test kinds

echo "== build"
attempt "modules for FreeBSD 14 from packaged headers" env FREEBSD=14 SYSDIR= kmod/build.sh modules
attempt "modules for FreeBSD 15 from packaged headers" env FREEBSD=15 SYSDIR= kmod/build.sh modules
# It takes a minute, for one processor; what follows leaves one idle, but builds over the first.
rm -rf build/reproducible && mkdir build/reproducible
cp "build/$(FREEBSD=14 SYSDIR= kmod/build.sh version)"/aio_rs*.ko build/reproducible/
reproducible >build/reproducible.log 2>&1 &
second_build=$!
trap 'kill "$second_build" 2>/dev/null' EXIT
attempt "modules without probes" env PROBES=0 SYSDIR= kmod/build.sh modules
cases "manual, installation, probes" env SYSDIR= tests/manual.sh
cases "aiostat" tests/aiostat.sh
attempt "guest programs" kmod/build.sh programs

# The host kernel's seeds: how many, on files, on sockets and of reloads, and from which on.
seeds=${SEEDS:-1000} storms=${STORM_SEEDS:-300} reloads=${RELOAD_SEEDS:-30} first=${FIRST_SEED:-1}

# Cases that cannot hold in the host kernel: "program/case reason", a line each. One that holds, or
# that no program has, fails the run.
not_here=

# What each case said in the host kernel: "program/case seed result".
here=build/cases-here.txt
: >"$here"

# programs_cases PROGRAM SEED OPTIONS...: every case of a guest program, in the host kernel, under
# the schedule the seed chooses.
programs_cases() {
	program=$1 seed=$2
	shift 2
	set -- --seed "$seed" --spurious 2000 "$@" --modules "$top/$hk" -- "$top/$programs/$program"
	work=$(mktemp -d)
	(cd "$work" && "$top/$hk/hostkern" run --limit 280 "$@") >build/attempt.log 2>&1
	status=$?
	rm -rf "$work"
	cat build/attempt.log >>"$log"
	echo "$not_here" | awk -v program="$program" -v seed="$seed" -v here="$here" '
	    NR == FNR { if (NF) { name = $1; sub(/^[^ ]* /, ""); reason[name] = $0 } next }
	    /^(ok|FAIL|skip) / {
		result = $1; name = $2; sub(/:$/, "", name)
		print program "/" name, seed, result >>here
		if (result == "ok") { p++; next }
		sub(/^[^ ]* [^ ]* /, "")
		if (result == "skip") { s++; print "SKIPPED " name ": " $0 }
		else if (program "/" name in reason) { s++; print "SKIPPED " name ": " reason[program "/" name] }
		else { f++; print "FAILED  " name ": " $0 }
	    }
	    END { print p + 0, f + 0, s + 0 >"build/attempt.counts" }' - build/attempt.log >build/attempt.cases
	read -r p f s <build/attempt.counts
	grep -q '^hostkern: seed=' build/attempt.log || f=$((f + 1))
	! grep -q '^hostkern: LEFT OVER' build/attempt.log || f=$((f + 1))
	[ "$status" -le 1 ] || f=$((f + 1))
	[ "$p" -gt 0 ] || f=$((f + 1))
	echo "$program cases, seed $seed: $p passed, $f failed, $s skipped"
	cat build/attempt.cases
	[ "$f" = 0 ] || {
		grep '^hostkern' build/attempt.log | tail -25
		echo "repeat with: $hk/hostkern run $*"
		sed -n 's/^FAILED  *//p' build/attempt.cases | failed_cases "$program, seed $seed"
	}
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	as_on_real "$program, seed $seed" compare "$program" build/attempt.log
}

# as_on_real NAME ARGS...: what a run printed, beside what a real kernel said (tests/transcripts).
as_on_real() {
	name=$1
	shift
	if tests/transcripts.sh "$@" >build/attempt.compared; then
		pass "$name: $(tail -1 build/attempt.compared)"
		unknown=$(sed -n 's/.* \([1-9][0-9]* not in the transcript ([^)]*)\).*/\1/p' build/attempt.compared)
		[ -z "$unknown" ] || skip "$name: $unknown; make transcripts"
	else
		fail "$name"
		cat build/attempt.compared
	fi
	cat build/attempt.compared >>"$log"
}

# probed DIR: the functions of the host kernel in a directory, tried by the module there.
probed() {
	work=$(mktemp -d)
	(cd "$work" && "$top/$1/hostkern" run --seed 1 --modules "$top/$1" -- "$top/$programs/probe" \
	    "$top/$1/aio_rs_probe.ko") >build/attempt.log 2>&1 || fail "the probe in $1"
	rm -rf "$work"
	cat build/attempt.log >>"$log"
	as_on_real "functions of the host kernel in $1" probe build/attempt.log
}

# on_builtin DIR OBJECT: the cases of our programs in the host kernel, on the kernel's own AIO.
on_builtin() {
	for program in conformance sockets disks pipes; do
		work=$(mktemp -d)
		(cd "$work" && "$top/$1/hostkern" run --limit 280 --seed 1 --builtin "$2" -- \
		    "$top/$programs/$program") >build/attempt.log 2>&1
		rm -rf "$work"
		cat build/attempt.log >>"$log"
		grep -q '^hostkern: seed=' build/attempt.log || fail "$program on the kernel's own AIO did not end"
		as_on_real "$program on the kernel's own AIO, in the host kernel" compare $program \
		    build/attempt.log builtin
	done
}

# Every name in not_here must be of a case that did not hold, in each of its runs.
no_stale_names() {
	stale=$(echo "$not_here" | awk '
	    NR == FNR { seen[$1] = 1; if ($3 == "ok") holds[$1] = 1; next }
	    NF && !seen[$1] { print $1 ": no such case" }
	    NF && holds[$1] { print $1 ": the case holds" }' "$here" -)
	[ -z "$stale" ] || fail "names that are in not_here for nothing: $stale"
}

# in_host_kernel SEED PROGRAM ARGS...: one run.  Where $policy is set, threads take turns by it.
policy=
in_host_kernel() {
	seed=$1 program=$2
	shift 2
	work=$(mktemp -d)
	(cd "$work" && "$top/$hk/hostkern" run --seed "$seed" --spurious 3000 ${policy:+--policy "$policy"} \
	    --modules "$top/$hk" -- "$top/$programs/$program" "$@")
	status=$?
	rm -rf "$work"
	return "$status"
}

# scenario COUNT NAME OPTIONS... -- PROGRAM ARGS...: many processes and threads at once, once for
# each of so many seeds.
scenario() {
	count=$1 name="$1 seeds of $2"
	shift 2
	if "$hk/hostkern" seeds --first "$first" --count "$count" --jobs "$(getconf _NPROCESSORS_ONLN)" \
	    --spurious 3000 --recheck 50 --modules "$hk" "$@" >build/attempt.log; then
		pass "$name"
	else
		fail "$name"
	fi
	cat build/attempt.log
	cat build/attempt.log >>"$log"
}

# come_and_go COUNT WHERE OPTIONS...: the engine is loaded and unloaded under programs that use it, in
# two builds, which are both there.
come_and_go() {
	count=$1 where=$2
	shift 2
	with_scenario reload scenario "$count" \
	    "processes under which the engine comes and goes, $where" "$@"
}

# faults MOST OPTIONS...: every kind of request, with each kernel call that may fail failing at each
# of its occurrences, or MOST of them, once and then always.
faults() {
	name="$1 faults of each kernel call${2:+, $2}"
	most=$1
	shift
	if "$hk/hostkern" faults --most "$most" --policy block --jobs "$(getconf _NPROCESSORS_ONLN)" "$@" \
	    --modules "$hk" -- "$programs/steps" >build/attempt.log; then
		pass "$name"
	else
		fail "$name"
	fi
	cat build/attempt.log
	cat build/attempt.log >>"$log"
}

echo "== host kernel"
if [ "$(uname -s)" != Linux ]; then
	skip "the host kernel runs on Linux"
elif ! FREEBSD=14 SYSDIR= kmod/build.sh modules >>"$log" 2>&1 ||
    ! FREEBSD=14 SYSDIR= kmod/build.sh hostkern >build/attempt.log 2>&1; then
	fail "the host kernel"
	tail -25 build/attempt.log
else
	hk=build/$(FREEBSD=14 SYSDIR= kmod/build.sh version)
	cargo_tests "host kernel" hostkern
	programs_cases conformance 1
	programs_cases conformance 2
	programs_cases disks 1
	programs_cases disks 2 --mapped
	programs_cases sockets 1
	programs_cases sockets 2
	programs_cases pipes 1
	programs_cases pipes 2
	no_stale_names
	if FREEBSD=14 SYSDIR= kmod/build.sh test-modules >>"$log" 2>&1; then
		probed "$hk"
	else
		fail "modules that only tests load"
	fi
	own=$vm/objects-debug/vfs_aio.o
	if [ ! -f "$vm/sys/sys/param.h" ]; then
		skip "no kernel source in $vm: the host kernel was not tried with a real kernel's modules"
	elif ! SYSDIR=$vm/sys kmod/build.sh modules >>"$log" 2>&1 ||
	    ! SYSDIR=$vm/sys kmod/build.sh test-modules >>"$log" 2>&1 ||
	    ! SYSDIR=$vm/sys kmod/build.sh hostkern >build/attempt.log 2>&1; then
		fail "the host kernel for $vm/sys"
		tail -25 build/attempt.log
	else
		# The same bytes as in the machine.
		same=build/$(SYSDIR=$vm/sys kmod/build.sh version)
		probed "$same"
		if [ -f "$own" ]; then
			on_builtin "$same" "$own"
			if SYSDIR=$vm/sys TAG=next kmod/build.sh modules >>"$log" 2>&1; then
				packaged=$hk hk=$same
				come_and_go "$(((reloads + 2) / 3))" "over the kernel's own AIO" \
				    --builtin "$own" --beside
				hk=$packaged
			else
				fail "modules of another version for $vm/sys"
			fi
		else
			skip "no object $own: the kernel's own AIO was not run in the host kernel"
		fi
	fi
	attempt "an HTTP server and its clients on asynchronous requests alone" in_host_kernel 1 \
	    httpd --mb 10 --connections 16
	attempt "notifications of all kinds at once" in_host_kernel 1 deliver --rounds 10
	attempt "5,000 requests that wait on 100 sockets" in_host_kernel 1 parked --most 5000 --sockets 100
	# A thread that runs until it sleeps is not overtaken between a look and a call.
	policy=block
	attempt "a single request waits for one of another process's queue per worker" in_host_kernel 1 \
	    fair --most 4
	policy=
	with_scenario stress scenario "$seeds" \
	    "processes that submit, wait, cancel, fork, exec, exit and are killed"
	with_scenario disk scenario "$(((seeds + 9) / 10))" \
	    "the same on a disk that fails, storms on disks, and disks that go"
	with_scenario storm scenario "$storms" \
	    "processes that read, write, cancel, shut down and end on sockets"
	with_scenario storm-pipes scenario "$(((storms + 5) / 6))" \
	    "the same on pipes, which wait without a worker"
	with_scenario churn scenario "$(((storms + 9) / 10))" \
	    "settings and statistics, and descriptors that go under requests"
	# Text that was unloaded is out of reach: who comes back to it fails the run.
	if FREEBSD=14 SYSDIR= TAG=next kmod/build.sh modules >>"$log" 2>&1; then
		come_and_go "$reloads" "over a kernel without AIO"
	else
		fail "modules of another version"
	fi
	faults "${FAULTS:-3}"
	faults "${FAULTS:-3}" --mapped
fi

if wait "$second_build"; then
	pass "two builds from two directories are identical"
else
	fail "two builds from two directories are identical"
	tail -25 build/reproducible.log
fi
trap - EXIT
cat build/reproducible.log >>"$log"

echo "== real kernels"
if [ "$(uname -s)" = FreeBSD ]; then
	attempt "this machine: load, run, unload" tests/freebsd.sh test
elif ! vm_at_hand; then
	skip "no FreeBSD test machine in $vm: nothing was run on a kernel (README.md says how to get one)"
elif ! command -v qemu-system-x86_64 >/dev/null; then
	skip "qemu-system-x86_64 is not installed: nothing was run on a kernel"
else
	: >build/vm-test.log
	if build_for_vm next && build_driver; then
		target/release/vm test --vm-dir "$vm" --modules "$vm_modules" --programs "$programs" |
		    tee build/vm-test.log
		counts=$(sed -n 's/^vm: passed \([0-9]*\) failed \([0-9]*\) skipped \([0-9]*\)$/\1 \2 \3/p' \
		    build/vm-test.log)
		if [ -n "$counts" ]; then
			set -- $counts
			passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
			grep '^FAILED ' build/vm-test.log >>"$failures"
		else
			fail "the VM driver ended without counts"
		fi
	else
		fail "modules for the test machine's kernel"
	fi
fi

tests/places.sh "$here" build/vm-test.log >build/places.txt && tail -1 build/places.txt

[ ! -s "$failures" ] || { echo "== failed" && cat "$failures"; }
echo "aio_rs: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
