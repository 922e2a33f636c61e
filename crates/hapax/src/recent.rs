//! The memory of recent results, which makes replays cheap.
//!
//! Invariant: an entry answers a call only while the store's epoch is the one
//! under which it was read, and before its record expires. The store raises the
//! epoch whenever a recorded result goes before its time, and gives none when
//! it could not have noticed; so a `clear` by another process is seen within a
//! second. Losing an entry costs a look into the store, nothing else.
//!
//! Invariant: a shard's `map` and `order` hold the same keys, and its `bytes` is
//! the sum of their entries' weights, within its share of [`MAX_BYTES`].

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;

use crate::action::Identified;
use crate::background::Waker;
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

    /// About what it takes in memory. The type that it is read as is taken to be as large as the text.
    fn weight(&self) -> usize {
        let text = match &self.answer {
            Answer::Result(json) => 2 * json.as_str().len(),
            Answer::Failure(message) => message.len(),
        };
        size_of::<Self>() + 2 * size_of::<Key>() + self.key.as_str().len() + text
    }

    /// Whether it can answer no call any more.
    fn is_over(&self, now: Timestamp, epoch: Option<u64>) -> bool {
        self.until.is_some_and(|until| now >= until) || epoch.is_some_and(|epoch| self.epoch < Some(epoch))
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

/// What all remembered results may weigh together; see [`Entry::weight`].
const MAX_BYTES: usize = 64 << 20;
const SHARD_BYTES: usize = MAX_BYTES / SHARDS;
/// What weighs more is not remembered: it would drive out too much else.
const ENTRY_BYTES: usize = SHARD_BYTES / 2;
/// How many of the oldest entries an insertion looks at for such as can answer no more.
const LOOK: usize = 4;

/// Aligned, so that no two locks share a cache line (or the pair of them that is fetched together).
#[derive(Default)]
#[repr(align(128))]
struct Lock(RwLock<Shard>);

#[derive(Default)]
struct Shard {
    map: HashMap<Key, Arc<Entry>, KeyHash>,
    /// The keys in the order they came: the oldest goes first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl Shard {
    fn put(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        self.bytes += entry.weight();
        let key = entry.key.clone();
        let replaced = self.map.insert(key.clone(), entry);
        match &replaced {
            Some(old) => self.bytes = self.bytes.saturating_sub(old.weight()),
            None => self.order.push_back(key),
        }
        replaced
    }

    /// Takes out the entry whose key is at that place in the order.
    fn take(&mut self, place: usize) -> Option<Arc<Entry>> {
        let old = self.map.remove(&self.order.remove(place)?)?;
        self.bytes = self.bytes.saturating_sub(old.weight());
        Some(old)
    }

    /// Takes the entry of a key out.
    fn forget(&mut self, key: &Key) -> Option<Arc<Entry>> {
        self.map.get(key)?;
        let place = self.order.iter().position(|k| k == key)?;
        self.take(place)
    }

    /// Takes out which of the `look` oldest can answer no more.
    fn forget_over(&mut self, look: usize, now: Timestamp, epoch: Option<u64>, gone: &mut Vec<Arc<Entry>>) {
        let mut place = 0;
        for _ in 0..look {
            let Some(entry) = self.order.get(place).and_then(|key| self.map.get(key)) else { return };
            if entry.is_over(now, epoch) {
                gone.extend(self.take(place));
            } else {
                place += 1;
            }
        }
    }

    /// Takes the oldest out until the rest is within the limits; `key` has just been put in and stays.
    fn make_room(&mut self, count: usize, key: &Key, gone: &mut Vec<Arc<Entry>>) {
        while self.map.len() > count.max(1) || self.bytes > SHARD_BYTES {
            if self.order.front() == Some(key) {
                if self.order.len() == 1 {
                    return;
                }
                self.order.rotate_left(1);
                continue;
            }
            let Some(old) = self.take(0) else { return };
            gone.push(old);
        }
    }
}

pub(crate) struct Recent {
    shards: Box<[Lock]>,
    per_shard: usize,
    /// Set by a hit, so that an idle flush need not look through the entries.
    dirty: AtomicBool,
    waker: Waker,
    orphans: Mutex<Orphans>,
}

/// Presentations of entries that have gone meanwhile, and of such as were never kept.
#[derive(Default)]
struct Orphans {
    /// How often, and what the action once took, in milliseconds.
    keyed: HashMap<Key, (u64, u64), KeyHash>,
    /// Of those past [`MAX_ORPHANS`].
    hits: u64,
    time_saved_ms: u64,
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
    pub(crate) fn new(capacity: usize, waker: Waker) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Lock::default()).collect(),
            per_shard: capacity.div_ceil(SHARDS),
            dirty: AtomicBool::new(false),
            waker,
            orphans: Mutex::default(),
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
            self.soil();
        }
    }

    /// Says that there is something to gather: the first hit after a flush.
    #[cold]
    fn soil(&self) {
        self.dirty.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Whether there is something to gather.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Counts a call answered from an entry that may not be kept here.
    pub(crate) fn hit_elsewhere(&self, entry: &Entry) {
        self.orphan(&entry.key, 1, entry.duration_ms);
    }

    fn orphan(&self, key: &Key, count: u64, duration_ms: u64) {
        let mut orphans = self.orphans.lock();
        if let Some((presented, _)) = orphans.keyed.get_mut(key) {
            *presented += count;
        } else if orphans.keyed.len() < MAX_ORPHANS {
            orphans.keyed.insert(key.clone(), (count, duration_ms));
        } else {
            orphans.hits += count;
            orphans.time_saved_ms = orphans.time_saved_ms.saturating_add(count.saturating_mul(duration_ms));
        }
        drop(orphans);
        if !self.is_dirty() {
            self.soil();
        }
    }

    /// Remembers `entry`, if it may be, in place of what was remembered under its key.
    pub(crate) fn insert(&self, entry: Arc<Entry>, now: Timestamp) {
        if self.per_shard == 0 || entry.epoch.is_none() {
            return;
        }
        let Some(lock) = self.shard(&entry.key) else { return };
        // Dropped after the lock is free.
        let mut gone = Vec::new();
        {
            let mut shard = lock.write();
            if entry.weight() > ENTRY_BYTES {
                gone.extend(shard.forget(&entry.key));
            } else {
                let (key, epoch) = (entry.key.clone(), entry.epoch);
                gone.extend(shard.put(entry));
                shard.forget_over(LOOK, now, epoch, &mut gone);
                shard.make_room(self.per_shard, &key, &mut gone);
            }
        }
        self.gone(gone);
    }

    /// Lets go what can answer no more.
    pub(crate) fn sweep(&self, now: Timestamp, epoch: Option<u64>) {
        for lock in &self.shards {
            let mut gone = Vec::new();
            if lock.0.read().map.values().any(|entry| entry.is_over(now, epoch)) {
                lock.0.write().forget_over(usize::MAX, now, epoch, &mut gone);
            }
            self.gone(gone);
        }
    }

    /// Keeps what was counted of entries that have gone.
    fn gone(&self, entries: Vec<Arc<Entry>>) {
        for old in entries {
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
        let orphans = std::mem::take(&mut *self.orphans.lock());
        (gathered.hits, gathered.time_saved_ms) = (orphans.hits, orphans.time_saved_ms);
        let mut add = |key: &Key, count: u64, duration_ms: u64| {
            gathered.presented.push((key.clone(), count));
            gathered.hits += count;
            gathered.time_saved_ms = gathered.time_saved_ms.saturating_add(count.saturating_mul(duration_ms));
        };
        for (key, (count, duration_ms)) in orphans.keyed {
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

#[cfg(test)]
#[path = "recent_tests.rs"]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
