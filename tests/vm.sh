#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# tests/vm.sh COMMAND [OPTIONS]: the VM driver, with modules built for the test machine's kernel.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
. tests/common.sh

if ! vm_at_hand; then
	echo "aio_rs: SKIPPED: no FreeBSD test machine in $vm (README.md says what one is)"
	exit 0
fi
build_for_vm
kmod/build.sh programs
build_driver
command=$1
shift
set -- "$command" --vm-dir "$vm" --modules "$vm_modules" --programs "$programs" "$@"
[ "$command" != vm-test ] || set -- "$@" --junit build/vm/junit.xml
exec target/release/vm "$@"
