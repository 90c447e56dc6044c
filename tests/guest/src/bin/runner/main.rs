// SPDX-License-Identifier: BSD-2-Clause
//! Runs a list of programs in the guest and reports each, so that the host's driver needs one
//! command on the console instead of hundreds.
//!
//! `runner PLAN DEVICE`: the plan is a text file, one step a line (see [`step`]). What is reported
//! goes to the console, where a person and a hang detector read it, and to a raw disk, where
//! kernel messages cannot get between the words: blocks of 4 KiB of "VMREPORT", a number counted
//! from 0, the length of the text, then the text. A report line is
//!
//! - `@begin NAME`, `@out NAME TEXT`, `@end NAME exit=N signal=N timeout=0|1 ms=N served=N|-`
//! - `@case SUITE/CASE result=WORD ms=N served=N|- REASON` for a case of an ATF program
//! - `@value TAG NAME NUMBER` for a counter
//! - `@abort NAME` when a step that must succeed failed; the steps up to `always` are left out
//! - `@done` at the end
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

mod suite;

use core::ffi::CStr;
use core::fmt;
use guest::errno::{EAGAIN, EINTR};
use guest::mem::Region;
use guest::out::Text;
use guest::path::Path;
use guest::sys::{self, Ended, Fork};
use guest::sysctl::{self, Maybe, served};
use guest::time::{ms_since, now};
use guest::{Args, Errno, println};

const BLOCK: usize = 4096;
const HEADER: usize = 16;
/// How much of a program's output is kept where only its end matters.
const TAIL: usize = 4096;
/// What a case that is known not to end is given; every limit is longer.
const EXPECTED_MS: u64 = 3_000;
/// How long a process may take to go after SIGKILL before it counts as stuck.
const STUCK_MS: u64 = 60_000;
/// The name under which a look at all threads is reported.
const LOOK: &str = "threads-at-the-time-out";

guest::program!(run);

fn run(args: Args) -> i32 {
    let (Some(plan), Some(device)) = (args.get(1), args.get(2)) else {
        guest::eprintln!("usage: runner PLAN DEVICE");
        return 2;
    };
    match go(plan, device) {
        Ok(()) => 0,
        Err((what, error)) => {
            println!("@error {what}: {error}");
            1
        }
    }
}

fn go(plan: &CStr, device: &CStr) -> Result<(), (&'static str, Errno)> {
    let at = |what| move |error| (what, error);
    let device = sys::open(device, sys::O_RDWR, 0).map_err(at("open the report disk"))?;
    let fd = sys::open(plan, sys::O_RDONLY, 0).map_err(at("open the plan"))?;
    let size = sys::fstat(fd).map_err(at("fstat the plan"))?.size as usize;
    let text = Region::map(size.max(1)).map_err(at("mmap"))?;
    sys::pread_at(fd, text.addr(), size, 0).map_err(at("read the plan"))?;
    let mut runner = Runner {
        device,
        number: 0,
        block: [0; BLOCK],
        used: HEADER,
        flushed: now(),
        skipping: false,
        settings: [const { None }; 16],
        work: Path::new(b"/tmp"),
        fresh: 0,
    };
    let mut line = [0u8; 1024];
    let mut used = 0;
    for index in 0..=size {
        let mut byte = [b'\n'];
        if index < size {
            text.read(index, &mut byte);
        }
        if byte[0] != b'\n' {
            if used < line.len() {
                line[used] = byte[0];
                used += 1;
            }
            continue;
        }
        if let Ok(words) = core::str::from_utf8(&line[..used]) {
            step(&mut runner, words.trim());
        }
        used = 0;
    }
    runner.restore();
    runner.say(format_args!("@done"));
    runner.flush();
    Ok(())
}

struct Setting {
    name: Text<64>,
    old: i32,
}

struct Runner {
    device: i32,
    number: u32,
    block: [u8; BLOCK],
    used: usize,
    flushed: u64,
    /// A step that must succeed failed.
    skipping: bool,
    settings: [Option<Setting>; 16],
    work: Path,
    fresh: u32,
}

/// How a program is to be run.
struct Job<'a> {
    name: &'a str,
    limit_ms: u64,
    /// Report every line of output, or only the last few at the end.
    lines: bool,
    /// Where to run it; the runner's own directory if none.
    dir: Option<Path>,
    /// Where an ATF case writes its result; one that says there that it expects a time-out is not
    /// given the whole time.
    result: Option<Path>,
}

impl Job<'_> {
    fn is_over(&self, ms: u64) -> bool {
        if ms <= EXPECTED_MS {
            return false;
        }
        let mut expected = false;
        if let Some(result) = &self.result {
            for_each_line(result, |line| expected |= line.starts_with("expected_timeout"));
        }
        expected || ms > self.limit_ms
    }
}

/// How it went.
#[derive(Clone, Copy)]
struct Outcome {
    ended: Option<Ended>,
    timed_out: bool,
    ms: u64,
    served: Option<u64>,
}

impl Outcome {
    fn good(&self) -> bool {
        self.ended == Some(Ended::Exit(0)) && !self.timed_out
    }
}

/// Does one step of the plan:
///
/// - `work DIR`: where fresh directories are made
/// - `sysctl NAME VALUE`: sets it until the end of the plan
/// - `value TAG NAME...`: reports numbers from sysctl
/// - `run NAME SECONDS lines|tail PROGRAM ARGS...`: runs a program in a fresh directory
/// - `must ...`: the same, but if it fails the plan is aborted
/// - `sh NAME SECONDS lines|tail COMMAND`, `mustsh ...`: the same for a shell command, in the
///   runner's own directory
/// - `kyua-or-atf SUITE SECONDS PROGRAM`: runs every case of an ATF program, with kyua where the
///   guest has it and the program's folder a Kyuafile; `@value SUITE by-kyua 0|1` says which
/// - `kyua-or-run SUITE SECONDS PROGRAM`: the same for a program without cases
/// - `sleep SECONDS`
/// - `always`: what follows is done also after an abort
/// - `poweroff`
fn step(runner: &mut Runner, line: &str) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if word.is_empty() || word.starts_with('#') {
        return;
    }
    if word == "always" {
        runner.skipping = false;
        return;
    }
    if runner.skipping {
        return;
    }
    match word {
        "work" => {
            runner.work = Path::new(rest.as_bytes());
            let _ = sys::mkdir(runner.work.as_cstr(), 0o755);
        }
        "sysctl" => runner.set(rest),
        "value" => {
            let mut words = rest.split_ascii_whitespace();
            let tag = words.next().unwrap_or("");
            for name in words {
                runner.say(format_args!("@value {tag} {name} {}", Maybe(sysctl::get(name))));
            }
        }
        "run" | "must" | "sh" | "mustsh" => {
            let mut words = rest.splitn(4, ' ');
            let (name, limit) = (words.next().unwrap_or("?"), number(words.next()));
            let lines = words.next() == Some("lines");
            let command = words.next().unwrap_or("");
            let shell = word.ends_with("sh");
            let dir = if shell { None } else { runner.fresh_dir() };
            let job = Job { name, limit_ms: limit * 1000, lines, dir, result: None };
            let outcome = if shell {
                runner.run(&job, &mut Words::shell(command))
            } else {
                runner.run(&job, &mut Words::split(command))
            };
            if let Some(mut dir) = dir {
                let _ = sys::remove_tree(&mut dir);
            }
            if word.starts_with("must") && !outcome.good() {
                runner.say(format_args!("@abort {name}"));
                runner.skipping = true;
            }
        }
        "kyua-or-atf" | "kyua-or-run" => {
            let mut words = rest.splitn(3, ' ');
            let (suite, limit) = (words.next().unwrap_or("?"), number(words.next()));
            let program = words.next().unwrap_or("");
            let by_kyua = suite::kyua(runner, suite, limit * 1000, program);
            runner.say(format_args!("@value {suite} by-kyua {}", u8::from(by_kyua)));
            match (by_kyua, word) {
                (true, _) => {}
                (false, "kyua-or-atf") => suite::atf(runner, suite, limit * 1000, program),
                _ => {
                    let run = Text::<200>::of(format_args!("run {suite} {limit} tail {program}"));
                    step(runner, run.as_str());
                }
            }
        }
        "sleep" => guest::time::sleep_ms(number(Some(rest)) * 1000),
        "poweroff" => {
            runner.restore();
            runner.say(format_args!("@done"));
            runner.flush();
            let _ = sys::power_off();
        }
        _ => runner.say(format_args!("@error unknown step: {line}")),
    }
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).unwrap_or(60)
}

/// A command line as strings that end in NUL.
struct Words {
    bytes: [u8; 1024],
    len: usize,
    count: usize,
}

impl Words {
    fn empty() -> Self {
        Self { bytes: [0; 1024], len: 0, count: 0 }
    }

    fn push(&mut self, word: &str) {
        let word = &word.as_bytes()[..word.len().min(1023 - self.len.min(1023))];
        self.bytes[self.len..self.len + word.len()].copy_from_slice(word);
        self.len += word.len() + 1;
        self.count += 1;
    }

    fn split(command: &str) -> Self {
        let mut words = Self::empty();
        command.split_ascii_whitespace().for_each(|word| words.push(word));
        words
    }

    fn shell(command: &str) -> Self {
        let mut words = Self::empty();
        ["/bin/sh", "-c", command].into_iter().for_each(|word| words.push(word));
        words
    }

    fn iter(&self) -> impl Iterator<Item = &CStr> {
        let mut rest = &self.bytes[..];
        (0..self.count).map_while(move |_| {
            let word = CStr::from_bytes_until_nul(rest).ok()?;
            rest = &rest[word.to_bytes_with_nul().len()..];
            Some(word)
        })
    }
}

impl Runner {
    /// Reports a line, on the console and on the disk.
    fn say(&mut self, args: fmt::Arguments<'_>) {
        let text = Text::<1000>::of(args);
        println!("{}", text.as_str());
        let bytes = text.as_str().as_bytes();
        if self.used + bytes.len() + 1 > BLOCK {
            self.flush();
        }
        self.block[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.block[self.used + bytes.len()] = b'\n';
        self.used += bytes.len() + 1;
        if ms_since(self.flushed) > 1000 {
            self.flush();
        }
    }

    /// Writes what was reported to the disk.
    fn flush(&mut self) {
        self.flushed = now();
        if self.used == HEADER {
            return;
        }
        self.block[..8].copy_from_slice(b"VMREPORT");
        self.block[8..12].copy_from_slice(&self.number.to_le_bytes());
        self.block[12..16].copy_from_slice(&((self.used - HEADER) as u32).to_le_bytes());
        let offset = self.number as usize * BLOCK;
        if let Err(error) = sys::pwrite(self.device, &self.block, offset as i64) {
            println!("@error write the report disk: {error}");
        }
        self.number += 1;
        self.used = HEADER;
        self.block.fill(0);
    }

    /// Sets a sysctl, and keeps its value of before for [`Runner::restore`].
    fn set(&mut self, words: &str) {
        let (name, value) = words.split_once(' ').unwrap_or((words, ""));
        let old = sysctl::get(name).and_then(|old| i32::try_from(old).ok());
        let Some((old, value)) = old.zip(value.trim().parse().ok()) else {
            self.say(format_args!("@error no such sysctl, or no number: {words}"));
            return;
        };
        if let Err(error) = sysctl::set(name, value) {
            self.say(format_args!("@error sysctl {words}: {error}"));
            return;
        }
        if self.settings.iter().flatten().any(|setting| setting.name.as_str() == name) {
            // What it was at first is what it gets back.
            return;
        }
        let setting = Setting { name: Text::of(format_args!("{name}")), old };
        match self.settings.iter_mut().find(|entry| entry.is_none()) {
            Some(entry) => *entry = Some(setting),
            None => self.say(format_args!("@error too many settings: {words}")),
        }
    }

    fn restore(&mut self) {
        for entry in self.settings.iter_mut().rev() {
            if let Some(setting) = entry.take() {
                let _ = sysctl::set(setting.name.as_str(), setting.old);
            }
        }
    }

    fn fresh_dir(&mut self) -> Option<Path> {
        self.fresh += 1;
        let mut path = self.work;
        path.push(Text::<16>::of(format_args!("run{}", self.fresh)).as_bytes());
        let _ = sys::remove_tree(&mut path);
        match sys::mkdir(path.as_cstr(), 0o777) {
            Ok(()) => Some(path),
            Err(error) => {
                self.say(format_args!("@error mkdir {path}: {error}"));
                None
            }
        }
    }

    /// Runs a program and reports it.
    fn run(&mut self, job: &Job<'_>, command: &mut Words) -> Outcome {
        let name = job.name;
        self.say(format_args!("@begin {name}"));
        self.flush();
        let mut sink = Sink::new(job.lines);
        let outcome = self.execute(job, command, &mut sink);
        sink.finish(self, name);
        let (exit, signal) = match outcome.ended {
            Some(Ended::Exit(status)) => (status, 0),
            Some(Ended::Signal(signal)) => (-1, signal),
            None => {
                self.say(format_args!("@error {name} is stuck: it outlived SIGKILL"));
                (-1, -1)
            }
        };
        self.say(format_args!(
            "@end {name} exit={exit} signal={signal} timeout={} ms={} served={}",
            u8::from(outcome.timed_out),
            outcome.ms,
            Maybe(outcome.served),
        ));
        self.flush();
        outcome
    }

    /// Reports what all threads wait for, for whoever looks into a time-out.
    fn look_around(&mut self) {
        let command = "ps -axHo pid,ppid,stat,wchan,comm; procstat -a -kk";
        let job = Job { name: LOOK, limit_ms: 60_000, lines: true, dir: None, result: None };
        self.run(&job, &mut Words::shell(command));
    }

    /// Runs a program to its end or its time limit; its output goes to the sink.
    fn execute(&mut self, job: &Job<'_>, command: &Words, sink: &mut Sink) -> Outcome {
        let start = now();
        let before = served();
        let mut outcome = Outcome { ended: None, timed_out: false, ms: 0, served: None };
        let spawned = sys::pipe().and_then(|(from, to)| {
            let _ = sys::set_nonblocking(from);
            match sys::fork()? {
                Fork::Child => child(job, command, from, to),
                Fork::Parent(pid) => {
                    let _ = sys::close(to);
                    Ok((pid, from))
                }
            }
        });
        let (pid, from) = match spawned {
            Ok(both) => both,
            Err(error) => {
                self.say(format_args!("@error start {}: {error}", job.name));
                outcome.ended = Some(Ended::Exit(126));
                return outcome;
            }
        };
        let mut bytes = [0u8; 2048];
        let mut killed = None;
        loop {
            if sys::poll_in(from, 50) == Ok(true) {
                match sys::read(from, &mut bytes) {
                    Ok(0) => guest::time::sleep_ms(5),
                    Ok(count) => {
                        sink.take(self, job.name, &bytes[..count]);
                        continue;
                    }
                    Err(_) => {}
                }
            }
            match sys::wait(pid, sys::WNOHANG) {
                Ok(Some((_, ended))) => {
                    outcome.ended = Some(ended);
                    break;
                }
                Ok(None) | Err(EINTR) => {}
                Err(_) => break,
            }
            match killed {
                None if job.is_over(ms_since(start)) => {
                    outcome.timed_out = true;
                    if ms_since(start) > job.limit_ms && job.name != LOOK {
                        self.look_around();
                    }
                    killed = Some(now());
                    let _ = sys::kill(-pid, sys::SIGKILL);
                }
                Some(when) if ms_since(when) > STUCK_MS => break,
                _ => {}
            }
        }
        outcome.ms = ms_since(start);
        // Children that it left behind would disturb the next step.
        let _ = sys::kill(-pid, sys::SIGKILL);
        loop {
            match sys::read(from, &mut bytes) {
                Ok(0) | Err(EAGAIN) => break,
                Ok(count) => sink.take(self, job.name, &bytes[..count]),
                Err(EINTR) => {}
                Err(_) => break,
            }
        }
        let _ = sys::close(from);
        outcome.served = before.zip(served()).map(|(before, after)| after.wrapping_sub(before));
        outcome
    }
}

/// The child's part of [`Runner::execute`].
fn child(job: &Job<'_>, command: &Words, from: i32, to: i32) -> ! {
    let _ = sys::setpgid(0, 0);
    let _ = sys::close(from);
    if let Ok(null) = sys::open(c"/dev/null", sys::O_RDWR, 0) {
        let _ = sys::dup2(null, 0);
    }
    let _ = sys::dup2(to, 1);
    let _ = sys::dup2(to, 2);
    // A program may count its descriptors: it gets the first three only.
    (3..64).for_each(|fd| {
        let _ = sys::close(fd);
    });
    if let Some(dir) = &job.dir
        && let Err(error) = sys::chdir(dir.as_cstr())
    {
        println!("chdir {dir}: {error}");
        sys::exit(126);
    }
    let error = sys::exec_words(command.iter()).err();
    let program = command.iter().next().and_then(|word| word.to_str().ok()).unwrap_or("?");
    println!("cannot run {program}: {}", error.unwrap_or(Errno(0)));
    sys::exit(127)
}

/// Takes a program's output: reports it line by line, or keeps its end.
struct Sink {
    lines: bool,
    bytes: [u8; TAIL],
    len: usize,
}

impl Sink {
    fn new(lines: bool) -> Self {
        Self { lines, bytes: [0; TAIL], len: 0 }
    }

    fn take(&mut self, runner: &mut Runner, name: &str, new: &[u8]) {
        for &byte in new {
            if self.lines && (byte == b'\n' || self.len == 900) {
                self.line(runner, name);
                if byte == b'\n' {
                    continue;
                }
            }
            if self.len == TAIL {
                self.bytes.copy_within(TAIL / 2.., 0);
                self.len = TAIL / 2;
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }

    fn line(&mut self, runner: &mut Runner, name: &str) {
        let text = printable(&self.bytes[..self.len]);
        runner.say(format_args!("@out {name} {}", text.as_str()));
        self.len = 0;
    }

    /// Reports what is left: a line without its end, or the last lines of the output.
    fn finish(&mut self, runner: &mut Runner, name: &str) {
        if self.lines {
            if self.len > 0 {
                self.line(runner, name);
            }
            return;
        }
        let all = &self.bytes[..self.len];
        let lines = all.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let skip = lines.clone().count().saturating_sub(20);
        for line in lines.skip(skip) {
            runner.say(format_args!("@out {name} {}", printable(line).as_str()));
        }
    }
}

/// The text without what would upset a console or a line parser.
fn printable(bytes: &[u8]) -> Text<900> {
    use core::fmt::Write;
    let mut text = Text::new();
    for &byte in bytes {
        let shown = if (b' '..0x7f).contains(&byte) { byte as char } else { '?' };
        if byte != b'\r' {
            let _ = text.write_char(if byte == b'\t' { ' ' } else { shown });
        }
    }
    text
}

/// Hands each line of a text file to a function; lines over 400 bytes are cut.
fn for_each_line(path: &Path, mut take: impl FnMut(&str)) {
    let Ok(fd) = sys::open(path.as_cstr(), sys::O_RDONLY, 0) else { return };
    let mut line = [0u8; 400];
    let mut used = 0;
    let mut bytes = [0u8; 512];
    let mut emit = |line: &[u8]| {
        if let Ok(text) = core::str::from_utf8(line) {
            take(text.trim());
        }
    };
    while let Ok(count @ 1..) = sys::read(fd, &mut bytes) {
        for &byte in &bytes[..count] {
            if byte == b'\n' {
                emit(&line[..used]);
                used = 0;
            } else if used < line.len() {
                line[used] = byte;
                used += 1;
            }
        }
    }
    if used > 0 {
        emit(&line[..used]);
    }
    let _ = sys::close(fd);
}
