//! Random histories, played on a store and on a small reference of the rules at once.
//!
//! [`check`] makes histories from seeds: operations on a handful of keys in two
//! namespaces, by attempts live, lapsed and stale, through two handles if there are,
//! with time passing and the wall clock jumping if the store's clock can be moved.
//! Each answer is compared with what the reference says. When one differs, the
//! history is cut down to what is needed for that, and printed with its seed.
//!
//! ```
//! # use std::sync::Arc;
//! # use hapax::ManualClock;
//! # use hapax::store::conformance::{Subject, model};
//! # use hapax::store::memory::MemoryStore;
//! # async fn memory() -> Subject {
//! #     let clock = ManualClock::new();
//! #     let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
//! #     Subject::new(store).clock(clock)
//! # }
//! model::check(memory, 0..20, 100);
//! ```

mod play;
mod reference;
mod steps;

use std::fmt::Write as _;
use std::future::Future;
use std::ops::Range;
use std::time::{Duration, Instant};

use self::steps::Step;
use super::Subject;

/// How long is tried to make a failing history shorter.
const SHRINK_LIMIT: Duration = Duration::from_secs(20);

/// Plays a history of so many steps for each seed. Not from within an async runtime.
///
/// # Panics
/// When an answer is not the reference's; with the seed and the shortest history
/// that was found to show it.
pub fn check<F, Fut>(open: F, seeds: Range<u64>, steps: usize)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    for seed in seeds {
        if let Err(failure) = run(&open, seed, steps) {
            panic!("{failure}");
        }
    }
}

/// Plays one history; `Err` says what differed, where, and after which steps.
///
/// # Errors
/// When an answer is not the reference's.
pub fn run<F, Fut>(open: F, seed: u64, steps: usize) -> Result<(), String>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let subject = open().await;
        let history = steps::history(seed, steps, subject.clock.is_some());
        let Err((at, seen)) = play::play(subject, &history).await else { return Ok(()) };
        let (shortest, seen) = shorten(&open, history[..=at].to_vec(), seen).await;
        let mut text = format!("seed {seed}: {seen}\nafter these steps, of which the last one shows it:\n");
        for (n, step) in shortest.iter().enumerate() {
            let _ = writeln!(text, "{n:4}  {step:?}");
        }
        Err(text)
    })
}

/// Leaves out whatever the difference does not need.
async fn shorten<F, Fut>(open: &F, mut history: Vec<Step>, mut seen: String) -> (Vec<Step>, String)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    let since = Instant::now();
    let mut chunk = history.len() / 2;
    while chunk > 0 && since.elapsed() < SHRINK_LIMIT {
        let (mut at, mut shorter) = (0, false);
        while at < history.len() && since.elapsed() < SHRINK_LIMIT {
            let mut candidate = history.clone();
            candidate.drain(at..(at + chunk).min(history.len()));
            match play::play(open().await, &candidate).await {
                Err((failed_at, text)) => {
                    candidate.truncate(failed_at + 1);
                    (history, seen, shorter) = (candidate, text, true);
                }
                Ok(()) => at += chunk,
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    (history, seen)
}
