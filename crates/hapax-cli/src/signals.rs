//! Signals to hapax itself, while it waits and while a command runs.
//!
//! Invariant: a signal that was ignored when hapax started stays ignored, for
//! hapax and for the command, so that `nohup hapax run …` outlives its terminal.

use std::fs::File;
use std::future::poll_fn;
use std::task::Poll;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// A signal that hapax passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    pub name: &'static str,
    pub signal: Signal,
}

const PASSED_ON: [Caught; 4] = [
    Caught { name: "HUP", signal: Signal::HUP },
    Caught { name: "INT", signal: Signal::INT },
    Caught { name: "QUIT", signal: Signal::QUIT },
    Caught { name: "TERM", signal: Signal::TERM },
];

/// The signals that hapax listens to from now on.
pub struct Signals {
    heard: Vec<(Caught, unix::Signal)>,
    /// Heard by nobody, but no longer ignored: a parent that ignores it would have
    /// the kernel throw our command's exit code away.
    _child: unix::Signal,
}

impl Signals {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Failure> {
        let ignored = ignored();
        let failed = |name: &str, e: std::io::Error| {
            Failure::new(1, "failed", format!("there is no handler for SIG{name} to be had: {e}"))
        };
        let mut heard = Vec::new();
        for caught in PASSED_ON {
            let number = caught.signal.as_raw();
            if ignored & (1 << (number - 1)) != 0 {
                continue;
            }
            let stream = unix::signal(SignalKind::from_raw(number)).map_err(|e| failed(caught.name, e))?;
            heard.push((caught, stream));
        }
        let child = unix::signal(SignalKind::child()).map_err(|e| failed("CHLD", e))?;
        Ok(Self { heard, _child: child })
    }

    /// The next signal. Cancel safe.
    pub async fn next(&mut self) -> Caught {
        poll_fn(|context| {
            for (caught, stream) in &mut self.heard {
                if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return Poll::Ready(*caught);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The set of ignored signals, as bits. Where it cannot be seen, none are.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// How a signal came to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// From us.
    On,
    /// From the terminal, before it came to us. Whether it is an order to end
    /// is between the two: in many programs Ctrl-C merely cancels a line.
    ByTerminal,
}

impl Caught {
    /// Passes the signal on to the command, unless the command has it already:
    /// a terminal sends Ctrl-C to all in the foreground, and many programs take
    /// a second one as the order to drop everything.
    pub fn pass_on(self, to: Pid) -> Passed {
        let by_key = matches!(self.signal, Signal::INT | Signal::QUIT);
        if by_key && in_foreground() {
            return Passed::ByTerminal;
        }
        send(to, self.signal);
        Passed::On
    }
}

/// Sends a signal; a process that has just ended needs none.
pub fn send(to: Pid, signal: Signal) {
    let _ = kill_process(to, signal);
}

/// Whether a terminal has this process in its foreground.
fn in_foreground() -> bool {
    File::open("/dev/tty").ok().and_then(|tty| tcgetpgrp(&tty).ok()).is_some_and(|group| group == getpgrp())
}

/// A signal's name, for messages.
pub fn name_of(number: i32) -> String {
    let name = match number {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        5 => "TRAP",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        _ => return format!("signal {number}"),
    };
    format!("signal {number} (SIG{name})")
}
