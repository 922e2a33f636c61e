//! Settings in layers, and what is wrong in them.
// A test that panics has failed, which is what it should do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use common::{Done, Home, assert_one_line, finish};
use serde_json::{Value, json};

/// A setting's value and source.
fn setting(home: &Home, env: &[(&str, &str)], flags: &[&str], name: &str) -> (Value, String) {
    let done = finish(home.hapax([flags, &["--json", "config"]].concat()).envs(env.iter().copied()));
    let config: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    let setting = &config["settings"][name];
    (setting["value"].clone(), setting["source"].as_str().unwrap().into())
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let home = Home::new();
    let namespace = |env: &[(&str, &str)], flags: &[&str]| setting(&home, env, flags, "namespace");
    assert_eq!(namespace(&[], &[]), (json!("default"), "default".into()));
    home.configure("namespace = 'of-file'");
    assert_eq!(namespace(&[], &[]), (json!("of-file"), "file".into()));
    let env = [("HAPAX_NAMESPACE", "of-env")];
    assert_eq!(namespace(&env, &[]), (json!("of-env"), "environment".into()));
    assert_eq!(namespace(&env, &["--namespace", "of-flag"]), (json!("of-flag"), "flag".into()));
    assert_eq!(namespace(&[("HAPAX_NAMESPACE", "")], &[]).1, "file", "an empty variable is an absent one");
    let text = home.ok(["config"]);
    let line = text.lines().find(|line| line.starts_with("namespace ")).unwrap();
    assert!(line.contains(" of-file ") && line.ends_with(" configuration file"), "{line}");
}

#[test]
fn every_variable_of_the_environment_is_heard() {
    let home = Home::new();
    for (variable, value, name) in [
        ("HAPAX_STORE", "sqlite:x.db", "store"),
        ("HAPAX_LABEL", "cron", "label"),
        ("HAPAX_TTL", "never", "ttl"),
        ("HAPAX_WAIT", "no", "wait"),
        ("HAPAX_ON_DOUBT", "rerun", "onDoubt"),
        ("HAPAX_VERIFY", "./look", "verify"),
        ("HAPAX_LEASE", "2m", "lease"),
    ] {
        assert_eq!(setting(&home, &[(variable, value)], &[], name), (json!(value), "environment".into()));
    }
    // Who gives a verifier wants it asked.
    assert_eq!(setting(&home, &[("HAPAX_VERIFY", "./look")], &[], "onDoubt").0, "verify");
    for variable in ["HAPAX_TTL", "HAPAX_WAIT", "HAPAX_ON_DOUBT", "HAPAX_LEASE"] {
        let done = finish(home.hapax(["ls"]).env(variable, "nonsense"));
        assert_eq!(done.code, Some(64));
        assert_one_line(&done);
        assert!(done.stderr.contains(variable), "{done:?}");
    }
}

#[test]
fn rules_of_the_file_choose_by_action_and_target() {
    let home = Home::new();
    home.configure(
        "ttl = '1h'\n\
         [[rule]]\naction = 'charge'\ntarget = 'stripe'\nttl = '3h'\n\
         [[rule]]\naction = 'charge'\nttl = '2h'\nremember_failures = true\n",
    );
    let hours = |flags: &[&str], env: &[(&str, &str)]| {
        let key = format!("k{}", flags.join("").len() + 100 * env.len());
        finish(home.hapax([&["run", "--key", &key], flags, &["--", "true"]].concat()).envs(env.iter().copied()));
        let record = home.json(["--json", "get", &key]);
        let time = |name: &str| record[name].as_str().unwrap().parse::<hapax::Timestamp>().unwrap();
        time("expiresAt").since(time("executedAt")).as_secs() / 3600
    };
    assert_eq!(hours(&["--action", "other"], &[]), 1);
    assert_eq!(hours(&["--action", "charge"], &[]), 2);
    assert_eq!(hours(&["--action", "charge", "--target", "stripe"], &[]), 3, "the more exact rule counts");
    assert_eq!(hours(&["--action", "charge"], &[("HAPAX_TTL", "4h")]), 4, "the environment is above the file");
    assert_eq!(hours(&["--action", "charge", "--ttl", "5h"], &[("HAPAX_TTL", "4h")]), 5);

    // What is recorded by hand is kept as long as what is run.
    let kept = |record: &Value| {
        let time = |name: &str| record[name].as_str().unwrap().parse::<hapax::Timestamp>().unwrap();
        time("expiresAt").since(time("executedAt")).as_secs() / 3600
    };
    let key = "s:charge:stripe:0000000000000000";
    assert_eq!(kept(&home.json(["--json", "mark", key, "--result", "1"])["record"]), 3);
    home.run(["run", "--action", "charge", "--key", "d", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(kept(&home.json(["--json", "settle", "d", "--happened", "1"])["record"]), 2);

    let failing = ["run", "--action", "charge", "--key", "f", "--", "sh", "-c", "echo ran >> ledger; exit 3"];
    home.run(failing);
    assert_eq!((home.run(failing).code, home.ledger().len()), (Some(3), 1));
    let text = home.ok(["config"]);
    assert!(text.contains("rule charge on stripe: ttl = 3h"), "{text}");
    assert_eq!(home.json(["--json", "config"])["rules"][1]["rememberFailures"], true);
}

#[test]
fn the_file_can_choose_which_params_identify_an_action_and_what_is_kept_of_them() {
    let home = Home::new();
    home.configure("[[rule]]\naction = 'a'\nidentity = { exclude = ['/at'] }\nkeep_params = 'fingerprint'\n");
    let run = |params: &str| home.ok(["run", "--action", "a", "--params", params, "--", "sh", "-c", "date +%N"]);
    assert_eq!(run(r#"{"id":1,"at":1}"#), run(r#"{"id":1,"at":2}"#));
    let key = home.ok(["key", "--action", "a", "--params", r#"{"id":1,"at":3}"#]);
    let record = home.json(["--json", "get", key.trim()]);
    assert_eq!((&record["state"], &record["params"]), (&json!("completed"), &Value::Null));
}

#[test]
fn a_full_store_can_be_told_to_reject() {
    let home = Home::new();
    home.configure("max_entries = 1\non_full = 'reject'\nlabel = 'cron'");
    home.ok(["run", "--key", "a", "--", "true"]);
    assert_eq!(home.json(["--json", "get", "a"])["owner"]["label"], "cron");
    let done = home.run(["run", "--key", "b", "--", "touch", "ran"]);
    assert_eq!(done.code, Some(69), "{done:?}");
    assert_one_line(&done);
    assert!(!home.path("ran").exists());
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_file_line_and_field() {
    let home = Home::new();
    for (text, parts) in [
        ("on_doubtt = 'rerun'", &["line 1", "on_doubtt"][..]),
        ("\nttl = '5 fortnights'", &["line 2", "5 fortnights"]),
        ("ttl = 5", &["line 1"]),
        ("lease = '1ms'", &["lease", "1 s to 24 h"]),
        ("[[rule]]\nttl = '1h'", &["action"]),
        ("[[rule]]\naction = 'a'\nlease = '1ms'", &["rule 1 (a)", "lease"]),
        ("[[rule]]\naction = 'a'\nverify = ''", &["rule 1 (a)", "verify"]),
        ("[[rule]]\naction = 'a'\nidentity = { exclude = ['at'] }", &["line 3", "at"]),
        ("namespace = ", &["line 1"]),
        ("namespace = 'a b'", &["namespace"]),
        ("max_entries = 0", &["max_entries"]),
        ("max_output = '1GB'", &["1GB"]),
        ("on_full = 'explode'", &["explode"]),
    ] {
        home.configure(text);
        for args in [&["run", "--", "touch", "ran"][..], &["ls"], &["key", "--", "x"], &["config"]] {
            let done = home.run(args);
            assert_eq!(done.code, Some(64), "{text} {done:?}");
            assert_one_line(&done);
            assert!(done.stderr.contains("config.toml"), "{text} {done:?}");
            for part in parts {
                assert!(done.stderr.contains(part), "{part} {done:?}");
            }
        }
    }
    assert!(!home.path("ran").exists());
    // These help to mend it.
    assert_eq!(home.run(["config", "--path"]).code, Some(0));
    assert_eq!(home.run(["completions", "bash"]).code, Some(0));
}

#[test]
fn the_example_in_the_help_is_a_whole_configuration() {
    let home = Home::new();
    let help = home.ok(["config", "--help"]);
    let (_, example) = help.split_once("may be left out:\n").unwrap();
    let (example, _) = example.split_once("\nOf several").unwrap();
    home.configure(example);
    let config = home.json(["--json", "config"]);
    let from_defaults =
        config["settings"].as_object().unwrap().iter().filter(|(_, s)| s["source"] == "default").map(|(n, _)| n);
    assert_eq!(from_defaults.collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(config["rules"][0], json!({ "action": "charge", "target": "stripe", "ttl": "never" }));
}

#[test]
fn another_file_can_be_named_and_must_be_there_then() {
    let home = Home::new();
    let missing = |done: &Done| {
        assert_eq!(done.code, Some(64), "{done:?}");
        assert_one_line(done);
        assert!(done.stderr.contains("mine.toml"));
    };
    missing(&home.run(["--config", "mine.toml", "ls"]));
    missing(&finish(home.hapax(["ls"]).env("HAPAX_CONFIG", "mine.toml")));
    std::fs::create_dir(home.path("mine.toml")).unwrap();
    missing(&home.run(["--config", "mine.toml", "ls"]));
    home.configure("namespace = 'mine'");
    let path = home.path(".config/hapax/config.toml");
    assert_eq!(home.ok(["config", "--path"]).trim(), path.to_str().unwrap());
    assert_eq!(home.json(["--json", "config", "--path"]), json!({ "path": path }));
    let xdg = finish(home.hapax(["config", "--path"]).env("XDG_CONFIG_HOME", "/x"));
    assert_eq!(xdg.stdout, "/x/hapax/config.toml\n");
}

#[test]
fn a_file_without_an_end_is_not_read_to_its_end() {
    let home = Home::new();
    for args in ["--config /dev/zero ls", "serve --server-config /dev/zero", "proxy --server-config /dev/zero"] {
        // Whoever reads on runs out of memory, not the machine.
        let line = format!("ulimit -v 1000000; exec {} {args}", env!("CARGO_BIN_EXE_hapax"));
        let done = finish(home.program("bash").args(["-c", &line]));
        assert!(done.code == Some(64) && done.stderr.contains("is larger than"), "{args} {done:?}");
    }
}

#[test]
fn a_relative_store_in_the_file_lies_beside_the_file() {
    let home = Home::new();
    home.write("project/hapax.toml", "store = 'sqlite:state/here.db'");
    home.ok(["--config", "project/hapax.toml", "mark", "k", "--result", "1"]);
    assert!(home.path("project/state/here.db").exists());
    home.ok(["--store", "sqlite:~/there.db", "mark", "k", "--result", "1"]);
    assert!(home.path("there.db").exists());
}

#[test]
fn a_verifier_in_the_file_is_asked() {
    let home = Home::new();
    home.configure("verify = 'echo seen'");
    home.sh("k", "kill -9 $$");
    assert_eq!(home.sh("k", "kill -9 $$").stdout, "seen\n");
    // A file may leave it to the flag who is asked.
    home.configure("on_doubt = 'verify'");
    let done = home.run(["run", "--", "touch", "ran"]);
    assert!(done.code == Some(64) && done.stderr.contains("--verify"), "{done:?}");
    assert_eq!(home.run(["run", "--verify", "exit 2", "--", "true"]).code, Some(0));
    home.ok(["ls"]);
    home.configure("verify = 'echo seen'");
    // A flag can take it back.
    home.sh("q", "kill -9 $$");
    assert_eq!(home.run(["run", "--key", "q", "--on-doubt", "refuse", "--", "sh", "-c", "kill -9 $$"]).code, Some(76));
}

#[test]
fn warnings_of_the_library_are_seen_and_never_recorded() {
    let home = Home::new();
    home.configure("max_entries = 1\n");
    home.ok(["run", "--key", "a", "--", "true"]);
    let evicting = home.run(["run", "--key", "b", "--", "sh", "-c", "echo own >&2"]);
    assert!(evicting.code == Some(0) && evicting.stderr.contains("max_entries reached"), "{evicting:?}");
    let replayed = home.run(["run", "--key", "b", "--", "sh", "-c", "echo own >&2"]);
    assert_eq!(replayed.stderr, "own\n");
    let done = finish(home.hapax(["ls"]).env("HAPAX_LOG", "hapax=loud"));
    assert!(done.code == Some(64) && done.stderr.contains("HAPAX_LOG"), "{done:?}");
    let done = finish(home.hapax(["ls"]).env("HAPAX_LOG", "hapax=debug"));
    assert!(done.code == Some(0) && done.stderr.contains("hapax started"), "{done:?}");
}
