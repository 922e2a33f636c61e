//! `hapax-bench`: hapax's numbers, beside rivals and limits in the same run.
//!
//! Parts: (a) `memory`, (b) `callers`, (c) `sizes`, (d) `keys`, (f) `redis`, (g) `postgres`, (h) `http`. Each lets
//! hapax and what stands beside it run in turn (`stats`); `report` makes of it a table, a JSON file and the README's part.
#![forbid(unsafe_code)]

mod callers;
mod http;
mod keys;
mod log;
mod machine;
mod memory;
mod plot;
mod postgres;
mod redis;
mod report;
mod run;
mod sizes;
mod stats;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use hapax::Clock;

use crate::machine::Machine;
use crate::report::{Part, Report};

/// Measures hapax beside its rivals and limits; writes a table, a JSON file and two plots.
#[derive(Parser)]
#[command(name = "cargo xtask bench", version)]
struct Cli {
    /// A minute's smoke test: fewer and shorter runs, smaller stores; its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Only these parts: a (memory), b (SQLite by callers), c (SQLite by size), d (keys), f (Redis), g (PostgreSQL), h
    /// (HTTP).
    #[arg(long, value_name = "PARTS", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How many callers, or connections, at once in f, g and h.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,16,64,256",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    callers: Vec<u16>,
    /// Where the results go, and the databases while it runs: a directory on the disk to be measured.
    #[arg(long, value_name = "DIR", default_value = "bench-out")]
    out: PathBuf,
    /// Also write table and plots into the README of this source tree.
    #[arg(long, conflicts_with_all = ["only", "callers"])]
    readme: bool,
}

/// The plots' names, in `--out` and beside the README.
const PLOTS: [&str; 2] = ["callers.svg", "sizes.svg"];

/// Where the README's plots are, from the README.
const README_PLOTS: &str = "crates/hapax-bench/plots";

fn main() -> Result<()> {
    let cli = Cli::parse();
    fs::create_dir_all(&cli.out).with_context(|| format!("making {}", cli.out.display()))?;
    let began = Instant::now();
    let (report, plots) = measure(&cli, &mut |what| eprintln!("{:6.1} s  {what}", began.elapsed().as_secs_f64()))?;
    let table = report.markdown();
    write(&cli.out.join("bench.md"), &table)?;
    write(&cli.out.join("bench.json"), &report.json()?)?;
    for (name, svg) in &plots {
        write(&cli.out.join(name), svg)?;
    }
    println!("{table}");
    eprintln!("Written to {}.", cli.out.display());
    if cli.readme {
        into_readme(&report.folded(), &plots)?;
    }
    Ok(())
}

type Plots = Vec<(&'static str, String)>;

fn measure(cli: &Cli, say: &mut dyn FnMut(&str)) -> Result<(Report, Plots)> {
    let wanted = |part| cli.only.is_empty() || cli.only.contains(&part);
    let quick = cli.quick;
    let callers: Vec<usize> = cli.callers.iter().copied().map(usize::from).collect();
    let machine = Machine::look(&cli.out);
    let (mut rows, mut notes, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    if wanted(Part::A) {
        let size = if quick {
            memory::Size { new: 5_000, replays: 200_000, slow_replays: 20_000, rounds: 3 }
        } else {
            memory::Size { new: 20_000, replays: 1_000_000, slow_replays: 100_000, rounds: 15 }
        };
        let (more, said) = memory::measure(size, say)?;
        rows.extend(more);
        notes.extend(said);
    }
    if wanted(Part::B) {
        let (run, rounds) = if quick { (Duration::from_millis(200), 3) } else { (Duration::from_millis(1_500), 7) };
        let size = callers::Size { callers: vec![1, 8, 64, 512], run, rounds };
        let (more, plot, said) = callers::measure(&size, &cli.out, say)?;
        rows.extend(more);
        notes.extend(said);
        plots.push((PLOTS[0], plot.svg()));
    }
    if wanted(Part::C) {
        let size = if quick {
            sizes::Size { records: vec![1_000, 10_000], ops: 1_000, rounds: 3 }
        } else {
            sizes::Size { records: vec![1_000, 10_000, 100_000, 1_000_000], ops: 5_000, rounds: 9 }
        };
        let (more, plot, said) = sizes::measure(&size, &cli.out, say)?;
        rows.extend(more);
        notes.extend(said);
        plots.push((PLOTS[1], plot.svg()));
    }
    if wanted(Part::D) {
        let size = if quick { keys::Size { ops: 10_000, rounds: 3 } } else { keys::Size { ops: 50_000, rounds: 15 } };
        let (more, said) = keys::measure(size, say)?;
        rows.extend(more);
        notes.extend(said);
    }
    if wanted(Part::F) {
        let (run, rounds) = if quick { (Duration::from_millis(100), 1) } else { (Duration::from_secs(1), 5) };
        let size = redis::Size { callers: callers.clone(), run, rounds };
        let (more, said) = redis::measure(&size, say)?;
        rows.extend(more);
        notes.extend(said);
    }
    if wanted(Part::G) {
        let (run, rounds) = if quick { (Duration::from_millis(200), 3) } else { (Duration::from_millis(800), 7) };
        let (more, said) = postgres::measure(&postgres::Size { callers: callers.clone(), run, rounds }, say)?;
        rows.extend(more);
        notes.extend(said);
    }
    if wanted(Part::H) {
        let (run, rounds) = if quick { (Duration::from_millis(200), 3) } else { (Duration::from_secs(1), 7) };
        let (more, said) = http::measure(&http::Size { connections: callers, run, rounds }, say)?;
        rows.extend(more);
        notes.extend(said);
    }
    let date = hapax::SystemClock.now().to_string().chars().take(10).collect();
    Ok((Report { date, machine, quick, rows, notes }, plots))
}

fn into_readme(table: &str, plots: &Plots) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = root.join(README_PLOTS);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let mut content = table.to_string();
    for (name, svg) in plots {
        write(&directory.join(name), svg)?;
        let what = if *name == PLOTS[0] { "executions per second by callers" } else { "cost by records" };
        content.push_str(&format!("\n![{what}]({README_PLOTS}/{name})\n"));
    }
    let path = root.join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    write(&path, &report::rewrite(&readme, &content)?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
