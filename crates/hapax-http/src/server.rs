//! The listener: connections within their limits, TLS, and a drain at the end.
//!
//! Invariants: no more than `limits.connections` are open, further ones wait in
//! the backlog; a head, a body and an idle connection each have their time; a
//! shutdown stops accepting first, then lets requests finish up to its limit.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::proxy::Peer;
use crate::stall::Stall;
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
        let graceful = GracefulShutdown::new();
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
            let (tls, builder, watcher) = (tls.read().clone(), builder(&limits), graceful.watcher());
            let service = TowerToHyperService::new(WithPeer { router: router.clone(), peer: Peer(peer) });
            let open = Open::new(metrics.clone());
            tokio::spawn(async move {
                let _held = (place, open);
                let ended = match tls {
                    None => {
                        let io = TokioIo::new(Stall::new(stream, limits.header_time.0, limits.write_time.0));
                        watcher.watch(builder.serve_connection(io, service).into_owned()).await
                    }
                    Some(tls) => match handshake(tls, stream).await {
                        Ok(stream) => {
                            let io = TokioIo::new(Stall::new(stream, limits.header_time.0, limits.write_time.0));
                            watcher.watch(builder.serve_connection(io, service).into_owned()).await
                        }
                        Err(error) => {
                            tracing::debug!(%error, "no TLS handshake");
                            return;
                        }
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
            });
        }
        drop(listener);
        stopping();
        let drained = tokio::time::timeout(limits.drain.0, graceful.shutdown()).await.is_ok();
        if !drained {
            tracing::warn!(after = ?limits.drain.0, "requests were still under way when the time to drain was up");
        }
        Ok(drained)
    }
}

/// Tells the service who is at the other end.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: Peer,
}

impl<B> Service<Request<B>> for WithPeer
where
    Router: Service<Request<B>>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
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
