// SPDX-License-Identifier: BSD-2-Clause
//! The host kernel finds what it is there to find: modules with a planted defect, damaged files and
//! files for another kernel each give their message. Run by `kmod/build.sh hostkern-test`, which says
//! where the compiler and the modules are.

use std::path::{Path, PathBuf};
use std::process::Command;

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: use kmod/build.sh hostkern-test"))
}

fn modules() -> PathBuf {
    PathBuf::from(variable("HOSTKERN_MODULES"))
}

/// A directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

/// Loads and unloads modules; the exit status and all output.
fn load(files: &[&Path]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hostkern"))
        .arg("load")
        .args(files)
        .output()
        .expect("hostkern");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// The cases in the order of planted.c, and what must be said.
const PLANTED: [(&str, &str); 36] = [
    ("nothing", "unload planted.ko: ok"),
    ("user access", "past copyin(9)"),
    (
        "sleep with mutex",
        "malloc with M_WAITOK, which may sleep, is called with a mutex held (planted first)",
    ),
    ("recursion", "mutex planted first is locked by its owner"),
    ("lock order", "lock order reversal: planted first is taken under planted second"),
    ("overrun", "of 10 bytes, was written to after its end"),
    ("use after free", "of 10 bytes, was written to after it was freed"),
    ("leak", "memory type planted one leaks 1 allocations of 10 bytes"),
    ("double free", "which is not allocated"),
    ("deadlock", "deadlock: no thread can run"),
    ("uninitialised mutex", "a mutex that is not initialised is locked"),
    ("null pointer", "access to 0x0 at"),
    ("keeps mutex", "returns with a mutex held (planted first)"),
    ("credential leak", "the kernel's credential has 5 references, not 4"),
    ("credential overfree", "a credential without references is released"),
    ("wrong type", "with another type than it was allocated with"),
    ("destroy held", "mutex planted first is destroyed while it is held"),
    ("foreign unlock", "is unlocked by a thread that does not hold it"),
    ("sleep without interlock", "a sleep without holding the mutex it names"),
    ("wakeup is not lost", "planted: msleep 35"),
    ("timeout is on time", "planted: 0 owned 500 ms"),
    ("double fetch", "user memory at 0x300004 is fetched twice in one call"),
    ("another's credential", "a process of the kernel sleeps with another's credential"),
    (
        "another's address space",
        "a process of the kernel sleeps in an address space that no program has",
    ),
    ("bio leak", "LEFT OVER: 1 bios are left"),
    ("bio freed twice", "a bio is destroyed that is none"),
    ("page not held", "a page is unheld that is not held"),
    ("kernel addresses leak", "LEFT OVER: 1 ranges of kernel addresses are taken"),
    ("counter leak", "LEFT OVER: 1 of counter, 1 instead of 0"),
    ("way to a panic", "called from planted_modevent+"),
    ("no socket", "is no socket, or no longer one"),
    ("no process lock", "p_cansee without the process lock"),
    ("another's uio", "uiomove of user memory for another thread"),
    ("event handler twice", "an event handler is deregistered that is none"),
    ("comes back", "in planted.ko, which was unloaded"),
    ("sysctl stays", "sysctl planted leads into a module that is unloaded"),
];

/// Those that are no defects.
const GOOD: [&str; 3] = ["nothing", "wakeup is not lost", "timeout is on time"];

/// Builds planted.c with one of its cases.
fn planted(dir: &Path, index: usize) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/planted/planted.c");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kmod/kmod.ld");
    let (object, ko) = (dir.join("planted.o"), dir.join("planted.ko"));
    let cflags = variable("AIO_RS_CFLAGS");
    let compiled = Command::new(variable("CC"))
        .args(cflags.split_whitespace())
        .args(["-O2", "-Werror", &format!("-DPLANTED={index}"), "-c", "-o"])
        .args([&object, &source])
        .status();
    assert!(compiled.expect("the compiler").success(), "{index}: does not compile");
    let linked = Command::new(variable("LD"))
        .args(["-m", "elf_x86_64_fbsd", "-r", "-T"])
        .args([&script, Path::new("-o"), &ko, &object])
        .status();
    assert!(linked.expect("the linker").success(), "{index}: does not link");
    ko
}

#[test]
fn planted_defects_are_found() {
    let dir = scratch("planted");
    for (index, (name, wanted)) in PLANTED.iter().enumerate() {
        let (status, text) = load(&[&planted(&dir, index)]);
        assert!(text.contains(wanted), "{name}: wanted {wanted:?} in\n{text}");
        let good = GOOD.contains(name);
        assert_eq!(status == 0, good, "{name}: exit status {status}\n{text}");
    }
}

/// Two processes of the kernel count without a kernel call in between. What one of them loses is
/// found only where they are stopped between two instructions, and never with locked ones.
#[test]
fn a_race_between_instructions_is_found() {
    let dir = scratch("race");
    let lost = |ko: &Path, preempt: &str| {
        let seeds = 1..=40;
        let runs = seeds.map(|seed: u32| {
            let (seed, ko) = (seed.to_string(), ko.as_os_str());
            let words = ["--seed", &seed, "--preempt", preempt].map(std::ffi::OsStr::new);
            load(&words.into_iter().chain([ko]).map(Path::new).collect::<Vec<_>>())
        });
        let texts: Vec<(i32, String)> = runs.collect();
        let lost = texts.iter().filter(|(_, text)| text.contains("an update is lost")).count();
        let clean = texts.iter().filter(|(status, _)| *status == 0).count();
        assert_eq!(lost + clean, texts.len(), "{texts:?}");
        lost
    };
    let racy = planted(&dir, PLANTED.len());
    assert_eq!(lost(&racy, "0"), 0);
    assert!(lost(&racy, "1") > 0);
    assert_eq!(lost(&planted(&dir, PLANTED.len() + 1), "1"), 0);
}

#[test]
fn both_modules_load_and_unload() {
    let (gate, engine) = (modules().join("aio_rs_gate.ko"), modules().join("aio_rs.ko"));
    let (status, text) = load(&[&gate, &engine]);
    assert!(text.contains("unload aio_rs.ko: ok"), "{text}");
    // The gate stays, as it must.
    assert!(text.contains("unload aio_rs_gate.ko: errno 16"), "{text}");
    assert_eq!(status, 0, "{text}");
}

#[test]
fn the_engine_needs_the_gate() {
    let (status, text) = load(&[&modules().join("aio_rs.ko")]);
    assert!(text.contains("depends on aio_rs_gate 1 to 1, found none"), "{text}");
    assert_ne!(status, 0);
}

#[test]
fn a_module_is_loaded_once() {
    let gate = modules().join("aio_rs_gate.ko");
    let (status, text) = load(&[&gate, &gate]);
    assert!(text.contains("module aio_rs_gate is loaded already"), "{text}");
    assert_ne!(status, 0);
}

/// Writes a changed gate and loads it.
fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> (i32, String) {
    let mut bytes = std::fs::read(modules().join("aio_rs_gate.ko")).expect("the gate");
    change(&mut bytes);
    let file = scratch(name).join("aio_rs_gate.ko");
    std::fs::write(&file, bytes).expect("write");
    load(&[&file])
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|part| part == wanted).expect("it is in the file")
}

#[test]
fn a_missing_symbol_is_named() {
    let (status, text) = changed("symbol", |bytes| {
        let at = find(bytes, b"\0kproc_exit\0");
        bytes[at + 1..at + 11].copy_from_slice(b"kproc_3xit");
    });
    assert!(text.contains("the host kernel has no kproc_3xit"), "{text}");
    assert_eq!(status, 8);
}

#[test]
fn a_module_for_another_kernel_is_refused() {
    let (status, text) = changed("version", |bytes| {
        let version = variable("HOSTKERN_VERSION").parse::<u32>().expect("a version");
        // Least, preferred and most, of a module that is tied.
        let tied: Vec<u8> = [version; 3].iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = find(bytes, &tied);
        for word in 0..3 {
            bytes[at + word * 4..at + word * 4 + 4].copy_from_slice(&(version + 1).to_le_bytes());
        }
    });
    assert!(text.contains("not available or version mismatch"), "{text}");
    assert_eq!(status, 8);
}

#[test]
fn damaged_files_are_refused() {
    let whole = std::fs::read(modules().join("aio_rs_gate.ko")).expect("the gate").len();
    let cuts: Vec<usize> = (0..40).map(|step| whole * step / 40).collect();
    for cut in cuts {
        let (status, text) = changed("cut", |bytes| bytes.truncate(cut));
        assert_eq!(status, 8, "cut to {cut} of {whole} bytes:\n{text}");
        assert!(!text.contains("BROKEN"), "cut to {cut} of {whole} bytes:\n{text}");
    }
    let (status, text) = changed("class", |bytes| bytes[4] = 1);
    assert!(text.contains("not a kernel module that can be read"), "{text}");
    assert_eq!(status, 8);
}

/// A run of stress with these options; its output.
fn stress(name: &str, options: &[&str]) -> String {
    let program = PathBuf::from(variable("HOSTKERN_PROGRAMS")).join("stress");
    let output = Command::new(env!("CARGO_BIN_EXE_hostkern"))
        .arg("run")
        .args(options)
        .arg("--modules")
        .arg(modules())
        .arg("--")
        .arg(&program)
        .args(["--procs", "2", "--threads", "2", "--requests", "300", "--seed", "1"])
        .current_dir(scratch(name))
        .output()
        .expect("hostkern");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn field(text: &str, name: &str) -> String {
    let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
}

/// Each strategy's run is the same again by its decisions alone, to the last step.
#[test]
fn a_run_repeats_from_its_decisions() {
    let policies = ["block", "uniform:5", "priorities:50", "pct:3:1000", "starve:9", "seldom:50"];
    for (index, policy) in policies.iter().enumerate() {
        let seed = (index + 1).to_string();
        let words = ["--seed", &seed, "--spurious", "500", "--policy", policy, "--preempt", "7"];
        let file = scratch("decisions").join(policy);
        let file = file.to_str().expect("a path");
        let first = stress("record", &[&words[..], &["--record", file]].concat());
        assert_ne!(field(&first, "stops"), "0", "{policy}");
        let again = stress("replay", &["--seed", &seed, "--replay", file]);
        assert_eq!(field(&first, "trace"), field(&again, "trace"), "{policy}");
        // Without them it is another run, which needs none.
        std::fs::write(file, "").expect("an empty list");
        let usual = stress("replay", &["--seed", &seed, "--replay", file]);
        assert_ne!(field(&first, "trace"), field(&usual, "trace"), "{policy}");
        assert_eq!(field(&usual, "stops"), "0", "{policy}");
    }
}

/// What a run reaches is added to what others did.
#[test]
fn coverage_adds_up() {
    let file = scratch("coverage").join("blocks");
    let _ = std::fs::remove_file(&file);
    let name = file.to_str().expect("a path");
    let count = || {
        let text = std::fs::read_to_string(&file).expect("a file");
        let reached = text.lines().filter(|line| line.starts_with("1 ")).count();
        (reached, text.lines().count())
    };
    let plain = stress("cover", &["--seed", "3", "--preempt", "0"]);
    let covered = stress("cover", &["--seed", "3", "--preempt", "0", "--coverage", name]);
    assert_eq!(field(&plain, "trace"), field(&covered, "trace"));
    let first = count();
    assert!(first.0 > 500 && first.0 < first.1, "{first:?}");
    let other = stress("cover", &["--seed", "5", "--coverage", name]);
    let both = count();
    assert!(both.0 > first.0 && both.1 == first.1, "{first:?} {both:?}\n{other}");
}

#[test]
fn a_seed_repeats_exactly() {
    let trace = |seed: &str| {
        let text = stress(&format!("seed-{seed}"), &["--seed", seed, "--spurious", "1000"]);
        field(&text, "trace")
    };
    let (one, other) = (trace("7"), trace("8"));
    assert_eq!(one, trace("7"));
    assert_ne!(one, other, "two seeds give the same trace");
}
