//! Who may do what: bearer tokens, each bound to a namespace and a role; and,
//! where there are none, the guard that keeps web pages away from a server on
//! the loopback.
//!
//! Invariants: a handler gets a tenant only through a type that names the role
//! it needs, so none can forget to ask; what lasts (a stream, a wait) keeps its
//! [`Pass`] and ends when a reload takes that away; of a token nothing but its
//! SHA-256 is kept, and every hash is compared in full, in constant time.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::api::is_json;
use crate::app::{App, Live, Tenant};
use crate::problem::{Kind, Problem};

/// The namespace that a client means: a guard against the wrong token.
pub(crate) const NAMESPACE: HeaderName = HeaderName::from_static("hapax-namespace");

/// What a token allows; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looking: records, statistics, events.
    Read,
    /// Running actions: claims and their ends, marking, settling.
    Write,
    /// Taking records away, and changing settings.
    Admin,
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    pub(crate) fn into_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

impl std::fmt::Display for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for TokenHash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || "sha256 must be 64 hexadecimal digits: the SHA-256 of the token, as `sha256sum` prints it".to_string();
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(hash))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'_, str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A known token.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) hash: TokenHash,
    pub(crate) role: Role,
    pub(crate) tenant: Arc<Tenant>,
}

/// The grant of the token with this hash. Looks at all of them, so that the
/// time it takes says nothing of which is near.
fn find<'a>(grants: &'a [Grant], presented: &TokenHash) -> Option<&'a Grant> {
    let mut found = u32::MAX;
    for (index, grant) in (0..).zip(grants) {
        let same: Choice = grant.hash.0.ct_eq(&presented.0);
        found.conditional_assign(&index, same);
    }
    grants.get(usize::try_from(found).ok()?)
}

/// May read.
pub(crate) struct Reader(pub(crate) Arc<Tenant>);
/// May run actions.
pub(crate) struct Writer(pub(crate) Arc<Tenant>);
/// May take records away and change settings.
pub(crate) struct Admin(pub(crate) Arc<Tenant>);
/// May read, and stays to do so.
pub(crate) struct Listener(pub(crate) Pass);
/// May run actions, and waits for another's perhaps.
pub(crate) struct Claimer(pub(crate) Pass);

macro_rules! admitted {
    ($($name:ident: $role:ident),*) => {$(
        impl FromRequestParts<App> for $name {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
                admit(parts, app, Role::$role).map(|pass| Self(pass.into()))
            }
        }
    )*};
}

admitted!(Reader: Read, Writer: Write, Admin: Admin, Listener: Read, Claimer: Write);

/// By what a request was admitted.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) tenant: Arc<Tenant>,
    /// None where there are no tokens.
    token: Option<TokenHash>,
    /// What the token allows.
    role: Role,
    /// What was asked for.
    needed: Role,
}

impl Pass {
    /// Whether it would be admitted to the same now.
    pub(crate) fn holds(&self, live: &Live) -> bool {
        let tenant = match (&self.token, &live.open_to_loopback) {
            (None, open) => open.as_ref(),
            (Some(_), Some(_)) => None,
            (Some(token), None) => find(&live.grants, token).filter(|g| g.role >= self.needed).map(|g| &g.tenant),
        };
        tenant.is_some_and(|tenant| Arc::ptr_eq(tenant, &self.tenant))
    }

    /// What a wait ends with.
    pub(crate) fn lost() -> Problem {
        Problem::new(Kind::Unauthorized, "a reload took this bearer token away, or gave it another meaning")
    }
}

impl From<Pass> for Arc<Tenant> {
    fn from(pass: Pass) -> Self {
        pass.tenant
    }
}

/// May read, and asks what more.
pub(crate) struct Visitor(pub(crate) Arc<Tenant>, pub(crate) Role);

impl FromRequestParts<App> for Visitor {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        admit(parts, app, Role::Read).map(|pass| Self(pass.tenant, pass.role))
    }
}

fn admit(parts: &Parts, app: &App, needed: Role) -> Result<Pass, Problem> {
    let pass = app.with_live(|live| match &live.open_to_loopback {
        Some(tenant) => {
            guard_loopback(parts)?;
            Ok(Pass { tenant: tenant.clone(), token: None, role: Role::Admin, needed })
        }
        None => {
            let token = bearer(&parts.headers)?;
            let grant = find(&live.grants, &TokenHash::of(token))
                .ok_or_else(|| Problem::new(Kind::Unauthorized, "this bearer token is not known"))?;
            if grant.role < needed {
                let detail = format!("this token may {:?} and this needs {needed:?}", grant.role).to_lowercase();
                return Err(Problem::new(Kind::Forbidden, detail));
            }
            Ok(Pass { tenant: grant.tenant.clone(), token: Some(grant.hash), role: grant.role, needed })
        }
    })?;
    let tenant = &pass.tenant;
    // A client that means another namespace than its token opens must not write into this one.
    if let Some(meant) = parts.headers.get(NAMESPACE)
        && !meant.is_empty()
        && meant.as_bytes() != tenant.hapax.config().namespace.as_bytes()
    {
        let detail = format!(
            "this token or server opens the namespace {}, not the one asked for",
            tenant.hapax.config().namespace
        );
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    // A page of another origin can send no JSON without a preflight, which is not answered.
    let changes = parts.method == Method::POST || parts.method == Method::PUT || parts.method == Method::PATCH;
    let json = || parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(is_json);
    if changes && !json() {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            "send JSON with `Content-Type: application/json`, also with an empty body",
        ));
    }
    Ok(pass)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let needed = |what: &str| Problem::new(Kind::Unauthorized, format!("{what}: send `Authorization: Bearer TOKEN`"));
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(needed("there must be one Authorization header"));
    };
    let text = value.to_str().map_err(|_| needed("the Authorization header is not ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(needed("the Authorization header holds no bearer token")),
    }
}

/// Without tokens whoever reaches the loopback is trusted, but a web page is
/// not: its name may have been rebound to 127.0.0.1, so the host that was asked
/// for must be a loopback name, and an origin, if there is one, the same host.
fn guard_loopback(parts: &Parts) -> Result<(), Problem> {
    let refuse = |detail: &str| Err(Problem::new(Kind::Forbidden, detail));
    let host = match (parts.headers.get(header::HOST), parts.uri.authority()) {
        (Some(host), _) => host.to_str().unwrap_or("").to_ascii_lowercase(),
        (None, Some(authority)) => authority.as_str().to_ascii_lowercase(),
        (None, None) => return refuse("the request names no host"),
    };
    if !is_loopback(&host) {
        return refuse(
            "this server has no tokens and answers to loopback names only (localhost, 127.0.0.1, [::1]); \
             to serve under another name, configure tokens",
        );
    }
    if let Some(origin) = parts.headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
        let same = origin.split_once("://").is_some_and(|(_, rest)| rest == host);
        if !same {
            return refuse("this server has no tokens and answers to pages of its own only");
        }
    }
    if parts.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return refuse("this server has no tokens and answers to pages of its own only");
    }
    Ok(())
}

/// Whether `host`, with or without a port, names the loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        for yes in ["localhost", "localhost:4278", "127.0.0.1:1", "127.3.2.1", "[::1]", "[::1]:80", "a.localhost"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["example.com", "localhost.example.com", "10.0.0.1", "127.0.0.1.nip.io", "", "[::2]:80"] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn a_hash_reads_as_sha256sum_prints_it_and_never_shows_in_debug() {
        let hash = TokenHash::of("secret");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string(), "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");
        assert_eq!(format!("{hash:?}"), "TokenHash(..)");
        assert!("xyz".parse::<TokenHash>().is_err());
    }
}
