// SPDX-License-Identifier: BSD-2-Clause
//! Checks that FreeBSD kernel modules for amd64 can be loaded and keep this project's limits.
//!
//! A module that the kernel's linker refuses, or that overruns a kernel stack, shows this only on
//! a running kernel, and the second one as a panic. This program finds both in the `.ko` itself:
//! it reads the relocatable object as the kernel's linker does (`elf`, `loadable`), compares what
//! it imports with a list under version control (`allow`), disassembles its functions (`code`) and
//! bounds the stack they use (`stack`).
//!
//! The modules have to keep their symbols, local ones too, and should be compiled with
//! `-fstack-size-section` (C) or `-Z emit-stack-sizes` (Rust). The linker keeps the section
//! `.stack_sizes` that this gives without being told to; it is not loaded and can be removed from
//! the file after this check.
//!
//! Exit status: 0 when nothing is wrong, 1 with one line for each violation, 2 when the program
//! was called wrongly or a file could not be read or written.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kocheck::allow::{self, AllowList, Names};
use kocheck::report::{self, Findings, Summary};
use kocheck::{code, elf, loadable, stack};

const USAGE: &str = "\
usage: kocheck --allow FILE [--allow FILE]... [--stack-frame BYTES] [--stack-chain BYTES]
               [--report FILE] KO...";

/// What the command line asked for.
#[derive(Debug)]
struct Options {
    allow: Vec<PathBuf>,
    limits: stack::Limits,
    report: Option<PathBuf>,
    objects: Vec<PathBuf>,
}

impl Options {
    /// Reads the command line; `Ok(None)` when it asks for help.
    fn parse(args: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options {
            allow: Vec::new(),
            limits: stack::Limits { frame: 1024, chain: 3072 },
            report: None,
            objects: Vec::new(),
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = |what: &str| args.next().ok_or(format!("{arg} needs {what}"));
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--allow" => options.allow.push(value("a file")?.into()),
                "--report" => options.report = Some(value("a file")?.into()),
                "--stack-frame" => options.limits.frame = bytes(&value("a number")?)?,
                "--stack-chain" => options.limits.chain = bytes(&value("a number")?)?,
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
                object => options.objects.push(object.into()),
            }
        }
        if options.allow.is_empty() {
            return Err("--allow is required".into());
        }
        if options.objects.is_empty() {
            return Err("no module given".into());
        }
        Ok(Some(options))
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number of bytes"))
}

fn read_allow_list(files: &[PathBuf]) -> Result<AllowList, String> {
    let mut list = AllowList::default();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        list.add(&text).map_err(|e| format!("{}:{e}", file.display()))?;
    }
    Ok(list)
}

/// The file name of a module, for messages: the same wherever the build directory is.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Runs every check on one module. `None` when it is not an object that can be looked into.
fn check_object(
    ko: &str,
    data: &[u8],
    allow: &mut AllowList,
    limits: &stack::Limits,
    findings: &mut Findings,
) -> Option<(Summary, Names)> {
    let object = elf::parse(data, findings)?;
    loadable::check(&object, findings);
    let imports = allow::imports(&object);
    allow.check_imports(ko, &imports, findings);
    let code = code::analyse(&object, findings);
    let usage = stack::check(&object, &code, limits, findings);
    let names = Names::of(&object, &imports);
    Some((Summary::new(&object, imports, &code, usage), names))
}

fn run(options: &Options) -> Result<bool, String> {
    let mut allow = read_allow_list(&options.allow)?;
    let mut violations = Vec::new();
    let mut checked = Vec::new();
    let mut names = Vec::new();

    for path in &options.objects {
        let data = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let ko = file_name(path);
        let mut findings = Findings::new(&ko);
        let object = check_object(&ko, &data, &mut allow, &options.limits, &mut findings);
        let summary = object.map(|(summary, its)| {
            names.push((ko.clone(), its));
            summary
        });
        checked.push((ko, summary, findings.is_empty()));
        violations.extend(findings.into_lines());
    }
    violations.extend(allow.stale());
    violations.extend(allow::hidden(&names));

    if let Some(path) = &options.report {
        let text = report::full(&checked, &violations);
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for line in &violations {
        eprintln!("{line}");
    }
    for (ko, summary, clean) in &checked {
        if let (Some(summary), true) = (summary, clean) {
            println!("{ko}: {summary}");
        }
    }
    Ok(violations.is_empty())
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("kocheck: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("kocheck: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn reads_options_in_any_order() {
        let options =
            parse("a.ko --allow list --stack-frame 64 --report out b.ko").unwrap().unwrap();
        assert_eq!(options.limits.frame, 64);
        assert_eq!(options.limits.chain, 3072);
        assert_eq!(options.objects.len(), 2);
        assert!(options.report.is_some());
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(parse("--allow list --frob a.ko").is_err());
        assert!(parse("a.ko").is_err());
        assert!(parse("--allow list").is_err());
        assert!(parse("--allow list --stack-frame many a.ko").is_err());
        assert!(parse("--help").unwrap().is_none());
    }
}
