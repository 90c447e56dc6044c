#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# places.sh HERE VM: a table of the guest programs' cases by the places they ran in: the host kernel
# (HERE: "program/case seed result" a line), and FreeBSD with aio_rs and with the built-in (VM: what
# the VM driver printed; may be missing).  Of several runs in a place the worst counts.  The last
# line sums up.
set -eu
vm=$2
[ -f "$vm" ] || vm=/dev/null
awk '
function place(case_, column, result) {
	if (!(case_ in known)) { known[case_] = 1; order[++count] = case_ }
	result = tolower(result)
	rank["passed"] = 1; rank["skipped"] = 2; rank["differs"] = 3; rank["expected"] = 3
	rank["failed"] = 4
	if (!(result in rank)) return
	if (rank[result] > rank[at[case_, column]] + 0) at[case_, column] = result
}
file == 1 {
	result = $3 == "ok" ? "passed" : $3 == "skip" ? "skipped" : "failed"
	place($1, "here", result)
	next
}
$1 ~ /^(plain|debug)$/ && $2 ~ /^(conformance|sockets|pipes|disks|policy)[^\/]*\// {
	split($2, part, "/")
	program = part[1]; sub(/(32)?-.*/, "", program)
	place(program "/" part[2], "built-in", $3)
	place(program "/" part[2], "aio_rs", $4)
}
END {
	split("here aio_rs built-in", columns, " ")
	printf "%-90s %-12s %-16s %s\n", "case", "host kernel", "FreeBSD, aio_rs", "FreeBSD, built-in"
	for (i = 1; i <= count; i++) {
		printf "%-90s", order[i]
		for (c = 1; c <= 3; c++) {
			result = at[order[i], columns[c]]
			if (result == "") result = "-"
			if (result == "passed") sum[c]++
			printf c == 1 ? " %-12s" : c == 2 ? " %-16s" : " %s\n", result
		}
	}
	printf "%d cases: passed in the host kernel %d, on FreeBSD with aio_rs %d, with the built-in %d (build/places.txt)\n",
	    count, sum[1], sum[2], sum[3]
}' file=1 "$1" file=2 "$vm"
