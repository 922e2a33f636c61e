//! Numbers: claim and complete, and replays, over HTTP, beside a bare axum
//! handler that sends an answer of the same size, in the same run.
//!
//! `cargo run --release --example bench -- [STORE] [SECONDS]`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use hapax_http::{ApiServer, ServeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLAIM: &str =
    r#"{"signalId":"signal-123","actionType":"create_task","target":"trello","params":{"name":"Task","id":123}}"#;

/// A connection that asks and reads the body of the answer.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: vec![0; 64 << 10] }
    }

    async fn ask(&mut self, path: &str, body: &str) -> String {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut len = 0;
        loop {
            let n = self.stream.read(&mut self.buffer[len..]).await.unwrap();
            assert!(n > 0, "the server hung up");
            len += n;
            let text = std::str::from_utf8(&self.buffer[..len]).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length =
                head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
            if body.len() >= length {
                assert!(head.starts_with("HTTP/1.1 2"), "{text}");
                return body.to_string();
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Work {
    Bare,
    Replay,
    Fresh,
}

async fn measure(work: Work, address: SocketAddr, connections: usize, seconds: u64) -> (f64, f64, f64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await;
                let mut times = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    match work {
                        Work::Bare => drop(connection.ask("/bare", CLAIM).await),
                        Work::Replay => drop(connection.ask("/v1/claims", CLAIM).await),
                        Work::Fresh => {
                            let key = format!("k-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                            let claimed = connection.ask("/v1/claims", &format!(r#"{{"key":"{key}"}}"#)).await;
                            let claimed: serde_json::Value = serde_json::from_str(&claimed).unwrap();
                            let path = format!("/v1/claims/{}/complete", claimed["attemptId"].as_str().unwrap());
                            connection.ask(&path, &format!(r#"{{"key":"{key}","result":{{"card":1}}}}"#)).await;
                        }
                    }
                    times.push(began.elapsed().as_secs_f64() * 1e6);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    (times.len() as f64 / seconds as f64, at(0.5), at(0.99))
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let store = args.next().unwrap_or_else(|| "memory:".into());
    let seconds = args.next().map_or(3, |s| s.parse().unwrap());
    let mut config = ServeConfig::default();
    config.store = store.clone();
    // `memory:` keeps 10 000 records unless told otherwise, and would evict the one that is replayed.
    config.max_entries = Some(100_000_000);
    config.listen.set_port(0);
    let server = ApiServer::bind(config).await.unwrap();
    let address = server.address();
    tokio::spawn(server.run(std::future::pending()));
    let mut connection = Connection::open(address).await;
    let claimed: serde_json::Value = serde_json::from_str(&connection.ask("/v1/claims", CLAIM).await).unwrap();
    let path = format!("/v1/claims/{}/complete", claimed["attemptId"].as_str().unwrap());
    let result = format!(r#"{{"key":"{}","result":{{"card":1}}}}"#, claimed["key"].as_str().unwrap());
    connection.ask(&path, &result).await;
    let answer: Arc<str> = connection.ask("/v1/claims", CLAIM).await.into();

    let bare = Router::new().route(
        "/bare",
        post(
            move |_body: axum::body::Bytes| async move { ([("content-type", "application/json")], answer.to_string()) },
        ),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, bare).await.unwrap() });

    println!("store {store}, {seconds} s each; calls/s, p50 and p99 in µs; claim+complete is two requests");
    println!("{:>5} {:>28} {:>28} {:>7} {:>28}", "conns", "bare axum", "replay", "share", "claim+complete");
    for connections in [1, 16, 64, 256] {
        let bare = measure(Work::Bare, plain, connections, seconds).await;
        let replay = measure(Work::Replay, address, connections, seconds).await;
        let fresh = measure(Work::Fresh, address, connections, seconds).await;
        let show = |(rate, p50, p99): (f64, f64, f64)| format!("{rate:>9.0} {p50:>8.0} {p99:>8.0}");
        let share = replay.0 / bare.0 * 100.0;
        println!("{connections:>5} {:>28} {:>28} {share:>6.0}% {:>28}", show(bare), show(replay), show(fresh));
    }
}
