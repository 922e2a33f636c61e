//! (a) The memory store, beside caches that join callers and the crate `idempotent`.
//!
//! All use the same runtime, the same tasks, and a `String` of 32 bytes as value. Keys are made
//! outside of what is timed for all, or inside for all. Each keeps everything: nothing is evicted.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
#[cfg(with_idempotent)]
use std::time::Duration;

use anyhow::{Result, ensure};
use hapax::{Action, Hapax};
use serde_json::json;

use crate::report::{Part, Row, Show};
use crate::run::{per_op, runtime, tasks};
use crate::stats::{Contestant, Series, interleave};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Executions of new keys in a run.
    pub new: usize,
    /// Replays in a run.
    pub replays: usize,
    /// Replays in a run by those who need a channel for each.
    pub slow_replays: usize,
    pub rounds: usize,
}

/// Keys that replays go round; fewer than any of the caches remembers by default.
const KEYS: usize = 1_000;

fn value(number: usize) -> String {
    format!("receipt-{number:024}")
}

fn action(number: usize) -> Action {
    Action::new("charge", "stripe").signal(format!("order-{number}")).params(json!({"amount": number}))
}

/// Actions with their keys made, as a caller has who tries again.
fn actions(count: usize) -> Result<Arc<Vec<Action>>> {
    let actions: Vec<Action> = (0..count).map(action).collect();
    for action in &actions {
        action.generate_key()?;
    }
    Ok(Arc::new(actions))
}

fn keys(count: usize) -> Result<Arc<Vec<String>>> {
    let keys: Result<_> = (0..count).map(|n| Ok(action(n).generate_key()?.to_string())).collect();
    Ok(Arc::new(keys?))
}

async fn open(count: usize) -> Result<Hapax> {
    let hapax = Hapax::builder().store_url("memory:").max_entries(count.max(KEYS) as u64 + 1);
    Ok(hapax.build().await?)
}

/// The numbers of a task that does its share of `ops`, going round `keys` from a place of its own.
fn share(task: usize, threads: usize, ops: usize, keys: usize) -> impl Iterator<Item = usize> {
    let from = task * keys / threads;
    (0..ops / threads).map(move |n| (from + n) % keys)
}

fn hapax_new(threads: usize, ops: usize) -> Result<f64> {
    let actions = actions(ops)?;
    runtime(threads)?.block_on(async {
        let hapax = open(ops).await?;
        let took = tasks(threads, |task| {
            let (hapax, actions) = (hapax.clone(), actions.clone());
            async move {
                for number in share(task, threads, ops, ops) {
                    let Some(action) = actions.get(number) else { continue };
                    let outcome = hapax.execute(action, |_| async move { Ok(value(number)) }).await?;
                    ensure!(!outcome.is_replay(), "a new key was replayed");
                    black_box(outcome.value);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

/// Whether the action, and with it its key, is made in each call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Before,
    InEachCall,
}

fn hapax_replay(threads: usize, ops: usize, made: Made) -> Result<f64> {
    let actions = actions(KEYS)?;
    runtime(threads)?.block_on(async {
        let hapax = open(KEYS).await?;
        for (number, action) in actions.iter().enumerate() {
            hapax.execute(action, |_| async move { Ok(value(number)) }).await?;
        }
        let took = tasks(threads, |task| {
            let (hapax, actions) = (hapax.clone(), actions.clone());
            async move {
                for number in share(task, threads, ops, KEYS) {
                    let outcome = match made {
                        Made::Before => {
                            let Some(action) = actions.get(number) else { continue };
                            hapax.execute(action, |_| async { Ok(String::new()) }).await?
                        }
                        Made::InEachCall => hapax.execute(&action(number), |_| async { Ok(String::new()) }).await?,
                    };
                    ensure!(outcome.is_replay(), "a replay ran");
                    black_box(outcome.value);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

type Quick = quick_cache::sync::Cache<String, String>;

fn quick_new(threads: usize, ops: usize) -> Result<f64> {
    let keys = keys(ops)?;
    let cache = Arc::new(Quick::new(2 * ops));
    runtime(threads)?.block_on(async {
        let took = tasks(threads, |task| {
            let (cache, keys) = (cache.clone(), keys.clone());
            async move {
                for number in share(task, threads, ops, ops) {
                    let Some(key) = keys.get(number) else { continue };
                    let made = async { Ok::<_, Infallible>(value(number)) };
                    black_box(cache.get_or_insert_async(key.as_str(), made).await?);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

fn quick_replay(threads: usize, ops: usize, made: Made) -> Result<f64> {
    let keys = keys(KEYS)?;
    let cache = Arc::new(Quick::new(10_000));
    // A key made by hand: the params as text, neither canonical nor hashed.
    let by_hand = |n: usize| format!("order-{n}:charge:stripe:{}", json!({"amount": n}));
    for number in 0..KEYS {
        let key = match made {
            Made::Before => keys.get(number).cloned().unwrap_or_default(),
            Made::InEachCall => by_hand(number),
        };
        cache.insert(key, value(number));
    }
    runtime(threads)?.block_on(async {
        let took = tasks(threads, |task| {
            let (cache, keys) = (cache.clone(), keys.clone());
            async move {
                for number in share(task, threads, ops, KEYS) {
                    let none = async { Ok::<_, Infallible>(String::new()) };
                    let value = match made {
                        Made::Before => {
                            let Some(key) = keys.get(number) else { continue };
                            cache.get_or_insert_async(key.as_str(), none).await?
                        }
                        Made::InEachCall => cache.get_or_insert_async(by_hand(number).as_str(), none).await?,
                    };
                    ensure!(!value.is_empty(), "quick_cache forgot a value");
                    black_box(value);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

fn moka(threads: usize, ops: usize, key_count: usize) -> Result<f64> {
    let keys = keys(key_count)?;
    let cache = moka::future::Cache::<String, String>::new(2 * key_count as u64);
    runtime(threads)?.block_on(async {
        if ops > key_count {
            for (number, key) in keys.iter().enumerate() {
                cache.insert(key.clone(), value(number)).await;
            }
            cache.run_pending_tasks().await;
        }
        let took = tasks(threads, |task| {
            let (cache, keys) = (cache.clone(), keys.clone());
            async move {
                for number in share(task, threads, ops, key_count) {
                    let Some(key) = keys.get(number) else { continue };
                    let made = async { Ok::<_, Infallible>(value(number)) };
                    black_box(cache.try_get_with_by_ref(key.as_str(), made).await?);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

#[cfg(with_idempotent)]
fn idempotent(threads: usize, ops: usize, key_count: usize) -> Result<f64> {
    use idempotent::{ExecutionOutcome, IdempotencyKey, IdempotencyStore, memory::MemoryStore};
    type Prepared = Arc<Vec<(IdempotencyKey, String)>>;

    const LEASE: Duration = Duration::from_secs(60);
    const TTL: Duration = Duration::from_secs(24 * 3600);
    // It makes the fingerprint in each call; the request that it is made of stands ready. It allows no colon.
    let prepare = |n: usize| -> Result<_> {
        let key = action(n).generate_key()?.as_str().replace(':', ".");
        Ok((IdempotencyKey::new(key)?, json!({"amount": n}).to_string()))
    };
    let keys: Result<Vec<_>> = (0..key_count).map(prepare).collect();
    let keys: Prepared = Arc::new(keys?);

    async fn call(store: &MemoryStore, key: &IdempotencyKey, request: &str, number: usize) -> Result<(String, bool)> {
        let claim = store.claim(key, LEASE).fingerprint("charge stripe", request.as_bytes()).json();
        match claim.execute_or_replay(TTL, |_| async move { Ok(value(number)) }).await? {
            ExecutionOutcome::Executed(value) => Ok((value, false)),
            ExecutionOutcome::Replayed(value) => Ok((value, true)),
            _ => anyhow::bail!("idempotent neither ran nor replayed"),
        }
    }

    runtime(threads)?.block_on(async {
        let store = MemoryStore::builder().try_build()?;
        let replays = ops > key_count;
        if replays {
            for (number, (key, request)) in keys.iter().enumerate() {
                call(&store, key, request, number).await?;
            }
        }
        let took = tasks(threads, |task| {
            let (store, keys) = (store.clone(), keys.clone());
            async move {
                for number in share(task, threads, ops, key_count) {
                    let Some((key, request)) = keys.get(number) else { continue };
                    let (value, replayed) = call(&store, key, request, number).await?;
                    ensure!(replayed == replays, "idempotent replayed a new key, or ran a known one");
                    black_box(value);
                }
                Ok(())
            }
        })
        .await?;
        Ok(per_op(took, ops))
    })
}

/// All rows of this part, and what they cannot say.
pub fn measure(size: Size, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Vec<String>)> {
    let mut rows = Vec::new();
    for threads in [1, 2] {
        let on = if threads == 1 { "1 thread" } else { "2 threads" };
        say(&format!("a: new keys, {on}"));
        let mut contestants = vec![
            Contestant::new("hapax", || hapax_new(threads, size.new)),
            Contestant::new("quick_cache `get_or_insert_async`", || quick_new(threads, size.new)),
            Contestant::new("moka `try_get_with`", || moka(threads, size.new, size.new)),
        ];
        #[cfg(with_idempotent)]
        contestants.push(Contestant::new("idempotent `execute_or_replay`", || idempotent(threads, size.new, size.new)));
        let series = interleave(&mut contestants, size.rounds)?;
        rows.extend(beside(&format!("memory, new key, {on}"), &series, |it| {
            it.starts_with("idempotent").then_some(2.0)
        }));

        say(&format!("a: replays, {on}"));
        let mut contestants = vec![
            Contestant::new("hapax", || hapax_replay(threads, size.replays, Made::Before)),
            Contestant::new("quick_cache `get_or_insert_async`", || quick_replay(threads, size.replays, Made::Before)),
            Contestant::new("moka `try_get_with`", || moka(threads, size.replays, KEYS)),
        ];
        #[cfg(with_idempotent)]
        contestants
            .push(Contestant::new("idempotent `execute_or_replay`", || idempotent(threads, size.slow_replays, KEYS)));
        let series = interleave(&mut contestants, size.rounds)?;
        rows.extend(beside(&format!("memory, replay, {on}"), &series, |it| it.starts_with("quick").then_some(1.0)));

        let mut contestants = vec![
            Contestant::new("hapax", || hapax_replay(threads, size.slow_replays, Made::InEachCall)),
            Contestant::new("quick_cache, key put together by hand", || {
                quick_replay(threads, size.slow_replays, Made::InEachCall)
            }),
        ];
        let series = interleave(&mut contestants, size.rounds)?;
        rows.extend(beside(&format!("memory, replay, action made in each call, {on}"), &series, |_| None));
    }
    let mut notes = vec![
        "a: the value is a `String` of 32 bytes; keys are made before the clock starts, except in the rows that say \
         otherwise. hapax records params, owner, times, a lease and a fingerprint for each key and reads its answer back \
         from the recorded JSON; the caches keep a value. Replays go round 1 000 keys."
            .to_string(),
    ];
    if cfg!(not(with_idempotent)) {
        notes.push("a: without the crate `idempotent`: build with `cargo xtask bench`, which asks for it.".into());
    }
    Ok((rows, notes))
}

/// A row for each that was measured beside hapax, which is the first.
fn beside(what: &str, series: &[Series], target: impl Fn(&str) -> Option<f64>) -> Vec<Row> {
    let Some((ours, others)) = series.split_first() else { return Vec::new() };
    others.iter().map(|it| Row::new(Part::A, what, Show::Time, ours, it).target(target(&it.name))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_its_share_and_together_they_cover_every_key() {
        let mut all: Vec<usize> = (0..2).flat_map(|task| share(task, 2, 10, 10)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn every_contestant_does_what_it_is_timed_for() {
        let size = Size { new: 20, replays: 2 * KEYS, slow_replays: 2 * KEYS, rounds: 1 };
        let (rows, notes) = measure(size, &mut |_| {}).unwrap();
        let rivals = if cfg!(with_idempotent) { 3 } else { 2 };
        assert_eq!(rows.len(), 2 * (2 * rivals + 1));
        assert!(rows.iter().all(|r| r.ratio.is_some()));
        assert!(!notes.is_empty());
    }
}
