//! When nobody knows how a run ended: what leaves a key in doubt, and what
//! settles it.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Done, Home, Running, assert_one_line, is_ignored, kill, wait_until};
use rustix::process::Signal;

/// A script that says its pid, waits for the file `go`, and then has its effect.
const SLOW: &str = concat!("echo $$ > pid.new; mv pid.new pid; ", until_go!(), "; echo ran >> ledger; echo done");

fn start_slow(home: &Home, flags: &[&str], script: &str) -> Running {
    let running = home.start([&["run", "--key", "k"], flags, &["--", "sh", "-c", script]].concat());
    home.wait_for_file("pid");
    running
}

fn child_of(home: &Home) -> u32 {
    fs::read_to_string(home.path("pid")).unwrap().trim().parse().unwrap()
}

/// A key in doubt: its command killed itself after it began.
fn doubtful(home: &Home, key: &str) -> Done {
    home.sh(key, "[ -e second ] || { touch second; kill -9 $$; }; echo ran >> ledger; echo out")
}

const AGAIN: &str = "[ -e second ] || { touch second; kill -9 $$; }; echo ran >> ledger; echo out";

#[test]
fn a_command_that_a_signal_ends_leaves_the_key_in_doubt_until_it_is_settled() {
    let home = Home::new();
    let first = doubtful(&home, "k");
    assert_eq!(first.code, Some(76));
    assert_one_line(&first);
    assert!(first.stderr.contains("SIGKILL") && first.stderr.contains("--happened JSON k`"), "{first:?}");
    let second = home.sh("k", AGAIN);
    assert_eq!(second.code, Some(76));
    assert_one_line(&second);
    assert!(second.stderr.contains("SIGKILL"), "it says why: {second:?}");
    assert!(home.ledger().is_empty());

    home.ok(["settle", "k", "--not-happened"]);
    assert_eq!(home.sh("k", AGAIN).stdout, "out\n");
    assert_eq!(home.ledger(), ["ran"]);
}

#[test]
fn a_message_has_a_line_of_its_own() {
    let home = Home::new();
    let script = "printf 'no line end' >&2; kill -9 $$";
    let done = home.sh("k", script);
    assert!(done.stderr.starts_with("no line end\nhapax: "), "{done:?}");
    let done = home.run(["run", "--json", "--key", "j", "--", "sh", "-c", script]);
    let last = done.stderr.lines().last().unwrap();
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["kind"], "in_doubt");
}

#[test]
fn a_doubt_that_is_settled_as_happened_is_replayed() {
    let home = Home::new();
    doubtful(&home, "k");
    home.ok(["settle", "k", "--happened", "\"paid\"", "--ttl", "never"]);
    assert_eq!(home.sh("k", AGAIN).stdout, "paid\n");
    assert!(home.ledger().is_empty());
    let done = home.run(["settle", "k", "--not-happened"]);
    assert_eq!(done.code, Some(1), "it is settled: {done:?}");
    assert_one_line(&done);
}

#[test]
fn a_remedy_names_the_store_that_was_named() {
    let home = Home::new();
    let flags = ["--store", "sqlite:other.db", "--namespace", "n"];
    let done = home.run([&flags[..], &["run", "--key", "k", "--", "sh", "-c", "kill -9 $$"]].concat());
    assert!(done.stderr.contains("`hapax settle --store sqlite:other.db --namespace n --attempt "), "{done:?}");
}

#[test]
fn a_doubt_can_neither_be_removed_nor_swept() {
    let home = Home::new();
    doubtful(&home, "k");
    let done = home.run(["rm", "k"]);
    assert_eq!(done.code, Some(76));
    assert!(done.stderr.contains("hapax settle"), "{done:?}");
    assert_eq!(home.ok(["cleanup", "--all"]), "removed 0 records\n");
    assert_eq!(home.run(["check", "k"]).code, Some(76));
    assert_eq!(home.state("k"), "in_doubt");
}

#[test]
fn when_hapax_is_killed_the_next_run_says_so_at_once() {
    let home = Home::new();
    let running = start_slow(&home, &[], SLOW);
    running.signal(Signal::KILL);
    drop(running);
    let began = Instant::now();
    let done = home.run(["run", "--key", "k", "--", "sh", "-c", SLOW]);
    // Not after the lease of a minute, nor after the wait of half of one.
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(done.code, Some(76));
    assert_one_line(&done);
    kill(child_of(&home), Signal::KILL);
}

#[test]
fn a_signal_is_passed_on_and_the_command_that_it_ends_is_in_doubt() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        if is_ignored(signal) {
            continue;
        }
        let home = Home::new();
        let running = start_slow(&home, &[], SLOW);
        running.signal(signal);
        let done = running.finish();
        assert_eq!(done.code, Some(76), "{signal:?} {done:?}");
        assert_one_line(&done);
        assert_eq!(home.state("k"), "in_doubt");
    }
}

#[test]
fn a_command_that_ends_well_in_spite_of_a_signal_is_recorded() {
    let home = Home::new();
    let script = format!("trap 'touch go' TERM; {SLOW}");
    let running = start_slow(&home, &[], &script);
    running.signal(Signal::TERM);
    let done = running.finish();
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "done\n"), "{done:?}");
    assert_eq!(home.state("k"), "completed");
}

#[test]
fn a_command_that_gives_up_on_a_signal_is_in_doubt() {
    let home = Home::new();
    let script = format!("trap 'exit 3' TERM; {SLOW}");
    let running = start_slow(&home, &["--remember-failures"], &script);
    running.signal(Signal::TERM);
    let done = running.finish();
    assert_eq!(done.code, Some(76));
    assert!(done.stderr.contains("SIGTERM and exited with 3"), "{done:?}");
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let home = Home::new();
    let line = format!("trap '' HUP; exec {} run --key k -- sh -c \"$0\"", env!("CARGO_BIN_EXE_hapax"));
    let mut command = home.program("sh");
    command.args(["-c", &line, SLOW]);
    let running = Running::spawn(&mut command);
    home.wait_for_file("pid");
    running.signal(Signal::HUP);
    kill(child_of(&home), Signal::HUP);
    home.write("go", "");
    assert_eq!(running.finish().stdout, "done\n");
}

#[test]
fn a_time_limit_ends_the_command_and_leaves_doubt() {
    let home = Home::new();
    let done = home.run(["run", "--key", "k", "--timeout", "50ms", "--", "sleep", "60"]);
    assert_eq!(done.code, Some(76));
    assert_one_line(&done);
    assert!(done.stderr.contains("time limit of 50ms"), "{done:?}");
    assert_eq!(home.state("k"), "in_doubt");
    // One that is in time is not touched.
    assert_eq!(home.run(["run", "--timeout", "20s", "--", "true"]).code, Some(0));
}

#[test]
fn a_command_that_does_not_end_when_its_time_is_over_is_killed() {
    let home = Home::new();
    let began = Instant::now();
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let done = home.run(["run", "--timeout", "50ms", "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(76));
    assert!((5.0..20.0).contains(&began.elapsed().as_secs_f64()));
}

#[test]
fn on_request_a_doubt_is_run_again() {
    let home = Home::new();
    doubtful(&home, "k");
    let done = home.run(["run", "--key", "k", "--on-doubt", "rerun", "--", "sh", "-c", AGAIN]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "out\n"));
    assert_eq!(home.json(["--json", "get", "k"])["attempts"], 2);
}

#[test]
fn a_rerun_that_fails_says_that_the_doubt_from_before_stays() {
    let home = Home::new();
    let script = "[ -e second ] || { touch second; kill -9 $$; }; exit 3";
    let again = || home.run(["run", "--key", "k", "--on-doubt", "rerun", "--", "sh", "-c", script]);
    assert_eq!(again().code, Some(76));
    let done = again();
    assert_eq!(done.code, Some(3), "{done:?}");
    assert_one_line(&done);
    assert!(done.stderr.contains("exited with 3") && done.stderr.contains("still in doubt"), "{done:?}");
    assert_eq!(home.state("k"), "in_doubt");
    home.ok(advised(&done.stderr));
    // The key is free now, and a failure leaves it so, without a word.
    assert_eq!(again().stderr, "");
}

#[test]
fn a_rerun_whose_program_cannot_be_started_says_that_the_doubt_from_before_stays() {
    let home = Home::new();
    let absent = ["run", "--key", "k", "--on-doubt", "rerun", "--", "./absent"];
    let done = home.run(absent);
    assert!(done.code == Some(127) && !done.stderr.contains("in doubt"), "{done:?}");
    let path = home.write("absent", "#!/bin/sh\nkill -9 $$\n");
    common::make_executable(&path);
    assert_eq!(home.run(absent).code, Some(76));
    std::fs::remove_file(path).unwrap();
    let done = home.run(absent);
    assert_eq!(done.code, Some(127), "{done:?}");
    assert_one_line(&done);
    assert!(done.stderr.contains("nothing ran") && done.stderr.contains("still in doubt"), "{done:?}");
    assert_eq!(home.state("k"), "in_doubt");
    let failure = home.run([&["--json"], &absent[..]].concat());
    let failure: serde_json::Value = serde_json::from_str(failure.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(failure["error"]["kind"], "not_started");
    assert_eq!(failure["error"]["attemptId"], home.json(["--json", "get", "k"])["attemptId"]);
    home.ok(advised(failure["error"]["message"].as_str().unwrap()));
}

fn verified(home: &Home, verifier: &str) -> Done {
    home.run(["run", "--key", "k", "--verify", verifier, "--", "sh", "-c", AGAIN])
}

#[test]
fn a_verifier_that_says_yes_gives_the_result() {
    let home = Home::new();
    doubtful(&home, "k");
    let attempt = home.json(["--json", "get", "k"])["attemptId"].as_str().unwrap().to_string();
    let done = verified(&home, "echo $HAPAX_KEY $IDEMPOTENCY_KEY $HAPAX_ATTEMPT");
    assert_eq!((done.code, done.stdout), (Some(0), format!("k k {attempt}\n")));
    assert!(home.ledger().is_empty());
    // From now on without being asked.
    assert_eq!(verified(&home, "exit 9").stdout, format!("k k {attempt}\n"));
}

#[test]
fn a_verifier_that_says_no_lets_the_command_run() {
    let home = Home::new();
    doubtful(&home, "k");
    let done = verified(&home, "exit 1");
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "out\n"));
    assert_eq!(home.ledger(), ["ran"]);
}

#[test]
fn a_verifier_that_cannot_tell_leaves_the_doubt() {
    let home = Home::new();
    doubtful(&home, "k");
    for (verifier, why) in [("exit 2", "exited with 2"), ("kill -9 $$", "SIGKILL"), ("no-such-command", "127")] {
        let done = verified(&home, verifier);
        assert_eq!(done.code, Some(76), "{verifier}");
        assert!(done.stderr.contains(why), "{done:?}");
    }
    let done = home.run(["run", "--key", "k", "--max-output", "10", "--verify", "seq 100", "--", "sh", "-c", AGAIN]);
    assert!(done.stderr.contains("larger than max_output"), "{done:?}");
    home.configure("verify_limit = '50ms'");
    let done = verified(&home, "exec sleep 60");
    assert!(done.code == Some(76) && done.stderr.contains("took longer than 50ms"), "{done:?}");
    assert!(home.ledger().is_empty());
}

#[test]
fn who_waits_for_a_run_that_dies_is_told_of_the_doubt() {
    let home = Home::new();
    let running = start_slow(&home, &[], SLOW);
    let waiting = home.start(["run", "--verbose", "--key", "k", "--", "sh", "-c", SLOW]);
    wait_until("it waits", || home.json(["--json", "stats"])["waitsJoined"] == 1);
    running.signal(Signal::KILL);
    let done = waiting.finish();
    assert_eq!(done.code, Some(76), "{done:?}");
    kill(child_of(&home), Signal::KILL);
}

#[test]
fn a_run_that_was_taken_over_meanwhile_says_that_its_result_does_not_count() {
    let home = Home::new();
    let script = concat!("if mkdir first; then touch started; ", until_go!(), "; echo old; else echo new; fi");
    let line = |flags: &[&'static str]| [&["run", "--key", "k"], flags, &["--", "sh", "-c", script]].concat();
    let first = home.start(line(&["--lease", "1s"]));
    home.wait_for_file("started");
    // It cannot renew its lease any more, though its command goes on.
    first.signal(Signal::STOP);
    wait_until("its lease lapses", || home.state("k") == "in_doubt");
    assert_eq!(home.ok(line(&["--on-doubt", "rerun"])), "new\n");
    home.write("go", "");
    first.signal(Signal::CONT);
    let done = first.finish();
    assert_eq!((done.code, done.stdout.as_str()), (Some(76), "old\n"), "{done:?}");
    // Whether a heartbeat noticed before the end, and warned, is a matter of time.
    assert!(done.stderr.lines().last().is_some_and(|line| line.starts_with("hapax: ")), "{done:?}");
    assert!(done.stderr.contains("lost its claim"), "{done:?}");
    assert_eq!(home.ok(line(&[])), "new\n");
}

/// The last command in backticks of a message, as its arguments.
fn advised(message: &str) -> Vec<String> {
    let command = message.rsplit('`').nth(1).unwrap();
    command.split(' ').skip(1).map(String::from).collect()
}

#[test]
fn the_command_that_is_advised_settles_that_attempt_and_no_other() {
    let home = Home::new();
    let first = home.sh("k", "exit $(kill -9 $$)");
    let stale = advised(&first.stderr);
    assert_eq!((stale[0].as_str(), stale[1].as_str(), stale[3].as_str()), ("settle", "--attempt", "--not-happened"));
    assert!(home.ok(["get", "k"]).contains(&format!("hapax {}\n", stale.join(" "))));
    let listed = home.run(["ls", "--state", "in-doubt"]);
    assert!(
        listed.stdout.contains(&stale[2]) && listed.stderr.contains("hapax settle --attempt ATTEMPT"),
        "{listed:?}"
    );

    // It runs again and comes into doubt anew: what was known of the first attempt says nothing of the second.
    home.run(["run", "--key", "k", "--on-doubt", "rerun", "--", "sh", "-c", "exit $(kill -9 $$)"]);
    let done = home.run(&stale);
    assert_eq!(done.code, Some(65), "{done:?}");
    assert_one_line(&done);
    assert!(done.stderr.contains("is stale, nothing was settled") && done.stderr.contains("in doubt by"), "{done:?}");
    assert_eq!(home.state("k"), "in_doubt");
    let refused = home.run([&["--json".to_string()], &stale[..]].concat());
    let object: serde_json::Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!((&object["error"]["kind"], &object["error"]["code"]), (&"stale_attempt".into(), &65.into()));
    let object = home.run(["--json", "rm", "k"]).stderr;
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    let current = advised(&done.stderr);
    assert_eq!(object["error"]["attemptId"], current[2]);

    assert_eq!(home.ok(&current), "k is free: the next run runs it\n");
    let done = home.run(&current);
    assert!(done.code == Some(65) && done.stderr.contains("the key is free"), "{done:?}");
    home.ok(["mark", "k", "--result", "1"]);
    let done = home.run(&current);
    assert!(done.code == Some(65) && done.stderr.contains("the key is completed"), "{done:?}");
    assert_eq!(home.run(["settle", "k", "--attempt", "nonsense", "--not-happened"]).code, Some(64));
}
