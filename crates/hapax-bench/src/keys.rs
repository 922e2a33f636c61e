//! (d) Making keys from params of 300 bytes.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use hapax::{Action, Key};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::report::{Part, Row, Show};
use crate::run::per_op;
use crate::stats::{Contestant, interleave};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub ops: usize,
    pub rounds: usize,
}

/// What a call to an API carries, 300 bytes as compact JSON.
fn params(number: usize) -> Value {
    json!({
        "title": "Quarterly report: revenue by region and product line",
        "assignee": "user-8f3a2c",
        "amount": number % 900_000 + 100_000,
        "rate": 0.1875,
        "labels": ["finance", "urgent", "q3"],
        "due": "2026-09-30T17:00:00Z",
        "notify": true,
        "parent": null,
        "body": "Please review the numbers before Friday and send them to the boards, as agreed."
    })
}

fn text_of(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

fn hapax_keys(ops: usize) -> Result<f64> {
    // New actions: one keeps the key it has made.
    let actions: Vec<Action> =
        (0..ops).map(|n| Action::new("create_task", "trello").signal("signal-123").params(params(n))).collect();
    let began = Instant::now();
    for action in &actions {
        black_box(Key::generate(action)?);
    }
    Ok(per_op(began.elapsed(), ops))
}

fn plain_hashes(ops: usize) -> Result<f64> {
    let values: Vec<Value> = (0..ops).map(params).collect();
    let began = Instant::now();
    for value in &values {
        black_box(Sha256::digest(text_of(value)?));
    }
    Ok(per_op(began.elapsed(), ops))
}

/// The row of this part, and what it cannot say.
pub fn measure(size: Size, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Vec<String>)> {
    say("d: keys");
    let mut contestants = [
        Contestant::new("hapax", || hapax_keys(size.ops)),
        Contestant::new("serde_json text + SHA-256", || plain_hashes(size.ops)),
    ];
    let series = interleave(&mut contestants, size.rounds)?;
    let [ours, theirs] = series.as_slice() else { return Ok((Vec::new(), Vec::new())) };
    let row = Row::new(Part::D, "key of params of 300 bytes", Show::Time, ours, theirs);
    let note =
        "d: hapax sorts the members, writes numbers as RFC 8785 asks, checks integers, and makes the key's text; \
                beside it, the params are written as they come and hashed."
            .to_string();
    Ok((vec![row], vec![note]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_params_are_300_bytes() {
        assert_eq!(text_of(&params(7)).unwrap().len(), 300);
    }

    #[test]
    fn both_are_timed() {
        let (rows, _) = measure(Size { ops: 5, rounds: 1 }, &mut |_| {}).unwrap();
        assert!(rows.iter().all(|r| r.ratio.is_some()));
        assert_eq!(rows.len(), 1);
    }
}
