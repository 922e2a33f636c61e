//! Headers that belong to one connection (RFC 9110, 7.6.1) and go no further,
//! and those that HTTP/2 writes in another way.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

const PER_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header ends with this connection: by its name, or because `Connection` says so.
pub(crate) fn is_hop_by_hop(headers: &HeaderMap, name: &HeaderName) -> bool {
    PER_CONNECTION.contains(&name.as_str())
        || headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .any(|named| named.trim().eq_ignore_ascii_case(name.as_str()))
}

/// Takes them away.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(headers, name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// The host that is asked for: of HTTP/2 in the address, where a `Host` may be missing.
pub(crate) fn host(headers: &HeaderMap, uri: &Uri) -> Option<HeaderValue> {
    let of_address = || {
        let authority = uri.authority()?.as_str();
        // Without what may stand before an @, which is no part of a host.
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        HeaderValue::from_str(host).ok()
    };
    headers.get(header::HOST).cloned().or_else(of_address)
}

/// The cookies as one field, where HTTP/2 has split them (RFC 9113, 8.2.3).
pub(crate) fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let fields: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if fields.len() < 2 { None } else { HeaderValue::from_bytes(&fields.join(&b"; "[..])).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, X-One"), ("x-one", "1"), ("x-two", "2"), ("te", "trailers")] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-two"]);
    }

    #[test]
    fn what_http_2_writes_in_another_way_is_the_same() {
        let mut headers = HeaderMap::new();
        let uri = Uri::from_static("https://u@b.example:8443/p");
        assert_eq!(host(&headers, &uri).unwrap(), "b.example:8443");
        assert_eq!(host(&headers, &Uri::from_static("/p")), None);
        headers.insert(header::HOST, HeaderValue::from_static("a.example"));
        assert_eq!(host(&headers, &uri).unwrap(), "a.example");
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        assert_eq!(joined_cookies(&headers), None);
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(joined_cookies(&headers).unwrap(), "a=1; b=2");
    }
}
