//! The queue before a worker thread, and the thread's start on first use.
//!
//! Invariants: it never holds more than its limit; after `close` nothing enters,
//! and the worker still gets all that had entered.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

/// Operations queued at once before callers are told to come back.
pub(super) const QUEUE_LIMIT: usize = 65_536;

/// Why something cannot enter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Overloaded,
    Closed,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    // A mutex around a deque and not a channel: the worker takes a whole batch
    // under one lock.
    state: Mutex<State<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    idle: bool,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { items: VecDeque::new(), idle: false, closed: false }), filled: Condvar::new() }
    }

    pub(super) fn push(&self, item: T) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.items.len() >= QUEUE_LIMIT {
            return Err(Refused::Overloaded);
        }
        state.items.push_back(item);
        if std::mem::take(&mut state.idle) {
            drop(state);
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits for items and moves up to `most` of them into `batch`; `false`
    /// once it is closed and empty.
    pub(super) fn take(&self, batch: &mut Vec<T>, most: usize) -> bool {
        let mut state = self.state.lock();
        while state.items.is_empty() {
            if state.closed {
                return false;
            }
            state.idle = true;
            self.filled.wait(&mut state);
        }
        let count = state.items.len().min(most);
        batch.extend(state.items.drain(..count));
        true
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        drop(state);
        self.filled.notify_all();
    }

    /// Lets go of what nobody will take any more.
    pub(super) fn discard(&self) {
        let items = std::mem::take(&mut self.state.lock().items);
        drop(items);
    }
}
