//! An action whose effect is in the store's own database: effect and record
//! are committed together, so that the effect is there exactly once.
//!
//! The steps are those of [`execute`](crate::Hapax::execute), but for how the
//! attempt ends: by the commit of the action's own transaction, in which the
//! completion is written too. There is no doubt in this: what was not committed
//! did not happen. Invariant: an attempt is reported as rolled back only when its
//! transaction can no longer commit.

use std::any::Any;
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_postgres::Transaction;
use tracing::Instrument;

use crate::claim::{Claim, Context};
use crate::execute::{Acquired, Holder, Start, record_error};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::tx::{Fate, TxSession};
use crate::store::{End, StoreError};
use crate::{Action, ActionError, Error, ErrorClass, Hapax, Json, Outcome, Policy, Source, State, Unrecorded};

/// How long a transaction may last when the policy sets no time limit.
const LIMIT: Duration = Duration::from_secs(300);
/// How long a rollback is waited for, before the connection is closed in its place.
const ROLLBACK_LIMIT: Duration = Duration::from_secs(5);

/// What the action of [`Hapax::execute_in_tx`] returns.
pub type TxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ActionError>> + Send + 'a>>;

impl Hapax {
    /// Runs an action whose effect is in the database of a `postgres://` store, once,
    /// provably: what it writes by the transaction it is given and the record of its
    /// result are committed together, or neither is.
    ///
    /// All else is as with [`execute`](Self::execute): the same keys, replays, waiting and policies. What
    /// differs:
    /// - a crash of this process, of the connection or of the server leaves no doubt: the
    ///   transaction is gone, and the next call runs the action;
    /// - every error rolls back. An error that counts as [`ErrorClass::Unknown`] counts as
    ///   retryable, since it is known that nothing happened;
    /// - the action may last as long as the policy's time limit, or five minutes. Past it, it is rolled back;
    /// - the transaction is `READ COMMITTED`; see [`execute_in_tx_at`](Self::execute_in_tx_at) for others;
    /// - do not end the transaction by SQL (`COMMIT`, `ROLLBACK`), and do in it nothing that takes effect
    ///   elsewhere: a mail sent from in here is sent even if the transaction is rolled back.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), hapax::Error> {
    /// use hapax::{Action, Hapax};
    ///
    /// let hapax = Hapax::open("postgres://app@db.internal/app").await?;
    /// let action = Action::new("book", "ledger").signal("order-42");
    /// let booked = hapax
    ///     .execute_in_tx(&action, |tx, _context| {
    ///         Box::pin(async move {
    ///             let rows = tx.execute("UPDATE account SET balance = balance - 10 WHERE id = 7", &[]).await?;
    ///             Ok(rows)
    ///         })
    ///     })
    ///     .await?;
    /// assert_eq!(booked.value, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`execute`](Self::execute), without [`Error::TimedOut`] and [`Error::NotRecorded`]; [`Error::Config`] when
    /// the store is another. [`Error::Store`] with [`StoreError::AnswerLost`] when the commit's answer was lost and
    /// the server could not be asked in time what became of it: call again with the same key.
    pub async fn execute_in_tx<T, F>(&self, action: &Action, run: F) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: for<'a> FnOnce(&'a Transaction<'a>, Context) -> TxFuture<'a, T>,
    {
        self.execute_in_tx_at(tokio_postgres::IsolationLevel::ReadCommitted, action, run).await
    }

    /// [`execute_in_tx`](Self::execute_in_tx) at another isolation level. A serialization failure is an error like
    /// others: rolled back, and retryable.
    ///
    /// # Errors
    /// As there.
    pub async fn execute_in_tx_at<T, F>(
        &self,
        isolation: tokio_postgres::IsolationLevel,
        action: &Action,
        run: F,
    ) -> Result<Outcome<T>, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: for<'a> FnOnce(&'a Transaction<'a>, Context) -> TxFuture<'a, T>,
    {
        let identified = self.identify(action)?;
        if let Some(answer) = self.recall(&identified) {
            return answer.map(|value| Outcome { value, source: Source::Replayed });
        }
        let any: &dyn Any = &**self.store();
        let Some(store) = any.downcast_ref::<PostgresStore>() else {
            return Err(Error::Config {
                message: format!(
                    "execute_in_tx needs a postgres:// store, and this one is {}",
                    self.inner.store.location()
                ),
            });
        };
        let policy = self.policy_of(action)?;
        let limit = policy.time_limit.unwrap_or(LIMIT);
        let identified = identified.into_owned();
        let span = tracing::debug_span!("hapax.execute_in_tx", key = %identified.key, action = action.action_type, target = action.target);
        let anew = async {
            let start = Start::InTx(Box::new(store.tx_start(limit)));
            let holder = Holder::here(&self.inner, start);
            match self.acquire(action, &identified, &policy, &holder).await? {
                Acquired::Entry(entry) => entry.value().map(|value| Outcome { value, source: Source::Replayed }),
                Acquired::Started(started) => {
                    let claim = Claim::new(self.inner.clone(), &identified, &policy, started);
                    let Start::InTx(start) = holder.start else { return Err(missing(store)) };
                    let Some(session) = start.into_session() else { return Err(missing(store)) };
                    let call = Call { store, policy: &policy, limit, namespace: self.inner.namespace.clone() };
                    let value = call.run(claim, session, isolation, run).await?;
                    Ok(Outcome { value, source: Source::Executed })
                }
            }
        };
        // Boxed, so that a replay does not carry the state of everything that it does not do.
        Box::pin(anew.instrument(span)).await
    }
}

/// Cannot be: an attempt begins with a connection. The claim is dropped, which frees the key.
fn missing(store: &PostgresStore) -> Error {
    let location = crate::store::Store::location(store).to_string();
    Error::Store(StoreError::Unavailable { store: location, message: "the transaction has no connection".into() })
}

/// How an action's transaction went before its commit.
enum Ran<T> {
    /// The completion is written; this is what is to be committed.
    Ready(T),
    Failed(ActionError),
    TimedOut,
    /// Somebody else has the key.
    Lost(T),
    /// The connection or the server failed.
    Broken(StoreError),
}

struct Call<'a> {
    store: &'a PostgresStore,
    policy: &'a Policy,
    limit: Duration,
    namespace: std::sync::Arc<str>,
}

impl Call<'_> {
    async fn run<T, F>(
        &self,
        mut claim: Claim,
        mut session: TxSession,
        isolation: tokio_postgres::IsolationLevel,
        run: F,
    ) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: for<'a> FnOnce(&'a Transaction<'a>, Context) -> TxFuture<'a, T>,
    {
        let attempt = claim.attempt();
        let tx = match session.start(attempt, isolation).await {
            Ok(tx) => tx,
            Err(error) => {
                // Nothing ran, and the connection is closed.
                let _ = claim.release().await;
                return Err(error.into());
            }
        };
        let mut written = None;
        let ran = self.act(&claim, &tx, run, &mut written).await;
        let (value, json) = match ran {
            Ran::Ready(ready) => ready,
            other => {
                // Should even this fail, the connection is closed and what it does cancelled, which rolls back too. So it
                // is when the time is over: the statement that took it may take as much again.
                let limit = if matches!(other, Ran::TimedOut) { Duration::ZERO } else { ROLLBACK_LIMIT };
                if self.within(limit, tx.rollback()).await.is_some_and(|rolled_back| rolled_back.is_ok()) {
                    session.is_clean();
                }
                drop(session);
                return Err(self.rolled_back(claim, other).await);
            }
        };
        let Some((ended, waited)) = written else { return Err(missing(self.store)) };
        let epoch = claim.completing(End::Complete { result: json, ttl: claim.ttl(), duration: claim.elapsed() });
        let ended = match tx.commit().await {
            Ok(()) => {
                session.is_clean();
                ended
            }
            Err(error) => {
                drop(session);
                let (error, gone) = self.store.tx_error(&error);
                if !gone {
                    // The server has refused to commit: a constraint checked late, a serialization failure.
                    return Err(record_error(claim, self.policy, ActionError::retryable(error)).await);
                }
                let attempts = claim.context().attempts();
                match self.store.fate(&self.namespace, claim.key(), attempt, attempts).await {
                    Ok(Fate::Committed(ended)) => ended,
                    Ok(Fate::RolledBack) => {
                        // The key is free already, or in doubt as it was before this attempt took it over.
                        let class = if attempts == 1 { ErrorClass::Retryable } else { ErrorClass::Unknown };
                        let (key, error) = (claim.key().clone(), ActionError::new(error).with_class(class));
                        claim.count_failure();
                        let state = match class {
                            ErrorClass::Retryable => claim.tell_released(&error),
                            _ => Some(State::InDoubt),
                        };
                        claim.over();
                        return Err(Error::Action { key, class, state, error });
                    }
                    Err(error) => {
                        claim.over();
                        return Err(error.into());
                    }
                }
            }
        };
        self.store.ended_in_tx(&self.namespace, claim.key(), waited);
        claim.completed(ended, epoch);
        Ok(value)
    }

    /// Runs the action and writes its completion.
    async fn act<T, F>(
        &self,
        claim: &Claim,
        tx: &Transaction<'_>,
        run: F,
        written: &mut Option<(crate::store::Ended, bool)>,
    ) -> Ran<(T, Json)>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: for<'a> FnOnce(&'a Transaction<'a>, Context) -> TxFuture<'a, T>,
    {
        // The lifetime of the borrow and that of the transaction are one to the action.
        let acting = async {
            let value = match run(shorten(tx), claim.context().clone()).await {
                Ok(value) => value,
                Err(error) => return Ran::Failed(error),
            };
            let readable = Json::of(&value).and_then(|json| json.to::<T>().map(|back| (back, json)));
            let (back, json) = match readable {
                Ok(both) => both,
                Err(e) => {
                    return Ran::Failed(unrecordable(format!("it does not survive the way to JSON and back: {e}")));
                }
            };
            if let Some(reason) = claim.too_large(&json) {
                return Ran::Failed(unrecordable(reason));
            }
            let end = End::Complete { result: json.clone(), ttl: claim.ttl(), duration: claim.elapsed() };
            match self.store.complete_in_tx(tx, (&self.namespace, claim.key(), claim.attempt()), &end).await {
                Ok(Some(done)) => {
                    *written = Some(done);
                    Ran::Ready((back, json))
                }
                Ok(None) => Ran::Lost((back, json)),
                Err(error) => {
                    let (error, gone) = self.store.tx_error(&error);
                    // Not gone: the action has broken the transaction and kept silent, or it met a serialization failure.
                    if gone { Ran::Broken(error) } else { Ran::Failed(ActionError::retryable(error)) }
                }
            }
        };
        self.within(self.limit, acting).await.unwrap_or(Ran::TimedOut)
    }

    /// What the future gives, unless the time is over first.
    async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut over = self.store.sleep(limit);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(given) => std::task::Poll::Ready(Some(given)),
            std::task::Poll::Pending => over.as_mut().poll(cx).map(|_| None),
        })
        .await
    }

    /// What the caller is told of a transaction that was rolled back.
    async fn rolled_back<T: Send + Sync + 'static>(&self, mut claim: Claim, ran: Ran<(T, Json)>) -> Error {
        let retryable = |error: ActionError| match error.class().unwrap_or(self.policy.on_error) {
            // It is known: nothing happened.
            ErrorClass::Unknown | ErrorClass::Retryable => error.with_class(ErrorClass::Retryable),
            ErrorClass::Permanent => error.with_class(ErrorClass::Permanent),
        };
        let error = match ran {
            Ran::Failed(error) => retryable(error),
            Ran::TimedOut => ActionError::retryable(format!(
                "the transaction ran past its time limit of {:?} and was rolled back; raise the policy's time limit, or do less in it",
                self.limit
            )),
            Ran::Broken(error) => ActionError::retryable(error),
            Ran::Lost((value, _)) | Ran::Ready((value, _)) => {
                claim.over();
                let (key, attempt) = (claim.key().clone(), claim.attempt());
                return Error::LostClaim { key, attempt, value: Some(Unrecorded::new(value)) };
            }
        };
        record_error(claim, self.policy, error).await
    }
}

fn unrecordable(reason: String) -> ActionError {
    ActionError::retryable(format!("the result cannot be recorded, so all was rolled back: {reason}"))
}

/// A transaction is covariant in its lifetime: one that lives longer serves as one that lives as long as the borrow.
fn shorten<'a>(tx: &'a Transaction<'_>) -> &'a Transaction<'a> {
    tx
}
