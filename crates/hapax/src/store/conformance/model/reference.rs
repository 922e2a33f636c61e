//! The rules in plain Rust: a list of records, oldest first, and a loop over it.
//!
//! Slow and simple on purpose. It differs from a store in one thing: it does not know
//! which expired records a store has swept in passing, so it holds on to all of them
//! until it is told, and what it says of them is an upper bound.

use std::time::Duration;

use crate::store::{Beat, Begin, Capacity, Counters, Filter, Mark, OnFull, Order, Settlement};
use crate::{AttemptId, Json, Record, State, Timestamp, Ttl};

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) record: Record,
    /// The steady time at which its lease lapses.
    lease: i64,
    /// The store gave it an attempt id of its own.
    pub(super) fenced: bool,
}

/// The time, as both clocks show it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    pub(super) steady: i64,
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    rows: Vec<Row>,
    pub(super) counters: [Counters; 2],
}

/// What a record reads as; the reason of a lapse is the store's to word.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) record: Record,
    pub(super) fenced: bool,
    pub(super) lapsed: bool,
}

#[derive(Debug)]
pub(super) enum Begins {
    /// With this many attempts, at most so many expired and exactly so many evicted.
    Started {
        attempts: u64,
        expired_at_most: u64,
        evicted: u64,
    },
    Exists(Box<Seen>),
    Refused,
}

#[derive(Debug)]
pub(super) enum Ends {
    Done { at: Timestamp, expires_at: Option<Timestamp> },
    Lost(Option<State>),
}

pub(super) enum Finish {
    Complete(Json, Ttl, Duration),
    Fail(String, Ttl, Duration),
    Release,
    Doubt(String),
}

#[derive(Debug)]
pub(super) enum Marks {
    Recorded(Box<Seen>),
    Exists(Box<Seen>),
    Refused,
}

impl Row {
    fn is_expired(&self, now: Now) -> bool {
        self.record.expires_at.is_some_and(|at| at <= now.wall)
    }

    fn seen(&self, now: Now) -> Seen {
        let mut record = self.record.clone();
        let lapsed = record.state == State::InProgress && self.lease <= now.steady;
        if lapsed {
            record.state = State::InDoubt;
            record.lease_until = None;
        }
        Seen { record, fenced: self.fenced, lapsed }
    }

    fn record_as(&mut self, state: State, result: Option<Json>, error: Option<String>, ttl: Ttl, now: Now) {
        self.record.state = state;
        self.record.result = result;
        self.record.error = error;
        self.record.executed_at = Some(now.wall);
        self.record.expires_at = ttl.expires_at(now.wall);
        self.record.lease_until = None;
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Reference {
    fn find(&mut self, space: &str, key: &str, now: Now) -> Option<&mut Row> {
        self.rows
            .iter_mut()
            .find(|row| row.record.namespace == space && row.record.key.as_str() == key && !row.is_expired(now))
    }

    fn drop_row(&mut self, space: &str, key: &str) {
        self.rows.retain(|row| row.record.namespace != space || row.record.key.as_str() != key);
    }

    pub(super) fn expired(&self, now: Now) -> u64 {
        self.rows.iter().filter(|row| row.is_expired(now)).count() as u64
    }

    /// Expired and evicted; `None` when refused.
    fn make_room(&mut self, capacity: Option<Capacity>, now: Now) -> Option<(u64, u64)> {
        let Some(capacity) = capacity else { return Some((0, 0)) };
        let expired = self.expired(now);
        let standing = self.rows.len() as u64 - expired;
        if standing + expired < capacity.max_entries {
            return Some((0, 0));
        }
        if standing < capacity.max_entries {
            return Some((expired, 0));
        }
        if capacity.on_full == OnFull::Reject {
            return None;
        }
        let fifth = (capacity.max_entries / 5).max(1);
        let evicted = self.remove_oldest(fifth, |row| row.record.state.is_recorded() && !row.is_expired(now));
        Some((expired, evicted))
    }

    fn remove_oldest(&mut self, count: u64, which: impl Fn(&Row) -> bool) -> u64 {
        let mut gone = 0;
        self.rows.retain(|row| {
            let goes = gone < count && which(row);
            gone += u64::from(goes);
            !goes
        });
        gone
    }

    pub(super) fn begin(&mut self, begin: &Begin, now: Now) -> Begins {
        let (space, key) = (&*begin.namespace, begin.key.as_str());
        if let Some(row) = self.find(space, key, now) {
            let seen = row.seen(now);
            if seen.record.state != State::InDoubt || begin.take_over != Some(seen.record.attempt_id) {
                return Begins::Exists(Box::new(seen));
            }
            row.lease = now.steady.saturating_add(millis(begin.lease));
            let record = &mut row.record;
            record.state = State::InProgress;
            record.error = None;
            record.attempt_id = begin.attempt;
            record.attempts += 1;
            record.attempt_count += 1;
            record.started_at = now.wall;
            record.lease_until = Some(now.wall.plus(begin.lease));
            record.owner = (*begin.owner).clone();
            return Begins::Started { attempts: record.attempts, expired_at_most: 0, evicted: 0 };
        }
        let Some((expired_at_most, evicted)) = self.make_room(begin.capacity, now) else { return Begins::Refused };
        self.drop_row(space, key);
        let record = Record {
            key: begin.key.clone(),
            namespace: space.into(),
            signal_id: begin.signal_id.clone(),
            action_type: begin.action_type.clone(),
            target: begin.target.clone(),
            params: begin.params.clone(),
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
            owner: (*begin.owner).clone(),
            tags: begin.tags.clone(),
        };
        self.rows.push(Row { record, lease: now.steady.saturating_add(millis(begin.lease)), fenced: false });
        Begins::Started { attempts: 1, expired_at_most, evicted }
    }

    pub(super) fn beat(&mut self, space: &str, key: &str, attempt: AttemptId, lease: Duration, now: Now) -> Beat {
        let Some(row) = self.find(space, key, now) else { return Beat::Lost };
        if row.fenced || row.record.attempt_id != attempt {
            return Beat::Lost;
        }
        match row.seen(now).record.state {
            State::InProgress => {
                row.lease = now.steady.saturating_add(millis(lease));
                row.record.lease_until = Some(now.wall.plus(lease));
                Beat::Renewed
            }
            State::InDoubt => Beat::Lapsed,
            State::Completed | State::Failed => Beat::Lost,
        }
    }

    pub(super) fn end(&mut self, space: &str, key: &str, attempt: AttemptId, how: Finish, now: Now) -> Ends {
        let Some(row) = self.find(space, key, now) else { return Ends::Lost(None) };
        let state = row.seen(now).record.state;
        if row.fenced || row.record.attempt_id != attempt {
            return Ends::Lost(Some(state));
        }
        if state.is_recorded() {
            let same =
                matches!((&how, state), (Finish::Complete(..), State::Completed) | (Finish::Fail(..), State::Failed));
            return match row.record.executed_at {
                Some(at) if same => Ends::Done { at, expires_at: row.record.expires_at },
                _ => Ends::Lost(Some(state)),
            };
        }
        match how {
            Finish::Complete(result, ttl, took) => {
                row.record_as(State::Completed, Some(result), None, ttl, now);
                row.record.duration_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
            Finish::Fail(error, ttl, took) => {
                row.record_as(State::Failed, None, Some(error), ttl, now);
                row.record.duration_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
            Finish::Doubt(reason) => {
                row.record.state = State::InDoubt;
                row.record.error = Some(reason);
                row.record.lease_until = None;
            }
            Finish::Release => {
                self.drop_row(space, key);
                return Ends::Done { at: now.wall, expires_at: None };
            }
        }
        Ends::Done { at: now.wall, expires_at: row.record.expires_at }
    }

    /// Whether it was settled, and the record afterwards.
    pub(super) fn settle(
        &mut self,
        space: &str,
        key: &str,
        attempt: Option<AttemptId>,
        settlement: &Settlement,
        now: Now,
    ) -> (bool, Option<Seen>) {
        let Some(row) = self.find(space, key, now) else { return (false, None) };
        let seen = row.seen(now);
        if seen.record.state != State::InDoubt || attempt.is_some_and(|a| a != seen.record.attempt_id) {
            return (false, Some(seen));
        }
        match settlement {
            Settlement::NotHappened => {
                self.drop_row(space, key);
                (true, None)
            }
            Settlement::Happened { result, ttl } => {
                row.record_as(State::Completed, Some(result.clone()), None, *ttl, now);
                row.fenced = true;
                (true, Some(row.seen(now)))
            }
        }
    }

    pub(super) fn mark(&mut self, mark: &Mark, now: Now) -> Marks {
        let (space, key) = (&*mark.namespace, mark.key.as_str());
        if let Some(row) = self.find(space, key, now) {
            let seen = row.seen(now);
            if seen.record.state != State::InDoubt {
                return Marks::Exists(Box::new(seen));
            }
            row.record_as(State::Completed, Some(mark.result.clone()), None, mark.ttl, now);
            row.record.attempt_id = mark.attempt;
            return Marks::Recorded(Box::new(row.seen(now)));
        }
        if self.make_room(mark.capacity, now).is_none() {
            return Marks::Refused;
        }
        self.drop_row(space, key);
        let record = Record {
            key: mark.key.clone(),
            namespace: space.into(),
            signal_id: mark.signal_id.clone(),
            action_type: mark.action_type.clone(),
            target: mark.target.clone(),
            params: mark.params.clone(),
            fingerprint: mark.fingerprint,
            state: State::Completed,
            result: Some(mark.result.clone()),
            error: None,
            attempt_id: mark.attempt,
            attempts: 0,
            attempt_count: 1,
            started_at: now.wall,
            executed_at: Some(now.wall),
            expires_at: mark.ttl.expires_at(now.wall),
            lease_until: None,
            duration_ms: None,
            owner: (*mark.owner).clone(),
            tags: Default::default(),
        };
        self.rows.push(Row { record, lease: 0, fenced: false });
        Marks::Recorded(Box::new(self.rows[self.rows.len() - 1].seen(now)))
    }

    pub(super) fn get(&mut self, space: &str, key: &str, now: Now) -> Option<Seen> {
        self.find(space, key, now).map(|row| row.seen(now))
    }

    /// `Ok` whether there was one; `Err` what stays.
    pub(super) fn remove(&mut self, space: &str, key: &str, now: Now) -> Result<bool, Box<Seen>> {
        let Some(row) = self.find(space, key, now) else { return Ok(false) };
        let seen = row.seen(now);
        if !seen.record.state.is_recorded() {
            return Err(Box::new(seen));
        }
        self.drop_row(space, key);
        Ok(true)
    }

    pub(super) fn clear(&mut self, space: &str, now: Now) -> u64 {
        let gone = self.remove_oldest(u64::MAX, |row| {
            row.record.namespace == space && row.record.state.is_recorded() && !row.is_expired(now)
        });
        self.rows.retain(|row| row.record.namespace != space || !row.record.state.is_recorded());
        gone
    }

    pub(super) fn evict(&mut self, space: &str, count: u64, now: Now) -> u64 {
        self.remove_oldest(count, |row| {
            row.record.namespace == space && row.record.state.is_recorded() && !row.is_expired(now)
        })
    }

    /// Is told that a sweep left nothing that had expired.
    pub(super) fn all_swept(&mut self, now: Now) {
        self.rows.retain(|row| !row.is_expired(now));
    }

    pub(super) fn list(&self, space: &str, filter: &Filter, now: Now) -> Vec<Seen> {
        let fits = |record: &Record| {
            filter.action_type.as_ref().is_none_or(|a| *a == record.action_type)
                && filter.target.as_ref().is_none_or(|t| *t == record.target)
                && filter.signal_id.as_ref().is_none_or(|s| record.signal_id.as_ref() == Some(s))
                && filter.state.is_none_or(|s| s == record.state)
                && filter.expiring_within.is_none_or(|d| record.expires_at.is_some_and(|at| at <= now.wall.plus(d)))
        };
        let rows = self.rows.iter().filter(|row| row.record.namespace == space && !row.is_expired(now));
        let mut list: Vec<Seen> = rows.map(|row| row.seen(now)).filter(|seen| fits(&seen.record)).collect();
        if filter.order == Order::NewestFirst {
            list.reverse();
        }
        list
    }

    pub(super) fn present(&mut self, space: &str, key: &str, count: u64, now: Now) {
        if let Some(row) = self.find(space, key, now) {
            row.record.attempt_count += count;
        }
    }
}
