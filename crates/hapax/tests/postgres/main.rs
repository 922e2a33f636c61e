//! The PostgreSQL store on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
mod conformance;
mod in_tx;
mod smoke;
