//! Settings: limits, changes at runtime, cleanup by the clock.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use hapax::store::{Filter, Marked};
use hapax::{
    Action, ActionError, Claimed, Error, Hapax, InFlight, KeepParams, MAX_ERROR_BYTES, MAX_PARAMS_BYTES, MAX_TAG_BYTES,
    MAX_TAGS, ManualClock, PolicyPatch, RemoteEnd, State, Ttl,
};
use serde_json::json;

use super::{Place, action, run};

fn nth(n: usize) -> Action {
    action().signal(n.to_string())
}

pub(super) async fn attempts_in_flight_are_limited_and_those_who_wait_are_not(place: Place) {
    let hapax = place.builder().max_in_flight(2).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    let mut claims = Vec::new();
    for n in 0..2 {
        let Claimed::Started(claim) = hapax.claim(&nth(n)).await.unwrap() else { panic!("nobody had it") };
        claims.push(claim);
    }
    let refused = run(&hapax, &nth(2), &runs, "never").await.unwrap_err();
    assert!(matches!(refused, Error::TooManyInFlight { limit: 2 }) && refused.is_retryable(), "{refused}");
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let hapax = hapax.clone();
            tokio::spawn(async move { run(&hapax, &nth(0), &AtomicUsize::new(0), "never").await.unwrap() })
        })
        .collect();
    claims.remove(0).complete("done").await.unwrap();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), "done");
    }
    assert_eq!(run(&hapax, &nth(2), &runs, "now").await.unwrap(), "now");
    assert_eq!(hapax.info().await.unwrap().in_flight, 1);
    claims.remove(0).release().await.unwrap();
    assert_eq!(hapax.info().await.unwrap().in_flight, 0);
}

pub(super) async fn what_a_record_cannot_hold_is_refused_before_anything_runs(place: Place) {
    let hapax = place.hapax().await;
    let runs = AtomicUsize::new(0);
    let long = "ü".repeat(MAX_TAG_BYTES / 2 + 1);
    let given = || action().key(hapax::Key::given("given").unwrap());
    let tagged = |count: usize| (0..count).fold(given(), |action, n| action.tag(format!("tag {n}"), "x"));
    let bulk = json!("x".repeat(MAX_PARAMS_BYTES));
    let refused = [
        (given().params(bulk.clone()), "1048578 bytes and the limit is 1048576"),
        (tagged(MAX_TAGS + 1), "33 tags and the limit is 32"),
        (given().tag("name", long.clone()), "\"name\" is longer than 256 bytes"),
        (given().tag(long.clone(), ""), "is longer than 256 bytes"),
        (given().signal("s".repeat(513)), "signal is 513 bytes and the limit is 512"),
        (Action::new("t".repeat(513), "x").key(hapax::Key::given("given").unwrap()), "type is 513 bytes"),
    ];
    for (action, why) in refused {
        let error = run(&hapax, &action, &runs, "never").await.unwrap_err();
        assert!(matches!(error, Error::Params(_) | Error::Config { .. }), "{error:?}");
        assert!(error.to_string().contains(why) && error.to_string().len() < 200, "{error}");
    }
    let info = hapax.info().await.unwrap();
    assert_eq!((info.size, info.in_flight), (0, 0));
    // What is kept of the params is what counts.
    let patch = PolicyPatch::new().keep_params(KeepParams::Fingerprint);
    let kept = tagged(MAX_TAGS).params(bulk).policy(patch).tag("hapax.more", "x");
    assert_eq!(run(&hapax, &kept, &runs, "v").await.unwrap(), "v");
}

pub(super) async fn of_a_long_error_the_record_keeps_the_beginning(place: Place) {
    let hapax = place.hapax().await;
    let long = format!("x{}", "ü".repeat(MAX_ERROR_BYTES));
    let ends = |text: &str| text.len() <= MAX_ERROR_BYTES && text.starts_with("xü") && text.ends_with("ü… (cut off)");
    for n in 0..2 {
        let (action, message) = (nth(n), long.clone());
        let failed = hapax.execute(&action, |_| async move {
            let class = if n == 0 { ActionError::permanent } else { ActionError::unknown };
            Err::<(), _>(class(message))
        });
        let Err(Error::Action { error, .. }) = failed.await else { panic!("it ran") };
        assert_eq!(error.to_string(), long, "who ran it is told all");
        let record = hapax.record(&action.generate_key().unwrap()).await.unwrap().unwrap();
        assert!(record.error.as_deref().is_some_and(ends), "{record:?}");
    }
    let Claimed::Started(claim) = hapax.claim(&nth(2)).await.unwrap() else { panic!("nobody had it") };
    let (key, attempt) = (claim.key().clone(), claim.attempt());
    claim.fail(long.clone()).await.unwrap();
    // The same end again is the same.
    let again = RemoteEnd::Fail { error: long, ttl: None, duration: None };
    assert_eq!(hapax.end_remote(&key, attempt, again).await.unwrap().state, Some(State::Failed));
    let record = hapax.record(&key).await.unwrap().unwrap();
    assert!(record.error.as_deref().is_some_and(ends), "{record:?}");
}

pub(super) async fn settings_change_for_the_calls_to_come(place: Place) {
    let clock = ManualClock::new();
    let hapax = Hapax::builder().store(place.store(&clock)).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    run(&hapax, &nth(0), &runs, "v").await.unwrap();
    hapax
        .configure(|c| {
            c.policy.ttl = Ttl::For(Duration::from_secs(5));
            c.policy.in_flight = InFlight::Reject;
            c.max_result_bytes = 10;
        })
        .unwrap();
    run(&hapax, &nth(1), &runs, "v").await.unwrap();
    let page = hapax.records(Filter::default(), None, 10).await.unwrap();
    let lives: Vec<_> = page.records.iter().map(|r| r.expires_at.unwrap().since(r.executed_at.unwrap())).collect();
    assert_eq!(lives, [Duration::from_secs(24 * 3600), Duration::from_secs(5)]);
    let large = run(&hapax, &nth(2), &runs, "more than ten bytes").await;
    assert!(matches!(large, Err(Error::NotRecorded { .. })), "{large:?}");
    let Claimed::Started(claim) = hapax.claim(&nth(3)).await.unwrap() else { panic!("nobody had it") };
    assert!(matches!(run(&hapax, &nth(3), &runs, "never").await, Err(Error::InFlight { .. })));
    claim.release().await.unwrap();

    // A change may look at what there is.
    let (looking, done) = (hapax.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let set = looking.configure(|c| c.max_in_flight = looking.config().max_in_flight - 1);
        done.0.send(set.is_ok())
    });
    assert_eq!(done.1.recv_timeout(Duration::from_secs(10)), Ok(true));

    // What is out of range or fixed changes nothing at all.
    for bad in [
        hapax.configure(|c| (c.max_result_bytes, c.policy.ttl) = (0, Ttl::Never)),
        hapax.configure(|c| (c.max_in_flight, c.policy.ttl) = (0, Ttl::Never)),
        hapax.configure(|c| (c.recent_results, c.policy.ttl) = (7, Ttl::Never)),
        hapax.configure(|c| (c.label, c.policy.ttl) = (Some("new".into()), Ttl::Never)),
        hapax.configure(|c| (c.max_entries, c.policy.ttl) = (Some(0), Ttl::Never)),
        hapax.configure(|c| (c.verify_limit, c.policy.ttl) = (Duration::ZERO, Ttl::Never)),
    ] {
        assert!(matches!(bad, Err(Error::Config { .. })), "{bad:?}");
    }
    assert_eq!((hapax.config().policy.ttl, hapax.config().max_result_bytes), (Ttl::For(Duration::from_secs(5)), 10));
}

pub(super) async fn a_call_with_a_choice_out_of_range_runs_nothing(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    for patch in [
        PolicyPatch::new().lease(Duration::from_millis(999)),
        PolicyPatch::new().ttl(Duration::ZERO),
        PolicyPatch::new().time_limit(Some(Duration::ZERO)),
        PolicyPatch::new().in_flight(InFlight::Wait(Duration::from_secs(25 * 3600))),
    ] {
        let refused = run(&hapax, &action().policy(patch), &runs, "never").await;
        assert!(matches!(refused, Err(Error::Config { .. })), "{refused:?}");
    }
    assert_eq!(runs.into_inner(), 0);
    assert_eq!(hapax.info().await.unwrap().size, 0);
}

pub(super) async fn expired_records_are_removed_by_the_clock_until_that_is_stopped(place: Place) {
    let clock = ManualClock::new();
    let hapax = Hapax::builder().store(place.store(&clock)).auto_cleanup(None).build().await.unwrap();
    let short = |n| nth(n).policy(PolicyPatch::new().ttl(Duration::from_secs(1)));
    let runs = AtomicUsize::new(0);
    run(&hapax, &short(0), &runs, "v").await.unwrap();
    clock.advance(Duration::from_secs(2));
    hapax.start_auto_cleanup(Duration::from_secs(1)).unwrap();
    let since = Instant::now();
    while hapax.stats().await.unwrap().expired_cleaned < 1 {
        assert!(since.elapsed() < Duration::from_secs(10), "it is never removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(since.elapsed() > Duration::from_millis(800), "not before its time");
    hapax.stop_auto_cleanup();
    run(&hapax, &short(1), &runs, "v").await.unwrap();
    clock.advance(Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(1400)).await;
    assert_eq!(hapax.stats().await.unwrap().expired_cleaned, 1, "nobody removes it any more");
    assert_eq!(hapax.cleanup_expired().await.unwrap(), 1);
    assert_eq!(hapax.stats().await.unwrap().expired_cleaned, 2);
}

pub(super) async fn oldest_entries_are_removed_and_counted(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    for n in 0..5 {
        run(&hapax, &nth(n), &runs, "v").await.unwrap();
    }
    assert_eq!(hapax.cleanup_oldest_entries(2).await.unwrap(), 2);
    assert_eq!(hapax.stats().await.unwrap().evicted, 2);
    assert_eq!(run(&hapax, &nth(0), &runs, "anew").await.unwrap(), "anew");
    assert_eq!(run(&hapax, &nth(4), &runs, "anew").await.unwrap(), "v");
    hapax.reset_stats().await.unwrap();
    let stats = hapax.stats().await.unwrap();
    assert_eq!((stats.evicted, stats.executions, stats.total_cached), (0, 0, 4));
}

pub(super) async fn a_mark_lives_as_long_as_it_was_told_to(place: Place) {
    let clock = ManualClock::new();
    let hapax = Hapax::builder().store(place.store(&clock)).max_result_bytes(20).build().await.unwrap();
    let key = action().generate_key().unwrap();
    let marked = hapax.mark_executed(&key, "v", Some(Ttl::For(Duration::from_secs(3)))).await.unwrap();
    let Marked::Recorded { record, .. } = marked else { panic!("{marked:?}") };
    assert_eq!(record.expires_at.unwrap().since(record.executed_at.unwrap()), Duration::from_secs(3));
    assert_eq!(record.signal_id.as_deref(), Some("signal-123"), "read from the key");
    clock.advance(Duration::from_secs(3));
    assert!(hapax.check_executed(&key).await.unwrap().is_none());
    let large = hapax.mark_executed(&key, &"x".repeat(30), None).await;
    assert!(matches!(large, Err(Error::Config { .. })), "{large:?}");
    assert!(hapax.record(&key).await.unwrap().is_none());
}

pub(super) async fn records_that_expire_soon_are_found_by_the_manager(place: Place) {
    let (hapax, runs) = (place.hapax().await, AtomicUsize::new(0));
    for (n, ttl) in
        [Ttl::For(Duration::from_secs(60)), Ttl::For(Duration::from_secs(7200)), Ttl::Never].into_iter().enumerate()
    {
        run(&hapax, &nth(n).policy(PolicyPatch::new().ttl(ttl)), &runs, "v").await.unwrap();
    }
    assert_eq!(hapax.expiring_soon(Duration::from_secs(3600)).await.unwrap().records.len(), 1);
    assert_eq!(hapax.find_by_signal_id("2").await.unwrap().records.len(), 1);
    assert_eq!(hapax.find_by_action_type("create_task").await.unwrap().records.len(), 3);
    let completed = Filter { state: Some(State::Completed), ..Filter::default() };
    assert_eq!(hapax.keys(completed).await.unwrap().len(), 3);
}
