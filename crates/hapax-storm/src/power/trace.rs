//! What a process did to the files of one directory, as `strace` has recorded it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The calls that change a directory, its files, or what of them is safe.
const CALLS: &str = "trace=openat,write,pread64,pwrite64,pwritev,ftruncate,fallocate,fsync,fdatasync,unlink,unlinkat,rename,renameat,renameat2";

/// One thing that happened; the names are those of files in the directory.
#[derive(Debug)]
pub enum Act {
    Create(String),
    Write {
        name: String,
        at: u64,
        bytes: Vec<u8>,
    },
    /// By `O_APPEND`.
    Append {
        name: String,
        bytes: Vec<u8>,
    },
    Truncate {
        name: String,
        len: u64,
    },
    Unlink(String),
    Sync {
        name: String,
        failed: bool,
    },
    SyncDirectory,
}

/// An act, and the lines of the trace on which it began and ended.
#[derive(Debug)]
pub struct Step {
    pub began: usize,
    pub ended: usize,
    pub act: Act,
}

/// A command that runs `program` under strace, with these faults injected.
pub fn command(program: &Path, trace: &Path, faults: &[String]) -> Command {
    let mut command = Command::new("strace");
    // Strings in full: a page is written at a time.
    command.args(["-f", "-qq", "-y", "-xx", "-s", "1048576", "-e", CALLS, "-e", "signal=none"]);
    for fault in faults {
        command.args(["-e", &format!("inject={fault}")]);
    }
    command.arg("-o").arg(trace).arg("--").arg(program);
    command
}

/// The steps in the order in which they take effect: a change when it begins, a sync when it has ended.
pub fn read(trace: &Path, dir: &Path) -> Result<Vec<Step>> {
    let text = std::fs::read_to_string(trace).with_context(|| format!("cannot read {}", trace.display()))?;
    let prefix = format!("{}/", dir.display());
    let (mut steps, mut begun) = (Vec::new(), HashMap::new());
    for (n, line) in text.lines().enumerate() {
        let (pid, line) = line.split_once(' ').with_context(|| format!("no process in {line:?}"))?;
        let line = line.trim_start();
        if let Some(head) = line.strip_suffix("<unfinished ...>") {
            begun.insert(pid, (n, head.trim_end().to_owned()));
            continue;
        }
        let (began, whole) = match line.strip_prefix("<... ").and_then(|l| l.split_once(" resumed>")) {
            Some((_, tail)) => {
                let (began, head) = begun.remove(pid).with_context(|| format!("{line:?} was not begun"))?;
                (began, format!("{head}{tail}"))
            }
            None => (n, line.to_owned()),
        };
        if let Some(act) = act(&whole, dir, &prefix).with_context(|| format!("line {} of the trace", n + 1))? {
            steps.push(Step { began, ended: n, act });
        }
    }
    // Those that were cut short by the end of the process: as if done, and safe never.
    for (began, head) in begun.into_values() {
        if let Some(act) = act(&format!("{head}) = 0"), dir, &prefix)?
            && !matches!(act, Act::Sync { .. } | Act::SyncDirectory)
        {
            steps.push(Step { began, ended: usize::MAX, act });
        }
    }
    steps.sort_by_key(|s| match s.act {
        Act::Sync { .. } | Act::SyncDirectory => s.ended,
        _ => s.began,
    });
    Ok(steps)
}

/// The act of a whole line; nothing if it is about something else, or failed.
fn act(line: &str, dir: &Path, prefix: &str) -> Result<Option<Act>> {
    let Some((call, rest)) = line.split_once('(') else { return Ok(None) };
    let Some((args, returned)) = rest.rsplit_once(" = ") else { return Ok(None) };
    let failed = returned.trim_start().starts_with(['-', '?']);
    let args = args.trim_end().trim_end_matches(')');
    let fields: Vec<&str> = args.split(", ").collect();
    let field = |n: usize| fields.get(n).copied().unwrap_or_default();
    let number = |n: usize| field(n).parse::<u64>().with_context(|| format!("argument {n} of {call} is no number"));
    let on = |path: &str| path.strip_prefix(prefix).filter(|name| !name.ends_with("-shm")).map(str::to_owned);
    let sync = matches!(call, "fsync" | "fdatasync");
    if failed && !sync {
        return Ok(None);
    }
    if call == "openat" || call == "unlink" {
        let path = string(field(usize::from(call == "openat")))?;
        let Some(name) = on(&String::from_utf8_lossy(&path)) else { return Ok(None) };
        return Ok(match call {
            "unlink" => Some(Act::Unlink(name)),
            _ if field(2).contains("O_TRUNC") => bail!("{name} is opened with O_TRUNC, which is not simulated"),
            _ => field(2).contains("O_CREAT").then_some(Act::Create(name)),
        });
    }
    if call.starts_with("unlink") || call.starts_with("rename") {
        ensure!(!args.contains(&hex(prefix)), "{call} is not simulated");
        return Ok(None);
    }
    // The rest name a file descriptor, and `-y` its path.
    let path = field(0).split_once('<').map_or("", |(_, path)| path.trim_end_matches('>'));
    let path = String::from_utf8_lossy(&unhex(path)).into_owned();
    if sync && Path::new(&path) == dir {
        return Ok((!failed).then_some(Act::SyncDirectory));
    }
    let Some(name) = on(path.trim_end_matches(" (deleted)")) else { return Ok(None) };
    Ok(Some(match call {
        "fsync" | "fdatasync" => Act::Sync { name, failed },
        "write" => Act::Append { name, bytes: string(field(1))? },
        "pwrite64" => {
            let mut bytes = string(field(1))?;
            let written = returned.split_whitespace().next().unwrap_or_default().parse::<usize>()?;
            if written > 0 {
                bytes.truncate(written);
            }
            Act::Write { name, at: number(3)?, bytes }
        }
        "ftruncate" => Act::Truncate { name, len: number(1)? },
        "pread64" => return Ok(None),
        _ => bail!("{call} on {name} is not simulated"),
    }))
}

fn hex(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut hex, b| {
        let _ = write!(hex, "\\x{b:02x}");
        hex
    })
}

/// `"\x00\x01"`, whole.
fn string(quoted: &str) -> Result<Vec<u8>> {
    let inner = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"'));
    Ok(unhex(inner.with_context(|| format!("no whole string: {:.40}…", quoted))?))
}

fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text;
    while !rest.is_empty() {
        if let Some((byte, tail)) = rest
            .strip_prefix("\\x")
            .and_then(|r| r.split_at_checked(2))
            .and_then(|(hex, tail)| Some((u8::from_str_radix(hex, 16).ok()?, tail)))
        {
            bytes.push(byte);
            rest = tail;
        } else {
            let mut chars = rest.chars();
            if let Some(c) = chars.next() {
                bytes.extend(c.to_string().bytes());
            }
            rest = chars.as_str();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(call: &str, path: &str, rest: &str) -> String {
        format!("{call}(3<{}>{rest}", hex(path))
    }

    #[test]
    fn a_sync_counts_when_it_has_ended() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let trace = dir.path().join("trace");
        let lines = [
            format!("7 openat(AT_FDCWD</>, \"{}\", O_RDWR|O_CREAT, 0644) = 3<{}>", hex("/d/a"), hex("/d/a")),
            format!("7 {}", line("pwrite64", "/d/a", ", \"\\x41\\x42\", 2, 512) = 2")),
            format!("7 {}", line("fdatasync", "/d/a", " <unfinished ...>")),
            format!("8 {}", line("write", "/d/events", ", \"\\x0a\", 1) = 1")),
            "7 <... fdatasync resumed>) = 0".to_owned(),
            format!("7 {}", line("fsync", "/d", ") = 0")),
            format!("7 {}", line("fdatasync", "/d/a", ") = -1 EIO (Input/output error) (INJECTED)")),
            format!("7 {}", line("pwrite64", "/d/a-shm", ", \"\\x41\", 1, 0) = 1")),
            format!("7 {}", line("pwrite64", "/d/a", ", \"\\x41\", 1, 0) = -1 ENOSPC (No space left on device)")),
        ];
        std::fs::write(&trace, lines.join("\n"))?;
        let acts: Vec<String> = read(&trace, Path::new("/d"))?.iter().map(|s| format!("{:?}", s.act)).collect();
        assert_eq!(
            acts,
            [
                "Create(\"a\")",
                "Write { name: \"a\", at: 512, bytes: [65, 66] }",
                "Append { name: \"events\", bytes: [10] }",
                "Sync { name: \"a\", failed: false }",
                "SyncDirectory",
                "Sync { name: \"a\", failed: true }",
            ]
        );
        Ok(())
    }
}
