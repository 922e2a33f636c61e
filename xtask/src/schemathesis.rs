//! Schemathesis, which asks the server for all that its OpenAPI document says: in a venv of its own under `target/`.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::{announce, code_of};

/// Set to anything but nothing, `cargo xtask test` leaves it out.
pub const SKIP: &str = "HAPAX_SKIP_SCHEMATHESIS";
/// The version that the tests are known to pass with: a newer one may look for more.
const VERSION: &str = "schemathesis==4.*";

/// In short, for every test run; what is longer is `cargo xtask fuzz-http`.
pub fn briefly() -> ExitCode {
    if env::var_os(SKIP).is_some_and(|v| !v.is_empty()) {
        announce(&format!("schemathesis: left out, since {SKIP} is set"));
        return ExitCode::SUCCESS;
    }
    announce("schemathesis: the server's answers against its OpenAPI document");
    let brief = [("EXAMPLES", "3"), ("PHASES", "examples,coverage,fuzzing")];
    run(Vec::new(), &brief)
}

/// Runs the script, with schemathesis installed first where it is missing.
pub fn run(args: Vec<std::ffi::OsString>, settings: &[(&str, &str)]) -> ExitCode {
    let tool = match env::var_os("SCHEMATHESIS") {
        Some(tool) => PathBuf::from(tool),
        None => match install() {
            Ok(tool) => tool,
            Err(code) => return code,
        },
    };
    let mut script = Command::new("bash");
    script.arg("crates/hapax-http/tests/schemathesis.sh").args(args).env("SCHEMATHESIS", tool);
    match script.envs(settings.iter().copied()).status() {
        Ok(status) => ExitCode::from(code_of(status)),
        Err(error) => {
            eprintln!("xtask: cannot run bash: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install() -> Result<PathBuf, ExitCode> {
    // The script changes its directory: the path must not hang on it.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let venv = env::current_dir().unwrap_or_default().join(target).join("schemathesis");
    let tool = venv.join("bin/schemathesis");
    if tool.is_file() {
        return Ok(tool);
    }
    announce(&format!("{}: pip install {VERSION}", venv.display()));
    let ok = |command: &mut Command| command.status().is_ok_and(|s| s.success());
    let make = || ok(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let apt = |args: &[&str]| ok(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args));
    let python = ["install", "-y", "--no-install-recommends", "python3", "python3-venv"];
    let made = make() || ((apt(&python) || (apt(&["update", "-qq"]) && apt(&python))) && make());
    let pip = || ok(Command::new(venv.join("bin/pip")).args(["install", "--quiet", VERSION]));
    if made && pip() && tool.is_file() {
        return Ok(tool);
    }
    let what = if made { "pip could not install schemathesis" } else { "there is no python3 with venv" };
    eprintln!(
        "xtask: {what}, which asks the server for all that its OpenAPI document says: install it and name it by \
         SCHEMATHESIS=PATH, or set {SKIP}=1 to leave it out"
    );
    Err(ExitCode::FAILURE)
}
