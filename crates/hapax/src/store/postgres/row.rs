//! A record as its row says, and as it reads at the time the server read it.
//!
//! Invariants: a row past `expires_at` reads as absent; a live row whose lease
//! has lapsed reads as in doubt, or as absent if its attempt was a transaction,
//! since that can have had no effect. Nothing else decides either.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use super::error::Failed;
use crate::store::StoreError;
use crate::{AttemptId, Fingerprint, Json, Key, Owner, Record, State, Timestamp, Ttl};

pub(super) const IN_PROGRESS: i16 = 0;
pub(super) const IN_DOUBT: i16 = 1;
pub(super) const COMPLETED: i16 = 2;
pub(super) const FAILED: i16 = 3;

/// Where a key's record is found: half of a SHA-256, kept as a `uuid`, PostgreSQL's compact 16 bytes.
pub(super) fn hash_of(namespace: &str, key: &Key) -> Uuid {
    let mut sha = Sha256::new();
    sha.update(namespace.as_bytes());
    sha.update([0]);
    sha.update(key.as_str().as_bytes());
    Uuid::from_bytes(half(&sha.finalize()))
}

fn half(digest: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
    hash
}

/// What an index holds in place of a text, which may be longer than an index can hold.
pub(super) fn tag(namespace: &str, text: &str) -> i64 {
    let mut sha = Sha256::new();
    sha.update(namespace.as_bytes());
    sha.update([0]);
    sha.update(text.as_bytes());
    let folded = half(&sha.finalize()).into_iter().take(8).fold(0_u64, |n, byte| (n << 8) | u64::from(byte));
    folded.cast_signed()
}

/// The tag of a namespace itself.
pub(super) fn space_tag(namespace: &str) -> i64 {
    tag(namespace, "")
}

/// An advisory lock's number for an attempt, as `pg_locks` shows its halves.
pub(super) fn lock_of(attempt: AttemptId) -> (i64, i64, i64) {
    let low = attempt.as_bytes().iter().skip(8).fold(0_u64, |n, byte| (n << 8) | u64::from(*byte));
    let halves = ((low >> 32).cast_signed(), (low & 0xffff_ffff).cast_signed());
    (low.cast_signed(), halves.0, halves.1)
}

/// PostgreSQL's text has no U+0000. Both it and the escape are written with U+0001 in front.
pub(super) fn text_in(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', '\u{1}']) {
        Cow::Owned(text.replace('\u{1}', "\u{1}1").replace('\0', "\u{1}0"))
    } else {
        Cow::Borrowed(text)
    }
}

pub(super) fn text_out(text: String) -> String {
    if text.contains('\u{1}') { text.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}") } else { text }
}

pub(super) fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn to_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Milliseconds, small enough that adding them to any time stays within 64 bits.
pub(super) fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(1 << 52)
}

/// Milliseconds to live; none: for ever.
pub(super) fn ttl_millis(ttl: Ttl) -> Option<i64> {
    match ttl {
        Ttl::For(duration) => Some(millis(duration).max(1)),
        Ttl::Never => None,
    }
}

pub(super) fn uuid(attempt: AttemptId) -> Uuid {
    Uuid::from_bytes(*attempt.as_bytes())
}

/// A record and what stands beside it in its row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) hash: Uuid,
    /// Whether its attempt is a transaction.
    pub(super) in_tx: bool,
    pub(super) now: Timestamp,
    pub(super) record: Record,
}

fn damaged(key: &str, what: &str) -> Failed {
    let shown: String = key.chars().take(120).collect();
    Failed::Store(StoreError::Damaged {
        store: "postgres".into(),
        message: format!(
            "the record of {shown:?} is damaged: {what}; delete its row in hapax_records after looking at it"
        ),
    })
}

/// Reads a row selected as `@columns`; `None` if it reads as absent.
pub(super) fn read(row: &SqlRow, namespace: &str) -> Result<Option<Row>, Failed> {
    fn get<'a, T: FromSql<'a>>(row: &'a SqlRow, index: usize) -> Result<T, Failed> {
        Ok(row.try_get(index)?)
    }
    let key: String = get(row, 0)?;
    let (written, in_tx): (i16, bool) = (get(row, 1)?, get(row, 2)?);
    let expires_at: Option<i64> = get(row, 8)?;
    let lease_until: Option<i64> = get(row, 9)?;
    let now: i64 = get(row, 23)?;
    let lapsed = written == IN_PROGRESS && lease_until.unwrap_or(0) <= now;
    if expires_at.is_some_and(|at| at <= now) || (lapsed && in_tx) {
        return Ok(None);
    }
    let json = |text: &str, what| Json::parse(text).map_err(|_| damaged(&key, what));
    let body: Option<String> = get::<Option<String>>(row, 20)?;
    let (state, result, error) = match written {
        IN_PROGRESS if lapsed => (State::InDoubt, None, Some("its lease lapsed without a heartbeat".to_string())),
        IN_PROGRESS => (State::InProgress, None, None),
        IN_DOUBT => (State::InDoubt, None, body.map(text_out)),
        COMPLETED => {
            let body = body.ok_or_else(|| damaged(&key, "its result is missing"))?;
            (State::Completed, Some(json(&body, "its result is not JSON")?), None)
        }
        FAILED => (State::Failed, None, Some(body.map(text_out).unwrap_or_default())),
        _ => return Err(damaged(&key, "its state is unknown")),
    };
    let fingerprint: [u8; 32] =
        get::<&[u8]>(row, 11)?.try_into().map_err(|_| damaged(&key, "its fingerprint is damaged"))?;
    let time = |index| -> Result<Option<Timestamp>, Failed> {
        Ok(get::<Option<i64>>(row, index)?.map(Timestamp::from_millis))
    };
    let tags: Option<String> = get(row, 18)?;
    let tags: BTreeMap<String, String> = tags.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    let record = Record {
        namespace: namespace.to_string(),
        signal_id: get::<Option<String>>(row, 12)?.map(text_out),
        action_type: text_out(get(row, 13)?),
        target: text_out(get(row, 14)?),
        params: get::<Option<&str>>(row, 19)?.map(|p| json(p, "its params are not JSON")).transpose()?,
        fingerprint: Fingerprint::from_bytes(fingerprint),
        state,
        result,
        error,
        attempt_id: AttemptId::from_bytes(*get::<Uuid>(row, 3)?.as_bytes()),
        attempts: to_u64(get(row, 4)?),
        attempt_count: to_u64(get(row, 5)?),
        started_at: Timestamp::from_millis(get(row, 6)?),
        executed_at: time(7)?.filter(|_| state.is_recorded()),
        expires_at: time(8)?,
        lease_until: time(9)?.filter(|_| state == State::InProgress),
        duration_ms: get::<Option<i64>>(row, 10)?.map(to_u64),
        owner: Owner {
            host: text_out(get(row, 15)?),
            pid: u32::try_from(get::<i64>(row, 16)?).unwrap_or(0),
            label: get::<Option<String>>(row, 17)?.map(text_out),
        },
        tags,
        key: Key::given(&key).map_err(|_| damaged(&key, "it is no valid key"))?,
    };
    Ok(Some(Row { hash: get(row, 22)?, in_tx, now: Timestamp::from_millis(now), record }))
}

/// Refuses a key whose hash is that of another: with half a SHA-256 nobody will see this.
pub(super) fn same_key(row: Row, key: &Key) -> Result<Row, Failed> {
    if row.record.key == *key {
        return Ok(row);
    }
    Err(Failed::Store(StoreError::BadRequest {
        message: format!("key {key} has the same hash as another key of this store: change it by a character"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_zero_characters_survives() {
        for text in ["", "plain", "\0", "\u{1}", "\u{1}0", "a\0\u{1}1b\u{1}\0"] {
            let there = text_in(text);
            assert!(!there.contains('\0'));
            assert_eq!(text_out(there.into_owned()), text);
        }
    }
}
