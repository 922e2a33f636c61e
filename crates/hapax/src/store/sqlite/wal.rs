//! The write-ahead log as a file: making commits durable.
//!
//! SQLite runs with `synchronous = NORMAL`, which syncs the log before a
//! checkpoint and not at each commit; here is the sync per batch. Invariants: a
//! sync covers the log file that is in use now, and its name in the directory;
//! after a sync has failed none is tried again, since the kernel may have
//! dropped the pages that it could not write.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::fs::{fdatasync, fstat, stat};

/// A handle on the log for syncing. Closing it harms no lock: SQLite holds its
/// locks on the database and the `-shm` file.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    file: Option<File>,
    broken: bool,
}

impl Wal {
    /// The log of the database at `real`, the path as SQLite has resolved it.
    pub(super) fn of(real: &std::path::Path) -> Self {
        let mut path = real.as_os_str().to_os_string();
        path.push("-wal");
        Self { path: path.into(), file: None, broken: false }
    }

    /// Makes all commits so far survive power loss.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let done = self.try_sync();
        self.broken = done.is_err();
        done
    }

    fn try_sync(&mut self) -> io::Result<()> {
        let named = stat(&self.path)?;
        // Everything is in the database file, which a checkpoint has synced before it emptied the log.
        if named.st_size == 0 {
            return Ok(());
        }
        let same = match &self.file {
            Some(file) => {
                let open = fstat(file)?;
                (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino)
            }
            None => false,
        };
        if !same {
            let file = File::open(&self.path)?;
            if let Some(directory) = self.path.parent() {
                File::open(if directory.as_os_str().is_empty() { ".".as_ref() } else { directory })?.sync_all()?;
            }
            self.file = Some(file);
        }
        match &self.file {
            Some(file) => Ok(fdatasync(file)?),
            None => Err(io::Error::other("the log is not open")),
        }
    }
}
