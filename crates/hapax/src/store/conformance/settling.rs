//! Settling a doubt, and marking by hand.

use super::handle::{complete, doubt, fail, happened};
use super::{Subject, Verdict};
use crate::store::{Begun, End, Ended, Marked, Settled, Settlement};
use crate::{AttemptId, State};

pub(super) async fn a_doubt_settled_as_happened_is_completed(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    for (text, name) in [("k", Some(attempt)), ("l", None)] {
        if name.is_none() {
            h.doubted(text).await;
        }
        let Settled::Done(Some(record)) = h.settle(text, name, happened("it did")).await else { panic!("{text}") };
        assert_eq!((record.state, record.error.as_ref()), (State::Completed, None));
        assert_eq!(record.result.as_ref().unwrap().as_str(), "\"it did\"");
        assert_eq!(h.record(text).await, *record, "what is told is what is kept");
    }
    assert_eq!(h.tally().await, (0, 0, 2, 0));
    Ok(())
}

pub(super) async fn a_doubt_settled_as_not_happened_is_absent(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    let settled = h.settle("k", Some(attempt), Settlement::NotHappened).await;
    assert!(matches!(settled, Settled::Done(None)), "{settled:?}");
    assert_eq!(h.get("k").await, None);
    let begun = h.begin(h.ask("k")).await;
    assert!(matches!(begun, Begun::Started { attempts: 1, .. }), "{begun:?}");
    Ok(())
}

pub(super) async fn a_settlement_that_names_another_attempt_changes_nothing(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    let before = h.record("k").await;
    for settlement in [happened("v"), Settlement::NotHappened] {
        let Settled::NotInDoubt(Some(record)) = h.settle("k", Some(AttemptId::new()), settlement).await else {
            panic!("it named another attempt")
        };
        assert_eq!((record.state, record.attempt_id), (State::InDoubt, attempt));
        assert_eq!(h.record("k").await, before);
    }
    Ok(())
}

pub(super) async fn what_is_not_in_doubt_cannot_be_settled(s: Subject) -> Verdict {
    let h = s.handle();
    for settlement in [happened("v"), Settlement::NotHappened] {
        let absent = h.settle("absent", None, settlement).await;
        assert!(matches!(absent, Settled::NotInDoubt(None)), "{absent:?}");
    }
    assert_eq!(h.get("absent").await, None);
    h.start("p").await;
    h.completed("c").await;
    h.failed("f").await;
    for text in ["p", "c", "f"] {
        let before = h.record(text).await;
        for settlement in [happened("v"), Settlement::NotHappened] {
            let Settled::NotInDoubt(Some(record)) = h.settle(text, None, settlement).await else { panic!("{text}") };
            assert_eq!(*record, before);
            assert_eq!(h.record(text).await, before);
        }
    }
    Ok(())
}

pub(super) async fn a_settlement_fences_the_late_attempt_off(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    h.settle("k", None, happened("settled")).await;
    let before = h.record("k").await;
    assert_ne!(before.attempt_id, attempt, "the settlement has an attempt id of its own");
    for end in [complete("late"), fail("late"), End::Release, doubt("late")] {
        assert_eq!(h.end("k", attempt, end).await, Ended::Lost(Some(State::Completed)));
        assert_eq!(h.record("k").await, before);
    }
    let attempt = h.doubted("n").await;
    h.settle("n", None, Settlement::NotHappened).await;
    assert_eq!(h.end("n", attempt, complete("late")).await, Ended::Lost(None));
    assert_eq!(h.get("n").await, None);
    Ok(())
}

pub(super) async fn a_settlement_counts_once(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    assert!(matches!(h.settle("k", Some(attempt), happened("first")).await, Settled::Done(Some(_))));
    for settlement in [happened("second"), Settlement::NotHappened] {
        let again = h.settle("k", Some(attempt), settlement).await;
        assert!(matches!(&again, Settled::NotInDoubt(Some(r)) if r.state == State::Completed), "{again:?}");
    }
    assert_eq!(h.result("k").await.as_deref(), Some("first"));
    assert_eq!(h.take_over("k", attempt).await, None);
    Ok(())
}

pub(super) async fn a_mark_over_nothing_is_recorded(s: Subject) -> Verdict {
    let h = s.handle();
    let Marked::Recorded { record, .. } = h.mark("k", "by hand").await else { panic!("nothing was there") };
    assert_eq!((record.state, record.attempts, record.attempt_count), (State::Completed, 0, 1));
    assert_eq!(h.record("k").await, *record, "what is told is what is kept");
    let turned = h.turned_away(h.ask("k")).await;
    assert_eq!(turned.result, record.result);
    assert_eq!(h.tally().await, (0, 0, 1, 0));
    Ok(())
}

pub(super) async fn a_mark_over_a_doubt_is_recorded_and_fences_the_attempt_off(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    let Marked::Recorded { record, .. } = h.mark("k", "by hand").await else { panic!("it was in doubt") };
    assert_eq!((record.state, record.attempts, record.error.as_ref()), (State::Completed, 1, None));
    assert_eq!(h.record("k").await, *record, "what is told is what is kept");
    assert_eq!(h.end("k", attempt, complete("late")).await, Ended::Lost(Some(State::Completed)));
    assert_eq!(h.result("k").await.as_deref(), Some("by hand"));
    assert_eq!(h.tally().await, (0, 0, 1, 0));
    Ok(())
}

pub(super) async fn a_mark_over_a_record_changes_nothing(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("c").await;
    h.failed("f").await;
    h.mark("m", "first").await;
    for text in ["c", "f", "m"] {
        let before = h.record(text).await;
        let Marked::Exists(record) = h.mark(text, "second").await else { panic!("{text} was recorded") };
        assert_eq!(*record, before);
        assert_eq!(h.record(text).await, before);
    }
    Ok(())
}

pub(super) async fn a_mark_under_a_live_attempt_changes_nothing(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let Marked::Exists(record) = h.mark("k", "by hand").await else { panic!("it was live") };
    assert_eq!((record.state, record.attempt_id), (State::InProgress, attempt));
    h.ends("k", attempt, complete("v")).await;
    assert_eq!(h.result("k").await.as_deref(), Some("v"));
    Ok(())
}
