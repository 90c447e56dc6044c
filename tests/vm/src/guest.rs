// SPDX-License-Identifier: BSD-2-Clause
//! One boot of a machine: makes its disks, boots, logs in, has the guest's runner work through a
//! plan, and comes back with the report, or with what went wrong.

use crate::console::{Console, Stop, error_log};
use crate::disks::{free_mib, make_disks};
use crate::hypervisor::{self, Disks, Size};
use crate::image::{Boot, Machine};
use crate::login::{Failure, log_in};
use crate::options::Options;
use crate::report::{self, Report};
use crate::symbols::{self, Symbols};
use crate::trouble;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A machine that prints nothing for so long while it boots is not going to.
const BOOT_SILENCE: Duration = Duration::from_secs(180);

/// With less than this free a disk counts as full.
const FULL_MIB: u64 = 16;

/// What the guest is to do.
pub struct Plan {
    /// The runner's steps.
    pub text: String,
    /// The longest that one step may take without a word.
    pub silence: Duration,
}

/// What came of a boot.
pub struct Outcome {
    /// What the runner reported.
    pub report: Report,
    /// What the console showed.
    pub console: String,
    /// A panic, a hang or an early end: one line.
    pub trouble: Option<String>,
    /// The guest's last lines then, with names for addresses.
    pub last_lines: String,
    /// Where the console's text is.
    pub log: PathBuf,
    /// What the kernel died of at a first try, before anything of ours was there.
    pub early: Option<String>,
}

/// Boots a machine and works through a plan.
///
/// # Errors
/// What keeps it from being tried at all, in one line that says what to do.
pub fn run(
    options: &Options,
    machine: &Machine,
    label: &str,
    plan: &Plan,
) -> Result<Outcome, String> {
    let mut early = None;
    loop {
        let mut guest = Guest::boot(options, machine, label, &plan.text)?;
        let result = match log_in(&mut guest.console, BOOT_SILENCE) {
            // An emulated machine's kernel may die while it starts its processors. Nothing of ours
            // was there yet, so it is tried once more, and said.
            Err(Failure::Stop(Stop::Panic)) if early.is_none() => {
                let line = trouble::panic_line(&guest.console.text).unwrap_or("panic");
                eprintln!("vm: {}: {line} before log-in, without us: once more", machine.name);
                early = Some(line.to_owned());
                let _ = fs::rename(&guest.log, guest.log.with_extension("early.log"));
                continue;
            }
            Err(failure) => Err(failure),
            Ok(()) => guest.work(plan.silence),
        };
        return Ok(Outcome { early, ..guest.finish(result.err()) });
    }
}

/// Boots a machine, loads the module as the plan says, and connects a person.
///
/// # Errors
/// What keeps it from working, in one line.
pub fn shell(options: &Options, machine: &Machine, plan: &Plan) -> Result<(), String> {
    let mut guest = Guest::boot(options, machine, "shell", &plan.text)?;
    let ready = log_in(&mut guest.console, BOOT_SILENCE).and_then(|()| guest.work(plan.silence));
    if let Err(error) = ready {
        let outcome = guest.finish(Some(error));
        return Err(format!("{}\n{}", outcome.trouble.unwrap_or_default(), outcome.last_lines));
    }
    for run in guest.report().runs.iter().filter(|run| !run.good()) {
        eprintln!("vm: {}: {}", run.name, run.why());
    }
    eprintln!(
        "vm: programs are in /mnt/bin, a scratch file system is on /media; shutdown -p now (or Ctrl-C) ends it"
    );
    guest.console.send("cd /media");
    let mut input = guest.console.take_input().ok_or("the machine has no keyboard")?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut input);
    });
    let mut shown = guest.console.text.len();
    while !guest.console.has_ended() {
        guest.console.pump(Duration::from_millis(100));
        print!("{}", &guest.console.text[shown..]);
        let _ = std::io::Write::flush(&mut std::io::stdout());
        shown = guest.console.text.len();
    }
    Ok(())
}

struct Guest<'a> {
    options: &'a Options,
    machine: &'a Machine,
    console: Console,
    disks: Disks,
    log: PathBuf,
    /// The name of a machine that must be destroyed (bhyve).
    destroy: Option<String>,
}

impl<'a> Guest<'a> {
    fn boot(
        options: &'a Options,
        machine: &'a Machine,
        label: &str,
        plan: &str,
    ) -> Result<Self, String> {
        let label = format!("{}-{label}", machine.name);
        let disks = make_disks(options, &label, plan)?;
        let log = options.out.join(format!("{label}.log"));
        let size = Size { smp: options.smp, mem: options.mem, icount: options.icount };
        let (program, args, destroy) = if options.bhyve {
            let copy = options.out.join("disk-copy.img");
            if let Boot::Disk { image, .. } = &machine.boot {
                fs::copy(image, &copy)
                    .map_err(|error| format!("cannot copy {}: {error}", image.display()))?;
            }
            let (args, name) = hypervisor::bhyve(machine, &copy, &disks, size, std::process::id())?;
            ("bhyve", args, Some(name))
        } else {
            let kvm = options.icount.is_none()
                && (options.accel == "kvm" || (options.accel == "auto" && kvm_is_usable()));
            let mut args = hypervisor::qemu(machine, &disks, size, kvm, &options.kenv);
            if let Some(plugin) = &options.profile {
                args.push("-plugin".into());
                args.push(hypervisor::plugin(plugin, &profile_file(&log)));
            }
            ("qemu-system-x86_64", args, None)
        };
        let console = Console::start(program, &args, &log, options.timeout)?;
        Ok(Self { options, machine, console, disks, log, destroy })
    }

    /// Has the runner work through the plan.
    fn work(&mut self, silence: Duration) -> Result<(), Failure> {
        let from = self.console.text.len();
        self.console.send("mount -uw /; mkdir -p /mnt; mount -t ufs -o ro /dev/vtbd1 /mnt && \\");
        self.console.send("/mnt/bin/runner /mnt/plan /dev/vtbd2; echo vm-over-$((40+2))=$?");
        let report = &self.disks.report;
        // Where instructions are the clock, the delays before the power goes off take minutes.
        let hurry = self.options.icount.is_some();
        let ended = self.console.wait(silence, |console| {
            let text = &console.text[from..];
            if hurry && text.contains("\n@done\n") && read_report(report).done {
                return Some(true);
            }
            let at = text.find("vm-over-42=")?;
            text[at..].split_once('\n').map(|(status, _)| status.trim() == "vm-over-42=0")
        });
        match ended {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Text("the guest could not run the plan".into())),
            // The plan may end by switching the machine off.
            Err(Stop::Ended) if self.report().done => Ok(()),
            Err(stop) => Err(stop.into()),
        }
    }

    fn report(&self) -> Report {
        read_report(&self.disks.report)
    }

    fn finish(mut self, failure: Option<Failure>) -> Outcome {
        if matches!(failure, Some(Failure::Stop(Stop::Panic))) {
            // The back trace follows; then a debugger's prompt, or the end.
            let from = self.console.text.len();
            self.console.drain(
                Duration::from_secs(20),
                from,
                &["db> ", "Automatic reboot", "Rebooting"],
            );
            if self.console.text[from..].contains("db> ") {
                self.console.send("bt");
                self.console.drain(Duration::from_secs(5), self.console.text.len(), &["db> "]);
            }
        }
        self.console.kill();
        while self.console.pump(Duration::from_millis(50)) {}
        if let Some(name) = &self.destroy {
            let _ = Command::new("bhyvectl").arg("--destroy").arg(format!("--vm={name}")).status();
        }
        let report = self.report();
        let trouble = failure.map(|failure| self.describe(&failure, &report));
        let last_lines = if trouble.is_some() { self.last_lines(&report) } else { String::new() };
        Outcome {
            report,
            console: std::mem::take(&mut self.console.text),
            trouble,
            last_lines,
            log: self.log.clone(),
            early: None,
        }
    }

    fn describe(&self, failure: &Failure, report: &Report) -> String {
        let during = report.unfinished().map_or(String::new(), |name| format!(" during {name}"));
        let stop = match failure {
            Failure::Text(text) => return text.clone(),
            Failure::Stop(stop) => *stop,
        };
        // A guest whose disk cannot be written waits for ever.
        if let Some(free) = free_mib(&self.options.out)
            && free < FULL_MIB
        {
            let out = self.options.out.display();
            return format!("the disk of {out} is full{during}: make room there, or set --out");
        }
        let errors = fs::read_to_string(error_log(&self.log)).unwrap_or_default();
        describe(stop, &self.console.text, &errors, &during, self.options.timeout)
    }

    /// The guest's last lines, with names for the addresses in them.
    fn last_lines(&self, report: &Report) -> String {
        let text = &self.console.text;
        let from =
            trouble::panic_at(text).map_or(0, |at| text[..at].rfind('\n').map_or(0, |at| at + 1));
        let lines: Vec<&str> = text[from..].lines().collect();
        let (skip, count) = if from > 0 { (0, 80) } else { (lines.len().saturating_sub(25), 25) };
        let tail: Vec<&str> = lines.into_iter().skip(skip).take(count).collect();
        let files = symbols(self.options, self.machine, report);
        symbols::annotate(&tail.join("\n"), &files)
    }
}

fn read_report(disk: &Path) -> Report {
    Report::parse(&report::text_of_disk(&fs::read(disk).unwrap_or_default()))
}

/// The functions of the modules that a guest loaded, and of its kernel.
pub fn symbols(options: &Options, machine: &Machine, report: &Report) -> Vec<Symbols> {
    let mut files = Vec::new();
    let kldstat = report.run("kldstat").map(|run| run.out.join("\n")).unwrap_or_default();
    for (name, base) in symbols::kldstat(&kldstat) {
        files.extend(Symbols::read(&options.modules.join(name), base));
    }
    if let Boot::Direct { kernel, .. } = &machine.boot {
        files.extend(Symbols::read(kernel, 0));
    }
    files
}

/// Where QEMU's plugin writes the profile of a boot.
pub fn profile_file(log: &Path) -> PathBuf {
    log.with_extension("profile")
}

/// Why a guest did not come to its end, in one line.
fn describe(stop: Stop, text: &str, errors: &str, during: &str, limit: Duration) -> String {
    match stop {
        Stop::Panic => format!("{}{during}", trouble::panic_line(text).unwrap_or("panic")),
        Stop::Silent if text.trim().is_empty() => format!(
            "the guest printed nothing in {} s: is it for amd64, and its console the first serial \
             port (console=\"comconsole\" in /boot/loader.conf)?",
            BOOT_SILENCE.as_secs()
        ),
        Stop::Silent => format!("the guest hangs{during}: it printed nothing for too long"),
        Stop::Deadline => {
            format!("not done after {} s{during}: raise --timeout?", limit.as_secs())
        }
        Stop::Ended => match errors.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("the machine ended{during}: {line}"),
            None => format!("the machine ended{during}: it switched off or rebooted"),
        },
    }
}

/// Whether this machine can run guests itself. There are machines with a /dev/kvm that opens, but
/// no processor that could do it; guests crash there at once.
fn kvm_is_usable() -> bool {
    let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    opens && fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation(&text))
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_a_processor_for_it() {
        assert!(has_virtualisation("model name : x\nflags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualisation("flags\t\t: fpu sse\n"));
        assert!(!has_virtualisation(""));
    }

    #[test]
    fn a_line_for_each_end() {
        let why = |stop, text, errors| {
            describe(stop, text, errors, " during load", Duration::from_secs(60))
        };
        assert!(why(Stop::Silent, " \n", "").contains("comconsole"));
        assert!(why(Stop::Silent, "booting", "").contains("hangs during load"));
        assert_eq!(why(Stop::Panic, "x\npanic: oh\ny", ""), "panic: oh during load");
        assert!(why(Stop::Deadline, "", "").contains("--timeout"));
        assert!(why(Stop::Ended, "", "\nqemu: no such disk\n").ends_with("qemu: no such disk"));
        assert!(why(Stop::Ended, "", "").contains("switched off"));
    }
}
