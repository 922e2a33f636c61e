//! Around every request: it is counted, its span is open, and browsers of other origins get their answer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::{MatchedPath, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::app::App;
use crate::metrics::Running;

/// The layer. A service of its own and no function: that would be two boxes and two copies more for each request.
#[derive(Clone)]
pub(crate) struct Observe(pub(crate) App);

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, app: self.0.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Observed<S> {
    inner: S,
    app: App,
}

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Error = Infallible>,
    S::Response: IntoResponse,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let method = request.method().clone();
        let known = |origin: &&HeaderValue| {
            self.app.with_live(|live| live.config.cors_origins.iter().any(|known| known.as_str() == **origin))
        };
        let origin = request.headers().get(header::ORIGIN).filter(known).cloned();
        let running = self.app.metrics().request();
        let preflight =
            method == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let answer = if preflight && origin.is_some() {
            None
        } else {
            let at = route.as_ref().map_or("", MatchedPath::as_str);
            let span = tracing::debug_span!("http.request", http.request.method = %method, http.route = at);
            Some(self.inner.call(request).instrument(span))
        };
        Observing { answer, seen: Some(Seen { running, route, method, origin, preflight }) }
    }
}

/// What is kept of a request for its answer.
struct Seen {
    running: Running,
    route: Option<MatchedPath>,
    method: Method,
    /// Its origin, if that is another one that may read the answer.
    origin: Option<HeaderValue>,
    preflight: bool,
}

pin_project! {
    /// An answer under way; none when it is given here.
    pub(crate) struct Observing<F> {
        #[pin]
        answer: Option<Instrumented<F>>,
        // Until it is answered.
        seen: Option<Seen>,
    }
}

impl<F, R> Future for Observing<F>
where
    F: Future<Output = Result<R, Infallible>>,
    R: IntoResponse,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.answer.as_pin_mut() {
            Some(answer) => match ready!(answer.poll(cx)) {
                Ok(response) => response.into_response(),
                Err(never) => match never {},
            },
            None => StatusCode::NO_CONTENT.into_response(),
        };
        if let Some(Seen { running, route, method, origin, preflight }) = this.seen.take() {
            let headers = response.headers_mut();
            if let Some(origin) = origin {
                share(headers, origin, preflight);
            }
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            running.done(&method, route.as_ref().map_or("", MatchedPath::as_str), response.status());
        }
        Poll::Ready(Ok(response))
    }
}

/// Lets a page of this origin read the answer.
fn share(headers: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("Idempotency-Replayed, Location, Retry-After"),
    );
    if preflight {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}
