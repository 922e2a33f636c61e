//! A server as a store: `--store http://…` makes every command, and every
//! manager, work against it.
//!
//! Requests run on a runtime of the store's own, since a manager calls it from
//! its background thread, too. Invariants: an attempt keeps the id that it was
//! begun with, so that a claim, a completion or a heartbeat whose answer was
//! lost is sent again and means the same; statistics are the server's.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use hapax::{AttemptId, Key, Record, State, Timestamp, Ttl};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::access::NAMESPACE;
use crate::layer::full;
use crate::path::{encode, encode_key};
use crate::proxy::{HttpClient, chain, client};
use crate::units::{Keep, Span};

/// The largest answer that is read: a page of records at most.
const MAX_ANSWER: usize = 256 << 20;
/// How long one request may take, its wait apart.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a request is sent whose answer is lost, or that the server was too busy for.
const TRIES: u32 = 3;
/// The longest wait asked for in one request.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A store at a server.
pub struct HttpStore {
    inner: Arc<Inner>,
    // Taken at the end, since a runtime may not be dropped where others run.
    runtime: Option<tokio::runtime::Runtime>,
}

struct Inner {
    location: String,
    client: HttpClient,
    authorization: Option<HeaderValue>,
}

impl std::fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpStore").field("location", &self.inner.location).finish_non_exhaustive()
    }
}

impl Drop for HttpStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Answer {
    status: StatusCode,
    body: Bytes,
    /// How often it was asked for.
    tries: u32,
}

impl HttpStore {
    /// The store at `http://…` or `https://…`, with a bearer token if the server wants one.
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] for an address or a token that is none.
    pub fn new(address: &str, token: Option<&str>) -> Result<Self, StoreError> {
        let bad = |message: String| StoreError::BadRequest { message };
        let location = address.trim_end_matches('/').to_string();
        let uri: http::Uri = location
            .parse()
            .map_err(|_| bad(format!("{address:?} is no address: write it like http://127.0.0.1:4278")))?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        if !known || uri.authority().is_none_or(|a| a.as_str().contains('@')) || uri.query().is_some() {
            return Err(bad(
                "a server's address is http://HOST:PORT or https://HOST:PORT; a token comes apart from it".into(),
            ));
        }
        let authorization = match token {
            None => None,
            Some(token) => {
                let value = HeaderValue::from_str(&format!("Bearer {token}"));
                let mut value = value.map_err(|_| bad("the token holds characters that no token has".into()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let failed = |e: std::io::Error| StoreError::Unavailable { store: location.clone(), message: e.to_string() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("hapax-http")
            .enable_all()
            .build()
            .map_err(failed)?;
        let client = client().map_err(failed)?;
        Ok(Self { inner: Arc::new(Inner { location, client, authorization }), runtime: Some(runtime) })
    }

    /// Sends a request on the store's own runtime, again if its answer is lost.
    fn ask(
        &self,
        namespace: &str,
        method: Method,
        path: String,
        body: Option<Value>,
        wait: Duration,
    ) -> impl Future<Output = Result<Answer, StoreError>> + Send + use<> {
        let inner = self.inner.clone();
        let namespace = HeaderValue::from_str(namespace);
        let task = self.runtime.as_ref().map(|runtime| {
            runtime.spawn(async move {
                let namespace = namespace.map_err(|e| StoreError::BadRequest { message: format!("namespace: {e}") })?;
                inner.ask(&namespace, &method, &path, body.as_ref(), wait).await
            })
        });
        async move {
            let closed =
                || StoreError::AnswerLost { store: "http".into(), message: "the request was cut short".into() };
            match task {
                Some(task) => Aborting(task).await.map_err(|_| closed())?,
                None => Err(closed()),
            }
        }
    }

    async fn record(&self, namespace: &str, key: &Key) -> Result<Option<Box<Record>>, StoreError> {
        let path = format!("/v1/records/{}", encode_key(key));
        let answer = self.ask(namespace, Method::GET, path, None, Duration::ZERO).await?;
        match answer.status {
            StatusCode::OK => self.inner.read(&answer).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.inner.refused(&answer)),
        }
    }

    async fn state(&self, namespace: &str, key: &Key) -> Result<Option<State>, StoreError> {
        Ok(self.record(namespace, key).await?.map(|r| r.state))
    }
}

/// A task that ends with whoever waits for it.
struct Aborting<T>(tokio::task::JoinHandle<T>);

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

impl Inner {
    async fn ask(
        &self,
        namespace: &HeaderValue,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        wait: Duration,
    ) -> Result<Answer, StoreError> {
        let mut tries = 1;
        loop {
            let asked = tokio::time::timeout(LIMIT + wait, self.once(namespace, method, path, body)).await;
            let error = match asked {
                Ok(Ok((status, body))) if status != StatusCode::SERVICE_UNAVAILABLE || tries >= TRIES => {
                    return Ok(Answer { status, body, tries });
                }
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(StoreError::AnswerLost {
                    store: self.location.clone(),
                    message: format!("the server took longer than {:?}", LIMIT + wait),
                }),
            };
            if let (Some(error), true) = (error, tries >= TRIES) {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(100) * tries).await;
            tries += 1;
        }
    }

    async fn once(
        &self,
        namespace: &HeaderValue,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), StoreError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.location))
            .header(header::CONTENT_TYPE, "application/json")
            .header(NAMESPACE, namespace);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(full(body.into()))
            .map_err(|e| StoreError::BadRequest { message: format!("the request cannot be made: {e}") })?;
        let lost = |message: String| StoreError::AnswerLost { store: self.location.clone(), message };
        let response = self.client.request(request).await.map_err(|e| match e.is_connect() {
            true => StoreError::Unavailable {
                store: self.location.clone(),
                message: format!("{}; start it with `hapax serve`, or correct the address", chain(&e)),
            },
            false => lost(e.to_string()),
        })?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| lost(e.to_string()))?;
        Ok((parts.status, body.to_bytes()))
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, StoreError> {
        serde_json::from_slice(&answer.body).map_err(|e| StoreError::Damaged {
            store: self.location.clone(),
            message: format!("its answer is not hapax's ({e}): is there another server at this address?"),
        })
    }

    /// A problem document as the store's error.
    fn refused(&self, answer: &Answer) -> StoreError {
        let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let (store, message) = (self.location.clone(), text("detail"));
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => StoreError::Unavailable { store, message },
            StatusCode::INSUFFICIENT_STORAGE => StoreError::Full { store, message },
            status if document.is_null() || status.is_server_error() => {
                StoreError::Unavailable { store, message: format!("it answered {status} {message}") }
            }
            _ => StoreError::BadRequest { message: format!("{store} refused the request: {message}") },
        }
    }
}

fn is_problem(answer: &Answer, name: &str) -> bool {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    document.get("type").and_then(Value::as_str).is_some_and(|t| t.strip_prefix("urn:hapax:problem:") == Some(name))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn at_most(duration: Duration) -> Span {
    Span(Duration::from_millis(millis(duration).min(999_999_999)))
}

impl Store for HttpStore {
    fn location(&self) -> &str {
        &self.inner.location
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        Box::pin(async move {
            let answer = self.ask_any(Method::GET, "/v1/info").await?;
            let info: Value = self.inner.read(&answer)?;
            let now = info.get("now").and_then(Value::as_str).and_then(|t| t.parse().ok());
            now.ok_or_else(|| self.inner.refused(&answer))
        })
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        Box::pin(async move {
            let body = json!({
                "key": begin.key,
                "signalId": begin.signal_id,
                "actionType": begin.action_type,
                "target": begin.target,
                "params": begin.params,
                "keepParams": if begin.params.is_some() { "full" } else { "fingerprint" },
                "fingerprint": begin.fingerprint,
                "attemptId": begin.attempt,
                "takeOver": begin.take_over,
                "lease": at_most(begin.lease),
                "wait": "no",
                "onDoubt": "refuse",
                "owner": {"host": begin.owner.host, "pid": begin.owner.pid, "label": begin.owner.label},
                "tags": begin.tags,
            });
            for _ in 0..TRIES {
                let path = "/v1/claims".to_string();
                let answer = self.ask(&begin.namespace, Method::POST, path, Some(body.clone()), Duration::ZERO).await?;
                match answer.status {
                    StatusCode::CREATED => {
                        let claimed: Claimed = self.inner.read(&answer)?;
                        let (attempts, started_at) = (claimed.attempts, claimed.started_at);
                        return Ok(Begun::Started { attempts, started_at, expired: 0, evicted: 0 });
                    }
                    StatusCode::OK | StatusCode::ACCEPTED | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                        // It may be gone again; then it is free.
                        if let Some(record) = self.record(&begin.namespace, &begin.key).await? {
                            return Ok(Begun::Exists(record));
                        }
                    }
                    _ => return Err(self.inner.refused(&answer)),
                }
            }
            Err(StoreError::Busy { store: self.inner.location.clone(), waited: Duration::ZERO })
        })
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        Box::pin(async move {
            // Sent together, so that one slow answer lets no other lease lapse.
            let asked: Vec<_> = beats
                .into_iter()
                .map(|(key, attempt, lease)| {
                    let body = json!({"key": key, "lease": at_most(lease)});
                    let path = format!("/v1/claims/{attempt}/heartbeat");
                    self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO)
                })
                .collect();
            let mut answers = Vec::with_capacity(asked.len());
            for asked in asked {
                let answer = asked.await?;
                answers.push(match answer.status {
                    StatusCode::OK => Beat::Renewed,
                    StatusCode::CONFLICT if is_problem(&answer, "in-doubt") => Beat::Lapsed,
                    StatusCode::CONFLICT => Beat::Lost,
                    _ => return Err(self.inner.refused(&answer)),
                });
            }
            Ok(answers)
        })
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        Box::pin(async move {
            let is_release = matches!(end, End::Release);
            let (verb, body) = match end {
                End::Complete { result, ttl, duration } => (
                    "complete",
                    json!({"key": key, "result": result, "ttl": keep(ttl), "durationMs": millis(duration)}),
                ),
                End::Fail { error, ttl, duration } => {
                    ("fail", json!({"key": key, "error": error, "ttl": keep(ttl), "durationMs": millis(duration)}))
                }
                // The manager knows of the doubts before, and has decided.
                End::Release => ("release", json!({"key": key, "everyAttempt": true})),
                End::Doubt { reason } => ("fail", json!({"key": key, "error": reason, "class": "unknown"})),
            };
            let path = format!("/v1/claims/{attempt}/{verb}");
            let answer = self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => {
                    let ended: EndedThere = self.inner.read(&answer)?;
                    Ok(Ended::Done { at: ended.at, expires_at: ended.expires_at })
                }
                StatusCode::CONFLICT => match self.state(&namespace, &key).await? {
                    // A release leaves nothing: sent again after a lost answer, it finds nothing.
                    None if is_release && answer.tries > 1 => {
                        Ok(Ended::Done { at: self.now().await?, expires_at: None })
                    }
                    state => Ok(Ended::Lost(state)),
                },
                _ => Err(self.inner.refused(&answer)),
            }
        })
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        Box::pin(async move {
            let body = match settlement {
                Settlement::Happened { result, ttl } => {
                    json!({"verdict": "happened", "result": result, "ttl": keep(ttl), "attemptId": attempt})
                }
                Settlement::NotHappened => json!({"verdict": "not_happened", "attemptId": attempt}),
            };
            let path = format!("/v1/records/{}/settle", encode_key(&key));
            let answer = self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => {
                    let settled: SettledThere = self.inner.read(&answer)?;
                    Ok(Settled::Done(settled.record))
                }
                StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
                    Ok(Settled::NotInDoubt(self.record(&namespace, &key).await?))
                }
                _ => Err(self.inner.refused(&answer)),
            }
        })
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            let body = json!({"result": mark.result, "ttl": keep(mark.ttl)});
            let path = format!("/v1/records/{}", encode_key(&mark.key));
            let answer = self.ask(&mark.namespace, Method::PUT, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::CREATED => Ok(Marked::Recorded(self.inner.read(&answer)?)),
                StatusCode::OK => Ok(Marked::Exists(self.inner.read(&answer)?)),
                StatusCode::CONFLICT => match self.record(&mark.namespace, &mark.key).await? {
                    Some(record) => Ok(Marked::Exists(record)),
                    None => Err(StoreError::Busy { store: self.inner.location.clone(), waited: Duration::ZERO }),
                },
                _ => Err(self.inner.refused(&answer)),
            }
        })
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Box::pin(async move { self.record(&namespace, &key).await })
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Box::pin(async move {
            let path = format!("/v1/records/{}", encode_key(&key));
            let answer = self.ask(&namespace, Method::DELETE, path, None, Duration::ZERO).await?;
            match answer.status {
                StatusCode::NO_CONTENT => Ok(Removed::Removed),
                StatusCode::NOT_FOUND if answer.tries > 1 => Ok(Removed::Removed),
                StatusCode::NOT_FOUND => Ok(Removed::Absent),
                StatusCode::CONFLICT => Ok(match self.record(&namespace, &key).await? {
                    Some(record) => Removed::Kept(record),
                    None => Removed::Absent,
                }),
                _ => Err(self.inner.refused(&answer)),
            }
        })
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.removed(namespace, Method::DELETE, "/v1/records?confirm=all", None)
    }

    fn sweep(&self, _: usize) -> StoreFuture<'_, u64> {
        // The server sweeps all at once, and by itself.
        Box::pin(async move {
            let path = "/v1/cleanup".to_string();
            let asked = self.ask_any_with(Method::POST, path, json!({"expired": true})).await?;
            self.count_of(&asked)
        })
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        let body = json!({"oldest": count.min(1_000_000_000)});
        self.removed(namespace, Method::POST, "/v1/cleanup", Some(body))
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            let mut path = format!("/v1/records?limit={limit}");
            let state = filter.state.map(|s| s.as_str().to_string());
            let within = filter.expiring_within.map(|within| at_most(within).to_string());
            for (name, value) in [
                ("actionType", filter.action_type),
                ("target", filter.target),
                ("signalId", filter.signal_id),
                ("state", state),
                ("expiringWithin", within),
                ("cursor", cursor),
            ] {
                if let Some(value) = value {
                    // Writing to a string cannot fail.
                    let _ = write!(path, "&{name}={}", encode(&value));
                }
            }
            let answer = self.ask(&namespace, Method::GET, path, None, Duration::ZERO).await?;
            if answer.status != StatusCode::OK {
                return Err(self.inner.refused(&answer));
            }
            let page: PageThere = self.inner.read(&answer)?;
            Ok(Page { records: page.records, next: page.next })
        })
    }

    fn count(&self, _: Arc<str>, _: Counters, _: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        // The server has counted already.
        Box::pin(std::future::ready(Ok(())))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.looked(namespace, "/v1/stats")
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let path = "/v1/stats/reset".to_string();
            let answer = self.ask(&namespace, Method::POST, path, Some(json!({})), Duration::ZERO).await?;
            if answer.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(self.inner.refused(&answer)) }
        })
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.looked(namespace, "/v1/info")
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let wait = at_most.min(MAX_WAIT);
            let path = format!("/v1/records/{}?wait={}ms&attemptId={attempt}", encode_key(&key), millis(wait));
            let answer = self.ask(&namespace, Method::GET, path, None, wait).await?;
            match answer.status {
                StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
                _ => Err(self.inner.refused(&answer)),
            }
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl HttpStore {
    /// A request that is of no namespace.
    async fn ask_any(&self, method: Method, path: &str) -> Result<Answer, StoreError> {
        self.ask("", method, path.to_string(), None, Duration::ZERO).await
    }

    async fn ask_any_with(&self, method: Method, path: String, body: Value) -> Result<Answer, StoreError> {
        self.ask("", method, path, Some(body), Duration::ZERO).await
    }

    fn count_of(&self, answer: &Answer) -> Result<u64, StoreError> {
        if answer.status != StatusCode::OK {
            return Err(self.inner.refused(answer));
        }
        let removed: RemovedThere = self.inner.read(answer)?;
        Ok(removed.removed)
    }

    fn removed(
        &self,
        namespace: Arc<str>,
        method: Method,
        path: &'static str,
        body: Option<Value>,
    ) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let answer = self.ask(&namespace, method, path.to_string(), body, Duration::ZERO).await?;
            self.count_of(&answer)
        })
    }

    fn looked<T: DeserializeOwned + Send + 'static>(
        &self,
        namespace: Arc<str>,
        path: &'static str,
    ) -> StoreFuture<'_, T> {
        Box::pin(async move {
            let answer = self.ask(&namespace, Method::GET, path.to_string(), None, Duration::ZERO).await?;
            if answer.status != StatusCode::OK {
                return Err(self.inner.refused(&answer));
            }
            self.inner.read(&answer)
        })
    }
}

fn keep(ttl: Ttl) -> Keep {
    match ttl {
        Ttl::For(ttl) => Keep(Ttl::For(at_most(ttl).0)),
        Ttl::Never => Keep(Ttl::Never),
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claimed {
    attempts: u64,
    started_at: Timestamp,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndedThere {
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

#[derive(serde::Deserialize)]
struct SettledThere {
    record: Option<Box<Record>>,
}

#[derive(serde::Deserialize)]
struct PageThere {
    records: Vec<Record>,
    next: Option<String>,
}

#[derive(serde::Deserialize)]
struct RemovedThere {
    removed: u64,
}
