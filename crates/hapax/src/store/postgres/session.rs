//! Connections: opened, set up, found dead, opened again.
//!
//! A connection's own task runs on the store's runtime, never on the caller's.
//! Invariant: statements are prepared under names, and settings made, only on a
//! connection that the server sees as it was opened here: behind a pooler in
//! transaction mode the next statement may reach another server process, where
//! the same name may mean another statement.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Row, Statement};

use super::Shared;
use super::dial::{dial, is_wanted};
use super::error::{Failed, store_error, timed_out};
use super::options::Prepare;
use super::sql::Stmt;
use crate::store::StoreError;

/// The longest pause between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The first pause.
const MIN_PAUSE: Duration = Duration::from_millis(50);

pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// An open connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// Whether no pooler stands between.
    pub(super) direct: bool,
    /// At which of the hosts it ends.
    pub(super) place: usize,
    // A short critical section that never awaits.
    prepared: Mutex<Vec<Option<Statement>>>,
}

impl Session {
    /// Sends a statement.
    pub(super) async fn query(&self, stmt: &Stmt, params: Params<'_>) -> Result<Vec<Row>, Failed> {
        if !self.direct {
            let typed: Vec<_> = params.iter().copied().zip(stmt.types.iter().cloned()).collect();
            return Ok(self.client.query_typed(&stmt.text, &typed).await?);
        }
        let known = self.prepared.lock().get(stmt.place).cloned().flatten();
        let statement = match known {
            Some(statement) => statement,
            None => {
                let statement = self.client.prepare_typed(&stmt.text, &stmt.types).await?;
                let mut prepared = self.prepared.lock();
                if prepared.len() <= stmt.place {
                    prepared.resize(stmt.place + 1, None);
                }
                if let Some(place) = prepared.get_mut(stmt.place) {
                    *place = Some(statement.clone());
                }
                statement
            }
        };
        Ok(self.client.query(&statement, params).await?)
    }

    /// The first row's first column, a number.
    pub(super) async fn number(&self, stmt: &Stmt, params: Params<'_>) -> Result<i64, Failed> {
        let rows = self.query(stmt, params).await?;
        match rows.first() {
            Some(row) => Ok(row.try_get(0)?),
            None => Ok(0),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Whose statements a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The store's own.
    Store,
    /// A user's, in a transaction: how those are planned is not ours to decide.
    Users,
}

/// Opens a connection and sets it up; what it is told by `NOTIFY` goes to the watch.
pub(super) async fn open(shared: &Arc<Shared>, config: &Config, purpose: Purpose) -> Result<Session, StoreError> {
    let limit = shared.options.connect_limit;
    // Boxed: the compiler cannot see through all of it that it may go from thread to thread.
    let opening: Pin<Box<dyn Future<Output = Result<Session, StoreError>> + Send + '_>> =
        Box::pin(open_unlimited(shared, config, purpose));
    match tokio::time::timeout(limit, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(timed_out(&shared.location, limit)),
    }
}

async fn open_unlimited(shared: &Arc<Shared>, config: &Config, purpose: Purpose) -> Result<Session, StoreError> {
    let failed = |e: &tokio_postgres::Error| store_error(&shared.location, e);
    let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
    let mut first = 0;
    for _ in 0..hosts {
        let (client, mut connection, local, at) = dial(shared, config, first).await?;
        let watch = Arc::downgrade(shared);
        shared.handle.spawn(async move {
            // Ends with an error or with the last of the client; either is found by whoever uses it.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(word) = message
                    && let Some(shared) = watch.upgrade()
                {
                    shared.watch.word(word.payload());
                }
            }
        });
        if !is_wanted(&client, config).await.map_err(|e| failed(&e))? {
            first = at + 1;
            continue;
        }
        return greeted(shared, client, local, at, purpose).await;
    }
    Err(StoreError::Unavailable {
        store: shared.location.clone(),
        message: "no host is what target_session_attrs asks for; check that one of them is the primary".into(),
    })
}

async fn greeted(
    shared: &Arc<Shared>,
    client: Client,
    local: Option<SocketAddr>,
    place: usize,
    purpose: Purpose,
) -> Result<Session, StoreError> {
    let failed = |e: &tokio_postgres::Error| store_error(&shared.location, e);
    let direct = match shared.options.prepare {
        Prepare::Always => true,
        Prepare::Never => false,
        Prepare::Auto => is_direct(&client, local).await.map_err(|e| failed(&e))?,
    };
    let session = Session { client, direct, place, prepared: Mutex::new(Vec::new()) };
    if direct {
        set_up(shared, &session, purpose).await.map_err(|e| failed(&e))?;
    } else if shared.options.synchronous_commit.is_some() {
        return Err(StoreError::BadRequest {
            message: "synchronous_commit cannot be set through a pooler: set it on the user or the database \
                (ALTER ROLE … SET synchronous_commit = …), or connect directly"
                .into(),
        });
    }
    Ok(session)
}

/// Whether the server sees a connection from the very address and port that was opened here.
async fn is_direct(client: &Client, local: Option<SocketAddr>) -> Result<bool, tokio_postgres::Error> {
    let Some(local) = local else { return Ok(false) };
    // What does not know these functions is no PostgreSQL, and gets no names either.
    let sql = "SELECT host(inet_client_addr()), inet_client_port()";
    let rows = match client.query_typed(sql, &[]).await {
        Ok(rows) => rows,
        Err(error) if error.as_db_error().is_some() => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(row) = rows.first() else { return Ok(false) };
    let (address, port) = (row.try_get::<_, Option<String>>(0)?, row.try_get::<_, Option<i32>>(1)?);
    let address = address.and_then(|a| a.parse::<IpAddr>().ok());
    let port = port.and_then(|p| u16::try_from(p).ok());
    Ok(address.zip(port).map(SocketAddr::from) == Some(local))
}

/// Settings of a connection that is ours alone. A server that does not know one of them does without.
async fn set_up(shared: &Shared, session: &Session, purpose: Purpose) -> Result<(), tokio_postgres::Error> {
    // Prepared plans are made once, perhaps while the tables are nearly empty; they must stay good when those have
    // grown. Every statement here has an index to go by. A statement over an array would be planned anew each time, at
    // several times the cost of carrying it out: the planner takes the array's length for a reason.
    // Two requests, so that a server that lacks the one has the other.
    let plans = [
        "SET plan_cache_mode = force_generic_plan",
        "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off",
    ];
    for setting in plans.into_iter().filter(|_| purpose == Purpose::Store) {
        if let Err(error) = session.client.batch_execute(setting).await
            && error.as_db_error().is_none()
        {
            return Err(error);
        }
    }
    if let Some(level) = shared.options.synchronous_commit {
        session.client.batch_execute(&format!("SET synchronous_commit = {level}")).await?;
    }
    Ok(())
}

/// A place for a connection that is opened when it is needed and again when it was lost.
pub(super) struct Link {
    // Held over an await on purpose: one opens, the others wait for it.
    slot: tokio::sync::Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    failures: u32,
    not_before: Option<Instant>,
    last: Option<StoreError>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { slot: tokio::sync::Mutex::new(Slot::default()) }
    }

    /// Starts with a connection that is open already.
    pub(super) fn with(session: Session) -> Self {
        let slot = Slot { session: Some(Arc::new(session)), ..Slot::default() };
        Self { slot: tokio::sync::Mutex::new(slot) }
    }

    /// The connection, opened if need be, tried again until `until`.
    pub(super) async fn session(&self, shared: &Arc<Shared>, until: Instant) -> Result<Arc<Session>, StoreError> {
        let deadline = tokio::time::Instant::from_std(until);
        let Ok(mut slot) = tokio::time::timeout_at(deadline, self.slot.lock()).await else {
            return Err(timed_out(&shared.location, shared.options.command_limit));
        };
        loop {
            if let Some(session) = slot.session.as_ref().filter(|s| !s.is_closed()) {
                return Ok(session.clone());
            }
            slot.session = None;
            if let Some(at) = slot.not_before {
                if at >= until || Instant::now() >= until {
                    tokio::time::sleep_until(deadline).await;
                    return Err(slot
                        .last
                        .clone()
                        .unwrap_or_else(|| timed_out(&shared.location, shared.options.command_limit)));
                }
                tokio::time::sleep_until(at.into()).await;
            }
            if shared.is_closed() {
                return Err(shared.closed_error());
            }
            let opened = tokio::time::timeout_at(deadline, open(shared, &shared.options.config, Purpose::Store)).await;
            match opened.unwrap_or_else(|_| Err(timed_out(&shared.location, shared.options.command_limit))) {
                Ok(session) => {
                    if slot.failures > 0 {
                        tracing::info!(store = %shared.location, "connected again");
                    }
                    *slot = Slot { session: Some(Arc::new(session)), ..Slot::default() };
                }
                Err(error) => {
                    if slot.failures == 0 {
                        tracing::warn!(store = %shared.location, %error, "no connection; tried again");
                    }
                    slot.failures = slot.failures.saturating_add(1);
                    slot.not_before = Some(Instant::now() + pause(slot.failures));
                    slot.last = Some(error);
                }
            }
        }
    }

    /// Gives up a connection that has failed; the next user opens another.
    pub(super) async fn lost(&self, session: &Arc<Session>) {
        let mut slot = self.slot.lock().await;
        if slot.session.as_ref().is_some_and(|s| Arc::ptr_eq(s, session)) {
            slot.session = None;
        }
    }
}

/// Doubles from 50 ms to 2 s, less up to a half by chance, so that a fleet does not come back all at once.
fn pause(failures: u32) -> Duration {
    let full = MIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE);
    // The random bits of an id do as chance.
    let chance = u32::from(crate::AttemptId::new().as_bytes().last().copied().unwrap_or(0));
    full - full * chance / 512
}
