#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# tools/aiostat on recorded sysctl values (tests/aiostat): prints `ok NAME` or `FAILED NAME`, and
# fails when one did.  SHELL_UNDER_TEST names the shell.  Runs in a guest too.
here=$(cd "$(dirname "$0")" && pwd)
aiostat=${AIOSTAT:-$here/../tools/aiostat}
shell=${SHELL_UNDER_TEST:-sh}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# run ARGS: aiostat on a fresh replay; what it prints goes to $work/out and $work/err.
run() {
	rm -f "$work/readings"
	REPLAY=$work AIOSTAT_SYSCTL="$here/aiostat/replay" \
	    "$shell" "$aiostat" "$@" >"$work/out" 2>"$work/err"
}
# expect NAME CONDITION...
expect() {
	name=$1
	shift
	if "$@"; then
		echo "ok aiostat: $name"
	else
		failed=1
		echo "FAILED aiostat: $name"
		cat "$work/out" "$work/err"
	fi
}
# The words of the line that begins with $1.
row() {
	awk -v op="$1" '$1 == op { $1 = $1; print }' "$work/out"
}
row_is() {
	[ "$(row "$1")" = "$2" ]
}
rows_are() {
	[ "$(wc -l <"$work/out")" -eq "$1" ]
}
prints() {
	grep -q -- "$1" "$work/out"
}
complains() {
	[ "$(wc -l <"$work/err")" -eq "$1" ] && grep -q -- "$2" "$work/err"
}

run -c 1 1
expect "rates, means and the 99th percentile of reads" \
    row_is read "read 1000 800 200 0 0 5 20 32 8 3"
expect "writes have errors and times beyond the last class" \
    row_is write "write 208 0 200 0 10 - 5000000 >4194304 8 3"
expect "what did nothing has no line" rows_are 3
run -c 1 -o disk 1
expect "one kind only" row_is disk "disk 0 0 0 0 0 - - - 8 3"
run -c 1 2
expect "rates are per second" row_is read "read 500 400 100 0 0 5 20 32 8 3"
run -c 2 1
expect "a line for an interval without requests" row_is - "- 0 0 0 0 0 - - - 8 3"
REPLAY=$work
export REPLAY
echo 5 >"$work/readings"
AIOSTAT_SYSCTL="$here/aiostat/replay" "$shell" "$aiostat" -h >"$work/out" 2>"$work/err"
expect "bars: every class with its count" prints '<2 us *860 |####*'
expect "bars: the smallest still shows" prints '<4096 us *2 |#$'
expect "bars: the last class has no end" prints '>=4194304 us *200 |'
expect "bars: only what was measured" test "$(grep -c 'time of service$' "$work/out")" -eq 2
echo 5 >"$work/readings"
AIOSTAT_SYSCTL="$here/aiostat/replay" "$shell" "$aiostat" -p >"$work/out" 2>"$work/err"
expect "processes: counts by process" test "$(awk '$1 == 900 { print $2, $3, $4 }' "$work/out")" = "5 3 0"
expect "processes: a line for each, and a head" rows_are 3
AIOSTAT_SYSCTL=false "$shell" "$aiostat" 1 >"$work/out" 2>"$work/err"
expect "without the module: one line" complains 1 'aio_rs is not loaded'
expect "without the module: nothing else" rows_are 0
run 0
expect "an interval of 0 is refused" complains 1 usage
run -x
expect "an unknown option is refused" grep -q usage "$work/err"
exit $failed
