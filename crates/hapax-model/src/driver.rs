//! Asks a real store what the specification asks, and reads its answers as the
//! specification gives them.
//!
//! Invariant: a number stands for one attempt id; an id that has no number is
//! one that the store gave itself, to fence: nobody's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use hapax::store::{Beat, Begin, Begun, End, Ended, Mark, Marked, Removed, Settled, Settlement, Store, StoreError};
use hapax::{AttemptId, Fingerprint, Json, Key, ManualClock, Owner, Record, State, Ttl};

use crate::spec::{Answer, Attempt, Ending, HAND, Op, Value, View, Written};

/// The lease of the attempts.
pub const LEASE: Duration = Duration::from_secs(60);
/// The lease of a heartbeat that is to let the lease lapse.
const SHORTEST: Duration = Duration::from_millis(1);
/// How often it is looked whether it has.
const LOOKS: u32 = 1000;
/// The time to live of the results.
pub const TTL: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Ids {
    of: HashMap<Attempt, AttemptId>,
    number: HashMap<AttemptId, Attempt>,
}

/// Where a store takes its time from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// From a clock that is moved by hand.
    Manual(ManualClock),
    /// From its server's, which nobody moves: a lease lapses because its heartbeat asks for the shortest, and a time
    /// to live ends in nobody's test.
    Server,
}

impl From<ManualClock> for Clock {
    fn from(clock: ManualClock) -> Self {
        Self::Manual(clock)
    }
}

/// One key of a store.
#[derive(Clone, Debug)]
pub struct Driver {
    store: Arc<dyn Store>,
    clock: Clock,
    namespace: Arc<str>,
    key: Key,
    owner: Arc<Owner>,
    ids: Arc<Mutex<Ids>>,
}

fn written(state: State) -> Written {
    match state {
        State::InProgress => Written::InProgress,
        State::InDoubt => Written::InDoubt,
        State::Completed => Written::Completed,
        State::Failed => Written::Failed,
    }
}

fn json(value: Value) -> Json {
    Json::of(&value).unwrap_or_else(|_| unreachable!("a number has a JSON form"))
}

impl Driver {
    /// A key of a store that takes its time from this clock.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: impl Into<Clock>, key: Key) -> Self {
        let owner = Owner { host: "model".into(), pid: std::process::id(), label: None };
        Self { store, clock: clock.into(), namespace: "model".into(), key, owner: Arc::new(owner), ids: Arc::default() }
    }

    /// The same key, and the same attempts, by another handle of the store.
    #[must_use]
    pub fn by(&self, store: Arc<dyn Store>) -> Self {
        Self { store, ..self.clone() }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Lets a number stand for a new attempt id.
    pub fn renew(&self, attempt: Attempt) -> AttemptId {
        self.name(attempt, AttemptId::new())
    }

    /// Lets a number stand for this attempt id.
    pub fn name(&self, attempt: Attempt, id: AttemptId) -> AttemptId {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = ids.of.insert(attempt, id) {
            ids.number.remove(&old);
        }
        ids.number.insert(id, attempt);
        id
    }

    fn id(&self, attempt: Attempt) -> AttemptId {
        let known = self.ids.lock().unwrap_or_else(PoisonError::into_inner).of.get(&attempt).copied();
        known.unwrap_or_else(|| self.renew(attempt))
    }

    fn view(&self, record: &Record) -> View {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        View {
            state: written(record.state),
            attempt: ids.number.get(&record.attempt_id).copied().unwrap_or(HAND),
            value: record.result.as_ref().and_then(|result| result.to().ok()),
            attempts: u8::try_from(record.attempts).unwrap_or(u8::MAX),
        }
    }

    fn seen(&self, record: Option<Box<Record>>) -> Option<View> {
        record.map(|record| self.view(&record))
    }

    /// Does one operation.
    ///
    /// # Errors
    /// What the store's method gives.
    pub async fn run(&self, op: Op) -> Result<Answer, StoreError> {
        let (namespace, key) = (self.namespace.clone(), self.key.clone());
        Ok(match op {
            Op::Begin { attempt, take_over } => match self.store.begin(self.begin(attempt, take_over)).await? {
                Begun::Started { attempts, .. } => Answer::Started(u8::try_from(attempts).unwrap_or(u8::MAX)),
                Begun::Exists(record) => Answer::Exists(self.view(&record)),
            },
            Op::Beat(attempt) => {
                let beats = vec![(key, self.id(attempt), LEASE)];
                match self.store.heartbeat(namespace, beats).await?.first() {
                    Some(Beat::Renewed) => Answer::Renewed,
                    Some(Beat::Lapsed) => Answer::Lapsed,
                    Some(Beat::Lost) => Answer::Lost(None),
                    None => Answer::Nothing,
                }
            }
            Op::End { attempt, ending } => {
                let (ttl, duration) = (Ttl::For(TTL), Duration::from_millis(1));
                let end = match ending {
                    Ending::Complete(value) => End::Complete { result: json(value), ttl, duration },
                    Ending::Fail => End::Fail { error: "for good".into(), ttl, duration },
                    Ending::Release => End::Release,
                    Ending::Doubt => End::Doubt { reason: "who knows".into() },
                };
                match self.store.end(namespace, key, self.id(attempt), end).await? {
                    Ended::Done { .. } => Answer::Done,
                    Ended::Lost(state) => Answer::Lost(state.map(written)),
                }
            }
            Op::Settle { of, happened } => {
                let settlement = match happened {
                    Some(value) => Settlement::Happened { result: json(value), ttl: Ttl::For(TTL) },
                    None => Settlement::NotHappened,
                };
                match self.store.settle(namespace, key, of.map(|of| self.id(of)), settlement).await? {
                    Settled::Done(record) => Answer::Found(self.seen(record)),
                    Settled::NotInDoubt(record) => Answer::NotInDoubt(self.seen(record)),
                }
            }
            Op::Mark(value) => match self.store.mark(self.mark(value)).await? {
                Marked::Recorded { record, .. } => Answer::Found(Some(self.view(&record))),
                Marked::Exists(record) => Answer::Exists(self.view(&record)),
            },
            Op::Get => Answer::Found(self.seen(self.store.get(namespace, key).await?)),
            Op::Remove => match self.store.remove(namespace, key).await? {
                Removed::Removed => Answer::Gone(1),
                Removed::Absent => Answer::Absent,
                Removed::Kept(record) => Answer::Exists(self.view(&record)),
            },
            Op::Clear => Answer::Gone(u8::try_from(self.store.clear(namespace).await?).unwrap_or(u8::MAX)),
            Op::Sweep => Answer::Gone(u8::try_from(self.store.sweep(1000).await?).unwrap_or(u8::MAX)),
            Op::Lapse => {
                self.lapse().await?;
                Answer::Nothing
            }
            // Nobody can be asked for it.
            Op::Die(_) => Answer::Nothing,
            Op::Forward => {
                self.jump(TTL, 1);
                Answer::Nothing
            }
            Op::Back => {
                self.jump(TTL, -1);
                Answer::Nothing
            }
        })
    }

    /// Lets the lease of whoever holds the key lapse.
    async fn lapse(&self) -> Result<(), StoreError> {
        match &self.clock {
            Clock::Manual(clock) => {
                clock.advance(LEASE);
                self.jump(LEASE, -1);
            }
            Clock::Server => {
                let mut holder = None;
                for _ in 0..LOOKS {
                    let seen = self.store.get(self.namespace.clone(), self.key.clone()).await?;
                    let live = seen.filter(|r| r.state == State::InProgress).map(|r| r.attempt_id);
                    let Some(attempt) = live.filter(|live| *holder.get_or_insert(*live) == *live) else { break };
                    // Again each time: a heartbeat that nobody waits for any more may have come in between.
                    let beats = vec![(self.key.clone(), attempt, SHORTEST)];
                    self.store.heartbeat(self.namespace.clone(), beats).await?;
                    tokio::time::sleep(2 * SHORTEST).await;
                }
            }
        }
        Ok(())
    }

    /// A server's clock stays as it is: who jumps all the same finds that the store parts from the model.
    fn jump(&self, by: Duration, sign: i64) {
        if let Clock::Manual(clock) = &self.clock {
            clock.jump_wall(sign * i64::try_from(by.as_millis()).unwrap_or(0));
        }
    }

    fn begin(&self, attempt: Attempt, take_over: Option<Attempt>) -> Begin {
        Begin {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
            signal_id: None,
            action_type: "act".into(),
            target: "target".into(),
            params: None,
            fingerprint: Fingerprint::from_bytes([7; 32]),
            attempt: self.id(attempt),
            owner: self.owner.clone(),
            liveness: hapax::store::Liveness::Process,
            lease: LEASE,
            tags: BTreeMap::new(),
            take_over: take_over.map(|of| self.id(of)),
            capacity: None,
        }
    }

    fn mark(&self, value: Value) -> Mark {
        Mark {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
            signal_id: None,
            action_type: "act".into(),
            target: "target".into(),
            params: None,
            fingerprint: Fingerprint::from_bytes([7; 32]),
            attempt: AttemptId::new(),
            owner: self.owner.clone(),
            result: json(value),
            ttl: Ttl::For(TTL),
            capacity: None,
        }
    }
}
