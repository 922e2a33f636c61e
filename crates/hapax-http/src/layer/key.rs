//! Where a request's key comes from, and what it means.
//!
//! By draft-ietf-httpapi-idempotency-key-header the key is a Structured Field
//! string, `"8e03…"` with the quotes; most clients send it bare. Both are the
//! same key. Invariant: two different texts never become one record's key.

use std::fmt::Write as _;

use bytes::Bytes;
use hapax::Key;
use http::{HeaderMap, HeaderName, Uri, header};
use sha2::{Digest, Sha256};

use super::hop;
use crate::problem::{Kind, Problem};

/// The header of the draft.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key that a client may send, in bytes.
pub const MAX_KEY_BYTES: usize = 255;

/// Where a key is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// In a header: `Idempotency-Key`, `X-GitHub-Delivery`.
    Header(HeaderName),
    /// In a JSON body, by RFC 6901 pointer: `/id` of a Stripe event.
    Body(String),
}

/// What besides the key tells callers apart: keys of two scopes never meet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The value of a header, such as a tenant's id. `Host` is the host that is asked for, in capitals or not,
    /// wherever the protocol has it: HTTP/2 has it in the address.
    Header(HeaderName),
    /// The caller, by a hash of the `Authorization` header.
    Caller,
}

/// The key in a header, if it is there.
pub(super) fn from_headers(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = |what: &str| Problem::new(Kind::InvalidKey, format!("the header {name} {what}"));
    if values.next().is_some() {
        return Err(bad("is there more than once: send one key"));
    }
    let text = value.to_str().map_err(|_| bad("is not ASCII: use a UUID or another visible text"))?;
    parse(text.trim()).map(Some).map_err(|what| bad(&what).key_text(text))
}

/// The key in a header's value, as a Structured Field string or bare.
fn parse(text: &str) -> Result<String, String> {
    let key = match text.strip_prefix('"') {
        Some(rest) => quoted(rest)?,
        None => {
            if let Some(c) = text.chars().find(|c| !matches!(c, '!'..='~') || matches!(c, '"' | ',')) {
                return Err(format!("has {c:?} in its key: send one key of visible ASCII, in quotes if need be"));
            }
            text.to_string()
        }
    };
    match key.len() {
        0 => Err("is empty: send a UUID or another text that no other request has".into()),
        1..=MAX_KEY_BYTES => Ok(key),
        bytes => Err(format!("holds {bytes} bytes and the limit is {MAX_KEY_BYTES}: shorten the key")),
    }
}

/// The rest of an sf-string (RFC 8941, 4.2.5); parameters behind it are allowed and ignored.
fn quoted(rest: &str) -> Result<String, String> {
    let mut key = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next() {
            Some('\\') => match chars.next() {
                Some(c @ ('"' | '\\')) => key.push(c),
                _ => return Err("has a backslash that escapes neither a quote nor a backslash".into()),
            },
            Some('"') => break,
            Some(c @ ' '..='~') => key.push(c),
            Some(c) => return Err(format!("has {c:?} in its key: use visible ASCII")),
            None => return Err("opens a quote and does not close it".into()),
        }
    }
    let behind = chars.as_str().trim_start();
    if behind.is_empty() || behind.starts_with(';') { Ok(key) } else { Err("has more than one key: send one".into()) }
}

/// The key at a pointer into a JSON body, if it is there.
pub(super) fn from_body(body: &Bytes, pointer: &str) -> Result<Option<String>, Problem> {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else { return Ok(None) };
    let text = match json.pointer(pointer) {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(_) => {
            return Err(Problem::new(Kind::InvalidKey, format!("what stands at {pointer} in the body is no text")));
        }
    };
    if text.is_empty() || text.len() > MAX_KEY_BYTES || !text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        let detail = format!("what stands at {pointer} in the body is not 1 to {MAX_KEY_BYTES} bytes of visible ASCII");
        return Err(Problem::new(Kind::InvalidKey, detail));
    }
    Ok(Some(text))
}

/// The record's key: the client's, apart from those of other scopes.
pub(super) fn record_key(text: &str, headers: &HeaderMap, uri: &Uri, scopes: &[Scope]) -> Result<Key, Problem> {
    let mut out = String::with_capacity(text.len() + 34);
    if !scopes.is_empty() {
        // Of a fixed length, so that no key can look like another scope's.
        let mut sha = Sha256::new();
        for scope in scopes {
            let name = match scope {
                Scope::Header(name) => name,
                Scope::Caller => &header::AUTHORIZATION,
            };
            sha.update(name.as_str().as_bytes());
            let mut add = |value: &[u8]| {
                sha.update([0]);
                sha.update(u64::try_from(value.len()).unwrap_or(0).to_be_bytes());
                sha.update(value);
            };
            match whole(name, headers, uri) {
                Some(value) => add(&value),
                None => headers.get_all(name).iter().for_each(|value| add(value.as_bytes())),
            }
            sha.update([1]);
        }
        for byte in sha.finalize().iter().take(16) {
            // Writing to a string cannot fail.
            let _ = write!(out, "{byte:02x}");
        }
        out.push(':');
    }
    for c in text.chars() {
        match c {
            // The escape itself is escaped, so that "a b" and "a%20b" stay two keys.
            ' ' => out.push_str("%20"),
            '%' => out.push_str("%25"),
            c => out.push(c),
        }
    }
    Key::given(&out).map_err(|e| Problem::new(Kind::InvalidKey, e.to_string()).key_text(text))
}

/// A header's value that the protocol has elsewhere or in parts: it must not matter by which a request comes.
fn whole(name: &HeaderName, headers: &HeaderMap, uri: &Uri) -> Option<Vec<u8>> {
    match *name {
        header::HOST => hop::host(headers, uri).map(|host| host.as_bytes().to_ascii_lowercase()),
        header::COOKIE => hop::joined_cookies(headers).map(|cookies| cookies.as_bytes().to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn quoted_and_bare_are_one_key() {
        for (text, key) in [
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            ("\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""a b""#, "a b"),
            (r#""k";v=1"#, "k"),
            ("a;b=c", "a;b=c"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(key), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_or_more_than_one_is_refused() {
        for bad in ["", "\"\"", "a b", "a, b", "a,b", "\"a", "\"a\" \"b\"", "\"a\", \"b\"", r#""\n""#, "a\"b", "é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"k".repeat(256)).is_err());
    }

    #[test]
    fn two_texts_or_two_scopes_never_share_a_record() {
        let mut headers = HeaderMap::new();
        let uri = Uri::from_static("/");
        let key = |text: &str, headers: &HeaderMap, scopes: &[Scope]| record_key(text, headers, &uri, scopes).unwrap();
        assert_ne!(key("a b", &headers, &[]), key("a%20b", &headers, &[]));
        assert_eq!(key("k-1", &headers, &[]).as_str(), "k-1");
        let none = key("k", &headers, &[Scope::Caller]);
        headers.insert(header::AUTHORIZATION, "Bearer one".parse().unwrap());
        let one = key("k", &headers, &[Scope::Caller]);
        headers.insert(header::AUTHORIZATION, "Bearer two".parse().unwrap());
        assert!(none != one && one != key("k", &headers, &[Scope::Caller]));
        assert!(!one.as_str().contains("Bearer"));
        assert!(record_key(&"%".repeat(MAX_KEY_BYTES), &headers, &uri, &[]).is_err(), "escaped, it is too long");
    }

    #[test]
    fn a_host_is_the_same_by_either_protocol_and_so_are_cookies() {
        let key = |uri: &'static str, headers: &[(HeaderName, &'static str)]| {
            let headers = headers.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect();
            let scopes = [Scope::Header(header::HOST), Scope::Header(header::COOKIE)];
            record_key("k", &headers, &Uri::from_static(uri), &scopes).unwrap()
        };
        let one = key("/", &[(header::HOST, "a.example")]);
        assert_eq!(key("https://A.example/", &[]), one);
        assert_ne!(key("https://b.example/", &[]), one);
        assert_ne!(key("/", &[]), one);
        let split = key("/", &[(header::COOKIE, "a=1"), (header::COOKIE, "b=2")]);
        assert_eq!(key("/", &[(header::COOKIE, "a=1; b=2")]), split);
        assert_ne!(key("/", &[(header::COOKIE, "a=1")]), split);
    }

    #[test]
    fn a_webhook_names_itself_in_its_body() {
        let body = Bytes::from_static(br#"{"id": "evt_1", "n": 7, "o": {}}"#);
        assert_eq!(from_body(&body, "/id").unwrap().as_deref(), Some("evt_1"));
        assert_eq!(from_body(&body, "/n").unwrap().as_deref(), Some("7"));
        assert_eq!(from_body(&body, "/none").unwrap(), None);
        assert!(from_body(&body, "/o").is_err());
    }
}
