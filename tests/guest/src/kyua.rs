// SPDX-License-Identifier: BSD-2-Clause
//! What kyua(1) prints: the cases that `kyua list` knows of a program, and how one case went by
//! `kyua report --verbose` of a results file that holds only that case.

/// The case that a line of `kyua list` names, when it is one of `program`.
pub fn listed<'a>(line: &'a str, program: &str) -> Option<&'a str> {
    let (found, case) = line.split_once(':')?;
    // Metadata, which --verbose adds, has blanks in front or in it.
    (found == program && !case.is_empty() && !case.contains(' ')).then_some(case)
}

/// Looks through a report, line by line. A case's own output may hold any line that a report may
/// hold, but comes after the result, so the first result behind the case's heading counts.
#[derive(Clone, Copy, Default)]
pub struct Reader {
    headed: bool,
    over: bool,
}

impl Reader {
    /// Takes a line; gives the result, `passed` or a word and the reason behind a colon, once.
    pub fn line<'a>(&mut self, line: &'a str, program: &str, case: &str) -> Option<&'a str> {
        if self.over {
            return None;
        }
        if self.headed {
            // The line after the heading is the result, or this is no such report.
            self.over = true;
            return line.strip_prefix("Result:").map(str::trim);
        }
        let heading = line.strip_prefix("===> ").and_then(|name| name.split_once(':'));
        self.headed = heading == Some((program, case));
        None
    }
}

/// What a result counts as, in the words of the runner's reports.
pub fn verdict(result: &str) -> &'static str {
    match result.split(':').next().unwrap_or("").trim() {
        "passed" => "passed",
        "failed" => "failed",
        "skipped" => "skipped",
        "expected_failure" => "expected_failure",
        _ => "broken",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(report: &'a str, program: &str, case: &str) -> Option<&'a str> {
        let mut reader = Reader::default();
        report.lines().find_map(|line| reader.line(line, program, case))
    }

    // As kyua 0.13 prints it.
    const FAILED: &str = "\
===> Execution context
Current directory: /tmp
Environment variables:
    HOME=/root
===> aio_test:file_poll
Result:     failed: aio_test.c:12: 3 != 4
Start time: 2026-11-21T07:03:49.545554Z
End time:   2026-11-21T07:03:49.547108Z
Duration:   0.002s

Metadata:
    timeout = 300

Standard error:
===> aio_test:file_poll
Result:     passed
===> Failed tests
aio_test:file_poll  ->  failed: aio_test.c:12: 3 != 4  [0.002s]
===> Summary
Test cases: 1 total, 0 skipped, 0 expected failures, 0 broken, 1 failed
";

    #[test]
    fn the_first_result_counts() {
        let result = read(FAILED, "aio_test", "file_poll").unwrap();
        assert_eq!(result, "failed: aio_test.c:12: 3 != 4");
        assert_eq!(verdict(result), "failed");
        assert_eq!(read(FAILED, "aio_test", "file_kq"), None);
        assert_eq!(read("===> Summary\nTest cases: 0 total\n", "aio_test", "file_poll"), None);
        assert_eq!(read("===> a:b\nDuration: 1s\nResult: passed\n", "a", "b"), None);
    }

    #[test]
    fn words() {
        let result = read("===> t:main\nResult:     passed\n", "t", "main").unwrap();
        assert_eq!(verdict(result), "passed");
        assert_eq!(verdict("skipped: Required kernel module zfs not loaded"), "skipped");
        assert_eq!(verdict("expected_failure: Bug 251515"), "expected_failure");
        assert_eq!(verdict("broken: Test case body timed out"), "broken");
        assert_eq!(verdict(""), "broken");
    }

    #[test]
    fn lists() {
        assert_eq!(listed("aio_test:file_poll", "aio_test"), Some("file_poll"));
        assert_eq!(listed("aio_kqueue_test:main", "aio_kqueue_test"), Some("main"));
        assert_eq!(listed("aio_test:file_poll (aio)", "aio_test"), None);
        assert_eq!(listed("    timeout = 300", "aio_test"), None);
        assert_eq!(listed("kyua: W: No test cases matched by the filter 'x'.", "x"), None);
    }
}
