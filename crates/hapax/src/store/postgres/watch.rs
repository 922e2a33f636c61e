//! Noticing what other processes do: the epoch, and the end of attempts that
//! callers here wait for.
//!
//! One task with a connection of its own, started on first use and asleep when
//! nobody asks. Waiters are told by `NOTIFY` where there is a direct connection
//! to listen on, and only attempts that somebody waits for are told of, since
//! `NOTIFY` makes commits queue. All of it may be lost without harm: what is
//! waited for is looked at every so often.
//!
//! Invariants: the epoch is vouched for only if the last poll *began* less than
//! [`TRUST`] ago; a waiter is registered before it is looked at, so that an end in
//! between is not missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::Shared;
use super::begin::TX_GRACE;
use super::error::{Failed, store_error};
use super::row::{lock_of, uuid};
use super::session::{Link, Purpose, Session, open};
use crate::AttemptId;

/// How old the last poll may be for the epoch to be trusted, in milliseconds.
const TRUST: i64 = 900;
/// How often the epoch is polled while it is asked for.
const EPOCH_EVERY: Duration = Duration::from_millis(250);
/// How long after the last question it is still polled, in milliseconds.
const EPOCH_WANTED: i64 = 10_000;
/// How often waited keys are looked at when no word will come.
const POLL: Duration = Duration::from_millis(50);
/// How often they are looked at although word should come.
const POLL_LISTENING: Duration = Duration::from_millis(500);
/// The most calls that wait at once; more are sent back to look for themselves.
const WAITERS_LIMIT: usize = 65_536;
/// The most keys looked at in one statement.
const LOOK: usize = 1_000;

#[derive(Debug)]
struct Waiter {
    number: u64,
    attempt: AttemptId,
    notify: Arc<Notify>,
}

type Waiters = HashMap<Uuid, Vec<Waiter>, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Counts the changes of the database's epoch that were seen here.
    epoch: AtomicU64,
    /// The database's epoch when it was last looked at; -1: never.
    found: AtomicI64,
    /// When the last successful poll began; 0: never.
    polled: AtomicI64,
    /// When the epoch was last asked for.
    wanted: AtomicI64,
    started: AtomicBool,
    closed: AtomicBool,
    /// Entries in `waiters`, so that ends take no lock when there are none.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
    /// Keys that somebody has begun to wait for since the last look.
    fresh: AtomicBool,
    bell: Notify,
    numbers: AtomicU64,
}

/// Milliseconds of a cheap clock that nobody sets; never 0.
fn coarse() -> i64 {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(id);
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000).saturating_add(1)
}

/// Registered as long as it lives.
struct Waiting<'a> {
    watch: &'a Watch,
    hash: Uuid,
    number: u64,
    notify: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiters = self.watch.waiters.lock();
        if let Some(list) = waiters.get_mut(&self.hash) {
            list.retain(|w| w.number != self.number);
            if list.is_empty() {
                waiters.remove(&self.hash);
            }
            self.watch.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Watch {
    /// The epoch, if it can be vouched for.
    #[inline]
    pub(super) fn epoch(&self, shared: &Arc<Shared>) -> Option<u64> {
        let now = coarse();
        // Not on every call: the line would go from core to core.
        if now - self.wanted.load(Ordering::Relaxed) > 100 {
            self.wanted.store(now, Ordering::Relaxed);
        }
        if now - self.polled.load(Ordering::Acquire) > TRUST {
            self.poke(shared);
            return None;
        }
        Some(self.epoch.load(Ordering::Acquire))
    }

    /// This process has raised the database's epoch.
    pub(super) fn raised(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    #[cold]
    fn poke(&self, shared: &Arc<Shared>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        if !self.started.load(Ordering::Acquire) && !self.started.swap(true, Ordering::AcqRel) {
            shared.handle.spawn(run(shared.clone()));
        }
        self.bell.notify_one();
    }

    /// Waits until the attempt may have ended, at most this long.
    pub(super) async fn changed(&self, shared: &Arc<Shared>, hash: Uuid, attempt: AttemptId, at_most: Duration) {
        if self.waiting.load(Ordering::SeqCst) >= WAITERS_LIMIT {
            tokio::time::sleep(at_most.min(POLL_LISTENING)).await;
            return;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let notify = Arc::new(Notify::new());
        self.waiters.lock().entry(hash).or_default().push(Waiter { number, attempt, notify: notify.clone() });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting { watch: self, hash, number, notify };
        self.fresh.store(true, Ordering::SeqCst);
        self.poke(shared);
        let _ = tokio::time::timeout(at_most, waiting.notify.notified()).await;
    }

    /// Wakes who waits for this key here.
    pub(super) fn wake(&self, hash: &Uuid) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(list) = self.waiters.lock().get(hash) {
            list.iter().for_each(|w| w.notify.notify_one());
        }
    }

    /// Word of an end came from another process.
    pub(super) fn word(&self, payload: &str) {
        if let Ok(hash) = payload.parse() {
            self.wake(&hash);
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.lock().values().flatten().for_each(|w| w.notify.notify_one());
        self.bell.notify_one();
    }

    fn is_waited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    fn is_wanted(&self) -> bool {
        coarse() - self.wanted.load(Ordering::Relaxed) < EPOCH_WANTED
    }

    /// The database's epoch, as it was at a poll that began then.
    fn saw(&self, found: i64, began: i64) {
        // Counted and not copied: after a failover to a standby that was behind, the number may go back.
        if self.found.swap(found, Ordering::AcqRel) != found {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        self.polled.store(began, Ordering::Release);
    }
}

/// The connection that listens, if there is one.
#[derive(Default)]
struct Ear {
    session: Option<Arc<Session>>,
    not_before: Option<Instant>,
}

impl Ear {
    fn hears(&self) -> bool {
        self.session.as_ref().is_some_and(|s| !s.is_closed())
    }

    /// Listens, by the connection that was given for it or else by the watch's own if it is direct.
    async fn listen(&mut self, shared: &Arc<Shared>, own: &Arc<Session>) {
        if self.hears() || self.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.not_before = Some(Instant::now() + Duration::from_secs(1));
        let session = match &shared.options.listen {
            Some(config) => match open(shared, config, Purpose::Store).await {
                Ok(session) => Arc::new(session),
                Err(error) => {
                    tracing::warn!(store = %shared.location, %error, "cannot listen by listen_url; polling instead");
                    return;
                }
            },
            None if own.direct => own.clone(),
            None => return,
        };
        match session.client.batch_execute(&format!("LISTEN {}", shared.channel)).await {
            Ok(()) => self.session = Some(session),
            Err(error) => {
                let error = store_error(&shared.location, &error);
                tracing::debug!(store = %shared.location, %error, "this server does not listen; polling instead");
                self.not_before = Some(Instant::now() + Duration::from_secs(60));
            }
        }
    }
}

async fn run(shared: Arc<Shared>) {
    let watch = &shared.watch;
    let link = Link::new();
    let mut ear = Ear::default();
    let (mut polled, mut looked) = (None::<Instant>, None::<Instant>);
    while !watch.closed.load(Ordering::Acquire) {
        let due = |last: Option<Instant>, every: Duration| last.is_none_or(|at| at.elapsed() >= every);
        let poll = watch.is_wanted() && due(polled, EPOCH_EVERY);
        let every = if ear.hears() { POLL_LISTENING } else { POLL };
        let fresh = watch.fresh.swap(false, Ordering::SeqCst);
        let look = watch.is_waited() && (fresh || due(looked, every));
        if poll || look {
            let outcome = round(&shared, &link, &mut ear, (poll, look)).await;
            let now = Some(Instant::now());
            (polled, looked) = (if poll { now } else { polled }, if look { now } else { looked });
            if let Err(error) = outcome {
                tracing::debug!(store = %shared.location, %error, "what other processes do cannot be seen");
            }
        }
        let every = if ear.hears() { POLL_LISTENING } else { POLL };
        let nap = match (watch.is_waited(), watch.is_wanted()) {
            (true, true) => every.min(EPOCH_EVERY),
            (true, false) => every,
            (false, true) => EPOCH_EVERY,
            // Holds no connection's attention while nobody asks.
            (false, false) => {
                watch.bell.notified().await;
                continue;
            }
        };
        let _ = tokio::time::timeout(nap, watch.bell.notified()).await;
    }
}

async fn round(
    shared: &Arc<Shared>,
    link: &Link,
    ear: &mut Ear,
    (poll, look): (bool, bool),
) -> Result<(), crate::store::StoreError> {
    let limit = Duration::from_secs(2).min(shared.options.command_limit);
    let session = link.session(shared, Instant::now() + limit).await?;
    let both = async {
        if poll {
            let began = coarse();
            let found = session.number(&shared.sql.epoch, &[]).await?;
            shared.watch.saw(found, began);
        }
        if look {
            ear.listen(shared, &session).await;
            look_at_waited(shared, &session, ear.hears()).await?;
        }
        Ok::<_, Failed>(())
    };
    let failed = match tokio::time::timeout(limit, both).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => shared.error_of(error),
        Err(_) => super::error::timed_out(&shared.location, limit),
    };
    link.lost(&session).await;
    Err(failed)
}

/// Wakes those whose attempt is in progress no more.
async fn look_at_waited(shared: &Arc<Shared>, session: &Session, listening: bool) -> Result<(), Failed> {
    let mut waited: Vec<Uuid> = shared.watch.waiters.lock().keys().copied().collect();
    waited.sort_unstable();
    let mut locks: Option<HashSet<(i64, i64)>> = None;
    for part in waited.chunks(LOOK) {
        let part = part.to_vec();
        if listening {
            // Every time anew: the key may have a new attempt, or its row have been held by another.
            session.query(&shared.sql.want_word, &[&part]).await?;
        }
        let mut live: HashMap<Uuid, Uuid> = HashMap::new();
        for row in session.query(&shared.sql.live, &[&part]).await? {
            let (hash, attempt, in_tx): (Uuid, Uuid, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if in_tx && shared.has_locks.load(Ordering::Relaxed) && row.try_get::<_, i64>(4)? > TX_GRACE {
                if locks.is_none() {
                    locks = Some(tx_locks(shared, session).await?);
                }
                let (_, high, low) = lock_of(AttemptId::from_bytes(*attempt.as_bytes()));
                if locks.as_ref().is_some_and(|held| !held.contains(&(high, low))) {
                    continue;
                }
            }
            live.insert(hash, attempt);
        }
        let waiters = shared.watch.waiters.lock();
        for hash in &part {
            let attempt = live.get(hash);
            if let Some(list) = waiters.get(hash) {
                list.iter().filter(|w| attempt != Some(&uuid(w.attempt))).for_each(|w| w.notify.notify_one());
            }
        }
    }
    Ok(())
}

/// The advisory locks held in this database.
async fn tx_locks(shared: &Arc<Shared>, session: &Session) -> Result<HashSet<(i64, i64)>, Failed> {
    let mut held = HashSet::new();
    for row in session.query(&shared.sql.tx_locks, &[]).await? {
        held.insert((row.try_get(0)?, row.try_get(1)?));
    }
    Ok(held)
}
