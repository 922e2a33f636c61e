//! Beginning, taking over and ending: the diagram of a record's states.

use super::handle::{complete, doubt, fail};
use super::{Subject, Verdict};
use crate::store::{Begin, Begun, End, Ended};
use crate::{AttemptId, State};

pub(super) async fn a_key_that_is_absent_begins(s: Subject) -> Verdict {
    let h = s.handle();
    assert_eq!(h.state("k").await, None);
    let begun = h.begin(h.ask("k")).await;
    assert!(matches!(begun, Begun::Started { attempts: 1, expired: 0, evicted: 0, .. }), "{begun:?}");
    assert_eq!(h.state("k").await, Some(State::InProgress));
    Ok(())
}

pub(super) async fn a_live_attempt_turns_every_other_begin_away(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    for _ in 0..3 {
        let record = h.turned_away(h.ask("k")).await;
        assert_eq!((record.state, record.attempt_id), (State::InProgress, attempt));
    }
    h.ends("k", attempt, complete("v")).await;
    Ok(())
}

pub(super) async fn a_recorded_result_turns_every_begin_away(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.completed("k").await;
    let record = h.turned_away(h.ask("k")).await;
    assert_eq!((record.state, record.attempt_id), (State::Completed, attempt));
    assert_eq!(record.result, h.record("k").await.result);
    Ok(())
}

pub(super) async fn a_recorded_error_turns_every_begin_away(s: Subject) -> Verdict {
    let h = s.handle();
    h.failed("k").await;
    let record = h.turned_away(h.ask("k")).await;
    assert_eq!((record.state, record.error.as_deref()), (State::Failed, Some("k")));
    Ok(())
}

pub(super) async fn a_doubt_turns_every_begin_away_that_does_not_name_its_attempt(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    for take_over in [None, Some(AttemptId::new())] {
        let record = h.turned_away(Begin { take_over, ..h.ask("k") }).await;
        assert_eq!((record.state, record.attempt_id), (State::InDoubt, attempt));
    }
    Ok(())
}

pub(super) async fn only_the_attempt_in_doubt_is_taken_over(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.doubted("k").await;
    let begin = Begin { take_over: Some(first), ..h.ask("k") };
    let second = begin.attempt;
    let begun = h.begin(begin).await;
    assert!(matches!(begun, Begun::Started { attempts: 2, .. }), "{begun:?}");
    assert_eq!(h.record("k").await.attempt_id, second);
    // It is in doubt again, by another attempt: the first's name opens nothing any more.
    h.ends("k", second, doubt("again")).await;
    assert_eq!(h.take_over("k", first).await, None);
    assert!(h.take_over("k", second).await.is_some());
    assert_eq!(h.record("k").await.attempts, 3);
    Ok(())
}

pub(super) async fn a_live_attempt_is_not_taken_over(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    assert_eq!(h.take_over("k", attempt).await, None);
    assert_eq!(h.record("k").await.attempt_id, attempt);
    h.ends("k", attempt, complete("v")).await;
    Ok(())
}

pub(super) async fn a_result_is_not_taken_over(s: Subject) -> Verdict {
    let h = s.handle();
    for (text, attempt) in [("c", h.completed("c").await), ("f", h.failed("f").await)] {
        assert_eq!(h.take_over(text, attempt).await, None);
        assert!(h.record(text).await.state.is_recorded());
    }
    Ok(())
}

pub(super) async fn a_taken_over_key_forgets_the_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.doubted("k").await;
    let second = h.take_over("k", first).await.unwrap();
    let record = h.record("k").await;
    assert_eq!((record.state, record.error), (State::InProgress, None));
    h.ends("k", second, complete("second")).await;
    assert_eq!(h.result("k").await.as_deref(), Some("second"));
    Ok(())
}

pub(super) async fn a_live_attempt_completes(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let ended = h.end("k", attempt, complete("v")).await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_ref(), record.lease_until), (State::Completed, None, None));
    assert_eq!(ended, Ended::Done { at: record.executed_at.unwrap(), expires_at: None });
    assert_eq!(h.result("k").await.as_deref(), Some("v"));
    Ok(())
}

pub(super) async fn a_live_attempt_fails_for_good(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let ended = h.end("k", attempt, fail("no such board")).await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_deref()), (State::Failed, Some("no such board")));
    assert_eq!((record.result, record.lease_until), (None, None));
    assert_eq!(ended, Ended::Done { at: record.executed_at.unwrap(), expires_at: None });
    Ok(())
}

pub(super) async fn a_live_attempt_releases_its_key(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let ended = h.end("k", attempt, End::Release).await;
    assert!(matches!(ended, Ended::Done { expires_at: None, .. }), "{ended:?}");
    assert_eq!(h.get("k").await, None);
    assert_eq!(h.tally().await, (0, 0, 0, 0));
    Ok(())
}

pub(super) async fn a_live_attempt_leaves_a_doubt(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let ended = h.end("k", attempt, doubt("the connection broke")).await;
    assert!(matches!(ended, Ended::Done { expires_at: None, .. }), "{ended:?}");
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_deref()), (State::InDoubt, Some("the connection broke")));
    assert_eq!((record.lease_until, record.executed_at, record.expires_at), (None, None, None));
    Ok(())
}

pub(super) async fn a_late_answer_counts_while_nobody_took_over(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    h.ends("k", attempt, complete("late")).await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_ref(), record.attempt_id), (State::Completed, None, attempt));
    assert_eq!(h.result("k").await.as_deref(), Some("late"));
    assert_eq!(h.tally().await, (0, 0, 1, 0));
    Ok(())
}

pub(super) async fn a_late_error_counts_while_nobody_took_over(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    h.ends("k", attempt, fail("late")).await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_deref()), (State::Failed, Some("late")));
    assert_eq!(h.tally().await, (0, 0, 0, 1));
    Ok(())
}

pub(super) async fn a_late_release_frees_the_key_while_nobody_took_over(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    h.ends("k", attempt, End::Release).await;
    assert_eq!(h.get("k").await, None);
    Ok(())
}

pub(super) async fn a_doubt_can_be_given_another_reason_by_its_attempt(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.doubted("k").await;
    h.ends("k", attempt, doubt("now it is known why")).await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.error.as_deref()), (State::InDoubt, Some("now it is known why")));
    Ok(())
}

pub(super) async fn a_stale_attempt_cannot_complete(s: Subject) -> Verdict {
    let h = s.handle();
    let stale = h.doubted("k").await;
    let live = h.take_over("k", stale).await.unwrap();
    assert_eq!(h.end("k", stale, complete("stale")).await, Ended::Lost(Some(State::InProgress)));
    let record = h.record("k").await;
    assert_eq!((record.state, record.attempt_id, record.result), (State::InProgress, live, None));
    h.ends("k", live, complete("live")).await;
    assert_eq!(h.end("k", stale, complete("stale")).await, Ended::Lost(Some(State::Completed)));
    assert_eq!(h.result("k").await.as_deref(), Some("live"));
    Ok(())
}

pub(super) async fn a_stale_attempt_cannot_change_anything(s: Subject) -> Verdict {
    let h = s.handle();
    for (text, state) in
        [("p", State::InProgress), ("d", State::InDoubt), ("c", State::Completed), ("f", State::Failed)]
    {
        let stale = h.doubted(text).await;
        let live = h.take_over(text, stale).await.unwrap();
        match state {
            State::InProgress => {}
            State::InDoubt => h.ends(text, live, doubt("again")).await,
            State::Completed => h.ends(text, live, complete("live")).await,
            State::Failed => h.ends(text, live, fail("live")).await,
        }
        let before = h.record(text).await;
        assert_eq!(before.state, state);
        for end in [complete("stale"), fail("stale"), End::Release, doubt("stale")] {
            assert_eq!(h.end(text, stale, end).await, Ended::Lost(Some(state)));
            assert_eq!(h.record(text).await, before);
        }
    }
    Ok(())
}

pub(super) async fn an_end_of_an_absent_key_is_lost(s: Subject) -> Verdict {
    let h = s.handle();
    for end in [complete("v"), fail("e"), End::Release, doubt("d")] {
        assert_eq!(h.end("k", AttemptId::new(), end).await, Ended::Lost(None));
        assert_eq!(h.get("k").await, None);
    }
    assert_eq!(h.tally().await, (0, 0, 0, 0));
    Ok(())
}

pub(super) async fn an_end_names_the_key_it_is_for(s: Subject) -> Verdict {
    let h = s.handle();
    let (one, other) = (h.start("one").await, h.start("other").await);
    for end in [complete("v"), fail("e"), End::Release, doubt("d")] {
        assert_eq!(h.end("other", one, end.clone()).await, Ended::Lost(Some(State::InProgress)));
        assert_eq!(h.end("absent", one, end).await, Ended::Lost(None));
    }
    assert_eq!(h.tally().await, (2, 0, 0, 0));
    h.ends("one", one, complete("1")).await;
    h.ends("other", other, complete("2")).await;
    assert_eq!((h.result("one").await, h.result("other").await), (Some("1".into()), Some("2".into())));
    Ok(())
}

pub(super) async fn the_same_end_twice_is_answered_alike(s: Subject) -> Verdict {
    let h = s.handle();
    for (text, end) in [("c", complete("v")), ("f", fail("e"))] {
        let attempt = h.start(text).await;
        let first = h.end(text, attempt, end.clone()).await;
        let before = h.record(text).await;
        s.pass(std::time::Duration::from_millis(5)).await;
        assert!(matches!(first, Ended::Done { .. }), "{first:?}");
        assert_eq!(h.end(text, attempt, end).await, first, "the first answer may have been lost on the way");
        assert_eq!(h.record(text).await, before);
    }
    Ok(())
}

pub(super) async fn another_end_after_the_first_is_lost(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.completed("c").await;
    for end in [fail("e"), End::Release, doubt("d")] {
        assert_eq!(h.end("c", attempt, end).await, Ended::Lost(Some(State::Completed)));
    }
    let attempt = h.failed("f").await;
    for end in [complete("v"), End::Release, doubt("d")] {
        assert_eq!(h.end("f", attempt, end).await, Ended::Lost(Some(State::Failed)));
    }
    assert_eq!(h.tally().await, (0, 0, 1, 1));
    Ok(())
}

pub(super) async fn a_released_key_begins_anew(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.start("k").await;
    h.ends("k", first, End::Release).await;
    let begun = h.begin(h.ask("k")).await;
    assert!(matches!(begun, Begun::Started { attempts: 1, .. }), "{begun:?}");
    assert_eq!(h.end("k", first, complete("stale")).await, Ended::Lost(Some(State::InProgress)));
    Ok(())
}

pub(super) async fn the_reason_of_a_doubt_is_kept(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    h.ends("k", attempt, doubt("line one\nline two: 100 %")).await;
    let record = h.turned_away(h.ask("k")).await;
    assert_eq!(record.error.as_deref(), Some("line one\nline two: 100 %"));
    Ok(())
}
