//! `hapax-storm`: kills workers that share one SQLite store at random moments,
//! then checks that every promise of hapax still holds.
//!
//! The parent (this file, `round`, `fleet`, `check`) runs rounds of worker
//! processes (`worker`), which append effects to a ledger and what callers were
//! told to an event log (`lines`). Exit code 0: nothing found; 1: a promise was
//! broken, and the directory with the evidence is kept.
#![forbid(unsafe_code)]

mod check;
mod fleet;
mod latency;
mod lines;
mod plan;
mod power;
mod round;
mod worker;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use rand::{Rng, SeedableRng};

use crate::check::{Tally, Violation};
use crate::fleet::Strikes;
use crate::plan::{Durability, Orders, Sabotage};
use crate::round::{Report, Settings};

/// Kills workers that share one store at random moments, and checks that every promise still holds.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    storm: Storm,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Storm {
    /// How long to storm, in seconds [default: 30].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// How long to storm, in minutes.
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: Option<u64>,
    /// Draw everything but the scheduling from this; random, and printed, by default.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Worker processes.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Concurrent callers in each worker.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    tasks: u16,
    /// What commits survive; drawn for each round by default.
    #[arg(long)]
    durability: Option<Durability>,
    /// Keep the files also when nothing was found.
    #[arg(long)]
    keep: bool,
    /// Break a promise on purpose, to see that it is found.
    #[arg(long, hide = true)]
    sabotage: Option<Sabotage>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure how soon waiters in another process learn of a completion.
    Latency {
        /// How many times.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        rounds: u16,
    },
    /// Cut the power at random moments of a load, and check what the disk may hold then (needs strace).
    Power(power::Power),
    #[command(hide = true)]
    Load {
        #[arg(long)]
        orders: String,
    },
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        orders: String,
    },
    #[command(hide = true)]
    Waiter {
        #[arg(long)]
        store: String,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        None => storm(&cli.storm),
        Some(Command::Latency { rounds }) => latency::measure(rounds.into()).map(|()| ExitCode::SUCCESS),
        Some(Command::Power(power)) => power::run(&power),
        Some(Command::Load { orders }) => power::load(&serde_json::from_str(&orders)?).map(|()| ExitCode::SUCCESS),
        Some(Command::Worker { orders }) => {
            let orders: Orders = serde_json::from_str(&orders)?;
            worker::run(orders).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Waiter { store }) => latency::wait(&store).map(|()| ExitCode::SUCCESS),
    }
}

/// A round takes about this long; what is left of the time is spread over the rounds.
const ROUND: Duration = Duration::from_secs(15);

fn storm(storm: &Storm) -> Result<ExitCode> {
    let time = Duration::from_secs(storm.minutes.map_or(storm.seconds.unwrap_or(30), |m| m * 60));
    let seed = storm.seed.unwrap_or_else(|| rand::rng().random());
    let settings = Settings {
        workers: storm.workers.into(),
        tasks: storm.tasks.into(),
        durability: storm.durability,
        sabotage: storm.sabotage,
    };
    println!("storm of {time:?} with {} workers of {} tasks, --seed {seed}", settings.workers, settings.tasks);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (began, mut rounds) = (Instant::now(), 0_u32);
    let (mut sum, mut strikes) = (Tally::default(), Strikes::default());
    let mut seeds = rand::rngs::StdRng::seed_from_u64(seed);
    loop {
        // What is left, in equal rounds.
        let left = time.saturating_sub(began.elapsed());
        if rounds > 0 && left < ROUND / 3 {
            break;
        }
        let parts = (left.as_secs_f64() / ROUND.as_secs_f64()).round().max(1.0);
        // The first round is drawn from the seed itself, so that `--seed` repeats any round.
        let round_seed = if rounds == 0 { seed } else { seeds.random() };
        rounds += 1;
        let dir = tempfile::Builder::new().prefix("hapax-storm-").tempdir()?;
        let report = round::run(dir.path(), round_seed, left.div_f64(parts), settings, &runtime)
            .with_context(|| format!("round {rounds} with --seed {round_seed}"))?;
        println!("round {rounds}: {}", summary(&report));
        let found = !report.violations.is_empty();
        if found || storm.keep {
            println!("  files kept in {}", dir.keep().display());
        }
        if found {
            complain(&report.violations, round_seed);
            return Ok(ExitCode::FAILURE);
        }
        sum.add(&report.all);
        strikes.kills += report.strikes.kills;
        strikes.pauses += report.strikes.pauses;
    }
    println!("checked in {rounds} rounds, {:.0} s: {}", began.elapsed().as_secs_f64(), counts(&sum, strikes));
    println!("nothing found: no double, no lost or changed result, no silent second run, nothing wedged");
    Ok(ExitCode::SUCCESS)
}

fn summary(report: &Report) -> String {
    format!(
        "{}; {}; recovered in {:.1} s",
        report.weather,
        counts(&report.all, report.strikes),
        report.recovery.as_secs_f64()
    )
}

fn counts(t: &Tally, s: Strikes) -> String {
    format!(
        "{} keys, {} executions, {} effects, {} kills, {} pauses, {} acknowledged values ({} replays), \
         {} keys in doubt ({} had the effect, {} had not), {} refusals, {} mishaps, {} not recorded, {} busy, {} replayed by a fresh manager",
        t.keys,
        t.runs,
        t.effects,
        s.kills,
        s.pauses,
        t.acks,
        t.replays,
        t.doubts_done + t.doubts_undone,
        t.doubts_done,
        t.doubts_undone,
        t.refusals,
        t.mishaps,
        t.unrecorded,
        t.busy,
        t.replayed_after,
    )
}

/// The most violations that are shown.
const SHOWN: usize = 20;

fn complain(violations: &[Violation], seed: u64) {
    println!("FOUND {} violations with --seed {seed}:", violations.len());
    for violation in violations.iter().take(SHOWN) {
        match &violation.key {
            Some(key) => println!("- key {key}: {}\n{}", violation.what, violation.evidence),
            None => println!("- {}", violation.what),
        }
    }
    if violations.len() > SHOWN {
        println!("- and {} more", violations.len() - SHOWN);
    }
}
