//! A store around another: what a wrapper leaves alone is passed on, written once for all of them.
//!
//! Invariant: a method of `Store` stands here twice, in the trait with its way through `call`, and in the one
//! implementation of `Store` for whatever is around another; so a new method is forgotten by no wrapper.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreFuture,
};
use crate::{AttemptId, Clock, Key, Record, Timestamp};

/// A store that does something around the calls of another: implement this
/// instead of [`Store`], which follows from it.
///
/// Every method goes through [`call`](Self::call), and that to the store
/// [`within`](Self::within); a wrapper overrides what it changes.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use hapax::store::{Around, Store, StoreFuture};
///
/// /// Counts what the store is asked.
/// #[derive(Debug)]
/// struct Counting(Arc<dyn Store>, AtomicU64);
///
/// impl Around for Counting {
///     fn within(&self) -> &dyn Store {
///         &*self.0
///     }
///
///     fn call<'a, T: Send + 'a>(
///         &'a self,
///         _method: &'static str,
///         ask: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
///     ) -> StoreFuture<'a, T> {
///         self.1.fetch_add(1, Ordering::Relaxed);
///         ask(&*self.0)
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let counting = Arc::new(Counting(hapax::store::open("memory:").await?, AtomicU64::new(0)));
/// let store: Arc<dyn Store> = counting.clone();
/// store.now().await?;
/// assert_eq!(counting.1.load(Ordering::Relaxed), 1);
/// # Ok::<(), hapax::store::StoreError>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[allow(missing_docs)] // each method is that of `Store`
pub trait Around: Any + Send + Sync + fmt::Debug {
    /// The store within.
    fn within(&self) -> &dyn Store;

    /// What every call goes through, with its method's name.
    fn call<'a, T: Send + 'a>(
        &'a self,
        _method: &'static str,
        ask: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.within())
    }

    fn location(&self) -> &str {
        self.within().location()
    }
    fn default_max_entries(&self) -> Option<u64> {
        self.within().default_max_entries()
    }
    fn epoch(&self) -> Option<u64> {
        self.within().epoch()
    }
    fn clock(&self) -> Option<&dyn Clock> {
        self.within().clock()
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.call("now", |store| store.now())
    }
    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        self.call("now", |store| store.recent_now())
    }
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        self.call("begin", move |store| store.begin(begin))
    }
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.call("heartbeat", move |store| store.heartbeat(namespace, beats))
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.call("end", move |store| store.end(namespace, key, attempt, end))
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.call("settle", move |store| store.settle(namespace, key, attempt, settlement))
    }
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        self.call("mark", move |store| store.mark(mark))
    }
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.call("get", move |store| store.get(namespace, key))
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.call("remove", move |store| store.remove(namespace, key))
    }
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.call("clear", move |store| store.clear(namespace))
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.call("sweep", move |store| store.sweep(limit))
    }
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.call("evict_oldest", move |store| store.evict_oldest(namespace, count))
    }
    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.call("query", move |store| store.query(namespace, filter, cursor, limit))
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.call("count", move |store| store.count(namespace, counters, presented))
    }
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.call("counters", move |store| store.counters(namespace))
    }
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.call("reset_counters", move |store| store.reset_counters(namespace))
    }
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.call("census", move |store| store.census(namespace))
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        self.call("changed", move |store| store.changed(namespace, key, attempt, at_most))
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        self.call("close", |store| store.close())
    }
}

impl<W: Around> Store for W {
    fn location(&self) -> &str {
        Around::location(self)
    }
    fn default_max_entries(&self) -> Option<u64> {
        Around::default_max_entries(self)
    }
    fn epoch(&self) -> Option<u64> {
        Around::epoch(self)
    }
    fn clock(&self) -> Option<&dyn Clock> {
        Around::clock(self)
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        Around::now(self)
    }
    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        Around::recent_now(self)
    }
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        Around::begin(self, begin)
    }
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        Around::heartbeat(self, namespace, beats)
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        Around::end(self, namespace, key, attempt, end)
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        Around::settle(self, namespace, key, attempt, settlement)
    }
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Around::mark(self, mark)
    }
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Around::get(self, namespace, key)
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Around::remove(self, namespace, key)
    }
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        Around::clear(self, namespace)
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        Around::sweep(self, limit)
    }
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        Around::evict_oldest(self, namespace, count)
    }
    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        Around::query(self, namespace, filter, cursor, limit)
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        Around::count(self, namespace, counters, presented)
    }
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        Around::counters(self, namespace)
    }
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        Around::reset_counters(self, namespace)
    }
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        Around::census(self, namespace)
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        Around::changed(self, namespace, key, attempt, at_most)
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        Around::close(self)
    }
}
