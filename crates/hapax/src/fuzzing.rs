//! Doors for the fuzzer, behind the feature `fuzzing`: no part of the interface.

/// Reads what Redis may hold in a record's place.
///
/// # Errors
/// When it is no record.
#[cfg(feature = "redis")]
pub fn redis_record(answer: &[u8]) -> Result<crate::Record, String> {
    crate::store::redis::read_record(answer)
}

/// A text as PostgreSQL would hold it, and what it reads as if it stands there already.
#[cfg(feature = "postgres")]
#[must_use]
pub fn postgres_text(text: &str) -> (String, String) {
    crate::store::postgres::texts(text)
}
