//! Statistics, what the store holds, cleanup, and settings.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Body, json_response};
use crate::access::{Admin, Reader};
use crate::app::App;
use crate::openapi::{Common, Sent};
use crate::problem::{Kind, Problem};
use crate::schema::{CleanupRequest, ConfigAnswer, ConfigPatch, InfoAnswer, RemovedAnswer, Stats};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(stats))
        .routes(routes!(reset))
        .routes(routes!(info))
        .routes(routes!(cleanup))
        .routes(routes!(config, configure))
}

/// Get the statistics of the namespace
///
/// What happened so far, over all processes and restarts.
#[utoipa::path(
    get, path = "/v1/stats", tag = "statistics", operation_id = "getStats",
    responses((status = 200, description = "The statistics", body = Stats), Common)
)]
async fn stats(Reader(tenant): Reader) -> Result<Response, Problem> {
    Ok(json_response(StatusCode::OK, &tenant.hapax.stats().await?))
}

/// Set the counters of the namespace to zero
#[utoipa::path(
    post, path = "/v1/stats/reset", tag = "statistics", operation_id = "resetStats",
    responses((status = 204, description = "They are zero"), Common, Sent)
)]
async fn reset(Admin(tenant): Admin) -> Result<Response, Problem> {
    tenant.hapax.reset_stats().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Get what the store holds, and where
#[utoipa::path(
    get, path = "/v1/info", tag = "statistics", operation_id = "getInfo",
    responses((status = 200, description = "What it holds", body = InfoAnswer), Common)
)]
async fn info(State(app): State<App>, Reader(tenant): Reader) -> Result<Response, Problem> {
    Ok(json_response(StatusCode::OK, &InfoAnswer::new(tenant.hapax.info().await?, app.uptime())))
}

/// Remove records
///
/// The expired ones, which were absent to every call already; or, with `oldest`, results and errors before their
/// time, which may run again then.
#[utoipa::path(
    post, path = "/v1/cleanup", tag = "records", request_body = CleanupRequest, operation_id = "cleanup",
    responses((status = 200, description = "They are gone", body = RemovedAnswer), Common, Sent)
)]
async fn cleanup(Admin(tenant): Admin, Body(request): Body<CleanupRequest>) -> Result<Response, Problem> {
    let removed = match (request.expired, request.oldest) {
        (Some(true), Some(_)) => {
            return Err(Problem::new(Kind::BadRequest, "give `expired` or `oldest`, not both"));
        }
        (None | Some(true), None) => tenant.hapax.cleanup_expired().await?,
        (Some(false), None) => 0,
        (None | Some(false), Some(count)) => tenant.hapax.cleanup_oldest_entries(count.min(1_000_000_000)).await?,
    };
    Ok(json_response(StatusCode::OK, &RemovedAnswer { removed }))
}

/// Get the settings of the namespace
#[utoipa::path(
    get, path = "/v1/config", tag = "settings", operation_id = "getConfig",
    responses((status = 200, description = "The settings", body = ConfigAnswer), Common)
)]
async fn config(Reader(tenant): Reader) -> Result<Response, Problem> {
    Ok(json_response(StatusCode::OK, &answer(&tenant.hapax)))
}

/// Change settings of the namespace
///
/// For the calls to come, until the server restarts or reloads its file: nothing is written to the file.
#[utoipa::path(
    patch, path = "/v1/config", tag = "settings", request_body = ConfigPatch, operation_id = "patchConfig",
    responses((status = 200, description = "The settings from now on", body = ConfigAnswer), Common, Sent)
)]
async fn configure(Admin(tenant): Admin, Body(patch): Body<ConfigPatch>) -> Result<Response, Problem> {
    tenant.hapax.configure(|config| {
        let policy = &mut config.policy;
        set(&mut policy.ttl, patch.ttl.map(|ttl| ttl.0));
        set(&mut policy.in_flight, patch.wait.map(|wait| wait.0));
        set(&mut policy.on_doubt, patch.on_doubt.map(Into::into));
        set(&mut policy.lease, patch.lease.map(|lease| lease.0));
        set(&mut policy.keep_params, patch.keep_params.map(Into::into));
        set(&mut config.max_entries, patch.max_entries.map(Some));
        set(&mut config.on_full, patch.on_full);
        set(&mut config.max_result_bytes, patch.max_result_bytes);
        set(
            &mut config.auto_cleanup,
            patch.auto_cleanup.map(|every| match every.0 {
                hapax::Ttl::For(every) => Some(every),
                hapax::Ttl::Never => None,
            }),
        );
    })?;
    tracing::info!(
        namespace = tenant.hapax.config().namespace,
        "settings changed over HTTP, until a restart or reload"
    );
    Ok(json_response(StatusCode::OK, &answer(&tenant.hapax)))
}

fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(from) = from {
        *to = from;
    }
}

fn answer(hapax: &hapax::Hapax) -> ConfigAnswer {
    ConfigAnswer { config: serde_json::to_value(&*hapax.config()).unwrap_or_default(), persistent: false }
}
