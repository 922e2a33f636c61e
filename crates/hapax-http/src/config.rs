//! The server's configuration: a TOML file, or defaults.
//!
//! What is wrong in it is an error that names the setting, never skipped. Of
//! tokens it holds hashes, of keys the places where they lie: a copy of the
//! file opens nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::sealed::{KeyRing, SealedStore};
use hapax::store::{OnFull, Store};
use hapax::{Error, PolicyPatch};
use serde::Deserialize;

use crate::access::{Role, TokenHash};
use crate::schema::{DoubtChoice, Kept};
use crate::units::{Keep, Span, Wait};

/// Where the server listens when not told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:4278";

/// How a server behaves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ServeConfig {
    /// Where to listen. Default: [`DEFAULT_LISTEN`]. Fixed until a restart.
    pub listen: SocketAddr,
    /// The store's address. Default: `memory:`. Fixed until a restart.
    pub store: String,
    /// The namespace of callers without a token. Default: `default`.
    pub namespace: String,
    /// The choices for every call.
    pub policy: PolicyConfig,
    /// The most records the store keeps.
    pub max_entries: Option<u64>,
    /// What happens then.
    pub on_full: OnFull,
    /// The largest result that is recorded, in bytes of JSON. Default: 1 MiB.
    pub max_result_bytes: usize,
    /// How often expired records are removed. Default: hourly.
    pub auto_cleanup: Keep,
    /// What is taken in.
    pub limits: Limits,
    /// The certificate, for HTTPS.
    pub tls: Option<TlsConfig>,
    /// The keys that seal results, params and errors at rest. Fixed until a restart.
    pub encryption: Option<EncryptionConfig>,
    /// Who may do what; without any, the loopback may do everything.
    #[serde(rename = "token")]
    pub tokens: Vec<TokenConfig>,
    /// The origins whose pages may read answers. Needs tokens.
    pub cors_origins: Vec<String>,
    /// Answers `/metrics` without a token, for all namespaces; a token is told of its own.
    pub public_metrics: bool,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4278)),
            store: "memory:".into(),
            namespace: "default".into(),
            policy: PolicyConfig::default(),
            max_entries: None,
            on_full: OnFull::Evict,
            max_result_bytes: 1 << 20,
            auto_cleanup: Keep(hapax::Ttl::For(Duration::from_secs(3600))),
            limits: Limits::default(),
            tls: None,
            encryption: None,
            tokens: Vec::new(),
            cors_origins: Vec::new(),
            public_metrics: false,
        }
    }
}

/// The choices for every call; see [`hapax::Policy`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PolicyConfig {
    /// How long results are kept.
    pub ttl: Option<Keep>,
    /// How long a duplicate waits, or `no`.
    pub wait: Option<Wait>,
    /// What happens on a key in doubt.
    pub on_doubt: Option<DoubtChoice>,
    /// How long an attempt may be silent.
    pub lease: Option<Span>,
    /// How much of the params is kept.
    pub keep_params: Option<Kept>,
}

impl PolicyConfig {
    /// As the library takes it.
    #[must_use]
    pub fn patch(&self) -> PolicyPatch {
        let mut patch = PolicyPatch::new();
        patch.ttl = self.ttl.map(|ttl| ttl.0);
        patch.in_flight = self.wait.map(|wait| wait.0);
        patch.on_doubt = self.on_doubt.map(Into::into);
        patch.lease = self.lease.map(|lease| lease.0);
        patch.keep_params = self.keep_params.map(Into::into);
        patch
    }
}

/// What the server takes in, at most.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes in a request's body. Default: 2 MiB.
    pub body_bytes: usize,
    /// How long a body may take to arrive. Default: 30 s.
    pub body_time: Span,
    /// Bytes in a request's head. Default: 64 KiB, at least 8 KiB.
    pub header_bytes: usize,
    /// How long a head may take to arrive, and a connection may be idle. Default: 30 s.
    pub header_time: Span,
    /// How long an answer may wait for its reader to take more of it. Default: 30 s.
    pub write_time: Span,
    /// Connections at a time; more wait to be accepted. Default: 4096.
    pub connections: usize,
    /// How long a call may wait for another's attempt. Default: 5 min.
    pub max_wait: Span,
    /// How long a shutdown waits for what is under way. Default: 30 s.
    pub drain: Span,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            body_bytes: 2 << 20,
            body_time: seconds(30),
            header_bytes: 64 << 10,
            header_time: seconds(30),
            write_time: seconds(30),
            connections: 4096,
            max_wait: seconds(300),
            drain: seconds(30),
        }
    }
}

impl Limits {
    /// Checks every limit against its range.
    ///
    /// # Errors
    /// [`Error::Config`] names the limit.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::Config { message });
        for (name, value, least, most) in [
            ("body_bytes", self.body_bytes, 1 << 10, 128 << 20),
            ("header_bytes", self.header_bytes, 8 << 10, 1 << 20),
            ("connections", self.connections, 1, 1_000_000),
        ] {
            if !(least..=most).contains(&value) {
                return bad(format!("limits.{name} is {value}; it must be {least} to {most}"));
            }
        }
        for (name, Span(value)) in [
            ("body_time", self.body_time),
            ("header_time", self.header_time),
            ("write_time", self.write_time),
            ("max_wait", self.max_wait),
            ("drain", self.drain),
        ] {
            if value < Duration::from_millis(100) || value > Duration::from_secs(24 * 3600) {
                return bad(format!("limits.{name} is {value:?}; it must be 100 ms to 24 h"));
            }
        }
        Ok(())
    }
}

/// Where the certificate lies, as PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate and those that lead to a root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The keys that seal what is at rest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionConfig {
    /// The id of the key that seals; the others open what they sealed before.
    pub current: String,
    /// The keys.
    #[serde(rename = "key")]
    pub keys: Vec<EncryptionKey>,
}

/// Where a key lies: a file that holds 64 hexadecimal digits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionKey {
    /// Its id, which stands beside what it seals.
    pub id: String,
    /// The file, readable by the server alone.
    pub file: PathBuf,
}

impl EncryptionConfig {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that cannot be read, or is missing.
    pub fn ring(&self) -> Result<KeyRing, Error> {
        let bad = |message: String| Error::Config { message: format!("encryption: {message}") };
        let read = |key: &EncryptionKey| -> Result<[u8; 32], Error> {
            let text = std::fs::read_to_string(&key.file)
                .map_err(|e| bad(format!("the file of key {:?} cannot be read: {e}", key.id)))?;
            // Of the same form as a token's hash: 32 bytes in hexadecimal.
            text.trim().parse::<TokenHash>().map(TokenHash::into_bytes).map_err(|_| {
                bad(format!(
                    "the file of key {:?} must hold 64 hexadecimal digits, as `openssl rand -hex 32` prints",
                    key.id
                ))
            })
        };
        let current = self.keys.iter().find(|k| k.id == self.current);
        let current =
            current.ok_or_else(|| bad(format!("there is no key {:?}, which is to be current", self.current)))?;
        let mut ring = KeyRing::new(&current.id, read(current)?)?;
        for key in self.keys.iter().filter(|k| k.id != self.current) {
            ring = ring.and(&key.id, read(key)?)?;
        }
        Ok(ring)
    }

    pub(crate) fn seal(config: Option<&Self>, store: Arc<dyn Store>) -> Result<Arc<dyn Store>, Error> {
        Ok(match config {
            Some(config) => Arc::new(SealedStore::new(store, config.ring()?)),
            None => store,
        })
    }
}

/// A bearer token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Whose it is, for the log.
    pub name: String,
    /// Its SHA-256, as `printf %s TOKEN | sha256sum` prints it.
    pub sha256: TokenHash,
    /// The namespace it opens.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// What it allows.
    pub role: Role,
}

fn default_namespace() -> String {
    "default".into()
}

impl ServeConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting that is unknown or out of its range.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)
            .map_err(|e| Error::Config { message: format!("the configuration cannot be read: {e}") })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`Error::Config`] names the setting and what to do.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::Config { message });
        if self.tokens.is_empty() && !self.listen.ip().is_loopback() {
            return bad(format!(
                "{} is not a loopback address and there are no tokens, so anyone who reaches it could do anything: \
                 listen on 127.0.0.1, or add a [[token]] with name, sha256, namespace and role",
                self.listen
            ));
        }
        if self.tokens.is_empty() && !self.cors_origins.is_empty() {
            return bad("cors_origins needs tokens: without them a page of another origin is never answered".into());
        }
        if let Some(origin) = self.cors_origins.iter().find(|o| !o.contains("://") || o.ends_with('/')) {
            return bad(format!("cors_origins: {origin:?} is no origin; write it like https://console.example.com"));
        }
        for (i, token) in self.tokens.iter().enumerate() {
            if self.tokens.iter().take(i).any(|t| t.sha256 == token.sha256) {
                return bad(format!("the token {:?} stands there twice: give each its own", token.name));
            }
        }
        if self.tokens.len() > 10_000 {
            return bad(format!("there are {} tokens and the limit is 10000", self.tokens.len()));
        }
        self.limits.validate()?;
        let mut config = hapax::Config::default();
        self.apply(&mut config);
        for namespace in self.tokens.iter().map(|t| &t.namespace).chain([&self.namespace]) {
            config.namespace.clone_from(namespace);
            config.validate()?;
        }
        Ok(())
    }

    /// Puts what managers take from here into their configuration.
    pub(crate) fn apply(&self, config: &mut hapax::Config) {
        config.policy = hapax::Policy::default();
        self.policy.patch().apply(&mut config.policy);
        config.max_entries = self.max_entries;
        config.on_full = self.on_full;
        config.max_result_bytes = self.max_result_bytes;
        config.auto_cleanup = match self.auto_cleanup.0 {
            hapax::Ttl::For(every) => Some(every),
            hapax::Ttl::Never => None,
        };
    }

    /// All namespaces that this configuration opens.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        let open = self.tokens.is_empty().then_some(self.namespace.as_str());
        self.tokens.iter().map(|t| t.namespace.as_str()).chain(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_is_not_let_in_without_tokens() {
        let refused = ServeConfig::from_toml("listen = \"0.0.0.0:4278\"").unwrap_err().to_string();
        assert!(refused.contains("no tokens"), "{refused}");
        let hash = TokenHash::of("x");
        let open = format!(
            "listen = \"0.0.0.0:4278\"\n[[token]]\nname = \"ci\"\nsha256 = \"{hash}\"\nnamespace = \"ci\"\nrole = \"write\""
        );
        assert!(ServeConfig::from_toml(&open).is_ok());
        assert!(ServeConfig::from_toml("listen = \"[::1]:4278\"").is_ok());
    }

    #[test]
    fn what_is_misspelt_or_out_of_range_is_an_error() {
        for bad in
            ["lisen = \"x\"", "[limits]\nconnections = 0", "[policy]\nlease = \"1ms\"", "[policy]\nttl = \"soon\""]
        {
            assert!(ServeConfig::from_toml(bad).is_err(), "{bad}");
        }
    }
}
