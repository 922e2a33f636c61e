//! Remote attempts: begun by a manager, held by someone elsewhere.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use hapax::store::Settlement;
use hapax::store::memory::MemoryStore;
use hapax::{
    Action, AttemptId, Error, Hapax, InFlight, Json, Key, LEASE_TAG, ManualClock, OnDoubt, PolicyPatch, RemoteCall,
    RemoteClaim, RemoteClaimed, RemoteEnd, State, TTL_TAG, Ttl,
};
use serde_json::json;

fn action() -> Action {
    let patch = PolicyPatch::new().in_flight(InFlight::Reject).lease(Duration::from_secs(10));
    Action::new("create_task", "trello").signal("s-1").params(json!({"name": "Task"})).policy(patch)
}

async fn begin(hapax: &Hapax, call: &RemoteCall) -> RemoteClaim {
    match hapax.claim_remote(call).await.unwrap() {
        RemoteClaimed::Started(claim) => claim,
        RemoteClaimed::Replay(replay) => panic!("{replay:?}"),
    }
}

fn complete(result: &serde_json::Value) -> RemoteEnd {
    RemoteEnd::Complete { result: Json::of(result).unwrap(), ttl: None, duration: None }
}

async fn on_clock() -> (Hapax, ManualClock) {
    let clock = ManualClock::new();
    let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
    (Hapax::builder().store(store).build().await.unwrap(), clock)
}

#[tokio::test]
async fn a_remote_attempt_outlives_the_manager_that_began_it() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("h.db").display());
    let first = Hapax::open(&url).await.unwrap();
    let claim = begin(&first, &RemoteCall::new(action())).await;
    assert_eq!(first.shutdown(Duration::from_secs(1)).await.unwrap().unfinished, 0, "it holds no place");
    drop(first);

    let second = Hapax::open(&url).await.unwrap();
    assert_eq!(second.record(&claim.key).await.unwrap().unwrap().state, State::InProgress);
    second.heartbeat_remote(&claim.key, claim.attempt, None).await.unwrap();
    second.end_remote(&claim.key, claim.attempt, complete(&json!("card-1"))).await.unwrap();
    let RemoteClaimed::Replay(replay) = second.claim_remote(&RemoteCall::new(action())).await.unwrap() else {
        panic!("it is on record")
    };
    assert_eq!(replay.answer.unwrap().as_str(), "\"card-1\"");
}

#[tokio::test]
async fn a_claim_asked_for_again_is_the_same_attempt() {
    let (hapax, _) = on_clock().await;
    let id = AttemptId::new();
    let call = RemoteCall::new(action()).attempt(id);
    let (first, again) = (begin(&hapax, &call).await, begin(&hapax, &call).await);
    assert_eq!((first.attempt, again.attempt, again.attempts), (id, id, 1));
    let other = hapax.claim_remote(&RemoteCall::new(action())).await.unwrap_err();
    assert!(matches!(other, Error::InFlight { .. }), "{other}");
}

#[tokio::test]
async fn a_silent_attempt_is_in_doubt_and_its_own_late_answer_still_counts() {
    let (hapax, clock) = on_clock().await;
    let claim = begin(&hapax, &RemoteCall::new(action())).await;
    clock.advance(Duration::from_secs(9));
    hapax.heartbeat_remote(&claim.key, claim.attempt, Some(Duration::from_secs(10))).await.unwrap();
    clock.advance(Duration::from_secs(11));
    let lapsed = hapax.heartbeat_remote(&claim.key, claim.attempt, None).await.unwrap_err();
    assert!(matches!(lapsed, Error::InDoubt { .. }), "{lapsed}");
    let refused = hapax.claim_remote(&RemoteCall::new(action())).await.unwrap_err();
    assert!(matches!(refused, Error::InDoubt { .. }), "{refused}");
    hapax.end_remote(&claim.key, claim.attempt, complete(&json!(1))).await.unwrap();
    // The answer to the first was lost: the same end again is the same answer.
    hapax.end_remote(&claim.key, claim.attempt, complete(&json!(1))).await.unwrap();
}

#[tokio::test]
async fn who_takes_over_its_own_doubt_gets_a_new_attempt() {
    let (hapax, clock) = on_clock().await;
    let id = AttemptId::new();
    begin(&hapax, &RemoteCall::new(action()).attempt(id)).await;
    clock.advance(Duration::from_secs(11));
    let rerun = action().policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));
    let second = begin(&hapax, &RemoteCall::new(rerun).attempt(id)).await;
    assert_ne!(second.attempt, id);
    assert_eq!(second.attempts, 2);
    // It speaks for itself alone: the doubt before it stays, until someone has looked.
    let released = hapax.end_remote(&second.key, second.attempt, RemoteEnd::Release).await.unwrap();
    assert_eq!(released.state, Some(State::InDoubt));
    let freed = hapax.end_remote(&second.key, second.attempt, RemoteEnd::ReleaseAll).await.unwrap();
    assert_eq!(freed.state, None);
    let stale = hapax.end_remote(&second.key, id, RemoteEnd::Release).await.unwrap_err();
    assert!(matches!(stale, Error::LostClaim { .. }), "{stale}");
}

#[tokio::test]
async fn the_time_to_live_of_the_claim_holds_for_the_result() {
    let (hapax, _) = on_clock().await;
    let claim = begin(&hapax, &RemoteCall::new(action().tag(TTL_TAG, "60000"))).await;
    let ended = hapax.end_remote(&claim.key, claim.attempt, complete(&json!(1))).await.unwrap();
    assert_eq!(ended.expires_at.unwrap().since(ended.at), Duration::from_secs(60));
}

#[tokio::test]
async fn another_end_of_an_attempt_that_has_ended_changes_nothing_and_is_replayed_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory:".to_string(), format!("sqlite:{}", dir.path().join("h.db").display())] {
        let hapax = Hapax::open(&url).await.unwrap();
        let claim = begin(&hapax, &RemoteCall::new(action())).await;
        let end = async |end| hapax.end_remote(&claim.key, claim.attempt, end).await;
        let first = end(complete(&json!("first"))).await.unwrap();
        let fail = RemoteEnd::Fail { error: "no".into(), ttl: None, duration: None };
        for other in [complete(&json!("second")), fail] {
            let error = end(other).await.unwrap_err();
            assert!(matches!(error, Error::LostClaim { .. }), "{error}");
        }
        let again = end(complete(&json!("first"))).await.unwrap();
        assert_eq!((again.at, again.expires_at, again.state), (first.at, first.expires_at, Some(State::Completed)));
        let RemoteClaimed::Replay(replay) = hapax.claim_remote(&RemoteCall::new(action())).await.unwrap() else {
            panic!("it is on record")
        };
        assert_eq!(replay.answer.unwrap().as_str(), "\"first\"");
    }
}

#[tokio::test]
async fn a_heartbeat_that_names_no_lease_renews_the_one_that_was_claimed() {
    let clock = ManualClock::new();
    let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
    let rule = PolicyPatch::new().lease(Duration::from_secs(600));
    let hapax = Hapax::builder().store(store).policy_for("create_task", None, rule).build().await.unwrap();
    let lease = async |claim: &RemoteClaim| {
        let until = hapax.heartbeat_remote(&claim.key, claim.attempt, None).await.unwrap();
        until.since(hapax.store().now().await.unwrap())
    };
    // As the server notes it for a claim that asks for one.
    let asked =
        begin(&hapax, &RemoteCall::new(action().key(Key::given("asked").unwrap()).tag(LEASE_TAG, "3600000"))).await;
    assert_eq!(lease(&asked).await, Duration::from_secs(3600));
    let ruled = Action::new("create_task", "trello").signal("s-2");
    let ruled = begin(&hapax, &RemoteCall::new(ruled)).await;
    assert_eq!((ruled.lease, lease(&ruled).await), (Duration::from_secs(600), Duration::from_secs(600)));
    let stale = hapax.heartbeat_remote(&ruled.key, asked.attempt, None).await.unwrap_err();
    assert!(matches!(stale, Error::LostClaim { .. }), "{stale}");
}

#[tokio::test]
async fn a_result_that_would_be_kept_for_no_time_is_refused_however_it_comes() {
    let (hapax, _) = on_clock().await;
    let claim = begin(&hapax, &RemoteCall::new(action())).await;
    let none = Some(Ttl::For(Duration::ZERO));
    let one = Json::of(&1).unwrap();
    hapax.end_remote(&claim.key, claim.attempt, RemoteEnd::Doubt { reason: "?".into() }).await.unwrap();
    let happened = Settlement::Happened { result: one.clone(), ttl: Ttl::For(Duration::ZERO) };
    let marked = RemoteCall::new(Action::new("a", "t").key(Key::given("m").unwrap()));
    for error in [
        hapax.settle(&claim.key, happened).await.unwrap_err(),
        hapax.mark_executed(&claim.key, &1, none).await.unwrap_err(),
        hapax.mark_remote(&marked, one, none).await.unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Config { message } if message.contains("ttl is zero")), "{error}");
    }
    assert_eq!(hapax.record(&claim.key).await.unwrap().unwrap().state, State::InDoubt, "nothing is settled");
}

#[tokio::test]
async fn a_result_over_the_limit_leaves_doubt() {
    let hapax = Hapax::builder().max_result_bytes(10).build().await.unwrap();
    let claim = begin(&hapax, &RemoteCall::new(action())).await;
    let error = hapax.end_remote(&claim.key, claim.attempt, complete(&json!("0123456789"))).await.unwrap_err();
    assert!(matches!(error, Error::NotRecorded { .. }), "{error}");
    assert_eq!(hapax.record(&claim.key).await.unwrap().unwrap().state, State::InDoubt);
}

#[tokio::test]
async fn a_fingerprint_alone_tells_other_content_apart() {
    let (hapax, _) = on_clock().await;
    let print = |n| hapax::Fingerprint::of(&json!(n)).unwrap();
    let keyed = action().key(Key::given("k-1").unwrap());
    let claim = begin(&hapax, &RemoteCall::new(keyed.clone()).fingerprint(print(1))).await;
    hapax.end_remote(&claim.key, claim.attempt, complete(&json!(1))).await.unwrap();
    let other = hapax.claim_remote(&RemoteCall::new(keyed).fingerprint(print(2))).await.unwrap_err();
    assert!(matches!(other, Error::ParamsMismatch { .. }), "{other}");
    let unnamed = hapax.claim_remote(&RemoteCall::new(action()).fingerprint(print(1))).await.unwrap_err();
    assert!(matches!(unnamed, Error::Config { .. }), "{unnamed}");
}
