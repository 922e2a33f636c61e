//! Attempts that lost their lease, results that have no place, and the blocking face.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hapax::store::{Filter, Marked, Settlement};
use hapax::{
    ActionError, Claimed, Error, Hapax, InFlight, Json, Key, ManualClock, OnDoubt, PolicyPatch, State, Verdict,
    Verifier,
};
use serde_json::json;

use super::{Place, action, run};

const LEASE: Duration = Duration::from_secs(1);

/// Long enough for a heartbeat, which comes several times in a lease.
async fn a_heartbeat() {
    tokio::time::sleep(LEASE).await;
}

pub(super) async fn an_attempt_that_a_heartbeat_finds_lapsed_still_completes_while_nobody_took_over(place: Place) {
    let clock = ManualClock::new();
    let policy = PolicyPatch::new().lease(LEASE);
    let hapax = Hapax::builder().store(place.store(&clock)).policy(policy).build().await.unwrap();
    let (clock, looker) = (clock.clone(), hapax.clone());
    let outcome = hapax
        .execute(&action(), |context| async move {
            clock.advance(2 * LEASE);
            a_heartbeat().await;
            let seen = looker.record(context.key()).await.unwrap().map(|r| r.state);
            assert_eq!(seen, Some(State::InDoubt), "no heartbeat revives a lease");
            Ok(7)
        })
        .await
        .unwrap();
    assert_eq!(outcome.value, 7);
    let again = run(&hapax, &action(), &AtomicUsize::new(0), "never").await;
    assert!(matches!(again, Err(Error::ResultType { .. })), "the 7 is recorded: {again:?}");
}

pub(super) async fn who_was_taken_over_gets_its_value_back_and_changes_nothing(place: Place) {
    let clock = ManualClock::new();
    let store = place.store(&clock);
    let policy = || PolicyPatch::new().lease(LEASE).on_doubt(OnDoubt::RunAgain);
    let slow = Hapax::builder().store(store.clone()).policy(policy()).build().await.unwrap();
    let quick = Hapax::builder().store(store).policy(policy()).build().await.unwrap();
    let other = quick.clone();
    let lost = slow
        .execute(&action(), |_| async move {
            clock.advance(2 * LEASE);
            let taken_over = other.execute(&action(), |_| async { Ok("the later one's".to_string()) }).await.unwrap();
            assert!(!taken_over.is_replay());
            Ok("the earlier one's".to_string())
        })
        .await;
    let Err(Error::LostClaim { value: Some(value), .. }) = lost else { panic!("{lost:?}") };
    assert_eq!(value.into_value::<String>().unwrap(), "the earlier one's");
    let runs = AtomicUsize::new(0);
    assert_eq!(run(&slow, &action(), &runs, "never").await.unwrap(), "the later one's");
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

pub(super) async fn results_that_are_too_large_leave_a_doubt_whoever_brings_them(place: Place) {
    let hapax = place.builder().max_result_bytes(10).build().await.unwrap();
    let large = "more than ten bytes";
    // A claim that is completed by hand.
    let Claimed::Started(claim) = hapax.claim(&action()).await.unwrap() else { panic!("nobody had it") };
    let refused = claim.complete(large).await;
    let Err(Error::NotRecorded { value, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(value.into_value::<Json>().unwrap().to::<String>().unwrap(), large);
    let key = action().generate_key().unwrap();
    assert_eq!(hapax.record(&key).await.unwrap().map(|r| r.state), Some(State::InDoubt));
    // A verifier.
    let verifier = Verifier::new(move |_| async move { Ok(Verdict::Happened(Json::of(large)?)) });
    let asks = action().policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(verifier)));
    let refused = run(&hapax, &asks, &AtomicUsize::new(0), "never").await;
    let Err(Error::InDoubt { record }) = refused else { panic!("{refused:?}") };
    assert!(record.error.as_deref().is_some_and(|e| e.contains("max_result_bytes is 10")), "{record:?}");
    // Whoever settles or marks.
    let happened = |text: &str| Settlement::Happened { result: Json::of(text).unwrap(), ttl: hapax::Ttl::Never };
    let refused = hapax.settle(&key, happened(large)).await;
    assert!(matches!(&refused, Err(Error::Config { message }) if message.contains("max_result_bytes")), "{refused:?}");
    assert_eq!(hapax.record(&key).await.unwrap().map(|r| r.state), Some(State::InDoubt));
    hapax.settle(&key, happened("short")).await.unwrap();
    assert_eq!(run(&hapax, &action(), &AtomicUsize::new(0), "never").await.unwrap(), "short");
}

pub(super) async fn who_would_join_with_other_params_is_refused_at_once(place: Place) {
    let hapax = place.hapax().await;
    let given = |n: u32| action().params(json!({"n": n})).key(Key::given("given").unwrap());
    let joiner = hapax.clone();
    let outcome = hapax
        .execute(&given(1), |_| async move {
            let other = run(&joiner, &given(2), &AtomicUsize::new(0), "never").await;
            assert!(matches!(other, Err(Error::ParamsMismatch { .. })), "{other:?}");
            Ok("first".to_string())
        })
        .await
        .unwrap();
    assert_eq!(outcome.value, "first");
}

pub(super) async fn an_error_that_a_claim_remembers_is_replayed(place: Place) {
    let hapax = place.hapax().await;
    let Claimed::Started(claim) = hapax.claim(&action()).await.unwrap() else { panic!("nobody had it") };
    claim.fail("no such card").await.unwrap();
    let again = run(&hapax, &action(), &AtomicUsize::new(0), "never").await;
    assert!(again.as_ref().is_err_and(|e| e.to_string().contains("no such card")), "{again:?}");
    assert!(matches!(hapax.claim(&action()).await.unwrap(), Claimed::Replay(r) if r.state == State::Failed));
}

#[test]
fn the_blocking_face_does_what_the_other_does() {
    let hapax = hapax::blocking::Hapax::open("memory:").unwrap();
    let nth = |n: u32| action().signal(n.to_string()).policy(PolicyPatch::new().in_flight(InFlight::Reject));
    let key = |n: u32| nth(n).generate_key().unwrap();
    let call = |n: u32| hapax.execute(&nth(n), |_| Ok::<_, ActionError>(n));
    assert_eq!(call(1).unwrap().value, 1);
    assert!(call(1).unwrap().is_replay());
    let Claimed::Started(claim) = hapax.claim(&nth(2)).unwrap() else { panic!("nobody had it") };
    assert!(matches!(call(2), Err(Error::InFlight { .. })));
    drop(claim);
    // The doubt is written in the background.
    while matches!(call(2), Err(Error::InFlight { .. })) {}
    assert!(matches!(call(2), Err(Error::InDoubt { .. })));
    hapax.settle(&key(2), Settlement::NotHappened).unwrap();
    assert!(!call(2).unwrap().is_replay());
    assert!(matches!(hapax.mark_executed(&key(3), "by hand", None).unwrap(), Marked::Recorded { .. }));
    assert!(hapax.check_executed(&key(3)).unwrap().is_some());
    assert_eq!(hapax.keys(Filter::default()).unwrap().len(), 3);
    assert_eq!(hapax.records(Filter::default(), None, 2).unwrap().records.len(), 2);
    assert_eq!((hapax.info().unwrap().census.completed, hapax.cleanup_expired().unwrap()), (3, 0));
    assert!(hapax.stats().unwrap().executions >= 2);
    hapax.reset_stats().unwrap();
    assert_eq!(hapax.stats().unwrap().executions, 0);
    assert_eq!((hapax.cleanup_oldest_entries(1).unwrap(), hapax.clear_all().unwrap()), (1, 2));
    assert_eq!(hapax.record(&key(2)).unwrap(), None);
}
