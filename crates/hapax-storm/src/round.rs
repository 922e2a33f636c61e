//! A round: a fresh store, a storm under `refuse`, a check, a recovery with a
//! verifier, another check.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::check::{self, Tally, Violation};
use crate::fleet::{Fleet, Strikes};
use crate::ground::{Ground, Kind};
use crate::plan::{Durability, Orders, Phase, Place, Sabotage, WallClock, now_ms};

/// What all rounds have in common. What is `None` is drawn anew for each.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub store: Kind,
    /// MiB of the disk, if it is to be a small one.
    pub disk: Option<u32>,
    /// How many come up in a round; as many as its time is good for if `None`.
    pub keys: Option<u64>,
    pub workers: usize,
    pub tasks: usize,
    pub durability: Option<Durability>,
    pub clock: Option<WallClock>,
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
pub const KEYS_PER_SECOND: u64 = 150;
/// How long all workers may take to end after they were told to, or, once nothing
/// strikes any more, to recover one more key.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after its lease an attempt whose owner is dead may still live: what it had sent is on its way.
const LINGERING: Duration = Duration::from_millis(500);
/// What of a round's time is for the storm, and for the recovery; in the last part of that no keys come up.
const SHARES: (f64, f64, f64) = (0.6, 0.35, 0.8);

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
    // long one, only the look whether the owner lives can end a dead attempt; a
    // server cannot look.
    let long = if settings.store == Kind::Sqlite { 60 } else { 2 };
    let lease = Duration::from_secs(if rng.random() { 1 } else { long });
    let clock = if rng.random() { WallClock::Steady } else { WallClock::Jumping };
    let drain = rng.random();
    let mut ground = Ground::prepare(settings.store, settings.disk, dir)?;
    let (storm_time, recovery_time) = (time.mul_f64(SHARES.0), time.mul_f64(SHARES.1));
    let keys_per_second = settings.keys.map_or(KEYS_PER_SECOND, |keys| rate(keys, time));
    let keys_in = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX) * keys_per_second / 1000 + 1;
    let storm_keys = keys_in(storm_time);
    let all_keys = settings.keys.unwrap_or_else(|| storm_keys + keys_in(recovery_time.mul_f64(SHARES.2)));
    let mut orders = Orders {
        dir: dir.to_owned(),
        seed,
        phase: Phase::Refuse,
        workers: settings.workers,
        worker: 0,
        life: 0,
        tasks: settings.tasks,
        keys: storm_keys.min(all_keys),
        first: 0,
        began_ms: now_ms(),
        keys_per_second,
        place: ground.place.clone(),
        durability: settings.durability.unwrap_or(durability),
        jumping: settings.store == Kind::Sqlite && settings.clock.unwrap_or(clock) == WallClock::Jumping,
        lease,
        sabotage: settings.sabotage,
    };
    let mut report = Report { weather: weather(&orders, drain), ..Report::default() };

    let mut fleet = Fleet::new(orders.clone());
    fleet.rage(Instant::now() + storm_time, &mut ground, &mut rng)?;
    if drain && !fleet.drain(PATIENCE, &mut rng)? {
        report
            .violations
            .push(Violation::general(format!("wedged: workers that were told to stop still run after {PATIENCE:?}")));
    }
    conclude(fleet, &orders, &mut report)?;
    report.strikes.outages = ground.outages;
    let (violations, tally) = runtime.block_on(check::check(&orders, report.strikes))?;
    report.violations.extend(violations);
    report.storm = tally;
    report.all = tally;
    if !report.violations.is_empty() {
        // What comes after would only repeat it.
        return Ok(report);
    }

    // Recovery of the old keys, and a storm with a verifier over new ones. A
    // verifier's "it did not happen" must stay true: so the lease must not lapse
    // under an attempt that lives, which is the user's part, or it must fence.
    orders.phase = Phase::Recover;
    if settings.store == Kind::Sqlite {
        orders.lease = Duration::from_secs(60);
    }
    orders.first = orders.keys;
    orders.keys = all_keys.max(orders.keys);
    orders.began_ms = now_ms();
    let began = Instant::now();
    let mut fleet = Fleet::new(orders.clone());
    fleet.rage(began + recovery_time, &mut ground, &mut rng)?;
    if !fleet.finish(PATIENCE, &mut rng)? {
        report
            .violations
            .push(Violation::general(format!("wedged: not all keys are completed, and none was for {PATIENCE:?}")));
    }
    report.recovery = began.elapsed();
    conclude(fleet, &orders, &mut report)?;
    report.strikes.outages = ground.outages;
    let (violations, tally) = runtime.block_on(check::check(&orders, report.strikes))?;
    report.violations.extend(violations);
    report.all = Tally { doubts_done: report.storm.doubts_done, doubts_undone: report.storm.doubts_undone, ..tally };
    Ok(report)
}

/// Keys that have to come up a second, so that so many do in this time.
pub fn rate(keys: u64, time: Duration) -> u64 {
    let (storm, recovery, coming) = SHARES;
    let millis = time.mul_f64(storm + recovery * coming).as_millis();
    u64::try_from(u128::from(keys) * 1000 / millis.max(1)).map_or(u64::MAX, |rate| rate + 1)
}

fn weather(orders: &Orders, drain: bool) -> String {
    let mut words = vec![match orders.place {
        Place::Server(_) => "killed server".to_owned(),
        Place::SmallDisk => format!("full disk, {}", orders.durability.as_str()),
        Place::File => orders.durability.as_str().to_owned(),
    }];
    words.push(format!("lease {} s", orders.lease.as_secs()));
    if orders.jumping {
        words.push("wall clock jumps".into());
    }
    words.push(format!("{} at the end", if drain { "stopped" } else { "killed" }));
    words.join(", ")
}

/// Ends a fleet, takes its losses down, and waits until its attempts are seen to be dead.
fn conclude(mut fleet: Fleet, orders: &Orders, report: &mut Report) -> Result<()> {
    fleet.kill_all()?;
    report.strikes.add(fleet.strikes);
    report.violations.extend(fleet.deaths.drain(..).map(Violation::general));
    if orders.place.is_server() {
        std::thread::sleep(orders.lease + LINGERING);
    }
    Ok(())
}
