//! Operations as the transition script takes them, and what its answers mean.
//!
//! Invariant: every operation that is sent again after its answer was lost does what it did the first time, or
//! nothing: by its attempt id, by a fresh id made for it, or because it is not sent again at all ([`Resend::Never`],
//! [`Resend::Forget`]). What it then finds is told only if that is true whichever time did the work; else the script answers `?`.

use std::sync::Arc;

use redis::Cmd;

use super::row::{self, Fixed, NO_DURATION, Row, Space, attempt_text, digits, rest, tags};
use crate::store::{Beat, Begin, Begun, End, Ended, Mark, Marked, Removed, Settled, Settlement, StoreError};
use crate::{AttemptId, Json, State, Timestamp, Ttl};

/// Whether an operation may be sent again when nobody knows whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resend {
    /// It is known by its id, or does the same thing twice.
    Safe,
    /// A second time would do more than the first.
    Never,
    /// The same, and it may be lost: many share a call, and its fate.
    Forget,
}

#[derive(Clone, Debug)]
enum Arg {
    Static(&'static str),
    Text(String),
    Bytes(Vec<u8>),
    Json(Json),
    /// `1` when the operation was sent before, else `0`.
    SentBefore,
    /// A letter and what it asks for, whether it was sent before as in [`Arg::SentBefore`], and more.
    Sent(&'static str, String),
}

/// One operation on one record.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) key: String,
    pub(super) resend: Resend,
    /// Whether it changes what must be durable before it is answered.
    pub(super) is_write: bool,
    args: Vec<Arg>,
}

impl Op {
    fn new(code: &'static str, key: String, args: impl IntoIterator<Item = Arg>) -> Self {
        Self::with(key, std::iter::once(Arg::Static(code)).chain(args).collect())
    }

    fn with(key: String, args: Vec<Arg>) -> Self {
        Self { key, resend: Resend::Safe, is_write: true, args }
    }

    /// About how many bytes it puts into a request.
    pub(super) fn size(&self) -> usize {
        let args = self.args.iter().map(|arg| match arg {
            Arg::Static(text) => text.len(),
            Arg::Text(text) => text.len(),
            Arg::Bytes(bytes) => bytes.len(),
            Arg::Json(json) => json.as_str().len(),
            Arg::SentBefore => 1,
            Arg::Sent(_, more) => more.len() + 3,
        });
        self.key.len() + 16 + args.sum::<usize>()
    }

    pub(super) fn write(&self, cmd: &mut Cmd, sent_before: bool) {
        for arg in &self.args {
            match arg {
                Arg::Static(text) => cmd.arg(*text),
                Arg::Text(text) => cmd.arg(text),
                Arg::Bytes(bytes) => cmd.arg(&bytes[..]),
                Arg::Json(json) => cmd.arg(json.as_str()),
                Arg::SentBefore => cmd.arg(if sent_before { "1" } else { "0" }),
                Arg::Sent(what, more) => cmd.arg(format!("{what}{}{more}", u8::from(sent_before))),
            };
        }
    }

    pub(super) fn begin(key: String, begin: &Begin, insert: Insert) -> Result<Self, StoreError> {
        let fixed = Fixed {
            k: &begin.key,
            s: begin.signal_id.as_deref(),
            a: &begin.action_type,
            t: &begin.target,
            f: begin.fingerprint,
            g: &begin.tags,
        };
        let fixed = fixed.encode(begin.params.as_ref()).map_err(unwritable)?;
        let owner = serde_json::to_vec(&*begin.owner).map_err(unwritable)?;
        let what = if insert == Insert::Allowed { "B1" } else { "B0" };
        let lease = begin.lease.as_millis().min(LONGEST);
        let take_over = begin.take_over.map(attempt_text).unwrap_or_default();
        let tags = tags(&begin.action_type, &begin.target, begin.signal_id.as_deref());
        let args = vec![
            Arg::Sent(what, format!("{lease:015}{take_over}")),
            Arg::Text(format!("2P{}00{NO_DURATION}", attempt_text(begin.attempt))),
            Arg::Bytes(rest(&tags, &fixed, &owner)),
        ];
        Ok(Self::with(key, args))
    }

    pub(super) fn heartbeat(key: String, attempt: AttemptId, lease: std::time::Duration) -> Self {
        let args = [Arg::Text(attempt_text(attempt)), Arg::Text(millis(lease.as_millis()))];
        Self { is_write: false, ..Self::new("H", key, args) }
    }

    pub(super) fn end(key: String, attempt: AttemptId, end: End) -> Self {
        let (what, kind, ttl, duration, body) = match end {
            End::Complete { result, ttl, duration } => ("EC", 'C', ttl_text(ttl), Some(duration), Arg::Json(result)),
            End::Fail { error, ttl, duration } => ("EF", 'F', ttl_text(ttl), Some(duration), Arg::Text(error)),
            End::Release => ("ER", 'R', String::new(), None, Arg::Static("")),
            End::Doubt { reason } => ("ED", 'D', String::new(), None, Arg::Text(format!(":{reason}"))),
        };
        let duration = duration
            .map_or_else(|| NO_DURATION.into(), |d| format!("{:016}", d.as_millis().min(9_999_999_999_999_999)));
        let attempt = attempt_text(attempt);
        let args = vec![
            Arg::Sent(what, ttl),
            Arg::Text(format!("2P{attempt}00")),
            Arg::Text(format!("2{kind}{attempt}00{duration}")),
            body,
        ];
        Self::with(key, args)
    }

    pub(super) fn settle(key: String, of: Option<AttemptId>, settlement: Settlement) -> Self {
        let (kind, ttl, body) = match settlement {
            Settlement::Happened { result, ttl } => ("H", ttl_text(ttl), Arg::Json(result)),
            Settlement::NotHappened => ("N", String::new(), Arg::Static("")),
        };
        let args = [
            Arg::Static(kind),
            Arg::Text(of.map(attempt_text).unwrap_or_default()),
            // Fences off the attempt that left the doubt, and tells a repeated settlement from another's.
            Arg::Text(attempt_text(AttemptId::new())),
            Arg::Text(ttl),
            Arg::SentBefore,
            body,
        ];
        // Whose doubt it is about is not said: a second time could settle the next one's.
        let resend = if of.is_some() { Resend::Safe } else { Resend::Never };
        Self { resend, ..Self::new("S", key, args) }
    }

    pub(super) fn mark(key: String, mark: &Mark, insert: Insert) -> Result<Self, StoreError> {
        let none = std::collections::BTreeMap::new();
        let fixed = Fixed {
            k: &mark.key,
            s: mark.signal_id.as_deref(),
            a: &mark.action_type,
            t: &mark.target,
            f: mark.fingerprint,
            g: &none,
        };
        let fixed = fixed.encode(mark.params.as_ref()).map_err(unwritable)?;
        let owner = serde_json::to_vec(&*mark.owner).map_err(unwritable)?;
        let tags = tags(&mark.action_type, &mark.target, mark.signal_id.as_deref());
        let args = [
            Arg::Text(attempt_text(mark.attempt)),
            Arg::Text(ttl_text(mark.ttl)),
            insert.arg(),
            Arg::SentBefore,
            Arg::Bytes(rest(&tags, &fixed, &owner)),
            Arg::Json(mark.result.clone()),
        ];
        Ok(Self::new("M", key, args))
    }

    pub(super) fn get(key: String) -> Self {
        Self { is_write: false, ..Self::new("G", key, []) }
    }

    pub(super) fn remove(key: String) -> Self {
        // A second time could take what was recorded in between.
        Self { resend: Resend::Never, ..Self::new("R", key, []) }
    }

    /// Removes what is recorded at this place in the order of age, and nothing younger.
    pub(super) fn evict(key: String, place: &str) -> Self {
        Self::new("V", key, [Arg::Text(place.into()), Arg::SentBefore])
    }

    pub(super) fn watch(key: String, attempt: AttemptId) -> Self {
        Self { is_write: false, ..Self::new("W", key, [Arg::Text(attempt_text(attempt))]) }
    }

    pub(super) fn live(key: String, place: &str) -> Self {
        Self { is_write: false, ..Self::new("L", key, [Arg::Text(place.into())]) }
    }

    pub(super) fn presented(key: String, count: u64) -> Self {
        let args = [Arg::Text(count.min(1 << 52).to_string())];
        Self { resend: Resend::Forget, is_write: false, ..Self::new("P", key, args) }
    }
}

/// Whether a new record may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Insert {
    Allowed,
    /// There may be no room: the answer says so if one would be needed.
    AskFirst,
}

impl Insert {
    fn arg(self) -> Arg {
        Arg::Static(if self == Self::Allowed { "1" } else { "0" })
    }
}

fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::BadRequest { message: format!("the record has no JSON form: {error}") }
}

/// The longest time that is asked for, in milliseconds.
const LONGEST: u128 = 300_000_000_000_000;

/// Milliseconds as the scripts take them; they cut off what lies beyond the year 9999.
fn millis(millis: u128) -> String {
    millis.min(LONGEST).to_string()
}

fn ttl_text(ttl: Ttl) -> String {
    match ttl {
        Ttl::For(duration) => millis(duration.as_millis().max(1)),
        Ttl::Never => "0".into(),
    }
}

/// What the script said that is none of its answers.
pub(super) type Odd = String;

fn odd(answer: &[u8]) -> Odd {
    let start: String = String::from_utf8_lossy(answer).chars().take(40).collect();
    format!("the server gave an answer that hapax does not know ({start:?})")
}

/// A record was to be made, and the script says that it was not.
pub(super) fn absent() -> Odd {
    "the server did not make a record that it was told to make".into()
}

fn time(bytes: Option<&[u8]>) -> Option<Timestamp> {
    i64::try_from(digits(bytes?)?).ok().map(Timestamp::from_millis)
}

fn state_of(letter: Option<&u8>) -> Option<State> {
    Some(match letter? {
        b'P' => State::InProgress,
        b'D' => State::InDoubt,
        b'C' => State::Completed,
        b'F' => State::Failed,
        _ => return None,
    })
}

/// The record in an answer, if it holds one.
pub(super) fn record(space: &Arc<Space>, answer: &[u8]) -> Result<Option<Row>, Odd> {
    match answer.split_first() {
        Some((b'N', _)) => Ok(None),
        Some((b'X' | b'R', rest)) => row::read(&space.name, rest).map(Some),
        _ => Err(odd(answer)),
    }
}

/// `None`: there is no such record, and none was made.
pub(super) fn begun(space: &Arc<Space>, answer: &[u8]) -> Result<Option<Begun>, Odd> {
    match answer.split_first() {
        Some((b'S', rest)) => {
            let read = || {
                Some(Begun::Started {
                    started_at: time(rest.get(..15))?,
                    attempts: digits(rest.get(15..25)?)?,
                    expired: 0,
                    evicted: 0,
                })
            };
            read().map(Some).ok_or_else(|| odd(answer))
        }
        _ => Ok(record(space, answer)?.map(|row| Begun::Exists(row.record))),
    }
}

pub(super) fn ended(answer: &[u8]) -> Result<Ended, Odd> {
    match answer.split_first() {
        Some((b'D', rest)) => {
            let (at, until) = (time(rest.get(..15)), time(rest.get(15..30)));
            at.zip(until)
                .map(|(at, until)| Ended::Done { at, expires_at: (until.as_millis() > 0).then_some(until) })
                .ok_or_else(|| odd(answer))
        }
        Some((b'L', rest)) => Ok(Ended::Lost(state_of(rest.first()))),
        _ => Err(odd(answer)),
    }
}

pub(super) fn beat(answer: &[u8]) -> Result<Beat, Odd> {
    match answer {
        b"R" => Ok(Beat::Renewed),
        b"D" => Ok(Beat::Lapsed),
        b"L" => Ok(Beat::Lost),
        _ => Err(odd(answer)),
    }
}

pub(super) fn settled(space: &Arc<Space>, answer: &[u8]) -> Result<Settled, Odd> {
    match answer.first() {
        Some(b'D') => Ok(Settled::Done(None)),
        Some(b'R') => Ok(Settled::Done(record(space, answer)?.map(|row| row.record))),
        _ => Ok(Settled::NotInDoubt(record(space, answer)?.map(|row| row.record))),
    }
}

/// `None`: there is no such record, and none was made.
pub(super) fn marked(space: &Arc<Space>, answer: &[u8]) -> Result<Option<Marked>, Odd> {
    let Some(row) = record(space, answer)? else { return Ok(None) };
    Ok(Some(if answer.first() == Some(&b'R') { Marked::recorded(row.record) } else { Marked::Exists(row.record) }))
}

pub(super) fn removed(space: &Arc<Space>, answer: &[u8]) -> Result<Removed, Odd> {
    match answer {
        b"R" => Ok(Removed::Removed),
        _ => Ok(record(space, answer)?.map_or(Removed::Absent, |row| Removed::Kept(row.record))),
    }
}

/// How long the attempt's lease still runs; `None` when the key is not in progress by it.
pub(super) fn watched(answer: &[u8]) -> Result<Option<std::time::Duration>, Odd> {
    match answer.split_first() {
        Some((b'N', _)) => Ok(None),
        Some((b'P', rest)) => {
            digits(rest).map(|millis| Some(std::time::Duration::from_millis(millis))).ok_or_else(|| odd(answer))
        }
        _ => Err(odd(answer)),
    }
}
