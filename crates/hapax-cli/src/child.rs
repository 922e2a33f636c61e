//! A command while it runs: its environment, its output, its end.
//!
//! Invariant: a command that was started is seen to its end, or the answer says
//! that it may still run. Signals and time limits end the command itself, not
//! what it has started: it stays in our process group, so that a terminal's
//! Ctrl-C, job control and password prompts work as without hapax.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hapax::{AttemptId, Key};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::signals::{Caught, Passed, Signals, send};
use crate::streams::{Kept, Which, Writer, pump};

/// Between TERM and KILL, once a time limit has passed.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// How long a command may take to end after a signal was passed on, or after KILL.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command is given beside its arguments.
pub struct Terms<'a> {
    pub key: &'a Key,
    pub attempt: AttemptId,
    pub stdin: Stdio,
    pub time_limit: Option<Duration>,
    /// The most bytes of output that are kept.
    pub keep: usize,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Exited(u8),
    Killed(i32),
    /// It did not end in time, and may still run.
    Left(u32),
}

/// Why a command was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    ByTimeLimit(Duration),
    BySignal(Caught),
}

/// A command's end and what is kept of its output.
pub struct Ended {
    pub fate: Fate,
    pub stopped: Option<Stopped>,
    pub kept: Kept,
}

/// Tells a command under which key and attempt it runs.
pub fn name_key(command: &mut Command, key: &Key, attempt: AttemptId) {
    command
        .env("HAPAX_KEY", key.as_str())
        .env("IDEMPOTENCY_KEY", key.as_str())
        .env("HAPAX_ATTEMPT", attempt.to_string());
}

/// Starts the command.
pub fn start(line: &[OsString], terms: &mut Terms<'_>) -> std::io::Result<Child> {
    let (program, args) = line.split_first().ok_or(std::io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args(args);
    name_key(&mut command, terms.key, terms.attempt);
    let stdin = std::mem::replace(&mut terms.stdin, Stdio::null());
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Sees a command that was started to its end.
pub async fn see_through(
    mut child: Child,
    terms: &Terms<'_>,
    signals: &mut Signals,
    stdout: &Writer,
    stderr: &Writer,
) -> Ended {
    let kept = RefCell::new(Kept::default());
    let (tell, ended) = watch::channel(None);
    let (from_out, from_err) = (child.stdout.take(), child.stderr.take());
    let out = async {
        if let Some(from) = from_out {
            pump(from, Which::Stdout, stdout, &kept, terms.keep, ended.clone()).await;
        }
    };
    let err = async {
        if let Some(from) = from_err {
            pump(from, Which::Stderr, stderr, &kept, terms.keep, ended.clone()).await;
        }
    };
    let end = async {
        let end = wait(&mut child, terms.time_limit, signals).await;
        tell.send_replace(Some(Instant::now()));
        end
    };
    let ((fate, stopped), (), ()) = tokio::join!(end, out, err);
    Ended { fate, stopped, kept: kept.into_inner() }
}

/// Waits for the command's end, ending it when its time is over and passing
/// signals on.
async fn wait(child: &mut Child, limit: Option<Duration>, signals: &mut Signals) -> (Fate, Option<Stopped>) {
    let started = Instant::now();
    let raw = child.id().unwrap_or_default();
    // Not reaped before `wait` below has answered: until then the id is the command's alone.
    let pid = i32::try_from(raw).ok().and_then(Pid::from_raw);
    let tell = |signal| {
        if let Some(pid) = pid {
            send(pid, signal);
        }
    };
    let mut stopped = None;
    let mut term_at = limit.map(|limit| started + limit);
    let mut kill_at = None;
    let mut leave_at: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return (fate(status, raw), stopped),
            caught = signals.next() => {
                stopped.get_or_insert(Stopped::BySignal(caught));
                if pid.is_some_and(|pid| caught.pass_on(pid) == Passed::On) {
                    leave_at.get_or_insert(Instant::now() + PATIENCE);
                }
            }
            limit = at(term_at, limit) => {
                term_at = None;
                kill_at = Some(Instant::now() + KILL_AFTER);
                stopped = limit.map(Stopped::ByTimeLimit).or(stopped);
                tell(Signal::TERM);
                // A stopped command gets its TERM only once it goes on.
                tell(Signal::CONT);
            }
            () = at(kill_at, ()) => {
                kill_at = None;
                leave_at = Some(Instant::now() + PATIENCE);
                tell(Signal::KILL);
            }
            () = at(leave_at, ()) => return (Fate::Left(raw), stopped),
        }
    }
}

/// Ready at `when`; never, if there is no such time.
async fn at<T>(when: Option<Instant>, value: T) -> T {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
    value
}

fn fate(status: std::io::Result<ExitStatus>, pid: u32) -> Fate {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Fate::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            (None, signal) => Fate::Killed(signal.unwrap_or_default()),
        },
        // Nothing can be waited for: nothing is known of its end.
        Err(_) => Fate::Left(pid),
    }
}
