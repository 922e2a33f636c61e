//! Answers that get lost on the way: what was done is recognised, and what cannot be is said to be unknown.

use std::time::Duration;

use hapax::store::redis::RedisStore;
use hapax::store::{Beat, Begun, Counters, End, Ended, Mark, Marked, Removed, Settled, Settlement, Store, StoreError};
use hapax::{Action, AttemptId, Json, State, Ttl};
use hapax_servers::process::local;
use hapax_servers::proxy::{Fault, Proxy};
use hapax_servers::redis::RedisServer;

use crate::common::{Ledger, begin, complete, key, manager, ns, open, run, server};

/// An operation's letter as it stands in a request.
fn letter(letter: char) -> Vec<u8> {
    format!("$1\r\n{letter}\r\n").into_bytes()
}

/// A begin of a new record and a completion, as they stand in a request.
const BEGIN: &[u8] = b"\r\nB1";
const COMPLETE: &[u8; 5] = b"\r\nEC0";

struct Rig {
    _redis: RedisServer,
    proxy: Proxy,
    url: String,
}

fn rig() -> Rig {
    let redis = server();
    let proxy = Proxy::start(local(redis.port())).unwrap();
    let url = format!("redis://127.0.0.1:{}?command_timeout=2s", proxy.port());
    Rig { _redis: redis, proxy, url }
}

async fn start(store: &RedisStore, name: &str) -> AttemptId {
    let begin = begin(name);
    let attempt = begin.attempt;
    assert!(matches!(store.begin(begin).await.unwrap(), Begun::Started { .. }));
    attempt
}

const BOTH: [Fault; 2] = [Fault::BeforeRequest, Fault::BeforeAnswer];

#[test]
fn a_begin_whose_answer_was_lost_is_the_same_attempt() {
    let rig = rig();
    run(async {
        let store = open(&rig.url).await;
        start(&store, "first").await;
        for (n, fault) in BOTH.into_iter().enumerate() {
            let name = format!("k{n}");
            rig.proxy.trap(fault, BEGIN);
            let attempt = start(&store, &name).await;
            let record = store.get(ns(), key(&name)).await.unwrap().unwrap();
            assert_eq!((record.attempt_id, record.attempts, record.attempt_count), (attempt, 1, 1), "{fault:?}");
        }
        assert_eq!(rig.proxy.sprung(), 2);
    });
}

#[test]
fn an_end_whose_answer_was_lost_is_done_once() {
    let rig = rig();
    run(async {
        let store = open(&rig.url).await;
        let fail = End::Fail { error: "no".into(), ttl: Ttl::Never, duration: Duration::ZERO };
        let doubt = End::Doubt { reason: "who knows".into() };
        let ends = [
            (complete("v"), Some(State::Completed), COMPLETE),
            (fail, Some(State::Failed), b"\r\nEF0"),
            (End::Release, None, b"\r\nER0"),
            (doubt, Some(State::InDoubt), b"\r\nED0"),
        ];
        for fault in BOTH {
            for (n, (end, state, bytes)) in ends.iter().enumerate() {
                let name = format!("{fault:?}-{n}");
                let attempt = start(&store, &name).await;
                rig.proxy.trap(fault, *bytes);
                let ended = store.end(ns(), key(&name), attempt, end.clone()).await.unwrap();
                assert!(matches!(ended, Ended::Done { .. }), "{name}: {ended:?}");
                let found = store.get(ns(), key(&name)).await.unwrap();
                assert_eq!(found.as_ref().map(|r| r.state), *state, "{name}");
            }
        }
        assert_eq!(rig.proxy.sprung(), 8);
        let census = store.census(ns()).await.unwrap();
        assert_eq!((census.completed, census.failed, census.in_doubt, census.in_progress), (2, 2, 2, 0));
    });
}

#[test]
fn settlements_marks_and_heartbeats_whose_answers_were_lost_are_done_once() {
    let rig = rig();
    run(async {
        let store = open(&rig.url).await;
        for fault in BOTH {
            for happened in [true, false] {
                let name = format!("{fault:?}-{happened}");
                let attempt = start(&store, &name).await;
                store.end(ns(), key(&name), attempt, End::Doubt { reason: "?".into() }).await.unwrap();
                let settlement = if happened {
                    Settlement::Happened { result: Json::of("v").unwrap(), ttl: Ttl::Never }
                } else {
                    Settlement::NotHappened
                };
                rig.proxy.trap(fault, &letter('S'));
                let settled = store.settle(ns(), key(&name), Some(attempt), settlement).await.unwrap();
                assert!(matches!(&settled, Settled::Done(r) if r.is_some() == happened), "{settled:?}");
            }
            let name = format!("mark-{fault:?}");
            let of = begin(&name);
            let mark = Mark {
                namespace: ns(),
                key: key(&name),
                signal_id: None,
                action_type: "a".into(),
                target: "t".into(),
                params: None,
                fingerprint: of.fingerprint,
                attempt: of.attempt,
                owner: of.owner,
                result: Json::of("v").unwrap(),
                ttl: Ttl::Never,
                capacity: None,
            };
            rig.proxy.trap(fault, &letter('M'));
            assert!(matches!(store.mark(mark).await.unwrap(), Marked::Recorded { .. }));
            let name = format!("beat-{fault:?}");
            let attempt = start(&store, &name).await;
            rig.proxy.trap(fault, &letter('H'));
            let beats = store.heartbeat(ns(), vec![(key(&name), attempt, Duration::from_secs(9))]).await.unwrap();
            assert_eq!(beats, [Beat::Renewed]);
        }
        assert_eq!(rig.proxy.sprung(), 8);
    });
}

#[test]
fn a_removal_whose_answer_was_lost_is_not_made_twice_but_said_to_be_unknown() {
    let rig = rig();
    run(async {
        let store = open(&rig.url).await;
        let attempt = start(&store, "k").await;
        store.end(ns(), key("k"), attempt, complete("v")).await.unwrap();
        rig.proxy.trap(Fault::BeforeAnswer, &letter('R'));
        let lost = store.remove(ns(), key("k")).await;
        assert!(matches!(lost, Err(StoreError::AnswerLost { .. })), "{lost:?}");
        assert!(matches!(store.remove(ns(), key("k")).await.unwrap(), Removed::Absent));
    });
}

#[test]
fn counts_whose_answer_was_lost_are_added_once() {
    let rig = rig();
    run(async {
        let store = open(&rig.url).await;
        for fault in BOTH {
            rig.proxy.trap(fault, b"misses");
            store.count(ns(), Counters { misses: 5, ..Counters::default() }, Vec::new()).await.unwrap();
        }
        assert_eq!((rig.proxy.sprung(), store.counters(ns()).await.unwrap().misses), (2, 10));
    });
}

#[test]
fn a_call_runs_its_action_once_whichever_answer_is_lost() {
    let rig = rig();
    run(async {
        let hapax = manager(&rig.url).await;
        let ledger = Ledger::default();
        let faults = [(BEGIN, BOTH[0]), (BEGIN, BOTH[1]), (COMPLETE, BOTH[0]), (COMPLETE, BOTH[1])];
        for (n, (op, fault)) in faults.into_iter().enumerate() {
            let action = Action::new("send", "mail").signal(format!("s{n}"));
            rig.proxy.trap(fault, op);
            for _ in 0..2 {
                let there = ledger.clone();
                let outcome = hapax
                    .execute(&action, |context| async move { Ok(there.effect(context.key().as_str())) })
                    .await
                    .unwrap();
                assert!(outcome.value > 0);
            }
        }
        assert_eq!((rig.proxy.sprung(), ledger.len(), ledger.doubled().len()), (4, 4, 0));
    });
}

#[test]
fn connections_cut_at_random_under_load_double_nothing() {
    let rig = rig();
    run(async {
        let (hapax, other) = (manager(&rig.url).await, manager(&rig.url).await);
        let ledger = Ledger::default();
        let mut callers = Vec::new();
        for caller in 0..32 {
            let hapax = if caller % 2 == 0 { hapax.clone() } else { other.clone() };
            let ledger = ledger.clone();
            callers.push(tokio::spawn(async move {
                let mut good = 0;
                for n in 0..40 {
                    let action = Action::new("send", "mail").signal(format!("{}-{n}", caller / 2));
                    let ledger = ledger.clone();
                    let run = |context: hapax::Context| async move {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        Ok(ledger.effect(context.key().as_str()))
                    };
                    good += u32::from(hapax.execute(&action, run).await.is_ok());
                }
                good
            }));
        }
        for _ in 0..15 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            rig.proxy.cut();
        }
        let mut good = 0;
        for caller in callers {
            good += caller.await.unwrap();
        }
        assert_eq!(ledger.doubled(), []);
        assert_eq!(good, 32 * 40, "a cut connection is made anew within the command limit");
    });
}
