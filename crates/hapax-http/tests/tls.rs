//! HTTPS: real handshakes, with certificates made for the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{raw, serve};
use hapax_http::{ApiServer, ServeConfig};
use http::{Request, StatusCode, Version};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority, and a certificate of its for localhost: `NAME-ca.pem`, `NAME.pem`, `NAME.key`.
fn certificate(dir: &Path, name: &str) {
    let openssl = |args: &str| {
        let out = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().expect("openssl is there");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("{new} -subj /CN={name}-ca -keyout {name}-ca.key -out {name}-ca.pem"));
    openssl(&format!(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout {name}.key -out {name}.csr"
    ));
    openssl(&format!(
        "x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
    ));
}

fn settings(dir: &Path, cert: &str, key: &str) -> String {
    format!("[tls]\ncert = \"{0}/{cert}\"\nkey = \"{0}/{key}\"\n", dir.display())
}

async fn connect(address: SocketAddr, ca: &Path, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

fn healthz(version: Version) -> Request<Empty<Bytes>> {
    let request = Request::get("https://localhost/healthz").header("host", "localhost").version(version);
    request.body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_client_gets_the_protocol_it_speaks_and_another_authority_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "one");
    certificate(dir.path(), "two");
    let ca = |name: &str| dir.path().join(format!("{name}-ca.pem"));
    let server = serve(&settings(dir.path(), "one.pem", "one.key")).await;

    let two = connect(server.address, &ca("one"), "h2").await.unwrap();
    assert_eq!(two.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(two)).await.unwrap();
    let driver = tokio::spawn(connection);
    let answer = send.send_request(healthz(Version::HTTP_2)).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));

    let one = connect(server.address, &ca("one"), "http/1.1").await.unwrap();
    assert_eq!(one.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut send_one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(one)).await.unwrap();
    let driver_one = tokio::spawn(connection);
    let answer = send_one.send_request(healthz(Version::HTTP_11)).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_11));

    let stranger = connect(server.address, &ca("two"), "h2").await.expect_err("its authority is unknown");
    assert!(stranger.to_string().contains("UnknownIssuer"), "{stranger}");
    let plain = raw(server.address, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", Duration::from_secs(2)).await;
    assert!(!plain.contains("200"), "{plain}");

    // A reload takes up another certificate, for the connections to come.
    let config = ServeConfig::from_toml(&settings(dir.path(), "two.pem", "two.key")).unwrap();
    server.reloader.as_ref().unwrap().reload(config).await.unwrap();
    connect(server.address, &ca("two"), "h2").await.expect("the new certificate");
    connect(server.address, &ca("one"), "h2").await.expect_err("the old one is gone");
    let broken = ServeConfig::from_toml(&settings(dir.path(), "two.pem", "none.key")).unwrap();
    server.reloader.as_ref().unwrap().reload(broken).await.expect_err("there is no such key");
    connect(server.address, &ca("two"), "h2").await.expect("the certificate before holds");
    drop((send, send_one));
    server.stop().await;
    let _ = (driver.await, driver_one.await);
}

#[tokio::test]
async fn a_file_that_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "one");
    certificate(dir.path(), "two");
    std::fs::write(dir.path().join("garbage.key"), "no key at all").unwrap();
    for (cert, key, named) in [
        ("one.pem", "none.key", "none.key"),
        ("one.pem", "garbage.key", "garbage.key"),
        ("none.pem", "one.key", "none.pem"),
        ("one.key", "one.key", "one.key"),
        ("one.pem", "two.key", "one.pem"),
    ] {
        let mut config = ServeConfig::from_toml(&settings(dir.path(), cert, key)).unwrap();
        config.listen.set_port(0);
        let error = ApiServer::bind(config).await.expect_err("it cannot serve").to_string();
        assert!(error.starts_with("tls: ") && error.contains(named), "{cert} {key}: {error}");
    }
}
