//! `cargo xtask proof`: the long form of everything that the tests do in short.
//!
//! Fuzzing needs one core and no server, and takes as long as the rest together: it runs beside it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use crate::{announce, cargo, install, schemathesis, tool, usage};

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

/// Where what fuzzing says goes, so that it does not come between what the others say.
const FUZZ_LOG: &str = "fuzz/target/proof.log";

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
    let mut fuzzing = match fuzz() {
        Ok(child) => Some(child),
        Err(error) => {
            eprintln!("xtask: cannot start fuzzing, whose words would be in {FUZZ_LOG}: {error}");
            return ExitCode::FAILURE;
        }
    };
    announce(&format!("fuzz: beside the rest, its words in {FUZZ_LOG}"));
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
    step("fuzz, the rest of it".into(), &mut || fuzzed(fuzzing.take()));
    if failed.is_empty() {
        announce("all ok");
        return ExitCode::SUCCESS;
    }
    announce(&format!("failed: {}", failed.join("; ")));
    ExitCode::FAILURE
}

/// All targets of fuzzing, in a process of their own.
fn fuzz() -> io::Result<Child> {
    if let Some(dir) = std::path::Path::new(FUZZ_LOG).parent() {
        fs::create_dir_all(dir)?;
    }
    let log = File::create(FUZZ_LOG)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("fuzz").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
}

/// Waits for it; what it said last, if it failed.
fn fuzzed(child: Option<Child>) -> ExitCode {
    let ended = child.map(|mut child| child.wait());
    if let Some(Ok(status)) = &ended
        && status.success()
    {
        return ExitCode::SUCCESS;
    }
    let said = fs::read(FUZZ_LOG).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let skipped = said.lines().count().saturating_sub(40);
    said.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
    eprintln!("(the last of {FUZZ_LOG})");
    ExitCode::FAILURE
}
