//! Times to live: a record past its end is absent to every operation, swept or not.

use std::time::Duration;

use super::handle::{complete, fail, happened, json, key};
use super::{Subject, Verdict};
use crate::store::{Beat, Begun, Counters, End, Ended, Filter, Mark, Marked, Removed, Settled};
use crate::{State, Timestamp, Ttl};

pub(super) async fn a_record_is_absent_from_its_expiry_on_to_every_operation(s: Subject) -> Verdict {
    let h = s.handle();
    let ttl = Ttl::For(h.tick);
    for text in ["get", "remove", "settle", "mark", "begin", "take over"].map(|t| t.replace(' ', "-")) {
        h.completed_for(&text, ttl).await;
    }
    let ended = h.completed_for("end", ttl).await;
    let beaten = h.completed_for("beat", ttl).await;
    let over = h.completed_for("over", ttl).await;
    s.pass_tick().await;
    // First those that only look, then those that may sweep in passing.
    assert_eq!(h.tally().await, (0, 0, 0, 0));
    let census = h.census().await;
    assert_eq!((census.oldest, census.newest), (None, None));
    assert_eq!(h.all_keys().await, Vec::<String>::new());
    let soon = Filter { expiring_within: Some(Duration::from_secs(3600)), ..Filter::default() };
    assert_eq!(h.keys(soon).await, Vec::<String>::new());
    assert_eq!(h.keys_in(State::Completed).await, Vec::<String>::new());
    assert_eq!(h.get("get").await, None);
    h.count(Counters::default(), vec![(key("get"), 3)]).await;
    assert!(matches!(h.remove("remove").await, Removed::Absent));
    let settled = h.settle("settle", None, happened("v")).await;
    assert!(matches!(settled, Settled::NotInDoubt(None)), "{settled:?}");
    assert_eq!(h.end("end", ended, complete("end")).await, Ended::Lost(None));
    assert_eq!(h.beat("beat", beaten, h.tick).await, Beat::Lost);
    assert!(matches!(h.mark("mark", "anew").await, Marked::Recorded { .. }));
    let begun = h.begin(h.ask("begin")).await;
    assert!(matches!(begun, Begun::Started { attempts: 1, .. }), "{begun:?}");
    // Nothing is there to be taken over: it begins as on any absent key.
    assert!(h.take_over("over", over).await.is_some());
    assert_eq!(h.record("over").await.attempts, 1);
    assert_eq!((h.evict(100).await, h.tally().await), (1, (2, 0, 0, 0)));
    s.pass_tick().await;
    assert_eq!(h.clear().await, 0, "what has expired is not there to be cleared");
    Ok(())
}

pub(super) async fn a_record_stands_until_the_millisecond_before_its_expiry(s: Subject) -> Verdict {
    let (h, clock) = (s.handle(), s.manual()?);
    h.completed_for("c", Ttl::For(Duration::from_millis(500))).await;
    let attempt = h.start("f").await;
    let end = End::Fail { error: "e".into(), ttl: Ttl::For(Duration::from_millis(500)), duration: Duration::ZERO };
    h.ends("f", attempt, end).await;
    let mark = Mark { ttl: Ttl::For(Duration::from_millis(500)), ..h.marking("m", "v") };
    h.store.mark(mark).await.unwrap();
    h.doubted("s").await;
    let settlement =
        crate::store::Settlement::Happened { result: json("v"), ttl: Ttl::For(Duration::from_millis(500)) };
    h.settle("s", None, settlement).await;
    for text in ["c", "f", "m", "s"] {
        let record = h.record(text).await;
        let lives = record.expires_at.unwrap().since(record.executed_at.unwrap());
        assert_eq!(lives, Duration::from_millis(500), "{text}");
    }
    clock.advance(Duration::from_millis(499));
    assert_eq!(h.sweep(100).await, 0);
    assert_eq!((h.all_keys().await.len(), h.tally().await), (4, (0, 0, 3, 1)));
    assert_eq!(h.turned_away(h.ask("c")).await.state, State::Completed);
    clock.advance(Duration::from_millis(1));
    assert_eq!((h.all_keys().await.len(), h.tally().await), (0, (0, 0, 0, 0)));
    for text in ["c", "f", "m", "s"] {
        assert_eq!(h.get(text).await, None, "{text}");
    }
    assert!(h.sweep(100).await <= 4);
    Ok(())
}

pub(super) async fn an_expired_key_begins_anew(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.completed_for("k", Ttl::For(h.tick)).await;
    h.count(Counters::default(), vec![(key("k"), 5)]).await;
    s.pass_tick().await;
    let second = h.start("k").await;
    let record = h.record("k").await;
    assert_eq!((record.state, record.attempt_id), (State::InProgress, second));
    assert_eq!((record.attempts, record.attempt_count), (1, 1), "nothing of the old record is left");
    assert_eq!((record.result, record.executed_at, record.expires_at), (None, None, None));
    assert_eq!(h.end("k", first, complete("old")).await, Ended::Lost(Some(State::InProgress)));
    assert_eq!(h.tally().await, (1, 0, 0, 0));
    assert_eq!(h.all_keys().await, ["k"]);
    Ok(())
}

pub(super) async fn an_expired_error_begins_anew(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let end = End::Fail { error: "no".into(), ttl: Ttl::For(h.tick), duration: Duration::ZERO };
    h.ends("k", attempt, end).await;
    s.pass_tick().await;
    let second = h.start("k").await;
    assert_eq!(h.record("k").await.error, None);
    h.ends("k", second, complete("yes")).await;
    assert_eq!(h.tally().await, (0, 0, 1, 0));
    Ok(())
}

pub(super) async fn a_record_without_an_end_does_not_expire(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed_for("k", Ttl::Never).await;
    if let Some(clock) = &s.clock {
        clock.advance(Duration::from_secs(100 * 365 * 24 * 3600));
    } else {
        s.pass_tick().await;
    }
    assert_eq!(h.sweep(100).await, 0);
    assert_eq!(h.record("k").await.expires_at, None);
    Ok(())
}

pub(super) async fn a_time_to_live_is_at_least_a_millisecond(s: Subject) -> Verdict {
    let (h, clock) = (s.handle(), s.manual()?);
    h.completed_for("k", Ttl::For(Duration::ZERO)).await;
    assert_eq!(h.state("k").await, Some(State::Completed));
    clock.advance(Duration::from_millis(1));
    assert_eq!(h.get("k").await, None);
    Ok(())
}

pub(super) async fn a_sweep_removes_only_what_has_expired(s: Subject) -> Verdict {
    let h = s.handle();
    let other = h.within("other");
    let attempt = h.start("long").await;
    let end = End::Complete { result: json("v"), ttl: Ttl::For(h.tick * 1000), duration: Duration::ZERO };
    h.ends("long", attempt, end).await;
    h.completed("endless").await;
    assert_eq!(h.sweep(100).await, 0);
    // Last: on a busy machine the first of these may expire before the last is there.
    for n in 0..5 {
        h.completed_for(&format!("short-{n}"), Ttl::For(h.tick)).await;
        other.completed_for(&format!("short-{n}"), Ttl::For(h.tick)).await;
    }
    s.pass_tick().await;
    let swept = h.sweep(100).await;
    assert_eq!(swept, 10, "of all namespaces");
    assert_eq!(h.sweep(100).await, 0);
    assert_eq!(h.all_keys().await, ["long", "endless"]);
    assert_eq!((h.tally().await, other.tally().await), ((0, 0, 2, 0), (0, 0, 0, 0)));
    Ok(())
}

pub(super) async fn a_sweep_keeps_to_its_limit(s: Subject) -> Verdict {
    let h = s.handle();
    for n in 0..7 {
        h.completed_for(&format!("k{n}"), Ttl::For(h.tick)).await;
    }
    s.pass_tick().await;
    assert_eq!(h.sweep(0).await, 0);
    assert_eq!((h.sweep(3).await, h.sweep(3).await, h.sweep(3).await, h.sweep(3).await), (3, 3, 1, 0));
    Ok(())
}

pub(super) async fn a_live_attempt_and_a_doubt_never_expire(s: Subject) -> Verdict {
    let h = s.handle();
    // Begun anew over a record that had an end: that end must not be the new attempt's.
    h.completed_for("live", Ttl::For(h.tick)).await;
    h.completed_for("doubt", Ttl::For(h.tick)).await;
    s.pass_tick().await;
    h.start("live").await;
    h.doubted("doubt").await;
    s.pass_tick().await;
    s.pass_tick().await;
    assert!(h.sweep(100).await <= 2, "at most the two old records");
    assert_eq!((h.state("live").await, h.state("doubt").await), (Some(State::InProgress), Some(State::InDoubt)));
    assert_eq!(h.record("doubt").await.expires_at, None);
    Ok(())
}

pub(super) async fn the_longest_time_to_live_is_kept(s: Subject) -> Verdict {
    let h = s.handle();
    let attempt = h.start("k").await;
    let end = End::Complete { result: json("v"), ttl: Ttl::For(Duration::MAX), duration: Duration::ZERO };
    let Ended::Done { expires_at: Some(at), .. } = h.end("k", attempt, end).await else { panic!("it ends some day") };
    let last = Timestamp::from_millis(i64::MAX);
    assert_eq!((at, h.record("k").await.expires_at), (last, Some(last)));
    let attempt = h.start("f").await;
    h.ends("f", attempt, fail("e")).await;
    assert_eq!(h.sweep(100).await, 0);
    let soon = Filter { expiring_within: Some(Duration::MAX), ..Filter::default() };
    assert_eq!(h.keys(soon).await, ["k"]);
    Ok(())
}
