//! `hapax run`: once, and replayed ever after.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[macro_use]
mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::process::Stdio;
use std::time::Instant;

use common::{Home, assert_one_line, finish, make_executable, wait_until};
use serde_json::json;

#[test]
fn a_command_runs_once_and_is_replayed_with_its_streams_and_exit_code() {
    let home = Home::new();
    let line = "echo ran >> ledger; echo out; echo err >&2";
    let first = home.sh("k", line);
    let again = home.sh("k", line);
    assert_eq!((first.code, first.stdout.as_str(), first.stderr.as_str()), (Some(0), "out\n", "err\n"));
    assert_eq!(first, again);
    assert_eq!(home.ledger(), ["ran"]);
}

#[test]
fn bytes_that_are_not_text_are_replayed_as_they_were() {
    let home = Home::new();
    let args = ["run", "--", "printf", r"\377\000\376\n\001"];
    let first = home.hapax(args).output().unwrap();
    let again = home.hapax(args).output().unwrap();
    assert_eq!(first.stdout, b"\xff\x00\xfe\n\x01");
    assert_eq!(again.stdout, first.stdout);
}

#[test]
fn the_default_key_is_made_of_the_command_line() {
    let home = Home::new();
    let key = home.ok(["key", "--", "/bin/echo", "a", "b"]);
    assert!(key.starts_with(":echo:local:"), "{key}");
    home.ok(["run", "--", "/bin/echo", "a", "b"]);
    let record = home.json(["--json", "get", key.trim()]);
    assert_eq!(record["params"], json!({"argv": ["/bin/echo", "a", "b"]}));
    assert_ne!(home.ok(["key", "--", "/bin/echo", "a b"]), key);
}

#[test]
fn an_argument_that_is_not_utf_8_has_a_key_of_its_own() {
    let home = Home::new();
    let odd = |last: u8| {
        let arg = std::ffi::OsString::from_vec(vec![b'x', last]);
        finish(home.hapax(["key", "--", "echo"]).arg(arg))
    };
    assert_eq!(odd(0xff).code, Some(0));
    assert_ne!(odd(0xff).stdout, odd(0xfe).stdout);
}

#[test]
fn params_come_from_the_line_a_file_or_standard_input() {
    let home = Home::new();
    home.write("task.json", r#"{ "id": 123, "name": "Task" }"#);
    let key = |params: &str| {
        let mut command =
            home.hapax(["key", "--signal", "signal-123", "--action", "create_task", "--target", "trello"]);
        let mut child =
            command.args(["--params", params]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Read only where it was asked for.
        let _ = child.stdin.take().unwrap().write_all(br#"{"name":"Task","id":1.23e2}"#);
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let expected = "signal-123:create_task:trello:1557ebfc75da3109\n";
    assert_eq!(key(r#"{"name":"Task","id":123}"#), expected);
    assert_eq!(key("@task.json"), expected);
    assert_eq!(key("-"), expected);
}

#[test]
fn the_command_reads_our_standard_input_unless_the_params_did() {
    let home = Home::new();
    let cat = |args: &[&str]| {
        let mut command = home.hapax(["run"]);
        command.args(args).args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"[1]").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(cat(&[]), "[1]");
    assert_eq!(cat(&["--params", "-"]), "");
}

#[test]
fn the_command_finds_its_key_and_attempt_in_its_environment() {
    let home = Home::new();
    let said = home.sh("k-1", "echo $HAPAX_KEY $IDEMPOTENCY_KEY $HAPAX_ATTEMPT").stdout;
    let attempt = home.json(["--json", "get", "k-1"])["attemptId"].as_str().unwrap().to_string();
    assert_eq!(said, format!("k-1 k-1 {attempt}\n"));
}

#[test]
fn a_nonzero_exit_is_passed_on_and_frees_the_key() {
    let home = Home::new();
    let line = "echo ran >> ledger; echo no >&2; exit 7";
    for _ in 0..2 {
        let done = home.sh("k", line);
        assert_eq!((done.code, done.stderr.as_str()), (Some(7), "no\n"));
        assert_eq!(home.state("k"), "absent");
    }
    assert_eq!(home.ledger().len(), 2);
}

#[test]
fn a_remembered_failure_is_replayed_with_its_exit_code() {
    let home = Home::new();
    let args = ["run", "--remember-failures", "--", "sh", "-c", "echo ran >> ledger; echo out; echo no >&2; exit 7"];
    let first = home.run(args);
    assert_eq!((first.code, first.stdout.as_str(), first.stderr.as_str()), (Some(7), "out\n", "no\n"));
    assert_eq!(home.run(args), first);
    assert_eq!(home.ledger().len(), 1);
}

#[test]
fn a_result_is_gone_when_its_time_is_over() {
    let home = Home::new();
    let args = ["run", "--key", "k", "--ttl", "1ms", "--", "sh", "-c", "echo ran >> ledger"];
    home.ok(args);
    wait_until("the record expires", || home.state("k") == "absent");
    home.ok(args);
    assert_eq!(home.ledger().len(), 2);
    home.ok(["run", "--key", "n", "--ttl", "never", "--", "true"]);
    assert!(home.json(["--json", "get", "n"])["expiresAt"].is_null());
}

#[test]
fn a_run_clears_expired_records_away() {
    let home = Home::new();
    home.ok(["run", "--key", "old", "--ttl", "1ms", "--", "true"]);
    wait_until("the record expires", || home.state("old") == "absent");
    home.ok(["run", "--key", "new", "--", "true"]);
    assert_eq!(home.json(["--json", "stats"])["expiredCleaned"], 1);
}

#[test]
fn a_command_that_cannot_be_started_leaves_the_key_free() {
    let home = Home::new();
    let done = home.run(["run", "--key", "k", "--", "./no-such-program"]);
    assert_eq!(done.code, Some(127));
    assert_one_line(&done);
    home.write("data", "not a program");
    let done = home.run(["run", "--key", "k", "--", "./data"]);
    assert_eq!(done.code, Some(126));
    assert_one_line(&done);
    let script = home.write("script", "\u{1}\u{2}\u{3}");
    make_executable(&script);
    assert_eq!(home.run(["run", "--key", "k", "--", "./script"]).code, Some(126));
    assert_eq!(home.state("k"), "absent");
}

#[test]
fn the_same_key_with_other_params_runs_nothing() {
    let home = Home::new();
    home.sh("k", "echo ran >> ledger");
    let done = home.sh("k", "echo other >> ledger");
    assert_eq!(done.code, Some(65));
    assert_one_line(&done);
    assert_eq!(home.ledger(), ["ran"]);
    assert_eq!(home.json(["--json", "stats"])["mismatches"], 1);
}

#[test]
fn output_streams_through_while_the_command_runs() {
    let home = Home::new();
    let script = concat!("echo early; ", until_go!(), "; echo late");
    let mut child =
        home.hapax(["run", "--", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut early = [0; 6];
    out.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early\n");
    home.write("go", "");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "late\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_does_not_stop_the_run() {
    let home = Home::new();
    let script = "seq 20000; echo ran >> ledger";
    let mut child = home.hapax(["run", "--key", "k", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(home.ledger(), ["ran"]);
    assert_eq!(home.sh("k", script).stdout.lines().count(), 20_000);
}

#[test]
fn a_command_whose_output_nobody_reads_or_records_gets_its_broken_pipe() {
    let home = Home::new();
    let run = ["run", "--key", "k", "--max-output", "100KiB", "--", "yes"];
    let mut child = home.hapax(run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = common::Running::of(child).finish();
    assert!(done.code == Some(76) && done.stderr.contains("SIGPIPE"), "{done:?}");
}

#[test]
fn recording_does_not_wait_for_a_reader_that_does_not_read() {
    let home = Home::new();
    // More than a pipe holds, less than a pipe and our own queue.
    let script = "seq 30000; echo ran >> ledger";
    let mut child = home.hapax(["run", "--key", "k", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    wait_until("it is recorded", || home.state("k") == "completed");
    assert!(child.try_wait().unwrap().is_none(), "it has output to write");
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 30_000);
    assert!(child.wait().unwrap().success());
}

#[test]
fn output_too_large_to_record_streams_through_and_leaves_doubt() {
    let home = Home::new();
    let args = ["run", "--key", "k", "--max-output", "1KiB", "--", "seq", "10000"];
    let done = home.run(args);
    assert_eq!(done.code, Some(76));
    assert_eq!(done.stdout.lines().count(), 10_000);
    assert_one_line(&done);
    assert!(done.stderr.contains("ran and exited with 0"), "{done:?}");
    assert_eq!(home.state("k"), "in_doubt");
    // As JSON it is larger than its bytes: that counts too.
    let done = home.run(["run", "--key", "q", "--max-output", "100", "--", "printf", &"\"".repeat(90)]);
    assert_eq!(done.code, Some(76));
    assert_eq!(home.state("q"), "in_doubt");
}

#[test]
fn a_background_process_that_holds_the_output_is_waited_for_two_seconds_at_most() {
    let home = Home::new();
    let began = Instant::now();
    let done = home.sh("k", "sleep 60 & echo $! > pid; echo done");
    let took = began.elapsed().as_secs_f64();
    common::kill(
        std::fs::read_to_string(home.path("pid")).unwrap().trim().parse().unwrap(),
        rustix::process::Signal::KILL,
    );
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "done\n"));
    assert!((1.9..20.0).contains(&took), "{took}");
    assert_eq!(home.sh("k", "sleep 60 & echo $! > pid; echo done").stdout, "done\n");
}

#[test]
fn as_json_a_run_is_one_object_and_the_commands_output_goes_to_standard_error() {
    let home = Home::new();
    let args = ["run", "--json", "--key", "k", "--", "sh", "-c", "echo out; echo err >&2"];
    let first = home.run(args);
    let mut seen: Vec<&str> = first.stderr.lines().collect();
    seen.sort_unstable();
    assert_eq!(seen, ["err", "out"]);
    let object: serde_json::Value = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!(object["key"], "k");
    assert_eq!(
        (&object["replayed"], &object["recorded"], &object["exitCode"]),
        (&json!(false), &json!(true), &json!(0))
    );
    assert_eq!((&object["stdout"], &object["stderr"]), (&json!("out\n"), &json!("err\n")));
    assert!(object["expiresAt"].is_string() && object["durationMs"].is_u64() && object["attemptId"].is_string());

    let again = home.run(args);
    assert_eq!(again.stderr, "");
    let mut replay: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(replay["replayed"], true);
    replay["replayed"] = json!(false);
    assert_eq!(replay, object);

    let failed = home.run(["run", "--json", "--key", "f", "--", "sh", "-c", "printf '\\377'; exit 3"]);
    let object: serde_json::Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(failed.code, Some(3));
    assert_eq!((&object["recorded"], &object["stdoutBase64"]), (&json!(false), &json!("/w==")));
}

#[test]
fn a_result_marked_by_hand_is_replayed_as_text() {
    let home = Home::new();
    home.ok(["mark", "text", "--result", "\"card-1\""]);
    assert_eq!(home.sh("text", "echo ran >> ledger").stdout, "card-1\n");
    home.ok(["mark", "tree", "--result", r#"{"id": 1}"#]);
    assert_eq!(home.sh("tree", "echo ran >> ledger").stdout, "{\"id\": 1}\n");
    home.ok(["mark", "whole", "--result", r#"{"exitCode":4,"stdout":"o","stderr":"e"}"#]);
    let whole = home.sh("whole", "echo ran >> ledger");
    assert_eq!((whole.code, whole.stdout.as_str(), whole.stderr.as_str()), (Some(4), "o", "e"));
    assert!(home.ledger().is_empty());
    let object = home.json(["run", "--json", "--key", "tree", "--", "true"]);
    assert_eq!(object["result"], json!({"id": 1}));
}

#[test]
fn an_error_that_the_library_recorded_for_good_is_answered_with_that_error() {
    let home = Home::new();
    home.ok(["run", "--key", "other", "--", "true"]);
    let hapax = hapax::blocking::Hapax::open(&format!("sqlite:{}", home.database().display())).unwrap();
    let action = hapax::Action::new("sh", "local").key(hapax::Key::given("k").unwrap());
    let action = action.params(json!({"argv": ["sh", "-c", "echo ran >> ledger"]}));
    let refused = hapax.execute(&action, |_| Err::<(), _>(hapax::ActionError::permanent("card declined")));
    assert!(refused.is_err());
    for done in [home.sh("k", "echo ran >> ledger"), home.run(["check", "k"])] {
        assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""));
        assert_one_line(&done);
        assert!(done.stderr.contains("card declined"), "{done:?}");
    }
    assert_eq!(home.state("k"), "failed");
    assert!(home.ledger().is_empty());
    assert!(home.ok(["get", "k"]).contains("error      card declined\n"));
}

#[test]
fn a_command_may_lose_its_own_readers() {
    let home = Home::new();
    // `yes` must die of its broken pipe, as without us.
    assert_eq!(home.sh("k", "yes | head -1").stdout, "y\n");
}

#[test]
fn a_parent_that_ignores_its_children_does_not_cost_the_exit_code() {
    let home = Home::new();
    let line = format!("trap '' CHLD; exec {} run --key k -- sh -c 'exit 3'", env!("CARGO_BIN_EXE_hapax"));
    assert_eq!(finish(home.program("bash").args(["-c", &line])).code, Some(3));
}

#[test]
fn a_replay_is_said_on_request_and_silent_otherwise() {
    let home = Home::new();
    home.ok(["run", "--key", "k", "--", "true"]);
    assert_eq!(home.run(["run", "--key", "k", "--", "true"]).stderr, "");
    let done = home.run(["run", "--verbose", "--key", "k", "--", "true"]);
    assert!(done.stderr.starts_with("hapax: replayed: recorded "), "{done:?}");
}

#[test]
fn what_is_logged_is_never_recorded_as_the_commands_own() {
    let home = Home::new();
    let line = ["run", "--key", "k", "--", "sh", "-c", "echo own >&2; sleep 0.2; echo end >&2"];
    let done = finish(home.hapax(line).env("HAPAX_LOG", "trace"));
    assert!(done.code == Some(0) && done.stderr.contains(" DEBUG "), "it logs: {done:?}");
    assert_eq!(home.run(line).stderr, "own\nend\n");
}
