// SPDX-License-Identifier: BSD-2-Clause
//! What the guest is to do, as steps for its runner (tests/guest, runner.rs, says what each step
//! means). Emulation is slow: time limits are meant for hangs, not for slow machines.

use crate::guest::Plan;
use crate::options::{Command, Options};
use std::fmt::Write;
use std::time::Duration;

/// Sysctls whose values must come back to what they were.
pub const GAUGES: [&str; 5] = [
    "kern.openfiles",
    "vfs.aio.num_queue_count",
    "vfs.aio.num_buf_aio",
    "vfs.aio.num_unmapped_aio",
    "vfs.numvnodes",
];

/// The guest's kernel version, and the tag it is reported under.
pub const VERSION: &str = "kern.osreldate";
/// See [`VERSION`].
pub const VERSION_TAG: &str = "kernel";

/// Requests in processes of ours that our engine could not serve, and the tags it is reported under,
/// before and after the base system's suite.
pub const UNSERVED: &str = "vfs.aio.rs.unserved";
/// See [`UNSERVED`].
pub const BEFORE_BASE: &str = "before-base";
/// See [`UNSERVED`].
pub const AFTER_BASE: &str = "after-base";

/// A module of tests/kmod that takes one of the system calls.
pub const STACK: &str = "aio_rs_stack.ko";

/// A module of tests/kmod that stands in for the engine, to try the gate.
pub const GATE_TEST: &str = "aio_rs_gatetest.ko";

/// A module of tests/kmod that listens to the engine's probes.
pub const LISTENER: &str = "aio_rs_listener.ko";

/// A MAC policy of tests/kmod.
pub const POLICY: &str = "aio_rs_mac.ko";

/// A module of tests/kmod that tries the kernel's functions, for transcripts.
pub const PROBE: &str = "aio_rs_probe.ko";

/// Where the gate in which threads linger is, beside the modules and in the guest.
pub const WIDE: &str = "wide";

/// The counts around the reloads.
pub const RELOADS: (&str, &str) = ("reload-before", "reload-after");

/// The storms of a soak: what runs at once.
const STORMS: [(&str, &[&str]); 4] = [
    (
        "reap-cancel-exit-disks",
        &["stress --requests 4000", "disks --bytes 16777216 --requests 1500 --storm /dev/md9"],
    ),
    ("notes-and-sockets", &["deliver --rounds 30", "storm --requests 3000"]),
    ("descriptors-and-exec", &["churn --seconds 20 --disk /dev/md9", "fuzz --calls 3000"]),
    (
        "settings",
        &[
            "churn --seconds 20 --procs 6 --settings",
            "disks --bytes 16777216 --requests 1000 --storm /dev/vtbd4 --settings",
        ],
    ),
];

/// The exit status of a step that could not be taken, and says why.
pub const SKIP: i32 = 77;

/// The step that prints the kernel's message buffer.
pub const KERNEL_LOG: &str = "kernel-log";

/// The engine's own counters.
const ENGINE: &str = "vfs.aio.rs.served vfs.aio.rs.unserved vfs.aio.rs.num_procs";

/// Picks a real file of a megabyte or more and reads it.
fn demo(need_served: bool) -> String {
    let need = if need_served { " --need-served" } else { "" };
    format!(
        "for f in /boot/kernel/kernel /rescue/sh /usr/lib/libc.a /lib/libc.so.7 /bin/sh; do \
         s=$(stat -L -f %z $f 2>/dev/null || echo 0); [ $s -ge 1048576 ] && break; done; \
         exec /mnt/bin/aio_demo $f{need}"
    )
}

/// A plan in the making.
struct Steps(String);

impl Steps {
    fn new() -> Self {
        // The scratch file system; fresh directories are made there.
        let mut steps = Self(String::new());
        steps.step(
            "mustsh scratch 120 lines mkdir -p /media && mount -t ufs -o noatime /dev/vtbd3 /media",
        );
        steps.step("work /media/work");
        // So that the kernel's buffer has what the kernel says, and not what the programs do.
        steps.step("sysctl kern.log_console_output 0");
        steps
    }

    fn step(&mut self, line: &str) {
        let _ = writeln!(self.0, "{line}");
    }

    fn load(&mut self, suffix: &str) {
        self.step(&format!("value {VERSION_TAG} {VERSION}"));
        self.step(&format!("mustsh load-gate{suffix} 120 lines kldstat -q -n aio_rs_gate.ko || kldload /mnt/aio_rs_gate.ko"));
        self.step(&format!("mustsh load{suffix} 120 lines kldload /mnt/aio_rs.ko"));
        self.step("mustsh kldstat 60 lines kldstat");
    }

    fn demo(&mut self, suffix: &str, need_served: bool) {
        self.step(&format!("sh aio_demo{suffix} 300 lines {}", demo(need_served)));
    }

    /// What workers are called, once both sorts have had something to do.
    fn names(&mut self) {
        self.step(
            "sh workers-have-names 300 lines /mnt/bin/sockets reads_are_served_in_order; \
             for w in aiod soaiod; do ps -axo comm | grep -E \"^$w[0-9]+\" || exit 1; done",
        );
    }

    fn conformance(&mut self) {
        self.step("run conformance-ufs 1800 lines /mnt/bin/conformance");
        self.step("run pipes 1800 lines /mnt/bin/pipes");
        self.sockets();
        self.step(
            "sh conformance-tmpfs 1800 lines mkdir -p /media/t && mount -t tmpfs tmpfs /media/t && cd /media/t \
             && { /mnt/bin/conformance; rc=$?; cd /; umount /media/t; exit $rc; }",
        );
        // The same cases in 32 bits, where the kernel has them.
        self.step("run conformance32-ufs 1800 lines /mnt/bin32/conformance");
    }

    /// What leads through much of the kernel: sockets, network stacks, policies.
    fn sockets(&mut self) {
        self.step("sh sockets 1800 lines kldload -n sctp; exec /mnt/bin/sockets");
        self.step("run storm 1800 lines /mnt/bin/storm --requests 20000");
        self.step(
            "sh storm-pipes 1800 lines sysctl -n vfs.aio.rs.park >/dev/null 2>&1 || exit 77; \
             exec /mnt/bin/storm --pipes --requests 20000",
        );
        self.step(
            "run storm-in-a-jail 1800 lines /mnt/bin/storm --own-stack --requests 10000 --procs 3",
        );
        self.step(&format!(
            "sh policy 600 lines [ $(sysctl -n security.mac.version 2>/dev/null || echo 0) -gt 0 ] || \
             {{ echo no MAC in this kernel; exit {SKIP}; }}; \
             [ -f /mnt/{POLICY} ] || {{ echo {POLICY} was not built: it needs the source; exit {SKIP}; }}; \
             kldload /mnt/{POLICY} || exit 1; /mnt/bin/policy; rc=$?; \
             kldunload aio_rs_mac || rc=1; exit $rc"
        ));
        self.step("run httpd 600 lines /mnt/bin/httpd");
    }

    /// Requests on disks: cases, and with `storm` that many checked at random on each kind of disk.
    fn disks(&mut self, storm: Option<u64>) {
        self.step("run disks 1800 lines /mnt/bin/disks");
        let Some(requests) = storm else { return };
        let storm = format!("/mnt/bin/disks --bytes 16777216 --requests {requests} --storm");
        self.step(&format!(
            "sh storm-md 3600 lines mdconfig -a -t malloc -s 16m -u 9 || exit 1; \
             {storm} /dev/md9; rc=$?; mdconfig -d -u 9; exit $rc"
        ));
        self.step(&format!("sh storm-virtio 3600 lines {storm} /dev/vtbd4 --seed 2"));
        self.step(&format!(
            "sh storm-faults 3600 lines which gnop || exit {SKIP}; \
             mdconfig -a -t malloc -s 16m -u 9 && gnop create -e 5 -r 5 -w 5 md9 || exit 1; sleep 1; \
             {storm} /dev/md9.nop --seed 3 --faults; rc=$?; gnop destroy md9.nop; mdconfig -d -u 9; \
             exit $rc"
        ));
    }

    /// Counts what could have leaked; the scratch file system must not be mounted.
    fn count(&mut self, tag: &str) {
        self.step(&format!("value {tag} {}", GAUGES.join(" ")));
        self.step(&format!("sh malloc-{tag} 60 lines vmstat -m"));
        self.step(&format!("sh zones-{tag} 60 lines vmstat -z"));
    }

    /// A program in a directory of the scratch file system.
    fn on_scratch(&mut self, name: &str, command: &str) {
        self.step(&format!(
            "sh {name} 1800 lines mkdir -p /media/stress && cd /media/stress && /mnt/bin/{command}"
        ));
    }

    /// Random calls, also on a disk and on pipes, which the built-in does not survive.
    fn parked_fuzz(&mut self, name: &str, calls: u64, seed: u64) {
        self.step(&format!(
            "sh {name} 1800 lines sysctl -n vfs.aio.rs.park >/dev/null 2>&1 || \
             {{ echo not for the built-in; exit {SKIP}; }}; mkdir -p /media/stress && \
             cd /media/stress && exec /mnt/bin/fuzz --disk --park --calls {calls} --seed {seed}"
        ));
    }

    /// The engine comes and goes, as often as asked but not for longer than that many seconds, while
    /// programs use it; then everything must be where it was after a warm-up. The engine is not loaded
    /// before, nor after.
    fn reload(&mut self, reloads: u32, seconds: u64, upgrades: bool) {
        let modules =
            if upgrades { "/mnt/aio_rs.ko /mnt/next/aio_rs.ko" } else { "/mnt/aio_rs.ko" };
        let run = |name: &str, reloads: u32, seed: u32| {
            format!(
                "sh {name} {} lines mdconfig -a -t malloc -s 16m -u 9 || exit 1; mkdir -p /media/reload && \
                 cd /media/reload && /mnt/bin/reload --reloads {reloads} --seconds {seconds} --seed {seed} \
                 --disk /dev/md9 --raw /dev/vtbd4 {modules}; rc=$?; cd /; mdconfig -d -u 9; exit $rc",
                seconds + 300
            )
        };
        self.step(&run("reload-warm-up", 4, 1));
        self.settled_count(RELOADS.0);
        self.step("sh mount 60 lines mount -t ufs -o noatime /dev/vtbd3 /media");
        self.step(&run("reload", reloads, 2));
        self.settled_count(RELOADS.1);
        self.step("sh mount 60 lines mount -t ufs -o noatime /dev/vtbd3 /media");
        self.step("sh kldstat-after-reload 60 lines kldstat; ! kldstat -q -n aio_rs.ko");
    }

    /// Storms of everything for so many seconds, between two counts. Each runs one program against
    /// another, with a new seed each time one of them ends.
    fn storms(&mut self, seconds: u64) {
        let each = seconds / STORMS.len() as u64;
        for (tag, seconds) in [("before", 10), ("after", each)] {
            for (name, commands) in STORMS {
                // A program in the background that fails says so by its file.
                let mut text = format!(
                    "sh {name}-{tag} {} lines ulimit -c 0; e=$(($(date +%s)+{seconds})); rm -rf /media/s; \
                     mkdir /media/s && cd /media/s || exit 1; \
                     mdconfig -a -t malloc -s 16m -u 9 || exit 1; ",
                    seconds + 600
                );
                for (index, command) in commands.iter().enumerate() {
                    let _ = write!(
                        text,
                        "(mkdir {index}; cd {index}; s=$e; while [ $(date +%s) -lt $e ]; do \
                         /mnt/bin/{command} --beside --seed $s || {{ echo {name}: {index}: seed $s; touch ../bad; exit; }}; \
                         s=$(($s+1)); done) & "
                    );
                }
                self.step(&format!("{text}wait; cd /; mdconfig -d -u 9; ! [ -e /media/s/bad ]"));
            }
            self.settled_count(tag);
            self.step("sh mount 60 lines mount -t ufs -o noatime /dev/vtbd3 /media");
        }
    }

    /// Somebody listens to the probes, while a program reads a file by a worker, and then in the
    /// submitter: what they told is what it did.
    fn probes(&mut self) {
        self.step(&format!(
            "sh probes 120 lines kldload /mnt/{LISTENER} || exit 1; \
             sysctl vfs.aio.rs.inline=0 >/dev/null; by_worker=$(/mnt/bin/aio_demo /bin/sh); \
             one=$(sysctl -n debug.aio_rs_listener); \
             sysctl vfs.aio.rs.inline=1 >/dev/null; inline=$(/mnt/bin/aio_demo /bin/sh); \
             two=$(sysctl -n debug.aio_rs_listener); \
             kldunload aio_rs_listener; echo \"$by_worker\"; echo \"$two\"; \
             /mnt/bin/aio_demo /bin/sh >/dev/null || exit 1; \
             n=${{by_worker##*requests=}}; n=${{n%% *}}; \
             b=${{by_worker##*bytes=}}; b=${{b%% *}}; \
             [ $n -gt 0 ] && echo \"$one\" | grep -q \"^queue $n \" && \
             echo \"$one\" | grep -q \"^start $n \" && echo \"$one\" | grep -q \"^done $n $b$\" && \
             echo \"$two\" | grep -q \"^done $((n * 2)) $((b * 2))$\""
        ));
    }

    /// The gate alone, under programs that use the built-in and processes that come and go.
    fn gate(&mut self) {
        self.step(&format!(
            "sh gate 600 lines mkdir -p /media/gate && cd /media/gate || exit 1; \
             /mnt/bin/stress --requests 6000 --procs 4 & p=$!; \
             (while [ ! -e done ]; do /bin/expr 1 + 1; done) >/dev/null & q=$!; sleep 1; \
             kldload /mnt/{GATE_TEST}; rc=$?; touch done; wait $p || rc=1; wait $q; rm done; \
             kldunload aio_rs_gatetest || rc=1; exit $rc"
        ));
    }

    /// Has the scratch file system go, and waits until what ended is all gone: until some numbers stay
    /// what they are, for a while.
    fn settle(&mut self) {
        self.step("sh umount 60 lines umount /media");
        self.step(
            "sh settle 120 lines sync; same=0; tries=0; before=; \
             while [ $same -lt 2 ] && [ $tries -lt 40 ]; do sleep 1; tries=$((tries + 1)); \
             now=$(vmstat -z | grep -E '^(Files|VMSPACE|VNODE|cred):' | cut -d, -f3); \
             [ \"$now\" = \"$before\" ] && same=$((same + 1)) || same=0; before=$now; done",
        );
    }

    /// Counts when all is quiet, and without the scratch file system.
    fn settled_count(&mut self, tag: &str) {
        self.settle();
        // The first count is warm-up: it opens the files of the programs that count.
        self.count("warm-up");
        self.count(tag);
    }

    /// A warm-up round, then stress and random calls between two counts.
    fn leak_check(&mut self, requests: u64, seed: u64) {
        let calls = requests;
        let few = requests.div_ceil(4);
        self.on_scratch("stress-warm-up", &format!("stress --requests {few} --seed {seed}"));
        self.on_scratch("deliver-warm-up", &format!("deliver --rounds 20 --seed {seed}"));
        self.on_scratch("fuzz-warm-up", &format!("fuzz --calls {few} --seed {seed}"));
        self.parked_fuzz("fuzz-parked-warm-up", few, seed);
        self.settled_count("before");
        self.step("sh mount 60 lines mount -t ufs -o noatime /dev/vtbd3 /media");
        self.on_scratch("stress", &format!("stress --requests {requests} --seed {seed}"));
        self.on_scratch("deliver", &format!("deliver --rounds 100 --seed {}", seed + 1));
        self.on_scratch("fuzz", &format!("fuzz --calls {calls} --seed {}", seed + 1));
        self.parked_fuzz("fuzz-parked", calls, seed + 1);
        self.settle();
        self.count("after");
        self.step("sh mount 60 lines mount -t ufs -o noatime /dev/vtbd3 /media");
    }

    fn done(mut self) -> Plan {
        self.step("always");
        self.step(&format!("sh {KERNEL_LOG} 60 lines dmesg"));
        self.step("poweroff");
        // The longest limit above, and what a slow machine adds.
        Plan { text: self.0, silence: Duration::from_secs(900) }
    }
}

/// `vm run`.
pub fn run(options: &Options) -> Plan {
    let mut steps = Steps::new();
    steps.step(&format!("value before {ENGINE}"));
    if options.module {
        steps.load("");
    }
    steps.demo("", options.module);
    steps.step(
        "run aio_copytree 1200 lines /mnt/bin/aio_copytree src dst --make-mb 64 --inflight 64",
    );
    steps.step(&format!("value after {ENGINE}"));
    if options.module {
        steps.step("sh unload 120 lines kldunload aio_rs");
    }
    steps.done()
}

/// The reference for `vm test` and `vm vm-test`: everything on the built-in. With `suite`, the
/// base system's suite too.
pub fn reference(options: &Options, suite: bool) -> Plan {
    let mut steps = Steps::new();
    if base_only(options) {
        base_suite(&mut steps, options);
        return steps.done();
    }
    steps.demo("", false);
    steps.names();
    if suite {
        base_suite(&mut steps, options);
    }
    steps.conformance();
    steps.disks(None);
    steps.leak_check(options.requests, 1);
    if suite {
        zfs(&mut steps);
    }
    steps.done()
}

/// The reference of a further kernel in `vm test`, for what it says by itself: the cases are compared
/// with the first one's.
pub fn further_reference(options: &Options) -> Plan {
    let mut steps = Steps::new();
    steps.demo("", false);
    steps.names();
    steps.sockets();
    steps.leak_check(options.requests, 1);
    steps.done()
}

/// What is in the way of a load or an unload: a request, a sleeper, another module.
fn obstacles(steps: &mut Steps, stack: bool) {
    let engine = "kldstat -q -n aio_rs.ko";
    // It goes on when the program in the background says that it is in the way, or has ended.
    const UNTIL_HELD: &str = "until [ -e held ] || ! kill -0 $! 2>/dev/null; do sleep 0.1; done";
    // A program that is in the way until it is told to end.
    let held = |name: &str, program: &str, then: &str| {
        format!(
            "sh {name} 120 lines cd /media && rm -f held release; \
             /mnt/bin/{program} held release & {UNTIL_HELD}; {then}; touch release; wait $!"
        )
    };
    steps.step(&held(
        "unload-refused-for-a-request",
        "holder request /bin/sh",
        "kldunload aio_rs && exit 1",
    ));
    steps.step(&held(
        "force-refused-for-a-request",
        "holder request /bin/sh",
        "kldunload -f aio_rs && exit 1; /mnt/bin/aio_demo /bin/sh --need-served || exit 1",
    ));
    steps.step(&held(
        "unload-refused-for-a-parked-pipe",
        "holder pipe /bin/sh",
        "kldunload aio_rs && exit 1",
    ));
    // When it says so it is about to sleep.
    steps.step(&held(
        "unload-hands-a-sleeper-over",
        "holder sleep /bin/sh",
        "sleep 1; kldunload aio_rs || exit 1",
    ));
    let mixed = held("a-socket-of-both-engines", "neighbours", "kldload /mnt/aio_rs.ko || exit 1");
    steps.step(&format!("{mixed}; rc=$?; kldunload aio_rs && exit $rc"));
    if stack {
        steps.step(&format!(
            "sh load-refused-over-a-module 120 lines kldload /mnt/{STACK} || exit 1; \
             kldload /mnt/aio_rs.ko && exit 1; {engine} && exit 1; \
             /mnt/bin/aio_demo /bin/sh && kldunload aio_rs_stack"
        ));
        steps.step(&format!(
            "sh unload-refused-under-a-module 120 lines kldload /mnt/aio_rs.ko && \
             kldload /mnt/{STACK} || exit 1; kldunload aio_rs && exit 1; \
             kldunload -f aio_rs && exit 1; /mnt/bin/aio_demo /bin/sh --need-served && \
             kldunload aio_rs_stack && kldunload aio_rs"
        ));
    }
}

/// The last steps of all: load by name, a raised securelevel, and an end with requests in flight.
fn last(steps: &mut Steps, upgrades: bool) {
    steps.step(
        "sh load-by-name 120 lines p=$(sysctl -n kern.module_path); sysctl kern.module_path=/mnt; \
         kldload aio_rs; rc=$?; sysctl kern.module_path=$p; kldstat -q -n aio_rs_gate.ko && exit $rc",
    );
    let upgrade = if upgrades { "kldload /mnt/next/aio_rs.ko && exit 1; " } else { "" };
    steps.step(&format!(
        "sh nothing-changes-at-securelevel-1 120 lines sysctl kern.securelevel=1 || exit 1; \
         kldunload aio_rs && exit 1; kldunload -f aio_rs && exit 1; {upgrade}\
         exec /mnt/bin/aio_demo /bin/sh --need-served"
    ));
    steps.step(
        "sh requests-at-the-end 60 lines mkdir -p /media/end && cd /media/end || exit 1; \
         s=$(sysctl -n vfs.aio.rs.served); /mnt/bin/churn --seconds 600 >/dev/null 2>&1 & \
         until [ $(sysctl -n vfs.aio.rs.served) -gt $((s + 1000)) ]; do sleep 0.1; done; \
         sysctl vfs.aio.rs.processes",
    );
}

/// The same with the module, and loading and unloading.
pub fn module(options: &Options, suite: bool) -> Plan {
    let mut steps = Steps::new();
    steps.load("");
    if base_only(options) {
        base_suites(&mut steps, options);
        steps.step("sh unload 120 lines kldunload aio_rs");
        return steps.done();
    }
    // First of all, while nobody has used the engine.
    steps.step("sh no-worker-can-be-started 600 lines /mnt/bin/noworker /bin/sh");
    steps.demo("", true);
    steps.names();
    steps.step("sh counted 600 lines cd /media && /mnt/bin/counted");
    steps.step(&format!(
        "sh aiostat 600 lines [ -f /mnt/tests/aiostat.sh ] || exit {SKIP}; \
         sh /mnt/tests/aiostat.sh && sh /mnt/tools/aiostat -c 1 1"
    ));
    if suite {
        base_suites(&mut steps, options);
    }
    steps.conformance();
    steps.disks(Some(options.requests));
    steps.leak_check(options.requests, 1);
    if suite {
        zfs(&mut steps);
    }
    steps.step("mustsh unload 120 lines kldunload aio_rs");
    // The built-in must serve again, and the module must load again.
    steps.demo("-builtin-again", false);
    steps.load("-again");
    steps.demo("-again", true);
    if options.modules.join(LISTENER).is_file() {
        steps.probes();
    }
    obstacles(&mut steps, options.modules.join(STACK).is_file());
    if options.modules.join(GATE_TEST).is_file() {
        steps.gate();
    }
    steps.reload(options.reloads, 900, options.next.is_some());
    last(&mut steps, options.next.is_some());
    steps.done()
}

/// Whether nothing but the base system's suite, or a part of it, is asked for.
fn base_only(options: &Options) -> bool {
    options.command == Command::VmTest && !options.only.is_empty()
}

/// The base system's suite on ours, some times in a row, and how many requests of processes of
/// ours the engine could not serve meanwhile.
fn base_suites(steps: &mut Steps, options: &Options) {
    steps.step(&format!("value {BEFORE_BASE} {UNSERVED}"));
    (0..options.repeat).for_each(|_| base_suite(steps, options));
    steps.step(&format!("value {AFTER_BASE} {UNSERVED}"));
}

/// The base system's AIO suite, where the guest has it; with kyua, where it has that too. Its cases
/// run with `vfs.aio.enable_unsafe` 1, and again with 0, as the suites whose names end in -safe.
/// The programs without cases do nothing where it is 0, and say by their exit status that all is well.
fn base_suite(steps: &mut Steps, options: &Options) {
    const DIR: &str = "/usr/tests/sys/aio";
    for (safe, suffix) in [(0, ""), (1, "-safe")] {
        steps.step(&format!("sysctl vfs.aio.enable_unsafe {}", 1 - safe));
        steps.step(&format!("kyua-or-atf aio_test{suffix} 300 {DIR}/aio_test"));
        steps.step(&format!("kyua-or-atf lio_test{suffix} 120 {DIR}/lio_test"));
        if safe == 0 && options.only != "base-cases" {
            steps.step(&format!("kyua-or-run aio_kqueue_test 900 {DIR}/aio_kqueue_test"));
            steps.step(&format!("kyua-or-run lio_kqueue_test 900 {DIR}/lio_kqueue_test"));
        }
    }
}

/// The suite, our cases and the tree copy on a ZFS dataset, and the copy on a zvol, where the
/// guest has ZFS. A step that cannot be taken ends with [`SKIP`].
///
/// The pool has a disk of its own. On a file on UFS, a file system on a volume of the pool can stop
/// for good, with either engine: its writes use up what the kernel lets be in flight, and the
/// pool's own writes, which must finish first, wait for some of that.
fn zfs(steps: &mut Steps) {
    let on_dataset = |command: &str| {
        format!("zfs list aiotest >/dev/null 2>&1 || exit {SKIP}; cd /media/z && {command}")
    };
    steps.step(&format!(
        "sh zfs 300 lines kldload -n zfs || exit {SKIP}; which zpool || exit {SKIP}; \
         zpool create -f -m /media/z aiotest /dev/vtbd4"
    ));
    let run = |name: &str, command: &str| format!("sh {name} 600 lines {}", on_dataset(command));
    steps.step(&run("conformance-zfs", "/mnt/bin/conformance"));
    let copy = "rm -rf src dst; /mnt/bin/aio_copytree src dst --make-mb 64 --inflight 64";
    steps.step(&run("aio_copytree-zfs", copy));
    steps.step(&run(
        "aio_copytree-zvol",
        &format!(
            "rm -rf src dst; v=aiotest/vol; d=/dev/zvol/$v; \
             /sbin/zfs create -V 256m -o volmode=geom $v || exit 1; \
             for i in 1 2 3 4 5 6 7 8 9; do [ -c $d ] && break; sleep 1; \
             [ $i != 5 ] || {{ zfs set volmode=none $v; zfs set volmode=geom $v; }}; done; \
             [ -c $d ] || {{ echo the volume has no device; exit {SKIP}; }}; \
             newfs -U $d >/dev/null && mkdir -p /media/v && mount $d /media/v && cd /media/v || exit 1; \
             {copy}; rc=$?; cd /; umount /media/v; exit $rc"
        ),
    ));
    steps.step("work /media/z");
    steps.step("sysctl vfs.aio.enable_unsafe 1");
    steps.step("kyua-or-atf aio_test-zfs 300 /usr/tests/sys/aio/aio_test");
    steps.step("sysctl vfs.aio.enable_unsafe 0");
    steps.step("work /media/work");
    steps.step(&format!(
        "sh zfs-destroy 300 lines zfs list aiotest >/dev/null 2>&1 || exit {SKIP}; \
         zpool destroy aiotest"
    ));
}

/// `vm soak` without the module: what the kernel says by itself.
pub fn soak_reference() -> Plan {
    let mut steps = Steps::new();
    steps.demo("", false);
    steps.done()
}

/// `vm soak`: reloads, for 50 minutes at most.
pub fn soak_reload(options: &Options) -> Plan {
    let mut steps = Steps::new();
    steps.load("");
    steps.step("mustsh unload 120 lines kldunload aio_rs");
    steps.reload(options.reloads, 3_000, options.next.is_some());
    steps.done()
}

/// `vm soak`: the gate in which threads linger, alone and under a tenth of the reloads.
pub fn soak_gate(options: &Options) -> Plan {
    let mut steps = Steps::new();
    steps.step(&format!("mustsh load-gate 120 lines kldload /mnt/{WIDE}/aio_rs_gate.ko"));
    steps.gate();
    steps.reload(options.reloads.div_ceil(10), 900, options.next.is_some());
    last(&mut steps, options.next.is_some());
    steps.done()
}

/// `vm soak`: storms, for so many seconds in all.
pub fn soak_storms(seconds: u64) -> Plan {
    let mut steps = Steps::new();
    steps.load("");
    steps.storms(seconds);
    steps.step("sh unload 120 lines kldunload aio_rs");
    steps.done()
}

/// `vm bench`: file systems and disks to measure on, then the program.
pub fn bench(options: &Options) -> Plan {
    let mut steps = Steps::new();
    if options.module {
        steps.load("");
    }
    steps.step("value kernel hw.ncpu");
    steps.step("mustsh tmpfs 120 lines mkdir -p /tmp/t /media/b && mount -t tmpfs tmpfs /tmp/t");
    // Sectors of zeroes would not be stored.
    steps.step(
        "mustsh md 600 lines mdconfig -a -t malloc -s 16m -u 9 && dd if=/dev/random of=/dev/md9 bs=64k count=256",
    );
    // A file system that was just mounted has nothing in the cache.
    steps.step(
        "mustsh cold 1200 lines for n in 0 1 16; do dd if=/dev/zero of=/media/b/cold$n bs=128k count=400 || exit 1; \
         done; sync; umount /media; mount -t ufs -o noatime /dev/vtbd3 /media",
    );
    let only =
        if options.only.is_empty() { String::new() } else { format!(" --only {}", options.only) };
    steps.step(&format!(
        "run bench 36000 lines /mnt/bin/bench --percent {}{only} --ufs /media --tmpfs /tmp/t --cold /media/b \
         --disk /dev/vtbd4 --md /dev/md9",
        options.percent
    ));
    if options.module {
        steps.step("sh unload 120 lines kldunload aio_rs");
    }
    steps.done()
}

/// `vm shell`: load, and come back to the console.
pub fn shell(options: &Options) -> Plan {
    let mut steps = Steps::new();
    if options.module {
        steps.load("");
    }
    Plan { text: steps.0, silence: Duration::from_secs(600) }
}

/// `vm exec`.
pub fn exec(options: &Options, command: &str) -> Plan {
    let mut steps = Steps::new();
    if options.module {
        steps.load("");
    }
    let limit = options.timeout.as_secs();
    steps.step(&format!("sh exec {limit} lines cd /media; {command}"));
    if options.module {
        steps.step("sh unload 120 lines kldunload aio_rs");
    }
    Plan { silence: options.timeout, ..steps.done() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Options {
        let args: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args, "/home/x", None).unwrap()
    }

    #[test]
    fn steps_fit_the_runner() {
        let plans = [
            run(&options("run")),
            reference(&options("vm-test"), true),
            further_reference(&options("test")),
            module(&options("vm-test"), true),
            module(&options("vm-test --only base --repeat 3"), true),
            bench(&options("bench --only read-depth")),
            soak_reload(&options("soak")),
            soak_gate(&options("soak")),
            soak_storms(900),
            exec(&options("exec x"), "sysctl vfs.aio"),
        ];
        for line in plans.iter().flat_map(|plan| plan.text.lines()) {
            assert!(line.len() < 1000, "the runner cuts longer lines: {line}");
        }
    }

    #[test]
    fn the_base_suite_runs_as_often_as_asked() {
        let words = options("vm-test --only base --repeat 4");
        let count = |text: &str, what: &str| text.matches(what).count();
        let (ours, builtin) = (module(&words, true).text, reference(&words, true).text);
        assert_eq!((count(&ours, "-atf aio_test "), count(&ours, "-atf lio_test-safe ")), (4, 4));
        assert_eq!((count(&ours, "-run lio_kqueue_test "), count(&ours, "conformance")), (4, 0));
        let halves = ours.split("sysctl vfs.aio.enable_unsafe 0");
        assert!(halves.skip(1).all(|half| {
            half.find("kqueue_test").is_none_or(|at| half[..at].contains("enable_unsafe 1"))
        }));
        assert_eq!(count(&builtin, "-atf aio_test "), 1);
        let cases = module(&options("vm-test --only base-cases --repeat 4"), true).text;
        assert_eq!((count(&cases, "-atf lio_test "), count(&cases, "kqueue_test")), (4, 0));
        let whole = module(&options("vm-test"), true).text;
        assert_eq!(
            (count(&whole, "-atf aio_test-safe "), count(&whole, "enable_unsafe 0")),
            (1, 2)
        );
    }

    #[test]
    fn bench_measures_the_engine_that_is_asked_for() {
        let built_in = bench(&options("bench --no-module")).text;
        assert!(!built_in.contains("kldload"));
        let ours = bench(&options("bench --only lio --percent 50")).text;
        assert!(
            ours.find("kldload /mnt/aio_rs.ko")
                < ours.find("/mnt/bin/bench --percent 50 --only lio")
        );
    }

    #[test]
    fn the_reference_has_no_module() {
        assert!(!reference(&options("test"), false).text.contains("aio_rs.ko"));
        assert!(!further_reference(&options("test")).text.contains("aio_rs.ko"));
        assert!(!run(&options("run --no-module")).text.contains("kldload"));
        assert!(module(&options("test"), false).text.contains("kldload /mnt/aio_rs.ko"));
    }
}
