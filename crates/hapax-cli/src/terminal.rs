//! What people see: aligned tables, colour where it is wanted, one-line notes.
//!
//! Invariant: no control character of a record or a file reaches the terminal
//! raw, so that no recorded text can draw on it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use hapax::State;
use serde::Serialize;

use crate::failure::Failure;

pub const BOLD: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();

/// The colour of a state.
pub fn style_of(state: State) -> Style {
    match state {
        State::InProgress => AnsiColor::Cyan.on_default(),
        State::Completed => AnsiColor::Green.on_default(),
        State::Failed => AnsiColor::Red.on_default(),
        State::InDoubt => AnsiColor::Yellow.on_default().bold(),
    }
}

/// Whether a character could do more on a terminal than stand there: controls,
/// line separators, and marks that turn the direction of writing.
pub fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A text with every character that could act on a terminal escaped.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if acts(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// A safe text of at most `limit` characters, with what is missing said.
pub fn elided(text: &str, limit: usize) -> String {
    // Only the beginning of a large text is looked at more than once.
    match text.char_indices().nth(limit) {
        None => safe(text),
        Some((at, _)) => {
            let head = text.get(..at).unwrap_or(text);
            format!("{}… ({} bytes)", safe(head), text.len())
        }
    }
}

/// JSON text whose strings hold no raw character that could act on a terminal;
/// it is the same value.
pub fn safe_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside strings JSON has no such character but white space, which stays.
        if acts(c) && !c.is_ascii_whitespace() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// A value as JSON: on one line for programs, indented on a terminal.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    let pretty = io::stdout().is_terminal();
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map(|t| safe_json(&t)).map_err(|e| Failure::new(1, "failed", format!("the answer has no JSON form: {e}")))
}

/// Prints text and a line end to standard output; colours are taken out where
/// they are not wanted. A reader that has gone away is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// What to make of a write to standard output.
pub fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(1, "output", format!("standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}

/// Whether a command's output has left standard error in the middle of a line.
static MID_LINE: AtomicBool = AtomicBool::new(false);

/// Notes where a command's output has left standard error.
pub fn left_at(output: &[u8]) {
    if let Some(last) = output.last() {
        MID_LINE.store(*last != b'\n', Ordering::Relaxed);
    }
}

/// Prints a line to standard error, on a line of its own. If that fails there is
/// nobody to tell.
pub fn complain(line: &str) {
    let begin = if MID_LINE.swap(false, Ordering::Relaxed) { "\n" } else { "" };
    let _ = writeln!(anstream::stderr().lock(), "{begin}{line}");
}

/// Prints a remark to standard error, in a quieter colour.
pub fn note(text: &str) {
    complain(&format!("{DIM}hapax: {}{DIM:#}", safe(text)));
}

/// A text with its style.
pub struct Cell {
    text: String,
    style: Style,
}

/// A plain cell; the text is made safe.
pub fn cell(text: impl AsRef<str>) -> Cell {
    styled(text, Style::new())
}

pub fn styled(text: impl AsRef<str>, style: Style) -> Cell {
    Cell { text: safe(text.as_ref()), style }
}

/// Rows in aligned columns; the last one is not padded.
pub fn table(rows: &[Vec<Cell>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| rows.iter().filter_map(|r| r.get(column)).map(|c: &Cell| c.text.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let Cell { text, style } = cell;
            let _ = write!(line, "{style}{text}{style:#}");
            if at + 1 < row.len() {
                let gap = width.saturating_sub(text.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_text_cannot_draw_on_the_terminal() {
        let evil = "a\x1b[2J\u{9b}31m\u{202e}b\n";
        assert_eq!(safe(evil), "a\\u{1b}[2J\\u{9b}31m\\u{202e}b\\n");
        let json = serde_json::to_string(evil).unwrap();
        let shown = safe_json(&json);
        assert!(!shown.chars().any(acts), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), evil);
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [vec![cell("é"), cell("b")], vec![cell("long"), cell("c")]];
        assert_eq!(table(&rows), "é     b\nlong  c");
    }

    #[test]
    fn an_elided_text_says_how_long_it_is() {
        assert_eq!(elided("short", 5), "short");
        assert_eq!(elided("ééééé!", 5), "ééééé… (11 bytes)");
    }
}
