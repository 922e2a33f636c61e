//! A store that notes how long the store within takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreFuture,
};
use hapax::{AttemptId, Clock, Key, Record, Timestamp};

use crate::metrics::{Metrics, OPERATIONS};

#[derive(Debug)]
pub(crate) struct Timed {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Timed {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    fn note<'a, T: Send + 'a>(&'a self, operation: &str, future: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        let operation = OPERATIONS.iter().position(|name| *name == operation).unwrap_or(usize::MAX);
        Box::pin(async move {
            let began = Instant::now();
            let answer = future.await;
            self.metrics.stored(operation, began.elapsed(), answer.is_err());
            answer
        })
    }
}

impl Store for Timed {
    fn location(&self) -> &str {
        self.store.location()
    }

    fn default_max_entries(&self) -> Option<u64> {
        self.store.default_max_entries()
    }

    fn epoch(&self) -> Option<u64> {
        self.store.epoch()
    }

    fn clock(&self) -> Option<&dyn Clock> {
        self.store.clock()
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.note("now", self.store.now())
    }

    fn recent_now(&self) -> Option<Timestamp> {
        self.store.recent_now()
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        self.note("begin", self.store.begin(begin))
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.note("heartbeat", self.store.heartbeat(namespace, beats))
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.note("end", self.store.end(namespace, key, attempt, end))
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.note("settle", self.store.settle(namespace, key, attempt, settlement))
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        self.note("mark", self.store.mark(mark))
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.note("get", self.store.get(namespace, key))
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.note("remove", self.store.remove(namespace, key))
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.note("clear", self.store.clear(namespace))
    }

    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.note("sweep", self.store.sweep(limit))
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.note("evict_oldest", self.store.evict_oldest(namespace, count))
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.note("query", self.store.query(namespace, filter, cursor, limit))
    }

    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.note("count", self.store.count(namespace, counters, presented))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.note("counters", self.store.counters(namespace))
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.note("reset_counters", self.store.reset_counters(namespace))
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.note("census", self.store.census(namespace))
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        // A wait is no measure of the store.
        self.store.changed(namespace, key, attempt, at_most)
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        self.store.close()
    }
}
