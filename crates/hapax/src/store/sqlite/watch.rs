//! Noticing what other processes do: the epoch, and the end of attempts that
//! callers here wait for.
//!
//! One thread with a connection of its own, started on first use and parked when
//! nobody asks. It polls `PRAGMA data_version`, which is a look into shared
//! memory. What is made of it is [`shared`](crate::store::shared)'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OptionalExtension};

use super::row::{Hash, Now, to_u64};
use super::schema;
use super::{Shared, error::store_error};
use crate::AttemptId;
use crate::store::StoreError;
use crate::store::shared::{EPOCH_EVERY, Trust, Waiters, Waiting, coarse};

/// How often is polled while somebody waits.
const WAIT_EVERY: Duration = Duration::from_millis(10);
/// How often waited keys are looked at although nothing was written: owners die, leases lapse.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Watch {
    trust: Trust,
    waiters: Waiters<Hash>,
    started: AtomicBool,
    closed: AtomicBool,
    parked: Mutex<bool>,
    bell: Condvar,
}

impl Watch {
    /// The epoch, if it can be vouched for.
    #[inline]
    pub(super) fn epoch(&self, shared: &Arc<Shared>) -> Option<u64> {
        let epoch = self.trust.epoch();
        if epoch.is_none() {
            self.poke(shared);
        }
        epoch
    }

    /// A bump that this process has committed.
    pub(super) fn raise_epoch(&self, to: u64) {
        self.trust.raise_to(to);
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
    pub(super) fn register(&self, shared: &Arc<Shared>, hash: Hash, attempt: AttemptId) -> Option<Waiting<'_, Hash>> {
        let waiting = self.waiters.register(hash, attempt)?;
        self.poke(shared);
        Some(waiting)
    }

    /// Wakes who waits for this key.
    pub(super) fn wake(&self, hash: &Hash) {
        self.waiters.wake(hash);
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.wake_all();
        *self.parked.lock() = false;
        self.bell.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Naps until the next poll is due, or somebody asks.
    fn nap(&self) {
        let waiting = self.waiters.any();
        let mut parked = self.parked.lock();
        if self.is_closed() {
            return;
        }
        if waiting {
            self.bell.wait_for(&mut parked, WAIT_EVERY);
            return;
        }
        *parked = true;
        if self.waiters.any() {
            // Registered after the look above, and perhaps before `parked` was set.
        } else if self.trust.is_wanted() {
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
            if watch.waiters.any() && (changed || looked.elapsed() >= LOOK_EVERY) {
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
                    const BLIND: &str = "what other processes do cannot be seen";
                    match &error {
                        // Of damage every call is told by itself: here too, it would be said twice.
                        StoreError::Damaged { .. } => tracing::debug!(store = %shared.location, %error, "{BLIND}"),
                        _ => tracing::warn!(store = %shared.location, %error, "{BLIND}"),
                    }
                }
                version = -1;
                // Nobody waits in vain: they look for themselves, and are told.
                watch.waiters.wake_all();
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
    watch.trust.confirm(began);
    Ok(changed)
}

/// Wakes those whose attempt is in progress no more.
fn look(shared: &Arc<Shared>, conn: &Connection) -> rusqlite::Result<()> {
    let waited = shared.watch.waiters.keys();
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
        shared.watch.waiters.wake_but(&hash, live);
    }
    Ok(())
}
