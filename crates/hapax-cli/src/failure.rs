//! How hapax itself fails: an exit code of sysexits.h, a stable kind for
//! programs, and one line for people that says what to do next.

use std::fmt::Write as _;

use hapax::store::StoreError;
use hapax::{AttemptId, Error, Key, Record, State};
use serde::Serialize;

use crate::terminal::acts;

/// Wrong usage or configuration.
pub const USAGE: u8 = 64;
/// The key was used with other params, or is not any more by the attempt that was named.
pub const MISMATCH: u8 = 65;
/// The store cannot be used.
pub const UNAVAILABLE: u8 = 69;
/// Turned away while in flight.
pub const IN_FLIGHT: u8 = 75;
/// In doubt.
pub const IN_DOUBT: u8 = 76;

/// Why hapax ends with a code of its own.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub kind: &'static str,
    pub message: String,
    pub key: Option<Key>,
    /// The attempt that left the key in doubt.
    pub attempt: Option<AttemptId>,
}

impl Failure {
    pub fn new(code: u8, kind: &'static str, message: impl Into<String>) -> Self {
        Self { code, kind, message: message.into(), key: None, attempt: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, "usage", message)
    }

    pub fn of(mut self, key: &Key) -> Self {
        self.key = Some(key.clone());
        self
    }

    /// The key is in doubt, and why. What to do about it is said with every such failure.
    pub fn in_doubt(key: &Key, attempt: AttemptId, why: &str) -> Self {
        let failure = Self::new(IN_DOUBT, "in_doubt", format!("key {key} is in doubt: {why}")).of(key);
        Self { attempt: Some(attempt), ..failure }
    }

    /// Says as well that the key is still in doubt by an attempt before.
    pub fn still_in_doubt(mut self, record: &Record, flags: &str) -> Self {
        let (key, attempt) = (&record.key, Some(record.attempt_id));
        let _ = write!(
            self.message,
            "; key {key} is still in doubt by the attempt before: {}",
            remedy(key, attempt, flags)
        );
        Self { attempt, ..self }
    }

    /// What was to be settled is not what stands under the key: `now`, if anything.
    pub fn stale(key: &Key, attempt: AttemptId, now: Option<&Record>, flags: &str) -> Self {
        let now = match now {
            None => "the key is free, since it was settled as not happened or its record is gone; there is nothing to \
                     settle"
                .to_string(),
            Some(record) => {
                let by = format!("attempt {} of {}, begun {}", record.attempt_id, record.owner, record.started_at);
                match record.state {
                    State::InDoubt => {
                        format!("the key is in doubt by {by}; {}", remedy(key, Some(record.attempt_id), flags))
                    }
                    State::InProgress => format!("{by}, runs it now; wait for its end"),
                    state => format!(
                        "the key is {state} by {by}; `hapax get{flags} {}` shows what is recorded",
                        operand(key)
                    ),
                }
            }
        };
        Self::new(
            MISMATCH,
            "stale_attempt",
            format!("attempt {attempt} of key {key} is stale, nothing was settled: {now}"),
        )
        .of(key)
    }

    /// The attempt that was to be settled counts as running.
    pub fn still_held(record: &Record) -> Self {
        let (key, attempt) = (&record.key, record.attempt_id);
        let until = record.lease_until.map(|at| format!(" until {at}")).unwrap_or_default();
        let message = format!(
            "attempt {attempt} of key {key} counts as running{until}, nothing was settled: if it is dead, settle it then"
        );
        Self::new(IN_FLIGHT, "in_flight", message).of(key)
    }

    /// There is no record of the key.
    pub fn absent(key: &Key) -> Self {
        Self::new(1, "not_found", format!("there is no record of key {key}; `hapax ls` lists what there is")).of(key)
    }

    /// The one line for people. `flags` are those that a command for the same
    /// store needs.
    pub fn line(&self, flags: &str) -> String {
        let mut line = one_line(&self.message);
        if let (IN_DOUBT, "in_doubt", Some(key)) = (self.code, self.kind, &self.key) {
            let _ = write!(line, "; {}", remedy(key, self.attempt, flags));
        }
        line
    }

    /// The JSON object for programs.
    pub fn json(&self, flags: &str) -> String {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            kind: &'a str,
            code: u8,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<&'a Key>,
            #[serde(rename = "attemptId", skip_serializing_if = "Option::is_none")]
            attempt: Option<AttemptId>,
        }
        let Self { kind, code, attempt, .. } = *self;
        let error = Inner { kind, code, message: self.line(flags), key: self.key.as_ref(), attempt };
        // Strings and a number always have a JSON form.
        serde_json::to_string(&Outer { error }).unwrap_or_default()
    }
}

/// What to do about a key in doubt.
pub fn remedy(key: &Key, attempt: Option<AttemptId>, flags: &str) -> String {
    let [happened, not_happened] = settlements(key, attempt, flags);
    format!("look whether its effect happened, then run `{happened}` or `{not_happened}`")
}

/// The two commands that settle a key in doubt, ready to be copied.
pub fn settlements(key: &Key, attempt: Option<AttemptId>, flags: &str) -> [String; 2] {
    let attempt = attempt.map(|attempt| format!(" --attempt {attempt}")).unwrap_or_default();
    let key = operand(key);
    ["--happened JSON", "--not-happened"].map(|answer| format!("hapax settle{flags}{attempt} {answer} {key}"))
}

/// A key as the last word of a command.
fn operand(key: &Key) -> String {
    let word = quoted(key.as_str());
    // It may look like a flag.
    if word.starts_with('-') { format!("-- {word}") } else { word }
}

/// A text as one word of a POSIX shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._@/+:%=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A text that may go to a terminal, on one line.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if acts(c) { ' ' } else { c }).collect()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let said = error.to_string();
        match error {
            Error::Key(_) | Error::Params(_) | Error::Config { .. } => Self::usage(said),
            Error::ParamsMismatch { key, .. } => Self::new(MISMATCH, "params_mismatch", said).of(&key),
            Error::InFlight { key, .. } => Self::new(IN_FLIGHT, "in_flight", said).of(&key),
            Error::ShuttingDown | Error::TooManyInFlight { .. } => Self::new(IN_FLIGHT, "in_flight", said),
            Error::InDoubt { record } => {
                let mut why = format!(
                    "attempt {} of {} began {} and nobody knows how it ended",
                    record.attempt_id, record.owner, record.started_at
                );
                if let Some(reason) = &record.error {
                    let _ = write!(why, " ({reason})");
                }
                Self::in_doubt(&record.key, record.attempt_id, &why)
            }
            Error::NotRecorded { key, reason, .. } => {
                let why = format!("the command ran, but its result was not recorded ({reason})");
                Self::new(IN_DOUBT, "in_doubt", format!("key {key} is in doubt: {why}")).of(&key)
            }
            Error::LostClaim { key, .. } => Self::new(IN_DOUBT, "lost_claim", said).of(&key),
            Error::TimedOut { key, .. } => Self::new(IN_DOUBT, "in_doubt", said).of(&key),
            Error::WrongState { key, state, remedy: what } => match state {
                Some(State::InDoubt) => {
                    Self::new(IN_DOUBT, "in_doubt", format!("key {key} is in doubt, so its record stays")).of(&key)
                }
                Some(State::InProgress) => Self::new(IN_FLIGHT, "in_flight", said).of(&key),
                Some(state) => Self::new(
                    1,
                    "wrong_state",
                    format!(
                        "key {key} is {state} and needs no settling; if it must run again, remove it with `hapax rm`"
                    ),
                )
                .of(&key),
                None => Self::new(1, "wrong_state", format!("key {key} is absent: {what}")).of(&key),
            },
            Error::Store(StoreError::BadRequest { .. }) => Self::usage(said),
            Error::Store(_) => Self::new(UNAVAILABLE, "store_unavailable", said),
            Error::Failed { key, .. } => Self::new(1, "failed", said).of(&key),
            other => Self::new(1, "failed", other.to_string()),
        }
    }
}

impl From<hapax::KeyError> for Failure {
    fn from(error: hapax::KeyError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<hapax::ParamsError> for Failure {
    fn from(error: hapax::ParamsError) -> Self {
        Self::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word_of_the_shell() {
        assert_eq!(quoted("s:create_task:trello:1557ebfc75da3109"), "s:create_task:trello:1557ebfc75da3109");
        assert_eq!(quoted("a;rm$(x)'"), r"'a;rm$(x)'\'''");
        assert_eq!(quoted("~root"), "'~root'");
    }

    #[test]
    fn the_remedy_can_be_run_as_it_stands() {
        let attempt = AttemptId::new();
        let not_happened =
            |key: &str, attempt| settlements(&Key::given(key).unwrap(), attempt, " --store sqlite:x.db")[1].clone();
        assert_eq!(not_happened("k", None), "hapax settle --store sqlite:x.db --not-happened k");
        assert_eq!(
            not_happened("-k", Some(attempt)),
            format!("hapax settle --store sqlite:x.db --attempt {attempt} --not-happened -- -k")
        );
    }

    #[test]
    fn a_message_cannot_draw_on_the_terminal() {
        assert_eq!(one_line("a\x1b[2J\nb"), "a [2J b");
    }
}
