//! A worker: one process that calls `execute` from several tasks until it is
//! told to stop, is done, or is killed.
//!
//! It writes down what it sees before it does anything else: the effect inside
//! the action, the acknowledgement right after `execute` returned. Invariant: a
//! line in the event log is true, whenever the worker dies.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hapax::store::StoreError;
use hapax::store::sqlite::{SqliteOptions, SqliteStore};
use hapax::{ActionError, Error, ErrorClass, Hapax, InFlight, OnDoubt, PolicyPatch};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::clock::JumpingClock;
use crate::lines::Log;
use crate::plan::{Answer, Ending, Orders, PART, Phase, Place, Sabotage, Script};
use crate::target;

/// How long a caller waits for another's attempt.
const WAIT: Duration = Duration::from_secs(10);
/// After this long a call counts as wedged: more than [`WAIT`] and all delays
/// and pauses that the storm itself makes.
const WEDGED: Duration = Duration::from_secs(60);
/// How long a worker that was told to stop waits for its attempts.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The exit code of a worker whose parent is gone.
const ORPHANED: i32 = 9;

struct Worker {
    orders: Arc<Orders>,
    hapax: Hapax,
    logs: Arc<Logs>,
    progress: File,
    /// In recovery, the keys that this worker has no value for yet.
    missing: Mutex<Vec<u64>>,
}

/// What happened, and what was seen.
#[derive(Default)]
struct Logs {
    ledger: Log,
    events: Log,
}

/// Runs the orders to their end.
pub fn run(orders: Orders) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stopped = listen()?;
    runtime.block_on(async {
        let complaints = orders.complaints();
        let result = work(orders, stopped).await;
        if let Err(error) = &result {
            complain(&complaints, &format!("{error:#}"));
        }
        result
    })
}

/// Hears the parent: a byte says stop; the end of the pipe says that it is gone.
fn listen() -> Result<watch::Receiver<bool>> {
    let (tell, stopped) = watch::channel(false);
    std::thread::Builder::new().name("storm-listen".into()).spawn(move || {
        let mut stdin = std::io::stdin();
        while let Ok(1..) = stdin.read(&mut [0]) {
            tell.send_replace(true);
        }
        std::process::exit(ORPHANED)
    })?;
    Ok(stopped)
}

async fn work(orders: Orders, stopped: watch::Receiver<bool>) -> Result<()> {
    let Some(hapax) = open(&orders, &stopped).await? else { return Ok(()) };
    // What all workers must have a value for; of many keys, each takes its share.
    let mine = |n: &u64| orders.keys <= PART || *n % orders.workers as u64 == orders.worker as u64;
    let missing = if orders.phase == Phase::Recover { (0..orders.keys).filter(mine).collect() } else { Vec::new() };
    let worker = Arc::new(Worker {
        logs: Arc::default(),
        progress: File::options().create(true).append(true).open(orders.progress())?,
        missing: Mutex::new(missing),
        hapax,
        orders: Arc::new(orders),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..worker.orders.tasks {
        let (worker, stopped) = (worker.clone(), stopped.clone());
        let rng = worker.orders.rng(task);
        tasks.spawn(async move {
            match worker.orders.phase {
                Phase::Refuse => worker.insist(rng, stopped).await,
                Phase::Recover => worker.recover(rng, stopped).await,
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of a worker panicked")??;
    }
    let unfinished = shut_down(&worker).await?;
    ensure!(unfinished == 0, "all calls of a worker have ended, and {unfinished} attempts of it are in flight");
    Ok(())
}

/// Shuts down, again and again where the store may be failing; the attempts that are left.
async fn shut_down(worker: &Worker) -> Result<usize> {
    let until = Instant::now() + WEDGED;
    loop {
        match worker.hapax.shutdown(SHUTDOWN).await {
            Ok(done) => return Ok(done.unfinished),
            Err(Error::Store(error)) if worker.orders.place != Place::File && Instant::now() < until => {
                eprintln!("worker {}.{}: {error}", worker.orders.worker, worker.orders.life);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error).context("a worker cannot shut down"),
        }
    }
}

/// Opens the store, again and again where it may be failing; `None` if the worker is to stop meanwhile.
async fn open(orders: &Orders, stopped: &watch::Receiver<bool>) -> Result<Option<Hapax>> {
    let policy = PolicyPatch::new().lease(orders.lease).on_doubt(match (orders.phase, orders.sabotage) {
        (Phase::Refuse, Some(Sabotage::RunAgain)) => OnDoubt::RunAgain,
        (Phase::Refuse, _) => OnDoubt::Refuse,
        (Phase::Recover, _) => OnDoubt::Verify(target::verifier(orders)),
    });
    let until = Instant::now() + WEDGED;
    while !*stopped.borrow() {
        let builder =
            Hapax::builder().label(format!("worker-{}.{}", orders.worker, orders.life)).policy(policy.clone());
        let opened = match orders.jumping.then(|| jumping(orders)).transpose() {
            Ok(None) => builder.store_url(orders.store_url()).build().await,
            Ok(Some(store)) => builder.store(Arc::new(store)).build().await,
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(hapax) => return Ok(Some(hapax)),
            Err(Error::Store(error)) if orders.place != Place::File && Instant::now() < until => {
                // Its words, in case it never ends.
                eprintln!("worker {}.{}: {error}", orders.worker, orders.life);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error).context("a worker cannot open the store"),
        }
    }
    Ok(None)
}

/// A store whose wall clock jumps.
fn jumping(orders: &Orders) -> Result<SqliteStore, StoreError> {
    let clock = Arc::new(JumpingClock { seed: orders.seed });
    SqliteStore::open(SqliteOptions::from_url(&orders.store_url())?.clock(clock))
}

impl Worker {
    /// Presents keys over and over, until told to stop.
    async fn insist(&self, mut rng: StdRng, stopped: watch::Receiver<bool>) -> Result<()> {
        while !*stopped.borrow() {
            let n = self.orders.pick(&mut rng);
            self.call(n, &mut rng).await?;
            self.breathe(6_000, &mut rng).await;
        }
        Ok(())
    }

    /// As [`insist`](Self::insist) while new keys come up; then presents those
    /// that it has no value for, until it has all.
    async fn recover(&self, mut rng: StdRng, stopped: watch::Receiver<bool>) -> Result<()> {
        while !*stopped.borrow() {
            if self.orders.newest() + 1 < self.orders.keys && rng.random_bool(0.7) {
                self.call(self.orders.pick(&mut rng), &mut rng).await?;
            } else {
                let Some(n) = self.take_missing(&mut rng) else { break };
                let has_come_up = n <= self.orders.newest();
                if !has_come_up {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if has_come_up && self.call(n, &mut rng).await? {
                    (&self.progress).write_all(b".")?;
                } else {
                    self.missing.lock().unwrap_or_else(PoisonError::into_inner).push(n);
                }
            }
            self.breathe(3_000, &mut rng).await;
        }
        Ok(())
    }

    /// Waits for at most so many microseconds between two calls.
    async fn breathe(&self, most: u64, rng: &mut StdRng) {
        if !self.orders.is_brisk() {
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..most))).await;
        }
    }

    /// Takes a key out that there is no value for yet.
    fn take_missing(&self, rng: &mut StdRng) -> Option<u64> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let last = missing.len().checked_sub(1)?;
        Some(missing.swap_remove(rng.random_range(0..=last)))
    }

    /// One call of `execute`; true if it returned a value.
    async fn call(&self, n: u64, rng: &mut StdRng) -> Result<bool> {
        let script = Script::draw(self.orders.is_brisk(), rng);
        let lie = self.orders.sabotage == Some(Sabotage::Lie) && rng.random_bool(0.02);
        let forget = self.orders.sabotage == Some(Sabotage::Forget) && rng.random_bool(0.02);
        let in_flight = if script.reject { InFlight::Reject } else { InFlight::Wait(WAIT) };
        let action = self.orders.action(n).policy(PolicyPatch::new().in_flight(in_flight));
        let key = self.orders.key(n)?;
        let (orders, logs, hapax) = (self.orders.clone(), self.logs.clone(), self.hapax.clone());
        let told = |fields: &[&str]| self.logs.events.append(self.orders.events(n), fields);
        // A task of its own, so that a panic of the action ends this call only.
        let mut call =
            tokio::spawn(
                async move { hapax.execute(&action, move |ctx| act(ctx, n, script, lie, orders, logs)).await },
            );
        let Ok(ended) = tokio::time::timeout(script.cancel.unwrap_or(WEDGED), &mut call).await else {
            call.abort();
            if script.cancel.is_none() {
                self.complain(&format!("key {key} is wedged: no answer within {WEDGED:?}"));
            }
            told(&["cancelled", key.as_str()])?;
            return Ok(false);
        };
        let Ok(answer) = ended else {
            told(&["panicked", key.as_str()])?;
            return Ok(false);
        };
        match answer {
            Ok(outcome) => {
                let how = if outcome.is_replay() { "replay" } else { "first" };
                told(&["ack", key.as_str(), &outcome.value.value, how])?;
                if outcome.value != Answer::of(&outcome.value.value) {
                    self.complain(&format!("key {key}: the answer was mangled on its way: {:?}", outcome.value));
                }
                if forget {
                    self.hapax.clear_key(&key).await?;
                }
                Ok(true)
            }
            Err(error) => {
                match expected(&error, &self.orders) {
                    Some(kind) => told(&[kind, key.as_str()])?,
                    None => self.complain(&format!("key {key}: no such error may come up here: {error}")),
                }
                Ok(false)
            }
        }
    }

    fn complain(&self, text: &str) {
        complain(&self.orders.complaints(), &format!("worker {}.{}: {text}", self.orders.worker, self.orders.life));
    }
}

/// The action: one line in the ledger, and mishaps around it.
async fn act(
    ctx: hapax::Context,
    n: u64,
    script: Script,
    lie: bool,
    orders: Arc<Orders>,
    logs: Arc<Logs>,
) -> Result<Answer, ActionError> {
    let unsure = |e: anyhow::Error| ActionError::unknown(format!("{e:#}"));
    let (key, attempt) = (ctx.key().as_str(), ctx.attempt().to_string());
    logs.events.append(orders.events(n), &["run", key, &attempt]).map_err(unsure)?;
    pause(script.before).await;
    match script.ending {
        Ending::RetryableBefore => return Err(ActionError::retryable("storm: not now")),
        Ending::UnknownBefore => return Err(ActionError::unknown("storm: who knows, before")),
        Ending::PanicBefore => std::panic::resume_unwind(Box::new("storm: a panic before")),
        _ => {}
    }
    let value = format!("{:016x}", script.value);
    target::effect(&orders, &logs.ledger, n, [key, &attempt, &value]).map_err(unsure)?;
    pause(script.after).await;
    match script.ending {
        Ending::UnknownAfter => return Err(ActionError::unknown("storm: who knows, after")),
        Ending::PanicAfter => std::panic::resume_unwind(Box::new("storm: a panic after")),
        _ => {}
    }
    if lie { Ok(Answer::of("deadbeefdeadbeef")) } else { Ok(Answer::of(&value)) }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// The name of an answer that the storm itself provokes; `None` for all others.
fn expected(error: &Error, orders: &Orders) -> Option<&'static str> {
    let place = &orders.place;
    Some(match error {
        // Its lease had lapsed, and somebody looked meanwhile.
        Error::LostClaim { .. } if orders.phase == Phase::Recover && place.is_server() => "lost",
        Error::InDoubt { .. } => "doubt",
        Error::InFlight { .. } => "inflight",
        Error::Action { class: ErrorClass::Retryable, .. } => "retryable",
        Error::Action { class: ErrorClass::Unknown, .. } => "unknown",
        // A paused process may hold the store's lock for a while.
        Error::Store(StoreError::Busy { .. }) => "busy",
        Error::NotRecorded { .. } => "unrecorded",
        Error::Store(StoreError::Full { .. }) if *place == Place::SmallDisk => "outage",
        Error::Store(StoreError::Unavailable { .. } | StoreError::AnswerLost { .. }) if place.is_server() => "outage",
        _ => return None,
    })
}

fn complain(to: &std::path::Path, text: &str) {
    let line = format!("{}\n", text.replace('\n', " "));
    let written =
        std::fs::OpenOptions::new().create(true).append(true).open(to).and_then(|mut f| f.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("{line}(and it cannot be written down: {error})");
    }
}
