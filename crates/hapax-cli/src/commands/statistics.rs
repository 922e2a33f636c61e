//! `hapax stats` and `hapax info`: what happened so far, and what there is.

use std::time::Duration;

use hapax::store::Census;
use hapax::{Clock as _, Info, State, Stats, SystemClock};
use serde::Serialize;

use super::{close, existing, print};
use crate::failure::Failure;
use crate::settings::Settings;
use crate::terminal::{Cell, DIM, cell, style_of, styled, table};
use crate::units::glance;

/// Shows the counters; sets them to zero afterwards if that is asked for.
pub async fn stats(reset: bool, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let hapax = existing(settings).await?;
    let stats = match &hapax {
        Some(hapax) => hapax.stats().await?,
        None => Stats::default(),
    };
    if let (true, Some(hapax)) = (reset, &hapax) {
        hapax.reset_stats().await?;
    }
    if let Some(hapax) = &hapax {
        close(hapax).await;
    }
    print(json, &stats, || {
        let rows = [
            ("hits", stats.hits.to_string()),
            ("misses", stats.misses.to_string()),
            ("hit rate", format!("{:.1} %", stats.hit_rate * 100.0)),
            ("duplicates prevented", stats.duplicates_prevented.to_string()),
            ("time saved", time(stats.time_saved_ms)),
            ("executions", stats.executions.to_string()),
            ("failures", stats.failures.to_string()),
            ("waits joined", stats.waits_joined.to_string()),
            ("mismatches", stats.mismatches.to_string()),
            ("records", stats.total_cached.to_string()),
            ("in progress", stats.in_progress.to_string()),
            ("in doubt", stats.in_doubt.to_string()),
            ("expired, removed", stats.expired_cleaned.to_string()),
            ("evicted", stats.evicted.to_string()),
        ];
        let mut text = table(&rows.map(|(name, value)| vec![styled(name, DIM), cell(value)]));
        if reset {
            text.push_str(&format!("\n{DIM}The counters are zero from now on.{DIM:#}"));
        }
        text
    })?;
    Ok(0)
}

fn time(ms: u64) -> String {
    if ms < 1000 { format!("{ms}ms") } else { glance(Duration::from_millis(ms)) }
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    info: Info,
    exists: bool,
}

/// Shows what the store holds and where it is.
pub async fn info(settings: &Settings, json: bool) -> Result<u8, Failure> {
    let hapax = existing(settings).await?;
    let exists = hapax.is_some();
    let info = match &hapax {
        Some(hapax) => hapax.info().await?,
        None => Info {
            store: settings.store()?,
            namespace: settings.namespace.value.clone(),
            size: 0,
            max_entries: settings.max_entries.value,
            census: Census::default(),
            recent_results: 0,
            in_flight: 0,
            now: SystemClock.now(),
        },
    };
    if let Some(hapax) = &hapax {
        close(hapax).await;
    }
    let answer = Answer { info, exists };
    print(json, &answer, || text(&answer))?;
    Ok(0)
}

fn text(Answer { info, exists }: &Answer) -> String {
    let census = &info.census;
    let store = if *exists { info.store.clone() } else { format!("{} (absent)", info.store) };
    let count = |state: State, n: u64| if n == 0 { cell("0") } else { styled(n.to_string(), style_of(state)) };
    let age = |t: Option<hapax::Timestamp>| match t {
        Some(t) => cell(format!("{t} ({} ago)", glance(info.now.since(t)))),
        None => cell("-"),
    };
    let rows: [(&str, Cell); 10] = [
        ("store", cell(store)),
        ("namespace", cell(&info.namespace)),
        ("size on disk", cell(bytes(census.bytes))),
        ("records", cell(info.size.to_string())),
        ("completed", count(State::Completed, census.completed)),
        ("failed", count(State::Failed, census.failed)),
        ("in progress", count(State::InProgress, census.in_progress)),
        ("in doubt", count(State::InDoubt, census.in_doubt)),
        ("oldest", age(census.oldest)),
        ("newest", age(census.newest)),
    ];
    let mut rows: Vec<Vec<Cell>> = rows.into_iter().map(|(name, value)| vec![styled(name, DIM), value]).collect();
    if let Some(max) = info.max_entries {
        rows.push(vec![styled("max entries", DIM), cell(max.to_string())]);
    }
    table(&rows)
}

#[allow(clippy::cast_precision_loss)] // one digit after the point is shown
fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", n as f64 / 1_073_741_824.0),
    }
}
