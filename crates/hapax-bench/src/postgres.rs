//! (g) The PostgreSQL store, beside what its server gives the same client bare: an insert and an update for an
//! execution, a look by key for a replay.
//!
//! All on one private server that syncs each commit. The processor time of the server and of this process is
//! taken too: where the disk is now fast and now slow, it says more than the rates do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hapax::store::postgres::tokio_postgres::types::Type;
use hapax::store::postgres::tokio_postgres::{self, Client, NoTls, Statement};
use hapax::{Action, ActionError, Hapax};
use hapax_servers::postgres::{Disk, PgBouncer, PostgresServer, Tls};
use tokio::runtime::Runtime;

use crate::report::{Part, Row, Show};
use crate::run::{per_op, runtime, tasks};
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
/// The connections that hapax has for begins and ends unless told otherwise; the bare pair gets as many, and then more.
const CONNECTIONS: usize = 8;
const MORE: usize = 16;
/// Keys that are replayed.
const REPLAYED: usize = 1000;
/// What is aimed at, as a share of the bare pair's speed.
const TARGET: Option<f64> = Some(0.7);

const INSERT: &str = "INSERT INTO bare (key, state) VALUES ($1, 0) ON CONFLICT DO NOTHING";
const UPDATE: &str = "UPDATE bare SET state = 1, result = $2 WHERE key = $1 AND state = 0";
const SELECT: &str = "SELECT state, result FROM bare WHERE key = $1";

/// Statements prepared, or sent with their text each time, as behind a pooler.
enum Bare {
    Prepared(Client, [Statement; 3]),
    Unnamed(Client),
}

impl Bare {
    async fn execute(&self, key: &str, result: &str) -> Result<()> {
        match self {
            Self::Prepared(client, [insert, update, _]) => {
                client.execute(insert, &[&key]).await?;
                ensure!(client.execute(update, &[&key, &result]).await? == 1, "a bare update found no row");
            }
            Self::Unnamed(client) => {
                client.query_typed(INSERT, &[(&key, Type::TEXT)]).await?;
                client.query_typed(UPDATE, &[(&key, Type::TEXT), (&result, Type::TEXT)]).await?;
            }
        }
        Ok(())
    }

    async fn look(&self, key: &str) -> Result<()> {
        let Self::Prepared(client, [_, _, select]) = self else { return Err(anyhow!("looks are prepared")) };
        let row = client.query_one(select, &[&key]).await?;
        ensure!(row.try_get::<_, &str>(1)?.len() == RESULT, "a bare look found something else");
        Ok(())
    }
}

async fn connect(url: &str, connections: usize, pooled: bool) -> Result<Arc<Vec<Bare>>> {
    let mut all = Vec::new();
    for _ in 0..connections {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        all.push(if pooled {
            Bare::Unnamed(client)
        } else {
            let statements =
                [client.prepare(INSERT).await?, client.prepare(UPDATE).await?, client.prepare(SELECT).await?];
            Bare::Prepared(client, statements)
        });
    }
    Ok(Arc::new(all))
}

/// Numbers that no run has had yet.
#[derive(Default)]
struct Fresh(AtomicUsize);

fn key(n: usize) -> String {
    format!("signal-{n}:create_task:trello:1557ebfc75da3109")
}

fn action(n: usize) -> Action {
    Action::new("create_task", "trello").signal(format!("signal-{n}"))
}

/// The next number of a run, until there are none.
struct Numbers(AtomicUsize, usize);

impl Numbers {
    fn new(fresh: &Fresh, count: usize) -> Arc<Self> {
        let first = fresh.0.fetch_add(count, Ordering::Relaxed);
        Arc::new(Self(AtomicUsize::new(first), first + count))
    }

    fn next(&self) -> Option<usize> {
        Some(self.0.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < self.1)
    }
}

/// What is measured, and with what.
enum Work {
    Execute(Hapax),
    Bare(Arc<Vec<Bare>>),
    Replay(Hapax),
    Look(Arc<Vec<Bare>>),
}

impl Work {
    async fn run(&self, fresh: &Fresh, callers: usize, count: usize) -> Result<Duration> {
        let numbers = Numbers::new(fresh, count);
        let result: Arc<str> = "x".repeat(RESULT).into();
        match self {
            Self::Execute(hapax) => {
                tasks(callers, |_| {
                    let (hapax, numbers, result) = (hapax.clone(), numbers.clone(), result.clone());
                    async move {
                        while let Some(n) = numbers.next() {
                            let outcome = hapax.execute(&action(n), |_| async { Ok(result.to_string()) }).await?;
                            ensure!(!outcome.is_replay(), "a new key was replayed");
                        }
                        Ok(())
                    }
                })
                .await
            }
            Self::Replay(hapax) => {
                tasks(callers, |_| {
                    let (hapax, numbers) = (hapax.clone(), numbers.clone());
                    async move {
                        while let Some(n) = numbers.next() {
                            let never = |_| async { Err::<String, _>(ActionError::permanent("it ran again")) };
                            hapax.execute(&Action::new("replay", "trello").signal(replayed(n)), never).await?;
                        }
                        Ok(())
                    }
                })
                .await
            }
            Self::Bare(all) | Self::Look(all) => {
                let looks = matches!(self, Self::Look(_));
                tasks(callers, |caller| {
                    let (all, numbers, result) = (all.clone(), numbers.clone(), result.clone());
                    async move {
                        let bare = all.get(caller % all.len()).context("no connection")?;
                        while let Some(n) = numbers.next() {
                            if looks {
                                bare.look(&replayed(n)).await?;
                            } else {
                                // The action's own work, as hapax's callers do it.
                                let value = result.to_string();
                                bare.execute(&key(n), &value).await?;
                            }
                        }
                        Ok(())
                    }
                })
                .await
            }
        }
    }
}

fn replayed(n: usize) -> String {
    format!("replay-{}", n % REPLAYED)
}

/// Microseconds of processor time per operation, of server and client, by contestant.
type Costs = BTreeMap<&'static str, Vec<(f64, f64)>>;

struct Bench<'a> {
    server: &'a PostgresServer,
    runtime: &'a Runtime,
    fresh: Fresh,
    costs: RefCell<Costs>,
}

impl Bench<'_> {
    fn run(&self, name: &'static str, work: &Work, callers: usize, count: usize) -> Result<f64> {
        let (server, client) = (self.server.cpu_time(), own_cpu_time());
        let took = self.runtime.block_on(work.run(&self.fresh, callers, count))?;
        let micros = |now: Duration, then: Duration| per_op(now.saturating_sub(then), count) * 1e6;
        let cost = (micros(self.server.cpu_time(), server), micros(own_cpu_time(), client));
        self.costs.borrow_mut().entry(name).or_default().push(cost);
        Ok(per_op(took, count))
    }

    /// So many that a run takes about as long as asked, going by a few.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive and clamped
    fn calibrate(&self, size: &Size, name: &'static str, work: &Work, callers: usize) -> Result<usize> {
        let few = (8 * callers).max(50);
        let seconds = self.run(name, work, callers, few)?;
        Ok(((size.run.as_secs_f64() / seconds) as usize).clamp(few, 1_000_000))
    }

    /// Medians of this level, and a fresh start for the next.
    fn costs(&self) -> String {
        let mut text = String::new();
        for (name, costs) in std::mem::take(&mut *self.costs.borrow_mut()) {
            let middle = |of: fn(&(f64, f64)) -> f64| median(&costs.iter().map(of).collect::<Vec<_>>());
            if let (Some(server), Some(client)) = (middle(|c| c.0), middle(|c| c.1)) {
                let _ = write!(text, "{} {name} {server:.0} + {client:.0}", if text.is_empty() { "" } else { ";" });
            }
        }
        text
    }
}

/// The processor time of this process.
fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

const HAPAX: &str = "hapax";
const POOLED: &str = "hapax through PgBouncer";
const REPLAYS: &str = "hapax, replays";
const BARE: &str = "insert + update, 8 connections";
const BARE_MORE: &str = "insert + update, 16 connections";
const BARE_POOLED: &str = "insert + update, through PgBouncer";
const LOOKS: &str = "select by key, 8 connections";

/// All rows of this part, and what they cannot say.
pub fn measure(size: &Size, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Vec<String>)> {
    let server = PostgresServer::start(Disk::Synced, Tls::Off)?;
    let pooler = PgBouncer::start(&server, 20)?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
    let runtime = runtime(threads)?;
    let url = server.create_database("bench")?;
    let table = format!(
        "CREATE TABLE bare (key text PRIMARY KEY, state int2 NOT NULL, result text); INSERT INTO bare \
         SELECT 'replay-' || n, 1, repeat('x', {RESULT}) FROM generate_series(0, {REPLAYED} - 1) n"
    );
    server.psql("bench", &table)?;
    let (hapax, works) = runtime.block_on(async {
        let hapax = Hapax::open(&url).await?;
        let pooled = Hapax::open(&format!("{}?schema=pooled", pooler.url("bench"))).await?;
        let forgetful = Hapax::builder().store_url(&url).recent_results(0).build().await?;
        for n in 0..REPLAYED {
            let action = Action::new("replay", "trello").signal(replayed(n));
            hapax.execute(&action, |_| async { Ok("x".repeat(RESULT)) }).await?;
        }
        let four = connect(&url, CONNECTIONS, false).await?;
        let works = [
            (HAPAX, Work::Execute(hapax.clone())),
            (BARE, Work::Bare(four.clone())),
            (BARE_MORE, Work::Bare(connect(&url, MORE, false).await?)),
            (POOLED, Work::Execute(pooled)),
            (BARE_POOLED, Work::Bare(connect(&pooler.url("bench"), CONNECTIONS, true).await?)),
            (REPLAYS, Work::Replay(forgetful)),
            (LOOKS, Work::Look(four)),
        ];
        anyhow::Ok((hapax, works))
    })?;
    let bench = Bench { server: &server, runtime: &runtime, fresh: Fresh::default(), costs: RefCell::default() };
    let (mut rows, mut costs) = (Vec::new(), String::new());
    for &callers in &size.callers {
        let with = if callers == 1 { "1 caller".to_string() } else { format!("{callers} callers") };
        say(&format!("g: PostgreSQL, {with}"));
        server.psql("bench", "CHECKPOINT")?;
        let mut contestants = Vec::new();
        for (name, work) in &works {
            let count = bench.calibrate(size, name, work, callers)?;
            let bench = &bench;
            contestants.push(Contestant::new(*name, move || bench.run(name, work, callers, count)));
        }
        bench.costs.borrow_mut().clear();
        let series = interleave(&mut contestants, size.rounds)?;
        drop(contestants);
        let of = |name: &str| series.iter().find(|s| s.name == name).context("a contestant is missing");
        for (what, ours, theirs, target) in [
            ("execution", HAPAX, BARE, TARGET),
            ("execution", HAPAX, BARE_MORE, None),
            ("execution through PgBouncer", POOLED, BARE_POOLED, None),
            ("replay from the store", REPLAYS, LOOKS, TARGET),
        ] {
            let what = format!("PostgreSQL, {what}, {with}");
            rows.push(Row::new(Part::G, what, Show::Rate, of(ours)?, of(theirs)?).target(target));
        }
        let _ = write!(costs, " {with}:{}.", bench.costs());
    }
    let shutdown = runtime.block_on(hapax.shutdown(Duration::from_secs(10)))?;
    ensure!(shutdown.unfinished == 0, "attempts were left behind");
    let notes = vec![
        "g: server and client share the machine; commits are synced. An execution is two durable steps; the result is a \
         `String` of 1 KiB. Beside it, the same client inserts a key and updates its row, pipelining on so many connections \
         (hapax has up to 8 for this), with no other index, no times, no lease, no params. A replay is a look into the store; \
         from memory it costs what it does in a."
            .to_string(),
        format!("g: microseconds of processor time per operation, server + client:{costs}"),
    ];
    Ok((rows, notes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_run_and_their_processor_time_is_taken() {
        let size = Size { callers: vec![2], run: Duration::from_millis(1), rounds: 1 };
        let (rows, notes) = measure(&size, &mut |_| {}).unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|r| r.ratio.is_some()));
        assert!(notes.iter().any(|n| n.contains("2 callers: hapax ")), "{notes:?}");
    }
}
