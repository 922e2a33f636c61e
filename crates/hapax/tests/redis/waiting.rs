//! Waiters, the epoch, and whose clock counts.

use std::time::{Duration, Instant};

use hapax::store::{Begun, Store};
use hapax::{Action, State};
use hapax_servers::process::local;
use hapax_servers::proxy::Proxy;

use crate::common::{begin, complete, key, manager, ns, open, run, script_calls, server};

/// Seconds of the server's clock.
fn server_millis(redis: &hapax_servers::redis::RedisServer) -> i64 {
    let script = "local t = redis.call('TIME') return t[1] .. string.format('%03d', math.floor(t[2] / 1000))";
    redis.ask(&["EVAL", script, "0"]).unwrap().parse().unwrap()
}

#[test]
fn a_waiter_wakes_by_a_message_much_sooner_than_it_would_look() {
    let redis = server();
    run(async {
        let (here, there) = (open(&redis.url()).await, std::sync::Arc::new(open(&redis.url()).await));
        let mut slowest = Duration::ZERO;
        for n in 0..5 {
            let name = format!("k{n}");
            let begun = begin(&name);
            let attempt = begun.attempt;
            here.begin(begun).await.unwrap();
            let (waiter, k) = (there.clone(), key(&name));
            let waiting = tokio::spawn(async move {
                waiter.changed(ns(), k, attempt, Duration::from_secs(20)).await.unwrap();
                Instant::now()
            });
            // The subscription stands by then, and the next look of a waiter that hears is a second away.
            tokio::time::sleep(Duration::from_millis(150)).await;
            let ended = Instant::now();
            here.end(ns(), key(&name), attempt, complete("v")).await.unwrap();
            let woken = waiting.await.unwrap();
            if n > 0 {
                slowest = slowest.max(woken.saturating_duration_since(ended));
            }
        }
        assert!(slowest < Duration::from_millis(300), "{slowest:?}");
    });
}

#[test]
fn a_waiter_whose_message_is_lost_wakes_all_the_same() {
    let redis = server();
    let proxy = Proxy::start(local(redis.port())).unwrap();
    run(async {
        let here = open(&redis.url()).await;
        let there = std::sync::Arc::new(open(&format!("redis://127.0.0.1:{}", proxy.port())).await);
        for cut in [true, false] {
            let name = format!("k{cut}");
            let begun = begin(&name);
            let attempt = begun.attempt;
            here.begin(begun).await.unwrap();
            let (waiter, k) = (there.clone(), key(&name));
            let waiting = tokio::spawn(async move { waiter.changed(ns(), k, attempt, Duration::from_secs(20)).await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            if cut {
                // The subscription, and all else.
                proxy.cut();
            } else {
                // The mark that asks for a message: nothing is published.
                let script = "for _, k in ipairs(redis.call('KEYS', 'hapax:*:r:*')) do redis.call('SETRANGE', k, 2, '0') end return 1";
                redis.ask(&["EVAL", script, "0"]).unwrap();
            }
            let ended = Instant::now();
            here.end(ns(), key(&name), attempt, complete("v")).await.unwrap();
            tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap();
            assert!(ended.elapsed() < Duration::from_millis(2500), "{:?}", ended.elapsed());
        }
    });
}

#[test]
fn all_times_are_the_servers_whichever_manager_acts() {
    let redis = server();
    run(async {
        // What a store is asked for holds no time of the host, only durations: a host whose clock is an hour off gets
        // and gives the same.
        let (one, two) = (open(&redis.url()).await, open(&redis.url()).await);
        let before = server_millis(&redis);
        let mut begun = begin("k");
        begun.lease = Duration::from_millis(300);
        let attempt = begun.attempt;
        let Begun::Started { started_at, .. } = one.begin(begun).await.unwrap() else { panic!("taken") };
        let after = server_millis(&redis);
        assert!((before..=after).contains(&started_at.as_millis()));
        let record = two.get(ns(), key("k")).await.unwrap().unwrap();
        let lease = record.lease_until.unwrap();
        assert_eq!((record.started_at, lease.since(record.started_at)), (started_at, Duration::from_millis(300)));
        // Alive for both until the server's clock says otherwise, then in doubt for both.
        loop {
            let before = server_millis(&redis);
            let states =
                [one.get(ns(), key("k")).await, two.get(ns(), key("k")).await].map(|r| r.unwrap().unwrap().state);
            let after = server_millis(&redis);
            if after < lease.as_millis() {
                assert_eq!(states, [State::InProgress; 2]);
            }
            if before >= lease.as_millis() {
                assert_eq!(states, [State::InDoubt; 2]);
                break;
            }
        }
        assert!(two.end(ns(), key("k"), attempt, complete("late")).await.is_ok());
        let now = two.now().await.unwrap().as_millis();
        assert!((before..=server_millis(&redis)).contains(&now));
    });
}

#[test]
fn hot_keys_are_replayed_from_memory_and_a_removal_elsewhere_is_seen_within_a_second() {
    let redis = server();
    run(async {
        let (here, there) = (manager(&redis.url()).await, manager(&redis.url()).await);
        let action = Action::new("send", "mail").signal("s");
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            here.execute(&action, |_| async { Ok(1) }).await.unwrap();
            let before = script_calls(&redis);
            for _ in 0..1000 {
                assert!(here.execute(&action, |_| async { Ok(2) }).await.unwrap().is_replay());
            }
            // The statistics may be flushed in between; replays as such ask nothing.
            if script_calls(&redis) - before < 50 {
                break;
            }
            assert!(Instant::now() < until, "nothing is remembered");
        }
        let record = there.record(&hapax::Key::generate(&action).unwrap()).await.unwrap().unwrap();
        assert!(there.clear_key(&record.key).await.unwrap());
        let cleared = Instant::now();
        while here.execute(&action, |_| async { Ok(3) }).await.unwrap().value == 1 {
            assert!(cleared.elapsed() < Duration::from_millis(1300), "still replayed after {:?}", cleared.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
