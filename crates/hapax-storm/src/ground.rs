//! What the store stands on, and what befalls that: a server of the storm's own
//! that is killed and comes back, a small disk that fills up and is freed again.
//!
//! Invariant: when the ground is dropped, its server is gone, and so is its mount.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::redis::{RedisConfig, RedisServer};
use rand::Rng;
use rand::rngs::StdRng;

use crate::plan::{DISK, Place};

/// The store to storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A Redis that syncs its append-only file before it answers, killed and started again meanwhile.
    Redis,
    /// A PostgreSQL that syncs, killed and started again meanwhile.
    Postgres,
}

/// What may fail for a while.
trait Fickle {
    fn fail(&mut self) -> Result<()>;
    fn mend(&mut self) -> Result<()>;
    /// How long a failure lasts, in milliseconds.
    fn lasts(&self) -> Range<u64> {
        0..900
    }
}

impl Fickle for RedisServer {
    fn fail(&mut self) -> Result<()> {
        self.kill()
    }

    fn mend(&mut self) -> Result<()> {
        self.restart()
    }
}

impl Fickle for PostgresServer {
    fn fail(&mut self) -> Result<()> {
        self.kill()
    }

    fn mend(&mut self) -> Result<()> {
        self.restart()
    }
}

/// The ground of one round.
pub struct Ground {
    pub place: Place,
    /// How often it failed.
    pub outages: u64,
    fickle: Option<Box<dyn Fickle>>,
    next: Instant,
    failed_until: Option<Instant>,
}

impl Ground {
    /// Prepares it in a round's directory; with `disk`, on a device of so many MiB.
    pub fn prepare(kind: Kind, disk: Option<u32>, dir: &Path) -> Result<Self> {
        let (place, fickle): (Place, Option<Box<dyn Fickle>>) = match (kind, disk) {
            (Kind::Sqlite, None) => (Place::File, None),
            (Kind::Sqlite, Some(mebibytes)) => (Place::SmallDisk, Some(Box::new(SmallDisk::mount(dir, mebibytes)?))),
            (Kind::Redis, _) => {
                let server = RedisServer::start(RedisConfig::new().aof("always"))?;
                (Place::Server(server.url()), Some(Box::new(server)))
            }
            (Kind::Postgres, _) => {
                let server = PostgresServer::start(Disk::Synced, Tls::Off)?;
                (Place::Server(server.url("postgres")), Some(Box::new(server)))
            }
        };
        Ok(Self { place, outages: 0, fickle, next: Instant::now(), failed_until: None })
    }

    /// Begins a time of failures.
    pub fn begin(&mut self, rng: &mut StdRng) {
        self.next = Instant::now() + Duration::from_millis(rng.random_range(200..800));
    }

    /// Lets it fail, or mends it, if that is due.
    pub fn tend(&mut self, rng: &mut StdRng) -> Result<()> {
        let now = Instant::now();
        if self.failed_until.is_some_and(|until| now >= until) {
            let began = Instant::now();
            self.calm()?;
            // One that needs long to come back gets the time to be of use.
            self.next = Instant::now() + began.elapsed() * 5 + Duration::from_millis(rng.random_range(300..4_000));
        } else if self.failed_until.is_none()
            && now >= self.next
            && let Some(fickle) = &mut self.fickle
        {
            fickle.fail()?;
            self.outages += 1;
            self.failed_until = Some(now + Duration::from_millis(rng.random_range(fickle.lasts())));
        }
        Ok(())
    }

    /// Mends it, if it has failed.
    pub fn calm(&mut self) -> Result<()> {
        if self.failed_until.take().is_some()
            && let Some(fickle) = &mut self.fickle
        {
            fickle.mend()?;
        }
        Ok(())
    }
}

/// Set for a storm that runs in a mount namespace of its own.
const NAMESPACE: &str = "HAPAX_STORM_NAMESPACE";

/// The exit code of a storm that may not mount a disk: what scripts take for "skipped".
pub const MAY_NOT_MOUNT: u8 = 77;

/// Runs this command line again where mounts are its own, and gone with its last process, however that ends; `None` if
/// this is there already.
pub fn enter_namespace() -> Result<Option<u8>> {
    if std::env::var_os(NAMESPACE).is_some() {
        return Ok(None);
    }
    // Root may; others may where the system lets them be root of a namespace of their own.
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let probe = "mount -t tmpfs -o size=1m none /tmp";
    let may = |way: &[&str]| Command::new("unshare").args(way).args(["--", "sh", "-c", probe]).output();
    for way in ways {
        let probed = may(way).context("cannot run unshare: install util-linux")?;
        if probed.status.success() {
            let status = Command::new("unshare")
                .args(way)
                .arg("--")
                .arg(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .env(NAMESPACE, "1")
                .status()?;
            return Ok(Some(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)));
        }
    }
    eprintln!("a small disk has to be mounted, and that is not permitted here: run it as root, outside of a sandbox");
    Ok(Some(MAY_NOT_MOUNT))
}

/// A tmpfs that is filled to the last byte, and freed again.
struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &Path, mebibytes: u32) -> Result<Self> {
        let disk = dir.join(DISK);
        fs::create_dir(&disk)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=700"), "none"])
            .arg(&disk))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join(DISK).join("ballast")
    }
}

impl Fickle for SmallDisk {
    fn fail(&mut self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        let block = vec![b'x'; 1 << 16];
        let mut size = block.len();
        while size > 0 {
            match ballast.write(block.get(..size).unwrap_or_default()) {
                Ok(1..) => {}
                Ok(0) => size /= 2,
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
        Ok(())
    }

    fn mend(&mut self) -> Result<()> {
        fs::remove_file(self.ballast()).context("cannot free the disk")
    }

    /// Until the log has been written to its end: what it has of the disk stays its own.
    fn lasts(&self) -> Range<u64> {
        1_500..2_000
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is on it is evidence, if the round's directory is kept.
        let disk = self.dir.join(DISK);
        let _ = fs::remove_file(self.ballast());
        let _ = run(Command::new("cp").arg("-a").arg(&disk).arg(self.dir.join("of-disk")));
        if let Err(error) = run(Command::new("umount").arg(&disk)) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
