//! What the server and the client say, in the user's words.
//!
//! Invariants: no detail of a row is repeated (PostgreSQL's `DETAIL` may hold
//! params or results), and no piece of an address but the location.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server or the connection said so.
    Sql(Error),
    /// Something that is decided.
    Store(StoreError),
    /// The row changed between two statements: do the step again.
    Again,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What an error of the client means for the statement that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Rolled back; the same statement may succeed now.
    RolledBack,
    /// The connection is lost or worthless; the statement may have been carried out.
    Gone,
    /// Rolled back, and it would fail again.
    Refused,
}

pub(super) fn meaning(error: &Error) -> Meaning {
    let Some(db) = error.as_db_error() else {
        // Of the client's own errors, these concern one statement alone.
        let local = error.to_string();
        let one_statement = local.starts_with("error serializing") || local.starts_with("error deserializing");
        return if one_statement { Meaning::Refused } else { Meaning::Gone };
    };
    let code = db.code();
    let class = code.code().get(..2).unwrap_or_default();
    if class == "40" || *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::QUERY_CANCELED {
        return Meaning::RolledBack;
    }
    // Connection errors, operator intervention, a server that has become read-only (a failover), and what
    // PgBouncer says when it has no server (its own errors come as protocol violations).
    let gone = matches!(class, "08" | "57" | "58")
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
        || *code == SqlState::TOO_MANY_CONNECTIONS
        || db.severity() == "FATAL"
        || db.severity() == "PANIC";
    if gone { Meaning::Gone } else { Meaning::Refused }
}

/// The chain of causes below a client's error, without the client's own words, for connection errors.
fn cause(error: &Error) -> String {
    let mut text = String::new();
    let mut at = error.source();
    while let Some(source) = at {
        let said = source.to_string();
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        at = source.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// The error of a statement that was refused, or of a server that is not there.
pub(super) fn store_error(location: &str, error: &Error) -> StoreError {
    let store = location.to_string();
    let Some(db) = error.as_db_error() else {
        return StoreError::Unavailable { store, message: connection_text(error) };
    };
    let said = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    let class = db.code().code().get(..2).unwrap_or_default();
    match db.code() {
        &SqlState::DISK_FULL => StoreError::Full { store, message: said },
        &SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN | &SqlState::INVALID_SCHEMA_NAME => {
            StoreError::Damaged {
                store,
                message: format!(
                    "{said}; its tables hapax_… were dropped or changed: open the store anew to make them again"
                ),
            }
        }
        _ if class == "XX" => StoreError::Damaged { store, message: format!("the server reports damage: {said}") },
        code => {
            let remedy = match *code {
                SqlState::INVALID_PASSWORD => "; check the user and the password of the address (or PGPASSWORD)",
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                    "; check the user of the address, and whether pg_hba.conf lets it in from here (perhaps only with sslmode=require)"
                }
                SqlState::INVALID_CATALOG_NAME => "; create the database, or correct its name in the address",
                SqlState::INSUFFICIENT_PRIVILEGE => {
                    "; grant the user CREATE on the schema, or give another by ?schema=NAME"
                }
                SqlState::TOO_MANY_CONNECTIONS => "; raise max_connections, or put a pooler in front",
                SqlState::CANNOT_CONNECT_NOW => "; it is starting up or shutting down: try again in a moment",
                SqlState::READ_ONLY_SQL_TRANSACTION => {
                    "; this is a standby: give the primary, or all hosts with ?target_session_attrs=read-write"
                }
                _ if class == "08" || class == "57" => "; try again in a moment",
                _ => "",
            };
            StoreError::Unavailable { store, message: format!("{said}{remedy}") }
        }
    }
}

fn connection_text(error: &Error) -> String {
    let why = cause(error);
    let lower = why.to_lowercase();
    let remedy = if lower.contains("certificate") {
        "the server's certificate was not accepted: give its authority by sslrootcert=FILE, or the host name that it is for"
    } else if lower.contains("does not support tls") || lower.contains("server does not support") {
        "the server speaks no TLS: turn it on there, or give sslmode=prefer or sslmode=disable"
    } else if lower.contains("password missing") {
        "the server wants a password: give one in the address or in PGPASSWORD"
    } else {
        "check that the server is up and can be reached"
    };
    format!("{why}; {remedy}")
}

/// Of a host that cannot be reached.
pub(super) fn io_error(location: &str, host: &str, error: &io::Error) -> StoreError {
    let remedy = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there: start the server, or correct host and port in the address"
        }
        // What the system's resolver says has no kind of its own.
        io::ErrorKind::NotFound | io::ErrorKind::Other => {
            "correct the host in the address, or the network's name service"
        }
        io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            "check that the server is up and can be reached"
        }
        _ => "correct the host in the address, or check that it can be reached",
    };
    StoreError::Unavailable {
        store: location.to_string(),
        message: format!("cannot connect to {host}: {error}; {remedy}"),
    }
}

pub(super) fn timed_out(location: &str, limit: std::time::Duration) -> StoreError {
    StoreError::Unavailable {
        store: location.to_string(),
        message: format!("no answer within {limit:?}; check that the server is up and can be reached"),
    }
}

/// Of a write that may have been made.
pub(super) fn answer_lost(location: &str, why: &StoreError) -> StoreError {
    let message = match why {
        StoreError::Unavailable { message, .. } | StoreError::AnswerLost { message, .. } => message.clone(),
        other => other.to_string(),
    };
    StoreError::AnswerLost { store: location.to_string(), message }
}
