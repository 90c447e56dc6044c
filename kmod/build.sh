#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Builds the two modules.  `make` calls this; it runs on Debian 12 and on FreeBSD.
#
#   kmod/build.sh deps      install what the build needs (Debian; on FreeBSD: say what is missing)
#   kmod/build.sh headers   make the kernel's headers ready
#   kmod/build.sh modules   build and check build/<target>/aio_rs{,_gate}.ko
#   kmod/build.sh install   put what was built, tools and manual pages into place
#   kmod/build.sh uninstall take them away again
#   kmod/build.sh programs  build the guest programs
#   kmod/build.sh hostkern  build build/<target>/hostkern, which loads them on Linux
#   kmod/build.sh hostkern-test  test it, against modules and programs that are built
#   kmod/build.sh test-modules  build the modules of tests/kmod
#   kmod/build.sh lint      lint the kernel half
#   kmod/build.sh host ARGS cargo ARGS, for programs of this machine
#   kmod/build.sh version   the __FreeBSD_version that is built for
#
# install and uninstall know KMODDIR (/boot/modules), PREFIX (/usr/local) and DESTDIR.
# PROBES=0 leaves the DTrace probes out, for a kernel without KDTRACE_HOOKS.
# GATE=wide makes a gate in which threads linger, for tests only, in a directory of its own.
# TAG=<word> gives the build a version and a directory of its own: 0.1.0+<word>.
# FREEBSD=14|15 names a packaged header set; SYSDIR=<dir> a kernel source tree, which wins.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
os=$(uname -s)
FREEBSD=${FREEBSD:-14}
SYSDIR=${SYSDIR:-}
PROBES=${PROBES:-1}
GATE=${GATE:-}
AIO_RS_TAG=${TAG:-}
export AIO_RS_TAG
cache=${AIO_RS_CACHE:-$HOME/.cache/aio-rs}

die() {
	echo "aio_rs: $*" >&2
	exit 1
}

# The packaged header sets: the PyPI package ziglang carries the kernel's headers of one release.
case $FREEBSD in
14)
	zig_version=0.15.2 osversion=1403000
	zig_sha256=806316453d1ede7174ed3fefb8e5348154629089c3bb5fe812dfd0e172fac130 ;;
15)
	zig_version=0.17.0 osversion=1500068
	zig_sha256=97079827064a7492cce5541ceb438ae8003ce1e54e399676da2d62fb7a5dc08b ;;
*)
	die "FREEBSD=$FREEBSD: known header sets are 14 and 15; for another kernel give SYSDIR=<its source>" ;;
esac

case $os in
Linux)
	llvm=/usr/lib/llvm-19/bin
	CC=$llvm/clang LD=$llvm/ld.lld AR=$llvm/llvm-ar OBJCOPY=$llvm/llvm-objcopy NM=$llvm/llvm-nm
	CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc
	LIBCLANG_PATH=/usr/lib/llvm-19/lib
	# Debian's toolchain, whatever else is installed: cargo finds its helpers in PATH.
	PATH=/usr/bin:$PATH
	export LIBCLANG_PATH PATH ;;
FreeBSD)
	CC=cc LD=ld AR=ar OBJCOPY=objcopy NM=nm CARGO=cargo RUSTC=rustc
	if [ -z "$SYSDIR" ] && [ -f /usr/src/sys/sys/param.h ]; then
		SYSDIR=/usr/src/sys
	fi ;;
*)
	die "builds run on Linux and FreeBSD, not on $os" ;;
esac
export RUSTC

if [ -n "$SYSDIR" ]; then
	[ -f "$SYSDIR/sys/param.h" ] || die "SYSDIR=$SYSDIR is not a kernel source (no sys/param.h)"
	SYSDIR=$(cd "$SYSDIR" && pwd)
	osversion=$(awk '/^#define[ \t]+__FreeBSD_version[ \t]/ { print $3 }' "$SYSDIR/sys/param.h")
fi
target=$osversion
[ "$PROBES" != 0 ] || target=$target-noprobes
[ -z "$GATE" ] || target=$target-$GATE
[ -z "$AIO_RS_TAG" ] || target=$target-$AIO_RS_TAG
out=$top/build/$target

deps() {
	case $os in
	Linux)
		packages=
		need() { # a file the package gives, the package
			[ -e "$1" ] || packages="$packages $2"
		}
		need $llvm/clang clang-19
		need $llvm/ld.lld lld-19
		need $llvm/llvm-objcopy llvm-19
		need /usr/lib/llvm-19/lib/libclang.so libclang-19-dev
		need /usr/bin/rustc rustc-web
		need /usr/bin/cargo cargo-web
		need /usr/lib/rustlib/src/rust/library/Cargo.lock rust-web-src
		need /usr/bin/cargo-fmt rustfmt-web
		need /usr/bin/rustfmt rustfmt-web
		need /usr/bin/cargo-clippy rust-web-clippy
		need /usr/bin/cc gcc
		need /usr/include/stdio.h libc6-dev
		need /usr/bin/python3 python3
		need /usr/bin/qemu-system-x86_64 qemu-system-x86
		need /usr/sbin/makefs makefs
		if [ -z "$SYSDIR" ]; then
			need /usr/bin/pip3 python3-pip
			need /usr/bin/unzip unzip
		fi
		[ -z "$packages" ] && return
		# A name may stand twice (two files of one package).
		packages=$(printf '%s\n' $packages | sort -u | tr '\n' ' ')
		echo "aio_rs: installing from Debian: $packages"
		[ "$(id -u)" = 0 ] || die "not root; install these and run make again: $packages"
		export DEBIAN_FRONTEND=noninteractive
		log=$(mktemp)
		{ apt-get update && apt-get install -y --no-install-recommends $packages; } \
		    >"$log" 2>&1 || { tail -20 "$log" >&2; die "apt-get failed ($log)"; } ;;
	FreeBSD)
		missing=
		for tool in cargo rustc bindgen; do
			command -v $tool >/dev/null || missing="$missing $tool"
		done
		[ -d "$($RUSTC --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library" ] ||
		    missing="$missing rust-src"
		[ -z "$missing" ] ||
		    die "missing:$missing; see README.md for the packages" ;;
	esac
}

headers() {
	[ -z "$SYSDIR" ] || { sysdir_headers; return; }
	include=$cache/headers/$zig_version/ziglang/lib/libc/include
	[ -f "$include/.complete" ] && return
	echo "aio_rs: fetching the headers of FreeBSD $FREEBSD (PyPI: ziglang $zig_version)"
	work=$(mktemp -d)
	echo "ziglang==$zig_version --hash=sha256:$zig_sha256" >"$work/requirements"
	pip3 download --quiet --no-deps --require-hashes --only-binary :all: \
	    --platform manylinux_2_12_x86_64 --disable-pip-version-check \
	    -r "$work/requirements" -d "$work" >"$work/log" 2>&1 ||
	    { tail -5 "$work/log" >&2; die "the header package could not be fetched"; }
	mkdir -p "$cache/headers/$zig_version"
	unzip -q -o "$work"/ziglang-*.whl 'ziglang/lib/libc/include/*freebsd*' \
	    -d "$cache/headers/$zig_version"
	touch "$include/.complete"
	rm -rf "$work"
}

# What a kernel build generates from its source, in a directory of ours.
sysdir_headers() {
	gen=$out/include
	[ -f "$gen/.complete" ] && return
	mkdir -p "$gen"
	for pair in machine:amd64 x86:x86 i386:i386; do
		dir=$SYSDIR/${pair#*:}/include
		[ -d "$dir" ] && ln -sfn "$dir" "$gen/${pair%%:*}"
	done
	for part in h p q; do
		(cd "$gen" && awk -f "$SYSDIR/tools/vnode_if.awk" "$SYSDIR/kern/vnode_if.src" -$part)
	done
	touch "$gen/.complete"
}

set_flags() {
	if [ -n "$SYSDIR" ]; then
		includes="-nostdinc -I$out/include -I$SYSDIR -I$SYSDIR/contrib/ck/include"
	else
		include=$cache/headers/$zig_version/ziglang/lib/libc/include
		includes="-nostdinc -isystem $include/x86_64-freebsd-none"
		includes="$includes -isystem $include/generic-freebsd -I$top/kmod/include/packaged"
		includes="$includes -D__FreeBSD_version=$osversion -DAIO_RS_PACKAGED_HEADERS"
	fi
	AIO_RS_CFLAGS="--target=x86_64-unknown-freebsd${osversion%?????}.0 -std=gnu17 -ffreestanding \
-fno-common -fwrapv -mcmodel=kernel -mno-red-zone -mno-mmx -mno-sse -mno-avx \
-msoft-float -mno-aes -fno-asynchronous-unwind-tables -fno-omit-frame-pointer \
-mno-omit-leaf-frame-pointer -fno-stack-protector -D_KERNEL -DKLD_MODULE \
-ffile-prefix-map=$top=. -Wall -Wextra -Wno-unused-parameter \
-Wno-sign-compare -Wno-missing-field-initializers \
-I$top/kmod/include -include $top/kmod/include/opt_global.h $includes"
	[ "$PROBES" != 0 ] || AIO_RS_CFLAGS="$AIO_RS_CFLAGS -DAIO_RS_NO_PROBES"
	AIO_RS_CLIBS=$out/clibs
	export AIO_RS_CFLAGS AIO_RS_CLIBS
	# cc(1)'s crate reads these for the target.
	CC_x86_64_unknown_none=$CC AR_x86_64_unknown_none=$AR
	export CC_x86_64_unknown_none AR_x86_64_unknown_none
	mkdir -p "$AIO_RS_CLIBS"
}

rust_source=$($RUSTC --print sysroot 2>/dev/null || true)/lib/rustlib/src/rust

# cargo for the kernel: core and alloc are built for a target without SSE, red zone or GOT.
kernel_cargo() {
	RUSTC_BOOTSTRAP=1 \
	RUSTFLAGS="-Crelocation-model=static -Ccode-model=kernel -Zplt=yes -Cforce-frame-pointers=yes \
-Cforce-unwind-tables=no -Zemit-stack-sizes -Zfunction-sections=yes -Cmetadata=aio_rs \
--remap-path-prefix=$top=. --remap-path-prefix=$rust_source=/rust \
--remap-path-prefix=/usr/src/rustc-$($RUSTC --version | cut -d' ' -f2)=/rust \
--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
	CARGO_TARGET_DIR=$out/cargo \
	$CARGO "$@" --locked --release --target x86_64-unknown-none \
	    -Zbuild-std=core,alloc,compiler_builtins
}

# link_module NAME RUSTLIB CLIB EXPORTS...
link_module() {
	name=$1 rustlib=$2 clib=$3
	shift 3
	# Only the crate's own code, into which link-time optimisation has drawn what it uses of core
	# and alloc.  What the compiler calls besides (memcpy and the like) is the kernel's.
	rm -rf "$out/$name.objects"
	mkdir "$out/$name.objects"
	(cd "$out/$name.objects" && $AR x "$rustlib" && rm -f compiler_builtins-*.o)
	$LD -m elf_x86_64_fbsd -r --build-id=none -T "$top/kmod/kmod.ld" -o "$out/$name.full" \
	    --whole-archive "$AIO_RS_CLIBS/lib$clib.a" --no-whole-archive "$out/$name.objects"/*.o
	globals=
	for symbol; do
		globals="$globals --keep-global-symbol=$symbol"
	done
	# Only what the other module links to stays global.
	$OBJCOPY $globals ${globals:---keep-global-symbol=aio_rs_modevent} "$out/$name.full"
	$OBJCOPY --strip-debug --remove-section=.comment --remove-section=.note.GNU-stack \
	    --remove-section=.llvm_addrsig --remove-section=.llvmbc --remove-section=.llvmcmd \
	    "$out/$name.full" "$out/$name.ko.tmp"
	mv "$out/$name.ko.tmp" "$out/$name.ko"
}

# host_cargo ARGS: cargo for what runs on this machine.
host_cargo() {
	CARGO_TARGET_DIR=$top/target $CARGO "$@"
}

# What the kernel's linker would refuse, what we do not allow ourselves: see tests/kocheck.
check() {
	host_cargo build --quiet --locked --release -p kocheck
	# Where probes lead has another name since FreeBSD 15.
	if [ "$PROBES" = 0 ]; then
		probes=
	elif [ "$osversion" -lt 1500000 ]; then
		probes="--allow $top/kmod/probes-14.allow"
	else
		probes="--allow $top/kmod/probes-15.allow"
	fi
	# shellcheck disable=SC2086 # words
	"$top/target/release/kocheck" --allow "$top/kmod/imports.allow" $probes --stack-frame 1024 \
	    --stack-chain 3072 --report "$out/kocheck.txt" "$@" >/dev/null
}

# The programs that run in a guest: static, without libc, for any FreeBSD on amd64, in 64 bits and
# in 32.
programs() {
	cd "$top"
	RUSTC_BOOTSTRAP=1 host_cargo build --quiet --locked --release -p guest \
	    --config tests/guest/freebsd.toml
	# Of the others it is no matter how wide they are.
	RUSTC_BOOTSTRAP=1 host_cargo build --quiet --locked --release -p guest \
	    --config tests/guest/freebsd32.toml --bin aio_demo \
	    --bin conformance --bin deliver --bin fuzz --bin stress
}

# The host kernel, for the same headers as the modules.
hostkern() {
	headers
	set_flags
	cd "$top"
	# Frame pointers: a report says by which way a module came.
	RUSTFLAGS=-Cforce-frame-pointers=yes CARGO_TARGET_DIR=$top/target/hostkern-$target \
	    $CARGO build --quiet --locked --release -p hostkern
	mkdir -p "$out"
	cp "$top/target/hostkern-$target/release/hostkern" "$out/hostkern"
}

# Tests that the host kernel finds what it is there to find.
hostkern_test() {
	headers
	set_flags
	cd "$top"
	export CC LD
	HOSTKERN_MODULES=$out HOSTKERN_VERSION=$osversion \
	    HOSTKERN_PROGRAMS=$top/target/x86_64-unknown-none/release \
	    CARGO_TARGET_DIR=$top/target/hostkern-$target RUSTFLAGS=-Cforce-frame-pointers=yes \
	    $CARGO test --locked --release -p hostkern -- --nocapture
}

# Modules that only tests load: one C file each, and those in a folder of its name.
test_modules() {
	headers
	set_flags
	for source in "$top"/tests/kmod/*.c; do
		name=$(basename "$source" .c)
		# The packaged headers have none of the MAC framework's.
		[ -n "$SYSDIR" ] || [ "$name" != aio_rs_mac ] || continue
		rm -rf "$out/$name.parts"
		mkdir "$out/$name.parts"
		for part in "$source" "$top/tests/kmod/$name"/*.c; do
			[ -f "$part" ] || continue
			# shellcheck disable=SC2086 # flags are words
			$CC $AIO_RS_CFLAGS -O2 -Werror -c -o "$out/$name.parts/$(basename "$part" .c).o" "$part"
		done
		$LD -m elf_x86_64_fbsd -r -T "$top/kmod/kmod.ld" -o "$out/$name.ko" "$out/$name.parts"/*.o
	done
	check_tried
}

# names FILE: what is in a list, without its comments, sections and words before the names.
names() {
	sed -e 's/#.*//' -e '/^\[/d' -e 's/^weak //' -e '/^$/d' "$1" | sort -u
}

# The probe must try what the modules import, but for what tests/kmod/untried has with a reason.
check_tried() {
	names "$top/kmod/imports.allow" >"$out/imports.names"
	names "$top/tests/kmod/untried" >"$out/untried.names"
	$NM -u "$out/aio_rs_probe.ko" | awk '{ print $NF }' | sort -u >"$out/tried.names"
	untried=$(comm -23 "$out/imports.names" "$out/tried.names" | comm -23 - "$out/untried.names")
	[ -z "$untried" ] || die "aio_rs_probe.c does not try, and tests/kmod/untried does not name:" $untried
	stale=$(comm -13 "$out/imports.names" "$out/untried.names")
	[ -z "$stale" ] || die "tests/kmod/untried names what no module imports:" $stale
}

# Lints the kernel half for this machine: the same code, with a prebuilt core.
lint() {
	headers
	set_flags
	cd "$top"
	export CC AR
	CARGO_TARGET_DIR=$top/target/lint $CARGO clippy --quiet --locked -p aio_rs -p aio_rs_gate -p sys-bindings \
	    --features aio_rs/kernel -- -D warnings
	CARGO_TARGET_DIR=$top/target/lint $CARGO clippy --quiet --locked -p hostkern --all-targets -- -D warnings
}

modules() {
	headers
	set_flags
	cd "$top"
	# shellcheck disable=SC2086 # words
	kernel_cargo build --quiet -p aio_rs_gate ${GATE:+--features $GATE}
	kernel_cargo build --quiet -p aio_rs --features kernel
	lib=$out/cargo/x86_64-unknown-none/release
	link_module aio_rs_gate "$lib/libaio_rs_gate.a" aio_rs_gate_c \
	    aio_rs_gate_attach aio_rs_gate_bio_done aio_rs_gate_detach aio_rs_gate_pipe_filter \
	    aio_rs_gate_soaio_rcv aio_rs_gate_soaio_snd aio_rs_gate_worker
	link_module aio_rs "$lib/libaio_rs.a" aio_rs_c
	# A module with a planted defect (tests/mutants.sh) may use less than is allowed, or more.
	[ -n "${UNCHECKED:-}" ] || check "$out/aio_rs.ko" "$out/aio_rs_gate.ko"
	[ -n "$AIO_RS_TAG$GATE" ] || ln -sfn "$target" "$top/build/current"
	echo "aio_rs: built build/$target/aio_rs_gate.ko and build/$target/aio_rs.ko for __FreeBSD_version $osversion"
}

# What an installation consists of: source, directory, mode.
installed() {
	for module in aio_rs_gate.ko aio_rs.ko; do
		echo "$out/$module ${KMODDIR:-/boot/modules} 555"
	done
	echo "$top/tools/aiostat ${PREFIX:-/usr/local}/sbin 555"
	echo "$top/share/man/aio_rs.4 ${PREFIX:-/usr/local}/share/man/man4 444"
	echo "$top/share/man/aiostat.8 ${PREFIX:-/usr/local}/share/man/man8 444"
}

# kld_index: the loader's and kldload's list of modules, of the system that runs.
kld_index() {
	[ "$os" = FreeBSD ] && [ -z "${DESTDIR:-}" ] || return 0
	kldxref "${KMODDIR:-/boot/modules}"
}

install_all() {
	for module in aio_rs_gate.ko aio_rs.ko; do
		[ -f "$out/$module" ] || die "there is no build/$target/$module to install; run make first"
	done
	installed | while read -r source dir mode; do
		mkdir -p "${DESTDIR:-}$dir"
		install -m "$mode" "$source" "${DESTDIR:-}$dir/"
		echo "aio_rs: installed ${DESTDIR:-}$dir/$(basename "$source")"
	done
	kld_index
}

uninstall_all() {
	installed | while read -r source dir mode; do
		file=${DESTDIR:-}$dir/$(basename "$source")
		[ -f "$file" ] || continue
		rm -f "$file"
		echo "aio_rs: removed $file"
	done
	kld_index
}

case ${1:-} in
install) install_all ;;
uninstall) uninstall_all ;;
deps) deps ;;
headers) headers ;;
modules) modules ;;
programs) programs ;;
hostkern) hostkern ;;
hostkern-test) hostkern_test ;;
test-modules) test_modules ;;
host) shift; cd "$top"; host_cargo "$@" ;;
lint) lint ;;
version) echo "$target" ;;
*) die "usage: kmod/build.sh deps|headers|modules|install|uninstall|programs|hostkern|lint|host ARGS|version" ;;
esac
