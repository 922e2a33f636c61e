//! Doors for the fuzzer, behind the feature `fuzzing`: no part of the interface.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hapax::store::memory::MemoryStore;
use http::response::Parts;
use http::{HeaderMap, HeaderName, Request};
use http_body_util::{BodyExt, Full};
use tower_service::Service as _;

use crate::app::App;
use crate::config::ServeConfig;
use crate::router::router;

/// How long a body is read: a feed of events has no end.
const BODY: Duration = Duration::from_millis(5);

/// The API server's router on an empty store, asked without a connection.
pub struct Api {
    app: App,
    router: Router,
}

impl Api {
    /// A fresh one, open to the loopback.
    ///
    /// # Panics
    /// Never: its configuration is a valid one.
    #[allow(clippy::expect_used)]
    pub async fn new() -> Self {
        let config = ServeConfig::from_toml("store = \"memory:\"\n[limits]\nmax_wait = \"100ms\"").expect("is valid");
        let app = App::on(config, Arc::new(MemoryStore::new())).await.expect("has a store");
        Self { router: router(app.clone()), app }
    }

    /// The answer's head, and its body as far as it has come soon.
    pub async fn ask(&self, request: Request<Bytes>) -> (Parts, Bytes) {
        let Ok(response) = self.router.clone().call(request.map(Full::new)).await;
        let (parts, mut body) = response.into_parts();
        let mut read = Vec::new();
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(BODY, body.frame()).await {
            read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
        (parts, read.into())
    }

    /// Ends its managers.
    pub async fn close(self) {
        let _ = self.app.finish(Duration::from_secs(1)).await;
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Takes the headers of one connection away.
pub fn strip(headers: &mut HeaderMap) {
    crate::layer::hop::strip(headers);
}

/// Whether a header ends with its connection.
#[must_use]
pub fn is_hop_by_hop(headers: &HeaderMap, name: &HeaderName) -> bool {
    crate::layer::hop::is_hop_by_hop(headers, name)
}
