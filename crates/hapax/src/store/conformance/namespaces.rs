//! Namespaces: keys of two of them never meet, in any operation.

use super::handle::{HOUR, complete, happened, key};
use super::{Subject, Verdict};
use crate::State;
use crate::store::{Beat, Counters, End, Ended, Filter, Marked, Removed, Settled, Settlement};

pub(super) async fn namespaces_never_meet(s: Subject) -> Verdict {
    let h = s.handle();
    // Also such whose names and keys would run together if they were only put side by side.
    let spaces = [("a", "b:c"), ("a:b", "c"), ("A", "b:c"), ("ab", "c"), ("a", "bc")];
    for (space, text) in spaces {
        let h = h.within(space);
        assert_eq!(h.get(text).await, None, "{space} {text}");
        let attempt = h.start(text).await;
        h.ends(text, attempt, complete(&format!("{space} {text}"))).await;
    }
    for (space, text) in spaces {
        let record = h.within(space).record(text).await;
        assert_eq!((record.namespace.as_str(), record.key.as_str()), (space, text));
        assert_eq!(h.within(space).result(text).await, Some(format!("{space} {text}")));
    }
    assert_eq!(h.within("a").all_keys().await, ["b:c", "bc"]);
    assert_eq!(h.within("A").all_keys().await, ["b:c"]);
    let by_action = Filter { action_type: Some("create_task".into()), ..Filter::default() };
    assert_eq!(h.within("ab").keys(by_action).await, ["c"]);
    Ok(())
}

pub(super) async fn an_attempt_of_another_namespace_is_a_stranger(s: Subject) -> Verdict {
    let h = s.handle();
    let (a, b) = (h.within("a"), h.within("b"));
    let attempt = a.start("k").await;
    for end in [complete("v"), End::Release, super::handle::doubt("d")] {
        assert_eq!(b.end("k", attempt, end).await, Ended::Lost(None));
    }
    assert_eq!(b.beat("k", attempt, HOUR).await, Beat::Lost);
    assert!(matches!(b.remove("k").await, Removed::Absent));
    a.ends("k", attempt, super::handle::doubt("d")).await;
    for settlement in [happened("v"), Settlement::NotHappened] {
        let settled = b.settle("k", Some(attempt), settlement).await;
        assert!(matches!(settled, Settled::NotInDoubt(None)), "{settled:?}");
    }
    let other = b.start("k").await;
    assert_eq!(a.record("k").await.attempt_id, attempt);
    assert_eq!(a.state("k").await, Some(State::InDoubt));
    b.ends("k", other, End::Release).await;
    assert!(matches!(b.mark("k", "b's").await, Marked::Recorded { .. }));
    a.ends("k", attempt, complete("a's")).await;
    assert_eq!((a.result("k").await, b.result("k").await), (Some("a's".into()), Some("b's".into())));
    assert_eq!((a.tally().await, b.tally().await), ((0, 0, 1, 0), (0, 0, 1, 0)));
    Ok(())
}

pub(super) async fn counters_and_census_belong_to_their_namespace(s: Subject) -> Verdict {
    let h = s.handle();
    let (a, b) = (h.within("a"), h.within("b"));
    a.completed("k").await;
    b.start("k").await;
    let two = Counters { hits: 2, ..Counters::default() };
    let three = Counters { hits: 3, ..Counters::default() };
    a.count(two, vec![(key("k"), 2)]).await;
    b.count(three, vec![(key("k"), 3)]).await;
    assert_eq!((a.counters().await, b.counters().await), (two, three));
    assert_eq!((a.record("k").await.attempt_count, b.record("k").await.attempt_count), (3, 4));
    assert_eq!((a.tally().await, b.tally().await), ((0, 0, 1, 0), (1, 0, 0, 0)));
    a.store.reset_counters(a.space.clone()).await.unwrap();
    assert_eq!((a.counters().await, b.counters().await), (Counters::default(), three));
    Ok(())
}

pub(super) async fn clearing_a_namespace_leaves_the_others(s: Subject) -> Verdict {
    let h = s.handle();
    let (a, b) = (h.within("a"), h.within("b"));
    for text in ["1", "2", "3"] {
        b.completed(text).await;
        a.completed(text).await;
    }
    assert!(matches!(a.remove("1").await, Removed::Removed));
    assert_eq!((a.evict(1).await, a.clear().await), (1, 1));
    assert_eq!(a.all_keys().await, Vec::<String>::new());
    assert_eq!((b.all_keys().await, b.tally().await), (vec!["1".into(), "2".into(), "3".into()], (0, 0, 3, 0)));
    Ok(())
}
