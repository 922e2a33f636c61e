//! A process that is killed at each poll of `execute`, just before it, just
//! after it and a moment later: what it leaves is what the protocol says.
#![allow(clippy::expect_used, clippy::panic)]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use hapax::{Action, ActionError, Error, Hapax, Key, OnDoubt, PolicyPatch, State};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::redis::{RedisConfig, RedisServer};
use rustix::process::{Signal, getpid, kill_process};

/// Where to kill, in the child's environment: poll, when, store, directory.
const HERE: &str = "HAPAX_STORM_POLL";

/// Where a store cannot see that its owner is dead, an attempt ends by it.
const LEASE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Before,
    After,
    Later,
}

async fn open(url: &str) -> Hapax {
    let policy = PolicyPatch::new().on_doubt(OnDoubt::Refuse).lease(LEASE);
    Hapax::builder().store_url(url).policy(policy).build().await.expect("the store opens")
}

fn action() -> Action {
    Action::new("append", "ledger").signal("s")
}

async fn call(hapax: &Hapax, dir: &Path) -> Result<u64, Error> {
    let ledger = dir.join("ledger");
    let act = move |_| async move {
        tokio::task::yield_now().await;
        let effects = std::fs::read(&ledger).unwrap_or_default().len();
        std::fs::write(&ledger, vec![b'.'; effects + 1]).map_err(|e| ActionError::unknown(e.to_string()))?;
        tokio::task::yield_now().await;
        Ok::<u64, ActionError>(7)
    };
    Ok(hapax.execute(&action(), act).await?.value)
}

fn die() {
    kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
}

async fn child(url: &str, dir: &Path, fatal: u32, when: When) {
    let hapax = open(url).await;
    let mut call = pin!(call(&hapax, dir));
    let mut polls = 0;
    let value = std::future::poll_fn(|cx| {
        polls += 1;
        if polls == fatal && when == When::Before {
            die();
        }
        let polled = call.as_mut().poll(cx);
        if polls == fatal && when != When::Before && polled.is_pending() {
            if when == When::Later {
                std::thread::sleep(Duration::from_millis(20));
            }
            die();
        }
        match polled {
            Poll::Ready(value) => Poll::Ready(value),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    assert_eq!(value.expect("nothing is in its way"), 7);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// What the kills left behind.
#[derive(Debug, Default)]
struct Left {
    killed: u32,
    absent: u32,
    undone: u32,
    done: u32,
    completed: u32,
}

/// Kills a child at each poll; `test` is the name of the test that calls this, and `store` gives a fresh store's address.
fn at_each_poll(test: &str, store: impl Fn(&Path) -> String + Sync) {
    let left = std::thread::scope(|scope| {
        let all = [When::Before, When::After, When::Later].map(|when| {
            let store = &store;
            scope.spawn(move || kill_each(test, when, store))
        });
        all.map(|one| one.join().expect("its kills left what they may"))
    });
    println!("{test}, before, after and later: {left:?}");
    let some = |of: fn(&Left) -> u32| left.iter().map(of).sum::<u32>() > 0;
    assert!(some(|l| l.absent) && some(|l| l.undone) && some(|l| l.done), "each state was left by some kill");
}

fn kill_each(test: &str, when: When, store: impl Fn(&Path) -> String) -> Left {
    let (runtime, mut left) = (runtime(), Left::default());
    for fatal in 1..1000 {
        let dir = tempfile::tempdir().expect("a directory");
        let url = store(dir.path());
        let status = Command::new(std::env::current_exe().expect("a name"))
            .args(["--exact", test])
            .env(HERE, format!("{fatal} {when:?} {url} {}", dir.path().display()))
            .stdout(std::process::Stdio::null())
            .status()
            .expect("the child starts");
        let effects = || std::fs::read(dir.path().join("ledger")).unwrap_or_default().len();
        let before = effects();
        let (state, again) = runtime.block_on(async {
            let hapax = open(&url).await;
            let key = action().generate_key().expect("a key");
            (state_left(&hapax, &key, &url).await, call(&hapax, dir.path()).await)
        });
        let at = format!("poll {fatal}, {when:?}: {state:?}, {before} effects, then {again:?} and {}", effects());
        assert_eq!(effects(), before.max(usize::from(state.is_none())), "{at}");
        match (state, before) {
            (None, 0) => left.absent += 1,
            (Some(State::InDoubt), 0) => left.undone += 1,
            (Some(State::InDoubt), 1) => left.done += 1,
            (Some(State::Completed), 1) => left.completed += 1,
            _ => panic!("{at}"),
        }
        match state {
            Some(State::InDoubt) => assert!(matches!(again, Err(Error::InDoubt { .. })), "{at}"),
            _ => assert!(matches!(again, Ok(7)), "{at}"),
        }
        if status.success() {
            assert_eq!(state, Some(State::Completed), "{at}");
            return left;
        }
        left.killed += 1;
    }
    panic!("the call never ends");
}

/// What the dead process left, once its death can be seen: at once by SQLite, by its lease on a server.
async fn state_left(hapax: &Hapax, key: &Key, url: &str) -> Option<State> {
    if !url.starts_with("sqlite:") {
        // What it sent last may still be on its way to the server.
        tokio::time::sleep(LEASE / 20).await;
    }
    loop {
        match hapax.record(key).await.expect("a look").map(|r| r.state) {
            Some(State::InProgress) if !url.starts_with("sqlite:") => tokio::time::sleep(LEASE / 50).await,
            state => return state,
        }
    }
}

/// What the child of a test does; false if this is no child.
fn is_child() -> bool {
    let Ok(here) = std::env::var(HERE) else { return false };
    let [fatal, when, url, dir] = here.splitn(4, ' ').collect::<Vec<_>>().try_into().expect("four words");
    let when = match when {
        "Before" => When::Before,
        "After" => When::After,
        _ => When::Later,
    };
    runtime().block_on(child(url, Path::new(dir), fatal.parse().expect("a number"), when));
    true
}

#[test]
fn on_sqlite() {
    if !is_child() {
        at_each_poll("on_sqlite", |dir| format!("sqlite:{}", dir.join("store.db").display()));
    }
}

#[test]
fn on_redis() {
    if !is_child() {
        let redis = RedisServer::start(RedisConfig::new()).expect("Redis starts");
        at_each_poll("on_redis", |dir| format!("{}?prefix={}", redis.url(), name(dir)));
    }
}

#[test]
fn on_postgres() {
    if !is_child() {
        let postgres = PostgresServer::start(Disk::Fast, Tls::Off).expect("PostgreSQL starts");
        at_each_poll("on_postgres", |dir| format!("{}?schema={}", postgres.url("postgres"), name(dir)));
    }
}

/// A name that no other directory has, in lower-case letters and digits.
fn name(dir: &Path) -> String {
    let text = dir.display().to_string();
    text.bytes().fold("s".to_string(), |name, byte| format!("{name}{byte:x}"))
}
