//! `cargo xtask fuzz`: the targets of `fuzz/`, each for so many minutes.
//!
//! cargo-fuzz and libFuzzer want a nightly compiler for their sanitizers alone; without those the stable one will do.

use std::ffi::OsString;
use std::fs;
use std::process::{ExitCode, Stdio};

use crate::{announce, cargo, code_of, usage};

/// The longest input, in bytes: longer ones find nothing that these do not, and slow all down.
const MAX_LEN: u32 = 4096;

enum Job {
    /// For so many minutes each.
    Run(u32),
    /// Adds to the corpora what the runs found that covers something of its own.
    Merge,
}

/// `[TARGET…] [--minutes N] [--merge]`; by default all, ten minutes each.
pub(crate) fn fuzz(args: &[OsString]) -> ExitCode {
    let known = known();
    let (mut targets, mut job) = (Vec::new(), Job::Run(10));
    let mut args = args.iter().map(|a| a.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--merge" => job = Job::Merge,
            "--minutes" => match args.next().and_then(|n| n.parse().ok()).filter(|n| (1..=24 * 60).contains(n)) {
                Some(minutes) => job = Job::Run(minutes),
                None => return usage("--minutes takes a number from 1 to 1440"),
            },
            _ if known.contains(&arg) => targets.push(arg),
            _ => return usage(&format!("no fuzz target {arg:?}; there are {}", known.join(", "))),
        }
    }
    if targets.is_empty() {
        targets = known;
    }
    if !is_there() {
        announce("cargo install cargo-fuzz --locked");
        let installed = cargo().args(["install", "cargo-fuzz", "--locked"]).status();
        if !installed.is_ok_and(|s| s.success()) {
            eprintln!("xtask: cargo-fuzz is missing and could not be installed: `cargo install cargo-fuzz`");
            return ExitCode::FAILURE;
        }
    }
    for target in targets {
        // What is made up goes to a place of its own: the corpus is small, and every file of it is a test.
        let (corpus, found) = (format!("fuzz/corpus/{target}"), format!("fuzz/target/found/{target}"));
        if let Err(error) = fs::create_dir_all(&found) {
            eprintln!("xtask: cannot create {found}: {error}");
            return ExitCode::FAILURE;
        }
        let mut command = cargo();
        command.args(["fuzz", "run", "--sanitizer", "none", "--codegen-units", "16", &target]);
        match job {
            Job::Run(_) => command.args([&found, &corpus]),
            Job::Merge => command.args([&corpus, &found]),
        };
        command.args(["--", &format!("-max_len={MAX_LEN}"), "-timeout=30"]);
        match job {
            Job::Run(minutes) => command.args([&format!("-max_total_time={}", 60 * minutes), "-print_final_stats=1"]),
            // By edges, not by how often each was taken: few files for the tests.
            Job::Merge => command.args(["-set_cover_merge=1", "-use_counters=0"]),
        };
        announce(&format!("fuzz {target}"));
        match command.status() {
            Ok(status) if status.success() => {}
            // The first finding ends the run: libFuzzer has said where its input lies.
            Ok(status) => return ExitCode::from(code_of(status)),
            Err(error) => {
                eprintln!("xtask: cannot run cargo fuzz: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// The targets that there are, by their files.
fn known() -> Vec<String> {
    let files = fs::read_dir("fuzz/fuzz_targets").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        files.filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".rs")?.to_string())).collect();
    names.sort();
    names
}

fn is_there() -> bool {
    cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
