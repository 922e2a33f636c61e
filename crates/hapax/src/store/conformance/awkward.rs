//! Awkward values: long, empty, foreign, huge, and full of control characters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::handle::{fail, json, key};
use super::{Subject, Verdict};
use crate::store::{Begin, Counters, End, Ended, Filter, Mark, Marked};
use crate::{AttemptId, Fingerprint, Json, Owner, State, Ttl};

/// Texts that stores have been known to trip over.
pub(super) fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        " leading and trailing ",
        "100 %, 5% _ * ? [a-z] \\ / ' \" ` ; -- ; DROP TABLE records",
        "line\nbreak\r\ntab\tbell\u{7}escape\u{1b}[31m delete\u{7f}",
        "a nul\0in between",
        "Zürich, Ελλάδα, 東京, 🙈, e\u{301} and \u{e9} are not the same",
        "\u{feff}byte order mark, right to left \u{202e}, private \u{e000}, last \u{10ffff}",
        "{\"looks\":\"like JSON\"}",
        "NULL",
        "0",
    ]
    .map(String::from)
    .into();
    texts.push("x".repeat(10_000));
    texts
}

pub(super) async fn keys_of_any_length_are_kept_apart(s: Subject) -> Verdict {
    let h = s.handle();
    let longest = "k".repeat(512);
    let keys = [
        "k",
        "K",
        "kk",
        "!",
        "~",
        "a b".replace(' ', "%20").as_str(),
        &longest,
        &longest[1..],
        &format!("{}K", &longest[1..]),
    ]
    .map(String::from);
    for text in &keys {
        h.completed(text).await;
    }
    for text in &keys {
        assert_eq!(h.record(text).await.key.as_str(), text);
        assert_eq!(h.result(text).await.as_ref(), Some(text));
    }
    assert_eq!(h.all_keys().await, keys);
    Ok(())
}

pub(super) async fn keys_that_look_generated_are_kept_as_they_are(s: Subject) -> Verdict {
    let h = s.handle();
    // A caller may give a key that looks as if it were made from other parts than it was.
    let odd = [
        (":::", None),
        ("a:b:c:d:e", Some("a")),
        ("sig%2dnal:t:u:0123456789abcdef", Some("sig-nal")),
        ("signal:t:u:0123456789abcdef", Some("another")),
        ("signal:t:u:0123456789abcdeF", Some("signal")),
        ("signal:t:u:fedcba9876543210", Some("signal")),
        (":t:u:0123456789abcdef", Some("signal")),
        ("none:t:u:0123456789abcdef", None),
    ];
    for (text, signal) in odd {
        h.start_with(Begin { signal_id: signal.map(String::from), ..h.ask(text) }).await;
    }
    for (text, signal) in odd {
        assert_eq!(h.record(text).await.signal_id.as_deref(), signal, "{text}");
    }
    let by = |signal: &str| h.keys(Filter { signal_id: Some(signal.into()), ..Filter::default() });
    let signals =
        ["signal:t:u:0123456789abcdeF", "signal:t:u:fedcba9876543210", ":t:u:0123456789abcdef"].map(String::from);
    assert_eq!(by("signal").await, signals);
    assert_eq!(by("sig-nal").await, ["sig%2dnal:t:u:0123456789abcdef"]);
    assert_eq!(by("another").await, ["signal:t:u:0123456789abcdef"]);
    assert_eq!(by("none").await, Vec::<String>::new());
    Ok(())
}

pub(super) async fn texts_are_kept_byte_for_byte(s: Subject) -> Verdict {
    let h = s.handle();
    for (n, text) in texts().into_iter().enumerate() {
        let name = format!("k{n}");
        let tags = BTreeMap::from([(text.clone(), text.clone()), ("plain".into(), text.clone())]);
        let begin = Begin {
            signal_id: Some(text.clone()),
            action_type: text.clone(),
            target: text.clone(),
            params: Some(json(&text)),
            owner: Arc::new(Owner { host: text.clone(), pid: 1, label: Some(text.clone()) }),
            tags: tags.clone(),
            ..h.ask(&name)
        };
        let attempt = h.start_with(begin).await;
        h.ends(&name, attempt, End::Doubt { reason: text.clone() }).await;
        assert_eq!(h.record(&name).await.error.as_ref(), Some(&text), "the reason");
        h.ends(&name, attempt, fail(&text)).await;
        let record = h.record(&name).await;
        assert_eq!(record.signal_id.as_ref(), Some(&text), "the signal");
        assert_eq!((&record.action_type, &record.target), (&text, &text), "the action and the target");
        assert_eq!(record.params, Some(json(&text)), "the params");
        assert_eq!((&record.owner.host, record.owner.label.as_ref()), (&text, Some(&text)), "the owner");
        assert_eq!(record.tags, tags, "the tags");
        assert_eq!(record.error.as_ref(), Some(&text), "the error");
        for filter in [
            Filter { signal_id: Some(text.clone()), ..Filter::default() },
            Filter { action_type: Some(text.clone()), ..Filter::default() },
            Filter { target: Some(text.clone()), ..Filter::default() },
        ] {
            assert_eq!(h.keys(filter.clone()).await, std::slice::from_ref(&name), "{filter:?}");
        }
    }
    Ok(())
}

pub(super) async fn json_is_kept_byte_for_byte(s: Subject) -> Verdict {
    let h = s.handle();
    let texts = [
        "null",
        "0",
        "-0.0",
        "1.0",
        "1e400",
        "123456789012345678901234567890.5",
        r#"{ "b" : 1,  "a":2, "b" : 3 }"#,
        r#""\u0000\ud83d\ude48\/""#,
        "[[[[[[[[[[]]]]]]]]]]",
        "{\"long\":[1,\n\t2]}",
    ];
    for (n, text) in texts.into_iter().enumerate() {
        let (json, name) = (Json::parse(text).unwrap(), format!("k{n}"));
        let attempt = h.start_with(Begin { params: Some(json.clone()), ..h.ask(&name) }).await;
        h.ends(&name, attempt, End::Complete { result: json.clone(), ttl: Ttl::Never, duration: Duration::ZERO }).await;
        let record = h.record(&name).await;
        assert_eq!(record.params.as_ref().map(Json::as_str), Some(text));
        assert_eq!(record.result.as_ref().map(Json::as_str), Some(text));
        let mark = Mark { result: json, ..h.marking(&format!("m{n}"), "") };
        let Marked::Recorded { record, .. } = h.store.mark(mark).await.unwrap() else { panic!("it was absent") };
        assert_eq!(record.result.as_ref().map(Json::as_str), Some(text));
    }
    Ok(())
}

pub(super) async fn a_result_of_a_mebibyte_is_kept(s: Subject) -> Verdict {
    let h = s.handle();
    // Digits without a pattern, since a store may compress.
    let digits = (0_u64..65_535).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)));
    let big = json(&digits.chain(["é".repeat(7)]).collect::<String>());
    assert_eq!(big.as_str().len(), 1 << 20);
    let attempt = h.start_with(Begin { params: Some(big.clone()), ..h.ask("k") }).await;
    h.ends("k", attempt, End::Complete { result: big.clone(), ttl: Ttl::Never, duration: Duration::ZERO }).await;
    let record = h.turned_away(h.ask("k")).await;
    assert!(record.result.as_ref() == Some(&big), "the result is another");
    assert!(record.params.as_ref() == Some(&big), "the params are others");
    assert!(h.record("k").await == record, "read otherwise than it turns away");
    assert!(h.census().await.bytes >= 1 << 20, "what it takes is counted");
    Ok(())
}

pub(super) async fn huge_numbers_do_not_wrap(s: Subject) -> Verdict {
    /// A store keeps numbers exactly up to this; beyond, it may stop there or anywhere above.
    const EXACT: u64 = 1 << 52;
    let h = s.handle();
    let attempt = h.start("k").await;
    let end = End::Complete { result: json("v"), ttl: Ttl::Never, duration: Duration::MAX };
    h.ends("k", attempt, end).await;
    assert!(h.record("k").await.duration_ms.unwrap() >= EXACT);
    let mut last = 0;
    for presented in [EXACT - 2, u64::MAX, u64::MAX, 1] {
        h.count(Counters { hits: u64::MAX, misses: EXACT, ..Counters::default() }, vec![(key("k"), presented)]).await;
        let count = h.record("k").await.attempt_count;
        assert!(count >= EXACT - 1 && count >= last, "{count} after {last}");
        last = count;
        let counters = h.counters().await;
        assert!(counters.hits >= EXACT && counters.misses >= EXACT, "{counters:?}");
    }
    let attempt = h.start("e").await;
    let end = End::Fail { error: "e".into(), ttl: Ttl::Never, duration: Duration::from_millis(EXACT - 1) };
    h.ends("e", attempt, end).await;
    assert_eq!(h.record("e").await.duration_ms, Some(EXACT - 1));
    Ok(())
}

pub(super) async fn ids_of_any_bytes_are_kept(s: Subject) -> Verdict {
    let h = s.handle();
    for (n, byte) in [0, 0x7f, 0x80, 0xff].into_iter().enumerate() {
        let name = format!("k{n}");
        let begin = Begin {
            attempt: AttemptId::from_bytes([byte; 16]),
            fingerprint: Fingerprint::from_bytes([byte; 32]),
            ..h.ask(&name)
        };
        let attempt = h.start_with(begin).await;
        let record = h.record(&name).await;
        assert_eq!((record.attempt_id, record.fingerprint), (attempt, Fingerprint::from_bytes([byte; 32])));
        let stranger = AttemptId::from_bytes([byte ^ 1; 16]);
        assert_eq!(h.end(&name, stranger, End::Release).await, Ended::Lost(Some(State::InProgress)));
        h.ends(&name, attempt, End::Release).await;
    }
    Ok(())
}
