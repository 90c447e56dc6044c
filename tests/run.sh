#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make run: build the modules, load them, do real I/O through them, unload.  On FreeBSD in the
# running kernel; elsewhere in the host kernel (docs/hostkern.md), or with VM=1 in a test machine
# (FREEBSD_VM).  TREE=<dir> is what is copied.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
. tests/common.sh

kmod/build.sh programs
if [ "$(uname -s)" = FreeBSD ]; then
	kmod/build.sh modules
	exec tests/freebsd.sh run
fi
if [ -z "${VM:-}" ]; then
	kmod/build.sh modules
	kmod/build.sh hostkern
	out=build/$(kmod/build.sh version)
	tree=${TREE:-$($(rustc_of_build) --print sysroot)/lib/rustlib/src/rust/library}
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM
	head -c 1000000 /dev/urandom >"$work/file"
	echo "aio_rs: copying $tree with 64 requests in flight, no FreeBSD involved"
	"$out/hostkern" run --progress --modules "$out" -- \
	    "$programs/aio_demo" --need-served "$work/file" -- \
	    "$programs/aio_copytree" --inflight 64 "$tree" "$work/copy"
	# A second opinion on what was copied.
	diff -r --no-dereference "$tree" "$work/copy" >"$work/diff" 2>&1 || {
		head -5 "$work/diff"
		echo "aio_rs: the copy differs"
		exit 1
	}
	echo "aio_rs: diff finds no difference between $tree and its copy"
	exit 0
fi
if ! vm_at_hand; then
	kmod/build.sh modules
	echo "aio_rs: built, but NOT RUN: no FreeBSD test machine in $vm"
	echo "aio_rs: set FREEBSD_VM to a folder with one; README.md says what it holds"
	exit 3
fi
build_for_vm
build_driver
exec target/release/vm run --vm-dir "$vm" --modules "$vm_modules" --programs "$programs"
