//! A wall clock that somebody sets to and fro.
//!
//! All processes of a host share its wall clock, so where it stands follows from
//! the steady clock alone, and nobody has to be told of a jump.

use hapax::{Clock, SystemClock, Timestamp};

/// How long it stays where it was set.
const STAY_MS: u64 = 150;
/// How far it may be off, either way: an hour, less than a result is kept.
const OFF_MS: i64 = 3_600_000;

/// The host's clocks, of which the wall clock jumps by up to an hour, several times a second.
#[derive(Clone, Copy, Debug)]
pub struct JumpingClock {
    pub seed: u64,
}

impl JumpingClock {
    /// How far off it is while the steady clock shows this.
    fn offset(self, steady: i64) -> i64 {
        // splitmix64: neighbours have nothing in common.
        let mut z = self.seed.wrapping_add((steady.unsigned_abs() / STAY_MS).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        match (z ^ (z >> 31)) % 4 {
            0 => 0,
            1 => OFF_MS,
            2 => -OFF_MS,
            _ => i64::try_from((z >> 8) % (2 * OFF_MS.unsigned_abs())).map_or(0, |n| n - OFF_MS),
        }
    }
}

impl Clock for JumpingClock {
    fn now(&self) -> Timestamp {
        let off = self.offset(self.steady_millis());
        Timestamp::from_millis(SystemClock.now().as_millis() + off)
    }

    fn steady_millis(&self) -> i64 {
        SystemClock.steady_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_jumps_both_ways_and_all_see_the_same() {
        let clock = JumpingClock { seed: 7 };
        let stay = i64::try_from(STAY_MS).unwrap_or(i64::MAX);
        let offsets: Vec<i64> = (0..1000).map(|n| clock.offset(n * stay)).collect();
        assert_eq!(offsets, (0..1000).map(|n| JumpingClock { seed: 7 }.offset(n * stay + 1)).collect::<Vec<_>>());
        for edge in [0, OFF_MS, -OFF_MS] {
            assert!(offsets.iter().filter(|o| **o == edge).count() > 150, "{edge}");
        }
        assert!(offsets.iter().all(|o| o.abs() <= OFF_MS));
    }
}
