//! Playing a history: each step on the store and on the reference, and the answers side by side.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use super::reference::{Begins, Ends, Finish, Marks, Now, Reference, Seen};
use super::steps::{ACTIONS, At, Attempt, How, KEYS, SIGNALS, SPACES, Step, TARGETS};
use crate::store::conformance::handle::{key, owner};
use crate::store::conformance::{Handle, Subject};
use crate::store::{
    Begin, Begun, Counters, End, Ended, Filter, Mark, Marked, Order, Removed, Settled, Settlement, StoreError,
};
use crate::{AttemptId, Clock, Fingerprint, Json, Record, State, Ttl};

/// Where it went wrong and how.
pub(super) type Failure = (usize, String);

pub(super) async fn play(subject: Subject, history: &[Step]) -> Result<(), Failure> {
    let first = subject.handle();
    let handles = match subject.again().await {
        Ok(second) => vec![first, second],
        Err(_) => vec![first],
    };
    let mut game = Game { subject, handles, reference: Reference::default(), ids: HashMap::new(), steady: 0 };
    for (n, step) in history.iter().enumerate() {
        game.step(step).await.map_err(|text| (n, text))?;
    }
    for handle in &game.handles {
        handle.store.close().await.map_err(|e| (history.len() - 1, format!("closing: {e}")))?;
    }
    Ok(())
}

struct Game {
    subject: Subject,
    handles: Vec<Handle>,
    reference: Reference,
    ids: HashMap<Attempt, AttemptId>,
    steady: i64,
}

fn ttl(ttl: Option<Duration>) -> Ttl {
    ttl.map_or(Ttl::Never, Ttl::For)
}

fn result(number: u32) -> Json {
    // Kept whatever happens, so nothing can go wrong in making it.
    Json::of(&format!("result {number}")).unwrap()
}

/// `Err` says what the store answered and what the reference did.
fn differ(store: impl Debug, reference: impl Debug) -> Result<(), String> {
    Err(format!("the store says\n    {store:?}\nand the reference\n    {reference:?}"))
}

fn equal<T: PartialEq + Debug>(store: T, reference: T) -> Result<(), String> {
    if store == reference { Ok(()) } else { differ(store, reference) }
}

impl Game {
    fn handle(&self, at: At) -> Handle {
        self.handles[at.handle % self.handles.len()].within(SPACES[at.space])
    }

    fn id(&mut self, attempt: Attempt) -> AttemptId {
        *self.ids.entry(attempt).or_default()
    }

    fn now(&self) -> Now {
        let wall = self.subject.clock.as_ref().map_or(crate::Timestamp::from_millis(0), Clock::now);
        Now { wall, steady: self.steady }
    }

    /// Whether the record reads as the reference says it must.
    fn same(&self, store: &Record, seen: &Seen) -> Result<(), String> {
        let mut wanted = seen.record.clone();
        if seen.fenced {
            if self.ids.values().any(|id| *id == store.attempt_id) {
                return Err(format!("a settled record still has the attempt id of an attempt: {store:?}"));
            }
            wanted.attempt_id = store.attempt_id;
        }
        if seen.lapsed {
            if store.error.as_ref().is_none_or(String::is_empty) {
                return Err(format!("a lapsed record does not say why it is in doubt: {store:?}"));
            }
            wanted.error.clone_from(&store.error);
        }
        if self.subject.clock.is_none() {
            // Its clock is not ours: only whether there is a time can be compared.
            let times = [
                (wanted.executed_at.is_some(), store.executed_at.is_some()),
                (wanted.expires_at.is_some(), store.expires_at.is_some()),
                (wanted.lease_until.is_some(), store.lease_until.is_some()),
            ];
            if times.iter().any(|(wanted, is)| wanted != is) {
                return differ(store, &wanted);
            }
            wanted.started_at = store.started_at;
            wanted.executed_at = store.executed_at;
            wanted.expires_at = store.expires_at;
            wanted.lease_until = store.lease_until;
        }
        if *store == wanted { Ok(()) } else { differ(store, &wanted) }
    }

    fn same_option(&self, store: Option<&Record>, seen: Option<&Seen>) -> Result<(), String> {
        match (store, seen) {
            (None, None) => Ok(()),
            (Some(store), Some(seen)) => self.same(store, seen),
            _ => differ(store, seen),
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let now = self.now();
        let timed = self.subject.clock.is_some();
        let lost = |e: StoreError| format!("the store failed: {e}");
        match step {
            Step::Begin { at, attempt, take_over, lease, signal, action, target, capacity } => {
                let h = self.handle(*at);
                let begin = Begin {
                    namespace: h.space.clone(),
                    key: key(KEYS[at.key]),
                    signal_id: SIGNALS[*signal].map(Into::into),
                    action_type: ACTIONS[*action].into(),
                    target: TARGETS[*target].into(),
                    params: Some(result(u32::try_from(*attempt).unwrap_or(0))),
                    fingerprint: Fingerprint::from_bytes([3; 32]),
                    attempt: self.id(*attempt),
                    owner: owner(&format!("attempt {attempt}")),
                    lease: *lease,
                    liveness: crate::store::Liveness::Process,
                    tags: [("attempt".to_string(), attempt.to_string())].into(),
                    take_over: take_over.map(|a| self.id(a)),
                    capacity: *capacity,
                };
                let wanted = self.reference.begin(&begin, now);
                let answer = h.store.begin(begin).await;
                match (&answer, &wanted) {
                    (
                        Ok(Begun::Started { attempts, started_at, expired, evicted }),
                        Begins::Started { attempts: wanted_attempts, expired_at_most, evicted: wanted_evicted },
                    ) if attempts == wanted_attempts
                        && evicted == wanted_evicted
                        && expired <= expired_at_most
                        && (!timed || *started_at == now.wall) =>
                    {
                        Ok(())
                    }
                    (Ok(Begun::Exists(record)), Begins::Exists(seen)) => self.same(record, seen),
                    (Err(StoreError::Capacity { .. }), Begins::Refused) => Ok(()),
                    _ => differ(answer, wanted),
                }
            }
            Step::Beat { at, attempt, lease } => {
                let (h, id) = (self.handle(*at), self.id(*attempt));
                let wanted = self.reference.beat(&h.space, KEYS[at.key], id, *lease, now);
                let beats = vec![(key(KEYS[at.key]), id, *lease)];
                equal(h.store.heartbeat(h.space.clone(), beats).await.map_err(lost)?, vec![wanted])
            }
            Step::End { at, attempt, how, ttl: lives, number } => {
                let (h, id) = (self.handle(*at), self.id(*attempt));
                let took = Duration::from_millis(u64::from(*number));
                let (end, finish) = match how {
                    How::Complete => (
                        End::Complete { result: result(*number), ttl: ttl(*lives), duration: took },
                        Finish::Complete(result(*number), ttl(*lives), took),
                    ),
                    How::Fail => {
                        let error = format!("error {number}");
                        let end = End::Fail { error: error.clone(), ttl: ttl(*lives), duration: took };
                        (end, Finish::Fail(error, ttl(*lives), took))
                    }
                    How::Release => (End::Release, Finish::Release),
                    How::Doubt => {
                        let reason = format!("doubt {number}");
                        (End::Doubt { reason: reason.clone() }, Finish::Doubt(reason))
                    }
                };
                let wanted = self.reference.end(&h.space, KEYS[at.key], id, finish, now);
                let answer = h.store.end(h.space.clone(), key(KEYS[at.key]), id, end).await.map_err(lost)?;
                match (&answer, &wanted) {
                    (Ended::Done { at, expires_at }, Ends::Done { at: wanted_at, expires_at: wanted_end })
                        if (at, expires_at) == (wanted_at, wanted_end)
                            || (!timed && expires_at.is_some() == wanted_end.is_some()) =>
                    {
                        Ok(())
                    }
                    (Ended::Lost(state), Ends::Lost(wanted)) if state == wanted => Ok(()),
                    _ => differ(answer, wanted),
                }
            }
            Step::Settle { at, attempt, happened, ttl: lives, number } => {
                let (h, id) = (self.handle(*at), attempt.map(|a| self.id(a)));
                let settlement = if *happened {
                    Settlement::Happened { result: result(*number), ttl: ttl(*lives) }
                } else {
                    Settlement::NotHappened
                };
                let wanted = self.reference.settle(&h.space, KEYS[at.key], id, &settlement, now);
                let answer = h.store.settle(h.space.clone(), key(KEYS[at.key]), id, settlement).await.map_err(lost)?;
                match (&answer, &wanted) {
                    (Settled::Done(record), (true, seen)) | (Settled::NotInDoubt(record), (false, seen)) => {
                        self.same_option(record.as_deref(), seen.as_ref())
                    }
                    _ => differ(answer, wanted),
                }
            }
            Step::Mark { at, attempt, ttl: lives, signal, capacity, number } => {
                let h = self.handle(*at);
                let mark = Mark {
                    signal_id: SIGNALS[*signal].map(Into::into),
                    attempt: self.id(*attempt),
                    result: result(*number),
                    ttl: ttl(*lives),
                    capacity: *capacity,
                    ..h.marking(KEYS[at.key], "")
                };
                let wanted = self.reference.mark(&mark, now);
                let answer = h.store.mark(mark).await;
                match (&answer, &wanted) {
                    (Ok(Marked::Recorded { record, .. }), Marks::Recorded(seen))
                    | (Ok(Marked::Exists(record)), Marks::Exists(seen)) => self.same(record, seen),
                    (Err(StoreError::Capacity { .. }), Marks::Refused) => Ok(()),
                    _ => differ(answer, wanted),
                }
            }
            Step::Get { at } => {
                let h = self.handle(*at);
                let wanted = self.reference.get(&h.space, KEYS[at.key], now);
                let record = h.store.get(h.space.clone(), key(KEYS[at.key])).await.map_err(lost)?;
                self.same_option(record.as_deref(), wanted.as_ref())
            }
            Step::Remove { at } => {
                let h = self.handle(*at);
                let epoch = h.store.epoch();
                let wanted = self.reference.remove(&h.space, KEYS[at.key], now);
                let answer = h.store.remove(h.space.clone(), key(KEYS[at.key])).await.map_err(lost)?;
                match (&answer, &wanted) {
                    (Removed::Removed, Ok(true)) => raised(&h, epoch),
                    (Removed::Absent, Ok(false)) => Ok(()),
                    (Removed::Kept(record), Err(seen)) => self.same(record, seen),
                    _ => differ(answer, wanted),
                }
            }
            Step::Clear { at } => {
                let h = self.handle(*at);
                let epoch = h.store.epoch();
                let wanted = self.reference.clear(&h.space, now);
                equal(h.store.clear(h.space.clone()).await.map_err(lost)?, wanted)?;
                if wanted > 0 { raised(&h, epoch) } else { Ok(()) }
            }
            Step::Sweep { at, limit } => {
                let h = self.handle(*at);
                let most = self.reference.expired(now).min(*limit as u64);
                let swept = h.store.sweep(*limit).await.map_err(lost)?;
                if swept > most {
                    return differ(swept, format!("at most {most}"));
                }
                if swept < *limit as u64 {
                    self.reference.all_swept(now);
                }
                Ok(())
            }
            Step::Evict { at, count } => {
                let h = self.handle(*at);
                let epoch = h.store.epoch();
                let wanted = self.reference.evict(&h.space, *count, now);
                equal(h.store.evict_oldest(h.space.clone(), *count).await.map_err(lost)?, wanted)?;
                if wanted > 0 { raised(&h, epoch) } else { Ok(()) }
            }
            Step::Query { at, filter, limit } => {
                let h = self.handle(*at);
                for order in [Order::OldestFirst, Order::NewestFirst] {
                    self.pages(&h, &Filter { order, ..filter.clone() }, *limit, now).await?;
                }
                Ok(())
            }
            Step::Count { at, hits, presented } => {
                let h = self.handle(*at);
                self.reference.counters[at.space].hits += hits;
                self.reference.present(&h.space, KEYS[at.key], *presented, now);
                let counters = Counters { hits: *hits, ..Counters::default() };
                let presented = vec![(key(KEYS[at.key]), *presented)];
                h.store.count(h.space.clone(), counters, presented).await.map_err(lost)
            }
            Step::Counters { at } => {
                let h = self.handle(*at);
                equal(h.store.counters(h.space.clone()).await.map_err(lost)?, self.reference.counters[at.space])
            }
            Step::Reset { at } => {
                let h = self.handle(*at);
                self.reference.counters[at.space] = Counters::default();
                h.store.reset_counters(h.space.clone()).await.map_err(lost)
            }
            Step::Census { at } => self.census(&self.handle(*at), now).await,
            Step::Reopen { handle } => {
                let place = handle % self.handles.len();
                // A memory that is closed is gone: nothing to open again.
                if let Ok(again) = self.subject.again().await {
                    self.handles[place].store.close().await.map_err(lost)?;
                    self.handles[place] = again;
                }
                Ok(())
            }
            Step::Pass(time) => {
                self.subject.pass(*time).await;
                self.steady += i64::try_from(time.as_millis()).unwrap_or(0);
                Ok(())
            }
            Step::Jump { millis } => {
                // Back in time an expired record stands again, unless it was swept: let it be swept.
                self.handles[0].store.sweep(usize::MAX).await.map_err(lost)?;
                self.reference.all_swept(now);
                if let Some(clock) = &self.subject.clock {
                    clock.jump_wall(*millis);
                }
                Ok(())
            }
        }
    }

    async fn pages(&self, h: &Handle, filter: &Filter, limit: usize, now: Now) -> Result<(), String> {
        let wanted = self.reference.list(&h.space, filter, now);
        let (mut cursor, mut rest) = (None, wanted.as_slice());
        loop {
            let page = h.store.query(h.space.clone(), filter.clone(), cursor, limit).await;
            let page = page.map_err(|e| format!("the store failed: {e}"))?;
            let (now_here, then) = rest.split_at(limit.min(rest.len()));
            if page.records.len() != now_here.len() || page.next.is_some() == then.is_empty() {
                return differ(&page, format!("{} here and {} then of {wanted:?}", now_here.len(), then.len()));
            }
            for (record, seen) in page.records.iter().zip(now_here) {
                self.same(record, seen)?;
            }
            (cursor, rest) = (page.next, then);
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    async fn census(&self, h: &Handle, now: Now) -> Result<(), String> {
        let listed = self.reference.list(&h.space, &Filter::default(), now);
        let census = h.store.census(h.space.clone()).await.map_err(|e| format!("the store failed: {e}"))?;
        let of = |state| listed.iter().filter(|seen| seen.record.state == state).count() as u64;
        let tally = State::ALL.map(of);
        let counted = State::ALL.map(|state| match state {
            State::InProgress => census.in_progress,
            State::InDoubt => census.in_doubt,
            State::Completed => census.completed,
            State::Failed => census.failed,
        });
        equal(counted, tally)?;
        let edges = (listed.first().map(|s| s.record.started_at), listed.last().map(|s| s.record.started_at));
        if self.subject.clock.is_some() {
            equal((census.oldest, census.newest), edges)
        } else {
            equal((census.oldest.is_some(), census.newest.is_some()), (edges.0.is_some(), edges.1.is_some()))
        }
    }
}

/// What was remembered before must not be trusted any more.
fn raised(h: &Handle, before: Option<u64>) -> Result<(), String> {
    match (before, h.store.epoch()) {
        (Some(before), Some(after)) if before == after => {
            Err(format!("the epoch is still {before} although a recorded result went before its time"))
        }
        _ => Ok(()),
    }
}
