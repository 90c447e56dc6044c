// SPDX-License-Identifier: BSD-2-Clause
//! Where instructions go: what QEMU's plugin counted (tests/profile), by function, for each row of
//! the bench program.

use crate::symbols::Symbols;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Below this, an address is a program's.
const KERNEL: u64 = 1 << 63;
/// Functions with a smaller share of a row are put together.
const SHARE: f64 = 0.002;

/// A row of a profile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Addresses, and how many instructions were executed from each.
    pub places: Vec<(u64, u64)>,
    /// What a count of instructions hides, of the whole row.
    pub hidden: Hidden,
}

/// See [`Row`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Atomic operations.
    atomic: u64,
    /// Those of them that compare and exchange: a lock that is taken, or given up.
    exchange: u64,
    /// Bytes that were stored by repeating instructions: zeroed, as a rule.
    stored: u64,
}

/// The rows of a profile.
pub fn parse(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        if line == "row" {
            rows.push(Row::default());
        } else if let Some((what, count)) = line.split_once(' ')
            && let Ok(count) = count.parse()
            && let Some(row) = rows.last_mut()
        {
            match what {
                "atomic" => row.hidden.atomic = count,
                "exchange" => row.hidden.exchange = count,
                "stored" => row.hidden.stored = count,
                _ => {
                    if let Ok(address) = u64::from_str_radix(what, 16) {
                        row.places.push((address, count));
                    }
                }
            }
        }
    }
    rows
}

/// Instructions by function, the most first.
pub fn by_function(row: &[(u64, u64)], files: &[Symbols]) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for &(address, count) in row {
        let name = if address < KERNEL {
            "(program)".to_owned()
        } else {
            files
                .iter()
                .find_map(|file| file.function(address))
                .unwrap_or_else(|| "(unknown)".to_owned())
        };
        *sums.entry(name).or_default() += count;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|one, two| two.1.cmp(&one.1).then_with(|| one.0.cmp(&two.0)));
    sums
}

/// A row as text: what an operation spends in each function.
pub fn text(name: &str, ops: u64, functions: &[(String, u64)], hidden: Hidden) -> String {
    let total: u64 = functions.iter().map(|(_, count)| count).sum();
    let each = |count: u64| count as f64 / ops.max(1) as f64;
    // Ours, gate and all; what the kernel does for us is the kernel's.
    let ours = functions.iter().filter(|(name, _)| name.starts_with("aio_rs"));
    let ours: u64 = ours.map(|(_, count)| count).sum();
    let mut out = format!(
        "{name}: {:.0} instructions to an operation, {:.0} of them in aio_rs; {:.1} atomic \
         operations, {:.1} of them compare and exchange; {:.0} bytes zeroed\n",
        each(total),
        each(ours),
        each(hidden.atomic),
        each(hidden.exchange),
        each(hidden.stored)
    );
    let mut rest = 0;
    for (function, count) in functions {
        if (*count as f64) < total as f64 * SHARE {
            rest += count;
            continue;
        }
        let percent = *count as f64 * 100.0 / total as f64;
        let _ = writeln!(out, "{:>10.1} {percent:>5.1} %  {function}", each(*count));
    }
    if rest > 0 {
        let _ = writeln!(
            out,
            "{:>10.1} {:>5.1} %  (less than {} % each)",
            each(rest),
            rest as f64 * 100.0 / total as f64,
            SHARE * 100.0
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_counts() {
        let rows = parse(
            "1000 5\nrow\natomic 9\nexchange 8\nstored 70\nffffffff80200000 7\n201000 3\nrow\njunk\n",
        );
        let first = Row {
            places: vec![(0xffff_ffff_8020_0000, 7), (0x20_1000, 3)],
            hidden: Hidden { atomic: 9, exchange: 8, stored: 70 },
        };
        assert_eq!(rows, [first, Row::default()]);
    }

    #[test]
    fn sums_and_shares() {
        let row = [(0x20_1000, 300), (0x20_2000, 100), (0xffff_ffff_8020_0000, 600)];
        let functions = by_function(&row, &[]);
        assert_eq!(functions, [("(unknown)".to_owned(), 600), ("(program)".to_owned(), 400)]);
        let hidden = Hidden { atomic: 25, exchange: 20, stored: 40 };
        let found = text("null-call", 10, &functions, hidden);
        let told = "2.5 atomic operations, 2.0 of them compare and exchange; 4 bytes zeroed";
        assert!(found.contains(told), "{found}");
        assert!(found.starts_with("null-call: 100 instructions"), "{found}");
        assert!(found.contains("60.0  60.0 %  (unknown)"), "{found}");
        let functions = [("aio_rs::aio::pool::run".to_owned(), 30), ("vn_read".to_owned(), 70)];
        let found = text("x", 10, &functions, Hidden::default());
        assert!(found.contains("10 instructions to an operation, 3 of them"));
    }
}
