//! A round: a fresh store, a storm under `refuse`, a check, a recovery with a
//! verifier, another check.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::check::{self, Tally, Violation};
use crate::fleet::{Fleet, Strikes};
use crate::plan::{Durability, Orders, Phase, Sabotage, now_ms};

/// What all rounds have in common.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub workers: usize,
    pub tasks: usize,
    /// Drawn anew for each round when `None`.
    pub durability: Option<Durability>,
    pub sabotage: Option<Sabotage>,
}

/// How a round went.
#[derive(Debug, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// After phase 1: what happened under `refuse`.
    pub storm: Tally,
    /// After phase 2, both phases together.
    pub all: Tally,
    pub strikes: Strikes,
    pub recovery: Duration,
    pub weather: String,
}

/// New keys a second: few enough that each is presented a dozen times.
const KEYS_PER_SECOND: u64 = 150;
/// How long all workers may take to end after they were told to, or to recover
/// all keys once nothing strikes any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a round of about this long in an empty directory.
pub fn run(
    dir: &Path,
    seed: u64,
    time: Duration,
    settings: Settings,
    runtime: &tokio::runtime::Runtime,
) -> Result<Report> {
    let mut rng = StdRng::seed_from_u64(seed);
    let durability = if rng.random() { Durability::Sync } else { Durability::Buffered };
    // With the short lease, paused workers lose theirs and answer late. With the
    // long one, only the look whether the owner lives can end a dead attempt.
    let lease = Duration::from_secs(if rng.random() { 1 } else { 60 });
    let drain = rng.random();
    let (storm_time, recovery_time) = (time.mul_f64(0.6), time.mul_f64(0.35));
    let mut orders = Orders {
        dir: dir.to_owned(),
        seed,
        phase: Phase::Refuse,
        worker: 0,
        life: 0,
        tasks: settings.tasks,
        keys: keys_in(storm_time),
        first: 0,
        began_ms: now_ms(),
        keys_per_second: KEYS_PER_SECOND,
        durability: settings.durability.unwrap_or(durability),
        lease,
        sabotage: settings.sabotage,
    };
    let mut report = Report {
        weather: format!(
            "{}, lease {} s, {} at the end",
            orders.durability.as_str(),
            lease.as_secs(),
            if drain { "stopped" } else { "killed" }
        ),
        ..Report::default()
    };

    let mut fleet = Fleet::new(orders.clone(), settings.workers);
    fleet.rage(Instant::now() + storm_time, &mut rng)?;
    if drain && !fleet.drain(PATIENCE, &mut rng)? {
        report
            .violations
            .push(Violation::general(format!("wedged: workers that were told to stop still run after {PATIENCE:?}")));
    }
    conclude(fleet, &mut report)?;
    let (violations, tally) = runtime.block_on(check::check(&orders, report.strikes))?;
    report.violations.extend(violations);
    report.storm = tally;
    report.all = tally;
    if !report.violations.is_empty() {
        // What comes after would only repeat it.
        return Ok(report);
    }

    // Recovery of the old keys, and a storm with a verifier over new ones. A
    // verifier's "it did not happen" must stay true, so the lease must not lapse
    // under an attempt that lives: that is the user's part.
    orders.phase = Phase::Recover;
    orders.lease = Duration::from_secs(60);
    orders.first = orders.keys;
    orders.keys += keys_in(recovery_time.mul_f64(0.8));
    orders.began_ms = now_ms();
    let began = Instant::now();
    let mut fleet = Fleet::new(orders.clone(), settings.workers);
    fleet.rage(began + recovery_time, &mut rng)?;
    if !fleet.finish(PATIENCE, &mut rng)? {
        report
            .violations
            .push(Violation::general(format!("wedged: not all keys are completed {PATIENCE:?} after the last kill")));
    }
    report.recovery = began.elapsed();
    conclude(fleet, &mut report)?;
    let (violations, tally) = runtime.block_on(check::check(&orders, report.strikes))?;
    report.violations.extend(violations);
    report.all = Tally { doubts_done: report.storm.doubts_done, doubts_undone: report.storm.doubts_undone, ..tally };
    Ok(report)
}

/// Keys that come up in this time.
fn keys_in(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX) * KEYS_PER_SECOND / 1000 + 1
}

/// Ends a fleet and takes its losses down.
fn conclude(mut fleet: Fleet, report: &mut Report) -> Result<()> {
    fleet.kill_all()?;
    report.strikes.kills += fleet.strikes.kills;
    report.strikes.pauses += fleet.strikes.pauses;
    report.violations.extend(fleet.deaths.drain(..).map(Violation::general));
    Ok(())
}
