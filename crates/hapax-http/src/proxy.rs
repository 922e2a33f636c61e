//! The reverse proxy: an upstream as a service, to stand behind the
//! Idempotency-Key layer.
//!
//! Invariant: what the upstream was asked for and did not answer in whole is in
//! doubt; only what it never got releases the key. Hop-by-hop headers end here,
//! and what came by HTTP/2 goes on as HTTP/1.1 writes it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use crate::layer::hop::{self, strip};
use crate::layer::{Body, BoxError, Fate, problem_response};
use crate::problem::{Kind, Problem};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Idle connections kept to the upstream.
const MAX_IDLE: usize = 512;

pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

/// A client for HTTP and HTTPS.
pub(crate) fn client() -> std::io::Result<HttpClient> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.enforce_http(false);
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(MAX_IDLE)
        .build(https))
}

/// The system's authorities, read once in a process: they are many.
fn tls() -> std::io::Result<rustls::ClientConfig> {
    static READ: OnceLock<rustls::ClientConfig> = OnceLock::new();
    if let Some(config) = READ.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .with_native_roots()?
        .with_no_client_auth();
    Ok(READ.get_or_init(|| config).clone())
}

/// The address of the client, as the server puts it into a request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// An upstream, as a service.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: HttpClient,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    host: Option<HeaderValue>,
    limit: Duration,
    proto: &'static str,
}

impl Upstream {
    /// The upstream at `http://…` or `https://…`, with a path before every path if need be.
    ///
    /// # Errors
    /// When the address is another, or the host has no root certificates for HTTPS.
    pub fn new(address: &str) -> Result<Self, BoxError> {
        let bad = |what: &str| format!("upstream {address:?} {what}: write it like http://127.0.0.1:8080");
        let uri: Uri = address.parse().map_err(|_| bad("is no address"))?;
        let parts = uri.into_parts();
        let scheme = parts
            .scheme
            .filter(|s| *s == Scheme::HTTP || *s == Scheme::HTTPS)
            .ok_or_else(|| bad("has no http:// or https://"))?;
        let authority = parts.authority.ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("holds a password").into());
        }
        let path = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
        if path.contains('?') {
            return Err(bad("has a query").into());
        }
        let prefix = path.trim_end_matches('/').to_string();
        let host = HeaderValue::from_str(authority.as_str()).ok();
        let limit = Duration::from_secs(60);
        Ok(Self { client: client()?, scheme, authority, prefix, host, limit, proto: "http" })
    }

    /// Sets how long the upstream may take until the head of its answer. Default: 60 s.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Hands the client's `Host` on, in place of the upstream's. Behind the layer, add the scope
    /// `Scope::Header(HOST)`: a key means one thing to one host and another to the next.
    #[must_use]
    pub fn preserve_host(mut self) -> Self {
        self.host = None;
        self
    }

    /// Says that clients come by HTTPS (`X-Forwarded-Proto`).
    #[must_use]
    pub fn behind_tls(mut self) -> Self {
        self.proto = "https";
        self
    }

    fn readdress<B>(&self, request: &mut Request<B>) -> Result<(), Problem> {
        let bad = || Problem::new(Kind::BadRequest, "the request's path cannot be asked for at the upstream");
        let asked = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        // `*` and the like are the proxy's own, not the upstream's.
        if !asked.starts_with('/') {
            return Err(bad());
        }
        let path: PathAndQuery = format!("{}{asked}", self.prefix).parse().map_err(|_| bad())?;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(path);
        let host = hop::host(request.headers(), request.uri());
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| bad())?;
        *request.version_mut() = http::Version::HTTP_11;
        let peer = request.extensions().get::<Peer>().copied();
        let headers = request.headers_mut();
        strip(headers);
        // The proxy has answered that already.
        headers.remove(header::EXPECT);
        if let Some(cookies) = hop::joined_cookies(headers) {
            headers.insert(header::COOKIE, cookies);
        }
        forwarded(headers, peer, host.as_ref(), self.proto);
        if let Some(host) = self.host.clone().or(host) {
            headers.insert(header::HOST, host);
        }
        Ok(())
    }
}

fn forwarded(headers: &mut HeaderMap, peer: Option<Peer>, host: Option<&HeaderValue>, proto: &'static str) {
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    if let Some(Peer(peer)) = peer {
        let before = headers.get_all(&FOR).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(", ");
        let list = if before.is_empty() { peer.ip().to_string() } else { format!("{before}, {}", peer.ip()) };
        if let Ok(list) = HeaderValue::from_str(&list) {
            headers.insert(FOR, list);
        }
    }
    if let Some(host) = host {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host.clone());
    }
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static(proto));
}

impl<B> Service<Request<B>> for Upstream
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            if let Err(problem) = upstream.readdress(&mut request) {
                return Ok(fated(problem, Fate::Release));
            }
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            let asked = tokio::time::timeout(upstream.limit, upstream.client.request(request)).await;
            Ok(match asked {
                Ok(Ok(response)) => {
                    let (mut parts, body) = response.into_parts();
                    strip(&mut parts.headers);
                    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
                }
                Ok(Err(error)) if error.is_connect() => {
                    tracing::warn!(error = %chain(&error), "the upstream cannot be reached");
                    fated(
                        Problem::new(
                            Kind::UpstreamUnreachable,
                            "the upstream cannot be reached; nothing was sent to it",
                        ),
                        Fate::Release,
                    )
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "the upstream gave no answer");
                    fated(Problem::new(Kind::UpstreamLost, "the upstream was asked and gave no answer"), Fate::Doubt)
                }
                Err(_) => {
                    let limit = upstream.limit;
                    tracing::warn!(?limit, "the upstream took too long to answer");
                    let detail = format!("the upstream was asked and gave no answer within {limit:?}");
                    fated(Problem::new(Kind::UpstreamLost, detail), Fate::Doubt)
                }
            })
        })
    }
}

fn fated(problem: Problem, fate: Fate) -> Response<Body> {
    let mut response = problem_response(problem);
    response.extensions_mut().insert(fate);
    response
}

/// An error with what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
