//! A worker: one process that calls `execute` from several tasks until it is
//! told to stop, is done, or is killed.
//!
//! It writes down what it sees before it does anything else: the effect inside
//! the action, the acknowledgement right after `execute` returned. Invariant: a
//! line in the event log is true, whenever the worker dies.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hapax::store::StoreError;
use hapax::{ActionError, Error, ErrorClass, Hapax, InFlight, Json, OnDoubt, PolicyPatch, Verdict, Verifier};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::lines::{self, Appender};
use crate::plan::{Answer, Ending, Orders, Phase, Sabotage, Script};

/// How long a caller waits for another's attempt.
const WAIT: Duration = Duration::from_secs(10);
/// After this long a call counts as wedged: more than [`WAIT`] and all delays
/// and pauses that the storm itself makes.
const WEDGED: Duration = Duration::from_secs(30);
/// How long a worker that was told to stop waits for its attempts.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The exit code of a worker whose parent is gone.
const ORPHANED: i32 = 9;

struct Worker {
    orders: Orders,
    hapax: Hapax,
    ledger: Arc<Appender>,
    events: Arc<Appender>,
    /// In recovery, the keys that this worker has no value for yet.
    missing: Mutex<Vec<u64>>,
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
    let policy = PolicyPatch::new().lease(orders.lease).on_doubt(match (orders.phase, orders.sabotage) {
        (Phase::Refuse, Some(Sabotage::RunAgain)) => OnDoubt::RunAgain,
        (Phase::Refuse, _) => OnDoubt::Refuse,
        (Phase::Recover, _) => OnDoubt::Verify(verifier(&orders)),
    });
    let hapax = Hapax::builder()
        .store_url(orders.store_url())
        .label(format!("worker-{}.{}", orders.worker, orders.life))
        .policy(policy)
        .build()
        .await
        .context("a worker cannot open the store")?;
    let worker = Arc::new(Worker {
        ledger: Arc::new(Appender::open(&orders.ledger())?),
        events: Arc::new(Appender::open(&orders.events())?),
        missing: Mutex::new(if orders.phase == Phase::Recover { (0..orders.keys).collect() } else { Vec::new() }),
        hapax,
        orders,
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
    let unfinished = worker.hapax.shutdown(SHUTDOWN).await.context("a worker cannot shut down")?.unfinished;
    ensure!(unfinished == 0, "all calls of a worker have ended, and {unfinished} attempts of it are in flight");
    Ok(())
}

/// Looks into the ledger whether the effect of a key is there.
fn verifier(orders: &Orders) -> Verifier {
    let ledger = orders.ledger();
    Verifier::new(move |doubt| {
        let ledger = ledger.clone();
        async move {
            let lines = lines::read(&ledger).map_err(|e| ActionError::unknown(e.to_string()))?;
            Ok(match lines.iter().find(|l| l.field(0) == doubt.key.as_str()) {
                Some(line) => Verdict::Happened(Json::of(&Answer::of(line.field(2)))?),
                None => Verdict::NotHappened,
            })
        }
    })
}

impl Worker {
    /// Presents keys over and over, until told to stop.
    async fn insist(&self, mut rng: StdRng, stopped: watch::Receiver<bool>) -> Result<()> {
        while !*stopped.borrow() {
            let n = self.orders.pick(&mut rng);
            self.call(n, &mut rng).await?;
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..6_000))).await;
        }
        Ok(())
    }

    /// As [`insist`](Self::insist) while new keys come up; then presents those
    /// that it has no value for, until it has all.
    async fn recover(&self, mut rng: StdRng, stopped: watch::Receiver<bool>) -> Result<()> {
        while !*stopped.borrow() {
            let n = if self.orders.newest() + 1 < self.orders.keys && rng.random_bool(0.7) {
                self.orders.pick(&mut rng)
            } else {
                let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(last) = missing.len().checked_sub(1) else { break };
                missing.get(rng.random_range(0..=last)).copied().unwrap_or_default().min(self.orders.newest())
            };
            if self.call(n, &mut rng).await? {
                self.missing.lock().unwrap_or_else(PoisonError::into_inner).retain(|m| *m != n);
            }
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..3_000))).await;
        }
        Ok(())
    }

    /// One call of `execute`; true if it returned a value.
    async fn call(&self, n: u64, rng: &mut StdRng) -> Result<bool> {
        let script = Script::draw(rng);
        let lie = self.orders.sabotage == Some(Sabotage::Lie) && rng.random_bool(0.02);
        let forget = self.orders.sabotage == Some(Sabotage::Forget) && rng.random_bool(0.02);
        let in_flight = if script.reject { InFlight::Reject } else { InFlight::Wait(WAIT) };
        let action = self.orders.action(n).policy(PolicyPatch::new().in_flight(in_flight));
        let key = self.orders.key(n)?;
        let (ledger, events) = (self.ledger.clone(), self.events.clone());
        let hapax = self.hapax.clone();
        // A task of its own, so that a panic of the action ends this call only.
        let mut call =
            tokio::spawn(async move { hapax.execute(&action, move |ctx| act(ctx, script, lie, ledger, events)).await });
        let Ok(ended) = tokio::time::timeout(script.cancel.unwrap_or(WEDGED), &mut call).await else {
            call.abort();
            if script.cancel.is_none() {
                self.complain(&format!("key {key} is wedged: no answer within {WEDGED:?}"));
            }
            self.events.append(&["cancelled", key.as_str()])?;
            return Ok(false);
        };
        let Ok(answer) = ended else {
            self.events.append(&["panicked", key.as_str()])?;
            return Ok(false);
        };
        match answer {
            Ok(outcome) => {
                let how = if outcome.is_replay() { "replay" } else { "first" };
                self.events.append(&["ack", key.as_str(), &outcome.value.value, how])?;
                if outcome.value != Answer::of(&outcome.value.value) {
                    self.complain(&format!("key {key}: the answer was mangled on its way: {:?}", outcome.value));
                }
                if forget {
                    self.hapax.clear_key(&key).await?;
                }
                Ok(true)
            }
            Err(error) => {
                match expected(&error) {
                    Some(kind) => self.events.append(&[kind, key.as_str()])?,
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
    script: Script,
    lie: bool,
    ledger: Arc<Appender>,
    events: Arc<Appender>,
) -> Result<Answer, ActionError> {
    let unsure = |e: anyhow::Error| ActionError::unknown(e.to_string());
    let (key, attempt) = (ctx.key().as_str(), ctx.attempt().to_string());
    events.append(&["run", key, &attempt]).map_err(unsure)?;
    pause(script.before).await;
    match script.ending {
        Ending::RetryableBefore => return Err(ActionError::retryable("storm: not now")),
        Ending::UnknownBefore => return Err(ActionError::unknown("storm: who knows, before")),
        Ending::PanicBefore => std::panic::resume_unwind(Box::new("storm: a panic before")),
        _ => {}
    }
    let value = format!("{:016x}", script.value);
    ledger.append(&[key, &attempt, &value]).map_err(unsure)?;
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
fn expected(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::InDoubt { .. } => "doubt",
        Error::InFlight { .. } => "inflight",
        Error::Action { class: ErrorClass::Retryable, .. } => "retryable",
        Error::Action { class: ErrorClass::Unknown, .. } => "unknown",
        // A paused process may hold the store's lock for a while.
        Error::Store(StoreError::Busy { .. }) => "busy",
        Error::NotRecorded { .. } => "unrecorded",
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
