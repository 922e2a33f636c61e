//! The router: the API, what describes it, and what watches over it.
//!
//! `/` is the dashboard's place: [`assets`](crate::assets) are embedded there.

use axum::Router;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::access::Reader;
use crate::app::App;
use crate::observe::Observe;
use crate::problem::{Kind, Problem};
use crate::{api, assets, docs, openapi};

/// The API's routes and what they say of themselves.
pub(crate) fn paths() -> (Router<App>, OpenApi) {
    OpenApiRouter::new().merge(api::routes()).split_for_parts()
}

/// The whole service.
pub fn router(app: App) -> Router {
    let (routes, paths) = paths();
    let document = openapi::complete(paths);
    // Shared, so that an answer which nobody takes holds no copy.
    let page = Bytes::from(docs::page(&document));
    let text = Bytes::from(serde_json::to_string_pretty(&document).unwrap_or_default() + "\n");
    routes
        .route("/openapi.json", get(move || content("application/json", text.clone())))
        .route("/docs", get(move || content("text/html; charset=utf-8", page.clone())))
        .merge(watched())
        .merge(assets::routes())
        .fallback(|request: Request| async move {
            Problem::new(Kind::NotFound, format!("there is no {}; /docs lists what there is", request.uri().path()))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let detail =
                format!("{} is not answered at {}; /docs lists what is", request.method(), request.uri().path());
            Problem::new(Kind::MethodNotAllowed, detail)
        })
        .layer(Observe(app.clone()))
        .with_state(app)
}

/// By what a process is watched.
fn watched() -> Router<App> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// That and nothing else, for a listener of its own.
pub(crate) fn admin(app: App) -> Router {
    watched()
        .fallback(|request: Request| async move {
            let path = request.uri().path();
            Problem::new(Kind::NotFound, format!("there is no {path} here, only /metrics, /healthz and /readyz"))
        })
        .layer(Observe(app.clone()))
        .with_state(app)
}

async fn content(content_type: &'static str, body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CONTENT_SECURITY_POLICY, docs::POLICY)], body).into_response()
}

/// Ready while the store answers and the server is not shutting down.
async fn ready(State(app): State<App>) -> Response {
    if app.is_closing() {
        return Problem::new(Kind::ShuttingDown, "the server is shutting down").into_response();
    }
    let asked = tokio::time::timeout(std::time::Duration::from_secs(2), app.look()).await;
    match asked {
        Ok(Ok(())) => "ready\n".into_response(),
        Ok(Err(error)) => Problem::from(error).into_response(),
        Err(_) => Problem::new(Kind::StoreUnavailable, "the store did not answer within 2 s").into_response(),
    }
}

async fn metrics(State(app): State<App>, request: Request) -> Response {
    // A token opens one namespace, and tells of no other.
    let only = if app.with_live(|live| live.config.public_metrics) {
        None
    } else {
        let (mut parts, _) = request.into_parts();
        match Reader::from_request_parts(&mut parts, &app).await {
            Ok(Reader(tenant)) => Some(tenant),
            Err(problem) => return problem.into_response(),
        }
    };
    let text = app.metrics().text(&app, only.as_deref()).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
