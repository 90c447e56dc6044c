// SPDX-License-Identifier: BSD-2-Clause
//! Runs the program on small objects, each with one planted violation, and on good ones.
//!
//! The objects are compiled here from C and assembly, with the flags a kernel module needs. Clang
//! is needed for that (`clang-19` or `clang`, or what `CLANG` names); without it these tests say
//! so and do nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Linker sets as every module has them, and one function that calls the kernel.
const GOOD: &str = "
    void kernel_one(int *);
    static int meta[4], init[4];
    __attribute__((section(\"set_modmetadata_set\"), used)) static void *m = meta;
    __attribute__((section(\"set_sysinit_set\"), used)) static void *s = init;
    void entry(void);
    void entry(void) { int local[8]; kernel_one(local); kernel_one(meta); }
";

const LIST: &str = "[common]\nkernel_one\n[mod]\n";

const FLAGS: &[&str] = &[
    "--target=x86_64-unknown-freebsd14",
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-mcmodel=kernel",
    "-mno-red-zone",
    "-mno-sse",
    "-mno-mmx",
    "-mno-80387",
    "-msoft-float",
    "-fno-common",
    "-fstack-size-section",
    "-fno-asynchronous-unwind-tables",
    "-fno-omit-frame-pointer",
];

fn clang() -> Option<&'static str> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let named = std::env::var("CLANG").ok();
        let known = ["clang-19", "clang"].map(String::from);
        let works = |c: &String| Command::new(c).arg("--version").output().is_ok();
        named.into_iter().chain(known).find(works)
    };
    FOUND.get_or_init(find).as_deref()
}

/// A directory for one test, removed afterwards.
struct Bench {
    dir: PathBuf,
    clang: &'static str,
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let Some(clang) = clang() else {
            eprintln!("SKIPPED {name}: no clang (set CLANG to one)");
            return None;
        };
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        Some(Bench { dir, clang })
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, contents).expect("a file for the test");
        path
    }

    /// Compiles C to an object, with some more flags.
    fn compile(&self, ko: &str, source: &str, flags: &[&str]) -> PathBuf {
        let input = self.write(&format!("{ko}.c"), source);
        let output = self.dir.join(ko);
        let run = Command::new(self.clang)
            .args(FLAGS)
            .args(flags)
            .arg("-c")
            .args([&input, Path::new("-o"), &output])
            .output()
            .expect("clang runs");
        let message = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "clang: {message}");
        output
    }

    fn check_with(&self, list: &str, options: &[&str], objects: &[&Path]) -> Output {
        let list = self.write("allow", list);
        Command::new(env!("CARGO_BIN_EXE_kocheck"))
            .arg("--allow")
            .arg(list)
            .args(options)
            .args(objects)
            .output()
            .expect("kocheck runs")
    }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(String::from).collect()
}

/// Expects exactly these violations, given by how their lines start.
#[track_caller]
fn expect(output: &Output, starts: &[&str]) {
    let found = lines(&output.stderr);
    let agree = found.len() == starts.len()
        && found.iter().zip(starts).all(|(line, start)| line.starts_with(start));
    assert!(agree, "expected {starts:#?}, found {found:#?}");
    let status = if starts.is_empty() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(status));
}

/// Compiles the good module with something added and expects these violations.
#[track_caller]
fn planted(name: &str, addition: &str, flags: &[&str], starts: &[&str]) {
    if let Some(bench) = Bench::new(name) {
        let ko = bench.compile("mod.ko", &format!("{GOOD}{addition}"), flags);
        expect(&bench.check_with(LIST, &[], &[&ko]), starts);
    }
}

#[test]
fn good_module_passes() {
    let Some(bench) = Bench::new("good") else {
        return;
    };
    let ko = bench.compile("mod.ko", GOOD, &[]);
    let report = bench.dir.join("report");
    let output = bench.check_with(LIST, &["--report", report.to_str().unwrap()], &[&ko]);
    expect(&output, &[]);
    let summary = lines(&output.stdout);
    assert_eq!(summary.len(), 1);
    assert!(summary[0].starts_with("mod.ko: "), "{summary:?}");
    assert!(summary[0].contains(" 1 imports, 1 functions, 0 indirect calls"));
    assert!(summary[0].contains("deepest frame "), "{summary:?}");
    assert!(summary[0].contains("deepest chain "), "{summary:?}");
    let report = std::fs::read_to_string(report).expect("a report");
    assert!(report.starts_with("mod.ko: good\n"), "{report}");
    assert!(report.contains("    kernel_one\n"), "{report}");
}

#[test]
fn good_modules_pass_of_other_styles_pass() {
    let Some(bench) = Bench::new("good-variants") else {
        return;
    };
    let addition = "
        int pick(int n) { switch (n) {
            case 0: entry(); return 5; case 1: return 9; case 2: return 1; case 3: entry();
            return 7; case 4: return 11; case 5: return 2; default: return 3; } }";
    for flags in [
        &["-fno-stack-size-section"][..],
        &["-fomit-frame-pointer"],
        &["-ffunction-sections", "-fdata-sections"],
        &["-O0"],
        &["-Os", "-g"],
        &["-fasynchronous-unwind-tables"],
    ] {
        let ko = bench.compile("mod.ko", &format!("{GOOD}{addition}"), flags);
        expect(&bench.check_with(LIST, &[], &[&ko]), &[]);
    }
}

#[test]
fn files_that_are_no_modules() {
    let Some(bench) = Bench::new("no-module") else {
        return;
    };
    let text = bench.write("text.ko", "hello");
    expect(&bench.check_with("[text]\n", &[], &[&text]), &["text.ko: elf: file: "]);
    let other = bench.compile("arm.ko", "int f(void) { return 1; }", &[]);
    let mut bytes = std::fs::read(&other).unwrap();
    bytes[18] = 183;
    std::fs::write(&other, &bytes).unwrap();
    expect(&bench.check_with("[arm]\n", &[], &[&other]), &["arm.ko: elf: header: not for amd64"]);
    bytes.truncate(200);
    bytes[18] = 62;
    std::fs::write(&other, &bytes).unwrap();
    expect(&bench.check_with("[arm]\n", &[], &[&other]), &["arm.ko: elf: file: "]);
}

#[test]
fn got_relocation() {
    planted(
        "got",
        "extern int kernel_data __attribute__((visibility(\"default\")));
         void f(void) { __asm__ volatile(\"movq kernel_one@GOTPCREL(%rip), %rax\"); }",
        &["-Wa,-mrelax-relocations=no"],
        &[
            "mod.ko: reloc: kernel_one: relocation type R_X86_64_GOTPCREL is refused, in section .text",
        ],
    );
}

#[test]
fn relaxable_got_relocation() {
    planted(
        "gotx",
        "void f(void) { __asm__ volatile(\"call *kernel_one@GOTPCREL(%rip)\"); }",
        &["-Wa,-mrelax-relocations=yes"],
        &["mod.ko: reloc: kernel_one: relocation type R_X86_64_GOTPCRELX is refused"],
    );
}

#[test]
fn narrow_relocation() {
    planted(
        "narrow",
        "__asm__(\".data\\n .long entry\\n .text\\n\");",
        &[],
        &["mod.ko: reloc: entry: relocation type R_X86_64_32 is refused, in section .data"],
    );
}

#[test]
fn common_symbol() {
    planted("common", "int shared;", &["-fcommon"], &["mod.ko: common: shared: "]);
}

#[test]
fn thread_local_storage() {
    planted(
        "tls",
        "__thread int mine; int f(void) { return mine; }",
        &[],
        &[
            "mod.ko: tls: .tbss: ",
            "mod.ko: tls: mine: ",
            "mod.ko: reloc: mine: relocation type R_X86_64_TPOFF32 is refused",
        ],
    );
}

#[test]
fn vector_and_float_instructions() {
    planted(
        "simd",
        "void f(char *p) { __asm__ volatile(\"movups (%0), %%xmm0; vmovups %%ymm0, (%0)\"::\"r\"(p)); }
         void g(void) { __asm__ volatile(\"fninit\"); }",
        &[],
        &[
            "mod.ko: simd: f: Movups_xmm_xmmm128 at +0x4 and 1 more",
            "mod.ko: simd: g: Fninit at +0x4",
        ],
    );
}

#[test]
fn forbidden_import() {
    planted(
        "import",
        "void secret(void); void f(void) { secret(); }",
        &[],
        &["mod.ko: import: secret: not in the allow-list"],
    );
}

#[test]
fn declared_but_unused_symbol_is_no_import() {
    planted("declared", "__asm__(\".globl __start_set_nothing\");", &[], &[]);
}

#[test]
fn weak_imports() {
    let Some(bench) = Bench::new("weak") else {
        return;
    };
    let source = format!(
        "{GOOD} __attribute__((weak)) void maybe(void);
         void f(void) {{ if (maybe) maybe(); }}"
    );
    let ko = bench.compile("mod.ko", &source, &[]);
    let good = bench.check_with("[mod]\nkernel_one\nweak maybe\n", &[], &[&ko]);
    expect(&good, &[]);
    let bad = bench.check_with("[mod]\nkernel_one\nmaybe\n", &[], &[&ko]);
    expect(&bad, &["mod.ko: import: maybe: is weak"]);
}

#[test]
fn stale_entry() {
    let Some(bench) = Bench::new("stale") else {
        return;
    };
    let ko = bench.compile("mod.ko", GOOD, &[]);
    let list = "[common]\nkernel_one\nnobody # gone\n[mod]\nunused\n";
    expect(
        &bench.check_with(list, &[], &[&ko]),
        &["common: stale: nobody: ", "mod.ko: stale: unused: "],
    );
}

#[test]
fn two_modules_share_a_list() {
    let Some(bench) = Bench::new("two") else {
        return;
    };
    let one = bench.compile("one.ko", GOOD, &[]);
    let other = GOOD.replace("kernel_one", "kernel_two");
    let two = bench.compile("two.ko", &other, &[]);
    let list = "[one]\nkernel_one\n[two]\nkernel_two\n";
    let output = bench.check_with(list, &[], &[&one, &two]);
    expect(&output, &[]);
    assert_eq!(lines(&output.stdout).len(), 2);
    let swapped = "[two]\nkernel_one\n[one]\nkernel_two\n";
    expect(
        &bench.check_with(swapped, &[], &[&one, &two]),
        &[
            "one.ko: import: kernel_one: ",
            "two.ko: import: kernel_two: ",
            "one.ko: stale: kernel_two: ",
            "two.ko: stale: kernel_one: ",
        ],
    );
}

#[test]
fn linker_sets() {
    let Some(bench) = Bench::new("sets") else {
        return;
    };
    let source = GOOD.replace("set_sysinit_set", "set_other_set");
    let ko = bench.compile("mod.ko", &source, &[]);
    expect(&bench.check_with(LIST, &[], &[&ko]), &["mod.ko: set: set_sysinit_set: missing"]);
    let source = format!(
        "{GOOD} __attribute__((section(\"set_sysctl_set\"), used)) static int odd = 3;
         extern void *__start_set_sysctl_set[]; void *f(void) {{ return __start_set_sysctl_set; }}"
    );
    let ko = bench.compile("mod.ko", &source, &[]);
    expect(
        &bench.check_with(LIST, &[], &[&ko]),
        &["mod.ko: set: set_sysctl_set: not a table of pointers"],
    );
}

#[test]
fn constructor() {
    planted(
        "constructor",
        "__attribute__((constructor)) static void f(void) { entry(); }",
        &["-fuse-init-array"],
        &["mod.ko: constructor: .init_array: "],
    );
}

#[test]
fn too_deep_frame() {
    planted(
        "frame",
        "void f(void) { int local[300]; kernel_one(local); }",
        &[],
        &["mod.ko: frame: f: 12"],
    );
}

#[test]
fn too_deep_frame_without_sizes() {
    planted(
        "frame-code",
        "void f(void) { int local[300]; kernel_one(local); }",
        &["-fno-stack-size-section"],
        &["mod.ko: frame: f: 12"],
    );
}

#[test]
fn unknown_frame() {
    planted(
        "unknown-frame",
        "void f(int n) { int local[n]; kernel_one(local); }",
        &[],
        &[
            "mod.ko: frame: f: no entry in .stack_sizes, and the stack pointer changes by an unknown",
        ],
    );
}

#[test]
fn limits_can_be_set() {
    let Some(bench) = Bench::new("limits") else {
        return;
    };
    let ko = bench.compile("mod.ko", GOOD, &[]);
    expect(&bench.check_with(LIST, &["--stack-frame", "16"], &[&ko]), &["mod.ko: frame: entry: "]);
    expect(&bench.check_with(LIST, &["--stack-chain", "16"], &[&ko]), &["mod.ko: chain: entry: "]);
}

/// A chain of five frames of about 800 bytes.
const CHAIN: &str = "
    #define STEP(name, next) __attribute__((noinline)) void name(void); \\
        void name(void) { int local[200]; kernel_one(local); next(); kernel_one(local); }
    STEP(e, entry) STEP(d, e) STEP(c, d) STEP(b, c) STEP(a, b)
";

#[test]
fn too_deep_chain() {
    let Some(bench) = Bench::new("chain") else {
        return;
    };
    for flags in [&[][..], &["-ffunction-sections", "-fno-stack-size-section"]] {
        let ko = bench.compile("mod.ko", &format!("{GOOD}{CHAIN}"), flags);
        let output = bench.check_with(LIST, &[], &[&ko]);
        expect(&output, &["mod.ko: chain: a: 41"]);
        let line = &lines(&output.stderr)[0];
        let names: Vec<_> = line
            .split(" -> ")
            .map(|part| part.trim_end_matches(|c: char| c != ' ').trim())
            .map(|part| part.rsplit(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(names, ["a", "b", "c", "d", "e"], "{line}");
    }
}

#[test]
fn jumps_count_while_the_frame_is_there() {
    let chain = |body: &str| {
        let steps: String = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "entry")]
            .map(|(name, next)| format!("\"{name}: {}\\n\"", body.replace("NEXT", next)))
            .concat();
        format!("__asm__(\".text\\n\" {steps});")
    };
    // Given up before the jump: the functions replace each other.
    planted("tail", &chain("subq $1000, %rsp; addq $1000, %rsp; jmp NEXT"), &[], &[]);
    planted(
        "no-tail",
        &chain("subq $1000, %rsp; jne NEXT; addq $1000, %rsp; ret"),
        &[],
        &["mod.ko: chain: a: 40"],
    );
}

#[test]
fn recursion() {
    planted(
        "recursion",
        "__attribute__((noinline)) void b(int);
         __attribute__((noinline)) void a(int n) { entry(); b(n - 1); entry(); }
         void b(int n) { entry(); if (n) a(n); entry(); }",
        &[],
        &["mod.ko: recursion: a: a -> b -> a"],
    );
}

#[test]
fn red_zone() {
    planted(
        "redzone",
        "int f(int n) { volatile int x = n; return x; }",
        &["-mred-zone"],
        &["mod.ko: redzone: f: "],
    );
}

#[test]
fn assembly() {
    planted(
        "assembly-good",
        "__asm__(\".text\\n trampoline: subq $40, %rsp\\n call entry\\n addq $40, %rsp\\n ret\\n\");",
        &[],
        &[],
    );
    planted(
        "assembly-deep",
        "__asm__(\".text\\n trampoline: subq $2000, %rsp\\n call entry\\n addq $2000, %rsp\\n ret\\n\");",
        &[],
        &["mod.ko: frame: trampoline: 2000 bytes"],
    );
    planted(
        "assembly-nameless",
        "__asm__(\".section .text.x,\\\"ax\\\"\\n pushq %rax\\n call entry\\n popq %rax\\n ret\\n\");",
        &[],
        &["mod.ko: code: .text.x: bytes 0x0 to "],
    );
}

#[test]
fn notes() {
    let note = |contents: &str| {
        format!("__asm__(\".section .note.x,\\\"a\\\",@note\\n {contents}\\n .text\\n\");")
    };
    planted("note-plain", &note(".long 0, 0, 1"), &[], &[]);
    planted(
        "note-relocated",
        &note(".quad entry"),
        &[],
        &["mod.ko: unloaded: .note.x: 1 relocations"],
    );
}

#[test]
fn reference_to_a_section_that_is_not_loaded() {
    planted(
        "unloaded",
        "__asm__(\".section .comment2,\\\"\\\",@progbits\\n aside: .quad 1\\n .data\\n .quad aside\\n .text\\n\");",
        &[],
        &["mod.ko: unloaded: .comment2: refers to section .comment2, which is not loaded"],
    );
}

#[test]
fn two_symbol_tables() {
    planted(
        "symtabs",
        "__asm__(\".section .symtab2,\\\"\\\",@0x2\\n .zero 24\\n .text\\n\");",
        &[],
        &["mod.ko: symtab: file: 2 symbol tables"],
    );
}

#[test]
fn alignment() {
    let Some(bench) = Bench::new("alignment") else {
        return;
    };
    let ko = bench.compile("mod.ko", GOOD, &[]);
    let mut bytes = std::fs::read(&ko).unwrap();
    // Section headers: the first allocated one gets an alignment of zero.
    let at = |bytes: &[u8], offset: usize| {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    };
    let table = at(&bytes, 0x28) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[0x3c], bytes[0x3d]]));
    let header = (0..count)
        .map(|index| table + index * 64)
        .find(|&header| at(&bytes, header + 8) & 2 != 0)
        .expect("an allocated section");
    bytes[header + 48..header + 56].fill(0);
    std::fs::write(&ko, bytes).unwrap();
    expect(&bench.check_with(LIST, &[], &[&ko]), &["mod.ko: section: .text: alignment 0"]);
    planted(
        "alignment-page",
        "__attribute__((aligned(8192))) int wide = 1;",
        &[],
        &["mod.ko: section: .data: alignment 8192"],
    );
}

#[test]
fn wrong_use() {
    let Some(bench) = Bench::new("wrong-use") else {
        return;
    };
    let ko = bench.compile("mod.ko", GOOD, &[]);
    let twice = bench.check_with("[mod]\nkernel_one\nkernel_one\n", &[], &[&ko]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(lines(&twice.stderr)[0].ends_with(":3: kernel_one is listed twice"));
    let missing = bench.check_with(LIST, &[], &[Path::new("there-is-no-such.ko")]);
    assert_eq!(missing.status.code(), Some(2));
}
