//! Reaching a server: which host, which address, TCP or a Unix socket, TLS.
//!
//! Done here and not by the client, because only who has opened a socket knows
//! its local port, by which a pooler in between is noticed; and because the
//! system's own limits for a silent peer (hours) are not those of a store.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, Config, Connection};

use super::Shared;
use super::error::{io_error, store_error};
use super::tls;
use crate::store::StoreError;

/// After this long of silence the peer is probed, this often, this many times.
const PROBE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// How long sent bytes may stay unacknowledged.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MS: u32 = 20_000;

/// What carries a connection.
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

type Dialled = (Client, Connection<Wire, tls::Stream<Wire>>, Option<SocketAddr>, usize);

/// Connects to the first host that answers.
/// Begins with the host at place `first`; also tells the local address of a TCP connection, and the host's place.
pub(super) async fn dial(shared: &Arc<Shared>, config: &Config, first: usize) -> Result<Dialled, StoreError> {
    let mut last = None;
    let (names, numbers) = (config.get_hosts(), config.get_hostaddrs());
    for i in first..names.len().max(numbers.len()) {
        let Some((name, port, opened)) = reach(config, i).await else { continue };
        let (wire, local) = match opened {
            Ok(wire) => wire,
            Err(error) => {
                last = Some(io_error(&shared.location, &format!("{name}, port {port}"), &error));
                continue;
            }
        };
        match hello(shared, config, &name, wire).await {
            Ok((client, connection)) => return Ok((client, connection, local, i)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| StoreError::Unavailable {
        store: shared.location.clone(),
        message: "no host is what target_session_attrs asks for; check that one of them is the primary".into(),
    }))
}

type Reached = (String, u16, io::Result<(Wire, Option<SocketAddr>)>);

/// Opens a socket to the host at this place, and tells its name and port.
async fn reach(config: &Config, place: usize) -> Option<Reached> {
    let ports = config.get_ports();
    let port = ports.get(place).or_else(|| ports.first()).copied().unwrap_or(5432);
    Some(match (config.get_hosts().get(place), config.get_hostaddrs().get(place)) {
        (Some(Host::Unix(dir)), None) => {
            let path = dir.join(format!(".s.PGSQL.{port}"));
            let opened = UnixStream::connect(&path).await.map(|s| (Wire::Unix(s), None));
            (path.display().to_string(), port, opened)
        }
        (name, Some(address)) => {
            let shown = match name {
                Some(Host::Tcp(name)) => name.clone(),
                _ => address.to_string(),
            };
            (shown, port, tcp(SocketAddr::new(*address, port)).await)
        }
        (Some(Host::Tcp(name)), None) => (name.clone(), port, named(name, port).await),
        (None, None) => return None,
    })
}

/// Asks the host at this place to stop what the connection of this token does.
pub(super) async fn cancel(shared: &Arc<Shared>, place: usize, token: &CancelToken) -> Result<(), StoreError> {
    let Some((name, port, opened)) = reach(&shared.options.config, place).await else { return Ok(()) };
    let (wire, _) = opened.map_err(|e| io_error(&shared.location, &format!("{name}, port {port}"), &e))?;
    let connect = tls_for(shared, &name)?;
    token.cancel_query_raw(wire, connect).await.map_err(|e| store_error(&shared.location, &e))
}

/// The first address of a name that answers.
async fn named(name: &str, port: u16) -> io::Result<(Wire, Option<SocketAddr>)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((name, port)).await? {
        match tcp(address).await {
            Ok(wire) => return Ok(wire),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn tcp(address: SocketAddr) -> io::Result<(Wire, Option<SocketAddr>)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, PROBE.0)?;
    sockopt::set_tcp_keepintvl(&stream, PROBE.1)?;
    sockopt::set_tcp_keepcnt(&stream, PROBE.2)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MS)?;
    let local = stream.local_addr().ok();
    Ok((Wire::Tcp(stream), local))
}

fn tls_for(shared: &Shared, name: &str) -> Result<tls::Connect, StoreError> {
    let bad_name = |_| StoreError::BadRequest { message: format!("{name:?} is no host name that TLS can verify") };
    MakeTlsConnect::<Wire>::make_tls_connect(&mut shared.tls.clone(), name).map_err(bad_name)
}

type Greeted = (Client, Connection<Wire, tls::Stream<Wire>>);

async fn hello(shared: &Arc<Shared>, config: &Config, name: &str, wire: Wire) -> Result<Greeted, StoreError> {
    let connect = tls_for(shared, name)?;
    config.connect_raw(wire, connect).await.map_err(|e| store_error(&shared.location, &e))
}

/// Whether the server takes writes, if that was asked for.
pub(super) async fn is_wanted(client: &Client, config: &Config) -> Result<bool, tokio_postgres::Error> {
    let wanted = match config.get_target_session_attrs() {
        TargetSessionAttrs::ReadWrite => "off",
        TargetSessionAttrs::ReadOnly => "on",
        _ => return Ok(true),
    };
    let rows = client.query_typed("SHOW transaction_read_only", &[]).await?;
    Ok(rows.first().and_then(|row| row.try_get::<_, &str>(0).ok()) == Some(wanted))
}
