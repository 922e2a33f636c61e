//! The manager's own thread: heartbeats, flushing of statistics, automatic
//! cleanup, and the ends of attempts whose caller has gone.
//!
//! It has a runtime of its own, so that an action that blocks the caller's
//! runtime cannot let its own lease lapse. It holds the manager weakly and ends
//! with it, after it has finished what was handed to it (at most [`DRAIN`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::manager::Inner;
use crate::store::{Beat, Store, StoreError};
use crate::{AttemptId, Key};

/// How often heartbeats and flushes are looked after.
const TICK: Duration = Duration::from_millis(200);
/// How often statistics go to the store.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the thread outlives the manager to finish what was handed to it.
const DRAIN: Duration = Duration::from_secs(5);
/// After this long without work the thread sleeps until it is woken.
const IDLE: Duration = Duration::from_secs(5);
/// Leases renewed in one request.
const MAX_BEATS: usize = 1000;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The lease of a live attempt.
pub(crate) struct Lease {
    key: Key,
    lease: Duration,
    due: Instant,
    live: Arc<AtomicBool>,
}

#[derive(Default)]
pub(crate) struct Leases {
    // Touched once at an attempt's begin and once at its end; never held over an await.
    map: Mutex<HashMap<AttemptId, Lease, foldhash::fast::RandomState>>,
}

impl Leases {
    pub(crate) fn add(&self, attempt: AttemptId, key: Key, lease: Duration, now: Instant, live: Arc<AtomicBool>) {
        self.map.lock().insert(attempt, Lease { key, lease, due: now + lease / 3, live });
    }

    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.map.lock().remove(&attempt);
    }

    fn is_empty(&self) -> bool {
        self.map.lock().is_empty()
    }

    /// The attempts whose heartbeat is due, those due longest first.
    fn due(&self) -> Vec<AttemptId> {
        let now = Instant::now();
        let map = self.map.lock();
        let mut due: Vec<_> = map.iter().filter(|(_, l)| l.due <= now).map(|(attempt, l)| (l.due, *attempt)).collect();
        drop(map);
        due.sort_unstable();
        due.into_iter().map(|(_, attempt)| attempt).collect()
    }

    /// Takes these for a heartbeat, but for those that have ended meanwhile.
    fn take(&self, attempts: &[AttemptId]) -> Vec<(AttemptId, Key, Duration)> {
        let now = Instant::now();
        let mut map = self.map.lock();
        let take = |attempt: &AttemptId| {
            let l = map.get_mut(attempt)?;
            // Tried again soon if the store fails; a success sets the real date.
            l.due = now + l.lease / 10;
            Some((*attempt, l.key.clone(), l.lease))
        };
        attempts.iter().filter_map(take).collect()
    }

    fn beaten(&self, attempt: AttemptId, beat: Beat) -> bool {
        let mut map = self.map.lock();
        match beat {
            Beat::Renewed => {
                if let Some(l) = map.get_mut(&attempt) {
                    l.due = Instant::now() + l.lease / 3;
                }
                true
            }
            Beat::Lapsed | Beat::Lost => map.remove(&attempt).is_none_or(|l| {
                l.live.store(false, Ordering::Release);
                false
            }),
        }
    }
}

/// The handle by which the manager hands work to the thread.
pub(crate) struct Background {
    jobs: mpsc::UnboundedSender<Job>,
    handle: tokio::runtime::Handle,
    asleep: Arc<AtomicBool>,
}

impl Background {
    /// Starts the thread; it ends when the last sender is gone.
    pub(crate) fn start() -> Result<(Self, Starter), StoreError> {
        let failed = |what: &str, e: std::io::Error| StoreError::Unavailable {
            store: "background thread".into(),
            message: format!("{what}: {e}"),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| failed("no runtime", e))?;
        let handle = runtime.handle().clone();
        // Unbounded by type, bounded by use: at most one job per attempt in flight, and those are limited.
        let (jobs, rx) = mpsc::unbounded_channel();
        let asleep = Arc::new(AtomicBool::new(false));
        let starter = Starter { runtime, rx, asleep: asleep.clone() };
        Ok((Self { jobs, handle, asleep }, starter))
    }

    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let _ = self.jobs.send(Box::pin(job));
    }

    /// The runtime whose timers this thread drives.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    /// Wakes the thread if it sleeps for want of work.
    #[inline]
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            self.spawn(std::future::ready(()));
        }
    }
}

pub(crate) struct Starter {
    runtime: tokio::runtime::Runtime,
    rx: mpsc::UnboundedReceiver<Job>,
    asleep: Arc<AtomicBool>,
}

impl Starter {
    pub(crate) fn run(self, manager: Weak<Inner>) -> Result<(), StoreError> {
        std::thread::Builder::new()
            .name("hapax-background".into())
            .spawn(move || {
                let Self { runtime, rx, asleep } = self;
                runtime.block_on(look_after(manager, rx, asleep));
            })
            .map(drop)
            .map_err(|e| StoreError::Unavailable {
                store: "background thread".into(),
                message: format!("no thread: {e}; raise the limit on threads"),
            })
    }
}

async fn look_after(manager: Weak<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>, asleep: Arc<AtomicBool>) {
    let mut running: JoinSet<()> = JoinSet::new();
    let mut flushed = Instant::now();
    let mut worked = Instant::now();
    loop {
        let nap = {
            let Some(inner) = manager.upgrade() else { break };
            let idle = worked.elapsed() >= IDLE && inner.leases.is_empty() && running.is_empty();
            if idle {
                asleep.store(true, Ordering::Relaxed);
                inner.until_cleanup().unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(60))
            } else {
                TICK
            }
        };
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => { running.spawn(job); worked = Instant::now(); }
                None => break,
            },
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            () = tokio::time::sleep(nap) => {}
        }
        let Some(inner) = manager.upgrade() else { break };
        if !inner.leases.is_empty() {
            worked = Instant::now();
            beat(&inner.leases, &*inner.store, &inner.namespace).await;
        }
        if flushed.elapsed() >= FLUSH {
            flushed = Instant::now();
            match inner.flush().await {
                Ok(true) => worked = Instant::now(),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "statistics could not be written; kept for the next time"),
            }
        }
        inner.clean_up_if_due().await;
    }
    // The manager is gone: what was handed over is still finished.
    while let Ok(job) = jobs.try_recv() {
        running.spawn(job);
    }
    let _ = tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await;
}

/// Renews every lease that is due, [`MAX_BEATS`] in one request. Those that
/// fall due meanwhile, or whose request failed, are left to the next time.
async fn beat(leases: &Leases, store: &dyn Store, namespace: &Arc<str>) {
    for chunk in leases.due().chunks(MAX_BEATS) {
        let due = leases.take(chunk);
        if due.is_empty() {
            continue;
        }
        let beats = due.iter().map(|(attempt, key, lease)| (key.clone(), *attempt, *lease)).collect();
        match store.heartbeat(namespace.clone(), beats).await {
            Ok(answers) => {
                for ((attempt, key, _), beat) in due.iter().zip(answers) {
                    if !leases.beaten(*attempt, beat) {
                        tracing::warn!(%key, %attempt, ?beat, "the attempt lost its lease; the action goes on but may not be recorded");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, attempts = due.len(), "heartbeat failed; tried again before the leases lapse")
            }
        }
    }
}

#[cfg(test)]
#[path = "background_tests.rs"]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
