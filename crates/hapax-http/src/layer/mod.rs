//! The Idempotency-Key layer: requests with one key run the handler once, and
//! every retry gets the answer that was first sent.
//!
//! It works with any tower service over HTTP bodies: axum, hyper, the proxy of
//! this crate. Invariants: method, path, query and body identify a request, so
//! a key that comes with another one is refused; once the handler runs, it runs
//! to its end and its answer is recorded, even if the client goes away.

mod config;
mod count;
mod fate;
pub(crate) mod hop;
mod kept;
mod key;
mod run;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hapax::Hapax;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tower_layer::Layer;
use tower_service::Service;

pub use self::config::{BodyIdentity, Idempotency};
pub use self::fate::{Fate, Fates};
pub use self::key::{IDEMPOTENCY_KEY, KeySource, MAX_KEY_BYTES, Scope};
pub(crate) use self::run::problem_response;
use crate::metrics::Metrics;

/// Any error of a body or a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of the layer's answers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is there in whole.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// What the layer tells the handler, in the request's extensions.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The client's key, without quotes.
    pub key: String,
    /// The attempt's id.
    pub attempt: hapax::AttemptId,
    /// Executions begun under this key, this one included: more than 1 after a doubt.
    pub attempts: u64,
}

/// Wraps a service in [`IdempotencyService`].
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// use axum::{Router, routing::post};
/// use hapax::Hapax;
/// use hapax_http::{Idempotency, IdempotencyLayer};
///
/// let hapax = Hapax::open("memory:").await?;
/// let app: Router = Router::new()
///     .route("/payments", post(|| async { "paid, once" }))
///     .layer(IdempotencyLayer::new(hapax, Idempotency::default().require_key()));
/// # drop(app);
/// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct IdempotencyLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hapax: Hapax,
    options: Idempotency,
    metrics: Option<Arc<Metrics>>,
}

impl IdempotencyLayer {
    /// A layer that keeps its records with `hapax`.
    #[must_use]
    pub fn new(hapax: Hapax, options: Idempotency) -> Self {
        Self::counted(hapax, options, None)
    }

    /// As [`new`](Self::new); these metrics learn of its claims.
    pub(crate) fn counted(hapax: Hapax, options: Idempotency, metrics: Option<Arc<Metrics>>) -> Self {
        Self { shared: Arc::new(Shared { hapax, options, metrics }) }
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, shared: self.shared.clone() }
    }
}

/// Runs the service within once per key.
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// The answer to come.
pub type ResponseFuture<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for IdempotencyService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqBody: http_body::Body<Data = Bytes> + From<Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: http_body::Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The service that was made ready is the one to be called; the clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(run::handle(self.shared.clone(), inner, request))
    }
}
