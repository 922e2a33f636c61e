//! A server that the tests of this binary share, a database for each.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hapax::Hapax;
use hapax::store::postgres::{PostgresOptions, PostgresStore};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};

/// The shared server.
pub fn server() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(|| PostgresServer::start(Disk::Fast, Tls::Off).unwrap())
}

/// An empty database of the shared server: its name.
pub fn database() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    server().create_database(&name).unwrap();
    name
}

/// An open store.
pub async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(PostgresOptions::from_url(url).unwrap()).await.unwrap()
}

/// A manager on the store at `url`.
pub async fn manager(url: &str) -> Hapax {
    Hapax::open(url).await.unwrap()
}
