//! A claim: the right and the duty to run an action and say how it ended.
//!
//! Invariants: a claim's attempt is live in the store until the claim ends; a
//! claim that is dropped (a cancelled future, a panic, an early return) leaves
//! its key in doubt, never free; an end that was begun and cut short is carried
//! through in the background with the very answer that was known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::action::Identified;
use crate::execute::Started;
use crate::flight::{FlightEnd, FlightGuard};
use crate::manager::Inner;
use crate::recent::{Answer, Entry};
use crate::stats::bump;
use crate::store::{End, Ended};
use crate::{ActionError, AttemptId, Error, ErrorClass, Fingerprint, Json, Key, Policy, Record, State, Ttl};

/// What an action gets to work with.
#[derive(Clone, Debug)]
pub struct Context {
    key: Key,
    attempt: AttemptId,
    attempts: u64,
    live: Arc<AtomicBool>,
}

impl Context {
    /// The key, to be passed on to the target (`Idempotency-Key: …`), so that
    /// it too can tell a retry from a new request.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// This attempt's id.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// Executions begun under this key, this one included: more than 1 after a doubt.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// Whether the attempt still holds its lease, as far as the last heartbeat
    /// knew. A long action does well to look before each further effect.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }
}

/// What [`Hapax::claim`](crate::Hapax::claim) found.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it is matched at once; a box would only be in the way
pub enum Claimed {
    /// The key is yours: run the action, then end the claim.
    Started(Claim),
    /// The action ran before; the record holds its result or its error.
    Replay(Box<Record>),
}

/// What is known of the attempts before one that took over a key in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// There was none, or a verifier said that it had no effect.
    Nothing,
    /// One may have had its effect: the policy said to run again without a look.
    Doubt,
}

impl Before {
    /// How an attempt ends that is known to have had no effect. It speaks for
    /// itself alone: a doubt before it that nobody has looked into stays.
    pub(crate) fn without_effect(self, reason: &str) -> End {
        match self {
            Self::Nothing => End::Release,
            Self::Doubt => End::Doubt { reason: format!("{reason}; an attempt before it was in doubt and still is") },
        }
    }
}

/// A live attempt, to be ended by [`complete`](Claim::complete),
/// [`fail`](Claim::fail), [`release`](Claim::release) or [`doubt`](Claim::doubt).
/// Its lease is renewed by itself. Dropping it leaves the key in doubt.
#[must_use = "a dropped claim leaves its key in doubt"]
pub struct Claim {
    inner: Arc<Inner>,
    context: Context,
    fingerprint: Fingerprint,
    before: Before,
    ttl: Ttl,
    started: Instant,
    flight: Option<FlightGuard>,
    stage: Stage,
    kind: Kind,
}

/// What an attempt is to those who find it without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its effect may have happened.
    Plain,
    /// A transaction of the store's own database, completion included: without its completion it had no effect. Its
    /// lease is not renewed; it lasts as long as the transaction may.
    #[cfg(feature = "postgres")]
    InTx,
}

impl Kind {
    /// How an attempt ends that is dropped.
    fn dropped(self, before: Before) -> End {
        #[cfg(not(feature = "postgres"))]
        let _ = before;
        match self {
            #[cfg(feature = "postgres")]
            Self::InTx => before.without_effect("the transaction was rolled back"),
            Self::Plain => End::Doubt { reason: "the call was cancelled or panicked while the action ran".into() },
        }
    }
}

enum Stage {
    Running,
    /// This end was asked for and its answer is not here yet.
    Ending(End),
    Ended,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("context", &self.context).finish_non_exhaustive()
    }
}

/// How an end was received.
pub(crate) enum Recorded {
    Done,
    Lost,
    Failed(crate::store::StoreError),
}

impl Claim {
    pub(crate) fn new(inner: Arc<Inner>, identified: &Identified, policy: &Policy, begun: Started) -> Self {
        let Started { attempt, attempts, before, kind, guard, .. } = begun;
        let key = identified.key.clone();
        let live = Arc::new(AtomicBool::new(true));
        let started = Instant::now();
        if kind == Kind::Plain {
            inner.leases.add(attempt, key.clone(), policy.lease, started, live.clone());
            inner.background.wake();
        }
        Self {
            context: Context { key, attempt, attempts, live },
            inner,
            fingerprint: identified.fingerprint,
            before,
            ttl: policy.ttl,
            started,
            flight: Some(guard),
            stage: Stage::Running,
            kind,
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.context.key
    }

    /// The attempt's id.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        self.context.attempt
    }

    /// What an action gets to work with.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Records the result of the action.
    ///
    /// # Errors
    /// [`Error::NotRecorded`] when `value` has no JSON form, is larger than the
    /// limit, or the store fails: the key is in doubt then.
    /// [`Error::LostClaim`] when the key was taken over or settled meanwhile.
    pub async fn complete<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        match Json::of(value) {
            Ok(json) => self.complete_json(json).await,
            Err(e) => {
                let reason = format!("it has no JSON form: {e}");
                Err(self.not_recorded(reason, crate::Unrecorded::new(())).await)
            }
        }
    }

    /// Records the result of the action, given as JSON.
    ///
    /// # Errors
    /// As [`complete`](Self::complete); the value inside the error is the [`Json`].
    pub async fn complete_json(mut self, result: Json) -> Result<(), Error> {
        if let Some(reason) = self.too_large(&result) {
            return Err(self.not_recorded(reason, crate::Unrecorded::new(result)).await);
        }
        match self.end(End::Complete { result: result.clone(), ttl: self.ttl, duration: self.started.elapsed() }).await
        {
            Recorded::Done => Ok(()),
            Recorded::Lost => Err(self.lost()),
            Recorded::Failed(e) => Err(self.not_recorded(e.to_string(), crate::Unrecorded::new(result)).await),
        }
    }

    /// Records an error for good: every later call gets it.
    ///
    /// # Errors
    /// [`Error::LostClaim`]; [`Error::Store`], and the key is in doubt then.
    pub async fn fail(mut self, error: impl Into<String>) -> Result<(), Error> {
        let end = End::Fail { error: error.into(), ttl: self.ttl, duration: self.started.elapsed() };
        bump(&self.inner.gauges.failures);
        self.simple(end).await
    }

    /// Frees the key: the effect did not happen. A claim that took over a doubt
    /// by [`OnDoubt::RunAgain`](crate::OnDoubt::RunAgain) leaves the key in
    /// doubt, since of the attempt before it nothing is known.
    ///
    /// # Errors
    /// [`Error::LostClaim`]; [`Error::Store`], and the key is in doubt then.
    pub async fn release(mut self) -> Result<(), Error> {
        bump(&self.inner.gauges.failures);
        let end = self.without_effect();
        self.simple(end).await
    }

    /// Leaves the key in doubt: nobody knows whether the effect happened.
    ///
    /// # Errors
    /// [`Error::LostClaim`]; [`Error::Store`], and the key is in doubt all the
    /// same when its lease lapses.
    pub async fn doubt(mut self, reason: impl Into<String>) -> Result<(), Error> {
        bump(&self.inner.gauges.failures);
        self.simple(End::Doubt { reason: reason.into() }).await
    }

    async fn simple(&mut self, end: End) -> Result<(), Error> {
        match self.end(end).await {
            Recorded::Done => Ok(()),
            Recorded::Lost => Err(self.lost()),
            Recorded::Failed(e) => Err(e.into()),
        }
    }

    /// The end of this attempt when it had no effect.
    pub(crate) fn without_effect(&self) -> End {
        self.before.without_effect("the action failed without effect")
    }

    fn lost(&self) -> Error {
        Error::LostClaim { key: self.context.key.clone(), attempt: self.context.attempt, value: None }
    }

    pub(crate) fn too_large(&self, result: &Json) -> Option<String> {
        let limit = self.inner.config.read().max_result_bytes;
        let size = result.as_str().len();
        (size > limit).then(|| {
            format!("it is {size} bytes of JSON and max_result_bytes is {limit}: return less, or raise the limit")
        })
    }

    /// Leaves the key in doubt because its value cannot be recorded.
    pub(crate) async fn not_recorded(mut self, reason: String, value: crate::Unrecorded) -> Error {
        let key = self.context.key.clone();
        tracing::warn!(%key, attempt = %self.context.attempt, %reason, "the result was not recorded; the key is in doubt");
        let end = End::Doubt { reason: format!("the action ran but its result was not recorded: {reason}") };
        if matches!(self.stage, Stage::Ended) {
            self.carry_through(end);
        } else {
            let _ = self.end(end).await;
        }
        Error::NotRecorded { key, reason, value }
    }

    /// Ends the attempt in the store, then for those who joined.
    pub(crate) async fn end(&mut self, end: End) -> Recorded {
        let (key, attempt) = (self.context.key.clone(), self.context.attempt);
        let epoch = self.inner.store.epoch();
        let end = end.shortened();
        self.stage = Stage::Ending(end.clone());
        let answer = self.inner.store.end(self.inner.namespace.clone(), key, attempt, end).await;
        self.received(answer, epoch)
    }

    /// Takes the answer to an end that was begun, for those who joined too.
    fn received(&mut self, answer: Result<Ended, crate::store::StoreError>, epoch: Option<u64>) -> Recorded {
        let (key, attempt) = (self.context.key.clone(), self.context.attempt);
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        self.inner.leases.remove(attempt);
        match answer {
            Ok(Ended::Done { at, expires_at }) => {
                let entry = match stage {
                    Stage::Ending(End::Complete { result, duration, .. }) => {
                        Some(self.entry(Answer::Result(result), at, expires_at, duration, epoch))
                    }
                    Stage::Ending(End::Fail { error, duration, .. }) => {
                        Some(self.entry(Answer::Failure(error), at, expires_at, duration, epoch))
                    }
                    _ => None,
                };
                tracing::debug!(%key, %attempt, recorded = entry.is_some(), "attempt ended");
                if let Some(entry) = &entry {
                    self.inner.recent.insert(entry.clone(), self.inner.coarse_now());
                    if let Some(flight) = self.flight.take() {
                        flight.finish(FlightEnd::Recorded(entry.clone()));
                    }
                }
                Recorded::Done
            }
            Ok(Ended::Lost(state)) => {
                tracing::warn!(%key, %attempt, ?state, "the claim was lost; the attempt changed nothing");
                Recorded::Lost
            }
            Err(error) => {
                tracing::warn!(%key, %attempt, %error, "the attempt's end could not be written");
                Recorded::Failed(error)
            }
        }
    }

    /// The completion that is about to be committed elsewhere, with the epoch it is remembered under.
    #[cfg(feature = "postgres")]
    pub(crate) fn completing(&mut self, end: End) -> Option<u64> {
        let epoch = self.inner.store.epoch();
        self.stage = Stage::Ending(end);
        epoch
    }

    /// The completion was committed.
    #[cfg(feature = "postgres")]
    pub(crate) fn completed(&mut self, ended: Ended, epoch: Option<u64>) {
        self.received(Ok(ended), epoch);
    }

    /// Another has the key, or the store settles what became of it: nothing is left to say.
    #[cfg(feature = "postgres")]
    pub(crate) fn over(&mut self) {
        self.stage = Stage::Ended;
    }

    /// Tells those who joined that the action failed without effect; returns what became of the key.
    pub(crate) fn tell_released(&mut self, error: &ActionError) -> Option<State> {
        let (end, state) = match self.before {
            Before::Nothing => (FlightEnd::Released(error.clone()), None),
            Before::Doubt => (FlightEnd::StillInDoubt(error.clone()), Some(State::InDoubt)),
        };
        if let Some(flight) = self.flight.take() {
            flight.finish(end);
        }
        state
    }

    pub(crate) fn count_failure(&self) {
        bump(&self.inner.gauges.failures);
    }

    /// What becomes of the key when the end of an action that failed cannot be written.
    pub(crate) fn class_unwritten(&self) -> ErrorClass {
        match self.kind.dropped(self.before) {
            // It was rolled back, and others will see that it is gone.
            End::Release => ErrorClass::Retryable,
            _ => ErrorClass::Unknown,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn ttl(&self) -> Ttl {
        self.ttl
    }

    fn entry(
        &self,
        answer: Answer,
        at: crate::Timestamp,
        expires_at: Option<crate::Timestamp>,
        duration: Duration,
        epoch: Option<u64>,
    ) -> Arc<Entry> {
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut entry = Entry::new(self.context.key.clone(), self.fingerprint, answer, at, duration_ms);
        entry.epoch = epoch;
        entry.until = self.inner.until(at, expires_at);
        Arc::new(entry)
    }

    /// Writes an end in the background, a few times if need be.
    pub(crate) fn carry_through(&self, end: End) {
        let (inner, key, attempt) = (self.inner.clone(), self.context.key.clone(), self.context.attempt);
        let (store, namespace) = (inner.store.clone(), inner.namespace.clone());
        // The job holds the store, not the manager: it must not keep the manager alive.
        inner.background.spawn(async move {
            for wait_ms in [0, 100, 1_000] {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                match store.end(namespace.clone(), key.clone(), attempt, end.clone()).await {
                    Ok(_) => return,
                    Err(error) => tracing::warn!(%key, %attempt, %error, "the attempt's end could not be written; its lease will lapse"),
                }
            }
        });
    }

    /// Hands the end of a claim that is dropped to the background.
    fn end_dropped(&mut self) {
        let end = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Ended => return,
            // Nobody knows whether the commit that was under way went through: this tells, since it waits for it.
            #[cfg(feature = "postgres")]
            Stage::Ending(End::Complete { .. }) if self.kind == Kind::InTx => self.kind.dropped(self.before),
            Stage::Ending(end) => end,
            Stage::Running => {
                let end = self.kind.dropped(self.before);
                let (key, attempt) = (&self.context.key, self.context.attempt);
                match end {
                    End::Release => {
                        tracing::debug!(%key, %attempt, "a claim was dropped; its transaction is rolled back")
                    }
                    _ => tracing::warn!(%key, %attempt, "a claim was dropped; its key is in doubt"),
                }
                end
            }
        };
        self.inner.leases.remove(self.context.attempt);
        self.carry_through(end);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.end_dropped();
        // The place goes back last, when the end is in the background's hands: a shutdown waits for the one or the other.
        self.inner.leave();
    }
}
