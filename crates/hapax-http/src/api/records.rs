//! Records: looking at them, marking, settling, taking them away.

use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse, Response};
use hapax::store::{Filter, MAX_PAGE, Marked, Order, Settlement};
use hapax::{AttemptId, Key, Record, RemoteCall, State as KeyState, Ttl};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Body, action_of, json_of, json_response};
use crate::access::{Admin, Listener, Pass, Reader, Writer};
use crate::app::App;
use crate::openapi::{Common, Conflict, Full, Missing, Sent};
use crate::path::is_step;
use crate::problem::{Kind, Problem, REPLAYED};
use crate::schema::{
    MarkRequest, PageAnswer, Record as RecordSchema, RemovedAnswer, SettleRequest, SettledAnswer, State as StateSchema,
    Verdict,
};
use crate::units::Span;

/// Records on a page when not told otherwise.
const DEFAULT_PAGE: usize = 100;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, clear)).routes(routes!(get, mark, remove)).routes(routes!(settle))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// This key alone. Percent-encoded as any value in a query.
    #[param(value_type = Option<String>, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    key: Option<Key>,
    /// Of this action type.
    action_type: Option<String>,
    /// Of this target.
    target: Option<String>,
    /// Of this signal.
    signal_id: Option<String>,
    /// In this state.
    #[param(value_type = Option<StateSchema>)]
    state: Option<KeyState>,
    /// Whose result or error expires within this time from now.
    expiring_within: Option<Span>,
    /// By age: `asc`, oldest first, or `desc`, newest first. Default: `asc`.
    #[param(inline)]
    order: Option<OrderChoice>,
    /// Where the page begins: the last page's `next`, in the same order.
    cursor: Option<String>,
    /// The most records on the page, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// In which order records come.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
enum OrderChoice {
    Asc,
    Desc,
}

/// List records
///
/// A page of records, oldest first unless `order=desc`. Every filter narrows it.
#[utoipa::path(
    get, path = "/v1/records", tag = "records", params(ListQuery), operation_id = "listRecords",
    responses((status = 200, description = "A page", body = PageAnswer), Common)
)]
async fn list(Reader(tenant): Reader, Asked(query): Asked<ListQuery>) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::new(Kind::BadRequest, format!("limit is {limit}; it must be 1 to {MAX_PAGE}")));
    }
    if let Some(key) = &query.key {
        let records = tenant.hapax.record(key).await?.into_iter().collect();
        return Ok(json_response(StatusCode::OK, &PageAnswer { records, next: None }));
    }
    let filter = Filter {
        action_type: query.action_type,
        target: query.target,
        signal_id: query.signal_id,
        state: query.state,
        expiring_within: query.expiring_within.map(|within| within.0),
        order: match query.order {
            None | Some(OrderChoice::Asc) => Order::OldestFirst,
            Some(OrderChoice::Desc) => Order::NewestFirst,
        },
    };
    let page = tenant.hapax.records(filter, query.cursor, limit).await?;
    Ok(json_response(StatusCode::OK, &PageAnswer { records: page.records, next: page.next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ClearQuery {
    /// Must be `all`: a word against an accident.
    #[param(value_type = All, inline)]
    confirm: Option<String>,
}

/// A word against an accident.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)] // for the document
enum All {
    All,
}

/// Clear the namespace
///
/// Removes all recorded results and errors; what is in progress or in doubt stays.
#[utoipa::path(
    delete, path = "/v1/records", tag = "records", params(ClearQuery), operation_id = "clearRecords",
    responses((status = 200, description = "They are gone", body = RemovedAnswer), Common)
)]
async fn clear(Admin(tenant): Admin, Asked(query): Asked<ClearQuery>) -> Result<Response, Problem> {
    if query.confirm.as_deref() != Some("all") {
        return Err(Problem::new(
            Kind::BadRequest,
            "this removes all recorded results of the namespace: say so with ?confirm=all",
        ));
    }
    let removed = tenant.hapax.clear_all().await?;
    tracing::info!(namespace = tenant.hapax.config().namespace, removed, "records cleared");
    Ok(json_response(StatusCode::OK, &RemovedAnswer { removed }))
}

/// The key in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)] // for the document
struct KeyPath {
    /// The key, percent-encoded as one segment: `%` as `%25`, `/` as `%2F`.
    #[param(min_length = 1, max_length = 512, pattern = "^[!-~]+$", example = "k-1")]
    key: String,
}

struct KeyInPath(Key);

impl<S: Send + Sync> FromRequestParts<S> for KeyInPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::new(Kind::InvalidKey, e.body_text()))?;
        Key::given(&text).map(Self).map_err(|e| Problem::new(Kind::InvalidKey, e.to_string()))
    }
}

/// A query string, read strictly.
struct Asked<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(query) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::new(Kind::BadRequest, e.body_text()))?;
        Ok(Self(query))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct GetQuery {
    /// Wait at most this long while the key is in progress; the server caps it.
    wait: Option<Span>,
    /// Wait only while it is in progress by this attempt.
    #[param(value_type = Option<String>, format = Uuid)]
    attempt_id: Option<AttemptId>,
}

/// Get a record
///
/// Whatever its state. With `wait` the answer is held while an attempt runs, and comes at once when it ends.
#[utoipa::path(
    get, path = "/v1/records/{key}", tag = "records", params(KeyPath, GetQuery), operation_id = "getRecord",
    responses((status = 200, description = "The record", body = RecordSchema), Common, Missing)
)]
async fn get(
    State(app): State<App>,
    Listener(pass): Listener,
    KeyInPath(key): KeyInPath,
    Asked(query): Asked<GetQuery>,
) -> Result<Response, Problem> {
    let tenant = &pass.tenant;
    let wait = query.wait.map_or(Duration::ZERO, |wait| wait.0.min(app.limits().max_wait));
    let began = Instant::now();
    loop {
        let record = tenant.hapax.record(&key).await?;
        let running = |r: &Record| {
            r.state == KeyState::InProgress && query.attempt_id.is_none_or(|attempt| attempt == r.attempt_id)
        };
        let left = wait.saturating_sub(began.elapsed());
        match record {
            Some(record) if running(&record) && !left.is_zero() && !app.is_closing() => {
                let store = tenant.hapax.store();
                let namespace = tenant.hapax.config().namespace.as_str().into();
                tokio::select! {
                    changed = store.changed(namespace, key.clone(), record.attempt_id, left) => {
                        changed.map_err(hapax::Error::from)?;
                    }
                    () = app.closing() => {}
                    () = async { app.term(pass.clone()).over().await } => return Err(Pass::lost()),
                }
            }
            Some(record) => return Ok(json_response(StatusCode::OK, &record)),
            None => return Err(absent(&key)),
        }
    }
}

fn absent(key: &Key) -> Problem {
    Problem::new(Kind::NotFound, format!("there is no record of key {key}")).key(key)
}

/// Record a result by hand
///
/// For a key that is absent or in doubt. Over a recorded result or error it changes nothing and answers `200` with
/// what is recorded.
#[utoipa::path(
    put, path = "/v1/records/{key}", tag = "records", params(KeyPath), request_body = MarkRequest,
    operation_id = "markRecord",
    responses(
        (status = 201, description = "The result is recorded", body = RecordSchema,
            headers(("Idempotency-Replayed" = String, description = "`false`"))),
        (status = 200, description = "There was a recorded result or error; nothing changed", body = RecordSchema,
            headers(("Idempotency-Replayed" = String, description = "`true`"))),
        Common, Sent, Conflict, Full
    )
)]
async fn mark(
    Writer(tenant): Writer,
    KeyInPath(key): KeyInPath,
    Body(request): Body<MarkRequest>,
) -> Result<Response, Problem> {
    if is_step(&key) {
        return Err(Problem::of_step(&key));
    }
    let result = json_of(request.result.as_deref())?;
    if request.params.is_some() && request.fingerprint.is_none() {
        return Err(
            Problem::new(Kind::BadRequest, "params without their fingerprint are not kept: give both").key(&key)
        );
    }
    let (signal, action_type) = (request.signal_id, request.action_type);
    let (action, _) = action_of(Some(key.clone()), signal, action_type, request.target, None, None)?;
    let mut call = RemoteCall::new(action);
    if let Some(fingerprint) = request.fingerprint {
        call = call.fingerprint(fingerprint);
    }
    if let Some(params) = request.params {
        call = call.kept_params(json_of(Some(&params))?);
    }
    if let Some(attempt) = request.attempt_id {
        call = call.attempt(attempt);
    }
    if let Some(owner) = request.owner {
        call = call.owner(owner.checked()?);
    }
    let marked = tenant.hapax.mark_remote(&call, result, request.ttl.map(|ttl| ttl.0)).await?;
    tenant.touch(&key);
    let (status, replayed, record) = match marked {
        Marked::Recorded { record, .. } => (StatusCode::CREATED, "false", record),
        Marked::Exists(record) => (StatusCode::OK, "true", record),
    };
    let mut response = json_response(status, &record);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static(replayed));
    Ok(response)
}

/// Remove a recorded result or error
///
/// The action runs again when it is next called for. What is in progress or in doubt is not removed: settle it.
#[utoipa::path(
    delete, path = "/v1/records/{key}", tag = "records", params(KeyPath), operation_id = "removeRecord",
    responses((status = 204, description = "It is gone"), Common, Missing, Conflict)
)]
async fn remove(Admin(tenant): Admin, KeyInPath(key): KeyInPath) -> Result<Response, Problem> {
    let removed = tenant.hapax.clear_key(&key).await?;
    tenant.touch(&key);
    if removed { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(absent(&key)) }
}

/// Settle a key in doubt
///
/// Say whether the effect happened. The answer counts from now on: a late attempt that comes back has lost its claim.
#[utoipa::path(
    post, path = "/v1/records/{key}/settle", tag = "records", params(KeyPath), request_body = SettleRequest,
    operation_id = "settleRecord",
    responses((status = 200, description = "It is settled", body = SettledAnswer), Common, Sent, Missing, Conflict)
)]
async fn settle(
    Writer(tenant): Writer,
    KeyInPath(key): KeyInPath,
    Body(request): Body<SettleRequest>,
) -> Result<Response, Problem> {
    let settlement = match request.verdict {
        Verdict::Happened => Settlement::Happened {
            result: json_of(request.result.as_deref())?,
            ttl: request.ttl.map_or_else(|| tenant.hapax.config().policy.ttl, |ttl| ttl.0),
        },
        Verdict::NotHappened if request.result.is_some() => {
            return Err(Problem::new(Kind::BadRequest, "what did not happen has no result: leave it out").key(&key));
        }
        Verdict::NotHappened => Settlement::NotHappened,
    };
    if let Settlement::Happened { ttl: Ttl::For(ttl), .. } = &settlement
        && ttl.is_zero()
    {
        return Err(Problem::new(Kind::BadRequest, "ttl is zero: give a duration or `never`").key(&key));
    }
    let record = match request.attempt_id {
        Some(attempt) => tenant.hapax.settle_attempt(&key, attempt, settlement).await?,
        None => tenant.hapax.settle(&key, settlement).await?,
    };
    tenant.touch(&key);
    Ok(json_response(StatusCode::OK, &SettledAnswer { key, record }))
}
