//! A server in this process on a port of its own, and clients: one that speaks
//! HTTP, one that writes bytes.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hapax_http::{ApiServer, Reloader, ServeConfig, TokenHash};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Running {
    pub address: SocketAddr,
    pub reloader: Option<Reloader>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Running {
    pub fn new(address: SocketAddr, stop: oneshot::Sender<()>, task: JoinHandle<()>) -> Self {
        Self { address, reloader: None, stop: Some(stop), task: Some(task) }
    }

    pub fn client(&self) -> Http {
        Http::new(self.address)
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(Duration::from_secs(20), self.task.take().unwrap()).await.expect("it stops").unwrap();
    }

    /// Asks it to stop.
    pub fn stopping(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }
}

pub async fn serve(toml: &str) -> Running {
    let config = ServeConfig::from_toml(toml).unwrap();
    let store = hapax::store::open(&config.store).await.unwrap();
    serve_on(toml, store).await
}

/// A server on a store that is open already.
pub async fn serve_on(toml: &str, store: std::sync::Arc<dyn hapax::store::Store>) -> Running {
    let mut config = ServeConfig::from_toml(toml).unwrap();
    config.listen.set_port(0);
    let server = ApiServer::bind_on(config, store).await.unwrap();
    let (address, reloader) = (server.address(), server.reloader());
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        server.run(stop).await.unwrap();
    });
    let mut running = Running::new(address, stop, task);
    running.reloader = Some(reloader);
    running
}

pub fn token(name: &str, namespace: &str, role: &str) -> String {
    let hash = TokenHash::of(name);
    format!("[[token]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nnamespace = \"{namespace}\"\nrole = \"{role}\"\n")
}

#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    pub address: SocketAddr,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    /// The last part of the problem's type.
    #[track_caller]
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        for member in ["type", "title", "detail", "key", "state", "retryable", "safeToUseNewKey"] {
            assert!(json.get(member).is_some(), "{member} is missing: {json}");
        }
        json["type"].as_str().unwrap().strip_prefix("urn:hapax:problem:").unwrap().to_string()
    }

    #[track_caller]
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

impl Http {
    pub fn new(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2048).build_http();
        Self { client, address, headers: vec![("content-type".into(), "application/json".into())] }
    }

    pub fn bearer(mut self, token: &str) -> Self {
        self.headers.push(("authorization".into(), format!("Bearer {token}")));
        self
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self
    }

    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        self.try_send(method, path, body).await.unwrap()
    }

    pub async fn try_send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self.client.request(request).await.map_err(|e| format!("{e:?}"))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, "").await
    }

    /// Claims and returns the attempt's id.
    pub async fn claim(&self, body: &Value) -> String {
        let answer = self.post("/v1/claims", body).await;
        answer.is(201).json()["attemptId"].as_str().unwrap().to_string()
    }

    pub async fn complete(&self, attempt: &str, key: &str, result: &Value) -> Answer {
        let body = serde_json::json!({"key": key, "result": result});
        self.post(&format!("/v1/claims/{attempt}/complete"), &body).await
    }
}

/// Writes bytes as they are and reads what comes until the end or silence.
pub async fn raw(address: SocketAddr, bytes: &[u8], silence: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read(&mut stream, silence).await
}

pub async fn read(stream: &mut TcpStream, silence: Duration) -> String {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(silence, stream.read(&mut part)).await {
        if n == 0 {
            break;
        }
        all.extend_from_slice(part.get(..n).unwrap());
    }
    String::from_utf8_lossy(&all).into_owned()
}
