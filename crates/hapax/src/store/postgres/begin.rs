//! Begins: many in one statement.
//!
//! An insert that does nothing where a row is finds out which keys are new,
//! without locking what is there. Only then is looked at what stands in the
//! way, in a statement of its own, so that it sees what has been committed
//! meanwhile. Where replays are to be expected it is looked first. Rows that read as absent are removed, and those begins done again.
//!
//! Invariants: a begin that is told `Started` has its row committed; its own row
//! found by a repeated begin is its own; a take-over names the attempt that it
//! takes over, in the statement itself.

use std::sync::Arc;

use hashbrown::HashMap;
use uuid::Uuid;

use super::columns::{Column, arrays, firsts};
use super::error::Failed;
use super::queue::BeginJob;
use super::room::{self, Made};
use super::row::{Row, lock_of, millis, read, same_key, space_tag, tag, text_in, to_u64, uuid};
use super::session::Session;
use super::{Shared, wire_tags};
use crate::store::shared::Asked;
use crate::store::{Begin, Begun, StoreError};
use crate::{AttemptId, Json, State, Timestamp};

/// A transaction has this long from its begin to its lock, in milliseconds; until then its row alone counts.
pub(super) const TX_GRACE: i64 = 2_000;

/// Carries begins out; see [`Job::step`](super::queue::Job::step).
pub(super) async fn step(shared: &Arc<Shared>, session: &Session, jobs: &mut Vec<BeginJob>) -> Result<(), Failed> {
    take_over(shared, session, jobs).await?;
    // In the order of their hashes: see the statement.
    jobs.sort_unstable_by_key(|job| job.common.hash);
    // They are alike in it, see [`Job::goes_with`](super::queue::Job::goes_with).
    let capacity = jobs.first().and_then(|job| job.op.capacity);
    if let Some(capacity) = capacity.filter(|capacity| !shared.room.is_ample(*capacity, jobs.len())) {
        return room::begin_within(shared, session, jobs, capacity).await;
    }
    let begins = jobs.len();
    if shared.foresight.expects_records() {
        let found = rows_of(shared, session, jobs).await?;
        let _ = answer_found(shared, session, jobs, found).await?;
        shared.foresight.learn(begins, begins.saturating_sub(jobs.len()));
        let began = insert(shared, session, jobs).await?;
        answer_begun(jobs, &began, &HashMap::default());
    } else {
        let began = insert(shared, session, jobs).await?;
        answer_begun(jobs, &began, &HashMap::default());
        shared.foresight.learn(begins, jobs.len());
    }
    stand_in_the_way(shared, session, jobs).await
}

/// Takes over what is in doubt by the attempt that a job names; those that could not go the way of all others.
async fn take_over(shared: &Arc<Shared>, session: &Session, jobs: &mut Vec<BeginJob>) -> Result<(), Failed> {
    let mut at = 0;
    while let Some(job) = jobs.get_mut(at) {
        let Some(over) = job.op.take_over.filter(|_| !std::mem::replace(&mut job.tried_over, true)) else {
            at += 1;
            continue;
        };
        let op = &job.op;
        let label = op.owner.label.as_deref().map(text_in);
        let rows = session
            .query(
                &shared.sql.take_over,
                &[
                    &job.common.hash,
                    &uuid(over),
                    &uuid(op.attempt),
                    &millis(op.lease),
                    &text_in(&op.owner.host),
                    &i64::from(op.owner.pid),
                    &label,
                ],
            )
            .await?;
        let Some(row) = rows.first() else {
            at += 1;
            continue;
        };
        let (attempts, started_at): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let job = jobs.swap_remove(at);
        shared.watch.wake(&job.common.hash);
        answer(job, Ok(started(to_u64(attempts), Timestamp::from_millis(started_at), Made::default())));
    }
    Ok(())
}

fn started(attempts: u64, started_at: Timestamp, made: Made) -> Begun {
    Begun::Started { attempts, started_at, expired: made.expired, evicted: made.evicted }
}

pub(super) fn answer(job: BeginJob, answer: Result<Begun, StoreError>) {
    let _ = job.common.answer.send(answer);
}

/// Inserts rows for these jobs; returns the attempts that began, and when.
pub(super) async fn insert(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &[BeginJob],
) -> Result<HashMap<Uuid, i64>, Failed> {
    let mut began = HashMap::new();
    if jobs.is_empty() {
        return Ok(began);
    }
    let (columns, asked) = (columns(jobs), Asked::now());
    let rows = match jobs.len() {
        1 => session.query(&shared.sql.begin_one, &firsts(&columns)).await?,
        _ => session.query(&shared.sql.begin_many, &arrays(&columns)).await?,
    };
    for row in &rows {
        let at = row.try_get(1)?;
        shared.clock.tell(at, asked);
        began.insert(row.try_get(0)?, at);
    }
    shared.room.began(rows.len());
    Ok(began)
}

/// Answers the jobs that began.
pub(super) fn answer_begun(jobs: &mut Vec<BeginJob>, began: &HashMap<Uuid, i64>, made: &HashMap<AttemptId, Made>) {
    for job in std::mem::take(jobs) {
        match began.get(&uuid(job.op.attempt)) {
            Some(at) => {
                let made = made.get(&job.op.attempt).copied().unwrap_or_default();
                answer(job, Ok(started(1, Timestamp::from_millis(*at), made)));
            }
            None => jobs.push(job),
        }
    }
}

fn columns(jobs: &[BeginJob]) -> Vec<Column<'_>> {
    fn all<'a, T>(jobs: &'a [BeginJob], of: impl Fn(&'a Begin) -> T) -> Vec<T> {
        jobs.iter().map(|job| of(&job.op)).collect()
    }
    let number = |of: &dyn Fn(&Begin) -> Option<i64>| Column::Number(jobs.iter().map(|job| of(&job.op)).collect());
    vec![
        Column::Uuid(jobs.iter().map(|job| job.common.hash).collect()),
        number(&|op| Some(space_tag(&op.namespace))),
        number(&|op| Some(tag(&op.namespace, &op.action_type))),
        number(&|op| Some(tag(&op.namespace, &op.target))),
        number(&|op| op.signal_id.as_ref().map(|s| tag(&op.namespace, s))),
        Column::Uuid(all(jobs, |op| uuid(op.attempt))),
        number(&|op| Some(millis(op.lease))),
        Column::Bytes(all(jobs, |op| &op.fingerprint.as_bytes()[..])),
        Column::Text(all(jobs, |op| Some(text_in(&op.namespace)))),
        Column::Text(all(jobs, |op| Some(op.key.as_str().into()))),
        Column::Text(all(jobs, |op| op.signal_id.as_deref().map(text_in))),
        Column::Text(all(jobs, |op| Some(text_in(&op.action_type)))),
        Column::Text(all(jobs, |op| Some(text_in(&op.target)))),
        Column::Text(all(jobs, |op| Some(text_in(&op.owner.host)))),
        number(&|op| Some(i64::from(op.owner.pid))),
        Column::Text(all(jobs, |op| op.owner.label.as_deref().map(text_in))),
        Column::Text(all(jobs, |op| wire_tags(&op.tags).map(Into::into))),
        Column::Text(all(jobs, |op| op.params.as_ref().map(|p: &Json| p.as_str().into()))),
        Column::Bool(jobs.iter().map(|job| job.in_tx).collect()),
    ]
}

/// The rows under these keys that do not read as absent.
pub(super) async fn rows_of(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &[BeginJob],
) -> Result<HashMap<Uuid, Row>, Failed> {
    let hashes: Vec<Uuid> = jobs.iter().map(|job| job.common.hash).collect();
    let namespaces: HashMap<Uuid, &str> = jobs.iter().map(|job| (job.common.hash, &*job.op.namespace)).collect();
    let (mut found, asked) = (HashMap::new(), Asked::now());
    for row in session.query(&shared.sql.existing, &[&hashes]).await? {
        let hash: Uuid = row.try_get(22)?;
        let namespace = namespaces.get(&hash).copied().unwrap_or_default();
        if let Some(row) = read(&row, namespace)? {
            shared.clock.tell(row.now.as_millis(), asked);
            found.insert(hash, row);
        }
    }
    Ok(found)
}

/// Looks at what stands where an insert did nothing, and answers with it. What reads as absent is
/// removed, and its jobs stay to be done again.
pub(super) async fn stand_in_the_way(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &mut Vec<BeginJob>,
) -> Result<(), Failed> {
    if jobs.is_empty() {
        return Ok(());
    }
    let found = rows_of(shared, session, jobs).await?;
    let absent = answer_found(shared, session, jobs, found).await?;
    if !absent.is_empty() {
        session.query(&shared.sql.drop_expired, &[&absent]).await?;
    }
    Ok(())
}

/// Answers jobs with the rows under their keys; returns the keys that have none, whose jobs stay.
async fn answer_found(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &mut Vec<BeginJob>,
    mut found: HashMap<Uuid, Row>,
) -> Result<Vec<Uuid>, Failed> {
    let mut absent = Vec::new();
    let mut last = HashMap::new();
    for job in jobs.iter() {
        last.insert(job.common.hash, job.op.attempt);
    }
    let mut failed = None;
    for mut job in std::mem::take(jobs) {
        if failed.is_some() {
            jobs.push(job);
            continue;
        }
        // Two jobs of one key share the row: the last of them takes it.
        let row = if last.get(&job.common.hash) == Some(&job.op.attempt) {
            found.remove(&job.common.hash)
        } else {
            found.get(&job.common.hash).map(|row| Row { record: row.record.clone(), ..*row })
        };
        let Some(row) = row else {
            absent.push(job.common.hash);
            jobs.push(job);
            continue;
        };
        let row = match same_key(row, &job.op.key) {
            Ok(row) => row,
            Err(Failed::Store(error)) => {
                answer(job, Err(error));
                continue;
            }
            Err(other) => {
                jobs.push(job);
                failed = Some(other);
                continue;
            }
        };
        if row.record.attempt_id == job.op.attempt {
            answer_mine(shared, job, row);
            continue;
        }
        if row.record.state == State::InDoubt && job.op.take_over == Some(row.record.attempt_id) {
            // In doubt only since it was tried, or what was tried got lost with its connection.
            job.tried_over = false;
            jobs.push(job);
            continue;
        }
        let of_tx = row.in_tx && row.record.state == State::InProgress;
        match if of_tx { is_dead(shared, session, &row).await } else { Ok(false) } {
            Ok(true) => jobs.push(job),
            Ok(false) => answer(job, Ok(Begun::Exists(Box::new(row.record)))),
            Err(error) => {
                jobs.push(job);
                failed = Some(error);
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    Ok(absent)
}

/// The job's own row: it was begun before, and the answer was lost on the way.
fn answer_mine(shared: &Shared, job: BeginJob, row: Row) {
    let begun = match row.record.state {
        State::InProgress => Ok(started(row.record.attempts, row.record.started_at, Made::default())),
        // Its lease has lapsed meanwhile, and others may have seen it in doubt: it cannot be brought back.
        // Who is told that an answer was lost frees the key, since nothing ran.
        State::InDoubt if job.common.sent => Err(StoreError::AnswerLost {
            store: shared.location.clone(),
            message: "the attempt's lease lapsed before the answer to its begin arrived".into(),
        }),
        _ => Ok(Begun::Exists(Box::new(row.record))),
    };
    answer(job, begun);
}

/// Whether a transaction that holds the key has ended without a word; then its row is gone.
async fn is_dead(shared: &Arc<Shared>, session: &Session, row: &Row) -> Result<bool, Failed> {
    let young = row.now.since(row.record.started_at).as_millis() < TX_GRACE.unsigned_abs().into();
    if young || !shared.has_locks.load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(false);
    }
    let attempt = row.record.attempt_id;
    let (_, high, low) = lock_of(attempt);
    let sql = &shared.sql.drop_dead;
    session.query(sql, &[&row.hash, &uuid(attempt), &high, &low, &TX_GRACE]).await?;
    // Whether it went or has just ended in good order: the next look tells.
    let left = session.query(&shared.sql.existing, &[&vec![row.hash]]).await?;
    let stays = match left.first() {
        Some(left) => {
            read(left, "")?.is_some_and(|r| r.record.attempt_id == attempt && r.record.state == State::InProgress)
        }
        None => false,
    };
    if !stays {
        tracing::debug!(key = %row.record.key, %attempt, "its transaction is over; the key is free");
    }
    Ok(!stays)
}
