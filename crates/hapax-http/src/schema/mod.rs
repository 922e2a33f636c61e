//! What the API reads and writes, as JSON and in the OpenAPI document.
//!
//! Records, statistics and the like are written by the library's own types;
//! their shapes stand here a second time for the document alone, and a test
//! holds the two together.

mod action;
mod claims;
mod manage;
mod record;

pub use action::{ActionRequest, Chosen, DoubtChoice, Kept, KeyAnswer, ParseRequest, Parts};
pub use claims::{
    ClaimRequest, ClaimedAnswer, CompleteRequest, EndedAnswer, FailRequest, FailureClass, HeartbeatAnswer,
    HeartbeatRequest, Outcome, PendingAnswer, ReleaseRequest, ReplayedAnswer,
};
pub use manage::{CleanupRequest, ConfigAnswer, ConfigPatch, InfoAnswer, RemovedAnswer, Stats};
pub use record::{Holder, MarkRequest, PageAnswer, Record, SettleRequest, SettledAnswer, State, Verdict};
