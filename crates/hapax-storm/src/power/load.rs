//! The load whose writes are recorded: each key once, on a store that is closed
//! and opened again in the middle, and not closed at the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hapax::{ActionError, Hapax, InFlight, OnDoubt, PolicyPatch};
use rand::Rng;

use crate::lines::Log;
use crate::plan::{Answer, Orders};

/// Runs the load. Calls that fail are written down as mishaps.
pub fn run(orders: &Orders) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let middle = orders.keys / 2;
        let first = life(orders, 0, middle).await?;
        let unfinished = first.shutdown(Duration::from_secs(10)).await?.unfinished;
        ensure!(unfinished == 0, "all calls have ended, and {unfinished} attempts are in flight");
        drop(first);
        life(orders, middle, orders.keys).await?;
        // As a process ends whose machine does.
        std::process::exit(0)
    })
}

async fn life(orders: &Orders, from: u64, to: u64) -> Result<Hapax> {
    let policy = PolicyPatch::new().on_doubt(OnDoubt::Refuse).in_flight(InFlight::Reject);
    let hapax =
        Hapax::builder().store_url(orders.store_url()).policy(policy).build().await.context("cannot open the store")?;
    let (ledger, events) = (Arc::new(Log::default()), Arc::new(Log::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..orders.tasks {
        let (orders, hapax) = (orders.clone(), hapax.clone());
        let (ledger, events) = (ledger.clone(), events.clone());
        tasks.spawn(async move {
            let mut rng = orders.rng(task);
            for n in (from..to).skip(task).step_by(orders.tasks) {
                // One in five is large, so that the log is checkpointed.
                let value: u64 = rng.random();
                let value = format!("{:016x}", if rng.random_bool(0.2) { value >> 8 } else { value });
                call(&orders, &hapax, n, value, &ledger, &events).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the load panicked")??;
    }
    Ok(hapax)
}

async fn call(
    orders: &Orders,
    hapax: &Hapax,
    n: u64,
    value: String,
    ledger: &Arc<Log>,
    events: &Arc<Log>,
) -> Result<()> {
    let key = orders.key(n)?;
    let (ledger, ran, to) = (ledger.clone(), events.clone(), (orders.ledger(n), orders.events(n)));
    let outcome = hapax
        .execute(&orders.action(n), move |ctx| async move {
            let (key, attempt) = (ctx.key().as_str(), ctx.attempt().to_string());
            let unsure = |e: anyhow::Error| ActionError::unknown(e.to_string());
            ran.append(to.1, &["run", key, &attempt]).map_err(unsure)?;
            ledger.append(to.0, &[key, &attempt, &value]).map_err(unsure)?;
            Ok(Answer::of(&value))
        })
        .await;
    match outcome {
        Ok(outcome) => events.append(orders.events(n), &["ack", key.as_str(), &outcome.value.value, "first"]),
        Err(_) => events.append(orders.events(n), &["unknown", key.as_str()]),
    }
}
