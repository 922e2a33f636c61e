//! `cargo xtask proof`: the long form of everything that the tests do in short.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use crate::{announce, cargo, fuzz, install, schemathesis, tool, usage};

/// What a step's arguments stand in for: how many minutes.
const MINUTES: &str = "MINUTES";

/// A tool of the workspace, and what it is handed.
const TOOLS: [(&str, &[&str]); 6] = [
    ("hapax-model", &[]),
    ("hapax-model", &["histories", "4000"]),
    ("hapax-storm", &["--minutes", MINUTES]),
    ("hapax-storm", &["--store", "redis", "--minutes", MINUTES]),
    ("hapax-storm", &["--store", "postgres", "--minutes", MINUTES]),
    ("hapax-storm", &["power", "--cuts", "1000"]),
];

/// `[--minutes N]`; one step that fails does not keep the others from running.
pub(crate) fn proof(args: &[OsString]) -> ExitCode {
    let args: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
    let minutes = match args.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        [] => Some("30".to_string()),
        ["--minutes", n] => n.parse().ok().filter(|n| (1..=24 * 60).contains(n)).map(|n: u32| n.to_string()),
        _ => return usage("`cargo xtask proof` takes --minutes N, how long each storm lasts, and nothing else"),
    };
    let Some(minutes) = minutes else { return usage("--minutes takes a number from 1 to 1440") };
    if let Err(code) = install() {
        return code;
    }
    let mut failed = Vec::new();
    let mut step = |name: String, run: &mut dyn FnMut() -> ExitCode| {
        announce(&name);
        let began = Instant::now();
        let is_ok = run() == ExitCode::SUCCESS;
        let how = if is_ok { "ok" } else { "FAILED" };
        announce(&format!("{name}: {how} in {:.0} s", began.elapsed().as_secs_f64()));
        if !is_ok {
            failed.push(name);
        }
    };
    for (package, args) in TOOLS {
        let args: Vec<&str> = args.iter().map(|arg| if *arg == MINUTES { &*minutes } else { arg }).collect();
        let handed = || args.iter().map(OsString::from).collect();
        step(format!("{package} {}", args.join(" ")), &mut || tool(&mut cargo(), package, handed()));
    }
    step("fuzz-http".into(), &mut || schemathesis::run(Vec::new(), &[]));
    step("fuzz".into(), &mut || fuzz::fuzz(&[]));
    if failed.is_empty() {
        announce("all ok");
        return ExitCode::SUCCESS;
    }
    announce(&format!("failed: {}", failed.join("; ")));
    ExitCode::FAILURE
}
