//! Where a Redis is, and how it is talked to: the URL and its options.
//!
//! Invariant: a password is in no error, no log, no `Debug` and no location.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::StoreError;

/// The options that a URL may carry.
const OPTIONS: &str = "prefix, connections, connect_timeout, command_timeout, wait_replicas, wait_timeout, waitaof, \
                       tls_ca, tls_cert, tls_key, sentinel_username, sentinel_password";

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How the servers are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// One server, or whatever stands at one address.
    Single(Address),
    /// A primary that Sentinels know by this name.
    Sentinel { sentinels: Vec<Address>, primary: String },
    /// A cluster, of which these are some nodes.
    Cluster(Vec<Address>),
}

/// Who a connection says it is.
#[derive(Clone, Default)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.password.is_some() { "Login(hidden)" } else { "Login(none)" })
    }
}

/// TLS, if the scheme says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) on: bool,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// What a write waits for beyond the primary's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) replicas: u32,
    pub(super) aof: bool,
    pub(super) limit: Duration,
}

impl Wait {
    pub(super) fn is_wanted(&self) -> bool {
        self.replicas > 0 || self.aof
    }
}

/// Where a [`RedisStore`](super::RedisStore) is and how it is talked to.
///
/// | option | default | |
/// |---|---|---|
/// | `prefix` | `hapax` | every key begins with it |
/// | `connections` | 1 | to each server, 1 to 64 |
/// | `connect_timeout` | `2s` | for one try to connect |
/// | `command_timeout` | `5s` | for one request, reconnection and repetition included |
/// | `wait_replicas` | 0 | a write is answered when this many replicas have it (`WAIT`) |
/// | `waitaof` | 0 | 1: a write is answered when it is synced to the append-only file (`WAITAOF`, Redis 7.2) |
/// | `wait_timeout` | `1s` | for either |
/// | `tls_ca`, `tls_cert`, `tls_key` | the system's roots, none | PEM files, with `rediss:` |
/// | `sentinel_username`, `sentinel_password` | none | for the Sentinels themselves |
#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub(super) mode: Mode,
    pub(super) login: Login,
    pub(super) sentinel_login: Login,
    pub(super) database: i64,
    pub(super) tls: Tls,
    pub(super) prefix: String,
    pub(super) connections: usize,
    pub(super) connect_timeout: Duration,
    pub(super) command_timeout: Duration,
    pub(super) wait: Wait,
}

impl RedisOptions {
    /// Reads a URL, a `rediss…` one being the same over TLS:
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`
    /// - `redis+sentinel://[[user]:password@]host[:port],…/primary-name[/database]`
    /// - `redis+cluster://[[user]:password@]host[:port],…`
    ///
    /// User and password are percent-encoded.
    ///
    /// ```
    /// use hapax::store::redis::RedisOptions;
    ///
    /// assert!(RedisOptions::from_url("redis://localhost/3?command_timeout=500ms").is_ok());
    /// assert!(RedisOptions::from_url("redis+sentinel://s1,s2:26380/orders").is_ok());
    /// assert!(RedisOptions::from_url("redis://localhost?speed=11").is_err());
    /// ```
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] for another scheme, a malformed address, or an unknown option; it never
    /// repeats what could be a password.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        Self::read(url).map_err(|message| StoreError::BadRequest { message })
    }

    fn read(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or(
            "this is no Redis address: give redis://host:port, redis+sentinel://host:port,…/name or redis+cluster://host:port,…",
        )?;
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").unwrap_or("?")),
        };
        if tls && !cfg!(feature = "redis-tls") {
            return Err(format!("{scheme}: needs the cargo feature `redis-tls` of hapax"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The last `@`, since an unencoded password may hold one.
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (read_login(login)?, rest),
            None => (Login::default(), rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let (mode, database) = match kind {
            "" => {
                let [address] = <[Address; 1]>::try_from(addresses(hosts, 6379)?)
                    .map_err(|_| "redis: takes one host; for several give redis+cluster: or redis+sentinel:")?;
                (Mode::Single(address), path)
            }
            "+cluster" => {
                if !matches!(path, "" | "0") {
                    return Err("a Redis cluster has database 0 only: leave the path out".into());
                }
                (Mode::Cluster(addresses(hosts, 6379)?), "")
            }
            "+sentinel" => {
                let (primary, database) = path.split_once('/').unwrap_or((path, ""));
                if primary.is_empty() {
                    return Err("redis+sentinel: needs the primary's name: redis+sentinel://host:port,…/name".into());
                }
                let primary = decode(primary)?;
                (Mode::Sentinel { sentinels: addresses(hosts, 26379)?, primary }, database)
            }
            _ => {
                return Err(format!(
                    "{scheme:?} is no scheme of Redis: there are redis, redis+sentinel, redis+cluster, and rediss… for TLS"
                ));
            }
        };
        let database = match database {
            "" => 0,
            text => text
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| format!("{text:?} is no database: give a number, as in redis://host:6379/0"))?,
        };
        let mut options = Self {
            mode,
            login,
            sentinel_login: Login::default(),
            database,
            tls: Tls { on: tls, ..Tls::default() },
            prefix: "hapax".into(),
            connections: 1,
            connect_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(5),
            wait: Wait { limit: Duration::from_secs(1), ..Wait::default() },
        };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(name, &decode(value)?)?;
        }
        options.check()?;
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "prefix" => self.prefix = value.into(),
            "connections" => self.connections = number(name, value, 1, 64)? as usize,
            "connect_timeout" => self.connect_timeout = duration(name, value)?,
            "command_timeout" => self.command_timeout = duration(name, value)?,
            "wait_replicas" => self.wait.replicas = number(name, value, 0, 16)?,
            "wait_timeout" => self.wait.limit = duration(name, value)?,
            "waitaof" => self.wait.aof = number(name, value, 0, 1)? == 1,
            "tls_ca" => self.tls.ca = Some(value.into()),
            "tls_cert" => self.tls.cert = Some(value.into()),
            "tls_key" => self.tls.key = Some(value.into()),
            "sentinel_username" => self.sentinel_login.username = Some(value.into()),
            "sentinel_password" => self.sentinel_login.password = Some(value.into()),
            _ => return Err(format!("{name:?} is no option of a Redis store; there are {OPTIONS}")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let visible = self.prefix.bytes().all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}');
        if self.prefix.is_empty() || self.prefix.len() > 64 || !visible {
            return Err("prefix takes 1 to 64 visible ASCII characters without braces".into());
        }
        if self.wait.is_wanted() && self.wait.limit * 2 > self.command_timeout {
            return Err(format!(
                "wait_timeout is {:?} and must be at most half of command_timeout, which is {:?}",
                self.wait.limit, self.command_timeout
            ));
        }
        if !self.tls.on && (self.tls.ca.is_some() || self.tls.cert.is_some() || self.tls.key.is_some()) {
            return Err("tls_ca, tls_cert and tls_key need a rediss: address".into());
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return Err("tls_cert and tls_key go together: give both or none".into());
        }
        if !matches!(self.mode, Mode::Sentinel { .. }) && self.sentinel_login.password.is_some() {
            return Err("sentinel_password needs a redis+sentinel: address".into());
        }
        Ok(())
    }

    /// The address without secrets and options.
    pub(super) fn location(&self) -> String {
        let scheme = if self.tls.on { "rediss" } else { "redis" };
        let list = |all: &[Address]| all.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        match &self.mode {
            Mode::Single(address) => format!("{scheme}://{address}/{}", self.database),
            Mode::Sentinel { sentinels, primary } => {
                format!("{scheme}+sentinel://{}/{primary}/{}", list(sentinels), self.database)
            }
            Mode::Cluster(nodes) => format!("{scheme}+cluster://{}", list(nodes)),
        }
    }
}

fn addresses(hosts: &str, port: u16) -> Result<Vec<Address>, String> {
    let all: Vec<Address> = hosts.split(',').map(|host| address(host, port)).collect::<Result<_, _>>()?;
    if all.len() > 64 { Err("give at most 64 addresses".into()) } else { Ok(all) }
}

/// Reads `host`, `host:port` or `[v6]:port`.
pub(super) fn address(text: &str, default_port: u16) -> Result<Address, String> {
    // What stands in the place of a host may be a password by mistake: it is not repeated.
    let bad =
        || "the address has no proper host: give host:port, and percent-encode the password before it".to_string();
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || b".-_:%".contains(&b);
    if host.is_empty() || host.len() > 253 || !host.bytes().all(good) {
        return Err(bad());
    }
    let port = port.map_or(Ok(default_port), |p| p.parse().map_err(|_| bad()))?;
    Ok(Address { host: host.into(), port })
}

fn read_login(text: &str) -> Result<Login, String> {
    let (username, password) = match text.split_once(':') {
        Some((username, password)) => (username, Some(decode(password)?)),
        None => (text, None),
    };
    let username = decode(username)?;
    Ok(Login { username: (!username.is_empty()).then_some(username), password })
}

fn decode(text: &str) -> Result<String, String> {
    let bad = || "a percent sign must be followed by two hex digits (a percent sign itself is %25)".to_string();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else { return Err(bad()) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| bad())?);
    }
    String::from_utf8(bytes).map_err(|_| "the address is not UTF-8 once decoded".into())
}

fn number(name: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("{name} takes a number from {least} to {most}"))
}

/// `250ms`, `2s` or a bare number of milliseconds; 1 ms to 1 h.
fn duration(name: &str, value: &str) -> Result<Duration, String> {
    let (digits, unit) = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1000),
        (None, None) => (value, 1),
    };
    let millis = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    millis
        .filter(|n| (1..=3_600_000).contains(n))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{name} takes a time such as 250ms or 2s, at most 3600s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_is_read() {
        let single = RedisOptions::from_url("redis://:p%40ss@db.example:6380/2?prefix=app&wait_replicas=1").unwrap();
        assert_eq!(single.location(), "redis://db.example:6380/2");
        assert_eq!(single.login.password.as_deref(), Some("p@ss"));
        assert_eq!((single.wait.replicas, single.prefix.as_str()), (1, "app"));
        let sentinel = RedisOptions::from_url("redis+sentinel://me:pw@a,b:26380/orders/1").unwrap();
        assert_eq!(sentinel.location(), "redis+sentinel://a:26379,b:26380/orders/1");
        let cluster = RedisOptions::from_url("redis+cluster://[::1]:7000,b").unwrap();
        assert_eq!(cluster.location(), "redis+cluster://[::1]:7000,b:6379");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (url, says) in [
            ("redis://h?speed=11", "there are prefix, connections"),
            ("redis://h/x", "is no database"),
            ("redis://h?connections=0", "1 to 64"),
            ("redis://h?command_timeout=5h", "250ms or 2s"),
            ("redis://a,b", "redis+cluster"),
            ("redis+sentinel://a", "primary's name"),
            ("redis+cluster://a/3", "database 0 only"),
            ("rediss+unix://a", if cfg!(feature = "redis-tls") { "is no scheme" } else { "redis-tls" }),
            ("redis://h?tls_ca=x", "need a rediss: address"),
            ("redis://h?wait_replicas=1&wait_timeout=4s", "at most half"),
        ] {
            let error = RedisOptions::from_url(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_nowhere_to_be_read() {
        let secret = "s3cr3t";
        let url = format!("redis+sentinel://u:{secret}@h/name?sentinel_password={secret}");
        let options = RedisOptions::from_url(&url).unwrap();
        assert!(!format!("{options:?} {}", options.location()).contains(secret));
        for bad in
            [format!("redis://u:{secret}/x@h"), format!("redis://{secret}:{secret}"), format!("redis://u:%z{secret}@h")]
        {
            if let Err(error) = RedisOptions::from_url(&bad) {
                assert!(!format!("{error} {error:?}").contains(secret), "{error}");
            }
        }
    }
}
