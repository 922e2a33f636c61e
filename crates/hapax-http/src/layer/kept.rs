//! An answer as it is recorded and sent again: status, headers, body.
//!
//! Not recorded are headers that speak of one connection or one moment
//! (hop-by-hop, `Date`, `Content-Length`, which is made anew) and
//! `Set-Cookie`: a session at rest in a store, and handed to whoever presents
//! the key again, is worth more than a faithful copy. Only the caller whose
//! handler ran gets it, beside what is recorded.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::hop::is_hop_by_hop;

/// A recorded answer, cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Kept(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The JSON that a record holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'a> {
    status: u16,
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl Kept {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        let kept = headers.iter().filter(|(name, _)| is_kept(headers, name));
        let headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self(Arc::new(Parts { status, headers, body }))
    }

    pub(super) fn response(&self) -> http::Response<Bytes> {
        let mut response = http::Response::new(self.0.body.clone());
        *response.status_mut() = self.0.status;
        *response.headers_mut() = self.0.headers.clone();
        response
    }
}

fn is_kept(headers: &HeaderMap, name: &HeaderName) -> bool {
    !is_hop_by_hop(headers, name)
        && ![header::DATE, header::CONTENT_LENGTH, header::SET_COOKIE, header::AGE].contains(name)
        && *name != crate::problem::REPLAYED
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Parts { status, headers, body } = &*self.0;
        // A header's value may be any bytes: each becomes the character of its number.
        let text = |value: &HeaderValue| value.as_bytes().iter().map(|b| char::from(*b)).collect();
        let (body, body_base64) = match std::str::from_utf8(body) {
            Ok(text) => (Some(text.into()), None),
            Err(_) => (None, Some(STANDARD.encode(body))),
        };
        let headers = headers.iter().map(|(name, value)| (name.as_str().into(), text(value))).collect();
        Stored { status: status.as_u16(), headers, body, body_base64 }.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let recorded = Box::<RawValue>::deserialize(d)?;
        let parts = serde_json::from_str(recorded.get()).ok().and_then(parts_of);
        Ok(Self(Arc::new(parts.unwrap_or_else(|| foreign(&recorded)))))
    }
}

fn parts_of(stored: Stored<'_>) -> Option<Parts> {
    let mut headers = HeaderMap::with_capacity(stored.headers.len());
    for (name, value) in stored.headers {
        let bytes: Result<Vec<u8>, _> = value.chars().map(|c| u8::try_from(u32::from(c))).collect();
        headers.append(HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&bytes.ok()?).ok()?);
    }
    let body = match (stored.body, stored.body_base64) {
        (Some(text), _) => Bytes::from(text.into_owned()),
        (None, Some(text)) => Bytes::from(STANDARD.decode(text).ok()?),
        (None, None) => Bytes::new(),
    };
    Some(Parts { status: StatusCode::from_u16(stored.status).ok()?, headers, body })
}

/// A result that was not recorded here, but by who settled or marked the key: it is the body, as the JSON that it is.
fn foreign(result: &RawValue) -> Parts {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Parts { status: StatusCode::OK, headers, body: Bytes::copy_from_slice(result.get().as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was_but_for_what_speaks_of_the_moment() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("x-two", "1"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "session=1"),
            ("date", "Tue, 24 Nov 2026 06:00:00 GMT"),
            ("transfer-encoding", "chunked"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append("x-two", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        for body in [Bytes::from_static(b"hello \"you\"\x00"), Bytes::from_static(b"\xff\xfe"), Bytes::new()] {
            let kept = Kept::new(StatusCode::CREATED, &headers, body.clone());
            let json = serde_json::to_string(&kept).unwrap();
            assert!(!json.contains("session"), "{json}");
            let back: Kept = serde_json::from_str(&json).unwrap();
            let response = back.response();
            assert_eq!((response.status(), response.body()), (StatusCode::CREATED, &body));
            let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
            assert_eq!(names, ["content-type", "x-two"]);
            assert_eq!(response.headers().get_all("x-two").iter().nth(1).unwrap().as_bytes(), b"caf\xe9");
        }
    }

    #[test]
    fn a_result_of_whoever_settled_the_key_is_its_json() {
        for text in ["\"paid\"", "{\"id\":9007199254740993}", "null", "{\"status\":99,\"headers\":[]}", "[1.10]"] {
            let response = serde_json::from_str::<Kept>(text).unwrap().response();
            assert_eq!((response.status(), response.body()), (StatusCode::OK, &Bytes::from(text)));
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        }
        let chosen = r#"{"status":201,"headers":[["content-type","text/plain"]],"body":"ok"}"#;
        let response = serde_json::from_str::<Kept>(chosen).unwrap().response();
        assert_eq!((response.status(), &response.body()[..]), (StatusCode::CREATED, &b"ok"[..]));
    }
}
