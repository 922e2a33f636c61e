//! `/v1/overview`: what the dashboard shows beside the records.

use std::collections::HashMap;
use std::time::Duration;

use axum::response::Response;
use hapax::store::Filter;
use hapax::{Record, State, Stats as Counted, Timestamp};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::json_response;
use crate::access::{Role, Visitor};
use crate::app::App;
use crate::openapi::Common;
use crate::overview::{Minute, bare};
use crate::problem::Problem;
use crate::schema::{Record as RecordSchema, Stats};

/// Action types with their targets that are listed.
const KINDS: usize = 50;
/// Records in each list.
const LISTED: usize = 100;
/// Slowest executions listed.
const SLOWEST: usize = 10;
/// How near an end is soon.
const SOON: Duration = Duration::from_secs(60 * 60);

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(overview))
}

/// What a dashboard shows at a glance. Records come without params and results.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct OverviewAnswer {
    /// The server's version.
    version: &'static str,
    /// The tenant.
    namespace: String,
    /// Where the store is, without secrets.
    store: String,
    /// What the token allows.
    #[schema(value_type = RoleName)]
    role: Role,
    /// The store's clock.
    #[schema(value_type = String, format = DateTime)]
    now: Timestamp,
    #[schema(value_type = Stats)]
    stats: Counted,
    /// Since when the minutes are counted: since the server started, at most a day.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    since: Option<Timestamp>,
    /// The minutes of the last day in which something happened, oldest first.
    minutes: Vec<MinuteAnswer>,
    /// How many of the newest records `kinds`, `slowest` and `newest` come from; at most 1000.
    looked_at: usize,
    /// By action type and target, most frequent first; at most 50.
    kinds: Vec<Kind>,
    /// The slowest recorded executions; at most 10.
    #[schema(value_type = Vec<RecordSchema>)]
    slowest: Vec<Record>,
    /// The newest records, newest first; at most 100.
    #[schema(value_type = Vec<RecordSchema>)]
    newest: Vec<Record>,
    /// What is in doubt; at most 100.
    #[schema(value_type = Vec<RecordSchema>)]
    in_doubt: Vec<Record>,
    /// What runs now; at most 100.
    #[schema(value_type = Vec<RecordSchema>)]
    in_progress: Vec<Record>,
    /// What expires within the hour; at most 100.
    #[schema(value_type = Vec<RecordSchema>)]
    expiring: Vec<Record>,
}

/// What a token allows.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code)] // for the document
enum RoleName {
    Read,
    Write,
    Admin,
}

/// What was counted in a minute.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MinuteAnswer {
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Calls answered from the record.
    hits: u64,
    /// Calls that found no record.
    misses: u64,
    /// Calls whose action did not run again.
    duplicates_prevented: u64,
    /// Actions that ended in an error.
    failures: u64,
}

impl From<Minute> for MinuteAnswer {
    fn from(minute: Minute) -> Self {
        let Minute { at, hits, misses, duplicates, failures } = minute;
        let at = Timestamp::from_millis(at.saturating_mul(60_000));
        Self { at, hits, misses, duplicates_prevented: duplicates, failures }
    }
}

/// An action type and a target among the newest records.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Kind {
    action_type: String,
    target: String,
    /// Records.
    records: u64,
    /// Calls that presented their keys, replays included.
    calls: u64,
    /// Recorded errors.
    failed: u64,
    /// In doubt.
    in_doubt: u64,
    /// The longest recorded execution, in milliseconds.
    #[schema(required)]
    slowest_ms: Option<u64>,
}

fn kinds(records: &[Record]) -> Vec<Kind> {
    let mut kinds: HashMap<(&str, &str), Kind> = HashMap::new();
    for record in records {
        let kind = kinds.entry((&record.action_type, &record.target)).or_insert_with(|| Kind {
            action_type: record.action_type.clone(),
            target: record.target.clone(),
            records: 0,
            calls: 0,
            failed: 0,
            in_doubt: 0,
            slowest_ms: None,
        });
        kind.records += 1;
        kind.calls = kind.calls.saturating_add(record.attempt_count);
        kind.failed += u64::from(record.state == State::Failed);
        kind.in_doubt += u64::from(record.state == State::InDoubt);
        kind.slowest_ms = kind.slowest_ms.max(record.duration_ms);
    }
    let mut kinds: Vec<Kind> = kinds.into_values().collect();
    kinds.sort_by(|a, b| (b.records, &a.action_type, &a.target).cmp(&(a.records, &b.action_type, &b.target)));
    kinds.truncate(KINDS);
    kinds
}

fn slowest(records: &[Record]) -> Vec<Record> {
    let mut slowest: Vec<&Record> = records.iter().filter(|r| r.duration_ms.is_some()).collect();
    slowest.sort_by_key(|r| std::cmp::Reverse(r.duration_ms));
    slowest.into_iter().take(SLOWEST).cloned().collect()
}

/// Get an overview
///
/// What a dashboard shows at a glance. The minutes are kept in this server's memory; the kinds and the slowest come
/// from the newest records. The work on the store is bounded, however many records there are.
#[utoipa::path(
    get, path = "/v1/overview", tag = "statistics", operation_id = "getOverview",
    responses((status = 200, description = "The overview", body = OverviewAnswer), Common)
)]
async fn overview(Visitor(tenant, role): Visitor) -> Result<Response, Problem> {
    let hapax = &tenant.hapax;
    let stats = tenant.look().await?;
    let records = tenant.overview.newest(hapax).await?;
    let list = async |filter: Filter| -> Result<Vec<Record>, hapax::Error> {
        Ok(hapax.records(filter, None, LISTED).await?.records.into_iter().map(bare).collect())
    };
    let in_state = |state: State| Filter { state: Some(state), ..Filter::default() };
    let (since, minutes) = tenant.overview.minutes();
    let answer = OverviewAnswer {
        version: env!("CARGO_PKG_VERSION"),
        namespace: hapax.config().namespace.clone(),
        store: hapax.store().location().to_string(),
        role,
        now: hapax.store().now().await.map_err(hapax::Error::from)?,
        stats,
        since,
        minutes: minutes.into_iter().map(Into::into).collect(),
        looked_at: records.len(),
        kinds: kinds(&records),
        slowest: slowest(&records),
        in_doubt: list(in_state(State::InDoubt)).await?,
        in_progress: list(in_state(State::InProgress)).await?,
        expiring: list(Filter { expiring_within: Some(SOON), ..Filter::default() }).await?,
        newest: records.into_iter().take(LISTED).collect(),
    };
    Ok(json_response(StatusCode::OK, &answer))
}
