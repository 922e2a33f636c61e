//! What a round does: the worker's orders, the keys, the values, the files.
//!
//! All of it follows from a seed, so that a round can be tried again. Only the
//! scheduling of processes does not.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hapax::{Action, Key};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How much a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Durability {
    /// Power loss too.
    Sync,
    /// `kill -9`.
    Buffered,
}

impl Durability {
    /// Its name in a store's address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Buffered => "buffered",
        }
    }
}

/// What the wall clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WallClock {
    /// It goes on.
    Steady,
    /// Several times a second it is set forward or back, by up to an hour.
    Jumping,
}

/// Ways to break a promise on purpose, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Sabotage {
    /// Keys in doubt run again.
    RunAgain,
    /// Some acknowledged results are cleared.
    Forget,
    /// Some actions return another value than the one they wrote.
    Lie,
}

/// The two halves of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Keys in doubt are refused.
    Refuse,
    /// Keys in doubt are looked up in the ledger, until all keys are completed. Where leases may lapse under attempts
    /// that live, because a server cannot see deaths, who looks also fences off the attempt in doubt.
    Recover,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A SQLite file in the round's directory.
    File,
    /// One on a device of its own, [`DISK`] in that directory, which fills up.
    SmallDisk,
    /// A server with this address, which is killed now and then.
    Server(String),
}

impl Place {
    /// Whether this is a server: it cannot see that the owner of an attempt is dead.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// Where the small disk is mounted.
pub const DISK: &str = "disk";

/// How many keys share a ledger and an event log, so that who looks into one need not read of a million keys.
pub const PART: u64 = 1 << 15;

/// A worker's orders.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub dir: PathBuf,
    pub seed: u64,
    pub phase: Phase,
    /// How many workers there are, which of them this is, and its how-manieth life.
    pub workers: usize,
    pub worker: usize,
    pub life: u64,
    pub tasks: usize,
    /// Keys are numbered from 0 to this.
    pub keys: u64,
    /// The keys before this one were there when the phase began; the others
    /// come up one by one from then on.
    pub first: u64,
    pub began_ms: u64,
    pub keys_per_second: u64,
    pub place: Place,
    pub durability: Durability,
    /// Whether the wall clock jumps.
    pub jumping: bool,
    pub lease: Duration,
    pub sabotage: Option<Sabotage>,
}

/// New keys a second beyond which callers hurry.
const BRISK: u64 = 300;

/// Keys that callers work on at a time; older ones are only looked at again.
const WINDOW: u64 = 48;

impl Orders {
    /// The store's address.
    pub fn store_url(&self) -> String {
        let dir = match &self.place {
            Place::Server(url) => return url.clone(),
            Place::File => self.dir.clone(),
            Place::SmallDisk => self.dir.join(DISK),
        };
        format!("sqlite:{}?durability={}", dir.join("store.db").display(), self.durability.as_str())
    }

    /// The keys, a part at a time.
    pub fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        let keys = self.keys;
        (0..keys.div_ceil(PART)).map(move |part| part * PART..keys.min((part + 1) * PART))
    }

    /// Where the effects of a key go.
    pub fn ledger(&self, n: u64) -> PathBuf {
        self.dir.join(format!("ledger-{}", n / PART))
    }

    /// Where workers write what they saw of a key.
    pub fn events(&self, n: u64) -> PathBuf {
        self.dir.join(format!("events-{}", n / PART))
    }

    /// Where it is kept which attempts may have no effect any more.
    pub fn fence(&self, n: u64) -> PathBuf {
        self.dir.join(format!("fence-{}", n / PART))
    }

    /// A file that grows by a byte whenever a worker gets a value that it had been missing.
    pub fn progress(&self) -> PathBuf {
        self.dir.join("progress")
    }

    /// Where workers write what must not be, in free text.
    pub fn complaints(&self) -> PathBuf {
        self.dir.join("complaints")
    }

    /// The action of a number.
    pub fn action(&self, n: u64) -> Action {
        Action::new("append", "ledger").signal(format!("s{n}")).params(json!({"n": n}))
    }

    /// The key of a number.
    pub fn key(&self, n: u64) -> Result<Key> {
        Ok(self.action(n).generate_key()?)
    }

    /// The number of a key.
    pub fn number(key: &str) -> Option<u64> {
        key.strip_prefix('s')?.split(':').next()?.parse().ok()
    }

    /// Randomness of this worker's life that no other has.
    pub fn rng(&self, task: usize) -> StdRng {
        let mut rng = StdRng::seed_from_u64(self.seed);
        for salt in [self.phase as u64, self.worker as u64, self.life, task as u64] {
            let next: u64 = rng.random();
            rng = StdRng::seed_from_u64(next.wrapping_add(salt));
        }
        rng
    }

    /// Whether keys come up so fast that callers must hurry.
    pub fn is_brisk(&self) -> bool {
        self.keys_per_second > BRISK
    }

    /// The newest key that has come up.
    pub fn newest(&self) -> u64 {
        let elapsed = now_ms().saturating_sub(self.began_ms);
        (self.first + elapsed * self.keys_per_second / 1000).min(self.keys.saturating_sub(1))
    }

    /// A key to present now: mostly one of the newest, so that workers meet on
    /// it; sometimes any older one, so that old results are asked for again.
    pub fn pick(&self, rng: &mut StdRng) -> u64 {
        let newest = self.newest();
        if rng.random_bool(0.85) {
            newest.saturating_sub(rng.random_range(0..WINDOW))
        } else {
            rng.random_range(0..=newest)
        }
    }
}

/// What an action returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub value: String,
    /// Some results are large, so that commits take several pages.
    pad: String,
}

impl Answer {
    /// The answer for a value of 16 hex digits; wholly determined by it.
    pub fn of(value: &str) -> Self {
        let times = match value.as_bytes() {
            [b'0', b'0', ..] => 4096,
            [b'0', ..] => 64,
            _ => 0,
        };
        Self { value: value.into(), pad: value.repeat(times) }
    }
}

/// How an action ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Answer,
    RetryableBefore,
    UnknownBefore,
    UnknownAfter,
    PanicBefore,
    PanicAfter,
}

/// What will happen in one call, drawn before it.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub value: u64,
    pub before: Duration,
    pub after: Duration,
    pub ending: Ending,
    /// The caller gives up after this.
    pub cancel: Option<Duration>,
    /// The caller does not wait for another's attempt.
    pub reject: bool,
}

impl Script {
    /// Draws one; of a brisk storm, in which callers seldom tarry.
    pub fn draw(brisk: bool, rng: &mut StdRng) -> Self {
        let delay = |rng: &mut StdRng| match rng.random_range(0..10) {
            0..3 => Duration::ZERO,
            _ if brisk && rng.random_bool(0.95) => Duration::ZERO,
            3..8 => Duration::from_micros(rng.random_range(0..8_000)),
            _ => Duration::from_millis(rng.random_range(0..60)),
        };
        Self {
            value: rng.random(),
            before: delay(rng),
            after: delay(rng),
            ending: match rng.random_range(0..100) {
                0..12 => Ending::RetryableBefore,
                12 => Ending::UnknownBefore,
                13 => Ending::UnknownAfter,
                14 => Ending::PanicBefore,
                15 => Ending::PanicAfter,
                _ => Ending::Answer,
            },
            cancel: rng.random_bool(0.02).then(|| Duration::from_micros(rng.random_range(0..20_000))),
            reject: rng.random_bool(0.1),
        }
    }
}

/// Milliseconds since 1970: the one clock that all processes of a host share.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_of_each_life_draws_its_own() {
        let orders = |worker, life| Orders {
            dir: "/".into(),
            seed: 7,
            phase: Phase::Refuse,
            workers: 4,
            worker,
            life,
            tasks: 1,
            keys: 10,
            first: 0,
            began_ms: 0,
            keys_per_second: 1,
            place: Place::File,
            durability: Durability::Sync,
            jumping: false,
            lease: Duration::from_secs(1),
            sabotage: None,
        };
        let draw = |worker, life, task| orders(worker, life).rng(task).random::<u64>();
        assert_eq!(draw(1, 1, 1), draw(1, 1, 1));
        assert_ne!(draw(1, 2, 1), draw(2, 1, 1));
        assert_ne!(draw(1, 1, 2), draw(1, 2, 1));
    }

    #[test]
    fn an_answer_follows_from_its_value() {
        assert_eq!(Answer::of("00ffffffffffffff").pad.len(), 65_536);
        assert_eq!(Answer::of("0fffffffffffffff").pad.len(), 1_024);
        assert_eq!(Answer::of("ffffffffffffffff").pad.len(), 0);
    }
}
