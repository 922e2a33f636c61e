//! A server that the tests of this binary share, a schema of one database for each.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hapax::Hapax;
use hapax::store::postgres::{PostgresOptions, PostgresStore};
use hapax_servers::postgres::{Disk, PgBouncer, PostgresServer, Tls};

/// The shared server.
pub fn server() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(|| PostgresServer::start(Disk::Fast, Tls::Off).unwrap())
}

/// PgBouncer in front of it.
fn pooler() -> &'static PgBouncer {
    static POOLER: OnceLock<PgBouncer> = OnceLock::new();
    POOLER.get_or_init(|| PgBouncer::start(server(), 20).unwrap())
}

/// A schema that nobody has used.
pub fn schema() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", NUMBER.fetch_add(1, Ordering::SeqCst))
}

/// The address of an empty schema of the shared server.
pub fn url() -> String {
    format!("{}?schema={}", server().url("postgres"), schema())
}

/// The same through PgBouncer.
pub fn pooled_url() -> String {
    format!("{}?schema={}", pooler().url("postgres"), schema())
}

/// An open store.
pub async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(PostgresOptions::from_url(url).unwrap()).await.unwrap()
}

/// A manager on the store at `url`.
pub async fn manager(url: &str) -> Hapax {
    Hapax::open(url).await.unwrap()
}

/// A manager on the store at `url` with more options.
pub async fn patched(url: &str, options: &str) -> Hapax {
    manager(&format!("{url}&{options}")).await
}

/// The same address by another port.
pub fn through(url: &str, port: u16) -> String {
    let (before, after) = url.split_once("127.0.0.1:").unwrap();
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}127.0.0.1:{port}{after}")
}
