//! `hapax-storm power`: cuts the power at random moments of a load, and checks
//! the directory that the disk may hold then, as after a storm.
//!
//! The load (`load`) runs once under `strace`, which also injects faults when
//! told to; `trace` reads what it did to its files; `disk` says what may be
//! left of that after a cut. The ledger and the event log are the witnesses:
//! they are cut at the same moment, and lose nothing.

mod disk;
mod load;
mod trace;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::check::{self, Tally, Violation};
use crate::fleet::Strikes;
use crate::plan::{Durability, Orders, Phase, Place};

pub use load::run as load;

#[derive(Args)]
pub struct Power {
    /// How many directories to check.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cuts: u32,
    /// Keys, of which each is presented once.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    keys: u64,
    /// Draw the values and the cuts from this; random, and printed, by default.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// What commits survive.
    #[arg(long, default_value = "sync")]
    durability: Durability,
    /// Inject a fault into the load, in strace's words: fdatasync:error=EIO:when=50, pwrite64:error=ENOSPC:when=900+.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<String>,
    /// A disk that makes nothing safe, to see that it is found.
    #[arg(long, hide = true)]
    ignore_syncs: bool,
}

/// Runs the load once, and checks many cuts of it.
pub fn run(power: &Power) -> Result<ExitCode> {
    let seed = power.seed.unwrap_or_else(|| rand::rng().random());
    let began = Instant::now();
    println!("power cuts, --seed {seed}");
    let temp = tempfile::Builder::new().prefix("hapax-power-").tempdir()?;
    // As the kernel names it.
    let root = temp.path().canonicalize()?;
    let dir = root.join("disk");
    std::fs::create_dir(&dir)?;
    let orders = orders(dir, seed, power);
    let steps = record(&orders, &root.join("trace"), &power.fault)?;
    let changes = steps.iter().filter(|s| !matches!(s.act, trace::Act::Append { .. })).count();
    println!("recorded {changes} changes and syncs in {:.1} s", began.elapsed().as_secs_f64());

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut moments: Vec<usize> = (1..power.cuts).map(|_| rng.random_range(0..=steps.len())).collect();
    moments.push(steps.len());
    moments.sort_unstable();
    let mut disk = disk::Disk::new(power.ignore_syncs);
    let (mut done, mut sum, mut lost) = (0, Tally::default(), 0_u32);
    for (cut, moment) in moments.into_iter().enumerate() {
        for step in steps.iter().take(moment).skip(done) {
            disk.step(step)?;
        }
        done = done.max(moment);
        let image = root.join(format!("cut-{cut}"));
        std::fs::create_dir(&image)?;
        disk.cut(&image, &mut rng)?;
        let past = steps.iter().take(moment);
        witness(past, &image)?;
        let (violations, tally) = runtime.block_on(look(&orders, &image))?;
        sum.add(&tally);
        if !violations.is_empty() {
            lost += 1;
            if lost == 1 {
                println!("cut {cut}, after {moment} of {} steps:", steps.len());
                crate::complain(&violations, seed);
            }
        }
        std::fs::remove_dir_all(&image)?;
    }
    // And what is there while the power stays.
    let (violations, whole) = runtime.block_on(look(&orders, &orders.dir))?;
    if !violations.is_empty() {
        println!("without a cut:");
        crate::complain(&violations, seed);
        return Ok(ExitCode::FAILURE);
    }
    println!("the load: {} executions, {} acknowledged values, {} failed calls", whole.runs, whole.acks, whole.mishaps);
    println!(
        "checked {} power cuts in {:.0} s: {} executions, {} acknowledged values, {} replayed after the cut, {} keys in doubt \
         ({} had the effect, {} had not)",
        power.cuts,
        began.elapsed().as_secs_f64(),
        sum.runs,
        sum.acks,
        sum.replayed_after,
        sum.doubts_done + sum.doubts_undone,
        sum.doubts_done,
        sum.doubts_undone,
    );
    if lost > 0 {
        println!("{lost} of {} cuts broke a promise", power.cuts);
        return Ok(ExitCode::FAILURE);
    }
    println!("nothing found: no lost or changed result, no silent second run, every file whole");
    Ok(ExitCode::SUCCESS)
}

fn orders(dir: PathBuf, seed: u64, power: &Power) -> Orders {
    Orders {
        dir,
        seed,
        phase: Phase::Refuse,
        workers: 1,
        worker: 0,
        life: 0,
        tasks: 8,
        keys: power.keys,
        first: power.keys,
        began_ms: 0,
        keys_per_second: 1,
        place: Place::File,
        durability: power.durability,
        jumping: false,
        lease: Duration::from_secs(60),
        sabotage: None,
    }
}

fn record(orders: &Orders, trace: &Path, faults: &[String]) -> Result<Vec<trace::Step>> {
    let output = trace::command(&std::env::current_exe()?, trace, faults)
        .args(["load", "--orders", &serde_json::to_string(orders)?])
        .stdin(Stdio::null())
        .output()
        .context("cannot run strace, which records the load: install it (apt install strace)")?;
    // With faults, the store may not open: what is there then is checked all the same.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || !faults.is_empty(), "the load failed, {}: {said}", output.status);
    if !output.status.success() {
        println!("the load gave up: {}", said.lines().next().unwrap_or_default());
    }
    trace::read(trace, &orders.dir)
}

/// The ledger and the event log as they were.
fn witness<'a>(past: impl Iterator<Item = &'a trace::Step>, image: &Path) -> Result<()> {
    use std::io::Write;
    let mut logs = std::collections::HashMap::new();
    for step in past {
        if let trace::Act::Append { name, bytes } = &step.act {
            logs.entry(name).or_insert_with(Vec::new).write_all(bytes)?;
        }
    }
    for (name, bytes) in logs {
        std::fs::write(image.join(name), bytes)?;
    }
    Ok(())
}

/// Checks a directory: hapax first, which repairs what a cut leaves, then SQLite.
async fn look(orders: &Orders, image: &Path) -> Result<(Vec<Violation>, Tally)> {
    // Nobody cuts the power of the checker.
    let orders = Orders { dir: image.to_owned(), durability: Durability::Buffered, ..orders.clone() };
    // Attempts that the cut ended count as killed.
    let strikes = Strikes { kills: 1, ..Default::default() };
    let (mut violations, tally) = match check::check(&orders, strikes).await {
        Ok(checked) => checked,
        Err(error) => (vec![Violation::general(format!("it cannot be checked: {error:#}"))], Tally::default()),
    };
    let whole = rusqlite::Connection::open(image.join("store.db"))
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    match whole {
        Ok(answer) if answer == "ok" => {}
        Ok(answer) => violations.push(Violation::general(format!("SQLite finds damage: {answer}"))),
        Err(error) => violations.push(Violation::general(format!("SQLite cannot read it: {error}"))),
    }
    Ok((violations, tally))
}
