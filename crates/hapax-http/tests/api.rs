//! The API over real sockets: every answer that it gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::{serve, token};
use hapax_http::path::encode;
use http::Method;
use serde_json::json;

#[tokio::test]
async fn claim_complete_replay() {
    let server = serve("").await;
    let http = server.client();
    let action = json!({"signalId": "signal-123", "actionType": "create_task", "target": "trello",
        "params": {"name": "Task", "id": 123}});
    let key = "signal-123:create_task:trello:1557ebfc75da3109";
    let claimed = http.post("/v1/claims", &action).await;
    assert_eq!(claimed.is(201).header("idempotency-replayed"), Some("false"));
    assert_eq!(claimed.header("location"), Some(format!("/v1/records/{}", encode(key)).as_str()));
    assert_eq!(claimed.json()["key"], key);
    let attempt = claimed.json()["attemptId"].as_str().unwrap().to_string();

    http.post(&format!("/v1/claims/{attempt}/heartbeat"), &json!({"key": key, "lease": "30s"})).await.is(200);
    http.complete(&attempt, key, &json!({"card": 1})).await.is(200);
    http.complete(&attempt, key, &json!({"card": 1})).await.is(200);
    let again = http.post("/v1/claims", &action).await;
    assert_eq!(again.is(200).header("idempotency-replayed"), Some("true"));
    assert_eq!(again.json()["result"], json!({"card": 1}));

    let other = json!({"key": key, "actionType": "create_task", "target": "trello", "params": 2});
    assert_eq!(http.post("/v1/claims", &other).await.is(422).problem(), "params-mismatch");
    let late = http.post(&format!("/v1/claims/{attempt}/heartbeat"), &json!({"key": key})).await;
    assert_eq!(late.is(409).problem(), "lost-claim");
    server.stop().await;
}

#[tokio::test]
async fn a_failure_is_replayed_a_release_frees_a_doubt_is_settled() {
    let server = serve("").await;
    let http = server.client();
    let attempt = http.claim(&json!({"key": "f"})).await;
    let fail = json!({"key": "f", "error": "no such card"});
    assert_eq!(http.post(&format!("/v1/claims/{attempt}/fail"), &fail).await.is(200).json()["state"], "failed");
    let replay = http.post("/v1/claims", &json!({"key": "f"})).await;
    assert_eq!(
        (replay.is(200).json()["error"].clone(), replay.json()["state"].clone()),
        ("no such card".into(), "failed".into())
    );

    let attempt = http.claim(&json!({"key": "r"})).await;
    let released = http.post(&format!("/v1/claims/{attempt}/release"), &json!({"key": "r"})).await;
    assert!(released.is(200).json()["state"].is_null());
    http.claim(&json!({"key": "r"})).await;

    let attempt = http.claim(&json!({"key": "d"})).await;
    let doubt = json!({"key": "d", "error": "connection lost", "class": "unknown"});
    http.post(&format!("/v1/claims/{attempt}/fail"), &doubt).await.is(200);
    let refused = http.post("/v1/claims", &json!({"key": "d"})).await;
    assert_eq!(refused.is(409).problem(), "in-doubt");
    let problem = refused.json();
    assert_eq!(
        (&problem["state"], &problem["retryable"], &problem["safeToUseNewKey"]),
        (&json!("in_doubt"), &json!(false), &json!(false))
    );
    assert_eq!(http.delete("/v1/records/d").await.is(409).problem(), "wrong-state");
    let wrong = json!({"verdict": "happened", "attemptId": "01a20c55-4251-75ec-af2d-42d5a597caed"});
    http.post("/v1/records/d/settle", &wrong).await.is(409);
    let settled =
        http.post("/v1/records/d/settle", &json!({"verdict": "happened", "result": 7, "attemptId": attempt})).await;
    assert_eq!(settled.is(200).json()["record"]["result"], 7);
    assert_eq!(
        http.post("/v1/records/d/settle", &json!({"verdict": "not_happened"})).await.is(409).problem(),
        "wrong-state"
    );
    assert_eq!(
        http.post("/v1/records/none/settle", &json!({"verdict": "not_happened"})).await.is(404).problem(),
        "not-found"
    );
    let late = http.complete(&attempt, "d", &json!(1)).await;
    assert_eq!(late.is(409).problem(), "lost-claim");

    // On doubt, a caller may say: run again.
    let attempt = http.claim(&json!({"key": "e"})).await;
    http.post(&format!("/v1/claims/{attempt}/fail"), &json!({"key": "e", "error": "", "class": "unknown"}))
        .await
        .is(200);
    let rerun = http.post("/v1/claims", &json!({"key": "e", "onDoubt": "rerun"})).await;
    assert_eq!(rerun.is(201).json()["attempts"], 2);
    server.stop().await;
}

#[tokio::test]
async fn a_wait_ends_with_the_attempt_or_with_202() {
    let server = serve("").await;
    let http = server.client();
    let attempt = http.claim(&json!({"key": "w"})).await;
    let pending = http.post("/v1/claims", &json!({"key": "w", "wait": "100ms"})).await;
    assert_eq!(pending.is(202).json()["outcome"], "in_flight");
    assert_eq!(pending.header("retry-after"), Some("1"));
    assert_eq!(
        http.post("/v1/claims", &json!({"key": "w", "wait": "no"})).await.is(202).json()["state"],
        "in_progress"
    );

    let began = Instant::now();
    let waiting = tokio::spawn({
        let http = http.clone();
        async move { http.post("/v1/claims", &json!({"key": "w", "wait": "20s"})).await }
    });
    let watching = tokio::spawn({
        let http = http.clone();
        async move { http.get("/v1/records/w?wait=20s").await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    http.complete(&attempt, "w", &json!("done")).await.is(200);
    assert_eq!(waiting.await.unwrap().is(200).json()["result"], "done");
    assert_eq!(watching.await.unwrap().is(200).json()["state"], "completed");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_waits_at_once() {
    let server = serve("").await;
    let http = server.client();
    http.claim(&json!({"key": "w"})).await;
    let waiting = tokio::spawn({
        let http = http.clone();
        async move { http.post("/v1/claims", &json!({"key": "w", "wait": "20s"})).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    server.stop().await;
    let refused = waiting.await.unwrap();
    assert_eq!(refused.is(503).problem(), "shutting-down");
    // The action runs elsewhere: under a new key it would run twice.
    let problem = refused.json();
    assert_eq!((&problem["retryable"], &problem["safeToUseNewKey"]), (&json!(true), &json!(false)));
    assert!(!problem["detail"].as_str().unwrap().contains("nothing ran"), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn records_are_marked_listed_removed() {
    let server = serve("").await;
    let http = server.client();
    for n in 0..5 {
        let key = format!("s-{n}:act:{}:0123456789abcdef", if n < 3 { "one" } else { "two" });
        let marked = http.put(&format!("/v1/records/{}", encode(&key)), &json!({"result": n, "ttl": "1h"})).await;
        assert_eq!(marked.is(201).header("idempotency-replayed"), Some("false"));
    }
    let again =
        http.put(&format!("/v1/records/{}", encode("s-0:act:one:0123456789abcdef")), &json!({"result": 9})).await;
    assert_eq!(
        (again.is(200).json()["result"].clone(), again.header("idempotency-replayed")),
        (json!(0), Some("true"))
    );
    let page = http.get("/v1/records?target=one&limit=2").await.is(200).json();
    assert_eq!(page["records"].as_array().unwrap().len(), 2);
    let next = page["next"].as_str().unwrap();
    let page = http.get(&format!("/v1/records?target=one&limit=2&cursor={}", encode(next))).await.is(200).json();
    assert_eq!((page["records"].as_array().unwrap().len(), page["next"].is_null()), (1, true));
    let one = http.get("/v1/records?signalId=s-4&state=completed&expiringWithin=2h&actionType=act").await;
    assert_eq!(one.is(200).json()["records"].as_array().unwrap().len(), 1);
    for bad in
        ["limit=0", "limit=1001", "limit=x", "state=odd", "cursor=odd", "expiringWithin=soon", "sort=key", "key=%20"]
    {
        assert_eq!(http.get(&format!("/v1/records?{bad}")).await.is(400).problem(), "bad-request", "{bad}");
    }
    http.delete(&format!("/v1/records/{}", encode("s-0:act:one:0123456789abcdef"))).await.is(204);
    assert_eq!(http.delete("/v1/records/none").await.is(404).problem(), "not-found");
    assert_eq!(http.delete("/v1/records").await.is(400).problem(), "bad-request");
    assert_eq!(http.post("/v1/cleanup", &json!({"oldest": 1})).await.is(200).json()["removed"], 1);
    assert_eq!(http.post("/v1/cleanup", &json!({})).await.is(200).json()["removed"], 0);
    http.post("/v1/cleanup", &json!({"expired": true, "oldest": 1})).await.is(400);
    assert_eq!(http.delete("/v1/records?confirm=all").await.is(200).json()["removed"], 3);
    assert_eq!(http.get("/v1/records/none").await.is(404).problem(), "not-found");
    server.stop().await;
}

#[tokio::test]
async fn every_visible_character_of_a_key_survives_the_path() {
    let store = hapax::store::open("memory:").await.unwrap();
    let server = common::serve_on("", store.clone()).await;
    let http = server.client();
    let all: String = ('!'..='~').collect();
    let singles = ('!'..='~').filter(|c| *c != '.').map(String::from);
    for key in singles.chain([all, "%2F".into(), "a/../b".into(), "a%25b".into(), "...".into(), "?#&=".into()]) {
        let path = format!("/v1/records/{}", encode(&key));
        assert_eq!(http.put(&path, &json!({"result": key})).await.is(201).json()["key"], key);
        assert_eq!(http.get(&path).await.is(200).json()["result"], key);
        http.delete(&path).await.is(204);
    }
    // Clients take `.` and `..` for steps in the path: they are not taken in, and those of elsewhere are listed.
    let beside = hapax::Hapax::builder().store(store).build().await.unwrap();
    for key in [".", ".."] {
        assert_eq!(http.post("/v1/claims", &json!({"key": key})).await.is(400).problem(), "invalid-key");
        let marked = http.put(&format!("/v1/records/{key}"), &json!({"result": 1})).await;
        assert_eq!(marked.is(400).problem(), "invalid-key");
        beside.mark_executed(&hapax::Key::given(key).unwrap(), &1, None).await.unwrap();
        assert_eq!(http.get(&format!("/v1/records?key={key}")).await.is(200).json()["records"][0]["key"], key);
    }
    assert_eq!(http.get("/v1/records").await.is(200).json()["records"].as_array().unwrap().len(), 2);
    assert_eq!(http.get("/v1/records/%C3%A9").await.is(400).problem(), "invalid-key");
    assert_eq!(http.get(&format!("/v1/records/{}", "k".repeat(513))).await.is(400).problem(), "invalid-key");
    server.stop().await;
}

#[tokio::test]
async fn keys_are_made_and_taken_apart() {
    let server = serve("").await;
    let http = server.client();
    let made =
        http.post("/v1/keys", &json!({"signalId": "a:b", "actionType": "t", "target": "x", "params": [1.0]})).await;
    let key = made.is(200).json()["key"].as_str().unwrap().to_string();
    assert!(key.starts_with("a%3Ab:t:x:"));
    let parts = http.post("/v1/keys/parse", &json!({"key": key})).await;
    assert_eq!(parts.is(200).json()["signalId"], "a:b");
    assert_eq!(http.post("/v1/keys/parse", &json!({"key": "k"})).await.is(400).problem(), "invalid-key");
    assert_eq!(http.post("/v1/keys", &json!({"actionType": "", "target": "x"})).await.is(400).problem(), "bad-request");
    let excluded =
        json!({"actionType": "t", "target": "x", "params": {"at": 1, "n": 2}, "identity": {"exclude": ["/at"]}});
    let plain = json!({"actionType": "t", "target": "x", "params": {"n": 2}});
    let key = |a: common::Answer| a.is(200).json()["key"].clone();
    assert_eq!(key(http.post("/v1/keys", &excluded).await), key(http.post("/v1/keys", &plain).await));
    server.stop().await;
}

#[tokio::test]
async fn statistics_info_and_settings() {
    let server = serve("").await;
    let http = server.client();
    let attempt = http.claim(&json!({"key": "k"})).await;
    http.complete(&attempt, "k", &json!(1)).await.is(200);
    http.post("/v1/claims", &json!({"key": "k"})).await.is(200);
    let stats = http.get("/v1/stats").await.is(200).json();
    assert_eq!((&stats["executions"], &stats["hits"], &stats["totalCached"]), (&json!(1), &json!(1), &json!(1)));
    http.post("/v1/stats/reset", &json!({})).await.is(204);
    assert_eq!(http.get("/v1/stats").await.json()["executions"], 0);
    assert_eq!(http.get("/v1/info").await.is(200).json()["completed"], 1);
    let patched = http
        .send(Method::PATCH, "/v1/config", json!({"ttl": "never", "wait": "no", "maxResultBytes": 16}).to_string())
        .await;
    assert_eq!(patched.is(200).json()["config"]["policy"]["ttlMs"], "never");
    assert_eq!(patched.json()["persistent"], false);
    assert_eq!(http.send(Method::PATCH, "/v1/config", r#"{"lease":"1ms"}"#).await.is(400).problem(), "bad-request");
    assert_eq!(http.send(Method::PATCH, "/v1/config", r#"{"namespace":"x"}"#).await.is(400).problem(), "bad-request");
    // The result over the limit leaves doubt, and says so.
    let attempt = http.claim(&json!({"key": "big"})).await;
    let large = http.complete(&attempt, "big", &json!("0123456789abcdef")).await;
    assert_eq!(large.is(413).problem(), "result-too-large");
    assert_eq!(http.get("/v1/records/big").await.json()["state"], "in_doubt");
    let metrics = String::from_utf8(http.get("/metrics").await.is(200).body.to_vec()).unwrap();
    for line in [
        "hapax_in_doubt{namespace=\"default\"} 1",
        "hapax_claims_total{outcome=\"replayed\"} 1",
        "hapax_store_duration_seconds_count{operation=\"begin\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_retried_claim_is_one_attempt_and_the_ttl_asked_for_holds() {
    let server = serve("").await;
    let http = server.client();
    let id = "01a20c55-4251-75ec-af2d-42d5a597caed";
    let claim =
        json!({"key": "k", "attemptId": id, "ttl": "1m", "owner": {"host": "worker", "pid": 7}, "tags": {"team": "x"}});
    assert_eq!((http.claim(&claim).await.as_str(), http.claim(&claim).await.as_str()), (id, id));
    let ended = http.complete(id, "k", &json!(1)).await.is(200).json();
    assert!(ended["expiresAt"].is_string());
    let record = http.get("/v1/records/k").await.json();
    assert_eq!((&record["owner"]["host"], &record["tags"]["team"]), (&json!("worker"), &json!("x")));
    let (at, expires): (hapax::Timestamp, hapax::Timestamp) = (
        serde_json::from_value(ended["at"].clone()).unwrap(),
        serde_json::from_value(ended["expiresAt"].clone()).unwrap(),
    );
    assert_eq!(expires.since(at), Duration::from_secs(60));
    for bad in [
        json!({"key": "x", "tags": {"hapax.ttl": "1"}}),
        json!({"key": "x", "attemptId": "1"}),
        json!({"fingerprint": "00".repeat(32), "actionType": "a", "target": "t"}),
        json!({"key": "x", "ttl": "0s"}),
        json!({"key": "x", "lease": "1ms"}),
        json!({"key": "a b"}),
        json!({"actionType": "a"}),
        json!({"odd": 1}),
        json!([]),
    ] {
        http.post("/v1/claims", &bad).await.is(400).problem();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_token_opens_its_namespace_as_far_as_its_role_goes() {
    let tokens =
        [token("r", "one", "read"), token("w", "one", "write"), token("a", "one", "admin"), token("o", "two", "admin")];
    let server =
        serve(&format!("public_metrics = true\ncors_origins = [\"https://console.example\"]\n{}", tokens.concat()))
            .await;
    let http = server.client();
    let (reader, writer, admin, other) =
        (http.clone().bearer("r"), http.clone().bearer("w"), http.clone().bearer("a"), http.clone().bearer("o"));
    let anonymous = http.get("/v1/stats").await;
    assert_eq!(anonymous.is(401).problem(), "unauthorized");
    assert!(anonymous.header("www-authenticate").unwrap().starts_with("Bearer"));
    for bad in ["x", "", "rr", "R"] {
        http.clone().bearer(bad).get("/v1/stats").await.is(401);
    }
    http.clone().with("authorization", "Basic cjpy").get("/v1/stats").await.is(401);

    let attempt = writer.claim(&json!({"key": "k"})).await;
    writer.complete(&attempt, "k", &json!("secret of one")).await.is(200);
    assert_eq!(reader.post("/v1/claims", &json!({"key": "k"})).await.is(403).problem(), "forbidden");
    assert_eq!(writer.delete("/v1/records/k").await.is(403).problem(), "forbidden");
    reader.get("/v1/records/k").await.is(200);
    // Another namespace sees nothing of it, by no way.
    assert_eq!(other.get("/v1/records/k").await.is(404).problem(), "not-found");
    assert!(other.get("/v1/records").await.json()["records"].as_array().unwrap().is_empty());
    assert_eq!(other.complete(&attempt, "k", &json!(1)).await.is(409).problem(), "lost-claim");
    other.claim(&json!({"key": "k"})).await;
    other.delete("/v1/records?confirm=all").await.is(200);
    admin.delete("/v1/records/k").await.is(204);
    http.get("/metrics").await.is(200);
    http.get("/healthz").await.is(200);
    http.get("/readyz").await.is(200);

    // Origins that are named may read answers; others get no leave.
    let named = reader.clone().with("origin", "https://console.example").get("/v1/stats").await;
    assert_eq!(named.is(200).header("access-control-allow-origin"), Some("https://console.example"));
    assert!(named.header("access-control-expose-headers").unwrap().contains("Idempotency-Replayed"));
    let foreign = reader.clone().with("origin", "https://evil.example").get("/v1/stats").await;
    assert_eq!(foreign.header("access-control-allow-origin"), None);

    // A reload takes a token away.
    let config = hapax_http::ServeConfig::from_toml(&token("r", "one", "read")).unwrap();
    server.reloader.as_ref().unwrap().reload(config).await.unwrap();
    writer.get("/v1/stats").await.is(401);
    reader.get("/v1/stats").await.is(200);
    server.stop().await;
}

#[tokio::test]
async fn metrics_tell_a_token_of_its_own_namespace_alone() {
    let tokens = [token("one", "one", "read"), token("two", "two", "read")].concat();
    let namespaces = |answer: common::Answer| {
        let text = String::from_utf8(answer.is(200).body.to_vec()).unwrap();
        ["one", "two"].map(|namespace| text.contains(&format!("hapax_records{{namespace=\"{namespace}\"}} 0\n")))
    };
    let server = serve(&tokens).await;
    server.client().get("/metrics").await.is(401);
    assert_eq!(namespaces(server.client().bearer("one").get("/metrics").await), [true, false]);
    assert_eq!(namespaces(server.client().bearer("two").get("/metrics").await), [false, true]);
    server.stop().await;
    let server = serve(&format!("public_metrics = true\n{tokens}")).await;
    assert_eq!(namespaces(server.client().get("/metrics").await), [true, true]);
    server.stop().await;
}

#[tokio::test]
async fn what_a_token_opened_ends_when_a_reload_takes_it_away() {
    let [kept, gone] = [token("kept", "one", "write"), token("gone", "one", "write")];
    let server = serve(&format!("{kept}{gone}")).await;
    let stream = |name: &str| {
        let http = server.client().bearer(name);
        tokio::spawn(async move { http.get("/v1/events").await })
    };
    let (mine, theirs) = (stream("kept"), stream("gone"));
    let http = server.client().bearer("gone");
    http.claim(&json!({"key": "w"})).await;
    let waiting = [
        tokio::spawn({
            let http = http.clone();
            async move { http.post("/v1/claims", &json!({"key": "w", "wait": "60s"})).await }
        }),
        tokio::spawn({
            let http = http.clone();
            async move { http.get("/v1/records/w?wait=60s").await }
        }),
    ];
    // All four are under way.
    let running = async {
        let watcher = server.client().bearer("kept");
        let heard = |text: &str| {
            let line = |name: &str, least: u32| {
                let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
                value.is_some_and(|value| value >= least)
            };
            line("hapax_http_requests_total{method=\"GET\",route=\"/v1/events\",status=\"200\"}", 2)
                && line("hapax_http_requests_running ", 3)
        };
        while !heard(std::str::from_utf8(&watcher.get("/metrics").await.body).unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("they begin");
    let config = hapax_http::ServeConfig::from_toml(&kept).unwrap();
    server.reloader.as_ref().unwrap().reload(config).await.unwrap();
    let soon = |task| tokio::time::timeout(Duration::from_secs(20), task);
    soon(theirs).await.expect("its stream ends").unwrap().is(200);
    for wait in waiting {
        assert_eq!(soon(wait).await.expect("its wait ends").unwrap().is(401).problem(), "unauthorized");
    }
    assert!(!mine.is_finished(), "who keeps its token keeps its stream");
    mine.abort();
    server.stop().await;
}

#[tokio::test]
async fn without_tokens_no_foreign_page_gets_in() {
    let server = serve("").await;
    let http = server.client();
    let host = http.address.to_string();
    // A name that was rebound to 127.0.0.1.
    assert_eq!(http.clone().with("host", "evil.example").get("/v1/stats").await.is(403).problem(), "forbidden");
    http.clone().with("host", &format!("localhost:{}", http.address.port())).get("/v1/stats").await.is(200);
    // A page of another origin.
    http.clone().with("origin", "https://evil.example").get("/v1/stats").await.is(403);
    http.clone().with("origin", "null").get("/v1/stats").await.is(403);
    http.clone().with("sec-fetch-site", "cross-site").get("/v1/stats").await.is(403);
    http.clone().with("origin", &format!("http://{host}")).get("/v1/stats").await.is(200);
    // A form.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let form = http.clone().with("content-type", kind).post("/v1/claims", &json!({"key": "k"})).await;
        assert_eq!(form.is(415).problem(), "unsupported-media-type");
    }
    http.clone().without("content-type").post("/v1/stats/reset", &json!({})).await.is(415);
    server.stop().await;
}

#[tokio::test]
async fn a_thousand_connections_racing_on_one_key_run_it_once() {
    let server = serve("[limits]\nconnections = 2000").await;
    let address = server.address;
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(1000));
    let racers: Vec<_> = (0..1000)
        .map(|_| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                // A client of its own is a connection of its own.
                let http = common::Http::new(address);
                http.get("/healthz").await.is(200);
                barrier.wait().await;
                let answer = http.post("/v1/claims", &json!({"key": "race", "wait": "30s"})).await;
                if answer.status == 201 {
                    let attempt = answer.json()["attemptId"].as_str().unwrap().to_string();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    http.complete(&attempt, "race", &json!("once")).await.is(200);
                } else {
                    assert_eq!(answer.is(200).json()["result"], "once");
                }
                answer.status
            })
        })
        .collect();
    let mut ran = 0;
    for racer in racers {
        ran += u32::from(racer.await.unwrap() == 201);
    }
    assert_eq!(ran, 1);
    server.stop().await;
}

#[tokio::test]
async fn claims_outlive_their_server_and_two_servers_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let toml = format!("store = \"sqlite:{}\"", dir.path().join("h.db").display());
    let (one, two) = (serve(&toml).await, serve(&toml).await);
    let attempt = one.client().claim(&json!({"key": "k"})).await;
    one.stop().await;
    let http = two.client();
    let claim = json!({"key": "k", "wait": "no"});
    assert_eq!(http.post("/v1/claims", &claim).await.is(202).json()["state"], "in_progress");
    http.post(&format!("/v1/claims/{attempt}/heartbeat"), &json!({"key": "k"})).await.is(200);
    let three = serve(&toml).await;
    let waiting = tokio::spawn({
        let http = three.client();
        async move { http.post("/v1/claims", &json!({"key": "k", "wait": "10s"})).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    http.complete(&attempt, "k", &json!("by two")).await.is(200);
    assert_eq!(waiting.await.unwrap().is(200).json()["result"], "by two");
    three.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn events_tell_what_happens() {
    let server = serve("").await;
    let http = server.client();
    let address = server.address;
    let listening = tokio::spawn(async move {
        let request = format!("GET /v1/events HTTP/1.1\r\nhost: {address}\r\n\r\n");
        common::raw(address, request.as_bytes(), Duration::from_millis(1500)).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let attempt = http.claim(&json!({"key": "e", "params": "private"})).await;
    http.complete(&attempt, "e", &json!("secret")).await.is(200);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.stop().await;
    let heard = listening.await.unwrap();
    assert!(heard.contains("event: stats") && heard.contains("event: record"), "{heard}");
    assert!(
        heard.contains("\"state\":\"completed\"") && !heard.contains("secret") && !heard.contains("private"),
        "{heard}"
    );
}
