//! `hapax top` as a process: on a terminal, without one, and what it leaves behind.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::io::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Stdio};

use common::{Home, assert_one_line, wait_until};

#[test]
fn one_look_needs_no_terminal_and_makes_no_store() {
    let home = Home::new();
    assert!(home.ok(["top", "--once"]).contains("(absent)"));
    assert!(!home.database().exists());
    home.sh("done", "echo out");
    home.sh("doubtful", "kill -9 $$");
    let text = home.ok(["top", "--once"]);
    for part in
        ["in doubt 1", "In doubt: look, then settle (1)", "doubtful", "Recorded, newest first (1)", "sh on local"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains('\x1b'));
    let done = home.run(["top"]);
    assert_eq!(done.code, Some(64));
    assert_one_line(&done);
    assert!(done.stderr.contains("hapax stats --json") && done.stderr.contains("hapax ls"), "{done:?}");
    assert_eq!(home.run(["top", "--interval", "1ms"]).code, Some(64));
}

/// `hapax` on a terminal of its own.
struct Terminal<'a> {
    home: &'a Home,
    script: Child,
    keyboard: ChildStdin,
}

impl<'a> Terminal<'a> {
    fn start(home: &'a Home, args: &str) -> Option<Self> {
        let hapax = env!("CARGO_BIN_EXE_hapax");
        let line = format!(
            "stty rows 24 cols 100; a=$(stty -g); {hapax} {args}; echo code $? > code; [ \"$a\" = \"$(stty -g)\" ] && echo same >> code"
        );
        let mut command = home.program("script");
        command.args(["-qefc", &line, "typescript"]).env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null());
        let Ok(mut script) = command.spawn() else {
            eprintln!("skipped: there is no `script` here");
            return None;
        };
        let keyboard = script.stdin.take().unwrap();
        Some(Self { home, script, keyboard })
    }

    /// All that was written on it so far.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.home.path("typescript")).unwrap_or_default()).into_owned()
    }

    fn quit(&mut self) {
        self.keyboard.write_all(b"q").unwrap();
        let script = &mut self.script;
        wait_until("q ends it", || script.try_wait().unwrap().is_some());
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

/// A server on the default store; it is killed when it is dropped.
struct Server(Child, String);

impl Server {
    fn start(home: &Home, listen: &str) -> Self {
        let store = format!("sqlite:{}", home.database().display());
        let mut command = home.hapax(["serve", "--store", &store, "--listen", listen]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().to_string();
        Self(child, address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_tells_what_happens_and_is_followed_again_after_a_restart() {
    let home = Home::new();
    home.ok(["mark", "first", "--result", "1"]);
    let server = Server::start(&home, "127.0.0.1:0");
    let address = server.1.clone();
    let store = format!("http://{address}");
    let once = home.ok(["top", "--once", "--store", &store]);
    assert!(once.contains("up ") && once.contains("first"), "{once}");
    // It is asked once a minute: what shows sooner was told.
    let args = format!("top --interval 60s --store {store}");
    let Some(mut terminal) = Terminal::start(&home, &args) else { return };
    wait_until("it is told", || terminal.shown().contains("live"));
    home.ok(["--store", &store, "mark", "second-one", "--result", "1"]);
    wait_until("what happens is shown", || terminal.shown().contains("second-one"));
    home.run(["--store", &store, "run", "--key", "doubtful", "--", "sh", "-c", "kill -9 $$"]);
    wait_until("a doubt is shown", || terminal.shown().contains("doubtful"));
    drop(server);
    wait_until("the loss is shown", || terminal.shown().contains("polling"));
    let before = terminal.shown().len();
    home.ok(["mark", "while-it-was-gone", "--result", "1"]);
    let _server = Server::start(&home, &address);
    wait_until("it is followed again", || terminal.shown()[before..].contains("live"));
    wait_until("what was missed is looked for", || terminal.shown().contains("while-it-was-gone"));
    // Only cells that change are written: a text of no letters that were there before.
    home.ok(["--store", &store, "mark", "QQQQQQ", "--result", "1"]);
    wait_until("what happens is shown again", || terminal.shown().contains("QQQQQQ"));
    terminal.quit();
    assert_eq!(std::fs::read_to_string(home.path("code")).unwrap(), "code 0\nsame\n");
}

#[test]
fn on_a_terminal_it_sees_what_others_add_and_gives_the_terminal_back() {
    let home = Home::new();
    home.ok(["mark", "first", "--result", "1"]);
    let Some(mut terminal) = Terminal::start(&home, "top --interval 250ms") else { return };
    wait_until("the first record is shown", || terminal.shown().contains("first"));
    home.ok(["mark", "second-one", "--result", "1"]);
    wait_until("what another process adds is shown", || terminal.shown().contains("second-one"));
    terminal.quit();
    assert_eq!(std::fs::read_to_string(home.path("code")).unwrap(), "code 0\nsame\n");
    let all = terminal.shown();
    let (entered, left) = (all.find("\x1b[?1049h").unwrap(), all.rfind("\x1b[?1049l").unwrap());
    assert!(entered < left);
}
