//! What servers and connections say, in the words of [`StoreError`].
//!
//! Invariants: a failure is [`Failure::Unsent`] only when no server can have done anything; no text here holds a
//! password, since none is ever put into one and what servers and libraries say does not repeat them.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::StoreError;

/// Why a request was not answered.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// It never reached a server, or a server refused it unread: try again.
    Unsent(String),
    /// The connection broke: it may have been done.
    Unknown(String),
    /// A server answered that it will not do it; trying again is of no use.
    Refused(Refusal),
}

/// A refusal that stands.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    OutOfMemory(String),
    /// The write was made, and fewer copies than wanted confirmed it in time.
    NotCopied(String),
    Other(String),
}

impl Failure {
    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::Refused(Refusal::Other(message.into()))
    }

    /// What the caller is told at last.
    pub(super) fn into_store(self, store: &str, may_be_done: bool, limit: Duration) -> StoreError {
        let store = store.to_string();
        match self {
            // Refused this time; before, it may have been done.
            Self::Refused(Refusal::OutOfMemory(message) | Refusal::Other(message)) if may_be_done => {
                StoreError::AnswerLost { store, message }
            }
            Self::Refused(Refusal::OutOfMemory(said)) => StoreError::Full {
                store,
                message: format!(
                    "the server has reached its maxmemory ({said}); raise it, or let records expire sooner"
                ),
            },
            Self::Refused(Refusal::NotCopied(message)) => StoreError::AnswerLost { store, message },
            Self::Refused(Refusal::Other(message)) => StoreError::Unavailable { store, message },
            Self::Unknown(message) => StoreError::AnswerLost { store, message: within(&message, limit) },
            Self::Unsent(message) if may_be_done => StoreError::AnswerLost { store, message: within(&message, limit) },
            Self::Unsent(message) => StoreError::Unavailable { store, message: within(&message, limit) },
        }
    }
}

fn within(message: &str, limit: Duration) -> String {
    format!("{message}; tried for {limit:?} (command_timeout)")
}

/// A cause of an answer that is worth another try elsewhere or later; the request was not done.
pub(super) fn is_passing(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
        ),
        // A script of somebody else's runs and runs; too few replicas; a replica that was cut off and is primary no more.
        ErrorKind::Extension => matches!(error.code(), Some("BUSY" | "NOREPLICAS" | "UNKILLABLE" | "UNBLOCKED")),
        _ => false,
    }
}

/// What a server's error means for the request that got it.
pub(super) fn answered(error: &RedisError) -> Failure {
    let said = said(error);
    if is_passing(error) {
        return Failure::Unsent(said);
    }
    match (error.code(), error.kind()) {
        (Some("OOM"), _) => Failure::Refused(Refusal::OutOfMemory(said)),
        (Some("NOAUTH" | "WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => Failure::other(format!(
            "the server does not accept the user or password ({said}); check them in the address, percent-encoded"
        )),
        (_, ErrorKind::Server(ServerErrorKind::NoPerm)) => Failure::other(format!(
            "the user may not do what hapax needs ({said}); give it the rights that docs/stores.md lists"
        )),
        (_, ErrorKind::Server(ServerErrorKind::CrossSlot)) => Failure::other(said),
        (_, ErrorKind::Io) => Failure::Unknown(said),
        (_, ErrorKind::Parse) => Failure::Unknown(not_redis(&said)),
        _ if said.contains("OOM command not allowed") => Failure::Refused(Refusal::OutOfMemory(said)),
        _ if said.contains("MISCONF") => Failure::other(format!(
            "the server refuses writes since it cannot save its data ({said}); see its log and its disk"
        )),
        _ => Failure::other(said),
    }
}

/// Why a connection could not be made.
pub(super) fn connecting(address: &str, error: &RedisError) -> Failure {
    let said = said(error);
    if error.is_connection_refusal() {
        return Failure::Unsent(format!("no server answers at {address} ({said}); start it, or check the address"));
    }
    if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) || error.kind() == ErrorKind::AuthenticationFailed {
        return Failure::other(format!(
            "{address} does not accept the user or password ({said}); check them in the address, percent-encoded"
        ));
    }
    if said.contains("DB index") || said.contains("database") || said.contains("SELECT") {
        return Failure::other(format!(
            "{address} has no such database ({said}); give another number in the address, or raise the server's `databases`"
        ));
    }
    if is_passing(error) {
        return Failure::Unsent(format!("{address} is not ready ({said})"));
    }
    if said.contains("certificate") || said.contains("CertificateRequired") {
        return Failure::other(format!(
            "the certificate of {address} is not trusted ({said}); give its authority with tls_ca=FILE and the host name that it names"
        ));
    }
    if said.contains("InvalidContentType") || said.contains("corrupt message") {
        return Failure::other(format!("{address} does not speak TLS ({said}); give redis: in place of rediss:"));
    }
    if error.is_connection_dropped() {
        return Failure::Unsent(format!(
            "{address} cut the connection ({said}); if it wants TLS, give rediss: in place of redis:"
        ));
    }
    match error.kind() {
        ErrorKind::Io => Failure::Unsent(format!("{address} cannot be reached ({said})")),
        ErrorKind::Parse => Failure::other(format!("{address}: {}", not_redis(&said))),
        ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::NoPerm) => {
            Failure::other(format!("{address} refuses the connection ({said})"))
        }
        _ => Failure::Unsent(format!("{address} cannot be reached ({said})")),
    }
}

fn not_redis(said: &str) -> String {
    format!(
        "what answers there does not speak Redis's protocol ({said}); check the address, and whether it wants TLS (rediss:)"
    )
}

/// The error in one line of bounded length.
pub(super) fn said(error: &RedisError) -> String {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_string(),
        _ => error.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
