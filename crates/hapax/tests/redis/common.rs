//! What the tests share: runtimes, servers, actions.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use hapax::store::redis::{RedisOptions, RedisStore};
use hapax::store::{Begin, End};
use hapax::{AttemptId, Fingerprint, Hapax, Json, Key, Owner, Ttl};
use hapax_servers::redis::{RedisConfig, RedisServer};

pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

/// How many calls of scripts it has had.
pub fn script_calls(redis: &RedisServer) -> u64 {
    let info = redis.ask(&["INFO", "commandstats"]).unwrap();
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:")?.split(['=', ',']).nth(1)?.parse().ok();
    info.lines().find_map(calls).unwrap_or(0)
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
        liveness: hapax::store::Liveness::Process,
        lease: Duration::from_secs(30),
        tags: BTreeMap::new(),
        take_over: None,
        capacity: None,
    }
}

/// A completed end with this text as its result.
pub fn complete(text: &str) -> End {
    End::Complete {
        result: Json::of(text).unwrap(),
        ttl: Ttl::For(Duration::from_secs(600)),
        duration: Duration::from_millis(1),
    }
}

/// A manager on its own handle.
pub async fn manager(url: &str) -> Hapax {
    Hapax::builder().store_url(url).namespace("test").build().await.unwrap()
}

/// The effects that actions had in the world, each with the value it returned and when.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Effects>>);

type Effects = HashMap<String, Vec<(u64, Instant)>>;

impl Ledger {
    /// Has an effect; its value is unlike any other.
    pub fn effect(&self, key: &str) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let value = NEXT.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().entry(key.into()).or_default().push((value, Instant::now()));
        value
    }

    /// Keys with more than one effect, and when they had the first.
    pub fn doubled(&self) -> Vec<(String, Instant)> {
        let ledger = self.0.lock().unwrap();
        ledger
            .iter()
            .filter(|(_, effects)| effects.len() > 1)
            .map(|(key, effects)| (key.clone(), effects[0].1))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// All that is logged in this process, from the first call on.
pub fn log() -> &'static Mutex<Vec<String>> {
    static LOG: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    LOG.get_or_init(|| {
        tracing::subscriber::set_global_default(Collector).unwrap();
        Mutex::default()
    })
}

struct Collector;

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

impl tracing::Subscriber for Collector {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut fields = Fields("span".into());
        span.record(&mut fields);
        keep(fields.0);
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        keep(fields.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn keep(line: String) {
    let mut log = log().lock().unwrap();
    if log.len() < 200_000 {
        log.push(line);
    }
}
