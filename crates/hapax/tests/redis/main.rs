//! The `redis:` store against real servers, which these tests start and stop themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod answers;
mod clocks;
mod common;
mod conformance;
mod errors;
mod index;
mod outages;
mod smoke;
#[cfg(feature = "redis-tls")]
mod tls;
mod waiting;
