//! Noticing what other processes do: the epoch, and the end of attempts that
//! callers here wait for.
//!
//! One task with a connection of its own, started on first use and asleep when
//! nobody asks. Waiters are told by `NOTIFY` where there is a direct connection
//! to listen on, and only attempts that somebody waits for are told of, since
//! `NOTIFY` makes commits queue. All of it may be lost without harm: what is
//! waited for is looked at every so often. What is made of what is seen is
//! [`shared`](crate::store::shared)'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Shared;
use super::begin::TX_GRACE;
use super::error::{Failed, store_error};
use super::row::lock_of;
use super::session::{Link, Purpose, Session, open};
use crate::AttemptId;
use crate::store::shared::{EPOCH_EVERY, Trust, Waiters, coarse};

/// How often waited keys are looked at when no word will come.
const POLL: Duration = Duration::from_millis(50);
/// How often they are looked at although word should come.
const POLL_LISTENING: Duration = Duration::from_millis(500);
/// The most keys looked at in one statement.
const LOOK: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Its epoch counts the changes of the database's that were seen here.
    trust: Trust,
    /// The database's epoch when it was last looked at.
    found: AtomicI64,
    waiters: Waiters<Uuid>,
    started: AtomicBool,
    closed: AtomicBool,
    /// Keys that somebody has begun to wait for since the last look.
    fresh: AtomicBool,
    bell: Notify,
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

    /// This process has raised the database's epoch.
    pub(super) fn raised(&self) {
        self.trust.raise();
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
        let Some(waiting) = self.waiters.register(hash, attempt) else {
            tokio::time::sleep(at_most.min(POLL_LISTENING)).await;
            return;
        };
        self.fresh.store(true, Ordering::SeqCst);
        self.poke(shared);
        let _ = tokio::time::timeout(at_most, waiting.woken()).await;
    }

    /// Wakes who waits for this key here.
    pub(super) fn wake(&self, hash: &Uuid) {
        self.waiters.wake(hash);
    }

    /// Word of an end came from another process.
    pub(super) fn word(&self, payload: &str) {
        if let Ok(hash) = payload.parse() {
            self.wake(&hash);
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.wake_all();
        self.bell.notify_one();
    }

    /// The database's epoch, as it was at a poll that began then.
    fn saw(&self, found: i64, began: i64) {
        // Counted and not copied: after a failover to a standby that was behind, the number may go back.
        if self.found.swap(found, Ordering::AcqRel) != found {
            self.trust.raise();
        }
        self.trust.confirm(began);
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
        let poll = watch.trust.is_wanted() && due(polled, EPOCH_EVERY);
        let every = if ear.hears() { POLL_LISTENING } else { POLL };
        let fresh = watch.fresh.swap(false, Ordering::SeqCst);
        let look = watch.waiters.any() && (fresh || due(looked, every));
        if poll || look {
            let outcome = round(&shared, &link, &mut ear, (poll, look)).await;
            let now = Some(Instant::now());
            (polled, looked) = (if poll { now } else { polled }, if look { now } else { looked });
            if let Err(error) = outcome {
                tracing::debug!(store = %shared.location, %error, "what other processes do cannot be seen");
            }
        }
        let every = if ear.hears() { POLL_LISTENING } else { POLL };
        let nap = match (watch.waiters.any(), watch.trust.is_wanted()) {
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
    let mut waited = shared.watch.waiters.keys();
    waited.sort_unstable();
    let mut locks: Option<HashSet<(i64, i64)>> = None;
    for part in waited.chunks(LOOK) {
        let part = part.to_vec();
        if listening {
            // Every time anew: the key may have a new attempt, or its row have been held by another.
            session.query(&shared.sql.want_word, &[&part]).await?;
        }
        let mut live: HashMap<Uuid, AttemptId> = HashMap::new();
        for row in session.query(&shared.sql.live, &[&part]).await? {
            let (hash, in_tx): (Uuid, bool) = (row.try_get(0)?, row.try_get(2)?);
            let attempt = AttemptId::from_bytes(*row.try_get::<_, Uuid>(1)?.as_bytes());
            if in_tx && shared.has_locks.load(Ordering::Relaxed) && row.try_get::<_, i64>(4)? > TX_GRACE {
                if locks.is_none() {
                    locks = Some(tx_locks(shared, session).await?);
                }
                let (_, high, low) = lock_of(attempt);
                if locks.as_ref().is_some_and(|held| !held.contains(&(high, low))) {
                    continue;
                }
            }
            live.insert(hash, attempt);
        }
        for hash in &part {
            shared.watch.waiters.wake_but(hash, live.get(hash).copied());
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
