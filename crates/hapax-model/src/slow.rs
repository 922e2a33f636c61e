//! A store whose futures do not end at once: for schedules.
//!
//! It does what the store behind it does, but lets others go on a few times
//! before the step and again between the step and its answer, by chance; and it
//! loses a request or an answer now and then. Invariant: an error says the truth
//! about the step: [`StoreError::AnswerLost`] when it may have happened, another
//! one when it has not.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hapax::store::{Around, Store, StoreError, StoreFuture};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What is slow, and may be lost: the steps, not the looks.
const SLOW: [&str; 8] = ["begin", "heartbeat", "end", "settle", "mark", "remove", "clear", "evict_oldest"];

/// Lets others go on, so many times.
#[derive(Debug)]
pub struct Pause(pub u32);

impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(()) };
        self.0 = left;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    before: u32,
    after: u32,
    request_lost: bool,
    answer_lost: bool,
}

/// A slow store. See the [module](self).
#[derive(Debug)]
pub struct Slow {
    store: Arc<dyn Store>,
    rng: Mutex<StdRng>,
    /// Of a hundred requests, so many are lost, and so many answers.
    losses: u32,
    steps: AtomicU64,
}

impl Slow {
    /// Slows a store down, by a seed; of a hundred requests it loses `losses`, and as many answers.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, seed: u64, losses: u32) -> Self {
        Self { store, rng: Mutex::new(StdRng::seed_from_u64(seed)), losses, steps: AtomicU64::new(0) }
    }

    /// How many steps were taken: begun, ended, settled.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    fn fate(&self) -> Fate {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        Fate {
            before: rng.random_range(0..3),
            after: rng.random_range(0..3),
            request_lost: rng.random_range(0..100) < self.losses,
            answer_lost: rng.random_range(0..100) < self.losses,
        }
    }

    fn slowly<'a, T: Send + 'a>(&'a self, ask: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a) -> StoreFuture<'a, T> {
        let fate = self.fate();
        Box::pin(async move {
            Pause(fate.before).await;
            if fate.request_lost {
                return Err(StoreError::Unavailable { store: "slow".into(), message: "lost on the way".into() });
            }
            let answer = ask().await;
            self.steps.fetch_add(1, Ordering::SeqCst);
            Pause(fate.after).await;
            if fate.answer_lost {
                return Err(StoreError::AnswerLost { store: "slow".into(), message: "lost on the way".into() });
            }
            answer
        })
    }
}

impl Around for Slow {
    fn within(&self) -> &dyn Store {
        &*self.store
    }
    fn call<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        ask: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        if SLOW.contains(&method) { self.slowly(move || ask(&*self.store)) } else { ask(&*self.store) }
    }
}
