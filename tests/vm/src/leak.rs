// SPDX-License-Identifier: BSD-2-Clause
//! Whether the kernel holds as much after a run as before: its own gauges, the malloc types and
//! zones of the AIO engines, and those of files, credentials, address spaces and vnodes.

use crate::plan::GAUGES;
use crate::report::Report;
use std::collections::BTreeMap;

/// Kernel-wide counts that must not move, besides those of the engines. Names as vmstat(8)
/// prints them.
const SHARED: [&str; 4] = ["Files", "VMSPACE", "VNODE", "cred"];

/// The built-in's malloc type: each of its workers holds one item, and they come and go.
const WORKERS: &str = "aio";

/// Our engine's malloc type, and how many items it may keep for later while it is loaded: a lane
/// that is spare has three at most (its own, a chunk for those who wait, the list of chunks), and
/// there are 8 of them in each of 16 parts. After unload nothing may be left, and the kernel says so.
const SPARE: (&str, u64) = ("aio_rs", 3 * 8 * 16);

/// What grew between the counts `before` and `after`, by their tags.
///
/// # Errors
/// The counts are not there.
pub fn grown(report: &Report, before: &str, after: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for name in GAUGES {
        let (before, after) = (report.value(before, name), report.value(after, name));
        let (Some(before), Some(after)) = (before, after) else {
            return Err(format!("the guest did not count {name}"));
        };
        compare(&mut found, name, before, after);
    }
    for kind in ["malloc", "zones"] {
        let table = |tag: &str| {
            let run = report.run(&format!("{kind}-{tag}")).filter(|run| run.good());
            run.map(|run| in_use(&run.out)).ok_or(format!("the guest has no vmstat for {kind}"))
        };
        let before = table(before)?;
        for (name, after) in table(after)? {
            if kind == "malloc" && name == WORKERS {
                continue;
            }
            let engine = ["aio", "lio"].iter().any(|part| name.to_lowercase().contains(part));
            if engine || SHARED.contains(&name.as_str()) {
                let spare = if (kind, name.as_str()) == ("malloc", SPARE.0) { SPARE.1 } else { 0 };
                let before = before.get(&name).copied().unwrap_or(0);
                if after > before + spare {
                    found.push(format!("{kind} {name} {before} -> {after}"));
                }
            }
        }
    }
    Ok(found)
}

fn compare(found: &mut Vec<String>, name: &str, before: u64, after: u64) {
    if after > before {
        found.push(format!("{name} {before} -> {after}"));
    }
}

/// Name and number in use, of the lines of `vmstat -m` or `vmstat -z`.
fn in_use(lines: &[String]) -> BTreeMap<String, u64> {
    lines.iter().filter_map(|line| zone(line).or_else(|| malloc_type(line))).collect()
}

/// A line of `vmstat -z`: `NAME: size, limit, used, free, ...`.
fn zone(line: &str) -> Option<(String, u64)> {
    let (name, numbers) = line.split_once(':')?;
    let used = numbers.split(',').nth(2)?.trim().parse().ok()?;
    Some((name.trim().to_owned(), used))
}

/// A line of `vmstat -m`: `NAME in-use memory requests sizes`; names may have spaces.
fn malloc_type(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.trim_end_matches('K').parse::<u64>().ok();
    let at = (1..words.len().saturating_sub(2))
        .find(|&at| words[at..at + 3].iter().all(|word| number(word).is_some()))?;
    Some((words[..at].join(" "), number(words[at])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_vmstat() {
        let lines: Vec<String> = [
            "         Type    InUse    MemUse Requests  Size(s)",
            "          aio        2      1K       14  32,64,4096",
            "     CAM queue       15      7K      17  16,32",
            "ITEM                   SIZE  LIMIT     USED     FREE      REQ     FAILSLEEP XDOMAIN",
            "AIOCB:                  688,      0,       7,     253,    4321,   0,   0,   0",
        ]
        .map(str::to_owned)
        .into();
        let found = in_use(&lines);
        assert_eq!(found.get("aio"), Some(&2));
        assert_eq!(found.get("CAM queue"), Some(&15));
        assert_eq!(found.get("AIOCB"), Some(&7));
        assert_eq!(found.len(), 3);
    }

    fn report(files_after: u64, aiocb_after: u64) -> Report {
        let mut text = String::new();
        for (tag, files, aiocb) in [("before", 50, 0), ("after", files_after, aiocb_after)] {
            for name in GAUGES {
                text += &format!(
                    "@value {tag} {name} {}\n",
                    if name == "kern.openfiles" { files } else { 3 }
                );
            }
            text += &format!(
                "@begin malloc-{tag}\n@out malloc-{tag} lio 0 0K 3 32\n@end malloc-{tag} exit=0 signal=0 timeout=0 ms=1 served=-\n\
                 @begin zones-{tag}\n@out zones-{tag} AIOCB: 688, 0, {aiocb}, 1, 1, 0, 0, 0\n\
                 @out zones-{tag} mbuf: 256, 0, {aiocb}, 1, 1, 0, 0, 0\n@end zones-{tag} exit=0 signal=0 timeout=0 ms=1 served=-\n"
            );
        }
        Report::parse(&text)
    }

    #[test]
    fn workers_of_the_built_in_and_spare_lanes_are_no_leak() {
        let (before, after) = (report(50, 0), report(50, 0));
        let mut both = before.clone();
        for (report, tag, workers) in [(&before, "before", 4), (&after, "after", 6)] {
            let mut run = report.run(&format!("malloc-{tag}")).unwrap().clone();
            run.out.push(format!("aio {workers} 1K 9 16,32"));
            // Lanes that are spare.
            run.out.push(format!("aio_rs {} 1K 9 16,32", workers * 10));
            both.runs.push(run);
        }
        assert_eq!(grown(&both, "before", "after"), Ok(vec![]));
        both.runs.last_mut().unwrap().out.push("aio_rs 425 1K 9 16,32".into());
        assert_eq!(grown(&both, "before", "after"), Ok(vec!["malloc aio_rs 40 -> 425".to_owned()]));
    }

    #[test]
    fn tells_what_grew() {
        assert_eq!(grown(&report(50, 0), "before", "after"), Ok(vec![]));
        assert_eq!(grown(&report(49, 0), "before", "after"), Ok(vec![]));
        assert_eq!(
            grown(&report(52, 0), "before", "after"),
            Ok(vec!["kern.openfiles 50 -> 52".to_owned()])
        );
        assert_eq!(
            grown(&report(50, 4), "before", "after"),
            Ok(vec!["zones AIOCB 0 -> 4".to_owned()])
        );
        assert!(grown(&Report::default(), "before", "after").is_err());
    }
}
