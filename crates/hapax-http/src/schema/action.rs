//! Actions: the parts that make a key, and the choices of a call.

use hapax::{Fingerprint, Key};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// What happens on a key in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtChoice {
    /// The call is refused until someone settles the key.
    Refuse,
    /// The action runs again: for what is harmless to repeat.
    Rerun,
}

impl From<DoubtChoice> for hapax::OnDoubt {
    fn from(choice: DoubtChoice) -> Self {
        match choice {
            DoubtChoice::Refuse => Self::Refuse,
            DoubtChoice::Rerun => Self::RunAgain,
        }
    }
}

/// How much of the params is kept on the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// All of them.
    Full,
    /// Their fingerprint.
    Fingerprint,
}

impl From<Kept> for hapax::KeepParams {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Full => Self::Full,
            Kept::Fingerprint => Self::Fingerprint,
        }
    }
}

/// Which params identify the action: by RFC 6901 pointers, either of both.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Chosen {
    /// Only these.
    Include(Vec<String>),
    /// All but these.
    Exclude(Vec<String>),
}

/// What is asked for: the parts of an action, or a key of the caller's own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionRequest {
    /// A key of the caller's own: 1 to 512 characters of visible ASCII.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Option<Key>,
    /// What triggered the action.
    #[schema(example = "signal-123")]
    pub signal_id: Option<String>,
    /// What kind of action it is; required without a key.
    #[schema(example = "create_task", min_length = 1)]
    pub action_type: Option<String>,
    /// What it acts on; required without a key.
    #[schema(example = "trello", min_length = 1)]
    pub target: Option<String>,
    /// Its params, any JSON. An integer that a double cannot hold is refused: send it as a string.
    #[schema(value_type = Option<serde_json::Value>)]
    pub params: Option<Box<RawValue>>,
    /// Which params identify the action; all when not said.
    pub identity: Option<Chosen>,
}

/// A key and what it is made of.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyAnswer {
    /// The key.
    #[schema(value_type = String)]
    pub key: Key,
    /// The SHA-256 of the params that identify the action.
    #[schema(value_type = String)]
    pub fingerprint: Fingerprint,
}

/// A key to be taken apart.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParseRequest {
    /// The key.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = "^[!-~]+$")]
    pub key: Key,
}

/// What a generated key was made from.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // for the document
pub struct Parts {
    /// What triggered the action.
    #[schema(required)]
    signal_id: Option<String>,
    /// What kind of action it is.
    action_type: String,
    /// What it acts on.
    target: String,
    /// The first 16 hexadecimal digits of the fingerprint.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    params_hash: String,
}
