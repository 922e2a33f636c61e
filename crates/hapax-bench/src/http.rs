//! (h) The server over HTTP, beside a bare axum handler that sends an answer of the same size.
//!
//! Server, bare handler and clients share one runtime, so that each has the same cores. A client is a socket that
//! writes a request and reads its answer, again and again: a library's client would cost more than the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::routing::post;
use hapax_http::{ApiServer, ServeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::report::{Part, Row, Show};
use crate::run::processor;
use crate::stats::{Contestant, interleave, median};

const CLAIM: &str =
    r#"{"signalId":"signal-123","actionType":"create_task","target":"trello","params":{"name":"Task","id":123}}"#;
/// The least share of the bare handler's speed that replays aim at.
const TARGET: f64 = 0.7;
/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    pub connections: Vec<usize>,
    /// How long a run takes.
    pub run: Duration,
    pub rounds: usize,
}

/// A connection that asks and reads the body of the answer.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4 << 10) })
    }

    async fn ask(&mut self, path: &str, body: &str) -> Result<String> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the server hung up");
            ensure!(self.buffer.len() < MAX_ANSWER, "the answer is too large");
            let text = std::str::from_utf8(&self.buffer).context("the answer is no text")?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(Ok(0), str::parse)?;
            if body.len() >= length {
                ensure!(head.starts_with("HTTP/1.1 2"), "{text}");
                return Ok(body.to_string());
            }
        }
    }

    /// Claims what is new and completes it.
    async fn execute(&mut self, key: &str) -> Result<()> {
        let claimed = self.ask("/v1/claims", &format!(r#"{{"key":"{key}"}}"#)).await?;
        let path = complete_path(&claimed)?;
        self.ask(&path, &format!(r#"{{"key":"{key}","result":{{"card":1}}}}"#)).await?;
        Ok(())
    }
}

fn complete_path(claimed: &str) -> Result<String> {
    let claimed: serde_json::Value = serde_json::from_str(claimed)?;
    let attempt = claimed.get("attemptId").and_then(|id| id.as_str()).context("nothing was claimed")?;
    Ok(format!("/v1/claims/{attempt}/complete"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Bare,
    Replay,
    Fresh,
}

/// Both servers, and how to keep them busy.
struct Servers {
    runtime: Runtime,
    hapax: SocketAddr,
    bare: SocketAddr,
    next: Arc<AtomicU64>,
}

impl Servers {
    fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let (hapax, bare) = runtime.block_on(async {
            let mut config = ServeConfig::default();
            // `memory:` keeps 10 000 records unless told otherwise, and would evict the one that is replayed.
            config.max_entries = Some(100_000_000);
            config.listen.set_port(0);
            let server = ApiServer::bind(config).await?;
            let hapax = server.address();
            tokio::spawn(server.run(std::future::pending()));
            let mut connection = Connection::open(hapax).await?;
            let claimed = connection.ask("/v1/claims", CLAIM).await?;
            let value: serde_json::Value = serde_json::from_str(&claimed)?;
            let key = value.get("key").and_then(|key| key.as_str()).context("nothing was claimed")?;
            let result = format!(r#"{{"key":"{key}","result":{{"card":1}}}}"#);
            connection.ask(&complete_path(&claimed)?, &result).await?;
            let answer: Arc<str> = connection.ask("/v1/claims", CLAIM).await?.into();
            ensure!(answer.contains("replayed"), "it is not replayed: {answer}");
            let handler = move |_body: axum::body::Bytes| async move {
                ([("content-type", "application/json")], answer.to_string())
            };
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let bare = listener.local_addr()?;
            let router = Router::new().route("/bare", post(handler));
            tokio::spawn(async move { axum::serve(listener, router).await });
            anyhow::Ok((hapax, bare))
        })?;
        Ok(Self { runtime, hapax, bare, next: Arc::default() })
    }

    /// Seconds per call of all connections together, and the time of each call, in order.
    ///
    /// With the processor time of a call, its client's included.
    fn run(&self, work: Work, connections: usize, run: Duration) -> Result<(f64, f64, Vec<f64>)> {
        let before = processor(std::process::id())?;
        let until = Instant::now() + run;
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let address = if work == Work::Bare { self.bare } else { self.hapax };
                let next = self.next.clone();
                self.runtime.spawn(async move {
                    let mut connection = Connection::open(address).await?;
                    let mut times = Vec::new();
                    while Instant::now() < until {
                        let began = Instant::now();
                        match work {
                            Work::Bare => drop(connection.ask("/bare", CLAIM).await?),
                            Work::Replay => drop(connection.ask("/v1/claims", CLAIM).await?),
                            Work::Fresh => {
                                connection.execute(&format!("k-{}", next.fetch_add(1, Ordering::Relaxed))).await?;
                            }
                        }
                        times.push(began.elapsed().as_secs_f64());
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(self.runtime.block_on(task)??);
        }
        if times.is_empty() {
            bail!("no call ended within {run:?}");
        }
        times.sort_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss)] // counts far below 2^53
        let calls = times.len() as f64;
        Ok((run.as_secs_f64() / calls, (processor(std::process::id())? - before) / calls, times))
    }
}

/// The value that this share of the sorted values does not exceed.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // an index
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

pub fn measure(size: &Size, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Vec<String>)> {
    let servers = Servers::start()?;
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for &connections in &size.connections {
        say(&format!("h: HTTP, {connections} connections"));
        // p50, p99 and processor time of each round, by what was done.
        let kinds = [("bare axum", Work::Bare), ("replay", Work::Replay), ("claim and complete", Work::Fresh)];
        let mut tails: [Vec<[f64; 3]>; 3] = Default::default();
        let mut contestants: Vec<_> = kinds
            .iter()
            .zip(&mut tails)
            .map(|((name, work), tails)| {
                let servers = &servers;
                Contestant::new(*name, move || {
                    let (seconds, spent, times) = servers.run(*work, connections, size.run)?;
                    tails.push([quantile(&times, 0.5), quantile(&times, 0.99), spent]);
                    Ok(seconds)
                })
            })
            .collect();
        let series = interleave(&mut contestants, size.rounds)?;
        drop(contestants);
        let [bare, replay, fresh] = series.as_slice() else { bail!("three were measured") };
        let with = format!("{connections} connection{}", if connections == 1 { "" } else { "s" });
        rows.push(
            Row::new(Part::H, format!("replay over HTTP, {with}"), Show::Rate, replay, bare).target(Some(TARGET)),
        );
        rows.push(Row::new(Part::H, format!("claim and complete over HTTP, {with}"), Show::Rate, fresh, bare));
        let shown = kinds.iter().zip(&tails).map(|((name, _), tails)| {
            let of = |place: usize| {
                let values: Vec<f64> = tails.iter().filter_map(|t| t.get(place).copied()).collect();
                median(&values).map_or_else(|| "–".into(), |m| Show::Time.figure(m))
            };
            format!("{name} {}, {} and {}", of(0), of(1), of(2))
        });
        notes.push(format!(
            "h, {with}, p50, p99 and processor time of server and client: {}.",
            shown.collect::<Vec<_>>().join("; ")
        ));
    }
    notes.push("h: a claim and its completion are two requests, counted as one; the store is `memory:`.".into());
    Ok((rows, notes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_has_a_row_for_each_and_replays_are_replays() {
        let size = Size { connections: vec![2], run: Duration::from_millis(50), rounds: 1 };
        let (rows, notes) = measure(&size, &mut |_| {}).unwrap();
        assert_eq!((rows.len(), notes.len()), (2, 2));
        assert!(rows.iter().all(|row| row.ratio.is_some()));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let sorted: Vec<f64> = (0..101).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&[], 0.5)), (50.0, 99.0, 0.0));
    }
}
