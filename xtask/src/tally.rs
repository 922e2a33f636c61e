//! Adds up the `test result:` lines of `cargo test`, one per test binary and
//! one per crate with doc tests.

use std::fmt;

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds what the line says, if it is one of libtest's summaries:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(summary) = line.trim().strip_prefix("test result: ") else { return };
        let Some((_, counts)) = summary.split_once(". ") else { return };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    /// Notes that the run failed: a test binary that does not build or that
    /// dies prints no summary, and must not read as `0 failed`.
    pub(crate) fn at_least_one_failed(&mut self) {
        self.failed = self.failed.max(1);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> String {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        tally.to_string()
    }

    #[test]
    fn the_summaries_of_all_test_binaries_add_up() {
        let text = tally(&[
            "running 14 tests\n",
            "test key::tests::a_key_reads_back ... ok\n",
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.03s\n",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n",
        ]);
        assert_eq!(text, "15 passed, 2 failed");
    }

    #[test]
    fn other_lines_count_for_nothing() {
        assert_eq!(
            tally(&["5 passed; 1 failed\n", "test result: \n", "test result: odd\n", "\n"]),
            "0 passed, 0 failed"
        );
    }

    #[test]
    fn a_failed_run_never_reads_as_none_failed() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 4 passed; 0 failed; 0 ignored");
        tally.at_least_one_failed();
        assert_eq!(tally.to_string(), "4 passed, 1 failed");
    }
}
