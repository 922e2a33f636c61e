//! The tables, their versions, and how many processes agree on them.
//!
//! Everything is named `hapax_…` within one schema. Version N is reached by the
//! first N of [`STEPS`], each with the version number in one transaction, under
//! an advisory lock where the server has those; one that comes too late finds
//! the work done. Invariant: tables that are not hapax's are left as they are,
//! and so are those of a newer version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use super::Shared;
use super::error::{Failed, store_error};
use super::session::Session;
use super::sql::fill;
use crate::store::StoreError;

/// What brings version N to N + 1.
const STEPS: [&str; 2] = [
    "
CREATE TABLE @records (
    -- Of namespace and key: the first 16 bytes of a SHA-256.
    hash uuid PRIMARY KEY,
    -- The order of records. A key that begins anew after its record expired gets a new number.
    id bigserial NOT NULL,
    -- What the indexes hold in place of namespace, action_type, target and signal_id.
    space_tag int8 NOT NULL,
    action_tag int8 NOT NULL,
    target_tag int8 NOT NULL,
    signal_tag int8,
    -- 0 in progress, 1 in doubt, 2 completed, 3 failed.
    state int2 NOT NULL,
    -- Whether the attempt is a transaction, which has no effect unless its completion is here.
    in_tx bool NOT NULL,
    attempt uuid NOT NULL,
    attempts int8 NOT NULL,
    presented int8 NOT NULL,
    -- Times are milliseconds since 1970: to_timestamp(started_at / 1000.0).
    started_at int8 NOT NULL,
    executed_at int8,
    expires_at int8,
    lease_until int8,
    duration_ms int8,
    -- Whether somebody listens for the end.
    waited bool NOT NULL,
    fingerprint bytea NOT NULL,
    namespace text NOT NULL,
    key text NOT NULL,
    signal_id text,
    action_type text NOT NULL,
    target text NOT NULL,
    host text NOT NULL,
    pid int8 NOT NULL,
    label text,
    tags text,
    params text,
    -- The result's JSON, the error, or why it is in doubt.
    body text
);
CREATE INDEX hapax_records_space ON @records (space_tag, id);
-- Not of results, the bulk: what ends well costs no entry here.
CREATE INDEX hapax_records_state ON @records (space_tag, state, id) WHERE state <> 2;
CREATE INDEX hapax_records_action ON @records (action_tag, id);
CREATE INDEX hapax_records_target ON @records (target_tag, id);
CREATE INDEX hapax_records_signal ON @records (signal_tag, id) WHERE signal_tag IS NOT NULL;
CREATE INDEX hapax_records_expiry ON @records (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX hapax_records_tx ON @records (lease_until) WHERE in_tx AND state = 0;
CREATE TABLE @counters (
    namespace text NOT NULL,
    name text NOT NULL,
    value int8 NOT NULL,
    PRIMARY KEY (namespace, name)
);
INSERT INTO @meta (name, value) VALUES ('epoch', 0), ('room', 0);
",
    "
-- Live rows are few and soon something else: of them there is one index, and the others hold what is recorded. So a
-- begin makes two entries in place of six.
DROP INDEX @schema.hapax_records_space;
DROP INDEX @schema.hapax_records_state;
DROP INDEX @schema.hapax_records_action;
DROP INDEX @schema.hapax_records_target;
DROP INDEX @schema.hapax_records_signal;
DROP INDEX @schema.hapax_records_tx;
CREATE INDEX hapax_records_live ON @records (space_tag, id) WHERE state < 2;
CREATE INDEX hapax_records_space ON @records (space_tag, id) WHERE state > 1;
CREATE INDEX hapax_records_failed ON @records (space_tag, id) WHERE state = 3;
CREATE INDEX hapax_records_action ON @records (action_tag, id) WHERE state > 1;
CREATE INDEX hapax_records_target ON @records (target_tag, id) WHERE state > 1;
CREATE INDEX hapax_records_signal ON @records (signal_tag, id) WHERE state > 1 AND signal_tag IS NOT NULL;
-- Not by lease_until: a heartbeat changes no indexed column.
CREATE INDEX hapax_records_tx ON @records (id) WHERE in_tx AND state = 0;
",
];

/// The newest version known.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// How long processes that open an empty database at once may get in each other's way.
const LIMIT: Duration = Duration::from_secs(30);
/// The advisory lock of migrations, "hapax" in ASCII.
const LOCK: i64 = 0x68_61_70_61_78;

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Version(i64),
    Foreign,
}

/// Sees to it that the tables are there, in the newest version.
pub(super) async fn prepare(shared: &Arc<Shared>, session: &Session) -> Result<(), StoreError> {
    let until = Instant::now() + LIMIT;
    let mut with_lock = true;
    loop {
        match look(shared, session).await.map_err(|e| shared.error_of(e))? {
            Found::Version(VERSION) => return Ok(()),
            found => check(shared, &found)?,
        }
        let error = match migrate(shared, session, with_lock).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        // A transaction that has failed takes no more statements.
        session.client.batch_execute("ROLLBACK").await.map_err(|e| store_error(&shared.location, &e))?;
        let Failed::Sql(sql) = &error else { return Err(shared.error_of(error)) };
        match sql.code() {
            Some(code) if *code == SqlState::UNDEFINED_FUNCTION && with_lock => with_lock = false,
            // Somebody else was quicker with the same.
            Some(code)
                if [
                    SqlState::UNIQUE_VIOLATION,
                    SqlState::DUPLICATE_TABLE,
                    SqlState::DUPLICATE_SCHEMA,
                    SqlState::DUPLICATE_OBJECT,
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::INTERNAL_ERROR,
                ]
                .contains(code)
                    && Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => return Err(shared.error_of(error)),
        }
    }
}

fn check(shared: &Shared, found: &Found) -> Result<(), StoreError> {
    match found {
        Found::Version(found) if *found > VERSION => {
            Err(StoreError::Newer { store: shared.location.clone(), found: *found, known: VERSION })
        }
        Found::Foreign => Err(StoreError::Damaged {
            store: shared.location.clone(),
            message: format!(
                "schema {:?} has tables named hapax_… that are not hapax's; they are untouched: give another schema by ?schema=NAME",
                shared.options.schema
            ),
        }),
        Found::Nothing | Found::Version(_) => Ok(()),
    }
}

async fn look(shared: &Shared, session: &Session) -> Result<Found, Failed> {
    let sql = fill("SELECT value FROM @meta WHERE name = 'version'", &shared.options.schema);
    match session.client.query_typed(&sql, &[]).await {
        Ok(rows) => Ok(match rows.first().map(|row| row.try_get::<_, i64>(0)) {
            Some(Ok(version)) if version >= 0 => Found::Version(version),
            _ => Found::Foreign,
        }),
        Err(error) => match error.code() {
            Some(code) if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME => {
                Ok(Found::Nothing)
            }
            Some(code) if *code == SqlState::UNDEFINED_COLUMN => Ok(Found::Foreign),
            _ => Err(error.into()),
        },
    }
}

async fn migrate(shared: &Arc<Shared>, session: &Session, with_lock: bool) -> Result<(), Failed> {
    let schema = &shared.options.schema;
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    if with_lock {
        client.query_typed(&format!("SELECT pg_advisory_xact_lock({LOCK})"), &[]).await?;
    }
    let sql = "SELECT to_regclass('@meta') IS NOT NULL, to_regclass('@records') IS NOT NULL OR to_regclass('@counters') IS NOT NULL,
        EXISTS (SELECT 1 FROM information_schema.schemata WHERE schema_name = $1)";
    let named = [(schema as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::TEXT)];
    let row = client.query_typed_one(&fill(sql, &schema.replace('\'', "''")), &named).await?;
    let (meta, others, has_schema): (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let version = match (meta, others) {
        (true, _) => match look(shared, session).await? {
            Found::Version(version) => version,
            found => {
                check(shared, &found)?;
                return Err(Failed::Again);
            }
        },
        (false, true) => {
            check(shared, &Found::Foreign)?;
            return Err(Failed::Again);
        }
        (false, false) => {
            let mut sql = String::new();
            if !has_schema {
                sql.push_str("CREATE SCHEMA @schema;");
            }
            sql.push_str("CREATE TABLE @meta (name text PRIMARY KEY, value int8 NOT NULL);");
            sql.push_str("INSERT INTO @meta (name, value) VALUES ('version', 0);");
            client.batch_execute(&fill(&sql, schema)).await?;
            0
        }
    };
    check(shared, &Found::Version(version))?;
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        client.batch_execute(&fill(step, schema)).await?;
    }
    let done = format!("UPDATE @meta SET value = {VERSION} WHERE name = 'version'; COMMIT");
    client.batch_execute(&fill(&done, schema)).await?;
    if version < VERSION {
        tracing::info!(store = %shared.location, from = version, to = VERSION, "tables made or brought up to date");
    }
    Ok(())
}
