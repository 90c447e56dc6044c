// SPDX-License-Identifier: BSD-2-Clause
//! The disks that are made for a boot: modules, programs and the plan; a raw one for reports; an
//! empty file system; an empty disk.

use crate::hypervisor::Disks;
use crate::options::Options;
use crate::plan::{GATE_TEST, LISTENER, POLICY, PROBE, STACK, WIDE};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Room for reports: more than any plan writes.
const REPORT_DISK: u64 = 64 << 20;
/// The empty disk: room for a pool with a volume in it.
const RAW_DISK: u64 = 1 << 30;
/// The scratch file system; the base suite writes large files.
const SCRATCH_MIB: u64 = 1024;
/// What must be free where the disks are made.
const FREE_MIB: u64 = 2048;
/// The programs that a guest gets for i386 too.
const PROGRAMS32: [&str; 5] = ["aio_demo", "conformance", "deliver", "fuzz", "stress"];
/// Scripts that are tried in the guest, by their place in the repository, where the driver runs.
const TOOLS: [&str; 5] = [
    "tools/aiostat",
    "tests/aiostat.sh",
    "tests/aiostat/replay",
    "tests/aiostat/first",
    "tests/aiostat/second",
];
/// Makes the disks of a boot.
pub fn make_disks(options: &Options, label: &str, plan: &str) -> Result<Disks, String> {
    let out = &options.out;
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |error: std::io::Error| format!("cannot write {what}: {error}")
    };
    fs::create_dir_all(out).map_err(failed(out))?;
    enough(free_mib(out), out)?;
    let stage = out.join(format!("{label}.files"));
    let _ = fs::remove_dir_all(&stage);
    let bin = stage.join("bin");
    fs::create_dir_all(&bin).map_err(failed(&bin))?;
    for name in [
        "runner",
        "aio_demo",
        "aio_copytree",
        "bench",
        "conformance",
        "deliver",
        "disks",
        "counted",
        "fuzz",
        "holder",
        "noworker",
        "pipes",
        "policy",
        "sockets",
        "storm",
        "httpd",
        "mixed",
        "neighbours",
        "parked",
        "probe",
        "churn",
        "reload",
        "stress",
    ] {
        let from = options.programs.join(name);
        if from.is_file() {
            fs::copy(&from, bin.join(name)).map_err(failed(&bin))?;
        } else if name == "runner" {
            return Err(format!(
                "no guest programs in {}: build them first (make programs)",
                options.programs.display()
            ));
        }
    }
    let bin32 = stage.join("bin32");
    fs::create_dir_all(&bin32).map_err(failed(&bin32))?;
    for name in PROGRAMS32 {
        let from = options.programs32.join(name);
        if from.is_file() {
            fs::copy(&from, bin32.join(name)).map_err(failed(&bin32))?;
        }
    }
    for name in TOOLS {
        let (from, to) = (Path::new(name), stage.join(name));
        if let (true, Some(dir)) = (from.is_file(), to.parent()) {
            fs::create_dir_all(dir).map_err(failed(dir))?;
            fs::copy(from, &to).map_err(failed(&to))?;
        }
    }
    let policy = options.modules.join(POLICY);
    if policy.is_file() {
        fs::copy(&policy, stage.join(POLICY)).map_err(failed(&policy))?;
    }
    if options.module {
        for name in ["aio_rs_gate.ko", "aio_rs.ko"] {
            let from = options.modules.join(name);
            fs::copy(&from, stage.join(name)).map_err(|error| {
                format!("no module {}: {error}: build it first (make)", from.display())
            })?;
        }
        if let Some(next) = &options.next {
            let (from, to) = (next.join("aio_rs.ko"), stage.join("next"));
            fs::create_dir_all(&to).map_err(failed(&to))?;
            fs::copy(&from, to.join("aio_rs.ko"))
                .map_err(|error| format!("no module {}: {error}", from.display()))?;
        }
        for name in [STACK, GATE_TEST, LISTENER, PROBE] {
            let from = options.modules.join(name);
            if from.is_file() {
                fs::copy(&from, stage.join(name)).map_err(failed(&from))?;
            }
        }
        if let Some(wide) = options.wide() {
            let to = stage.join(WIDE);
            fs::create_dir_all(&to).map_err(failed(&to))?;
            fs::copy(wide.join("aio_rs_gate.ko"), to.join("aio_rs_gate.ko"))
                .map_err(failed(&wide))?;
        }
    }
    fs::write(stage.join("plan"), plan).map_err(failed(&stage))?;
    let disks = Disks {
        files: out.join(format!("{label}.files.img")),
        report: out.join(format!("{label}.report.img")),
        scratch: out.join("scratch.img"),
        raw: out.join("raw.img"),
    };
    // It reckons without its own indirect blocks.
    makefs(&disks.files, &stage, &["-b", "30%"])?;
    fs::File::create(&disks.report)
        .and_then(|file| file.set_len(REPORT_DISK))
        .map_err(failed(&disks.report))?;
    fs::File::create(&disks.raw)
        .and_then(|file| file.set_len(RAW_DISK))
        .map_err(failed(&disks.raw))?;
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
    // The first line says why, the last only that there is no image.
    let why = errors.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(format!("cannot make {}: {why}", image.display()))
}

/// Whether there is room for the disks; where df(1) does not tell, it is tried.
fn enough(free: Option<u64>, out: &Path) -> Result<(), String> {
    match free {
        Some(free) if free < FREE_MIB => Err(format!(
            "only {free} MiB free in {}: {FREE_MIB} are needed; make room there, or set --out",
            out.display()
        )),
        _ => Ok(()),
    }
}

/// What df(1) says is free, in MiB.
pub fn free_mib(dir: &Path) -> Option<u64> {
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
    fn reads_df() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 1000000 1 819200 1% /\n";
        assert_eq!(parse_df(text), Some(800));
        assert_eq!(parse_df(""), None);
    }

    #[test]
    fn a_full_disk_is_told_before_the_boot() {
        let out = Path::new("/o");
        let why = enough(Some(100), out).unwrap_err();
        assert!(why.contains("100 MiB free in /o") && why.contains("--out"), "{why}");
        assert_eq!(enough(Some(FREE_MIB), out), Ok(()));
        assert_eq!(enough(None, out), Ok(()));
    }

    #[test]
    fn a_disk_that_fills_up_meanwhile() {
        let folder = crate::scratch::Scratch::new("full");
        let error = makefs(Path::new("/dev/full"), &folder, &["-s", "1m"]).unwrap_err();
        if error.starts_with("no makefs") {
            println!("SKIPPED a_disk_that_fills_up_meanwhile: {error}");
            return;
        }
        assert!(error.contains("No space left on device"), "{error}");
    }
}
