//! Claims: the right to run an action, held by a client elsewhere.
//!
//! The server keeps nothing of a claim. Key and attempt id, which the client
//! brings with every request, name it in the store, so that any server on that
//! store can answer, before and after a restart.

use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use hapax::{
    AttemptId, Error, InFlight, Key, LEASE_TAG, MAX_ERROR_BYTES, MAX_TAG_BYTES, MAX_TAGS, RemoteCall, RemoteClaimed,
    RemoteEnd, Replay, State as KeyState, TTL_TAG, Ttl,
};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Body, action_of, json_of, json_response};
use crate::access::{Claimer, Pass, Writer};
use crate::app::{App, Tenant};
use crate::openapi::{Common, Conflict, Full, Mismatch, Sent};
use crate::path::{encode_key, is_step};
use crate::problem::{Kind, Problem, REPLAYED};
use crate::schema::{
    ClaimRequest, ClaimedAnswer, CompleteRequest, EndedAnswer, FailRequest, FailureClass, HeartbeatAnswer,
    HeartbeatRequest, Outcome, PendingAnswer, ReleaseRequest, ReplayedAnswer,
};
use crate::units::{Keep, Span};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(claim))
        .routes(routes!(heartbeat))
        .routes(routes!(complete))
        .routes(routes!(fail))
        .routes(routes!(release))
}

/// Claim a key
///
/// Either the key is yours (`201`), or the action ran before and this is its result (`200`), or another caller
/// runs it still and the wait ran out (`202`). Waits are held open and end at once when the attempt ends.
///
/// The keys `.` and `..` are refused, since no path can name their records.
///
/// A client that gets no answer sends the same claim again with the same `attemptId` and gets the same attempt.
#[utoipa::path(
    post, path = "/v1/claims", tag = "claims", request_body = ClaimRequest, operation_id = "claim",
    responses(
        (status = 201, description = "The key is yours: run the action, send heartbeats, then complete, fail or release",
            body = ClaimedAnswer, headers(("Idempotency-Replayed" = String, description = "`false`"),
            ("Location" = String, description = "The record"))),
        (status = 200, description = "The action ran before; this is its result or its error",
            body = ReplayedAnswer, headers(("Idempotency-Replayed" = String, description = "`true`"))),
        (status = 202, description = "The wait ran out while another caller runs the action", body = PendingAnswer,
            headers(("Retry-After" = u64, description = "Seconds after which to ask again"))),
        Common, Sent, Conflict, Mismatch, Full
    )
)]
async fn claim(
    State(app): State<App>,
    Claimer(pass): Claimer,
    Body(request): Body<ClaimRequest>,
) -> Result<Response, Problem> {
    let tenant = &pass.tenant;
    let call = call_of(request, app.limits().max_wait, &tenant.hapax)?;
    let began = Instant::now();
    let answer = tokio::select! {
        biased;
        answer = tenant.hapax.claim_remote(&call) => answer,
        // Nothing is lost: the same claim, sent again elsewhere, goes on where this one was.
        () = app.closing() => Err(Error::ShuttingDown),
        () = async { app.term(pass.clone()).over().await } => {
            app.metrics().claim("error", began.elapsed());
            return Err(Pass::lost());
        }
    };
    app.metrics().claimed(&answer, began.elapsed());
    match answer {
        Ok(RemoteClaimed::Started(claim)) => {
            tenant.touch(&claim.key);
            let location = HeaderValue::from_str(&format!("/v1/records/{}", encode_key(&claim.key)));
            let answer = ClaimedAnswer {
                outcome: Outcome::Claimed,
                attempt_id: claim.attempt,
                attempts: claim.attempts,
                lease: Span(claim.lease),
                heartbeat_every: Span(claim.lease / 3),
                started_at: claim.started_at,
                lease_until: claim.started_at.plus(claim.lease),
                key: claim.key,
            };
            let mut response = json_response(StatusCode::CREATED, &answer);
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("false"));
            if let Ok(location) = location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
        Ok(RemoteClaimed::Replay(replay)) => Ok(replayed(replay)),
        Err(Error::InFlight { key, owner, since, waited }) => {
            let answer = PendingAnswer {
                outcome: Outcome::InFlight,
                key,
                state: KeyState::InProgress,
                owner,
                since,
                waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            };
            let mut response = json_response(StatusCode::ACCEPTED, &answer);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

fn replayed(replay: Replay) -> Response {
    let Replay { key, answer, executed_at, duration_ms, .. } = replay;
    let (state, result, error) = match answer {
        Ok(result) => (KeyState::Completed, Some(result), None),
        Err(error) => (KeyState::Failed, None, Some(error)),
    };
    let answer = ReplayedAnswer { outcome: Outcome::Replayed, key, state, result, error, executed_at, duration_ms };
    let mut response = json_response(StatusCode::OK, &answer);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn call_of(request: ClaimRequest, max_wait: Duration, hapax: &hapax::Hapax) -> Result<RemoteCall, Problem> {
    let bad = |message: String| Problem::new(Kind::BadRequest, message);
    let ClaimRequest { key, signal_id, action_type, target, params, identity, fingerprint, .. } = request;
    if let Some(step) = key.as_ref().filter(|key| is_step(key)) {
        return Err(Problem::of_step(step));
    }
    if fingerprint.is_some() && key.is_none() {
        return Err(bad("a fingerprint without params needs a key of the caller's own".into()));
    }
    // Params that come with their fingerprint are kept as they come, and not read.
    let (read, kept) = if fingerprint.is_some() { (None, params) } else { (params, None) };
    let (mut action, mut policy) = action_of(key, signal_id, action_type, target, read.as_deref(), identity)?;
    let tags = request.tags.unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(bad(format!("there are {} tags and the limit is {MAX_TAGS}", tags.len())));
    }
    for (name, value) in tags {
        if name.starts_with("hapax.") {
            return Err(bad(format!("the tag {name:?} is the server's: names that begin with `hapax.` are taken")));
        }
        if name.len() > MAX_TAG_BYTES || value.len() > MAX_TAG_BYTES {
            return Err(bad(format!("a tag is longer than {MAX_TAG_BYTES} bytes: shorten it")));
        }
        action = action.tag(name, value);
    }
    if let Some(Keep(ttl)) = request.ttl {
        policy = policy.ttl(ttl);
        // The attempt may be ended at another server, or after a restart: the record remembers.
        action = action.tag(
            TTL_TAG,
            match ttl {
                Ttl::For(ttl) => ttl.as_millis().to_string(),
                Ttl::Never => "never".into(),
            },
        );
    }
    if let Some(Span(lease)) = request.lease {
        policy = policy.lease(lease);
        // Its heartbeats may name none.
        action = action.tag(LEASE_TAG, lease.as_millis().to_string());
    }
    if let Some(choice) = request.on_doubt {
        policy = policy.on_doubt(choice.into());
    }
    if let Some(keep) = request.keep_params {
        policy = policy.keep_params(keep.into());
    }
    let wait = request.wait.map_or_else(|| hapax.config().policy.in_flight, |wait| wait.0);
    policy = policy.in_flight(match wait {
        InFlight::Wait(wait) => InFlight::Wait(wait.min(max_wait)),
        InFlight::Reject => InFlight::Reject,
    });
    let mut call = RemoteCall::new(action.policy(policy));
    if let Some(fingerprint) = fingerprint {
        call = call.fingerprint(fingerprint).kept_params(json_of(kept.as_deref())?);
    }
    if let Some(attempt) = request.attempt_id {
        call = call.attempt(attempt);
    }
    if let Some(owner) = request.owner {
        call = call.owner(owner.checked()?);
    }
    if let Some(of) = request.take_over {
        call = call.take_over(of);
    }
    Ok(call)
}

/// Renew the lease of an attempt
///
/// A lease that had lapsed is not revived: the answer is a problem `in-doubt`, and the attempt may still complete.
#[utoipa::path(
    post, path = "/v1/claims/{attemptId}/heartbeat", tag = "claims", request_body = HeartbeatRequest,
    operation_id = "heartbeat", params(AttemptPath),
    responses((status = 200, description = "The lease runs anew", body = HeartbeatAnswer), Common, Sent, Conflict)
)]
async fn heartbeat(
    Writer(tenant): Writer,
    Attempt(attempt): Attempt,
    Body(request): Body<HeartbeatRequest>,
) -> Result<Response, Problem> {
    let lease = request.lease.map(|lease| lease.0);
    let lease_until = tenant.hapax.heartbeat_remote(&request.key, attempt, lease).await?;
    Ok(json_response(StatusCode::OK, &HeartbeatAnswer { lease_until }))
}

/// Record the result of an attempt
///
/// The same completion sent again, after a lost answer, gets the same answer.
#[utoipa::path(
    post, path = "/v1/claims/{attemptId}/complete", tag = "claims", request_body = CompleteRequest,
    operation_id = "complete", params(AttemptPath),
    responses((status = 200, description = "The result is recorded, as durably as the store promises",
        body = EndedAnswer), Common, Sent, Conflict)
)]
async fn complete(
    State(app): State<App>,
    Writer(tenant): Writer,
    Attempt(attempt): Attempt,
    Body(request): Body<CompleteRequest>,
) -> Result<Response, Problem> {
    let end = RemoteEnd::Complete {
        result: json_of(request.result.as_deref())?,
        ttl: request.ttl.map(|ttl| ttl.0),
        duration: request.duration_ms.map(Duration::from_millis),
    };
    ended(&app, &tenant, request.key, attempt, end).await
}

/// End an attempt with an error
///
/// By default the error is recorded for good: every later call gets it. With `class: unknown` the key is in doubt,
/// with `class: retryable` it is free again.
#[utoipa::path(
    post, path = "/v1/claims/{attemptId}/fail", tag = "claims", request_body = FailRequest,
    operation_id = "fail", params(AttemptPath),
    responses((status = 200, description = "It is so", body = EndedAnswer), Common, Sent, Conflict)
)]
async fn fail(
    State(app): State<App>,
    Writer(tenant): Writer,
    Attempt(attempt): Attempt,
    Body(request): Body<FailRequest>,
) -> Result<Response, Problem> {
    if request.error.len() > MAX_ERROR_BYTES {
        return Err(Problem::new(
            Kind::BadRequest,
            format!("the error is longer than {MAX_ERROR_BYTES} bytes: shorten it"),
        ));
    }
    let end = match request.class.unwrap_or(FailureClass::Permanent) {
        FailureClass::Retryable => RemoteEnd::Release,
        FailureClass::Unknown => RemoteEnd::Doubt { reason: request.error },
        FailureClass::Permanent => RemoteEnd::Fail {
            error: request.error,
            ttl: request.ttl.map(|ttl| ttl.0),
            duration: request.duration_ms.map(Duration::from_millis),
        },
    };
    ended(&app, &tenant, request.key, attempt, end).await
}

/// Free the key of an attempt
///
/// For an attempt whose effect did not happen and will not: the action runs when it is next called for. After a
/// take-over the doubt before it stays, unless `everyAttempt` says that someone has looked.
#[utoipa::path(
    post, path = "/v1/claims/{attemptId}/release", tag = "claims", request_body = ReleaseRequest,
    operation_id = "release", params(AttemptPath),
    responses((status = 200, description = "The key is free", body = EndedAnswer), Common, Sent, Conflict)
)]
async fn release(
    State(app): State<App>,
    Writer(tenant): Writer,
    Attempt(attempt): Attempt,
    Body(request): Body<ReleaseRequest>,
) -> Result<Response, Problem> {
    let end = if request.every_attempt == Some(true) { RemoteEnd::ReleaseAll } else { RemoteEnd::Release };
    ended(&app, &tenant, request.key, attempt, end).await
}

async fn ended(app: &App, tenant: &Tenant, key: Key, attempt: AttemptId, end: RemoteEnd) -> Result<Response, Problem> {
    let ended = tenant.hapax.end_remote(&key, attempt, end).await;
    tenant.touch(&key);
    let ended = ended?;
    if let Some(duration) = ended.duration {
        app.metrics().action(duration);
    }
    Ok(json_response(
        StatusCode::OK,
        &EndedAnswer { key, state: ended.state, at: ended.at, expires_at: ended.expires_at },
    ))
}

/// The attempt in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path, rename_all = "camelCase")]
#[allow(dead_code)] // for the document
struct AttemptPath {
    /// The attempt's id, as the claim gave it.
    #[param(format = Uuid)]
    attempt_id: String,
}

struct Attempt(AttemptId);

impl<S: Send + Sync> FromRequestParts<S> for Attempt {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = |message: String| Problem::new(Kind::BadRequest, message);
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|e| bad(e.body_text()))?;
        text.parse().map(Self).map_err(bad)
    }
}
