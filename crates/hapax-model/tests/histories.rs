//! Concurrent histories of the stores, with calls that are dropped half-way, a
//! disk that is full and processes that are killed: each has an order that
//! explains it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use hapax::store::Store;
use hapax::store::memory::MemoryStore;
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::{Key, ManualClock};
use hapax_model::driver::Clock;
use hapax_model::history::record;
use hapax_model::linear::{Refused, Sends, linearize};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::redis::{RedisConfig, RedisServer};

/// Records and judges this many histories of fresh keys; returns how many calls there were.
fn judge(handles: &[Arc<dyn Store>], clock: impl Into<Clock>, histories: u64) -> usize {
    let (mut calls, clock) = (0, clock.into());
    for seed in 0..histories {
        let key = Key::given(&format!("key-{seed}")).unwrap();
        let events = record(handles, &clock, &key, seed);
        calls += events.len();
        if let Err(Refused::NoOrder(story)) = linearize(&events, Sends::Once) {
            assert!(story.is_empty(), "seed {seed}: no order explains\n{story}");
        }
    }
    calls
}

#[test]
fn histories_of_the_memory_store_are_linearizable() {
    let clock = ManualClock::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
    let calls = judge(&[store.clone(), store.clone(), store.clone(), store], clock, 2_000);
    println!("memory: 2000 histories, {calls} calls");
}

fn sqlite(dir: &tempfile::TempDir, clock: &ManualClock, handles: usize, pages: Option<u32>) -> Vec<Arc<dyn Store>> {
    let mut options = SqliteOptions::new(dir.path().join("s.db")).durability(Durability::Buffered);
    options = options.clock(Arc::new(clock.clone()));
    if let Some(pages) = pages {
        options = options.max_pages(pages);
    }
    (0..handles).map(|_| Arc::new(SqliteStore::open(options.clone()).unwrap()) as Arc<dyn Store>).collect()
}

#[test]
fn histories_of_three_sqlite_handles_on_one_file_are_linearizable() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let calls = judge(&sqlite(&dir, &clock, 3, None), clock, 120);
    println!("sqlite: 120 histories of 3 handles, {calls} calls");
}

#[test]
fn histories_of_a_sqlite_file_that_is_full_are_linearizable() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let calls = judge(&sqlite(&dir, &clock, 3, Some(20)), clock, 120);
    println!("sqlite, full: 120 histories, {calls} calls that the store did not refuse");
    assert!(calls < 7_900, "the file was never full");
}

#[test]
fn histories_of_sqlite_processes_that_are_killed_are_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_hapax-model"));
    let recorded = hapax_model::fleet::record(program, dir.path(), 1, 3, 100).unwrap();
    let calls: usize = recorded.histories.values().map(Vec::len).sum();
    println!("sqlite: {} histories, {calls} calls and deaths, {} kills", recorded.histories.len(), recorded.kills);
    assert!(recorded.histories.len() > 50 && recorded.kills > 10);
    for (key, events) in &recorded.histories {
        if let Err(Refused::NoOrder(story)) = linearize(events, Sends::Once) {
            assert!(story.is_empty(), "key {key}: no order explains\n{story}");
        }
    }
}

/// Judges histories of four handles of a server's store; one call in twenty is dropped.
fn judge_server(url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handles = [(); 4].map(|()| runtime.block_on(hapax::store::open(url)).unwrap());
    let calls = judge(&handles, Clock::Server, 120);
    println!("{}: 120 histories of 4 handles, {calls} calls", handles[0].location());
}

#[test]
fn histories_of_four_redis_handles_are_linearizable() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    judge_server(&redis.url());
}

#[test]
fn histories_of_four_postgres_handles_are_linearizable() {
    let postgres = PostgresServer::start(Disk::Fast, Tls::Off).unwrap();
    judge_server(&postgres.url("postgres"));
}

/// Judges histories of four handles, two of which lose their connections over and over, for a few seconds.
fn judge_cut(url: &str, port: u16) {
    let within = std::time::Duration::from_secs(6);
    let judged = hapax_model::cut::judge(url, port, 1_000..1_200, within).unwrap_or_else(|told| panic!("{told}"));
    println!("{}: {judged:?}", url.split(':').next().unwrap());
    assert!(judged.cuts > 5 && judged.unanswered > 0, "{judged:?}");
}

#[test]
fn histories_of_redis_handles_whose_connections_are_cut_are_linearizable() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    judge_cut(&redis.url(), redis.port());
}

#[test]
fn histories_of_postgres_handles_whose_connections_are_cut_are_linearizable() {
    let postgres = PostgresServer::start(Disk::Fast, Tls::Off).unwrap();
    judge_cut(&postgres.url("postgres"), postgres.port());
}
