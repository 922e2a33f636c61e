//! The proxy in front of upstreams that behave, misbehave and die.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Running, raw};
use hapax_http::{ProxyConfig, ProxyServer};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};

/// An upstream that answers every connection's requests with the bytes it was given, and keeps what it read.
struct Upstream {
    address: std::net::SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    count: Arc<AtomicU32>,
}

/// `end`: closes after the answer.
async fn upstream(answer: &'static [u8], end: bool) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, count) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let of_task = (heard.clone(), count.clone());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (heard, count) = (of_task.0.clone(), of_task.1.clone());
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                loop {
                    let mut part = [0; 4096];
                    let n = stream.read(&mut part).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    buffer.extend_from_slice(&part[..n]);
                    let text = String::from_utf8_lossy(&buffer).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().filter_map(|l| {
                        l.to_ascii_lowercase().strip_prefix("content-length: ").map(|v| v.parse::<usize>().unwrap())
                    });
                    if body.len() < length.sum() {
                        continue;
                    }
                    heard.lock().await.push(text.clone());
                    count.fetch_add(1, Ordering::SeqCst);
                    buffer.clear();
                    let _ = stream.write_all(answer).await;
                    if end {
                        return;
                    }
                }
            });
        }
    });
    Upstream { address, heard, count }
}

async fn proxy(to: std::net::SocketAddr, more: &str) -> Running {
    let mut config = ProxyConfig::from_toml(&format!("upstream = \"http://{to}/base\"\n{more}")).unwrap();
    config.listen.set_port(0);
    let server = ProxyServer::bind(config).await.unwrap();
    let address = server.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        server.run(stop).await.unwrap();
    });
    Running::new(address, stop, task)
}

#[tokio::test]
async fn an_answer_is_replayed_and_the_key_travels_on() {
    let up = upstream(
        b"HTTP/1.1 201 Created\r\nconnection: x-hop\r\nx-hop: 1\r\nx-id: 7\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
    )
    .await;
    let server = proxy(up.address, "").await;
    let http = server
        .client()
        .with("idempotency-key", "k")
        .with("connection", "x-mine")
        .with("x-mine", "1")
        .with("te", "trailers");
    let first = http.send(Method::POST, "/pay?a=b", r#"{"n":1}"#).await;
    assert_eq!(
        (first.is(201).header("x-id"), first.header("x-hop"), first.body.as_ref()),
        (Some("7"), None, &b"hello"[..])
    );
    let again = http.send(Method::POST, "/pay?a=b", r#"{"n":1}"#).await;
    assert_eq!(
        (again.is(201).header("idempotency-replayed"), again.header("x-id"), again.body.as_ref()),
        (Some("true"), Some("7"), &b"hello"[..])
    );
    let heard = up.heard.lock().await.clone();
    assert_eq!(heard.len(), 1);
    let request = heard[0].to_ascii_lowercase();
    assert!(request.starts_with("post /base/pay?a=b http/1.1\r\n"), "{request}");
    for there in [
        "idempotency-key: k\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "content-length: 7\r\n",
        &format!("host: {}\r\n", up.address),
    ] {
        assert!(request.contains(there), "{there} is missing in {request}");
    }
    for gone in ["x-mine", "te: ", "transfer-encoding"] {
        assert!(!request.contains(gone), "{gone} is in {request}");
    }
    server.stop().await;
}

/// A POST by HTTP/2 in the clear: the host is in the address, and there is no `Host`.
async fn by_http2(to: std::net::SocketAddr, host: &str, headers: &[(&str, &str)]) -> http::Response<()> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let (executor, io) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{host}/pay"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"1"));
    sender.send_request(request.body(body).unwrap()).await.unwrap().map(drop)
}

#[tokio::test]
async fn hosts_have_keys_of_their_own_by_http_2_as_by_http_1() {
    for config in ["preserve_host = true", "scope_headers = [\"host\"]"] {
        let up = upstream(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok", false).await;
        let server = proxy(up.address, config).await;
        for (host, replayed) in
            [("a.example", "false"), ("b.example", "false"), ("A.example", "true"), ("b.example", "true")]
        {
            let answer = by_http2(server.address, host, &[("idempotency-key", "k")]).await;
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["idempotency-replayed"]),
                (201, &replayed.parse::<http::HeaderValue>().unwrap()),
                "{config} {host}"
            );
        }
        for (host, replayed) in [("a.example", "true"), ("c.example", "false")] {
            let http = server.client().with("idempotency-key", "k").with("host", host).without("content-type");
            let answer = http.send(Method::POST, "/pay", "1").await;
            assert_eq!(answer.is(201).header("idempotency-replayed"), Some(replayed), "{config} {host}");
        }
        let heard = up.heard.lock().await.concat().to_ascii_lowercase();
        assert_eq!(heard.contains("\r\nhost: b.example\r\n"), config.starts_with("preserve"), "{heard}");
        assert!(heard.contains("x-forwarded-host: b.example\r\n"), "{heard}");
        server.stop().await;
    }
}

#[tokio::test]
async fn cookies_that_come_by_http_2_in_parts_go_on_as_one() {
    let up = upstream(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok", false).await;
    let server = proxy(up.address, "").await;
    let headers = [("idempotency-key", "k"), ("cookie", "a=1"), ("cookie", "b=2")];
    assert_eq!(by_http2(server.address, "a.example", &headers).await.status(), 201);
    let heard = up.heard.lock().await.concat().to_ascii_lowercase();
    assert!(heard.contains("\r\ncookie: a=1; b=2\r\n") && heard.matches("cookie:").count() == 1, "{heard}");
    server.stop().await;
}

#[tokio::test]
async fn claims_are_counted_as_the_apis_are() {
    let up = upstream(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok", false).await;
    let silent = upstream(b"", false).await;
    let config = |to: std::net::SocketAddr| {
        let mut config =
            ProxyConfig::from_toml(&format!("upstream = \"http://{to}\"\nadmin = \"127.0.0.1:0\"")).unwrap();
        config.listen.set_port(0);
        config
    };
    let server = ProxyServer::bind(config(up.address)).await.unwrap();
    let (address, admin, reloader) = (server.address(), server.admin_address().unwrap(), server.reloader());
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move { server.run(async { drop(stopped.await) }).await.unwrap() });
    let server = Running::new(address, stop, task);
    let ops = common::Http::new(admin);
    let metrics = async || String::from_utf8(ops.get("/metrics").await.is(200).body.to_vec()).unwrap();
    let http = server.client().with("idempotency-key", "k");
    for status in [201, 201] {
        http.send(Method::POST, "/", "a").await.is(status);
    }
    http.send(Method::POST, "/", "b").await.is(422);
    // Without a key there is no claim.
    server.client().send(Method::POST, "/", "c").await.is(201);
    let text = metrics().await;
    for line in [
        "hapax_claims_total{outcome=\"claimed\"} 1",
        "hapax_claims_total{outcome=\"replayed\"} 1",
        "hapax_claims_total{outcome=\"mismatch\"} 1",
        "hapax_claims_total{outcome=\"in_flight\"} 0",
        "hapax_claim_wait_seconds_count 3",
        "hapax_action_duration_seconds_count 1",
        "hapax_in_progress{namespace=\"proxy\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    // Still so after a reload, and while one runs.
    reloader.reload(config(silent.address)).await.unwrap();
    let slow = tokio::spawn({
        let http = server.client().with("idempotency-key", "slow");
        async move { http.send(Method::POST, "/", "").await }
    });
    let began = std::time::Instant::now();
    while !metrics().await.contains("hapax_in_progress{namespace=\"proxy\"} 1") {
        assert!(began.elapsed() < Duration::from_secs(10), "it never runs");
    }
    server.client().with("idempotency-key", "slow").send(Method::POST, "/", "").await.is(409);
    let text = metrics().await;
    for line in [
        "hapax_claims_total{outcome=\"claimed\"} 2",
        "hapax_claims_total{outcome=\"in_flight\"} 1",
        "hapax_claim_wait_seconds_count 5",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    slow.abort();
}

#[tokio::test]
async fn an_upstream_that_dies_in_the_middle_of_its_answer_leaves_doubt() {
    for half in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nconte",
        b"",
        b"nonsense\r\n\r\n",
    ] {
        let up = upstream(half, true).await;
        let server = proxy(up.address, "").await;
        let http = server.client().with("idempotency-key", "k");
        assert_eq!(http.send(Method::POST, "/", "").await.is(502).problem(), "upstream-lost", "{half:?}");
        assert_eq!(http.send(Method::POST, "/", "").await.is(409).problem(), "in-doubt");
        assert_eq!(up.count.load(Ordering::SeqCst), 1, "{half:?}");
        server.stop().await;
    }
}

#[tokio::test]
async fn an_upstream_process_that_is_killed_leaves_doubt() {
    // A process of its own, so that its sockets end as the kernel ends them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let script = format!(
        "import socket,time\ns=socket.socket();s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1);s.bind(('127.0.0.1',{port}));s.listen()\n\
         while True:\n c,_=s.accept()\n c.recv(65536);c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\nhalf')\n time.sleep(60)\n"
    );
    let Ok(mut child) = tokio::process::Command::new("python3").arg("-c").arg(script).kill_on_drop(true).spawn() else {
        return; // no Python here: the test above does the same with a task
    };
    for _ in 0..100 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The connection that looked whether it listens occupies it: another process for the request.
    child.kill().await.unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let server = proxy(address, "").await;
    let http = server.client().with("idempotency-key", "k");
    assert_eq!(http.send(Method::POST, "/", "").await.is(502).problem(), "upstream-unreachable");
    let script = format!(
        "import socket,time\ns=socket.socket();s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1);s.bind(('127.0.0.1',{port}));s.listen()\n\
         c,_=s.accept()\nc.recv(65536);c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\nhalf')\nprint('half',flush=True);time.sleep(60)\n"
    );
    let mut python = tokio::process::Command::new("python3");
    let mut child =
        python.arg("-c").arg(script).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    // Unreachable released the key, so it is tried until the process listens.
    let asked = async {
        loop {
            let answer = http.send(Method::POST, "/", "").await;
            if answer.problem() != "upstream-unreachable" {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let kill = async {
        // It says so when it has sent half of its answer.
        let mut said = [0; 4];
        child.stdout.take().unwrap().read_exact(&mut said).await.unwrap();
        child.kill().await.unwrap();
    };
    let (answer, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(20), asked), kill);
    assert_eq!(answer.unwrap().is(502).problem(), "upstream-lost");
    assert_eq!(http.send(Method::POST, "/", "").await.is(409).problem(), "in-doubt");
    server.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there_releases_the_key() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = proxy(address, "").await;
    let http = server.client().with("idempotency-key", "k");
    for _ in 0..2 {
        let answer = http.send(Method::POST, "/", "").await;
        assert_eq!(
            (answer.is(502).problem().as_str(), answer.header("hapax-state")),
            ("upstream-unreachable", Some("released"))
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_too_slow_leaves_doubt() {
    let up = upstream(b"", false).await;
    let server = proxy(up.address, "upstream_time = \"300ms\"").await;
    let http = server.client().with("idempotency-key", "k");
    assert_eq!(http.send(Method::POST, "/", "").await.is(502).problem(), "upstream-lost");
    assert_eq!(http.send(Method::POST, "/", "").await.is(409).problem(), "in-doubt");
    server.stop().await;
}

#[tokio::test]
async fn an_upstream_that_stalls_in_its_answer_leaves_doubt() {
    for half in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n",
    ] {
        let up = upstream(half, false).await;
        let server = proxy(up.address, "upstream_time = \"300ms\"").await;
        let http = server.client().with("idempotency-key", "k");
        let first = tokio::time::timeout(Duration::from_secs(30), http.send(Method::POST, "/", "")).await.unwrap();
        assert_eq!(first.is(502).problem(), "upstream-lost", "{half:?}");
        assert_eq!(http.send(Method::POST, "/", "").await.is(409).problem(), "in-doubt");
        server.stop().await;
    }
}

#[tokio::test]
async fn heads_empty_answers_and_informational_ones_go_through() {
    let early =
        upstream(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\nx-id: 1\r\n\r\n", false)
            .await;
    let server = proxy(early.address, "").await;
    let http = server.client().with("idempotency-key", "k");
    for replayed in ["false", "true"] {
        let answer = http.send(Method::POST, "/", "").await;
        assert_eq!((answer.is(204).header("idempotency-replayed"), answer.body.len()), (Some(replayed), 0));
    }
    server.stop().await;

    let head = upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\netag: \"x\"\r\n\r\n", false).await;
    let server = proxy(head.address, "").await;
    let answer = server.client().send(Method::HEAD, "/", "").await;
    assert_eq!((answer.is(200).header("content-length"), answer.body.len()), (Some("5"), 0));
    server.stop().await;

    let unchanged = upstream(b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", false).await;
    let server = proxy(unchanged.address, "").await;
    let answer = server.client().get("/").await;
    assert_eq!((answer.is(304).header("etag"), answer.body.len()), (Some("\"x\""), 0));
    server.stop().await;
}

#[tokio::test]
async fn bodies_in_chunks_and_expectations_are_taken_in() {
    let up = upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await;
    let server = proxy(up.address, "").await;
    let chunked = "POST /c HTTP/1.1\r\nhost: a\r\nidempotency-key: c\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = raw(server.address, chunked.as_bytes(), Duration::from_millis(500)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    let expect =
        "POST /e HTTP/1.1\r\nhost: a\r\nidempotency-key: e\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi";
    let answer = raw(server.address, expect.as_bytes(), Duration::from_millis(500)).await;
    assert!(answer.starts_with("HTTP/1.1 100") && answer.ends_with("ok"), "{answer}");
    let heard = up.heard.lock().await.concat();
    assert!(heard.contains("abcde") && !heard.to_ascii_lowercase().contains("expect"), "{heard}");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_configuration_says_so() {
    for bad in ["upstream = \"ftp://a\"", "upstream = \"\"", "upstream = \"http://u:p@a\"", "upstream = \"http://a?b\""]
    {
        let config = ProxyConfig::from_toml(bad).unwrap();
        assert!(ProxyServer::bind(config).await.is_err(), "{bad}");
    }
    for bad in [
        "[fates]\n\"6xx\" = \"keep\"",
        "require = [\"GET\"]",
        "key_pointers = [\"id\"]",
        "key_headers = [\"a b\"]",
        "max_response_bytes = 0",
        "[limits]\nheader_bytes = 1024",
        "[limits]\nconnections = 0",
        "[limits]\ndrain = \"1ms\"",
    ] {
        assert!(ProxyConfig::from_toml(bad).is_err(), "{bad}");
    }
    // However it was made: a reload and a start look again.
    let right = || ProxyConfig::from_toml("upstream = \"http://127.0.0.1:1\"\nlisten = \"127.0.0.1:0\"").unwrap();
    let mut wrong = right();
    wrong.limits.header_bytes = 1024;
    let refused = ProxyServer::bind(wrong.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("limits.header_bytes"), "{refused}");
    let server = ProxyServer::bind(right()).await.unwrap();
    assert!(server.reloader().reload(wrong).await.is_err());
}
