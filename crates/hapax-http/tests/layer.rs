//! The Idempotency-Key layer around an axum service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use common::{Http, Running, raw};
use hapax::Hapax;
use hapax_http::layer::Attempt;
use hapax_http::{Idempotency, IdempotencyLayer, KeySource, Scope};
use http::{HeaderName, Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

type Runs = Arc<AtomicU32>;

/// Counts its runs, and answers as its path says.
async fn handler(State(runs): State<Runs>, request: Request) -> Response {
    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
    let path = request.uri().path().to_string();
    let key = request.extensions().get::<Attempt>().map(|a| a.key.clone()).unwrap_or_default();
    match path.as_str() {
        "/slow" => tokio::time::sleep(Duration::from_millis(400)).await,
        "/panic" => panic!("on purpose"),
        "/large" => return Response::new(Body::from(vec![b'x'; 5000])),
        "/endless" => return ([("content-type", "text/event-stream")], "data: 1\n\n").into_response(),
        "/empty" => return StatusCode::NO_CONTENT.into_response(),
        "/binary" => return vec![0xff_u8, 0, 1].into_response(),
        _ => {}
    }
    let status = path.strip_prefix("/status/").map_or(StatusCode::CREATED, |s| s.parse().unwrap());
    (status, [("x-run", run.to_string()), ("set-cookie", "s=1".into())], format!("{run} {key}")).into_response()
}

async fn start(options: Idempotency) -> (Running, Runs, Hapax) {
    let runs = Runs::default();
    let hapax = Hapax::open("memory:").await.unwrap();
    let router = Router::new()
        .fallback(any(handler))
        .with_state(runs.clone())
        .layer(IdempotencyLayer::new(hapax.clone(), options));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        axum::serve(listener, router).with_graceful_shutdown(stop).await.unwrap();
    });
    (Running::new(address, stop, task), runs, hapax)
}

fn keyed(http: &Http, key: &str) -> Http {
    http.clone().with("idempotency-key", key)
}

#[tokio::test]
async fn a_retry_gets_the_answer_first_sent() {
    let (server, runs, _) = start(Idempotency::default()).await;
    let http = keyed(&server.client(), "\"k-1\"");
    let first = http.send(Method::POST, "/pay?a=1", r#"{"a":1,"b":2}"#).await;
    assert_eq!((first.is(201).header("idempotency-replayed"), first.body.as_ref()), (Some("false"), &b"1 k-1"[..]));
    // Cookies are for the first alone.
    assert_eq!(first.header("set-cookie"), Some("s=1"));
    // Bare, the key is the same; the same JSON is the same content.
    let again = keyed(&http, "k-1").send(Method::POST, "/pay?a=1", r#"{ "b": 2, "a": 1.0 }"#).await;
    assert_eq!((again.is(201).header("idempotency-replayed"), again.body.as_ref()), (Some("true"), &b"1 k-1"[..]));
    assert_eq!((again.header("x-run"), again.header("set-cookie")), (Some("1"), None));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    // Other content, path, query or method is another request.
    for (method, path, body) in [
        (Method::POST, "/pay?a=1", r#"{"a":2,"b":2}"#),
        (Method::POST, "/other?a=1", r#"{"a":1,"b":2}"#),
        (Method::POST, "/pay?a=2", r#"{"a":1,"b":2}"#),
        (Method::PUT, "/pay?a=1", r#"{"a":1,"b":2}"#),
    ] {
        assert_eq!(http.send(method, path, body).await.is(422).problem(), "params-mismatch");
    }
    // Safe methods pass, and so does what has no key.
    assert_eq!(http.get("/pay").await.header("idempotency-replayed"), None);
    server.client().send(Method::POST, "/pay", "").await.is(201);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    for path in ["/empty", "/binary"] {
        let http = keyed(&http, path);
        let (first, again) = (http.send(Method::POST, path, "").await, http.send(Method::POST, path, "").await);
        assert_eq!((first.status, first.body), (again.status, again.body.clone()), "{path}");
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    }
    let cross = keyed(&http, "k-1")
        .with("origin", "https://shop.example")
        .send(Method::POST, "/pay?a=1", r#"{"a":1,"b":2}"#)
        .await;
    assert!(cross.header("access-control-expose-headers").unwrap().contains("Idempotency-Replayed"));
    server.stop().await;
}

#[tokio::test]
async fn amounts_that_a_double_would_round_are_different_content() {
    let (server, _, _) = start(Idempotency::default()).await;
    for (first, again, status) in [
        ("12345678901234567.5", "12345678901234567.6", 422),
        ("9007199254740993.0", "9007199254740992", 422),
        ("12345678901234567.5", "12345678901234567.5", 201),
        ("19.99", "19.990", 201),
        ("0.1", "1e-1", 201),
    ] {
        let http = keyed(&server.client(), &format!("{first}-{again}"));
        http.send(Method::POST, "/", format!("[{first}]")).await.is(201);
        http.send(Method::POST, "/", format!("[{again}]")).await.is(status);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_offered_upgrade_takes_no_key_away() {
    let (server, runs, _) = start(Idempotency::default().require_key()).await;
    let http = server.client().with("connection", "Upgrade, HTTP2-Settings").with("upgrade", "h2c");
    let http = http.with("http2-settings", "AAMAAABkAAQAAP__");
    for replayed in ["false", "true"] {
        let answer = keyed(&http, "k").send(Method::POST, "/pay", "").await;
        assert_eq!(answer.is(201).header("idempotency-replayed"), Some(replayed));
    }
    assert_eq!(http.send(Method::POST, "/pay", "").await.is(400).problem(), "missing-key");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    // A WebSocket begins with a GET, and that goes through.
    let socket = server.client().with("connection", "Upgrade").with("upgrade", "websocket");
    assert_eq!(socket.get("/socket").await.is(201).header("idempotency-replayed"), None);
    server.stop().await;
}

#[tokio::test]
async fn the_status_decides_what_becomes_of_the_key() {
    let (server, runs, _) = start(Idempotency::default()).await;
    let http = server.client();
    for (status, kept) in [(200, true), (302, true), (404, true), (422, true), (401, false), (429, false), (503, false)]
    {
        runs.store(0, Ordering::SeqCst);
        let http = keyed(&http, &format!("s-{status}"));
        let path = format!("/status/{status}");
        let first = http.send(Method::POST, &path, "").await;
        let again = http.send(Method::POST, &path, "").await;
        first.is(status);
        again.is(status);
        assert_eq!(first.header("hapax-state"), (!kept).then_some("released"), "{status}");
        assert_eq!(runs.load(Ordering::SeqCst), if kept { 1 } else { 2 }, "{status}");
    }
    let http = keyed(&http, "s-500");
    let first = http.send(Method::POST, "/status/500", "").await;
    assert_eq!((first.is(500).header("hapax-state"), first.body.len()), (Some("in_doubt"), 7));
    assert_eq!(http.send(Method::POST, "/status/500", "").await.is(409).problem(), "in-doubt");
    server.stop().await;
}

#[tokio::test]
async fn a_duplicate_in_flight_is_turned_away_or_waits() {
    let (server, runs, _) = start(Idempotency::default()).await;
    let http = keyed(&server.client(), "k");
    let first = tokio::spawn({
        let http = http.clone();
        async move { http.send(Method::POST, "/slow", "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let away = http.send(Method::POST, "/slow", "").await;
    assert_eq!((away.is(409).problem().as_str(), away.header("retry-after")), ("in-flight", Some("1")));
    let waited = http.clone().with("prefer", "wait=10").send(Method::POST, "/slow", "").await;
    assert_eq!(waited.is(201).header("idempotency-replayed"), Some("true"));
    let first = first.await.unwrap();
    assert_eq!(first.is(201).header("idempotency-replayed"), Some("false"));
    assert_eq!((first.header("set-cookie"), waited.header("set-cookie")), (Some("s=1"), None));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_finds_its_answer_when_it_comes_back() {
    let (server, runs, _) = start(Idempotency::default()).await;
    let request = "POST /slow HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(raw(server.address, request.as_bytes(), Duration::from_millis(100)).await, "");
    let http = keyed(&server.client(), "k").with("prefer", "wait=5");
    let again = http.send(Method::POST, "/slow", "").await;
    assert_eq!((again.is(201).header("idempotency-replayed"), runs.load(Ordering::SeqCst)), (Some("true"), 1));
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_reaches_the_client_and_leaves_doubt() {
    let (server, _, _) = start(Idempotency::default().limits(1 << 20, 4096)).await;
    for path in ["/large", "/endless"] {
        let http = keyed(&server.client(), path);
        let first = http.send(Method::POST, path, "").await;
        assert_eq!(first.is(200).header("hapax-state"), Some("in_doubt"));
        assert_eq!(first.body.len(), if path == "/large" { 5000 } else { 9 });
        assert_eq!(http.send(Method::POST, path, "").await.is(409).problem(), "in-doubt");
    }
    let http = keyed(&server.client(), "p");
    assert_eq!(http.send(Method::POST, "/panic", "").await.is(500).problem(), "internal");
    assert_eq!(http.send(Method::POST, "/panic", "").await.is(409).problem(), "in-doubt");
    server.stop().await;
}

#[tokio::test]
async fn keys_that_are_missing_twice_or_no_keys_are_refused() {
    let options = Idempotency::default().require_key().limits(1000, 1000);
    let (server, runs, _) = start(options).await;
    let http = server.client();
    assert_eq!(http.send(Method::POST, "/", "").await.is(400).problem(), "missing-key");
    http.send(Method::DELETE, "/", "").await.is(201);
    for bad in ["", "\"\"", "a b", "\"a", "a, b"] {
        assert_eq!(keyed(&http, bad).send(Method::POST, "/", "").await.is(400).problem(), "invalid-key", "{bad}");
    }
    let mut twice = keyed(&http, "a");
    twice.headers.push(("idempotency-key".into(), "b".into()));
    assert_eq!(twice.send(Method::POST, "/", "").await.is(400).problem(), "invalid-key");
    let large = keyed(&http, "l").send(Method::POST, "/", "x".repeat(1001)).await;
    assert_eq!(large.is(413).problem(), "body-too-large");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn tenants_and_callers_have_keys_of_their_own() {
    let options = Idempotency::default().scope(Scope::Header(HeaderName::from_static("x-tenant"))).scope(Scope::Caller);
    let (server, runs, hapax) = start(options).await;
    let http = keyed(&server.client(), "k");
    for (tenant, caller, replayed) in
        [("1", "a", "false"), ("2", "a", "false"), ("1", "b", "false"), ("1", "a", "true")]
    {
        let answer =
            http.clone().with("x-tenant", tenant).with("authorization", caller).send(Method::POST, "/", "").await;
        assert_eq!(answer.is(201).header("idempotency-replayed"), Some(replayed), "{tenant} {caller}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    assert!(hapax.keys(hapax::store::Filter::default()).await.unwrap().iter().all(|k| k.as_str().len() == 34));
    server.stop().await;
}

#[tokio::test]
async fn webhooks_are_known_by_their_own_ids() {
    let mut options = Idempotency::default().header(HeaderName::from_static("x-github-delivery"));
    options.sources.push(KeySource::Body("/id".into()));
    let (server, runs, _) = start(options).await;
    let github = server.client().with("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    github.send(Method::POST, "/hook", "{}").await.is(201);
    assert_eq!(github.send(Method::POST, "/hook", "{}").await.header("idempotency-replayed"), Some("true"));
    let stripe = server.client();
    let first = stripe.send(Method::POST, "/hook", r#"{"id":"evt_1"}"#).await;
    assert_eq!(first.body.as_ref(), b"2 evt_1");
    assert_eq!(
        stripe.send(Method::POST, "/hook", r#"{"id":"evt_1"}"#).await.header("idempotency-replayed"),
        Some("true")
    );
    assert_eq!(stripe.send(Method::POST, "/hook", "no JSON").await.header("idempotency-replayed"), None);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    server.stop().await;
}
