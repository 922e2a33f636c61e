//! Clients that are slow, rude or broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{raw, read, serve};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SHORT: &str = "[limits]\nbody_bytes = 4096\nheader_bytes = 8192\nheader_time = \"500ms\"\nbody_time = \"500ms\"\n\
    write_time = \"500ms\"\nconnections = 8\n";

fn post(length: usize) -> String {
    format!(
        "POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn bodies_and_heads_over_the_limits_are_refused() {
    let server = serve(SHORT).await;
    let http = server.client();
    let large = http.try_send(http::Method::POST, "/v1/claims", "x".repeat(5000)).await;
    assert_eq!(large.unwrap().is(413).problem(), "body-too-large");
    // A length that is only claimed.
    let claimed = raw(server.address, post(1 << 40).as_bytes(), Duration::from_secs(2)).await;
    assert!(claimed.starts_with("HTTP/1.1 413") || claimed.starts_with("HTTP/1.1 408"), "{claimed}");
    let chunks = "POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = format!("{chunks}1400\r\n{}\r\n", "x".repeat(0x1400));
    let chunked = raw(server.address, chunked.as_bytes(), Duration::from_secs(2)).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(16 << 10));
    let head = raw(server.address, head.as_bytes(), Duration::from_secs(2)).await;
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");
    let fields = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(500));
    let fields = raw(server.address, fields.as_bytes(), Duration::from_secs(2)).await;
    assert!(fields.starts_with("HTTP/1.1 431"), "{fields}");
    let nonsense = raw(server.address, b"\x16\x03\x01\x00\xa5\x01\r\n\r\n", Duration::from_secs(2)).await;
    assert!(nonsense.is_empty() || nonsense.starts_with("HTTP/1.1 400"), "{nonsense}");
    server.stop().await;
}

#[tokio::test]
async fn slow_and_half_closed_clients_lose_their_connection_and_nothing_else() {
    let server = serve(SHORT).await;
    let began = Instant::now();
    // A head that never ends, be it the first or the second; a body that never comes; a client that says nothing.
    let slow_head = raw(server.address, b"GET / HTTP/1.1\r\nhost: lo", Duration::from_secs(3));
    let second = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nhost: lo";
    let second_head = raw(server.address, second, Duration::from_secs(3));
    let (claim, slow) = (post(20), post(100));
    let slow_body = raw(server.address, slow.as_bytes(), Duration::from_secs(3));
    let silent = raw(server.address, b"", Duration::from_secs(3));
    let (head, second, body, silent) = tokio::join!(slow_head, second_head, slow_body, silent);
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("request-timeout"), "{body}");
    assert_eq!(silent, "");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // A client that closes its half in the middle of a body: nothing was claimed.
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(format!("{claim}{{\"key\"").as_bytes()).await.unwrap();
    half.shutdown().await.unwrap();
    let answer = read(&mut half, Duration::from_secs(2)).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let http = server.client();
    assert!(http.get("/v1/records").await.is(200).json()["records"].as_array().unwrap().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn who_does_not_read_does_not_hold_a_place() {
    let server = serve(SHORT).await;
    let http = server.client();
    http.put("/v1/records/big", &json!({"result": "x".repeat(3000)})).await.is(201);
    drop(http);
    // Each asks for more than the buffers between hold, and reads nothing.
    let request = "GET /v1/records/big HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(4000);
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(request.as_bytes())).await;
        deaf.push(stream);
    }
    // All places are taken; they come free, and the next client is served.
    let http = server.client();
    let served = async {
        // A busy machine may make this client late with its own beginning.
        while http.try_send(http::Method::GET, "/healthz", "").await.is_err() {}
    };
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("a place comes free");
    drop(deaf);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let server = serve("").await;
    let http = server.client();
    let attempt = http.claim(&json!({"key": "k"})).await;
    let body = r#"{"key":"k","wait":"60s"}"#;
    let request = format!("{}{body}", post(body.len()));
    for _ in 0..5 {
        assert_eq!(raw(server.address, request.as_bytes(), Duration::from_millis(100)).await, "");
    }
    http.complete(&attempt, "k", &json!(1)).await.is(200);
    http.post("/v1/claims", &json!({"key": "k"})).await.is(200);
    assert_eq!(http.get("/v1/info").await.json()["inFlight"], 0);
    server.stop().await;
}

/// An HTTP/2 client that opens windows of this size, and the task that ends with its connection.
async fn http2(address: std::net::SocketAddr, window: u32) -> (SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (send, connection) = builder.initial_stream_window_size(window).handshake(stream).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    (send, connection)
}

fn asks(address: std::net::SocketAddr, path: &str, body: &'static str) -> http::Request<Full<Bytes>> {
    let request = http::Request::builder().method(if body.is_empty() { "GET" } else { "POST" });
    let request = request.uri(format!("http://{address}{path}")).header("content-type", "application/json");
    request.body(Full::new(body.into())).unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn over_http2_who_takes_nothing_or_asks_nothing_does_not_hold_a_place() {
    let server = serve(SHORT).await;
    // It opens no window and answers pings.
    let (mut send, deaf) = http2(server.address, 0).await;
    let answer = send.send_request(asks(server.address, "/openapi.json", "")).await.unwrap();
    assert_eq!(answer.status(), 200);
    tokio::time::timeout(PATIENCE, deaf).await.expect("who takes nothing is cut off").unwrap();
    drop((send, answer));
    // What is left of a window that closes counts as little.
    let (mut send, deaf) = http2(server.address, 1_000).await;
    let answer = send.send_request(asks(server.address, "/openapi.json", "")).await.unwrap();
    tokio::time::timeout(PATIENCE, deaf).await.expect("who takes no more is cut off").unwrap();
    drop((send, answer));
    let (mut send, idle) = http2(server.address, 1 << 20).await;
    send.send_request(asks(server.address, "/healthz", "")).await.unwrap().collect().await.unwrap();
    tokio::time::timeout(PATIENCE, idle).await.expect("an idle connection is closed").unwrap();
    let (send, silent) = http2(server.address, 1 << 20).await;
    tokio::time::timeout(PATIENCE, silent).await.expect("so is one that never asked").unwrap();
    drop(send);
    server.stop().await;
}

#[tokio::test]
async fn over_http2_a_wait_and_a_quiet_stream_may_last() {
    let server = serve(SHORT).await;
    let (mut send, _connection) = http2(server.address, 1 << 20).await;
    let claim = || asks(server.address, "/v1/claims", r#"{"key":"k","wait":"2s"}"#);
    assert_eq!(send.send_request(claim()).await.unwrap().status(), 201);
    // Events come once a second, and both limits are half of that.
    let mut events = send.send_request(asks(server.address, "/v1/events", "")).await.unwrap().into_body();
    assert_eq!(send.send_request(claim()).await.unwrap().status(), 202);
    for _ in 0..3 {
        let frame = tokio::time::timeout(PATIENCE, events.frame()).await.expect("an event").expect("no end");
        assert!(frame.unwrap().is_data());
    }
    drop(events);
    server.stop().await;
}
