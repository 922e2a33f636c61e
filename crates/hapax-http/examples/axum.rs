//! `Idempotency-Key` for the routes of an axum service, and for the ids that GitHub sends with webhooks.
//!
//! `cargo run -p hapax-http --example axum`, then twice:
//! `curl -i -X POST -H 'Idempotency-Key: order-42' -H 'Content-Type: application/json' -d '{"amount":4200}' 127.0.0.1:8080/charge`

use axum::Router;
use axum::routing::post;
use hapax::Hapax;
use hapax_http::{Idempotency, IdempotencyLayer};
use http::HeaderName;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hapax = Hapax::open("sqlite:hapax.db").await?;
    let keys = Idempotency::default().require_key();
    let hooks = Idempotency::default().header(HeaderName::from_static("x-github-delivery"));
    let app = Router::new()
        .route("/charge", post(|body: String| async move { format!("charged {body}\n") }))
        .layer(IdempotencyLayer::new(hapax.clone(), keys))
        .merge(
            Router::new()
                .route("/hooks/github", post(|| async { "done\n" }))
                .layer(IdempotencyLayer::new(hapax, hooks)),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    Ok(axum::serve(listener, app).await?)
}
