//! The writer: one thread per handle, one transaction for all that waits.
//!
//! Group commit forms by itself: while a batch is committed and synced, the next
//! one gathers in the queue. Invariants: an answer leaves only after the commit
//! of its batch, and in `sync` mode after the sync of it; an operation that fails
//! does not touch the others of its batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::Shared;
use super::batch::{Batch, Memory};
use super::error::{Failed, commit_error, store_error};
use super::ops::{Answer, Op};
use super::row::{Hash, Now};
use super::wal::Wal;
use crate::store::StoreError;

/// The most operations in a transaction.
const MAX_BATCH: usize = 1024;

/// An operation and who waits for its answer.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) op: Op,
    pub(super) answer: oneshot::Sender<Result<Answer, StoreError>>,
}

type Answers = Vec<Result<Answer, StoreError>>;

/// What a committed transaction did besides its answers.
#[derive(Debug, Default)]
struct Committed {
    epoch: Option<u64>,
    ended: Vec<Hash>,
    /// Whether an answer tells of what power loss could take back.
    must_sync: bool,
}

/// The writer's state.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    conn: Connection,
    memory: Memory,
    wal: Wal,
    /// Pages in the log after the last commit.
    pages: Arc<AtomicU32>,
    /// `PRAGMA data_version` at the last look: others' commits change it.
    version: i64,
    /// Set while others' commits may not be synced.
    foreign: bool,
}

/// Runs until the queue is closed and empty.
pub(super) fn run(shared: Arc<Shared>, mut conn: Connection) {
    let pages = Arc::new(AtomicU32::new(0));
    let seen = pages.clone();
    let hooked = conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, count: i32| {
        seen.store(u32::try_from(count).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }));
    if let Err(error) = hooked {
        tracing::warn!(store = %shared.location, %error, "no checkpoints: the log cannot be watched");
    }
    let wal = Wal::of(&shared.real);
    let mut writer = Writer { conn, memory: Memory::default(), wal, pages, version: 0, foreign: true, shared };
    let mut batch = Vec::new();
    while writer.shared.commands.take(&mut batch, MAX_BATCH) {
        writer.work(&mut batch);
    }
    writer.shared.outlast();
}

impl Writer {
    fn work(&mut self, commands: &mut Vec<Command>) {
        let ops: Vec<&Op> = commands.iter().map(|c| &c.op).collect();
        let (answers, committed) = self.commit_all(&ops);
        let mut lost = None;
        if self.shared.is_sync() && committed.must_sync {
            match self.wal.sync() {
                Ok(()) => self.foreign = false,
                Err(error) => {
                    tracing::error!(store = %self.shared.location, %error, "syncing the log failed; the store must be opened again");
                    lost = Some(StoreError::AnswerLost {
                        store: self.shared.location.clone(),
                        message: format!("syncing the log failed ({error}); check the device and open the store again"),
                    });
                }
            }
        }
        if let Some(epoch) = committed.epoch {
            self.shared.watch.raise_epoch(epoch);
        }
        for (command, answer) in commands.drain(..).zip(answers) {
            let answer = match &lost {
                Some(lost) => Err(lost.clone()),
                None => answer,
            };
            let _ = command.answer.send(answer);
        }
        for hash in &committed.ended {
            self.shared.watch.wake(hash);
        }
        self.shared.checkpoints.consider(&self.shared, self.pages.load(Ordering::Relaxed));
    }

    /// Does all in one transaction, or else each in its own.
    fn commit_all(&mut self, ops: &[&Op]) -> (Answers, Committed) {
        match self.commit(ops) {
            Ok(done) => done,
            Err(error) if ops.len() == 1 => (vec![Err(error)], Committed::default()),
            // Nobody got the lock: nobody will a moment later.
            Err(error @ StoreError::Busy { .. }) => {
                (ops.iter().map(|_| Err(error.clone())).collect(), Committed::default())
            }
            // If that commit was made after all, doing it again could tell a stranger's
            // answer: "exists" to the very attempt that began.
            Err(error @ StoreError::AnswerLost { .. }) => (
                ops.iter().map(|_| Err(error.clone())).collect(),
                Committed { must_sync: true, ..Committed::default() },
            ),
            Err(_) => {
                let mut all = Committed::default();
                let mut answers = Vec::with_capacity(ops.len());
                for op in ops {
                    match self.commit(&[op]) {
                        Ok((one, committed)) => {
                            answers.extend(one);
                            all.epoch = committed.epoch.or(all.epoch);
                            all.ended.extend(committed.ended);
                            all.must_sync |= committed.must_sync;
                        }
                        Err(error) => answers.push(Err(error)),
                    }
                }
                (answers, all)
            }
        }
    }

    fn commit(&mut self, ops: &[&Op]) -> Result<(Answers, Committed), StoreError> {
        let location = &self.shared.location;
        let failed = |e: rusqlite::Error| store_error(location, &e);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let version = tx
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(failed)?;
        if std::mem::replace(&mut self.version, version) != version {
            self.foreign = true;
        }
        let now = Now::new(&*self.shared.clock, self.shared.me);
        let mut batch = Batch::new(&tx, &mut self.memory, now);
        let mut answers = Vec::with_capacity(ops.len());
        let mut done = Ok(None);
        // Counts alone wait for no sync: no answer tells of them, and closing the store syncs them.
        let mut wrote = false;
        for op in ops {
            let before = tx.total_changes();
            let applied = op.apply(&mut batch, location);
            wrote |= tx.total_changes() != before && !matches!(op, Op::Count { .. });
            match applied {
                Ok(answer) => answers.push(Ok(answer)),
                Err(Failed::Store(error)) => answers.push(Err(error)),
                Err(error) => {
                    done = Err(error);
                    break;
                }
            }
        }
        if done.is_ok() {
            done = batch.finish();
        }
        let (ended, read_recorded) = (std::mem::take(&mut batch.ended), batch.read_recorded);
        drop(batch);
        let epoch = match done {
            Ok(epoch) => epoch,
            Err(error) => {
                drop(tx);
                self.memory.forget_namespaces();
                return Err(error.into_store(&self.shared.location));
            }
        };
        if let Err(error) = tx.commit() {
            self.memory.forget_namespaces();
            return Err(commit_error(&self.shared.location, &error));
        }
        Ok((answers, Committed { epoch, ended, must_sync: wrote || (self.foreign && read_recorded) }))
    }
}
