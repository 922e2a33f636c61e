//! What is true of the SQLite store alone: processes, files, damage, room.
//! What it shares with every store is in `tests/conformance.rs`.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod child;
mod damage;
mod files;
mod processes;
mod room;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Begin, Begun, End, Ended, Store};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Record, State, Ttl};

const HOUR: Duration = Duration::from_secs(3600);

/// A directory, and the path of a store in it that is not there yet.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hapax.db");
    (directory, path)
}

/// Opened so that tests do not wait for the device.
fn open(path: &Path) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(SqliteOptions::new(path).durability(Durability::Buffered)).unwrap())
}

fn key(text: &str) -> Key {
    Key::given(text).unwrap()
}

fn space() -> Arc<str> {
    "default".into()
}

fn ask(text: &str) -> Begin {
    Begin {
        namespace: space(),
        key: key(text),
        signal_id: None,
        action_type: "create_task".into(),
        target: "trello".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: Arc::new(Owner { host: "host".into(), pid: std::process::id(), label: None }),
        liveness: hapax::store::Liveness::Process,
        lease: HOUR,
        tags: Default::default(),
        take_over: None,
        capacity: None,
    }
}

async fn start(store: &SqliteStore, text: &str) -> AttemptId {
    let begin = ask(text);
    let attempt = begin.attempt;
    let begun = store.begin(begin).await.unwrap();
    assert!(matches!(begun, Begun::Started { .. }), "{begun:?}");
    attempt
}

fn complete(text: &str) -> End {
    End::Complete { result: Json::of(text).unwrap(), ttl: Ttl::Never, duration: Duration::ZERO }
}

async fn completed(store: &SqliteStore, text: &str) {
    let attempt = start(store, text).await;
    let ended = store.end(space(), key(text), attempt, complete(text)).await.unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
}

async fn get(store: &SqliteStore, text: &str) -> Option<Record> {
    store.get(space(), key(text)).await.unwrap().map(|record| *record)
}

async fn state(store: &SqliteStore, text: &str) -> Option<State> {
    get(store, text).await.map(|record| record.state)
}

/// Polls until it is so; panics if it is not within the limit.
async fn until<Fut: Future<Output = bool>>(limit: Duration, what: &str, mut so: impl FnMut() -> Fut) -> Duration {
    let since = Instant::now();
    while !so().await {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    since.elapsed()
}
