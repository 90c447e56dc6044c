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
	# What can be counted without one.
	[ "$1" != bench ] || exec tests/bench-here.sh
	exit 0
fi
command=$1
shift
case $command in
vm-test|soak) build_for_vm next ;;
*) build_for_vm ;;
esac
kmod/build.sh programs
build_driver
# The gate in which threads linger.
[ "$command" != soak ] || GATE=wide kmod/build.sh modules
set -- --vm-dir "$vm" --modules "$vm_modules" --programs "$programs" "$@"
case $command in
vm-test) set -- --junit build/vm/junit.xml "$@" ;;
bench)
	if [ -n "${PROFILE:-}" ]; then
		kmod/build.sh host build --quiet --locked --release -p aio_rs_profile
		set -- --profile target/release/libaio_rs_profile.so "$@"
	else
		set -- --json build/vm/bench.json "$@"
	fi ;;
esac
exec target/release/vm "$command" "$@"
