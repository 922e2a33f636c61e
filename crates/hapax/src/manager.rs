//! The manager: a cheap handle over the store, the memory of recent results,
//! the flights of this process and the background thread.
//!
//! This file holds everything that is not the running of actions (see
//! `execute`): the manual control, queries, statistics, cleanup, configuration
//! and shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;

use crate::background::{Background, Leases};
use crate::config::{Builder, Config, WaitHook};
use crate::flight::Flights;
use crate::recent::Recent;
use crate::stats::{Gauges, Info, Stats, bump};
use crate::store::{Capacity, Counters, Filter, MAX_PAGE, Mark, Marked, Page, Removed, Settled, Settlement, Store};
use crate::{AttemptId, Clock, Error, Fingerprint, Json, Key, Owner, Record, State, SystemClock, Timestamp, Ttl};

/// The idempotency manager. A cheap clone of a handle: clone it into every task.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use hapax::{Action, ActionError, Hapax};
/// use serde_json::json;
///
/// let hapax = Hapax::open("memory:").await?;
/// let action = Action::new("create_task", "trello").signal("signal-123").params(json!({"name": "Task"}));
///
/// let first = hapax.execute(&action, |context| async move {
///     // Pass `context.key()` on to the target, then do the thing, once.
///     Ok("card-1".to_string())
/// }).await?;
/// let again = hapax.execute(&action, |_| async { Ok("never runs".to_string()) }).await?;
/// assert_eq!((first.value.as_str(), first.is_replay()), ("card-1", false));
/// assert_eq!((again.value.as_str(), again.is_replay()), ("card-1", true));
/// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Hapax {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Hapax {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hapax").field("store", &self.inner.store.location()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    /// Whether remembered results are aged by this host's own clock, as they are unless a test injects one.
    ages_by_host: bool,
    owns_store: bool,
    pub(crate) namespace: Arc<str>,
    pub(crate) owner: Arc<Owner>,
    // Read on every call, written by `configure` alone.
    pub(crate) config: RwLock<Arc<Config>>,
    /// Held by `configure` while it changes a copy, so that no change is lost.
    configuring: Mutex<()>,
    /// Whether any rule or the policy chooses params: when not, a call's key
    /// needs no look at the configuration.
    pub(crate) identity_varies: AtomicBool,
    pub(crate) recent: Recent,
    pub(crate) flights: Arc<Flights>,
    pub(crate) leases: Leases,
    pub(crate) gauges: Gauges,
    pub(crate) background: Background,
    pub(crate) on_wait: Option<WaitHook>,
    in_flight: AtomicUsize,
    closing: AtomicBool,
    /// Set when a shutdown has closed the store.
    closed: AtomicBool,
    next_cleanup: Mutex<Option<Instant>>,
    eviction_warned: Mutex<Option<Instant>>,
    /// Sums that a failed flush could not deliver.
    undelivered: Mutex<(Counters, Vec<(Key, u64)>)>,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Shutdown {
    /// Attempts that still ran when the time was up, or whose end was not
    /// written yet. They go on until the process ends; their keys are in doubt
    /// then. The store stays open for them.
    pub unfinished: usize,
}

/// Records swept in one step, so that no step holds the store for long.
const SWEEP_BATCH: usize = 1_000;

/// The most keys that [`Hapax::keys`] returns.
const MAX_KEYS: usize = 1_000_000;

/// That a result is kept for some time: one that is not answers nobody, and the action would run again.
pub(crate) fn is_kept(ttl: Ttl) -> Result<(), Error> {
    match ttl {
        Ttl::For(Duration::ZERO) => Err(Error::Config { message: "ttl is zero: give a duration or `never`".into() }),
        _ => Ok(()),
    }
}

/// A fingerprint that fits any params: of records marked by key alone.
pub(crate) fn unknown_fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([0; 32])
}

pub(crate) fn fits(recorded: &Fingerprint, given: &Fingerprint) -> bool {
    recorded == given || *recorded == unknown_fingerprint()
}

impl Hapax {
    /// A manager with the default configuration on the store at `url`:
    /// `memory:` or `sqlite:PATH`.
    ///
    /// # Errors
    /// [`Error::Store`] when it cannot be opened.
    pub async fn open(url: &str) -> Result<Self, Error> {
        Self::builder().store_url(url).build().await
    }

    /// A manager to be configured.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn start(builder: Builder, store: Arc<dyn Store>, owns_store: bool) -> Result<Self, Error> {
        let Builder { config, on_wait, .. } = builder;
        let (background, starter) = Background::start()?;
        let owner = Owner {
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            label: config.label.clone(),
        };
        let inner = Arc::new(Inner {
            ages_by_host: store.clock().is_none_or(Clock::is_host),
            store,
            owns_store,
            namespace: config.namespace.as_str().into(),
            owner: Arc::new(owner),
            identity_varies: AtomicBool::new(identity_varies(&config)),
            recent: Recent::new(config.recent_results, background.waker()),
            flights: Arc::new(Flights::new()),
            leases: Leases::default(),
            gauges: Gauges::default(),
            background,
            on_wait,
            in_flight: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            next_cleanup: Mutex::new(config.auto_cleanup.map(|every| Instant::now() + every)),
            eviction_warned: Mutex::new(None),
            undelivered: Mutex::new((Counters::default(), Vec::new())),
            config: RwLock::new(Arc::new(config)),
            configuring: Mutex::new(()),
        });
        starter.run(Arc::downgrade(&inner))?;
        tracing::debug!(store = inner.store.location(), namespace = %inner.namespace, "hapax started");
        Ok(Self { inner })
    }

    // --- manual control -----------------------------------------------------

    /// The recorded result or error of a key, if there is one. Counts as a
    /// presentation of the key.
    ///
    /// Between this look and what you do next, others may act: to run an
    /// action by hand, take a [`claim`](Self::claim) instead.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "checkExecuted")]
    pub async fn check_executed(&self, key: &Key) -> Result<Option<Record>, Error> {
        let record = self.record(key).await?.filter(|r| r.state.is_recorded());
        match &record {
            Some(record) => {
                let entry = self.inner.entry_of(record, None);
                self.inner.recent.hit_elsewhere(&entry);
            }
            None => self.inner.tally(&self.inner.gauges.misses),
        }
        Ok(record)
    }

    /// Records a result for a key that is absent or in doubt; `ttl` is the
    /// manager's when `None`. Over a recorded result or error it changes nothing
    /// and returns [`Marked::Exists`] with what is recorded.
    ///
    /// Check, run, mark by hand races by its nature: two callers may both find
    /// nothing and both run. [`claim`](Self::claim) does not.
    ///
    /// # Errors
    /// [`Error::InFlight`] under someone's live attempt; [`Error::Config`] when
    /// the result is larger than the limit or its time to live is zero; [`Error::Store`].
    #[doc(alias = "markExecuted")]
    pub async fn mark_executed<T: Serialize + ?Sized>(
        &self,
        key: &Key,
        result: &T,
        ttl: Option<Ttl>,
    ) -> Result<Marked, Error> {
        let config = self.config();
        let result =
            Json::of(result).map_err(|e| Error::Config { message: format!("the result has no JSON form: {e}") })?;
        // A key of the caller's own says nothing of its action.
        let parts = key.parts().ok();
        let mark = Mark {
            namespace: self.inner.namespace.clone(),
            key: key.clone(),
            signal_id: parts.as_ref().and_then(|p| p.signal_id.clone()),
            action_type: parts.as_ref().map_or_else(|| "unknown".into(), |p| p.action_type.clone()),
            target: parts.as_ref().map_or_else(|| "unknown".into(), |p| p.target.clone()),
            params: None,
            fingerprint: unknown_fingerprint(),
            attempt: AttemptId::new(),
            owner: self.inner.owner.clone(),
            result,
            ttl: ttl.unwrap_or(config.policy.ttl),
            capacity: self.inner.capacity(&config),
        };
        self.marked(mark).await
    }

    pub(crate) async fn marked(&self, mark: Mark) -> Result<Marked, Error> {
        let limit = self.inner.config.read().max_result_bytes;
        if mark.result.as_str().len() > limit {
            return Err(Error::Config {
                message: format!(
                    "the result is {} bytes of JSON and max_result_bytes is {limit}",
                    mark.result.as_str().len()
                ),
            });
        }
        is_kept(mark.ttl)?;
        let key = mark.key.clone();
        match self.inner.store.mark(mark).await? {
            Marked::Exists(record) if record.state == State::InProgress => Err(Error::InFlight {
                key,
                owner: record.owner.clone(),
                since: record.started_at,
                waited: Duration::ZERO,
            }),
            marked => {
                if let Marked::Recorded { expired, evicted, .. } = marked {
                    self.inner.count_room(expired, evicted);
                }
                Ok(marked)
            }
        }
    }

    /// Says what became of a key in doubt, whichever attempt left it so. The
    /// answer counts from now on: a late attempt that comes back is told that it
    /// lost its claim.
    ///
    /// Between your look at the target and this call, the key may have been
    /// settled by another, run again and come into doubt anew: where several
    /// may settle, or callers take over, name the attempt that you looked into
    /// by [`settle_attempt`](Self::settle_attempt).
    ///
    /// # Errors
    /// [`Error::WrongState`] when the key is not in doubt; [`Error::Store`].
    pub async fn settle(&self, key: &Key, settlement: Settlement) -> Result<Option<Record>, Error> {
        self.settle_doubt(key, None, settlement).await
    }

    /// Says what became of the attempt that left a key in doubt, as
    /// [`settle`](Self::settle) does, and changes nothing when it is in doubt by
    /// another attempt by now.
    ///
    /// # Errors
    /// [`Error::LostClaim`] when it is in doubt by another attempt;
    /// [`Error::WrongState`] when it is not in doubt; [`Error::Store`].
    pub async fn settle_attempt(
        &self,
        key: &Key,
        attempt: AttemptId,
        settlement: Settlement,
    ) -> Result<Option<Record>, Error> {
        self.settle_doubt(key, Some(attempt), settlement).await
    }

    async fn settle_doubt(
        &self,
        key: &Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> Result<Option<Record>, Error> {
        if let Settlement::Happened { result, ttl } = &settlement {
            is_kept(*ttl)?;
            let limit = self.inner.config.read().max_result_bytes;
            if result.as_str().len() > limit {
                return Err(Error::Config {
                    message: format!(
                        "the result is {} bytes of JSON and max_result_bytes is {limit}",
                        result.as_str().len()
                    ),
                });
            }
        }
        match self.inner.store.settle(self.inner.namespace.clone(), key.clone(), attempt, settlement).await? {
            Settled::Done(record) => {
                tracing::info!(%key, "settled");
                Ok(record.map(|r| *r))
            }
            Settled::NotInDoubt(record) => match (record, attempt) {
                (Some(record), Some(attempt)) if record.state == State::InDoubt => {
                    Err(Error::LostClaim { key: record.key, attempt, value: None })
                }
                (record, _) => Err(Error::WrongState {
                    key: key.clone(),
                    state: record.as_ref().map(|r| r.state),
                    remedy: match record.map(|r| r.state) {
                        None => "there is nothing to settle; it will run when it is next called for",
                        Some(State::InProgress) => "its attempt is alive; wait for it to end",
                        Some(_) => "it is settled already; clear it first if it must run again",
                    },
                }),
            },
        }
    }

    /// Removes a recorded result or error, so that the action runs again when
    /// next called for. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::WrongState`] when the key is in progress or in doubt;
    /// [`Error::Store`].
    #[doc(alias = "clearIdempotencyKey")]
    pub async fn clear_key(&self, key: &Key) -> Result<bool, Error> {
        match self.inner.store.remove(self.inner.namespace.clone(), key.clone()).await? {
            Removed::Removed => Ok(true),
            Removed::Absent => Ok(false),
            Removed::Kept(record) => Err(Error::WrongState {
                key: key.clone(),
                state: Some(record.state),
                remedy: if record.state == State::InDoubt {
                    "settle it (happened or not happened) instead of clearing it"
                } else {
                    "its attempt is alive; wait for it to end, then clear it"
                },
            }),
        }
    }

    /// Removes all recorded results and errors of the namespace; what is in
    /// progress or in doubt stays. Returns how many went.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "clearAllCache")]
    pub async fn clear_all(&self) -> Result<u64, Error> {
        Ok(self.inner.store.clear(self.inner.namespace.clone()).await?)
    }

    // --- queries ------------------------------------------------------------

    /// The record under a key, in whatever state, if there is one.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "getIdempotencyRecord")]
    pub async fn record(&self, key: &Key) -> Result<Option<Record>, Error> {
        Ok(self.inner.store.get(self.inner.namespace.clone(), key.clone()).await?.map(|r| *r))
    }

    /// A page of records in the filter's order, oldest first by default: at most `limit` (1 to 1000), from
    /// `cursor` on, which is the last page's `next`.
    ///
    /// # Errors
    /// [`Error::Store`], also for a cursor that is no page's `next`.
    pub async fn records(&self, filter: Filter, cursor: Option<String>, limit: usize) -> Result<Page, Error> {
        Ok(self.inner.store.query(self.inner.namespace.clone(), filter, cursor, limit.clamp(1, MAX_PAGE)).await?)
    }

    /// The keys of all records that fit, in the filter's order, at most 1 000 000.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "getCachedKeys")]
    pub async fn keys(&self, filter: Filter) -> Result<Vec<Key>, Error> {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.records(filter.clone(), cursor, MAX_PAGE).await?;
            keys.extend(page.records.into_iter().map(|r| r.key));
            cursor = page.next;
            if cursor.is_none() || keys.len() >= MAX_KEYS {
                return Ok(keys);
            }
        }
    }

    /// The first page (1000 records, oldest first) of an action type; for more, use [`records`](Self::records).
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "findKeysByActionType")]
    pub async fn find_by_action_type(&self, action_type: &str) -> Result<Page, Error> {
        self.records(Filter { action_type: Some(action_type.into()), ..Filter::default() }, None, MAX_PAGE).await
    }

    /// The first page of a target.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "findKeysByTarget")]
    pub async fn find_by_target(&self, target: &str) -> Result<Page, Error> {
        self.records(Filter { target: Some(target.into()), ..Filter::default() }, None, MAX_PAGE).await
    }

    /// The first page of a signal.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "findKeysBySignalId")]
    pub async fn find_by_signal_id(&self, signal_id: &str) -> Result<Page, Error> {
        self.records(Filter { signal_id: Some(signal_id.into()), ..Filter::default() }, None, MAX_PAGE).await
    }

    /// The first page of results and errors that expire within this time from now.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "getExpiringSoon")]
    pub async fn expiring_soon(&self, within: Duration) -> Result<Page, Error> {
        self.records(Filter { expiring_within: Some(within), ..Filter::default() }, None, MAX_PAGE).await
    }

    // --- statistics ---------------------------------------------------------

    /// What happened so far in the namespace, over all processes and restarts.
    /// Other processes' last second may be missing.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "getIdempotencyStats")]
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.inner.flush().await?;
        let counters = self.inner.store.counters(self.inner.namespace.clone()).await?;
        let census = self.inner.store.census(self.inner.namespace.clone()).await?;
        Ok(Stats::of(&counters, &census))
    }

    /// Sets the counters of the namespace to zero.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "resetStats")]
    pub async fn reset_stats(&self) -> Result<(), Error> {
        self.inner.flush().await?;
        Ok(self.inner.store.reset_counters(self.inner.namespace.clone()).await?)
    }

    /// What the store holds and where.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "getCacheInfo")]
    pub async fn info(&self) -> Result<Info, Error> {
        let census = self.inner.store.census(self.inner.namespace.clone()).await?;
        Ok(Info {
            store: self.inner.store.location().to_string(),
            namespace: self.inner.namespace.to_string(),
            size: census.in_progress + census.in_doubt + census.completed + census.failed,
            max_entries: self.inner.capacity(&self.config()).map(|c| c.max_entries),
            census,
            recent_results: self.inner.recent.len(),
            in_flight: self.inner.in_flight.load(Ordering::Relaxed),
            now: self.inner.store.now().await?,
        })
    }

    // --- cleanup ------------------------------------------------------------

    /// Removes all expired records; returns how many. They were absent to every
    /// call already: this frees their space.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "cleanupExpired")]
    pub async fn cleanup_expired(&self) -> Result<u64, Error> {
        self.inner.sweep().await
    }

    /// Removes the `count` oldest recorded results and errors of the namespace,
    /// before their time; returns how many went. Counted as evicted.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[doc(alias = "cleanupOldestEntries")]
    pub async fn cleanup_oldest_entries(&self, count: u64) -> Result<u64, Error> {
        let gone = self.inner.store.evict_oldest(self.inner.namespace.clone(), count).await?;
        self.inner.gauges.evicted.fetch_add(gone, Ordering::Relaxed);
        self.inner.background.wake();
        Ok(gone)
    }

    /// Removes expired records by itself every so often; 1 s to 30 days.
    ///
    /// # Errors
    /// [`Error::Config`] when `every` is out of that range.
    #[doc(alias = "startAutoCleanup")]
    pub fn start_auto_cleanup(&self, every: Duration) -> Result<(), Error> {
        self.configure(|config| config.auto_cleanup = Some(every))
    }

    /// Ends the automatic removal of expired records.
    #[doc(alias = "stopAutoCleanup")]
    pub fn stop_auto_cleanup(&self) {
        // Taking it away is valid whatever else is configured.
        let _ = self.configure(|config| config.auto_cleanup = None);
    }

    // --- configuration and shutdown -----------------------------------------

    /// The configuration as it stands.
    #[must_use]
    #[doc(alias = "getConfig")]
    pub fn config(&self) -> Arc<Config> {
        self.inner.config.read().clone()
    }

    /// Changes the configuration for the calls to come. One change at a time:
    /// `change` may look at [`config`](Self::config) and make calls, but must not
    /// configure the same manager, which would wait for itself for good.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range or fixed once
    /// built; nothing changes then.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), Error> {
        let one_at_a_time = self.inner.configuring.lock();
        let mut config = Config::clone(&self.config());
        change(&mut config);
        config.validate()?;
        let mut place = self.inner.config.write();
        if config.namespace != place.namespace
            || config.label != place.label
            || config.recent_results != place.recent_results
        {
            return Err(Error::Config {
                message: "namespace, label and recent_results are fixed once built: build another manager for others"
                    .into(),
            });
        }
        self.inner.identity_varies.store(identity_varies(&config), Ordering::Relaxed);
        if config.auto_cleanup != place.auto_cleanup {
            *self.inner.next_cleanup.lock() = config.auto_cleanup.map(|every| Instant::now() + every);
        }
        *place = Arc::new(config);
        drop(place);
        drop(one_at_a_time);
        // It may sleep until a date that is no longer the right one.
        self.inner.background.nudge();
        Ok(())
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Begins nothing more, waits up to `limit` for running attempts, for the ends
    /// of those whose call was dropped, and for what the background has under way,
    /// writes the statistics and closes the store if it was opened by the manager.
    ///
    /// # Errors
    /// [`Error::Store`] when the statistics cannot be written, and the store is
    /// closed all the same, or when closing it fails.
    pub async fn shutdown(&self, limit: Duration) -> Result<Shutdown, Error> {
        self.inner.closing.store(true, Ordering::SeqCst);
        let underway = &self.inner.background.underway;
        let drained = async {
            loop {
                let notified = underway.fewer.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                // In this order: chores end by themselves once nothing runs.
                if self.inner.is_at_rest() && underway.chores() == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, drained).await;
        let unfinished = self.inner.unfinished();
        if self.inner.closed.load(Ordering::SeqCst) {
            return Ok(Shutdown { unfinished });
        }
        let flushed = self.inner.flush().await;
        if self.inner.owns_store && unfinished == 0 {
            self.inner.store.close().await?;
            self.inner.closed.store(true, Ordering::SeqCst);
        }
        flushed?;
        tracing::debug!(unfinished, "hapax shut down");
        Ok(Shutdown { unfinished })
    }
}

fn add(to: &mut Counters, more: &Counters) {
    for (name, value) in more.named() {
        if let Some(counter) = to.named_mut(name) {
            *counter = counter.saturating_add(value);
        }
    }
}

fn identity_varies(config: &Config) -> bool {
    config.policy.identity != crate::Identity::All || config.rules.iter().any(|r| r.patch.identity.is_some())
}

/// The last handle is gone: what was counted since the last flush still goes to
/// the store, by the background thread, which outlives the manager for that.
impl Drop for Inner {
    fn drop(&mut self) {
        let (counters, presented) = self.gather();
        if counters == Counters::default() && presented.is_empty() {
            return;
        }
        let (store, namespace) = (self.store.clone(), self.namespace.clone());
        self.background.spawn(async move {
            // After a shutdown nothing is left to count, so a store that is closed by then loses nothing.
            let _ = store.count(namespace, counters, presented).await;
        });
    }
}

impl Inner {
    pub(crate) fn capacity(&self, config: &Config) -> Option<Capacity> {
        let max_entries = config.max_entries.or(self.store.default_max_entries())?;
        Some(Capacity { max_entries, on_full: config.on_full })
    }

    /// The wall clock that remembered results are aged by.
    #[inline]
    pub(crate) fn coarse_now(&self) -> Timestamp {
        if self.ages_by_host {
            return SystemClock.coarse_now();
        }
        self.store.clock().map_or_else(|| SystemClock.coarse_now(), Clock::coarse_now)
    }

    /// The instant by this host's clock at which something expires that expires
    /// at `expires_at` by the store's, where it is `now`.
    pub(crate) fn until(&self, now: Timestamp, expires_at: Option<Timestamp>) -> Option<Timestamp> {
        let expires_at = expires_at?;
        if self.store.clock().is_some() {
            Some(expires_at)
        } else {
            Some(SystemClock.now().plus(expires_at.since(now)))
        }
    }

    /// What a recorded record answers, unbound in time: for one answer.
    pub(crate) fn entry_of(&self, record: &Record, epoch: Option<u64>) -> crate::recent::Entry {
        use crate::recent::{Answer, Entry};
        let answer = match (&record.result, &record.error) {
            (Some(result), _) => Answer::Result(result.clone()),
            (None, error) => Answer::Failure(error.clone().unwrap_or_default()),
        };
        let at = record.executed_at.unwrap_or(record.started_at);
        let mut entry = Entry::new(record.key.clone(), record.fingerprint, answer, at, record.duration_ms.unwrap_or(0));
        entry.epoch = epoch;
        entry
    }

    /// Says at most once a minute that recorded results went before their time.
    pub(crate) fn warn_of_eviction(&self, evicted: u64) {
        let mut last = self.eviction_warned.lock();
        if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
            *last = Some(Instant::now());
            tracing::warn!(
                evicted,
                "max_entries reached: recorded results were evicted before their time and may run again; raise it, or set on_full to reject"
            );
        }
    }

    /// Takes a place among the attempts in flight.
    pub(crate) fn arrive(&self, limit: usize) -> Result<(), Error> {
        // SeqCst with `shutdown`: either it sees this place, or this sees `closing`.
        let before = self.in_flight.fetch_add(1, Ordering::SeqCst);
        if self.closing.load(Ordering::SeqCst) {
            self.leave();
            return Err(Error::ShuttingDown);
        }
        if before >= limit {
            self.leave();
            return Err(Error::TooManyInFlight { limit });
        }
        Ok(())
    }

    pub(crate) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.closing.load(Ordering::SeqCst) {
            self.background.underway.fewer.notify_waiters();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Whether a shutdown has nothing left to wait for but chores of the background. What is still
    /// to be counted then it writes itself, and then the store may be closed.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.is_closing() && self.unfinished() == 0
    }

    /// Attempts whose end is not written yet, so far as it is to be written here.
    fn unfinished(&self) -> usize {
        // In this order: a place goes back after its end was handed to the background.
        let in_flight = self.in_flight.load(Ordering::SeqCst);
        in_flight + self.background.underway.ends()
    }

    /// Takes what was counted since the last flush, and what that could not deliver.
    fn gather(&self) -> (Counters, Vec<(Key, u64)>) {
        let mut counters = self.gauges.take();
        let gathered = self.recent.gather();
        counters.hits += gathered.hits;
        counters.duplicates_prevented += gathered.hits;
        counters.time_saved_ms = counters.time_saved_ms.saturating_add(gathered.time_saved_ms);
        let mut presented = gathered.presented;
        let (undelivered, keys) = std::mem::take(&mut *self.undelivered.lock());
        add(&mut counters, &undelivered);
        presented.extend(keys);
        (counters, presented)
    }

    /// Counts what no attempt goes with: of an attempt the background thread knows by itself.
    pub(crate) fn tally(&self, counter: &std::sync::atomic::AtomicU64) {
        bump(counter);
        self.background.wake();
    }

    #[cfg(test)]
    pub(crate) fn undelivered_misses(&self) -> u64 {
        self.undelivered.lock().0.misses
    }

    /// Whether there is something to be flushed.
    pub(crate) fn has_counted(&self) -> bool {
        let left = || {
            let undelivered = self.undelivered.lock();
            undelivered.0 != Counters::default() || !undelivered.1.is_empty()
        };
        self.recent.is_dirty() || self.gauges.any() || left()
    }

    /// Carries the gathered sums to the store; returns whether there were any.
    pub(crate) async fn flush(&self) -> Result<bool, Error> {
        let (counters, presented) = self.gather();
        if counters == Counters::default() && presented.is_empty() {
            return Ok(false);
        }
        match self.store.count(self.namespace.clone(), counters, presented.clone()).await {
            Ok(()) => Ok(true),
            Err(error) => {
                // Kept for the next time; the list of keys is bounded, the sums are what matters.
                let mut undelivered = self.undelivered.lock();
                // Another flush may have failed meanwhile.
                add(&mut undelivered.0, &counters);
                undelivered.1.extend(presented);
                undelivered.1.truncate(10_000);
                drop(undelivered);
                Err(error.into())
            }
        }
    }

    async fn sweep(&self) -> Result<u64, Error> {
        let mut total = 0;
        loop {
            let (gone, more) = self.sweep_some().await?;
            total += gone;
            if !more {
                return Ok(total);
            }
        }
    }

    /// One step of a sweep: how many went, and whether there may be more.
    pub(crate) async fn sweep_some(&self) -> Result<(u64, bool), Error> {
        let gone = self.store.sweep(SWEEP_BATCH).await?;
        self.gauges.expired_cleaned.fetch_add(gone, Ordering::Relaxed);
        let more = gone >= SWEEP_BATCH as u64;
        if !more {
            self.recent.sweep(self.coarse_now(), self.store.epoch());
        }
        Ok((gone, more))
    }

    /// How long until the next sweep; none comes once the manager shuts down.
    pub(crate) fn until_cleanup(&self) -> Option<Duration> {
        if self.is_closing() {
            return None;
        }
        (*self.next_cleanup.lock()).map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn cleanup_is_due(&self) -> bool {
        self.until_cleanup().is_some_and(|left| left.is_zero())
    }

    pub(crate) fn set_next_cleanup(&self) {
        let every = self.config.read().auto_cleanup;
        *self.next_cleanup.lock() = every.map(|every| Instant::now() + every);
    }
}
