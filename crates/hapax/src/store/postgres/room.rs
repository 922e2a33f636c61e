//! Room for new records, where `max_entries` limits them.
//!
//! Far below the limit nothing is counted: the last count is good for a second.
//! Near it, begins queue on one row of `hapax_meta`, count, make room and insert
//! in one transaction, so that the limit is kept however many processes begin.
//!
//! Invariants: live records stay; expired ones go before any other; a recorded
//! result that goes before its time raises the epoch in the same transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Shared;
use super::begin::{answer, answer_begun, insert, rows_of, stand_in_the_way};
use super::error::Failed;
use super::queue::BeginJob;
use super::row::{to_i64, to_u64};
use super::session::{Params, Session};
use super::sql::Stmt;
use crate::AttemptId;
use crate::store::{Capacity, OnFull, StoreError};

/// A count is good for this long…
const FRESH: Duration = Duration::from_secs(1);
/// …if this many more fit: more than a fleet adds in that time.
const AMPLE: u64 = 50_000;
/// Rows removed in one statement.
const CHUNK: i64 = 1_000;
/// The most records evicted to make room for one: a larger fifth goes in several steps.
const EVICT_AT_ONCE: u64 = 4_096;

/// What went to make room.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    pub(super) expired: u64,
    pub(super) evicted: u64,
}

/// The last count of records, and those begun here since.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Option<(Instant, u64)>>);

impl Room {
    /// Whether that many more fit for sure.
    pub(super) fn is_ample(&self, capacity: Capacity, more: usize) -> bool {
        let counted = *self.0.lock();
        counted.is_some_and(|(at, total)| {
            at.elapsed() < FRESH && total.saturating_add(more as u64).saturating_add(AMPLE) < capacity.max_entries
        })
    }

    pub(super) fn began(&self, count: usize) {
        if let Some((_, total)) = &mut *self.0.lock() {
            *total = total.saturating_add(count as u64);
        }
    }

    fn counted(&self, total: u64) {
        *self.0.lock() = Some((Instant::now(), total));
    }
}

/// Begins under a limit that is near.
pub(super) async fn begin_within(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &mut Vec<BeginJob>,
    capacity: Capacity,
) -> Result<(), Failed> {
    // Keys that are there need no room.
    let there = rows_of(shared, session, jobs).await?;
    let (mut known, mut fresh): (Vec<_>, Vec<_>) =
        std::mem::take(jobs).into_iter().partition(|job| there.contains_key(&job.common.hash));
    let begun = within(shared, session, &mut fresh, capacity).await;
    jobs.append(&mut known);
    jobs.append(&mut fresh);
    begun?;
    stand_in_the_way(shared, session, jobs).await
}

async fn within(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &mut Vec<BeginJob>,
    capacity: Capacity,
) -> Result<(), Failed> {
    if jobs.is_empty() {
        return Ok(());
    }
    // An expired row under one of these keys is no room taken.
    let hashes: Vec<Uuid> = jobs.iter().map(|job| job.common.hash).collect();
    session.query(&shared.sql.drop_expired, &[&hashes]).await?;
    session.client.batch_execute("BEGIN").await?;
    let planned = match plan(shared, session, jobs, capacity).await {
        Ok(planned) => planned,
        Err(error) => {
            session.client.batch_execute("ROLLBACK").await?;
            return Err(error);
        }
    };
    // What went to make room for those that are refused stays gone: it had expired.
    session.client.batch_execute("COMMIT").await?;
    answer_begun(jobs, &planned.began, &planned.made);
    for job in std::mem::take(jobs) {
        if planned.refused.contains(&job.op.attempt) {
            let full = StoreError::Capacity { store: shared.location.clone(), max_entries: capacity.max_entries };
            answer(job, Err(full));
        } else {
            jobs.push(job);
        }
    }
    Ok(())
}

/// What becomes of begins once it is committed.
#[derive(Debug, Default)]
struct Planned {
    began: HashMap<Uuid, i64>,
    made: HashMap<AttemptId, Made>,
    refused: Vec<AttemptId>,
}

/// Within the transaction: makes room for each in turn, then inserts those that have some.
async fn plan(
    shared: &Arc<Shared>,
    session: &Session,
    jobs: &mut Vec<BeginJob>,
    capacity: Capacity,
) -> Result<Planned, Failed> {
    let mut planned = Planned::default();
    let mut total = lock_and_count(shared, session, capacity, jobs.len()).await?;
    for job in jobs.iter() {
        let made = make(shared, session, capacity, &mut total).await?;
        planned.made.insert(job.op.attempt, made);
        if total >= capacity.max_entries && capacity.on_full == OnFull::Reject {
            planned.refused.push(job.op.attempt);
        } else {
            total += 1;
        }
    }
    let (mut out, mut fit): (Vec<_>, Vec<_>) =
        std::mem::take(jobs).into_iter().partition(|job| planned.refused.contains(&job.op.attempt));
    let began = insert(shared, session, &fit).await;
    jobs.append(&mut fit);
    jobs.append(&mut out);
    planned.began = began?;
    shared.room.counted(total);
    Ok(planned)
}

/// Waits for its turn, then counts; no further than matters.
pub(super) async fn lock_and_count(
    shared: &Arc<Shared>,
    session: &Session,
    capacity: Capacity,
    more: usize,
) -> Result<u64, Failed> {
    session.query(&shared.sql.lock_room, &[]).await?;
    let far = to_i64(capacity.max_entries.saturating_add(more as u64).saturating_add(EVICT_AT_ONCE));
    Ok(to_u64(session.number(&shared.sql.total, &[&far]).await?))
}

/// Makes room for one more record.
pub(super) async fn make(
    shared: &Arc<Shared>,
    session: &Session,
    capacity: Capacity,
    total: &mut u64,
) -> Result<Made, Failed> {
    let mut made = Made::default();
    if *total < capacity.max_entries {
        return Ok(made);
    }
    made.expired = in_chunks(session, &shared.sql.sweep, &[], u64::MAX).await?;
    *total = total.saturating_sub(made.expired);
    if *total < capacity.max_entries || capacity.on_full == OnFull::Reject {
        return Ok(made);
    }
    let fifth = (capacity.max_entries / 5).clamp(1, EVICT_AT_ONCE);
    made.evicted = in_chunks(session, &shared.sql.evict_any, &[], fifth).await?;
    *total = total.saturating_sub(made.evicted);
    if made.evicted > 0 {
        shared.watch.raised();
    }
    Ok(made)
}

/// Repeats a statement, whose last parameter is a number of rows, until one comes back short.
pub(super) async fn in_chunks(
    session: &Session,
    statement: &Stmt,
    params: Params<'_>,
    mut limit: u64,
) -> Result<u64, Failed> {
    let mut total = 0;
    while limit > 0 {
        let chunk = to_i64(limit).min(CHUNK);
        let mut all = params.to_vec();
        all.push(&chunk);
        let gone = session.number(statement, &all).await?;
        total += to_u64(gone);
        limit -= to_u64(chunk);
        if gone < chunk {
            break;
        }
    }
    Ok(total)
}
