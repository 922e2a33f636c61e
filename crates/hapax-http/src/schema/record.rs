//! Records, and what is done to one by hand.

use std::collections::BTreeMap;

use hapax::{AttemptId, Fingerprint, Key, Owner};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::problem::{Kind, Problem};
use crate::units::Keep;

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

impl Holder {
    /// As the library has it, if it keeps to the limits.
    pub(crate) fn checked(self) -> Result<Owner, Problem> {
        if self.host.len() > 253 || self.label.as_ref().is_some_and(|l| l.len() > 128) {
            let detail = "the owner's host must be at most 253 bytes and its label 128";
            return Err(Problem::new(Kind::BadRequest, detail));
        }
        Ok(Owner { host: self.host, pid: self.pid, label: self.label })
    }
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
    /// What triggered the action. Default: as the key says.
    pub signal_id: Option<String>,
    /// What kind of action it was. Default: as the key says, else `unknown`.
    #[schema(min_length = 1)]
    pub action_type: Option<String>,
    /// What it acted on. Default: as the key says, else `unknown`.
    #[schema(min_length = 1)]
    pub target: Option<String>,
    /// Its params, any JSON, kept as they come; only with `fingerprint`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub params: Option<Box<RawValue>>,
    /// The SHA-256 of the params, in hexadecimal. Without it the result fits any params.
    #[schema(value_type = Option<String>, pattern = "^[0-9a-fA-F]{64}$")]
    pub fingerprint: Option<Fingerprint>,
    /// An id, a UUID never used before: the same mark sent again after a lost answer gets the same answer.
    #[schema(value_type = Option<String>, format = Uuid)]
    pub attempt_id: Option<AttemptId>,
    /// Who records it; the server when not said.
    pub owner: Option<Holder>,
}

/// What is there is given, also a `null`.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(d).map(Some)
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

/// A page of records, in the order that was asked for.
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
