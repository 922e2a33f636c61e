//! What was measured, as a table, as JSON, and in the README.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::machine::Machine;
use crate::stats::{Ratio, Series, median, speed_ratio};

pub const BEGIN: &str = "<!-- bench:begin -->";
pub const END: &str = "<!-- bench:end -->";

/// How a figure is shown. It is kept in seconds per operation all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Show {
    /// The time of one operation.
    Time,
    /// Operations in a second.
    Rate,
}

impl Show {
    pub fn figure(self, seconds: f64) -> String {
        match self {
            Self::Time if seconds < 1e-6 => format!("{} ns", digits(seconds * 1e9)),
            Self::Time if seconds < 1e-3 => format!("{} µs", digits(seconds * 1e6)),
            Self::Time => format!("{} ms", digits(seconds * 1e3)),
            Self::Rate => format!("{}/s", thousands(1.0 / seconds)),
        }
    }
}

/// Three digits that say something.
fn digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn thousands(value: f64) -> String {
    let plain = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at) % 3 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// hapax beside something else, measured in the same rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub part: Part,
    pub what: String,
    pub show: Show,
    pub ours: Series,
    pub theirs: Series,
    /// hapax's speed by the other's.
    pub ratio: Option<Ratio>,
    /// The least ratio that is aimed at.
    pub target: Option<f64>,
}

/// The parts that `--only` chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The memory store, beside caches and the crate `idempotent`.
    A,
    /// The SQLite store, beside a bare log.
    B,
    /// The SQLite store, by its size.
    C,
    /// Keys.
    D,
    /// The Redis store, beside the bare commands.
    F,
    /// The PostgreSQL store, beside its server bare.
    G,
    /// The server over HTTP, beside a bare handler.
    H,
}

impl Row {
    pub fn new(part: Part, what: impl Into<String>, show: Show, ours: &Series, theirs: &Series) -> Self {
        let ratio = speed_ratio(&ours.seconds, &theirs.seconds);
        Self { part, what: what.into(), show, ours: ours.clone(), theirs: theirs.clone(), ratio, target: None }
    }

    pub fn target(mut self, target: Option<f64>) -> Self {
        self.target = target;
        self
    }

    /// Whether the target was met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        Some(self.ratio?.median >= self.target?)
    }
}

/// All of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub date: String,
    pub machine: Machine,
    /// A smoke test, whose figures mean little.
    pub quick: bool,
    pub rows: Vec<Row>,
    /// What the table cannot say.
    pub notes: Vec<String>,
}

impl Report {
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub fn markdown(&self) -> String {
        let notes = self.notes();
        format!("{}{}{notes}", self.table(), if notes.is_empty() { "" } else { "\n" })
    }

    /// The same for a page that has more to say: the notes are unfolded by who wants them.
    pub fn folded(&self) -> String {
        let (table, notes) = (self.table(), self.notes());
        format!(
            "{table}\n<details><summary>What the rows are, and the processor time</summary>\n\n{notes}\n</details>\n"
        )
    }

    fn notes(&self) -> String {
        self.notes.iter().map(|note| format!("- {note}\n")).collect()
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let quick = if self.quick { " A quick run: the figures mean little." } else { "" };
        let _ = writeln!(out, "Measured {} on {}.{quick}\n", self.date, self.machine);
        out.push_str("| | what | hapax | beside it | its figure | speed, hapax : it (min–max) | target |\n");
        out.push_str("|---|---|---:|---|---:|---:|---|\n");
        for row in &self.rows {
            let figure = |s: &Series| median(&s.seconds).map_or_else(|| "–".into(), |m| row.show.figure(m));
            let ratio = row
                .ratio
                .map_or_else(|| "–".into(), |r| format!("{} ({}–{})", digits(r.median), digits(r.min), digits(r.max)));
            let target = match (row.target, row.met()) {
                (Some(target), Some(met)) => format!("≥ {target} {}", if met { "met" } else { "**missed**" }),
                _ => String::new(),
            };
            let part = format!("{:?}", row.part).to_lowercase();
            let _ = writeln!(
                out,
                "| {part} | {} | {} | {} | {} | {ratio} | {target} |",
                row.what,
                figure(&row.ours),
                row.theirs.name,
                figure(&row.theirs),
            );
        }
        out
    }
}

/// The README with what stands between the two marks replaced.
pub fn rewrite(readme: &str, content: &str) -> Result<String> {
    let (Some(begin), Some(end)) = (readme.find(BEGIN), readme.find(END)) else {
        bail!("the README has no {BEGIN} … {END} to write between");
    };
    let begin = begin + BEGIN.len();
    if end < begin {
        bail!("the README has {END} before {BEGIN}");
    }
    let (Some(before), Some(after)) = (readme.get(..begin), readme.get(end..)) else {
        bail!("the README cannot be cut at its marks");
    };
    Ok(format!("{before}\n{}\n{after}", content.trim_end()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn series(name: &str, seconds: &[f64]) -> Series {
        Series { name: name.into(), seconds: seconds.to_vec() }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report { date: "2026-01-02".into(), machine: Machine::default(), quick: false, rows, notes: vec!["so".into()] }
    }

    #[test]
    fn only_what_stands_between_the_marks_is_rewritten() {
        let readme = format!("# x\n{BEGIN}\nold\n{END}\nrest\n");
        let new = rewrite(&readme, "new\n\n").unwrap();
        assert_eq!(new, format!("# x\n{BEGIN}\nnew\n{END}\nrest\n"));
        assert_eq!(rewrite(&new, "new").unwrap(), new, "again changes nothing");
    }

    #[test]
    fn a_readme_without_its_marks_is_left_alone() {
        assert!(rewrite("# x\n", "new").is_err());
        assert!(rewrite(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(Show::Time.figure(1.234e-7), "123 ns");
        assert_eq!(Show::Time.figure(1.234e-8), "12.3 ns");
        assert_eq!(Show::Time.figure(2.5e-6), "2.50 µs");
        assert_eq!(Show::Time.figure(0.25), "250 ms");
        assert_eq!(Show::Rate.figure(1.0 / 1_234_567.0), "1 234 567/s");
        assert_eq!(Show::Rate.figure(1.0 / 999.0), "999/s");
    }

    #[test]
    fn a_row_says_whether_its_target_was_met() {
        let slower = Row::new(Part::A, "x", Show::Time, &series("hapax", &[2.0]), &series("it", &[1.0]));
        assert_eq!(slower.met(), None);
        assert_eq!(slower.clone().target(Some(0.5)).met(), Some(true));
        assert_eq!(slower.target(Some(0.6)).met(), Some(false));
    }

    #[test]
    fn the_table_has_a_line_per_row_and_the_json_all_samples() {
        let row = Row::new(Part::B, "sync", Show::Rate, &series("hapax", &[1e-3, 2e-3]), &series("log", &[1e-3, 1e-3]));
        let report = report(vec![row.target(Some(0.95))]);
        let table = report.markdown();
        assert!(
            table.contains("| b | sync | 667/s | log | 1 000/s | 0.75 (0.50–1.00) | ≥ 0.95 **missed** |"),
            "{table}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json.pointer("/rows/0/ours/seconds/1"), Some(&serde_json::json!(2e-3)));
        assert_eq!(json.pointer("/rows/0/part"), Some(&serde_json::json!("b")));
    }
}
