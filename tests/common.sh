# SPDX-License-Identifier: BSD-2-Clause
#
# What the scripts share; sourced from the repository's top, which is $top.

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

# with_scenario NAME COMMAND...: runs the command with what a scenario of the host kernel is: options, --,
# and the programs that run beside each other; @seed stands for the seed. $hk is the directory of the
# modules, and $hk-next of those of another version.
with_scenario() {
	scenario=$1
	shift
	case $scenario in
	# Processes that submit, wait, cancel, fork, exec, exit and are killed.
	stress) "$@" -- "$programs/stress" --procs 3 --threads 2 --requests 500 --life 90 --seed @seed ;;
	# The same on a disk that fails, storms on disks, and disks that go.
	disk)
		"$@" --disk da0:2097152 --disk da1:2097152:faults -- \
		    "$programs/stress" --procs 3 --threads 2 --requests 300 --life 90 --seed @seed \
		    --disk /dev/da1 -- \
		    "$programs/disks" --storm /dev/da0 --bytes 2097152 --requests 60 --depth 24 --seed @seed -- \
		    "$programs/disks" --storm /dev/da1 --bytes 2097152 --requests 60 --depth 24 --seed @seed \
		    --faults -- "$programs/disks" trouble_a_ ;;
	# Processes that read, write, cancel, shut down and end on sockets, and on pipes.
	storm) "$@" -- "$programs/storm" --procs 3 --requests 800 --each 80 --seed @seed ;;
	storm-pipes) "$@" -- "$programs/storm" --pipes --procs 3 --requests 800 --each 80 --seed @seed ;;
	# Settings and statistics, and descriptors that go under requests.
	churn)
		"$@" --disk da0:2097152 -- "$programs/churn" --seconds 1 --procs 2 --threads 2 --seed @seed \
		    --disk /dev/da0 --settings --pipes ;;
	# Processes under which the engine comes and goes.
	reload)
		"$@" --disk da0:2097152 --disk da1:2097152 -- \
		    "$programs/reload" --procs 4 --reloads 8 --seed @seed --disk /dev/da0 --raw /dev/da1 \
		    "$top/${hk#"$top"/}/aio_rs.ko" "$top/${hk#"$top"/}-next/aio_rs.ko" ;;
	*)
		echo "no scenario $scenario" >&2
		return 2 ;;
	esac
}

# The compiler that builds everything: Debian's, whatever else is installed.
rustc_of_build() {
	if [ -x /usr/bin/rustc ]; then echo /usr/bin/rustc; else echo rustc; fi
}
