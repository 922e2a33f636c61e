//! What a store may hold in a record's place: bytes of Redis, texts of
//! PostgreSQL, sealed results. All is read, or is an error.
//!
//! The first line says which; sealed results are also proven: what opens is what
//! was sealed.

use std::sync::Arc;

use hapax::fuzzing::{postgres_text, redis_record};
use hapax::store::memory::MemoryStore;
use hapax::store::sealed::{KeyRing, SealedStore};
use hapax::store::{Mark, Store, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Ttl};

use crate::{block_on, until};

pub fn fuzz(data: &[u8]) {
    let (kind, rest) = until(data, b'\n');
    match kind {
        b"redis" => match redis_record(rest) {
            Ok(record) => {
                // Whatever it is, it can be shown.
                let json = serde_json::to_string(&record).unwrap();
                assert!(!json.is_empty());
            }
            Err(message) => assert!(!message.is_empty()),
        },
        b"postgres" => {
            let text = String::from_utf8_lossy(rest);
            let there = postgres_text(&text).0;
            assert!(!there.contains('\0'));
            assert_eq!(postgres_text(&there).1, text, "a text comes back");
            // What another has written is read in some way.
            let _ = postgres_text(&text).1;
        }
        _ => block_on(sealed(&String::from_utf8_lossy(rest))),
    }
}

/// What [`sealed`] has sealed in the seed of the corpus.
const PLAIN: &str = "{\"charge\":\"ch_1\"}";

async fn sealed(text: &str) {
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let ring = KeyRing::new("k1", [7; 32]).unwrap();
    let store = SealedStore::new(memory.clone(), ring);
    let (namespace, key): (Arc<str>, _) = ("default".into(), Key::given("k").unwrap());
    let mark = |result| Mark {
        namespace: namespace.clone(),
        key: key.clone(),
        signal_id: None,
        action_type: "a".into(),
        target: "t".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([0; 32]),
        attempt: AttemptId::from_bytes([1; 16]),
        owner: Arc::new(Owner { host: "h".into(), pid: 1, label: None }),
        result,
        ttl: Ttl::Never,
        capacity: None,
    };
    // As if somebody had written it past the seal.
    let Ok(raw) = Json::parse(text) else { return };
    memory.mark(mark(raw.clone())).await.unwrap();
    match store.get(namespace.clone(), key.clone()).await {
        Ok(record) => {
            let seen = record.unwrap().result.unwrap();
            assert!(seen.as_str() == raw.as_str() || seen.as_str() == PLAIN, "{text:?} opened as {seen:?}");
        }
        Err(StoreError::Damaged { message, .. }) => assert!(message.contains("result"), "{message}"),
        Err(other) => panic!("{other}"),
    }

    // And through the seal: whatever the result, it comes back.
    let through = SealedStore::new(Arc::new(MemoryStore::new()), KeyRing::new("k1", [7; 32]).unwrap());
    through.mark(mark(raw.clone())).await.unwrap();
    let record = through.get(namespace.clone(), key.clone()).await.unwrap().unwrap();
    assert_eq!(record.result.unwrap().as_str(), raw.as_str());
}
