//! What is served at `/`: the dashboard. Its files are embedded in the binary,
//! each with its type, so that the server needs none beside it.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::app::App;

/// Scripts and styles come from here alone, nothing frames it, nothing is sent
/// elsewhere, and no text ever becomes markup: the scripts have no use for it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type, content.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("../assets/index.html")),
    ("/assets/app.css", CSS, include_str!("../assets/app.css")),
    ("/assets/theme.js", SCRIPT, include_str!("../assets/theme.js")),
    ("/assets/app.js", SCRIPT, include_str!("../assets/app.js")),
    ("/assets/api.js", SCRIPT, include_str!("../assets/api.js")),
    ("/assets/dom.js", SCRIPT, include_str!("../assets/dom.js")),
    ("/assets/chart.js", SCRIPT, include_str!("../assets/chart.js")),
    ("/assets/overview.js", SCRIPT, include_str!("../assets/overview.js")),
    ("/assets/records.js", SCRIPT, include_str!("../assets/records.js")),
    ("/assets/record.js", SCRIPT, include_str!("../assets/record.js")),
    ("/assets/settle.js", SCRIPT, include_str!("../assets/settle.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("../assets/icon.svg")),
];

pub(crate) fn routes() -> Router<App> {
    FILES.iter().fold(Router::new(), |router, &(path, content_type, content)| {
        let digest = Sha256::digest(content);
        let tag: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let tag = HeaderValue::from_str(&format!("\"{tag}\"")).ok();
        let answer = move |headers: HeaderMap| async move { file(&headers, content_type, content, tag) };
        router.route(path, get(answer))
    })
}

/// The file, or that it is the one which the browser has.
fn file(headers: &HeaderMap, content_type: &'static str, content: &'static str, tag: Option<HeaderValue>) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|known| {
        tag.as_ref().and_then(|t| t.to_str().ok()).is_some_and(|tag| known.split(',').any(|k| k.trim() == tag))
    });
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { content.into_response() };
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // Asked for each time, answered with a 304: a new server is never seen with old scripts.
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(tag) = tag {
        headers.insert(header::ETAG, tag);
    }
    response
}
