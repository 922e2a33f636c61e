//! Whether a history of concurrent calls is one that the specification allows:
//! linearizability, per key, after Wing and Gong, with the memory of Lowe.
//!
//! A history is linearizable when each call can be given a moment between its
//! beginning and its end such that the answers are those of the specification,
//! asked one at a time in that order. A call without an answer (its caller was
//! killed, or dropped it, or the answer was lost) may have taken effect at any
//! moment after its beginning, or never.

use std::collections::HashSet;
use std::fmt::Write;

use crate::spec::{Answer, Ending, Op, Spec};

/// A call and its answer. Moments are of any clock that all callers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was asked.
    pub op: Op,
    /// When.
    pub called: u64,
    /// What was answered and when; none, if nobody knows.
    pub returned: Option<(u64, Answer)>,
}

/// The most calls in one history: they are the bits of a set.
pub const MAX_EVENTS: usize = 128;

/// Why a history is not linearizable.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has more than [`MAX_EVENTS`] calls.
    TooLong(usize),
    /// No order explains the answers; here is the history, to be read.
    NoOrder(String),
}

/// How often a store may send one call to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// Once.
    Once,
    /// Again, when a connection broke before the answer.
    Again,
}

/// Looks for an order of the calls that explains all answers.
///
/// # Errors
/// When there is none.
pub fn linearize(events: &[Event], sends: Sends) -> Result<(), Refused> {
    if events.len() > MAX_EVENTS {
        return Err(Refused::TooLong(events.len()));
    }
    let answered =
        events.iter().enumerate().filter(|(_, e)| e.returned.is_some()).fold(0_u128, |set, (n, _)| set | 1 << n);
    // What was tried: the same calls done, and the same record after them, lead to the same.
    let mut tried: HashSet<(u128, Spec)> = HashSet::new();
    let mut todo = vec![(0_u128, Spec::default())];
    let mut furthest = 0_u128;
    while let Some((mut done, spec)) = todo.pop() {
        // A look that is explained now may as well have been now: it stands in nobody's way.
        // Without this, sixty reads at once would have 2^60 orders.
        while let Some(n) = candidates(events, done).find(|n| {
            events.get(*n).and_then(|e| e.returned.map(|(_, said)| (e.op, said))).is_some_and(|(op, said)| {
                let mut after = spec;
                changes_nothing(op, said) && after.step(op, None) == said && after == spec
            })
        }) {
            done |= 1 << n;
        }
        if done & answered == answered {
            return Ok(());
        }
        if !tried.insert((done, spec)) {
            continue;
        }
        if (done & answered).count_ones() > (furthest & answered).count_ones() {
            furthest = done;
        }
        if spec.may_vanish() {
            todo.push((done, Spec::default()));
        }
        for n in candidates(events, done) {
            let Some(event) = events.get(n) else { continue };
            let mut after = spec;
            let answer = after.step(event.op, None);
            let explained = match event.returned {
                Some((_, said)) => said == answer || sends == Sends::Again && is_free_already(event.op, said, answer),
                // One without an answer that changes nothing need never have been.
                None => after != spec,
            };
            if explained {
                todo.push((done | 1 << n, after));
            }
        }
    }
    Err(Refused::NoOrder(story(events, furthest)))
}

/// Whether what was to free a key may have been told that it is free: sent again, it finds nothing there, as it was to
/// be, and cannot tell whether it or another has seen to that.
fn is_free_already(op: Op, said: Answer, once: Answer) -> bool {
    match op {
        Op::End { ending: Ending::Release, .. } => said == Answer::Done && once == Answer::Lost(None),
        Op::Settle { of: Some(_), happened: None } => said == Answer::Found(None) && once == Answer::NotInDoubt(None),
        _ => false,
    }
}

/// Whether an operation with this answer changes nothing, whenever it is asked.
fn changes_nothing(op: Op, answer: Answer) -> bool {
    match answer {
        Answer::Found(_) => op == Op::Get,
        Answer::Exists(_) | Answer::Lapsed | Answer::Lost(_) | Answer::NotInDoubt(_) | Answer::Absent => true,
        Answer::Started(_) | Answer::Renewed | Answer::Done | Answer::Gone(_) | Answer::Nothing => false,
    }
}

/// The calls that may come next: those that no other, still to come, ended before.
fn candidates(events: &[Event], done: u128) -> impl Iterator<Item = usize> {
    let open = move |n: &usize| done >> n & 1 == 0;
    let ends = (0..events.len()).filter(open).filter_map(|n| events.get(n)?.returned.map(|(at, _)| at));
    let first_end = ends.min().unwrap_or(u64::MAX);
    (0..events.len()).filter(open).filter(move |n| events.get(*n).is_some_and(|e| e.called <= first_end))
}

/// The history in the order of its calls; those marked could be explained together.
fn story(events: &[Event], explained: u128) -> String {
    let mut order: Vec<(usize, &Event)> = events.iter().enumerate().collect();
    order.sort_by_key(|(_, e)| e.called);
    let mut told = String::new();
    for (n, event) in order {
        let mark = if explained >> n & 1 == 1 { ' ' } else { '?' };
        let _ = match event.returned {
            Some((at, answer)) => writeln!(told, "{mark} {} – {at}: {:?} → {answer:?}", event.called, event.op),
            None => writeln!(told, "{mark} {} –: {:?}", event.called, event.op),
        };
    }
    told
}
