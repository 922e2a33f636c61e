//! What a store keeps under a key: the record, its state and the small types
//! it is made of.
//!
//! Their JSON form (camelCase, RFC 3339 times) is the same on every face of
//! hapax: the library, the command line and HTTP.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Fingerprint, Key, Timestamp};

/// The most bytes that a thread keeps for writing the next text.
const BUFFER_KEPT: usize = 16 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A valid JSON text, cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Arc<str>);

impl Json {
    /// The JSON text of `value`.
    ///
    /// # Errors
    /// When `value` has no JSON form, such as a map with keys that are not strings.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        // Written into a buffer that has grown already, so that the text is allocated once, at its size.
        let written = BUFFER.try_with(|buffer| {
            // In use when a value's own serialisation comes here.
            let mut buffer = buffer.try_borrow_mut().ok()?;
            buffer.clear();
            let text = serde_json::to_writer(&mut *buffer, value).and_then(|()| {
                let text = std::str::from_utf8(&buffer).map_err(serde::ser::Error::custom)?;
                Ok(Self(text.into()))
            });
            buffer.shrink_to(BUFFER_KEPT);
            Some(text)
        });
        match written {
            Ok(Some(json)) => json,
            Ok(None) | Err(_) => serde_json::to_string(value).map(|text| Self(text.into())),
        }
    }

    /// Takes a text that is one JSON value.
    ///
    /// # Errors
    /// When it is not.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let raw: &serde_json::value::RawValue = serde_json::from_str(text)?;
        Ok(Self(raw.get().into()))
    }

    /// Takes a text that was read as JSON just now.
    #[cfg(feature = "redis")]
    pub(crate) fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the text as a `T`.
    ///
    /// # Errors
    /// When it is some other type's.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    /// The value as a tree.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        self.to().unwrap_or(serde_json::Value::Null)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Results and params may be secret: a debug print must not leak them.
        write!(f, "Json({} bytes)", self.0.len())
    }
}

impl Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let raw: &serde_json::value::RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(s)
    }
}

/// What is there is given, also a `null`: that is the result of an action that answers `()`.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(d).map(Some)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // The text as it stands: a tree would round numbers and put members in another order.
        let raw = Box::<serde_json::value::RawValue>::deserialize(d)?;
        Ok(Self(raw.get().into()))
    }
}

/// One try to run an action: an unguessable, never reused UUIDv7.
///
/// It is the fencing token: a store makes a transition only for the attempt
/// that it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptId(uuid::Uuid);

impl AttemptId {
    /// An id that nobody has had.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// Its 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that has these 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }
}

impl Default for AttemptId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AttemptId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        uuid::Uuid::from_str(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is not an attempt id: give a UUID as `hapax get` shows it"))
    }
}

/// Where a record stands. An absent record has no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// An attempt runs the action and keeps its lease.
    InProgress,
    /// The action ran and its result is recorded.
    Completed,
    /// The action failed for good and its error is recorded.
    Failed,
    /// An attempt began and ended without a word: its effect may have happened.
    InDoubt,
}

impl State {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::InProgress, Self::Completed, Self::Failed, Self::InDoubt];

    /// The name used in JSON and on the command line, for example `in_doubt`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::InDoubt => "in_doubt",
        }
    }

    /// Whether a result or an error is recorded, so that calls are answered from it.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a state: use in_progress, completed, failed or in_doubt"))
    }
}

/// Who runs an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The host's name.
    pub host: String,
    /// The process id on that host.
    pub pid: u32,
    /// A name the user gave this manager, such as `worker-3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} on {}", self.pid, self.host)?;
        if let Some(label) = &self.label {
            write!(f, " ({label})")?;
        }
        Ok(())
    }
}

/// All that a store knows about a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The key, unique within the namespace.
    pub key: Key,
    /// The tenant.
    pub namespace: String,
    /// What triggered the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_id: Option<String>,
    /// What kind of action it is.
    pub action_type: String,
    /// What it acts on.
    pub target: String,
    /// The params, when the policy keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub params: Option<Json>,
    /// The SHA-256 of the params that identify the action.
    pub fingerprint: Fingerprint,
    /// Where it stands now.
    pub state: State,
    /// The recorded result, when `completed`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub result: Option<Json>,
    /// The recorded error when `failed`; why nobody knows when `in_doubt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The attempt that made the record what it is.
    pub attempt_id: AttemptId,
    /// Executions begun under this record.
    pub attempts: u64,
    /// Calls that presented the key, replays included.
    pub attempt_count: u64,
    /// When the last attempt began.
    pub started_at: Timestamp,
    /// When the result or error was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed_at: Option<Timestamp>,
    /// When the record ends; never, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Until when a running attempt may be silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
    /// How long the recorded execution took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Who runs, or ran, the last attempt.
    pub owner: Owner,
    /// What the caller noted on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}
