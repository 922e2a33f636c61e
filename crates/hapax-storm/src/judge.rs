//! The promises of one key, held against three witnesses: the ledger (what
//! happened), the event log (what callers were told) and the record (what hapax
//! says).
//!
//! [`judge`] is a pure function, so that its own tests can show each kind of
//! violation to it.

use std::collections::HashSet;

use hapax::{Record, State};

use crate::lines::Line;
use crate::plan::{Answer, Phase};

/// What the witnesses other than the record say of a key.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `key attempt value`
    pub ledger: Vec<Line>,
    /// `what key …`
    pub events: Vec<Line>,
}

impl Seen {
    /// What callers were told, of one kind.
    pub fn said<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a Line> {
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
