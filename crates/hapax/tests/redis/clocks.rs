//! Clocks that differ by an hour: real servers whose clock is shifted, and managers that go by their own host's.
//!
//! It is the server that is shifted, since hapax asks the kernel for the time, past what can be preloaded. What a
//! manager does depends on its clock and the server's alone: one that is an hour behind it and one that is an hour ahead
//! do what two managers two hours apart would do on one server.

use std::time::{Duration, SystemTime};

use hapax::store::{Begun, Store};
use hapax::{Action, Hapax, PolicyPatch, State};
use hapax_servers::redis::{RedisConfig, RedisServer};

use crate::common::{Ledger, begin, key, ns, open, run};

const HOUR: i64 = 3600;

fn shift(redis: &RedisServer) -> i64 {
    let script = "return redis.call('TIME')[1]";
    let theirs: i64 = redis.ask(&["EVAL", script, "0"]).unwrap().parse().unwrap();
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    theirs - i64::try_from(ours).unwrap()
}

#[test]
fn managers_an_hour_behind_and_an_hour_ahead_of_the_server_keep_its_time() {
    let servers = [HOUR, -HOUR].map(|seconds| RedisServer::start(RedisConfig::new().clock(seconds)).unwrap());
    run(async {
        for (redis, hour) in servers.iter().zip([HOUR, -HOUR]) {
            assert!((shift(redis) - hour).abs() <= 2, "the clock is {} s off", shift(redis));
            let manager = async || {
                let policy = PolicyPatch::new().ttl(Duration::from_millis(1500));
                Hapax::builder().store_url(redis.url()).namespace("test").policy(policy).build().await.unwrap()
            };
            let (one, two) = (manager().await, manager().await);
            let ledger = Ledger::default();
            let call = async |hapax: &Hapax| {
                let there = ledger.clone();
                let action = Action::new("send", "mail").key(key("once"));
                let run = hapax.execute(&action, |_| async move { Ok(there.effect("once")) });
                run.await.unwrap()
            };
            let first = call(&one).await;
            // From memory here, from the store there, while it lasts by the server's clock.
            for hapax in [&one, &two, &two] {
                let again = call(hapax).await;
                assert!(again.is_replay() && again.value == first.value);
            }
            let record = one.record(&key("once")).await.unwrap().unwrap();
            let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let off = record.started_at.as_millis() / 1000 - i64::try_from(ours).unwrap();
            assert!((off - hour).abs() <= 5, "started at the server's time, {off} s off");
            tokio::time::sleep(Duration::from_millis(1600)).await;
            // Neither remembers it for an hour longer, nor ran it an hour too early.
            assert!(!call(&two).await.is_replay() && call(&one).await.is_replay());
            assert_eq!(ledger.doubled().len(), 1, "once for each life of the record");
            // A lease runs as long as it was asked for.
            let store = open(&redis.url()).await;
            let mut live = begin("live");
            live.lease = Duration::from_millis(400);
            assert!(matches!(store.begin(live).await.unwrap(), Begun::Started { .. }));
            let state = async || two.record(&key("live")).await.unwrap().unwrap().state;
            assert_eq!(state().await, State::InProgress);
            tokio::time::sleep(Duration::from_millis(450)).await;
            assert_eq!(state().await, State::InDoubt);
            assert!(store.get(ns(), key("live")).await.unwrap().is_some());
        }
    });
}
