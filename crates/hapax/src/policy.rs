//! The choices of a call: what happens on a duplicate, in doubt, on an error;
//! how long a result lives.
//!
//! A [`Policy`] has every choice made; a [`PolicyPatch`] makes some of them.
//! The manager's policy is patched by what is set for the action's type, then
//! for its type and target, then by the call itself.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::{AttemptId, Identity, Json, Key, Record, Ttl};

/// What a caller does that meets a live attempt of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Wait for the attempt's result, at most this long.
    Wait(Duration),
    /// Fail at once with [`Error::InFlight`](crate::Error::InFlight).
    Reject,
}

/// What a caller does that meets a key in doubt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OnDoubt {
    /// Fail with [`Error::InDoubt`](crate::Error::InDoubt) until someone settles the key.
    Refuse,
    /// Run the action again: for actions that are harmless to repeat.
    RunAgain,
    /// Ask the verifier whether the effect happened.
    Verify(Verifier),
}

/// What a verifier found.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The effect happened; this is its result, recorded from now on.
    Happened(Json),
    /// The effect did not happen and will not: the action runs again.
    NotHappened,
    /// It cannot tell: the key stays in doubt.
    Unknown,
}

/// What a verifier gets to look with.
#[derive(Clone, Debug)]
pub struct Doubt {
    /// The key in doubt.
    pub key: Key,
    /// The attempt whose end is unknown.
    pub attempt: AttemptId,
    /// The whole record.
    pub record: Record,
}

type VerifyFuture = Pin<Box<dyn Future<Output = Result<Verdict, crate::ActionError>> + Send>>;

/// The user's function that looks whether an effect happened.
#[derive(Clone)]
pub struct Verifier(Arc<dyn Fn(Doubt) -> VerifyFuture + Send + Sync>);

impl Verifier {
    /// A verifier from an async closure. An error counts as [`Verdict::Unknown`].
    ///
    /// ```
    /// use hapax::{Verdict, Verifier};
    /// let verifier = Verifier::new(|doubt| async move {
    ///     // Look the effect up at the target by `doubt.key`.
    ///     Ok(Verdict::NotHappened)
    /// });
    /// ```
    pub fn new<F, Fut>(look: F) -> Self
    where
        F: Fn(Doubt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Verdict, crate::ActionError>> + Send + 'static,
    {
        Self(Arc::new(move |doubt| Box::pin(look(doubt))))
    }

    pub(crate) fn look(&self, doubt: Doubt) -> VerifyFuture {
        (self.0)(doubt)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

/// What an error says about the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The effect did not happen; the key is free again.
    Retryable,
    /// It will never happen; the error is the recorded answer.
    Permanent,
    /// Nobody knows; the key is in doubt.
    Unknown,
}

/// How much of the params a record keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepParams {
    /// All of them.
    Full,
    /// Their fingerprint only.
    Fingerprint,
}

/// Every choice of a call, made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// How long the result is kept. Default: 24 h.
    pub ttl: Ttl,
    /// On a duplicate in flight. Default: wait 30 s.
    pub in_flight: InFlight,
    /// On a key in doubt. Default: refuse.
    pub on_doubt: OnDoubt,
    /// What a plain error counts as. Default: retryable.
    pub on_error: ErrorClass,
    /// The action's time limit; past it the attempt is in doubt. Default: none.
    pub time_limit: Option<Duration>,
    /// How long an attempt may be silent before it counts as dead. Default:
    /// 60 s; between 1 s and 24 h.
    pub lease: Duration,
    /// Which params identify the action. Default: all.
    pub identity: Identity,
    /// How much of the params is kept. Default: all.
    pub keep_params: KeepParams,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ttl: Ttl::For(Duration::from_secs(24 * 3600)),
            in_flight: InFlight::Wait(Duration::from_secs(30)),
            on_doubt: OnDoubt::Refuse,
            on_error: ErrorClass::Retryable,
            time_limit: None,
            lease: Duration::from_secs(60),
            identity: Identity::All,
            keep_params: KeepParams::Full,
        }
    }
}

/// Some choices; the others stay as they were one level up.
///
/// ```
/// use std::time::Duration;
/// use hapax::{OnDoubt, PolicyPatch};
/// let patch = PolicyPatch::new().ttl(Duration::from_secs(3600)).on_doubt(OnDoubt::RunAgain);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PolicyPatch {
    /// See [`Policy::ttl`].
    pub ttl: Option<Ttl>,
    /// See [`Policy::in_flight`].
    pub in_flight: Option<InFlight>,
    /// See [`Policy::on_doubt`].
    pub on_doubt: Option<OnDoubt>,
    /// See [`Policy::on_error`].
    pub on_error: Option<ErrorClass>,
    /// See [`Policy::time_limit`]; `Some(None)` takes a limit away.
    pub time_limit: Option<Option<Duration>>,
    /// See [`Policy::lease`].
    pub lease: Option<Duration>,
    /// See [`Policy::identity`].
    pub identity: Option<Identity>,
    /// See [`Policy::keep_params`].
    pub keep_params: Option<KeepParams>,
}

impl PolicyPatch {
    /// A patch that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long the result is kept.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = Some(ttl.into());
        self
    }

    /// Sets what happens on a duplicate in flight.
    #[must_use]
    pub fn in_flight(mut self, choice: InFlight) -> Self {
        self.in_flight = Some(choice);
        self
    }

    /// Sets what happens on a key in doubt.
    #[must_use]
    pub fn on_doubt(mut self, choice: OnDoubt) -> Self {
        self.on_doubt = Some(choice);
        self
    }

    /// Sets what a plain error counts as.
    #[must_use]
    pub fn on_error(mut self, class: ErrorClass) -> Self {
        self.on_error = Some(class);
        self
    }

    /// Sets the action's time limit, or takes it away.
    #[must_use]
    pub fn time_limit(mut self, limit: Option<Duration>) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Sets the lease.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Sets which params identify the action.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets how much of the params is kept.
    #[must_use]
    pub fn keep_params(mut self, keep: KeepParams) -> Self {
        self.keep_params = Some(keep);
        self
    }

    /// `policy` with this patch's choices in place of its own.
    pub fn apply(&self, policy: &mut Policy) {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        set(&mut policy.ttl, self.ttl.as_ref());
        set(&mut policy.in_flight, self.in_flight.as_ref());
        set(&mut policy.on_doubt, self.on_doubt.as_ref());
        set(&mut policy.on_error, self.on_error.as_ref());
        set(&mut policy.time_limit, self.time_limit.as_ref());
        set(&mut policy.lease, self.lease.as_ref());
        set(&mut policy.identity, self.identity.as_ref());
        set(&mut policy.keep_params, self.keep_params.as_ref());
    }
}
