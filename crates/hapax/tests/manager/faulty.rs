//! A store that fails when told to, over one that does not.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use hapax::{AttemptId, Clock, Key, Record, Timestamp};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not.
    Passes,
    /// Nothing is done.
    Fails,
    /// It is done, and the answer is lost.
    LosesAnswer,
}

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Store>,
    faults: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
}

impl Faulty {
    pub(super) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::default() })
    }

    /// The next `times` calls of that method fail so.
    pub(super) fn will(&self, method: &'static str, fault: Fault, times: usize) {
        self.faults.lock().unwrap().entry(method).or_default().extend(std::iter::repeat_n(fault, times));
    }

    /// Faults that have not happened yet.
    pub(super) fn left(&self, method: &str) -> usize {
        self.faults.lock().unwrap().get(method).map_or(0, VecDeque::len)
    }

    fn next(&self, method: &str) -> Option<Fault> {
        self.faults.lock().unwrap().get_mut(method)?.pop_front()
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        call: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        let store = "faulty:".to_string();
        match self.next(method) {
            None | Some(Fault::Passes) => call(&*self.inner),
            Some(Fault::Fails) => Box::pin(std::future::ready(Err(StoreError::Unavailable {
                store,
                message: format!("{method} fails on purpose"),
            }))),
            Some(Fault::LosesAnswer) => {
                let done = call(&*self.inner);
                Box::pin(async move {
                    let _ = done.await;
                    Err(StoreError::AnswerLost { store, message: format!("{method} is not heard on purpose") })
                })
            }
        }
    }
}

impl Store for Faulty {
    fn location(&self) -> &str {
        "faulty:"
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.call("now", |s| s.now())
    }
    fn epoch(&self) -> Option<u64> {
        self.inner.epoch()
    }
    fn clock(&self) -> Option<&dyn Clock> {
        self.inner.clock()
    }
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        self.call("begin", |s| s.begin(begin))
    }
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.call("heartbeat", |s| s.heartbeat(namespace, beats))
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.call("end", |s| s.end(namespace, key, attempt, end))
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.call("settle", |s| s.settle(namespace, key, attempt, settlement))
    }
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        self.call("mark", |s| s.mark(mark))
    }
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.call("get", |s| s.get(namespace, key))
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.call("remove", |s| s.remove(namespace, key))
    }
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.call("clear", |s| s.clear(namespace))
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.call("sweep", |s| s.sweep(limit))
    }
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.call("evict_oldest", |s| s.evict_oldest(namespace, count))
    }
    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.call("query", |s| s.query(namespace, filter, cursor, limit))
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.call("count", |s| s.count(namespace, counters, presented))
    }
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.call("counters", |s| s.counters(namespace))
    }
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.call("reset_counters", |s| s.reset_counters(namespace))
    }
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.call("census", |s| s.census(namespace))
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        self.call("changed", |s| s.changed(namespace, key, attempt, at_most))
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        self.call("close", |s| s.close())
    }
}
