//! The manager's own thread: heartbeats, flushing of statistics, automatic
//! cleanup, and the ends of attempts whose caller has gone.
//!
//! It has a runtime of its own, so that an action that blocks the caller's
//! runtime cannot let its own lease lapse. Heartbeats come first: whatever else
//! it does, it does beside them, in tasks. It holds the manager weakly and ends
//! with it, after it has finished what was handed to it (at most [`DRAIN`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
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

/// What is under way in the background: a shutdown waits for it.
#[derive(Default)]
pub(crate) struct Underway {
    ends: AtomicUsize,
    chores: AtomicUsize,
    /// Told whenever a count falls to zero.
    pub(crate) fewer: Notify,
}

impl Underway {
    /// Flushes and sweeps that the thread has begun by itself.
    pub(crate) fn chores(&self) -> usize {
        self.chores.load(Ordering::SeqCst)
    }

    /// Jobs that were handed over: ends of attempts whose caller has gone.
    pub(crate) fn ends(&self) -> usize {
        self.ends.load(Ordering::SeqCst)
    }

    fn chore(self: &Arc<Self>) -> Counted {
        Counted::new(self.clone(), |underway| &underway.chores)
    }
}

/// Counted as under way until it is dropped.
struct Counted {
    underway: Arc<Underway>,
    count: fn(&Underway) -> &AtomicUsize,
}

impl Counted {
    fn new(underway: Arc<Underway>, count: fn(&Underway) -> &AtomicUsize) -> Self {
        count(&underway).fetch_add(1, Ordering::SeqCst);
        Self { underway, count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if (self.count)(&self.underway).fetch_sub(1, Ordering::SeqCst) == 1 {
            self.underway.fewer.notify_waiters();
        }
    }
}

/// A chore of which there is one at a time: who has the turn may begin, and gives it back by dropping it.
#[derive(Default)]
struct Turns(Arc<AtomicBool>);

struct Turn(Arc<AtomicBool>);

impl Turns {
    fn take(&self) -> Option<Turn> {
        (!self.0.swap(true, Ordering::AcqRel)).then(|| Turn(self.0.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Wakes the thread when it sleeps for want of work.
///
/// Invariant: who has something to do for the thread leaves word of it first, then calls
/// [`wake`](Self::wake); the thread says that it sleeps, then looks for such word once more. With a
/// fence between the two on either side, one of them sees the other.
#[derive(Clone)]
pub(crate) struct Waker {
    jobs: mpsc::UnboundedSender<Job>,
    asleep: Arc<AtomicBool>,
}

impl Waker {
    #[inline]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            self.nudge();
        }
    }

    fn nudge(&self) {
        let _ = self.jobs.send(Box::pin(std::future::ready(())));
    }
}

/// Says that the thread sleeps, unless there is work after all.
fn fall_asleep(asleep: &AtomicBool, work: impl FnOnce() -> bool) -> bool {
    asleep.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let sleeps = !work();
    if !sleeps {
        asleep.store(false, Ordering::Relaxed);
    }
    sleeps
}

/// The handle by which the manager hands work to the thread.
pub(crate) struct Background {
    waker: Waker,
    handle: tokio::runtime::Handle,
    pub(crate) underway: Arc<Underway>,
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
        Ok((Self { waker: Waker { jobs, asleep }, handle, underway: Arc::default() }, starter))
    }

    /// Hands over an attempt's end; counted as under way before this returns.
    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::new(self.underway.clone(), |underway| &underway.ends);
        let _ = self.waker.jobs.send(Box::pin(async move {
            let _counted = counted;
            job.await;
        }));
    }

    /// The runtime whose timers this thread drives.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    /// Wakes the thread if it sleeps, to look at what there is to do.
    #[inline]
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Lets the thread look anew at how long it may sleep.
    pub(crate) fn nudge(&self) {
        self.waker.nudge();
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
    // Each task tells whether there was something to do.
    let mut running: JoinSet<bool> = JoinSet::new();
    let (flushes, sweeps) = (Turns::default(), Turns::default());
    let mut flushed = Instant::now();
    let mut worked = Instant::now();
    loop {
        let nap = {
            let Some(inner) = manager.upgrade() else { break };
            let idle = worked.elapsed() >= IDLE && running.is_empty();
            if idle && fall_asleep(&asleep, || !inner.leases.is_empty() || inner.has_counted()) {
                inner.until_cleanup().unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(60))
            } else {
                TICK
            }
        };
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => { running.spawn(async { job.await; true }); worked = Instant::now(); }
                None => break,
            },
            Some(done) = running.join_next(), if !running.is_empty() => {
                if matches!(done, Ok(true)) {
                    worked = Instant::now();
                }
                continue;
            }
            () = tokio::time::sleep(nap) => {}
        }
        asleep.store(false, Ordering::Relaxed);
        let Some(inner) = manager.upgrade() else { break };
        if !inner.leases.is_empty() {
            worked = Instant::now();
            beat(&inner.leases, &*inner.store, &inner.namespace).await;
        }
        if flushed.elapsed() >= FLUSH
            && let Some(turn) = flushes.take()
        {
            flushed = Instant::now();
            // Counted before the look at what is closing, in the order opposite to a shutdown's.
            let counted = inner.background.underway.chore();
            if !inner.is_at_rest() {
                running.spawn(flush(inner.clone(), turn, counted));
            }
        }
        if inner.cleanup_is_due()
            && let Some(turn) = sweeps.take()
        {
            inner.set_next_cleanup();
            running.spawn(clean_up(manager.clone(), turn, inner.background.underway.chore()));
        }
    }
    // The manager is gone: what was handed over is still finished.
    while let Ok(job) = jobs.try_recv() {
        running.spawn(async {
            job.await;
            true
        });
    }
    let _ = tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await;
}

/// Carries the statistics to the store; tells whether there were any.
async fn flush(inner: Arc<Inner>, _turn: Turn, _counted: Counted) -> bool {
    inner.flush().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "statistics could not be written; kept for the next time");
        false
    })
}

/// Removes what has expired, until nothing is left, the manager is gone or shuts down.
async fn clean_up(manager: Weak<Inner>, _turn: Turn, _counted: Counted) -> bool {
    let mut gone = 0;
    while let Some(inner) = manager.upgrade().filter(|inner| !inner.is_closing()) {
        match inner.sweep_some().await {
            Ok((some, more)) => {
                gone += some;
                if !more {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "automatic cleanup failed; tried again at the next turn");
                return gone > 0;
            }
        }
        // A store that answers without waiting must not keep the heartbeats waiting.
        tokio::task::yield_now().await;
    }
    tracing::debug!(gone, "expired records removed");
    gone > 0
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
