//! Requests as the corpora write them: `METHOD PATH`, lines of headers, an
//! empty line, and the body; a line `%%` begins the next.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

/// The most requests of one input.
const MOST: usize = 8;

/// All that can be asked over a connection; what cannot is left out.
pub fn read(data: &[u8]) -> Vec<Request<Bytes>> {
    let mut requests = vec![];
    let mut rest = data;
    while !rest.is_empty() && requests.len() < MOST {
        let end = rest.windows(4).position(|w| w == b"\n%%\n");
        let (one, next) = match end {
            Some(at) => (&rest[..at], &rest[at + 4..]),
            None => (rest, &[][..]),
        };
        requests.extend(request(one));
        rest = next;
    }
    requests
}

fn request(data: &[u8]) -> Option<Request<Bytes>> {
    let (head, body) = match data.windows(2).position(|w| w == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &[][..]),
    };
    let mut lines = head.split(|b| *b == b'\n');
    let mut first = lines.next()?.splitn(2, |b| *b == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let uri = Uri::try_from(first.next()?).ok()?;
    let mut request = Request::new(Bytes::copy_from_slice(body));
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    for line in lines {
        let at = line.iter().position(|b| *b == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}
