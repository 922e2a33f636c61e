//! A server as the store of managers elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{serve, token};
use hapax::store::{Filter, Marked, Settlement, Store, StoreError};
use hapax::{Action, ActionError, Claimed, Error, Hapax, Json, Key, OnDoubt, PolicyPatch, State};
use hapax_http::HttpStore;
use serde_json::json;

async fn manager(address: std::net::SocketAddr, token: Option<&str>) -> Hapax {
    let store = HttpStore::new(&format!("http://{address}"), token).unwrap();
    Hapax::builder().store(Arc::new(store)).namespace("team").build().await.unwrap()
}

#[tokio::test]
async fn a_manager_works_against_a_server_as_on_a_store_of_its_own() {
    let server = serve(&token("t", "team", "admin")).await;
    let (one, two) = (manager(server.address, Some("t")).await, manager(server.address, Some("t")).await);
    let action = Action::new("create", "trello").signal("s").params(json!({"n": 1}));
    let running = tokio::spawn({
        let (one, action) = (one.clone(), action.clone());
        async move {
            let run = |_| async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok("card".to_string())
            };
            one.execute(&action, run).await
        }
    });
    let begun = Key::generate(&action).unwrap();
    while two.record(&begun).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Another process waits and gets the result.
    let joined =
        two.execute(&action, |_| async { Err::<String, _>(ActionError::permanent("never runs")) }).await.unwrap();
    assert_eq!((joined.value.as_str(), joined.is_replay()), ("card", true));
    assert!(!running.await.unwrap().unwrap().is_replay());
    let other = action.clone().key(Key::generate(&action).unwrap()).params(json!(2));
    assert!(matches!(two.claim(&other).await, Err(Error::ParamsMismatch { .. })));

    let failed = two.execute(&Action::new("f", "t"), |_| async { Err::<(), _>(ActionError::permanent("no")) }).await;
    assert!(matches!(failed, Err(Error::Action { .. })));
    let released =
        two.execute(&Action::new("r", "t"), |_| async { Err::<(), _>(ActionError::retryable("later")) }).await;
    assert!(released.unwrap_err().is_retryable());
    assert!(two.record(&Key::generate(&Action::new("r", "t")).unwrap()).await.unwrap().is_none());

    // Doubt, settled from afar, and taken over.
    let doubtful = Action::new("d", "t");
    let key = Key::generate(&doubtful).unwrap();
    let Claimed::Started(claim) = one.claim(&doubtful).await.unwrap() else { panic!("it is free") };
    claim.doubt("lost").await.unwrap();
    assert!(matches!(two.claim(&doubtful).await, Err(Error::InDoubt { .. })));
    let rerun = doubtful.clone().policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));
    let Claimed::Started(claim) = two.claim(&rerun).await.unwrap() else { panic!("it runs again") };
    assert_eq!(claim.context().attempts(), 2);
    claim.doubt("again").await.unwrap();
    let settled = one
        .settle(&key, Settlement::Happened { result: Json::of(&7).unwrap(), ttl: Duration::from_secs(60).into() })
        .await;
    assert_eq!(settled.unwrap().unwrap().state, State::Completed);

    let marked = one.mark_executed(&Key::given("m%/ü".trim_end_matches('ü')).unwrap(), &1, None).await.unwrap();
    assert!(matches!(marked, Marked::Recorded { .. }));
    assert_eq!(two.keys(Filter::default()).await.unwrap().len(), 4);
    assert_eq!(
        two.records(Filter { state: Some(State::Failed), ..Filter::default() }, None, 10).await.unwrap().records.len(),
        1
    );
    assert!(two.clear_key(&key).await.unwrap() && !two.clear_key(&key).await.unwrap());
    assert!(two.stats().await.unwrap().executions >= 4);
    assert_eq!(two.info().await.unwrap().census.failed, 1);
    assert_eq!(two.cleanup_expired().await.unwrap(), 0);
    assert_eq!(two.cleanup_oldest_entries(1).await.unwrap(), 1);
    two.reset_stats().await.unwrap();
    assert_eq!(two.clear_all().await.unwrap(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_lease_is_kept_over_http_and_lapses_without_heartbeats() {
    let server = serve(&token("t", "team", "admin")).await;
    let hapax = manager(server.address, Some("t")).await;
    let action = Action::new("slow", "t").policy(PolicyPatch::new().lease(Duration::from_secs(1)));
    let run = |_| async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok(1)
    };
    assert_eq!(hapax.execute(&action, run).await.unwrap().value, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_address_token_or_namespace_says_so() {
    let server = serve(&token("t", "team", "write")).await;
    let stranger = manager(server.address, Some("x")).await.stats().await.unwrap_err();
    assert!(stranger.to_string().contains("does not know this token: correct HAPAX_TOKEN"), "{stranger}");
    let store = HttpStore::new(&format!("http://{}", server.address), Some("t")).unwrap();
    let lost =
        Hapax::builder().store(Arc::new(store)).namespace("other").build().await.unwrap().stats().await.unwrap_err();
    assert!(lost.to_string().contains("opens the namespace team"), "{lost}");
    for bad in ["ftp://a", "http://u:p@a", "nonsense", "http://a?b"] {
        assert!(matches!(HttpStore::new(bad, None), Err(StoreError::BadRequest { .. })), "{bad}");
    }
    server.stop().await;
    let gone = HttpStore::new("http://127.0.0.1:9", None).unwrap();
    let error = gone.get("default".into(), Key::given("k").unwrap()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}
