//! The API server, asked anything: no panic, no 5xx, and whatever is refused
//! is refused with a problem document.

use hapax_http::fuzzing::Api;
use http::{Method, header};

use crate::{block_on, request};

pub fn fuzz(data: &[u8]) {
    let requests = request::read(data);
    if requests.is_empty() {
        return;
    }
    block_on(async {
        let api = Api::new().await;
        for request in requests {
            let shown = format!("{} {}", request.method(), request.uri());
            let head = request.method() == Method::HEAD;
            let (parts, body) = api.ask(request).await;
            let status = parts.status;
            assert!(!status.is_server_error(), "{shown}: {status} {}", String::from_utf8_lossy(&body));
            if status.is_client_error() {
                let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
                assert_eq!(kind, Some("application/problem+json"), "{shown}: {status}");
                if !head {
                    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(problem["status"], status.as_u16(), "{shown}: {problem}");
                    assert!(problem["type"].is_string() && problem["title"].is_string(), "{shown}: {problem}");
                }
            }
        }
        api.close().await;
    });
}
