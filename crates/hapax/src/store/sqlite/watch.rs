//! Noticing what other processes do: the epoch, and the end of attempts that
//! callers here wait for.
//!
//! One thread with a connection of its own, started on first use and parked when
//! nobody asks. It polls `PRAGMA data_version`, which is a look into shared
//! memory. Invariants: the epoch is vouched for only if the last poll *began*
//! less than [`TRUST`] ago; a waiter is registered before it looks, so that an end
//! in between is not missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Notify;

use super::row::{Hash, Now, to_u64};
use super::schema;
use super::{Shared, error::store_error};
use crate::AttemptId;

/// How old the last poll may be for the epoch to be trusted.
const TRUST: i64 = 900;
/// How often the epoch is polled while it is asked for.
const EPOCH_EVERY: Duration = Duration::from_millis(250);
/// How long after the last question it is still polled.
const EPOCH_WANTED: i64 = 10_000;
/// How often is polled while somebody waits.
const WAIT_EVERY: Duration = Duration::from_millis(10);
/// How often waited keys are looked at although nothing was written: owners die, leases lapse.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The most calls that wait at once; more are sent back to look for themselves.
const WAITERS_LIMIT: usize = 65_536;

#[derive(Debug)]
struct Waiter {
    number: u64,
    attempt: AttemptId,
    notify: Arc<Notify>,
}

type Waiters = HashMap<Hash, Vec<Waiter>, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
pub(super) struct Watch {
    epoch: AtomicU64,
    /// When the last successful poll began; 0: never.
    polled: AtomicI64,
    /// When the epoch was last asked for.
    wanted: AtomicI64,
    started: AtomicBool,
    closed: AtomicBool,
    /// Entries in `waiters`, so that the writer takes no lock when there are none.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
    parked: Mutex<bool>,
    bell: Condvar,
    numbers: AtomicU64,
}

/// Milliseconds of a cheap clock that nobody sets.
fn coarse() -> i64 {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(id);
    // Never 0, which means never.
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000).saturating_add(1)
}

/// Registered as long as it lives.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    watch: &'a Watch,
    hash: Hash,
    number: u64,
    pub(super) notify: Arc<Notify>,
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

    /// A bump that this process has committed.
    pub(super) fn raise_epoch(&self, to: u64) {
        self.epoch.fetch_max(to, Ordering::AcqRel);
    }

    #[cold]
    fn poke(&self, shared: &Arc<Shared>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        if !self.started.load(Ordering::Acquire) && !self.started.swap(true, Ordering::AcqRel) {
            if !shared.spawn("hapax-watch", |shared| run(&shared)) {
                self.started.store(false, Ordering::Release);
            }
            return;
        }
        let mut parked = self.parked.lock();
        if std::mem::take(&mut *parked) {
            drop(parked);
            self.bell.notify_one();
        }
    }

    /// Registers a wait for the end of an attempt; `None` at the limit.
    pub(super) fn register(&self, shared: &Arc<Shared>, hash: Hash, attempt: AttemptId) -> Option<Waiting<'_>> {
        if self.waiting.load(Ordering::SeqCst) >= WAITERS_LIMIT {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let notify = Arc::new(Notify::new());
        self.waiters.lock().entry(hash).or_default().push(Waiter { number, attempt, notify: notify.clone() });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.poke(shared);
        Some(Waiting { watch: self, hash, number, notify })
    }

    /// Wakes who waits for this key.
    pub(super) fn wake(&self, hash: &Hash) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(list) = self.waiters.lock().get(hash) {
            list.iter().for_each(|w| w.notify.notify_one());
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for list in self.waiters.lock().values() {
            list.iter().for_each(|w| w.notify.notify_one());
        }
        *self.parked.lock() = false;
        self.bell.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Naps until the next poll is due, or somebody asks.
    fn nap(&self) {
        let waiting = self.waiting.load(Ordering::SeqCst) > 0;
        let mut parked = self.parked.lock();
        if self.is_closed() {
            return;
        }
        if waiting {
            self.bell.wait_for(&mut parked, WAIT_EVERY);
            return;
        }
        *parked = true;
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // Registered after the look above, and perhaps before `parked` was set.
        } else if coarse() - self.wanted.load(Ordering::Relaxed) < EPOCH_WANTED {
            self.bell.wait_for(&mut parked, EPOCH_EVERY);
        } else {
            self.bell.wait(&mut parked);
        }
        *parked = false;
    }
}

fn run(shared: &Arc<Shared>) {
    let watch = &shared.watch;
    let mut conn = None;
    let mut version = -1;
    let mut looked = Instant::now();
    let mut failed = false;
    while !watch.is_closed() {
        let connection = match conn.take() {
            Some(connection) => Ok(connection),
            None => schema::connect(&shared.real, &shared.location),
        };
        let polled = connection.and_then(|connection| {
            let changed = poll(watch, &connection, &mut version).map_err(|e| store_error(&shared.location, &e))?;
            if watch.waiting.load(Ordering::SeqCst) > 0 && (changed || looked.elapsed() >= LOOK_EVERY) {
                look(shared, &connection).map_err(|e| store_error(&shared.location, &e))?;
                looked = Instant::now();
            }
            Ok(connection)
        });
        match polled {
            Ok(connection) => {
                conn = Some(connection);
                failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(store = %shared.location, %error, "what other processes do cannot be seen");
                }
                version = -1;
                // Nobody waits in vain: they look for themselves, and are told.
                watch.waiters.lock().values().flatten().for_each(|w| w.notify.notify_one());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        watch.nap();
    }
}

/// Looks whether anyone has committed, and at the epoch if so.
fn poll(watch: &Watch, conn: &Connection, version: &mut i64) -> rusqlite::Result<bool> {
    let began = coarse();
    let found: i64 = conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
    let changed = found != *version;
    if changed {
        let epoch: i64 =
            conn.prepare_cached("SELECT value FROM meta WHERE name = 'epoch'")?.query_row([], |row| row.get(0))?;
        watch.raise_epoch(to_u64(epoch));
        *version = found;
    }
    watch.polled.store(began, Ordering::Release);
    Ok(changed)
}

/// Wakes those whose attempt is in progress no more.
fn look(shared: &Arc<Shared>, conn: &Connection) -> rusqlite::Result<()> {
    let waited: Vec<Hash> = shared.watch.waiters.lock().keys().copied().collect();
    let mut now = Now::new(&*shared.clock, shared.me);
    let mut statement =
        conn.prepare_cached("SELECT attempt, state, token, lease_until, lease_steady FROM records WHERE hash = ?1")?;
    for hash in waited {
        let live = statement
            .query_row([hash], |row| {
                let attempt: [u8; 16] = row.get(0)?;
                let (until, steady): (Option<i64>, Option<i64>) = (row.get(3)?, row.get(4)?);
                let token = row.get_ref(2)?.as_blob().unwrap_or_default();
                let holds = row.get::<_, i64>(1)? == schema::IN_PROGRESS
                    && now.lapse(token, until.unwrap_or(0), steady.unwrap_or(0)).is_none();
                Ok(holds.then(|| AttemptId::from_bytes(attempt)))
            })
            .optional()?
            .flatten();
        if let Some(list) = shared.watch.waiters.lock().get(&hash) {
            list.iter().filter(|w| live != Some(w.attempt)).for_each(|w| w.notify.notify_one());
        }
    }
    Ok(())
}
