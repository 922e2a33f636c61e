//! Queries: filters, order, pages and cursors.

use std::collections::BTreeSet;
use std::time::Duration;

use super::handle::{HOUR, complete, fail};
use super::{Handle, Subject, Verdict};
use crate::store::{Begin, End, Filter, MAX_PAGE, Order, StoreError};
use crate::{State, Ttl};

/// Begins a record of these parts.
async fn put(h: &Handle, text: &str, action: &str, target: &str, signal: Option<&str>) {
    let begin =
        Begin { action_type: action.into(), target: target.into(), signal_id: signal.map(Into::into), ..h.ask(text) };
    h.start_with(begin).await;
}

fn by(action: Option<&str>, target: Option<&str>, signal: Option<&str>, state: Option<State>) -> Filter {
    let text = |t: Option<&str>| t.map(String::from);
    Filter { action_type: text(action), target: text(target), signal_id: text(signal), state, ..Filter::default() }
}

pub(super) async fn records_come_oldest_first(s: Subject) -> Verdict {
    let h = s.handle();
    let names: Vec<String> = (0..30).map(|n| format!("k{:02}", (n * 7) % 30)).collect();
    let mut attempts = Vec::new();
    for name in &names {
        attempts.push(h.start(name).await);
    }
    assert_eq!(h.all_keys().await, names);
    // In whatever order they end.
    for (name, attempt) in names.iter().zip(attempts).rev() {
        h.ends(name, attempt, complete("v")).await;
    }
    assert_eq!((h.all_keys().await, h.keys_in(State::Completed).await), (names.clone(), names));
    Ok(())
}

fn newest_first(filter: Filter) -> Filter {
    Filter { order: Order::NewestFirst, ..filter }
}

pub(super) async fn records_come_newest_first_when_asked_so(s: Subject) -> Verdict {
    let h = s.handle();
    varied(&h).await;
    let newest = async |filter: Filter| h.keys(newest_first(filter)).await;
    assert_eq!(newest(Filter::default()).await, [LONG_2, LONG_1, "4", "3", "2", "1"]);
    assert_eq!(newest(by(Some("create"), None, None, None)).await, [LONG_2, LONG_1, "2", "1"]);
    assert_eq!(newest(by(None, Some("asana"), None, None)).await, ["4", "2"]);
    assert_eq!(newest(by(None, None, Some("s1"), None)).await, [LONG_1, "3", "1"]);
    for (text, ttl) in [("4", 3 * HOUR), ("1", HOUR), ("2", 2 * HOUR)] {
        let attempt = h.record(text).await.attempt_id;
        let end = End::Complete { result: super::handle::json("v"), ttl: Ttl::For(ttl), duration: Duration::ZERO };
        h.ends(text, attempt, end).await;
    }
    let attempt = h.record("3").await.attempt_id;
    h.ends("3", attempt, fail("e")).await;
    assert_eq!(newest(by(None, None, None, Some(State::Completed))).await, ["4", "2", "1"]);
    assert_eq!(newest(by(None, None, None, Some(State::Failed))).await, ["3"]);
    assert_eq!(newest(by(None, None, None, Some(State::InProgress))).await, [LONG_2, LONG_1]);
    let soon = |within| Filter { expiring_within: Some(within), ..Filter::default() };
    assert_eq!(newest(soon(5 * HOUR / 2)).await, ["2", "1"]);
    assert_eq!(newest(Filter { target: Some("trello".into()), ..soon(5 * HOUR / 2) }).await, ["1"]);
    let page = h.page(newest_first(soon(4 * HOUR)), None, 1).await;
    assert_eq!(page.records.first().map(|r| r.key.as_str()), Some("4"));
    let rest = h.page(newest_first(soon(4 * HOUR)), page.next, 9).await;
    assert_eq!(rest.records.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["2", "1"]);
    // What comes while pages are read is newer than all of them: it is on none.
    let page = h.page(newest_first(Filter::default()), None, 3).await;
    h.completed("late").await;
    let rest = h.page(newest_first(Filter::default()), page.next, 9).await;
    assert_eq!(rest.records.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["3", "2", "1"]);
    Ok(())
}

async fn varied(h: &Handle) {
    put(h, "1", "create", "trello", Some("s1")).await;
    put(h, "2", "create", "asana", Some("s2")).await;
    put(h, "3", "delete", "trello", Some("s1")).await;
    put(h, "4", "delete", "asana", None).await;
    // Keys that themselves say what their signal is.
    put(h, "s1:create:trello:0123456789abcdef", "create", "trello", Some("s1")).await;
    put(h, "s2:create:trello:0123456789abcdef", "create", "trello", Some("s2")).await;
}

const LONG_1: &str = "s1:create:trello:0123456789abcdef";
const LONG_2: &str = "s2:create:trello:0123456789abcdef";

pub(super) async fn each_filter_narrows(s: Subject) -> Verdict {
    let h = s.handle();
    varied(&h).await;
    assert_eq!(h.all_keys().await, ["1", "2", "3", "4", LONG_1, LONG_2]);
    assert_eq!(h.keys(by(Some("create"), None, None, None)).await, ["1", "2", LONG_1, LONG_2]);
    assert_eq!(h.keys(by(None, Some("asana"), None, None)).await, ["2", "4"]);
    assert_eq!(h.keys(by(None, None, Some("s1"), None)).await, ["1", "3", LONG_1]);
    for (text, end) in [("1", complete("v")), ("2", fail("e")), ("3", super::handle::doubt("d"))] {
        let attempt = h.record(text).await.attempt_id;
        h.ends(text, attempt, end).await;
    }
    h.start_briefly("lapsed").await;
    s.pass_tick().await;
    assert_eq!(h.keys_in(State::Completed).await, ["1"]);
    assert_eq!(h.keys_in(State::Failed).await, ["2"]);
    assert_eq!(h.keys_in(State::InDoubt).await, ["3", "lapsed"]);
    assert_eq!(h.keys_in(State::InProgress).await, ["4", LONG_1, LONG_2]);
    Ok(())
}

pub(super) async fn filters_narrow_together(s: Subject) -> Verdict {
    let h = s.handle();
    varied(&h).await;
    let attempt = h.record("1").await.attempt_id;
    let end = End::Complete { result: super::handle::json("v"), ttl: Ttl::For(HOUR), duration: Duration::ZERO };
    h.ends("1", attempt, end).await;
    let attempt = h.record("2").await.attempt_id;
    h.ends("2", attempt, complete("v")).await;
    let (create, trello, s1) = (Some("create"), Some("trello"), Some("s1"));
    assert_eq!(h.keys(by(create, trello, None, None)).await, ["1", LONG_1, LONG_2]);
    assert_eq!(h.keys(by(create, trello, s1, None)).await, ["1", LONG_1]);
    assert_eq!(h.keys(by(create, trello, s1, Some(State::Completed))).await, ["1"]);
    assert_eq!(h.keys(by(create, trello, s1, Some(State::InProgress))).await, [LONG_1]);
    assert_eq!(h.keys(by(create, None, None, Some(State::Completed))).await, ["1", "2"]);
    assert_eq!(h.keys(by(None, trello, None, Some(State::InProgress))).await, ["3", LONG_1, LONG_2]);
    assert_eq!(h.keys(by(None, None, s1, Some(State::Failed))).await, Vec::<String>::new());
    let soon = |filter: Filter| Filter { expiring_within: Some(2 * HOUR), ..filter };
    assert_eq!(h.keys(soon(by(create, None, None, None))).await, ["1"]);
    assert_eq!(h.keys(soon(by(create, trello, s1, Some(State::Completed)))).await, ["1"]);
    assert_eq!(h.keys(soon(by(None, None, None, Some(State::InProgress)))).await, Vec::<String>::new());
    assert_eq!(h.keys(soon(by(Some("delete"), None, None, None))).await, Vec::<String>::new());
    Ok(())
}

pub(super) async fn a_filter_finds_texts_and_not_their_likes(s: Subject) -> Verdict {
    let h = s.handle();
    for (n, text) in ["create", "Create", "create ", "crea%", "crea_e", ""].into_iter().enumerate() {
        put(&h, &format!("k{n}"), text, text, Some(text)).await;
    }
    put(&h, "none", "x", "x", None).await;
    for (n, text) in ["create", "Create", "create ", "crea%", "crea_e", ""].into_iter().enumerate() {
        let wanted = [format!("k{n}")];
        assert_eq!(h.keys(by(Some(text), None, None, None)).await, wanted);
        assert_eq!(h.keys(by(None, Some(text), None, None)).await, wanted);
        assert_eq!(h.keys(by(None, None, Some(text), None)).await, wanted);
    }
    for text in ["cre", "%", "*"] {
        assert_eq!(h.keys(by(Some(text), None, None, None)).await, Vec::<String>::new());
        assert_eq!(h.keys(by(None, None, Some(text), None)).await, Vec::<String>::new());
    }
    Ok(())
}

pub(super) async fn records_that_expire_soon_are_found(s: Subject) -> Verdict {
    let h = s.handle();
    for (text, ttl) in [("hours", 3 * HOUR), ("hour", HOUR), ("minute", Duration::from_secs(60))] {
        h.completed_for(text, Ttl::For(ttl)).await;
    }
    h.completed("endless").await;
    h.start("live").await;
    h.doubted("doubt").await;
    let soon = |within: Duration| h.keys(Filter { expiring_within: Some(within), ..Filter::default() });
    assert_eq!(soon(Duration::ZERO).await, Vec::<String>::new());
    assert_eq!(soon(Duration::from_secs(61)).await, ["minute"]);
    assert_eq!(soon(2 * HOUR).await, ["hour", "minute"], "in order of age, not of expiry");
    assert_eq!(soon(Duration::MAX).await, ["hours", "hour", "minute"]);
    if let Some(clock) = &s.clock {
        assert_eq!(soon(Duration::from_millis(59_999)).await, Vec::<String>::new());
        assert_eq!(soon(Duration::from_secs(60)).await, ["minute"], "to the millisecond");
        clock.advance(Duration::from_secs(60));
        assert_eq!(soon(Duration::MAX).await, ["hours", "hour"], "what has expired does not expire soon");
    }
    Ok(())
}

pub(super) async fn pages_follow_without_gaps_or_repeats(s: Subject) -> Verdict {
    let h = s.handle();
    let names: Vec<String> = (0..25).map(|n| format!("k{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let attempt = h.start(name).await;
        if n % 2 == 0 {
            h.ends(name, attempt, complete("v")).await;
        }
    }
    for limit in [1, 2, 7, 24, 25, 26] {
        for (filter, wanted) in [
            (Filter::default(), names.clone()),
            (by(None, None, None, Some(State::Completed)), names.iter().step_by(2).cloned().collect()),
            (by(None, None, None, Some(State::InProgress)), names.iter().skip(1).step_by(2).cloned().collect()),
            (by(Some("create_task"), None, None, None), names.clone()),
        ]
        .into_iter()
        .flat_map(|(filter, wanted)| {
            let reversed = wanted.iter().rev().cloned().collect();
            [(filter.clone(), wanted), (newest_first(filter), reversed)]
        }) {
            let (mut seen, mut cursor) = (Vec::new(), None);
            loop {
                let page = h.page(filter.clone(), cursor, limit).await;
                let full = page.records.len() == limit;
                assert!(full || page.next.is_none(), "a page with a next is full");
                seen.extend(page.records.into_iter().map(|r| r.key.to_string()));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen, wanted, "by {limit}");
        }
    }
    Ok(())
}

pub(super) async fn pages_hold_through_changes_in_between(s: Subject) -> Verdict {
    let h = s.handle();
    for n in 0..20 {
        h.completed(&format!("k{n:02}")).await;
    }
    let (mut seen, mut cursor, mut round) = (Vec::new(), None, 0);
    loop {
        let page = h.page(Filter::default(), cursor, 4).await;
        seen.extend(page.records.iter().map(|r| r.key.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // The last one seen, one seen before, and one not seen yet go; two come.
        let last = page.records.last().unwrap().key.to_string();
        h.remove(&last).await;
        h.remove(&format!("k{:02}", round * 4)).await;
        h.remove(&format!("k{:02}", (round * 4 + 5).min(19))).await;
        if round < 3 {
            h.completed(&format!("new{round}")).await;
            h.completed(&last).await;
        }
        round += 1;
        assert!(round < 50, "it never ends: {seen:?}");
    }
    // Whatever was there all along is listed, once; what was removed and put again is younger.
    let once: BTreeSet<&String> = seen.iter().collect();
    for n in 0..20 {
        let name = format!("k{n:02}");
        let record = h.get(&name).await;
        let untouched = n % 4 != 3 && n % 4 != 0 && n % 4 != 1;
        if untouched {
            assert!(record.is_some() && once.contains(&name), "{name} is missing in {seen:?}");
            assert_eq!(seen.iter().filter(|s| **s == name).count(), 1, "{name} in {seen:?}");
        }
    }
    Ok(())
}

pub(super) async fn a_page_has_no_next_when_nothing_follows(s: Subject) -> Verdict {
    let h = s.handle();
    let empty = h.page(Filter::default(), None, 10).await;
    assert!(empty.records.is_empty() && empty.next.is_none());
    for n in 0..4 {
        h.completed(&format!("k{n}")).await;
    }
    for n in 4..8 {
        h.start(&format!("k{n}")).await;
    }
    let page = h.page(Filter::default(), None, 8).await;
    assert_eq!((page.records.len(), page.next), (8, None));
    // Others follow, but none that fits.
    let page = h.page(by(None, None, None, Some(State::Completed)), None, 4).await;
    assert_eq!((page.records.len(), page.next), (4, None));
    let page = h.page(Filter::default(), None, 7).await;
    assert_eq!(page.records.len(), 7);
    let cursor = page.next.expect("one follows");
    h.ends("k7", h.record("k7").await.attempt_id, End::Release).await;
    let page = h.page(Filter::default(), Some(cursor), 7).await;
    assert!(page.records.is_empty() && page.next.is_none(), "{page:?}");
    Ok(())
}

pub(super) async fn a_limit_out_of_range_is_brought_into_it(s: Subject) -> Verdict {
    let h = s.handle();
    let attempts: Vec<_> = (0..MAX_PAGE + 5).map(|n| h.store.begin(h.ask(&format!("k{n}")))).collect();
    for begun in attempts {
        begun.await.unwrap();
    }
    let page = h.page(Filter::default(), None, 0).await;
    assert_eq!((page.records.len(), page.next.is_some()), (1, true));
    let page = h.page(Filter::default(), None, usize::MAX).await;
    assert_eq!(page.records.len(), MAX_PAGE);
    let page = h.page(Filter::default(), page.next, MAX_PAGE + 1).await;
    assert_eq!((page.records.len(), page.next), (5, None));
    Ok(())
}

pub(super) async fn a_bad_cursor_is_refused(s: Subject) -> Verdict {
    let h = s.handle();
    h.completed("k").await;
    for cursor in ["", "nonsense", "-1", "1.5", "1; DROP TABLE records", "99999999999999999999999999", "\0"] {
        for space in [&h.space, &"never-heard-of".into()] {
            for filter in [Filter::default(), newest_first(Filter::default())] {
                let refused = h.store.query(space.clone(), filter, Some(cursor.into()), 10).await;
                assert!(matches!(refused, Err(StoreError::BadRequest { .. })), "{cursor:?}: {refused:?}");
            }
        }
    }
    Ok(())
}

pub(super) async fn a_taken_over_record_keeps_its_place(s: Subject) -> Verdict {
    let h = s.handle();
    let first = h.doubted("first").await;
    h.completed("second").await;
    let again = h.take_over("first", first).await.unwrap();
    assert_eq!(h.all_keys().await, ["first", "second"]);
    h.ends("first", again, complete("v")).await;
    assert_eq!(h.evict(1).await, 1);
    assert_eq!(h.all_keys().await, ["second"]);
    Ok(())
}
