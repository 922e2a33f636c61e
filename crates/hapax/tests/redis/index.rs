//! Queries over many records, and indexes that hold nothing but what there is.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hapax::store::redis::RedisStore;
use hapax::store::{End, Filter, Store};
use hapax::{Json, State, Ttl};
use hapax_servers::redis::{RedisCluster, RedisServer};

use crate::common::{begin, complete, key, ns, open, run, server};

async fn record(store: &RedisStore, name: &str, ttl: Ttl) {
    let begin = begin(name);
    let attempt = begin.attempt;
    store.begin(begin).await.unwrap();
    let end = End::Complete { result: Json::of("v").unwrap(), ttl, duration: Duration::ZERO };
    store.end(ns(), key(name), attempt, end).await.unwrap();
}

/// Entries in all indexes, records in no index yet, and records.
fn held(redis: &RedisServer) -> (u64, u64, u64) {
    let count = |script: &str| redis.ask(&["EVAL", script, "0"]).unwrap().parse().unwrap();
    let entries = "local n = 0 for _, k in ipairs(redis.call('KEYS', 'hapax:*:x')) do n = n + redis.call('ZCARD', k) end return n";
    let logged =
        "local n = 0 for _, k in ipairs(redis.call('KEYS', 'hapax:*:l')) do n = n + redis.call('LLEN', k) end return n";
    (count(entries), count(logged), count("return #redis.call('KEYS', 'hapax:*:r:*')"))
}

#[test]
fn ten_thousand_records_are_paged_through_in_the_order_of_their_begin() {
    let redis = server();
    run(async {
        let store = std::sync::Arc::new(open(&redis.url()).await);
        let mut tasks = Vec::new();
        for worker in 0..50 {
            let store = store.clone();
            tasks.push(tokio::spawn(async move {
                for n in 0..200 {
                    record(&store, &format!("k{worker}-{n}"), Ttl::Never).await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let since = Instant::now();
        let (mut cursor, mut seen, mut last) = (None, HashSet::new(), None);
        loop {
            let page = store.query(ns(), Filter::default(), cursor, 700).await.unwrap();
            for record in page.records {
                assert!(last.is_none_or(|last| last <= record.started_at), "oldest first");
                last = Some(record.started_at);
                assert!(seen.insert(record.key.to_string()), "{} twice", record.key);
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 10_000);
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        let one = Filter { signal_id: Some("signal-k7-7".into()), ..Filter::default() };
        let page = store.query(ns(), one, None, 10).await.unwrap();
        assert_eq!(page.records.len(), 1);
        assert_eq!(store.census(ns()).await.unwrap().completed, 10_000);
    });
}

#[test]
fn no_entry_dangles_behind_records_that_have_expired() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        for n in 0..200 {
            record(&store, &format!("short{n}"), Ttl::For(Duration::from_millis(150))).await;
        }
        let begun = begin("failed");
        let attempt = begun.attempt;
        store.begin(begun).await.unwrap();
        let fail = End::Fail { error: "e".into(), ttl: Ttl::For(Duration::from_millis(150)), duration: Duration::ZERO };
        store.end(ns(), key("failed"), attempt, fail).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        let census = store.census(ns()).await.unwrap();
        assert_eq!((census.completed, census.failed, census.oldest), (0, 0, None), "the census never counts them");
        assert!(store.query(ns(), Filter::default(), None, 10).await.unwrap().records.is_empty());
        assert_eq!(held(&redis), (0, 0, 0), "what had expired before anybody asked never got into an index");
        // And what was in an index when it expired.
        for n in 0..200 {
            record(&store, &format!("short{n}"), Ttl::For(Duration::from_millis(400))).await;
        }
        let begun = begin("failed");
        let attempt = begun.attempt;
        store.begin(begun).await.unwrap();
        let fail = End::Fail { error: "e".into(), ttl: Ttl::For(Duration::from_millis(400)), duration: Duration::ZERO };
        store.end(ns(), key("failed"), attempt, fail).await.unwrap();
        store.census(ns()).await.unwrap();
        assert!(held(&redis).0 > 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        for n in 0..200 {
            record(&store, &format!("new{n}"), Ttl::Never).await;
        }
        store.sweep(10_000).await.unwrap();
        assert_eq!(held(&redis), (0, 200, 200));
        // Four entries each: by age, action, target and signal.
        assert_eq!(store.census(ns()).await.unwrap().completed, 200);
        assert_eq!(held(&redis), (200 * 4, 0, 200));
        store.clear(ns()).await.unwrap();
        assert_eq!(held(&redis), (0, 0, 0));
    });
}

#[test]
fn a_sweep_counts_what_expired_and_not_what_was_removed() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        for n in 0..30 {
            record(&store, &format!("k{n}"), Ttl::For(Duration::from_millis(300))).await;
        }
        for n in 0..10 {
            store.remove(ns(), key(&format!("k{n}"))).await.unwrap();
        }
        let begun = begin("free");
        let attempt = begun.attempt;
        store.begin(begun).await.unwrap();
        store.end(ns(), key("free"), attempt, End::Release).await.unwrap();
        record(&store, "stays", Ttl::Never).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(store.sweep(10_000).await.unwrap(), 20);
        assert_eq!(store.sweep(10_000).await.unwrap(), 0);
        assert_eq!(held(&redis), (0, 1, 1));
    });
}

#[test]
fn whatever_becomes_of_a_record_its_entries_are_those_of_its_state() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        let start = async |name: &str| {
            let begin = begin(name);
            let attempt = begin.attempt;
            store.begin(begin).await.unwrap();
            attempt
        };
        // Looked at as soon as it is begun, and only when it has ended.
        for looked_at in [true, false] {
            let look = async || {
                if looked_at {
                    store.census(ns()).await.unwrap();
                }
            };
            let entries = async || {
                store.census(ns()).await.unwrap();
                held(&redis).0
            };
            let attempt = start("k").await;
            look().await;
            store.end(ns(), key("k"), attempt, End::Doubt { reason: "?".into() }).await.unwrap();
            look().await;
            store.end(ns(), key("k"), attempt, complete("v")).await.unwrap();
            assert_eq!(entries().await, 5, "expiring: one more");
            store.remove(ns(), key("k")).await.unwrap();
            assert_eq!(held(&redis), (0, 0, 0));
            let attempt = start("k").await;
            assert_eq!(entries().await, 5, "live: one more");
            store.end(ns(), key("k"), attempt, End::Release).await.unwrap();
            assert_eq!(held(&redis), (0, 0, 0));
            let attempt = start("k").await;
            look().await;
            let fail =
                End::Fail { error: "e".into(), ttl: Ttl::For(Duration::from_millis(30)), duration: Duration::ZERO };
            store.end(ns(), key("k"), attempt, fail).await.unwrap();
            look().await;
            tokio::time::sleep(Duration::from_millis(60)).await;
            // Begun anew over an expired one.
            let attempt = start("k").await;
            store.sweep(10).await.unwrap();
            assert_eq!(entries().await, 5);
            store.end(ns(), key("k"), attempt, End::Release).await.unwrap();
            assert_eq!(held(&redis), (0, 0, 0));
        }
    });
}

#[test]
fn another_layout_is_refused_with_its_remedy() {
    let redis = server();
    run(async {
        open(&redis.url()).await;
        assert_eq!(redis.ask(&["GET", "hapax:{layout}"]).unwrap(), "2 1");
        redis.ask(&["SET", "hapax:{layout}", "9 1"]).unwrap();
        redis.ask(&["SADD", "old:namespaces", "test"]).unwrap();
        for (prefix, found) in [("hapax", "\"9\""), ("old", "\"1\"")] {
            let url = format!("{}?prefix={prefix}", redis.url());
            let options = hapax::store::redis::RedisOptions::from_url(&url).unwrap();
            let error = RedisStore::open(options).await.unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("another prefix"), "{error}");
        }
    });
}

#[test]
fn a_process_that_goes_on_after_all_was_flushed_notices_and_keeps_to_the_layout_of_now() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        let later = async |than: Option<u64>| {
            for _ in 0..500 {
                if let Some(epoch) = store.epoch().filter(|epoch| than.is_none_or(|than| *epoch > than)) {
                    return epoch;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("it notices nothing");
        };
        record(&store, "before", Ttl::Never).await;
        let mut epoch = later(None).await;
        // Nobody writes meanwhile; then one who divides namespaces otherwise is quicker.
        for (written, layout) in [(None, "2 1"), (Some("2 16"), "2 16")] {
            redis.ask(&["FLUSHALL"]).unwrap();
            if let Some(written) = written {
                redis.ask(&["SET", "hapax:{layout}", written]).unwrap();
            }
            epoch = later(Some(epoch)).await;
            assert_eq!(redis.ask(&["GET", "hapax:{layout}"]).unwrap(), layout);
            record(&store, "after", Ttl::Never).await;
            assert_eq!(redis.ask(&["SCARD", "hapax:namespaces"]).unwrap(), "1", "a sweep finds it");
            let other = open(&redis.url()).await;
            assert!(other.get(ns(), key("after")).await.unwrap().is_some(), "{layout}");
        }
    });
}

#[test]
fn a_slot_that_moves_while_it_is_used_takes_its_records_along() {
    let cluster = RedisCluster::start().unwrap();
    let url = cluster.url();
    moves_a_slot_in_use(cluster, &url);
}

/// The address may carry options.
pub fn moves_a_slot_in_use(cluster: RedisCluster, url: &str) {
    run(async {
        let store = open(url).await;
        for n in 0..100 {
            record(&store, &format!("k{n}"), Ttl::Never).await;
        }
        // Wherever the records are: every slot of the first node that holds something.
        let node = &cluster.nodes[0];
        let script = "local k = redis.call('KEYS', 'hapax:*:x') return k[1] or ''";
        let index = node.ask(&["EVAL", script, "0"]).unwrap();
        let slot: u16 = node.ask(&["CLUSTER", "KEYSLOT", &index]).unwrap().parse().unwrap();
        let mover = std::thread::spawn(move || cluster.move_slot(slot, 0, 1).map(|()| cluster));
        for n in 100..400 {
            record(&store, &format!("k{n}"), Ttl::Never).await;
        }
        let cluster = mover.join().unwrap().unwrap();
        for n in 0..400 {
            let found = store.get(ns(), key(&format!("k{n}"))).await.unwrap().unwrap();
            assert_eq!(found.state, State::Completed);
        }
        assert_eq!(store.census(ns()).await.unwrap().completed, 400);
        drop(cluster);
    });
}
