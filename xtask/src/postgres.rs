//! PostgreSQL and PgBouncer, which tests start as private servers.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Sees to it that they are there: by apt-get as root, or by saying what to install.
pub fn install() -> Result<(), ExitCode> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    crate::announce(&format!("apt-get install {}", missing.join(" ")));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args).args(&missing).status().is_ok_and(|s| s.success())
    };
    let flags = ["install", "-y", "--no-install-recommends"];
    // The lists of packages of a fresh image are empty or old.
    let installed = apt(&flags) || {
        let updated = Command::new("apt-get").arg("update").status().is_ok_and(|s| s.success());
        updated && apt(&flags)
    };
    if installed && self::missing().is_empty() {
        return Ok(());
    }
    eprintln!(
        "xtask: the tests of the PostgreSQL store need {}, and apt-get could not install that: as root, \
         `apt-get install postgresql pgbouncer`, or your system's packages of PostgreSQL 13 or later (server and client) and PgBouncer",
        missing.join(" and ")
    );
    Err(ExitCode::FAILURE)
}

fn missing() -> Vec<&'static str> {
    let server = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .any(|version| version.path().join("bin/postgres").exists())
        || Command::new("pg_config").arg("--bindir").output().is_ok_and(|o| {
            o.status.success() && Path::new(String::from_utf8_lossy(&o.stdout).trim()).join("postgres").exists()
        });
    let pooler =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"].iter().any(|p| Path::new(p).exists());
    let mut missing = Vec::new();
    if !server {
        missing.push("postgresql");
    }
    if !pooler {
        missing.push("pgbouncer");
    }
    missing
}
