//! Redis servers: one alone, a cluster of three primaries, a primary with a replica that Sentinels watch.
//!
//! Each can be killed and started again on its port, with what its directory holds.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Server, free_port, local};

/// How often a server is started anew when another process took its port first.
const PORT_TRIES: usize = 5;

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct RedisConfig {
    args: Vec<String>,
    password: Option<String>,
    tls: Option<Arc<Certificates>>,
    clock: Option<i64>,
}

impl RedisConfig {
    /// A server that keeps nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default().set("save", "").set("appendonly", "no")
    }

    /// A setting, as in `redis.conf`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.args.extend([format!("--{name}"), value.to_string()]);
        self
    }

    /// A replica of the server on this port.
    #[must_use]
    pub fn replica_of(mut self, port: u16) -> Self {
        // Two arguments: 6.2 does not take them as one.
        self.args.extend(["--replicaof".into(), "127.0.0.1".into(), port.to_string()]);
        self
    }

    /// Without this command, as managed servers are without `CONFIG`.
    #[must_use]
    pub fn without(mut self, command: &str) -> Self {
        self.args.extend(["--rename-command".to_string(), command.to_string(), String::new()]);
        self
    }

    /// An append-only file, synced as `fsync` says: `always` or `everysec`.
    #[must_use]
    pub fn aof(self, fsync: &str) -> Self {
        self.set("appendonly", "yes").set("appendfsync", fsync)
    }

    /// A wall clock that is so many seconds ahead of the host's.
    #[must_use]
    pub fn clock(mut self, seconds: i64) -> Self {
        self.clock = Some(seconds);
        self
    }

    /// A password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self.set("requirepass", password).set("masterauth", password)
    }

    /// TLS for clients, on a port of its own, and between the servers.
    #[must_use]
    pub fn tls(mut self, certificates: &Arc<Certificates>) -> Self {
        self.tls = Some(certificates.clone());
        self.set("tls-replication", "yes")
    }

    /// A free port, and one for clients: with TLS another, else the same.
    fn ports(&self) -> Result<(u16, u16)> {
        let port = free_port()?;
        Ok((port, if self.tls.is_some() { free_port()? } else { port }))
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "rediss" } else { "redis" }
    }
}

/// An authority, and a certificate of it.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// For names as OpenSSL takes them: `DNS:localhost`, `IP:127.0.0.1`.
    ///
    /// # Errors
    /// When `openssl` is not installed or refuses.
    pub fn of(names: &str) -> Result<Arc<Self>> {
        let dir = TempDir::new()?;
        certificates(dir.path(), names)?;
        Ok(Arc::new(Self { dir }))
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// As arguments of a server that also listens on this port.
    fn args(&self, tls_port: u16) -> Vec<String> {
        let file = |name: &str| self.dir.path().join(name).to_string_lossy().into_owned();
        let settings = [
            ("--tls-port", tls_port.to_string()),
            ("--tls-auth-clients", "no".into()),
            ("--tls-cert-file", file("server.crt")),
            ("--tls-key-file", file("server.key")),
            ("--tls-ca-cert-file", file("ca.crt")),
        ];
        settings.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
    }
}

/// A server on a port of its own.
#[derive(Debug)]
pub struct RedisServer {
    config: RedisConfig,
    server: Option<Server>,
    port: u16,
    /// Where clients find it: this port, or with TLS another.
    client_port: u16,
    dir: TempDir,
}

impl RedisServer {
    /// Starts it.
    ///
    /// # Errors
    /// When `redis-server` is not installed or does not start.
    pub fn start(config: RedisConfig) -> Result<Self> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let (port, client_port) = config.ports()?;
            match Self::on(config.clone(), port, client_port) {
                Ok(redis) => return Ok(redis),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no port")))
    }

    fn on(config: RedisConfig, port: u16, client_port: u16) -> Result<Self> {
        let mut redis = Self { config, server: None, port, client_port, dir: TempDir::new()? };
        redis.restart()?;
        Ok(redis)
    }

    /// Its port, without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address for a client, without a password: `redis://127.0.0.1:port`, or `rediss://localhost:port`.
    #[must_use]
    pub fn url(&self) -> String {
        let host = if self.config.tls.is_some() { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}", self.config.scheme(), self.client_port)
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process.
    ///
    /// # Errors
    /// When it was killed.
    pub fn process(&self) -> Result<&Server> {
        self.server.as_ref().context("the server was killed")
    }

    /// Kills it; what it had not written is lost.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
        }
        Ok(())
    }

    /// Starts it again after a kill, on the same port and files.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut command = Command::new(program());
        command.args(["--port", &self.port.to_string()]);
        if let Some(tls) = &self.config.tls {
            command.args(tls.args(self.client_port));
        }
        command.args(["--bind", "127.0.0.1", "--daemonize", "no", "--dir"]).arg(self.dir.path());
        command.args(["--repl-diskless-sync-delay", "0"]).args(&self.config.args);
        if let Some(seconds) = self.config.clock {
            command.env("LD_PRELOAD", clock(self.dir.path())?).env("CLOCK_SHIFT", seconds.to_string());
        }
        let (port, password) = (self.port, self.config.password.clone());
        let ready = move || is_ready(port, password.as_deref());
        self.server = Some(Server::start(command, "redis", self.dir.path(), ready)?);
        Ok(())
    }

    /// Its version, as `(7, 2)`.
    ///
    /// # Errors
    /// When it does not say.
    pub fn version(&self) -> Result<(u32, u32)> {
        let info = self.ask(&["INFO", "server"])?;
        let version = info.split("redis_version:").nth(1).context("no version")?;
        let mut numbers = version.split(['.', '\r']).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => bail!("an odd version: {version:.20}"),
        }
    }

    /// Sends a command and returns the first line of the answer, or the text it announces.
    ///
    /// # Errors
    /// When there is no answer, or an error.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        ask(self.port, self.config.password.as_deref(), words)
    }
}

/// The server's program: `HAPAX_REDIS_SERVER`, or `redis-server` of the system. Any Redis from 6.2 on, or Valkey.
fn program() -> std::ffi::OsString {
    std::env::var_os("HAPAX_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// A library that shifts the wall clock, made in this directory.
fn clock(dir: &Path) -> Result<PathBuf> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, include_str!("clock.c"))?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    let output = command.output().context("there is no C compiler")?;
    ensure!(output.status.success(), "clock.c: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

fn is_ready(port: u16, password: Option<&str>) -> bool {
    ask(port, password, &["PING"]).is_ok_and(|answer| answer == "PONG")
}

/// Sends one command to the server on a port. Enough for tests: of an array only its first line comes back.
///
/// # Errors
/// When there is no answer, or an error.
pub fn ask(port: u16, password: Option<&str>, words: &[&str]) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    if let Some(password) = password {
        tell(&mut stream, &["AUTH", password])?;
    }
    tell(&mut stream, words)
}

fn tell(stream: &mut TcpStream, words: &[&str]) -> Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    let line = read_line(stream)?;
    if let Some(error) = line.strip_prefix('-') {
        bail!("{}: {error}", words.first().copied().unwrap_or_default());
    }
    let Some(length) = line.strip_prefix('$') else { return Ok(line.get(1..).unwrap_or_default().into()) };
    let Ok(length) = length.parse::<usize>() else { return Ok(String::new()) };
    let mut text = vec![0; length + 2];
    stream.read_exact(&mut text)?;
    text.truncate(length);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_line(stream: &mut TcpStream) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_string())
}

/// Waits until something holds.
///
/// # Errors
/// When it does not within 30 s.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < until, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A cluster of three primaries, a third of the slots each.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries.
    pub nodes: Vec<RedisServer>,
    /// One for each primary, if they were asked for.
    pub replicas: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts it and waits until all slots are served.
    ///
    /// # Errors
    /// When a server does not start, or they do not come together.
    pub fn start() -> Result<Self> {
        Self::with(RedisConfig::new())
    }

    /// The same over TLS, between the nodes too.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with_tls(certificates: &Arc<Certificates>) -> Result<Self> {
        Self::with(RedisConfig::new().tls(certificates).set("tls-cluster", "yes"))
    }

    /// Three primaries with a replica each, which may take over however old what it has is.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with_replicas() -> Result<Self> {
        let config = RedisConfig::new().set("cluster-replica-validity-factor", "0");
        let mut cluster = Self::with(config.clone())?;
        for primary in &cluster.nodes {
            let replica = Self::node(config.clone())?;
            replica.ask(&["CLUSTER", "MEET", "127.0.0.1", &primary.client_port.to_string()])?;
            let id = primary.ask(&["CLUSTER", "MYID"])?;
            eventually("a replica that knows its primary", || replica.ask(&["CLUSTER", "REPLICATE", &id]).is_ok())?;
            cluster.replicas.push(replica);
        }
        eventually("replicas in step, known to all", || {
            let of = |info: &str, node: &RedisServer| node.ask(&["INFO", info]).unwrap_or_default();
            let knows_all = |node: &RedisServer| {
                node.ask(&["CLUSTER", "NODES"]).is_ok_and(|nodes| nodes.matches("slave").count() == 3)
            };
            cluster.replicas.iter().all(|r| of("replication", r).contains("master_link_status:up"))
                && cluster.nodes.iter().all(knows_all)
        })?;
        Ok(cluster)
    }

    fn node(config: RedisConfig) -> Result<RedisServer> {
        let config = config.set("cluster-enabled", "yes").set("cluster-node-timeout", "2000");
        // The bus listens 10 000 above the port.
        for _ in 0..50 {
            let (port, client_port) = config.ports()?;
            if client_port < 55_000
                && std::net::TcpListener::bind(local(client_port + 10_000)).is_ok()
                && let Ok(redis) = RedisServer::on(config.clone(), port, client_port)
            {
                return Ok(redis);
            }
        }
        bail!("no ports for a cluster's node")
    }

    fn with(config: RedisConfig) -> Result<Self> {
        let nodes = (0..3).map(|_| Self::node(config.clone())).collect::<Result<Vec<_>>>()?;
        let bounds = [0, 5461, 10923, 16384];
        for (node, range) in nodes.iter().zip(bounds.windows(2)) {
            let &[first, next] = range else { continue };
            // `ADDSLOTSRANGE` came with 7.0.
            let slots: Vec<String> = (first..next).map(|slot: u16| slot.to_string()).collect();
            let words: Vec<&str> =
                ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
            node.ask(&words)?;
        }
        if let Some((first, others)) = nodes.split_first() {
            for (epoch, node) in others.iter().enumerate() {
                node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(epoch + 2).to_string()])?;
                first.ask(&["CLUSTER", "MEET", "127.0.0.1", &node.client_port.to_string()])?;
            }
        }
        let cluster = Self { nodes, replicas: Vec::new() };
        eventually("a cluster of three", || {
            cluster.nodes.iter().all(|node| {
                node.ask(&["CLUSTER", "INFO"])
                    .is_ok_and(|info| info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
            })
        })?;
        Ok(cluster)
    }

    /// Its address for a client.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.client_port)).collect();
        let scheme = self.nodes.first().map_or("redis", |n| n.config.scheme());
        format!("{scheme}+cluster://{}", hosts.join(","))
    }

    /// Moves a slot, with what it holds, from one node to another; numbers are those of `nodes`.
    ///
    /// # Errors
    /// When a node refuses.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        let node = |number: usize| self.nodes.get(number).context("no such node");
        let (from, to) = (node(from)?, node(to)?);
        let (source, target) = (from.ask(&["CLUSTER", "MYID"])?, to.ask(&["CLUSTER", "MYID"])?);
        let slot = slot.to_string();
        to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source])?;
        from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target])?;
        let script = "local keys = redis.call('CLUSTER', 'GETKEYSINSLOT', ARGV[1], 1) return keys[1] or ''";
        for _ in 0..100_000 {
            let key = from.ask(&["EVAL", script, "0", &slot])?;
            if key.is_empty() {
                break;
            }
            from.ask(&["MIGRATE", "127.0.0.1", &to.client_port.to_string(), &key, "0", "5000"])?;
        }
        for node in &self.nodes {
            node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target])?;
        }
        Ok(())
    }
}

/// A primary, a replica, and three Sentinels that watch them.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The primary at first, then the replica.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    _dir: TempDir,
}

#[derive(Debug)]
struct Sentinel {
    _server: Server,
    port: u16,
    client_port: u16,
}

/// The name that the Sentinels know the primary by.
pub const PRIMARY: &str = "hapax-primary";

impl RedisSentinels {
    /// Starts them and waits until they know each other. `config` is for the two servers.
    ///
    /// # Errors
    /// When a server does not start, or they do not come together.
    pub fn start(config: RedisConfig) -> Result<Self> {
        let primary = RedisServer::start(config.clone())?;
        let replica = RedisServer::start(config.clone().replica_of(primary.client_port))?;
        let dir = TempDir::new()?;
        let mut sentinels = Vec::new();
        for number in 0..3 {
            let (port, client_port) = config.ports()?;
            let file: PathBuf = dir.path().join(format!("sentinel-{number}.conf"));
            let password = config.password.as_ref();
            let auth = password.map_or_else(String::new, |p| format!("sentinel auth-pass {PRIMARY} {p}\n"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {PRIMARY} 127.0.0.1 {} 2\n{auth}\
                 sentinel down-after-milliseconds {PRIMARY} 700\nsentinel failover-timeout {PRIMARY} 3000\n",
                dir.path().display(),
                primary.client_port
            );
            std::fs::write(&file, text)?;
            let mut command = Command::new(program());
            command.arg(&file).arg("--sentinel");
            if let Some(tls) = &config.tls {
                command.args(tls.args(client_port)).args(["--tls-replication", "yes"]);
            }
            let server = Server::start(command, &format!("sentinel-{number}"), dir.path(), || is_ready(port, None))?;
            sentinels.push(Sentinel { _server: server, port, client_port });
        }
        let group = Self { servers: vec![primary, replica], sentinels, _dir: dir };
        eventually("three Sentinels and a replica in step", || {
            group.sentinels.iter().all(|sentinel| {
                let quorum = ask(sentinel.port, None, &["SENTINEL", "CKQUORUM", PRIMARY]);
                quorum.is_ok_and(|answer| answer.contains("OK 3 usable Sentinels"))
            }) && group
                .servers
                .get(1)
                .is_some_and(|r| r.ask(&["INFO", "replication"]).is_ok_and(|i| i.contains("master_link_status:up")))
        })?;
        // A Sentinel learns of the replica from the primary's INFO; without it there is nobody to fail over to.
        eventually("Sentinels that know the replica", || {
            group
                .sentinels
                .iter()
                .all(|s| ask(s.port, None, &["SENTINEL", "REPLICAS", PRIMARY]).is_ok_and(|a| a == "1"))
        })?;
        Ok(group)
    }

    /// Their address for a client.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|s| format!("127.0.0.1:{}", s.client_port)).collect();
        let scheme = self.servers.first().map_or("redis", |s| s.config.scheme());
        format!("{scheme}+sentinel://{}/{PRIMARY}", hosts.join(","))
    }

    /// The port, as clients have it, of the server that the Sentinels call primary.
    ///
    /// # Errors
    /// When no Sentinel answers.
    pub fn primary(&self) -> Result<u16> {
        for sentinel in &self.sentinels {
            if let Ok(info) = ask(sentinel.port, None, &["INFO", "sentinel"])
                && let Some(address) = info.split("address=127.0.0.1:").nth(1)
                && let Some(port) = address.split(',').next().and_then(|p| p.parse().ok())
            {
                return Ok(port);
            }
        }
        bail!("no Sentinel answers")
    }

    /// Kills the primary and waits until another server has taken over.
    ///
    /// # Errors
    /// When none does.
    pub fn fail_over(&mut self) -> Result<()> {
        let old = self.primary()?;
        for server in self.servers.iter_mut().filter(|s| s.client_port == old) {
            server.kill()?;
        }
        eventually("a failover", || {
            let now = self.primary().ok().filter(|now| *now != old);
            let server = self.servers.iter().find(|s| Some(s.client_port) == now);
            server.is_some_and(|s| s.ask(&["INFO", "replication"]).is_ok_and(|i| i.contains("role:master")))
        })
    }
}

/// An authority (`ca.crt`) and a certificate of it for these names.
fn certificates(dir: &Path, names: &str) -> Result<()> {
    let openssl = |args: &[&str]| -> Result<()> {
        let output =
            Command::new("openssl").args(args).current_dir(dir).output().context("openssl is not installed")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    std::fs::write(dir.join("names"), format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n"))?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        &[
            &["req", "-x509", "-days", "2", "-subj", "/CN=hapax test authority", "-keyout", "ca.key", "-out", "ca.crt"],
            &curve[..],
        ]
        .concat(),
    )?;
    openssl(
        &[&["req", "-new", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"], &curve[..]]
            .concat(),
    )?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "server.crt",
    ])
}
