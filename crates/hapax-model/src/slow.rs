//! A store whose futures do not end at once: for schedules.
//!
//! It does what the store behind it does, but lets others go on a few times
//! before the step and again between the step and its answer, by chance; and it
//! loses a request or an answer now and then. Invariant: an error says the truth
//! about the step: [`StoreError::AnswerLost`] when it may have happened, another
//! one when it has not.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use hapax::{AttemptId, Clock, Key, Record, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Lets others go on, so many times.
#[derive(Debug)]
pub struct Pause(pub u32);

impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(()) };
        self.0 = left;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    before: u32,
    after: u32,
    request_lost: bool,
    answer_lost: bool,
}

/// A slow store. See the [module](self).
#[derive(Debug)]
pub struct Slow {
    store: Arc<dyn Store>,
    rng: Mutex<StdRng>,
    /// Of a hundred requests, so many are lost, and so many answers.
    losses: u32,
    steps: AtomicU64,
}

impl Slow {
    /// Slows a store down, by a seed; of a hundred requests it loses `losses`, and as many answers.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, seed: u64, losses: u32) -> Self {
        Self { store, rng: Mutex::new(StdRng::seed_from_u64(seed)), losses, steps: AtomicU64::new(0) }
    }

    /// How many steps were taken: begun, ended, settled.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    fn fate(&self) -> Fate {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        Fate {
            before: rng.random_range(0..3),
            after: rng.random_range(0..3),
            request_lost: rng.random_range(0..100) < self.losses,
            answer_lost: rng.random_range(0..100) < self.losses,
        }
    }

    fn slowly<'a, T: Send + 'static>(
        &'a self,
        ask: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let fate = self.fate();
        Box::pin(async move {
            Pause(fate.before).await;
            if fate.request_lost {
                return Err(StoreError::Unavailable { store: "slow".into(), message: "lost on the way".into() });
            }
            let answer = ask().await;
            self.steps.fetch_add(1, Ordering::SeqCst);
            Pause(fate.after).await;
            if fate.answer_lost {
                return Err(StoreError::AnswerLost { store: "slow".into(), message: "lost on the way".into() });
            }
            answer
        })
    }
}

impl Store for Slow {
    fn location(&self) -> &str {
        self.store.location()
    }
    fn default_max_entries(&self) -> Option<u64> {
        self.store.default_max_entries()
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.store.now()
    }
    fn epoch(&self) -> Option<u64> {
        self.store.epoch()
    }
    fn clock(&self) -> Option<&dyn Clock> {
        self.store.clock()
    }
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        self.slowly(move || self.store.begin(begin))
    }
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.slowly(move || self.store.heartbeat(namespace, beats))
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.slowly(move || self.store.end(namespace, key, attempt, end))
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.slowly(move || self.store.settle(namespace, key, attempt, settlement))
    }
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        self.slowly(move || self.store.mark(mark))
    }
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.store.get(namespace, key)
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.slowly(move || self.store.remove(namespace, key))
    }
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.slowly(move || self.store.clear(namespace))
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.store.sweep(limit)
    }
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.slowly(move || self.store.evict_oldest(namespace, count))
    }
    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.store.query(namespace, filter, cursor, limit)
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.store.count(namespace, counters, presented)
    }
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.store.counters(namespace)
    }
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.store.reset_counters(namespace)
    }
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.store.census(namespace)
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        self.store.changed(namespace, key, attempt, at_most)
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        self.store.close()
    }
}
