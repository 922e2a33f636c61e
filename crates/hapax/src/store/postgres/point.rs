//! Everything but begins and ends: one operation at a time on a shared,
//! pipelining connection, with what each may do after its answer was lost.
//!
//! Invariants: every change of a live row names its attempt id or asks for a
//! doubt; what cannot be recognised when it is done twice is not done twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use uuid::Uuid;

use super::error::{Failed, Meaning, answer_lost, meaning, store_error, timed_out};
use super::room::{self, Made, in_chunks};
use super::row::{Row, hash_of, millis, read, same_key, space_tag, tag, text_in, to_i64, to_u64, ttl_millis, uuid};
use super::session::{Link, Session};
use super::{Shared, look};
use crate::store::shared::{Asked, passed_by};
use crate::store::{Beat, Census, Counters, Filter, Mark, Marked, Page, Removed, Settled, Settlement, StoreError};
use crate::{AttemptId, Key, Record, State, Timestamp};

/// What is asked for.
#[derive(Debug)]
pub(super) enum Op {
    Now,
    Heartbeat { namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)> },
    Settle { namespace: Arc<str>, key: Key, attempt: Option<AttemptId>, becomes: AttemptId, settlement: Settlement },
    Mark(Box<Mark>),
    Get { namespace: Arc<str>, key: Key },
    Remove { namespace: Arc<str>, key: Key },
    Clear { namespace: Arc<str> },
    Sweep { limit: usize },
    Evict { namespace: Arc<str>, count: u64 },
    Query { namespace: Arc<str>, filter: Box<Filter>, cursor: Option<String>, limit: usize },
    Count { namespace: Arc<str>, counters: Box<Counters>, presented: Vec<(Key, u64)> },
    Counters { namespace: Arc<str> },
    Reset { namespace: Arc<str> },
    Census { namespace: Arc<str> },
    Tell { channel: String, hashes: Vec<Uuid> },
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Answer {
    Now(Timestamp),
    Beats(Vec<Beat>),
    Settled(Settled),
    Marked(Marked),
    Record(Option<Box<Record>>),
    Removed(Removed),
    Number(u64),
    Page(Page),
    Counters(Counters),
    Census(Census),
    Nothing,
}

/// What may be done after an answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// It only reads.
    Reads,
    /// It is recognised, or changes nothing the second time.
    Recognised,
    /// It would be done twice.
    Never,
}

impl Op {
    fn again(&self) -> Again {
        match self {
            Self::Now | Self::Get { .. } | Self::Query { .. } | Self::Counters { .. } | Self::Census { .. } => {
                Again::Reads
            }
            Self::Evict { .. } | Self::Count { .. } => Again::Never,
            // Not said of which attempt: a second time could be about the next one.
            Self::Remove { .. } | Self::Clear { .. } | Self::Settle { attempt: None, .. } => Again::Never,
            _ => Again::Recognised,
        }
    }

    fn is_long(&self) -> bool {
        matches!(
            self,
            Self::Clear { .. }
                | Self::Sweep { .. }
                | Self::Evict { .. }
                | Self::Query { .. }
                | Self::Count { .. }
                | Self::Counters { .. }
                | Self::Census { .. }
        )
    }
}

/// Carries an operation out, again after a lost connection, until its limit.
pub(super) async fn carry_out(shared: &Arc<Shared>, op: Op) -> Result<Answer, StoreError> {
    // A mark within a limit is a transaction: alone on its connection.
    let link: &Link = match &op {
        Op::Mark(mark) if mark.capacity.is_some() => &shared.marks,
        op if op.is_long() => &shared.scans,
        _ => &shared.points,
    };
    let _alone = match &op {
        Op::Mark(mark) if mark.capacity.is_some() => Some(shared.marking.lock().await),
        _ => None,
    };
    let limit = shared.options.command_limit;
    let until = Instant::now() + limit;
    let mut sent = false;
    let lost = |sent: bool, error: StoreError| {
        if sent && op.again() != Again::Reads { answer_lost(&shared.location, &error) } else { error }
    };
    loop {
        let session = link.session(shared, until).await.map_err(|error| lost(sent, error))?;
        let error = match tokio::time::timeout_at(until.into(), op.apply(shared, &session, sent)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => {
                link.lost(&session).await;
                return Err(lost(true, timed_out(&shared.location, limit)));
            }
        };
        let waited = || StoreError::Busy { store: shared.location.clone(), waited: limit };
        match error {
            Failed::Store(error) => return Err(lost(sent, error)),
            Failed::Again if Instant::now() < until => tokio::time::sleep(Duration::from_millis(1)).await,
            Failed::Again => return Err(lost(sent, waited())),
            Failed::Sql(error) => match meaning(&error) {
                Meaning::Refused => return Err(lost(sent, store_error(&shared.location, &error))),
                Meaning::RolledBack if Instant::now() < until => tokio::time::sleep(Duration::from_millis(5)).await,
                Meaning::RolledBack => return Err(lost(sent, waited())),
                Meaning::Gone => {
                    link.lost(&session).await;
                    let error = store_error(&shared.location, &error);
                    sent = true;
                    if op.again() == Again::Never || Instant::now() >= until {
                        return Err(lost(true, error));
                    }
                }
            },
        }
    }
}

impl Op {
    async fn apply(&self, shared: &Arc<Shared>, session: &Session, sent: bool) -> Result<Answer, Failed> {
        let sql = &shared.sql;
        Ok(match self {
            Self::Now => {
                let asked = Asked::now();
                let now = session.number(&sql.now, &[]).await?;
                shared.clock.tell(now, asked);
                Answer::Now(Timestamp::from_millis(now))
            }
            Self::Heartbeat { namespace, beats } => Answer::Beats(heartbeat(shared, session, namespace, beats).await?),
            Self::Settle { namespace, key, attempt, becomes, settlement } => {
                let of = (namespace, key, *attempt, *becomes);
                Answer::Settled(settle(shared, session, of, settlement, sent).await?)
            }
            Self::Mark(op) => Answer::Marked(mark(shared, session, op, sent).await?),
            Self::Get { namespace, key } => {
                Answer::Record(find(shared, session, namespace, key).await?.map(|row| Box::new(row.record)))
            }
            Self::Remove { namespace, key } => Answer::Removed(remove(shared, session, namespace, key).await?),
            Self::Clear { namespace } => Answer::Number(clear(shared, session, namespace).await?),
            Self::Sweep { limit } => {
                let gone = in_chunks(session, &sql.sweep, &[], *limit as u64).await?;
                // These were absent too, but never recorded anything: not counted.
                session.number(&sql.sweep_dead, &[&1000_i64]).await?;
                Answer::Number(gone)
            }
            Self::Evict { namespace, count } => {
                let (space, name) = (space_tag(namespace), text_in(namespace));
                let gone = in_chunks(session, &sql.evict, &[&space, &name], *count).await?;
                shared.watch.raised();
                Answer::Number(gone)
            }
            Self::Query { namespace, filter, cursor, limit } => {
                Answer::Page(look::page(shared, session, namespace, filter, cursor.as_deref(), *limit).await?)
            }
            Self::Count { namespace, counters, presented } => {
                count(shared, session, namespace, counters, presented).await?;
                Answer::Nothing
            }
            Self::Counters { namespace } => Answer::Counters(look::counters(shared, session, namespace).await?),
            Self::Reset { namespace } => {
                session.query(&sql.reset_counters, &[&text_in(namespace)]).await?;
                Answer::Nothing
            }
            Self::Census { namespace } => Answer::Census(look::census(shared, session, namespace).await?),
            Self::Tell { channel, hashes } => {
                let words: Vec<String> = hashes.iter().map(ToString::to_string).collect();
                session.query(&sql.notify, &[channel, &words]).await?;
                Answer::Nothing
            }
        })
    }
}

/// The row under a key, unless it reads as absent.
pub(super) async fn find(
    shared: &Arc<Shared>,
    session: &Session,
    namespace: &Arc<str>,
    key: &Key,
) -> Result<Option<Row>, Failed> {
    let rows = session.query(&shared.sql.existing, &[&vec![hash_of(namespace, key)]]).await?;
    match rows.first() {
        Some(row) => read(row, namespace)?.map(|row| same_key(row, key)).transpose(),
        None => Ok(None),
    }
}

async fn heartbeat(
    shared: &Arc<Shared>,
    session: &Session,
    namespace: &Arc<str>,
    beats: &[(Key, AttemptId, Duration)],
) -> Result<Vec<Beat>, Failed> {
    // In the order of hashes, as all statements that change several rows.
    let mut asked: Vec<(Uuid, Uuid, i64)> =
        beats.iter().map(|(key, attempt, lease)| (hash_of(namespace, key), uuid(*attempt), millis(*lease))).collect();
    asked.sort_unstable();
    let hashes: Vec<Uuid> = asked.iter().map(|a| a.0).collect();
    let attempts: Vec<Uuid> = asked.iter().map(|a| a.1).collect();
    let leases: Vec<i64> = asked.iter().map(|a| a.2).collect();
    let mut answers: HashMap<(Uuid, Uuid), Beat> = HashMap::new();
    for row in session.query(&shared.sql.heartbeat, &[&hashes, &attempts, &leases]).await? {
        answers.insert((row.try_get(0)?, row.try_get(1)?), Beat::Renewed);
    }
    let rest: Vec<Uuid> = asked.iter().filter(|a| !answers.contains_key(&(a.0, a.1))).map(|a| a.0).collect();
    if !rest.is_empty() {
        for row in session.query(&shared.sql.existing, &[&rest]).await? {
            if let Some(row) = read(&row, namespace)?
                && row.record.state == State::InDoubt
            {
                answers.entry((row.hash, uuid(row.record.attempt_id))).or_insert(Beat::Lapsed);
            }
        }
    }
    let answer = |(key, attempt, _): &(Key, AttemptId, Duration)| {
        answers.get(&(hash_of(namespace, key), uuid(*attempt))).copied().unwrap_or(Beat::Lost)
    };
    Ok(beats.iter().map(answer).collect())
}

async fn settle(
    shared: &Arc<Shared>,
    session: &Session,
    (namespace, key, attempt, becomes): (&Arc<str>, &Key, Option<AttemptId>, AttemptId),
    settlement: &Settlement,
    sent: bool,
) -> Result<Settled, Failed> {
    let (hash, of) = (hash_of(namespace, key), attempt.map(uuid));
    let changed = match settlement {
        Settlement::Happened { result, ttl } => {
            // A new id fences off the attempt: its late answer must not count.
            let (becomes, ttl) = (uuid(becomes), ttl_millis(*ttl));
            session.query(&shared.sql.settle_happened, &[&hash, &of, &becomes, &result.as_str(), &ttl]).await?
        }
        Settlement::NotHappened => session.query(&shared.sql.settle_not_happened, &[&hash, &of]).await?,
    };
    if let Some(row) = changed.first() {
        shared.watch.wake(&hash);
        return Ok(match settlement {
            Settlement::Happened { .. } => Settled::Done(read(row, namespace)?.map(|row| Box::new(row.record))),
            Settlement::NotHappened => Settled::Done(None),
        });
    }
    let found = find(shared, session, namespace, key).await?.map(|row| Box::new(row.record));
    Ok(match (settlement, found) {
        // Sent before, and its answer lost: that was it.
        (Settlement::Happened { .. }, Some(record)) if record.attempt_id == becomes => Settled::Done(Some(record)),
        // As it was to be, whoever settled it.
        (Settlement::NotHappened, None) if sent => Settled::Done(None),
        // While that attempt holds the key, the first time has changed nothing.
        (_, found) if sent && found.as_ref().is_none_or(|record| attempt != Some(record.attempt_id)) => {
            return Err(passed_by(&shared.location).into());
        }
        (_, Some(record)) if record.state == State::InDoubt && attempt.is_none_or(|a| a == record.attempt_id) => {
            // Its lease has lapsed between the two statements.
            return Err(Failed::Again);
        }
        (_, found) => Settled::NotInDoubt(found),
    })
}

async fn mark(shared: &Arc<Shared>, session: &Session, op: &Mark, sent: bool) -> Result<Marked, Failed> {
    let (namespace, hash) = (&op.namespace, hash_of(&op.namespace, &op.key));
    if let Some(row) = find(shared, session, namespace, &op.key).await? {
        if row.record.attempt_id == op.attempt {
            // Sent before, and its answer lost.
            return Ok(Marked::recorded(Box::new(row.record)));
        }
        if row.record.state != State::InDoubt {
            if sent {
                return Err(passed_by(&shared.location).into());
            }
            return Ok(Marked::Exists(Box::new(row.record)));
        }
        let (doubt, becomes, ttl) = (Some(uuid(row.record.attempt_id)), uuid(op.attempt), ttl_millis(op.ttl));
        let sql = &shared.sql.settle_happened;
        let rows = session.query(sql, &[&hash, &doubt, &becomes, &op.result.as_str(), &ttl]).await?;
        shared.watch.wake(&hash);
        let row = rows.first().map(|row| read(row, namespace)).transpose()?.flatten();
        return row.map(|row| Marked::recorded(Box::new(row.record))).ok_or(Failed::Again);
    }
    session.query(&shared.sql.drop_expired, &[&vec![hash]]).await?;
    let (row, room) = match op.capacity {
        None => (mark_new(shared, session, op, hash).await?, Made::default()),
        Some(capacity) => {
            session.client.batch_execute("BEGIN").await?;
            let made = async {
                let mut total = room::lock_and_count(shared, session, capacity, 1).await?;
                let room = room::make(shared, session, capacity, &mut total).await?;
                if total >= capacity.max_entries && capacity.on_full == crate::store::OnFull::Reject {
                    let store = shared.location.clone();
                    return Err(StoreError::Capacity { store, max_entries: capacity.max_entries }.into());
                }
                Ok((mark_new(shared, session, op, hash).await?, room))
            };
            let made = made.await;
            // Expired records that went stay gone, whether or not that was enough.
            let sql_failed = matches!(&made, Err(Failed::Sql(_)));
            session.client.batch_execute(if sql_failed { "ROLLBACK" } else { "COMMIT" }).await?;
            made?
        }
    };
    let Made { expired, evicted } = room;
    row.map(|row| Marked::Recorded { record: Box::new(row.record), expired, evicted }).ok_or(Failed::Again)
}

async fn mark_new(shared: &Arc<Shared>, session: &Session, op: &Mark, hash: Uuid) -> Result<Option<Row>, Failed> {
    let signal = op.signal_id.as_ref().map(|s| tag(&op.namespace, s));
    let rows = session
        .query(
            &shared.sql.mark_new,
            &[
                &hash,
                &space_tag(&op.namespace),
                &tag(&op.namespace, &op.action_type),
                &tag(&op.namespace, &op.target),
                &signal,
                &uuid(op.attempt),
                &ttl_millis(op.ttl),
                &&op.fingerprint.as_bytes()[..],
                &text_in(&op.namespace),
                &op.key.as_str(),
                &op.signal_id.as_deref().map(text_in),
                &text_in(&op.action_type),
                &text_in(&op.target),
                &text_in(&op.owner.host),
                &i64::from(op.owner.pid),
                &op.owner.label.as_deref().map(text_in),
                &op.params.as_ref().map(crate::Json::as_str),
                &op.result.as_str(),
            ],
        )
        .await?;
    shared.watch.wake(&hash);
    Ok(rows.first().map(|row| read(row, &op.namespace)).transpose()?.flatten())
}

async fn remove(shared: &Arc<Shared>, session: &Session, namespace: &Arc<str>, key: &Key) -> Result<Removed, Failed> {
    let hash = hash_of(namespace, key);
    if let Some(row) = session.query(&shared.sql.remove, &[&hash]).await?.first() {
        shared.watch.raised();
        let expired: bool = row.try_get(0)?;
        return Ok(if expired { Removed::Absent } else { Removed::Removed });
    }
    match find(shared, session, namespace, key).await? {
        // Recorded between the two statements.
        Some(row) if row.record.state.is_recorded() => Err(Failed::Again),
        Some(row) => Ok(Removed::Kept(Box::new(row.record))),
        None => Ok(Removed::Absent),
    }
}

/// In pieces that hold their locks for a moment only; what is recorded meanwhile stays.
async fn clear(shared: &Arc<Shared>, session: &Session, namespace: &Arc<str>) -> Result<u64, Failed> {
    const PIECE: i64 = 5_000;
    let (space, name) = (space_tag(namespace), text_in(namespace));
    let last = session.number(&shared.sql.last_id, &[&space]).await?;
    let mut total = 0;
    loop {
        let rows = session.query(&shared.sql.clear, &[&space, &name, &last, &PIECE]).await?;
        shared.watch.raised();
        let Some(row) = rows.first() else { return Ok(total) };
        total += to_u64(row.try_get(0)?);
        if row.try_get::<_, i64>(1)? < PIECE {
            return Ok(total);
        }
    }
}

async fn count(
    shared: &Arc<Shared>,
    session: &Session,
    namespace: &Arc<str>,
    counters: &Counters,
    presented: &[(Key, u64)],
) -> Result<(), Failed> {
    let (names, values): (Vec<&str>, Vec<i64>) =
        counters.named().into_iter().filter(|(_, value)| *value > 0).map(|(name, value)| (name, to_i64(value))).unzip();
    if !names.is_empty() {
        session.query(&shared.sql.count, &[&text_in(namespace), &names, &values]).await?;
    }
    let mut of: HashMap<Uuid, i64> = HashMap::new();
    for (key, count) in presented {
        let sum = of.entry(hash_of(namespace, key)).or_default();
        *sum = sum.saturating_add(to_i64(*count).min(1 << 52)).min(1 << 52);
    }
    let mut of: Vec<(Uuid, i64)> = of.into_iter().collect();
    of.sort_unstable();
    for part in of.chunks(1_000) {
        let (hashes, counts): (Vec<Uuid>, Vec<i64>) = part.iter().copied().unzip();
        // Statistics of one key each: not worth an error once the sums are written.
        if let Err(error) = session.query(&shared.sql.presented, &[&hashes, &counts]).await {
            tracing::debug!(store = %shared.location, ?error, "how often keys were presented could not be counted");
        }
    }
    Ok(())
}
