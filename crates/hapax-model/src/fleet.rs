//! Histories of several processes on one store, some of which are killed.
//!
//! Each client process writes what it asks and what it was answered into a log of
//! its own; the parent kills clients at random, starts others in their place, and
//! puts the logs together, key by key. Invariants: a line is written before the
//! store is asked, and after it has answered; a client that was killed has left
//! no more than its last line in doubt; no two lives share a number of an attempt.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::store::Store;
use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::{Key, ManualClock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::history::{Client, driver, is_open};
use crate::linear::Event;
use crate::spec::{Answer, Attempt, Op};

/// How long all clients work on one key.
const SLOT: Duration = Duration::from_millis(25);
/// What a life asks of one key.
const CALLS: u8 = 6;
/// Lives before a number comes again; by then its key is long past.
const LIVES: u64 = 40;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Orders {
    store: PathBuf,
    log: PathBuf,
    seed: u64,
    life: u64,
    keys: u64,
    began: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Asked {
        key: u64,
        op: Op,
        at: u64,
    },
    Answered {
        answer: Answer,
        at: u64,
    },
    /// The store says that nothing happened.
    Refused,
    /// Nobody knows what happened.
    Open,
}

/// Nanoseconds of the one clock that all processes of a host share.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn key(n: u64) -> Result<Key, hapax::KeyError> {
    Key::given(&format!("key-{n}"))
}

fn open(path: &Path) -> Result<Arc<dyn Store>, hapax::store::StoreError> {
    Ok(Arc::new(SqliteStore::open(SqliteOptions::new(path).durability(Durability::Buffered))?))
}

/// What a client process does.
///
/// # Errors
/// When its orders, its store or its log cannot be read or written.
pub fn client(orders: &str) -> Result<(), Box<dyn Error>> {
    let orders: Orders = serde_json::from_str(orders)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let store = open(&orders.store)?;
    let mut log = OpenOptions::new().create(true).append(true).open(&orders.log)?;
    let mut write = |line: &Line| -> Result<(), Box<dyn Error>> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        Ok(log.write_all(&text)?)
    };
    let slot = || now().saturating_sub(orders.began) / u64::try_from(SLOT.as_nanos()).unwrap_or(1);
    let mut last = None;
    loop {
        let n = slot();
        if n >= orders.keys {
            return Ok(());
        }
        if last.replace(n) == Some(n) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let first = Attempt::try_from(orders.life % LIVES)? * CALLS + 1;
        let mut client = Client::new(orders.seed ^ (orders.life << 32) ^ n, first..=first + CALLS - 1);
        // Its clock is asked for nothing: leases and times to live are longer than the run.
        let driver = driver(store.clone(), ManualClock::new(), key(n)?);
        for _ in 0..CALLS {
            let op = client.choose();
            write(&Line::Asked { key: n, op, at: now() })?;
            let answer = runtime.block_on(driver.run(op));
            let line = match &answer {
                Ok(answer) => Line::Answered { answer: *answer, at: now() },
                Err(error) if is_open(error) => Line::Open,
                Err(_) => Line::Refused,
            };
            write(&line)?;
            client.learn(op, answer.ok());
        }
    }
}

/// What a fleet left behind.
#[derive(Debug)]
pub struct Recorded {
    /// The histories, by key.
    pub histories: BTreeMap<u64, Vec<Event>>,
    /// Clients that were killed.
    pub kills: u64,
}

/// Lets client processes (`program client …`) work on keys of one SQLite store, and kills some.
///
/// # Errors
/// When a client cannot be started, or a log not be read.
pub fn record(program: &Path, dir: &Path, seed: u64, clients: usize, keys: u64) -> Result<Recorded, Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let store = dir.join("s.db");
    drop(open(&store)?);
    let mut lives = Vec::new();
    // A moment for the first to start.
    let began = now() + 100_000_000;
    let start = |life: u64| -> Result<(u64, Child), Box<dyn Error>> {
        let log = dir.join(format!("log-{life}"));
        let orders = Orders { store: store.clone(), log, seed, life, keys, began };
        let child = Command::new(program).args(["client", &serde_json::to_string(&orders)?]).spawn()?;
        Ok((life, child))
    };
    let mut next = 0;
    let mut fleet = Vec::new();
    for _ in 0..clients {
        fleet.push(start(next)?);
        next += 1;
    }
    let (mut kills, end) = (0, began + keys * u64::try_from(SLOT.as_nanos())?);
    while now() < end {
        std::thread::sleep(Duration::from_millis(rng.random_range(20..60)));
        let victim = rng.random_range(0..fleet.len());
        let (life, mut child) = fleet.swap_remove(victim);
        let at = now();
        child.kill()?;
        // Sometimes its parent is slow to look, and it stays a zombie for a while.
        if rng.random() {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..20)));
        }
        // It may have come to its end by itself just before.
        let killed = !child.wait()?.success();
        lives.push((life, if killed { at } else { 0 }));
        kills += u64::from(killed);
        fleet.push(start(next)?);
        next += 1;
    }
    for (life, mut child) in fleet {
        child.wait()?;
        lives.push((life, 0));
    }
    let mut histories: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    for (life, died) in lives {
        read(&dir.join(format!("log-{life}")), died, &mut histories)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let last = open(&store)?;
    for (n, events) in &mut histories {
        let driver = driver(last.clone(), ManualClock::new(), key(*n)?);
        let called = now();
        let answer = runtime.block_on(driver.run(Op::Get))?;
        events.push(Event { op: Op::Get, called, returned: Some((now(), answer)) });
    }
    Ok(Recorded { histories, kills })
}

/// Adds the log of a life, and the deaths of its attempts. `died` is 0 for one that came to its end.
fn read(log: &Path, died: u64, histories: &mut BTreeMap<u64, Vec<Event>>) -> Result<(), Box<dyn Error>> {
    let text = match File::open(log) {
        Ok(file) => std::io::read_to_string(file)?,
        // It was killed before its first word.
        Err(_) => return Ok(()),
    };
    let (mut open, mut began, mut last) = (None, Vec::new(), 0);
    let mut add = |key: u64, event: Event| histories.entry(key).or_default().push(event);
    // A line that was cut short by the kill says nothing: its call comes before, whole.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        match (serde_json::from_str(line)?, open.take()) {
            (Line::Asked { key, op, at }, _) => {
                if let Op::Begin { attempt, .. } = op {
                    began.push((key, attempt));
                }
                open = Some((key, op, at));
            }
            (Line::Answered { answer, at }, Some((key, op, called))) => {
                last = at;
                add(key, Event { op, called, returned: Some((at, answer)) });
            }
            (Line::Open, Some((key, op, called))) => add(key, Event { op, called, returned: None }),
            _ => {}
        }
    }
    if let Some((key, op, called)) = open {
        add(key, Event { op, called, returned: None });
    }
    // Whoever looks after its death may find its attempts in doubt.
    let died = if died == 0 { last } else { died };
    for (key, attempt) in began {
        add(key, Event { op: Op::Die(attempt), called: died, returned: None });
    }
    Ok(())
}
