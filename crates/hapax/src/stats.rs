//! Statistics: gathered in process, kept in the store.
//!
//! A call only adds to atomics; the background thread carries the sums to the
//! store every second, and `stats`, `shutdown` and the end of the manager (as long
//! as the process outlives it) do so at once. A kill loses at most the last second
//! of counts, never a record.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::store::{Census, Counters};

/// What happened so far in a namespace, over all processes and restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Records kept now: results, errors, live attempts and doubts.
    pub total_cached: u64,
    /// Calls answered from the record.
    pub hits: u64,
    /// Calls that found no record.
    pub misses: u64,
    /// `hits / (hits + misses)`; 0 before the first call.
    pub hit_rate: f64,
    /// Calls whose action did not run again: hits, joins and calls turned away.
    pub duplicates_prevented: u64,
    /// Actions begun.
    pub executions: u64,
    /// Actions that ended in an error.
    pub failures: u64,
    /// Calls that waited for another's attempt.
    pub waits_joined: u64,
    /// Calls refused for other params.
    pub mismatches: u64,
    /// Live attempts now.
    pub in_progress: u64,
    /// Keys in doubt now.
    pub in_doubt: u64,
    /// Expired records removed.
    pub expired_cleaned: u64,
    /// Records evicted before their time.
    pub evicted: u64,
    /// Milliseconds of action time that replays saved.
    pub time_saved_ms: u64,
}

impl Stats {
    #[allow(clippy::cast_precision_loss)] // a rate needs no 53 bits
    pub(crate) fn of(counters: &Counters, census: &Census) -> Self {
        let looked = counters.hits + counters.misses;
        Self {
            total_cached: census.in_progress + census.in_doubt + census.completed + census.failed,
            hits: counters.hits,
            misses: counters.misses,
            hit_rate: if looked == 0 { 0.0 } else { counters.hits as f64 / looked as f64 },
            duplicates_prevented: counters.duplicates_prevented,
            executions: counters.executions,
            failures: counters.failures,
            waits_joined: counters.waits_joined,
            mismatches: counters.mismatches,
            in_progress: census.in_progress,
            in_doubt: census.in_doubt,
            expired_cleaned: counters.expired_cleaned,
            evicted: counters.evicted,
            time_saved_ms: counters.time_saved_ms,
        }
    }
}

/// What a store holds and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Where the store is.
    pub store: String,
    /// The tenant.
    pub namespace: String,
    /// Records kept now.
    pub size: u64,
    /// The most records kept, if there is a limit.
    pub max_entries: Option<u64>,
    /// Records by state.
    #[serde(flatten)]
    pub census: Census,
    /// Results remembered in this process.
    pub recent_results: usize,
    /// Attempts in flight in this process.
    pub in_flight: usize,
    /// The store's clock.
    pub now: Timestamp,
}

/// The counters of this process that are not in the store yet.
#[derive(Default)]
pub(crate) struct Gauges {
    pub(crate) misses: AtomicU64,
    pub(crate) turned_away: AtomicU64,
    pub(crate) executions: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) waits_joined: AtomicU64,
    pub(crate) mismatches: AtomicU64,
    pub(crate) expired_cleaned: AtomicU64,
    pub(crate) evicted: AtomicU64,
}

pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Gauges {
    /// Whether anything was counted.
    pub(crate) fn any(&self) -> bool {
        [
            &self.misses,
            &self.turned_away,
            &self.executions,
            &self.failures,
            &self.waits_joined,
            &self.mismatches,
            &self.expired_cleaned,
            &self.evicted,
        ]
        .iter()
        .any(|counter| counter.load(Ordering::Relaxed) > 0)
    }

    /// Takes the sums, leaving zero.
    pub(crate) fn take(&self) -> Counters {
        let take = |c: &AtomicU64| if c.load(Ordering::Relaxed) == 0 { 0 } else { c.swap(0, Ordering::Relaxed) };
        Counters {
            misses: take(&self.misses),
            duplicates_prevented: take(&self.turned_away),
            executions: take(&self.executions),
            failures: take(&self.failures),
            waits_joined: take(&self.waits_joined),
            mismatches: take(&self.mismatches),
            expired_cleaned: take(&self.expired_cleaned),
            evicted: take(&self.evicted),
            ..Counters::default()
        }
    }
}
