//! Nothing wedges for ever: from every state that can be reached, a good one can.

use hapax_model::graph::always_reachable;
use hapax_model::mutant::Mutant;
use hapax_model::protocol::OnDoubt::{Refuse, RunAgain, Verify};
use hapax_model::protocol::{OnDoubt, Protocol};
use hapax_model::spec::Written;
use hapax_model::world::{Effect, Phase, State};

/// No caller waits, and no key is held by anyone.
fn is_at_rest(state: &State) -> bool {
    state.callers.iter().all(|c| c.phase == Phase::Idle)
        && state.store.view(None).is_none_or(|v| v.state != Written::InProgress)
}

fn is_completed(state: &State) -> bool {
    state.store.view(None).is_some_and(|v| v.state == Written::Completed)
        && state.callers.iter().all(|c| c.phase == Phase::Idle)
}

fn happened(state: &State) -> usize {
    state.effects.iter().filter(|e| **e == Effect::Happened).count()
}

/// Without an operator, who could always help.
fn alone(callers: &[OnDoubt]) -> Protocol {
    Protocol { operator: false, ..Protocol::of(callers) }
}

fn holds(what: &str, protocol: &Protocol, is_good: impl Fn(&State) -> bool) {
    let reached = always_reachable(protocol, is_good);
    println!("{what}: {} states, {} good", reached.states, reached.good);
    assert!(reached.good > 0);
    assert!(reached.wedged.is_none(), "{what}: wedged in {:#?}", reached.wedged);
}

#[test]
fn under_refuse_every_call_ends_and_no_key_stays_in_progress() {
    holds("one refuses", &alone(&[Refuse]), is_at_rest);
    holds("two refuse", &alone(&[Refuse, Refuse]), is_at_rest);
}

#[test]
fn under_refuse_with_an_operator_a_key_can_always_be_completed() {
    let protocol = Protocol { operator: true, ..alone(&[Refuse, Refuse]) };
    holds("two refuse, one settles", &protocol, is_completed);
}

#[test]
fn a_key_that_is_run_again_can_always_be_completed() {
    // Effects are told apart by attempts, of which there are as many as the model allows:
    // past that the key is no longer called.
    for (what, callers) in [("one runs again", vec![RunAgain]), ("two run again", vec![RunAgain, RunAgain])] {
        let protocol = alone(&callers);
        let spent = |s: &State| protocol.is_spent(s) && s.wire.is_empty();
        holds(what, &protocol, |s| is_completed(s) || spent(s));
    }
}

#[test]
fn with_a_sound_verifier_the_effect_can_always_still_happen_exactly_once() {
    let once = |s: &State| is_completed(s) && happened(s) == 1;
    holds("one verifies", &alone(&[Verify]), once);
    holds("two verify", &alone(&[Verify, Verify]), once);
}

#[test]
fn a_lease_that_never_lapses_wedges_the_key_and_is_found() {
    // Who was killed leaves the key in progress for ever.
    let protocol = alone(&[Refuse]).without(Mutant::LapsedIsBusy);
    assert!(always_reachable(&protocol, is_at_rest).wedged.is_some());
}
