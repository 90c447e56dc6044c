# SPDX-License-Identifier: BSD-2-Clause
#
# What run.sh and test.sh share; sourced from the repository's top.

vm=${FREEBSD_VM:-$HOME/.cache/aio-rs/vm}
programs=target/x86_64-unknown-none/release

# Whether there is a test machine.
vm_at_hand() {
	[ -e "$vm/disk.qcow2" ] || [ -e "$vm/disk.img" ] ||
	    { [ -e "$vm/kernel" ] && [ -e "$vm/root.img" ]; }
}

# build_for_vm [next]: builds the modules for the test machine's kernel, from its source where there
# is one, and what tests load besides.  With next, a second time, to be upgraded to.
build_for_vm() {
	if [ -z "${SYSDIR:-}" ] && [ -f "$vm/sys/sys/param.h" ]; then
		SYSDIR=$vm/sys
		export SYSDIR
	fi
	[ "${1:-}" != next ] || TAG=next kmod/build.sh modules || return 1
	kmod/build.sh modules && kmod/build.sh test-modules || return 1
	vm_modules=build/$(kmod/build.sh version)
}

build_driver() {
	kmod/build.sh host build --quiet --locked --release -p vm
}

# The compiler that builds everything: Debian's, whatever else is installed.
rustc_of_build() {
	if [ -x /usr/bin/rustc ]; then echo /usr/bin/rustc; else echo rustc; fi
}
