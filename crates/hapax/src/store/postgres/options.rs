//! Where a PostgreSQL store is and how it is kept: the address and its options.
//!
//! Invariant: a password is in the client's configuration and nowhere else:
//! not in the location, not in `Debug`, not in an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::store::StoreError;

/// The options that are read here; others go to the client.
const OWN: &str = "schema, sslmode, sslrootcert, sslcert, sslkey, connections, tx_connections, connect_timeout, \
    command_timeout, prepare, listen_url, synchronous_commit";
/// The options that the client reads.
const CLIENT: [&str; 14] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "target_session_attrs",
];

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verify {
    /// Nothing: the line is encrypted, the server may be anyone.
    Nothing,
    /// That an authority we trust has signed it.
    Authority,
    /// That, and that it is for the host we asked for.
    Full,
}

/// Whether statements are prepared under names, which a pooler in transaction mode does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Prepare {
    /// If the server sees the very connection that was opened here, so that no pooler stands between.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Always: for poolers that know of prepared statements (PgBouncer 1.21 and later, if so configured).
    Always,
}

/// Where a [`PostgresStore`](super::PostgresStore) is and how it is kept.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(super) config: Config,
    pub(super) listen: Option<Config>,
    pub(super) location: String,
    pub(super) schema: String,
    pub(super) verify: Verify,
    pub(super) root_cert: Option<PathBuf>,
    pub(super) client_cert: Option<(PathBuf, PathBuf)>,
    pub(super) connections: usize,
    pub(super) tx_connections: usize,
    pub(super) connect_limit: Duration,
    pub(super) command_limit: Duration,
    pub(super) prepare: Prepare,
    pub(super) synchronous_commit: Option<&'static str>,
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions").field("location", &self.location).finish_non_exhaustive()
    }
}

fn bad(message: impl Into<String>) -> StoreError {
    StoreError::BadRequest { message: message.into() }
}

/// Undoes percent-encoding; a stray `%` stands for itself.
fn decode(text: &str) -> Result<String, StoreError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| bad("an option of the postgres:// address is not UTF-8 once decoded"))
}

fn seconds(name: &str, value: &str) -> Result<Duration, StoreError> {
    match value.parse::<u64>() {
        Ok(n @ 1..=3600) => Ok(Duration::from_secs(n)),
        _ => Err(bad(format!("{name} is a number of seconds from 1 to 3600"))),
    }
}

fn count(name: &str, value: &str, most: usize) -> Result<usize, StoreError> {
    match value.parse::<usize>() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(bad(format!("{name} is a number of connections from 1 to {most}"))),
    }
}

/// Reads the client's part of an address. Its own error might repeat a piece of a password.
fn client_config(url: &str) -> Result<Config, StoreError> {
    let unread = || {
        bad("the postgres:// address cannot be read: give postgres://USER:PASSWORD@HOST:PORT/DATABASE?OPTIONS, \
             and percent-encode what is not a letter or a digit in USER and PASSWORD (`/` is %2F, `@` is %40)")
    };
    // The client ends a password at its first bare `@`, and would take, and show, the rest of it for a host.
    if url.split('?').next().is_some_and(|base| base.matches('@').count() > 1) {
        return Err(unread());
    }
    let mut config = Config::from_str(url).map_err(|_| unread())?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host("localhost");
    }
    if config.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_application_name().is_none() {
        config.application_name("hapax");
    }
    Ok(config)
}

impl PostgresOptions {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?OPTIONS` (or `postgresql://`). Without a
    /// password there, `PGPASSWORD` is taken.
    ///
    /// | option | means | default |
    /// |---|---|---|
    /// | `schema` | where the tables `hapax_…` are; made if absent | `public` |
    /// | `sslmode` | `disable`, `prefer`, `require`, `verify-ca`, `verify-full` | `prefer` |
    /// | `sslrootcert` | a PEM file of the authorities to trust | the system's |
    /// | `sslcert`, `sslkey` | PEM files of the client's certificate and key | none |
    /// | `connections` | the most connections for begins and ends, opened when there is work for them; a few others are opened when needed | 8 |
    /// | `tx_connections` | the most transactions of `execute_in_tx` at once | 8 |
    /// | `connect_timeout` | seconds | 5 |
    /// | `command_timeout` | seconds for an operation, its repetitions after lost connections included | 10 |
    /// | `prepare` | `auto`, `never`, `always`: statements prepared by name | `auto` |
    /// | `listen_url` | a direct connection to `LISTEN` on, when the address is a pooler's | none |
    /// | `synchronous_commit` | `on`, `off`, `local`, `remote_write`, `remote_apply` for this store's commits | the server's |
    ///
    /// Other options (`application_name`, `target_session_attrs`, `keepalives…`) go to the client.
    ///
    /// ```
    /// use hapax::store::postgres::PostgresOptions;
    ///
    /// assert!(PostgresOptions::from_url("postgres://app:secret@db.internal/app?schema=hapax").is_ok());
    /// assert!(PostgresOptions::from_url("postgres://app@db.internal/app?speed=11").is_err());
    /// ```
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] for another scheme, an address that cannot be read or an unknown option.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            return Err(bad("a PostgreSQL address begins with postgres://"));
        };
        let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut own = BTreeMap::new();
        let mut client = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if CLIENT.contains(&name) {
                client.push(pair);
            } else if OWN.split(", ").any(|known| known.trim() == name) {
                own.insert(name, decode(value)?);
            } else {
                // What looks like an option may be a piece of a password with a bare `?` in it.
                let shown =
                    if base.contains('@') { format!("{name:?} is") } else { "there is something that is".into() };
                return Err(bad(format!(
                    "{shown} no option of a postgres:// store; there are {OWN}, {}",
                    CLIENT.join(", ")
                )));
            }
        }
        let config = client_config(&format!("postgres://{base}?{}", client.join("&")))?;
        let mut options = Self {
            location: String::new(),
            config,
            listen: None,
            schema: "public".into(),
            verify: Verify::Nothing,
            root_cert: None,
            client_cert: None,
            connections: 8,
            tx_connections: 8,
            connect_limit: Duration::from_secs(5),
            command_limit: Duration::from_secs(10),
            prepare: Prepare::Auto,
            synchronous_commit: None,
        };
        options.take(own)?;
        options.location = location(&options.config, &options.schema);
        Ok(options)
    }

    fn take(&mut self, mut own: BTreeMap<&str, String>) -> Result<(), StoreError> {
        let (mode, verify) = match own.remove("sslmode").as_deref() {
            None | Some("prefer") => (SslMode::Prefer, Verify::Nothing),
            Some("disable") => (SslMode::Disable, Verify::Nothing),
            Some("require") => (SslMode::Require, Verify::Nothing),
            Some("verify-ca") => (SslMode::Require, Verify::Authority),
            Some("verify-full") => (SslMode::Require, Verify::Full),
            Some(_) => return Err(bad("sslmode is disable, prefer, require, verify-ca or verify-full")),
        };
        self.config.ssl_mode(mode);
        self.verify = verify;
        self.root_cert = own.remove("sslrootcert").map(PathBuf::from);
        if mode == SslMode::Require && verify == Verify::Nothing && self.root_cert.is_some() {
            // As libpq does it: who names an authority wants it looked at.
            self.verify = Verify::Authority;
        }
        self.client_cert = match (own.remove("sslcert"), own.remove("sslkey")) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            _ => return Err(bad("sslcert and sslkey go together: give both")),
        };
        for (name, value) in own {
            match name {
                "schema" => self.schema = schema(value)?,
                "connections" => self.connections = count(name, &value, 64)?,
                "tx_connections" => self.tx_connections = count(name, &value, 1000)?,
                "connect_timeout" => self.connect_limit = seconds(name, &value)?,
                "command_timeout" => self.command_limit = seconds(name, &value)?,
                "prepare" => {
                    self.prepare = match value.as_str() {
                        "auto" => Prepare::Auto,
                        "never" => Prepare::Never,
                        "always" => Prepare::Always,
                        _ => return Err(bad("prepare is auto, never or always")),
                    };
                }
                "synchronous_commit" => {
                    let known = ["on", "off", "local", "remote_write", "remote_apply"];
                    let found = known.into_iter().find(|k| *k == value);
                    self.synchronous_commit =
                        Some(found.ok_or_else(|| bad(format!("synchronous_commit is one of {}", known.join(", "))))?);
                }
                "listen_url" => {
                    let mut config = client_config(&value)?;
                    config.ssl_mode(mode);
                    self.listen = Some(config);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where the store is, without secrets.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }
}

/// A schema's name: what PostgreSQL takes without folding or cutting it.
fn schema(name: String) -> Result<String, StoreError> {
    let fits = !name.is_empty() && name.len() <= 63 && !name.contains(['\0', '"']) && !name.starts_with("pg_");
    if fits {
        Ok(name)
    } else {
        Err(bad("schema is a name of 1 to 63 bytes without quotes that does not begin with pg_"))
    }
}

fn location(config: &Config, schema: &str) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let port = ports.get(i).or_else(|| ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .chain(config.get_hostaddrs().iter().filter(|_| config.get_hosts().is_empty()).map(ToString::to_string))
        .collect();
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    let schema = if schema == "public" { String::new() } else { format!("?schema={schema}") };
    format!("postgres://{}/{database}{schema}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://app:s3cr%2Ft@db1:5433,db2/orders";

    fn error(url: &str) -> String {
        PostgresOptions::from_url(url).unwrap_err().to_string()
    }

    #[test]
    fn a_location_and_a_debug_print_have_no_password() {
        let options = PostgresOptions::from_url(&format!("{URL}?schema=hx&sslmode=require")).unwrap();
        assert_eq!(options.location(), "postgres://db1:5433,db2:5432/orders?schema=hx");
        assert_eq!(options.config.get_password(), Some(&b"s3cr/t"[..]));
        assert!(!format!("{options:?}").contains("s3cr"));
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_repeating_a_password() {
        for url in [
            "postgres://app:s3cret?more@db/x",
            "postgres://app:s3cret/more@db/x",
            "postgres://app:s3cret@db:port/x",
            "postgres://app:s3cret@db/x?speed=11",
            "postgres://app:s3cret@db/x?command_timeout=s3cret",
            "postgres://app:s3cret@db/x?sslmode=s3cret",
            "postgres://app@db/x?listen_url=postgres://a:s3cret%2540%253A@:",
        ] {
            let Err(error) = PostgresOptions::from_url(url) else { continue };
            assert!(!error.to_string().contains("s3cret"), "{url}: {error}");
        }
        for url in [
            "postgres://app:s@cret@db/x",
            "postgres://app:s@c/ret@db/x",
            "postgres://app@db/x?listen_url=postgres://a:s@c@d",
        ] {
            assert!(error(url).contains("`@` is %40"), "{url}: {}", error(url));
        }
        assert!(error("postgres://app@db/x?speed=11").contains("\"speed\""));
        assert!(error("postgres://app@db/x?schema=").contains("schema"));
        assert!(error("mysql://app@db/x").contains("postgres://"));
    }
}
