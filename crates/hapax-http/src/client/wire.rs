//! Requests to the server: sent, sent again after a lost answer, and read.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hapax::store::StoreError;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::access::NAMESPACE;
use crate::layer::{Body, full};
use crate::proxy::{HttpClient, chain};

/// The largest answer that is read: a page of records at most.
const MAX_ANSWER: usize = 256 << 20;
/// How long an answer may take to begin, its wait apart.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// How long it may take from there to its end.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// How often a request is sent whose answer is lost, or that the server was too busy for.
pub(super) const TRIES: u32 = 3;

/// Whether a request may be sent again when nobody knows whether it was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resend {
    /// It is known by its attempt, or does the same thing twice.
    Safe,
    /// A second time could do more than the first.
    Never,
}

/// A server, and how to ask it.
pub(super) struct Wire {
    pub(super) location: String,
    pub(super) client: HttpClient,
    pub(super) authorization: Option<HeaderValue>,
    /// How long an answer may take to begin, its wait apart.
    pub(super) limit: Duration,
}

/// What it answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// It may have been carried out by a sending whose answer was lost, or by one that the server is not sure of.
    pub(super) unsure: bool,
}

/// What an answer says of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It was not carried out, and may be later.
    NotYet,
    /// Nobody knows.
    Unknown,
}

impl Fate {
    fn of(method: &Method, status: StatusCode, body: &[u8]) -> Self {
        if !status.is_server_error() || status == StatusCode::INSUFFICIENT_STORAGE {
            return Self::Answered;
        }
        let is_unavailable = status == StatusCode::SERVICE_UNAVAILABLE;
        if method == Method::GET {
            return if is_unavailable { Self::NotYet } else { Self::Answered };
        }
        let is_ours = |name| is_problem_text(body, name);
        if is_unavailable && (is_ours("store-unavailable") || is_ours("overloaded")) {
            return Self::NotYet;
        }
        Self::Unknown
    }
}

impl Wire {
    pub(super) async fn ask(
        &self,
        namespace: &HeaderValue,
        method: &Method,
        path: &str,
        body: Option<&str>,
        wait: Duration,
        resend: Resend,
    ) -> Result<Answer, StoreError> {
        let (mut tries, mut unsure) = (1, false);
        let is_read = *method == Method::GET;
        loop {
            let began = Instant::now();
            let mut asked = self.once(namespace, method, path, body, wait).await;
            if is_read && let Err(StoreError::AnswerLost { store, message }) = asked {
                // What only looks has changed nothing.
                asked = Err(StoreError::Unavailable { store, message });
            }
            let fate = match &asked {
                Ok((status, body)) => Fate::of(method, *status, body),
                // Who was silent for so long is not waited for again.
                Err(_) if is_read && began.elapsed() >= self.limit + wait => Fate::Answered,
                Err(StoreError::AnswerLost { .. }) => Fate::Unknown,
                Err(_) => Fate::NotYet,
            };
            unsure |= fate == Fate::Unknown;
            if fate == Fate::Answered || tries >= TRIES || (unsure && resend == Resend::Never) {
                let (status, body) = asked.map_err(|error| match error {
                    StoreError::Unavailable { message, .. } if unsure => self.lost(message),
                    error => error,
                })?;
                return Ok(Answer { status, body, unsure });
            }
            tokio::time::sleep(Duration::from_millis(100) * tries).await;
            tries += 1;
        }
    }

    /// Nobody knows whether a request was carried out.
    pub(super) fn lost(&self, message: String) -> StoreError {
        StoreError::AnswerLost { store: self.location.clone(), message }
    }

    /// A request that was sent before and finds nothing of its own: by its first sending, or for another reason.
    pub(super) fn not_its_own(&self) -> StoreError {
        self.lost("sent again after its answer was lost, it found nothing of its own: look at the record".into())
    }

    async fn once(
        &self,
        namespace: &HeaderValue,
        method: &Method,
        path: &str,
        body: Option<&str>,
        wait: Duration,
    ) -> Result<(StatusCode, Bytes), StoreError> {
        let request = self.request(namespace, method, path, body)?;
        let limit = self.limit + wait;
        let silent = |_| self.lost(format!("no answer within {limit:?}"));
        let response = tokio::time::timeout(limit, self.client.request(request)).await.map_err(silent)?;
        let response = response.map_err(|e| match e.is_connect() {
            true => StoreError::Unavailable {
                store: self.location.clone(),
                message: format!("{}; start it with `hapax serve`, or correct the address", chain(&e)),
            },
            false => self.lost(e.to_string()),
        })?;
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(READ_LIMIT, Limited::new(body, MAX_ANSWER).collect()).await;
        let body = body.map_err(|_| self.lost(format!("its answer was not there within {READ_LIMIT:?}")))?;
        let body = body.map_err(|e| self.lost(e.to_string()))?;
        Ok((parts.status, body.to_bytes()))
    }

    /// A request with all that the server wants to know.
    pub(super) fn request(
        &self,
        namespace: &HeaderValue,
        method: &Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Request<Body>, StoreError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.location))
            .header(header::CONTENT_TYPE, "application/json")
            .header(NAMESPACE, namespace);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let body = body.unwrap_or_default().to_string();
        request
            .body(full(body.into()))
            .map_err(|e| StoreError::BadRequest { message: format!("the request cannot be made: {e}") })
    }

    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, StoreError> {
        serde_json::from_slice(&answer.body).map_err(|e| StoreError::Damaged {
            store: self.location.clone(),
            message: format!("its answer is not hapax's ({e}): is there another server at this address?"),
        })
    }

    /// A problem document as the store's error.
    pub(super) fn refused(&self, answer: &Answer) -> StoreError {
        let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let (store, message) = (self.location.clone(), text("detail"));
        if answer.unsure {
            return self.lost(format!("it answered {} {message}", answer.status));
        }
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => StoreError::Unavailable { store, message },
            StatusCode::UNAUTHORIZED => {
                let message = match self.authorization {
                    None => "wants a token, and none was given: set HAPAX_TOKEN, or in code pass one to HttpStore::new",
                    Some(_) => "does not know this token: correct HAPAX_TOKEN, or in code what HttpStore::new is given",
                };
                StoreError::BadRequest { message: format!("{store} {message}") }
            }
            StatusCode::INSUFFICIENT_STORAGE => StoreError::Full { store, message },
            status if document.is_null() || status.is_server_error() => {
                StoreError::Unavailable { store, message: format!("it answered {status} {message}") }
            }
            _ => StoreError::BadRequest { message: format!("{store} refused the request: {message}") },
        }
    }
}

pub(super) fn is_problem(answer: &Answer, name: &str) -> bool {
    is_problem_text(&answer.body, name)
}

fn is_problem_text(body: &[u8], name: &str) -> bool {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    document.get("type").and_then(Value::as_str).is_some_and(|t| t.strip_prefix("urn:hapax:problem:") == Some(name))
}

/// A task that ends with whoever waits for it.
pub(super) struct Aborting<T>(pub(super) tokio::task::JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for Aborting<T> {
    type Output = Result<T, tokio::task::JoinError>;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx)
    }
}
