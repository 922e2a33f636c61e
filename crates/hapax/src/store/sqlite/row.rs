//! A record as its row says, and as it reads at a given time.
//!
//! Invariants: a row past `expires_at` reads as absent; a live row whose lease
//! has lapsed or whose owner is gone reads as in doubt. Nothing else decides
//! either, so that all operations agree.

use std::sync::Arc;

use hashbrown::HashMap;
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, Row as SqlRow};
use sha2::{Digest, Sha256};

use super::error::Failed;
use super::owner::{Process, fnv};
use super::schema::{COMPLETED, FAILED, IN_DOUBT, IN_PROGRESS};
use crate::store::{Liveness, StoreError};
use crate::{AttemptId, Clock, Fingerprint, Json, Key, Owner, Record, State, Timestamp};

/// Where a key's record is found.
pub(super) type Hash = [u8; 16];

/// The hash of a key, as stored.
pub(super) fn hash_of(namespace: &str, key: &Key) -> Hash {
    let mut sha = Sha256::new();
    sha.update(namespace.as_bytes());
    sha.update([0]);
    sha.update(key.as_str().as_bytes());
    let digest = sha.finalize();
    let mut hash = [0; 16];
    hash.iter_mut().zip(digest.iter()).for_each(|(to, from)| *to = *from);
    if let Some(signal) = signal_part(key.as_str()) {
        let prefix = signal_prefix(namespace, signal);
        hash.iter_mut().zip(prefix).for_each(|(to, from)| *to = from);
    }
    hash
}

/// The first part of a key that looks generated, as it stands there.
fn signal_part(key: &str) -> Option<&str> {
    let mut parts = key.split(':');
    let (signal, _, _, last, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    (!signal.is_empty() && last.len() == 16).then_some(signal)
}

fn signal_prefix(namespace: &str, encoded: &str) -> [u8; 4] {
    let hash = fnv(&[namespace.as_bytes(), encoded.as_bytes()]);
    let folded = u32::try_from((hash ^ (hash >> 32)) & 0xffff_ffff).unwrap_or(0);
    folded.to_be_bytes()
}

/// The first and last hash of the generated keys with this signal.
pub(super) fn signal_range(namespace: &str, signal: &str) -> Option<(Hash, Hash)> {
    let key = Key::from_parts(Some(signal), "a", "t", &Fingerprint::from_bytes([0; 32])).ok()?;
    let prefix = signal_prefix(namespace, signal_part(key.as_str())?);
    let bound = |fill: u8| {
        let mut hash = [fill; 16];
        hash.iter_mut().zip(prefix).for_each(|(to, from)| *to = from);
        hash
    };
    Some((bound(0), bound(0xff)))
}

/// Whether the key itself leads to the signal.
pub(super) fn key_has_signal(key: &Key, signal: &str) -> bool {
    key.parts().is_ok_and(|parts| parts.signal_id.as_deref() == Some(signal))
}

/// What an index holds instead of a text.
pub(super) fn tag(namespace: &str, text: &str) -> i64 {
    i64::try_from(fnv(&[namespace.as_bytes(), text.as_bytes()]) >> 16).unwrap_or(0)
}

pub(super) fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn to_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The time of a batch, and what was learnt of other processes in it.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    pub(super) steady: i64,
    me: Process,
    token: [u8; 36],
    lease_token: [u8; 36],
    // A batch may meet a thousand attempts of one process: /proc is read once.
    gone: HashMap<Vec<u8>, bool, foldhash::fast::RandomState>,
}

impl Now {
    pub(super) fn new(clock: &dyn Clock, me: Process) -> Self {
        Self {
            wall: clock.now(),
            steady: clock.steady_millis(),
            me,
            token: me.token(),
            lease_token: me.lease_token(),
            gone: HashMap::default(),
        }
    }

    pub(super) fn token(&self) -> &[u8; 36] {
        &self.token
    }

    /// What is written for an attempt with this liveness.
    pub(super) fn token_for(&self, liveness: Liveness) -> &[u8; 36] {
        match liveness {
            Liveness::Process => &self.token,
            Liveness::Lease => &self.lease_token,
        }
    }

    /// Why a row that says in progress is in doubt, if it is.
    pub(super) fn lapse(&mut self, token: &[u8], until: i64, steady: i64) -> Option<&'static str> {
        const LAPSED: &str = "its lease lapsed without a heartbeat";
        if token == self.token || token == self.lease_token {
            return (steady <= self.steady).then_some(LAPSED);
        }
        let Some(owner) = Process::from_token(token) else { return Some("its owner cannot be read") };
        let me = self.me;
        let lapsed = if me.shares_clock(&owner) { steady <= self.steady } else { until <= self.wall.as_millis() };
        if lapsed {
            return Some(LAPSED);
        }
        let gone = match self.gone.get(token) {
            Some(gone) => *gone,
            None => {
                let gone = me.knows_gone(&owner);
                self.gone.insert(token.to_vec(), gone);
                gone
            }
        };
        gone.then_some("its owner process is gone")
    }
}

/// A record and where it lies.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) namespace: i64,
    pub(super) result: Option<i64>,
    /// The state as written; `record.state` is as it reads.
    pub(super) written: i64,
    pub(super) record: Record,
}

/// The columns that [`read`] reads, as a literal so that statements are constants.
macro_rules! columns {
    () => {
        "r.id, r.namespace, r.result, r.state, r.attempt, r.expires_at, r.lease_until, r.lease_steady, \
         r.attempts, r.presented, r.started_at, r.token, r.host, r.pid, r.label, r.fingerprint, r.key, r.signal_id, \
         r.action_type, r.target, r.doubt, r.tags, r.params, x.executed_at, x.duration_ms, x.body"
    };
}
pub(super) use columns;

/// Reads a row selected as `columns!()`; `None` if it has expired.
pub(super) fn read(row: &SqlRow<'_>, namespace: &str, now: &mut Now, expired: Expired) -> Result<Option<Row>, Failed> {
    let written: i64 = row.get(3)?;
    let expires_at: Option<i64> = row.get(5)?;
    if expired == Expired::Skip && expires_at.is_some_and(|at| at <= now.wall.as_millis()) {
        return Ok(None);
    }
    let text = |index: usize| -> Result<String, Failed> { Ok(row.get::<_, String>(index)?) };
    let key: String = text(16)?;
    let lease_until: Option<i64> = row.get(6)?;
    let mut state = match written {
        IN_PROGRESS => State::InProgress,
        IN_DOUBT => State::InDoubt,
        COMPLETED => State::Completed,
        FAILED => State::Failed,
        _ => return Err(damaged(&key, "its state is unknown")),
    };
    let mut error: Option<String> = row.get(20)?;
    if state == State::InProgress {
        let steady: Option<i64> = row.get(7)?;
        let token = row.get_ref(11)?.as_blob().unwrap_or_default();
        if let Some(reason) = now.lapse(token, lease_until.unwrap_or(0), steady.unwrap_or(0)) {
            state = State::InDoubt;
            error = Some(reason.into());
        }
    }
    let body = match row.get_ref(25)? {
        ValueRef::Text(bytes) => Some(std::str::from_utf8(bytes).map_err(|_| damaged(&key, "its result is not text"))?),
        _ => None,
    };
    let mut result = None;
    match state {
        State::Completed => {
            let body = body.ok_or_else(|| damaged(&key, "its result is missing"))?;
            result = Some(Json::parse(body).map_err(|_| damaged(&key, "its result is not JSON"))?);
        }
        State::Failed => error = body.map(str::to_string),
        State::InProgress | State::InDoubt => {}
    }
    let blob = |index: usize| -> Result<&[u8], Failed> { Ok(row.get_ref(index)?.as_blob().unwrap_or_default()) };
    let attempt: [u8; 16] = blob(4)?.try_into().map_err(|_| damaged(&key, "its attempt id is damaged"))?;
    let fingerprint: [u8; 32] = blob(15)?.try_into().map_err(|_| damaged(&key, "its fingerprint is damaged"))?;
    let (tags, params): (Option<String>, Option<String>) = (row.get(21)?, row.get(22)?);
    let record = Record {
        namespace: namespace.to_string(),
        signal_id: row.get(17)?,
        action_type: text(18)?,
        target: text(19)?,
        params: params.map(|p| Json::parse(&p)).transpose().map_err(|_| damaged(&key, "its params are not JSON"))?,
        fingerprint: Fingerprint::from_bytes(fingerprint),
        state,
        result,
        error,
        attempt_id: AttemptId::from_bytes(attempt),
        attempts: to_u64(row.get(8)?),
        attempt_count: to_u64(row.get(9)?),
        started_at: Timestamp::from_millis(row.get(10)?),
        executed_at: row.get::<_, Option<i64>>(23)?.map(Timestamp::from_millis),
        expires_at: expires_at.map(Timestamp::from_millis),
        lease_until: lease_until.filter(|_| state == State::InProgress).map(Timestamp::from_millis),
        duration_ms: row.get::<_, Option<i64>>(24)?.map(to_u64),
        owner: Owner { host: text(12)?, pid: row.get(13)?, label: row.get(14)? },
        tags: tags.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default(),
        key: Key::given(&key).map_err(|_| damaged(&key, "it is no valid key"))?,
    };
    Ok(Some(Row { id: row.get(0)?, namespace: row.get(1)?, result: row.get(2)?, written, record }))
}

/// Whether rows past their time are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Read,
    Skip,
}

fn damaged(key: &str, what: &str) -> Failed {
    let shown: String = key.chars().take(120).collect();
    Failed::Store(StoreError::Damaged {
        store: "sqlite".into(),
        message: format!(
            "the record of {shown:?} is damaged: {what}; restore the file from a copy, or try `sqlite3 FILE .recover`"
        ),
    })
}

/// The row under a key.
pub(super) fn find(
    conn: &Connection,
    namespace: &Arc<str>,
    key: &Key,
    hash: &Hash,
    now: &mut Now,
    expired: Expired,
) -> Result<Option<Row>, Failed> {
    // A constant text, so that looking up the prepared statement builds nothing.
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM records r LEFT JOIN results x ON x.id = r.result WHERE r.hash = ?1");
    let mut statement: CachedStatement<'_> = conn.prepare_cached(SQL)?;
    let mut rows = statement.query([&hash[..]])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    if row.get_ref(16)?.as_bytes().unwrap_or_default() != key.as_str().as_bytes() {
        return Err(Failed::Store(StoreError::BadRequest {
            message: format!("key {key} has the same hash as another key of this store: change it by a character"),
        }));
    }
    read(row, namespace, now, expired)
}
