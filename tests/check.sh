#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# make check: format, lint and unit tests.  Needs no VM and no network once built.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
build=kmod/build.sh

# The proof in docs/architecture.md names all functions that C may call.
given=$(grep -rl 'extern "C" fn [a-z$]' src | sort | tr "\n" " ")
known="src/entry/events.rs src/entry/module.rs src/entry/syscalls.rs src/kern/sysctl.rs "
[ "$given" = "$known" ] || {
	echo "aio_rs: C may call functions in: $given(known: $known)" >&2
	exit 1
}

$build host fmt --all --check
# Whether the probe tries all that the modules import.
FREEBSD=14 SYSDIR= $build test-modules
# The kernel half is linted for this machine: the same code, with a prebuilt core.
$build lint
$build host clippy --quiet --locked -p kocheck -p vm -p aio_rs_profile --all-targets -- -D warnings
$build host test --quiet --locked --lib -p aio_rs
$build host test --quiet --locked -p kocheck -p vm
$build host test --quiet --locked --lib -p guest
