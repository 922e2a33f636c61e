//! Histories of a server's store whose connections are cut: two handles are connected directly, two through a proxy
//! that cuts all its connections over and over.
//!
//! A store sends a request again when its connection breaks before the answer. Invariant that is judged: an answer is
//! one that asking once could have had, whichever of the sendings did the work; where the store cannot know, it says so.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::Key;
use hapax::store::Store;
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::process::local;
use hapax_servers::proxy::Proxy;
use hapax_servers::redis::{RedisConfig, RedisServer};

use crate::driver::Clock;
use crate::history::record;
use crate::linear::{Event, Refused, Sends, linearize};

/// How long the proxy leaves its connections alone, in turn, in milliseconds: too short for a server that makes a process
/// for each, and long enough for some calls.
const PAUSES: [u64; 4] = [20, 60, 120, 250];

/// What was recorded and found in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    /// Histories, each of a key of its own.
    pub histories: u64,
    /// Calls in them.
    pub calls: usize,
    /// Of those, without an answer: dropped by their callers, or told that nobody knows.
    pub unanswered: usize,
    /// How often all connections through the proxy were cut.
    pub cuts: u64,
}

/// Starts a Redis and a PostgreSQL, and judges this many histories on each, from a seed on; tells what it has seen.
///
/// # Errors
/// A server that does not start; see [`judge`].
pub fn judge_servers(seed: u64, histories: u64, mut tell: impl FnMut(&str, &Judged)) -> Result<(), String> {
    let redis = RedisServer::start(RedisConfig::new()).map_err(|e| format!("{e:#}"))?;
    tell("redis", &judge(&redis.url(), redis.port(), seed..seed + histories, Duration::MAX)?);
    drop(redis);
    let postgres = PostgresServer::start(Disk::Fast, Tls::Off).map_err(|e| format!("{e:#}"))?;
    tell("postgres", &judge(&postgres.url("postgres"), postgres.port(), seed..seed + histories, Duration::MAX)?);
    Ok(())
}

/// Records and judges a history of a fresh key for each seed; begins no more of them after this time.
///
/// # Errors
/// The seed and the history that no order explains; what keeps the store from being opened.
pub fn judge(url: &str, port: u16, mut seeds: Range<u64>, within: Duration) -> Result<Judged, String> {
    let through = Proxy::start(local(port)).map_err(|e| e.to_string())?;
    let cut = url.replace(&format!(":{port}"), &format!(":{}", through.port()));
    if cut == url {
        return Err(format!("{url} has no port {port}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let open = |url: &str| runtime.block_on(hapax::store::open(url)).map_err(|e| e.to_string());
    let handles = [open(url)?, open(url)?, open(&cut)?, open(&cut)?];
    let began = Instant::now();
    std::thread::scope(|scope| {
        let judged = scope.spawn(|| {
            seeds.try_fold(Judged::default(), |sum, seed| match began.elapsed() < within {
                true => one(&handles, sum, seed),
                false => Ok(sum),
            })
        });
        let mut cuts = 0;
        for pause in PAUSES.into_iter().cycle().take_while(|_| !judged.is_finished()) {
            std::thread::sleep(Duration::from_millis(pause));
            through.cut();
            cuts += 1;
        }
        let judged = judged.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Judged { cuts, ..judged })
    })
}

fn one(handles: &[Arc<dyn Store>], sum: Judged, seed: u64) -> Result<Judged, String> {
    let key = Key::given(&format!("cut-{seed}")).map_err(|e| e.to_string())?;
    let events = record(handles, &Clock::Server, &key, seed);
    match linearize(&events, Sends::Again) {
        Ok(()) => {}
        Err(Refused::NoOrder(story)) => return Err(format!("seed {seed}: no order explains\n{story}")),
        Err(refused @ Refused::TooLong(_)) => return Err(format!("seed {seed}: {refused:?}")),
    }
    let silent = |event: &&Event| event.returned.is_none();
    Ok(Judged {
        histories: sum.histories + 1,
        calls: sum.calls + events.len(),
        unanswered: sum.unanswered + events.iter().filter(silent).count(),
        ..sum
    })
}
