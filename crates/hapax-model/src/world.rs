//! The world of the model at a moment: the record, the callers, the network, the
//! target.
//!
//! Invariant: worlds that differ in nothing that matters are equal states. Callers
//! and messages are in no order, and the numbers of attempts are given anew by the
//! order in which they are mentioned, since they stand for ids without order.

use crate::property::Ghost;
use crate::protocol::OnDoubt;
use crate::spec::{Attempt, Ending, HAND, Op, Spec, Value};

/// What a caller is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Between two calls.
    Idle,
    /// Waiting for the answer to `begin`; `open`: it would take over a doubt that nobody has looked into.
    Begin {
        /// The attempt it would be.
        attempt: Attempt,
        /// Whose doubt it takes over.
        take_over: Option<Attempt>,
        /// Whether that doubt is open.
        open: bool,
    },
    /// About to look whether the effect happened.
    Look {
        /// In doubt by this attempt.
        of: Attempt,
    },
    /// Waiting for the answer to `settle`.
    Settle {
        /// In doubt by this attempt.
        of: Attempt,
        /// What the target showed.
        value: Value,
    },
    /// The action runs and has done nothing yet.
    Run {
        /// The attempt.
        attempt: Attempt,
        /// Whether it took over an open doubt.
        open: bool,
    },
    /// The effect was sent; no answer yet.
    Act {
        /// The attempt.
        attempt: Attempt,
        /// Whether it took over an open doubt.
        open: bool,
    },
    /// Waiting for the answer to `end`.
    End {
        /// The attempt.
        attempt: Attempt,
        /// How it ends.
        ending: Ending,
    },
}

/// A caller: a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// What it does on a key in doubt.
    pub on_doubt: OnDoubt,
    /// What it is about.
    pub phase: Phase,
}

/// A request on its way to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// What is asked.
    pub op: Op,
    /// Whether somebody still waits for its answer.
    pub awaited: bool,
}

/// The effect of an attempt, at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Not sent.
    None,
    /// Sent, and may happen at any time.
    UnderWay,
    /// It happened.
    Happened,
    /// It will not happen: the target refuses it.
    Barred,
}

/// What an operator has seen of a key in doubt, and will say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Finding {
    /// The attempt that left it so.
    pub of: Attempt,
    /// Whether the effect happened.
    pub happened: bool,
}

/// The world at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What the store reads.
    pub store: Spec,
    /// What it would read after a power cut.
    pub durable: Spec,
    /// The callers, in no order.
    pub callers: Vec<Caller>,
    /// The requests on their way, in no order.
    pub wire: Vec<Message>,
    /// The effects of the key's present lifetime, by attempt.
    pub effects: Vec<Effect>,
    /// What the operator has seen.
    pub operator: Option<Finding>,
    /// What the properties need of the past.
    pub ghost: Ghost,
}

/// An attempt as a bit of a set.
pub(crate) fn bit(attempt: Attempt) -> u8 {
    1_u8.checked_shl(attempt.into()).unwrap_or(0)
}

impl State {
    pub(crate) fn phase(&self, caller: usize) -> Option<Phase> {
        self.callers.get(caller).map(|c| c.phase)
    }

    pub(crate) fn set(&mut self, caller: usize, phase: Phase) {
        if let Some(caller) = self.callers.get_mut(caller) {
            caller.phase = phase;
        }
    }

    /// The effect of an attempt.
    #[must_use]
    pub fn effect(&self, attempt: Attempt) -> Effect {
        let index = usize::from(attempt).checked_sub(1);
        index.and_then(|i| self.effects.get(i)).copied().unwrap_or(Effect::None)
    }

    pub(crate) fn effect_mut(&mut self, attempt: Attempt) -> Option<&mut Effect> {
        self.effects.get_mut(usize::from(attempt).checked_sub(1)?)
    }

    /// The caller that waits for the answer to this.
    pub(crate) fn waiting_for(&self, op: Op) -> Option<usize> {
        self.callers.iter().position(|c| match (c.phase, op) {
            (Phase::Begin { attempt, take_over, .. }, Op::Begin { attempt: a, take_over: t }) => {
                (attempt, take_over) == (a, t)
            }
            (Phase::Settle { of, value }, Op::Settle { of: o, happened }) => (Some(of), Some(value)) == (o, happened),
            (Phase::End { attempt, ending }, Op::End { attempt: a, ending: e }) => (attempt, ending) == (a, e),
            _ => false,
        })
    }

    /// The request of a phase goes on without anyone who waits.
    pub(crate) fn nobody_waits(&mut self, phase: Phase) {
        let op = match phase {
            Phase::Begin { attempt, take_over, .. } => Op::Begin { attempt, take_over },
            Phase::Settle { of, value } => Op::Settle { of: Some(of), happened: Some(value) },
            Phase::End { attempt, ending } => Op::End { attempt, ending },
            _ => return,
        };
        if let Some(message) = self.wire.iter_mut().find(|m| m.awaited && m.op == op) {
            message.awaited = false;
        }
    }

    /// What happened belongs to the lifetime that has ended. What of it is still under way
    /// counts for the next one too, unless somebody chose to run again.
    pub(crate) fn next_lifetime(&mut self, strict: bool) {
        self.effects.iter_mut().filter(|e| **e == Effect::Happened).for_each(|e| *e = Effect::None);
        if !strict {
            self.bar();
        }
    }

    /// Bars every effect that has not happened, of attempts that have begun.
    pub(crate) fn bar(&mut self) {
        let mut begun = 0;
        for caller in &self.callers {
            if let Phase::Run { attempt, .. } | Phase::Act { attempt, .. } = caller.phase {
                begun |= bit(attempt);
            }
        }
        for (attempt, effect) in (1..).zip(&mut self.effects) {
            if *effect == Effect::UnderWay || (*effect == Effect::None && begun & bit(attempt) != 0) {
                *effect = Effect::Barred;
            }
        }
        // Their actions hear it from the target.
        for caller in &mut self.callers {
            if let Phase::Act { attempt, open } = caller.phase {
                caller.phase = Phase::Run { attempt, open };
            }
        }
    }

    pub(crate) fn attempts_in_use(&self) -> u8 {
        let mut used = 0;
        let rows = [self.store.row, self.durable.row];
        for row in rows.into_iter().flatten() {
            used |= bit(row.attempt) | row.value.map_or(0, bit);
        }
        for caller in &self.callers {
            used |= match caller.phase {
                Phase::Idle => 0,
                Phase::Begin { attempt, take_over, .. } => bit(attempt) | take_over.map_or(0, bit),
                Phase::Look { of } => bit(of),
                Phase::Settle { of, value } => bit(of) | bit(value),
                Phase::Run { attempt, .. } | Phase::Act { attempt, .. } | Phase::End { attempt, .. } => bit(attempt),
            };
        }
        for message in &self.wire {
            used |= match message.op {
                Op::Begin { attempt, take_over } => bit(attempt) | take_over.map_or(0, bit),
                Op::End { attempt, .. } => bit(attempt),
                Op::Settle { of, happened } => of.map_or(0, bit) | happened.map_or(0, bit),
                _ => 0,
            };
        }
        for (attempt, effect) in (1..).zip(&self.effects) {
            if matches!(effect, Effect::UnderWay | Effect::Happened) {
                used |= bit(attempt);
            }
        }
        used |= self.operator.map_or(0, |finding| bit(finding.of));
        used | self.ghost.attempts()
    }

    /// Makes equal worlds equal states.
    pub(crate) fn normalise(&mut self, symmetry: bool) {
        if symmetry {
            self.sort();
            let names = Names::of(self);
            self.rename(&names);
        }
        let used = self.attempts_in_use();
        for (attempt, effect) in (1..).zip(&mut self.effects) {
            if used & bit(attempt) == 0 {
                *effect = Effect::None;
            }
        }
        self.ghost.forget_all_but(used);
        self.sort();
    }

    fn sort(&mut self) {
        self.callers.sort_unstable();
        self.wire.sort_unstable();
        self.wire.dedup_by(|a, b| !a.awaited && a == b);
    }

    /// Calls `f` with every number of an attempt but those of the effects and the ghosts.
    fn each_attempt(&mut self, mut f: impl FnMut(&mut Attempt)) {
        let mut all = |numbers: [Option<&mut Attempt>; 2]| numbers.into_iter().flatten().for_each(&mut f);
        for row in [&mut self.store.row, &mut self.durable.row].into_iter().flatten() {
            all([Some(&mut row.attempt), row.value.as_mut()]);
        }
        for caller in &mut self.callers {
            match &mut caller.phase {
                Phase::Idle => {}
                Phase::Begin { attempt, take_over, .. } => all([Some(attempt), take_over.as_mut()]),
                Phase::Look { of } => all([Some(of), None]),
                Phase::Settle { of, value } => all([Some(of), Some(value)]),
                Phase::End { attempt, ending: Ending::Complete(value) } => all([Some(attempt), Some(value)]),
                Phase::Run { attempt, .. } | Phase::Act { attempt, .. } | Phase::End { attempt, .. } => {
                    all([Some(attempt), None]);
                }
            }
        }
        for message in &mut self.wire {
            match &mut message.op {
                Op::Begin { attempt, take_over } => all([Some(attempt), take_over.as_mut()]),
                Op::End { attempt, ending: Ending::Complete(value) } => all([Some(attempt), Some(value)]),
                Op::End { attempt, .. } => all([Some(attempt), None]),
                Op::Settle { of, happened } => all([of.as_mut(), happened.as_mut()]),
                _ => {}
            }
        }
        all([self.operator.as_mut().map(|finding| &mut finding.of), None]);
    }

    fn rename(&mut self, names: &Names) {
        self.each_attempt(|attempt| *attempt = names.name(*attempt));
        let old = self.effects.clone();
        for (attempt, effect) in (1..).zip(old) {
            if let Some(place) = self.effect_mut(names.name(attempt)) {
                *place = effect;
            }
        }
        self.ghost.rename(
            |set| (1..8).filter(|a| set & bit(*a) != 0).fold(0, |to, a| to | bit(names.name(a))),
            |a| names.name(a),
        );
    }
}

/// New numbers for the attempts, by the order in which a state mentions them.
struct Names([Attempt; 8]);

impl Names {
    fn of(state: &mut State) -> Self {
        let (mut names, mut next) = ([0; 8], 1);
        let mut name = |attempt: Attempt| {
            if attempt != HAND
                && let Some(name @ 0) = names.get_mut(usize::from(attempt))
            {
                *name = next;
                next += 1;
            }
        };
        state.each_attempt(|attempt| name(*attempt));
        for attempt in 1..8 {
            name(attempt);
        }
        Self(names)
    }

    fn name(&self, attempt: Attempt) -> Attempt {
        self.0.get(usize::from(attempt)).copied().unwrap_or(attempt)
    }
}
