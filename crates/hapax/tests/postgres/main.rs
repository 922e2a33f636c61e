//! The PostgreSQL store on real servers: each private to this run, on loopback, gone with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
mod conformance;
mod faults;
mod in_tx;
mod opening;
mod smoke;
mod together;
