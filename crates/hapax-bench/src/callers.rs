//! (b) The SQLite store by its callers, beside a bare log with the same group commit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use hapax::store::sqlite::Durability;
use hapax::{Action, Hapax};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::log::{Answers, Log};
use crate::plot::{Axis, Line, Plot};
use crate::report::{Part, Row, Show};
use crate::run::{calibrate, per_op, runtime, tasks};
use crate::stats::{Contestant, interleave, median};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    pub callers: Vec<usize>,
    /// About how long a run takes.
    pub run: Duration,
    pub rounds: usize,
}

/// The result that each execution records.
const RESULT: usize = 1024;

/// What is aimed at in `sync`, as a share of the log's speed.
fn target(durability: Durability, callers: usize) -> Option<f64> {
    let share = match callers {
        1 => 0.95,
        8 => 0.8,
        64 => 0.6,
        512 => 0.5,
        _ => return None,
    };
    (durability == Durability::Sync).then_some(share)
}

fn name(durability: Durability) -> &'static str {
    match durability {
        Durability::Sync => "sync",
        Durability::Buffered => "buffered",
    }
}

/// Numbers that no run has had yet.
struct Fresh(AtomicUsize);

impl Fresh {
    fn actions(&self, count: usize) -> Result<Arc<Vec<(Action, String)>>> {
        let first = self.0.fetch_add(count, Ordering::Relaxed);
        let actions: Result<Vec<_>> = (first..first + count)
            .map(|n| {
                let action = Action::new("charge", "stripe")
                    .signal(format!("order-{n}"))
                    .params(json!({"amount": n, "currency": "EUR"}));
                let key = action.generate_key()?.to_string();
                Ok((action, key))
            })
            .collect();
        Ok(Arc::new(actions?))
    }
}

/// Each caller takes the next key when it has done its last.
fn hapax_run(runtime: &Runtime, hapax: &Hapax, fresh: &Fresh, callers: usize, count: usize) -> Result<f64> {
    let actions = fresh.actions(count)?;
    let next = Arc::new(AtomicUsize::new(0));
    let result: Arc<str> = "x".repeat(RESULT).into();
    let took = runtime.block_on(tasks(callers, |_| {
        let (hapax, actions, next, result) = (hapax.clone(), actions.clone(), next.clone(), result.clone());
        async move {
            while let Some((action, _)) = actions.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = hapax.execute(action, |_| async { Ok(result.to_string()) }).await?;
                ensure!(!outcome.is_replay(), "a new key was replayed");
            }
            Ok(())
        }
    }))?;
    settle();
    Ok(per_op(took, count))
}

fn log_run(runtime: &Runtime, log: &Arc<Log>, fresh: &Fresh, callers: usize, count: usize) -> Result<f64> {
    let actions = fresh.actions(count)?;
    let next = Arc::new(AtomicUsize::new(0));
    let result: Arc<str> = "x".repeat(RESULT).into();
    let took = runtime.block_on(tasks(callers, |_| {
        let (log, actions, next, result) = (log.clone(), actions.clone(), next.clone(), result.clone());
        async move {
            while let Some((_, key)) = actions.get(next.fetch_add(1, Ordering::Relaxed)) {
                log.append(key, "").await?;
                // The action's own work, as hapax's callers do it.
                let value = result.to_string();
                log.append(key, &value).await?;
            }
            Ok(())
        }
    }))?;
    settle();
    Ok(per_op(took, count))
}

/// A checkpoint that the last run has caused must not run in the next one's time.
fn settle() {
    std::thread::sleep(Duration::from_millis(100));
}

/// All rows of this part, its plot, and what they cannot say.
pub fn measure(size: &Size, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Plot, Vec<String>)> {
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
    for durability in [Durability::Sync, Durability::Buffered] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mode = name(durability);
        for &callers in &size.callers {
            let with = if callers == 1 { "1 caller".to_string() } else { format!("{callers} callers") };
            say(&format!("b: SQLite {mode}, {with}"));
            let dir = tempfile::tempdir_in(dir)?;
            let runtime = runtime(threads)?;
            let url = format!("sqlite:{}?durability={mode}", dir.path().join("hapax.db").display());
            let hapax = runtime.block_on(Hapax::open(&url))?;
            let answers = if durability == Durability::Sync { Answers::Synced } else { Answers::Written };
            let log = Arc::new(Log::open(&dir.path().join("log"), answers)?);
            let fresh = Fresh(AtomicUsize::new(0));
            let hapax_count = calibrate(size.run, callers, |n| hapax_run(&runtime, &hapax, &fresh, callers, n))?;
            let log_count = calibrate(size.run, callers, |n| log_run(&runtime, &log, &fresh, callers, n))?;
            let mut contestants = [
                Contestant::new("hapax", || hapax_run(&runtime, &hapax, &fresh, callers, hapax_count)),
                Contestant::new(
                    if durability == Durability::Sync { "append + fdatasync" } else { "append, no sync" },
                    || log_run(&runtime, &log, &fresh, callers, log_count),
                ),
            ];
            let series = interleave(&mut contestants, size.rounds)?;
            drop(contestants);
            let shutdown = runtime.block_on(hapax.shutdown(Duration::from_secs(10)))?;
            ensure!(shutdown.unfinished == 0, "attempts were left behind");
            if let [hapax, log] = series.as_slice() {
                let what = format!("SQLite {mode}, {with}");
                rows.push(Row::new(Part::B, what, Show::Rate, hapax, log).target(target(durability, callers)));
                #[allow(clippy::cast_precision_loss)] // a number of callers
                let at = callers as f64;
                ours.extend(median(&hapax.seconds).map(|m| (at, 1.0 / m)));
                theirs.extend(median(&log.seconds).map(|m| (at, 1.0 / m)));
            }
        }
        lines.push(Line { name: format!("log, {mode}"), points: theirs });
        lines.push(Line { name: format!("hapax, {mode}"), points: ours });
    }
    let plot = Plot {
        title: "SQLite store: executions by callers".into(),
        x: Axis { label: "concurrent callers".into() },
        y: Axis { label: "executions per second".into() },
        lines,
    };
    let notes = vec![
        "b: an execution is two durable steps, `begin` and `complete`, and its caller waits for each; the result is a \
         `String` of 1 KiB. The log's one writer appends key, then key and result, syncs once for all that wait, and keeps \
         no index, no times, no lease, no checks."
            .to_string(),
    ];
    Ok((rows, plot, notes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_run_in_both_modes_and_make_a_plot() {
        let dir = tempfile::tempdir().unwrap();
        let size = Size { callers: vec![1, 2], run: Duration::from_millis(1), rounds: 1 };
        let (rows, plot, _) = measure(&size, dir.path(), &mut |_| {}).unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|r| r.ratio.is_some()));
        assert_eq!(plot.lines.len(), 4);
        assert!(plot.lines.iter().all(|l| l.points.len() == 2));
    }
}
