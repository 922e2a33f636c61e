//! What a store that several processes share must know of them: whether what is
//! remembered may be trusted, and who waits here for the end of an attempt; and
//! what a server's answers say of its time.
//!
//! How a store finds out is its own; what it makes of it is the same for all.
//! Invariants: an epoch is vouched for only if the last poll *began* less than
//! [`TRUST`] ago; a waiter is registered before its store is looked at, so that
//! an end in between is not missed; waiters are bounded; a server's time is given
//! rather late than early, so that nothing is remembered for too long.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::AttemptId;
#[cfg(any(feature = "postgres", feature = "redis"))]
use crate::store::StoreError;
#[cfg(any(feature = "postgres", feature = "redis"))]
use crate::{Clock, SystemClock, Timestamp};

/// How old the last poll may be for the epoch to be trusted, in milliseconds.
const TRUST: i64 = 900;
/// How often the epoch is polled while it is asked for.
pub(super) const EPOCH_EVERY: Duration = Duration::from_millis(250);
/// How long after the last question it is still polled, in milliseconds.
const WANTED: i64 = 10_000;
/// How long a server's time is gone by before it is asked again, in milliseconds.
#[cfg(any(feature = "postgres", feature = "redis"))]
const TOLD_FOR: i64 = 250;
/// The most calls that wait at once; more are sent back to look for themselves.
const WAITERS_LIMIT: usize = 65_536;

/// Milliseconds of a cheap clock that nobody sets; never 0.
pub(super) fn coarse() -> i64 {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(id);
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000).saturating_add(1)
}

/// The epoch as it was seen here, and until when it counts.
#[derive(Debug, Default)]
pub(super) struct Trust {
    epoch: AtomicU64,
    /// When the last successful poll began; 0: never.
    polled: AtomicI64,
    /// When the epoch was last asked for.
    wanted: AtomicI64,
}

impl Trust {
    /// The epoch, if it can be vouched for; otherwise somebody must poll.
    #[inline]
    pub(super) fn epoch(&self) -> Option<u64> {
        let now = coarse();
        // Not on every call: the line would go from core to core.
        if now - self.wanted.load(Ordering::Relaxed) > 100 {
            self.wanted.store(now, Ordering::Relaxed);
        }
        (now - self.polled.load(Ordering::Acquire) <= TRUST).then(|| self.epoch.load(Ordering::Acquire))
    }

    /// Whether it was asked for of late.
    pub(super) fn is_wanted(&self) -> bool {
        coarse() - self.wanted.load(Ordering::Relaxed) < WANTED
    }

    /// A recorded result has gone before its time.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn raise(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The store counts for itself, and has come to this.
    #[cfg(feature = "sqlite")]
    pub(super) fn raise_to(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// A poll that began then has seen all that was to be seen.
    pub(super) fn confirm(&self, began: i64) {
        self.polled.store(began, Ordering::Release);
    }
}

/// A server's time, as its answers tell it: a replay needs it to know for how long it may be remembered, and has just been
/// told it.
#[cfg(any(feature = "postgres", feature = "redis"))]
#[derive(Debug, Default)]
pub(super) struct ServerClock {
    /// What the last answer told, and when it was asked by this host's steady clock.
    // Short critical sections that never await.
    told: Mutex<Option<(i64, Asked)>>,
}

/// When a server was asked.
#[cfg(any(feature = "postgres", feature = "redis"))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked(i64);

#[cfg(any(feature = "postgres", feature = "redis"))]
impl Asked {
    /// A request is about to be sent.
    pub(super) fn now() -> Self {
        Self(SystemClock.steady_millis())
    }
}

#[cfg(any(feature = "postgres", feature = "redis"))]
impl ServerClock {
    /// The answer to a request that was sent then says what the time was in between.
    pub(super) fn tell(&self, millis: i64, asked: Asked) {
        *self.told.lock() = Some((millis, asked));
    }

    /// The server's time, if an answer has told it a moment ago; ahead by no more than that answer took, unless that
    /// clock was set within the last [`TOLD_FOR`].
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.time_at(SystemClock.steady_millis())
    }

    fn time_at(&self, steady: i64) -> Option<Timestamp> {
        let (millis, Asked(asked)) = (*self.told.lock())?;
        let since = steady.saturating_sub(asked);
        (0..TOLD_FOR).contains(&since).then(|| Timestamp::from_millis(millis.saturating_add(since)))
    }
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    // Waiters of Redis look for themselves.
    #[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]
    attempt: AttemptId,
    notify: Arc<Notify>,
}

/// Who waits here for the end of which attempt, by a store's name of the key.
#[derive(Debug)]
pub(super) struct Waiters<K> {
    /// Entries in `lists`, so that an end takes no lock when there are none.
    waiting: AtomicUsize,
    // Short critical sections that never await.
    lists: Mutex<HashMap<K, Vec<Waiter>, foldhash::fast::RandomState>>,
    numbers: AtomicU64,
}

impl<K> Default for Waiters<K> {
    fn default() -> Self {
        Self { waiting: AtomicUsize::new(0), lists: Mutex::default(), numbers: AtomicU64::new(0) }
    }
}

/// Registered as long as it lives.
#[derive(Debug)]
pub(super) struct Waiting<'a, K: Hash + Eq> {
    waiters: &'a Waiters<K>,
    key: K,
    number: u64,
    notify: Arc<Notify>,
}

impl<K: Hash + Eq> Waiting<'_, K> {
    /// Until the attempt may have ended; a word that came since the registration counts.
    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl<K: Hash + Eq> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        let mut lists = self.waiters.lists.lock();
        if let Some(list) = lists.get_mut(&self.key) {
            list.retain(|w| w.number != self.number);
            if list.is_empty() {
                lists.remove(&self.key);
            }
            self.waiters.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl<K: Hash + Eq + Clone> Waiters<K> {
    /// Registers a wait for the end of an attempt; `None` at the limit.
    pub(super) fn register(&self, key: K, attempt: AttemptId) -> Option<Waiting<'_, K>> {
        if self.waiting.load(Ordering::SeqCst) >= WAITERS_LIMIT {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let notify = Arc::new(Notify::new());
        self.lists.lock().entry(key.clone()).or_default().push(Waiter { number, attempt, notify: notify.clone() });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Some(Waiting { waiters: self, key, number, notify })
    }

    /// Whether anyone waits.
    pub(super) fn any(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The keys that are waited for.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) fn keys(&self) -> Vec<K> {
        self.lists.lock().keys().cloned().collect()
    }

    /// Wakes who waits for this key.
    pub(super) fn wake(&self, key: &K) {
        if self.any()
            && let Some(list) = self.lists.lock().get(key)
        {
            list.iter().for_each(|w| w.notify.notify_one());
        }
    }

    /// Wakes who waits for this key and for another attempt than the one that is in progress.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) fn wake_but(&self, key: &K, live: Option<AttemptId>) {
        if let Some(list) = self.lists.lock().get(key) {
            list.iter().filter(|w| live != Some(w.attempt)).for_each(|w| w.notify.notify_one());
        }
    }

    /// Wakes all: they look for themselves.
    pub(super) fn wake_all(&self) {
        self.lists.lock().values().flatten().for_each(|w| w.notify.notify_one());
    }
}

#[cfg(all(test, any(feature = "postgres", feature = "redis")))]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_was_told_goes_on_for_a_moment_and_no_longer() {
        let clock = ServerClock::default();
        assert_eq!(clock.time_at(5), None);
        clock.tell(1_000_000, Asked(5));
        assert_eq!(clock.time_at(5), Some(Timestamp::from_millis(1_000_000)));
        assert_eq!(clock.time_at(254), Some(Timestamp::from_millis(1_000_249)));
        assert_eq!(clock.time_at(255), None);
    }
}

/// Of a write that was sent again and finds nothing of its own.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) fn passed_by(location: &str) -> StoreError {
    StoreError::AnswerLost {
        store: location.to_string(),
        message: "the connection broke before the first answer, and by now another has the key or nobody; \
            read the record to see what counts"
            .into(),
    }
}
