//! `cargo xtask test · bench · storm · model · fuzz · proof`: the project's own commands.
//!
//! Each is a list of cargo calls, printed as they are made. The first that
//! fails ends the run with its exit code. Nothing here depends on another
//! crate, so that it builds in a second and runs when the rest does not build.
#![forbid(unsafe_code)]

mod fuzz;
mod postgres;
mod proof;
mod schemathesis;
mod tally;

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use tally::Tally;

const HELP: &str = "\
The project's own commands:

  cargo xtask test            format, clippy with warnings denied, all tests, docs
  cargo xtask bench [ARGS]    the benchmarks, in release (ARGS go to hapax-bench)
  cargo xtask storm [ARGS]    kill workers at random and check every promise, in release
                              (ARGS go to hapax-storm: --minutes N, --store redis, …; power --cuts N)
  cargo xtask model [ARGS]    look at every state of the protocol's model, in release
                              (ARGS go to hapax-model: --attempts N; histories [COUNT [SEED]])
  cargo xtask fuzz [TARGET…]  hand the targets of fuzz/ what libFuzzer makes up: --minutes N each (10), or
                              --merge what that found into their corpora (installs cargo-fuzz)
  cargo xtask fuzz-http       ask a server for all that its OpenAPI document says, and more, at length;
                              the tests do it in short, unless HAPAX_SKIP_SCHEMATHESIS is set
  cargo xtask proof           all of model, storm (every store), fuzz and fuzz-http at length, in two hours or so:
                              --minutes N for each storm (30)

`cargo xtask bench --help` (or storm, model) lists what these take.";

/// `EX_USAGE` of sysexits.h, as the binary `hapax` uses it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let command = args.next();
    let rest: Vec<OsString> = args.collect();
    match command.as_ref().map(|c| c.to_string_lossy()).as_deref() {
        None | Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Some("test") if rest.is_empty() => test(),
        Some("test") => usage("`cargo xtask test` takes no arguments; for some of the tests use `cargo test`"),
        Some("bench") => tool(&mut rivals(), "hapax-bench", rest),
        Some("storm") => tool(&mut cargo(), "hapax-storm", rest),
        Some("model") => tool(&mut cargo(), "hapax-model", rest),
        Some("fuzz") => fuzz::fuzz(&rest),
        Some("proof") => proof::proof(&rest),
        Some("fuzz-http") => schemathesis::run(rest, &[]),
        Some(other) => usage(&format!("no command {other:?}")),
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("xtask: {problem}\n\n{HELP}");
    ExitCode::from(USAGE)
}

/// A cargo call with a name.
struct Step {
    name: &'static str,
    args: &'static [&'static str],
    kind: Kind,
}

enum Kind {
    Plain,
    /// Its `test result:` lines are added up.
    Tests,
    /// rustdoc's warnings are errors.
    Docs,
}

/// Plain `cargo test`, since other runners leave the doc tests out.
const TEST: [Step; 4] = [
    Step { name: "format", args: &["fmt", "--all", "--check"], kind: Kind::Plain },
    Step {
        name: "clippy",
        args: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        kind: Kind::Plain,
    },
    Step { name: "tests", args: &["test", "--workspace", "--all-features", "--no-fail-fast"], kind: Kind::Tests },
    Step { name: "docs", args: &["doc", "--workspace", "--no-deps"], kind: Kind::Docs },
];

fn test() -> ExitCode {
    let began = Instant::now();
    if let Err(code) = components().and_then(|()| install()) {
        return code;
    }
    let (mut tally, mut code) = (None, 0);
    for step in &TEST {
        let at = Instant::now();
        announce(&format!("{}: cargo {}", step.name, step.args.join(" ")));
        match run(step, &mut tally) {
            Ok(0) => announce(&format!("{}: ok in {:.1} s", step.name, at.elapsed().as_secs_f64())),
            Ok(failed) => {
                announce(&format!(
                    "{}: FAILED in {:.1} s; nothing after it ran",
                    step.name,
                    at.elapsed().as_secs_f64()
                ));
                code = failed;
                break;
            }
            Err(error) => {
                eprintln!("xtask: cannot run cargo: {error}");
                code = 1;
                break;
            }
        }
    }
    if code == 0 && schemathesis::briefly() != ExitCode::SUCCESS {
        code = 1;
    }
    announce(&format!("{} in {:.1} s", if code == 0 { "all ok" } else { "failed" }, began.elapsed().as_secs_f64()));
    // The last line of a run whose tests ran, alone: scripts read it.
    if let Some(tally) = tally {
        println!("{tally}");
    }
    ExitCode::from(code)
}

/// Sees to it that the servers are there which tests and storms start.
fn install() -> Result<(), ExitCode> {
    servers().and_then(|()| postgres::install())
}

/// Builds a tool of the workspace in release and hands it the arguments.
fn tool(cargo: &mut Command, package: &str, args: Vec<OsString>) -> ExitCode {
    let call = ["run", "--release", "--quiet", "--ignore-rust-version", "--package", package, "--"];
    let status = cargo.args(call).args(args).status();
    match status {
        Ok(status) => ExitCode::from(code_of(status)),
        Err(error) => {
            eprintln!("xtask: cannot run cargo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A cargo that also builds the rival which asks for a newer Rust than it needs: it is
/// behind a cfg, so that nothing else ever meets it.
fn rivals() -> Command {
    let mut command = cargo();
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} --cfg with_idempotent").trim_start());
    command
}

/// Sees to it that rustfmt and clippy are there: a minimal toolchain lacks them.
fn components() -> Result<(), ExitCode> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let present = |mut command: Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        let mut version = cargo();
        version.args([subcommand, "--version"]);
        if present(version) {
            continue;
        }
        announce(&format!("rustup component add {component}"));
        let added = Command::new("rustup").args(["component", "add", component]).status();
        if !added.is_ok_and(|s| s.success()) {
            eprintln!(
                "xtask: `cargo {subcommand}` is missing and rustup could not add it: install the {component} component"
            );
            return Err(ExitCode::FAILURE);
        }
    }
    Ok(())
}

/// A program that tests start servers with, and the Debian package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
}

const NEEDED: &[Needed] = &[
    Needed { program: "redis-server", package: "redis-server" },
    // The power cuts of hapax-storm.
    Needed { program: "strace", package: "strace" },
    // Makes the certificates of a test's TLS.
    Needed { program: "openssl", package: "openssl" },
    // The dashboard is tested in it.
    Needed { program: "chromium", package: "chromium" },
];

/// Sees to it that the servers are there that tests start: installs what is missing if it may.
fn servers() -> Result<(), ExitCode> {
    let missing: Vec<&Needed> = NEEDED.iter().filter(|n| !is_there(n.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|n| n.package).collect();
    announce(&format!("apt-get install {}", packages.join(" ")));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        command.status().is_ok_and(|s| s.success())
    };
    // The package starts a server of its own where there is an init system; the tests' run on free ports beside it.
    let install = [&["install", "-y", "--no-install-recommends"], &packages[..]].concat();
    if (apt(&install) || (apt(&["update", "-qq"]) && apt(&install))) && missing.iter().all(|n| is_there(n.program)) {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|n| n.program).collect();
    eprintln!(
        "xtask: the tests need {} and apt-get could not install it (it needs root): on Debian or Ubuntu \
         `sudo apt-get install {}`, elsewhere the package of that name",
        programs.join(" and "),
        packages.join(" ")
    );
    Err(ExitCode::FAILURE)
}

fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where distributions put servers, though not every user's PATH has them.
    env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}

fn run(step: &Step, tally: &mut Option<Tally>) -> io::Result<u8> {
    let mut command = cargo();
    command.args(step.args);
    match step.kind {
        Kind::Plain => command.status().map(code_of),
        Kind::Docs => {
            let flags = env::var("RUSTDOCFLAGS").unwrap_or_default();
            command.env("RUSTDOCFLAGS", format!("{flags} -D warnings").trim_start()).status().map(code_of)
        }
        Kind::Tests => {
            let mut seen = Tally::default();
            let code = stream(command, |line| seen.read(line))?;
            if code != 0 {
                seen.at_least_one_failed();
            }
            *tally = Some(seen);
            Ok(code)
        }
    }
}

/// Runs a command, passing its output on as it comes and showing each line to `look`.
fn stream(mut command: Command, mut look: impl FnMut(&str)) -> io::Result<u8> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // A reader that has gone (`| head`) must not end the tests by half.
            let _ = io::stdout().lock().write_all(&line);
            look(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    child.wait().map(code_of)
}

fn announce(what: &str) {
    println!("── {what}");
}

/// The cargo that runs this, so that its toolchain is kept.
fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Its exit code; 1 for a death by a signal, which has none.
fn code_of(status: std::process::ExitStatus) -> u8 {
    if status.success() {
        return 0;
    }
    // Never 0 for a failure, whatever the platform's codes are.
    status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)
}
