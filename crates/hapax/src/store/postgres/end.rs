//! Ends: many in one statement, releases in another.
//!
//! Applied to the rows that their attempts hold; the others are looked at one by
//! one. An end that was sent before and whose answer was lost may have been
//! made, so that what is found then is read in that light:
//! - completed or failed by this attempt: that was it;
//! - a doubt is written again, which changes nothing;
//! - a release finds the key free, as it was to be: done, whoever freed it;
//! - no row, or another's: it may have been made and followed by others, or never
//!   been made. Nobody can tell, and the answer says so.

use std::sync::Arc;

use hashbrown::HashMap;
use tokio_postgres::Row as SqlRow;
use uuid::Uuid;

use super::Shared;
use super::columns::{Column, arrays, firsts};
use super::error::Failed;
use super::queue::EndJob;
use super::row::{COMPLETED, FAILED, IN_DOUBT, Row, millis, read, text_in, ttl_millis, uuid};
use super::session::Session;
use crate::store::shared::{Asked, passed_by};
use crate::store::{End, Ended, StoreError};
use crate::{State, Timestamp};

/// Carries ends out; see [`Job::step`](super::queue::Job::step).
pub(super) async fn step(shared: &Arc<Shared>, session: &Session, jobs: &mut Vec<EndJob>) -> Result<(), Failed> {
    jobs.sort_unstable_by_key(|job| job.common.hash);
    let asked = Asked::now();
    let (releases, records): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| matches!(job.end, End::Release));
    let (recorded, released) = tokio::join!(record(shared, session, &records), release(shared, session, &releases));
    let mut failed = None;
    let mut done = HashMap::new();
    let mut told = Vec::new();
    for rows in [recorded, released] {
        match rows {
            Ok(rows) => {
                for row in &rows {
                    let (at, expires): (i64, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
                    let hash: Uuid = row.try_get(4)?;
                    shared.clock.tell(at, asked);
                    done.insert(row.try_get::<_, Uuid>(0)?, (at, expires));
                    shared.watch.wake(&hash);
                    if row.try_get(3)? {
                        told.push(hash);
                    }
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    if !told.is_empty() {
        shared.tell(told);
    }
    for job in std::mem::take(jobs) {
        match done.get(&uuid(job.attempt)) {
            Some((at, expires)) => {
                let (at, expires_at) = (Timestamp::from_millis(*at), expires.map(Timestamp::from_millis));
                let _ = job.common.answer.send(Ok(Ended::Done { at, expires_at }));
            }
            None => jobs.push(job),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => without_a_row(shared, session, jobs).await,
    }
}

async fn record(shared: &Arc<Shared>, session: &Session, jobs: &[&EndJob]) -> Result<Vec<SqlRow>, Failed> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (mut kinds, mut bodies, mut ttls, mut durations) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        let (kind, body, ttl, duration) = match &job.end {
            End::Complete { result, ttl, duration } => {
                (COMPLETED, Some(result.as_str().into()), ttl_millis(*ttl), Some(millis(*duration)))
            }
            End::Fail { error, ttl, duration } => {
                (FAILED, Some(text_in(error)), ttl_millis(*ttl), Some(millis(*duration)))
            }
            End::Doubt { reason } => (IN_DOUBT, Some(text_in(reason)), None, None),
            End::Release => continue,
        };
        kinds.push(kind);
        bodies.push(body);
        ttls.push(ttl);
        durations.push(duration);
    }
    let columns = [
        Column::Uuid(jobs.iter().map(|job| job.common.hash).collect()),
        Column::Uuid(jobs.iter().map(|job| uuid(job.attempt)).collect()),
        Column::Small(kinds),
        Column::Text(bodies),
        Column::Number(ttls),
        Column::Number(durations),
    ];
    match jobs.len() {
        1 => session.query(&shared.sql.end_one, &firsts(&columns)).await,
        _ => session.query(&shared.sql.end_many, &arrays(&columns)).await,
    }
}

async fn release(shared: &Arc<Shared>, session: &Session, jobs: &[&EndJob]) -> Result<Vec<SqlRow>, Failed> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let hashes: Vec<Uuid> = jobs.iter().map(|job| job.common.hash).collect();
    let attempts: Vec<Uuid> = jobs.iter().map(|job| uuid(job.attempt)).collect();
    session.query(&shared.sql.release_many, &[&hashes, &attempts]).await
}

/// Those whose attempt held no live row.
async fn without_a_row(shared: &Arc<Shared>, session: &Session, jobs: &mut Vec<EndJob>) -> Result<(), Failed> {
    if jobs.is_empty() {
        return Ok(());
    }
    let hashes: Vec<Uuid> = jobs.iter().map(|job| job.common.hash).collect();
    let mut found = HashMap::new();
    let mut now = None;
    for row in session.query(&shared.sql.existing, &[&hashes]).await? {
        now = Some(Timestamp::from_millis(row.try_get(23)?));
        if let Some(row) = read(&row, "")? {
            found.insert(row.hash, row);
        }
    }
    let now = match now {
        Some(now) => now,
        None => Timestamp::from_millis(session.number(&shared.sql.now, &[]).await?),
    };
    for job in std::mem::take(jobs) {
        match judge(shared, &job, found.get(&job.common.hash), now) {
            Some(answer) => {
                let _ = job.common.answer.send(answer);
            }
            None => jobs.push(job),
        }
    }
    Ok(())
}

/// What the attempt is told; nothing, if its row is live after all and the end is to be tried again.
fn judge(shared: &Shared, job: &EndJob, row: Option<&Row>, now: Timestamp) -> Option<Result<Ended, StoreError>> {
    let record = row.map(|row| &row.record);
    let mine = record.filter(|record| record.attempt_id == job.attempt);
    let sent = job.common.sent;
    Some(match (&job.end, mine.map(|record| (record, record.state))) {
        (_, Some((_, State::InProgress | State::InDoubt))) => return None,
        // The same end again: its first answer was lost on the way.
        (End::Complete { .. }, Some((record, State::Completed)))
        | (End::Fail { .. }, Some((record, State::Failed))) => {
            Ok(Ended::Done { at: record.executed_at.unwrap_or(now), expires_at: record.expires_at })
        }
        // It may have been left first, and ended by this attempt's late answer.
        (End::Doubt { .. }, Some(_)) if sent => Err(passed_by(&shared.location)),
        (_, Some((_, state))) => Ok(Ended::Lost(Some(state))),
        (End::Release, None) if sent && record.is_none() => Ok(Ended::Done { at: now, expires_at: None }),
        (_, None) if sent => Err(passed_by(&shared.location)),
        (_, None) => Ok(Ended::Lost(record.map(|record| record.state))),
    })
}
