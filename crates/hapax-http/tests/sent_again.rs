//! Requests to a server that are sent again after a lost answer: what is not known is not claimed, and what a second
//! sending could do twice is sent once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::store::{End, Ended, Mark, Removed, Settled, Settlement, Store, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Ttl};
use hapax_http::HttpStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is made of a request.
#[derive(Clone, Copy)]
enum Reply {
    /// It is taken, and the connection cut.
    Cut,
    /// A status and a body.
    Of(u16, &'static str),
}

use Reply::{Cut, Of};

const LOST: Reply = Of(503, r#"{"type":"urn:hapax:problem:answer-lost","detail":"the line broke"}"#);
const AWAY: Reply = Of(503, r#"{"type":"urn:hapax:problem:store-unavailable","detail":"no server"}"#);
const LOST_CLAIM: Reply = Of(409, r#"{"type":"urn:hapax:problem:lost-claim","detail":"another has it"}"#);
const ABSENT: Reply = Of(404, r#"{"type":"urn:hapax:problem:not-found","detail":"there is nothing"}"#);
const INFO: Reply = Of(200, r#"{"now":"2026-01-01T00:00:00.000Z"}"#);

/// A server that makes of each request what its script says, and the requests that it has had.
struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    async fn start(script: &[Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (script, seen) = (script.to_vec(), asked.clone());
        tokio::spawn(async move {
            for reply in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let line = request(&mut stream).await;
                seen.lock().unwrap().push(line);
                if let Of(status, body) = reply {
                    let head =
                        format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                }
            }
        });
        Self { address, asked }
    }

    fn store(&self) -> HttpStore {
        HttpStore::new(&format!("http://{}", self.address), None).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Reads a request to its end; its first line.
async fn request(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    loop {
        let mut part = vec![0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        assert!(read > 0, "cut short: {text}");
        text.push_str(std::str::from_utf8(part.get(..read).unwrap()).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        if body.len() >= length {
            return head.lines().next().unwrap().to_string();
        }
    }
}

fn ns() -> Arc<str> {
    "team".into()
}

fn key() -> Key {
    Key::given("k").unwrap()
}

fn is_lost<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::AnswerLost { .. })), "{answer:?}");
}

async fn complete(script: &[Reply]) -> (Result<Ended, StoreError>, usize) {
    let server = Scripted::start(script).await;
    let end = End::Complete { result: Json::of(&1).unwrap(), ttl: Ttl::Never, duration: Duration::ZERO };
    (server.store().end(ns(), key(), AttemptId::new(), end).await, server.asked())
}

async fn settle(script: &[Reply], of: Option<AttemptId>, how: Settlement) -> (Result<Settled, StoreError>, usize) {
    let server = Scripted::start(script).await;
    (server.store().settle(ns(), key(), of, how).await, server.asked())
}

#[tokio::test]
async fn an_end_whose_first_answer_was_lost_is_not_told_that_it_lost_its_claim() {
    for first in [Cut, LOST, Of(502, "bad gateway")] {
        is_lost(complete(&[first, LOST_CLAIM, ABSENT]).await.0);
    }
    // The server knows that it did not do it: what the second sending is told is true.
    let (ended, asked) = complete(&[AWAY, LOST_CLAIM, ABSENT]).await;
    assert!(matches!(ended, Ok(Ended::Lost(None))), "{ended:?}");
    assert_eq!(asked, 3);
    let done = Of(200, r#"{"key":"k","state":"completed","at":"2026-01-01T00:00:00.000Z","expiresAt":null}"#);
    let (ended, _) = complete(&[Cut, done]).await;
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_release_that_is_sent_again_and_finds_the_key_free_is_done() {
    let server = Scripted::start(&[Cut, LOST_CLAIM, ABSENT, INFO]).await;
    let ended = server.store().end(ns(), key(), AttemptId::new(), End::Release).await;
    assert!(matches!(ended, Ok(Ended::Done { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_settlement_by_key_alone_is_sent_once() {
    for lost in [Cut, LOST, Of(504, "")] {
        let (settled, asked) = settle(&[lost, INFO], None, Settlement::NotHappened).await;
        is_lost(settled);
        assert_eq!(asked, 1);
    }
    // What was surely not done may be tried again.
    let (settled, asked) = settle(&[AWAY, Of(200, r#"{"record":null}"#)], None, Settlement::NotHappened).await;
    assert!(matches!(settled, Ok(Settled::Done(None))), "{settled:?}");
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn a_settlement_of_an_attempt_is_sent_again_and_claims_nothing_it_does_not_know() {
    let of = Some(AttemptId::new());
    let happened = Settlement::Happened { result: Json::of(&1).unwrap(), ttl: Ttl::Never };
    let (settled, asked) = settle(&[Cut, Of(409, r#"{"type":"urn:hapax:problem:wrong-state"}"#)], of, happened).await;
    is_lost(settled);
    assert_eq!(asked, 2);
    let (settled, _) = settle(&[Cut, ABSENT], of, Settlement::NotHappened).await;
    assert!(matches!(settled, Ok(Settled::Done(None))), "{settled:?}");
}

#[tokio::test]
async fn a_removal_is_sent_once() {
    for (script, lost) in [(&[Cut, ABSENT][..], true), (&[AWAY, ABSENT][..], false)] {
        let server = Scripted::start(script).await;
        let removed = server.store().remove(ns(), key()).await;
        match lost {
            true => is_lost(removed),
            false => assert!(matches!(removed, Ok(Removed::Absent)), "{removed:?}"),
        }
        assert_eq!(server.asked(), if lost { 1 } else { 2 });
    }
    let server = Scripted::start(&[Cut, INFO]).await;
    is_lost(server.store().clear(ns()).await);
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_mark_that_is_sent_again_and_finds_anothers_record_is_told_that_nobody_knows() {
    let mark = || Mark {
        namespace: ns(),
        key: key(),
        signal_id: None,
        action_type: "a".into(),
        target: "t".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: Arc::new(Owner { host: "host".into(), pid: 1, label: None }),
        result: Json::of(&1).unwrap(),
        ttl: Ttl::Never,
        capacity: None,
    };
    for second in [Of(200, "{}"), Of(409, r#"{"type":"urn:hapax:problem:wrong-state"}"#)] {
        is_lost(Scripted::start(&[Cut, second]).await.store().mark(mark()).await);
    }
}

#[tokio::test]
async fn what_is_only_read_is_not_said_to_be_lost() {
    let server = Scripted::start(&[AWAY, AWAY, AWAY]).await;
    let got = server.store().get(ns(), key()).await;
    assert!(matches!(got, Err(StoreError::Unavailable { .. })), "{got:?}");
    assert_eq!(server.asked(), 3);
}
