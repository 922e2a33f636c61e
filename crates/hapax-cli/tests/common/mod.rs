//! A home of its own for each test, and the real binary in it.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Shell that waits for the file `go`, but not for ever: a test may have failed meanwhile.
#[allow(unused_macros)]
macro_rules! until_go {
    () => {
        "i=0; until [ -e go ] || [ $((i+=1)) -gt 3000 ]; do sleep 0.01; done"
    };
}

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A home directory with nothing in it.
pub struct Home(TempDir);

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The configuration file.
    pub fn configure(&self, text: &str) {
        self.write(".config/hapax/config.toml", text);
    }

    /// The default store's file.
    pub fn database(&self) -> PathBuf {
        self.path(".local/share/hapax/hapax.db")
    }

    pub fn ledger(&self) -> Vec<String> {
        fs::read_to_string(self.path("ledger")).unwrap_or_default().lines().map(String::from).collect()
    }

    /// A program in this home, with nothing in its environment but that.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.0.path());
        // Where coverage is measured, what a command ran counts, and it leaves no file of its own here.
        command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
        // A group of its own: no terminal that the tests are run from has it in its foreground.
        command.current_dir(self.0.path()).stdin(Stdio::null()).process_group(0);
        command
    }

    /// The binary, with these arguments.
    pub fn hapax<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_hapax"));
        command.args(args);
        command
    }

    /// Runs the binary to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        finish(&mut self.hapax(args))
    }

    /// Runs the binary to its end, and expects it to do well.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stdout
    }

    /// Runs the binary to its end, and reads its answer as JSON.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// `hapax run` of a shell command under a key.
    pub fn sh(&self, key: &str, script: &str) -> Done {
        self.run(["run", "--key", key, "--", "sh", "-c", script])
    }

    /// `hapax run` in the background.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        Running::spawn(&mut self.hapax(args))
    }

    pub fn wait_for_file(&self, name: &str) {
        let path = self.path(name);
        wait_until(&format!("{name} is there"), || path.exists());
    }

    /// The state of a key's record.
    pub fn state(&self, key: &str) -> String {
        let done = self.run(["--json", "get", key]);
        match serde_json::from_str::<Value>(&done.stdout) {
            Ok(record) => record["state"].as_str().unwrap().into(),
            Err(_) => "absent".into(),
        }
    }
}

/// A process that is killed if the test fails meanwhile.
pub struct Running(Option<Child>);

impl Running {
    pub fn spawn(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    pub fn of(child: Child) -> Self {
        Self(Some(child))
    }

    pub fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    pub fn is_over(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub fn finish(mut self) -> Done {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_over() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        done(&self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether this process was started with the signal ignored (a background job of a shell without job
/// control, `nohup`): then hapax is too, and leaves it so.
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let ignored = mask >> (signal.as_raw() - 1) & 1 == 1;
    if ignored {
        eprintln!("skipped: signal {} is ignored here", signal.as_raw());
    }
    ignored
}

pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

pub fn finish(command: &mut Command) -> Done {
    done(&command.output().unwrap())
}

fn done(output: &std::process::Output) -> Done {
    Done {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits for something to become true, but not for ever.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// That a failure is one line which begins with the program's name.
pub fn assert_one_line(done: &Done) {
    let lines: Vec<&str> = done.stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("hapax: "), "{done:?}");
}
