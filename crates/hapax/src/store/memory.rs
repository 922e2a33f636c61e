//! The `memory:` store: for tests, for caches, and the fastest path. It keeps
//! nothing beyond the process.
//!
//! One lock over everything: each transition is short and awaits nothing, so a
//! plain mutex is both the simplest and, at the speed of a hash table, no limit
//! that a caller meets. `sequence` gives every record its place in the order of
//! age; a queue in that order serves queries and eviction. Removing a record
//! leaves its place behind, stale: the queue is rid of those when they prevail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Beat, Begin, Begun, Capacity, Census, Counters, End, Ended, Filter, MAX_PAGE, Mark, Marked, OnFull, Order, Page,
    Removed, Settled, Settlement, Store, StoreError, StoreFuture,
};
use crate::flight::KeyHash;
use crate::{AttemptId, Clock, Fingerprint, Json, Key, Owner, Record, State, SystemClock, Timestamp};

/// The most records that a store without a given limit keeps.
const DEFAULT_MAX_ENTRIES: u64 = 10_000;

/// A store in this process's memory.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    data: Mutex<Data>,
    epoch: AtomicU64,
    closed: AtomicBool,
    // One for all keys: a waiter looks again whatever ended, which costs it a hash lookup.
    ended: Notify,
    waiters: AtomicU64,
}

#[derive(Debug, Default)]
struct Data {
    spaces: Spaces,
    /// The records by age; a place is stale when its record is gone or younger.
    order: VecDeque<Place>,
    /// Records in all namespaces.
    len: usize,
    sequence: u64,
    /// No record expires before this: until then a search for expired ones is in vain.
    first_expiry: Option<Timestamp>,
}

#[derive(Debug)]
struct Place {
    sequence: u64,
    namespace: Arc<str>,
    key: Key,
}

#[derive(Debug, Default)]
struct Space {
    // Boxed: a table that grows moves its rows.
    rows: HashMap<Key, Box<Row>, KeyHash>,
    counters: Counters,
}

/// A record as it is kept: a [`Record`] whose namespace and owner are shared by all that have the same,
/// so that a record costs few allocations.
#[derive(Debug)]
struct Kept {
    key: Key,
    namespace: Arc<str>,
    signal_id: Option<String>,
    action_type: String,
    target: String,
    params: Option<Json>,
    fingerprint: Fingerprint,
    state: State,
    result: Option<Json>,
    error: Option<String>,
    attempt_id: AttemptId,
    attempts: u64,
    attempt_count: u64,
    started_at: Timestamp,
    executed_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    lease_until: Option<Timestamp>,
    duration_ms: Option<u64>,
    owner: Arc<Owner>,
    tags: BTreeMap<String, String>,
}

impl Kept {
    fn to_record(&self) -> Record {
        Record {
            key: self.key.clone(),
            namespace: self.namespace.to_string(),
            signal_id: self.signal_id.clone(),
            action_type: self.action_type.clone(),
            target: self.target.clone(),
            params: self.params.clone(),
            fingerprint: self.fingerprint,
            state: self.state,
            result: self.result.clone(),
            error: self.error.clone(),
            attempt_id: self.attempt_id,
            attempts: self.attempts,
            attempt_count: self.attempt_count,
            started_at: self.started_at,
            executed_at: self.executed_at,
            expires_at: self.expires_at,
            lease_until: self.lease_until,
            duration_ms: self.duration_ms,
            owner: (*self.owner).clone(),
            tags: self.tags.clone(),
        }
    }
}

#[derive(Debug)]
struct Row {
    record: Kept,
    sequence: u64,
    /// The steady time at which the lease lapses.
    lease_steady: i64,
}

/// The two clocks, read once per transition.
#[derive(Clone, Copy)]
struct Now {
    wall: Timestamp,
    steady: i64,
}

impl Row {
    fn is_expired(&self, now: Now) -> bool {
        self.record.state.is_recorded() && self.record.expires_at.is_some_and(|at| at <= now.wall)
    }

    /// Writes down a lapse that nobody has written down yet.
    fn settle_lapse(&mut self, now: Now) {
        if self.record.state == State::InProgress && self.lease_steady <= now.steady {
            self.doubt("its lease lapsed without a heartbeat".into());
        }
    }

    fn doubt(&mut self, reason: String) {
        self.record.state = State::InDoubt;
        self.record.error = Some(reason);
        self.record.lease_until = None;
    }
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store on the host's clocks.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty store on a clock of yours.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            data: Mutex::new(Data::default()),
            epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            ended: Notify::new(),
            waiters: AtomicU64::new(0),
        }
    }

    fn time(&self) -> Now {
        Now { wall: self.clock.now(), steady: self.clock.steady_millis() }
    }

    /// Does one transition, as a future that is ready.
    fn step<T: Send + 'static>(&self, f: impl FnOnce(&mut Data, Now) -> Result<T, StoreError>) -> StoreFuture<'_, T> {
        let answer = if self.closed.load(Ordering::Acquire) {
            Err(StoreError::Closed { store: "memory:".into() })
        } else {
            let now = self.time();
            f(&mut self.data.lock(), now)
        };
        Box::pin(std::future::ready(answer))
    }

    fn raise_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn wake(&self) {
        // SeqCst with the waiter's: either it sees the record's end or we see it wait.
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.ended.notify_waiters();
        }
    }

    /// Makes room for one more record.
    fn make_room(&self, data: &mut Data, now: Now, capacity: Option<Capacity>) -> Result<(u64, u64), StoreError> {
        let Some(Capacity { max_entries, on_full }) = capacity else { return Ok((0, 0)) };
        if (data.len as u64) < max_entries {
            return Ok((0, 0));
        }
        let expired = data.remove_expired(usize::MAX, now);
        if (data.len as u64) < max_entries {
            return Ok((expired, 0));
        }
        if on_full == OnFull::Reject {
            return Err(StoreError::Capacity { store: "memory:".into(), max_entries });
        }
        let fifth = usize::try_from((max_entries / 5).max(1)).unwrap_or(usize::MAX);
        let evicted = data.remove_where(fifth, |row| row.record.state.is_recorded());
        if evicted > 0 {
            self.raise_epoch();
        }
        Ok((expired, evicted))
    }
}

impl Data {
    fn space(&mut self, namespace: &Arc<str>) -> &mut Space {
        self.spaces.entry_ref(namespace).or_default()
    }

    /// The row under a key, brought up to date; an expired one is gone.
    fn row(&mut self, namespace: &Arc<str>, key: &Key, now: Now) -> Option<&mut Row> {
        let rows = &mut self.spaces.get_mut(&**namespace)?.rows;
        if rows.get(key)?.is_expired(now) {
            rows.remove(key);
            self.len -= 1;
            return None;
        }
        let row = rows.get_mut(key)?;
        row.settle_lapse(now);
        Some(row)
    }

    fn insert(&mut self, record: Kept, lease_steady: i64) {
        self.sequence += 1;
        let sequence = self.sequence;
        let (key, namespace) = (record.key.clone(), record.namespace.clone());
        self.order.push_back(Place { sequence, namespace: namespace.clone(), key: key.clone() });
        self.space(&namespace).rows.insert(key, Box::new(Row { record, sequence, lease_steady }));
        self.len += 1;
        if self.order.len() > 2 * self.len + 1024 {
            let spaces = &self.spaces;
            self.order.retain(|place| row_at(spaces, place).is_some());
        }
    }

    fn remove(&mut self, namespace: &Arc<str>, key: &Key) -> Option<Box<Row>> {
        let row = self.spaces.get_mut(&**namespace)?.rows.remove(key)?;
        self.len -= 1;
        Some(row)
    }

    /// Notes that a record expires then.
    fn expires(&mut self, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.first_expiry = Some(self.first_expiry.map_or(at, |first| first.min(at)));
        }
    }

    fn remove_expired(&mut self, limit: usize, now: Now) -> u64 {
        if self.first_expiry.is_none_or(|first| first > now.wall) {
            return 0;
        }
        let gone = self.remove_where(limit, |row| row.is_expired(now));
        if (gone as usize) < limit {
            let rows = self.spaces.values().flat_map(|space| space.rows.values());
            self.first_expiry = rows.filter_map(|row| row.record.expires_at).min();
        }
        gone
    }

    /// Removes the oldest rows that are so, at most `limit`.
    fn remove_where(&mut self, limit: usize, is_so: impl Fn(&Row) -> bool) -> u64 {
        let mut gone = 0;
        let mut order = std::mem::take(&mut self.order);
        // Places in front are popped, so that evicting the oldest costs nothing
        // for those that stay.
        let mut kept = VecDeque::new();
        while gone < limit {
            let Some(place) = order.pop_front() else { break };
            match row_at(&self.spaces, &place).map(&is_so) {
                None => {}
                Some(true) => {
                    self.remove(&place.namespace, &place.key);
                    gone += 1;
                }
                Some(false) => kept.push_back(place),
            }
        }
        while let Some(place) = kept.pop_back() {
            order.push_front(place);
        }
        self.order = order;
        gone as u64
    }
}

/// The row at a place; none when the place is stale.
fn row_at<'a>(spaces: &'a Spaces, place: &Place) -> Option<&'a Row> {
    spaces.get(&*place.namespace)?.rows.get(&place.key).map(|row| &**row).filter(|row| row.sequence == place.sequence)
}

type Spaces = HashMap<Arc<str>, Space, foldhash::fast::RandomState>;

fn fresh(begin: Begin, now: Now) -> Kept {
    Kept {
        key: begin.key,
        namespace: begin.namespace,
        signal_id: begin.signal_id,
        action_type: begin.action_type,
        target: begin.target,
        params: begin.params,
        fingerprint: begin.fingerprint,
        state: State::InProgress,
        result: None,
        error: None,
        attempt_id: begin.attempt,
        attempts: 1,
        attempt_count: 1,
        started_at: now.wall,
        executed_at: None,
        expires_at: None,
        lease_until: Some(now.wall.plus(begin.lease)),
        duration_ms: None,
        owner: begin.owner,
        tags: begin.tags,
    }
}

fn fits(record: &Kept, filter: &Filter, now: Now) -> bool {
    filter.action_type.as_ref().is_none_or(|a| *a == record.action_type)
        && filter.target.as_ref().is_none_or(|t| *t == record.target)
        && filter.signal_id.as_ref().is_none_or(|s| record.signal_id.as_ref() == Some(s))
        && filter.state.is_none_or(|s| s == record.state)
        && filter.expiring_within.is_none_or(|d| record.expires_at.is_some_and(|at| at <= now.wall.plus(d)))
}

impl Store for MemoryStore {
    fn location(&self) -> &str {
        "memory:"
    }

    fn default_max_entries(&self) -> Option<u64> {
        Some(DEFAULT_MAX_ENTRIES)
    }

    fn clock(&self) -> Option<&dyn Clock> {
        Some(&*self.clock)
    }

    fn now(&self) -> StoreFuture<'_, Timestamp> {
        Box::pin(std::future::ready(Ok(self.clock.now())))
    }

    fn epoch(&self) -> Option<u64> {
        Some(self.epoch.load(Ordering::Acquire))
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        self.step(|data, now| {
            let lease_steady = now.steady.saturating_add(millis(begin.lease));
            if let Some(row) = data.row(&begin.namespace, &begin.key, now) {
                let record = &mut row.record;
                if record.state != State::InDoubt || begin.take_over != Some(record.attempt_id) {
                    return Ok(Begun::Exists(Box::new(record.to_record())));
                }
                record.state = State::InProgress;
                record.error = None;
                record.attempt_id = begin.attempt;
                record.attempts += 1;
                record.attempt_count += 1;
                record.started_at = now.wall;
                record.lease_until = Some(now.wall.plus(begin.lease));
                record.owner = begin.owner;
                let attempts = record.attempts;
                row.lease_steady = lease_steady;
                return Ok(Begun::Started { attempts, started_at: now.wall, expired: 0, evicted: 0 });
            }
            let (expired, evicted) = self.make_room(data, now, begin.capacity)?;
            data.insert(fresh(begin, now), lease_steady);
            Ok(Begun::Started { attempts: 1, started_at: now.wall, expired, evicted })
        })
    }

    fn heartbeat(&self, namespace: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        self.step(|data, now| {
            let mut answers = Vec::with_capacity(beats.len());
            for (key, attempt, lease) in beats {
                answers.push(match data.row(&namespace, &key, now) {
                    Some(row) if row.record.attempt_id == attempt && row.record.state == State::InProgress => {
                        row.lease_steady = now.steady.saturating_add(millis(lease));
                        row.record.lease_until = Some(now.wall.plus(lease));
                        Beat::Renewed
                    }
                    Some(row) if row.record.attempt_id == attempt && row.record.state == State::InDoubt => Beat::Lapsed,
                    _ => Beat::Lost,
                });
            }
            Ok(answers)
        })
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        let answer = self.step(|data, now| {
            let Some(row) = data.row(&namespace, &key, now) else { return Ok(Ended::Lost(None)) };
            let record = &mut row.record;
            if record.attempt_id != attempt {
                return Ok(Ended::Lost(Some(record.state)));
            }
            if record.state.is_recorded() {
                // The same end again: its first answer was lost on the way.
                let same = matches!(
                    (&end, record.state),
                    (End::Complete { .. }, State::Completed) | (End::Fail { .. }, State::Failed)
                );
                return Ok(match record.executed_at.filter(|_| same) {
                    Some(at) => Ended::Done { at, expires_at: record.expires_at },
                    None => Ended::Lost(Some(record.state)),
                });
            }
            let expires_at;
            match end {
                End::Complete { result, ttl, duration } => {
                    record.state = State::Completed;
                    record.result = Some(result);
                    record.error = None;
                    expires_at = ttl.expires_at(now.wall);
                    record.duration_ms = Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
                }
                End::Fail { error, ttl, duration } => {
                    record.state = State::Failed;
                    record.error = Some(error);
                    expires_at = ttl.expires_at(now.wall);
                    record.duration_ms = Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
                }
                End::Release => {
                    data.remove(&namespace, &key);
                    return Ok(Ended::Done { at: now.wall, expires_at: None });
                }
                End::Doubt { reason } => {
                    row.doubt(reason);
                    return Ok(Ended::Done { at: now.wall, expires_at: None });
                }
            }
            record.executed_at = Some(now.wall);
            record.expires_at = expires_at;
            record.lease_until = None;
            data.expires(expires_at);
            Ok(Ended::Done { at: now.wall, expires_at })
        });
        self.wake();
        answer
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        let answer = self.step(|data, now| {
            let Some(row) = data.row(&namespace, &key, now) else { return Ok(Settled::NotInDoubt(None)) };
            let record = &mut row.record;
            if record.state != State::InDoubt || attempt.is_some_and(|a| a != record.attempt_id) {
                return Ok(Settled::NotInDoubt(Some(Box::new(record.to_record()))));
            }
            match settlement {
                Settlement::NotHappened => {
                    data.remove(&namespace, &key);
                    Ok(Settled::Done(None))
                }
                Settlement::Happened { result, ttl } => {
                    record.state = State::Completed;
                    record.result = Some(result);
                    record.error = None;
                    record.executed_at = Some(now.wall);
                    record.expires_at = ttl.expires_at(now.wall);
                    // The settlement fences off the attempt: its late answer must not count.
                    record.attempt_id = AttemptId::new();
                    let record = Box::new(record.to_record());
                    data.expires(record.expires_at);
                    Ok(Settled::Done(Some(record)))
                }
            }
        });
        self.wake();
        answer
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        let answer = self.step(|data, now| {
            if let Some(row) = data.row(&mark.namespace, &mark.key, now) {
                let record = &mut row.record;
                if record.state != State::InDoubt {
                    return Ok(Marked::Exists(Box::new(record.to_record())));
                }
                record.state = State::Completed;
                record.result = Some(mark.result);
                record.error = None;
                record.attempt_id = mark.attempt;
                record.executed_at = Some(now.wall);
                record.expires_at = mark.ttl.expires_at(now.wall);
                let record = Box::new(record.to_record());
                data.expires(record.expires_at);
                return Ok(Marked::recorded(record));
            }
            let (expired, evicted) = self.make_room(data, now, mark.capacity)?;
            let kept = Kept {
                key: mark.key,
                namespace: mark.namespace,
                signal_id: mark.signal_id,
                action_type: mark.action_type,
                target: mark.target,
                params: mark.params,
                fingerprint: mark.fingerprint,
                state: State::Completed,
                result: Some(mark.result),
                error: None,
                attempt_id: mark.attempt,
                attempts: 0,
                attempt_count: 1,
                started_at: now.wall,
                executed_at: Some(now.wall),
                expires_at: mark.ttl.expires_at(now.wall),
                lease_until: None,
                duration_ms: None,
                owner: mark.owner,
                tags: BTreeMap::new(),
            };
            let record = kept.to_record();
            data.insert(kept, 0);
            data.expires(record.expires_at);
            Ok(Marked::Recorded { record: Box::new(record), expired, evicted })
        });
        self.wake();
        answer
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        self.step(|data, now| Ok(data.row(&namespace, &key, now).map(|row| Box::new(row.record.to_record()))))
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        self.step(|data, now| match data.row(&namespace, &key, now) {
            None => Ok(Removed::Absent),
            Some(row) if !row.record.state.is_recorded() => Ok(Removed::Kept(Box::new(row.record.to_record()))),
            Some(_) => {
                data.remove(&namespace, &key);
                self.raise_epoch();
                Ok(Removed::Removed)
            }
        })
    }

    fn clear(&self, namespace: Arc<str>) -> StoreFuture<'_, u64> {
        self.step(|data, now| {
            // Expired ones go too, but were absent already.
            let counted = data.remove_where(usize::MAX, |row| {
                row.record.namespace == namespace && row.record.state.is_recorded() && !row.is_expired(now)
            });
            data.remove_where(usize::MAX, |row| row.record.namespace == namespace && row.is_expired(now));
            self.raise_epoch();
            Ok(counted)
        })
    }

    fn sweep(&self, limit: usize) -> StoreFuture<'_, u64> {
        self.step(|data, now| Ok(data.remove_expired(limit, now)))
    }

    fn evict_oldest(&self, namespace: Arc<str>, count: u64) -> StoreFuture<'_, u64> {
        self.step(|data, now| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let gone = data.remove_where(count, |row| {
                row.record.namespace == namespace && row.record.state.is_recorded() && !row.is_expired(now)
            });
            self.raise_epoch();
            Ok(gone)
        })
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        self.step(|data, now| {
            let cursor = match cursor {
                None => None,
                Some(text) => Some(text.parse::<u64>().map_err(|_| StoreError::BadRequest {
                    message: format!("{text:?} is no cursor: give the `next` of the page before, or none"),
                })?),
            };
            let limit = limit.clamp(1, MAX_PAGE);
            let mut records: Vec<(u64, Record)> = Vec::new();
            let Some(space) = data.spaces.get_mut(&*namespace) else {
                return Ok(Page { records: Vec::new(), next: None });
            };
            let mut places = match (filter.order, cursor) {
                (_, None) => data.order.range(..),
                (Order::OldestFirst, Some(after)) => {
                    data.order.range(data.order.partition_point(|place| place.sequence <= after)..)
                }
                (Order::NewestFirst, Some(before)) => {
                    data.order.range(..data.order.partition_point(|place| place.sequence < before))
                }
            };
            let next = || match filter.order {
                Order::OldestFirst => places.next(),
                Order::NewestFirst => places.next_back(),
            };
            for Place { sequence, namespace: of, key } in std::iter::from_fn(next) {
                if **of != *namespace {
                    continue;
                }
                let row = space.rows.get_mut(key).filter(|row| row.sequence == *sequence && !row.is_expired(now));
                let Some(row) = row else { continue };
                row.settle_lapse(now);
                if fits(&row.record, &filter, now) {
                    records.push((*sequence, row.record.to_record()));
                    if records.len() > limit {
                        break;
                    }
                }
            }
            let next = if records.len() > limit {
                records.truncate(limit);
                records.last().map(|(sequence, _)| sequence.to_string())
            } else {
                None
            };
            Ok(Page { records: records.into_iter().map(|(_, record)| record).collect(), next })
        })
    }

    fn count(&self, namespace: Arc<str>, counters: Counters, presented: Vec<(Key, u64)>) -> StoreFuture<'_, ()> {
        self.step(|data, _| {
            let space = data.space(&namespace);
            for (name, value) in counters.named() {
                if let Some(counter) = space.counters.named_mut(name) {
                    *counter = counter.saturating_add(value);
                }
            }
            for (key, count) in presented {
                if let Some(row) = space.rows.get_mut(&key) {
                    row.record.attempt_count = row.record.attempt_count.saturating_add(count);
                }
            }
            Ok(())
        })
    }

    fn counters(&self, namespace: Arc<str>) -> StoreFuture<'_, Counters> {
        self.step(|data, _| Ok(data.spaces.get(&*namespace).map(|s| s.counters).unwrap_or_default()))
    }

    fn reset_counters(&self, namespace: Arc<str>) -> StoreFuture<'_, ()> {
        self.step(|data, _| {
            data.space(&namespace).counters = Counters::default();
            Ok(())
        })
    }

    fn census(&self, namespace: Arc<str>) -> StoreFuture<'_, Census> {
        self.step(|data, now| {
            let mut census = Census::default();
            let Some(space) = data.spaces.get_mut(&*namespace) else { return Ok(census) };
            let (mut first, mut last) = (u64::MAX, 0);
            for row in space.rows.values_mut().filter(|row| !row.is_expired(now)) {
                row.settle_lapse(now);
                let record = &row.record;
                match record.state {
                    State::InProgress => census.in_progress += 1,
                    State::InDoubt => census.in_doubt += 1,
                    State::Completed => census.completed += 1,
                    State::Failed => census.failed += 1,
                }
                // By age, as in a query: an old record may have been taken over a moment ago.
                if row.sequence < first {
                    (first, census.oldest) = (row.sequence, Some(record.started_at));
                }
                if row.sequence > last {
                    (last, census.newest) = (row.sequence, Some(record.started_at));
                }
                let texts = [record.params.as_ref(), record.result.as_ref()];
                let payload: usize = texts.into_iter().flatten().map(|json| json.as_str().len()).sum();
                census.bytes += (size_of::<Row>() + record.key.as_str().len() + payload) as u64;
            }
            Ok(census)
        })
    }

    fn changed(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, at_most: Duration) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            if self.closed.load(Ordering::Acquire) {
                return Err(StoreError::Closed { store: "memory:".into() });
            }
            /// Counts a waiter for as long as it waits, cancelled or not.
            struct Waiting<'a>(&'a AtomicU64);
            impl Drop for Waiting<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            self.waiters.fetch_add(1, Ordering::SeqCst);
            let _waiting = Waiting(&self.waiters);
            let deadline = tokio::time::Instant::now() + at_most;
            loop {
                let notified = self.ended.notified();
                tokio::pin!(notified);
                // Registered before looking, so that an end in between is not missed.
                notified.as_mut().enable();
                let now = self.time();
                let lapses_in = {
                    let mut data = self.data.lock();
                    match data.row(&namespace, &key, now) {
                        Some(row) if row.record.attempt_id == attempt && row.record.state == State::InProgress => {
                            row.lease_steady.saturating_sub(now.steady)
                        }
                        _ => return Ok(()),
                    }
                };
                let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                if left.is_zero() || self.closed.load(Ordering::Acquire) {
                    return Ok(());
                }
                let lapse = Duration::from_millis(u64::try_from(lapses_in).unwrap_or(0).max(1));
                let _ = tokio::time::timeout(left.min(lapse), notified).await;
            }
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        self.closed.store(true, Ordering::Release);
        self.ended.notify_waiters();
        Box::pin(std::future::ready(Ok(())))
    }
}
