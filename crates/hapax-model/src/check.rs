//! Checking a protocol in every state it can reach.

use std::fmt::Write;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::Protocol;

/// What a check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states that were looked at.
    pub states: usize,
    /// The longest of the shortest paths to them, in states.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The properties that were broken, each with the shortest way there, to be read.
    pub broken: Vec<(&'static str, String)>,
}

/// Looks at every state, or as far as the first in which a property is broken.
#[must_use]
pub fn check(protocol: Protocol, threads: usize) -> Report {
    run(protocol, threads, HasDiscoveries::Any)
}

/// Looks for a state in which this very property is broken.
#[must_use]
pub fn look_for(protocol: Protocol, property: &'static str) -> Report {
    let mut report = run(protocol, 1, HasDiscoveries::AnyOf([property].into()));
    report.broken.retain(|(name, _)| *name == property);
    report
}

fn run(protocol: Protocol, threads: usize, until: HasDiscoveries) -> Report {
    let began = Instant::now();
    let checker = protocol.checker().threads(threads).finish_when(until).spawn_bfs().join();
    let broken = checker.discoveries().into_iter().map(|(name, path)| {
        let mut told = String::new();
        for (state, step) in path.into_vec() {
            let phases: Vec<_> = state.callers.iter().map(|c| c.phase).collect();
            let wire: Vec<_> = state.wire.iter().map(|m| m.op).collect();
            let _ = writeln!(
                told,
                "  row {:?}\n    callers {phases:?}\n    on the way {wire:?}\n    effects {:?}",
                state.store.row, state.effects
            );
            if let Some(step) = step {
                let _ = writeln!(told, "{step:?}");
            }
        }
        (name, told)
    });
    Report {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: began.elapsed(),
        broken: broken.collect(),
    }
}
