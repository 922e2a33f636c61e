//! What reaches a terminal: colour where it is wanted, and nothing that draws.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::{Done, Home, finish, is_ignored, wait_until};
use rustix::process::Signal;

/// Runs the binary on a terminal of its own; `None` where there is no `script`.
fn on_terminal(home: &Home, args: &str, env: &[(&str, &str)]) -> Option<String> {
    let line = format!("{} {args}", env!("CARGO_BIN_EXE_hapax"));
    let mut command = home.program("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").envs(env.iter().copied());
    if command.output().is_err() {
        eprintln!("skipped: there is no `script` here");
        return None;
    }
    Some(finish(&mut command).stdout)
}

fn has_colour(text: &str) -> bool {
    text.contains('\x1b')
}

#[test]
fn there_is_colour_on_a_terminal_and_none_in_a_pipe() {
    let home = Home::new();
    home.ok(["mark", "k", "--result", "1"]);
    for args in ["ls", "get k", "stats", "info", "config"] {
        let piped = home.ok(args.split(' '));
        assert!(!has_colour(&piped), "{args}: {piped:?}");
        let Some(shown) = on_terminal(&home, args, &[]) else { return };
        assert!(has_colour(&shown), "{args}: {shown:?}");
        let plain = on_terminal(&home, args, &[("NO_COLOR", "1")]).unwrap();
        assert!(!has_colour(&plain), "{args}: {plain:?}");
    }
}

#[test]
fn recorded_text_cannot_draw_on_the_terminal() {
    let home = Home::new();
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}";
    let mut args = vec!["run", "--key", "k", "--signal", evil, "--action", evil, "--target", evil];
    args.extend(["--", "printf", "%s", evil]);
    // The command's own output is its own affair, as without hapax.
    assert_eq!(home.run(args).stdout, evil);
    for args in ["ls", "get k", "check k", "--json get k", "--json ls"] {
        let shown = home.ok(args.split(' '));
        let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!shown.contains(acts), "{args}: {shown:?}");
    }
    assert_eq!(home.json(["--json", "get", "k"])["signalId"], evil);
    let done = home.run(["run", "--key", "k", "--", "echo", evil]);
    assert!(done.code == Some(65) && !has_colour(&done.stderr));
    let done = home.run(["run", evil]);
    assert!(!has_colour(&done.stderr), "{done:?}");
}

#[test]
fn large_texts_are_cut_in_tables_and_whole_as_json() {
    let home = Home::new();
    let large = "x".repeat(5000);
    home.ok(["mark", "k", "--result", &format!("\"{large}\"")]);
    let text = home.ok(["get", "k"]);
    assert!(text.len() < 2000 && text.contains("… (5002 bytes)"), "{text}");
    assert_eq!(home.json(["--json", "get", "k"])["result"], large);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let home = Home::new();
    home.ok(["mark", "k", "--result", "1"]);
    let hapax = env!("CARGO_BIN_EXE_hapax");
    for args in ["ls", "--help", "completions bash", "get k", "--json stats"] {
        let line = format!("set -o pipefail; {hapax} {args} | :; {hapax} {args} | head -0");
        let done = finish(home.program("bash").args(["-c", &line]));
        assert_eq!(done, Done { code: Some(0), stdout: String::new(), stderr: String::new() }, "{args}");
    }
}

#[test]
fn a_standard_output_that_cannot_be_written_is_a_failure() {
    let home = Home::new();
    home.ok(["mark", "k", "--result", "1"]);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full");
    let Ok(to) = full() else { return };
    let output = home.hapax(["get", "k"]).stdout(to).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("hapax: standard output cannot be written"));
    // A run is recorded all the same, and says that it was not shown.
    let output = home.hapax(["run", "--key", "r", "--", "echo", "out"]).stdout(full().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("replays it"), "{output:?}");
    let output = home.hapax(["run", "--key", "r", "--", "echo", "out"]).stdout(full().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a replay too: {output:?}");
    assert_eq!(home.ok(["run", "--key", "r", "--", "echo", "out"]), "out\n");
}

#[test]
fn a_ctrl_c_of_the_terminal_reaches_the_command_once() {
    if is_ignored(Signal::INT) {
        return;
    }
    let home = Home::new();
    let script = concat!("trap 'echo int >> ledger' INT; touch started; ", until_go!(), "; echo ran >> ledger");
    home.write("command.sh", script);
    let line = format!("exec {} run --key k -- sh ./command.sh", env!("CARGO_BIN_EXE_hapax"));
    let mut command = home.program("script");
    command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let Ok(mut terminal) = command.spawn() else {
        eprintln!("skipped: there is no `script` here");
        return;
    };
    let mut keyboard = terminal.stdin.take().unwrap();
    home.wait_for_file("started");
    keyboard.write_all(b"\x03").unwrap();
    wait_until("the command gets its signal", || !home.ledger().is_empty());
    home.write("go", "");
    assert!(terminal.wait().unwrap().success(), "the command ended well, so that is recorded");
    assert_eq!(home.ledger(), ["int", "ran"]);
    assert_eq!(home.state("k"), "completed");
}
