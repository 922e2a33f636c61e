//! Leases: renewed, lapsed, and what a lapse is to every operation.

use std::time::Duration;

use super::handle::{HOUR, complete, happened, key};
use super::{Subject, Verdict};
use crate::store::{Beat, Begin, Ended, Filter, Marked, Removed, Settled};
use crate::{AttemptId, State};

pub(super) async fn a_heartbeat_renews_the_lease(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start_briefly("k").await;
    assert_eq!(h.beat("k", attempt, HOUR).await, Beat::Renewed);
    s.pass_tick().await;
    s.pass_tick().await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.attempt_id), (State::InProgress, attempt));
    let now = h.store.now().await.unwrap();
    assert!(record.lease_until.unwrap().since(now) > HOUR / 2, "the record shows the new lease: {record:?}");
    // And shortens it, if it is asked to.
    assert_eq!(h.beat("k", attempt, h.tick).await, Beat::Renewed);
    s.pass_tick().await;
    assert_eq!(h.state("k").await, Some(State::InDoubt));
    Ok(())
}

pub(super) async fn a_heartbeat_cannot_revive_a_lapsed_lease(s: Subject) -> Verdict {
    let h = s.handle();
    let (seen, unseen) = (h.start_briefly("seen").await, h.start_briefly("unseen").await);
    s.pass_tick().await;
    assert_eq!(h.state("seen").await, Some(State::InDoubt));
    for (text, attempt) in [("seen", seen), ("unseen", unseen)] {
        for _ in 0..2 {
            assert_eq!(h.beat(text, attempt, HOUR).await, Beat::Lapsed);
        }
        assert_eq!(h.state(text).await, Some(State::InDoubt));
    }
    let told = h.doubted("told").await;
    assert_eq!(h.beat("told", told, HOUR).await, Beat::Lapsed);
    Ok(())
}

pub(super) async fn a_heartbeat_of_a_stale_attempt_is_lost(s: Subject) -> Verdict {
    let h = s.handle();
    assert_eq!(h.beat("absent", AttemptId::new(), HOUR).await, Beat::Lost);
    let stale = h.doubted("taken").await;
    h.take_over("taken", stale).await.unwrap();
    let settled = h.doubted("settled").await;
    h.settle("settled", None, happened("v")).await;
    let (completed, failed) = (h.completed("completed").await, h.failed("failed").await);
    for (text, attempt) in [("taken", stale), ("settled", settled), ("completed", completed), ("failed", failed)] {
        let before = h.record(text).await;
        assert_eq!(h.beat(text, attempt, HOUR).await, Beat::Lost, "{text}");
        assert_eq!(h.record(text).await, before);
    }
    Ok(())
}

pub(super) async fn heartbeats_are_answered_one_by_one_in_order(s: Subject) -> Verdict {
    let h = s.handle();
    assert_eq!(h.store.heartbeat(h.space.clone(), Vec::new()).await.unwrap(), Vec::new());
    let (live, doubted) = (h.start("live").await, h.doubted("doubted").await);
    let mut beats = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..20 {
        beats.extend([
            (key("live"), live, HOUR),
            (key("doubted"), doubted, HOUR),
            (key("absent"), AttemptId::new(), HOUR),
            (key("live"), doubted, HOUR),
        ]);
        expected.extend([Beat::Renewed, Beat::Lapsed, Beat::Lost, Beat::Lost]);
    }
    assert_eq!(h.store.heartbeat(h.space.clone(), beats).await.unwrap(), expected);
    Ok(())
}

pub(super) async fn a_lapsed_lease_reads_as_in_doubt_everywhere(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start_briefly("k").await;
    assert_eq!(h.tally().await, (1, 0, 0, 0));
    s.pass_tick().await;
    // Counted and listed before anything may have written it down.
    assert_eq!(h.tally().await, (0, 1, 0, 0));
    assert_eq!(h.keys_in(State::InDoubt).await, ["k"]);
    assert_eq!(h.keys_in(State::InProgress).await, Vec::<String>::new());
    let page = h.page(Filter::default(), None, 10).await;
    let [listed] = page.records.as_slice() else { panic!("{page:?}") };
    let record = h.record("k").await;
    assert_eq!(listed, &record);
    assert_eq!((record.state, record.attempt_id, record.lease_until), (State::InDoubt, attempt, None));
    assert!(record.error.as_deref().is_some_and(|reason| !reason.is_empty()), "it says why: {record:?}");
    assert_eq!(h.turned_away(h.ask("k")).await, record);
    Ok(())
}

pub(super) async fn a_lapsed_lease_is_taken_over(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.start_briefly("k").await;
    s.pass_tick().await;
    let second = h.take_over("k", first).await.expect("its lease had lapsed");
    let record = h.record("k").await;
    assert_eq!((record.state, record.attempt_id, record.attempts), (State::InProgress, second, 2));
    assert_eq!(record.error, None);
    assert_eq!(h.end("k", first, complete("zombie")).await, Ended::Lost(Some(State::InProgress)));
    h.ends("k", second, complete("second")).await;
    assert_eq!(h.tally().await, (0, 0, 1, 0));
    Ok(())
}

pub(super) async fn a_lapsed_lease_is_settled(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start_briefly("k").await;
    let early = h.settle("k", None, happened("v")).await;
    assert!(matches!(early, Settled::NotInDoubt(Some(_))), "{early:?}");
    s.pass_tick().await;
    let settled = h.settle("k", Some(attempt), happened("v")).await;
    assert!(matches!(settled, Settled::Done(Some(_))), "{settled:?}");
    assert_eq!(h.end("k", attempt, complete("zombie")).await, Ended::Lost(Some(State::Completed)));
    assert_eq!((h.result("k").await.as_deref(), h.tally().await), (Some("v"), (0, 0, 1, 0)));
    Ok(())
}

pub(super) async fn a_lapsed_lease_is_marked(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start_briefly("k").await;
    s.pass_tick().await;
    assert!(matches!(h.mark("k", "by hand").await, Marked::Recorded { .. }));
    assert_eq!(h.end("k", attempt, complete("zombie")).await, Ended::Lost(Some(State::Completed)));
    assert_eq!((h.result("k").await.as_deref(), h.tally().await), (Some("by hand"), (0, 0, 1, 0)));
    Ok(())
}

pub(super) async fn a_lapsed_lease_is_not_removed(s: Subject) -> Verdict {
    let h = s.handle();
    h.start_briefly("k").await;
    s.pass_tick().await;
    let Removed::Kept(record) = h.remove("k").await else { panic!("a doubt is settled, not removed") };
    assert_eq!(record.state, State::InDoubt);
    assert_eq!((h.clear().await, h.evict(10).await, h.sweep(10).await), (0, 0, 0));
    assert_eq!(h.state("k").await, Some(State::InDoubt));
    Ok(())
}

pub(super) async fn a_lapsed_attempts_late_answer_counts(s: Subject) -> Verdict {
    let h = s.handle();
    let (unseen, seen) = (h.start_briefly("unseen").await, h.start_briefly("seen").await);
    s.pass_tick().await;
    assert_eq!(h.state("seen").await, Some(State::InDoubt));
    for (text, attempt) in [("unseen", unseen), ("seen", seen)] {
        h.ends(text, attempt, complete("late")).await;
        let record = h.record(text).await;
        assert_eq!((record.state, record.error.as_ref(), record.attempt_id), (State::Completed, None, attempt));
    }
    assert_eq!(h.tally().await, (0, 0, 2, 0));
    Ok(())
}

pub(super) async fn a_lease_lapses_at_its_very_millisecond(s: Subject) -> Verdict {
    let (h, clock) = (s.handle(), s.manual()?);
    let attempt = h.start_with(Begin { lease: Duration::from_millis(1000), ..h.ask("k") }).await;
    let start = h.record("k").await;
    assert_eq!(start.lease_until.unwrap().since(start.started_at), Duration::from_millis(1000));
    clock.advance(Duration::from_millis(999));
    assert_eq!(h.state("k").await, Some(State::InProgress));
    assert_eq!(h.beat("k", attempt, Duration::from_millis(500)).await, Beat::Renewed);
    clock.advance(Duration::from_millis(499));
    assert_eq!((h.state("k").await, h.tally().await), (Some(State::InProgress), (1, 0, 0, 0)));
    clock.advance(Duration::from_millis(1));
    assert_eq!((h.state("k").await, h.tally().await), (Some(State::InDoubt), (0, 1, 0, 0)));
    Ok(())
}

pub(super) async fn a_jump_of_the_wall_clock_neither_kills_nor_revives_a_lease(s: Subject) -> Verdict {
    const HOUR_MS: i64 = 3_600_000;
    let (h, clock) = (s.handle(), s.manual()?);
    let attempt = h.start_briefly("live").await;
    for jump in [HOUR_MS, -2 * HOUR_MS, HOUR_MS] {
        clock.jump_wall(jump);
        assert_eq!(h.state("live").await, Some(State::InProgress), "after a jump of {jump} ms");
    }
    assert_eq!(h.beat("live", attempt, h.tick).await, Beat::Renewed);
    s.pass_tick().await;
    clock.jump_wall(-HOUR_MS);
    assert_eq!(h.state("live").await, Some(State::InDoubt));
    assert_eq!(h.beat("live", attempt, HOUR).await, Beat::Lapsed);
    Ok(())
}

pub(super) async fn a_lease_of_any_length_is_taken(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start_with(Begin { lease: Duration::MAX, ..h.ask("endless") }).await;
    assert_eq!(h.state("endless").await, Some(State::InProgress));
    assert_eq!(h.beat("endless", attempt, Duration::MAX).await, Beat::Renewed);
    s.pass_tick().await;
    assert_eq!(h.state("endless").await, Some(State::InProgress));
    h.start_with(Begin { lease: Duration::ZERO, ..h.ask("none") }).await;
    assert_eq!(h.state("none").await, Some(State::InDoubt), "no lease at all has lapsed at once");
    Ok(())
}
