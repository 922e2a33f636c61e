//! What the API reads and writes, as JSON and in the OpenAPI document.
//!
//! Records, statistics and the like are written by the library's own types;
//! their shapes stand here a second time for the document alone, and a test
//! holds the two together.

use std::collections::BTreeMap;

use hapax::store::{Census, OnFull};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::units::{Keep, Span, Wait};

/// Where a record stands.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)] // for the document
pub enum State {
    /// An attempt runs the action and keeps its lease.
    InProgress,
    /// The action ran and its result is recorded.
    Completed,
    /// The action failed for good and its error is recorded.
    Failed,
    /// An attempt ended without a word: its effect may have happened.
    InDoubt,
}

/// All that the store knows about a key.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // for the document
pub struct Record {
    /// The key, unique within the namespace.
    #[schema(example = "signal-123:create_task:trello:1557ebfc75da3109", min_length = 1, max_length = 512)]
    key: String,
    /// The tenant.
    namespace: String,
    /// What triggered the action.
    #[schema(nullable = false)]
    signal_id: Option<String>,
    /// What kind of action it is.
    action_type: String,
    /// What it acts on.
    target: String,
    /// The params, when the policy keeps them.
    params: Option<serde_json::Value>,
    /// The SHA-256 of the params that identify the action.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    fingerprint: String,
    state: State,
    /// The recorded result, when completed.
    result: Option<serde_json::Value>,
    /// The recorded error when failed; why nobody knows when in doubt.
    #[schema(nullable = false)]
    error: Option<String>,
    /// The attempt that made the record what it is.
    #[schema(format = Uuid)]
    attempt_id: String,
    /// Executions begun under this record.
    attempts: u64,
    /// Calls that presented the key, replays included.
    attempt_count: u64,
    /// When the last attempt began.
    #[schema(format = DateTime)]
    started_at: String,
    /// When the result or error was recorded.
    #[schema(format = DateTime, nullable = false)]
    executed_at: Option<String>,
    /// When the record ends; never, if absent.
    #[schema(format = DateTime, nullable = false)]
    expires_at: Option<String>,
    /// Until when a running attempt may be silent.
    #[schema(format = DateTime, nullable = false)]
    lease_until: Option<String>,
    /// How long the recorded execution took.
    #[schema(nullable = false)]
    duration_ms: Option<u64>,
    /// Who runs, or ran, the last attempt.
    #[schema(value_type = Holder)]
    owner: Holder,
    /// What the caller noted on it.
    #[schema(nullable = false)]
    tags: Option<BTreeMap<String, String>>,
}

/// Who runs an attempt.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Holder {
    /// The host's name.
    #[schema(max_length = 253)]
    pub host: String,
    /// The process id on that host.
    pub pid: u32,
    /// A name of the caller's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 128, nullable = false)]
    pub label: Option<String>,
}

impl From<Holder> for Owner {
    fn from(holder: Holder) -> Self {
        Self { host: holder.host, pid: holder.pid, label: holder.label }
    }
}

/// What happens on a key in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtChoice {
    /// The call is refused until someone settles the key.
    Refuse,
    /// The action runs again: for what is harmless to repeat.
    Rerun,
}

impl From<DoubtChoice> for hapax::OnDoubt {
    fn from(choice: DoubtChoice) -> Self {
        match choice {
            DoubtChoice::Refuse => Self::Refuse,
            DoubtChoice::Rerun => Self::RunAgain,
        }
    }
}

/// How much of the params is kept on the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// All of them.
    Full,
    /// Their fingerprint.
    Fingerprint,
}

impl From<Kept> for hapax::KeepParams {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Full => Self::Full,
            Kept::Fingerprint => Self::Fingerprint,
        }
    }
}

/// Which params identify the action: by RFC 6901 pointers, either of both.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Chosen {
    /// Only these.
    Include(Vec<String>),
    /// All but these.
    Exclude(Vec<String>),
}

/// What is asked for: the parts of an action, or a key of the caller's own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionRequest {
    /// A key of the caller's own: 1 to 512 characters of visible ASCII.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Option<Key>,
    /// What triggered the action.
    #[schema(example = "signal-123")]
    pub signal_id: Option<String>,
    /// What kind of action it is; required without a key.
    #[schema(example = "create_task", min_length = 1)]
    pub action_type: Option<String>,
    /// What it acts on; required without a key.
    #[schema(example = "trello", min_length = 1)]
    pub target: Option<String>,
    /// Its params, any JSON. An integer that a double cannot hold is refused: send it as a string.
    #[schema(value_type = Option<serde_json::Value>)]
    pub params: Option<Box<RawValue>>,
    /// Which params identify the action; all when not said.
    pub identity: Option<Chosen>,
}

/// A claim of a key. The action is named as for `POST /v1/keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRequest {
    /// A key of the caller's own: 1 to 512 characters of visible ASCII.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Option<Key>,
    /// What triggered the action.
    #[schema(example = "signal-123")]
    pub signal_id: Option<String>,
    /// What kind of action it is; required without a key.
    #[schema(example = "create_task", min_length = 1)]
    pub action_type: Option<String>,
    /// What it acts on; required without a key.
    #[schema(example = "trello", min_length = 1)]
    pub target: Option<String>,
    /// Its params, any JSON. An integer that a double cannot hold is refused: send it as a string.
    #[schema(value_type = Option<serde_json::Value>)]
    pub params: Option<Box<RawValue>>,
    /// Which params identify the action; all when not said.
    pub identity: Option<Chosen>,
    /// The SHA-256 of params that stay with the caller, in hexadecimal; only with `key`.
    #[schema(value_type = Option<String>, pattern = "^[0-9a-fA-F]{64}$")]
    pub fingerprint: Option<Fingerprint>,
    /// How long the result is kept: a duration, or `never`. Default: the server's.
    pub ttl: Option<Keep>,
    /// How long the attempt may be silent; 1 s to 24 h. Default: the server's.
    pub lease: Option<Span>,
    /// How long to wait for another's attempt, or `no`; the server caps it. Default: the server's.
    pub wait: Option<Wait>,
    /// What happens on a key in doubt. Default: the server's.
    pub on_doubt: Option<DoubtChoice>,
    /// How much of the params is kept. Default: the server's.
    pub keep_params: Option<Kept>,
    /// The attempt's id, a UUID never used before: the same claim sent again after a lost answer
    /// gets the same attempt.
    #[schema(value_type = Option<String>, format = Uuid)]
    pub attempt_id: Option<AttemptId>,
    /// Take the key over if it is in doubt by this attempt.
    #[schema(value_type = Option<String>, format = Uuid)]
    pub take_over: Option<AttemptId>,
    /// Who runs the action; the server when not said.
    pub owner: Option<Holder>,
    /// Notes for the record, at most 32 of at most 256 bytes. Names that begin with `hapax.` are the server's.
    pub tags: Option<BTreeMap<String, String>>,
}

/// How a claim went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The key is the caller's.
    Claimed,
    /// The action ran before.
    Replayed,
    /// Another caller runs it still.
    InFlight,
}

/// The key is yours: run the action, send heartbeats, then complete, fail or release.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedAnswer {
    /// `claimed`.
    pub outcome: Outcome,
    /// The key, to be passed on to the target.
    #[schema(value_type = String)]
    pub key: Key,
    /// The attempt: with the key, the right to end it.
    #[schema(value_type = String, format = Uuid)]
    pub attempt_id: AttemptId,
    /// Executions begun under this key, this one included: more than 1 after a doubt.
    pub attempts: u64,
    /// How long the attempt may be silent.
    pub lease: Span,
    /// How often to send a heartbeat.
    pub heartbeat_every: Span,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Until when it may be silent.
    #[schema(value_type = String, format = DateTime)]
    pub lease_until: Timestamp,
}

/// The action ran before; this is its result or its error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayedAnswer {
    /// `replayed`.
    pub outcome: Outcome,
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// `completed` or `failed`.
    #[schema(value_type = State)]
    pub state: hapax::State,
    /// The result, when completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Json>,
    /// The error, when failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<String>,
    /// When it was recorded.
    #[schema(value_type = String, format = DateTime)]
    pub executed_at: Timestamp,
    /// How long the action took.
    pub duration_ms: u64,
}

/// The wait ran out while another caller runs the action.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingAnswer {
    /// `in_flight`.
    pub outcome: Outcome,
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// `in_progress`.
    #[schema(value_type = State)]
    pub state: hapax::State,
    /// Who runs it.
    #[schema(value_type = Holder)]
    pub owner: Owner,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// How long this call waited.
    pub waited_ms: u64,
}

/// Renews the lease of an attempt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
    /// How long the attempt may be silent from now on; 1 s to 24 h. Default: the server's.
    pub lease: Option<Span>,
}

/// The lease runs anew.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatAnswer {
    /// Until when the attempt may be silent.
    #[schema(value_type = String, format = DateTime)]
    pub lease_until: Timestamp,
}

/// Records the result of an attempt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompleteRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
    /// The result, any JSON; `null` when not given.
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Box<RawValue>>,
    /// How long it is kept. Default: as the claim said.
    pub ttl: Option<Keep>,
    /// How long the action took. Default: since the attempt began.
    pub duration_ms: Option<u64>,
}

/// Ends an attempt with an error for good, or in doubt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
    /// What went wrong, at most 64 KiB.
    #[schema(max_length = 65536)]
    pub error: String,
    /// What it says about the effect. Default: `permanent`.
    pub class: Option<FailureClass>,
    /// How long it is kept. Default: as the claim said.
    pub ttl: Option<Keep>,
    /// How long the action took. Default: since the attempt began.
    pub duration_ms: Option<u64>,
}

/// What an error says about the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// It did not happen: the key is free again, as by `release`.
    Retryable,
    /// It will never happen: the error is the recorded answer.
    Permanent,
    /// Nobody knows: the key is in doubt.
    Unknown,
}

/// Frees a key: the effect did not happen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
    /// No attempt before this one had an effect either: someone has looked.
    pub every_attempt: Option<bool>,
}

/// How an attempt ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndedAnswer {
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// Its state from now on; none when it is free.
    #[schema(value_type = Option<State>, required)]
    pub state: Option<hapax::State>,
    /// When this was recorded.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// When the result or error expires; never, or not at all, when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    pub expires_at: Option<Timestamp>,
}

/// Records a result by hand.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkRequest {
    /// The result, any JSON; `null` when not given.
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Box<RawValue>>,
    /// How long it is kept. Default: the server's.
    pub ttl: Option<Keep>,
}

/// What became of a key in doubt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettleRequest {
    /// Whether the effect happened.
    pub verdict: Verdict,
    /// Its result, when it happened; `null` when not given.
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Box<RawValue>>,
    /// How long the result is kept. Default: the server's.
    pub ttl: Option<Keep>,
    /// Settle only if the key is in doubt by this attempt.
    #[schema(value_type = Option<String>, format = Uuid)]
    pub attempt_id: Option<AttemptId>,
}

/// Whether an effect happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did: the result is recorded.
    Happened,
    /// It did not: the key is free, and the action runs when next called for.
    NotHappened,
}

/// A key that was settled.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SettledAnswer {
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// The record from now on; none when the key is free.
    #[schema(value_type = Option<Record>, required)]
    pub record: Option<hapax::Record>,
}

/// A page of records, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PageAnswer {
    /// The records.
    #[schema(value_type = Vec<Record>)]
    pub records: Vec<hapax::Record>,
    /// Where the next page begins: give it as `cursor`. None on the last page.
    #[schema(required)]
    pub next: Option<String>,
}

/// A key and what it is made of.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyAnswer {
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// The SHA-256 of the params that identify the action.
    #[schema(value_type = String)]
    pub fingerprint: Fingerprint,
}

/// A key to be taken apart.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParseRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
}

/// What a generated key was made from.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // for the document
pub struct Parts {
    /// What triggered the action.
    #[schema(required)]
    signal_id: Option<String>,
    /// What kind of action it is.
    action_type: String,
    /// What it acts on.
    target: String,
    /// The first 16 hexadecimal digits of the fingerprint.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    params_hash: String,
}

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
}

impl From<hapax::Info> for InfoAnswer {
    fn from(info: hapax::Info) -> Self {
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
