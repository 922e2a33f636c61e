//! An action: what is asked for, and with which choices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Fingerprint, Identity, Json, Key, ParamsError, PolicyPatch};

/// What is asked for: a type, a target, params, what triggered it, and the
/// choices that differ from the manager's.
///
/// ```
/// use hapax::Action;
/// use serde_json::json;
///
/// let action = Action::new("create_task", "trello")
///     .signal("signal-123")
///     .params(json!({"name": "Task", "id": 123}));
/// assert_eq!(action.generate_key()?.as_str(), "signal-123:create_task:trello:1557ebfc75da3109");
/// # Ok::<(), hapax::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Action {
    pub(crate) action_type: String,
    pub(crate) target: String,
    pub(crate) signal_id: Option<String>,
    pub(crate) params: Value,
    /// The params as they are kept, where they came with a fingerprint and were not read.
    pub(crate) as_kept: Option<Json>,
    pub(crate) key: Option<Key>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) policy: PolicyPatch,
    /// The key over all params, made at the first call; a changed action makes it anew.
    identified: OnceLock<Identified>,
}

/// A key with the fingerprint of the params it was made for.
#[derive(Clone, Debug)]
pub(crate) struct Identified {
    pub key: Key,
    pub fingerprint: Fingerprint,
}

impl Action {
    /// An action of a type on a target, for example `create_task` on `trello`.
    pub fn new(action_type: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            action_type: action_type.into(),
            target: target.into(),
            signal_id: None,
            params: Value::Null,
            as_kept: None,
            key: None,
            tags: BTreeMap::new(),
            policy: PolicyPatch::default(),
            identified: OnceLock::new(),
        }
    }

    /// What triggered it: a mail, a webhook, a workflow run.
    #[must_use]
    pub fn signal(mut self, signal_id: impl Into<String>) -> Self {
        self.signal_id = Some(signal_id.into());
        self.identified = OnceLock::new();
        self
    }

    /// Its params; `null` when never set.
    #[must_use]
    pub fn params(mut self, params: Value) -> Self {
        self.params = params;
        self.identified = OnceLock::new();
        self
    }

    /// Its params, from anything that serialises.
    ///
    /// # Errors
    /// When `params` has no JSON form.
    pub fn params_from<T: Serialize + ?Sized>(mut self, params: &T) -> Result<Self, ParamsError> {
        self.identified = OnceLock::new();
        self.params = serde_json::to_value(params).map_err(|e| ParamsError::NotJson { message: e.to_string() })?;
        Ok(self)
    }

    /// Takes the caller's own key in place of a generated one.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self.identified = OnceLock::new();
        self
    }

    /// Notes something on the record.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// The choices for this call; those not made stay as the manager has them.
    #[must_use]
    pub fn policy(mut self, policy: PolicyPatch) -> Self {
        self.policy = policy;
        self
    }

    /// What kind of action it is.
    #[must_use]
    pub fn action_type(&self) -> &str {
        &self.action_type
    }

    /// What it acts on.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The key that all params give, or the caller's own.
    ///
    /// # Errors
    /// See [`Key::generate`].
    pub fn generate_key(&self) -> Result<Key, Error> {
        match &self.policy.identity {
            Some(identity) => Ok(self.identify(identity)?.key),
            None => Ok(self.identified()?.into_owned().key),
        }
    }

    /// The key over all params, if it was made already.
    #[inline]
    pub(crate) fn known(&self) -> Option<&Identified> {
        self.identified.get()
    }

    /// The key over all params, made once.
    pub(crate) fn identified(&self) -> Result<Cow<'_, Identified>, Error> {
        if let Some(identified) = self.identified.get() {
            return Ok(Cow::Borrowed(identified));
        }
        let made = self.identify(&Identity::All)?;
        Ok(Cow::Borrowed(self.identified.get_or_init(|| made)))
    }

    pub(crate) fn identify(&self, identity: &Identity) -> Result<Identified, Error> {
        let fingerprint = Fingerprint::of(&identity.select(&self.params))?;
        let key = match &self.key {
            Some(key) => key.clone(),
            None => Key::from_parts(self.signal_id.as_deref(), &self.action_type, &self.target, &fingerprint)?,
        };
        Ok(Identified { key, fingerprint })
    }

    pub(crate) fn kept_params(&self) -> Option<Json> {
        if self.as_kept.is_some() {
            return self.as_kept.clone();
        }
        // A tree always has a text; were it not so, the record would merely lack it.
        Json::of(&self.params).ok()
    }
}

impl Key {
    /// The key of an action: the caller's own, or
    /// `signalId:actionType:target:paramsHash` over the params that its policy chooses.
    ///
    /// # Errors
    /// [`Error::Params`] when an integer of the params cannot be held exactly,
    /// [`Error::Key`] when the type or target is empty or the key too long.
    #[doc(alias = "generateIdempotencyKey")]
    pub fn generate(action: &Action) -> Result<Self, Error> {
        action.generate_key()
    }
}
