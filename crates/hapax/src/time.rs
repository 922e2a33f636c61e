//! Time as hapax sees it: wall-clock instants for records, a steady clock for
//! leases.
//!
//! A store that lives in the host's memory or on its disk takes both from a
//! [`Clock`], so that tests move time instead of sleeping for it. Leases never
//! use the wall clock on the host that took them: setting the clock forward by
//! an hour must not turn a live attempt into a dead one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant in UTC, in whole milliseconds since 1970.
///
/// Shown and serialised as RFC 3339, for example `2026-11-24T08:15:30.125Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The last instant that every time zone can write with a year of four digits.
const MAX_MILLIS: i64 = 253_402_207_199_999;

impl Timestamp {
    /// The instant `millis` milliseconds after 1970 began, clamped to what
    /// RFC 3339 can write (the year 0 to 9999-12-30).
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(-62_167_219_200_000, MAX_MILLIS))
    }

    /// Milliseconds since 1970 began.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// This instant plus `duration`, in whole milliseconds, at the most 9999-12-30.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let add = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(add))
    }

    /// This instant less `duration`, in whole milliseconds.
    pub(crate) fn minus(self, duration: Duration) -> Self {
        let less = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(less))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::Timestamp>()
            .map(|t| Self::from_millis(t.as_millisecond()))
            .map_err(|e| format!("{text:?} is not an RFC 3339 time: {e}"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where an embedded store takes its time from.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The wall clock: what records show and what times to live are counted by.
    fn now(&self) -> Timestamp;

    /// The wall clock, cheaper and up to 10 ms behind: remembered results are aged by it.
    fn coarse_now(&self) -> Timestamp {
        self.now()
    }

    /// Milliseconds of a clock that nobody sets and that goes on while the
    /// machine is suspended; it may start anywhere, and starts anew at boot.
    /// Leases are counted by it.
    fn steady_millis(&self) -> i64;

    /// Whether this is the host's own clock, which may then be asked directly.
    #[doc(hidden)]
    fn is_host(&self) -> bool {
        false
    }
}

/// The host's clocks: `CLOCK_REALTIME` and `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp::from_millis(millis(&now))
    }

    #[cfg(target_os = "linux")]
    #[inline]
    fn coarse_now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Timestamp::from_millis(millis(&now))
    }

    fn steady_millis(&self) -> i64 {
        #[cfg(target_os = "linux")]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let id = rustix::time::ClockId::Monotonic;
        millis(&rustix::time::clock_gettime(id))
    }

    fn is_host(&self) -> bool {
        true
    }
}

fn millis(t: &rustix::time::Timespec) -> i64 {
    t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000)
}

/// A clock that moves only when told to, for tests.
///
/// ```
/// use std::time::Duration;
/// use hapax::{Clock, ManualClock};
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().since(before), Duration::from_secs(60));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    wall: Arc<AtomicI64>,
    steady: Arc<AtomicI64>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl ManualClock {
    /// A clock that stands at the present.
    #[must_use]
    pub fn new() -> Self {
        Self {
            wall: Arc::new(AtomicI64::new(SystemClock.now().as_millis())),
            steady: Arc::new(AtomicI64::new(SystemClock.steady_millis())),
        }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4);
        self.wall.fetch_add(by, Ordering::SeqCst);
        self.steady.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets the wall clock forward or back by `millis`, as an operator or NTP
    /// would; no time passes.
    pub fn jump_wall(&self, millis: i64) {
        self.wall.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall.load(Ordering::SeqCst))
    }

    fn steady_millis(&self) -> i64 {
        self.steady.load(Ordering::SeqCst)
    }
}

/// How long a recorded result is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// For this long after it was recorded; at least a millisecond.
    For(Duration),
    /// For ever.
    Never,
}

impl Ttl {
    /// The instant at which a result recorded at `now` ends, if it does.
    #[must_use]
    pub fn expires_at(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::For(d) => Some(now.plus(d.max(Duration::from_millis(1)))),
            Self::Never => None,
        }
    }
}

impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Self {
        Self::For(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_with_milliseconds_and_reads_back() {
        let t = Timestamp::from_millis(1_795_000_000_007);
        let text = t.to_string();
        assert!(text.ends_with(".007Z"), "{text}");
        assert_eq!(text.parse::<Timestamp>(), Ok(t));
        assert_eq!(Timestamp::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn an_endless_addition_stops_in_the_year_9999() {
        let t = Timestamp::from_millis(0).plus(Duration::MAX);
        assert_eq!(t.to_string(), "9999-12-30T21:59:59.999Z");
    }
}
