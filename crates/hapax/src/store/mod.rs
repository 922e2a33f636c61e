//! The store trait: each transition of a record as one atomic step.
//!
//! A store keeps the records, the counters and the time; it decides nothing
//! about policy. Invariants that every store keeps, and that
//! `store::conformance` checks:
//!
//! - a transition applies only to the attempt id it names; a stale one changes
//!   nothing and is told so;
//! - a record past its `expires_at` is absent to every operation;
//! - a live record whose lease has lapsed, or whose owner is known to be gone,
//!   reads as `in_doubt`, and a heartbeat cannot bring it back;
//! - `in_progress` and `in_doubt` are never expired, evicted or cleared;
//! - when a transition returns, it is as durable as the store promises.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AttemptId, Clock, Fingerprint, Json, Key, Owner, Record, State, Timestamp, Ttl};

mod around;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "encrypt")]
pub mod sealed;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod shared;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use around::Around;

/// What a store's method returns.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store could not do what it was asked. Whatever was asked did not
/// happen, unless the variant says otherwise.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached or opened.
    #[error("store {store} is not available: {message}")]
    Unavailable {
        /// Where it is, without secrets.
        store: String,
        /// What happened and what to do.
        message: String,
    },
    /// Others kept it locked for too long.
    #[error("store {store} stayed locked by other processes for {waited:?}; try again")]
    Busy {
        /// Where it is.
        store: String,
        /// How long this call waited.
        waited: Duration,
    },
    /// There is no room on the device.
    #[error(
        "store {store} has no room left to write: {message}; free space on that device, nothing recorded so far is lost"
    )]
    Full {
        /// Where it is.
        store: String,
        /// What the system said.
        message: String,
    },
    /// It is damaged, or not a hapax store.
    #[error("store {store} cannot be read: {message}")]
    Damaged {
        /// Where it is.
        store: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A newer hapax has written it.
    #[error(
        "store {store} has schema version {found}, and this hapax knows versions up to {known}; upgrade hapax, the data is untouched"
    )]
    Newer {
        /// Where it is.
        store: String,
        /// The version found.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// It holds `max_entries` records and was told to reject more.
    #[error(
        "store {store} is full: it holds {max_entries} records and on_full is `reject`; clean up, or raise max_entries"
    )]
    Capacity {
        /// Where it is.
        store: String,
        /// The limit.
        max_entries: u64,
    },
    /// More work is queued than the limit.
    #[error("store {store} has {limit} operations queued already; try again later")]
    Overloaded {
        /// Where it is.
        store: String,
        /// The limit.
        limit: usize,
    },
    /// The request cannot be understood.
    #[error("{message}")]
    BadRequest {
        /// What is wrong and what is right.
        message: String,
    },
    /// It was closed.
    #[error("store {store} is closed; open it again")]
    Closed {
        /// Where it is.
        store: String,
    },
    /// A write may or may not have been made: its answer was lost.
    #[error("store {store} gave no answer, so the write may or may not have been made: {message}")]
    AnswerLost {
        /// Where it is.
        store: String,
        /// What happened.
        message: String,
    },
}

impl StoreError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Busy { .. }
                | Self::Full { .. }
                | Self::Overloaded { .. }
                | Self::AnswerLost { .. }
        )
    }
}

/// What happens at `max_entries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFull {
    /// Expired records go first, then the oldest 20 % of the completed and
    /// failed ones. The records evicted break the promise that a recorded
    /// result is the result; they are counted.
    #[default]
    Evict,
    /// Expired records go; if that is not enough, the call fails with
    /// [`StoreError::Capacity`].
    Reject,
}

/// A limit on the number of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// At most this many records in the store (all namespaces together).
    pub max_entries: u64,
    /// What happens then.
    pub on_full: OnFull,
}

/// What an attempt's life hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Liveness {
    /// On the process that began it, and on its lease: a store that can tell
    /// that the process is gone puts the key in doubt at once.
    #[default]
    Process,
    /// On its lease alone: who runs it is elsewhere, and the process that began
    /// it on its behalf may come and go.
    Lease,
}

/// A request to begin an attempt.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The tenant.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Key,
    /// What triggered the action.
    pub signal_id: Option<String>,
    /// What kind of action it is.
    pub action_type: String,
    /// What it acts on.
    pub target: String,
    /// The params, if they are kept.
    pub params: Option<Json>,
    /// The fingerprint of the params that identify the action.
    pub fingerprint: Fingerprint,
    /// The new attempt.
    pub attempt: AttemptId,
    /// Who runs it.
    pub owner: Arc<Owner>,
    /// How long it may be silent.
    pub lease: Duration,
    /// What its life hangs on besides.
    pub liveness: Liveness,
    /// What the caller noted.
    pub tags: BTreeMap<String, String>,
    /// Set to take over a key in doubt: the attempt that left it so.
    pub take_over: Option<AttemptId>,
    /// The limit on records.
    pub capacity: Option<Capacity>,
}

/// The answer to [`Begin`].
#[derive(Clone, Debug)]
pub enum Begun {
    /// The attempt is live, and durably so.
    Started {
        /// Executions begun under this record, this one included.
        attempts: u64,
        /// When it began, by the store's clock.
        started_at: Timestamp,
        /// Expired records removed to make room.
        expired: u64,
        /// Records evicted to make room.
        evicted: u64,
    },
    /// Nothing changed: this is what stands under the key. (With `take_over`:
    /// the record is not in doubt by that attempt any more.)
    Exists(Box<Record>),
}

/// How an attempt ends.
#[derive(Clone, Debug)]
pub enum End {
    /// With a result: `completed`.
    Complete {
        /// The result.
        result: Json,
        /// How long it is kept.
        ttl: Ttl,
        /// How long the action took.
        duration: Duration,
    },
    /// With an error for good: `failed`.
    Fail {
        /// The error.
        error: String,
        /// How long it is kept.
        ttl: Ttl,
        /// How long the action took.
        duration: Duration,
    },
    /// Without effect: absent.
    Release,
    /// Nobody knows how: `in_doubt`.
    Doubt {
        /// Why.
        reason: String,
    },
}

impl End {
    /// The same, with no more of an error or a reason than a record keeps.
    #[must_use]
    pub(crate) fn shortened(mut self) -> Self {
        if let Self::Fail { error: text, .. } | Self::Doubt { reason: text } = &mut self {
            crate::error::shorten(text);
        }
        self
    }
}

/// The answer to an attempt's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is so, and durably.
    Done {
        /// When it was recorded, by the store's clock.
        at: Timestamp,
        /// When it expires, for a result or an error.
        expires_at: Option<Timestamp>,
    },
    /// The attempt id is stale; nothing changed. This is the key's state now.
    Lost(Option<State>),
}

/// The answer to a heartbeat, an entry per attempt asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease runs anew.
    Renewed,
    /// The lease had lapsed: the key is in doubt, by this attempt.
    Lapsed,
    /// The attempt id is stale: taken over, settled or gone.
    Lost,
}

/// What a settlement says of a key in doubt.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// The effect happened: `completed`.
    Happened {
        /// Its result.
        result: Json,
        /// How long it is kept.
        ttl: Ttl,
    },
    /// The effect did not happen: absent.
    NotHappened,
}

/// The answer to a settlement.
#[derive(Clone, Debug)]
pub enum Settled {
    /// It is so; with the record, unless it is absent now.
    Done(Option<Box<Record>>),
    /// The key is not in doubt (or by another attempt); nothing changed. This stands there.
    NotInDoubt(Option<Box<Record>>),
}

/// A result recorded by hand.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The tenant.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Key,
    /// What triggered the action, if known.
    pub signal_id: Option<String>,
    /// What kind of action it is.
    pub action_type: String,
    /// What it acts on.
    pub target: String,
    /// The params, if they are known and kept.
    pub params: Option<Json>,
    /// The fingerprint.
    pub fingerprint: Fingerprint,
    /// A new attempt id for a record that is absent.
    pub attempt: AttemptId,
    /// Who marks it.
    pub owner: Arc<Owner>,
    /// The result.
    pub result: Json,
    /// How long it is kept.
    pub ttl: Ttl,
    /// The limit on records.
    pub capacity: Option<Capacity>,
}

/// The answer to [`Mark`].
#[derive(Clone, Debug)]
pub enum Marked {
    /// The key was absent or in doubt; the result is recorded.
    Recorded {
        /// The record.
        record: Box<Record>,
        /// Expired records removed to make room.
        expired: u64,
        /// Records evicted to make room.
        evicted: u64,
    },
    /// A result, an error or a live attempt stands there; nothing changed.
    Exists(Box<Record>),
}

impl Marked {
    /// Recorded where no room had to be made, or where another counts what went for it.
    #[must_use]
    pub fn recorded(record: Box<Record>) -> Self {
        Self::Recorded { record, expired: 0, evicted: 0 }
    }
}

/// The answer to a removal.
#[derive(Clone, Debug)]
pub enum Removed {
    /// The recorded result or error is gone.
    Removed,
    /// There was none.
    Absent,
    /// It is in progress or in doubt and stays.
    Kept(Box<Record>),
}

/// In which order a query's records come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From the oldest on.
    #[default]
    OldestFirst,
    /// From the newest back.
    NewestFirst,
}

/// Which records a query wants, and in which order. Every field but the order narrows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this action type.
    pub action_type: Option<String>,
    /// Of this target.
    pub target: Option<String>,
    /// Of this signal.
    pub signal_id: Option<String>,
    /// In this state.
    pub state: Option<State>,
    /// Whose result or error expires within this time from now.
    pub expiring_within: Option<Duration>,
    /// By age: when the key was first begun or marked. A cursor holds for the order of its page.
    pub order: Order,
}

/// A page of records, in the order that was asked for.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next page begins, if there is one: give it to the next query.
    pub next: Option<String>,
}

/// The most records on a page.
pub const MAX_PAGE: usize = 1000;

/// Counters that add up over processes and restarts, per namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Calls answered from the record.
    pub hits: u64,
    /// Calls that found no record.
    pub misses: u64,
    /// Calls whose action did not run again: hits, joins and calls turned away.
    pub duplicates_prevented: u64,
    /// Actions begun.
    pub executions: u64,
    /// Actions that ended in an error.
    pub failures: u64,
    /// Calls that waited for another's attempt.
    pub waits_joined: u64,
    /// Calls refused for other params.
    pub mismatches: u64,
    /// Expired records removed.
    pub expired_cleaned: u64,
    /// Records evicted before their time.
    pub evicted: u64,
    /// Milliseconds of action time that replays saved.
    pub time_saved_ms: u64,
}

impl Counters {
    /// The counters with their names, in a fixed order: for stores that keep them by name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 10] {
        [
            ("hits", self.hits),
            ("misses", self.misses),
            ("duplicatesPrevented", self.duplicates_prevented),
            ("executions", self.executions),
            ("failures", self.failures),
            ("waitsJoined", self.waits_joined),
            ("mismatches", self.mismatches),
            ("expiredCleaned", self.expired_cleaned),
            ("evicted", self.evicted),
            ("timeSavedMs", self.time_saved_ms),
        ]
    }

    /// The counter of that name, to add to or set.
    pub fn named_mut(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "hits" => &mut self.hits,
            "misses" => &mut self.misses,
            "duplicatesPrevented" => &mut self.duplicates_prevented,
            "executions" => &mut self.executions,
            "failures" => &mut self.failures,
            "waitsJoined" => &mut self.waits_joined,
            "mismatches" => &mut self.mismatches,
            "expiredCleaned" => &mut self.expired_cleaned,
            "evicted" => &mut self.evicted,
            "timeSavedMs" => &mut self.time_saved_ms,
            _ => return None,
        })
    }
}

/// How many records a namespace has, by state; expired ones do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// Live attempts.
    pub in_progress: u64,
    /// Keys in doubt.
    pub in_doubt: u64,
    /// Recorded results.
    pub completed: u64,
    /// Recorded errors.
    pub failed: u64,
    /// When the oldest record's last attempt began.
    pub oldest: Option<Timestamp>,
    /// When the newest record's last attempt began.
    pub newest: Option<Timestamp>,
    /// Bytes the store takes, all namespaces together, as far as it knows.
    pub bytes: u64,
}

/// Where records live.
///
/// Every method is one atomic step, and safe to call from many tasks, threads
/// and (for stores that are shared) processes at once. Futures may be dropped
/// at any point: the step then happens or not, never by half.
///
/// A store may send a request to its server again when it got no answer, and
/// then answers only what is true whichever sending did the work: an attempt
/// found under its id has begun, an end found on record is done, and a key that
/// was to be freed and is absent is free, whoever freed it. Where what it finds
/// may have come after its own work, the answer is [`StoreError::AnswerLost`].
pub trait Store: Any + Send + Sync + fmt::Debug {
    /// Where it is, without secrets: `memory:`, `sqlite:/var/lib/x.db`.
    fn location(&self) -> &str;

    /// How many records it keeps when the user set no limit; `None`: no limit.
    fn default_max_entries(&self) -> Option<u64> {
        None
    }

    /// The store's clock, asked.
    fn now(&self) -> StoreFuture<'_, Timestamp>;

    /// The time by which a result is remembered that was read just now: that of a server's last answer, perhaps, in
    /// place of asking it. Never early, so that nothing is remembered for too long.
    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        self.now()
    }

    /// A number that changes whenever a recorded result may have gone before
    /// its time (cleared, evicted), by any process. `None` when the
    /// store cannot vouch that it would have noticed within the last second:
    /// then nothing remembered is trusted. Cheap: called on every replay.
    fn epoch(&self) -> Option<u64> {
        None
    }

    /// The clock that the store takes its time from, if it lives on this host:
    /// remembered results are aged by it. `None`: by the host's steady clock.
    fn clock(&self) -> Option<&dyn Clock> {
        None
    }

    /// Begins an attempt if the key is absent (or in doubt by the attempt that
    /// `take_over` names).
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun>;

    /// Renews leases.
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>>;

    /// Ends an attempt. Applies while the record is in progress, or in doubt by
    /// this very attempt (a late answer is still an answer).
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended>;

    /// Settles a key in doubt; with `attempt`, only if it is in doubt by that one.
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled>;

    /// Records a result by hand.
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked>;

    /// The record under a key.
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>>;

    /// Removes a recorded result or error.
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed>;

    /// Removes all recorded results and errors of a namespace; returns how many.
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64>;

    /// Removes up to `limit` expired records of all namespaces; returns how many (fewer than went, when an answer was
    /// lost on the way: they were absent to every operation before).
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64>;

    /// Removes the `count` oldest recorded results and errors of a namespace; returns how many.
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64>;

    /// A page of records in the filter's order, at most `limit` (1 to [`MAX_PAGE`]).
    fn query(&self, namespace: Arc<str>, filter: Filter, cursor: Option<String>, limit: usize)
    -> StoreFuture<'_, Page>;

    /// Adds to the counters, and to the `attempt_count` of records that still exist.
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()>;

    /// The counters.
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters>;

    /// Sets the counters to zero.
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()>;

    /// How many records there are.
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census>;

    /// Returns when the key may no longer be in progress by `attempt`, or after
    /// `at_most`. May return early for no reason.
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()>;

    /// Finishes what is queued and lets go of files and threads. Later calls
    /// fail with [`StoreError::Closed`].
    fn close(&self) -> StoreFuture<'_, ()>;
}

/// Opens a store by its address: `memory:`, `sqlite:PATH`, `sqlite:PATH?durability=buffered`; with their features also
/// `redis://…` and `postgres://…` (see `docs/stores.md`).
///
/// To give several managers (of several namespaces, say) one store, or to wrap
/// it; otherwise [`Builder::store_url`](crate::Builder::store_url) does.
///
/// # Errors
/// [`StoreError::BadRequest`] for another address; whatever keeps it from being opened.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
    match scheme {
        "memory" if rest.is_empty() => Ok(Arc::new(memory::MemoryStore::new())),
        #[cfg(feature = "sqlite")]
        "sqlite" => {
            use sqlite::{SqliteOptions, SqliteStore};
            let options = SqliteOptions::from_url(url)?;
            // Opening reads and may migrate the file: not on the caller's async thread.
            let (tx, rx) = tokio::sync::oneshot::channel();
            let failed = |message: String| StoreError::Unavailable { store: url.to_string(), message };
            std::thread::Builder::new()
                .name("hapax-open".into())
                .spawn(move || {
                    let _ = tx.send(SqliteStore::open(options));
                })
                .map_err(|e| failed(format!("no thread to open it with: {e}")))?;
            let store = rx.await.map_err(|_| failed("opening it was cut short".into()))??;
            Ok(Arc::new(store))
        }
        #[cfg(feature = "redis")]
        scheme if scheme.starts_with("redis") => {
            use redis::{RedisOptions, RedisStore};
            Ok(Arc::new(RedisStore::open(RedisOptions::from_url(url)?).await?))
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            use postgres::{PostgresOptions, PostgresStore};
            Ok(Arc::new(PostgresStore::open(PostgresOptions::from_url(url)?).await?))
        }
        _ => Err(StoreError::BadRequest {
            // Passwords stand behind the scheme: it alone is repeated.
            message: format!(
                "no store for {scheme:?}: give `memory:`, `sqlite:PATH` (optionally with ?durability=buffered), `redis://HOST` or \
                 `postgres://USER:PASSWORD@HOST/DATABASE`, each as far as its cargo feature is on"
            ),
        }),
    }
}
