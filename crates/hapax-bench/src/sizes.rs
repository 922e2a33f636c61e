//! (c) What a check, a begin and a sweep cost by the number of records.
//!
//! In `buffered`, since a sync would hide what the tables cost, and 64 at a time, since for one at a
//! time the way from thread to thread would.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Begin, Begun, End, Ended, Store};
use hapax::{AttemptId, Fingerprint, Json, Key, Owner, Ttl};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::plot::{Axis, Line, Plot};
use crate::report::{Part, Row, Show};
use crate::run::{per_op, runtime};
use crate::stats::{Contestant, Series, interleave, median};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    /// Numbers of records, the first being what the others are compared with.
    pub records: Vec<usize>,
    /// Operations in a run.
    pub ops: usize,
    pub rounds: usize,
}

const AT_ONCE: usize = 64;

/// A store with some records.
struct Filled {
    runtime: Arc<Runtime>,
    store: SqliteStore,
    namespace: Arc<str>,
    owner: Arc<Owner>,
    fingerprint: Fingerprint,
    result: Json,
    records: usize,
    /// Numbers not used yet.
    next: usize,
    /// The state of a small generator of numbers.
    random: u64,
}

impl Filled {
    fn new(path: &Path, records: usize, runtime: Arc<Runtime>) -> Result<Self> {
        let mut filled = Self {
            runtime,
            store: SqliteStore::open(SqliteOptions::new(path).durability(Durability::Buffered))?,
            namespace: "default".into(),
            owner: Arc::new(Owner { host: "bench".into(), pid: std::process::id(), label: None }),
            fingerprint: Fingerprint::of(&json!({"amount": 4200}))?,
            result: Json::of(&"r".repeat(100))?,
            records,
            next: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        while filled.next < records {
            let count = (records - filled.next).min(4 * AT_ONCE);
            let begun = filled.begin(count)?;
            filled.complete(begun, Ttl::Never)?;
        }
        Ok(filled)
    }

    fn key(&self, number: usize) -> Result<Key> {
        Ok(Key::from_parts(Some(&format!("order-{number}")), "charge", "stripe", &self.fingerprint)?)
    }

    fn begin_of(&self, number: usize) -> Result<Begin> {
        Ok(Begin {
            namespace: self.namespace.clone(),
            key: self.key(number)?,
            signal_id: Some(format!("order-{number}")),
            action_type: "charge".into(),
            target: "stripe".into(),
            params: Some(Json::of(&json!({"amount": 4200}))?),
            fingerprint: self.fingerprint,
            attempt: AttemptId::new(),
            owner: self.owner.clone(),
            liveness: hapax::store::Liveness::Process,
            lease: Duration::from_secs(3600),
            tags: std::collections::BTreeMap::default(),
            take_over: None,
            capacity: None,
        })
    }

    fn begins(&mut self, count: usize) -> Result<Vec<Begin>> {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|n| self.begin_of(n)).collect()
    }

    /// Begins all, handing them over at once.
    fn begin(&mut self, count: usize) -> Result<Vec<(Key, AttemptId)>> {
        let begins = self.begins(count)?;
        let ids = begins.iter().map(|b| (b.key.clone(), b.attempt)).collect();
        self.runtime.block_on(begin_all(&self.store, begins))?;
        Ok(ids)
    }

    fn end(&self, begun: Vec<(Key, AttemptId)>, end: &End) -> Result<()> {
        self.runtime.block_on(async {
            let answers: Vec<_> = begun
                .into_iter()
                .map(|(key, attempt)| self.store.end(self.namespace.clone(), key, attempt, end.clone()))
                .collect();
            for answer in answers {
                ensure!(matches!(answer.await?, Ended::Done { .. }), "an attempt could not be ended");
            }
            Ok(())
        })
    }

    fn complete(&self, begun: Vec<(Key, AttemptId)>, ttl: Ttl) -> Result<()> {
        self.end(begun, &End::Complete { result: self.result.clone(), ttl, duration: Duration::from_millis(5) })
    }

    /// A number below `below`, by splitmix64.
    #[allow(clippy::cast_possible_truncation)] // reduced before it is narrowed
    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }

    fn time_check(&mut self, ops: usize) -> Result<f64> {
        let keys: Vec<Key> = (0..ops)
            .map(|_| {
                let number = self.draw(self.records);
                self.key(number)
            })
            .collect::<Result<_>>()?;
        self.runtime.block_on(async {
            let began = Instant::now();
            for some in keys.chunks(AT_ONCE) {
                let answers: Vec<_> =
                    some.iter().map(|key| self.store.get(self.namespace.clone(), key.clone())).collect();
                for answer in answers {
                    ensure!(answer.await?.is_some(), "a record is missing");
                }
            }
            Ok(per_op(began.elapsed(), ops))
        })
    }

    fn time_begin(&mut self, ops: usize) -> Result<f64> {
        let begins = self.begins(ops)?;
        let ids: Vec<_> = begins.iter().map(|b| (b.key.clone(), b.attempt)).collect();
        let mut begins = begins.into_iter();
        let began = Instant::now();
        self.runtime.block_on(async {
            loop {
                let some: Vec<Begin> = begins.by_ref().take(AT_ONCE).collect();
                if some.is_empty() {
                    return Ok::<_, anyhow::Error>(());
                }
                begin_all(&self.store, some).await?;
            }
        })?;
        let took = began.elapsed();
        // Away with them, so that the store stays as large as it was.
        self.end(ids, &End::Release)?;
        Ok(per_op(took, ops))
    }

    fn time_sweep(&mut self, ops: usize) -> Result<f64> {
        let begun = self.begin(ops)?;
        self.complete(begun, Ttl::For(Duration::from_millis(1)))?;
        std::thread::sleep(Duration::from_millis(5));
        let began = Instant::now();
        let gone = self.runtime.block_on(self.store.sweep(ops))?;
        let took = began.elapsed();
        ensure!(gone == ops as u64, "{gone} of {ops} records were swept");
        Ok(per_op(took, ops))
    }
}

async fn begin_all(store: &SqliteStore, begins: Vec<Begin>) -> Result<()> {
    let answers: Vec<_> = begins.into_iter().map(|begin| store.begin(begin)).collect();
    for answer in answers {
        ensure!(matches!(answer.await?, Begun::Started { .. }), "a new key was not new");
    }
    Ok(())
}

fn short(records: usize) -> String {
    match records {
        n if n % 1_000_000 == 0 => format!("{} M", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{} k", n / 1_000),
        n => n.to_string(),
    }
}

/// All rows of this part, its plot, and what they cannot say.
pub fn measure(size: &Size, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Plot, Vec<String>)> {
    let dir = tempfile::tempdir_in(dir)?;
    let runtime = Arc::new(runtime(1)?);
    let mut stores = Vec::new();
    for &records in &size.records {
        say(&format!("c: filling a store with {} records", short(records)));
        stores.push(Filled::new(&dir.path().join(format!("{records}.db")), records, runtime.clone())?);
    }
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    type Timed = fn(&mut Filled, usize) -> Result<f64>;
    let kinds: [(&str, Timed, Option<f64>); 3] = [
        ("check", Filled::time_check, Some(0.5)),
        ("begin", Filled::time_begin, Some(0.5)),
        ("sweep", Filled::time_sweep, None),
    ];
    for (kind, timed, target) in kinds {
        say(&format!("c: {kind}"));
        let series = {
            let mut contestants: Vec<Contestant<'_>> = stores
                .iter_mut()
                .map(|store| {
                    Contestant::new(format!("with {} records", short(store.records)), || timed(store, size.ops))
                })
                .collect();
            interleave(&mut contestants, size.rounds)?
        };
        let Some(first) = series.first() else { continue };
        for (at, (series, &records)) in series.iter().zip(&size.records).enumerate() {
            if at > 0 {
                let what = format!("SQLite, {kind} with {} records", short(records));
                let target = target.filter(|_| records == 1_000_000);
                rows.push(Row::new(Part::C, what, Show::Time, series, first).target(target));
            }
        }
        lines.push(Line { name: kind.into(), points: points(&series, &size.records) });
    }
    let plot = Plot {
        title: "SQLite store: cost by size".into(),
        x: Axis { label: "records in the store".into() },
        y: Axis { label: "microseconds per record".into() },
        lines,
    };
    let notes = vec![
        "c: `buffered`, 64 at a time; `check` looks up random keys, `begin` adds new ones, `sweep` removes expired ones; \
         the time is that of one record."
            .to_string(),
    ];
    Ok((rows, plot, notes))
}

#[allow(clippy::cast_precision_loss)] // numbers of records
fn points(series: &[Series], records: &[usize]) -> Vec<(f64, f64)> {
    series.iter().zip(records).filter_map(|(s, n)| Some((*n as f64, median(&s.seconds)? * 1e6))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_as_large_after_a_run_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let size = Size { records: vec![50, 100], ops: 70, rounds: 1 };
        let (rows, plot, _) = measure(&size, dir.path(), &mut |_| {}).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(plot.lines.len(), 3);
        let runtime = Arc::new(runtime(1).unwrap());
        let mut filled = Filled::new(&dir.path().join("x.db"), 50, runtime.clone()).unwrap();
        filled.time_check(70).unwrap();
        filled.time_begin(70).unwrap();
        filled.time_sweep(70).unwrap();
        let census = runtime.block_on(filled.store.census("default".into())).unwrap();
        assert_eq!((census.completed, census.in_progress), (50, 0));
    }
}
