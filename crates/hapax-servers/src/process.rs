//! A server process that a test owns.
//!
//! Invariant: a process that was started here is dead when its [`Server`] is
//! dropped, also when the test panics.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take until it answers: one that was killed reads first what it had written.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How long a server may take to end when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A port of the loopback interface that nobody listens on.
///
/// Another process may take it before the server does: start again with a new one then.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The address of a port of the loopback interface.
#[must_use]
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts a server, its output going to `NAME.log` in `dir`, and waits until `ready` says so.
    ///
    /// # Errors
    /// When it cannot be started, ends at once or is not ready in time; with the end of its log.
    pub fn start(mut command: Command, name: &str, dir: &Path, ready: impl Fn() -> bool) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {program}: is it installed?"))?;
        let mut server = Self { child, name: name.into(), log };
        let until = Instant::now() + START_LIMIT;
        while !ready() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{name} ended at its start ({status}):\n{}", server.log_tail());
            }
            if Instant::now() > until {
                bail!("{name} is not ready after {START_LIMIT:?}:\n{}", server.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        // A stopped process dies of SIGKILL all the same.
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with `signal` and waits; kills it after 20 s.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let until = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                self.kill()?;
                bail!("{} did not end within {STOP_LIMIT:?} and was killed:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(40)).map(|l| format!("{l}\n")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Whether somebody accepts connections on this port.
#[must_use]
pub fn accepts(port: u16) -> bool {
    TcpStream::connect_timeout(&local(port), Duration::from_millis(500)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_gone_when_its_value_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let server = Server::start(command, "sleep", dir.path(), || true).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", server.pid()));
        assert!(proc.exists());
        drop(server);
        assert!(!proc.exists());
    }

    #[test]
    fn a_server_that_ends_at_once_is_told_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no config >&2; exit 3"]);
        let error = Server::start(command, "bad", dir.path(), || false).unwrap_err().to_string();
        assert!(error.contains("no config"), "{error}");
    }
}
