//! Records as people read them: a table of many, a list of the parts of one.

use hapax::{Clock as _, Json, Record, State, SystemClock, Timestamp};

use crate::failure::settlements;
use crate::output::Output;
use crate::terminal::{BOLD, Cell, DIM, cell, elided, style_of, styled, table};
use crate::units::glance;

/// How much of a text is shown; `--json` has all of it.
const SHOWN: usize = 200;

/// Many records. The key comes last and whole: it is what one copies.
///
/// With `attempts`, the attempt's id is there too, for `hapax settle`.
pub fn list(records: &[Record], attempts: bool) -> String {
    let now = SystemClock.now();
    let heads: &[&str] = match attempts {
        true => &["STATE", "BEGAN", "ENDS", "CALLS", "ATTEMPT", "KEY"],
        false => &["STATE", "BEGAN", "ENDS", "CALLS", "KEY"],
    };
    let mut rows = vec![heads.iter().map(|h| styled(h, BOLD)).collect::<Vec<_>>()];
    rows.extend(records.iter().map(|record| {
        let mut row = vec![
            styled(record.state.as_str(), style_of(record.state)),
            cell(format!("{} ago", glance(now.since(record.started_at)))),
            match record.expires_at {
                Some(at) => cell(format!("in {}", glance(at.since(now)))),
                None if record.state.is_recorded() => styled("never", DIM),
                None => styled("-", DIM),
            },
            cell(record.attempt_count.to_string()),
        ];
        row.extend(attempts.then(|| cell(record.attempt_id.to_string())));
        row.push(cell(record.key.as_str()));
        row
    }));
    table(&rows)
}

/// One record; `flags` are those that a command for the same store needs.
pub fn record(record: &Record, flags: &str) -> String {
    let now = SystemClock.now();
    let ago = |t: Timestamp| format!("{t} ({} ago)", glance(now.since(t)));
    let to_come = |t: Timestamp| format!("{t} (in {})", glance(t.since(now)));
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    let mut row = |name: &str, value: Cell| rows.push(vec![styled(name, DIM), value]);
    row("key", styled(record.key.as_str(), BOLD));
    row("namespace", cell(&record.namespace));
    row("state", styled(record.state.as_str(), style_of(record.state)));
    if let Some(signal) = &record.signal_id {
        row("signal", text(signal));
    }
    row("action", text(&record.action_type));
    row("target", text(&record.target));
    match &record.params {
        Some(params) => row("params", text(params.as_str())),
        None => row("params", cell(format!("not kept (fingerprint {})", record.fingerprint))),
    }
    if let Some(result) = &record.result {
        result_rows(result, &mut row);
    }
    if let Some(error) = &record.error {
        row(if record.state == State::InDoubt { "doubt" } else { "error" }, text(error));
    }
    row("began", cell(ago(record.started_at)));
    if let Some(at) = record.executed_at {
        row("recorded", cell(ago(at)));
    }
    if let Some(ms) = record.duration_ms {
        row("took", cell(crate::units::say(std::time::Duration::from_millis(ms))));
    }
    match record.expires_at {
        Some(at) => row("expires", cell(to_come(at))),
        None if record.state.is_recorded() => row("expires", cell("never")),
        None => {}
    }
    if let Some(at) = record.lease_until.filter(|_| record.state == State::InProgress) {
        row("lease until", cell(to_come(at)));
    }
    row("calls", cell(format!("{} ({} begun)", record.attempt_count, record.attempts)));
    row("attempt", cell(record.attempt_id.to_string()));
    row("owner", text(&record.owner.to_string()));
    if record.state == State::InDoubt {
        for command in settlements(&record.key, Some(record.attempt_id), flags) {
            row("settle", cell(command));
        }
    }
    for (name, value) in &record.tags {
        row("tag", text(&format!("{name} = {value}")));
    }
    table(&rows)
}

fn text(text: &str) -> Cell {
    // Made safe already; a second time changes nothing in what is left.
    cell(elided(text, SHOWN))
}

fn result_rows(result: &Json, row: &mut impl FnMut(&str, Cell)) {
    let Some(output) = Output::from_json(result.as_str()) else {
        row("result", text(result.as_str()));
        return;
    };
    row("exit code", cell(output.exit_code.to_string()));
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        match std::str::from_utf8(bytes) {
            Ok("") => {}
            Ok(stream) => row(name, text(stream)),
            Err(_) => row(name, cell(format!("{} bytes that are not text", bytes.len()))),
        }
    }
}
