//! Workers: each takes what waits in the queue and carries it out on a
//! connection of its own, begins and ends side by side.
//!
//! A job whose answer was lost goes back to the queue, marked as sent: begun or
//! ended a second time by the same attempt id it is recognised. Past its limit
//! it is told that its answer was lost, or, if it was never sent, that the
//! server is not available. Invariant: no job is dropped without an answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::error::{Failed, Meaning, answer_lost, meaning, store_error, timed_out};
use super::queue::Job;
use super::session::{Link, Session};
use crate::store::StoreError;

/// After this many rounds the clock is looked at: the rows change under the jobs again and again.
const ROUNDS: u64 = 50;

/// Works until the queue is closed and empty.
pub(super) async fn work(shared: Arc<Shared>, link: Link) {
    while let Some(batch) = shared.queue.next().await {
        let begins = batch.begins.iter().map(|job| job.common.until);
        let first = begins.chain(batch.ends.iter().map(|job| job.common.until)).min();
        let session = match link.session(&shared, first.unwrap_or_else(Instant::now)).await {
            Ok(session) => session,
            Err(error) => {
                give_up_or_put_back(&shared, batch.begins, &error);
                give_up_or_put_back(&shared, batch.ends, &error);
                continue;
            }
        };
        let begins = carry_out(&shared, &session, batch.begins);
        let ends = carry_out(&shared, &session, batch.ends);
        let (first, second) = tokio::join!(begins, ends);
        if first == Line::Lost || second == Line::Lost {
            link.lost(&session).await;
        }
    }
}

/// Whether the connection is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Good,
    Lost,
}

async fn carry_out<J: Job>(shared: &Arc<Shared>, session: &Arc<Session>, mut jobs: Vec<J>) -> Line {
    // Each alone, after one of them has spoilt the statement for all.
    let mut alone: Vec<J> = Vec::new();
    let limit = shared.options.command_limit;
    for round in 0_u64.. {
        if jobs.is_empty() {
            match alone.pop() {
                Some(job) => jobs.push(job),
                None => break,
            }
        }
        // A step takes jobs out of the list as it answers them; what is left is to be done again.
        let error = match tokio::time::timeout(limit, J::step(shared, session, &mut jobs)).await {
            Ok(Ok(())) => {
                if round >= ROUNDS {
                    jobs = overdue(shared, jobs);
                }
                continue;
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let error = timed_out(&shared.location, limit);
                give_up(shared, jobs, alone, &error);
                return Line::Lost;
            }
        };
        match error {
            Failed::Again => {
                tokio::time::sleep(Duration::from_millis(round.min(20))).await;
                jobs = overdue(shared, jobs);
            }
            Failed::Store(error) => refused(shared, &mut jobs, &mut alone, &error),
            Failed::Sql(error) => match meaning(&error) {
                Meaning::RolledBack => {
                    tokio::time::sleep(Duration::from_millis(round.min(20))).await;
                    jobs = overdue(shared, jobs);
                }
                Meaning::Refused => refused(shared, &mut jobs, &mut alone, &store_error(&shared.location, &error)),
                Meaning::Gone => {
                    let error = store_error(&shared.location, &error);
                    tracing::debug!(store = %shared.location, %error, jobs = jobs.len(), "connection lost; done again");
                    give_up(shared, jobs, alone, &error);
                    return Line::Lost;
                }
            },
        }
    }
    Line::Good
}

/// A statement for several was refused: each gets one of its own. One alone gets the error.
fn refused<J: Job>(shared: &Shared, jobs: &mut Vec<J>, alone: &mut Vec<J>, error: &StoreError) {
    if jobs.len() > 1 {
        alone.append(jobs);
    } else if let Some(job) = jobs.pop() {
        fail(shared, job, error);
    }
}

/// Fails a job; one that was sent before may have been carried out.
fn fail<J: Job>(shared: &Shared, job: J, error: &StoreError) {
    let error = if job.common().sent { answer_lost(&shared.location, error) } else { error.clone() };
    job.fail(error);
}

/// After the connection was lost: these may have been carried out, the others were not sent.
fn give_up<J: Job>(shared: &Arc<Shared>, mut sent: Vec<J>, mut unsent: Vec<J>, error: &StoreError) {
    sent.iter_mut().for_each(|job| job.common_mut().sent = true);
    sent.append(&mut unsent);
    give_up_or_put_back(shared, sent, error);
}

/// Fails those whose time is over with what stood in their way, and puts the others back.
fn give_up_or_put_back<J: Job>(shared: &Arc<Shared>, jobs: Vec<J>, error: &StoreError) {
    let now = Instant::now();
    let (late, left): (Vec<J>, Vec<J>) = jobs.into_iter().partition(|job| job.common().until <= now);
    for job in late {
        fail(shared, job, error);
    }
    shared.queue.put_back(left);
}

/// Fails those whose time is over although the server answers: others are always quicker.
fn overdue<J: Job>(shared: &Arc<Shared>, jobs: Vec<J>) -> Vec<J> {
    let now = Instant::now();
    let (late, left): (Vec<J>, Vec<J>) = jobs.into_iter().partition(|job| job.common().until <= now);
    for job in late {
        let waited = shared.options.command_limit;
        fail(shared, job, &StoreError::Busy { store: shared.location.clone(), waited });
    }
    left
}
