//! Claims and how they end.

use std::collections::BTreeMap;

use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Chosen, DoubtChoice, Holder, Kept, State};
use crate::units::{Keep, Span, Wait};

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
    /// How long the attempt may be silent from now on; 1 s to 24 h. Default: as its claim asked for, else the server's.
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
