//! Counters, presentations and the census.

use std::time::Duration;

use super::handle::key;
use super::{Subject, Verdict};
use crate::store::{Census, Counters};

fn each(n: u64) -> Counters {
    let mut counters = Counters::default();
    for (i, (name, _)) in Counters::default().named().into_iter().enumerate() {
        *counters.named_mut(name).unwrap() = n * (i as u64 + 1);
    }
    counters
}

pub(super) async fn counters_add_up(s: Subject) -> Verdict {
    let h = s.handle();
    assert_eq!(h.counters().await, Counters::default());
    for _ in 0..5 {
        h.count(Counters { hits: 2, time_saved_ms: 1 << 40, ..Counters::default() }, Vec::new()).await;
        h.count(Counters { misses: 1, ..Counters::default() }, Vec::new()).await;
        h.count(Counters::default(), Vec::new()).await;
    }
    let wanted = Counters { hits: 10, misses: 5, time_saved_ms: 5 << 40, ..Counters::default() };
    assert_eq!(h.counters().await, wanted);
    Ok(())
}

pub(super) async fn counters_are_reset(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("k").await;
    h.count(each(3), vec![(key("k"), 2)]).await;
    h.store.reset_counters(h.space.clone()).await.unwrap();
    assert_eq!(h.counters().await, Counters::default());
    assert_eq!(h.record("k").await.attempt_count, 3, "the records keep what is theirs");
    h.count(each(1), Vec::new()).await;
    assert_eq!(h.counters().await, each(1));
    h.within("never-heard-of").store.reset_counters("never-heard-of".into()).await.unwrap();
    Ok(())
}

pub(super) async fn every_counter_is_kept(s: Subject) -> Verdict {
    let h = s.handle();
    h.count(each(1), Vec::new()).await;
    h.count(each(1000), Vec::new()).await;
    assert_eq!(h.counters().await, each(1001));
    Ok(())
}

pub(super) async fn presentations_are_added_to_their_records(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("c").await;
    h.failed("f").await;
    h.start("p").await;
    h.doubted("d").await;
    let presented = ["c", "f", "p", "d"].into_iter().zip(1..).map(|(text, n)| (key(text), n));
    h.count(Counters::default(), presented.chain([(key("c"), 10)]).collect()).await;
    let mut counts = Vec::new();
    for text in ["c", "f", "p", "d"] {
        counts.push(h.record(text).await.attempt_count);
    }
    assert_eq!(counts, [12, 3, 4, 5]);
    Ok(())
}

pub(super) async fn presentations_of_absent_keys_are_ignored(s: Subject) -> Verdict {
    let h = s.handle();
    h.count(Counters { hits: 1, ..Counters::default() }, vec![(key("absent"), 3)]).await;
    assert_eq!((h.get("absent").await, h.counters().await.hits), (None, 1));
    h.start("absent").await;
    assert_eq!(h.record("absent").await.attempt_count, 1);
    Ok(())
}

pub(super) async fn a_census_counts_each_state(s: Subject) -> Verdict {
    let h = s.handle();
    for n in 0..4 {
        h.completed(&format!("c{n}")).await;
    }
    for n in 0..3 {
        h.failed(&format!("f{n}")).await;
    }
    for n in 0..2 {
        h.doubted(&format!("d{n}")).await;
    }
    h.start("p").await;
    h.start_briefly("lapsed").await;
    assert_eq!(h.tally().await.2, 4);
    s.pass_tick().await;
    assert_eq!(h.tally().await, (1, 3, 4, 3));
    h.remove("c0").await;
    h.settle("d0", None, super::handle::happened("v")).await;
    h.settle("d1", None, crate::store::Settlement::NotHappened).await;
    h.mark("lapsed", "v").await;
    assert_eq!(h.tally().await, (1, 0, 5, 3));
    Ok(())
}

pub(super) async fn a_census_spans_from_the_first_record_to_the_last(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("gone").await;
    s.pass(Duration::from_millis(30)).await;
    let attempt = h.doubted("first").await;
    s.pass(Duration::from_millis(30)).await;
    h.completed("middle").await;
    s.pass(Duration::from_millis(30)).await;
    h.start("last").await;
    h.remove("gone").await;
    let census = h.census().await;
    let (first, last) = (h.record("first").await, h.record("last").await);
    assert_eq!((census.oldest, census.newest), (Some(first.started_at), Some(last.started_at)));
    assert!(first.started_at < last.started_at);
    // A record that is taken over keeps its place, and shows when its last attempt began.
    s.pass(Duration::from_millis(30)).await;
    h.take_over("first", attempt).await.unwrap();
    let census = h.census().await;
    let first = h.record("first").await;
    assert!(first.started_at > last.started_at);
    assert_eq!((census.oldest, census.newest), (Some(first.started_at), Some(last.started_at)));
    Ok(())
}

pub(super) async fn an_unknown_namespace_is_empty(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("k").await;
    let h = h.within("never-heard-of");
    assert_eq!(h.counters().await, Counters::default());
    let census = Census { bytes: 0, ..h.census().await };
    assert_eq!(census, Census::default());
    assert_eq!((h.all_keys().await, h.clear().await), (Vec::<String>::new(), 0));
    Ok(())
}
