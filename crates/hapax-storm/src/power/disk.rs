//! A directory on a disk that may lose power.
//!
//! Safe is what was there when a sync began that succeeded. Of what came after,
//! each sector may be on the disk or not, each truncation, and the creations
//! and removals of each name up to any of them. What a failed sync should have
//! made safe is never made safe by a later one: the kernel may have dropped it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};
use rand::Rng;
use rand::rngs::StdRng;

use super::trace::{Act, Step};

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Clone, Debug)]
struct Pending {
    ended: usize,
    change: Change,
    /// Made safe, but later than one that is not.
    safe: bool,
    /// Before a sync that failed.
    doomed: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    safe: Vec<u8>,
    pending: Vec<Pending>,
}

/// `Some(inode)` is a creation, `None` a removal.
#[derive(Clone, Debug)]
struct Naming {
    ended: usize,
    name: String,
    inode: Option<usize>,
}

/// The disk, after some steps.
#[derive(Debug, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    /// As processes see them, and as they are for certain after a power cut.
    names: HashMap<String, usize>,
    safe_names: HashMap<String, usize>,
    naming: Vec<Naming>,
    /// Syncs that were told a lie: nothing was made safe.
    ignore_syncs: bool,
}

impl Disk {
    /// An empty directory.
    pub fn new(ignore_syncs: bool) -> Self {
        Self { ignore_syncs, ..Self::default() }
    }

    /// Takes one step; those of appended files are none of its business.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        match &step.act {
            Act::Create(name) => {
                if !self.names.contains_key(name) {
                    let inode = self.inodes.len();
                    self.inodes.push(Inode::default());
                    self.names.insert(name.clone(), inode);
                    self.naming.push(Naming { ended: step.ended, name: name.clone(), inode: Some(inode) });
                }
            }
            Act::Unlink(name) => {
                self.names.remove(name);
                self.naming.push(Naming { ended: step.ended, name: name.clone(), inode: None });
            }
            Act::Write { name, at, bytes } => {
                let change = Change::Write { at: usize::try_from(*at)?, bytes: bytes.clone() };
                self.change(name, step.ended, change)?;
            }
            Act::Truncate { name, len } => self.change(name, step.ended, Change::Truncate(usize::try_from(*len)?))?,
            Act::Sync { name, failed } => {
                let ignored = self.ignore_syncs;
                if let Some(inode) = self.names.get(name).copied().and_then(|n| self.inodes.get_mut(n))
                    && !ignored
                {
                    inode.sync(step.began, *failed);
                }
            }
            Act::SyncDirectory => {
                let (done, left): (Vec<_>, Vec<_>) = self.naming.drain(..).partition(|n| n.ended < step.began);
                self.naming = left;
                for naming in &done {
                    rename(&mut self.safe_names, naming);
                }
            }
            Act::Append { .. } => {}
        }
        Ok(())
    }

    fn change(&mut self, name: &str, ended: usize, change: Change) -> Result<()> {
        let Some(inode) = self.names.get(name).copied().and_then(|n| self.inodes.get_mut(n)) else {
            bail!("{name} is changed, and was never created");
        };
        inode.pending.push(Pending { ended, change, safe: false, doomed: false });
        Ok(())
    }

    /// Writes the files as they may be after a power cut now.
    pub fn cut(&self, to: &Path, rng: &mut StdRng) -> Result<()> {
        let mut names = self.safe_names.clone();
        let mut stopped = Vec::new();
        for naming in &self.naming {
            if stopped.contains(&naming.name) || rng.random_bool(0.5) {
                stopped.push(naming.name.clone());
            } else {
                rename(&mut names, naming);
            }
        }
        for (name, inode) in names {
            if let Some(inode) = self.inodes.get(inode) {
                std::fs::write(to.join(name), inode.cut(rng))?;
            }
        }
        Ok(())
    }
}

fn rename(names: &mut HashMap<String, usize>, naming: &Naming) {
    match naming.inode {
        Some(inode) => names.insert(naming.name.clone(), inode),
        None => names.remove(&naming.name),
    };
}

impl Inode {
    fn sync(&mut self, began: usize, failed: bool) {
        for pending in self.pending.iter_mut().filter(|p| p.ended < began) {
            if failed {
                pending.doomed = !pending.safe;
            } else {
                pending.safe = !pending.doomed;
            }
        }
        let safe = self.pending.iter().take_while(|p| p.safe).count();
        for pending in self.pending.drain(..safe) {
            pending.change.apply(&mut self.safe, |_| true);
        }
    }

    fn cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.safe.clone();
        // How much of the rest is there: nothing, little, half, most, all; or all up to somewhere.
        let odds = [0.0, 0.1, 0.5, 0.9, 1.0].get(rng.random_range(0..5)).copied().unwrap_or_default();
        let end = if rng.random_bool(0.5) { self.pending.len() } else { rng.random_range(0..=self.pending.len()) };
        let whole_pages = rng.random_bool(0.5);
        for (n, pending) in self.pending.iter().enumerate() {
            if pending.safe {
                pending.change.apply(&mut bytes, |_| true);
            } else if n < end {
                let (mut page, mut kept) = (None, false);
                pending.change.apply(&mut bytes, |sector| {
                    let this = if whole_pages { sector / 8 } else { sector };
                    if page != Some(this) {
                        (page, kept) = (Some(this), rng.random_bool(odds));
                    }
                    kept
                });
            }
        }
        bytes
    }
}

const SECTOR: usize = 512;

impl Change {
    /// Makes the change, in those sectors that are kept.
    fn apply(&self, file: &mut Vec<u8>, mut kept: impl FnMut(usize) -> bool) {
        match self {
            Self::Truncate(len) => {
                if kept(0) {
                    file.resize(*len, 0);
                }
            }
            Self::Write { at, bytes } => {
                let (mut at, mut rest) = (*at, bytes.as_slice());
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                    if kept(at / SECTOR) {
                        if file.len() < at + now.len() {
                            file.resize(at + now.len(), 0);
                        }
                        if let Some(place) = file.get_mut(at..at + now.len()) {
                            place.copy_from_slice(now);
                        }
                    }
                    (at, rest) = (at + now.len(), later);
                }
            }
        }
    }
}
