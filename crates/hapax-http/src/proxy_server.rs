//! `hapax proxy`: the Idempotency-Key layer in front of any HTTP API.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hapax::store::Store;
use hapax::{Error, Hapax};
use http::{HeaderName, Method, StatusCode};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_layer::Layer;
use tower_service::Service as _;

use crate::app::App;
use crate::config::{EncryptionConfig, Limits, PolicyConfig, ServeConfig, TlsConfig, TokenConfig};
use crate::layer::{Fate, Fates, Idempotency, IdempotencyLayer, KeySource, Scope};
use crate::proxy::Upstream;
use crate::router::admin as admin_router;
use crate::serve::{ServeError, renew};
use crate::server::{Server, Tls, bind};
use crate::tls;
use crate::units::{Keep, Span};

/// How long those who watch may take to hear the last answer.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// How a proxy behaves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ProxyConfig {
    /// Where to listen. Default: `127.0.0.1:4280`.
    pub listen: SocketAddr,
    /// The API behind: `http://127.0.0.1:8080`.
    pub upstream: String,
    /// The store's address. Default: `memory:`.
    pub store: String,
    /// The namespace of its records. Default: `proxy`.
    pub namespace: String,
    /// Choices for all records: `ttl`, `lease`, `on_doubt`, `keep_params`.
    pub policy: PolicyConfig,
    /// Methods whose requests must bring a key.
    pub require: Vec<String>,
    /// Headers in which a key is looked for, besides `Idempotency-Key`.
    pub key_headers: Vec<String>,
    /// JSON pointers at which a key is looked for in bodies.
    pub key_pointers: Vec<String>,
    /// Headers whose values tell tenants apart.
    pub scope_headers: Vec<String>,
    /// Tells callers apart by their `Authorization`.
    pub scope_caller: bool,
    /// What becomes of a key, by status: `"504" = "doubt"`, `"5xx" = "keep"`.
    pub fates: std::collections::BTreeMap<String, Fate>,
    /// How long a duplicate waits. Default: not at all.
    pub wait: Span,
    /// The largest request under a key, in bytes. Default: 1 MiB.
    pub max_request_bytes: usize,
    /// The largest answer that is recorded, in bytes. Default: 512 KiB.
    pub max_response_bytes: usize,
    /// How long the upstream may take to begin its answer and, where the answer is recorded, be silent within it.
    /// Default: 60 s.
    pub upstream_time: Span,
    /// Hands the client's `Host` on, in place of the upstream's. Each host then has keys of its own, as if `host` stood
    /// in `scope_headers`.
    pub preserve_host: bool,
    /// What is taken in; `body_bytes` and `max_wait` do not count here.
    pub limits: Limits,
    /// The keys that seal recorded answers at rest.
    pub encryption: Option<EncryptionConfig>,
    /// The certificate, for HTTPS.
    pub tls: Option<TlsConfig>,
    /// Where `/metrics`, `/healthz` and `/readyz` are answered: on a listener of their own, or nowhere.
    pub admin: Option<SocketAddr>,
    /// Who may read `/metrics`; without any, `admin` must be on the loopback. Their namespace is the proxy's.
    #[serde(rename = "token")]
    pub tokens: Vec<TokenConfig>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let options = Idempotency::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4280)),
            upstream: String::new(),
            store: "memory:".into(),
            namespace: "proxy".into(),
            policy: PolicyConfig::default(),
            require: Vec::new(),
            key_headers: Vec::new(),
            key_pointers: Vec::new(),
            scope_headers: Vec::new(),
            scope_caller: false,
            fates: std::collections::BTreeMap::new(),
            wait: Span(Duration::ZERO),
            max_request_bytes: options.max_request_bytes,
            max_response_bytes: options.max_response_bytes,
            upstream_time: Span(Duration::from_secs(60)),
            preserve_host: false,
            limits: Limits::default(),
            encryption: None,
            tls: None,
            admin: None,
            tokens: Vec::new(),
        }
    }
}

impl ProxyConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting that is unknown or wrong.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)
            .map_err(|e| Error::Config { message: format!("the configuration cannot be read: {e}") })?;
        config.options()?;
        Ok(config)
    }

    /// How large a record may be. Escapes make a text up to six times as long; with them and its head an answer
    /// must fit.
    fn room(&self) -> usize {
        self.max_response_bytes.saturating_mul(6).saturating_add(256 << 10).min(64 << 20)
    }

    /// The upstream behind the layer.
    fn service(&self, hapax: &Hapax, app: Option<&App>) -> Result<Router, Error> {
        let options = self.options()?;
        let mut upstream = Upstream::new(&self.upstream)
            .map_err(|e| Error::Config { message: e.to_string() })?
            .time_limit(self.upstream_time.0);
        if self.preserve_host {
            upstream = upstream.preserve_host();
        }
        if self.tls.is_some() {
            upstream = upstream.behind_tls();
        }
        let metrics = app.map(|app| app.metrics().clone());
        let layer = IdempotencyLayer::counted(hapax.clone(), options, metrics);
        Ok(Router::new().fallback_service(layer.layer(upstream)))
    }

    /// The configuration of the listener beside it, if there is one.
    fn beside(&self) -> Option<ServeConfig> {
        let mut tokens = self.tokens.clone();
        for token in &mut tokens {
            token.namespace.clone_from(&self.namespace);
        }
        self.admin.map(|listen| ServeConfig {
            listen,
            store: self.store.clone(),
            namespace: self.namespace.clone(),
            // The proxy's own manager does that.
            auto_cleanup: Keep(hapax::Ttl::Never),
            limits: self.limits,
            tokens,
            ..ServeConfig::default()
        })
    }

    /// The layer's choices.
    fn options(&self) -> Result<Idempotency, Error> {
        self.limits.validate()?;
        let bad = |message: String| Error::Config { message };
        let header = |name: &String| {
            HeaderName::try_from(name.as_str()).map_err(|_| bad(format!("{name:?} is no header's name")))
        };
        let mut options = Idempotency::default().limits(self.max_request_bytes, self.max_response_bytes);
        for name in &self.key_headers {
            options.sources.push(KeySource::Header(header(name)?));
        }
        for pointer in &self.key_pointers {
            if !pointer.starts_with('/') {
                return Err(bad(format!("key_pointers: {pointer:?} is no JSON pointer: write it like /id")));
            }
            options.sources.push(KeySource::Body(pointer.clone()));
        }
        for name in &self.scope_headers {
            options.scopes.push(Scope::Header(header(name)?));
        }
        // What the upstream answers may depend on it.
        let of_host = Scope::Header(http::header::HOST);
        if self.preserve_host && !options.scopes.contains(&of_host) {
            options.scopes.push(of_host);
        }
        if self.scope_caller {
            options.scopes.push(Scope::Caller);
        }
        for method in &self.require {
            let method = Method::from_bytes(method.as_bytes()).ok().filter(|m| !m.is_safe());
            options
                .required
                .push(method.ok_or_else(|| bad("require: name methods that change things, like POST".into()))?);
        }
        let mut fates = Fates::default();
        // Classes first, so that a single status counts in whatever order they stand.
        for (statuses, fate) in self.fates.iter().filter(|(s, _)| s.ends_with("xx")).chain(self.fates.iter()) {
            fates = fates.with(statuses, *fate).map_err(|e| bad(format!("fates: {e}")))?;
        }
        for (name, value) in
            [("max_request_bytes", self.max_request_bytes), ("max_response_bytes", self.max_response_bytes)]
        {
            if !(1..=64 << 20).contains(&value) {
                return Err(bad(format!("{name} is {value}; it must be 1 to 67108864 (64 MiB)")));
            }
        }
        options.fates = fates;
        options.wait = self.wait.0;
        options.response_silence = self.upstream_time.0;
        Ok(options)
    }
}

/// A proxy that is bound and not yet serving.
pub struct ProxyServer {
    config: Arc<ProxyConfig>,
    hapax: Hapax,
    current: Current,
    listener: TcpListener,
    address: SocketAddr,
    tls: Tls,
    admin: Option<Admin>,
}

/// What answers the next request; a reload puts another in its place.
type Current = Arc<RwLock<Router>>;

/// The listener for those who watch over the proxy.
struct Admin {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
}

impl std::fmt::Debug for ProxyServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ProxyServer {
    /// Opens the store and binds the address.
    ///
    /// # Errors
    /// What is wrong with the configuration, the store, the certificate or the address.
    pub async fn bind(config: ProxyConfig) -> Result<Self, ServeError> {
        config.options()?;
        let store = hapax::store::open(&config.store).await.map_err(Error::from)?;
        Self::bind_on(config, store).await
    }

    /// As [`bind`](Self::bind), on a store that is open already.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_on(config: ProxyConfig, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let mut store = EncryptionConfig::seal(config.encryption.as_ref(), store)?;
        let admin = match config.beside() {
            Some(beside) => {
                let wanted = beside.listen;
                let app = App::on(beside, store).await?;
                // The one that is measured.
                store = app.store().clone();
                let listener = bind(wanted).await?;
                let address = listener.local_addr()?;
                Some(Admin { app, listener, address })
            }
            None => None,
        };
        let hapax = Hapax::builder()
            .store(store)
            .namespace(&config.namespace)
            .label("hapax proxy")
            .policy(config.policy.patch())
            .max_result_bytes(config.room())
            .build()
            .await?;
        let current = Arc::new(RwLock::new(config.service(&hapax, admin.as_ref().map(|admin| &admin.app))?));
        let listener = bind(config.listen).await?;
        let address = listener.local_addr()?;
        let tls = Arc::new(RwLock::new(acceptor));
        Ok(Self { config: Arc::new(config), hapax, current, listener, address, tls, admin })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are answered.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.address)
    }

    /// The handle by which to reload the configuration.
    #[must_use]
    pub fn reloader(&self) -> ProxyReloader {
        ProxyReloader {
            began: self.config.clone(),
            hapax: self.hapax.clone(),
            current: self.current.clone(),
            app: self.admin.as_ref().map(|admin| admin.app.clone()),
            tls: self.tls.clone(),
        }
    }

    /// Serves until `stop` ends, then finishes what is under way, up to
    /// `limits.drain`, and closes the store.
    ///
    /// # Errors
    /// When the store's last write fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { config, hapax, current, listener, address, tls, admin } = self;
        let limits = config.limits;
        tracing::info!(%address, store = hapax.store().location(), tls = tls.read().is_some(), "hapax proxies");
        let metrics = admin.as_ref().map(|admin| admin.app.metrics().clone()).unwrap_or_default();
        let counted = metrics.clone();
        let router = Router::new().fallback(move |request: Request| {
            let (mut service, method, running) = (current.read().clone(), request.method().clone(), counted.request());
            async move {
                let response = service.call(request).await;
                // The paths are the upstream's; as labels they would have no bound.
                running.done(
                    &method,
                    "",
                    response.as_ref().map_or(StatusCode::INTERNAL_SERVER_ERROR, Response::status),
                );
                response
            }
        });
        let (drained, watching) = oneshot::channel::<()>();
        let app = admin.as_ref().map(|admin| admin.app.clone());
        let beside = admin.map(|Admin { app, listener, address }| {
            tracing::info!(%address, "metrics and health");
            let limits = Limits { drain: Span(ADMIN_DRAIN), ..limits };
            let server =
                Server { listener, router: admin_router(app), limits, tls: tls.clone(), metrics: Arc::default() };
            tokio::spawn(server.run(async { drop(watching.await) }, || {}))
        });
        let closing = app.clone();
        let server = Server { listener, router, limits, tls, metrics };
        server.run(stop, || closing.iter().for_each(App::close)).await?;
        // Handlers whose clients have left still run: their answers are waited for, too.
        let shutdown = hapax.shutdown(limits.drain.0).await?;
        if shutdown.unfinished > 0 {
            tracing::warn!(unfinished = shutdown.unfinished, "attempts were still running; their keys are in doubt");
        }
        // Who watches can see the drain to its end.
        drop(drained);
        if let Some(Ok(ended)) = match beside {
            Some(beside) => Some(beside.await),
            None => None,
        } {
            ended?;
        }
        match app {
            Some(app) => app.finish(limits.drain.0).await?,
            None => hapax.store().close().await.map_err(Error::from)?,
        }
        Ok(())
    }
}

/// Reloads a running proxy's configuration.
#[derive(Clone)]
pub struct ProxyReloader {
    began: Arc<ProxyConfig>,
    hapax: Hapax,
    current: Current,
    app: Option<App>,
    tls: Tls,
}

impl std::fmt::Debug for ProxyReloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyReloader").finish_non_exhaustive()
    }
}

impl ProxyReloader {
    /// Takes up the upstream, what concerns keys, answers and fates, policy, tokens and the certificate.
    /// What is under way ends as it began.
    ///
    /// # Errors
    /// What is wrong with it; everything stays as it was then.
    pub async fn reload(&self, config: ProxyConfig) -> Result<(), ServeError> {
        let began = &self.began;
        for (what, same) in [
            ("listen", began.listen == config.listen),
            ("admin", began.admin == config.admin),
            ("store", began.store == config.store),
            ("namespace", began.namespace == config.namespace),
        ] {
            if !same {
                tracing::warn!("{what} has changed in the configuration; that takes a restart");
            }
        }
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        // The namespace and whether there is TLS stay as they are.
        let config = ProxyConfig { namespace: began.namespace.clone(), admin: began.admin, ..config };
        let service = config.service(&self.hapax, self.app.as_ref())?;
        // All is checked before anything changes.
        let beside = config.beside();
        beside.as_ref().map(ServeConfig::validate).transpose()?;
        self.hapax.configure(|now| {
            now.policy = hapax::Policy::default();
            config.policy.patch().apply(&mut now.policy);
            now.max_result_bytes = config.room();
        })?;
        if let (Some(app), Some(beside)) = (&self.app, beside) {
            app.reload(beside).await?;
        }
        renew(&self.tls, acceptor);
        *self.current.write() = service;
        tracing::info!("configuration reloaded");
        Ok(())
    }
}
