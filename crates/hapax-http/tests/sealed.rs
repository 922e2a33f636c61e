//! What a server seals at rest: nothing readable in the files, keys rotated by id, and no second run under a wrong key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::serve;
use serde_json::json;

const SECRETS: [&str; 4] = ["secret-params-1", "secret-result-2", "secret-error-3", "secret-doubt-4"];

fn settings(dir: &Path, current: &str, keys: &[(&str, &str)]) -> String {
    let mut toml = format!("store = \"sqlite:{}/hapax.db\"\n[encryption]\ncurrent = \"{current}\"\n", dir.display());
    for (id, digit) in keys {
        let file = dir.join(format!("{id}-{digit}.key"));
        std::fs::write(&file, digit.repeat(64)).unwrap();
        toml += &format!("[[encryption.key]]\nid = \"{id}\"\nfile = \"{}\"\n", file.display());
    }
    toml
}

/// All that the store wrote.
fn written(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    files.filter(|f| f.extension().is_none_or(|e| e != "key")).flat_map(|f| std::fs::read(f).unwrap()).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn nothing_secret_lies_in_the_files_and_keys_are_rotated_by_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&settings(dir.path(), "old", &[("old", "1")])).await;
    let http = server.client();
    let [params, result, error, doubt] = SECRETS;
    let claim = json!({"key": "done", "params": {"card": params}});
    let attempt = http.claim(&claim).await;
    http.complete(&attempt, "done", &json!({"receipt": result})).await.is(200);
    let attempt = http.claim(&json!({"key": "failed"})).await;
    http.post(&format!("/v1/claims/{attempt}/fail"), &json!({"key": "failed", "error": error})).await.is(200);
    let attempt = http.claim(&json!({"key": "doubt"})).await;
    let unknown = json!({"key": "doubt", "error": doubt, "class": "unknown"});
    http.post(&format!("/v1/claims/{attempt}/fail"), &unknown).await.is(200);
    // While it runs, so that the log beside the file is looked at, and after.
    let running = written(dir.path());
    server.stop().await;
    for bytes in [running, written(dir.path())] {
        assert!(holds(&bytes, "hapax-sealed:1:old:"), "something is sealed");
        for secret in SECRETS {
            assert!(!holds(&bytes, secret), "{secret} can be read");
        }
    }

    // A new key seals, the old one opens what it sealed.
    let server = serve(&settings(dir.path(), "new", &[("new", "2"), ("old", "1")])).await;
    let http = server.client();
    assert_eq!(http.post("/v1/claims", &claim).await.is(200).json()["result"]["receipt"], result);
    assert_eq!(http.get("/v1/records/done").await.is(200).json()["params"]["card"], params);
    assert_eq!(http.get("/v1/records/failed").await.is(200).json()["error"], error);
    assert_eq!(http.get("/v1/records/doubt").await.is(200).json()["error"], doubt);
    let attempt = http.claim(&json!({"key": "later"})).await;
    http.complete(&attempt, "later", &json!("sealed anew")).await.is(200);
    server.stop().await;
    assert!(holds(&written(dir.path()), "hapax-sealed:1:new:"));

    // Without its key, or with another of its id, a result is neither shown nor made a second time.
    for (keys, says) in [
        (&[("new", "2")][..], "is sealed with the key \"old\", which is not in the ring"),
        (&[("new", "2"), ("old", "3")][..], "does not open with the key \"old\""),
    ] {
        let server = serve(&settings(dir.path(), "new", keys)).await;
        let http = server.client();
        let refused = http.post("/v1/claims", &claim).await;
        assert_eq!(refused.is(500).problem(), "internal");
        let detail = refused.json()["detail"].as_str().unwrap().to_string();
        assert!(detail.contains(says) && detail.contains("key done"), "{detail}");
        http.get("/v1/records/done").await.is(500);
        assert_eq!(http.get("/v1/records/later").await.is(200).json()["result"], "sealed anew");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_key_file_that_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let toml = settings(dir.path(), "old", &[("old", "1")]);
    for (content, says) in [(Some("too short"), "64 hexadecimal digits"), (None, "cannot be read")] {
        let file = dir.path().join("old-1.key");
        match content {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let mut config = hapax_http::ServeConfig::from_toml(&toml).unwrap();
        config.listen.set_port(0);
        let error = hapax_http::ApiServer::bind(config).await.expect_err("it cannot seal").to_string();
        assert!(error.contains("\"old\"") && error.contains(says), "{error}");
        assert!(!error.contains("too short"), "what stands in the file is not repeated: {error}");
    }
}
