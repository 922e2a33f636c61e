//! Power cuts and faults of the disk under a real load: what must hold, holds,
//! and where it cannot, that is found.
#![allow(clippy::expect_used)]

use std::process::Command;

fn power(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax-storm"));
    command.args(["power", "--cuts", "30", "--keys", "150"]).args(args);
    let output = command.output().expect("the storm starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("$ {command:?}\n{text}");
    (output.status.code(), text)
}

fn holds(args: &[&str]) -> String {
    let (code, text) = power(args);
    assert!(code == Some(0) && text.contains("nothing found"), "{text}");
    text
}

#[test]
fn synced_results_survive_power_cuts() {
    let text = holds(&[]);
    assert!(text.contains(", 0 failed calls"), "{text}");
}

#[test]
fn buffered_results_do_not_and_the_file_stays_whole() {
    let (code, text) = power(&["--durability", "buffered", "--seed", "2"]);
    assert!(code == Some(1) && text.contains("broke a promise") && !text.contains("SQLite"), "{text}");
}

#[test]
fn a_disk_that_ignores_syncs_is_found() {
    let (code, text) = power(&["--ignore-syncs", "--seed", "2"]);
    assert!(code == Some(1) && text.contains("broke a promise"), "{text}");
}

#[test]
fn a_failed_sync_is_never_trusted_again() {
    // Counted in each thread: the writer's is the one that syncs so often.
    let text = holds(&["--fault", "fdatasync:error=EIO:when=10"]);
    assert!(!text.contains(", 0 failed calls"), "{text}");
}

#[test]
fn what_a_full_disk_refuses_did_not_happen() {
    let text = holds(&["--fault", "pwrite64:error=ENOSPC:when=200+"]);
    assert!(!text.contains(", 0 failed calls"), "{text}");
}

#[test]
fn errors_of_writes_and_reads_come_and_go() {
    let text = holds(&["--fault", "pwrite64:error=EIO:when=150+37", "--fault", "pread64:error=EIO:when=40+41"]);
    assert!(!text.contains(", 0 failed calls"), "{text}");
}
