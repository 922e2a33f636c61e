//! A server, and the connections to it: made when needed, shared by all, made anew when they break.
//!
//! Invariants: at most one try to connect per place at a time, the next one after a pause that grows and varies; a
//! server that has been out of reach for longer than a request may take is answered for at once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::{self, Failure, Refusal};
use super::options::{Address, Login, RedisOptions, Wait};

/// The first pause after a failed try to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a server must be to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Any,
    /// A Sentinel may name one that is primary no more.
    Primary,
}

/// How requests to a server are made.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    pub(super) options: RedisOptions,
    pub(super) login: Login,
    pub(super) database: i64,
    pub(super) role: Role,
}

impl Dial {
    pub(super) fn client(&self, address: &Address, protocol: ProtocolVersion) -> Result<Client, Failure> {
        let wrong = |e: &RedisError| Failure::other(error::said(e));
        let tls = &self.options.tls;
        let (host, port) = (address.host.clone(), address.port);
        let addr = if tls.on {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut login = RedisConnectionInfo::default().set_db(self.database).set_protocol(protocol);
        if let Some(username) = &self.login.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.login.password {
            login = login.set_password(password);
        }
        let info = addr.into_connection_info().map_err(|e| wrong(&e))?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp).set_redis_settings(login);
        #[cfg(feature = "redis-tls")]
        if tls.on {
            let read = |path: &Option<std::path::PathBuf>| {
                path.as_ref()
                    .map(|p| {
                        std::fs::read(p).map_err(|e| Failure::other(format!("{} cannot be read: {e}", p.display())))
                    })
                    .transpose()
            };
            let client_tls = match (read(&tls.cert)?, read(&tls.key)?) {
                (Some(client_cert), Some(client_key)) => Some(redis::ClientTlsConfig { client_cert, client_key }),
                _ => None,
            };
            let certificates = redis::TlsCertificates { client_tls, root_cert: read(&tls.ca)? };
            return Client::build_with_tls(info, certificates)
                .map_err(|e| Failure::other(format!("the TLS certificates cannot be used: {}", error::said(&e))));
        }
        Client::open(info).map_err(|e| wrong(&e))
    }

    /// Connects once.
    pub(super) async fn connect(
        &self,
        address: &Address,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Failure> {
        let client = self.client(address, protocol)?;
        let limit = self.options.connect_timeout;
        let config = config.set_connection_timeout(None).set_response_timeout(None);
        let failed = |e: &RedisError| error::connecting(&address.to_string(), e);
        let connecting = async {
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| failed(&e))?;
            if self.role == Role::Primary {
                let role = connection.send_packed_command(redis::cmd("ROLE").arg(&[] as &[&str])).await;
                let role = role.and_then(Value::extract_error).map_err(|e| failed(&e))?;
                let is_primary = matches!(&role, Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"master".to_vec())));
                if !is_primary {
                    return Err(Failure::Unsent(format!("{address} is a replica now, and no primary is known yet")));
                }
            }
            Ok(connection)
        };
        // A Redis without TLS waits in silence for the rest of what it takes for a command.
        let hint = if self.options.tls.on { "; if it does not speak TLS, give redis: in place of rediss:" } else { "" };
        tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
            Err(Failure::Unsent(format!("{address} does not answer within {limit:?} (connect_timeout){hint}")))
        })
    }
}

/// How a request went that reached a server or tried to.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server does not know the script.
    NoScript,
    /// The slot lies there now.
    Moved(String),
    /// The slot is on its way there; this request alone goes there.
    Ask(String),
    Failed(Failure),
}

#[derive(Debug, Default)]
struct Place {
    up: Option<(MultiplexedConnection, u64)>,
    was_up: bool,
    failures: u32,
    /// Since when every try has failed, and when the next one may be made.
    down: Option<(Instant, Instant, Failure)>,
}

/// A server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: Address,
    dial: Dial,
    places: Vec<Mutex<Place>>,
    turn: AtomicUsize,
    /// Connections made so far, so that a break is noticed once.
    made: AtomicU64,
    remade: AtomicU64,
    long_down: AtomicBool,
}

impl Node {
    pub(super) fn new(address: Address, dial: Dial) -> Self {
        let places = (0..dial.options.connections).map(|_| Mutex::default()).collect();
        Self {
            address,
            dial,
            places,
            turn: AtomicUsize::new(0),
            made: AtomicU64::new(0),
            remade: AtomicU64::new(0),
            long_down: AtomicBool::new(false),
        }
    }

    /// How many connections were made to it anew: when the number grows, it may be another server by now.
    pub(super) fn generation(&self) -> u64 {
        self.remade.load(Ordering::Acquire)
    }

    /// Whether it has been out of reach for longer than a request may take.
    pub(super) fn is_long_down(&self) -> bool {
        self.long_down.load(Ordering::Acquire)
    }

    async fn connection(
        &self,
        place: &Mutex<Place>,
        deadline: Instant,
    ) -> Result<(MultiplexedConnection, u64), Failure> {
        let late = || Failure::Unsent(format!("{} cannot be reached", self.address));
        let mut place = tokio::time::timeout_at(deadline, place.lock()).await.map_err(|_| late())?;
        if let Some(up) = &place.up {
            return Ok(up.clone());
        }
        if let Some((since, next, failure)) = &place.down {
            let is_long = since.elapsed() > self.dial.options.command_timeout;
            if *next > Instant::now() && (is_long || *next >= deadline) {
                return Err(failure.clone());
            }
            tokio::time::sleep_until(*next).await;
        }
        let config = AsyncConnectionConfig::new().set_pipeline_buffer_size(1024);
        let connecting = self.dial.connect(&self.address, ProtocolVersion::RESP2, config);
        match tokio::time::timeout_at(deadline, connecting).await.unwrap_or_else(|_| Err(late())) {
            Ok(connection) => {
                let id = self.made.fetch_add(1, Ordering::AcqRel);
                if place.was_up {
                    self.remade.fetch_add(1, Ordering::AcqRel);
                }
                *place = Place { up: Some((connection.clone(), id)), was_up: true, ..Place::default() };
                self.long_down.store(false, Ordering::Release);
                tracing::debug!(server = %self.address, "connected");
                Ok((connection, id))
            }
            Err(failure) => {
                place.failures = place.failures.saturating_add(1);
                let now = Instant::now();
                let since = place.down.as_ref().map_or(now, |(since, ..)| *since);
                self.long_down.store(now - since > self.dial.options.command_timeout, Ordering::Release);
                place.down = Some((since, now + pause(place.failures), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Sends one command, and what a write waits for behind it.
    pub(super) async fn send(
        &self,
        cmd: &Cmd,
        asking: bool,
        wait: Option<Wait>,
        deadline: Instant,
    ) -> Result<Value, Trouble> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.places.len().max(1);
        let Some(place) = self.places.get(turn) else {
            return Err(Trouble::Failed(Failure::other("no connections are configured")));
        };
        let (mut connection, id) = self.connection(place, deadline).await.map_err(Trouble::Failed)?;
        // A server that hangs must leave time for another try.
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = (left / 2).max(self.dial.options.command_timeout / 4).min(left);
        let sent = tokio::time::timeout(limit, exchange(&mut connection, cmd, asking, wait)).await;
        let failure = match sent {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(Trouble::Failed(failure))) => failure,
            Ok(Err(trouble)) => return Err(trouble),
            Err(_) => Failure::Unknown(format!("{} did not answer within {limit:?}", self.address)),
        };
        if matches!(failure, Failure::Unknown(_)) {
            let mut place = place.lock().await;
            if place.up.as_ref().is_some_and(|(_, up)| *up == id) {
                tracing::debug!(server = %self.address, ?failure, "connection lost");
                place.up = None;
            }
        }
        Err(Trouble::Failed(failure))
    }
}

async fn exchange(
    connection: &mut MultiplexedConnection,
    cmd: &Cmd,
    asking: bool,
    wait: Option<Wait>,
) -> Result<Value, Trouble> {
    if !asking && wait.is_none() {
        return connection.send_packed_command(cmd).await.and_then(Value::extract_error).map_err(|e| trouble(&e));
    }
    let mut pipe = redis::pipe();
    if asking {
        pipe.add_command(redis::cmd("ASKING"));
    }
    pipe.add_command(cmd.clone());
    if let Some(wait) = wait {
        let mut last = redis::cmd(if wait.aof { "WAITAOF" } else { "WAIT" });
        if wait.aof {
            last.arg(1);
        }
        last.arg(wait.replicas).arg(u64::try_from(wait.limit.as_millis()).unwrap_or(u64::MAX));
        pipe.add_command(last);
    }
    let count = usize::from(asking) + 1 + usize::from(wait.is_some());
    let mut values = connection.send_packed_commands(&pipe, 0, count).await.map_err(|e| trouble(&e))?.into_iter();
    if asking {
        values.next();
    }
    let value = values.next().unwrap_or_default().extract_error().map_err(|e| trouble(&e))?;
    if let Some(wait) = wait {
        copied(values.next().unwrap_or_default(), wait).map_err(|r| Trouble::Failed(Failure::Refused(r)))?;
    }
    Ok(value)
}

/// Whether a write has got as far as it must.
fn copied(answer: Value, wait: Wait) -> Result<(), Refusal> {
    let few = |aof: i64, replicas: i64| {
        let synced = if wait.aof && aof < 1 { ", and it was not synced to the append-only file" } else { "" };
        Refusal::NotCopied(format!(
            "it is made on the primary, but {replicas} of {} replicas confirmed it within {:?}{synced}",
            wait.replicas, wait.limit
        ))
    };
    match answer.extract_error() {
        Err(e) => Err(Refusal::NotCopied(format!(
            "it is made on the primary, but could not be waited for: {}",
            error::said(&e)
        ))),
        Ok(Value::Int(replicas)) if !wait.aof => {
            if replicas >= i64::from(wait.replicas) {
                Ok(())
            } else {
                Err(few(1, replicas))
            }
        }
        Ok(Value::Array(parts)) => match parts.as_slice() {
            [Value::Int(aof), Value::Int(replicas)] => {
                if *aof >= 1 && *replicas >= i64::from(wait.replicas) {
                    Ok(())
                } else {
                    Err(few(*aof, *replicas))
                }
            }
            _ => Err(few(0, 0)),
        },
        Ok(_) => Err(few(0, 0)),
    }
}

fn trouble(error: &RedisError) -> Trouble {
    let moved = || error.redirect_node().map(|(address, _)| address.to_string());
    match (error.code(), moved()) {
        (Some("NOSCRIPT"), _) => Trouble::NoScript,
        (Some("MOVED"), Some(to)) => Trouble::Moved(to),
        (Some("ASK"), Some(to)) => Trouble::Ask(to),
        _ => Trouble::Failed(error::answered(error)),
    }
}

/// The pause after so many failures: it doubles, and varies by half so that clients do not come in step.
pub(super) fn pause(failures: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    let noise = u32::from(uuid::Uuid::now_v7().as_bytes().last().copied().unwrap_or(0));
    full / 2 + full * noise / 510
}
