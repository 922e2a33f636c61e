//! What `hapax run` says beside the command's own output.
//!
//! With `--json`, standard output is one object and the command's own output
//! goes to standard error as it comes; without, it goes where it came from.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use hapax::{AttemptId, Clock as _, Json, Key, Record, SystemClock, Timestamp};
use serde::Serialize;

use crate::failure::{Failure, remedy};
use crate::output::{Output, OutputJson};
use crate::streams::{Kept, Writer};
use crate::terminal::{self, note};
use crate::units::glance;

/// How to report.
#[derive(Clone, Copy)]
pub struct Report {
    pub json: bool,
    pub verbose: bool,
}

/// The object of `hapax run --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    key: &'a Key,
    attempt_id: AttemptId,
    /// Whether the command did not run now.
    replayed: bool,
    /// Whether the next run gets this answer.
    recorded: bool,
    /// `exitCode`, and each stream as text or in base64.
    #[serde(flatten)]
    output: OutputJson,
    /// The output was too large to be kept, and is not in this object.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// A result that was not recorded by `hapax run`, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
}

impl Report {
    /// The ways for the command's output.
    pub fn writers(self) -> io::Result<(Writer, Writer)> {
        let stdout = if self.json { Writer::stderr()? } else { Writer::stdout()? };
        Ok((stdout, Writer::stderr()?))
    }

    /// Says that an answer is a replay: people at a terminal want to know.
    pub fn note_replay(self, record: &Record) {
        if self.json || !(self.verbose || io::stderr().is_terminal()) {
            return;
        }
        let now = SystemClock.now();
        let ago = glance(now.since(record.executed_at.unwrap_or(record.started_at)));
        let kept = match record.expires_at {
            Some(at) => format!("kept for {} more", glance(at.since(now))),
            None => "kept for ever".into(),
        };
        note(&format!("replayed: recorded {ago} ago, {kept} (key {})", record.key));
    }

    /// The object of a replay.
    pub fn replayed(self, record: &Record, output: &Output, foreign: Option<&Json>) -> Result<String, Failure> {
        terminal::json(&Object {
            key: &record.key,
            attempt_id: record.attempt_id,
            replayed: true,
            recorded: true,
            output: output.to_json(),
            truncated: false,
            result: foreign,
            executed_at: record.executed_at,
            expires_at: record.expires_at,
            duration_ms: record.duration_ms,
        })
    }

    /// The object of a run, with its record if that could be read back.
    pub fn executed(
        self,
        key: &Key,
        attempt_id: AttemptId,
        recorded: bool,
        record: Option<&Record>,
        code: u8,
        kept: Kept,
    ) -> Result<String, Failure> {
        terminal::json(&Object {
            key,
            attempt_id,
            replayed: false,
            recorded,
            output: Output::json_of(code, &kept.stdout, &kept.stderr),
            truncated: kept.too_much,
            result: None,
            executed_at: record.and_then(|r| r.executed_at),
            expires_at: record.and_then(|r| r.expires_at),
            duration_ms: record.and_then(|r| r.duration_ms),
        })
    }

    /// Says that the doubt from before outlasts a rerun that failed.
    pub fn still_in_doubt(self, record: &Record, code: u8, flags: &str) {
        let (key, remedy) = (&record.key, remedy(&record.key, Some(record.attempt_id), flags));
        terminal::complain(&format!(
            "hapax: the command exited with {code}, which says nothing of the attempt before it: key {key} is still in \
             doubt; {remedy}"
        ));
    }

    /// Says that our own output could not be written.
    pub fn lost_output(self, error: &io::Error, recorded: bool) {
        let rest = if recorded { "; it is recorded, and the same line replays it" } else { "" };
        terminal::complain(&format!("hapax: the command's output could not be written on ({error}){rest}"));
    }
}

/// A moment that is over before anyone looks for a sign of life.
pub const MOMENT: Duration = Duration::from_millis(300);
