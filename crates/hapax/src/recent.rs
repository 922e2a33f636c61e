//! The memory of recent results, which makes replays cheap.
//!
//! Invariant: an entry answers a call only while the store's epoch is the one
//! under which it was read, and before its record expires. The store raises the
//! epoch whenever a recorded result goes before its time, and gives none when
//! it could not have noticed; so a `clear` by another process is seen within a
//! second. Losing an entry costs a look into the store, nothing else.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;

use crate::action::Identified;
use crate::flight::{KeyHash, hash_of};
use crate::manager::fits;
use crate::{Error, Fingerprint, Json, Key, Timestamp};

/// A recorded answer.
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) answer: Answer,
    pub(crate) at: Timestamp,
    pub(crate) duration_ms: u64,
    /// When the record expires, by this host's wall clock.
    pub(crate) until: Option<Timestamp>,
    pub(crate) epoch: Option<u64>,
    /// The result as the type that was last asked for: a clone is cheaper than reading it anew.
    typed: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Calls answered from here since the last flush.
    presented: AtomicU64,
}

#[derive(Clone)]
pub(crate) enum Answer {
    Result(Json),
    Failure(String),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Entry {
    pub(crate) fn new(key: Key, fingerprint: Fingerprint, answer: Answer, at: Timestamp, duration_ms: u64) -> Self {
        Self {
            key,
            fingerprint,
            answer,
            at,
            duration_ms,
            until: None,
            epoch: None,
            typed: OnceLock::new(),
            presented: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_typed<T: Any + Send + Sync>(&self, value: T) {
        let _ = self.typed.set(Box::new(value));
    }

    /// The result, if it was asked for as this type before.
    #[inline]
    pub(crate) fn typed<T: Any>(&self) -> Option<&T> {
        self.typed.get()?.downcast_ref()
    }

    /// The value, or the recorded error.
    pub(crate) fn value<T: DeserializeOwned + Clone + Send + Sync + 'static>(&self) -> Result<T, Error> {
        if let Some(value) = self.typed::<T>() {
            return Ok(value.clone());
        }
        match &self.answer {
            Answer::Result(json) => {
                let value: T = json.to().map_err(|source| Error::ResultType {
                    key: self.key.clone(),
                    wanted: std::any::type_name::<T>(),
                    source,
                })?;
                self.set_typed(value.clone());
                Ok(value)
            }
            Answer::Failure(message) => {
                Err(Error::Failed { key: self.key.clone(), message: message.clone(), at: self.at })
            }
        }
    }
}

const SHARDS: usize = 32;

/// Aligned, so that no two locks share a cache line (or the pair of them that is fetched together).
#[derive(Default)]
#[repr(align(128))]
struct Lock(RwLock<Shard>);

#[derive(Default)]
struct Shard {
    map: HashMap<Key, Arc<Entry>, KeyHash>,
    /// The keys in the order they came: the oldest goes first.
    order: VecDeque<Key>,
}

pub(crate) struct Recent {
    shards: Box<[Lock]>,
    per_shard: usize,
    /// Set by a hit, so that an idle flush need not look through the entries.
    dirty: AtomicBool,
    /// Presentations of entries that have gone meanwhile, and of such as were never kept.
    orphans: Mutex<Vec<(Key, u64, u64)>>,
}

/// What was gathered since the last flush.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) presented: Vec<(Key, u64)>,
    pub(crate) hits: u64,
    pub(crate) time_saved_ms: u64,
}

/// How many orphaned presentations are kept between two flushes; past it they
/// are counted in the statistics only.
const MAX_ORPHANS: usize = 100_000;

impl Recent {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Lock::default()).collect(),
            per_shard: capacity.div_ceil(SHARDS),
            dirty: AtomicBool::new(false),
            orphans: Mutex::new(Vec::new()),
        }
    }

    fn shard(&self, key: &Key) -> Option<&RwLock<Shard>> {
        self.shards.get((hash_of(key) >> 40) as usize % SHARDS).map(|lock| &lock.0)
    }

    /// Does `f` with the entry if it may still answer.
    pub(crate) fn with<R>(
        &self,
        key: &Key,
        epoch: u64,
        now: impl FnOnce() -> Timestamp,
        f: impl FnOnce(&Entry) -> R,
    ) -> Option<R> {
        let shard = self.shard(key)?.read();
        let entry = shard.map.get(key)?;
        if entry.epoch != Some(epoch) || entry.until.is_some_and(|until| now() >= until) {
            return None;
        }
        Some(f(entry))
    }

    /// The result of an entry that may still answer, as the type that was last asked for; counted. The
    /// same as [`with`](Self::with), written out: through a closure, the value is moved twice more.
    #[inline(always)]
    pub(crate) fn replay<T>(&self, identified: &Identified, epoch: u64, now: impl FnOnce() -> Timestamp) -> Option<T>
    where
        T: Clone + Any,
    {
        let shard = self.shard(&identified.key)?.read();
        let entry = shard.map.get(&identified.key)?;
        if entry.epoch != Some(epoch)
            || entry.until.is_some_and(|until| now() >= until)
            || !fits(&entry.fingerprint, &identified.fingerprint)
        {
            return None;
        }
        // Cloned before it is counted: an atomic addition would wait for the clone's stores, and the other way round
        // they overlap.
        let value = entry.typed::<T>()?.clone();
        self.hit(entry);
        tracing::trace!(key = %identified.key, "replayed from memory");
        drop(shard);
        Some(value)
    }

    /// Counts a call answered from `entry`.
    #[inline]
    pub(crate) fn hit(&self, entry: &Entry) {
        entry.presented.fetch_add(1, Ordering::Relaxed);
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Counts a call answered from an entry that may not be kept here.
    pub(crate) fn hit_elsewhere(&self, entry: &Entry) {
        self.orphan(&entry.key, 1, entry.duration_ms);
    }

    fn orphan(&self, key: &Key, count: u64, duration_ms: u64) {
        let mut orphans = self.orphans.lock();
        if orphans.len() < MAX_ORPHANS {
            orphans.push((key.clone(), count, duration_ms));
        }
        self.dirty.store(true, Ordering::Relaxed);
    }

    pub(crate) fn insert(&self, entry: Arc<Entry>) {
        if self.per_shard == 0 || entry.epoch.is_none() {
            return;
        }
        let Some(lock) = self.shard(&entry.key) else { return };
        let mut gone: [Option<Arc<Entry>>; 2] = [None, None];
        {
            let mut shard = lock.write();
            let [replaced, evicted] = &mut gone;
            *replaced = shard.map.insert(entry.key.clone(), entry.clone());
            if replaced.is_none() {
                shard.order.push_back(entry.key.clone());
            }
            if shard.map.len() > self.per_shard
                && let Some(oldest) = shard.order.pop_front()
            {
                *evicted = shard.map.remove(&oldest);
            }
        }
        for old in gone.into_iter().flatten() {
            let count = old.presented.swap(0, Ordering::Relaxed);
            if count > 0 {
                self.orphan(&old.key, count, old.duration_ms);
            }
        }
    }

    /// Takes what was counted since the last time.
    pub(crate) fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return gathered;
        }
        let mut add = |key: &Key, count: u64, duration_ms: u64| {
            gathered.presented.push((key.clone(), count));
            gathered.hits += count;
            gathered.time_saved_ms = gathered.time_saved_ms.saturating_add(count.saturating_mul(duration_ms));
        };
        for (key, count, duration_ms) in std::mem::take(&mut *self.orphans.lock()) {
            add(&key, count, duration_ms);
        }
        for lock in &self.shards {
            for entry in lock.0.read().map.values() {
                let count = entry.presented.swap(0, Ordering::Relaxed);
                if count > 0 {
                    add(&entry.key, count, entry.duration_ms);
                }
            }
        }
        gathered
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.0.read().map.len()).sum()
    }
}
