//! hapax for callers without async.
//!
//! The same manager, its calls waiting on the calling thread. The action runs
//! on that thread too, as an ordinary closure, while its lease is renewed in
//! the background.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{Filter, Marked, Page, Settlement};
use crate::{Action, ActionError, Builder, Claimed, Context, Error, Info, Key, Outcome, Record, Shutdown, Stats, Ttl};

/// The idempotency manager for callers without async. A cheap clone of a handle.
///
/// ```
/// use hapax::{Action, blocking::Hapax};
///
/// let hapax = Hapax::open("memory:")?;
/// let action = Action::new("charge", "stripe").signal("order-42");
/// let receipt = hapax.execute(&action, |_context| Ok("receipt-1".to_string()))?;
/// assert_eq!(receipt.value, "receipt-1");
/// # Ok::<(), hapax::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hapax {
    inner: crate::Hapax,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread. Unlike a runtime's `block_on` it does not
/// panic when the thread belongs to a runtime: it merely blocks it.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = TaskContext::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

impl Hapax {
    /// See [`crate::Hapax::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::build(crate::Hapax::builder().store_url(url))
    }

    /// See [`Builder::build`].
    ///
    /// # Errors
    /// As there.
    pub fn build(builder: Builder) -> Result<Self, Error> {
        wait(builder.build()).map(|inner| Self { inner })
    }

    /// The manager for async callers, of the same store, memory and flights.
    #[must_use]
    pub fn as_async(&self) -> &crate::Hapax {
        &self.inner
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        // Timers need a runtime: the background thread drives those of its own.
        let _entered = self.inner.inner.background.handle().enter();
        wait(future)
    }

    /// See [`crate::Hapax::execute`]. A time limit is looked at when the
    /// closure returns: a thread cannot be cancelled.
    ///
    /// # Errors
    /// As there.
    pub fn execute<T, F>(&self, action: &Action, run: F) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: FnOnce(Context) -> Result<T, ActionError>,
    {
        self.wait(self.inner.execute(action, |context| async move {
            let limit = self.inner.policy_of(action)?.time_limit;
            let began = Instant::now();
            let answer = run(context);
            if limit.is_some_and(|limit| began.elapsed() > limit) {
                // A timer looks at the answer before it looks at the time: keep it back, so that the limit counts.
                std::future::pending::<()>().await;
            }
            answer
        }))
    }

    /// See [`crate::Hapax::claim`]; the claim is ended with [`Self::run`], as in
    /// `hapax.run(claim.complete(&value))`.
    ///
    /// # Errors
    /// As there.
    pub fn claim(&self, action: &Action) -> Result<Claimed, Error> {
        self.wait(self.inner.claim(action))
    }

    /// Waits for a future of the async face on this thread.
    ///
    /// The way to what has no blocking form: `execute_in_tx` of a `postgres://` store, say, whose action speaks to its
    /// transaction by `await` and so is async itself:
    /// `hapax.run(hapax.as_async().execute_in_tx(&action, |tx, _context| Box::pin(async move { … })))`.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.wait(future)
    }

    /// See [`crate::Hapax::check_executed`].
    ///
    /// # Errors
    /// As there.
    pub fn check_executed(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.wait(self.inner.check_executed(key))
    }

    /// See [`crate::Hapax::mark_executed`].
    ///
    /// # Errors
    /// As there.
    pub fn mark_executed<T: Serialize + ?Sized>(
        &self,
        key: &Key,
        result: &T,
        ttl: Option<Ttl>,
    ) -> Result<Marked, Error> {
        self.wait(self.inner.mark_executed(key, result, ttl))
    }

    /// See [`crate::Hapax::settle`].
    ///
    /// # Errors
    /// As there.
    pub fn settle(&self, key: &Key, settlement: Settlement) -> Result<Option<Record>, Error> {
        self.wait(self.inner.settle(key, settlement))
    }

    /// See [`crate::Hapax::clear_key`].
    ///
    /// # Errors
    /// As there.
    pub fn clear_key(&self, key: &Key) -> Result<bool, Error> {
        self.wait(self.inner.clear_key(key))
    }

    /// See [`crate::Hapax::clear_all`].
    ///
    /// # Errors
    /// As there.
    pub fn clear_all(&self) -> Result<u64, Error> {
        self.wait(self.inner.clear_all())
    }

    /// See [`crate::Hapax::record`].
    ///
    /// # Errors
    /// As there.
    pub fn record(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.wait(self.inner.record(key))
    }

    /// See [`crate::Hapax::records`].
    ///
    /// # Errors
    /// As there.
    pub fn records(&self, filter: Filter, cursor: Option<String>, limit: usize) -> Result<Page, Error> {
        self.wait(self.inner.records(filter, cursor, limit))
    }

    /// See [`crate::Hapax::keys`].
    ///
    /// # Errors
    /// As there.
    pub fn keys(&self, filter: Filter) -> Result<Vec<Key>, Error> {
        self.wait(self.inner.keys(filter))
    }

    /// See [`crate::Hapax::stats`].
    ///
    /// # Errors
    /// As there.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.wait(self.inner.stats())
    }

    /// See [`crate::Hapax::reset_stats`].
    ///
    /// # Errors
    /// As there.
    pub fn reset_stats(&self) -> Result<(), Error> {
        self.wait(self.inner.reset_stats())
    }

    /// See [`crate::Hapax::info`].
    ///
    /// # Errors
    /// As there.
    pub fn info(&self) -> Result<Info, Error> {
        self.wait(self.inner.info())
    }

    /// See [`crate::Hapax::cleanup_expired`].
    ///
    /// # Errors
    /// As there.
    pub fn cleanup_expired(&self) -> Result<u64, Error> {
        self.wait(self.inner.cleanup_expired())
    }

    /// See [`crate::Hapax::cleanup_oldest_entries`].
    ///
    /// # Errors
    /// As there.
    pub fn cleanup_oldest_entries(&self, count: u64) -> Result<u64, Error> {
        self.wait(self.inner.cleanup_oldest_entries(count))
    }

    /// See [`crate::Hapax::shutdown`].
    ///
    /// # Errors
    /// As there.
    pub fn shutdown(&self, limit: Duration) -> Result<Shutdown, Error> {
        self.wait(self.inner.shutdown(limit))
    }
}
