//! Callers of `hapax run` over a server, killed at random and tried again until they are told how it ended, while the
//! server is killed too: what the command did, by a ledger that it appends to, is done once and told truly.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Done, Home};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::redis::{RedisConfig, RedisServer};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;

const KEYS: usize = 8;
const CALLERS: u64 = 4;
/// How long anybody tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// The effect, then the result: which attempt it was.
const SCRIPT: &str = "echo \"$HAPAX_KEY $HAPAX_ATTEMPT\" >> ledger; sleep 0.02; echo $HAPAX_ATTEMPT";
const VERIFIER: &str = "grep \"^$HAPAX_KEY \" ledger | cut -d ' ' -f 2 | grep .";

fn args<'a>(url: &'a str, key: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags = ["--store", url, "run", "--lease", "1s", "--wait", "2s", "--key", key];
    [&flags[..], more, &["--", "sh", "-c", SCRIPT]].concat()
}

fn name(n: usize) -> String {
    format!("k{n}")
}

/// Runs all keys, each until it is told a result or a doubt; what it was told.
fn caller(home: &Home, url: &str, rng: &mut StdRng, kills: &AtomicU32) -> Vec<(String, Done)> {
    let mut keys: Vec<String> = (0..KEYS).map(name).collect();
    keys.shuffle(rng);
    let mut is_first = true;
    keys.into_iter()
        .map(|key| {
            let until = Instant::now() + PATIENCE;
            loop {
                let mut running = home.start(args(url, &key, &[]));
                // The first one surely: it is killed before its command can have ended.
                if std::mem::take(&mut is_first) || rng.random_bool(0.6) {
                    let most = if kills.load(Ordering::Relaxed) < u32::try_from(CALLERS).unwrap() { 10 } else { 200 };
                    std::thread::sleep(Duration::from_millis(rng.random_range(0..most)));
                    if !running.is_over() {
                        running.signal(Signal::KILL);
                        kills.fetch_add(1, Ordering::Relaxed);
                    }
                }
                let done = running.finish();
                match done.code {
                    Some(0 | 76) => return (key, done),
                    // Killed, turned away, or no server: with the same key again.
                    None | Some(69 | 75) => assert!(Instant::now() < until, "{key} never ends: {done:?}"),
                    _ => panic!("{key}: {done:?}"),
                }
            }
        })
        .collect()
}

/// The attempts that had an effect, by key.
fn ledger(home: &Home) -> HashMap<String, Vec<String>> {
    let mut attempts: HashMap<String, Vec<String>> = HashMap::new();
    for line in home.ledger() {
        let (key, attempt) = line.split_once(' ').unwrap();
        attempts.entry(key.into()).or_default().push(attempt.into());
    }
    attempts
}

fn a_fleet_is_killed(url: &str, mut kill_server: impl FnMut() + Send) {
    let (home, kills, seed) = (Home::new(), AtomicU32::new(0), rand::rng().random::<u64>());
    println!("seed {seed}");
    let told: Vec<(String, Done)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let (home, kills) = (&home, &kills);
                scope.spawn(move || caller(home, url, &mut StdRng::seed_from_u64(seed.wrapping_add(n)), kills))
            })
            .collect();
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(700));
            kill_server();
        }
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    // What a killed hapax has started runs to its end, and its lease lapses.
    std::thread::sleep(Duration::from_millis(1_500));
    let (before, mut doubts) = (ledger(&home), 0);
    for key in (0..KEYS).map(name) {
        let done = home.run(["--store", url, "--json", "get", &key]);
        let record: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let effects = before.get(&key).cloned().unwrap_or_default();
        let at = format!("{key}: {record}, effects {effects:?}");
        match record["state"].as_str() {
            Some("completed") => assert_eq!(effects, [record["attemptId"].as_str().unwrap()], "{at}"),
            Some("in_doubt") => {
                doubts += 1;
                assert!(effects.len() <= 1, "{at}");
            }
            _ => panic!("{at}"),
        }
        for (_, done) in told.iter().filter(|(of, done)| *of == key && done.code == Some(0)) {
            assert_eq!(record["state"], "completed", "{at}: told {done:?}");
            assert_eq!(done.stdout.trim_end(), effects[0], "{at}");
        }
    }
    // Who looks into the ledger brings each key to one effect.
    for key in (0..KEYS).map(name) {
        let done = home.run(args(url, &key, &["--verify", VERIFIER]));
        assert_eq!(done.code, Some(0), "{key}: {done:?}");
        assert_eq!(ledger(&home)[&key], [done.stdout.trim_end().to_string()], "{key}");
    }
    let kills = kills.into_inner();
    println!("{} calls, {kills} kills, {doubts} of {KEYS} keys in doubt", told.len());
    assert!(u64::from(kills) >= CALLERS, "{kills} kills");
}

#[test]
fn over_redis_every_effect_happens_once_and_is_told_or_doubted() {
    let mut redis = RedisServer::start(RedisConfig::new().aof("always")).unwrap();
    a_fleet_is_killed(&redis.url(), || redis.restart().unwrap());
}

#[test]
fn over_postgres_every_effect_happens_once_and_is_told_or_doubted() {
    let mut postgres = PostgresServer::start(Disk::Synced, Tls::Off).unwrap();
    a_fleet_is_killed(&postgres.url("postgres"), || {
        postgres.kill().unwrap();
        postgres.restart().unwrap();
    });
}
