//! The configuration file: its fields, and errors that name file, line and field.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use hapax::store::OnFull;
use hapax::{Identity, KeepParams};
use hapax_http::EncryptionConfig;
use serde::Deserialize;

use super::{Choices, Source};
use crate::args::DoubtChoice;
use crate::failure::Failure;
use crate::units::{Keep, Limit, Size, Span, Wait};

/// Where the configuration file is and who says so.
#[derive(Debug)]
pub struct Place {
    pub path: PathBuf,
    pub source: Source,
}

/// The largest configuration file that is read, in MiB.
const MAX_MIB: u64 = 1;

/// Reads a text of at most so many MiB, whatever the size that its file claims to have.
pub fn read_at_most(path: &Path, mib: u64) -> io::Result<String> {
    let limit = mib << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > limit) {
        return Err(io::Error::other(format!("it is larger than {mib} MiB")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

impl Place {
    /// Reads the file. Absent is empty, unless someone asked for this very file.
    pub(super) fn read(&self) -> Result<File, Failure> {
        let path = self.path.display();
        let bad = |e: &dyn std::fmt::Display| {
            Failure::usage(format!("configuration file {path} cannot be read: {e}; give another with --config"))
        };
        match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && self.source == Source::Default => {
                return Ok(File::default());
            }
            _ => {}
        }
        self.parse(&read_at_most(&self.path, MAX_MIB).map_err(|e| bad(&e))?)
    }

    /// Reads the file's text.
    pub(super) fn parse(&self, text: &str) -> Result<File, Failure> {
        let path = self.path.display();
        toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
            let line = line.map(|n| format!(", line {n}")).unwrap_or_default();
            Failure::usage(format!(
                "configuration file {path}{line}: {}; correct it, or give another with --config",
                e.message().trim_end()
            ))
        })
    }
}

/// A list of the fields that a run's choices have, in the file and in each of its rules.
macro_rules! with_choices {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$of:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Deserialize, Debug, Default)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$of])* pub(super) $field: $type,)*
            ttl: Option<Keep>,
            wait: Option<Wait>,
            on_doubt: Option<DoubtChoice>,
            verify: Option<String>,
            remember_failures: Option<bool>,
            timeout: Option<Limit>,
            lease: Option<Span>,
            identity: Option<Identity>,
            keep_params: Option<Kept>,
        }

        impl $name {
            pub(super) fn choices(&self) -> Choices {
                Choices {
                    ttl: self.ttl,
                    wait: self.wait,
                    on_doubt: self.on_doubt,
                    verify: self.verify.clone(),
                    remember_failures: self.remember_failures,
                    timeout: self.timeout,
                    lease: self.lease,
                    identity: self.identity.clone(),
                    keep_params: self.keep_params.map(|kept| match kept {
                        Kept::Full => KeepParams::Full,
                        Kept::Fingerprint => KeepParams::Fingerprint,
                    }),
                }
            }
        }
    };
}

with_choices! {
    /// The whole file.
    struct File {
        store: Option<String>,
        namespace: Option<String>,
        label: Option<String>,
        max_output: Option<Size>,
        max_entries: Option<u64>,
        on_full: Option<OnFull>,
        verify_limit: Option<Span>,
        auto_cleanup: Option<bool>,
        encryption: Option<EncryptionConfig>,
        #[serde(default)]
        rule: Vec<RuleFields>,
    }
}

with_choices! {
    /// One `[[rule]]`.
    struct RuleFields {
        action: String,
        target: Option<String>,
    }
}

/// `keep_params` as the file writes it.
#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Full,
    Fingerprint,
}

/// Choices for an action type, or for a type on one target.
#[derive(Debug)]
pub struct Rule {
    pub action: String,
    pub target: Option<String>,
    pub choices: Choices,
}

impl From<RuleFields> for Rule {
    fn from(fields: RuleFields) -> Self {
        let choices = fields.choices();
        Self { action: fields.action, target: fields.target, choices }
    }
}

impl Rule {
    pub(super) fn fits(&self, action: &str, target: &str) -> bool {
        self.action == action && self.target.as_deref().is_none_or(|t| t == target)
    }

    /// What it is for.
    pub fn names(&self) -> String {
        match &self.target {
            Some(target) => format!("{} on {target}", self.action),
            None => self.action.clone(),
        }
    }
}
