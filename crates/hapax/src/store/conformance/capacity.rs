//! A limit on records: room is made, or the newcomer is refused, as was chosen.

use super::handle::HOUR;
use super::{Handle, Subject, Verdict};
use crate::store::{Begin, Begun, Capacity, Mark, Marked, OnFull, StoreError};
use crate::{State, Ttl};

const EVICT: Option<Capacity> = Some(Capacity { max_entries: 10, on_full: OnFull::Evict });
const REJECT: Option<Capacity> = Some(Capacity { max_entries: 10, on_full: OnFull::Reject });

fn limited(h: &Handle, text: &str, capacity: Option<Capacity>) -> Begin {
    Begin { capacity, ..h.ask(text) }
}

/// Ten recorded results, oldest `k0`.
async fn fill(h: &Handle) {
    for n in 0..10 {
        let begun = h.begin(limited(h, &format!("k{n}"), EVICT)).await;
        assert!(matches!(begun, Begun::Started { expired: 0, evicted: 0, .. }), "there was room: {begun:?}");
        let attempt = h.record(&format!("k{n}")).await.attempt_id;
        h.ends(&format!("k{n}"), attempt, super::handle::complete("v")).await;
    }
}

pub(super) async fn a_full_store_evicts_the_oldest_fifth(s: Subject) -> Verdict {
    let h = s.handle();
    fill(&h).await;
    let begun = h.begin(limited(&h, "new", EVICT)).await;
    assert!(matches!(begun, Begun::Started { expired: 0, evicted: 2, .. }), "{begun:?}");
    assert_eq!(h.all_keys().await, ["k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "new"]);
    // There is room for one more now.
    let begun = h.begin(limited(&h, "newer", EVICT)).await;
    assert!(matches!(begun, Begun::Started { expired: 0, evicted: 0, .. }), "{begun:?}");
    Ok(())
}

pub(super) async fn a_full_store_removes_expired_records_first(s: Subject) -> Verdict {
    let h = s.handle();
    for n in 0..7 {
        h.completed(&format!("k{n}")).await;
    }
    for n in 0..3 {
        h.completed_for(&format!("short{n}"), Ttl::For(h.tick)).await;
    }
    s.pass_tick().await;
    let begun = h.begin(limited(&h, "new", EVICT)).await;
    assert!(matches!(begun, Begun::Started { expired: 3, evicted: 0, .. }), "{begun:?}");
    assert_eq!((h.all_keys().await.len(), h.sweep(100).await), (8, 0));
    Ok(())
}

pub(super) async fn a_full_store_evicts_nothing_that_is_live_or_in_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    for n in 0..4 {
        h.start(&format!("p{n}")).await;
        h.doubted(&format!("d{n}")).await;
    }
    h.completed("c").await;
    h.failed("f").await;
    let begun = h.begin(limited(&h, "new", EVICT)).await;
    assert!(matches!(begun, Begun::Started { evicted: 2, .. }), "{begun:?}");
    assert_eq!(h.tally().await, (5, 4, 0, 0));
    // Nothing is left that could go: the attempt is more than the limit.
    let begun = h.begin(limited(&h, "newer", EVICT)).await;
    assert!(matches!(begun, Begun::Started { evicted: 0, .. }), "{begun:?}");
    let begun = h.begin(limited(&h, "newest", EVICT)).await;
    assert!(matches!(begun, Begun::Started { evicted: 0, .. }), "{begun:?}");
    assert_eq!(h.tally().await, (7, 4, 0, 0));
    Ok(())
}

pub(super) async fn a_full_store_refuses_when_told_to(s: Subject) -> Verdict {
    let h = s.handle();
    fill(&h).await;
    let refused = h.store.begin(limited(&h, "new", REJECT)).await;
    assert!(matches!(refused, Err(StoreError::Capacity { max_entries: 10, .. })), "{refused:?}");
    let mark = Mark { capacity: REJECT, ..h.marking("new", "v") };
    let refused = h.store.mark(mark).await;
    assert!(matches!(refused, Err(StoreError::Capacity { max_entries: 10, .. })), "{refused:?}");
    h.remove("k5").await;
    h.start_with(limited(&h, "new", REJECT)).await;
    Ok(())
}

pub(super) async fn a_refused_begin_leaves_nothing_behind(s: Subject) -> Verdict {
    let h = s.handle();
    fill(&h).await;
    let before = h.all_keys().await;
    let epoch = h.store.epoch();
    assert!(h.store.begin(limited(&h, "new", REJECT)).await.is_err());
    assert_eq!((h.get("new").await, h.all_keys().await, h.tally().await), (None, before, (0, 0, 10, 0)));
    assert!(epoch.is_none() || h.store.epoch().is_none() || h.store.epoch() == epoch);
    Ok(())
}

pub(super) async fn a_full_store_still_answers_for_the_keys_it_has(s: Subject) -> Verdict {
    let h = s.handle();
    fill(&h).await;
    for capacity in [EVICT, REJECT] {
        let begun = h.begin(limited(&h, "k0", capacity)).await;
        assert!(matches!(&begun, Begun::Exists(r) if r.state == State::Completed), "{begun:?}");
        let marked = h.store.mark(Mark { capacity, ..h.marking("k1", "x") }).await.unwrap();
        assert!(matches!(marked, Marked::Exists(_)), "{marked:?}");
    }
    assert_eq!(h.tally().await, (0, 0, 10, 0));
    Ok(())
}

pub(super) async fn a_full_store_still_takes_over(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("d").await;
    for n in 0..9 {
        h.completed(&format!("k{n}")).await;
    }
    let begun = h.begin(Begin { take_over: Some(attempt), ..limited(&h, "d", REJECT) }).await;
    assert!(matches!(begun, Begun::Started { attempts: 2, evicted: 0, .. }), "{begun:?}");
    assert_eq!(h.tally().await, (1, 0, 9, 0));
    Ok(())
}

pub(super) async fn a_mark_makes_room_as_well(s: Subject) -> Verdict {
    let h = s.handle();
    fill(&h).await;
    let marked = h.store.mark(Mark { capacity: EVICT, ..h.marking("new", "v") }).await.unwrap();
    assert!(matches!(marked, Marked::Recorded { expired: 0, evicted: 2, .. }), "{marked:?}");
    assert_eq!(h.all_keys().await, ["k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "new"]);
    Ok(())
}

pub(super) async fn the_limit_counts_all_namespaces_together(s: Subject) -> Verdict {
    let h = s.handle();
    let other = h.within("other");
    for n in 0..5 {
        other.completed_for(&format!("o{n}"), Ttl::For(HOUR)).await;
        h.completed(&format!("k{n}")).await;
    }
    let begun = h.begin(limited(&h, "new", EVICT)).await;
    assert!(matches!(begun, Begun::Started { expired: 0, evicted: 2, .. }), "{begun:?}");
    assert_eq!(other.all_keys().await, ["o1", "o2", "o3", "o4"], "the oldest of all go");
    assert_eq!(h.all_keys().await, ["k1", "k2", "k3", "k4", "new"]);
    Ok(())
}
