//! The Idempotency-Key layer and the proxy's headers: a key that is accepted
//! runs the handler once and is answered alike ever after; a request without one
//! goes through; what belongs to one connection goes no further.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hapax::Hapax;
use hapax_http::{Idempotency, IdempotencyLayer, IdempotencyService, REPLAYED, Scope, fuzzing};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tower_layer::Layer;
use tower_service::Service;

use crate::{block_on, request};

/// Counts its runs and says which it was.
#[derive(Clone)]
struct Handler(Arc<AtomicU32>);

impl Service<Request<Full<Bytes>>> for Handler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let run = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let mut response = Response::new(Full::from(format!("{run}")));
        // A path may ask for a status: those that are not recorded matter too.
        let asked = request.uri().path().rsplit('/').next().and_then(|s| s.parse::<u16>().ok());
        let status = asked.and_then(|s| StatusCode::from_u16(s).ok()).filter(|s| s.as_u16() >= 200);
        *response.status_mut() = status.unwrap_or(StatusCode::CREATED);
        ready(Ok(response))
    }
}

pub fn fuzz(data: &[u8]) {
    let requests = request::read(data);
    for request in &requests {
        hop_by_hop(request.headers());
    }
    let Some(request) = requests.into_iter().next() else { return };
    block_on(async {
        let name = HeaderName::from_static("idempotency-key");
        let options = Idempotency::default().header(name.clone()).body_pointer("/id").scope(Scope::Caller);
        let hapax = Hapax::open("memory:").await.unwrap();
        let runs = Arc::new(AtomicU32::new(0));
        let mut service = IdempotencyLayer::new(hapax.clone(), options).layer(Handler(runs.clone()));
        let one = ask(&mut service, &request).await;
        let two = ask(&mut service, &request).await;
        let times = runs.load(Ordering::SeqCst);
        match two.replayed.as_deref() {
            Some("true") => {
                assert_eq!(times, 1, "a replay ran the handler again");
                assert_eq!((one.status, &one.body), (two.status, &two.body), "a replay is the first answer");
            }
            _ => assert!(times == 2 || times == 0 || two.problem, "{times} runs, and no replay: {two:?}"),
        }
        if times == 0 {
            assert!(one.problem && one.status.is_client_error(), "refused, and not as a problem: {one:?}");
        }
        let _ = hapax.shutdown(Duration::from_secs(1)).await;
    });
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    replayed: Option<String>,
    problem: bool,
    body: Bytes,
}

async fn ask(service: &mut IdempotencyService<Handler>, request: &Request<Bytes>) -> Answer {
    let request = request.clone().map(Full::new);
    let Ok(response) = service.call(request).await;
    let (parts, body) = response.into_parts();
    let text = |name: &HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
    let problem = text(&header::CONTENT_TYPE).is_some_and(|t| t == "application/problem+json");
    Answer {
        status: parts.status,
        replayed: text(&REPLAYED),
        problem,
        body: body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default(),
    }
}

fn hop_by_hop(headers: &HeaderMap) {
    let mut stripped = headers.clone();
    fuzzing::strip(&mut stripped);
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|list| list.split(',').map(|n| n.trim().to_ascii_lowercase()))
        .collect();
    for gone in
        [header::CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE, header::PROXY_AUTHORIZATION]
    {
        assert!(!stripped.contains_key(&gone), "{gone} goes on");
    }
    for (name, value) in headers {
        let stays = stripped.get_all(name).iter().any(|v| v == value);
        assert!(stays != named.iter().any(|n| n == name.as_str()) || fuzzing::is_hop_by_hop(headers, name), "{name}");
        assert_eq!(stays, !fuzzing::is_hop_by_hop(headers, name), "{name}");
    }
    let once = stripped.clone();
    fuzzing::strip(&mut stripped);
    assert_eq!(once, stripped);
}
