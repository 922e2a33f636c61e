//! `hapax-storm`: kills workers that share one store at random moments, and the
//! store's server with them, then checks that every promise of hapax still holds.
//!
//! The parent (this file, `round`, `fleet`, `ground`, `check`) runs rounds of worker
//! processes (`worker`), which append effects to a ledger (`target`) and what callers
//! were told to an event log (`lines`). Exit code 0: nothing found; 1: a promise was
//! broken, and the directory with the evidence is kept.
#![forbid(unsafe_code)]

mod check;
mod clock;
mod fleet;
mod ground;
mod judge;
mod latency;
mod lines;
mod plan;
mod power;
mod round;
mod target;
mod worker;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use rand::{Rng, SeedableRng};

use crate::check::{Tally, Violation};
use crate::fleet::Strikes;
use crate::ground::Kind;
use crate::plan::{Durability, Orders, Sabotage, WallClock};
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
    /// The store; a server is the storm's own, and killed as well.
    #[arg(long, value_enum, default_value_t = Kind::Sqlite)]
    store: Kind,
    /// Put the SQLite file on a tmpfs of so many MiB, which fills up and is freed again; needs the right to mount.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(8..=65_536))]
    disk: Option<u32>,
    /// Let so many keys come up in one round; by default 150 a second, in rounds of about 15 s.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    keys: Option<u64>,
    /// What commits of SQLite survive; drawn for each round by default.
    #[arg(long)]
    durability: Option<Durability>,
    /// What the wall clock of callers does, with SQLite; drawn for each round by default.
    #[arg(long)]
    clock: Option<WallClock>,
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

/// How long to storm: what was said, or long enough for the keys.
fn time(storm: &Storm) -> Duration {
    let enough = storm.keys.map_or(30, |keys| (keys / 1_000).max(30));
    Duration::from_secs(storm.minutes.map_or(storm.seconds.unwrap_or(enough), |m| m * 60))
}

/// The most keys that may come up a second: more than workers can present.
const FASTEST: u64 = 20_000;
/// A disk that holds less for each key, beside [`LOG`], could not take what must be recorded in the end.
const BYTES_PER_KEY: u64 = 4_096;
/// What SQLite's log takes of a disk.
const LOG: u64 = 6 << 20;

/// Ends the program where flags do not go together.
fn refuse(storm: &Storm, time: Duration) {
    let no = |kind, text: String| Cli::command().error(kind, text).exit();
    if storm.store != Kind::Sqlite {
        let flags = [
            ("--disk", storm.disk.is_some()),
            ("--durability", storm.durability.is_some()),
            ("--clock", storm.clock.is_some()),
        ];
        if let Some((flag, _)) = flags.into_iter().find(|(_, given)| *given) {
            no(ErrorKind::ArgumentConflict, format!("{flag} is for --store sqlite: leave it out"));
        }
    }
    let rate = storm.keys.map_or(round::KEYS_PER_SECOND, |keys| round::rate(keys, time));
    if rate > FASTEST {
        let text = format!("--keys asks for {rate} new keys a second, and {FASTEST} is the most: storm for longer");
        no(ErrorKind::ValueValidation, text);
    }
    let round = if storm.keys.is_some() { time } else { time.min(ROUND * 3 / 2) };
    let bytes = LOG + BYTES_PER_KEY * rate * round.as_secs();
    if let Some(mebibytes) = storm.disk.filter(|disk| u64::from(*disk) << 20 < bytes) {
        let text = format!("--disk {mebibytes} cannot take a round's records: give it {}", bytes.div_ceil(1 << 20));
        no(ErrorKind::ValueValidation, text);
    }
}

/// A round takes about this long; what is left of the time is spread over the rounds.
const ROUND: Duration = Duration::from_secs(15);

fn storm(storm: &Storm) -> Result<ExitCode> {
    let time = time(storm);
    refuse(storm, time);
    if storm.disk.is_some()
        && let Some(code) = ground::enter_namespace()?
    {
        return Ok(ExitCode::from(code));
    }
    let seed = storm.seed.unwrap_or_else(|| rand::rng().random());
    let settings = Settings {
        store: storm.store,
        disk: storm.disk,
        keys: storm.keys,
        workers: storm.workers.into(),
        tasks: storm.tasks.into(),
        durability: storm.durability,
        clock: storm.clock,
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
        if rounds > 0 && (left < ROUND / 3 || storm.keys.is_some()) {
            break;
        }
        let rounds_left = (left.as_secs_f64() / ROUND.as_secs_f64()).round().max(1.0);
        // Keys that are counted are all in one.
        let parts = if storm.keys.is_some() { 1.0 } else { rounds_left };
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
        strikes.add(report.strikes);
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
         {} keys in doubt ({} had the effect, {} had not), {} refusals, {} mishaps, {} not recorded, {} busy, \
         {} turned away in {} outages, {} replayed by a fresh manager",
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
        t.outages,
        s.outages,
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
