//! The checker of histories, on histories that are known to be good and bad.

use hapax_model::linear::{Event, Refused, Sends, linearize};
use hapax_model::spec::{Answer, Attempt, Ending, Op, View, Written};

fn done(op: Op, called: u64, returned: u64, answer: Answer) -> Event {
    Event { op, called, returned: Some((returned, answer)) }
}

fn open(op: Op, called: u64) -> Event {
    Event { op, called, returned: None }
}

fn begin(attempt: Attempt) -> Op {
    Op::Begin { attempt, take_over: None }
}

fn complete(attempt: Attempt) -> Op {
    Op::End { attempt, ending: Ending::Complete(attempt) }
}

fn completed(attempt: Attempt) -> View {
    View { state: Written::Completed, attempt, value: Some(attempt), attempts: 1 }
}

fn is_good(events: &[Event]) {
    assert_eq!(linearize(events, Sends::Once), Ok(()));
}

fn is_bad(events: &[Event]) {
    assert!(matches!(linearize(events, Sends::Once), Err(Refused::NoOrder(_))), "it was explained");
}

#[test]
fn calls_one_after_another_are_explained() {
    is_good(&[
        done(begin(1), 0, 1, Answer::Started(1)),
        done(complete(1), 2, 3, Answer::Done),
        done(begin(2), 4, 5, Answer::Exists(completed(1))),
    ]);
}

#[test]
fn of_two_at_once_either_may_be_first() {
    let exists = View { state: Written::InProgress, attempt: 2, value: None, attempts: 1 };
    is_good(&[done(begin(1), 0, 3, Answer::Exists(exists)), done(begin(2), 1, 2, Answer::Started(1))]);
}

#[test]
fn two_that_both_began_are_found() {
    is_bad(&[done(begin(1), 0, 3, Answer::Started(1)), done(begin(2), 1, 2, Answer::Started(1))]);
}

#[test]
fn a_stale_read_is_found() {
    is_bad(&[done(begin(1), 0, 1, Answer::Started(1)), done(Op::Get, 2, 3, Answer::Found(None))]);
    // Overlapping, it is none.
    is_good(&[done(begin(1), 0, 3, Answer::Started(1)), done(Op::Get, 1, 2, Answer::Found(None))]);
}

#[test]
fn a_lost_completion_is_found() {
    let doubt = View { state: Written::InDoubt, attempt: 1, value: None, attempts: 1 };
    let story = [
        done(begin(1), 0, 1, Answer::Started(1)),
        done(complete(1), 2, 3, Answer::Done),
        open(Op::Die(1), 4),
        done(Op::Get, 5, 6, Answer::Found(Some(doubt))),
    ];
    is_bad(&story);
    // Had its answer never come, the completion may never have happened.
    let [began, _, died, read] = story;
    is_good(&[began, open(complete(1), 2), died, read]);
}

#[test]
fn a_result_that_changes_is_found() {
    is_bad(&[
        done(Op::Mark(1), 0, 1, Answer::Found(Some(View { attempt: 0, attempts: 0, ..completed(1) }))),
        done(Op::Get, 2, 3, Answer::Found(Some(View { attempt: 0, attempts: 0, ..completed(2) }))),
    ]);
}

#[test]
fn two_that_took_over_the_same_doubt_are_found() {
    let take_over = |attempt| Op::Begin { attempt, take_over: Some(1) };
    is_bad(&[
        done(begin(1), 0, 1, Answer::Started(1)),
        done(Op::Lapse, 2, 3, Answer::Nothing),
        done(take_over(2), 4, 7, Answer::Started(2)),
        done(take_over(3), 5, 6, Answer::Started(2)),
    ]);
}

#[test]
fn a_stale_attempt_that_was_told_done_is_found() {
    is_bad(&[
        done(begin(1), 0, 1, Answer::Started(1)),
        done(Op::Lapse, 2, 3, Answer::Nothing),
        done(Op::Begin { attempt: 2, take_over: Some(1) }, 4, 5, Answer::Started(2)),
        done(complete(1), 6, 7, Answer::Done),
    ]);
}

#[test]
fn a_call_without_an_answer_may_take_effect_late_or_never() {
    let exists = View { state: Written::InProgress, attempt: 1, value: None, attempts: 1 };
    is_good(&[
        open(begin(1), 0),
        done(Op::Get, 1, 2, Answer::Found(None)),
        done(begin(2), 3, 4, Answer::Exists(exists)),
    ]);
    is_good(&[open(begin(1), 0), done(begin(2), 1, 2, Answer::Started(1))]);
    // But not come and go.
    is_bad(&[
        open(begin(1), 0),
        done(Op::Get, 1, 2, Answer::Found(Some(exists))),
        done(Op::Get, 3, 4, Answer::Found(None)),
    ]);
}

#[test]
fn a_lapse_that_would_be_explained_early_is_also_tried_late() {
    // Before `begin` takes effect the lapse changes nothing, and is explained; after it too.
    let doubt = View { state: Written::InDoubt, attempt: 1, value: None, attempts: 1 };
    is_good(&[
        open(begin(1), 0),
        done(Op::Lapse, 1, 2, Answer::Nothing),
        done(Op::Get, 3, 4, Answer::Found(Some(doubt))),
    ]);
}

#[test]
fn a_hundred_calls_at_once_are_judged_in_no_time() {
    // Sixty reads that overlap everything: without memory this would take for ever.
    let mut events: Vec<Event> = (0..60).map(|n| done(Op::Get, n, 1000 + n, Answer::Found(None))).collect();
    events.push(done(begin(1), 100, 101, Answer::Started(1)));
    events.push(done(Op::End { attempt: 1, ending: Ending::Release }, 102, 103, Answer::Done));
    is_good(&events);
    events.push(done(Op::Get, 104, 105, Answer::Found(Some(completed(1)))));
    is_bad(&events);
}

#[test]
fn a_release_that_may_be_sent_again_may_find_the_key_free_but_not_anothers() {
    let release = Op::End { attempt: 1, ending: Ending::Release };
    let begun = [
        done(Op::Begin { attempt: 1, take_over: None }, 0, 1, Answer::Started(1)),
        done(Op::End { attempt: 1, ending: Ending::Doubt }, 2, 3, Answer::Done),
    ];
    let settled = done(Op::Settle { of: Some(1), happened: None }, 4, 5, Answer::Found(None));
    let freed = [begun[0], begun[1], settled, done(release, 6, 7, Answer::Done)];
    assert_eq!(linearize(&freed, Sends::Again), Ok(()));
    is_bad(&freed);
    let other = done(Op::Begin { attempt: 2, take_over: Some(1) }, 4, 5, Answer::Started(2));
    let taken = [begun[0], begun[1], other, done(release, 6, 7, Answer::Done)];
    assert!(linearize(&taken, Sends::Again).is_err(), "it was another's");
}
