// SPDX-License-Identifier: BSD-2-Clause
//! Runs: one program with one seed in this process, or many seeds in processes of their own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::coverage::Coverage;
use crate::decisions::{self, Script};
use crate::sched::{self, SECOND, Schedule};
use crate::state::Rng;
use crate::strategy::{self, Policy};
use crate::{
    bio, builtin, disk, fault, file, imports, kqueue, mem, module, oracle, pages, pipe, probe,
    proc, report, shrink, socket, socket_net, socket_tasks, syscalls, sysctl, taskqueue, user, vm,
};

const USAGE: &str = "\
usage: hostkern run --modules DIR [--seed N] [--policy POLICY] [--preempt N] [--spurious N]
                    [--record FILE] [--replay FILE] [--schedule N] [--coverage FILE]
                    [--disk NAME:BYTES[:faults]]... [--mapped] [--overlaps] [--limit SECONDS] [--trail CALLS] [--keep-loaded] [--builtin OBJECT [--beside]] [--calls] [--verbose] [--progress] -- PROGRAM [ARG...] [-- PROGRAM...]
       hostkern seeds --modules DIR --first N --count N [--jobs N] [--recheck N] [--stop] -- PROGRAM [ARG...] [-- PROGRAM...]
       hostkern faults --modules DIR [--jobs N] [--most N] [--only CALL] [--stop] -- PROGRAM [ARG...] [-- PROGRAM...]
       hostkern shrink [options of run] [--record FILE] [--jobs N] [--most TRIES] -- PROGRAM [ARG...] [-- PROGRAM...]
       hostkern coverage [--symbols DIR [--edges LIST]] FILE...
       hostkern load [--seed N] [--preempt N] KO...
       hostkern functions

run    loads the modules, runs the programs, unloads aio_rs and looks for what is left over; the exit
       status is the last program's, or 9 for a panic. `@seed` in an argument is the seed.
       POLICY is block, uniform:N, priorities:N, pct:D:N or starve:N; --preempt N has a thread stopped
       between two instructions of a module about once in N scheduling points. Without these options
       the seed chooses; --schedule N makes another choice. --record writes down what was decided,
       --replay decides so again. --coverage adds to a file which blocks of the modules were reached.
       --overlaps is for programs whose arguments overlap: what is fetched twice is no failure then.
       --calls says how often each kernel function was called.
       --builtin runs them on the kernel's own AIO instead of the modules, or with --beside on both: an
       object of a kernel build.
load   loads the files, unloads them in the opposite order, and looks for what is left over.
seeds  does so for many seeds; every --recheck'th twice, which must give the same trace; with --stop
       until one fails.
faults runs the programs once, and then once for each kernel call that may fail, at each occurrence of
       it (at most --most of them) once, and from there on always; `run --fail NAME:N[:always]` repeats one.
coverage says what such files have; with --symbols, where the modules' .full are, by line; with --edges
       whether the lines of a list were reached, which fails when one was not.
shrink makes a run that fails, and looks for the shortest list of decisions with which it fails in the
       same way; the list is in --record's file, or seed-N.decisions.
";

struct Options {
    modules: PathBuf,
    seed: u64,
    policy: Option<Policy>,
    spurious: u64,
    /// Once in so many points a breakpoint is made; `None`: as the seed has it.
    preempt: Option<u64>,
    /// Where decisions are written to, and where they come from.
    record: Option<PathBuf>,
    replay: Option<PathBuf>,
    /// Where blocks that were reached are added.
    coverage: Option<PathBuf>,
    /// The number of the schedule.
    schedule: u64,
    keep_loaded: bool,
    /// The kernel's own AIO, as an object, and whether the modules are loaded too.
    builtin: Option<PathBuf>,
    beside: bool,
    verbose: bool,
    progress: bool,
    /// vfs.unmapped_buf_allowed is 0.
    mapped: bool,
    /// Threads pass what other threads change.
    overlaps: bool,
    disks: Vec<disk::Spec>,
    /// What is to fail.
    fail: Option<fault::Plan>,
    /// Says how often each call was made that may fail.
    counts: bool,
    /// Occurrences of a call that are made to fail, at most.
    most: u64,
    /// Makes no more runs once one has failed.
    stop: bool,
    /// The only call that is made to fail.
    only: Option<String>,
    /// Seconds a run may take.
    limit: u64,
    first: u64,
    count: u64,
    jobs: usize,
    recheck: u64,
    /// Programs with their arguments, run one after the other.
    programs: Vec<Vec<String>>,
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options {
        modules: PathBuf::from("build/current"),
        seed: 1,
        policy: None,
        spurious: 0,
        preempt: None,
        record: None,
        replay: None,
        coverage: None,
        schedule: 0,
        keep_loaded: false,
        builtin: None,
        beside: false,
        verbose: false,
        progress: false,
        mapped: false,
        overlaps: false,
        disks: Vec::new(),
        fail: None,
        counts: false,
        most: u64::MAX,
        stop: false,
        only: None,
        limit: 100,
        first: 1,
        count: 1,
        jobs: 1,
        recheck: 20,
        programs: Vec::new(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            let rest: Vec<String> = args.cloned().collect();
            options.programs = rest.split(|word| word == "--").map(<[String]>::to_vec).collect();
            break;
        }
        if arg == "--progress" {
            options.progress = true;
            continue;
        }
        if arg == "--stop" {
            options.stop = true;
            continue;
        }
        if arg == "--overlaps" {
            options.overlaps = true;
            imports::OVERLAPS.store(true, std::sync::atomic::Ordering::Relaxed);
            continue;
        }
        if arg == "--calls" {
            sched::count_calls();
            continue;
        }
        if arg == "--counts" {
            options.counts = true;
            continue;
        }
        if arg == "--mapped" {
            options.mapped = true;
            continue;
        }
        if arg == "--beside" {
            options.beside = true;
            continue;
        }
        if arg == "--verbose" {
            options.verbose = true;
            continue;
        }
        if arg == "--keep-loaded" {
            options.keep_loaded = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} wants a value"))?;
        let number =
            || value.parse::<u64>().map_err(|_| format!("{arg} wants a number, not {value}"));
        match arg.as_str() {
            "--modules" => options.modules = value.into(),
            "--builtin" => options.builtin = Some(value.into()),
            "--seed" => options.seed = number()?,
            "--spurious" => options.spurious = number()?,
            "--preempt" => options.preempt = Some(number()?),
            "--record" => options.record = Some(value.into()),
            "--coverage" => options.coverage = Some(value.into()),
            "--schedule" => options.schedule = number()?,
            "--replay" => options.replay = Some(value.into()),
            "--limit" => options.limit = number()?,
            "--first" => options.first = number()?,
            "--count" => options.count = number()?,
            "--jobs" => options.jobs = number()?.max(1) as usize,
            "--recheck" => options.recheck = number()?,
            "--trail" => sched::keep(number()? as usize),
            "--only" => options.only = Some(value.clone()),
            "--most" => options.most = number()?.max(1),
            "--fail" => {
                let plan = fault::Plan::parse(value).ok_or_else(|| format!("--fail {value}"))?;
                options.fail = Some(plan);
            }
            "--disk" => {
                let spec = disk::Spec::parse(value).ok_or_else(|| format!("--disk {value}"))?;
                options.disks.push(spec);
            }
            "--policy" => {
                let policy = Policy::parse(value).ok_or_else(|| format!("--policy {value}"))?;
                options.policy = Some(policy);
            }
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    if options.programs.is_empty() || options.programs.iter().any(Vec::is_empty) {
        return Err("which program?".to_owned());
    }
    Ok(options)
}

pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if command == "functions" {
        for import in imports::functions() {
            println!("{:28} {}", import.name, import.manual);
        }
        return ExitCode::SUCCESS;
    }
    if command == "coverage" {
        return covered(rest);
    }
    if command == "load" {
        return load(rest);
    }
    let options = match parse(rest) {
        Ok(options) => options,
        Err(why) => {
            eprint!("hostkern: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match command.as_str() {
        "run" => one(options),
        "seeds" => many(&options),
        "faults" => faults(&options),
        "shrink" => shrunk(&options),
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Makes addresses the same in every run: the host's randomisation would leak into hashes.
fn without_randomisation() {
    // SAFETY: asks, then sets, this process's personality.
    unsafe {
        let now = libc::personality(0xffff_ffff);
        if now & libc::ADDR_NO_RANDOMIZE != 0 {
            return;
        }
        // What is forbidden (in some containers) is not needed: our own memory is at fixed places.
        if libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) < 0 {
            return;
        }
    }
    use std::os::unix::process::CommandExt;
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args_os().skip(1));
    // Returns only when it failed; then we go on as we are.
    let _ = again.exec();
}

/// Keeps the process on one processor: only one of its threads runs at a time.
fn stay_on_one_processor() {
    // SAFETY: a set of processors on the stack.
    unsafe {
        let cpu = libc::sched_getcpu();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu.max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

/// Runs one program with one seed. Does not return in the usual way: the process ends.
fn one(options: Options) -> ExitCode {
    without_randomisation();
    stay_on_one_processor();
    report::catch_panics();
    report::set_again(again(&options), Duration::from_secs(options.limit));
    if options.progress {
        report::show_progress();
    }
    let started = Instant::now();
    let read = |path: PathBuf| {
        std::fs::read(&path)
            .unwrap_or_else(|error| report::give_up(&format!("{}: {error}", path.display())))
    };
    let builtin = options.builtin.clone().map(read);
    let mut modules = Vec::new();
    if builtin.is_none() || options.beside {
        for name in ["aio_rs_gate.ko", "aio_rs.ko"] {
            modules.push((name, read(options.modules.join(name))));
        }
    }
    let programs: Vec<(PathBuf, Vec<String>)> = options
        .programs
        .iter()
        .map(|words| {
            let path = PathBuf::from(&words[0]);
            let path = path.canonicalize().unwrap_or_else(|error| {
                report::give_up(&format!("{}: {error}", path.display()));
            });
            let seed = options.seed.to_string();
            (path, words.iter().map(|word| word.replace("@seed", &seed)).collect())
        })
        .collect();
    if options.mapped {
        imports::map_all_buffers();
    }
    let script = options.replay.as_ref().map(|path| {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| report::give_up(&format!("{}: {error}", path.display())));
        let list = decisions::parse(&text).unwrap_or_else(|line| {
            report::give_up(&format!("{}: line {line} is no decision", path.display()))
        });
        Script::new(&list)
    });
    let schedule = Schedule {
        policy: options.policy.unwrap_or_else(|| Policy::of_seed(options.seed)),
        spurious: options.spurious,
        stops: options.preempt.unwrap_or_else(|| strategy::stops_of_seed(options.seed)),
        script,
        record: options.record.is_some(),
        number: options.schedule,
        calm: calm_of_seed(options.seed),
    };
    sched::configure(options.seed, schedule);
    if let Some(path) = &options.coverage {
        probe::count_blocks();
        report::coverage_to(path.clone());
    }
    if let Some(path) = &options.record {
        report::record_to(path.clone());
    }
    if options.fail.is_none() && !options.overlaps {
        oracle::start();
    }
    fault::plan(options.fail.clone());
    boot();
    let first = proc::start_kernel(move || {
        kernel_thread(builtin.as_deref(), &modules, &programs, &options, started);
    });
    sched::begin(first);
    loop {
        std::thread::park();
    }
}

/// How much virtual time the end of a run may take, and the rest of a run that gets calm.
const CALM_END: i64 = 100 * SECOND;
const CALM_REST: i64 = 1000 * SECOND;

/// After how many kernel calls a seed's run gets calm, if it does before its programs have ended: one
/// in four.
fn calm_of_seed(seed: u64) -> Option<(u64, i64)> {
    let mut rng = Rng::new(seed ^ 0x0063_616c_6d00);
    let at = 1000 << rng.below(9);
    rng.one_in(4).then(|| (at + rng.below(at), CALM_REST))
}

/// Says what files of coverage have.
fn covered(args: &[String]) -> ExitCode {
    let (symbols, files) = match args {
        [option, dir, files @ ..] if option == "--symbols" => (Some(PathBuf::from(dir)), files),
        files => (None, files),
    };
    let (edges, files) = match files {
        [option, list, files @ ..] if option == "--edges" => (Some(list), files),
        files => (None, files),
    };
    let mut all = Coverage::new();
    for file in files {
        match std::fs::read_to_string(file) {
            Ok(text) => all.merge(Coverage::parse(&text)),
            Err(error) => {
                eprintln!("hostkern: {file}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    for line in all.report(symbols.as_deref()) {
        println!("{line}");
    }
    let (Some(list), Some(dir)) = (edges, &symbols) else { return ExitCode::SUCCESS };
    let found = std::fs::read_to_string(list).map_err(|error| error.to_string());
    let found = found.and_then(|list| {
        all.edges(&list, |path| std::fs::read_to_string(path).ok(), &all.lines(dir))
    });
    match found {
        Ok((lines, missed)) => {
            let count = lines.len();
            lines.iter().for_each(|line| println!("{line}"));
            println!("edges: {} of {count} reached", count - missed);
            if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("hostkern: {list}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Only loads and unloads modules.
fn load(args: &[String]) -> ExitCode {
    let (mut seed, mut stops, mut files) = (1, 0, args);
    while let [option, value, rest @ ..] = files
        && let Ok(number) = value.parse()
    {
        match option.as_str() {
            "--seed" => seed = number,
            "--preempt" => stops = number,
            _ => break,
        }
        files = rest;
    }
    without_randomisation();
    stay_on_one_processor();
    report::catch_panics();
    let files: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|file| {
            let bytes = std::fs::read(file)
                .unwrap_or_else(|error| report::give_up(&format!("{file}: {error}")));
            let name = file.rsplit('/').next().unwrap_or(file);
            (name.to_owned(), bytes)
        })
        .collect();
    let policy = Policy::Block;
    let (script, record, number, calm) = (None, false, 0, None);
    let schedule = Schedule { policy, spurious: 0, stops, script, record, number, calm };
    sched::configure(seed, schedule);
    boot();
    let first = proc::start_kernel(move || {
        let before = mem::objects();
        for (name, bytes) in &files {
            match module::load(name, bytes) {
                Ok(()) => report::console(&format!("hostkern: load {name}: ok\n")),
                Err(why) => report::give_up(&format!("kldload: {why}")),
            }
        }
        for (name, _) in files.iter().rev() {
            match module::unload(name, false) {
                Ok(()) => report::console(&format!("hostkern: unload {name}: ok\n")),
                Err(errno) => {
                    report::console(&format!("hostkern: unload {name}: errno {errno}\n"));
                }
            }
        }
        let mut left = settled();
        left.extend(grown(&before));
        mem::audit();
        for why in &left {
            report::console(&format!("hostkern: LEFT OVER: {why}\n"));
        }
        report::end(if left.is_empty() { 0 } else { report::PANIC });
    });
    sched::begin(first);
    loop {
        std::thread::park();
    }
}

/// What is left over when no program and no engine is there, after a little while: the last workers
/// are on their way out.
fn settled() -> Vec<String> {
    socket_tasks::stop();
    socket_net::stop();
    taskqueue::stop();
    let all = || {
        let mut left = proc::leftovers();
        left.extend(socket::leftovers());
        left.extend(file::leftovers());
        left.extend(kqueue::leftovers());
        left.extend(bio::leftovers());
        left.extend(pages::leftovers());
        left.extend(disk::leftovers());
        left
    };
    for _ in 0..100 {
        if all().is_empty() {
            break;
        }
        let soon = sched::now() + SECOND / 100;
        sched::sleep(3, false, "settle", Some(soon), || ());
    }
    all()
}

/// Objects of the kernel's, by type, that there are more of than before.
fn grown(before: &BTreeMap<&'static str, usize>) -> Vec<String> {
    // Disks may stay, and what a process is made of is used again.
    let stays =
        |name: &str| ["::cdev", "::cdevsw", "::proc_"].iter().any(|end| name.ends_with(end));
    let more = |(name, count): (&'static str, usize)| {
        let had = before.get(name).copied().unwrap_or(0);
        let more = count > had && !stays(name);
        more.then(|| format!("{} of {name}, {count} instead of {had}", count - had))
    };
    mem::objects().into_iter().filter_map(more).collect()
}

/// Makes the machine, without a thread.
fn boot() {
    mem::start();
    vm::start();
    user::start();
    module::start();
    file::start();
    pipe::start();
    proc::start();
    kqueue::start();
    sysctl::start();
    socket_tasks::start();
}

/// The options that make a schedule, but for decisions.
fn schedule_words(options: &Options) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(policy) = options.policy {
        words.extend(["--policy".to_owned(), policy.text()]);
    }
    if let Some(preempt) = options.preempt {
        words.extend(["--preempt".to_owned(), preempt.to_string()]);
    }
    if options.schedule > 0 {
        words.extend(["--schedule".to_owned(), options.schedule.to_string()]);
    }
    if options.spurious > 0 {
        words.extend(["--spurious".to_owned(), options.spurious.to_string()]);
    }
    words
}

/// A word as a shell takes it.
fn word(text: &str) -> String {
    if text.contains([' ', '\'']) { format!("\"{text}\"") } else { text.to_owned() }
}

fn again(options: &Options) -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    let schedule: String = schedule_words(options).iter().map(|word| format!(" {word}")).collect();
    let replay = options
        .replay
        .as_ref()
        .map_or(String::new(), |file| format!(" --replay {}", file.display()));
    let fail = options
        .fail
        .as_ref()
        .map_or(String::new(), |fail| format!(" --fail {}", word(&fail.text())));
    let mapped = if options.mapped { " --mapped" } else { "" };
    let builtin = options.builtin.as_ref().map_or(String::new(), |object| {
        let beside = if options.beside { " --beside" } else { "" };
        format!(" --builtin {}{beside}", object.display())
    });
    let disks: String =
        options.disks.iter().map(|disk| format!(" --disk {}", disk.text())).collect();
    format!(
        "{} run --modules {} --seed {}{schedule}{replay}{mapped}{builtin}{disks}{fail} -- {}",
        exe.display(),
        options.modules.display(),
        options.seed,
        options.programs.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join(" -- ")
    )
}

/// A counter of the engine's, 0 where there is none.
fn counter(name: &str) -> u64 {
    let bytes = sysctl::access(&format!("vfs.aio.rs.{name}"), 8, None, true).unwrap_or_default();
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// The kernel's own thread: the life of the machine.
fn kernel_thread(
    builtin: Option<&[u8]>,
    modules: &[(&str, Vec<u8>)],
    programs: &[(PathBuf, Vec<String>)],
    options: &Options,
    started: Instant,
) {
    bio::start_enders();
    let mut before = mem::objects();
    if let Some(object) = builtin {
        if let Err(why) = builtin::load(object) {
            report::give_up(&why);
        }
        report::console("hostkern: the kernel's own AIO is here\n");
    }
    for (name, file) in modules {
        if let Err(why) = module::load(name, file) {
            report::console(&format!("hostkern: kldload: {why}\n"));
            if fault::struck() == 0 {
                report::end(report::BROKEN);
            }
            refused(&before, options);
        }
        report::console(&format!("hostkern: load {name}: ok\n"));
        before = mem::objects();
    }
    options.disks.iter().for_each(disk::Spec::attach);
    before = mem::objects();
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut status = 0;
    for (program, argv) in programs {
        status = match proc::start_program(program, argv, &cwd) {
            Ok(pid) => proc::wait_for_program(pid),
            Err(error) => {
                let program = program.display();
                report::console(&format!(
                    "hostkern: {program} cannot be started: errno {}\n",
                    error.0
                ));
                report::end(report::BROKEN);
            }
        };
        if status != 0 {
            break;
        }
    }
    let mut bad = Vec::new();
    sched::calm(CALM_END);
    let calm_since = sched::now();
    proc::kill_everybody();
    let (served, unserved) = (counter("served"), counter("unserved"));
    if sysctl::value("vfs.aio.num_queue_count") != 0 {
        bad.push(format!(
            "vfs.aio.num_queue_count is {} at the end",
            sysctl::value("vfs.aio.num_queue_count")
        ));
    }
    if !options.keep_loaded && !modules.is_empty() {
        match module::unload("aio_rs.ko", false) {
            Ok(()) => report::console("hostkern: unload aio_rs.ko: ok\n"),
            Err(errno) => bad.push(format!("kldunload aio_rs failed with errno {errno}")),
        }
    }
    // The kernel's own keeps its workers, and what it is made of.
    if !options.keep_loaded && builtin.is_none() {
        bad.extend(settled());
        bad.extend(grown(&before));
    }
    mem::audit();
    if options.verbose {
        for line in sched::lock_order() {
            report::console(&format!("hostkern: lock order {line}\n"));
        }
    }
    for (name, count) in imports::passed_on() {
        report::console(&format!(
            "hostkern: {count} calls of {name} were left to the built-in, which is not here\n"
        ));
    }
    for (name, count) in sched::calls() {
        report::console(&format!("hostkern: calls: {count} {name}\n"));
    }
    if options.counts {
        for (name, count) in fault::counts() {
            report::console(&format!("hostkern: may fail: {count} {name}\n"));
        }
    }
    let (totals, bios) = (sched::totals(), bio::totals());
    let (followed, judged) = oracle::totals();
    let exit = if status & 0x7f == 0 { status >> 8 } else { 128 + (status & 0x7f) };
    for why in &bad {
        report::console(&format!("hostkern: LEFT OVER: {why}\n"));
    }
    report::console(&format!(
        "hostkern: seed={} policy={} syscalls={} kernel_calls={} switches={} stops={} served={served} unserved={unserved} bios={} inline={} followed={followed} judged={judged} virtual_ms={} calm_ms={} real_ms={} trace={:016x} exit={exit}\n",
        options.seed,
        totals.policy.text(),
        totals.syscalls,
        totals.calls,
        totals.switches,
        totals.stops,
        bios.0,
        bios.1,
        syscalls::elapsed().as_millis(),
        (sched::now() - calm_since) / (SECOND / 1000),
        started.elapsed().as_millis(),
        totals.hash,
    ));
    if exit == 0 && !bad.is_empty() {
        report::console(&format!("hostkern: repeat with: {}\n", again(options)));
        report::end(report::PANIC);
    }
    report::end(exit);
}

/// A module refused to be loaded because a call failed by plan: that must leave nothing.
fn refused(before: &BTreeMap<&'static str, usize>, options: &Options) -> ! {
    let mut left = settled();
    left.extend(grown(before));
    mem::audit();
    for why in &left {
        report::console(&format!("hostkern: LEFT OVER: {why}\n"));
    }
    let hash = sched::totals().hash;
    report::console(&format!("hostkern: seed={} trace={hash:016x} exit=0\n", options.seed));
    report::end(if left.is_empty() { 0 } else { report::PANIC });
}

/// A run that is to be made.
struct Task {
    seed: u64,
    fail: Option<fault::Plan>,
    expected: Option<String>,
}

/// One seed's run in a process of its own.
struct Running {
    seed: u64,
    fail: Option<fault::Plan>,
    child: std::process::Child,
    dir: PathBuf,
    started: Instant,
    /// The trace it must repeat.
    expected: Option<String>,
}

/// What is summed up over seeds.
#[derive(Default)]
struct Sums {
    runs: u64,
    failed: u64,
    rechecked: u64,
    syscalls: u64,
    calls: u64,
    switches: u64,
    stops: u64,
    served: u64,
    coverage: Coverage,
}

/// How long one seed may take.
const LIMIT: Duration = Duration::from_secs(120);

fn many(options: &Options) -> ExitCode {
    let seeds = options.first..options.first + options.count;
    let task = |seed| Task { seed, fail: options.fail.clone(), expected: None };
    let begun = Instant::now();
    let sums = runs(options, seeds.map(task).collect());
    println!(
        "hostkern: seeds {} to {}: {} runs, {} failed, {} repeated exactly; {} system calls, {} kernel calls, {} switches, {} stops between instructions, {} requests served, {} s",
        options.first,
        options.first + options.count - 1,
        sums.runs,
        sums.failed,
        sums.rechecked,
        sums.syscalls,
        sums.calls,
        sums.switches,
        sums.stops,
        sums.served,
        begun.elapsed().as_secs(),
    );
    if sums.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the programs once to count the calls that may fail, then once for each of them.
fn faults(options: &Options) -> ExitCode {
    let begun = Instant::now();
    let exe = std::env::current_exe().expect("a path");
    let counting =
        run_command(&exe, options, &Task { seed: options.seed, fail: None, expected: None })
            .arg("--counts")
            .args(program_words(options))
            .current_dir(std::env::temp_dir())
            .output();
    let text = counting.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let mut tasks = Vec::new();
    let mut calls = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("hostkern: may fail: ")) {
        let Some((count, name)) = line.split_once(' ') else { continue };
        if options.only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let count: u64 = count.parse().unwrap_or(0);
        calls += 1;
        let tried = count.min(options.most);
        for index in 0..tried {
            // The first ones one by one, the others evenly.
            let nth = if count <= options.most || index < tried / 2 {
                index + 1
            } else {
                let (from, rest) = (tried / 2, tried - tried / 2);
                from + 1 + (index - from) * (count - from) / rest
            };
            for always in [false, true] {
                let fail = Some(fault::Plan::new(name, nth, always));
                tasks.push(Task { seed: options.seed, fail, expected: None });
            }
        }
    }
    if calls == 0 {
        println!("hostkern: the program does not end well without faults:\n{text}");
        return ExitCode::FAILURE;
    }
    let sums = runs(options, tasks);
    println!(
        "hostkern: faults: {calls} calls that may fail, {} runs, {} failed; {} system calls, {} kernel calls, {} requests served, {} s",
        sums.runs,
        sums.failed,
        sums.syscalls,
        sums.calls,
        sums.served,
        begun.elapsed().as_secs(),
    );
    if sums.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Looks for a short schedule with which the run fails.
fn shrunk(options: &Options) -> ExitCode {
    let task = Task { seed: options.seed, fail: options.fail.clone(), expected: None };
    let command = run_command(std::path::Path::new(""), options, &task);
    let result = options
        .record
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("seed-{}.decisions", options.seed)));
    let result = std::path::absolute(result).expect("a path");
    let case = shrink::Case {
        command: command.get_args().map(|word| word.to_string_lossy().into_owned()).collect(),
        programs: program_words(options),
        jobs: options.jobs,
        stops: options.preempt.unwrap_or_else(|| strategy::stops_of_seed(options.seed)),
        most: usize::try_from(options.most).unwrap_or(usize::MAX).min(5000),
        result,
    };
    shrink::run(&case, &|path| {
        let words = Options {
            programs: options.programs.clone(),
            modules: options.modules.clone(),
            builtin: options.builtin.clone(),
            disks: options.disks.clone(),
            fail: options.fail.clone(),
            only: None,
            record: None,
            replay: Some(path.to_owned()),
            coverage: None,
            ..*options
        };
        again(&words)
    })
}

/// The command that makes a run, without its programs.
fn run_command(exe: &std::path::Path, options: &Options, task: &Task) -> Command {
    let mut command = Command::new(exe);
    let modules = options.modules.canonicalize().unwrap_or_default();
    command.args(["run", "--seed", &task.seed.to_string(), "--modules"]).arg(modules);
    command.args(["--limit", &options.limit.to_string()]);
    command.args(schedule_words(options));
    if let Some(fail) = &task.fail {
        command.args(["--fail", &fail.text()]);
    }
    if options.mapped {
        command.arg("--mapped");
    }
    if let Some(object) = &options.builtin {
        command.arg("--builtin").arg(object.canonicalize().unwrap_or_default());
        command.args(options.beside.then_some("--beside"));
    }
    for disk in &options.disks {
        command.args(["--disk", &disk.text()]);
    }
    command.stdin(Stdio::null());
    command
}

fn program_words(options: &Options) -> Vec<String> {
    let mut words = Vec::new();
    for program in &options.programs {
        let path = PathBuf::from(&program[0]).canonicalize().unwrap_or_default();
        words.extend(["--".to_owned(), path.display().to_string()]);
        words.extend_from_slice(&program[1..]);
    }
    words
}

/// Makes runs, some at a time, each in a process and directory of its own.
fn runs(options: &Options, mut queue: Vec<Task>) -> Sums {
    let exe = std::env::current_exe().expect("a path");
    let work = std::env::temp_dir().join(format!("hostkern-{}", std::process::id()));
    queue.reverse();
    let mut running: Vec<Running> = Vec::new();
    let mut sums = Sums::default();
    let mut made = 0u64;
    let mut shown = Instant::now();
    while !queue.is_empty() || !running.is_empty() {
        if options.stop && sums.failed > 0 {
            queue.clear();
        }
        while running.len() < options.jobs
            && let Some(task) = queue.pop()
        {
            made += 1;
            let dir = work.join(format!("{made}"));
            std::fs::create_dir_all(dir.join("work")).expect("a temporary directory");
            let log = std::fs::File::create(dir.join("log")).expect("a log");
            let mut command = run_command(&exe, options, &task);
            command
                .args(options.coverage.iter().flat_map(|_| ["--coverage", "../coverage"]))
                .args(program_words(options))
                .current_dir(dir.join("work"))
                .stdout(log)
                .stderr(Stdio::null());
            let Task { seed, fail, expected } = task;
            let child = command.spawn().expect("a run");
            running.push(Running { seed, fail, child, dir, started: Instant::now(), expected });
        }
        let mut index = 0;
        while index < running.len() {
            let run = &mut running[index];
            let late = run.started.elapsed() > LIMIT;
            if late {
                let _ = run.child.kill();
            }
            match run.child.try_wait().expect("a child") {
                None => index += 1,
                Some(status) => {
                    let run = running.swap_remove(index);
                    let trace = settle(&run, status, late, options, &mut sums);
                    if let Some(trace) = trace
                        && run.expected.is_none()
                        && options.recheck != 0
                        && run.seed.is_multiple_of(options.recheck)
                    {
                        let expected = Some(trace);
                        queue.push(Task { seed: run.seed, fail: run.fail, expected });
                    }
                }
            }
        }
        if shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            eprint!("\rhostkern: {} runs, {} failed ", sums.runs, sums.failed);
            let _ = std::io::stderr().flush();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = std::fs::remove_dir_all(&work);
    if let Some(path) = &options.coverage
        && let Err(error) = std::mem::take(&mut sums.coverage).save(path)
    {
        println!("hostkern: {}: {error}", path.display());
    }
    sums
}

/// Judges a run that has ended; its trace if it went well.
fn settle(
    run: &Running,
    status: std::process::ExitStatus,
    late: bool,
    options: &Options,
    sums: &mut Sums,
) -> Option<String> {
    let log = String::from_utf8_lossy(&std::fs::read(run.dir.join("log")).unwrap_or_default())
        .into_owned();
    let last = log.lines().rev().find(|line| line.starts_with("hostkern: seed="));
    let field = |name: &str| -> Option<&str> {
        last?.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let number = |name: &str| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    sums.runs += 1;
    if options.coverage.is_some()
        && let Ok(text) = std::fs::read_to_string(run.dir.join("coverage"))
    {
        sums.coverage.merge(Coverage::parse(&text));
    }
    sums.syscalls += number("syscalls");
    sums.calls += number("kernel_calls");
    sums.switches += number("switches");
    sums.stops += number("stops");
    sums.served += number("served");
    let trace = field("trace").map(str::to_owned);
    let mut why = None;
    if late {
        why = Some(format!("still running after {} s", LIMIT.as_secs()));
    } else if !status.success() {
        // What the host kernel complained of, which may be far above the end.
        let mut told = log.lines().filter_map(|line| line.strip_prefix("hostkern: "));
        let told = told.find(|line| line.starts_with(char::is_uppercase));
        why = Some(told.map_or(format!("{status}"), |told| format!("{told} ({status})")));
    } else if run.expected.is_some() && run.expected != trace {
        why = Some(format!("its trace is {trace:?}, and was {:?} before", run.expected));
    } else if run.expected.is_some() {
        sums.rechecked += 1;
    }
    if let Some(why) = why {
        sums.failed += 1;
        let fail = run.fail.as_ref().map_or(String::new(), |fail| format!(", {}", fail.text()));
        println!("hostkern: seed {}{fail} FAILED: {why}", run.seed);
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(30)..] {
            println!("    {line}");
        }
        let mut once = Options {
            seed: run.seed,
            programs: options.programs.clone(),
            modules: options.modules.clone(),
            disks: options.disks.clone(),
            fail: run.fail.clone(),
            builtin: options.builtin.clone(),
            only: None,
            record: None,
            replay: None,
            coverage: None,
            ..*options
        };
        once.keep_loaded = false;
        println!("hostkern: repeat with: {}", again(&once));
        let _ = std::io::stdout().flush();
        return None;
    }
    let _ = std::fs::remove_dir_all(&run.dir);
    trace
}
