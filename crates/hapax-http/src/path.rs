//! Keys in paths: percent-encoded as one segment.
//!
//! A generated key holds `%`, `:` and `/`; all of a key's bytes but the
//! unreserved ones of RFC 3986 are encoded, so that it comes back byte for byte.

use std::fmt::Write as _;

use hapax::Key;

/// Whether the key stands for a step in a path, which clients take before they ask, however it is encoded.
pub(crate) fn is_step(key: &Key) -> bool {
    matches!(key.as_str(), "." | "..")
}

/// The key as one segment of a path.
#[must_use]
pub fn encode_key(key: &Key) -> String {
    encode(key.as_str())
}

/// Any text as one segment of a path, or as a value in a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
