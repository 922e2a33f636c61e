//! `hapax top` as a process: on a terminal, without one, and what it leaves behind.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::{Home, PATIENCE, assert_one_line, wait_until};

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

#[test]
fn on_a_terminal_it_sees_what_others_add_and_gives_the_terminal_back() {
    let home = Home::new();
    home.ok(["mark", "first", "--result", "1"]);
    let hapax = env!("CARGO_BIN_EXE_hapax");
    let line = format!(
        "stty rows 24 cols 80; a=$(stty -g); {hapax} top --interval 250ms; echo code $? > code; [ \"$a\" = \"$(stty -g)\" ] && echo same >> code"
    );
    let mut command = home.program("script");
    command.args(["-qefc", &line, "typescript"]).env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null());
    let Ok(mut terminal) = command.spawn() else {
        eprintln!("skipped: there is no `script` here");
        return;
    };
    let mut keyboard = terminal.stdin.take().unwrap();
    let shown = || String::from_utf8_lossy(&std::fs::read(home.path("typescript")).unwrap_or_default()).into_owned();
    wait_until("the first record is shown", || shown().contains("first"));
    home.ok(["mark", "second-one", "--result", "1"]);
    wait_until("what another process adds is shown", || shown().contains("second-one"));
    keyboard.write_all(b"q").unwrap();
    let began = std::time::Instant::now();
    while terminal.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "q does not end it");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(std::fs::read_to_string(home.path("code")).unwrap(), "code 0\nsame\n");
    let all = shown();
    let (entered, left) = (all.find("\x1b[?1049h").unwrap(), all.rfind("\x1b[?1049l").unwrap());
    assert!(entered < left);
}
