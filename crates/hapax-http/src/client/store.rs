//! The store's methods, each as a request or two.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use hapax::{AttemptId, Key, Record, Timestamp, Ttl};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::HttpStore;
use super::wire::{TRIES, is_problem};
use crate::path::{encode, encode_key};
use crate::units::{Keep, Span};

/// The longest wait asked for in one request.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl Store for HttpStore {
    fn location(&self) -> &str {
        &self.wire.location
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        Box::pin(async move {
            let answer = self.ask_any(Method::GET, "/v1/info").await?;
            let info: Value = self.wire.read(&answer)?;
            let now = info.get("now").and_then(Value::as_str).and_then(|t| t.parse().ok());
            now.ok_or_else(|| self.wire.refused(&answer))
        })
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        Box::pin(async move {
            let body = json!({
                "key": begin.key,
                "signalId": begin.signal_id,
                "actionType": begin.action_type,
                "target": begin.target,
                "params": begin.params,
                "keepParams": if begin.params.is_some() { "full" } else { "fingerprint" },
                "fingerprint": begin.fingerprint,
                "attemptId": begin.attempt,
                "takeOver": begin.take_over,
                "lease": at_most(begin.lease),
                "wait": "no",
                "onDoubt": "refuse",
                "owner": {"host": begin.owner.host, "pid": begin.owner.pid, "label": begin.owner.label},
                "tags": begin.tags,
            });
            for _ in 0..TRIES {
                let path = "/v1/claims".to_string();
                let answer = self.ask(&begin.namespace, Method::POST, path, Some(body.clone()), Duration::ZERO).await?;
                match answer.status {
                    StatusCode::CREATED => {
                        let claimed: Claimed = self.wire.read(&answer)?;
                        let (attempts, started_at) = (claimed.attempts, claimed.started_at);
                        return Ok(Begun::Started { attempts, started_at, expired: 0, evicted: 0 });
                    }
                    StatusCode::OK | StatusCode::ACCEPTED | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                        // It may be gone again; then it is free.
                        if let Some(record) = self.record(&begin.namespace, &begin.key).await? {
                            return Ok(Begun::Exists(record));
                        }
                    }
                    _ => return Err(self.wire.refused(&answer)),
                }
            }
            Err(StoreError::Busy { store: self.wire.location.clone(), waited: Duration::ZERO })
        })
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        Box::pin(async move {
            // Sent together, so that one slow answer lets no other lease lapse.
            let asked: Vec<_> = beats
                .into_iter()
                .map(|(key, attempt, lease)| {
                    let body = json!({"key": key, "lease": at_most(lease)});
                    let path = format!("/v1/claims/{attempt}/heartbeat");
                    self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO)
                })
                .collect();
            let mut answers = Vec::with_capacity(asked.len());
            for asked in asked {
                let answer = asked.await?;
                answers.push(match answer.status {
                    StatusCode::OK => Beat::Renewed,
                    StatusCode::CONFLICT if is_problem(&answer, "in-doubt") => Beat::Lapsed,
                    StatusCode::CONFLICT => Beat::Lost,
                    _ => return Err(self.wire.refused(&answer)),
                });
            }
            Ok(answers)
        })
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        Box::pin(async move {
            let is_release = matches!(end, End::Release);
            let (verb, body) = match end {
                End::Complete { result, ttl, duration } => (
                    "complete",
                    json!({"key": key, "result": result, "ttl": keep(ttl), "durationMs": millis(duration)}),
                ),
                End::Fail { error, ttl, duration } => {
                    ("fail", json!({"key": key, "error": error, "ttl": keep(ttl), "durationMs": millis(duration)}))
                }
                // The manager knows of the doubts before, and has decided.
                End::Release => ("release", json!({"key": key, "everyAttempt": true})),
                End::Doubt { reason } => ("fail", json!({"key": key, "error": reason, "class": "unknown"})),
            };
            let path = format!("/v1/claims/{attempt}/{verb}");
            let answer = self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => {
                    let ended: EndedThere = self.wire.read(&answer)?;
                    Ok(Ended::Done { at: ended.at, expires_at: ended.expires_at })
                }
                StatusCode::CONFLICT => match self.state(&namespace, &key).await? {
                    // A release leaves nothing: sent again after a lost answer, it finds nothing.
                    None if is_release && answer.tries > 1 => {
                        Ok(Ended::Done { at: self.now().await?, expires_at: None })
                    }
                    state => Ok(Ended::Lost(state)),
                },
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        Box::pin(async move {
            let body = match settlement {
                Settlement::Happened { result, ttl } => {
                    json!({"verdict": "happened", "result": result, "ttl": keep(ttl), "attemptId": attempt})
                }
                Settlement::NotHappened => json!({"verdict": "not_happened", "attemptId": attempt}),
            };
            let path = format!("/v1/records/{}/settle", encode_key(&key));
            let answer = self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => {
                    let settled: SettledThere = self.wire.read(&answer)?;
                    Ok(Settled::Done(settled.record))
                }
                StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
                    Ok(Settled::NotInDoubt(self.record(&namespace, &key).await?))
                }
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            let body = json!({"result": mark.result, "ttl": keep(mark.ttl)});
            let path = format!("/v1/records/{}", encode_key(&mark.key));
            let answer = self.ask(&mark.namespace, Method::PUT, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::CREATED => Ok(Marked::Recorded(self.wire.read(&answer)?)),
                StatusCode::OK => Ok(Marked::Exists(self.wire.read(&answer)?)),
                StatusCode::CONFLICT => match self.record(&mark.namespace, &mark.key).await? {
                    Some(record) => Ok(Marked::Exists(record)),
                    None => Err(StoreError::Busy { store: self.wire.location.clone(), waited: Duration::ZERO }),
                },
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Box::pin(async move { self.record(&namespace, &key).await })
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Box::pin(async move {
            let path = format!("/v1/records/{}", encode_key(&key));
            let answer = self.ask(&namespace, Method::DELETE, path, None, Duration::ZERO).await?;
            match answer.status {
                StatusCode::NO_CONTENT => Ok(Removed::Removed),
                StatusCode::NOT_FOUND if answer.tries > 1 => Ok(Removed::Removed),
                StatusCode::NOT_FOUND => Ok(Removed::Absent),
                StatusCode::CONFLICT => Ok(match self.record(&namespace, &key).await? {
                    Some(record) => Removed::Kept(record),
                    None => Removed::Absent,
                }),
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.removed(namespace, Method::DELETE, "/v1/records?confirm=all", None)
    }

    fn sweep(&self, _: usize) -> StoreFuture<'_, u64> {
        // The server sweeps all at once, and by itself.
        Box::pin(async move {
            let path = "/v1/cleanup".to_string();
            let asked = self.ask_any_with(Method::POST, path, json!({"expired": true})).await?;
            self.count_of(&asked)
        })
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        let body = json!({"oldest": count.min(1_000_000_000)});
        self.removed(namespace, Method::POST, "/v1/cleanup", Some(body))
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            let mut path = format!("/v1/records?limit={limit}");
            let state = filter.state.map(|s| s.as_str().to_string());
            let within = filter.expiring_within.map(|within| at_most(within).to_string());
            for (name, value) in [
                ("actionType", filter.action_type),
                ("target", filter.target),
                ("signalId", filter.signal_id),
                ("state", state),
                ("expiringWithin", within),
                ("cursor", cursor),
            ] {
                if let Some(value) = value {
                    // Writing to a string cannot fail.
                    let _ = write!(path, "&{name}={}", encode(&value));
                }
            }
            let answer = self.ask(&namespace, Method::GET, path, None, Duration::ZERO).await?;
            if answer.status != StatusCode::OK {
                return Err(self.wire.refused(&answer));
            }
            let page: PageThere = self.wire.read(&answer)?;
            Ok(Page { records: page.records, next: page.next })
        })
    }

    fn count(&self, _: Arc<str>, _: Counters, _: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        // The server has counted already.
        Box::pin(std::future::ready(Ok(())))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.looked(namespace, "/v1/stats")
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let path = "/v1/stats/reset".to_string();
            let answer = self.ask(&namespace, Method::POST, path, Some(json!({})), Duration::ZERO).await?;
            if answer.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(self.wire.refused(&answer)) }
        })
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.looked(namespace, "/v1/info")
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let wait = at_most.min(MAX_WAIT);
            let path = format!("/v1/records/{}?wait={}ms&attemptId={attempt}", encode_key(&key), millis(wait));
            let answer = self.ask(&namespace, Method::GET, path, None, wait).await?;
            match answer.status {
                StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn at_most(duration: Duration) -> Span {
    Span(Duration::from_millis(millis(duration).min(999_999_999)))
}

fn keep(ttl: Ttl) -> Keep {
    match ttl {
        Ttl::For(ttl) => Keep(Ttl::For(at_most(ttl).0)),
        Ttl::Never => Keep(Ttl::Never),
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claimed {
    attempts: u64,
    started_at: Timestamp,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndedThere {
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

#[derive(serde::Deserialize)]
struct SettledThere {
    record: Option<Box<Record>>,
}

#[derive(serde::Deserialize)]
struct PageThere {
    records: Vec<Record>,
    next: Option<String>,
}

#[derive(serde::Deserialize)]
pub(super) struct RemovedThere {
    pub(super) removed: u64,
}
