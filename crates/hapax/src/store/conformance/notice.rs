//! What is noticed of others: the epoch, and the end of what is waited for.

use std::time::{Duration, Instant};

use super::handle::{complete, doubt, happened, key};
use super::{Handle, Skip, Subject, Verdict};
use crate::store::{Capacity, End, OnFull};
use crate::{AttemptId, State};

/// How soon a change by another handle must be known.
const SOON: Duration = Duration::from_secs(1);
/// How much longer a busy machine may take to say so.
const GRACE: Duration = Duration::from_millis(500);
/// No wait of a case takes as long.
const LONG: Duration = Duration::from_secs(30);

/// The epoch, as soon as the store vouches for one.
async fn epoch(h: &Handle) -> Result<u64, Skip> {
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        if let Some(epoch) = h.store.epoch() {
            return Ok(epoch);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Skip("the store gives no epoch, so nothing remembered is trusted"))
}

/// What was remembered under `before` must not be trusted now.
fn differs(h: &Handle, before: u64) -> bool {
    h.store.epoch() != Some(before)
}

pub(super) async fn the_epoch_changes_when_a_result_is_removed(s: Subject) -> Verdict {
    let h = s.handle();
    for text in ["a", "b"] {
        h.completed(text).await;
    }
    for text in ["a", "b"] {
        let before = epoch(&h).await?;
        h.remove(text).await;
        assert!(differs(&h, before), "as soon as the removal is answered");
    }
    Ok(())
}

pub(super) async fn the_epoch_changes_when_results_are_cleared(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("k").await;
    let before = epoch(&h).await?;
    h.clear().await;
    assert!(differs(&h, before));
    Ok(())
}

pub(super) async fn the_epoch_changes_when_results_are_evicted(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("a").await;
    h.completed("b").await;
    let before = epoch(&h).await?;
    h.evict(1).await;
    assert!(differs(&h, before));
    let before = epoch(&h).await?;
    let capacity = Some(Capacity { max_entries: 1, on_full: OnFull::Evict });
    h.start_with(crate::store::Begin { capacity, ..h.ask("c") }).await;
    assert!(differs(&h, before), "evicted to make room");
    Ok(())
}

pub(super) async fn the_epoch_stands_while_results_are_only_added(s: Subject) -> Verdict {
    let h = s.handle();
    let before = epoch(&h).await?;
    for n in 0..20 {
        h.completed(&format!("c{n}")).await;
        h.failed(&format!("f{n}")).await;
        h.start(&format!("p{n}")).await;
        let now = h.store.epoch();
        assert!(now.is_none() || now == Some(before), "nothing went before its time, or replays were in vain");
    }
    Ok(())
}

pub(super) async fn another_handle_sees_the_epoch_change_within_a_second(s: Subject) -> Verdict {
    let (here, there) = (s.handle(), s.again().await?);
    for round in 0..3 {
        for n in 0..2 {
            there.completed(&format!("k{round}-{n}")).await;
        }
        let before = epoch(&here).await?;
        match round {
            0 => drop(there.remove("k0-0").await),
            1 => drop(there.evict(1).await),
            _ => drop(there.clear().await),
        }
        let since = Instant::now();
        while !differs(&here, before) {
            assert!(since.elapsed() < SOON + GRACE, "round {round}: still trusted after {:?}", since.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // And it is not trusted again.
        assert_ne!(epoch(&here).await?, before);
    }
    there.store.close().await.unwrap();
    Ok(())
}

/// Waits as a caller does: until the key is no longer in progress by the attempt.
fn waiter(h: &Handle, text: &str, attempt: AttemptId) -> tokio::task::JoinHandle<Duration> {
    let (h, text, since) = (h.clone(), text.to_string(), Instant::now());
    tokio::spawn(async move {
        loop {
            h.store.changed(h.space.clone(), key(&text), attempt, LONG).await.unwrap();
            match h.get(&text).await {
                Some(record) if record.state == State::InProgress && record.attempt_id == attempt => {}
                _ => return since.elapsed(),
            }
        }
    })
}

async fn learns(waiter: tokio::task::JoinHandle<Duration>) {
    let waited = tokio::time::timeout(SOON + GRACE, waiter).await;
    waited.expect("it waits although the attempt has ended").unwrap();
}

/// Time for the waiters to be waiting; a case holds whether or not they are.
async fn settle_down() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

pub(super) async fn a_waiter_learns_of_a_completion(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let waiter = waiter(&h, "k", attempt);
    settle_down().await;
    assert!(!waiter.is_finished());
    h.ends("k", attempt, complete("v")).await;
    learns(waiter).await;
    Ok(())
}

pub(super) async fn a_waiter_learns_of_a_release(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let waiter = waiter(&h, "k", attempt);
    settle_down().await;
    h.ends("k", attempt, End::Release).await;
    learns(waiter).await;
    Ok(())
}

pub(super) async fn a_waiter_learns_of_a_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let waiter = waiter(&h, "k", attempt);
    settle_down().await;
    h.ends("k", attempt, doubt("d")).await;
    learns(waiter).await;
    Ok(())
}

pub(super) async fn a_waiter_learns_of_a_settlement_and_a_take_over(s: Subject) -> Verdict {
    let h = s.handle();
    // In one go, so that a waiter may see none of the states in between.
    let (a, b) = (h.start("a").await, h.start("b").await);
    let waiters = [waiter(&h, "a", a), waiter(&h, "b", b)];
    settle_down().await;
    h.ends("a", a, doubt("d")).await;
    h.settle("a", Some(a), happened("v")).await;
    h.ends("b", b, doubt("d")).await;
    let second = h.take_over("b", b).await.unwrap();
    for waiter in waiters {
        learns(waiter).await;
    }
    // The next attempt is waited for in turn.
    let waiter = waiter(&h, "b", second);
    settle_down().await;
    assert!(!waiter.is_finished());
    h.ends("b", second, complete("v")).await;
    learns(waiter).await;
    Ok(())
}

pub(super) async fn a_waiter_in_another_handle_learns_of_a_completion(s: Subject) -> Verdict {
    let (here, there) = (s.handle(), s.again().await?);
    for text in ["first", "second", "third"] {
        let attempt = here.start(text).await;
        let waiter = waiter(&there, text, attempt);
        settle_down().await;
        here.ends(text, attempt, complete("v")).await;
        learns(waiter).await;
    }
    Ok(())
}

pub(super) async fn a_waiter_in_another_handle_learns_of_a_lapse(s: Subject) -> Verdict {
    let (here, there) = (s.handle(), s.again().await?);
    let attempt = here.start_briefly("k").await;
    let waiter = waiter(&there, "k", attempt);
    s.pass_tick().await;
    learns(waiter).await;
    Ok(())
}

pub(super) async fn waiting_ends_after_its_time(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let since = Instant::now();
    for at_most in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(80)] {
        h.store.changed(h.space.clone(), key("k"), attempt, at_most).await.unwrap();
    }
    assert!(since.elapsed() < SOON + GRACE, "{:?}", since.elapsed());
    assert_eq!(h.state("k").await, Some(State::InProgress));
    Ok(())
}

pub(super) async fn waiting_for_what_is_not_in_progress_ends_at_once(s: Subject) -> Verdict {
    let h = s.handle();
    let (live, doubted, completed) = (h.start("p").await, h.doubted("d").await, h.completed("c").await);
    let lapsed = h.start_briefly("l").await;
    s.pass_tick().await;
    let since = Instant::now();
    for (text, attempt) in [
        ("absent", AttemptId::new()),
        ("p", AttemptId::new()),
        ("d", doubted),
        ("c", completed),
        ("l", lapsed),
        ("c", live),
    ] {
        h.store.changed(h.space.clone(), key(text), attempt, LONG).await.unwrap();
    }
    h.store.changed("elsewhere".into(), key("p"), live, LONG).await.unwrap();
    assert!(since.elapsed() < SOON + GRACE, "{:?}", since.elapsed());
    Ok(())
}

pub(super) async fn many_wait_for_one(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let mut waiters: Vec<_> = (0..200).map(|_| waiter(&h, "k", attempt)).collect();
    settle_down().await;
    // Those who give up must not take the others with them.
    for waiter in waiters.drain(..100) {
        waiter.abort();
    }
    h.ends("k", attempt, complete("v")).await;
    for waiter in waiters {
        learns(waiter).await;
    }
    Ok(())
}
