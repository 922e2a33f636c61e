//! Traces by OTLP: a collector in the test gets the spans, and nothing secret in them.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use common::{serve, token};
use hapax_http::telemetry::{LogFormat, start};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_the_spans_and_nothing_secret() {
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let seen = got.clone();
    let collector = Router::new().route(
        "/v1/traces",
        post(move |body: Bytes| async move {
            seen.lock().unwrap().extend_from_slice(&body);
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, collector).await.unwrap() });
    // Its client is a blocking one.
    let telemetry =
        tokio::task::spawn_blocking(move || start(LogFormat::Text, "off", Some(&endpoint))).await.unwrap().unwrap();

    let server = serve(&token("secret-token", "default", "admin")).await;
    let http = server.client().bearer("secret-token");
    let claim = json!({"actionType": "charge", "target": "stripe", "params": {"card": "secret-params"}});
    let claimed = http.post("/v1/claims", &claim).await.is(201).json();
    let (attempt, key) = (claimed["attemptId"].as_str().unwrap(), claimed["key"].as_str().unwrap());
    http.complete(attempt, key, &json!("secret-result")).await.is(200);
    http.get(&format!("/v1/records/{}?wait=1ms", hapax_http::path::encode(key))).await.is(200);
    server.stop().await;
    // What is left is sent when it is dropped.
    let flushed = tokio::task::spawn_blocking(move || drop(telemetry));
    tokio::time::timeout(Duration::from_secs(20), flushed).await.expect("it ends").unwrap();

    let bytes = got.lock().unwrap().clone();
    let text = String::from_utf8_lossy(&bytes);
    for wanted in ["http.request", "/v1/claims", "/v1/records/{key}", "hapax.claim_remote", "charge", key] {
        assert!(text.contains(wanted), "{wanted} is missing in {} bytes of spans", bytes.len());
    }
    for secret in ["secret-token", "secret-params", "secret-result"] {
        assert!(!text.contains(secret), "{secret} is in a span");
    }
}
