//! What must be true after a storm, and whether it is: each key's promises
//! (`judge`), and what hapax counts.
//!
//! It goes by parts of [`PART`](crate::plan::PART) keys, of which one at a time is
//! in memory.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use hapax::store::StoreError;
use hapax::{ActionError, Error, Hapax, InFlight, OnDoubt, PolicyPatch, Record, State};

use crate::fleet::Strikes;
use crate::judge::{Seen, judge};
use crate::lines::{self, Line};
use crate::plan::{Answer, Orders, Phase};

/// How many keys are asked for at a time.
const AT_ONCE: usize = 256;

/// A promise that was not kept.
#[derive(Debug)]
pub struct Violation {
    pub key: Option<String>,
    pub what: String,
    /// Everything known about the key.
    pub evidence: String,
}

impl Violation {
    /// One that is about no key in particular.
    pub fn general(what: impl Into<String>) -> Self {
        Self { key: None, what: what.into(), evidence: String::new() }
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Keys that callers presented.
    pub keys: u64,
    /// Actions that began to run, and effects they had.
    pub runs: u64,
    pub effects: u64,
    /// Values that callers got, and how many of those without a run.
    pub acks: u64,
    pub replays: u64,
    /// Times that a caller was told of a doubt.
    pub refusals: u64,
    /// Keys in doubt after phase 1 whose effect had happened, and whose had not.
    pub doubts_done: u64,
    pub doubts_undone: u64,
    /// Calls that the storm cut short, or whose action panicked or failed.
    pub mishaps: u64,
    /// Results that could not be recorded, and calls that found the store locked.
    pub unrecorded: u64,
    pub busy: u64,
    /// Calls that the store turned away while it failed.
    pub outages: u64,
    /// Recorded results that a fresh manager replayed.
    pub replayed_after: u64,
}

impl Tally {
    /// Adds another's counts.
    pub fn add(&mut self, o: &Self) {
        for (mine, other) in [
            (&mut self.keys, o.keys),
            (&mut self.runs, o.runs),
            (&mut self.effects, o.effects),
            (&mut self.acks, o.acks),
            (&mut self.replays, o.replays),
            (&mut self.refusals, o.refusals),
            (&mut self.doubts_done, o.doubts_done),
            (&mut self.doubts_undone, o.doubts_undone),
            (&mut self.mishaps, o.mishaps),
            (&mut self.unrecorded, o.unrecorded),
            (&mut self.busy, o.busy),
            (&mut self.outages, o.outages),
            (&mut self.replayed_after, o.replayed_after),
        ] {
            *mine += other;
        }
    }
}

/// Checks everything, after all workers are gone.
pub async fn check(orders: &Orders, strikes: Strikes) -> Result<(Vec<Violation>, Tally)> {
    let fresh = Hapax::builder()
        .store_url(orders.store_url())
        .label("checker")
        .policy(PolicyPatch::new().on_doubt(OnDoubt::Refuse).in_flight(InFlight::Reject))
        .build()
        .await?;
    let (mut violations, mut tally, mut states) = (Vec::new(), Tally::default(), HashMap::new());
    for part in orders.parts() {
        check_part(&fresh, orders, part, &mut violations, &mut tally, &mut states).await?;
    }
    violations.extend(stats(&fresh, &states, &tally, strikes, orders).await?);
    let unfinished = fresh.shutdown(Duration::from_secs(10)).await?.unfinished;
    if unfinished != 0 {
        violations.push(Violation::general(format!(
            "the checker ran nothing, and {unfinished} attempts of it are in flight"
        )));
    }
    if let Ok(complaints) = std::fs::read_to_string(orders.complaints()) {
        violations.extend(complaints.lines().map(Violation::general));
    }
    Ok((violations, tally))
}

async fn check_part(
    fresh: &Hapax,
    orders: &Orders,
    part: Range<u64>,
    violations: &mut Vec<Violation>,
    tally: &mut Tally,
    states: &mut HashMap<State, u64>,
) -> Result<()> {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    for line in lines::read(&orders.ledger(part.start))? {
        seen.entry(line.field(0).into()).or_default().ledger.push(line);
    }
    for line in lines::read(&orders.events(part.start))? {
        seen.entry(line.field(1).into()).or_default().events.push(line);
    }
    count(&seen, tally);
    // The records first: how soon a dead owner is noticed is part of the promise.
    let records: Vec<(u64, Option<Record>)> = stream::iter(part)
        .map(|n| async move {
            let key = orders.key(n)?;
            anyhow::Ok((n, patiently(|| fresh.record(&key)).await?))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let of = |n: u64| anyhow::Ok(seen.get(orders.key(n)?.as_str()).cloned().unwrap_or_default());
    let answers: Vec<Option<Result<bool, String>>> = stream::iter(&records)
        .map(|(n, record)| async move {
            match record {
                Some(_) => anyhow::Ok(Some(ask_again(fresh, orders, *n, &of(*n)?).await)),
                None => Ok(None),
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    for ((n, record), answer) in records.iter().zip(answers) {
        let key = orders.key(*n)?;
        let seen = seen.remove(key.as_str()).unwrap_or_default();
        let mut broken = judge(orders.phase, &seen, record.as_ref());
        if let Some(record) = record {
            *states.entry(record.state).or_insert(0_u64) += 1;
            match (record.state, seen.ledger.is_empty()) {
                (State::InDoubt, false) => tally.doubts_done += 1,
                (State::InDoubt, true) => tally.doubts_undone += 1,
                _ => {}
            }
        }
        match answer {
            Some(Ok(replayed)) => tally.replayed_after += u64::from(replayed),
            Some(Err(what)) => broken.push(what),
            None => {}
        }
        violations.extend(broken.into_iter().map(|what| Violation {
            key: Some(key.to_string()),
            what,
            evidence: evidence(&seen, record.as_ref()),
        }));
    }
    // What is left was never asked for.
    violations
        .extend(seen.keys().map(|key| Violation::general(format!("key {key} is in a log, and nobody presented it"))));
    Ok(())
}

fn evidence(seen: &Seen, record: Option<&Record>) -> String {
    let lines = |lines: &[Line]| {
        // Of a hundred equal replays one is enough.
        lines
            .chunk_by(|a, b| a == b)
            .map(|equal| format!("\n      {} × {}", equal.len(), equal.first().cloned().unwrap_or_default()))
            .collect::<String>()
    };
    let record = record.map_or_else(
        || "absent".to_owned(),
        |r| serde_json::to_string(r).unwrap_or_else(|e| format!("cannot be shown: {e}")),
    );
    format!("    ledger:{}\n    events:{}\n    record: {record}", lines(&seen.ledger), lines(&seen.events))
}

/// How long the checker asks a server that does not answer, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the store answers, but not for ever.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> Result<T, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(Error::Store(StoreError::Unavailable { .. } | StoreError::AnswerLost { .. }))
                if Instant::now() < until => {}
            answer => return answer,
        }
    }
}

/// Presents a key that has a record to a fresh manager, with an action that must not run.
async fn ask_again(fresh: &Hapax, orders: &Orders, n: u64, seen: &Seen) -> Result<bool, String> {
    let ran = Arc::new(AtomicBool::new(false));
    let told = ran.clone();
    let action = orders.action(n);
    let ask = || {
        let told = told.clone();
        fresh.execute(&action, move |_| async move {
            told.store(true, Ordering::Relaxed);
            Err::<Answer, _>(ActionError::unknown("it must not run"))
        })
    };
    let answer = patiently(ask).await;
    if ran.load(Ordering::Relaxed) {
        return Err("the action ran again when the key was presented after the storm".into());
    }
    let expected = seen.ledger.first().map(|l| Answer::of(l.field(2)));
    match answer {
        Ok(outcome) if Some(&outcome.value) == expected.as_ref() => Ok(true),
        Ok(outcome) => {
            Err(format!("a fresh manager replays {:?}, which is not the effect's value", outcome.value.value))
        }
        Err(Error::InDoubt { .. }) if orders.phase == Phase::Refuse && seen.said("ack").next().is_none() => Ok(false),
        Err(error) => Err(format!("a fresh manager does not replay it: {error}")),
    }
}

/// The statistics must agree with the records, and not exceed what was seen.
async fn stats(
    fresh: &Hapax,
    states: &HashMap<State, u64>,
    tally: &Tally,
    strikes: Strikes,
    orders: &Orders,
) -> Result<Vec<Violation>> {
    let stats = patiently(|| fresh.stats()).await?;
    let count = |state| states.get(&state).copied().unwrap_or_default();
    // An attempt that was killed between its begin and its first line counts, too.
    let most = tally.runs + tally.outages + (strikes.kills + tally.mishaps) * orders.tasks as u64;
    Ok([
        (stats.total_cached == states.values().sum::<u64>(), "the total"),
        (stats.in_doubt == count(State::InDoubt), "the keys in doubt"),
        (stats.in_progress == count(State::InProgress), "the live attempts"),
        (stats.executions <= most, "the executions"),
        (stats.evicted == 0 && stats.expired_cleaned == 0 && stats.mismatches == 0, "what never happened"),
        ((0.0..=1.0).contains(&stats.hit_rate), "the hit rate"),
    ]
    .into_iter()
    .filter(|(holds, _)| !holds)
    .map(|(_, what)| {
        Violation::general(format!(
            "the statistics are wrong about {what}: {stats:?}, against {states:?} and {tally:?}"
        ))
    })
    .collect())
}

fn count(seen: &HashMap<String, Seen>, tally: &mut Tally) {
    for key in seen.values() {
        tally.keys += 1;
        tally.effects += key.ledger.len() as u64;
        for line in &key.events {
            match line.field(0) {
                "run" => tally.runs += 1,
                "ack" => {
                    tally.acks += 1;
                    tally.replays += u64::from(line.field(3) == "replay");
                }
                "doubt" => tally.refusals += 1,
                "unrecorded" => tally.unrecorded += 1,
                "busy" => tally.busy += 1,
                "cancelled" | "panicked" | "retryable" | "unknown" | "lost" => tally.mishaps += 1,
                "outage" => tally.outages += 1,
                _ => {}
            }
        }
    }
}
