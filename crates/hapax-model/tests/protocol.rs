//! The protocol keeps its promises in every state it can reach.
#![allow(clippy::unwrap_used, clippy::panic)]

use hapax_model::protocol::{OnDoubt, Protocol};
use stateright::{Checker, Model};

fn check(name: &str, protocol: Protocol) {
    let began = std::time::Instant::now();
    let checker = protocol.checker().threads(1).spawn_bfs().join();
    println!("{name}: {} states, depth {}, {:.1} s", checker.unique_state_count(), checker.max_depth(), began.elapsed().as_secs_f64());
    checker.assert_properties();
}

#[test]
fn one_refusing_caller() {
    check("refuse 1", Protocol { attempts: 2, ..Protocol::of(&[OnDoubt::Refuse]) });
}

#[test]
fn two_refusing_callers() {
    check("refuse 2", Protocol { attempts: 2, ..Protocol::of(&[OnDoubt::Refuse; 2]) });
}
