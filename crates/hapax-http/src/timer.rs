//! The time that hyper gives each head of a connection, by one entry in the runtime's timer.
//!
//! hyper makes a sleep for every head and drops it when the head is there. In the runtime's timer each would take a
//! lock twice. Here a connection's sleeps share one entry: it is left as it is when a sleep ends, and when it is up it
//! is set anew for the deadline of whichever sleep is then polled. So it costs once in that time, not once a request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;

/// A timer for one connection, of whose sleeps one at a time is polled.
#[derive(Clone, Default)]
pub(crate) struct HeadTimer {
    entry: Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Head { timer: self.clone(), deadline })
    }
}

/// One head's time.
struct Head {
    timer: HeadTimer,
    deadline: Instant,
}

impl Sleep for Head {}

impl Future for Head {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let mut entry = self.timer.entry.lock();
        let entry = entry.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if entry.deadline() > deadline {
            entry.as_mut().reset(deadline);
        }
        loop {
            if entry.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if entry.deadline() >= deadline {
                return Poll::Ready(());
            }
            // It was up for an earlier head.
            entry.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn is_pending(sleep: &mut Pin<Box<dyn Sleep>>) -> bool {
        poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx).is_pending())).await
    }

    /// The runtime's clock, which the test moves.
    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_has_its_own_time_whatever_became_of_those_before() {
        const LIMIT: Duration = Duration::from_secs(10);
        let (timer, began) = (HeadTimer::default(), now());
        let mut first = timer.sleep_until(began + LIMIT);
        assert!(is_pending(&mut first).await);
        drop(first);
        tokio::time::advance(LIMIT * 3 / 5).await;
        // The entry is still the first one's, and is up before this one is.
        let mut second = timer.sleep_until(now() + LIMIT);
        assert!(is_pending(&mut second).await);
        second.await;
        let passed = now() - began;
        assert!((LIMIT * 8 / 5..LIMIT * 9 / 5).contains(&passed), "{passed:?}");
        // One that is asked for when the entry has long been up.
        tokio::time::advance(LIMIT).await;
        let mut third = timer.sleep_until(now() + LIMIT);
        assert!(is_pending(&mut third).await);
        // And one with an earlier deadline than the entry's.
        let began = now();
        timer.sleep_until(began + LIMIT / 10).await;
        let passed = now() - began;
        assert!((LIMIT / 10..LIMIT / 5).contains(&passed), "{passed:?}");
    }
}
