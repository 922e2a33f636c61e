//! Other processes: this test binary, run again with a role to play.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Begun, Store};
use hapax::{Action, Hapax};

use super::{ask, complete, completed, key, open, space, start};

/// Before each line that a role says, since the test runner prints lines of its own.
const MARK: &str = "@@";

/// A process that plays a role on the store at a path. It is killed when dropped.
pub(super) struct Player {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Player {
    pub(super) fn new(role: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::plays_its_role", "--ignored", "--nocapture", "--test-threads=1"])
            .env("HAPAX_TEST_ROLE", role)
            .env("HAPAX_TEST_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The runner's own words may stand before it on the line.
                if let Some((_, said)) = line.split_once(MARK)
                    && sender.send(said.to_string()).is_err()
                {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    /// What it says next.
    pub(super) fn hear(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(30)).expect("the other process says nothing")
    }

    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// SIGKILL, and until it is gone.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGKILL, and leaves it a zombie, as under a parent that does not look.
    pub(super) fn kill_unseen(&mut self) {
        self.child.kill().unwrap();
    }

    /// Until it has ended by itself, and well.
    pub(super) fn ends(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The wall clock, which all processes of a host share.
pub(super) fn micros() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()
}

fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

fn heard() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(Result::ok)
}

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "what the other processes of these tests run"]
fn plays_its_role() {
    let Ok(role) = std::env::var("HAPAX_TEST_ROLE") else { return };
    let path = PathBuf::from(std::env::var_os("HAPAX_TEST_PATH").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(&role, &path));
}

async fn play(role: &str, path: &Path) {
    match role {
        // Begins a key and never ends it.
        "holder" => {
            let store = open(path);
            start(&store, "held").await;
            say("begun");
            forever()
        }
        // For each line: begins that key and says so; at the next line completes it and says when.
        "runner" => {
            let store = open(path);
            say("ready");
            let mut lines = heard();
            while let Some(text) = lines.next() {
                let attempt = start(&store, &text).await;
                say("begun");
                lines.next();
                store.end(space(), key(&text), attempt, complete(&text)).await.unwrap();
                say(micros());
            }
            store.close().await.unwrap();
        }
        // Says each key as soon as it is recorded, until it is killed.
        "writer-sync" | "writer-buffered" => {
            let durability = if role == "writer-sync" { Durability::Sync } else { Durability::Buffered };
            let store = SqliteStore::open(SqliteOptions::new(path).durability(durability)).unwrap();
            for n in 0.. {
                completed(&store, &format!("k{n}")).await;
                say(format_args!("k{n}"));
            }
        }
        // At the word: opens the store, tries to begin keys that others try too, and says which it got.
        "rival" => {
            say("ready");
            heard().next();
            let store = open(path);
            for n in 0..50 {
                if matches!(store.begin(ask(&format!("k{n}"))).await.unwrap(), Begun::Started { .. }) {
                    say(n);
                }
            }
            store.close().await.unwrap();
            say("done");
        }
        // Runs three actions through a manager, one of them twice.
        "manager" => {
            let hapax = Hapax::open(&format!("sqlite:{}", path.display())).await.unwrap();
            for signal in ["a", "b", "c", "c"] {
                let action = Action::new("create_task", "trello").signal(signal);
                hapax.execute(&action, |_| async { Ok(std::process::id()) }).await.unwrap();
            }
            let _ = hapax.shutdown(Duration::from_secs(5)).await.unwrap();
            say("done");
        }
        // For each line: clears, removes or settles.
        "cleaner" => {
            let hapax = Hapax::open(&format!("sqlite:{}", path.display())).await.unwrap();
            say("ready");
            for _ in heard() {
                let gone = hapax.clear_all().await.unwrap();
                say(gone);
            }
        }
        // Makes half of a store and goes no further.
        "half-made" => {
            let conn = rusqlite::Connection::open(path).unwrap();
            conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
            conn.execute_batch(
                "BEGIN IMMEDIATE;
                 CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
                 CREATE TABLE records (half INTEGER);
                 PRAGMA application_id = 1752195448;",
            )
            .unwrap();
            say("half");
            forever()
        }
        other => panic!("no role {other:?}"),
    }
}
