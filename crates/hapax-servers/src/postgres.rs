//! PostgreSQL servers and PgBouncer for tests.
//!
//! PostgreSQL refuses to run as root, so under root the servers run as the user
//! `postgres`, who owns their directories. A janitor, a shell that waits for
//! this process to end, stops a server that nobody dropped (one kept in a
//! `static`, or after a crash of the test) and removes its directory.
//!
//! Invariant: no server and no directory outlives the test process by more
//! than a moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process::{Server, accepts, free_port};

/// The user that tests connect as: a superuser of the private server.
pub const USER: &str = "hapax_test";
/// Its password. Tests look that it turns up in no error and no log.
pub const PASSWORD: &str = "pa55-w0rd/that:must@not?leak";

/// What to install when the binaries are not there.
pub const INSTALL: &str = "install PostgreSQL and PgBouncer (Debian, Ubuntu: apt-get install postgresql pgbouncer)";

/// How a private server is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing is synced: fast, and safe from everything but a crash of the machine.
    Fast,
    /// Every commit is synced, as in production.
    Synced,
}

/// Whether a private server speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It does not.
    Off,
    /// With a certificate for `localhost` that it has made itself.
    On,
}

/// Names the directory of the binaries to test with, of another version, say.
pub const BIN: &str = "HAPAX_POSTGRES_BIN";

/// The directory of PostgreSQL's binaries: what `HAPAX_POSTGRES_BIN` says, else the newest under `/usr/lib/postgresql`,
/// else that of `pg_config`.
///
/// # Errors
/// When there is none; says what to install.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN).map(PathBuf::from) {
        ensure!(dir.join("postgres").exists(), "{BIN} is {}, and there is no `postgres` in it", dir.display());
        return Ok(dir);
    }
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| dir.join("postgres").exists())
        .collect();
    found.sort();
    if let Some((_, dir)) = found.pop() {
        return Ok(dir);
    }
    let asked = Command::new("pg_config").arg("--bindir").output();
    let dir = asked.ok().and_then(|o| String::from_utf8(o.stdout).ok()).map(|s| PathBuf::from(s.trim()));
    dir.filter(|dir| dir.join("postgres").exists()).with_context(|| format!("no PostgreSQL here: {INSTALL}"))
}

/// A client program: that of the server's version, or of another where the server comes without, as some packages do.
fn client(bin: &Path, name: &str) -> PathBuf {
    let own = bin.join(name);
    if own.exists() { own } else { name.into() }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as `postgres` when this process is root.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command
}

fn run(command: &mut Command) -> Result<String> {
    // Without its environment, in which a password may be.
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = format!("{} {}", command.get_program().display(), arguments.join(" "));
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives what is in `dir` to the user that the servers run as.
fn give_away(dir: &Path) -> Result<()> {
    if is_root() {
        run(Command::new("chown").args(["-R", "postgres:postgres"]).arg(dir))?;
    }
    Ok(())
}

/// Cleans up when its standard input ends: dropped, or with this process.
#[derive(Debug)]
struct Janitor {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Janitor {
    fn watch(dir: &Path) -> Result<Self> {
        // The first line of `postmaster.pid` is the server's process id. PgBouncer does not mind SIGQUIT where a shell
        // had it ignored, and has nothing to lose.
        const SCRIPT: &str = "read -r _; \
            end() { if [ -f \"$2\" ]; then kill \"$1\" \"$(head -n 1 \"$2\")\" 2>/dev/null; fi; }; \
            end -QUIT \"$1/data/postmaster.pid\"; end -KILL \"$1/pgbouncer.pid\"; \
            i=0; while [ $i -lt 100 ]; do i=$((i+1)); \
              rm -rf \"$1\" 2>/dev/null; [ -e \"$1\" ] || exit 0; sleep 0.1; done";
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "janitor"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start sh")?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// A private PostgreSQL server with password authentication.
#[derive(Debug)]
pub struct PostgresServer {
    // Dropped in this order: the server before what removes its directory.
    server: Server,
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    disk: Disk,
    tls: Tls,
    _janitor: Janitor,
}

impl PostgresServer {
    /// Makes a database cluster in a directory of its own and starts a server on it; about a second.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start; with its log.
    pub fn start(disk: Disk, tls: Tls) -> Result<Self> {
        let bin = bin_dir()?;
        let dir = tempfile::Builder::new().prefix("hapax-postgres-").tempdir()?.keep();
        let janitor = Janitor::watch(&dir)?;
        let password = dir.join("password");
        fs::write(&password, PASSWORD)?;
        if tls == Tls::On {
            run(Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
                .args(["-days", "2", "-subj", "/CN=hapax test", "-addext", "subjectAltName=DNS:localhost"])
                .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
                .arg(dir.join("server.key"))
                .arg("-out")
                .arg(dir.join("server.crt")))?;
        }
        give_away(&dir)?;
        run(unprivileged(&bin.join("initdb"))
            .args(["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C", "--username", USER])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(dir.join("data")))?;
        let mut last = None;
        for _ in 0..5 {
            let port = free_port()?;
            match launch(&bin, &dir, port, disk, tls) {
                Ok(server) => return Ok(Self { server, bin, dir, port, disk, tls, _janitor: janitor }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("PostgreSQL was not started")))
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its certificate, if it speaks TLS: a client that trusts it trusts the server.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    /// The address of a database for the test user.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// Makes an empty database and returns its address.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn create_database(&self, name: &str) -> Result<String> {
        self.psql("postgres", &format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.url(name))
    }

    /// Runs SQL in a database by `psql` and returns what it prints, unaligned and without headers.
    ///
    /// # Errors
    /// When a statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(client(&self.bin, "psql"));
        command
            .env("PGPASSWORD", PASSWORD)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", USER])
            .args(["-p", &self.port.to_string(), "-d", database, "-c", sql]);
        Ok(run(&mut command)?.trim_end().to_string())
    }

    /// Kills the server and all its processes (SIGKILL): a crash.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()?;
        // No more can come now. One that is left may wait for a lock of another's for ever, and hold the shared memory.
        for pid in processes_in(&self.dir.join("data")) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Stops the server in good order, its clients cut off.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop(Signal::INT)
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), on the same port and data.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            // Until the last of the killed processes has let go of the shared memory.
            match launch(&self.bin, &self.dir, self.port, self.disk, self.tls) {
                Ok(server) => {
                    self.server = server;
                    return Ok(());
                }
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The processor time that its running processes have taken: those of its clients' connections, and its own.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let of = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
        };
        children_of(self.server.pid()).into_iter().map(of).sum()
    }

    /// The end of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

fn url(port: u16, database: &str) -> String {
    let mut password = String::new();
    for byte in PASSWORD.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            password.push(char::from(byte));
        } else {
            password.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("postgres://{USER}:{password}@127.0.0.1:{port}/{database}")
}

fn launch(bin: &Path, dir: &Path, port: u16, disk: Disk, tls: Tls) -> Result<Server> {
    let mut command = unprivileged(&bin.join("postgres"));
    command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]);
    let sockets = format!("unix_socket_directories={}", dir.display());
    let mut settings = vec!["listen_addresses=127.0.0.1", &sockets, "max_connections=300", "shared_buffers=64MB"];
    match disk {
        Disk::Fast => settings.extend(["fsync=off", "full_page_writes=off"]),
        // So that one that is killed has little to read when it comes back.
        Disk::Synced => settings.push("checkpoint_timeout=30s"),
    }
    let (key, certificate) = (
        format!("ssl_key_file={}", dir.join("server.key").display()),
        format!("ssl_cert_file={}", dir.join("server.crt").display()),
    );
    if tls == Tls::On {
        settings.extend(["ssl=on", &key, &certificate]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    let ready = || {
        let mut probe = Command::new(client(bin, "pg_isready"));
        probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        accepts(port) && probe.status().is_ok_and(|s| s.success())
    };
    Server::start(command, "postgres", dir, ready)
}

/// The processes of which this is true, by what stands of each under `/proc`.
fn processes(is_one: impl Fn(&Path) -> Option<bool>) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let pid = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    entries.filter_map(|path| pid(&path).filter(|_| is_one(&path) == Some(true))).collect()
}

/// The processes that have this one as their parent.
fn children_of(parent: u32) -> Vec<i32> {
    processes(|path| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        // After the name in brackets: the state, then the parent.
        let (_, after) = stat.rsplit_once(')')?;
        Some(after.split_whitespace().nth(1)?.parse::<u32>().ok()? == parent)
    })
}

/// The processes whose working directory this is; of a server's data, those are its own.
fn processes_in(directory: &Path) -> Vec<i32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    processes(|path| Some(fs::read_link(path.join("cwd")).ok()? == directory))
}

/// PgBouncer in transaction mode in front of a server.
#[derive(Debug)]
pub struct PgBouncer {
    _server: Server,
    port: u16,
    _janitor: Janitor,
}

impl PgBouncer {
    /// Starts it with `pool_size` connections to each database of the server.
    ///
    /// # Errors
    /// When PgBouncer is not installed or does not start; with its log.
    pub fn start(server: &PostgresServer, pool_size: u32) -> Result<Self> {
        let Some(program) = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
            .iter()
            .map(PathBuf::from)
            .find(|p| p.exists())
        else {
            bail!("no PgBouncer here: {INSTALL}");
        };
        let dir = tempfile::Builder::new().prefix("hapax-pgbouncer-").tempdir()?.keep();
        let janitor = Janitor::watch(&dir)?;
        let quoted = PASSWORD.replace('"', "\"\"");
        fs::write(dir.join("users.txt"), format!("\"{USER}\" \"{quoted}\"\n"))?;
        let mut last = None;
        for _ in 0..5 {
            let port = free_port()?;
            let shown = dir.display();
            let config = format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
                 unix_socket_dir=\nauth_type=scram-sha-256\nauth_file={shown}/users.txt\npool_mode=transaction\n\
                 default_pool_size={pool_size}\nmax_client_conn=500\npidfile={shown}/pgbouncer.pid\n",
                server.port()
            );
            fs::write(dir.join("pgbouncer.ini"), config)?;
            give_away(&dir)?;
            let mut command = unprivileged(&program);
            command.arg(dir.join("pgbouncer.ini"));
            match Server::start(command, "pgbouncer", &dir, || accepts(port)) {
                Ok(server) => return Ok(Self { _server: server, port, _janitor: janitor }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("PgBouncer was not started")))
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database for the test user.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::process::local;

    #[test]
    fn a_killed_server_comes_back_on_its_port_with_its_data() {
        let mut server = PostgresServer::start(Disk::Synced, Tls::Off).unwrap();
        server.create_database("kept").unwrap();
        server.psql("kept", "CREATE TABLE t (n int); INSERT INTO t VALUES (7)").unwrap();
        let port = server.port();
        server.kill().unwrap();
        assert!(server.psql("kept", "SELECT 1").is_err());
        server.restart().unwrap();
        assert_eq!((server.port(), server.psql("kept", "SELECT n FROM t").unwrap().as_str()), (port, "7"));
        let dir = server.dir.clone();
        drop(server);
        assert!(!dir.exists());
    }

    #[test]
    fn nothing_is_left_of_a_server_that_is_killed_while_it_makes_processes() {
        let mut server = PostgresServer::start(Disk::Fast, Tls::Off).unwrap();
        let (port, data) = (server.port(), server.dir.join("data"));
        for _ in 0..5 {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    // Each connection is a new process there, whether or not anything is said.
                    scope.spawn(|| {
                        let mut held = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            held.push(TcpStream::connect(local(port)));
                            held.truncate(20);
                        }
                    });
                }
                let until = Instant::now() + Duration::from_secs(10);
                while processes_in(&data).len() < 10 && Instant::now() < until {
                    std::thread::yield_now();
                }
                server.kill().unwrap();
                stop.store(true, Ordering::Relaxed);
            });
            let until = Instant::now() + Duration::from_secs(5);
            while !processes_in(&data).is_empty() {
                assert!(Instant::now() < until, "some outlived it");
                std::thread::sleep(Duration::from_millis(5));
            }
            server.restart().unwrap();
        }
    }
}
