#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# The same as the VM driver's `run` and `test`, on the FreeBSD machine this runs on, as root.
set -eu
cd "$(dirname "$0")/.."
modules=build/$(kmod/build.sh version)
programs=target/x86_64-unknown-none/release
file=$(mktemp)
trap 'rm -f "$file"' EXIT
dd if=/dev/random of="$file" bs=65536 count=64 2>/dev/null

load() {
	kldstat -q -n aio_rs_gate.ko || kldload "./$modules/aio_rs_gate.ko"
	kldload "./$modules/aio_rs.ko"
}

load
"$programs/aio_demo" --need-served "$file"
kldunload aio_rs
"$programs/aio_demo" "$file"
if [ "${1:-run}" = test ]; then
	load
	kldunload aio_rs
fi
