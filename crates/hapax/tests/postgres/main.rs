//! The PostgreSQL store on real servers.

mod common;
mod smoke;
