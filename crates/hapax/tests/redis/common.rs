//! What the tests share: runtimes, servers, actions.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::Begin;
use hapax::store::redis::{RedisOptions, RedisStore};
use hapax::{AttemptId, Fingerprint, Key, Owner};
use hapax_servers::redis::{RedisConfig, RedisServer};

pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

pub fn server() -> RedisServer {
    RedisServer::start(RedisConfig::new()).unwrap()
}

pub async fn open(url: &str) -> RedisStore {
    RedisStore::open(RedisOptions::from_url(url).unwrap()).await.unwrap()
}

pub fn ns() -> Arc<str> {
    "test".into()
}

pub fn key(text: &str) -> Key {
    text.parse().unwrap()
}

pub fn begin(name: &str) -> Begin {
    Begin {
        namespace: ns(),
        key: key(name),
        signal_id: Some(format!("signal-{name}")),
        action_type: "send".into(),
        target: "mail".into(),
        params: None,
        fingerprint: Fingerprint::of(&serde_json::json!({ "n": name })).unwrap(),
        attempt: AttemptId::new(),
        owner: Arc::new(Owner { host: "h".into(), pid: 1, label: None }),
        lease: Duration::from_secs(30),
        tags: BTreeMap::new(),
        take_over: None,
        capacity: None,
    }
}
