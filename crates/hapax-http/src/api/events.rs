//! `/v1/events`: what happens in a namespace, about once a second, as
//! server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Listener;
use crate::app::App;
use crate::openapi::Common;
use crate::problem::Problem;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Follow what happens
///
/// Server-sent events, about once a second: `stats` (the statistics, as `GET /v1/stats`), `record` (a record that
/// changed, without its params and result), `gone` (`{"key": …}`: a record that is absent now), `lagged` (some
/// were missed: look anew). The first is `stats`. The stream ends when the server shuts down, or reloads and the
/// token is gone or opens something else.
#[utoipa::path(
    get, path = "/v1/events", tag = "statistics", operation_id = "events",
    responses((status = 200, description = "A stream of events", content_type = "text/event-stream",
        body = String), Common)
)]
async fn events(State(app): State<App>, Listener(pass): Listener) -> Result<Response, Problem> {
    let heard = pass.tenant.feed.subscribe(&app, &pass.tenant)?;
    let term = app.term(pass);
    let stream = stream::unfold((heard, term, app), |(mut heard, mut term, app)| async move {
        let event = tokio::select! {
            biased;
            () = app.closing() => return None,
            // It connects again, and is asked again.
            () = term.over() => return None,
            event = heard.recv() => event,
        };
        let event = match event {
            Ok(news) => Event::default().event(news.kind).data(news.data.as_ref()),
            Err(RecvError::Lagged(missed)) => Event::default().event("lagged").data(missed.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), (heard, term, app)))
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(stream).keep_alive(keep_alive).into_response())
}
