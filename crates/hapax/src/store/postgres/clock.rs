//! The server's time, as its answers tell it.
//!
//! A replay needs it to know for how long it may be remembered, and has just
//! been told it: asking again would be a second way to the server. Invariant: what
//! is given is not ahead of the server's clock, and behind it by no more than an
//! answer takes, unless that clock was set within the last [`FRESH`].

use std::sync::atomic::{AtomicI64, Ordering};

use crate::Timestamp;

/// How long an answer's time is good for, in milliseconds.
const FRESH: i64 = 50;

/// What the last answer said.
#[derive(Debug)]
pub(super) struct ServerClock {
    /// The server's time less this host's steady time.
    ahead: AtomicI64,
    /// When that was told, by the steady time.
    told: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(0), told: AtomicI64::new(i64::MIN / 2) }
    }
}

/// Milliseconds of a clock that nobody sets and that a suspended machine does not stop.
fn steady() -> i64 {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(id);
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000)
}

impl ServerClock {
    /// An answer that has just come says what the time was.
    pub(super) fn tell(&self, millis: i64) {
        self.tell_at(millis, steady());
    }

    /// The server's time, if an answer has told it a moment ago.
    pub(super) fn now(&self) -> Option<Timestamp> {
        self.now_at(steady())
    }

    fn tell_at(&self, millis: i64, steady: i64) {
        self.ahead.store(millis.saturating_sub(steady), Ordering::Release);
        self.told.store(steady, Ordering::Release);
    }

    fn now_at(&self, steady: i64) -> Option<Timestamp> {
        let age = steady.saturating_sub(self.told.load(Ordering::Acquire));
        (0..FRESH)
            .contains(&age)
            .then(|| Timestamp::from_millis(self.ahead.load(Ordering::Acquire).saturating_add(steady)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_was_told_goes_on_for_a_moment_and_no_longer() {
        let clock = ServerClock::default();
        assert_eq!(clock.now_at(5), None);
        clock.tell_at(1_000_000, 5);
        assert_eq!(clock.now_at(5), Some(Timestamp::from_millis(1_000_000)));
        assert_eq!(clock.now_at(45), Some(Timestamp::from_millis(1_000_040)));
        assert_eq!(clock.now_at(55), None);
    }
}
