//! (f) The Redis store by its callers, beside the bare commands with the same client on the same server.
//!
//! The server is a private one that keeps nothing on disk, so that what is measured is the work of server and client.
//! Processor time is measured as well, since on two shared cores it says more than a clock on the wall.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use hapax::{Action, Hapax, PolicyPatch};
use hapax_servers::redis::{RedisConfig, RedisServer};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::report::{Part, Row, Show};
use crate::run::{calibrate, per_op, processor, runtime, tasks};
use crate::stats::{Contestant, interleave};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Size {
    pub callers: Vec<usize>,
    /// About how long a run takes.
    pub run: Duration,
    pub rounds: usize,
}

/// The result that each execution records.
const RESULT: usize = 300;
/// Long enough for no record to expire in a run.
const KEPT: Duration = Duration::from_secs(600);
/// Replays go round so many keys.
const REPLAYED: usize = 1_000;
/// What is aimed at, as a share of the bare pair's speed.
const TARGET: f64 = 0.7;

/// The least that an atomic step per transition costs: make the key if it is absent; write over it if it is as it was.
const FLOOR_BEGIN: &str =
    "if redis.call('SET', KEYS[1], ARGV[1], 'NX') then return 1 end return redis.call('GET', KEYS[1])";
const FLOOR_END: &str = "local v = redis.call('GET', KEYS[1]) if v and string.sub(v, 1, 32) == ARGV[1] then \
     redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end return 0";

/// What all contestants share.
struct Field<'a> {
    runtime: &'a Runtime,
    callers: usize,
    next: &'a AtomicUsize,
    server: u32,
}

/// Processor time of one contestant: of the server, of this process, and the operations that took it.
#[derive(Default)]
struct Spent(Cell<(f64, f64, usize)>);

impl Spent {
    fn per_op(&self) -> (f64, f64) {
        let (server, client, ops) = self.0.get();
        #[allow(clippy::cast_precision_loss)] // counts far below 2^53
        let ops = ops.max(1) as f64;
        (server / ops * 1e6, client / ops * 1e6)
    }
}

impl Field<'_> {
    /// Each caller takes the next number when it has done its last.
    fn run<F>(&self, spent: &Spent, count: usize, work: impl Fn(usize) -> F + Clone + Send + 'static) -> Result<f64>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let turn = Arc::new(AtomicUsize::new(first));
        let before = (processor(self.server)?, processor(std::process::id())?);
        let took = self.runtime.block_on(tasks(self.callers, |_| {
            let (turn, work) = (turn.clone(), work.clone());
            async move {
                loop {
                    let n = turn.fetch_add(1, Ordering::Relaxed);
                    if n >= first + count {
                        return Ok(());
                    }
                    work(n).await?;
                }
            }
        }))?;
        let (server, client, ops) = spent.0.get();
        spent.0.set((
            server + processor(self.server)? - before.0,
            client + processor(std::process::id())? - before.1,
            ops + count,
        ));
        Ok(per_op(took, count))
    }
}

async fn bare(mut connection: MultiplexedConnection, n: usize) -> Result<()> {
    let (key, value) = (format!("bare:{n}"), "x".repeat(RESULT));
    let kept = u64::try_from(KEPT.as_millis())?;
    let mut set = redis::cmd("SET");
    set.arg(&key).arg(&value).arg("PX").arg(kept);
    let made: Option<String> = set.clone().arg("NX").query_async(&mut connection).await?;
    ensure!(made.is_some(), "a new key was there");
    set.query_async::<()>(&mut connection).await?;
    Ok(())
}

async fn floor(mut connection: MultiplexedConnection, scripts: Arc<[redis::Script; 2]>, n: usize) -> Result<()> {
    let (key, token) = (format!("floor:{n}"), format!("{n:032}"));
    let value = format!("{token}{}", "x".repeat(RESULT));
    let [begin, end] = &*scripts;
    begin.key(&key).arg(&value).invoke_async::<()>(&mut connection).await?;
    let kept = u64::try_from(KEPT.as_millis())?;
    let done: i64 = end.key(&key).arg(&token).arg(&value).arg(kept).invoke_async(&mut connection).await?;
    ensure!(done == 1, "a key was not as it was left");
    Ok(())
}

fn action(n: usize) -> Action {
    Action::new("charge", "stripe").signal(format!("order-{n}")).params(json!({"amount": n, "currency": "EUR"}))
}

async fn execute(hapax: Hapax, n: usize, is_new: bool) -> Result<()> {
    let outcome = hapax.execute(&action(n), |_| async { Ok("x".repeat(RESULT)) }).await?;
    ensure!(outcome.is_replay() != is_new, "key {n} was {}replayed", if is_new { "" } else { "not " });
    Ok(())
}

/// All rows of this part, and what they cannot say.
pub fn measure(size: &Size, say: &mut dyn FnMut(&str)) -> Result<(Vec<Row>, Vec<String>)> {
    let server = RedisServer::start(RedisConfig::new())?;
    let runtime = runtime(2)?;
    let (connection, hapax, forgetful) = runtime.block_on(async {
        let connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
        let open = |recent| {
            let builder = Hapax::builder().store_url(server.url()).recent_results(recent);
            builder.policy(PolicyPatch::new().ttl(KEPT)).build()
        };
        anyhow::Ok((connection, open(1_000).await?, open(0).await?))
    })?;
    let scripts = Arc::new([redis::Script::new(FLOOR_BEGIN), redis::Script::new(FLOOR_END)]);
    let next = AtomicUsize::new(REPLAYED);
    let (mut rows, mut notes) = (Vec::new(), vec![NOTE.to_string()]);
    for n in 0..REPLAYED {
        runtime.block_on(execute(hapax.clone(), n, true))?;
    }
    for &callers in &size.callers {
        let with = if callers == 1 { "1 caller".to_string() } else { format!("{callers} callers") };
        say(&format!("f: Redis, {with}"));
        let field = Field { runtime: &runtime, callers, next: &next, server: server.process()?.pid() };
        let spent: [Spent; 4] = Default::default();
        let [ours, replays, pair, least] = &spent;
        let run_ours = |count| {
            let hapax = hapax.clone();
            field.run(ours, count, move |n| execute(hapax.clone(), n, true))
        };
        let run_replays = |count| {
            let hapax = forgetful.clone();
            field.run(replays, count, move |n| execute(hapax.clone(), n % REPLAYED, false))
        };
        let run_pair = |count| {
            let connection = connection.clone();
            field.run(pair, count, move |n| bare(connection.clone(), n))
        };
        let run_least = |count| {
            let (connection, scripts) = (connection.clone(), scripts.clone());
            field.run(least, count, move |n| floor(connection.clone(), scripts.clone(), n))
        };
        let counts = [
            calibrate(size.run, callers, run_ours)?,
            calibrate(size.run, callers, run_replays)?,
            calibrate(size.run, callers, run_pair)?,
            calibrate(size.run, callers, run_least)?,
        ];
        for spent in &spent {
            spent.0.set((0.0, 0.0, 0));
        }
        let [a, b, c, d] = counts;
        let mut contestants = [
            Contestant::new("hapax", || run_ours(a)),
            Contestant::new("hapax", || run_replays(b)),
            Contestant::new("`SET NX`, `SET`", || run_pair(c)),
            Contestant::new("two scripts of two calls", || run_least(d)),
        ];
        let series = interleave(&mut contestants, size.rounds)?;
        drop(contestants);
        if let [execution, replay, pair, least] = series.as_slice() {
            let row = |what: &str, ours, theirs| {
                Row::new(Part::F, format!("Redis, {what}, {with}"), Show::Rate, ours, theirs)
            };
            rows.push(row("execution", execution, pair).target(Some(TARGET)));
            rows.push(row("execution", execution, least));
            rows.push(row("replay from the store", replay, pair).target(Some(TARGET)));
        }
        let cost = |name: &str, spent: &Spent| {
            let (server, client) = spent.per_op();
            format!("{name} {server:.1} + {client:.1}")
        };
        notes.push(format!(
            "f: processor time with {with}, server + client, µs: {}, {}, {}, {}.",
            cost("execution", ours),
            cost("replay", replays),
            cost("`SET NX` + `SET`", pair),
            cost("two scripts", least)
        ));
    }
    for hapax in [hapax, forgetful] {
        let shutdown = runtime.block_on(hapax.shutdown(Duration::from_secs(10)))?;
        ensure!(shutdown.unfinished == 0, "attempts were left behind");
    }
    Ok((rows, notes))
}

const NOTE: &str = "f: one private server without persistence; results of 300 bytes; one connection each. An execution is \
    two requests that its caller waits for one after the other, and so are the bare pair (`SET NX`, then `SET`) and the two \
    scripts, the least that an atomic conditional step costs: no clock, no index, no record but the value.";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_run_and_say_what_they_cost() {
        let size = Size { callers: vec![1, 4], run: Duration::from_millis(1), rounds: 1 };
        let (rows, notes) = measure(&size, &mut |_| {}).unwrap();
        assert_eq!((rows.len(), notes.len()), (6, 3));
        assert!(rows.iter().all(|r| r.ratio.is_some()));
    }
}
