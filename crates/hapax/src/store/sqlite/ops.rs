//! The transitions, each as statements within the writer's transaction.
//!
//! Invariants: every change of a live row names its attempt id; an operation
//! that answers with a rule's refusal has written nothing that matters; counts
//! go through [`Batch::tally`].

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::batch::{Batch, millis};
use super::error::Failed;
use super::room;
use super::row::{Expired, Hash, Row, find, key_has_signal, tag, to_i64};
use super::schema::{COMPLETED, FAILED, IN_DOUBT, IN_PROGRESS};
use crate::store::{Beat, Begin, Begun, Counters, End, Ended, Mark, Marked, Removed, Settled, Settlement};
use crate::{AttemptId, Json, Key, State, Ttl};

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Op {
    Begin(Box<Begin>, Hash),
    Heartbeat { namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration, Hash)> },
    End { namespace: Arc<str>, key: Key, hash: Hash, attempt: AttemptId, end: End },
    Settle { namespace: Arc<str>, key: Key, hash: Hash, attempt: Option<AttemptId>, settlement: Settlement },
    Mark(Box<Mark>, Hash),
    Remove { namespace: Arc<str>, key: Key, hash: Hash },
    Clear { namespace: Arc<str> },
    Sweep { limit: usize },
    Evict { namespace: Arc<str>, count: u64 },
    Count { namespace: Arc<str>, counters: Box<Counters>, presented: Vec<(Hash, u64)> },
    Reset { namespace: Arc<str> },
}

/// What it answers.
#[derive(Debug)]
pub(super) enum Answer {
    Begun(Begun),
    Beats(Vec<Beat>),
    Ended(Ended),
    Settled(Settled),
    Marked(Marked),
    Removed(Removed),
    Number(u64),
    Nothing,
}

impl Op {
    /// Does it, within the batch's transaction. May be called again after that was undone.
    pub(super) fn apply(&self, batch: &mut Batch<'_>, location: &str) -> Result<Answer, Failed> {
        Ok(match self {
            Self::Begin(op, hash) => Answer::Begun(begin(batch, op, hash, location)?),
            Self::Heartbeat { namespace, beats } => Answer::Beats(heartbeat(batch, namespace, beats)?),
            Self::End { namespace, key, hash, attempt, end } => {
                Answer::Ended(self::end(batch, namespace, key, hash, attempt, end)?)
            }
            Self::Settle { namespace, key, hash, attempt, settlement } => {
                Answer::Settled(settle(batch, namespace, key, hash, *attempt, settlement)?)
            }
            Self::Mark(op, hash) => Answer::Marked(mark(batch, op, hash, location)?),
            Self::Remove { namespace, key, hash } => Answer::Removed(remove(batch, namespace, key, hash)?),
            Self::Clear { namespace } => Answer::Number(room::clear(batch, namespace)?),
            Self::Sweep { limit } => Answer::Number(room::sweep(batch, to_i64(*limit as u64))?),
            Self::Evict { namespace, count } => Answer::Number(room::evict_oldest(batch, namespace, *count)?),
            Self::Count { namespace, counters, presented } => {
                count(batch, namespace, counters, presented)?;
                Answer::Nothing
            }
            Self::Reset { namespace } => {
                let id = batch.namespace(namespace)?;
                batch.conn.prepare_cached("DELETE FROM counters WHERE namespace = ?1")?.execute([id])?;
                Answer::Nothing
            }
        })
    }
}

fn look(
    batch: &mut Batch<'_>,
    namespace: &Arc<str>,
    key: &Key,
    hash: &Hash,
    expired: Expired,
) -> Result<Option<Row>, Failed> {
    let row = find(batch.conn, namespace, key, hash, &mut batch.now, expired)?;
    batch.read_recorded |= row.as_ref().is_some_and(|r| r.record.state.is_recorded());
    Ok(row)
}

/// The row under a key; one that has expired is removed first.
fn current(batch: &mut Batch<'_>, namespace: &Arc<str>, key: &Key, hash: &Hash) -> Result<Option<Row>, Failed> {
    let Some(row) = look(batch, namespace, key, hash, Expired::Read)? else { return Ok(None) };
    if row.record.expires_at.is_some_and(|at| at <= batch.now.wall) {
        batch.delete(row.id, row.result, row.namespace, row.written)?;
        return Ok(None);
    }
    Ok(Some(row))
}

const INSERT: &str = "INSERT INTO records (state, attempt, hash, namespace, expires_at, lease_until, lease_steady, result,
        attempts, presented, started_at, token, action_tag, target_tag, signal_tag, host, pid, label, fingerprint, key,
        signal_id, action_type, target, tags, params)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24)
    ON CONFLICT (hash) DO NOTHING";

fn insert_attempt(batch: &mut Batch<'_>, op: &Begin, hash: &Hash, namespace: i64) -> Result<bool, Failed> {
    let signal_tag = op.signal_id.as_deref().filter(|s| !key_has_signal(&op.key, s)).map(|s| tag(&op.namespace, s));
    let tags = (!op.tags.is_empty()).then(|| serde_json::to_string(&op.tags).unwrap_or_default());
    let inserted = batch.conn.prepare_cached(INSERT)?.execute(params![
        IN_PROGRESS,
        op.attempt.as_bytes(),
        hash,
        namespace,
        None::<i64>,
        batch.now.wall.plus(op.lease).as_millis(),
        batch.now.steady.saturating_add(millis(op.lease)),
        None::<i64>,
        1,
        batch.now.wall.as_millis(),
        batch.now.token_for(op.liveness),
        tag(&op.namespace, &op.action_type),
        tag(&op.namespace, &op.target),
        signal_tag,
        op.owner.host,
        op.owner.pid,
        op.owner.label,
        op.fingerprint.as_bytes(),
        op.key.as_str(),
        op.signal_id,
        op.action_type,
        op.target,
        tags,
        op.params.as_ref().map(Json::as_str),
    ])?;
    if inserted == 0 {
        return Ok(false);
    }
    batch.memory.began(op.attempt, *hash, batch.conn.last_insert_rowid());
    batch.tally(namespace, IN_PROGRESS, 1);
    Ok(true)
}

fn begin(batch: &mut Batch<'_>, op: &Begin, hash: &Hash, location: &str) -> Result<Begun, Failed> {
    let namespace = batch.namespace(&op.namespace)?;
    let started = |batch: &Batch<'_>, attempts, (expired, evicted)| Begun::Started {
        attempts,
        started_at: batch.now.wall,
        expired,
        evicted,
    };
    let mut room = (0, 0);
    let is_full = match op.capacity {
        Some(capacity) => batch.total()? >= to_i64(capacity.max_entries),
        None => false,
    };
    // Most keys are new: the insert itself finds out. Not when the store is full, since
    // then room is made for a new key only.
    if !is_full && insert_attempt(batch, op, hash, namespace)? {
        return Ok(started(batch, 1, room));
    }
    if let Some(row) = current(batch, &op.namespace, &op.key, hash)? {
        let record = row.record;
        if record.state != State::InDoubt || op.take_over != Some(record.attempt_id) {
            return Ok(Begun::Exists(Box::new(record)));
        }
        batch
            .conn
            .prepare_cached(
                "UPDATE records SET state = ?2, attempt = ?3, lease_until = ?4, lease_steady = ?5, attempts = attempts + 1,
                    presented = presented + 1, started_at = ?6, token = ?7, host = ?8, pid = ?9, label = ?10, doubt = NULL
                 WHERE id = ?1",
            )?
            .execute(params![
                row.id,
                IN_PROGRESS,
                op.attempt.as_bytes(),
                batch.now.wall.plus(op.lease).as_millis(),
                batch.now.steady.saturating_add(millis(op.lease)),
                batch.now.wall.as_millis(),
                batch.now.token_for(op.liveness),
                op.owner.host,
                op.owner.pid,
                op.owner.label,
            ])?;
        batch.memory.began(op.attempt, *hash, row.id);
        batch.ended.push(*hash);
        return Ok(started(batch, record.attempts.saturating_add(1), room));
    }
    if let Some(capacity) = op.capacity {
        room = room::make(batch, capacity, location)?;
    }
    if !insert_attempt(batch, op, hash, namespace)? {
        return Err(Failed::Sql(rusqlite::Error::QueryReturnedNoRows));
    }
    Ok(started(batch, 1, room))
}

fn heartbeat(
    batch: &mut Batch<'_>,
    namespace: &Arc<str>,
    beats: &[(Key, AttemptId, Duration, Hash)],
) -> Result<Vec<Beat>, Failed> {
    let mut answers = Vec::with_capacity(beats.len());
    for (key, attempt, lease, hash) in beats {
        let row = look(batch, namespace, key, hash, Expired::Skip)?;
        answers.push(match row {
            Some(row) if row.record.attempt_id == *attempt && row.record.state == State::InProgress => {
                let until = batch.now.wall.plus(*lease).as_millis();
                let steady = batch.now.steady.saturating_add(millis(*lease));
                batch
                    .conn
                    .prepare_cached("UPDATE records SET lease_until = ?2, lease_steady = ?3 WHERE id = ?1")?
                    .execute([row.id, until, steady])?;
                Beat::Renewed
            }
            Some(row) if row.record.attempt_id == *attempt && row.record.state == State::InDoubt => Beat::Lapsed,
            _ => Beat::Lost,
        });
    }
    Ok(answers)
}

/// How a record is completed or failed.
struct Outcome<'a> {
    state: i64,
    body: &'a str,
    ttl: Ttl,
    duration: Option<Duration>,
}

impl Outcome<'_> {
    fn insert(&self, batch: &Batch<'_>) -> Result<i64, Failed> {
        batch
            .conn
            .prepare_cached("INSERT INTO results (executed_at, duration_ms, body) VALUES (?1, ?2, ?3)")?
            .execute(params![batch.now.wall.as_millis(), self.duration.map(millis), self.body])?;
        Ok(batch.conn.last_insert_rowid())
    }

    /// Records it over a live row; `false` if the attempt does not hold that row.
    fn record(
        &self,
        batch: &mut Batch<'_>,
        id: i64,
        namespace: i64,
        of: &AttemptId,
        becomes: &AttemptId,
    ) -> Result<bool, Failed> {
        let result = self.insert(batch)?;
        let changed = batch
            .conn
            .prepare_cached(
                "UPDATE records SET state = ?3, attempt = ?4, expires_at = ?5, result = ?6, lease_until = NULL,
                    lease_steady = NULL, doubt = NULL
                 WHERE id = ?1 AND attempt = ?2 AND state < 2",
            )?
            .execute(params![
                id,
                of.as_bytes(),
                self.state,
                becomes.as_bytes(),
                self.ttl.expires_at(batch.now.wall).map(crate::Timestamp::as_millis),
                result,
            ])?;
        if changed == 0 {
            batch.conn.prepare_cached("DELETE FROM results WHERE id = ?1")?.execute([result])?;
            return Ok(false);
        }
        batch.tally(namespace, IN_PROGRESS, -1);
        batch.tally(namespace, self.state, 1);
        Ok(true)
    }
}

fn end(
    batch: &mut Batch<'_>,
    namespace: &Arc<str>,
    key: &Key,
    hash: &Hash,
    attempt: &AttemptId,
    end: &End,
) -> Result<Ended, Failed> {
    let outcome = match end {
        End::Complete { result, ttl, duration } => {
            Some(Outcome { state: COMPLETED, body: result.as_str(), ttl: *ttl, duration: Some(*duration) })
        }
        End::Fail { error, ttl, duration } => {
            Some(Outcome { state: FAILED, body: error, ttl: *ttl, duration: Some(*duration) })
        }
        End::Release | End::Doubt { .. } => None,
    };
    let number = batch.namespace(namespace)?;
    let done = |batch: &mut Batch<'_>, expires_at| {
        batch.ended.push(*hash);
        Ended::Done { at: batch.now.wall, expires_at }
    };
    // The row that this process put the attempt into: no search, no read.
    let known = batch.memory.ended(attempt, hash);
    if let (Some(id), Some(outcome)) = (known, &outcome)
        && outcome.record(batch, id, number, attempt, attempt)?
    {
        return Ok(done(batch, outcome.ttl.expires_at(batch.now.wall)));
    }
    let Some(row) = look(batch, namespace, key, hash, Expired::Skip)? else { return Ok(Ended::Lost(None)) };
    let record = &row.record;
    if record.attempt_id != *attempt {
        return Ok(Ended::Lost(Some(record.state)));
    }
    if record.state.is_recorded() {
        // The same end again: its first answer was lost on the way.
        let same =
            matches!((end, record.state), (End::Complete { .. }, State::Completed) | (End::Fail { .. }, State::Failed));
        return Ok(match record.executed_at.filter(|_| same) {
            Some(at) => Ended::Done { at, expires_at: record.expires_at },
            None => Ended::Lost(Some(record.state)),
        });
    }
    match (outcome, end) {
        (Some(outcome), _) => {
            if !outcome.record(batch, row.id, number, attempt, attempt)? {
                return Err(Failed::Sql(rusqlite::Error::QueryReturnedNoRows));
            }
            Ok(done(batch, outcome.ttl.expires_at(batch.now.wall)))
        }
        (None, End::Doubt { reason }) => {
            batch
                .conn
                .prepare_cached(
                    "UPDATE records SET state = ?2, doubt = ?3, lease_until = NULL, lease_steady = NULL WHERE id = ?1",
                )?
                .execute(params![row.id, IN_DOUBT, reason])?;
            Ok(done(batch, None))
        }
        (None, _) => {
            batch.delete(row.id, row.result, row.namespace, row.written)?;
            Ok(done(batch, None))
        }
    }
}

fn settle(
    batch: &mut Batch<'_>,
    namespace: &Arc<str>,
    key: &Key,
    hash: &Hash,
    attempt: Option<AttemptId>,
    settlement: &Settlement,
) -> Result<Settled, Failed> {
    let Some(row) = look(batch, namespace, key, hash, Expired::Skip)? else { return Ok(Settled::NotInDoubt(None)) };
    if row.record.state != State::InDoubt || attempt.is_some_and(|a| a != row.record.attempt_id) {
        return Ok(Settled::NotInDoubt(Some(Box::new(row.record))));
    }
    batch.ended.push(*hash);
    batch.raise_epoch = true;
    match settlement {
        Settlement::NotHappened => {
            batch.delete(row.id, row.result, row.namespace, row.written)?;
            Ok(Settled::Done(None))
        }
        Settlement::Happened { result, ttl } => {
            // A new id fences off the attempt: its late answer must not count.
            let outcome = Outcome { state: COMPLETED, body: result.as_str(), ttl: *ttl, duration: None };
            record_by_hand(batch, row, &outcome, result, AttemptId::new()).map(|record| Settled::Done(Some(record)))
        }
    }
}

fn record_by_hand(
    batch: &mut Batch<'_>,
    row: Row,
    outcome: &Outcome<'_>,
    result: &Json,
    becomes: AttemptId,
) -> Result<Box<crate::Record>, Failed> {
    let mut record = Box::new(row.record);
    if !outcome.record(batch, row.id, row.namespace, &record.attempt_id, &becomes)? {
        return Err(Failed::Sql(rusqlite::Error::QueryReturnedNoRows));
    }
    record.state = State::Completed;
    record.result = Some(result.clone());
    record.error = None;
    record.attempt_id = becomes;
    record.executed_at = Some(batch.now.wall);
    record.expires_at = outcome.ttl.expires_at(batch.now.wall);
    record.lease_until = None;
    Ok(record)
}

fn mark(batch: &mut Batch<'_>, op: &Mark, hash: &Hash, location: &str) -> Result<Marked, Failed> {
    let namespace = batch.namespace(&op.namespace)?;
    let outcome = Outcome { state: COMPLETED, body: op.result.as_str(), ttl: op.ttl, duration: None };
    if let Some(row) = current(batch, &op.namespace, &op.key, hash)? {
        if row.record.state != State::InDoubt {
            return Ok(Marked::Exists(Box::new(row.record)));
        }
        batch.ended.push(*hash);
        return record_by_hand(batch, row, &outcome, &op.result, op.attempt).map(Marked::recorded);
    }
    let (expired, evicted) = match op.capacity {
        Some(capacity) => room::make(batch, capacity, location)?,
        None => (0, 0),
    };
    let result = outcome.insert(batch)?;
    let signal_tag = op.signal_id.as_deref().filter(|s| !key_has_signal(&op.key, s)).map(|s| tag(&op.namespace, s));
    batch.conn.prepare_cached(INSERT)?.execute(params![
        COMPLETED,
        op.attempt.as_bytes(),
        hash,
        namespace,
        op.ttl.expires_at(batch.now.wall).map(crate::Timestamp::as_millis),
        None::<i64>,
        None::<i64>,
        result,
        0,
        batch.now.wall.as_millis(),
        batch.now.token(),
        tag(&op.namespace, &op.action_type),
        tag(&op.namespace, &op.target),
        signal_tag,
        op.owner.host,
        op.owner.pid,
        op.owner.label,
        op.fingerprint.as_bytes(),
        op.key.as_str(),
        op.signal_id,
        op.action_type,
        op.target,
        None::<String>,
        op.params.as_ref().map(Json::as_str),
    ])?;
    batch.tally(namespace, COMPLETED, 1);
    batch.ended.push(*hash);
    let row = look(batch, &op.namespace, &op.key, hash, Expired::Read)?;
    row.map(|row| Marked::Recorded { record: Box::new(row.record), expired, evicted })
        .ok_or(Failed::Sql(rusqlite::Error::QueryReturnedNoRows))
}

fn remove(batch: &mut Batch<'_>, namespace: &Arc<str>, key: &Key, hash: &Hash) -> Result<Removed, Failed> {
    let Some(row) = look(batch, namespace, key, hash, Expired::Skip)? else { return Ok(Removed::Absent) };
    if !row.record.state.is_recorded() {
        return Ok(Removed::Kept(Box::new(row.record)));
    }
    batch.delete(row.id, row.result, row.namespace, row.written)?;
    batch.raise_epoch = true;
    Ok(Removed::Removed)
}

fn count(
    batch: &mut Batch<'_>,
    namespace: &Arc<str>,
    counters: &Counters,
    presented: &[(Hash, u64)],
) -> Result<(), Failed> {
    let id = batch.namespace(namespace)?;
    for (name, value) in counters.named().into_iter().filter(|(_, value)| *value > 0) {
        // Added up here, since SQLite's own sum would turn into a float beyond 64 bits.
        let before: Option<i64> = batch
            .conn
            .prepare_cached("SELECT value FROM counters WHERE namespace = ?1 AND name = ?2")?
            .query_row(params![id, name], |row| row.get(0))
            .optional()?;
        batch
            .conn
            .prepare_cached("INSERT OR REPLACE INTO counters (namespace, name, value) VALUES (?1, ?2, ?3)")?
            .execute(params![id, name, before.unwrap_or(0).saturating_add(to_i64(value))])?;
    }
    for (hash, count) in presented {
        batch
            .conn
            .prepare_cached("UPDATE records SET presented = min(presented + ?2, 9007199254740991) WHERE hash = ?1")?
            .execute(params![hash, to_i64(*count).min(1 << 52)])?;
    }
    Ok(())
}
