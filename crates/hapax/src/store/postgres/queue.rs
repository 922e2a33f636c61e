//! The queue of begins and ends, from which workers take many at once.
//!
//! While one statement is on its way, what arrives waits here and goes into the
//! next: the more callers, the larger the statements, and the fewer the commits.
//! Invariants: a job is in the queue or with one worker; a batch holds an
//! attempt at most once, so that each answer has one owner; the queue is bounded.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::Shared;
use super::error::Failed;
use super::session::Session;
use crate::store::{Begin, Begun, End, Ended, StoreError};
use crate::{AttemptId, Json};

/// The most operations that wait.
pub(super) const QUEUE_LIMIT: usize = 16_384;
/// The most begins, and the most ends, in one statement.
const BATCH: usize = 128;
/// The most bytes of params or results in one statement, unless a single one is larger.
const BATCH_BYTES: usize = 4 << 20;

/// A begin to be made.
#[derive(Debug)]
pub(super) struct BeginJob {
    pub(super) op: Box<Begin>,
    /// Whether the attempt is a transaction.
    pub(super) in_tx: bool,
    /// Whether the take-over has been tried.
    pub(super) tried_over: bool,
    pub(super) common: Common<Begun>,
}

/// An end to be made.
#[derive(Debug)]
pub(super) struct EndJob {
    pub(super) attempt: AttemptId,
    pub(super) end: End,
    pub(super) common: Common<Ended>,
}

/// What every job has.
#[derive(Debug)]
pub(super) struct Common<T> {
    pub(super) hash: Uuid,
    pub(super) until: Instant,
    /// Whether it was sent before without an answer, so that it may have been made.
    pub(super) sent: bool,
    pub(super) answer: oneshot::Sender<Result<T, StoreError>>,
}

/// What [`Job::step`] returns.
pub(super) type StepFuture<'a> = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send + 'a>>;

pub(super) trait Job: Send + Sized {
    type Answer;
    fn attempt(&self) -> AttemptId;
    fn bytes(&self) -> usize;
    /// Whether one statement may do both.
    fn goes_with(&self, _other: &Self) -> bool {
        true
    }
    fn common(&self) -> &Common<Self::Answer>;
    fn common_mut(&mut self) -> &mut Common<Self::Answer>;
    fn into_common(self) -> Common<Self::Answer>;
    fn lane(queue: &mut Lanes) -> &mut VecDeque<Self>;
    /// Carries jobs out, taking each out of the list as it is answered.
    fn step<'a>(shared: &'a Arc<Shared>, session: &'a Session, jobs: &'a mut Vec<Self>) -> StepFuture<'a>;

    fn fail(self, error: StoreError) {
        let _ = self.into_common().answer.send(Err(error));
    }
}

impl Job for BeginJob {
    type Answer = Begun;

    fn attempt(&self) -> AttemptId {
        self.op.attempt
    }
    fn bytes(&self) -> usize {
        self.op.params.as_ref().map_or(0, |p: &Json| p.as_str().len())
    }
    fn goes_with(&self, other: &Self) -> bool {
        // Managers that share a store may have limits of their own.
        self.op.capacity == other.op.capacity
    }
    fn common(&self) -> &Common<Begun> {
        &self.common
    }
    fn common_mut(&mut self) -> &mut Common<Begun> {
        &mut self.common
    }
    fn into_common(self) -> Common<Begun> {
        self.common
    }
    fn lane(queue: &mut Lanes) -> &mut VecDeque<Self> {
        &mut queue.begins
    }
    fn step<'a>(shared: &'a Arc<Shared>, session: &'a Session, jobs: &'a mut Vec<Self>) -> StepFuture<'a> {
        Box::pin(super::begin::step(shared, session, jobs))
    }
}

impl Job for EndJob {
    type Answer = Ended;

    fn attempt(&self) -> AttemptId {
        self.attempt
    }
    fn bytes(&self) -> usize {
        match &self.end {
            End::Complete { result, .. } => result.as_str().len(),
            End::Fail { error, .. } => error.len(),
            End::Doubt { reason } => reason.len(),
            End::Release => 0,
        }
    }
    fn common(&self) -> &Common<Ended> {
        &self.common
    }
    fn common_mut(&mut self) -> &mut Common<Ended> {
        &mut self.common
    }
    fn into_common(self) -> Common<Ended> {
        self.common
    }
    fn lane(queue: &mut Lanes) -> &mut VecDeque<Self> {
        &mut queue.ends
    }
    fn step<'a>(shared: &'a Arc<Shared>, session: &'a Session, jobs: &'a mut Vec<Self>) -> StepFuture<'a> {
        Box::pin(super::end::step(shared, session, jobs))
    }
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    begins: VecDeque<BeginJob>,
    ends: VecDeque<EndJob>,
    /// Workers that have nothing to do.
    idle: usize,
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    // Short critical sections that never await.
    lanes: Mutex<Lanes>,
    bell: Notify,
}

/// What a worker has taken.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) begins: Vec<BeginJob>,
    pub(super) ends: Vec<EndJob>,
}

/// Takes from the front: distinct attempts that go together, within the limits. What is skipped stays in order.
fn take<J: Job>(lane: &mut VecDeque<J>) -> Vec<J> {
    let mut taken = Vec::new();
    let mut seen: HashSet<AttemptId, foldhash::fast::RandomState> = HashSet::default();
    let mut skipped = Vec::new();
    let mut bytes = 0_usize;
    while taken.len() < BATCH
        && (taken.is_empty() || bytes < BATCH_BYTES)
        && let Some(job) = lane.pop_front()
    {
        if taken.first().is_none_or(|first| job.goes_with(first)) && seen.insert(job.attempt()) {
            bytes = bytes.saturating_add(job.bytes());
            taken.push(job);
        } else {
            skipped.push(job);
        }
    }
    skipped.into_iter().rev().for_each(|job| lane.push_front(job));
    taken
}

impl Queue {
    /// Adds a job, or fails it: the queue is full or closed.
    pub(super) fn push<J: Job>(&self, job: J, location: &str) {
        let mut lanes = self.lanes.lock();
        if lanes.closed {
            drop(lanes);
            return job.fail(StoreError::Closed { store: location.to_string() });
        }
        let lane = J::lane(&mut lanes);
        if lane.len() >= QUEUE_LIMIT {
            drop(lanes);
            return job.fail(StoreError::Overloaded { store: location.to_string(), limit: QUEUE_LIMIT });
        }
        lane.push_back(job);
        drop(lanes);
        self.bell.notify_last();
    }

    /// Puts jobs back to the front, to be done first.
    pub(super) fn put_back<J: Job>(&self, jobs: Vec<J>) {
        let mut lanes = self.lanes.lock();
        let lane = J::lane(&mut lanes);
        jobs.into_iter().rev().for_each(|job| lane.push_front(job));
        drop(lanes);
        self.bell.notify_last();
    }

    /// What is to be done next; `None` when the queue is closed and empty.
    pub(super) async fn next(&self) -> Option<Batch> {
        loop {
            {
                let mut lanes = self.lanes.lock();
                // One connection commits one after the other: if another worker is free, it takes the begins.
                let shared = lanes.idle > 0 && !lanes.ends.is_empty();
                let begins = if shared { Vec::new() } else { take(&mut lanes.begins) };
                let batch = Batch { begins, ends: take(&mut lanes.ends) };
                let more = !lanes.begins.is_empty() || !lanes.ends.is_empty();
                let closed = lanes.closed;
                if !batch.begins.is_empty() || !batch.ends.is_empty() {
                    drop(lanes);
                    if more || closed {
                        self.bell.notify_last();
                    }
                    return Some(batch);
                }
                if closed {
                    drop(lanes);
                    // The bell holds one ring: each worker that leaves wakes the next.
                    self.bell.notify_last();
                    return None;
                }
                lanes.idle += 1;
            }
            self.bell.notified().await;
            let mut lanes = self.lanes.lock();
            lanes.idle = lanes.idle.saturating_sub(1);
        }
    }

    /// Takes no more; what is in it is still done.
    pub(super) fn close(&self) {
        self.lanes.lock().closed = true;
        self.bell.notify_last();
    }
}
