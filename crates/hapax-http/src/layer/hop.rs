//! Headers that belong to one connection (RFC 9110, 7.6.1) and go no further.

use http::{HeaderMap, HeaderName, header};

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
}
