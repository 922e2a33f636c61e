//! The checker can fail: with any one rule left out, it finds the promise that breaks.

use hapax_model::check::look_for;
use hapax_model::mutant::Mutant;
use hapax_model::property::{
    DOUBT_KEPT, EXPIRED_SILENT, LAPSE_STAYS, ONE_EFFECT, ONE_LIVE, RESULT_STAYS, STALE, TOLD_TRUTH,
};
use hapax_model::protocol::OnDoubt::{Refuse, RunAgain, Verify};
use hapax_model::protocol::{OnDoubt, Protocol};

/// Each rule, the callers among whom it is left out, and the promise that breaks.
const CASES: [(Mutant, &[OnDoubt], &str); 25] = [
    (Mutant::NoFencing, &[RunAgain, RunAgain], STALE),
    (Mutant::LateEndAfterTakeover, &[RunAgain], STALE),
    (Mutant::AnyBeatRenews, &[RunAgain, RunAgain], STALE),
    (Mutant::BeatRevives, &[Refuse], LAPSE_STAYS),
    (Mutant::LiveIsFree, &[Refuse, Refuse], ONE_LIVE),
    (Mutant::LapsedIsFree, &[Refuse], DOUBT_KEPT),
    (Mutant::DoubtIsFree, &[Refuse], DOUBT_KEPT),
    (Mutant::TakeOverOfAny, &[Verify, Verify], STALE),
    (Mutant::SettlementOfAny, &[Refuse], STALE),
    (Mutant::SettlementOfNone, &[Refuse], DOUBT_KEPT),
    (Mutant::SettlementDoesNotFence, &[Refuse], TOLD_TRUTH),
    (Mutant::DoubtOverResult, &[Refuse], RESULT_STAYS),
    (Mutant::ExpiredAnswers, &[Refuse], EXPIRED_SILENT),
    (Mutant::DoubtIsFree, &[Refuse, Refuse], ONE_EFFECT),
    (Mutant::DoubtExpires, &[Refuse], DOUBT_KEPT),
    (Mutant::LiveExpires, &[Refuse], ONE_LIVE),
    (Mutant::ClearRemovesLive, &[Refuse], DOUBT_KEPT),
    (Mutant::BeginNotDurable, &[Refuse], DOUBT_KEPT),
    (Mutant::EndNotDurable, &[Refuse], RESULT_STAYS),
    (Mutant::RunUnanswered, &[Refuse], DOUBT_KEPT),
    (Mutant::DropFrees, &[Refuse], DOUBT_KEPT),
    (Mutant::UnrecordedFrees, &[Refuse], DOUBT_KEPT),
    (Mutant::TakeOverFrees, &[Refuse, RunAgain], DOUBT_KEPT),
    (Mutant::ReleaseClosesDoubt, &[Refuse, RunAgain], DOUBT_KEPT),
    (Mutant::AnswerBeforeEffect, &[Refuse], TOLD_TRUTH),
];

#[test]
fn each_rule_that_is_left_out_breaks_a_promise_by_name() {
    for mutant in Mutant::ALL {
        // It breaks no promise of safety: `liveness` finds it.
        let elsewhere = mutant == Mutant::LapsedIsBusy;
        assert!(elsewhere || CASES.iter().any(|(of, ..)| *of == mutant), "{mutant:?} has no case");
    }
    for (mutant, callers, promise) in CASES {
        let report = look_for(Protocol::of(callers).without(mutant), promise);
        assert!(!report.broken.is_empty(), "{mutant:?} does not break {promise:?} in {} states", report.states);
        println!("{mutant:?}: {promise:?} breaks within {} states, {:.1} s", report.states, report.took.as_secs_f64());
    }
}

#[test]
fn each_promise_is_broken_by_some_mutant() {
    for (name, _) in hapax_model::property::PROPERTIES {
        assert!(CASES.iter().any(|(.., promise)| *promise == name), "no mutant breaks {name:?}");
    }
}
