//! What a call does: one test per promise, on each store.
#![allow(clippy::unwrap_used, clippy::panic)]

mod choices;
mod faults;
mod faulty;
mod late;
mod promises;
mod told;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hapax::store::memory::MemoryStore;
use hapax::store::{Filter, Marked, OnFull, Settlement, Store};
use hapax::{
    Action, ActionError, Builder, Claimed, Error, Hapax, Identity, InFlight, Json, KeepParams, Key, ManualClock,
    OnDoubt, PolicyPatch, State, Ttl, Verdict, Verifier,
};
use serde_json::json;

use choices::*;
use faults::*;
use late::*;
use promises::*;

fn action() -> Action {
    Action::new("create_task", "trello").signal("signal-123").params(json!({"name": "Task", "id": 123}))
}

/// Where the manager of a test keeps its records.
struct Place {
    /// `None`: in memory.
    directory: Option<tempfile::TempDir>,
}

impl Place {
    fn builder(&self) -> Builder {
        let url = match &self.directory {
            None => "memory:".into(),
            Some(d) => format!("sqlite:{}?durability=buffered", d.path().join("hapax.db").display()),
        };
        Hapax::builder().store_url(url)
    }

    async fn hapax(&self) -> Hapax {
        self.builder().build().await.unwrap()
    }

    /// A store on a clock of the test's, for managers that share it.
    fn store(&self, clock: &ManualClock) -> Arc<dyn Store> {
        let clock = Arc::new(clock.clone());
        match &self.directory {
            None => Arc::new(MemoryStore::with_clock(clock)),
            #[cfg(feature = "sqlite")]
            Some(d) => {
                use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
                let options = SqliteOptions::new(d.path().join("hapax.db"));
                Arc::new(SqliteStore::open(options.durability(Durability::Buffered).clock(clock)).unwrap())
            }
            #[cfg(not(feature = "sqlite"))]
            Some(_) => unreachable!("without the feature there is no such place"),
        }
    }
}

/// One test per claim and store.
macro_rules! on_every_store {
    ($($claim:ident)*) => {
        mod on_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    super::$claim(super::Place { directory: None }).await;
                }
            )*
        }

        #[cfg(feature = "sqlite")]
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    super::$claim(super::Place { directory: Some(tempfile::tempdir().unwrap()) }).await;
                }
            )*
        }
    };
}

on_every_store! {
    the_second_call_gets_the_first_ones_value_and_runs_nothing
    ten_thousand_callers_of_a_new_key_run_it_once_and_all_get_its_value
    other_params_under_the_same_key_are_a_mismatch_and_change_nothing
    a_retryable_error_frees_the_key_a_permanent_one_is_remembered_an_unknown_one_is_a_doubt
    who_runs_again_without_effect_leaves_the_doubt_before_it
    a_settlement_that_names_an_attempt_is_not_taken_for_anothers
    a_cancelled_call_leaves_the_key_in_doubt_never_free
    a_panic_in_the_action_leaves_the_key_in_doubt
    a_doubt_is_settled_by_a_person_either_way
    a_verifier_decides_what_became_of_a_doubt
    run_again_takes_over_and_the_zombies_late_answer_is_lost
    a_duplicate_in_flight_waits_or_is_turned_away_as_it_chose
    a_result_ends_with_its_ttl_even_when_remembered
    a_result_that_cannot_be_recorded_comes_back_inside_the_error
    an_action_past_its_time_limit_is_in_doubt
    marking_records_only_over_nothing_or_a_doubt
    cleared_means_that_it_runs_again
    identity_and_kept_params_are_choices_at_every_level
    at_its_limit_the_store_evicts_the_oldest_or_refuses_as_chosen
    shutdown_waits_for_running_attempts_and_begins_nothing_more
    attempts_in_flight_are_limited_and_those_who_wait_are_not
    of_a_long_error_the_record_keeps_the_beginning
    what_a_record_cannot_hold_is_refused_before_anything_runs
    settings_change_for_the_calls_to_come
    a_call_with_a_choice_out_of_range_runs_nothing
    expired_records_are_removed_by_the_clock_until_that_is_stopped
    oldest_entries_are_removed_and_counted
    a_mark_lives_as_long_as_it_was_told_to
    records_that_expire_soon_are_found_by_the_manager
    a_value_that_the_store_does_not_take_comes_back_in_the_error
    a_store_that_takes_no_end_at_all_leaves_a_lease_that_lapses
    a_result_whose_acknowledgement_is_lost_is_replayed
    nothing_runs_when_begin_fails
    a_begin_whose_answer_is_lost_is_released_and_nothing_ran
    a_begin_that_can_neither_be_heard_nor_released_becomes_a_doubt
    an_error_that_cannot_be_written_is_still_told
    a_claim_whose_end_fails_is_in_doubt
    joiners_are_told_of_the_stores_failure
    statistics_that_cannot_be_written_are_kept
    a_heartbeat_that_fails_is_tried_again_before_the_lease_lapses
    a_verifier_that_finds_its_store_failing_changes_nothing
    a_settlement_that_is_not_heard_says_that_nobody_knows_and_runs_nothing
    a_take_over_that_is_not_heard_leaves_the_doubt_it_found
    an_attempt_that_a_heartbeat_finds_lapsed_still_completes_while_nobody_took_over
    who_was_taken_over_gets_its_value_back_and_changes_nothing
    results_that_are_too_large_leave_a_doubt_whoever_brings_them
    who_would_join_with_other_params_is_refused_at_once
    an_error_that_a_claim_remembers_is_replayed
    joiners_share_the_leaders_error_and_the_key_is_free_after
    joiners_of_a_cancelled_leader_see_the_doubt_and_run_nothing
    a_call_cancelled_at_any_point_leaves_no_second_run
    a_verifier_that_takes_too_long_leaves_the_doubt
    a_verifier_is_asked_once_for_many_callers
    a_verdict_that_comes_too_late_changes_nothing
    shutdown_waits_for_what_runs_and_refuses_what_comes
    shutdown_gives_up_at_its_limit_and_says_how_many_run
    the_blocking_face_works_within_a_runtime
    a_panic_in_a_blocking_closure_leaves_the_key_in_doubt
    a_blocking_action_past_its_time_limit_is_in_doubt
    a_blocking_action_keeps_its_lease
}

async fn memory() -> Hapax {
    Hapax::open("memory:").await.unwrap()
}

/// Runs an action that counts its runs and returns `value`.
async fn run(hapax: &Hapax, action: &Action, runs: &AtomicUsize, value: &str) -> Result<String, Error> {
    let value = value.to_string();
    let outcome = hapax
        .execute(action, |_| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            Ok(value)
        })
        .await?;
    Ok(outcome.value)
}

/// Leaves the action's key in doubt by dropping a claim, and waits until it is written.
async fn doubt(hapax: &Hapax, action: &Action) -> Key {
    let key = Key::generate(action).unwrap();
    let Claimed::Started(claim) = hapax.claim(action).await.unwrap() else { panic!("claimed before") };
    claim.doubt("left so by the test").await.unwrap();
    key
}

async fn state(hapax: &Hapax, key: &Key) -> Option<State> {
    hapax.record(key).await.unwrap().map(|r| r.state)
}

async fn the_second_call_gets_the_first_ones_value_and_runs_nothing(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    assert_eq!(run(&hapax, &action(), &runs, "first").await.unwrap(), "first");
    assert_eq!(run(&hapax, &action(), &runs, "second").await.unwrap(), "first");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let record = hapax.record(&Key::generate(&action()).unwrap()).await.unwrap().unwrap();
    assert_eq!(record.key.as_str(), "signal-123:create_task:trello:1557ebfc75da3109");
    assert_eq!((record.state, record.attempts), (State::Completed, 1));
    assert_eq!(record.result.unwrap().to_value(), json!("first"));
}

async fn ten_thousand_callers_of_a_new_key_run_it_once_and_all_get_its_value(place: Place) {
    let (hapax, runs) = (place.hapax().await, Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let (hapax, runs) = (hapax.clone(), runs.clone());
            tokio::spawn(async move {
                hapax
                    .execute(&action(), |_| async move {
                        tokio::task::yield_now().await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
                    .unwrap()
                    .value
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 0);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let stats = hapax.stats().await.unwrap();
    assert_eq!((stats.executions, stats.misses, stats.hits), (1, 1, 9_999));
    assert_eq!(hapax.record(&Key::generate(&action()).unwrap()).await.unwrap().unwrap().attempt_count, 10_000);
}

async fn other_params_under_the_same_key_are_a_mismatch_and_change_nothing(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let key = Key::given("order-42").unwrap();
    let first = action().key(key.clone());
    run(&hapax, &first, &runs, "first").await.unwrap();
    for recent in [true, false] {
        if !recent {
            assert!(matches!(hapax.claim(&first.clone().params(json!(1))).await, Err(Error::ParamsMismatch { .. })));
        }
        let other = run(&hapax, &first.clone().params(json!({"name": "Other"})), &runs, "second").await;
        assert!(matches!(other, Err(Error::ParamsMismatch { .. })), "{other:?}");
    }
    assert_eq!((runs.load(Ordering::SeqCst), run(&hapax, &first, &runs, "x").await.unwrap().as_str()), (1, "first"));
    assert_eq!(hapax.stats().await.unwrap().mismatches, 3);
}

async fn a_retryable_error_frees_the_key_a_permanent_one_is_remembered_an_unknown_one_is_a_doubt(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let fail = |error: fn(&'static str) -> ActionError, signal: &str| {
        let (hapax, action) = (hapax.clone(), action().signal(signal));
        async move { hapax.execute::<String, _, _>(&action, |_| async move { Err(error("no")) }).await.unwrap_err() }
    };
    let plain = fail(ActionError::new, "r").await;
    assert!(plain.is_retryable(), "{plain}");
    assert_eq!(run(&hapax, &action().signal("r"), &runs, "then").await.unwrap(), "then");

    fail(ActionError::permanent, "p").await;
    let again = run(&hapax, &action().signal("p"), &runs, "never").await;
    assert!(matches!(&again, Err(Error::Failed { message, .. }) if message == "no"), "{again:?}");

    fail(ActionError::unknown, "u").await;
    let again = run(&hapax, &action().signal("u"), &runs, "never").await;
    assert!(matches!(&again, Err(Error::InDoubt { record }) if record.error.as_deref() == Some("no")), "{again:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(hapax.stats().await.unwrap().failures, 3);
}

async fn who_runs_again_without_effect_leaves_the_doubt_before_it(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let key = doubt(&hapax, &action()).await;
    let again = action().policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));
    let failed = hapax.execute::<(), _, _>(&again, |_| async { Err(ActionError::retryable("not now")) }).await;
    let failed = failed.unwrap_err();
    assert!(failed.is_retryable());
    assert!(matches!(failed, Error::Action { state: Some(State::InDoubt), .. }), "{failed:?}");
    assert!(failed.to_string().contains("the key still is: settle it"), "{failed}");
    // The first attempt may have had its effect: who refuses must not run.
    assert_eq!(state(&hapax, &key).await, Some(State::InDoubt));
    assert!(matches!(run(&hapax, &action(), &runs, "never").await, Err(Error::InDoubt { .. })));
    let Claimed::Started(claim) = hapax.claim(&again).await.unwrap() else { panic!("not taken over") };
    claim.release().await.unwrap();
    assert_eq!(state(&hapax, &key).await, Some(State::InDoubt));
    // Once a verifier has said that nothing happened, the attempt's own word frees the key.
    let verified = again
        .policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(Verifier::new(|_| async { Ok(Verdict::NotHappened) }))));
    let failed = hapax.execute::<(), _, _>(&verified, |_| async { Err(ActionError::retryable("not now")) }).await;
    assert!(failed.unwrap_err().is_retryable());
    assert_eq!((state(&hapax, &key).await, runs.load(Ordering::SeqCst)), (None, 0));
}

async fn a_settlement_that_names_an_attempt_is_not_taken_for_anothers(place: Place) {
    let hapax = place.hapax().await;
    let key = doubt(&hapax, &action()).await;
    let looked_into = hapax.record(&key).await.unwrap().unwrap().attempt_id;
    // Meanwhile another settles it, it runs again, and comes into doubt anew.
    hapax.settle(&key, Settlement::NotHappened).await.unwrap();
    doubt(&hapax, &action()).await;
    let late = hapax.settle_attempt(&key, looked_into, Settlement::NotHappened).await;
    assert!(matches!(late, Err(Error::LostClaim { attempt, .. }) if attempt == looked_into), "{late:?}");
    assert_eq!(state(&hapax, &key).await, Some(State::InDoubt));
    let now = hapax.record(&key).await.unwrap().unwrap().attempt_id;
    assert!(hapax.settle_attempt(&key, now, Settlement::NotHappened).await.unwrap().is_none());
    assert!(matches!(hapax.settle_attempt(&key, now, Settlement::NotHappened).await, Err(Error::WrongState { .. })));
}

async fn a_cancelled_call_leaves_the_key_in_doubt_never_free(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let act = action();
    let (started, begun) = tokio::sync::oneshot::channel();
    let call = hapax.execute::<(), _, _>(&act, |_| async move {
        let _ = started.send(());
        std::future::pending().await
    });
    tokio::select! {
        _ = call => panic!("it never ends"),
        _ = begun => {}
    }
    // The doubt is written in the background; until then the attempt counts as alive, and waiting ends with it.
    let again = run(&hapax, &act, &runs, "never").await;
    assert!(matches!(again, Err(Error::InDoubt { .. })), "{again:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

async fn a_panic_in_the_action_leaves_the_key_in_doubt(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let there = hapax.clone();
    let call =
        tokio::spawn(
            async move { there.execute::<(), _, _>(&action(), |_| async move { panic!("on purpose") }).await },
        );
    assert!(call.await.unwrap_err().is_panic());
    assert!(matches!(run(&hapax, &action(), &runs, "never").await, Err(Error::InDoubt { .. })));
}

async fn a_doubt_is_settled_by_a_person_either_way(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let key = doubt(&hapax, &action()).await;
    let happened = Settlement::Happened { result: Json::of("by hand").unwrap(), ttl: Ttl::Never };
    hapax.settle(&key, happened).await.unwrap();
    assert_eq!(run(&hapax, &action(), &runs, "never").await.unwrap(), "by hand");
    assert!(matches!(hapax.settle(&key, Settlement::NotHappened).await, Err(Error::WrongState { .. })));

    let other = action().signal("other");
    let key = doubt(&hapax, &other).await;
    assert!(matches!(hapax.clear_key(&key).await, Err(Error::WrongState { .. })), "a doubt is settled, not cleared");
    hapax.settle(&key, Settlement::NotHappened).await.unwrap();
    assert_eq!(run(&hapax, &other, &runs, "ran").await.unwrap(), "ran");
}

async fn a_verifier_decides_what_became_of_a_doubt(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    for (verdict, expected) in [("happened", Some("found")), ("not", Some("ran")), ("unknown", None), ("error", None)] {
        let verifier = Verifier::new(move |_| async move {
            Ok(match verdict {
                "happened" => Verdict::Happened(Json::of("found")?),
                "not" => Verdict::NotHappened,
                "unknown" => Verdict::Unknown,
                _ => return Err(ActionError::new("the target is down")),
            })
        });
        let act = action().signal(verdict).policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(verifier)));
        let key = doubt(&hapax, &act).await;
        let seen = run(&hapax, &act, &runs, "ran").await;
        match expected {
            Some(value) => assert_eq!(seen.unwrap(), value),
            None => {
                assert!(matches!(seen, Err(Error::InDoubt { .. })));
                assert_eq!(state(&hapax, &key).await, Some(State::InDoubt));
            }
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

async fn run_again_takes_over_and_the_zombies_late_answer_is_lost(place: Place) {
    let (store, clock) = {
        let c = ManualClock::new();
        (place.store(&c), c)
    };
    // Two managers stand for two processes: they share the store, not the flights.
    let zombie = Hapax::builder().store(store.clone()).build().await.unwrap();
    let other = Hapax::builder().store(store).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    let act = action().policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain).lease(Duration::from_secs(60)));
    let Claimed::Started(claim) = zombie.claim(&act).await.unwrap() else { panic!() };
    clock.advance(Duration::from_secs(61));
    assert_eq!(run(&other, &act, &runs, "second").await.unwrap(), "second");
    assert!(matches!(claim.complete("zombie").await, Err(Error::LostClaim { .. })));
    assert_eq!(run(&zombie, &act, &runs, "x").await.unwrap(), "second");
}

async fn a_duplicate_in_flight_waits_or_is_turned_away_as_it_chose(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let Claimed::Started(claim) = hapax.claim(&action()).await.unwrap() else { panic!() };
    for choice in [InFlight::Reject, InFlight::Wait(Duration::from_millis(20))] {
        let seen = run(&hapax, &action().policy(PolicyPatch::new().in_flight(choice)), &runs, "never").await;
        assert!(matches!(seen, Err(Error::InFlight { .. })), "{seen:?}");
    }
    let waiter = {
        let hapax = hapax.clone();
        tokio::spawn(async move { run(&hapax, &action(), &AtomicUsize::new(0), "never").await.unwrap() })
    };
    claim.complete("the claim's").await.unwrap();
    assert_eq!(waiter.await.unwrap(), "the claim's");
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

async fn a_result_ends_with_its_ttl_even_when_remembered(place: Place) {
    let clock = ManualClock::new();
    let hapax = Hapax::builder().store(place.store(&clock)).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    let act = action().policy(PolicyPatch::new().ttl(Duration::from_secs(10)));
    run(&hapax, &act, &runs, "first").await.unwrap();
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(run(&hapax, &act, &runs, "second").await.unwrap(), "first");
    clock.advance(Duration::from_millis(1));
    assert_eq!(run(&hapax, &act, &runs, "second").await.unwrap(), "second");
}

async fn a_result_that_cannot_be_recorded_comes_back_inside_the_error(place: Place) {
    let hapax = place.builder().max_result_bytes(100).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    let big = "x".repeat(200);
    let Err(Error::NotRecorded { value, .. }) = run(&hapax, &action(), &runs, &big).await else { panic!() };
    assert_eq!(value.into_value::<String>().unwrap(), big);
    assert!(matches!(run(&hapax, &action(), &runs, "never").await, Err(Error::InDoubt { .. })));

    let act = action().signal("nan");
    let seen = hapax.execute(&act, |_| async { Ok(f64::NAN) }).await;
    let Err(Error::NotRecorded { value, .. }) = seen else { panic!("{seen:?}") };
    assert!(value.into_value::<f64>().unwrap().is_nan());
}

async fn an_action_past_its_time_limit_is_in_doubt(place: Place) {
    let hapax = place.hapax().await;
    let act = action().policy(PolicyPatch::new().time_limit(Some(Duration::from_millis(10))));
    let seen = hapax.execute::<(), _, _>(&act, |_| std::future::pending()).await;
    assert!(matches!(seen, Err(Error::TimedOut { .. })), "{seen:?}");
    assert_eq!(state(&hapax, &Key::generate(&act).unwrap()).await, Some(State::InDoubt));
}

async fn marking_records_only_over_nothing_or_a_doubt(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let key = Key::generate(&action()).unwrap();
    assert!(hapax.check_executed(&key).await.unwrap().is_none());
    assert!(matches!(hapax.mark_executed(&key, "by hand", None).await.unwrap(), Marked::Recorded { .. }));
    assert!(matches!(hapax.mark_executed(&key, "again", None).await.unwrap(), Marked::Exists(_)));
    assert_eq!(run(&hapax, &action(), &runs, "never").await.unwrap(), "by hand");
    let other = action().signal("other");
    let claim = hapax.claim(&other).await.unwrap();
    let live = hapax.mark_executed(&Key::generate(&other).unwrap(), "x", None).await;
    assert!(matches!(live, Err(Error::InFlight { .. })));
    drop(claim);
}

async fn cleared_means_that_it_runs_again(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let key = Key::generate(&action()).unwrap();
    run(&hapax, &action(), &runs, "first").await.unwrap();
    assert!(hapax.clear_key(&key).await.unwrap());
    assert!(!hapax.clear_key(&key).await.unwrap());
    assert_eq!(run(&hapax, &action(), &runs, "second").await.unwrap(), "second");
    assert_eq!(hapax.clear_all().await.unwrap(), 1);
    assert_eq!(run(&hapax, &action(), &runs, "third").await.unwrap(), "third");
}

async fn identity_and_kept_params_are_choices_at_every_level(place: Place) {
    let hapax = place
        .builder()
        .policy(PolicyPatch::new().keep_params(KeepParams::Fingerprint))
        .policy_for("create_task", None, PolicyPatch::new().ttl(Ttl::Never))
        .policy_for("create_task", Some("trello"), PolicyPatch::new().identity(Identity::exclude(["/at"]).unwrap()))
        .build()
        .await
        .unwrap();
    let runs = AtomicUsize::new(0);
    let at = |at: u32, target: &str| Action::new("create_task", target).params(json!({"name": "Task", "at": at}));
    assert_eq!(run(&hapax, &at(1, "trello"), &runs, "one").await.unwrap(), "one");
    assert_eq!(run(&hapax, &at(2, "trello"), &runs, "two").await.unwrap(), "one");
    assert_eq!(run(&hapax, &at(1, "asana"), &runs, "three").await.unwrap(), "three");
    assert_eq!(run(&hapax, &at(2, "asana"), &runs, "four").await.unwrap(), "four");
    let page = hapax.find_by_target("trello").await.unwrap();
    let record = page.records.first().unwrap();
    assert_eq!((record.params.is_none(), record.expires_at), (true, None));
    let call = at(3, "trello").policy(PolicyPatch::new().identity(Identity::All));
    assert_eq!(run(&hapax, &call, &runs, "five").await.unwrap(), "five");
}

async fn at_its_limit_the_store_evicts_the_oldest_or_refuses_as_chosen(place: Place) {
    let runs = AtomicUsize::new(0);
    let nth = |n: usize| action().signal(n.to_string());
    let hapax = place.builder().max_entries(10).build().await.unwrap();
    for n in 0..11 {
        run(&hapax, &nth(n), &runs, "v").await.unwrap();
    }
    let keys = hapax.keys(Filter::default()).await.unwrap();
    assert_eq!((keys.len(), hapax.stats().await.unwrap().evicted), (9, 2));
    assert_eq!(run(&hapax, &nth(0), &runs, "anew").await.unwrap(), "anew");
    hapax.mark_executed(&nth(99).generate_key().unwrap(), "by hand", None).await.unwrap();
    assert_eq!(hapax.stats().await.unwrap().evicted, 4, "what went for a mark counts as well");

    hapax.clear_all().await.unwrap();
    let hapax = place.builder().max_entries(2).on_full(OnFull::Reject).build().await.unwrap();
    for n in 0..2 {
        run(&hapax, &nth(n), &runs, "v").await.unwrap();
    }
    let full = run(&hapax, &nth(2), &runs, "never").await.unwrap_err();
    assert!(full.to_string().contains("max_entries"), "{full}");
    assert_eq!(run(&hapax, &nth(0), &runs, "never").await.unwrap(), "v");
}

async fn shutdown_waits_for_running_attempts_and_begins_nothing_more(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    let Claimed::Started(claim) = hapax.claim(&action()).await.unwrap() else { panic!() };
    assert_eq!(hapax.shutdown(Duration::from_millis(10)).await.unwrap().unfinished, 1);
    assert!(matches!(run(&hapax, &action().signal("n"), &runs, "never").await, Err(Error::ShuttingDown)));
    let end = {
        let hapax = hapax.clone();
        tokio::spawn(async move { hapax.shutdown(Duration::from_secs(60)).await.unwrap() })
    };
    claim.complete("done").await.unwrap();
    assert_eq!(end.await.unwrap().unfinished, 0);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn bad_settings_are_refused_with_their_range() {
    let bad = Hapax::builder().policy(PolicyPatch::new().lease(Duration::ZERO)).build().await.unwrap_err();
    assert!(bad.to_string().contains("1 s to 24 h"), "{bad}");
    let hapax = memory().await;
    assert!(hapax.configure(|c| c.namespace = "other".into()).is_err());
    assert!(hapax.start_auto_cleanup(Duration::ZERO).is_err());
    hapax.start_auto_cleanup(Duration::from_secs(60)).unwrap();
    hapax.stop_auto_cleanup();
    assert_eq!(hapax.config().auto_cleanup, None);
    assert!(Hapax::open("mysql://user:secret@host").await.unwrap_err().to_string().find("secret").is_none());
}

#[test]
fn the_blocking_face_joins_across_threads() {
    let hapax = hapax::blocking::Hapax::open("memory:").unwrap();
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let outcome = hapax
                    .execute(&action(), |_| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok(7)
                    })
                    .unwrap();
                assert_eq!(outcome.value, 7);
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let _ = hapax.shutdown(Duration::from_secs(1)).unwrap();
}

#[tokio::test]
async fn what_was_counted_reaches_the_store_when_the_last_handle_is_dropped() {
    let store = Arc::new(MemoryStore::new());
    let hapax = Hapax::builder().store(store.clone()).build().await.unwrap();
    run(&hapax, &action(), &AtomicUsize::new(0), "v").await.unwrap();
    drop(hapax);
    // Written by a thread that outlives the manager for a moment.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.counters("default".into()).await.unwrap().executions == 0 {
        assert!(std::time::Instant::now() < deadline, "the counts never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
