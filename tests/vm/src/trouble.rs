// SPDX-License-Identifier: BSD-2-Clause
//! What a kernel says on its console when something is wrong: panics, and the complaints of
//! WITNESS, INVARIANTS and the allocators, in a form that can be compared between two runs.

/// Text that only a dying kernel prints.
const PANICS: [&str; 4] = ["panic: ", "Fatal trap ", "Fatal double fault", "KDB: enter: "];

/// Text of a complaint that the kernel survives. Not among them: "Expensive callout", which only
/// says that an emulated machine is slow.
const COMPLAINTS: [&str; 19] = [
    "lock order reversal",
    "acquiring duplicate lock",
    "could sleep with",
    "with the following non-sleepable locks held",
    "with the following locks held",
    "non-sleepable",
    "Sleeping on ",
    "leaked memory on destroy",
    "was not empty",
    "Memory modified after free",
    "Duplicate free of",
    "WITNESS",
    "witness_",
    "shared lock of",
    "exclusive lock of",
    "Assertion ",
    "KASSERT",
    "is already initialized",
    "vnode was not ",
];

/// Where a panic starts in a console text.
pub fn panic_at(text: &str) -> Option<usize> {
    PANICS.iter().filter_map(|panic| text.find(panic)).min()
}

/// The panic's own line.
pub fn panic_line(text: &str) -> Option<&str> {
    let start = panic_at(text)?;
    text[start..].lines().next().map(str::trim)
}

/// The complaints in a console text, each without what differs from run to run, sorted, each
/// once. Lines of the runner (they begin with '@') are not the kernel's, and what it prints may be
/// in the middle of a kernel's line; frames of a back trace belong to the complaint above them.
pub fn complaints(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let is_frame = line.trim_start().starts_with('#') || line.contains("+0x");
        if line.trim_start().starts_with('@')
            || is_frame
            || !COMPLAINTS.iter().any(|part| line.contains(part))
        {
            continue;
        }
        let mut complaint = same_every_run(line);
        // What a reversal is about stands on the two lines below; the same goes for locks held.
        let more = lines[index + 1..].iter().take(4).filter(|next| {
            let next = next.trim_start();
            ["1st ", "2nd ", "exclusive ", "shared "].iter().any(|word| next.starts_with(word))
        });
        for next in more {
            complaint.push_str(" | ");
            complaint.push_str(&same_every_run(next));
        }
        found.push(complaint);
    }
    found.sort();
    found.dedup();
    found
}

/// The complaints of a run that the reference run does not have.
pub fn new_complaints(run: &str, reference: &str) -> Vec<String> {
    let known = complaints(reference);
    complaints(run).into_iter().filter(|complaint| !known.contains(complaint)).collect()
}

/// A line with addresses, process ids and times replaced; file names keep their line numbers.
fn same_every_run(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        // A path with a line number says where in the source: that is to be compared.
        let place = word.contains('/') && word.contains(':');
        let number = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = number.strip_prefix("0x").unwrap_or(number);
        let changes = !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.')
            && number.bytes().any(|byte| byte.is_ascii_digit());
        words.push(if changes && !place { "N" } else { word });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOR: &str = "\
login: lock order reversal:
 1st 0xfffff80003c8a068 ufs (ufs, lockmgr) @ /usr/src/sys/kern/vfs_mount.c:1054
 2nd 0xfffff80003c8b2d0 devfs (devfs, lockmgr) @ /usr/src/sys/ufs/ffs/ffs_vfsops.c:1570
lock order ufs -> devfs attempted at:
#0 0xffffffff80c5f1a1 at witness_checkorder+0xdb1
";

    #[test]
    fn sees_panics() {
        let text = "x\npanic: vm_fault\ncpuid = 1\n";
        assert_eq!(panic_line(text), Some("panic: vm_fault"));
        assert_eq!(panic_line("Fatal trap 12: page fault\n"), Some("Fatal trap 12: page fault"));
        assert_eq!(panic_line("no panic here: fine"), None);
    }

    #[test]
    fn the_same_reversal_at_another_address_is_known() {
        let other = LOR.replace("c8a068", "000aaa").replace("80c5f1a1", "80c5f1a2");
        assert_eq!(new_complaints(&other, LOR), Vec::<String>::new());
        assert!(!complaints(LOR).is_empty());
    }

    #[test]
    fn another_reversal_is_new() {
        let other = LOR.replace("devfs (devfs", "aiomtx (aiomtx");
        let new = new_complaints(&other, LOR);
        assert!(new[0].contains("aiomtx"), "{new:?}");
    }

    #[test]
    fn a_leak_is_a_complaint() {
        let text = "Warning: memory type aio_rs leaked memory on destroy (2 allocations, 128 bytes leaked).\n";
        assert_eq!(complaints(text).len(), 1);
        let text = "Freed UMA keg (aio_rs job) was not empty (3 items).  Lost 1 pages of memory.\n";
        assert_eq!(new_complaints(text, "").len(), 1);
    }

    #[test]
    fn a_frame_is_no_complaint() {
        let cut = LOR.replace("80c5f1a1", "@out sockets ok 80c5f1a1");
        assert_eq!(new_complaints(&cut, LOR), Vec::<String>::new());
    }

    #[test]
    fn what_the_runner_prints_is_not_the_kernels() {
        assert!(complaints("@out demo lock order reversal\n").is_empty());
    }
}
