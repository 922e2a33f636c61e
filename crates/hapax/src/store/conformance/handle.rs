//! A store as the cases talk to it: short words for what they do again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::store::{
    Beat, Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
};
use crate::{AttemptId, Fingerprint, Json, Key, Owner, Record, State, Ttl};

/// The namespace of all cases that do not look at namespaces.
pub(super) const SPACE: &str = "conformance";

/// A lease that no case outlives.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// A handle on the store, in one namespace.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) store: Arc<dyn Store>,
    pub(super) space: Arc<str>,
    pub(super) tick: Duration,
}

pub(super) fn key(text: &str) -> Key {
    Key::given(text).unwrap()
}

pub(super) fn json(text: &str) -> Json {
    Json::of(text).unwrap()
}

/// A result that says `text`.
pub(super) fn complete(text: &str) -> End {
    End::Complete { result: json(text), ttl: Ttl::Never, duration: Duration::from_millis(12) }
}

/// An error that says `text`.
pub(super) fn fail(text: &str) -> End {
    End::Fail { error: text.into(), ttl: Ttl::Never, duration: Duration::from_millis(12) }
}

pub(super) fn doubt(text: &str) -> End {
    End::Doubt { reason: text.into() }
}

pub(super) fn happened(text: &str) -> Settlement {
    Settlement::Happened { result: json(text), ttl: Ttl::Never }
}

pub(super) fn owner(label: &str) -> Arc<Owner> {
    Arc::new(Owner { host: "host.example".into(), pid: std::process::id(), label: Some(label.into()) })
}

impl Handle {
    pub(super) fn new(store: Arc<dyn Store>, tick: Duration) -> Self {
        Self { store, space: SPACE.into(), tick }
    }

    /// The same store, another tenant.
    pub(super) fn within(&self, space: &str) -> Self {
        Self { space: space.into(), ..self.clone() }
    }

    /// A request to begin, to be changed as the case wants.
    pub(super) fn ask(&self, text: &str) -> Begin {
        Begin {
            namespace: self.space.clone(),
            key: key(text),
            signal_id: None,
            action_type: "create_task".into(),
            target: "trello".into(),
            params: None,
            fingerprint: Fingerprint::from_bytes([7; 32]),
            attempt: AttemptId::new(),
            owner: owner("first"),
            lease: HOUR,
            liveness: crate::store::Liveness::Process,
            tags: BTreeMap::new(),
            take_over: None,
            capacity: None,
        }
    }

    pub(super) async fn begin(&self, begin: Begin) -> Begun {
        self.store.begin(begin).await.unwrap()
    }

    /// Begins what must be free to begin.
    pub(super) async fn start_with(&self, begin: Begin) -> AttemptId {
        let (attempt, text) = (begin.attempt, begin.key.clone());
        match self.begin(begin).await {
            Begun::Started { .. } => attempt,
            Begun::Exists(record) => panic!("{text} must begin, but there is {record:?}"),
        }
    }

    /// A live attempt.
    pub(super) async fn start(&self, text: &str) -> AttemptId {
        self.start_with(self.ask(text)).await
    }

    /// A live attempt whose lease is a tick.
    pub(super) async fn start_briefly(&self, text: &str) -> AttemptId {
        let lease = self.tick;
        self.start_with(Begin { lease, ..self.ask(text) }).await
    }

    /// The record that turns a begin away.
    pub(super) async fn turned_away(&self, begin: Begin) -> Record {
        match self.begin(begin).await {
            Begun::Exists(record) => *record,
            started @ Begun::Started { .. } => panic!("it must be turned away, but {started:?}"),
        }
    }

    /// Takes over by a new attempt; `None` when turned away.
    pub(super) async fn take_over(&self, text: &str, from: AttemptId) -> Option<AttemptId> {
        let begin = Begin { take_over: Some(from), owner: owner("second"), ..self.ask(text) };
        let attempt = begin.attempt;
        matches!(self.begin(begin).await, Begun::Started { .. }).then_some(attempt)
    }

    pub(super) async fn end(&self, text: &str, attempt: AttemptId, end: End) -> Ended {
        self.store.end(self.space.clone(), key(text), attempt, end).await.unwrap()
    }

    /// Ends what must be this attempt's to end.
    pub(super) async fn ends(&self, text: &str, attempt: AttemptId, end: End) {
        let ended = self.end(text, attempt, end).await;
        assert!(matches!(ended, Ended::Done { .. }), "the end of {text} must count, but {ended:?}");
    }

    /// A recorded result; returns its attempt.
    pub(super) async fn completed(&self, text: &str) -> AttemptId {
        self.completed_for(text, Ttl::Never).await
    }

    /// A recorded result that expires.
    pub(super) async fn completed_for(&self, text: &str, ttl: Ttl) -> AttemptId {
        let attempt = self.start(text).await;
        let end = End::Complete { result: json(text), ttl, duration: Duration::from_millis(12) };
        self.ends(text, attempt, end).await;
        attempt
    }

    /// A recorded error.
    pub(super) async fn failed(&self, text: &str) -> AttemptId {
        let attempt = self.start(text).await;
        self.ends(text, attempt, fail(text)).await;
        attempt
    }

    /// A doubt; returns the attempt that left it.
    pub(super) async fn doubted(&self, text: &str) -> AttemptId {
        let attempt = self.start(text).await;
        self.ends(text, attempt, doubt("left by the case")).await;
        attempt
    }

    pub(super) async fn beat(&self, text: &str, attempt: AttemptId, lease: Duration) -> Beat {
        let beats = self.store.heartbeat(self.space.clone(), vec![(key(text), attempt, lease)]).await.unwrap();
        let [beat] = beats.as_slice() else { panic!("one question, and {beats:?}") };
        *beat
    }

    pub(super) async fn settle(&self, text: &str, attempt: Option<AttemptId>, settlement: Settlement) -> Settled {
        self.store.settle(self.space.clone(), key(text), attempt, settlement).await.unwrap()
    }

    /// A request to mark, to be changed as the case wants.
    pub(super) fn marking(&self, text: &str, result: &str) -> Mark {
        Mark {
            namespace: self.space.clone(),
            key: key(text),
            signal_id: None,
            action_type: "create_task".into(),
            target: "trello".into(),
            params: None,
            fingerprint: Fingerprint::from_bytes([0; 32]),
            attempt: AttemptId::new(),
            owner: owner("by hand"),
            result: json(result),
            ttl: Ttl::Never,
            capacity: None,
        }
    }

    pub(super) async fn mark(&self, text: &str, result: &str) -> Marked {
        self.store.mark(self.marking(text, result)).await.unwrap()
    }

    pub(super) async fn get(&self, text: &str) -> Option<Record> {
        self.store.get(self.space.clone(), key(text)).await.unwrap().map(|record| *record)
    }

    /// The record that must be there.
    pub(super) async fn record(&self, text: &str) -> Record {
        self.get(text).await.unwrap_or_else(|| panic!("{text} must be there"))
    }

    pub(super) async fn state(&self, text: &str) -> Option<State> {
        self.get(text).await.map(|record| record.state)
    }

    /// The recorded result as text.
    pub(super) async fn result(&self, text: &str) -> Option<String> {
        self.get(text).await?.result.map(|json| json.to().unwrap())
    }

    pub(super) async fn remove(&self, text: &str) -> Removed {
        self.store.remove(self.space.clone(), key(text)).await.unwrap()
    }

    pub(super) async fn clear(&self) -> u64 {
        self.store.clear(self.space.clone()).await.unwrap()
    }

    pub(super) async fn sweep(&self, limit: usize) -> u64 {
        self.store.sweep(limit).await.unwrap()
    }

    pub(super) async fn evict(&self, count: u64) -> u64 {
        self.store.evict_oldest(self.space.clone(), count).await.unwrap()
    }

    pub(super) async fn page(&self, filter: Filter, cursor: Option<String>, limit: usize) -> Page {
        self.store.query(self.space.clone(), filter, cursor, limit).await.unwrap()
    }

    /// All keys that fit, page by page.
    pub(super) async fn keys(&self, filter: Filter) -> Vec<String> {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.page(filter.clone(), cursor, 100).await;
            keys.extend(page.records.iter().map(|record| record.key.to_string()));
            cursor = page.next;
            if cursor.is_none() {
                return keys;
            }
        }
    }

    pub(super) async fn all_keys(&self) -> Vec<String> {
        self.keys(Filter::default()).await
    }

    pub(super) async fn keys_in(&self, state: State) -> Vec<String> {
        self.keys(Filter { state: Some(state), ..Filter::default() }).await
    }

    pub(super) async fn count(&self, counters: Counters, presented: Vec<(Key, u64)>) {
        self.store.count(self.space.clone(), counters, presented).await.unwrap();
    }

    pub(super) async fn counters(&self) -> Counters {
        self.store.counters(self.space.clone()).await.unwrap()
    }

    pub(super) async fn census(&self) -> Census {
        self.store.census(self.space.clone()).await.unwrap()
    }

    /// The census as (in progress, in doubt, completed, failed).
    pub(super) async fn tally(&self) -> (u64, u64, u64, u64) {
        let census = self.census().await;
        (census.in_progress, census.in_doubt, census.completed, census.failed)
    }
}
