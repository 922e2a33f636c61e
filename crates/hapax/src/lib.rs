//! # hapax
//!
//! Actions with side effects run once, however often they are retried, and
//! every retry gets the recorded result.
#![forbid(unsafe_code)]

mod action;
mod background;
pub mod blocking;
mod canonical;
mod claim;
mod config;
mod error;
mod execute;
#[cfg(feature = "postgres")]
mod execute_in_tx;
mod flight;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod manager;
mod policy;
mod recent;
mod record;
mod remote;
mod stats;
pub mod store;
mod time;

pub use action::{Action, MAX_TAG_BYTES, MAX_TAGS};
pub use canonical::{
    Fingerprint, Identity, MAX_PARAMS_BYTES, ParamsError, canonical_json, numbers_are_exact, params_are_equivalent,
    parse_params,
};
pub use claim::{Claim, Claimed, Context};
pub use config::{Builder, Config, PolicyRule};
pub use error::{ActionError, Error, MAX_ERROR_BYTES, Unrecorded};
pub use execute::{Outcome, Source};
#[cfg(feature = "postgres")]
pub use execute_in_tx::TxFuture;
pub use key::{Key, KeyError, KeyParts};
pub use manager::{Hapax, Shutdown};
pub use policy::{Doubt, ErrorClass, InFlight, KeepParams, OnDoubt, Policy, PolicyPatch, Verdict, Verifier};
pub use record::{AttemptId, Json, Owner, Record, State};
pub use remote::{LEASE_TAG, RemoteCall, RemoteClaim, RemoteClaimed, RemoteEnd, RemoteEnded, Replay, TTL_TAG};
pub use stats::{Info, Stats};
pub use time::{Clock, ManualClock, SystemClock, Timestamp, Ttl};
