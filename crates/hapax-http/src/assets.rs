//! What is served at `/`: the dashboard's place. Its files are embedded in the
//! binary, each with its type, so that the server needs none beside it.

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header;

use crate::app::App;

/// Scripts and styles come from here alone, nothing frames it, nothing is sent elsewhere.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, content type, content.
const FILES: &[(&str, &str, &str)] = &[("/", "text/html; charset=utf-8", include_str!("../assets/index.html"))];

pub(crate) fn routes() -> Router<App> {
    FILES.iter().fold(Router::new(), |router, (path, content_type, content)| {
        let answer = move || async move {
            ([(header::CONTENT_TYPE, *content_type), (header::CONTENT_SECURITY_POLICY, POLICY)], *content)
                .into_response()
        };
        router.route(path, get(answer))
    })
}
