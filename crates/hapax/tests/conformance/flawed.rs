//! Stores that break one rule each: the suite and the model must find every one of them out.

use std::sync::Arc;
use std::time::Duration;

use hapax::store::conformance::{Subject, check, model};
use hapax::store::memory::MemoryStore;
use hapax::store::{
    Around, Beat, Begin, Begun, Counters, End, Ended, Filter, Mark, Marked, Order, Page, Removed, Settled, Settlement,
    Store, StoreError, StoreFuture,
};
use hapax::{AttemptId, Key, ManualClock, State};

/// The rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A lost end is said to be done.
    LostIsDone,
    /// A doubt is taken over by whoever asks.
    AnyTakeOver,
    /// Every heartbeat is said to renew.
    BeatsRevive,
    /// A removal takes doubts too.
    DoubtsRemoved,
    /// The epoch never changes.
    EpochStands,
    /// The last record of a page is not listed.
    PagesLoseOne,
    /// Records come oldest first, whatever is asked for.
    OrderIgnored,
    /// A filter on the state is not looked at.
    StateIgnored,
    /// Presentations are not counted.
    NothingPresented,
    /// A sweep says that it removed one more.
    SweepBoasts,
    /// A settlement names no attempt.
    SettlesAny,
    /// The tags are lost.
    TagsLost,
    /// The limit on records is not looked at.
    NoLimit,
    /// A waiter waits to the end of its time.
    NeverWakes,
    /// A closed store goes on.
    NeverCloses,
}

#[derive(Debug)]
struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
}

impl Flawed {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }
}

impl Around for Flawed {
    fn within(&self) -> &dyn Store {
        &self.inner
    }
    // The default of a store that says nothing.
    fn default_max_entries(&self) -> Option<u64> {
        None
    }
    fn location(&self) -> &str {
        "flawed:"
    }
    fn epoch(&self) -> Option<u64> {
        if self.is(Flaw::EpochStands) { Some(1) } else { self.inner.epoch() }
    }
    fn begin(&self, mut begin: Begin) -> StoreFuture<'_, Begun> {
        if self.is(Flaw::TagsLost) {
            begin.tags.clear();
        }
        if self.is(Flaw::NoLimit) {
            begin.capacity = None;
        }
        Box::pin(async move {
            if self.is(Flaw::AnyTakeOver)
                && begin.take_over.is_some()
                && let Some(record) = self.inner.get(begin.namespace.clone(), begin.key.clone()).await?
            {
                begin.take_over = Some(record.attempt_id);
            }
            self.inner.begin(begin).await
        })
    }
    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        let count = beats.len();
        let answer = self.inner.heartbeat(namespace, beats);
        if self.is(Flaw::BeatsRevive) {
            return Box::pin(async move { Ok(vec![Beat::Renewed; count]) });
        }
        answer
    }
    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        Box::pin(async move {
            let ended = self.inner.end(namespace, key, attempt, end).await?;
            let at = self.inner.now().await?;
            Ok(if self.is(Flaw::LostIsDone) { Ended::Done { at, expires_at: None } } else { ended })
        })
    }
    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        let attempt = attempt.filter(|_| !self.is(Flaw::SettlesAny));
        self.inner.settle(namespace, key, attempt, settlement)
    }
    fn mark(&self, mut mark: Mark) -> StoreFuture<'_, Marked> {
        if self.is(Flaw::NoLimit) {
            mark.capacity = None;
        }
        self.inner.mark(mark)
    }
    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Box::pin(async move {
            match self.inner.remove(namespace.clone(), key.clone()).await? {
                Removed::Kept(record) if self.is(Flaw::DoubtsRemoved) && record.state == State::InDoubt => {
                    self.inner.settle(namespace, key, None, Settlement::NotHappened).await?;
                    Ok(Removed::Removed)
                }
                removed => Ok(removed),
            }
        })
    }
    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        let boast = u64::from(self.is(Flaw::SweepBoasts));
        Box::pin(async move { Ok(self.inner.sweep(limit).await? + boast) })
    }
    fn query(
        &self,
        namespace: Arc<str>,
        mut filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        if self.is(Flaw::StateIgnored) {
            filter.state = None;
        }
        if self.is(Flaw::OrderIgnored) {
            filter.order = Order::OldestFirst;
        }
        Box::pin(async move {
            let mut page = self.inner.query(namespace, filter, cursor, limit).await?;
            if self.is(Flaw::PagesLoseOne) && page.next.is_some() {
                page.records.pop();
            }
            Ok(page)
        })
    }
    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        let presented = if self.is(Flaw::NothingPresented) { Vec::new() } else { presented };
        self.inner.count(namespace, counters, presented)
    }
    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        if self.is(Flaw::NeverWakes) {
            return Box::pin(async move {
                tokio::time::sleep(at_most).await;
                Ok::<_, StoreError>(())
            });
        }
        self.inner.changed(namespace, key, attempt, at_most)
    }
    fn close(&self) -> StoreFuture<'_, ()> {
        if self.is(Flaw::NeverCloses) {
            return Box::pin(async { Ok(()) });
        }
        self.inner.close()
    }
}

fn flawed(flaw: Flaw) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Subject> + Send>> {
    move || {
        Box::pin(async move {
            let clock = ManualClock::new();
            let inner = MemoryStore::with_clock(Arc::new(clock.clone()));
            Subject::new(Arc::new(Flawed { inner, flaw })).clock(clock)
        })
    }
}

/// Whether the case does not hold for the store.
fn fails(case: &str, flaw: Flaw) -> bool {
    std::panic::catch_unwind(|| check(case, flawed(flaw))).is_err()
}

const FOUND_OUT_BY: [(Flaw, &str); 15] = [
    (Flaw::LostIsDone, "transitions::a_stale_attempt_cannot_complete"),
    (Flaw::AnyTakeOver, "transitions::only_the_attempt_in_doubt_is_taken_over"),
    (Flaw::BeatsRevive, "leases::a_heartbeat_cannot_revive_a_lapsed_lease"),
    (Flaw::DoubtsRemoved, "removal::a_removal_keeps_what_is_live_or_in_doubt"),
    (Flaw::EpochStands, "notice::the_epoch_changes_when_a_result_is_removed"),
    (Flaw::OrderIgnored, "queries::records_come_newest_first_when_asked_so"),
    (Flaw::PagesLoseOne, "queries::pages_follow_without_gaps_or_repeats"),
    (Flaw::StateIgnored, "queries::each_filter_narrows"),
    (Flaw::NothingPresented, "counting::presentations_are_added_to_their_records"),
    (Flaw::SweepBoasts, "expiry::a_sweep_removes_only_what_has_expired"),
    (Flaw::SettlesAny, "settling::a_settlement_that_names_another_attempt_changes_nothing"),
    (Flaw::TagsLost, "fields::a_begun_record_holds_what_was_given"),
    (Flaw::NoLimit, "capacity::a_full_store_refuses_when_told_to"),
    (Flaw::NeverWakes, "notice::a_waiter_learns_of_a_completion"),
    (Flaw::NeverCloses, "closing::a_closed_store_says_so_to_every_call"),
];

#[test]
fn a_store_that_breaks_a_rule_is_found_out_by_the_case_for_it() {
    for (flaw, case) in FOUND_OUT_BY {
        assert!(!fails(case, Flaw::None), "{case} fails for a store without flaws");
        assert!(fails(case, flaw), "{case} holds although {flaw:?}");
    }
}

#[test]
fn a_store_that_breaks_a_rule_is_found_out_by_the_model() {
    for (flaw, _) in FOUND_OUT_BY {
        // What is about waiting and closing is not the model's.
        if matches!(flaw, Flaw::NeverWakes | Flaw::NeverCloses) {
            continue;
        }
        let found = (0..40).find_map(|seed| model::run(flawed(flaw), seed, 150).err());
        let text = found.unwrap_or_else(|| panic!("nobody notices {flaw:?}"));
        let steps = text.lines().filter(|line| line.starts_with("   ") && line.contains('{')).count();
        assert!(text.starts_with("seed ") && steps <= 20, "{flaw:?} is not cut down to its steps: {text}");
    }
}
