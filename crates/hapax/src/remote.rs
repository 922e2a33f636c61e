//! Remote attempts: begun here for someone elsewhere, who runs the action,
//! keeps the lease by heartbeats and says how it ended, by key and attempt id.
//!
//! Nothing of a remote attempt lives in this process. It hangs on its lease
//! alone ([`Liveness::Lease`](crate::store::Liveness)), so it outlives the
//! manager that began it, and any manager on the same store may renew and end
//! it. The steps of a claim are those of [`Hapax::execute`], taken by the same
//! code. Invariant: a claim that is asked for again under the attempt id of its
//! holder answers with that very attempt, never with a second one.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use crate::action::Identified;
use crate::claim::Before;
use crate::config::validate_policy;
use crate::execute::{Acquired, Holder, Start};
use crate::manager::{is_kept, unknown_fingerprint};
use crate::recent::{Answer, Entry};
use crate::stats::bump;
use crate::store::{Beat, End, Ended, Liveness, Mark, Marked};
use crate::{
    Action, AttemptId, Error, Fingerprint, Hapax, Json, Key, Owner, Policy, Record, State, Timestamp, Ttl, Unrecorded,
};

/// The tag under which a record keeps the time to live that its claim asked
/// for: milliseconds, or `never`.
pub const TTL_TAG: &str = "hapax.ttl";

/// The tag under which a record keeps the lease that its claim asked for, in milliseconds: what a heartbeat renews
/// that names none.
pub const LEASE_TAG: &str = "hapax.lease";

/// A claim for someone elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteCall {
    action: Action,
    fingerprint: Option<Fingerprint>,
    attempt: Option<AttemptId>,
    owner: Option<Owner>,
    take_over: Option<AttemptId>,
}

impl RemoteCall {
    /// A claim of the action's key.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self { action, fingerprint: None, attempt: None, owner: None, take_over: None }
    }

    /// The fingerprint of params that stay with the caller. Needs the caller's own key.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// With a [`fingerprint`](Self::fingerprint): the params as the record keeps them, unread and byte for byte.
    #[must_use]
    pub fn kept_params(mut self, params: Json) -> Self {
        self.action.as_kept = Some(params);
        self
    }

    /// The attempt's id, chosen by the caller and never used before: after a
    /// lost answer, the same claim with the same id gets the same attempt.
    #[must_use]
    pub fn attempt(mut self, id: AttemptId) -> Self {
        self.attempt = Some(id);
        self
    }

    /// Who runs the action; this manager's process when not said.
    #[must_use]
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Takes the key over if it is in doubt by this attempt, whatever the policy says.
    #[must_use]
    pub fn take_over(mut self, of: AttemptId) -> Self {
        self.take_over = Some(of);
        self
    }
}

/// What [`Hapax::claim_remote`] found.
#[derive(Clone, Debug)]
pub enum RemoteClaimed {
    /// The key is the caller's: run the action, renew the lease, say how it ended.
    Started(RemoteClaim),
    /// The action ran before; this is its result or error.
    Replay(Replay),
}

/// A live attempt of someone elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteClaim {
    /// The key.
    pub key: Key,
    /// The attempt's id: with the key, the right to end it.
    pub attempt: AttemptId,
    /// Executions begun under this key, this one included: more than 1 after a doubt.
    pub attempts: u64,
    /// How long it may be silent.
    pub lease: Duration,
    /// When it began, by the store's clock.
    pub started_at: Timestamp,
}

/// What is on record.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The key.
    pub key: Key,
    /// The result, or the error that was recorded for good.
    pub answer: Result<Json, String>,
    /// When it was recorded.
    pub executed_at: Timestamp,
    /// How long the action took.
    pub duration_ms: u64,
}

impl Replay {
    fn of(entry: &Entry) -> Self {
        let answer = match &entry.answer {
            Answer::Result(json) => Ok(json.clone()),
            Answer::Failure(message) => Err(message.clone()),
        };
        Self { key: entry.key.clone(), answer, executed_at: entry.at, duration_ms: entry.duration_ms }
    }
}

/// How a remote attempt ended.
#[derive(Clone, Debug)]
pub enum RemoteEnd {
    /// With a result.
    Complete {
        /// The result.
        result: Json,
        /// How long it is kept; `None`: as the claim said, else as the policy says.
        ttl: Option<Ttl>,
        /// How long the action took; `None`: since the attempt began.
        duration: Option<Duration>,
    },
    /// With an error for good.
    Fail {
        /// The error.
        error: String,
        /// As above.
        ttl: Option<Ttl>,
        /// As above.
        duration: Option<Duration>,
    },
    /// Without effect: the key is free. It speaks for this attempt alone: after
    /// a take-over the doubt before it stays.
    Release,
    /// Without effect, and so was every attempt before it: someone has looked.
    ReleaseAll,
    /// Nobody knows how: the key is in doubt.
    Doubt {
        /// Why.
        reason: String,
    },
}

/// When a remote attempt's end was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteEnded {
    /// By the store's clock.
    pub at: Timestamp,
    /// When the result or error expires.
    pub expires_at: Option<Timestamp>,
    /// The key's state from now on; `None` when it is free.
    pub state: Option<State>,
    /// How long the action took, for a result or an error that was recorded now, and not before.
    pub duration: Option<Duration>,
}

impl Hapax {
    /// Claims the key of an action for someone elsewhere, or finds what is on
    /// record: as [`claim`](Self::claim), but without a guard. The attempt lives
    /// as long as its lease is renewed by [`heartbeat_remote`](Self::heartbeat_remote),
    /// whatever becomes of this manager.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// use hapax::{Action, Hapax, Json, RemoteCall, RemoteClaimed, RemoteEnd};
    ///
    /// let hapax = Hapax::open("memory:").await?;
    /// let call = RemoteCall::new(Action::new("send_message", "slack").signal("mail-7"));
    /// if let RemoteClaimed::Started(claim) = hapax.claim_remote(&call).await? {
    ///     let result = Json::parse("\"sent\"").unwrap_or_else(|_| unreachable!());
    ///     let end = RemoteEnd::Complete { result, ttl: None, duration: None };
    ///     hapax.end_remote(&claim.key, claim.attempt, end).await?;
    /// }
    /// assert!(matches!(hapax.claim_remote(&call).await?, RemoteClaimed::Replay(_)));
    /// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub async fn claim_remote(&self, call: &RemoteCall) -> Result<RemoteClaimed, Error> {
        let identified = self.identify_remote(call)?;
        if let Some(answer) = self.recall_as(&identified, |entry| Ok(Replay::of(entry))) {
            return answer.map(RemoteClaimed::Replay);
        }
        let action = &call.action;
        let policy = self.policy_of(action)?;
        let owner = call.owner.clone().map_or_else(|| self.inner.owner.clone(), Arc::new);
        let holder = Holder {
            start: Start::Plain,
            liveness: Liveness::Lease,
            owner,
            attempt: call.attempt,
            take_over: call.take_over,
        };
        let span = tracing::debug_span!("hapax.claim_remote", key = %identified.key, action = action.action_type, target = action.target);
        let acquired = self.acquire(action, &identified, &policy, &holder).instrument(span).await;
        self.inner.background.wake();
        match acquired? {
            Acquired::Entry(entry) => Ok(RemoteClaimed::Replay(Replay::of(&entry))),
            Acquired::Started(started) => {
                // It runs elsewhere: neither a place here nor the flight is its own.
                self.inner.leave();
                Ok(RemoteClaimed::Started(RemoteClaim {
                    key: identified.key,
                    attempt: started.attempt,
                    attempts: started.attempts,
                    lease: policy.lease,
                    started_at: started.started_at,
                }))
            }
        }
    }

    /// Records a result by hand for someone elsewhere, as [`mark_executed`](Self::mark_executed) does,
    /// with what the call says of the action, its attempt's id and who marks it. Without a fingerprint the
    /// record fits any params. The same mark sent again, with the same attempt's id, gets the same answer.
    ///
    /// # Errors
    /// As [`mark_executed`](Self::mark_executed).
    pub async fn mark_remote(&self, call: &RemoteCall, result: Json, ttl: Option<Ttl>) -> Result<Marked, Error> {
        let Some(key) = call.action.key.clone() else {
            return Err(Error::Config { message: "what is marked by hand needs its key".into() });
        };
        let (config, action) = (self.config(), &call.action);
        action.fits_a_record(action.as_kept.as_ref())?;
        let attempt = call.attempt.unwrap_or_default();
        let mark = Mark {
            namespace: self.inner.namespace.clone(),
            key,
            signal_id: action.signal_id.clone().filter(|s| !s.is_empty()),
            action_type: action.action_type.clone(),
            target: action.target.clone(),
            params: action.as_kept.clone(),
            fingerprint: call.fingerprint.unwrap_or_else(unknown_fingerprint),
            attempt,
            owner: call.owner.clone().map_or_else(|| self.inner.owner.clone(), Arc::new),
            result,
            ttl: ttl.unwrap_or(config.policy.ttl),
            capacity: self.inner.capacity(&config),
        };
        match self.marked(mark).await? {
            Marked::Exists(record) if call.attempt == Some(record.attempt_id) => Ok(Marked::recorded(record)),
            marked => Ok(marked),
        }
    }

    fn identify_remote(&self, call: &RemoteCall) -> Result<Identified, Error> {
        match (call.fingerprint, &call.action.key) {
            (None, _) => self.identify(&call.action).map(std::borrow::Cow::into_owned),
            (Some(fingerprint), Some(key)) => Ok(Identified { key: key.clone(), fingerprint }),
            (Some(_), None) => {
                Err(Error::Config { message: "a fingerprint without params needs a key of the caller's own".into() })
            }
        }
    }

    /// Renews the lease of a remote attempt; when `lease` is `None`, by as long as its claim asked for
    /// ([`LEASE_TAG`]), else by the policy's for its action. Returns until when it may be silent, about, by this host's clock.
    ///
    /// # Errors
    /// [`Error::InDoubt`] when the lease had lapsed before: the attempt may still
    /// be ended. [`Error::LostClaim`] when it was taken over, settled or ended.
    /// [`Error::Config`] for a lease out of its range; [`Error::Store`].
    pub async fn heartbeat_remote(
        &self,
        key: &Key,
        attempt: AttemptId,
        lease: Option<Duration>,
    ) -> Result<Timestamp, Error> {
        let policy = match lease {
            Some(lease) => Policy { lease, ..self.config().policy.clone() },
            None => {
                let record = self.of_attempt(key, attempt).await?;
                let policy = self.config().policy_for(&record.action_type, &record.target);
                let asked = record.tags.get(LEASE_TAG).and_then(|millis| millis.parse().ok());
                Policy { lease: asked.map_or(policy.lease, Duration::from_millis), ..policy }
            }
        };
        validate_policy(&policy)?;
        let (store, namespace) = (&self.inner.store, &self.inner.namespace);
        let beats = store.heartbeat(namespace.clone(), vec![(key.clone(), attempt, policy.lease)]).await?;
        match beats.first() {
            Some(Beat::Renewed) => Ok(store.now().await?.plus(policy.lease)),
            Some(Beat::Lapsed) => match self.record(key).await? {
                Some(record) if record.state == State::InDoubt => Err(Error::InDoubt { record: Box::new(record) }),
                _ => Err(self.lost(key, attempt, None)),
            },
            Some(Beat::Lost) | None => Err(self.lost(key, attempt, None)),
        }
    }

    /// Says how a remote attempt ended. The same end said again, after a lost
    /// answer, gets the same answer (but for a release, which leaves nothing).
    /// The first result that is recorded stays; of two that differ and come at
    /// the very same moment, both may be told that they are.
    ///
    /// # Errors
    /// [`Error::LostClaim`] when it was taken over, settled or ended otherwise, with another result too;
    /// [`Error::NotRecorded`] when the result is larger than the limit: the key
    /// is in doubt then; [`Error::Store`], and the key is in doubt when the lease lapses.
    pub async fn end_remote(&self, key: &Key, attempt: AttemptId, mut end: RemoteEnd) -> Result<RemoteEnded, Error> {
        if let RemoteEnd::Fail { error: text, .. } | RemoteEnd::Doubt { reason: text } = &mut end {
            crate::error::shorten(text);
        }
        let inner = &self.inner;
        if let RemoteEnd::Complete { result, .. } = &end
            && result.as_str().len() > inner.config.read().max_result_bytes
        {
            return self.too_large(key, attempt, result).await;
        }
        if !matches!(end, RemoteEnd::Complete { .. }) {
            bump(&inner.gauges.failures);
        }
        let (end, state) = match end {
            RemoteEnd::Release => match self.without_effect(key, attempt).await? {
                doubt @ End::Doubt { .. } => (doubt, Some(State::InDoubt)),
                end => (end, None),
            },
            RemoteEnd::ReleaseAll => (End::Release, None),
            RemoteEnd::Doubt { reason } => (End::Doubt { reason }, Some(State::InDoubt)),
            RemoteEnd::Complete { result, ttl, duration } => {
                let record = self.of_attempt(key, attempt).await?;
                if record.state.is_recorded() {
                    return self.again(&record, record.result.as_ref() == Some(&result));
                }
                let (ttl, duration) = self.terms(&record, ttl, duration).await?;
                (End::Complete { result, ttl, duration }, Some(State::Completed))
            }
            RemoteEnd::Fail { error, ttl, duration } => {
                let record = self.of_attempt(key, attempt).await?;
                if record.state.is_recorded() {
                    return self.again(&record, record.state == State::Failed && record.error.as_ref() == Some(&error));
                }
                let (ttl, duration) = self.terms(&record, ttl, duration).await?;
                (End::Fail { error, ttl, duration }, Some(State::Failed))
            }
        };
        let duration = match &end {
            End::Complete { duration, .. } | End::Fail { duration, .. } => Some(*duration),
            End::Release | End::Doubt { .. } => None,
        };
        inner.background.wake();
        // What is recorded is not remembered here: another end of this attempt may have been first.
        match inner.store.end(inner.namespace.clone(), key.clone(), attempt, end).await? {
            Ended::Done { at, expires_at } => {
                tracing::debug!(%key, %attempt, recorded = duration.is_some(), "remote attempt ended");
                Ok(RemoteEnded { at, expires_at, state, duration })
            }
            Ended::Lost(_) => Err(self.lost(key, attempt, None)),
        }
    }

    /// The answer to an end of an attempt that has ended: the first one's, if it is the same.
    fn again(&self, record: &Record, is_same: bool) -> Result<RemoteEnded, Error> {
        match record.executed_at {
            Some(at) if is_same => {
                Ok(RemoteEnded { at, expires_at: record.expires_at, state: Some(record.state), duration: None })
            }
            _ => Err(self.lost(&record.key, record.attempt_id, None)),
        }
    }

    /// The record under the key, which is this attempt's.
    async fn of_attempt(&self, key: &Key, attempt: AttemptId) -> Result<Record, Error> {
        // Whether the attempt still holds the key is the store's to say, in one step with the end.
        let record = self.record(key).await?.filter(|record| record.attempt_id == attempt);
        record.ok_or_else(|| self.lost(key, attempt, None))
    }

    /// How an attempt ends that had no effect; see [`Before`].
    async fn without_effect(&self, key: &Key, attempt: AttemptId) -> Result<End, Error> {
        let record = self.of_attempt(key, attempt).await?;
        let before = if record.attempts > 1 { Before::Doubt } else { Before::Nothing };
        Ok(before.without_effect("the action failed without effect"))
    }

    /// What the record adds to its attempt's end: how long the result is kept, how long the action took.
    async fn terms(
        &self,
        record: &Record,
        ttl: Option<Ttl>,
        duration: Option<Duration>,
    ) -> Result<(Ttl, Duration), Error> {
        let ttl = match (ttl, record.tags.get(TTL_TAG).map(String::as_str)) {
            (Some(ttl), _) => ttl,
            (None, Some("never")) => Ttl::Never,
            (None, asked) => match asked.and_then(|ms| ms.parse().ok()) {
                Some(ms) => Ttl::For(Duration::from_millis(ms)),
                None => self.config().policy_for(&record.action_type, &record.target).ttl,
            },
        };
        is_kept(ttl)?;
        let duration = match duration {
            Some(duration) => duration,
            None => self.inner.store.now().await?.since(record.started_at),
        };
        Ok((ttl, duration))
    }

    async fn too_large(&self, key: &Key, attempt: AttemptId, result: &Json) -> Result<RemoteEnded, Error> {
        let (size, limit) = (result.as_str().len(), self.inner.config.read().max_result_bytes);
        let reason = format!("it is {size} bytes of JSON and max_result_bytes is {limit}");
        let end = End::Doubt { reason: format!("the action ran but its result was not recorded: {reason}") };
        match self.inner.store.end(self.inner.namespace.clone(), key.clone(), attempt, end).await? {
            Ended::Done { .. } => {
                Err(Error::NotRecorded { key: key.clone(), reason, value: Unrecorded::new(result.clone()) })
            }
            Ended::Lost(_) => Err(self.lost(key, attempt, Some(Unrecorded::new(result.clone())))),
        }
    }

    fn lost(&self, key: &Key, attempt: AttemptId, value: Option<Unrecorded>) -> Error {
        Error::LostClaim { key: key.clone(), attempt, value }
    }
}
