//! Settings in layers: flags over the environment over the configuration file
//! over defaults. Each value remembers which layer it came from.
//!
//! The file is TOML, at `$XDG_CONFIG_HOME/hapax/config.toml` unless `--config`
//! or `HAPAX_CONFIG` names another. What is wrong in it is an error, never
//! skipped: a misspelt `on_doubt` must not run anything twice.

mod file;
mod place;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum as _;
use hapax::store::OnFull;
use hapax::{Config, Error, Identity, InFlight, KeepParams, OnDoubt, PolicyPatch, Ttl};
use hapax_http::EncryptionConfig;
use serde::Serialize;

use self::file::{File, Place};
pub use self::file::{Rule, read_at_most};
pub use self::place::{beside, is_absent, is_server, path_beside, usable};
use crate::args::{DoubtChoice, Global, Run};
use crate::failure::Failure;
use crate::units::{Keep, Limit, Size, Span, Wait};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    Default,
    File,
    /// A `[[rule]]` of the file.
    Rule,
    Environment,
    Flag,
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    pub value: T,
    pub source: Source,
}

impl<T> Setting<T> {
    fn default(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    /// Whether a flag or the environment says so.
    pub fn is_said(&self) -> bool {
        matches!(self.source, Source::Flag | Source::Environment)
    }

    fn put(&mut self, value: Option<T>, source: Source) {
        if let Some(value) = value {
            *self = Self { value, source };
        }
    }
}

/// Some of the choices of a run; the others are made one layer below.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    pub ttl: Option<Keep>,
    pub wait: Option<Wait>,
    pub on_doubt: Option<DoubtChoice>,
    pub verify: Option<String>,
    pub remember_failures: Option<bool>,
    pub timeout: Option<Limit>,
    pub lease: Option<Span>,
    pub identity: Option<Identity>,
    pub keep_params: Option<KeepParams>,
}

/// All choices of a run, made.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub ttl: Setting<Keep>,
    pub wait: Setting<Wait>,
    pub on_doubt: Setting<DoubtChoice>,
    pub verify: Setting<Option<String>>,
    pub remember_failures: Setting<bool>,
    pub timeout: Setting<Limit>,
    pub lease: Setting<Span>,
    pub identity: Setting<Identity>,
    pub keep_params: Setting<KeepParams>,
}

impl Default for Chosen {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            ttl: Setting::default(Keep(Ttl::For(24 * hour))),
            wait: Setting::default(Wait(InFlight::Wait(Duration::from_secs(30)))),
            on_doubt: Setting::default(DoubtChoice::Refuse),
            verify: Setting::default(None),
            remember_failures: Setting::default(false),
            timeout: Setting::default(Limit(None)),
            lease: Setting::default(Span(Duration::from_secs(60))),
            identity: Setting::default(Identity::All),
            keep_params: Setting::default(KeepParams::Full),
        }
    }
}

impl Chosen {
    fn take(&mut self, layer: &Choices, source: Source) {
        // A layer that gives a verifier wants it asked, unless it says otherwise itself.
        let on_doubt = layer.on_doubt.or(layer.verify.is_some().then_some(DoubtChoice::Verify));
        self.ttl.put(layer.ttl, source);
        self.wait.put(layer.wait, source);
        self.on_doubt.put(on_doubt, source);
        self.verify.put(layer.verify.clone().map(Some), source);
        self.remember_failures.put(layer.remember_failures, source);
        self.timeout.put(layer.timeout, source);
        self.lease.put(layer.lease, source);
        self.identity.put(layer.identity.clone(), source);
        self.keep_params.put(layer.keep_params, source);
    }

    /// What of it the library decides; the verifier is a command and comes later.
    pub fn patch(&self) -> PolicyPatch {
        let patch = PolicyPatch::new()
            .ttl(self.ttl.value.0)
            .in_flight(self.wait.value.0)
            .time_limit(self.timeout.value.0)
            .lease(self.lease.value.0)
            .identity(self.identity.value.clone())
            .keep_params(self.keep_params.value);
        match self.on_doubt.value {
            DoubtChoice::Rerun => patch.on_doubt(OnDoubt::RunAgain),
            DoubtChoice::Refuse | DoubtChoice::Verify => patch.on_doubt(OnDoubt::Refuse),
        }
    }

    /// Checks every choice against its range.
    fn check(&self) -> Result<(), String> {
        let mut config = Config::default();
        self.patch().apply(&mut config.policy);
        validate(&config)?;
        match &self.verify.value {
            Some(command) if command.trim().is_empty() => {
                Err("the verify command is empty: give a shell command, or leave it out".into())
            }
            _ => Ok(()),
        }
    }
}

fn validate(config: &Config) -> Result<(), String> {
    match config.validate() {
        Err(Error::Config { message }) => Err(message),
        other => other.map_err(|e| e.to_string()),
    }
}

/// Every setting, from all layers.
#[derive(Debug)]
pub struct Settings {
    /// The configuration file, if there is a place for one.
    pub file: Option<Place>,
    /// `None` when there is no home directory to put it in.
    pub store: Option<Setting<String>>,
    pub namespace: Setting<String>,
    pub label: Setting<Option<String>>,
    pub max_output: Setting<Size>,
    pub max_entries: Setting<Option<u64>>,
    pub on_full: Setting<OnFull>,
    pub verify_limit: Setting<Span>,
    pub auto_cleanup: Setting<bool>,
    /// The keys that seal what a store of this host keeps.
    pub encryption: Setting<Option<EncryptionConfig>>,
    pub rules: Vec<Rule>,
    /// The flags that another command for the same records needs.
    pub flags: String,
    from_file: Choices,
    from_environment: Choices,
    from_flags: Choices,
}

impl Settings {
    /// Reads all layers; `run` has the flags of `hapax run`, if it is that.
    pub fn load(global: &Global, run: Option<&Run>) -> Result<Self, Failure> {
        let place = Self::place(global)?;
        let file = match &place {
            Some(place) => place.read()?,
            None => File::default(),
        };
        let mut settings = Self::defaults(place);
        settings.take_file(file)?;
        settings.take_environment()?;
        settings.flags = global.flags();
        settings.take_flags(global, run);
        settings.check().map_err(Failure::usage)?;
        Ok(settings)
    }

    /// What a file with this text sets, all else being as by default.
    pub fn of_file(text: &str) -> Result<Self, Failure> {
        let place = Place { path: "config.toml".into(), source: Source::Default };
        let file = place.parse(text)?;
        let mut settings = Self::defaults(Some(place));
        settings.take_file(file)?;
        Ok(settings)
    }

    fn defaults(place: Option<Place>) -> Self {
        Self {
            store: place::default_store().map(Setting::default),
            namespace: Setting::default("default".into()),
            label: Setting::default(None),
            max_output: Setting::default(Size(1 << 20)),
            max_entries: Setting::default(None),
            on_full: Setting::default(OnFull::Evict),
            verify_limit: Setting::default(Span(Duration::from_secs(60))),
            auto_cleanup: Setting::default(true),
            encryption: Setting::default(None),
            rules: Vec::new(),
            flags: String::new(),
            from_file: Choices::default(),
            from_environment: Choices::default(),
            from_flags: Choices::default(),
            file: place,
        }
    }

    /// Where the configuration file is, whatever is in it.
    pub fn place(global: &Global) -> Result<Option<Place>, Failure> {
        if let Some(path) = &global.config {
            return Ok(Some(Place { path: path.clone(), source: Source::Flag }));
        }
        if let Some(path) = std::env::var_os("HAPAX_CONFIG").filter(|v| !v.is_empty()) {
            return Ok(Some(Place { path: PathBuf::from(path), source: Source::Environment }));
        }
        Ok(place::config_file().map(|path| Place { path, source: Source::Default }))
    }

    fn take_file(&mut self, file: File) -> Result<(), Failure> {
        let source = Source::File;
        self.from_file = file.choices();
        self.namespace.put(file.namespace, source);
        self.label.put(file.label.map(Some), source);
        self.max_output.put(file.max_output, source);
        self.max_entries.put(file.max_entries.map(Some), source);
        self.on_full.put(file.on_full, source);
        self.verify_limit.put(file.verify_limit, source);
        self.auto_cleanup.put(file.auto_cleanup, source);
        if let (Some(mut encryption), Some(place)) = (file.encryption, &self.file) {
            for key in &mut encryption.keys {
                // A relative path is taken from the file's directory, as the store's is.
                key.file = place::path_beside(&place.path, &key.file)?;
            }
            self.encryption = Setting { value: Some(encryption), source };
        }
        if let (Some(store), Some(place)) = (file.store, &self.file) {
            self.store = Some(Setting { value: place::beside(&place.path, &store), source });
        }
        self.rules = file.rule.into_iter().map(Rule::from).collect();

        // All against their ranges, here where the file can be named.
        let wrong = |what: &str, e: String| {
            let path = self.file.as_ref().map(|p| p.path.display().to_string()).unwrap_or_default();
            Failure::usage(format!("configuration file {path}: {what}{e}"))
        };
        self.check().map_err(|e| wrong("", e))?;
        let mut base = Chosen::default();
        base.take(&self.from_file, source);
        base.check().map_err(|e| wrong("", e))?;
        for (number, rule) in (1..).zip(&self.rules) {
            let mut chosen = base.clone();
            chosen.take(&rule.choices, Source::Rule);
            chosen.check().map_err(|e| wrong(&format!("rule {number} ({}): ", rule.names()), e))?;
        }
        Ok(())
    }

    fn take_environment(&mut self) -> Result<(), Failure> {
        let source = Source::Environment;
        if let Some(store) = env("HAPAX_STORE", |text| Ok(text.to_string()))? {
            self.store = Some(Setting { value: store, source });
        }
        self.namespace.put(env("HAPAX_NAMESPACE", |text| Ok(text.to_string()))?, source);
        self.label.put(env("HAPAX_LABEL", |text| Ok(Some(text.to_string())))?, source);
        self.from_environment = Choices {
            ttl: env("HAPAX_TTL", Keep::from_str)?,
            wait: env("HAPAX_WAIT", Wait::from_str)?,
            on_doubt: env("HAPAX_ON_DOUBT", |text| {
                DoubtChoice::from_str(text, false)
                    .map_err(|_| format!("{text:?} is no choice: use refuse, rerun or verify"))
            })?,
            verify: env("HAPAX_VERIFY", |text| Ok(text.to_string()))?,
            lease: env("HAPAX_LEASE", Span::from_str)?,
            ..Choices::default()
        };
        Ok(())
    }

    fn take_flags(&mut self, global: &Global, run: Option<&Run>) {
        let source = Source::Flag;
        if let Some(store) = &global.store {
            self.store = Some(Setting { value: store.clone(), source });
        }
        self.namespace.put(global.namespace.clone(), source);
        let Some(run) = run else { return };
        self.max_output.put(run.max_output, source);
        self.from_flags = Choices {
            ttl: run.ttl,
            wait: if run.no_wait { Some(Wait(InFlight::Reject)) } else { run.wait.map(|s| Wait(InFlight::Wait(s.0))) },
            on_doubt: run.on_doubt,
            verify: run.verify.clone(),
            remember_failures: run.remember_failures,
            timeout: run.timeout,
            lease: run.lease,
            ..Choices::default()
        };
    }

    /// The settings that are not a run's choices, against their ranges.
    fn check(&self) -> Result<(), String> {
        let mut config = Config::default();
        config.namespace.clone_from(&self.namespace.value);
        config.label.clone_from(&self.label.value);
        config.max_entries = self.max_entries.value;
        config.max_result_bytes = self.max_output.value.0;
        config.verify_limit = self.verify_limit.value.0;
        // The library knows the output as a result.
        validate(&config).map_err(|e| e.replace("max_result_bytes", "max_output"))
    }

    /// The choices for an action of this type on this target.
    pub fn chosen(&self, action: &str, target: &str) -> Result<Chosen, Failure> {
        let mut chosen = Chosen::default();
        chosen.take(&self.from_file, Source::File);
        for exact in [false, true] {
            for rule in self.rules.iter().filter(|r| r.fits(action, target) && r.target.is_some() == exact) {
                chosen.take(&rule.choices, Source::Rule);
            }
        }
        chosen.take(&self.from_environment, Source::Environment);
        chosen.check().map_err(|e| Failure::usage(format!("environment: {e}")))?;
        chosen.take(&self.from_flags, Source::Flag);
        chosen.check().map_err(Failure::usage)?;
        Ok(chosen)
    }

    /// The choices for an action that no rule is for.
    pub fn chosen_by_default(&self) -> Result<Chosen, Failure> {
        // No action has an empty type, so no rule fits it.
        self.chosen("", "")
    }

    /// The address of the store, if it is one that a command line can use.
    pub fn store(&self) -> Result<String, Failure> {
        let Some(store) = &self.store else {
            return Err(Failure::usage(
                "there is no place for the default store, since HOME is not set: give --store sqlite:PATH, or set HAPAX_STORE",
            ));
        };
        place::usable(&store.value)
    }

    /// The address of a server's store. A server lives long enough for `memory:`.
    pub fn server_store(&self) -> Result<String, Failure> {
        match &self.store {
            Some(store) => Self::served(&store.value),
            None => self.store(),
        }
    }

    /// An address that a server can use.
    pub fn served(store: &str) -> Result<String, Failure> {
        if store == "memory:" {
            return Ok(store.into());
        }
        let store = usable(store)?;
        if is_server(&store) {
            return Err(Failure::usage(
                "a server's store is no other server: give memory:, sqlite:PATH, redis://HOST or postgres://USER@HOST/DATABASE",
            ));
        }
        Ok(store)
    }
}

/// A variable of the environment, read by `read`; an empty one is an absent one.
fn env<T>(name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
    let Some(value) = std::env::var_os(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    let text = value.to_str().ok_or_else(|| Failure::usage(format!("{name} is not UTF-8: set it to another value")))?;
    read(text).map(Some).map_err(|e| Failure::usage(format!("{name}: {e}")))
}

/// The name of a setting's source, as `hapax config` shows it.
pub struct From<'a>(pub &'a str, pub Source);

impl fmt::Display for From<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Source::Default => f.write_str("default"),
            Source::File => f.write_str("configuration file"),
            Source::Rule => f.write_str("rule in the configuration file"),
            Source::Environment => write!(f, "HAPAX_{}", self.0.to_ascii_uppercase()),
            Source::Flag => write!(f, "--{}", self.0.replace('_', "-")),
        }
    }
}
