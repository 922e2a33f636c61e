//! What must be true in every state, and the ghosts that remember what of the
//! past that takes.
//!
//! Invariant: a ghost is written here only, from what the world shows; a
//! property that is broken stays so, and the state it was broken in is the last.

use crate::protocol::Protocol;
use crate::spec::{Answer, Op, Value, Written};
use crate::world::{Effect, State, bit};

/// A property that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// [`ONE_LIVE`]
    OneLive,
    /// [`RESULT_STAYS`]
    ResultStays,
    /// [`ONE_EFFECT`]
    OneEffect,
    /// [`DOUBT_KEPT`]
    DoubtKept,
    /// [`STALE`]
    Stale,
    /// [`LAPSE_STAYS`]
    LapseStays,
    /// [`TOLD_TRUTH`]
    ToldTruth,
    /// [`EXPIRED_SILENT`]
    ExpiredSilent,
}

/// At most one attempt at a time holds a lease that runs.
pub const ONE_LIVE: &str = "at most one live attempt";
/// What was recorded stands unchanged until its time to live ends or an operator clears it.
pub const RESULT_STAYS: &str = "a recorded result is the result";
/// Where everyone refuses or verifies, at most one effect happens in a lifetime of the key.
pub const ONE_EFFECT: &str = "at most one effect";
/// A key is absent, and is begun afresh, only when no effect of it happened or may still happen.
pub const DOUBT_KEPT: &str = "no silent second run";
/// An attempt that does not hold the key changes nothing.
pub const STALE: &str = "a stale attempt changes nothing";
/// An attempt that once read as in doubt never reads as in progress again.
pub const LAPSE_STAYS: &str = "a lapsed lease stays lapsed";
/// A caller that is told a value is told the recorded one, and its effect happened.
pub const TOLD_TRUTH: &str = "a value told is recorded and its effect happened";
/// A result past its time to live answers nobody.
pub const EXPIRED_SILENT: &str = "an expired result answers nobody";

impl Broken {
    /// The property's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OneLive => ONE_LIVE,
            Self::ResultStays => RESULT_STAYS,
            Self::OneEffect => ONE_EFFECT,
            Self::DoubtKept => DOUBT_KEPT,
            Self::Stale => STALE,
            Self::LapseStays => LAPSE_STAYS,
            Self::ToldTruth => TOLD_TRUTH,
            Self::ExpiredSilent => EXPIRED_SILENT,
        }
    }
}

type Holds = fn(&Protocol, &State) -> bool;

fn unbroken(state: &State, broken: Broken) -> bool {
    state.ghost.broken != Some(broken)
}

/// The properties by name.
pub const PROPERTIES: [(&str, Holds); 8] = [
    (ONE_LIVE, |_, s| unbroken(s, Broken::OneLive)),
    (RESULT_STAYS, |_, s| unbroken(s, Broken::ResultStays)),
    (ONE_EFFECT, |_, s| unbroken(s, Broken::OneEffect)),
    (DOUBT_KEPT, |_, s| unbroken(s, Broken::DoubtKept)),
    (STALE, |_, s| unbroken(s, Broken::Stale)),
    (LAPSE_STAYS, |_, s| unbroken(s, Broken::LapseStays)),
    (TOLD_TRUTH, |_, s| unbroken(s, Broken::ToldTruth)),
    (EXPIRED_SILENT, |_, s| unbroken(s, Broken::ExpiredSilent)),
];

/// What the properties need of the past. Sets of attempts are bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// Whose lease runs.
    held: u8,
    /// Who has been in doubt.
    doubted: u8,
    /// The answer on record in this lifetime: a result, or an error for good.
    recorded: Option<Option<Value>>,
    /// The first property that was broken.
    pub broken: Option<Broken>,
}

impl Ghost {
    /// Attempts that must not be forgotten.
    pub(crate) fn attempts(&self) -> u8 {
        self.recorded.flatten().map_or(0, bit)
    }

    pub(crate) fn forget_all_but(&mut self, used: u8) {
        self.held &= used;
        self.doubted &= used;
    }

    /// Gives the attempts other numbers: in sets of them, and alone.
    pub(crate) fn rename(&mut self, set: impl Fn(u8) -> u8, one: impl Fn(u8) -> u8) {
        for bits in [&mut self.held, &mut self.doubted] {
            *bits = set(*bits);
        }
        self.recorded = self.recorded.map(|value| value.map(one));
    }

    fn must(&mut self, holds: bool, broken: Broken) {
        if !holds && self.broken.is_none() {
            self.broken = Some(broken);
        }
    }

    pub(crate) fn after_power_cut(&mut self) {
        self.held = 0;
    }

    /// After an operation of the store.
    pub(crate) fn after_op(before: &State, state: &mut State, op: Op, answer: Answer, protocol: &Protocol) {
        let (old, new) = (before.store.row, state.store.row);
        let mut ghost = state.ghost;

        // Who does not hold the key changes nothing. Rows whose time is over go whoever comes by.
        let by = match op {
            Op::End { attempt, .. } | Op::Beat(attempt) => Some(attempt),
            Op::Settle { of, .. } => of,
            Op::Begin { take_over, .. } if old.is_some() => take_over,
            _ => None,
        };
        let holds = old.map(|row| row.attempt) == by;
        let expired = old.is_some_and(|row| row.expired);
        let changed = before.store != state.store;
        ghost.must(by.is_none() || holds || expired || !changed, Broken::Stale);

        // Who holds a running lease.
        match op {
            Op::Begin { attempt, .. } if matches!(answer, Answer::Started(_)) => ghost.held |= bit(attempt),
            Op::Beat(attempt) if answer == Answer::Renewed => ghost.held |= bit(attempt),
            Op::End { attempt, .. } => ghost.held &= !bit(attempt),
            Op::Lapse => ghost.held = 0,
            _ => {}
        }
        ghost.must(ghost.held.count_ones() <= 1, Broken::OneLive);

        // The end of a lifetime: a recorded answer goes by its time to live, or an operator's hand.
        let was_recorded = old.is_some_and(|row| matches!(row.written, Written::Completed | Written::Failed));
        let is_same =
            matches!((old, new), (Some(old), Some(new)) if old.written == new.written && old.attempt == new.attempt);
        let over = was_recorded && !is_same && (expired || matches!(op, Op::Remove | Op::Clear));
        if over {
            ghost.recorded = None;
            state.next_lifetime(protocol.is_strict());
        }

        // A key begun afresh.
        if let (Op::Begin { .. }, Answer::Started(1)) = (op, answer) {
            ghost.must(!may_have_happened(state), Broken::DoubtKept);
        }

        // What is recorded now was answered, and counts.
        let newly = matches!(
            (op, answer),
            (Op::End { .. }, Answer::Done) | (Op::Settle { .. } | Op::Mark(_), Answer::Found(Some(_)))
        );
        if let Some(row) = new
            && newly
            && ghost.recorded.is_none()
            && matches!(row.written, Written::Completed | Written::Failed)
        {
            ghost.recorded = Some(row.value);
        }
        state.ghost = ghost;
    }

    /// A caller is told the key's answer: a result, or an error for good.
    pub(crate) fn told(state: &mut State, value: Option<Value>) {
        let expired = state.store.row.is_some_and(|row| row.expired);
        let happened = value.is_none_or(|v| v == crate::spec::HAND || state.effect(v) == Effect::Happened);
        let recorded = state.ghost.recorded;
        state.ghost.must(!expired, Broken::ExpiredSilent);
        state.ghost.must(recorded == Some(value) && happened, Broken::ToldTruth);
    }

    /// After any step.
    pub(crate) fn after_step(state: &mut State, protocol: &Protocol) {
        let mut ghost = state.ghost;
        let effects = state.effects.iter().filter(|e| **e == Effect::Happened).count();
        if protocol.is_strict() {
            ghost.must(effects <= 1, Broken::OneEffect);
        }
        if let Some(recorded) = ghost.recorded {
            let stands = state.store.row.is_some_and(|row| {
                let written = if recorded.is_some() { Written::Completed } else { Written::Failed };
                row.written == written && row.value == recorded
            });
            ghost.must(stands, Broken::ResultStays);
        }
        match state.store.row {
            None => ghost.must(!may_have_happened(state), Broken::DoubtKept),
            Some(row) => match row.view().state {
                Written::InDoubt => ghost.doubted |= bit(row.attempt),
                Written::InProgress => ghost.must(ghost.doubted & bit(row.attempt) == 0, Broken::LapseStays),
                Written::Completed | Written::Failed => {}
            },
        }
        state.ghost = ghost;
    }
}

fn may_have_happened(state: &State) -> bool {
    state.effects.iter().any(|e| matches!(e, Effect::Happened | Effect::UnderWay))
}
