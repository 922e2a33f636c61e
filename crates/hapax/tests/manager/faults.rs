//! A store that fails: nothing runs twice in silence, and no value is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hapax::store::StoreError;
use hapax::{Claimed, Error, Hapax, InFlight, Key, ManualClock, PolicyPatch, State};

use super::faulty::{Fault, Faulty};
use super::{Place, action, run, state};

struct Scene {
    store: Arc<Faulty>,
    hapax: Hapax,
    clock: ManualClock,
    key: Key,
    runs: AtomicUsize,
}

async fn scene(place: &Place) -> Scene {
    let clock = ManualClock::new();
    let store = Faulty::over(place.store(&clock));
    // What is remembered must not hide what the store says.
    let policy = PolicyPatch::new().in_flight(InFlight::Reject);
    let hapax = Hapax::builder().store(store.clone()).recent_results(0).policy(policy).build().await.unwrap();
    let key = Key::generate(&action()).unwrap();
    Scene { store, hapax, clock, key, runs: AtomicUsize::new(0) }
}

impl Scene {
    async fn run(&self, value: &str) -> Result<String, Error> {
        run(&self.hapax, &action(), &self.runs, value).await
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    async fn until(&self, wanted: Option<State>) {
        let since = Instant::now();
        while state(&self.hapax, &self.key).await != wanted {
            assert!(since.elapsed() < Duration::from_secs(10), "it never becomes {wanted:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(super) async fn a_value_that_the_store_does_not_take_comes_back_in_the_error(place: Place) {
    let s = scene(&place).await;
    s.store.will("end", Fault::Fails, 1);
    let Err(Error::NotRecorded { value, reason, .. }) = s.run("first").await else { panic!("it cannot be recorded") };
    assert_eq!(value.into_value::<String>().unwrap(), "first");
    assert!(reason.contains("on purpose"), "{reason}");
    s.until(Some(State::InDoubt)).await;
    assert!(matches!(s.run("second").await, Err(Error::InDoubt { .. })));
    assert_eq!(s.runs(), 1);
}

pub(super) async fn a_store_that_takes_no_end_at_all_leaves_a_lease_that_lapses(place: Place) {
    let s = scene(&place).await;
    s.store.will("end", Fault::Fails, 100);
    assert!(matches!(s.run("first").await, Err(Error::NotRecorded { .. })));
    assert!(matches!(s.run("second").await, Err(Error::InFlight { .. })), "in flight, as far as anyone can know");
    s.clock.advance(Duration::from_secs(61));
    assert!(matches!(s.run("second").await, Err(Error::InDoubt { .. })));
    assert_eq!(s.runs(), 1);
}

pub(super) async fn a_result_whose_acknowledgement_is_lost_is_replayed(place: Place) {
    let s = scene(&place).await;
    s.store.will("end", Fault::LosesAnswer, 1);
    let Err(Error::NotRecorded { value, .. }) = s.run("first").await else {
        panic!("nobody knows that it is recorded")
    };
    assert_eq!(value.into_value::<String>().unwrap(), "first");
    // What was recorded after all is the result, and the doubt that follows must not undo it.
    for _ in 0..3 {
        assert_eq!(s.run("second").await.unwrap(), "first");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(s.runs(), 1);
}

pub(super) async fn nothing_runs_when_begin_fails(place: Place) {
    let s = scene(&place).await;
    s.store.will("begin", Fault::Fails, 2);
    for _ in 0..2 {
        let failed = s.run("never").await;
        assert!(matches!(&failed, Err(Error::Store(StoreError::Unavailable { .. }))), "{failed:?}");
        assert!(failed.unwrap_err().is_retryable());
    }
    assert_eq!((s.runs(), s.run("now").await.unwrap().as_str()), (0, "now"));
    assert_eq!(s.hapax.info().await.unwrap().in_flight, 0);
}

pub(super) async fn a_begin_whose_answer_is_lost_is_released_and_nothing_ran(place: Place) {
    let s = scene(&place).await;
    s.store.will("begin", Fault::LosesAnswer, 1);
    let failed = s.run("never").await;
    assert!(matches!(failed, Err(Error::Store(StoreError::AnswerLost { .. }))), "{failed:?}");
    assert_eq!(s.runs(), 0);
    s.until(None).await;
    assert_eq!((s.run("now").await.unwrap().as_str(), s.runs()), ("now", 1));
}

pub(super) async fn a_begin_that_can_neither_be_heard_nor_released_becomes_a_doubt(place: Place) {
    let s = scene(&place).await;
    s.store.will("begin", Fault::LosesAnswer, 1);
    s.store.will("end", Fault::Fails, 1);
    assert!(s.run("never").await.is_err());
    let since = Instant::now();
    while s.store.left("end") > 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "nobody tries to release it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(state(&s.hapax, &s.key).await, Some(State::InProgress));
    s.clock.advance(Duration::from_secs(61));
    assert!(matches!(s.run("never").await, Err(Error::InDoubt { .. })));
    assert_eq!(s.runs(), 0);
}

pub(super) async fn an_error_that_cannot_be_written_is_still_told(place: Place) {
    let s = scene(&place).await;
    s.store.will("end", Fault::Fails, 1);
    let failed = s
        .hapax
        .execute::<(), _, _>(&action(), |_| async { Err(hapax::ActionError::retryable("the target is down")) })
        .await;
    let Err(Error::Action { class, error, .. }) = &failed else { panic!("{failed:?}") };
    assert_eq!((*class, error.to_string().as_str()), (hapax::ErrorClass::Unknown, "the target is down"));
    // The release is tried again in the background: the key becomes free after all.
    s.until(None).await;
    assert_eq!(s.run("now").await.unwrap(), "now");
}

pub(super) async fn a_claim_whose_end_fails_is_in_doubt(place: Place) {
    let s = scene(&place).await;
    let Claimed::Started(claim) = s.hapax.claim(&action()).await.unwrap() else { panic!("nobody had it") };
    s.store.will("end", Fault::Fails, 1);
    let failed = claim.complete("value").await;
    assert!(matches!(failed, Err(Error::NotRecorded { .. })), "{failed:?}");
    s.until(Some(State::InDoubt)).await;
    assert_eq!(s.hapax.info().await.unwrap().in_flight, 0);
}

pub(super) async fn joiners_are_told_of_the_stores_failure(place: Place) {
    let s = scene(&place).await;
    let wait = action().policy(PolicyPatch::new().in_flight(InFlight::Wait(Duration::from_secs(20))));
    s.store.will("begin", Fault::Fails, 1);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (hapax, wait) = (s.hapax.clone(), wait.clone());
            tokio::spawn(async move { run(&hapax, &wait, &AtomicUsize::new(0), "ran").await })
        })
        .collect();
    let (mut failed, mut ran) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Err(Error::Store(StoreError::Unavailable { .. })) => failed += 1,
            Ok(value) if value == "ran" => ran += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(failed >= 1 && failed + ran == 10, "{failed} failed, {ran} ran");
    assert_eq!(s.store.left("begin"), 0);
}

pub(super) async fn statistics_that_cannot_be_written_are_kept(place: Place) {
    let s = scene(&place).await;
    s.run("first").await.unwrap();
    s.run("second").await.unwrap();
    s.store.will("count", Fault::Fails, 1);
    let since = Instant::now();
    while s.store.left("count") > 0 {
        // Whoever flushes first meets the failure, this call or the background.
        let _ = s.hapax.stats().await;
        assert!(since.elapsed() < Duration::from_secs(10));
    }
    let stats = s.hapax.stats().await.unwrap();
    assert_eq!((stats.executions, stats.hits), (1, 1));
    assert_eq!(s.hapax.record(&s.key).await.unwrap().unwrap().attempt_count, 2);
}

pub(super) async fn a_heartbeat_that_fails_is_tried_again_before_the_lease_lapses(place: Place) {
    let s = scene(&place).await;
    let act = action().policy(PolicyPatch::new().lease(Duration::from_secs(1)));
    let Claimed::Started(claim) = s.hapax.claim(&act).await.unwrap() else { panic!("nobody had it") };
    let lease = |record: hapax::Record| record.lease_until.unwrap();
    let mut last = lease(s.hapax.record(&s.key).await.unwrap().unwrap());
    s.store.will("heartbeat", Fault::Fails, 1);
    for _ in 0..3 {
        // Nine tenths of the lease at once; then the heartbeat must come before the rest of it.
        s.clock.advance(Duration::from_millis(900));
        let since = Instant::now();
        loop {
            let now = lease(s.hapax.record(&s.key).await.unwrap().unwrap());
            if now > last {
                last = now;
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "no heartbeat");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(s.store.left("heartbeat"), 0);
    assert!(claim.context().is_live());
    claim.complete("after 2.7 s on a lease of 1 s").await.unwrap();
}

/// The action, with a verifier that finds its effect.
fn verified() -> hapax::Action {
    let verifier = hapax::Verifier::new(|_| async { Ok(hapax::Verdict::Happened(hapax::Json::of("found")?)) });
    action().policy(PolicyPatch::new().on_doubt(hapax::OnDoubt::Verify(verifier)))
}

pub(super) async fn a_verifier_that_finds_its_store_failing_changes_nothing(place: Place) {
    let s = scene(&place).await;
    super::doubt(&s.hapax, &action()).await;
    let act = verified();
    s.store.will("settle", Fault::Fails, 1);
    assert!(matches!(run(&s.hapax, &act, &s.runs, "never").await, Err(Error::Store(_))));
    assert_eq!(state(&s.hapax, &s.key).await, Some(State::InDoubt));
    assert_eq!(run(&s.hapax, &act, &s.runs, "never").await.unwrap(), "found");
    assert_eq!(s.runs(), 0);
}

pub(super) async fn a_settlement_that_is_not_heard_says_that_nobody_knows_and_runs_nothing(place: Place) {
    let s = scene(&place).await;
    super::doubt(&s.hapax, &action()).await;
    s.store.will("settle", Fault::LosesAnswer, 1);
    let act = verified();
    let failed = run(&s.hapax, &act, &s.runs, "never").await;
    let Err(Error::Store(lost @ StoreError::AnswerLost { .. })) = failed else { panic!("{failed:?}") };
    assert!(lost.is_transient() && lost.to_string().contains("may or may not have been made"), "{lost}");
    assert_eq!((run(&s.hapax, &act, &s.runs, "never").await.unwrap().as_str(), s.runs()), ("found", 0));
}

pub(super) async fn a_take_over_that_is_not_heard_leaves_the_doubt_it_found(place: Place) {
    let s = scene(&place).await;
    super::doubt(&s.hapax, &action()).await;
    // The first begin finds the doubt, the second takes it over.
    s.store.will("begin", Fault::Passes, 1);
    s.store.will("begin", Fault::LosesAnswer, 1);
    let again = action().policy(PolicyPatch::new().on_doubt(hapax::OnDoubt::RunAgain));
    let failed = run(&s.hapax, &again, &s.runs, "never").await;
    assert!(matches!(failed, Err(Error::Store(StoreError::AnswerLost { .. }))), "{failed:?}");
    s.until(Some(State::InDoubt)).await;
    // Nothing ran this time, but what ran before may have had its effect.
    assert!(matches!(s.run("never").await, Err(Error::InDoubt { .. })));
    assert_eq!(s.runs(), 0);
    assert_eq!(run(&s.hapax, &again, &s.runs, "again").await.unwrap(), "again");
}
