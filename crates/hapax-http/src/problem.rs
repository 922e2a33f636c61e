//! Errors as RFC 9457 problem documents.
//!
//! Invariant: a program acts on `type`, `state`, `retryable` and
//! `safeToUseNewKey` alone; `detail` is for people and may change. A type, once
//! published, keeps its meaning and its status.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hapax::store::StoreError;
use hapax::{AttemptId, Error, ErrorClass, Key, State};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

/// Says on an answer whether it is a replay.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What went wrong: the stable part of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The request cannot be understood.
    BadRequest,
    /// A key is required and there is none.
    MissingKey,
    /// The key is no key.
    InvalidKey,
    /// No token, or one that is not known.
    Unauthorized,
    /// The token may not do this, or the request comes from where it must not.
    Forbidden,
    /// There is nothing under this key or path.
    NotFound,
    /// The path knows no such method.
    MethodNotAllowed,
    /// The request's body took too long to arrive.
    RequestTimeout,
    /// Another caller runs the action now.
    InFlight,
    /// The attempt that this call waited for ended without effect.
    Released,
    /// Nobody knows whether the effect happened.
    InDoubt,
    /// The attempt was taken over, settled or ended meanwhile.
    LostClaim,
    /// The key's state does not allow what was asked.
    WrongState,
    /// The action failed for good earlier.
    Failed,
    /// The result is larger than the limit; the key is in doubt.
    ResultTooLarge,
    /// The request's body is larger than the limit.
    BodyTooLarge,
    /// The content type is not the one that is read here.
    UnsupportedMediaType,
    /// The key was used with other content.
    ParamsMismatch,
    /// The store is full and was told to reject more.
    StoreFull,
    /// The store does not answer.
    StoreUnavailable,
    /// The store may have done what was asked, and its answer was lost.
    AnswerLost,
    /// Too much is under way.
    Overloaded,
    /// The server is shutting down.
    ShuttingDown,
    /// The upstream could not be reached; nothing was sent to it.
    UpstreamUnreachable,
    /// The upstream was sent the request and gave no whole answer; the key is in doubt.
    UpstreamLost,
    /// The server is at fault.
    Internal,
}

impl Kind {
    /// All kinds, in the order of their status.
    pub const ALL: [Self; 26] = [
        Self::BadRequest,
        Self::MissingKey,
        Self::InvalidKey,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::InFlight,
        Self::Released,
        Self::InDoubt,
        Self::LostClaim,
        Self::WrongState,
        Self::Failed,
        Self::ResultTooLarge,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::ParamsMismatch,
        Self::StoreFull,
        Self::StoreUnavailable,
        Self::AnswerLost,
        Self::Overloaded,
        Self::ShuttingDown,
        Self::UpstreamUnreachable,
        Self::UpstreamLost,
        Self::Internal,
    ];

    /// The last part of the type.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Whether the same request may succeed later with the same key.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self.row().3, Advice::Retry)
    }

    /// Whether the same request under a new key cannot repeat an effect: only where the key's record says so. Whoever
    /// is refused before that, or while it waits, may have a first sending that runs or has run.
    #[must_use]
    pub fn safe_to_use_new_key(self) -> bool {
        matches!(self.row().3, Advice::NewKey)
    }

    fn row(self) -> (&'static str, StatusCode, &'static str, Advice) {
        use Advice::{KeepKey, NewKey, Retry};
        use StatusCode as S;
        match self {
            Self::BadRequest => ("bad-request", S::BAD_REQUEST, "The request cannot be understood", KeepKey),
            Self::MissingKey => ("missing-key", S::BAD_REQUEST, "An Idempotency-Key is required", KeepKey),
            Self::InvalidKey => ("invalid-key", S::BAD_REQUEST, "The key is not valid", KeepKey),
            Self::Unauthorized => ("unauthorized", S::UNAUTHORIZED, "A valid bearer token is required", KeepKey),
            Self::Forbidden => ("forbidden", S::FORBIDDEN, "This is not allowed", KeepKey),
            Self::NotFound => ("not-found", S::NOT_FOUND, "There is nothing here", KeepKey),
            Self::MethodNotAllowed => {
                ("method-not-allowed", S::METHOD_NOT_ALLOWED, "The path knows no such method", KeepKey)
            }
            Self::RequestTimeout => {
                ("request-timeout", S::REQUEST_TIMEOUT, "The request took too long to arrive", Retry)
            }
            Self::InFlight => ("in-flight", S::CONFLICT, "The action is running", Retry),
            Self::Released => ("released", S::CONFLICT, "The attempt waited for ended without effect", Retry),
            Self::InDoubt => ("in-doubt", S::CONFLICT, "Nobody knows whether the effect happened", KeepKey),
            Self::LostClaim => ("lost-claim", S::CONFLICT, "The attempt lost its claim and changed nothing", KeepKey),
            Self::WrongState => ("wrong-state", S::CONFLICT, "The key's state does not allow this", KeepKey),
            Self::Failed => ("failed", S::CONFLICT, "The action failed for good", NewKey),
            Self::ResultTooLarge => {
                ("result-too-large", S::PAYLOAD_TOO_LARGE, "The result is too large to record", KeepKey)
            }
            Self::BodyTooLarge => ("body-too-large", S::PAYLOAD_TOO_LARGE, "The request's body is too large", KeepKey),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                S::UNSUPPORTED_MEDIA_TYPE,
                "The content type must be application/json",
                KeepKey,
            ),
            Self::ParamsMismatch => {
                ("params-mismatch", S::UNPROCESSABLE_ENTITY, "The key was used with other content", NewKey)
            }
            Self::StoreFull => ("store-full", S::INSUFFICIENT_STORAGE, "The store is full", Retry),
            Self::StoreUnavailable => ("store-unavailable", S::SERVICE_UNAVAILABLE, "The store does not answer", Retry),
            Self::AnswerLost => ("answer-lost", S::SERVICE_UNAVAILABLE, "Nobody knows whether the store did it", Retry),
            Self::Overloaded => ("overloaded", S::SERVICE_UNAVAILABLE, "Too much is under way", Retry),
            Self::ShuttingDown => ("shutting-down", S::SERVICE_UNAVAILABLE, "The server is shutting down", Retry),
            Self::UpstreamUnreachable => {
                ("upstream-unreachable", S::BAD_GATEWAY, "The upstream cannot be reached", Retry)
            }
            Self::UpstreamLost => ("upstream-lost", S::BAD_GATEWAY, "The upstream gave no whole answer", KeepKey),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "The server is at fault", KeepKey),
        }
    }
}

enum Advice {
    /// Try again with the same key; a new one may repeat the effect.
    Retry,
    /// The same request will fail again, and by the key's record nothing of it happened: it may have a new key.
    NewKey,
    /// Neither: the request is to be corrected, or the key's state looked at. A new key may repeat the effect.
    KeepKey,
}

/// A problem document as it is written, `application/problem+json`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub(crate) struct Document<'a> {
    /// What went wrong, stable: `urn:hapax:problem:` and a name.
    #[serde(rename = "type")]
    #[schema(example = "urn:hapax:problem:in-doubt")]
    type_uri: String,
    /// The same in a few words.
    title: &'a str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened here and what to do next, for people.
    detail: &'a str,
    /// The key that it is about.
    #[schema(required)]
    key: Option<&'a str>,
    /// The key's state, as far as it is known.
    #[schema(required, value_type = Option<crate::schema::State>)]
    state: Option<State>,
    /// Whether the same request may succeed later with the same key.
    retryable: bool,
    /// Whether the same request under a new key cannot repeat an effect: `true` only where the key's record says so.
    safe_to_use_new_key: bool,
    /// The attempt that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid, nullable = false)]
    attempt_id: Option<AttemptId>,
}

/// What went wrong with a request.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: Kind,
    detail: String,
    key: Option<String>,
    state: Option<State>,
    attempt: Option<AttemptId>,
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem of this kind.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let retry_after = kind.retryable().then_some(1);
        Self { kind, detail: detail.into(), key: None, state: None, attempt: None, retry_after }
    }

    /// A key that no path can name: it is not taken in, so that what is recorded can be asked for.
    pub(crate) fn of_step(key: &Key) -> Self {
        let detail = format!("the key {key} cannot stand in a path, where it is a step to elsewhere: choose another");
        Self::new(Kind::InvalidKey, detail).key(key)
    }

    /// With the key that it is about.
    #[must_use]
    pub fn key(mut self, key: &Key) -> Self {
        self.key = Some(key.as_str().into());
        self
    }

    /// With the key as its caller wrote it.
    #[must_use]
    pub fn key_text(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With the key's state.
    #[must_use]
    pub fn state(mut self, state: Option<State>) -> Self {
        self.state = state;
        self
    }

    /// With the attempt that it is about.
    #[must_use]
    pub fn attempt(mut self, attempt: AttemptId) -> Self {
        self.attempt = Some(attempt);
        self
    }

    /// With the time after which to try again, in whole seconds, at least 1.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(u32::try_from(after.as_secs()).unwrap_or(u32::MAX).max(1));
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The document and its headers, apart from any server.
    #[must_use]
    pub fn into_parts(self) -> (http::response::Parts, Vec<u8>) {
        let document = Document {
            type_uri: format!("urn:hapax:problem:{}", self.kind.slug()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            key: self.key.as_deref(),
            state: self.state,
            retryable: self.kind.retryable(),
            safe_to_use_new_key: self.kind.safe_to_use_new_key(),
            attempt_id: self.attempt,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = self.kind.status();
        let headers = &mut parts.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hapax\""));
        }
        if matches!(self.kind, Kind::BodyTooLarge | Kind::RequestTimeout) {
            // The rest of the body is not read: the connection cannot go on.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        parts.extensions.insert(self.kind);
        (parts, body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (parts, body) = self.into_parts();
        Response::from_parts(parts, body.into())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        let about = |kind, key: &Key, state| Self::new(kind, detail.clone()).key(key).state(state);
        match &error {
            Error::Key(_) => Self::new(Kind::InvalidKey, detail),
            Error::Params(_) | Error::Config { .. } => Self::new(Kind::BadRequest, detail),
            Error::ParamsMismatch { key, .. } => about(Kind::ParamsMismatch, key, None),
            Error::InFlight { key, .. } => about(Kind::InFlight, key, Some(State::InProgress)),
            Error::InDoubt { record } => {
                about(Kind::InDoubt, &record.key, Some(record.state)).attempt(record.attempt_id)
            }
            Error::Action { key, state: Some(State::InDoubt), .. } => about(Kind::InDoubt, key, Some(State::InDoubt)),
            Error::Action { key, class, .. } => match class {
                ErrorClass::Retryable => about(Kind::Released, key, None),
                ErrorClass::Permanent => about(Kind::Failed, key, Some(State::Failed)),
                ErrorClass::Unknown => about(Kind::InDoubt, key, Some(State::InDoubt)),
            },
            Error::Failed { key, .. } => about(Kind::Failed, key, Some(State::Failed)),
            Error::TimedOut { key, .. } => about(Kind::InDoubt, key, Some(State::InDoubt)),
            Error::NotRecorded { key, .. } => about(Kind::ResultTooLarge, key, Some(State::InDoubt)),
            Error::LostClaim { key, attempt, .. } => about(Kind::LostClaim, key, None).attempt(*attempt),
            Error::WrongState { key, state: None, .. } => about(Kind::NotFound, key, None),
            Error::WrongState { key, state, .. } => about(Kind::WrongState, key, *state),
            Error::ResultType { key, .. } => about(Kind::Internal, key, Some(State::Completed)),
            Error::ShuttingDown => Self::new(Kind::ShuttingDown, detail),
            Error::TooManyInFlight { .. } => Self::new(Kind::Overloaded, detail),
            Error::Store(error) => Self::new(
                match error {
                    StoreError::BadRequest { .. } => Kind::BadRequest,
                    StoreError::Capacity { .. } | StoreError::Full { .. } => Kind::StoreFull,
                    StoreError::Overloaded { .. } => Kind::Overloaded,
                    StoreError::Damaged { .. } => Kind::Internal,
                    StoreError::AnswerLost { .. } => Kind::AnswerLost,
                    _ => Kind::StoreUnavailable,
                },
                detail,
            ),
            // An error that a later version of the library brings.
            _ => Self::new(Kind::Internal, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_type_of_its_own_and_an_error_status() {
        let mut slugs: Vec<_> = Kind::ALL.iter().map(|k| k.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|k| k.status().is_client_error() || k.status().is_server_error()));
    }

    #[test]
    fn a_new_key_is_advised_only_where_the_record_says_that_nothing_happened() {
        let advised: Vec<_> = Kind::ALL.into_iter().filter(|kind| kind.safe_to_use_new_key()).collect();
        assert_eq!(advised, [Kind::Failed, Kind::ParamsMismatch]);
        // These do not last, and the key may be running or have its result: it is to be sent again.
        for kind in [Kind::RequestTimeout, Kind::Overloaded, Kind::ShuttingDown, Kind::AnswerLost, Kind::InFlight] {
            assert!(kind.retryable(), "{kind:?}");
        }
        assert!(!Kind::InDoubt.retryable());
    }
}
