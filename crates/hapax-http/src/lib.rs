//! hapax over HTTP.
//!
//! - [`ApiServer`]: the library for callers in any language (`hapax serve`).
#![forbid(unsafe_code)]

mod access;
mod api;
mod app;
mod assets;
mod config;
mod docs;
mod events;
mod metrics;
pub mod openapi;
pub mod path;
mod problem;
mod router;
mod schema;
mod serve;
mod server;
mod stall;
mod timed;
mod tls;
pub mod units;

pub use access::{Role, TokenHash};
pub use config::{DEFAULT_LISTEN, Limits, PolicyConfig, ServeConfig, TlsConfig, TokenConfig};
pub use problem::{Kind, Problem, REPLAYED};
pub use serve::{ApiServer, Reloader, ServeError};
