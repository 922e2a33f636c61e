//! A process that is killed at each poll of `execute`, just before it, just
//! after it and a moment later: what it leaves is what the protocol says.
#![allow(clippy::expect_used, clippy::panic)]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use hapax::{Action, ActionError, Error, Hapax, OnDoubt, PolicyPatch, State};
use rustix::process::{Signal, getpid, kill_process};

/// Where to kill, in the child's environment: directory, poll, when.
const HERE: &str = "HAPAX_STORM_POLL";

#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Before,
    After,
    Later,
}

async fn open(dir: &Path) -> Hapax {
    let url = format!("sqlite:{}", dir.join("store.db").display());
    let policy = PolicyPatch::new().on_doubt(OnDoubt::Refuse);
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

async fn child(dir: &Path, fatal: u32, when: When) {
    let hapax = open(dir).await;
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

#[test]
fn a_process_killed_at_any_poll_leaves_what_the_protocol_says() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    if let Ok(here) = std::env::var(HERE) {
        let [fatal, when, dir] = here.splitn(3, ' ').collect::<Vec<_>>().try_into().expect("three words");
        let when = match when {
            "Before" => When::Before,
            "After" => When::After,
            _ => When::Later,
        };
        return runtime.block_on(child(Path::new(dir), fatal.parse().expect("a number"), when));
    }
    let (mut killed, mut absent, mut undone, mut done, mut completed) = (0, 0, 0, 0, 0);
    for when in [When::Before, When::After, When::Later] {
        for fatal in 1.. {
            let dir = tempfile::tempdir().expect("a directory");
            let status = Command::new(std::env::current_exe().expect("a name"))
                .args(["--exact", "a_process_killed_at_any_poll_leaves_what_the_protocol_says"])
                .env(HERE, format!("{fatal} {when:?} {}", dir.path().display()))
                .stdout(std::process::Stdio::null())
                .status()
                .expect("the child starts");
            let effects = || std::fs::read(dir.path().join("ledger")).unwrap_or_default().len();
            let before = effects();
            let (state, again) = runtime.block_on(async {
                let hapax = open(dir.path()).await;
                let key = action().generate_key().expect("a key");
                let state = hapax.record(&key).await.expect("a look").map(|r| r.state);
                (state, call(&hapax, dir.path()).await)
            });
            let at = format!("poll {fatal}, {when:?}: {state:?}, {before} effects, then {again:?} and {}", effects());
            assert_eq!(effects(), before.max(usize::from(state.is_none())), "{at}");
            match (state, before) {
                (None, 0) => absent += 1,
                (Some(State::InDoubt), 0) => undone += 1,
                (Some(State::InDoubt), 1) => done += 1,
                (Some(State::Completed), 1) => completed += 1,
                _ => panic!("{at}"),
            }
            match state {
                Some(State::InDoubt) => assert!(matches!(again, Err(Error::InDoubt { .. })), "{at}"),
                _ => assert!(matches!(again, Ok(7)), "{at}"),
            }
            if status.success() {
                assert_eq!(state, Some(State::Completed), "{at}");
                break;
            }
            killed += 1;
            assert!(fatal < 1000, "the call never ends");
        }
    }
    println!(
        "{killed} killed: {absent} absent, {undone} in doubt before the effect, {done} after it, {completed} completed"
    );
    assert!(absent > 0 && undone > 0 && done > 0 && completed >= 3, "each state was left by some kill");
}
