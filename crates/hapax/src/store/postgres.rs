//! The `postgres://` store: a database that a fleet shares.
//!
//! Every transition is one statement, conditional on the attempt id it acts
//! for; time is the server's. Connections live on a small runtime of the store's
//! own, so that any executor, or none, may wait for an answer. Begins and ends
//! that arrive together share a statement and its commit.
//!
//! Invariants: nothing is answered before the server has committed it, as
//! durably as its `synchronous_commit` says; a write whose answer was lost is made
//! again under the same attempt id, which recognises it; an operation ends within
//! its limit, with an error that says whether it may have been made; a password
//! is in no location, error, log or `Debug`.
//!
//! Written for PostgreSQL 13 and later, tested on 13 to 18, directly and behind PgBouncer in
//! transaction mode. CockroachDB and YugabyteDB were not tried: the statements keep to
//! what they too document, and what they may lack (`LISTEN`, advisory locks,
//! `pg_locks`) is done without where the server refuses it.

mod begin;
mod columns;
mod dial;
mod end;
mod error;
mod foresight;
mod look;
mod options;
mod point;
mod queue;
mod room;
mod row;
mod schema;
mod session;
mod sql;
mod tls;
pub(crate) mod tx;
mod watch;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use self::error::{Failed, store_error};
use self::point::{Answer, Op};
use self::queue::{BeginJob, Common, EndJob, Queue};
use self::row::hash_of;
use self::session::{Link, Purpose, Session};
use self::sql::Statements;
use super::shared::ServerClock;
use super::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use crate::{AttemptId, Key, Record, Timestamp};

pub use self::options::{PostgresOptions, Prepare};
pub use tokio_postgres;

#[cfg(feature = "fuzzing")]
pub(crate) fn texts(text: &str) -> (String, String) {
    (row::text_in(text).into_owned(), row::text_out(text.to_string()))
}

/// How long what is under way may take when the store is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// The oldest server version that is supported.
const OLDEST: i64 = 13_00_00;

/// What the handle, its workers and its tasks share.
struct Shared {
    location: String,
    options: PostgresOptions,
    tls: tls::Tls,
    handle: Handle,
    sql: Statements,
    /// Where ends that somebody waits for are told.
    channel: String,
    queue: Queue,
    /// What its last answers said of its time, and what begins found.
    clock: ServerClock,
    foresight: foresight::Foresight,
    /// Short operations, pipelined.
    points: Link,
    /// Those that may take long, so that they hold up no short ones.
    scans: Link,
    /// Marks within a limit, which are transactions, one at a time.
    marks: Link,
    marking: tokio::sync::Mutex<()>,
    /// Connections for transactions of `execute_in_tx`, and how many there may be.
    txs: tx::TxPool,
    tx_places: Arc<tokio::sync::Semaphore>,
    /// Whether the server shows who holds which advisory lock.
    has_locks: AtomicBool,
    room: room::Room,
    watch: watch::Watch,
    closed: AtomicBool,
    under_way: AtomicUsize,
    idle: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Counts an operation as under way for as long as it lives.
struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn closed_error(&self) -> StoreError {
        StoreError::Closed { store: self.location.clone() }
    }

    fn gone(&self) -> StoreError {
        StoreError::AnswerLost {
            store: self.location.clone(),
            message: "the store's own runtime has stopped; open the store again".into(),
        }
    }

    fn error_of(&self, failed: Failed) -> StoreError {
        match failed {
            Failed::Sql(error) => store_error(&self.location, &error),
            Failed::Store(error) => error,
            Failed::Again => StoreError::Busy { store: self.location.clone(), waited: self.options.command_limit },
        }
    }

    /// Counts an operation in; none are taken once the store is closed.
    fn arrive(self: &Arc<Self>) -> Result<UnderWay, StoreError> {
        // SeqCst with `shut`: either it sees this operation, or this sees `closed`.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay(self.clone());
        if self.is_closed() { Err(self.closed_error()) } else { Ok(under_way) }
    }

    /// Tells other processes of ends that they wait for. Nothing depends on it.
    fn tell(self: &Arc<Self>, hashes: Vec<uuid::Uuid>) {
        let shared = self.clone();
        self.handle.spawn(async move {
            let op = Op::Tell { channel: shared.channel.clone(), hashes };
            if let Err(error) = point::carry_out(&shared, op).await {
                tracing::debug!(store = %shared.location, %error, "waiters could not be told; they will look");
            }
        });
    }

    /// Takes no more, and waits for what is under way.
    async fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let drained = async {
            loop {
                let idle = self.idle.notified();
                tokio::pin!(idle);
                idle.as_mut().enable();
                if self.under_way.load(Ordering::SeqCst) == 0 {
                    return;
                }
                idle.await;
            }
        };
        self.watch.close();
        let _ = tokio::time::timeout(CLOSE_LIMIT, drained).await;
        self.queue.close();
    }
}

/// Ends the store's runtime thread when the last handle goes.
struct Stop {
    shared: Arc<Shared>,
    bell: Option<oneshot::Sender<()>>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        if let Some(bell) = self.bell.take() {
            let _ = bell.send(());
        }
    }
}

/// A store in a PostgreSQL database. See the [module](self).
pub struct PostgresStore {
    shared: Arc<Shared>,
    _stop: Stop,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("location", &self.shared.location).finish_non_exhaustive()
    }
}

/// Tags as they are stored.
fn wire_tags(tags: &BTreeMap<String, String>) -> Option<String> {
    // JSON escapes what PostgreSQL's text cannot hold.
    (!tags.is_empty()).then(|| serde_json::to_string(tags).unwrap_or_default())
}

impl PostgresStore {
    /// Connects, and makes the tables or brings them up to date.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached, lets us not in or may not be written;
    /// [`StoreError::Newer`] for tables of a newer version; [`StoreError::Damaged`] for tables of somebody
    /// else's that are named as ours. Each names the remedy, and what is there is left as it is.
    pub async fn open(options: PostgresOptions) -> Result<Self, StoreError> {
        let location = options.location.clone();
        let unavailable = |what: &str, e: std::io::Error| StoreError::Unavailable {
            store: location.clone(),
            message: format!("{what}: {e}"),
        };
        let tls = tls::Tls::new(&options)?;
        let tx_connections = options.tx_connections;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|e| unavailable("no runtime", e))?;
        let shared = Arc::new(Shared {
            location: location.clone(),
            sql: Statements::new(&options.schema),
            channel: format!("hapax_{:016x}", row::space_tag(&options.schema)),
            options,
            tls,
            handle: runtime.handle().clone(),
            queue: Queue::default(),
            clock: ServerClock::default(),
            foresight: foresight::Foresight::default(),
            points: Link::new(),
            scans: Link::new(),
            marks: Link::new(),
            marking: tokio::sync::Mutex::new(()),
            txs: tx::TxPool::default(),
            tx_places: Arc::new(tokio::sync::Semaphore::new(tx_connections)),
            has_locks: AtomicBool::new(false),
            room: room::Room::default(),
            watch: watch::Watch::default(),
            closed: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            idle: Notify::new(),
        });
        let (bell, rung) = oneshot::channel::<()>();
        let there = shared.clone();
        std::thread::Builder::new()
            .name("hapax-postgres".into())
            .spawn(move || {
                runtime.block_on(async {
                    let _ = rung.await;
                    there.shut().await;
                });
                runtime.shutdown_timeout(Duration::from_millis(100));
            })
            .map_err(|e| unavailable("no thread for its connections", e))?;
        let store = Self { _stop: Stop { shared: shared.clone(), bell: Some(bell) }, shared: shared.clone() };
        let there = shared.clone();
        let first = run(&store.shared, async move {
            let shared = there;
            let session = session::open(&shared, &shared.options.config, Purpose::Store).await?;
            inspect(&shared, &session).await?;
            schema::prepare(&shared, &session).await?;
            let mut first = Some(session);
            for _ in 0..shared.options.connections {
                let link = first.take().map_or_else(Link::new, Link::with);
                shared.handle.spawn(worker::work(shared.clone(), link));
            }
            Ok(())
        });
        first.await?;
        tracing::debug!(store = %store.shared.location, "opened");
        Ok(store)
    }

    fn ask<T: Send + 'static>(&self, op: Op, want: fn(Answer) -> Option<T>) -> StoreFuture<'_, T> {
        let shared = self.shared.clone();
        run(&self.shared, async move { want(point::carry_out(&shared, op).await?).ok_or_else(|| shared.gone()) })
    }

    /// Queues a job; what waits for it counts as under way.
    fn queued<J: queue::Job + 'static, T: Send + 'static>(
        &self,
        job: J,
        receiver: oneshot::Receiver<Result<T, StoreError>>,
    ) -> StoreFuture<'_, T> {
        let arrived = self.shared.arrive();
        match &arrived {
            Ok(_) => self.shared.queue.push(job, &self.shared.location),
            Err(error) => job.fail(error.clone()),
        }
        Box::pin(async move {
            let _under_way = arrived;
            receiver.await.map_err(|_| self.shared.gone())?
        })
    }
}

/// Runs something on the store's runtime; the answer may be waited for on any.
fn run<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> StoreFuture<'static, T> {
    let arrived = shared.arrive();
    let (answer, receiver) = oneshot::channel();
    let shared = shared.clone();
    if let Ok(under_way) = arrived {
        shared.handle.spawn(async move {
            let _ = answer.send(work.await);
            drop(under_way);
        });
    } else {
        let _ = answer.send(Err(shared.closed_error()));
    }
    Box::pin(async move { receiver.await.map_err(|_| shared.gone())? })
}

/// What every job has, and where its answer comes.
fn common<T>(shared: &Shared, namespace: &str, key: &Key) -> (Common<T>, oneshot::Receiver<Result<T, StoreError>>) {
    let (answer, receiver) = oneshot::channel();
    let until = Instant::now() + shared.options.command_limit;
    (Common { hash: hash_of(namespace, key), until, sent: false, answer }, receiver)
}

/// Whether this is a server that we can work with; warns of what costs durability.
async fn inspect(shared: &Arc<Shared>, session: &Session) -> Result<(), StoreError> {
    let shown = |name: &'static str| shown(shared, session, name);
    let version: i64 = shown("server_version_num").await?.parse().unwrap_or(i64::MAX);
    let unavailable = |message: String| StoreError::Unavailable { store: shared.location.clone(), message };
    if version < OLDEST {
        return Err(unavailable(format!("the server's version is {version}; hapax needs PostgreSQL 13 or later")));
    }
    let encoding = shown("server_encoding").await?;
    if !encoding.eq_ignore_ascii_case("utf8") && !encoding.eq_ignore_ascii_case("utf-8") {
        return Err(unavailable(format!(
            "the database's encoding is {encoding}, which cannot hold every text: give a database made with ENCODING 'UTF8'"
        )));
    }
    let rows = session.client.query_typed("SELECT version()", &[]).await;
    let name: String = rows.ok().and_then(|r| r.first().and_then(|row| row.try_get(0).ok())).unwrap_or_default();
    shared.has_locks.store(name.starts_with("PostgreSQL") && !name.contains("-YB-"), Ordering::Relaxed);
    if shown("fsync").await.is_ok_and(|v| v == "off") {
        tracing::warn!(store = %shared.location, "fsync is off on the server: a crash of its machine may lose records");
    }
    if shared.options.synchronous_commit.is_none() && shown("synchronous_commit").await.is_ok_and(|v| v == "off") {
        tracing::warn!(
            store = %shared.location,
            "synchronous_commit is off on the server: a crash may lose the last records; set ?synchronous_commit=on"
        );
    }
    Ok(())
}

async fn shown(shared: &Shared, session: &Session, name: &str) -> Result<String, StoreError> {
    let rows = session.client.query_typed(&format!("SHOW {name}"), &[]).await;
    let rows = rows.map_err(|e| store_error(&shared.location, &e))?;
    Ok(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default())
}

/// Takes the one variant that an operation answers with.
macro_rules! want {
    ($variant:ident) => {
        |answer| match answer {
            Answer::$variant(value) => Some(value),
            _ => None,
        }
    };
}

impl Store for PostgresStore {
    fn location(&self) -> &str {
        &self.shared.location
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.ask(Op::Now, want!(Now))
    }

    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        match self.shared.clock.time().filter(|_| !self.shared.is_closed()) {
            Some(now) => Box::pin(std::future::ready(Ok(now))),
            None => self.now(),
        }
    }

    #[inline]
    fn epoch(&self) -> Option<u64> {
        self.shared.watch.epoch(&self.shared)
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        let (common, receiver) = common(&self.shared, &begin.namespace, &begin.key);
        self.queued(BeginJob { op: Box::new(begin), in_tx: false, tried_over: false, common }, receiver)
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.ask(Op::Heartbeat { namespace, beats }, want!(Beats))
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        let (common, receiver) = common(&self.shared, &namespace, &key);
        self.queued(EndJob { attempt, end, common }, receiver)
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        self.ask(Op::Settle { namespace, key, attempt, becomes: AttemptId::new(), settlement }, want!(Settled))
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        self.ask(Op::Mark(Box::new(mark)), want!(Marked))
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.ask(Op::Get { namespace, key }, want!(Record))
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.ask(Op::Remove { namespace, key }, want!(Removed))
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.ask(Op::Clear { namespace }, want!(Number))
    }

    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.ask(Op::Sweep { limit }, want!(Number))
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.ask(Op::Evict { namespace, count }, want!(Number))
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.ask(Op::Query { namespace, filter: Box::new(filter), cursor, limit }, want!(Page))
    }

    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        let op = Op::Count { namespace, counters: Box::new(counters), presented };
        self.ask(op, |answer| matches!(answer, Answer::Nothing).then_some(()))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.ask(Op::Counters { namespace }, want!(Counters))
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.ask(Op::Reset { namespace }, |answer| matches!(answer, Answer::Nothing).then_some(()))
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.ask(Op::Census { namespace }, want!(Census))
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        let (shared, hash) = (self.shared.clone(), hash_of(&namespace, &key));
        // Not counted as under way: closing the store wakes it.
        let (answer, receiver) = oneshot::channel();
        if self.shared.is_closed() {
            let _ = answer.send(Err(self.shared.closed_error()));
        } else {
            self.shared.handle.spawn(async move {
                shared.watch.changed(&shared, hash, attempt, at_most).await;
                let _ = answer.send(Ok(()));
            });
        }
        Box::pin(async move { receiver.await.map_err(|_| self.shared.gone())? })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        let shared = self.shared.clone();
        let (answer, receiver) = oneshot::channel();
        self.shared.handle.spawn(async move {
            shared.shut().await;
            let _ = answer.send(());
        });
        Box::pin(async move {
            let _ = receiver.await;
            Ok(())
        })
    }
}
