//! `hapax proxy`: the Idempotency-Key layer in front of any HTTP API.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hapax::store::Store;
use hapax::{Error, Hapax};
use http::{HeaderName, Method};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_layer::Layer;

use crate::config::{EncryptionConfig, Limits, PolicyConfig, TlsConfig};
use crate::layer::{Fate, Fates, Idempotency, IdempotencyLayer, KeySource, Scope};
use crate::metrics::Metrics;
use crate::proxy::Upstream;
use crate::serve::ServeError;
use crate::server::{Server, Tls, bind};
use crate::tls;
use crate::units::Span;

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
    /// How long the upstream may take to begin its answer. Default: 60 s.
    pub upstream_time: Span,
    /// Hands the client's `Host` on, in place of the upstream's.
    pub preserve_host: bool,
    /// What is taken in; `body_bytes` and `max_wait` do not count here.
    pub limits: Limits,
    /// The keys that seal recorded answers at rest.
    pub encryption: Option<EncryptionConfig>,
    /// The certificate, for HTTPS.
    pub tls: Option<TlsConfig>,
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

    /// The layer's choices.
    fn options(&self) -> Result<Idempotency, Error> {
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
        Ok(options)
    }
}

/// A proxy that is bound and not yet serving.
pub struct ProxyServer {
    hapax: Hapax,
    router: Router,
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    tls: Tls,
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
        let store = hapax::store::open(&config.store).await.map_err(Error::from)?;
        Self::bind_on(config, store).await
    }

    /// As [`bind`](Self::bind), on a store that is open already.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_on(config: ProxyConfig, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        let options = config.options()?;
        let mut upstream = Upstream::new(&config.upstream)
            .map_err(|e| Error::Config { message: e.to_string() })?
            .time_limit(config.upstream_time.0);
        if config.preserve_host {
            upstream = upstream.preserve_host();
        }
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        if acceptor.is_some() {
            upstream = upstream.behind_tls();
        }
        // Escapes make a text up to six times as long; with them and its head an answer must fit.
        let room = config.max_response_bytes.saturating_mul(6).saturating_add(256 << 10).min(64 << 20);
        let store = EncryptionConfig::seal(config.encryption.as_ref(), store)?;
        let hapax = Hapax::builder()
            .store(store)
            .namespace(&config.namespace)
            .label("hapax proxy")
            .policy(config.policy.patch())
            .max_result_bytes(room)
            .build()
            .await?;
        let service = IdempotencyLayer::new(hapax.clone(), options).layer(upstream);
        let router = Router::new().fallback_service(service);
        let listener = bind(config.listen).await?;
        let address = listener.local_addr()?;
        let tls = Arc::new(parking_lot::RwLock::new(acceptor));
        Ok(Self { hapax, router, listener, address, limits: config.limits, tls })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` ends, then finishes what is under way, up to
    /// `limits.drain`, and closes the store.
    ///
    /// # Errors
    /// When the store's last write fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { hapax, router, listener, address, limits, tls } = self;
        tracing::info!(%address, store = hapax.store().location(), tls = tls.read().is_some(), "hapax proxies");
        let metrics = Arc::new(Metrics::default());
        Server { listener, router, limits, tls, metrics }.run(stop, || {}).await?;
        // Handlers whose clients have left still run: their answers are waited for, too.
        let shutdown = hapax.shutdown(limits.drain.0).await?;
        if shutdown.unfinished > 0 {
            tracing::warn!(unfinished = shutdown.unfinished, "attempts were still running; their keys are in doubt");
        }
        hapax.store().close().await.map_err(Error::from)?;
        Ok(())
    }
}
