//! A future that is polled again at once when it wakes itself.
//!
//! hyper's connection and the handler that it polls wake each other, within one task, for each body. To the runtime such a
//! wake is a task that can run: it puts it at the end of a queue and wakes another thread to look for work, which costs
//! more than the request. Polled again here, it costs nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

/// How often it is polled in a row, so that one connection does not keep a thread for itself.
const TURNS: usize = 8;

/// Not being polled: a wake goes to the task.
const RESTS: u8 = 0;
const POLLED: u8 = 1;
/// Being polled, and woken meanwhile.
const WOKEN: u8 = 2;

#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let polled = self.state.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if polled == Err(RESTS) {
            self.task.wake();
        }
    }
}

pin_project! {
    /// See the [module](self).
    pub(crate) struct Eager<F> {
        #[pin]
        future: F,
        bell: Arc<Bell>,
        waker: Waker,
    }
}

impl<F> Eager<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell::default());
        Self { future, waker: bell.clone().into(), bell }
    }

    /// The future within.
    pub(crate) fn within(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.project().future
    }
}

impl<F: Future> Future for Eager<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        this.bell.task.register(cx.waker());
        for _ in 0..TURNS {
            this.bell.state.store(POLLED, Ordering::Release);
            if let Poll::Ready(output) = this.future.as_mut().poll(&mut Context::from_waker(this.waker)) {
                return Poll::Ready(output);
            }
            // Whoever wakes it from here on wakes the task.
            if this.bell.state.swap(RESTS, Ordering::AcqRel) == POLLED {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often the task is woken.
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_wakes_itself_is_polled_at_once_and_a_wake_from_elsewhere_wakes_the_task() {
        let task = Arc::new(Task(AtomicUsize::new(0)));
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        let woken = || task.0.load(Ordering::SeqCst);
        let mut left = 3;
        let mut outside = None;
        let mut future = Box::pin(Eager::new(poll_fn(|cx| {
            outside = Some(cx.waker().clone());
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            if left > 0 {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })));
        // Twice by itself, then it waits.
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!(woken(), 0);
        assert!(future.as_mut().poll(&mut cx).is_ready());
        drop(future);
        assert_eq!(left, 0);

        let mut future = Box::pin(Eager::new(poll_fn(|cx| {
            outside = Some(cx.waker().clone());
            Poll::<()>::Pending
        })));
        assert!(future.as_mut().poll(&mut cx).is_pending());
        drop(future);
        if let Some(waker) = outside.take() {
            waker.wake();
        }
        assert_eq!(woken(), 1, "a wake from elsewhere");

        let mut polls = 0;
        let mut future = Box::pin(Eager::new(poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })));
        assert!(future.as_mut().poll(&mut cx).is_pending());
        drop(future);
        assert_eq!((polls, woken()), (TURNS, 2), "others get their turn");
    }
}
