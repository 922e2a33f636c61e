//! The store's methods, each as a request or two.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, MAX_PAGE, Mark, Marked, Order, Page, Removed, Settled,
    Settlement, Store, StoreError, StoreFuture,
};
use hapax::{AttemptId, Key, Record, State, Timestamp};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::HttpStore;
use super::bodies::{
    BeginBody, Claimed, CompleteBody, EndedThere, MarkBody, PageThere, SettleBody, SettledThere, as_sent, at_most,
    keep, millis, wire_text,
};
use super::wire::{Resend, TRIES, is_problem};
use crate::path::{encode, encode_key};

/// The longest wait asked for in one request.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long after another's take-over was seen to be under way it is looked for, twice as long each time.
const TAKEN_OVER: Duration = Duration::from_millis(25);

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
            let body = wire_text(&BeginBody::of(&begin))?;
            let mut doubt = None;
            for tries in 0..TRIES {
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
                        let looked = self.record(&begin.namespace, &begin.key).await;
                        let Some(record) = self.after(&answer, looked)? else { continue };
                        if record.attempt_id == begin.attempt {
                            // Begun by an earlier sending, and lapsed since.
                            return Err(self.wire.not_its_own());
                        }
                        if record.state != State::InDoubt || begin.take_over != Some(record.attempt_id) {
                            return Ok(Begun::Exists(record));
                        }
                        // Another takes it over this moment and the store has not written that yet: look again.
                        doubt = Some(record);
                        tokio::time::sleep(TAKEN_OVER * (1 << tries)).await;
                    }
                    _ => return Err(self.wire.refused(&answer)),
                }
            }
            match doubt {
                Some(record) => Ok(Begun::Exists(record)),
                None => Err(StoreError::Busy { store: self.wire.location.clone(), waited: Duration::ZERO }),
            }
        })
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        Box::pin(async move {
            // Sent together, so that one slow answer lets no other lease lapse.
            let asked: Vec<_> = beats
                .into_iter()
                .map(|(key, attempt, lease)| {
                    let body = json!({"key": key, "lease": at_most(lease)}).to_string();
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
            let (verb, body) = match &end {
                End::Complete { result, ttl, duration } => (
                    "complete",
                    wire_text(&CompleteBody { key: &key, result, ttl: keep(*ttl), duration_ms: millis(*duration) })?,
                ),
                End::Fail { error, ttl, duration } => (
                    "fail",
                    json!({"key": key, "error": error, "ttl": keep(*ttl), "durationMs": millis(*duration)}).to_string(),
                ),
                // The manager knows of the doubts before, and has decided.
                End::Release => ("release", json!({"key": key, "everyAttempt": true}).to_string()),
                End::Doubt { reason } => ("fail", json!({"key": key, "error": reason, "class": "unknown"}).to_string()),
            };
            let path = format!("/v1/claims/{attempt}/{verb}");
            let answer = self.ask(&namespace, Method::POST, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => {
                    let ended: EndedThere = self.wire.read(&answer)?;
                    Ok(Ended::Done { at: ended.at, expires_at: ended.expires_at })
                }
                StatusCode::CONFLICT => match self.after(&answer, self.state(&namespace, &key).await)? {
                    // A release leaves nothing: sent again after a lost answer, it finds nothing.
                    None if is_release && answer.unsure => {
                        let at = self.after(&answer, self.now().await)?;
                        Ok(Ended::Done { at, expires_at: None })
                    }
                    _ if answer.unsure => Err(self.wire.not_its_own()),
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
            let (verdict, result, ttl) = match &settlement {
                Settlement::Happened { result, ttl } => ("happened", Some(result), Some(keep(*ttl))),
                Settlement::NotHappened => ("not_happened", None, None),
            };
            let body = wire_text(&SettleBody { verdict, result, ttl, attempt_id: attempt })?;
            let path = format!("/v1/records/{}/settle", encode_key(&key));
            // By its key alone, a second time could settle the next doubt.
            let resend = if attempt.is_some() { Resend::Safe } else { Resend::Never };
            let answer = self.send(&namespace, Method::POST, path, Some(body), Duration::ZERO, resend).await?;
            match answer.status {
                StatusCode::OK => {
                    let settled: SettledThere = self.wire.read(&answer)?;
                    Ok(Settled::Done(settled.record.map(as_sent)))
                }
                // What was to be free is free.
                StatusCode::NOT_FOUND if answer.unsure && verdict == "not_happened" => Ok(Settled::Done(None)),
                StatusCode::NOT_FOUND | StatusCode::CONFLICT if answer.unsure => Err(self.wire.not_its_own()),
                StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
                    Ok(Settled::NotInDoubt(self.record(&namespace, &key).await?))
                }
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            let body = wire_text(&MarkBody::of(&mark))?;
            let path = format!("/v1/records/{}", encode_key(&mark.key));
            let answer = self.ask(&mark.namespace, Method::PUT, path, Some(body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::CREATED => {
                    // What went for it, the server counts.
                    Ok(Marked::recorded(as_sent(self.wire.read(&answer)?)))
                }
                StatusCode::OK | StatusCode::CONFLICT if answer.unsure => Err(self.wire.not_its_own()),
                StatusCode::OK => Ok(Marked::Exists(as_sent(self.wire.read(&answer)?))),
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
            // A second time could take what was recorded in between.
            let answer = self.send(&namespace, Method::DELETE, path, None, Duration::ZERO, Resend::Never).await?;
            match answer.status {
                StatusCode::NO_CONTENT => Ok(Removed::Removed),
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
            let asked = self.ask_any_with(Method::POST, path, json!({"expired": true}).to_string()).await?;
            // Who may not ask for it need not: the server sweeps by itself.
            if asked.status == StatusCode::FORBIDDEN { Ok(0) } else { self.count_of(&asked) }
        })
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        let body = json!({"oldest": count.min(1_000_000_000)}).to_string();
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
            let mut path = format!("/v1/records?limit={}", limit.clamp(1, MAX_PAGE));
            let state = filter.state.map(|s| s.as_str().to_string());
            let order = (filter.order == Order::NewestFirst).then(|| "desc".to_string());
            let within = filter.expiring_within.map(|within| at_most(within).to_string());
            for (name, value) in [
                ("actionType", filter.action_type),
                ("target", filter.target),
                ("signalId", filter.signal_id),
                ("state", state),
                ("expiringWithin", within),
                ("order", order),
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
            Ok(Page { records: page.records.into_iter().map(as_sent).collect(), next: page.next })
        })
    }

    fn count(&self, _: Arc<str>, _: Counters, _: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        // The server has counted already.
        let closed = *self.closed.borrow();
        let answer = if closed { Err(StoreError::Closed { store: self.wire.location.clone() }) } else { Ok(()) };
        Box::pin(std::future::ready(answer))
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.looked(namespace, "/v1/stats")
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let path = "/v1/stats/reset".to_string();
            let answer = self.ask(&namespace, Method::POST, path, Some("{}".into()), Duration::ZERO).await?;
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
            let mut closed = self.closed.subscribe();
            let asked = self.ask(&namespace, Method::GET, path, None, wait);
            let answer = tokio::select! {
                answer = asked => answer?,
                // An error means that the store has gone, and nobody waits then.
                _ = closed.wait_for(|closed| *closed) => {
                    return Err(StoreError::Closed { store: self.wire.location.clone() });
                }
            };
            match answer.status {
                StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
                _ => Err(self.wire.refused(&answer)),
            }
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        // What was asked before goes on to its end; who waits is woken.
        self.closed.send_replace(true);
        Box::pin(std::future::ready(Ok(())))
    }
}
