//! A server as a store: `--store http://…` makes every command, and every
//! manager, work against it.
//!
//! Requests run on a runtime of the store's own, since a manager calls it from
//! its background thread, too. Invariants: an attempt keeps the id that it was
//! begun with, so that a claim, a completion or a heartbeat whose answer was
//! lost is sent again and means the same; statistics are the server's.

mod bodies;
mod follow;
mod store;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::{StoreError, StoreFuture};
use hapax::{Key, Record, State};
use http::{HeaderValue, Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::path::encode_key;
use crate::proxy::client;
pub use follow::Told;
use wire::{Aborting, Answer, Resend, Wire};

/// A store at a server.
pub struct HttpStore {
    wire: Arc<Wire>,
    // Taken at the end, since a runtime may not be dropped where others run.
    runtime: Option<tokio::runtime::Runtime>,
    closed: watch::Sender<bool>,
}

impl std::fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpStore").field("location", &self.wire.location).finish_non_exhaustive()
    }
}

impl Drop for HttpStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
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
        Ok(Self {
            wire: Arc::new(Wire { location, client, authorization, limit: wire::LIMIT }),
            runtime: Some(runtime),
            closed: watch::Sender::new(false),
        })
    }

    /// Sends a request on the store's own runtime, again if its answer is lost.
    fn ask(
        &self,
        namespace: &str,
        method: Method,
        path: String,
        body: Option<String>,
        wait: Duration,
    ) -> impl Future<Output = Result<Answer, StoreError>> + Send + use<> {
        self.send(namespace, method, path, body, wait, Resend::Safe)
    }

    /// As [`ask`](Self::ask); a lost answer stays lost if it must not be sent again.
    fn send(
        &self,
        namespace: &str,
        method: Method,
        path: String,
        body: Option<String>,
        wait: Duration,
        resend: Resend,
    ) -> impl Future<Output = Result<Answer, StoreError>> + Send + use<> {
        let wire = self.wire.clone();
        let location = wire.location.clone();
        let namespace = HeaderValue::from_str(namespace);
        let runtime = self.runtime.as_ref().filter(|_| !*self.closed.borrow());
        let task = runtime.map(|runtime| {
            runtime.spawn(async move {
                let namespace = namespace.map_err(|e| StoreError::BadRequest { message: format!("namespace: {e}") })?;
                wire.ask(&namespace, &method, &path, body.as_deref(), wait, resend).await
            })
        });
        async move {
            let Some(task) = task else { return Err(StoreError::Closed { store: location }) };
            let lost = |_| StoreError::AnswerLost { store: location, message: "the request was cut short".into() };
            Aborting(task).await.map_err(lost)?
        }
    }

    async fn record(&self, namespace: &str, key: &Key) -> Result<Option<Box<Record>>, StoreError> {
        let path = format!("/v1/records/{}", encode_key(key));
        let answer = self.ask(namespace, Method::GET, path, None, Duration::ZERO).await?;
        match answer.status {
            StatusCode::OK => self.wire.read(&answer).map(|record: Box<_>| Some(bodies::as_sent(record))),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.wire.refused(&answer)),
        }
    }

    /// What was looked up after a write. Where nobody knows of the write, failing to look leaves it so.
    fn after<T>(&self, write: &Answer, looked: Result<T, StoreError>) -> Result<T, StoreError> {
        looked.map_err(|error| if write.unsure { self.wire.lost(error.to_string()) } else { error })
    }

    async fn state(&self, namespace: &str, key: &Key) -> Result<Option<State>, StoreError> {
        Ok(self.record(namespace, key).await?.map(|r| r.state))
    }

    /// A request that is of no namespace.
    async fn ask_any(&self, method: Method, path: &str) -> Result<Answer, StoreError> {
        self.ask("", method, path.to_string(), None, Duration::ZERO).await
    }

    async fn ask_any_with(&self, method: Method, path: String, body: String) -> Result<Answer, StoreError> {
        self.ask("", method, path, Some(body), Duration::ZERO).await
    }

    fn count_of(&self, answer: &Answer) -> Result<u64, StoreError> {
        if answer.status != StatusCode::OK {
            return Err(self.wire.refused(answer));
        }
        let removed: bodies::RemovedThere = self.wire.read(answer)?;
        Ok(removed.removed)
    }

    fn removed(
        &self,
        namespace: Arc<str>,
        method: Method,
        path: &'static str,
        body: Option<String>,
    ) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            // A second time would count what the first one left.
            let path = path.to_string();
            let answer = self.send(&namespace, method, path, body, Duration::ZERO, Resend::Never).await?;
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
                return Err(self.wire.refused(&answer));
            }
            self.wire.read(&answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_never_answers_is_not_waited_for_long_and_a_look_is_no_write() {
        assert!(wire::LIMIT <= Duration::from_secs(10));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut store = HttpStore::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let limit = Duration::from_millis(200);
        Arc::get_mut(&mut store.wire).unwrap().limit = limit;
        let looked = store.record("default", &Key::given("k").unwrap()).await.unwrap_err();
        let StoreError::Unavailable { message, .. } = &looked else { panic!("{looked}") };
        assert_eq!(*message, format!("no answer within {limit:?}"));
        // It was asked once.
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok() && listener.accept().is_err());
        let wrote = store.ask_any_with(Method::POST, "/v1/cleanup".into(), "{}".into()).await;
        assert!(matches!(wrote, Err(StoreError::AnswerLost { .. })));
    }
}
