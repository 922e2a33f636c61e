//! What a transaction of the writer carries from its first operation to its
//! commit: the time, the counts that changed, and what to tell others after.
//!
//! Invariant: nothing here reaches anyone before the commit; if that fails, the
//! batch is dropped and no one has heard of it.

use std::sync::Arc;

use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension, params};

use super::error::Failed;
use super::row::{Hash, Now, to_i64};
use super::schema::{COMPLETED, FAILED};
use crate::AttemptId;

/// Attempts of this process whose row is remembered.
const ATTEMPTS_LIMIT: usize = 100_000;

/// What the writer remembers between batches. It may be wrong after a batch was
/// undone: every use of it is checked by the row's own attempt id.
#[derive(Debug, Default)]
pub(super) struct Memory {
    attempts: HashMap<AttemptId, (Hash, i64), foldhash::fast::RandomState>,
    namespaces: HashMap<Arc<str>, i64, foldhash::fast::RandomState>,
}

impl Memory {
    pub(super) fn forget_namespaces(&mut self) {
        self.namespaces.clear();
    }

    pub(super) fn began(&mut self, attempt: AttemptId, hash: Hash, id: i64) {
        if self.attempts.len() >= ATTEMPTS_LIMIT {
            self.attempts.clear();
        }
        self.attempts.insert(attempt, (hash, id));
    }

    /// The row of an attempt that ends, if it began under that key: an end that
    /// names another key must not find it.
    pub(super) fn ended(&mut self, attempt: &AttemptId, hash: &Hash) -> Option<i64> {
        let (began_under, id) = self.attempts.remove(attempt)?;
        (began_under == *hash).then_some(id)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    live: i64,
    completed: i64,
    failed: i64,
}

impl Tally {
    fn of(&mut self, state: i64) -> &mut i64 {
        match state {
            COMPLETED => &mut self.completed,
            FAILED => &mut self.failed,
            _ => &mut self.live,
        }
    }
}

/// One transaction of the writer.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) conn: &'a Connection,
    pub(super) memory: &'a mut Memory,
    pub(super) now: Now,
    tallies: Vec<(i64, Tally)>,
    /// Records of all namespaces, once somebody asked.
    total: Option<i64>,
    /// Set when a recorded result may have gone before its time.
    pub(super) raise_epoch: bool,
    /// Keys that are no longer in progress.
    pub(super) ended: Vec<Hash>,
    /// Set when an answer holds a recorded result that others may have written.
    pub(super) read_recorded: bool,
}

impl<'a> Batch<'a> {
    pub(super) fn new(conn: &'a Connection, memory: &'a mut Memory, now: Now) -> Self {
        Self {
            conn,
            memory,
            now,
            tallies: Vec::new(),
            total: None,
            raise_epoch: false,
            ended: Vec::new(),
            read_recorded: false,
        }
    }

    /// The namespace's number; made if it is new.
    pub(super) fn namespace(&mut self, name: &Arc<str>) -> Result<i64, Failed> {
        if let Some(id) = self.memory.namespaces.get(name) {
            return Ok(*id);
        }
        let found = namespace_id(self.conn, name)?;
        let id = match found {
            Some(id) => id,
            None => {
                self.conn.prepare_cached("INSERT INTO namespaces (name) VALUES (?1)")?.execute([&**name])?;
                self.conn.last_insert_rowid()
            }
        };
        self.memory.namespaces.insert(name.clone(), id);
        Ok(id)
    }

    /// Counts a record of that state in (1) or out (-1).
    pub(super) fn tally(&mut self, namespace: i64, state: i64, change: i64) {
        if let Some(total) = &mut self.total {
            *total += change;
        }
        if let Some((_, tally)) = self.tallies.iter_mut().find(|(of, _)| *of == namespace) {
            *tally.of(state) += change;
            return;
        }
        let mut tally = Tally::default();
        *tally.of(state) += change;
        self.tallies.push((namespace, tally));
    }

    /// How many records there are in all, expired ones included.
    pub(super) fn total(&mut self) -> Result<i64, Failed> {
        if let Some(total) = self.total {
            return Ok(total);
        }
        let mut total: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(sum(live + completed + failed), 0) FROM namespaces")?
            .query_row([], |row| row.get(0))?;
        total += self.tallies.iter().map(|(_, t)| t.live + t.completed + t.failed).sum::<i64>();
        self.total = Some(total);
        Ok(total)
    }

    /// Removes a row that was read as written in `state`.
    pub(super) fn delete(&mut self, id: i64, result: Option<i64>, namespace: i64, state: i64) -> Result<(), Failed> {
        self.conn.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id])?;
        if let Some(result) = result {
            self.conn.prepare_cached("DELETE FROM results WHERE id = ?1")?.execute([result])?;
        }
        self.tally(namespace, state, -1);
        Ok(())
    }

    /// Writes the counts; the last step before the commit. Returns the new epoch if it rose.
    pub(super) fn finish(&mut self) -> Result<Option<u64>, Failed> {
        for (namespace, t) in self.tallies.drain(..) {
            if t.live == 0 && t.completed == 0 && t.failed == 0 {
                continue;
            }
            self.conn
                .prepare_cached("UPDATE namespaces SET live = live + ?2, completed = completed + ?3, failed = failed + ?4 WHERE id = ?1")?
                .execute(params![namespace, t.live, t.completed, t.failed])?;
        }
        if !self.raise_epoch {
            return Ok(None);
        }
        let epoch: i64 = self
            .conn
            .prepare_cached("UPDATE meta SET value = value + 1 WHERE name = 'epoch' RETURNING value")?
            .query_row([], |row| row.get(0))?;
        Ok(Some(super::row::to_u64(epoch)))
    }
}

/// The number of a namespace that has been written to.
pub(super) fn namespace_id(conn: &Connection, name: &str) -> Result<Option<i64>, Failed> {
    Ok(conn
        .prepare_cached("SELECT id FROM namespaces WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

/// Milliseconds of a duration as SQLite keeps them.
pub(super) fn millis(duration: std::time::Duration) -> i64 {
    to_i64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).min(i64::MAX / 4)
}
