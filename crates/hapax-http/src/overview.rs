//! What the dashboard shows over time and by kind: gathered in the server's
//! memory, with bounded work on the store.
//!
//! Invariants: the series holds a day of minutes; a look at the records reads one
//! page, the newest, however many there are.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::{Duration, Instant};

use hapax::store::{Filter, MAX_PAGE, Order};
use hapax::{Error, Hapax, Record, Stats, Timestamp};
use parking_lot::Mutex;

use crate::app::{App, Inner};

/// Minutes kept.
pub(crate) const MINUTES: usize = 24 * 60;
/// How often the counters are looked at when nobody asks.
const EVERY: Duration = Duration::from_secs(15);
/// How long a look holds.
const FRESH: Duration = Duration::from_secs(2);

/// What was counted in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Minute {
    /// Minutes since 1970.
    pub(crate) at: i64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) duplicates: u64,
    pub(crate) failures: u64,
}

/// The minutes of a namespace, and its newest records.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    // Held for moments; never over an await.
    series: Mutex<Series>,
    // One look at a time: who comes meanwhile waits for it and shares it.
    newest: tokio::sync::Mutex<Newest>,
}

#[derive(Debug, Default)]
pub(crate) struct Series {
    since: Option<i64>,
    last: Option<Stats>,
    minutes: VecDeque<Minute>,
}

impl Series {
    /// Adds what was counted since the last time to the minute that is now.
    fn add(&mut self, now: Timestamp, stats: Stats) {
        let at = now.as_millis().div_euclid(60_000);
        self.since.get_or_insert(now.as_millis());
        let Some(last) = self.last.replace(stats) else { return };
        // A counter that went back was set to zero: all it says came since.
        let grown = |now: u64, then: u64| if now < then { now } else { now - then };
        let news = Minute {
            at,
            hits: grown(stats.hits, last.hits),
            misses: grown(stats.misses, last.misses),
            duplicates: grown(stats.duplicates_prevented, last.duplicates_prevented),
            failures: grown(stats.failures, last.failures),
        };
        if (Minute { at: 0, ..news }) == Minute::default() {
            return;
        }
        match self.minutes.back_mut() {
            // The clock may have been set back.
            Some(minute) if minute.at >= at => {
                minute.hits += news.hits;
                minute.misses += news.misses;
                minute.duplicates += news.duplicates;
                minute.failures += news.failures;
            }
            _ => self.minutes.push_back(news),
        }
        let first = at - i64::try_from(MINUTES).unwrap_or(i64::MAX);
        while self.minutes.len() > MINUTES || self.minutes.front().is_some_and(|m| m.at <= first) {
            self.minutes.pop_front();
        }
    }
}

/// The newest records as they were last looked at, newest first, without params and results.
#[derive(Debug, Default)]
struct Newest {
    looked: Option<Instant>,
    records: Vec<Record>,
}

impl Overview {
    pub(crate) fn add(&self, now: Timestamp, stats: Stats) {
        self.series.lock().add(now, stats);
    }

    /// Since when it counts, and the minutes in which something happened.
    pub(crate) fn minutes(&self) -> (Option<Timestamp>, Vec<Minute>) {
        let series = self.series.lock();
        (series.since.map(Timestamp::from_millis), series.minutes.iter().copied().collect())
    }

    /// The newest records, newest first: at most [`MAX_PAGE`].
    pub(crate) async fn newest(&self, hapax: &Hapax) -> Result<Vec<Record>, Error> {
        let mut newest = self.newest.lock().await;
        if newest.looked.is_none_or(|at| at.elapsed() >= FRESH) {
            let filter = Filter { order: Order::NewestFirst, ..Filter::default() };
            newest.records = hapax.records(filter, None, MAX_PAGE).await?.records.into_iter().map(bare).collect();
            newest.looked = Some(Instant::now());
        }
        Ok(newest.records.clone())
    }
}

/// A record without what may be secret or large.
pub(crate) fn bare(record: Record) -> Record {
    Record { params: None, result: None, ..record }
}

/// Looks at the counters of every namespace, until the server is gone.
pub(crate) async fn watch(server: Weak<Inner>) {
    while let Some(app) = App::of(&server) {
        if app.is_closing() {
            return;
        }
        for tenant in app.live().tenants.values() {
            match tenant.look().await {
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the counters could not be read; they are read again"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = app.closing() => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stats(hits: u64, duplicates_prevented: u64) -> Stats {
        Stats { hits, duplicates_prevented, ..Stats::default() }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_millis(minute * 60_000 + 5)
    }

    #[test]
    fn a_minute_holds_what_was_counted_since_the_last_look() {
        let mut series = Series::default();
        series.add(at(10), stats(100, 100)); // counted before: no minute's
        series.add(at(10), stats(103, 101));
        series.add(at(10), stats(104, 101));
        series.add(at(12), stats(104, 101)); // nothing happened
        series.add(at(13), stats(2, 1)); // set to zero meanwhile
        let seen: Vec<_> = series.minutes.iter().map(|m| (m.at, m.hits, m.duplicates)).collect();
        assert_eq!(seen, [(10, 4, 1), (13, 2, 1)]);
        assert_eq!(series.since, Some(600_005));
    }

    #[test]
    fn it_forgets_after_a_day_and_bears_a_clock_that_is_set_back() {
        let mut series = Series::default();
        for minute in 0..3_000 {
            series.add(at(minute), stats(u64::try_from(minute).unwrap(), 0));
        }
        assert_eq!(series.minutes.len(), MINUTES);
        series.add(at(1), stats(4_000, 0));
        assert_eq!(series.minutes.back().unwrap().at, 2_999);
        assert_eq!(series.minutes.back().unwrap().hits, 1 + 1_001);
    }
}
