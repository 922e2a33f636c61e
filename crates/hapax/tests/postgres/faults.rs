//! Servers killed, connections cut, answers lost: no key has two effects, and what failed says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::store::{Begin, Begun, End, Ended, Settled, Settlement, Store, StoreError};
use hapax::{Action, AttemptId, Error, Fingerprint, Hapax, Json, Key, Owner, State, Ttl};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::process::local;
use hapax_servers::proxy::{Fault, Proxy};
use parking_lot::Mutex;

use crate::common::{manager, open, patched, server, through, url};

/// Effects outside the database, which nothing rolls back.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<Key, u32>>>);

impl Ledger {
    fn note(&self, key: &Key) {
        *self.0.lock().entry(key.clone()).or_default() += 1;
    }

    fn assert_at_most_one_each(&self) {
        let doubled: Vec<_> =
            self.0.lock().iter().filter(|(_, count)| **count > 1).map(|(key, _)| key.clone()).collect();
        assert!(doubled.is_empty(), "two effects of {doubled:?}");
    }
}

fn action(n: usize) -> Action {
    Action::new("send", "mail").key(Key::given(&format!("k{n}")).unwrap())
}

fn begin(key: &str) -> Begin {
    Begin {
        namespace: "faults".into(),
        key: Key::given(key).unwrap(),
        signal_id: None,
        action_type: "send".into(),
        target: "mail".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: Arc::new(Owner { host: "host".into(), pid: 1, label: None }),
        liveness: hapax::store::Liveness::Process,
        lease: Duration::from_secs(60),
        tags: Default::default(),
        take_over: None,
        capacity: None,
    }
}

fn complete() -> End {
    End::Complete { result: Json::parse("1").unwrap(), ttl: Ttl::Never, duration: Duration::ZERO }
}

/// Calls until a final word; the effect is noted in the ledger. Returns whether there is a result on record.
async fn insist(hapax: &Hapax, action: &Action, ledger: &Ledger, until: Instant) -> bool {
    loop {
        let there = ledger.clone();
        let outcome = hapax
            .execute(action, |context| async move {
                there.note(context.key());
                tokio::time::sleep(Duration::from_millis(3)).await;
                Ok(context.key().to_string())
            })
            .await;
        match outcome {
            Ok(_) => return true,
            // Honest: the effect happened or may have, and nobody runs it again.
            Err(Error::InDoubt { .. } | Error::NotRecorded { .. }) => return false,
            Err(error) if error.is_retryable() => {
                assert!(Instant::now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn insist_all(managers: &[Hapax], keys: usize, spread: Duration) -> (Ledger, usize) {
    let ledger = Ledger::default();
    let until = Instant::now() + Duration::from_secs(45);
    let calls = (0..2 * keys).map(|n| {
        let (hapax, ledger) = (managers[n % managers.len()].clone(), ledger.clone());
        tokio::spawn(async move {
            tokio::time::sleep(spread * n as u32).await;
            insist(&hapax, &action(n / 2), &ledger, until).await
        })
    });
    let mut recorded = 0;
    for call in calls.collect::<Vec<_>>() {
        recorded += usize::from(call.await.unwrap());
    }
    (ledger, recorded)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_under_load_costs_no_second_effect_and_no_result() {
    let mut server = PostgresServer::start(Disk::Synced, Tls::Off).unwrap();
    let url = format!("{}?schema=h&command_timeout=20", server.url("postgres"));
    let managers = [manager(&url).await, manager(&url).await];
    let killer = tokio::task::spawn_blocking(move || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            server.kill().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            server.restart().unwrap();
        }
        server
    });
    let (ledger, recorded) = insist_all(&managers, 1000, Duration::from_millis(2)).await;
    let server = killer.await.unwrap();
    ledger.assert_at_most_one_each();
    assert_eq!(ledger.0.lock().len(), 1000, "every key had its effect");
    // Lost answers are asked for again by attempt id, so that not even a doubt is left.
    assert_eq!(recorded, 2000);
    let states = server.psql("postgres", "SELECT state, count(*) FROM h.hapax_records GROUP BY 1").unwrap();
    assert_eq!(states, "2|1000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn backends_terminated_under_load_cost_no_second_effect_and_no_result() {
    let url = format!("{}&application_name=storm", url());
    let managers = [manager(&url).await, manager(&url).await];
    let storm = tokio::task::spawn_blocking(|| {
        for _ in 0..60 {
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'storm' AND random() < 0.6";
            server().psql("postgres", sql).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (ledger, recorded) = insist_all(&managers, 600, Duration::from_millis(2)).await;
    storm.await.unwrap();
    ledger.assert_at_most_one_each();
    assert_eq!(recorded, 1200);
}

#[tokio::test]
async fn a_begin_whose_answer_was_lost_has_begun_once() {
    let url = url();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let store = open(&through(&url, proxy.port())).await;
    store.begin(begin("warm")).await.unwrap();
    for (n, fault) in [Fault::BeforeAnswer, Fault::BeforeRequest].into_iter().enumerate() {
        let key = format!("unmistakable-{n}");
        proxy.trap(fault, key.as_bytes());
        let asked = begin(&key);
        let begun = store.begin(asked.clone()).await.unwrap();
        assert!(matches!(begun, Begun::Started { attempts: 1, .. }), "{begun:?}");
        assert_eq!(proxy.sprung(), n as u64 + 1);
        let record = store.get("faults".into(), asked.key.clone()).await.unwrap().unwrap();
        assert_eq!((record.attempt_id, record.state), (asked.attempt, State::InProgress));
    }
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_has_ended_once() {
    let url = url();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let store = open(&through(&url, proxy.port())).await;
    for fault in [Fault::BeforeAnswer, Fault::BeforeRequest] {
        for (end, left) in [
            (complete(), Some(State::Completed)),
            (End::Fail { error: "no".into(), ttl: Ttl::Never, duration: Duration::ZERO }, Some(State::Failed)),
            (End::Release, None),
            (End::Doubt { reason: "unsure".into() }, Some(State::InDoubt)),
        ] {
            let asked = begin(&format!("{fault:?}-{left:?}"));
            store.begin(asked.clone()).await.unwrap();
            let before = proxy.sprung();
            proxy.trap(fault, asked.attempt.as_bytes());
            let ended = store.end("faults".into(), asked.key.clone(), asked.attempt, end.clone()).await.unwrap();
            assert!(matches!(ended, Ended::Done { .. }), "{fault:?} {end:?}: {ended:?}");
            assert_eq!(proxy.sprung(), before + 1);
            let record = store.get("faults".into(), asked.key).await.unwrap();
            assert_eq!(record.map(|r| r.state), left, "{fault:?} {end:?}");
        }
    }
}

#[tokio::test]
async fn a_settlement_whose_answer_was_lost_has_settled_once() {
    let url = url();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let store = open(&through(&url, proxy.port())).await;
    for settlement in
        [Settlement::Happened { result: Json::parse("\"found\"").unwrap(), ttl: Ttl::Never }, Settlement::NotHappened]
    {
        let asked = begin(&format!("{settlement:?}").replace(' ', ""));
        store.begin(asked.clone()).await.unwrap();
        store.end("faults".into(), asked.key.clone(), asked.attempt, End::Doubt { reason: "?".into() }).await.unwrap();
        let before = proxy.sprung();
        proxy.trap(Fault::BeforeAnswer, asked.attempt.as_bytes());
        let settled = store.settle("faults".into(), asked.key, Some(asked.attempt), settlement).await.unwrap();
        assert!(matches!(settled, Settled::Done(_)), "{settled:?}");
        assert_eq!(proxy.sprung(), before + 1);
    }
}

#[tokio::test]
async fn an_outage_is_told_in_time_and_passes() {
    let url = url();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let hapax = patched(&through(&url, proxy.port()), "command_timeout=1").await;
    let ledger = Ledger::default();
    let far = Instant::now() + Duration::from_secs(30);
    assert!(insist(&hapax, &action(1), &ledger, far).await);
    proxy.outage();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    let refused = hapax.execute::<i32, _, _>(&action(2), |_| async { panic!("ran during an outage") }).await;
    let Err(Error::Store(StoreError::Unavailable { message, .. })) = &refused else { panic!("{refused:?}") };
    assert!(message.contains("check") || message.contains("nobody listens"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let error = hapax.record(&action(1).generate_key().unwrap()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    proxy.restore();
    assert!(insist(&hapax, &action(2), &ledger, far).await);
    assert!(insist(&hapax, &action(1), &ledger, far).await);
    ledger.assert_at_most_one_each();
}

/// The action ran, and its result cannot be written: the value is in the error, and nobody runs it again.
#[tokio::test]
async fn an_outage_at_the_end_keeps_the_value_and_never_runs_again() {
    let url = url();
    let proxy = Arc::new(Proxy::start(local(server().port())).unwrap());
    let hapax = patched(&through(&url, proxy.port()), "command_timeout=1").await;
    let cut = proxy.clone();
    let outcome = hapax
        .execute(&action(1), |_| async move {
            cut.outage();
            Ok("sent".to_string())
        })
        .await;
    let Err(Error::NotRecorded { value, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(value.into_value::<String>().unwrap(), "sent");
    proxy.restore();
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let again = hapax.execute::<String, _, _>(&action(1), |_| async { panic!("ran again") }).await;
        match again {
            Err(Error::InDoubt { .. }) => return,
            Err(error) if error.is_retryable() && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A server that accepts connections and says nothing more.
#[tokio::test]
async fn a_silent_server_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = through(&format!("{}&connect_timeout=1", url()), listener.local_addr().unwrap().port());
    let began = Instant::now();
    let refused = Hapax::open(&silent).await.unwrap_err();
    assert!(matches!(refused, Error::Store(StoreError::Unavailable { .. })), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(3));
}
