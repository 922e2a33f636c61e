//! What can go wrong, in the user's words and with the remedy.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::store::StoreError;
use crate::{AttemptId, ErrorClass, Fingerprint, Key, KeyError, Owner, ParamsError, Record, State, Timestamp};

/// The most bytes that a record keeps of an error's text, or of a doubt's reason: 64 KiB. Of longer ones it keeps
/// the beginning; the call that ran the action gets the error itself.
pub const MAX_ERROR_BYTES: usize = 64 << 10;

/// Cuts a text down to what a record keeps of it.
pub(crate) fn shorten(text: &mut String) {
    const CUT: &str = "… (cut off)";
    if text.len() > MAX_ERROR_BYTES {
        let mut end = MAX_ERROR_BYTES - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
}

/// What an action's closure returns when it fails.
///
/// Any `std::error::Error` becomes one by `?` and then counts as the policy's
/// [`on_error`](crate::Policy::on_error) says; the constructors say it themselves.
#[derive(Clone)]
pub struct ActionError {
    class: Option<ErrorClass>,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl ActionError {
    /// An error that says nothing about the effect: the policy decides.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: None, source: Arc::from(source.into()) }
    }

    /// The effect did not happen: the key is free for the next try.
    pub fn retryable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Some(ErrorClass::Retryable), ..Self::new(source) }
    }

    /// It will never happen: the error is recorded as the answer.
    pub fn permanent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Some(ErrorClass::Permanent), ..Self::new(source) }
    }

    /// Nobody knows whether it happened: the key is left in doubt.
    pub fn unknown(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Some(ErrorClass::Unknown), ..Self::new(source) }
    }

    /// What the error says about the effect, if it does.
    #[must_use]
    pub fn class(&self) -> Option<ErrorClass> {
        self.class
    }

    /// The same error, of another class.
    #[cfg(feature = "postgres")]
    pub(crate) fn with_class(self, class: ErrorClass) -> Self {
        Self { class: Some(class), ..self }
    }

    /// The error that was given.
    #[must_use]
    pub fn source(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl fmt::Display for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl fmt::Debug for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActionError").field("class", &self.class).field("source", &self.source).finish()
    }
}

// Like `anyhow::Error`, this type is no `std::error::Error` itself: that is
// what lets every other error become one by `?`.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for ActionError {
    fn from(source: E) -> Self {
        Self { class: None, source: Arc::new(source) }
    }
}

/// The value of an action that ran but could not be recorded.
pub struct Unrecorded(Box<dyn Any + Send + Sync>);

impl Unrecorded {
    pub(crate) fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Box::new(value))
    }

    /// The value, by the type that `execute` would have returned.
    ///
    /// # Errors
    /// Gives itself back when the type is another.
    pub fn into_value<T: Any>(self) -> Result<T, Self> {
        self.0.downcast::<T>().map(|value| *value).map_err(Self)
    }
}

impl fmt::Debug for Unrecorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unrecorded(..)")
    }
}

/// Everything that hapax answers when it does not answer with a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key cannot be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),

    /// The params have no canonical form.
    #[error(transparent)]
    Params(#[from] ParamsError),

    /// A setting is out of its range.
    #[error("bad configuration: {message}")]
    Config {
        /// What is wrong and what is right.
        message: String,
    },

    /// The key was used before with other params. Nothing ran, nothing changed.
    #[error(
        "params mismatch for key {key}: it was first used with other params (recorded fingerprint {recorded}, given {given}); \
         use a new key for a new action, or send the params that came with this one"
    )]
    ParamsMismatch {
        /// The key.
        key: Key,
        /// The fingerprint on record.
        recorded: Fingerprint,
        /// The fingerprint of this call's params.
        given: Fingerprint,
    },

    /// Another caller runs the action now.
    #[error(
        "key {key} is in flight: {owner} has been running it since {since}{}; \
         try again later with the same key", waited_text(.waited)
    )]
    InFlight {
        /// The key.
        key: Key,
        /// Who runs it.
        owner: Owner,
        /// Since when.
        since: Timestamp,
        /// How long this call waited.
        waited: Duration,
    },

    /// Nobody knows whether the effect happened.
    #[error(
        "key {} is in doubt: attempt {} of {} began {} and ended without a word{}, so its effect may have happened; \
         look whether it did, then settle the key (`hapax settle`, `Hapax::settle`), or give a verifier",
         .record.key, .record.attempt_id, .record.owner, .record.started_at, reason_text(.record.error.as_deref())
    )]
    InDoubt {
        /// The record as it stands.
        record: Box<Record>,
    },

    /// The action ran and failed; the class says what became of the key.
    #[error("the action for key {key} failed ({}): {error}", fate_text(*.class, *.state))]
    Action {
        /// The key.
        key: Key,
        /// What the error said of the effect.
        class: ErrorClass,
        /// What became of the key; `None`: it is free. An attempt without effect leaves a key in doubt when it took
        /// over a doubt that nobody has looked into.
        state: Option<State>,
        /// What the closure returned.
        error: ActionError,
    },

    /// The action failed for good earlier; this is the recorded error.
    #[error(
        "the action for key {key} failed for good at {at}: {message}; use a new key to try anew, or clear this one"
    )]
    Failed {
        /// The key.
        key: Key,
        /// The recorded error.
        message: String,
        /// When it was recorded.
        at: Timestamp,
    },

    /// The action ran past its time limit; the key is in doubt.
    #[error(
        "the action for key {key} ran past its time limit of {limit:?}; the key is in doubt: look whether the effect happened, then settle it"
    )]
    TimedOut {
        /// The key.
        key: Key,
        /// The limit.
        limit: Duration,
    },

    /// The action ran, but its result is not recorded; the value is in here.
    #[error(
        "the action for key {key} ran, but its result was not recorded: {reason}; the value is in this error, and what the key's record says counts: while that is in doubt, \
         nothing runs again until it is settled"
    )]
    NotRecorded {
        /// The key.
        key: Key,
        /// Why.
        reason: String,
        /// The value.
        value: Unrecorded,
    },

    /// The attempt was taken over or settled meanwhile; it changed nothing.
    #[error(
        "attempt {attempt} of key {key} lost its claim: the key was taken over or settled meanwhile, and this attempt changed nothing; read the record to see what counts"
    )]
    LostClaim {
        /// The key.
        key: Key,
        /// The stale attempt.
        attempt: AttemptId,
        /// What the action returned, if it did and the claim did not take it before.
        value: Option<Unrecorded>,
    },

    /// The key's state does not allow what was asked.
    #[error("key {key} is {}: {remedy}", state_text(.state))]
    WrongState {
        /// The key.
        key: Key,
        /// Its state; `None` when there is no record.
        state: Option<State>,
        /// What to do instead.
        remedy: &'static str,
    },

    /// What is on record is not the type that was asked for.
    #[error(
        "the result recorded for key {key} cannot be read as {wanted}: {source}; read it as serde_json::Value, or use a new key since the type has changed"
    )]
    ResultType {
        /// The key.
        key: Key,
        /// The Rust type asked for.
        wanted: &'static str,
        /// What the reader said.
        source: serde_json::Error,
    },

    /// The manager is shutting down and begins nothing more.
    #[error("hapax is shutting down: this call began nothing; try again later with the same key")]
    ShuttingDown,

    /// Too many actions are in flight in this process.
    #[error(
        "{limit} actions are in flight in this process already; this call began nothing: try again later with the same key, or raise max_in_flight"
    )]
    TooManyInFlight {
        /// The limit.
        limit: usize,
    },

    /// The store did not do what it was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// Whether the same call may succeed later with the same key.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InFlight { .. } | Self::ShuttingDown | Self::TooManyInFlight { .. } => true,
            Self::Action { class, .. } => *class == ErrorClass::Retryable,
            Self::Store(e) => e.is_transient(),
            _ => false,
        }
    }
}

fn waited_text(waited: &Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(" (waited {:.1} s)", waited.as_secs_f64()) }
}

fn reason_text(reason: Option<&str>) -> String {
    reason.map(|r| format!(" ({r})")).unwrap_or_default()
}

fn fate_text(class: ErrorClass, state: Option<State>) -> &'static str {
    match (class, state) {
        (ErrorClass::Retryable, Some(State::InDoubt)) => {
            "without effect, but an attempt before it was in doubt, and so the key still is: settle it"
        }
        (_, None) => "the key is free again",
        (ErrorClass::Permanent, _) => "recorded for good",
        (ErrorClass::Retryable | ErrorClass::Unknown, _) => "the key is in doubt: settle it",
    }
}

fn state_text(state: &Option<State>) -> &'static str {
    state.map_or("absent", State::as_str)
}
