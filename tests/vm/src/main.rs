// SPDX-License-Identifier: BSD-2-Clause
//! Boots FreeBSD in a virtual machine and runs things in it: the module, our own programs, and
//! the base system's AIO suite, with the built-in AIO as the reference.
//!
//! A boot makes four disks beside the machine's own: one with modules, programs and a plan; a raw
//! one for reports; an empty scratch file system; and an empty disk. The driver logs in over the
//! serial console and starts the guest's runner, which works through the plan and reports on the
//! raw disk, so that kernel messages on the console spoil nothing. The console is watched for
//! panics, hangs and complaints. The machine's own image is never written.

mod bench;
mod console;
mod disks;
mod guest;
mod hypervisor;
mod image;
mod leak;
mod login;
mod options;
mod plan;
mod profile;
mod report;
#[cfg(test)]
mod scratch;
mod symbols;
mod table;
mod trouble;

use guest::{Outcome, Plan};
use image::Machine;
use options::{Command, Options, USAGE};
use std::borrow::Cow;
use std::process::ExitCode;
use table::{Row, count, summary};

/// Whether the guest's runner could use kyua for a program, among a report's values.
const BY_KYUA: &str = "by-kyua";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
    let freebsd_vm = std::env::var("FREEBSD_VM").ok().filter(|dir| !dir.is_empty());
    let result = Options::parse(&args, &home, freebsd_vm.as_deref()).and_then(|options| {
        match &options.command {
            Command::Run => run(&options),
            Command::Test => test(&options, false),
            Command::VmTest => test(&options, true),
            Command::Shell => {
                let machine = one_machine(&options)?;
                guest::shell(&options, &machine, &plan::shell(&options)).map(|()| true)
            }
            Command::Soak => soak(&options),
            Command::Bench => measure(&options),
            Command::Exec(command) => exec(&options, command),
        }
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {error}");
            ExitCode::from(2)
        }
    }
}

/// The first machine there is.
fn one_machine(options: &Options) -> Result<Machine, String> {
    let found = image::find(&options.vm_dir, &options.kernel)?;
    found.into_iter().next().ok_or_else(|| image::none_at_hand(&options.vm_dir, &options.kernel))
}

/// Boots and works through a plan, with a word about it.
fn boot(options: &Options, machine: &Machine, label: &str, plan: &Plan) -> Result<Outcome, String> {
    let start = std::time::Instant::now();
    eprintln!("vm: {}: booting for {label} ({} CPUs)", machine.name, options.smp);
    let outcome = guest::run(options, machine, label, plan)?;
    eprintln!(
        "vm: {}: {label} took {} s, console in {}",
        machine.name,
        start.elapsed().as_secs(),
        outcome.log.display()
    );
    if let Some(trouble) = &outcome.trouble {
        eprintln!("vm: {}: {trouble}\n{}", machine.name, outcome.last_lines);
    }
    Ok(outcome)
}

/// `vm exec`: one command, its output and its success.
fn exec(options: &Options, command: &str) -> Result<bool, String> {
    let machine = one_machine(options)?;
    let outcome = boot(options, &machine, "exec", &plan::exec(options, command))?;
    for run in &outcome.report.runs {
        if run.name == "exec" || !run.good() {
            run.out.iter().for_each(|line| println!("{line}"));
        }
        if !run.good() {
            eprintln!("vm: {}: {}", run.name, run.why());
        }
    }
    outcome.report.errors.iter().for_each(|error| eprintln!("vm: {error}"));
    Ok(outcome.trouble.is_none() && outcome.report.run("exec").is_some_and(report::Run::good))
}

/// `vm run`: the demonstration.
fn run(options: &Options) -> Result<bool, String> {
    let machine = one_machine(options)?;
    let outcome = boot(options, &machine, "run", &plan::run(options))?;
    let report = &outcome.report;
    let mut good = outcome.trouble.is_none() && report.done && report.aborted.is_none();
    for name in ["load-gate", "load", "aio_demo", "aio_copytree", "unload"] {
        let Some(run) = report.run(name) else { continue };
        run.out.iter().for_each(|line| println!("{line}"));
        if name == "aio_copytree" && run.exit == 127 {
            println!("aio_copytree: skipped: no such program in {}", options.programs.display());
        } else if run.good() {
            println!("vm: {name}: ok");
        } else {
            good = false;
            let version = wrong_version(&options.modules, report);
            println!("vm: {name}: FAILED: {}", version.unwrap_or_else(|| run.why()));
        }
    }
    for name in ["served", "unserved", "num_procs"] {
        let name = format!("vfs.aio.rs.{name}");
        let number =
            |tag| report.value(tag, &name).map_or("-".to_owned(), |value| value.to_string());
        println!("vm: {name}: before {} after {}", number("before"), number("after"));
    }
    report.errors.iter().for_each(|error| println!("vm: {error}"));
    Ok(good && report.errors.is_empty())
}

/// `vm bench`: figures of both engines, side by side. They are never judged; only a boot that does
/// not come to its end is a failure.
fn measure(options: &Options) -> Result<bool, String> {
    let kernel = if options.kernel == "both" { "plain" } else { &options.kernel };
    let machine = one_machine(&Options { kernel: kernel.to_owned(), ..options.clone() })?;
    if options.profile.is_some() {
        return profiles(options, &machine);
    }
    let mut good = true;
    let mut runs = |counted: bool, module: bool| -> Result<bench::Runs, String> {
        let mut runs = bench::Runs { module, boots: Vec::new() };
        let options = Options {
            module,
            smp: if counted { 1 } else { options.smp },
            icount: counted.then_some(0),
            // A clock wants more of them than a count.
            percent: if counted { options.percent } else { options.percent * 10 },
            ..options.clone()
        };
        let engine = if module { "aio_rs" } else { "built-in" };
        let kind = if counted { "counted" } else { "timed" };
        for number in 1..=if counted { options.boots } else { options.timed } {
            let label = format!("bench-{kind}-{engine}-{number}");
            let outcome = boot(&options, &machine, &label, &plan::bench(&options))?;
            let row = boot_row(&options, machine.name, &label, &outcome);
            if row.mark != table::Mark::Passed {
                println!("vm: {label}: FAILED: {}", row.reason);
                good = false;
            }
            let run = outcome.report.run("bench");
            let found = run.map(|run| bench::Boot::parse(&run.out)).unwrap_or_default();
            if counted && !found.counts() {
                println!(
                    "vm: {label}: FAILED: the time stamp counter does not count instructions ({} to a tick)",
                    found.per_tick
                );
                good = false;
            }
            runs.boots.push(found);
        }
        Ok(runs)
    };
    let mut both = |counted| -> Result<[bench::Runs; 2], String> {
        let builtin = runs(counted, false)?;
        let ours = if options.module { runs(counted, true)? } else { bench::Runs::default() };
        Ok([builtin, ours])
    };
    let (counted, timed) = (both(true)?, both(false)?);
    let found = bench::Bench {
        machine: format!(
            "machine {}: {} boots of each engine counting instructions on 1 CPU, {} against the clock on {}",
            machine.name, options.boots, options.timed, options.smp
        ),
        counted,
        timed,
    };
    print!("{}", found.text());
    if let Some(path) = &options.json {
        std::fs::write(path, found.json())
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(good)
}

/// `vm bench --profile`: for each row, where each engine's instructions go.
fn profiles(options: &Options, machine: &Machine) -> Result<bool, String> {
    let mut good = true;
    let mut texts: Vec<(String, String)> = Vec::new();
    for module in if options.module { &[false, true][..] } else { &[false][..] } {
        let module = *module;
        let engine = if module { "aio_rs" } else { "built-in" };
        let options = Options { module, smp: 1, icount: Some(0), ..options.clone() };
        let outcome =
            boot(&options, machine, &format!("profile-{engine}"), &plan::bench(&options))?;
        good &= outcome.trouble.is_none();
        let counts = std::fs::read_to_string(guest::profile_file(&outcome.log))
            .map_err(|error| format!("no profile: {error}: can QEMU load the plugin?"))?;
        let rows = profile::parse(&counts);
        let found = outcome.report.run("bench").map(|run| bench::Boot::parse(&run.out));
        let files = guest::symbols(&options, machine, &outcome.report);
        for ((name, sample), counts) in found.unwrap_or_default().rows.iter().zip(&rows) {
            let who = match (&sample.failed, sample.served) {
                (Some(why), _) => format!("{engine}, but {why}"),
                (None, served) if module && served.unwrap_or(0) < sample.submitted => {
                    "aio_rs loaded, but the built-in did it".to_owned()
                }
                _ => engine.to_owned(),
            };
            let functions = profile::by_function(&counts.places, &files);
            let text =
                profile::text(&format!("{name} on {who}"), sample.ops, &functions, counts.hidden);
            texts.push((name.clone(), text));
        }
    }
    // The two engines' row beside each other.
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in &texts {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        texts.iter().filter(|(found, _)| found == name).for_each(|(_, text)| println!("{text}"));
    }
    Ok(good)
}

/// `vm test` and, with the base suite, `vm vm-test`.
fn test(options: &Options, suite: bool) -> Result<bool, String> {
    let machines = image::find(&options.vm_dir, &options.kernel)?;
    let mut rows = Vec::new();
    if machines.is_empty() {
        let why = image::none_at_hand(&options.vm_dir, &options.kernel);
        println!("vm: {why}: skipped");
        rows.push(Row::skipped("-", "boot", &why));
    }
    let mut builtin = None;
    for machine in &machines {
        rows.extend(test_machine(options, machine, suite, &mut builtin)?);
    }
    print!("{}", table::text(&rows));
    if let Some(path) = &options.junit {
        std::fs::write(path, table::junit(&rows))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let counts = count(&rows);
    if counts.builtin > 0 {
        println!("vm: {} cases went well, but were served by the built-in", counts.builtin);
    }
    print!("{}", table::failures(&rows));
    println!("{}", summary(counts));
    Ok(counts.failed == 0)
}

/// The tests of one machine. `builtin` has the built-in's cases, of the first machine: a second one runs
/// them only for the whole suite.
fn test_machine(
    options: &Options,
    machine: &Machine,
    suite: bool,
    builtin: &mut Option<Vec<report::Case>>,
) -> Result<Vec<Row>, String> {
    let name = machine.name;
    // Cases look at what processes are charged. What is asked for comes last, and wins.
    let kenv = format!("kern.racct.enable=1 {}", options.kenv);
    let options = &Options { kenv, ..options.clone() };
    let kind = if suite { "suite" } else { "test" };
    let reference_options = Options { module: false, ..options.clone() };
    let known = builtin.take().filter(|_| !suite && options.module);
    let plan = match known {
        None => plan::reference(options, suite),
        Some(_) => plan::further_reference(options),
    };
    let reference = boot(&reference_options, machine, &format!("{kind}-builtin"), &plan)?;
    let mut rows = vec![boot_row(options, name, "built-in run", &reference)];
    if suite && reference.report.value("aio_test", BY_KYUA) == Some(0) {
        println!("vm: {name}: no kyua or no Kyuafile in the guest: the suite was run without kyua");
    }
    let reference_cases = &*builtin.insert(known.unwrap_or_else(|| cases(&reference)));
    let leaks = !suite || options.only.is_empty();
    if !options.module {
        rows.extend(steps(name, &reference));
        rows.extend(leaks.then(|| leak_row(name, &reference, LEAKS)));
        rows.extend(table::compare(name, reference_cases, None));
        return Ok(rows);
    }
    let ours = boot(options, machine, &format!("{kind}-module"), &plan::module(options, suite))?;
    rows.push(boot_row(options, name, "aio_rs run", &ours));
    rows.extend(steps(name, &ours));
    rows.extend(leaks.then(|| leak_row(name, &ours, LEAKS)));
    rows.extend(leaks.then(|| leak_row(name, &ours, RELOAD_LEAKS)));
    rows.extend(suite.then(|| unserved_row(name, &ours.report)));
    rows.push(complaints_row(name, &ours, &reference));
    let our_cases = table::repeated(cases(&ours), options.repeat);
    rows.extend(table::compare(name, reference_cases, Some(&our_cases)));
    Ok(rows)
}

/// Whether our engine could serve all that was asked of it in the base system's suite.
fn unserved_row(machine: &str, report: &report::Report) -> Row {
    let value = |tag| report.value(tag, plan::UNSERVED);
    let result = match (value(plan::BEFORE_BASE), value(plan::AFTER_BASE)) {
        (Some(before), Some(after)) if before == after => Ok(String::new()),
        (Some(before), Some(after)) => {
            Err(format!("{} went from {before} to {after}", plan::UNSERVED))
        }
        _ => Err(format!("{} was not read", plan::UNSERVED)),
    };
    Row::step(machine, "the base suite left nothing unserved", result)
}

/// `vm soak`: on the debug kernel where there is one.
fn soak(options: &Options) -> Result<bool, String> {
    let found = image::find(&options.vm_dir, &options.kernel)?;
    let debug = found.iter().find(|machine| machine.name == "debug");
    let machine = debug
        .or(found.first())
        .ok_or_else(|| image::none_at_hand(&options.vm_dir, &options.kernel))?;
    // What the kernel complains of without us.
    let alone = Options { module: false, ..options.clone() };
    let reference = boot(&alone, machine, "soak-builtin", &plan::soak_reference())?;
    let mut rows = Vec::new();
    let reload = plan::soak_reload(options);
    let storms = plan::soak_storms(options.minutes * 60 / 2);
    let gate = plan::soak_gate(options);
    let mut boots =
        vec![("reload", 2, &reload), ("storms-2", 2, &storms), ("storms-4", 4, &storms)];
    if options.wide().is_some() {
        boots.insert(1, ("gate", 2, &gate));
    }
    for (name, smp, plan) in boots.into_iter().filter(|boot| boot.0.contains(&options.only)) {
        let label = format!("soak-{name}");
        let outcome = boot(&Options { smp, ..options.clone() }, machine, &label, plan)?;
        let of = format!("{}, {smp} CPUs", machine.name);
        rows.push(boot_row(options, &of, &label, &outcome));
        rows.extend(steps(&of, &outcome));
        rows.push(leak_row(
            &of,
            &outcome,
            if name.starts_with("storms") { LEAKS } else { RELOAD_LEAKS },
        ));
        rows.push(complaints_row(&of, &outcome, &reference));
        for run in &outcome.report.runs {
            let last = run.out.iter().rev().take(3).rev();
            last.for_each(|line| println!("vm: {}: {line}", run.name));
        }
    }
    print!("{}{}", table::text(&rows), table::failures(&rows));
    let counts = count(&rows);
    println!("{}", summary(counts));
    Ok(counts.failed == 0)
}

/// What the kernel said: its message buffer, if that has all since the boot, for on the console the
/// output of programs may stand in the middle of a kernel's line.
fn said(outcome: &Outcome) -> Cow<'_, str> {
    match outcome.report.run(plan::KERNEL_LOG) {
        Some(log) if log.good() && log.out.iter().any(|line| line.contains("---<<BOOT>>---")) => {
            log.out.join("\n").into()
        }
        _ => outcome.console.as_str().into(),
    }
}

fn complaints_row(machine: &str, outcome: &Outcome, reference: &Outcome) -> Row {
    let new = trouble::new_complaints(&said(outcome), &said(reference));
    let complaints = if new.is_empty() { Ok(String::new()) } else { Err(new.join("; ")) };
    Row::step(machine, "no new kernel complaints", complaints)
}

/// Whether a boot went through its plan.
fn boot_row(options: &Options, machine: &str, name: &str, outcome: &Outcome) -> Row {
    let report = &outcome.report;
    let result = match (&outcome.trouble, &report.aborted) {
        (Some(trouble), _) => Err(trouble.clone()),
        (None, Some(step)) => Err(format!(
            "given up at {step}: {}",
            wrong_version(&options.modules, report)
                .unwrap_or_else(|| report.run(step).map_or(String::new(), report::Run::why))
        )),
        (None, None) if !report.done => Err("the guest's report is not complete".into()),
        (None, None) if !report.errors.is_empty() => Err(report.errors.join("; ")),
        (None, None) => Ok(match &outcome.early {
            Some(line) => format!("at the second try: the kernel died before log-in ({line})"),
            None => String::new(),
        }),
    };
    Row::step(machine, name, result)
}

/// What to say when the modules are for another kernel than the guest's: their folder is named
/// after the version they were built for.
fn wrong_version(modules: &std::path::Path, report: &report::Report) -> Option<String> {
    let guest = report.value(plan::VERSION_TAG, plan::VERSION)?;
    let folder = modules.canonicalize().ok()?;
    let built: u64 = folder.file_name()?.to_str()?.parse().ok()?;
    (built != guest).then(|| {
        format!(
            "the modules are for __FreeBSD_version {built}, the guest's kernel is {guest}: \
             build them with FREEBSD={} or SYSDIR=<its source>",
            guest / 100_000
        )
    })
}

/// The cases of a boot; a program of the base suite that has no cases counts as one.
fn cases(outcome: &Outcome) -> Vec<report::Case> {
    let mut cases = outcome.report.cases.clone();
    for run in &outcome.report.runs {
        let whole = run.name.ends_with("_kqueue_test");
        let no_list = run.name.ends_with("/list") && !run.good();
        if !whole && !no_list {
            continue;
        }
        let missing = run.exit == 127;
        let verdict = match (run.good(), missing) {
            (true, _) => report::Verdict::Passed,
            (false, true) => report::Verdict::Skipped,
            (false, false) => report::Verdict::Failed,
        };
        let (suite, name) = run.name.split_once('/').unwrap_or((&run.name, "all"));
        cases.push(report::Case {
            suite: suite.to_owned(),
            name: name.to_owned(),
            verdict,
            reason: if missing {
                "not in this guest".into()
            } else if run.good() {
                String::new()
            } else {
                run.why()
            },
            served: run.served,
            accepted: None,
            ms: run.ms,
        });
    }
    cases
}

/// Rows for the programs of a plan that are no cases.
fn steps(machine: &str, outcome: &Outcome) -> Vec<Row> {
    let mut rows = Vec::new();
    for run in &outcome.report.runs {
        let helper = ["scratch", "kldstat", "settle", "mount", "umount", "threads-at-the-time-out"]
            .contains(&run.name.as_str())
            || run.name.starts_with("malloc-")
            || run.name.starts_with("zones-")
            || run.name.contains('/')
            || run.name.ends_with("_kqueue_test");
        if helper {
            continue;
        }
        if run.exit == 127 {
            rows.push(Row::skipped(machine, &run.name, "no such program was built"));
            continue;
        }
        if run.exit == plan::SKIP {
            let why = run.out.last().map_or("it cannot be done in this guest", String::as_str);
            rows.push(Row::skipped(machine, &run.name, why));
            continue;
        }
        // A conformance program's failures are rows of their own.
        let cases = outcome.report.cases.iter().filter(|case| case.suite == run.name).count();
        let result = if run.good() || (cases > 0 && run.exit == 1) {
            Ok(run
                .served
                .filter(|&served| served > 0)
                .map_or(String::new(), |served| format!("served {served}")))
        } else {
            Err(run.why())
        };
        rows.push(Row { ms: run.ms, ..Row::step(machine, &run.name, result) });
    }
    rows
}

/// A row's name, and the counts it compares.
type Leaks = (&'static str, &'static str, &'static str);
const LEAKS: Leaks = ("nothing leaked", "before", "after");
const RELOAD_LEAKS: Leaks = ("nothing leaked by reloads", plan::RELOADS.0, plan::RELOADS.1);

fn leak_row(machine: &str, outcome: &Outcome, (name, before, after): Leaks) -> Row {
    match leak::grown(&outcome.report, before, after) {
        Ok(grown) if grown.is_empty() => Row::step(machine, name, Ok(String::new())),
        Ok(grown) => Row::step(machine, name, Err(grown.join(", "))),
        Err(why) => Row::skipped(machine, name, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unserved_fails() {
        let mark = |before: &str, after: &str| {
            let name = plan::UNSERVED;
            let text =
                format!("@value before-base {name} {before}\n@value after-base {name} {after}\n");
            unserved_row("plain", &report::Report::parse(&text)).mark
        };
        assert_eq!(mark("0", "0"), table::Mark::Passed);
        assert_eq!(mark("0", "2"), table::Mark::Failed);
        assert_eq!(mark("-", "-"), table::Mark::Failed);
    }

    #[test]
    fn modules_for_another_version() {
        let folder = scratch::Scratch::new("versions");
        let modules = folder.join("1403000");
        std::fs::create_dir_all(&modules).unwrap();
        let on = |version: &str| {
            let text = format!("@value {} {} {version}\n", plan::VERSION_TAG, plan::VERSION);
            wrong_version(&modules, &report::Report::parse(&text))
        };
        let why = on("1500068").unwrap();
        assert!(why.contains("1403000") && why.contains("FREEBSD=15"), "{why}");
        assert_eq!(on("1403000"), None);
        // A guest that does not tell, or a folder by another name: the guest's own words stand.
        assert_eq!(on("-"), None);
        assert_eq!(wrong_version(&folder, &report::Report::parse("")), None);
    }
}
