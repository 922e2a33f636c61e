//! The conformance suite and the reference model, on each way to run Redis.
//!
//! The cases of one suite share the servers, keep apart by prefix, and run side by side: most of their time is waiting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hapax::store::Store;
use hapax::store::conformance::{Subject, cases, check, model};
use hapax_servers::redis::{RedisCluster, RedisConfig, RedisSentinels, RedisServer};

use crate::common::open;

/// Cases under way at once.
const ABREAST: usize = 12;

async fn subject(url: String) -> Subject {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let url = format!("{url}?prefix=case{}", NEXT.fetch_add(1, Ordering::Relaxed));
    // Longer than by default: a dozen cases share the machine.
    let subject = Subject::new(Arc::new(open(&url).await)).tick(Duration::from_millis(700));
    subject.opened_again_by(move || {
        let url = url.clone();
        async move { Arc::new(open(&url).await) as Arc<dyn Store> }
    })
}

fn all_cases(url: &str) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                while let Some(case) = cases().get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = AssertUnwindSafe(|| check(case.name, || subject(url.to_string())));
                    if std::panic::catch_unwind(run).is_err() {
                        failed.lock().unwrap().push(case.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:#?}", failed.len(), cases().len());
}

#[test]
fn one_server_passes_the_suite() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    all_cases(&redis.url());
}

#[test]
fn a_cluster_of_three_primaries_passes_the_suite() {
    let cluster = RedisCluster::start().unwrap();
    all_cases(&cluster.url());
}

#[test]
fn a_primary_under_sentinels_passes_the_suite_before_and_after_a_failover() {
    let mut group = RedisSentinels::start(RedisConfig::new()).unwrap();
    all_cases(&group.url());
    group.fail_over().unwrap();
    all_cases(&group.url());
}

#[test]
fn redis_answers_as_the_reference_does() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    model::check(|| subject(redis.url()), 0..20, 150);
}
