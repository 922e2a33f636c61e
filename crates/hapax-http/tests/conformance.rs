//! The library's conformance suite, with a server between the suite and the store.
//!
//! A token opens one namespace, so the subject has a client for each namespace that the suite uses. The server's
//! clock is the suite's, in process. What a server keeps to itself by design is named below, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use common::{Running, serve_on, token};
use hapax::store::conformance::Subject;
use hapax::store::memory::MemoryStore;
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{
    Begin, Begun, Census, Counters, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store,
    StoreError, StoreFuture,
};
use hapax::{AttemptId, Key, ManualClock, Record, Timestamp};
use hapax_http::HttpStore;

/// Those that the suite writes to. Others are refused, as a client without their token is.
const SPACES: [&str; 9] = ["conformance", "other", "a", "A", "ab", "b", "a:b", "elsewhere", "never-heard-of"];

/// A client for each namespace.
#[derive(Debug)]
struct Spaces(BTreeMap<&'static str, LazyStore>);

/// Made when it is first asked, since most cases need one of them.
type LazyStore = LazyLock<HttpStore, Box<dyn FnOnce() -> HttpStore + Send>>;

impl Spaces {
    fn of(address: std::net::SocketAddr) -> Self {
        let client = |space| {
            let open: Box<dyn FnOnce() -> HttpStore + Send> =
                Box::new(move || HttpStore::new(&format!("http://{address}"), Some(space)).unwrap());
            (space, LazyStore::new(open))
        };
        Self(SPACES.map(client).into())
    }

    fn at(&self, space: &str) -> &HttpStore {
        self.0.get(space).unwrap_or_else(|| panic!("no token for the namespace {space:?}"))
    }

    fn any(&self) -> &HttpStore {
        self.at("conformance")
    }
}

/// What is presented the server counts by itself, once a second: without that a record is compared.
fn uncounted(mut record: Box<Record>) -> Box<Record> {
    record.attempt_count = record.attempts.max(1);
    record
}

impl Store for Spaces {
    fn location(&self) -> &str {
        self.any().location()
    }
    fn now(&self) -> StoreFuture<'_, Timestamp> {
        self.any().now()
    }
    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        Box::pin(async move {
            Ok(match self.at(&begin.namespace.clone()).begin(begin).await? {
                Begun::Exists(record) => Begun::Exists(uncounted(record)),
                started => started,
            })
        })
    }
    fn heartbeat(
        &self,
        namespace: Arc<str>,
        beats: Vec<(Key, AttemptId, Duration)>,
    ) -> StoreFuture<'_, Vec<hapax::store::Beat>> {
        self.at(&namespace.clone()).heartbeat(namespace, beats)
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        self.at(&namespace.clone()).end(namespace, key, attempt, end)
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        Box::pin(async move {
            Ok(match self.at(&namespace.clone()).settle(namespace, key, attempt, settlement).await? {
                Settled::Done(record) => Settled::Done(record.map(uncounted)),
                Settled::NotInDoubt(record) => Settled::NotInDoubt(record.map(uncounted)),
            })
        })
    }
    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            Ok(match self.at(&mark.namespace.clone()).mark(mark).await? {
                Marked::Recorded { record, expired, evicted } => {
                    Marked::Recorded { record: uncounted(record), expired, evicted }
                }
                Marked::Exists(record) => Marked::Exists(uncounted(record)),
            })
        })
    }
    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Box::pin(async move { Ok(self.at(&namespace.clone()).get(namespace, key).await?.map(uncounted)) })
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Box::pin(async move {
            Ok(match self.at(&namespace.clone()).remove(namespace, key).await? {
                Removed::Kept(record) => Removed::Kept(uncounted(record)),
                other => other,
            })
        })
    }
    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.at(&namespace.clone()).clear(namespace)
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.any().sweep(limit)
    }
    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.at(&namespace.clone()).evict_oldest(namespace, count)
    }
    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            let mut page = self.at(&namespace.clone()).query(namespace, filter, cursor, limit).await?;
            for record in &mut page.records {
                record.attempt_count = record.attempts.max(1);
            }
            Ok(page)
        })
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.at(&namespace.clone()).count(namespace, counters, presented)
    }
    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.at(&namespace.clone()).counters(namespace)
    }
    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.at(&namespace.clone()).reset_counters(namespace)
    }
    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.at(&namespace.clone()).census(namespace)
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        self.at(&namespace.clone()).changed(namespace, key, attempt, at_most)
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            for store in self.0.values() {
                store.close().await?;
            }
            Ok::<_, StoreError>(())
        })
    }
}

async fn subject(store: Arc<dyn Store>, clock: ManualClock) -> Subject {
    let tokens: Vec<_> = SPACES.iter().map(|space| token(space, space, "admin")).collect();
    let running: Running = serve_on(&tokens.concat(), store).await;
    let address = running.address;
    Subject::new(Arc::new(Spaces::of(address)))
        .clock(clock)
        .opened_again_by(move || async move { Arc::new(Spaces::of(address)) as Arc<dyn Store> })
        .keeping(running)
        .skipping(
            &["capacity", "races::a_full_store_never_goes_over_its_limit"],
            "the limit on records is the server's own",
        )
        .skipping(
            &[
                "counting::counters_add_up",
                "counting::counters_are_reset",
                "counting::every_counter_is_kept",
                "counting::presentations_are_added_to_their_records",
                "counting::presentations_of_absent_keys_are_ignored",
                "races::counters_of_many_add_up",
                "fields::executions_and_presentations_are_counted_apart",
                "awkward::huge_numbers_do_not_wrap",
                "closing::another_handle_sees_everything",
                "namespaces::counters_and_census_belong_to_their_namespace",
            ],
            "the server counts by itself",
        )
        .skipping(&["expiry::a_sweep_keeps_to_its_limit"], "the server sweeps all at once")
        .skipping(&["expiry::the_longest_time_to_live_is_kept"], "what outlives a century is kept for ever")
        .skipping(
            &["leases::a_lease_of_any_length_is_taken", "leases::a_lease_lapses_at_its_very_millisecond"],
            "a lease is 1 s to 24 h, as for every manager",
        )
        .skipping(
            &[
                "awkward::texts_are_kept_byte_for_byte",
                "queries::a_filter_finds_texts_and_not_their_likes",
                "fields::optional_fields_may_be_missing",
            ],
            "an action's type and target are 1 to 512 bytes, as for every manager",
        )
}

async fn memory() -> Subject {
    let clock = ManualClock::new();
    subject(Arc::new(MemoryStore::with_clock(Arc::new(clock.clone()))), clock).await
}

async fn sqlite() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = SqliteOptions::new(directory.path().join("hapax.db"));
    let options = options.durability(Durability::Buffered).clock(Arc::new(clock.clone()));
    subject(Arc::new(SqliteStore::open(options).unwrap()), clock).await.keeping(directory)
}

mod over_memory {
    hapax::conformance_tests!(super::memory);
}

mod over_sqlite {
    hapax::conformance_tests!(super::sqlite);
}
