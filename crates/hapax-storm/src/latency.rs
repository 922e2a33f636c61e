//! How soon a caller that waits in one process learns that another process has
//! completed the action.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hapax::{Action, ActionError, Hapax};
use rand::Rng;
use serde_json::json;

fn action(n: usize) -> Action {
    Action::new("wait", "here").params(json!({"n": n}))
}

fn micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Runs `rounds` actions here, each awaited by a caller in another process, and
/// prints how much later than here the value was there.
pub fn measure(rounds: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = format!("sqlite:{}", dir.path().join("store.db").display());
    let mut late = runtime()?.block_on(observe(&url, rounds))?;
    late.sort_unstable();
    let at = |part: usize| {
        late.get((late.len() * part / 100).min(late.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    #[allow(clippy::cast_precision_loss)] // microseconds of a few seconds
    let ms = |micros: i64| micros as f64 / 1000.0;
    println!(
        "waiters in another process learn of a completion after: p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms, of {rounds}",
        ms(at(50)),
        ms(at(90)),
        ms(at(100))
    );
    Ok(())
}

async fn observe(url: &str, rounds: usize) -> Result<Vec<i64>> {
    let hapax = Hapax::builder().store_url(url).label("runner").build().await?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["waiter", "--store", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the waiter")?;
    let mut to = child.stdin.take().context("the waiter has no stdin")?;
    let mut from = BufReader::new(child.stdout.take().context("the waiter has no stdout")?).lines();
    let mut late = Vec::new();
    for n in 0..rounds {
        let done = Arc::new(AtomicI64::new(0));
        // Long and short, so that waiters are caught early and late in their waiting.
        let time = Duration::from_millis(rand::rng().random_range(60..600));
        let to = &mut to;
        let told = done.clone();
        hapax
            .execute(&action(n), |_| async move {
                writeln!(to, "{n}").map_err(ActionError::unknown)?;
                tokio::time::sleep(time).await;
                told.store(micros(), Ordering::Relaxed);
                Ok(n)
            })
            .await?;
        // From the moment that the completion is durable here.
        let completed = micros();
        let line = from.next().context("the waiter is gone")??;
        let learned: i64 = line.parse().with_context(|| format!("the waiter says {line:?}"))?;
        ensure!(learned >= done.load(Ordering::Relaxed), "the waiter had a value before there was one");
        late.push(learned - completed);
    }
    drop(to);
    child.wait()?;
    Ok(late)
}

async fn must_not_run(_: hapax::Context) -> Result<usize, ActionError> {
    Err(ActionError::permanent("the waiter must not run it"))
}

/// The other process: waits for each action it is told of, and says when it had the value.
pub fn wait(store: &str) -> Result<()> {
    ensure!(Path::new(store.trim_start_matches("sqlite:")).exists(), "there is no store at {store}");
    let runtime = runtime()?;
    let hapax = runtime.block_on(Hapax::builder().store_url(store).label("waiter").build())?;
    for line in std::io::stdin().lines() {
        let n: usize = line?.parse()?;
        let outcome = runtime.block_on(hapax.execute(&action(n), must_not_run))?;
        let learned = micros();
        if outcome.value != n {
            bail!("the waiter got {} instead of {n}", outcome.value);
        }
        println!("{learned}");
    }
    Ok(())
}
