//! What hapax is fuzzed for: a function per target, each of which takes any
//! bytes and panics on a finding.
//!
//! `fuzz/` at the root hands them what libFuzzer makes up (`cargo xtask fuzz`);
//! the tests of this crate hand them the corpora that were found so. Invariant:
//! a function's verdict depends on its bytes alone, so that a finding repeats.
#![forbid(unsafe_code)]
// A panic is how a finding is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod api;
mod canonical;
mod damage;
mod headers;
mod identity;
mod key;
mod request;
mod settings;
mod stored;
mod urls;

/// A target: its name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("key", key::fuzz),
    ("canonical", canonical::fuzz),
    ("identity", identity::fuzz),
    ("units", settings::units),
    ("settings", settings::files),
    ("store_url", urls::fuzz),
    ("stored", stored::fuzz),
    ("headers", headers::fuzz),
    ("api", api::fuzz),
    ("damage", damage::fuzz),
];

/// Runs the target of this name.
///
/// # Panics
/// On a finding, and when there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("there is no target {name:?}"));
    target(data);
}

/// The first part of the bytes up to `end`, and what is behind it.
fn until(data: &[u8], end: u8) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == end) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// Runs a future to its end on a runtime of its own.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
