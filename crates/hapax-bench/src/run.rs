//! Runtimes and tasks, the same for all who are measured.

use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

/// A runtime with that many threads; for one, it is the caller's own.
pub fn runtime(threads: usize) -> Result<Runtime> {
    let mut builder = if threads == 1 {
        Builder::new_current_thread()
    } else {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads);
        builder
    };
    Ok(builder.enable_all().build()?)
}

/// Starts `count` tasks and waits for all; how long that took.
pub async fn tasks<F>(count: usize, mut task: impl FnMut(usize) -> F) -> Result<Duration>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let began = Instant::now();
    let handles: Vec<_> = (0..count).map(|number| tokio::spawn(task(number))).collect();
    for handle in handles {
        handle.await??;
    }
    Ok(began.elapsed())
}

/// Seconds per operation.
#[allow(clippy::cast_precision_loss)] // counts far below 2^53
pub fn per_op(took: Duration, ops: usize) -> f64 {
    took.as_secs_f64() / ops.max(1) as f64
}

/// So many that a run takes about as long as asked, going by a few.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive and clamped
pub fn calibrate(run: Duration, callers: usize, mut measure: impl FnMut(usize) -> Result<f64>) -> Result<usize> {
    let few = (4 * callers).max(20);
    let seconds = measure(few)?;
    Ok(((run.as_secs_f64() / seconds) as usize).clamp(few, 1_000_000))
}

/// Seconds of processor time that a process has used.
#[allow(clippy::cast_precision_loss)] // a small number
pub fn processor(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_the_process() {
        let before = processor(std::process::id()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while processor(std::process::id()).unwrap() < before + 0.02 {
            assert!(std::time::Instant::now() < until, "no time was counted");
        }
    }
}
