//! The `sqlite:` store: one file that many processes of one host share.
//!
//! Each handle has a writer thread that commits all waiting operations in one
//! transaction, readers, a watcher of other processes and a checkpointer; all but
//! the writer start on first use. Invariants: in [`Durability::Sync`] nothing is
//! answered that power loss could take back; in [`Durability::Buffered`] that
//! holds for the death of a process; no call blocks its thread.
//!
//! The file must lie on a local disk: SQLite's write-ahead log needs memory
//! shared by all who use it.

mod batch;
mod checkpoint;
mod error;
mod ops;
mod owner;
mod queue;
mod read;
mod reader;
mod room;
mod row;
mod schema;
mod wal;
mod watch;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use self::ops::{Answer, Op};
use self::queue::{QUEUE_LIMIT, Queue, Refused};
use self::read::{Question, Reply};
use self::reader::Asked;
use self::row::hash_of;
use self::writer::Command;
use super::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use crate::{AttemptId, Clock, Key, State, SystemClock, Timestamp};

/// How long a handle that is dropped waits for its threads.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// How long the writer waits to be the last thread.
const OUTLAST_LIMIT: Duration = Duration::from_secs(1);

/// What a recorded result survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: each batch of operations is synced to the device before it is answered.
    #[default]
    Sync,
    /// The death of the process, not that of the machine: the last second or
    /// so may be lost in whole batches. Many times as fast.
    Buffered,
}

impl FromStr for Durability {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sync" => Ok(Self::Sync),
            "buffered" => Ok(Self::Buffered),
            _ => Err(format!("{text:?} is no durability: use sync or buffered")),
        }
    }
}

/// Where a [`SqliteStore`] is and how it is kept.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    path: PathBuf,
    durability: Durability,
    clock: Arc<dyn Clock>,
    max_pages: Option<u32>,
}

impl SqliteOptions {
    /// The file at `path`; it and its directories are made if they are absent.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_path_buf(),
            durability: Durability::Sync,
            clock: Arc::new(SystemClock),
            max_pages: None,
        }
    }

    /// What results survive; [`Durability::Sync`] by default.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Where time comes from; the host's clocks by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The most pages of 4 KiB in the file, so that a test meets a full disk.
    #[doc(hidden)]
    #[must_use]
    pub fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Reads `sqlite:PATH` or `sqlite://PATH`, optionally with `?durability=sync|buffered`.
    ///
    /// ```
    /// use hapax::store::sqlite::SqliteOptions;
    ///
    /// assert!(SqliteOptions::from_url("sqlite:/var/lib/x.db?durability=buffered").is_ok());
    /// assert!(SqliteOptions::from_url("sqlite:x.db?speed=11").is_err());
    /// ```
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] for another scheme, no path, or an unknown option.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let bad = |message: String| StoreError::BadRequest { message };
        let rest = url
            .strip_prefix("sqlite:")
            .ok_or_else(|| bad(format!("{url:?} is no SQLite address: give sqlite:PATH")))?;
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err(bad("sqlite: needs the path of a file: give sqlite:PATH".into()));
        }
        let mut options = Self::new(path);
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "durability" => options.durability = value.parse().map_err(bad)?,
                _ => {
                    return Err(bad(format!(
                        "{name:?} is no option of a sqlite: store; there is durability=sync|buffered"
                    )));
                }
            }
        }
        Ok(options)
    }
}

/// What the handle and its threads share.
struct Shared {
    location: String,
    /// The path as SQLite has resolved it.
    real: PathBuf,
    durability: Durability,
    clock: Arc<dyn Clock>,
    me: owner::Process,
    commands: Queue<Command>,
    gets: Lane,
    scans: Lane,
    watch: watch::Watch,
    checkpoints: checkpoint::Checkpoints,
    // Counted and not joined: a future waits for them, and a drop only for a while.
    threads: Mutex<usize>,
    ended: Condvar,
}

/// A reader's queue, and whether its thread was started.
#[derive(Debug)]
struct Lane {
    queue: Queue<Asked>,
    started: AtomicBool,
}

impl Lane {
    fn new() -> Self {
        Self { queue: Queue::new(), started: AtomicBool::new(false) }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Shared {
    fn is_sync(&self) -> bool {
        self.durability == Durability::Sync
    }

    /// Starts a thread that `close` waits for; `false` if there is none to be had.
    fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce(Arc<Self>) + Send + 'static) -> bool {
        /// Counts the thread out however it ends.
        struct Out(Arc<Shared>);
        impl Drop for Out {
            fn drop(&mut self) {
                *self.0.threads.lock() -= 1;
                self.0.ended.notify_all();
            }
        }
        *self.threads.lock() += 1;
        let out = Out(self.clone());
        let shared = self.clone();
        let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _out = out;
            body(shared);
        });
        if let Err(error) = &spawned {
            tracing::warn!(store = %self.location, %error, name, "no thread");
        }
        spawned.is_ok()
    }

    /// Waits, not for long, until the calling thread is the last one: SQLite moves the log
    /// into the file when the last connection closes, and two that close at once leave it
    /// to each other. A closed store is then one file, to be moved or copied.
    fn outlast(&self) {
        let until = std::time::Instant::now() + OUTLAST_LIMIT;
        let mut threads = self.threads.lock();
        while *threads > 1 {
            if self.ended.wait_until(&mut threads, until).timed_out() {
                break;
            }
        }
    }

    fn shut(&self) {
        self.commands.close();
        self.gets.queue.close();
        self.scans.queue.close();
        self.watch.close();
        self.checkpoints.close();
    }

    fn refused(&self, refused: &Refused) -> StoreError {
        let store = self.location.clone();
        match refused {
            Refused::Closed => StoreError::Closed { store },
            Refused::Overloaded => StoreError::Overloaded { store, limit: QUEUE_LIMIT },
        }
    }

    fn gone(&self) -> StoreError {
        StoreError::AnswerLost {
            store: self.location.clone(),
            message: "its thread has stopped; open the store again".into(),
        }
    }
}

/// A store in a SQLite file. See the [module](self).
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Opens the store, or makes it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Busy`], [`StoreError::Full`];
    /// [`StoreError::Damaged`] for a file that is not a hapax store, which is left
    /// as it is, and [`StoreError::Newer`] for one of a newer version.
    pub fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        let location = format!("sqlite:{}", options.path.display());
        let (conn, real) = schema::open(&options.path, &location)?;
        if let Some(pages) = options.max_pages {
            conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
                .map_err(|e| error::store_error(&location, &e))?;
        }
        let shared = Arc::new(Shared {
            location,
            real,
            durability: options.durability,
            clock: options.clock,
            me: owner::Process::this(),
            commands: Queue::new(),
            gets: Lane::new(),
            scans: Lane::new(),
            watch: watch::Watch::default(),
            checkpoints: checkpoint::Checkpoints::default(),
            threads: Mutex::new(0),
            ended: Condvar::new(),
        });
        if !shared.spawn("hapax-writer", move |shared| writer::run(shared, conn)) {
            return Err(StoreError::Unavailable {
                store: shared.location.clone(),
                message: "no thread for its writer".into(),
            });
        }
        tracing::debug!(store = %shared.location, durability = ?shared.durability, "opened");
        Ok(Self { shared })
    }

    fn send(&self, op: Op) -> Result<oneshot::Receiver<Result<Answer, StoreError>>, StoreError> {
        let (answer, receiver) = oneshot::channel();
        self.shared.commands.push(Command { op, answer }).map_err(|r| self.shared.refused(&r))?;
        Ok(receiver)
    }

    /// Queues an operation at once and answers when it is committed.
    fn write<T: Send + 'static>(&self, op: Op, want: fn(Answer) -> Option<T>) -> StoreFuture<'_, T> {
        let sent = self.send(op);
        Box::pin(async move {
            let answer = sent?.await.map_err(|_| self.shared.gone())??;
            want(answer).ok_or_else(|| self.shared.gone())
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        lane: fn(&Shared) -> &Lane,
        question: Question,
        want: fn(Reply) -> Option<T>,
    ) -> StoreFuture<'_, T> {
        let (answer, receiver) = oneshot::channel();
        let shared = &self.shared;
        let pushed = lane(shared).queue.push(Asked { question, answer }).map_err(|r| shared.refused(&r));
        let started = &lane(shared).started;
        if pushed.is_ok() && !started.load(Ordering::Acquire) && !started.swap(true, Ordering::AcqRel) {
            let spawned = shared.spawn("hapax-reader", move |shared| reader::run(&shared, &lane(&shared).queue));
            if !spawned {
                started.store(false, Ordering::Release);
                lane(shared).queue.discard();
            }
        }
        Box::pin(async move {
            pushed?;
            let reply = receiver.await.map_err(|_| self.shared.gone())??;
            want(reply).ok_or_else(|| self.shared.gone())
        })
    }
}

/// Takes the one variant that an operation answers with.
macro_rules! want {
    ($kind:ident :: $variant:ident) => {
        |answer| match answer {
            $kind::$variant(value) => Some(value),
            _ => None,
        }
    };
}

impl Store for SqliteStore {
    fn location(&self) -> &str {
        &self.shared.location
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        Box::pin(std::future::ready(Ok(self.shared.clock.now())))
    }

    #[inline]
    fn epoch(&self) -> Option<u64> {
        self.shared.watch.epoch(&self.shared)
    }

    fn clock(&self) -> Option<&dyn Clock> {
        Some(&*self.shared.clock)
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        let hash = hash_of(&begin.namespace, &begin.key);
        self.write(Op::Begin(Box::new(begin), hash), want!(Answer::Begun))
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        let beats = beats.into_iter().map(|(key, attempt, lease)| {
            let hash = hash_of(&namespace, &key);
            (key, attempt, lease, hash)
        });
        let beats = beats.collect();
        self.write(Op::Heartbeat { namespace, beats }, want!(Answer::Beats))
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        let hash = hash_of(&namespace, &key);
        self.write(Op::End { namespace, key, hash, attempt, end }, want!(Answer::Ended))
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        let hash = hash_of(&namespace, &key);
        self.write(Op::Settle { namespace, key, hash, attempt, settlement }, want!(Answer::Settled))
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        let hash = hash_of(&mark.namespace, &mark.key);
        self.write(Op::Mark(Box::new(mark), hash), want!(Answer::Marked))
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<crate::Record>>> {
        let hash = hash_of(&namespace, &key);
        self.ask(|s| &s.gets, Question::Get { namespace, key, hash }, want!(Reply::Record))
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        let hash = hash_of(&namespace, &key);
        self.write(Op::Remove { namespace, key, hash }, want!(Answer::Removed))
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.write(Op::Clear { namespace }, want!(Answer::Number))
    }

    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.write(Op::Sweep { limit }, want!(Answer::Number))
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.write(Op::Evict { namespace, count }, want!(Answer::Number))
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.ask(
            |s| &s.scans,
            Question::Query { namespace, filter: Box::new(filter), cursor, limit },
            want!(Reply::Page),
        )
    }

    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        let presented = presented.iter().map(|(key, count)| (hash_of(&namespace, key), *count)).collect();
        let op = Op::Count { namespace, counters: Box::new(counters), presented };
        self.write(op, |answer| matches!(answer, Answer::Nothing).then_some(()))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.ask(|s| &s.scans, Question::Counters { namespace }, want!(Reply::Counters))
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.write(Op::Reset { namespace }, |answer| matches!(answer, Answer::Nothing).then_some(()))
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.ask(|s| &s.scans, Question::Census { namespace }, want!(Reply::Census))
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let hash = hash_of(&namespace, &key);
            let Some(waiting) = self.shared.watch.register(&self.shared, hash, attempt) else {
                tokio::time::sleep(at_most.min(Duration::from_millis(100))).await;
                return Ok(());
            };
            // Registered before looking, so that an end in between is not missed.
            match self.get(namespace, key).await? {
                Some(record) if record.attempt_id == attempt && record.state == State::InProgress => {}
                _ => return Ok(()),
            }
            if !self.shared.watch.is_closed() {
                let _ = tokio::time::timeout(at_most, waiting.woken()).await;
            }
            Ok(())
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.shut();
            let (done, ended) = oneshot::channel();
            let waiter = shared.clone();
            let wait = std::thread::Builder::new().name("hapax-close".into()).spawn(move || {
                let mut threads = waiter.threads.lock();
                while *threads > 0 {
                    waiter.ended.wait(&mut threads);
                }
                let _ = done.send(());
            });
            if wait.is_ok() {
                let _ = ended.await;
            }
            tracing::debug!(store = %shared.location, "closed");
            Ok(())
        })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.shut();
        let until = std::time::Instant::now() + DROP_LIMIT;
        let mut threads = self.shared.threads.lock();
        while *threads > 0 {
            if self.shared.ended.wait_until(&mut threads, until).timed_out() {
                break;
            }
        }
    }
}
