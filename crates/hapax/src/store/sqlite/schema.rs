//! The file: how it is opened, what tables it has, and how they came to be.
//!
//! Invariants: a file that is not a hapax store, or of a newer schema, is left
//! as it was; a migration is one transaction, so that many processes may start
//! at once and a crash leaves the old version; every connection syncs as
//! `synchronous = NORMAL` does, so that a checkpoint never overtakes the log.
//!
//! `records` grows at its end and is updated in place, `results` likewise, and
//! apart from it so that completing a record does not make it larger. `hash` is
//! four bytes of the signal in a generated key, then twelve of the SHA-256 of namespace and key: the records of one
//! signal lie together and need no index of their own. `…_tag` are 48-bit
//! hashes of namespace and text: narrow indexes, and the text is compared on
//! reading. `namespaces` counts the records by state, in the transactions that
//! change them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionBehavior};

use super::error::{BUSY_LIMIT, code, store_error};
use crate::store::StoreError;

/// Marks the file as a hapax store ("hpax").
pub(super) const APPLICATION_ID: i32 = 0x6870_6178;

/// `state` as stored. Live states come first: indexes say `state < 2`.
pub(super) const IN_PROGRESS: i64 = 0;
pub(super) const IN_DOUBT: i64 = 1;
pub(super) const COMPLETED: i64 = 2;
pub(super) const FAILED: i64 = 3;

/// Step n takes the schema from version n to n + 1.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta (name, value) VALUES ('epoch', 1);
    CREATE TABLE namespaces (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        live INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE counters (
        namespace INTEGER NOT NULL,
        name TEXT NOT NULL,
        value INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE results (
        id INTEGER PRIMARY KEY,
        executed_at INTEGER NOT NULL,
        duration_ms INTEGER,
        body TEXT NOT NULL
    ) STRICT;
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        attempt BLOB NOT NULL,
        hash BLOB NOT NULL,
        namespace INTEGER NOT NULL,
        expires_at INTEGER,
        lease_until INTEGER,
        lease_steady INTEGER,
        result INTEGER,
        attempts INTEGER NOT NULL,
        presented INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        token BLOB NOT NULL,
        action_tag INTEGER NOT NULL,
        target_tag INTEGER NOT NULL,
        signal_tag INTEGER,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        label TEXT,
        fingerprint BLOB NOT NULL,
        key TEXT NOT NULL,
        signal_id TEXT,
        action_type TEXT NOT NULL,
        target TEXT NOT NULL,
        doubt TEXT,
        tags TEXT,
        params TEXT
    ) STRICT;
    CREATE UNIQUE INDEX records_hash ON records (hash);
    CREATE INDEX records_live ON records (namespace) WHERE state < 2;
    CREATE INDEX records_failed ON records (namespace) WHERE state = 3;
    CREATE INDEX records_expiry ON records (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX records_namespace ON records (namespace);
    CREATE INDEX records_action ON records (action_tag);
    CREATE INDEX records_target ON records (target_tag);
    CREATE INDEX records_signal ON records (signal_tag) WHERE signal_tag IS NOT NULL;
"];

/// The newest schema version that this hapax knows.
pub(super) fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Kept while the file is made: closing a descriptor of it drops this process's
/// POSIX locks on it, so no other handle may have taken any yet.
static CREATION: Mutex<()> = Mutex::new(());

fn unavailable(location: &str, message: String) -> StoreError {
    StoreError::Unavailable { store: location.to_string(), message }
}

/// Opens or makes the store at `path` and brings its schema up to date.
pub(super) fn open(path: &Path, location: &str) -> Result<(Connection, PathBuf), StoreError> {
    if path.is_dir() {
        return Err(unavailable(location, "it is a directory; give the path of a file".into()));
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_dir(parent)
            .map_err(|e| unavailable(location, format!("its directory {} cannot be made: {e}", parent.display())))?;
    }
    let guard = CREATION.lock();
    make_file(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full { store: location.to_string(), message: e.to_string() },
        _ => unavailable(location, format!("the file cannot be made: {e}; check who may write in that directory")),
    })?;
    let conn = connect(path, location)?;
    drop(guard);
    let mut conn = conn;
    // SQLite takes a file of one byte for an empty one, and would write over it.
    if fs::metadata(path).is_ok_and(|file| file.len() == 1) {
        return Err(not_ours(location));
    }
    {
        // One snapshot for all that is read: between two of them another process may make the store.
        let snapshot = conn.unchecked_transaction().map_err(|e| store_error(location, &e))?;
        check(&snapshot, location)?;
    }
    use_wal(&conn, location)?;
    migrate(&mut conn, location)?;
    let real = conn.path().map_or_else(|| path.to_path_buf(), PathBuf::from);
    Ok((conn, real))
}

fn make_dir(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes an empty file that only its owner may read, unless there is one.
fn make_file(path: &Path) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// One more connection to a store that is open.
pub(super) fn connect(path: &Path, location: &str) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |e: rusqlite::Error| store_error(location, &e);
    let mut conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Nothing is read yet: this is what the operating system said.
    let refused = conn.is_readonly(MAIN_DB).map_err(failed)?;
    wait_when_busy(&mut conn, BUSY_LIMIT).map_err(failed)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
    // Negative: KiB. The indexes' inner pages and hot leaves of a million records.
    conn.pragma_update(None, "cache_size", -16_384).map_err(failed)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(failed)?;
    conn.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
    // The size of the cache has read the header by now.
    if !refused && conn.is_readonly(MAIN_DB).map_err(failed)? {
        return Err(StoreError::Damaged {
            store: location.to_string(),
            message:
                "its header asks for a newer SQLite to write it: it is damaged, or something other than hapax has \
                      changed it; nothing was changed: keep a copy, and use one from before"
                    .into(),
        });
    }
    Ok(conn)
}

/// SQLite's own back-off naps up to 100 ms; other writers hold the lock for one.
pub(super) fn wait_when_busy(conn: &mut Connection, limit: Duration) -> rusqlite::Result<()> {
    let mut since = Instant::now();
    conn.busy_handler(Some(move |tries: i32| {
        if tries == 0 {
            since = Instant::now();
        }
        std::thread::sleep(if tries < 10 { Duration::from_micros(100) } else { Duration::from_millis(1) });
        since.elapsed() < limit
    }))
}

fn number(conn: &Connection, sql: &str) -> rusqlite::Result<i64> {
    conn.query_row(sql, [], |row| row.get(0))
}

/// That the file is empty or a hapax store of a known version. Writes nothing.
fn check(conn: &Connection, location: &str) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| store_error(location, &e);
    let id = number(conn, "PRAGMA application_id").map_err(failed)?;
    let version = number(conn, "PRAGMA user_version").map_err(failed)?;
    if id == i64::from(APPLICATION_ID) {
        return newer(location, version);
    }
    let tables = number(conn, "SELECT count(*) FROM sqlite_schema").map_err(failed)?;
    if id != 0 || version != 0 || tables != 0 {
        return Err(not_ours(location));
    }
    Ok(())
}

fn not_ours(location: &str) -> StoreError {
    StoreError::Damaged {
        store: location.to_string(),
        message: "it is another program's file, not a hapax store; it was left as it is: give another path".into(),
    }
}

fn newer(location: &str, found: i64) -> Result<(), StoreError> {
    let known = known_version();
    if found > known {
        return Err(StoreError::Newer { store: location.to_string(), found, known });
    }
    Ok(())
}

/// Switches to the write-ahead log, which needs the file for itself for a moment.
fn use_wal(conn: &Connection, location: &str) -> Result<(), StoreError> {
    let since = Instant::now();
    loop {
        let mode = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(unavailable(
                    location,
                    format!(
                        "its file system has no shared memory for SQLite's write-ahead log (journal mode {mode}); put it on a local disk"
                    ),
                ));
            }
            Err(e) if code(&e) == Some(rusqlite::ErrorCode::DatabaseBusy) && since.elapsed() < BUSY_LIMIT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(store_error(location, &e)),
        }
    }
}

fn migrate(conn: &mut Connection, location: &str) -> Result<(), StoreError> {
    migrate_by(conn, location, MIGRATIONS)
}

fn migrate_by(conn: &mut Connection, location: &str, steps: &[&str]) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| store_error(location, &e);
    let newest = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    if number(conn, "PRAGMA user_version").map_err(failed)? == newest {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Again, now that nobody else can write: another process may have been first.
    check(&tx, location)?;
    let version = number(&tx, "PRAGMA user_version").map_err(failed)?;
    for step in steps.iter().skip(usize::try_from(version).unwrap_or(0)) {
        tx.execute_batch(step).map_err(failed)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    tx.pragma_update(None, "user_version", newest).map_err(failed)?;
    tx.commit().map_err(failed)?;
    tracing::debug!(store = location, from = version, to = newest, "schema is up to date");
    Ok(())
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
