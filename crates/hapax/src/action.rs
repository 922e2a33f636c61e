//! An action: what is asked for, and with which choices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Fingerprint, Identity, Json, Key, MAX_PARAMS_BYTES, ParamsError, PolicyPatch};

/// The most tags of an action, those of hapax's own (`hapax.…`) not counted.
pub const MAX_TAGS: usize = 32;

/// The most bytes of a tag's name, and as many of its text.
pub const MAX_TAG_BYTES: usize = 256;

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

    /// Its params; `null` when never set. A record keeps at most
    /// [`MAX_PARAMS_BYTES`] of them, or none where the policy keeps the fingerprint alone.
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

    /// Notes something on the record. At most [`MAX_TAGS`], of [`MAX_TAG_BYTES`] each.
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

    /// Whether a record can hold it, with what it keeps of the params.
    ///
    /// # Errors
    /// [`Error::Params`] and [`Error::Config`] for what is too much of it.
    pub(crate) fn fits_a_record(&self, params: Option<&Json>) -> Result<(), Error> {
        if let Some(bytes) = params.map(|p| p.as_str().len()).filter(|bytes| *bytes > MAX_PARAMS_BYTES) {
            return Err(ParamsError::TooLarge { bytes, limit: MAX_PARAMS_BYTES }.into());
        }
        let bad = |message| Err(Error::Config { message });
        let named = [("type", &*self.action_type), ("target", &*self.target)];
        let named = named.into_iter().chain(self.signal_id.as_deref().map(|s| ("signal", s)));
        for (what, text) in named {
            // A generated key is within its own limit already.
            if text.len() > Key::MAX_BYTES {
                let (bytes, limit) = (text.len(), Key::MAX_BYTES);
                return bad(format!("the action's {what} is {bytes} bytes and the limit is {limit}: shorten it"));
            }
        }
        let tags = self.tags.keys().filter(|name| !name.starts_with("hapax.")).count();
        if tags > MAX_TAGS {
            return bad(format!("the action has {tags} tags and the limit is {MAX_TAGS}"));
        }
        if let Some((name, _)) =
            self.tags.iter().find(|(name, text)| name.len() > MAX_TAG_BYTES || text.len() > MAX_TAG_BYTES)
        {
            let name: String = name.chars().take(40).collect();
            return bad(format!("the tag {name:?} is longer than {MAX_TAG_BYTES} bytes: shorten it"));
        }
        Ok(())
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
