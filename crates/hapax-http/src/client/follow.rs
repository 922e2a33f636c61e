//! Following a server's feed: what `/v1/events` says, typed, and followed again when the connection is lost.
//!
//! Invariants: one event is at most [`MAX_EVENT`] long, and [`BACKLOG`] wait for their reader; a reader that is
//! slower holds back the connection, and the server then says that some were missed.

use std::sync::Arc;
use std::time::Duration;

use hapax::store::StoreError;
use hapax::{Key, Record, Stats};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::HttpStore;
use super::wire::{Answer, Wire};

/// The longest event: a record's error is 64 KiB at most.
const MAX_EVENT: usize = 1 << 20;
/// Events that wait for their reader.
const BACKLOG: usize = 256;
/// A server says something every second, and lives every 15 s at least.
const SILENCE: Duration = Duration::from_secs(40);
/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// How long after a loss it is tried again, twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LAST_WAIT: Duration = Duration::from_secs(15);

/// What a server tells of a namespace.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Told {
    /// The server is heard from here on: what was before it does not tell.
    Open,
    /// The statistics; about once a second.
    Stats(Box<Stats>),
    /// A record changed. It comes without its params and result.
    Changed(Box<Record>),
    /// The key is absent now.
    Gone(Key),
    /// Some were missed.
    Missed,
    /// The server is not heard any more, for this reason; it is tried again.
    Lost(String),
}

impl HttpStore {
    /// Follows what happens in a namespace (see `GET /v1/events`), until the receiver is dropped.
    ///
    /// A connection that is lost is made again, after a quarter of a second at first and 15 seconds at most.
    #[must_use]
    pub fn follow(&self, namespace: &str) -> mpsc::Receiver<Told> {
        let (tell, told) = mpsc::channel(BACKLOG);
        let wire = self.wire.clone();
        let namespace = HeaderValue::from_str(namespace);
        if let (Some(runtime), Ok(namespace)) = (&self.runtime, namespace) {
            runtime.spawn(async move {
                tokio::select! {
                    () = tell.closed() => {}
                    () = follow(&wire, &namespace, &tell) => {}
                }
            });
        }
        told
    }

    /// How long the server has been up, if it tells.
    ///
    /// # Errors
    /// As of every request.
    pub async fn uptime(&self, namespace: &str) -> Result<Option<Duration>, StoreError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Info {
            uptime_ms: Option<u64>,
        }
        let info: Info = self.looked(namespace.into(), "/v1/info").await?;
        Ok(info.uptime_ms.map(Duration::from_millis))
    }
}

async fn follow(wire: &Arc<Wire>, namespace: &HeaderValue, tell: &mpsc::Sender<Told>) {
    let mut wait = FIRST_WAIT;
    loop {
        let mut is_heard = false;
        let why = match once(wire, namespace, tell, &mut is_heard).await {
            Ok(()) => "the server ended the stream".into(),
            Err(why) => why,
        };
        if is_heard {
            wait = FIRST_WAIT;
        }
        if tell.send(Told::Lost(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}

async fn once(
    wire: &Arc<Wire>,
    namespace: &HeaderValue,
    tell: &mpsc::Sender<Told>,
    is_heard: &mut bool,
) -> Result<(), String> {
    let request = wire.request(namespace, &Method::GET, "/v1/events", None).map_err(|e| e.to_string())?;
    let answer = tokio::time::timeout(ANSWER, wire.client.request(request)).await;
    let answer = answer.map_err(|_| format!("the server took longer than {ANSWER:?}"))?.map_err(|e| e.to_string())?;
    let (parts, body) = answer.into_parts();
    if parts.status != StatusCode::OK {
        let body = tokio::time::timeout(ANSWER, http_body_util::Limited::new(body, MAX_EVENT).collect()).await;
        let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return Err(wire.refused(&Answer { status: parts.status, body, unsure: false }).to_string());
    }
    *is_heard = true;
    let mut events = Events { body, read: Vec::new() };
    // Whoever has gone needs nothing more.
    let gone = |_| String::new();
    tell.send(Told::Open).await.map_err(gone)?;
    while let Some(event) = events.next().await? {
        if let Some(told) = told(&event) {
            tell.send(told).await.map_err(gone)?;
        }
    }
    Ok(())
}

/// A stream of events, cut into them.
struct Events {
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// The next event's lines.
    async fn next(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let event = String::from_utf8_lossy(self.read.get(..end).unwrap_or_default()).into_owned();
                self.read.drain(..end + 2);
                return Ok(Some(event));
            }
            if self.read.len() > MAX_EVENT {
                return Err(format!("the server sent an event of more than {MAX_EVENT} bytes"));
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            match frame.map_err(|_| format!("the server was silent for {SILENCE:?}"))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// What an event says, if it is one that is known.
fn told(event: &str) -> Option<Told> {
    #[derive(Deserialize)]
    struct Gone {
        key: Key,
    }
    let field = |name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.strip_prefix(' ').unwrap_or(line))
    };
    let data = field("data")?;
    match field("event")? {
        "stats" => Some(Told::Stats(serde_json::from_str(data).ok()?)),
        "record" => Some(Told::Changed(serde_json::from_str(data).ok()?)),
        "gone" => Some(Told::Gone(serde_json::from_str::<Gone>(data).ok()?.key)),
        "lagged" => Some(Told::Missed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_what_is_unknown_is_passed_over() {
        assert!(matches!(told("event: gone\ndata: {\"key\":\"k\"}"), Some(Told::Gone(key)) if key.as_str() == "k"));
        assert!(matches!(told("event: lagged\ndata: 7"), Some(Told::Missed)));
        let stats = serde_json::to_string(&Stats { in_doubt: 3, ..Stats::default() }).unwrap_or_default();
        assert!(matches!(told(&format!("event:stats\ndata:{stats}")), Some(Told::Stats(s)) if s.in_doubt == 3));
        for unknown in [":", "", "event: new\ndata: {}", "event: record\ndata: {", "data: {}"] {
            assert!(told(unknown).is_none(), "{unknown}");
        }
    }
}
