//! The protocol keeps its promises in every state it can reach: at most one live
//! attempt, results that stay, no silent second run, and the rest of
//! [`PROPERTIES`](hapax_model::property::PROPERTIES).

use hapax_model::check::{check, look_for};
use hapax_model::property::ONE_EFFECT;
use hapax_model::protocol::OnDoubt::{Refuse, RunAgain, Verify};
use hapax_model::protocol::{Leases, OnDoubt, Protocol, Target, Verifier};

fn holds(what: &str, protocol: Protocol) {
    let report = check(protocol, 1);
    println!("{what}: {} states, depth {}, {:.1} s", report.states, report.depth, report.took.as_secs_f64());
    let broken = report.broken.first();
    assert!(broken.is_none(), "{what}: {:?} is broken:\n{}", broken.map(|b| b.0), broken.map_or("", |b| &b.1));
}

fn two_attempts(callers: &[OnDoubt]) -> Protocol {
    Protocol { attempts: 2, ..Protocol::of(callers) }
}

#[test]
fn callers_that_refuse_keep_every_promise() {
    holds("one refuses", Protocol::of(&[Refuse]));
    holds("two refuse", Protocol::of(&[Refuse, Refuse]));
    holds("three refuse", Protocol::of(&[Refuse, Refuse, Refuse]));
}

#[test]
fn callers_that_run_again_keep_every_promise_but_that_of_one_effect() {
    holds("one runs again", Protocol::of(&[RunAgain]));
    holds("two run again", Protocol::of(&[RunAgain, RunAgain]));
}

#[test]
fn callers_that_verify_keep_every_promise() {
    holds("one verifies", Protocol::of(&[Verify]));
    holds("two verify", two_attempts(&[Verify, Verify]));
}

#[test]
fn who_refuses_is_safe_from_those_that_run_again() {
    holds("one refuses, one runs again", Protocol::of(&[Refuse, RunAgain]));
}

#[test]
fn callers_of_all_kinds_keep_every_promise() {
    holds("one of each", two_attempts(&[Refuse, RunAgain, Verify]));
    holds("one verifies, one runs again", two_attempts(&[Verify, RunAgain]));
}

/// A verifier that only looks, where leases are kept and effects are prompt.
fn looking() -> Protocol {
    Protocol {
        verifier: Verifier::Looks,
        leases: Leases::Kept,
        target: Target::Prompt,
        operator: false,
        ..Protocol::of(&[Verify, Verify])
    }
}

#[test]
fn a_verifier_that_only_looks_is_sound_while_leases_are_kept_and_effects_are_prompt() {
    holds("two verify by looking", looking());
}

#[test]
fn a_verifier_that_only_looks_is_overtaken_by_a_live_attempt_whose_lease_lapsed() {
    let report = look_for(Protocol { leases: Leases::MayLapse, ..looking() }, ONE_EFFECT);
    assert!(!report.broken.is_empty(), "not found in {} states", report.states);
}

#[test]
fn a_verifier_that_only_looks_is_overtaken_by_an_effect_that_comes_late() {
    let report = look_for(Protocol { target: Target::MayBeLate, ..looking() }, ONE_EFFECT);
    assert!(!report.broken.is_empty(), "not found in {} states", report.states);
}
