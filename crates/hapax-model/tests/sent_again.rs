//! Requests that did their work, lost their answer and are sent again after others have had the key: each is told that
//! nobody knows, and changes nothing of the others'.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::{Begin, Begun, End, Ended, Liveness, Mark, Marked, Removed, Settled, Settlement, Store, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, State, Ttl};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::process::local;
use hapax_servers::proxy::{Fault, Proxy};
use hapax_servers::redis::{RedisConfig, RedisServer};

/// A store whose answers get lost, and the same one by another way.
struct Rig {
    runtime: tokio::runtime::Runtime,
    proxy: Proxy,
    store: Arc<dyn Store>,
    direct: Arc<dyn Store>,
}

fn ns() -> Arc<str> {
    "again".into()
}

fn key(name: &str) -> Key {
    Key::given(name).unwrap()
}

fn owner() -> Arc<Owner> {
    Arc::new(Owner { host: "host".into(), pid: 1, label: None })
}

fn begin(name: &str) -> Begin {
    Begin {
        namespace: ns(),
        key: key(name),
        signal_id: None,
        action_type: "act".into(),
        target: "target".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: owner(),
        lease: Duration::from_secs(60),
        liveness: Liveness::Process,
        tags: BTreeMap::new(),
        take_over: None,
        capacity: None,
    }
}

fn mark(name: &str) -> Mark {
    Mark {
        namespace: ns(),
        key: key(name),
        signal_id: None,
        action_type: "act".into(),
        target: "target".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: owner(),
        result: Json::of(name).unwrap(),
        ttl: Ttl::Never,
        capacity: None,
    }
}

fn complete(name: &str) -> End {
    End::Complete { result: Json::of(name).unwrap(), ttl: Ttl::Never, duration: Duration::ZERO }
}

fn happened(name: &str) -> Settlement {
    Settlement::Happened { result: Json::of(name).unwrap(), ttl: Ttl::Never }
}

/// How an attempt id stands in a request: as text, or as bytes.
type Form = fn(AttemptId) -> Vec<u8>;

fn as_text(attempt: AttemptId) -> Vec<u8> {
    attempt.to_string().replace('-', "").into_bytes()
}

fn as_bytes(attempt: AttemptId) -> Vec<u8> {
    attempt.as_bytes().to_vec()
}

impl Rig {
    fn new(url: &str, port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let proxy = Proxy::start(local(port)).unwrap();
        let through = url.replace(&format!(":{port}"), &format!(":{}", proxy.port()));
        let open = |url: &str| runtime.block_on(hapax::store::open(url)).unwrap();
        let (store, direct) = (open(&through), open(url));
        Self { proxy, store, direct, runtime }
    }

    async fn start(&self, name: &str) -> AttemptId {
        let begin = begin(name);
        let attempt = begin.attempt;
        assert!(matches!(self.direct.begin(begin).await.unwrap(), Begun::Started { .. }), "{name}");
        attempt
    }

    async fn doubt(&self, name: &str, attempt: AttemptId) {
        let ended = self.direct.end(ns(), key(name), attempt, End::Doubt { reason: "?".into() }).await.unwrap();
        assert!(matches!(ended, Ended::Done { .. }), "{name}");
    }

    async fn state(&self, name: &str) -> Option<(State, AttemptId)> {
        self.direct.get(ns(), key(name)).await.unwrap().map(|r| (r.state, r.attempt_id))
    }

    /// Asks; the first answer to a request with these bytes is lost, and before the next sending comes `meanwhile`.
    async fn again<T: std::fmt::Debug + Send + 'static>(
        &self,
        containing: &[u8],
        ask: impl FnOnce(&dyn Store) -> hapax::store::StoreFuture<'_, T> + Send + 'static,
        meanwhile: impl Future<Output = ()>,
    ) -> Result<T, StoreError> {
        let sprung = self.proxy.sprung();
        self.proxy.trap(Fault::Outage, containing);
        let store = self.store.clone();
        let asked = tokio::spawn(async move { ask(&*store).await });
        while self.proxy.sprung() == sprung {
            assert!(!asked.is_finished(), "answered: {:?}", asked.await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        meanwhile.await;
        self.proxy.restore();
        asked.await.unwrap()
    }

    /// Waits until the first sending has done its work.
    async fn is(&self, name: &str, state: Option<State>) {
        while self.state(name).await.map(|(state, _)| state) != state {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn nobody_knows<T: std::fmt::Debug>(name: &str, answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::AnswerLost { .. })), "{name}: {answer:?}");
}

fn sent_again(url: &str, port: u16, form: Form) {
    let rig = Rig::new(url, port);
    rig.runtime.block_on(async {
        let others = async |name: &str| {
            let other = rig.start(name).await;
            (State::InProgress, other)
        };

        // Ends: recorded and cleared; freed; left in doubt and settled.
        let name = "complete";
        let attempt = rig.start(name).await;
        let mut other = None;
        let said = rig
            .again(&form(attempt), move |s| s.end(ns(), key(name), attempt, complete(name)), async {
                rig.is(name, Some(State::Completed)).await;
                assert!(matches!(rig.direct.remove(ns(), key(name)).await.unwrap(), Removed::Removed));
                other = Some(others(name).await);
            })
            .await;
        nobody_knows(name, said);
        assert_eq!(rig.state(name).await, other);

        let name = "release";
        let attempt = rig.start(name).await;
        let said = rig
            .again(&form(attempt), move |s| s.end(ns(), key(name), attempt, End::Release), async {
                rig.is(name, None).await;
                other = Some(others(name).await);
            })
            .await;
        nobody_knows(name, said);
        assert_eq!(rig.state(name).await, other);

        let name = "doubt";
        let attempt = rig.start(name).await;
        let end = End::Doubt { reason: "?".into() };
        let said = rig
            .again(&form(attempt), move |s| s.end(ns(), key(name), attempt, end), async {
                rig.is(name, Some(State::InDoubt)).await;
                let settled = rig.direct.settle(ns(), key(name), None, Settlement::NotHappened).await.unwrap();
                assert!(matches!(settled, Settled::Done(None)));
            })
            .await;
        nobody_knows(name, said);

        // Settlements that name their attempt.
        for (name, settlement) in [("happened", happened("happened")), ("not happened", Settlement::NotHappened)] {
            let name = name.replace(' ', "-");
            let attempt = rig.start(&name).await;
            rig.doubt(&name, attempt).await;
            let (of, first) = (key(&name), settlement.clone());
            let said = rig
                .again(&form(attempt), move |s| s.settle(ns(), of, Some(attempt), first), async {
                    if matches!(settlement, Settlement::Happened { .. }) {
                        rig.is(&name, Some(State::Completed)).await;
                        rig.direct.remove(ns(), key(&name)).await.unwrap();
                    }
                    rig.is(&name, None).await;
                    let next = others(&name).await.1;
                    rig.doubt(&name, next).await;
                    other = Some((State::InDoubt, next));
                })
                .await;
            nobody_knows(&name, said);
            assert_eq!(rig.state(&name).await, other);
        }

        // One by key alone: the next doubt of that key is not what it was about.
        let name = "by-key-alone";
        let attempt = rig.start(name).await;
        rig.doubt(name, attempt).await;
        let said = rig
            .again(name.as_bytes(), move |s| s.settle(ns(), key(name), None, happened(name)), async {
                rig.is(name, Some(State::Completed)).await;
                rig.direct.remove(ns(), key(name)).await.unwrap();
                let next = others(name).await.1;
                rig.doubt(name, next).await;
                other = Some((State::InDoubt, next));
            })
            .await;
        nobody_knows(name, said);
        assert_eq!(rig.state(name).await, other);

        let name = "mark";
        let marking = mark(name);
        let said = rig
            .again(&form(marking.attempt), move |s| s.mark(marking), async {
                rig.is(name, Some(State::Completed)).await;
                rig.direct.remove(ns(), key(name)).await.unwrap();
                other = Some(others(name).await);
            })
            .await;
        nobody_knows(name, said);
        assert_eq!(rig.state(name).await, other);

        // A begin that began, and whose lease has lapsed by now: it cannot be brought back.
        let name = "begin";
        let beginning = begin(name);
        let attempt = beginning.attempt;
        let said = rig
            .again(&form(attempt), move |s| s.begin(beginning), async {
                rig.is(name, Some(State::InProgress)).await;
                let beat = vec![(key(name), attempt, Duration::from_millis(1))];
                rig.direct.heartbeat(ns(), beat).await.unwrap();
                rig.is(name, Some(State::InDoubt)).await;
            })
            .await;
        nobody_knows(name, said);

        // A take-over is the same one, whether its first sending came through or not.
        for fault in [Fault::BeforeRequest, Fault::BeforeAnswer] {
            let name = format!("take-over-{fault:?}");
            let attempt = rig.start(&name).await;
            rig.doubt(&name, attempt).await;
            let beginning = Begin { take_over: Some(attempt), ..begin(&name) };
            let sprung = rig.proxy.sprung();
            rig.proxy.trap(fault, &form(beginning.attempt));
            let begun = rig.store.begin(beginning).await;
            assert!(matches!(begun, Ok(Begun::Started { attempts: 2, .. })), "{name}: {begun:?}");
            assert_eq!(rig.proxy.sprung(), sprung + 1);
        }

        // Whichever time did it, these are so: the key is free, the mark is there, the result is recorded.
        let name = "freed";
        let attempt = rig.start(name).await;
        let said =
            rig.again(&form(attempt), move |s| s.end(ns(), key(name), attempt, End::Release), rig.is(name, None)).await;
        assert!(matches!(said, Ok(Ended::Done { .. })), "{said:?}");
        let name = "marked";
        let marking = mark(name);
        let done = rig.is(name, Some(State::Completed));
        let said = rig.again(&form(marking.attempt), move |s| s.mark(marking), done).await;
        assert!(matches!(said, Ok(Marked::Recorded { .. })), "{said:?}");
        let name = "completed";
        let attempt = rig.start(name).await;
        let done = rig.is(name, Some(State::Completed));
        let end = complete(name);
        let said = rig.again(&form(attempt), move |s| s.end(ns(), key(name), attempt, end), done).await;
        assert!(matches!(said, Ok(Ended::Done { .. })), "{said:?}");
    });
}

#[test]
fn what_redis_is_sent_again_after_others_had_the_key_is_told_that_nobody_knows() {
    let redis = RedisServer::start(RedisConfig::new()).unwrap();
    sent_again(&redis.url(), redis.port(), as_text);
}

#[test]
fn what_postgres_is_sent_again_after_others_had_the_key_is_told_that_nobody_knows() {
    let postgres = PostgresServer::start(Disk::Fast, Tls::Off).unwrap();
    sent_again(&postgres.url("postgres"), postgres.port(), as_bytes);
}
