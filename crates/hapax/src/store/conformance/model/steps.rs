//! The steps of a history, and how one is made from a seed.

use std::time::Duration;

use crate::State;
use crate::store::{Capacity, Filter, OnFull};

pub(super) const SPACES: [&str; 2] = ["one", "two"];
/// Two of them tell their signal themselves, as generated keys do.
pub(super) const KEYS: [&str; 5] =
    ["a", "b", "c", "s1:create:trello:0123456789abcdef", "s2:delete:asana:0123456789abcdef"];
pub(super) const SIGNALS: [Option<&str>; 3] = [None, Some("s1"), Some("s2")];
pub(super) const ACTIONS: [&str; 2] = ["create", "delete"];
pub(super) const TARGETS: [&str; 2] = ["trello", "asana"];

/// A key in a namespace, asked for through a handle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) handle: usize,
    pub(super) space: usize,
    pub(super) key: usize,
}

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} by handle {}", SPACES[self.space], KEYS[self.key], self.handle)
    }
}

/// An attempt of the history, by number.
pub(super) type Attempt = usize;

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Complete,
    Fail,
    Release,
    Doubt,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Begin {
        at: At,
        attempt: Attempt,
        take_over: Option<Attempt>,
        lease: Duration,
        signal: usize,
        action: usize,
        target: usize,
        capacity: Option<Capacity>,
    },
    Beat {
        at: At,
        attempt: Attempt,
        lease: Duration,
    },
    End {
        at: At,
        attempt: Attempt,
        how: How,
        ttl: Option<Duration>,
        number: u32,
    },
    Settle {
        at: At,
        attempt: Option<Attempt>,
        happened: bool,
        ttl: Option<Duration>,
        number: u32,
    },
    Mark {
        at: At,
        attempt: Attempt,
        ttl: Option<Duration>,
        signal: usize,
        capacity: Option<Capacity>,
        number: u32,
    },
    Get {
        at: At,
    },
    Remove {
        at: At,
    },
    Clear {
        at: At,
    },
    Sweep {
        at: At,
        limit: usize,
    },
    Evict {
        at: At,
        count: u64,
    },
    Query {
        at: At,
        filter: Filter,
        limit: usize,
    },
    Count {
        at: At,
        hits: u64,
        presented: u64,
    },
    Counters {
        at: At,
    },
    Reset {
        at: At,
    },
    Census {
        at: At,
    },
    Reopen {
        handle: usize,
    },
    Pass(Duration),
    Jump {
        millis: i64,
    },
}

/// splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap_or(0)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

const SPANS: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(5)];
const HOUR: Duration = Duration::from_secs(3600);

/// A history; one without time lets nothing lapse or expire.
pub(super) fn history(seed: u64, steps: usize, timed: bool) -> Vec<Step> {
    let mut dice = Dice(seed);
    let mut history = Vec::with_capacity(steps);
    // Few keys in some histories, so that everything happens to them.
    let (spaces, keys) = (1 + dice.below(SPACES.len()), 1 + dice.below(KEYS.len()));
    let limited = dice.one_in(3);
    // The attempts that were begun under each key, so that most steps meet one that counts.
    let mut begun = vec![Vec::new(); SPACES.len() * KEYS.len()];
    let mut attempts = 0;
    for number in 0..u32::try_from(steps).unwrap_or(u32::MAX) {
        let at = At { handle: dice.below(2), space: dice.below(spaces), key: dice.below(keys) };
        let place = at.space * KEYS.len() + at.key;
        let any = dice.below(attempts.max(1));
        let known: Attempt = match begun[place].last() {
            Some(last) if !dice.one_in(4) => *last,
            Some(_) if !dice.one_in(3) => dice.of(&begun[place]),
            _ => any,
        };
        let lease = if timed { dice.of(&SPANS) } else { HOUR };
        let ttl = match dice.below(4) {
            0 => None,
            _ if timed => Some(dice.of(&SPANS)),
            _ => Some(HOUR),
        };
        let capacity = limited.then(|| Capacity {
            max_entries: 1 + dice.below(6) as u64,
            on_full: if dice.one_in(3) { OnFull::Reject } else { OnFull::Evict },
        });
        let (signal, action, target) = (dice.below(3), dice.below(2), dice.below(2));
        history.push(match dice.below(100) {
            0..22 => {
                let take_over = if dice.one_in(2) { Some(known) } else { None };
                let attempt = attempts;
                attempts += 1;
                begun[place].push(attempt);
                Step::Begin { at, attempt, take_over, lease, signal, action, target, capacity }
            }
            22..29 => Step::Beat { at, attempt: known, lease },
            29..48 => {
                let how = dice.of(&[How::Complete, How::Complete, How::Fail, How::Release, How::Doubt, How::Doubt]);
                Step::End { at, attempt: known, how, ttl, number }
            }
            48..54 => {
                let attempt = dice.one_in(2).then_some(known);
                Step::Settle { at, attempt, happened: dice.one_in(2), ttl, number }
            }
            54..59 => {
                let attempt = attempts;
                attempts += 1;
                Step::Mark { at, attempt, ttl, signal, capacity, number }
            }
            59..67 => Step::Get { at },
            67..70 => Step::Remove { at },
            70 => Step::Clear { at },
            71..73 => Step::Sweep { at, limit: dice.below(4) },
            73 => Step::Evict { at, count: dice.below(3) as u64 },
            74..82 => {
                let mut filter = Filter::default();
                if dice.one_in(4) {
                    filter.action_type = Some(dice.of(&ACTIONS).into());
                }
                if dice.one_in(4) {
                    filter.target = Some(dice.of(&TARGETS).into());
                }
                if dice.one_in(4) {
                    filter.signal_id = dice.of(&SIGNALS).map(Into::into);
                }
                if dice.one_in(3) {
                    filter.state = Some(dice.of(&State::ALL));
                }
                if dice.one_in(5) {
                    filter.expiring_within = Some(if timed { dice.of(&SPANS) } else { 2 * HOUR });
                }
                Step::Query { at, filter, limit: 1 + dice.below(4) }
            }
            82..86 => Step::Count { at, hits: dice.below(5) as u64, presented: dice.below(5) as u64 },
            86 => Step::Counters { at },
            87 => {
                if dice.one_in(4) {
                    Step::Reset { at }
                } else {
                    Step::Counters { at }
                }
            }
            88..92 => Step::Census { at },
            92 => {
                if dice.one_in(4) {
                    Step::Reopen { handle: at.handle }
                } else {
                    Step::Get { at }
                }
            }
            _ if !timed => Step::Get { at },
            // No jump beyond an hour, and few: leases must not care, and times to live go with the clock.
            93 => Step::Jump { millis: dice.of(&[-3_600_000, -30, 30, 3_600_000]) },
            _ => Step::Pass(dice.of(&[
                Duration::from_millis(1),
                Duration::from_millis(49),
                Duration::from_millis(50),
                Duration::from_secs(1),
            ])),
        });
    }
    history
}
