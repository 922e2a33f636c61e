//! `hapax serve`: the API server, from its start to its drain.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hapax::Error;
use hapax::store::Store;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::app::App;
use crate::config::{EncryptionConfig, ServeConfig};
use crate::router::router;
use crate::server::{Server, Tls, bind};
use crate::tls;

/// Why a server does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration or the store.
    #[error(transparent)]
    Hapax(#[from] Error),
    /// The address or the certificate.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An API server that is bound and not yet serving.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use hapax_http::{ApiServer, ServeConfig};
///
/// let config = ServeConfig::from_toml("store = \"sqlite:hapax.db\"")?;
/// let server = ApiServer::bind(config).await?;
/// println!("listening on {}", server.address());
/// server.run(async { let _ = tokio::signal::ctrl_c().await; }).await?;
/// # Ok(()) }
/// ```
pub struct ApiServer {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
    tls: Tls,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Opens the store and binds the address.
    ///
    /// # Errors
    /// What is wrong with the configuration, the store, the certificate or the address.
    pub async fn bind(config: ServeConfig) -> Result<Self, ServeError> {
        config.validate()?;
        let store = hapax::store::open(&config.store).await.map_err(Error::from)?;
        Self::bind_on(config, store).await
    }

    /// As [`bind`](Self::bind), on a store that is open already.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_on(config: ServeConfig, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let address = config.listen;
        let store = EncryptionConfig::seal(config.encryption.as_ref(), store)?;
        let app = App::on(config, store).await?;
        let listener = bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { app, listener, address, tls: Arc::new(parking_lot::RwLock::new(acceptor)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The handle by which to reload the configuration.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader { app: self.app.clone(), tls: self.tls.clone() }
    }

    /// Serves until `stop` ends, then finishes what is under way, up to
    /// `limits.drain`, and closes the store.
    ///
    /// # Errors
    /// When the store's last write fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { app, listener, address, tls } = self;
        let limits = app.config().limits;
        tracing::info!(%address, store = app.store().location(), tls = tls.read().is_some(), "hapax serves");
        let server = Server { listener, router: router(app.clone()), limits, tls, metrics: app.metrics().clone() };
        server.run(stop, || app.close()).await?;
        app.finish(limits.drain.0).await?;
        tracing::info!("hapax has stopped");
        Ok(())
    }
}

/// Reloads a running server's configuration.
#[derive(Clone)]
pub struct Reloader {
    app: App,
    tls: Tls,
}

impl Reloader {
    /// Takes up tokens, policy, limits of requests, origins and the certificate.
    ///
    /// # Errors
    /// What is wrong with it; everything stays as it was then.
    pub async fn reload(&self, config: ServeConfig) -> Result<(), ServeError> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        self.app.reload(config).await?;
        renew(&self.tls, acceptor);
        Ok(())
    }
}

/// Puts a new certificate in the place of the one before.
pub(crate) fn renew(tls: &Tls, acceptor: Option<TlsAcceptor>) {
    let mut now = tls.write();
    if now.is_some() != acceptor.is_some() {
        tracing::warn!("tls was added or taken away in the configuration; that takes a restart");
    } else {
        *now = acceptor;
    }
}
