//! One record and its transitions, in sequence: what a store must be like to
//! those who ask it one at a time.
//!
//! Mirrors the trait [`Store`](hapax::store::Store), method by method. Two
//! things are seen from further away. Time: a lease has lapsed or not, a time to
//! live is over or not, and the operations [`Op::Lapse`], [`Op::Forward`] and
//! [`Op::Back`] turn them, so that any moves of the clocks are covered. Values: a
//! result is the number of the attempt that made it.

use serde::{Deserialize, Serialize};

use crate::mutant::Mutant;

/// An attempt, by number. The numbers stand for ids that are never reused.
pub type Attempt = u8;

/// The attempt of what was settled or marked by hand: nobody's.
pub const HAND: Attempt = 0;

/// A recorded result, by the attempt that made it.
pub type Value = u8;

/// What is written in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Written {
    /// An attempt began and has not ended.
    InProgress,
    /// An attempt ended without a word.
    InDoubt,
    /// A result is recorded.
    Completed,
    /// An error is recorded.
    Failed,
}

/// A row as a store keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// What is written.
    pub written: Written,
    /// The attempt that holds it.
    pub attempt: Attempt,
    /// The result, of a completed one.
    pub value: Option<Value>,
    /// Executions begun under it.
    pub attempts: u8,
    /// Whether the lease has lapsed, written down or not.
    pub lapsed: bool,
    /// Whether the wall clock stands past its time to live.
    pub expired: bool,
}

/// A record as it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct View {
    /// Its state.
    pub state: Written,
    /// The attempt that holds it.
    pub attempt: Attempt,
    /// The result, of a completed one.
    pub value: Option<Value>,
    /// Executions begun under it.
    pub attempts: u8,
}

/// How an attempt ends; see [`End`](hapax::store::End).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Ending {
    /// With a result.
    Complete(Value),
    /// With an error for good.
    Fail,
    /// Without effect.
    Release,
    /// Without a word.
    Doubt,
}

/// What a store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Op {
    /// [`Store::begin`](hapax::store::Store::begin).
    Begin {
        /// The new attempt.
        attempt: Attempt,
        /// The attempt whose doubt it takes over.
        take_over: Option<Attempt>,
    },
    /// [`Store::heartbeat`](hapax::store::Store::heartbeat).
    Beat(Attempt),
    /// [`Store::end`](hapax::store::Store::end).
    End {
        /// The attempt that ends.
        attempt: Attempt,
        /// How.
        ending: Ending,
    },
    /// [`Store::settle`](hapax::store::Store::settle).
    Settle {
        /// The attempt whose doubt it is about; any, if none is named.
        of: Option<Attempt>,
        /// Its result, if the effect happened.
        happened: Option<Value>,
    },
    /// [`Store::mark`](hapax::store::Store::mark).
    Mark(Value),
    /// [`Store::get`](hapax::store::Store::get).
    Get,
    /// [`Store::remove`](hapax::store::Store::remove).
    Remove,
    /// [`Store::clear`](hapax::store::Store::clear).
    Clear,
    /// [`Store::sweep`](hapax::store::Store::sweep).
    Sweep,
    /// Time passes, until a lease lapses.
    Lapse,
    /// The process of this attempt dies.
    Die(Attempt),
    /// The wall clock jumps forward, past a time to live.
    Forward,
    /// The wall clock jumps back by as much.
    Back,
}

/// What it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Answer {
    /// The attempt began; executions so far.
    Started(u8),
    /// Nothing changed: this stands there.
    Exists(View),
    /// The lease runs anew.
    Renewed,
    /// The lease had lapsed.
    Lapsed,
    /// The attempt id is stale; the state now, where the store tells it.
    Lost(Option<Written>),
    /// It is so.
    Done,
    /// The key is not in doubt, or by another attempt.
    NotInDoubt(Option<View>),
    /// The record, if there is one.
    Found(Option<View>),
    /// Nothing is there.
    Absent,
    /// How many records went.
    Gone(u8),
    /// No question was asked.
    Nothing,
}

impl Row {
    fn fresh(attempt: Attempt) -> Self {
        Self { written: Written::InProgress, attempt, value: None, attempts: 1, lapsed: false, expired: false }
    }

    fn is_recorded(&self) -> bool {
        matches!(self.written, Written::Completed | Written::Failed)
    }

    /// The record as it reads, expired or not.
    #[must_use]
    pub fn view(&self) -> View {
        let state = match self.written {
            Written::InProgress if self.lapsed => Written::InDoubt,
            written => written,
        };
        View { state, attempt: self.attempt, value: self.value, attempts: self.attempts }
    }

    fn record(&mut self, written: Written, value: Option<Value>) {
        *self = Self { written, value, lapsed: false, expired: false, ..*self };
    }
}

/// What stands under a key; a rule may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spec {
    /// The row, if there is one; it may have expired.
    pub row: Option<Row>,
}

impl Spec {
    /// The record as it reads, if there is one.
    #[must_use]
    pub fn view(&self, mutant: Option<Mutant>) -> Option<View> {
        self.row.filter(|row| !is_over(row, mutant)).map(|row| row.view())
    }

    /// Whether the row may go at any time: a store may sweep what has expired whenever it
    /// comes by, and so a clock that is set back may or may not find it again.
    #[must_use]
    pub fn may_vanish(&self) -> bool {
        self.row.is_some_and(|row| is_over(&row, None))
    }

    /// Does one operation.
    pub fn step(&mut self, op: Op, mutant: Option<Mutant>) -> Answer {
        match op {
            Op::Begin { attempt, take_over } => self.begin(attempt, take_over, mutant),
            Op::Beat(attempt) => self.beat(attempt, mutant),
            Op::End { attempt, ending } => self.end(attempt, ending, mutant),
            Op::Settle { of, happened } => self.settle(of, happened, mutant),
            Op::Mark(value) => self.mark(value, mutant),
            Op::Get => Answer::Found(self.view(mutant)),
            Op::Remove => match self.view(mutant) {
                None => Answer::Absent,
                Some(view) if !self.may_go(mutant) => Answer::Exists(view),
                Some(_) => {
                    self.row = None;
                    Answer::Gone(1)
                }
            },
            Op::Clear => {
                let gone = u8::from(self.may_go(mutant) && self.view(mutant).is_some());
                if self.may_go(mutant) {
                    self.row = None;
                }
                Answer::Gone(gone)
            }
            Op::Sweep => {
                let over = self.row.is_some_and(|row| is_over(&row, mutant));
                if over {
                    self.row = None;
                }
                Answer::Gone(u8::from(over))
            }
            Op::Lapse | Op::Die(_) => {
                if let Some(row) = &mut self.row
                    && row.written == Written::InProgress
                    && (op == Op::Lapse || op == Op::Die(row.attempt))
                    && mutant != Some(Mutant::LapsedIsBusy)
                {
                    row.lapsed = true;
                }
                Answer::Nothing
            }
            Op::Forward => {
                if let Some(row) = &mut self.row
                    && may_expire(row, mutant)
                {
                    row.expired = true;
                }
                Answer::Nothing
            }
            Op::Back => {
                if let Some(row) = &mut self.row {
                    row.expired = false;
                }
                Answer::Nothing
            }
        }
    }

    /// The row under the key for one who is about to write; one that is over is gone first.
    fn current(&mut self, mutant: Option<Mutant>) -> Option<&mut Row> {
        if self.row.is_some_and(|row| is_over(&row, mutant)) {
            self.row = None;
        }
        self.row.as_mut()
    }

    fn may_go(&self, mutant: Option<Mutant>) -> bool {
        self.row.is_some_and(|row| row.is_recorded() || mutant == Some(Mutant::ClearRemovesLive))
    }

    fn begin(&mut self, attempt: Attempt, take_over: Option<Attempt>, mutant: Option<Mutant>) -> Answer {
        let Some(row) = self.current(mutant) else {
            self.row = Some(Row::fresh(attempt));
            return Answer::Started(1);
        };
        let view = row.view();
        let free = match mutant {
            Some(Mutant::LiveIsFree) => view.state == Written::InProgress,
            Some(Mutant::LapsedIsFree) => row.written == Written::InProgress && row.lapsed,
            Some(Mutant::DoubtIsFree) => view.state == Written::InDoubt,
            _ => false,
        };
        if free {
            *row = Row::fresh(attempt);
            return Answer::Started(1);
        }
        let named = take_over == Some(row.attempt) || (mutant == Some(Mutant::TakeOverOfAny) && take_over.is_some());
        if view.state != Written::InDoubt || !named {
            return Answer::Exists(view);
        }
        *row = Row { attempts: row.attempts.saturating_add(1), ..Row::fresh(attempt) };
        Answer::Started(row.attempts)
    }

    fn beat(&mut self, attempt: Attempt, mutant: Option<Mutant>) -> Answer {
        let Some(row) = self.current(mutant) else { return Answer::Lost(None) };
        if row.attempt != attempt && mutant != Some(Mutant::AnyBeatRenews) {
            return Answer::Lost(None);
        }
        match row.view().state {
            Written::InProgress => Answer::Renewed,
            Written::InDoubt => {
                if row.written == Written::InProgress
                    && matches!(mutant, Some(Mutant::BeatRevives | Mutant::AnyBeatRenews))
                {
                    row.lapsed = false;
                    return Answer::Renewed;
                }
                Answer::Lapsed
            }
            _ => Answer::Lost(None),
        }
    }

    fn end(&mut self, attempt: Attempt, ending: Ending, mutant: Option<Mutant>) -> Answer {
        let Some(row) = self.current(mutant) else { return Answer::Lost(None) };
        let state = row.view().state;
        let live = !row.is_recorded();
        let fenced = match mutant {
            Some(Mutant::NoFencing) => false,
            Some(Mutant::LateEndAfterTakeover) => row.attempt != attempt && !(live && row.attempts > 1),
            _ => row.attempt != attempt,
        };
        if fenced {
            return Answer::Lost(Some(state));
        }
        if row.is_recorded() {
            // The same end again: its first answer was lost on the way.
            return match (ending, row.written) {
                (Ending::Complete(_), Written::Completed) | (Ending::Fail, Written::Failed) => Answer::Done,
                (Ending::Doubt, _) if mutant == Some(Mutant::DoubtOverResult) => {
                    *row = Row { written: Written::InDoubt, value: None, expired: false, ..*row };
                    Answer::Done
                }
                _ => Answer::Lost(Some(state)),
            };
        }
        match ending {
            Ending::Complete(value) => row.record(Written::Completed, Some(value)),
            Ending::Fail => row.record(Written::Failed, None),
            Ending::Release => self.row = None,
            Ending::Doubt => *row = Row { written: Written::InDoubt, lapsed: false, ..*row },
        }
        Answer::Done
    }

    fn settle(&mut self, of: Option<Attempt>, happened: Option<Value>, mutant: Option<Mutant>) -> Answer {
        let Some(row) = self.current(mutant) else { return Answer::NotInDoubt(None) };
        let named = of.is_none_or(|of| of == row.attempt) || mutant == Some(Mutant::SettlementOfAny);
        if row.view().state != Written::InDoubt || !named {
            return Answer::NotInDoubt(Some(row.view()));
        }
        match happened {
            Some(value) => {
                if mutant != Some(Mutant::SettlementDoesNotFence) {
                    row.attempt = HAND;
                }
                row.record(Written::Completed, Some(value));
                Answer::Found(Some(row.view()))
            }
            None => {
                self.row = None;
                Answer::Found(None)
            }
        }
    }

    fn mark(&mut self, value: Value, mutant: Option<Mutant>) -> Answer {
        let Some(row) = self.current(mutant) else {
            let mut row = Row { attempts: 0, ..Row::fresh(HAND) };
            row.record(Written::Completed, Some(value));
            self.row = Some(row);
            return Answer::Found(Some(row.view()));
        };
        if row.view().state != Written::InDoubt {
            return Answer::Exists(row.view());
        }
        row.attempt = HAND;
        row.record(Written::Completed, Some(value));
        Answer::Found(Some(row.view()))
    }
}

fn may_expire(row: &Row, mutant: Option<Mutant>) -> bool {
    match row.view().state {
        Written::Completed | Written::Failed => true,
        Written::InDoubt => mutant == Some(Mutant::DoubtExpires),
        Written::InProgress => mutant == Some(Mutant::LiveExpires),
    }
}

/// Whether a row is absent to every operation.
fn is_over(row: &Row, mutant: Option<Mutant>) -> bool {
    row.expired && may_expire(row, mutant) && mutant != Some(Mutant::ExpiredAnswers)
}
