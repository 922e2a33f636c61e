//! Servers that die, hang, come back or are replaced, with a ledger of the effects: none is had twice, except where
//! `docs/stores.md` says so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hapax::store::{Begun, Ended, Store, StoreError};
use hapax::{Action, Error, Hapax, State};
use hapax_servers::process::local;
use hapax_servers::proxy::Proxy;
use hapax_servers::redis::{RedisCluster, RedisConfig, RedisSentinels, RedisServer};
use rustix::process::Signal;

use crate::common::{Ledger, begin, complete, key, manager, ns, open, run, server};

/// Calls of many keys, two callers for each key in managers of their own, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<()>>,
    ledger: Ledger,
    /// Key and value of every call that got one.
    answers: Arc<Mutex<Vec<(Action, u64)>>>,
}

impl Load {
    async fn start(url: &str) -> (Self, Hapax) {
        let managers = [manager(url).await, manager(url).await];
        let (stop, ledger) = (Arc::new(AtomicBool::new(false)), Ledger::default());
        let answers = Arc::new(Mutex::new(Vec::new()));
        let callers = (0..32)
            .map(|caller| {
                let hapax = managers[caller % 2].clone();
                let (stop, ledger, answers) = (stop.clone(), ledger.clone(), answers.clone());
                tokio::spawn(async move {
                    for n in 0..100_000 {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let action = Action::new("send", "mail").signal(format!("{}-{n}", caller / 2));
                        let there = ledger.clone();
                        let run = |context: hapax::Context| async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            Ok(there.effect(context.key().as_str()))
                        };
                        if let Ok(outcome) = hapax.execute(&action, run).await {
                            answers.lock().unwrap().push((action, outcome.value));
                        } else {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                })
            })
            .collect();
        let [hapax, _] = managers;
        (Self { stop, callers, ledger, answers }, hapax)
    }

    async fn stop(self) -> (Ledger, Vec<(Action, u64)>) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        (self.ledger, answers)
    }
}

#[test]
fn a_server_that_syncs_always_is_killed_under_load_and_nothing_is_lost() {
    let mut redis = RedisServer::start(RedisConfig::new().aof("always")).unwrap();
    run(async {
        let (load, hapax) = Load::start(&redis.url()).await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            redis.kill().unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            redis.restart().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (ledger, answers) = load.stop().await;
        assert_eq!(ledger.doubled(), []);
        assert!(answers.len() > 100, "{} calls", answers.len());
        // Whatever a caller was told is what every later call is told.
        for (action, value) in answers {
            let again = hapax.execute(&action, |_| async { Ok(0) }).await.unwrap();
            assert_eq!((again.value, again.is_replay()), (value, true), "{action:?}");
        }
    });
}

#[test]
fn a_server_that_syncs_every_second_loses_at_most_its_last_moments() {
    let mut redis = RedisServer::start(RedisConfig::new().aof("everysec")).unwrap();
    run(async {
        let (load, _hapax) = Load::start(&redis.url()).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let killed = Instant::now();
        redis.kill().unwrap();
        redis.restart().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (ledger, _) = load.stop().await;
        for (key, first) in ledger.doubled() {
            let before = killed.saturating_duration_since(first);
            assert!(before < Duration::from_secs(3), "{key} was recorded {before:?} before the kill and ran again");
        }
    });
}

#[test]
fn an_outage_is_a_clear_error_and_ends_by_itself() {
    let redis = server();
    let proxy = Proxy::start(local(redis.port())).unwrap();
    run(async {
        let url = format!("redis://127.0.0.1:{}?command_timeout=400ms&connect_timeout=200ms", proxy.port());
        let hapax = manager(&url).await;
        let ledger = Ledger::default();
        let call = |n: u32| {
            let (hapax, ledger) = (hapax.clone(), ledger.clone());
            async move {
                let action = Action::new("send", "mail").signal(format!("s{n}"));
                hapax.execute(&action, |context| async move { Ok(ledger.effect(context.key().as_str())) }).await
            }
        };
        call(0).await.unwrap();
        proxy.outage();
        for n in 1..4 {
            let since = Instant::now();
            let error = call(n).await.unwrap_err();
            assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
            let Error::Store(store) = &error else { panic!("{error:?}") };
            assert!(matches!(store, StoreError::Unavailable { .. } | StoreError::AnswerLost { .. }), "{error}");
            assert!(store.is_transient() && error.to_string().contains("127.0.0.1"), "{error}");
        }
        assert_eq!(ledger.len(), 1, "nothing ran");
        proxy.restore();
        let until = Instant::now() + Duration::from_secs(5);
        let mut again = call(4).await;
        while again.is_err() && Instant::now() < until {
            again = call(4).await;
        }
        again.unwrap();
        assert_eq!(ledger.doubled(), []);
    });
}

#[test]
fn a_server_that_goes_while_the_action_runs_leaves_no_silent_second_run() {
    let mut redis = RedisServer::start(RedisConfig::new().aof("always")).unwrap();
    run(async {
        let hapax = manager(&format!("{}?command_timeout=500ms", redis.url())).await;
        let action = Action::new("send", "mail").signal("s");
        let ledger = Ledger::default();
        let there = ledger.clone();
        let server = &mut redis;
        let error = hapax
            .execute(&action, |context| async move {
                server.kill().unwrap();
                Ok(there.effect(context.key().as_str()))
            })
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotRecorded { .. }), "{error:?}");
        redis.restart().unwrap();
        let there = ledger.clone();
        let reject = hapax::PolicyPatch::new().in_flight(hapax::InFlight::Reject);
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let again = hapax
                .execute(&action.clone().policy(reject.clone()), |c| {
                    let there = there.clone();
                    async move { Ok(there.effect(c.key().as_str())) }
                })
                .await;
            match again {
                Err(Error::InDoubt { .. }) => break,
                Err(_) => assert!(Instant::now() < until, "{again:?}"),
                Ok(outcome) => panic!("it ran again or made something up: {outcome:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(ledger.len(), 1);
        assert_eq!(ledger.doubled(), []);
    });
}

#[test]
fn a_server_that_hangs_is_given_up_in_time() {
    let redis = server();
    run(async {
        let store = open(&format!("{}?command_timeout=600ms", redis.url())).await;
        redis.process().unwrap().signal(Signal::STOP).unwrap();
        let since = Instant::now();
        let error = store.begin(begin("k")).await.unwrap_err();
        redis.process().unwrap().signal(Signal::CONT).unwrap();
        assert!(matches!(error, StoreError::AnswerLost { .. } | StoreError::Unavailable { .. }), "{error}");
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    });
}

#[test]
fn scripts_flushed_under_load_are_loaded_again() {
    let redis = server();
    run(async {
        let (load, _hapax) = Load::start(&redis.url()).await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            redis.ask(&["SCRIPT", "FLUSH"]).unwrap();
        }
        let (ledger, answers) = load.stop().await;
        assert_eq!(ledger.doubled(), []);
        assert!(answers.len() > 100, "{} calls", answers.len());
    });
}

#[test]
fn five_hundred_callers_at_once_are_served() {
    let redis = server();
    run(async {
        let hapax = manager(&redis.url()).await;
        let ledger = Ledger::default();
        let callers: Vec<_> = (0..512)
            .map(|n| {
                let (hapax, ledger) = (hapax.clone(), ledger.clone());
                tokio::spawn(async move {
                    let action = Action::new("send", "mail").signal(format!("s{}", n % 300));
                    hapax.execute(&action, |c| async move { Ok(ledger.effect(c.key().as_str())) }).await.unwrap().value
                })
            })
            .collect();
        for caller in callers {
            assert!(caller.await.unwrap() > 0);
        }
        assert_eq!((ledger.len(), ledger.doubled().len()), (300, 0));
    });
}

#[test]
fn a_failover_under_load_goes_on_and_loses_only_what_the_replica_had_not_got() {
    let group = RedisSentinels::start(RedisConfig::new()).unwrap();
    let url = format!("{}?command_timeout=10s", group.url());
    goes_on_after_a_failover(group, &url);
}

pub fn goes_on_after_a_failover(mut group: RedisSentinels, url: &str) {
    run(async {
        let (load, _hapax) = Load::start(url).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let killed = Instant::now();
        let group = tokio::task::spawn_blocking(move || group.fail_over().map(|()| group)).await.unwrap().unwrap();
        let before = load.answers.lock().unwrap().len();
        let until = Instant::now() + Duration::from_secs(15);
        while load.answers.lock().unwrap().len() < before + 50 {
            assert!(Instant::now() < until, "it does not go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (ledger, _) = load.stop().await;
        for (key, first) in ledger.doubled() {
            let before = killed.saturating_duration_since(first);
            assert!(before < Duration::from_secs(1), "{key} was recorded {before:?} before and ran again");
        }
        drop(group);
    });
}

#[test]
fn a_failover_loses_acknowledged_writes_unless_replicas_are_waited_for_as_the_docs_say() {
    const DOCS: &str = include_str!("../../../../docs/stores.md");
    assert!(DOCS.contains("failover can lose acknowledged writes"), "the docs say it");
    let mut group = RedisSentinels::start(RedisConfig::new()).unwrap();
    let url = group.url();
    run(async {
        let plain = open(&format!("{url}?command_timeout=10s")).await;
        let careful = open(&format!("{url}?command_timeout=10s&wait_replicas=1&wait_timeout=300ms")).await;
        // With the replica in step, waiting for it costs only time.
        assert!(matches!(careful.begin(begin("in-step")).await.unwrap(), Begun::Started { .. }));
        // The replica gets nothing from here on.
        group.servers[1].ask(&["CONFIG", "SET", "masteruser", "nobody"]).unwrap();
        group.servers[1].ask(&["CONFIG", "SET", "masterauth", "wrong"]).unwrap();
        group.servers[0].ask(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        let first = begin("lost");
        let attempt = first.attempt;
        assert!(matches!(plain.begin(first).await.unwrap(), Begun::Started { .. }));
        let ended = plain.end(ns(), key("lost"), attempt, complete("v")).await.unwrap();
        assert!(matches!(ended, Ended::Done { .. }), "acknowledged");
        let refused = careful.begin(begin("careful")).await.unwrap_err();
        let StoreError::AnswerLost { message, .. } = &refused else { panic!("{refused:?}") };
        assert!(message.contains("0 of 1 replicas"), "{message}");
        // The primary dies, and the replica that missed it takes over.
        let group = tokio::task::spawn_blocking(move || group.fail_over().map(|()| group)).await.unwrap().unwrap();
        assert_eq!(plain.get(ns(), key("lost")).await.unwrap(), None, "what was acknowledged is gone");
        let kept = plain.get(ns(), key("in-step")).await.unwrap().unwrap();
        assert_eq!(kept.state, State::InProgress);
        drop(group);
    });
}

/// Until its replica has what the primary has now. `WAIT` will not do: it waits for writes of its own connection.
fn wait_for_replica(primary: &RedisServer) {
    let offset = |name: &str| -> Option<u64> {
        let info = primary.ask(&["INFO", "replication"]).unwrap();
        let digits = info.split_once(name)?.1;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let wanted = offset("master_repl_offset:").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while offset(",offset=").is_none_or(|acknowledged| acknowledged < wanted) {
        assert!(Instant::now() < until, "the replica does not follow");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_failover_in_a_cluster_loses_only_what_that_replica_had_not_got() {
    let mut cluster = RedisCluster::with_replicas().unwrap();
    run(async {
        let url = format!("{}?command_timeout=20s", cluster.url());
        let store = open(&url).await;
        let record = async |name: String| {
            let begun = begin(&name);
            let attempt = begun.attempt;
            store.begin(begun).await.unwrap();
            let ended = store.end(ns(), key(&name), attempt, complete("v")).await.unwrap();
            assert!(matches!(ended, Ended::Done { .. }), "acknowledged");
        };
        for n in 0..40 {
            record(format!("early{n}")).await;
        }
        cluster.nodes.iter().for_each(wait_for_replica);
        let held = |node: &RedisServer| -> usize {
            node.ask(&["EVAL", "return #redis.call('KEYS', 'hapax:*:r:*')", "0"]).unwrap().parse().unwrap()
        };
        // One replica gets nothing from here on.
        cluster.replicas[0].ask(&["CONFIG", "SET", "masteruser", "nobody"]).unwrap();
        cluster.replicas[0].ask(&["CONFIG", "SET", "masterauth", "wrong"]).unwrap();
        cluster.nodes[0].ask(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        let before = held(&cluster.nodes[0]);
        for n in 0..40 {
            record(format!("late{n}")).await;
        }
        let missed = held(&cluster.nodes[0]) - before;
        assert!(missed > 0 && missed < 40, "{missed} of 40 lie there");
        cluster.nodes[0].kill().unwrap();
        let mut lost = 0;
        for n in 0..40 {
            let early = store.get(ns(), key(&format!("early{n}"))).await.unwrap();
            assert_eq!(early.map(|r| r.state), Some(State::Completed), "early{n}");
            lost += usize::from(store.get(ns(), key(&format!("late{n}"))).await.unwrap().is_none());
        }
        assert_eq!(lost, missed, "what the docs say: acknowledged, and not replicated");
        // And it goes on.
        record("after".into()).await;
        assert_eq!(store.census(ns()).await.unwrap().completed, u64::try_from(81 - lost).unwrap());
    });
}
