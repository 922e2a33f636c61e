//! Short storms: one that must find nothing, and some with a promise broken on
//! purpose, which must be found.
#![allow(clippy::expect_used, clippy::panic)]

use std::process::{Command, Output};

fn storm(args: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hapax-storm")).args(args).output().expect("the storm starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Seeds and figures, for `--nocapture` and for failures.
    println!("$ hapax-storm {}\n{text}", args.join(" "));
    (output, text)
}

fn is_found(kind: &str, what: &str) {
    let (output, text) = storm(&["--seconds", "4", "--seed", "1", "--sabotage", kind]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FOUND") && text.contains("--seed 1") && text.contains(what), "{text}");
    if let Some(dir) = text.lines().find_map(|l| l.trim().strip_prefix("files kept in ")) {
        std::fs::remove_dir_all(dir).expect("the evidence of a sabotage is removed");
    }
}

#[test]
fn a_short_storm_finds_nothing() {
    let (output, text) = storm(&["--seconds", "6"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("--seed ") && text.contains("nothing found"), "{text}");
}

#[test]
fn a_second_run_in_doubt_is_found() {
    is_found("run-again", "the effect happened more than once");
}

#[test]
fn a_forgotten_result_is_found() {
    is_found("forget", "the effect happened more than once");
}

#[test]
fn a_false_result_is_found() {
    is_found("lie", "a value that is not the effect's");
}

#[test]
fn waiters_in_another_process_learn_of_a_completion_in_time() {
    let (output, text) = storm(&["latency", "--rounds", "20"]);
    assert!(output.status.success(), "{text}");
    let p50: f64 = text
        .split_once("p50 ")
        .and_then(|(_, rest)| rest.split_once(" ms"))
        .and_then(|(figure, _)| figure.parse().ok())
        .unwrap_or_else(|| panic!("no figure in {text:?}"));
    // The contract says 50 ms; a busy machine gets twice that.
    assert!(p50 < 100.0, "{text}");
}
