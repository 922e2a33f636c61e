//! The `redis:` store against real servers, which these tests start and stop themselves.

mod common;
mod conformance;
mod smoke;
