//! A sign of life while another process runs the command: who it is and for how
//! long, on one line that goes away again.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::{Clock as _, Record, SystemClock};

use super::report::MOMENT;
use crate::terminal::{DIM, note, safe};
use crate::units::glance;

const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// Shared with the library, which calls it about ten times a second.
#[derive(Clone)]
pub struct Waiting(Arc<Inner>);

struct Inner {
    mode: Mode,
    shown: AtomicBool,
}

enum Mode {
    Silent,
    /// Said once, in a log.
    Line,
    /// Drawn anew each time, on a terminal.
    Spinner,
}

impl Waiting {
    pub fn new(json: bool, verbose: bool) -> Self {
        let mode = match (json, std::io::stderr().is_terminal(), verbose) {
            (true, ..) | (_, false, false) => Mode::Silent,
            (_, true, _) => Mode::Spinner,
            (_, false, true) => Mode::Line,
        };
        Self(Arc::new(Inner { mode, shown: AtomicBool::new(false) }))
    }

    /// Shows who is waited for.
    pub fn show(&self, record: &Record, waited: Duration) {
        let holder = safe(&record.owner.to_string());
        let age = glance(SystemClock.now().since(record.started_at));
        match self.0.mode {
            Mode::Silent => {}
            Mode::Line => {
                if !self.0.shown.swap(true, Ordering::Relaxed) {
                    note(&format!("waiting for {holder}, which has been running it for {age}"));
                }
            }
            Mode::Spinner => {
                if waited < MOMENT {
                    return;
                }
                self.0.shown.store(true, Ordering::Relaxed);
                let turn = usize::try_from(waited.as_millis() / 100).unwrap_or(0) % FRAMES.len();
                let frame = FRAMES.get(turn).unwrap_or(&'⠿');
                // One line, whatever the terminal's width: back, draw, wipe the rest.
                let width = match rustix::termios::tcgetwinsize(std::io::stderr()) {
                    Ok(size) if size.ws_col > 0 => size.ws_col,
                    // Terminals that do not know are as wide as they always were.
                    _ => 80,
                };
                let text = format!("{frame} waiting for {holder}, running for {age}");
                let text: String = text.chars().take(usize::from(width).saturating_sub(1)).collect();
                let mut out = anstream::stderr().lock();
                let _ = write!(out, "\r{DIM}{text}{DIM:#}\x1b[K");
                let _ = out.flush();
            }
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if matches!(self.0.mode, Mode::Spinner) && self.0.shown.swap(false, Ordering::Relaxed) {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}
