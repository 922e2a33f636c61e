//! Results, params and errors at rest, sealed.
#![cfg(all(feature = "encrypt", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use hapax::store::sealed::{KeyRing, SealedStore, sealed_with};
use hapax::store::{Around, Filter, Settlement, Store, StoreFuture};
use hapax::{Action, ActionError, Claimed, Error, Hapax, Json, Key, Timestamp, Ttl};
use serde_json::json;

async fn on(store: &Arc<dyn Store>, ring: KeyRing) -> Hapax {
    Hapax::builder().store(Arc::new(SealedStore::new(store.clone(), ring))).recent_results(0).build().await.unwrap()
}

fn ring(id: &str, byte: u8) -> KeyRing {
    KeyRing::new(id, [byte; 32]).unwrap()
}

#[tokio::test]
async fn nothing_secret_reaches_the_file_and_everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = hapax::store::open(&format!("sqlite:{}", dir.path().join("h.db").display())).await.unwrap();
    let hapax = on(&store, ring("a", 1)).await;
    let action = Action::new("t", "x").params(json!({"card": "SECRET-1"}));
    let first = hapax.execute(&action, |_| async { Ok("SECRET-2".to_string()) }).await.unwrap();
    let again = hapax.execute(&action, |_| async { Ok("never".to_string()) }).await.unwrap();
    assert_eq!((first.value.as_str(), again.value.as_str(), again.is_replay()), ("SECRET-2", "SECRET-2", true));
    let failed = Action::new("f", "x");
    let _ = hapax.execute(&failed, |_| async { Err::<(), _>(ActionError::permanent("SECRET-3")) }).await;
    let doubtful = Action::new("d", "x");
    let Claimed::Started(claim) = hapax.claim(&doubtful).await.unwrap() else { panic!("it is free") };
    let key = claim.key().clone();
    claim.doubt("SECRET-4").await.unwrap();
    assert_eq!(hapax.record(&key).await.unwrap().unwrap().error.as_deref(), Some("SECRET-4"));
    let settlement = Settlement::Happened { result: Json::of("SECRET-5").unwrap(), ttl: Ttl::Never };
    assert_eq!(hapax.settle(&key, settlement).await.unwrap().unwrap().result.unwrap().as_str(), "\"SECRET-5\"");
    hapax.mark_executed(&Key::given("m").unwrap(), "SECRET-6", None).await.unwrap();
    let records = hapax.records(Filter::default(), None, 10).await.unwrap().records;
    let shown = serde_json::to_string(&records).unwrap();
    for n in [1, 2, 3, 5, 6] {
        assert!(shown.contains(&format!("SECRET-{n}")), "{n}: {shown}");
    }
    store.close().await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"SECRET-"), "a secret is in the file");
    }
}

#[tokio::test]
async fn keys_rotate_and_what_was_written_before_sealing_still_reads() {
    let store = hapax::store::open("memory:").await.unwrap();
    let key = |n: u8| Key::given(&format!("k-{n}")).unwrap();
    Hapax::builder().store(store.clone()).build().await.unwrap().mark_executed(&key(0), "plain", None).await.unwrap();
    on(&store, ring("old", 1)).await.mark_executed(&key(1), "old", None).await.unwrap();
    let raw = store.get("default".into(), key(1)).await.unwrap().unwrap();
    assert_eq!(sealed_with(raw.result.unwrap().as_str()), Some("old"));
    assert_eq!(
        (sealed_with("hapax-sealed:1:a:AAAA"), sealed_with("\"plain\""), sealed_with("")),
        (Some("a"), None, None)
    );
    let rotated = on(&store, ring("new", 2).and("old", [1; 32]).unwrap()).await;
    rotated.mark_executed(&key(2), "new", None).await.unwrap();
    for (n, text) in ["plain", "old", "new"].into_iter().enumerate() {
        let record = rotated.record(&key(u8::try_from(n).unwrap())).await.unwrap().unwrap();
        assert_eq!(record.result.unwrap().to_value(), text);
    }
    let forgot = on(&store, ring("new", 2)).await.record(&key(1)).await.unwrap_err();
    assert!(matches!(forgot, Error::Store(_)) && forgot.to_string().contains("\"old\""), "{forgot}");
    let wrong = on(&store, ring("old", 9)).await.record(&key(1)).await.unwrap_err();
    assert!(wrong.to_string().contains("does not open"), "{wrong}");
}

#[tokio::test]
async fn a_sealed_result_cannot_be_moved_to_another_key() {
    let store = hapax::store::open("memory:").await.unwrap();
    let sealed = on(&store, ring("a", 1)).await;
    sealed.mark_executed(&Key::given("mine").unwrap(), "secret", None).await.unwrap();
    let plain = Hapax::builder().store(store.clone()).build().await.unwrap();
    let stolen = plain.record(&Key::given("mine").unwrap()).await.unwrap().unwrap().result.unwrap();
    plain.mark_executed(&Key::given("other").unwrap(), &stolen, None).await.unwrap();
    let error = sealed.record(&Key::given("other").unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("cannot be opened"), "{error}");
    for bad in ["", "a:b", "a b", &"x".repeat(33)] {
        assert!(KeyRing::new(bad, [0; 32]).is_err());
    }
}

#[tokio::test]
async fn a_missing_key_hides_what_it_sealed_and_undoes_nothing() {
    let store = hapax::store::open("memory:").await.unwrap();
    let old = on(&store, ring("old", 1)).await;
    let Claimed::Started(claim) = old.claim(&Action::new("d", "x").params(json!({"card": "SECRET"}))).await.unwrap()
    else {
        panic!("it is free")
    };
    let doubtful = claim.key().clone();
    claim.doubt("SECRET").await.unwrap();
    old.mark_executed(&Key::given("m").unwrap(), "SECRET", None).await.unwrap();
    let new = on(&store, ring("new", 2)).await;
    new.mark_executed(&Key::given("readable").unwrap(), "shown", None).await.unwrap();
    // Listed, with what opens.
    let page = new.records(Filter::default(), None, 10).await.unwrap();
    assert_eq!(page.records.len(), 3);
    for record in page.records {
        match record.key.as_str() {
            "readable" => assert_eq!(record.result.unwrap().to_value(), "shown"),
            "m" => assert!(record.result.is_none(), "{record:?}"),
            _ => assert!(record.params.is_none() && record.error.unwrap().contains("key \"old\""), "why is sealed"),
        }
    }
    // Settled, and told so.
    let settlement = Settlement::Happened { result: Json::of("it did").unwrap(), ttl: Ttl::Never };
    let settled = new.settle(&doubtful, settlement).await.unwrap().unwrap();
    assert_eq!((settled.result.unwrap().to_value(), settled.params), (json!("it did"), None));
    // A replay would need the result: that is an error still.
    assert!(new.record(&Key::given("m").unwrap()).await.is_err());
}

/// A store that is asked for the time of its last answer alone.
#[derive(Debug)]
struct Remembers(Arc<dyn Store>);

impl Around for Remembers {
    fn within(&self) -> &dyn Store {
        &*self.0
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        panic!("that would be a round trip")
    }
    fn recent_now(&self) -> StoreFuture<'_, Timestamp> {
        Box::pin(std::future::ready(Ok(Timestamp::from_millis(7))))
    }
}

#[tokio::test]
async fn a_wrapper_asks_for_the_time_as_it_is_asked() {
    let store = Arc::new(Remembers(hapax::store::open("memory:").await.unwrap()));
    let sealed = SealedStore::new(store, ring("a", 1));
    assert_eq!(Store::recent_now(&sealed).await.unwrap().as_millis(), 7);
}
