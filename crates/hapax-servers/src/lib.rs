//! Private servers for tests: each on a free port of the loopback interface,
//! in a directory of its own, gone with the value that stands for it.
//!
//! [`postgres`] sets up PostgreSQL and PgBouncer,
//! [`process`] starts and stops any server, [`proxy`] stands between a client
//! and a server and breaks connections where a test wants it.
//! Blocking on purpose: a test may use any runtime, or none.
#![forbid(unsafe_code)]

pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
