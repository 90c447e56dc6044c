// SPDX-License-Identifier: BSD-2-Clause
//! One boot of a machine: makes its disks, boots, logs in, has the guest's runner work through a
//! plan, and comes back with the report, or with what went wrong.

use crate::console::{Console, Prompt, Stop, error_log, prompt};
use crate::hypervisor::{self, Disks, Size};
use crate::image::{Boot, Machine};
use crate::options::Options;
use crate::plan::STACK;
use crate::report::{self, Report};
use crate::symbols::{self, Symbols};
use crate::trouble;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Room for reports: more than any plan writes.
const REPORT_DISK: u64 = 64 << 20;
/// The scratch file system; the base suite writes large files.
const SCRATCH_MIB: u64 = 1024;
/// What must be free where the disks are made.
const FREE_MIB: u64 = 2048;
/// A machine that prints nothing for so long while it boots is not going to.
const BOOT_SILENCE: Duration = Duration::from_secs(180);

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
    let mut guest = Guest::boot(options, machine, label, &plan.text)?;
    let result = guest.log_in().and_then(|()| guest.work(plan.silence));
    Ok(guest.finish(result.err()))
}

/// Boots a machine, loads the module as the plan says, and connects a person.
///
/// # Errors
/// What keeps it from working, in one line.
pub fn shell(options: &Options, machine: &Machine, plan: &Plan) -> Result<(), String> {
    let mut guest = Guest::boot(options, machine, "shell", &plan.text)?;
    let ready = guest.log_in().and_then(|()| guest.work(plan.silence));
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
        let size = Size { smp: options.smp, mem: options.mem };
        let (program, args, destroy) = if options.bhyve {
            let copy = options.out.join("disk-copy.img");
            if let Boot::Disk { image, .. } = &machine.boot {
                fs::copy(image, &copy)
                    .map_err(|error| format!("cannot copy {}: {error}", image.display()))?;
            }
            let (args, name) = hypervisor::bhyve(machine, &copy, &disks, size, std::process::id())?;
            ("bhyve", args, Some(name))
        } else {
            let kvm = options.accel == "kvm" || (options.accel == "auto" && kvm_is_usable());
            ("qemu-system-x86_64", hypervisor::qemu(machine, &disks, size, kvm), None)
        };
        let console = Console::start(program, &args, &log, options.timeout)?;
        Ok(Self { options, machine, console, disks, log, destroy })
    }

    /// Gets from power-on to a shell.
    fn log_in(&mut self) -> Result<(), Failure> {
        let mut answered = 0;
        self.console.wait(BOOT_SILENCE, |console| {
            let at = console.text.len();
            if at == answered {
                return None;
            }
            match prompt(&console.text)? {
                Prompt::Login => console.send("root"),
                Prompt::WhichShell => console.send(""),
                Prompt::Shell => return Some(Ok(())),
                Prompt::Password => {
                    return Some(Err("root has a password on this image: take it away (passwd -d? pw usermod root -w none)"));
                }
                Prompt::MountRoot => return Some(Err("the kernel cannot mount its root: is root.img right for it?")),
                Prompt::Loader => return Some(Err("the boot loader stopped: is the image complete?")),
            }
            answered = at;
            None
        })??;
        self.console.send("exec /bin/sh");
        // The answer differs from the line as typed and echoed: a shell has run it.
        let from = self.console.text.len();
        let mut asked = std::time::Instant::now();
        let mut tries = 0;
        self.console.wait(BOOT_SILENCE, |console| {
            if console.text[from..].contains("vm-ready-42") {
                return Some(Ok(()));
            }
            if tries == 0 || asked.elapsed() > Duration::from_secs(10) {
                tries += 1;
                asked = std::time::Instant::now();
                console.send("echo vm-ready-$((40+2))");
            }
            (tries > 12).then_some(Err("the shell does not answer"))
        })??;
        Ok(())
    }

    /// Has the runner work through the plan.
    fn work(&mut self, silence: Duration) -> Result<(), Failure> {
        let from = self.console.text.len();
        self.console.send("mount -uw /; mkdir -p /mnt; mount -t ufs -o ro /dev/vtbd1 /mnt && \\");
        self.console.send("/mnt/bin/runner /mnt/plan /dev/vtbd2; echo vm-over-$((40+2))=$?");
        let ended = self.console.wait(silence, |console| {
            let text = &console.text[from..];
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
        let disk = fs::read(&self.disks.report).unwrap_or_default();
        Report::parse(&report::text_of_disk(&disk))
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
        }
    }

    fn describe(&self, failure: &Failure, report: &Report) -> String {
        let during = report.unfinished().map_or(String::new(), |name| format!(" during {name}"));
        match failure {
            Failure::Text(text) => text.clone(),
            Failure::Stop(Stop::Panic) => {
                format!("{}{during}", trouble::panic_line(&self.console.text).unwrap_or("panic"))
            }
            Failure::Stop(Stop::Silent) if self.console.text.trim().is_empty() => format!(
                "the guest printed nothing in {} s: is its console the first serial port?",
                BOOT_SILENCE.as_secs()
            ),
            Failure::Stop(Stop::Silent) => {
                format!("the guest hangs{during}: it printed nothing for too long")
            }
            Failure::Stop(Stop::Deadline) => {
                format!(
                    "not done after {} s{during}: raise --timeout?",
                    self.options.timeout.as_secs()
                )
            }
            Failure::Stop(Stop::Ended) => {
                let errors = fs::read_to_string(error_log(&self.log)).unwrap_or_default();
                match errors.lines().find(|line| !line.trim().is_empty()) {
                    Some(line) => format!("the machine ended{during}: {line}"),
                    None => format!("the machine ended{during}: it switched off or rebooted"),
                }
            }
        }
    }

    /// The guest's last lines, with names for the addresses in them.
    fn last_lines(&self, report: &Report) -> String {
        let text = &self.console.text;
        let from =
            trouble::panic_at(text).map_or(0, |at| text[..at].rfind('\n').map_or(0, |at| at + 1));
        let lines: Vec<&str> = text[from..].lines().collect();
        let (skip, count) = if from > 0 { (0, 80) } else { (lines.len().saturating_sub(25), 25) };
        let tail: Vec<&str> = lines.into_iter().skip(skip).take(count).collect();
        let mut files = Vec::new();
        let kldstat = report.run("kldstat").map(|run| run.out.join("\n")).unwrap_or_default();
        for (name, base) in symbols::kldstat(&kldstat) {
            files.extend(Symbols::read(&self.options.modules.join(name), base));
        }
        if let Boot::Direct { kernel, .. } = &self.machine.boot {
            files.extend(Symbols::read(kernel, 0));
        }
        symbols::annotate(&tail.join("\n"), &files)
    }
}

enum Failure {
    Stop(Stop),
    Text(String),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
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

/// Makes the disks of a boot.
fn make_disks(options: &Options, label: &str, plan: &str) -> Result<Disks, String> {
    let out = &options.out;
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |error: std::io::Error| format!("cannot write {what}: {error}")
    };
    fs::create_dir_all(out).map_err(failed(out))?;
    if let Some(free) = free_mib(out)
        && free < FREE_MIB
    {
        return Err(format!("only {free} MiB free in {}: {FREE_MIB} are needed", out.display()));
    }
    let stage = out.join(format!("{label}.files"));
    let _ = fs::remove_dir_all(&stage);
    let bin = stage.join("bin");
    fs::create_dir_all(&bin).map_err(failed(&bin))?;
    let programs = [
        "runner",
        "aio_demo",
        "aio_copytree",
        "conformance",
        "sockets",
        "storm",
        "httpd",
        "mixed",
        "parked",
        "holder",
        "noworker",
        "stress",
    ];
    for name in programs {
        let from = options.programs.join(name);
        if from.is_file() {
            fs::copy(&from, bin.join(name)).map_err(failed(&bin))?;
        } else if name == "runner" {
            return Err(format!(
                "no guest programs in {}: build them first (make guest)",
                options.programs.display()
            ));
        }
    }
    if options.module {
        for name in ["aio_rs_gate.ko", "aio_rs.ko"] {
            let from = options.modules.join(name);
            fs::copy(&from, stage.join(name)).map_err(|error| {
                format!("no module {}: {error}: build it first (make)", from.display())
            })?;
        }
        let stack = options.modules.join(STACK);
        if stack.is_file() {
            fs::copy(&stack, stage.join(STACK)).map_err(failed(&stack))?;
        }
    }
    fs::write(stage.join("plan"), plan).map_err(failed(&stage))?;
    let disks = Disks {
        files: out.join(format!("{label}.files.img")),
        report: out.join(format!("{label}.report.img")),
        scratch: out.join("scratch.img"),
    };
    // It reckons without its own indirect blocks.
    makefs(&disks.files, &stage, &["-b", "30%"])?;
    fs::File::create(&disks.report)
        .and_then(|file| file.set_len(REPORT_DISK))
        .map_err(failed(&disks.report))?;
    if fs::metadata(&disks.scratch).map_or(0, |scratch| scratch.len()) != SCRATCH_MIB << 20 {
        let empty = out.join("empty");
        fs::create_dir_all(&empty).map_err(failed(&empty))?;
        let new = out.join("scratch.new");
        makefs(&new, &empty, &["-s", &format!("{SCRATCH_MIB}m"), "-f", "40000"])?;
        fs::rename(&new, &disks.scratch).map_err(failed(&disks.scratch))?;
    }
    Ok(disks)
}

/// Makes a UFS1 image of a folder: Debian's makefs writes UFS2 where no kernel looks for it.
fn makefs(image: &Path, folder: &Path, more: &[&str]) -> Result<(), String> {
    let output = Command::new("makefs")
        .args(["-t", "ffs", "-o", "version=1,bsize=32768,fsize=4096", "-B", "le"])
        .args(more)
        .arg(image)
        .arg(folder)
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                "no makefs: install it (on Debian: apt-get install makefs)".to_owned()
            }
            _ => format!("cannot start makefs: {error}"),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last =
        errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(format!("makefs could not make {}: {last}", image.display()))
}

/// What df(1) says is free, in MiB.
fn free_mib(dir: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(dir).output().ok()?;
    parse_df(&String::from_utf8_lossy(&output.stdout))
}

fn parse_df(text: &str) -> Option<u64> {
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|kib| kib / 1024)
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
    fn reads_df() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 1000000 1 819200 1% /\n";
        assert_eq!(parse_df(text), Some(800));
        assert_eq!(parse_df(""), None);
    }
}
