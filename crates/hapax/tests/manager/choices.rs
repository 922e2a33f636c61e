//! Settings: limits, changes at runtime, cleanup by the clock.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use hapax::store::{Filter, Marked};
use hapax::{Action, Claimed, Error, Hapax, InFlight, ManualClock, PolicyPatch, State, Ttl};

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
