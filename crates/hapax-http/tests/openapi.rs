//! The OpenAPI document is checked in, and as the code has it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

/// Writes it anew with `HAPAX_BLESS=1 cargo test -p hapax-http --test openapi`.
#[test]
fn the_document_that_is_checked_in_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let made = hapax_http::openapi::document();
    if std::env::var_os("HAPAX_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "openapi.json is not current: run HAPAX_BLESS=1 cargo test -p hapax-http --test openapi");
}

#[test]
fn it_is_3_1_and_every_answer_of_success_says_what_it_is() {
    let document: serde_json::Value = serde_json::from_str(&hapax_http::openapi::document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let mut count = 0;
    for operation in operations {
        count += 1;
        let id = operation["operationId"].as_str().unwrap();
        assert!(operation["summary"].is_string(), "{id} has no summary");
        for (status, answer) in operation["responses"].as_object().unwrap() {
            assert!(answer["content"].is_object() || status == "204", "{id} {status} says nothing of its body");
        }
    }
    assert_eq!(count, 21);
    let claim = &document["paths"]["/v1/claims"]["post"]["responses"];
    for status in ["200", "201"] {
        assert!(claim[status]["headers"]["Idempotency-Replayed"].is_object());
    }
}
