//! The API under `/v1`: what the library does, over HTTP.
//!
//! Each handler says beside itself what it answers; the OpenAPI document is
//! made from that, so that neither can change alone.

pub(crate) mod body;
mod claims;
mod events;
mod keys;
mod manage;
mod overview;
mod records;

use utoipa_axum::router::OpenApiRouter;

pub(crate) use self::body::{collect, is_json};
use crate::app::App;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(claims::routes())
        .merge(records::routes())
        .merge(keys::routes())
        .merge(manage::routes())
        .merge(events::routes())
        .merge(overview::routes())
}
