//! What the handlers share: the store, a manager per namespace, what is
//! configured now, and the numbers.
//!
//! Invariant: what a reload can change lies in [`Live`], which is replaced as a
//! whole; a request sees one state of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hapax::store::Store;
use hapax::{Error, Hapax, Key, Stats};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::access::{Grant, Pass};
use crate::config::ServeConfig;
use crate::events::Feed;
use crate::metrics::Metrics;
use crate::overview::{Overview, watch};

/// The most keys noted for the next turn of events.
const MAX_TOUCHED: usize = 1_000;

/// The server's state. A cheap clone of a handle.
#[derive(Clone, Debug)]
pub struct App {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    store: Arc<dyn Store>,
    // Read on every request, written by a reload alone.
    live: ArcSwap<Live>,
    metrics: Arc<Metrics>,
    began: Instant,
    closing: watch::Sender<bool>,
    reloaded: watch::Sender<()>,
}

/// What a reload can change.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) config: ServeConfig,
    pub(crate) limits: Bounds,
    pub(crate) grants: Vec<Grant>,
    pub(crate) tenants: HashMap<String, Arc<Tenant>>,
    /// Set when there are no tokens.
    pub(crate) open_to_loopback: Option<Arc<Tenant>>,
}

/// The limits that handlers need, unwrapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) body_bytes: usize,
    pub(crate) body_time: Duration,
    pub(crate) max_wait: Duration,
}

/// A namespace.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) hapax: Hapax,
    pub(crate) feed: Feed,
    pub(crate) overview: Overview,
    /// Keys that requests have touched, for the events of the next turn.
    touched: Mutex<HashSet<Key>>,
}

impl Tenant {
    fn new(hapax: Hapax) -> Self {
        Self { hapax, feed: Feed::default(), overview: Overview::default(), touched: Mutex::new(HashSet::new()) }
    }

    /// The statistics, which the series takes up.
    pub(crate) async fn look(&self) -> Result<Stats, Error> {
        let stats = self.hapax.stats().await?;
        self.overview.add(self.hapax.store().now().await?, stats);
        Ok(stats)
    }

    /// Notes that something happened to a key, if anyone listens.
    pub(crate) fn touch(&self, key: &Key) {
        if self.feed.is_heard() {
            let mut touched = self.touched.lock();
            if touched.len() < MAX_TOUCHED {
                touched.insert(key.clone());
            }
        }
    }

    pub(crate) fn take_touched(&self) -> HashSet<Key> {
        std::mem::take(&mut *self.touched.lock())
    }
}

impl App {
    /// On a store that is open already, wrapped perhaps.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Store`].
    pub async fn on(config: ServeConfig, store: Arc<dyn Store>) -> Result<Self, Error> {
        config.validate()?;
        let metrics = Arc::new(Metrics::default());
        let store: Arc<dyn Store> = Arc::new(crate::timed::Timed::new(store, metrics.clone()));
        let live = Live::make(config, &store, &HashMap::new()).await?;
        let (live, began) = (ArcSwap::from_pointee(live), Instant::now());
        let inner =
            Inner { store, live, metrics, began, closing: watch::Sender::new(false), reloaded: watch::Sender::new(()) };
        let inner = Arc::new(inner);
        tokio::spawn(watch(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// The server, unless it is gone.
    pub(crate) fn of(inner: &Weak<Inner>) -> Option<Self> {
        Some(Self { inner: inner.upgrade()? })
    }

    /// Takes up a changed configuration: tokens, policy, limits of requests,
    /// origins. Address, store and certificate paths stay until a restart.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Store`]; everything stays as it was then.
    pub async fn reload(&self, config: ServeConfig) -> Result<(), Error> {
        config.validate()?;
        let before = self.live();
        for (what, same) in
            [("listen", before.config.listen == config.listen), ("store", before.config.store == config.store)]
        {
            if !same {
                tracing::warn!("{what} has changed in the configuration; that takes a restart");
            }
        }
        let live = Live::make(config, &self.inner.store, &before.tenants).await?;
        tracing::info!(tokens = live.grants.len(), namespaces = live.tenants.len(), "configuration reloaded");
        self.inner.live.store(Arc::new(live));
        self.inner.reloaded.send_replace(());
        Ok(())
    }

    pub(crate) fn live(&self) -> Arc<Live> {
        self.inner.live.load_full()
    }

    /// Does `f` with what is configured now: no count is taken, on which processors would wait for each other.
    pub(crate) fn with_live<R>(&self, f: impl FnOnce(&Live) -> R) -> R {
        f(&self.inner.live.load())
    }

    pub(crate) fn limits(&self) -> Bounds {
        self.with_live(|live| live.limits)
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// How long it has been there.
    pub(crate) fn uptime(&self) -> Duration {
        self.inner.began.elapsed()
    }

    /// Asks the store for the time: whether it answers at all.
    pub(crate) async fn look(&self) -> Result<(), Error> {
        self.inner.store.now().await?;
        Ok(())
    }

    /// The configuration as it stands.
    #[must_use]
    pub fn config(&self) -> ServeConfig {
        self.live().config.clone()
    }

    /// Returns once the server shuts down: long waits end then.
    pub(crate) async fn closing(&self) {
        let mut closing = self.inner.closing.subscribe();
        // The sender lives as long as this handle.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Watches over what a request was admitted by.
    pub(crate) fn term(&self, pass: Pass) -> Term {
        let mut reloaded = self.inner.reloaded.subscribe();
        // There may have been a reload since it was admitted.
        reloaded.mark_changed();
        Term { app: self.clone(), pass, reloaded }
    }

    pub(crate) fn is_closing(&self) -> bool {
        *self.inner.closing.borrow()
    }

    /// Tells waiting calls and event streams to end.
    pub(crate) fn close(&self) {
        self.inner.closing.send_replace(true);
    }

    /// Writes what is left to write and lets go of the store.
    ///
    /// # Errors
    /// [`Error::Store`] when the last write fails.
    pub async fn finish(&self, limit: Duration) -> Result<(), Error> {
        self.close();
        for tenant in self.live().tenants.values() {
            let _ = tenant.hapax.shutdown(limit).await?;
        }
        Ok(self.inner.store.close().await?)
    }
}

/// How long a request stays admitted.
pub(crate) struct Term {
    app: App,
    pass: Pass,
    reloaded: watch::Receiver<()>,
}

impl Term {
    /// Returns once a reload has taken away by what it was admitted.
    pub(crate) async fn over(&mut self) {
        // The sender lives as long as this handle.
        while self.reloaded.changed().await.is_ok() {
            if !self.app.with_live(|live| self.pass.holds(live)) {
                return;
            }
        }
    }
}

impl Live {
    /// What the configuration asks for. The managers that `before` brings take it up at the very end: of a
    /// configuration that is refused, nothing counts.
    async fn make(
        config: ServeConfig,
        store: &Arc<dyn Store>,
        before: &HashMap<String, Arc<Tenant>>,
    ) -> Result<Self, Error> {
        let mut tenants = HashMap::new();
        for namespace in config.namespaces() {
            if tenants.contains_key(namespace) {
                continue;
            }
            let tenant = match before.get(namespace) {
                // It serves requests: it is changed when nothing can fail any more.
                Some(tenant) => {
                    let mut changed = hapax::Config::clone(&tenant.hapax.config());
                    config.apply(&mut changed);
                    changed.validate()?;
                    tenant.clone()
                }
                None => {
                    let hapax =
                        Hapax::builder().store(store.clone()).namespace(namespace).label("hapax serve").build().await?;
                    hapax.configure(|c| config.apply(c))?;
                    Arc::new(Tenant::new(hapax))
                }
            };
            tenants.insert(namespace.to_string(), tenant);
        }
        for tenant in tenants.iter().filter(|(namespace, _)| before.contains_key(*namespace)).map(|(_, tenant)| tenant)
        {
            // As checked above: what else may change meanwhile is what this sets.
            tenant.hapax.configure(|c| config.apply(c))?;
        }
        let grants = config
            .tokens
            .iter()
            .filter_map(|token| {
                let tenant = tenants.get(&token.namespace)?.clone();
                Some(Grant { hash: token.sha256, role: token.role, tenant })
            })
            .collect();
        let open_to_loopback = if config.tokens.is_empty() { tenants.get(&config.namespace).cloned() } else { None };
        let limits = Bounds {
            body_bytes: config.limits.body_bytes,
            body_time: config.limits.body_time.0,
            max_wait: config.limits.max_wait.0,
        };
        Ok(Self { limits, grants, tenants, open_to_loopback, config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_a_refused_configuration_nothing_counts() {
        let config = |text: &str| ServeConfig::from_toml(text).unwrap();
        let store = hapax::store::open("memory:").await.unwrap();
        let now = Live::make(config(""), &store, &HashMap::new()).await.unwrap();
        let token = |namespace: &str| {
            let hash = crate::access::TokenHash::of(namespace);
            format!("[[token]]\nname = \"t\"\nsha256 = \"{hash}\"\nnamespace = \"{namespace}\"\nrole = \"read\"\n")
        };
        let mut next = config(&format!("max_entries = 5\n{}{}", token("default"), token("new")));
        // A manager that cannot be made, whatever the reason.
        next.tokens[1].namespace = "bad name".into();
        assert!(Live::make(next.clone(), &store, &now.tenants).await.is_err());
        let limit = |live: &Live| live.tenants["default"].hapax.config().max_entries;
        assert_eq!(limit(&now), None);
        assert!(next.validate().unwrap_err().to_string().contains("bad name"));
        next.tokens[1].namespace = "new".into();
        assert_eq!(limit(&Live::make(next, &store, &now.tenants).await.unwrap()), Some(5));
        assert_eq!(limit(&now), Some(5), "it is the same manager");
    }
}
