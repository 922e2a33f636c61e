//! Every other subcommand, as text and as JSON, and every exit code.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use common::{Done, Home, assert_one_line, finish, wait_until};
use serde_json::{Value, json};

const CHARGE: [&str; 8] =
    ["--signal", "order-42", "--action", "charge", "--target", "stripe", "--params", r#"{"amount":4200}"#];
const KEY: &str = "order-42:charge:stripe:c6a6831ac1abd02d";

fn charged() -> Home {
    let home = Home::new();
    home.ok([&["run"], &CHARGE[..], &["--", "echo", "charged"]].concat());
    home
}

#[test]
fn key_prints_the_key_alone() {
    let home = Home::new();
    assert_eq!(home.ok([&["key"], &CHARGE[..]].concat()), format!("{KEY}\n"));
    assert_eq!(home.json([&["--json", "key"], &CHARGE[..]].concat()), json!({ "key": KEY }));
    assert_eq!(home.ok(["key", "--key", "my-own", "--action", "a"]), "my-own\n");
    let done = home.run(["key"]);
    assert_eq!(done.code, Some(64));
    assert!(done.stderr.contains("--action"), "{done:?}");
}

#[test]
fn parse_takes_a_key_apart() {
    let home = Home::new();
    let parts = home.json(["--json", "parse", "signal%3A123:create_task:trello:1557ebfc75da3109"]);
    let expected = json!({
        "signalId": "signal:123", "actionType": "create_task", "target": "trello", "paramsHash": "1557ebfc75da3109"
    });
    assert_eq!(parts, expected);
    let text = home.ok(["parse", KEY]);
    assert!(text.contains("action       charge\n"), "{text}");
    let done = home.run(["parse", "my-own"]);
    assert_eq!(done.code, Some(64));
    assert_one_line(&done);
}

#[test]
fn check_prints_the_result_or_says_nothing() {
    let home = charged();
    home.ok(["mark", "card", "--result", "{\"id\": 7}"]);
    assert_eq!(home.ok(["check", "card"]), "{\"id\": 7}\n");
    let record = home.json(["--json", "check", KEY]);
    assert_eq!(record["result"], json!({"exitCode": 0, "stdout": "charged\n", "stderr": ""}));
    for args in [&["check", "absent"][..], &["--json", "check", "absent"]] {
        assert_eq!(home.run(args), Done { code: Some(1), stdout: String::new(), stderr: String::new() });
    }
}

#[test]
fn a_look_counts_as_a_presentation_of_the_key() {
    let home = charged();
    home.ok(["check", KEY]);
    assert_eq!(home.json(["--json", "get", KEY])["attemptCount"], 2);
}

#[test]
fn mark_records_a_result_and_changes_none() {
    let home = Home::new();
    let said = home.ok(["mark", "k", "--result", "1", "--ttl", "never"]);
    assert_eq!(said, "recorded k, kept for ever\n");
    let again = home.json(["--json", "mark", "k", "--result", "2"]);
    assert_eq!((&again["recorded"], &again["record"]["result"]), (&json!(false), &json!(1)));
    assert!(home.ok(["mark", "k", "--result", "2"]).contains("nothing changed"));

    home.write("result.json", "[1]\n");
    home.ok(["mark", "from-file", "--result", "@result.json"]);
    assert_eq!(home.ok(["check", "from-file"]), "[1]\n");
    for (bad, remedy) in [("card-1", r#"'"card-1"'"#), ("@no-such-file", "no-such-file"), ("", "null")] {
        let done = home.run(["mark", "bad", "--result", bad]);
        assert_eq!(done.code, Some(64), "{done:?}");
        assert_one_line(&done);
        assert!(done.stderr.contains(remedy), "{done:?}");
    }
    assert_eq!(home.run(["mark", "k e y", "--result", "1"]).code, Some(64));
}

#[test]
fn get_shows_the_record() {
    let home = charged();
    let record = home.json(["--json", "get", KEY]);
    let expected = [("key", KEY), ("state", "completed"), ("actionType", "charge"), ("signalId", "order-42")];
    for (field, value) in expected {
        assert_eq!(record[field], value);
    }
    assert_eq!(record["params"], json!({"amount": 4200}));
    let text = home.ok(["get", KEY]);
    for part in
        ["state      completed\n", "params     {\"amount\":4200}\n", "stdout     charged\\n\n", "exit code  0\n"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let done = home.run(["get", "absent"]);
    assert_eq!(done.code, Some(1));
    assert_one_line(&done);
}

#[test]
fn ls_finds_records_and_pages_through_them() {
    let home = Home::new();
    for n in 1..=5 {
        home.ok(["mark", &format!("s{n}:ping:host-{}:0000000000000000", n % 2), "--result", "1"]);
    }
    home.ok(["mark", "short", "--result", "1", "--ttl", "1h"]);
    home.sh("doubt", "kill -9 $$");

    let keys = |args: &[&str]| -> Vec<String> {
        let page = home.json([&["--json", "ls"], args].concat());
        page["records"].as_array().unwrap().iter().map(|r| r["key"].as_str().unwrap().into()).collect()
    };
    assert_eq!(keys(&[]).len(), 7);
    assert_eq!(keys(&["--action", "ping"]).len(), 5);
    assert_eq!(keys(&["--action", "ping", "--target", "host-0"]).len(), 2);
    assert_eq!(keys(&["--signal", "s3"]).len(), 1);
    assert_eq!(keys(&["--state", "in_doubt"]), ["doubt"]);
    assert_eq!(keys(&["--expiring-within", "2h"]), ["short"]);

    let first = home.json(["--json", "ls", "--limit", "4"]);
    let next = first["next"].as_str().unwrap();
    let second = home.json(["--json", "ls", "--limit", "4", "--cursor", next]);
    assert_eq!(second["records"].as_array().unwrap().len(), 3);
    assert_eq!(second["next"], Value::Null);
    assert_eq!(keys(&["--all", "--limit", "1"]).len(), 7);
    let mut oldest = keys(&[]);
    oldest.reverse();
    assert_eq!(keys(&["--newest", "--all"]), oldest);
    let first = home.json(["--json", "ls", "--newest", "--limit", "4"]);
    let rest = keys(&["--newest", "--cursor", first["next"].as_str().unwrap()]);
    assert_eq!((first["records"][0]["key"].as_str(), &rest[..]), (Some("doubt"), &oldest[4..]));

    let text = home.run(["ls", "--limit", "1"]);
    assert!(text.stdout.starts_with("STATE      BEGAN"), "{text:?}");
    assert_eq!(text.stdout.lines().count(), 2);
    assert!(text.stderr.contains("--cursor"), "{text:?}");
    let done = home.run(["ls", "--cursor", "nonsense"]);
    assert_eq!(done.code, Some(64));
    assert_one_line(&done);
    let none = home.run(["ls", "--action", "none"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
}

#[test]
fn stats_count_over_processes_until_they_are_reset() {
    let home = charged();
    home.ok([&["run"], &CHARGE[..], &["--", "true"]].concat());
    home.sh("fails", "exit 1");
    let stats = home.json(["--json", "stats"]);
    assert_eq!((&stats["hits"], &stats["executions"], &stats["failures"]), (&json!(1), &json!(2), &json!(1)));
    assert_eq!((&stats["totalCached"], &stats["hitRate"]), (&json!(1), &json!(1.0 / 3.0)));
    let text = home.ok(["stats", "--reset"]);
    assert!(text.contains("hit rate              33.3 %\n"), "{text}");
    let stats = home.json(["--json", "stats"]);
    assert_eq!((&stats["hits"], &stats["totalCached"]), (&json!(0), &json!(1)));
}

#[test]
fn info_says_what_there_is_and_where() {
    let home = charged();
    let info = home.json(["--json", "info"]);
    assert_eq!(info["store"], format!("sqlite:{}", home.database().display()));
    assert_eq!((&info["exists"], &info["completed"], &info["size"]), (&json!(true), &json!(1), &json!(1)));
    assert!(home.ok(["info"]).contains("completed     1\n"));
}

#[test]
fn settle_says_what_became_of_the_key() {
    let home = Home::new();
    for key in ["a", "b", "c"] {
        home.sh(key, "kill -9 $$");
    }
    assert_eq!(home.ok(["settle", "a", "--not-happened"]), "a is free: the next run runs it\n");
    assert!(home.ok(["settle", "b", "--happened", "null"]).starts_with("b is completed, kept until "));
    let answer = home.json(["--json", "settle", "c", "--happened", "[1]", "--ttl", "never"]);
    assert_eq!((&answer["key"], &answer["settled"]), (&json!("c"), &json!("happened")));
    assert_eq!(answer["record"]["result"], json!([1]));
    assert_eq!(home.state("a"), "absent");
    assert_eq!(home.run(["settle", "absent", "--not-happened"]).code, Some(1));
    for args in [&["settle", "a"][..], &["settle", "a", "--not-happened", "--happened", "1"]] {
        assert_eq!(home.run(args).code, Some(64));
    }
}

#[test]
fn rm_removes_a_result_so_that_the_action_runs_again() {
    let home = Home::new();
    home.sh("k", "echo ran >> ledger");
    assert_eq!(home.ok(["rm", "k"]), "removed k\n");
    home.sh("k", "echo ran >> ledger");
    assert_eq!(home.json(["--json", "rm", "k"]), json!({ "key": "k", "removed": true }));
    assert_eq!(home.ledger().len(), 2);
    let done = home.run(["rm", "k"]);
    assert_eq!(done.code, Some(1));
    assert_one_line(&done);
}

#[test]
fn cleanup_removes_the_expired_the_oldest_or_all() {
    let home = Home::new();
    for key in ["a", "b", "c"] {
        home.ok(["mark", key, "--result", "1"]);
    }
    home.ok(["mark", "old", "--result", "1", "--ttl", "1ms"]);
    wait_until("it expires", || home.state("old") == "absent");
    assert_eq!(home.ok(["cleanup", "--expired"]), "removed 1 record\n");
    assert_eq!(home.json(["--json", "cleanup", "--oldest", "1"]), json!({ "removed": 1 }));
    assert_eq!(home.state("a"), "absent");
    assert_eq!(home.ok(["cleanup", "--all"]), "removed 2 records\n");
    for args in [&["cleanup"][..], &["cleanup", "--all", "--expired"]] {
        assert_eq!(home.run(args).code, Some(64));
    }
}

#[test]
fn namespaces_never_meet() {
    let home = Home::new();
    home.ok(["--namespace", "a", "mark", "k", "--result", "1"]);
    assert_eq!(home.run(["--namespace", "b", "check", "k"]).code, Some(1));
    assert_eq!(home.ok(["--namespace", "a", "check", "k"]), "1\n");
}

#[test]
fn there_are_completions_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.ok(["completions", shell]);
        assert!(script.contains("settle") && script.contains("not-happened"), "{shell}");
        let answer = home.json(["--json", "completions", shell]);
        assert_eq!(answer["shell"], shell);
    }
    assert_eq!(home.run(["completions", "cmd"]).code, Some(64));
    // The script is one that the shell takes.
    home.write("completions.bash", &home.ok(["completions", "bash"]));
    let done = finish(home.program("bash").args(["-c", ". ./completions.bash && complete -p hapax"]));
    assert!(done.code == Some(0) && done.stdout.contains("hapax"), "{done:?}");
}

#[test]
fn help_is_no_mistake_and_a_mistake_is_one_line() {
    let home = Home::new();
    let subcommands = [
        "run",
        "key",
        "parse",
        "check",
        "mark",
        "get",
        "ls",
        "stats",
        "info",
        "top",
        "settle",
        "rm",
        "cleanup",
        "config",
        "completions",
    ];
    for name in subcommands {
        let done = home.run([name, "--help"]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(done.stdout.contains("Usage: hapax"), "{done:?}");
    }
    assert!(home.ok(["--version"]).starts_with("hapax "));
    for args in [
        &["run"][..],
        &["no-such-command"],
        &["run", "--no-such-flag", "--", "true"],
        &["run", "--ttl", "5", "--", "true"],
        &["run", "--ttl", "0s", "--", "true"],
        &["run", "--lease", "1ms", "--", "true"],
        &["run", "--wait", "48h", "--", "true"],
        &["run", "--max-output", "1TB", "--", "true"],
        &["run", "--max-output", "65MiB", "--", "true"],
        &["run", "--wait", "1s", "--no-wait", "--", "true"],
        &["run", "--on-doubt", "verify", "--", "true"],
        &["run", "--verify", " ", "--", "true"],
        &["run", "--params", "{", "--", "true"],
        &["run", "--params", "9007199254740993", "--", "true"],
        &["run", "--params", "@no-such-file", "--", "true"],
        &["run", "--key", "a b", "--", "true"],
        &["run", "--action", "", "--", "true"],
        &["run", "--", "/"],
        &["ls", "--limit", "0"],
        &["ls", "--state", "gone"],
        &["--namespace", "a b", "ls"],
    ] {
        let done = home.run(args);
        assert_eq!((done.code, done.stdout.as_str()), (Some(64), ""), "{args:?} {done:?}");
        assert_one_line(&done);
    }
    assert_eq!(home.run([""; 0]).code, Some(64));
    assert!(!home.database().exists());
}

/// Every exit code of hapax's own, as a program reads it.
#[test]
fn with_json_a_failure_is_one_object() {
    let home = Home::new();
    let error = |args: &[&str], code: i32| {
        let done = home.run([&["--json"], args].concat());
        assert_eq!((done.code, done.stdout.as_str()), (Some(code), ""), "{done:?}");
        let mut object: Value = serde_json::from_str(done.stderr.trim_end()).unwrap();
        let error = object["error"].take();
        assert_eq!(error["code"], code);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
        (error["kind"].as_str().unwrap().to_string(), error["key"].as_str().map(String::from))
    };
    let kind = |kind: &str| (kind.to_string(), None);
    let of = |kind: &str, key: &str| (kind.to_string(), Some(key.to_string()));
    assert_eq!(error(&["run", "--bad"], 64), kind("usage"));
    assert_eq!(error(&["run", "--ttl", "0s", "--", "true"], 64), kind("usage"));
    home.ok(["run", "--key", "k", "--", "true"]);
    assert_eq!(error(&["run", "--key", "k", "--", "false"], 65), of("params_mismatch", "k"));
    home.write("text", &"x".repeat(5000));
    assert_eq!(error(&["--store", "sqlite:text", "ls"], 69), kind("store_unavailable"));
    let running = home.start(["run", "--key", "slow", "--", "sh", "-c", "touch started; exec sleep 60"]);
    home.wait_for_file("started");
    assert_eq!(
        error(&["run", "--no-wait", "--key", "slow", "--", "sh", "-c", "touch started; exec sleep 60"], 75),
        of("in_flight", "slow")
    );
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.finish().code, Some(76));
    assert_eq!(
        error(&["run", "--key", "slow", "--", "sh", "-c", "touch started; exec sleep 60"], 76),
        of("in_doubt", "slow")
    );
    assert_eq!(error(&["run", "--key", "n", "--", "no-such-program"], 127), of("not_started", "n"));
    assert_eq!(error(&["get", "absent"], 1), of("not_found", "absent"));
    // What a command is given after `--` is its own.
    let done = home.run(["run", "--bad", "--", "x", "--json"]);
    assert!(done.stderr.starts_with("hapax: "), "{done:?}");
}
