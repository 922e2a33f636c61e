//! The world that actions have effects in: a ledger outside of the store, and
//! who looks into it.
//!
//! Where a lease may lapse under an attempt that lives, "it did not happen" must
//! be made to stay true. Then effect and look exclude each other by a lock, and
//! the look fences off the attempt that it found nothing of.

use std::fs::File;

use anyhow::{Context, Result, bail};
use hapax::{ActionError, Json, Verdict, Verifier};

use crate::lines::{self, Appender, Log};
use crate::plan::{Answer, Orders, Phase};

/// Whether those who look fence.
fn fences(orders: &Orders) -> bool {
    orders.phase == Phase::Recover && orders.place.is_server()
}

/// Lets the effect happen, unless the attempt was fenced off.
pub fn effect(orders: &Orders, ledger: &Log, n: u64, fields: [&str; 3]) -> Result<()> {
    let path = orders.ledger(n);
    if !fences(orders) {
        return ledger.append(path, &fields);
    }
    let [_, attempt, _] = fields;
    let _lock = lock(orders, n)?;
    if lines::find(&orders.fence(n), 0, attempt)?.is_some() {
        bail!("the target refuses attempt {attempt}: somebody was told that it had no effect");
    }
    ledger.append(path, &fields)
}

/// Looks into the ledger whether the effect of a key is there.
pub fn verifier(orders: &Orders) -> Verifier {
    let orders = orders.clone();
    Verifier::new(move |doubt| {
        let orders = orders.clone();
        async move {
            let verdict = look(&orders, doubt.key.as_str(), &doubt.attempt.to_string());
            verdict.map_err(|error| ActionError::unknown(format!("{error:#}")))
        }
    })
}

fn look(orders: &Orders, key: &str, attempt: &str) -> Result<Verdict> {
    let n = Orders::number(key).with_context(|| format!("{key} is no key of the storm"))?;
    let _lock = fences(orders).then(|| lock(orders, n)).transpose()?;
    if let Some(line) = lines::find(&orders.ledger(n), 0, key)? {
        return Ok(Verdict::Happened(Json::of(&Answer::of(line.field(2)))?));
    }
    if fences(orders) {
        Appender::open(&orders.fence(n))?.append(&[attempt])?;
    }
    Ok(Verdict::NotHappened)
}

/// Held by one process at a time, and let go of when it dies.
fn lock(orders: &Orders, n: u64) -> Result<File> {
    let file = File::options().create(true).append(true).open(orders.fence(n))?;
    file.lock()?;
    Ok(file)
}
