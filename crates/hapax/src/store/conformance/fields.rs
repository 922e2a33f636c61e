//! Fields: what was given is what is kept, and each field says what its name says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::handle::{HOUR, complete, key};
use super::{Handle, Subject, Verdict};
use crate::store::{Begin, Begun, Counters, End, Ended, Mark, Marked, Settled, Settlement};
use crate::{Fingerprint, Json, Key, Owner, Record, State, Ttl};

fn full(h: &Handle) -> Begin {
    Begin {
        key: Key::given("signal-123:create_task:trello:1557ebfc75da3109").unwrap(),
        signal_id: Some("signal-123".into()),
        action_type: "create_task".into(),
        target: "trello".into(),
        params: Some(Json::parse(r#"{"name":"Task","id":123}"#).unwrap()),
        fingerprint: Fingerprint::from_bytes(std::array::from_fn(|n| n as u8)),
        owner: Arc::new(Owner { host: "worker.example".into(), pid: 4_294_967_295, label: Some("worker-3".into()) }),
        tags: BTreeMap::from([("tenant".into(), "acme".into()), ("trace".into(), "7".into())]),
        ..h.ask("unused")
    }
}

/// The record that a begin makes.
fn expected(begin: &Begin, seen: &Record) -> Record {
    Record {
        key: begin.key.clone(),
        namespace: begin.namespace.to_string(),
        signal_id: begin.signal_id.clone(),
        action_type: begin.action_type.clone(),
        target: begin.target.clone(),
        params: begin.params.clone(),
        fingerprint: begin.fingerprint,
        state: State::InProgress,
        result: None,
        error: None,
        attempt_id: begin.attempt,
        attempts: 1,
        attempt_count: 1,
        started_at: seen.started_at,
        executed_at: None,
        expires_at: None,
        lease_until: seen.lease_until,
        duration_ms: None,
        owner: (*begin.owner).clone(),
        tags: begin.tags.clone(),
    }
}

pub(super) async fn a_begun_record_holds_what_was_given(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    let before = h.store.now().await.unwrap();
    let Begun::Started { started_at, .. } = h.begin(begin.clone()).await else { panic!("it was absent") };
    let after = h.store.now().await.unwrap();
    let seen = h.record(begin.key.as_str()).await;
    assert_eq!(seen, expected(&begin, &seen));
    assert_eq!(seen.started_at, started_at);
    assert!(before <= started_at && started_at <= after, "{before} {started_at} {after}");
    assert_eq!(seen.lease_until, Some(started_at.plus(HOUR)));
    Ok(())
}

pub(super) async fn a_completed_record_holds_its_result_and_times(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    h.start_with(begin.clone()).await;
    s.pass(Duration::from_millis(30)).await;
    let end = End::Complete {
        result: Json::parse(r#"{"card":"c-1"}"#).unwrap(),
        ttl: Ttl::For(HOUR),
        duration: Duration::from_micros(1_234_999),
    };
    let ended = h.end(begin.key.as_str(), begin.attempt, end).await;
    let seen = h.record(begin.key.as_str()).await;
    let at = seen.executed_at.unwrap();
    let mut wanted = expected(&begin, &seen);
    wanted.state = State::Completed;
    wanted.result = Some(Json::parse(r#"{"card":"c-1"}"#).unwrap());
    wanted.executed_at = Some(at);
    wanted.expires_at = Some(at.plus(HOUR));
    wanted.lease_until = None;
    wanted.duration_ms = Some(1234);
    assert_eq!(seen, wanted);
    assert_eq!(ended, Ended::Done { at, expires_at: Some(at.plus(HOUR)) });
    assert!(at.since(seen.started_at) >= Duration::from_millis(30));
    Ok(())
}

pub(super) async fn a_failed_record_holds_its_error_and_times(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    h.start_with(begin.clone()).await;
    let end = End::Fail { error: "403".into(), ttl: Ttl::For(HOUR), duration: Duration::from_millis(7) };
    h.ends(begin.key.as_str(), begin.attempt, end).await;
    let seen = h.record(begin.key.as_str()).await;
    let mut wanted = expected(&begin, &seen);
    wanted.state = State::Failed;
    wanted.error = Some("403".into());
    wanted.executed_at = seen.executed_at;
    wanted.expires_at = Some(seen.executed_at.unwrap().plus(HOUR));
    wanted.lease_until = None;
    wanted.duration_ms = Some(7);
    assert_eq!(seen, wanted);
    Ok(())
}

pub(super) async fn a_taken_over_record_has_a_new_owner_and_start(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    let text = begin.key.to_string();
    h.start_with(begin.clone()).await;
    h.ends(&text, begin.attempt, End::Doubt { reason: "?".into() }).await;
    s.pass(Duration::from_millis(30)).await;
    let owner = Arc::new(Owner { host: "second.example".into(), pid: 1, label: None });
    let again = Begin { take_over: Some(begin.attempt), owner, attempt: h.ask("x").attempt, ..begin.clone() };
    let Begun::Started { started_at, attempts: 2, .. } = h.begin(again.clone()).await else { panic!("in doubt") };
    let seen = h.record(&text).await;
    let mut wanted = expected(&again, &seen);
    (wanted.attempts, wanted.attempt_count) = (2, 2);
    assert_eq!(seen, wanted);
    assert_eq!((seen.started_at, seen.lease_until), (started_at, Some(started_at.plus(HOUR))));
    Ok(())
}

pub(super) async fn a_marked_record_holds_what_was_given(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    let mark = Mark {
        namespace: begin.namespace.clone(),
        key: begin.key.clone(),
        signal_id: begin.signal_id.clone(),
        action_type: begin.action_type.clone(),
        target: begin.target.clone(),
        params: begin.params.clone(),
        fingerprint: begin.fingerprint,
        attempt: begin.attempt,
        owner: begin.owner.clone(),
        result: Json::parse("[1,2]").unwrap(),
        ttl: Ttl::For(HOUR),
        capacity: None,
    };
    let Marked::Recorded { record: seen, .. } = h.store.mark(mark).await.unwrap() else { panic!("it was absent") };
    let mut wanted = expected(&begin, &seen);
    wanted.state = State::Completed;
    wanted.result = Some(Json::parse("[1,2]").unwrap());
    wanted.attempts = 0;
    wanted.executed_at = Some(seen.started_at);
    wanted.expires_at = Some(seen.started_at.plus(HOUR));
    wanted.lease_until = None;
    wanted.tags = BTreeMap::new();
    assert_eq!(*seen, wanted);
    assert_eq!(h.record(begin.key.as_str()).await, *seen);
    Ok(())
}

pub(super) async fn a_settled_record_keeps_what_was_known(s: Subject) -> Verdict {
    let h = s.handle();
    let begin = full(&h);
    let text = begin.key.to_string();
    h.start_with(begin.clone()).await;
    h.ends(&text, begin.attempt, End::Doubt { reason: "?".into() }).await;
    s.pass(Duration::from_millis(30)).await;
    let settlement = Settlement::Happened { result: Json::parse("true").unwrap(), ttl: Ttl::For(HOUR) };
    let Settled::Done(Some(told)) = h.settle(&text, None, settlement).await else { panic!("it was in doubt") };
    let seen = h.record(&text).await;
    let at = seen.executed_at.unwrap();
    let mut wanted = expected(&begin, &seen);
    wanted.state = State::Completed;
    wanted.result = Some(Json::parse("true").unwrap());
    wanted.attempt_id = seen.attempt_id;
    wanted.executed_at = Some(at);
    wanted.expires_at = Some(at.plus(HOUR));
    wanted.lease_until = None;
    assert_eq!((&seen, &seen), (&wanted, &*told));
    assert!(at.since(seen.started_at) >= Duration::from_millis(30), "settled now, begun then");
    Ok(())
}

pub(super) async fn executions_and_presentations_are_counted_apart(s: Subject) -> Verdict {
    let h = s.handle();
    let counts = |record: Record| (record.attempts, record.attempt_count);
    let first = h.doubted("k").await;
    assert_eq!(counts(h.record("k").await), (1, 1));
    // Being turned away counts for nothing here: the manager says what was presented.
    h.turned_away(h.ask("k")).await;
    h.turned_away(h.ask("k")).await;
    assert_eq!(counts(h.record("k").await), (1, 1));
    let second = h.take_over("k", first).await.unwrap();
    assert_eq!(counts(h.record("k").await), (2, 2));
    h.ends("k", second, complete("v")).await;
    h.count(Counters::default(), vec![(key("k"), 40)]).await;
    h.get("k").await;
    assert_eq!(counts(h.record("k").await), (2, 42));
    Ok(())
}

pub(super) async fn optional_fields_may_be_missing(s: Subject) -> Verdict {
    let h = s.handle();
    let bare = Owner { host: String::new(), pid: 0, label: None };
    let begin = Begin { owner: Arc::new(bare), action_type: String::new(), target: String::new(), ..h.ask("k") };
    h.start_with(begin.clone()).await;
    let seen = h.record("k").await;
    assert_eq!(seen, expected(&begin, &seen));
    Ok(())
}
