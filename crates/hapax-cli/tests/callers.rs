//! Many callers of one key: one runs the command, the others wait or are turned away.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod common;

use std::io::Read as _;
use std::process::Stdio;

use common::{Home, PATIENCE, Running, assert_one_line, wait_until};
use rustix::process::Signal;

const SLOW: &str = concat!("touch started; ", until_go!(), "; echo ran >> ledger; echo $HAPAX_ATTEMPT");

fn args<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--key", "k"], flags, &["--", "sh", "-c", SLOW]].concat()
}

#[test]
fn of_twenty_processes_one_runs_the_command_and_all_print_the_same() {
    let home = Home::new();
    let all: Vec<Running> = (0..20).map(|_| home.start(args(&[]))).collect();
    home.wait_for_file("started");
    home.write("go", "");
    let mut said: Vec<String> = all
        .into_iter()
        .map(|running| {
            let done = running.finish();
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
            done.stdout
        })
        .collect();
    said.dedup();
    assert_eq!((said.len(), home.ledger().len()), (1, 1), "{said:?}");
}

#[test]
fn many_keys_in_a_new_store_do_not_get_in_each_others_way() {
    let home = Home::new();
    let all: Vec<Running> = (0..12).map(|n| home.start(["run", "--", "echo", &n.to_string()])).collect();
    for (n, running) in all.into_iter().enumerate() {
        let done = running.finish();
        assert_eq!((done.code, done.stdout), (Some(0), format!("{n}\n")));
    }
    assert_eq!(home.json(["--json", "info"])["completed"], 12);
}

#[test]
fn who_does_not_want_to_wait_is_turned_away() {
    let home = Home::new();
    let running = home.start(args(&[]));
    home.wait_for_file("started");
    let done = home.run(args(&["--no-wait"]));
    assert_eq!(done.code, Some(75));
    assert_one_line(&done);
    assert!(done.stderr.contains(&format!("pid {}", running.pid())), "{done:?}");
    let done = home.run(args(&["--wait", "50ms"]));
    assert_eq!(done.code, Some(75));
    assert!(done.stderr.contains("waited"), "{done:?}");

    let done = home.run(["check", "k"]);
    assert_eq!(done.code, Some(75), "it is not absent: {done:?}");
    assert_eq!(home.run(["rm", "k"]).code, Some(75));
    assert_eq!(home.run(["mark", "k", "--result", "1"]).code, Some(75));
    assert_eq!(home.run(["settle", "k", "--not-happened"]).code, Some(75));
    home.write("go", "");
    assert_eq!(running.finish().code, Some(0));
    assert_eq!(home.ledger().len(), 1);
}

#[test]
fn who_waits_for_a_run_that_fails_runs_the_command_itself() {
    let home = Home::new();
    let script = concat!("if mkdir first; then touch started; ", until_go!(), "; exit 3; fi; echo second");
    let line = ["run", "--key", "k", "--", "sh", "-c", script];
    let first = home.start(line);
    home.wait_for_file("started");
    let second = home.start(line);
    wait_until("it waits", || home.json(["--json", "stats"])["waitsJoined"] == 1);
    home.write("go", "");
    assert_eq!(first.finish().code, Some(3));
    assert_eq!(second.finish().stdout, "second\n");
}

#[test]
fn a_signal_while_waiting_ends_the_waiting_and_nothing_else() {
    let home = Home::new();
    let running = home.start(args(&[]));
    home.wait_for_file("started");
    let waiting = home.start(args(&[]));
    wait_until("it waits", || home.json(["--json", "stats"])["waitsJoined"] == 1);
    waiting.signal(Signal::TERM);
    let done = waiting.finish();
    assert_eq!(done.code, Some(128 + 15));
    assert_one_line(&done);
    home.write("go", "");
    assert_eq!(running.finish().code, Some(0));
    assert_eq!(home.state("k"), "completed");
}

#[test]
fn on_a_terminal_a_line_shows_who_is_waited_for() {
    let home = Home::new();
    let running = home.start(args(&[]));
    home.wait_for_file("started");
    // `script` gives the command a terminal.
    let line = format!("{} run --key k -- sh -c '{SLOW}'", env!("CARGO_BIN_EXE_hapax"));
    let mut command = home.program("script");
    command.args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm").stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: there is no `script` here");
        running.signal(Signal::KILL);
        return;
    };
    let mut out = child.stdout.take().unwrap();
    let expected = format!("waiting for pid {}", running.pid());
    let seen = std::thread::spawn(move || {
        let (mut seen, mut chunk, until) = (Vec::new(), [0; 1024], std::time::Instant::now() + PATIENCE);
        while std::time::Instant::now() < until {
            match out.read(&mut chunk) {
                Ok(n) if n > 0 => seen.extend_from_slice(&chunk[..n]),
                _ => break,
            }
            if String::from_utf8_lossy(&seen).contains(&expected) {
                std::fs::write(home.path("go"), "").unwrap();
            }
        }
        (String::from_utf8_lossy(&seen).into_owned(), home)
    });
    let (seen, home) = seen.join().unwrap();
    assert!(seen.contains("waiting for pid "), "{seen:?}");
    assert!(seen.contains("\r\x1b[K"), "the line goes away again: {seen:?}");
    assert!(child.wait().unwrap().success());
    assert_eq!(running.finish().code, Some(0));
    assert_eq!(home.ledger().len(), 1);
}
