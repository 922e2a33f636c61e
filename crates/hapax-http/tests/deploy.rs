//! What is deployed agrees with the server: the dashboard asks for no number that is not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::serve;
use serde_json::json;

/// The names of hapax's numbers in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("hapax_")).collect()
}

#[tokio::test]
async fn every_number_of_the_dashboard_is_in_the_metrics() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/grafana.json");
    let dashboard = std::fs::read_to_string(path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&dashboard).expect("it is JSON");
    assert!(value["panels"].as_array().is_some_and(|panels| !panels.is_empty()), "it has panels");
    let server = serve("").await;
    let http = server.client();
    let attempt = http.claim(&json!({"key": "k"})).await;
    http.complete(&attempt, "k", &json!(1)).await.is(200);
    let metrics = String::from_utf8(http.get("/metrics").await.is(200).body.to_vec()).unwrap();
    let (asked, there) = (names(&dashboard), names(&metrics));
    assert!(asked.len() > 10, "{asked:?}");
    let missing: Vec<_> = asked.difference(&there).collect();
    assert!(missing.is_empty(), "the dashboard asks for {missing:?}, which /metrics does not have");
    server.stop().await;
}
