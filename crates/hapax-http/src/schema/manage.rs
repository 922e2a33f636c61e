//! Statistics, what the store holds, cleanup, and settings.

use std::time::Duration;

use hapax::Timestamp;
use hapax::store::{Census, OnFull};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DoubtChoice, Kept};
use crate::units::{Keep, Span, Wait};

/// What is to be removed. One of both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CleanupRequest {
    /// The records that have expired: only their space is freed. `true` when nothing else is said.
    pub expired: Option<bool>,
    /// This many of the oldest results and errors, before their time.
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    pub oldest: Option<u64>,
}

/// How many records went.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemovedAnswer {
    /// How many.
    pub removed: u64,
}

/// What happened so far in the namespace, over all processes and restarts.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // for the document
pub struct Stats {
    /// Records kept now.
    total_cached: u64,
    /// Calls answered from the record.
    hits: u64,
    /// Calls that found no record.
    misses: u64,
    /// `hits / (hits + misses)`; 0 before the first call.
    hit_rate: f64,
    /// Calls whose action did not run again.
    duplicates_prevented: u64,
    /// Actions begun.
    executions: u64,
    /// Actions that ended in an error.
    failures: u64,
    /// Calls that waited for another's attempt.
    waits_joined: u64,
    /// Calls refused for other params.
    mismatches: u64,
    /// Live attempts now.
    in_progress: u64,
    /// Keys in doubt now.
    in_doubt: u64,
    /// Expired records removed.
    expired_cleaned: u64,
    /// Records evicted before their time.
    evicted: u64,
    /// Milliseconds of action time that replays saved.
    time_saved_ms: u64,
}

/// What the store holds and where.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InfoAnswer {
    /// The server's version.
    pub version: &'static str,
    /// Where the store is, without secrets.
    pub store: String,
    /// The tenant.
    pub namespace: String,
    /// Records kept now.
    pub size: u64,
    /// The most records kept, if there is a limit.
    #[schema(required)]
    pub max_entries: Option<u64>,
    /// Live attempts.
    pub in_progress: u64,
    /// Keys in doubt.
    pub in_doubt: u64,
    /// Recorded results.
    pub completed: u64,
    /// Recorded errors.
    pub failed: u64,
    /// When the oldest record's last attempt began.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub oldest: Option<Timestamp>,
    /// When the newest record's last attempt began.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub newest: Option<Timestamp>,
    /// Bytes the store takes, all namespaces together, as far as it knows.
    pub bytes: u64,
    /// Results remembered in the server.
    pub recent_results: usize,
    /// Attempts in flight in the server itself.
    pub in_flight: usize,
    /// The store's clock.
    #[schema(value_type = String, format = DateTime)]
    pub now: Timestamp,
    /// Milliseconds since the server began.
    pub uptime_ms: u64,
}

impl InfoAnswer {
    pub(crate) fn new(info: hapax::Info, uptime: Duration) -> Self {
        let hapax::Info { store, namespace, size, max_entries, census, recent_results, in_flight, now } = info;
        let Census { in_progress, in_doubt, completed, failed, oldest, newest, bytes } = census;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            store,
            namespace,
            size,
            max_entries,
            in_progress,
            in_doubt,
            completed,
            failed,
            oldest,
            newest,
            bytes,
            recent_results,
            in_flight,
            now,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The settings that can be changed while the server runs. They hold until it
/// restarts or reloads its file.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConfigPatch {
    /// How long results are kept.
    pub ttl: Option<Keep>,
    /// How long a duplicate waits, or `no`.
    pub wait: Option<Wait>,
    /// What happens on a key in doubt.
    pub on_doubt: Option<DoubtChoice>,
    /// How long an attempt may be silent; 1 s to 24 h.
    pub lease: Option<Span>,
    /// How much of the params is kept.
    pub keep_params: Option<Kept>,
    /// The most records the store keeps.
    #[schema(minimum = 1)]
    pub max_entries: Option<u64>,
    /// What happens then: `evict` or `reject`.
    #[schema(value_type = Option<FullChoice>)]
    pub on_full: Option<OnFull>,
    /// The largest result that is recorded, in bytes of JSON.
    #[schema(minimum = 1, maximum = 67_108_864)]
    pub max_result_bytes: Option<usize>,
    /// How often expired records are removed, or `never`; 1 s to 30 d.
    pub auto_cleanup: Option<Keep>,
}

/// What happens at the most records kept.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // for the document
pub enum FullChoice {
    /// Expired records go first, then the oldest results.
    Evict,
    /// Expired records go; if that is not enough, calls are refused.
    Reject,
}

/// The configuration as it stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigAnswer {
    /// All settings; durations in milliseconds.
    #[schema(value_type = Object)]
    pub config: serde_json::Value,
    /// Whether changes outlive the server: they do not.
    pub persistent: bool,
}
