//! One record's life, as the first thing to look at when all else fails.

use std::time::Duration;

use hapax::store::{Begun, Counters, End, Ended, Filter, Store};
use hapax::{Json, State, Ttl};

use crate::common::{begin, key, ns, open, run, script_calls, server};

#[test]
fn a_record_begins_ends_is_found_and_goes() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        let first = begin("a");
        let attempt = first.attempt;
        assert!(matches!(store.begin(first.clone()).await.unwrap(), Begun::Started { attempts: 1, .. }));
        assert!(
            matches!(store.begin(first).await.unwrap(), Begun::Started { attempts: 1, .. }),
            "the same begin again"
        );
        let Begun::Exists(record) = store.begin(begin("a")).await.unwrap() else { panic!("begun twice") };
        assert_eq!(
            (record.state, record.attempt_id, record.signal_id.as_deref()),
            (State::InProgress, attempt, Some("signal-a"))
        );
        let end = End::Complete {
            result: Json::of(&"done").unwrap(),
            ttl: Ttl::For(Duration::from_secs(60)),
            duration: Duration::from_millis(7),
        };
        let ended = store.end(ns(), key("a"), attempt, end).await.unwrap();
        assert!(matches!(ended, Ended::Done { expires_at: Some(_), .. }), "{ended:?}");
        let record = store.get(ns(), key("a")).await.unwrap().unwrap();
        assert_eq!((record.state, record.duration_ms), (State::Completed, Some(7)));
        assert_eq!(record.result.as_ref().unwrap().as_str(), "\"done\"");
        let page = store.query(ns(), Filter::default(), None, 10).await.unwrap();
        assert_eq!((page.records.len(), page.next), (1, None));
        let census = store.census(ns()).await.unwrap();
        assert_eq!((census.completed, census.in_progress, census.oldest), (1, 0, Some(record.started_at)));
        assert_eq!(store.clear(ns()).await.unwrap(), 1);
        assert!(store.get(ns(), key("a")).await.unwrap().is_none());
        store.close().await.unwrap();
    });
}

#[test]
fn presentations_of_many_keys_share_a_few_calls() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        for n in 0..200 {
            assert!(matches!(store.begin(begin(&format!("k{n}"))).await.unwrap(), Begun::Started { .. }));
        }
        let before = script_calls(&redis);
        let presented = (0..200).map(|n| (key(&format!("k{n}")), 3)).collect();
        store.count(ns(), Counters::default(), presented).await.unwrap();
        let calls = script_calls(&redis) - before;
        assert!((1..20).contains(&calls), "{calls} calls");
        for n in 0..200 {
            let record = store.get(ns(), key(&format!("k{n}"))).await.unwrap().unwrap();
            assert_eq!(record.attempt_count, 4, "k{n}");
        }
    });
}
