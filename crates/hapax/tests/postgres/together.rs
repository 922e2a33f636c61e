//! Several processes' worth of managers on one database: waiting, clocks, load, cleaning up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::store::{OnFull, Store, StoreError};
use hapax::{Action, Error, Hapax, InFlight, PolicyPatch, Source};
use hapax_servers::process::local;
use hapax_servers::proxy::Proxy;

use crate::common::{manager, open, pooled_url, server, through, url};

fn action(n: usize) -> Action {
    Action::new("send", "mail").signal(format!("s{n}"))
}

/// How long after the end of an attempt a waiter in another process knows of it.
async fn waiters_delay(runs: &Hapax, waits: &Hapax) -> Duration {
    let ended = Arc::new(std::sync::Mutex::new(None::<Instant>));
    let (there, noted) = (runs.clone(), ended.clone());
    let (started, begun) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(async move {
        there
            .execute(&action(1), |_| async move {
                let _ = started.send(());
                tokio::time::sleep(Duration::from_millis(1500)).await;
                *noted.lock().unwrap() = Some(Instant::now());
                Ok(1)
            })
            .await
            .unwrap()
    });
    begun.await.unwrap();
    let patient = action(1).policy(PolicyPatch::new().in_flight(InFlight::Wait(Duration::from_secs(20))));
    let waited = waits.execute::<i32, _, _>(&patient, |_| async { panic!("ran twice") }).await.unwrap();
    let delay = ended.lock().unwrap().unwrap().elapsed();
    assert_eq!(waited.source, Source::Replayed);
    running.await.unwrap();
    delay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_in_another_process_is_told_at_once() {
    let url = url();
    let delay = waiters_delay(&manager(&url).await, &manager(&url).await).await;
    assert!(delay < Duration::from_millis(450), "{delay:?}, and polling alone takes 500 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_behind_a_pooler_polls() {
    let url = pooled_url();
    let delay = waiters_delay(&manager(&url).await, &manager(&url).await).await;
    assert!(delay < Duration::from_secs(2), "{delay:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_behind_a_pooler_may_listen_directly() {
    let pooled = pooled_url();
    let direct = server().url("postgres").replace('%', "%25");
    let url = format!("{pooled}&listen_url={direct}");
    let delay = waiters_delay(&manager(&url).await, &manager(&url).await).await;
    assert!(delay < Duration::from_secs(1), "{delay:?}");
}

/// The word is lost with the connection that listened; the waiter looks by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_word_is_lost_wakes_all_the_same() {
    let url = url();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let (runs, waits) = (manager(&url).await, manager(&through(&url, proxy.port())).await);
    let cutter = tokio::spawn(async move {
        // Shortly before the end, and while it is told.
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.cut();
        }
        proxy
    });
    let delay = waiters_delay(&runs, &waits).await;
    assert!(delay < Duration::from_secs(3), "{delay:?}");
    drop(cutter.await.unwrap());
}

/// Time is the server's: what hosts believe does not matter. A manager has no clock to give to this store; its
/// remembered results are aged by the difference to the server's time, which is what is looked at here.
#[tokio::test]
async fn time_is_the_servers() {
    let store = open(&url()).await;
    assert!(store.clock().is_none(), "no clock of this host is asked");
    let before = store.now().await.unwrap();
    let sql = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::int8";
    let there: i64 = server().psql("postgres", sql).unwrap().parse().unwrap();
    assert!((before.as_millis()..before.as_millis() + 5_000).contains(&there));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_whose_clocks_are_an_hour_apart_agree() {
    // The clocks of hosts enter nowhere; what an hour's difference would do is done to the rows instead.
    let url = url();
    let schema = url.split("schema=").nth(1).unwrap().to_string();
    let (one, other) = (manager(&url).await, manager(&url).await);
    let brief = action(1).policy(PolicyPatch::new().ttl(Duration::from_secs(3600)));
    one.execute(&brief, |_| async { Ok(1) }).await.unwrap();
    let key = brief.generate_key().unwrap();
    let shift = |millis: i64| {
        let sql = format!("UPDATE \"{schema}\".hapax_records SET expires_at = expires_at - {millis}");
        server().psql("postgres", &sql).unwrap();
    };
    shift(3_590_000);
    assert!(other.record(&key).await.unwrap().is_some(), "ten seconds are left by the server's clock");
    shift(10_001);
    assert!(other.record(&key).await.unwrap().is_none(), "and now none");
    let again = other.execute(&brief, |_| async { Ok(2) }).await.unwrap();
    assert_eq!((again.value, again.is_replay()), (2, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_that_share_a_store_keep_to_their_own_limits() {
    let store: Arc<dyn Store> = Arc::new(open(&url()).await);
    let tight = Hapax::builder().store(store.clone()).namespace("tight").max_entries(4).on_full(OnFull::Reject);
    let (tight, free) = (tight.build().await.unwrap(), Hapax::builder().store(store).namespace("free"));
    let free = free.build().await.unwrap();
    for n in 0..4 {
        free.execute(&action(n), |_| async { Ok(n) }).await.unwrap();
    }
    // At once, so that they come into the same batches.
    let calls = (4..84).map(|n| {
        let hapax = if n % 2 == 0 { tight.clone() } else { free.clone() };
        tokio::spawn(async move { (n, hapax.execute(&action(n), |_| async move { Ok(n) }).await) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (n, answer) = call.await.unwrap();
        match answer {
            Ok(_) => assert_eq!(n % 2, 1, "{n} is over the limit"),
            Err(error) => {
                assert!(n % 2 == 0 && matches!(error, Error::Store(StoreError::Capacity { .. })), "{n}: {error}")
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_callers_at_once() {
    let url = url();
    let managers = [manager(&url).await, manager(&url).await];
    let runs = Arc::new(AtomicU64::new(0));
    let calls: Vec<_> = (0..512)
        .map(|n| {
            let (hapax, runs) = (managers[n % 2].clone(), runs.clone());
            tokio::spawn(async move {
                for k in 0..8 {
                    let runs = runs.clone();
                    let action = action((n / 4 * 8 + k) % 1024);
                    let outcome = hapax.execute(&action, |_| async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok(k)
                    });
                    outcome.await.unwrap();
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn expiring_many_records_does_not_hold_up_live_calls() {
    let url = url();
    let schema = url.split("schema=").nth(1).unwrap().to_string();
    let hapax = manager(&url).await;
    hapax.execute(&action(0), |_| async { Ok(0) }).await.unwrap();
    let rows = format!(
        "INSERT INTO \"{schema}\".hapax_records (hash, space_tag, action_tag, target_tag, state, in_tx, attempt, attempts,
            presented, started_at, executed_at, expires_at, waited, fingerprint, namespace, key, action_type, target, host, pid, body)
         SELECT md5(n::text)::uuid, 1, 1, 1, 2, false, md5(n::text)::uuid, 1, 1, 1, 1, 2, false, '\\x00', 'x', 'old' || n, 'a',
            't', 'h', 1, repeat('x', 500) FROM generate_series(1, 30000) n"
    );
    server().psql("postgres", &rows).unwrap();
    let sweeper = hapax.clone();
    let sweep = tokio::spawn(async move { sweeper.cleanup_expired().await.unwrap() });
    let (mut slowest, mut calls) = (Duration::ZERO, 0);
    while !sweep.is_finished() || calls < 20 {
        calls += 1;
        let began = Instant::now();
        hapax.execute(&action(calls), |_| async { Ok(0) }).await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    assert_eq!(sweep.await.unwrap(), 30_000);
    assert!(slowest < Duration::from_millis(1500), "{slowest:?} of {calls} calls");
}

/// A `clear` elsewhere is seen here within a second, though replays come from memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remembered_results_are_forgotten_within_a_second_of_a_clear() {
    let url = url();
    let (one, other) = (manager(&url).await, manager(&url).await);
    let until = Instant::now() + Duration::from_secs(10);
    for n in 0.. {
        // Until the epoch is vouched for, and the result remembered.
        one.execute(&action(1), |_| async { Ok(n) }).await.unwrap();
        if one.store().epoch().is_some() && n > 20 {
            break;
        }
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other.clear_all().await.unwrap(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let anew = one.execute(&action(1), |_| async { Ok(-1) }).await.unwrap();
    assert_eq!(anew.value, -1, "the remembered result outlived its record");
}
