//! A store under test, and what can be done with it beside the trait.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Handle;
use crate::ManualClock;
use crate::store::Store;

type Opening = Pin<Box<dyn Future<Output = Arc<dyn Store>> + Send>>;

/// Why a case was not tried on this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skip(pub(super) &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An empty store, and what the suite may do with it.
pub struct Subject {
    store: Arc<dyn Store>,
    pub(super) clock: Option<ManualClock>,
    again: Option<Arc<dyn Fn() -> Opening + Send + Sync>>,
    tick: Duration,
    skips: Vec<(&'static str, &'static str)>,
    // Dropped last: a directory must outlive the store in it.
    _kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Subject {
    /// A store that nobody has written to.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, clock: None, again: None, tick: Duration::from_millis(250), skips: Vec::new(), _kept: Vec::new() }
    }

    /// The clock that the store takes its time from: the suite moves it instead of
    /// waiting. Leave it out when the time is a server's.
    #[must_use]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self.tick = Duration::from_secs(60);
        self
    }

    /// How to open the same data once more, beside the first handle or after it was
    /// closed, as another process would (with the same clock, if it has one). Leave it
    /// out when the data is the handle's own.
    #[must_use]
    pub fn opened_again_by<F, Fut>(mut self, open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Arc<dyn Store>> + Send + 'static,
    {
        self.again = Some(Arc::new(move || Box::pin(open())));
        self
    }

    /// A short lease or time to live, for stores whose time cannot be moved: long enough that a
    /// call made at once still finds it alive. 250 ms by default.
    #[must_use]
    pub fn tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }

    /// Cases that this store cannot hold by design, and why: a case's name, or a group's (`capacity`).
    /// They are skipped and reported as such.
    #[must_use]
    pub fn skipping(mut self, names: &[&'static str], why: &'static str) -> Self {
        self.skips.extend(names.iter().map(|name| (*name, why)));
        self
    }

    pub(super) fn skip_of(&self, case: &str) -> Option<Skip> {
        let group = case.split("::").next().unwrap_or(case);
        self.skips.iter().find(|(name, _)| *name == case || *name == group).map(|(_, why)| Skip(why))
    }

    /// Keeps something (a temporary directory, a server) for as long as the case runs.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self._kept.push(Box::new(kept));
        self
    }

    /// The store, with the suite's ways to talk to it.
    pub(super) fn handle(&self) -> Handle {
        Handle::new(self.store.clone(), self.tick)
    }

    /// Another handle on the same data.
    pub(super) async fn again(&self) -> Result<Handle, Skip> {
        let open = self.again.clone().ok_or(Skip("the store has no second handle on the same data"))?;
        Ok(Handle::new(open().await, self.tick))
    }

    /// The clock, for cases that look at single milliseconds.
    pub(super) fn manual(&self) -> Result<&ManualClock, Skip> {
        self.clock.as_ref().ok_or(Skip("the store's clock cannot be moved"))
    }

    /// Lets this time pass by the store's clock.
    pub(super) async fn pass(&self, time: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(time),
            // A little longer: two clocks may tick apart.
            None => tokio::time::sleep(time + Duration::from_millis(20)).await,
        }
    }

    /// Lets a brief lease or time to live pass, to the millisecond if the clock can be moved.
    pub(super) async fn pass_tick(&self) {
        self.pass(self.tick).await;
    }
}
