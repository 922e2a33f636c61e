//! The `redis:` store: a Redis or Valkey that many hosts share; a single server, one that Sentinels watch, or a cluster.
//!
//! Each transition is a Lua script, one atomic step of the server that holds the record (`transition.lua`). Time is the
//! server's. The records of a namespace are divided into buckets; a bucket's records and its index share one hash tag,
//! so that they lie in one slot of a cluster and change together.
//!
//! Invariants: a record past its expiry is absent by the script's own look at the server's clock, to the millisecond,
//! whether or not the server has removed it yet; records in progress or in doubt have no expiry; a request whose answer
//! was lost is sent again only if that does no more than the first time. What survives what is the server's affair: see
//! `docs/stores.md`.

mod driver;
mod error;
mod fold;
mod node;
mod op;
mod options;
mod query;
mod room;
mod row;
mod script;
mod startup;
mod tally;
mod topology;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use self::driver::Driver;
use self::op::{Insert, Op};
pub use self::options::RedisOptions;

#[cfg(feature = "fuzzing")]
pub(crate) fn read_record(answer: &[u8]) -> Result<crate::Record, String> {
    row::read("default", answer).map(|row| *row.record)
}
use self::row::{Bucket, Space};
use self::topology::Topology;
use self::watch::Watch;
use super::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use crate::{AttemptId, Key, Timestamp};

/// Names of namespaces that a handle keeps at hand; past it they are worked out anew.
const MAX_SPACES: usize = 4096;

/// What the handle and its tasks share.
struct Shared {
    driver: Driver,
    topology: Arc<Topology>,
    prefix: String,
    /// Into how many buckets namespaces are divided.
    buckets: AtomicUsize,
    /// That, as it stands in Redis.
    layout: Mutex<String>,
    spaces: RwLock<HashMap<Arc<str>, Arc<Space>>>,
    watch: Watch,
    room: room::Room,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("location", &self.topology.location).finish_non_exhaustive()
    }
}

impl Shared {
    /// The names of a namespace's keys.
    fn space(&self, namespace: &Arc<str>) -> Arc<Space> {
        if let Some(space) = self.spaces.read().get(&**namespace) {
            return space.clone();
        }
        let space = Arc::new(self.new_space(namespace.clone()));
        let mut spaces = self.spaces.write();
        if spaces.len() >= MAX_SPACES {
            spaces.clear();
        }
        spaces.entry(namespace.clone()).or_insert(space).clone()
    }

    fn new_space(&self, name: Arc<str>) -> Space {
        Space::new(&self.prefix, name, self.buckets.load(Ordering::Acquire))
    }

    /// The namespaces that this process has written to.
    fn registered(&self) -> Vec<Arc<Space>> {
        self.spaces.read().values().filter(|s| s.is_registered()).cloned().collect()
    }

    fn place<'a>(&self, space: &'a Space, key: &Key) -> Result<(&'a Arc<Bucket>, String), StoreError> {
        let missing = || StoreError::BadRequest { message: format!("{key} has no place") };
        let (bucket, id) = space.place(key).ok_or_else(missing)?;
        let record = bucket.record(&id);
        Ok((bucket, record))
    }

    fn odd(&self, message: String) -> StoreError {
        StoreError::Damaged { store: self.topology.location.clone(), message }
    }
}

/// A store in Redis. See the [module](self).
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

/// Ends a task when its caller has gone.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RedisStore {
    /// Opens the store: connects once, and looks whether the server can keep what it is given.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is no such server, or it cannot serve hapax.
    pub async fn open(options: RedisOptions) -> Result<Self, StoreError> {
        let prefix = options.prefix.clone();
        let topology = Arc::new(Topology::new(options));
        let driver = Driver::start(topology.clone())?;
        let shared = Arc::new(Shared {
            driver,
            prefix,
            buckets: AtomicUsize::new(1),
            layout: Mutex::default(),
            spaces: RwLock::default(),
            watch: Watch::default(),
            room: room::Room::default(),
            topology,
        });
        let store = Self { shared };
        store.task(|shared| async move { startup::look(&shared).await }).await?;
        tracing::debug!(store = %store.shared.topology.location, "opened");
        Ok(store)
    }

    /// Does what takes several requests on the store's own runtime; it ends if its caller goes.
    fn task<T, F, Fut>(&self, work: F) -> StoreFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Shared>) -> Fut,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        if self.shared.driver.is_closed() {
            return Box::pin(std::future::ready(Err(self.shared.driver.closed())));
        }
        let busy = self.shared.driver.busy();
        let work = work(self.shared.clone());
        let mut task = AbortOnDrop(self.shared.driver.handle.spawn(async move {
            let _busy = busy;
            work.await
        }));
        Box::pin(async move { (&mut task.0).await.unwrap_or_else(|_| Err(self.shared.driver.gone())) })
    }

    /// Does one operation on one record.
    fn one<T, F>(&self, namespace: &Arc<str>, key: &Key, op: impl FnOnce(String) -> Op, read: F) -> StoreFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Space>, &[u8]) -> Result<T, op::Odd> + Send + 'static,
    {
        let space = self.shared.space(namespace);
        // Queued at once: what a caller that goes away asked for happens as if it had stayed.
        let sent =
            self.shared.place(&space, key).and_then(|(bucket, record)| self.shared.driver.send(bucket, op(record)));
        self.answer(space, sent, read)
    }

    fn answer<T, F>(
        &self,
        space: Arc<Space>,
        sent: Result<oneshot::Receiver<Result<Vec<u8>, StoreError>>, StoreError>,
        read: F,
    ) -> StoreFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Space>, &[u8]) -> Result<T, op::Odd> + Send + 'static,
    {
        Box::pin(async move {
            let answer = sent?.await.map_err(|_| self.shared.driver.gone())??;
            read(&space, &answer).map_err(|m| self.shared.odd(m))
        })
    }
}

impl Store for RedisStore {
    fn location(&self) -> &str {
        &self.shared.topology.location
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.task(|shared| async move { query::now(&shared).await })
    }

    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        match self.shared.topology.clock.time().filter(|_| !self.shared.driver.is_closed()) {
            Some(now) => Box::pin(std::future::ready(Ok(now))),
            None => self.now(),
        }
    }

    #[inline]
    fn epoch(&self) -> Option<u64> {
        watch::epoch(&self.shared)
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        let space = self.shared.space(&begin.namespace);
        if begin.capacity.is_some() || !space.is_registered() {
            return self.task(|shared| async move { room::begin(&shared, &space, begin).await });
        }
        let sent = self
            .shared
            .place(&space, &begin.key)
            .and_then(|(bucket, record)| self.shared.driver.send(bucket, Op::begin(record, &begin, Insert::Allowed)?));
        self.answer(space, sent, |space, answer| {
            let mut begun = op::begun(space, answer)?.ok_or_else(op::absent)?;
            if let Begun::Started { expired, .. } = &mut begun {
                *expired = space.take_expired();
            }
            Ok(begun)
        })
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        let space = self.shared.space(&namespace);
        let sent: Vec<_> = beats
            .iter()
            .map(|(key, attempt, lease)| {
                let (bucket, record) = self.shared.place(&space, key)?;
                self.shared.driver.send(bucket, Op::heartbeat(record, *attempt, *lease))
            })
            .collect();
        Box::pin(async move {
            let mut answers = Vec::with_capacity(sent.len());
            for sent in sent {
                let answer = sent?.await.map_err(|_| self.shared.driver.gone())??;
                answers.push(op::beat(&answer).map_err(|m| self.shared.odd(m))?);
            }
            Ok(answers)
        })
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.one(&namespace, &key, |record| Op::end(record, attempt, end), |_, answer| op::ended(answer))
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.one(&namespace, &key, |record| Op::settle(record, attempt, settlement), op::settled)
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        let space = self.shared.space(&mark.namespace);
        self.task(|shared| async move { room::mark(&shared, &space, mark).await })
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<crate::Record>>> {
        self.one(&namespace, &key, Op::get, |space, answer| Ok(op::record(space, answer)?.map(|row| row.record)))
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        let shared = self.shared.clone();
        self.one(&namespace, &key, Op::remove, move |space, answer| {
            let removed = op::removed(space, answer)?;
            if matches!(removed, Removed::Removed) {
                shared.watch.raise();
            }
            Ok(removed)
        })
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        let space = self.shared.space(&namespace);
        self.task(|shared| async move { query::clear(&shared, &space).await })
    }

    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.task(move |shared| async move { query::sweep(&shared, limit).await })
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        let space = self.shared.space(&namespace);
        self.task(move |shared| async move { query::evict(&shared, &[space], count).await?.known(&shared) })
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        let space = self.shared.space(&namespace);
        self.task(move |shared| async move { query::page(&shared, &space, &filter, cursor, limit).await })
    }

    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        let space = self.shared.space(&namespace);
        self.task(move |shared| async move { tally::count(&shared, &space, counters, presented).await })
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        let space = self.shared.space(&namespace);
        self.task(|shared| async move { tally::counters(&shared, &space).await })
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        let space = self.shared.space(&namespace);
        self.task(|shared| async move { tally::reset_counters(&shared, &space).await })
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        let space = self.shared.space(&namespace);
        self.task(|shared| async move { tally::census(&shared, &space).await })
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        let space = self.shared.space(&namespace);
        self.task(move |shared| async move { watch::changed(&shared, &space, &key, attempt, at_most).await })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            if !shared.driver.is_closed() {
                shared.watch.close();
                let _ = shared.driver.stop().await;
                tracing::debug!(store = %shared.topology.location, "closed");
            }
            Ok(())
        })
    }
}
