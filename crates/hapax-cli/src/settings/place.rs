//! Where things are: the XDG directories, and the store's address.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A base directory of the XDG specification. A relative one counts as unset.
fn base(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(variable).or_else(|| Some(absolute("HOME")?.join(below_home)))
}

/// `$XDG_CONFIG_HOME/hapax/config.toml`.
pub(super) fn config_file() -> Option<PathBuf> {
    Some(base("XDG_CONFIG_HOME", ".config")?.join("hapax/config.toml"))
}

/// `sqlite:$XDG_DATA_HOME/hapax/hapax.db`.
pub(super) fn default_store() -> Option<String> {
    let path = base("XDG_DATA_HOME", ".local/share")?.join("hapax/hapax.db");
    // An address is UTF-8 text, and `?` begins its options.
    path.to_str().filter(|p| !p.contains('?')).map(|p| format!("sqlite:{p}"))
}

/// The file of a `sqlite:` address, and its options.
fn parts(address: &str) -> Option<(&str, &str)> {
    let rest = address.strip_prefix("sqlite:")?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let end = rest.find('?').unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// The address with a relative path taken from the directory of `file`: a
/// configuration file means the same wherever it is used from.
pub fn beside(file: &Path, address: &str) -> String {
    let Some((path, options)) = parts(address) else { return address.into() };
    if path.is_empty() || path.starts_with('~') || Path::new(path).is_absolute() {
        return address.into();
    }
    match file.parent().map(|dir| dir.join(path)) {
        Some(path) => format!("sqlite:{}{options}", path.display()),
        None => address.into(),
    }
}

/// A path of a configuration file: `~/` is the home directory, a relative one is taken from the file's directory.
pub fn path_beside(file: &Path, path: &Path) -> Result<PathBuf, Failure> {
    if let Ok(below) = path.strip_prefix("~") {
        return match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Ok(Path::new(&home).join(below)),
            None => {
                Err(Failure::usage(format!("{} needs HOME, which is not set: give the whole path", path.display())))
            }
        };
    }
    Ok(file.parent().map_or_else(|| path.into(), |dir| dir.join(path)))
}

/// Whether the address is a server's.
pub fn is_server(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

/// Whether the address is that of a store which hosts share: the library reads it.
fn is_fleet(address: &str) -> bool {
    let scheme = address.split(':').next().unwrap_or_default();
    scheme.starts_with("redis") || matches!(scheme, "postgres" | "postgresql")
}

/// An address that a command line can use; `~/` is the home directory, since
/// no shell expands it behind `sqlite:`.
pub fn usable(address: &str) -> Result<String, Failure> {
    if is_server(address) || is_fleet(address) {
        return Ok(address.into());
    }
    let Some((path, options)) = parts(address) else {
        let scheme = address.split(':').next().unwrap_or_default();
        return Err(Failure::usage(match scheme {
            "memory" => {
                "store memory: forgets everything when hapax exits: give sqlite:PATH, or http://HOST:PORT of a server"
                    .into()
            }
            _ if address.contains("://") || (address.contains(':') && !address.contains('/')) => {
                // Passwords stand behind the scheme: it alone is repeated.
                format!(
                    "there is no store for {scheme:?}: give sqlite:PATH, redis://HOST, postgres://USER@HOST/DATABASE, \
                     or http://HOST:PORT of a server"
                )
            }
            _ => format!("store {address:?} names no kind of store: write sqlite:{address}"),
        }));
    };
    let Some(below) = path.strip_prefix("~/") else { return Ok(address.into()) };
    match std::env::var("HOME") {
        Ok(home) if !home.is_empty() => Ok(format!("sqlite:{}{options}", Path::new(&home).join(below).display())),
        _ => Err(Failure::usage(format!("store {address:?} needs HOME, which is not set: give the whole path"))),
    }
}

/// Whether the store's file is not there yet. When that cannot be seen,
/// opening it will say why.
pub fn is_absent(address: &str) -> bool {
    parts(address).is_some_and(|(path, _)| !path.is_empty() && !Path::new(path).try_exists().unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_store_lies_beside_its_configuration_file() {
        let beside = |address| beside(Path::new("/etc/hapax/config.toml"), address);
        assert_eq!(beside("sqlite:a.db?durability=buffered"), "sqlite:/etc/hapax/a.db?durability=buffered");
        assert_eq!(beside("sqlite:/var/a.db"), "sqlite:/var/a.db");
        assert_eq!(beside("sqlite:~/a.db"), "sqlite:~/a.db");
    }

    #[test]
    fn a_store_that_no_command_line_can_use_is_refused_with_the_remedy() {
        for (address, remedy) in [
            ("memory:", "forgets"),
            ("/tmp/x.db", "write sqlite:/tmp/x.db"),
            ("x.db", "write sqlite:x.db"),
            ("mysql://:secret@host/0", "\"mysql\""),
        ] {
            let message = usable(address).unwrap_err().message;
            assert!(message.contains(remedy) && !message.contains("secret"), "{message}");
        }
        for address in ["sqlite:x.db", "redis://host", "rediss://host/1", "postgres://user@host/db", "http://host:4278"]
        {
            assert!(usable(address).is_ok(), "{address}");
        }
    }
}
