//! hapax over HTTP.
//!
//! - [`ApiServer`]: the library for callers in any language (`hapax serve`).
//! - [`HttpStore`]: a server as the store of a manager elsewhere.
//! - [`ProxyServer`]: the layer in front of any HTTP API (`hapax proxy`).
//! - [`IdempotencyLayer`]: the `Idempotency-Key` header for any tower service.
#![forbid(unsafe_code)]

mod access;
mod api;
mod app;
mod assets;
mod client;
mod config;
mod docs;
mod eager;
mod events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod layer;
mod metrics;
mod observe;
pub mod openapi;
mod overview;
pub mod path;
mod problem;
pub mod proxy;
mod proxy_server;
mod router;
mod schema;
mod serve;
mod server;
mod stall;
mod streams;
pub mod telemetry;
mod timed;
mod timer;
mod tls;
pub mod units;

pub use access::{Role, TokenHash};
pub use client::{HttpStore, Told};
pub use config::{
    DEFAULT_LISTEN, EncryptionConfig, EncryptionKey, Limits, PolicyConfig, ServeConfig, TlsConfig, TokenConfig,
};
pub use layer::{Fate, Fates, Idempotency, IdempotencyLayer, IdempotencyService, KeySource, Scope};
pub use problem::{Kind, Problem, REPLAYED};
pub use proxy_server::{ProxyConfig, ProxyReloader, ProxyServer};
pub use serve::{ApiServer, Reloader, ServeError};
