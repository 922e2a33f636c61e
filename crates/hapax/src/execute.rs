//! Running an action: the four steps of a call.
//!
//! 1. Make the key; look in the memory of recent results; join an attempt of
//!    the same key in this process.
//! 2. `begin` in the store, durable before the action runs.
//! 3. Run the action, its lease renewed in the background.
//! 4. `complete`, durable before the caller sees the value; tell who waits.
//!
//! Invariant: every answer, the first included, is read back from the recorded
//! JSON, so that the first answer is what every replay will be.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;

use crate::action::Identified;
use crate::claim::{Before, Claim, Claimed, Context, Kind, Recorded};
use crate::config::{Config, validate_policy};
use crate::flight::{Entered, FlightEnd, FlightGuard};
use crate::manager::{Hapax, Inner, fits};
use crate::recent::Entry;
use crate::stats::bump;
use crate::store::{Begin, Begun, End, Liveness, Settled, Settlement, Store, StoreError};
use crate::{
    Action, ActionError, AttemptId, Clock, Doubt, Error, ErrorClass, Identity, InFlight, Json, KeepParams, OnDoubt,
    Owner, Policy, Record, State, SystemClock, Timestamp, Unrecorded, Verdict,
};

/// A value, and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The action ran in this call.
    Executed,
    /// The record, or another call's attempt that this call waited for.
    Replayed,
}

impl<T> Outcome<T> {
    /// Whether the action did not run in this call.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.source == Source::Replayed
    }

    /// The value alone.
    pub fn into_value(self) -> T {
        self.value
    }
}

#[allow(clippy::large_enum_variant)] // matched at once
pub(crate) enum Acquired {
    Started(Started),
    Entry(Arc<Entry>),
}

/// An attempt that has just begun.
pub(crate) struct Started {
    pub(crate) attempt: AttemptId,
    pub(crate) attempts: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) before: Before,
    pub(crate) kind: Kind,
    pub(crate) guard: FlightGuard,
}

/// How an attempt begins in the store.
pub(crate) enum Start {
    /// By itself.
    Plain,
    /// Together with a transaction that is at hand.
    #[cfg(feature = "postgres")]
    InTx(Box<crate::store::postgres::tx::TxStart>),
}

impl Start {
    async fn begin(&self, store: &dyn Store, begin: Begin) -> Result<Begun, StoreError> {
        match self {
            Self::Plain => store.begin(begin).await,
            #[cfg(feature = "postgres")]
            Self::InTx(start) => start.begin(begin).await,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Plain => Kind::Plain,
            #[cfg(feature = "postgres")]
            Self::InTx(_) => Kind::InTx,
        }
    }
}

/// On whose behalf an attempt is begun, and how.
pub(crate) struct Holder {
    pub(crate) start: Start,
    pub(crate) liveness: Liveness,
    pub(crate) owner: Arc<Owner>,
    /// An id that the holder chose, so that it may ask again after a lost answer.
    pub(crate) attempt: Option<AttemptId>,
    /// Set to take over a key in doubt by that attempt, whatever the policy says.
    pub(crate) take_over: Option<AttemptId>,
}

impl Holder {
    /// A caller in this process.
    pub(crate) fn here(inner: &Inner, start: Start) -> Self {
        Self { start, liveness: Liveness::Process, owner: inner.owner.clone(), attempt: None, take_over: None }
    }
}

impl Hapax {
    /// Runs the action once, whoever calls how often, and returns its recorded
    /// result; see [`Policy`] for what can be chosen.
    ///
    /// `run` gets the key, to pass on to the target. What it returns is recorded
    /// as JSON before the caller sees it, and what the caller sees is read back
    /// from that JSON.
    ///
    /// A future that is dropped while the action runs, or a panic in it, leaves
    /// the key in doubt.
    ///
    /// # Errors
    /// [`Error::ParamsMismatch`], [`Error::InFlight`] and [`Error::InDoubt`] when
    /// the action did not run; [`Error::Action`] and [`Error::TimedOut`] when it
    /// did and failed; [`Error::Failed`] when it failed for good earlier;
    /// [`Error::NotRecorded`] and [`Error::LostClaim`] when it ran and its
    /// result is not on record; [`Error::Store`] when the store failed before
    /// the action ran; [`Error::ResultType`] when the record is not a `T`.
    #[doc(alias = "executeWithIdempotency")]
    pub async fn execute<T, F, Fut>(&self, action: &Action, run: F) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<T, ActionError>>,
    {
        if let Some(value) = self.replay(action) {
            return Ok(Outcome { value, source: Source::Replayed });
        }
        // Boxed, so that a replay does not carry the state of everything that it does not do.
        Box::pin(self.execute_anew(action, run)).await
    }

    async fn execute_anew<T, F, Fut>(&self, action: &Action, run: F) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<T, ActionError>>,
    {
        let identified = self.identify(action)?;
        if let Some(answer) = self.recall(&identified) {
            return answer.map(|value| Outcome { value, source: Source::Replayed });
        }
        let span = tracing::debug_span!("hapax.execute", key = %identified.key, action = action.action_type, target = action.target);
        self.execute_identified(action, &identified, run).instrument(span).await
    }

    /// The recorded result of an action, if it is among those remembered in this
    /// process: what [`execute`](Self::execute) would answer at once, without a
    /// look into the store. `None` says nothing.
    ///
    /// # Errors
    /// The answer may be an error: [`Error::Failed`], [`Error::ParamsMismatch`],
    /// [`Error::ResultType`].
    pub fn recent<T>(&self, action: &Action) -> Option<Result<T, Error>>
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let identified = self.identify(action).ok()?;
        self.recall(&identified)
    }

    async fn execute_identified<T, F, Fut>(
        &self,
        action: &Action,
        identified: &Identified,
        run: F,
    ) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<T, ActionError>>,
    {
        let policy = self.policy_of(action)?;
        match self.acquire(action, identified, &policy, &Holder::here(&self.inner, Start::Plain)).await? {
            Acquired::Entry(entry) => entry.value().map(|value| Outcome { value, source: Source::Replayed }),
            Acquired::Started(started) => {
                let claim = Claim::new(self.inner.clone(), identified, &policy, started);
                run_claimed(claim, &policy, run).await.map(|value| Outcome { value, source: Source::Executed })
            }
        }
    }

    /// Claims the key of an action for manual control: either a claim to run it
    /// under and to end, or the record to replay.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// use hapax::{Action, Claimed, Hapax};
    ///
    /// let hapax = Hapax::open("memory:").await?;
    /// let action = Action::new("send_message", "slack").signal("mail-7");
    /// match hapax.claim(&action).await? {
    ///     Claimed::Started(claim) => claim.complete(&"sent").await?,
    ///     Claimed::Replay(record) => println!("sent before: {:?}", record.executed_at),
    /// }
    /// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`execute`](Self::execute), as far as it gets.
    pub async fn claim(&self, action: &Action) -> Result<Claimed, Error> {
        let policy = self.policy_of(action)?;
        let identified = self.identify(action)?.into_owned();
        let span = tracing::debug_span!("hapax.claim", key = %identified.key, action = action.action_type, target = action.target);
        async {
            loop {
                match self.acquire(action, &identified, &policy, &Holder::here(&self.inner, Start::Plain)).await? {
                    Acquired::Started(started) => {
                        return Ok(Claimed::Started(Claim::new(self.inner.clone(), &identified, &policy, started)));
                    }
                    Acquired::Entry(_) => {
                        // Recorded a moment ago; gone again only if cleared or expired in between.
                        if let Some(record) = self.record(&identified.key).await?.filter(|r| r.state.is_recorded()) {
                            return Ok(Claimed::Replay(Box::new(record)));
                        }
                    }
                }
            }
        }
        .instrument(span)
        .await
    }

    /// The key and fingerprint of an action under this manager's choices.
    pub(crate) fn identify<'a>(&self, action: &'a Action) -> Result<Cow<'a, Identified>, Error> {
        if action.policy.identity.is_none() && !self.inner.identity_varies.load(Ordering::Relaxed) {
            return action.identified();
        }
        let identity = match &action.policy.identity {
            Some(identity) => identity.clone(),
            None => self.inner.config.read().policy_for(&action.action_type, &action.target).identity,
        };
        if identity == Identity::All {
            return action.identified();
        }
        action.identify(&identity).map(Cow::Owned)
    }

    pub(crate) fn policy_of(&self, action: &Action) -> Result<Policy, Error> {
        let mut policy = self.inner.config.read().policy_for(&action.action_type, &action.target);
        action.policy.apply(&mut policy);
        validate_policy(&policy)?;
        Ok(policy)
    }

    /// The result of an action that has its key already, when it is remembered as a `T`: what nearly
    /// every replay is. It answers with the value alone, since moving a `Result` with the large `Error`
    /// from hand to hand costs as much as looking the value up. Whatever else it may be is `recall`'s.
    #[inline(always)]
    fn replay<T>(&self, action: &Action) -> Option<T>
    where
        T: Clone + Send + Sync + 'static,
    {
        let inner = &*self.inner;
        if action.policy.identity.is_some() || inner.identity_varies.load(Ordering::Relaxed) {
            return None;
        }
        let identified = action.known()?;
        let epoch = inner.store.epoch()?;
        inner.recent.replay(identified, epoch, || inner.coarse_now())
    }

    /// The answer from the memory of recent results, if it may be trusted.
    pub(crate) fn recall<T>(&self, identified: &Identified) -> Option<Result<T, Error>>
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.recall_as(identified, Entry::value)
    }

    /// As [`recall`](Self::recall), with what `answer` makes of the entry.
    #[inline]
    pub(crate) fn recall_as<T>(
        &self,
        identified: &Identified,
        answer: impl FnOnce(&Entry) -> Result<T, Error>,
    ) -> Option<Result<T, Error>> {
        let inner = &*self.inner;
        let epoch = inner.store.epoch()?;
        inner.recent.with(
            &identified.key,
            epoch,
            || inner.coarse_now(),
            |entry| {
                if !fits(&entry.fingerprint, &identified.fingerprint) {
                    return Err(inner.mismatch(identified, entry.fingerprint));
                }
                inner.recent.hit(entry);
                tracing::trace!(key = %identified.key, "replayed from memory");
                answer(entry)
            },
        )
    }

    pub(crate) async fn acquire(
        &self,
        action: &Action,
        identified: &Identified,
        policy: &Policy,
        holder: &Holder,
    ) -> Result<Acquired, Error> {
        let inner = &self.inner;
        let began = Instant::now();
        let mut counted = false;
        loop {
            if inner.is_closing() {
                return Err(Error::ShuttingDown);
            }
            let flight = match inner.flights.enter(&identified.key, identified.fingerprint, began) {
                Entered::Lead(guard) => return lead(inner, action, identified, policy, holder, guard, began).await,
                Entered::Join(flight) => flight,
            };
            if flight.fingerprint != identified.fingerprint {
                return Err(inner.mismatch(identified, flight.fingerprint));
            }
            let turned_away = |waited: Duration| {
                inner.tally(&inner.gauges.turned_away);
                Error::InFlight {
                    key: identified.key.clone(),
                    owner: (*inner.owner).clone(),
                    since: SystemClock.now().minus(flight.since.elapsed()),
                    waited,
                }
            };
            let InFlight::Wait(wait) = policy.in_flight else { return Err(turned_away(Duration::ZERO)) };
            if !std::mem::replace(&mut counted, true) {
                inner.tally(&inner.gauges.waits_joined);
            }
            let Some(left) = wait.checked_sub(began.elapsed()).filter(|d| !d.is_zero()) else {
                return Err(turned_away(began.elapsed()));
            };
            match flight.ended(left).await {
                Some(FlightEnd::Recorded(entry)) => {
                    inner.count_hit(&entry);
                    return Ok(Acquired::Entry(entry));
                }
                Some(FlightEnd::Released(error)) => return Err(inner.shared(identified, error, None)),
                Some(FlightEnd::StillInDoubt(error)) => {
                    return Err(inner.shared(identified, error, Some(State::InDoubt)));
                }
                Some(FlightEnd::Store(error)) => return Err(error.into()),
                Some(FlightEnd::Look) | None => {}
            }
        }
    }
}

/// The leader's way: to a claim, to what is recorded, or to an error.
async fn lead(
    inner: &Arc<Inner>,
    action: &Action,
    identified: &Identified,
    policy: &Policy,
    holder: &Holder,
    guard: FlightGuard,
    began: Instant,
) -> Result<Acquired, Error> {
    let config = inner.config.read().clone();
    // What a holder elsewhere knows of the doubt it takes over, it says when it ends.
    let mut take_over = holder.take_over.map(|attempt| (attempt, Before::Doubt));
    let mut waited = false;
    loop {
        let epoch = inner.store.epoch();
        let begin = begin_of(inner, &config, action, identified, policy, holder, take_over.map(|(attempt, _)| attempt));
        action.fits_a_record(begin.params.as_ref())?;
        inner.arrive(config.max_in_flight)?;
        let attempt = begin.attempt;
        let before = take_over.map_or(Before::Nothing, |(_, before)| before);
        // An attempt whose id the holder knows is the holder's to end, even if this call is dropped:
        // it may have been told of it by another.
        let may_have_begun = holder.attempt != Some(attempt);
        let place = Place { inner, identified, attempt, before, held: true, may_have_begun };
        let record = match holder.start.begin(&*inner.store, begin).await {
            Err(error) => {
                // After a lost answer it is not sure whether it began; that nothing ran is.
                if !matches!(error, StoreError::AnswerLost { .. }) {
                    place.nothing_began();
                }
                tracing::warn!(key = %identified.key, %error, "begin failed; nothing ran");
                guard.finish(FlightEnd::Store(error.clone()));
                return Err(error.into());
            }
            Ok(Begun::Started { attempts, started_at, expired, evicted }) => {
                inner.count_start(take_over.is_none(), expired, evicted);
                tracing::debug!(key = %identified.key, %attempt, attempts, "attempt began");
                place.hand_over();
                // A key that was settled or released meanwhile holds no doubt any more.
                let before = if attempts > 1 { before } else { Before::Nothing };
                let kind = holder.start.kind();
                return Ok(Acquired::Started(Started { attempt, attempts, started_at, before, kind, guard }));
            }
            Ok(Begun::Exists(record)) => {
                place.nothing_began();
                record
            }
        };
        if !fits(&record.fingerprint, &identified.fingerprint) {
            return Err(inner.mismatch(identified, record.fingerprint));
        }
        match record.state {
            State::Completed | State::Failed => {
                let entry = inner.remember(&record, epoch).await?;
                inner.count_hit(&entry);
                tracing::debug!(key = %identified.key, state = %record.state, "replayed from the store");
                guard.finish(FlightEnd::Recorded(entry.clone()));
                return Ok(Acquired::Entry(entry));
            }
            State::InProgress if holder.attempt == Some(record.attempt_id) => {
                // The holder asks again: the answer to its first request was lost on the way.
                inner.arrive(config.max_in_flight)?;
                let (attempt, attempts, started_at) = (record.attempt_id, record.attempts, record.started_at);
                let before = if attempts > 1 { Before::Doubt } else { Before::Nothing };
                return Ok(Acquired::Started(Started {
                    attempt,
                    attempts,
                    started_at,
                    before,
                    kind: holder.start.kind(),
                    guard,
                }));
            }
            State::InProgress => {
                if let InFlight::Wait(_) = policy.in_flight
                    && !std::mem::replace(&mut waited, true)
                {
                    inner.tally(&inner.gauges.waits_joined);
                }
                wait_for(inner, identified, policy, &record, began).await?;
            }
            State::InDoubt => match resolve(inner, &config, policy, record).await? {
                Resolved::Recorded(record) => {
                    let entry = inner.remember(&record, epoch).await?;
                    inner.count_hit(&entry);
                    guard.finish(FlightEnd::Recorded(entry.clone()));
                    return Ok(Acquired::Entry(entry));
                }
                Resolved::TakeOver(attempt, before) => take_over = Some((attempt, before)),
                Resolved::Look => take_over = None,
            },
        }
    }
}

fn begin_of(
    inner: &Inner,
    config: &Config,
    action: &Action,
    identified: &Identified,
    policy: &Policy,
    holder: &Holder,
    take_over: Option<AttemptId>,
) -> Begin {
    // An id names one attempt: who takes over its own doubt begins another.
    let attempt = holder.attempt.filter(|id| take_over != Some(*id)).unwrap_or_default();
    Begin {
        namespace: inner.namespace.clone(),
        key: identified.key.clone(),
        signal_id: action.signal_id.clone().filter(|s| !s.is_empty()),
        action_type: action.action_type.clone(),
        target: action.target.clone(),
        params: (policy.keep_params == KeepParams::Full).then(|| action.kept_params()).flatten(),
        fingerprint: identified.fingerprint,
        attempt,
        owner: holder.owner.clone(),
        lease: policy.lease,
        liveness: holder.liveness,
        tags: action.tags.clone(),
        take_over,
        capacity: inner.capacity(config),
    }
}

/// A place among the attempts in flight while `begin` is under way. Dropped by
/// a cancelled caller it puts the key back to what it was: whatever began, nothing ran.
struct Place<'a> {
    inner: &'a Arc<Inner>,
    identified: &'a Identified,
    attempt: AttemptId,
    before: Before,
    held: bool,
    may_have_begun: bool,
}

impl Place<'_> {
    /// The place goes on as the claim's.
    fn hand_over(mut self) {
        self.held = false;
        self.may_have_begun = false;
    }

    /// Gives the place back; the store has answered that nothing began.
    fn nothing_began(mut self) {
        self.may_have_begun = false;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.may_have_begun {
            let (store, namespace) = (self.inner.store.clone(), self.inner.namespace.clone());
            let (key, attempt) = (self.identified.key.clone(), self.attempt);
            let end = self.before.without_effect("the call that took over went away before the action ran");
            self.inner.background.spawn(async move {
                // At worst the attempt stays and its lease lapses into doubt: never a second run.
                let _ = store.end(namespace, key, attempt, end).await;
            });
        }
        // After that: a shutdown waits for the place or for the release.
        if self.held {
            self.inner.leave();
        }
    }
}

async fn wait_for(
    inner: &Inner,
    identified: &Identified,
    policy: &Policy,
    record: &Record,
    began: Instant,
) -> Result<(), Error> {
    let waited = began.elapsed();
    let left = match policy.in_flight {
        InFlight::Wait(wait) => wait.checked_sub(waited).filter(|d| !d.is_zero()),
        InFlight::Reject => None,
    };
    let Some(left) = left else {
        inner.tally(&inner.gauges.turned_away);
        return Err(Error::InFlight {
            key: identified.key.clone(),
            owner: record.owner.clone(),
            since: record.started_at,
            waited: if policy.in_flight == InFlight::Reject { Duration::ZERO } else { waited },
        });
    };
    let nap = match &inner.on_wait {
        Some(hook) => {
            hook(record, waited);
            left.min(Duration::from_millis(100))
        }
        None => left,
    };
    inner.store.changed(inner.namespace.clone(), identified.key.clone(), record.attempt_id, nap).await?;
    Ok(())
}

enum Resolved {
    Recorded(Box<Record>),
    TakeOver(AttemptId, Before),
    Look,
}

/// What the policy says about a key in doubt.
async fn resolve(inner: &Inner, config: &Config, policy: &Policy, mut record: Box<Record>) -> Result<Resolved, Error> {
    let verifier = match &policy.on_doubt {
        OnDoubt::Refuse => {
            inner.tally(&inner.gauges.turned_away);
            return Err(Error::InDoubt { record });
        }
        OnDoubt::RunAgain => return Ok(Resolved::TakeOver(record.attempt_id, Before::Doubt)),
        OnDoubt::Verify(verifier) => verifier,
    };
    let (key, attempt) = (record.key.clone(), record.attempt_id);
    let doubt = Doubt { key: key.clone(), attempt, record: (*record).clone() };
    let verdict = match tokio::time::timeout(config.verify_limit, verifier.look(doubt)).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => {
            record.error = Some(format!("the verifier failed: {error}"));
            Verdict::Unknown
        }
        Err(_) => {
            record.error = Some(format!("the verifier took longer than {:?}", config.verify_limit));
            Verdict::Unknown
        }
    };
    tracing::debug!(%key, %attempt, verdict = verdict_name(&verdict), "verified");
    match verdict {
        Verdict::Happened(result) => {
            let size = result.as_str().len();
            if size > config.max_result_bytes {
                record.error = Some(format!(
                    "the verifier's result is {size} bytes and max_result_bytes is {}",
                    config.max_result_bytes
                ));
                return Err(Error::InDoubt { record });
            }
            let settlement = Settlement::Happened { result, ttl: policy.ttl };
            match inner.store.settle(inner.namespace.clone(), key, Some(attempt), settlement).await? {
                Settled::Done(Some(record)) => Ok(Resolved::Recorded(record)),
                // Someone was quicker: what they made of it counts.
                Settled::Done(None) | Settled::NotInDoubt(_) => Ok(Resolved::Look),
            }
        }
        Verdict::NotHappened => Ok(Resolved::TakeOver(attempt, Before::Nothing)),
        Verdict::Unknown => {
            inner.tally(&inner.gauges.turned_away);
            Err(Error::InDoubt { record })
        }
    }
}

fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Happened(_) => "happened",
        Verdict::NotHappened => "not happened",
        Verdict::Unknown => "unknown",
    }
}

/// Runs the action under its claim and records how it ended.
async fn run_claimed<T, F, Fut>(mut claim: Claim, policy: &Policy, run: F) -> Result<T, Error>
where
    T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<T, ActionError>>,
{
    let future = run(claim.context().clone());
    let answer = match policy.time_limit {
        None => future.await,
        Some(limit) => match tokio::time::timeout(limit, future).await {
            Ok(answer) => answer,
            Err(_) => {
                let key = claim.key().clone();
                // The answer is the same whether or not the doubt could be written: unwritten, the lease lapses.
                let _ = claim.doubt(format!("the action ran past its time limit of {limit:?}")).await;
                return Err(Error::TimedOut { key, limit });
            }
        },
    };
    let value = match answer {
        Ok(value) => value,
        Err(error) => return Err(record_error(claim, policy, error).await),
    };
    let readable = Json::of(&value).and_then(|json| json.to::<T>().map(|back| (json, back)));
    let (json, back) = match readable {
        Ok(both) => both,
        Err(e) => {
            let reason = format!("it does not survive the way to JSON and back: {e}");
            return Err(claim.not_recorded(reason, Unrecorded::new(value)).await);
        }
    };
    if let Some(reason) = claim.too_large(&json) {
        return Err(claim.not_recorded(reason, Unrecorded::new(value)).await);
    }
    let end = End::Complete { result: json, ttl: claim.ttl(), duration: claim.elapsed() };
    match claim.end(end).await {
        Recorded::Done => Ok(back),
        Recorded::Lost => Err(Error::LostClaim {
            key: claim.key().clone(),
            attempt: claim.attempt(),
            value: Some(Unrecorded::new(value)),
        }),
        Recorded::Failed(error) => Err(claim.not_recorded(error.to_string(), Unrecorded::new(value)).await),
    }
}

/// Does with the key what the action's error says.
pub(crate) async fn record_error(mut claim: Claim, policy: &Policy, error: ActionError) -> Error {
    let class = error.class().unwrap_or(policy.on_error);
    let key = claim.key().clone();
    claim.count_failure();
    let end = match class {
        ErrorClass::Retryable => claim.without_effect(),
        ErrorClass::Permanent => End::Fail { error: error.to_string(), ttl: claim.ttl(), duration: claim.elapsed() },
        ErrorClass::Unknown => End::Doubt { reason: error.to_string() },
    };
    match claim.end(end.clone()).await {
        Recorded::Done => {
            let state = match class {
                ErrorClass::Retryable => claim.tell_released(&error),
                ErrorClass::Permanent => Some(State::Failed),
                ErrorClass::Unknown => Some(State::InDoubt),
            };
            Error::Action { key, class, state, error }
        }
        Recorded::Lost => Error::LostClaim { key, attempt: claim.attempt(), value: None },
        // The error that the action gave is what the caller must see; the key
        // is in doubt until the end is written after all.
        Recorded::Failed(_) => {
            claim.carry_through(end);
            let class = claim.class_unwritten();
            let state = (class == ErrorClass::Unknown).then_some(State::InDoubt);
            Error::Action { key, class, state, error }
        }
    }
}

impl Inner {
    fn mismatch(&self, identified: &Identified, recorded: crate::Fingerprint) -> Error {
        self.tally(&self.gauges.mismatches);
        tracing::debug!(key = %identified.key, "params mismatch; nothing ran");
        Error::ParamsMismatch { key: identified.key.clone(), recorded, given: identified.fingerprint }
    }

    fn count_start(&self, fresh: bool, expired: u64, evicted: u64) {
        bump(&self.gauges.executions);
        if fresh {
            bump(&self.gauges.misses);
        }
        self.count_room(expired, evicted);
    }

    /// Counts what went to make room for a record.
    pub(crate) fn count_room(&self, expired: u64, evicted: u64) {
        if expired > 0 {
            self.gauges.expired_cleaned.fetch_add(expired, Ordering::Relaxed);
        }
        if evicted > 0 {
            self.gauges.evicted.fetch_add(evicted, Ordering::Relaxed);
            self.warn_of_eviction(evicted);
        }
    }

    /// The leader's error, for one who joined.
    fn shared(&self, identified: &Identified, error: ActionError, state: Option<State>) -> Error {
        self.tally(&self.gauges.turned_away);
        Error::Action { key: identified.key.clone(), class: ErrorClass::Retryable, state, error }
    }

    fn count_hit(&self, entry: &Entry) {
        self.recent.hit_elsewhere(entry);
    }

    /// Remembers what the store has on record.
    async fn remember(&self, record: &Record, epoch: Option<u64>) -> Result<Arc<Entry>, Error> {
        let mut entry = self.entry_of(record, epoch);
        if record.expires_at.is_some() {
            let now = self.store.recent_now().await?;
            entry.until = self.until(now, record.expires_at);
        }
        let entry = Arc::new(entry);
        self.recent.insert(entry.clone(), self.coarse_now());
        Ok(entry)
    }
}
