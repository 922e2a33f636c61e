//! The listener: connections within their limits, TLS, and a drain at the end.
//!
//! Invariants: no more than `limits.connections` are open, further ones wait in
//! the backlog; a head, a body and an idle connection each have their time, and
//! so has an answer whose peer does not take it; a shutdown stops accepting
//! first, then lets requests finish up to its limit.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::config::Limits;
use crate::eager::Eager;
use crate::metrics::Metrics;
use crate::proxy::Peer;
use crate::stall::Stall;
use crate::streams::{Followed, Standing, Stream, Streams};
use crate::timer::HeadTimer;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// Where a TLS configuration is looked up for each connection, so that a reload counts for the next one.
pub(crate) type Tls = Arc<parking_lot::RwLock<Option<TlsAcceptor>>>;

/// A listener and what it serves.
pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    pub(crate) limits: Limits,
    pub(crate) tls: Tls,
    pub(crate) metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `stop` ends; `stopping` is called then, before the drain.
    /// Returns whether all connections ended within the limit.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>, stopping: impl FnOnce()) -> io::Result<bool> {
        let Self { listener, router, limits, tls, metrics } = self;
        let places = Arc::new(Semaphore::new(limits.connections));
        // Each connection listens; when none does, all have ended.
        let closing = watch::Sender::new(false);
        tokio::pin!(stop);
        loop {
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.map_err(io::Error::other)?,
                () = &mut stop => break,
            };
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, or the peer went away: neither lasts.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = &mut stop => break,
            };
            let _ = stream.set_nodelay(true);
            let connection = Connection {
                router: router.clone(),
                peer: Peer(peer),
                limits,
                closing: closing.subscribe(),
                _held: (place, Open::new(metrics.clone())),
            };
            let tls = tls.read().clone();
            tokio::spawn(async move {
                match tls {
                    None => connection.serve(stream).await,
                    Some(tls) => match handshake(tls, stream).await {
                        Ok(stream) => connection.serve(stream).await,
                        Err(error) => tracing::debug!(%error, "no TLS handshake"),
                    },
                }
            });
        }
        drop(listener);
        stopping();
        closing.send_replace(true);
        let drained = tokio::time::timeout(limits.drain.0, closing.closed()).await.is_ok();
        if !drained {
            tracing::warn!(after = ?limits.drain.0, "requests were still under way when the time to drain was up");
        }
        Ok(drained)
    }
}

/// A connection that was accepted.
struct Connection {
    router: Router,
    peer: Peer,
    limits: Limits,
    closing: watch::Receiver<bool>,
    _held: (OwnedSemaphorePermit, Open),
}

impl Connection {
    /// Until its peer is done, or over a limit, or the server's shutdown finds nothing under way on it.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let Self { router, peer, limits, mut closing, _held } = self;
        let (idle, silence) = (limits.header_time.0, limits.write_time.0);
        let streams = Streams::new();
        let service = TowerToHyperService::new(WithPeer { router, peer, streams: streams.clone() });
        let builder = builder(&limits);
        let io = TokioIo::new(Stall::new(stream, idle, silence));
        let mut served = pin!(Eager::new(builder.serve_connection(io, service)));
        let mut look = pin!(tokio::time::sleep(idle.min(silence)));
        let (mut is_ending, mut is_looked_at, mut is_idle) = (false, true, false);
        loop {
            tokio::select! {
                biased;
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended early");
                    }
                    return;
                }
                () = look.as_mut(), if is_looked_at => match streams.look(idle, silence) {
                    Standing::Well(until) => {
                        is_idle = false;
                        // What begins to wait meanwhile has waited twice as long at most.
                        look.as_mut().reset(until.min(Instant::now() + silence));
                    }
                    // Where it did not end by itself, it is cut off.
                    Standing::Idle if is_idle => return,
                    Standing::Idle => {
                        is_idle = true;
                        served.as_mut().within().graceful_shutdown();
                        look.as_mut().reset(Instant::now() + silence);
                    }
                    Standing::Stalled => {
                        tracing::debug!("a connection is cut off, whose peer takes nothing");
                        return;
                    }
                    Standing::NotHere => is_looked_at = false,
                },
                () = shuts_down(&mut closing), if !is_ending => {
                    is_ending = true;
                    served.as_mut().within().graceful_shutdown();
                }
            }
        }
    }
}

async fn shuts_down(closing: &mut watch::Receiver<bool>) {
    // Without a sender it has shut down.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Tells the service who is at the other end, and follows its answers there.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: Peer,
    streams: Arc<Streams>,
}

impl<B> Service<Request<B>> for WithPeer
where
    Router: Service<Request<B>, Response = Response>,
{
    type Response = http::Response<Followed<axum::body::Body>>;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = Answering<<Router as Service<Request<B>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        let stream = self.streams.open(request.version());
        Answering { answer: self.router.call(request), stream }
    }
}

pin_project! {
    struct Answering<F> {
        #[pin]
        answer: F,
        stream: Option<Arc<Stream>>,
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for Answering<F> {
    type Output = Result<http::Response<Followed<axum::body::Body>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        Poll::Ready(answer.map(|answer| answer.map(|body| Followed::new(body, this.stream.take()))))
    }
}

/// Counts an open connection.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.connection(1);
        Self(metrics)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connection(-1);
    }
}

async fn handshake(tls: TlsAcceptor, stream: TcpStream) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// How one connection is served.
fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // hyper's own limit of 100 header fields stays: for any other it allocates twice a request.
    builder
        .http1()
        .timer(HeadTimer::default())
        .header_read_timeout(limits.header_time.0)
        .max_buf_size(limits.header_bytes)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(limits.header_time.0)
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// A listener on this address.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}
