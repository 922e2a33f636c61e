//! What SQLite says, in the words of [`StoreError`].
//!
//! Invariant: `Full` and `Busy` are said only when the write did not happen; a
//! write of which that is not sure is `AnswerLost`.

use std::time::Duration;

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// How long an operation waits for other processes' locks.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// Why an operation of a batch failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// SQLite could not: the whole batch is undone and its operations are tried one by one.
    Sql(rusqlite::Error),
    /// The store's own rules: nothing of this operation was written, the batch goes on.
    Store(StoreError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failed {
    pub(super) fn into_store(self, location: &str) -> StoreError {
        match self {
            Self::Sql(error) => store_error(location, &error),
            Self::Store(error) => error,
        }
    }
}

pub(super) fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    failure(error).map(|failure| failure.code)
}

/// What SQLite itself answered, when it ran a statement or read its text.
fn failure(error: &rusqlite::Error) -> Option<&rusqlite::ffi::Error> {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) | rusqlite::Error::SqlInputError { error: failure, .. } => {
            Some(failure)
        }
        _ => None,
    }
}

/// The error of an operation that did not happen.
pub(super) fn store_error(location: &str, error: &rusqlite::Error) -> StoreError {
    let store = location.to_string();
    let said = match error {
        // Without the statement, which is long and ours.
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        _ => error.to_string(),
    };
    match code(error) {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { store, waited: BUSY_LIMIT },
        Some(ErrorCode::DiskFull) => StoreError::Full { store, message: said },
        // The file beside it that processes share could not grow.
        _ if extended(error) == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => {
            StoreError::Full { store, message: format!("{said} (its -shm file cannot grow)") }
        }
        Some(ErrorCode::NotADatabase) => StoreError::Damaged {
            store,
            message: format!(
                "it is not a SQLite database ({said}); nothing was changed: give another path, or move the file away"
            ),
        },
        Some(ErrorCode::DatabaseCorrupt) => damaged(store, &said),
        Some(ErrorCode::CannotOpen) => StoreError::Unavailable {
            store,
            message: format!("the file cannot be opened ({said}); check the path and who may read and write it"),
        },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::Unavailable {
            store,
            message: format!("the file or its directory cannot be written ({said}); check who may write there"),
        },
        None if is_foreign(error) => damaged(store, &said),
        // The statements are always the same, and keep to the schema: what is wrong is in the file.
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => damaged(store, &said),
        _ if is_generic(error) => damaged(store, &said),
        _ => StoreError::Unavailable { store, message: said },
    }
}

fn damaged(store: String, said: &str) -> StoreError {
    let message =
        format!("the file is damaged ({said}); keep a copy, try `sqlite3 FILE .recover`, and open the recovered file");
    StoreError::Damaged { store, message }
}

/// `SQLITE_ERROR`: an unsupported file format, no such table, and the like.
fn is_generic(error: &rusqlite::Error) -> bool {
    extended(error) == Some(rusqlite::ffi::SQLITE_ERROR)
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    failure(error).map(|failure| failure.extended_code)
}

/// Whether SQLite found its pages in order, and in them what this store never writes: a row that is always there is
/// gone, or a value is of another type.
fn is_foreign(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
    )
}

/// The error of an operation whose commit failed: only a full disk or a lock
/// is sure to have undone it.
pub(super) fn commit_error(location: &str, error: &rusqlite::Error) -> StoreError {
    match store_error(location, error) {
        undone @ StoreError::Busy { .. } => undone,
        // The log may have it all when what leads to it has no room.
        undone @ StoreError::Full { .. } if code(error) == Some(ErrorCode::DiskFull) => undone,
        // What helps is the same as when it is sure that nothing was written.
        StoreError::Damaged { store, message } | StoreError::Unavailable { store, message } => {
            StoreError::AnswerLost { store, message }
        }
        other => StoreError::AnswerLost { store: location.to_string(), message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn no_room_for_what_processes_share_is_no_broken_disk_and_no_sure_undoing() {
        let failed = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let shm = failed(ffi::SQLITE_IOERR_SHMSIZE);
        assert!(matches!(store_error("s", &shm), StoreError::Full { .. }));
        assert!(matches!(commit_error("s", &shm), StoreError::AnswerLost { .. }));
        assert!(matches!(commit_error("s", &failed(ffi::SQLITE_FULL)), StoreError::Full { .. }));
        assert!(matches!(store_error("s", &failed(ffi::SQLITE_IOERR_READ)), StoreError::Unavailable { .. }));
    }
}
