//! Moving the log's pages into the database file, off the writer's path.
//!
//! Invariants: the log is bounded under constant load: passive rounds never
//! block the writer, and past a limit a round blocks it for the little that is left, so that
//! the log starts over.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::Shared;
use super::schema;

/// Pages (of 4 KiB) in the log at which a round is worth it.
const ROUND_AT: u32 = 1024;

/// Pages at which the log must start over.
const RESTART_AT: u32 = 8 * 1024;

/// Pages at which the log is also cut, since something had held it for long.
const TRUNCATE_AT: u32 = 64 * 1024;

/// How long a blocking round waits for readers and other writers.
const BLOCK_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct State {
    started: bool,
    asked: bool,
    closed: bool,
    pages: u32,
}

/// The checkpointer's bell.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    state: Mutex<State>,
    bell: Condvar,
}

impl Checkpoints {
    /// Called by the writer after each commit.
    pub(super) fn consider(&self, shared: &Arc<Shared>, pages: u32) {
        if pages < ROUND_AT {
            return;
        }
        let mut state = self.state.lock();
        if state.closed || (state.asked && state.pages >= pages) {
            return;
        }
        state.pages = pages;
        state.asked = true;
        if !state.started {
            state.started = shared.spawn("hapax-checkpoint", |shared| run(&shared));
        }
        drop(state);
        self.bell.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.bell.notify_one();
    }

    fn wait(&self) -> Option<u32> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if std::mem::take(&mut state.asked) {
                return Some(state.pages);
            }
            self.bell.wait(&mut state);
        }
    }
}

fn run(shared: &Arc<Shared>) {
    let conn = schema::connect(&shared.real, &shared.location).and_then(|mut conn| {
        schema::wait_when_busy(&mut conn, BLOCK_LIMIT).map_err(|e| super::error::store_error(&shared.location, &e))?;
        Ok(conn)
    });
    let conn = match conn {
        Ok(conn) => conn,
        Err(error) => {
            tracing::warn!(store = %shared.location, %error, "no checkpoints: the log will grow");
            return;
        }
    };
    // What was in the log, and not to be looked at again, at the last round.
    let mut done = 0;
    while let Some(pages) = shared.checkpoints.wait() {
        // The log started over.
        if pages < done {
            done = 0;
        }
        if pages < done + ROUND_AT && pages < RESTART_AT {
            continue;
        }
        done = pages;
        let (mut left, mut log) = round(&conn, "PASSIVE", shared);
        if left > 0 && log >= RESTART_AT {
            // Most of it in a round that blocks nobody; then the rest with the writers held off.
            round(&conn, "PASSIVE", shared);
            (left, log) = round(&conn, if log >= TRUNCATE_AT { "TRUNCATE" } else { "RESTART" }, shared);
            if left > 0 {
                tracing::warn!(store = %shared.location, pages = log, "a long reader keeps the log from starting over");
            }
        }
        if left == 0 {
            done = 0;
        }
    }
}

/// One round; returns the pages left in the log and those in it.
fn round(conn: &Connection, mode: &str, shared: &Shared) -> (u32, u32) {
    let done = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    match done {
        Ok((busy, log, moved)) => {
            tracing::trace!(store = %shared.location, mode, busy, log, moved, "checkpoint");
            let count = |n: i64| u32::try_from(n.max(0)).unwrap_or(u32::MAX);
            (count(log - moved).max(count(busy)), count(log))
        }
        Err(error) => {
            tracing::warn!(store = %shared.location, %error, "checkpoint failed");
            (u32::MAX, 0)
        }
    }
}
