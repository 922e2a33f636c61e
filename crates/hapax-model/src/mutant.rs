//! The rules of the protocol, each with a way to leave it out.
//!
//! A checker that finds nothing proves little until it has been seen to find
//! something: the tests leave out one rule at a time and name the property that
//! must then be broken.

/// A rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// An end counts whichever attempt holds the key.
    NoFencing,
    /// A late end counts also after another attempt has taken over, if the key is still live.
    LateEndAfterTakeover,
    /// A heartbeat counts whichever attempt holds the key, and renews its lease.
    AnyBeatRenews,
    /// A heartbeat revives a lease that had lapsed.
    BeatRevives,
    /// A key in progress does not stop the next attempt.
    LiveIsFree,
    /// A key whose lease has lapsed is free.
    LapsedIsFree,
    /// A lease never lapses.
    LapsedIsBusy,
    /// A key in doubt is free.
    DoubtIsFree,
    /// A take-over may name any attempt.
    TakeOverOfAny,
    /// A settlement may name any attempt.
    SettlementOfAny,
    /// An operator's settlement names no attempt.
    SettlementOfNone,
    /// A settlement leaves the attempt its id.
    SettlementDoesNotFence,
    /// A doubt that comes late replaces a recorded result.
    DoubtOverResult,
    /// A result past its time to live still answers.
    ExpiredAnswers,
    /// A key in doubt expires as a result does.
    DoubtExpires,
    /// A key in progress expires as a result does.
    LiveExpires,
    /// Clearing removes also what is in progress or in doubt.
    ClearRemovesLive,
    /// `begin` is answered before it is durable.
    BeginNotDurable,
    /// `end` is answered before it is durable.
    EndNotDurable,
    /// The action runs although nobody knows whether it began.
    RunUnanswered,
    /// A claim that is dropped frees its key.
    DropFrees,
    /// A claim whose result could not be recorded frees its key.
    UnrecordedFrees,
    /// A take-over that is cut short frees its key, whatever the attempt before it did.
    TakeOverFrees,
    /// An attempt that took over an open doubt frees the key by its own word.
    ReleaseClosesDoubt,
    /// An attempt ends with a value before its effect has happened.
    AnswerBeforeEffect,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::NoFencing,
        Self::LateEndAfterTakeover,
        Self::AnyBeatRenews,
        Self::BeatRevives,
        Self::LiveIsFree,
        Self::LapsedIsFree,
        Self::LapsedIsBusy,
        Self::DoubtIsFree,
        Self::TakeOverOfAny,
        Self::SettlementOfAny,
        Self::SettlementOfNone,
        Self::SettlementDoesNotFence,
        Self::DoubtOverResult,
        Self::ExpiredAnswers,
        Self::DoubtExpires,
        Self::LiveExpires,
        Self::ClearRemovesLive,
        Self::BeginNotDurable,
        Self::EndNotDurable,
        Self::RunUnanswered,
        Self::DropFrees,
        Self::UnrecordedFrees,
        Self::TakeOverFrees,
        Self::ReleaseClosesDoubt,
        Self::AnswerBeforeEffect,
    ];
}
