//! Callers, a network, a target, a clock and an operator around one record.
//!
//! Mirrors what [`Hapax::execute`](hapax::Hapax::execute) does (`acquire`,
//! `lead`, `resolve`, `run_claimed` and `record_error` in `execute.rs`;
//! `Claim::end`, its drop and `carry_through` in `claim.rs`), each caller in a
//! process of its own. What can go wrong at any step: a request to the store is
//! lost, or late, or its answer is lost; a caller gives up waiting, is cancelled,
//! or its process is killed; the action fails in each way, and its effect comes
//! late, even after its caller's death; a lease lapses; the wall clock jumps; the
//! power fails; an operator settles, clears or sweeps.
//!
//! Invariant: a state holds what the world is in, and as ghosts what the
//! properties need of the past; no transition looks at a ghost.

use stateright::{Model, Property};

use crate::mutant::Mutant;
use crate::property::{Ghost, PROPERTIES};
use crate::spec::{Answer, Attempt, Ending, HAND, Op, Row, Spec, Value, Written};
use crate::world::{Caller, Effect, Finding, Message, Phase, State, bit};

/// What a caller does on a key in doubt; see [`OnDoubt`](hapax::OnDoubt).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OnDoubt {
    /// It is turned away.
    Refuse,
    /// It takes over and runs again.
    RunAgain,
    /// It asks a verifier, which looks at the target.
    Verify,
}

/// Whether a lease may lapse under an attempt that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leases {
    /// Never: heartbeats come through in time.
    Kept,
    /// At any time: a process is paused, or cut off from the store.
    MayLapse,
}

/// What a verifier's "it did not happen" is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verifier {
    /// It stays true: whatever is still under way will be refused by the target.
    Fences,
    /// It was true at the time of looking.
    Looks,
}

/// When effects happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// At any time after they were sent, whatever became of the sender.
    MayBeLate,
    /// While the sender waits, or not at all.
    Prompt,
}

/// What is modelled.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The callers, by what they do on doubt.
    pub callers: Vec<OnDoubt>,
    /// Attempts that can be told apart at a time.
    pub attempts: u8,
    /// Whether leases are kept.
    pub leases: Leases,
    /// What verifiers are worth.
    pub verifier: Verifier,
    /// When effects happen.
    pub target: Target,
    /// Whether an operator settles doubts and clears results.
    pub operator: bool,
    /// Whether the wall clock jumps, and results end and are swept.
    pub clock: bool,
    /// Whether the power fails.
    pub power: bool,
    /// Whether worlds that differ in the numbers of attempts alone count as one. Those who
    /// follow a path through the states turn it off, so that a number stays an attempt's.
    pub symmetry: bool,
    /// The rule that is left out.
    pub mutant: Option<Mutant>,
}

/// A step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A caller calls.
    Call(usize),
    /// A request reaches the store, and its answer whoever waits for it.
    Deliver(usize),
    /// A request that nobody waits for is lost.
    Lose(usize),
    /// A caller gets no answer from the store; its request may still arrive.
    GiveUp(usize),
    /// A caller's future is dropped.
    Cancel(usize),
    /// A caller's process is killed.
    Kill(usize),
    /// The action sends its effect to the target.
    Send(usize),
    /// An effect happens.
    Happen(Attempt),
    /// The action fails before it has done anything, and says so.
    FailRetryable(usize),
    /// The action fails for good before it has done anything.
    FailPermanent(usize),
    /// The action gets no answer from the target, or runs past its time limit.
    FailUnknown(usize),
    /// The verifier looks.
    Look(usize),
    /// A heartbeat of an attempt arrives.
    Beat(Attempt),
    /// The lease of the attempt that holds the key lapses.
    Lapse,
    /// The wall clock passes the record's time to live, or jumps past it.
    Forward,
    /// The wall clock jumps back before it.
    Back,
    /// Expired records are swept.
    Sweep,
    /// The operator looks whether the effect happened.
    Inspect,
    /// The operator settles what was seen.
    Settle,
    /// The operator removes a recorded result.
    Clear,
    /// The power fails, for store and callers alike.
    PowerCut,
}

impl Protocol {
    /// Callers of one kind, with everything going wrong that a fencing verifier can bear.
    #[must_use]
    pub fn of(callers: &[OnDoubt]) -> Self {
        Self {
            callers: callers.to_vec(),
            attempts: 3,
            leases: Leases::MayLapse,
            verifier: Verifier::Fences,
            target: Target::MayBeLate,
            operator: true,
            clock: true,
            power: true,
            symmetry: true,
            mutant: None,
        }
    }

    /// The same with a rule left out.
    #[must_use]
    pub fn without(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    /// Whether everyone refuses or verifies, so that no effect may happen twice.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        !self.callers.contains(&OnDoubt::RunAgain)
    }

    /// What a step asks of the store, if it does: for those who replay steps on a real one.
    #[must_use]
    pub fn op_of(&self, state: &State, step: Step) -> Option<Op> {
        match step {
            Step::Deliver(index) => state.wire.get(index).map(|message| message.op),
            Step::Beat(attempt) => Some(Op::Beat(attempt)),
            Step::Lapse => Some(Op::Lapse),
            Step::Forward => Some(Op::Forward),
            Step::Back => Some(Op::Back),
            Step::Sweep => Some(Op::Sweep),
            Step::Settle => state.operator.map(|finding| self.settlement_of(finding)),
            Step::Clear => Some(Op::Remove),
            _ => None,
        }
    }

    /// Whether every number of an attempt is taken, so that nobody can call.
    #[must_use]
    pub fn is_spent(&self, state: &State) -> bool {
        self.free_attempt(state).is_none()
    }

    fn settlement_of(&self, finding: Finding) -> Op {
        let of = (!self.is(Mutant::SettlementOfNone)).then_some(finding.of);
        Op::Settle { of, happened: finding.happened.then_some(HAND) }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The lowest number that no trace is left of.
    fn free_attempt(&self, state: &State) -> Option<Attempt> {
        let used = state.attempts_in_use();
        (1..=self.attempts).find(|attempt| used & bit(*attempt) == 0)
    }

    /// An attempt that nothing is known of: its number stands for an id that nobody has had.
    fn new_attempt(&self, state: &mut State) -> Option<Attempt> {
        let attempt = self.free_attempt(state)?;
        state.ghost.forget_all_but(!bit(attempt));
        *state.effect_mut(attempt)? = Effect::None;
        Some(attempt)
    }

    fn ask(&self, state: &mut State, caller: usize, phase: Phase) {
        let op = match phase {
            Phase::Begin { attempt, take_over, .. } => Op::Begin { attempt, take_over },
            Phase::Settle { of, value } => Op::Settle { of: Some(of), happened: Some(value) },
            Phase::End { attempt, ending } => Op::End { attempt, ending },
            _ => return,
        };
        state.wire.push(Message { op, awaited: true });
        state.set(caller, phase);
    }

    /// The store does what it is asked; callers elsewhere do not wait for it.
    fn apply(&self, state: &mut State, op: Op) -> Answer {
        let before = state.clone();
        let answer = state.store.step(op, self.mutant);
        if let Some(row) = &mut state.store.row {
            // The model does not count beyond "again".
            row.attempts = row.attempts.min(2);
        }
        let lags = match op {
            Op::Begin { .. } => self.is(Mutant::BeginNotDurable),
            Op::End { .. } => self.is(Mutant::EndNotDurable),
            _ => false,
        };
        if !lags {
            state.durable = state.store;
        }
        Ghost::after_op(&before, state, op, answer, self);
        answer
    }

    /// What a caller makes of an answer.
    fn answered(&self, state: &mut State, caller: usize, answer: Answer) {
        let Some(Caller { on_doubt, phase }) = state.callers.get(caller).copied() else { return };
        state.set(caller, Phase::Idle);
        match (phase, answer) {
            (Phase::Begin { attempt, open, .. }, Answer::Started(_)) => state.set(caller, Phase::Run { attempt, open }),
            (Phase::Begin { attempt, .. }, Answer::Exists(view)) => match (view.state, on_doubt) {
                (Written::Completed, _) => Ghost::told(state, view.value),
                (Written::Failed, _) => Ghost::told(state, None),
                // It waits for the end, then asks again; or is turned away.
                (Written::InProgress, _) | (Written::InDoubt, OnDoubt::Refuse) => {}
                (Written::InDoubt, OnDoubt::RunAgain) => {
                    let phase = Phase::Begin { attempt, take_over: Some(view.attempt), open: true };
                    self.ask(state, caller, phase);
                }
                (Written::InDoubt, OnDoubt::Verify) => state.set(caller, Phase::Look { of: view.attempt }),
            },
            (Phase::End { ending: Ending::Complete(value), .. }, Answer::Done) => Ghost::told(state, Some(value)),
            (Phase::End { ending: Ending::Fail, .. }, Answer::Done) => Ghost::told(state, None),
            (Phase::Settle { .. }, Answer::Found(Some(view))) => Ghost::told(state, view.value),
            _ => {}
        }
    }

    /// A caller gets no answer; what it has asked stays on its way.
    fn give_up(&self, state: &mut State, caller: usize) {
        let Some(phase) = state.phase(caller) else { return };
        state.nobody_waits(phase);
        let again = match phase {
            Phase::Begin { attempt, .. } if self.is(Mutant::RunUnanswered) => {
                state.set(caller, Phase::Run { attempt, open: false });
                return;
            }
            Phase::Begin { attempt, take_over, open } => Some(self.undo(attempt, take_over, open)),
            Phase::End { attempt, ending: Ending::Complete(_) } => {
                let frees = self.is(Mutant::UnrecordedFrees);
                let ending = if frees { Ending::Release } else { Ending::Doubt };
                Some(Op::End { attempt, ending })
            }
            Phase::End { attempt, ending: ending @ (Ending::Release | Ending::Fail) } => {
                Some(Op::End { attempt, ending })
            }
            _ => None,
        };
        state.wire.extend(again.map(|op| Message { op, awaited: false }));
        state.set(caller, Phase::Idle);
    }

    /// A `begin` whose caller has gone: nothing ran.
    fn undo(&self, attempt: Attempt, take_over: Option<Attempt>, open: bool) -> Op {
        let stays = take_over.is_some() && open && !self.is(Mutant::TakeOverFrees);
        Op::End { attempt, ending: if stays { Ending::Doubt } else { Ending::Release } }
    }

    fn cancel(&self, state: &mut State, caller: usize) {
        let Some(phase) = state.phase(caller) else { return };
        state.nobody_waits(phase);
        let last_word = match phase {
            Phase::Begin { attempt, take_over, open } => Some(self.undo(attempt, take_over, open)),
            Phase::Run { attempt, .. } | Phase::Act { attempt, .. } => {
                self.abandon_effect(state, attempt);
                let ending = if self.is(Mutant::DropFrees) { Ending::Release } else { Ending::Doubt };
                Some(Op::End { attempt, ending })
            }
            // Carried through with the very answer that was known.
            Phase::End { attempt, ending } => Some(Op::End { attempt, ending }),
            _ => None,
        };
        state.wire.extend(last_word.map(|op| Message { op, awaited: false }));
        state.set(caller, Phase::Idle);
    }

    fn kill(&self, state: &mut State, caller: usize) {
        let Some(phase) = state.phase(caller) else { return };
        state.nobody_waits(phase);
        if let Phase::Act { attempt, .. } = phase {
            self.abandon_effect(state, attempt);
        }
        state.set(caller, Phase::Idle);
    }

    fn abandon_effect(&self, state: &mut State, attempt: Attempt) {
        if self.target == Target::Prompt
            && let Some(effect) = state.effect_mut(attempt)
            && *effect == Effect::UnderWay
        {
            *effect = Effect::None;
        }
    }

    /// Looks at the target: what happened, if anything did.
    fn look(&self, state: &mut State) -> Option<Value> {
        let happened = (1..).zip(&state.effects).find(|(_, e)| **e == Effect::Happened).map(|(attempt, _)| attempt);
        if happened.is_none() && self.verifier == Verifier::Fences {
            state.bar();
        }
        happened
    }

    fn holder_lives(state: &State) -> bool {
        let Some(row) = state.store.row else { return false };
        state.callers.iter().any(|c| match c.phase {
            Phase::Run { attempt, .. } | Phase::Act { attempt, .. } | Phase::End { attempt, .. } => {
                attempt == row.attempt
            }
            Phase::Begin { attempt, .. } => attempt == row.attempt,
            _ => false,
        })
    }

    fn do_step(&self, state: &mut State, step: Step) -> Option<()> {
        match step {
            Step::Call(caller) => {
                let attempt = self.new_attempt(state)?;
                self.ask(state, caller, Phase::Begin { attempt, take_over: None, open: false });
            }
            Step::Deliver(index) => {
                let message = *state.wire.get(index)?;
                state.wire.remove(index);
                let waiting = message.awaited.then(|| state.waiting_for(message.op)).flatten();
                let answer = self.apply(state, message.op);
                if let Some(caller) = waiting {
                    self.answered(state, caller, answer);
                }
            }
            Step::Lose(index) => drop(state.wire.remove(index)),
            Step::GiveUp(caller) => self.give_up(state, caller),
            Step::Cancel(caller) => self.cancel(state, caller),
            Step::Kill(caller) => self.kill(state, caller),
            Step::Send(caller) => {
                let Phase::Run { attempt, open } = state.phase(caller)? else { return None };
                let effect = state.effect_mut(attempt)?;
                if *effect == Effect::Barred {
                    // The target refuses it, so the action knows that nothing happened.
                    self.fail_retryable(state, caller, attempt, open);
                } else if self.is(Mutant::AnswerBeforeEffect) {
                    self.ask(state, caller, Phase::End { attempt, ending: Ending::Complete(attempt) });
                } else {
                    *effect = Effect::UnderWay;
                    state.set(caller, Phase::Act { attempt, open });
                }
            }
            Step::Happen(attempt) => {
                *state.effect_mut(attempt)? = Effect::Happened;
                let acting =
                    state.callers.iter().position(|c| matches!(c.phase, Phase::Act { attempt: a, .. } if a == attempt));
                if let Some(caller) = acting {
                    self.ask(state, caller, Phase::End { attempt, ending: Ending::Complete(attempt) });
                }
            }
            Step::FailRetryable(caller) => {
                let Phase::Run { attempt, open } = state.phase(caller)? else { return None };
                self.fail_retryable(state, caller, attempt, open);
            }
            Step::FailPermanent(caller) => {
                let Phase::Run { attempt, .. } = state.phase(caller)? else { return None };
                self.ask(state, caller, Phase::End { attempt, ending: Ending::Fail });
            }
            Step::FailUnknown(caller) => {
                let Phase::Act { attempt, .. } = state.phase(caller)? else { return None };
                self.abandon_effect(state, attempt);
                self.ask(state, caller, Phase::End { attempt, ending: Ending::Doubt });
            }
            Step::Look(caller) => {
                let Phase::Look { of } = state.phase(caller)? else { return None };
                match self.look(state) {
                    Some(value) => self.ask(state, caller, Phase::Settle { of, value }),
                    None => {
                        let attempt = self.new_attempt(state)?;
                        self.ask(state, caller, Phase::Begin { attempt, take_over: Some(of), open: false });
                    }
                }
            }
            Step::Inspect => {
                let of = state.store.row?.attempt;
                state.operator = Some(Finding { of, happened: self.look(state).is_some() });
            }
            Step::Settle => {
                let op = self.settlement_of(state.operator.take()?);
                self.apply(state, op);
            }
            Step::Beat(_) | Step::Lapse | Step::Forward | Step::Back | Step::Sweep | Step::Clear => {
                let op = self.op_of(state, step)?;
                self.apply(state, op);
            }
            Step::PowerCut => {
                state.store = state.durable;
                // Leases of the boot before have lapsed.
                state.store.step(Op::Lapse, self.mutant);
                state.durable = state.store;
                for caller in 0..state.callers.len() {
                    self.kill(state, caller);
                }
                state.operator = None;
                state.ghost.after_power_cut();
            }
        }
        Some(())
    }

    /// The action says that nothing happened. Of an open doubt before it, it knows nothing.
    fn fail_retryable(&self, state: &mut State, caller: usize, attempt: Attempt, open: bool) {
        let stays = open && !self.is(Mutant::ReleaseClosesDoubt);
        let ending = if stays { Ending::Doubt } else { Ending::Release };
        self.ask(state, caller, Phase::End { attempt, ending });
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let callers = self.callers.iter().map(|on_doubt| Caller { on_doubt: *on_doubt, phase: Phase::Idle });
        let mut state = State {
            store: Spec::default(),
            durable: Spec::default(),
            callers: callers.collect(),
            wire: Vec::new(),
            effects: vec![Effect::None; self.attempts.into()],
            operator: None,
            ghost: Ghost::default(),
        };
        state.normalise(self.symmetry);
        vec![state]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.ghost.broken.is_some() {
            return;
        }
        let row: Option<Row> = state.store.row;
        let mut before: Option<&Caller> = None;
        for (n, caller) in state.callers.iter().enumerate() {
            // Callers alike: one of them is enough.
            if before.replace(caller) == Some(caller) {
                continue;
            }
            if caller.phase != Phase::Idle {
                steps.push(Step::Kill(n));
            }
            match caller.phase {
                Phase::Idle => steps.extend(self.free_attempt(state).map(|_| Step::Call(n))),
                Phase::Begin { .. } | Phase::End { .. } => steps.extend([Step::GiveUp(n), Step::Cancel(n)]),
                Phase::Settle { .. } => steps.push(Step::GiveUp(n)),
                Phase::Look { .. } => steps.push(Step::Look(n)),
                Phase::Run { .. } => {
                    steps.extend([Step::Send(n), Step::FailRetryable(n), Step::FailPermanent(n), Step::Cancel(n)])
                }
                Phase::Act { .. } => steps.extend([Step::FailUnknown(n), Step::Cancel(n)]),
            }
        }
        for (n, message) in state.wire.iter().enumerate() {
            steps.push(Step::Deliver(n));
            if !message.awaited {
                steps.push(Step::Lose(n));
            }
        }
        for (attempt, effect) in (1..).zip(&state.effects) {
            if *effect == Effect::UnderWay {
                steps.push(Step::Happen(attempt));
            }
        }
        let Some(row) = row else {
            if self.power {
                steps.push(Step::PowerCut);
            }
            return;
        };
        let used = state.attempts_in_use();
        steps.extend((1..=self.attempts).filter(|a| used & bit(*a) != 0).map(Step::Beat));
        let state_of_row = row.view().state;
        if row.written == Written::InProgress
            && !row.lapsed
            && (self.leases == Leases::MayLapse || !Self::holder_lives(state))
        {
            steps.push(Step::Lapse);
        }
        if self.clock {
            steps.push(if row.expired { Step::Back } else { Step::Forward });
            steps.push(Step::Sweep);
        }
        if self.operator {
            if state_of_row == Written::InDoubt && state.operator.is_none() {
                steps.push(Step::Inspect);
            }
            steps.push(Step::Clear);
        }
        if state.operator.is_some() {
            steps.push(Step::Settle);
        }
        if self.power {
            steps.push(Step::PowerCut);
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        self.do_step(&mut state, step)?;
        Ghost::after_step(&mut state, self);
        state.normalise(self.symmetry);
        // What changes nothing is no step. Whoever follows a path takes it all the same:
        // a real store must not be changed by it either.
        (!self.symmetry || state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        PROPERTIES.iter().map(|(name, holds)| Property::always(name, *holds)).collect()
    }
}
