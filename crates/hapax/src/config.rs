//! The manager's configuration, its limits, and the builder.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::manager::Hapax;
use crate::store::{OnFull, Store};
use crate::{Error, ErrorClass, Identity, InFlight, KeepParams, OnDoubt, Policy, PolicyPatch, Record, Ttl};

/// A policy for an action type, or for a type on a target.
#[derive(Clone, Debug)]
pub struct PolicyRule {
    /// The action type it is for.
    pub action_type: String,
    /// The target it is for; all of them when `None`.
    pub target: Option<String>,
    /// The choices it makes.
    pub patch: PolicyPatch,
}

/// How a manager behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The tenant: 1 to 128 visible ASCII bytes. Default: `default`. Fixed once built.
    pub namespace: String,
    /// A name for this process in its records' `owner`. Default: none. Fixed once built.
    pub label: Option<String>,
    /// The choices for every call.
    pub policy: Policy,
    /// The choices for some action types and targets; of several that fit, the
    /// later and the more exact one counts.
    pub rules: Vec<PolicyRule>,
    /// The most records the store keeps. Default: 10 000 for `memory:`, no limit elsewhere.
    pub max_entries: Option<u64>,
    /// What happens then. Default: evict.
    pub on_full: OnFull,
    /// The largest result that is recorded, in bytes of JSON. Default: 1 MiB, at most 64 MiB.
    pub max_result_bytes: usize,
    /// The most results remembered in this process, which are replayed without a look into the store. Default:
    /// 10 000. Fixed once built. However many, they take about 64 MiB at most, counted twice as text and as read,
    /// with 2 MiB for each of 32 parts: the oldest go first, and a result that would take more than half of a part
    /// (about 512 KiB of JSON) is not remembered but read from the store each time.
    pub recent_results: usize,
    /// The most attempts in flight in this process. Default: 65 536.
    pub max_in_flight: usize,
    /// How often expired records are removed; never, if `None`. Default: hourly.
    pub auto_cleanup: Option<Duration>,
    /// How long a verifier may look. Default: 60 s.
    pub verify_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            label: None,
            policy: Policy::default(),
            rules: Vec::new(),
            max_entries: None,
            on_full: OnFull::Evict,
            max_result_bytes: 1 << 20,
            recent_results: 10_000,
            max_in_flight: 65_536,
            auto_cleanup: Some(Duration::from_secs(3600)),
            verify_limit: Duration::from_secs(60),
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// The choices for an action of this type on this target.
    #[must_use]
    pub fn policy_for(&self, action_type: &str, target: &str) -> Policy {
        let mut policy = self.policy.clone();
        for exact in [false, true] {
            for rule in &self.rules {
                let fits = rule.action_type == action_type && rule.target.as_deref().is_none_or(|t| t == target);
                if fits && rule.target.is_some() == exact {
                    rule.patch.apply(&mut policy);
                }
            }
        }
        policy
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`Error::Config`] names the setting and its range.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::Config { message });
        let visible = |s: &str| (1..=128).contains(&s.len()) && s.bytes().all(|b| (0x21..=0x7e).contains(&b));
        if !visible(&self.namespace) {
            return bad(format!("namespace {:?} must be 1 to 128 visible ASCII characters", self.namespace));
        }
        if let Some(label) = &self.label
            && (label.len() > 128 || label.chars().any(char::is_control))
        {
            return bad("label must be at most 128 bytes without control characters".into());
        }
        if self.max_entries == Some(0) {
            return bad("max_entries must be at least 1; leave it out for no limit".into());
        }
        if !(1..=64 << 20).contains(&self.max_result_bytes) {
            return bad(format!("max_result_bytes is {}; it must be 1 to 67108864 (64 MiB)", self.max_result_bytes));
        }
        if self.recent_results > 10_000_000 {
            return bad(format!("recent_results is {}; it must be at most 10000000", self.recent_results));
        }
        if !(1..=1_000_000).contains(&self.max_in_flight) {
            return bad(format!("max_in_flight is {}; it must be 1 to 1000000", self.max_in_flight));
        }
        if self.auto_cleanup.is_some_and(|d| d < Duration::from_secs(1) || d > 30 * DAY) {
            return bad("auto_cleanup must be 1 s to 30 days; leave it out for never".into());
        }
        if self.verify_limit.is_zero() || self.verify_limit > DAY {
            return bad("verify_limit must be more than zero and at most 24 h".into());
        }
        validate_policy(&self.policy)?;
        for rule in &self.rules {
            let mut policy = self.policy.clone();
            rule.patch.apply(&mut policy);
            validate_policy(&policy)?;
        }
        Ok(())
    }
}

pub(crate) fn validate_policy(policy: &Policy) -> Result<(), Error> {
    let bad = |message: String| Err(Error::Config { message });
    if !(Duration::from_secs(1)..=DAY).contains(&policy.lease) {
        return bad(format!("lease is {:?}; it must be 1 s to 24 h", policy.lease));
    }
    if let InFlight::Wait(wait) = policy.in_flight
        && wait > DAY
    {
        return bad(format!("wait is {wait:?}; it must be at most 24 h"));
    }
    if policy.time_limit.is_some_and(|d| d.is_zero() || d > 30 * DAY) {
        return bad("the action's time limit must be more than zero and at most 30 days; leave it out for none".into());
    }
    if let Ttl::For(ttl) = policy.ttl
        && ttl.is_zero()
    {
        return bad("ttl is zero: a result that is gone at once protects nothing; give a duration or `never`".into());
    }
    Ok(())
}

impl Serialize for Config {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Rule<'a> {
            action_type: &'a str,
            target: Option<&'a str>,
            policy: serde_json::Value,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct View<'a> {
            namespace: &'a str,
            label: Option<&'a str>,
            policy: serde_json::Value,
            rules: Vec<Rule<'a>>,
            max_entries: Option<u64>,
            on_full: OnFull,
            max_result_bytes: usize,
            recent_results: usize,
            max_in_flight: usize,
            auto_cleanup_ms: Option<u64>,
            verify_limit_ms: u64,
        }
        View {
            namespace: &self.namespace,
            label: self.label.as_deref(),
            policy: policy_json(&self.policy),
            rules: self
                .rules
                .iter()
                .map(|r| Rule {
                    action_type: &r.action_type,
                    target: r.target.as_deref(),
                    policy: policy_json(&self.policy_for(&r.action_type, r.target.as_deref().unwrap_or(""))),
                })
                .collect(),
            max_entries: self.max_entries,
            on_full: self.on_full,
            max_result_bytes: self.max_result_bytes,
            recent_results: self.recent_results,
            max_in_flight: self.max_in_flight,
            auto_cleanup_ms: self.auto_cleanup.map(millis),
            verify_limit_ms: millis(self.verify_limit),
        }
        .serialize(s)
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn policy_json(p: &Policy) -> serde_json::Value {
    serde_json::json!({
        "ttlMs": match p.ttl { Ttl::For(d) => serde_json::json!(millis(d)), Ttl::Never => "never".into() },
        "inFlight": match p.in_flight { InFlight::Wait(d) => serde_json::json!({"waitMs": millis(d)}), InFlight::Reject => "reject".into() },
        "onDoubt": match p.on_doubt { OnDoubt::Refuse => "refuse", OnDoubt::RunAgain => "rerun", OnDoubt::Verify(_) => "verify" },
        "onError": match p.on_error { ErrorClass::Retryable => "retryable", ErrorClass::Permanent => "permanent", ErrorClass::Unknown => "unknown" },
        "timeLimitMs": p.time_limit.map(millis),
        "leaseMs": millis(p.lease),
        "identity": match &p.identity {
            Identity::All => serde_json::json!("all"),
            Identity::Include(pointers) => serde_json::json!({"include": pointers}),
            Identity::Exclude(pointers) => serde_json::json!({"exclude": pointers}),
        },
        "keepParams": match p.keep_params { KeepParams::Full => "full", KeepParams::Fingerprint => "fingerprint" },
    })
}

pub(crate) type WaitHook = Arc<dyn Fn(&Record, Duration) + Send + Sync>;

/// Makes a [`Hapax`].
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use std::time::Duration;
/// use hapax::{Hapax, OnDoubt, PolicyPatch};
///
/// let hapax = Hapax::builder()
///     .store_url("memory:")
///     .namespace("billing")
///     .policy(PolicyPatch::new().ttl(Duration::from_secs(7 * 24 * 3600)))
///     .policy_for("ping", None, PolicyPatch::new().on_doubt(OnDoubt::RunAgain))
///     .build()
///     .await?;
/// assert_eq!(hapax.config().namespace, "billing");
/// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Builder {
    pub(crate) config: Config,
    pub(crate) url: Option<String>,
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) on_wait: Option<WaitHook>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Builder {
    /// The store by its address: `memory:`, `sqlite:PATH`, `sqlite:PATH?durability=buffered`; with the feature
    /// `redis` also `redis://HOST` and its kin, with the feature `postgres` also
    /// `postgres://USER:PASSWORD@HOST/DATABASE` (see `docs/stores.md`). Default: `memory:`.
    #[must_use]
    pub fn store_url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// A store that is open already, or one of your own. It stays open when the manager ends.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// The tenant; keys of two namespaces never meet.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.config.namespace = namespace.into();
        self
    }

    /// A name for this process in its records.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.config.label = Some(label.into());
        self
    }

    /// Choices for every call.
    #[must_use]
    pub fn policy(mut self, patch: PolicyPatch) -> Self {
        patch.apply(&mut self.config.policy);
        self
    }

    /// Choices for an action type, or for a type on one target.
    #[must_use]
    pub fn policy_for(mut self, action_type: impl Into<String>, target: Option<&str>, patch: PolicyPatch) -> Self {
        self.config.rules.push(PolicyRule { action_type: action_type.into(), target: target.map(Into::into), patch });
        self
    }

    /// The most records kept; see [`Config::max_entries`].
    #[must_use]
    pub fn max_entries(mut self, max: u64) -> Self {
        self.config.max_entries = Some(max);
        self
    }

    /// What happens at the most records kept.
    #[must_use]
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.config.on_full = on_full;
        self
    }

    /// The largest result recorded, in bytes of JSON.
    #[must_use]
    pub fn max_result_bytes(mut self, max: usize) -> Self {
        self.config.max_result_bytes = max;
        self
    }

    /// The most results remembered in this process; 0 turns the memory off. See [`Config::recent_results`].
    #[must_use]
    pub fn recent_results(mut self, count: usize) -> Self {
        self.config.recent_results = count;
        self
    }

    /// The most attempts in flight in this process.
    #[must_use]
    pub fn max_in_flight(mut self, max: usize) -> Self {
        self.config.max_in_flight = max;
        self
    }

    /// How often expired records are removed; `None`: never.
    #[must_use]
    pub fn auto_cleanup(mut self, every: Option<Duration>) -> Self {
        self.config.auto_cleanup = every;
        self
    }

    /// How long a verifier may look.
    #[must_use]
    pub fn verify_limit(mut self, limit: Duration) -> Self {
        self.config.verify_limit = limit;
        self
    }

    /// Called about every 100 ms while a call waits for an attempt of another
    /// process, with its record and the time waited: for progress displays.
    #[must_use]
    pub fn on_wait(mut self, hook: impl Fn(&Record, Duration) + Send + Sync + 'static) -> Self {
        self.on_wait = Some(Arc::new(hook));
        self
    }

    /// Opens the store and starts the manager.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of its range, [`Error::Store`] when
    /// the store cannot be opened.
    pub async fn build(self) -> Result<Hapax, Error> {
        self.config.validate()?;
        let owned = self.store.is_none();
        let store = match &self.store {
            Some(store) => store.clone(),
            None => crate::store::open(self.url.as_deref().unwrap_or("memory:")).await?,
        };
        Hapax::start(self, store, owned)
    }
}
