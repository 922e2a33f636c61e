//! Records histories: clients that ask a store at once whatever comes to mind.
//!
//! A client knows what it was answered and asks about that: it begins, takes
//! over what it saw in doubt, ends its own attempts late and twice, settles,
//! marks, removes. Invariant: a call is in the history before the store hears of
//! it, and an answer after the store has given it, so that no call looks shorter
//! than it was.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hapax::store::{Store, StoreError};
use hapax::{AttemptId, Key};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::driver::{Clock, Driver};
use crate::linear::Event;
use crate::spec::{Answer, Attempt, Ending, Op, Written};

/// A client of one key.
#[derive(Debug)]
pub struct Client {
    rng: StdRng,
    /// Numbers for its attempts, the next first.
    numbers: std::ops::RangeInclusive<Attempt>,
    own: Vec<Attempt>,
    seen: Option<Attempt>,
}

impl Client {
    /// A client that gives its attempts these numbers.
    #[must_use]
    pub fn new(seed: u64, numbers: std::ops::RangeInclusive<Attempt>) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), numbers, own: Vec::new(), seen: None }
    }

    /// What to ask next.
    pub fn choose(&mut self) -> Op {
        let own = self.own.choose(&mut self.rng).copied();
        let ending = |rng: &mut StdRng, attempt| match rng.random_range(0..10) {
            0..5 => Ending::Complete(attempt),
            5 => Ending::Fail,
            6..8 => Ending::Release,
            _ => Ending::Doubt,
        };
        match (self.rng.random_range(0..100), own) {
            (0..30, _) => {
                let take_over = self.seen.filter(|_| self.rng.random_bool(0.7));
                self.numbers.next().map_or(Op::Get, |attempt| Op::Begin { attempt, take_over })
            }
            (30..55, Some(attempt)) => Op::End { attempt, ending: ending(&mut self.rng, attempt) },
            (55..60, Some(attempt)) => Op::Beat(attempt),
            (60..70, _) => {
                let of = self.seen.filter(|_| self.rng.random_bool(0.5));
                Op::Settle { of, happened: self.rng.random_bool(0.5).then_some(200) }
            }
            (70..73, _) => Op::Mark(201),
            (73..80, _) => Op::Remove,
            _ => Op::Get,
        }
    }

    /// Whether the next call is to be dropped before its answer.
    pub fn drops(&mut self) -> bool {
        self.rng.random_bool(0.05)
    }

    /// Notes what was answered.
    pub fn learn(&mut self, op: Op, answer: Option<Answer>) {
        if let Op::Begin { attempt, .. } = op
            && !matches!(answer, Some(Answer::Exists(_)))
        {
            self.own.push(attempt);
        }
        if let Some(Answer::Exists(view) | Answer::Found(Some(view)) | Answer::NotInDoubt(Some(view))) = answer
            && view.state == Written::InDoubt
        {
            self.seen = Some(view.attempt);
        }
    }
}

/// Whether an error leaves open what the store did.
#[must_use]
pub fn is_open(error: &StoreError) -> bool {
    matches!(error, StoreError::AnswerLost { .. })
}

/// The id that a number stands for, the same in every process.
#[must_use]
pub fn id_of(key: &Key, attempt: Attempt) -> AttemptId {
    let mut bytes = [0_u8; 16];
    for (n, byte) in key.as_str().bytes().enumerate() {
        if let Some(place) = bytes.get_mut(n % 14) {
            *place = place.wrapping_mul(31).wrapping_add(byte);
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last = attempt;
    }
    AttemptId::from_bytes(bytes)
}

/// A driver whose numbers stand for the same ids everywhere.
#[must_use]
pub fn driver(store: Arc<dyn Store>, clock: impl Into<Clock>, key: Key) -> Driver {
    let driver = Driver::new(store, clock, key.clone());
    for attempt in 1..=u8::MAX {
        driver.name(attempt, id_of(&key, attempt));
    }
    driver
}

/// What is recorded of one key in one process.
#[derive(Debug, Default)]
pub struct History {
    moments: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl History {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    fn push(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, driver: &Driver, op: Op) -> Option<Answer> {
        let called = self.moment();
        match driver.run(op).await {
            Ok(answer) => {
                self.push(Event { op, called, returned: Some((self.moment(), answer)) });
                Some(answer)
            }
            Err(error) => {
                // Of any other error the store says that nothing happened.
                if is_open(&error) {
                    self.push(Event { op, called, returned: None });
                }
                None
            }
        }
    }

    /// Asks, and goes away before the answer.
    pub fn ask_and_drop(&self, driver: &Driver, op: Op) {
        let called = self.moment();
        let mut asked = Box::pin(driver.run(op));
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(answer)) => self.push(Event { op, called, returned: Some((self.moment(), answer)) }),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.push(Event { op, called, returned: None }),
        }
    }

    /// The events so far.
    #[must_use]
    pub fn into_events(self) -> Vec<Event> {
        self.events.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records a history of one key: a client in a thread for each handle, a few
/// calls each, and between them, at rest, a move of the clocks; in rounds.
///
/// The clocks move at rest only: a store reads them a moment before it acts, so
/// a move in between would be seen by one call and not by another before it.
#[must_use]
pub fn record(handles: &[Arc<dyn Store>], clock: &Clock, key: &Key, seed: u64) -> Vec<Event> {
    const ROUNDS: u64 = 3;
    const CALLS: usize = 7;
    let history = History::default();
    let mut rng = StdRng::seed_from_u64(seed);
    let share = u8::MAX / 2 / u8::try_from(handles.len().max(1)).unwrap_or(1);
    let mut clients: Vec<(Driver, Client)> = (0..)
        .zip(handles)
        .map(|(n, store)| {
            let first = n * share + 1;
            let client = Client::new(seed.wrapping_mul(97).wrapping_add(n.into()), first..=first + share - 1);
            (driver(store.clone(), clock.clone(), key.clone()), client)
        })
        .collect();
    for _ in 0..ROUNDS {
        std::thread::scope(|scope| {
            for (driver, client) in &mut clients {
                let history = &history;
                scope.spawn(move || {
                    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
                        return;
                    };
                    for _ in 0..CALLS {
                        let op = client.choose();
                        if client.drops() {
                            history.ask_and_drop(driver, op);
                            client.learn(op, None);
                        } else {
                            let answer = runtime.block_on(history.ask(driver, op));
                            client.learn(op, answer);
                        }
                    }
                });
            }
        });
        let Some((driver, _)) = clients.first() else { break };
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { break };
        // Forward alone: what is past its time may be gone when the clock comes back.
        let moves: &[Op] = match clock {
            Clock::Manual(_) => &[Op::Lapse, Op::Forward],
            Clock::Server => &[Op::Lapse],
        };
        if let Some(op) = moves.choose(&mut rng) {
            runtime.block_on(history.ask(driver, *op));
        }
    }
    history.into_events()
}
