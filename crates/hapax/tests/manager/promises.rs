//! Promises under cancellation, shutdown, slow verifiers and threads without async.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hapax::{
    ActionError, Claimed, Error, Hapax, Json, Key, ManualClock, OnDoubt, PolicyPatch, State, Verdict, Verifier,
    blocking,
};
use tokio::sync::{Notify, oneshot};

use super::{Place, action, doubt, run, state};

pub(super) async fn joiners_share_the_leaders_error_and_the_key_is_free_after(place: Place) {
    let hapax = place.hapax().await;
    let (go, runs) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (started, begun) = oneshot::channel();
    let leader = {
        let (hapax, go, runs) = (hapax.clone(), go.clone(), runs.clone());
        tokio::spawn(async move {
            hapax
                .execute::<String, _, _>(&action(), |_| async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    let _ = started.send(());
                    go.notified().await;
                    Err(ActionError::retryable("the target is down"))
                })
                .await
        })
    };
    begun.await.unwrap();
    let joiners: Vec<_> = (0..10)
        .map(|_| {
            let (hapax, runs) = (hapax.clone(), runs.clone());
            tokio::spawn(async move { run(&hapax, &action(), &runs, "ran").await })
        })
        .collect();
    while hapax.stats().await.unwrap().waits_joined < 10 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    go.notify_one();
    assert!(matches!(leader.await.unwrap(), Err(Error::Action { .. })));
    for joiner in joiners {
        let told = joiner.await.unwrap();
        assert!(
            matches!(&told, Err(e @ Error::Action { error, .. }) if e.is_retryable() && error.to_string() == "the target is down"),
            "{told:?}"
        );
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1, "no stampede on a target that is failing");
    assert_eq!(run(&hapax, &action(), &runs, "then").await.unwrap(), "then");
}

pub(super) async fn joiners_of_a_cancelled_leader_see_the_doubt_and_run_nothing(place: Place) {
    let hapax = place.hapax().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let (started, begun) = oneshot::channel();
    let leader = {
        let hapax = hapax.clone();
        tokio::spawn(async move {
            hapax
                .execute::<String, _, _>(&action(), |_| async move {
                    let _ = started.send(());
                    std::future::pending().await
                })
                .await
        })
    };
    begun.await.unwrap();
    let joiners: Vec<_> = (0..10)
        .map(|_| {
            let (hapax, runs) = (hapax.clone(), runs.clone());
            tokio::spawn(async move { run(&hapax, &action(), &runs, "never").await })
        })
        .collect();
    while hapax.stats().await.unwrap().waits_joined < 10 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    leader.abort();
    for joiner in joiners {
        let told = tokio::time::timeout(Duration::from_secs(10), joiner).await.unwrap().unwrap();
        assert!(matches!(told, Err(Error::InDoubt { .. })), "{told:?}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

pub(super) async fn a_call_cancelled_at_any_point_leaves_no_second_run(place: Place) {
    let hapax = place.hapax().await;
    let runs = Arc::new(AtomicUsize::new(0));
    for polls in 0..8 {
        let act = action().signal(format!("cancelled-{polls}"));
        let ran = Arc::new(AtomicUsize::new(0));
        {
            let ran = ran.clone();
            let mut call = std::pin::pin!(hapax.execute(&act, |_| async move {
                ran.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok("first".to_string())
            }));
            for _ in 0..polls {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                if call.as_mut().poll(&mut context).is_ready() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let seen = run(&hapax, &act, &runs, "second").await;
        match ran.load(Ordering::SeqCst) {
            0 => assert_eq!(seen.unwrap(), "second"),
            1 => match seen {
                Ok(value) => assert_eq!(value, "first"),
                Err(error) => assert!(matches!(error, Error::InDoubt { .. }), "{error}"),
            },
            times => panic!("ran {times} times"),
        }
    }
    assert_eq!(hapax.info().await.unwrap().in_flight, 0);
}

pub(super) async fn a_verifier_that_takes_too_long_leaves_the_doubt(place: Place) {
    let hapax = place.builder().verify_limit(Duration::from_millis(30)).build().await.unwrap();
    let runs = AtomicUsize::new(0);
    let verifier = Verifier::new(|_| std::future::pending());
    let act = action().policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(verifier)));
    let key = doubt(&hapax, &act).await;
    let Err(Error::InDoubt { record }) = run(&hapax, &act, &runs, "never").await else { panic!("it cannot be known") };
    assert!(record.error.as_deref().is_some_and(|e| e.contains("took longer than 30ms")), "{record:?}");
    assert_eq!((state(&hapax, &key).await, runs.into_inner()), (Some(State::InDoubt), 0));
}

pub(super) async fn a_verifier_is_asked_once_for_many_callers(place: Place) {
    let hapax = place.hapax().await;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = looks.clone();
    let verifier = Verifier::new(move |doubt| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok(Verdict::Happened(Json::of(doubt.key.as_str())?))
        }
    });
    let act = action().policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(verifier)));
    let key = doubt(&hapax, &act).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (hapax, act) = (hapax.clone(), act.clone());
            tokio::spawn(async move { run(&hapax, &act, &AtomicUsize::new(0), "never").await.unwrap() })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), key.as_str());
    }
    assert_eq!(looks.load(Ordering::SeqCst), 1);
}

pub(super) async fn a_verdict_that_comes_too_late_changes_nothing(place: Place) {
    let clock = ManualClock::new();
    let store = place.store(&clock);
    // Two managers stand for two processes.
    let slow = Hapax::builder().store(store.clone()).build().await.unwrap();
    let quick = Hapax::builder().store(store).build().await.unwrap();
    let (settled, wait) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let verifier = {
        let (settled, wait) = (settled.clone(), wait.clone());
        Verifier::new(move |_| {
            let (settled, wait) = (settled.clone(), wait.clone());
            async move {
                wait.notify_one();
                settled.notified().await;
                Ok(Verdict::Happened(Json::of("the verifier's")?))
            }
        })
    };
    let key = doubt(&slow, &action()).await;
    let act = action().policy(PolicyPatch::new().on_doubt(OnDoubt::Verify(verifier)));
    let call = {
        let slow = slow.clone();
        tokio::spawn(async move { run(&slow, &act, &AtomicUsize::new(0), "never").await })
    };
    wait.notified().await;
    let by_hand = hapax::store::Settlement::Happened { result: Json::of("by hand").unwrap(), ttl: hapax::Ttl::Never };
    quick.settle(&key, by_hand).await.unwrap();
    settled.notify_one();
    assert_eq!(call.await.unwrap().unwrap(), "by hand");
}

pub(super) async fn shutdown_waits_for_what_runs_and_refuses_what_comes(place: Place) {
    let hapax = place.hapax().await;
    run(&hapax, &action().signal("before"), &AtomicUsize::new(0), "v").await.unwrap();
    let (go, runs) = (Arc::new(Notify::new()), AtomicUsize::new(0));
    let (started, begun) = oneshot::channel();
    let running = {
        let (hapax, go) = (hapax.clone(), go.clone());
        tokio::spawn(async move {
            hapax
                .execute(&action(), |_| async move {
                    let _ = started.send(());
                    go.notified().await;
                    Ok("finished".to_string())
                })
                .await
        })
    };
    begun.await.unwrap();
    let closing = {
        let hapax = hapax.clone();
        tokio::spawn(async move { hapax.shutdown(Duration::from_secs(60)).await.unwrap() })
    };
    let since = Instant::now();
    for n in 0.. {
        match run(&hapax, &action().signal(format!("new-{n}")), &runs, "never").await {
            Err(Error::ShuttingDown) => break,
            // It had not begun to close yet.
            Ok(_) => assert!(since.elapsed() < Duration::from_secs(5), "it takes new calls"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!closing.is_finished(), "an attempt still runs");
    go.notify_one();
    assert_eq!(running.await.unwrap().unwrap().value, "finished", "what ran is recorded and told");
    assert_eq!(closing.await.unwrap().unfinished, 0);
}

pub(super) async fn shutdown_gives_up_at_its_limit_and_says_how_many_run(place: Place) {
    let hapax = place.hapax().await;
    let mut claims = Vec::new();
    for signal in ["a", "b"] {
        let Claimed::Started(claim) = hapax.claim(&action().signal(signal)).await.unwrap() else { panic!("free") };
        claims.push(claim);
    }
    let since = Instant::now();
    assert_eq!(hapax.shutdown(Duration::from_millis(50)).await.unwrap().unfinished, 2);
    assert!(since.elapsed() < Duration::from_secs(5));
    // The store stays open for them.
    for claim in claims {
        claim.complete("late").await.unwrap();
    }
    assert_eq!(hapax.shutdown(Duration::from_millis(50)).await.unwrap().unfinished, 0);
}

pub(super) async fn the_blocking_face_works_within_a_runtime(place: Place) {
    let hapax = blocking::Hapax::build(place.builder()).unwrap();
    // On a worker of this runtime: another's `block_on` would panic here.
    assert_eq!(hapax.execute(&action(), |_| Ok(1)).unwrap().value, 1);
    assert_eq!(hapax.as_async().execute(&action(), |_| async { Ok(2) }).await.unwrap().value, 1);
    let key = action().generate_key().unwrap();
    assert_eq!(hapax.record(&key).unwrap().unwrap().state, State::Completed);
    assert!(hapax.clear_key(&key).unwrap());
    assert_eq!(hapax.stats().unwrap().executions, 1);
}

/// A thread of its own, as callers without async have.
async fn apart<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> std::thread::Result<T> {
    tokio::task::spawn_blocking(move || std::thread::spawn(f).join()).await.unwrap()
}

pub(super) async fn a_panic_in_a_blocking_closure_leaves_the_key_in_doubt(place: Place) {
    let hapax = blocking::Hapax::build(place.builder()).unwrap();
    let there = hapax.clone();
    let panicked = apart(move || there.execute::<u32, _>(&action(), |_| panic!("on purpose"))).await;
    assert!(panicked.is_err());
    let again = apart(move || hapax.execute(&action(), |_| Ok(1))).await.unwrap();
    assert!(matches!(again, Err(Error::InDoubt { .. })), "{again:?}");
}

pub(super) async fn a_blocking_action_past_its_time_limit_is_in_doubt(place: Place) {
    let hapax = blocking::Hapax::build(place.builder()).unwrap();
    let act = action().policy(PolicyPatch::new().time_limit(Some(Duration::from_millis(20))));
    let slow = {
        let (hapax, act) = (hapax.clone(), act.clone());
        apart(move || {
            hapax.execute(&act, |_| {
                std::thread::sleep(Duration::from_millis(60));
                Ok(1)
            })
        })
    };
    let slow = slow.await.unwrap();
    assert!(matches!(slow, Err(Error::TimedOut { .. })), "{slow:?}");
    let quick = act.signal("quick");
    assert_eq!(hapax.execute(&quick, |_| Ok(2)).unwrap().value, 2);
    let key = Key::generate(&action()).unwrap();
    assert_eq!(state(hapax.as_async(), &key).await, Some(State::InDoubt));
}

pub(super) async fn a_blocking_action_keeps_its_lease(place: Place) {
    let clock = ManualClock::new();
    let builder = Hapax::builder().store(place.store(&clock));
    let hapax = blocking::Hapax::build(builder).unwrap();
    let act = action().policy(PolicyPatch::new().lease(Duration::from_secs(1)));
    let key = Key::generate(&act).unwrap();
    let there = hapax.clone();
    let value = apart(move || {
        there.execute(&act, |context| {
            let lease = || there.record(context.key()).unwrap().unwrap().lease_until.unwrap();
            let mut last = lease();
            for _ in 0..2 {
                clock.advance(Duration::from_millis(900));
                let since = Instant::now();
                while lease() <= last {
                    assert!(since.elapsed() < Duration::from_secs(10), "no heartbeat");
                    std::thread::sleep(Duration::from_millis(5));
                }
                last = lease();
            }
            Ok(context.is_live())
        })
    });
    assert!(value.await.unwrap().unwrap().value);
    assert_eq!(state(hapax.as_async(), &key).await, Some(State::Completed));
}
