//! Closing: what was asked before is done, what is asked after is refused.

use std::time::{Duration, Instant};

use super::handle::{complete, happened, key};
use super::{Subject, Verdict};
use crate::State;
use crate::store::{Counters, End, Filter, Settlement, StoreError};

pub(super) async fn a_closed_store_says_so_to_every_call(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    h.store.close().await.unwrap();
    fn closed<T: std::fmt::Debug>(what: &str, answer: Result<T, StoreError>) {
        assert!(matches!(answer, Err(StoreError::Closed { .. })), "{what}: {answer:?}");
    }
    let (store, space) = (&h.store, &h.space);
    closed("begin", store.begin(h.ask("new")).await);
    closed("heartbeat", store.heartbeat(space.clone(), vec![(key("k"), attempt, h.tick)]).await);
    closed("end", store.end(space.clone(), key("k"), attempt, complete("v")).await);
    closed("settle", store.settle(space.clone(), key("k"), None, Settlement::NotHappened).await);
    closed("mark", store.mark(h.marking("new", "v")).await);
    closed("get", store.get(space.clone(), key("k")).await);
    closed("remove", store.remove(space.clone(), key("k")).await);
    closed("clear", store.clear(space.clone()).await);
    closed("sweep", store.sweep(10).await);
    closed("evict", store.evict_oldest(space.clone(), 1).await);
    closed("query", store.query(space.clone(), Filter::default(), None, 10).await);
    closed("count", store.count(space.clone(), Counters::default(), Vec::new()).await);
    closed("counters", store.counters(space.clone()).await);
    closed("reset", store.reset_counters(space.clone()).await);
    closed("census", store.census(space.clone()).await);
    closed("changed", store.changed(space.clone(), key("k"), attempt, Duration::from_secs(30)).await);
    Ok(())
}

pub(super) async fn closing_twice_is_fine(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("k").await;
    h.store.close().await.unwrap();
    h.store.close().await.unwrap();
    Ok(())
}

pub(super) async fn closing_finishes_what_was_asked_before(s: Subject) -> Verdict {
    let h = s.handle();
    let attempts: Vec<_> = (0..50).map(|n| h.ask(&format!("k{n}"))).collect();
    let tasks: Vec<_> = attempts
        .iter()
        .map(|begin| {
            let (h, begin) = (h.clone(), begin.clone());
            tokio::spawn(async move { h.store.begin(begin).await })
        })
        .collect();
    tokio::task::yield_now().await;
    h.store.close().await.unwrap();
    let mut began = Vec::new();
    for (task, begin) in tasks.into_iter().zip(attempts) {
        match task.await.unwrap() {
            Ok(_) => began.push(begin.key.to_string()),
            Err(StoreError::Closed { .. }) => {}
            Err(error) => panic!("neither done nor refused: {error}"),
        }
    }
    let again = s.again().await?;
    let mut listed = again.all_keys().await;
    listed.sort();
    began.sort();
    assert_eq!(listed, began);
    Ok(())
}

pub(super) async fn closing_wakes_those_who_wait(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let there = h.clone();
    let waiting = tokio::spawn(async move {
        let since = Instant::now();
        // Whether it is told so or only woken, the next call tells.
        while there.store.changed(there.space.clone(), key("k"), attempt, Duration::from_secs(30)).await.is_ok()
            && there.store.get(there.space.clone(), key("k")).await.is_ok()
        {}
        since.elapsed()
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    h.store.close().await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(5), waiting).await;
    waited.expect("it waits for a store that is closed").unwrap();
    Ok(())
}

pub(super) async fn a_closed_store_opened_again_has_everything(s: Subject) -> Verdict {
    let h = s.handle();
    let live = h.start("live").await;
    h.doubted("doubt").await;
    h.completed("c").await;
    h.failed("f").await;
    h.mark("m", "v").await;
    h.doubted("settled").await;
    h.settle("settled", None, happened("v")).await;
    h.completed("removed").await;
    h.remove("removed").await;
    h.count(Counters { hits: 3, ..Counters::default() }, vec![(key("c"), 2)]).await;
    let mut before = Vec::new();
    for text in ["live", "doubt", "c", "f", "m", "settled", "removed"] {
        before.push(h.get(text).await);
    }
    let (keys, tally, counters) = (h.all_keys().await, h.tally().await, h.counters().await);
    h.store.close().await.unwrap();
    let h = s.again().await?;
    let mut after = Vec::new();
    for text in ["live", "doubt", "c", "f", "m", "settled", "removed"] {
        after.push(h.get(text).await);
    }
    assert_eq!(before, after);
    assert_eq!((h.all_keys().await, h.tally().await, h.counters().await), (keys, tally, counters));
    // The attempt goes on: its process is alive and its lease runs.
    h.ends("live", live, complete("v")).await;
    assert_eq!(h.result("live").await.as_deref(), Some("v"));
    Ok(())
}

pub(super) async fn another_handle_sees_everything(s: Subject) -> Verdict {
    let (here, there) = (s.handle(), s.again().await?);
    let attempt = here.start("k").await;
    assert_eq!(there.record("k").await, here.record("k").await);
    assert_eq!(there.turned_away(there.ask("k")).await.attempt_id, attempt);
    there.ends("k", attempt, End::Doubt { reason: "said by the other".into() }).await;
    assert_eq!(here.state("k").await, Some(State::InDoubt));
    let second = here.take_over("k", attempt).await.unwrap();
    there.ends("k", second, complete("v")).await;
    assert_eq!(here.result("k").await.as_deref(), Some("v"));
    here.count(Counters { hits: 1, ..Counters::default() }, Vec::new()).await;
    there.count(Counters { hits: 2, ..Counters::default() }, Vec::new()).await;
    assert_eq!((here.counters().await.hits, there.tally().await), (3, (0, 0, 1, 0)));
    // One handle closes, the other goes on.
    here.store.close().await.unwrap();
    assert_eq!(there.result("k").await.as_deref(), Some("v"));
    there.completed("l").await;
    Ok(())
}
