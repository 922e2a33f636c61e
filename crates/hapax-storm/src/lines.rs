//! The files that outlive a kill: the effect ledger and the workers' event log.
//!
//! Many processes append to one file, and any of them may die in the middle of
//! it. Invariant: a line is there whole or not at all. Hence every line is one
//! `write` of [`WIDTH`] bytes to an `O_APPEND` file: the width divides a page,
//! so no line crosses one, and the kernel looks for a fatal signal only
//! between pages.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a line, its newline included.
pub const WIDTH: usize = 128;

/// A file that is only appended to.
#[derive(Debug)]
pub struct Appender(File);

impl Appender {
    /// Opens the file, which may exist.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// Appends the fields as one line, by one `write`.
    pub fn append(&self, fields: &[&str]) -> Result<()> {
        let line = format!("{:<pad$}\n", fields.join(" "), pad = WIDTH - 1);
        ensure!(line.len() == WIDTH, "a line of {} bytes is too long for the log: {}", line.len(), line.trim_end());
        let mut file = &self.0;
        let written = file.write(line.as_bytes())?;
        ensure!(written == WIDTH, "the system wrote {written} of {WIDTH} bytes: is the disk full?");
        Ok(())
    }
}

/// A log in several files, each opened when it is first needed.
#[derive(Debug, Default)]
pub struct Log(Mutex<HashMap<PathBuf, Arc<Appender>>>);

impl Log {
    /// Appends the fields as one line to that file.
    pub fn append(&self, path: PathBuf, fields: &[&str]) -> Result<()> {
        let file = {
            let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match files.get(&path) {
                Some(file) => file.clone(),
                None => {
                    let file = Arc::new(Appender::open(&path)?);
                    files.insert(path, file.clone());
                    file
                }
            }
        };
        file.append(fields)
    }
}

/// A line, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<String>);

impl Line {
    /// A line of these fields.
    #[cfg(test)]
    pub fn of(fields: &[&str]) -> Self {
        Self(fields.iter().map(ToString::to_string).collect())
    }

    /// A field; empty if there is none.
    pub fn field(&self, n: usize) -> &str {
        self.0.get(n).map_or("", String::as_str)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// All lines so far; none if there is no file.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    scan(path, |line| {
        lines.push(Line(line.split_whitespace().map(Into::into).collect()));
        ControlFlow::Continue(())
    })?;
    Ok(lines)
}

/// The first line with this in a field, if there is one.
pub fn find(path: &Path, field: usize, text: &str) -> Result<Option<Line>> {
    let mut found = None;
    scan(path, |line| {
        if line.split_whitespace().nth(field) == Some(text) {
            found = Some(Line(line.split_whitespace().map(Into::into).collect()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Shows each line so far to `look`, until it has seen enough.
fn scan(path: &Path, mut look: impl FnMut(&str) -> ControlFlow<()>) -> Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let (mut file, mut line) = (BufReader::with_capacity(WIDTH << 10, file), Vec::with_capacity(WIDTH));
    loop {
        line.clear();
        file.by_ref().take(WIDTH as u64).read_to_end(&mut line)?;
        match line.len() {
            0 => return Ok(()),
            WIDTH => {}
            _ => bail!("{} ends in a torn line", path.display()),
        }
        let text = std::str::from_utf8(&line)?;
        ensure!(text.ends_with('\n'), "{} has a torn line: {text:?}", path.display());
        if look(text).is_break() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back_as_written() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("lines");
        assert_eq!(read(&path)?, []);
        let file = Appender::open(&path)?;
        file.append(&["a:b:c:d", "1", "2"])?;
        Appender::open(&path)?.append(&["e"])?;
        let lines = read(&path)?;
        assert_eq!(lines.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:b:c:d 1 2", "e"]);
        assert_eq!(lines.first().map(|l| l.field(2)), Some("2"));
        assert_eq!(find(&path, 1, "1")?.as_ref(), lines.first());
        assert_eq!(find(&path, 0, "1")?, None);
        assert!(file.append(&["x".repeat(WIDTH).as_str()]).is_err());
        Ok(())
    }

    #[test]
    fn a_torn_line_is_told() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("lines");
        std::fs::write(&path, "half a line")?;
        assert!(read(&path).is_err());
        Ok(())
    }
}
