#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make run: build the modules for the kernel at hand, load them, do real I/O, unload.
# On FreeBSD that kernel is the running one; elsewhere a test machine's (FREEBSD_VM).
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
. tests/common.sh

kmod/build.sh programs
if [ "$(uname -s)" = FreeBSD ]; then
	kmod/build.sh modules
	exec tests/freebsd.sh run
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
