# SPDX-License-Identifier: BSD-2-Clause
#
# For GNU make and FreeBSD's make alike.  README.md says what each target does.
#
#   FREEBSD=14|15     build for a packaged header set (default 14)
#   SYSDIR=<dir>      build for the kernel of this source tree
#   PROBES=0          leave the DTrace probes out, for a kernel without KDTRACE_HOOKS
#   KMODDIR, PREFIX, DESTDIR  where `make install` puts things
#   VM=1              run in a test machine instead of the host kernel
#   TREE=<dir>        what `make run` copies
#   FREEBSD_VM=<dir>  where the test machine is (default ~/.cache/aio-rs/vm)
#   PROFILE=1         bench: where the instructions go, instead of how many
#   ARGS=<options>    for the VM driver (vm --help)

all: deps
	@kmod/build.sh modules

deps:
	@kmod/build.sh deps

programs: deps
	@kmod/build.sh programs

# Format, lint, unit tests: seconds, before every commit.
check: deps
	@kmod/build.sh headers
	@tests/check.sh

# Build, load, do real I/O, show it: in the host kernel, or with VM=1 in a test machine.
run: deps
	@VM=$(VM) TREE=$(TREE) tests/run.sh

# Everything that can be tested on this machine, with counts at the end.
test: deps
	@tests/test.sh

# The base system's suite and ours, built-in beside aio_rs, case by case.
vm-test: deps
	@tests/vm.sh vm-test $(ARGS)

# The engine comes and goes 1,000 times, and half an hour of storms, in the test machine: an hour.
soak: deps
	@tests/vm.sh soak $(ARGS)

# Each planted defect of tests/mutants, in a copy: the host kernel must find it.  SEEDS=<most>
mutants: deps
	@SEEDS=$(SEEDS) tests/mutants.sh $(ARGS)

# Which basic blocks of the modules the host kernel's runs reach.  SEEDS=<of each scenario>
coverage: deps
	@tests/coverage.sh

# What our cases say on a real kernel, written to tests/transcripts: half an hour in the test machine.
transcripts: deps
	@tests/transcripts.sh make

# What calls cost on both engines: instructions, and time.  Figures, no verdict.
bench: deps
	@PROFILE=$(PROFILE) tests/vm.sh bench $(ARGS)

# A console with the module on board.
vm-shell: deps
	@tests/vm.sh shell $(ARGS)

# Both modules to /boot/modules, aiostat and the manual pages to /usr/local.
install:
	@kmod/build.sh install

uninstall:
	@kmod/build.sh uninstall

clean:
	rm -rf build target

.PHONY: coverage transcripts mutants all deps install uninstall programs check run test vm-test soak bench vm-shell clean
