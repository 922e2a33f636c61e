//! The readers: a thread for single records and one for pages and counts, each
//! with a connection of its own and started on first use, so that neither waits
//! for the writer and a long listing delays no check.
//!
//! Invariant: in `sync` mode, a recorded result is told only when the log that
//! holds it was synced after it was read.

use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::Shared;
use super::error::{Failed, store_error};
use super::queue::Queue;
use super::read::{Question, Reply};
use super::row::Now;
use super::wal::Wal;
use crate::store::StoreError;

/// The most questions answered from one snapshot.
const MAX_BATCH: usize = 256;

/// A question and who waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) answer: oneshot::Sender<Result<Reply, StoreError>>,
}

struct Reader {
    conn: Connection,
    wal: Wal,
    version: i64,
    /// Set while commits that this connection sees may not be synced.
    unsynced: bool,
}

/// Runs until the queue is closed and empty.
pub(super) fn run(shared: &Arc<Shared>, queue: &Queue<Asked>) {
    let mut reader = None;
    let mut batch = Vec::new();
    while queue.take(&mut batch, MAX_BATCH) {
        if reader.is_none() {
            match super::schema::connect(&shared.real, &shared.location) {
                Ok(conn) => reader = Some(Reader { conn, wal: Wal::of(&shared.real), version: 0, unsynced: true }),
                Err(error) => {
                    batch.drain(..).for_each(|asked: Asked| drop(asked.answer.send(Err(error.clone()))));
                    continue;
                }
            }
        }
        let Some(reader) = &mut reader else { continue };
        let replies = reader.answer(shared, &batch);
        match replies {
            Ok(replies) => {
                for (asked, reply) in batch.drain(..).zip(replies) {
                    let _ = asked.answer.send(reply);
                }
            }
            Err(error) => batch.drain(..).for_each(|asked| drop(asked.answer.send(Err(error.clone())))),
        }
    }
}

impl Reader {
    fn answer(&mut self, shared: &Shared, batch: &[Asked]) -> Result<Vec<Result<Reply, StoreError>>, StoreError> {
        let failed = |e: rusqlite::Error| store_error(&shared.location, &e);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Deferred).map_err(failed)?;
        let version = tx
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(failed)?;
        if std::mem::replace(&mut self.version, version) != version {
            self.unsynced = true;
        }
        let mut now = Now::new(&*shared.clock, shared.me);
        let replies: Vec<Result<Reply, StoreError>> = batch
            .iter()
            .map(|asked| asked.question.answer(&tx, &mut now).map_err(|e: Failed| e.into_store(&shared.location)))
            .collect();
        tx.commit().map_err(failed)?;
        let tells = replies.iter().any(|r| r.as_ref().is_ok_and(Reply::tells_recorded));
        if shared.is_sync() && self.unsynced && tells {
            self.wal.sync().map_err(|e| StoreError::Unavailable {
                store: shared.location.clone(),
                message: format!("syncing the log failed ({e}); check the device and open the store again"),
            })?;
            self.unsynced = false;
        }
        Ok(replies)
    }
}
