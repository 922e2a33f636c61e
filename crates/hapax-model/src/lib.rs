//! The protocol of hapax as a state machine that is checked in every state, and
//! checkers for what the real stores do.
//!
//! - `spec`: one record and its transitions, in sequence. It is what both the
//!   model and the checker of histories hold a store against.
//! - `mutant`: the rules, each with a way to leave it out.
//! - `protocol`: callers, a network, a target, a clock and an operator around
//!   that record, with whatever can go wrong, for Stateright.
//! - `world`: what a state of it is.
//! - `property`: what must be true in every state.
//! - `driver`, `replay`: paths of the model, replayed on a real store.
//! - `linear`, `history`, `fleet`: concurrent calls of a real store, and whether any order explains them.
//! - `cut`: the same of stores behind a server, whose connections are cut all the time.
//! - `slow`: a store whose futures take several turns, for schedules of whole calls.
//! - `graph`: the reachable states as a graph, for what must stay reachable.
//!
//! Invariant: nothing here decides what is right by asking the library; the
//! rules are written down a second time, from the contract.
#![forbid(unsafe_code)]

pub mod check;
pub mod cut;
pub mod driver;
pub mod fleet;
pub mod graph;
pub mod history;
pub mod linear;
pub mod mutant;
pub mod property;
pub mod protocol;
pub mod replay;
pub mod slow;
pub mod spec;
pub mod world;
