#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Transcripts: what the cases of our guest programs, and the probe module (tests/kmod/aio_rs_probe.c),
# say on a real kernel, as text in tests/transcripts, for machines on which there is none.
#
#   tests/transcripts.sh make            runs them in the test machine, and writes the files
#   tests/transcripts.sh merge DIR WHAT  writes the files of runs that are in DIR; WHAT ran them
#   tests/transcripts.sh compare PROGRAM LOG [builtin|aio_rs]
#                                        compares what a run printed with what a real kernel said
#   tests/transcripts.sh probe LOG       the same for the probe module
#
# A line is a case: its name, its result with the built-in and with aio_rs, and what the calls of AIO
# answered in it, with the built-in and with aio_rs (`=` where that is the same): errnos by their name,
# and the numbers of aio_cancel. A ? stands behind what only some of the runs gave.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
. tests/common.sh
version=1400507
dir=tests/transcripts

# What depends on when a call was made, not on what it promises: left out.
timing='aio_error:EINPROGRESS aio_suspend:EINTR aio_suspend:EAGAIN aio_waitcomplete:EINTR
aio_waitcomplete:EAGAIN aio_return:EINPROGRESS'

# What says only that a request was done when it was asked for: may come where a real kernel has
# always said that it was not. A success instead of an error is seen by the error that is lacking.
early='aio_error:0'

# Cases in which threads race: which of them wins is chance, so only the results are compared.
races='cancel_cancelling_at_any_moment_is_consistent
bug_f02_cancelling_all_while_others_collect
bug_l02_a_sync_never_comes_before_an_earlier_write
cancel_a_file_request_is_queued_completed_and_cancelled_at_once
cancel_a_socket_request_is_queued_completed_and_cancelled_at_once
lio_a_list_that_another_thread_unmaps_meanwhile_does_no_harm
bug_l03_racing_threads_keep_the_limit
bug_x2_close_and_exit_at_once
socket_f25_listen_and_aio_race
trouble_a_disk_may_go_with_requests_in_flight
trouble_a_memory_disk_may_go_with_requests_in_flight'

# merge DIR WHAT: DIR has ENGINE-RUN.log, with the case lines of all programs in "== PROGRAM" parts.
merge() {
	! grep -a '^FAIL ' "$1"/aio_rs-*.log || { echo "a case failed with aio_rs: no transcript" >&2; exit 1; }
	for program in conformance sockets pipes disks; do
		{
			echo "# What the cases of $program come to on a real kernel; tests/transcripts.sh says how to read it."
			echo "# $2"
			awk -v wanted="$program" -v timing="$(echo $timing)" '
			BEGIN { split(timing, words); for (i in words) late[words[i]] = 1 }
			FNR == 1 {
				engine = FILENAME; sub(/.*\//, "", engine); sub(/-.*/, "", engine)
				runs[engine]++; program = ""
			}
			$1 == "==" { program = $2 }
			program != wanted || $1 !~ /^(ok|FAIL|skip|differs)$/ { next }
			{
				name = $2; sub(/:$/, "", name)
				if (!(name in known)) { known[name] = 1; order[++count] = name }
				key = name SUBSEP engine
				if (index(" " result[key] " ", " " $1 " ") == 0)
					result[key] = result[key] (result[key] == "" ? "" : " ") $1
				ran[key]++
				saw = $NF
				if (saw !~ /^saw=/) next
				sub(/^saw=/, "", saw)
				parts = split(saw, calls, ";")
				for (i = 1; i <= parts; i++) {
					split(calls[i], pair, ":")
					its = split(pair[2], answers, ",")
					for (j = 1; j <= its; j++) {
						answer = pair[1] ":" answers[j]
						if (answer in late) continue
						if (!((key, answer) in times)) all[key] = all[key] " " answer
						times[key, answer]++
					}
				}
			}
			function seen(key,   n, i, text, words, word, calls, names, call) {
				n = split(all[key], words, " ")
				# Sorted, and by call.
				for (i = 2; i <= n; i++)
					for (j = i; j > 1 && words[j - 1] > words[j]; j--) {
						word = words[j]; words[j] = words[j - 1]; words[j - 1] = word
					}
				text = ""; call = ""
				for (i = 1; i <= n; i++) {
					split(words[i], names, ":")
					text = text (names[1] == call ? "," : (text == "" ? "" : ";") names[1] ":") names[2]
					if (times[key, words[i]] < ran[key]) text = text "?"
					call = names[1]
				}
				return text == "" ? "-" : text
			}
			function results(key,   text) {
				text = result[key]
				gsub(/ /, "/", text)
				return text == "" ? "-" : text
			}
			END {
				for (i = 1; i <= count; i++) {
					b = order[i] SUBSEP "builtin"; o = order[i] SUBSEP "aio_rs"
					sb = seen(b); so = seen(o)
					print order[i], results(b), results(o), sb, so == sb ? "=" : so
				}
			}' "$1"/builtin-*.log "$1"/aio_rs-*.log
		} >"$dir/$version-$program.txt"
		echo "$dir/$version-$program.txt: $(grep -vc '^#' "$dir/$version-$program.txt") cases"
	done
	# The facts must be the same in all runs.
	first=
	for run in "$1"/aio_rs-*.log; do
		probe_lines "$run" >"$1/probe.txt"
		[ -s "$1/probe.txt" ] || { echo "$run: the probe did not run" >&2; exit 1; }
		if [ -z "$first" ]; then
			first=$run
			{
				echo "# What tests/kmod/aio_rs_probe.c finds the functions of a real kernel to do."
				echo "# $2"
				cat "$1/probe.txt"
			} >"$dir/$version-probe.txt"
			cp "$1/probe.txt" "$1/probe.first"
		else
			diff "$1/probe.first" "$1/probe.txt" || { echo "$first and $run differ" >&2; exit 1; }
		fi
	done
	echo "$dir/$version-probe.txt: $(wc -l <"$1/probe.first") facts"
}

# The probe's lines of a log.
probe_lines() {
	sed -n 's/^.*aio_rs_probe: //p' "$1"
}

# compare PROGRAM LOG ENGINE
compare() {
	awk -v program="$1" -v engine="$3" -v timing="$(echo $timing $early)" -v races="$(echo $races)" '
	BEGIN {
		split(timing, words); for (i in words) late[words[i]] = 1
		split(races, words); for (i in words) racing[words[i]] = 1
		column = engine == "builtin" ? 2 : 3
	}
	function bad(name, why) { wrong++; print "DIFFERS " program "/" name ": " why }
	# What was seen, with "?" kept apart.
	function spread(text, into, maybe,   i, j, parts, calls, pair, n, answers, its) {
		split("", into); split("", maybe)
		if (text == "-") return
		parts = split(text, calls, ";")
		for (i = 1; i <= parts; i++) {
			split(calls[i], pair, ":")
			n = split(pair[2], answers, ",")
			for (j = 1; j <= n; j++) {
				its = pair[1] ":" answers[j]
				if (sub(/\?$/, "", its)) maybe[its] = 1
				else into[its] = 1
			}
		}
	}
	/^#/ && NR == FNR { next }
	NR == FNR {
		wanted[$1] = $column
		saw[$1] = column == 3 && $5 != "=" ? $5 : $4
		next
	}
	$1 !~ /^(ok|FAIL|skip|differs)$/ { next }
	{
		name = $2; sub(/:$/, "", name)
		ran[name] = 1
		if (!(name in wanted) || wanted[name] == "-") { unknown++; names = names " " name; next }
		if ($1 == "skip" || wanted[name] == "skip") { skipped++; next }
		# The built-in does not always differ where it may.
		differs = column == 2 && (wanted[name] $1) ~ /^(okdiffers|differsok)$/
		if (!differs && index("/" wanted[name] "/", "/" $1 "/") == 0) {
			bad(name, $1 " here, " wanted[name] " on a real kernel"); next
		}
		compared++
		if (differs || name in racing) next
		text = "-"
		if ($NF ~ /^saw=/) { text = $NF; sub(/^saw=/, "", text) }
		spread(text, here, none)
		spread(saw[name], must, may)
		for (its in must) if (!(its in here)) bad(name, its " did not come, as it does on a real kernel")
		for (its in here) if (!(its in must) && !(its in may) && !(its in late))
			bad(name, its " came, as it does not on a real kernel")
	}
	END {
		for (name in wanted) if (!(name in ran) && wanted[name] != "-") bad(name, "was not run")
		printf "%s: %d cases compared with a real kernel, %d skipped, %d not in the transcript%s; %d differences\n",
		    program, compared, skipped, unknown, names == "" ? "" : " (" substr(names, 2) ")", wrong
		exit !compared || wrong
	}' "$dir/$version-$1.txt" "$2"
}

# probe LOG
probe() {
	probe_lines "$2" >build/probe.txt
	grep -v '^#' "$dir/$version-probe.txt" >build/probe.wanted
	diff build/probe.wanted build/probe.txt &&
	    echo "probe: $(wc -l <build/probe.txt) facts are as on a real kernel"
}

make_all() {
	vm_at_hand || { echo "no test machine in $vm" >&2; exit 1; }
	build_for_vm && kmod/build.sh programs && build_driver
	work=build/transcripts
	rm -rf $work && mkdir -p $work
	kernels=plain
	[ ! -e "$vm/kernel-debug" ] || kernels='plain debug'
	cases='kldload -n sctp 2>/dev/null; for p in conformance sockets pipes disks; do echo == $p; mkdir /media/$p; cd /media/$p; /mnt/bin/$p; done; echo == end'
	for kernel in $kernels; do
		for engine in builtin aio_rs; do
			module='' probe=''
			if [ $engine = builtin ]; then
				module=--no-module
			else
				probe='; /mnt/bin/probe /mnt/aio_rs_probe.ko; echo probe: exit $?; dmesg'
			fi
			# shellcheck disable=SC2086 # words
			target/release/vm exec "$cases$probe" --vm-dir "$vm" --modules "$vm_modules" \
			    --programs "$programs" --kernel "$kernel" --smp 2 --out "$work/$engine-$kernel" \
			    --kenv kern.racct.enable=1 $module </dev/null >"$work/$engine-$kernel.log"  || true
			grep -q '^== end' "$work/$engine-$kernel.log" ||
			    { echo "the run of $engine on $kernel did not end" >&2; exit 1; }
		done
	done
	merge $work "FreeBSD 14.0-STABLE amd64, __FreeBSD_version $version; 2 CPUs, kernels: $kernels."
}

case ${1:-} in
make) make_all ;;
merge) merge "$2" "$3" ;;
compare) compare "$2" "$3" "${4:-aio_rs}" ;;
probe) probe "$@" ;;
*) sed -n '4,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
