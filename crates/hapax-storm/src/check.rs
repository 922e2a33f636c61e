//! What must be true after a storm, and whether it is.
//!
//! [`judge`] holds the promises of one key against three witnesses: the ledger
//! (what happened), the event log (what callers were told) and the record (what
//! hapax says). It is a pure function, so that its own tests can show each kind
//! of violation to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use hapax::{ActionError, Error, Hapax, InFlight, OnDoubt, PolicyPatch, Record, State};

use crate::fleet::Strikes;
use crate::lines::{self, Line};
use crate::plan::{Answer, Orders, Phase};

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
            (&mut self.replayed_after, o.replayed_after),
        ] {
            *mine += other;
        }
    }
}

/// What the witnesses other than the record say of a key.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `key attempt value`
    pub ledger: Vec<Line>,
    /// `what key …`
    pub events: Vec<Line>,
}

impl Seen {
    fn said<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a Line> {
        self.events.iter().filter(move |l| l.field(0) == what)
    }
}

/// What of a key's promises is broken.
pub fn judge(phase: Phase, seen: &Seen, record: Option<&Record>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            broken.push(what.to_owned());
        }
    };
    let effect = seen.ledger.first();
    let state = record.map(|r| r.state);

    must(seen.ledger.len() <= 1, "the effect happened more than once");
    for ack in seen.said("ack") {
        must(effect.is_some(), "a caller got a value, and the effect never happened");
        must(effect.is_none_or(|e| e.field(2) == ack.field(2)), "a caller got a value that is not the effect's");
        must(state == Some(State::Completed), "a caller got a value, and no result is on record");
    }
    must(state != Some(State::InProgress), "in progress, and no process is left that could run it");
    must(state != Some(State::Failed), "recorded as failed, and no action fails for good");
    match effect {
        Some(effect) => {
            must(
                matches!(state, Some(State::Completed | State::InDoubt)),
                "the effect happened, and the record neither has a result nor doubts it: it would run again",
            );
            if phase == Phase::Refuse {
                must(
                    record.is_none_or(|r| r.attempt_id.to_string() == effect.field(1)),
                    "the record is another attempt's than the effect's",
                );
            }
            if state == Some(State::Completed) {
                let recorded = record.and_then(|r| r.result.clone()).and_then(|r| r.to::<Answer>().ok());
                must(recorded == Some(Answer::of(effect.field(2))), "the recorded result is not the effect's value");
            }
        }
        None => must(state != Some(State::Completed), "a result is on record, and the effect never happened"),
    }
    if phase == Phase::Recover {
        must(state == Some(State::Completed), "not completed after recovery");
    }
    // Many callers may have been told the same wrong thing: once is enough.
    let mut told = HashSet::new();
    broken.retain(|what| told.insert(what.clone()));
    broken
}

/// Checks everything, after all workers are gone.
pub async fn check(orders: &Orders, strikes: Strikes) -> Result<(Vec<Violation>, Tally)> {
    let fresh = Hapax::builder()
        .store_url(orders.store_url())
        .label("checker")
        .policy(PolicyPatch::new().on_doubt(OnDoubt::Refuse).in_flight(InFlight::Reject))
        .build()
        .await?;
    let mut seen: HashMap<String, Seen> = HashMap::new();
    for line in lines::read(&orders.ledger())? {
        seen.entry(line.field(0).into()).or_default().ledger.push(line);
    }
    for line in lines::read(&orders.events())? {
        seen.entry(line.field(1).into()).or_default().events.push(line);
    }
    let mut tally = count(&seen);
    let mut violations = Vec::new();
    let mut states = HashMap::new();
    // The records first: how soon a dead owner is noticed is part of the promise.
    let mut records = Vec::new();
    for n in 0..orders.keys {
        let key = orders.key(n)?;
        records.push((n, fresh.record(&key).await?));
    }
    for (n, record) in &records {
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
            match ask_again(&fresh, orders, *n, &seen).await {
                Ok(replayed) => tally.replayed_after += u64::from(replayed),
                Err(what) => broken.push(what),
            }
        }
        let evidence = || {
            let lines = |lines: &[Line]| {
                // Of a hundred equal replays one is enough.
                lines
                    .chunk_by(|a, b| a == b)
                    .map(|equal| format!("\n      {} × {}", equal.len(), equal.first().cloned().unwrap_or_default()))
                    .collect::<String>()
            };
            let record = record.as_ref().map_or_else(
                || "absent".to_owned(),
                |r| serde_json::to_string(r).unwrap_or_else(|e| format!("cannot be shown: {e}")),
            );
            format!("    ledger:{}\n    events:{}\n    record: {record}", lines(&seen.ledger), lines(&seen.events))
        };
        violations.extend(broken.into_iter().map(|what| Violation {
            key: Some(key.to_string()),
            what,
            evidence: evidence(),
        }));
    }
    // What is left was never asked for.
    violations
        .extend(seen.keys().map(|key| Violation::general(format!("key {key} is in a log, and nobody presented it"))));
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

/// Presents a key that has a record to a fresh manager, with an action that must not run.
async fn ask_again(fresh: &Hapax, orders: &Orders, n: u64, seen: &Seen) -> Result<bool, String> {
    let ran = Arc::new(AtomicBool::new(false));
    let told = ran.clone();
    let answer = fresh
        .execute(&orders.action(n), move |_| async move {
            told.store(true, Ordering::Relaxed);
            Err::<Answer, _>(ActionError::unknown("it must not run"))
        })
        .await;
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
    let stats = fresh.stats().await?;
    let count = |state| states.get(&state).copied().unwrap_or_default();
    // An attempt that was killed between its begin and its first line counts, too.
    let most = tally.runs + (strikes.kills + tally.mishaps) * orders.tasks as u64;
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

fn count(seen: &HashMap<String, Seen>) -> Tally {
    let mut tally = Tally::default();
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
                "cancelled" | "panicked" | "retryable" | "unknown" => tally.mishaps += 1,
                _ => {}
            }
        }
    }
    tally
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ATTEMPT: &str = "0195f7a0-0000-7000-8000-000000000001";
    const OTHER: &str = "0195f7a0-0000-7000-8000-000000000002";
    const VALUE: &str = "f000000000000001";

    fn seen(ledger: &[[&str; 2]], acks: &[&str]) -> Seen {
        Seen {
            ledger: ledger.iter().map(|[attempt, value]| Line::of(&["k", attempt, value])).collect(),
            events: acks.iter().map(|value| Line::of(&["ack", "k", value])).collect(),
        }
    }

    fn record(state: &str, attempt: &str, value: Option<&str>) -> Record {
        let result = value.map(|v| serde_json::json!(Answer::of(v)));
        let mut json = serde_json::json!({
            "key": "s1:append:ledger:0000000000000000",
            "namespace": "default",
            "actionType": "append",
            "target": "ledger",
            "fingerprint": "00".repeat(32),
            "state": state,
            "attemptId": attempt,
            "attempts": 1,
            "attemptCount": 1,
            "startedAt": "2025-01-01T00:00:00.000Z",
            "owner": {"host": "h", "pid": 1},
        });
        if let (Some(result), Some(fields)) = (result, json.as_object_mut()) {
            fields.insert("result".into(), result);
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_may_be_is_let_be() {
        let completed = record("completed", ATTEMPT, Some(VALUE));
        let doubtful = record("in_doubt", ATTEMPT, None);
        for (ledger, acks, record) in [
            (&[][..], &[][..], None),
            (&[][..], &[][..], Some(&doubtful)),
            (&[[ATTEMPT, VALUE]][..], &[][..], Some(&doubtful)),
            (&[[ATTEMPT, VALUE]][..], &[][..], Some(&completed)),
            (&[[ATTEMPT, VALUE]][..], &[VALUE, VALUE][..], Some(&completed)),
        ] {
            assert_eq!(judge(Phase::Refuse, &seen(ledger, acks), record), [""; 0]);
        }
        let by_verifier = record("completed", OTHER, Some(VALUE));
        assert_eq!(judge(Phase::Recover, &seen(&[[ATTEMPT, VALUE]], &[VALUE]), Some(&by_verifier)), [""; 0]);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let one = &[[ATTEMPT, VALUE]][..];
        let completed = || Some(record("completed", ATTEMPT, Some(VALUE)));
        let wrong = || Some(record("completed", ATTEMPT, Some("f000000000000002")));
        let doubtful = || Some(record("in_doubt", ATTEMPT, None));
        for (what, phase, ledger, acks, record) in [
            ("a double", Phase::Refuse, &[[ATTEMPT, VALUE], [OTHER, "f000000000000002"]][..], &[][..], completed()),
            ("a value of nothing", Phase::Refuse, &[][..], &[VALUE][..], completed()),
            ("another value", Phase::Refuse, one, &["f000000000000002"][..], completed()),
            ("two values", Phase::Refuse, one, &[VALUE, "f000000000000002"][..], completed()),
            ("a lost result", Phase::Refuse, one, &[VALUE][..], None),
            ("a doubted result", Phase::Refuse, one, &[VALUE][..], doubtful()),
            ("a free key after an effect", Phase::Refuse, one, &[][..], None),
            ("a wrong result", Phase::Refuse, one, &[][..], wrong()),
            ("a result of nothing", Phase::Refuse, &[][..], &[][..], completed()),
            ("another's doubt", Phase::Refuse, one, &[][..], Some(self::record("in_doubt", OTHER, None))),
            ("a dead owner", Phase::Refuse, one, &[][..], Some(self::record("in_progress", ATTEMPT, None))),
            ("a failure", Phase::Refuse, &[][..], &[][..], Some(self::record("failed", ATTEMPT, None))),
            ("a doubt after recovery", Phase::Recover, one, &[][..], doubtful()),
            ("a gap after recovery", Phase::Recover, &[][..], &[][..], None),
        ] {
            assert_ne!(judge(phase, &seen(ledger, acks), record.as_ref()), [""; 0], "{what}");
        }
    }
}
