//! Transactions for [`Hapax::execute_in_tx`](crate::Hapax::execute_in_tx): their
//! connections, their liveness, and what became of one whose commit got no answer.
//!
//! An attempt of this kind has a row like any other, committed before the action
//! runs, so that others wait. Its completion is written in the action's own
//! transaction, conditional on the attempt id. So whatever happens to process,
//! connection or server: if the row does not say completed once the
//! transaction is over, the transaction had no effect. Such a row is free to be
//! taken, never in doubt. That it is over is told by an advisory lock, which the
//! transaction holds and the server drops with it; where there are no such locks,
//! by the end of the attempt's lease, which is longer than the transaction may last.
//!
//! Invariant: who takes the row first fences the other off. A transaction that
//! finds its row gone cannot commit; a row whose completion is about to be
//! committed is locked until that is decided.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_postgres::types::Type;
use tokio_postgres::{IsolationLevel, Transaction};
use uuid::Uuid;

use super::dial::cancel;
use super::error::{Failed, Meaning, answer_lost, meaning, store_error, timed_out};
use super::queue::BeginJob;
use super::row::{COMPLETED, hash_of, lock_of, millis, read, ttl_millis, uuid};
use super::session::{Purpose, Session, open};
use super::{PostgresStore, Shared};
use crate::store::{Begin, Begun, End, Ended, StoreError, StoreFuture};
use crate::{AttemptId, Key, State, Timestamp};

/// How much longer than the transaction may last its attempt's lease is.
const SLACK: Duration = Duration::from_secs(5);
/// How long the server keeps a transaction that was to be committed by a client that has gone silent.
const SILENCE: &str = "5s";

/// Connections that no transaction uses at the moment.
#[derive(Default)]
pub(super) struct TxPool {
    // A short critical section that never awaits.
    idle: Mutex<Vec<Session>>,
}

/// A connection for one transaction, out of a bounded number.
pub(crate) struct TxSession {
    shared: Arc<Shared>,
    session: Option<Session>,
    clean: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for TxSession {
    fn drop(&mut self) {
        let Some(session) = self.session.take().filter(|session| !session.is_closed()) else { return };
        if self.clean {
            self.shared.txs.idle.lock().push(session);
            return;
        }
        // One that was left in the middle of something is closed, which rolls back; but not before the statement ends
        // that it is in, and until then the server holds its locks.
        let (shared, token, place) = (self.shared.clone(), session.client.cancel_token(), session.place);
        self.shared.handle.spawn(async move {
            let cancelled = tokio::time::timeout(shared.options.command_limit, cancel(&shared, place, &token)).await;
            if let Ok(Err(error)) = cancelled {
                tracing::debug!(%error, "a statement could not be cancelled: its locks are held until it ends");
            }
        });
    }
}

impl TxSession {
    async fn get(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let limit = shared.options.command_limit;
        let permit = tokio::time::timeout(limit, shared.tx_places.clone().acquire_owned()).await;
        let permit = match permit {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(shared.closed_error()),
            Err(_) => {
                return Err(StoreError::Overloaded {
                    store: shared.location.clone(),
                    limit: shared.options.tx_connections,
                });
            }
        };
        let mut idle = {
            let mut idle = shared.txs.idle.lock();
            idle.retain(|session| !session.is_closed());
            idle.pop()
        };
        let session = match idle.take() {
            Some(session) => session,
            None => open(shared, &shared.options.config, Purpose::Users).await?,
        };
        Ok(Self { shared: shared.clone(), session: Some(session), clean: true, _permit: permit })
    }

    /// Begins a transaction that holds the attempt's lock.
    pub(crate) async fn start(
        &mut self,
        attempt: AttemptId,
        isolation: IsolationLevel,
    ) -> Result<Transaction<'_>, StoreError> {
        let shared = self.shared.clone();
        let failed = |e: tokio_postgres::Error| store_error(&shared.location, &e);
        self.clean = false;
        let Some(session) = &mut self.session else { return Err(shared.gone()) };
        let tx = session.client.build_transaction().isolation_level(isolation).start().await.map_err(failed)?;
        if shared.has_locks.load(Ordering::Relaxed) {
            let (lock, _, _) = lock_of(attempt);
            tx.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&lock, Type::INT8)]).await.map_err(failed)?;
        }
        Ok(tx)
    }

    /// The transaction has ended in good order: the connection may serve another.
    pub(crate) fn is_clean(&mut self) {
        self.clean = true;
    }
}

/// How an attempt with a transaction begins: with a connection at hand, so that
/// none who has the key waits for one.
pub(crate) struct TxStart {
    shared: Arc<Shared>,
    limit: Duration,
    // Filled by the begin that started.
    session: Mutex<Option<TxSession>>,
}

impl TxStart {
    pub(crate) async fn begin(&self, mut begin: Begin) -> Result<Begun, StoreError> {
        begin.lease = self.limit.saturating_add(SLACK);
        let shared = self.shared.clone();
        let work = async move {
            let session = TxSession::get(&shared).await?;
            let (common, receiver) = super::common(&shared, &begin.namespace, &begin.key);
            let job = BeginJob { op: Box::new(begin), in_tx: true, tried_over: false, common };
            shared.queue.push(job, &shared.location);
            let begun = receiver.await.map_err(|_| shared.gone())??;
            Ok((session, begun))
        };
        let (session, begun) = super::run(&self.shared, work).await?;
        if matches!(begun, Begun::Started { .. }) {
            *self.session.lock() = Some(session);
        }
        Ok(begun)
    }

    /// The connection of the attempt that began.
    pub(crate) fn into_session(self) -> Option<TxSession> {
        self.session.into_inner()
    }
}

/// What became of a commit.
#[derive(Debug)]
pub(crate) enum Fate {
    /// Effect and completion are there.
    Committed(Ended),
    /// Neither is; the key is free, or in doubt as it was before.
    RolledBack,
}

impl PostgresStore {
    pub(crate) fn tx_start(&self, limit: Duration) -> TxStart {
        TxStart { shared: self.shared.clone(), limit, session: Mutex::new(None) }
    }

    /// Resolves after this long, whatever runtime it is polled on.
    pub(crate) fn sleep(&self, limit: Duration) -> StoreFuture<'static, ()> {
        let sleep = self.shared.handle.spawn(tokio::time::sleep(limit));
        Box::pin(async move {
            let _ = sleep.await;
            Ok(())
        })
    }

    /// Writes the completion in the action's transaction. `None`: the key was taken meanwhile.
    pub(crate) async fn complete_in_tx(
        &self,
        tx: &Transaction<'_>,
        (namespace, key, attempt): (&str, &Key, AttemptId),
        end: &End,
    ) -> Result<Option<(Ended, bool)>, tokio_postgres::Error> {
        let End::Complete { result, ttl, duration } = end else { return Ok(None) };
        let sql = &self.shared.sql.end_one;
        let (hash, attempt, ttl) = (hash_of(namespace, key), uuid(attempt), ttl_millis(*ttl));
        let (body, duration) = (result.as_str(), millis(*duration));
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&hash, &attempt, &COMPLETED, &body, &ttl, &Some(duration)];
        let typed: Vec<_> = params.into_iter().zip(sql.types.iter().cloned()).collect();
        let rows = tx.query_typed(&sql.text, &typed).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        if self.shared.has_locks.load(Ordering::Relaxed) {
            // From here to the commit others may wait for the row. Should this client fall silent, not for long.
            tx.batch_execute(&format!("SET LOCAL idle_in_transaction_session_timeout = '{SILENCE}'")).await?;
        }
        let expires_at = row.try_get::<_, Option<i64>>(2)?.map(Timestamp::from_millis);
        let ended = Ended::Done { at: Timestamp::from_millis(row.try_get(1)?), expires_at };
        Ok(Some((ended, row.try_get(3)?)))
    }

    /// Tells of an end that was committed.
    pub(crate) fn ended_in_tx(&self, namespace: &str, key: &Key, waited: bool) {
        let hash = hash_of(namespace, key);
        self.shared.watch.wake(&hash);
        if waited {
            self.shared.tell(vec![hash]);
        }
    }

    /// Finds out what became of a commit that got no answer, waiting until it is decided.
    pub(crate) fn fate(&self, namespace: &str, key: &Key, attempt: AttemptId, attempts: u64) -> StoreFuture<'_, Fate> {
        let shared = self.shared.clone();
        let hash = hash_of(namespace, key);
        super::run(&self.shared, async move { fate(&shared, hash, attempt, attempts).await })
    }

    /// What an error of the client in a transaction is to the caller of a store.
    pub(crate) fn tx_error(&self, error: &tokio_postgres::Error) -> (StoreError, bool) {
        (store_error(&self.shared.location, error), meaning(error) == Meaning::Gone)
    }
}

async fn fate(shared: &Arc<Shared>, hash: Uuid, attempt: AttemptId, attempts: u64) -> Result<Fate, StoreError> {
    let until = Instant::now() + shared.options.command_limit.max(Duration::from_secs(10));
    let lost = |error: &StoreError| {
        let why = StoreError::Unavailable {
            store: shared.location.clone(),
            message: format!(
                "the commit's answer was lost, and what became of it cannot be found out now ({error}); the effect and its \
                 record are both there or neither is: call again with the same key"
            ),
        };
        answer_lost(&shared.location, &why)
    };
    loop {
        let error = match once(shared, hash, attempt, attempts, until).await {
            Ok(Some(fate)) => return Ok(fate),
            Ok(None) => {
                // Recorded and cleared since, or rolled back and taken since.
                let gone = StoreError::Unavailable {
                    store: shared.location.clone(),
                    message: "its row is gone by now".into(),
                };
                return Err(lost(&gone));
            }
            Err(error) => error,
        };
        if Instant::now() >= until {
            return Err(lost(&shared.error_of(error)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn once(
    shared: &Arc<Shared>,
    hash: Uuid,
    attempt: AttemptId,
    attempts: u64,
    until: Instant,
) -> Result<Option<Fate>, Failed> {
    let session = Arc::new(open(shared, &shared.options.config, Purpose::Store).await?);
    let look = async {
        // Whichever it is, it waits for the row's lock, that is, for the end of the transaction.
        let (hashes, attempts_of) = (vec![hash], vec![uuid(attempt)]);
        let undone = if attempts == 1 {
            session.query(&shared.sql.release_many, &[&hashes, &attempts_of]).await?
        } else {
            let reason = "a transaction that had taken the key over was rolled back";
            let none = None::<i64>;
            let sql = &shared.sql.end_one;
            session.query(sql, &[&hash, &uuid(attempt), &super::row::IN_DOUBT, &reason, &none, &none]).await?
        };
        if !undone.is_empty() {
            return Ok(Some(Fate::RolledBack));
        }
        let rows = session.query(&shared.sql.existing, &[&hashes]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let Some(row) = read(row, "")? else { return Ok(None) };
        let record = row.record;
        let mine = record.attempt_id == attempt && record.state == State::Completed;
        let ended = record.executed_at.filter(|_| mine).map(|at| Ended::Done { at, expires_at: record.expires_at });
        Ok(ended.map(Fate::Committed))
    };
    match tokio::time::timeout_at(until.into(), look).await {
        Ok(looked) => looked,
        Err(_) => Err(Failed::Store(timed_out(&shared.location, shared.options.command_limit))),
    }
}
