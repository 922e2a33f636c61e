//! Where it was measured.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What the figures depend on.
#[derive(Debug, Default, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Of the directory that the files of the run were in.
    pub filesystem: String,
    pub rustc: String,
    /// The load average before the run: what others had the machine do.
    pub load: f64,
}

impl Machine {
    pub fn look(data: &Path) -> Self {
        let uname = rustix::system::uname();
        Self {
            cpu: cpu().unwrap_or_else(|| "an unknown processor".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            filesystem: fs::canonicalize(data).ok().and_then(|d| filesystem(&d)).unwrap_or_else(|| "unknown".into()),
            rustc: rustc().unwrap_or_else(|| "rustc unknown".into()),
            load: load().unwrap_or(f64::NAN),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = if self.cores == 1 { "core" } else { "cores" };
        write!(f, "{}, {} {cores}, {}, {}, {}", self.cpu, self.cores, self.kernel, self.filesystem, self.rustc)?;
        write!(f, "; load average before the run {:.2}", self.load)
    }
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The type of the file system with the longest mount point above `data`.
fn filesystem(data: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    fields.filter(|(at, _)| data.starts_with(at)).max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind.to_string())
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn rustc() -> Option<String> {
    let out =
        Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    // Without the commit and its date.
    Some(text.split(" (").next()?.trim().to_string())
}
