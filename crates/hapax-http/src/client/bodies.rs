//! What is sent to the server and what comes back.
//!
//! Params and results travel as the texts they are: never through a tree, which would round numbers.

use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::time::Duration;

use hapax::store::{Begin, Mark, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Record, Timestamp, Ttl};
use serde::Serialize;

use crate::units::{self, Keep, Span};

/// The JSON text of a body.
pub(super) fn wire_text<T: Serialize>(body: &T) -> Result<String, StoreError> {
    serde_json::to_string(body)
        .map_err(|e| StoreError::BadRequest { message: format!("the request has no JSON form: {e}") })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BeginBody<'a> {
    key: &'a Key,
    /// Empty where there is none: the server would ask the key.
    signal_id: &'a str,
    action_type: &'a str,
    target: &'a str,
    params: Option<&'a Json>,
    keep_params: &'static str,
    fingerprint: Fingerprint,
    attempt_id: AttemptId,
    take_over: Option<AttemptId>,
    lease: Span,
    wait: &'static str,
    on_doubt: &'static str,
    owner: &'a Owner,
    tags: &'a BTreeMap<String, String>,
}

impl<'a> BeginBody<'a> {
    pub(super) fn of(begin: &'a Begin) -> Self {
        Self {
            key: &begin.key,
            signal_id: begin.signal_id.as_deref().unwrap_or_default(),
            action_type: &begin.action_type,
            target: &begin.target,
            params: begin.params.as_ref(),
            keep_params: if begin.params.is_some() { "full" } else { "fingerprint" },
            fingerprint: begin.fingerprint,
            attempt_id: begin.attempt,
            take_over: begin.take_over,
            lease: at_most(begin.lease),
            wait: "no",
            on_doubt: "refuse",
            owner: &begin.owner,
            tags: &begin.tags,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompleteBody<'a> {
    pub(super) key: &'a Key,
    pub(super) result: &'a Json,
    pub(super) ttl: Keep,
    pub(super) duration_ms: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SettleBody<'a> {
    pub(super) verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<&'a Json>,
    pub(super) ttl: Option<Keep>,
    pub(super) attempt_id: Option<AttemptId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MarkBody<'a> {
    /// Empty where there is none: the server would ask the key.
    signal_id: &'a str,
    action_type: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a Json>,
    fingerprint: Fingerprint,
    attempt_id: AttemptId,
    owner: &'a Owner,
    result: &'a Json,
    ttl: Keep,
}

impl<'a> MarkBody<'a> {
    pub(super) fn of(mark: &'a Mark) -> Self {
        Self {
            signal_id: mark.signal_id.as_deref().unwrap_or_default(),
            action_type: &mark.action_type,
            target: &mark.target,
            params: mark.params.as_ref(),
            fingerprint: mark.fingerprint,
            attempt_id: mark.attempt,
            owner: &mark.owner,
            result: &mark.result,
            ttl: keep(mark.ttl),
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn at_most(duration: Duration) -> Span {
    Span(duration.min(units::MAX))
}

/// At least a millisecond, as for every store; for ever, where it can hardly be told from that.
pub(super) fn keep(ttl: Ttl) -> Keep {
    match ttl {
        Ttl::For(ttl) if ttl <= units::MAX => Keep(Ttl::For(ttl.max(Duration::from_millis(1)))),
        _ => Keep(Ttl::Never),
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claimed {
    pub(super) attempts: u64,
    pub(super) started_at: Timestamp,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndedThere {
    pub(super) at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
}

/// A record without what the server has noted on it for itself.
pub(super) fn as_sent<R: BorrowMut<Record>>(mut record: R) -> R {
    record.borrow_mut().tags.remove(hapax::LEASE_TAG);
    record
}

#[derive(serde::Deserialize)]
pub(super) struct SettledThere {
    pub(super) record: Option<Box<Record>>,
}

#[derive(serde::Deserialize)]
pub(super) struct PageThere {
    pub(super) records: Vec<Record>,
    pub(super) next: Option<String>,
}

#[derive(serde::Deserialize)]
pub(super) struct RemovedThere {
    pub(super) removed: u64,
}
