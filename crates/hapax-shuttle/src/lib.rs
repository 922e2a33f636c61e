//! hapax's joining of callers, the very file, compiled against locks,
//! notifications and timers that `shuttle` schedules.
//!
//! `flight.rs` names `parking_lot` and `tokio`; here these names stand for
//! `shuttle`'s, and the few types that it takes from the library for the least
//! that it needs of them. So the library itself has no switch for tests.
//! Invariant: what is checked here is `flight.rs` as the library has it, to the
//! letter.
#![forbid(unsafe_code)]

#[cfg(test)]
#[path = "../../hapax/src/flight.rs"]
#[allow(dead_code)] // the rest of the library uses it
mod flight;
#[cfg(test)]
mod stand_in;

#[cfg(test)]
use stand_in::{ActionError, Fingerprint, Key, recent, store};

#[cfg(test)]
mod schedules;
