//! What the model does, the real stores do: its paths are replayed on them, and
//! each answer and each record compared.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use hapax::store::memory::MemoryStore;
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::{Key, ManualClock};
use hapax_model::driver::{Clock, Driver};
use hapax_model::protocol::OnDoubt::{Refuse, RunAgain, Verify};
use hapax_model::protocol::Protocol;
use hapax_model::replay::{Wall, all_paths, exhaust, follow, walk};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::redis::{RedisConfig, RedisServer};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn memory() -> Driver {
    let clock = ManualClock::new();
    let store = MemoryStore::with_clock(Arc::new(clock.clone()));
    Driver::new(Arc::new(store), clock, Key::given("k").unwrap())
}

fn sqlite(dir: &tempfile::TempDir) -> Driver {
    let clock = ManualClock::new();
    let options = SqliteOptions::new(dir.path().join("s.db")).durability(Durability::Buffered);
    let store = SqliteStore::open(options.clock(Arc::new(clock.clone()))).unwrap();
    Driver::new(Arc::new(store), clock, Key::given("k").unwrap())
}

/// Callers of two kinds, with numbers that stay an attempt's. The power does not fail.
fn protocol() -> Protocol {
    Protocol { symmetry: false, power: false, ..Protocol::of(&[RunAgain, Verify]) }
}

async fn walks(driver: &Driver, wall: Wall, count: u64, seed: u64) {
    let mut ops = 0;
    for n in 0..count {
        let path = walk(&protocol(), wall, 80, &mut StdRng::seed_from_u64(seed + n));
        ops += path.len();
        let parting = follow(driver, &path).await.unwrap();
        assert!(parting.is_none(), "walk of seed {}: {parting:#?}", seed + n);
    }
    println!("{}: {count} walks, {ops} moves", driver.store().location());
}

async fn paths(driver: &Driver, wall: Wall, steps: usize) {
    let protocol = Protocol { symmetry: false, power: false, attempts: 2, ..Protocol::of(&[Refuse, RunAgain]) };
    let paths = all_paths(&protocol, wall, steps);
    for path in &paths {
        let parting = follow(driver, path).await.unwrap();
        assert!(parting.is_none(), "{parting:#?}");
    }
    println!("{}: all {} paths of {steps} steps", driver.store().location(), paths.len());
}

#[tokio::test]
async fn the_memory_store_follows_the_model() {
    let driver = memory();
    walks(&driver, Wall::Forward, 5_000, 0).await;
    paths(&driver, Wall::Forward, 8).await;
}

#[tokio::test]
async fn the_memory_store_answers_every_short_sequence_as_the_specification_does() {
    let followed = exhaust(&memory(), 4).await.unwrap().unwrap();
    println!("{followed} sequences");
}

#[tokio::test]
async fn the_sqlite_store_follows_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let driver = sqlite(&dir);
    walks(&driver, Wall::BothWays, 100, 1_000_000).await;
    paths(&driver, Wall::BothWays, 6).await;
}

#[tokio::test]
async fn the_sqlite_store_answers_every_short_sequence_as_the_specification_does() {
    let dir = tempfile::tempdir().unwrap();
    let followed = exhaust(&sqlite(&dir), 2).await.unwrap().unwrap();
    println!("{followed} sequences");
}

/// A store that takes its time from its server's clock.
async fn on_server(url: &str) -> Driver {
    Driver::new(hapax::store::open(url).await.unwrap(), Clock::Server, Key::given("k").unwrap())
}

#[tokio::test]
async fn the_redis_store_follows_the_model() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    let driver = on_server(&redis.url()).await;
    walks(&driver, Wall::Still, 100, 2_000_000).await;
    paths(&driver, Wall::Still, 5).await;
}

#[tokio::test]
async fn the_postgres_store_follows_the_model() {
    let postgres = PostgresServer::start(Disk::Fast, Tls::Off).unwrap();
    let driver = on_server(&postgres.url("postgres")).await;
    walks(&driver, Wall::Still, 60, 3_000_000).await;
    paths(&driver, Wall::Still, 5).await;
}
