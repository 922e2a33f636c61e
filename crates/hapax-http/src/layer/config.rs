//! What can be chosen for the layer.

use std::time::Duration;

use http::{HeaderName, Method};

use super::fate::Fates;
use super::key::{IDEMPOTENCY_KEY, KeySource, Scope};

/// How a request's body is compared with the one first sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BodyIdentity {
    /// JSON by its value (RFC 8785): white space and the order of members do
    /// not count. Anything else byte by byte, and so JSON with a number that
    /// reading it as a double would change.
    #[default]
    Json,
    /// Byte by byte.
    Bytes,
}

/// The layer's choices.
///
/// ```
/// use hapax_http::{Fate, Fates, Idempotency, Scope};
/// let options = Idempotency::default()
///     .require_key()
///     .scope(Scope::Caller)
///     .fates(Fates::default().with("504", Fate::Doubt)?);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Idempotency {
    /// Where the key is looked for; the first that has one counts. Default: `Idempotency-Key`.
    pub sources: Vec<KeySource>,
    /// Methods whose requests must bring a key; others may. Default: none.
    pub required: Vec<Method>,
    /// What besides the key tells callers apart. Default: nothing.
    pub scopes: Vec<Scope>,
    /// What becomes of a key, by the answer's status.
    pub fates: Fates,
    /// How bodies are compared. Default: JSON by its value.
    pub body_identity: BodyIdentity,
    /// The largest request that is taken in under a key, in bytes. Default: 1 MiB.
    pub max_request_bytes: usize,
    /// How long such a request may take to arrive. Default: 30 s.
    pub request_time: Duration,
    /// The largest answer that is recorded, in bytes of its body. Default: 512
    /// KiB; beyond it the answer streams through and the key is in doubt.
    pub max_response_bytes: usize,
    /// How long the body of an answer that is being recorded may be silent,
    /// from one piece to the next; past it the answer counts as broken off and
    /// the key is in doubt. Default: 60 s.
    pub response_silence: Duration,
    /// How long a duplicate waits for the answer; zero turns it away at once
    /// with 409. Default: zero. A client may ask for a wait by `Prefer: wait=10`.
    pub wait: Duration,
    /// The most that `Prefer: wait` gets. Default: 60 s.
    pub max_wait: Duration,
    /// How long the handler may take; past it the key is in doubt. Default: no limit.
    pub time_limit: Option<Duration>,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self {
            sources: vec![KeySource::Header(IDEMPOTENCY_KEY)],
            required: Vec::new(),
            scopes: Vec::new(),
            fates: Fates::default(),
            body_identity: BodyIdentity::default(),
            max_request_bytes: 1 << 20,
            request_time: Duration::from_secs(30),
            max_response_bytes: 512 << 10,
            response_silence: Duration::from_secs(60),
            wait: Duration::ZERO,
            max_wait: Duration::from_secs(60),
            time_limit: None,
        }
    }
}

impl Idempotency {
    /// Requires a key of POST and PATCH, as the draft has it.
    #[must_use]
    pub fn require_key(mut self) -> Self {
        self.required = vec![Method::POST, Method::PATCH];
        self
    }

    /// Looks for the key in this header as well.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.sources.push(KeySource::Header(name));
        self
    }

    /// Looks for the key in JSON bodies as well, by RFC 6901 pointer.
    #[must_use]
    pub fn body_pointer(mut self, pointer: impl Into<String>) -> Self {
        self.sources.push(KeySource::Body(pointer.into()));
        self
    }

    /// Tells callers apart by this, too.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.push(scope);
        self
    }

    /// Sets what becomes of keys.
    #[must_use]
    pub fn fates(mut self, fates: Fates) -> Self {
        self.fates = fates;
        self
    }

    /// Sets how long a duplicate waits.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets how long the handler may take.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Sets how long an answer's body may be silent while it is recorded.
    #[must_use]
    pub fn response_silence(mut self, limit: Duration) -> Self {
        self.response_silence = limit;
        self
    }

    /// Sets the largest request and the largest recorded answer, in bytes.
    #[must_use]
    pub fn limits(mut self, request: usize, response: usize) -> Self {
        self.max_request_bytes = request;
        self.max_response_bytes = response;
        self
    }
}
