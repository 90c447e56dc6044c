// SPDX-License-Identifier: BSD-2-Clause
//! The command line.

use std::path::PathBuf;
use std::time::Duration;

/// What `vm --help` prints.
pub const USAGE: &str = "\
usage: vm COMMAND [OPTIONS]

Commands
  run       load the module, read a file and copy a tree with it, unload
  test      conformance, stress and leak check, with the built-in as the reference
  vm-test   the base system's suite and ours, case by case, built-in beside aio_rs
  shell     log a person in with the module loaded
  soak      the engine comes and goes for long, and storms of everything at once, on
            a kernel with assertions where there is one
  bench     measure what calls cost, on the built-in and on ours
  exec CMD  run one shell command in the guest (programs are in /mnt/bin,
            those for i386 in /mnt/bin32)

Options
  --vm-dir DIR      the machine: kernel and root.img, or disk.qcow2 or disk.img
                    (default: $FREEBSD_VM, or ~/.cache/aio-rs/vm)
  --modules DIR     aio_rs.ko and aio_rs_gate.ko (default: build)
  --next DIR        another build of the modules, to upgrade to (default: the
                    first one's name with -next, if there is one)
  --programs DIR    guest programs (default: target/x86_64-unknown-none/release)
  --programs32 DIR  the same for i386 (default: target/i386/release)
  --kernel WHICH    plain, debug, image, or both: all there are (default: both;
                    run, shell and exec take the first of them)
  --smp N           processors (default: 2)
  --mem MIB         memory (default: 1024)
  --timeout SECONDS for one boot with all that runs in it (default: 1800;
                    soak: 7200)
  --junit FILE      write a JUnit report
  --out DIR         logs and disks (default: build/vm)
  --no-module       do not load the module: everything runs on the built-in
  --accel WHICH     auto, kvm or tcg (default: auto)
  --bhyve           use bhyve (untested) instead of QEMU
  --kenv TEXT       more of the kernel's environment, for a direct boot
  --requests N      how much the stress program does (default: 20000)
  --reloads N       how often the engine comes and goes under load (default: 50;
                    soak: 1000)

Options of soak
  --minutes N       for the storms, in all (default: 30)
  --only TEXT       boots whose name has this text in it: reload, gate, storms-2, storms-4

Options of vm-test
  --only WHICH      base: nothing but the base system's suite; base-cases: of that,
                    nothing but aio_test and lio_test
  --repeat N        with the module, the suite so many times in one boot (default: 1)

Options of bench
  --boots N         boots of each engine that count instructions (default: 5)
  --timed N         boots of each engine against the clock (default: 1)
  --only TEXT,...   rows whose name has one of these texts in it
  --percent N       percent of the usual number of operations (default: 100)
  --json FILE       write all figures
  --profile PLUGIN  attribute instructions to functions instead, with one boot of
                    each engine and QEMU's plugin libaio_rs_profile.so
";

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Load, demonstrate, unload.
    Run,
    /// Our own cases, with the built-in as the reference.
    Test,
    /// The base system's suite, and ours.
    VmTest,
    /// A person at the console.
    Shell,
    /// One command in the guest.
    Exec(String),
    /// Long runs.
    Soak,
    /// Figures.
    Bench,
}

/// The options.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub command: Command,
    /// Where the machine is.
    pub vm_dir: PathBuf,
    /// Where the modules are.
    pub modules: PathBuf,
    /// Where another build of them is, to upgrade to.
    pub next: Option<PathBuf>,
    /// Where the guest programs are.
    pub programs: PathBuf,
    /// Where those for i386 are; they may be missing.
    pub programs32: PathBuf,
    /// Which kernel: a machine's name, or "both".
    pub kernel: String,
    /// Processors.
    pub smp: u32,
    /// Memory in MiB.
    pub mem: u32,
    /// Longest time for one boot.
    pub timeout: Duration,
    /// Where to write a JUnit report.
    pub junit: Option<PathBuf>,
    /// Logs and disks.
    pub out: PathBuf,
    /// Load the module.
    pub module: bool,
    /// How QEMU is to run the guest: "auto", "kvm" or "tcg".
    pub accel: String,
    /// Use bhyve.
    pub bhyve: bool,
    /// More of the kernel's environment: words `name=value`.
    pub kenv: String,
    /// Requests of the stress program.
    pub requests: u64,
    /// Reloads under load.
    pub reloads: u32,
    /// How long the storms of a soak last.
    pub minutes: u64,
    /// How long QEMU takes for an instruction, as a power of two in nanoseconds, when instructions
    /// are counted; set by bench.
    pub icount: Option<u8>,
    /// Boots that count instructions.
    pub boots: u32,
    /// Boots against the clock.
    pub timed: u32,
    /// Which rows; of vm-test, "base", "base-cases" or all.
    pub only: String,
    /// How often the base system's suite runs in one boot of ours.
    pub repeat: u32,
    /// Percent of the usual number of operations.
    pub percent: u64,
    /// Where to write figures.
    pub json: Option<PathBuf>,
    /// QEMU's plugin for a profile.
    pub profile: Option<PathBuf>,
}

impl Options {
    /// Reads the command line, without the program's name.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn parse(args: &[String], home: &str, freebsd_vm: Option<&str>) -> Result<Self, String> {
        let mut words = args.iter();
        let command = match words.next().map(String::as_str) {
            Some("run") => Command::Run,
            Some("test") => Command::Test,
            Some("vm-test") => Command::VmTest,
            Some("shell") => Command::Shell,
            Some("soak") => Command::Soak,
            Some("bench") => Command::Bench,
            Some("exec") => Command::Exec(String::new()),
            Some(other) => return Err(format!("no command {other}; see vm --help")),
            None => return Err("no command; see vm --help".into()),
        };
        let mut options = Self {
            command,
            vm_dir: freebsd_vm
                .map_or_else(|| PathBuf::from(home).join(".cache/aio-rs/vm"), PathBuf::from),
            modules: "build".into(),
            next: None,
            programs: "target/x86_64-unknown-none/release".into(),
            programs32: "target/i386/release".into(),
            kernel: "both".into(),
            smp: 2,
            mem: 1024,
            timeout: Duration::from_secs(1800),
            junit: None,
            out: "build/vm".into(),
            module: true,
            accel: "auto".into(),
            bhyve: false,
            kenv: String::new(),
            requests: 20_000,
            reloads: 50,
            minutes: 30,
            icount: None,
            boots: 5,
            timed: 1,
            only: String::new(),
            repeat: 1,
            percent: 100,
            json: None,
            profile: None,
        };
        if options.command == Command::Soak {
            options.reloads = 1000;
            options.timeout = Duration::from_secs(7200);
        }
        while let Some(word) = words.next() {
            let mut value = || {
                words.next().cloned().ok_or_else(|| format!("{word} wants a value; see vm --help"))
            };
            match word.as_str() {
                "--vm-dir" => options.vm_dir = value()?.into(),
                "--modules" => options.modules = value()?.into(),
                "--next" => options.next = Some(value()?.into()),
                "--programs" => options.programs = value()?.into(),
                "--programs32" => options.programs32 = value()?.into(),
                "--kernel" => {
                    options.kernel = one_of(word, value()?, &["plain", "debug", "image", "both"])?;
                }
                "--accel" => options.accel = one_of(word, value()?, &["auto", "kvm", "tcg"])?,
                "--smp" => options.smp = number(word, &value()?, 1..=64)? as u32,
                "--mem" => options.mem = number(word, &value()?, 128..=1 << 20)? as u32,
                "--timeout" => {
                    options.timeout = Duration::from_secs(number(word, &value()?, 10..=86_400)?);
                }
                "--requests" => options.requests = number(word, &value()?, 1..=1_000_000_000)?,
                "--reloads" => options.reloads = number(word, &value()?, 1..=100_000)? as u32,
                "--minutes" => options.minutes = number(word, &value()?, 1..=10_000)?,
                "--kenv" => options.kenv = value()?,
                "--boots" => options.boots = number(word, &value()?, 0..=100)? as u32,
                "--timed" => options.timed = number(word, &value()?, 0..=100)? as u32,
                "--percent" => options.percent = number(word, &value()?, 1..=10_000)?,
                "--only" if options.command == Command::VmTest => {
                    options.only = one_of(word, value()?, &["base", "base-cases"])?;
                }
                "--only" => options.only = value()?,
                "--repeat" => options.repeat = number(word, &value()?, 1..=1000)? as u32,
                "--json" => options.json = Some(value()?.into()),
                "--profile" => options.profile = Some(value()?.into()),
                "--junit" => options.junit = Some(value()?.into()),
                "--out" => options.out = value()?.into(),
                "--no-module" => options.module = false,
                "--bhyve" => options.bhyve = true,
                other => match &mut options.command {
                    Command::Exec(command) if !other.starts_with("--") => {
                        if !command.is_empty() {
                            command.push(' ');
                        }
                        command.push_str(other);
                    }
                    _ => return Err(format!("no option {other}; see vm --help")),
                },
            }
        }
        if options.command == Command::Exec(String::new()) {
            return Err("exec wants a command to run in the guest".into());
        }
        if options.next.is_none() {
            options.next = options.beside("next", "aio_rs.ko");
        }
        Ok(options)
    }

    /// The folder of a build whose name is that of the modules' with something behind it, if it has
    /// that file.
    fn beside(&self, name: &str, file: &str) -> Option<PathBuf> {
        let mut folder = self.modules.clone().into_os_string();
        folder.push(format!("-{name}"));
        Some(PathBuf::from(folder)).filter(|folder| folder.join(file).is_file())
    }

    /// Where the gate in which threads linger is, if it was built.
    pub fn wide(&self) -> Option<PathBuf> {
        self.beside(crate::plan::WIDE, "aio_rs_gate.ko")
    }
}

fn one_of(name: &str, text: String, words: &[&str]) -> Result<String, String> {
    if words.contains(&text.as_str()) {
        return Ok(text);
    }
    Err(format!("{name} is one of {}, not {text}", words.join(", ")))
}

fn number(name: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        format!("{name} is a number from {} to {}, not {text}", range.start(), range.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Options, String> {
        let args: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args, "/home/x", None)
    }

    #[test]
    fn defaults() {
        let options = parse("test").unwrap();
        assert_eq!(options.command, Command::Test);
        assert_eq!(options.vm_dir, PathBuf::from("/home/x/.cache/aio-rs/vm"));
        assert!(options.module);
        let elsewhere = Options::parse(&["run".into()], "/home/x", Some("/vm")).unwrap();
        assert_eq!(elsewhere.vm_dir, PathBuf::from("/vm"));
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(parse("run --smp 4").unwrap().smp, 4);
        assert!(parse("run --smp 0").unwrap_err().contains("--smp"));
        assert!(parse("run --smp").unwrap_err().contains("value"));
        assert!(parse("run --kernel fast").unwrap_err().contains("plain, debug"));
        assert!(parse("run --what").unwrap_err().contains("--what"));
        assert!(parse("fly").unwrap_err().contains("fly"));
        assert!(parse("").unwrap_err().contains("--help"));
    }

    #[test]
    fn soak_is_longer() {
        let (soak, test) = (parse("soak").unwrap(), parse("test").unwrap());
        assert!(soak.reloads > test.reloads && soak.timeout > test.timeout);
        assert_eq!(parse("soak --reloads 3 --minutes 1").unwrap().reloads, 3);
        assert!(parse("soak --minutes 0").unwrap_err().contains("--minutes"));
    }

    #[test]
    fn bench() {
        let options = parse("bench --boots 7 --timed 0 --only read-depth --json x").unwrap();
        assert_eq!((options.boots, options.timed, options.only.as_str()), (7, 0, "read-depth"));
        assert_eq!(options.json, Some(PathBuf::from("x")));
        assert!(parse("bench").unwrap().boots >= 5);
        assert!(parse("bench --boots 1000").unwrap_err().contains("--boots"));
    }

    #[test]
    fn vm_test() {
        let options = parse("vm-test --only base --repeat 20").unwrap();
        assert_eq!((options.only.as_str(), options.repeat), ("base", 20));
        assert!(parse("vm-test --only lio").unwrap_err().contains("base"));
        assert!(parse("vm-test --repeat 0").unwrap_err().contains("--repeat"));
    }

    #[test]
    fn exec_takes_a_command() {
        let options = parse("exec --no-module sysctl vfs.aio").unwrap();
        assert_eq!(options.command, Command::Exec("sysctl vfs.aio".into()));
        assert!(parse("exec").is_err());
    }
}
