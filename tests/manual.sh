#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# The manual pages, the installation and the probes: prints `ok`, `FAILED` or `SKIPPED` and a name
# per case; fails when one failed.  Needs modules that were built.
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

ok() {
	echo "ok manual: $*"
}
bad() {
	failed=1
	echo "FAILED manual: $*"
}

# Lint.  What a manual refers to is FreeBSD's and need not be installed here.
if command -v mandoc >/dev/null; then
	for page in share/man/*.[0-9]; do
		mandoc -T lint "$page" 2>/dev/null | grep -v 'referenced manual not found' >"$work/lint"
		if [ -s "$work/lint" ]; then
			bad "$page is not clean under mandoc -T lint"
			cat "$work/lint"
		else
			ok "$page is clean under mandoc -T lint"
		fi
	done
	mandoc -T ascii share/man/aio_rs.4 2>/dev/null | sed 's/.\x08//g' >"$work/text"
else
	echo "SKIPPED manual: mandoc is not installed: no manual page was checked"
fi

# Every leaf below vfs.aio.rs that the sources make.  Within a class of requests a leaf's name
# follows `op`; node names are taken as they are found.
leaves() {
	awk '
	# The name may follow on the next line.
	/tree\.(string|counter|computed|int|setting|node)\($/ { open = 1; next }
	/tree\.(string|counter|computed|int|setting|node)\(c"/ || open {
		line = $0
		open = 0
		if (match(line, /c"[a-z_0-9]+"/))
			print substr(line, RSTART + 2, RLENGTH - 3)
	}' src/aio/config.rs src/aio/statistics.rs
	# The tables of classes.
	sed -n 's/^    (c"\([a-z]*\)", \(Class\|Failure\)::.*/\1/p' src/aio/statistics.rs
}
leaves | sort -u >"$work/leaves"
[ "$(wc -l <"$work/leaves")" -ge 40 ] || bad "only $(wc -l <"$work/leaves") sysctl names were found in the sources"
missing=
while read -r leaf; do
	grep -Eq "^(\.It )?(\.)?(.*[. ])?Va [a-z.]*\.?$leaf\>|Va \.$leaf\>|^\.(Va|It Va) $leaf\$" share/man/aio_rs.4 ||
	    missing="$missing $leaf"
done <"$work/leaves"
if [ -z "$missing" ]; then
	ok "every sysctl of the sources is in aio_rs.4 ($(wc -l <"$work/leaves") names)"
else
	bad "not in aio_rs.4:$missing"
fi

# Every line that the modules print, with each argument as %.
messages() {
	python3 - <<'PYTHON'
import re, sys
def text(path):
    return open(path).read()
for path in ("src/entry/module.rs", "src/aio/engine.rs", "src/aio/config.rs"):
    for found in re.findall(r'print\(format_args!\(\s*"([^"]*)"', text(path)):
        print("aio_rs: " + re.sub(r"\{[^}]*\}", "%", found))
for path in ("kmod/gate/gate.rs", "kmod/gate/filters.rs"):
    source = text(path)
    strings = [s.replace("\\n", "") for s in re.findall(r'c"((?:[^"\\]|\\.)*)"', source)]
    formats = [s for s in strings if s.startswith("aio_rs:")]
    reasons = re.findall(r'(?:Some\(|^\s*)c"((?:a|the) [^"]*)"', source, re.M)
    for form in formats:
        if form.endswith(": %s"):
            for reason in reasons:
                print(form[:-2] + reason)
        else:
            print(re.sub(r"%[a-z]", "%", form))
# Any other call of printf(9) would be a line nobody documents.
import glob
for path in glob.glob("src/**/*.rs", recursive=True):
    if "sys::printf(" in text(path) and path != "src/kern/printf.rs":
        print("aio_rs: a call of printf in " + path)
PYTHON
}
if command -v python3 >/dev/null; then
	messages >"$work/messages"
	sed -n 's/^\.It "\(.*\)"$/\1/p' share/man/aio_rs.4 | sed 's/%[a-z]/%/g' >"$work/documented"
	[ "$(wc -l <"$work/messages")" -ge 12 ] || bad "only $(wc -l <"$work/messages") messages were found"
	if sort -u "$work/messages" | grep -vxF -f "$work/documented" >"$work/undocumented"; then
		bad "messages that are not in aio_rs.4:"
		cat "$work/undocumented"
	else
		ok "every message of the sources is in aio_rs.4 ($(sort -u "$work/messages" | wc -l))"
	fi
	if sort -u "$work/documented" | grep -vxF -f "$work/messages" >"$work/stale"; then
		bad "messages of aio_rs.4 that nobody prints:"
		cat "$work/stale"
	else
		ok "every message of aio_rs.4 is printed by the sources"
	fi
else
	echo "SKIPPED manual: python3 is not installed: messages were not compared"
fi

# Installation, into a scratch directory and out of it again.
if make install DESTDIR="$work/root" KMODDIR=/boot/other >"$work/log" 2>&1 &&
    make install DESTDIR="$work/root" >>"$work/log" 2>&1; then
	(cd "$work/root" && find . -type f | sort) >"$work/files"
	cat >"$work/expected" <<'FILES'
./boot/modules/aio_rs.ko
./boot/modules/aio_rs_gate.ko
./boot/other/aio_rs.ko
./boot/other/aio_rs_gate.ko
./usr/local/sbin/aiostat
./usr/local/share/man/man4/aio_rs.4
./usr/local/share/man/man8/aiostat.8
FILES
	if diff "$work/expected" "$work/files"; then
		ok "make install puts both modules, aiostat and the manual pages into DESTDIR and KMODDIR"
	else
		bad "make install"
	fi
	built=build/$(kmod/build.sh version)
	if cmp "$built/aio_rs.ko" "$work/root/boot/modules/aio_rs.ko" &&
	    cmp "$built/aio_rs_gate.ko" "$work/root/boot/modules/aio_rs_gate.ko"; then
		ok "what is installed is what was built"
	else
		bad "what is installed is not what was built"
	fi
	make uninstall DESTDIR="$work/root" KMODDIR=/boot/other >>"$work/log" 2>&1
	make uninstall DESTDIR="$work/root" >>"$work/log" 2>&1
	left=$(find "$work/root" -type f)
	if [ -z "$left" ]; then
		ok "make uninstall removes all of it"
	else
		bad "make uninstall leaves $left"
	fi
	plist=$(sed 's,/%%KMODDIR%%,./boot/modules,; s,^\([a-z]\),./usr/local/\1,; s,\.gz$,,' \
	    ports/sysutils/aio_rs-kmod/pkg-plist | sort)
	if [ "$plist" = "$(grep -v /boot/other "$work/expected")" ]; then
		ok "the port's list is what is installed"
	else
		bad "the port's list is not what is installed: $plist"
	fi
else
	bad "make install failed"
	cat "$work/log"
fi

# The probes: each has its entry in the set that the kernel looks through.
nm=/usr/lib/llvm-19/bin/llvm-readelf
[ -x "$nm" ] || nm=$(command -v readelf)
if [ -n "$nm" ]; then
	module=build/$(kmod/build.sh version)/aio_rs.ko
	probes=$(sed -n 's/^PROBE(\([a-z]*\),.*/\1/p' kmod/probes.c | sort)
	found=$("$nm" -r -W "$module" | awk '/^Relocation section/ { in_set = /set_sdt_probes_set/ }
	    in_set && /sdt_aio_rs___/ { for (i = 1; i <= NF; i++) if (sub(/^sdt_aio_rs___/, "", $i)) print $i }' |
	    sort)
	if [ "$(echo "$probes" | wc -w)" -eq 7 ] && [ "$probes" = "$found" ]; then
		ok "the probe set of aio_rs.ko holds every probe"
	else
		bad "the probe set of aio_rs.ko holds: $(echo $found); the source has: $(echo $probes)"
	fi
	providers=$("$nm" -r -W "$module" | awk '/^Relocation section/ { in_set = /set_sdt_providers_set/ }
	    in_set && /sdt_provider_aio_rs/ { n++ } END { print n + 0 }')
	if [ "$providers" = 1 ]; then
		ok "and its provider"
	else
		bad "$providers providers in aio_rs.ko"
	fi
	bare=build/$(PROBES=0 kmod/build.sh version)/aio_rs.ko
	if [ ! -f "$bare" ]; then
		echo "SKIPPED manual: no modules were built with PROBES=0"
	elif "$nm" -S -s -W "$bare" | grep -q sdt_; then
		bad "a module built with PROBES=0 has something of SDT"
	else
		ok "a module built with PROBES=0 has nothing of SDT"
	fi
else
	echo "SKIPPED manual: no readelf: the probe set was not looked at"
fi
exit $failed
